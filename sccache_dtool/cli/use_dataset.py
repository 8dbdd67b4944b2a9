"""`use` and `run` of whole dtool datasets. Imported only for them, because importing dtool takes long."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from sccache_dtool.acquire import until_it_stands
from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation
from sccache_dtool.cli.placement import fetch_where_room_is
from sccache_dtool.dtool import staging
from sccache_dtool.dtool.staging import Staged
from sccache_dtool.errors import UsageError


def use_dataset(
    now: Invocation,
    caches: Sequence[Cache],
    words: tuple[str, ...],
    name: str | None,
    holder: str,
    terms: dict[str, Any],
) -> None:
    """Take a lease on each item of a dataset, and print a directory of links to the items.

    `caches`: without progress, which is shown for the whole dataset; `terms`: of `Cache.hold`.
    """
    owner = caches[0].owner(holder)
    chosen = caches[0]

    def stage(cache: Cache) -> Staged:
        nonlocal chosen
        chosen = cache
        each = {**terms, "size": None}
        return staging.hold(cache, words, lambda wanted: cache.hold(owner, wanted, **each), now.out.progress())

    staged = _place(caches, words, name, terms, stage, now.out.note)
    now.out.detail(f"held by {owner}")
    view, items = staged.view, len(staged.leases)
    fields = {"path": os.fspath(view), "item": view.key, "lease": view.name, "holder": str(owner), "items": items}
    try:
        now.out.path("use", fields, os.fspath(view))
    except BaseException:  # a caller that has not got the path cannot release the leases
        staging.release(chosen, [owner], view.key)
        raise
    now.out.detail(output.count(items, "item"))


def hold_dataset(
    now: Invocation,
    caches: Sequence[Cache],
    words: tuple[str, ...],
    name: str | None,
    terms: dict[str, Any],
    child: tuple[int, list[str]],
) -> Staged:
    """Lease all items of a dataset for a command. All leases have one holder, and so one heartbeat."""
    owner = caches[0].owner_of_command(*child)

    def stage(cache: Cache) -> Staged:
        holder = cache.enter(owner, cache.heartbeat_ttl if terms["ttl"] is None else terms["ttl"])
        each = {name: value for name, value in terms.items() if name not in ("ttl", "size")}
        try:
            with holder.beating():
                progress = now.out.progress()
                return staging.hold(cache, words, lambda wanted: cache.acquire(holder, wanted, **each), progress)
        except BaseException:
            holder.retire()
            raise

    return _place(caches, words, name, terms, stage, now.out.note)


def _place(
    caches: Sequence[Cache],
    words: tuple[str, ...],
    name: str | None,
    terms: dict[str, Any],
    stage: Callable[[Cache], Staged],
    note: Callable[[str], None],
) -> Staged:
    """`stage` in the cache that has the dataset, or else in the first with enough space."""

    def stage_until_it_stands(cache: Cache) -> Staged:
        return until_it_stands(lambda: stage(cache), note)

    if name is not None:
        raise UsageError("-n cannot be used with a whole dataset", hint="leave out -n")
    key = staging.key_of(words)
    there = caches[0] if len(caches) == 1 else next((cache for cache in caches if cache.has(key)), None)
    if there is not None:
        return stage_until_it_stands(there)
    need = staging.bytes_of(words) if terms["size"] is None else terms["size"]
    return fetch_where_room_is(caches, staging.wanted(words), need, terms["make_room"], stage_until_it_stands)
