"""Storms on several hosts at once, on real NFS: what one host's kernel remembers must never cost another its data.

The seed is printed, and can be given: SEED=…; STORM=10 makes the storms of `make test-nfs` ten times as long.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

import figures
from nfs.conftest import FULL
from nfs.lab import Lab
from races.storm import make_items

_PROGRAM = str(Path(__file__).with_name("storm_on_host.py"))

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
TIMES = float(os.environ.get("STORM", "1"))
USES, EVICTIONS, SECONDS = (int(800 * TIMES), int(80 * TIMES), 300 * TIMES) if FULL else (150, 20, 60)


@pytest.mark.parametrize("hosts", [2, 3] if FULL else [2])
def test_a_storm_of_several_hosts(mounted: Lab, version: str, hosts: int, tmp_path: Path) -> None:
    """Jobs on two nodes would read what a cleaner on one of them has deleted, or their uses would be lost."""
    print(f"seed {SEED}")
    items = tmp_path / "items.json"
    items.write_text(json.dumps(make_items(tmp_path / "sources")))
    assert mounted["a"].sc_dtool("init").code == 0
    running = {}
    for number, client in enumerate(mounted.clients[:hosts]):
        weather = {"seed": SEED + number, "uses": USES, "evictions": EVICTIONS, "seconds": SECONDS, "users": 3}
        weather["evictors"] = 1
        running[client] = client.start(sys.executable, _PROGRAM, "rage", client.place, json.dumps(weather), str(items))
    journal: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for client, pid in running.items():
        done = client.wait(pid)
        assert done.code == 0, done
        said = json.loads(done.out)
        print(client.name, said["counts"], *said["journal"]["violation"])
        assert [*said["wrong"], *said["journal"]["violation"]] == []
        assert said["counts"]["uses"] > 0
        assert said["counts"]["evictions"] > 0
        counts.update(said["counts"])
        for kind, lines in said["journal"].items():
            journal.setdefault(kind, []).extend(lines)
        assert client.sc_dtool("reap").code == 0  # who is killed on a host, nobody but that host can prove dead
    noted = tmp_path / "journal.json"
    noted.write_text(json.dumps(journal))
    judge = mounted.server.run(sys.executable, _PROGRAM, "judge", mounted.server.place, str(noted), str(items))
    assert judge.code == 0, judge
    found = json.loads(judge.out)
    print(found["in history"], "uses in the history")
    assert found["violations"] == []
    done = {what: counts[what] for what in ("uses", "evictions", "reaped", "kills", "stops")}
    figures.tally("nfs storm", version, hosts=hosts, **done, **{"in the history": found["in history"]})
