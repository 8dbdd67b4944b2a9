"""`clean`: removing what is not in use, and only that."""

from __future__ import annotations

import contextlib
import os
import pty
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.tool import SC_DTOOL, Disk, Done, environment, one_line_error
from httpserver import Server

Sc = Callable[..., Done]

DAY = 86_400


@pytest.fixture
def item(sc: Sc, tmp_path: Path, disk: Disk) -> Callable[..., Path]:
    """Makes an item of some bytes, used so many times and some days ago; its path."""

    def make(name: str, size: int = 10, uses: int = 1, days: float = 0) -> Path:
        source = tmp_path / name
        source.write_bytes(bytes(size))
        for _ in range(uses):
            path = sc("use", source).path
            sc("unuse", source)
        copy = path.parents[1]
        history = copy.parent / "history"
        for ended in list(history.iterdir()):
            lease, end, how = ended.name.split("~")
            ended.rename(history / f"{lease}~{int(end) - int(days * DAY * 1000)}~{how}")
        random, created, *rest = copy.name.split("-")
        aged = copy.rename(copy.parent / "-".join((random, str(int(int(created) - days * DAY)), *rest)))
        return aged / "payload" / name

    return make


Item = Callable[..., Path]


def test_all_removes_what_nobody_uses(sc: Sc, item: Item, source: str, disk: Disk) -> None:
    """`clean --all` would leave something, or take what is in use."""
    used = sc("use", source).path
    idle = [item("a"), item("b")]
    done = sc("clean", "--all", "-y")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "removed 2 items, 20 Bytes; kept 1 item in use"
    assert used.read_text() == "ACGT\n"
    assert not any(path.exists() for path in idle)
    assert disk.names("trash") == disk.names("tmp") == disk.names("locks") == []


def test_older_than_goes_by_the_last_use(sc: Sc, item: Item) -> None:
    """What was used yesterday would go because it was fetched a year ago."""
    old, young = item("old", days=31), item("young", days=29)
    done = sc("clean", "--older-than", "30d")
    assert done.out.splitlines()[-1] == "removed 1 item, 10 Bytes; kept 1 item used within 30 d"
    assert not old.exists()
    assert young.exists()


def test_retain_size_removes_the_least_recently_used(sc: Sc, item: Item) -> None:
    """A watermark would remove what is wanted most, or more than it has to."""
    paths = [item(f"i{days}", size=1000, days=days) for days in (1, 2, 3, 4)]
    done = sc("clean", "--retain-size", "2kB")
    assert done.code == 0
    assert [path.exists() for path in paths] == [True, True, False, False]


def test_a_size_that_cannot_be_reached_is_done_in_part(sc: Sc, item: Item, source: str) -> None:
    """Cron would not learn that the cache stays too full, nor why."""
    sc("use", source)
    item("a", size=1000)
    done = sc("clean", "--retain-size", "1B")
    assert done.code == 3
    assert "the goal was missed by 4 Bytes" in done.out
    assert "ref.fa, 5 Bytes: in use: 1 lease" in done.out
    total = sc("-f", "json", "clean", "--retain-size", "1B")
    assert total.code == 3
    assert total.row("total")["missed_bytes"] == 4


def test_what_is_used_often_is_excluded(sc: Sc, item: Item) -> None:
    """`--exclude-frequently-accessed 3` would remove the favourites."""
    often, seldom = item("often", uses=3), item("seldom", uses=2)
    assert (
        sc("clean", "--exclude-frequently-accessed", "3")
        .out.splitlines()[-1]
        .endswith("kept 1 item used at least 3 times")
    )
    assert often.exists()
    assert not seldom.exists()


def test_conditions_add_up(sc: Sc, item: Item) -> None:
    """Two selectors would remove what either means, not what both mean."""
    old_often, old_seldom = item("a", uses=3, days=40), item("b", uses=1, days=40)
    new_seldom = item("c", uses=1)
    sc("clean", "--older-than", "30d", "--exclude-frequently-accessed", "3")
    assert [path.exists() for path in (old_often, old_seldom, new_seldom)] == [True, False, True]


def test_a_dry_run_is_the_plan_and_does_nothing(sc: Sc, item: Item, disk: Disk) -> None:
    """What was shown would not be what is done, or would be done while it is shown."""
    item("a", days=3)
    item("b", days=2)
    before = disk.copies()
    dry = sc("-f", "json", "clean", "--all", "-n")
    assert disk.copies() == before
    assert disk.names("locks") == disk.names("trash") == disk.names("tmp") == []
    assert sc("clean", "--all", "-n").out.splitlines()[-1] == "would remove 2 items, 20 Bytes"
    real = sc("-f", "json", "clean", "--all", "-y")
    assert [row["copy"] for row in dry.rows("would_remove")] == [row["copy"] for row in real.rows("removed")]
    assert disk.copies() == []


def test_nothing_said_is_nothing_removed(sc: Sc, item: Item) -> None:
    """A bare `clean` would remove everything."""
    path = item("a", days=1000)
    for words in (["clean"], ["clean", "-n"], ["clean", "-y"]):
        done = sc(*words)
        assert done.code == 2
        assert "--older-than 30d" in done.err
    assert path.exists()


@pytest.mark.parametrize("more", [[], ["--no-input"]])
def test_all_asks_and_wants_yes_where_nobody_can_answer(sc: Sc, item: Item, more: list[str]) -> None:
    """`clean --all` in a script would empty the cache without a word, or hang for an answer."""
    path = item("a")
    done = sc("clean", "--all", *more)
    assert done.code == 2
    assert "add -y" in done.err
    assert path.exists()


@pytest.mark.parametrize(("answer", "code", "gone"), [("y", 0, True), ("n", 1, False), ("", 1, False)])
def test_all_goes_by_the_answer(item: Item, answer: str, code: int, gone: bool) -> None:
    """A person who says no would lose the cache all the same."""
    path = item("a")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(SC_DTOOL, [SC_DTOOL, "clean", "--all"])
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, f"{answer}\n".encode())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    shown = b""
    with contextlib.suppress(OSError):  # EIO at the end
        while more := os.read(terminal, 10_000):
            shown += more
    os.close(terminal)
    assert path.exists() is not gone
    assert b"removed" in shown
    assert b"Traceback" not in shown


def test_selectors_never_ask(item: Item) -> None:
    """A cron job would hang for an answer."""
    from cli.tool import call

    path = item("a", days=40)
    assert call("clean", "--older-than", "30d").code == 0
    assert not path.exists()


def test_leases_of_the_dead_do_not_keep(sc: Sc, source: str, disk: Disk) -> None:
    """The data of jobs that were killed would never be cleaned."""
    from cli.tool import finish, start

    with start(["cat"]) as job:
        sc("use", "--holder", f"pid:{job.pid}", source)
        finish(job)
    dry = sc("clean", "--all", "-n")
    assert "would end the lease of " in dry.out
    assert "would remove 1 item" in dry.out
    assert len(disk.leases()) == 1
    done = sc("clean", "--all", "-y")
    assert "ended the lease of " in done.out
    assert disk.copies() == disk.holders() == []


def test_what_was_reaped_counts_as_just_used(sc: Sc, source: str, disk: Disk) -> None:
    """The data of a job that has just crashed would go at once by `--older-than`, and be fetched again."""
    from cli.tool import finish, start

    with start(["cat"]) as job:
        sc("use", "--holder", f"pid:{job.pid}", source)
        finish(job)
    assert sc("clean", "--older-than", "1d").code == 0
    assert len(disk.copies()) == 1
    assert disk.leases() == []


def test_trash_keeps_for_restore(sc: Sc, item: Item, disk: Disk) -> None:
    """`--trash 7d` would delete at once."""
    path = item("a")
    sc("clean", "--all", "-y", "--trash", "7d")
    assert not path.exists()
    (name,) = disk.names("trash")
    assert int(name.split("~")[1]) > time.time() + 6 * DAY
    assert sc("clean", "--all", "-y").code == 0
    assert disk.names("trash") == [name]
    assert sc("restore", "a").code == 0


def test_what_crashes_left_is_tidied_up(sc: Sc, source: str, disk: Disk) -> None:
    """Work areas of processes that were killed would fill the disk."""
    sc("use", source)
    work = disk.control / "tmp" / "p000000000000-000000000000.0~fetch"
    work.mkdir()
    (work / "half").write_bytes(bytes(1000))
    done = sc("-v", "clean", "--older-than", "1d")
    assert "removed leftover " in done.err
    assert disk.names("tmp") == []


def test_nothing_outside_is_touched(sc: Sc, item: Item, root: Path) -> None:
    """A user's own files beside the cache would be deleted."""
    item("a")
    (root / "thesis.tex").write_text("kept")
    (root / "dataset").mkdir()
    (root / "dataset" / "x").write_text("kept")
    sc("clean", "--all", "-y")
    assert (root / "thesis.tex").exists()
    assert (root / "dataset" / "x").exists()


def test_a_long_history_is_folded_and_no_use_is_lost(sc: Sc, source: str, disk: Disk) -> None:
    """A favourite item would make every listing slow, or lose its count by being tidied."""
    for _ in range(101):
        sc("use", source)
        sc("unuse", source)
    sc("clean", "--older-than", "1d")
    (history,) = disk.control.glob("items/*/*/history")
    assert len(list(history.iterdir())) == 1
    assert sc("-f", "json", "du").row("item")["uses"] == 101
    assert len(sc("-f", "json", "log").rows("use")) == 101


def test_of_many_items_people_are_shown_some_and_programs_all(sc: Sc, tmp_path: Path) -> None:
    """Cron would mail a data manager fifty thousand lines, and a program that reads them miss some."""
    source = tmp_path / "source"
    source.write_text("x")
    for wanted in ("human", "json"):
        for number in range(60):
            assert sc("use", "--holder", "me", "--name", f"item{number}", str(source)).code == 0
            assert sc("unuse", "--holder", "me", "--name", f"item{number}", str(source)).code == 0
        done = sc("-f", wanted, "clean", "--all", "-y")
        assert done.code == 0
        if wanted == "human":
            assert done.out.count("item") == 51  # and the total
            assert "and 10 more" in done.err
            assert "removed 60 items" in done.out
        else:
            assert done.out.count('"removed"') == 60


def test_what_cannot_be_removed_is_told(sc: Sc, item: Item, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaning that failed in part would look like one that worked."""
    from sccache_dtool.disk.filesystem import FileSystem

    item("a")
    item("b")
    remove = FileSystem.rmdir

    def refuse(self: FileSystem, path: str, **more: Any) -> None:
        if "-a/" in path:
            raise PermissionError(13, "Permission denied", path)
        remove(self, path, **more)

    monkeypatch.setattr(FileSystem, "rmdir", refuse)
    done = sc("clean", "--all", "-y")
    assert done.code == 3
    assert "failed to remove a: Permission denied" in done.out
    assert "removed 1 item" in done.out


def test_no_cache_is_no_cleaning(sc: Sc, tmp_path: Path) -> None:
    """`clean --all` on a mistyped directory would delete what is there."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("kept")
    done = sc("-C", tmp_path / "mine", "clean", "--all", "-y")
    assert done.code == 10
    assert one_line_error(done).startswith("Error: no cache in ")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert environment()["DTOOL_CACHE_DIRECTORY"]


def test_cleaning_while_somebody_downloads(sc: Sc, server: Server, disk: Disk) -> None:
    """The work area of a download under way would be swept away."""
    from cli.tool import finish, start

    url = server.page("/slow.bin", bytes(1000), stall_after=10)
    sc("init")
    with start([SC_DTOOL, "use", url]) as fetching:
        server.wait_for_gets("/slow.bin")
        assert sc("clean", "--all", "-y").code == 0
        assert sc("doctor").code == 0
        server.release()
        assert finish(fetching).path.stat().st_size == 1000
    assert len(disk.copies()) == 1
