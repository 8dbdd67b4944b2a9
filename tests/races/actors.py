"""Helpers for tests of races: things with known content, and a file system where others act in between."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from faults import Call, Counting
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import PROBE, Layout


class Payload(NamedTuple):
    """Something to be cached, and what identifies its content."""

    path: str
    digest: str


def make_payload(path: Path, size: int = 3000, seed: int = 1) -> Payload:
    """A directory of three files with random content."""
    dice = random.Random(seed)
    (path / "deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        (path / name).write_bytes(dice.randbytes(size))
    return Payload(str(path), digest_of(str(path)))


def digest_of(path: str) -> str:
    """The SHA-256 of a file, or of the names and contents of a tree. Raises OSError for what is missing."""
    whole = hashlib.sha256()
    pending = [path]
    while pending:
        here = pending.pop()
        whole.update(f"{os.path.relpath(here, path)}\n".encode())
        if os.path.isdir(here):
            pending.extend(f"{here}/{name}" for name in sorted(os.listdir(here)))
        else:
            with open(here, "rb") as file:
                whole.update(file.read())
    return whole.hexdigest()


def names(*parts: str) -> list[str]:
    """What is in a directory, sorted; empty if there is none."""
    try:
        return sorted(os.listdir("/".join(parts)))
    except FileNotFoundError:
        return []


def generations(root: str, key: str) -> list[str]:
    """The names of an item's copies."""
    return [name for name in names(Layout(root).item(key)) if name != "history"]


def left_in(root: str) -> dict[str, list[str]]:
    """What is not to be left in a cache that nobody uses: leases, holders, sessions, work areas, trash.

    It is empty if all is well. A killed reaper's probe may stay for a day, and its age is all that tells that it is no
    living one's.
    """
    layout = Layout(root)
    leases = []
    for shard in names(layout.items):
        for key in names(layout.items, shard):
            for generation in generations(root, key):
                leases += names(layout.generation(key, generation), "use")
    found = {
        "leases": leases,
        "holders": [name for name in names(layout.holders) if name != "gone" and not name.startswith(PROBE)],
        "sessions": [name for name in names(layout.sessions) if name != "gone" and not name.startswith(PROBE)],
        "work areas": names(layout.tmp),
        "trash": names(layout.trash),
    }
    return {what: where for what, where in found.items() if where}


def findings(cache: Cache, *, for_a_person: bool = False) -> list[str]:
    """What `doctor` says of a cache; with `for_a_person` only what `--fix` would leave."""
    return [f"{one.path}: {one.what}" for one in cache.examine() if one.repair is None or not for_a_person]


class SlippingAt(Counting):
    """Slips an act in before the `nth` call of any kind, counted from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.nth = -1
        self.act: Callable[[], object] = lambda: None
        self.where: Call | None = None  # the call before which it happened

    def arm(self, nth: int, act: Callable[[], object]) -> None:
        """Count from now on."""
        self.calls.clear()
        self.nth, self.act = nth, act

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        if len(self.calls) - 1 == self.nth:
            self.where = call
            self.act()
        return do()
