"""What a user holds, and until when."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Item
from sccache_dtool.clock import from_iso, iso
from sccache_dtool.disk.records import Damaged, printable
from sccache_dtool.liveness import State
from sccache_dtool.liveness.caller import BEATING, JOB, NAMED
from sccache_dtool.liveness.record import HolderRecord
from sccache_dtool.pool import Pool
from sccache_dtool.protocol import history, holders
from sccache_dtool.protocol.holders import HolderList
from sccache_dtool.protocol.leases import Held
from sccache_dtool.protocol.reaping import Judged, open_judge
from sccache_dtool.protocol.store import Store


class Holding(NamedTuple):
    """A lease of a user."""

    item: Item  # its finished uses are not counted
    user: str
    judged: Judged

    @property
    def until(self) -> float | None:
        """When its lifetime ends, in seconds since 1970; None if it has none, or its holder renews it by itself."""
        record, name = self.judged.record, self.judged.holder
        if record is None or name is None or record.ttl is None or record.kind in BEATING:
            return None
        return max(float(name.end), (from_iso(record.since) or 0.0) + record.ttl)


def lasts(one: Holding) -> str:
    """Until when a lease is held, in words."""
    record = one.judged.record
    if one.judged.verdict.state is State.DEAD:
        return f"the next clean: {one.judged.verdict.evidence}"
    if record is None:
        return "unknown: its holder cannot be read"
    if record.session is not None and record.session.item is not None:
        return f"it is released, or session {printable(record.session.session)} ends"
    end = None if one.until is None else iso(one.until)
    if record.kind is NAMED:
        return end or "it is released"
    lives = f"{record.job} ends" if record.kind is JOB else f"{_process(record)} ends"
    return lives if end is None else f"{lives}; if that cannot be seen: {end}"


def _process(record: HolderRecord) -> str:
    number = "the program" if record.process is None else f"process {record.process.pid}"
    return f"{number} on {record.host}"


def holdings(store: Store, pool: Pool, user: str | None) -> list[Holding]:
    """The leases of one user, or of everybody. Batch systems are asked only for the jobs of these."""
    busy = (item for part in items.survey(store, pool, items.unsettled, uses=False) for item in part)
    return of_items(store, busy, user)


def of_items(store: Store, busy: Iterable[Item], user: str | None = None) -> list[Holding]:
    """As `holdings`, on items that a scan has found."""
    users = _users(store)
    found = [(item, who, one) for item in busy for one, who in _with_users(store, item, users) if user in (None, who)]
    with open_judge(store, glance=True) as judge:
        judge.expect({one.lease.holder for _, _, one in found if one.lease})
        return [Holding(item, who, judge.lease(one)) for item, who, one in found]


def _users(store: Store) -> dict[str, str]:
    """The users of all holders, by the ids of these."""
    users = {}
    for name in HolderList.glance(store).present.values():
        with contextlib.suppress(OSError, Damaged):
            users[name.id] = holders.read(store, name).user
    return users


def _with_users(store: Store, item: Item, users: dict[str, str]) -> Iterator[tuple[Held, str]]:
    """The leases on an item, each with its user, as its holder or else the lease itself says."""
    for one in item.held:
        user = users.get(one.lease.holder) if one.lease else None
        if user is None:
            text = ""
            with contextlib.suppress(OSError):
                text = store.fs.get_record(f"{one.gate(store.layout)}/{one.name}")
            user = history.decode_lease(text)[1].partition("@")[0]
        yield one, user
