"""A cache that looks after itself: its policy, plans that are carried out later, pins, notice, records, metrics."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import SC_DTOOL, Disk, Done, config, one_line_error
from sccache_dtool.disk.filesystem import FileSystem, Room
from waiting import PATIENCE

Sc = Callable[..., Done]
Put = Callable[..., Path]


@pytest.fixture
def put(sc: Sc, tmp_path: Path) -> Put:
    """Makes an item of so many bytes, used once; its path."""

    def make(name: str, size: int = 1000) -> Path:
        source = tmp_path / name
        source.write_bytes(bytes(size))
        path = sc("use", source).path
        sc("unuse", source)
        return path

    return make


def times(root: Path) -> dict[str, int]:
    """When each directory of the cache was changed."""
    return {name: os.stat(name).st_mtime_ns for name, _, _ in os.walk(root)}


def last_line(done: Done) -> str:
    return done.out.splitlines()[-1]


# -- the cache's policy ----------------------------------------------------------------------------------------------


def test_clean_without_options_applies_the_policy(sc: Sc, put: Put, root: Path) -> None:
    """A cron job would have to repeat what config.toml says, and drift away from it."""
    paths = [put(name) for name in "abcd"]
    config(root, '[clean]\ncapacity = "4kB"\nhigh_watermark = "90%"\nlow_watermark = "50%"\n')
    done = sc("clean")
    assert (done.code, last_line(done)) == (
        0,
        "removed 2 items, 2.0 kB; kept 2 items not needed to reach the goal",
    )
    assert sum(path.exists() for path in paths) == 2


def test_below_the_mark_nothing_is_done_in_one_line(sc: Sc, put: Put, root: Path) -> None:
    """A cron job would write into the cache, and into the log, every hour for nothing."""
    put("a")
    config(root, '[clean]\ncapacity = "4kB"\n')
    before = times(root)
    done = sc("clean")
    assert done == Done(
        0, "nothing to remove: no watermark is exceeded; the cache contains 1.0 kB in 1 file or directory\n", ""
    )
    assert times(root) == before


def test_holders_that_are_alive_are_no_reason_to_write(sc: Sc, put: Put, root: Path, source: str) -> None:
    """A cache in use would be written to by every cron job of every login node."""
    sc("use", source)
    config(root, '[clean]\ncapacity = "4kB"\n')
    before = times(root)
    assert sc("clean").code == 0
    assert times(root) == before


def test_conditions_given_replace_those_of_the_policy_and_not_what_it_protects(sc: Sc, put: Put, root: Path) -> None:
    """`clean --all` of a colleague would remove what the data manager has excluded."""
    kept, gone = put("hg38.fa"), put("x")
    config(root, '[clean]\nolder_than = "90d"\nexclude = ["hg38*"]\n')
    assert sc("clean").out.startswith("removed 0 items")
    assert last_line(sc("clean", "--all", "-y")) == "removed 1 item, 1.0 kB; kept 1 item excluded"
    assert (kept.exists(), gone.exists()) == (True, False)


def test_a_grace_keeps_what_was_just_fetched(sc: Sc, put: Put) -> None:
    """What was fetched for the next job of a workflow would be gone when it starts."""
    path = put("a")
    assert last_line(sc("clean", "--retain-size", "1B", "--grace", "1h")).startswith("the goal was missed")
    assert path.exists()


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--larger-than", "1500"], ["a"]),
        (["--all", "-y", "--exclude", "b*"], ["b"]),
        (["--retain-size", "2kB", "--order", "largest"], ["a"]),
        (["--high-watermark", "2kB", "--low-watermark", "1kB"], ["a"]),
        (["--high-watermark", "99%", "--capacity", "1GB"], ["a", "b"]),
        (["--min-free", "1B"], ["a", "b"]),
    ],
)
def test_each_condition(sc: Sc, put: Put, words: list[str], left: list[str]) -> None:
    """An option would be taken and do nothing."""
    paths = {"a": put("a", 1000), "b": put("b", 2000)}
    assert sc("clean", *words).code == 0
    assert [name for name, path in paths.items() if path.exists()] == left


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--high-watermark", "0.9"], "cannot read '0.9' as a size"),
        (["--retain-size", "0.5"], "cannot read '0.5' as a size"),
        (["--low-watermark", "75%"], "the low watermark, 75%, needs a high watermark"),
        (["--high-watermark", "1kB", "--low-watermark", "2kB"], "the low watermark, 2000, is above the high one, 1000"),
        (["--low-watermark-files", "1000"], "the low watermark for files, 1000, needs a high watermark for files"),
    ],
)
def test_marks_that_cannot_be_meant_are_refused(sc: Sc, put: Put, words: list[str], message: str) -> None:
    """A forgotten per cent sign would empty the cache, and a forgotten high mark keep it from ever being cleaned."""
    path = put("a")
    done = sc("clean", *words)
    assert done.code == 2
    assert message in done.err
    assert path.exists()


def test_a_mark_in_files(sc: Sc, tmp_path: Path) -> None:
    """A file system would run out of inodes beside a cache that has bytes to spare."""
    paths = []
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(60):
            (tmp_path / name / str(number)).touch()
        paths.append(sc("use", tmp_path / name).path)
        sc("unuse", tmp_path / name)
    assert sc("clean", "--high-watermark-files", "101").code == 0
    assert [path.exists() for path in paths] == [False, True]


_SIZES = ["capacity", "high_watermark", "low_watermark", "min_free", "retain_size", "larger_than"]
_FORGOTTEN = [(name, value) for name in _SIZES for value in ("1", "20", "100", "0", "0B", "0.0001kB")]
_FORGOTTEN += [
    (f"{name}_watermark_files", value) for name in ("high", "low") for value in ("1", "90", "100", "0", "00")
]
_FORGOTTEN += [(name, "0%") for name in ("high_watermark", "low_watermark", "high_watermark_files")]


@pytest.mark.parametrize(("name", "value"), _FORGOTTEN)
def test_a_limit_whose_unit_was_forgotten_is_refused(sc: Sc, put: Put, root: Path, name: str, value: str) -> None:
    """90 instead of 90%, 20 instead of 20TB, or a variable that was never set would empty a cache unasked."""
    path = put("a")
    done = sc("clean", f"--{name.replace('_', '-')}", value)
    assert (done.code, "is not a limit" in done.err or " would be " in done.err) == (2, True)
    assert "give " in done.err or "clean --all" in done.err
    for text in [f'"{value}"'] + [value] * value.isdecimal() * (value != "00"):
        config(root, f"[clean]\n{name} = {text}\n")
        done = sc("clean")
        assert (done.code == 0, f"[clean] {name}: {value!r}" in done.err) == (False, True)
    assert path.exists()


def test_a_low_mark_alone_goes_with_the_capacity_of_the_policy(sc: Sc, put: Put, root: Path) -> None:
    """Whoever gives another low mark for once would have to repeat what the cache may take."""
    for name in "abc":
        put(name)
    config(root, '[clean]\ncapacity = "2kB"\n')
    assert last_line(sc("clean", "--low-watermark", "50%")).startswith("removed 2 items")


@pytest.mark.parametrize("given", ["10kB", "500TB"])
def test_a_floor_above_the_size_of_the_file_system_is_refused(
    sc: Sc, put: Put, root: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """A number of the wrong size would empty the cache again and again, and could never be reached."""
    path = put("a")
    monkeypatch.setattr(FileSystem, "room", lambda self, path: Room(10_000, 1000, 0, 0))
    said = f"{given[:-2]}.0 {given[-2:]} cannot be kept free: the file system has only 10.0 kB in total"
    for words in (["-n"], ["--notice", "1d"], []):
        done = sc("clean", "--min-free", given, *words)
        assert (done.code, said in done.err, done.out) == (2, True, "")
    config(root, f'[clean]\nmin_free = "{given}"\n')
    assert sc("clean").code == 2
    assert path.exists()


def test_a_floor_that_cannot_be_reached_is_told_of(sc: Sc, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cron job would empty the cache each hour, and nobody hear that others fill the disk."""
    path = put("a")
    monkeypatch.setattr(FileSystem, "room", lambda self, path: Room(10_000, 1000, 0, 0))
    for code, verb, words in ((0, "would be", ["-n"]), (3, "was", []), (3, "was", [])):
        done = sc("clean", "--min-free", "9kB", *words)
        assert done.code == code
        assert last_line(done).startswith(f"the goal {verb} missed by")
    assert not path.exists()


def test_the_trash_can_be_given_up(sc: Sc, put: Put, disk: Disk) -> None:
    """Whoever needs the room at once would have to rename things by hand where nobody should."""
    kept = put("kept")
    put("gone")
    assert sc("rm", "gone", "--trash", "7d").code == 0
    assert sc("clean", "--empty-trash", "-n").out.startswith("in the trash: 1.0 kB and 1 file, kept until 2")
    assert sc("clean", "--empty-trash").code == 2  # nobody is there to be asked
    assert sc("clean", "--empty-trash", "--older-than", "1d").code == 2
    assert len(disk.names("trash")) == 1
    assert sc("clean", "--empty-trash", "-y").out == "deleted 1 evicted copy, 1.0 kB\n"
    assert disk.names("trash") == []
    assert sc("clean", "--empty-trash", "-n").out == "in the trash: nothing\n"
    assert kept.exists()


def test_a_disk_that_the_trash_keeps_full_is_told_of(
    sc: Sc, put: Put, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cron job would say that all is well on a full disk, or empty the cache hour by hour for nothing."""
    paths = [put(name) for name in "abcd"]
    monkeypatch.setattr(FileSystem, "room", lambda self, path: Room(10_000, 1000, 0, 0))  # whatever is evicted
    config(root, '[clean]\nmin_free = "2kB"\ntrash = "7d"\n')
    would = sc("clean", "-n")
    assert (would.code, would.out.count("the goal would be missed: the file system stays above")) == (0, 1)
    for removed in ("removed 1 item, ", "nothing to remove: ", "nothing to remove: "):
        done = sc("clean")
        first, missed, trashed, _ = done.out.splitlines()[-4:]
        assert (done.code, first.startswith(removed)) == (3, True)
        assert missed.endswith("stays above its watermark by 1.0 kB until the trash is deleted")
        assert trashed.startswith("  in the trash: 1.0 kB and 1 file, kept for `restore` until 2")
    assert sum(path.exists() for path in paths) == 3
    total = sc("-f", "json", "clean").row("total")
    assert (total["missed_bytes"], total["withheld_bytes"], total["withheld_until"][:2]) == (0, 1000, "20")


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_is_carried_out_as_far_as_it_is_still_true(sc: Sc, put: Put, tmp_path: Path, root: Path) -> None:
    """What was used, protected or fetched after somebody looked at the plan would go, or what he agreed to stay."""
    paths = {name: put(name) for name in ("idle", "used", "held", "pinned", "excluded", "gone")}
    plan = tmp_path / "plan.json"
    assert sc("clean", "--all", "-n", "-o", plan).code == 0
    assert all(path.exists() for path in paths.values())
    put("late")
    sc("use", tmp_path / "used")
    sc("unuse", tmp_path / "used")
    sc("use", tmp_path / "held")
    sc("pin", "pinned")
    config(root, '[clean]\nexclude = ["excl*"]\n')
    sc("rm", "gone")
    done = sc("-f", "json", "clean", "--plan", plan)
    assert [row["name"] for row in done.rows("removed")] == ["idle"]
    assert {row["name"]: row["reason"] for row in done.rows("kept")} == {
        "used": "used since the plan was made",
        "held": "in use: 1 lease",
        "pinned": "pinned",
        "excluded": "excluded",
    }
    assert done.rows("total")[0]["gone"] == 1
    assert [name for name, path in paths.items() if path.exists()] == ["used", "held", "pinned", "excluded"]
    assert sc("ls").out.count("late") == 1


def test_a_plan_holds_for_what_the_dead_have_leased(sc: Sc, put: Put, tmp_path: Path) -> None:
    """The plan would say that a lease ends and its item goes, and carrying it out do neither."""
    path = put("a")
    with subprocess.Popen(["sleep", "60"]) as job:
        sc("use", tmp_path / "a", "--holder", f"pid:{job.pid}")
        job.kill()
    assert "would end the lease" in sc("clean", "--retain-size", "1B", "-n", "-o", tmp_path / "plan.json").out
    done = sc("clean", "--plan", tmp_path / "plan.json")
    assert (done.code, last_line(done)) == (0, "removed 1 item, 1.0 kB")
    assert not path.exists()


@pytest.mark.parametrize("words", [[], ["--all", "-y"], ["--all", "-n"]])
def test_nothing_is_cleaned_while_a_setting_of_the_policy_is_not_understood(
    sc: Sc, put: Put, disk: Disk, words: list[str]
) -> None:
    """What a misspelt line was to protect would be gone with the first run of cron."""
    put("a")
    Path(disk.root, ".sc-dtool", "config.toml").write_text('[clean]\nretain_size = "1B"\nexlude = ["*"]\n')
    done = sc("clean", *words)
    assert done.code == 2
    assert "[clean] exlude is not a setting that this release knows" in done.err
    assert len(disk.copies()) == 1


def test_a_plan_that_somebody_else_has_carried_out_has_reached_its_goal(sc: Sc, put: Put, tmp_path: Path) -> None:
    """A second run of the same job would send a mail that the goal was missed, with nothing in the way."""
    put("a")
    sc("clean", "--retain-size", "1B", "-n", "-o", tmp_path / "plan.json")
    assert sc("clean", "--plan", tmp_path / "plan.json").code == 0
    done = sc("clean", "--plan", tmp_path / "plan.json")
    assert (done.code, last_line(done)) == (0, "1 item had already been removed")


def test_a_plan_says_what_it_is_for(sc: Sc, put: Put, tmp_path: Path) -> None:
    """Whoever is to agree to a plan could not read it."""
    put("a")
    sc("clean", "--retain-size", "1B", "-n", "-o", tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["format"], plan["bytes"], plan["goal_bytes"]) == (1, 1000, 1)
    (one,) = plan["remove"]
    assert (one["item"].endswith("-a"), one["bytes"], one["uses"]) == (True, 1000, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": 2}',
        '{"format": 1, "remove": [{"item": "../../x", "copy": "y"}]}',
        '{"format": 1, "goal_bytes": null, "goal_entries": null, "remove": [], "cache_bytes": Infinity}',
        "\0" * 100,
        '{"format": 1, "remove": [\n',
    ],
)
def test_what_is_no_plan_removes_nothing(sc: Sc, put: Put, tmp_path: Path, text: str) -> None:
    """A damaged file, or one that somebody has tampered with, would remove something."""
    path = put("a")
    (tmp_path / "plan.json").write_text(text)
    done = sc("clean", "--plan", tmp_path / "plan.json")
    start = f"Error: cannot use {tmp_path / 'plan.json'}"
    assert (done.code, one_line_error(done)) == (2, f"{start}: this is not a plan that this release can read")
    assert path.exists()


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (1, "idle_since", "NaN"),
        (1, "idle_since", "1e999"),
        (1, "idle_since", "-1"),
        (1, "uses", "1.5"),
        (1, "uses", "true"),
        (0, "cache_bytes", "1" * 400),
        (0, "goal_bytes", "NaN"),
    ],
)
def test_a_plan_with_figures_that_are_none_removes_nothing(
    sc: Sc, put: Put, tmp_path: Path, place: int, name: str, value: str
) -> None:
    """Half of it would be carried out, and then what cannot be printed be taken for a fault of the program."""
    path, plan = put("a"), tmp_path / "plan.json"
    sc("clean", "--retain-size", "1B", "-n", "-o", plan)
    lines = plan.read_text().splitlines(keepends=True)
    before = lines[place]
    lines[place] = re.sub(rf'("{name}": )[^,}}]+', rf"\g<1>{value}", before)
    assert lines[place] != before
    plan.write_text("".join(lines))
    done = sc("clean", "--plan", plan)
    start = f"Error: cannot use {plan}"
    assert (done.code, one_line_error(done)) == (2, f"{start}: this is not a plan that this release can read")
    assert path.exists()


def test_a_plan_that_names_something_twice_removes_nothing(sc: Sc, put: Put, tmp_path: Path) -> None:
    """What is named three times would count three times as gone, and a goal that was missed as reached."""
    path, plan = put("a"), tmp_path / "plan.json"
    put("b")
    sc("clean", "--all", "-n", "-o", plan)
    head, one, _, end = plan.read_text().splitlines(keepends=True)
    plan.write_text("".join([head, one, one, end]))
    done = sc("clean", "--plan", plan)
    assert done.code == 2
    assert re.fullmatch(r"Error: cannot use \S+: the plan contains \S+ twice", one_line_error(done))
    assert path.exists()


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_plan_may_have_gone_through_another_program(sc: Sc, put: Put, tmp_path: Path, indent: int | None) -> None:
    """Who takes items out of it with a program for JSON could not have the rest carried out."""
    path, plan = put("a"), tmp_path / "plan.json"
    sc("clean", "--all", "-n", "-o", plan)
    plan.write_text(json.dumps(json.loads(plan.read_text()), indent=indent, sort_keys=True))
    assert sc("clean", "--plan", plan).code == 0
    assert not path.exists()


def test_a_line_of_a_plan_is_an_item_that_can_be_taken_out(sc: Sc, put: Put, tmp_path: Path) -> None:
    """Who takes the last line out in an editor would be told that the rest is no plan, for a comma."""
    paths, plan = {name: put(name) for name in "ab"}, tmp_path / "plan.json"
    sc("clean", "--all", "-n", "-o", plan)
    head, one, other, end = plan.read_text().splitlines(keepends=True)
    plan.write_text("".join([head, one, end]))
    assert sc("clean", "--plan", plan).code == 0
    stays = json.loads(other)["item"][-1]
    assert {name for name, path in paths.items() if path.exists()} == {stays}


def test_a_missed_goal_of_a_plan_names_who_is_in_the_way(sc: Sc, put: Put, tmp_path: Path) -> None:
    """Whose leases had left nothing to plan would be told that the goal was missed, and not by whose leases."""
    plan = tmp_path / "plan.json"
    for name in "ab":
        put(name)
        sc("use", tmp_path / name, "--holder", f"holder-of-{name}")
    put("c")
    sc("clean", "--retain-size", "1B", "-n", "-o", plan)
    sc("use", tmp_path / "c", "--holder", "holder-of-c")
    done = sc("clean", "--plan", plan)
    assert done.code == 3
    assert "kept 3 items in use" in done.out
    for name in "abc":
        assert f"'holder-of-{name}'" in done.out
    leases = sc("-f", "json", "clean", "--plan", plan).rows("lease")
    assert sorted(lease["item"][-1] for lease in leases) == ["a", "b", "c"]


def test_the_plan_of_another_cache_is_refused(sc: Sc, put: Put, tmp_path: Path) -> None:
    """Two caches with the same items would be confused."""
    path = put("a")
    sc("clean", "--all", "-n", "-o", tmp_path / "plan.json")
    text = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**text, "cache": "other"}))
    assert sc("clean", "--plan", tmp_path / "plan.json").code == 2
    assert path.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--all"],
        ["--retain-size", "1B"],
        ["-n"],
        ["--exclude", "a"],
        ["--grace", "1h"],
        ["--order", "lru"],
        ["--notice", "7d"],
    ],
)
def test_a_plan_is_carried_out_as_it_is(sc: Sc, put: Put, tmp_path: Path, words: list[str]) -> None:
    """What somebody excludes while the plan is carried out would go: the option was taken, and did nothing."""
    path = put("a")
    sc("clean", "--all", "-n", "-o", tmp_path / "plan.json")
    done = sc("clean", "--plan", tmp_path / "plan.json", *words)
    assert (done.code, one_line_error(done)) == (2, "Error: --plan cannot be combined with conditions")
    assert path.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "p", "--all", "-y"],
        ["--plan", "missing.json"],
        ["--notice", "7d", "-n", "-o", "p", "--all"],
        ["--by", "user", "--all", "-y"],
        ["--notice", "7d", "--all", "-n"],
        ["--notice", "7d", "--all", "-y"],
        ["--notice", "7d", "--all", "--trash", "1d"],
        ["--notice", "7d", "--all", "--max-runtime", "0s"],
    ],
)
def test_options_that_would_do_nothing_are_refused(sc: Sc, put: Put, words: list[str]) -> None:
    """A plan would be looked for that was not written, or all be removed that was only to be listed."""
    path = put("a")
    assert sc("clean", *words).code == 2
    assert path.exists()


@pytest.mark.parametrize("words", [["clean", "--all", "-n"], ["metrics"]])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))])
def test_what_is_no_file_is_written_to_and_stays(
    sc: Sc, put: Put, tmp_path: Path, words: list[str], make: Callable[[Path], None]
) -> None:
    """A device would be replaced by a file, and by one of root's all programs of the machine be hit."""
    put("a")
    target = tmp_path / "target"
    try:
        make(target)
    except PermissionError:
        pytest.skip("only root makes devices")
    (tmp_path / "link").symlink_to(target)
    kind = os.lstat(target).st_mode
    reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert sc(*words, "-o", tmp_path / "link").code == 0
        written = os.read(reader, 1 << 16)
    finally:
        os.close(reader)
    assert os.lstat(target).st_mode == kind
    assert (tmp_path / "link").is_symlink()
    assert sorted(tmp_path.glob("*.tmp")) == []
    if stat.S_ISFIFO(kind):
        assert b"sc_dtool_items" in written or json.loads(written)["format"] == 1


@pytest.mark.parametrize("words", [["clean", "--all", "-n"], ["metrics"]])
def test_a_file_is_written_through_a_link_to_it(sc: Sc, put: Put, tmp_path: Path, words: list[str]) -> None:
    """Whoever reads the file itself would see what was there before, for ever."""
    put("a")
    target, link = tmp_path / "target", tmp_path / "link"
    for step in ("made", "replaced"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert sc(*words, "-o", link).code == 0
        assert link.is_symlink(), step
        assert len(target.read_text()) > 100, step
        target.write_text("old")


def test_a_log_that_the_results_go_to_is_not_replaced(put: Put, root: Path, tmp_path: Path) -> None:
    """With `-o /dev/stdout >> log` all that the log had would be lost."""
    put("a")
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as file:
        command = [SC_DTOOL, "-C", root, "metrics", "-o", log]
        assert subprocess.run(command, stdout=file, check=False, timeout=PATIENCE).returncode == 0
    assert log.read_text().startswith("before\n# HELP")


def test_a_plan_can_be_piped(sc: Sc, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-o - | jq` would find a table, and a file called `-` be made."""
    path, plan = put("a"), tmp_path / "plan.json"
    monkeypatch.chdir(tmp_path)
    done = sc("clean", "--all", "-n", "-o", "-")
    assert (done.code, done.err) == (0, "")
    plan.write_text(done.out)
    assert sc("metrics", "-o", "-").out.startswith("# HELP")
    assert not Path("-").exists()
    assert sc("clean", "--plan", plan).code == 0
    assert not path.exists()


# -- afterwards ------------------------------------------------------------------------------------------------------


def test_a_cleaning_leaves_a_record(sc: Sc, put: Put, disk: Disk) -> None:
    """Nobody could say a month later what has removed a reference, and why."""
    put("a"), put("b")
    sc("clean", "--retain-size", "1kB")
    (name,) = disk.names("cleanings")
    head, *rest = map(json.loads, (disk.control / "cleanings" / name).read_text().splitlines())
    assert (head["removed"], head["bytes"], head["why"]) == (1, 1000, "retain_size 1000, order cost")
    assert head["kept"] == {"not needed to reach the goal": 1}
    assert len(rest) == 1
    assert name.split("~")[1:4] == ["1", "1000", "0"]
    sc("clean", "--retain-size", "1kB")
    assert disk.names("cleanings") == [name]


def test_a_missed_goal_names_who_is_in_the_way(sc: Sc, source: str) -> None:
    """A cron job's mail would say that the disk is full, and not whom to ask."""
    sc("use", source)
    done = sc("clean", "--retain-size", "1B")
    assert done.code == 3
    *_, item, holder = done.out.splitlines()
    assert item == "  ref.fa, 5 Bytes: in use: 1 lease"
    assert f"process {os.getpid()}" in holder
    assert "is running" in holder
    (lease,) = sc("-f", "json", "clean", "--retain-size", "1B").rows("lease")
    assert (lease["item"].endswith("-ref.fa"), lease["verdict"]) == (True, "alive")


def test_each_item_in_the_way_is_named_with_its_own_holders(sc: Sc, put: Put, tmp_path: Path) -> None:
    """Nobody could tell which of the leases are in the way of what, and whom to ask about the largest."""
    for number, name in enumerate("abc"):
        put(name, 1000 + number)
        sc("use", tmp_path / name, "--holder", f"holder-of-{name}")
    lines = sc("clean", "--retain-size", "1B").out.splitlines()[-6:]
    assert [line.split(",")[0].strip() for line in lines[::2]] == ["c", "b", "a"]
    assert ["holder-of-" in line for line in lines] == [False, True] * 3
    assert "'holder-of-c'" in lines[1]


def test_when_the_time_is_over_the_rest_is_left_for_the_next_time(sc: Sc, put: Put, disk: Disk) -> None:
    """A cron job would run into the next one, or leave something half done."""
    paths = [put(name) for name in "ab"]
    done = sc("clean", "--all", "-y", "--max-runtime", "0s")
    assert (done.code, last_line(done)) == (3, "the time limit was reached: 2 items left for the next clean")
    assert all(path.exists() for path in paths)
    assert disk.names("trash") == []
    assert sc("clean", "--all", "-y", "--max-runtime", "1h").code == 0
    assert not any(path.exists() for path in paths)


def test_what_there_was_no_time_to_delete_is_told(sc: Sc, put: Put, root: Path, disk: Disk) -> None:
    """A cron job would report success on a disk that stays full, as long as all was evicted and nothing deleted."""
    put("a")
    sc("clean", "--all", "-y", "--trash", "1d")
    (name,) = disk.names("trash")
    (disk.control / "trash" / name).rename(disk.control / "trash" / f"{name}~going")
    told = "1 copy is still to be deleted: 1.0 kB; the next clean continues"
    done = sc("clean", "--older-than", "9d", "--max-runtime", "0s")
    assert (done.code, last_line(done)) == (3, told)
    config(root, '[clean]\ncapacity = "4kB"\n')
    done = sc("clean", "--max-runtime", "0s")  # nothing is over its mark
    assert (done.code, last_line(done)) == (3, told)
    (total,) = sc("-f", "json", "clean", "--max-runtime", "0s").rows("total")
    assert (total["unpurged"], total["unpurged_bytes"]) == (1, 1000)
    assert sc("clean").code == 0
    assert disk.names("trash") == []


# -- pins and notice ---------------------------------------------------------------------------------------------------


def test_what_is_pinned_stays_until_it_is_unpinned(sc: Sc, put: Put, disk: Disk) -> None:
    """The reference of the course next week would be gone when it begins."""
    path = put("a")
    assert sc("pin", "a").out == "pinned a\n"
    assert last_line(sc("clean", "--all", "-y")) == "removed 0 items, 0 Bytes; kept 1 item pinned"
    assert "a " in sc("pin").out
    assert sc("unpin", "a").code == 0
    assert disk.names("pins") == []
    sc("clean", "--all", "-y")
    assert not path.exists()


def test_a_pin_runs_out(sc: Sc, put: Put, disk: Disk) -> None:
    """What was pinned for a course three years ago would stay for ever."""
    put("a")
    sc("pin", "a", "--until", "2099-12-31")
    (name,) = disk.names("pins")
    key = name.partition("~")[0]
    (disk.control / "pins" / name).rename(disk.control / "pins" / f"{key}~{int(time.time()) - 1}")
    assert last_line(sc("clean", "--all", "-y")) == "removed 1 item, 1.0 kB"
    assert disk.names("pins") == []


def test_a_later_pin_replaces_the_earlier_one(sc: Sc, put: Put, disk: Disk) -> None:
    """A pin that was shortened would go on for its first time."""
    put("a")
    sc("pin", "a")
    sc("pin", "a", "--until", "30d")
    (name,) = disk.names("pins")
    assert not name.endswith("~0")


def test_a_pin_without_an_item_pins_nothing(sc: Sc, put: Put) -> None:
    """A script whose list of items is empty would be told that all is well."""
    put("a")
    assert sc("pin", "--until", "30d").code == 2


@pytest.mark.parametrize("when", ["yesterday", "2001-01-01", "2099-02-30", "30", ""])
def test_a_pin_needs_a_time_to_come(sc: Sc, put: Put, disk: Disk, when: str) -> None:
    """A typing error would pin something until the past, which is not at all."""
    put("a")
    done = sc("pin", "a", "--until", when)
    assert done.code == 2
    assert "2099-12-31" in done.err
    assert not (disk.control / "pins").exists()


def test_notice_lists_what_will_go_and_for_whom(sc: Sc, put: Put) -> None:
    """Users would learn that their data goes when it is gone."""
    path = put("a")
    rows = sc("-f", "json", "clean", "--older-than", "5d", "--notice", "7d").rows("notice")
    assert [(row["name"], row["bytes"]) for row in rows] == [("a", 1000)]
    assert rows[0]["user"]
    (row,) = sc("-f", "json", "clean", "--older-than", "5d", "--notice", "7d", "--by", "user").rows("notice")
    assert (row["user"], row["items"], row["bytes"]) == (rows[0]["user"], ["a"], 1000)
    assert sc("-f", "json", "clean", "--older-than", "9d", "--notice", "7d").rows("notice") == []
    assert sc("clean", "--older-than", "5d", "--notice", "7d").out.count("\n") == 3
    assert path.exists()


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_are_what_prometheus_reads(sc: Sc, put: Put, source: str, tmp_path: Path) -> None:
    """The monitor would have nothing to draw, or refuse the file."""
    put("a"), put("b")
    sc("use", source)
    sc("clean", "--retain-size", "1005")
    file = tmp_path / "sc_dtool.prom"
    assert sc("metrics", "-o", file) == Done(0, "", "")
    values = {}
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            name, value = line.rpartition(" ")[::2]
            assert name.endswith('"}')
            values[name.partition("{")[0]] = float(value)
    expected = {"items": 2, "bytes": 1005, "leases": 1, "evictions_total": 1, "misses": 3, "uses_total": 3}
    assert {name: values[f"sc_dtool_{name}"] for name in expected} == expected
    assert sorted(tmp_path.glob("*.tmp")) == []
    assert sc("metrics").out.count("# TYPE") == len(values)


def figures(sc: Sc, *names: str) -> tuple[float, ...]:
    """What `metrics` says of these."""
    lines = [line.rpartition(" ") for line in sc("metrics").out.splitlines() if not line.startswith("#")]
    values = {name.partition("{")[0].removeprefix("sc_dtool_"): float(value) for name, _, value in lines}
    return tuple(values[name] for name in names)


def test_what_nobody_fetched_is_no_miss(sc: Sc, put: Put, root: Path, tmp_path: Path) -> None:
    """A cache would look worse with each item restored, and each file of dtool's that was cleaned away."""
    for name in "abc":
        put(name)
        for _ in range(2):
            sc("use", tmp_path / name)
            sc("unuse", tmp_path / name)
    assert figures(sc, "misses", "hits") == (3, 6)
    for _ in range(2):
        sc("clean", "--all", "-y", "--trash", "1d")
        assert figures(sc, "misses", "hits") == (3, 6)
        assert sc("restore", "a").code == 0
        assert figures(sc, "misses", "hits") == (3, 6)
    left = root / "b3ca6a8d-3f2e-4b5c-9d01-6a7b8c9d0e1f"
    left.mkdir()
    for number in range(5):
        (left / f"{number:040x}").write_bytes(b"x")
    assert sc("clean", "--older-than", "0s").code == 0
    assert not any(left.iterdir())
    assert figures(sc, "misses", "hits", "evictions_total") == (3, 6, 10)
    sc("doctor")
    put("a")
    assert figures(sc, "misses", "hits") == (4, 6)


def test_what_was_removed_by_name_is_no_miss_any_more_also_if_it_is_restored(sc: Sc, put: Put) -> None:
    """The figures would not be what the reference says of them."""
    put("a"), put("b")
    sc("rm", "--trash", "1d", "a")
    assert figures(sc, "misses", "hits") == (1, 1)
    sc("restore", "a")
    assert figures(sc, "misses", "hits") == (1, 1)


def test_metrics_of_a_cache_whose_name_is_no_utf8(sc: Sc, tmp_path: Path) -> None:
    """The monitor would see nothing of it, and half a file be left."""
    root = tmp_path / os.fsdecode(b"l\xffb")
    sc("init", root)
    assert sc("-C", root, "metrics", "-o", tmp_path / "x.prom").code == 0
    assert 'l?b"} 0\n' in (tmp_path / "x.prom").read_text(encoding="utf-8")
    assert sorted(tmp_path.glob("*.tmp")) == []


def test_metrics_that_cannot_be_written_leave_the_old_ones(sc: Sc, put: Put, tmp_path: Path) -> None:
    """A full disk would leave half a file, which the monitor takes for the whole."""
    put("a")
    done = sc("metrics", "-o", tmp_path / "missing" / "x.prom")
    assert done.code == 1
    assert one_line_error(done).startswith("Error: cannot write ")


@pytest.mark.no_cache
def test_what_a_killed_run_has_left_is_not_in_the_way(
    sc: Sc, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container each run has the same number: after one kill the monitor would have no figures any more."""
    put("a")
    file = tmp_path / "x.prom"
    with monkeypatch.context() as killed:
        killed.setattr("os.replace", _end)
        killed.setattr("os.unlink", _end)
        with pytest.raises(BaseExceptionGroup):
            sc("metrics", "-o", file)
    assert len(list(tmp_path.glob("x.prom.*"))) == 1
    assert sc("metrics", "-o", file).code == 0
    assert file.read_text().endswith("\n")


def _end(*arguments: object) -> None:
    """As a kill does, it is caught by nobody."""
    raise BaseExceptionGroup("killed", [SystemExit(137)])
