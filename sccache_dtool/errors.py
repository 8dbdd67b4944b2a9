"""The errors that the program reports, each with an exit code and a hint.

The exit codes are part of the command line's contract; `docs/reference/exit-codes.md` lists them.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Sequence
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
    """Base of all errors that are reported to the user.

    `message` says what failed, `details` are further lines such as the holders, and `hint` says what to do next.
    `shared`: the error depends only on the request, not on the host, user or time, so that every process with the same
    request can report it without trying again.
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

    def __reduce__(self) -> tuple[object, ...]:
        """Not as BaseException: a process that gets a class with other arguments back from another would fail."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[CacheError], args: tuple[object, ...]) -> CacheError:
    return kind.__new__(kind, *args)


class UsageError(CacheError):
    """The arguments of a command or a call are invalid."""

    exit_code = Exit.USAGE


class DoesNotExist(UsageError):
    """There is nothing by that name: no such item, session, lock or lot."""


class NoCache(CacheError):
    """The directory has not been set up as a cache."""

    exit_code = Exit.NO_CACHE


class TimedOut(CacheError):
    """Another process was still at work when the time to wait had passed."""

    exit_code = Exit.TIMED_OUT


class FetchFailed(CacheError):
    """The source cannot be fetched, or its content is not what was requested."""

    exit_code = Exit.FETCH_FAILED


class NoSpace(CacheError):
    """The file system is full, or a quota is used up."""

    exit_code = Exit.NO_SPACE

    #: Whether it is the file system of the upstream, and not of the cache that was asked.
    of_upstream = False


class InUse(CacheError):
    """Another process holds a lease or a lock."""

    exit_code = Exit.IN_USE


class LeaseLost(CacheError):
    """The holder of the lease was revoked, so the data may be removed while it is read."""

    exit_code = Exit.LEASE_LOST


#: errno values of a full file system, or a used-up quota.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

#: errno values for a missing permission, or a read-only file system.
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

#: errno values for a name, or its directory, that does not exist any more.
GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})

#: errno values for what is not a file, or too large a one: somebody else has put it there.
NO_TEXT = frozenset({errno.ELOOP, errno.EINVAL, errno.EFBIG})

#: errno values for a directory that is not empty (POSIX allows both).
NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})


#: Hint for a missing permission.
_MAY_NOT = (
    "ask the owner of the cache for permission; a group shares a cache if its directory was group-writable at "
    "`sc-dtool init`"
)


class Expected:
    """A context manager: an OSError with one of these errno values ends the block, and all other errors are raised."""

    def __init__(self, values: Collection[int]) -> None:
        self._values = values

    def __enter__(self) -> None:
        """Nothing is to be prepared."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, OSError) and error.errno in self._values


def explain(error: OSError, known: str = "") -> str:
    """An operating system error as one line: the reason, and the path that it concerns, unless `known` ends with it."""
    reason = error.strerror or str(error) or type(error).__name__
    name = error.filename2 or error.filename  # for symlink(), filename is the text of the link
    return f"{reason}: {name}" if name and not known.endswith(str(name)) else reason


def translate(error: OSError) -> CacheError:
    """An operating system error as a CacheError with a hint."""
    if error.errno in FULL:
        return NoSpace(explain(error), hint="free space with: sc-dtool clean")
    if error.errno == errno.EROFS:
        return CacheError(explain(error), hint="the file system is mounted read-only on this host")
    if isinstance(error, PermissionError):
        return CacheError(explain(error), hint=_MAY_NOT)
    return CacheError(explain(error))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question with the names that are similar to `word`: `` (did you mean 'use'?)``; empty if there are none."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), 3)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
