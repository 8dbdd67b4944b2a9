"""Which copies go first where lots have shares of the cache. Pure, as `rules.py`: it decides over what a scan saw.

What belongs to lots that are past their deletion goes at any cleaning. The rest goes only while the goal is missed:
first what belongs to expired lots, then from lots over their opportunistic space, over their number of objects, and
over their dedicated space, and from each only down to that limit. What is within the dedicated space of a lot stays,
as long as the lot keeps to its number of objects: bytes are promised, and not any number of files to keep them in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sccache_dtool.disk.filesystem import Room
from sccache_dtool.lots.model import DEFAULT, LARGEST, Lot, Lots, Question, Usage
from sccache_dtool.policy.rules import ENOUGH, UNKNOWN_LOT, Candidate, Kept, Plan, Rules, Sifted, in_order
from sccache_dtool.policy.thresholds import LOT_ORDER, Goal, Limits, goal, spare

#: In which order lots give way, unless `config.toml` says another.
ORDER = tuple(map(Question, LOT_ORDER))

#: `Candidate.limit` of what goes although it is within the shares of its lots, because somebody asked for that.
BEYOND = "beyond"


class Shares(NamedTuple):
    """The lots of a cache, and what a cleaning must know of them."""

    lots: Lots
    reported: Mapping[str, Usage]  # of data elsewhere
    order: Sequence[Question] = ORDER
    forget: float | None = None  # seconds after its deletion for which a lot without data stays; None: for good

    @property
    def protect(self) -> bool:
        """Whether anything stays in a full cleaning because of them."""
        return any(lot.dedicated for lot in self.lots) or (self.lots != Lots() and set(self.order) != set(ORDER))

    def used(self, sifted: Sifted) -> dict[str, Usage]:
        """What each lot has of its own, in the cache and elsewhere."""
        there = {lot: Usage(size, sifted.entries_of[lot]) for lot, size in sifted.bytes_of.items()}
        for lot, used in self.reported.items():
            there[lot] = there.get(lot, Usage()).plus(used)
        return there

    def forgettable(self, used: Mapping[str, Usage], now: float) -> tuple[str, ...]:
        """Lots that may be removed, each after those below it: past their deletion, without data and lots below."""
        found: dict[str, None] = {}
        for name in reversed(list(self.lots.downward())) if self.forget is not None else ():
            deletes = self.lots[name].deletes
            is_due = deletes is not None and deletes + (self.forget or 0) <= now and name != DEFAULT
            if is_due and not any(used.get(name, ())) and self.lots.children(name) <= found.keys():
                found[name] = None
        return tuple(found)


class Chosen(NamedTuple):
    """A copy that goes, the lot because of which it goes, and which limit of that lot is exceeded.

    `question` is None for what goes although it is within dedicated space, because somebody asked for that.
    """

    candidate: Candidate
    lot: str
    question: Question | None


class Choice(NamedTuple):
    """What goes, in this order, and what stays."""

    go: list[Chosen]
    stay: list[Candidate]
    reached: bool  # whether the goal is; if not, what stays is within the shares of its lots

    @property
    def dedicated(self) -> list[Candidate]:
        """What stays because it is within the dedicated space of a lot."""
        return [] if self.reached else self.stay


def choose(
    eligible: Sequence[Candidate],
    lot_of: Callable[[Candidate], str],
    lots: Lots,
    used: Mapping[str, Usage],
    now: float,
    enough: Callable[[int, int], bool],
    *,
    order: Sequence[Question] = ORDER,
    beyond_dedicated: bool = False,
) -> Choice:
    """Choose among copies that may go, given in the order in which they would go without lots.

    `used`: what each lot has of its own, whether it may go or not; `now` in seconds since 1970; `enough`: whether the
    goal is reached once so many bytes and entries are gone; `beyond_dedicated`: if all this does not suffice, the rest
    goes in the given order.
    """
    left = [(candidate, lot_of(candidate)) for candidate in eligible]
    ledger = _Ledger(lots, used, enough, left)
    for question in order:
        for over in _rounds(ledger, lots, question, now):
            if question is not Question.DELETION and ledger.reached:
                break
            left = _left_after(ledger, left, over, question)
    if beyond_dedicated:
        left = [pair for pair in left if not ledger.takes_any(pair)]
    return Choice(ledger.go, [candidate for candidate, _ in left], ledger.reached)


def removes_any(sifted: Sifted, rules: Rules, shares: Shares, now: float, room: Room | None = None) -> bool:
    """Whether there is anything in the plan for sifted copies; as `conclude`, without putting them in order."""
    _, enough = _aim(sifted, rules, room)
    return bool(_choose(sifted.eligible, sifted, rules, shares, now, lambda *gone: gone != (0, 0) or enough(*gone)).go)


def conclude(sifted: Sifted, rules: Rules, shares: Shares, now: float, room: Room | None = None) -> Plan:
    """The plan for sifted copies; as `rules.conclude`, by the shares of the lots."""
    aim, enough = _aim(sifted, rules, room)
    past = frozenset() if rules.lots is None else rules.lots.past_deletion
    eligible = in_order(sifted.eligible) if past or not enough(0, 0) else sifted.eligible
    choice = _choose(eligible, sifted, rules, shares, now, enough)
    within = aim is None and rules.limits != Limits()
    return Plan(
        tuple(one.candidate._replace(limit=str(one.question or BEYOND)) for one in choice.go),
        (*sifted.kept, *(Kept(one, ENOUGH if choice.reached else within_share(one.lot)) for one in choice.stay)),
        sifted.bytes,
        sifted.entries,
        aim,
        within=within and not choice.go,
        spare=spare(rules.limits, room),
        unmatched=tuple(pattern for pattern in dict.fromkeys(rules.exclude) if pattern not in sifted.matched),
        shares=tuple(choice.dedicated),
        forget=shares.forgettable(shares.used(sifted), now),
        overdue=tuple(kept for kept in sifted.kept if kept.held and kept.candidate.lot in past),
    )


def recheck(
    planned: Iterable[Candidate], settled: Sifted, shares: Shares, now: float
) -> tuple[list[Candidate], list[Kept]]:
    """What of a plan may still go by the lots as they are now, and what is within their shares by now.

    `planned`: with the limits for which they were planned; `settled`: all that is there.
    """
    lot_of = {one.place: one.lot for one in (*settled.eligible, *(kept.candidate for kept in settled.kept))}
    beyond: list[Candidate] = []
    asked: list[Candidate] = []
    for one in planned:
        lot = lot_of.get(one.place, "")
        is_beyond = one.limit == BEYOND and lot == one.lot  # it was said of that lot, and of no other
        (beyond if is_beyond else asked).append(one._replace(lot=lot))
    unknown = [Kept(one, UNKNOWN_LOT) for one in asked if not one.lot]
    choice = choose(
        [one for one in asked if one.lot],
        lambda one: one.lot,
        shares.lots,
        shares.used(settled),
        now,
        lambda size, entries: False,
        order=shares.order,
    )
    going = [one.candidate._replace(limit=str(one.question)) for one in choice.go]
    return [*going, *beyond], [*unknown, *(Kept(one, within_share(one.lot)) for one in choice.stay)]


def reclaimable(shares: Shares, used: Mapping[str, Usage], idle: Mapping[str, int], now: float) -> dict[str, int]:
    """At most how many bytes of each lot would go in a full cleaning.

    `used`: what each lot has of its own in the cache; `idle`: how many bytes of that nothing else protects. It is less
    if they are in large copies, which go whole.
    """
    lots = shares.lots
    sums = {
        name: used.get(name, Usage()).plus(shares.reported.get(name, Usage())) for name in (one.name for one in lots)
    }
    size = {name: balance.total.bytes for name, balance in lots.balances(sums).items()}
    ledger = _Ledger(lots, sums, lambda size, entries: False, ())
    freely = set().union(
        *(lots.past(one, sums, now) for one in (Question.DELETION, Question.EXPIRATION) if one in shares.order)
    )
    found: dict[str, int] = {}

    def take(name: str, most: int) -> None:
        found[name] = most
        for one in ledger.up[name]:
            size[one] -= most

    for name in freely:
        take(name, idle.get(name, 0))
    for name in (name for level in ledger.levels for name in level if name not in freely):
        up = ledger.up[name]
        over = [most for one in up if (most := _beyond(lots[one], size[one], shares.order)) > 0]
        if Question.OBJECTS in shares.order and any(ledger.is_over(lots[one], Question.OBJECTS) for one in up):
            take(name, idle.get(name, 0))
        else:
            spare = min(size[one] - ledger.share[one] for one in up)
            take(name, max(0, min(idle.get(name, 0), spare, max(over, default=0))))
    return found


def _beyond(lot: Lot, size: int, order: Sequence[Question]) -> int:
    """By how much a lot is over the narrowest of its limits that are kept to."""
    if Question.DEDICATED in order:
        return size - lot.dedicated
    is_limited = Question.OPPORTUNISTIC in order and lot.opportunistic is not None
    return size - lot.dedicated - (lot.opportunistic or 0) if is_limited else 0


def _aim(sifted: Sifted, rules: Rules, room: Room | None) -> tuple[Goal | None, Callable[[int, int], bool]]:
    """What to come down to, and whether that is reached once so many bytes and entries are gone."""
    retain_size, lookup = rules.retain_size, rules.lots
    if retain_size is not None and lookup is not None and lookup.only is not None:  # it is that of the lot
        retain_size += sifted.bytes - sum(sifted.bytes_of[name] for name in lookup.only)
    aim = goal(rules.limits, retain_size, sifted.bytes, sifted.entries, room)
    if aim is None:
        within = rules.limits != Limits()
        return None, lambda size, entries: within
    return aim, lambda size, entries: not aim.missed(sifted.bytes - size, sifted.entries - entries)


def _choose(
    eligible: Sequence[Candidate],
    sifted: Sifted,
    rules: Rules,
    shares: Shares,
    now: float,
    enough: Callable[[int, int], bool],
) -> Choice:
    return choose(
        eligible,
        lambda one: one.lot,
        shares.lots,
        shares.used(sifted),
        now,
        enough,
        order=shares.order,
        beyond_dedicated=rules.beyond_dedicated,
    )


def within_share(lot: str) -> str:
    """Why a copy stays."""
    return f"within the share of lot {lot}"


def _left_after(
    ledger: _Ledger, pairs: list[tuple[Candidate, str]], over: _Over, question: Question
) -> list[tuple[Candidate, str]]:
    """What does not go in a round. There may be a million copies: a lot that has given all is not asked again."""
    asked, left = ledger.below(over.names), []
    remaining = iter(pairs)
    for pair in remaining:
        if pair[1] in asked:
            if ledger.takes(pair, over, question):
                continue
            if question is not Question.DELETION and ledger.reached:
                left.append(pair)
                break
            if ledger.has_given_all(pair[1], over, question):
                asked.discard(pair[1])
        left.append(pair)
    left.extend(remaining)
    return left


class _Over(NamedTuple):
    """A round: the lots that are asked in it, and whether those below keep what is within their own dedicated space."""

    names: frozenset[str]
    spares_dedicated: bool = False


def _rounds(ledger: _Ledger, lots: Lots, question: Question, now: float) -> Iterator[_Over]:
    """The lots to ask, together: dates for all at once, limits level by level, the deepest first.

    Below a lot that is over its limit, copies beyond the dedicated space of their own lot go before those within it.
    """
    if question in (Question.DELETION, Question.EXPIRATION):
        past = lots.past(question, {}, now, with_descendants=False)
        if past:
            yield _Over(frozenset(past))
        return
    for names in ledger.levels:
        for spares in (True, False):
            over = frozenset(name for name in names if ledger.is_over(lots[name], question))
            if over:
                yield _Over(over, spares)


class _Ledger:
    """What each lot has left while copies are chosen."""

    def __init__(
        self,
        lots: Lots,
        used: Mapping[str, Usage],
        enough: Callable[[int, int], bool],
        pairs: Iterable[tuple[Candidate, str]],
    ) -> None:
        """`pairs`: all copies that may go, with their lots."""
        self._least: dict[str, int] = {}  # bytes of the smallest copy of a lot
        for candidate, own in pairs:
            size = candidate.bytes
            if size < self._least.get(own, LARGEST):
                self._least[own] = size
        self.go: list[Chosen] = []
        self._lots = lots
        self._enough = enough
        self._bytes = self._entries = 0  # of what goes
        totals = {name: balance.total for name, balance in lots.balances(used).items()}
        self._size = {name: total.bytes for name, total in totals.items()}
        self._objects = {name: total.objects for name, total in totals.items()}
        self.up = {lot.name: (lot.name, *lots.ancestors(lot.name)) for lot in lots}
        self.share = {lot.name: int(lots.restriction(lot.name, "dedicated").value or 0) for lot in lots}
        self.levels = _levels(lots)
        self.reached = enough(0, 0)

    def below(self, names: frozenset[str]) -> set[str]:
        """These lots, and all below them."""
        return {name for name, up in self.up.items() if not names.isdisjoint(up)}

    def is_over(self, lot: Lot, question: Question) -> bool:
        """Whether a lot, with its descendants, has more than a limit: to be at it is not enough to lose data."""
        match question:
            case Question.OBJECTS:
                return lot.objects is not None and self._objects[lot.name] > lot.objects
            case Question.OPPORTUNISTIC:
                most = None if lot.opportunistic is None else lot.dedicated + lot.opportunistic
                return most is not None and self._size[lot.name] > most
            case _:  # without dedicated space nothing is promised, so that empty files go, too
                return self._size[lot.name] > lot.dedicated or not lot.dedicated

    def takes(self, pair: tuple[Candidate, str], over: _Over, question: Question) -> bool:
        """Whether a copy of a lot goes in a round."""
        candidate, own = pair
        dated = question in (Question.DELETION, Question.EXPIRATION)
        if question is not Question.DELETION and self.reached:
            return False
        for name in self.up[own]:
            if name not in over.names:
                continue
            if not dated:
                if not self.is_over(self._lots[name], question):
                    continue
                if question is not Question.OBJECTS and not self._leaves_shares(own, candidate.bytes):
                    continue
                if over.spares_dedicated and self._size[own] - candidate.bytes < self._lots[own].dedicated:
                    continue
            self._take(candidate, own, Chosen(candidate, name, question))
            return True
        return False

    def has_given_all(self, own: str, over: _Over, question: Question) -> bool:
        """Whether not even the smallest copy of a lot can go in a round: what lots have only becomes less."""
        if question in (Question.DELETION, Question.EXPIRATION):
            return False
        least = self._least.get(own, 0)
        if over.spares_dedicated and self._size[own] - least < self._lots[own].dedicated:
            return True
        if question is not Question.OBJECTS and not self._leaves_shares(own, least):
            return True
        return not any(name in over.names and self.is_over(self._lots[name], question) for name in self.up[own])

    def takes_any(self, pair: tuple[Candidate, str]) -> bool:
        """Whether a copy goes although it is within dedicated space."""
        if self.reached:
            return False
        candidate, own = pair
        self._take(candidate, own, Chosen(candidate, own, None))
        return True

    def _leaves_shares(self, own: str, size: int) -> bool:
        """Whether the lot, and each of its ancestors, keeps the dedicated space that the lots above it leave it."""
        return all(self._size[name] - size >= self.share[name] for name in self.up[own])

    def _take(self, candidate: Candidate, own: str, chosen: Chosen) -> None:
        size, entries = candidate.bytes, candidate.entries
        for name in self.up[own]:
            self._size[name] -= size
            self._objects[name] -= entries
        self._bytes += size
        self._entries += entries
        self.go.append(chosen)
        self.reached = self._enough(self._bytes, self._entries)


def _levels(lots: Lots) -> list[list[str]]:
    """The lots by their distance from a root, the farthest first."""
    depth: dict[str, int] = {}
    names: dict[int, list[str]] = {}
    for name in lots.downward():
        depth[name] = 1 + max((depth[parent] for parent in lots[name].parents - {name}), default=-1)
        names.setdefault(depth[name], []).append(name)
    return [names[level] for level in sorted(names, reverse=True)]
