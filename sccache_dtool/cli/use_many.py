"""`use`, `run` and `unuse` of many items at once. Imported only for them: most commands are for one item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation
from sccache_dtool.cli.placement import fetch_where_room_is
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.fetch.request import DatasetRequest, Request
from sccache_dtool.find import Named
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.sets import holding, manifest
from sccache_dtool.sets.holding import HeldSet
from sccache_dtool.sets.manifest import Entry


class Many(NamedTuple):
    """Many items that are used as one."""

    entries: Sequence[Entry]
    label: str
    key: str = ""  # of the item that lists them, if there is one

    @classmethod
    def of_dataset(cls, request: DatasetRequest) -> Many:
        """A whole dtool dataset."""
        return cls([Entry("", request)], holding.label_of(request.uuid), request.key)

    @classmethod
    def from_file(cls, cache: Cache, file: str) -> Many:
        """What a manifest lists; `file`: ``-`` for standard input. Raises UsageError."""
        name = "standard input" if file == "-" else file
        try:
            with open(0 if file == "-" else file, "rb", closefd=file != "-") as opened:
                text = manifest.read(opened, name)
        except OSError as error:
            hint = "give a manifest, or - for standard input"
            raise UsageError(f"cannot read {name}: {error.strerror}", hint=hint) from error
        entries = manifest.parse(text, name, cache.request)
        if not entries:
            raise UsageError(f"{name} names no item", hint="give one on each line: SOURCE [STEP]... @PATH")
        return cls(entries, name)

    @property
    def size(self) -> int | None:
        """Bytes that all items need, as far as that is known without asking for each; None if it is not."""
        from sccache_dtool.sets import datasets

        sizes = [
            datasets.bytes_of(one.request) if isinstance(one.request, DatasetRequest) else one.size
            for one in self.entries
        ]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def use_many(call: Invocation, caches: Sequence[Cache], many: Many, owner: Owner, options: UseOptions) -> None:
    """Take a lease on each item, and print the directory that shows them."""
    held = hold_many(caches, many, owner, options)
    call.out.detail(f"held by {owner}")
    fields = {"path": held.view, "session": held.session, "holder": str(owner), "items": len(held)}
    try:
        call.out.path("use", fields, held.view)
    except BaseException:  # a caller that has not got the path cannot release the leases
        held.release()
        raise
    call.out.detail(output.count(len(held), "item"))


def hold_many(
    caches: Sequence[Cache], many: Many, owner: Owner, options: UseOptions, *, beats: bool = False
) -> HeldSet:
    """Lease all items, in the cache that has them, or else in the first with enough space.

    `beats`: whether this process shows heartbeats for the owner.
    """

    def hold(cache: Cache) -> HeldSet:
        ttl = cache.settings.heartbeat_ttl if beats and options.ttl is None else options.ttl
        return cache.hold_many(owner, many.entries, options._replace(ttl=ttl), label=many.label)

    there = caches[0] if len(caches) == 1 else next((cache for cache in caches if _offers(cache, many)), None)
    if there is not None:
        return there.or_upstream(hold)
    return fetch_where_room_is(caches, many, options._replace(size=options.size or many.size), hold)


def _offers(cache: Cache, many: Many) -> bool:
    requests = (entry.request for entry in many.entries)
    return all(cache.offers(one) if isinstance(one, Request) else cache.has(one.key) for one in requests)


def release(cache: Cache, owners: Sequence[Owner], meant: Named, *, everything: bool) -> tuple[int, list[str]]:
    """Release what `unuse` means by the path of a view, or by a dataset: how many sets, and the keys of their items.

    `everything`: all sets that these owners have of the dataset.
    """
    found = [meant.session] if meant.session else cache.sets_of_dataset(owners, meant.dataset or "")
    count, keys = 0, list[str]()
    for session in found:
        done = cache.release_set(owners, session)
        if done is not None:
            count += 1
            keys += done.keys
            if not everything:
                break
    return count, [*keys, *([meant.key] if meant.key else [])]


def why_not(cache: Cache, owners: Sequence[Owner], meant: Named) -> str:
    """Why nothing was released, as far as that is known: the end of a sentence."""
    if meant.dataset:
        left = _leases_on_items(cache, owners, meant.dataset)
        # Of items that were used alone, which nothing but their own names must release; or of a killed `use`.
        return f", but {left} on items of the dataset: to release one, sc-dtool unuse dtool:URI#ITEM" if left else ""
    from sccache_dtool.protocol import sessions

    try:
        facts = sessions.read(cache.store, meant.session or "")
        return f"; it is held by {facts.owner}: {cache.store.command('session', 'rm', facts.id)}"
    except (CacheError, OSError, ValueError) as error:
        return f"; {error}"


def _leases_on_items(cache: Cache, owners: Sequence[Owner], uuid: str) -> int:
    """How many leases the owners have on items of the dataset `uuid`."""
    prefixes = tuple(owner.prefix for owner in owners)
    copies = (copy for item in cache.items() for copy in item.copies)
    held = [copy for copy in copies for one in copy.held if one.lease and one.lease.holder.startswith(prefixes)]
    return sum((cache.facts(copy).dataset or {}).get("uuid") == uuid for copy in held)
