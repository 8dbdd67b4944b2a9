"""The keeper of a cache: reaps, cleans, removes, restores. Decisions are `policies.py`'s, deeds `trash.py`'s."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

from sccache_dtool import holders, items
from sccache_dtool.clock import NO_DEADLINE, Clock, Deadline
from sccache_dtool.crew import Crew
from sccache_dtool.election import LOCK, Election
from sccache_dtool.errors import FULL, InUse, UsageError, explain
from sccache_dtool.evict import audit, clean, pins, plans, trash
from sccache_dtool.evict import loose as loose_files
from sccache_dtool.evict.clean import Carried, Cleaned
from sccache_dtool.evict.loose import Found, Pile
from sccache_dtool.evict.plans import Planned
from sccache_dtool.evict.policies import (
    Candidate,
    Kept,
    Plan,
    Rules,
    Sifted,
    add_loose,
    conclude,
    removes_any,
    settle,
    sift,
)
from sccache_dtool.evict.tidy import Broom, Leftover
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import Holder, HolderRecord
from sccache_dtool.items import Copy, Item
from sccache_dtool.layout import Layout, TrashName, WorkName, key_label
from sccache_dtool.leases import Held
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.lifetime import Memory, memory_path
from sccache_dtool.liveness.process import Proc, Process
from sccache_dtool.marks import Room
from sccache_dtool.reaping import Court, Judged, Reaped, open_court, reap


class _Census(NamedTuple):
    """What a scan for a cleaning saw."""

    sifted: Sifted
    pinned: frozenset[str]


class Keeper:
    """Works on one cache that has been checked to be one."""

    def __init__(
        self,
        fs: FileSystem,
        layout: Layout,
        clock: Clock,
        proc: Proc,
        cache_id: str,
        warn: Callable[[str], None],
        dtool_directories: Collection[str] = (),
        crew: Callable[[], Crew] = Crew,
        given_up: Collection[Process] = (),
    ) -> None:
        """`dtool_directories`: see `loose.scan`; `given_up`: whose work we have taken over, and so their elections."""
        self._fs = fs
        self._layout = layout
        self._clock = clock
        self._proc = proc
        self._id = cache_id
        self._warn = warn
        self._dtool_directories = dtool_directories
        self._crew = crew
        self._given_up = given_up

    def reap(self, *, dry_run: bool = False) -> Reaped:
        """End all leases whose holder is proved dead, and the elections that such have won."""
        if not dry_run:
            self._end_elections_of_the_dead()
        found = self._unsettled()
        with self.court() as court:
            return self._reap(court, found, dry_run=dry_run)

    def _end_elections_of_the_dead(self) -> None:
        """So that other hosts, which cannot prove it, need not wait for a fetcher that was killed on this one."""
        for name in self._fs.names(self._layout.locks):
            if name.endswith(LOCK):
                election = self.election(name.removesuffix(LOCK))
                if election.poll():
                    election.resign()

    def reap_on_word(self, holder: str, *, dry_run: bool = False) -> Reaped:
        """End the leases of one holder, because a person says that it is gone. Raises UsageError if there is none."""
        found = self._unsettled()
        with self.court() as court:
            try:
                court.convict(holder, f"{holders.user_name()} says that it is gone")
            except LookupError:
                raise UsageError(
                    f"there is no holder {holder!r}", hint="`sc-dtool why ITEM` shows who holds an item"
                ) from None
            of_holder = [item._replace(copies=tuple(_only_of(holder, copy) for copy in item.copies)) for item in found]
            return self._reap(court, of_holder, dry_run=dry_run, everybody=False, also=[holder])

    def plan(self, rules: Rules, *, ahead: float = 0.0) -> tuple[Plan, Reaped]:
        """What `clean` would do now, or in `ahead` seconds if nobody uses anything, and what it would reap before."""
        now = self._clock.wall() + ahead
        with self._crew() as crew:
            census = self._census(crew, rules, now)
            left = self._loose(crew)
            with self.court() as court:
                reaped = self._reap(court, census.sifted.unsettled, dry_run=True)
        drift = 0.0 if court.roll.now is None else court.roll.now + ahead - now
        return self._plan(census, rules, now, reaped, left, drift), reaped

    def clean(self, rules: Rules, keep_for: float, most_seconds: float | None = None, why: str = "") -> Cleaned:
        """Reap, evict what `rules` let go, and tidy up. Raises InUse while another cleaner is at work.

        `keep_for`: seconds for which what is evicted can be restored; `most_seconds`: after which nothing more is
        begun, and the rest left for the next time; `why`: for the record. Where there is nothing to do nothing is
        written.
        """
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
                leftovers = list(self._broom(court).find(copies, works))
                now = self._clock.wall()
                leftovers.extend(self._of_dtool(left, court.roll.now))
                drift = 0.0 if court.roll.now is None else court.roll.now - now
                plan = self._plan(census, rules, now, reaped, left, drift)
                carried = self._carry_out(plan, keep_for, holder, now, crew, deadline)
                tidied = tuple(clean.put_away(leftovers, self._warn))
                if holder is not None:
                    clean.fold_histories(self._fs, self._layout, holder, census.sifted.to_fold, self._warn)
                pins.tidy(self._fs, self._layout, now, self._warn)
                done = Cleaned(plan, reaped, *carried[:3], tidied, left=carried.left, gone=carried.gone)
                if done.missed_both != (0, 0):
                    ended = {judged.held for judged in reaped.leases}
                    held = (one for item in census.sifted.unsettled for one in item.held if one not in ended)
                    done = done._replace(in_the_way=tuple(court.lease(one) for one in held))
                return self._finish(done, holder, now, why, crew, deadline)

    def clean_as_planned(
        self, planned: Planned, exclude: Collection[str], keep_for: float, most_seconds: float | None, why: str
    ) -> Cleaned:
        """Carry out what of a plan is still true: copies that nobody has used, or pinned, since it was made.

        `exclude`: patterns of names that stay by now. Raises UsageError for the plan of another cache, InUse while
        another cleaner is at work.
        """
        if planned.cache_id != self._id:
            raise UsageError("this is the plan of another cache", hint="make one here: sc-dtool clean -n -o plan.json")
        deadline = self._deadline(most_seconds)
        with self._crew() as crew:
            crew.muster_for(planned.remove)
            there = (
                {one.path: one for one in self._loose(crew).files} if any(one.loose for one in planned.remove) else {}
            )
            with self._elected(), self._at_work_if_room() as holder:
                now = self._clock.wall()
                pinned = pins.pinned(self._fs, self._layout, now, self._warn)
                look = functools.partial(plans.still_true, self._fs, self._layout, pinned, exclude, there)
                pieces = [planned.remove[i : i + 64] for i in range(0, len(planned.remove), 64)]
                judged = [one for piece in crew.each(look, pieces) for one in piece]
                plan = Plan(
                    tuple(one for one in judged if isinstance(one, Candidate)),
                    tuple(one for one in judged if isinstance(one, Kept)),
                    planned.size,
                    planned.entries,
                    planned.goal,
                )
                carried = self._carry_out(plan, keep_for, holder, now, crew, deadline)
                gone = [one for one, found in zip(planned.remove, judged, strict=True) if found is None]
                done = Cleaned(plan, Reaped((), (), ()), *carried[:3], left=carried.left, gone=(*gone, *carried.gone))
                if done.missed_both != (0, 0):
                    keys = [one.key for one in plan.keep if one.held] + [one.key for one in carried.taken]
                    found = [items.look(self._fs, self._layout, key, self._warn, uses=False) for key in keys]
                    done = done._replace(in_the_way=tuple(self.judged(one for item in found for one in item.held)))
                return self._finish(done, holder, now, why, crew, deadline)

    def _carry_out(
        self, plan: Plan, keep_for: float, holder: Holder | None, now: float, crew: Crew, deadline: Deadline
    ) -> Carried:
        keep_until = int(now + keep_for) if keep_for else 0
        return clean.carry_out(self._fs, self._layout, plan, keep_until, holder, now, crew, deadline)

    def _finish(
        self, done: Cleaned, holder: Holder | None, now: float, why: str, crew: Crew, deadline: Deadline
    ) -> Cleaned:
        """Note what was done, and then delete what is in the trash: names were freed first, and space comes after."""
        if holder is not None:
            tmp = f"{self._layout.tmp}/{WorkName(holder.next_lease(), 'audit')}"
            try:
                audit.write(self._fs, self._layout, done, self._clock.wall(), holder.by, why, tmp)
            except OSError as error:
                self._warn(f"{explain(error)}; of this cleaning there is no record")
        purged = trash.purge(self._fs, self._layout, now, self._warn, crew, deadline)
        return done._replace(purged=purged)

    def _deadline(self, most_seconds: float | None) -> Deadline:
        return NO_DEADLINE if most_seconds is None else Deadline(self._clock, self._clock.monotonic() + most_seconds)

    def _census(self, crew: Crew, rules: Rules, now: float) -> _Census:
        """All copies, sorted by the rules; what has leases is not judged yet."""
        pinned = pins.pinned(self._fs, self._layout, now, self._warn)
        fold = functools.partial(sift, rules, now, pinned)
        eligible: list[Candidate] = []
        whole = Sifted(eligible, [], 0, 0, [], [])
        for part in items.survey(self._fs, self._layout, self._warn, crew, fold):
            whole.eligible.extend(part.eligible)
            whole.kept.extend(part.kept)
            whole.unsettled.extend(part.unsettled)
            whole.to_fold.extend(part.to_fold)
            whole = whole._replace(bytes=whole.bytes + part.bytes, entries=whole.entries + part.entries)
        return _Census(whole, pinned)

    def _plan(self, census: _Census, rules: Rules, now: float, reaped: Reaped, left: Found, drift: float) -> Plan:
        return conclude(self._settle(census, rules, now, reaped, left, drift), rules, self._room())

    def _settle(self, census: _Census, rules: Rules, now: float, reaped: Reaped, left: Found, drift: float) -> Sifted:
        """All copies, with items as a reaping has left them. `drift`: by how much the file system's clock is ahead."""
        busy = clean.after_reaping(census.sifted.unsettled, reaped, now)
        sifted = settle(census.sifted, busy, rules, now, census.pinned)
        return add_loose(sifted, left.files, rules, now, drift)

    def _quiet(self, census: _Census, rules: Rules, now: float, left: Found, works: Sequence[str]) -> Cleaned | None:
        """What is to be told if there is nothing to do at all: nothing to remove, reap or tidy. Writes nothing."""
        fs, layout, sifted = self._fs, self._layout, census.sifted
        if sifted.to_fold or works or any(copy.closed for item in sifted.unsettled for copy in item.copies):
            return None
        if fs.names(layout.gone) or fs.names(layout.locks) or left.deserted:
            return None
        if any(trash.is_expired(name, now) for name in trash.listing(fs, layout, self._warn)):
            return None
        if any(one.is_broken(now) for one in left.files) or pins.any_expired(fs, layout, now, self._warn):
            return None
        with self.court(glance=True) as court:
            held = tuple(court.lease(one) for item in sifted.unsettled for one in item.held)
            verdicts = [one.verdict for one in held]
            verdicts += [court.holder(id)[1] for id in court.roll.present]
        if court.roll.strangers or any(verdict.state is not State.ALIVE for verdict in verdicts):
            return None
        copied = census._replace(sifted=sifted._replace(eligible=[*sifted.eligible], kept=[*sifted.kept]))
        settled = self._settle(copied, rules, now, Reaped((), (), ()), left, 0.0)
        room = self._room()
        if removes_any(settled, rules, room):
            return None
        plan = conclude(settled, rules, room)
        return Cleaned(plan, Reaped((), (), ()), in_the_way=() if plan.missed_after(()) == (0, 0) else held)

    def _room(self) -> Room:
        return Room(*self._fs.room(self._layout.root))

    def remove(self, key: str, keep_for: float) -> int:
        """Evict all copies of one item; returns the bytes. Raises InUse, naming who holds it."""
        return self._remove(lambda: items.look(self._fs, self._layout, key, self._warn), keep_for)

    def remove_copy(self, copy: Copy) -> int:
        """Evict one copy of an item; returns the bytes. Raises InUse, naming who holds it."""

        def look() -> Item:
            found = items.look(self._fs, self._layout, copy.key, self._warn)
            return found._replace(copies=tuple(one for one in found.copies if one.generation == copy.generation))

        return self._remove(look, 0.0)

    def _remove(self, look: Callable[[], Item], keep_for: float) -> int:
        found = look()
        with self.court() as court:
            self._reap(court, [found], dry_run=False, everybody=False)
        now = self._clock.wall()
        keep_until = int(now + keep_for) if keep_for else 0
        freed, taken = 0, False
        for copy in found.copies:
            outcome = trash.evict(self._fs, self._layout, copy.key, str(copy.generation), keep_until)
            freed += copy.generation.bytes if outcome is trash.Outcome.EVICTED else 0
            taken = taken or outcome is trash.Outcome.IN_USE
        left = look()
        if left.leases or taken:
            raise self._in_use(left)
        trash.purge(self._fs, self._layout, now, self._warn)
        return freed

    def evict_if_idle(self, key: str) -> bool:
        """Evict what of an item nobody uses; True if nothing of it is left."""
        found = items.look(self._fs, self._layout, key, self._warn)
        outcomes = [trash.evict(self._fs, self._layout, key, str(copy.generation)) for copy in found.copies]
        trash.purge(self._fs, self._layout, self._clock.wall(), self._warn)
        return trash.Outcome.IN_USE not in outcomes

    def restorable(self) -> Iterator[tuple[str, TrashName]]:
        """Keys of items in the trash, and where they are there."""
        return trash.restorable(self._fs, self._layout, self._warn)

    def restore(self, word: str) -> str:
        """Bring back from the trash the item that `word` means; returns its key. Raises UsageError or InUse."""
        found = [(key, name) for key, name in self.restorable() if _means(word, key)]
        if not found:
            raise UsageError(f"there is no {word!r} in the trash", hint="only what was evicted with --trash is kept")
        if len({key for key, _ in found}) > 1:
            raise UsageError(
                f"{word!r} could be any of several items in the trash", details=sorted({key for key, _ in found})
            )
        key, name = max(found, key=lambda pair: pair[1].generation.created)
        if items.generations(self._fs, self._layout, key):
            raise InUse(f"{key_label(key)} is in the cache already", hint="the copy in the trash stays there")
        with self._at_work() as holder:
            if not trash.restore(self._fs, self._layout, self._clock, holder, key, name):
                raise UsageError(f"{word!r} has just been deleted from the trash")
        return key

    def leftovers(self) -> Iterator[Leftover]:
        """What crashes have left behind."""
        found = self._unsettled()
        works = self._fs.names(self._layout.tmp)
        with self.court() as court:
            yield from self._broom(court).find((copy for item in found for copy in item.copies), works)
        yield from self._of_dtool(self.loose(), court.roll.now)

    def loose(self) -> Found:
        """What dtool left in the cache."""
        with self._crew() as crew:
            return self._loose(crew)

    def _loose(self, crew: Crew) -> Found:
        now = self._clock.wall()
        return loose_files.scan(self._fs, self._layout, now, self._warn, crew, self._dtool_directories)

    def piles(self, untouched_since: float) -> list[Pile]:
        """What dtool left in the cache, summed up by directory."""
        named = self._dtool_directories
        with self._crew() as crew:
            found = loose_files.piles(self._fs, self._layout, self._warn, crew, named, untouched_since=untouched_since)
            return list(found)

    def _of_dtool(self, left: Found, now: float | None) -> Iterator[Leftover]:
        return loose_files.leftovers(self._fs, self._layout, left, self._clock.wall() if now is None else now)

    def path_of(self, held: Held) -> str:
        """Where a lease is."""
        return f"{held.gate(self._layout)}/{held.name}"

    def judged(self, held: Iterable[Held]) -> list[Judged]:
        """Leases with what can be said of them; writes nothing into the cache."""
        listed = list(held)
        with self.court(glance=True) as court:
            court.expect({one.lease.holder for one in listed if one.lease})
            return [court.lease(one) for one in listed]

    def court(self, *, glance: bool = False) -> AbstractContextManager[Court]:
        """See `reaping.open_court`."""
        return open_court(self._fs, self._layout, self._clock, self._proc, self._id, self._warn, glance=glance)

    def election(self, name: str) -> Election:
        """An election in which this process stands; processes that are proved dead are passed over at once."""
        record = holders.encode(holders.program_owner(self._proc), None, self._clock)
        memory = Memory(memory_path(self._proc, f"elected-{self._id}"), self._clock)
        return Election(self._fs, self._layout, name, record, self._judge_process, memory)

    def _judge_process(self, record: HolderRecord) -> Verdict:
        if record.process in self._given_up:
            return Verdict(State.DEAD, "its work was taken over")
        return holders.judge(record, self._proc, lambda ttl: Verdict(State.UNKNOWN, "not seen from here"))

    def _reap(
        self, court: Court, found: Iterable[Item], *, dry_run: bool, everybody: bool = True, also: Iterable[str] = ()
    ) -> Reaped:
        held = [one for item in found for one in item.held]
        reaped = reap(self._fs, self._layout, self._clock, court, held, dry_run=dry_run, everybody=everybody, also=also)
        for failure in reaped.failed:
            self._warn(failure)
        return reaped

    def _unsettled(self) -> list[Item]:
        """Items with leases, or with copies whose eviction was interrupted; their finished uses are not counted."""
        with self._crew() as crew:
            parts = items.survey(self._fs, self._layout, self._warn, crew, items.unsettled, uses=False)
            return [item for part in parts for item in part]

    def _broom(self, court: Court) -> Broom:
        return Broom(self._fs, self._layout, self._clock, court, self._warn)

    @contextmanager
    def _at_work(self) -> Iterator[Holder]:
        """A holder for work areas of ours, so that nobody takes them for abandoned."""
        owner = holders.program_owner(self._proc)
        holder = Holder(self._fs, self._layout, self._clock, owner, holders.DEFAULT_TTL)
        try:
            with holder.beating():
                yield holder
        finally:
            holder.retire()

    @contextmanager
    def _at_work_if_room(self) -> Iterator[Holder | None]:
        """As `_at_work`; None where the disk is full: no area can be made, but items be evicted, which makes room."""
        with ExitStack() as entered:
            holder = None
            try:
                holder = entered.enter_context(self._at_work())
            except OSError as error:
                if error.errno not in FULL:
                    raise
            yield holder

    @contextmanager
    def _elected(self) -> Iterator[None]:
        election = self.election("clean")
        if not election.poll():
            winner = election.winner() or "an unknown process"
            raise InUse(
                f"another cleaner is at work in {self._layout.root}",
                details=[winner],
                hint="nothing was done, and nothing needs to be: it does the same work",
            )
        try:
            yield
        finally:
            election.resign()

    def _in_use(self, item: Item) -> InUse:
        if not item.leases:
            return InUse(f"cannot remove {key_label(item.key)}: it was in use until just now", hint="try again")
        judged = self.judged(item.held)
        count = f"{item.leases} lease{'s' if item.leases != 1 else ''}"
        return InUse(
            f"cannot remove {key_label(item.key)}: {count} held",
            details=[f"{one.by}: {one.verdict.evidence}" for one in judged],
            hint="they are released with `sc-dtool unuse`, or reaped once their holder is proved dead",
        )


def _means(word: str, key: str) -> bool:
    """Whether a word that a person has typed may mean an item: its key, the beginning of its key, or its label."""
    return word in (key, key_label(key)) or (len(word) >= 4 and key.startswith(word))


def _only_of(holder: str, copy: Copy) -> Copy:
    """The copy, with no leases but those of one holder."""
    return copy._replace(held=tuple(one for one in copy.held if one.lease and one.lease.holder == holder))
