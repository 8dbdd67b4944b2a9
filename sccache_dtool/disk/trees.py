"""Operations on whole trees of any depth: measure, make durable, remove. Used only in work areas and in the trash.

As everywhere below the control directory, no symbolic link is followed, even if another user creates one meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Self

from sccache_dtool.disk.nofollow import (
    LISTING,
    ONWARD,
    READ_ONLY,
    DirectoryHandle,
    by_descriptor,
    open_directory,
    reached,
)
from sccache_dtool.fallback import CANNOT_SYNC, dispensable, do_without
from sccache_dtool.tuples import NamedTuple

#: Permission bits of directories in a cache that a group shares.
SHARED_DIRECTORY = stat.S_ISGID | stat.S_IRWXG

_NO_WRITE_BITS = ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)

#: The longest path that is shown completely in an error. A tree may be deeper than PATH_MAX allows.
_LONGEST_SHOWN = 1000


class Usage(NamedTuple):
    """The size of a tree: the sum of its files' sizes in bytes, and the number of its entries (inodes)."""

    bytes: int
    entries: int


class Sample(NamedTuple):
    """What was counted of a tree."""

    entries: int  # the root included
    has_files: bool  # whether one of them is not a directory
    complete: bool  # whether all were counted


def usage(path: str) -> Usage:
    """Bytes and entries of a file or tree, including `path` itself."""
    with reached(path) as (name, directory):
        status = os.lstat(name, dir_fd=directory)
    if stat.S_ISREG(status.st_mode):
        return Usage(status.st_size, 1)
    size = total = 0
    with Walk(path) as walk:
        for one in walk:
            status = os.lstat(one.name, dir_fd=one.directory)
            total += 1
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return Usage(size, total)


def sample(path: str, most: int) -> Sample:
    """Count entries of a tree until there are `most`, and one of them is not a directory."""
    count, files = 0, False
    with Walk(path) as walk:
        for one in walk:
            if files and count >= most:
                return Sample(count, files, False)
            count += 1
            files = files or not one.is_dir
    return Sample(count, files, True)


def seal(path: str, *, shared: bool = False) -> None:
    """Make a file or tree durable, and its files read-only, because published data never changes.

    Directories stay writable, because an evictor must be able to empty them. `shared`: the group can write in
    directories and read files.
    """
    with Walk(path) as walk:
        for one in walk:
            if not (one.is_dir or stat.S_ISREG(os.lstat(one.name, dir_fd=one.directory).st_mode)):
                continue
            fd = os.open(one.name, READ_ONLY, dir_fd=one.directory)
            try:
                give_mode(fd, _sealed_mode(os.fstat(fd).st_mode, shared))
                (sync_directory if one.is_dir else sync)(fd)
            finally:
                os.close(fd)


def remove_tree(path: str, *, via: DirectoryHandle | None = None) -> None:
    """Remove a file or a tree, including read-only directories. Missing files are not an error.

    `via`: an open directory above it.
    """
    with Walk(path, opening=True, via=via) as walk:
        for one in walk:
            try:
                (os.rmdir if one.is_dir else os.unlink)(one.name, dir_fd=one.directory)
            except FileNotFoundError:
                continue


def move_tree(source: str, target: str) -> None:
    """Move a tree whose directories cannot be renamed (EXDEV): create the directories again, and rename the files.

    An overlay refuses to rename directories of its lower layer. `target` must not exist. Raises OSError, with EXDEV
    if the files cannot be renamed either; files that were already moved stay in `target`.
    """
    pending, left = [(source, target)], list[str]()
    while pending:
        here, there = pending.pop()
        with reached(here) as (name, above):
            mode = stat.S_IMODE(os.lstat(name, dir_fd=above).st_mode)
        with reached(there) as (name, above):
            os.mkdir(name, mode | stat.S_IRWXU, dir_fd=above)
        left.append(here)
        with open_directory(here) as old, open_directory(there) as new:
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
    """Set the permission bits of an open file, if the mount allows that: some refuse every change (EPERM).

    No call is made if the bits are already set. With a POSIX ACL, the setgid bit is neither needed nor set, because the
    ACL lists the users, and a user who is not in the group could not set it.
    """
    there = stat.S_IMODE(os.fstat(fd).st_mode)
    if there | stat.S_ISGID == mode and has_acl(fd):
        mode = there
    if there != mode:
        with dispensable("permissions cannot be changed here: files stay writable, and a group may have no access"):
            os.fchmod(fd, mode)


def has_acl(fd: int) -> bool:
    """Whether an open file has a POSIX ACL (acl(5)). Its group bits are then the mask of the ACL."""
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


def sync_directory(fd: int) -> None:
    """As `sync`, for the names in a directory."""
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


class WalkEntry(NamedTuple):
    """An entry that a walk has reached: a name in an open directory."""

    directory: int | None
    name: str
    is_dir: bool


#: Most directories that a walk keeps open, the innermost ones. To the others, it goes back through "..".
_MOST_OPEN = 50


class _Level:
    """A directory on the path of a walk."""

    def __init__(self, name: str, directory: int, identity: tuple[int, int], ahead: list[str]) -> None:
        self.name = name
        self.directory = directory  # descriptor; -1: closed
        self.identity = identity
        self.ahead = ahead  # its directories that are still to be entered

    def close(self) -> None:
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1


class Walk:
    """Iterates over a file or tree, children before their directory; a context manager that adds paths to errors.

    Only a few descriptors are open at a time, so that a tree can have any depth. When the walk goes back through "..",
    it checks that it reaches the same directory, because another process may have moved the current one.
    """

    def __init__(self, path: str, *, opening: bool = False, via: DirectoryHandle | None = None) -> None:
        """`opening`: make the user's own read-only directories writable, to empty them. `via`: as for `reached`."""
        self._path = path
        self._opening = opening
        self._via = via
        self._levels: list[_Level] = []
        self._name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for level in self._levels:
            level.close()
        if isinstance(error, OSError) and not os.path.isabs(str(error.filename)):
            raise self._named(error) from None

    def _named(self, error: OSError) -> OSError:
        inner = (*(level.name for level in self._levels[1:]), self._name) if self._levels else ()
        path = "/".join((self._path, *inner))
        shown = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}…"
        return OSError(error.errno, error.strerror, shown)

    def __iter__(self) -> Iterator[WalkEntry]:
        with reached(self._path, self._via) as (name, above):
            is_dir = stat.S_ISDIR(os.lstat(name, dir_fd=above).st_mode)
            if is_dir:
                try:
                    yield from self._below(name, above)
                except OSError as error:
                    raise self._named(error) from None
            yield WalkEntry(above, name, is_dir)

    def _below(self, name: str, above: int | None) -> Iterator[WalkEntry]:
        yield from self._go_down(name, above)
        while True:
            level = self._levels[-1]
            if level.ahead:
                self._name = level.ahead.pop()
                with contextlib.suppress(FileNotFoundError):  # another process has removed it
                    yield from self._go_down(self._name, level.directory)
                continue
            if len(self._levels) == 1:
                self._levels.pop().close()
                return
            self._go_up()
            self._name = level.name
            yield WalkEntry(self._levels[-1].directory, level.name, True)

    def _go_down(self, name: str, above: int | None) -> Iterator[WalkEntry]:
        directory = self._open(name, above)
        status = os.fstat(directory)
        level = _Level(name, directory, (status.st_dev, status.st_ino), [])
        self._levels.append(level)
        if len(self._levels) > _MOST_OPEN:
            self._levels[-_MOST_OPEN - 1].close()
        if self._opening and _is_own_and_read_only(status):
            with contextlib.suppress(OSError):  # if it fails, the later access reports the error
                os.fchmod(directory, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        with os.scandir(directory) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        level.ahead = [inner for inner, is_dir in entries if is_dir]
        for self._name, is_dir in entries:
            if not is_dir:
                yield WalkEntry(directory, self._name, False)

    def _open(self, name: str, above: int | None) -> int:
        try:
            return os.open(name, LISTING, dir_fd=above)
        except PermissionError:
            if not self._opening:
                raise
        _make_accessible(name, above)
        return os.open(name, LISTING, dir_fd=above)

    def _go_up(self) -> None:
        left, level = self._levels[-1], self._levels[-2]
        if level.directory < 0:
            level.directory = os.open("..", LISTING, dir_fd=left.directory)
            status = os.fstat(level.directory)
            if (status.st_dev, status.st_ino) != level.identity:
                raise OSError(errno.ESTALE, "was moved by another process")
        self._levels.pop().close()


def _is_own_and_read_only(status: os.stat_result) -> bool:
    """Whether a directory belongs to this user and is read-only."""
    return status.st_mode & stat.S_IRWXU != stat.S_IRWXU and status.st_uid == os.geteuid()


def _make_accessible(name: str, above: int | None) -> None:
    """Give the owner permission to open a directory."""
    with contextlib.suppress(OSError):
        fd = os.open(name, ONWARD, dir_fd=above)
        try:
            status = os.fstat(fd)
            if _is_own_and_read_only(status):
                os.chmod(by_descriptor(fd), stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        finally:
            os.close(fd)
