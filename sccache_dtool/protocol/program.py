"""This process as a holder: one per cache and process, however many `Cache` objects and leases it has.

A lease that its program forgets is kept until the program ends, for somebody may be reading what it protects; at a
normal end all are released, and after any other end they are reaped.

`close` may be called from a signal handler, in the middle of everything else that is here: it waits for no lock that
the interrupted thread holds.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sccache_dtool import forking
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, LeaseLost
from sccache_dtool.forking import Guard
from sccache_dtool.liveness.caller import program_owner
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.protocol.store import Store

#: Modules of which each ends the processes that it has forked by `os._exit`, without the handlers of `atexit`.
_FORKING = ("multiprocessing.util", "multiprocess.util", "billiard.util")

#: After all that the program itself has registered with them.
_EXIT_PRIORITY = -1000


class Program:
    """The holder of this process in one cache, and the leases that it has not released."""

    def __init__(
        self, holder: Holder, root: str, fs: FileSystem, release_set: Callable[[], object] | None = None
    ) -> None:
        """`release_set`: gives back the only set that the holder holds; None for the holder of all single leases."""
        self.holder = holder
        self.release_set = release_set
        self.root = root
        self.fs = fs
        self.leases: dict[str, Lease] = {}
        self.on_lost: list[Callable[[LeaseLost], None]] = []

    def begin(self) -> None:
        """Show heartbeats from now on."""
        self.holder.start_heartbeat(self._tell)

    def is_valid(self, lease: Lease) -> bool:
        """Whether a lease that was just taken protects what it is on. It is kept until it is released.

        It is listed before that is asked: a `close` in another thread either finds it, or is seen here.
        """
        return lease.keep_in(self.leases).is_valid()

    def close(self) -> None:
        """Release everything and leave; does nothing in a forked child."""
        if not self.holder.is_of_this_process:
            return
        self.holder.stop_taking()
        if self.release_set is not None:
            with contextlib.suppress(OSError, CacheError):  # what is left is ended by a reaper
                self.release_set()
        for lease in list(self.leases.values()):
            lease.give_back()
        self.holder.retire()

    def _tell(self, error: LeaseLost) -> None:
        """Tell everybody; one who fails over it does not keep it from the others, and is shown as a thread's error."""
        for callback in self.on_lost:
            try:
                callback(error)
            except Exception as failure:
                threading.excepthook(
                    threading.ExceptHookArgs(
                        (type(failure), failure, failure.__traceback__, threading.current_thread())
                    )
                )


#: All that have been entered and not been closed. Those of a parent process are passed over: see `Holder.usable`.
_programs: list[Program] = []
_entering = Guard()


def enter(store: Store, ttl: float) -> Program:
    """This process's holder in the cache, entered on first need; again after a revocation, a `close` or a fork."""
    forking.wait_for_imports()
    _close_at_the_end_of_workers()
    with _entering.lock:  # not that two holders would do harm
        found = _find(store.layout.root, store.fs)
        if found is not None:
            return found
        program = Program(Holder(store, program_owner(store.proc), ttl), store.layout.root, store.fs)
        _programs.append(program)
    try:
        program.begin()
    except BaseException:
        _close(program)
        raise
    return program


def keep_set(store: Store, holder: Holder, release: Callable[[], object]) -> None:
    """Have a set of this process released at its end, or by `forget`, if that has not been done before."""
    forking.wait_for_imports()
    _close_at_the_end_of_workers()
    _programs.append(Program(holder, store.layout.root, store.fs, release))


@contextlib.contextmanager
def worker(store: Store, ttl: float) -> Iterator[Holder]:
    """Another holder of this process, for work areas, so that nobody takes them for abandoned. `ttl` in seconds."""
    holder = Holder(store, program_owner(store.proc), ttl)
    try:
        with holder.beating():
            yield holder
    finally:
        holder.retire()


def _find(root: str, fs: FileSystem) -> Program | None:
    found = None
    for program in tuple(_programs):
        if program.holder.usable:
            if (program.root, program.fs, program.release_set) == (root, fs, None):
                found = program
        elif not program.leases or not program.holder.is_of_this_process:
            _drop(program)
    return found


def forget(layout: Layout) -> None:
    """Release what this process holds in one cache."""
    for program in tuple(_programs):
        if program.root == layout.root:
            _close(program)


def _close(program: Program) -> None:
    """Close, and only then drop: a signal handler in between does it again."""
    program.close()
    _drop(program)


def _drop(program: Program) -> None:
    with contextlib.suppress(ValueError):
        _programs.remove(program)


@atexit.register
def _close_all() -> None:
    for program in tuple(_programs):
        _close(program)


class _Workers:
    """What one of the modules that fork workers is to do at their end. It is told of forks, and so it stays alive."""

    def __init__(self, util: Any) -> None:
        self._util = util
        self.told: object = None  # the process that was told

    def release_at_end(self) -> None:
        """Have everything released at the end of this process, if it is a worker."""
        self._util.Finalize(None, _close_all, exitpriority=_EXIT_PRIORITY)
        self.told = forking.token()


worker_pools: dict[str, _Workers] = {}


def _close_at_the_end_of_workers() -> None:
    """Have everything released, too, when a process ends that multiprocessing or its kin have forked.

    As a worker begins, they drop what was registered with them before, and then call whom they are to tell of forks.
    """
    for name in _FORKING:
        util = sys.modules.get(name)
        if not hasattr(util, "_exit_function"):  # not loaded, or not wholly
            continue
        if name not in worker_pools:
            worker_pools[name] = _Workers(util)
            util.register_after_fork(worker_pools[name], _Workers.release_at_end)  # type: ignore[union-attr]
        if worker_pools[name].told is not forking.token():
            worker_pools[name].release_at_end()
