"""Items, downloads and sums as rows: the fields that they have in every output for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sccache_dtool.catalog.items import Item
from sccache_dtool.clock import iso
from sccache_dtool.fetch.transfers import Transfer, TransferState
from sccache_dtool.policy.totals import Sums

if TYPE_CHECKING:
    from sccache_dtool.catalog.loose import LooseDirectory


def moment(seconds: float | None) -> str | None:
    """A time in seconds since 1970 as ISO 8601; None stays None."""
    return None if seconds is None else iso(seconds)


def item(one: Item) -> dict[str, Any]:
    """The fields of an `item`."""
    return {
        "item": one.key,
        "name": one.label,
        "bytes": one.bytes,
        "entries": sum(copy.generation.entries for copy in one.copies),
        "copies": len(one.copies),
        "leases": one.leases,
        "uses": one.uses,
        "last_use": moment(one.idle_since or None),
        "state": state(one),
    }


def state(one: Item) -> str:
    """What an item is: evicted, in-use or idle."""
    if not one.copies:
        return "evicted"
    return "in-use" if one.leases else "idle"


def transfer(one: Transfer, waiting: int, now: float) -> dict[str, Any]:
    """The fields of a `transfer`. `waiting`: how many wait for it; `now`: in seconds since 1970."""
    rate = one.rate(now)
    return {
        "item": one.key,
        "name": one.label,
        "state": str(one.state),
        "state_number": one.number,
        "bytes": one.bytes,
        "total": one.total,
        "percent": None if one.percent is None else round(one.percent, 1),
        "rate": None if rate is None else round(rate),
        "by": one.by,
        "error": one.error,
        "attempts": one.attempts,
        "waiting": 0 if one.state == TransferState.WAITING else waiting,
        "began": moment(one.began),
        "ended": moment(one.ended),
        "source": list(one.source),
        "continuable_until": moment(one.continuable_until),
        "message": one.message,
        "holder": one.holder or None,
        "session": one.session,
        "owner": one.lock_owner,
    }


def total(whole: Sums, left: Sequence[LooseDirectory]) -> dict[str, Any]:
    """The fields of a `total`: of all items, and of what dtool left in the cache without the plugin."""
    loose_bytes = sum(one.bytes for one in left)
    return {
        "items": whole.items,
        "bytes": whole.bytes + loose_bytes,
        "leases": whole.leases,
        "uses": whole.uses,
        "reclaimable_items": whole.reclaimable_items,
        "reclaimable_bytes": whole.reclaimable_bytes + sum(one.old_bytes for one in left),
        "loose_files": sum(one.files for one in left),
        "loose_bytes": loose_bytes,
    }
