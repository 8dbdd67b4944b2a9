"""LSF: `bjobs`, which knows finished jobs for an hour (CLEAN_PERIOD).

The name of a cluster is not in a job's environment, but the host that it was submitted from is, and a host is of one
cluster: that host tells jobs of two clusters with one number apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.batch.query import Run, Unanswered, batches
from sccache_dtool.liveness.job import Job

_ENDED = frozenset({"DONE", "EXIT"})
#: Why jobs end of which LSF itself does not know whether their host has ended them (`bkill -r`, hosts that are silent).
_UNSEEN = ("TERM_FORCE_", "TERM_REMOVE_HUNG_JOB", "TERM_ZOMBIE")

_LIVING = frozenset({"PEND", "PROV", "PSUSP", "RUN", "SSUSP", "USUSP", "WAIT"})  # UNKWN, ZOMBI: its host is silent


def ask(jobs: Sequence[Job], run: Run, verdicts: dict[Job, Verdict]) -> None:
    """See `schedulers.Scheduler`."""
    records = list(_records([job.id for job in jobs], run))
    for job in jobs:
        record = next((one.fields for one in records if one.id == job.id and one.host == job.cluster), None)
        if record is None:
            continue
        state = str(record.get("STAT", ""))
        when = f" at {str(record['FINISH_TIME']).removesuffix(' L')}" if record.get("FINISH_TIME") else ""
        reason = str(record.get("EXIT_REASON", ""))
        if state in _ENDED and any(word in reason for word in _UNSEEN):
            text = f"job {job.id} {state}{when} ({reason[:60]}): its host may not have ended it"
            verdicts[job] = Verdict(State.UNKNOWN, text)
        elif state in _ENDED:
            verdicts[job] = Verdict(State.DEAD, f"job {job.id} {state}{when}")
        else:
            known = State.ALIVE if state in _LIVING else State.UNKNOWN
            verdicts[job] = Verdict(known, f"job {job.id} is {state[:10]}")


class _Record(NamedTuple):
    """A job that LSF lists."""

    id: str
    host: str  # where it was submitted
    fields: dict[str, Any]


def _records(ids: Sequence[str], run: Run) -> Iterator[_Record]:
    for batch in batches(ids):
        fields = "jobid jobindex stat from_host finish_time exit_reason"
        reply = run(["bjobs", "-a", "-u", "all", "-json", "-o", fields, *batch])
        document = reply.document
        found = document.get("RECORDS") if isinstance(document, dict) else None
        if not isinstance(found, list):
            raise Unanswered(f"bjobs: {reply.complaint}")
        for record in found:
            if isinstance(record, dict) and "STAT" in record:  # of a job that it does not know: {"JOBID", "ERROR"}
                number, index = str(record.get("JOBID", "")), str(record.get("JOBINDEX", "0"))
                id = number if index in ("", "0") else f"{number}[{index}]"
                yield _Record(id, str(record.get("FROM_HOST", "")), record)


def place(id: str, run: Run) -> str:
    """See `schedulers.Scheduler`."""
    hosts = {one.host for one in _records([id], run) if one.id == id and one.host}
    return hosts.pop() if len(hosts) == 1 else ""
