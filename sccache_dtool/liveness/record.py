"""What a holder says of itself, and judging it by that: its record, written by one program and read by others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sccache_dtool.clock import Clock, iso
from sccache_dtool.disk import records
from sccache_dtool.disk.names import is_session
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.caller import JOB, KINDS, MOST_BETWEEN, NAMED, PROGRAM, Kind, Owner, host_name, user_name
from sccache_dtool.liveness.process import Proc, Process
from sccache_dtool.tuples import NamedTuple
from sccache_dtool.units import LONGEST

if TYPE_CHECKING:
    from sccache_dtool.liveness.job import Job


class Membership(NamedTuple):
    """That a holder holds leases for a session."""

    session: str  # its id
    lock_owner: str | None = None  # of a lock that was taken on its own: the text that it was taken with
    item: str | None = None  # of such a lock: the key of its item; of a record, the first 32 digits
    taker: str | None = None  # of such a lock: `Process.text` of who takes it, which may end once it has its lease
    job: str | None = None  # of such a lock: the batch job in which it was taken, scheduler:number; for showing


class HolderRecord(NamedTuple):
    """What a holder says of itself. Written by others: for showing and judging, never trusted further."""

    kind: Kind
    host: str
    user: str
    process: Process | None
    name: str | None
    command: str
    ttl: float | None  # seconds
    since: str
    job: Job | None = None
    between: tuple[Process, ...] = ()  # see `Owner.between`
    session: Membership | None = None

    def __str__(self) -> str:
        owner = str(Owner(self.kind, self.process, self.name, self.command, self.job))
        if self.session is not None:
            of, session = self.session, f"session {self.session.session}"
            if of.item is not None:
                owner = session if of.lock_owner in (None, of.session) else f"{session} for {of.lock_owner}"
            elif self.name != session:
                owner = f"{owner}, {session}"
        return records.printable(f"{self.user}@{self.host}, {owner}")

    @classmethod
    def decode(cls, text: str) -> HolderRecord:
        """Raises records.Damaged for anything that no holder writes."""
        fields = records.decode(text)
        get = fields.get  # thousands of records may be read
        kind = KINDS.get(str(get("kind")))
        process, job = Process.from_fields(fields) if "pid" in fields else None, _job(fields)
        ttl, name = get("ttl"), get("name")
        if kind is None or not _is_whole(kind, process, job, name) or not _is_lifetime(ttl):
            raise records.Damaged("not a holder's record")
        return cls(
            kind,
            str(get("host", "?")),
            str(get("user", "?")),
            process,
            None if name is None else str(name),
            str(get("command", "")),
            None if ttl is None else float(ttl),
            str(get("since", "?")),
            job,
            _between(process, fields["between"]) if "between" in fields else (),
            _membership(get) if "session" in fields else None,
        )


def _is_whole(kind: Kind, process: Process | None, job: Job | None, name: object) -> bool:
    """Whether a record says whom it is of. A program where processes cannot be told apart goes by a name of its own."""
    if kind is JOB:
        return job is not None
    if kind is NAMED:
        return process is None
    return process is not None or (kind is PROGRAM and name is not None)


def _is_lifetime(ttl: object) -> bool:
    """Whether it is a number of seconds that the program writes; NaN and what no float holds are not."""
    return ttl is None or (isinstance(ttl, int | float) and not isinstance(ttl, bool) and 0 <= ttl <= LONGEST)


def _membership(get: Callable[[str], Any]) -> Membership:
    """Raises records.Damaged for what would become a part of a path, and is not one."""
    session, item = str(get("session")), get("item")
    if not is_session(session) or not (item is None or re.fullmatch("[0-9a-f]{32}", str(item))):
        raise records.Damaged("not a holder's record")
    owner, taker, job = get("lock_owner"), get("taker"), get("taken_in")
    return Membership(
        session,
        None if owner is None else str(owner),
        None if item is None else str(item),
        None if taker is None else str(taker),
        None if job is None else str(job),
    )


def _job(fields: Mapping[str, Any]) -> Job | None:
    """The batch job in a record; most have none, and then nothing is loaded for it."""
    if "scheduler" not in fields:
        return None
    from sccache_dtool.liveness.job import Job

    return Job.from_fields(fields)


def _between(process: Process | None, pairs: object) -> tuple[Process, ...]:
    """Further processes of the same host, given by number and start. Raises records.Damaged for anything else."""
    if process is None or not isinstance(pairs, list) or len(pairs) > MOST_BETWEEN:
        raise records.Damaged("not a holder's record")
    try:
        found = [Process.from_fields({**process.fields(), "pid": pid, "start": start}) for pid, start in pairs]
    except (TypeError, ValueError):
        found = [None]
    if None in found:
        raise records.Damaged("not a holder's record")
    return tuple(filter(None, found))


def encode(
    owner: Owner, ttl: float | None, clock: Clock, item: str | None = None, session: Membership | None = None
) -> str:
    """The record of a holder; HolderRecord.decode reads it.

    `item`: the key of the only item that it will hold, for scripts that end its lease without a scan (`samples/`): they
    need its digits, and a name might not fit. `session`: for which session it holds leases.
    """
    fields: dict[str, Any] = {
        "kind": owner.kind.title,
        "user": user_name(),
        "host": host_name(),
        "since": iso(clock.wall()),
        "ttl": ttl,
        "name": owner.name,
    }
    if owner.process is not None:
        fields |= owner.process.fields()
        fields["between"] = [[one.pid, one.start] for one in owner.between] or None
    if owner.job is not None:
        fields |= owner.job.fields() | {"item": item and item[:32]}
    if session is not None:
        digits = session.item and session.item[:32]
        fields |= {"session": session.session, "lock_owner": session.lock_owner, "item": digits or fields.get("item")}
        fields |= {"taker": session.taker, "taken_in": session.job}
    return records.encode(fields | {"command": owner.command or None})


def judge(
    record: HolderRecord,
    proc: Proc,
    lapsed: Callable[[float | None], Verdict],
    scheduled: Callable[[Job], Verdict] | None = None,
) -> Verdict:
    """Whether a holder is alive: by what this host sees of the process, then by the batch system, then by lifetime.

    `lapsed` is asked with the lifetime in seconds, and `scheduled` for the job, only where what comes before decides
    nothing. A job that runs keeps its holders whatever their lifetime says: it may be suspended.
    """
    seen = _see(record, proc)
    if seen is not None and (seen.state is State.ALIVE or (seen.state is State.DEAD and record.kind is not JOB)):
        return seen
    told = [seen.evidence] if seen is not None else []
    if record.job is not None and scheduled is not None:
        job = scheduled(record.job)
        told.append(job.evidence)
        # A job that has a process, as the shell under `salloc`, is over when both are.
        waits_for_process = record.kind is JOB and seen is not None and seen.state is not State.DEAD
        if job.state is State.ALIVE or (job.state is State.DEAD and not waits_for_process):
            return Verdict(job.state, job.evidence)
    lifetime = lapsed(record.ttl)
    return Verdict(lifetime.state, "; ".join((*told, lifetime.evidence)))


def _see(record: HolderRecord, proc: Proc) -> Verdict | None:
    """What this host sees of a holder's processes; None if it has none.

    A shell's copy in the background may go on reading when its script has ended.
    """
    if record.process is None:
        return None
    seen = proc.judge(record.process)
    if seen.state is State.DEAD:
        for one in record.between:
            called = proc.judge(one)
            if called.state is not State.DEAD:
                return Verdict(called.state, f"{seen.evidence}, but {called.evidence}, which called for it")
    return seen
