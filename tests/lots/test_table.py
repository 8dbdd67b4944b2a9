"""The lots of a cache on disk: changed whole or not at all, and never guessed if they cannot be read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from faults import Dying, Failing, Interposing, Killed, LostReplies, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, UsageError
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


def _file_in_force(store: Store) -> Path:
    (file,) = (one for one in os.listdir(store.layout.lots) if one.startswith("data-2"))
    return Path(store.layout.lots, file)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _giant(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def _deep(path: Path) -> None:
    path.write_text('{"lots":' * 100_000)


def _nothing(path: Path) -> None:
    """Leave nothing there."""


@pytest.mark.parametrize("forge", [_fifo, _endless, _link, _giant, _binary, _deep, _nothing, Path.mkdir])
def test_whatever_is_in_the_place_of_a_table_an_earlier_one_comes_back(
    store: Store, forge: Callable[[Path], object]
) -> None:
    """A member of the group could stop all cleaning for good, or have it read without end."""
    table.change(store, add("a"), "a")
    table.change(store, add("b"), "b")
    file = _file_in_force(store)
    file.unlink()
    forge(file)
    with pytest.raises(table.Unknown, match="cannot be read") as raised:
        table.read(store)
    assert "lot restore" in (raised.value.hint or "")
    assert [one.number for one in table.log(store)] == [1]
    assert table.restore(store, 1).lots["a"].owner == "a"
    assert names(store) == {"a"}


def test_a_table_of_a_newer_release_is_left_to_it(store: Store) -> None:
    """An administrator would be told to throw away what a newer release has written."""
    table.change(store, add("a"), "a")
    table.change(store, add("b"), "b")
    file = _file_in_force(store)
    file.chmod(0o644)
    file.write_text('{"format": 2, "lots": {"a": {}}}')
    with pytest.raises(table.Unknown, match="a newer release of sc-dtool has written it, in the format 2") as raised:
        table.read(store)
    assert "clean with that release" in (raised.value.hint or "")


@pytest.mark.parametrize("forge", [_fifo, _link, _binary, lambda path: path.symlink_to("/nowhere/at/all")])
def test_what_is_in_the_place_of_the_directory_is_not_a_cache_without_lots(
    store: Store, forge: Callable[[Path], object]
) -> None:
    """Whatever lots protect would be evicted after the directory was moved away and linked."""
    forge(Path(store.layout.lots))
    with pytest.raises(table.Unknown, match="cannot be read"):
        table.read(store)


def test_a_forged_number_is_named(store: Store) -> None:
    """Nobody could change the lots again, or find out why."""
    table.change(store, add("a"), "a")
    os.symlink("-", f"{store.layout.lots}/now~{10**12 - 1}~{'0' * 16}")
    with pytest.raises(table.Unknown, match="cannot be read"):
        table.read(store)
    with pytest.raises(CacheError, match="come after") as raised:
        table.restore(store, 1)
    assert "now~" in (raised.value.hint or "")


def test_reported_usage_that_cannot_be_read_can_be_replaced(store: Store) -> None:
    """Cleaning would be stopped for good by a damaged file of numbers."""
    table.change(store, add("a"), "a")
    table.report(store, lambda used: {"a": Usage(10)})
    (file,) = Path(store.layout.reported_usage).glob("data-2-*")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(table.Unknown, match="cannot be read") as raised:
        table.reported(store)
    assert f"move {store.layout.reported_usage} away" in (raised.value.hint or "")
    os.rename(store.layout.reported_usage, f"{store.layout.tmp}/away")
    assert table.reported(store) == {}
    table.report(store, lambda used: {**used, "a": Usage(3)})
    assert table.reported(store) == {"a": Usage(3)}


def test_a_new_lot_has_nothing_of_an_old_one_of_its_name(store: Store) -> None:
    """It would be over its limits at once, by numbers that were reported of another."""
    table.change(store, add("a"), "a")
    table.change(store, add("b"), "b")
    table.report(store, lambda used: {"a": Usage(10), "b": Usage(5)})
    table.change(store, lambda lots: lots.remove("a", caller=None), "rm a")
    assert table.reported(store) == {"b": Usage(5)}
    table.change(store, add("a"), "a")
    assert table.reported(store) == {"b": Usage(5)}


def test_what_cannot_be_read_again_is_not_written(store: Store) -> None:
    """One user's number would keep everybody from cleaning."""
    table.change(store, add("a"), "a")
    for used in (Usage(10**18 + 1), Usage(0, 2**63)):
        with pytest.raises(UsageError, match="cannot be reported"):
            table.report(store, lambda before, used=used: {"a": used})  # type: ignore[misc]
    with pytest.raises(UsageError):
        table.change(store, lambda lots: lots.update("a", caller=None, dedicated=2**63), "a")
    assert (table.read(store).number, table.reported(store)) == (1, {})


def test_killed_anywhere_a_report_or_a_return_is_made_or_not(store: Store) -> None:
    """A power cut would leave usage, or lots, that nobody can read."""
    table.change(store, add("a"), "a")
    table.change(store, add("b"), "b")

    def report(fs: FileSystem, number: int) -> None:
        table.report(store_of(fs, store.layout), lambda used: {"a": Usage(number)})

    def restore(fs: FileSystem, number: int) -> None:
        table.restore(store_of(fs, store.layout), 1)

    for act, found in ((report, lambda: table.reported(store)), (restore, lambda: names(store))):
        for nth in range(100):
            before = found()
            try:
                act(Dying(nth), nth + 1)
            except Killed:
                assert found() in (before, {"a": Usage(nth + 1)}, {"a"})
                continue
            assert found() in ({"a": Usage(nth + 1)}, {"a"})
            break
        else:
            pytest.fail("it never came to its end")


def test_processes_that_add_to_one_report_lose_nothing(store: Store) -> None:
    """Usage would drift from what was reported (as in LotMan)."""
    table.change(store, add("a"), "a")
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_add_to_report, [store.layout.root] * 4))
    assert table.reported(store) == {"a": Usage(100)}


def _add_to_report(root: str) -> None:
    store = store_of(FileSystem(), Layout(root))
    for _ in range(25):
        table.report(store, lambda used: {"a": used.get("a", Usage()).plus(Usage(1))})


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
