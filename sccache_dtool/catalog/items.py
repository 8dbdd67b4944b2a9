"""What is in the cache: a scan that reads directories and opens no file, and never dies of one bad entry."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from sccache_dtool.clock import iso
from sccache_dtool.disk import names, records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, HISTORY, ITEM_FILE, PAYLOAD, Generation, Layout, LeaseName, WorkName, unique
from sccache_dtool.disk.nofollow import Way, near
from sccache_dtool.errors import GONE
from sccache_dtool.pool import Crew
from sccache_dtool.protocol import history
from sccache_dtool.protocol.leases import Held

Warn = Callable[[str], None]
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

#: How a warning ends that tells of a directory which could not be looked into.
PASSED_OVER = "; passed over"


def shards(fs: FileSystem, place: Layout, warn: Warn) -> list[str]:
    """The directories that items are in, ordered."""
    found = []
    for shard in _listing(fs, place.items, warn):
        if names.is_shard(shard):
            found.append(shard)
        else:
            warn(f"{place.items}/{records.printable(shard)}: not part of the cache; left alone")
    return found


def unsettled(items: Iterator[Item]) -> list[Item]:
    """Those of the items that somebody uses, or that are half way into the trash."""
    return [item for item in items if any(copy.held or copy.closed for copy in item.copies)]


def keys(fs: FileSystem, place: Layout, warn: Warn) -> Iterator[str]:
    """The keys of all items, ordered."""
    for shard in shards(fs, place, warn):
        yield from _keys_in(fs, place, shard, warn)


def _keys_in(fs: FileSystem, place: Layout, shard: str, warn: Warn, via: Way | None = None) -> Iterator[str]:
    for key in _listing(fs, f"{place.items}/{shard}", warn, via):
        if names.is_key(key) and key.startswith(shard):
            yield key
        else:
            warn(f"{place.items}/{shard}/{records.printable(key)}: not an item; left alone")


def scan(fs: FileSystem, place: Layout, warn: Warn) -> Iterator[Item]:
    """All items of the cache, evicted ones that have a history included, ordered by key."""
    return (look(fs, place, key, warn) for key in keys(fs, place, warn))


def survey(
    fs: FileSystem,
    place: Layout,
    warn: Warn,
    crew: Crew,
    fold: Callable[[Iterator[Item]], Sum],
    *,
    uses: bool = True,
) -> Iterator[Sum]:
    """What `fold` makes of the items of each shard, which the crew looks at, many at a time.

    Only what `fold` returns is kept, and comes from other processes, so that a million items need not be in memory.
    `uses`: whether finished uses are counted; without, an item costs one listing less, and says that there were none.
    """
    work = functools.partial(_fold_shard, fs, place, fold, uses)
    for result, warnings in crew.each(work, shards(fs, place, warn)):
        for warning in warnings:
            warn(warning)
        yield result


def _fold_shard(
    fs: FileSystem, place: Layout, fold: Callable[[Iterator[Item]], Sum], uses: bool, shard: str
) -> tuple[Sum, list[str]]:
    warnings: list[str] = []
    way = _way_to(fs, f"{place.items}/{shard}", warnings.append)
    if way is None:
        return fold(iter(())), warnings
    with way, near(way):  # `fold` may look further into the items
        found = fold(_looks(fs, place, shard, way, warnings.append, uses=uses))
    return found, warnings


def _looks(fs: FileSystem, place: Layout, shard: str, way: Way, warn: Warn, *, uses: bool) -> Iterator[Item]:
    for key in _keys_in(fs, place, shard, warn, way):
        yield look(fs, place, key, warn, uses=uses, via=way)


Facts = dict[str, Any]


def told(fs: FileSystem, place: Layout, warn: Warn, crew: Crew) -> Iterator[tuple[Item, list[Facts]]]:
    """All items, and what was noted when each of their copies was fetched; empty for what cannot be read."""
    for part in survey(fs, place, warn, crew, functools.partial(_tell, fs, place)):
        for item, noted, warnings in part:
            for warning in warnings:
                warn(warning)
            yield item, noted


def _tell(fs: FileSystem, place: Layout, items: Iterator[Item]) -> list[tuple[Item, list[Facts], list[str]]]:
    found = []
    for item in items:
        warnings: list[str] = []
        noted = [facts_or_none(fs, place, copy, warnings.append) for copy in item.copies]
        found.append((item, noted, warnings))
    return found


def facts_or_none(fs: FileSystem, place: Layout, copy: Copy, warn: Warn) -> Facts:
    """As `facts`; empty, with a warning, if they cannot be read, and for a copy that is on its way out."""
    return {} if copy.closed else facts_if_readable(fs, place, copy.key, str(copy.generation), warn)


def facts_if_readable(fs: FileSystem, place: Layout, key: str, generation: str, warn: Warn) -> Facts:
    """As `facts`; empty, with a warning, if they cannot be read."""
    try:
        return facts(fs, place, key, generation)
    except (OSError, records.Damaged) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        warn(f"{place.generation(key, generation)}/{ITEM_FILE}: {reason}")
        return {}


def look(fs: FileSystem, place: Layout, key: str, warn: Warn, *, uses: bool = True, via: Way | None = None) -> Item:
    """One item; empty if there is none. `uses`: whether finished uses are counted; `via`: a way to its shard."""
    copies: list[Copy] = []
    summary = _NO_USES
    directory = place.item(key)
    way = _way_to(fs, directory, warn, via)
    if way is None:
        return Item(key, (), 0, None)
    with way:
        for name in _listing(fs, directory, warn, way):
            if name == HISTORY:
                if uses:
                    summary = _uses(fs, place, key, warn, way)
                continue
            generation = Generation.parse(name)
            if generation is None:
                warn(f"{directory}/{records.printable(name)}: not a copy of the item; left alone")
                continue
            copies.append(_copy(fs, f"{directory}/{name}/{GATE}", key, generation, warn, way))
    copies.sort(key=lambda copy: copy.generation.created, reverse=True)
    noted = _noted_name(fs, place, copies, warn) if copies and names.key_name(key) is None else None
    return Item(key, tuple(copies), summary.uses, summary.last, summary.names, noted)


def _noted_name(fs: FileSystem, place: Layout, copies: Iterable[Copy], warn: Warn) -> str | None:
    """The name that was noted with one of the copies. The key has its digest, so a wrong one is not believed."""
    for copy in copies:
        name = facts_if_readable(fs, place, copy.key, str(copy.generation), warn).get("name")
        if isinstance(name, str) and names.is_named(copy.key, name):
            return name
    return None


_NO_USES = history.Summary(0, None, 0)


def _uses(fs: FileSystem, place: Layout, key: str, warn: Warn, via: Way | None) -> history.Summary:
    try:
        return history.summarise(fs, place.history(key), warn, via)
    except OSError as error:
        warn(f"{place.history(key)}: {error.strerror}; the uses of {names.key_label(key)} are not counted")
        return _NO_USES


def generations(fs: FileSystem, place: Layout, key: str) -> list[Generation]:
    """The generations of an item, the newest first. One listing; a hint, as the gate alone decides."""
    try:
        found = fs.names(place.item(key))
    except OSError as error:
        if error.errno not in GONE:
            raise
        return []
    parsed = (Generation.parse(name) for name in found)
    return sorted((generation for generation in parsed if generation), key=lambda one: one.created, reverse=True)


def refresh(fs: FileSystem, place: Layout, key: str) -> None:
    """Have the next look at an item be the server's answer; one request for each directory on the way.

    What another host has put there, NFS may hide for a minute, and version 3 for good if nothing else changes.
    """
    with contextlib.suppress(OSError):  # not there, or not ours to change: then the look has to do
        for directory in (place.items, os.path.dirname(place.item(key)), place.item(key)):
            fs.touch(directory)


def payload_name(fs: FileSystem, place: Layout, key: str, generation: Generation, *, fresh: bool = False) -> str | None:
    """The name of what users read in a generation; None if it cannot be told.

    Programs may have put something beside it, such as an index; then ``item.json`` says which it is. `fresh`: ask the
    server, whatever a network file system's client remembers.
    """
    if fresh:
        _forget(fs, f"{place.generation(key, str(generation))}/{PAYLOAD}")
    try:
        found = fs.names(f"{place.generation(key, str(generation))}/{PAYLOAD}")
    except OSError as error:
        if error.errno not in GONE:
            raise
        return None
    if len(found) == 1:
        return found[0]
    try:
        noted = facts(fs, place, key, str(generation)).get("payload") if found else None
    except (OSError, records.Damaged):
        return None
    return noted if isinstance(noted, str) and noted in found else None


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
    count, files, counted = fs.sample(payload, _MOST_COUNTED)
    return (files or not generation.bytes) and (not counted or count >= generation.entries)


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


def facts(fs: FileSystem, place: Layout, key: str, generation: str) -> dict[str, Any]:
    """What was noted when a generation was fetched (`item.json`). Raises OSError or records.Damaged."""
    return records.decode_document(fs.read_text(f"{place.generation(key, generation)}/{ITEM_FILE}"))


def describe_anew(fs: FileSystem, place: Layout, copy: Copy) -> None:
    """Write a lost or damaged `item.json` again, as far as the rest of the copy says what was in it.

    Raises FileNotFoundError if there is not exactly one file or directory: then there is nothing to describe.
    """
    directory = place.generation(copy.key, str(copy.generation))
    payload = payload_name(fs, place, copy.key, copy.generation)
    if payload is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{directory}/{PAYLOAD}")
    found = copy.generation
    known = {"key": copy.key, "payload": payload, "bytes": found.bytes, "entries": found.entries}
    aside = f"{place.tmp}/{WorkName(f'p{unique(12)}-{unique(12)}.0', 'description')}"
    text = records.encode_document({"format": 1, **known, "fetched": iso(found.created)})
    fs.write_new(aside, text, shared=place.shared)
    try:
        fs.rename(aside, f"{directory}/{ITEM_FILE}")
    except BaseException:
        with contextlib.suppress(OSError):
            fs.unlink(aside)
        raise


def _copy(fs: FileSystem, gate: str, key: str, generation: Generation, warn: Warn, via: Way | None) -> Copy:
    try:
        found = fs.names(gate, via=via)
    except FileNotFoundError:
        return Copy(key, generation, True, ())
    except OSError as error:
        warn(f"{gate}: {error.strerror}; counted as held")
        return Copy(key, generation, False, (Held(key, str(generation), UNLISTED, None),))
    held = tuple(Held(key, str(generation), name, LeaseName.parse(name)) for name in found)
    for one in held:
        if one.lease is None:
            warn(f"{gate}/{records.printable(one.name)}: not a lease; counted as held")
    return Copy(key, generation, False, held)


def _way_to(fs: FileSystem, path: str, warn: Warn, via: Way | None = None) -> Way | None:
    """A way to a directory; None if it is not there or, with a warning, cannot be opened."""
    try:
        return fs.way_to(path, via)
    except OSError as error:
        _tell_why(path, error, warn)
        return None


def _listing(fs: FileSystem, path: str, warn: Warn, via: Way | None = None) -> list[str]:
    try:
        return fs.names(path, via=via)
    except OSError as error:
        _tell_why(path, error, warn)
        return []


def _tell_why(path: str, error: OSError, warn: Warn) -> None:
    if not isinstance(error, FileNotFoundError):
        warn(f"{path}: {error.strerror}{PASSED_OVER}")
