"""Batch jobs: what a job is called, and which one this process runs in.

The environment is believed only where it is true of this process. A shell in `screen` or `tmux` that was started in
a job keeps that job's variables when the job has long ended. So a process is in a job only if the kernel says so: an
ancestor is the job's own keeper, or the control group carries the job's number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sccache_dtool.clock import from_iso
from sccache_dtool.liveness.ancestors import Ancestor, ancestors
from sccache_dtool.liveness.process import Proc

#: The batch systems by the word that stands before the colon in `--holder`, and their names for people.
TITLES = {"slurm": "Slurm", "pbs": "PBS", "htcondor": "HTCondor", "lsf": "LSF", "kubernetes": "Kubernetes"}

#: Node lists longer than this are not recorded: a record is short, and half a list would be a wrong one.
_LONGEST_NODE_LIST = 100

#: Seconds by which the clocks of a batch system and of a host that takes leases may differ. Slurm's own messages are
#: refused where it is more than 300.
CLOCKS_APART = 600.0

#: What is said of an end that is not known to be that of the job which the lease is of.
NOT_AFTER = "but apparently not after this lease was taken: that was another job with the same number"

#: What jobs' ids, and the names of their clusters, look like. They become words of command lines, and one that a batch
#: system does not understand makes some of them answer for no job at all.
_IDS = {
    "slurm": r"[0-9]{1,12}(_[0-9]{1,12})?",
    "pbs": r"[0-9]{1,15}(\[[0-9]{0,12}\])?",
    "htcondor": r"[0-9]{1,12}\.[0-9]{1,12}",
    "lsf": r"[0-9]{1,12}(\[[0-9]{1,12}\])?",
    "kubernetes": r"[a-z0-9][a-z0-9-]{0,62}/[a-z0-9][a-z0-9.-]{0,252}",
}
_CLUSTER = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}"
_NUMBER = r"[0-9]{0,15}"


class Job(NamedTuple):
    """A job of a batch system, told apart from every other."""

    scheduler: str  # a key of TITLES
    cluster: str  # Slurm's cluster, PBS's server, HTCondor's schedd, LSF's submission host; empty for Kubernetes
    id: str  # as people write it: 48211, or 48200_7 for a task of an array
    incarnation: str = ""  # which of that id (Slurm: after so many restarts); empty: any, also one to come
    raw: str = ""  # the number by which a node knows a task of a Slurm array; the last task's is the array's own
    nodes: str = ""  # where it runs, as the batch system writes lists of nodes; empty if not known
    started: str = ""  # when, in seconds since 1970 by the batch system's clock; empty if not known
    seen: float = 0.0  # when a lease was taken for it, by its host's clock: it had not ended then; 0: not known

    @property
    def identity(self) -> str:
        """What an owner's token is the hash of; a shell script must be able to make it, too. See `samples/`."""
        return f"{self.scheduler}/{self.cluster}/{f'task:{self.raw}' if self.raw else self.id}"

    def fields(self) -> dict[str, Any]:
        """As the fields of a record; what is empty is left out."""
        named = {"scheduler": self.scheduler, "cluster": self.cluster, "job": self.id}
        others = ("incarnation", "raw", "nodes", "started")
        return named | {key: getattr(self, key) for key in others if getattr(self, key)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Job | None:
        """The job that a record names; None if it names none that could be asked for."""
        keys = ("scheduler", "cluster", "job", "incarnation", "raw", "nodes", "started")
        texts = [fields.get(key, "") for key in keys]
        if not all(isinstance(text, str) for text in texts):
            return None
        job = cls(*texts)._replace(seen=from_iso(fields.get("since")) or 0.0)
        return job if job.is_sound else None

    def may_have_ended(self, when: float | None) -> bool:
        """Whether a job of this id that ended then may be this one. Ids are used again, and this was there at `seen`.

        The clocks of two hosts are compared, but only to doubt an end that all else proves.
        """
        return when is not None and self.seen > 0 and when >= self.seen - CLOCKS_APART

    @property
    def is_sound(self) -> bool:
        """Whether its texts are such as batch systems write; others would be words of a command line, too."""
        return (
            self.scheduler in TITLES
            and re.fullmatch(_IDS[self.scheduler], self.id) is not None
            and (not self.cluster or re.fullmatch(_CLUSTER, self.cluster) is not None)
            and (self.scheduler != "pbs" or "@" not in self.cluster)  # to qstat, what follows is a host to be asked
            and re.fullmatch(_NUMBER, self.raw) is not None
            and (self.scheduler == "kubernetes" or re.fullmatch(_NUMBER, self.incarnation) is not None)
            and re.fullmatch(_NUMBER, self.started) is not None
        )

    def __str__(self) -> str:
        return f"{TITLES[self.scheduler]} job {self.id}"


class EnclosingJob(NamedTuple):
    """The job that a process runs in."""

    job: Job
    name: str  # what its user calls it; may be empty
    within: bool  # False: beside it, as under `salloc` on a login node; the job's end is not the process's


def find_job(proc: Proc, environ: Mapping[str, str] | None = None) -> EnclosingJob | None:
    """The job that this process runs in; None if it runs in none that can be told."""
    environ = os.environ if environ is None else environ
    above = list(ancestors(proc))
    for look in (_slurm, _pbs, _htcondor, _lsf, _kubernetes):
        found = look(proc, environ, above)
        if found is not None and found.job.is_sound:
            return found
    return None


def _position(above: list[Ancestor], *commands: str) -> int | None:
    """Where the nearest ancestor is that is one of these programs."""
    return next((place for place, one in enumerate(above) if one.command in commands), None)


def _environments(
    proc: Proc, environ: Mapping[str, str], above: list[Ancestor], keeper: str
) -> Iterator[Mapping[str, str]]:
    """Ours, and those of the ancestors up to the job's keeper: `sudo` and `env -i` take variables away.

    None at all if no ancestor is the keeper.
    """
    position = _position(above, keeper)
    if position is not None:
        yield environ
        yield from (proc.environ(one.pid) for one in above[:position])


# -- Slurm -------------------------------------------------------------------------------------------------------------


def _slurm(proc: Proc, environ: Mapping[str, str], above: list[Ancestor]) -> EnclosingJob | None:
    """Slurm's keeper of a step is called ``slurmstepd: [48211.batch]``; `salloc` and `srun` stand beside the job."""
    nearest = _position(above, "slurmstepd", "salloc", "srun")
    if nearest is None:
        groups = set(re.findall(r"/job_([0-9]+)(?:/|$)", proc.cgroups(), re.MULTILINE))
        return _slurm_job(environ, within=True) if groups & _slurm_numbers(environ) else None
    if above[nearest].command != "slurmstepd":
        return _slurm_job(environ, within=False)
    title = re.search(r"\[([0-9]+)(\+[0-9]+)?\.", " ".join(proc.words(above[nearest].pid)))
    for candidate in _environments(proc, environ, above, "slurmstepd"):
        is_its = title is None or title[2] or title[1] in _slurm_numbers(candidate)
        if is_its and (found := _slurm_job(candidate, within=True)) is not None:
            return found
    return None


def _slurm_numbers(environ: Mapping[str, str]) -> set[str]:
    """The numbers of a job: a heterogeneous one has one for each of its parts, and its first part's is its own.

    A step that runs on several parts has the job's SLURM_JOB_ID on all of them (seen on Slurm 22.05), while each keeper
    has its part's number. Before Slurm 20.02 the word was PACK.
    """
    parts = (value for name, value in environ.items() if re.fullmatch(r"SLURM_JOB_ID_(HET|PACK)_GROUP_[0-9]+", name))
    return {environ.get("SLURM_JOB_ID", ""), *parts} - {""}


def _slurm_job(environ: Mapping[str, str], *, within: bool) -> EnclosingJob | None:
    number, cluster = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_CLUSTER_NAME", "")
    first = environ.get("SLURM_JOB_ID_HET_GROUP_0") or environ.get("SLURM_JOB_ID_PACK_GROUP_0", "")
    number = first if first.isdecimal() else number
    if not number.isdecimal() or not cluster:
        return None
    array, task = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    is_task = array.isdecimal() and task.isdecimal()
    is_part = bool(first) or "SLURM_HET_SIZE" in environ  # the other parts have other nodes and starts
    nodes = "" if is_part else environ.get("SLURM_JOB_NODELIST", "")
    job = Job(
        "slurm",
        cluster,
        f"{array}_{task}" if is_task else number,
        environ.get("SLURM_RESTART_COUNT", "0"),
        number if is_task else "",
        nodes if len(nodes) <= _LONGEST_NODE_LIST else "",
        # Since Slurm 23. The one that `salloc` knows is too early where nodes must be booted first.
        environ.get("SLURM_JOB_START_TIME", "") if within and not is_part else "",
    )
    return EnclosingJob(job, environ.get("SLURM_JOB_NAME", ""), within)


# -- the others; none of them tells a job how often it was restarted ---------------------------------------------------


def _pbs(proc: Proc, environ: Mapping[str, str], above: list[Ancestor]) -> EnclosingJob | None:
    is_kept = _position(above, "pbs_mom") is not None
    for candidate in _environments(proc, environ, above, "pbs_mom") if is_kept else (environ,):
        number, _, server = candidate.get("PBS_JOBID", "").partition(".")
        if number and server and (is_kept or f"/{number}.{server}" in proc.cgroups()):
            return EnclosingJob(Job("pbs", server, number), candidate.get("PBS_JOBNAME", ""), True)
    return None


def _htcondor(proc: Proc, environ: Mapping[str, str], above: list[Ancestor]) -> EnclosingJob | None:
    """HTCondor writes what it knows of a job into a file: ``GlobalJobId = "schedd#12.0#1700000000"``.

    The last number is when it was submitted: a schedd that was set up again begins with job 1.
    """
    for candidate in _environments(proc, environ, above, "condor_starter"):
        try:
            with open(candidate.get("_CONDOR_JOB_AD", ""), encoding="utf-8", errors="replace") as file:
                match = re.search(r'^GlobalJobId\s*=\s*"([^"#]+)#([0-9.]+)#([0-9]+)"', file.read(1 << 20), re.MULTILINE)
        except OSError:
            continue
        if match is not None:
            return EnclosingJob(Job("htcondor", match[1], match[2], match[3]), "", True)
    return None


def _lsf(proc: Proc, environ: Mapping[str, str], above: list[Ancestor]) -> EnclosingJob | None:
    for candidate in _environments(proc, environ, above, "res"):
        number, index = candidate.get("LSB_JOBID", ""), candidate.get("LSB_JOBINDEX", "0")
        host = candidate.get("LSB_SUB_HOST", "")
        if number.isdecimal() and host:
            id = number if index in ("", "0") else f"{number}[{index}]"
            return EnclosingJob(Job("lsf", host, id), candidate.get("LSB_JOBNAME", ""), True)
    return None


def _kubernetes(proc: Proc, environ: Mapping[str, str], above: list[Ancestor]) -> EnclosingJob | None:
    """A pod knows its name and name space; its unique id is in its control group, or in $POD_UID."""
    if "KUBERNETES_SERVICE_HOST" not in environ:
        return None
    match = re.search(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})", proc.cgroups())
    uid = environ.get("POD_UID") or (match[1].replace("_", "-") if match else "")
    space = environ.get("POD_NAMESPACE") or _first_line("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    name = environ.get("POD_NAME") or os.uname().nodename
    return EnclosingJob(Job("kubernetes", "", f"{space}/{name}", uid), name, True) if uid and space else None


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(200).strip()
    except OSError:
        return ""


# -- jobs that somebody names ------------------------------------------------------------------------------------------


def is_spec(spec: str) -> bool:
    """Whether what was given to `--holder` names a job: ``slurm:48211``."""
    scheduler, colon, _ = spec.partition(":")
    return bool(colon) and scheduler in TITLES


def parse_spec(spec: str, place: Callable[[str, str], str]) -> Job | None:
    """The job that ``slurm:48211``, ``slurm:48200_7@cluster`` or ``pbs:12.server`` names; None if it names none.

    `place` finds the cluster of a job, given scheduler and id, where none was written. The lease is for any start.
    """
    scheduler, _, rest = spec.partition(":")
    id, _, cluster = rest.partition("@")
    if scheduler == "pbs" and not cluster:
        id, _, cluster = id.partition(".")
    if not Job(scheduler, cluster, id).is_sound:
        return None
    if not cluster and scheduler != "kubernetes":
        cluster = place(scheduler, id)
    job = Job(scheduler, cluster, id)
    can_be_found = bool(cluster) or scheduler == "kubernetes"  # nobody could ever say of another that it has ended
    return job if job.is_sound and can_be_found else None
