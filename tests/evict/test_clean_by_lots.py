"""A cleaning of a cache with lots, from end to end: who gives way first, and what stays."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults import Call, Counting, Failing, FakeClock, LostReplies
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout, MemoName, unique
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.evict import plan_file
from sccache_dtool.evict.cleaning import Cleaner
from sccache_dtool.evict.execution import Cleaned
from sccache_dtool.evict.plan_file import Planned
from sccache_dtool.lots.model import DEFAULT, Claim, Lot, Lots, Usage
from sccache_dtool.lots.table import Unknown
from sccache_dtool.policy.config import Config
from sccache_dtool.policy.rules import UNKNOWN_LOT, Plan, Rules
from sccache_dtool.policy.thresholds import Limits, Mark
from sccache_dtool.pool import Pool
from sccache_dtool.protocol.leases import Lease

Making = Callable[..., Cache]
Fill = Callable[..., Lease]
EVERYTHING = Rules(everything=True)
WITHIN = Rules(limits=Limits(high=Mark(10**9, False)))  # nothing is over it
DAY = 86_400.0


@pytest.fixture
def fill(cache: Cache, tmp_path: Path, clock: FakeClock) -> Fill:
    """Puts files of so many bytes into the cache, a minute apart, from the directory that a lot of that name claims."""

    def fill(lot: str, *sizes: int) -> Lease:
        (tmp_path / lot).mkdir(exist_ok=True)
        for size in sizes:
            number = len(os.listdir(tmp_path / lot))
            (tmp_path / lot / f"{lot}{number}").write_bytes(b"x" * size)
            clock.let_pass(60)
            lease = cache.use(tmp_path / lot / f"{lot}{number}")
            lease.release()
        return lease

    return fill


@pytest.fixture
def add(cache: Cache, tmp_path: Path) -> Callable[..., None]:
    """Adds a lot with the directory of its name."""

    def add(name: str, *parents: str, **more: Any) -> None:
        new = Lot(name, "ada", frozenset(parents or {name}), (Claim(f"{tmp_path}/{name}"),), **more)
        cache.change_lots(lambda lots: lots.add(new, caller=None))

    return add


def labels(done: Cleaned | Plan) -> list[str]:
    """What went."""
    return [one.label for one in (done.removed if isinstance(done, Cleaned) else done.remove)]


def classes(plan: Plan) -> list[str]:
    """Why it went."""
    return [one.limit for one in plan.remove]


def planned_of(cache: Cache, plan: Plan) -> Planned:
    """As it is read from the file that it was written into."""
    return plan_file.decode(list(plan_file.encode(plan, cache.check(), 0.0, "ada@host")))


def test_lots_give_way_in_the_order_of_their_classes(
    cache: Cache, fill: Fill, add: Callable[..., None], clock: FakeClock
) -> None:
    """A group that keeps to its share would lose data before those that do not."""
    now = clock.wall()
    fill("fine", 10, 10)
    fill("overded", 10, 10)
    fill("overobj", 1, 1)
    fill("overopp", 10, 10)
    fill("expired", 10)
    fill("dead", 10)
    add("dead", dedicated=100, expires=now, deletes=now)
    add("expired", dedicated=100, expires=now)
    add("overopp", dedicated=10, opportunistic=5)
    add("overobj", dedicated=100, objects=1)
    add("overded", dedicated=10)
    add("fine", dedicated=20)
    plan, _ = cache.plan(Rules(retain_size=0))
    assert labels(plan) == ["dead0", "expired0", "overopp0", "overobj0", "overded0"]
    assert classes(plan) == ["del", "exp", "opp", "obj", "ded"]
    assert {one.lot for one in plan.shares} == {"fine", "overded", "overopp", "overobj"}
    done = cache.clean(Rules(retain_size=0))
    assert (done.removed, done.complete) == (plan.remove, False)
    reasons = {kept.label: kept.reason for kept in done.plan.keep}
    assert reasons["fine0"] == "within the share of lot fine"
    assert cache.clean(Rules(retain_size=0)).removed == ()
    again = cache.clean(Rules(retain_size=0, beyond_dedicated=True))
    assert (len(again.removed), again.complete) == (5, True)
    assert {one.limit for one in again.removed} == {"beyond"}


def test_no_more_goes_than_the_goal_needs(cache: Cache, fill: Fill, add: Callable[..., None]) -> None:
    """A lot would be brought down to its dedicated space although nobody needs the room."""
    fill("a", 10, 10, 10)
    add("a", dedicated=10)
    assert labels(cache.clean(Rules(retain_size=25))) == ["a0"]
    assert labels(cache.clean(Rules(retain_size=25))) == []


def test_the_order_can_be_set(cache: Cache, fill: Fill, add: Callable[..., None], layout: Layout) -> None:
    """The setting would have no effect, or take what it does not name."""
    fill("a", 10, 10)
    fill("b", 1, 1)
    add("a", dedicated=10)
    add("b", objects=1)
    Path(layout.config_file).write_text('[lots]\norder = ["ded", "obj"]\n')
    assert labels(Cache(layout.root).plan(Rules(retain_size=20))[0]) == ["a0"]
    Path(layout.config_file).write_text('[lots]\norder = ["obj"]\n')
    assert labels(Cache(layout.root).plan(Rules(retain_size=0))[0]) == ["b0"]
    Path(layout.config_file).write_text('[lots]\norder = ["objects"]\n')
    with pytest.raises(CacheError, match="not an order of classes"):
        Cache(layout.root).plan(Rules(retain_size=0))


def test_an_expired_lot_keeps_its_data_and_a_dead_one_does_not(
    cache: Cache, fill: Fill, add: Callable[..., None], clock: FakeClock, tmp_path: Path
) -> None:
    """Expired data would go although nobody needs the room, or dead data pile up (pelican #1847)."""
    fill("expired", 10)
    fill("dead", 10, 10)
    add("expired", expires=clock.wall())
    add("dead", expires=clock.wall(), deletes=clock.wall())
    held = cache.use(tmp_path / "dead" / "dead1")
    done = cache.clean(WITHIN)
    assert labels(done) == ["dead0"]
    assert [kept.label for kept in done.plan.overdue] == ["dead1"]
    assert not done.complete
    assert not cache.clean(WITHIN).complete
    held.release()
    done = cache.clean(WITHIN._replace(older_than=30 * DAY))  # whatever else is asked for
    assert (labels(done), done.complete) == (["dead1"], True)


def test_what_a_person_wants_kept_stays_also_of_a_dead_lot(
    cache: Cache, fill: Fill, add: Callable[..., None], clock: FakeClock
) -> None:
    """Pins, exclusions and the grace period would not hold where there are lots."""
    pinned = fill("dead", 10)
    fill("dead", 10)
    cache.pin(pinned.key)
    add("dead", expires=clock.wall(), deletes=clock.wall())
    assert labels(cache.plan(WITHIN._replace(exclude=("dead1",)))[0]) == []
    assert labels(cache.plan(WITHIN._replace(grace=3600.0))[0]) == []
    assert labels(cache.clean(WITHIN)) == ["dead1"]


def test_what_becomes_of_a_notice_is_told_by_the_dates_of_then(
    cache: Cache, fill: Fill, add: Callable[..., None], clock: FakeClock
) -> None:
    """A group would not be told of the deletion of its data."""
    fill("a", 10)
    add("a", expires=clock.wall() + DAY, deletes=clock.wall() + DAY)
    assert labels(cache.plan(WITHIN)[0]) == []
    assert labels(cache.plan(WITHIN, ahead=2 * DAY)[0]) == ["a0"]


def test_children_count_for_their_parents(cache: Cache, fill: Fill, add: Callable[..., None]) -> None:
    """A parent's limit would not hold for its children, or the wrong child would pay."""
    fill("one", 10, 10)
    fill("two", 10)
    add("group", dedicated=20)
    add("one", "group", dedicated=10)
    add("two", "group", dedicated=10)
    plan, _ = cache.plan(Rules(retain_size=0))
    assert labels(plan) == ["one0"]


def test_a_plan_keeps_what_is_within_its_limits_by_now(
    cache: Cache, fill: Fill, add: Callable[..., None], layout: Layout
) -> None:
    """What a group was promised after the plan was made would be removed by it."""
    fill("a", 10, 10, 10)
    fill("b", 10)
    add("a", dedicated=10)
    planned = planned_of(cache, cache.plan(Rules(retain_size=0))[0])
    assert [(one.lot, one.limit) for one in planned.remove] == [("a", "ded"), ("a", "ded"), (DEFAULT, "ded")]
    cache.change_lots(lambda lots: lots.update("a", caller=None, dedicated=20))
    done = cache.clean_as_planned(planned)
    assert labels(done) == ["a0", "b0"]
    assert [kept.reason for kept in done.plan.keep if kept.label == "a1"] == ["within the share of lot a"]


def test_a_plan_beyond_shares_says_so(cache: Cache, fill: Fill, add: Callable[..., None]) -> None:
    """What somebody decided with --beyond-dedicated would not be done."""
    fill("a", 10)
    add("a", dedicated=10)
    planned = planned_of(cache, cache.plan(Rules(retain_size=0, beyond_dedicated=True))[0])
    assert labels(cache.clean_as_planned(planned)) == ["a0"]


def test_a_plan_from_before_the_lots_is_checked_against_them(
    cache: Cache, fill: Fill, add: Callable[..., None]
) -> None:
    """The first lot would not protect its data from a plan of yesterday."""
    fill("a", 10)
    planned = planned_of(cache, cache.plan(EVERYTHING)[0])
    add("a", dedicated=10)
    done = cache.clean_as_planned(planned)
    assert (labels(done), [one.label for one in done.plan.shares]) == ([], ["a0"])


def test_one_lot_is_cleaned_with_those_below_it(cache: Cache, fill: Fill, add: Callable[..., None]) -> None:
    """`clean --lot` would take the data of others, or measure the whole cache."""
    fill("group", 10)
    fill("one", 10, 10)
    fill("other", 10, 10)
    add("group")
    add("one", "group")
    add("other")
    assert labels(cache.plan(Rules(everything=True, lot="group"))[0]) == ["one0", "one1", "group0"]
    assert labels(cache.plan(Rules(retain_size=15, lot="other"))[0]) == ["other0"]
    with pytest.raises(UsageError, match="no lot 'nobody'"):
        cache.plan(Rules(everything=True, lot="nobody"))


def test_room_is_made_from_what_is_beyond_shares(cache: Cache, fill: Fill, add: Callable[..., None]) -> None:
    """A fetch with --make-room would evict what another group was promised."""
    fill("a", 10)
    fill("b", 10)
    add("a", dedicated=10)
    cleaner = Cleaner(cache.store, cache.settings, Pool())
    assert cleaner.make_room(15, 20, cache.policy()) == 0
    assert cleaner.make_room(10, 20, cache.policy()) == 10
    assert [item.label for item in cache.items() if item.copies] == ["a0"]


def test_data_elsewhere_counts(cache: Cache, fill: Fill, add: Callable[..., None]) -> None:
    """A lot would have its share twice: here, and where it reports from."""
    fill("a", 10)
    add("a", dedicated=10)
    assert labels(cache.plan(EVERYTHING)[0]) == []
    cache.report_usage(lambda used: {**used, "a": Usage(bytes=10)})
    assert labels(cache.plan(EVERYTHING)[0]) == ["a0"]


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "lots": {}}'])
def test_nothing_is_cleaned_while_the_lots_are_unknown(
    cache: Cache, fill: Fill, add: Callable[..., None], layout: Layout, text: str
) -> None:
    """What a lot protects would be removed after a slip of an editor, or by a release that does not know the form."""
    lease = fill("a", 10)
    add("a", dedicated=10)
    (table,) = (name for name in os.listdir(layout.lots) if name.endswith(".json"))
    planned = planned_of(cache, cache.plan(Rules(retain_size=0, beyond_dedicated=True))[0])
    Path(layout.lots, table).chmod(0o600)
    Path(layout.lots, table).write_text(text)
    for attempt in (
        lambda: cache.clean(EVERYTHING),
        lambda: cache.plan(EVERYTHING),
        lambda: cache.clean_as_planned(planned),
        lambda: cache.make_room(10**15),
    ):
        with pytest.raises(Unknown, match="cannot be read"):
            attempt()
    assert os.path.exists(lease.place.payload)


def test_nothing_is_cleaned_while_the_server_does_not_answer(
    make_cache: Making, fill: Fill, add: Callable[..., None], layout: Layout
) -> None:
    """An error for one moment would be taken for a cache without lots."""
    lease = fill("a", 10)
    add("a", dedicated=10)
    fs = Failing()
    fs.fail("names", errno.EIO, within=layout.lots)
    with pytest.raises(Unknown, match="cannot be read"):
        make_cache(fs=fs).clean(EVERYTHING)
    assert os.path.exists(lease.place.payload)


def test_a_copy_of_which_nobody_knows_the_lot_stays(
    cache: Cache, fill: Fill, add: Callable[..., None], layout: Layout
) -> None:
    """What is dedicated to a group would go because a file of a few bytes is damaged."""
    lease = fill("a", 10)
    add("a", dedicated=10)
    facts = Path(layout.generation(lease.key, lease.place.generation), "item.json")
    facts.chmod(0o600)
    facts.write_text("[")
    done = cache.clean(EVERYTHING)
    assert (labels(done), [kept.reason for kept in done.plan.keep]) == ([], [UNKNOWN_LOT])


def test_without_lots_no_facts_are_read(make_cache: Making, fill: Fill) -> None:
    """Whoever has no lots would wait for them: half a minute for a million items."""
    fill("a", 10)
    fs = Counting()
    assert labels(make_cache(fs=fs).plan(EVERYTHING)[0]) == ["a0"]
    assert [call for call in fs.calls if "item.json" in call.path] == []
    assert len([call for call in fs.calls if "/lots" in call.path]) <= 2


def test_a_lot_without_data_is_removed_some_time_after_its_deletion(
    make_cache: Making, fill: Fill, add: Callable[..., None], clock: FakeClock, layout: Layout
) -> None:
    """Lots of finished projects would pile up, or their children lose their parents."""
    fill("group", 10)
    fill("below", 10)
    dates = {"expires": clock.wall() + DAY, "deletes": clock.wall() + DAY}
    add("group", **dates)
    add("child", "group", **dates)
    add("below", "child")
    Path(layout.config_file).write_text('[lots]\nforget = "30d"\n')
    cache = make_cache()

    def left() -> set[str]:
        return {lot.name for lot in cache.lots().lots} - {DEFAULT}

    clock.let_pass(2 * DAY)
    assert sorted(labels(cache.clean(WITHIN))) == ["below0", "group0"]
    clock.let_pass(30 * DAY)
    assert cache.clean(WITHIN).plan.forget == ()  # a lot below is alive
    assert left() == {"group", "child", "below"}
    cache.change_lots(lambda lots: lots.remove("below", caller=None))
    assert cache.plan(WITHIN)[0].forget == ("child", "group")
    assert left() == {"group", "child"}
    cache.clean(WITHIN)
    assert left() == set()


def test_a_lot_whose_removal_is_refused_stops_no_cleaning(
    make_cache: Making, fill: Fill, add: Callable[..., None], clock: FakeClock, layout: Layout
) -> None:
    """A user who may clean and not change the lots could not clean any more."""
    fill("a", 10)
    add("old", expires=clock.wall(), deletes=clock.wall())
    Path(layout.config_file).write_text('[lots]\nforget = "0s"\n')
    fs = Failing()
    fs.fail("rename", errno.EACCES, within="now~")
    assert labels(make_cache(fs=fs).clean(EVERYTHING)) == ["a0"]
    assert "old" in make_cache().lots().lots


def test_two_hosts_see_one_change(make_cache: Making, fill: Fill, add: Callable[..., None]) -> None:
    """A cleaning that follows a change whose reply was lost would go by the old table."""
    fill("a", 10)
    add("a")
    fs = LostReplies()
    fs.lose("rename", within="now~")
    make_cache(fs=fs).change_lots(lambda lots: lots.update("a", caller=None, dedicated=10))
    assert labels(make_cache().clean(EVERYTHING)) == []


class Interrupted(Counting):
    """Does something once, before the first call that `asks` for it."""

    def __init__(self, asks: Callable[[Call], bool], act: Callable[[], object]) -> None:
        super().__init__()
        self._asks = asks
        self._act: Callable[[], object] | None = act

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        if self._act is not None and self._asks(call):
            act, self._act = self._act, None
            act()
        return do()


@pytest.mark.parametrize("seed", range(8))
def test_what_a_cleaning_leaves_adds_up(
    make_cache: Making, fill: Fill, add: Callable[..., None], tmp_path: Path, seed: int
) -> None:
    """Some mixture of lots, sizes, pins and leases would be cleaned otherwise than its plan says, or below a share."""
    chance = random.Random(seed)
    cache = make_cache()
    names = ["a", "b", "c"]
    for name in names:
        fill(name, *(chance.randrange(12) for _ in range(chance.randrange(1, 5))))
    for number, name in enumerate(names):
        above = [one for one in names[:number] if chance.random() < 0.5]
        add(name, *above, dedicated=chance.randrange(20), opportunistic=chance.choice([None, 0, 8]))
    before, items = cache.lot_usage(), [item for item in cache.items() if item.copies]
    pinned = {item.key for item in items if chance.random() < 0.2}
    for key in pinned:
        cache.pin(key)
    held = [cache.use(tmp_path / item.label[0] / item.label) for item in items if chance.random() < 0.2]
    rules = Rules(retain_size=chance.randrange(60))
    plan, _ = cache.plan(rules)
    done = cache.clean(rules)
    assert (done.removed, done.taken, done.failed) == (plan.remove, (), ())
    assert not {one.key for one in done.removed} & (pinned | {lease.key for lease in held})
    after, lots = cache.lot_usage(), cache.lots().lots
    assert sum(one.bytes for one in after.values()) == sum(item.bytes for item in cache.items())
    assert sum(one.bytes for one in before.values()) - done.freed == sum(one.bytes for one in after.values())
    was, now = lots.balances(before), lots.balances(after)
    for one in lots:
        share = int(lots.restriction(one.name, "dedicated").value or 0)
        assert now[one.name].total.bytes >= min(share, was[one.name].total.bytes)
    if done.removed:  # no more than the goal needs
        assert sum(item.bytes for item in cache.items()) + done.removed[-1].bytes > (rules.retain_size or 0)
    for lease in held:
        lease.release()


def test_empty_files_go_where_nothing_is_dedicated(cache: Cache, tmp_path: Path, add: Callable[..., None]) -> None:
    """A file system that is full of empty files could not be cleaned once the cache has lots."""
    (tmp_path / "empty").touch()
    cache.use(tmp_path / "empty").release()
    add("a", dedicated=10)
    assert labels(cache.clean(EVERYTHING)) == ["empty"]


def test_a_plan_beyond_shares_takes_nothing_of_another_lot(cache: Cache, fill: Fill, add: Callable[..., None]) -> None:
    """Data that another group has been given since a plan was made would be reclaimed from it."""
    fill("a", 10)
    add("a", dedicated=10)
    planned = planned_of(cache, cache.plan(Rules(everything=True, lot="a", beyond_dedicated=True))[0])
    claims = cache.lots().lots["a"].claims
    cache.change_lots(lambda lots: lots.remove("a", caller=None))
    new = Lot("b", "bob", frozenset({"b"}), claims, dedicated=10)
    cache.change_lots(lambda lots: lots.add(new, caller=None))
    done = cache.clean_as_planned(planned)
    assert (labels(done), [kept.reason for kept in done.plan.keep]) == ([], ["within the share of lot b"])


def test_a_plan_beyond_shares_leaves_what_cannot_be_read(
    cache: Cache, fill: Fill, add: Callable[..., None], layout: Layout
) -> None:
    """What a plan takes from one lot would be taken although nobody can tell any more whose it is."""
    lease = fill("a", 10)
    add("a", dedicated=10)
    planned = planned_of(cache, cache.plan(Rules(retain_size=0, beyond_dedicated=True))[0])
    facts = Path(layout.generation(lease.key, lease.place.generation), "item.json")
    facts.chmod(0o600)
    facts.write_text("[")
    done = cache.clean_as_planned(planned)
    assert (labels(done), [kept.reason for kept in done.plan.keep]) == ([], [UNKNOWN_LOT])


def test_a_lot_that_was_prolonged_meanwhile_is_not_forgotten(
    make_cache: Making, fill: Fill, add: Callable[..., None], clock: FakeClock, layout: Layout
) -> None:
    """A group would lose its share because a cleaning had begun before somebody prolonged it."""
    fill("b", 10)
    add("a", dedicated=10, expires=clock.wall(), deletes=clock.wall())
    Path(layout.config_file).write_text('[lots]\nforget = "0s"\n')
    later = {"expires": clock.wall() + DAY, "deletes": clock.wall() + DAY}
    fs = Interrupted(
        lambda call: call.kind == "rename" and "/trash/" in str(call),
        lambda: make_cache().change_lots(lambda lots: lots.update("a", caller=None, **later)),
    )
    assert labels(make_cache(fs=fs).clean(EVERYTHING)) == ["b0"]
    assert "a" in make_cache().lots().lots


def _is_election(call: Call) -> bool:
    return call.kind == "symlink" and "clean" in call.path and "/locks/" in call.path


@pytest.mark.parametrize("is_planned", [False, True])
def test_a_share_that_was_given_during_the_scan_holds(
    make_cache: Making, fill: Fill, add: Callable[..., None], is_planned: bool
) -> None:
    """What a group has been promised would go all the same if a cleaning had begun to look before."""
    fill("a", 10, 10)
    add("a", dedicated=10)
    planned = planned_of(make_cache(), make_cache().plan(EVERYTHING)[0])
    fs = Interrupted(
        _is_election, lambda: make_cache().change_lots(lambda lots: lots.update("a", caller=None, dedicated=20))
    )
    cleaner = make_cache(fs=fs)
    done = cleaner.clean_as_planned(planned) if is_planned else cleaner.clean(EVERYTHING)
    assert labels(done) == []


def test_a_pin_that_was_made_during_the_scan_holds(make_cache: Making, fill: Fill) -> None:
    """The only copy of an object that is not archived yet would be evicted, if it was added while a cleaning looked."""
    key = fill("a", 10).key
    fill("b", 10)
    done = make_cache(fs=Interrupted(_is_election, lambda: make_cache().pin(key))).clean(EVERYTHING)
    assert (labels(done), [kept.reason for kept in done.plan.keep]) == (["b0"], ["pinned"])


def test_the_first_lot_holds_for_a_cleaning_that_has_begun(
    make_cache: Making, fill: Fill, add: Callable[..., None]
) -> None:
    """The first share of a cache would not hold if a cleaning had begun to look before."""
    fill("a", 10)
    done = make_cache(fs=Interrupted(_is_election, lambda: add("a", dedicated=10))).clean(EVERYTHING)
    assert labels(done) == []


@pytest.mark.parametrize(("has_lots", "is_planned"), [(True, False), (True, True), (False, False)])
def test_two_cleaners_together_take_no_more_than_one(
    make_cache: Making, fill: Fill, add: Callable[..., None], *, has_lots: bool, is_planned: bool
) -> None:
    """A cleaner that had looked before another one has cleaned would take a lot's share, or more than is needed."""
    fill("a", 10, 10, 10)
    if has_lots:
        add("a", dedicated=10)
    rules = Rules(retain_size=10, order="lru")
    planned = planned_of(make_cache(), make_cache().plan(rules)[0])
    other = EVERYTHING._replace(exclude=("a0",), order="lru")
    fs = Interrupted(_is_election, lambda: make_cache().clean(other))
    cleaner = make_cache(fs=fs)
    if is_planned:
        cleaner.clean_as_planned(planned)
    else:
        cleaner.clean(rules)
    assert [item.label for item in make_cache().items() if item.copies] == ["a0"]


def test_what_is_remembered_in_another_form_is_not_believed(
    make_cache: Making, fill: Fill, add: Callable[..., None], layout: Layout
) -> None:
    """What a lot protects would go as the data of nobody, after another release has written what it remembers."""
    lease = fill("a", 10)
    add("a", dedicated=10)
    line = f"{lease.place.generation}\tada\t/elsewhere\t\t\t\tmore\n"
    Path(layout.facts).mkdir()
    Path(layout.facts, str(MemoName(lease.key[:2], 1, unique()))).write_text(line)
    assert labels(make_cache().clean(EVERYTHING)) == []


@pytest.mark.parametrize("field", ['"source": "x"', '"by": 5', '"name": []'])
def test_a_copy_of_which_only_a_part_can_be_read_stays(
    cache: Cache, fill: Fill, add: Callable[..., None], layout: Layout, field: str
) -> None:
    """What is dedicated to a group would count for another, because a value in a file is damaged."""
    lease = fill("a", 10)
    add("a", dedicated=10)
    facts = Path(layout.generation(lease.key, lease.place.generation), "item.json")
    facts.chmod(0o600)
    facts.write_text(f'{{"format": 1, {field}}}')
    done = cache.clean(EVERYTHING)
    assert (labels(done), [kept.reason for kept in done.plan.keep]) == ([], [UNKNOWN_LOT])


def test_defaults_of_the_settings() -> None:
    """A cache without these settings would be cleaned in another order than the documented one."""
    assert (Config().lots_order, Config().lots_forget) == (("del", "exp", "opp", "obj", "ded"), None)
    assert Lots()[DEFAULT].dedicated == 0
