"""Judging leases by their holders, and ending those whose holder is proved dead.

Each holder is asked once, however many leases it has. It is revoked before any lease of its is ended, so that it
learns of it, and so that a heartbeat that comes first saves them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from sccache_dtool.clock import Clock, from_iso
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import REAPED, HolderName, Layout
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import FORBIDDEN, FULL, explain
from sccache_dtool.liveness import State, Verdict, lifetime
from sccache_dtool.liveness.batch.query import Docket
from sccache_dtool.liveness.job import Job
from sccache_dtool.protocol import history, holders
from sccache_dtool.protocol.holders import HolderRecord, Roll
from sccache_dtool.protocol.leases import Held, end
from sccache_dtool.protocol.store import Workplace
from sccache_dtool.units import short_duration

#: How often we wait for a moment without a change among the holders, to tell who is missing.
_PATIENCE = 3


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
        """The id of the holder; empty for a name that is no lease."""
        return self.held.lease.holder if self.held.lease else ""


class Court:
    """Judges leases by their holders; each holder is asked once, however many leases it has."""

    def __init__(
        self,
        fs: FileSystem,
        layout: Layout,
        clock: Clock,
        roll: Roll,
        judge: Callable[[HolderName, HolderRecord], Verdict],
        warn: Callable[[str], None],
        docket: Docket | None = None,
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._clock = clock
        self.roll = roll
        self._judge = judge
        self._warn = warn
        self._docket = docket
        self._records: dict[str, HolderRecord] = {}
        self._known: dict[str, tuple[HolderRecord | None, Verdict]] = {}
        self._revoked: set[str] = set()
        self._silent: list[Roll] | None = None  # the roll that was called in silence, if there was one; None: not tried

    def expect(self, ids: Iterable[str]) -> None:
        """Say who will be judged, so that a batch system is asked for all their jobs at once. Reads their records."""
        for id in ids:
            name = self.roll.present.get(id)
            if name is None or id in self._known or id in self._records:
                continue
            with contextlib.suppress(OSError, Damaged):  # why it cannot be read is told when it is judged
                record = self._records[id] = holders.read(self._fs, self._layout, name)
                if record.job is not None and self._docket is not None:
                    self._docket.expect(record.job)

    def revoke(self, id: str) -> bool:
        """Take the entry of a dead holder away, before anything of its is. False: it has beaten, and is not dead.

        Raises OSError, and then, too, it keeps its leases and its work.
        """
        name = self.roll.present.get(id)
        if name is None or id in self._revoked:
            return True
        try:
            done = holders.revoke(self._fs, self._layout, name)
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

    def convict(self, id: str, evidence: str) -> None:
        """Take a holder for dead on a person's word, also one that is missing."""
        record = None
        if id in self.roll.present or self._was_overlooked(id):
            record, _ = self.holder(id)
        self._known[id] = record, Verdict(State.DEAD, evidence)

    def _was_overlooked(self, id: str) -> bool:
        """Whether a holder that the roll does not have is there after all.

        A listing may miss a name that is renamed meanwhile. A holder that lives must be revoked, to learn of it.
        """
        look = Roll.call if self.roll.is_proof else Roll.glance
        for _ in range(_PATIENCE):
            name = look(self._fs, self._layout).present.get(id)
            if name is not None:
                self.roll = self.roll._replace(present={**self.roll.present, id: name})
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
        name = self.roll.present.get(held.lease.holder)
        return Judged(held, name, record, since, str(record) if record else by, verdict)

    def holder(self, id: str) -> tuple[HolderRecord | None, Verdict]:
        """The record of a holder, if it can be read, and what can be said of it."""
        if id not in self._known:
            self._known[id] = self._hear(id)
        return self._known[id]

    def _hear(self, id: str) -> tuple[HolderRecord | None, Verdict]:
        if id in self.roll.gone:
            return None, Verdict(State.DEAD, "its holder was revoked")
        name = self.roll.present.get(id)
        if name is None:
            return None, self._missing(id)
        try:
            record = self._records.pop(id, None) or holders.read(self._fs, self._layout, name)
        except FileNotFoundError:
            return None, Verdict(State.ALIVE, "its holder has just shown a heartbeat")
        except (OSError, Damaged) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._warn(f"{self._layout.holders}/{name}: cannot be read ({reason}); counted as alive")
            return None, Verdict(State.UNKNOWN, f"its holder's record cannot be read ({reason})")
        return record, self._judge(name, record)

    def _missing(self, id: str) -> Verdict:
        """A holder that no listing shows has ended; one listing may miss a name that is renamed meanwhile."""
        if not self.roll.is_proof:
            return Verdict(
                State.UNKNOWN, "its holder is not listed; `sc-dtool reap` can determine whether it has ended"
            )
        if self._silent is None:
            self._silent = self._call_in_silence()
        if not self._silent:
            return Verdict(
                State.UNKNOWN, "its holder is not listed; a later `sc-dtool reap` can determine whether it has ended"
            )
        if id in self._silent[0].present:
            return Verdict(State.ALIVE, "its holder has just shown a heartbeat")
        return Verdict(State.DEAD, "its holder has ended")

    def _call_in_silence(self) -> list[Roll]:
        """Who was there at a moment when nobody came or went; nothing if there was none, for all our patience."""
        calls = (Roll.call_in_silence(self._fs, self._layout, self._clock) for _ in range(_PATIENCE))
        heard = next((roll for roll in calls if roll is not None), None)
        return [] if heard is None else [heard]

    def _text(self, held: Held) -> tuple[float | None, str]:
        try:
            return history.decode_lease(self._fs.get_record(f"{held.gate(self._layout)}/{held.name}"))
        except (OSError, ValueError):
            return None, "?"


@contextlib.contextmanager
def open_court(place: Workplace, *, glance: bool = False, dry_run: bool = False) -> Iterator[Court]:
    """A court with everybody who is there. What it sees of lifetimes is remembered for the next one on this host.

    `glance`: write nothing into the cache; then nobody is found missing, and no fixed end is found passed. `dry_run`:
    so, too, if nothing can be written.
    """
    fs, layout, clock, proc, cache_id, warn = place
    memory = lifetime.Memory(lifetime.memory_path(proc, f"seen-{cache_id}"), clock)
    with memory.remembered():
        roll = Roll.glance(fs, layout) if glance else _call(fs, layout, warn, dry_run)
        one_clock = lifetime.mount_type(layout.root) in lifetime.ONE_CLOCK
        now = roll.now if one_clock else None

        docket = Docket(clock, memory)

        def judge(name: HolderName, record: HolderRecord) -> Verdict:
            pause = _pause(record)

            def lapsed(ttl: float | None) -> Verdict:
                promised = (from_iso(record.since) or 0.0) + (ttl or 0.0)
                return lifetime.judge(name, ttl, memory, now, clock.wall(), pause, promised)

            def scheduled(job: Job) -> Verdict:
                verdict = docket.judge(job)
                if verdict.state is not State.DEAD or pause is None:
                    return verdict
                # Where jobs are not kept together by control groups a program can outlive its job, and go on beating.
                silent = memory.unchanged_for(str(name))
                if silent > lifetime.MISSED_BEATS * pause:
                    return verdict
                text = f"{verdict.evidence}, but there may have been a heartbeat {short_duration(silent)} ago"
                return Verdict(State.UNKNOWN, text)

            return holders.judge(record, proc, lapsed, scheduled)

        for stranger in roll.strangers:
            warn(f"{layout.holders}/{records.printable(stranger)}: not a holder; left alone")
        yield Court(fs, layout, clock, roll, judge, warn, docket)
        memory.forget_unless({str(name) for name in roll.present.values()}.__contains__)
    if memory.is_lost and not glance:
        where = "there is no directory for it" if memory.path is None else f"{memory.path} cannot be written"
        warn(
            f"observations of lifetimes cannot be stored ({where}): leases of dead holders on other hosts may never end"
        )


def _call(fs: FileSystem, layout: Layout, warn: Callable[[str], None], dry_run: bool) -> Roll:
    """The roll; what a glance shows of it on a full disk and, if nothing is to be done, where we may only look."""
    try:
        return Roll.call(fs, layout)
    except OSError as error:
        if error.errno not in (FULL | FORBIDDEN if dry_run else FULL):
            raise
        warn(f"{explain(error)}; until it can be written, missing holders are not considered dead")
        return Roll.glance(fs, layout)


def _pause(record: HolderRecord) -> float | None:
    """Seconds between two heartbeats of a holder; None if it shows none."""
    if record.kind not in holders.BEATING or record.ttl is None:
        return None
    return holders.pause_between_beats(record.ttl)


class Reaped(NamedTuple):
    """What a reaping did, or would do."""

    leases: tuple[Judged, ...]
    holders: tuple[tuple[str, str], ...]  # id, and the evidence
    failed: tuple[str, ...]


def reap(
    fs: FileSystem,
    layout: Layout,
    clock: Clock,
    court: Court,
    held: Iterable[Held],
    *,
    dry_run: bool,
    everybody: bool = True,
    also: Collection[str] = (),
) -> Reaped:
    """End the leases in `held` of every holder that is proved dead, and revoke such holders.

    `everybody`: judge all holders, those too that have no lease in `held`; otherwise those in `also`. `held` must have
    been listed before the court was opened: a newer lease's holder would be missing in its roll.
    """
    roll = court.roll
    listed = [one for one in held if one.lease]
    concerned = set(roll.present) if everybody else {*also, *(one.lease.holder for one in listed if one.lease)}
    ended: list[Judged] = []
    revoked: dict[str, str] = {}
    failed: list[str] = []
    court.expect(sorted(concerned))
    for id in sorted(concerned & roll.present.keys()):
        record, verdict = court.holder(id)
        if verdict.state is not State.DEAD:
            continue
        try:
            if dry_run or court.revoke(id):
                revoked[id] = verdict.evidence
        except OSError as error:
            failed.append(f"cannot revoke holder {id}: {error.strerror}{_by_whom(error, record, id, also)}")
    for one in listed:
        judged = court.lease(one)
        if judged.verdict.state is not State.DEAD:
            continue
        try:
            if dry_run or end(fs, clock, one.gate(layout), layout.history(one.key), one.name, REAPED):
                ended.append(judged)
        except OSError as error:
            reason = f"{error.strerror}{_by_whom(error, judged.record, judged.holder_id, also)}"
            failed.append(f"cannot end lease {one.name} of {judged.by} on {one.key}: {reason}")
    return Reaped(tuple(ended), tuple(revoked.items()), tuple(failed))


def _by_whom(error: OSError, record: HolderRecord | None, id: str, on_word: Collection[str]) -> str:
    """Who can do what we may not. `on_word`: holders that are taken for dead on a person's word."""
    if error.errno not in FORBIDDEN:
        return ""
    user = "the user who made it" if record is None else f"user {records.printable(record.user)}"
    command = f"sc-dtool reap --holder {id}" if id in on_word else "sc-dtool reap"
    return f"; {user}, or the owner of the cache, must do it: {command}"
