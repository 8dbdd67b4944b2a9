"""Which copies go where lots have shares: in the order of the classes, down to each limit, and never below a share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccache_dtool.lots.model import DEFAULT, Lot, Lots, Question, Usage
from sccache_dtool.policy.rules import Candidate
from sccache_dtool.policy.shares import ORDER, Choice, Shares, choose, reclaimable

NOW = 1000.0


def lot(name: str, *parents: str, **more: object) -> Lot:
    """A lot that is a root unless parents are given."""
    return Lot(name, name, frozenset(parents or {name}), **more)  # type: ignore[arg-type]


def copy(name: str, size: int, entries: int = 1) -> Candidate:
    """A copy of so many bytes."""
    return Candidate(f"{name}/g{'0' * 16}-0-{size}-{entries}", 0, 0.0)


def used_by(pairs: Iterable[tuple[str, int, int]]) -> dict[str, Usage]:
    """What each lot has of its own, from the lot, bytes and entries of each copy."""
    used = dict[str, Usage]()
    for lot, size, entries in pairs:
        before = used.get(lot, Usage(0, 0))
        used[lot] = Usage(before.bytes + size, before.objects + entries)
    return used


def chosen(
    lots: Lots,
    copies: Mapping[Candidate, str],
    goal: int | None,
    kept: Iterable[tuple[str, int, int]] = (),
    **more: bool,
) -> Choice:
    """What goes to free `goal` bytes; None: all that may go. `kept`: what lots have besides, and cannot go."""
    used = used_by([*((name, one.bytes, one.entries) for one, name in copies.items()), *kept])
    return choose(
        list(copies), copies.__getitem__, lots, used, NOW, lambda size, _: goal is not None and size >= goal, **more
    )


def names(choice: Choice) -> list[str]:
    """The names of the copies that go."""
    return [one.candidate.key for one in choice.go]


def test_the_classes_go_in_order_and_what_is_dedicated_stays() -> None:
    """A group that is within its share would lose data while others are over theirs."""
    lots = Lots(
        [
            lot("dead", dedicated=10, opportunistic=5, objects=100, expires=500.0, deletes=900.0),
            lot("expired", dedicated=10, opportunistic=5, objects=100, expires=900.0, deletes=5000.0),
            lot("overopp", dedicated=10, opportunistic=5, objects=100),
            lot("overobj", dedicated=10, opportunistic=5, objects=2),
            lot("overded", dedicated=10, opportunistic=50, objects=100),
            lot("fine", dedicated=10, opportunistic=5, objects=100),
        ]
    )
    copies = {
        copy(f"{name}{n}", size): name
        for name, sizes in {
            "fine": [4, 4],
            "overded": [2, 5, 5],
            "overobj": [0, 0, 0],
            "overopp": [1, 5, 10],
            "expired": [1],
            "dead": [2],
        }.items()
        for n, size in enumerate(sizes)
    }
    choice = chosen(lots, copies, None)
    assert names(choice) == ["dead0", "expired0", "overopp0", "overobj0", "overded0", "overopp1"]
    assert [one.question for one in choice.go] == [*ORDER, Question.DEDICATED]
    assert {one.key for one in choice.dedicated} >= {"fine0", "fine1"}
    assert names(chosen(lots, copies, 1)) == ["dead0"]
    assert names(chosen(lots, copies, 3)) == ["dead0", "expired0"]
    assert names(chosen(lots, copies, 4)) == ["dead0", "expired0", "overopp0"]


def test_without_pressure_only_what_is_past_its_deletion_goes() -> None:
    """Expired data would be removed although nobody needs the space."""
    lots = Lots([lot("expired", expires=1.0), lot("dead", expires=1.0, deletes=2.0), lot("child", "dead")])
    copies = {copy("e", 5): "expired", copy("d", 5): "dead", copy("c", 5): "child", copy("n", 5): DEFAULT}
    assert names(chosen(lots, copies, 0)) == ["d", "c"]


def test_a_parent_that_is_over_because_of_a_child_loses_that_childs_data() -> None:
    """Data of those who keep to their share would go, because others of their group do not."""
    lots = Lots([lot("group", dedicated=10), lot("greedy", "group", dedicated=2), lot("modest", "group", dedicated=4)])
    copies = {copy("m0", 2): "modest", copy("g0", 2): "greedy", copy("g1", 2): "greedy", copy("g2", 6): "greedy"}
    assert names(chosen(lots, copies, 2)) == ["g0"]
    assert "m0" not in names(chosen(lots, copies, None))


def test_the_share_of_a_group_protects_what_its_members_have() -> None:
    """A group would lose all that it was promised, because its members have no shares of their own."""
    lots = Lots([lot("group", dedicated=10), lot("ada", "group"), lot("bob", "group")])
    copies = {copy(f"{name}{n}", 3): name for n in range(2) for name in ("ada", "bob")}
    assert names(chosen(lots, copies, None)) == []  # of 12 bytes, no copy can go without going below 10
    copies[copy("bob2", 1)] = "bob"
    assert names(chosen(lots, copies, None)) == ["ada0"]


def test_a_child_has_no_larger_share_than_its_parent() -> None:
    """A group could be given more than the site has, by a lot below it."""
    lots = Lots([lot("site", dedicated=5), lot("group", "site", dedicated=100)])
    copies = {copy(f"g{n}", 2): "group" for n in range(4)}
    choice = chosen(lots, copies, None)
    assert names(choice) == ["g0"]
    assert choice.go[0].lot == "site"


def test_what_is_dedicated_goes_only_if_somebody_asks_for_that() -> None:
    """A data manager with a full disk could free nothing, or a cron job would take what was promised."""
    lots = Lots([lot("a", dedicated=10)])
    copies = {copy("one", 4): "a", copy("two", 4): "a"}
    assert (names(chosen(lots, copies, 4)), len(chosen(lots, copies, 4).dedicated)) == ([], 2)
    beyond = chosen(lots, copies, 4, beyond_dedicated=True)
    assert (names(beyond), beyond.go[0].question, beyond.dedicated) == (["one"], None, [])


def test_what_cannot_go_counts_for_its_lot() -> None:
    """A lot full of leased data would keep all the rest of it, too."""
    lots = Lots([lot("a", dedicated=10)])
    assert names(chosen(lots, {copy("one", 4): "a"}, None, kept=[("a", 12, 1)])) == ["one"]


@st.composite
def situations(draw: st.DrawFn) -> tuple[Lots, dict[Candidate, str]]:
    """Lots, and copies of them in some order."""
    lots = Lots()
    limit = st.none() | st.integers(0, 20)
    for number in range(draw(st.integers(1, 5))):
        above = draw(st.sets(st.sampled_from(sorted(one.name for one in lots)), max_size=2))
        new = lot(f"l{number}", *(above - {DEFAULT}), dedicated=draw(st.integers(0, 20)), opportunistic=draw(limit))
        date = draw(st.sampled_from([None, NOW - 1, NOW + 1]))
        lots = lots.add(replace(new, objects=draw(limit), expires=date), caller=None)
    there = sorted(one.name for one in lots)
    sizes = draw(st.lists(st.tuples(st.sampled_from(there), st.integers(1, 9), st.integers(1, 3)), max_size=12))
    return lots, {copy(f"c{n}", size, entries): name for n, (name, size, entries) in enumerate(sizes)}


def _totals(lots: Lots, copies: Mapping[Candidate, str], gone: Iterable[Candidate]) -> dict[str, Usage]:
    left = copies.keys() - set(gone)
    used = used_by((copies[one], one.bytes, one.entries) for one in left)
    return {name: balance.total for name, balance in lots.balances(used).items()}


@given(situations(), st.none() | st.integers(0, 60))
def test_no_lot_falls_below_its_share(situation: tuple[Lots, dict[Candidate, str]], goal: int | None) -> None:
    """A group would lose what it was promised."""
    lots, copies = situation
    choice = chosen(lots, copies, goal)
    spared = (Question.OPPORTUNISTIC, Question.DEDICATED)
    others = [one.candidate for one in choice.go if one.question not in spared]  # of dates, and too many objects
    before, after = _totals(lots, copies, others), _totals(lots, copies, [one.candidate for one in choice.go])
    for one in lots:
        share = int(lots.restriction(one.name, "dedicated").value or 0)
        assert after[one.name].bytes >= min(before[one.name].bytes, share)


@given(situations(), st.none() | st.integers(0, 60))
def test_no_class_is_touched_before_an_earlier_one_is_exhausted(
    situation: tuple[Lots, dict[Candidate, str]], goal: int | None
) -> None:
    """Data of a lot that only uses free space would go before that of an expired one."""
    lots, copies = situation
    choice = chosen(lots, copies, goal)
    classes = [ORDER.index(one.question) for one in choice.go if one.question is not None]
    assert classes == sorted(classes)
    everything = chosen(lots, copies, None)
    assert names(choice) == names(everything)[: len(choice.go)]  # a larger goal only takes more
    if goal is not None:
        size = sum(one.candidate.bytes for one in choice.go)
        assert size >= goal or len(choice.go) == len(everything.go)
        assert not choice.go or size - choice.go[-1].candidate.bytes < goal


@given(situations(), st.permutations(ORDER).flatmap(lambda order: st.integers(1, 5).map(lambda n: order[:n])))
def test_what_is_said_to_be_reclaimable_is_at_least_what_goes(
    situation: tuple[Lots, dict[Candidate, str]], order: list[Question]
) -> None:
    """`du` would say that space cannot be reclaimed which `clean --all` removes."""
    lots, copies = situation
    used = used_by((name, one.bytes, one.entries) for one, name in copies.items())
    lot_of = copies.__getitem__
    gone = choose(list(copies), lot_of, lots, used, NOW, lambda size, _: False, order=order)
    found = reclaimable(Shares(lots, {}, order), used, {name: one.bytes for name, one in used.items()}, NOW)
    assert sum(one.candidate.bytes for one in gone.go) <= sum(found.values())
    assert all(0 <= size <= used.get(name, Usage()).bytes for name, size in found.items())


def test_what_is_reclaimable_is_what_is_beyond_shares() -> None:
    """A data manager would count on room that lots protect."""
    lots = Lots(
        [lot("site", dedicated=100), lot("a", "site", dedicated=30), lot("b", "site"), lot("old", expires=NOW - 1)]
    )
    used = {"a": Usage(50), "b": Usage(80), "old": Usage(7), DEFAULT: Usage(5)}
    idle = {"a": 50, "b": 60, "old": 7, DEFAULT: 3}
    found = reclaimable(Shares(lots, {}), used, idle, NOW)
    assert (found["old"], found[DEFAULT], found["a"] + found["b"]) == (7, 3, 30)
    found = reclaimable(Shares(lots, {"b": Usage(1000)}), used, idle, NOW)  # elsewhere: it cannot go, and counts
    assert (found["a"], found["b"]) == (20, 60)


@given(situations())
def test_each_copy_goes_because_of_a_lot_above_it(situation: tuple[Lots, dict[Candidate, str]]) -> None:
    """A plan would name a lot that has nothing to do with the data."""
    lots, copies = situation
    choice = chosen(lots, copies, None)
    assert len({one.candidate for one in choice.go}) == len(choice.go)
    for one in choice.go:
        assert one.lot in {copies[one.candidate], *lots.ancestors(copies[one.candidate])}
    assert {one.candidate for one in choice.go} | set(choice.dedicated) == copies.keys()


@pytest.mark.parametrize("goal", [0, 5, None])
def test_without_limits_everything_goes_in_the_usual_order(goal: int | None) -> None:
    """A cache without lots would be cleaned otherwise than before."""
    copies = {copy(f"c{n}", 2): DEFAULT for n in range(4)}
    count = 4 if goal is None else -(-goal // 2)
    assert names(chosen(Lots(), copies, goal)) == [f"c{n}" for n in range(count)]
