"""Letting loose files go: through the trash, so that what is a fresh file after all can be put back.

Brokers know nothing of sc-dtool, and may put a file in an old one's place at any moment.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.loose import Loose, LooseFiles, newest_of, stamp_of
from sccache_dtool.clock import NO_DEADLINE, Deadline
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import ITEM_FILE, PAYLOAD, Generation, Purpose, TrashName, WorkName, unique
from sccache_dtool.errors import FULL, GONE, NOT_EMPTY, Expected, explain
from sccache_dtool.evict.leftovers import Leftover
from sccache_dtool.evict.trash import NO_TIME, EvictionResult, Outcome
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.store import Store


def remove(
    store: Store,
    holder: Holder | None,
    files: Iterable[Loose],
    keep_until: int,
    now: float,
    record: Callable[[Loose, EvictionResult], None],
    deadline: Deadline = NO_DEADLINE,
) -> None:
    """Let loose files go, and report what became of each, even if that is broken off; what has changed since stays.

    All of them are one entry in the trash. If there is not enough space for the entry (or no `holder`, see
    `Cleaner._worker_if_room`), they are deleted at once, or stay if they are to be kept in the trash.
    """
    listed = sorted(files)
    entry = _TrashEntry.made(store, holder, listed, keep_until, now) if holder is not None else None
    if entry is None and keep_until:
        for one in listed:
            record(
                one,
                EvictionResult(None, "not enough space for it in the trash; without --trash, it is deleted at once"),
            )
        return
    bin = entry or _Deletion(store, now)
    try:
        for directory, group in groupby(listed, key=lambda one: one.directory):
            _remove_from(store, directory, list(group), bin, record, deadline)
    finally:
        bin.close()


def _remove_from(
    store: Store,
    directory: str,
    files: Sequence[Loose],
    bin: _TrashEntry | _Deletion,
    record: Callable[[Loose, EvictionResult], None],
    deadline: Deadline,
) -> None:
    try:
        fd = store.fs.open_below(store.layout.root, directory)
    except OSError as error:
        for one in files:
            record(one, EvictionResult(None, explain(error)))
        return
    try:
        for one in files:
            record(one, NO_TIME if deadline.is_over() else _removed(store.fs, bin, fd, one, record))
    finally:
        store.fs.close(fd)


def _removed(
    fs: FileSystem, bin: _TrashEntry | _Deletion, fd: int, one: Loose, record: Callable[[Loose, EvictionResult], None]
) -> EvictionResult:
    target = bin.target(one)
    try:
        if not _move(fs, fd, one, target):
            return EvictionResult(Outcome.IN_USE)
        bin.add(one)
        return EvictionResult(Outcome.EVICTED)
    except OSError as error:
        return EvictionResult(None, explain(error))
    except BaseException:  # the process is to end, and the file may be in there already
        if _is_moved_correctly(fs, fd, one, target):
            bin.add(one)
            record(one, EvictionResult(Outcome.EVICTED))
        raise


class _TrashEntry:
    """An entry in the trash for loose files. By rename, as items go: who has one open reads on, on NFS too.

    One that is to be kept is in the trash from the first file on, so that it is even if this process is killed. Before
    that, and without anything to be kept, it is a work area: a purge of somebody else's would take it away meanwhile.
    """

    def __init__(self, store: Store, path: str, name: TrashName) -> None:
        self._store = store
        self._path = path
        self._name = name
        self._files: set[Loose] = set()

    @classmethod
    def made(
        cls, store: Store, holder: Holder, files: Sequence[Loose], keep_until: int, now: float
    ) -> _TrashEntry | None:
        """An empty entry; None if there is not enough space for it."""
        generation = Generation(unique(), int(now), sum(one.bytes for one in files), len(files) + 1)
        name = TrashName(generation, keep_until, going=not keep_until)
        note = ItemFacts(loose=len(files), first=records.printable(files[0].path))
        area = f"{store.layout.tmp}/{WorkName(holder.next_lease(), Purpose.LOOSE)}"
        try:
            store.fs.mkdir(area, shared=store.layout.shared)
            store.fs.mkdir(f"{area}/{PAYLOAD}", shared=store.layout.shared)
            store.fs.write_new(f"{area}/{ITEM_FILE}", note.encode(), shared=store.layout.shared)
            if keep_until:
                store.fs.rename(area, f"{store.layout.trash}/{name}")
        except OSError as error:
            with contextlib.suppress(OSError):
                store.fs.remove_tree(area)
            if error.errno not in FULL:
                raise
            return None
        return cls(store, f"{store.layout.trash}/{name}" if keep_until else area, name)

    def target(self, one: Loose) -> str:
        """Where a file is to be moved."""
        return f"{self._path}/{PAYLOAD}/{len(self._files)}"

    def add(self, one: Loose) -> None:
        """Count a file that was moved in."""
        self._files.add(one)

    def close(self) -> None:
        """Say by the name what is in here; without a file there is no entry."""
        if not self._files:
            self._store.fs.remove_tree(self._path)
            return
        size = sum(one.bytes for one in self._files)
        generation = self._name.generation._replace(bytes=size, entries=len(self._files) + 1)
        path = f"{self._store.layout.trash}/{self._name._replace(generation=generation)}"
        if path != self._path:
            self._store.fs.rename(self._path, path)


class _Deletion:
    """Deletes loose files for which the trash has not enough space: each is renamed into it, then deleted.

    A rename takes no room. A file that was put there in the last moment can be put back, which no `unlink` can.
    """

    def __init__(self, store: Store, now: float) -> None:
        self._store = store
        self._name = unique()
        self._now = int(now)

    def target(self, one: Loose) -> str:
        """Where a file is to be moved."""
        return f"{self._store.layout.trash}/{TrashName(Generation(self._name, self._now, one.bytes, 1), 0, going=True)}"

    def add(self, one: Loose) -> None:
        """Delete a file that was moved."""
        with contextlib.suppress(OSError):  # the purge tries again
            self._store.fs.unlink(self.target(one))

    def close(self) -> None:
        """Nothing is left to be done."""


def _move(fs: FileSystem, directory: int, one: Loose, target: str) -> bool:
    """Move a file out of its directory; False if it is not the one that the scan saw, or gone."""
    try:
        status = fs.lstat_in(directory, one.name)
        if stamp_of(status) != one.stamp or newest_of(status) != one.newest:
            return False
        fs.move_out(directory, one.name, target)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    return _is_moved_correctly(fs, directory, one, target)


def _is_moved_correctly(fs: FileSystem, directory: int, one: Loose, target: str) -> bool:
    """Whether a file was moved; another one, which a broker has just put in its place, is put back."""
    try:
        if stamp_of(fs.lstat(target)) == one.stamp:
            return True
    except FileNotFoundError:
        return False
    fs.move_back(target, directory, one.name)
    return False


def remove_partial(store: Store, one: Loose) -> None:
    """Unlink what a broken download left. Raises FileNotFoundError if it is gone or has changed."""
    fd = store.fs.open_below(store.layout.root, one.directory)
    try:
        status = store.fs.lstat_in(fd, one.name)
        if stamp_of(status) != one.stamp:
            raise FileNotFoundError(one.path)
        store.fs.unlink_in(fd, one.name)
    finally:
        store.fs.close(fd)


def remove_directory(store: Store, directory: str) -> None:
    """Remove an empty directory; one that is not empty any more stays, which is not an error."""
    parent, _, name = directory.rpartition("/")
    fd = store.fs.open_below(store.layout.root, parent or ".")
    try:
        with Expected(NOT_EMPTY):
            store.fs.rmdir_in(fd, name)
    finally:
        store.fs.close(fd)


def leftovers(store: Store, found: LooseFiles, now: float) -> Iterator[Leftover]:
    """Broken downloads, and directories in which nothing has been for so long that no broker is about to use them."""
    for one in found.files:
        if one.is_broken(now):
            put_away = functools.partial(remove_partial, store, one)
            yield Leftover(f"{store.layout.root}/{one.path}", "left by an interrupted download of dtool", put_away)
    for directory in found.deserted:
        put_away = functools.partial(remove_directory, store, directory)
        yield Leftover(f"{store.layout.root}/{directory}", "an empty directory left by dtool", put_away)
