"""A cleaning from end to end: reap, plan, evict, tidy, delete. Names are freed first and space after."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sccache_dtool.catalog.items import Item
from sccache_dtool.catalog.loose import Loose
from sccache_dtool.clock import NO_DEADLINE, Deadline
from sccache_dtool.disk.names import Purpose, WorkName
from sccache_dtool.errors import GONE, explain
from sccache_dtool.evict import loose_removal, trash
from sccache_dtool.evict.leftovers import Leftover
from sccache_dtool.evict.trash import NO_TIME, EvictionResult
from sccache_dtool.lots.model import Question
from sccache_dtool.policy.rules import Candidate, Kept, Plan
from sccache_dtool.policy.thresholds import Excess, Trashed
from sccache_dtool.pool import Pool
from sccache_dtool.protocol import history
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.reaping import Judged, Reaped
from sccache_dtool.protocol.store import Store


class Failure(NamedTuple):
    """A copy that could not be removed, and why."""

    candidate: Candidate
    reason: str


class Tally:
    """What becomes of what a plan would remove, while it goes on: what is known of it if that is broken off."""

    def __init__(self) -> None:
        self.removed: list[Candidate] = []
        self.taken: list[Candidate] = []  # in use by the time they were asked for
        self.failed: list[Failure] = []
        self.left: list[Candidate] = []  # there was no time for them
        self.gone: list[Candidate] = []  # somebody else has removed them since the scan

    def add(self, candidate: Candidate, result: EvictionResult) -> None:
        """Note what became of one."""
        if result.reason is not None:
            self.failed.append(Failure(candidate, result.reason))
        elif result.outcome is None:
            self.left.append(candidate)
        else:
            by_outcome = {
                trash.Outcome.EVICTED: self.removed,
                trash.Outcome.IN_USE: self.taken,
                trash.Outcome.ALREADY_GONE: self.gone,
            }
            by_outcome[result.outcome].append(candidate)

    def places(self) -> set[str]:
        """All of which something is known."""
        failed = [failure.candidate for failure in self.failed]
        return {one.place for one in (*self.removed, *self.taken, *failed, *self.left, *self.gone)}


class Cleaned(NamedTuple):
    """What a cleaning did. Sizes in bytes."""

    plan: Plan
    reaped: Reaped
    removed: tuple[Candidate, ...] = ()
    taken: tuple[Candidate, ...] = ()  # in use by the time they were asked for
    failed: tuple[Failure, ...] = ()
    tidied: tuple[Leftover, ...] = ()
    purged: int = 0  # copies deleted from the trash, earlier evictions included
    unpurged: int = 0  # copies that are still to be deleted there
    unpurged_bytes: int = 0
    left: tuple[Candidate, ...] = ()  # there was no time for them
    in_the_way: tuple[Judged, ...] = ()  # leases, where the goal was missed
    gone: tuple[Candidate, ...] = ()  # somebody else has removed them since the scan
    trashed: Trashed = Trashed()  # what is in the trash now

    @property
    def freed(self) -> int:
        """What the removed copies took up."""
        return sum(candidate.bytes for candidate in self.removed)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """All that stayed, and why."""
        taken = (Kept(candidate, "in use now", True) for candidate in self.taken)
        return (*self.plan.keep, *taken, *(Kept(candidate, "the time limit was reached") for candidate in self.left))

    @property
    def missed(self) -> Excess:
        """By how much the goal was missed."""
        return self.plan.missed_after((*self.removed, *self.gone))

    @property
    def withheld(self) -> Excess:
        """By how much the file system stays over its marks because of the trash alone."""
        return self.plan.withheld_after((*self.removed, *self.gone), self.trashed)

    @property
    def complete(self) -> bool:
        """Whether all was done that was to be done."""
        overdue = self.plan.overdue or any(one.limit == Question.DELETION for one in self.taken)
        return not (self.failed or self.left or self.unpurged or self.missed or self.withheld or overdue)


def after_reaping(items: Iterable[Item], reaped: Reaped, now: float) -> Iterator[Item]:
    """The items as a reaping leaves them: a reaped lease is a use that has just ended."""
    ended = {judged.held for judged in reaped.leases}
    for item in items:
        copies = tuple(
            copy._replace(held=tuple(held for held in copy.held if held not in ended)) for copy in item.copies
        )
        count = item.leases - sum(len(copy.held) for copy in copies)
        if count:
            yield item._replace(copies=copies, finished_uses=item.finished_uses + count, last_end=now)
        else:
            yield item


#: Copies that are evicted as one piece of work.
AT_ONCE = 64


def carry_out(
    store: Store,
    plan: Plan,
    keep_until: int,
    holder: Holder | None,
    now: float,
    pool: Pool,
    tally: Tally,
    deadline: Deadline = NO_DEADLINE,
) -> None:
    """Evict what the plan names, and report it to `tally`, even if that is broken off.

    `holder` and `now` (seconds since 1970) are for files that dtool left, which are put into the trash together (not
    without a holder, on a full disk); after `deadline` nothing more is begun.
    """
    copies = [candidate for candidate in plan.remove if candidate.loose is None]
    evict = functools.partial(_evict, store, keep_until, deadline)
    results = pool.each_in_pieces(evict, [candidate.place for candidate in copies], AT_ONCE)
    try:
        with contextlib.closing(results):  # nobody is at work any more at its end
            for candidate, result in zip(copies, results, strict=True):
                tally.add(candidate, result)
    except BaseException:
        _record_what_is_in_the_trash(store, copies, keep_until, tally)
        raise
    of_dtool = {candidate.loose: candidate for candidate in plan.remove if candidate.loose is not None}
    if of_dtool:

        def record(one: Loose, result: EvictionResult) -> None:
            tally.add(of_dtool[one], result)

        loose_removal.remove(store, holder, of_dtool, keep_until, now, record, deadline)


def _record_what_is_in_the_trash(store: Store, copies: Iterable[Candidate], keep_until: int, tally: Tally) -> None:
    """Tell of copies that were evicted by those whose results nobody has taken, as the cleaning was broken off."""
    there = set(store.fs.names(store.layout.trash))
    told = tally.places()
    for candidate in copies:
        if candidate.place not in told and trash.name_of(candidate.generation, keep_until) in there:
            tally.add(candidate, EvictionResult(trash.Outcome.EVICTED))


def _evict(store: Store, keep_until: int, deadline: Deadline, place: str) -> EvictionResult:
    """Evict a copy. One that a lost process of this cleaning had evicted before counts as evicted."""
    if deadline.is_over():
        return NO_TIME
    key, _, generation = place.partition("/")
    try:
        outcome = trash.evict(store, key, generation, keep_until)
        if outcome is trash.Outcome.ALREADY_GONE:
            name = trash.name_of(generation, keep_until)
            if store.fs.seems_there(f"{store.layout.trash}/{name}"):
                outcome = trash.Outcome.EVICTED
        return EvictionResult(outcome)
    except OSError as error:
        return EvictionResult(None, explain(error))


def put_away(store: Store, leftovers: Iterable[Leftover], deadline: Deadline = NO_DEADLINE) -> list[Leftover]:
    """Put leftovers away; returns those for which it worked, and for which there was time."""
    done: list[Leftover] = []
    for leftover in leftovers:
        if deadline.is_over():
            break
        try:
            leftover.put_away()
        except OSError as error:
            if error.errno not in GONE:  # otherwise somebody else did
                store.log.warning(f"{explain(error)}; {leftover.what} is left for the next clean")
            continue
        done.append(leftover)
    return done


def fold_histories(store: Store, holder: Holder, keys: Iterable[str]) -> None:
    """Fold long histories; a failure costs nothing but the next listing's length."""
    for key in keys:
        tmp = f"{store.layout.tmp}/{WorkName(holder.next_lease(), Purpose.FOLD)}"
        with contextlib.suppress(OSError):
            history.fold(store, store.layout.history(key), tmp)
