"""Makes `holders/` again after somebody has removed it, so that no holder is taken for dead because of that."""

from __future__ import annotations

import contextlib
from functools import partial

from sccache_dtool.catalog import items
from sccache_dtool.disk.names import REVOKED, HolderName, Purpose, WorkName
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.errors import CacheError, explain
from sccache_dtool.log import Collected
from sccache_dtool.oddity import Fate, Oddity
from sccache_dtool.protocol.store import Store

#: The record of a holder of whom nothing is known any more: no record, so that only a person's word can end it.
_UNKNOWN = "unknown, because doctor had to create holders/ again"


def missing(store: Store) -> Finding:
    """The finding that it is missing."""
    repair = partial(_make_again, store)
    try:
        named = _named(store)
    except (OSError, CacheError) as error:
        reason = explain(error) if isinstance(error, OSError) else error.message
        what = f"missing, and the holders that belong in it cannot be determined: {reason}"
        return Finding(store.layout.holders, what, None, "resolve that first: an empty directory would end all leases")
    if not named:
        return Finding(store.layout.holders, "missing", repair, "creates it")
    who = f"{len(named)} holder{'s' if len(named) > 1 else ''}"
    what = f"missing, together with the records of {who} of leases and work areas"
    remedy = "creates it and counts them as alive until sc-dtool reap --holder ID"
    return Finding(store.layout.holders, what, repair, remedy)


def _named(store: Store) -> set[str]:
    """The ids of all whom a lease or a work area names. Raises CacheError where there may be more."""
    if not store.fs.names_if_any(store.layout.items):
        return set()
    log = Collected()
    held = [one for item in items.scan(store.logging_to(log)) for one in item.held]
    unseen = any(isinstance(odd, Oddity) and odd.fate is Fate.PASSED_OVER for _, odd in log.messages)
    if unseen or any(one.name == items.UNLISTED for one in held):
        raise CacheError("cannot list all leases")
    works = map(WorkName.parse, store.fs.names_if_any(store.layout.tmp))
    return {one.lease.holder for one in held if one.lease} | {work.holder for work in works if work}


def _make_again(store: Store) -> None:
    """Make it in one rename: without its entries, if only for a moment, it would prove that all are gone."""
    named = _named(store)
    area = f"{store.layout.tmp}/{WorkName.unowned(Purpose.REGISTER)}"
    store.fs.make_dirs(f"{area}/{REVOKED}", shared=store.layout.shared)
    try:
        for id in named:
            store.fs.put_record(_UNKNOWN, f"{area}/{HolderName(id, 0, 0)}")
        store.fs.rename(area, store.layout.holders)
    except BaseException:
        with contextlib.suppress(OSError):
            store.fs.remove_tree(area)
        raise
    for id in _named(store) - named:  # who has taken a lease meanwhile
        store.fs.put_record(_UNKNOWN, f"{store.layout.holders}/{HolderName(id, 0, 0)}")
