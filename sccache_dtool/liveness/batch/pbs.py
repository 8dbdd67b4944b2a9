"""PBS (OpenPBS, PBS Professional): `qstat -x`, which knows finished jobs for as long as the server keeps a history."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.batch.query import Run, Unanswered, batches
from sccache_dtool.liveness.job import NOT_AFTER, Job

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
    code, mtime = about.get("Exit_status"), about.get("mtime")
    result = "" if code is None else f" with exit status {code}"
    when = f", last seen {mtime}" if isinstance(mtime, str) else ""
    evidence = f"job {job.id} {_ENDED[state]}{result}{when}"
    if code is None and about.get("exec_host"):  # qdel -W force, while its host did not answer
        return Verdict(State.UNKNOWN, f"{evidence}, but without an exit status: its host may not have ended it")
    if not job.may_have_ended(_seconds(mtime)):
        return Verdict(State.UNKNOWN, f"{evidence}, {NOT_AFTER}")
    return Verdict(State.DEAD, evidence)


def _seconds(text: object) -> float | None:
    """Seconds since 1970 of a time as qstat writes it, ``Mon Jan 24 08:40:13 2022``, in this host's time zone."""
    try:
        return time.mktime(time.strptime(text)) if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None


def place(id: str, run: Run) -> str:
    """See `schedulers.Scheduler`: an id of PBS has its server in it, so there is nothing to ask."""
    return ""
