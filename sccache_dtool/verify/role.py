"""Which part this process takes: the one that leads, its peer, or none. By option, or by Slurm's environment."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

#: Seconds for which two who were told that they are two wait for each other.
WAIT = 120.0


class Part(StrEnum):
    """What there is to do."""

    LEAD = "lead"
    PEER = "peer"
    NONE = "none"


class Role(NamedTuple):
    """A part, in which meeting, and how many seconds to wait for the other."""

    part: Part
    meeting: str
    wait: float


def role_from(environment: Mapping[str, str], *, peer: bool, wait: float | None) -> Role:
    """The role of this process; `peer` and `wait` are what a person said, who is right.

    Of the tasks that one `srun` has started, the first leads, the second is the peer, and the others have nothing to
    do. The batch script itself is no such task, and leads alone. Who leads by hand waits only when told to: it
    cannot know whether a peer will come.
    """
    tasks, rank = environment.get("SLURM_STEP_NUM_TASKS", ""), environment.get("SLURM_PROCID", "")
    if peer or not (tasks.isdecimal() and rank.isdecimal() and int(tasks) > 1):
        part = Part.PEER if peer else Part.LEAD
        return Role(part, "", wait if wait is not None else WAIT if peer else 0.0)
    meeting = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    part = {0: Part.LEAD, 1: Part.PEER}.get(int(rank), Part.NONE)
    return Role(part, meeting, WAIT if wait is None else wait)
