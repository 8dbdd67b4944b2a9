"""Which of many tasks this process is: told by Slurm's srun, or by whoever starts many in another way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from sccache_dtool.errors import UsageError

#: What says so without Slurm: ``<rank>/<count>:<name>``. Empty: this is no task, whatever Slurm says.
VARIABLE = "SC_DTOOL_TASK"

_TOLD = r"([0-9]{1,9})/([0-9]{1,9}):(.{1,200})"


class Task(NamedTuple):
    """One of many processes that were started with the same command line; they are numbered from 0."""

    step: str  # the name of all of them
    rank: int
    total: int

    @property
    def leads(self) -> bool:
        """Whether it begins as the one who leads."""
        return self.rank == 0


def task_from(environment: Mapping[str, str], pid: int) -> Task | None:
    """The task that the process `pid` is; None if it is none, and works for itself. Raises UsageError for nonsense."""
    told = environment.get(VARIABLE)
    if told is not None:
        return _as_told(told) if told else None
    return _of_slurm(environment, pid)


def _as_told(text: str) -> Task | None:
    match = re.fullmatch(_TOLD, text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(
            f"{VARIABLE} is {text!r}",
            hint=f"give the rank, the number of tasks and a name for all: {VARIABLE}=3/16:name",
        )
    return _if_many(Task(match[3], int(match[1]), int(match[2])))


def _of_slurm(environment: Mapping[str, str], pid: int) -> Task | None:
    """Only of srun's own tasks is it known how many there are. What a task's script calls is none: others may not."""
    rank, count = environment.get("SLURM_PROCID", ""), environment.get("SLURM_STEP_NUM_TASKS", "")
    if not (rank.isdecimal() and count.isdecimal()) or environment.get("SLURM_TASK_PID") != str(pid):
        return None
    names = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    return _if_many(Task(" ".join(["slurm", *(environment.get(name, "") for name in names)]), int(rank), int(count)))


def _if_many(task: Task) -> Task | None:
    return task if task.total > 1 else None
