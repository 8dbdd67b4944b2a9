"""Every error the program shows: what went wrong, its exit code, and what to do next.

The exit codes are part of the command line's contract; `docs/reference/exit-codes.md` lists them.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `sc-dtool`; stable, scripts may rely on them."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    PARTIAL = 3
    NO_CACHE = 10
    TIMED_OUT = 11
    FETCH_FAILED = 12
    NO_SPACE = 13
    IN_USE = 14
    FINDINGS = 20
    LEASE_LOST = 75
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


class CacheError(Exception):
    """Base of all errors that are meant for the user.

    `details` are further lines (who holds what); `hint` says what to do next. `shared`: the reason is what was asked
    for, and not who asked, where, or when, so that it is the same for everybody who asks for it in the same way.
    """

    exit_code: Exit = Exit.ERROR

    def __init__(
        self, message: str, *, details: Sequence[str] = (), hint: str | None = None, shared: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.hint = hint
        self.shared = shared


class UsageError(CacheError):
    """The words of a command or the arguments of a call make no sense."""

    exit_code = Exit.USAGE


class NoCache(CacheError):
    """The directory has not been set up as a cache."""

    exit_code = Exit.NO_CACHE


class TimedOut(CacheError):
    """Somebody else was at it for longer than we were told to wait."""

    exit_code = Exit.TIMED_OUT


class FetchFailed(CacheError):
    """The source could not be had, or what came was not what was promised."""

    exit_code = Exit.FETCH_FAILED


class NoSpace(CacheError):
    """The file system is full, or a quota is used up."""

    exit_code = Exit.NO_SPACE


class InUse(CacheError):
    """Somebody holds a lease or a lock on it."""

    exit_code = Exit.IN_USE


class LeaseLost(CacheError):
    """Our holder was revoked: the data may be deleted under us."""

    exit_code = Exit.LEASE_LOST


#: errno values that mean "no room left"; a quota is as full as a disk.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

#: errno values that mean "not writable for us".
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

#: errno values by which a server says that a name, or the directory it was in, is gone.
GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})

#: errno values by which a server says that a directory is not empty (POSIX allows both).
NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})


#: What to do if permissions forbid something.
_MAY_NOT = "ask the owner of the cache; a group shares a cache if its directory was group-writable at `sc-dtool init`"


def explain(error: OSError) -> str:
    """An operating system error as one plain sentence, with the file it was about."""
    reason = error.strerror or str(error) or type(error).__name__
    name = error.filename2 or error.filename  # of a symbolic link the first is its text
    return f"{reason}: {name}" if name else reason


def translate(error: OSError) -> CacheError:
    """An operating system error as the error that a command reports, with what to do about it."""
    if error.errno in FULL:
        return NoSpace(explain(error), hint="free space with: sc-dtool clean")
    if error.errno == errno.EROFS:
        return CacheError(explain(error), hint="the file system is mounted read-only on this host")
    if isinstance(error, PermissionError):
        return CacheError(explain(error), hint=_MAY_NOT)
    return CacheError(explain(error))
