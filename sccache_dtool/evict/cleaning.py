"""A cleaning from the first look to the record of it: by rules, or by a plan that somebody has looked at."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.catalog.loose import Found
from sccache_dtool.clock import NO_DEADLINE, Deadline
from sccache_dtool.disk.names import WorkName
from sccache_dtool.errors import UsageError, explain
from sccache_dtool.evict import audit, execution, pins, plan_file, trash
from sccache_dtool.evict.execution import Cleaned
from sccache_dtool.evict.plan_file import Planned
from sccache_dtool.evict.post import Post
from sccache_dtool.liveness import State
from sccache_dtool.policy.rules import (
    Candidate,
    Plan,
    Rules,
    Sifted,
    add_loose,
    conclude,
    removes_any,
    settle,
    sift,
)
from sccache_dtool.policy.thresholds import Limits, Room, Spare, Trashed, check_floor
from sccache_dtool.pool import Crew
from sccache_dtool.protocol import downloads
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.reaping import Judged, Reaped


class _Census(NamedTuple):
    """What a scan for a cleaning saw."""

    sifted: Sifted
    pinned: frozenset[str]


class Cleaner(Post):
    """Cleans; decisions are `policies.py`'s, deeds `clean.py`'s and `trash.py`'s."""

    def plan(self, rules: Rules, keep_for: float, *, ahead: float = 0.0) -> tuple[Plan, Reaped]:
        """What `clean` would do now, or in `ahead` seconds if nobody uses anything, and what it would reap before."""
        self._check_floor(rules.limits)
        now = self._clock.wall() + ahead
        with self._crew() as crew:
            census = self._census(crew, rules, now)
            left = self._loose(crew)
            with self.court(dry_run=True) as court:
                reaped = self._reap(court, census.sifted.unsettled, dry_run=True)
        drift = 0.0 if court.roll.now is None else court.roll.now + ahead - now
        plan = self._plan(census, rules, now, reaped, left, drift)
        return plan._replace(trashed=self._trashed_after(plan, keep_for, now)), reaped

    def clean(self, rules: Rules, keep_for: float, most_seconds: float | None = None, why: str = "") -> Cleaned:
        """Reap, evict what `rules` let go, and tidy up. Raises InUse while another cleaner is at work.

        `keep_for`: seconds for which what is evicted can be restored; `most_seconds`: after which nothing more is
        begun, and the rest left for the next time; `why`: for the record. Where there is nothing to do nothing is
        written. Raises UsageError for a floor that the file system is too small for.
        """
        self._check_floor(rules.limits)
        deadline = self._deadline(most_seconds)
        with self._crew() as crew:
            now = self._clock.wall()
            census = self._census(crew, rules, now)
            left = self._loose(crew)
            works = self._fs.names(self._layout.tmp)
            quiet = self._quiet(census, rules, now, left, works)
            if quiet is not None:
                return quiet
            crew.muster_for(census.sifted.eligible)
            with self._elected(), self._at_work_if_room() as holder, self.court() as court:
                reaped = self._reap(court, census.sifted.unsettled, dry_run=False)
                copies = (copy for item in census.sifted.unsettled for copy in item.copies)
                broom = self._broom(court, purge_follows=True, keep_downloads=not rules.everything)
                leftovers = list(broom.find(copies, works))
                now = self._clock.wall()
                leftovers.extend(self._of_dtool(left, court.roll.now))
                drift = 0.0 if court.roll.now is None else court.roll.now - now
                plan = self._plan(census, rules, now, reaped, left, drift)
                done = self._carry_out(plan, reaped, keep_for, holder, now, why, crew, deadline)
                tidied = tuple(execution.put_away(leftovers, self._warn, deadline))
                if holder is not None:
                    execution.fold_histories(self._fs, self._layout, holder, census.sifted.to_fold, self._warn)
                pins.tidy(self._fs, self._layout, now, self._warn)
                done = done._replace(tidied=tidied)
                downloads.tidy(self._fs, self._layout, now, self._warn)
                if done.missed_both != (0, 0):
                    more = self._broom(court, keep_downloads=False).work_areas(filter(WorkName.parse, works))
                    done = done._replace(tidied=(*tidied, *execution.put_away(more, self._warn, deadline)))
                    ended = {judged.held for judged in reaped.leases}
                    held = (one for item in census.sifted.unsettled for one in item.held if one not in ended)
                    done = done._replace(in_the_way=tuple(court.lease(one) for one in held))
                return self._finish(done, now, crew, deadline)

    def clean_as_planned(
        self, planned: Planned, exclude: Collection[str], keep_for: float, most_seconds: float | None, why: str
    ) -> Cleaned:
        """Reap, and carry out what of a plan is still true: copies that nobody has used, or pinned, since it was made.

        `exclude`: patterns of names that stay by now. Raises UsageError for the plan of another cache, InUse while
        another cleaner is at work.
        """
        if planned.cache_id != self._id:
            raise UsageError(
                "the plan was made for another cache", hint="make a plan of this cache: sc-dtool clean -n -o plan.json"
            )
        deadline = self._deadline(most_seconds)
        leased = self._unsettled()
        with self._crew() as crew:
            crew.muster_for(planned.remove)
            there = (
                {one.path: one for one in self._loose(crew).files} if any(one.loose for one in planned.remove) else {}
            )
            with self._elected(), self._at_work_if_room() as holder:
                with self.court() as court:
                    reaped = self._reap(court, leased, dry_run=False)
                now = self._clock.wall()
                pinned = pins.pinned(self._fs, self._layout, now, self._warn)
                weighed = plan_file.weigh(self._fs, self._layout, planned.remove, pinned, exclude, there, crew)
                keep = tuple(weighed.keep)
                if planned.goal is not None:
                    keep += plan_file.in_use_besides(execution.after_reaping(leased, reaped, now), planned.remove)
                plan = Plan(tuple(weighed.remove), keep, planned.size, planned.entries, planned.goal)
                done = self._carry_out(plan, reaped, keep_for, holder, now, why, crew, deadline, weighed.gone)
                if done.missed_both != (0, 0):
                    done = done._replace(in_the_way=self._held_by_now(done))
                return self._finish(done, now, crew, deadline)

    def _held_by_now(self, done: Cleaned) -> tuple[Judged, ...]:
        """Leases on what a cleaning found in use, those included that began meanwhile."""
        keys = dict.fromkeys(kept.key for kept in done.kept if kept.held and not kept.candidate.loose)
        found = (items.look(self._fs, self._layout, key, self._warn, uses=False) for key in keys)
        return tuple(self.judged(one for item in found for one in item.held))

    def _carry_out(
        self,
        plan: Plan,
        reaped: Reaped,
        keep_for: float,
        holder: Holder | None,
        now: float,
        why: str,
        crew: Crew,
        deadline: Deadline,
        gone: Iterable[Candidate] = (),
    ) -> Cleaned:
        """Evict, and note what was removed, also if that is broken off; `gone`: what was not there any more."""
        keep_until = int(now + keep_for) if keep_for else 0
        tally, ended = execution.Tally(), "; broken off"
        try:
            execution.carry_out(self._fs, self._layout, plan, keep_until, holder, now, crew, tally, deadline)
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
            self._note(done, holder, f"{why}{ended}")
        return done

    def _note(self, done: Cleaned, holder: Holder | None, why: str) -> None:
        """Make a record in the cache; on a full disk there is none."""
        if holder is None:
            return
        tmp = f"{self._layout.tmp}/{WorkName(holder.next_lease(), 'audit')}"
        try:
            audit.write(self._fs, self._layout, done, self._clock.wall(), holder.by, why, tmp)
        except OSError as error:
            self._warn(f"{explain(error)}; this cleaning is not recorded")

    def _finish(self, done: Cleaned, now: float, crew: Crew, deadline: Deadline) -> Cleaned:
        """Delete what is in the trash: names were freed first, and space comes after."""
        purged = trash.purge(self._fs, self._layout, now, self._warn, crew, deadline)
        return done._replace(
            purged=purged.copies,
            unpurged=purged.left,
            unpurged_bytes=purged.left_bytes,
            trashed=self._trashed_beside(done.plan),
        )

    def _deadline(self, most_seconds: float | None) -> Deadline:
        return NO_DEADLINE if most_seconds is None else Deadline(self._clock, self._clock.monotonic() + most_seconds)

    def _census(self, crew: Crew, rules: Rules, now: float) -> _Census:
        """All copies, sorted by the rules; what has leases is not judged yet."""
        pinned = pins.pinned(self._fs, self._layout, now, self._warn)
        fold = functools.partial(sift, rules, now, pinned)
        eligible: list[Candidate] = []
        whole = Sifted(eligible, [], 0, 0, [], [], set())
        for part in items.survey(self._fs, self._layout, self._warn, crew, fold):
            whole.eligible.extend(part.eligible)
            whole.kept.extend(part.kept)
            whole.unsettled.extend(part.unsettled)
            whole.to_fold.extend(part.to_fold)
            whole.matched.update(part.matched)
            whole = whole._replace(bytes=whole.bytes + part.bytes, entries=whole.entries + part.entries)
        return _Census(whole, pinned)

    def _plan(self, census: _Census, rules: Rules, now: float, reaped: Reaped, left: Found, drift: float) -> Plan:
        plan = conclude(self._settle(census, rules, now, reaped, left, drift), rules, self._room(rules.limits))
        return plan._replace(unmatched_directories=left.unmatched)

    def _settle(self, census: _Census, rules: Rules, now: float, reaped: Reaped, left: Found, drift: float) -> Sifted:
        """All copies, with items as a reaping has left them. `drift`: by how much the file system's clock is ahead."""
        busy = execution.after_reaping(census.sifted.unsettled, reaped, now)
        sifted = settle(census.sifted, busy, rules, now, census.pinned)
        return add_loose(sifted, left.files, rules, now, drift)

    def _quiet(self, census: _Census, rules: Rules, now: float, left: Found, works: Sequence[str]) -> Cleaned | None:
        """What is to be told if there is nothing to do at all: nothing to remove, reap or tidy. Writes nothing."""
        fs, layout, sifted = self._fs, self._layout, census.sifted
        if sifted.to_fold or works or left.deserted or downloads.any_expired(fs, layout, now):
            return None
        if any(trash.is_expired(name, now) for name in trash.listing(fs, layout, self._warn)):
            return None
        if any(one.is_broken(now) for one in left.files) or pins.any_expired(fs, layout, now, self._warn):
            return None
        with self.court(glance=True) as court:
            held = tuple(court.lease(one) for item in sifted.unsettled for one in item.held)
            verdicts = [one.verdict for one in held]
            verdicts += [court.holder(id)[1] for id in court.roll.present]
            copies = (copy for item in sifted.unsettled for copy in item.copies)
            untidy = any(True for _ in self._broom(court, purge_follows=True).find(copies, works))
        if untidy or court.roll.strangers or any(verdict.state is not State.ALIVE for verdict in verdicts):
            return None
        copied = census._replace(sifted=sifted._replace(eligible=[*sifted.eligible], kept=[*sifted.kept]))
        settled = self._settle(copied, rules, now, Reaped((), (), ()), left, 0.0)
        room = self._room(rules.limits)
        if removes_any(settled, rules, room):
            return None
        plan = conclude(settled, rules, room)._replace(unmatched_directories=left.unmatched)
        in_the_way = () if plan.missed_after(()) == (0, 0) else held
        return Cleaned(plan, Reaped((), (), ()), in_the_way=in_the_way, trashed=self._trashed_beside(plan))

    def _check_floor(self, limits: Limits) -> None:
        figures = None if limits.least_free is None else self._fs.room(self._layout.root)
        if figures is not None:
            check_floor(limits, Room(*figures))

    def _room(self, limits: Limits) -> Room | None:
        """What the file system has without the trash; None where no limit depends on that, or it does not say so.

        The trash is read first: what is deleted meanwhile had better count twice than not at all.
        """
        if not limits.of_file_system:
            return None
        trashed = trash.weigh(trash.listing(self._fs, self._layout, self._warn))
        figures = self._fs.room(self._layout.root)
        if figures is None:
            self._warn("limits that depend on the free space were ignored, because the file system does not report it")
            return None
        return Room(*figures).without(trashed)

    def _trashed_beside(self, plan: Plan) -> Trashed:
        """What is in the trash, if that matters to the plan."""
        if plan.spare == Spare():
            return Trashed()
        return trash.weigh(trash.listing(self._fs, self._layout, self._warn))

    def _trashed_after(self, plan: Plan, keep_for: float, now: float) -> Trashed:
        """What would be in the trash after the plan was carried out, if that matters to it."""
        if plan.spare == Spare():
            return Trashed()
        found = trash.listing(self._fs, self._layout, self._warn)
        kept = trash.weigh(name for name in found if not trash.is_expired(name, now))
        if not (keep_for and plan.remove):
            return kept
        return kept.more(plan.freed, sum(candidate.entries for candidate in plan.remove), int(now + keep_for))
