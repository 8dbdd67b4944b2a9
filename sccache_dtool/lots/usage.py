"""What each lot has in a cache, from one scan of it, with what was reported of data elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Item
from sccache_dtool.catalog.loose import LooseDirectory
from sccache_dtool.lots.belonging import Belonging
from sccache_dtool.lots.model import Usage
from sccache_dtool.pool import Pool
from sccache_dtool.protocol.store import Store

_NOTHING = Usage()


def scan(store: Store, pool: Pool, belonging: Belonging) -> dict[str, Usage]:
    """What each lot has of its own in items."""
    return total(items.survey(store, pool, functools.partial(_add_up, store, belonging), uses=False))


def total(parts: Iterable[Mapping[str, Usage]]) -> dict[str, Usage]:
    """The sums of parts, by lot."""
    whole: dict[str, Usage] = {}
    for part in parts:
        for lot, used in part.items():
            whole[lot] = whole.get(lot, _NOTHING).plus(used)
    return whole


def of_piles(piles: Iterable[LooseDirectory], belonging: Belonging, user_of: Mapping[int, str]) -> dict[str, Usage]:
    """What each lot has in files that dtool left; `user_of`: names of users by their ids.

    The files of a directory count as objects of the lot that has most of its bytes.
    """
    found = []
    for pile in piles:
        lots = {uid: belonging.of_loose(pile.directory, user_of.get(uid, str(uid))) for uid in pile.bytes_of}
        found += [{lots[uid]: Usage(size)} for uid, size in pile.bytes_of.items()]
        if lots:
            most = max(pile.bytes_of, key=lambda uid: pile.bytes_of[uid])
            found.append({lots[most]: Usage(0, pile.files)})
    return total(found)


def _add_up(store: Store, belonging: Belonging, found: Iterator[Item]) -> dict[str, Usage]:
    sums: dict[str, list[int]] = {}
    for item in found:
        for copy in item.copies:
            own = sums.setdefault(belonging.of(item.key, items.facts_or_none(store, copy)), [0, 0])
            own[0] += copy.generation.bytes
            own[1] += copy.generation.entries
    return {lot: Usage(size, count) for lot, (size, count) in sums.items()}
