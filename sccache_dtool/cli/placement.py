"""Choose the cache for an item that is in none of the caches of ``-d``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli.output import size as shown
from sccache_dtool.errors import CacheError, InUse, NoCache, NoSpace
from sccache_dtool.fetch.request import Request

if TYPE_CHECKING:
    from sccache_dtool.cli.use_many import Many

#: What is leased: an item, or a set.
Leased = TypeVar("Leased")


def fetch_where_room_is(
    caches: Sequence[Cache],
    request: Request | Many,
    options: UseOptions,
    hold: Callable[[Cache], Leased],
) -> Leased:
    """Fetch an item into the first of several caches with enough space, and return what `hold` leases there.

    A cache into which another process is already fetching the item comes first, so that it is not fetched twice.

    `options.size`: the bytes that it needs; None: what its source announces, if it does. Space that running downloads
    have reserved does not count as free. If no cache has enough space, even after the eviction of idle items if
    `options.make_room` is true, the lease is one in an upstream. Raises NoSpace, which lists what is missing in each
    cache, if there is no upstream. Raises NoCache if none of the directories is, or can become, a cache.
    """
    need = options.size
    tiered = next((cache for cache in caches if cache.upstream is not None), None)
    if need is None and isinstance(request, Request) and request.retrieve is None and tiered is None:
        need = caches[0].announced(request)
    short: list[str] = []
    refusals: list[NoCache] = []
    for cache in sorted(caches, key=lambda cache: not cache.is_fetching(request.key)):
        missing = _missing(need, cache)
        # Asked again: a process that has started in the meantime has reserved the space for this very item.
        if missing > 0 and not cache.is_fetching(request.key):
            short.append(f"{cache.root}: {shown(missing)} missing")
            continue
        try:
            return hold(cache)
        except (NoSpace, NoCache) as error:
            short.extend(_why(cache, error))
            refusals += [error] if isinstance(error, NoCache) else []
    if len(refusals) == len(caches):
        raise NoCache(
            f"none of the {len(caches)} directories is a cache",
            details=list(dict.fromkeys(short)),
            hint=refusals[0].hint,
        )
    if options.make_room and need is not None:
        for cache in caches:
            try:
                missing = _missing(need, cache)
                wait = cache.settings.fetch_wait if options.wait is None else options.wait
                if missing <= 0 or cache.make_room(missing, wait) >= missing:
                    return hold(cache)
            except (NoSpace, NoCache, InUse) as error:
                short.extend(_why(cache, error))
    if tiered is not None:
        return tiered.or_upstream(hold)
    raise NoSpace(
        f"no cache has enough space for {request.label if need is None else shown(need)}",
        details=list(dict.fromkeys(short)),
        hint=_hint(options.make_room, need),
    )


def _missing(need: int | None, cache: Cache) -> int:
    """Bytes missing in a cache; 0 if that is unknown."""
    room = None if need is None else cache.room()
    return 0 if need is None or room is None else need - room


def _why(cache: Cache, error: CacheError) -> Sequence[str]:
    if isinstance(error, NoSpace) and error.details:
        return error.details
    return (": ".join((str(cache.root), error.message, *(error.details if isinstance(error, InUse) else ()))),)


def _hint(make_room: bool, need: int | None) -> str:
    if not make_room:
        return "free space with `sc-dtool clean`, remove idle items with --make-room, or add a directory to -d"
    if need is None:
        return "the source does not report its size; give it with --size, so that space can be made for it"
    return "no more idle items can be removed; wait, or add a directory to -d"
