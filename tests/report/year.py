"""A cache with a past: used, cleaned and restored over most of a year, on a clock of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from faults import FakeClock
from sccache_dtool.cache import Cache
from sccache_dtool.lots.model import Claim, Lot, Lots
from sccache_dtool.policy.rules import Rules

DAY = 86_400.0

#: What other users may have written anywhere.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=https://evil.example/x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</style></title><script>alert(4)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe",
    "\u2066turned\u2069",
    "red\x1b[31m\x07\x00",
    "عربى.txt",
    "&lt;b&gt;&amp;",
    "x" * 3000,
    "\udcff",
)


def fetch(cache: Cache, directory: Path, name: str, size: int, uses: int = 1) -> str:
    """Have an item of this size in the cache, used so often; its key."""
    file = directory / name
    file.write_bytes(bytes(size))
    for _ in range(uses):
        lease = cache.use(file)
        key = cache.key_for([str(file)])
        lease.release()
    return key


def live(cache: Cache, clock: FakeClock, directory: Path) -> None:
    """300 days: two items come, one is removed after 200 and comes back after 250, and a third comes and stays."""
    fetch(cache, directory, "old.dat", 1000, uses=4)
    clock.let_pass(100 * DAY)
    fetch(cache, directory, "new.dat", 500, uses=2)
    clock.let_pass(100 * DAY)
    cache.clean(Rules(older_than=150 * DAY), keep_for=100 * DAY, why="a test")
    clock.let_pass(50 * DAY)
    cache.restore("old.dat")
    clock.let_pass(50 * DAY)
    fetch(cache, directory, "last.dat", 200, uses=3)


def change_facts(cache: Cache, key: str, **changes: object) -> None:
    """Write other facts of an item's copies, as another user could."""
    for file in Path(cache.store.layout.item(key)).glob("g*/item.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def make_hostile(cache: Cache, directory: Path, texts: tuple[str, ...] = HOSTILE) -> None:
    """Put texts of others wherever they can write some: users, names, datasets, lots, failed fetches, leases."""
    for number, text in enumerate(texts):
        key = fetch(cache, directory, f"item{number}.dat", 100 + number)
        dataset = {"uuid": f"{number:08x}-0000-4000-8000-000000000000", "name": text, "uri": text}
        source = [f"dtool:{dataset['uuid']}/{number:040x}"]
        change_facts(cache, key, by=f"{text}@host", dataset=dataset, source=source)
    plain = [text for text in texts if text.isprintable() and len(text) < 100 and "/" not in text]
    for text in plain:
        held = directory / text
        held.write_bytes(bytes(10))
        cache.use(held)  # held until the cache is closed
    lots = [Lot(f"lot {text}", text, frozenset({f"lot {text}"}), (Claim(f"user:{text}"),), 1, 1) for text in plain]
    cache.change_lots(lambda there: Lots([*there, *lots]))


def policy(cache: Cache, clean: Mapping[str, object]) -> None:
    """Set `[clean]`. A cache that has read its settings already does not see it."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in clean.items()]
    Path(cache.store.layout.config_file).write_text("".join(["[clean]\n", *lines]))
