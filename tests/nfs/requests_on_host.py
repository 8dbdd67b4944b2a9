"""How many requests operations cost an NFS server, as the kernel of a client counts them; an object in JSON.

`requests_on_host.py PLACE MOUNTPOINT FEW SOURCE…`: PLACE is a cache on that mount, and the sources are small files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from sccache_dtool.cache import Cache
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import sessions

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


def _count_many(cache: Cache, some: Sequence[str], count: Callable[..., None], command: Callable[..., None]) -> None:
    """What a set, and a session, of some items cost."""
    of, paths = len(some), [f"/{number}" for number in range(len(some))]
    with tempfile.NamedTemporaryFile("w") as manifest:
        manifest.write("\n".join(some))
        manifest.flush()
        count(f"use --from of {of}", lambda: command("use", "--holder", "set", "--from", manifest.name))
    (view,) = (sessions.view_path(cache.store.layout, one.id) for one in cache.sessions())
    count(f"unuse of a set of {of}", lambda: command("unuse", "--holder", "set", view))
    session = cache.create_session(dict(zip(paths, some, strict=True)), owner=cache.owner("session"))
    count(f"{of} x lock get", lambda: [session.lock(path) for path in paths])
    count(f"lock ls of {of}", cache.locks)
    count(f"lock ls --session of {of}", lambda: cache.locks(session=session.id))
    count(f"session rm of {of}", session.delete)


def main(place: str, mountpoint: str, few: str, *all_sources: str) -> Counts:
    """By operation and kind of request. `few`: how many of the sources are used one by one; the others are in sets."""
    sources = all_sources[: int(few)]
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
    for some in (all_sources, all_sources[: len(all_sources) // 2], all_sources):  # first the kernel learns of them
        _count_many(cache, some, count, command)
    cache.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
