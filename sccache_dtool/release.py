"""Giving back and renewing what a command holds on somebody's behalf, by the names that are on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from sccache_dtool.catalog.items import Item
from sccache_dtool.disk.names import RELEASED, HolderName
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import LeaseLost
from sccache_dtool.liveness import caller
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.liveness.process import Proc
from sccache_dtool.protocol import holders, leases, sessions
from sccache_dtool.protocol.holders import HolderList
from sccache_dtool.protocol.store import Store


def release(
    store: Store,
    item: Item,
    owners: Sequence[Owner],
    everything: bool,
    generation: str | None,
) -> list[str]:
    """Give back one use of any of `owners` on an item, or all; returns who held each. The newest copy comes first.

    `generation`: only of this copy. Two calls that end the same lease in the same millisecond may both count it, for
    one of them may be the other's repetition whose reply was lost: then a lease too many is left, and never one too
    few.
    """
    prefixes = tuple(owner.prefix for owner in owners)
    ended: list[str] = []
    found = [held for copy in item.copies for held in reversed(copy.held)]
    found = [held for held in found if held.lease is not None and held.lease.holder.startswith(prefixes)]
    of_sessions = _sessions_of(store, prefixes) if found else {}
    for held in found:
        if held.lease is None or held.lease.holder in of_sessions:
            continue
        if generation not in (None, held.generation):
            continue
        if leases.end(store, held.gate(store.layout), store.layout.history(item.key), held.name, RELEASED):
            ended.append(held.lease.holder)
        if ended and not everything:
            break
    return ended


def _sessions_of(store: Store, prefixes: tuple[str, ...]) -> dict[str, str]:
    """The sessions of holders with these prefixes. Their leases end with the session."""
    found: dict[str, str] = {}
    if not sessions.ids(store):
        return found
    for name in HolderList.glance(store).present.values():
        if name.id.startswith(prefixes):
            with contextlib.suppress(OSError, Damaged):
                session = holders.read(store, name).session
                if session is not None:
                    found[name.id] = session.session
    return found


def session_holding(store: Store, item: Item, owners: Sequence[Owner]) -> str | None:
    """The session for which one of `owners` holds an item; None if there is none."""
    found = _sessions_of(store, tuple(owner.prefix for owner in owners)) if item.held else {}
    return next((found[held.lease.holder] for held in item.held if held.lease and held.lease.holder in found), None)


def holder_above(store: Store, item: Item, proc: Proc) -> Owner | None:
    """The nearest process above this one that holds an item by single uses; None if there is none.

    What it took is not given back for it: a script that calls once too often would take it from its caller.
    """
    holding = {held.lease.holder for held in item.held if held.lease}
    owners = list(caller.owners_above(proc)) if holding else []
    holding -= _sessions_of(store, tuple(owner.prefix for owner in owners)).keys() if owners else set()
    return next((owner for owner in owners if any(id.startswith(owner.prefix) for id in holding)), None)


def renew(store: Store, owners: Sequence[Owner]) -> int:
    """Extend the lifetime of all holders of `owners` that have one; returns how many. Raises LeaseLost."""
    prefixes = tuple(owner.prefix for owner in owners)
    listing = HolderList.complete(store)
    count = 0
    for name in listing.present.values():
        if not name.id.startswith(prefixes):
            continue
        try:
            ttl = holders.read(store, name).ttl
            if ttl is not None and listing.now is not None:
                holders.renew(store, name, int(listing.now + ttl))
                count += 1
        except Damaged as error:
            store.report(f"{store.layout.holders}/{name}", str(error), "its lifetime is not known, and not renewed")
        except (FileNotFoundError, LookupError):  # given back meanwhile
            continue
    if not count and any(id.startswith(prefixes) for id in listing.gone):
        raise LeaseLost(
            f"the leases of {owners[-1]} were revoked, because their lifetime had ended",
            hint="the data that it reads may be deleted: stop, and use the item again",
        )
    return count


def dismiss(store: Store, ids: Iterable[str]) -> None:
    """Remove holders of leases that were their only ones: what commands make."""
    renamed = [id for id in ids if not _is_dismissed(store, id)]
    present = HolderList.glance(store).present if renamed else {}
    for name in (present[id] for id in renamed if id in present):
        with contextlib.suppress(FileNotFoundError):
            store.fs.unlink(f"{store.layout.holders}/{name}")


def _is_dismissed(store: Store, id: str) -> bool:
    """Whether a holder without a lifetime was removed; it has shown one heartbeat at most, after a fetch."""
    for beats in (0, 1):
        with contextlib.suppress(FileNotFoundError):
            store.fs.unlink(f"{store.layout.holders}/{HolderName(id, beats, 0)}")
            return True
    return False
