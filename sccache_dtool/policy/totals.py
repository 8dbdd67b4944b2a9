"""What a cache holds, added up part by part, so that a million items need not be in memory at once."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from sccache_dtool.catalog.items import Item
from sccache_dtool.lots.lookup import Lookup
from sccache_dtool.lots.model import DEFAULT
from sccache_dtool.policy.rules import is_excluded


class OfLot(NamedTuple):
    """What a lot has of its own. Sizes in bytes."""

    bytes: int = 0
    entries: int = 0
    copies: int = 0
    leases: int = 0
    reclaimable_items: int = 0  # but for shares of lots
    reclaimable_bytes: int = 0


class Sums(NamedTuple):
    """What some items add up to. Sizes in bytes; `uses` of evicted items count, all else is of what is there."""

    items: int = 0
    bytes: int = 0
    entries: int = 0
    leases: int = 0
    uses: int = 0
    busy_items: int = 0
    idle_items: int = 0
    idle_bytes: int = 0
    copies: int = 0
    reclaimable_items: int = 0  # what `clean --all` would evict of those
    reclaimable_bytes: int = 0
    oldest_idle: float | None = None  # since when the longest idle item is so, in seconds since 1970
    largest: tuple[Item, ...] = ()
    of_lots: Mapping[str, OfLot] = MappingProxyType({})  # if they were looked up


class Spared(NamedTuple):
    """What a cleaning leaves although nobody uses it, at the time `now` (seconds since 1970)."""

    pinned: frozenset[str] = frozenset()
    exclude: tuple[str, ...] = ()
    grace: float = 0.0  # seconds for which a fresh copy stays
    now: float = 0.0
    everything: bool = False  # it is not known what is pinned, so that nothing is removed

    def has(self, item: Item) -> bool:
        """Whether all copies of an item stay."""
        return self.everything or item.key in self.pinned or bool(self.exclude and is_excluded(item.name, self.exclude))


def add_up(
    top: int,
    items: Iterator[Item],
    spared: Spared = Spared(),  # noqa: B008
    lookup: Lookup | None = None,
) -> Sums:
    """The sums of items, and the `top` largest of them. `spared`: what is not reclaimable; `lookup`: sum up lots, too.

    A copy whose lot cannot be known counts for the default lot, and is not reclaimable.
    """
    of_lots: dict[str, list[int]] = {}
    key = ""
    count = copied = size = entries = leases = uses = busy = idle = idle_size = free = free_size = 0
    fresh = spared.now - spared.grace if spared.grace else float("inf")
    oldest: float | None = None
    largest: list[tuple[int, str, Item]] = []
    least = -1  # bytes that an item must exceed to be one of the largest
    for item in items:  # once for each of a million items: no calls but where there is something to do
        copies, key = item.copies, item.key
        if not copies:
            uses += item.finished_uses
            continue
        held = mine = to_go = 0
        may_go = False
        since = item.last_end or 0.0
        for copy in copies:
            generation = copy.generation
            mine += generation.bytes
            entries += generation.entries
            if generation.created > since:
                since = float(generation.created)
            if copy.held:
                held += len(copy.held)
            elif generation.created <= fresh:
                may_go = True
                to_go += generation.bytes
        count += 1
        copied += len(copies)
        size += mine
        leases += held
        uses += item.finished_uses + held
        if held:
            busy += 1
        else:
            idle += 1
            idle_size += mine
            if oldest is None or since < oldest:
                oldest = since
        may_go = may_go and not spared.has(item)
        if may_go:
            free += 1
            free_size += to_go
        if lookup is not None:
            _add_to_lots(of_lots, item, lookup, fresh if may_go else None)
        if top and mine > least:
            heapq.heappush(largest, (mine, item.key, item))
            if len(largest) > top:
                heapq.heappop(largest)
                least = largest[0][0]
    kept = tuple(item for _, _, item in sorted(largest, reverse=True))
    lots = {lot: OfLot(*own) for lot, own in of_lots.items()}
    if lookup is not None:
        lookup.close(key, complete=True)
    return Sums(count, size, entries, leases, uses, busy, idle, idle_size, copied, free, free_size, oldest, kept, lots)


def _add_to_lots(of_lots: dict[str, list[int]], item: Item, lookup: Lookup, fresh: float | None) -> None:
    """Add an item to the sums of lots. `fresh`: copies as old as this may go; None: none may."""
    gone = None  # the lot that the item was last counted for
    for copy in item.copies:
        lot, generation = lookup.of(copy), copy.generation
        own = of_lots.get(lot or DEFAULT)
        if own is None:
            own = of_lots[lot or DEFAULT] = [0, 0, 0, 0, 0, 0]
        own[0] += generation.bytes
        own[1] += generation.entries
        own[2] += 1
        own[3] += len(copy.held)
        if fresh is not None and lot and not copy.held and generation.created <= fresh:
            own[5] += generation.bytes
            if lot != gone:
                own[4] += 1
                gone = lot


def total(parts: Iterable[Sums], top: int) -> Sums:
    """The sums of parts of a cache."""
    whole = Sums()
    for part in parts:
        idle = [since for since in (whole.oldest_idle, part.oldest_idle) if since is not None]
        largest = heapq.nlargest(top, (*whole.largest, *part.largest), key=lambda item: (item.bytes, item.key))
        added = (mine + its for mine, its in zip(whole[:11], part[:11], strict=True))
        of_lots = dict(whole.of_lots)
        for lot, own in part.of_lots.items():
            before = of_lots.get(lot)
            of_lots[lot] = own if before is None else OfLot(*map(sum, zip(before, own, strict=True)))
        whole = Sums._make((*added, min(idle, default=None), tuple(largest), of_lots))
    return whole
