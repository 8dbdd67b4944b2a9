"""Every call that touches the file system, in one injectable object.

Tests put faults, counters and schedules here; nothing else in the package calls `os.rename` and its kin. The
operations that decide something (`symlink`, `rename`, `rmdir`, `mkdir`, `create`) are single system calls, because
on a network file system each is one request that the server answers with one winner. Nothing here follows a
symbolic link in the last component of a path, and nothing decides by "does it exist?": on NFS that answer may be
almost a minute old.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.errors import GONE

if TYPE_CHECKING:
    import tarfile

#: Bytes moved per read or write; large enough for a network file system's largest request.
CHUNK = 1 << 20

#: No text file of ours is larger than this; a larger one is somebody's prank or damage.
TEXT_LIMIT = 1 << 20

_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # NONBLOCK: a FIFO must not hang us
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_WRITE_BITS = ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


#: Permission bits that a directory has in a cache that a group shares.
SHARED_DIRECTORY = stat.S_ISGID | stat.S_IRWXG


class Usage(NamedTuple):
    """What a tree takes up: the sum of its files' sizes in bytes, and the number of its entries (inodes)."""

    bytes: int
    entries: int


class Entry(NamedTuple):
    """A name in a directory, and whether it is a directory itself (a symbolic link to one is not)."""

    name: str
    is_dir: bool


class FileSystem:
    """The real file system. All methods raise OSError as the system call does."""

    # -- single calls, atomic on the server ------------------------------------------------------------------------

    def symlink(self, text: str, path: str) -> None:
        """Create `path` exclusively, as a symbolic link whose text is a record."""
        os.symlink(text, path)

    def link(self, source: str, path: str) -> None:
        """Create `path` exclusively, as another name of the file `source`."""
        os.link(source, path, follow_symlinks=False)

    def rename(self, source: str, target: str) -> None:
        """Rename within the cache."""
        os.rename(source, target)

    def mkdir(self, path: str, mode: int = 0o777, *, shared: bool = False) -> None:
        """Create a directory exclusively, with the permissions in `mode` less the umask.

        `shared`: its group may write in it, whatever the umask says.
        """
        os.mkdir(path, mode)
        if shared:
            self.share(path)

    def share(self, path: str) -> None:
        """Let a directory's group write in it, and make what is created there the group's too (setgid)."""
        fd = os.open(path, _READ_ONLY | os.O_DIRECTORY)
        try:
            os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | SHARED_DIRECTORY)
        finally:
            os.close(fd)

    def touch(self, path: str) -> None:
        """Set a directory's times to now, so that a network file system's client forgets what it remembers of it."""
        os.utime(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory; the server refuses when there is anything in it."""
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        """Remove one name that is not a directory."""
        os.unlink(path)

    def readlink(self, path: str) -> str:
        """The text of a symbolic link, without following it."""
        return os.readlink(path)

    def is_shared(self, path: str) -> bool:
        """Whether a directory's group may write in it."""
        return bool(self.lstat(path).st_mode & stat.S_IWGRP)

    def lstat(self, path: str) -> os.stat_result:
        """Attributes of the name itself; on NFS they may be a minute old."""
        return os.lstat(path)

    def changed(self, directory: str) -> int:
        """When a name in a directory last came or went, in nanoseconds; opened first, and so fresh also on NFS."""
        fd = os.open(directory, _READ_ONLY | os.O_DIRECTORY)
        try:
            return os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)

    # -- what others put into the root: reached without following any symbolic link on the way --------------------

    def open_below(self, root: str, inner: str) -> int:
        """Open for reading what is at `inner`, a path relative to the directory `root`, never through a link."""
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in inner.split("/"):
            try:
                below = os.open(part, _READ_ONLY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def fstat(self, fd: int) -> os.stat_result:
        """Attributes of what is open."""
        return os.fstat(fd)

    def lstat_in(self, directory: int, name: str) -> os.stat_result:
        """Attributes of a name in an open directory."""
        return os.lstat(name, dir_fd=directory)

    def move_out(self, directory: int, name: str, target: str) -> None:
        """Rename a name in an open directory to the path `target`."""
        os.rename(name, target, src_dir_fd=directory)

    def move_back(self, source: str, directory: int, name: str) -> None:
        """Undo `move_out`."""
        os.rename(source, name, dst_dir_fd=directory)

    def unlink_in(self, directory: int, name: str) -> None:
        """Remove a name in an open directory that is no directory itself."""
        os.unlink(name, dir_fd=directory)

    def rmdir_in(self, directory: int, name: str) -> None:
        """Remove an empty directory in an open one."""
        os.rmdir(name, dir_fd=directory)

    # -- directories -----------------------------------------------------------------------------------------------

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted. On a network file system this is a hint, not a proof."""
        return sorted(os.listdir(path))

    def names_if_any(self, path: str) -> list[str]:
        """As `names`; none for a directory that is not there, as it is made when it is needed."""
        try:
            return self.names(path)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return []

    def entries(self, path: str) -> list[Entry]:
        """Names and kinds in a directory, sorted; costs no call per entry where the file system tells kinds."""
        with os.scandir(path) as found:
            return sorted(Entry(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)

    def statuses(self, path: str, names: Iterable[str]) -> Iterator[tuple[str, os.stat_result]]:
        """Attributes of names in a directory, one call each; what has gone meanwhile, or is refused, is left out."""
        fd = os.open(path, _READ_ONLY | os.O_DIRECTORY)
        try:
            for name in names:
                try:
                    yield name, self.lstat_in(fd, name)
                except OSError:
                    continue
        finally:
            os.close(fd)

    def make_dirs(self, path: str, *, shared: bool = False) -> None:
        """Create a directory and what is missing above it; one that is there is no error. `shared`: as for mkdir."""
        try:
            self.mkdir(path, shared=shared)
        except FileExistsError:
            return
        except FileNotFoundError:
            parent = os.path.dirname(path)
            if parent == path:
                raise
            self.make_dirs(parent, shared=shared)
            with contextlib.suppress(FileExistsError):
                self.mkdir(path, shared=shared)

    # -- records and files -----------------------------------------------------------------------------------------

    def put_record(self, text: str, path: str) -> None:
        """Create `path` exclusively with a short text: a symbolic link or, where there are none, a file."""
        try:
            self.symlink(text, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self.write_new(path, text)

    def get_record(self, path: str) -> str:
        """The text that `put_record` stored. Never follows the link."""
        try:
            return self.readlink(path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return self.read_text(path)

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        """The text of a regular file of at most `limit` bytes; anything else raises OSError."""
        fd = os.open(path, _READ_ONLY)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            data = self._read_all(fd, limit + 1)
        finally:
            os.close(fd)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
        return data.decode("utf-8", "replace")

    def write_new(self, path: str, text: str, *, shared: bool = False) -> None:
        """Create a file exclusively, its text on stable storage when this returns; `shared`: its group may read it."""
        fd = self.create(path)
        try:
            if shared:
                os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | stat.S_IRGRP)
            self.write(fd, text.encode())
            self.sync(fd)
        finally:
            self.close(fd)

    def create(self, path: str, mode: int = 0o666) -> int:
        """Create a file exclusively, with the permissions in `mode` less the umask; a descriptor for writing."""
        return os.open(path, _CREATE, mode)

    def open(self, path: str) -> int:
        """Open a file for reading, never through a symbolic link."""
        return os.open(path, _READ_ONLY)

    def read(self, fd: int, size: int = CHUNK) -> bytes:
        """At most `size` bytes; empty at the end."""
        return os.read(fd, size)

    def write(self, fd: int, data: bytes) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def sync(self, fd: int) -> None:
        """Wait until what was written is on stable storage."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor; a network file system may report here that a write failed."""
        os.close(fd)

    # -- trees, only ever within a work area or the trash ------------------------------------------------------------

    def usage(self, path: str) -> Usage:
        """Bytes and entries of a file or tree, `path` itself included."""
        size = total = 0
        for _, status in self._walk(path):
            total += 1
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return Usage(size, total)

    def seal(self, path: str, *, shared: bool = False) -> None:
        """Make a file or tree durable, its files read-only: what is published never changes.

        Directories stay writable, because whoever may evict must be able to empty them. `shared`: their group may
        write in directories, and read files.
        """
        for name, status in self._walk(path):
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                continue
            fd = os.open(name, _READ_ONLY)
            try:
                os.fchmod(fd, _sealed_mode(status.st_mode, shared))
                os.fsync(fd)
            finally:
                os.close(fd)

    def remove_tree(self, path: str) -> None:
        """Remove a file or a tree, read-only directories included; what has gone meanwhile is no error."""
        try:
            _remove_plain_tree(path, None)
        except (OSError, RecursionError):
            if stat.S_ISDIR(self.lstat(path).st_mode):
                self._remove_odd_tree(path)
            else:
                self.unlink(path)

    @staticmethod
    def _remove_odd_tree(path: str) -> None:
        """Remove a tree that somebody else removes as well, or that is read-only, or very deep; errors are its own."""
        import shutil

        tried: set[str] = set()

        def on_error(function: Callable[..., object], name: str, info: tuple[object, BaseException, object]) -> None:
            error = info[1]
            if isinstance(error, FileNotFoundError):
                return
            if not isinstance(error, PermissionError) or name in tried:
                raise error
            tried.add(name)
            for directory in (os.path.dirname(name), name):  # of `path` itself the parent is the cache's, not ours
                if f"{directory}/".startswith(f"{path}/") and stat.S_ISDIR(os.lstat(directory).st_mode):
                    os.chmod(directory, 0o700)
            if stat.S_ISDIR(os.lstat(name).st_mode):
                shutil.rmtree(name, onerror=on_error)
            else:
                os.unlink(name)

        shutil.rmtree(path, onerror=on_error)  # `onexc` exists only since Python 3.12

    def unlink_all(self, directory: str, names: Iterable[str]) -> None:
        """Unlink names in a directory, never through a symbolic link; what has gone meanwhile is no error."""
        fd = os.open(directory, _READ_ONLY | os.O_DIRECTORY)
        try:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)

    def extract(self, archive: tarfile.TarFile, directory: str, check: Callable[..., tarfile.TarInfo | None]) -> None:
        """Unpack a tar into `directory`; `check` is a tarfile extraction filter (PEP 706) that refuses by raising."""
        archive.extractall(directory, filter=check)

    def _walk(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """`path` and all below it, children before their directory, symbolic links not followed."""
        pending = [(path, os.lstat(path), False)]
        while pending:
            name, status, seen = pending.pop()
            if seen or not stat.S_ISDIR(status.st_mode):
                yield name, status
                continue
            pending.append((name, status, True))
            with os.scandir(name) as found:
                pending.extend((entry.path, entry.stat(follow_symlinks=False), False) for entry in found)

    @staticmethod
    def _read_all(fd: int, limit: int) -> bytes:
        parts = []
        while limit > 0 and (part := os.read(fd, limit)):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)

    # -- the file system as a whole ----------------------------------------------------------------------------------

    def room(self, path: str) -> tuple[int, int, int, int]:
        """Bytes in all and free, inodes in all and free, as an unprivileged user has them (statvfs(3))."""
        figures = os.statvfs(path)
        used = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
        free = figures.f_bavail * figures.f_frsize
        return used + free, free, figures.f_files, figures.f_favail

    def free_space(self, path: str) -> int:
        """Bytes that an unprivileged user may still write: ``f_bavail`` × ``f_frsize`` (statvfs(3)).

        For a path that is not there yet: where it would be made.
        """
        try:
            figures = os.statvfs(path)
        except FileNotFoundError:
            if os.path.dirname(path) == path:
                raise
            return self.free_space(os.path.dirname(path))
        return figures.f_bavail * figures.f_frsize


def _remove_plain_tree(name: str, parent: int | None) -> None:
    """Remove a directory and all below it, never through a symbolic link: `rm -r` in as few calls as there can be."""
    fd = os.open(name, _READ_ONLY | os.O_DIRECTORY, dir_fd=parent)
    try:
        with os.scandir(fd) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        for inner, is_directory in entries:
            if is_directory:
                _remove_plain_tree(inner, fd)
            else:
                os.unlink(inner, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _sealed_mode(mode: int, shared: bool) -> int:
    """The permission bits of a published file or directory that had `mode`."""
    bits = stat.S_IMODE(mode)
    if stat.S_ISDIR(mode):
        return bits | SHARED_DIRECTORY if shared else bits
    if shared:
        bits |= (bits & stat.S_IRWXU) >> 3
    return bits & _NO_WRITE_BITS
