"""What a set costs for each of its items, in calls on the file system: counted, and so the same on every machine."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from faults import Call, Counting
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.liveness.caller import CALLER, Owner, process_owner
from sccache_dtool.liveness.process import Proc

FEW, MANY = 10, 40


class Whole(Counting):
    """Counts what is removed of a tree as well, which is one call of this object."""

    def __init__(self) -> None:
        super().__init__()
        self.removed = 0

    def remove_tree(self, path: str, **more: object) -> None:
        self.removed += sum(len(names) for _, _, names in os.walk(path))
        super().remove_tree(path, **more)  # type: ignore[arg-type]


def owner() -> Owner:
    return process_owner(CALLER, Proc(), os.getpid())


def cost(root: Path, sources: list[str]) -> Counter[str]:
    """The calls of a set of items that are in the cache, from the first to the last."""
    Cache(root).use_many({str(number): source for number, source in enumerate(sources)}).release()
    fs = Whole()
    cache = Cache(root, fs=fs)
    entries = cache.manifest(listed(root.parent, sources))
    held = cache.hold_many(owner(), entries, UseOptions())
    assert cache.release_set([owner()], held.session) is not None
    return Counter(fs.kinds()) + Counter({"unlink a link": fs.removed})


def listed(directory: Path, sources: list[str]) -> Path:
    file = directory / f"{len(sources)}.txt"
    file.write_text("\n".join(sources))
    return file


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    made = []
    for number in range(MANY):
        file = tmp_path / f"f{number}"
        file.write_text(str(number))
        made.append(str(file))
    return made


def test_an_item_of_a_set_costs_no_more_than_a_use(tmp_path: Path, sources: list[str]) -> None:
    """On a network file system each call is a round trip: a thousand items would cost more at once than one by one."""
    root = tmp_path / "cache"
    Cache(root).init()
    few, many = cost(root, sources[:FEW]), cost(root, sources)
    kinds = [kind for kind in many if many[kind] != few[kind] and is_request(Call(kind, ()))]
    each = {kind: (many[kind] - few[kind]) / (MANY - FEW) for kind in kinds}
    assert each == {
        "names": 1,  # which copies there are
        "symlink": 2,  # the lease, and the link
        "lstat": 1,  # whether the copy is whole
        "rename": 1,  # the end of the lease
        "unlink a link": 1,
    }
    fs = Counting()
    cache = Cache(root, fs=fs)
    cache.check()
    fs.calls.clear()
    lease = cache.hold(owner(), cache.item_request([sources[0]]))
    assert cache.release([owner()], lease.key) == 1
    assert sum(each.values()) <= len([call for call in fs.calls if is_request(call)])


def is_request(call: Call) -> bool:
    """Whether a call is one that a file server is asked for by itself."""
    return call.kind not in ("open_directory", "near", "has_acl", "is_shared")
