"""The choice of copies, compared with a slow one that says the rules as they are, and begins again after each copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from sccache_dtool.lots.model import DEFAULT, Lot, Lots, Question, Usage
from sccache_dtool.policy.rules import Candidate, Sifted
from sccache_dtool.policy.shares import BEYOND, ORDER, Shares, choose, recheck

NOW = 1000.0

Going = list[tuple[str, str]]  # the place of each copy that goes, and why


def reference(
    copies: Sequence[Candidate],
    lots: Lots,
    kept: Mapping[str, Usage],
    enough: Callable[[int, int], bool],
    order: Sequence[Question],
    beyond: bool,
) -> Going:
    """What goes. Everything is added up anew at each step: `kept` is what lots have that cannot go."""
    gone: list[Candidate] = []
    why: Going = []

    def family(name: str) -> set[str]:
        return {name, *lots.descendants(name)}

    def has(name: str, what: str) -> int:
        members = family(name)
        there = sum(getattr(one, what) for one in copies if one not in gone and one.lot in members)
        other = {"bytes": "bytes", "entries": "objects"}[what]
        return there + sum(getattr(used, other) for lot, used in kept.items() if lot in members)

    def reached() -> bool:
        return enough(sum(one.bytes for one in gone), sum(one.entries for one in gone))

    def share(name: str) -> int:
        return min(lots[one].dedicated for one in (name, *lots.ancestors(name)))

    def level(name: str) -> int:
        return max((1 + level(one) for one in lots[name].parents - {name}), default=0)

    def is_over(name: str, question: Question) -> bool:
        lot = lots[name]
        match question:
            case Question.DELETION:
                return lot.deletes is not None and lot.deletes <= NOW
            case Question.EXPIRATION:
                return lot.expires is not None and lot.expires <= NOW
            case Question.OPPORTUNISTIC:
                most = lot.opportunistic
                return most is not None and has(name, "bytes") > lot.dedicated + most
            case Question.OBJECTS:
                return lot.objects is not None and has(name, "entries") > lot.objects
        return has(name, "bytes") > lot.dedicated or not lot.dedicated

    def may_go(one: Candidate, at: set[str], question: Question, spares: bool) -> bool:
        above = [one.lot, *lots.ancestors(one.lot)]
        if not any(name in at and is_over(name, question) for name in above):
            return False
        if question in (Question.DELETION, Question.EXPIRATION):
            return True
        if question is not Question.OBJECTS and any(has(name, "bytes") - one.bytes < share(name) for name in above):
            return False
        return not (spares and has(one.lot, "bytes") - one.bytes < lots[one.lot].dedicated)

    names = {lot.name for lot in lots}
    for question in order:
        dated = question in (Question.DELETION, Question.EXPIRATION)
        levels = [names] if dated else [{n for n in names if level(n) == at} for at in range(len(names), -1, -1)]
        for at in levels:
            for spares in (False,) if dated else (True, False):
                while question is Question.DELETION or not reached():
                    left = [one for one in copies if one not in gone]
                    first = next((one for one in left if may_go(one, at, question, spares)), None)
                    if first is None:
                        break
                    gone.append(first)
                    why.append((first.place, str(question)))
    for one in copies if beyond else ():
        if one not in gone and not reached():
            gone.append(one)
            why.append((one.place, BEYOND))
    return why


@st.composite
def caches(draw: st.DrawFn) -> tuple[Lots, list[Candidate], dict[str, Usage]]:
    """Lots with any families, copies of them in some order, and what they have besides."""
    lots = [Lot(DEFAULT, "", frozenset({DEFAULT}), dedicated=draw(st.sampled_from([0, 0, 5])))]
    limit = st.none() | st.integers(0, 12)
    date = st.sampled_from([None, None, None, NOW - 1, NOW])
    for number in range(draw(st.integers(1, 5))):
        above = draw(st.sets(st.sampled_from([one.name for one in lots]), max_size=2))
        expires = draw(date)
        lots.append(
            Lot(
                f"l{number}",
                "ada",
                frozenset(above or {f"l{number}"}),
                dedicated=draw(st.integers(0, 12)),
                opportunistic=draw(limit),
                objects=draw(st.none() | st.integers(0, 5)),
                expires=expires,
                deletes=expires and draw(st.sampled_from([None, NOW])),
            )
        )
    names = st.sampled_from([one.name for one in lots])
    parts = draw(st.lists(st.tuples(names, st.integers(0, 6), st.integers(1, 3)), max_size=10))
    copies = [
        Candidate(f"c{n}/g{n:016x}-0-{size}-{entries}", 0, 0.0, lot=name)
        for n, (name, size, entries) in enumerate(parts)
    ]
    kept = draw(st.dictionaries(names, st.builds(Usage, st.integers(0, 9), st.integers(0, 3)), max_size=2))
    return Lots(lots), copies, kept


def _used(copies: Sequence[Candidate], kept: Mapping[str, Usage]) -> dict[str, Usage]:
    used = dict(kept)
    for one in copies:
        used[one.lot] = used.get(one.lot, Usage()).plus(Usage(one.bytes, one.entries))
    return used


orders = st.just(ORDER) | st.permutations(ORDER).flatmap(lambda order: st.integers(1, 5).map(lambda n: order[:n]))


@settings(max_examples=400)
@given(caches(), st.none() | st.integers(0, 40), st.none() | st.integers(0, 12), orders, st.booleans())
def test_what_goes_is_what_the_rules_say(
    cache: tuple[Lots, list[Candidate], dict[str, Usage]],
    size: int | None,
    entries: int | None,
    order: Sequence[Question],
    beyond: bool,
) -> None:
    """A shortcut of the choice would take what a lot protects, or leave what nothing protects."""
    lots, copies, kept = cache

    def enough(gone: int, count: int) -> bool:
        asked = size is not None or entries is not None
        return asked and gone >= (size or 0) and count >= (entries or 0)

    used = _used(copies, kept)
    choice = choose(copies, lambda one: one.lot, lots, used, NOW, enough, order=order, beyond_dedicated=beyond)
    going = [(one.candidate.place, str(one.question or BEYOND)) for one in choice.go]
    assert going == reference(copies, lots, kept, enough, order, beyond)
    assert Counter(one.place for one in copies) == Counter([place for place, _ in going]) + Counter(
        one.place for one in choice.stay
    )
    planned = [one.candidate._replace(limit=str(one.question or BEYOND)) for one in choice.go]
    settled = Sifted()
    for one in copies:
        settled.add(one, one.bytes, one.entries, None)
    remove, _ = recheck(planned, settled, Shares(lots, kept, order), NOW)
    assert {one.place for one in remove} == {
        one.place for one in planned
    }  # a plan is carried out as it was made, as long as nothing changes
