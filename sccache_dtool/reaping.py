"""Judging leases by their holders, and ending those whose holder is proved dead.

Each holder is asked once, however many leases it has. It is revoked before any lease of its is ended, so that it
learns of it, and so that a heartbeat that comes first saves them all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from sccache_dtool import history, holders
from sccache_dtool.clock import Clock
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import HolderRecord, Roll
from sccache_dtool.layout import REAPED, HolderName, Layout
from sccache_dtool.leases import Held, end
from sccache_dtool.liveness import State, Verdict, lifetime
from sccache_dtool.liveness.process import Proc
from sccache_dtool.records import Damaged


class Judged(NamedTuple):
    """A lease with its holder and what can be said of it."""

    held: Held
    holder: HolderName | None
    record: HolderRecord | None
    since: float | None  # seconds since 1970, by the user's clock
    by: str
    verdict: Verdict


class Court:
    """Judges leases by their holders; each holder is asked once, however many leases it has."""

    def __init__(
        self, fs: FileSystem, layout: Layout, roll: Roll, judge: Callable[[HolderName, HolderRecord], Verdict]
    ) -> None:
        self._fs = fs
        self._layout = layout
        self.roll = roll
        self._judge = judge
        self._second_roll: Roll | None = None
        self._known: dict[str, tuple[HolderRecord | None, Verdict]] = {}

    def lease(self, held: Held) -> Judged:
        """What can be said of one lease."""
        since, by = self._text(held)
        if held.lease is None:
            verdict = Verdict(State.UNKNOWN, "not a name that sc-dtool makes; somebody may mean something by it")
            return Judged(held, None, None, since, by, verdict)
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
            record = holders.read(self._fs, self._layout, name)
        except FileNotFoundError:
            return None, Verdict(State.ALIVE, "its holder has just shown a heartbeat")
        except (OSError, Damaged) as error:
            return None, Verdict(State.UNKNOWN, f"its holder's record cannot be read ({error})")
        return record, self._judge(name, record)

    def _missing(self, id: str) -> Verdict:
        """A holder that no listing shows has ended; one listing may miss a name that is renamed meanwhile."""
        if not self.roll.is_proof:
            return Verdict(State.UNKNOWN, "its holder is not listed; `sc-dtool reap` can tell whether it has ended")
        if self._second_roll is None:
            self._second_roll = Roll.call(self._fs, self._layout)
        if id in self._second_roll.present:
            return Verdict(State.ALIVE, "its holder has just shown a heartbeat")
        return Verdict(State.DEAD, "its holder has ended")

    def _text(self, held: Held) -> tuple[float | None, str]:
        try:
            return history.decode_lease(self._fs.get_record(f"{held.gate(self._layout)}/{held.name}"))
        except (OSError, ValueError):
            return None, "?"


@contextlib.contextmanager
def open_court(
    fs: FileSystem, layout: Layout, clock: Clock, proc: Proc, cache_id: str, *, glance: bool = False
) -> Iterator[Court]:
    """A court with everybody who is there. What it sees of lifetimes is remembered for the next one on this host.

    `glance`: write nothing into the cache; then nobody is found missing, and no fixed end is found passed.
    """
    memory = lifetime.Memory(_memory_path(proc, cache_id), clock)
    with memory.remembered():
        roll = Roll.glance(fs, layout) if glance else Roll.call(fs, layout)
        one_clock = lifetime.mount_type(layout.root) in lifetime.ONE_CLOCK
        now = roll.now if one_clock else None

        def judge(name: HolderName, record: HolderRecord) -> Verdict:
            return holders.judge(record, proc, lambda ttl: lifetime.judge(name, ttl, memory, now, clock.wall()))

        yield Court(fs, layout, roll, judge)
        memory.forget_all_but({str(name) for name in roll.present.values()})


def _memory_path(proc: Proc, cache_id: str) -> str | None:
    """Of this user, this boot and these name spaces: times since boot mean nothing elsewhere."""
    here = proc.here()
    if here is None:
        return None
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/sc-dtool/seen-{cache_id}-{here[0]}-{here[1]}.json"


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
) -> Reaped:
    """End the leases in `held` of every holder that is proved dead, and revoke such holders.

    `everybody`: judge all holders, those too that have no lease in `held`. `held` must have been listed before the
    court was opened: a newer lease's holder would be missing in its roll.
    """
    roll = court.roll
    listed = [one for one in held if one.lease]
    concerned = set(roll.present) if everybody else {one.lease.holder for one in listed if one.lease}
    ended: list[Judged] = []
    revoked: dict[str, str] = {}
    failed: list[str] = []
    for id in sorted(concerned & roll.present.keys()):
        _, verdict = court.holder(id)
        if verdict.state is not State.DEAD:
            continue
        name = roll.present[id]
        try:
            if dry_run or holders.revoke(fs, layout, name):
                revoked[id] = verdict.evidence
        except OSError as error:
            failed.append(f"cannot revoke holder {id}: {error.strerror}")
    for one in listed:
        judged = court.lease(one)
        if judged.verdict.state is not State.DEAD:
            continue
        if judged.holder is not None and judged.holder.id not in revoked:
            continue  # it showed a heartbeat in the meantime
        try:
            if dry_run or end(fs, clock, one.gate(layout), layout.history(one.key), one.name, REAPED):
                ended.append(judged)
        except OSError as error:
            failed.append(f"cannot end lease {one.name} of {judged.by} on {one.key}: {error.strerror}")
    return Reaped(tuple(ended), tuple(revoked.items()), tuple(failed))
