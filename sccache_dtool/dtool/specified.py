"""The functions that dtool's specification of a cache manager names, on leases and their history.

In all of them `uri` is a dataset's URI and `uuid` one of its items: the item's identifier, or its path in the
dataset. One access is one lease, from its taking to its end, so what the specification keeps as two things, a
counter and a log, cannot disagree.

The cache is dtool's own (``DTOOL_CACHE_DIRECTORY``). All of them may raise CacheError or OSError.
"""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sccache_dtool.cache import Cache
from sccache_dtool.catalog.items import Item
from sccache_dtool.clock import date
from sccache_dtool.disk import root
from sccache_dtool.errors import InUse, NoCache
from sccache_dtool.fetch.request import DTOOL

if TYPE_CHECKING:
    from sccache_dtool.fetch.request import Request
    from sccache_dtool.protocol.leases import Lease

#: By key. Its calls cannot be interrupted half way by another thread or a signal handler, so that no lock is needed.
_taken: dict[str, list[Lease]] = {}
os.register_at_fork(after_in_child=_taken.clear)


def pre_item_content_abspath(uri: str, uuid: str) -> None:
    """The hook before an item's content is asked for."""
    increment_cache_item_lock_counter(uri, uuid)


def post_item_content_abspath(uri: str, uuid: str) -> None:
    """The hook after it: one access was made.

    A lease that ends here protects nothing that is read later. dtool's users open the file after the call, which is
    why the plugin does not go this way; see `sccache_dtool.dtool.plugin`.
    """
    register_cache_item_access(uri, uuid)
    decrement_cache_item_lock_counter(uri, uuid)


def increment_cache_item_lock_counter(uri: str, uuid: str) -> None:
    """Take a lease on an item, which is fetched first if it is not there. This process holds it."""
    cache, request = _named(uri, uuid)
    lease = cache.use_request(request)
    _taken.setdefault(request.key, []).append(lease)


def decrement_cache_item_lock_counter(uri: str, uuid: str) -> None:
    """Give back a lease that `increment_cache_item_lock_counter` took in this process; nothing if there is none."""
    _, request = _named(uri, uuid)
    with contextlib.suppress(KeyError, IndexError):
        _taken[request.key].pop().release()


def cache_item_lock_counter(uri: str, uuid: str) -> int:
    """How many leases are held on an item, by all processes of all hosts."""
    return _item(uri, uuid).leases


def register_cache_item_access(uri: str, uuid: str) -> None:
    """Note an access to an item.

    While this process holds a lease on it there is nothing to do, because that will be in the history when it ends.
    """
    cache, request = _named(uri, uuid)
    if not _taken.get(request.key):
        cache.use_request(request).release()


def remove_cache_item_safely(uri: str, uuid: str) -> bool:
    """Remove an item that nobody uses; whether it is gone. What is in use stays."""
    cache, request = _named(uri, uuid)
    try:
        cache.remove(request.key)
    except InUse:
        return False
    except NoCache:
        pass
    return True


def num_times_accessed(uri: str, uuid: str) -> int:
    """How often an item has been used, those who use it now included; also after it was removed."""
    return _item(uri, uuid).uses


def last_time_accessed(uri: str, uuid: str) -> datetime | None:
    """When an item was last used, in UTC: now if it is in use, None if it never was."""
    item = _item(uri, uuid)
    if item.leases:
        return datetime.now(UTC)
    return None if item.last_end is None else date(item.last_end)


def _item(uri: str, uuid: str) -> Item:
    """What the cache has of an item; an empty item if there is no cache yet."""
    cache, request = _named(uri, uuid)
    try:
        return cache.item(request.key)
    except NoCache:
        return Item(request.key, (), 0, None)


def _named(uri: str, uuid: str) -> tuple[Cache, Request]:
    choice = root.choose(None, os.environ)
    cache = Cache(choice.path, may_hold_data=True, parents=choice.parents)
    return cache, cache.item_request([f"{DTOOL}{uri}#{uuid}"])
