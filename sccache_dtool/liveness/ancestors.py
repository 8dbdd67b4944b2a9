"""On whose behalf a command line runs: the process that will use the data after `sc-dtool` itself has ended."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from sccache_dtool.liveness.process import Proc
from sccache_dtool.tuples import NamedTuple

#: Programs that only start another and wait for it; who called them is the one who uses the data. `starter` is what
#: Apptainer runs a container with.
WRAPPERS = frozenset(
    """
    bwrap chroot chrt dbus-run-session doas env fakeroot find flock ionice ltrace mpiexec mpirun newgrp nice nohup
    nsenter numactl parallel perf pkexec prlimit runuser script setpriv setsid sg starter starter-suid stdbuf strace su
    sudo systemd-inhibit taskset time timeout unbuffer unshare valgrind watch xargs xvfb-run
    conda hatch mamba micromamba nox pdm pipenv pipx pixi poetry tox uv uvx
    """.split()
)

#: Wrappers that call through a script which they write for that: their child is theirs, too.
_WRITE_SCRIPTS = frozenset("conda mamba micromamba".split())

#: Shells, by the name of their program.
SHELLS = frozenset("ash bash busybox dash ksh mksh sh zsh".split())

#: What lets a shell's command line do more than run one command (or pipeline) and end.
_GOES_ON = r"[;&\n`(){}]"

#: Where those characters mean nothing of the kind: in quotes, and in redirections such as ``2>&1``.
_HARMLESS = r"""'[^']*'|"[^"`$\\]*"|[<>]&[0-9-]|&>"""

_COMMAND_OPTION = r"-[A-Za-z]*c"  # -c, -lc, -ec …

#: Programs that may last until the next boot or only for a moment, so that they cannot own leases.
DAEMONS = frozenset("systemd init cron crond CRON atd sshd sshd-session supervisord conmon containerd-shim".split()) | {
    "screen",
    "tmux: server",
}

#: What says that this may be a batch job: one of these variables, or (`sudo` takes variables away) one of these
#: programs above this one. Whether it is true is for `jobs.find_job` to say.
_OF_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "_CONDOR_JOB_AD", "LSB_JOBID", "KUBERNETES_SERVICE_HOST")
_KEEPERS = frozenset("slurmstepd pbs_mom condor_starter res".split())


class Ancestor(NamedTuple):
    """A process above this one."""

    pid: int
    command: str
    ppid: int


def ancestors(proc: Proc, start: int | None = None) -> Iterator[Ancestor]:
    """The processes above this one (or from `start` on), the nearest first, as far as they can be seen."""
    pid, seen = os.getppid() if start is None else start, set[int]()
    while pid > 0 and pid not in seen:
        seen.add(pid)
        stat = proc.stat(pid)
        if stat is None:
            return
        yield Ancestor(pid, stat.command, stat.ppid)
        pid = stat.ppid


def may_be_in_job(proc: Proc, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether it is worth looking which batch job this is; False says that it is none."""
    return any(name in environ for name in _OF_JOBS) or any(one.command in _KEEPERS for one in ancestors(proc))


class Caller(NamedTuple):
    """The process on whose behalf a command runs."""

    pid: int
    between: tuple[int, ...]  # those that were passed over on the way up to it, the nearest first


def find_owner(proc: Proc, start: int | None = None) -> Caller | None:
    """The nearest ancestor (of this process, or from `start` on) that is not a wrapper; None if there is none.

    A shell that runs `$(…)` or `(…)` forks without a new program: such copies, known by their parent's very
    command line, are passed over too, because they end with the brackets. The longer-lived is the safer owner.
    """
    between: list[int] = []
    for one in ancestors(proc, start):
        words = proc.words(one.pid)
        if not (
            one.command in WRAPPERS
            or _only_calls(words)
            or (one.ppid > 0 and any(words) and words == proc.words(one.ppid))
            or _is_wrappers_script(proc, words, one.ppid)
        ):
            return Caller(one.pid, tuple(between))
        between.append(one.pid)
    return None


def _only_calls(words: Sequence[str]) -> bool:
    """Whether this is a shell that somebody runs for one command: `sh -c 'sc-dtool use X'`, as system(3) does it.

    It ends with that command, so it cannot be the one who reads. With `;`, `&&` or `$(…)` it goes on.
    """
    if not words or os.path.basename(words[0]) not in SHELLS:
        return False
    line = next((line for option, line in itertools.pairwise(words) if re.fullmatch(_COMMAND_OPTION, option)), None)
    return line is not None and re.search(_GOES_ON, re.sub(_HARMLESS, "", line)) is None


def _is_wrappers_script(proc: Proc, words: Sequence[str], parent: int) -> bool:
    above = proc.stat(parent)
    return above is not None and above.command in _WRITE_SCRIPTS and os.path.basename(words[0]) in SHELLS
