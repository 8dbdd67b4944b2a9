"""What is in the cache: a scan that reads directories and opens no file, and never dies of one bad entry."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.clock import iso
from sccache_dtool.disk import names, records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import (
    GATE,
    HISTORY,
    ITEM_FILE,
    PAYLOAD,
    Generation,
    LeaseName,
    Purpose,
    WorkName,
    only_if,
    understood,
)
from sccache_dtool.disk.nofollow import DirectoryHandle, near
from sccache_dtool.errors import GONE, Expected
from sccache_dtool.log import Collected
from sccache_dtool.oddity import Fate
from sccache_dtool.protocol import history
from sccache_dtool.protocol.leases import Held
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple

if TYPE_CHECKING:
    from sccache_dtool.pool import Pool

Sum = TypeVar("Sum")


class Copy(NamedTuple):
    """One generation of an item as a scan saw it."""

    key: str
    generation: Generation
    closed: bool  # its gate is gone: nobody can use it any more, its eviction was interrupted
    held: tuple[Held, ...]


class Item(NamedTuple):
    """An item as a scan saw it; a hint, as every listing is. Times in seconds since 1970, sizes in bytes."""

    key: str
    copies: tuple[Copy, ...]  # the newest first
    finished_uses: int
    last_end: float | None
    unfolded: int = 0  # names in its history
    noted_name: str | None = None  # by `item.json`, if the key has only the front and the end of the name

    @property
    def name(self) -> str | None:
        """Its name; None if that is too long for the key and cannot be read."""
        return self.noted_name or names.key_name(self.key)

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.noted_name or names.key_label(self.key)

    @property
    def bytes(self) -> int:
        """What its copies take up."""
        return sum(copy.generation.bytes for copy in self.copies)

    @property
    def leases(self) -> int:
        """How many leases are held."""
        return sum(len(copy.held) for copy in self.copies)

    @property
    def held(self) -> list[Held]:
        """The leases on all its copies."""
        return [held for copy in self.copies for held in copy.held]

    @property
    def uses(self) -> int:
        """How many leases there ever were."""
        return self.finished_uses + self.leases

    @property
    def newest(self) -> Copy | None:
        """The copy that was fetched last, of those that can be used; the others are older versions, or duplicates."""
        return next((copy for copy in self.copies if not copy.closed), None)

    @property
    def idle_since(self) -> float:
        """When the last use ended or, if there was none, when it was fetched."""
        fetched = max((float(copy.generation.created) for copy in self.copies), default=0.0)
        return max(self.last_end or 0.0, fetched)


#: Stands for the leases in a gate that cannot be listed.
UNLISTED = "?"


def shards(store: Store) -> list[str]:
    """The directories that items are in, ordered."""
    directory = store.layout.items
    found = _listing(store, directory)
    return list(understood(directory, found, only_if(names.is_shard), "not part of the cache", store.log))


def unsettled(items: Iterator[Item]) -> list[Item]:
    """Those of the items that somebody uses, or that are half way into the trash."""
    return [item for item in items if any(copy.held or copy.closed for copy in item.copies)]


def keys(store: Store) -> Iterator[str]:
    """The keys of all items, ordered."""
    for shard in shards(store):
        yield from _keys_in(store, shard)


def _keys_in(store: Store, shard: str, via: DirectoryHandle | None = None) -> Iterator[str]:
    directory = f"{store.layout.items}/{shard}"
    is_item = only_if(lambda key: names.is_key(key) and key.startswith(shard))
    return understood(directory, _listing(store, directory, via), is_item, "not an item", store.log)


def scan(store: Store) -> Iterator[Item]:
    """All items of the cache, evicted ones that have a history included, ordered by key."""
    return (look(store, key) for key in keys(store))


def survey(store: Store, pool: Pool, fold: Callable[[Iterator[Item]], Sum], *, uses: bool = True) -> Iterator[Sum]:
    """What `fold` makes of the items of each shard, which the pool looks at, many at a time.

    Only what `fold` returns is kept, and comes from other processes, so that a million items need not be in memory.
    `uses`: whether finished uses are counted; without, an item costs one listing less, and says that there were none.
    """
    work = functools.partial(_fold_shard, store, fold, uses)
    for result, log in pool.each(work, shards(store)):
        log.pass_on(store.log)
        yield result


def _fold_shard(store: Store, fold: Callable[[Iterator[Item]], Sum], uses: bool, shard: str) -> tuple[Sum, Collected]:
    log = Collected()  # another process may do this, which must not print anything
    store = store.logging_to(log)
    handle = _open_directory(store, f"{store.layout.items}/{shard}")
    if handle is None:
        return fold(iter(())), log
    with handle, near(handle):  # `fold` may look further into the items
        return fold(look(store, key, uses=uses, via=handle) for key in _keys_in(store, shard, handle)), log


def scan_with_facts(store: Store, pool: Pool) -> Iterator[tuple[Item, list[ItemFacts]]]:
    """All items, and what was noted when each of their copies was fetched; empty for what cannot be read."""
    for part, log in survey(store, pool, functools.partial(_with_facts, store)):
        log.pass_on(store.log)
        yield from part


def _with_facts(store: Store, items: Iterator[Item]) -> tuple[list[tuple[Item, list[ItemFacts]]], Collected]:
    log = Collected()
    store = store.logging_to(log)
    return [(item, [facts_or_none(store, copy) for copy in item.copies]) for item in items], log


def facts_or_none(store: Store, copy: Copy) -> ItemFacts:
    """As `facts`; empty, with a warning, if they cannot be read, and for a copy that is on its way out."""
    return ItemFacts() if copy.closed else facts_if_readable(store, copy.key, str(copy.generation))


def facts_if_readable(store: Store, key: str, generation: str) -> ItemFacts:
    """As `facts`; empty, with a warning, if they cannot be read."""
    try:
        return facts(store, key, generation)
    except (OSError, records.Damaged) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        store.report(f"{store.layout.generation(key, generation)}/{ITEM_FILE}", str(reason), "")
        return ItemFacts()


def look(store: Store, key: str, *, uses: bool = True, via: DirectoryHandle | None = None) -> Item:
    """One item; empty if there is none. `uses`: whether finished uses are counted; `via`: the handle of its shard."""
    copies: list[Copy] = []
    summary = history.Summary(0, None)
    directory = store.layout.item(key)
    handle = _open_directory(store, directory, via)
    if handle is None:
        return Item(key, (), 0, None)
    with handle:
        for name in _listing(store, directory, handle):
            if name == HISTORY:
                if uses:
                    summary = _uses(store, key, handle)
            elif generation := Generation.parse(name):
                copies.append(_copy(store, f"{directory}/{name}/{GATE}", key, generation, handle))
            else:
                store.report(f"{directory}/{records.printable(name)}", "not a copy of the item", Fate.LEFT_ALONE)
    copies.sort(key=lambda copy: copy.generation.created, reverse=True)
    noted = _noted_name(store, copies) if copies and names.key_name(key) is None else None
    return Item(key, tuple(copies), summary.uses, summary.last, summary.names, noted)


def _noted_name(store: Store, copies: Iterable[Copy]) -> str | None:
    """The name that was noted with one of the copies. The key has its digest, so a wrong one is not believed."""
    for copy in copies:
        name = facts_if_readable(store, copy.key, str(copy.generation)).name
        if name is not None and names.is_named(copy.key, name):
            return name
    return None


def _uses(store: Store, key: str, via: DirectoryHandle | None) -> history.Summary:
    try:
        return history.summarise(store, store.layout.history(key), via)
    except OSError as error:
        fate = f"the uses of {names.key_label(key)} are not counted"
        store.report(store.layout.history(key), str(error.strerror), fate)
        return history.Summary(0, None)


def generations(store: Store, key: str) -> list[Generation]:
    """The generations of an item, the newest first. One listing; a hint, as the gate alone decides."""
    with Expected(GONE):
        parsed = map(Generation.parse, store.fs.names(store.layout.item(key)))
        return sorted(filter(None, parsed), key=lambda one: one.created, reverse=True)
    return []


def refresh(store: Store, key: str) -> None:
    """Have the next look at an item be the server's answer; one request for each directory on the way.

    What another host has put there, NFS may hide for a minute, and version 3 for good if nothing else changes.
    """
    with contextlib.suppress(OSError):  # missing, or not permitted: then the look must suffice
        for directory in (store.layout.items, os.path.dirname(store.layout.item(key)), store.layout.item(key)):
            store.fs.touch(directory)


def payload_name(store: Store, key: str, generation: Generation, *, fresh: bool = False) -> str | None:
    """The name of what users read in a generation; None if it cannot be told.

    Programs may have put something beside it, such as an index; then ``item.json`` says which it is. `fresh`: ask the
    server, whatever a network file system's client remembers.
    """
    directory = f"{store.layout.generation(key, str(generation))}/{PAYLOAD}"
    if fresh:
        _forget(store.fs, directory)
    found: list[str] = []
    with Expected(GONE):
        found = store.fs.names(directory)
    if len(found) == 1:
        return found[0]
    noted = None
    with contextlib.suppress(OSError, records.Damaged):
        noted = facts(store, key, str(generation)).payload if found else None
    return noted if noted in found else None


#: Entries of a directory that are counted to see whether some have been removed.
_MOST_COUNTED = 256


def is_whole(fs: FileSystem, payload: str, generation: Generation) -> bool:
    """Whether a payload is still what was published, as far as a few calls can tell; False only on proof.

    A purge of the file system removes files by their age, and knows nothing of leases. A file must have its size, a
    small directory at least as many entries as it had (programs may have put more there, such as an index), and a large
    one any file at all.
    """
    try:
        if _seems_whole(fs, payload, generation, fs.lstat):
            return True
    except OSError as error:
        if error.errno not in GONE:
            return True
    # What a network file system's client remembers may be a minute old. Only now it costs more to ask the server.
    _forget(fs, os.path.dirname(payload))
    try:
        return _seems_whole(fs, payload, generation, functools.partial(_status_when_opened, fs))
    except OSError as error:
        return error.errno not in GONE


def _seems_whole(fs: FileSystem, payload: str, generation: Generation, look: Callable[[str], os.stat_result]) -> bool:
    status = look(payload)
    if stat.S_ISREG(status.st_mode):
        return status.st_size == generation.bytes
    if not stat.S_ISDIR(status.st_mode):
        return False  # such as a symbolic link, which is never published
    seen = fs.sample(payload, _MOST_COUNTED)
    return (seen.has_files or not generation.bytes) and (not seen.complete or seen.entries >= generation.entries)


def _status_when_opened(fs: FileSystem, path: str) -> os.stat_result:
    """As lstat; for a file the server's answer, which NFS asks for when a file is opened."""
    status = fs.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        return status
    fd = fs.open(path)
    try:
        return fs.fstat(fd)
    finally:
        fs.close(fd)


def _forget(fs: FileSystem, directory: str) -> None:
    """Have the next look into a directory be the server's answer, where that is permitted; see `refresh`."""
    with contextlib.suppress(OSError):
        fs.touch(directory)


def facts(store: Store, key: str, generation: str) -> ItemFacts:
    """What was noted when a generation was fetched (`item.json`). Raises OSError or records.Damaged."""
    return ItemFacts.decode(store.fs.read_text(f"{store.layout.generation(key, generation)}/{ITEM_FILE}"))


def is_of_other_format(store: Store, key: str, generation: str) -> bool:
    """Whether another release has noted of a copy what this one does not understand."""
    try:
        facts(store, key, generation)
    except records.OtherFormat:
        return True
    except (OSError, records.Damaged):
        return False
    return False


def describe_again(store: Store, copy: Copy) -> None:
    """Write a lost or damaged `item.json` again, as far as the rest of the copy says what was in it.

    Raises FileNotFoundError if there is not exactly one file or directory: then there is nothing to describe.
    """
    directory = store.layout.generation(copy.key, str(copy.generation))
    payload = payload_name(store, copy.key, copy.generation)
    if payload is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{directory}/{PAYLOAD}")
    made = copy.generation
    known = ItemFacts(key=copy.key, payload=payload, bytes=made.bytes, entries=made.entries, fetched=iso(made.created))
    aside = f"{store.layout.tmp}/{WorkName.unowned(Purpose.DESCRIPTION)}"
    store.fs.write_new(aside, known.encode(), shared=store.layout.shared)
    try:
        store.fs.rename(aside, f"{directory}/{ITEM_FILE}")
    except BaseException:
        with contextlib.suppress(OSError):
            store.fs.unlink(aside)
        raise


def _copy(store: Store, gate: str, key: str, generation: Generation, via: DirectoryHandle | None) -> Copy:
    try:
        found = store.fs.names(gate, via=via)
    except FileNotFoundError:
        return Copy(key, generation, True, ())
    except OSError as error:
        store.report(gate, str(error.strerror), Fate.HELD)
        return Copy(key, generation, False, (Held(key, str(generation), UNLISTED, None),))
    held = tuple(Held(key, str(generation), name, LeaseName.parse(name)) for name in found)
    for one in held:
        if one.lease is None:
            store.report(f"{gate}/{records.printable(one.name)}", "not a lease", Fate.HELD)
    return Copy(key, generation, False, held)


def _open_directory(store: Store, path: str, via: DirectoryHandle | None = None) -> DirectoryHandle | None:
    """The handle of a directory; None if it is not there or, with a warning, cannot be opened."""
    try:
        return store.fs.open_directory(path, via)
    except OSError as error:
        _report(store, path, error)
        return None


def _listing(store: Store, path: str, via: DirectoryHandle | None = None) -> list[str]:
    try:
        return store.fs.names(path, via=via)
    except OSError as error:
        _report(store, path, error)
        return []


def _report(store: Store, path: str, error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        store.report(path, str(error.strerror), Fate.PASSED_OVER)
