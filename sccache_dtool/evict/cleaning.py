"""A cleaning from the first look to the record of it: by rules, or by a plan that somebody has looked at."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Generic, NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.catalog import loose as loose_files
from sccache_dtool.catalog.items import Item, Sum
from sccache_dtool.catalog.loose import LooseFiles
from sccache_dtool.clock import NO_DEADLINE, Deadline
from sccache_dtool.disk.filesystem import Room
from sccache_dtool.disk.names import CLEAN, WorkName
from sccache_dtool.errors import FULL, GONE, CacheError, InUse, UsageError, explain
from sccache_dtool.evict import audit, execution, loose_removal, pins, plan_file, single, trash
from sccache_dtool.evict.execution import Cleaned
from sccache_dtool.evict.leftovers import Leftover, Leftovers
from sccache_dtool.evict.plan_file import Planned
from sccache_dtool.evict.trash import Purged
from sccache_dtool.fallback import do_without
from sccache_dtool.liveness import State
from sccache_dtool.lots import table
from sccache_dtool.lots.lookup import Lookup
from sccache_dtool.lots.model import Lots, Question
from sccache_dtool.policy import shares
from sccache_dtool.policy.config import Config
from sccache_dtool.policy.rules import (
    PINNED,
    Candidate,
    Kept,
    Plan,
    Rules,
    Sifted,
    conclude,
    merge,
    removes_any,
    settle,
    sift,
)
from sccache_dtool.policy.shares import Shares
from sccache_dtool.policy.thresholds import Limits, Spare, Trashed, check_floor
from sccache_dtool.pool import Pool
from sccache_dtool.protocol import downloads, program, sessions
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.reaping import Judged, Reaped, open_judge
from sccache_dtool.protocol.sessions import SessionFacts
from sccache_dtool.protocol.store import Store

#: Scans after which a cleaning goes on although something was changed again meanwhile.
_MOST_SCANS = 3

#: Seconds between two looks whether another cleaner has ended.
_LOOK_EVERY = 1.0


class CleanOptions(NamedTuple):
    """How a cleaning is carried out, whatever it removes."""

    keep_for: float = 0.0  # seconds for which what is removed can be restored
    most_seconds: float | None = None  # after so long nothing more is begun, and the rest is left for the next cleaning
    why: str = ""  # for the record


class Surveyed(NamedTuple, Generic[Sum]):
    """What one scan has told, and what a cleaning would do about it."""

    parts: list[Sum]
    loose: LooseFiles
    plan: Plan | None  # None: there are no rules, or nobody can say
    reaped: Reaped | None
    unknown: str = ""  # why nobody can say


class _Sight(NamedTuple):
    """What a scan depends on: it is made again if another cleaner was at work, or the lots were changed meanwhile.

    Otherwise this cleaning would go by sums of what is gone, and remove more than is needed, or a share of a lot.
    """

    lots: tuple[str, ...]  # as `table.stamp`
    evicted: frozenset[str]  # the names of cleanings, and those in the trash; two changes may have the same time


class _Found(NamedTuple):
    """What there is before a cleaning."""

    rules: Rules  # with the lots, and what is pinned
    sifted: Sifted  # by them
    left: LooseFiles
    works: Sequence[str]  # names in `tmp/`
    of_sessions: Sequence[SessionFacts]


class Cleaner:
    """Cleans one cache: `policy/rules` decides, `execution` and `trash` act."""

    def __init__(self, store: Store, settings: Config, pool: Pool) -> None:
        self._store = store
        self._settings = settings  # each is read where it is needed: one that is wrong stops nothing else
        self._pool = pool
        self._shares: Shares | None = None  # None: the cache has no lots

    def plan(self, rules: Rules, keep_for: float, *, ahead: float = 0.0) -> tuple[Plan, Reaped]:
        """What `clean` would do now, or in `ahead` seconds if nobody uses anything, and what it would reap before."""
        self._check_floor(rules.limits)
        now = self._store.clock.wall() + ahead
        rules, sifted = self._sift(rules, now)
        return self._plan_of(sifted, rules, self.loose(), keep_for, now, ahead)

    def survey(
        self, rules: Rules | None, keep_for: float, lots: Lots, fold: Callable[[Lookup, list[Item]], Sum]
    ) -> Surveyed[Sum]:
        """The plan for these rules, and what `fold` makes of the items of each part of the cache, from one scan.

        `fold` is also given what knows the facts of copies, and to which of `lots` they belong, unless the plan is made
        with others; it may be called in another process.
        """
        store, unknown = self._store, ""
        now = store.clock.wall()
        lookup = Lookup(store, lots, now)
        try:
            if rules is not None:
                self._check_floor(rules.limits)
                rules = self._prepare(rules, now)
                lookup = rules.lots or lookup
        except (CacheError, OSError) as error:
            rules, unknown = None, error.message if isinstance(error, CacheError) else explain(error)
        both = functools.partial(_sift_and_fold, rules, now, lookup, fold)
        parts, sifted = [], []
        for part, of_part in items.survey(store, self._pool, both, ends=True):
            parts.append(part)
            sifted.append(of_part)
        left = self.loose()
        if rules is None:
            return Surveyed(parts, left, None, None, unknown)
        try:
            plan, reaped = self._plan_of(merge(sifted), rules, left, keep_for, now)
        except (CacheError, OSError) as error:
            unknown = error.message if isinstance(error, CacheError) else explain(error)
            return Surveyed(parts, left, None, None, unknown)
        return Surveyed(parts, left, plan, reaped)

    def _plan_of(
        self, sifted: Sifted, rules: Rules, left: LooseFiles, keep_for: float, now: float, ahead: float = 0.0
    ) -> tuple[Plan, Reaped]:
        of_sessions = list(sessions.listing(self._store))
        with open_judge(self._store, dry_run=True) as judge:
            reaped = single.end_leases(self._store, judge, sifted.unsettled, dry_run=True, open_sessions=of_sessions)
        drift = 0.0 if judge.listing.now is None else judge.listing.now + ahead - now
        plan = self._plan(sifted, rules, now, reaped, left, drift)
        return plan._replace(trashed=self._trashed_after(plan, keep_for, now)), reaped

    def clean(self, rules: Rules, options: CleanOptions) -> Cleaned:
        """Reap, evict what `rules` let go, and tidy up. Raises InUse while another cleaner is at work.

        Where there is nothing to do nothing is written. Raises UsageError for a floor that the file system is too
        small for.
        """
        store = self._store
        self._check_floor(rules.limits)
        deadline = self._deadline(options)
        sight, now = self._sight(), store.clock.wall()
        found = self._find(rules, now)
        quiet = self._if_nothing_to_do(found, now)
        if quiet is not None:
            return quiet
        self._pool.start_helpers_for(found.sifted.eligible)
        with only_cleaner(store), self._worker_if_room() as holder:
            for _ in range(_MOST_SCANS - 1):
                if sight == (sight := self._sight()):
                    break
                found = self._find(rules, store.clock.wall())
            rules, sifted, left, works, of_sessions = found
            rules = _with_pins(rules, sifted, pins.pinned(store, store.clock.wall()))
            with open_judge(store) as judge:
                reaped = single.end_leases(store, judge, sifted.unsettled, open_sessions=of_sessions)
                copies = (copy for item in sifted.unsettled for copy in item.copies)
                finder = Leftovers(store, judge, purge_follows=True, keep_downloads=not rules.everything)
                leftovers = list(finder.find(copies, works))
                now = store.clock.wall()
                leftovers.extend(loose_removal.leftovers(store, left, judge.now))
                drift = 0.0 if judge.listing.now is None else judge.listing.now - now
                plan = self._plan(sifted, rules, now, reaped, left, drift)
                done = self._carry_out(plan, reaped, options, holder, now, deadline)
                tidied = execution.put_away(store, leftovers, deadline)
                if holder is not None:
                    execution.fold_histories(store, holder, sifted.to_fold)
                pins.tidy(store, now)
                downloads.tidy(store, now)
                if self._shares is not None and plan.forget and holder is not None:
                    table.forget(store, plan.forget, self._shares.lots)
                if rules.everything and rules.lot is not None and done.removed:
                    table.note(store, f"reclaim {rules.lot}")
                if done.missed:
                    more = Leftovers(store, judge, keep_downloads=False).work_areas(filter(WorkName.parse, works))
                    tidied += execution.put_away(store, more, deadline)
                    ended = {judged.held for judged in reaped.leases}
                    held = (one for item in sifted.unsettled for one in item.held if one not in ended)
                    done = done._replace(in_the_way=tuple(judge.lease(one) for one in held))
                return self._finish(done._replace(tidied=tuple(tidied)), now, deadline)

    def clean_as_planned(self, planned: Planned, exclude: Collection[str], options: CleanOptions) -> Cleaned:
        """Reap, and carry out what of a plan is still true: copies that nobody has used, or pinned, since it was made.

        `exclude`: patterns of names that stay by now. Raises UsageError for the plan of another cache, InUse while
        another cleaner is at work.
        """
        store = self._store
        if planned.cache_id != store.id:
            raise UsageError(
                "the plan was made for another cache", hint="make a plan of this cache: sc-dtool clean -n -o plan.json"
            )
        deadline = self._deadline(options)
        sight, of_sessions = self._sight(), list(sessions.listing(store))
        left, leased, settled = self._look_for(planned)
        self._pool.start_helpers_for(planned.remove)
        with only_cleaner(store), self._worker_if_room() as holder:
            for _ in range(_MOST_SCANS - 1):
                if sight == (sight := self._sight()) or not (settled or sight.lots):
                    break
                left, leased, settled = self._look_for(planned)
            there = {one.path: one for one in left.files}
            with open_judge(store) as judge:
                reaped = single.end_leases(store, judge, leased, open_sessions=of_sessions)
            now = store.clock.wall()
            pinned = pins.pinned(store, now)
            rechecked = plan_file.recheck(store, planned.remove, pinned, exclude, there, self._pool)
            if self._shares is not None and settled is not None:
                remove, within = shares.recheck(rechecked.remove, settled, self._shares, now)
            else:
                remove, within = rechecked.remove, []
            keep = (*rechecked.keep, *within)
            if planned.goal is not None:
                keep += plan_file.in_use_besides(execution.after_reaping(leased, reaped, now), planned.remove)
            kept = tuple(one.candidate for one in within)
            plan = Plan(tuple(remove), keep, planned.size, planned.entries, planned.goal, shares=kept)
            done = self._carry_out(plan, reaped, options, holder, now, deadline, rechecked.gone)
            if done.missed:
                done = done._replace(in_the_way=self._held_by_now(done))
            return self._finish(done, now, deadline)

    def _look_for(self, planned: Planned) -> tuple[LooseFiles, list[Item], Sifted | None]:
        """What a plan is checked against: files that dtool left, what has leases and, if there are lots, everything."""
        store = self._store
        lots = self._look_at_lots()
        left = self.loose() if lots or any(one.loose for one in planned.remove) else LooseFiles()
        if lots is None:
            return left, single.unsettled(store, self._pool), None
        now = store.clock.wall()
        rules, sifted = self._sift(Rules(), now)
        return left, sifted.unsettled, settle(sifted, sifted.unsettled, left.files, rules, now, 0.0)

    def make_room(self, missing: int, there: int, policy: Rules) -> int:
        """Evict what is idle to free `missing` of the `there` bytes in the cache, in the order of `policy`.

        Returns how many bytes it freed. What was evicted before, and is still to be deleted, is deleted with it, and
        counts. Nothing is evicted, and 0 returned, if that would not be enough. Raises InUse while another cleaner is
        at work.
        """
        store = self._store
        now = store.clock.wall()
        listed = trash.listing(store)
        due = trash.total_of(name for name in listed if trash.is_expired(name, now)).bytes
        retained = max(0, there - max(0, missing - due))
        rules = Rules(retain_size=retained, order=policy.order, exclude=policy.exclude, grace=policy.grace)
        if self.plan(rules, 0.0)[0].freed + due < missing:
            return 0
        done = self.clean(rules, CleanOptions(why=f"room for {missing} bytes"))
        return max(0, done.freed + due - done.unpurged_bytes)

    def empty_trash(self) -> tuple[Trashed, Purged]:
        """Delete all that is in the trash, what is kept for `restore` too: what it was, and what was done.

        Raises InUse while a cleaner is at work.
        """
        store = self._store
        with only_cleaner(store):
            trashed = trash.total_of(trash.listing(store))
            return trashed, trash.purge(store, math.inf, self._pool)

    def leftovers(self, found: list[Item]) -> Iterator[Leftover]:
        """What crashes have left behind; `found`: the unsettled items."""
        store = self._store
        works = store.fs.names(store.layout.tmp)
        with open_judge(store) as judge:
            yield from Leftovers(store, judge).find((copy for item in found for copy in item.copies), works)
        yield from loose_removal.leftovers(store, self.loose(), judge.now)

    def loose(self) -> LooseFiles:
        """The files that dtool's own brokers left."""
        store = self._store
        named = self._settings.dtool_directories
        return loose_files.scan(store, store.clock.wall(), self._pool, named)

    @contextmanager
    def _worker_if_room(self) -> Iterator[Holder | None]:
        """See `program.worker`; None where that is refused, as on a full disk: items can be evicted all the same."""
        with ExitStack() as entered:
            holder = None
            try:
                holder = entered.enter_context(program.worker(self._store, self._settings.heartbeat_ttl))
            except OSError as error:
                if error.errno in GONE:
                    raise
                if error.errno not in FULL:
                    do_without(f"this cleaning is not recorded, and the history is not compacted ({error.strerror})")
            yield holder

    def _held_by_now(self, done: Cleaned) -> tuple[Judged, ...]:
        """Leases on what a cleaning found in use, those included that began meanwhile."""
        store = self._store
        keys = dict.fromkeys(kept.key for kept in done.kept if kept.held and not kept.candidate.loose)
        found = (items.look(store, key, uses=False) for key in keys)
        return tuple(single.judged(store, (one for item in found for one in item.held)))

    def _carry_out(
        self,
        plan: Plan,
        reaped: Reaped,
        options: CleanOptions,
        holder: Holder | None,
        now: float,
        deadline: Deadline,
        gone: Iterable[Candidate] = (),
    ) -> Cleaned:
        """Evict, and record what was removed even if that is broken off; `gone`: what was not there any more."""
        store = self._store
        keep_until = int(now + options.keep_for) if options.keep_for else 0
        tally, ended = execution.Tally(), "; broken off"
        what = "1 copy" if len(plan.remove) == 1 else f"{len(plan.remove)} copies"
        store.log.info(f"removing {what}, {plan.freed} bytes: {options.why or 'as asked'}")
        try:
            execution.carry_out(store, plan, keep_until, holder, now, self._pool, tally, deadline)
            ended = ""
        finally:
            done = Cleaned(
                plan,
                reaped,
                tuple(tally.removed),
                tuple(tally.taken),
                tuple(tally.failed),
                left=tuple(tally.left),
                gone=(*gone, *tally.gone),
            )
            if holder is not None:  # on a full disk there is no record
                audit.write(store, done, holder, f"{options.why}{ended}")
        return done

    def _finish(self, done: Cleaned, now: float, deadline: Deadline) -> Cleaned:
        """Delete what is in the trash: names were freed first, and space comes after."""
        store = self._store
        purged = trash.purge(store, now, self._pool, deadline)
        return done._replace(
            purged=purged.copies,
            unpurged=purged.left,
            unpurged_bytes=purged.left_bytes,
            trashed=self._trashed_beside(done.plan),
        )

    def _deadline(self, options: CleanOptions) -> Deadline:
        if options.most_seconds is None:
            return NO_DEADLINE
        return Deadline(self._store.clock, self._store.clock.monotonic() + options.most_seconds)

    def _sift(self, rules: Rules, now: float) -> tuple[Rules, Sifted]:
        """The rules, with what is pinned, and all copies, sorted by them; what has leases is not judged yet.

        Raises `table.Unknown` if the lots cannot be read: then nobody knows what must stay.
        """
        rules = self._prepare(rules, now)
        return rules, merge(items.survey(self._store, self._pool, functools.partial(sift, rules, now)))

    def _sight(self) -> _Sight:
        fs, layout = self._store.fs, self._store.layout
        names = *fs.names_if_any(layout.trash), *fs.names_if_any(layout.cleanings)
        return _Sight(table.stamp(self._store), frozenset(names))

    def _prepare(self, rules: Rules, now: float) -> Rules:
        rules = rules._replace(pinned=pins.pinned(self._store, now))
        lots = self._look_at_lots(rules.lot)
        return rules if lots is None else rules._replace(lots=Lookup(self._store, lots, now, rules.lot))

    def _look_at_lots(self, asked: str | None = None) -> Lots | None:
        """The lots of the cache, if it has any. Raises UsageError if the lot that is `asked` for does not exist."""
        self._shares = None
        lots = table.read(self._store).lots
        if asked is not None:
            _ = lots[asked]
        if lots == Lots():
            return None
        order = tuple(map(Question, self._settings.lots_order))
        self._shares = Shares(lots, table.reported(self._store), order, self._settings.lots_forget)
        return lots

    def _plan(self, sifted: Sifted, rules: Rules, now: float, reaped: Reaped, left: LooseFiles, drift: float) -> Plan:
        """The plan for items as a reaping has left them. `drift`: by how much the file system's clock is ahead."""
        busy = execution.after_reaping(sifted.unsettled, reaped, now)
        settled = settle(sifted, busy, left.files, rules, now, drift)
        return self._conclude(settled, rules, now, self._room(rules.limits), left)

    def _conclude(self, settled: Sifted, rules: Rules, now: float, room: Room | None, left: LooseFiles) -> Plan:
        if self._shares is None:
            plan = conclude(settled, rules, room)
        else:
            plan = shares.conclude(settled, rules, self._shares, now, room)
        return plan._replace(unmatched_directories=left.unmatched)

    def _find(self, rules: Rules, now: float) -> _Found:
        rules, sifted = self._sift(rules, now)
        left, works = self.loose(), self._store.fs.names(self._store.layout.tmp)
        return _Found(rules, sifted, left, works, list(sessions.listing(self._store)))

    def _if_nothing_to_do(self, found: _Found, now: float) -> Cleaned | None:
        """What is to be told if there is nothing to do at all: nothing to remove, reap or tidy. Writes nothing."""
        store = self._store
        rules, sifted, left, works, of_sessions = found
        if sifted.to_fold or works or left.deserted or downloads.any_expired(store, now):
            return None
        if any(trash.is_expired(name, now) for name in trash.listing(store)):
            return None
        if any(one.is_broken(now) for one in left.files) or pins.any_expired(store, now):
            return None
        with open_judge(store, glance=True) as judge:
            held = tuple(judge.lease(one) for item in sifted.unsettled for one in item.held)
            verdicts = [one.verdict for one in held]
            verdicts += [judge.holder(id)[1] for id in (*judge.listing.present, *(one.holder for one in of_sessions))]
            copies = (copy for item in sifted.unsettled for copy in item.copies)
            untidy = any(True for _ in Leftovers(store, judge, purge_follows=True).find(copies, works))
        if untidy or judge.listing.unknown_names or any(verdict.state is not State.ALIVE for verdict in verdicts):
            return None
        settled = settle(sifted, sifted.unsettled, left.files, rules, now, 0.0)
        room = self._room(rules.limits)
        if self._shares is None:
            any_goes = removes_any(settled, rules, room)
        else:
            any_goes = shares.removes_any(settled, rules, self._shares, now, room)
        if any_goes:
            return None
        plan = self._conclude(settled, rules, now, room, left)
        if plan.forget:
            return None
        in_the_way = held if plan.missed_after(()) else ()
        return Cleaned(plan, Reaped((), {}, ()), in_the_way=in_the_way, trashed=self._trashed_beside(plan))

    def _check_floor(self, limits: Limits) -> None:
        figures = None if limits.least_free is None else self._store.fs.room(self._store.layout.root)
        if figures is not None:
            check_floor(limits, figures)

    def _room(self, limits: Limits) -> Room | None:
        """What the file system has without the trash; None where no limit depends on that, or it does not say so.

        The trash is read first: what is deleted meanwhile had better count twice than not at all.
        """
        if not limits.of_file_system:
            return None
        trashed = trash.total_of(trash.listing(self._store))
        figures = self._store.fs.room(self._store.layout.root)
        if figures is None:
            self._store.log.warning(
                "limits that depend on the free space were ignored, because the file system does not report it"
            )
            return None
        return figures.and_free(trashed.bytes, trashed.entries)

    def _trashed_beside(self, plan: Plan) -> Trashed:
        """What is in the trash, if that matters to the plan."""
        return Trashed() if plan.spare == Spare() else trash.total_of(trash.listing(self._store))

    def _trashed_after(self, plan: Plan, keep_for: float, now: float) -> Trashed:
        """What would be in the trash after the plan was carried out, if that matters to it."""
        if plan.spare == Spare():
            return Trashed()
        found = trash.listing(self._store)
        kept = trash.total_of(name for name in found if not trash.is_expired(name, now))
        if not (keep_for and plan.remove):
            return kept
        return kept.more(plan.freed, sum(candidate.entries for candidate in plan.remove), int(now + keep_for))


def _sift_and_fold(
    rules: Rules | None,
    now: float,
    lookup: Lookup,
    fold: Callable[[Lookup, list[Item]], Sum],
    found: Iterator[Item],
) -> tuple[Sum, Sifted]:
    listed = list(found)
    part = fold(lookup, listed)
    sifted = Sifted() if rules is None else sift(rules, now, iter(listed))
    if listed:
        lookup.close(listed[-1].key, complete=True)
    return part, sifted


def _with_pins(rules: Rules, sifted: Sifted, pinned: frozenset[str]) -> Rules:
    """The rules, and what was sifted by them, with what was pinned since.

    An object is pinned before there is a copy of it: so what a scan has seen is pinned if it is not archived yet.
    """
    if pinned - set(rules.pinned):
        later = [one for one in sifted.eligible if one.key in pinned and one.loose is None]
        sifted.kept += (Kept(one, PINNED) for one in later)
        sifted.eligible[:] = (one for one in sifted.eligible if one.key not in pinned or one.loose is not None)
    return rules._replace(pinned=pinned)


@contextmanager
def only_cleaner(store: Store, wait: float = 0.0) -> Iterator[None]:
    """Be the one cleaner of the cache. Raises InUse if another one is still at work after `wait` seconds."""
    from sccache_dtool.protocol.election import make_election  # not loaded where there is nothing to clean

    election = make_election(store, CLEAN)
    deadline, is_noted = store.clock.monotonic() + wait, False
    try:
        while not election.poll():
            cleaner = election.winner() or "an unknown process"
            if store.clock.monotonic() >= deadline:
                raise InUse(
                    f"another cleaner is running in {store.layout.root}",
                    details=[cleaner],
                    hint="nothing was done; the other cleaner does the work",
                )
            if not is_noted:
                is_noted = True
                store.log.note(f"waiting for another cleaner to make room in {store.layout.root}: {cleaner}")
            store.clock.sleep(_LOOK_EVERY)
        yield
    finally:
        election.resign()
