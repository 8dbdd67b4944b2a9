"""Mechanisms that only save work, and how the program goes on where a host or a file system refuses one of them.

Such a mechanism never decides whether the work is done. Its caller names the errors that are answers, such as "another
process has the lock". After every other error the caller does without the mechanism, and the user is told once.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator

from sccache_dtool.errors import FULL, GONE
from sccache_dtool.log import Collected, Log

#: errno values that are never done without: no room, a failing disk, what is gone, and a link that is not followed.
DECISIVE = FULL | GONE | {errno.EIO, errno.ELOOP}

#: errno values by which a file system says that it cannot synchronise a file at all (fsync(2)).
CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})

#: What was logged; a program forgets it to hear of it again.
said: set[str] = set()

_log = Log(__name__)
_collected: Collected | None = None


def do_without(text: str) -> None:
    """Log, once in a process, what is done without, and what follows from that."""
    if text not in said:
        said.add(text)
        (_log if _collected is None else _collected).warning(text)


@contextlib.contextmanager
def collecting() -> Iterator[Collected]:
    """Have what is done without meanwhile kept, each text once, and not logged."""
    global _collected
    before = set(said)
    said.clear()
    _collected = Collected()
    try:
        yield _collected
    finally:
        _collected = None
        said.clear()
        said.update(before)


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Do without what is refused here. `what`: in words, with what follows. Errors in DECISIVE are raised."""
    try:
        yield
    except OSError as error:
        if error.errno in DECISIVE:
            raise
        do_without(f"{what} ({error.strerror or error})")


def start_thread(run: Callable[[], object], name: str, otherwise: str) -> threading.Thread | None:
    """Start a thread that does not keep the program alive; None if the system gives no more of them.

    `otherwise`: what follows from that, in words.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        do_without(f"cannot start a thread ({error}): {otherwise}")
        return None
    return thread
