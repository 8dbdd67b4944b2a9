"""What a command costs does not depend on what others have done: counted in calls, and in names that are listed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import httpserver
from faults import Call, Counting, store_of
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Generation, Layout, TrashName, WorkName
from sccache_dtool.liveness.caller import CALLER, Owner, process_owner
from sccache_dtool.liveness.process import Proc

MANY = 300


class Weighing(Counting):
    """Counts the names that listings return, too."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = 0

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        result = do()
        if call.kind in ("names", "entries"):
            self.listed += len(result)
        return result

    def cost(self) -> tuple[int, int]:
        """Calls, and names in listings."""
        return len(self.calls), self.listed


def owner() -> Owner:
    return process_owner(CALLER, Proc(), os.getpid())


def hit(cache: Cache, source: str) -> None:
    """`use` of what is there, and `unuse`."""
    lease = cache.hold(owner(), cache.item_request([source]))
    assert cache.release([owner()], lease.key) == 1


def hit_in_a_program(cache: Cache, source: str) -> None:
    """A Python program, or `run`."""
    with cache.use(source):
        pass
    cache.close()


def miss(cache: Cache, source: str) -> None:
    """`use` of what has to be fetched, and `unuse`, which evicts it."""
    lease = cache.hold(owner(), cache.item_request([source + ".2"]))
    assert cache.release([owner()], lease.key) == 1
    assert cache.evict_if_idle(lease.key)


def miss_over_http(cache: Cache, source: str) -> None:
    """The same, where the server says how large it is, so that room is reserved."""
    with httpserver.serve() as server:
        lease = cache.hold(owner(), cache.item_request([server.page("/x", b"ACGT", etag='"1"')]))
    assert cache.release([owner()], lease.key) == 1


def leave_traces(layout: Layout, source: str) -> None:
    """What many others leave who use, fetch, wait, evict and clean here."""
    fs = FileSystem()
    (shard,) = os.listdir(layout.items)
    (key,) = os.listdir(f"{layout.items}/{shard}")
    for number in range(MANY):
        digits = f"{number:032x}"
        holder = f"s{number:012x}-{number:012x}"
        fs.make_dirs(f"{layout.transfers}/{digits}")
        Path(layout.transfers, digits, f"{digits}~{holder}.0~1800000000000~done").write_text("{}")
        fs.put_record("{}", f"{layout.holders}/{holder}.0.0")
        fs.put_record("{}", f"{layout.gone}/{holder[:-1]}f.0.0")
        for name in (f"{digits}.lock", f"{digits}.by-{number:016x}"):
            Path(layout.locks, name).write_text("x")
        fs.put_record("2026-11-21T10:17:42Z x", f"{layout.history(key)}/{holder}.0~1700000000000~released")
        fs.make_dirs(f"{layout.trash}/{TrashName(Generation(f'{number:016x}', 1, 1, 1), 9_999_999_999)}/payload")
        fs.make_dirs(layout.cleanings)
        Path(layout.cleanings, f"1800000000000~1~1~0~{number:016x}").write_text("{}")
        fs.make_dirs(layout.pins)
        fs.put_record("x", f"{layout.pins}/{digits}-x~0")


@pytest.mark.parametrize("act", [hit, hit_in_a_program, miss, miss_over_http], ids=lambda act: act.__name__)
def test_what_others_did_costs_nothing(tmp_path: Path, act: Callable[[Cache, str], None]) -> None:
    """The more fetches there were in a day, and the more users, the slower each of them would be."""
    source = str(tmp_path / "ref.fa")
    for name in (source, f"{source}.2"):
        Path(name).write_text("ACGT")
    costs = []
    for crowded in (False, True):
        place = str(tmp_path / f"cache{crowded}")
        first = Cache(place, fs=FileSystem())
        first.init()
        first.use(source).release()
        first.close()
        if crowded:
            leave_traces(Layout(place), source)
        fs = Weighing()
        act(Cache(place, fs=fs), source)
        costs.append(fs.cost())
    assert costs[0] == costs[1]


def test_who_waits_does_not_look_at_what_others_do(tmp_path: Path) -> None:
    """Thousands of jobs that wait for one download would list the traces of all others, again and again."""
    from sccache_dtool.protocol import downloads

    layout = Layout(str(tmp_path / "cache"))
    Cache(layout.root, fs=FileSystem()).init()
    source = tmp_path / "ref.fa"
    source.write_text("ACGT")
    Cache(layout.root, fs=FileSystem()).use(str(source)).release()
    leave_traces(layout, str(source))
    fs = Weighing()
    assert downloads.outcomes(store_of(fs, layout), "f" * 32) == []
    key = f"{0:032x}"
    assert len(downloads.outcomes(store_of(fs, layout), key)) == 1
    assert fs.listed == 1


def test_waits_of_others_are_not_read_for_a_fetch(tmp_path: Path) -> None:
    """A fetch would read the record of each process that waits for anything."""
    layout = Layout(str(tmp_path / "cache"))
    source = tmp_path / "ref.fa"
    source.write_text("ACGT")
    costs = []
    for waits in (0, MANY):
        fs = Weighing()
        cache = Cache(layout.root, fs=fs)
        cache.init()
        for number in range(waits):
            work = WorkName(f"p{number:012x}-{number:012x}.0", "wait")
            FileSystem().put_record("{}", f"{layout.tmp}/{work}")
        fs.calls.clear()
        lease = cache.hold(owner(), cache.item_request([str(source)], str(waits)))
        costs.append(len(fs.calls))
        cache.release([owner()], lease.key)
    assert costs[1] <= costs[0]  # the first has made transfers/
