"""This process as a holder: one per cache and process, however many `Cache` objects and leases it has.

A lease that its program forgets is kept until the program ends, for somebody may be reading what it protects; at a
normal end all are released, and after any other end they are reaped.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable

from sccache_dtool.clock import Clock
from sccache_dtool.errors import LeaseLost
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import Holder, program_owner
from sccache_dtool.layout import Layout
from sccache_dtool.leases import Lease
from sccache_dtool.liveness.process import Proc


class Program:
    """The holder of this process in one cache, and the leases that it has not released."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.leases: dict[str, Lease] = {}
        self.on_lost: list[Callable[[LeaseLost], None]] = []
        holder.start_heart(self._tell)

    def close(self) -> None:
        """Release everything and leave; does nothing in a forked child."""
        if not self.holder.is_of_this_process:
            return
        for lease in list(self.leases.values()):
            try:
                lease.release()
            except OSError:
                continue  # a reaper will do it, once this process is gone
        self.holder.retire()

    def _tell(self, error: LeaseLost) -> None:
        """Tell everybody; one who fails over it does not keep it from the others, and is shown as a thread's error."""
        for tell in self.on_lost:
            try:
                tell(error)
            except Exception as failure:
                threading.excepthook(
                    threading.ExceptHookArgs(
                        (type(failure), failure, failure.__traceback__, threading.current_thread())
                    )
                )


_programs: dict[tuple[int, str, int], Program] = {}
_guard = threading.Lock()


def enter(fs: FileSystem, layout: Layout, clock: Clock, proc: Proc, ttl: float) -> Program:
    """This process's holder in the cache, entered on first need, and anew when it was revoked or we are a fork."""
    place = (os.getpid(), layout.root, id(fs))
    with _guard:
        program = _programs.get(place)
        if program is None or program.holder.lost:
            owner = program_owner(proc)
            program = _programs[place] = Program(Holder(fs, layout, clock, owner, ttl))
    return program


def forget(layout: Layout) -> None:
    """Release what this process holds in one cache."""
    with _guard:
        closing = [place for place in _programs if place[:2] == (os.getpid(), layout.root)]
        programs = [_programs.pop(place) for place in closing]
    for program in programs:
        program.close()


def _after_fork() -> None:
    """A lock that another thread held at the fork is never released in the child."""
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_all() -> None:
    for program in list(_programs.values()):
        program.close()
