"""Looks at a cache once, and makes the figures of a report of what it sees. Nothing is decided here."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sccache_dtool import metrics
from sccache_dtool.catalog.broker_names import is_uuid
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.holdings import Holding, lasts
from sccache_dtool.catalog.items import Item
from sccache_dtool.catalog.loose import Loose
from sccache_dtool.dataset_totals import dataset_item
from sccache_dtool.disk import records
from sccache_dtool.disk.names import Generation, key_label
from sccache_dtool.errors import CacheError, explain
from sccache_dtool.fetch.transfers import Transfer, TransferState, continuing
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.log import ROOT, WARNING
from sccache_dtool.lots.lookup import Lookup
from sccache_dtool.lots.model import DEFAULT, Lots
from sccache_dtool.metrics import Saved
from sccache_dtool.policy.rules import Candidate, Rules
from sccache_dtool.policy.totals import Sums, add_up, total
from sccache_dtool.report.figures import (
    AGES,
    DAY,
    SIZES,
    YEAR,
    Amount,
    Cleaning,
    Fetch,
    Figures,
    Group,
    Lease,
    LotFigures,
    NextClean,
    Reason,
    Removal,
    Removed,
    Usage,
    class_of,
    days_ago,
    fullness,
    levels,
    periods,
    span,
)
from sccache_dtool.units import short_duration

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache
    from sccache_dtool.evict.audit import CleaningRecord
    from sccache_dtool.evict.cleaning import Surveyed

#: Lines of each table. A page of a thousand lines is read by nobody.
MOST = 50

#: Warnings that a page shows.
_MOST_UNREAD = 20

#: What goes first, by the name of the order.
_ORDERS = {
    "cost": "first what is least worth keeping: rarely used, not used for long, and quick to fetch again",
    "lru": "first what was not used for longest",
    "lfu": "first what was used least often",
    "largest": "first what is largest",
    "oldest": "first what was fetched earliest",
}

#: Why something goes, by the class of its lot.
_CLASSES = {
    "del": "its lot is past its deletion",
    "exp": "its lot has expired",
    "opp": "its lot is above its opportunistic space",
    "obj": "its lot has more files than it may have",
    "ded": "its lot is above its dedicated space",
    "beyond": "it is within the share of its lot, and nothing else is left",
}


class _Tally:
    """Sums of a user, a dataset, or a lot."""

    __slots__ = ("bytes", "copies", "last", "leases", "loose", "objects", "place", "uses")

    def __init__(self) -> None:
        self.bytes = self.copies = self.objects = self.loose = self.leases = self.uses = 0
        self.last = 0.0
        self.place: tuple[str, str] | None = None  # a copy of it, of which the name of a dataset can be read

    def add(self, other: _Tally) -> None:
        self.bytes += other.bytes
        self.copies += other.copies
        self.objects += other.objects
        self.loose += other.loose
        self.leases += other.leases
        self.uses += other.uses
        self.last = max(self.last, other.last)
        self.place = self.place or other.place


Tallies = dict[str, _Tally]


@dataclass
class Part:
    """What was seen in a part of a cache. Counters are by day, or by class of age and size."""

    sums: Sums = field(default_factory=Sums)
    saved: Saved = field(default_factory=Saved)
    added: Counter[int] = field(default_factory=Counter)
    fetched: Counter[int] = field(default_factory=Counter)
    used: Counter[int] = field(default_factory=Counter)
    idle: Counter[tuple[int, int]] = field(default_factory=Counter)
    idle_bytes: Counter[tuple[int, int]] = field(default_factory=Counter)
    users: Tallies = field(default_factory=dict)
    datasets: Tallies = field(default_factory=dict)
    lots: Tallies = field(default_factory=dict)
    busy: list[Item] = field(default_factory=list)
    unread_facts: int = 0

    def see(self, item: Item, lookup: Lookup, by_lot: bool, now: float) -> None:
        """Count an item that is there."""
        since, size, held = item.idle_since, item.bytes, item.leases
        if held:
            self.busy.append(item)
            self.used[0] += held
        else:
            self.see_idle(now - since, size)
        of_copies = []
        for copy in item.copies:
            generation = copy.generation
            day = days_ago(generation.created, now)
            self.added[day] += generation.bytes
            self.fetched[day] += 1
            facts = ItemFacts()
            if not copy.closed:
                try:
                    facts = lookup.facts(copy)
                except (OSError, records.Damaged):
                    self.unread_facts += 1
            of_copies.append(facts)
            groups = [_of(self.users, facts.user)]
            if by_lot:
                groups.append(_of(self.lots, lookup.of(copy) or DEFAULT))
            for group in groups:
                group.bytes += generation.bytes
                group.copies += 1
                group.objects += generation.entries
                group.leases += len(copy.held)
                group.last = max(group.last, since)
        _of(self.users, of_copies[0].user).uses += item.uses
        one = dataset_item(item, of_copies)
        if not one.is_view:
            dataset = _of(self.datasets, one.dataset)
            dataset.bytes += size
            dataset.copies += len(item.copies)
            dataset.leases += held
            dataset.uses += item.uses
            dataset.last = max(dataset.last, since)
            dataset.place = dataset.place or (item.key, str(item.copies[0].generation))

    def see_idle(self, age: float, size: int) -> None:
        """Count something that nobody uses."""
        which = class_of(age, AGES), class_of(size, SIZES)
        self.idle[which] += 1
        self.idle_bytes[which] += size

    def see_loose(self, file: Loose, lookup: Lookup | None, now: float) -> None:
        """Count a file that dtool left."""
        self.added[days_ago(file.newest, now)] += file.bytes
        self.see_idle(now - file.newest, file.bytes)
        groups = [_of(self.users, user_name(file.uid)), _of(self.datasets, _dataset_of(file))]
        if lookup is not None:
            groups.append(_of(self.lots, lookup.of_loose(file.path, file.uid)))
        for group in groups:
            group.bytes += file.bytes
            group.loose += 1
            group.objects += 1
            group.last = max(group.last, file.newest)


def _of(groups: Tallies, name: str) -> _Tally:
    found = groups.get(name)
    if found is None:
        found = groups[name] = _Tally()
    return found


def _dataset_of(file: Loose) -> str:
    last = file.directory.rpartition("/")[2]
    return last if is_uuid(last) else file.directory


def _see_part(by_lot: bool, now: float, lookup: Lookup, found: list[Item]) -> Part:
    """What is in a part of a cache; called in other processes."""
    part = Part(add_up(0, iter(found)), metrics.saved(iter(found)))
    for item in found:
        for end in item.ends:
            part.used[days_ago(end, now)] += 1
        if item.copies:
            part.see(item, lookup, by_lot, now)
    return part


def merge(parts: Iterable[Part]) -> Part:
    """What was seen in all parts."""
    whole, sums = Part(), []
    for part in parts:
        sums.append(part.sums)
        whole.saved = Saved(whole.saved.bytes + part.saved.bytes, whole.saved.seconds + part.saved.seconds)
        for mine, its in (
            (whole.added, part.added),
            (whole.fetched, part.fetched),
            (whole.used, part.used),
        ):
            mine.update(its)
        whole.idle.update(part.idle)
        whole.idle_bytes.update(part.idle_bytes)
        for groups, others in ((whole.users, part.users), (whole.datasets, part.datasets), (whole.lots, part.lots)):
            for name, tally in others.items():
                _of(groups, name).add(tally)
        whole.busy += part.busy
        whole.unread_facts += part.unread_facts
    whole.sums = total(sums, 0)
    for uuid in [name for name in whole.datasets if is_uuid(name)]:
        if (short := whole.datasets.pop(uuid[:8], None)) is not None:  # of copies that are gone, or cannot be read
            whole.datasets[uuid].add(short)
    return whole


def look(cache: Cache) -> Figures:
    """The figures of a cache. The cache is scanned once."""
    store = cache.store
    now = store.clock.wall()
    with _warnings() as unread:
        rules, unknown = _policy(cache)
        lots, by_lot = _lots(cache)
        surveyed = cache.survey_and_plan(rules, lots, functools.partial(_see_part, by_lot, now))
        whole = merge(surveyed.parts)
        lookup = cache.lookup(lots) if by_lot else None
        for file in surveyed.loose.files:
            whole.see_loose(file, lookup, now)
        cleanings = cache.cleanings()
        past = look_back(cache, now)
        held = _holdings(cache, whole.busy)
        fetches = cache.transfers()
        trashed = cache.trashed()
        room = store.fs.room(store.layout.root)
        names = {uuid: _name_of(cache, tally) for uuid, tally in _largest(whole.datasets)[:MOST] if uuid}
    loose = Amount(len(surveyed.loose.files), sum(file.bytes for file in surveyed.loose.files))
    own = whole.sums.bytes + loose.bytes
    sizes = fullness(whole.added, past.gone)
    days = span(sizes)
    fetched = Counter(whole.fetched)
    fetched.update(past.fetched)
    missed = metrics.misses(whole.sums, cleanings)
    shown = rules or Rules()
    return Figures(
        root=store.layout.root,
        id=store.id,
        now=now,
        bytes=own,
        items=whole.sums.items,
        loose=loose,
        trashed=Amount(0, trashed.bytes),
        room=room,
        levels=tuple(levels(shown.limits, shown.retain_size, room, own)),
        sizes=tuple(sizes[-days - 1 :]),
        days=days,
        periods=tuple(periods(whole.used, fetched, past.removed, days, now)),
        usage=Usage(
            whole.sums.uses,
            max(0, whole.sums.uses - missed),
            missed,
            whole.sums.leases,
            whole.saved.bytes,
            whole.saved.seconds,
        ),
        idle=tuple(
            tuple(Amount(whole.idle[age, size], whole.idle_bytes[age, size]) for size in range(len(SIZES)))
            for age in range(len(AGES))
        ),
        users=tuple(_group(name, tally) for name, tally in _largest(whole.users)),
        datasets=tuple(
            _group(f"{names.get(uuid, '')} {uuid}".strip() or "(no dataset)", tally)
            for uuid, tally in _largest(whole.datasets)
        ),
        lots=tuple(_lot_figures(lots, whole.lots)) if by_lot else (),
        leases=tuple(Lease(one.item.label, one.judged.by, one.judged.since, lasts(one)) for one in held),
        next_clean=_next_clean(rules, unknown, surveyed, now),
        cleanings=tuple(past.cleanings),
        fetches=tuple(_fetch(one) for one in fetches if one.state not in _OVER),
        failures=tuple(_fetch(one) for one in fetches if one.state in (TransferState.FAILED, TransferState.ABANDONED)),
        not_removed=tuple(past.failed),
        unread=tuple(unread.texts),
        unread_count=unread.count,
        unread_facts=whole.unread_facts,
    )


_OVER = (TransferState.DONE, TransferState.FAILED, TransferState.ABANDONED)


def _largest(groups: Tallies) -> list[tuple[str, _Tally]]:
    return sorted(groups.items(), key=lambda pair: (-pair[1].bytes, pair[0]))


def _group(name: str, tally: _Tally) -> Group:
    return Group(name, tally.bytes, tally.copies, tally.loose, tally.leases, tally.uses, tally.last)


def _name_of(cache: Cache, dataset: _Tally) -> str:
    """The name of a dataset, which only the file beside a copy has."""
    if dataset.place is None:
        return ""
    return (cache.facts_of(*dataset.place).dataset or {}).get("name", "")


def _policy(cache: Cache) -> tuple[Rules | None, str]:
    """The rules of the next cleaning; None if there are none, and why."""
    try:
        rules = cache.policy()
    except CacheError as error:
        return None, error.message
    if rules.empty:
        return None, "config.toml has no policy, so that clean removes nothing unless it is given conditions"
    return rules, ""


def _lots(cache: Cache) -> tuple[Lots, bool]:
    """The lots, and whether there are any besides the default lot."""
    try:
        lots = cache.lots().lots
    except (CacheError, OSError) as error:
        cache.store.log.warning(error.message if isinstance(error, CacheError) else explain(error))
        return Lots(), False
    return lots, lots != Lots()


def _lot_figures(lots: Lots, tallies: Tallies) -> Iterator[LotFigures]:
    for lot in sorted(lots, key=lambda one: (-_of(tallies, one.name).bytes, one.name)):
        used = _of(tallies, lot.name)
        most = None if lot.opportunistic is None else lot.dedicated + lot.opportunistic
        yield LotFigures(lot.name, lot.owner, used.bytes, used.objects, lot.dedicated, most)


def _holdings(cache: Cache, busy: Sequence[Item]) -> list[Holding]:
    try:
        found = cache.holdings_of(busy)
    except (CacheError, OSError) as error:
        cache.store.log.warning(error.message if isinstance(error, CacheError) else explain(error))
        return []
    return sorted(found, key=lambda one: (one.judged.since or 0.0, one.item.label))


def _fetch(one: Transfer) -> Fetch:
    message = one.error or one.message or continuing(one)
    return Fetch(one.label, str(one.state), one.by, one.began, one.ended, message)


# -- the past ----------------------------------------------------------------------------------------------------------


class Past:
    """What the records of cleanings say; the newest come first. Counters are by day."""

    def __init__(self, now: float) -> None:
        self._now = now
        self.cleanings: list[Cleaning] = []
        self.failed: list[tuple[str, str]] = []
        self.gone: list[Removed] = []
        self.fetched: Counter[int] = Counter()  # copies that are gone; those that were restored were not fetched
        self.removed: Counter[int] = Counter()  # bytes

    def see(self, ended: float, size: int, record: CleaningRecord) -> None:
        """Count one record."""
        day = days_ago(ended, self._now)
        if record.restored is not None:
            self.fetched[day] -= 1
            return
        self.removed[day] += size
        for place, of_copy in record.removed:
            generation = Generation.parse(place.partition("/")[2])
            if generation is None:  # a loose file: it is not known when it came
                continue
            came = days_ago(generation.created, self._now)
            self.fetched[came] += 1
            self.gone.append(Removed(came, day, of_copy))
        if len(self.cleanings) < MOST:
            count = len(record.removed)
            self.cleanings.append(
                Cleaning(ended, count, size, record.by, record.why, record.missed, len(record.failed))
            )
        for place, reason in record.failed[: MOST - len(self.failed)]:
            key, _, copy = place.partition("/")
            self.failed.append((key_label(key) if Generation.parse(copy) else place, reason))


def look_back(cache: Cache, now: float) -> Past:
    """What was removed in the last year. `now`: seconds since 1970."""
    past = Past(now)
    for name in sorted(cache.cleanings(), key=lambda one: -one.end):
        if name.end / 1000 < now - YEAR * DAY:
            break
        try:
            past.see(name.end / 1000, name.bytes, cache.cleaning(name))
        except (OSError, records.Damaged) as error:
            reason = explain(error) if isinstance(error, OSError) else str(error)
            cache.store.log.warning(f"the record of a cleaning cannot be read: {reason}")
    return past


# -- the future --------------------------------------------------------------------------------------------------------


def _next_clean(rules: Rules | None, unknown: str, surveyed: Surveyed[Part], now: float) -> NextClean:
    plan = surveyed.plan
    if rules is None or plan is None or surveyed.reaped is None:
        return NextClean(unknown or surveyed.unknown)
    sums: dict[str, list[int]] = {}
    for kept in plan.keep:
        own = sums.setdefault("in use" if kept.held else kept.reason, [0, 0])
        own[0] += 1
        own[1] += kept.bytes
    reasons = [Reason(text, copies, size) for text, (copies, size) in sums.items()]
    return NextClean(
        policy=tuple(_conditions(rules)),
        within=plan.within,
        removals=tuple(_removal(one, now) for one in plan.remove[:MOST]),
        items=len(plan.remove),
        bytes=plan.freed,
        missed=plan.missed.bytes,
        dead=len(surveyed.reaped.leases),
        kept=tuple(sorted(reasons, key=lambda one: -one.bytes)),
    )


def _removal(one: Candidate, now: float) -> Removal:
    if one.limit:
        why = _CLASSES.get(one.limit, one.limit)
    elif one.rank == float("-inf"):
        why = "a newer copy is there"
    else:
        why = f"not used for {short_duration(max(0.0, now - one.idle_since))}"
    return Removal(one.label, one.bytes, one.uses, one.idle_since, one.lot, why)


def _conditions(rules: Rules) -> Iterator[str]:
    """The conditions of a policy, for people."""
    from humanize import naturalsize

    limits = rules.limits
    if limits.high is not None or limits.capacity is not None:
        of = "of the file system" if limits.capacity is None else f"of {naturalsize(limits.capacity)}"
        high = "100%" if limits.high is None else _mark(limits.high)
        low = "" if limits.low is None else f", until not more than {_mark(limits.low)} is used"
        yield f"only if more than {high} {of} is used{low}"
    if limits.entries_high is not None:
        low = "" if limits.entries_low is None else f", until there are not more than {limits.entries_low}"
        yield f"only if there are more than {limits.entries_high} files and directories{low}"
    if limits.least_free is not None:
        yield f"until {naturalsize(limits.least_free)} is free on the file system"
    if rules.retain_size is not None:
        yield f"until the cache is not larger than {naturalsize(rules.retain_size)}"
    if rules.older_than is not None:
        yield f"only what was not used for {short_duration(rules.older_than)}"
    if rules.fewer_uses_than is not None:
        yield f"only what was used fewer than {rules.fewer_uses_than} times"
    if rules.larger_than is not None:
        yield f"only what is larger than {naturalsize(rules.larger_than)}"
    if rules.grace:
        yield f"nothing that was fetched within {short_duration(rules.grace)}"
    if rules.exclude:
        yield f"nothing whose name matches {', '.join(rules.exclude)}"
    yield _ORDERS[rules.order]


def _mark(mark: object) -> str:
    from humanize import naturalsize

    text = str(mark)
    return text if text.endswith("%") else naturalsize(int(text))


# -- what could not be read --------------------------------------------------------------------------------------------


class _Unread:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.count = 0


@contextlib.contextmanager
def _warnings() -> Iterator[_Unread]:
    """Count the warnings of this thread, whoever else is given them."""
    import logging
    import threading

    found, thread = _Unread(), threading.get_ident()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                found.count += 1
                if len(found.texts) < _MOST_UNREAD:
                    found.texts.append(record.getMessage())

    handler, logger = Handler(WARNING), logging.getLogger(ROOT)
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
