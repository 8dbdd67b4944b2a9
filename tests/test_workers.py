"""Worker processes: what they have leased is released when they end, however they were started and are ended."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sccache_dtool.cache import Cache
from sccache_dtool.protocol import program

METHODS = ["spawn", "forkserver", "fork"]

_WORK = """
import multiprocessing, sys
from sccache_dtool import Cache

{begin}

def work(root, source):
    work.lease = Cache(root).use(source)

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[3]).Process(target=work, args=sys.argv[1:3])
    process.start()
    process.join()
    {end}
    sys.exit(process.exitcode)
"""

_POOL = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from sccache_dtool import Cache

kept = []

def work(root, source):
    kept.append(Cache(root).use(source))

if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[3])) as pool:
        for one in [pool.submit(work, *sys.argv[1:3]) for _ in range(4)]:
            one.result()
"""


@pytest.fixture
def run(tmp_path: Path, source: str) -> Callable[[str, str], Cache]:
    """Runs a program as a file, with a start method; returns its cache, and expects that it succeeds."""

    def run_file(text: str, method: str) -> Cache:
        (tmp_path / "work.py").write_text(text)
        root = tmp_path / "cache"
        Cache(root).init()
        done = subprocess.run(
            [sys.executable, "work.py", root, source, method],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return Cache(root)

    return run_file


def ended(cache: Cache) -> list[str]:
    """How the leases in the cache have ended; there are none left, nor holders."""
    found = list(cache.items())
    assert sum(item.leases for item in found) == 0
    assert cache.overview().holders == 0
    return sorted(use.how for item in found for use in cache.uses(item.key))


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_ends_releases_what_it_has_leased(run: Callable[[str, str], Cache], method: str) -> None:
    """The workers of a DataLoader would leave leases that other hosts respect for twelve hours."""
    assert ended(run(_WORK.format(begin="", end=""), method)) == ["released"]


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_releases_what_it_has_leased_while_it_was_loaded(
    run: Callable[[str, str], Cache], method: str
) -> None:
    """What a program leases as it is loaded is leased by each worker, which forgets whom to call at its end."""
    begin = "early = Cache(sys.argv[1]).use(sys.argv[2])"
    assert set(ended(run(_WORK.format(begin=begin, end=""), method))) == {"released"}


def test_a_worker_leaves_alone_what_its_parent_has_leased(run: Callable[[str, str], Cache]) -> None:
    """A worker that ends would take the data from the program that started it."""
    end = "early.check(); assert sum(item.leases for item in Cache(sys.argv[1]).items()) == 1"
    begin = "early = Cache(sys.argv[1]).use(sys.argv[2])"
    assert ended(run(_WORK.format(begin=begin, end=end), "fork")) == ["released"] * 2


@pytest.mark.parametrize("method", METHODS)
def test_the_workers_of_a_pool_release_what_they_have_leased(run: Callable[[str, str], Cache], method: str) -> None:
    """The workers of a ProcessPoolExecutor would leave leases that other hosts respect for twelve hours."""
    assert ended(run(_POOL, method)) == ["released"] * 4


def test_what_forks_workers_as_multiprocessing_does_is_told_once(
    make_cache: Callable[..., Cache], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of pathos or Celery would leave leases; or a program that uses a million items, as many finalizers."""
    registered: list[object] = []
    told: list[Any] = []

    def finalize(nothing: None, act: Callable[[], None], *, exitpriority: int) -> None:
        registered.append(act)

    def register(worker: object, act: Callable[[object], None]) -> None:
        told.append((worker, act))

    util = types.ModuleType("billiard.util")
    monkeypatch.setitem(sys.modules, "billiard.util", util)  # half loaded, by another thread
    monkeypatch.setattr(program, "worker_pools", {})
    make_cache().use(source)
    util.__dict__.update(_exit_function=None, Finalize=finalize, register_after_fork=register)
    for _ in range(3):
        cache = make_cache()
        cache.use(source)
        cache.close()
    assert registered == [program._close_all]
    (worker, act), *_ = told
    registered.clear()  # as a worker does at its beginning
    act(worker)
    make_cache().use(source)
    assert registered == [program._close_all]
