"""The names on a board: encode and parse; see `docs/reference/format.md`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

#: What the work area of a team is for, in its name.
PURPOSE = "team"

#: What a team's board says of itself; and that its work is done.
ABOUT, DONE = "about", "done"

_MEMBER_ID = r"[0-9]{1,9}-[0-9a-f]{8}"
_PIECE = rf"piece~([0-9]{{1,9}})~([0-9]{{1,9}})~([0-9]{{1,3}})(?:~({_MEMBER_ID}))?"
_RESULT = r"result~([0-9]{1,9})~([0-9]{1,9})~([0-9]{1,3})"
_MEMBER = rf"member~({_MEMBER_ID})~([0-9]{{1,12}})"
_SIGN = r"(?:lead~[0-9]{1,12}|heir~[0-9]{1,9})"
_LEFT = r"left~([0-9]{1,9})"


class MemberName(NamedTuple):
    """One who does pieces: ``member~<rank>-<random>~<beats>``; it shows life by counting."""

    id: str
    beats: int

    def __str__(self) -> str:
        return f"member~{self.id}~{self.beats}"

    @property
    def rank(self) -> int:
        """Which task it is of."""
        return int(self.id.partition("-")[0])


class PieceName(NamedTuple):
    """A piece of work: ``piece~<round>~<number>~<attempt>``, and ``…~<member>`` once somebody has taken it."""

    round: int
    number: int
    attempt: int
    by: str = ""

    def __str__(self) -> str:
        taken = f"~{self.by}" if self.by else ""
        return f"piece~{self.round}~{self.number}~{self.attempt}{taken}"

    @property
    def result(self) -> str:
        """Where what came of it is put: ``result~<round>~<number>~<attempt>``."""
        return f"result~{self.round}~{self.number}~{self.attempt}"

    @property
    def again(self) -> PieceName:
        """The same piece, to be done once more by anybody."""
        return PieceName(self.round, self.number, self.attempt + 1)


def lead_name(seconds: int) -> str:
    """The sign of the one who leads; the seconds since it began show that it lives."""
    return f"lead~{seconds}"


def heir_name(rank: int) -> str:
    """The same, once the task `rank` has taken over."""
    return f"heir~{rank}"


def left_name(rank: int) -> str:
    """That a task has seen the end, and has left."""
    return f"left~{rank}"


class Seen(NamedTuple):
    """What was on a board."""

    sign: str | None  # of the leader, or of its heir
    done: bool
    members: tuple[MemberName, ...]
    pieces: tuple[PieceName, ...]
    results: tuple[PieceName, ...]  # of which there is something to be read
    left: frozenset[int]

    @property
    def inherited(self) -> bool:
        """Whether another task has taken over, and will make a board of its own."""
        return self.sign is not None and self.sign.startswith("heir")

    @property
    def seconds(self) -> int:
        """For how long the leader has been at it."""
        return 0 if self.sign is None or self.inherited else int(self.sign.partition("~")[2])

    @classmethod
    def of(cls, names: Iterable[str]) -> Seen:
        """What names mean; others are passed over."""
        sign, left = None, set()
        members: list[MemberName] = []
        pieces: list[PieceName] = []
        results: list[PieceName] = []
        listed = list(names)
        for name in listed:
            if match := re.fullmatch(_PIECE, name):
                pieces.append(PieceName(int(match[1]), int(match[2]), int(match[3]), match[4] or ""))
            elif match := re.fullmatch(_RESULT, name):
                results.append(PieceName(int(match[1]), int(match[2]), int(match[3])))
            elif match := re.fullmatch(_MEMBER, name):
                members.append(MemberName(match[1], int(match[2])))
            elif match := re.fullmatch(_LEFT, name):
                left.add(int(match[1]))
            elif re.fullmatch(_SIGN, name):
                sign = name
        return cls(sign, DONE in listed, tuple(members), tuple(sorted(pieces)), tuple(sorted(results)), frozenset(left))
