"""A member of a team: takes pieces from the board, has them done by a process of its own, puts up what came of them.

That process can be ended at any moment, as soon as the piece has been given to somebody else; meanwhile this one beats.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from enum import Enum

from sccache_dtool.clock import Clock
from sccache_dtool.crew import Helper
from sccache_dtool.errors import GONE
from sccache_dtool.layout import unique
from sccache_dtool.liveness.owners import host_name
from sccache_dtool.team.board import Board, Watch, beat
from sccache_dtool.team.names import MemberName, PieceName, Seen
from sccache_dtool.team.pieces import do_piece

#: How often a piece is begun by members: what ends every process that tries it is the leader's own affair.
MOST_ATTEMPTS = 3

#: Seconds between two looks at a board without work: the first and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


class Ending(Enum):
    """Why there is nothing more to do on a board."""

    DONE = "done"
    SILENT = "nothing is heard of the leader"
    INHERITED = "another task leads now"
    GONE = "gone"


class Member:
    """Does pieces from one board until there is an ending."""

    def __init__(
        self, board: Board, clock: Clock, rank: int, jobs: int | None, needed: Callable[[], bool] = lambda: True
    ) -> None:
        """`jobs`: as for a Crew; `needed`: whether anybody is there for whom we work."""
        self._board = board
        self._clock = clock
        self._rank = rank
        self._jobs = jobs
        self._needed = needed
        self.sign: str | None = None  # of the leader, as it was seen last
        self._watch = Watch(clock)
        self._name = MemberName("", 0)
        self._beaten = 0.0
        self._hand: Helper | None = None
        self._at: PieceName | None = None

    def work(self) -> Ending:
        """Work until there is nothing more to do; returns why."""
        pause = _FIRST_PAUSE
        self._sign_in()
        try:
            while self._needed():
                seen = self._board.look()
                ending = self._ending(seen)
                if seen is None or ending is not None:
                    return ending or Ending.GONE
                if not self._is_counted_on(seen):
                    self._go()
                    self._sign_in()
                    continue
                self._beat()
                if self._at is None and not self._take(seen):
                    self._clock.sleep(min(pause, beat()))
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    self._go_on()
                    pause = _FIRST_PAUSE
            return Ending.GONE
        finally:
            with contextlib.suppress(OSError):
                self._go()

    def _go(self) -> None:
        """Leave nothing to be waited for."""
        at = self._at
        self._lay_down()
        if at is not None:
            self._board.move(at, at.again)
        self._board.strike(self._name)

    def _ending(self, seen: Seen | None) -> Ending | None:
        if seen is None:
            return Ending.GONE
        if seen.done:
            return Ending.DONE
        if seen.inherited:
            return Ending.INHERITED
        self.sign = seen.sign
        return Ending.SILENT if seen.sign and self._watch.look([seen.sign]) else None

    def _sign_in(self) -> None:
        self._name = MemberName(f"{self._rank}-{unique(8)}", 0)
        self._beaten = self._clock.monotonic()
        self._board.sign(self._name, f"task {self._rank}, process {os.getpid()} on {host_name()}")

    def _is_counted_on(self, seen: Seen) -> bool:
        """Whether we have not been given up. A beat whose reply was lost shows here."""
        found = next((one for one in seen.members if one.id == self._name.id), None)
        if found is not None:
            self._name = found
        return found is not None

    def _beat(self) -> None:
        if self._clock.monotonic() - self._beaten < beat():
            return
        following = self._name._replace(beats=self._name.beats + 1)
        if self._board.move(self._name, following):
            self._name = following
            self._beaten = self._clock.monotonic()

    def _take(self, seen: Seen) -> bool:
        """Take a piece, or go on with one that is ours since a rename whose reply was lost."""
        mine = [piece for piece in seen.pieces if piece.by == self._name.id]
        free = [piece for piece in seen.pieces if not piece.by and piece.attempt < MOST_ATTEMPTS]
        for piece in (*mine, *_beginning_at(self._rank, free)):
            taken = piece._replace(by=self._name.id)
            if piece.by or self._board.move(piece, taken):
                return self._give_to_hand(taken, seen.seconds)
        return False

    def _give_to_hand(self, piece: PieceName, leaders_clock: int) -> bool:
        try:
            data = self._board.read(piece)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return False  # it has been given to somebody else: we were stopped in between
        if self._hand is None:
            self._hand = Helper(())
        self._at = piece
        doing = functools.partial(do_piece, self._clock, self._jobs, piece.attempt > 0, leaders_clock)
        self._hand.give(doing, piece.number, data)
        return True

    def _go_on(self) -> None:
        """Wait for the hand, but not beyond the next beat."""
        assert self._hand is not None
        assert self._at is not None
        if not self._hand.connection.poll(beat()):
            return
        piece = self._at
        try:
            result = self._hand.connection.recv().get()
        except Exception:  # it was killed, or could not even say what went wrong: let somebody else try
            self._lay_down()
            self._board.move(piece, piece.again)
            return
        self._at = None
        self._hand.at.clear()
        self._board.post(piece.result, result)
        self._board.strike(piece)

    def _lay_down(self) -> None:
        """Stop what is being done, at once."""
        self._at = None
        if self._hand is not None:
            self._hand.end()
            self._hand = None


def _beginning_at(rank: int, pieces: list[PieceName]) -> Iterable[PieceName]:
    """All of them; each member tries another one first, so that few are asked for by two."""
    first = rank % len(pieces) if pieces else 0
    return (*pieces[first:], *pieces[:first])
