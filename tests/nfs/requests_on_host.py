"""How many requests operations cost an NFS server, as the kernel of a client counts them; an object in JSON.

`requests_on_host.py PLACE MOUNTPOINT SOURCE…`: PLACE is a cache on that mount, and the sources are small files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sccache_dtool.cache import Cache
from sccache_dtool.policy.rules import Rules

Counts = dict[str, dict[str, int]]


def sent(mountpoint: str) -> Counter[str]:
    """The requests of each kind so far, from /proc/self/mountstats."""
    counted, here = Counter[str](), ""
    for line in Path("/proc/self/mountstats").read_text().splitlines():
        words = line.split()
        if line.startswith("device "):
            here = words[4]
        elif here == mountpoint and words[:1] == ["per-op"]:
            here = "its requests"
        elif here == "its requests" and len(words) > 1:
            counted[words[0].rstrip(":")] = int(words[1])
    return counted


def main(place: str, mountpoint: str, *sources: str) -> Counts:
    """By operation and kind of request."""
    found: Counts = {}

    def count(what: str, act: Callable[[], object]) -> None:
        before = sent(mountpoint)
        act()
        found[what] = dict(sent(mountpoint) - before)

    def command(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "sccache_dtool", "-C", place, *words], check=True, capture_output=True)

    cache = Cache(place)
    keys = [cache.key_for([source]) for source in sources]
    for source in [*sources, *sources]:
        cache.use(source).release()
    leases = []
    count("use", lambda: leases.extend(cache.use(source) for source in sources))
    count("release", lambda: [lease.release() for lease in leases])
    count("heartbeat", leases[0].holder.beat)
    count("look", lambda: [cache.item(key) for key in keys])
    count("du", lambda: list(cache.items()))
    count("sc-dtool use", lambda: command("use", "--holder", "job", sources[0]))
    count("sc-dtool unuse", lambda: command("unuse", "--holder", "job", sources[0]))
    count("evict", lambda: [cache.evict_if_idle(key) for key in keys])
    for source in sources:
        cache.use(source).release()
    count("clean", lambda: cache.clean(Rules(everything=True), keep_for=0))
    cache.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
