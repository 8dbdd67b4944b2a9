"""Much at once, and too little room: many processes, items and leases; disks, quotas and inode tables that are full."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import scratch
from faults import Counting, Failing, store_of
from races.actors import findings, left_in
from sccache_dtool.cache import Cache
from sccache_dtool.cli import main
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, ITEM_FILE, PAYLOAD, Generation, Layout, unique
from sccache_dtool.errors import NoSpace
from sccache_dtool.fetch.resolve import one_item, parse_request
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import history

EVERYTHING = Rules(everything=True)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on a file system in memory where there is one, and nothing remembered of other tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("os.fsync", lambda fd: None)
    place = Path(tempfile.mkdtemp(dir=scratch.memory()))
    yield place
    shutil.rmtree(place)


def in_children(count: int, act: Callable[[int], None]) -> list[int]:
    """Exit codes of children that do something, all at once: none begins before all are there."""
    ready, go = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(go)
                os.read(ready, 1)
                act(number)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    os.close(ready)
    os.close(go)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


# -- much at once ------------------------------------------------------------------------------------------------------


def test_two_hundred_processes_on_one_item(memory: Path, source: str) -> None:
    """An array job whose tasks begin at once would fetch twice, lose a use, or leave something behind."""
    root = memory / "cache"
    Cache(root).init()

    def use(number: int) -> None:
        cache = Cache(root, fs=FileSystem())
        with cache.use(source) as path:
            assert path.read_text() == "ACGT\n"
        cache.close()

    assert in_children(200, use) == [0] * 200
    cache = Cache(root, fs=FileSystem())
    item = cache.item(cache.find("ref.fa"))
    assert (len(item.copies), item.leases, item.finished_uses) == (1, 0, 200)
    cache.clean(EVERYTHING)
    assert left_in(str(root)) == {}
    cache.close()


ITEMS = 10_000


def put_items(layout: Layout, count: int) -> list[str]:
    """Items as if they had been fetched; their sources."""
    sources = [f"https://example.org/{number:05}.fa" for number in range(count)]
    for source in sources:
        wanted = one_item(parse_request([source], None, layout.root))
        place = layout.generation(wanted.key, str(Generation(unique(), 1_700_000_000, 5, 1)))
        os.makedirs(f"{place}/{PAYLOAD}")
        os.makedirs(f"{place}/{GATE}")
        os.makedirs(layout.history(wanted.key), exist_ok=True)
        Path(place, PAYLOAD, wanted.label).write_text("ACGT\n")
        Path(place, ITEM_FILE).write_text(json.dumps({"source": list(wanted.stack.canonical)}))
    return sources


def test_ten_thousand_items_in_one_process(memory: Path) -> None:
    """A program with many files open would be a burden to the server, or grow without bounds."""
    layout = Layout(str(memory / "cache"))
    fs = Counting()
    cache = Cache(layout.root, fs=fs)
    cache.init()
    sources = put_items(layout, ITEMS)
    tracemalloc.start()  # of the first ones: it takes longer than all else
    leases = [cache.use(source) for source in sources[: ITEMS // 5]]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / len(leases) < 6000, "bytes of memory for each lease"
    leases += [cache.use(source) for source in sources[ITEMS // 5 :]]
    of_holders = [name for name in os.listdir(layout.holders) if name != "gone"]
    assert len(of_holders) == 1
    fs.calls.clear()
    again = [cache.use(source) for source in sources]
    assert Counter(fs.kinds()) == {"symlink": ITEMS}
    fs.calls.clear()
    for lease in again:
        assert lease.release()
    assert Counter(fs.kinds()) == {"rename": ITEMS}
    fs.calls.clear()
    cache.close()
    assert all(lease.released for lease in leases)
    assert Counter(fs.kinds()) == {"rename": ITEMS, "unlink": 1}


def calls_of_python(act: Callable[[], object]) -> int:
    """How many functions of Python an act calls: its work, whatever the machine."""
    count = 0

    def hear(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(hear)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def test_an_item_with_five_thousand_leases(
    memory: Path, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever asks why a popular item is still there would wait for minutes: work that grows with the square."""
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(memory / "cache"))
    work: dict[str, list[int]] = {}
    for leases in (1_250, 5_000):
        root = memory / "cache"
        cache = Cache(root, fs=FileSystem())
        cache.init()
        wanted = cache.item_request([source])
        owner = cache.owner("long-lived")
        for _ in range(leases // 50):
            holder = cache.enter(owner, 3600.0, wanted.key)
            first = cache.acquire(holder, wanted)
            for number in range(49):
                os.symlink(
                    "2026-11-21T14:00:00.000Z u@h[long-lived]", f"{first.place.gate}/{holder.id}.{1000 + number}"
                )
        layout = Layout(str(root))
        assert cache.item(wanted.key).leases == leases
        for words in (["status", "ref.fa"], ["why", "ref.fa"], ["du"], ["doctor"], ["reap"], ["clean", "--all", "-y"]):
            work.setdefault(" ".join(words), []).append(calls_of_python(functools.partial(main.run, words)))
        everything = ["unuse", "--all", "--holder", "long-lived", source]
        work.setdefault("unuse", []).append(calls_of_python(functools.partial(main.run, everything)))
        assert cache.item(wanted.key).leases == 0
        assert len(history.read(store_of(FileSystem(), None), layout.history(wanted.key))) == leases
        cache.close()
        shutil.rmtree(root)
        capsys.readouterr()
    for words, (few, many) in work.items():
        assert many < 5 * few + 10_000, f"{words}: {few} calls for 1,250 leases, {many} for 5,000"


# -- too little room ---------------------------------------------------------------------------------------------------


def mounted(place: Path, *words: str) -> None:
    place.mkdir()
    done = subprocess.run(["mount", *words, str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")


def ext4(image: Path, *options: str) -> list[str]:
    """What to mount for a small file system on a disk, whose directories grow by blocks."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", *options, str(image)], check=True)
    return ["-o", "loop", str(image)]


DISKS = {
    "memory, no block left": lambda image: ["-t", "tmpfs", "-o", "size=2m", "tmpfs"],
    "memory, no inode left": lambda image: ["-t", "tmpfs", "-o", "size=8m,nr_inodes=150", "tmpfs"],
    "ext4, no block left": ext4,
    "ext4, no inode left": lambda image: ext4(image, "-N", "160"),
}


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small file system of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = tmp_path / "disk"
    mounted(place, *DISKS[request.param](tmp_path / "image"))
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def fill(disk: Path) -> None:
    """Leave not a block, or not an inode: whichever gives out first."""
    for size in (1 << 16, 1 << 10, 1):
        with open(disk / "fill", "ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\1" * size):
                pass
    with contextlib.suppress(OSError):
        for number in range(300):
            (disk / f"fill-{number}").write_bytes(b"\1" * 100)


def fill_inodes(disk: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(300):
            (disk / f"fill-{number}").touch()


@pytest.mark.root
def test_release_and_clean_work_on_a_full_disk(disk: Path, source: str, request: pytest.FixtureRequest) -> None:
    """A full cache would stay full: nothing could be given back, and the command that makes room would need some."""
    cache = Cache(disk / "cache", fs=FileSystem())
    held = cache.use(source)
    for number in range(3):
        cache.use(name=f"idle-{number}").release()
    (fill_inodes if "inode" in request.node.callspec.id else fill)(disk)
    with pytest.raises(OSError, match="No space"):
        (disk / "more").write_bytes(b"\1" * 100_000)

    with pytest.raises((NoSpace, OSError)) as failed:
        cache.use(__file__)
    assert isinstance(failed.value, NoSpace) or failed.value.errno == errno.ENOSPC
    assert Path(held).read_text() == "ACGT\n"
    assert held.release()
    done = Cache(disk / "cache", fs=FileSystem()).clean(EVERYTHING)
    assert (len(done.removed), done.failed) == (4, ())
    for path in disk.glob("fill*"):
        path.unlink()
    with cache.use(__file__) as path:
        assert path.read_bytes() == Path(__file__).read_bytes()
    assert cache.item(cache.key_for([source])).finished_uses == 1
    cache.close()
    cache = Cache(disk / "cache", fs=FileSystem())
    cache.clean(EVERYTHING)
    assert findings(cache) == []
    assert left_in(str(disk / "cache")) == {}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_clean_and_release_where_nothing_can_be_made(memory: Path, source: str, number: int) -> None:
    """A quota that is used up refuses what a disk that is full may still grant: every new name and every byte."""
    fs = Failing()
    cache = Cache(memory / "cache", fs=fs)
    held = cache.use(source)
    cache.use(name="idle").release()
    for kind in ("symlink", "mkdir", "create", "write"):
        fs.fail(kind, number)
    with pytest.raises((NoSpace, OSError)):
        cache.use(__file__)
    assert held.release()
    assert len(cache.clean(EVERYTHING).removed) == 2
    assert cache.reap().failed == ()
    fs.repair()
    assert findings(cache) == []


def test_a_release_that_the_disk_refuses_can_be_repeated(memory: Path, source: str) -> None:
    """Where a directory needs a block for one more name, a lease would be lost without a record, or held for ever."""
    fs = Failing()
    cache = Cache(memory / "cache", fs=fs)
    held = cache.use(source)
    fs.fail("rename", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        held.release()
    assert not held.released
    assert cache.item(held.key).leases == 1
    fs.repair()
    assert held.release()
    assert cache.item(held.key).finished_uses == 1
    cache.close()
