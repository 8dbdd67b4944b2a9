"""A holder is judged by what this host sees of its process, then by its batch system, then by its lifetime."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from faults import Counting, Failing, FakeClock, FakeProc, OnClock, store_of
from liveness.asked import Commands
from sccache_dtool.clock import iso, local
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness import State, Verdict, caller, lifetime
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.batch import query
from sccache_dtool.liveness.caller import CALLER, COMMAND, JOB, PROGRAM, Kind, Owner, program_owner
from sccache_dtool.liveness.job import Job
from sccache_dtool.liveness.process import Proc, Process
from sccache_dtool.liveness.record import HolderRecord
from sccache_dtool.protocol import reaping
from sccache_dtool.protocol.holders import Holder

HERE = Process("b0071d", "4026531836.4026531834", 4242, 1000)
ELSEWHERE = HERE._replace(boot="another")
IN_JOB = Job("slurm", "lab", "48211", "0", "", "n1", "1699999940")
ALIVE, DEAD, UNKNOWN = State.ALIVE, State.DEAD, State.UNKNOWN


def judge(proc: FakeProc, kind: Kind, process: Process | None, job: State, lapsed: State = UNKNOWN) -> Verdict:
    record = HolderRecord(kind, "n1", "ada", process, None, "", 3600.0, "", IN_JOB)
    return holder_record.judge(record, proc, lambda ttl: Verdict(lapsed, "lifetime"), lambda one: Verdict(job, "Slurm"))


@pytest.mark.parametrize("job", State)
@pytest.mark.parametrize("lapsed", State)
def test_what_this_host_sees_of_a_process_is_decisive(proc: FakeProc, job: State, lapsed: State) -> None:
    """A program that outlived its job would lose its data while its host sees it run."""
    proc.add(HERE.pid, start=HERE.start)
    for kind in (PROGRAM, COMMAND, CALLER):
        assert judge(proc, kind, HERE, job, lapsed).state is ALIVE
    proc.end(HERE.pid)
    for kind in (PROGRAM, COMMAND, CALLER):
        assert judge(proc, kind, HERE, job, lapsed).state is DEAD


@pytest.mark.parametrize(
    ("job", "lapsed", "state"),
    [
        (ALIVE, DEAD, ALIVE),  # a job that is suspended for longer than a lifetime
        (DEAD, UNKNOWN, DEAD),
        (UNKNOWN, DEAD, DEAD),
        (UNKNOWN, UNKNOWN, UNKNOWN),
    ],
)
def test_then_its_batch_system_then_its_lifetime(proc: FakeProc, job: State, lapsed: State, state: State) -> None:
    """A job that is suspended would lose its data, or one that has ended keep it for a lifetime."""
    assert judge(proc, PROGRAM, ELSEWHERE, job, lapsed).state is state
    assert judge(proc, JOB, None, job, lapsed).state is state


def test_the_evidence_is_told_in_words(proc: FakeProc) -> None:
    """A user would be told that nothing is known, and not why."""
    evidence = judge(proc, PROGRAM, ELSEWHERE, UNKNOWN).evidence
    assert evidence == "process 4242 is of another host, or of an earlier boot; Slurm; lifetime"
    assert judge(proc, JOB, None, DEAD).evidence == "Slurm"


def test_whoever_called_for_an_owner_keeps_its_lease(proc: FakeProc) -> None:
    """A script that ends before its own background would take away what that reads."""
    callers = HERE._replace(pid=4243), HERE._replace(pid=4244)
    owner = Owner(CALLER, HERE, None, "bash job.sh", None, callers)
    record = HolderRecord.decode(holder_record.encode(owner, None, FakeClock()))
    for one in callers:
        proc.add(one.pid, start=one.start)

    def verdict() -> Verdict:
        return holder_record.judge(record, proc, lambda ttl: Verdict(UNKNOWN, "lifetime"))

    assert verdict().state is ALIVE
    assert "process 4242 of this boot is gone, but process 4243 (job) is running" in verdict().evidence
    proc.end(4243)
    assert verdict().state is ALIVE
    proc.hidden.add(4244)
    proc.end(4244)
    assert verdict().state is UNKNOWN
    proc.hidden.clear()
    assert verdict() == Verdict(DEAD, "process 4242 of this boot is gone")
    proc.add(4244, start=HERE.start + 1)
    assert verdict().state is DEAD


@pytest.mark.parametrize(
    "between", [7, "x", {}, [7], [[7]], [["7", 1]], [[7, None]], [[7, 1]] * 9, [[0, 1]], [[7, 1, 2]]]
)
def test_callers_that_nobody_wrote_are_damage(between: object) -> None:
    """A damaged record would be judged by half of its processes."""
    fields = records.decode(holder_record.encode(Owner(CALLER, HERE, None, ""), None, FakeClock()))
    with pytest.raises(records.Damaged):
        HolderRecord.decode(records.encode(fields | {"between": between}))


@pytest.mark.parametrize("job", State)
def test_beside_a_job_both_must_have_ended(proc: FakeProc, job: State) -> None:
    """A shell under `salloc` that goes on after its job would lose what it reads, and the job when the shell ends."""
    proc.add(HERE.pid, start=HERE.start)
    assert judge(proc, JOB, HERE, job).state is ALIVE
    assert judge(proc, JOB, ELSEWHERE, job).state is (ALIVE if job is ALIVE else UNKNOWN)
    proc.end(HERE.pid)
    assert judge(proc, JOB, HERE, job).state is job


# -- in a reaping -----------------------------------------------------------------------------------------------------

#: Since 2023-11-14 22:12 UTC, a minute before the holders are entered.
LISTED = "48211|48211|N/A|0|{}|1699999940|1699999940|1700000000|n1|lab|N/A|\n"
ENDED = f"Slurm: job 48211 COMPLETED at {local(1_700_000_000)}"

Judging = Callable[..., Verdict]


@pytest.fixture
def judge_holder(layout: Layout, clock: FakeClock, proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> Judging:
    """Judges a holder as `reap` does, when Slurm says that its job is in this state."""

    def hear(holder: Holder, state: str = "COMPLETED", one_clock: bool = True) -> Verdict:
        commands = Commands(squeue=LISTED.format(state), sinfo="n1|idle|\n")
        monkeypatch.setattr(query, "run_command", commands)
        monkeypatch.setattr(lifetime, "mount_type", lambda path: "nfs4" if one_clock else "lustre")
        with reaping.open_judge(store_of(OnClock(clock), layout, clock=clock, proc=proc)) as judge:
            return judge.holder(holder.id)[1]

    return hear


def test_a_program_that_still_beats_is_not_dead_with_its_job(
    layout: Layout, clock: FakeClock, judge_holder: Judging
) -> None:
    """Where jobs are not kept in control groups, a program that outlives its job would lose what it reads."""
    owner = Owner(PROGRAM, ELSEWHERE, None, "x", IN_JOB)
    holder = Holder(store_of(OnClock(clock), layout, clock=clock), owner, 3600.0)  # beats every 600 s
    assert judge_holder(holder, "RUNNING").state is ALIVE
    for _ in range(10):
        clock.let_pass(600.0)
        verdict = judge_holder(holder)
        assert verdict.state is UNKNOWN
        assert "but there may have been a heartbeat" in verdict.evidence
        holder.beat()
    assert judge_holder(holder).state is UNKNOWN
    clock.let_pass(2400.0)
    assert judge_holder(holder).state is UNKNOWN
    clock.let_pass(1.0)
    assert judge_holder(holder) == (DEAD, ENDED)


def test_a_step_of_the_file_systems_clock_ends_no_program_that_beats(
    layout: Layout, clock: FakeClock, judge_holder: Judging, proc: FakeProc
) -> None:
    """A server whose clock was a day behind, and is set right, would cost every running program its leases."""
    server = FakeClock(wall=clock.wall() - 86_400.0)
    fs = OnClock(server)
    programs = [Owner(kind, ELSEWHERE._replace(pid=pid), None, "x") for pid, kind in ((1, PROGRAM), (2, COMMAND))]
    programs.append(program_owner(Proc("/nothing")))
    programs.append(Owner(PROGRAM, ELSEWHERE, None, "x", IN_JOB))  # which has ended, as far as Slurm knows
    running = [Holder(store_of(fs, layout, clock=clock), owner, 3600.0) for owner in programs]
    for _ in range(12):  # the server's clock has been set right; their ends are still reckoned on the old one
        assert {judge_holder(holder).state for holder in running} == {UNKNOWN}
        clock.let_pass(600.0)
        for holder in running:
            holder.beat()
    verdicts = [judge_holder(holder) for holder in running]
    assert {verdict.state for verdict in verdicts} == {UNKNOWN}
    assert "ended 60 min ago without renewal, but it has been observed for only 0 s" in verdicts[0].evidence
    clock.let_pass(2461.0)  # no heartbeat any more: four are missed, and a minute
    assert {judge_holder(holder).state for holder in running} == {DEAD}


def test_a_lifetime_lasts_though_the_server_was_behind(layout: Layout, clock: FakeClock, judge_holder: Judging) -> None:
    """A lease of an hour would end at once when the server's clock is set right by a day, though its host was right."""
    behind = OnClock(FakeClock(wall=clock.wall() - 86_400.0))
    holder = Holder(store_of(behind, layout, clock=clock), Owner(CALLER, ELSEWHERE, None, "x"), 3600.0)
    assert judge_holder(holder).state is UNKNOWN
    clock.let_pass(3500.0)
    assert judge_holder(holder).state is UNKNOWN
    clock.let_pass(161.0)
    assert judge_holder(holder).state is DEAD


def test_without_a_common_clock_a_heartbeat_is_waited_for(
    layout: Layout, clock: FakeClock, judge_holder: Judging
) -> None:
    """On Lustre or GPFS a program that beats would be taken for dead at the first look."""
    owner = Owner(COMMAND, ELSEWHERE, None, "x", IN_JOB)
    holder = Holder(store_of(OnClock(clock), layout, clock=clock), owner, 3600.0)
    assert judge_holder(holder, one_clock=False).state is UNKNOWN
    clock.let_pass(1000.0)
    assert judge_holder(holder, one_clock=False).state is UNKNOWN
    holder.beat()
    clock.let_pass(1000.0)
    assert judge_holder(holder, one_clock=False).state is UNKNOWN
    clock.let_pass(2401.0)
    assert judge_holder(holder, one_clock=False).state is DEAD


def test_a_job_itself_needs_no_heartbeat(layout: Layout, clock: FakeClock, judge_holder: Judging) -> None:
    """What a job held would be kept for a while after its end for nothing."""
    owner = Owner(JOB, None, None, "x", IN_JOB)
    for ttl in (None, 3600.0):
        assert judge_holder(Holder(store_of(OnClock(clock), layout, clock=clock), owner, ttl)).state is DEAD


def test_who_is_expected_is_read_once(layout: Layout, clock: FakeClock, proc: FakeProc) -> None:
    """A cleaner would read every holder twice."""
    fs = Counting()
    ids = [
        Holder(store_of(FileSystem(), layout, clock=clock), Owner(CALLER, HERE, None, "x"), None).id for _ in range(3)
    ]
    with reaping.open_judge(store_of(fs, layout, clock=clock, proc=proc)) as judge:
        judge.expect([*ids, "nobody"])
        assert [judge.holder(id)[1].state for id in ids] == [DEAD] * 3
    assert fs.kinds().count("readlink") == 3


def test_a_job_is_read_as_written(layout: Layout, clock: FakeClock) -> None:
    """A job would be judged by the number of another."""
    for owner in (Owner(JOB, None, None, "align", IN_JOB), Owner(PROGRAM, HERE, None, "x", IN_JOB)):
        text = holder_record.encode(owner, 3600.0, clock, "0123-item")
        record = HolderRecord.decode(text)
        assert (record.kind, record.process, record.job) == (
            owner.kind,
            owner.process,
            IN_JOB._replace(seen=clock.wall()),
        )
        assert '"item":"0123-item"' in text
        assert iso(clock.wall()) == record.since
    assert str(
        HolderRecord.decode(holder_record.encode(Owner(JOB, None, None, "align", IN_JOB), None, clock))
    ).endswith(", Slurm job 48211 (align)")


@pytest.mark.parametrize(("error", "says"), [(errno.EACCES, True), (errno.EPERM, True), (errno.EIO, False)])
def test_who_may_not_end_a_lease_is_told_who_may(
    layout: Layout, clock: FakeClock, proc: FakeProc, error: int, says: bool
) -> None:
    """A user would be told that something was refused, and not whom to ask."""
    owner = Owner(CALLER, HERE, None, "x")
    id = Holder(store_of(FileSystem(), layout, clock=clock), owner, None).id
    fs = Failing()
    fs.fail("rename", error)
    with reaping.open_judge(store_of(fs, layout, clock=clock, proc=proc)) as judge:
        done = reaping.reap(store_of(fs, layout, clock=clock), judge, [], dry_run=False)
    (failure,) = done.failed
    assert failure.startswith(f"cannot revoke holder {id}: ")
    assert (
        failure.endswith(f"; user {caller.user_name()}, or the owner of the cache, must do it: sc-dtool reap") is says
    )
    assert done.holders == {}
