"""`[archive] limit`: room for an object among the other objects of the cache, the least recently used of which go."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Item
from sccache_dtool.disk.names import key_label
from sccache_dtool.errors import CacheError, FetchFailed, NoSpace
from sccache_dtool.evict import pins, single
from sccache_dtool.fetch import objects
from sccache_dtool.fetch.request import COMPRESSIONS, OBJECT
from sccache_dtool.markers.archive import Archive
from sccache_dtool.policy.rules import Rules, Sifted, in_order, merge, sift
from sccache_dtool.pool import Pool
from sccache_dtool.protocol.store import Store

#: What the names of objects look like; what each really is, its `item.json` says.
_NAME = rf"{OBJECT}-[0-9a-f]{{8}}(\.({'|'.join(COMPRESSIONS)}))?"


class TooLarge(NoSpace):
    """An object is larger than the limit for all of them."""


def check_size(label: str, size: int, limit: int | None) -> None:
    """Raise TooLarge for an object that is larger than the limit for all of them."""
    if limit is not None and size > limit:
        import humanize

        raise TooLarge(
            f"{label} has {humanize.naturalsize(size)}, more than all objects in the cache may have "
            f"([archive] limit is {humanize.naturalsize(limit)})",
            hint="`sc-dtool add --archive-only` and `sc-dtool get -o FILE` pass it by the cache",
        )


def make_room(store: Store, archive: Archive, pool: Pool, limit: int, coming: int) -> None:
    """Evict objects that nobody uses and that the archive has, until `coming` bytes more are within the limit.

    What is pinned, or not in the archive, stays. Raises NoSpace, which names the holders, if that does not suffice.
    """
    check_size("the object", coming, limit)
    held: list[Item] = []
    excess = coming
    for is_reaped in (False, True):
        rules = Rules(order="lru", pinned=pins.pinned(store, store.clock.wall()))
        sifted = merge(items.survey(store, pool, functools.partial(_sift_objects, rules, store.clock.wall())))
        held = [item for item in sifted.unsettled if item.leases]
        excess = sifted.bytes + sum(item.bytes for item in sifted.unsettled) + coming - limit
        for one in in_order(sifted.eligible):
            if excess <= 0:
                return
            if _is_archived(store, archive, one.key, one.generation) and single.evict_if_idle(store, one.key):
                excess -= one.bytes
        if excess <= 0:
            return
        if held and not is_reaped:
            single.reap(store, pool)
    import humanize

    names = [f"{one.by} uses {item.label}" for item in held for one in single.judged(store, item.held)]
    raise NoSpace(
        f"no room for {humanize.naturalsize(coming)} among the objects: {humanize.naturalsize(excess)} missing, and "
        "the others are in use, pinned, or not in the archive",
        details=names,
        hint="release them, or raise [archive] limit; `sc-dtool get -o FILE` passes an object by the cache",
    )


def _sift_objects(rules: Rules, now: float, found: Iterator[Item]) -> Sifted:
    return sift(rules, now, (item for item in found if re.fullmatch(_NAME, key_label(item.key))))


def _is_archived(store: Store, archive: Archive, key: str, generation: str) -> bool:
    """Whether the archive has the object that a copy is of; False if that cannot be told."""
    source = items.facts_if_readable(store, key, generation).source or ("",)
    digits = objects.digits_of(source[0]) if ":" in source[0] else None
    try:
        return digits is not None and archive.has(digits)
    except (FetchFailed, CacheError, OSError):
        return False
