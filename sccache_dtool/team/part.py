"""Taking part in a team: the first task leads, the others help; if the leader is lost, one of them takes its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from sccache_dtool import __version__, holders
from sccache_dtool.errors import TimedOut, explain
from sccache_dtool.holders import Holder, HolderRecord
from sccache_dtool.liveness.process import Process
from sccache_dtool.records import Damaged
from sccache_dtool.team import board as boards
from sccache_dtool.team.board import About, Board
from sccache_dtool.team.lead import Lead, Superseded
from sccache_dtool.team.member import Ending, Member
from sccache_dtool.team.names import heir_name
from sccache_dtool.team.task import Task
from sccache_dtool.workplace import Workplace

Value = TypeVar("Value")
Tell = Callable[[str], None]

#: Seconds between two looks for a leader: the first and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0


class Part:
    """The part of one task; `take` it once."""

    def __init__(self, place: Workplace, task: Task, jobs: int | None, heartbeat_ttl: float) -> None:
        """`heartbeat_ttl`: our lifetime in seconds while we lead."""
        self._fs, self._layout, self._clock, self._proc, _, self._tell = place
        self._task = task
        self._jobs = jobs
        self._heartbeat_ttl = heartbeat_ttl

    def take(self, command: Callable[[Lead | None], Value]) -> Value | None:
        """What `command` returns, called by the leader, with a Lead where it can have one; None for who has helped.

        Raises TimedOut where nobody leads.
        """
        leads, inherited = self._task.leads, None
        while True:
            if leads or inherited is not None:
                try:
                    return self._lead(command, inherited)
                except Superseded as error:
                    self._tell(error.message)
            leads, inherited = False, self._help()
            if inherited is None:
                return None

    @property
    def _named(self) -> str:
        return f"task {self._task.rank} on {holders.host_name()}"

    # -- leading -----------------------------------------------------------------------------------------------------

    def _lead(self, command: Callable[[Lead | None], Value], inherited: Board | None) -> Value:
        """What `command` returns. Raises Superseded."""
        lost = () if inherited is None else self._given_up(inherited)
        owner = holders.program_owner(self._proc)
        about = About(self._task.step, __version__, holders.encode(owner, None, self._clock), lost)
        try:
            holder = Holder(self._fs, self._layout, self._clock, owner, self._heartbeat_ttl)
        except OSError as error:
            return self._alone(command, error)
        try:
            board = Board.make(self._fs, self._layout, holder.next_lease(), about)
        except OSError as error:
            holder.retire()
            return self._alone(command, error)
        try:
            if inherited is not None:
                with contextlib.suppress(OSError):
                    inherited.remove()
            return self._led(command, board, holder, _processes(lost))
        finally:
            holder.retire()

    def _led(
        self, command: Callable[[Lead | None], Value], board: Board, holder: Holder, lost: frozenset[Process]
    ) -> Value:
        rank, count = self._task.rank, self._task.total
        with Lead(board, self._clock, rank, count, self._jobs, lost, self._tell) as team, holder.beating():
            try:
                result = command(team)
            except Superseded:
                raise
            except BaseException:
                team.conclude()  # there is a result: this error
                raise
            team.conclude()
            return result

    def _alone(self, command: Callable[[Lead | None], Value], error: OSError) -> Value:
        self._tell(f"{self._named} works alone, as others cannot be told what to do: {explain(error)}")
        return command(None)

    # -- helping -----------------------------------------------------------------------------------------------------

    def _help(self) -> Board | None:
        """Help until all is done: None; or until it is for us to lead: the board of the one that was lost."""
        known: set[str] = set()
        left: Board | None = None
        while True:
            board = self._find(known)
            if board is None:
                if left is not None and self._inherit(left, None):
                    return left
                raise TimedOut(
                    f"no task that leads was seen for {boards.SILENCE:.0f} s",
                    hint="task 0 leads; if it was lost before it began, start all of them again",
                )
            known.add(str(board.name))
            member = Member(board, self._clock, self._task.rank, self._jobs)
            ending = member.work()
            if ending is Ending.DONE:
                board.leave(self._task.rank, self._task.total)
                return None
            if ending is Ending.SILENT and self._inherit(board, member.sign):
                return board
            left = board

    def _find(self, known: set[str]) -> Board | None:
        """The board of our leader, other than those that are known; None if there is none for too long."""
        end, pause = self._clock.monotonic() + boards.SILENCE, _FIRST_PAUSE
        while True:
            for board in boards.all_boards(self._fs, self._layout):
                if str(board.name) not in known:
                    about = board.about()
                    if about is not None and (about.step, about.version) == (self._task.step, __version__):
                        return board
            if self._clock.monotonic() > end:
                return None
            self._clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _inherit(self, board: Board, sign: str | None) -> bool:
        """Take over from the leader, or from an heir who has made no board; only one of all can.

        `sign`: the one that has been silent; None for that of the heir.
        """
        if sign is None:
            seen = board.look()
            sign = seen.sign if seen is not None and seen.inherited else None
        if sign is None or not board.move(sign, heir_name(self._task.rank)):
            return False
        self._tell(f"{self._named} takes over: nothing was seen of the one that led for {boards.SILENCE:.0f} s")
        return True

    def _given_up(self, board: Board) -> tuple[str, ...]:
        about = board.about()
        return () if about is None else (*about.lost, about.leader)


def _processes(records: tuple[str, ...]) -> frozenset[Process]:
    found = set()
    for text in records:
        with contextlib.suppress(Damaged):
            found.add(HolderRecord.decode(text).process)
    return frozenset(process for process in found if process is not None)
