"""What lots cost: questions, `du --by lot` beside `du`, `clean` beside one without lots, and changes by many writers.

``lots.py [--dir DIRECTORY] [--items N] [--lots N] [--rounds N] [--json]``. The files of the items are empty: what is
measured are names and directories. The targets are for 1,000 lots, on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from from_shell import Installation
from measure import Figure, count, in_turns, ratio
from run import line, ran_on
from scale import managed

from sccache_dtool import Cache
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.lots.model import Claim, Lot, Lots, Question, Usage

_WRITERS, _CHANGES = 8, 50


def shared_out(cache: Cache, number: int) -> None:
    """Make so many lots, one for each of so many users, ten below each parent."""
    parents = [Lot(f"group{n}", "ada", frozenset({f"group{n}"}), dedicated=10**6) for n in range(number // 10)]
    children = [
        Lot(f"u{n}", f"u{n}", frozenset({f"group{n // 10}"}), (Claim(f"user:u{n}"),), 10**5, objects=10**6)
        for n in range(number - len(parents))
    ]
    cache.change_lots(lambda lots: Lots([*lots, *parents, *children]))


def describe(root: Path, users: int) -> None:
    """Say of each copy who fetched it."""
    for number, file in enumerate((root / ".sc-dtool" / "items").glob("*/*/g*/item.json")):
        file.write_text(ItemFacts(key=file.parents[1].name, source=("file:/data",), by=f"u{number % users}@h").encode())


class Run:
    """A command, as a user has it: how long it took, and the most memory that it had at a time."""

    def __init__(self, installed: Installation, root: Path, *words: str) -> None:
        self._argv = [str(installed.python), str(installed.script), "-q", "-C", str(root), *words]
        self.memory = 0.0  # bytes

    def __call__(self) -> float:
        script = (
            "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
            "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
        )
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script, *self._argv], capture_output=True, text=True, check=True)
        code, memory = done.stdout.split()
        if code not in ("0", "3"):
            raise RuntimeError(f"{self._argv}: {code}, {done.stderr}")
        self.memory = max(self.memory, float(memory))
        return time.perf_counter() - begin


def _seconds(name: str, what: str, target: float, run: Callable[[], object], rounds: int) -> Figure:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return Figure(name, what, "<=", target, statistics.median(times), min(times), max(times), rounds, {})


def of_questions(directory: Path, number: int, rounds: int) -> Iterator[Figure]:
    """Each of the five questions, from the table on disk."""
    cache = Cache(directory / "questions")
    cache.init()
    shared_out(cache, number)
    used = {lot.name: Usage(2 * 10**5, 10) for lot in cache.lots().lots}
    for question in Question:

        def ask(question: Question = question) -> object:
            return cache.lots().lots.past(question, used, time.time())

        what = f"seconds of reading {number:,} lots, and asking which are past {question}"
        yield _seconds(f"past-{question}", what, 0.15, ask, rounds)


def of_scans(directory: Path, items: int, number: int, rounds: int) -> Iterator[Figure]:
    """`du --by lot` and `clean -n` of a cache with lots beside the same without."""
    installed = Installation.make(directory / "installation")
    root = directory / "scans"
    managed(root, items)
    describe(root, number)
    du, clean = Run(installed, root, "du"), Run(installed, root, "clean", "-n", "--retain-size", str(300 * items))
    without = in_turns({"du": du, "clean": clean}, rounds, 3600.0)
    shared_out(Cache(root), number)
    by_lot = Run(installed, root, "du", "--by", "lot")

    def first() -> float:
        shutil.rmtree(root / ".sc-dtool" / "facts", ignore_errors=True)
        return by_lot()

    found = {**without, **in_turns({"first": first}, rounds, 3600.0)}
    by_lot()
    found |= in_turns({"by lot": by_lot, "du again": du, "with lots": clean}, rounds, 3600.0)
    what = f"du --by lot of {items:,} items with {number:,} lots"
    yield ratio("du-first", f"{what}, the first time, beside du", "first", "du", found, "<=", 3.0)
    yield ratio("du-by-lot", f"{what} beside du", "by lot", "du again", found, "<=", 1.3)
    what = f"clean -n of {items:,} items with {number:,} lots, beside the same without"
    yield ratio("clean-lots", what, "with lots", "clean", found, "<=", 1.2)
    more = (by_lot.memory - du.memory) / 10**6
    yield Figure("du-memory", "MB that du --by lot takes more than du", "<=", 200.0, more, more, more, rounds, {})
    shutil.rmtree(root)


def _change(root: str) -> int:
    cache, done = Cache(root), 0
    for _ in range(_CHANGES):
        cache.change_lots(lambda lots: lots.update("u0", caller=None, objects=(lots["u0"].objects or 0) + 1))
        done += 1
    return done


def of_writers(directory: Path, number: int) -> Iterator[Figure]:
    """Many processes that change one lot."""
    cache = Cache(directory / "writers")
    cache.init()
    shared_out(cache, number)
    before = cache.lots().lots["u0"].objects or 0
    begin = time.perf_counter()
    with ProcessPoolExecutor(_WRITERS) as pool:
        acknowledged = sum(pool.map(_change, [str(cache.root)] * _WRITERS))
    seconds = time.perf_counter() - begin
    made = (cache.lots().lots["u0"].objects or 0) - before
    what = f"changes made by {_WRITERS} processes, of {_WRITERS * _CHANGES}"
    yield count("changes", what, [min(acknowledged, made)], _WRITERS * _CHANGES)
    each = seconds / (_WRITERS * _CHANGES)
    what = f"seconds of each of these changes, of {number:,} lots"
    yield Figure("change", what, "", None, each, each, each, 1, {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to measure (default: a temporary directory)")
    parser.add_argument("--items", type=int, default=100_000, help="how many items (default: 100,000)")
    parser.add_argument("--lots", type=int, default=1000, help="how many lots (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sc-dtool-lots-", dir=arguments.dir) as scratch:
        where = ran_on(scratch)
        parts = (
            of_questions(Path(scratch), arguments.lots, arguments.rounds),
            of_writers(Path(scratch), arguments.lots),
            of_scans(Path(scratch), arguments.items, arguments.lots, arguments.rounds),
        )
        for part in parts:
            for one in part:
                found.append(one)
                if not arguments.json:
                    print(line(one) if one.target is not None else f"{one.what}: {one.value:.3f}", flush=True)
    if arguments.json:
        print(json.dumps({"version": 1, "ran_on": where, "figures": [one.fields() for one in found]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
