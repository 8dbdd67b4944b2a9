"""Storms on several hosts at once, on real NFS, and what befalls hosts meanwhile: see `ordeal.py`.

The seed is printed, and can be given: SEED=…; STORM=10 makes the storms ten times as long. `make test-nfs` has all of
it, for each version of the protocol; other runs leave out what takes more than a minute.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

import figures
from nfs.conftest import FULL
from nfs.lab import Lab
from nfs.ordeal import Ordeal
from races.storm import make_items

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
TIMES = int(os.environ.get("STORM", "1"))

#: What befalls all storms, those of `make test-nfs`, and of these those of three hosts.
ALWAYS = ("lose_packets", "part_briefly")
IN_FULL = ("stand_still_briefly", "restart_server")
OF_THREE = ("crash_client",)

#: What is told of each storm.
TOLD = "uses,evictions,reaped,kills,stops,partitions,freezes,crashes,restarts,packets lost,looks".split(",")


@pytest.fixture
def items(tmp_path: Path) -> str:
    path = tmp_path / "items.json"
    path.write_text(json.dumps(make_items(tmp_path / "sources")))
    return str(path)


@pytest.mark.parametrize("hosts", [2, 3] if FULL else [2])
def test_a_storm_of_several_hosts(mounted: Lab, version: str, hosts: int, items: str, tmp_path: Path) -> None:
    """Jobs on two nodes would read what a cleaner on one of them has deleted, or their uses would be lost.

    Of two hosts none may lose a lease, whatever befalls it; of three the first may not.
    """
    print(f"seed {SEED}")
    began = time.monotonic()
    everything = hosts > 2
    ordeal = Ordeal(mounted, hosts, items, SEED)
    ordeal.begin(may_be_robbed=hosts - 1 if everything else 0)
    ordeal.go_on()
    for _ in range(TIMES):
        ordeal.befall(*ALWAYS, *(IN_FULL if FULL else ()), *(OF_THREE if everything else ()))
        if everything:
            ordeal.fall_silent()
            ordeal.go_on()
        ordeal.recover()
    wrong = ordeal.end()
    violations, uses = ordeal.judged(tmp_path)
    totals = ordeal.totals()
    print(version, hosts, dict(totals), uses, "uses in the history", f"{time.monotonic() - began:.0f} s")
    assert [*wrong, *violations] == []
    assert totals["uses"] > 0
    assert totals["evictions"] > 0
    assert totals["packets lost"] > 0
    told = {what: totals[what] for what in TOLD}
    seconds = round(time.monotonic() - began)
    figures.tally("nfs storm", version, hosts=hosts, **told, **{"in the history": uses, "seconds": seconds})


@pytest.mark.parametrize("version", ["4.2"])
@pytest.mark.parametrize("mutant", ["list, then delete", "reap on suspicion"] if FULL else ["reap on suspicion"])
def test_the_storm_would_notice(mounted: Lab, mutant: str, items: str) -> None:
    """A storm that cannot fail would say nothing: wrong protocols, on one of two hosts, must be caught in it.

    It rages until then. A listing on NFS is out of date so often that this takes seconds.
    """
    print(f"seed {SEED}")
    ordeal = Ordeal(mounted, 2, items, SEED)
    ordeal.begin(may_be_robbed=0, mutant=mutant)
    ordeal.wait_until(lambda: ordeal.seen() != [], f"{mutant} is caught", in_order=False)
    print(*ordeal.seen(), sep="\n")
    ordeal.end()
    figures.tally("nfs mutant", mutant, uses=ordeal.totals()["uses"])


@pytest.mark.skipif(not FULL, reason="only `make test-nfs` tries the watch itself")
@pytest.mark.parametrize("version", ["4.2"])
def test_the_watch_would_notice(mounted: Lab, items: str) -> None:
    """What is visible and not whole would be found out only by whoever happens to read it."""
    print(f"seed {SEED}")
    ordeal = Ordeal(mounted, 2, items, SEED)
    ordeal.begin(may_be_robbed=0)
    ordeal.go_on()
    damage = f"for file in {mounted.server.place}/.sc-dtool/items/*/*/g*/payload/file*; do : >$file; done"

    def is_seen() -> bool:
        mounted.server.run("sh", "-c", damage)
        return any(line.startswith("seen on the server") for line in ordeal.seen())

    ordeal.wait_until(is_seen, "damage is seen", in_order=False)
    ordeal.end()
