"""What a fork must not break: locks and imports of other threads, and knowing whether this is still the same process.

A forked child has only the thread that forked. A lock that another thread held is never released in it, and a module
that another thread was importing is never completed.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from typing import Any

#: Seconds that a fork waits for the imports of other threads. A thread that imports what the forking thread is
#: importing itself would wait for the fork, so that the wait must end.
LONGEST_WAIT = 5.0

_PAUSE = 0.001

#: One object for each process: the child of a fork has another one than its parent.
_token = object()


def token() -> object:
    """Stands for this process; a forked child has another one, also if it was given the number of its grandparent."""
    return _token


class Guard:
    """A lock for what should not be done twice at a time, which no signal handler and no forked child waits for.

    Use it as ``with guard.lock:``, which no exception of a signal handler can leave held. A handler that interrupts the
    thread that holds the lock enters it as well, so what is guarded must bear that. A child forked by another thread
    finds it free. For locks of modules: a guard is never forgotten.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        if not self.lock._is_owned():  # type: ignore[attr-defined]
            self.lock = threading.RLock()


_waits = False


def wait_for_imports() -> None:
    """From now on, have a fork wait until no other thread is importing; for programs that may have threads.

    Modules that take locks of their own at a fork are loaded here: those that are loaded during a wait would, after
    the fork, release what they have not taken.
    """
    global _waits
    if _waits:
        return
    _waits = True
    for name in ("logging", "concurrent.futures.thread"):
        importlib.import_module(name)
    os.register_at_fork(before=_before_fork)


def _before_fork() -> None:
    end = time.monotonic() + LONGEST_WAIT
    while _imports_of_others() and time.monotonic() < end:
        time.sleep(_PAUSE)


def _imports_of_others() -> list[tuple[str, Any]]:
    """The names of the modules that other threads are importing now, with importlib's locks on them."""
    me = threading.get_ident()
    locks = [(name, reference()) for name, reference in list(_module_locks().items())]
    return [(name, lock) for name, lock in locks if lock is not None and getattr(lock, "owner", None) not in (None, me)]


def _module_locks() -> dict[str, Any]:
    """The locks of importlib by module, each there only while somebody imports the module."""
    found = getattr(importlib._bootstrap, "_module_locks", None)
    return found if isinstance(found, dict) else {}


def _after_fork_in_child() -> None:
    global _token
    _token = object()
    # Whoever was importing all the same, because the wait was too long or there was none, does not go on here: what is
    # half imported is imported again by whoever needs it.
    for name, _ in _imports_of_others():
        sys.modules.pop(name, None)
        _module_locks().pop(name, None)


os.register_at_fork(after_in_child=_after_fork_in_child)
