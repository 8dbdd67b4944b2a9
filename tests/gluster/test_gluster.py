"""Two clients of a GlusterFS: what one remembers must never cost the other its data."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from gluster.conftest import Volume
from races.storm import make_items

_STORM = str(Path(__file__).resolve().parents[1] / "nfs" / "storm_on_host.py")

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
WEATHER = {"uses": 60, "evictions": 10, "seconds": 60, "users": 2, "evictors": 1}


def sc_dtool(*words: str) -> subprocess.Popen[str]:
    """Begin a command of the package."""
    return python("-m", "sccache_dtool", *words)


def python(*words: str) -> subprocess.Popen[str]:
    """Begin a Python."""
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], *codes: int) -> str:
    """What it prints, at its end."""
    out, err = process.communicate()
    assert process.returncode in (codes or (0,)), (out, err)
    return out


def test_gluster_is_fit_for_two_clients(volume: Volume) -> None:
    """Users of GlusterFS would be told that it is unfit, or nobody would notice that it has become so."""
    for mount in volume.mounts[:1]:
        (mount / "place").mkdir()
    places = [str(mount / "place") for mount in volume.mounts]
    peer = sc_dtool("doctor", "--verify-filesystem", places[1], "--peer")
    said = end(sc_dtool("-f", "json", "doctor", "--verify-filesystem", places[0], "--wait", "60s"))
    end(peer)
    records = [json.loads(line) for line in said.splitlines()]
    for record in records:
        print(record)
    assert records[0]["fitness"] == "fit"
    assert [os.listdir(place) for place in places] == [[], []]


def test_a_storm_of_two_clients(volume: Volume, tmp_path: Path) -> None:
    """Jobs on two nodes would read what a cleaner on one of them has deleted, or their uses would be lost."""
    print(f"seed {SEED}")
    items = tmp_path / "items.json"
    items.write_text(json.dumps(make_items(tmp_path / "sources")))
    caches = [str(mount / "cache") for mount in volume.mounts]
    end(sc_dtool("-C", caches[0], "init"))
    raging = [
        python(_STORM, "rage", cache, json.dumps({**WEATHER, "seed": SEED + number}), str(items))
        for number, cache in enumerate(caches)
    ]
    journal: dict[str, list[str]] = {}
    for process in raging:
        said = json.loads(end(process))
        print(said["counts"])
        assert [*said["wrong"], *said["journal"]["violation"]] == []
        assert said["counts"]["uses"] > 0
        for kind, lines in said["journal"].items():
            journal.setdefault(kind, []).extend(lines)
    end(sc_dtool("-C", caches[0], "reap"))
    noted = tmp_path / "journal.json"
    noted.write_text(json.dumps(journal))
    found = json.loads(end(python(_STORM, "judge", caches[1], str(noted), str(items))))
    print(found["in history"], "uses in the history")
    assert found["violations"] == []
