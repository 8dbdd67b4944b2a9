"""Whether a process is gone: proved by what the kernel says, and by nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from faults import FakeProc
from sccache_dtool.liveness import State
from sccache_dtool.liveness.process import Proc, Process


@pytest.fixture
def running(proc: FakeProc) -> Process:
    """A process that runs on this host."""
    process = proc.identify(proc.add(4242, "job", start=1000))
    assert process is not None
    return process


def test_a_running_process_is_alive(proc: FakeProc, running: Process) -> None:
    """The leases of a running job would be ended, and its data deleted."""
    assert proc.judge(running).state is State.ALIVE


def test_this_very_process_is_alive() -> None:
    """On a real host nobody could be told alive."""
    proc = Proc()
    me = proc.identify(os.getpid())
    assert me is not None
    assert proc.judge(me).state is State.ALIVE


def test_a_process_that_was_really_ended_is_dead() -> None:
    """On a real host no lease of a killed job would ever be ended."""
    proc = Proc()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    process = proc.identify(child)
    assert process is not None
    assert proc.judge(process).state is State.ALIVE
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert proc.judge(process) == (State.DEAD, f"process {child} has ended (a zombie)")
    os.waitpid(child, 0)
    assert proc.judge(process).state is State.DEAD


def test_a_process_that_is_gone_is_dead(proc: FakeProc, running: Process) -> None:
    """Leases of killed jobs would stay for ever."""
    proc.end(4242)
    assert proc.judge(running).state is State.DEAD


def test_a_number_used_again_is_another_process(proc: FakeProc, running: Process) -> None:
    """A killed job would seem alive for as long as some process has its number."""
    proc.add(4242, "job", start=1001)
    assert proc.judge(running).state is State.DEAD


def test_a_zombie_is_dead(proc: FakeProc, running: Process) -> None:
    """A job that nobody waits for would keep its leases until the next boot."""
    proc.add(4242, "job", start=1000, state="Z")
    assert proc.judge(running).state is State.DEAD


def test_a_zombie_whose_threads_run_is_alive(proc: FakeProc, running: Process) -> None:
    """A program whose main thread has ended would lose its leases while its other threads read."""
    proc.add(4242, "job", start=1000, state="Z", threads=3)
    assert proc.judge(running).state is State.ALIVE


@pytest.mark.parametrize("state", ["R", "S", "D", "T", "t", "I"])
def test_no_state_of_a_running_process_is_dead(proc: FakeProc, running: Process, state: str) -> None:
    """A job that is stopped, or waits for a server, would lose its leases."""
    proc.add(4242, "job", start=1000, state=state)
    assert proc.judge(running).state is State.ALIVE


def test_a_hidden_process_is_unknown(proc: FakeProc, running: Process) -> None:
    """Where /proc hides the processes of others (hidepid), every user's cleaner would end the others' leases."""
    proc.end(4242)
    proc.hidden.add(4242)
    assert proc.judge(running).state is State.UNKNOWN


def test_a_process_of_another_boot_is_unknown(proc: FakeProc, running: Process) -> None:
    """A cleaner on one host would end the leases of all jobs on others, whose numbers mean nothing here."""
    assert proc.judge(running._replace(boot="another")).state is State.UNKNOWN


@pytest.mark.parametrize("space", ["1.4026531834", "4026531836.2", "4026531836"])
def test_a_process_of_another_name_space_is_unknown(proc: FakeProc, running: Process, space: str) -> None:
    """A cleaner would end the leases of jobs in containers, whose numbers or start times mean nothing here."""
    assert proc.judge(running._replace(space=space)).state is State.UNKNOWN


def test_nothing_is_said_where_proc_is_another_name_space(proc: FakeProc, running: Process) -> None:
    """In a container that shows its host's /proc, other processes would be taken for the leases' holders."""
    os.unlink(f"{proc.root}/self")
    os.symlink("1", f"{proc.root}/self")
    foreign = Proc(proc.root)
    assert foreign.here() is None
    assert foreign.identify(4242) is None
    assert foreign.judge(running).state is State.UNKNOWN


def test_nothing_is_said_without_proc(tmp_path: Path, running: Process) -> None:
    """On a host without /proc every process would look gone."""
    nothing = Proc(str(tmp_path / "nothing"))
    assert nothing.here() is None
    assert nothing.judge(running).state is State.UNKNOWN


@pytest.mark.parametrize("missing", ["sys/kernel/random/boot_id", "self/ns/pid"])
def test_nothing_is_said_where_the_identity_is_incomplete(proc: FakeProc, running: Process, missing: str) -> None:
    """On a kernel without some name space two containers would be taken for one."""
    os.unlink(f"{proc.root}/{missing}")
    bare = Proc(proc.root)
    assert bare.here() is None
    assert bare.judge(running).state is State.UNKNOWN


def test_a_name_with_brackets_is_read(proc: FakeProc) -> None:
    """A program called `a) R 1 (b` would be judged by numbers that are not its own."""
    proc.add(7, "a) Z 1 (b", parent=5, start=99, state="S")
    assert proc.stat(7) == ("a) Z 1 (b", "S", 5, 1, 99)


@pytest.mark.parametrize("text", ["", "garbage", "7 (x", "7 (x) S 1 2 3"])
def test_a_damaged_stat_says_nothing(proc: FakeProc, running: Process, text: str) -> None:
    """A kernel with another form of /proc would end all commands with a traceback, or all leases."""
    Path(proc.root, "4242", "stat").write_text(text)
    assert proc.stat(4242) is None
    assert proc.judge(running).state is State.UNKNOWN


def test_a_fork_is_another_process(proc: FakeProc) -> None:
    """A forked child would be entered under its parent's identity."""
    assert proc.here() is not None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # its /proc/self would be another, and the fake one still is its parent's
        os.write(write, repr(proc.here()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"None"


def test_an_identity_is_read_as_written(running: Process) -> None:
    """A holder would be judged by the identity of another."""
    assert Process.from_fields(running.fields()) == running


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 10**30},
        {"pid": 0},
        {"pid": -1},
        {"pid": "1"},
        {"pid": None},
        {"boot": 1},
        {"space": None},
        {"start": "x"},
    ],
)
def test_what_is_no_identity_is_none(running: Process, change: dict[str, object]) -> None:
    """One holder's record made by hand would end `clean` with a traceback, or signal a whole process group."""
    assert Process.from_fields(running.fields() | change) is None


def test_asking_for_a_process_of_another_user_is_no_proof() -> None:
    """A process that we may not signal would be taken for dead."""
    assert Proc().is_there(1) is True
    assert Proc().is_there(os.getpid()) is True


# -- clocks since boot -------------------------------------------------------------------------------------------------


def test_clocks_since_boot_are_told_apart_by_their_shift(tmp_path: Path) -> None:
    """A cleaner in a container of its own each day would forget what it saw; or believe a clock that was shifted."""

    def domain(name: str, shift: int = 0, **more: str) -> str | None:
        proc = FakeProc(str(tmp_path / name), **more)
        proc.shift(shift)
        return proc.uptime_domain()

    here = domain("one")
    assert here is not None
    assert domain("another container", space="7.4026531834") == here
    assert domain("another time name space, not shifted", space="7.8") == here
    assert domain("shifted", shift=500, space="7.8") not in (None, here)
    assert domain("another boot", boot="b1") not in (None, here)


def test_a_clock_whose_shift_is_not_known_is_compared_with_none(proc: FakeProc) -> None:
    """What was seen by another clock would be taken for silence, and a live holder for dead."""
    ours = f"{proc.root}/{os.getpid()}"
    text = Path(f"{ours}/timens_offsets").read_text()
    Path(f"{ours}/timens_offsets").write_text("boottime")
    assert proc.uptime_domain() is None
    Path(f"{ours}/timens_offsets").write_text(text)
    os.unlink(f"{ours}/ns/time_for_children")
    os.symlink("time:[7]", f"{ours}/ns/time_for_children")  # the file tells of that one
    assert proc.uptime_domain() is None
    os.unlink(f"{ours}/ns/time_for_children")
    os.unlink(f"{ours}/ns/time")  # Linux before 5.6
    assert proc.uptime_domain() == "b0071d"
