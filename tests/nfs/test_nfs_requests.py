"""What operations cost a file server: requests on real NFS, as the kernel of a client counts them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import figures
from nfs.lab import Lab

_PROGRAM = str(Path(__file__).with_name("requests_on_host.py"))

ITEMS = 10

#: The most requests for each of the items, with whichever version of the protocol.
MOST_EACH = {"look": 6, "du": 5.3, "evict": 20, "clean": 29}

#: The most requests of a command for one item.
MOST = {"sc-dtool use": 6, "sc-dtool unuse": 9}


def test_requests(mounted: Lab, version: str, tmp_path: Path) -> None:
    """A program that uses many items would be a burden to the file server, and wait for it at each of them.

    Attributes are remembered for long here, so that a slow machine asks for them no more often than a fast one.
    """
    sources = [str(tmp_path / f"source{number}") for number in range(ITEMS)]
    for source in sources:
        Path(source).write_text(source)
    client = mounted.clients[0]
    client.unmount()
    client.mount(version, "actimeo=600")
    assert client.sc_dtool("init").code == 0
    done = client.run(sys.executable, _PROGRAM, client.place, client.place.rpartition("/")[0], *sources)
    assert done.code == 0, done
    found = json.loads(done.out)
    print(version, found)
    assert found["use"] == {"SYMLINK": ITEMS}
    assert found["release"] == {"RENAME": ITEMS}
    assert found["heartbeat"] == {"RENAME": 1}
    totals = {what: sum(kinds.values()) for what, kinds in found.items()}
    assert {what: totals[what] for what, most in MOST.items() if totals[what] > most} == {}
    assert {what: totals[what] for what, most in MOST_EACH.items() if totals[what] > most * ITEMS} == {}
    of_all = {"use", "release", *MOST_EACH}
    told = {f"{what} of {ITEMS}" if what in of_all else what: count for what, count in totals.items()}
    figures.tally("nfs requests", version, **told)
