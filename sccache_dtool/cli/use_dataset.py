"""`use` and `run` of whole dtool datasets. Loaded only where one is named: dtool's modules take their time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from sccache_dtool.acquire import until_it_stands
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation, ItemOptions
from sccache_dtool.cli.placement import fetch_where_room_is
from sccache_dtool.dtool import staging
from sccache_dtool.dtool.staging import Staged
from sccache_dtool.errors import UsageError


def use_dataset(now: Invocation, caches: Sequence[Cache], item: ItemOptions, holder: str, options: UseOptions) -> None:
    """Use all items of a dataset: as many leases, and one directory that shows them.

    `caches`: without progress, which is shown for the whole dataset.
    """
    owner = caches[0].owner(holder)
    chosen = caches[0]

    def stage(cache: Cache) -> Staged:
        nonlocal chosen
        chosen = cache
        each = options._replace(size=None)
        return staging.hold(cache, item.words, lambda wanted: cache.hold(owner, wanted, each), now.out.progress())

    staged = _place(caches, item, options, stage)
    now.out.detail(f"held by {owner}")
    view, items = staged.view, len(staged.leases)
    fields = {"path": os.fspath(view), "item": view.key, "lease": view.name, "holder": str(owner), "items": items}
    try:
        now.out.path("use", fields, os.fspath(view))
    except BaseException:  # whoever has no path has no use for the leases
        staging.release(chosen, [owner], view.key)
        raise
    now.out.detail(output.count(items, "item"))


def hold_dataset(
    now: Invocation,
    caches: Sequence[Cache],
    item: ItemOptions,
    options: UseOptions,
    child: tuple[int, list[str]],
) -> Staged:
    """All items of a dataset, leased for a command that we run, by one holder: one heartbeat serves them all."""
    owner = caches[0].owner_of_command(*child)

    def stage(cache: Cache) -> Staged:
        holder = cache.enter(owner, cache.settings.heartbeat_ttl if options.ttl is None else options.ttl)
        each = options._replace(size=None)
        try:
            with holder.beating():
                progress = now.out.progress()
                return staging.hold(cache, item.words, lambda wanted: cache.acquire(holder, wanted, each), progress)
        except BaseException:
            holder.retire()
            raise

    return _place(caches, item, options, stage)


def _place(
    caches: Sequence[Cache],
    item: ItemOptions,
    options: UseOptions,
    stage: Callable[[Cache], Staged],
) -> Staged:
    """`stage` in the cache that has the dataset already, else in the first with room for it."""

    def stage_until_it_stands(cache: Cache) -> Staged:
        return until_it_stands(lambda: stage(cache))

    if item.name is not None:
        raise UsageError("a whole dataset cannot be given another name", hint="leave out -n")
    key = staging.key_of(item.words)
    there = caches[0] if len(caches) == 1 else next((cache for cache in caches if cache.has(key)), None)
    if there is not None:
        return stage_until_it_stands(there)
    if options.size is None:
        options = options._replace(size=staging.bytes_of(item.words))
    return fetch_where_room_is(caches, staging.wanted(item.words), options, stage_until_it_stands)
