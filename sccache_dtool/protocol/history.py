"""Finished leases: how often and when an item was used, and folding many entries into one.

An entry is a lease that was renamed here, so that a use is counted exactly once. Nothing is ever appended: on NFS
two clients that append lose each other's lines. Folding publishes a segment first and removes its entries after,
and readers take the union by the lease's name: a crash in between, or two who fold, counts nothing twice.
"""

from __future__ import annotations

import contextlib

from sccache_dtool.clock import from_iso, iso
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import EndedName, SegmentName, unique
from sccache_dtool.disk.nofollow import DirectoryHandle
from sccache_dtool.oddity import Fate
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple

#: Entries that make a fold worth its calls.
FOLD_AT = 100

#: Listings after which a directory that never keeps still is taken as it was last seen.
_MOST_LISTINGS = 20

#: No segment is larger than this, nor has longer lines: in bytes.
_SEGMENT_LIMIT = 1 << 30
_LONGEST_LINE = 1 << 14


class Use(NamedTuple):
    """One finished use."""

    lease: str
    since: float | None  # seconds since 1970 by the user's own clock; None if its record was damaged
    end: float
    by: str  # user@host[process]
    how: str  # released or reaped


class Summary(NamedTuple):
    """How often an item was used, current uses not counted, and when the last use ended (seconds since 1970)."""

    uses: int
    last: float | None
    names: int = 0  # in the directory: many, unless they were folded


class _Listing(NamedTuple):
    entries: tuple[EndedName, ...]
    segments: tuple[SegmentName, ...]
    unknown: tuple[str, ...]


def summarise(store: Store, history: str, via: DirectoryHandle | None = None) -> Summary:
    """Count the uses, from names alone where that is exact. `history`: the directory; `via`: a handle of one above.

    An entry that ended after the last one of the only segment cannot be in it; any other may be, after a crash
    in the middle of a fold, and then the segment is read.
    """
    listing = _list(store.fs, history, via)
    for name in listing.unknown:
        store.report(f"{history}/{records.printable(name)}", "not a finished lease", Fate.LEFT_ALONE)
    ends = [*(entry.end for entry in listing.entries), *(segment.last for segment in listing.segments)]
    last = max(ends, default=None)
    if not listing.segments:
        count = len(listing.entries)
    elif len(listing.segments) == 1 and all(entry.end > listing.segments[0].last for entry in listing.entries):
        count = listing.segments[0].uses + len(listing.entries)
    else:
        count = len(_gather(store, history, records_too=False).texts)
    names = len(listing.entries) + len(listing.segments)
    return Summary(count, None if last is None else last / 1000, names)


def read(store: Store, history: str) -> list[Use]:
    """All finished uses, the oldest end first."""
    texts = _gather(store, history, records_too=True).texts
    return sorted((_use(entry, text or "") for entry, text in texts.items()), key=lambda use: use.end)


def fold(store: Store, history: str, tmp: str, *, least: int = FOLD_AT) -> int:
    """Fold entries and segments into one segment if there are at least `least` of them; returns how many.

    `tmp` is a path, not there yet, on the same file system; the segment is written there and published by rename.
    Only what the new segment holds is removed; an entry or a segment that could not be read whole stays.
    """
    fs = store.fs
    listing = _list(fs, history)
    if len(listing.entries) + len(listing.segments) < max(2, least):
        return 0
    union = _gather(store, history, records_too=True)
    texts = {entry: text for entry, text in union.texts.items() if text is not None}
    if not texts:
        return 0
    segment = SegmentName(len(texts), max(entry.end for entry in texts), unique())
    lines = (f"{entry} {text}\n" for entry, text in sorted(texts.items(), key=lambda pair: pair[0].end))
    try:
        fs.write_new(tmp, "".join(lines), shared=store.layout.shared)
        fs.rename(tmp, f"{history}/{segment}")
    except OSError:
        with contextlib.suppress(OSError):
            fs.unlink(tmp)
        raise
    covered = [*(entry for entry in listing.entries if entry in texts), *union.whole]
    for name in covered:
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(f"{history}/{name}")
    return len(covered)


def _list(fs: FileSystem, history: str, via: DirectoryHandle | None = None) -> _Listing:
    found = fs.names_if_any(history, via=via)
    entries, segments, unknown = [], [], []
    for name in found:
        if entry := EndedName.parse(name):
            entries.append(entry)
        elif segment := SegmentName.parse(name):
            segments.append(segment)
        else:
            unknown.append(name)
    return _Listing(tuple(entries), tuple(segments), tuple(unknown))


class _Union(NamedTuple):
    texts: dict[EndedName, str | None]  # None: its record could not be read
    whole: frozenset[SegmentName]  # segments of which every line was understood


def _gather(store: Store, history: str, *, records_too: bool) -> _Union:
    """Every finished lease and its record, the union of entries and segments.

    A listing is not a snapshot: it may show neither the segment that a fold publishes meanwhile nor the entries that
    the fold removes then. So at least two are made, and another one after each that shows a new segment, or an entry
    that is gone: no record is missed between an entry's removal and its segment's appearance. A segment that is not
    found has been folded into another, or a network file system has not heard of it yet: it is looked for again.
    """
    texts: dict[EndedName, str | None] = {}
    seen: set[SegmentName] = set()
    whole: set[SegmentName] = set()
    missing: list[SegmentName] = []
    for turn in range(_MOST_LISTINGS):
        listing = _list(store.fs, history)
        vanished = False
        for entry in listing.entries:
            if texts.get(entry) is None:
                try:
                    texts[entry] = _record(store.fs, f"{history}/{entry}") if records_too else ""
                except FileNotFoundError:
                    texts[entry], vanished = None, True
        fresh = set(listing.segments) - seen
        missing = []
        for segment in fresh:
            try:
                lines = _segment_lines(store, f"{history}/{segment}", segment.uses)
            except FileNotFoundError:
                missing.append(segment)
                continue
            seen.add(segment)
            texts |= {entry: text for entry, text in lines if entry}
            if lines and all(entry for entry, _ in lines):
                whole.add(segment)
        if turn and not fresh and not vanished:
            break
    for segment in missing:
        store.report(f"{history}/{segment}", "is listed but cannot be found", "its uses are not counted")
    return _Union(texts, frozenset(whole))


def _record(fs: FileSystem, path: str) -> str | None:
    """The record of an entry, in one line; None if it cannot be read. Raises FileNotFoundError."""
    try:
        return records.printable(fs.get_record(path))
    except FileNotFoundError:
        raise
    except OSError:
        return None


def _segment_lines(store: Store, path: str, uses: int) -> list[tuple[EndedName | None, str]]:
    """What a segment says; nothing if it cannot be read, with a warning. Raises FileNotFoundError."""
    try:
        text = store.fs.read_text(path, min(_SEGMENT_LIMIT, uses * _LONGEST_LINE))
    except FileNotFoundError:
        raise
    except OSError as error:
        store.report(path, str(error.strerror), "its uses are not counted")
        return []
    lines = []
    for line in text.removesuffix("\n").split("\n"):  # and at no other character that ends a line
        name, _, record = line.partition(" ")
        lines.append((EndedName.parse(name), record))
    if not all(entry for entry, _ in lines):
        store.report(path, "has lines that are not finished leases", "they are not counted")
    return lines


def encode_lease(since: float, by: str) -> str:
    """The record of a lease: ``<ISO time> <user>@<host>[<process>]``, short enough to be kept in an inode."""
    return f"{iso(since, timespec='milliseconds')} {by}"


def decode_lease(text: str) -> tuple[float | None, str]:
    """Since when (seconds since 1970, None if damaged) and by whom."""
    moment, _, by = text.partition(" ")
    since = from_iso(moment)
    return since, "?" if since is None else records.printable(by)[:200] or "?"


def _use(entry: EndedName, text: str) -> Use:
    since, by = decode_lease(text)
    return Use(entry.lease, since, entry.end / 1000, by, entry.how)
