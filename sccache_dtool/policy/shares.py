"""Which copies go first where lots have shares of the cache. Pure, as `rules.py`: it decides over what a scan saw.

What belongs to lots that are past their deletion goes at any cleaning. The rest goes only while the goal is missed:
first what belongs to expired lots, then from lots over their opportunistic space, over their number of objects, and
over their dedicated space, and from each only down to that limit. What is within the dedicated space of a lot stays,
as long as the lot keeps to its number of objects: bytes are promised, and not any number of files to keep them in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sccache_dtool.lots.model import Lot, Lots, Question, Usage
from sccache_dtool.policy.rules import Candidate

#: In which order lots give way, unless `config.toml` says another.
ORDER = (Question.DELETION, Question.EXPIRATION, Question.OPPORTUNISTIC, Question.OBJECTS, Question.DEDICATED)


class Chosen(NamedTuple):
    """A copy that goes, the lot because of which it goes, and which limit of that lot is exceeded.

    `question` is None for what goes although it is within dedicated space, because somebody asked for that.
    """

    candidate: Candidate
    lot: str
    question: Question | None


class Choice(NamedTuple):
    """What goes, in this order, and what stays because it is within the dedicated space of a lot."""

    go: list[Chosen]
    dedicated: list[Candidate]


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
    ledger = _Ledger(lots, used, enough)
    left = [(candidate, lot_of(candidate)) for candidate in eligible]
    for question in order:
        for over in _rounds(ledger, lots, question, now):
            if question is not Question.DELETION and ledger.reached:
                break
            left = [pair for pair in left if not ledger.takes(pair, over, question)]
    if beyond_dedicated:
        left = [pair for pair in left if not ledger.takes_any(pair)]
    return Choice(ledger.go, [candidate for candidate, _ in left] if not ledger.reached else [])


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

    def __init__(self, lots: Lots, used: Mapping[str, Usage], enough: Callable[[int, int], bool]) -> None:
        self.go: list[Chosen] = []
        self._lots = lots
        self._enough = enough
        self._bytes = self._entries = 0  # of what goes
        totals = {name: balance.total for name, balance in lots.balances(used).items()}
        self._size = {name: total.bytes for name, total in totals.items()}
        self._objects = {name: total.objects for name, total in totals.items()}
        self._up = {lot.name: (lot.name, *lots.ancestors(lot.name)) for lot in lots}
        self._share = {lot.name: int(lots.restriction(lot.name, "dedicated").value or 0) for lot in lots}
        self.levels = _levels(lots)
        self.reached = enough(0, 0)

    def is_over(self, lot: Lot, question: Question) -> bool:
        """Whether a lot, with its descendants, has more than a limit: to be at it is not enough to lose data."""
        match question:
            case Question.OBJECTS:
                return lot.objects is not None and self._objects[lot.name] > lot.objects
            case Question.OPPORTUNISTIC:
                most = None if lot.opportunistic is None else lot.dedicated + lot.opportunistic
                return most is not None and self._size[lot.name] > most
            case _:
                return self._size[lot.name] > lot.dedicated

    def takes(self, pair: tuple[Candidate, str], over: _Over, question: Question) -> bool:
        """Whether a copy of a lot goes in a round."""
        candidate, own = pair
        dated = question in (Question.DELETION, Question.EXPIRATION)
        if question is not Question.DELETION and self.reached:
            return False
        for name in self._up[own]:
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

    def takes_any(self, pair: tuple[Candidate, str]) -> bool:
        """Whether a copy goes although it is within dedicated space."""
        if self.reached:
            return False
        candidate, own = pair
        self._take(candidate, own, Chosen(candidate, own, None))
        return True

    def _leaves_shares(self, own: str, size: int) -> bool:
        """Whether the lot, and each of its ancestors, keeps the dedicated space that the lots above it leave it."""
        return all(self._size[name] - size >= self._share[name] for name in self._up[own])

    def _take(self, candidate: Candidate, own: str, chosen: Chosen) -> None:
        size, entries = candidate.bytes, candidate.entries
        for name in self._up[own]:
            self._size[name] -= size
            self._objects[name] -= entries
        self._bytes += size
        self._entries += entries
        self.go.append(chosen)
        self.reached = self._enough(self._bytes, self._entries)


def _levels(lots: Lots) -> list[list[str]]:
    """The lots by their distance from a root, the farthest first."""
    depth: Counter[str] = Counter()

    def of(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((of(parent) for parent in lots[name].parents - {name}), default=-1)
        return depth[name]

    names: dict[int, list[str]] = {}
    for name in sorted(lot.name for lot in lots):
        names.setdefault(of(name), []).append(name)
    return [names[level] for level in sorted(names, reverse=True)]


def used_by(pairs: Iterable[tuple[str, int, int]]) -> dict[str, Usage]:
    """What each lot has of its own, from the lot, bytes and entries of each copy."""
    sizes: Counter[str] = Counter()
    objects: Counter[str] = Counter()
    for lot, size, entries in pairs:
        sizes[lot] += size
        objects[lot] += entries
    return {lot: Usage(sizes[lot], objects[lot]) for lot in sizes}
