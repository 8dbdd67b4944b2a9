"""Judging leases by their holders, and ending only those whose holder is proved dead."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults import Counting, Failing, FakeClock, FakeProc, Interposing, LostReplies, OnClock, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, Generation, HolderName, Layout, LeaseName
from sccache_dtool.errors import LeaseLost
from sccache_dtool.liveness import State, caller, lifetime
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.caller import NAMED, PROGRAM, Owner
from sccache_dtool.liveness.process import Process
from sccache_dtool.protocol import history, holders, leases, reaping
from sccache_dtool.protocol.holders import Holder, HolderList
from sccache_dtool.protocol.leases import Held, Lease, Place
from sccache_dtool.protocol.reaping import Judge, Judged, Reaped

FS = FileSystem()
KEY = f"{'0123456789abcdef' * 2}-ref.fa"
GENERATION = Generation("0123456789abcdef", 1_800_000_000, 5, 1)
TTL = 3600.0
PID = 4242


@pytest.fixture
def place(layout: Layout) -> Place:
    """A published copy of an item."""
    made = Place.of(layout, KEY, str(GENERATION), "ref.fa")
    FS.make_dirs(made.gate)
    FS.make_dirs(made.history)
    return made


Taking = Callable[..., Lease]


@pytest.fixture
def take(layout: Layout, clock: FakeClock, place: Place) -> Taking:
    """Takes a lease on the item for an owner."""

    def take(owner: Owner, ttl: float | None = None, fs: FileSystem = FS) -> Lease:
        lease = leases.take(
            store_of(fs, None, clock=clock), Holder(store_of(fs, layout, clock=clock), owner, ttl), place
        )
        assert lease is not None
        return lease

    return take


def held(place: Place) -> list[Held]:
    return [Held(KEY, str(GENERATION), name, LeaseName.parse(name)) for name in sorted(os.listdir(place.gate))]


Reaping = Callable[..., Reaped]


@pytest.fixture
def reap(layout: Layout, clock: FakeClock, proc: FakeProc, place: Place, warnings: list[str]) -> Reaping:
    """Reaps as `sc-dtool reap` does on this host."""

    def reap(fs: FileSystem = FS, **more: object) -> Reaped:
        listed = held(place)
        with reaping.open_judge(store_of(fs, layout, clock=clock, proc=proc)) as judge:
            return reaping.reap(store_of(fs, layout, clock=clock), judge, listed, **{"dry_run": False, **more})  # type: ignore[arg-type]

    return reap


def judge(
    layout: Layout, clock: FakeClock, proc: FakeProc, place: Place, *, glance: bool = False, fs: FileSystem = FS
) -> list[Judged]:
    listed = held(place)
    with reaping.open_judge(store_of(fs, layout, clock=clock, proc=proc), glance=glance) as judge:
        return [judge.lease(one) for one in listed]


def ended(place: Place) -> list[history.Use]:
    return history.read(store_of(FS, None), place.history)


def test_who_cannot_remember_what_it_saw_is_told(
    take: Taking, reap: Reaping, warnings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleaner of a user without a home would keep what was on a host that crashed for ever, without a word."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    reap()
    assert warnings == []  # there was nothing to remember
    elsewhere = Process("another", "1.1", 7, 7)
    take(Owner(PROGRAM, elsewhere, None, ""), TTL)
    reap()
    assert len(warnings) == 1
    assert f"{tmp_path}/file/sc-dtool/seen-cache-id-" in warnings[0]


# -- who is reaped, and who is not -------------------------------------------------------------------------------------


def test_a_running_job_keeps_its_lease(job: Owner, take: Taking, reap: Reaping, place: Place) -> None:
    """Data would be deleted under a running job."""
    take(job)
    assert reap() == ((), {}, (), {})
    assert len(os.listdir(place.gate)) == 1


def test_a_killed_job_loses_its_lease_and_the_use_is_counted(
    job: Owner, take: Taking, reap: Reaping, place: Place, proc: FakeProc, layout: Layout
) -> None:
    """A killed job's lease would keep an item for ever, or its use be missing in the log."""
    lease = take(job)
    proc.end(PID)
    reaped = reap()
    assert [one.held.name for one in reaped.leases] == [lease.name]
    assert [*reaped.holders] == [lease.holder.id]
    assert os.listdir(place.gate) == []
    assert [(use.lease, use.how) for use in ended(place)] == [(lease.name, "reaped")]
    assert [HolderName.parse(name).id for name in os.listdir(layout.gone)] == [lease.holder.id]  # type: ignore[union-attr]


def test_a_dry_run_only_tells(
    job: Owner, take: Taking, reap: Reaping, place: Place, proc: FakeProc, layout: Layout
) -> None:
    """`reap --dry-run` would end leases."""
    lease = take(job)
    proc.end(PID)
    assert [one.held.name for one in reap(dry_run=True).leases] == [lease.name]
    assert os.listdir(place.gate) == [lease.name]
    assert os.listdir(layout.gone) == []


def test_reaping_twice_ends_and_counts_once(
    job: Owner, take: Taking, reap: Reaping, place: Place, proc: FakeProc
) -> None:
    """Two cron jobs at once would count a use twice."""
    take(job)
    proc.end(PID)
    assert len(reap().leases) == 1
    assert reap() == ((), {}, (), {})
    assert len(ended(place)) == 1


def test_a_holder_is_judged_once_for_all_its_leases(
    job: Owner, reap: Reaping, place: Place, proc: FakeProc, layout: Layout, clock: FakeClock
) -> None:
    """A job with a thousand leases would cost a thousand judgements, and could lose half of them."""
    holder = Holder(store_of(FS, layout, clock=clock), job, None)
    names = {lease.name for _ in range(5) if (lease := leases.take(store_of(FS, None, clock=clock), holder, place))}
    proc.end(PID)
    fs = Counting()
    assert {one.held.name for one in reap(fs).leases} == names
    assert sum(call.kind == "readlink" and call.path.startswith(layout.holders) for call in fs.calls) == 1


@pytest.mark.parametrize("text", ["", "garbage", '{"kind":"process"}', "{}", "x" * 1000])
def test_a_holder_whose_record_cannot_be_understood_is_kept(
    job: Owner,
    take: Taking,
    reap: Reaping,
    place: Place,
    proc: FakeProc,
    layout: Layout,
    warnings: list[str],
    text: str,
) -> None:
    """A newer release's, or a half-written, record would cost its holder all leases."""
    lease = take(job)
    proc.end(PID)
    entry = f"{layout.holders}/{lease.holder.id}.0.0"
    os.unlink(entry)
    if text:
        os.symlink(text, entry)
    else:
        Path(entry).touch()
    assert reap() == ((), {}, (), {})
    assert os.listdir(place.gate) == [lease.name]
    assert lease.holder.id in warnings[0]


def test_a_holder_whose_record_cannot_be_read_is_unknown(
    job: Owner, take: Taking, place: Place, proc: FakeProc, layout: Layout, clock: FakeClock
) -> None:
    """A passing fault of the server would end leases."""
    take(job)
    proc.end(PID)
    fs = Failing()
    fs.fail("readlink", errno.EIO, within=layout.holders)
    (one,) = judge(layout, clock, proc, place, fs=fs)
    assert one.verdict.state is State.UNKNOWN
    assert "cannot be read" in one.verdict.evidence


def test_a_name_in_the_gate_that_nobody_knows_is_kept(
    reap: Reaping, place: Place, layout: Layout, clock: FakeClock, proc: FakeProc
) -> None:
    """What a newer release, or a person, put into a gate would not keep the data."""
    Path(place.gate, "hands off").touch()
    assert reap() == ((), {}, (), {})
    assert judge(layout, clock, proc, place)[0].verdict.state is State.UNKNOWN
    assert os.listdir(place.gate) == ["hands off"]


def test_a_job_of_another_host_is_kept(job: Owner, take: Taking, reap: Reaping, place: Place, proc: FakeProc) -> None:
    """A cleaner on one host would end the leases of all others."""
    assert job.process is not None
    take(job._replace(process=job.process._replace(boot="another host")))
    proc.end(PID)
    assert reap() == ((), {}, (), {})
    assert len(os.listdir(place.gate)) == 1


def test_one_bad_lease_does_not_save_the_others(
    job: Owner, take: Taking, reap: Reaping, place: Place, proc: FakeProc
) -> None:
    """One lease that cannot be ended would keep all dead leases of a cache."""
    names = sorted(take(job).name for _ in range(3))
    proc.end(PID)
    fs = Failing()
    fs.fail("rename", errno.EACCES, within=f"{GATE}/{names[1]}")
    reaped = reap(fs)
    assert [one.held.name for one in reaped.leases] == [names[0], names[2]]
    assert len(reaped.failed) == 1
    assert names[1] in reaped.failed[0]
    assert os.listdir(place.gate) == [names[1]]


def test_only_those_concerned_are_judged(
    job: Owner, take: Taking, reap: Reaping, place: Place, proc: FakeProc, layout: Layout, clock: FakeClock
) -> None:
    """`rm` of one item would judge, and revoke, the holders of all."""
    take(job)
    bystander = Holder(store_of(FS, layout, clock=clock), job, None)
    proc.end(PID)
    assert reap(everybody=False).holders
    assert bystander.id in HolderList.complete(store_of(FS, layout)).present
    assert [*reap().holders] == [bystander.id]


# -- revoke first ------------------------------------------------------------------------------------------------------


def test_a_holder_is_revoked_before_its_leases_are_ended(
    job: Owner, take: Taking, reap: Reaping, proc: FakeProc, layout: Layout
) -> None:
    """A holder that wakes up in between would believe to hold what it has lost."""
    take(job)
    proc.end(PID)
    fs = Counting()
    reap(fs)
    renames = [call for call in fs.calls if call.kind == "rename"]
    assert [call.arguments[1].startswith(layout.gone) for call in renames] == [True, False]
    assert f"/{GATE}/" in renames[1].path


def test_a_revoked_holder_hears_of_it_at_its_next_heartbeat(
    take: Taking, reap: Reaping, clock: FakeClock, place: Place, layout: Layout, proc: FakeProc
) -> None:
    """A job that was silent for too long would read on without knowing that its data may be deleted."""
    lease = take(Owner(NAMED, None, "run 7", ""), TTL)
    reap()
    clock.let_pass(TTL + 1000)
    assert len(reap().leases) == 1
    with pytest.raises(LeaseLost):
        lease.holder.beat()
    with pytest.raises(LeaseLost):
        lease.check()
    assert lease.release() is False
    assert len(ended(place)) == 1


def test_a_holder_that_beats_while_it_is_reaped_keeps_its_leases(
    take: Taking, reap: Reaping, clock: FakeClock, place: Place
) -> None:
    """A job that was silent, and shows a heartbeat just in time, would lose its leases all the same."""
    lease = take(Owner(NAMED, None, "run 7", ""), TTL)
    reap()
    clock.let_pass(TTL + 1000)
    fs = Interposing()
    fs.before("rename", lease.holder.beat, within=lease.holder.id)
    assert reap(fs) == ((), {}, (), {})
    assert os.listdir(place.gate) == [lease.name]
    lease.holder.beat()


@pytest.mark.parametrize(("kind", "nth"), [("lstat", 1), ("names", 1), ("names", 2), ("readlink", 1)])
def test_a_holder_that_beats_while_it_is_judged_keeps_its_leases(
    take: Taking, reap: Reaping, clock: FakeClock, place: Place, kind: str, nth: int
) -> None:
    """A heartbeat in the middle of a listing would hide its holder, and cost it its leases."""
    lease = take(Owner(NAMED, None, "run 7", ""), TTL)
    reap()
    clock.let_pass(TTL + 1000)
    fs = Interposing()
    fs.before(kind, lease.holder.beat, nth=nth)
    assert reap(fs) == ((), {}, (), {})
    assert os.listdir(place.gate) == [lease.name]
    lease.holder.beat()
    (name,) = HolderList.complete(lease.holder._store).present.values()
    assert name.beats == 3


def test_a_lost_reply_to_the_revocation_ends_nothing_yet(
    job: Owner, take: Taking, reap: Reaping, place: Place, proc: FakeProc
) -> None:
    """A reaper that does not know whether it has revoked would end leases of a holder that lives."""
    lease = take(job)
    proc.end(PID)
    fs = LostReplies()
    fs.lose("rename", within="gone")
    assert reap(fs).leases == ()
    assert os.listdir(place.gate) == [lease.name]
    assert [one.held.name for one in reap().leases] == [lease.name]


def test_leases_of_a_reaper_that_was_killed_are_ended_by_the_next(
    job: Owner, take: Taking, reap: Reaping, place: Place, proc: FakeProc, layout: Layout
) -> None:
    """A reaper killed after its revocation would leave leases that nobody ever ends."""
    lease = take(job)
    assert holders.revoke(store_of(FS, layout), HolderName(lease.holder.id, 0, 0))
    (one,) = reap().leases
    assert one.verdict.evidence == "its holder was revoked"
    assert os.listdir(place.gate) == []


# -- missing holders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def orphan(job: Owner, take: Taking, layout: Layout) -> Lease:
    """A lease whose holder is nowhere."""
    lease = take(job)
    os.unlink(f"{layout.holders}/{lease.holder.id}.0.0")
    return lease


def test_a_missing_holder_is_dead_on_a_roll(orphan: Lease, reap: Reaping, place: Place) -> None:
    """Leases of programs that ended in the middle would stay for ever."""
    (one,) = reap().leases
    assert one.held.name == orphan.name
    assert os.listdir(place.gate) == []


def test_a_missing_holder_is_unknown_at_a_glance(
    orphan: Lease, layout: Layout, clock: FakeClock, proc: FakeProc, place: Place
) -> None:
    """A listing that NFS keeps from us would be taken for a proof of death."""
    (one,) = judge(layout, clock, proc, place, glance=True)
    assert one.verdict.state is State.UNKNOWN


def test_a_holder_that_beats_between_listing_and_reading_is_alive(
    take: Taking, layout: Layout, clock: FakeClock, proc: FakeProc, place: Place
) -> None:
    """`status` would call a job dead in the moment of its heartbeat."""
    lease = take(Owner(NAMED, None, "run 7", ""), TTL)
    fs = Interposing()
    fs.before("readlink", lease.holder.beat, within=layout.holders)
    (one,) = judge(layout, clock, proc, place, fs=fs)
    assert one.verdict.state is State.ALIVE


class HidingOnce(FileSystem):
    """A file system whose first listing of a directory misses everything, as NFS does while names are changed."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.hidden = 0

    def names(self, path: str, **more: Any) -> list[str]:
        if path == self.directory and not self.hidden:
            self.hidden += 1
            return ["gone"]
        return super().names(path, **more)


def test_a_persons_word_revokes_a_holder_that_one_roll_misses(
    take: Taking, layout: Layout, clock: FakeClock, proc: FakeProc, place: Place
) -> None:
    """A holder that lives, and that a person has taken for gone by mistake, would never learn that it was revoked."""
    lease = take(Owner(NAMED, None, "run 7", ""), TTL)
    fs, id, listed = HidingOnce(layout.holders), lease.holder.id, held(place)
    with reaping.open_judge(store_of(fs, layout, clock=clock, proc=proc)) as judge:
        judge.declare_dead(id, "ada says that it is gone")
        done = reaping.reap(store_of(fs, layout, clock=clock), judge, listed, dry_run=False, everybody=False, also=[id])
    assert (len(done.leases), [*done.holders]) == (1, [id])
    with pytest.raises(LeaseLost):
        lease.holder.beat()


def test_a_holder_that_one_roll_misses_is_not_dead(
    job: Owner, take: Taking, reap: Reaping, place: Place, layout: Layout
) -> None:
    """A listing is no snapshot: a holder whose name changes meanwhile would be missed, and lose its leases."""
    lease = take(job)
    fs = HidingOnce(layout.holders)
    assert reap(fs) == ((), {}, (), {})
    assert fs.hidden
    assert os.listdir(place.gate) == [lease.name]


# -- lifetimes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(job: Owner) -> Owner:
    """A job of another host."""
    assert job.process is not None
    return job._replace(process=job.process._replace(boot="another host"))


def test_a_fixed_end_is_proof_at_the_first_look(
    elsewhere: Owner, take: Taking, reap: Reaping, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cron job on the very same host, leases of hosts that crashed would stay for ever."""
    monkeypatch.setattr("sccache_dtool.liveness.lifetime.mount_type", lambda path: "nfs4")
    fs = OnClock(clock)
    take(elsewhere, TTL, fs)
    clock.let_pass(TTL)
    assert reap(fs) == ((), {}, (), {})
    clock.let_pass(1000)
    assert len(reap(fs).leases) == 1


@pytest.mark.parametrize("kind", ["lustre", "gpfs", "ocfs2", "fuse.sshfs", ""])
def test_on_other_file_systems_only_observation_is_proof(
    elsewhere: Owner, take: Taking, reap: Reaping, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Where times come from clients, a cleaner whose clock is ahead would end all leases of others."""
    monkeypatch.setattr("sccache_dtool.liveness.lifetime.mount_type", lambda path: kind)
    fs = OnClock(clock)
    take(elsewhere, TTL, fs)
    clock.let_pass(10 * TTL)
    assert reap(fs) == ((), {}, (), {})
    clock.let_pass(TTL)
    assert reap(fs) == ((), {}, (), {})
    clock.let_pass(61)
    assert len(reap(fs).leases) == 1


def test_a_new_boot_forgets_what_was_observed(
    elsewhere: Owner, take: Taking, reap: Reaping, clock: FakeClock, proc: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times since boot of an earlier boot would make every holder look silent for days."""
    monkeypatch.setattr("sccache_dtool.liveness.lifetime.mount_type", lambda path: "lustre")
    take(elsewhere, TTL)
    reap()
    Path(proc.root, "sys/kernel/random/boot_id").write_text("next boot\n")
    token = object()
    monkeypatch.setattr("sccache_dtool.forking.token", lambda: token)  # a new process, which looks again
    clock.let_pass(10 * TTL)
    assert reap() == ((), {}, (), {})


def test_another_cache_has_another_memory(clock: FakeClock, proc: FakeProc) -> None:
    """What was seen in one cache would be taken for seen in another, or be forgotten for it."""
    paths = {lifetime.memory_path(proc, id) for id in ("one", "two")}
    assert len(paths) == 2
    assert all(path and path.startswith(os.environ["XDG_STATE_HOME"]) for path in paths)


def test_the_memory_of_a_glance_counts(
    elsewhere: Owner,
    take: Taking,
    reap: Reaping,
    clock: FakeClock,
    proc: FakeProc,
    layout: Layout,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`status`, which shows silence, would begin every observation again."""
    monkeypatch.setattr("sccache_dtool.liveness.lifetime.mount_type", lambda path: "lustre")
    take(elsewhere, TTL)
    reap()
    clock.let_pass(TTL / 2)
    judge(layout, clock, proc, place, glance=True)
    clock.let_pass(TTL / 2 + 61)
    assert len(reap().leases) == 1


def test_a_program_on_this_host_outlives_its_lifetime(
    take: Taking, reap: Reaping, proc: FakeProc, clock: FakeClock, place: Place
) -> None:
    """A program that was stopped (Ctrl-Z, a debugger) for long would lose its leases while it is seen to be there."""
    take(caller.process_owner(PROGRAM, proc, os.getpid()), TTL)
    reap()
    clock.let_pass(100 * TTL)
    assert reap() == ((), {}, (), {})
    assert len(os.listdir(place.gate)) == 1


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_a_lease_is_shown_with_its_holder_and_the_evidence(
    job: Owner, take: Taking, layout: Layout, clock: FakeClock, proc: FakeProc, place: Place
) -> None:
    """`why` could not say who keeps an item."""
    take(job)
    (one,) = judge(layout, clock, proc, place, glance=True)
    assert one.since == clock.wall()
    assert one.by == f"{caller.user_name()}@{caller.host_name()}, process {PID} (job)"
    assert one.verdict == (State.ALIVE, f"process {PID} (job) is running")


def test_each_holder_is_judged_once(layout: Layout) -> None:
    """Two leases of one holder would be judged differently, and one of them be ended."""
    asked: list[HolderName] = []
    holder = Holder(store_of(FS, layout, clock=FakeClock()), Owner(NAMED, None, "x", ""), TTL)

    def judge(name: HolderName, record: holder_record.HolderRecord) -> reaping.Verdict:
        asked.append(name)
        return reaping.Verdict(State.UNKNOWN, "?")

    judge = Judge(store_of(FS, layout, clock=FakeClock()), HolderList.complete(store_of(FS, layout)), judge)
    assert judge.holder(holder.id) == judge.holder(holder.id)
    assert len(asked) == 1
