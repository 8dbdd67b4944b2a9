"""The lots of a cache on disk: changed whole or not at all, and never guessed if they cannot be read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from faults import Dying, Failing, Interposing, Killed, LostReplies, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import UsageError
from sccache_dtool.lots import table
from sccache_dtool.lots.model import DEFAULT, Claim, Lot, Lots, Usage
from sccache_dtool.protocol.store import Store


@pytest.fixture
def store(layout: Layout) -> Store:
    """A cache without lots."""
    return store_of(FileSystem(), layout)


def lot(name: str, **more: object) -> Lot:
    """A root."""
    return Lot(name, name, frozenset({name}), **more)  # type: ignore[arg-type]


def add(name: str, **more: object) -> Callable[[Lots], Lots]:
    """A change that adds a root."""
    return lambda lots: lots.add(lot(name, **more), caller=None)


def names(store: Store) -> set[str]:
    """The lots in force, without the default one."""
    return {one.name for one in table.read(store).lots} - {DEFAULT}


def test_a_cache_without_lots_has_the_default_one(store: Store) -> None:
    """Caches of today would be cleaned otherwise than before."""
    assert table.read(store) == table.Table(Lots())
    assert not os.path.exists(store.layout.lots)


def test_what_is_written_is_read(store: Store) -> None:
    """A limit would be another one after the next change."""
    new = lot(
        "ada",
        claims=(Claim("user:ada"), Claim("/x y", recursive=False), Claim("/z", exclude=True)),
        dedicated=5 * 10**15,
        objects=7,
        created=1.5,
        expires=2.25,
        deletes=3e9,
    )
    made = table.change(store, lambda lots: lots.add(new, caller=None), "create ada")
    again = table.read(store)
    assert (again, made.number, made.why) == (made, 1, "create ada")
    assert again.lots["ada"] == new
    other = table.change(store, lambda lots: lots.update("ada", caller=None, opportunistic=1), "more")
    assert (other.number, other.lots["ada"]) == (2, replace(new, opportunistic=1))


def test_a_change_to_the_same_writes_nothing(store: Store) -> None:
    """An import from cron would push all earlier versions out of the log."""
    table.change(store, lambda lots: lots, "nothing")
    assert not os.path.exists(store.layout.lots)
    table.change(store, add("a"), "a")
    before = sorted(os.listdir(store.layout.lots))
    table.change(store, lambda lots: Lots(lots), "nothing")
    assert sorted(os.listdir(store.layout.lots)) == before


def test_a_refused_change_leaves_the_table_as_it_was(store: Store) -> None:
    """Half of it would be in force."""
    table.change(store, add("a"), "a")
    before = sorted(os.listdir(store.layout.lots))
    with pytest.raises(UsageError, match="exists already"):
        table.change(store, add("a"), "again")
    assert sorted(os.listdir(store.layout.lots)) == before
    assert os.listdir(store.layout.tmp) == []


def test_two_who_claim_one_path_at_once_are_told(store: Store) -> None:
    """Both would own it, or the second would take it over without a word."""
    table.change(store, add("a"), "a")
    fs = Interposing()
    fs.before("rename", lambda: table.change(store, add("b", claims=(Claim("/p"),)), "b"), within="now~")
    with pytest.raises(UsageError, match="'b' and 'c'"):
        table.change(store_of(fs, store.layout), add("c", claims=(Claim("/p"),)), "c")
    assert names(store) == {"a", "b"}


def test_two_first_lots_at_once_are_both_there(store: Store) -> None:
    """The directory that one of them makes would replace the other's."""
    fs = Interposing()
    fs.before("rename", lambda: table.change(store, add("b"), "b"), within=store.layout.tmp)
    table.change(store_of(fs, store.layout), add("a"), "a")
    assert names(store) == {"a", "b"}
    assert os.listdir(store.layout.tmp) == []


def test_a_first_lot_whose_reply_is_lost_is_made_once(store: Store) -> None:
    """It would be refused as one that exists already."""
    fs = LostReplies()
    fs.lose("rename", store.layout.tmp)
    table.change(store_of(fs, store.layout), add("a"), "a")
    assert (names(store), table.read(store).number) == ({"a"}, 1)


def test_killed_anywhere_the_table_is_the_old_one_or_the_new_one(store: Store) -> None:
    """A power cut would leave a cache whose lots nobody can read, so that nothing is cleaned."""
    for nth in range(100):
        before = names(store)
        try:
            table.change(store_of(Dying(nth), store.layout), add(f"n{nth}"), "one more")
        except Killed:
            assert names(store) in (before, before | {f"n{nth}"})
            continue
        assert names(store) == before | {f"n{nth}"}
        break
    else:
        pytest.fail("the change never came to its end")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "lots": {}}',
        '{"format": 1}',
        '{"format": 1, "lots": {"a": {}}}',
        '{"format": 1, "lots": {"a": {"owner": "a", "parents": ["b"], "paths": [], "dedicated": 0, "created": 0}}}',
        '{"format": 1, "lots": {"a": {"owner": "a", "parents": ["a"], "paths": [{"path": "/x"}], "dedicated": 0}}}',
        '{"format": 1, "lots": {"a": {"owner": 5, "parents": ["a"], "paths": [], "dedicated": 0, "created": 0}}}',
        '{"format": 1, "lots": {"a": {"owner": "a", "parents": ["a"], "paths": [], "dedicated": "5", "created": 0}}}',
        '{"format": 1, "lots": {"a": {"owner": "a", "parents": ["a"], "paths": [], "dedicated": 0, "colour": "red"}}}',
    ],
)
def test_lots_that_cannot_be_read_are_not_guessed(store: Store, text: str) -> None:
    """Data that is promised to somebody would be evicted."""
    table.change(store, add("a"), "a")
    table.change(store, add("b"), "b")
    (file,) = [one for one in os.listdir(store.layout.lots) if one.startswith("data-2")]
    Path(store.layout.lots, file).chmod(0o644)
    Path(store.layout.lots, file).write_text(text)
    with pytest.raises(table.Unknown, match="cannot be read"):
        table.read(store)
    with pytest.raises(table.Unknown, match="cannot be read"):
        table.change(store, add("c"), "c")
    assert table.restore(store, 1).lots["a"].owner == "a"
    assert (names(store), table.read(store).number) == ({"a"}, 3)


def test_a_server_that_gives_no_answer_is_not_an_empty_table(store: Store) -> None:
    """The same, while a server is away."""
    table.change(store, add("a"), "a")
    fs = Failing()
    fs.fail("names", errno.EIO, store.layout.lots)
    with pytest.raises(table.Unknown, match="Input/output error"):
        table.read(store_of(fs, store.layout))


def test_earlier_versions_are_listed_and_restored(store: Store) -> None:
    """A mistake of a data manager could not be undone."""
    for name in ("a", "b", "c"):
        table.change(store, add(name), f"create {name}")
    assert [(one.number, one.why) for one in table.log(store)] == [(3, "create c"), (2, "create b"), (1, "create a")]
    table.restore(store, 1)
    assert names(store) == {"a"}
    assert next(one.why for one in table.log(store)) == "version 1 again"
    with pytest.raises(UsageError, match="no version 9"):
        table.restore(store, 9)


def test_reports_are_kept_apart_from_the_lots(store: Store) -> None:
    """A report every minute would push all earlier versions of the lots out of the log."""
    with pytest.raises(UsageError, match="has no lots"):
        table.report(store, lambda used: {"a": Usage(1)})
    table.change(store, add("a"), "a")
    assert table.reported(store) == {}
    table.report(store, lambda used: {"a": Usage(10, 2)})
    table.report(store, lambda used: {name: one.plus(Usage(1, 1)) for name, one in used.items()})
    assert table.reported(store) == {"a": Usage(11, 3)}
    assert table.read(store).number == 1


def test_a_table_is_readable_by_people(store: Store) -> None:
    """A data manager could not see with `cat` who may have what."""
    table.change(store, add("a", claims=(Claim("user:a"),), dedicated=10), "a")
    (file,) = [one for one in os.listdir(store.layout.lots) if one.startswith("data-")]
    document = json.loads(Path(store.layout.lots, file).read_text())
    assert document["lots"]["a"]["paths"] == [{"path": "user:a", "recursive": True, "exclude": False}]
    assert document["lots"]["a"]["dedicated"] == 10
