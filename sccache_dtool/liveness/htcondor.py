"""HTCondor: `condor_q` for jobs in the queue, `condor_history` for those that have left it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.jobs import Job
from sccache_dtool.liveness.schedulers import Run, Unanswered, batches

#: JobStatus. In the queue even a removed or completed job may have processes that are being ended.
_STATES = {1: "idle", 2: "running", 3: "removed", 4: "completed", 5: "held", 6: "transferring output", 7: "suspended"}
_ENDED = (3, 4)

_ATTRIBUTES = "ClusterId,ProcId,GlobalJobId,JobStatus,EnteredCurrentStatus"


def ask(jobs: Sequence[Job], run: Run, verdicts: dict[Job, Verdict]) -> None:
    """See `schedulers.Scheduler`. Each schedd is asked for its own jobs; nearly always there is one."""
    for schedd in dict.fromkeys(job.cluster for job in jobs):
        theirs = [job for job in jobs if job.cluster == schedd]
        queued = {(name, id): ad for name, id, ad in _listed(["condor_q"], schedd, theirs, run)}
        left = []
        for job in theirs:
            ad = queued.get((job.cluster, job.id))
            if ad is None:
                left.append(job)
            else:
                verdicts[job] = Verdict(State.ALIVE, f"job {job.id} is in the queue, {_state(ad)}")
        finished = {(name, id): ad for name, id, ad in _listed(["condor_history"], schedd, left, run)}
        for job in left:
            ad = finished.get((job.cluster, job.id))
            if ad is None:
                continue
            if ad.get("JobStatus") in _ENDED:
                verdicts[job] = Verdict(State.DEAD, f"job {job.id} has left the queue, {_state(ad)}")
            else:
                verdicts[job] = Verdict(State.UNKNOWN, f"job {job.id} has left the queue, but is {_state(ad)}")


def _state(ad: dict[str, Any]) -> str:
    from sccache_dtool.clock import iso

    status, since = ad.get("JobStatus"), ad.get("EnteredCurrentStatus")
    name = _STATES.get(status, "in an unknown state") if isinstance(status, int) else "in an unknown state"
    return f"{name} since {iso(since)}" if isinstance(since, int) and 0 < since < 1 << 40 else name


def _listed(
    command: list[str], schedd: str, jobs: Sequence[Job], run: Run
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Schedd, id and ad of the jobs that are listed."""
    for ids in batches(dict.fromkeys(job.id for job in jobs)):
        where = ["-name", schedd] if schedd else []
        limit = ["-match", str(len(ids))] if command == ["condor_history"] else []
        reply = run([*command, *where, *limit, *ids, "-json", "-attributes", _ATTRIBUTES])
        if reply.code != 0:
            raise Unanswered(f"{command[0]}: {reply.complaint}")
        for ad in _ads(reply.out, command[0]):
            name = str(ad.get("GlobalJobId", "")).partition("#")[0]
            yield name, f"{ad.get('ClusterId')}.{ad.get('ProcId')}", ad


def _ads(text: str, command: str) -> list[dict[str, Any]]:
    """The ads in an answer; where there is none HTCondor prints nothing at all."""
    if not text.strip():
        return []
    try:
        ads = json.loads(text)
    except ValueError:
        ads = None
    if not isinstance(ads, list) or not all(isinstance(ad, dict) for ad in ads):
        raise Unanswered(f"{command} gave an answer that cannot be understood: {text[:80]!r}")
    return ads


def place(id: str, run: Run) -> str:
    """See `schedulers.Scheduler`."""
    names = {name for name, _, _ in _listed(["condor_q"], "", [Job("htcondor", "", id)], run)}
    return names.pop() if len(names) == 1 else ""
