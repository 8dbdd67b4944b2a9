"""Use and release in one process that remembers the generation: calls counted, and time beside what it stands on."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import flufl.lock
from measure import Figure, count, in_turns, ratio

from sccache_dtool import Cache
from sccache_dtool.disk.filesystem import FileSystem

#: Operations in a round: few, so that a busy moment of the machine strikes all sides alike.
_USES = 100
_LOCKS = 10

#: Methods of FileSystem that are made of others, which are counted instead.
_COMPOSED = frozenset({"put_record", "get_record", "write_new", "make_dirs", "names_if_any"})


class Counting(FileSystem):
    """Notes the name of every call on the file system."""

    def __init__(self) -> None:
        self.calls: list[str] = []


def _noting(kind: str) -> Callable[..., Any]:
    def call(self: Counting, *arguments: Any, **more: Any) -> Any:
        self.calls.append(kind)
        return getattr(super(Counting, self), kind)(*arguments, **more)

    return call


for _kind in vars(FileSystem):
    if not _kind.startswith("_") and _kind not in _COMPOSED:
        setattr(Counting, _kind, _noting(_kind))


def figures(directory: Path, rounds: int, budget: float) -> Iterator[Figure]:
    """All figures of this module; `directory` is new, and on the file system that is to be measured."""
    source = directory / "reads.txt"
    source.write_text("ACGT\n")
    yield _calls(directory, source)
    yield from _times(directory, source, rounds, budget)


def _calls(directory: Path, source: Path) -> Figure:
    fs = Counting()
    cache = Cache(directory / "counted", fs=fs)
    cache.use(source).release()
    counts = []
    for _ in range(_USES):
        fs.calls.clear()
        with cache.use(source):
            pass
        counts.append(len(fs.calls))
    cache.close()
    return count("calls", "file-system calls of use and release", counts, 2)


def _times(directory: Path, source: Path, rounds: int, budget: float) -> Iterator[Figure]:
    cache = Cache(directory / "used")
    bare = _Bare(cache, source)
    lock = flufl.lock.Lock(str(bare.gate / "flufl.lock"), lifetime=timedelta(minutes=10))

    def ours() -> None:
        with cache.use(source):
            pass

    def flufl_lock() -> None:
        lock.lock()
        lock.unlock()

    runners = {
        "use and release": lambda: _typical(ours, [()] * _USES),
        "symlink and rename": lambda: _typical(bare.calls, bare.paths(_USES)),
        "flufl.lock": lambda: _typical(flufl_lock, [()] * _LOCKS),
    }
    for runner in runners.values():
        runner()
    times = in_turns(runners, rounds, budget)
    cache.close()
    yield ratio(
        "bare",
        "use and release, beside the bare symlink and rename",
        "use and release",
        "symlink and rename",
        times,
        "<=",
        2.0,
    )
    # What the next figure would be if we cost nothing beside the two system calls.
    yield ratio("limit", "flufl.lock, beside the bare symlink and rename", "flufl.lock", "symlink and rename", times)
    yield ratio(
        "flufl",
        "flufl.lock's lock and unlock, beside our use and release",
        "flufl.lock",
        "use and release",
        times,
        ">=",
        10.0,
    )


def _typical(operation: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> float:
    """Seconds of one call: the median of a round, which a few calls that others interrupted do not move."""
    seconds = []
    for each in arguments:
        begin = time.perf_counter()
        operation(*each)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


class _Bare:
    """The two system calls alone: same text and kind of names, in the very directories that the cache uses.

    In others they would not be comparable: what a new name costs depends on how full the directory is, and on ext4 on
    how full the part of the disk is where it put the directory (seen: 10 and 500 microseconds, in one run).
    """

    def __init__(self, cache: Cache, source: Path) -> None:
        with cache.use(source) as payload:
            self.gate = payload.parent.parent / "use"
            (lease,) = self.gate.iterdir()
            self._text = os.readlink(lease)
        self._history = self.gate.parent.parent / "history"
        self._holder = f"{lease.name.partition('-')[0]}-{os.urandom(6).hex()}"
        self._numbers = itertools.count()

    def paths(self, number: int) -> list[tuple[str, str, str]]:
        """What `number` calls are given, made before the clock runs."""
        ended = f"~{int(time.time() * 1000)}~released"
        names = [f"{self._holder}.{next(self._numbers)}" for _ in range(number)]
        return [(self._text, f"{self.gate}/{name}", f"{self._history}/{name}{ended}") for name in names]

    @staticmethod
    def calls(text: str, path: str, past: str) -> None:
        os.symlink(text, path)
        os.rename(path, past)
