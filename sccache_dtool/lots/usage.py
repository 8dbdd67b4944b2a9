"""What each lot has in a cache, from one scan of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sccache_dtool.catalog.items import Item
from sccache_dtool.catalog.loose import LooseDirectory
from sccache_dtool.lots.lookup import Lookup
from sccache_dtool.lots.model import DEFAULT, Usage

_NOTHING = Usage()


class Holding(NamedTuple):
    """What a lot has of its own. Sizes in bytes."""

    bytes: int = 0
    objects: int = 0
    copies: int = 0
    leases: int = 0


def add_up(lookup: Lookup, found: Iterable[Item]) -> dict[str, Holding]:
    """What each lot has in items. A copy whose lot cannot be known counts for the default lot."""
    sums: dict[str, list[int]] = {}
    key = ""
    for item in found:
        key = item.key
        for copy in item.copies:
            own = sums.setdefault(lookup.of(copy) or DEFAULT, [0, 0, 0, 0])
            own[0] += copy.generation.bytes
            own[1] += copy.generation.entries
            own[2] += 1
            own[3] += len(copy.held)
    lookup.close(key, complete=True)
    return {lot: Holding(*own) for lot, own in sums.items()}


def of_items(lookup: Lookup, found: Iterator[Item]) -> dict[str, Usage]:
    """As `add_up`, of which only the usage is told."""
    return {lot: Usage(own.bytes, own.objects) for lot, own in add_up(lookup, found).items()}


def total(parts: Iterable[Mapping[str, Usage]]) -> dict[str, Usage]:
    """The sums of parts, by lot."""
    whole: dict[str, Usage] = {}
    for part in parts:
        for lot, used in part.items():
            whole[lot] = whole.get(lot, _NOTHING).plus(used)
    return whole


def of_loose(found: Iterable[LooseDirectory], lookup: Lookup) -> dict[str, Usage]:
    """What each lot has in files that dtool left.

    The files of a directory count as objects of the lot that has most of its bytes.
    """
    parts = []
    for one in found:
        lots = {uid: lookup.of_loose(one.directory, uid) for uid in one.bytes_of}
        parts += [{lots[uid]: Usage(size)} for uid, size in one.bytes_of.items()]
        if lots:
            most = max(one.bytes_of, key=lambda uid: one.bytes_of[uid])
            parts.append({lots[most]: Usage(0, one.files)})
    return total(parts)
