"""A bound on the downloads that one user runs on one host at a time.

The slots are locked files in a directory of this host alone; the kernel frees them when a process ends, however it
ends. They save the line and the disk; nothing else depends on them.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator

from sccache_dtool.clock import Clock
from sccache_dtool.errors import TimedOut, UsageError
from sccache_dtool.units import short_duration

#: Sets how many downloads of one user may run on one host; 0 is no bound.
VARIABLE = "SC_DTOOL_DOWNLOADS"
DEFAULT = 8

_PAUSE = 0.2


def limit() -> int:
    """How many may run. Raises UsageError for a setting that is no number."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return DEFAULT
    if not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"${VARIABLE} is {text!r}, and no number of downloads", hint="give 1 or more, or 0 for no bound"
        )
    return int(text)


def directory() -> str:
    """Where the slots of this user on this host are."""
    return f"{os.environ.get('XDG_RUNTIME_DIR') or tempfile.gettempdir()}/sc-dtool-{os.geteuid()}"


@contextlib.contextmanager
def slot(clock: Clock, wait: float, on_queue: Callable[[], None]) -> Iterator[None]:
    """Hold one of this host's slots. `on_queue` is called once if that has to be waited for.

    Raises TimedOut after `wait` seconds. Where there can be no such directory there is no bound.
    """
    import portalocker

    count, where = limit(), directory()
    if not count or not _is_ours(where):
        yield
        return
    deadline = clock.monotonic() + wait
    queued = False
    while (held := _take(portalocker, where, count)) is None:
        if not queued:
            queued = True
            on_queue()
        if clock.monotonic() >= deadline:
            raise TimedOut(
                f"{count} other downloads of yours run on this host, and none has ended within {short_duration(wait)}",
                hint=f"wait longer with --wait, or allow more: {VARIABLE}={2 * count}",
            )
        clock.sleep(_PAUSE * random.uniform(0.5, 1.5))
    try:
        yield
    finally:
        held.release()


def _take(portalocker, where: str, count: int):  # type: ignore[no-untyped-def]
    for number in random.sample(range(count), count):
        lock = portalocker.Lock(f"{where}/download-{number}", "a", timeout=0, fail_when_locked=True)
        try:
            lock.acquire()
        except portalocker.LockException:
            continue
        return lock
    return None


def _is_ours(where: str) -> bool:
    """Whether there is such a directory in which nobody else can put anything."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(where, 0o700)
        status = os.lstat(where)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
