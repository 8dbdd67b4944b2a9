"""Which copies may go: pure functions over what a scan saw. They touch nothing and ask nobody."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sccache_dtool.catalog.items import Copy, Item
from sccache_dtool.catalog.loose import YOUNG, Loose
from sccache_dtool.disk.filesystem import Room
from sccache_dtool.disk.names import Generation, key_label
from sccache_dtool.lots.lookup import Lookup
from sccache_dtool.patterns import matches_any, note_matching
from sccache_dtool.policy.thresholds import ORDERS, Excess, Goal, Limits, Spare, Trashed, goal, spare
from sccache_dtool.protocol.history import FOLD_AT
from sccache_dtool.units import short_duration


class Candidate(NamedTuple):
    """A copy that may go. Sizes in bytes, times in seconds since 1970. Small: there may be a million of them."""

    place: str  # `<key>/<generation>`, or the path of a file that dtool left
    uses: int
    idle_since: float
    rank: float = 0.0  # by an order: what has the least goes first
    loose: Loose | None = None  # a file that dtool left, and no copy of an item
    lot: str = ""  # that it belongs to, if the cache has lots
    limit: str = ""  # of the lot, or of one above it: why it goes; see `policy/shares.py`

    @property
    def key(self) -> str:
        """The item's key, or the file's path."""
        return self.place if self.loose else self.place.partition("/")[0]

    @property
    def generation(self) -> str:
        """The copy's name, or the file's path."""
        return self.place if self.loose else self.place.partition("/")[2]

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.place if self.loose else key_label(self.key)

    @property
    def bytes(self) -> int:
        """What it takes up."""
        return self.loose.bytes if self.loose else int(self.place.rpartition("/")[2].split("-", 3)[2])

    @property
    def entries(self) -> int:
        """Files and directories."""
        return 1 if self.loose else int(self.place.rpartition("/")[2].split("-", 4)[3])


class Kept(NamedTuple):
    """A copy that a plan leaves, and why."""

    candidate: Candidate
    reason: str
    held: bool = False

    @property
    def key(self) -> str:
        """The item's key, or the file's path."""
        return self.candidate.key

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.candidate.label

    @property
    def bytes(self) -> int:
        """What it takes up."""
        return self.candidate.bytes


# -- in which order --------------------------------------------------------------------------------------------------

#: Seconds that a fetch takes at least, as shorter ones differ by chance; and for each byte where nobody has noted it.
_LEAST, _EACH_BYTE = 1.0, 1e-8

#: Seconds that are added to the time since the last use, so that what was used just now is not worth without end.
_FRESH = 3600.0


class _Past(NamedTuple):
    """What an order goes by. Bytes, and seconds since 1970."""

    uses: int
    idle_since: float
    bytes: int
    created: float
    took: float | None  # seconds of the fetch, if they are known


def _worth(past: _Past, now: float) -> float:
    """How much keeping it is worth: the more uses in the shorter time since, the slower its fetch for its size.

    The root, as the replay of access logs shows (`benchmarks/replay.py`): with the plain rate of the fetch, many
    small files from slow sources would drive out what makes up most of the bytes.
    """
    size = max(1, past.bytes)
    seconds = max(_LEAST, _EACH_BYTE * size if past.took is None else past.took)
    return max(1, past.uses) * math.sqrt(seconds / size) / (max(0.0, now - past.idle_since) + _FRESH)


#: What goes first, by the name of the order: the least by these. The clock is `now`, in seconds since 1970.
_FIRST: dict[str, Callable[[_Past, float], float]] = {
    "lru": lambda past, now: past.idle_since,
    "lfu": lambda past, now: past.uses,
    "largest": lambda past, now: -past.bytes,
    "oldest": lambda past, now: past.created,
    "cost": _worth,
}


def candidate(key: str, generation: Generation, uses: int, idle_since: float, order: str, now: float) -> Candidate:
    """A copy that may go, ranked by `order`."""
    took = None if generation.took is None else generation.took / 1000
    past = _Past(uses, idle_since, generation.bytes, generation.created, took)
    return Candidate(f"{key}/{generation}", uses, idle_since, _FIRST[order](past, now))


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Candidates, what goes first in front; of equals the least recently used, and always in the same order."""
    found = sorted(candidates, key=lambda one: one.place)
    found.sort(key=lambda one: one.idle_since)  # three times by one thing: a million pairs would take much memory
    found.sort(key=lambda one: one.rank)
    return found


# -- what may go -----------------------------------------------------------------------------------------------------


class Rules(NamedTuple):
    """What a user asked for. Conditions AND together; `retain_size` and `limits` are where to stop, in `order`."""

    everything: bool = False
    older_than: float | None = None  # seconds since the last use
    fewer_uses_than: int | None = None
    retain_size: int | None = None  # bytes
    larger_than: int | None = None  # bytes
    limits: Limits = Limits()
    order: str = ORDERS[0]
    exclude: tuple[str, ...] = ()  # patterns of names that stay
    grace: float = 0.0  # seconds for which a fresh copy stays
    lot: str | None = None  # remove only what belongs to this lot, or to one below it
    beyond_dedicated: bool = False  # if that does not suffice, also what is within the shares of lots
    pinned: Collection[str] = ()  # keys of items that a person wants kept; the cleaner fills it in
    lots: Lookup | None = None  # to which lots copies belong, if the cache has lots; the cleaner fills it in

    @property
    def unconditional(self) -> Rules:
        """The rules for what goes at every cleaning."""
        return self._replace(older_than=None, fewer_uses_than=None, larger_than=None)

    @property
    def empty(self) -> bool:
        """Whether nothing was asked for at all."""
        conditions = (self.older_than, self.fewer_uses_than, self.retain_size, self.larger_than)
        return not self.everything and self.limits == Limits() and all(one is None for one in conditions)


@dataclass
class Sifted:
    """Copies, sorted into those that may go and those that stay, whatever the goal is."""

    eligible: list[Candidate] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    bytes: int = 0  # of all
    entries: int = 0
    unsettled: list[Item] = field(default_factory=list)  # with leases or closed copies: a reaping may change them
    to_fold: list[str] = field(default_factory=list)  # keys of items with long histories
    matched: set[str] = field(default_factory=set)  # patterns of `Rules.exclude` that the name of something matches
    bytes_of: Counter[str] = field(default_factory=Counter)  # by lot, of all
    entries_of: Counter[str] = field(default_factory=Counter)

    def add(self, one: Candidate, size: int, entries: int, reason: str | None, held: bool = False) -> None:
        """Add a candidate of this size; it stays if there is a `reason`."""
        self.bytes += size
        self.entries += entries
        if one.lot:
            self.bytes_of[one.lot] += size
            self.entries_of[one.lot] += entries
        if reason:
            self.kept.append(Kept(one, reason, held))
        else:
            self.eligible.append(one)


def sift(rules: Rules, now: float, items: Iterator[Item]) -> Sifted:
    """Sort the copies of items. Those of items with leases are left to `settle`, after a reaping."""
    sifted, key = Sifted(), ""
    for item in items:
        key = item.key
        if rules.exclude and item.copies and item.name is not None:
            note_matching(rules.exclude, item.name, sifted.matched)
        if item.unfolded >= FOLD_AT:
            sifted.to_fold.append(item.key)
        if any(copy.held or copy.closed for copy in item.copies):
            sifted.unsettled.append(item)
            continue
        for copy in item.copies:
            _judge(item, copy, rules, now, sifted)
    if rules.lots is not None:
        rules.lots.close(key)
    return sifted


def merge(parts: Iterable[Sifted]) -> Sifted:
    """What `sift` made of all parts of a cache."""
    whole = Sifted()
    for part in parts:
        whole.eligible += part.eligible
        whole.kept += part.kept
        whole.bytes += part.bytes
        whole.entries += part.entries
        whole.unsettled += part.unsettled
        whole.to_fold += part.to_fold
        whole.matched |= part.matched
        whole.bytes_of.update(part.bytes_of)
        whole.entries_of.update(part.entries_of)
    return whole


def settle(
    sifted: Sifted, busy: Iterable[Item], loose: Iterable[Loose], rules: Rules, now: float, ahead: float
) -> Sifted:
    """Add what a scan could not sort yet; `sifted` is left as it is.

    `busy`: the unsettled items, as a reaping has left them; no policy applies to closed copies: they are tidied.
    `loose`: files that dtool left; `ahead`: by how much the clock that set their times is ahead of this host's.
    """
    settled = merge([sifted])
    for item in busy:
        for copy in item.copies:
            if not copy.closed:
                _judge(item, copy, rules, now, settled)
    for one in loose:
        if one.is_broken(now + ahead):
            continue  # it is tidied away, whatever the rules are
        note_matching(rules.exclude, one.path, settled.matched)
        idle_since = one.newest - ahead
        past = _Past(0, idle_since, one.bytes, idle_since, None)
        lot = "" if rules.lots is None else rules.lots.of_loose(one.path, one.uid)
        ranked = Candidate(one.path, 0, idle_since, _FIRST[rules.order](past, now), one, lot)
        reason = _reason_of_lot(lot, rules) or _reason_to_keep_loose(one, _rules_of(lot, rules), now + ahead)
        settled.add(ranked, one.bytes, 1, reason)
    return settled


def _judge(item: Item, copy: Copy, rules: Rules, now: float, sifted: Sifted) -> None:
    successor = _successor(item, copy)
    ranked = candidate(item.key, copy.generation, item.uses, item.idle_since, rules.order, now)
    if successor is not None:
        ranked = ranked._replace(idle_since=min(item.idle_since, successor.created), rank=-math.inf)
    lot: str | None = ""
    if rules.lots is not None:
        lot = rules.lots.of(copy)
        ranked = ranked._replace(lot=lot or "")
    reason = _reason_to_keep(item, copy, lot, _rules_of(lot, rules), now, ranked.idle_since, successor)
    sifted.add(ranked, copy.generation.bytes, copy.generation.entries, reason, bool(copy.held))


def _successor(item: Item, copy: Copy) -> Generation | None:
    """What was fetched after an idle copy of the same item, so that this one is an older version, or a duplicate.

    Such copies go before all others, and the item's uses do not keep them: those are of the newer copies.
    """
    created = copy.generation.created
    newer = [one.generation for one in item.copies if one.generation.created > created and not one.closed]
    return None if copy.held else min(newer, key=lambda one: one.created, default=None)


def _rules_of(lot: str | None, rules: Rules) -> Rules:
    """What past its deletion is removed at every cleaning, whatever the conditions are of what else goes."""
    return rules.unconditional if rules.lots is not None and lot in rules.lots.past_deletion else rules


def _reason_of_lot(lot: str | None, rules: Rules) -> str | None:
    if lot is None:
        return UNKNOWN_LOT
    if rules.lots is not None and rules.lots.only is not None and lot not in rules.lots.only:
        return f"not in lot {rules.lot}"
    return None


def _reason_to_keep(
    item: Item,
    copy: Copy,
    lot: str | None,
    rules: Rules,
    now: float,
    idle_since: float,
    successor: Generation | None,
) -> str | None:
    """Copies with anything in their gate are left out: not for safety, which is the gate's business, but because
    trying would be in vain.
    """
    if copy.held:
        return in_use(copy)
    if reason := _reason_of_lot(lot, rules):
        return reason
    if item.key in rules.pinned:
        return PINNED
    if is_excluded(item.name, rules.exclude):
        return EXCLUDED if item.name is not None else UNREADABLE
    if rules.grace and now - copy.generation.created < rules.grace:
        return f"fetched within {short_duration(rules.grace)}"
    if rules.older_than is not None and now - idle_since < rules.older_than:
        return f"used within {short_duration(rules.older_than)}"
    if successor is None and rules.fewer_uses_than is not None and item.uses >= rules.fewer_uses_than:
        return f"used at least {rules.fewer_uses_than} times"
    if rules.larger_than is not None and copy.generation.bytes <= rules.larger_than:
        return "not larger than the given size"
    return None


def in_use(copy: Copy) -> str:
    """Why a copy with leases stays."""
    return f"in use: {len(copy.held)} lease{'s' if len(copy.held) != 1 else ''}"


def _reason_to_keep_loose(one: Loose, rules: Rules, now: float) -> str | None:
    """Nobody holds leases on what dtool left. Only its age tells, so that there is always an age that it must have."""
    if one.partial:
        return BEING_DOWNLOADED
    if is_excluded(one.path, rules.exclude):
        return EXCLUDED
    age = max(rules.grace, YOUNG if rules.older_than is None else rules.older_than)
    if now - one.newest < age:
        return f"left by dtool and touched within {short_duration(age)}"
    if rules.larger_than is not None and one.bytes <= rules.larger_than:
        return "not larger than the given size"
    return None


#: Why a file stays that dtool has not completed.
BEING_DOWNLOADED = "dtool may be downloading it"

#: Why something stays that a person wants kept, or of which nobody else has a copy yet.
PINNED = "pinned"

#: Why something stays whose name matches a pattern, or might.
EXCLUDED = "excluded"
UNREADABLE = "its name cannot be read, so it may be excluded"

#: Why a copy stays of which it cannot be known who has a share in it.
UNKNOWN_LOT = "it cannot be read to which lot it belongs"


def is_excluded(name: str | None, patterns: Collection[str]) -> bool:
    """Whether a name matches any of the patterns; one that nobody can read (None) may.

    Keys do not count: 'b*' would match one in 16.
    """
    return bool(patterns) if name is None else matches_any(patterns, name)


# -- how much goes ---------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What would be removed, and what not: look at it, then carry it out. Sizes in bytes."""

    remove: tuple[Candidate, ...]
    keep: tuple[Kept, ...]
    size: int
    entries: int
    goal: Goal | None  # what to come down to; None: whatever the conditions give
    within: bool = False  # limits were asked for, and nothing is over them
    spare: Spare = Spare()  # of the file system, before anything is removed
    trashed: Trashed = Trashed()  # what is in the trash when it is carried out
    unmatched: tuple[str, ...] = ()  # patterns of names that stay which no name matches
    unmatched_directories: tuple[str, ...] = ()  # patterns of `[dtool] directories` that no directory matches
    shares: tuple[Candidate, ...] = ()  # what stays because it is within the shares of its lots
    forget: tuple[str, ...] = ()  # lots whose data is gone for long enough, each after those below it
    overdue: tuple[Kept, ...] = ()  # what is in use, and belongs to lots that are past their deletion

    @property
    def freed(self) -> int:
        """What the removals free."""
        return sum(candidate.bytes for candidate in self.remove)

    @property
    def missed(self) -> Excess:
        """By how much the goal is missed even if everything in the plan is removed."""
        return self.missed_after(self.remove)

    def missed_after(self, removed: Sequence[Candidate]) -> Excess:
        """By how much the goal is missed if these are gone."""
        if self.goal is None:
            return Excess()
        size, entries = _sums(removed, self.goal)
        return self.goal.missed(self.size - size, self.entries - entries)

    @property
    def withheld(self) -> Excess:
        """By how much the file system stays over its marks because of the trash alone."""
        return self.withheld_after(self.remove, self.trashed)

    def withheld_after(self, removed: Sequence[Candidate], trashed: Trashed) -> Excess:
        """The same if these are gone, and so much is in the trash."""
        return self.spare.withheld(*_sums(removed, self.spare), trashed)


def _sums(removed: Sequence[Candidate], asked: Goal | Spare) -> tuple[int, int]:
    """Bytes and entries of these, as far as they are asked for: there may be a million names to read them from."""
    size = 0 if asked.bytes is None else sum(candidate.bytes for candidate in removed)
    return size, 0 if asked.entries is None else sum(candidate.entries for candidate in removed)


#: Why something stays that might go.
ENOUGH = "not needed to reach the goal"


def removes_any(sifted: Sifted, rules: Rules, room: Room | None = None) -> bool:
    """Whether there is anything in the plan for sifted copies; as `conclude`, without putting them in order."""
    aim = goal(rules.limits, rules.retain_size, sifted.bytes, sifted.entries, room)
    if not sifted.eligible:
        return False
    return rules.limits == Limits() if aim is None else bool(aim.missed(sifted.bytes, sifted.entries))


def conclude(sifted: Sifted, rules: Rules, room: Room | None = None) -> Plan:
    """The plan for sifted copies; `room` is that of the file system without the trash, if limits depend on it."""
    aim = goal(rules.limits, rules.retain_size, sifted.bytes, sifted.entries, room)
    unmatched = tuple(pattern for pattern in dict.fromkeys(rules.exclude) if pattern not in sifted.matched)
    plan = Plan((), (), sifted.bytes, sifted.entries, aim, spare=spare(rules.limits, room), unmatched=unmatched)
    if aim is None and rules.limits != Limits():
        return plan._replace(within=True)
    eligible = in_order(sifted.eligible) if removes_any(sifted, rules, room) else sifted.eligible
    count = len(eligible) if aim is None else _count_to_reach(aim, eligible, sifted.bytes, sifted.entries)
    kept = (*sifted.kept, *(Kept(candidate, ENOUGH) for candidate in eligible[count:]))
    return plan._replace(remove=tuple(eligible[:count]), keep=kept)


def _count_to_reach(aim: Goal, eligible: Sequence[Candidate], size: int, entries: int) -> int:
    """How many of these must go from a cache that holds `size` bytes in `entries`."""
    for count, candidate in enumerate(eligible):
        if not aim.missed(size, entries):
            return count
        size -= candidate.bytes
        if aim.entries is not None:
            entries -= candidate.entries
    return len(eligible)
