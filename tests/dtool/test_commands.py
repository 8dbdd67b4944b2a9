"""`dtool cache summary | clean | log`: what dtool's specification promises to data managers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from dtool import stores
from sccache_dtool.cache import Cache
from sccache_dtool.dtool import leased
from sccache_dtool.errors import Exit

FIRST, SECOND = stores.identifier("a/first.txt"), stores.identifier("second.csv")


@pytest.fixture
def dtool(cache_dir):
    """Runs dtool's own command."""
    pytest.importorskip("dtool_cli", reason="dtool-cli is not installed")
    program = shutil.which("dtool", path=os.path.dirname(sys.executable))
    assert program is not None

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run([program, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stderr
        return done.stdout + (done.stderr if code else "")

    return run


@pytest.fixture
def used(dataset):
    """A dataset of which the first item was used three times and the second once, and is in use."""
    for _ in range(3):
        with leased(dataset, FIRST):
            pass
    dataset.item_content_abspath(SECOND)
    return dataset


def records(text: str, kind: str) -> list[dict[str, object]]:
    return [record for record in map(json.loads, text.splitlines()) if record["type"] == kind]


def make_old_and_slow(cache_dir, seconds: float) -> None:
    """As if every fetch had taken that long."""
    for path in (cache_dir / ".sc-dtool" / "items").glob("*/*/*/item.json"):
        facts = json.loads(path.read_text())
        path.chmod(0o644)
        path.write_text(json.dumps({**facts, "seconds": seconds}))


def test_summary_answers_the_user_stories(dtool, used, cache_dir):
    """How much space, what is unused, what nobody uses now, how often each was used, how much time that saved."""
    make_old_and_slow(cache_dir, 100.0)
    (cache_dir / used.uuid).mkdir()
    (cache_dir / used.uuid / f"{SECOND}.csv").write_bytes(b"two, three\n")
    out = dtool("cache", "-f", "json", "summary")
    (total,) = records(out, "summary")
    assert total["items"] == 2
    assert total["bytes"] == 4 + 11 + 11
    assert (total["loose_files"], total["loose_bytes"]) == (1, 11)
    assert (total["idle_items"], total["idle_bytes"]) == (1, 4)
    assert (total["uses"], total["leases"]) == (4, 1)
    assert total["saved_seconds"] == 200.0  # the first use of each item fetched it
    assert total["unused_bytes"] == 0
    (row,) = records(out, "dataset")
    assert (row["dataset"], row["name"]) == (used.uuid, "study")
    assert (row["items"], row["loose_files"], row["uses"], row["leases"]) == (2, 1, 4, 1)
    (total,) = records(dtool("cache", "-f", "json", "summary", "--unused", "0s"), "summary")
    assert total["unused_bytes"] == 4 + 11


def test_summary_tells_of_each_item(dtool, used, cache_dir):
    """A data manager wants to know which items are worth their space."""
    make_old_and_slow(cache_dir, 60.0)
    rows = records(dtool("cache", "-f", "json", "summary", "--by", "item"), "item")
    assert [(row["relpath"], row["uses"], row["saved_seconds"]) for row in rows] == [
        ("a/first.txt", 3, 120.0),
        ("second.csv", 1, 0.0),
    ]
    said = dtool("cache", "summary", "--by", "item")
    assert "a/first.txt" in said
    assert "2 min" in said


def test_summary_remembers_the_uses_of_what_is_gone(dtool, used, cache_dir):
    """Uses outlive items; how long a fetch took does not, and is not guessed."""
    make_old_and_slow(cache_dir, 60.0)
    dtool("cache", "clean", "--all", "-y")
    rows = records(dtool("cache", "-f", "json", "summary", "--by", "item"), "item")
    assert [(row["state"], row["uses"], row["saved_seconds"]) for row in rows] == [
        ("evicted", 3, None),
        ("in-use", 1, 0.0),
    ]
    out = dtool("cache", "-f", "json", "summary")
    (row,) = records(out, "dataset")
    assert (row["uses"], row["saved_seconds"]) == (4, 0.0)
    (total,) = records(out, "summary")
    assert (total["uses"], total["saved_seconds"], total["saved_unknown_uses"]) == (4, 0.0, 3)
    assert "not counted: 3 uses of evicted items" in dtool("cache", "summary")


def test_what_a_dataset_saved_that_is_gone_is_not_called_nothing(dtool, dataset, cache_dir):
    """A data manager who reads "0 s" would throw out what is worth most."""
    with leased(dataset, FIRST):
        pass
    dtool("cache", "clean", "--all", "-y")
    (row,) = records(dtool("cache", "-f", "json", "summary"), "dataset")
    assert (row["uses"], row["saved_seconds"]) == (1, None)
    assert "?" in dtool("cache", "summary")


@pytest.mark.parametrize(
    ("option", "left"),
    [
        (["--all", "-y"], {SECOND}),
        (["--retain-size=1TB"], {FIRST, SECOND}),
        (["--retain-size=12B"], {SECOND}),
        (["--exclude-frequently-accessed=10"], {SECOND}),
        (["--exclude-frequently-accessed=3"], {FIRST, SECOND}),
        (["--older-than", "30d"], {FIRST, SECOND}),
        (["--all", "--dry-run"], {FIRST, SECOND}),
    ],
    ids=lambda words: " ".join(sorted(words)),  # of a set: all who run tests side by side must call it the same
)
def test_clean_takes_what_the_specification_says_and_nothing_in_use(dtool, used, cache_dir, option, left):
    """Data managers run these very commands; what somebody reads must survive them all."""
    dtool("cache", "clean", *option)
    found = [item for item in Cache(cache_dir).items() if item.copies]
    assert {item.label.partition(".")[2] for item in found} == left


def test_clean_without_a_terminal_does_not_guess(dtool, used):
    """A cron line with a slip in it must not delete everything."""
    assert "add -y to confirm" in dtool("cache", "clean", "--all", code=Exit.USAGE)
    assert "no condition is given" in dtool("cache", "clean", code=Exit.USAGE)


def test_log_tells_who_used_what(dtool, used):
    """Each finished use is in the log exactly once."""
    rows = records(dtool("cache", "-f", "json", "log"), "use")
    assert [row["name"] for row in rows] == [f"{used.uuid[:8]}.{FIRST}"] * 3


def test_a_reader_that_goes_away_is_no_error(used, cache_dir, dtool):
    """`dtool cache log | head -1` must not complain of a broken pipe."""
    program = shutil.which("dtool", path=os.path.dirname(sys.executable))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([program, "cache", "log"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.no_cache
def test_no_cache_is_said_so(dtool):
    """`dtool cache` before anything was cached must not be a traceback."""
    assert "no cache in" in dtool("cache", "summary", code=Exit.NO_CACHE)


def test_dtools_own_commands_still_work(dtool, dataset):
    """Whatever else we do, `dtool` must go on working."""
    pytest.importorskip("dtool_info", reason="dtool-info is not installed")
    assert "sc-dtool, sccache-dtool" in dtool("--version")
    assert FIRST in dtool("identifiers", dataset.uri)


def test_dtool_fetches_items_and_is_silent(dtool, cache_dir):
    """`dtool item fetch` would be missing after `pip install '.[dtool]'`, or each call of dtool print a warning."""
    assert "Return abspath" in dtool("item", "fetch", "--help")
    done = subprocess.run(
        [shutil.which("dtool", path=os.path.dirname(sys.executable)), "cache", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.no_cache
def test_sc_dtool_works_without_dtool(cache_dir):
    """Hosts that only clean have no dtool, or a broken one."""
    program = """
import sys
for name in ("dtoolcore", "dtool_cli", "pkg_resources"):
    sys.modules[name] = None
from sccache_dtool.cli.main import run
code = max(run(["init"]), run(["summary"]), run(["du", "--by", "dataset"]), run(["clean", "--all", "-y"]))
assert run(["use", "--holder", "x", "--ttl", "1h", "dtool:s3://b/u#x"]) == 12
sys.exit(code)
"""
    cache_dir.mkdir()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'dtool-cli" in done.stderr


def test_du_sums_up_by_dataset(used, cache_dir, capsys):
    """`dtool` people think in datasets."""
    from sccache_dtool.cli.main import run

    (cache_dir / "other" / used.uuid).mkdir(parents=True)
    (cache_dir / "other" / used.uuid / SECOND).write_bytes(b"12345")
    Cache(cache_dir).use(name="a-name").release()
    capsys.readouterr()
    assert run(["-f", "json", "du", "--by", "dataset"]) == 0
    out = capsys.readouterr().out
    rows = {row["dataset"]: row for row in records(out, "dataset")}
    assert rows[used.uuid]["bytes"] == 4 + 11 + 5
    assert rows[used.uuid]["loose_bytes"] == 5
    assert rows[None]["items"] == 1
    (total,) = records(out, "total")
    assert total["bytes"] == 20
