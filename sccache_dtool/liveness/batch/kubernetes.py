"""Kubernetes: `kubectl get pod`. A pod's unique id tells it apart from others of its name, on every cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.batch.query import Reply, Run, answer, batches, not_parsed
from sccache_dtool.liveness.job import Job


def ask(jobs: Sequence[Job], run: Run, verdicts: dict[Job, Verdict]) -> None:
    """See `schedulers.Scheduler`. One question for each name space; a pod that is not there is left out."""
    for space in dict.fromkeys(job.id.partition("/")[0] for job in jobs):
        theirs = [job for job in jobs if job.id.partition("/")[0] == space]
        for names in batches(job.id.partition("/")[2] for job in theirs):
            reply = answer(run, ["kubectl", "get", "pod", "-n", space, *names, "--ignore-not-found", "-o", "json"])
            pods = {pod["metadata"]["name"]: pod for pod in _pods(reply)}
            for job in theirs:
                pod = pods.get(job.id.partition("/")[2])
                if pod is not None:
                    verdicts[job] = _verdict(job, pod)


def _pods(reply: Reply) -> list[dict[str, Any]]:
    """The pods in an answer: a list of several, one by itself, or nothing at all."""
    if not reply.out.strip():
        return []
    document = reply.document
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        pods = document["items"] if document.get("kind") == "List" else [document]
        if all(isinstance(pod["metadata"]["name"], str) and isinstance(pod["status"], dict) for pod in pods):
            return list(pods)
    raise not_parsed("kubectl", reply.out)


def _verdict(job: Job, pod: dict[str, Any]) -> Verdict:
    """Phase Failed alone is not proof: a pod on a lost node gets it without a check."""
    uid, phase = pod["metadata"].get("uid"), str(pod["status"].get("phase", ""))[:20]
    if job.incarnation and uid != job.incarnation:
        return Verdict(State.UNKNOWN, f"job {job.id} is now another pod of the same name")
    if phase in ("Pending", "Running"):
        return Verdict(State.ALIVE, f"job {job.id} is {phase}")
    containers = pod["status"].get("containerStatuses")
    if phase in ("Succeeded", "Failed") and not job.incarnation:
        return Verdict(
            State.UNKNOWN, f"job {job.id} {phase}, but the lease does not record which pod of that name holds it"
        )
    ended = [one["state"]["terminated"] for one in containers or () if "terminated" in one.get("state", {})]
    if phase in ("Succeeded", "Failed") and containers and len(ended) == len(containers):
        return Verdict(State.DEAD, f"job {job.id} {phase} at {max(str(one.get('finishedAt', '?')) for one in ended)}")
    return Verdict(State.UNKNOWN, f"job {job.id} is {phase}, but not all of its containers are known to have ended")
