"""Protection of locks and imports against a fork, and a token that identifies the process.

A forked child has only the thread that forked. In the child, a lock that another thread held is never released, and a
module that another thread was importing is never completed.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from typing import Any

#: Longest time in seconds that a fork waits for imports of other threads. It is limited because another thread may wait
#: for a module that the forking thread itself is importing.
LONGEST_WAIT = 5.0

_PAUSE = 0.001

#: An object that differs between a process and its forked children.
_token = object()


def token() -> object:
    """An object that identifies this process. Unlike the process number, it is never reused in a forked child."""
    return _token


class Guard:
    """A lock for the threads of a process that can block neither a signal handler nor a forked child.

    Use it as ``with guard.lock:``, which releases it even if a signal handler raises. The lock is reentrant: a handler
    that interrupts its owner can enter it, so the guarded code must allow that. A child that another thread forked gets
    a free lock. Use it only at module level, because a guard is never deleted.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        if not self.lock._is_owned():  # type: ignore[attr-defined]
            self.lock = threading.RLock()


_waits = False


def wait_for_imports() -> None:
    """Let each fork wait until no other thread is importing. For programs that may have threads.

    Imports the modules that take locks at a fork: a module that is first imported during the wait would release, after
    the fork, a lock that it has not taken.
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
    """The names of the modules that other threads are importing now, each with its importlib lock."""
    me = threading.get_ident()
    locks = [(name, reference()) for name, reference in list(_module_locks().items())]
    return [(name, lock) for name, lock in locks if lock is not None and getattr(lock, "owner", None) not in (None, me)]


def _module_locks() -> dict[str, Any]:
    """The locks of importlib by module. Each exists only during the import."""
    found = getattr(importlib._bootstrap, "_module_locks", None)
    return found if isinstance(found, dict) else {}


def _after_fork_in_child() -> None:
    global _token
    _token = object()
    # The threads that were still importing, because the wait ended or there was none, do not exist in the child. Remove
    # their incomplete modules, so that they are imported again when they are needed.
    for name, _ in _imports_of_others():
        sys.modules.pop(name, None)
        _module_locks().pop(name, None)


os.register_at_fork(after_in_child=_after_fork_in_child)
