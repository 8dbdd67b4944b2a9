"""What goes wrong between hosts, on real NFS: a partition, a host that stands still, crashes, a new start."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from nfs.lab import Lab, NfsHost
from waiting import wait_until

#: A program that uses an item so often and gives it back, and says how often it has so far.
USER = """
import sys
from sccache_dtool import Cache
cache = Cache(sys.argv[1])
for number in range(int(sys.argv[3])):
    with cache.use(sys.argv[2]) as path:
        assert path.read_bytes() == b"data"
    print(number, flush=True)
"""

#: Seconds in which something must have happened; lifetimes of a few seconds have a margin of a minute.
PATIENCE = 180.0


def hold(host: NfsHost, source: str, *options: str) -> int:
    """Have a command run that holds the item until it is told to end."""
    pid = host.start_sc_dtool("--cache-dir", host.place, "run", *options, source, "--", "sh", "-c", "echo held; cat")
    assert host.said(pid) == "held"
    return pid


@pytest.mark.parametrize("version", ["4.2"])
def test_hosts_that_fall_silent(make_lab: Callable[..., Lab], version: str, source: str) -> None:
    """Cut off, frozen and crashed hosts keep what they use for their lifetime, and no longer; those that come back
    learn that they have lost it, before they read what is not there any more.
    """
    lab = make_lab(clients="abcd", skew={"b": 3600, "c": -3600})
    a, b, c, d = lab.clients
    with lab.mounted(version):
        a.sc_dtool("init")
        holding = {host: hold(host, source, "--ttl", "5s") for host in (b, c, d)}
        assert a.leases() == 3
        b.cut()
        c.freeze()
        d.crash()
        assert a.sc_dtool("clean", "--all", "-y").code == 0
        assert a.leases() == 3

        def reaped() -> bool:
            there = lab.server.run("sh", "-c", f"cat {lab.server.place}/.sc-dtool/items/*/*/*/payload/*")
            assert there.out == "data"
            return a.records("reap") != [] and a.leases() == 0

        wait_until(reaped, "the silent host's lease is reaped", patience=PATIENCE)
        assert a.sc_dtool("clean", "--all", "-y").code == 0
        assert lab.server.run("sh", "-c", f"ls -d {lab.server.place}/.sc-dtool/items/*/*/g*").code != 0
        b.heal()
        c.thaw()
        for host in (b, c):
            done = host.wait(holding[host])
            assert done.code in (0, 143), done  # of the command, which may end first
            assert "revoked" in done.err
        d.boot()
        d.connect()
        d.mount(version)
        assert d.sc_dtool("run", source, "--", "cat", "{}").out == "data"
        ends = [record["how"] for record in a.records("log", source)]
        assert sorted(ends) == ["reaped"] * 3 + ["released"]
        assert a.sc_dtool("doctor").code == 0


def test_a_server_that_restarts(mounted: Lab, version: str, source: str) -> None:
    """A power failure of the file server must cost no job its data, and no use its line in the history."""
    times = 400
    clients = mounted.clients[:2]
    assert clients[0].sc_dtool("init").code == 0
    running = {client: client.start(sys.executable, "-c", USER, client.place, source, str(times)) for client in clients}
    for client, pid in running.items():
        assert int(client.said(pid)) < times - 1
    mounted.server.crash()
    mounted.server.boot()
    mounted.server.connect()
    for client, pid in running.items():
        done = client.wait(pid)
        assert done.code == 0, done
    judge = mounted.server
    uses = judge.records("log", source)
    assert len(uses) == len({record["lease"] for record in uses}) == times * len(clients)
    assert judge.leases() == 0


def test_lifetimes_are_not_compared_with_another_hosts_clock(mounted: Lab, source: str) -> None:
    """A job on a node whose clock is an hour behind or ahead would lose its data at the first cleaning."""
    a, b = mounted.clients[:2]
    assert b.run("date", "+%s").out > a.run("date", "+%s").out
    for host in (a, b):
        assert host.sc_dtool("use", "--holder", f"job-{host.name}", "--ttl", "10m", source).code == 0
    for host in (a, b):
        assert host.sc_dtool("clean", "--all", "-y").code == 0
        assert host.leases() == 2


def test_one_of_two_hosts_downloads(mounted: Lab, source: str) -> None:
    """Every node of a job would download what one could, and the server keep as many copies."""
    a, b = mounted.clients[:2]
    assert a.sc_dtool("init").code == 0
    running = [
        (host, host.start_sc_dtool("--cache-dir", host.place, "use", "--holder", f"job-{host.name}-{number}", source))
        for number in range(4)
        for host in (a, b)
    ]
    for host, pid in running:
        assert host.wait(pid).code == 0
    item, *_ = (record for record in mounted.server.records("ls") if record["type"] == "item")
    assert (item["copies"], item["leases"]) == (1, 8)


def test_what_one_host_removes_another_does_not_use(mounted: Lab, source: str) -> None:
    """What a kernel remembers of an evicted copy must not be handed out: the job would find nothing there."""
    a, b = mounted.clients[:2]
    assert a.sc_dtool("init").code == 0
    for _ in range(5):
        path = b.sc_dtool("use", "--holder", "job", source).out.strip()
        assert b.do("cat", path) == "data"
        assert a.sc_dtool("rm", source).code == 14
        assert b.sc_dtool("unuse", "--holder", "job", source).code == 0
        assert a.sc_dtool("rm", source).code == 0


#: Remembers the way to a directory, and removes what is in it when another host has removed both.
REMOVER = """
import sys
from sccache_dtool.disk.filesystem import FileSystem
fs = FileSystem()
print(fs.names(sys.argv[1]), flush=True)
sys.stdin.read()
try:
    fs.rmdir(sys.argv[1])
except FileNotFoundError:
    print("gone")
"""


def test_what_another_host_has_deleted_is_gone(mounted: Lab, source: str) -> None:
    """A cleaning would fail with "Stale file handle" on every copy that another host has just evicted and deleted."""
    a, b = mounted.clients[:2]
    path = a.sc_dtool("use", "--holder", "job", source).out.strip()
    gate = f"{path[: path.index('/payload/')]}/use"
    remover = b.start(sys.executable, "-c", REMOVER, gate)
    assert b.said(remover) != "[]"
    assert a.sc_dtool("unuse", "--holder", "job", source).code == 0
    assert a.sc_dtool("rm", source).code == 0
    done = b.wait(remover)
    assert done.out == "gone\n", done
