"""What cleanings have removed, and what was restored: a file for each, its name with the sums: they add up unread."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from sccache_dtool.clock import iso
from sccache_dtool.disk import records
from sccache_dtool.disk.names import CleaningName, Purpose, WorkName, understood, unique
from sccache_dtool.errors import explain
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.store import Store

if TYPE_CHECKING:
    from sccache_dtool.evict.execution import Cleaned

#: Version of the records.
_VERSION = 1


def write(store: Store, done: Cleaned, holder: Holder, why: str) -> None:
    """Note what a cleaning did, if it did anything."""
    if not (done.removed or done.failed or done.reaped.leases):
        return
    now = store.clock.wall()
    loose = sum(candidate.loose is not None for candidate in done.removed)
    name = CleaningName(int(now * 1000), len(done.removed), done.freed, len(done.reaped.leases), unique(), loose)
    _publish(store, holder, name, _lines(done, now, holder.by, why), "this cleaning is not recorded")


def write_restored(store: Store, key: str, holder: Holder) -> None:
    """Note that a copy is there again that nobody had to fetch."""
    now = store.clock.wall()
    name = CleaningName(int(now * 1000), 0, 0, 0, unique(), restored=1)
    line = {"format": _VERSION, "ended": iso(now), "by": holder.by, "restored": key}
    _publish(store, holder, name, [line], "the restore is not recorded, so metrics count it as a miss")


#: Lines that are written at a time: a record may have a million.
_AT_ONCE = 1000


def _publish(store: Store, holder: Holder, name: CleaningName, lines: Iterable[dict[str, Any]], otherwise: str) -> None:
    """Write a record; if that fails, warn of what follows (`otherwise`)."""
    left = iter(lines)
    tmp = f"{store.layout.tmp}/{WorkName(holder.next_lease(), Purpose.AUDIT)}"
    try:
        fd = store.fs.create(tmp)
        try:
            while piece := "".join(f"{json.dumps(line)}\n" for line in islice(left, _AT_ONCE)):
                store.fs.write(fd, piece.encode())
            store.fs.sync(fd)
        finally:
            store.fs.close(fd)
        store.fs.make_dirs(store.layout.cleanings, shared=store.layout.shared)
        store.fs.rename(tmp, f"{store.layout.cleanings}/{name}")
    except OSError as error:
        store.log.warning(f"{explain(error)}; {otherwise}")


def _lines(done: Cleaned, now: float, by: str, why: str) -> Iterator[dict[str, Any]]:
    reasons = Counter("in use" if kept.held else kept.reason for kept in done.kept)
    yield {
        "format": _VERSION,
        "ended": iso(now),
        "by": by,
        "why": why,
        "removed": len(done.removed),
        "bytes": done.freed,
        "missed_bytes": done.missed.bytes,
        "missed_entries": done.missed.entries,
        "kept": reasons,
    }
    for candidate in done.removed:
        of_lot = {"lot": candidate.lot, "class": candidate.limit} if candidate.lot else {}
        yield {"removed": candidate.place, "bytes": candidate.bytes, "uses": candidate.uses, **of_lot}
    for failure in done.failed:
        yield {"failed": failure.candidate.place, "reason": failure.reason}
    for judged in done.reaped.leases:
        yield {"reaped": judged.held.name, "item": judged.held.key, "by": judged.by, "why": judged.verdict.evidence}


class CleaningRecord(NamedTuple):
    """What a cleaning says of itself. Sizes in bytes."""

    by: str
    why: str
    missed: int  # by how much the goal was missed
    removed: tuple[tuple[str, int], ...]  # the place and the size of each copy and loose file
    failed: tuple[tuple[str, str], ...]  # what could not be removed, and why
    restored: str | None  # the key of the item, if it is the record of a restore


#: No record is larger than this, in bytes.
_LIMIT = 1 << 30


def read(store: Store, name: CleaningName) -> CleaningRecord:
    """The record of a cleaning. Lines that cannot be read are passed over. Raises OSError, or records.Damaged."""
    text = store.fs.read_text(f"{store.layout.cleanings}/{name}", _LIMIT)
    first, *lines = (_line(line) for line in text.removesuffix("\n").split("\n"))
    if not first:
        raise records.Damaged("not the record of a cleaning")
    missed = first.get("missed_bytes")
    removed = ((one.get("removed"), one.get("bytes")) for one in lines)
    failed = ((one.get("failed"), one.get("reason")) for one in lines)
    return CleaningRecord(
        by=records.printable(str(first.get("by", "?"))),
        why=records.printable(str(first.get("why", ""))),
        missed=missed if isinstance(missed, int) else 0,
        removed=tuple((place, size) for place, size in removed if isinstance(place, str) and isinstance(size, int)),
        failed=tuple((place, str(reason)) for place, reason in failed if isinstance(place, str)),
        restored=str(first["restored"]) if "restored" in first else None,
    )


def _line(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def listing(store: Store) -> list[CleaningName]:
    """All cleanings that have removed something, and what was restored."""
    directory = store.layout.cleanings
    found = store.fs.names_if_any(directory)
    return list(understood(directory, found, CleaningName.parse, "not the record of a cleaning", store.log))
