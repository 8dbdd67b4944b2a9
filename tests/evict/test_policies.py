"""Which copies may go: pure functions over snapshots."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from sccache_dtool.catalog.items import Copy, Item
from sccache_dtool.disk.filesystem import Room
from sccache_dtool.disk.names import Generation, LeaseName, item_key
from sccache_dtool.policy import rules as policy
from sccache_dtool.policy.rules import ENOUGH, Plan, Rules
from sccache_dtool.policy.thresholds import ORDERS, Goal, Limits, Mark
from sccache_dtool.protocol.leases import Held

NOW = 1_800_000_000.0
DAY = 86_400.0


def item(
    name: str,
    *,
    size: int = 10,
    used: float | None = None,
    fetched: float = 30 * DAY,
    uses: int = 0,
    leases: int = 0,
    closed: bool = False,
) -> Item:
    """An item of one copy; `used` and `fetched` are seconds ago."""
    key = item_key((name,), name)
    generation = Generation("0123456789abcdef", int(NOW - fetched), size, 1)
    held = tuple(
        Held(key, str(generation), f"lease {number}", LeaseName("s0123456789ab-0123456789ab", number))
        for number in range(leases)
    )
    last = None if used is None else NOW - used
    return Item(key, (Copy(key, generation, closed, held),), uses, last)


def make_plan(found: Iterable[Item], rules: Rules, now: float, *, room: Room | None = None) -> Plan:
    """What a cleaning plans whose scan finds these items, each in another part of the cache."""
    sifted = policy.merge(policy.sift(rules, now, iter([one])) for one in found)
    return policy.make_plan(sifted, sifted.unsettled, (), rules, now, room=room)


def labels(plan: Plan) -> list[str]:
    return [candidate.label for candidate in plan.remove]


def kept(plan: Plan) -> dict[str, str]:
    return {kept.label: kept.reason for kept in plan.keep}


def test_exclusions_go_by_names_and_not_by_keys() -> None:
    """Of all items, whatever they are called, `--exclude 'b*'` would keep those whose key happens to begin with b."""
    found = [item("reads"), item("blast")]
    patterns = tuple(f"{digit}*" for digit in "0123456789acdef")
    assert labels(make_plan(found, Rules(True, exclude=patterns), NOW)) == ["reads", "blast"]
    assert labels(make_plan(found, Rules(True, exclude=("b*",)), NOW)) == ["reads"]


def test_no_rules_are_told_apart_from_rules() -> None:
    """`clean` without a condition would remove everything."""
    assert Rules().empty
    for rules in (Rules(True), Rules(older_than=0.0), Rules(fewer_uses_than=0), Rules(retain_size=0)):
        assert not rules.empty


@pytest.mark.parametrize(
    "rules",
    [
        Rules(True),
        Rules(older_than=0.0),
        Rules(fewer_uses_than=10**6),
        Rules(retain_size=0),
        Rules(True, 0.0, 10**6, 0),
    ],
)
def test_what_is_held_is_never_planned(rules: Rules) -> None:
    """A plan would tell of removals that never come, or somebody would carry them out."""
    plan = make_plan([item("held", leases=2, used=DAY), item("free")], rules, NOW)
    assert labels(plan) == ["free"]
    assert kept(plan) == {"held": "in use: 2 leases"}
    assert plan.keep[0].held


def test_an_unknown_name_in_the_gate_is_a_lease() -> None:
    """Something that a newer release put there would not keep the data."""
    one = item("held", leases=1)
    stranger = one.copies[0].held[0]._replace(name="?", lease=None)
    strange = one._replace(copies=(one.copies[0]._replace(held=(stranger,)),))
    assert labels(make_plan([strange], Rules(True), NOW)) == []


def test_everything_that_is_free_goes_with_all() -> None:
    """`clean --all` would leave something."""
    assert set(labels(make_plan([item("a"), item("b", used=0.0, uses=99)], Rules(True), NOW))) == {"a", "b"}


def test_older_than_goes_by_the_last_use() -> None:
    """What is used every day, and was fetched long ago, would be removed."""
    found = [item("used", used=2 * DAY, fetched=99 * DAY), item("idle", used=8 * DAY, fetched=99 * DAY)]
    plan = make_plan(found, Rules(older_than=7 * DAY), NOW)
    assert labels(plan) == ["idle"]
    assert kept(plan) == {"used": "used within 7 d"}


def test_what_was_never_used_is_as_old_as_its_fetch() -> None:
    """What was fetched for tomorrow's run would be removed today; or what nobody ever uses stay for ever."""
    found = [item("new", fetched=DAY), item("old", fetched=99 * DAY)]
    assert labels(make_plan(found, Rules(older_than=7 * DAY), NOW)) == ["old"]


def test_older_than_includes_its_limit() -> None:
    """A cron job at the very second would remove it a day later than asked for."""
    assert labels(make_plan([item("a", used=7 * DAY)], Rules(older_than=7 * DAY), NOW)) == ["a"]
    assert labels(make_plan([item("a", used=7 * DAY - 1)], Rules(older_than=7 * DAY), NOW)) == []


def test_a_use_in_the_future_is_recent() -> None:
    """A host whose clock is ahead would make its items the first to go."""
    assert labels(make_plan([item("a", used=-5 * DAY)], Rules(older_than=DAY), NOW)) == []


def test_what_is_used_often_is_excluded() -> None:
    """`--exclude-frequently-accessed 10` would remove what was used ten times."""
    found = [item("rare", uses=9), item("often", uses=10)]
    plan = make_plan(found, Rules(fewer_uses_than=10), NOW)
    assert labels(plan) == ["rare"]
    assert kept(plan) == {"often": "used at least 10 times"}


def test_conditions_add_up() -> None:
    """One of two conditions would be enough to remove something."""
    found = [
        item("old rare", used=9 * DAY, uses=1),
        item("old often", used=9 * DAY, uses=99),
        item("new rare", used=DAY, uses=1),
        item("new often", used=DAY, uses=99),
    ]
    plan = make_plan(found, Rules(older_than=7 * DAY, fewer_uses_than=10), NOW)
    assert labels(plan) == ["old rare"]
    assert set(kept(plan)) == {"old often", "new rare", "new often"}


def test_all_does_not_switch_conditions_off() -> None:
    """`clean --all --older-than 30d` would remove what was used today."""
    assert labels(make_plan([item("a", used=DAY)], Rules(True, older_than=7 * DAY), NOW)) == []


def test_a_size_is_reached_from_the_least_recently_used() -> None:
    """What is used now would go, and what nobody uses stay."""
    found = [item("b", used=2 * DAY), item("a", used=3 * DAY), item("d", used=0.0), item("c", used=DAY)]
    plan = make_plan(found, Rules(retain_size=20), NOW)
    assert labels(plan) == ["a", "b"]
    assert (plan.size, plan.freed, plan.goal, plan.missed.bytes) == (40, 20, Goal(20), 0)
    assert set(kept(plan)) == {"c", "d"}


@pytest.mark.parametrize(("goal", "count"), [(40, 0), (39, 1), (30, 1), (29, 2), (1, 4), (0, 4)])
def test_no_more_goes_than_the_size_asks_for(goal: int, count: int) -> None:
    """A cache with room left would be emptied further, or stay too full."""
    found = [item(name, used=DAY) for name in "abcd"]
    assert len(make_plan(found, Rules(retain_size=goal), NOW).remove) == count


def test_what_is_held_counts_towards_the_size() -> None:
    """A full cache of which half is in use would not be cleaned at all."""
    found = [item("held", size=100, leases=1, used=9 * DAY), item("free", size=10)]
    plan = make_plan(found, Rules(retain_size=50), NOW)
    assert labels(plan) == ["free"]
    assert plan.missed.bytes == 50


def test_a_size_is_reached_only_with_what_the_conditions_let_go() -> None:
    """`--retain-size` with `--older-than` would remove what was used today."""
    found = [item("old", used=9 * DAY), item("new", used=DAY)]
    plan = make_plan(found, Rules(older_than=7 * DAY, retain_size=0), NOW)
    assert labels(plan) == ["old"]
    assert plan.missed.bytes == 10


def test_of_equals_always_the_same_goes() -> None:
    """A dry run would show another plan than the one that is carried out."""
    found = [item(name, used=DAY) for name in "abcd"]
    plans = {tuple(labels(make_plan(order, Rules(retain_size=20), NOW))) for order in (found, found[::-1])}
    assert len(plans) == 1


def test_closed_copies_are_no_policys_business() -> None:
    """What is being removed already would count towards the size, and something else be kept for it."""
    plan = make_plan([item("closed", closed=True), item("open")], Rules(retain_size=10), NOW)
    assert (labels(plan), plan.size, plan.keep[0].label) == ([], 10, "open")


def test_copies_are_judged_one_by_one() -> None:
    """A second copy, fetched by accident, would stay for as long as the first is used."""
    two = item("x", leases=1)
    spare = two.copies[0]._replace(generation=Generation("f" * 16, int(NOW), 7, 1), held=())
    plan = make_plan([two._replace(copies=(*two.copies, spare))], Rules(True), NOW)
    assert [candidate.generation for candidate in plan.remove] == [str(spare.generation)]
    assert plan.size == 17


def test_a_plan_shows_what_it_knows() -> None:
    """`--dry-run` could not say what would go, how large it is, and how often it was used."""
    (candidate,) = make_plan([item("a", size=5, uses=3, used=DAY)], Rules(True), NOW).remove
    assert (candidate.bytes, candidate.entries, candidate.uses, candidate.idle_since) == (5, 1, 3, NOW - DAY)


# -- what stays ------------------------------------------------------------------------------------------------------


def test_what_is_pinned_excluded_or_fresh_stays_whatever_the_rules() -> None:
    """What a person wants to keep, or has just fetched for the next job, would go with `--all`."""
    found = [item("pinned"), item("hg38"), item("fresh", fetched=60), item("rest")]
    rules = Rules(True, exclude=("hg*",), grace=3600)
    plan = make_plan(found, rules._replace(pinned=frozenset({found[0].key})), NOW)
    assert labels(plan) == ["rest"]
    assert kept(plan) == {"pinned": "pinned", "hg38": "excluded", "fresh": "fetched within 60 min"}


def test_only_what_is_larger() -> None:
    """`--larger-than 1GB` would spare what is large, or take what is small."""
    plan = make_plan([item("large", size=11), item("small", size=10)], Rules(larger_than=10), NOW)
    assert labels(plan) == ["large"]


# -- in which order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "first"),
    [("lru", "idle"), ("lfu", "rare"), ("largest", "big"), ("oldest", "old"), ("cost", "big")],
)
def test_each_order_has_its_own_first(order: str, first: str) -> None:
    """An order would be another one by a different name."""
    found = [
        item("idle", used=20 * DAY, uses=9, fetched=21 * DAY),
        item("rare", used=DAY, uses=0),
        item("big", size=10**12, used=DAY, uses=9),
        item("old", used=DAY, uses=9, fetched=90 * DAY),
    ]
    total = sum(one.bytes for one in found)
    assert labels(make_plan(found, Rules(retain_size=total - 1, order=order), NOW)) == [first]


def test_what_was_quick_to_fetch_goes_before_what_was_slow() -> None:
    """The cost-aware order would not weigh what a fetch costs."""
    quick, slow = item("quick", used=DAY, uses=3), item("slow", used=DAY, uses=3)
    took = {"quick": 10, "slow": 100_000}
    found = [
        one._replace(
            copies=(one.copies[0]._replace(generation=one.copies[0].generation._replace(took=took[one.label])),)
        )
        for one in (slow, quick)
    ]
    assert labels(make_plan(found, Rules(retain_size=19, order="cost"), NOW)) == ["quick"]


def test_there_is_a_rule_for_every_order() -> None:
    """An order that `--order` offers would be a traceback."""
    for order in ORDERS:
        assert len(make_plan([item("a"), item("b")], Rules(retain_size=0, order=order), NOW).remove) == 2


# -- how much goes ---------------------------------------------------------------------------------------------------

PERCENT = {number: Mark(number / 100, True) for number in range(101)}


def four(size: int = 10) -> list[Item]:
    return [item(name, size=size, used=DAY) for name in "abcd"]


@pytest.mark.parametrize(
    ("limits", "removed"),
    [
        (Limits(capacity=40), 0),
        (Limits(capacity=39), 1),
        (Limits(50, PERCENT[80], PERCENT[40]), 0),  # 40 is not above 80 % of 50
        (Limits(50, PERCENT[79], PERCENT[40]), 2),
        (Limits(50, PERCENT[79]), 1),  # no low mark: as soon as it is below the high one
        (Limits(50, PERCENT[50], PERCENT[90]), 2),  # a low mark above the high one is the high one
        (Limits(high=Mark(30, False), low=Mark(15, False)), 3),
        (Limits(entries_high=Mark(3, False), entries_low=Mark(1, False)), 3),
        (Limits(entries_high=Mark(4, False), entries_low=Mark(1, False)), 0),
    ],
)
def test_limits_of_what_the_cache_holds(limits: Limits, removed: int) -> None:
    """A cache would be cleaned below its mark, or not down to its low one."""
    plan = make_plan(four(), Rules(limits=limits), NOW)
    assert len(plan.remove) == removed
    assert plan.within == (removed == 0)


@pytest.mark.parametrize(
    ("limits", "room", "removed"),
    [
        (Limits(high=PERCENT[90], low=PERCENT[75]), Room(100, 11, 1000, 900), 0),
        (Limits(high=PERCENT[90], low=PERCENT[75]), Room(100, 5, 1000, 900), 2),  # 95 used: 20 must go
        (Limits(high=PERCENT[90], low=PERCENT[75]), Room(1000, 0, 1000, 900), 4),  # others have filled it: all we can
        (Limits(least_free=15), Room(100, 15, 1000, 900), 0),
        (Limits(least_free=15), Room(100, 14, 1000, 900), 1),
        (Limits(entries_high=PERCENT[90], entries_low=PERCENT[80]), Room(100, 50, 10, 0), 2),
        (Limits(entries_high=PERCENT[90], entries_low=PERCENT[80]), Room(100, 50, 0, 0), 0),  # it does not count them
    ],
)
def test_limits_of_the_file_system(limits: Limits, room: Room, removed: int) -> None:
    """A disk that others fill as well would run full, or the cache be emptied for nothing."""
    plan = make_plan(four(), Rules(limits=limits), NOW, room=room)
    assert len(plan.remove) == removed


def test_what_others_take_counts_as_missed() -> None:
    """A disk that others have filled would be told of as if it had room again."""
    for limits in (Limits(high=PERCENT[90], low=PERCENT[75]), Limits(least_free=250)):
        plan = make_plan(four(), Rules(limits=limits), NOW, room=Room(1000, 0, 1000, 900))
        assert (len(plan.remove), plan.missed.bytes) == (4, 250 - 40)


def test_the_strictest_of_several_goals_holds() -> None:
    """With a size and a mark one of the two would be forgotten."""
    assert len(make_plan(four(), Rules(retain_size=35, limits=Limits(capacity=15)), NOW).remove) == 3


def test_what_is_enough_says_so() -> None:
    """Why an item stays could not be told."""
    plan = make_plan(four(), Rules(retain_size=39), NOW)
    assert set(kept(plan).values()) == {ENOUGH}


def versions(name: str, *ages: float, used: float | None = None, uses: int = 0, held: tuple[int, ...] = ()) -> Item:
    """An item with a copy for each age in seconds, the newest first; `held`: numbers of copies with a lease."""
    one = item(name, leases=1)
    lease = one.copies[0].held
    copies = []
    for number, age in enumerate(ages):
        generation = Generation(f"{number:016x}", int(NOW - age), 10, 1)
        copies.append(Copy(one.key, generation, False, lease if number in held else ()))
    return one._replace(copies=tuple(copies), finished_uses=uses, last_end=None if used is None else NOW - used)


@pytest.mark.parametrize("order", ORDERS)
def test_older_versions_go_before_everything_else(order: str) -> None:
    """What nobody asks for any more would stay, and what is in use be fetched again, whenever a source changes."""
    found = [item("old", used=300 * DAY, fetched=300 * DAY, size=50), versions("x", 0, DAY, 2 * DAY, used=60, uses=90)]
    plan = make_plan(found, Rules(retain_size=60, order=order), NOW)
    assert [candidate.generation[:17] for candidate in plan.remove] == [f"g{2:016x}", f"g{1:016x}"]


def test_the_uses_of_a_new_version_do_not_keep_the_old_one() -> None:
    """Each version of a file that is used every day would stay for ever."""
    found = [versions("x", DAY, 40 * DAY, 50 * DAY, used=60, uses=90)]
    assert len(make_plan(found, Rules(older_than=30 * DAY), NOW).remove) == 1  # superseded 40 days ago
    assert len(make_plan(found, Rules(older_than=DAY / 2), NOW).remove) == 2
    assert len(make_plan(found, Rules(fewer_uses_than=10), NOW).remove) == 2


def test_an_old_version_in_use_stays() -> None:
    """Whoever began before the source changed would lose what it reads."""
    plan = make_plan([versions("x", 0, DAY, held=(1,))], Rules(True), NOW)
    assert [candidate.generation[:17] for candidate in plan.remove] == [f"g{0:016x}"]
    assert kept(plan) == {"x": "in use: 1 lease"}
