"""Loose files: what dtool's own brokers left in the cache, for want of the plugin. LooseFiles, and counted.

The root may hold anything else as well, so a file counts as theirs only if its name is one that brokers write, nothing
else is in its directory, and that is named by a UUID or by the cache's settings (dtool-http names directories by the
path of a URL, which may be any). Datasets are never entered, symbolic links never followed, and nothing outside the
root or on another file system is looked at.

Nobody holds leases on loose files, so only their age tells whether they may be in use. Age is counted from the
newest of their times. An access time may make a file younger, and so keep it; whether it is kept up at all depends on
the mount, so it never makes one older.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from sccache_dtool.catalog.broker_names import LooseName, are_loose, is_uuid
from sccache_dtool.disk.filesystem import Entry, FileSystem
from sccache_dtool.errors import GONE
from sccache_dtool.oddity import Oddity
from sccache_dtool.patterns import matches_any, note_matching
from sccache_dtool.pool import Pool
from sccache_dtool.protocol.store import Store

#: Seconds for which a loose file is kept where no rule says how old is old enough, and a partial one always.
YOUNG = 86_400.0

#: What a dataset's directory has in it, and a cache's has not.
_DATASET = ".dtool"

_DEEPEST = 12

#: Where brokers make their directories; the latter are from times when each kind of storage had a cache of its own.
_PARENTS = frozenset({"", "s3", "http", "azure", "irods", "ecs"})


class Stamp(NamedTuple):
    """Tells whether a file is still the same, and unchanged."""

    device: int
    inode: int
    size: int
    changed: int  # the modification time in nanoseconds


class Loose(NamedTuple):
    """A file that dtool left, as a scan saw it."""

    directory: str  # relative to the root
    name: str
    bytes: int
    newest: float  # seconds since 1970, by the file system's clock
    uid: int
    stamp: Stamp

    @property
    def path(self) -> str:
        """Relative to the root."""
        return f"{self.directory}/{self.name}"

    @property
    def partial(self) -> bool:
        """Whether this is a download that goes on, or that was broken off."""
        parsed = LooseName.parse(self.name)
        return parsed is None or parsed.partial

    def is_broken(self, now: float) -> bool:
        """Whether this is a download that was broken off: nobody has touched it for a day."""
        return now - self.newest > YOUNG and self.partial


class LooseDirectory(NamedTuple):
    """The loose files of one directory, summed up."""

    directory: str
    files: int
    bytes: int
    newest: float
    bytes_of: dict[int, int]  # by user id
    old_files: int = 0  # those not excluded, and not touched since a given time
    old_bytes: int = 0

    @property
    def dataset(self) -> str:
        """The dataset's UUID or, where it is not known, the directory."""
        last = self.directory.rpartition("/")[2]
        return last if is_uuid(last) else self.directory


class LooseFiles(NamedTuple):
    """What a scan found: files, and empty directories that are old enough to go."""

    files: tuple[Loose, ...] = ()
    deserted: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()  # patterns of directories that no directory matches


Statuses = Iterable[tuple[str, os.stat_result]]

#: The bits of a mode that tell what kind of file it is (inode(7)).
_KIND = 0o170000
Sum = TypeVar("Sum")


def scan(store: Store, now: float, pool: Pool, named: Collection[str] = ()) -> LooseFiles:
    """All loose files of a cache. `now`: the file system's clock. Never dies of one bad entry.

    `named`: patterns of directories below the root in which brokers write and nobody else.
    """
    files: list[Loose] = []
    deserted: list[str] = []
    matched: set[str] = set()
    for visit in _visits(store, now, pool, named, _files):
        note_matching(named, visit.directory, matched)
        files.extend(visit.found or ())
        if visit.deserted:
            deserted.append(visit.directory)
    unmatched = tuple(pattern for pattern in named if pattern not in matched)
    return LooseFiles(tuple(sorted(files)), tuple(sorted(deserted)), unmatched)


def sum_directories(
    store: Store,
    pool: Pool,
    named: Collection[str] = (),
    *,
    untouched_since: float = 0.0,
    exclude: tuple[str, ...] = (),
) -> Iterator[LooseDirectory]:
    """The loose files of a cache, summed up by directory: what `du` needs, in a fraction of the memory."""
    fold = functools.partial(_sum_directory, untouched_since, exclude)
    for visit in _visits(store, 0.0, pool, named, fold):
        if visit.found is not None and visit.found.files:
            yield visit.found


def _files(directory: str, statuses: Statuses) -> list[Loose]:
    found = []
    for name, status in statuses:
        if stat.S_ISREG(status.st_mode):
            found.append(Loose(directory, name, status.st_size, newest_of(status), status.st_uid, stamp_of(status)))
        else:
            _refuse_directory(status.st_mode)
    return found


def _sum_directory(
    untouched_since: float, exclude: tuple[str, ...], directory: str, statuses: Statuses
) -> LooseDirectory:
    """The sum of one directory. Once for each of a million files: no calls but where there is something to do.

    A status is unpacked by its places (see `os.stat_result`), which are fewer steps than its names; its times are
    whole seconds there, which is near enough for an account.
    """
    files = size = old = old_size = 0
    newest = 0.0
    bytes_of: dict[int, int] = {}
    owner, before = -1, 0  # whose file the last one was, and the sum of those before his
    for name, (mode, _, _, _, uid, _, mine, read, touched, changed) in statuses:
        if mode & _KIND != stat.S_IFREG:
            _refuse_directory(mode)
            continue
        files += 1
        if uid != owner:
            bytes_of[owner] = bytes_of.get(owner, 0) + size - before
            owner, before = uid, size
        size += mine
        if changed > touched:
            touched = changed
        if read > touched:
            touched = read
        if touched > newest:
            newest = touched
        if touched <= untouched_since and not (exclude and matches_any(exclude, f"{directory}/{name}")):
            old += 1
            old_size += mine
    bytes_of[owner] = bytes_of.get(owner, 0) + size - before
    bytes_of.pop(-1, None)  # before the first file
    return LooseDirectory(directory, files, size, newest, bytes_of, old, old_size)


def _refuse_directory(mode: int) -> None:
    """Raises IsADirectoryError for a directory, which no broker makes beside its files."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError


class _Visit(NamedTuple, Generic[Sum]):
    """What there was in one directory."""

    directory: str
    found: Sum | None = None
    below: tuple[str, ...] = ()
    deserted: bool = False
    oddity: Oddity | None = None


#: Directories that are visited as one piece of work, so that handing it out costs little beside it.
_AT_ONCE = 8


def _visits(
    store: Store,
    now: float,
    pool: Pool,
    named: Collection[str],
    fold: Callable[[str, Statuses], Sum],
) -> Iterator[_Visit[Sum]]:
    """A visit of every directory in which there may be loose files, level by level."""
    where = _Scan(store.fs, store.layout.root, store.fs.lstat(f"{store.layout.root}/.").st_dev, now, tuple(named))
    work = functools.partial(_visit, where, fold)
    level = [""]
    while level:
        below: list[str] = []
        for visit in pool.each_in_pieces(work, level, _AT_ONCE):
            if visit.oddity is not None:
                store.log.warning(visit.oddity)
            below += visit.below
            yield visit
        level = below


class _Scan(NamedTuple):
    """What is the same for all visits."""

    fs: FileSystem
    root: str
    device: int
    now: float
    named: tuple[str, ...]


def _visit(where: _Scan, fold: Callable[[str, Statuses], Sum], directory: str) -> _Visit[Sum]:
    """What is in one directory, if it is one that brokers alone can have made.

    Brokers write a dataset's items into one flat directory, and nothing else. A manifest or a directory beside them
    is a copy of a dataset's own store (that of S3 has its items in `data/`), and SHA-1 names alone are anybody's:
    such a directory is left alone, at the price of some that plain dtool-http made.
    """
    fs, path = where.fs, f"{where.root}/{directory or '.'}"
    try:
        with fs.open_directory(path) as handle:
            status = fs.fstat(handle.directory)
            if status.st_dev != where.device:
                return _Visit(directory)
            if directory and (_is_uuid_of(directory) or matches_any(where.named, directory)):
                names = fs.names(path, via=handle)
                if names and are_loose(names):
                    return _Visit(directory, fold(directory, fs.statuses(path, names, via=handle)))
            entries = fs.entries(path, via=handle)
    except IsADirectoryError:
        return _Visit(directory)
    except OSError as error:
        if error.errno in GONE:
            return _Visit(directory)
        odd = Oddity(path, str(error.strerror), "loose files there are not counted")
        return _Visit(directory, oddity=odd)
    if any(entry.name == _DATASET for entry in entries) or (directory and not all(one.is_dir for one in entries)):
        return _Visit(directory)
    old = not entries and _is_made_by_broker(directory) and where.now - newest_of(status, atime=False) > YOUNG
    return _Visit(directory, None, _below(directory, entries), old)


def _below(directory: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    if directory.count("/") >= _DEEPEST:
        return ()
    return tuple(
        f"{directory}/{entry.name}".lstrip("/") for entry in entries if entry.is_dir and not entry.name.startswith(".")
    )


def _is_uuid_of(directory: str) -> bool:
    return is_uuid(directory.rpartition("/")[2])


def _is_made_by_broker(directory: str) -> bool:
    """Whether an empty directory can be nothing but a dataset's; elsewhere, somebody's program may expect it."""
    return _is_uuid_of(directory) and directory.rpartition("/")[0] in _PARENTS


def newest_of(status: object, *, atime: bool = True) -> float:
    """When a file was touched last, in seconds since 1970."""
    times = [getattr(status, "st_mtime", 0.0), getattr(status, "st_ctime", 0.0)]
    return float(max(*times, getattr(status, "st_atime", 0.0) if atime else 0.0))


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file with this status."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
