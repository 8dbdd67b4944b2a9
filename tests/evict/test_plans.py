"""Plans that are read from files: large ones above all."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from faults import store_of
from sccache_dtool.catalog.loose import Loose
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.evict import plan_file
from sccache_dtool.policy.rules import Candidate, Plan
from sccache_dtool.pool import Pool


def candidate(number: int) -> Candidate:
    """A copy of which there is nothing but the name."""
    return Candidate(f"{number:032x}-reference.fa/g{number:016x}-1795293813-9000000-1-t59", 1, 1795293817.928 + number)


def plan_of(number: int) -> Iterator[str]:
    """The lines of a plan, made one by one."""
    return plan_file.encode(Plan(tuple(map(candidate, range(number))), (), 0, 0, None), "cache", 0.0, "ada@login1")


class _Postage(Pool):
    """A pool that counts what it would have to send to helpers."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def each(self, work: Callable[..., Any], tasks: Sequence[Any], again: Any = None) -> Iterator[Any]:
        for task in tasks:
            self.bytes += len(pickle.dumps((work, task)))
            yield work(task)


def test_files_that_dtool_left_are_not_sent_with_every_piece(layout: Layout) -> None:
    """With 100,000 of them a plan would take minutes, in which they were sent to helpers again and again."""

    def sent(number: int) -> int:
        files = [Loose(f"dataset-{i}", "x", 1, 0.0, 0, (0, 0, 0, 0)) for i in range(number)]
        pool = _Postage()
        there, planned = {one.path: one for one in files}, [candidate(i) for i in range(100)]
        left = [Candidate(one.path, 0, 0.0, loose=one) for one in files]
        weighed = plan_file.recheck(store_of(FileSystem(), layout), [*planned, *left], (), (), there, pool)
        assert (len(weighed.gone), len(weighed.remove)) == (100, number)
        return pool.bytes

    assert sent(1000) == sent(0)


def test_a_plan_of_a_million_fits_into_memory() -> None:
    """A cleaning by a plan would take twice the memory of the one that made it, and be killed where that was not."""
    number = 5000
    lines = list(plan_of(number))
    tracemalloc.start()
    try:
        planned = plan_file.decode(lines)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert planned.remove == tuple(map(candidate, range(number)))
    assert most / number < 450
