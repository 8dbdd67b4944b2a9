"""Many items at once, beside one by one: python benchmarks/many.py (--items N, --rounds N, --dir DIR, --json).

In the cache: one `use --from` of all items, beside as many uses in a process that has used none of them before. That is
what a program needs at least. Missing: small files from a web server, in one set, beside one `use` for each.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from from_shell import Installation
from measure import Figure, in_turns, ratio
from run import line, ran_on

from sccache_dtool import Cache

#: Items that are fetched one by one in a round, for the time of one.
_ALONE = 10


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def figures(directory: Path, number: int, rounds: int, budget: float) -> Iterator[Figure]:
    """All figures; `directory` is new, and on the file system that is to be measured."""
    installed = Installation.make(directory / "installation")
    run = [str(installed.python), str(installed.script), "-q"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    yield from _cached(directory / "cached", number, rounds, budget, run, environment)
    yield from _missing(directory / "missing", number, rounds, budget, run, environment)


def _cached(
    directory: Path, number: int, rounds: int, budget: float, run: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Figure]:
    words, lines = [], []
    directory.mkdir()
    for each in range(number):
        file = directory / f"f{each}"
        file.write_text(str(each))
        words.append((str(file), f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"))
        lines.append(f"{words[-1][0]} {words[-1][1]} @part{each % 10}/f{each}\n")
    manifest = directory / "items.txt"
    manifest.write_text("".join(lines))
    place = directory / "cache"
    cache = Cache(place)
    cache.use_many(cache.manifest(manifest)).release()
    cache.close()
    use, unuse = [*run, "-C", str(place), "use", "--from", str(manifest)], [*run, "-C", str(place), "unuse"]

    def at_once() -> float:
        begin = time.perf_counter()
        done = subprocess.run(use, env=environment, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - begin
        subprocess.run([*unuse, done.stdout.rstrip("\n")], env=environment, check=True)
        return seconds

    def in_process() -> float:
        fresh = Cache(place)
        begin = time.perf_counter()
        leases = [fresh.use(*each) for each in words]
        seconds = time.perf_counter() - begin
        for lease in leases:
            lease.release()
        return seconds

    times = in_turns({"use --from": at_once, "Cache.use": in_process}, rounds, budget)
    what = f"sc-dtool use --from of {number:,} cached items, beside as many uses in a process"
    yield ratio("many", what, "use --from", "Cache.use", times, "<=", 3.0)


def _missing(
    directory: Path, number: int, rounds: int, budget: float, run: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Figure]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    directory.mkdir()
    place = str(directory / "cache")
    Cache(place).init()
    begin = [*run, "-C", place, "use", "--holder", f"pid:{os.getpid()}"]
    count = iter(range(1 << 30))

    def at_once() -> float:
        round = next(count)
        manifest = "".join(f"{base}/{round}/f{each}\n" for each in range(number))
        started = time.perf_counter()
        subprocess.run(
            [*begin, "--from", "-"], input=manifest, env=environment, stdout=subprocess.DEVNULL, text=True, check=True
        )
        return (time.perf_counter() - started) / number

    def one_by_one() -> float:
        round = next(count)
        started = time.perf_counter()
        for each in range(_ALONE):
            subprocess.run([*begin, f"{base}/{round}/f{each}"], env=environment, stdout=subprocess.DEVNULL, check=True)
        return (time.perf_counter() - started) / _ALONE

    times = in_turns({"one set": at_once, "one use each": one_by_one}, rounds, budget)
    server.shutdown()
    what = f"one use for each missing small file over HTTP, beside one set of {number:,}; seconds for one file"
    yield ratio("many-missing", what, "one use each", "one set", times, ">=", 5.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1000, help="items in a set (default: 1000, as claimed)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each comparison at most")
    parser.add_argument("--dir", help="where to measure (default: a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sc-dtool-bench-", dir=arguments.dir) as scratch:
        where, found = ran_on(scratch), []
        show = functools.partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
        show("\n".join(f"{name:<12}{value}" for name, value in where.items()), end="\n\n")
        for figure in figures(Path(scratch), arguments.items, arguments.rounds, 120.0):
            found.append(figure)
            show(line(figure))
    if arguments.json:
        print(json.dumps({"version": 1, "ran_on": where, "figures": [figure.fields() for figure in found]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
