"""`use` of whole dtool datasets. Loaded only where one is named: dtool's modules take their time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation
from sccache_dtool.cli.placing import fetch_where_room_is
from sccache_dtool.dtool import staging
from sccache_dtool.errors import UsageError
from sccache_dtool.leases import Lease


def use_dataset(
    now: Invocation,
    directories: Sequence[str | None],
    words: tuple[str, ...],
    name: str | None,
    holder: str,
    terms: dict[str, Any],
) -> bool:
    """Use all items of a dataset: as many leases, and one directory that shows them. False: it is no whole dataset.

    `terms` are those of `Cache.hold`.
    """
    if not staging.is_dataset(words):
        return False
    if name is not None:
        raise UsageError("a whole dataset cannot be given another name", hint="leave out -n")
    caches = [now.cache(directory, progress=None) for directory in directories]
    key = staging.key_of(words)
    owner = caches[0].owner(holder)
    chosen = caches[0]

    def hold(cache: Cache) -> Lease:
        nonlocal chosen
        chosen = cache
        return staging.hold(cache, words, owner, progress=now.out.progress(), **{**terms, "size": None})

    there = caches[0] if len(caches) == 1 else next((cache for cache in caches if cache.has(key)), None)
    if there is not None:
        view = hold(there)
    else:
        need = staging.bytes_of(words) if terms["size"] is None else terms["size"]
        view = fetch_where_room_is(caches, staging.wanted(words), need, terms["make_room"], hold)
    now.out.detail(f"held by {owner}")
    items = staging.count(view)
    fields = {"path": os.fspath(view), "item": key, "lease": view.name, "holder": str(owner), "items": items}
    try:
        now.out.result("use", fields, os.fspath(view))
    except BaseException:  # whoever has no path has no use for the leases
        staging.release(chosen, [owner], key)
        raise
    now.out.detail(output.count(items, "item"))
    return True
