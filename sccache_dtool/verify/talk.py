"""How two hosts that share nothing but the directory talk to each other: names in it, one for each thing said."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from typing import TypeVar

from sccache_dtool.disk import records
from sccache_dtool.disk.names import VERIFICATION, unique
from sccache_dtool.errors import TimedOut
from sccache_dtool.units import short_duration
from sccache_dtool.verify.findings import Place
from sccache_dtool.verify.said import Garbled, Said

#: Seconds between two looks: the first; the longest within a talk, and while one waits for the other to come.
_FIRST_PAUSE, _LONGEST_PAUSE, RELAXED = 0.005, 0.1, 1.0

#: Seconds after which a talk has gone on for long enough, whoever goes on with it. A minute or two is usual.
_LONGEST_TALK = 3600.0

Found = TypeVar("Found")


def fresh_names(place: Place) -> list[str]:
    """The names in a directory as they are on the server: it is listed after a create of our own in it."""
    nudge = f"{VERIFICATION}{unique()}"
    place.record("nudge", nudge)
    try:
        return place.fs.names(place.path)
    finally:
        place.remove(nudge)


def wait_for(
    place: Place, look: Callable[[], Found | None], seconds: float, whom: str, longest_pause: float = _LONGEST_PAUSE
) -> Found:
    """Look until there is something. Raises TimedOut, naming whom we have waited for."""
    end, pause = place.clock.monotonic() + seconds, _FIRST_PAUSE
    while (found := look()) is None:
        if place.clock.monotonic() > end:
            raise TimedOut(
                f"no message from {whom} within {seconds:.0f} s",
                hint="run the command on both hosts, with the same directory on the same mount; --wait waits longer",
            )
        place.clock.sleep(pause)
        pause = min(2 * pause, longest_pause)
    return found


def read_said(place: Place, name: str) -> Said | None:
    """What was said under a name; None while it is not there as a whole."""
    try:
        return Said(records.decode(place.fs.get_record(f"{place.path}/{name}")))
    except (OSError, records.Damaged):
        return None


class PeerFailed(Exception):
    """The other side could not do what it was asked for."""


class Goodbye(Exception):
    """The other side has ended the conversation; `said` is what it said then."""

    def __init__(self, said: Said) -> None:
        super().__init__(f"the other has ended it: {said.remark('goodbye') or 'no reason given'}")
        self.said = said


class Talk:
    """One side of a conversation."""

    def __init__(self, place: Place, me: str, other: str, name_of_other: str, patience: float) -> None:
        """`me` and `other`: a word for each side, in the names; `patience`: seconds for each answer."""
        self._place = place
        self._mine = (f"{number}.{me}" for number in itertools.count())
        self._others = (f"{number}.{other}" for number in itertools.count())
        self._patience = patience
        self._end = place.clock.monotonic() + _LONGEST_TALK
        self._is_over = False  # the other has let us wait in vain, or has said goodbye
        self.name_of_other = name_of_other

    def say(self, **fields: object) -> None:
        """Say something; texts are cut if all of it is too long for a record."""
        text = json.dumps(fields, separators=(",", ":"))
        short = text if len(text) <= records.LIMIT else records.encode(fields)
        path = f"{self._place.path}/{next(self._mine)}"
        try:
            self._place.fs.put_record(short, path)
        except FileExistsError:
            if self._place.fs.get_record(path) != short:
                raise  # somebody else has said it; otherwise the reply was lost

    def hear(self) -> Said:
        """What the other says next. Raises TimedOut, or Goodbye."""
        name = next(self._others)
        if self._place.clock.monotonic() > self._end:
            self._is_over = True
            raise TimedOut(
                f"{self.name_of_other} has not finished within {short_duration(_LONGEST_TALK)}",
                hint="other users may be able to write in that directory: give one of your own on that mount",
            )

        def look() -> Said | None:
            return read_said(self._place, name) if name in fresh_names(self._place) else None

        try:
            said = wait_for(self._place, look, self._patience, self.name_of_other)
        except TimedOut:
            self._is_over = True
            raise
        if "goodbye" in said:
            self._is_over = True
            raise Goodbye(said)
        return said

    def answer(self) -> Said:
        """What the other answers. Raises TimedOut, Goodbye or PeerFailed."""
        said = self.hear()
        if "failed" in said:
            raise PeerFailed(said.text("failed"))
        return said

    def part(self, goodbye: str, **more: object) -> None:
        """Say goodbye, and wait until the other has heard it: only then may what we talk in be removed.

        If that cannot be said, or what is heard makes no sense, nothing is lost: our own findings stand.
        """
        with contextlib.suppress(Goodbye, Garbled, TimedOut, OSError):
            self.say(goodbye=goodbye, **more)
            if not self._is_over:
                self.hear()

    def ask(self, errand: str, room: str, **more: object) -> Said:
        """Have the other do something in a directory, and hear the answer. Raises as `answer` does."""
        self.say(**{"do": errand, "in": room, **more})
        return self.answer()
