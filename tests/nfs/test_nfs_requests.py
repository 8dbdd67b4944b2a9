"""What operations cost a file server: requests on real NFS, as the kernel of a client counts them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import figures
from nfs.conftest import FULL
from nfs.lab import Lab

_PROGRAM = str(Path(__file__).with_name("requests_on_host.py"))

ITEMS = 10

#: The most requests for each of the items, with whichever version of the protocol.
MOST_EACH = {"look": 6, "du": 5.3, "evict": 20, "clean": 30}

#: The most requests of a command for one item.
MOST = {"sc-dtool use": 6, "sc-dtool unuse": 9}


#: Requests for each item beyond that, as attributes may be asked for again, and directories grow.
SLACK = 0.3

#: Items of the larger one of two sets and sessions, of which the other has half.
MANY = 100 if FULL else 40

#: The most requests for each item of a set or session, whatever it costs by itself.
MOST_OF_MANY = {
    "use --from of {}": 3,  # which copies there are, the lease, and the link
    "unuse of a set of {}": 2,  # the end of the lease, and the link
    "{} x lock get": 8,  # of which one is a heartbeat, before the lock is handed out
    "lock ls of {}": 5,
    "lock ls --session of {}": 2,
    "session rm of {}": 10,
}


def test_requests(mounted: Lab, version: str, tmp_path: Path) -> None:
    """A program that uses many items would be a burden to the file server, and wait for it at each of them.

    Attributes are remembered for long here, so that a slow machine asks for them no more often than a fast one.
    """
    sources = [str(tmp_path / f"source{number}") for number in range(MANY)]
    for source in sources:
        Path(source).write_text(source)
    client = mounted.clients[0]
    client.unmount()
    client.mount(version, "actimeo=600")
    assert client.sc_dtool("init").code == 0
    done = client.run(sys.executable, _PROGRAM, client.place, client.place.rpartition("/")[0], str(ITEMS), *sources)
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
    alone = [what for what in totals if str(MANY) not in what and str(MANY // 2) not in what]
    told = {f"{what} of {ITEMS}" if what in of_all else what: totals[what] for what in alone}
    figures.tally("nfs requests", version, **told)
    few, many = MANY // 2, MANY
    each = {what: (totals[what.format(many)] - totals[what.format(few)]) / (many - few) for what in MOST_OF_MANY}
    each["lock ls of {}"] = totals[f"lock ls of {many}"] / many  # it looks at all items, those without locks too
    assert {what: count for what, count in each.items() if count > MOST_OF_MANY[what] + SLACK} == {}
    single = totals["sc-dtool use"] + totals["sc-dtool unuse"]
    assert each["use --from of {}"] + each["unuse of a set of {}"] < single
    figures.tally(
        "nfs requests each",
        version,
        **{what.replace(" of {}", "").replace("{} x ", ""): round(count, 1) for what, count in each.items()},
    )
