"""Leading a team: the one who runs the command, has pieces of its work done by all, and prints the one result."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from types import FrameType, TracebackType
from typing import Any, NoReturn

from sccache_dtool.clock import Clock
from sccache_dtool.crew import Outcome, Result, Task, attempt
from sccache_dtool.errors import FULL, CacheError
from sccache_dtool.fallback import do_without, start_thread
from sccache_dtool.layout import unique
from sccache_dtool.liveness.process import Process
from sccache_dtool.team import board as boards
from sccache_dtool.team.board import Board, Watch
from sccache_dtool.team.member import MOST_ATTEMPTS, Member
from sccache_dtool.team.names import DONE, MemberName, PieceName, Seen, lead_name
from sccache_dtool.team.pieces import Work, receive, send_piece

Tell = Callable[[str], None]

#: Pieces for each task, so that those who are slow, or come late, keep nobody waiting for long; and at least, so that
#: what comes of one is not too much to be in memory at once.
_PIECES_EACH, _LEAST_PIECES = 4, 16

#: Seconds between two looks at the board: the first and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5

#: How many silences a piece may take somebody who lives: one request to a server that hangs would hold up all.
_PATIENCE = 10

#: Seconds in which a member of ours ends that is told to.
_TO_END = 5.0


class Superseded(CacheError):
    """Another task has taken over: we were silent for too long."""


class Lead:
    """Shares work with all who look at a board of ours; see `crew.Team`. A context manager, for as long as it lasts."""

    #: Seconds of work that must be left: others need about so long to take notice.
    worth = 0.5

    def __init__(
        self,
        board: Board,
        clock: Clock,
        rank: int,
        tasks: int,
        jobs: int | None,
        lost: frozenset[Process],
        warn: Tell,
    ) -> None:
        """`lost`: those who led before us, and were given up."""
        self.lost = lost
        self._board = board
        self._clock = clock
        self._rank = rank
        self._tasks = tasks
        self._jobs = jobs
        self._warn = warn
        self._began = clock.monotonic()
        self._sign = lead_name(0)
        self._superseded = False
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None
        self._member: int | None = None  # the process that does pieces here
        self._round = 0

    def __enter__(self) -> Lead:
        self._member = self._fork_member()
        self._heart = start_thread(self._beat, "sc-dtool team", "another task may take over from this one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_heart()
        self._end_member()

    def conclude(self) -> None:
        """Say that all is done; nobody takes over any more. Raises Superseded if somebody has."""
        self._stop_heart()
        if not self._board.move(self._sign, DONE):
            seen = self._board.look()
            if seen is None or not seen.done:
                raise self._was_superseded()

    # -- sharing -----------------------------------------------------------------------------------------------------

    def share(
        self, work: Callable[[Task], Result], again: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Generator[Result, None, None]:
        """The results of `work` for each of the tasks, in their order; of `again` for one that was begun before."""
        self._round += 1
        size = math.ceil(len(tasks) / max(_LEAST_PIECES, _PIECES_EACH * self._tasks))
        round = _Round(self._round, work, again, [tasks[i : i + size] for i in range(0, len(tasks), size)], self._clock)
        try:
            if self._put_up(round):
                for number in range(len(round.pieces)):
                    yield from self._outcome(round, number).get()
            else:
                yield from map(again, tasks)
        finally:
            self._clear(round)

    def _put_up(self, round: _Round) -> bool:
        """Put up all pieces; False if there is no room for them: what is asked for may be to make some."""
        try:
            for piece in round.pieces:
                self._board.post(piece, round.encoded(piece, self._clock.monotonic() - self._began))
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        return True

    def _outcome(self, round: _Round, number: int) -> Outcome:
        """Wait for what comes of a piece: done by a member or, if there is none who could, by us."""
        pause = _FIRST_PAUSE
        while True:
            piece = round.pieces[number]
            if piece in round.results:
                return self._received(piece) or round.done_here(piece.again)
            seen = self._board.look()
            if self._superseded or seen is None:
                raise self._was_superseded()
            self._give_up(seen, round)
            self._give_to_others(seen, round)
            round.note(seen)
            if round.is_ours(seen, number):
                mine = piece._replace(by=f"{self._rank}-{unique(8)}")
                if self._board.move(piece, mine):
                    outcome = round.done_here(mine)
                    self._board.strike(mine)
                    return outcome
            elif round.has_vanished(seen, number):
                return round.done_here(piece.again)
            elif round.pieces[number] not in round.results:
                self._clock.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _received(self, piece: PieceName) -> Outcome | None:
        """What a member has put up; None if it cannot be read."""
        try:
            outcome = receive(self._clock, self._board.read(piece.result))
        except Exception as error:
            self._warn(f"what came of {piece} cannot be read ({error}); it is done again, by this task")
            return None
        self._board.strike(piece.result)
        return outcome

    def _give_up(self, seen: Seen, round: _Round) -> None:
        """Members that show no life are struck off the board, and their pieces are anybody's."""
        silent = round.members.look(seen.members)
        for member in seen.members:
            if str(member) in silent or self._is_ours_and_dead(member):
                who = self._board.text_of(member)
                if self._board.strike(member):  # or it has just beaten
                    self._warn(f"{who} has ended or is silent; others do its work")
                    for piece in seen.pieces:
                        if piece.by == member.id:
                            self._board.move(piece, piece.again)

    def _give_to_others(self, seen: Seen, round: _Round) -> None:
        """What was taken by nobody who is there, or so long ago that a request to a server may hang, is anybody's."""
        there = {member.id: member for member in seen.members}
        taken = [piece for piece in seen.pieces if piece.by]
        slow = round.taken.look(taken)
        lost = round.orphans.look(piece for piece in taken if piece.by not in there)
        for piece in taken:
            if str(piece) in slow and piece.by in there:
                who, seconds = self._board.text_of(there[piece.by]), _PATIENCE * boards.SILENCE
                self._warn(f"{who} has been at a piece for {seconds:.0f} s; it is given to others, too")
            if str(piece) in (*slow, *lost):
                self._board.move(piece, piece.again)

    def _clear(self, round: _Round) -> None:
        """Take down what is left of a round: all of it if somebody has lost interest, else what came twice."""
        with contextlib.suppress(OSError):
            seen = self._board.look()
            if seen is not None:
                names: list[object] = [one for one in seen.pieces if one.round == round.number]
                for name in (*names, *(one.result for one in seen.results if one.round == round.number)):
                    self._board.strike(name)

    # -- signs of life -----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        while not self._stop.wait(boards.beat()):
            with contextlib.suppress(OSError):  # the server may be away for a while
                self._beat_once()
            if self._superseded:
                return

    def _beat_once(self) -> None:
        following = lead_name(max(int(self._sign.partition("~")[2]) + 1, int(self._clock.monotonic() - self._began)))
        if not self._board.move(self._sign, following):
            seen = self._board.look()
            if seen is None or seen.sign != following:  # otherwise it is the reply that was lost
                self._superseded = True
                return
        self._sign = following

    def _stop_heart(self) -> None:
        self._stop.set()
        if self._heart is not None:
            self._heart.join()

    def _was_superseded(self) -> Superseded:
        return Superseded(
            f"another task has taken over from task {self._rank}, of which nothing was seen for {boards.SILENCE:.0f} s"
        )

    # -- our own member ----------------------------------------------------------------------------------------------

    def _fork_member(self) -> int | None:
        us = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            do_without(f"no more processes can be started ({error.strerror}): this task does less of the shared work")
            return None
        if pid == 0:
            signal.signal(signal.SIGTERM, _leave)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the one who leads, and then ends us
            try:
                Member(self._board, self._clock, self._rank, self._jobs, lambda: os.getppid() == us).work()
            finally:
                os._exit(0)  # nothing of our parent's is to be tidied by us
        return pid

    def _is_ours_and_dead(self, member: MemberName) -> bool:
        return member.rank == self._rank and self._has_ended()

    def _has_ended(self) -> bool:
        try:
            if self._member is not None and os.waitpid(self._member, os.WNOHANG) != (0, 0):
                self._member = None
        except ChildProcessError:  # who started us has said that nobody waits for children
            self._member = None
        return self._member is None

    def _end_member(self) -> None:
        """End it; one that hangs in a request to a server is left to end with that."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + _TO_END
            if self._has_ended():
                return
            assert self._member is not None
            os.kill(self._member, number)
            while not self._has_ended() and time.monotonic() < end:
                time.sleep(0.002)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


class _Round:
    """One sharing of work: its pieces, under the names that they have by now."""

    def __init__(self, number: int, work: Work, again: Work, parts: Sequence[Sequence[Any]], clock: Clock) -> None:
        self.number = number
        self.pieces = [PieceName(number, i, 0) for i in range(len(parts))]
        self.results: frozenset[PieceName] = frozenset()
        self.members, self.orphans, self._missing = Watch(clock), Watch(clock), Watch(clock)
        self.taken = Watch(clock, _PATIENCE)
        self._work = work
        self._again = again
        self._parts = parts

    def encoded(self, piece: PieceName, leaders_clock: float) -> bytes:
        """A piece as it is put up."""
        return send_piece(self._work, self._again, self._parts[piece.number], leaders_clock)

    def note(self, seen: Seen) -> None:
        """Take note of results, and of pieces that are tried again."""
        self.results = frozenset(seen.results)
        for name in (*seen.pieces, *seen.results):
            if name.round == self.number and name.attempt > self.pieces[name.number].attempt:
                self.pieces[name.number] = name._replace(by="")

    def is_ours(self, seen: Seen, number: int) -> bool:
        """Whether we do a piece ourselves: there is no member, or none that survives it."""
        piece = self.pieces[number]
        return piece in seen.pieces and (not seen.members or piece.attempt >= MOST_ATTEMPTS)

    def has_vanished(self, seen: Seen, number: int) -> bool:
        """Whether there has been no sign of a piece, and of what came of it, for too long."""
        there = any((one.round, one.number) == (self.number, number) for one in (*seen.pieces, *seen.results))
        return bool(self._missing.look([] if there else [number]))

    def done_here(self, piece: PieceName) -> Outcome:
        """What comes of a piece that we do ourselves."""
        work = self._again if piece.attempt else self._work
        return attempt(lambda tasks: [work(task) for task in tasks], self._parts[piece.number])
