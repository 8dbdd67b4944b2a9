"""Which order of eviction keeps what is used again: access logs replayed against the very functions that `clean` uses.

``replay.py [--seed N] [--share S] [--json]``. Three synthetic traces, of a cache that holds a share of all bytes and
is cleaned from its high mark to its low one. For each order, and for one that knows the future, how much was found in
the cache: by count, by bytes, and by the time that fetching would have taken. The future is known to `offline`: what is
used again last goes first. For items of one size no order has more hits; for items of many it is a bar, and no proof.
A log of your own: ``--trace FILE`` with lines ``<seconds> <name> <bytes> [<seconds of a fetch>]``; default: 1 s each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sccache_dtool.disk.names import Generation
from sccache_dtool.policy.rules import Candidate, candidate, in_order
from sccache_dtool.policy.thresholds import ORDERS

HIGH, LOW = 0.95, 0.80


class File(NamedTuple):
    """What is asked for."""

    name: str
    bytes: int
    seconds: float  # of a fetch


class Access(NamedTuple):
    """A line of a log."""

    time: float
    file: File


class Share(NamedTuple):
    """What was found in the cache, as shares of all."""

    count: float
    bytes: float
    seconds: float


# -- traces ------------------------------------------------------------------------------------------------------------


def _files(draw: random.Random, kind: str, number: int) -> list[File]:
    """Files of many sizes, from sources of many speeds: 1 MB to some 10 GB, 5 to 500 MB a second."""
    made = []
    for one in range(number):
        size = int(10 ** draw.uniform(6, 10.3))
        rate = 10 ** draw.uniform(6.7, 8.7)
        made.append(File(f"{kind}{one}", size, 1.0 + size / rate))
    return made


def popular(draw: random.Random) -> Iterator[Access]:
    """A few files that all use, and many that hardly anybody does (Zipf), the same all the time."""
    files = _files(draw, "p", 2000)
    weights = [1 / (rank + 1) for rank in range(len(files))]
    for number, file in enumerate(draw.choices(files, weights, k=20_000)):
        yield Access(number * 60.0, file)


def campaigns(draw: random.Random) -> Iterator[Access]:
    """Groups that each work on a data set for a while, and then on another; references that all of them use."""
    references = _files(draw, "r", 50)
    groups = [_files(draw, f"c{group}-", 40) for group in range(4)]
    for number in range(20_000):
        if number % 1000 == 999:
            groups[draw.randrange(4)] = _files(draw, f"c{number}-", 40)
        file = draw.choice(references if draw.random() < 0.3 else groups[number % 4])
        yield Access(number * 60.0, file)


def scans(draw: random.Random) -> Iterator[Access]:
    """What is popular, and now and then somebody who reads through an archive, each file once."""
    files = _files(draw, "p", 500)
    weights = [1 / (rank + 1) for rank in range(len(files))]
    archive = _files(draw, "a", 6000)
    for number in range(20_000):
        scanning = number % 4000 >= 2800
        file = archive[number % len(archive)] if scanning else draw.choices(files, weights)[0]
        yield Access(number * 60.0, file)


TRACES: dict[str, Callable[[random.Random], Iterator[Access]]] = {
    "popular": popular,
    "campaigns": campaigns,
    "scans": scans,
}


def read(path: str) -> list[Access]:
    """A log of somebody's."""
    found = []
    for text in Path(path).read_text().splitlines():
        time, name, size, *seconds = text.split()
        found.append(Access(float(time), File(name, int(size), float(seconds[0] if seconds else 1))))
    return found


# -- replaying ---------------------------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    file: File
    since: float
    uses: int
    last: float


#: Of what is in the cache at a time: what goes first in front. The number is that of the access.
Order = Callable[[Mapping[str, _Kept], float, int], Sequence[str]]


def _by_policy(order: str) -> Order:
    def sort(kept: Mapping[str, _Kept], now: float, number: int) -> list[str]:
        names = {_key(name): name for name in kept}
        candidates = (_candidate(_key(name), one, order, now) for name, one in kept.items())
        return [names[candidate.key] for candidate in in_order(candidates)]

    return sort


def _candidate(key: str, one: _Kept, order: str, now: float) -> Candidate:
    copy = Generation("0" * 16, int(one.since), one.file.bytes, 1, int(one.file.seconds * 1000))
    return candidate(key, copy, one.uses, one.last, order, now)


def _key(name: str) -> str:
    return f"{hashlib.md5(name.encode()).hexdigest()}-x"


def _offline(trace: Sequence[Access]) -> Order:
    """Who knows when each is used next."""
    coming: dict[str, list[int]] = {}
    for number in range(len(trace) - 1, -1, -1):
        coming.setdefault(trace[number].file.name, []).append(number)

    def next_use(name: str, number: int) -> float:
        uses = coming[name]
        while uses and uses[-1] <= number:
            uses.pop()
        return uses[-1] if uses else math.inf

    return lambda kept, now, number: sorted(kept, key=lambda name: -next_use(name, number))


def replay(trace: Sequence[Access], capacity: int, order: Order) -> Share:
    """What of a log is found in a cache of `capacity` bytes."""
    kept: dict[str, _Kept] = {}
    used = 0
    hits, asked = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for number, (now, file) in enumerate(trace):
        worth = (1.0, float(file.bytes), file.seconds)
        asked = [mine + more for mine, more in zip(asked, worth, strict=True)]
        if file.name in kept:
            hits = [mine + more for mine, more in zip(hits, worth, strict=True)]
        else:
            used += file.bytes
        one = kept.pop(file.name, _Kept(file, now, 0, now))
        kept[file.name] = one._replace(uses=one.uses + 1, last=now)
        if used > HIGH * capacity:
            for name in order(kept, now, number):
                if used <= LOW * capacity:
                    break
                used -= kept.pop(name).file.bytes
    return Share(*(mine / every for mine, every in zip(hits, asked, strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.1, help="of all bytes that the cache holds (default: 0.1)")
    parser.add_argument("--trace", help="a log of your own, in place of the synthetic ones")
    parser.add_argument("--length", type=int, help="only so many accesses")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    made = {name: list(make(random.Random(arguments.seed))) for name, make in TRACES.items()}
    traces = {arguments.trace: read(arguments.trace)} if arguments.trace else made
    found: dict[str, dict[str, Share]] = {}
    for name, whole in traces.items():
        trace = whole[: arguments.length]
        capacity = int(arguments.share * sum({access.file.name: access.file.bytes for access in trace}.values()))
        orders = {order: _by_policy(order) for order in ORDERS} | {"offline": _offline(trace)}
        found[name] = {order: replay(trace, capacity, sort) for order, sort in orders.items()}
        if not arguments.json:
            print(f"{name}: {len(trace):,} accesses; found by count, bytes, time of fetching")
            for order, share in found[name].items():
                print(f"    {order:<9}{share.count:7.1%}{share.bytes:8.1%}{share.seconds:8.1%}", flush=True)
    if arguments.json:
        shares = {name: {order: one._asdict() for order, one in each.items()} for name, each in found.items()}
        print(json.dumps({"version": 1, "seed": arguments.seed, "share": arguments.share, "traces": shares}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
