"""`use` and `run` of whole dtool datasets. Loaded only where one is named: dtool's modules take their time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from sccache_dtool.acquire import attempts
from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation
from sccache_dtool.cli.placement import fetch_where_room_is
from sccache_dtool.dtool import staging
from sccache_dtool.dtool.staging import Staged
from sccache_dtool.fetch.request import DatasetRequest, Request
from sccache_dtool.protocol.holders import Owner
from sccache_dtool.protocol.leases import Lease


def use_dataset(
    now: Invocation, caches: Sequence[Cache], request: DatasetRequest, owner: Owner, terms: dict[str, Any]
) -> None:
    """Use all items of a dataset: as many leases, and one directory that shows them.

    `caches`: without progress, which is shown for the whole dataset; `terms`: of `Cache.hold`.
    """

    def stage(cache: Cache) -> Staged:
        each = {**terms, "size": None}
        return staging.hold(cache, request, lambda one: cache.hold(owner, one, **each), now.out.progress())

    staged = _place(caches, request, terms, stage, now.out.note)
    now.out.detail(f"held by {owner}")
    view, items = staged.view, len(staged.leases)
    fields = {"path": os.fspath(view), "item": view.key, "lease": view.name, "holder": str(owner), "items": items}
    try:
        now.out.path("use", fields, os.fspath(view))
    except BaseException:  # whoever has no path has no use for the leases
        staged.release()
        raise
    now.out.detail(output.count(items, "item"))


def hold_dataset(
    now: Invocation, caches: Sequence[Cache], request: DatasetRequest, owner: Owner, terms: dict[str, Any]
) -> Staged:
    """All items of a dataset, leased for a command that we run, by one holder: one heartbeat serves them all."""

    def stage(cache: Cache) -> Staged:
        holder = cache.enter(owner, cache.heartbeat_ttl if terms["ttl"] is None else terms["ttl"])
        each = {name: value for name, value in terms.items() if name not in ("ttl", "size")}

        def hold_one(one: Request) -> Lease:
            return cache.acquire(holder, one, **each)

        try:
            with holder.beating():
                return staging.hold(cache, request, hold_one, now.out.progress())
        except BaseException:
            holder.retire()
            raise

    return _place(caches, request, terms, stage, now.out.note)


def _place(
    caches: Sequence[Cache],
    request: DatasetRequest,
    terms: dict[str, Any],
    stage: Callable[[Cache], Staged],
    note: Callable[[str], None],
) -> Staged:
    """`stage` in the cache that has the dataset already, else in the first with room for it."""

    def stage_until_it_stands(cache: Cache) -> Staged:
        for attempt in attempts(note):
            with attempt:
                return stage(cache)
        raise AssertionError("the last attempt returns or raises")

    there = caches[0] if len(caches) == 1 else next((cache for cache in caches if cache.has(request.key)), None)
    if there is not None:
        return stage_until_it_stands(there)
    need = staging.bytes_of(request) if terms["size"] is None else terms["size"]
    return fetch_where_room_is(caches, request, need, terms["make_room"], stage_until_it_stands)
