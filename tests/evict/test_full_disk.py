"""Marks of the file system where the trash takes room, too: what is evicted once must not be evicted for again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Failing, FakeClock, Interposing, store_of
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.disk.filesystem import FileSystem, Room
from sccache_dtool.disk.names import PAYLOAD, Layout
from sccache_dtool.errors import InUse, NoSpace
from sccache_dtool.policy.rules import Rules
from sccache_dtool.policy.thresholds import Limits, Mark, Spare, Trashed, spare
from sccache_dtool.protocol.election import Election, make_election

Making = Callable[..., Cache]
DAY = 86_400.0
SIZE, FILES = 1000, 10


class _Small:
    """A file system of 1000 bytes and ten inodes, which only payloads take."""

    def room(self, path: str) -> Room:
        """What payloads leave of it, those in the trash included."""
        payloads = [*Path(path, ".sc-dtool").rglob(f"{PAYLOAD}/*")]
        return Room(SIZE, SIZE - sum(one.stat().st_size for one in payloads), FILES, FILES - len(payloads))


class _Disk(_Small, FileSystem):
    """A small one."""


class _Failing(_Small, Failing):
    """A small one that refuses calls."""


class _Interposing(_Small, Interposing):
    """A small one on which something happens meanwhile."""


@pytest.fixture
def cache(make_cache: Making, tmp_path: Path, clock: FakeClock) -> Cache:
    """A cache that takes 900 of the 1000 bytes, and nine of the ten inodes."""
    cache = make_cache(fs=_Disk())
    for number in range(9):
        source = tmp_path / f"f{number}"
        source.write_bytes(bytes(100))
        clock.let_pass(60)
        cache.use(source).release()
    return cache


def left(cache: Cache) -> int:
    return sum(bool(item.copies) for item in cache.items())


SHARE = {number: Mark(number / 100, True) for number in (70, 50)}
FULL = [
    pytest.param(Limits(high=SHARE[70], low=SHARE[50]), (200, 0), 5, id="a share of the bytes"),
    pytest.param(Limits(least_free=300), (200, 0), 7, id="a floor"),
    pytest.param(Limits(entries_high=SHARE[70], entries_low=SHARE[50]), (0, 2), 5, id="a share of the inodes"),
]


@pytest.mark.parametrize(("limits", "over", "stay"), FULL)
def test_what_is_kept_in_the_trash_is_evicted_for_once(
    cache: Cache, clock: FakeClock, limits: Limits, over: tuple[int, int], stay: int
) -> None:
    """With `--trash` each cron run would evict as much again, until the cache is empty, and free nothing."""
    rules = Rules(limits=limits)
    first = cache.clean(rules, keep_for=7 * DAY)
    assert left(cache) == stay
    kept_until = int(clock.wall() + 7 * DAY)
    for _ in range(3):
        again = cache.clean(rules, keep_for=7 * DAY)
        assert (again.removed, left(cache)) == ((), stay)
        assert (again.plan.within, again.missed) == (True, (0, 0))
        assert again.withheld == first.withheld == over
        assert (again.trashed, again.complete, first.complete) == (
            Trashed(900 - 100 * stay, 9 - stay, kept_until),
            False,
            False,
        )
        clock.let_pass(DAY)
    clock.let_pass(5 * DAY)
    done = cache.clean(rules, keep_for=7 * DAY)
    assert (done.removed, done.purged, done.withheld, done.complete) == ((), 9 - stay, (0, 0), True)
    assert left(cache) == stay


@pytest.mark.parametrize(("limits", "over", "stay"), FULL)
def test_without_trash_the_room_comes_at_once(cache: Cache, limits: Limits, over: tuple[int, int], stay: int) -> None:
    """A cleaning that did what it was asked for would tell of a disk that is still full."""
    del over
    done = cache.clean(Rules(limits=limits))
    assert (left(cache), done.complete, done.withheld) == (stay, True, (0, 0))


def test_what_fills_the_disk_beside_the_trash_is_evicted_for(make_cache: Making, cache: Cache, tmp_path: Path) -> None:
    """With something in the trash a disk that fills further would never be cleaned."""
    rules = Rules(limits=Limits(high=SHARE[70], low=SHARE[50]))
    cache.clean(rules, keep_for=7 * DAY)
    (tmp_path / "more").write_bytes(bytes(300))
    make_cache(fs=FileSystem()).use(tmp_path / "more").release()  # 800 bytes without the trash
    again = cache.clean(rules, keep_for=7 * DAY)
    assert sum(one.bytes for one in again.removed) == 300
    assert not again.missed


@pytest.mark.parametrize(("limits", "over", "stay"), FULL)
def test_a_dry_run_tells_what_the_trash_will_hold_up(
    cache: Cache, limits: Limits, over: tuple[int, int], stay: int
) -> None:
    """A data manager who tries the policy first would learn only on the full disk that `trash` keeps it full."""
    rules = Rules(limits=limits)
    plan, _ = cache.plan(rules, keep_for=7 * DAY)
    assert (len(plan.remove), plan.withheld) == (9 - stay, over)
    plan, _ = cache.plan(rules, keep_for=0)
    assert (len(plan.remove), plan.withheld) == (9 - stay, (0, 0))
    cache.clean(rules, keep_for=7 * DAY)
    plan, _ = cache.plan(rules)
    assert (plan.remove, plan.withheld) == ((), over)
    plan, _ = cache.plan(rules, ahead=8 * DAY)
    assert (plan.remove, plan.withheld) == ((), (0, 0))


@pytest.mark.parametrize(("limits", "over", "stay"), FULL)
def test_what_a_killed_cleaner_had_no_time_to_delete_is_not_evicted_for_again(
    cache: Cache, make_cache: Making, layout: Layout, limits: Limits, over: tuple[int, int], stay: int
) -> None:
    """A cleaner that is killed while it deletes, or out of time, would leave a cache that is emptied by the next."""
    del over
    rules = Rules(limits=limits)
    killed = _Interposing()

    def kill() -> None:
        raise KeyboardInterrupt

    killed.before("remove_tree", kill, within=layout.trash)
    with pytest.raises(KeyboardInterrupt):
        make_cache(fs=killed).clean(rules)
    assert (left(cache), len(os.listdir(layout.trash))) == (stay, 9 - stay)
    done = cache.clean(rules)
    assert (done.removed, left(cache), done.complete, os.listdir(layout.trash)) == ((), stay, True, [])


def test_a_cleaning_whose_time_was_over_before_the_trash_was_deleted_is_not_complete(
    cache: Cache, make_cache: Making, clock: FakeClock, layout: Layout
) -> None:
    """A cron job would say that there is room, and the next one empty the cache although it only had to delete."""
    disk, rules = _Interposing(), Rules(limits=Limits(high=SHARE[70], low=SHARE[50]))
    disk.before("remove_tree", lambda: clock.let_pass(100), within=layout.trash)
    done = make_cache(fs=disk).clean(rules, most_seconds=50)
    assert (len(done.removed), done.left, done.purged) == (4, (), 1)
    assert (done.withheld, done.complete, left(cache)) == ((100, 0), False, 5)
    done = cache.clean(rules, most_seconds=50)
    assert (done.removed, done.withheld, done.complete, os.listdir(layout.trash)) == ((), (0, 0), True, [])


def test_what_cannot_be_deleted_from_the_trash_is_told_of(make_cache: Making, cache: Cache, layout: Layout) -> None:
    """A disk that runs full of what the cleaner may not delete would be told of as if it had room."""
    disk = _Failing()
    disk.fail("remove_tree", errno.EACCES, within=layout.trash)
    cleaner, rules = make_cache(fs=disk), Rules(limits=Limits(least_free=300))
    for removed in (2, 0, 0):
        done = cleaner.clean(rules)
        assert (len(done.removed), done.purged, done.withheld, done.complete) == (removed, 0, (200, 0), False)
    assert left(cache) == 7


def test_sizes_of_the_cache_alone_have_nothing_to_do_with_the_trash(cache: Cache) -> None:
    """What a cache may hold would be told of as missed for as long as anything is kept for `restore`."""
    for rules in (Rules(retain_size=500), Rules(limits=Limits(capacity=400))):
        done = cache.clean(rules, keep_for=7 * DAY)
        assert (done.complete, done.withheld, done.trashed) == (True, (0, 0), Trashed())
    assert left(cache) == 4


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), Spare()),
        (Limits(capacity=10, high=SHARE[70]), Spare()),
        (Limits(high=Mark(200, False), entries_high=Mark(200, False)), Spare()),
        (Limits(high=SHARE[70]), Spare(10)),
        (Limits(least_free=50), Spare(-10)),
        (Limits(high=SHARE[70], least_free=50), Spare(-10)),  # the strictest
        (Limits(entries_high=SHARE[50]), Spare(None, -3)),
    ],
)
def test_which_marks_the_file_system_is_measured_by(limits: Limits, expected: Spare) -> None:
    """A cache that has its own size to keep would be held to the room of the disk, or the other way round."""
    room = Room(100, 40, 10, 2)
    assert spare(limits, room if limits.of_file_system else None) == expected
    assert limits.of_file_system == (expected != Spare())
    assert spare(limits, Room(100, 40, 0, 0)).entries is None  # it does not count inodes


def test_room_for_a_fetch_is_not_made_twice(cache: Cache) -> None:
    """After a cleaner was killed, a fetch would evict for room that the deletion of what is evicted already gives."""
    cache.remove(next(cache.items()).key, keep_for=DAY)
    trashed = Path(cache.root, ".sc-dtool", "trash")
    for name in os.listdir(trashed):
        os.rename(trashed / name, trashed / f"{name}~going")
    assert cache.make_room(100) == 100
    assert os.listdir(trashed) == []
    assert left(cache) == 8
    assert cache.make_room(150) == 200
    assert left(cache) == 6


class _Resigning(FakeClock):
    """A clock whose third sleep is the last of another cleaner."""

    def __init__(self, other: Election) -> None:
        super().__init__()
        self.other = other
        self.slept = 0

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.slept += 1
        if self.slept == 3:
            self.other.resign()


def test_room_is_made_after_another_cleaner(make_cache: Making, cache: Cache, layout: Layout, notes: list[str]) -> None:
    """A job would fail for want of room because a cron job was about to make it."""
    other = make_election(store_of(FileSystem(), layout), "clean")
    assert other.poll()
    with pytest.raises(InUse) as refused:
        cache.make_room(100)
    who = refused.value.details[0]
    assert f"process {os.getpid()}" in who
    patient = make_cache(fs=_Disk(), clock=_Resigning(other))
    assert patient.make_room(100, wait=60.0) == 100
    assert [note for note in notes if "waiting for another cleaner" in note and who in note]
    assert left(cache) == 8


def test_a_fetch_that_waited_for_a_cleaner_in_vain_names_it(make_cache: Making, tmp_path: Path, layout: Layout) -> None:
    """The error would say that nothing is idle, where all is, and another process keeps this one from cleaning."""
    big = tmp_path / "big"
    big.write_bytes(bytes(SIZE + 1))
    cache = make_cache(fs=_Full())
    other = make_election(store_of(FileSystem(), layout), "clean")
    assert other.poll()
    owner = cache.owner(f"pid:{os.getpid()}")
    with pytest.raises(NoSpace) as refused:
        cache.hold(owner, cache.item_request([str(big)]), UseOptions(size=SIZE + 1, make_room=True, wait=5.0))
    assert any(f"process {os.getpid()}" in line for line in refused.value.details)
    assert "--wait" in str(refused.value.hint)
    other.resign()


class _Full(FileSystem):
    """A file system without any room."""

    def free_space(self, path: str) -> int | None:
        return 0
