"""On whose behalf a command line runs: the process that will use the data after `sc-dtool` itself has ended."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sccache_dtool.liveness.process import Proc

#: Programs that only start another and wait for it; who called them is the one who uses the data. `starter` is what
#: Apptainer runs a container with.
WRAPPERS = frozenset(
    """
    chrt doas env find flock ionice ltrace mpiexec mpirun nice nohup numactl parallel perf prlimit runuser
    script setpriv setsid starter starter-suid stdbuf strace su sudo systemd-inhibit taskset time timeout
    unbuffer valgrind watch xargs
    conda hatch micromamba nox pdm pipenv pipx pixi poetry tox uv uvx
    """.split()
)

#: Shells, by the name of their program.
SHELLS = frozenset("ash bash busybox dash ksh mksh sh zsh".split())

#: What lets a shell's command line do more than run one command (or pipeline) and end.
_GOES_ON = re.compile(r"[;&\n`(){}]")

_COMMAND_OPTION = re.compile(r"-[A-Za-z]*c")  # -c, -lc, -ec …

#: Programs that outlive every job: a lease of theirs would end with the next boot.
DAEMONS = frozenset("systemd init cron crond CRON atd sshd sshd-session supervisord conmon containerd-shim".split())

#: What says that this may be a batch job: one of these variables, or (`sudo` takes variables away) one of these
#: programs above us. Whether it is true is for `jobs.find_job` to say.
_OF_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "_CONDOR_JOB_AD", "LSB_JOBID", "KUBERNETES_SERVICE_HOST")
_KEEPERS = frozenset("slurmstepd pbs_mom condor_starter res".split())


class Ancestor(NamedTuple):
    """A process above this one."""

    pid: int
    command: str


def ancestors(proc: Proc) -> Iterator[Ancestor]:
    """The processes above this one, the nearest first, as far as they can be seen."""
    pid, seen = os.getppid(), set[int]()
    while pid > 0 and pid not in seen:
        seen.add(pid)
        stat = proc.stat(pid)
        if stat is None:
            return
        yield Ancestor(pid, stat.command)
        pid = stat.ppid


def may_be_in_job(proc: Proc, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether it is worth looking which batch job this is; False says that it is none."""
    return any(name in environ for name in _OF_JOBS) or any(one.command in _KEEPERS for one in ancestors(proc))


def find_owner(proc: Proc, start: int | None = None) -> int | None:
    """The nearest ancestor (of this process, or from `start` on) that is not a wrapper; None if there is none.

    A shell that runs `$(…)` or `(…)` forks without a new program: such copies, known by their parent's very
    command line, are passed over too, because they end with the brackets. The longer-lived is the safer owner.
    """
    pid = os.getppid() if start is None else start
    while pid > 0:
        stat = proc.stat(pid)
        if stat is None:
            return None
        if not (stat.command in WRAPPERS or _only_calls(proc.words(pid)) or _is_forked_copy(proc, pid, stat.ppid)):
            return pid
        pid = stat.ppid
    return None


def _only_calls(words: Sequence[str]) -> bool:
    """Whether this is a shell that somebody runs for one command: `sh -c 'sc-dtool use X'`, as system(3) does it.

    It ends with that command, so it cannot be the one who reads. With `;`, `&&` or `$(…)` it goes on.
    """
    if not words or os.path.basename(words[0]) not in SHELLS:
        return False
    line = next((line for option, line in itertools.pairwise(words) if _COMMAND_OPTION.fullmatch(option)), None)
    return line is not None and _GOES_ON.search(line) is None


def _is_forked_copy(proc: Proc, pid: int, parent: int) -> bool:
    words = proc.words(pid)
    return parent > 0 and any(words) and words == proc.words(parent)
