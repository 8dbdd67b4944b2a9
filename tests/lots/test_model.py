"""The rules of lots: whose data it is, who may change a lot, which limits hold, and that nothing contradicts itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccache_dtool.errors import UsageError
from sccache_dtool.lots.model import (
    DEFAULT,
    LARGEST,
    MOST_LEVELS,
    Attribution,
    Capacity,
    Claim,
    Lot,
    Lots,
    NotAllowed,
    Question,
    Restriction,
    Usage,
    components,
)

GB = 10**9


def lot(name: str, *parents: str, owner: str = "", paths: tuple[str, ...] = (), **more: object) -> Lot:
    """A lot that is a root unless parents are given; paths that begin with ``-`` are excluded."""
    claims = tuple(Claim(path.removeprefix("-"), exclude=path.startswith("-")) for path in paths)
    return Lot(name, owner or name.lower(), frozenset(parents or {name}), claims, **more)  # type: ignore[arg-type]


# -- whose data it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/a_b/f", "x"),
        ("/a_b/", "x"),
        ("/a_b", "x"),
        ("/aXb/f", DEFAULT),
        ("/A_B/f", DEFAULT),
        ("/a_bc/f", DEFAULT),
        ("/", DEFAULT),
        ("", DEFAULT),
        ("a_b/f", DEFAULT),
        ("/p%", DEFAULT),
        ("user:ada", "ada"),
        ("user:adam", DEFAULT),
        ("https://host/data/x", "web"),
        ("https://host/database", DEFAULT),
    ],
)
def test_paths_are_compared_by_whole_components(path: str, owner: str) -> None:
    """A lot would own what only looks like its path, as with LotMan's patterns."""
    lots = Lots(
        [
            lot("x", paths=("/a_b",)),
            lot("p", paths=("/p%q",)),
            lot("ada", paths=("user:ada",)),
            lot("web", paths=("https://host/data",)),
        ]
    )
    assert lots.of(path).lot == owner


def test_an_excluded_path_falls_to_the_outer_lot() -> None:
    """What a lot gives away would belong to nobody, or stay its own."""
    lots = Lots([lot("outer", paths=("/",)), lot("inner", paths=("/in", "-/in/out", "/in/out/back"))])
    assert [lots.of(path).lot for path in ("/in/a", "/in/out/a", "/in/out/back/a", "/other")] == [
        "inner",
        "outer",
        "inner",
        "outer",
    ]


def test_a_lot_that_begins_later_claims_nothing_yet() -> None:
    """Data would count for a share that begins next month, and be evicted or kept for it."""
    lots = Lots([lot("later", paths=("/p",), created=100.0)])
    assert [lots.of("/p/x", now).lot for now in (99.0, 100.0)] == [DEFAULT, "later"]


def test_a_path_has_one_lot() -> None:
    """Two groups would each count the same data, or one would take it over without a word."""
    lots = Lots([lot("a", paths=("/p",))])
    with pytest.raises(UsageError, match="'a' and 'b'"):
        lots.add(lot("b", paths=("/p/",)), caller=None)
    lots.add(lot("b", paths=("-/p",)), caller=None)  # to exclude it claims nothing


@pytest.mark.parametrize("path", ["", "p", "/a/../b", "/a/./b", "/a\nb", "../p"])
def test_what_is_no_path_is_refused(path: str) -> None:
    """A mistyped path would claim nothing, and nobody would be told."""
    with pytest.raises(UsageError, match="cannot be a path"):
        Lots([lot("x", paths=(path,))])


# -- families ----------------------------------------------------------------------------------------------------------


def test_the_default_lot_is_always_there() -> None:
    """Data that nobody claims would belong to no lot."""
    assert [one.name for one in Lots()] == [DEFAULT]
    with pytest.raises(UsageError, match="default lot cannot be removed"):
        Lots().remove(DEFAULT, caller=None)
    with pytest.raises(UsageError, match="default lot cannot be removed"):
        Lots().remove_all(DEFAULT, caller=None)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (lot("x", "nobody"), "no lot .nobody."),
        (Lot("x", "x", frozenset()), "has no parent"),
        (lot("x", dedicated=-1), "not a size"),
        (lot("x", objects=float("nan")), "not a size"),
        (lot("x", expires=20.0, deletes=10.0), "before it expires"),
        (lot("a/b"), "cannot be the name"),
        (lot(""), "cannot be the name"),
        (lot("x\n"), "cannot be the name"),
        (lot("y" * 201), "cannot be the name"),
        (lot("a"), "exists already"),
    ],
)
def test_what_contradicts_itself_is_refused(new: Lot, reason: str) -> None:
    """A table that nobody can use would be put into force."""
    with pytest.raises(UsageError, match=reason):
        Lots([lot("a")]).add(new, caller=None)


def test_no_lot_is_its_own_ancestor() -> None:
    """Sums over descendants would never end."""
    lots = Lots([lot("a"), lot("b", "a"), lot("c", "b")])
    with pytest.raises(UsageError, match="their own ancestors: 'a', 'b', 'c'"):
        lots.update("a", caller=None, parents=frozenset({"c"}))
    assert not lots.update("b", caller=None, parents=frozenset({"a", "b"}))["b"].is_root  # itself is no ancestor


def test_a_new_lot_takes_the_place_of_its_parent() -> None:
    """A group that is put between a site and its projects would leave the projects beside it."""
    lots = Lots([lot("site"), lot("project", "site"), lot("other", "site")])
    lots = lots.add(lot("group", "site"), caller=None, children=["project"])
    assert lots["project"].parents == {"group"}
    assert lots["other"].parents == {"site"}
    assert lots.ancestors("project") == ["group", "site"]


def test_removed_lots_are_nobodys_parents() -> None:
    """A new lot of the same name would inherit children, and the rights over them."""
    lots = Lots([lot("site"), lot("group", "site"), lot("p", "group"), lot("q", "group", "site")])
    with pytest.raises(UsageError, match="only parent of 'p'"):
        lots.remove("group", caller=None)
    left = lots.remove("group", caller=None, adopt_orphans=True)
    assert {one.name: one.parents for one in left if one.name != DEFAULT} == {
        "site": {"site"},
        "p": {"site"},
        "q": {"site"},
    }
    with pytest.raises(UsageError, match="a root, without parents"):
        lots.remove("site", caller=None, adopt_orphans=True)
    assert {one.name for one in lots.remove_all("group", caller=None)} == {DEFAULT, "site"}


def test_limits_can_be_handed_down() -> None:
    """Children of a removed lot would be free of its limits."""
    lots = Lots([lot("s"), lot("g", "s", dedicated=5, objects=9, expires=50.0), lot("c", "g", dedicated=7, objects=3)])
    child = lots.remove("g", caller=None, adopt_orphans=True, hand_down=True)["c"]
    assert (child.dedicated, child.objects, child.expires, child.opportunistic) == (5, 3, 50.0, None)


# -- rights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "caller", "may"),
    [
        ("root", "root", True),
        ("root", "default", False),
        ("group", "root", True),
        ("group", "group", False),
        ("project", "root", True),
        ("project", "group", True),
        ("project", "project", False),
        ("project", "", False),
        ("both", "both", False),  # a root that has another parent is none
        ("both", "root", True),
    ],
)
def test_who_owns_a_lot_above_may_change_it(name: str, caller: str, may: bool) -> None:
    """People would raise their own limits, or the owner of a group could not."""
    lots = Lots([lot("root"), lot("group", "root"), lot("project", "group"), lot("both", "both", "root")])
    assert lots.may_change(name, caller) is may
    if may:
        assert lots.update(name, caller=caller, dedicated=1)[name].dedicated == 1
    else:
        for change in (lots.update, lots.remove, lots.remove_all):
            with pytest.raises(NotAllowed):
                change(name, caller=caller)


def test_the_date_of_creation_stays() -> None:
    """A lot could claim that it has always been there."""
    with pytest.raises(UsageError, match="created of a lot cannot be changed"):
        Lots([lot("a")]).update("a", caller=None, created=5.0)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_the_smallest_limit_above_holds() -> None:
    """A project would be given more than its group has, by way of its other parent."""
    lots = Lots(
        [
            lot("top", dedicated=100),
            lot("left", "top", dedicated=10, objects=7),
            lot("right", "top", dedicated=20, objects=7),
            lot("low", "left", "right", dedicated=50),
        ]
    )
    assert lots.restriction("low", "dedicated") == Restriction(10, "left")
    assert lots.restriction("low", "objects") == Restriction(7, "left")
    assert lots.restriction("low", "opportunistic") == Restriction(None, "low")
    assert lots.restriction("left", "objects") == Restriction(7, "left")


def test_descendants_count_once_each() -> None:
    """Data of a project with two parents would count twice for the site."""
    lots = Lots([lot("top"), lot("left", "top"), lot("right", "top"), lot("low", "left", "right")])
    balances = lots.balances({"low": Usage(5, 1), "left": Usage(2, 1)})
    assert balances["top"].descendants == Usage(7, 2)
    assert balances["left"].total == Usage(7, 2)
    assert balances["right"].total == Usage(5, 1)


@pytest.mark.parametrize(("used", "dedicated", "opportunistic"), [(9, 9, 0), (10, 10, 0), (13, 10, 3), (20, 10, 5)])
def test_dedicated_space_is_filled_first(used: int, dedicated: int, opportunistic: int) -> None:
    """A report would say that a group uses space that others may take, while its own is free."""
    balance = Lots([lot("a", dedicated=10, opportunistic=5)]).balances({"a": Usage(used)})["a"]
    assert (balance.dedicated.total, balance.opportunistic.total, balance.total.bytes) == (
        dedicated,
        opportunistic,
        used,
    )


def test_to_reach_a_limit_is_to_be_past_it() -> None:
    """A lot without dedicated space would be protected until its first byte."""
    lots = Lots([lot("a", objects=5, opportunistic=0), lot("b", dedicated=9, objects=5, expires=10.0, deletes=20.0)])
    used = {"a": Usage(0, 4), "b": Usage(9, 5)}
    assert {str(question): lots.past(question, used, 10.0) - {DEFAULT} for question in Question} == {
        "del": set(),
        "exp": {"b"},
        "opp": {"a"},
        "obj": {"b"},
        "ded": {"a", "b"},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"dedicated": LARGEST + 1},
        {"objects": 2**63},
        {"opportunistic": 10**400},
        {"dedicated": float("nan")},
        {"expires": 1e15},
        {"deletes": float("inf")},
    ],
)
def test_no_limit_is_too_large_to_be_read_again(wrong: dict[str, float]) -> None:
    """A table with it would be in force, and nobody could read it: nothing would be cleaned any more."""
    with pytest.raises(UsageError, match="which is not a"):
        Lots([lot("a", **wrong)])


def test_lots_are_not_endlessly_above_each_other() -> None:
    """A table that somebody has made up would keep every cleaning busy for hours."""
    chain = [lot("l0"), *(lot(f"l{n}", f"l{n - 1}") for n in range(1, MOST_LEVELS + 1))]
    Lots(chain[:MOST_LEVELS])
    with pytest.raises(UsageError, match=f"there can be {MOST_LEVELS}"):
        Lots(chain)


def test_who_may_put_other_lots_in_the_place_of_all() -> None:
    """By an import, or an earlier version, a user could change the lots of others."""
    lots = Lots([lot("top", owner="ada"), lot("low", "top", owner="bob"), lot("own", owner="eve")])
    for after, callers in (
        (lots.update("low", caller=None, dedicated=5), {"ada"}),
        (lots.remove("low", caller=None), {"ada"}),
        (lots.update("own", caller=None, dedicated=5), {"eve"}),
        (lots.add(lot("new", "low"), caller=None), {"ada", "bob"}),
        (lots.add(lot("new"), caller=None), {"ada", "bob", "eve"}),
        (lots, {"ada", "bob", "eve"}),
    ):
        for caller in ("ada", "bob", "eve"):
            if caller in callers:
                lots.check_change(after, caller)
            else:
                with pytest.raises(NotAllowed):
                    lots.check_change(after, caller)
        lots.check_change(after, None)


# -- what comes from which parent --------------------------------------------------------------------------------------


def test_what_comes_from_a_parent_counts_for_it() -> None:
    """A project of two groups would take its whole share from each of them."""
    lots = Lots([lot("a", dedicated=30, objects=100), lot("b", dedicated=10, objects=100)])
    new = lot("both", "a", "b", dedicated=20, objects=50)
    equal = lots.add(new, caller=None)
    assert (equal.capacity("a", 0.0), equal.capacity("b", 0.0)) == (Capacity(20, None, 75), Capacity(0, None, 75))
    uneven = lots.add(replace(new, attributions=(Attribution("b", 5, objects=50),)), caller=None)
    assert (uneven.capacity("a", 0.0), uneven.capacity("b", 0.0)) == (Capacity(15, None, 100), Capacity(5, None, 50))
    uneven.check_fit(lots)
    with pytest.raises(UsageError, match="the lots below 'b' would exceed its dedicated space by 5"):
        lots.add(replace(new, attributions=(Attribution("b", 15),)), caller=None).check_fit(lots)


@pytest.mark.parametrize(
    ("attributions", "reason"),
    [
        ((Attribution("c", 5),), "'c', which is not a parent"),
        ((Attribution("a", 5), Attribution("a", 5)), "a parent twice"),
        ((Attribution("a", 21),), "21 of dedicated"),
        ((Attribution("a", -1),), "-1 of dedicated"),
        ((Attribution("a", 5), Attribution("b", 5)), "only 10 of its 20"),
        ((Attribution("a", opportunistic=5),), "no limit"),
    ],
)
def test_what_does_not_add_up_is_refused(attributions: tuple[Attribution, ...], reason: str) -> None:
    """A lot would have more, or less, than what comes from its parents."""
    with pytest.raises(UsageError, match=reason):
        Lots([lot("a"), lot("b"), lot("c"), lot("both", "a", "b", dedicated=20, attributions=attributions)])


def test_what_came_from_a_parent_that_is_gone_comes_from_the_others() -> None:
    """A lot could not lose a parent, or would name one that it does not have."""
    shares = (Attribution("a", 5), Attribution("b", 15))
    lots = Lots([lot("a"), lot("b"), lot("both", "a", "b", dedicated=20, attributions=shares)])
    left = lots.update("both", caller=None, parents=frozenset({"b"}))
    assert left["both"].attributed("dedicated", "b") == 20
    left = lots.update("both", caller=None, parents=frozenset({"b", DEFAULT}))
    assert [left["both"].attributed("dedicated", one) for one in ("b", DEFAULT)] == [15, 5]
    assert lots.remove("a", caller=None)["both"].attributed("dedicated", "b") == 20
    assert lots.remove_all("a", caller=None)[DEFAULT].attributions == ()


# -- in general --------------------------------------------------------------------------------------------------------

_PARTS = st.lists(st.sampled_from(["a", "b", "ab", "%", "_"]), max_size=4)
_PATHS = _PARTS.map(lambda parts: "/" + "/".join(parts))


@st.composite
def families(draw: st.DrawFn) -> Lots:
    """Lots of which each may have any of the earlier ones as parents."""
    lots = Lots()
    paths = draw(st.lists(_PATHS, unique_by=components, max_size=8))
    for number in range(draw(st.integers(0, 8))):
        above = draw(st.sets(st.sampled_from(sorted(one.name for one in lots)), max_size=3))
        claims = tuple(
            Claim(path, draw(st.booleans()), draw(st.booleans()))
            for path in (paths.pop() for _ in range(draw(st.integers(0, min(2, len(paths))))))
        )
        new = lot(f"l{number}", *above, dedicated=draw(st.integers(0, 20)), objects=draw(st.none() | st.integers(0, 9)))
        lots = lots.add(replace(new, claims=claims), caller=None)
    return lots


@given(families(), st.data())
def test_usage_adds_up(lots: Lots, data: st.DataObject) -> None:
    """A report by lots would not agree with what the cache has."""
    used = {one.name: Usage(data.draw(st.integers(0, 30)), data.draw(st.integers(0, 9))) for one in lots}
    balances = lots.balances(used)
    for name, balance in balances.items():
        mine = {name, *lots.descendants(name)}
        assert balance.total.bytes == sum(used[one].bytes for one in mine)
        assert 0 <= balance.dedicated.total <= lots[name].dedicated
        assert balance.dedicated.total + balance.opportunistic.total <= balance.total.bytes
        assert balance.dedicated.total == min(lots[name].dedicated, balance.total.bytes)


@given(families(), _PATHS)
def test_a_path_belongs_to_the_longest_claim(lots: Lots, path: str) -> None:
    """Data would count for a lot that claims less of its path than another, or that excludes it."""
    parts = components(path)
    found = lots.of(path)

    def covers(claim: Claim) -> bool:
        own = components(claim.path)
        return parts[: len(own)] == own if claim.recursive else parts == own

    covering = [(len(components(c.path)), one.name, c) for one in lots for c in one.claims if covers(c)]

    def excluded(name: str, length: int) -> bool:
        return any(other == name and claim.exclude and size > length for size, other, claim in covering)

    meant = [(size, name) for size, name, claim in covering if not claim.exclude and not excluded(name, size)]
    assert found.lot == (max(meant)[1] if meant else DEFAULT)


@given(families(), st.data())
def test_lots_stay_consistent_whatever_is_removed(lots: Lots, data: st.DataObject) -> None:
    """A removal would leave lots that name a parent that is gone, or that nobody may change."""
    name = data.draw(st.sampled_from(sorted(one.name for one in lots)))
    try:
        left = lots.remove(name, caller=None, adopt_all=True, hand_down=data.draw(st.booleans()))
    except UsageError:
        assert name == DEFAULT or (lots[name].is_root and lots.children(name))
        return
    assert {one.name for one in left} == {one.name for one in lots} - {name}
    for one in left:
        assert one.parents <= {other.name for other in left}
        assert lots[one.name].is_root == one.is_root or name in lots[one.name].parents
        assert set(left.ancestors(one.name)) >= set(lots.ancestors(one.name)) - {name}


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.none() | st.integers(0, 6), st.none() | st.integers(0, 9)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 6),
    st.none() | st.integers(0, 6),
)
def test_what_is_left_to_give_is_what_is_free_at_every_moment(
    below: list[tuple[int, int | None, int | None]], begin: int, end: int | None
) -> None:
    """A parent would promise what it does not have, or refuse what it has, where its lots come and go."""
    parent = lot("site", opportunistic=100)
    lots = [
        lot(f"l{n}", "site", created=float(first), expires=last, opportunistic=most)
        for n, (first, last, most) in enumerate(below)
    ]
    moments = [begin, *(first for first, _, _ in below if begin < first < (math.inf if end is None else end))]
    given = max(
        sum(
            math.inf if one.opportunistic is None else one.opportunistic
            for one in lots
            if one.created <= moment and (one.expires is None or one.expires > moment)
        )
        for moment in moments
    )
    capacity = Lots([parent, *lots]).capacity("site", begin, math.inf if end is None else end)
    assert capacity.opportunistic == max(0, 100 - min(given, 100))


def test_ten_thousand_lots_that_come_and_go_fit_into_their_parent() -> None:
    """A `lot create --strict` would take minutes at a large site, in which others wait for their turn."""
    below = [lot(f"l{n}", "site", dedicated=3, created=float(n), expires=n + 10.0) for n in range(10_000)]
    lots = Lots([lot("site", dedicated=30, expires=1e9), *below])
    assert lots.capacity("site", 0.0).dedicated == 0
    lots.check_fit(Lots())
