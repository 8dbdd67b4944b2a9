"""Mechanisms that only save work, and how the program goes on where a host or a file system refuses one of them.

Such a mechanism never decides whether the work is done. Its caller names the errors that are answers, such as "another
process has the lock". After every other error the caller does without the mechanism, and the user is told once.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from weakref import WeakSet

from sccache_dtool.errors import FULL, GONE

#: errno values that are never done without: no room, a failing disk, what is gone, and a link that is not followed.
DECISIVE = FULL | GONE | {errno.EIO, errno.ELOOP}

#: errno values by which a file system says that it cannot synchronise a file at all (fsync(2)).
CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})

_audiences: WeakSet[Audience] = WeakSet()


class Audience:
    """One who is told what the program does without: each text once, for as long as this object lives."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._said: set[str] = next((one._said for one in list(_audiences) if one._tell == tell), set())
        _audiences.add(self)

    def hear(self, text: str) -> None:
        """Tell it, unless it was told before."""
        if text not in self._said:
            self._said.add(text)
            self._tell(text)


def do_without(text: str) -> None:
    """Tell everybody who has a cache open in this process what is done without, and what follows from that."""
    for audience in list(_audiences):
        audience.hear(text)


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
