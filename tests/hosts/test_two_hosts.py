"""Two hosts, as name spaces, on one cache: neither takes what a living process of the other holds.

In each test `a` and `b` are told apart by one thing only, whichever it is that tells hosts apart in reality: the boot
id (two machines, which may even have one host name), or the PID name space (two containers of one machine).
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import httpserver
from hosts.machine import Done, Host
from sccache_dtool.cache import Cache
from sccache_dtool.clock import iso
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import HolderName, Layout
from sccache_dtool.liveness import lifetime

pytestmark = pytest.mark.hosts

BOOT = "11111111-2222-3333-4444-555555555555"

#: How the two hosts are made: names, and boot ids (None: one of its own).
KINDS = {
    "two machines of one name": (("node1", None), ("node1", None)),
    "two containers of one machine": (("web", BOOT), ("db", BOOT)),
}

#: Holds a lease in Python until its standard input ends; prints the path first.
PROGRAM = """
import os, sys
from sccache_dtool import Cache
with Cache(sys.argv[1]).use(sys.argv[2]) as path:
    print(path, flush=True)
    sys.stdin.read()
"""

#: All that ends leases or deletes data, and its exit codes.
TAKER = """
import sys
from sccache_dtool.cli.main import run
place, key = sys.argv[1:]
commands = ["reap"], ["clean", "--all", "-y"], ["doctor", "--fix"], ["rm", key]
print([int(run(["--cache-dir", place, *words])) for words in commands])
"""

#: A cleaner that stands still when it has been elected and closes the first gate, until its standard input ends.
SLOW_CLEANER = """
import sys
from sccache_dtool.cache import Cache
from sccache_dtool.clock import iso
from sccache_dtool.policy.rules import Rules
from sccache_dtool.disk.filesystem import FileSystem
class Slow(FileSystem):
    def rmdir(self, path, **more):
        print(path, flush=True)
        sys.stdin.read()
        super().rmdir(path, **more)
print(len(Cache(sys.argv[1], fs=Slow()).clean(Rules(everything=True)).removed))
"""


class Pair:
    """Two hosts, a cache, and a file to be cached."""

    def __init__(self, a: Host, b: Host, place: str, source: str) -> None:
        self.a = a
        self.b = b
        self.place = place
        self.source = source
        self.cache = Cache(place, fs=FileSystem())
        self.key = self.cache.key_for([source])

    def on(self, host: Host, *words: str) -> Done:
        """A command on this cache, run on a host."""
        return host.sc_dtool("--cache-dir", self.place, *words)

    def job(self, host: Host, pid: int | None = None) -> int:
        """A process on a host that can hold leases; with `pid`, of that number."""
        if pid is not None and not host.number(pid):
            pytest.skip("process numbers cannot be chosen here")
        started = host.start("cat")
        assert pid is None or started == pid
        return started

    def held(self, host: Host, job: int, *options: str) -> str:
        """Let a job hold the item; the path."""
        code, out, err = self.on(host, "use", "--holder", f"pid:{job}", *options, self.source)
        assert code == 0, err
        return out.rstrip("\n")

    def leases(self) -> int:
        """How many are held."""
        return self.cache.item(self.key).leases

    def cannot_be_taken_by(self, host: Host, path: str) -> None:
        """Try all on a host that ends leases or deletes data."""
        before = self.leases()
        done = host.run(sys.executable, "-c", TAKER, self.place, self.key)
        assert done.out.splitlines()[-1] == "[0, 0, 0, 14]", done
        assert done.out.startswith("ended 0 leases"), done
        assert self.leases() == before
        assert Path(path).read_bytes() == Path(self.source).read_bytes()


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "ref.bin"
    path.write_bytes(random.Random(5).randbytes(100_000))
    return str(path)


@pytest.fixture
def pair(tmp_path: Path, source: str) -> Iterator[Callable[[str], Pair]]:
    """Makes the two hosts, in one of the KINDS."""
    with ExitStack() as stack:

        def make(kind: str) -> Pair:
            place = str(tmp_path / "cache")
            Cache(place, fs=FileSystem()).init()
            a, b = (
                stack.enter_context(Host(name, {"XDG_STATE_HOME": str(tmp_path / f"state{number}")}, boot))
                for number, (name, boot) in enumerate(KINDS[kind])
            )
            return Pair(a, b, place, source)

        yield make


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_of_one_host_is_used_on_the_other(pair: Callable[[str], Pair], kind: str) -> None:
    """Locks of a session would be ended on a host that cannot see its holder, or stay when its holder has died."""
    two = pair(kind)
    job = two.job(two.a)
    session = two.on(two.a, "session", "create", "--holder", f"pid:{job}", "--add", f"{two.source}:/ref").out.strip()
    lock = two.on(two.b, "lock", "get", session, "/ref").out.strip()
    path = json.loads(two.on(two.a, "lock", "show", lock, "-f", "json").out)["path"]
    two.cannot_be_taken_by(two.b, path)
    two.cannot_be_taken_by(two.a, path)
    two.a.kill(job)
    assert two.on(two.b, "reap").out == "ended 0 leases\n"
    assert f"ended session {session}: " in two.on(two.a, "reap").out
    assert two.leases() == 0
    assert two.on(two.b, "lock", "get", session, "/ref").code == 2
    assert "was already released" in two.on(two.b, "lock", "release", lock).out


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_living_process_holds_stays(pair: Callable[[str], Pair], kind: str) -> None:
    """A clean on one node would delete what a job on another node, or in another container, is reading."""
    two = pair(kind)
    job = two.job(two.a, 4000)
    path = two.held(two.a, job)
    two.cannot_be_taken_by(two.b, path)
    code, out, _ = two.on(two.b, "why", "ref.bin")
    assert code == 0
    assert "unknown" in out
    two.job(two.b, 4000)  # a process of the same number says nothing of the other
    two.cannot_be_taken_by(two.b, path)
    two.b.kill(4000)  # nor does its end
    two.cannot_be_taken_by(two.b, path)
    two.cannot_be_taken_by(two.a, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_process_is_reaped_only_where_that_is_proved(pair: Callable[[str], Pair], kind: str) -> None:
    """A lease would be ended on a guess, or kept for ever although its own host knows that its process is gone."""
    two = pair(kind)
    job = two.job(two.a)
    path = two.held(two.a, job)
    two.a.kill(job)
    two.cannot_be_taken_by(two.b, path)
    code, out, _ = two.on(two.b, "why", "ref.bin")
    assert code == 0
    assert "kept: 1 lease" in out
    where = "of another host" if KINDS[kind][0][1] is None else "in another container"
    assert f"unknown, process {job} is {where}" in out
    code, out, _ = two.on(two.a, "reap")
    assert code == 0
    assert f"process {job} of this boot is gone" in out
    assert two.leases() == 0
    assert two.on(two.b, "clean", "--all", "-y")[0] == 0
    assert not os.path.exists(path)
    (use,) = two.cache.uses(two.key)
    assert use.how == "reaped"


def test_after_a_power_failure_the_next_boot_cannot_tell(pair: Callable[[str], Pair]) -> None:
    """After a node's crash another process with the old number would keep its leases alive, or lose its own."""
    two = pair("two machines of one name")
    path = two.held(two.a, two.job(two.a, 4000))
    two.a.power_off()
    two.cannot_be_taken_by(two.b, path)


def test_a_lapsed_lifetime_counts_where_the_process_cannot_be_seen(pair: Callable[[str], Pair]) -> None:
    """A job that is alive would lose its data on its own host, or a dead node's leases would be kept for ever.

    The holder is entered again as one that came 13 hours ago, which is what an end that has passed looks like; nobody
    has to wait for it.
    """
    two = pair("two machines of one name")
    if (kind := lifetime.mount_type(two.place)) not in lifetime.ONE_CLOCK:
        pytest.skip(f"fixed ends say nothing on {kind or 'this file system'}")
    job = two.job(two.a)
    path = two.held(two.a, job, "--ttl", "12h")
    two.cannot_be_taken_by(two.b, path)
    layout = Layout(two.place)
    (name,) = (name for text in os.listdir(layout.holders) if (name := HolderName.parse(text)))
    entered, ended = f"{layout.holders}/{name}", f"{layout.holders}/{name._replace(end=name.end - 13 * 3600)}"
    os.rename(entered, ended)
    two.cannot_be_taken_by(two.b, path)  # the server's clock may have been set meanwhile
    text = os.readlink(ended)
    os.unlink(ended)
    os.symlink(text.replace(json.loads(text)["since"], iso(time.time() - 13 * 3600)), ended)
    two.cannot_be_taken_by(two.a, path)
    code, out, _ = two.on(two.b, "reap")
    assert code == 0
    assert "its lifetime of 12 h ended" in out
    assert two.leases() == 0
    assert two.on(two.b, "rm", two.key)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_cleaners_one_works(pair: Callable[[str], Pair], kind: str) -> None:
    """Cron jobs of several nodes would clean at once, or not say why they did not."""
    two = pair(kind)
    job = two.job(two.a)
    two.held(two.a, job)
    assert two.on(two.a, "unuse", "--holder", f"pid:{job}", two.source)[0] == 0
    cleaner = two.a.start(sys.executable, "-c", SLOW_CLEANER, two.place)
    assert two.a.said(cleaner).endswith("/use")
    code, out, err = two.on(two.b, "clean", "--all", "-y")
    assert (code, out) == (14, "")
    assert f"@{two.a.name}, process {cleaner} " in err
    done = two.a.wait(cleaner)
    assert done.code == 0, done.err
    assert done.out.split() == ["1"]
    assert two.on(two.b, "clean", "--all", "-y")[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_one_download_for_two_hosts(pair: Callable[[str], Pair], kind: str) -> None:
    """Jobs on several nodes that start at once would each download the same file."""
    two = pair(kind)
    body = random.Random(6).randbytes(200_000)
    with httpserver.serve() as server:
        url = server.page("/ref", body, stall_after=1000)
        jobs = [(host, two.job(host)) for host in (two.a, two.b)]
        uses = [
            (host, host.start_sc_dtool("--cache-dir", two.place, "use", "--holder", f"pid:{job}", url))
            for _ in range(8)
            for host, job in jobs
        ]
        server.wait_for_gets("/ref", timeout=60)
        server.release()
        with ThreadPoolExecutor(2) as pool:  # each host's agent answers one question at a time
            ended = [*pool.map(lambda host: [h.wait(pid) for h, pid in uses if h is host], (two.a, two.b))]
        assert {done.code for of_host in ended for done in of_host} == {0}
        (path,) = {done.out for of_host in ended for done in of_host}
        assert Path(path.rstrip("\n")).read_bytes() == body
        assert server.gets["/ref"] == 1
        (item,) = two.cache.items()
        assert item.leases == 16


def test_a_program_on_one_host_and_an_eviction_on_another(pair: Callable[[str], Pair]) -> None:
    """A Python program would lose its data to a clean on another host, or block it after its end."""
    two = pair("two machines of one name")
    program = two.a.start(sys.executable, "-c", PROGRAM, two.place, two.source)
    path = two.a.said(program)
    two.cannot_be_taken_by(two.b, path)
    assert two.a.wait(program).code == 0
    assert two.on(two.b, "rm", two.key)[0] == 0
    assert not os.path.exists(path)
