"""Slurm: `squeue` for what its controller knows, `sacct` for what it has forgotten, `sinfo` for nodes that are silent.

A job that the controller has declared ended may have processes yet, on a node that does not answer it: because the
network is cut, or slurmd hangs. So where the controller decided, and not the node, the node must have come back.

Numbers of jobs are used again, and two clusters may have one name. So an end is believed only of the start that was
noted; or, where none was, of a start and an end that lie around the time when the lease was taken.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sccache_dtool.clock import local
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.batch.query import Absent, Reply, Run, Unanswered, answer, batches, not_parsed
from sccache_dtool.liveness.job import CLOCKS_APART, Job

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

_QUEUE_FIELDS = (
    "JobID ArrayJobID ArrayTaskID RestartCnt State SubmitTime StartTime EndTime NodeList Cluster HetJobID".split()
)
_ACCOUNT_FIELDS = "JobIDRaw JobID State Submit Start End NodeList Cluster".split()


class Row(NamedTuple):
    """A job, or a task of an array, as Slurm lists it."""

    raw: str
    id: str
    array: str
    restarts: int
    state: str
    submitted: float | None  # this and what follows by the controller's clock, in seconds since 1970; of a
    started: float | None  # job that was put back into the queue, when that was
    ended: float | None
    nodes: str
    cluster: str
    whole: str = ""  # the number of the heterogeneous job that it is a part of

    @property
    def when(self) -> str:
        """`` at 2026-11-21 14:02``; nothing if not known."""
        return "" if self.ended is None else f" at {local(self.ended)}"


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
    by_number = _by_number(rows)
    for job in jobs:
        mine = [row for row in by_number.get(job.raw or job.id, ()) if _means(job, row)]
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
        verdicts[job] = Verdict(State.UNKNOWN, f"{found.evidence}, but it is unknown whether its nodes respond")


def place(id: str, run: Run) -> str:
    """See `schedulers.Scheduler`."""
    rows = _queue([Job("slurm", "", id)], run)
    names = {row.cluster for row in rows if not _blank(row.cluster)}
    return names.pop() if len(names) == 1 else _cluster_name(run)


def _cluster_name(run: Run) -> str:
    """The cluster whose controller this host asks."""
    reply = answer(run, ["scontrol", "show", "config"])
    match = re.search(r"^ClusterName\s*=\s*(\S+)", reply.out, re.MULTILINE)
    if match is None:
        raise Unanswered(f"scontrol: {reply.complaint}")
    return match[1]


def _blank(text: str) -> bool:
    return text in ("", "N/A", "(null)")


# -- what the controller knows -----------------------------------------------------------------------------------------


def _queue(jobs: Sequence[Job], run: Run) -> list[Row]:
    """What `squeue` says of the jobs. One job that it does not know makes it fail; of several it leaves that out."""
    rows = []
    for ids in batches(job.raw or job.id for job in jobs):
        fields = ",".join(f"{field}:|" for field in _QUEUE_FIELDS)
        reply = run(["squeue", "-h", "-a", "-r", "-t", "all", "-j", ",".join(ids), "-O", fields])
        if reply.code != 0:
            if "Invalid job id" in reply.err:
                continue
            raise Unanswered(f"squeue: {reply.complaint}")
        for raw, array, task, restarts, state, *times, nodes, cluster, whole in _split(
            reply, len(_QUEUE_FIELDS), "squeue"
        ):
            id = f"{array}_{task}" if task.isdecimal() else raw
            number = int(restarts) if restarts.isdecimal() else 0
            submitted, started, ended = map(_time, times)
            rows.append(Row(raw, id, array, number, state, submitted, started, ended, nodes, cluster, whole))
    return rows


def _time(text: str) -> float | None:
    """Seconds since 1970, as Slurm writes times when asked to; None for ``N/A``, ``NONE`` and ``Unknown``."""
    return float(text) if text.isdecimal() and len(text) < 12 else None


def _split(reply: Reply, count: int, command: str) -> Iterator[list[str]]:
    for line in reply.out.splitlines():
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < count:
            raise not_parsed(command, line)
        yield fields[:count]


def _by_number(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by every number that they may be meant by; ten thousand holders must not each look through all of them."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        for number in {row.raw, row.id, row.array, row.whole}:
            found.setdefault(number, []).append(row)
    return found


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
        return Verdict(State.UNKNOWN, f"job {job.id} is in an unknown state, {strange.state[:40]!r}")
    start = int(job.incarnation) if job.incarnation else None
    if start is not None and all(row.restarts < start for row in rows):
        return Verdict(State.UNKNOWN, f"job {job.id} was restarted less often than this one: its number was reused")
    living = [row for row in rows if row.state in _LIVING]
    for row in living:
        if start in (None, row.restarts) or row.state == "COMPLETING":
            return Verdict(State.ALIVE, f"job {job.id} is {row.state}")
    if living or any(row.restarts != start for row in rows if start is not None):
        now = (living or rows)[0]
        # Putting a job back into the queue is submitting it again.
        return _started_again(job, now, job.nodes) if job.may_have_ended(now.submitted) else _is_of_another_job(job)
    return _ended(job, rows)


def _is_of_another_job(job: Job) -> Verdict:
    return Verdict(State.UNKNOWN, f"the job {job.id} that is listed ran at another time: its number was reused")


def _may_be_of(job: Job, rows: list[Row]) -> bool:
    """Whether rows that have ended may be of this job: of the start that was noted, or of one at the right time."""
    if job.started:
        return any(row.started == float(job.started) for row in rows)
    if not any(job.may_have_ended(row.ended) for row in rows):
        return False
    first = [row for row in rows if not row.restarts]
    begins = [row.started for row in rows] if job.incarnation else [row.submitted for row in first]
    return not begins or any(begin is not None and begin <= job.seen + CLOCKS_APART for begin in begins)


def _ended(job: Job, rows: list[Row]) -> Verdict | _Condition:
    if not _may_be_of(job, rows):
        return _is_of_another_job(job)
    last = max(rows, key=lambda row: row.ended or 0.0)
    evidence = f"job {job.id} {last.state}{last.when}"
    # One node that reports the end speaks for itself; of several the batch script's speaks for itself alone. Those that
    # were noted count as well: with `--no-kill` Slurm takes a node that fails out of its list of the job's.
    unsure = [row for row in rows if row.state in _DECIDED or _are_several(row.nodes) or _are_several(job.nodes)]
    nodes = [row.nodes for row in unsure if row.nodes != "None assigned" and not _blank(row.nodes)]
    if unsure and job.incarnation:  # the lease was taken in it, so it did run
        return _Condition(evidence, ",".join(filter(None, [job.nodes, *nodes])))
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
    for ids in batches(job.raw or job.id for job in jobs):
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
        for raw, id, state, *times, nodes, cluster in _split(reply, len(_ACCOUNT_FIELDS), "sacct"):
            array, whole = id.partition("_")[0], id.partition("+")[0]
            submitted, started, ended = map(_time, times)
            state = state.partition(" ")[0]  # CANCELLED by 1001
            rows.append(Row(raw, id, array, 0, state, submitted, started, ended, nodes, cluster, whole))
    rows.sort(key=lambda row: row.submitted or 0.0)
    by_number = _by_number(rows)
    for job in jobs:
        candidates = by_number.get(job.raw or job.id, [])
        mine = [row for row in candidates if row.cluster == job.cluster and _means(job, row)]
        if mine:
            _settle(job, _from_accounting(job, mine), verdicts, conditions)
        else:
            others = sorted({row.cluster for row in candidates if _means(job._replace(cluster=row.cluster), row)})
            text = f"of cluster {', '.join(others)}, not {job.cluster}" if others else "not listed, or hidden"
            verdicts[job] = Verdict(State.UNKNOWN, f"job {job.id} is {text}; that proves nothing")


def _from_accounting(job: Job, rows: list[Row]) -> Verdict | _Condition:
    """`rows` are in the order in which they were submitted: there is one for each start of a job."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        starts = tasks.setdefault(row.id, [])
        starts.append(row._replace(restarts=len(starts)))
    for starts in tasks.values():
        if starts[-1].state not in _ENDED:
            text = f"job {job.id} is {starts[-1].state[:40]} to its accounting, and unknown to its controller"
            return Verdict(State.UNKNOWN, text)
    ours = [row for starts in tasks.values() for row in starts if _is_start(job, row, len(starts))]
    if len(ours) < len(tasks):
        return Verdict(State.UNKNOWN, f"the accounting does not have that start of job {job.id}")
    if not _may_be_of(job, ours):
        return _is_of_another_job(job)
    if all(row.state in _ENDED for row in ours):
        return _ended(job, ours)
    return _started_again(job, rows[-1], ",".join(row.nodes for row in ours))  # REQUEUED


def _is_start(job: Job, row: Row, count: int) -> bool:
    """Whether a row is of the start that the lease is of: the one that was noted, or else the last of `count`."""
    if job.started:
        return row.started == float(job.started)
    return row.restarts == (int(job.incarnation) if job.incarnation else count - 1)


# -- nodes that do not answer ------------------------------------------------------------------------------------------


def _may_not_answer(state: str) -> bool:
    """Whether processes may go on on a node: it is silent (`*`), or somebody set it down without asking it."""
    return "*" in state or state.lower().startswith(("down", "unk", "error", "fail"))


def _ask_nodes(conditions: dict[Job, _Condition], run: Run, verdicts: dict[Job, Verdict]) -> None:
    reply = answer(run, ["sinfo", "-h", "-N", "-a", "-O", "NodeList:|,StateLong:|"])
    states = {name: state for name, state, *_ in _split(reply, 2, "sinfo")}
    for job, (evidence, list_of_nodes) in conditions.items():
        nodes = expand(list_of_nodes)
        silent = [node for node in dict.fromkeys(nodes or ()) if _may_not_answer(states.get(node, "unknown"))]
        if not nodes:
            doubt = ", but the nodes that it ran on are unknown, and one may be unreachable"
        elif silent:
            more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            doubt = f", but node {silent[0]}{more} does not respond: processes may still run there"
        else:
            doubt = ""
        verdicts[job] = Verdict(State.UNKNOWN if doubt else State.DEAD, f"{evidence}{doubt}")


def expand(nodes: str) -> list[str] | None:
    """The nodes in a list as Slurm writes it, ``n[1-3,07],login1``; None if it is not such a list."""
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
