"""What leases, heartbeats and reaping cost, in calls on the file system: counted, and so the same on every machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import scratch
from faults import Counting, FakeClock, FakeProc, store_of
from sccache_dtool.catalog import items
from sccache_dtool.disk import root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Generation, Layout, LeaseName
from sccache_dtool.liveness import caller
from sccache_dtool.liveness.batch import query
from sccache_dtool.liveness.batch.query import Reply
from sccache_dtool.liveness.caller import JOB, PROGRAM, Owner
from sccache_dtool.liveness.job import Job
from sccache_dtool.liveness.process import Process
from sccache_dtool.pool import Pool
from sccache_dtool.protocol import leases, reaping
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Held, Place

LEASES, HOLDERS = 10_000, 100
KEY = f"{'0123456789abcdef' * 2}-ref.fa"
GENERATION = Generation("0123456789abcdef", 1_800_000_000, 5, 1)


@pytest.fixture
def place() -> Iterator[tuple[Layout, Place]]:
    """A copy of an item, on a file system in memory where there is one."""
    base = tempfile.mkdtemp(dir=scratch.memory())
    layout = Layout(f"{base}/cache")
    root.set_up(FileSystem(), layout)
    made = Place.of(layout, KEY, str(GENERATION), "ref.fa")
    FileSystem().make_dirs(made.gate)
    FileSystem().make_dirs(made.history)
    yield layout, made
    shutil.rmtree(base)


def test_a_heartbeat_is_one_call_whatever_is_held(place: tuple[Layout, Place], clock: FakeClock) -> None:
    """A program with ten thousand items in use would keep the file server busy by being alive."""
    layout, copy = place
    fs = Counting()
    owner = Owner(PROGRAM, Process("boot", "space", 1, 1), None, "x")
    holder = Holder(store_of(fs, layout, clock=clock), owner, 3600.0)
    assert all(leases.take(store_of(fs, None, clock=clock), holder, copy) for _ in range(LEASES))
    fs.calls.clear()
    holder.beat()
    assert fs.kinds() == ["rename"]


def held(copy: Place) -> list[Held]:
    return [Held(KEY, str(GENERATION), name, LeaseName.parse(name)) for name in sorted(os.listdir(copy.gate))]


@pytest.mark.parametrize("of", ["processes", "jobs"])
def test_reaping_asks_each_holder_once(
    place: tuple[Layout, Place], clock: FakeClock, proc: FakeProc, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """A cleaner would read a record for each of ten thousand leases, and ask Slurm for each of a hundred jobs."""
    layout, copy = place
    asked: list[int] = []
    now = int(clock.wall())

    def squeue(argv: list[str]) -> Reply:
        assert argv[0] == "squeue"
        numbers = argv[argv.index("-j") + 1].split(",")
        asked.append(len(numbers))
        return Reply(0, "".join(f"{n}|{n}|N/A|0|COMPLETED|{now}|{now}|{now}|n1|lab|N/A|\n" for n in numbers), "")

    monkeypatch.setattr(query, "run_command", squeue)
    for number in range(HOLDERS):
        if of == "jobs":
            owner = Owner(JOB, None, None, "", Job("slurm", "lab", str(1000 + number), "0", "", "n1"))
        else:
            owner = caller.process_owner(PROGRAM, proc, proc.add(1000 + number))
            proc.end(1000 + number)
        holder = Holder(store_of(FileSystem(), layout, clock=clock), owner, None)
        assert all(
            leases.take(store_of(FileSystem(), None, clock=clock), holder, copy) for _ in range(LEASES // HOLDERS)
        )
    listed = held(copy)
    fs = Counting()
    with reaping.open_judge(store_of(fs, layout, clock=clock, proc=proc)) as judge:
        done = reaping.reap(store_of(fs, layout, clock=clock), judge, listed, dry_run=False)
    assert len(done.leases) == LEASES
    assert len(done.holders) == HOLDERS
    of_holders = Counter(call.kind for call in fs.calls if f"{layout.holders}/" in call.path)
    assert of_holders["readlink"] == HOLDERS  # what each says of itself
    assert of_holders["rename"] == HOLDERS  # its revocation
    assert Counter(fs.kinds())["rename"] == HOLDERS + LEASES  # and one for each lease
    assert asked == ([HOLDERS] if of == "jobs" else [])
    assert os.listdir(copy.gate) == []


@pytest.mark.parametrize("uses", [False, True])
def test_a_scan_opens_no_more_than_the_directories_it_reads_and_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uses: bool
) -> None:
    """A million items would take millions of needless requests: each open of a directory is one, over NFS."""
    layout = Layout(str(tmp_path / "cache"))
    root.set_up(FileSystem(), layout)
    keys = [f"ab{number:030x}-x" for number in range(50)]
    for key in keys:
        for directory in (Place.of(layout, key, str(GENERATION), "x").gate, layout.history(key)):
            FileSystem().make_dirs(directory)
    opened: list[object] = []
    really_open = os.open

    def count(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append(path)
        return really_open(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", count)
    (found,) = items.survey(store_of(FileSystem(), layout), Pool(), list, uses=uses)
    assert [item.key for item in found] == keys
    each = 4 if uses else 3  # the item, the copy, its gate; and the history, if uses are to be counted
    assert len(opened) <= each * len(keys) + 10
