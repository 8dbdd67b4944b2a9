"""On whose behalf a command line runs: the process that will use the data after `sc-dtool` itself has ended."""

from __future__ import annotations

import os

from sccache_dtool.liveness.process import Proc

#: Programs that only start another and wait for it; who called them is the one who uses the data.
WRAPPERS = frozenset(
    """
    chrt doas env flock ionice ltrace nice nohup numactl perf prlimit runuser script setpriv setsid stdbuf strace su
    sudo systemd-inhibit taskset time timeout unbuffer valgrind watch xargs
    conda hatch micromamba nox pdm pipenv pipx pixi poetry tox uv uvx
    """.split()
)

#: Programs that outlive every job: a lease of theirs would end with the next boot.
DAEMONS = frozenset("systemd init cron crond CRON atd sshd supervisord".split())


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
        if stat.command not in WRAPPERS and not _is_forked_copy(proc, pid, stat.ppid):
            return pid
        pid = stat.ppid
    return None


def _is_forked_copy(proc: Proc, pid: int, parent: int) -> bool:
    words = proc.words(pid)
    return parent > 0 and any(words) and words == proc.words(parent)
