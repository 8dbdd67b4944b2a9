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
from types import TracebackType
from typing import NamedTuple, Self

#: Below a directory of this name, and below the beginnings of one, no symbolic link is followed.
CONTROL = ".sc-dtool"

_GUARDED = rf"(.*?/{re.escape(CONTROL)}(?:\.[0-9a-f]{{16}})?)/(.+)"

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Enough to go on from a directory: needs no right to list it, and on a network file system no request of its own.
_WAY = getattr(os, "O_PATH", os.O_RDONLY) | _DIRECTORY

_LISTING = os.O_RDONLY | _DIRECTORY

#: The longest path that is shown whole in an error; trees may be deeper than any path can say.
_LONGEST_SHOWN = 1000


@contextlib.contextmanager
def reached(path: str) -> Iterator[tuple[str, int | None]]:
    """A name and the open directory that it is in, for calls that take ``dir_fd``; errors name the whole path.

    What does not lie in a control directory is handed out as it is, with no directory.
    """
    match = re.fullmatch(_GUARDED, path, re.DOTALL)
    if match is None:
        yield path, None
        return
    *way, name = match[2].split("/")
    try:
        directory = _descend(match[1], way, path, _WAY)
        try:
            yield name, directory
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno == errno.ESTALE:
            _look_again(match[1], way, path)
        if os.path.isabs(str(error.filename)):
            raise
        raise OSError(error.errno, error.strerror, path) from None


def _descend(top: str, way: list[str], path: str, flags: int) -> int:
    here = _enter(None, top, top, path, flags)
    for depth, name in enumerate(way, 1):
        try:
            below = _enter(here, name, "/".join((top, *way[:depth])), path, flags)
        finally:
            os.close(here)
        here = below
    return here


def _look_again(top: str, way: list[str], path: str) -> None:
    """Raise what a network file system says of a way that has just proved stale: most often that it is gone.

    For O_PATH its client asks nothing and goes on remembering what another host has removed; to list, it asks.
    """
    with contextlib.suppress(PermissionError):  # a directory that we may pass through and not list
        os.close(_descend(top, way, path, _LISTING))


def _enter(directory: int | None, name: str, here: str, path: str, flags: int) -> int:
    """Open a directory on the way to `path`; `here` is its own."""
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(directory, name):
            raise OSError(errno.ELOOP, "a symbolic link is in the way, and none is followed here", here) from None
        raise OSError(error.errno, error.strerror, path) from None


def _is_link(directory: int | None, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode)
    except OSError:
        return False


def open_directory(name: str, directory: int | None) -> int:
    """Open a directory in order to list it."""
    return os.open(name, _LISTING, dir_fd=directory)


class Found(NamedTuple):
    """What a walk has come to: a name in an open directory."""

    directory: int | None
    name: str
    is_dir: bool


class _Level(NamedTuple):
    """A directory that a walk is in."""

    name: str
    identity: tuple[int, int]
    ahead: list[str]  # directories in it, still to be entered


class Walk:
    """A file or tree, children before their directory; a context manager that names what an error is about.

    One descriptor is open at a time, so that a tree may be of any depth. The way back up is checked: it must lead to
    where we came from, or somebody has moved what we are in.
    """

    def __init__(self, path: str, *, opening: bool = False) -> None:
        """`opening`: give us the right to empty directories of ours that are read-only."""
        self._path = path
        self._opening = opening
        self._levels: list[_Level] = []
        self._name = ""
        self._here = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._here >= 0:
            os.close(self._here)
            self._here = -1
        if isinstance(error, OSError) and not os.path.isabs(str(error.filename)):
            raise self._named(error) from None

    def _named(self, error: OSError) -> OSError:
        inner = (*(level.name for level in self._levels[1:]), self._name) if self._levels else ()
        return OSError(error.errno, error.strerror, _shortened("/".join((self._path, *inner))))

    def __iter__(self) -> Iterator[Found]:
        with reached(self._path) as (name, above):
            is_dir = stat.S_ISDIR(os.lstat(name, dir_fd=above).st_mode)
            if is_dir:
                try:
                    yield from self._below(name, above)
                except OSError as error:
                    raise self._named(error) from None
            yield Found(above, name, is_dir)

    def _below(self, name: str, above: int | None) -> Iterator[Found]:
        yield from self._go_down(name, above)
        while True:
            level = self._levels[-1]
            if level.ahead:
                self._name = level.ahead.pop()
                with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
                    yield from self._go_down(self._name, self._here)
                continue
            self._levels.pop()
            if not self._levels:
                return
            self._go_up()
            self._name = level.name
            yield Found(self._here, level.name, True)

    def _go_down(self, name: str, directory: int | None) -> Iterator[Found]:
        if self._opening:
            _give_us_access(name, directory)
        below = open_directory(name, directory)
        if self._here >= 0:
            os.close(self._here)
        self._here = below
        with os.scandir(below) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        self._levels.append(_Level(name, _identity(below), [inner for inner, is_dir in entries if is_dir]))
        for self._name, is_dir in entries:
            if not is_dir:
                yield Found(below, self._name, False)

    def _go_up(self) -> None:
        up = open_directory("..", self._here)
        os.close(self._here)
        self._here = up
        if _identity(up) != self._levels[-1].identity:
            raise OSError(errno.ESTALE, "was moved away meanwhile")


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _give_us_access(name: str, directory: int | None) -> None:
    """Let its owner into a directory that is read-only; what cannot be done here fails where access is needed."""
    status = os.lstat(name, dir_fd=directory)
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_IRWXU == stat.S_IRWXU:
        return
    with contextlib.suppress(OSError):
        fd = os.open(name, _WAY, dir_fd=directory)
        try:
            os.chmod(by_descriptor(fd), stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        finally:
            os.close(fd)


def by_descriptor(fd: int) -> str:
    """A path that leads to what is open, whatever its name is by now (proc_pid_fd(5)); only where there is a /proc."""
    return f"/proc/self/fd/{fd}"


def _shortened(path: str) -> str:
    return path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}…"
