"""Hosts whose clocks are an hour and a year apart, and clocks that step while a program runs: nobody alive is reaped.

The hosts are name spaces; libfaketime moves their wall clocks. The file system's clock is this machine's, as a file
server's is nobody's but its own.
"""

from __future__ import annotations

import functools
import glob
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cli.tool import PYTHON
from hosts.machine import Host
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.protocol.holders import BEATS_PER_LIFETIME
from waiting import wait_until

pytestmark = pytest.mark.hosts

TTL = 3.0

#: Holds a lease and beats until its standard input ends; says when it was revoked.
PROGRAM = """
import sys
from sccache_dtool import Cache
cache = Cache(sys.argv[1], on_lost=lambda error: print("lost", flush=True))
lease = cache.use(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""

#: Reaps as a cleaner does, but with no margin to wait for; says how many leases it ended, and what it knows of others.
REAPER = """
import sys, time
from sccache_dtool.cache import Cache
from sccache_dtool.liveness import lifetime
lifetime.MARGIN = 0.0
cache = Cache(sys.argv[1])
print(time.time(), len(cache.reap().leases))
"""


@functools.cache
def faketime() -> str | None:
    """Where libfaketime is; None if it is not installed."""
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    return found[0] if found else None


def skewed(offset: str, file: Path | None = None) -> dict[str, str]:
    """The environment of a host whose wall clock is wrong by so much; from a file, it can be made to step."""
    library = faketime()
    if library is None:
        pytest.skip("no libfaketime here (on Debian: libfaketime)")
    which = {"FAKETIME": offset} if file is None else {"FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1"}
    # Only the wall clock: what a file system says of its names, and clocks since boot, are nobody's to set.
    return {"LD_PRELOAD": library, "NO_FAKE_STAT": "1", "DONT_FAKE_MONOTONIC": "1", **which}


#: Where libfaketime keeps the clock of a process; what was killed leaves it behind.
CLOCKS = "/dev/shm/faketime_shm_*"


def remove_clocks_of_the_killed(others: set[str]) -> None:
    for path in set(glob.glob(CLOCKS)) - others:
        if not os.path.exists(f"/proc/{path.rpartition('_')[2]}"):
            Path(path).unlink(missing_ok=True)
            Path(path.replace("faketime_shm_", "sem.faketime_sem_")).unlink(missing_ok=True)


class Several:
    """Hosts on one cache, each with a clock of its own."""

    def __init__(self, stack: ExitStack, directory: Path, source: str) -> None:
        self._stack = stack
        stack.callback(remove_clocks_of_the_killed, set(glob.glob(CLOCKS)))
        self._directory = directory
        self._source = source
        # Old by all clocks: a fetch waits a moment for a new source, and libfaketime cannot wait with some offsets.
        os.utime(source, (1e9, 1e9))
        self.place = directory / "cache"
        cache = Cache(self.place, fs=FileSystem())
        cache.init()
        (self.place / ".sc-dtool" / "config.toml").write_text(f'[lease]\nheartbeat_ttl = "{TTL}s"\n')
        self._count = 0

    def host(self, environment: dict[str, str]) -> Host:
        self._count += 1
        own = {"XDG_STATE_HOME": str(self._directory / f"state-{self._count}")}
        boot = f"{self._count:08}-2222-3333-4444-555555555555"  # the same for all its processes
        return self._stack.enter_context(Host(f"h{self._count}", own | environment, boot))

    def hold(self, host: Host) -> int:
        """A program on `host` that holds a lease and beats."""
        pid = host.start(PYTHON, "-c", PROGRAM, str(self.place), self._source)
        said = host.said(pid)
        assert said == "held", host.wait(pid)
        return pid

    def reap(self, host: Host) -> int:
        """Leases that a cleaner on `host` ends now."""
        done = host.run(PYTHON, "-c", REAPER, str(self.place))
        assert done.code == 0, done
        return int(done.out.split()[1])

    def leases(self) -> int:
        return len(list(self.place.glob(".sc-dtool/items/*/*/g*/use/*")))

    def beats(self) -> list[int]:
        """The heartbeats that each holder has shown."""
        return [int(path.name.split(".")[1]) for path in self.place.glob(".sc-dtool/holders/p*")]

    def outlive(self, reapers: list[Host], lifetimes: float) -> None:
        """Let every holder live for so many more lifetimes, reaping all the while; none of it ends a lease."""
        number, last = self.leases(), max(self.beats()) + BEATS_PER_LIFETIME * lifetimes
        wait_until(lambda: any(map(self.reap, reapers)) or min(self.beats()) > last, "the holders beat")
        assert self.leases() == len(self.beats()) == number


@pytest.fixture
def several(tmp_path: Path, source: str) -> Iterator[Several]:
    with ExitStack() as stack:
        yield Several(stack, tmp_path, source)


OFFSETS = ["-1h", "+1h", "-366d", "+366d"]


def test_hosts_whose_clocks_disagree(several: Several) -> None:
    """A host whose clock is an hour or a year wrong would lose its data to others, or delete theirs."""
    clocks = [{}, *map(skewed, OFFSETS)]
    for clock in clocks:
        several.hold(several.host(clock))
    several.outlive([several.host(clock) for clock in clocks], lifetimes=1.2)


@pytest.mark.parametrize("whose", ["holder", "reaper"])
@pytest.mark.parametrize("offset", ["-366d", "+366d"])
def test_the_dead_are_reaped_whatever_the_clocks_say(several: Several, whose: str, offset: str) -> None:
    """What a killed program held would be kept for a year, because a clock is wrong by as much."""
    wrong = skewed(offset)
    holder, reaper = (several.host(wrong if whose == one else {}) for one in ("holder", "reaper"))
    holder.kill(several.hold(holder))
    assert several.reap(reaper) == 0
    wait_until(lambda: several.reap(reaper), "the lifetime of the dead one ends")
    assert several.leases() == 0


def test_clocks_that_step(several: Several, tmp_path: Path) -> None:
    """A clock that is set right, or wrong, while programs run would end their leases."""
    file = tmp_path / "clock"
    file.write_text("+0")
    stepping = skewed("", file)
    steady, unsteady = several.host({}), several.host(stepping)
    several.hold(steady)
    several.hold(unsteady)
    reapers = [several.host({}), several.host(stepping)]
    for offset in ("+366d", "-366d"):
        new = tmp_path / "new"
        new.write_text(offset)
        new.rename(file)
        several.outlive(reapers, lifetimes=1.2)


def test_the_clocks_here_are_really_wrong(several: Several, tmp_path: Path) -> None:
    """All that these tests show would be that hosts with right clocks get on with each other."""
    host = several.host(skewed("+366d"))
    script = "import os, sys, time; os.mkdir(sys.argv[1]); print(time.time(), os.stat(sys.argv[1]).st_mtime"
    script += ", time.clock_gettime(time.CLOCK_BOOTTIME))"
    wall, mtime, boot = map(float, host.run(PYTHON, "-c", script, str(tmp_path / "file")).out.split())
    assert wall - time.time() > 365 * 86400
    assert abs(mtime - time.time()) < 3600
    assert abs(boot - time.clock_gettime(time.CLOCK_BOOTTIME)) < 3600
