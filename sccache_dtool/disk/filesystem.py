"""Every call to the file system, in one injectable object.

Tests inject faults, counters and schedules here. Outside this module, only `trees` and `nofollow`, which it uses, call
`os.rename` and similar functions. The operations that decide something (`symlink`, `rename`, `rmdir`, `mkdir`,
`create`) are single system calls: on a network file system, each is one request, for which the server chooses one
winner. No method follows a symbolic link in the last component of a path, nor anywhere below the control directory (see
`nofollow`). Nothing is decided by "does it exist?", because on NFS that answer may be almost a minute old.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sccache_dtool.disk import trees
from sccache_dtool.disk.nofollow import (
    ONWARD,
    READ_ONLY,
    DirectoryHandle,
    by_descriptor,
    near,
    open_directory,
    opened,
    opening,
    reached,
)
from sccache_dtool.errors import FULL
from sccache_dtool.fallback import dispensable, do_without
from sccache_dtool.tuples import NamedTuple

if TYPE_CHECKING:
    from sccache_dtool.disk.extraction import Extraction

#: Bytes moved per read or write; large enough for a network file system's largest request.
CHUNK = 1 << 20

#: Largest text file that the program writes. A larger one is damaged or malicious.
TEXT_LIMIT = 1 << 20

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), in linux/fs.h

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """A name in a directory, and whether it is a directory (a symbolic link to a directory is not)."""

    name: str
    is_dir: bool


class Room(NamedTuple):
    """What a file system has for an unprivileged user (statvfs(3)), in bytes and entries (inodes)."""

    bytes: int
    free: int
    entries: int
    free_entries: int

    def and_free(self, size: int, entries: int) -> Room:
        """The same with more of it free."""
        return self._replace(free=self.free + size, free_entries=self.free_entries + entries)


class FileSystem:
    """The real file system. All methods raise OSError as the system call does."""

    # -- single calls, atomic on the server ------------------------------------------------------------------------

    # `unique`: the names are random and never reused. Then one system call by path is safe: if another user replaces a
    # directory of the path by a link, the call finds nothing at the target of the link that it could change.

    def symlink(self, text: str, path: str, *, unique: bool = False) -> None:
        """Create `path` exclusively, as a symbolic link with a text."""
        if unique:
            os.symlink(text, path)
            return
        with reached(path) as (name, directory):
            os.symlink(text, name, dir_fd=directory)

    def link(self, source: str, path: str) -> None:
        """Create `path` exclusively, as another name of the file `source`."""
        with reached(source) as (old, here), reached(path) as (new, there):
            os.link(old, new, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)

    def rename(self, source: str, target: str, *, unique: bool = False, via: DirectoryHandle | None = None) -> None:
        """Rename within the cache. `via`: an open directory above `source`."""
        if unique:
            os.rename(source, target)
            return
        with reached(source, via) as (old, here), reached(target) as (new, there):
            os.rename(old, new, src_dir_fd=here, dst_dir_fd=there)

    def mkdir(self, path: str, mode: int = 0o777, *, shared: bool = False) -> None:
        """Create a directory exclusively, with the permissions in `mode` less the umask.

        `shared`: let the group write in it, regardless of the umask, if permissions can be changed.
        """
        with reached(path) as (name, directory):
            os.mkdir(name, mode, dir_fd=directory)
        if shared:
            with dispensable("permissions cannot be changed here: files stay writable, and a group may have no access"):
                self.share(path)

    def share(self, path: str) -> None:
        """Let a directory's group write in it, and let new entries inherit the group (setgid).

        If the directory has a POSIX ACL, only the ACL's mask is set.
        """
        with opening(path) as fd:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            wanted = mode | trees.SHARED_DIRECTORY
            if wanted != mode and trees.has_acl(fd):
                wanted = mode | stat.S_IRWXG
            if wanted != mode:
                os.fchmod(fd, wanted)

    def has_acl(self, directory: str) -> bool:
        """Whether a directory has a POSIX ACL, so that its group bits are the ACL's mask."""
        with opening(directory) as fd:
            return trees.has_acl(fd)

    def permit(self, directory: str, mode: int) -> None:
        """Set a directory's permission bits, even if they forbid to open it. Needs /proc."""
        with opening(directory, ONWARD) as fd:
            os.chmod(by_descriptor(fd), mode)

    def touch(self, path: str) -> None:
        """Set a directory's times to now, so that a network file system's client invalidates its cache."""
        with reached(path) as (name, directory):
            os.utime(name, dir_fd=directory, follow_symlinks=False)

    def rmdir(self, path: str, *, via: DirectoryHandle | None = None) -> None:
        """Remove an empty directory; the server refuses if it is not empty. `via`: as for rename."""
        with reached(path, via) as (name, directory):
            os.rmdir(name, dir_fd=directory)

    def unlink(self, path: str) -> None:
        """Remove one name that is not a directory."""
        with reached(path) as (name, directory):
            os.unlink(name, dir_fd=directory)

    def readlink(self, path: str) -> str:
        """The text of a symbolic link, without following it."""
        with reached(path) as (name, directory):
            return os.readlink(name, dir_fd=directory)

    def is_shared(self, path: str) -> bool:
        """Whether a directory's group may write in it."""
        return bool(self.lstat(path).st_mode & stat.S_IWGRP)

    def lstat(self, path: str) -> os.stat_result:
        """Attributes of the name itself. On NFS, they may be a minute old."""
        with reached(path) as (name, directory):
            return os.lstat(name, dir_fd=directory)

    def seems_there(self, path: str) -> bool:
        """Whether the path seems to exist. This is only a hint: a network file system may miss it for a minute."""
        try:
            self.lstat(path)
        except OSError:
            return False
        return True

    def changed(self, directory: str) -> int:
        """The modification time of a directory in nanoseconds, current on NFS as well because it is opened first."""
        with opening(directory) as fd:
            return os.fstat(fd).st_mtime_ns

    # -- files of other programs in the root, reached without following any symbolic link ------------------------

    def open_below(self, root: str, inner: str) -> int:
        """Open `inner`, a path relative to the directory `root`, for reading, without following any link."""
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in inner.split("/"):
            try:
                below = os.open(part, READ_ONLY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def fstat(self, fd: int) -> os.stat_result:
        """Attributes of an open file."""
        return os.fstat(fd)

    def lstat_in(self, directory: int, name: str) -> os.stat_result:
        """Attributes of a name in an open directory."""
        return os.lstat(name, dir_fd=directory)

    def move_out(self, directory: int, name: str, target: str) -> None:
        """Rename a name in an open directory to the path `target`."""
        with reached(target) as (new, there):
            os.rename(name, new, src_dir_fd=directory, dst_dir_fd=there)

    def move_back(self, source: str, directory: int, name: str) -> None:
        """Undo `move_out`."""
        with reached(source) as (old, here):
            os.rename(old, name, src_dir_fd=here, dst_dir_fd=directory)

    def unlink_in(self, directory: int, name: str) -> None:
        """Remove a name in an open directory that is not a directory itself."""
        os.unlink(name, dir_fd=directory)

    def rmdir_in(self, directory: int, name: str) -> None:
        """Remove an empty directory in an open directory."""
        os.rmdir(name, dir_fd=directory)

    # -- directories -----------------------------------------------------------------------------------------------

    def open_directory(self, path: str, via: DirectoryHandle | None = None) -> DirectoryHandle:
        """Open a directory for many calls below it; a context manager. `via`: an open directory above it."""
        return open_directory(path, via)

    def near(self, path: str) -> contextlib.AbstractContextManager[None]:
        """Reach what is below a directory from there, until the block ends, if it can be opened; `nofollow.near`."""
        try:
            return near(open_directory(path), closing=True)
        except OSError:  # then what is looked for there says why
            return contextlib.nullcontext()

    def names(self, path: str, *, via: DirectoryHandle | None = None) -> list[str]:
        """The names in a directory, sorted. On a network file system this is a hint, not a proof.

        `via`: this directory, or one above it, opened by `open_directory`.
        """
        if via is not None and via.path == path:
            return sorted(os.listdir(via.directory))
        with opening(path, via=via, as_is=True) as fd:
            return sorted(os.listdir(fd))

    def names_if_any(self, path: str, *, via: DirectoryHandle | None = None) -> list[str]:
        """As `names`, but empty for a directory that does not exist yet."""
        try:
            return self.names(path, via=via)
        except FileNotFoundError:  # only this error: a stale directory, for example, may have names
            return []

    def entries(self, path: str, *, via: DirectoryHandle | None = None) -> list[Entry]:
        """Names and kinds in a directory, sorted, without a call for each entry if the file system reports kinds.

        `via`: this directory, opened by `open_directory`.
        """
        with os.scandir(path if via is None else via.directory) as found:
            return sorted(Entry(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)

    def statuses(
        self, path: str, names: Iterable[str], *, via: DirectoryHandle | None = None
    ) -> Iterator[tuple[str, os.stat_result]]:
        """Attributes of names in a directory, with one call each. Names that fail are left out.

        `via`: this directory, opened by `open_directory`.
        """
        lstat = os.lstat  # called for each of a million files, so nothing else is done here
        with opening(path) if via is None else contextlib.nullcontext(via.directory) as fd:
            for name in names:
                try:
                    yield name, lstat(name, dir_fd=fd)
                except OSError:
                    continue

    def unlink_all(self, directory: str, names: Iterable[str]) -> None:
        """Unlink names in a directory, never through a symbolic link. Missing names are not an error."""
        with opening(directory) as fd:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)

    def make_dirs(self, path: str, *, shared: bool = False) -> None:
        """Create a directory, and missing ones above it; an existing one is not an error. `shared`: as for mkdir."""
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

    def put_record(self, text: str, path: str, *, unique: bool = False) -> None:
        """Create `path` exclusively with a short text: as a symbolic link, or as a file if links are not supported."""
        try:
            self.symlink(text, path, unique=unique)
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

    def get_records(self, path: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """As `get_record`, of names in a directory, with one call each. Names that fail, and files, are left out."""
        readlink = os.readlink  # called for each of thousands of holders, so nothing else is done here
        with opening(path) as fd:
            for name in names:
                try:
                    yield name, readlink(name, dir_fd=fd)
                except OSError:
                    continue

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        """The text of a regular file of at most `limit` bytes; anything else raises OSError."""
        with opening(path, READ_ONLY) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            data = bytearray()
            while len(data) <= limit and (part := os.read(fd, min(limit + 1 - len(data), CHUNK))):
                data += part  # memory is taken for what there is, no more
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
        return data.decode("utf-8", "replace")

    def write_new(self, path: str, text: str, *, shared: bool = False) -> None:
        """Create a file exclusively and sync it to stable storage. `shared`: its group can read it."""
        fd = self.create(path)
        try:
            if shared:
                trees.give_mode(fd, stat.S_IMODE(os.fstat(fd).st_mode) | stat.S_IRGRP)
            self.write(fd, text.encode())
            self.sync(fd)
        finally:
            self.close(fd)

    def create(self, path: str, mode: int = 0o666) -> int:
        """Create a file exclusively, with the permissions in `mode` less the umask. Returns its descriptor."""
        return opened(path, _CREATE, mode=mode)

    def open(self, path: str) -> int:
        """Open a file for reading, never through a symbolic link."""
        return opened(path, READ_ONLY)

    def read(self, fd: int, size: int = CHUNK) -> bytes:
        """At most `size` bytes; empty at the end."""
        return os.read(fd, size)

    def write(self, fd: int, data: bytes) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def extract(self, directory: str) -> Extraction:
        """An Extraction into `directory`, which must be empty and private; a context manager."""
        from sccache_dtool.disk.extraction import Extraction

        return Extraction(self, directory)

    def seek(self, fd: int, offset: int) -> None:
        """Set the offset of the next read or write."""
        os.lseek(fd, offset, os.SEEK_SET)

    def extend(self, fd: int, size: int) -> None:
        """Extend a file by a hole, and set the offset to its end."""
        os.ftruncate(fd, size)
        os.lseek(fd, size, os.SEEK_SET)

    def data_in(self, fd: int, size: int) -> Iterator[tuple[int, int]]:
        """The ranges of data, without the holes, in the first `size` bytes of a file: start and end, end excluded.

        The whole range, if the file system does not report holes.
        """
        end = 0
        while end < size:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
                stop = os.lseek(fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: only a hole follows
                    yield end, size
                return
            if stop <= end or start >= size:
                return
            yield start, min(stop, size)
            end = stop

    def clone(self, source: int, target: int) -> bool:
        """Let an empty file share the blocks of another file, copy-on-write (ioctl_ficlone(2)).

        Returns False if the file system does not support that.
        """
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno in FULL:
                raise
            return False
        return True

    def sync(self, fd: int) -> None:
        """Wait until what was written to a file is on stable storage, where the file system can say so."""
        trees.sync(fd)

    def sync_directory(self, path: str) -> None:
        """Wait until the names in a directory are on stable storage, where the file system can say so."""
        with opening(path) as fd:
            trees.sync_directory(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor. A network file system may report a failed write here."""
        os.close(fd)

    # -- whole trees -------------------------------------------------------------------------------------------------

    usage = staticmethod(trees.usage)
    sample = staticmethod(trees.sample)
    seal = staticmethod(trees.seal)
    remove_tree = staticmethod(trees.remove_tree)
    move_tree = staticmethod(trees.move_tree)

    # -- the file system as a whole ----------------------------------------------------------------------------------

    def room(self, path: str) -> Room | None:
        """What it has. None if it does not report its size: some network file systems report zeros."""
        try:
            figures = os.statvfs(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            do_without(f"the file system does not report its free space ({error.strerror})")
            return None
        used = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
        free = figures.f_bavail * figures.f_frsize
        if used + free <= 0:
            do_without("the file system does not report its free space (it reports a size of 0)")
            return None
        return Room(used + free, free, figures.f_files, figures.f_favail)

    def free_space(self, path: str) -> int | None:
        """Free bytes for an unprivileged user; None if the file system does not report them, see `room`.

        For a path that does not exist yet: of the file system on which it would be created.
        """
        try:
            room = self.room(path)
        except FileNotFoundError:
            if os.path.dirname(path) == path:
                raise
            return self.free_space(os.path.dirname(path))
        return None if room is None else room.free
