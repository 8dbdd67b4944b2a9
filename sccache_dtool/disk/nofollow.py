"""Opens paths in a cache without following any symbolic link.

All members of a group can write in a shared cache's control directory, so each of them can replace a directory by a
link at any time. Below the control directory, paths are therefore opened one component at a time, relative to the
previous descriptor (openat(2)), and a link is an error. Links in the path of the root itself are followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from contextvars import ContextVar
from typing import Self

from sccache_dtool.disk.names import GUARDED
from sccache_dtool.tuples import NamedTuple

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Flags to open a directory only for openat(2): they need no read permission, and no request on a network file system.
ONWARD = getattr(os, "O_PATH", os.O_RDONLY) | _DIRECTORY

#: To list a directory.
LISTING = os.O_RDONLY | _DIRECTORY

#: To read a file, without blocking on a FIFO.
READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class DirectoryHandle(NamedTuple):
    """An open directory, relative to which paths below it are opened; a context manager.

    The descriptor follows the directory if it is renamed. Shards and items are never renamed.
    """

    path: str
    directory: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.directory)


#: The directory from which what is below it is reached, in this thread.
_NEAR: ContextVar[DirectoryHandle | None] = ContextVar("_NEAR", default=None)


class near:  # noqa: N801  # in lower case, as those of contextlib: a generator would take twice as long as a call
    """Until the block ends, reach what is below a directory from there: one call instead of one for each level.

    Not for a generator, whose caller would be near it as well. `closing`: close the way at the end.
    """

    def __init__(self, handle: DirectoryHandle, *, closing: bool = False) -> None:
        self._way = handle
        self._closing = closing

    def __enter__(self) -> None:
        self._token = _NEAR.set(self._way)

    def __exit__(self, *_: object) -> None:
        try:
            _NEAR.reset(self._token)
        finally:
            if self._closing:
                os.close(self._way.directory)


def _nearest(path: str, via: DirectoryHandle | None) -> DirectoryHandle | None:
    """`via` or, if there is none, the directory that the caller is near, if `path` is below it."""
    if via is None and (handle := _NEAR.get()) is not None and path.startswith(f"{handle.path}/"):
        return handle
    return via


def open_directory(path: str, via: DirectoryHandle | None = None) -> DirectoryHandle:
    """Open a directory; the caller closes the handle. `via`: the handle of a directory above it."""
    return DirectoryHandle(path, opened(path, LISTING, via))


class opening:  # noqa: N801
    """Open what is at a path, a directory if nothing else is said, until the block ends; as `opened`.

    The directory that the caller is near is open already.
    """

    def __init__(
        self, path: str, flags: int = LISTING, via: DirectoryHandle | None = None, *, as_is: bool = False
    ) -> None:
        handle = _NEAR.get() if via is None and flags == LISTING else None
        self._is_open = handle is not None and handle.path == path
        self._fd = handle.directory if handle is not None and self._is_open else opened(path, flags, via, as_is=as_is)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        if not self._is_open:
            os.close(self._fd)


def opened(path: str, flags: int, via: DirectoryHandle | None = None, *, mode: int = 0, as_is: bool = False) -> int:
    """Open what is at a path (open(2)), reached as by `reached`.

    `as_is`: outside the control directory, follow a link to a directory.
    """
    via = _nearest(path, via)
    try:
        if via is None and (handle := _NEAR.get()) is not None and path == handle.path:
            return os.open(".", flags, mode, dir_fd=handle.directory)
        name, directory = _reach(path, via, ONWARD)
        if as_is and directory is None:
            flags &= ~os.O_NOFOLLOW
        try:
            return os.open(name, flags, mode, dir_fd=directory)
        finally:
            _leave(directory, via)
    except OSError as error:
        raise _about(path, error) from None


class reached:  # noqa: N801
    """A name and its open directory, for calls that take ``dir_fd``, until the block ends. Errors name the whole path.

    A path outside the control directory is yielded unchanged, without a directory. `via`: the handle of a directory
    above it.
    """

    def __init__(self, path: str, via: DirectoryHandle | None = None) -> None:
        self._path = path
        self._via = _nearest(path, via)

    def __enter__(self) -> tuple[str, int | None]:
        try:
            name, self._directory = _reach(self._path, self._via, ONWARD)
        except OSError as error:
            raise _about(self._path, error) from None
        return name, self._directory

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _leave(self._directory, self._via)
        if isinstance(error, OSError):
            raise _about(self._path, error) from None


def _about(path: str, error: OSError) -> OSError:
    """The error with the path that it concerns; ESTALE is replaced, because the name has usually been removed."""
    if error.errno == errno.ESTALE:
        _look_again(path)
    if os.path.isabs(str(error.filename)):
        return error
    return OSError(error.errno, error.strerror, path)


def _look_again(path: str) -> None:
    """Raise the error that opening a stale directory gives: usually that it does not exist.

    With O_PATH, the client sends no request and keeps its cached entry. Opening to list sends one.
    """
    with contextlib.suppress(PermissionError):  # a directory with search but without read permission
        _leave(_reach(path, None, LISTING)[1], None)


def _reach(path: str, via: DirectoryHandle | None, flags: int) -> tuple[str, int | None]:
    """A name and its directory, to be closed with `_leave`. `flags`: to open the directories of the path."""
    if via is not None:
        top, inner, here = via.path, path.removeprefix(f"{via.path}/"), via.directory
    else:
        match = re.fullmatch(GUARDED, path, re.DOTALL)
        if match is None:
            return path, None
        top, inner = match.groups()
        here = _enter(None, top, path, len(top), flags)
    *handle, name = inner.split("/")
    if name == ".." or ".." in handle:
        _leave(here, via)
        raise OSError(errno.EINVAL, "a path in a cache must not lead upwards", path)
    end = len(top)
    for part in handle:
        end += len(part) + 1
        try:
            below = _enter(here, part, path, end, flags)
        finally:
            _leave(here, via)
        here = below
    return name, here


def _leave(directory: int | None, via: DirectoryHandle | None) -> None:
    """Close a directory, unless the caller opened it."""
    if directory is not None and (via is None or directory != via.directory):
        os.close(directory)


def _enter(directory: int | None, name: str, path: str, end: int, flags: int) -> int:
    """Open a directory of `path`: the part that ends at index `end`."""
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
    """A path to an open file, even if it was renamed (proc_pid_fd(5)). Needs /proc."""
    return f"/proc/self/fd/{fd}"
