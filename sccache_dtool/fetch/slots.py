"""A bound on the downloads that one user runs on one host at a time.

The slots are locked files in a directory of this host alone (portalocker's semaphore); the kernel frees them when a
process ends, however it ends. They save the line and the disk; nothing else depends on them. The semaphore's own
`acquire` is not used: it waits on a clock of its own, and does not say that it waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator

from sccache_dtool.clock import Clock
from sccache_dtool.errors import TimedOut, UsageError
from sccache_dtool.fallback import do_without
from sccache_dtool.units import short_duration

#: Sets how many downloads of one user may run on one host; 0: no limit.
VARIABLE = "SC_DTOOL_DOWNLOADS"
DEFAULT = 8

_PAUSE = 0.2


def limit() -> int:
    """How many may run. Raises UsageError for a setting that is not a number."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return DEFAULT
    if not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"${VARIABLE} is {text!r}, which is not a number of downloads", hint="give 1 or more, or 0 for no limit"
        )
    return int(text)


def directories() -> list[str]:
    """Where the slots of this user on this host may be: in the first of these that can be used."""
    places = (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp")
    return [f"{place}/sc-dtool-{os.geteuid()}" for place in places if place and os.path.isabs(place)]


@contextlib.contextmanager
def slot(clock: Clock, wait: float, on_queue: Callable[[], None]) -> Iterator[None]:
    """Hold one of this host's slots. `on_queue` is called once if that has to be waited for.

    Raises TimedOut after `wait` seconds. Where slots cannot be kept (no directory for temporary files, a full or
    read-only one, no locks) there is no bound.
    """
    count, deadline, queued = limit(), clock.monotonic() + wait, False
    with contextlib.ExitStack() as held:
        while count and not _is_held(held, count):
            if not queued:
                queued = True
                on_queue()
            if clock.monotonic() >= deadline:
                raise TimedOut(
                    f"{count} of your downloads run on this host, and none ended within {short_duration(wait)}",
                    hint=f"wait longer with --wait, or allow more: {VARIABLE}={2 * count}",
                )
            clock.sleep(_PAUSE * random.uniform(0.5, 1.5))
        yield


def _is_held(held: contextlib.ExitStack, count: int) -> bool:
    """Whether a slot is held now, or none is needed because slots cannot be kept; False if all are taken."""
    import portalocker

    failure: str | None = None
    for where in directories():
        semaphore = portalocker.NamedBoundedSemaphore(count, "download", "{name}-{number}", where)
        try:
            _make_private(where)  # so that nobody else can have put a link in the place of a slot
            slots = semaphore.get_random_filenames()
            for path in slots:
                _check_slot(path)
            is_held = semaphore.try_lock(slots)
        except (OSError, portalocker.LockException) as error:
            failure = failure or f"{where}: {error.strerror}"
            continue
        if is_held:
            held.callback(semaphore.release)
        return is_held
    reason = failure or "there is no directory for temporary files"
    do_without(f"the number of downloads on this host cannot be limited ({reason})")
    return True


def _check_slot(path: os.PathLike[str]) -> None:
    """Raise OSError for what must not be opened: to open a FIFO waits for ever, and a device may do something."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(errno.EINVAL, f"{os.path.basename(path)} is not a regular file", os.fspath(path))


def _make_private(where: str) -> None:
    """Make a directory for the slots. Raises OSError for one into which others can put something."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(where, 0o700)
    status = os.lstat(where)
    if not (stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022):
        raise PermissionError(errno.EPERM, "not a directory that only you can write to", where)
