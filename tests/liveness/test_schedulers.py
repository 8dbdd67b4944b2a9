"""Asking batch systems: one question for all jobs of a run, bounded in time, and no storm of questions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import has_ended
from faults import FakeClock
from liveness.asked import Commands
from sccache_dtool.liveness import State
from sccache_dtool.liveness.batch import query
from sccache_dtool.liveness.batch.query import Absent, JobStates, Reply, Run, Unanswered, batches, run_command
from sccache_dtool.liveness.job import TITLES, Job
from sccache_dtool.liveness.lifetime import Memory
from waiting import wait_until

RUNNING = "{0}|{0}|N/A|0|RUNNING|1|2|NONE|n1|lab|N/A|\n"
DOWN = Unanswered("squeue did not answer within 10 s")


def job(number: int, scheduler: str = "slurm") -> Job:
    return Job(scheduler, "lab", str(number))


@pytest.fixture
def job_states(tmp_path: Path, clock: FakeClock) -> Callable[[Run], JobStates]:
    """A run of the program on this host; what it remembers is there for the next."""

    def make(run: Run) -> JobStates:
        return JobStates(clock, Memory(str(tmp_path / "memory"), clock), run)

    return make


# -- one question ------------------------------------------------------------------------------------------------------


def test_one_question_for_all_jobs(clock: FakeClock) -> None:
    """A cleaner would ask a controller for each of ten thousand jobs, and take it down."""
    commands = Commands(squeue="".join(RUNNING.format(number) for number in range(1000)))
    job_states = JobStates(clock, Memory(None, clock), commands)
    for number in range(1000):
        job_states.expect(job(number))
    assert {job_states.judge(job(number)).state for number in range(1000)} == {State.ALIVE}
    assert commands.programs() == ["squeue"]


def test_a_job_that_nobody_expected_is_asked_for(clock: FakeClock) -> None:
    """A job that comes up late would be unknown for ever."""
    commands = Commands(squeue=RUNNING.format(1) + RUNNING.format(2))
    job_states = JobStates(clock, Memory(None, clock), commands)
    assert job_states.judge(job(1)).state is State.ALIVE
    assert job_states.judge(job(2)).state is State.ALIVE
    assert job_states.judge(job(1)).state is State.ALIVE
    assert len(commands.asked) == 2


def test_nobody_is_asked_for_nothing(clock: FakeClock) -> None:
    """A cleaner would ask Slurm on machines where no job holds anything."""
    commands = Commands()
    JobStates(clock, Memory(None, clock), commands).expect(job(1))
    assert commands.asked == []


#: Of every batch system an answer of another shape than any that is known, in JSON and not.
ODD = {
    "slurm": ["1|" * 11 + "\n", "|" * 40 + "\n", "1|1|1|-1|COMPLETED|0|-5|9|[[|lab||\n", "\ud800|"],
    "pbs": [
        '{"Jobs":{"1.lab":7}}',
        '{"Jobs":{"1.lab":{"job_state":["F"],"mtime":{}}}}',
        "[" * 100_000,
        '{"Jobs":null}',
    ],
    "htcondor": ['[{"GlobalJobId":7,"JobStatus":4}]', '[{"GlobalJobId":"lab#1.0#7","JobStatus":[4]}]', "[" * 100_000],
    "lsf": ['{"RECORDS":[7]}', '{"RECORDS":[{"STAT":["DONE"],"JOBID":1,"FROM_HOST":"lab"}]}', "[" * 100_000],
    "kubernetes": [
        '{"kind":"List","items":null}',
        '{"kind":"Pod","metadata":{"name":"a","uid":"7"},"status":{"phase":"Failed","containerStatuses":[null]}}',
        '{"kind":"Pod","metadata":{"name":"a","uid":"7"},"status":{"phase":"Failed","containerStatuses":{"state":1}}}',
        "[" * 100_000,
    ],
}
NAMES = {"slurm": "1", "pbs": "1", "htcondor": "1.0", "lsf": "1", "kubernetes": "b/a"}


@pytest.mark.parametrize(("scheduler", "answer"), [(name, odd) for name, answers in ODD.items() for odd in answers])
def test_an_answer_of_another_shape_proves_nothing(scheduler: str, answer: str, clock: FakeClock) -> None:
    """A new release of a batch system would end every cleaner with a traceback, or every lease."""
    commands = {"squeue", "sacct", "sinfo", "qstat", "condor_q", "condor_history", "bjobs", "kubectl"}
    replies = Commands(**dict.fromkeys(commands, answer), scontrol="ClusterName = lab\n")
    asked = Job(scheduler, "lab", NAMES[scheduler], "7", seen=1_700_000_000.0)
    assert JobStates(clock, Memory(None, clock), replies).judge(asked).state is not State.DEAD


def test_many_jobs_fit_into_command_lines() -> None:
    """A cleaner with very many jobs would fail, because a kernel takes so long a word only."""
    ids = [str(number) for number in range(100_000, 120_000)]
    found = list(batches(ids))
    assert [id for batch in found for id in batch] == ids
    assert max(len(",".join(batch)) for batch in found) <= query.LONGEST_LIST
    assert len(found) == 5
    assert list(batches([])) == []
    assert list(batches(["x" * 100_000])) == [["x" * 100_000]]


def test_each_batch_system_answers_for_its_own(clock: FakeClock) -> None:
    """Two jobs of one number in two batch systems would be taken for one."""
    commands = Commands(squeue=RUNNING.format(1), qstat='{"Jobs":{"1.lab":{"job_state":"R"}}}')
    job_states = JobStates(clock, Memory(None, clock), commands)
    job_states.expect(job(1, "pbs"))
    assert job_states.judge(job(1)) == (State.ALIVE, "Slurm: job 1 is RUNNING")
    assert job_states.judge(job(1, "pbs")) == (State.ALIVE, "PBS: job 1 is running")


@pytest.mark.parametrize("scheduler", TITLES)
def test_every_batch_system_has_the_same_interface(scheduler: str, clock: FakeClock) -> None:
    """A lease for a job of one of them would end every command with a traceback."""

    def absent(argv: object) -> Reply:
        raise Absent("there is no such command on this host")

    verdict = JobStates(clock, Memory(None, clock), absent).judge(Job(scheduler, "lab", "a/1"))
    assert verdict.state is State.UNKNOWN
    assert verdict.evidence.startswith(
        f"{TITLES[scheduler]}: the state of job a/1 is unknown: there is no such command"
    )


# -- no answer ---------------------------------------------------------------------------------------------------------


def test_no_answer_is_unknown_and_told_in_words(job_states: Callable[[Run], JobStates]) -> None:
    """A controller that hangs would be taken for the end of all its jobs."""
    verdict = job_states(Commands(squeue=DOWN)).judge(job(1))
    evidence = "Slurm: the state of job 1 is unknown: squeue did not answer within 10 s"
    assert verdict == (State.UNKNOWN, evidence)


def remembering(job_states: JobStates) -> JobStates:
    """One run: what it judges in here is remembered."""
    with job_states._memory.remembered():
        job_states.judge(job(1))
    return job_states


def test_who_gives_no_answer_is_left_alone_for_longer_and_longer(
    job_states: Callable[[Run], JobStates], clock: FakeClock
) -> None:
    """Cleaners on a hundred nodes would ask a controller that is down every minute, and keep it down."""
    asked = []
    for _ in range(60 * 24):
        commands = Commands(squeue=DOWN)
        remembering(job_states(commands))
        asked += [clock.passed] * len(commands.asked)
        clock.let_pass(60.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses[:7] == [60, 120, 240, 480, 960, 1920, 3600]
    assert set(pauses[7:]) == {3600}


def test_an_answer_ends_the_pause(job_states: Callable[[Run], JobStates], clock: FakeClock) -> None:
    """A controller that was down once would be asked once an hour ever after."""
    remembering(job_states(Commands(squeue=DOWN)))
    first = job_states(Commands())
    with first._memory.remembered():
        verdict = first.judge(job(1))
    assert verdict.evidence.endswith("it did not answer before; the next query is in 60 s")
    clock.let_pass(61.0)
    remembering(job_states(Commands(squeue=RUNNING.format(1))))
    remembering(job_states(Commands(squeue=DOWN)))
    clock.let_pass(61.0)
    commands = Commands(squeue=RUNNING.format(1))
    remembering(job_states(commands))
    assert commands.programs() == ["squeue"]


def test_a_command_that_is_not_there_makes_no_pause(job_states: Callable[[Run], JobStates]) -> None:
    """A user whose PATH was wrong once would be kept waiting after having put it right."""
    remembering(job_states(Commands(squeue=Absent("there is no squeue on this host"))))
    commands = Commands(squeue=RUNNING.format(1))
    remembering(job_states(commands))
    assert commands.programs() == ["squeue"]


def test_what_is_noted_outlives_the_holders(tmp_path: Path, clock: FakeClock) -> None:
    """The pause would be forgotten at each run, because it is kept beside the holders that are seen."""
    path = str(tmp_path / "memory")
    memory = Memory(path, clock)
    with memory.remembered():
        memory.note("asked slurm until", 5.0)
        memory.unchanged_for("holder.1.0")
        memory.forget_unless(lambda name: False)
    again = Memory(path, clock)
    with again.remembered():
        assert again.recall("asked slurm until") == 5.0
        assert again.unchanged_for("holder.1.0") == 0.0


# -- real commands -----------------------------------------------------------------------------------------------------


def test_a_command_is_run_and_heard() -> None:
    """Nothing would be learned of any job."""
    reply = run_command(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert reply == (3, "out\n", "err\n")
    assert reply.complaint == "err"
    assert Reply(7, "", "").complaint == "exit code 7"


def test_a_command_is_not_misled_by_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's SQUEUE_FORMAT would make answers that cannot be read; SLURM_CLUSTERS those of another cluster."""
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    monkeypatch.setenv("SLURM_CONF", "/etc/its/own")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    out = run_command(["env"]).out
    assert "SQUEUE_FORMAT" not in out
    assert "SLURM_CLUSTERS" not in out
    assert "SLURM_CONF=/etc/its/own\n" in out
    assert "LC_ALL=C\n" in out


def test_a_command_that_is_not_there_is_told() -> None:
    """On a host without Slurm every command would end with a traceback."""
    with pytest.raises(Absent, match="no no-such-command on this host"):
        run_command(["no-such-command"])


def test_a_command_that_hangs_is_given_up_with_all_that_it_has_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A site's wrapper around squeue whose child hangs would hang every cleaner for ever."""
    monkeypatch.setattr(query, "TIMEOUT", 0.5)
    with pytest.raises(Unanswered, match="did not answer within"):
        run_command(["sh", "-c", f"sleep 1000000 & echo $! >{tmp_path}/pid; wait"])
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: has_ended(pid), "the kernel has been told; an init takes the dead one away")


def test_what_is_no_text_is_shown_all_the_same() -> None:
    """A job with a strange name would end every cleaner with a traceback."""
    assert run_command(["printf", r"a\377b"]).out == "a�b"
