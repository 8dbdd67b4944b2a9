"""HTCondor: `condor_q` for jobs in the queue, `condor_history` for those that have left it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sccache_dtool.clock import iso
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.batch.query import Run, answer, batches, not_parsed
from sccache_dtool.liveness.job import NOT_AFTER, Job

#: JobStatus. In the queue even a removed or completed job may have processes that are being ended.
_STATES = {1: "idle", 2: "running", 3: "removed", 4: "completed", 5: "held", 6: "transferring output", 7: "suspended"}
_REMOVED, _COMPLETED = 3, 4

_ATTRIBUTES = "ClusterId,ProcId,GlobalJobId,JobStatus,EnteredCurrentStatus,NumJobStarts,RemoteHost,LastRemoteHost"


def ask(jobs: Sequence[Job], run: Run, verdicts: dict[Job, Verdict]) -> None:
    """See `schedulers.Scheduler`. Each schedd is asked for its own jobs; nearly always there is one."""
    for schedd in dict.fromkeys(job.cluster for job in jobs):
        theirs = [job for job in jobs if job.cluster == schedd]
        queued = _by_name(_listed(["condor_q", "-allusers"], schedd, theirs, run))
        for job in theirs:
            if (ad := queued.get(_name(job))) is not None:
                verdicts[job] = Verdict(State.ALIVE, f"job {job.id} is in the queue, {_state(ad)}")
        left = [job for job in theirs if _name(job) not in queued]
        finished = _by_name(_listed(["condor_history"], schedd, left, run))
        for job in left:
            if (ad := finished.get(_name(job))) is not None:
                verdicts[job] = _finished(job, ad)


def _finished(job: Job, ad: dict[str, Any]) -> Verdict:
    """`ad` is what the history says of a job that has left the queue."""
    status, since = ad.get("JobStatus"), ad.get("EnteredCurrentStatus")
    if status not in (_REMOVED, _COMPLETED):
        return Verdict(State.UNKNOWN, f"job {job.id} has left the queue, but is {_state(ad)}")
    evidence = f"job {job.id} has left the queue, {_state(ad)}"
    if status == _REMOVED and not _was_left(ad):
        return Verdict(State.UNKNOWN, f"{evidence}, but its host may not have ended it")
    if not job.may_have_ended(since if isinstance(since, int) else None):
        return Verdict(State.UNKNOWN, f"{evidence}, {NOT_AFTER}")
    return Verdict(State.DEAD, evidence)


def _was_left(ad: dict[str, Any]) -> bool:
    """Whether a removed job has no processes: it had none ever, or its shadow has let go of the host.

    `condor_rm -forcex` takes a job out of the queue without waiting for that.
    """
    if not ad.get("NumJobStarts") and "RemoteHost" not in ad and "LastRemoteHost" not in ad:
        return True
    return "LastRemoteHost" in ad and "RemoteHost" not in ad


def _name(job: Job) -> str:
    """As in a global id: schedd, number, and the time when it was submitted, ``schedd#12.0#1700000000``."""
    return "#".join(filter(None, (job.cluster, job.id, job.incarnation)))


def _by_name(ads: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Ads by global id; and, the newest first, by such an id without the time."""
    found: dict[str, dict[str, Any]] = {}
    for ad in ads:
        name = _global_id(ad)
        for key in (name, name.rpartition("#")[0]):
            found.setdefault(key, ad)
    return found


def _global_id(ad: dict[str, Any]) -> str:
    return str(ad.get("GlobalJobId", ""))


def _state(ad: dict[str, Any]) -> str:
    status, since = ad.get("JobStatus"), ad.get("EnteredCurrentStatus")
    name = _STATES.get(status, "in an unknown state") if isinstance(status, int) else "in an unknown state"
    return f"{name} since {iso(since)}" if isinstance(since, int) and 0 < since < 1 << 40 else name


def _listed(command: list[str], schedd: str, jobs: Sequence[Job], run: Run) -> Iterator[dict[str, Any]]:
    """The ads of the jobs that are listed."""
    for ids in batches(job.id for job in jobs):
        where = ["-name", schedd] if schedd else []
        limit = ["-match", str(len(ids))] if command == ["condor_history"] else []  # or it reads its files to the end
        reply = answer(run, [*command, *where, *limit, *ids, "-json", "-attributes", _ATTRIBUTES])
        ads = reply.document if reply.out.strip() else []  # where there is none HTCondor prints nothing at all
        if not isinstance(ads, list) or not all(isinstance(ad, dict) for ad in ads):
            raise not_parsed(command[0], reply.out)
        yield from ads


def place(id: str, run: Run) -> str:
    """See `schedulers.Scheduler`."""
    ads = _listed(["condor_q", "-allusers"], "", [Job("htcondor", "", id)], run)
    names = {_global_id(ad).partition("#")[0] for ad in ads}
    return names.pop() if len(names) == 1 else ""
