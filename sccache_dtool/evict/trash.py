"""Letting go: close the gate, rename into the trash, delete there at leisure, or restore from there.

Every step may be repeated by anyone, and needs no lock. What is in the trash was closed before, so nobody holds it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.clock import NO_DEADLINE, Deadline
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import Entry, FileSystem
from sccache_dtool.disk.names import (
    GATE,
    ITEM_FILE,
    PAYLOAD,
    TRASHED,
    Generation,
    KeptName,
    Purpose,
    TrashName,
    WorkName,
    is_key,
    understood,
    unique,
)
from sccache_dtool.disk.nofollow import DirectoryHandle
from sccache_dtool.errors import FULL, GONE, NOT_EMPTY, Expected, explain
from sccache_dtool.policy.thresholds import Trashed
from sccache_dtool.pool import THREADS, Pool
from sccache_dtool.protocol import gate
from sccache_dtool.protocol.gate import Closing
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.store import Store


class Outcome(StrEnum):
    """What became of an eviction."""

    EVICTED = "evicted"
    IN_USE = "in use"
    ALREADY_GONE = "already gone"


class EvictionResult(NamedTuple):
    """What became of what was to be evicted, or why that failed; neither: there was no time left."""

    outcome: Outcome | None
    reason: str | None = None


NO_TIME = EvictionResult(None)


def name_of(generation: str, keep_until: int) -> str:
    """What an evicted copy is called in the trash. Raises ValueError for what names no copy."""
    parsed = Generation.parse(generation)
    if parsed is None:
        raise ValueError(f"{generation!r} is not a generation")
    return str(TrashName(parsed, keep_until, going=not keep_until))


def evict(store: Store, key: str, generation: str, keep_until: int = 0) -> Outcome:
    """Ask the file system whether a copy is in use and, if it is not, move it into the trash.

    `keep_until`: seconds since 1970 until which `restore` is to find it; 0: nobody wants it, so that its removal has
    begun, and the next purge goes on with it. A copy whose gate was closed before is kept at least for as long as
    whoever closed it wanted: that eviction was interrupted, and this call finishes it.
    """
    name_of(generation, keep_until)
    directory = store.layout.generation(key, generation)
    try:
        item = store.fs.open_directory(store.layout.item(key))
    except FileNotFoundError:
        return Outcome.ALREADY_GONE
    with item:
        kept = f"{directory}/{KeptName(keep_until)}" if keep_until else None
        if kept is not None and not _noted(store.fs, kept):
            return Outcome.ALREADY_GONE
        closing = gate.closing(store.fs, f"{directory}/{GATE}", item)
        if closing is Closing.IN_USE:
            if kept is not None:
                with contextlib.suppress(OSError):
                    store.fs.unlink(kept)
            return Outcome.IN_USE
        if closing is Closing.CLOSED_BEFORE:
            keep_until = max(keep_until, _kept_until(store.fs, directory, item))
        trashed = name_of(generation, keep_until)
        try:
            store.fs.rename(directory, f"{store.layout.trash}/{trashed}", via=item)
        except OSError as error:
            if error.errno == errno.EXDEV:
                _part_from(store, directory, f"{store.layout.trash}/{trashed}" if keep_until else None)
            elif error.errno in GONE:
                return Outcome.ALREADY_GONE
            else:
                raise
    return Outcome.EVICTED


def _noted(fs: FileSystem, note: str) -> bool:
    """Note in a copy until when it is to be kept, before its gate is closed; False if the copy is gone.

    If this process is killed before the copy is in the trash, whoever finishes the eviction keeps it as long. On a
    full disk there is no note: evicting makes room.
    """
    with Expected(GONE):
        with Expected(FULL | {errno.EEXIST}):
            fs.put_record("-", note)
        return True
    return False


def _kept_until(fs: FileSystem, directory: str, via: DirectoryHandle) -> int:
    """Until when whoever began to evict a copy wanted it to be kept, in seconds since 1970; 0: not at all."""
    with Expected(GONE):
        found = map(KeptName.parse, fs.names(directory, via=via))
        return max((note.until for note in found if note), default=0)
    return 0


def _part_from(store: Store, directory: str, trashed: str | None) -> None:
    """Evict a closed copy whose directory cannot be renamed (EXDEV), such as one in the lower layer of an overlay.

    What nobody wants back is deleted in its place. The rest is moved in parts, its description last: without that,
    nobody restores it.
    """
    if trashed is None:
        store.fs.remove_tree(directory)
        return
    store.fs.mkdir(trashed, shared=store.layout.shared)
    for entry in sorted(store.fs.entries(directory), key=lambda entry: entry.name == ITEM_FILE):
        move = store.fs.move_tree if entry.is_dir else store.fs.rename
        move(f"{directory}/{entry.name}", f"{trashed}/{entry.name}")
    store.fs.rmdir(directory)


class Purged(NamedTuple):
    """What a purge has done: copies that it deleted, and those that are still to be deleted, with their bytes."""

    copies: int = 0
    left: int = 0
    left_bytes: int = 0


def purge(store: Store, now: float, pool: Pool | None = None, deadline: Deadline = NO_DEADLINE) -> Purged:
    """Delete what in the trash is not to be kept any longer.

    `pool`: does the work; `deadline`: after which the rest is left for the next purge.
    """
    pool = pool or Pool()
    expired = [name for name in listing(store) if is_expired(name, now)]
    for name in expired:
        if name.generation.entries > LARGE:
            _empty(store.fs, f"{store.layout.trash}/{_going(store, name)}", pool, deadline)
    purged = Purged()
    pieces = [expired[i : i + _AT_ONCE] for i in range(0, len(expired), _AT_ONCE)]
    for part, warnings in pool.each(functools.partial(_remove_each, store, deadline), pieces):
        purged = Purged(*map(operator.add, purged, part))
        for warning in warnings:
            store.log.warning(warning)
    return purged


def purge_copy(store: Store, generation: str) -> None:
    """Delete one copy that was evicted for good; one that somebody wants to keep has another name."""
    try:
        store.fs.remove_tree(f"{store.layout.trash}/{name_of(generation, 0)}")
    except OSError as error:
        if error.errno not in GONE:
            store.log.warning(f"{explain(error)}; the rest of this evicted copy is left for the next clean")


#: Copies that are removed as one piece of work, and names of one directory.
_AT_ONCE, NAMES_AT_ONCE = 32, 1000

#: Entries above which a copy is worth being removed by several at a time.
LARGE = 10_000


def is_expired(name: TrashName, now: float) -> bool:
    """Whether nobody wants it back any more."""
    return name.going or name.keep_until <= now


def total_of(names: Iterable[TrashName]) -> Trashed:
    """What these take, and how long the last of them is kept."""
    trashed = Trashed()
    for name in names:
        until = 0 if name.going else name.keep_until
        trashed = trashed.more(name.generation.bytes, name.generation.entries, until)
    return trashed


def _going(store: Store, name: TrashName) -> TrashName:
    """Say by its name that a copy's removal has begun: it is not whole any more. Returns the new name."""
    going = name._replace(going=True)
    if not name.going:
        try:
            store.fs.rename(f"{store.layout.trash}/{name}", f"{store.layout.trash}/{going}")
        except FileNotFoundError:
            pass  # somebody else has said so, or the reply was lost
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with contextlib.suppress(FileNotFoundError):  # the name cannot change: see `_part_from`
                store.fs.unlink(f"{store.layout.trash}/{name}/{ITEM_FILE}")
            return name
    return going


def _remove_each(store: Store, deadline: Deadline, names: Sequence[TrashName]) -> tuple[Purged, list[str]]:
    copies, left, warnings = 0, list[TrashName](), list[str]()
    with store.fs.open_directory(store.layout.trash) as handle:
        for name in names:
            if deadline.is_over():
                left.append(name)
                continue
            try:
                store.fs.remove_tree(f"{store.layout.trash}/{_going(store, name)}", via=handle)
                copies += 1
            except OSError as error:
                if error.errno not in GONE:
                    left.append(name)
                    warnings.append(f"{explain(error)}; the rest of this evicted copy is left for the next clean")
    return Purged(copies, len(left), sum(name.generation.bytes for name in left)), warnings


def _empty(fs: FileSystem, path: str, pool: Pool, deadline: Deadline) -> None:
    """Remove most of a large tree, many parts at a time; what is left is for `remove_tree`, errors included."""
    pending = [path]
    while pending and len(pending) < 4 * THREADS:
        below = [f"{directory}/{one.name}" for directory in pending for one in _entries(fs, directory) if one.is_dir]
        if not below:
            break
        pending = below
    for directory in [path, *pending]:
        names = [entry.name for entry in _entries(fs, directory) if not entry.is_dir]
        pieces = [names[i : i + NAMES_AT_ONCE] for i in range(0, len(names), NAMES_AT_ONCE)]
        deque(pool.each(functools.partial(_remove_if_time, deadline, fs.unlink_all, directory), pieces), maxlen=0)
    if pending != [path]:
        deque(pool.each(functools.partial(_remove_if_time, deadline, fs.remove_tree), pending), maxlen=0)


def _entries(fs: FileSystem, path: str) -> list[Entry]:
    with contextlib.suppress(OSError):
        return fs.entries(path)
    return []


def _remove_if_time(deadline: Deadline, remove: Callable[..., object], *what: object) -> None:
    if not deadline.is_over():
        with contextlib.suppress(OSError):
            remove(*what)


def listing(store: Store) -> Iterator[TrashName]:
    """What is in the trash."""
    trash = store.layout.trash
    return understood(trash, store.fs.names(trash), TrashName.parse, "not an evicted copy", store.log)


def restorable(store: Store) -> Iterator[tuple[str, TrashName]]:
    """Keys of the items in the trash that are still whole, and where they are."""
    for name in listing(store):
        if name.going:
            continue
        path = f"{store.layout.trash}/{name}"
        try:
            facts = ItemFacts.decode(store.fs.read_text(f"{path}/{ITEM_FILE}"))
            if facts.loose is not None:
                continue  # a loose file was not an item, and is not one now
            key = _key_in(facts, store.fs.names_if_any(f"{path}/{PAYLOAD}"))
        except (OSError, records.Damaged) as error:
            if str(name) in store.fs.names(store.layout.trash):  # otherwise somebody has just purged or restored it
                reason = explain(error) if isinstance(error, OSError) else error
                store.report(path, f"incomplete ({reason})", "it cannot be restored")
        else:
            yield key, name


def facts_of(store: Store, name: TrashName) -> ItemFacts:
    """What was noted when a trashed copy was fetched; empty if that cannot be read."""
    with contextlib.suppress(OSError, records.Damaged):
        return ItemFacts.decode(store.fs.read_text(f"{store.layout.trash}/{name}/{ITEM_FILE}"))
    return ItemFacts()


def _key_in(facts: ItemFacts, payload: Sequence[str]) -> str:
    """The key of a trashed copy of which this is the description. Raises records.Damaged."""
    key = facts.key
    if key is None or not is_key(key):
        raise records.Damaged("its item.json does not name an item")
    if len(payload) != 1 and facts.payload not in payload:  # programs may have put an index beside it
        raise records.Damaged("its payload is missing")
    return key


def restore(store: Store, holder: Holder, key: str, name: TrashName) -> bool:
    """Publish an evicted copy again, under a new name, since a closed one is never used again.

    False if it has gone from the trash meanwhile: the rename out of it lets one of restorer and purger win. Its
    content goes into a new directory: a client that has the old one cached could take a lease by its old path.

    The copy is never anywhere but in the trash, in a work area whose name says what it was called there, or published.
    If anything fails it is returned to the trash, by this call or, if that is refused too or this process is killed,
    by whoever calls `give_back` next. Raises OSError.
    """
    work = WorkName(holder.next_lease(), Purpose.RESTORE, str(name))
    area, trashed = f"{store.layout.tmp}/{work}", f"{store.layout.tmp}/{work}/{TRASHED}"
    emptied = f"{store.layout.tmp}/{WorkName(holder.next_lease(), Purpose.EMPTIED)}"
    published = False
    try:
        store.fs.mkdir(area, shared=store.layout.shared)
        store.fs.mkdir(f"{area}/{GATE}", shared=store.layout.shared)
        store.fs.make_dirs(store.layout.history(key), shared=store.layout.shared)
        if not _moved(store.fs, f"{store.layout.trash}/{name}", trashed):
            return False
        for part in (PAYLOAD, ITEM_FILE):
            if not _moved(store.fs, f"{trashed}/{part}", f"{area}/{part}"):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{trashed}/{part}")
        _moved(store.fs, trashed, emptied)
        generation = name.generation._replace(random=unique(), created=int(store.clock.wall()))
        published = _published(store.fs, area, store.layout.generation(key, str(generation)))
        if not published:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), area)
    finally:
        with contextlib.suppress(OSError):
            if not published:
                give_back(store, work)
            store.fs.remove_tree(emptied)
    return True


def _published(fs: FileSystem, area: str, target: str) -> bool:
    """As `_moved`; an error that the server reports after it has done the rename is not one."""
    try:
        return _moved(fs, area, target)
    except OSError:
        if not _is_listed(fs, target):
            raise
        return True


def give_back(store: Store, work: WorkName) -> bool:
    """Return to the trash what `restore` took from there, under its old name; False if it had nothing.

    Anybody may call it once the holder is proved dead, several at once, and again after it was interrupted. The work
    area gets another name first, so that a restorer that was only paused cannot publish it any more. Nothing is removed
    but what the file system says to be empty: a paused restorer may still move the copy into it.
    """
    area = f"{store.layout.tmp}/{work._replace(purpose=Purpose.RETURN)}"
    if work.purpose != Purpose.RETURN:
        with Expected(GONE):  # it was published, or somebody else has done this
            store.fs.rename(f"{store.layout.tmp}/{work}", area)
    with Expected(GONE | NOT_EMPTY):
        store.fs.rmdir(f"{area}/{GATE}")
    with Expected(GONE):
        with Expected(NOT_EMPTY):
            store.fs.rmdir(area)
            return False
        for part in (PAYLOAD, ITEM_FILE):  # only now: before, the copy could still come in
            with Expected(GONE):
                store.fs.rename(f"{area}/{TRASHED}/{part}", f"{area}/{part}")
        with Expected(GONE | NOT_EMPTY):
            store.fs.rmdir(f"{area}/{TRASHED}")
        store.fs.rename(area, f"{store.layout.trash}/{work.of}")
        return True
    return False


def _moved(fs: FileSystem, source: str, target: str) -> bool:
    """Rename; False if there was nothing to rename. A target that is there after all says that a reply was lost."""
    with Expected(GONE):
        fs.rename(source, target)
        return True
    return _is_listed(fs, target)


def _is_listed(fs: FileSystem, path: str) -> bool:
    directory, _, name = path.rpartition("/")
    return name in fs.names(directory)


def discard_work(store: Store, work: WorkName) -> bool:
    """Remove a work area whose holder is gone; False if it was published or removed meanwhile.

    It is renamed before anything in it is deleted: whoever was only paused, and wakes up, must not publish half.
    """
    going = f"{store.layout.tmp}/{work._replace(purpose=Purpose.GOING)}"
    if work.purpose != Purpose.GOING:
        try:
            store.fs.rename(f"{store.layout.tmp}/{work}", going)
        except OSError as error:
            if error.errno in NOT_EMPTY | GONE:
                return False
            if error.errno != errno.EXDEV:
                raise
            # See `_part_from`: what was there before this mount is nobody's any more.
            going = f"{store.layout.tmp}/{work}"
    store.fs.remove_tree(going)
    return True
