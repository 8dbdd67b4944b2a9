"""The benchmarks run, and say what their README promises. Nothing is timed here: only calls are counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sccache_dtool.policy.thresholds import ORDERS

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, once_in_all_workers: Callable[[str, Callable[[], str]], str]
) -> dict[str, Any]:
    def measure() -> str:
        scratch = tmp_path_factory.mktemp("benchmarks")
        done = subprocess.run(
            [sys.executable, str(RUN), "--json", "--rounds", "2", "--dir", str(scratch)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert list(scratch.iterdir()) == []
        return done.stdout

    found: dict[str, Any] = json.loads(once_in_all_workers("report", measure))
    return found


def test_the_report_names_where_it_was_measured(report: dict[str, Any]) -> None:
    """Figures of a local disk would be read as those of NFS."""
    assert report["version"] == 1
    assert {"file system", "directory", "kernel", "python", "commit", "load"} <= set(report["ran_on"])
    assert report["ran_on"]["file system"]


def test_every_claim_is_measured(report: dict[str, Any]) -> None:
    """A claim could be dropped from the benchmarks, and nobody would see that it does not hold any more."""
    claims = {figure["name"]: (figure["sign"], figure["target"]) for figure in report["figures"]}
    assert claims.items() >= {
        ("calls", ("=", 2)),
        ("bare", ("<=", 2.0)),
        ("limit", ("", None)),
        ("flufl", (">=", 10.0)),
        ("shell", ("<=", 1.5)),
    }
    for figure in report["figures"]:
        assert 0 < figure["least"] <= figure["value"] <= figure["most"]
        assert figure["rounds"] >= 2
        assert isinstance(figure["met"], bool)


def test_large_caches_are_measured(tmp_path: Path) -> None:
    """The benchmark of a million items would be found broken by whoever waits an hour for it."""
    run = [sys.executable, str(RUN.parent / "scale.py"), "--items", "200", "--rounds", "2", "--dir", str(tmp_path)]
    parts = [word for part in ("items", "loose", "eviction", "doctor", "growth") for word in ("--only", part)]
    done = subprocess.run([*run, *parts, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    found = {figure["name"]: figure for figure in json.loads(done.stdout)["figures"]}
    assert found.keys() >= {
        "du-items",
        "clean-idle",
        "du-loose",
        "evict",
        "doctor",
        "growth",
        "memory-du",
        "memory-clean",
    }
    assert found["clean-writes"]["value"] == 0


def test_many_items_are_measured(tmp_path: Path) -> None:
    """As for large caches: it takes minutes with as many items as are claimed."""
    run = [sys.executable, str(RUN.parent / "many.py"), "--items", "20", "--rounds", "1", "--dir", str(tmp_path)]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    claims = {figure["name"]: (figure["sign"], figure["target"]) for figure in json.loads(done.stdout)["figures"]}
    assert claims == {"many": ("<=", 3.0), "many-missing": (">=", 5.0)}


def test_orders_are_replayed_against_one_that_knows_the_future() -> None:
    """The default order would rest on figures that nobody can repeat."""
    run = [sys.executable, str(RUN.parent / "replay.py"), "--length", "2000", "--json"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for shares in json.loads(done.stdout)["traces"].values():
        assert shares.keys() == {*ORDERS, "offline"}
        best = shares.pop("offline")
        assert all(share["bytes"] <= best["bytes"] for share in shares.values())


def test_use_and_release_are_two_calls(report: dict[str, Any]) -> None:
    """On a network file system each further call is a round trip to the server, for every use."""
    (calls,) = (figure for figure in report["figures"] if figure["name"] == "calls")
    assert (calls["least"], calls["most"], calls["met"]) == (2, 2, True)


def test_the_benchmark_of_files_by_content_starts() -> None:
    """Whoever wants to repeat its figures would meet an import that is not there any more."""
    script = RUN.with_name("content.py")
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--dvc" in done.stdout
