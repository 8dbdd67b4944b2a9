"""Whole trees, of any depth: measured, made durable, removed; only ever within a work area or the trash.

As everywhere below the control directory, no symbolic link is followed, whatever others put there meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from sccache_dtool.disk.nofollow import LISTING, ONWARD, READ_ONLY, Way, by_descriptor, reached, way_to
from sccache_dtool.fallback import CANNOT_SYNC, dispensable, do_without

#: Permission bits that a directory has in a cache that a group shares.
SHARED_DIRECTORY = stat.S_ISGID | stat.S_IRWXG

_NO_WRITE_BITS = ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)

#: The longest path that is shown whole in an error; trees may be deeper than any path can say.
_LONGEST_SHOWN = 1000


class Usage(NamedTuple):
    """What a tree takes up: the sum of its files' sizes in bytes, and the number of its entries (inodes)."""

    bytes: int
    entries: int


class Trees:
    """What a `FileSystem` does with whole trees."""

    def usage(self, path: str) -> Usage:
        """Bytes and entries of a file or tree, `path` itself included."""
        size = total = 0
        with Walk(path) as walk:
            for directory, name, _ in walk:
                status = os.lstat(name, dir_fd=directory)
                total += 1
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return Usage(size, total)

    def sample(self, path: str, most: int) -> tuple[int, bool, bool]:
        """The number of entries of a directory, itself included; whether any is no directory; whether that is all.

        Goes on until `most` entries have been counted, and anything but a directory has been found.
        """
        count, files = 0, False
        with Walk(path) as walk:
            for _, _, is_dir in walk:
                if files and count >= most:
                    return count, files, False
                count += 1
                files = files or not is_dir
        return count, files, True

    def seal(self, path: str, *, shared: bool = False) -> None:
        """Make a file or tree durable, its files read-only: what is published never changes.

        Directories stay writable, because whoever may evict must be able to empty them. `shared`: their group may
        write in directories, and read files.
        """
        with Walk(path) as walk:
            for directory, name, is_dir in walk:
                if not (is_dir or stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode)):
                    continue
                fd = os.open(name, READ_ONLY, dir_fd=directory)
                try:
                    give_mode(fd, _sealed_mode(os.fstat(fd).st_mode, shared))
                    (_sync_directory if is_dir else sync)(fd)
                finally:
                    os.close(fd)

    def remove_tree(self, path: str, *, via: Way | None = None) -> None:
        """Remove a file or a tree, read-only directories included; what has gone meanwhile is no error.

        `via`: a way to a directory above it.
        """
        with Walk(path, opening=True, via=via) as walk:
            for directory, name, is_dir in walk:
                try:
                    (os.rmdir if is_dir else os.unlink)(name, dir_fd=directory)
                except FileNotFoundError:
                    continue

    def move_tree(self, source: str, target: str) -> None:
        """Move a tree whose directories cannot be renamed (EXDEV): they are made again, and the files renamed.

        So it is on an overlay with what is in its lower layer. `target` is not there yet. Raises OSError, EXDEV if the
        files cannot be renamed either; what was moved until then is in `target`.
        """
        pending, left = [(source, target)], list[str]()
        while pending:
            here, there = pending.pop()
            with reached(here) as (name, above):
                mode = stat.S_IMODE(os.lstat(name, dir_fd=above).st_mode)
            with reached(there) as (name, above):
                os.mkdir(name, mode | stat.S_IRWXU, dir_fd=above)
            left.append(here)
            with way_to(here) as old, way_to(there) as new:
                with os.scandir(old.directory) as entries:
                    found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
                for name, is_dir in found:
                    if is_dir:
                        pending.append((f"{here}/{name}", f"{there}/{name}"))
                    else:
                        os.rename(name, name, src_dir_fd=old.directory, dst_dir_fd=new.directory)
        for path in reversed(left):
            with reached(path) as (name, above):
                os.rmdir(name, dir_fd=above)


def give_mode(fd: int, mode: int) -> None:
    """Give what is open these permission bits, where that is allowed: some mounts refuse every change (EPERM).

    Nothing is asked of the file system if it has them. With a POSIX ACL its users are those of the ACL, whatever the
    group: then the setgid bit is not needed, and those who are not in the group could not set it.
    """
    there = stat.S_IMODE(os.fstat(fd).st_mode)
    if there | stat.S_ISGID == mode and has_acl(fd):
        mode = there
    if there != mode:
        with dispensable("permissions cannot be changed here: files stay writable, and a group may have no access"):
            os.fchmod(fd, mode)


def has_acl(fd: int) -> bool:
    """Whether what is open has a POSIX ACL (acl(5)): the bits of its group are then the mask of the ACL."""
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        with contextlib.suppress(OSError):
            os.getxattr(fd, name)
            return True
    return False


def sync(fd: int) -> None:
    """Wait until what was written to a file is on stable storage, where the file system can say so."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
        do_without(f"fsync of files fails here: a power failure may damage new files ({error.strerror})")


def _sync_directory(fd: int) -> None:
    with dispensable("fsync of directories fails here: a power failure may undo recent changes"):
        os.fsync(fd)


def _sealed_mode(mode: int, shared: bool) -> int:
    """The permission bits of a published file or directory that had `mode`."""
    bits = stat.S_IMODE(mode)
    if stat.S_ISDIR(mode):
        return bits | SHARED_DIRECTORY if shared else bits
    if shared:
        bits |= (bits & stat.S_IRWXU) >> 3
    return bits & _NO_WRITE_BITS


# -- going through a tree ----------------------------------------------------------------------------------------------


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
            return os.open(name, LISTING, dir_fd=above)
        except PermissionError:
            if not self._opening:
                raise
        _let_us_in(name, above)
        return os.open(name, LISTING, dir_fd=above)

    def _go_up(self) -> None:
        left, level = self._levels[-1], self._levels[-2]
        if level.directory < 0:
            level.directory = os.open("..", LISTING, dir_fd=left.directory)
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
        fd = os.open(name, ONWARD, dir_fd=above)
        try:
            status = os.fstat(fd)
            if _is_closed_to_us(status):
                os.chmod(by_descriptor(fd), stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        finally:
            os.close(fd)


def _shortened(path: str) -> str:
    return path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}…"
