"""What a user holds, and until when: `status --mine`, `ls --mine`, as tables, records and calendars."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sccache_dtool.cache import Cache
from sccache_dtool.catalog.holdings import lasts
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation
from sccache_dtool.cli.output import Column
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import UsageError
from sccache_dtool.liveness.caller import JOB

if TYPE_CHECKING:
    from sccache_dtool.catalog.holdings import Holding


def print_holdings(call: Invocation, cache: Cache, user: str | None, notice: float | None, ical: bool) -> None:
    """Print the leases of a user, or of everybody; `notice`: only those that end within so many seconds."""
    if ical and call.format != "human":
        raise UsageError("--ical and -f cannot be combined", hint="leave out -f")
    moment = time.time()
    found = sorted(cache.holdings(user), key=lambda one: (one.until or float("inf"), one.item.label))
    if notice is not None or ical:
        found = [one for one in found if one.until is not None and (notice is None or one.until < moment + notice)]
    if ical:
        if found:
            call.out.text(_calendar(call, cache, found, moment))
        else:
            call.out.note("no lease ends at a known time, so there is no calendar")
        return
    columns = [
        Column("ITEM", "name"),
        Column("HELD BY", "by"),
        Column("SINCE", lambda row: output.ago(row["_since"], moment)),
        Column("UNTIL", "lasts"),
    ]
    if notice is not None:
        columns.append(Column("TO KEEP IT", lambda row: row["renew"] or ""))
    by, of = ("", "") if user is None else (f" by {user}", f" of {user}")
    empty = f"no lease is held{by}" if notice is None else f"no lease{of} ends within that time"
    call.out.table("held", (holding_fields(call, one) for one in found), columns, empty)


def holding_fields(call: Invocation, one: Holding) -> dict[str, Any]:
    """The fields of a `held` record."""
    held, record = one.judged.held, one.judged.record
    session = None if record is None else record.session
    return {
        "item": held.key,
        "name": one.item.label,
        "copy": held.generation,
        "lease": held.name,
        "holder": one.judged.holder_id or None,
        "user": one.user,
        "by": one.judged.by,
        "since": output.moment(one.judged.since),
        "until": output.moment(one.until),
        "lasts": lasts(one),
        "session": None if session is None else printable(session.session),
        "renew": _renew(call, one),
        "verdict": str(one.judged.verdict.state),
        "evidence": one.judged.verdict.evidence,
        "_since": one.judged.since,
    }


def sum_fields(found: Iterable[Holding]) -> dict[str, Any]:
    """What `ls` shows of a user's leases on one item."""
    listed = list(found)
    ends = [one.until for one in listed]
    last = None if None in ends else max(filter(None, ends), default=None)
    return {"held": len(listed), "until": output.moment(last), "lasts": list(dict.fromkeys(map(lasts, listed)))}


def _renew(call: Invocation, one: Holding) -> str | None:
    """The command that extends the lifetime; None if there is none."""
    record = one.judged.record
    if record is None or one.until is None:
        return None
    if record.kind is JOB and record.job is not None:
        at = f"@{record.job.cluster}" if record.job.cluster else ""
        return call.command("renew", "--holder", f"{record.job.scheduler}:{record.job.id}{at}")
    if record.process is not None:
        return f"{call.command('renew', '--holder', f'pid:{record.process.pid}')}  # on {record.host}"
    return call.command("renew", "--holder", str(record.name))


def _calendar(call: Invocation, cache: Cache, found: Iterable[Holding], moment: float) -> str:
    from sccache_dtool.cli.ical import Event, calendar

    def event(one: Holding) -> Event:
        held, name = one.judged.held, one.judged.holder
        lines = [
            f"{one.item.label} in {cache.root} is held by {one.judged.by}, until {lasts(one)}.",
            "After that, it may be removed.",
            f"To keep it: {_renew(call, one)}",
        ]
        return Event(
            f"{held.name}@{cache.check()}",
            0 if name is None else name.beats,
            one.until or 0.0,
            f"The lease on {one.item.label} ends",
            "\n".join(lines),
        )

    return calendar(map(event, found), moment)
