"""Judging leases by their holders, and ending those whose holder is proved dead.

Each holder is asked once, however many leases it has. It is revoked before any lease of its is ended, so that it
learns of it, and so that a heartbeat that comes first saves them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from sccache_dtool.clock import from_iso, iso
from sccache_dtool.disk import records
from sccache_dtool.disk.names import REAPED, HolderName, is_session
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import FORBIDDEN, FULL, CacheError, explain
from sccache_dtool.liveness import State, Verdict, caller, lifetime
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.batch.query import JobStates
from sccache_dtool.liveness.job import Job
from sccache_dtool.liveness.process import Process
from sccache_dtool.liveness.record import HolderRecord
from sccache_dtool.oddity import Fate
from sccache_dtool.protocol import history, holders, sessions
from sccache_dtool.protocol.holders import HolderList
from sccache_dtool.protocol.leases import Held, end
from sccache_dtool.protocol.sessions import SessionFacts
from sccache_dtool.protocol.store import Store
from sccache_dtool.units import short_duration

#: Attempts to list the holders without a change meanwhile, which proves that one is missing.
_PATIENCE = 3


#: What is said of a holder while it is judged; it is asked for only if its record is forged.
_DEPENDS_ON_ITSELF = None, Verdict(State.UNKNOWN, "it depends on itself")


class Judged(NamedTuple):
    """A lease with its holder and what can be said of it."""

    held: Held
    holder: HolderName | None
    record: HolderRecord | None
    since: float | None  # seconds since 1970, by the user's clock
    by: str
    verdict: Verdict

    @property
    def holder_id(self) -> str:
        """The id of the holder; empty for a name that is not a lease."""
        return self.held.lease.holder if self.held.lease else ""


class Judge:
    """Judges leases by their holders; each holder is asked once, however many leases it has."""

    def __init__(
        self,
        store: Store,
        listing: HolderList,
        decide: Callable[[HolderName, HolderRecord], Verdict],
        job_states: JobStates | None = None,
    ) -> None:
        self._store = store
        self.listing = listing
        self._decide = decide
        self._job_states = job_states
        self._records: dict[str, HolderRecord] = {}
        self._known: dict[str, tuple[HolderRecord | None, Verdict]] = {}
        self._unchanged: list[HolderList | None] | None = None  # see _holders_at_a_moment; None: not listed yet
        self._revoked: set[str] = set()
        self._of_sessions: dict[str, Verdict] = {}  # of the locks of each session
        self._jobs: dict[str, str] = {}  # of the holder of each session

    @property
    def now(self) -> float:
        """The file system's clock where it is known, otherwise this host's, in seconds since 1970."""
        return self._store.clock.wall() if self.listing.now is None else self.listing.now

    def expect(self, ids: Iterable[str]) -> None:
        """Say who will be judged, so that a batch system is asked for all their jobs at once. Reads their records."""
        present = self.listing.present
        wanted = {id: present[id] for id in ids if id in present and id not in self._known and id not in self._records}
        with contextlib.suppress(OSError):  # why it cannot be read is told when it is judged
            self._records |= holders.read_all(self._store, wanted)
        for id in wanted.keys() - self._records.keys():
            with contextlib.suppress(OSError, Damaged):
                self._records[id] = holders.read(self._store, wanted[id])
        if self._job_states is not None:
            for record in filter(None, map(self._records.get, wanted)):
                if record.job is not None:
                    self._job_states.expect(record.job)

    def revoke(self, id: str) -> bool:
        """Take the entry of a dead holder away, before anything of its is. False: it has beaten, and is not dead.

        Raises OSError, and then, too, it keeps its leases and its work.
        """
        name = self.listing.present.get(id)
        if name is None or id in self._revoked:
            return True
        try:
            done = holders.revoke(self._store, name)
        except OSError:
            self._spare(id, State.UNKNOWN, "its holder cannot be revoked")
            raise
        if done:
            self._revoked.add(id)
        else:
            self._spare(id, State.ALIVE, "its holder has just shown a heartbeat")
        return done

    def _spare(self, id: str, state: State, reason: str) -> None:
        self._known[id] = self.holder(id)[0], Verdict(state, reason)

    def declare_dead(self, id: str, evidence: str) -> None:
        """Take a holder for dead on a person's word, also one that is missing."""
        record = None
        if id in self.listing.present or self._was_overlooked(id):
            record, _ = self.holder(id)
        self._known[id] = record, Verdict(State.DEAD, evidence)

    def _was_overlooked(self, id: str) -> bool:
        """Whether a holder that is missing in the listing is there after all.

        A listing may miss a name that is renamed meanwhile. A holder that lives must be revoked, to learn of it.
        """
        look = HolderList.complete if self.listing.is_proof else HolderList.glance
        for _ in range(_PATIENCE):
            name = look(self._store).present.get(id)
            if name is not None:
                self.listing = self.listing._replace(present={**self.listing.present, id: name})
                self._known.pop(id, None)
                return True
        return False

    def lease(self, held: Held) -> Judged:
        """What can be said of one lease."""
        since, by = self._text(held)
        if held.lease is None:
            verdict = Verdict(State.UNKNOWN, "not a name that sc-dtool creates, so its meaning is unknown")
            return Judged(held, None, None, since, records.printable(held.name), verdict)
        record, verdict = self.holder(held.lease.holder)
        name = self.listing.present.get(held.lease.holder)
        return Judged(held, name, record, since, str(record) if record else by, verdict)

    def holder(self, id: str) -> tuple[HolderRecord | None, Verdict]:
        """The record of a holder, if it can be read, and what can be said of it."""
        if id not in self._known:
            self._known[id] = _DEPENDS_ON_ITSELF
            self._known[id] = self._judge_holder(id)
        return self._known[id]

    def _judge_holder(self, id: str) -> tuple[HolderRecord | None, Verdict]:
        if id in self.listing.gone:
            return None, Verdict(State.DEAD, "its holder was revoked")
        name = self.listing.present.get(id)
        if name is None:
            return None, self._missing(id)
        try:
            record = self._records.pop(id, None) or holders.read(self._store, name)
        except FileNotFoundError:
            return None, Verdict(State.ALIVE, "its holder has just shown a heartbeat")
        except (OSError, Damaged) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._store.report(f"{self._store.layout.holders}/{name}", f"cannot be read ({reason})", Fate.ALIVE)
            return None, Verdict(State.UNKNOWN, f"its holder's record cannot be read ({reason})")
        if record.session is not None and record.session.item is not None:
            return record, self._of_lock(record.session.session)
        return record, self._decide(name, record)

    def _of_lock(self, session: str) -> Verdict:
        """A lock lives as long as its session, which lasts until it is deleted, or reaped because its holder is dead.

        Like a missing holder, an ended session is proved after the leases were listed: whoever took a lock before that
        has then been ended by its deletion, or cannot prove that the session is there.
        """
        if session not in self._of_sessions:
            self._of_sessions[session] = self._judge_session(session)
        return self._of_sessions[session]

    def job_of(self, session: str) -> str | None:
        """The batch job of the holder of a session, scheduler:number; None if it has none, or is not known."""
        self._of_lock(session)
        return self._jobs.get(session)

    def has_died_before_its_lease(self, id: str) -> bool:
        """Whether a holder is of a lock whose taker was killed before it had the lease. Without that it never has one.

        The end of the process is proved first, and the missing lease by a look after that.
        """
        record, _ = self.holder(id)
        member = record.session if record else None
        if member is None or member.item is None or not has_died(self._store, member.taker):
            return False
        return not sessions.has_lease(self._store, member.item, id)

    def _judge_session(self, session: str) -> Verdict:
        ended = self._end_of_session(session) if self.listing.is_proof else None
        if ended is not None:
            return Verdict(State.DEAD, ended)
        try:
            facts = sessions.read(self._store, session)
        except (sessions.NoSession, OSError, Damaged) as error:
            return Verdict(State.UNKNOWN, f"its session cannot be read ({error}); see sc-dtool reap")
        record, (state, evidence) = self.holder(facts.holder)
        if record is not None and record.job is not None:
            self._jobs[session] = f"{record.job.scheduler}:{record.job.id}"
        if facts.has_ended or state is State.DEAD:
            return Verdict(State.UNKNOWN, f"`sc-dtool reap` ends its session {session}: {evidence}")
        return Verdict(state, f"session {session}: {evidence}")

    def conclude(self, session: str, evidence: str) -> list[str]:
        """Take the holders of a session's locks for dead, as the session has ended; their ids."""
        found = [
            (id, record) for id, (record, _) in self._known.items() if record and record.session and record.session.item
        ]
        found = [(id, record) for id, record in found if record.session and record.session.session == session]
        for id, record in found:
            self._known[id] = record, Verdict(State.DEAD, f"its session has ended, because its holder has: {evidence}")
        return [id for id, _ in found]

    def _end_of_session(self, session: str) -> str | None:
        if not is_session(session) or not sessions.has_ended(self._store, session):
            return None
        at = sessions.ended_at(self._store, session)
        return "its session was deleted" if at is None else f"its session was deleted at {iso(at)}"

    def _missing(self, id: str) -> Verdict:
        """A holder that no listing shows has ended; one listing may miss a name that is renamed meanwhile."""
        if not self.listing.is_proof:
            text = "its holder is not listed; `sc-dtool reap` can determine whether it has ended"
            return Verdict(State.UNKNOWN, text)
        unchanged = self._holders_at_a_moment()
        if unchanged is None:
            text = "its holder is not listed; a later `sc-dtool reap` can determine whether it has ended"
            return Verdict(State.UNKNOWN, text)
        if id in unchanged.present:
            return Verdict(State.ALIVE, "its holder has just shown a heartbeat")
        return Verdict(State.DEAD, "its holder has ended")

    def _holders_at_a_moment(self) -> HolderList | None:
        """The holders when none came or went, listed once; None if there was no such moment for a while.

        Not a cached_property: in Python 3.11, all instances wait for one that is being computed.
        """
        if self._unchanged is None:
            attempts = (HolderList.if_unchanged(self._store) for _ in range(_PATIENCE))
            self._unchanged = [next((listing for listing in attempts if listing is not None), None)]
        return self._unchanged[0]

    def _text(self, held: Held) -> tuple[float | None, str]:
        try:
            return history.decode_lease(self._store.fs.get_record(f"{held.gate(self._store.layout)}/{held.name}"))
        except (OSError, ValueError):
            return None, "?"


@contextlib.contextmanager
def open_judge(store: Store, *, glance: bool = False, dry_run: bool = False) -> Iterator[Judge]:
    """A judge of all holders that are listed. What it sees of lifetimes is remembered for the next one on this host.

    `glance`: write nothing into the cache; then nobody is found missing, and no fixed end is found passed. `dry_run`:
    so, too, if nothing can be written.
    """
    memory = lifetime.Memory(lifetime.memory_path(store.proc, f"seen-{store.id}"), store.clock)
    with memory.remembered():
        listing = HolderList.glance(store) if glance else _list_holders(store, dry_run)
        one_clock = lifetime.mount_type(store.layout.root) in lifetime.ONE_CLOCK
        now = listing.now if one_clock else None
        job_states = JobStates(store.clock, memory)

        def decide(name: HolderName, record: HolderRecord) -> Verdict:
            pause = _pause(record)

            def lapsed(ttl: float | None) -> Verdict:
                promised = (from_iso(record.since) or 0.0) + (ttl or 0.0)
                return lifetime.judge(name, ttl, memory, now, store.clock.wall(), pause, promised)

            def scheduled(job: Job) -> Verdict:
                verdict = job_states.judge(job)
                if verdict.state is not State.DEAD or pause is None:
                    return verdict
                # Where jobs are not kept together by control groups a program can outlive its job, and go on beating.
                silent = memory.unchanged_for(str(name))
                if silent > lifetime.MISSED_BEATS * pause:
                    return verdict
                text = f"{verdict.evidence}, but there may have been a heartbeat {short_duration(silent)} ago"
                return Verdict(State.UNKNOWN, text)

            return holder_record.judge(record, store.proc, lapsed, scheduled)

        for text in listing.unknown_names:
            store.report(f"{store.layout.holders}/{records.printable(text)}", "not a holder", Fate.LEFT_ALONE)
        yield Judge(store, listing, decide, job_states)
        memory.forget_unless({str(name) for name in listing.present.values()}.__contains__)
    if memory.is_lost and not glance:
        where = "there is no directory for it" if memory.path is None else f"{memory.path} cannot be written"
        store.log.warning(
            f"observations of lifetimes cannot be stored ({where}): leases of dead holders on other hosts may never end"
        )


def _list_holders(store: Store, dry_run: bool) -> HolderList:
    """All holders; what a glance shows on a full disk and, if nothing is to be done, where the user may only look."""
    try:
        return HolderList.complete(store)
    except OSError as error:
        if error.errno not in (FULL | FORBIDDEN if dry_run else FULL):
            raise
        store.log.warning(f"{explain(error)}; until it can be written, missing holders are not considered dead")
        return HolderList.glance(store)


def _pause(record: HolderRecord) -> float | None:
    """Seconds between two heartbeats of a holder; None if it shows none."""
    if record.kind not in caller.BEATING or record.ttl is None:
        return None
    return holders.pause_between_beats(record.ttl)


def has_died(store: Store, taker: str | None) -> bool:
    """Whether the process that takes a lock has certainly ended, as far as this host can see."""
    process = Process.from_text(taker) if taker else None
    return process is not None and store.proc.judge(process).state is State.DEAD


class Reaped(NamedTuple):
    """What a reaping did, or would do."""

    leases: tuple[Judged, ...]
    holders: Mapping[str, str]  # the evidence for each, by its id
    failed: tuple[str, ...]
    sessions: Mapping[str, str] = MappingProxyType({})  # the same


def reap(
    store: Store,
    judge: Judge,
    held: Iterable[Held],
    *,
    dry_run: bool,
    everybody: bool = True,
    also: Collection[str] = (),
    open_sessions: Iterable[SessionFacts] = (),
) -> Reaped:
    """End the leases in `held` of every holder that is proved dead, revoke such holders, and delete their sessions.

    `everybody`: judge all holders, those too that have no lease in `held`; otherwise those in `also`. `held` and
    `open_sessions` must have been listed before the judge was made: a newer one's holder would be missing in its list.
    """
    listing = judge.listing
    listed = [one for one in held if one.lease]
    concerned = set(listing.present) if everybody else {*also, *(one.lease.holder for one in listed if one.lease)}
    ended: list[Judged] = []
    revoked: dict[str, str] = {}
    failed: list[str] = []
    judge.expect(sorted(concerned))
    holding = {one.lease.holder for one in listed if one.lease}
    for id in sorted(concerned & listing.present.keys()):
        record, verdict = judge.holder(id)
        if verdict.state is not State.DEAD and id not in holding and judge.has_died_before_its_lease(id):
            verdict = Verdict(State.DEAD, "the process that took this lock was killed before it had the lease")
        if verdict.state is not State.DEAD:
            continue
        try:
            if dry_run or judge.revoke(id):
                revoked[id] = verdict.evidence
        except OSError as error:
            failed.append(f"cannot revoke holder {id}: {error.strerror}{_who_can(error, record, id, also)}")
    over: dict[str, str] = {}
    of_sessions: set[str] = set()
    for facts in open_sessions:
        _, verdict = judge.holder(facts.holder)
        if not (everybody or facts.holder in also) or verdict.state is not State.DEAD:
            continue
        try:
            if dry_run or (judge.revoke(facts.holder) and sessions.delete(store, facts.id, REAPED)):
                over[facts.id] = verdict.evidence
                of_sessions |= {facts.holder, *judge.conclude(facts.id, verdict.evidence)}
        except (OSError, CacheError) as error:
            failed.append(f"cannot end session {facts.id}: {error}")
    for one in listed:
        judged = judge.lease(one)
        if judged.verdict.state is not State.DEAD:
            continue
        try:
            done = dry_run or end(store, one.gate(store.layout), store.layout.history(one.key), one.name, REAPED)
            if done or judged.holder_id in of_sessions:  # whose leases have ended with their session
                ended.append(judged)
        except OSError as error:
            reason = f"{error.strerror}{_who_can(error, judged.record, judged.holder_id, also)}"
            failed.append(f"cannot end lease {one.name} of {judged.by} on {one.key}: {reason}")
    return Reaped(tuple(ended), revoked, tuple(failed), over)


def _who_can(error: OSError, record: HolderRecord | None, id: str, on_word: Collection[str]) -> str:
    """Who can do what this user may not. `on_word`: holders that are taken for dead on a person's word."""
    if error.errno not in FORBIDDEN:
        return ""
    user = "the user who made it" if record is None else f"user {records.printable(record.user)}"
    command = f"sc-dtool reap --holder {id}" if id in on_word else "sc-dtool reap"
    return f"; {user}, or the owner of the cache, must do it: {command}"
