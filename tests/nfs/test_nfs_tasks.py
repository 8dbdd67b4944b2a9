"""One command by tasks on several hosts, on real NFS, with clocks an hour apart: told once, whichever host is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli.tool import Done, wait_until
from nfs.lab import Lab, NfsHost

_PLAY = str(Path(__file__).parents[1] / "team" / "play.py")

#: Items in the cache: enough for each task to have some.
ITEMS = 40

_FILL = f"import sccache_dtool as s, sys; c = s.Cache(sys.argv[1]); [c.use(name=f'item-{{n}}') for n in range({ITEMS})]"


def start(mounted: Lab, plays: dict[int, str]) -> list[tuple[NfsHost, int]]:
    """Start a task on each of two hosts, on a cache with items that nobody uses."""
    first = mounted["a"]
    assert first.sc_dtool("init").code == 0
    first.do(sys.executable, "-c", _FILL, first.place)
    first.do("mkdir", "-p", events(first))
    running = []
    for rank, host in enumerate((first, mounted["b"])):
        told = [f"SC_DTOOL_TASK={rank}/2:{first.place}", f"PLAYS={json.dumps(plays)}", f"EVENTS={events(host)}"]
        words = ["-C", host.place, "-f", "json", "clean", "--all", "-y", "--trash", "1d"]
        running.append((host, host.start("setsid", "-w", "env", *told, sys.executable, _PLAY, *words)))
    return running


def events(host: NfsHost) -> str:
    """Where tasks say how far they are."""
    return f"{host.place}-events"


def trashed(mounted: Lab) -> int:
    """How many copies are in the trash, on the server."""
    return len(mounted.server.do("ls", f"{mounted.server.place}/.sc-dtool/trash").split())


def cleaned(host: NfsHost, pid: int) -> Done:
    """How a task has ended."""
    return Done(*host.wait(pid))


def test_two_hosts_clean_together(mounted: Lab, version: str) -> None:
    """A host would not see what there is to do for it, or the other not what has come of it; or both tell of it."""
    (a, first), (b, second) = start(mounted, {0: "wait@go", 1: "wait@go"})
    for rank in range(2):
        wait_until(lambda: f"waiting-{rank}" in mounted.server.do("ls", events(mounted.server)), "both evict")  # noqa: B023
    a.do("touch", f"{events(a)}/go")
    leader, helper = cleaned(a, first), cleaned(b, second)
    assert helper == Done(0, "", "")
    assert (leader.code, leader.err) == (0, "")
    total = leader.row("total")
    assert (total["items"], total["failed"], total["gone"]) == (ITEMS, 0, 0)
    assert trashed(mounted) == ITEMS
    assert mounted.server.do("ls", f"{mounted.server.place}/.sc-dtool/tmp") == ""


@pytest.mark.parametrize("lost", [0, 1])
def test_what_a_frozen_host_was_at_is_done_by_the_other(mounted: Lab, version: str, lost: int) -> None:
    """A host that hangs would hold up the job, or do harm, or tell of it once more when it goes on."""
    running = start(mounted, {lost: "hang@2", 1 - lost: "wait@hang"})
    wait_until(lambda: "hang" in mounted.server.do("ls", events(mounted.server)), "it hangs")
    host, pid = running[lost]
    host.freeze()
    try:
        done = cleaned(*running[1 - lost])
    finally:
        host.thaw()
    total = done.row("total")
    assert (done.code, total["failed"], total["gone"]) == (0, 0, 0)
    assert total["items"] == ITEMS or lost == 0  # who led has taken with it the count of what it had removed
    assert trashed(mounted) == ITEMS
    woken = cleaned(host, pid)
    assert (woken.code, woken.out) == (0, "")
    assert trashed(mounted) == ITEMS
    assert mounted.server.do("ls", f"{mounted.server.place}/.sc-dtool/tmp") == ""
