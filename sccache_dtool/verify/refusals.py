"""What errors mean: the file system's answer, or nothing but that this was a bad moment to ask."""

from __future__ import annotations

import errno
from collections.abc import Callable

from sccache_dtool.errors import FULL, CacheError, NoSpace, UsageError, explain
from sccache_dtool.verify.findings import Finding, Weight

#: errno values of a moment: a disk or a network that fails, a server that is away, a process or a host at its limits.
_PASSING = frozenset(
    {
        errno.EIO,
        errno.EINTR,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)


def is_answer(error: OSError) -> bool:
    """Whether it tells of the file system; others tell of the moment."""
    return error.errno not in FULL | _PASSING


def refusal(act: Callable[[], object]) -> OSError | None:
    """With what an act was refused; None if it was not. An error that is no answer is raised."""
    try:
        act()
    except OSError as error:
        if not is_answer(error):
            raise
        return error
    return None


def is_refused(act: Callable[[], object], allowed: frozenset[int]) -> bool:
    """Whether an act was refused, and for one of the reasons that are right; other errors are raised."""
    try:
        act()
    except OSError as error:
        if error.errno not in allowed:
            raise
        return True
    return False


def failed(check: str, error: OSError) -> Finding:
    """What it means that a check has ended with an error. One that there is no room is raised: nothing can be tried."""
    if error.errno in FULL:
        raise error
    if is_answer(error):
        return Finding(check, Weight.UNFIT, f"failed: {explain(error)}")
    return Finding(check, Weight.UNTRIED, f"could not be tried: {explain(error)}")


def broken_off(directory: str, error: OSError) -> CacheError:
    """That a verification could not be brought to an end, and so has no verdict."""
    text = f"could not be tried: {directory}: {explain(error)}"
    if error.errno in FULL:
        return NoSpace(text, hint="free some, and verify it again; nothing is known of this file system yet")
    return CacheError(text, hint="verify it again; nothing is known of this file system yet")


def cannot_be_used(directory: str, error: OSError) -> CacheError:
    """That a directory cannot be listed, or nothing be made in it."""
    if not is_answer(error):
        return broken_off(directory, error)
    return UsageError(
        f"cannot verify {directory}: {explain(error)}", hint="give a directory on the mount, in which you can write"
    )
