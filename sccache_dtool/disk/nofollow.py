"""Ways through a cache that lead through no symbolic link, whatever others put there meanwhile.

All members of a group may write in a shared cache's control directory, so that any of them can put a link in the
place of a directory, at any moment. Whoever works there goes from directory to directory by descriptor, as
openat(2) was made for, and a link in the way is an error. How the root itself is reached is its owner's affair.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple, Self

#: Below a directory of this name, and below the beginnings of one, no symbolic link is followed.
CONTROL = ".sc-dtool"

#: What names begin with that a verification of a file system makes in a directory; there, too, none is followed.
VERIFICATION = f"{CONTROL}-verify-"

_GUARDED = rf"(.*?/(?:{re.escape(CONTROL)}(?:\.[0-9a-f]{{16}})?|{re.escape(VERIFICATION)}[0-9a-f]{{16}}))/(.+)"

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Enough to go on from a directory: needs no right to list it, and on a network file system no request of its own.
ONWARD = getattr(os, "O_PATH", os.O_RDONLY) | _DIRECTORY

#: To list a directory.
LISTING = os.O_RDONLY | _DIRECTORY

#: To read a file; at once, because a FIFO must not hang us.
READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Way(NamedTuple):
    """An open directory, from which what is below it is reached without going all the way again; closed as a context.

    It stays the directory that was opened, wherever that is moved; shards and items never are.
    """

    path: str
    directory: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.directory)


def way_to(path: str, via: Way | None = None) -> Way:
    """The way to a directory, to be closed by the caller; `via`: one to a directory above it."""
    return Way(path, opened(path, LISTING, via))


def open_directory(path: str, via: Way | None = None, *, as_is: bool = False) -> int:
    """Open a directory in order to list it. `as_is`: what is in no control directory may be a link to one."""
    return opened(path, LISTING, via, as_is=as_is)


def give_permissions(path: str, mode: int) -> None:
    """Set a directory's permission bits, also if they let nobody in; only where there is a /proc."""
    fd = opened(path, ONWARD)
    try:
        os.chmod(by_descriptor(fd), mode)
    finally:
        os.close(fd)


def opened(path: str, flags: int, via: Way | None = None, *, mode: int = 0, as_is: bool = False) -> int:
    """Open what is at a path (open(2)), reached as by `reached`."""
    try:
        name, directory = _reach(path, via, ONWARD)
        if as_is and directory is None:
            flags &= ~os.O_NOFOLLOW
        try:
            return os.open(name, flags, mode, dir_fd=directory)
        finally:
            _leave(directory, via)
    except OSError as error:
        raise _about(path, error) from None


@contextlib.contextmanager
def reached(path: str, via: Way | None = None) -> Iterator[tuple[str, int | None]]:
    """A name and the open directory that it is in, for calls that take ``dir_fd``; errors name the whole path.

    What does not lie in a control directory is handed out as it is, with no directory. `via`: a way to one above it.
    """
    try:
        name, directory = _reach(path, via, ONWARD)
        try:
            yield name, directory
        finally:
            _leave(directory, via)
    except OSError as error:
        raise _about(path, error) from None


def _about(path: str, error: OSError) -> OSError:
    """The error, saying which path it is about; what is stale is most often gone."""
    if error.errno == errno.ESTALE:
        _look_again(path)
    if os.path.isabs(str(error.filename)):
        return error
    return OSError(error.errno, error.strerror, path)


def _look_again(path: str) -> None:
    """Raise what a network file system says of a way that has just proved stale: most often that it is gone.

    For O_PATH its client asks nothing and goes on remembering what another host has removed; to list, it asks.
    """
    with contextlib.suppress(PermissionError):  # a directory that we may pass through and not list
        _leave(_reach(path, None, LISTING)[1], None)


def _reach(path: str, via: Way | None, flags: int) -> tuple[str, int | None]:
    """A name, and the directory that it is in, to be left with `_leave`; `flags`: to open those on the way."""
    if via is not None:
        top, inner, here = via.path, path.removeprefix(f"{via.path}/"), via.directory
    else:
        match = re.fullmatch(_GUARDED, path, re.DOTALL)
        if match is None:
            return path, None
        top, inner = match.groups()
        here = _enter(None, top, path, len(top), flags)
    *way, name = inner.split("/")
    if name == ".." or ".." in way:
        _leave(here, via)
        raise OSError(errno.EINVAL, "a path in a cache must not lead upwards", path)
    end = len(top)
    for part in way:
        end += len(part) + 1
        try:
            below = _enter(here, part, path, end, flags)
        finally:
            _leave(here, via)
        here = below
    return name, here


def _leave(directory: int | None, via: Way | None) -> None:
    """Close a directory, unless it is the caller's."""
    if directory is not None and (via is None or directory != via.directory):
        os.close(directory)


def _enter(directory: int | None, name: str, path: str, end: int, flags: int) -> int:
    """Open a directory on the way to `path`; its own path ends at `end`."""
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(directory, name):
            raise OSError(errno.ELOOP, "the path contains a symbolic link, which is not followed", path[:end]) from None
        raise OSError(error.errno, error.strerror, path) from None


def _is_link(directory: int | None, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode)
    except OSError:
        return False


def by_descriptor(fd: int) -> str:
    """A path that leads to what is open, whatever its name is by now (proc_pid_fd(5)); only where there is a /proc."""
    return f"/proc/self/fd/{fd}"
