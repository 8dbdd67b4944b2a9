"""Many ask for one missing item at once: one downloads, whatever happens to it, and all get the same complete path."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import httpserver
from races.actors import findings, generations, left_in, names
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol.election import make_election
from waiting import PATIENCE

BODY = random.Random(4).randbytes(300_000)
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
MANY = 32


class Process:
    """Somebody who uses an item: a process, what it prints, and on whose behalf it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def heard(self, text: str) -> str:
        """Wait until it says something on standard error; the line."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return line
        raise AssertionError(f"process {self.pid} ended with {self.process.wait()} and never said {text!r}")

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, what it printed, and what it said since the last `heard`."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out.removesuffix("\n"), err

    def freeze(self) -> None:
        """Stop it, and wait until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def start(place: str) -> Iterator[Callable[..., Process]]:
    """Starts processes that use the cache; they are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start_(*argv: str, **more: Any) -> Process:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        started.append(process)
        return Process(process)

    yield start_
    for process in started:
        process.kill()
        with contextlib.suppress(ValueError):
            process.communicate(timeout=PATIENCE)


@pytest.fixture
def server() -> Iterator[httpserver.Server]:
    with httpserver.serve() as server:
        yield server


@pytest.fixture
def start_job(start: Callable[..., Process]) -> Callable[[], Process]:
    """Makes processes on whose behalf items are used: the end of one ends its leases."""
    return lambda: start("cat", stdin=subprocess.PIPE)


@pytest.fixture
def use(place: str, start: Callable[..., Process]) -> Callable[..., Process]:
    """Starts `sc-dtool use URL DIGEST`."""

    def use_(url: str, *options: str, job: Process | None = None) -> Process:
        holder = f"pid:{os.getpid() if job is None else job.pid}"
        words = ["-m", "sccache_dtool", "--cache-dir", place, "use", "--holder", holder, *options, url, DIGEST]
        return start(sys.executable, *words)

    return use_


PROGRAM = """
import os, sys
from sccache_dtool import Cache, log
place, url, digest = sys.argv[1:]
log.show(log.NOTE, lambda level, text: print(text, file=sys.stderr, flush=True))
lease = Cache(place).use(url, digest)
print(os.fspath(lease), flush=True)
sys.stdin.read()
"""


def is_body(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read() == BODY


def copies(place: str) -> list[str]:
    """The paths of all copies that are visible."""
    layout = Layout(place)
    keys = [key for shard in names(layout.items) for key in names(layout.items, shard)]
    return [layout.generation(key, generation) for key in keys for generation in generations(place, key)]


def mend(cache: Cache) -> None:
    """What `doctor --fix` does; nothing may be left that only a person can judge."""
    for finding in cache.examine():
        assert finding.repair is not None, finding
        with contextlib.suppress(FileNotFoundError):
            finding.repair()


@pytest.mark.parametrize("kind", ["command", "program"])
def test_one_download_for_many(
    place: str, server: httpserver.Server, use: Callable[..., Process], start: Callable[..., Process], kind: str
) -> None:
    """A hundred jobs of an array that start at once would each download the same file."""
    url = server.page("/ref.bin", BODY, stall_after=1000)
    if kind == "command":
        asking = [use(url) for _ in range(MANY)]
    else:
        argv = (sys.executable, "-c", PROGRAM, place, url, DIGEST)
        asking = [start(*argv, stdin=subprocess.PIPE) for _ in range(MANY)]
    server.wait_for_gets("/ref.bin", timeout=PATIENCE)
    cache = Cache(place, fs=FileSystem())
    winner = make_election(cache.store, cache.key_for([url, DIGEST])[:32]).winner()
    (downloader,) = (one for one in asking if f"process {one.pid} " in str(winner))
    for one in asking:
        if one is not downloader:
            assert f"process {downloader.pid} " in one.heard("waiting for")
    assert copies(place) == []
    server.release()
    if kind == "command":
        ended = [one.end() for one in asking]
        assert {code for code, _, _ in ended} == {0}
        paths = {out for _, out, _ in ended}
    else:
        paths = {(one.process.stdout.readline() if one.process.stdout else "").strip() for one in asking}
    (path,) = paths
    assert is_body(path)
    assert server.gets["/ref.bin"] == 1
    assert len(copies(place)) == 1
    assert names(Layout(place).tmp) == []
    (item,) = cache.items()
    assert item.leases == MANY
    assert not cache.evict_if_idle(item.key)
    if kind == "program":
        assert {one.end()[0] for one in asking} == {0}
        (item,) = cache.items()
        assert (item.leases, item.uses) == (0, MANY)


def test_the_downloader_is_killed(
    place: str, server: httpserver.Server, use: Callable[..., Process], start_job: Callable[[], Process]
) -> None:
    """All would wait for a dead downloader until its lock expires, and see what it has left half done."""
    url = server.page("/ref.bin", BODY, stall_after=1000)
    its_job = start_job()
    downloader = use(url, job=its_job)
    server.wait_for_gets("/ref.bin", timeout=PATIENCE)
    asking = [use(url) for _ in range(6)]
    for one in asking:
        assert f"process {downloader.pid}" in one.heard("waiting for")
    downloader.kill()
    server.wait_for_gets("/ref.bin", 2, timeout=PATIENCE)  # the lock would have been good for another five minutes
    assert copies(place) == []
    assert all(one.process.poll() is None for one in asking)
    server.release()
    ended = [one.end() for one in asking]
    assert {code for code, _, _ in ended} == {0}
    (path,) = {out for _, out, _ in ended}
    assert is_body(path)
    assert len(copies(place)) == 1
    assert server.gets["/ref.bin"] == 2
    its_job.kill()
    cache = Cache(place, fs=FileSystem())
    mend(cache)
    assert names(Layout(place).tmp) == []
    assert findings(cache) == []


def test_the_downloader_and_its_job_are_killed(
    place: str, server: httpserver.Server, use: Callable[..., Process], start_job: Callable[[], Process]
) -> None:
    """What a crashed node has half downloaded would fill the disk for ever, if nobody wants the item again."""
    url = server.page("/ref.bin", BODY, stall_after=1000)
    its_job = start_job()
    downloader = use(url, job=its_job)
    server.wait_for_gets("/ref.bin", timeout=PATIENCE)
    its_job.kill()
    downloader.kill()
    assert len(names(Layout(place).tmp)) == 1
    assert copies(place) == []
    cache = Cache(place, fs=FileSystem())
    assert [text for text in findings(cache) if "the work area of an interrupted fetch" in text]
    cache.clean(Rules(everything=True))
    assert left_in(place) == {}
    assert findings(cache) == []


def test_the_downloader_is_frozen(
    place: str, server: httpserver.Server, use: Callable[..., Process], start_job: Callable[[], Process]
) -> None:
    """Who waits for a stopped downloader would wait without end, or not learn whom to wake."""
    url = server.page("/ref.bin", BODY, stall_after=1000)
    downloader = use(url)
    server.wait_for_gets("/ref.bin", timeout=PATIENCE)
    downloader.freeze()
    patient = use(url)
    code, out, err = use(url, "--wait", "1s").end()
    assert (code, out) == (11, "")
    assert f"process {downloader.pid}" in err
    assert server.gets["/ref.bin"] == 1
    server.release()
    downloader.thaw()
    ended = [downloader.end(), patient.end()]
    assert {code for code, _, _ in ended} == {0}
    (path,) = {out for _, out, _ in ended}
    assert is_body(path)
    assert server.gets["/ref.bin"] == 1


def taken_for_dead(place: str) -> None:
    """What a host does that cannot see the frozen process, once a whole lifetime has passed without a heartbeat."""
    layout = Layout(place)
    for name in names(layout.holders):
        if name.startswith("p"):
            os.rename(f"{layout.holders}/{name}", f"{layout.gone}/{name}")


def test_a_frozen_downloader_wakes_up_and_its_work_area_is_gone(
    place: str, server: httpserver.Server, use: Callable[..., Process], start_job: Callable[[], Process]
) -> None:
    """A downloader that slept while it was cleared away would publish what is half deleted."""
    url = server.page("/ref.bin", BODY, stall_after=1000)
    its_job = start_job()
    downloader = use(url, job=its_job)
    server.wait_for_gets("/ref.bin", timeout=PATIENCE)
    downloader.freeze()
    its_job.kill()  # so that its holder is proved to be gone, and whatever is held in its name
    taken_for_dead(place)
    cache = Cache(place, fs=FileSystem())
    mend(cache)
    assert names(Layout(place).tmp) == []
    patient = use(url)
    assert f"process {downloader.pid}" in patient.heard("waiting for")
    server.release()
    downloader.thaw()
    code, out, err = downloader.end()
    patient_code, path, _ = patient.end()
    assert patient_code == 0
    assert is_body(path)
    if code:  # it may say that it failed, or go on with what the other has fetched
        assert (code, out) == (75, ""), err
    else:
        assert out == path
    mend(cache)
    assert len(copies(place)) == 1
    assert names(Layout(place).tmp) == []
    cache.release([cache.owner(f"pid:{os.getpid()}")], cache.key_for([url, DIGEST]))
    assert cache.evict_if_idle(cache.key_for([url, DIGEST]))
    assert left_in(place) == {}
    assert findings(cache) == []


def test_what_a_killed_downloader_has_left_is_tidied_though_its_job_goes_on(
    place: str, server: httpserver.Server, use: Callable[..., Process]
) -> None:
    """Of a download that ran out of memory, gigabytes would lie in `tmp/` for as long as a login session lasts."""
    url = server.page("/ref.bin", BODY, stall_after=1000)
    downloader = use(url)
    server.wait_for_gets("/ref.bin", timeout=PATIENCE)
    downloader.kill()
    mend(Cache(place, fs=FileSystem()))
    assert names(Layout(place).tmp) == []
