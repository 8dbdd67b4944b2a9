"""Choose the cache for an item that is in none of the caches of ``-d``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sccache_dtool.cache import Cache
from sccache_dtool.cli.output import size as shown
from sccache_dtool.errors import CacheError, NoCache, NoSpace
from sccache_dtool.fetch.request import Wanted

#: What is leased: an item, or all items of a dataset.
Leased = TypeVar("Leased")


def fetch_where_room_is(
    caches: Sequence[Cache], wanted: Wanted, size: int | None, make_room: bool, hold: Callable[[Cache], Leased]
) -> Leased:
    """Fetch an item into the first of several caches with enough space, and return what `hold` leases there.

    A cache into which another process is already fetching the item comes first, so that it is not fetched twice.

    `size`: bytes that it needs; None: what its source announces, if it does. Room is what is free less what running
    fetches have reserved. Raises NoSpace, with what is missing where, if there is none, also not by evicting what is
    idle where `make_room` says so; NoCache if none of them is, or can become, a cache.
    """
    need = caches[0].announced(wanted) if size is None and wanted.bring is None else size
    short: list[str] = []
    refusals: list[NoCache] = []
    for cache in sorted(caches, key=lambda cache: not cache.is_fetching(wanted.key)):
        missing = _missing(need, cache)
        # Asked again: a process that has started in the meantime has reserved the space for this very item.
        if missing > 0 and not cache.is_fetching(wanted.key):
            short.append(f"{cache.root}: {shown(missing)} missing")
            continue
        try:
            return hold(cache)
        except NoSpace as error:
            short.extend(_why(cache, error))
        except NoCache as error:
            refusals.append(error)
            short.extend(_why(cache, error))
    if len(refusals) == len(caches):
        raise NoCache(
            f"none of the {len(caches)} directories is a cache",
            details=list(dict.fromkeys(short)),
            hint=refusals[0].hint,
        )
    if make_room and need is not None:
        for cache in caches:
            try:
                missing = _missing(need, cache)
                if missing <= 0 or cache.make_room(missing) >= missing:
                    return hold(cache)
            except (NoSpace, NoCache) as error:
                short.extend(_why(cache, error))
    raise NoSpace(
        f"no cache has enough space for {shown(need)}"
        if need is not None
        else f"no cache has enough space for {wanted.label}",
        details=list(dict.fromkeys(short)),
        hint=_hint(make_room, need),
    )


def _missing(need: int | None, cache: Cache) -> int:
    """Bytes missing in a cache; 0 if that is unknown."""
    room = None if need is None else cache.room()
    return 0 if need is None or room is None else need - room


def _why(cache: Cache, error: CacheError) -> Sequence[str]:
    return error.details if isinstance(error, NoSpace) and error.details else (f"{cache.root}: {error.message}",)


def _hint(make_room: bool, need: int | None) -> str:
    if not make_room:
        return "free space with `sc-dtool clean`, remove idle items with --make-room, or add a directory to -d"
    if need is None:
        return "the source does not report its size; give it with --size, so that space can be made for it"
    return "no more idle items can be removed; wait, or add a directory to -d"
