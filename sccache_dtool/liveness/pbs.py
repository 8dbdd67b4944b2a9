"""PBS (OpenPBS, PBS Professional): `qstat -x`, which knows finished jobs for as long as the server keeps a history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.jobs import Job
from sccache_dtool.liveness.schedulers import Run, Unanswered, batches

#: Finished, and finished subjob of an array; all others have, or will have, processes. M: moved to another server.
_ENDED = {"F": "finished", "X": "finished"}
_LIVING = {
    "B": "running (an array)",
    "E": "exiting",
    "H": "held",
    "Q": "queued",
    "R": "running",
    "S": "suspended",
    "T": "being moved",
    "U": "suspended",
    "W": "waiting",
}

#: qstat's exit code when the server does not know one of the jobs (PBSE_UNKJOBID & 0xff), the others being listed.
_UNKNOWN_JOB = 153
#: The same where the server keeps no history of a finished job (PBSE_HISTJOBID & 0xff).
_FINISHED_JOB = 35


def ask(jobs: Sequence[Job], run: Run, verdicts: dict[Job, Verdict]) -> None:
    """See `schedulers.Scheduler`."""
    for ids in batches(dict.fromkeys(f"{job.id}.{job.cluster}" for job in jobs)):
        reply = run(["qstat", "-x", "-f", "-F", "json", *ids])
        found = _jobs(reply.out)
        if found is None or (not found and reply.code not in (0, _UNKNOWN_JOB, _FINISHED_JOB)):
            raise Unanswered(f"qstat: {reply.complaint}")
        for job in jobs:
            about = found.get(f"{job.id}.{job.cluster}")
            if isinstance(about, dict):
                verdicts[job] = _verdict(job, about)


def _jobs(text: str) -> dict[str, Any] | None:
    """The jobs in qstat's JSON; None for what is no such answer."""
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    found = answer.get("Jobs", {}) if isinstance(answer, dict) else None
    return found if isinstance(found, dict) else None


def _verdict(job: Job, about: dict[str, Any]) -> Verdict:
    """`about` is what qstat says of one job."""
    state = str(about.get("job_state", ""))
    if state in _LIVING:
        return Verdict(State.ALIVE, f"job {job.id} is {_LIVING[state]}")
    if state not in _ENDED:
        return Verdict(State.UNKNOWN, f"job {job.id} is in state {state[:10]!r}")
    code = about.get("Exit_status")
    result = "" if code is None else f" with exit status {code}"
    when = f", last seen {about['mtime']}" if isinstance(about.get("mtime"), str) else ""
    return Verdict(State.DEAD, f"job {job.id} {_ENDED[state]}{result}{when}")


def place(id: str, run: Run) -> str:
    """See `schedulers.Scheduler`: an id of PBS has its server in it, so there is nothing to ask."""
    return ""
