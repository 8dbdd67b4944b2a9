"""`lot`: shares of the cache, from the first lot to the monthly report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli.tool import Disk, Done, config, one_line_error
from sccache_dtool.cache import Cache
from sccache_dtool.lots.model import DEFAULT, Lot, Lots

Sc = Callable[..., Done]
UUID = "8c3fe4b0-1d2a-4d0e-9d6e-3b5a7e0c1f2d"


@pytest.fixture
def item(sc: Sc, tmp_path: Path) -> Callable[..., str]:
    """Puts a file of some bytes into the cache, as fetched by a user; its source."""

    def make(name: str, size: int = 10, user: str = "ada") -> str:
        source = tmp_path / "data" / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(bytes(size))
        path = sc("use", source).path
        facts = path.parents[1] / "item.json"
        facts.chmod(0o600)
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "by": f"{user}@host"}))
        sc("unuse", source)
        return str(source)

    return make


Item = Callable[..., str]


def rows(sc: Sc, kind: str, *words: str) -> list[dict[str, Any]]:
    """The records of one kind that a command prints."""
    done = sc(*words, "-f", "json")
    assert done.code == 0, done
    return done.rows(kind)


def lots(sc: Sc) -> dict[str, dict[str, Any]]:
    """All lots."""
    return {row["name"]: row for row in rows(sc, "lot", "lot", "ls")}


def refused(done: Done, *words: str) -> None:
    """Refused, with these words in the error."""
    assert done.code == 2, done
    error = one_line_error(done)
    assert all(word in error for word in words), error


def table_of(disk: Disk) -> list[str]:
    """What is in force."""
    return [name for name in disk.names("lots") if name.startswith("now~")]


def test_a_first_lot(sc: Sc, disk: Disk) -> None:
    """A data manager could not begin with one command."""
    done = sc("lot", "create", "ada", "--dedicated", "2TB")
    assert done.code == 0, done
    found = lots(sc)
    assert set(found) == {DEFAULT, "ada"}
    assert found["ada"]["dedicated_bytes"] == 2 * 10**12
    assert [path["path"] for path in found["ada"]["paths"]] == ["user:ada"]
    assert (found["ada"]["parents"], found["ada"]["status"], found["ada"]["max_objects"]) == (["ada"], "active", None)
    before = table_of(disk)
    refused(sc("lot", "create", "ada"), "'ada' exists already")
    assert table_of(disk) == before


def test_looking_makes_nothing(sc: Sc, disk: Disk) -> None:
    """A cache without lots would have some after `lot ls`."""
    assert set(lots(sc)) == {DEFAULT}
    assert sc("lot", "log").code == 0
    assert not (disk.control / "lots").exists()


def test_du_by_lot_adds_up(sc: Sc, item: Item, root: Path) -> None:
    """The sums of a report would not be those of the cache."""
    item("a", 10, "ada")
    item("b", 20, "bob")
    item("c", 40, "cyd")
    loose = root / UUID
    loose.mkdir()
    (loose / f"{'0' * 40}.txt").write_bytes(bytes(80))
    for user in ("ada", "bob"):
        sc("lot", "create", user)
    sc("lot", "create", "files", "--path", f"loose:{UUID}")
    found = {row["lot"]: row["bytes"] for row in rows(sc, "lot", "du", "--by", "lot")}
    assert found == {"ada": 10, "bob": 20, DEFAULT: 40, "files": 80}
    assert sum(found.values()) == rows(sc, "total", "du", "--by", "lot")[0]["bytes"]
    assert rows(sc, "total", "du", "--by", "lot") == rows(sc, "total", "du")
    assert {name: lot["usage"]["bytes"] for name, lot in lots(sc).items()} == found
    assert sc("du", "--by", "lot", "--top", "1").out.splitlines()[1].split()[0] == "files"


def test_items_of_a_lot_are_listed(sc: Sc, item: Item) -> None:
    """Nobody could see what fills a lot."""
    item("a", user="ada")
    item("b", user="bob")
    sc("lot", "create", "group", "--path", f"dataset:{UUID}")
    sc("lot", "create", "ada", "--parent", "group")
    assert [row["name"] for row in rows(sc, "item", "ls", "--filter", "lot:ada")] == ["a"]
    assert [row["name"] for row in rows(sc, "item", "ls", "--filter", "lot:group")] == ["a"]
    assert [row["name"] for row in rows(sc, "item", "ls", "--filter", "lot:default", "--filter", "b*")] == ["b"]
    assert rows(sc, "item", "ls", "--filter", "lot:default", "--filter", "a*") == []
    refused(sc("ls", "--filter", "lot:nobody"), "there is no lot 'nobody'")


def test_a_lot_of_an_item_is_explained(sc: Sc, item: Item, tmp_path: Path) -> None:
    """Nobody could tell why data counts for a group."""
    source = item("a", user="ada")
    sc("lot", "create", "ada")
    assert sc("lot", "of", "a").out.splitlines()[0] == "ada"
    assert f"  {source}: no lot claims it" in sc("lot", "of", "a").out.splitlines()
    sc("lot", "create", "data", "--path", f"{tmp_path}/data", "--exclude", f"{tmp_path}/data/b")
    assert sc("lot", "of", "a").out.splitlines()[0] == "data"
    assert sc("lot", "of", f"{tmp_path}/data/b/c").out.splitlines()[0] == DEFAULT
    sc("lot", "create", "site", "--path", "user:nobody")
    sc("lot", "set", "data", "--add-parent", "site")
    assert "counts for the lots above as well: site" in sc("lot", "of", "a").out
    assert sc("lot", "of", "a", "-f", "json").row("lot")["above"] == ["site"]


def test_a_lot_of_a_loose_file_is_explained(sc: Sc, root: Path) -> None:
    """Nobody could tell for whom the files that dtool left count."""
    sc("lot", "create", "files", "--path", f"loose:{UUID}")
    (root / UUID).mkdir()
    for name in (UUID, "other"):
        file = root / name / f"{'0' * 40}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
        lot = "files" if name == UUID else DEFAULT
        row = sc("lot", "of", file, "-f", "json").row("lot")
        assert (row["lot"], row["consulted"][0]) == (lot, f"loose:{name}/{'0' * 40}.txt")


def test_paths_are_compared_by_whole_names(sc: Sc) -> None:
    """Data would count for the lot of somebody else (as in LotMan, which knows wildcards and ignores case)."""
    sc("lot", "create", "x", "--path", "/a_b")
    found = {path: sc("lot", "of", path).out.split()[0] for path in ("/a_b/f", "/aXb/f", "/A_B/f", "/a_bc")}
    assert found == {"/a_b/f": "x", "/aXb/f": DEFAULT, "/A_B/f": DEFAULT, "/a_bc": DEFAULT}


def test_an_excluded_path_is_of_the_lot_around_it(sc: Sc) -> None:
    """A part of a project that another group pays for would count for the project."""
    sc("lot", "create", "outer", "--path", "/data", "--owner", "ada")
    sc("lot", "create", "inner", "--path", "/data/p", "--exclude", "/data/p/raw", "--owner", "bob")
    assert sc("lot", "of", "/data/p/x").out.split()[0] == "inner"
    assert sc("lot", "of", "/data/p/raw/x").out.split()[0] == "outer"


def test_a_path_has_one_lot(sc: Sc, disk: Disk) -> None:
    """A second claim would take the path over without a word (as in LotMan)."""
    sc("lot", "create", "one", "--path", "/data")
    before = table_of(disk)
    refused(sc("lot", "create", "two", "--path", "/data/"), "'one' and 'two'", "/data")
    assert table_of(disk) == before
    assert sc("lot", "unclaim", "/data").code == 0
    assert sc("lot", "create", "two", "--path", "/data/").code == 0


def test_a_lot_with_children_is_not_just_removed(sc: Sc) -> None:
    """A child would name a parent that is gone, and a new lot of that name inherit it (as in LotMan)."""
    sc("lot", "create", "top")
    sc("lot", "create", "g", "--parent", "top")
    sc("lot", "create", "child", "--parent", "g")
    refused(sc("lot", "rm", "g"), "the only parent of 'child'")
    assert sc("lot", "rm", "g", "--adopt-orphans").code == 0
    assert lots(sc)["child"]["parents"] == ["top"]
    refused(sc("lot", "rm", "top", "--adopt-orphans"), "without parents that could adopt 'child'")
    assert sc("lot", "rm", "top", "--recursive").code == 0
    assert set(lots(sc)) == {DEFAULT}
    refused(sc("lot", "rm", DEFAULT), "cannot be removed")


def test_the_tree_shows_children_below_their_parents(sc: Sc) -> None:
    """Nobody could see who is below whom."""
    sc("lot", "create", "top")
    sc("lot", "create", "child", "--parent", "top")
    assert [line.split("  ")[0:2] for line in sc("lot", "ls", "--tree").out.splitlines() if "child" in line] == [
        ["", "child"]
    ]


def test_the_limits_that_hold_are_shown(sc: Sc) -> None:
    """A group would not see that the limit of the lot above it is narrower."""
    sc("lot", "create", "top", "--dedicated", "1TB")
    sc("lot", "create", "left", "--parent", "top", "--dedicated", "2TB")
    sc("lot", "create", "right", "--parent", "top", "--dedicated", "500GB")
    sc("lot", "create", "child", "--parent", "left", "--parent", "right", "--dedicated", "3TB")
    found = {row["limit"]: row for row in rows(sc, "restriction", "lot", "show", "child", "--restricting")}
    assert (found["dedicated"]["value"], found["dedicated"]["lot"]) == ("500.0 GB", "right")


def test_who_may_change_a_lot(sc: Sc, root: Path) -> None:
    """A user could take the space of another group by a slip."""
    sc("lot", "create", "top", "--owner", "ada")
    assert sc("lot", "create", "child", "--parent", "top", "--owner", "bob", "--as", "ada").code == 0
    refused(sc("lot", "set", "child", "--dedicated", "1TB", "--as", "bob"), "bob may not change lot 'child'")
    refused(sc("lot", "set", "top", "--dedicated", "1TB", "--as", "eve"), "eve may not change lot 'top'")
    refused(sc("lot", "rm", "child", "--as", "eve"), "eve may not")
    refused(sc("lot", "report", "child", "--bytes", "1TB", "--as", "eve"), "eve may not")
    assert sc("lot", "set", "child", "--dedicated", "1TB", "--as", "ada").code == 0
    assert sc("lot", "create", "own", "--as", "eve").code == 0  # anybody may make a root
    assert sc("lot", "set", "top", "--max-objects", "5").code == 0  # the owner of the directory
    assert lots(sc)["top"]["max_objects"] == 5


def test_managers_may_change_every_lot(sc: Sc, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one account could look after the lots."""
    sc("lot", "create", "top", "--owner", "ada")
    cache = Cache(root)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not cache.manages_lots()
    config(root, '[lots]\nmanagers = ["12345"]\n')
    assert Cache(root).manages_lots()


def test_what_is_imported_twice_is_written_once(sc: Sc, disk: Disk, tmp_path: Path) -> None:
    """An import from cron would push all earlier versions out of the log, and hide who changed what."""
    file = tmp_path / "lots.toml"
    for number in ("40TB", "60TB"):
        file.write_text(f'[lot.physics]\nowner = "ada"\ndedicated = "{number}"\npaths = ["user:ada", "-/scratch"]\n')
        assert "change" in sc("lot", "import", str(file), "--dry-run", "-f", "json").out
        assert sc("lot", "import", str(file)).code == 0
        before = disk.names("lots")
        again = sc("lot", "import", str(file))
        assert (again.code, again.out) == (0, "")
        assert disk.names("lots") == before
    assert lots(sc)["physics"]["dedicated_bytes"] == 60 * 10**12
    file.write_text("")
    assert sc("lot", "import", str(file)).code == 0
    assert set(lots(sc)) == {DEFAULT}


@pytest.mark.parametrize("form", [[], ["--lotman"]])
def test_an_export_is_imported_elsewhere(sc: Sc, tmp_path: Path, form: list[str]) -> None:
    """Lots could not be moved to another cache."""
    sc("lot", "create", "top", "--dedicated", "1TB", "--opportunistic", "5TB", "--max-objects", "7")
    sc("lot", "set", "top", "--expires", "2099-01-01", "--deletes", "2099-02-01")
    sc("lot", "create", "child", "--parent", "top", "--path", "/data", "--exclude", "/data/raw", "--no-recursive")
    file = tmp_path / "exported"
    file.write_text(sc("lot", "export", *form).out)
    Cache(tmp_path / "other").init()
    elsewhere = ("-C", str(tmp_path / "other"))
    done = sc(*elsewhere, "lot", "import", str(file))
    assert done.code == 0, done
    assert Cache(tmp_path / "other").lots().lots == Cache(tmp_path / "cache").lots().lots


def test_a_file_that_is_no_text_is_refused(sc: Sc, tmp_path: Path) -> None:
    """A mistyped file name would be reported as a fault of the program."""
    file = tmp_path / "binary"
    file.write_bytes(bytes(range(256)))
    refused(sc("lot", "import", file), "the lots cannot be read")
    sc("lot", "create", "ada")
    refused(sc("lot", "report", "--tree", file), "is not JSON")


def test_earlier_versions_come_back(sc: Sc) -> None:
    """A slip could not be undone."""
    sc("lot", "create", "ada", "--dedicated", "1TB")
    sc("lot", "set", "ada", "--dedicated", "1GB")
    found = rows(sc, "version", "lot", "log")
    assert [(row["number"], row["why"]) for row in found] == [(2, "set ada"), (1, "create ada")]
    assert sc("lot", "restore", "1").code == 0
    assert lots(sc)["ada"]["dedicated_bytes"] == 10**12
    refused(sc("lot", "restore", "99"), "no version 99")


def test_limits_are_reached_at_them_and_unlimited_never(sc: Sc, item: Item) -> None:
    """A lot without a limit would be listed, or one with the limit 0 not."""
    item("a", user="ada")
    sc("lot", "create", "ada", "--max-objects", "0")
    sc("lot", "create", "bob")
    assert [row["lot"] for row in rows(sc, "lot", "lot", "past", "obj")] == ["ada"]
    sc("lot", "set", "ada", "--max-objects", "unlimited")
    assert rows(sc, "lot", "lot", "past", "obj") == []
    sc("lot", "set", "ada", "--max-objects", "1")
    assert [row["lot"] for row in rows(sc, "lot", "lot", "past", "obj")] == ["ada"]


def test_what_is_elsewhere_is_reported(sc: Sc) -> None:
    """A group's data on another file system would not count."""
    sc("lot", "create", "ada")
    sc("lot", "report", "ada", "--bytes", "3TB", "--objects", "12")
    sc("lot", "report", "ada", "--bytes", "1TB", "--delta")
    assert (lots(sc)["ada"]["usage"]["bytes"], lots(sc)["ada"]["usage"]["objects"]) == (4 * 10**12, 12)
    refused(sc("lot", "report", "nobody", "--bytes", "1TB"), "no lot 'nobody'")
    assert sc("lot", "report", "ada", "--bytes=-3TB", "--objects", "-2", "--delta").code == 0
    refused(sc("lot", "report", "ada", "--bytes=-2TB", "--delta"), "less than nothing")
    sc("lot", "report", "ada", "--bytes-being-written", "5GB", "--objects-being-written", "3")
    usage = lots(sc)["ada"]["usage"]
    assert (usage["bytes"], usage["objects"]) == (10**12, 10)
    assert (usage["self_bytes_being_written"], usage["self_objects_being_written"]) == (5 * 10**9, 3)


def test_a_lot_ends(sc: Sc, item: Item, root: Path) -> None:
    """Nobody could see from the list that a lot is over, or `clean` leave its data."""
    source = item("a", user="ada")
    sc("lot", "create", "ada")
    past = time.time() - 1000
    Cache(root).change_lots(lambda lots: lots.update("ada", caller=None, expires=past))
    assert lots(sc)["ada"]["status"] == "expired"
    Cache(root).change_lots(lambda lots: lots.update("ada", caller=None, deletes=past))
    assert lots(sc)["ada"]["status"] == "past deletion"
    sc("use", source)
    done = sc("clean", "--high-watermark", "1TB")
    assert (done.code, done.out.count("past their deletion: 1 item of ada")) == (3, 1)
    sc("unuse", source)
    config(root, '[lots]\nforget = "0s"\n')
    assert sc("clean", "--high-watermark", "1TB").code == 0
    assert sc("clean", "--high-watermark", "1TB").out.splitlines()[-1] == (
        "removed lots ada: past deletion, and without data"
    )
    assert set(lots(sc)) == {DEFAULT}


def test_what_is_dedicated_stays_and_its_lots_are_named(sc: Sc, item: Item) -> None:
    """A manager would not learn why the goal was missed, nor what to do."""
    item("a", 1000, "ada")
    item("b", 1000, "bob")
    item("c", 1000, "cyd")
    for user in ("ada", "bob"):
        sc("lot", "create", user, "--dedicated", "1kB")
    done = sc("clean", "--retain-size", "500B")
    assert done.code == 3
    assert "ada 1.0 kB, bob 1.0 kB; to remove that too: sc-dtool clean --beyond-dedicated" in done.out
    total = sc("clean", "--retain-size", "500B", "-f", "json").row("total")
    assert total["within_shares"] == {"ada": 1000, "bob": 1000}
    removed = sc("clean", "--retain-size", "500B", "--beyond-dedicated", "-f", "json")
    assert removed.code == 0
    assert [(row["lot"], row["class"]) for row in removed.rows("removed")] == [("ada", "beyond"), ("bob", "beyond")]


def test_a_plan_names_the_lot_and_the_class_of_each_line(sc: Sc, item: Item, tmp_path: Path) -> None:
    """Whoever looks at a plan could not tell whom it concerns; what was promised since would be removed by it."""
    item("a", 1000, "ada")
    sc("lot", "create", "ada")
    plan = tmp_path / "p.json"
    sc("clean", "-n", "--retain-size", "500B", "-o", plan)
    (line,) = json.loads(plan.read_text())["remove"]
    assert (line["lot"], line["class"]) == ("ada", "ded")
    sc("lot", "set", "ada", "--dedicated", "1MB")
    assert sc("clean", "--plan", plan, "-f", "json").rows("removed") == []
    sc("lot", "set", "ada", "--dedicated", "0B")
    assert len(sc("clean", "--plan", plan, "-f", "json").rows("removed")) == 1


def test_a_mistyped_setting_stops_cleaning(sc: Sc, item: Item, root: Path) -> None:
    """What it was to protect would be removed."""
    item("a", 1000, "ada")
    config(root, '[lots]\nordr = ["exp"]\n')
    refused(sc("clean", "--all", "-y"), "[lots] ordr is not a setting")


def test_one_lot_is_emptied(sc: Sc, item: Item) -> None:
    """The data of a project that has ended could not be removed for itself."""
    item("a", 1000, "ada")
    item("b", 1000, "bob")
    sc("lot", "create", "ada", "--dedicated", "1TB")
    refused(sc("clean", "--lot", "ada"), "--lot needs a condition")
    refused(sc("clean", "--lot", "nobody", "--all", "-y"), "no lot 'nobody'")
    assert [row["name"] for row in sc("clean", "--lot", "ada", "--all", "-y", "-f", "json").rows("removed")] == ["a"]


def test_a_notice_is_given_by_lot(sc: Sc, item: Item) -> None:
    """Groups could not be told what they are about to lose."""
    item("a", 1000, "ada")
    item("b", 1000, "bob")
    sc("lot", "create", "ada")
    found = rows(sc, "notice", "clean", "--notice", "7d", "--by", "lot", "--retain-size", "500B")
    assert {row["lot"]: row["items"] for row in found} == {"ada": ["a"], DEFAULT: ["b"]}


def test_what_lots_protect_is_not_reclaimable(sc: Sc, item: Item) -> None:
    """A data manager would count on room that `clean` does not make."""
    item("a", 1000, "ada")
    item("b", 2000, "bob")
    sc("lot", "create", "bob")
    assert "reclaimable: 2 items, 3.0 kB" in sc("du").out
    sc("lot", "create", "ada", "--dedicated", "800B")
    for by in ("item", "user", "lot"):
        (total,) = rows(sc, "total", "du", "--by", by)
        assert (total["reclaimable_items"], total["reclaimable_bytes"]) == (2, 2200)
    sc("lot", "set", "ada", "--dedicated", "1kB")
    assert "reclaimable: at most 1 item, 2.0 kB" in sc("du").out
    found = {row["lot"]: row["reclaimable_bytes"] for row in rows(sc, "lot", "du", "--by", "lot")}
    assert found == {"ada": 0, "bob": 2000}
    assert sc("clean", "--all", "-y", "-f", "json").row("total")["bytes"] == 2000


def test_nothing_is_reclaimable_while_the_lots_are_unknown(sc: Sc, item: Item, disk: Disk, root: Path) -> None:
    """A monitor would report free space that nobody can get, or `du` would not work at all."""
    item("a", 1000, "ada")
    (root / UUID).mkdir()
    (root / UUID / f"{'0' * 40}.txt").write_bytes(bytes(80))
    sc("lot", "create", "ada")
    (file,) = (disk.control / "lots").glob("*.json")
    file.unlink()
    os.mkfifo(file)
    done = sc("du", "-f", "json")
    assert (done.code, done.row("total")["reclaimable_bytes"]) == (0, 0)
    assert "nothing is counted as reclaimable" in done.err
    done = sc("clean", "--all", "-y")
    assert (done.code, "cannot be read" in done.err, "sc-dtool lot restore N" in done.err) == (1, True, True)
    assert sc("du", "--by", "lot").code == 1
    assert len(rows(sc, "item", "ls")) == 1


def test_doctor_says_who_may_change_lots(sc: Sc, disk: Disk, root: Path) -> None:
    """A data manager would take rules for protection, in a directory where a whole group can write."""
    assert "lot" not in sc("doctor").out
    sc("lot", "create", "ada")
    directory = disk.control / "lots"
    directory.chmod(0o755)
    assert "all lots may be changed by" in sc("doctor").out
    assert "can write there" not in sc("doctor").out
    directory.chmod(0o2775)
    config(root, '[lots]\nmanagers = ["pia", "gus"]\n')
    done = sc("doctor")
    assert (done.code, "and by pia, gus; every member of group" in done.out) == (0, True)
    (row,) = rows(sc, "lot_rights", "doctor")
    assert (row["managers"], row["everybody"], row["group"] is not None) == (["pia", "gus"], False, True)


def test_the_log_says_that_a_lot_was_reclaimed(sc: Sc, item: Item) -> None:
    """A group that finds its data gone could not learn when, and by whom."""
    item("a", 1000, "ada")
    sc("lot", "create", "ada", "--dedicated", "1TB")
    sc("clean", "--lot", "ada", "--all", "-n")
    for _ in range(2):  # the second time, nothing is there
        assert sc("clean", "--lot", "ada", "--all", "-y").code == 0
    assert [row["why"] for row in rows(sc, "version", "lot", "log")] == ["reclaim ada", "create ada"]
    assert lots(sc)["ada"]["dedicated_bytes"] == 10**12


def test_a_site_whose_lots_cross_is_listed_at_once(sc: Sc, root: Path) -> None:
    """The tree of lots with two parents each would be printed by all ways to them, a million times."""
    names = [f"l{n}{side}" for n in range(40) for side in "ab"]

    def make(lots: Lots) -> Lots:
        above = [frozenset({f"l{n - 1}a", f"l{n - 1}b"}) if n else frozenset[str]() for n in range(40) for _ in "ab"]
        return Lots([*lots, *(Lot(name, "", up or frozenset({name})) for name, up in zip(names, above, strict=True))])

    Cache(root).change_lots(make)
    shown = [row["name"] for row in rows(sc, "lot", "lot", "ls", "--tree")]
    assert (set(shown), len(shown) < 4 * len(names)) == ({DEFAULT, *names}, True)


def test_an_import_or_an_earlier_version_needs_the_rights_too(sc: Sc, tmp_path: Path) -> None:
    """A user could change the lots of others by a file."""
    sc("lot", "create", "top", "--owner", "ada")
    sc("lot", "set", "top", "--dedicated", "1TB")
    refused(sc("lot", "restore", "1", "--as", "eve"), "eve may not change lot 'top'")
    file = tmp_path / "lots.toml"
    file.write_text('[lot.top]\nowner = "eve"\n')
    refused(sc("lot", "import", file, "--as", "eve"), "eve may not change lot 'top'")
    file.write_text(sc("lot", "export").out + '[lot.below]\nparents = ["top"]\n')
    refused(sc("lot", "import", file, "--as", "eve"), "eve may not change lot 'below'")
    assert sc("lot", "import", file, "--as", "ada").code == 0
    assert sc("lot", "restore", "1", "--as", "ada").code == 0


def test_what_comes_from_which_parent(sc: Sc, tmp_path: Path) -> None:
    """A project of two groups would count in full against both."""
    sc("lot", "create", "a", "--dedicated", "30TB")
    sc("lot", "create", "b", "--dedicated", "10TB")
    new = ("lot", "create", "both", "--parent", "a", "--parent", "b", "--dedicated", "20TB", "--strict")
    refused(sc(*new, "--attribute", "b:dedicated=15TB"), "the lots below 'b' would exceed its dedicated space")
    refused(sc(*new, "--attribute", "b"), "as what comes from a parent")
    refused(sc(*new, "--attribute", "c:dedicated=1TB"), "'c', which is not a parent")
    refused(sc(*new, "--attribute", "b:dedicated=5TB,colour=5"), "not a table of parents")
    assert "of b          dedicated 5.0 TB" in sc(*new, "--attribute", "b:dedicated=5TB").out
    found = [sc("lot", "capacity", name, "-f", "json").row("capacity")["dedicated_bytes"] for name in "ab"]
    assert found == [15 * 10**12, 5 * 10**12]
    for form in ([], ["--lotman"]):
        file = tmp_path / "exported"
        file.write_text(sc("lot", "export", *form).out)
        assert "5000" in file.read_text()
        assert (sc("lot", "import", file).code, sc("lot", "import", file, "--dry-run").out) == (0, "")
    sc("lot", "set", "both", "--attribute", "equal")
    assert lots(sc)["both"]["attributions"] == {}


def test_no_opportunistic_space_is_not_unlimited_space(sc: Sc) -> None:
    """A group that was to have nothing beyond its share would have all of the cache."""
    sc("lot", "create", "ada", "--opportunistic", "none")
    assert lots(sc)["ada"]["opportunistic_bytes"] == 0
    sc("lot", "set", "ada", "--opportunistic", "unlimited")
    assert lots(sc)["ada"]["opportunistic_bytes"] is None


def test_what_a_lot_can_give(sc: Sc) -> None:
    """More would be promised to groups than there is, or less than could be."""
    sc("lot", "create", "top", "--dedicated", "10TB", "--max-objects", "100")
    sc("lot", "create", "a", "--parent", "top", "--dedicated", "4TB", "--max-objects", "10", "--expires", "30d")
    sc("lot", "create", "b", "--parent", "top", "--dedicated", "4TB", "--max-objects", "10", "--from", "60d")

    def left(*words: str) -> tuple[int, int | None, int]:
        row = sc("lot", "capacity", "top", *words, "-f", "json").row("capacity")
        return row["dedicated_bytes"], row["opportunistic_bytes"], row["objects"]

    assert left() == (6 * 10**12, None, 90)  # never both at once
    assert left("--from", "40d", "--until", "50d") == (10**13, None, 100)
    new = ("lot", "create", "c", "--parent", "top", "--max-objects", "1", "--dedicated")
    refused(sc(*new, "7TB", "--strict"), "the lots below 'top' would exceed its dedicated space by 1,000,000,000,000")
    assert sc(*new, "6TB", "--strict").code == 0
    refused(sc("lot", "set", "c", "--dedicated", "7TB", "--strict"), "dedicated")
    refused(sc("lot", "set", "c", "--max-objects", "unlimited", "--strict"), "its objects without limit")
    assert sc("lot", "set", "c", "--dedicated", "8TB").code == 0
    assert left() == (0, None, 89)
    assert sc("lot", "set", "c", "--dedicated", "7TB", "--strict").code == 0  # better than it was
    refused(sc("lot", "set", "top", "--expires", "90d", "--strict"), "would last longer than it does")


def _count(root: str) -> None:
    cache = Cache(root)
    for _ in range(50):
        cache.change_lots(lambda lots: lots.update("ada", caller=None, objects=(lots["ada"].objects or 0) + 1))


def test_processes_that_change_one_lot_lose_no_change(sc: Sc, root: Path) -> None:
    """Changes would be lost, or refused (as in LotMan, 5 of 12 times)."""
    sc("lot", "create", "ada", "--max-objects", "0")
    with ProcessPoolExecutor(8) as pool:
        list(pool.map(_count, [str(root)] * 8))
    assert lots(sc)["ada"]["max_objects"] == 400


def test_doctor_finds_what_is_wrong_with_lots(sc: Sc, disk: Disk) -> None:
    """Damage that stops every cleaning would be found by nobody."""
    sc("lot", "create", "ada")
    sc("lot", "set", "ada", "--max-objects", "5")
    assert sc("doctor").code == 0
    (current,) = table_of(disk)
    directory = disk.control / "lots"
    (directory / current.replace("now~2~", "now~1~")).symlink_to("-")  # as a backup that is restored over it
    orphan = directory / "table"
    orphan.write_text("mine")
    done = sc("doctor")
    assert done.code == 20, done
    assert "in force beside a newer one" in done.out
    orphan.unlink()
    sc("doctor", "--fix")
    assert table_of(disk) == [current]
    assert sc("doctor").code == 0
    (file,) = (path for path in directory.glob("*.json") if "-2-" in path.name)
    file.chmod(0o600)
    table = json.loads(file.read_text())
    table["lots"]["ada"]["parents"] = ["gone"]
    file.write_text(json.dumps(table))
    forged = directory / f"now~7~{'0' * 16}"
    forged.symlink_to("-")
    sc("doctor", "--fix")
    assert sorted(table_of(disk)) == [current, forged.name]  # the right one is not removed for the sake of the other
    assert f"if this one is right, remove {forged}" in sc("doctor").out
    forged.unlink()
    done = sc("doctor")
    assert "which does not exist" in done.out
    assert sc("clean", "--all", "-y").code == 1
    assert sc("du").code == 0
    assert sc("lot", "restore", "1").code == 0
    assert sc("doctor").code == 0
