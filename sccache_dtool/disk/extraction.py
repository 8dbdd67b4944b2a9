"""Writes the members of an archive into a new directory, and never outside of it.

All archive formats use this module, so that the rules for members are the same. They are those of GNU tar: a later
member replaces an earlier one of the same name, and a path may lead through a symbolic link of the archive if the link
stays inside the directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self, TypeVar

from sccache_dtool.disk.nofollow import LISTING, ONWARD, READ_ONLY, opened
from sccache_dtool.disk.trees import give_mode

if TYPE_CHECKING:
    from sccache_dtool.disk.filesystem import FileSystem

#: The path of a member, relative to the directory, as its components; empty for the directory itself.
Parts = tuple[str, ...]

#: Most components in the path of a member: the most that a zip can have, and more than tar can unpack.
_DEEPEST = 32_768

#: Most symbolic links that the kernel follows in one path (path_resolution(7)).
_MOST_LINKS = 40

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Made = TypeVar("Made")

#: errno values of file systems without hard links.
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES})


class Refused(Exception):
    """A member that must not be unpacked. The text is the reason, as the end of a sentence about the member."""


class Extraction:
    """Unpacks one archive into `directory`, which must be private and empty; a context manager.

    Directories are opened one below the other, and no symbolic link on disk is followed: the links of the archive are
    recorded and resolved here. Every method raises Refused for a member that leads outside or contradicts another one,
    and OSError for an error of the file system.
    """

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self._directory = directory
        self._root = opened(directory, LISTING)
        self._mode = stat.S_IMODE(os.fstat(self._root).st_mode)
        self._links: dict[Parts, str] = {}
        self._times: dict[Parts, float] = {}
        self._here: Parts = ()
        self._open = self._root  # the directory `_here`

    def __enter__(self) -> Self:
        try:
            give_mode(self._root, stat.S_IRWXU)
            if os.fstat(self._root).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                text = "cannot unpack into a directory that others can write to and whose permissions cannot be changed"
                raise PermissionError(errno.EPERM, text, self._directory)
        except BaseException:
            os.close(self._root)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            give_mode(self._root, self._mode)
        finally:
            self._leave()
            os.close(self._root)

    # -- members -----------------------------------------------------------------------------------------------------

    def directory(self, path: Parts, modified: float | None = None) -> None:
        """Create a directory, and missing ones above it. `modified`: seconds since the epoch."""
        if path:
            above, name = self._above(path)
            self._make_directory(above, name)
            path = (*above, name)
        if modified is not None:
            self._times[path] = modified

    @contextlib.contextmanager
    def file(self, path: Parts, mode: int, modified: float | None = None) -> Iterator[int]:
        """Create a file and yield a descriptor for writing. `mode`: its permission bits.

        The umask applies. The owner can read and write. Nobody can execute the file unless the owner can.
        """
        above, name = self._above(path)
        mode = mode & (0o777 if mode & stat.S_IXUSR else 0o666) | stat.S_IRUSR | stat.S_IWUSR
        fd = self._put(above, name, lambda directory: os.open(name, _CREATE, mode, dir_fd=directory))
        try:
            yield fd
            _set_time(fd, modified)
        except BaseException:
            os.close(fd)
            raise
        self._fs.close(fd)  # a network file system may report here that a write failed

    def symlink(self, path: Parts, text: str) -> None:
        """Create a symbolic link; `check_links` must be called after the last member."""
        if not text:
            raise Refused("it is a symbolic link without a target")
        if text.startswith("/"):
            raise Refused("it is a link to an absolute path")
        above, name = self._above(path)
        self._put(above, name, lambda directory: os.symlink(text, name, dir_fd=directory))
        self._links[*above, name] = text

    def hard_link(self, path: Parts, target: Parts) -> None:
        """Create `path` as a hard link to the member `target`, or as a copy if the file system has no hard links."""
        old_above, old = self._above(target, "the target of the hard link")
        above, name = self._above(path)
        text = self._links.get((*old_above, old))
        with self._opened(old_above) as source:
            if source is None or (text is None and not _is_file(old, source)):
                raise Refused("it is a hard link whose target is not an earlier file of the archive")
            if (above, name) == (old_above, old):
                return
            if text is not None:
                self.symlink((*above, name), text)
                return

            def link(directory: int) -> None:
                try:
                    os.link(old, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
                except FileExistsError:
                    if not os.path.samestat(os.lstat(old, dir_fd=source), os.lstat(name, dir_fd=directory)):
                        raise

            try:
                self._put(above, name, link)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                self._copy(old, source, (*above, name))

    def check_links(self) -> None:
        """Raise Refused for the first symbolic link that leads outside. Call it when all members exist."""
        for path in sorted(self._links):
            try:
                self._resolve(path)
            except Refused as error:
                raise Refused(f"{'/'.join(path)!r}: it is a link that leads outside") from error

    def set_times(self) -> None:
        """Set the times of the directories to those in the archive. Call it when all members exist."""
        for path, modified in self._times.items():
            with self._opened(path) as directory:
                if directory is not None:
                    _set_time(directory, modified)

    # -- where a member goes -----------------------------------------------------------------------------------------

    def _above(self, path: Parts, what: str = "its path") -> tuple[Parts, str]:
        """The directory of a member, without symbolic links, and the member's name in it."""
        if not path:
            raise Refused("it would replace the target directory itself")
        if len(path) > _DEEPEST:
            raise Refused(f"it is nested more than {_DEEPEST} directories deep")
        return self._resolve(path[:-1], what), path[-1]

    def _resolve(self, path: Parts, what: str = "its path") -> Parts:
        """`path` with its symbolic links resolved as the kernel does. Raises Refused if it leads outside."""
        if not self._links:
            return path
        here: list[str] = []
        ahead = list(reversed(path))
        followed = 0
        while ahead:
            part = ahead.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not here:
                    raise Refused(f"{what} leads outside through a symbolic link")
                here.pop()
                continue
            text = self._links.get((*here, part))
            if text is None:
                here.append(part)
                continue
            followed += 1
            if followed > _MOST_LINKS:
                return (*here, part)  # a cycle of links, for which the kernel reports an error
            ahead.extend(reversed(text.split("/")))
        return tuple(here)

    # -- directories -------------------------------------------------------------------------------------------------

    def _enter(self, path: Parts) -> int:
        """Open the directory `path`, and create it if necessary. It stays open until another one is entered."""
        if path == self._here:
            return self._open
        if path[: len(self._here)] != self._here:
            self._leave()
        for part in path[len(self._here) :]:
            below = self._step(self._open, part)
            if self._open != self._root:
                os.close(self._open)
            self._open = below
            self._here = (*self._here, part)
        return self._open

    def _step(self, directory: int, name: str) -> int:
        try:
            return os.open(name, ONWARD, dir_fd=directory)
        except FileNotFoundError:
            os.mkdir(name, dir_fd=directory)
            return os.open(name, ONWARD, dir_fd=directory)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise Refused(f"{name!r} exists and is not a directory") from error
            raise

    def _leave(self) -> None:
        if self._open != self._root:
            os.close(self._open)
        self._open, self._here = self._root, ()

    @contextlib.contextmanager
    def _opened(self, path: Parts) -> Iterator[int | None]:
        """Open a directory for the time of a `with`; yields None if it does not exist."""
        fd = os.open(".", LISTING, dir_fd=self._root)
        try:
            for part in path:
                try:
                    below = os.open(part, LISTING, dir_fd=fd)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise
                    below = -1
                os.close(fd)
                fd = below
                if fd < 0:
                    break
            yield None if fd < 0 else fd
        finally:
            if fd >= 0:
                os.close(fd)

    def _make_directory(self, above: Parts, name: str) -> None:
        def make(directory: int) -> None:
            try:
                os.mkdir(name, dir_fd=directory)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                    raise

        self._put(above, name, make)

    def _put(self, above: Parts, name: str, create: Callable[[int], Made]) -> Made:
        """Create a member in the directory `above`; the last one of a name wins, as in tar and unzip."""
        directory = self._enter(above)
        try:
            return create(directory)
        except FileExistsError:
            self._remove(directory, above, name)
            return create(directory)

    def _remove(self, directory: int, above: Parts, name: str) -> None:
        """Remove an earlier member."""
        if self._links.pop((*above, name), None) is None and stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
            try:
                os.rmdir(name, dir_fd=directory)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise Refused("it would replace a directory that is not empty") from error
                raise
            self._times.pop((*above, name), None)
            return
        os.unlink(name, dir_fd=directory)

    def _copy(self, name: str, directory: int, path: Parts) -> None:
        reading = os.open(name, READ_ONLY, dir_fd=directory)
        try:
            status = os.fstat(reading)
            with self.file(path, status.st_mode, status.st_mtime) as writing:
                while data := self._fs.read(reading):
                    self._fs.write(writing, data)
        finally:
            os.close(reading)


def _is_file(name: str, directory: int) -> bool:
    try:
        return stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return False
        raise


def _set_time(fd: int, modified: float | None) -> None:
    """Set a modification time, if the file system can store it: the data is complete without it."""
    if modified is not None:
        with contextlib.suppress(OSError, OverflowError, ValueError):
            os.utime(fd, (modified, modified))
