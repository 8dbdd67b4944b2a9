"""A cleaning from end to end."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults import Counting, Failing, FakeClock, FakeProc, Interposing, store_of
from sccache_dtool import pool
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import CleaningName, EndedName, Layout, SegmentName
from sccache_dtool.errors import CacheError, InUse
from sccache_dtool.evict import execution, trash
from sccache_dtool.liveness import State, Verdict, caller
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.caller import CALLER, Owner
from sccache_dtool.liveness.lifetime import Memory
from sccache_dtool.policy.rules import Rules
from sccache_dtool.pool import Pool
from sccache_dtool.protocol import gate, history
from sccache_dtool.protocol.election import Election
from sccache_dtool.protocol.leases import Lease
from waiting import wait_until

FS = FileSystem()
Making = Callable[..., Cache]
EVERYTHING = Rules(everything=True)


@pytest.fixture
def fill(cache: Cache, tmp_path: Path, clock: FakeClock) -> Callable[[str, int], Lease]:
    """Puts a file of so many bytes into the cache, a minute after the one before."""

    def fill(name: str, size: int) -> Lease:
        (tmp_path / name).write_bytes(b"x" * size)
        clock.let_pass(60)
        lease = cache.use(tmp_path / name)
        lease.release()
        return lease

    return fill


def test_reap_ends_the_elections_of_the_dead_and_of_nobody_else(
    cache: Cache, layout: Layout, proc: FakeProc, clock: FakeClock
) -> None:
    """Other hosts would wait for minutes for a fetcher that was killed on this one, or download beside a living one."""
    winners = []
    unknown = Verdict(State.UNKNOWN, "not asked")
    for number, what in ((4242, "of the dead"), (4343, "of the living")):
        owner = caller.process_owner(CALLER, proc, proc.add(number, "job"))
        memory = Memory(None, clock)
        record = holder_record.encode(owner, None, clock)
        winners.append(Election(store_of(FileSystem(), layout), what, record, lambda _: unknown, memory))
        assert winners[-1].poll()
    proc.end(4242)
    cache.reap(dry_run=True)
    assert len(os.listdir(layout.locks)) == 6  # of each the lock, flufl.lock's claim, and the sign
    cache.reap()
    left = [name for name in os.listdir(layout.locks) if "|" not in name]
    assert len(left) == 2
    assert all(name.startswith("of the living.") for name in left)
    for winner in winners:
        winner.resign()


def test_what_nobody_uses_goes_and_what_is_used_stays(cache: Cache, fill: Callable[[str, int], Lease]) -> None:
    """Data would be deleted under its readers, or the disk stay full."""
    free, held = fill("free", 10), cache.use(name="held")
    cleaned = cache.clean(EVERYTHING)
    assert [one.label for one in cleaned.removed] == ["free"]
    assert [one.label for one in cleaned.plan.keep] == ["held"]
    assert (cleaned.freed, cleaned.purged, cleaned.failed, cleaned.taken) == (10, 1, (), ())
    assert not free.path.exists()
    assert held.path.exists()


@pytest.mark.parametrize("error", [errno.ESTALE, errno.ENOTDIR, errno.EACCES, errno.EIO])
def test_nothing_is_evicted_while_nobody_can_tell_what_is_pinned(
    make_cache: Making, fill: Callable[[str, int], Lease], layout: Layout, error: int
) -> None:
    """What a person wanted kept would be deleted because a listing of pins has failed once."""
    lease = fill("kept", 5)
    lease.release()
    fs = Failing()
    fs.fail("names", error, within=layout.pins)
    with pytest.raises(CacheError, match="cannot read the pins"):
        make_cache(fs=fs).clean(EVERYTHING)
    assert os.path.exists(lease.place.payload)


def test_the_least_recently_used_goes_first_until_the_size_is_reached(
    cache: Cache, fill: Callable[[str, int], Lease], clock: FakeClock, tmp_path: Path
) -> None:
    """`--retain-size` would remove what is used now, or more than it must."""
    leases = {name: fill(name, 100) for name in "abcd"}
    clock.let_pass(60)
    cache.use(Path(tmp_path, "b")).release()
    cleaned = cache.clean(Rules(retain_size=200))
    assert [one.label for one in cleaned.removed] == ["a", "c"]
    assert not cleaned.missed
    assert [name for name in leases if leases[name].path.exists()] == ["b", "d"]


def test_a_dry_run_is_what_comes_true_and_writes_nothing_but_a_probe(
    make_cache: Making, cache: Cache, fill: Callable[[str, int], Lease], job: Owner, proc: FakeProc, source: str
) -> None:
    """`--dry-run` would remove something, or show another plan than the one that is carried out."""
    for name in "abc":
        fill(name, 100)
    cache.hold(job, cache.item_request([source]))
    proc.end(4242)
    fs = Counting()
    plan, reaped = make_cache(fs=fs).plan(Rules(retain_size=100))
    written = [call for call in fs.calls if call.kind in ("symlink", "rename", "mkdir", "rmdir", "unlink", "create")]
    assert [call.kind for call in written] == ["symlink", "unlink"]
    assert "probe-" in written[0].path
    assert len(reaped.leases) == 1
    cleaned = cache.clean(Rules(retain_size=100))
    assert cleaned.removed == plan.remove
    assert [one.held for one in cleaned.reaped.leases] == [one.held for one in reaped.leases]


def test_leases_of_the_dead_are_ended_first(
    cache: Cache, job: Owner, proc: FakeProc, source: str, layout: Layout
) -> None:
    """What only dead jobs hold would stay."""
    lease = cache.hold(job, cache.item_request([source]))
    proc.end(4242)
    cleaned = cache.clean(EVERYTHING)
    assert len(cleaned.reaped.leases) == 1
    assert [one.key for one in cleaned.removed] == [lease.key]
    assert [use.how for use in cache.uses(lease.key)] == ["reaped"]


def test_a_reaped_use_is_a_use_that_has_just_ended(
    cache: Cache, job: Owner, proc: FakeProc, source: str, clock: FakeClock
) -> None:
    """What a job used until it was killed would be removed as if nobody had used it for a month."""
    cache.hold(job, cache.item_request([source]))
    clock.let_pass(30 * 86_400)
    proc.end(4242)
    cleaned = cache.clean(Rules(older_than=86_400.0))
    assert len(cleaned.reaped.leases) == 1
    assert cleaned.removed == ()


def test_what_is_taken_meanwhile_is_told_of_and_stays(
    make_cache: Making, cache: Cache, fill: Callable[[str, int], Lease], tmp_path: Path
) -> None:
    """Who takes a lease between the plan and its carrying out would lose the data, or the cleaner would fail."""
    lease = fill("a", 10)
    fs = Interposing()
    fs.before("rmdir", lambda: cache.use(tmp_path / "a"), within="/use")
    cleaned = make_cache(fs=fs).clean(EVERYTHING)
    assert ([one.label for one in cleaned.taken], cleaned.removed, cleaned.failed) == (["a"], (), ())
    assert lease.path.exists()


def test_what_somebody_else_has_removed_meanwhile_counts_to_the_goal(
    make_cache: Making, cache: Cache, fill: Callable[[str, int], Lease]
) -> None:
    """A cron job would tell of a missed goal, although less is there than it wanted; or boast of what others did."""
    leases = [fill(name, 100) for name in "ab"]
    fs = Interposing()
    fs.before("rmdir", lambda: cache.remove(leases[0].place.key, keep_for=0), within="/use")
    cleaned = make_cache(fs=fs).clean(Rules(retain_size=0))
    assert ([one.label for one in cleaned.gone], [one.label for one in cleaned.removed]) == (["a"], ["b"])
    assert not cleaned.missed
    assert cleaned.complete


@pytest.mark.parametrize("error", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ENOTDIR])
def test_what_cannot_be_removed_is_told_of_and_does_not_keep_the_rest(
    make_cache: Making, fill: Callable[[str, int], Lease], error: int
) -> None:
    """One item of another user would stop the cleaning of all, or be half removed."""
    leases = [fill(name, 10) for name in "abc"]
    fs = Failing()
    fs.fail("rmdir", error, within=leases[1].place.generation)
    cleaned = make_cache(fs=fs).clean(EVERYTHING)
    assert [one.label for one in cleaned.removed] == ["a", "c"]
    assert [(one.candidate.label, os.strerror(error) in one.reason) for one in cleaned.failed] == [("b", True)]
    assert leases[1].path.exists()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_a_plan_can_be_made_where_nothing_can_be_written(
    make_cache: Making, fill: Callable[[str, int], Lease], warnings: list[str], error: int
) -> None:
    """A user who may only read could not find out what of theirs will go."""
    fill("a", 10)
    fs = Failing()
    fs.fail("symlink", error, within="/holders/probe-")
    plan, _ = make_cache(fs=fs).plan(EVERYTHING)
    assert [one.label for one in plan.remove] == ["a"]
    assert "are not considered dead" in warnings[0]


def _only_copy(layout: Layout, label: str) -> tuple[str, str]:
    (directory,) = Path(layout.items).glob(f"*/*-{label}")
    (generation,) = (path.name for path in directory.iterdir() if path.name != "history")
    return directory.name, generation


class CtrlC(FileSystem):
    """Interrupts a process as soon as so many copies are in the trash. Can be sent to helpers.

    From then on nobody goes on before that process has noticed.
    """

    def __init__(self, trash: str, copies: int, noticed: Path) -> None:
        self._trash, self._copies, self._noticed, self._process = trash, copies, noticed, os.getpid()

    def rename(self, source: str, target: str, **more: Any) -> None:
        super().rename(source, target, **more)
        if target.startswith(self._trash) and len(os.listdir(self._trash)) >= self._copies:
            if not self._noticed.exists():
                os.kill(self._process, signal.SIGINT)
            wait_until(self._noticed.exists, "the process has noticed that it is interrupted")


@pytest.fixture
def noticed(tmp_path: Path) -> Iterator[Path]:
    """A file that is there as soon as this process has noticed that it is interrupted."""
    path = tmp_path / "noticed"

    def interrupt(*_: object) -> None:
        if not path.exists():
            path.touch()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    yield path
    signal.signal(signal.SIGINT, before)


def told_and_gone(layout: Layout) -> tuple[list[str], list[str]]:
    """What the one record of a cleaning tells that it has evicted, and what is in the trash."""
    (name,) = os.listdir(layout.cleanings)
    first, *lines = (json.loads(line) for line in Path(layout.cleanings, name).read_text().splitlines())
    assert "broken off" in first["why"]
    told = [line["removed"].partition("/")[2] for line in lines if "removed" in line]
    counted = CleaningName.parse(name)
    assert counted is not None
    assert counted.copies == first["removed"] == len(told)
    return sorted(told), sorted(name.partition("~")[0] for name in os.listdir(layout.trash))


@pytest.mark.parametrize("by", ["ourselves", "threads", "processes"])
def test_what_was_removed_is_on_record_although_the_cleaning_was_broken_off(
    make_cache: Making,
    layout: Layout,
    fill: Callable[[str, int], Lease],
    monkeypatch: pytest.MonkeyPatch,
    noticed: Path,
    by: str,
) -> None:
    """After a Ctrl-C nobody could say who removed what, and a monitor would never hear of most of it."""
    for number in range(40):
        fill(f"f{number}", 1)
    monkeypatch.setattr(execution, "AT_ONCE", 4)  # several pieces of work for each of those who are at it at a time
    monkeypatch.setattr(pool, "PROBE", 0.0)
    monkeypatch.setattr(pool, "WORTH", 1e9 if by == "ourselves" else -1.0)
    monkeypatch.setattr(pool, "MANY", 0)
    monkeypatch.setattr(pool, "processors", lambda: 3)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    if by == "threads":
        monkeypatch.setattr(Pool, "share", lambda _, work, tasks, waiting: pool.by_threads(work, tasks, 3))
    if by == "processes":
        many = Pool.by_processes
        monkeypatch.setattr(Pool, "share", lambda self, work, tasks, waiting: many(self, work, tasks))
    with pytest.raises(KeyboardInterrupt):
        make_cache(fs=CtrlC(layout.trash, 10, noticed), jobs=3).clean(EVERYTHING)
    told, gone = told_and_gone(layout)
    assert told == gone
    assert 10 <= len(told) < 40
    assert os.listdir(layout.tmp) == []


def test_a_missed_goal_is_told(cache: Cache, fill: Callable[[str, int], Lease], tmp_path: Path) -> None:
    """A cron job would report success on a full disk."""
    fill("free", 100)
    fill("held", 100)
    cache.use(tmp_path / "held")
    cleaned = cache.clean(Rules(retain_size=50))
    assert (cleaned.freed, cleaned.missed.bytes) == (100, 50)


def test_only_one_cleans(make_cache: Making, cache: Cache, fill: Callable[[str, int], Lease]) -> None:
    """Two cron jobs would do the same work twice."""
    fill("a", 10)
    fs = Interposing()
    caught: list[InUse] = []

    def clean_too() -> None:
        with pytest.raises(InUse) as error:
            cache.clean(EVERYTHING)
        caught.append(error.value)

    fs.before("rmdir", clean_too, within="/use")
    assert len(make_cache(fs=fs).clean(EVERYTHING).removed) == 1
    assert f"process {os.getpid()}" in caught[0].details[0]
    assert cache.clean(EVERYTHING).removed == ()


def test_a_cleaner_leaves_nothing_of_its_own(cache: Cache, fill: Callable[[str, int], Lease], layout: Layout) -> None:
    """Every cron job would leave holders and locks."""
    fill("a", 10)
    before = sorted(os.listdir(layout.holders))
    cache.clean(EVERYTHING)
    assert sorted(os.listdir(layout.holders)) == before
    assert (os.listdir(layout.locks), os.listdir(layout.tmp), os.listdir(layout.trash)) == ([], [], [])


def test_a_cleaner_lives_as_long_as_the_settings_say(
    make_cache: Making, fill: Callable[[str, int], Lease], layout: Layout
) -> None:
    """What a cleaner on a host that has crashed was working at would stay for half a day, whatever is configured."""
    fill("a", 10)
    Path(layout.config_file).write_text('[lease]\nheartbeat_ttl = "7m"\n')
    fs = Counting()
    make_cache(fs=fs).clean(EVERYTHING)
    made = [call.arguments[0] for call in fs.calls if call.kind == "symlink" and f"{layout.holders}/p" in str(call)]
    lifetimes = [json.loads(text)["ttl"] for text in made if text.startswith("{")]
    assert lifetimes == [420.0]


@pytest.mark.parametrize("kind", ["names", "rmdir", "rename", "remove_tree", "lstat", "unlink"])
@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8])
def test_a_cleaner_that_fails_anywhere_harms_nobody_and_the_next_one_finishes(
    make_cache: Making, cache: Cache, fill: Callable[[str, int], Lease], layout: Layout, kind: str, nth: int
) -> None:
    """A fault in the middle of a cleaning would cost data in use, or leave what nobody can remove."""
    fill("a", 10)
    fill("b", 10)
    held = cache.use(name="held")
    fs = Failing()
    fs.fail(kind, errno.EIO, nth=nth)
    broken = make_cache(fs=fs)
    broken.check()
    try:
        broken.clean(EVERYTHING)
    except (OSError, CacheError) as error:
        assert os.strerror(errno.EIO) in str(error)  # noqa: PT017
    assert held.path.exists()
    assert os.listdir(held.place.gate) == [held.name]
    for name in os.listdir(layout.locks):
        os.unlink(f"{layout.locks}/{name}")
    cache.clean(EVERYTHING)
    assert [item.label for item in cache.items() if item.copies] == ["held"]
    assert (os.listdir(layout.trash), os.listdir(layout.tmp)) == ([], [])
    held.check()


def test_an_interrupted_eviction_is_tidied(cache: Cache, fill: Callable[[str, int], Lease], layout: Layout) -> None:
    """A copy that nobody can use would keep its space for ever."""
    lease = fill("a", 10)
    assert gate.close(FS, lease.place.gate)
    cleaned = cache.clean(Rules(older_than=1e9))
    assert [one.what for one in cleaned.tidied] == ["a copy whose eviction was interrupted"]
    assert os.listdir(layout.trash) == []
    assert not lease.path.exists()


def test_what_a_killed_cleaner_had_evicted_is_deleted_by_all_and_in_time(
    make_cache: Making, fill: Callable[[str, int], Lease], layout: Layout, clock: FakeClock
) -> None:
    """The next clean would delete it one by one, and go on for hours whatever `--max-runtime` says."""
    for name in "abc":
        fill(name, 10)
        assert trash.evict(store_of(FS, layout), *_only_copy(layout, name)) is trash.Outcome.EVICTED
    fs = Interposing()
    fs.before("remove_tree", lambda: clock.let_pass(60), within=layout.trash)
    cleaned = make_cache(fs=fs).clean(Rules(older_than=1e9), most_seconds=30.0)
    assert (cleaned.purged, cleaned.unpurged, cleaned.unpurged_bytes, cleaned.tidied) == (1, 2, 20, ())
    assert not cleaned.complete
    assert len(os.listdir(layout.trash)) == 2
    cleaned = make_cache().clean(Rules(older_than=1e9))
    assert (cleaned.purged, cleaned.unpurged, cleaned.complete) == (2, 0, True)


def test_what_cannot_be_deleted_is_still_to_be_deleted(
    make_cache: Making, fill: Callable[[str, int], Lease], layout: Layout
) -> None:
    """A cron job would report success, and the disk stay full of what another user has put there."""
    fill("a", 10)
    fs = Failing()
    fs.fail("remove_tree", errno.EACCES, within=layout.trash)
    cleaned = make_cache(fs=fs).clean(EVERYTHING)
    assert (cleaned.freed, cleaned.purged, cleaned.unpurged, cleaned.complete) == (10, 0, 1, False)


def test_leftovers_for_which_there_is_no_time_are_left(
    make_cache: Making, fill: Callable[[str, int], Lease], layout: Layout, clock: FakeClock
) -> None:
    """A cron job would run into the next one."""
    for name in "ab":
        assert gate.close(FS, fill(name, 10).place.gate)
    fs = Interposing()
    fs.before("rename", lambda: clock.let_pass(60), within=layout.trash)
    cleaned = make_cache(fs=fs).clean(Rules(older_than=1e9), most_seconds=30.0)
    assert (len(cleaned.tidied), cleaned.purged, cleaned.unpurged) == (1, 0, 1)
    assert len(make_cache().clean(Rules(older_than=1e9)).tidied) == 1
    assert os.listdir(layout.trash) == []


def test_what_a_killed_cleaner_leaves_of_its_election_keeps_nobody_from_being_quick(
    make_cache: Making, cache: Cache, fill: Callable[[str, int], Lease], layout: Layout
) -> None:
    """For a day after a kill every cron job would do all its work for nothing, and write into the cache."""
    fill("a", 10)
    for name in ("clean.lock|node7|123|456", "0f.lock"):
        Path(layout.locks, name).touch()
    os.utime(layout.locks, (0, 0))
    cache.clean(Rules(older_than=1e9))
    assert os.stat(layout.locks).st_mtime == 0  # nobody was elected
    assert sorted(os.listdir(layout.locks)) == ["0f.lock", "clean.lock|node7|123|456"]


def test_long_histories_are_folded(cache: Cache, source: str, layout: Layout) -> None:
    """A cache that is used a million times would have a million files, and a scan take hours."""
    for _ in range(history.FOLD_AT + 5):
        lease = cache.use(source)
        lease.release()
    cache.clean(Rules(older_than=1e9))
    names = os.listdir(layout.history(lease.key))
    assert [SegmentName.parse(name) is not None for name in names] == [True]
    assert cache.item(lease.key).finished_uses == history.FOLD_AT + 5
    assert cache.clean(Rules(fewer_uses_than=history.FOLD_AT)).removed == ()


def test_a_record_that_nobody_can_read_does_not_stop_the_cleaning(
    cache: Cache, source: str, layout: Layout, tmp_path: Path
) -> None:
    """One odd name of a user would end every later `clean` of everybody with a traceback."""
    lease = cache.use(source)
    for number in range(history.FOLD_AT):
        name = EndedName(f"s0123456789ab-0123456789ab.{number}", 1_600_000_000_000 + number, "released")
        os.symlink(b"2026-11-21T09:30:12.000Z \xff\xfe@host\x85\xe2\x80\xa8[1]", f"{layout.history(lease.key)}/{name}")
    cache.clean(Rules(older_than=1e9))
    assert cache.item(lease.key).finished_uses == history.FOLD_AT
    assert len(cache.uses(lease.key)) == history.FOLD_AT


def test_what_is_evicted_to_the_trash_is_not_deleted(
    cache: Cache, fill: Callable[[str, int], Lease], layout: Layout
) -> None:
    """`clean --trash 7d` would leave nothing to restore."""
    fill("a", 10)
    cleaned = cache.clean(EVERYTHING, keep_for=7 * 86_400)
    assert (len(cleaned.removed), cleaned.purged) == (1, 0)
    assert len(os.listdir(layout.trash)) == 1
    assert cache.restore("a")


class Full(FileSystem):
    """A disk without a free block: what has no room in a directory cannot be made."""

    def put_record(self, text: str, path: str, **more: bool) -> None:
        if len(text) > 59:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        super().put_record(text, path, **more)

    def mkdir(self, path: str, mode: int = 0o777, *, shared: bool = False) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def test_a_full_disk_can_be_cleaned(make_cache: Making, fill: Callable[[str, int], Lease]) -> None:
    """A full disk could not be cleaned if an election or a holder needed space."""
    fill("a", 10).release()
    cleaned = make_cache(fs=Full()).clean(Rules(everything=True))
    assert cleaned.freed == 10
    assert not cleaned.failed
