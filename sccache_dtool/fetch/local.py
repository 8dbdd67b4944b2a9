"""Files and directories that this host can read: copied, with nothing that is special, and never while they change."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import Source
from sccache_dtool.fetch.sink import Sink
from sccache_dtool.fetch.versions import contains_cache, is_as_noted

SinkLike = TypeVar("SinkLike", bound=Sink)

_BLOCK = 512  # bytes in the unit of st_blocks, whatever the file system's own blocks are
_LEAST_WITH_HOLES = 1 << 16
_ZEROS = bytes(CHUNK)
_MOST_LINKS = 40  # as Linux has it: path_resolution(7)


def retrieve(context: Context, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Copy the file or directory that `source` names to `path`. Raises FetchFailed or OSError."""
    origin = _follow(context.fs, source.location)
    status = context.fs.lstat(origin)
    if not stat.S_ISDIR(status.st_mode):
        context.progress.start(source.name, data_in(context.fs, origin, status))
        copied = copy_into(context, origin, partial(context.sink, path, algorithms))
        return Retrieved(copied.digests(), status.st_size)
    if context.step:
        raise FetchFailed(
            f"cannot fetch {source.canonical}: it is a directory, and {context.step} needs a file", shared=True
        )
    context.progress.start(source.name, None)
    copy_directory(context, origin, path)
    return Retrieved({}, None)


def announced(source: Source) -> int | None:
    """Bytes of data in a file; None for a directory, or if nothing can be said."""
    try:
        status = os.stat(source.location)
        return data_in(FileSystem(), os.path.realpath(source.location), status)
    except OSError:
        return None


def is_unchanged(context: Context, source: Source, fact: Mapping[str, object]) -> bool:
    """Whether the source has the version that `fact` describes. Raises OSError."""
    return is_as_noted(source, fact)


def data_in(fs: FileSystem, path: str, status: os.stat_result) -> int | None:
    """Bytes of a file that are not in holes: what a copy of it will take up. None for what is not a file."""
    if not stat.S_ISREG(status.st_mode):
        return None
    if not _has_holes(status):
        return status.st_size
    try:
        fd = fs.open(path)
    except OSError:  # the copy will say why
        return status.st_size
    try:
        return sum(end - start for start, end in fs.data_in(fd, status.st_size))
    finally:
        fs.close(fd)


def _has_holes(status: os.stat_result) -> bool:
    """Whether a file takes up less than its length: it has holes, or its file system compresses it."""
    return status.st_size >= _LEAST_WITH_HOLES and status.st_blocks * _BLOCK < status.st_size


def _follow(fs: FileSystem, path: str) -> str:
    """The path that the symbolic links in the last component of `path` lead to."""
    for _ in range(_MOST_LINKS):
        try:
            text = fs.readlink(path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return path
            raise
        path = os.path.join(os.path.dirname(path), text).rstrip("/") or "/"
        directory, name = os.path.split(path)
        # As the kernel goes it: a path that leads upwards is refused where it lies in a cache, such as in a view.
        path = os.path.realpath(path) if name in ("", "..") else os.path.join(os.path.realpath(directory), name)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def copy_directory(context: Context, source: str, target: str) -> None:
    """Copy a tree; its symbolic links stay as they are, and what was private stays so."""
    fs = context.fs
    fs.mkdir(target, stat.S_IMODE(fs.lstat(source).st_mode) & 0o777 | 0o700)
    copy = fs.lstat(target)
    pending = [(source, target)]
    while pending:
        here, there = pending.pop()
        for name in fs.names(here):
            old, new = f"{here}/{name}", f"{there}/{name}"
            status = fs.lstat(old)
            if stat.S_ISDIR(status.st_mode):
                if os.path.samestat(status, copy):
                    raise contains_cache(source)
                fs.mkdir(new, stat.S_IMODE(status.st_mode) & 0o777 | 0o700)
                pending.append((old, new))
            elif stat.S_ISLNK(status.st_mode):
                fs.symlink(fs.readlink(old), new)
            else:
                copy_file(context, old, new, ())


def copy_file(context: Context, source: str, target: str, algorithms: Sequence[str]) -> dict[str, str]:
    """Copy one regular file with its permissions; its digests. Raises FetchFailed if it changes meanwhile."""
    return copy_into(context, source, partial(context.sink, target, algorithms)).digests()


def copy_into(context: Context, source: str, make: Callable[[int], SinkLike]) -> SinkLike:
    """As `copy_file`, into the sink that `make` returns for the permissions of the file."""
    fs = context.fs
    mode = fs.lstat(source).st_mode
    if not stat.S_ISREG(mode):  # before it is opened: to open a device may do something
        raise FetchFailed(f"cannot fetch {plain(source)}: it is {_kind(mode)}, neither a file nor a directory")
    fd = fs.open(source)
    try:
        before = fs.lstat(source)  # after it was opened: before that, NFS may show attributes that are a minute old
        with make(stat.S_IMODE(mode) & 0o777 | 0o600) as sink:
            if sink.algorithms or not sink.clone(fd):
                fill(fs, fd, before, sink)
            sink.finish()
        after = fs.lstat(source)
    finally:
        fs.close(fd)
    if sink.size < before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FetchFailed(
            f"cannot fetch {plain(source)}: it changed while it was copied",
            details=[f"{before.st_size} bytes at first, {sink.size} copied, {after.st_size} now"],
            hint="try again when no process writes to it",
        )
    return sink


def fill(fs: FileSystem, fd: int, status: os.stat_result, sink: Sink) -> None:
    """Copy what is open, and has this status; what is a hole there becomes one in the copy."""
    if _has_holes(status):
        for start, end in fs.data_in(fd, status.st_size):
            sink.skip(start - sink.size)
            fs.seek(fd, start)
            while sink.size < end and (data := fs.read(fd, min(CHUNK, end - sink.size))):
                if data == _ZEROS[: len(data)]:  # a file system that does not tell where holes are reads them as data
                    sink.skip(len(data), counted=True)
                else:
                    sink.write(data)
        sink.skip(max(0, status.st_size - sink.size))
        fs.seek(fd, sink.size)
    while data := fs.read(fd, CHUNK):
        sink.write(data)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something special")
