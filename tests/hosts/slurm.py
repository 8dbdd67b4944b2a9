"""A real Slurm cluster for tests: see the head of `slurmlab.sh`, which does the work."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cli.tool import Done, shell
from hosts import leftovers
from waiting import wait_until

_SCRIPT = Path(__file__).with_name("slurmlab.sh")

#: Programs that the cluster needs, and those that its accounting needs.
PROGRAMS = "slurmctld slurmd squeue sbatch munged ip unshare setpriv".split()
ACCOUNTING = "slurmdbd sacct mariadbd mariadb-install-db mariadb-admin".split()

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def lacking(programs: list[str]) -> str | None:
    """Why there can be no cluster here; None if there can."""
    missing = [program for program in programs if shutil.which(program, path=_PATH) is None]
    if missing:
        return f"no {', '.join(missing)} here (on Debian: see .ci/run)"
    return f"needs root, and runs as user {os.geteuid()}" if os.geteuid() != 0 else None


class Cluster:
    """A cluster that runs; `with_accounting` says whether it keeps books of jobs."""

    def __init__(self, work: Path, nodes: int = 2) -> None:
        self.work = work
        self.with_accounting = lacking(ACCOUNTING) is None
        self._count = 0
        try:
            self._lab("up", NODES=str(nodes), ACCT="1" if self.with_accounting else "0")
        except BaseException:
            self.down()
            raise

    def _lab(self, *words: str, **more: str) -> None:
        output = self.work.with_suffix(".log")
        with output.open("ab") as file:  # not a pipe: what the script starts would keep it open
            done = subprocess.run(
                ["bash", str(_SCRIPT), *words],
                env={**os.environ, **more, "WORK": str(self.work), leftovers.VARIABLE: leftovers.this_run()},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=600,
            )
        assert done.returncode == 0, output.read_text()

    def environment(self, accounting: bool = True, **more: str) -> Mapping[str, str]:
        """What makes Slurm's commands ask this cluster."""
        conf = self.work / "etc" / ("slurm.conf" if accounting else "without-accounting/slurm.conf")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return {**clean, "SLURM_CONF": str(conf), "PATH": _PATH, **more}

    def call(self, *words: str) -> Done:
        """One of Slurm's commands."""
        return shell(list(words), env=self.environment())

    def submit(self, script: str, *options: str, user: int | None = None, **environment: str) -> str:
        """Submit a script; the number of the job."""
        self._count += 1
        output = self.work / "log" / f"job-{self._count}.out"
        become = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        done = shell(
            [*become, "sbatch", "--parsable", "-o", str(output) if user is None else "/dev/null", *options],
            input=f"#!/bin/bash\n{script}\n",
            env=self.environment(**environment),
            cwd="/",
        )
        assert done.code == 0, done
        return done.out.strip()

    def states(self, job: str) -> list[str]:
        """The states of a job, or of the tasks of an array."""
        return self.call("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").out.split()

    def nodes_of(self, job: str) -> str:
        """Where a job runs."""
        return self.call("squeue", "-h", "-t", "all", "-j", job, "-o", "%N").out.strip()

    def wait_for(self, job: str, *states: str) -> None:
        """Wait until a job, or every task of an array, is in one of these states."""
        wait_until(lambda: (found := self.states(job)) and all(state in states for state in found), f"{job}: {states}")

    def node_is(self, node: str, *parts: str) -> None:
        """Wait until a node's state has one of these words in it."""
        wait_until(
            lambda: any(part in self.call("sinfo", "-h", "-N", "-n", node, "-o", "%T").out for part in parts), node
        )

    def kill_node(self, node: str) -> None:
        """A power failure."""
        self._lab("kill-node", node)

    def cut_node(self, node: str) -> None:
        """Its slurmd hangs; the jobs on it go on."""
        self._lab("cut-node", node)

    def mend_node(self, node: str) -> None:
        """Its slurmd goes on."""
        self._lab("mend-node", node)

    def start_node(self, node: str) -> None:
        """Boot a node again."""
        self._lab("start-node", node)

    def stop_controller(self) -> None:
        """End the controller; jobs go on."""
        self._lab("stop-ctl")

    def start_controller(self) -> None:
        """Start it again, with what it knew."""
        self._lab("start-ctl")

    def forget(self) -> None:
        """Let the controller forget all jobs, as it does some minutes after their end."""
        self._lab("forget")

    def epilogs(self) -> list[dict[str, str]]:
        """What the epilogs that have run so far were for."""
        log = self.work / "log" / "epilogs"
        lines = log.read_text().splitlines() if log.exists() else []
        return [dict(pair.split("=", 1) for pair in line.split()) for line in lines]

    def tend(self, *caches: Path) -> None:
        """Let the epilog give back what is held in these caches."""
        (self.work / "caches").write_text("".join(f"{cache}\n" for cache in caches))

    def down(self) -> None:
        """End everything that was started, and remove it."""
        self._lab("down")
