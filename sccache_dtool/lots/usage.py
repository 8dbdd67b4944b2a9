"""What each lot has in a cache, from one scan of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sccache_dtool.catalog.items import Item
from sccache_dtool.catalog.loose import LooseDirectory
from sccache_dtool.lots.lookup import Lookup
from sccache_dtool.lots.model import DEFAULT, Usage

_NOTHING = Usage()


def of_items(lookup: Lookup, found: Iterable[Item]) -> dict[str, Usage]:
    """What each lot has in items. A copy whose lot cannot be known counts for the default lot."""
    sums: dict[str, list[int]] = {}
    key = ""
    for item in found:
        key = item.key
        for copy in item.copies:
            own = sums.setdefault(lookup.of(copy) or DEFAULT, [0, 0])
            own[0] += copy.generation.bytes
            own[1] += copy.generation.entries
    lookup.close(key, complete=True)
    return {lot: Usage(*own) for lot, own in sums.items()}


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


def old_loose(found: Iterable[LooseDirectory], lookup: Lookup) -> dict[str, int]:
    """How many bytes of old files that dtool left there are of each lot: all of a directory of that with most of it."""
    sums: dict[str, int] = {}
    for one in found:
        if one.old_bytes and one.bytes_of:
            lot = lookup.of_loose(one.directory, max(one.bytes_of, key=lambda uid: one.bytes_of[uid]))
            sums[lot] = sums.get(lot, 0) + one.old_bytes
    return sums
