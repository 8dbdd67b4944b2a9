"""The benchmarks run, and say what their README promises. Nothing is timed here: only calls are counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    scratch = tmp_path_factory.mktemp("benchmarks")
    done = subprocess.run(
        [sys.executable, str(RUN), "--json", "--rounds", "2", "--dir", str(scratch)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == []
    found: dict[str, Any] = json.loads(done.stdout)
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
        ("shell", ("<=", 1.6)),
    }
    for figure in report["figures"]:
        assert 0 < figure["least"] <= figure["value"] <= figure["most"]
        assert figure["rounds"] >= 2
        assert isinstance(figure["met"], bool)


def test_use_and_release_are_two_calls(report: dict[str, Any]) -> None:
    """On a network file system each further call is a round trip to the server, for every use."""
    (calls,) = (figure for figure in report["figures"] if figure["name"] == "calls")
    assert (calls["least"], calls["most"], calls["met"]) == (2, 2, True)
