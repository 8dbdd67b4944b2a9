"""Directories of links that an earlier release made as items, to show whole datasets: how they are given back.

Such a view is an item whose copies are made of symbolic links to the payloads of others, on which its users hold leases
as well. The view says which copies these are. Its own lease is released last, so that an interrupted release can be
repeated.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sccache_dtool.disk import names as layout
from sccache_dtool.fetch.request import DATASET, DTOOL

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache
    from sccache_dtool.catalog.items import Copy
    from sccache_dtool.liveness.caller import Owner


def view_key(uuid: str) -> str:
    """The key of the views of the dataset `uuid`."""
    return layout.item_key((f"{DTOOL}{uuid}",), f"{uuid[:8]}{DATASET}")


def is_view(cache: Cache, key: str) -> bool:
    """Whether the item that a key is of is a view."""
    sources = ((cache.facts(copy).source or ("",))[0] for copy in cache.item(key).copies)
    return any(view_key(source.removeprefix(DTOOL)) == key for source in sources)


def release(
    cache: Cache, owners: Sequence[Owner], key: str, *, everything: bool = False, generation: str | None = None
) -> tuple[int, list[str]]:
    """Give back one use of a dataset by the key of its views, or all: how many, and the keys of what they showed.

    `generation`: of this view.
    """
    prefixes = tuple(owner.prefix for owner in owners)
    count, keys = 0, [key]
    for copy in cache.item(key).copies:
        shown = _shown_by(cache, copy)
        keys += [one for one, _ in shown]
        held = sum(1 for one in copy.held if one.lease and one.lease.holder.startswith(prefixes))
        for _ in range(held if generation in (None, str(copy.generation)) else 0):
            cache.release_copies(owners, shown)
            count += cache.release(owners, key, generation=str(copy.generation))
            if not everything:
                return count, keys
    return count, keys


def _shown_by(cache: Cache, view: Copy) -> list[tuple[str, str]]:
    """Keys and generations of what a view shows. Links that others have made up, such as out of the cache, are none."""
    found = []
    for directory, _, names in os.walk(cache.path(view) or ""):
        for name in names:
            try:
                _, key, generation, _, _ = os.readlink(f"{directory}/{name}").split("/")[-5:]
            except (OSError, ValueError):
                continue
            if layout.is_key(key) and layout.Generation.parse(generation) is not None:
                found.append((key, generation))
    return found


def leases_on_items(cache: Cache, owners: Sequence[Owner], uuid: str) -> int:
    """How many leases the owners have on items of the dataset `uuid`."""
    prefixes = tuple(owner.prefix for owner in owners)
    held = [(copy, one) for item in cache.items() for copy in item.copies for one in copy.held if one.lease]
    ours = [copy for copy, one in held if one.lease and one.lease.holder.startswith(prefixes)]
    return sum((cache.facts(copy).dataset or {}).get("uuid") == uuid for copy in ours)
