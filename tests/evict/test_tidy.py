"""What crashes and kills leave behind, and what is not taken for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults import FakeClock, FakeProc, Interposing, OnClock, store_of
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, PROBE, Generation, HolderName, Layout, TrashName, WorkName
from sccache_dtool.evict import single
from sccache_dtool.evict.cleaning import Cleaner
from sccache_dtool.evict.execution import put_away
from sccache_dtool.evict.leftovers import OLD, Leftover
from sccache_dtool.liveness import caller
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.policy.rules import Rules
from sccache_dtool.pool import Pool
from sccache_dtool.protocol import gate, holders
from sccache_dtool.protocol.holders import Holder

FS = FileSystem()
Making = Callable[..., Cache]
ID = "s0123456789ab-0123456789ab"


pytestmark = pytest.mark.present


def leftovers(cache: Cache) -> list[Leftover]:
    with Pool() as pool:
        unsettled = single.unsettled(cache.store, pool)
        return list(Cleaner(cache.store, cache.settings, pool).leftovers(unsettled))


def paths(cache: Cache) -> list[str]:
    return [leftover.path for leftover in leftovers(cache)]


def put_all_away(cache: Cache) -> None:
    for leftover in leftovers(cache):
        leftover.put_away()


@pytest.mark.parametrize(("number", "warned"), [(errno.ENOENT, 0), (errno.ESTALE, 0), (errno.EIO, 1)])
def test_what_another_host_puts_away_meanwhile_is_no_matter(
    layout: Layout, warnings: list[str], number: int, warned: int
) -> None:
    """Cron jobs of two hosts would send mail, "Stale file handle", whenever they tidy up the same."""

    def fail() -> None:
        raise OSError(number, os.strerror(number), "/cache/.sc-dtool/trash/x")

    store = store_of(FS, layout)
    assert put_away(store, [Leftover("/cache/.sc-dtool/trash/x", "an evicted copy", fail)]) == []
    assert len(warnings) == warned


def test_a_new_cache_has_no_leftovers(cache: Cache) -> None:
    """`doctor` would never be content."""
    assert leftovers(cache) == []


def test_what_is_in_use_is_no_leftover(cache: Cache, source: str, clock: FakeClock) -> None:
    """A cleaner would put away what a running program needs."""
    lease = cache.use(source)
    clock.let_pass(10 * OLD)
    assert leftovers(cache) == []
    assert lease.path.exists()


def test_an_interrupted_eviction_is_finished(cache: Cache, source: str, layout: Layout) -> None:
    """A copy that nobody can use would keep its space for ever."""
    lease = cache.use(source)
    lease.release()
    assert gate.close(FS, lease.place.gate)
    assert paths(cache) == [layout.generation(lease.key, lease.place.generation)]
    put_all_away(cache)
    assert not lease.path.exists()
    assert os.listdir(layout.trash) == []
    assert leftovers(cache) == []


def test_the_work_area_of_a_dead_process_is_put_away(
    cache: Cache, job: Owner, proc: FakeProc, layout: Layout, clock: FakeClock
) -> None:
    """What killed fetches left would fill the disk."""
    holder = Holder(store_of(FS, layout, clock=clock), job, None)
    work = WorkName(holder.next_lease(), "fetch")
    Path(layout.tmp, str(work), "payload").mkdir(parents=True)
    assert leftovers(cache) == []
    proc.end(4242)
    assert paths(cache) == [f"{layout.tmp}/{work}"]
    put_all_away(cache)
    assert os.listdir(layout.tmp) == []


def test_the_work_area_of_a_holder_that_is_nowhere_is_put_away(cache: Cache, layout: Layout) -> None:
    """What fetchers left whose entry was removed would fill the disk."""
    Path(layout.tmp, str(WorkName(f"{ID}.0", "fetch"))).mkdir()
    put_all_away(cache)
    assert os.listdir(layout.tmp) == []


def test_the_work_area_of_a_process_elsewhere_stays(cache: Cache, job: Owner, layout: Layout, clock: FakeClock) -> None:
    """A cleaner on one host would delete the downloads of all others."""
    assert job.process is not None
    holder = Holder(
        store_of(FS, layout, clock=clock), job._replace(process=job.process._replace(boot="another host")), None
    )
    Path(layout.tmp, str(WorkName(holder.next_lease(), "fetch"))).mkdir()
    clock.let_pass(10 * OLD)
    assert leftovers(cache) == []


def test_a_fetch_that_begins_while_a_cleaner_works_is_not_put_away(
    make_cache: Making, source: str, layout: Layout, clock: FakeClock
) -> None:
    """A download would fail whenever a cleaner has just judged leases of processes that are gone."""
    lost = make_cache().use(name="lost")  # a lease whose holder is nowhere makes the cleaner call the listing again
    os.rename(f"{layout.holders}/{lost.holder._name}", f"{layout.root}/elsewhere")
    works: list[str] = []

    def begin() -> None:
        holder = Holder(store_of(FS, layout, clock=clock), caller.program_owner(make_cache()._proc), None)
        works.append(str(WorkName(holder.next_lease(), "fetch")))
        os.mkdir(f"{layout.tmp}/{works[0]}")

    class Late(Interposing):
        """After the second listing call, which is the third listing of holders with that of `gone`, begin."""

        def names(self, path: str, **more: Any) -> list[str]:
            found = super().names(path, **more)
            rolls = sum(call.kind == "names" and call.path == layout.holders for call in self.calls)
            if path == layout.holders and rolls == 2 and not works:
                begin()
            return found

    fs = Late()
    cleaned = make_cache(fs=fs).clean(Rules(everything=True))
    assert works
    assert [one.held.name for one in cleaned.reaped.leases] == [lost.name]
    assert works[0] in os.listdir(layout.tmp)


def test_a_work_area_that_is_going_goes(cache: Cache, job: Owner, layout: Layout, clock: FakeClock) -> None:
    """What a killed cleaner left would fill the disk, because its holder lives."""
    holder = Holder(store_of(FS, layout, clock=clock), job, None)
    Path(layout.tmp, str(WorkName(holder.next_lease(), "going")), "x").mkdir(parents=True)
    put_all_away(cache)
    assert os.listdir(layout.tmp) == []


def test_a_half_deleted_copy_is_deleted(cache: Cache, layout: Layout) -> None:
    """What a killed cleaner left would fill the disk."""
    generation = Generation("0123456789abcdef", 1_700_000_000, 5, 1)
    Path(layout.trash, str(TrashName(generation, 2_000_000_000, True)), "x").mkdir(parents=True)
    Path(layout.trash, str(TrashName(generation, 2_000_000_000)), "x").mkdir(parents=True)
    put_all_away(cache)
    assert os.listdir(layout.trash) == [str(TrashName(generation, 2_000_000_000))]


def test_revoked_holders_are_kept_for_a_day_and_while_they_have_leases(
    cache: Cache, job: Owner, layout: Layout, clock: FakeClock, source: str
) -> None:
    """A revoked program's leases would become those of a holder that is nowhere; or `gone` would grow for ever."""
    idle = Holder(store_of(FS, layout, clock=clock), job, None)
    busy = cache.hold(job, cache.item_request([source]))
    present = holders.HolderList.glance(store_of(FS, layout)).present
    for holder in (idle, busy.holder):
        assert holders.revoke(store_of(FS, layout), present[holder.id])
    assert leftovers(cache) == []
    clock.let_pass(OLD + 100)
    assert paths(cache) == [f"{layout.gone}/{HolderName(idle.id, 0, 0)}"]
    put_all_away(cache)
    assert os.listdir(layout.gone) == [str(present[busy.holder.id])]


def test_probes_are_put_away_when_they_are_old(cache: Cache, layout: Layout, clock: FakeClock) -> None:
    """Killed listings would leave names for ever; or a listing under way would lose its probe."""
    probe = f"{layout.holders}/{PROBE}0123456789abcdef"
    os.symlink("probe", probe)
    assert leftovers(cache) == []
    clock.let_pass(OLD + 100)
    assert paths(cache) == [probe]
    put_all_away(cache)
    assert not os.path.lexists(probe)


def test_what_is_left_of_elections_is_put_away_when_it_is_old(cache: Cache, layout: Layout, clock: FakeClock) -> None:
    """Killed fetchers would leave locks for ever; or a running one would lose its lock."""
    names = ["0f.lock", "0f.lock|node7|123|456", "0f.by-0123456789abcdef"]
    for name in names:
        Path(layout.locks, name).touch()
    assert leftovers(cache) == []
    clock.let_pass(OLD + 100)
    assert sorted(paths(cache)) == sorted(f"{layout.locks}/{name}" for name in names)
    put_all_away(cache)
    assert os.listdir(layout.locks) == []


def test_a_lock_that_is_held_is_not_old(cache: Cache, layout: Layout, clock: FakeClock) -> None:
    """A download of more than a day would lose its lock."""
    path = Path(layout.locks, "0f.lock")
    path.touch()
    clock.let_pass(10 * OLD)
    os.utime(path, (clock.wall() + 200, clock.wall() + 200))
    assert leftovers(cache) == []


def test_nothing_of_others_is_a_leftover(cache: Cache, layout: Layout, clock: FakeClock, warnings: list[str]) -> None:
    """Somebody's own file would be deleted because of where it is, and how old."""
    for directory in (layout.tmp, layout.trash, layout.gone, layout.holders, layout.locks, layout.items):
        Path(directory, "README").write_text("mine")
    clock.let_pass(10 * OLD)
    assert leftovers(cache) == []
    assert len([warning for warning in warnings if "README" in warning]) == 6
    cache.clean(Rules(everything=True))
    for directory in (layout.tmp, layout.trash, layout.gone, layout.holders, layout.locks, layout.items):
        assert Path(directory, "README").read_text() == "mine"


def test_putting_away_twice_and_at_once_is_no_error(make_cache: Making, layout: Layout, clock: FakeClock) -> None:
    """Two cleaners at once would fail, or warn of what the other did."""
    cache = make_cache(fs=OnClock(clock))
    generation = Generation("0123456789abcdef", 1_700_000_000, 5, 1)
    Path(layout.tmp, str(WorkName(f"{ID}.0", "fetch"))).mkdir()
    Path(layout.trash, str(TrashName(generation, 0, True)), "x").mkdir(parents=True)
    Path(layout.holders, f"{PROBE}0123456789abcdef").touch()
    other = generation._replace(random="f" * 16)
    Path(layout.items, "01", f"{'0123456789abcdef' * 2}-x", str(other)).mkdir(parents=True)
    clock.let_pass(OLD + 100)
    found = leftovers(cache)
    assert len(found) == 4
    for _ in range(2):
        for leftover in found:
            try:
                leftover.put_away()
            except FileNotFoundError:
                continue
    assert leftovers(cache) == []
    assert os.listdir(layout.tmp) == []
    assert not os.path.exists(f"{layout.items}/01/{'0123456789abcdef' * 2}-x/{other}/{GATE}")
