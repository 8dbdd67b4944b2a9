"""`use` and `run` of whole dtool datasets. Imported only for them, because importing dtool takes long."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from sccache_dtool.acquire import attempts
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation
from sccache_dtool.cli.placement import fetch_where_room_is
from sccache_dtool.dtool import staging
from sccache_dtool.dtool.staging import Staged
from sccache_dtool.fetch.request import DatasetRequest
from sccache_dtool.liveness.caller import Owner


def use_dataset(
    now: Invocation, caches: Sequence[Cache], request: DatasetRequest, owner: Owner, options: UseOptions
) -> None:
    """Take a lease on each item of a dataset, and print a directory of links to the items.

    `caches`: without progress, which is shown for the whole dataset.
    """
    each = options._replace(size=None)

    def stage(cache: Cache) -> Staged:
        return staging.hold(cache, request, lambda one: cache.hold(owner, one, each), now.out.progress())

    staged = _place(caches, request, options, stage)
    now.out.detail(f"held by {owner}")
    view, items = staged.view, len(staged.leases)
    fields = {"path": os.fspath(view), "item": view.key, "lease": view.name, "holder": str(owner), "items": items}
    try:
        now.out.path("use", fields, os.fspath(view))
    except BaseException:  # a caller that has not got the path cannot release the leases
        staged.release()
        raise
    now.out.detail(output.count(items, "item"))


def hold_dataset(
    now: Invocation, caches: Sequence[Cache], request: DatasetRequest, owner: Owner, options: UseOptions
) -> Staged:
    """Lease all items of a dataset for a command. All leases have one holder, and so one heartbeat."""
    each = options._replace(size=None)

    def stage(cache: Cache) -> Staged:
        holder = cache.enter(owner, cache.settings.heartbeat_ttl if options.ttl is None else options.ttl)
        try:
            with holder.beating():
                progress = now.out.progress()
                return staging.hold(cache, request, lambda one: cache.acquire(holder, one, each), progress)
        except BaseException:
            holder.retire()
            raise

    return _place(caches, request, options, stage)


def _place(
    caches: Sequence[Cache], request: DatasetRequest, options: UseOptions, stage: Callable[[Cache], Staged]
) -> Staged:
    """`stage` in the cache that has the dataset, or else in the first with enough space."""

    def stage_until_valid(cache: Cache) -> Staged:
        for attempt in attempts():
            with attempt:
                return stage(cache)
        raise AssertionError("the last attempt returns or raises")

    there = caches[0] if len(caches) == 1 else next((cache for cache in caches if cache.has(request.key)), None)
    if there is not None:
        return stage_until_valid(there)
    if options.size is None:
        options = options._replace(size=staging.bytes_of(request))
    return fetch_where_room_is(caches, request, options, stage_until_valid)
