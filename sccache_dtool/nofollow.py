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

#: What names begin with that a verification of a file system makes in a directory; there, too, none is followed.
VERIFICATION = f"{CONTROL}-verify-"

_GUARDED = rf"(.*?/(?:{re.escape(CONTROL)}(?:\.[0-9a-f]{{16}})?|{re.escape(VERIFICATION)}[0-9a-f]{{16}}))/(.+)"

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Enough to go on from a directory: needs no right to list it, and on a network file system no request of its own.
_WAY = getattr(os, "O_PATH", os.O_RDONLY) | _DIRECTORY

_LISTING = os.O_RDONLY | _DIRECTORY

#: The longest path that is shown whole in an error; trees may be deeper than any path can say.
_LONGEST_SHOWN = 1000


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
    return Way(path, opened(path, _LISTING, via))


def open_directory(path: str, via: Way | None = None, *, as_is: bool = False) -> int:
    """Open a directory in order to list it. `as_is`: what is in no control directory may be a link to one."""
    return opened(path, _LISTING, via, as_is=as_is)


def give_permissions(path: str, mode: int) -> None:
    """Set a directory's permission bits, also if they let nobody in; only where there is a /proc."""
    fd = opened(path, _WAY)
    try:
        os.chmod(by_descriptor(fd), mode)
    finally:
        os.close(fd)


def opened(path: str, flags: int, via: Way | None = None, *, mode: int = 0, as_is: bool = False) -> int:
    """Open what is at a path (open(2)), reached as by `reached`."""
    try:
        name, directory = _reach(path, via, _WAY)
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
        name, directory = _reach(path, via, _WAY)
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
        _leave(_reach(path, None, _LISTING)[1], None)


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
            raise OSError(errno.ELOOP, "a symbolic link is in the way, and none is followed here", path[:end]) from None
        raise OSError(error.errno, error.strerror, path) from None


def _is_link(directory: int | None, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode)
    except OSError:
        return False


class Found(NamedTuple):
    """What a walk has come to: a name in an open directory."""

    directory: int | None
    name: str
    is_dir: bool


#: Directories of a tree that a walk has open at a time, innermost first; above them, it goes back by "..".
_MOST_OPEN = 50


class _Level:
    """A directory that a walk is in."""

    def __init__(self, name: str, directory: int, identity: tuple[int, int], ahead: list[str]) -> None:
        self.name = name
        self.directory = directory  # open; -1: not any more
        self.identity = identity
        self.ahead = ahead  # directories in it, still to be entered

    def close(self) -> None:
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1


class Walk:
    """A file or tree, children before their directory; a context manager that names what an error is about.

    Few descriptors are open at a time, so that a tree may be of any depth. The way back up is checked: it must lead to
    where we came from, or somebody has moved what we are in.
    """

    def __init__(self, path: str, *, opening: bool = False, via: Way | None = None) -> None:
        """`opening`: give us the right to empty directories of ours that are read-only; `via`: as for `reached`."""
        self._path = path
        self._opening = opening
        self._via = via
        self._levels: list[_Level] = []
        self._name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for level in self._levels:
            level.close()
        if isinstance(error, OSError) and not os.path.isabs(str(error.filename)):
            raise self._named(error) from None

    def _named(self, error: OSError) -> OSError:
        inner = (*(level.name for level in self._levels[1:]), self._name) if self._levels else ()
        return OSError(error.errno, error.strerror, _shortened("/".join((self._path, *inner))))

    def __iter__(self) -> Iterator[Found]:
        with reached(self._path, self._via) as (name, above):
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
                    yield from self._go_down(self._name, level.directory)
                continue
            if len(self._levels) == 1:
                self._levels.pop().close()
                return
            self._go_up()
            self._name = level.name
            yield Found(self._levels[-1].directory, level.name, True)

    def _go_down(self, name: str, above: int | None) -> Iterator[Found]:
        directory = self._open(name, above)
        status = os.fstat(directory)
        level = _Level(name, directory, (status.st_dev, status.st_ino), [])
        self._levels.append(level)
        if len(self._levels) > _MOST_OPEN:
            self._levels[-_MOST_OPEN - 1].close()
        if self._opening and _is_closed_to_us(status):
            with contextlib.suppress(OSError):  # what cannot be done here fails where access is needed
                os.fchmod(directory, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        with os.scandir(directory) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        level.ahead = [inner for inner, is_dir in entries if is_dir]
        for self._name, is_dir in entries:
            if not is_dir:
                yield Found(directory, self._name, False)

    def _open(self, name: str, above: int | None) -> int:
        try:
            return os.open(name, _LISTING, dir_fd=above)
        except PermissionError:
            if not self._opening:
                raise
        _let_us_in(name, above)
        return os.open(name, _LISTING, dir_fd=above)

    def _go_up(self) -> None:
        left, level = self._levels[-1], self._levels[-2]
        if level.directory < 0:
            level.directory = os.open("..", _LISTING, dir_fd=left.directory)
            status = os.fstat(level.directory)
            if (status.st_dev, status.st_ino) != level.identity:
                raise OSError(errno.ESTALE, "was moved away meanwhile")
        self._levels.pop().close()


def _is_closed_to_us(status: os.stat_result) -> bool:
    """Whether a directory is ours, and read-only."""
    return status.st_mode & stat.S_IRWXU != stat.S_IRWXU and status.st_uid == os.geteuid()


def _let_us_in(name: str, above: int | None) -> None:
    """Let its owner into a directory that cannot even be opened."""
    with contextlib.suppress(OSError):
        fd = os.open(name, _WAY, dir_fd=above)
        try:
            status = os.fstat(fd)
            if _is_closed_to_us(status):
                os.chmod(by_descriptor(fd), stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        finally:
            os.close(fd)


def by_descriptor(fd: int) -> str:
    """A path that leads to what is open, whatever its name is by now (proc_pid_fd(5)); only where there is a /proc."""
    return f"/proc/self/fd/{fd}"


def _shortened(path: str) -> str:
    return path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}…"
