"""Slurm: `squeue` for what its controller knows, `sacct` for what it has forgotten, `sinfo` for nodes that are silent.

A job that the controller has declared ended may have processes yet, on a node that does not answer it: because the
network is cut, or slurmd hangs. So where the controller decided, and not the node, the node must have come back.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.jobs import Job
from sccache_dtool.liveness.schedulers import Absent, Reply, Run, Unanswered, batches

#: States that a node reported: the processes have ended there.
_REPORTED = frozenset("COMPLETED FAILED OUT_OF_MEMORY".split())

#: States that the controller gave a job; the processes have ended if the nodes answer.
_DECIDED = frozenset("BOOT_FAIL CANCELLED DEADLINE NODE_FAIL PREEMPTED TIMEOUT".split())

_ENDED = _REPORTED | _DECIDED

#: States of a job that has, or will have, processes. COMPLETING: they are being ended.
_LIVING = frozenset(
    """
    COMPLETING CONFIGURING PENDING POWER_UP_NODE REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING RESV_DEL_HOLD RUNNING
    SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED
    """.split()
)

_QUEUE_FIELDS = "JobID ArrayJobID ArrayTaskID RestartCnt State EndTime NodeList Cluster HetJobID".split()
_ACCOUNT_FIELDS = "JobIDRaw JobID State End Submit NodeList Cluster".split()


class Row(NamedTuple):
    """A job, or a task of an array, as Slurm lists it."""

    raw: str
    id: str
    array: str
    restarts: int
    state: str
    end: str
    nodes: str
    cluster: str
    whole: str = ""  # the number of the heterogeneous job that it is a part of

    @property
    def when(self) -> str:
        """`` at 2026-11-21 14:02``, by the controller's clock in local time; nothing if not known."""
        return f" at {self.end[:16].replace('T', ' ')}" if self.end[:1].isdigit() else ""


class _Condition(NamedTuple):
    """A verdict DEAD that holds if all `nodes` answer."""

    evidence: str
    nodes: str


def ask(jobs: Sequence[Job], run: Run, verdicts: dict[Job, Verdict]) -> None:
    """See `schedulers.Scheduler`."""
    if (rows := _queue(jobs, run)) and any(_blank(row.cluster) for row in rows):
        name = _cluster_name(run)
        rows = [row._replace(cluster=name) if _blank(row.cluster) else row for row in rows]
    conditions: dict[Job, _Condition] = {}
    forgotten = []
    for job in jobs:
        mine = [row for row in rows if _means(job, row)]
        if not mine:
            forgotten.append(job)
        else:
            _settle(job, _from_queue(job, mine), verdicts, conditions)
    if forgotten:
        _ask_accounting(forgotten, run, verdicts, conditions)
    if conditions:
        _ask_nodes(conditions, run, verdicts)


def _settle(
    job: Job, found: Verdict | _Condition, verdicts: dict[Job, Verdict], conditions: dict[Job, _Condition]
) -> None:
    if isinstance(found, Verdict):
        verdicts[job] = found
    else:
        conditions[job] = found
        verdicts[job] = Verdict(State.UNKNOWN, f"{found.evidence}, but whether its nodes answer is not known")


def place(id: str, run: Run) -> str:
    """See `schedulers.Scheduler`."""
    rows = _queue([Job("slurm", "", id)], run)
    names = {row.cluster for row in rows if not _blank(row.cluster)}
    return names.pop() if len(names) == 1 else _cluster_name(run)


def _cluster_name(run: Run) -> str:
    """The cluster whose controller this host asks."""
    reply = run(["scontrol", "show", "config"])
    match = re.search(r"^ClusterName\s*=\s*(\S+)", reply.out, re.MULTILINE)
    if reply.code != 0 or match is None:
        raise Unanswered(f"scontrol: {reply.complaint}")
    return match[1]


def _blank(text: str) -> bool:
    return text in ("", "N/A", "(null)")


# -- what the controller knows -----------------------------------------------------------------------------------------


def _queue(jobs: Sequence[Job], run: Run) -> list[Row]:
    """What `squeue` says of the jobs. One job that it does not know makes it fail; of several it leaves that out."""
    rows = []
    for ids in batches(dict.fromkeys(job.raw or job.id for job in jobs)):
        fields = ",".join(f"{field}:|" for field in _QUEUE_FIELDS)
        reply = run(["squeue", "-h", "-r", "-t", "all", "-j", ",".join(ids), "-O", fields])
        if reply.code != 0:
            if "Invalid job id" in reply.err:
                continue
            raise Unanswered(f"squeue: {reply.complaint}")
        for raw, array, task, restarts, state, end, nodes, cluster, whole in _split(
            reply, len(_QUEUE_FIELDS), "squeue"
        ):
            id = f"{array}_{task}" if task.isdecimal() else raw
            number = int(restarts) if restarts.isdecimal() else 0
            rows.append(Row(raw, id, array, number, state, end, nodes, cluster, whole))
    return rows


def _split(reply: Reply, count: int, command: str) -> Iterator[list[str]]:
    for line in reply.out.splitlines():
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < count:
            raise Unanswered(f"{command} gave an answer that cannot be understood: {line[:80]!r}")
        yield fields[:count]


def _means(job: Job, row: Row) -> bool:
    """Whether a row is about the job. The last task of an array has the array's own number."""
    if job.cluster != row.cluster and not _blank(row.cluster):
        return False
    if job.raw:
        return row.raw == job.raw and row.id in (job.id, row.raw)
    if "_" in job.id:
        return row.id == job.id
    return job.id in (row.raw, row.array, row.whole)


def _from_queue(job: Job, rows: list[Row]) -> Verdict | _Condition:
    """`rows` are one, or those of all tasks of an array or all parts of a heterogeneous job."""
    strange = next((row for row in rows if row.state not in _LIVING | _ENDED), None)
    if strange is not None:
        return Verdict(State.UNKNOWN, f"job {job.id} is in a state that is not known here, {strange.state[:40]!r}")
    start = int(job.incarnation) if job.incarnation else None
    if start is not None and all(row.restarts < start for row in rows):
        return Verdict(State.UNKNOWN, f"job {job.id} was restarted less often than this one: its number is another's")
    living = [row for row in rows if row.state in _LIVING]
    for row in living:
        if start in (None, row.restarts) or row.state == "COMPLETING":
            return Verdict(State.ALIVE, f"job {job.id} is {row.state}")
    if living or any(row.restarts != start for row in rows if start is not None):
        return _started_again(job, (living or rows)[0], job.nodes)
    return _ended(job, rows)


def _ended(job: Job, rows: list[Row]) -> Verdict | _Condition:
    last = max(rows, key=lambda row: row.end)
    evidence = f"job {job.id} {last.state}{last.when}"
    # One node that reports the end speaks for itself; of several the batch script's speaks for itself alone.
    rows = [row for row in rows if row.state in _DECIDED or _are_several(row.nodes)]
    nodes = [row.nodes for row in rows if row.nodes != "None assigned"]
    nodes = [text for text in nodes if not _blank(text)]
    return _Condition(evidence, ",".join(nodes)) if nodes else Verdict(State.DEAD, evidence)


def _are_several(nodes: str) -> bool:
    return "," in nodes or "[" in nodes


def _started_again(job: Job, now: Row, nodes: str) -> _Condition:
    """`nodes`: where the start was that the lease is of."""
    return _Condition(f"job {job.id} was started again after this lease was taken, and is {now.state}{now.when}", nodes)


# -- what it has forgotten ---------------------------------------------------------------------------------------------


def _ask_accounting(
    jobs: Sequence[Job], run: Run, verdicts: dict[Job, Verdict], conditions: dict[Job, _Condition]
) -> None:
    rows = []
    for ids in batches(dict.fromkeys(job.raw or job.id for job in jobs)):
        command = ["sacct", "-X", "-D", "-n", "-P", "-j", ",".join(ids), "-o", ",".join(_ACCOUNT_FIELDS)]
        try:
            reply = run(command)
        except Absent:
            reply = Reply(1, "", "accounting storage is disabled")
        if "accounting storage is disabled" in reply.err:
            for job in jobs:
                text = f"the controller does not know job {job.id} (any more), and Slurm's accounting is off"
                verdicts[job] = Verdict(State.UNKNOWN, text)
            return
        if reply.code != 0:
            raise Unanswered(f"sacct: {reply.complaint}")
        for raw, id, state, end, submit, nodes, cluster in _split(reply, len(_ACCOUNT_FIELDS), "sacct"):
            array, whole = id.partition("_")[0], id.partition("+")[0]
            row = Row(raw, id, array, 0, state.partition(" ")[0], end, nodes, cluster, whole)
            rows.append((submit, row))
    rows.sort(key=lambda pair: pair[0])
    for job in jobs:
        mine = [row for _, row in rows if row.cluster == job.cluster and _means(job, row)]
        if mine:
            _settle(job, _from_accounting(job, mine), verdicts, conditions)
        else:
            others = sorted({row.cluster for _, row in rows if _means(job._replace(cluster=row.cluster), row)})
            text = f"of cluster {', '.join(others)}, not {job.cluster}" if others else "not listed, or hidden"
            verdicts[job] = Verdict(State.UNKNOWN, f"job {job.id} is {text}; that is no proof")


def _from_accounting(job: Job, rows: list[Row]) -> Verdict | _Condition:
    """`rows` are in the order in which they were submitted: there is one for each start of a job."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.id, []).append(row)
    for starts in tasks.values():
        if starts[-1].state not in _ENDED:
            text = f"job {job.id} is {starts[-1].state[:40]} to its accounting, and unknown to its controller"
            return Verdict(State.UNKNOWN, text)
    start = int(job.incarnation) if job.incarnation else -1
    if any(len(starts) <= start for starts in tasks.values()):
        return Verdict(State.UNKNOWN, f"the accounting has not heard of start {start} of job {job.id}")
    ours = [starts[start] for starts in tasks.values()]
    if all(row.state in _ENDED for row in ours):
        return _ended(job, ours)
    return _started_again(job, rows[-1], ",".join(row.nodes for row in ours))  # REQUEUED


# -- nodes that do not answer ------------------------------------------------------------------------------------------


def _may_not_answer(state: str) -> bool:
    """Whether processes may go on on a node: it is silent (`*`), or somebody set it down without asking it."""
    return "*" in state or state.lower().startswith(("down", "unk", "error", "fail"))


def _ask_nodes(conditions: dict[Job, _Condition], run: Run, verdicts: dict[Job, Verdict]) -> None:
    reply = run(["sinfo", "-h", "-N", "-a", "-O", "NodeList:|,StateLong:|"])
    if reply.code != 0:
        raise Unanswered(f"sinfo: {reply.complaint}")
    states = {name: state for name, state, *_ in _split(reply, 2, "sinfo")}
    for job, condition in conditions.items():
        nodes = expand(condition.nodes)
        silent = [node for node in nodes or () if _may_not_answer(states.get(node, "unknown"))]
        if not nodes:
            text = f"{condition.evidence}, but on which nodes it ran is not known, and one may not have been reached"
            verdicts[job] = Verdict(State.UNKNOWN, text)
        elif silent:
            more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            text = f"{condition.evidence}, but node {silent[0]}{more} does not answer: processes may go on there"
            verdicts[job] = Verdict(State.UNKNOWN, text)
        else:
            verdicts[job] = Verdict(State.DEAD, condition.evidence)


def expand(nodes: str) -> list[str] | None:
    """The nodes in a list as Slurm writes it, ``n[1-3,07],login1``; None for what is no such list."""
    if re.search(r"[\[\]]", re.sub(r"\[[^\[\]]*\]", "", nodes)):
        return None
    found: list[str] = []
    for word in re.findall(r"[^,\[\]]*(?:\[[^\]]*\][^,\[\]]*)*", nodes):
        if not word:
            continue
        parts: list[list[str]] = []
        for piece in re.split(r"(\[[^\]]*\])", word):
            numbers = _numbers(piece[1:-1]) if piece.startswith("[") else [piece]
            if numbers is None:
                return None
            parts.append(numbers)
        found += ("".join(combination) for combination in itertools.product(*parts))
    return found if all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in found) else None


def _numbers(text: str) -> list[str] | None:
    """``1-3,07`` → 1 2 3 07; at most some ten thousand."""
    found: list[str] = []
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", word)
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first <= 65_536:
            return None
        found += (f"{number:0{len(match[1])}d}" for number in range(first, last + 1))
    return found
