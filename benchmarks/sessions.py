"""What a session with many locks costs: `lock ls` and `session rm`, as commands and within a process.

``sessions.py [--dir DIRECTORY] [--locks N] [--items N] [--rounds N] [--json]``. The targets are for 10,000 locks, in
seconds, on an idle machine: a command contains the start of the program.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from from_shell import Installation
from measure import Figure
from run import line, ran_on

from sccache_dtool import Cache
from sccache_dtool.liveness.record import Membership
from sccache_dtool.protocol import leases, sessions
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Place
from sccache_dtool.sets.sessions import Entry


def locked_session(cache: Cache, locks: int, items: int) -> str:
    """A session with so many locks on so many items, each with a holder of its own; its id."""
    store, entries, places = cache.store, [], []
    for number in range(items):
        key = f"{hashlib.sha256(str(number).encode()).hexdigest()[:32]}-item{number}.dat"
        place = Place.of(store.layout, key, f"g{os.urandom(8).hex()}-{int(time.time())}-0-1", "data")
        for directory in (place.gate, os.path.dirname(place.payload), place.history):
            os.makedirs(directory, exist_ok=True)
        Path(place.payload).touch()
        entries.append(Entry(key, f"/{number}"))
        places.append(place)
    session = cache.create_session(entries, owner=cache.owner("benchmark")).id
    for number in range(locks):
        place = places[number % items]
        membership = Membership(session, f"reader-{number}", place.key)
        holder = Holder(store, sessions.lock_owner(session), None, session=membership)
        if leases.take(store, holder, place) is None:
            raise RuntimeError("a lock cannot be taken")
    return session


def _timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def figures(directory: Path, locks: int, items: int, rounds: int) -> Iterator[Figure]:
    """The figures, the deletion last."""
    installed = Installation.make(directory / "installation")
    root = directory / "cache"
    cache = Cache(root)
    cache.init()

    def command(*words: str) -> Callable[[], object]:
        argv = [str(installed.python), str(installed.script), "-C", str(root), *words]
        return lambda: subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)

    def figure(name: str, what: str, target: float | None, times: list[float]) -> Figure:
        sign = "<=" if target else ""
        return Figure(name, what, sign, target, statistics.median(times), min(times), max(times), len(times), {})

    session = locked_session(cache, locks, items)
    of_many = f"of {locks:,} locks on {items:,} items"
    yield figure("start", "seconds of `--version`", None, [_timed(command("--version")) for _ in range(rounds)])
    for name, words in {
        "lock-ls": ["lock", "ls"],
        "lock-ls-session": ["lock", "ls", "--session", session],
        "lock-ls-json": ["lock", "ls", "--session", session, "-f", "json"],
    }.items():
        what = f"seconds of `{' '.join(words)}` {of_many}"
        yield figure(name, what, 0.3, [_timed(command(*words)) for _ in range(rounds)])
    inside = [_timed(lambda: cache.locks(session=session)) for _ in range(rounds)]
    yield figure("locks-in-process", f"seconds of Cache.locks(session=…) {of_many}", 0.3, inside)
    removal = [_timed(command("session", "rm", session))]
    for _ in range(rounds - 1):
        removal.append(_timed(command("session", "rm", locked_session(cache, locks, items))))
    yield figure("session-rm", f"seconds of `session rm` {of_many}", 3.0, removal)
    if cache.locks():
        raise RuntimeError("locks are left")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to measure (default: a temporary directory)")
    parser.add_argument("--locks", type=int, default=10_000, help="how many locks (default: 10,000)")
    parser.add_argument("--items", type=int, default=100, help="on how many items (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sc-dtool-sessions-", dir=arguments.dir) as scratch:
        where = ran_on(scratch)
        for one in figures(Path(scratch), arguments.locks, arguments.items, arguments.rounds):
            found.append(one)
            if not arguments.json:
                print(line(one) if one.target else f"{one.what}: {one.value:.3f}", flush=True)
    if arguments.json:
        print(json.dumps({"version": 1, "ran_on": where, "figures": [one.fields() for one in found]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
