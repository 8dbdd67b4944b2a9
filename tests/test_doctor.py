"""What the doctor finds, and what it mends."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Counting, Failing, FakeClock, FakeProc, OnClock
from sccache_dtool import gate, holders
from sccache_dtool.cache import Cache
from sccache_dtool.doctor import Finding
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import CALLER, PROBE, Holder, Owner
from sccache_dtool.layout import DIRECTORIES, ITEM_FILE, PAYLOAD, Generation, HolderName, Layout, TrashName, WorkName
from sccache_dtool.leases import Lease

FS = FileSystem()
Making = Callable[..., Cache]
ID = "s0123456789ab-0123456789ab"
TRASHED = TrashName(Generation("0123456789abcdef", 1_700_000_000, 5, 1), 0, True)
DAYS = 10 * 86_400.0


@pytest.fixture
def clock() -> FakeClock:
    """It begins at the present: ages are those of real files."""
    return FakeClock(wall=time.time())


@pytest.fixture
def cache(make_cache: Making, clock: FakeClock) -> Cache:
    """A cache whose file system has the test's clock."""
    return make_cache(fs=OnClock(clock))


def mend(cache: Cache) -> None:
    """As `doctor --fix` does: mend what can be mended, and look again."""
    for _ in range(5):
        mendable = [finding for finding in cache.examine() if finding.mend]
        if not mendable:
            return
        for finding in mendable:
            assert finding.mend is not None
            try:
                finding.mend()
            except FileNotFoundError:
                continue
    raise AssertionError("the doctor never comes to an end")


def test_a_healthy_cache_has_no_findings(cache: Cache, source: str) -> None:
    """The doctor would cry wolf, and nobody would listen."""
    assert cache.examine() == []
    cache.use(source)
    cache.use(name="other").release()
    assert cache.examine() == []


def test_examining_writes_nothing_but_a_probe(make_cache: Making, cache: Cache, source: str) -> None:
    """`doctor` without --fix would change something."""
    cache.use(source).release()
    fs = Counting()
    make_cache(fs=fs).examine()
    changes = [
        call
        for call in fs.calls
        if call.kind in ("symlink", "rename", "mkdir", "rmdir", "unlink", "create", "remove_tree")
    ]
    assert all(PROBE in call.path for call in changes)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_missing_directory_is_made(cache: Cache, source: str, layout: Layout, name: str) -> None:
    """After a slip with `rm` a cache could not be used any more."""
    path = f"{layout.control}/{name}"
    FS.remove_tree(path)
    assert path in [finding.path for finding in cache.examine()]
    mend(cache)
    assert cache.examine() == []
    cache.use(source).release()


def test_a_missing_tag_is_made(cache: Cache, layout: Layout) -> None:
    """Backup programs would save the cache."""
    os.unlink(layout.tag_file)
    assert [finding.path for finding in cache.examine()] == [layout.tag_file]
    mend(cache)
    assert Path(layout.tag_file).read_text().startswith("Signature: ")


@pytest.mark.parametrize("directory", ["root", "control"])
def test_a_cache_that_everybody_may_write_to_is_told_of(cache: Cache, layout: Layout, directory: str) -> None:
    """Anybody on the machine could delete or replace what others read, and nobody would be told."""
    path = getattr(layout, directory)
    os.chmod(path, 0o777)
    (finding,) = cache.examine()
    assert (finding.path, finding.mend) == (path, None)
    assert "every user" in finding.what


def _no_payload(lease: Lease) -> str:
    path = Path(lease.place.payload)
    path.chmod(0o600)
    path.unlink()
    return str(path.parent)


def _two_payloads(lease: Lease) -> str:
    Path(lease.place.payload).with_name("second").touch()
    return str(Path(lease.place.payload).parent)


def _no_description(lease: Lease) -> str:
    path = Path(lease.place.gate).parent / ITEM_FILE
    path.unlink()
    return str(path)


def _damaged_description(lease: Lease) -> str:
    path = Path(lease.place.gate).parent / ITEM_FILE
    path.write_text("garbage")
    return str(path)


@pytest.mark.parametrize("damage", [_no_payload, _two_payloads, _no_description, _damaged_description])
def test_a_damaged_copy_is_told_of_and_left_to_a_person(
    cache: Cache, source: str, damage: Callable[[Lease], str]
) -> None:
    """Users would be given a copy that is damaged, and nobody would know; or it would be deleted under them."""
    lease = cache.use(source)
    path = damage(lease)
    (finding,) = cache.examine()
    assert (finding.path, finding.mend) == (path, None)
    assert PAYLOAD in path or ITEM_FILE in path
    lease.release()
    cache.remove(lease.key)
    assert cache.examine() == []


@pytest.fixture
def job(proc: FakeProc) -> Owner:
    """A job on this host."""
    return holders.process_owner(CALLER, proc, proc.add(4242, "job", start=1000))


def test_a_lease_that_nobody_holds_is_ended(cache: Cache, job: Owner, proc: FakeProc, source: str) -> None:
    """What killed jobs hold would be found by nobody."""
    lease = cache.hold(job, cache.wanted([source]))
    proc.end(4242)
    (finding,) = cache.examine()
    assert finding.path == f"{lease.place.gate}/{lease.name}"
    assert "4242" in finding.what
    mend(cache)
    assert os.listdir(lease.place.gate) == []
    assert [use.how for use in cache.uses(lease.key)] == ["reaped"]
    assert cache.examine() == []


def test_a_holder_that_is_gone_is_revoked(
    cache: Cache, job: Owner, proc: FakeProc, layout: Layout, clock: FakeClock
) -> None:
    """Holders of killed jobs would pile up."""
    holder = Holder(FS, layout, clock, job, None)
    proc.end(4242)
    (finding,) = cache.examine()
    assert holder.id in finding.path
    mend(cache)
    assert os.listdir(layout.holders) == ["gone"]


def _interrupted_eviction(cache: Cache, layout: Layout) -> str:
    lease = cache.use(name="evicted")
    lease.release()
    assert gate.close(FS, lease.place.gate)
    return str(Path(lease.place.gate).parent)


def _work(cache: Cache, layout: Layout) -> str:
    path = Path(layout.tmp, str(WorkName(f"{ID}.0", "fetch")))
    (path / PAYLOAD).mkdir(parents=True)
    return str(path)


def _half_deleted(cache: Cache, layout: Layout) -> str:
    path = Path(layout.trash, str(TRASHED))
    (path / PAYLOAD).mkdir(parents=True)
    return str(path)


def _probe(cache: Cache, layout: Layout) -> str:
    os.symlink("probe", f"{layout.holders}/{PROBE}0123456789abcdef")
    return f"{layout.holders}/{PROBE}0123456789abcdef"


def _revoked(cache: Cache, layout: Layout) -> str:
    os.symlink("{}", f"{layout.gone}/{HolderName(ID, 1, 0)}")
    return f"{layout.gone}/{HolderName(ID, 1, 0)}"


def _lock(cache: Cache, layout: Layout) -> str:
    Path(layout.locks, "0f.lock").touch()
    return f"{layout.locks}/0f.lock"


@pytest.mark.parametrize("leave", [_interrupted_eviction, _work, _half_deleted, _probe, _revoked, _lock])
def test_what_crashes_leave_is_put_away(
    cache: Cache, layout: Layout, clock: FakeClock, leave: Callable[[Cache, Layout], str]
) -> None:
    """What killed processes leave would stay for ever."""
    path = leave(cache, layout)
    clock.let_pass(DAYS)
    (finding,) = cache.examine()
    assert finding.path == path
    assert finding.mend is not None
    mend(cache)
    assert not os.path.lexists(path)
    assert cache.examine() == []


STRANGE = {
    "items": "{items}/README",
    "shard": "{items}/ab/README",
    "item": "{item}/README",
    "gate": "{gate}/README",
    "history": "{item}/history/README",
    "holders": "{holders}/README",
    "gone": "{gone}/README",
    "tmp": "{tmp}/README",
    "trash": "{trash}/README",
    "locks": "{locks}/README",
    "newline": "{trash}/READ\nME",
}


@pytest.mark.parametrize("path", STRANGE.values(), ids=STRANGE)
def test_what_is_not_ours_is_told_of_once_and_left_to_a_person(
    cache: Cache, layout: Layout, source: str, clock: FakeClock, path: str
) -> None:
    """Somebody's own file would be deleted, or stay in the way without anybody being told."""
    lease = cache.use(source)
    place = Path(path.format(**vars(layout), item=layout.item(lease.key), gate=lease.place.gate))
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    clock.let_pass(DAYS)
    found = cache.examine()
    assert [finding.mend for finding in found] == [None]
    assert Path(found[0].path).name.startswith("READ")
    assert found[0].path.isprintable()
    assert found[0].what
    mend(cache)
    assert place.read_text() == "mine"


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_what_cannot_be_listed_is_told_of(make_cache: Making, source: str, layout: Layout, error: int) -> None:
    """A directory without permissions would look as if nothing were in it."""
    lease = make_cache().use(source)
    fs = Failing()
    fs.fail("names", error, within=layout.item(lease.key))
    found = make_cache(fs=fs).examine()
    assert found
    assert all(finding.mend is None for finding in found)
    assert any(finding.path.startswith(layout.item(lease.key)) for finding in found)


def test_a_holder_that_cannot_be_understood_is_told_of(cache: Cache, layout: Layout) -> None:
    """A lease of a damaged holder would stay for ever, and nobody would know why."""
    path = f"{layout.holders}/{HolderName(ID, 0, 0)}"
    os.symlink("garbage", path)
    found: list[Finding] = cache.examine()
    assert [(finding.path, finding.mend) for finding in found] == [(path, None)]


def test_several_at_once_are_all_mended(
    cache: Cache, layout: Layout, clock: FakeClock, job: Owner, proc: FakeProc, source: str
) -> None:
    """One finding would hide another, or be mended at its cost."""
    cache.hold(job, cache.wanted([source]))
    proc.end(4242)
    os.unlink(layout.tag_file)
    for leave in (_interrupted_eviction, _work, _half_deleted, _probe, _revoked, _lock):
        leave(cache, layout)
    Path(layout.trash, "README").touch()
    clock.let_pass(DAYS)
    mend(cache)
    left = cache.examine()
    assert [os.path.basename(finding.path) for finding in left] == ["README"]
