"""Which of many tasks a process is: told by srun or a person, and never guessed."""

from __future__ import annotations

import pytest

from sccache_dtool.errors import UsageError
from sccache_dtool.team.task import Task, task_from

SLURM = {
    "SLURM_CLUSTER_NAME": "lab",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_TASK_PID": "100",
}


def test_a_task_of_srun() -> None:
    """Each task of a step would do all the work for itself."""
    assert task_from(SLURM, 100) == Task("slurm lab 7  0", 3, 16)


@pytest.mark.parametrize(
    "other",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": ""},
        {"SLURM_PROCID": ""},
        {"SLURM_TASK_PID": "99"},
        {"SLURM_TASK_PID": ""},
        {"SC_DTOOL_TASK": ""},
        {"SC_DTOOL_TASK": "0/1:mine"},
    ],
)
def test_who_works_for_itself(other: dict[str, str]) -> None:
    """A command in a batch script, in a task's script, or alone in its step, would wait for others that never come."""
    assert task_from({**SLURM, **other}, 100) is None


def test_another_start_of_a_job_is_another_team() -> None:
    """The tasks of a job that was requeued would take the end of its first start for their own."""
    first, second = task_from(SLURM, 100), task_from({**SLURM, "SLURM_RESTART_COUNT": "1"}, 100)
    assert first is not None
    assert second is not None
    assert first.step != second.step


def test_without_slurm() -> None:
    """Tasks of mpirun could not work together."""
    assert task_from({**SLURM, "SC_DTOOL_TASK": "0/4:job 5"}, 1) == Task("job 5", 0, 4)


@pytest.mark.parametrize("told", ["4/4:x", "0/4:", "0/4", "a/4:x", "-1/4:x", "0/4:x\ny", f"0/4:{'x' * 300}"])
def test_nonsense_is_an_error(told: str) -> None:
    """A task that was started wrongly would silently do all the work for itself."""
    with pytest.raises(UsageError, match="SC_DTOOL_TASK is"):
        task_from({"SC_DTOOL_TASK": told}, 1)
