"""On whose behalf a lease is held: a process, a command, a batch job, or a name that somebody gave."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sccache_dtool.credentials import hide
from sccache_dtool.disk import names as names
from sccache_dtool.disk.names import digest_of
from sccache_dtool.errors import UsageError
from sccache_dtool.liveness.ancestors import DAEMONS, ancestors, find_owner, may_be_in_job
from sccache_dtool.liveness.process import Proc, Process
from sccache_dtool.log import Log
from sccache_dtool.tuples import NamedTuple

if TYPE_CHECKING:
    from sccache_dtool.liveness import Verdict
    from sccache_dtool.liveness.job import EnclosingJob, Job

_log = Log(__name__)

#: Characters of a command line that are kept to be shown.
_COMMAND_SHOWN = 60

#: So many processes between a command and its owner are noted, those nearest to the owner: a record is short.
MOST_BETWEEN = 8


class Kind(NamedTuple):
    """What sort of owner a holder stands for; `letter` begins its id."""

    letter: str
    title: str


PROGRAM = Kind("p", "program")  # a process that uses the package itself, and beats
COMMAND = Kind("r", "command")  # the command under `sc-dtool run`, which beats for it
CALLER = Kind("s", "process")  # the process on whose behalf `sc-dtool use` was run; it cannot beat
JOB = Kind("j", "job")  # a batch job, all its nodes and steps; its batch system says when it has ended
NAMED = Kind("n", "name")  # a name that somebody gave; only a lifetime can end it
KINDS = {kind.title: kind for kind in (PROGRAM, COMMAND, CALLER, JOB, NAMED)}

#: Owners that show heartbeats.
BEATING = (PROGRAM, COMMAND)


class Owner(NamedTuple):
    """On whose behalf a lease is held, before there is a holder for it.

    A process may have a job: then it is dead, too, when the job has ended. A job may have a process, as the shell
    under `salloc` on a login node, which no end of the job ends: then it is dead when both are.
    """

    kind: Kind
    process: Process | None
    name: str | None
    command: str
    job: Job | None = None
    between: tuple[Process, ...] = ()  # passed over to find `process`; while one of them runs, it may be reading

    @property
    def token(self) -> str:
        """Twelve hexadecimal digits that are the same for the same owner, on whatever path it calls."""
        if self.kind is JOB and self.job is not None:
            identity = self.job.identity
        elif self.process is not None:
            identity = "/".join(str(part) for part in self.process)
        else:
            identity = str(self.name)
        return digest_of(identity)[:12]

    @property
    def prefix(self) -> str:
        """What the ids of all holders of this owner begin with."""
        return f"{self.kind.letter}{self.token}-"

    @property
    def short(self) -> str:
        """In one word: process number, job or name."""
        if self.kind is JOB and self.job is not None:
            return f"{self.job.scheduler}:{self.job.id}"
        return str(self.process.pid if self.process else self.name)

    def __str__(self) -> str:
        if self.kind is JOB and self.job is not None:
            what = str(self.job)
        else:
            what = f"holder {self.name!r}" if self.process is None else f"process {self.process.pid}"
        return f"{what} ({self.command})" if self.command else what


def owner_from(spec: str, proc: Proc) -> Owner:
    """The owner that ``--holder`` means: ``auto``, ``pid:N``, ``slurm:ID`` (``pbs:`` …), or a name.

    ``auto`` is the batch job that this process runs in; outside of jobs, the nearest process above that is not
    a wrapper. Raises UsageError when nobody can be found, when process N cannot be seen, or when the job has ended.
    """
    owner = _named(spec, proc)
    if owner.job is not None and spec != "auto":
        _check_that_it_lasts(owner.job)
    return owner


def verdict_on(job: Job) -> Verdict:
    """What the batch system says of a job now."""
    from sccache_dtool.clock import Clock
    from sccache_dtool.liveness.batch import query
    from sccache_dtool.liveness.lifetime import Memory

    clock = Clock()
    job_states = query.JobStates(clock, Memory(None, clock), query.run_command)
    return job_states.judge(job._replace(seen=clock.wall()))


def _check_that_it_lasts(job: Job) -> None:
    """Raise UsageError for a job that has ended: its lease would end at once. Warn if the job is not known."""
    from sccache_dtool.liveness import State

    verdict = verdict_on(job)
    if verdict.state is State.DEAD:
        raise UsageError(
            f"no lease can be held for a job that has ended ({verdict.evidence})",
            hint="check the number; without --holder, the calling process holds the lease",
        )
    if verdict.state is State.UNKNOWN:
        _log.warning(f"if the holder dies, the lease may never end; give it a lifetime (--ttl): {verdict.evidence}")


def _named(spec: str, proc: Proc) -> Owner:
    """As `owner_from`, also for a job that has ended: what it holds may be given back."""
    if spec == "auto":
        return _auto(proc)
    if spec.startswith("pid:"):
        number = spec.removeprefix("pid:")
        if not (number.isascii() and number.isdigit()):
            raise UsageError(f"{spec!r} is not a process number", hint="give --holder pid:N, such as pid:$$")
        return process_owner(CALLER, proc, int(number))
    if ":" in spec and (job := _job_from(spec)) is not None:
        return Owner(JOB, None, None, "", job)
    if not spec or len(spec) > 100 or not spec.isprintable():
        raise UsageError("a holder's name has 1 to 100 printable characters")
    return Owner(NAMED, None, spec, "")


def _auto(proc: Proc) -> Owner:
    found = job_here(proc)
    if found is not None and found.within:
        return Owner(JOB, None, None, one_line([found.name]), found.job)
    caller = find_owner(proc)
    if caller is None:
        raise UsageError(
            "cannot find a process to hold the lease",
            hint="name one with --holder pid:N, or give a name and a lifetime: --holder NAME --ttl 12h",
        )
    owner = process_owner(CALLER, proc, caller.pid)
    seen = (proc.identify(one) for one in caller.between[-MOST_BETWEEN:])
    owner = owner._replace(between=tuple(filter(None, seen)))
    if found is not None:
        return owner._replace(kind=JOB, job=found.job)
    stat = proc.stat(caller.pid)
    if stat is not None and stat.command in DAEMONS:
        who = f"{stat.command} (process {caller.pid})"
        _log.warning(f"the lease will be held by {who} until it is released; see --holder, --ttl")
    return owner


def job_here(proc: Proc) -> EnclosingJob | None:
    """The batch job that this process runs in; None outside of jobs, where no more is loaded for this."""
    if not may_be_in_job(proc):
        return None
    from sccache_dtool.liveness.job import find_job

    return find_job(proc)


def _job_from(spec: str) -> Job | None:
    """The job that ``slurm:48211`` names; None if it is another name. Raises UsageError for an invalid id."""
    from sccache_dtool.liveness.job import is_spec, parse_spec

    if not is_spec(spec):
        return None
    from sccache_dtool.liveness.batch import query

    def place(scheduler: str, id: str) -> str:
        try:
            return query.place(scheduler, id)
        except query.Unanswered as error:
            reason = str(error)
        raise UsageError(
            f"cannot determine the cluster of {spec}: {reason}", hint=f"name the cluster: --holder {spec}@CLUSTER"
        )

    job = parse_spec(spec, place)
    if job is None:
        raise UsageError(
            f"{spec!r} is not a job that can be found",
            hint="give slurm:48211, slurm:48200_7 (a task of an array), pbs:12.SERVER, htcondor:12.0@SCHEDD, "
            "lsf:12@SUBMISSION_HOST or kubernetes:NAMESPACE/POD",
        )
    return job


def process_owner(kind: Kind, proc: Proc, pid: int) -> Owner:
    """The owner that is process `pid`. Raises UsageError when it cannot be seen from here."""
    process = proc.identify(pid)
    if process is None:
        raise UsageError(
            f"process {pid} cannot be seen from here, so it cannot hold a lease",
            hint="if it is hidden or in another container, give a name and a lifetime: --holder NAME --ttl 12h",
        )
    return Owner(kind, process, None, one_line(proc.words(pid)))


def owners_from(spec: str, proc: Proc) -> tuple[Owner, ...]:
    """Whose leases a command is to give back or renew: who ``--holder`` means and, with ``auto``, who else it may be.

    A shell may become its script's last command (`bash -c '…; sc-dtool unuse X'`): then this is the very process
    that took the lease. In a job it may have been taken for the calling process. The last one is who would take a
    lease now.
    """
    owner = _named(spec, proc)
    if spec != "auto":
        return (owner,)
    caller = find_owner(proc) if owner.job is not None else None
    pids = [os.getpid()] if caller is None else [caller.pid, os.getpid()]
    return (*_owners(pids, proc), owner)


def owners_above(proc: Proc) -> Iterator[Owner]:
    """Every process above this one as an owner, the nearest first."""
    return _owners((one.pid for one in ancestors(proc)), proc)


def _owners(pids: Iterable[int], proc: Proc) -> Iterator[Owner]:
    """The processes that can be seen from here, as owners."""
    return (process_owner(CALLER, proc, pid) for pid in pids if proc.identify(pid) is not None)


def one_line(words: Sequence[str]) -> str:
    """A command line to be shown: white space is one space, URLs have no credentials, and what is long is cut."""
    text = hide(" ".join(" ".join(words).split()))
    return text if len(text) <= _COMMAND_SHOWN else f"{text[: _COMMAND_SHOWN - 1]}…"


def program_owner(proc: Proc) -> Owner:
    """The owner that is this process itself.

    Where processes cannot be told apart it goes by a name of its own, and lives by its heartbeats alone.
    """
    try:
        return in_its_job(process_owner(PROGRAM, proc, os.getpid()), proc)
    except UsageError:
        return Owner(PROGRAM, None, f"process {os.getpid()} on {host_name()}, {names.unique()}", "")


def command_owner(proc: Proc, pid: int, command: Sequence[str]) -> Owner:
    """The owner that is a command which this process runs and beats for."""
    return in_its_job(process_owner(COMMAND, proc, pid)._replace(command=one_line(command)), proc)


def in_its_job(owner: Owner, proc: Proc) -> Owner:
    """`owner` with the job that it runs in, whose end is its own; without one where it would not be."""
    found = job_here(proc)
    return owner._replace(job=found.job) if found is not None and found.within else owner


def user_name(uid: int | None = None) -> str:
    """The name of a user, by default of this process's, or the number if this host has no name for it."""
    import pwd

    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def host_name() -> str:
    """The first part of this host's name, for people; never used to tell hosts apart."""
    return os.uname().nodename.partition(".")[0] or "?"
