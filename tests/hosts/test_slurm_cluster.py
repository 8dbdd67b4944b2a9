"""Leases of jobs on a real Slurm cluster of two nodes: the right verdict at each end that a job can come to."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import httpserver
from cli.tool import PYTHON, SC_DTOOL, SCRIPTS, Disk, Done, call, config, finish, shell, start
from hosts import leftovers, slurm
from hosts.slurm import Cluster
from sccache_dtool.cache import Cache
from sccache_dtool.errors import Exit
from sccache_dtool.liveness.caller import JOB, Owner
from sccache_dtool.liveness.job import Job
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def cluster(note: Callable[[str], None]) -> Iterator[Cluster]:
    """One cluster for all these tests; with accounting, where there is a database."""
    reason = slurm.lacking(slurm.PROGRAMS)
    if reason:
        note(f"Slurm cluster: none, its tests are skipped: {reason}")
        pytest.skip(reason)
    leftovers.remove()
    directory = leftovers.make_directory("slurm")  # jobs of other users look in here: not pytest's own
    directory.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        running = Cluster(directory / "lab")
        stack.callback(running.down)
        yield running


def hear(fifo: Path) -> str:
    """The line that somebody writes into a FIFO; none after a while is an error.

    The whole of it: who writes its end after we have closed the FIFO is killed by that.
    """
    fd = os.open(fifo, os.O_RDWR)  # which waits for nobody
    heard = b""
    try:
        while not heard.endswith(b"\n"):
            ready, _, _ = select.select([fd], [], [], PATIENCE)
            assert ready, f"nobody wrote a line into {fifo}"
            heard += os.read(fd, 1000)
        return heard.decode().strip()
    finally:
        os.close(fd)


class Shared:
    """A cache on a directory that all nodes share, and what jobs do with it."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.root = directory / "cache"
        self.source = directory / "ref.fa"
        self.source.write_text("ACGT\n")
        self.disk = Disk(self.root)
        self.directory = directory
        self._state = str(directory / "state")
        assert self.sc("init").code == 0

    def sc(self, *words: str | Path, accounting: bool = True) -> Done:
        """`sc-dtool` on the login node: this one."""
        return call("-C", self.root, *words, env=self.cluster.environment(accounting, XDG_STATE_HOME=self._state))

    @property
    def environment(self) -> Mapping[str, str]:
        """That of commands on other caches."""
        return self.cluster.environment(XDG_STATE_HOME=self._state)

    def forget_pauses(self) -> None:
        """Ask Slurm again at once, although it did not answer before."""
        shell(["rm", "-rf", self._state])

    def job(self, *options: str, before: str = "", then: str = "", use: bool = True, user: int | None = None) -> str:
        """A job that uses the item and then waits to be told its exit code; returns once it holds the lease."""
        fifo = self.directory / f"fifo-{len(list(self.directory.glob('fifo-*')))}"
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        first = f"{SC_DTOOL} -C {self.root} use {self.source} >/dev/null || exit 9" if use else ""
        script = f"{before}\n{first}\n{then}\necho held >{fifo}\nread code <{fifo}.go; exit $code"
        os.mkfifo(f"{fifo}.go")
        os.chmod(f"{fifo}.go", 0o666)
        number = self.cluster.submit(script, *options, user=user)
        self.fifos[number] = f"{fifo}.go"
        assert hear(fifo) == "held"
        return number

    fifos: dict[str, str] = {}  # noqa: RUF012

    def end(self, job: str, code: int = 0) -> None:
        """Let a job end by itself."""
        with open(self.fifos[job], "w") as file:
            print(code, file=file)

    def why(self, **how: Any) -> list[dict[str, Any]]:
        """Who holds the item, and what can be said of them."""
        return self.sc("-f", "json", "why", "ref.fa", **how).rows("lease")

    def verdict(self, **how: Any) -> tuple[str, str]:
        """What can be said of the only lease."""
        (lease,) = self.why(**how)
        return lease["verdict"], lease["evidence"]

    def is_kept(self) -> bool:
        """Whether a cleaner that removes all it may leaves the item; the cleaner reaps first."""
        self.sc("clean", "--all", "-y")
        return bool(self.disk.copies())


@pytest.fixture
def shared(cluster: Cluster, tmp_path: Path) -> Shared:
    """A new cache."""
    directory = cluster.work / tmp_path.name
    directory.mkdir()
    directory.chmod(0o755)
    return Shared(cluster, directory)


def test_a_job_keeps_its_data_until_it_ends(shared: Shared, cluster: Cluster) -> None:
    """Data would be deleted under a job on a compute node, or kept for ever after it has ended."""
    job = shared.job()
    assert shared.verdict() == ("alive", f"Slurm: job {job} is RUNNING")
    assert shared.is_kept()
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")
    state, evidence = shared.verdict()
    assert state == "dead"
    assert evidence.startswith(f"Slurm: job {job} COMPLETED at 20")
    assert not shared.is_kept()


def test_a_job_that_failed_is_dead(shared: Shared, cluster: Cluster) -> None:
    """What a job held that was ended by an error would never be given back."""
    job = shared.job()
    shared.end(job, 3)
    cluster.wait_for(job, "FAILED")
    assert shared.verdict()[0] == "dead"
    assert "FAILED" in shared.sc("reap").out
    assert shared.disk.leases() == []


def test_a_cancelled_job_is_kept_until_its_processes_have_ended(shared: Shared, cluster: Cluster) -> None:
    """A job that tidies up after `scancel`, and still reads, would lose its data."""
    job = shared.job(before="trap '' TERM")
    cluster.call("scancel", job)
    cluster.wait_for(job, "COMPLETING", "CANCELLED")
    if cluster.states(job) == ["COMPLETING"]:
        assert shared.verdict()[0] == "alive"
    cluster.wait_for(job, "CANCELLED")
    state, evidence = shared.verdict()
    assert (state, "CANCELLED" in evidence) == ("dead", True)


def test_a_requeued_job_loses_what_its_first_start_held(shared: Shared, cluster: Cluster) -> None:
    """Each start of a job that is preempted again and again would leave a lease behind."""
    job = shared.job()
    assert shared.sc("use", "--holder", f"slurm:{job}", shared.source).code == 0
    cluster.call("scontrol", "requeue", job)
    cluster.wait_for(job, "PENDING", "RUNNING")
    found = {lease["verdict"]: lease["evidence"] for lease in shared.why()}
    assert sorted(found) == ["alive", "dead"]
    assert "was started again" in found["dead"]
    shared.sc("reap")
    assert len(shared.disk.leases()) == 1  # that which was taken for the job, whichever start of it
    assert shared.is_kept()
    cluster.call("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    assert not shared.is_kept()


def test_data_is_kept_for_a_job_that_waits(shared: Shared, cluster: Cluster) -> None:
    """What a user has fetched for a job would be deleted before the job begins."""
    job = cluster.submit("true", "--hold")
    assert shared.sc("use", "--holder", f"slurm:{job}", shared.source).code == 0
    assert shared.verdict() == ("alive", f"Slurm: job {job} is PENDING")
    assert shared.is_kept()
    assert shared.sc("unuse", "--holder", f"slurm:{job}", shared.source).code == 0
    assert shared.disk.leases() == []
    assert shared.sc("use", "--holder", f"slurm:{job}@lab", shared.source).code == 0
    cluster.call("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    assert not shared.is_kept()


def test_tasks_of_an_array_are_told_apart(shared: Shared, cluster: Cluster) -> None:
    """One task's end would give back what all others hold; the last has the number of the whole array."""
    fifo = shared.directory / "array"
    os.mkfifo(fifo)
    wait = f"[ $SLURM_ARRAY_TASK_ID = 1 ] || exec sleep 600; read x <{fifo}"
    array = cluster.submit(f"{SC_DTOOL} -C {shared.root} use {shared.source} >/dev/null\n{wait}", "--array=1-2")
    wait_until(lambda: len(shared.disk.leases()) == 2, "both tasks hold a lease")
    with fifo.open("w") as file:
        print("go", file=file)
    wait_until(lambda: "COMPLETED" in cluster.states(array), "task 1 ends")
    found = {lease["evidence"].split()[2]: lease["verdict"] for lease in shared.why()}
    assert found == {f"{array}_1": "dead", f"{array}_2": "alive"}
    assert shared.is_kept()
    cluster.call("scancel", array)
    wait_until(lambda: "CANCELLED" in cluster.states(array), "task 2 is cancelled")
    assert not shared.is_kept()


def test_all_parts_of_a_heterogeneous_job_are_the_job(shared: Shared, cluster: Cluster) -> None:
    """What a step takes on the second part would be a shell's: not found by `unuse`, and kept after the job's end."""
    on_second = f"srun --het-group=1 sh -c '{SC_DTOOL} -C {shared.root} use {shared.source} >/dev/null; true'"
    job = shared.job("-N1", ":", "-N1", use=False, then=f"{on_second}\n{on_second}")
    assert [lease["verdict"] for lease in shared.why()] == ["alive"] * 2
    assert {lease["evidence"] for lease in shared.why()} == {f"Slurm: job {job} is RUNNING"}
    back = shared.job(
        "-N1", ":", "-N1", use=False, then=f"{on_second}\n{SC_DTOOL} -C {shared.root} unuse {shared.source}"
    )
    assert len(shared.disk.leases()) == 2
    for one in (back, job):
        shared.end(one)
        cluster.wait_for(one, "COMPLETED")
    assert not shared.is_kept()


@pytest.mark.parametrize(
    "how",
    [
        "$SC unuse $SRC",
        "timeout 60 $SC unuse $SRC",
        "srun -n1 $SC unuse $SRC",
        "setsid -w $SC unuse $SRC",
        "env -i $SC unuse $SRC",
        "bash -c '$SC unuse $SRC'",
        "x=$($SC unuse $SRC; echo)",
        "(cd /; exec $SC unuse $SRC)",
    ],
)
def test_a_lease_is_found_again_from_anywhere_in_the_job(shared: Shared, cluster: Cluster, how: str) -> None:
    """What a job takes in its script, and gives back in a step or below a wrapper, would stay held."""
    sc = f"{SC_DTOOL} -C {shared.root}"
    job = shared.job(before=f'SC="{sc}" SRC={shared.source}; export SC SRC', then=how)
    assert shared.disk.leases() == []
    shared.end(job)


def test_a_screen_that_outlives_its_job_is_no_part_of_it(shared: Shared, cluster: Cluster) -> None:
    """A shell that was left running in `screen` would take leases for a job that has ended, and lose its data."""
    fifo, holders = shared.directory / "orphan", shared.directory / "holders"
    os.mkfifo(fifo)
    use = f"{SC_DTOOL} -C {shared.root} -f json use {shared.source}"
    script = f"read x <{fifo}; {use} >{holders}.new; mv {holders}.new {holders}; sleep 600"
    job = cluster.submit(f"setsid bash -c {shlex.quote(script)} </dev/null >/dev/null 2>&1 & disown; sleep 0.1")
    cluster.wait_for(job, "COMPLETED")
    with fifo.open("w") as file:
        print("go", file=file)
    wait_until(holders.exists, "the orphan uses the item")
    assert "process" in holders.read_text()
    assert f"job {job}" not in holders.read_text()
    assert shared.is_kept()


def test_a_node_that_fails_keeps_its_leases_until_it_answers(shared: Shared, cluster: Cluster) -> None:
    """Slurm starts a job again when its node hangs: the first start, which still runs there, would lose its data."""
    job = shared.job("-w", "n2")
    cluster.cut_node("n2")
    cluster.node_is("n2", "down*")
    state, evidence = shared.verdict()
    assert state == "unknown"
    assert "node n2 does not respond" in evidence
    assert shared.is_kept()
    cluster.kill_node("n2")
    assert shared.is_kept()
    cluster.start_node("n2")
    cluster.node_is("n2", "idle", "mixed", "allocated", "completing")
    state, evidence = shared.verdict()
    assert (state, "was started again" in evidence) == ("dead", True)
    assert not shared.is_kept()
    cluster.call("scancel", job)


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_a_job_on_several_nodes_is_kept_until_all_of_them_answer(shared: Shared, cluster: Cluster, how: str) -> None:
    """What reads on the node that is silent would lose its data, because the batch script's has reported an end."""
    job = shared.job("-N", "2", "--no-requeue", "--no-kill")
    getattr(cluster, f"{how}_node")("n2")
    try:
        cluster.node_is("n2", "down*")
        assert shared.verdict() == ("alive", f"Slurm: job {job} is RUNNING")
        shared.end(job)
        cluster.wait_for(job, "COMPLETED", "NODE_FAIL", "FAILED")
        state, evidence = shared.verdict()
        assert (state, "node n2 does not respond" in evidence) == ("unknown", True)
        assert shared.is_kept()
    finally:
        (cluster.start_node if how == "kill" else cluster.mend_node)("n2")
    cluster.node_is("n2", "idle")
    assert shared.verdict()[0] == "dead"
    assert not shared.is_kept()


def test_another_job_of_the_same_number_is_not_ours(shared: Shared, cluster: Cluster) -> None:
    """Where two clusters have one name, or numbers begin again, a running job would lose its data by another's end."""
    now = int(time.time())
    job = shared.job(before=f"export SLURM_JOB_START_TIME={now - 86_400}")
    assert shared.verdict() == ("alive", f"Slurm: job {job} is RUNNING")
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")
    state, evidence = shared.verdict()
    assert (state, "its number was reused" in evidence) == ("unknown", True)
    assert shared.is_kept()


def test_a_job_whose_start_was_noted_ends_with_it(shared: Shared, cluster: Cluster) -> None:
    """On newer releases, which tell a job when it was started, nothing that it held would ever be given back."""
    start = "$(date +%s -d $(squeue -h -j $SLURM_JOB_ID -O StartTime:))"
    job = shared.job(before=f"export SLURM_JOB_START_TIME={start}")
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")
    assert shared.verdict()[0] == "dead"
    assert not shared.is_kept()


def test_no_answer_is_no_proof(shared: Shared, cluster: Cluster) -> None:
    """While the controller is down every job would seem to have ended; and each cleaner would wait for it again."""
    job = shared.job()
    cluster.stop_controller()
    try:
        state, evidence = shared.verdict()
        assert state == "unknown"
        assert "is unknown" in evidence
        assert shared.is_kept()
        assert "the next query is in" in shared.verdict()[1]  # and so was not asked now
    finally:
        cluster.start_controller()
    shared.forget_pauses()
    assert shared.verdict()[0] == "alive"
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")
    assert not shared.is_kept()


def test_a_program_in_a_job_ends_with_it(shared: Shared, cluster: Cluster) -> None:
    """What a Python program held that was killed with its job would be kept for its whole lifetime of twelve hours."""
    config(shared.root, '[lease]\nheartbeat_ttl = "6s"\n')
    fifo = shared.directory / "program"
    os.mkfifo(fifo)
    use = f"sccache_dtool.Cache({str(shared.root)!r}).use({str(shared.source)!r})"
    program = f"import sccache_dtool, signal; {use}; print('held', flush=True); signal.pause()"
    job = cluster.submit(f"exec {PYTHON} -c {shlex.quote(program)} >{fifo}", "--no-requeue")
    hear(fifo)
    assert shared.verdict() == ("alive", f"Slurm: job {job} is RUNNING")
    cluster.call("scancel", "--signal=KILL", "--full", job)
    cluster.wait_for(job, "CANCELLED", "FAILED")
    wait_until(lambda: shared.verdict()[0] == "dead", "no heartbeat comes any more")
    assert not shared.is_kept()


# -- caches on the nodes' own disks ------------------------------------------------------------------------------------


class Nodes:
    """Caches on the disks of the nodes, whose upstream is the one that the nodes share."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        for node in ("n1", "n2"):
            (shared.directory / node).mkdir()
        upstream = f"SC_DTOOL_UPSTREAM={shared.root}"
        self.sc = f"env {upstream} {SC_DTOOL} -C {shared.directory}/$SLURMD_NODENAME/cache"

    def run(self, script: str, *options: str) -> Done:
        """A job whose tasks, four on each node, do what the script says; returns at its end."""
        command = ["srun", "-N2", "-n8", "--ntasks-per-node=4", *options, "bash", "-c", script]
        return shell(command, env=self.shared.cluster.environment(), cwd="/")

    def disk(self, node: str) -> Disk:
        """What lies on the disk of a node."""
        return Disk(self.shared.directory / node / "cache")


def test_eight_tasks_on_two_nodes_make_one_download_and_two_copies(shared: Shared) -> None:
    """Each task, or each node, would download the file, or read it from the shared file system."""
    nodes = Nodes(shared)
    with httpserver.serve() as server:
        url = server.page("/ref.fa", b"ACGT" * 100_000)
        done = nodes.run(f"path=$({nodes.sc} use {url}) && cksum <$path && echo $path")
        assert done.code == 0, done
        assert server.gets["/ref.fa"] == 1
    lines = done.out.split("\n")
    sums, paths = ({line for line in lines if line and line.startswith("/") is is_path} for is_path in (False, True))
    assert len(sums) == 1
    assert {Path(path).relative_to(shared.directory).parts[0] for path in paths} == {"n1", "n2"}
    assert len(paths) == 2
    assert [len(nodes.disk(node).copies()) for node in ("n1", "n2")] == [1, 1]
    assert (len(shared.disk.copies()), shared.disk.leases()) == (1, [])
    assert ended(shared) == ["released", "released"]
    for node in ("n1", "n2"):
        leases = call("-C", nodes.disk(node).root, "-f", "json", "why", "ref.fa", env=shared.environment).rows("lease")
        assert len(leases) == 4
        assert {lease["verdict"] for lease in leases} == {"dead"}


def test_tasks_without_room_read_the_shared_copy_until_their_job_ends(shared: Shared, cluster: Cluster) -> None:
    """A cleaner would delete the file under the tasks that were given the shared path, or keep it for ever."""
    nodes = Nodes(shared)
    assert shared.sc("use", "--holder", f"pid:{os.getpid()}", shared.source).code == 0
    assert shared.sc("unuse", "--holder", f"pid:{os.getpid()}", shared.source).code == 0
    job = shared.job(use=False, then=f"{nodes.sc} use --size 1PB {shared.source} >/dev/null || exit 9")
    assert shared.verdict() == ("alive", f"Slurm: job {job} is RUNNING")
    assert shared.is_kept()
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")
    assert not shared.is_kept()


# -- the epilog --------------------------------------------------------------------------------------------------------


def ended(shared: Shared) -> list[str]:
    return [use["how"] for use in shared.sc("-f", "json", "log").rows("use")]


def test_the_epilog_gives_back(shared: Shared, cluster: Cluster) -> None:
    """What a job held would be kept until somebody reaps; or an epilog that fails would drain its node."""
    cluster.tend(shared.root)
    job = shared.job()
    shared.end(job)
    epilog = wait_until(lambda: [one for one in cluster.epilogs() if one["job"] == job], "the epilog runs")
    assert epilog[0]["code"] == "0"
    assert shared.disk.leases() == []
    assert shared.disk.holders() == []
    assert ended(shared) == ["released"]


def test_the_epilog_works_as_the_jobs_user(shared: Shared, cluster: Cluster) -> None:
    """On a file server that squashes root no job's leases would be given back; on others, root's files be left."""
    cluster.tend(shared.root)
    user = 65534
    job = shared.job(use=False, user=user)  # as that user no Python need be there
    cache = Cache(shared.root)
    owner = Owner(JOB, None, None, "", Job("slurm", "lab", job, "0", "", cluster.nodes_of(job)))
    lease = cache.hold(owner, cache.item_request([str(shared.source)]))
    history = Path(lease.place.history)
    history.rmdir()
    for path in (shared.root, *shared.root.rglob("*")):
        if path.is_dir():
            path.chmod(0o777)
    shared.end(job)
    wait_until(lambda: [one for one in cluster.epilogs() if one["job"] == job], "the epilog runs")
    assert shared.disk.leases() == []
    assert history.stat().st_uid == user


def test_the_epilog_leaves_what_is_not_over(shared: Shared, cluster: Cluster) -> None:
    """One node's epilog would give back what the job reads on its other nodes, or what its next start needs."""
    cluster.tend(shared.root)
    job = shared.job("-N", "2")
    single = shared.job()
    for number in (job, single):
        assert shared.sc("use", "--holder", f"slurm:{number}", shared.source).code == 0
    shared.end(job)
    shared.end(single)
    wait_until(lambda: len([one for one in cluster.epilogs() if one["job"] in (job, single)]) == 3, "epilogs run")
    assert len(shared.disk.leases()) >= 2
    cluster.wait_for(job, "COMPLETED")
    cluster.wait_for(single, "COMPLETED")
    wait_until(lambda: len(shared.disk.leases()) == 2, "the lease that was taken for any start is ended")
    assert not shared.is_kept()


def test_the_epilog_gives_back_a_set(shared: Shared, cluster: Cluster) -> None:
    """What a job held with `use --from` would be kept until somebody reaps."""
    cluster.tend(shared.root)
    use = f"echo {shared.source} @in/ref.fa | {SC_DTOOL} -C {shared.root} use --from -"
    job = shared.job(use=False, then=f'grep -q ACGT "$({use})/in/ref.fa" || exit 9')
    assert len(shared.disk.leases()) == 1
    shared.end(job)
    wait_until(lambda: [one for one in cluster.epilogs() if one["job"] == job], "the epilog runs")
    assert (shared.disk.leases(), shared.disk.holders()) == ([], [])
    assert ended(shared) == ["released"]


# -- jobs that start when their data is available ----------------------------------------------------------------------


class Submitter:
    """Submits jobs that need the item, and wait to be told their exit code when they have found it."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.fifo = shared.directory / "go"
        os.mkfifo(self.fifo)

    def script(self, *lines: str, source: str | Path | None = None) -> Path:
        """A job script. `lines`: options, and what it does before it waits."""
        options = [line for line in lines if line.startswith("#")]
        others = [line for line in lines if not line.startswith("#")]
        needs = f"#SC {source or self.shared.source} @in/ref.fa"
        finds = 'grep -q ACGT "$SC_DTOOL_VIEW/in/ref.fa" || exit 9'
        script = self.shared.directory / "job.sh"
        script.write_text(
            "\n".join(["#!/bin/bash", *options, needs, finds, *others, f"read x <{self.fifo}; exit $x\n"])
        )
        return script

    def submit(self, *words: str | Path) -> str:
        """The number of a job."""
        done = self.shared.sc("sbatch", "-o", "/dev/null", "--parsable", *words)
        assert done.code == 0, done
        number = done.out.strip()
        self.shared.fifos[number] = str(self.fifo)
        return number

    def comment(self, job: str) -> str:
        """The comment of a job."""
        return self.shared.cluster.call("squeue", "-h", "-t", "all", "-j", job, "-O", "Comment:200").out.strip()


@pytest.fixture
def submitter(shared: Shared) -> Submitter:
    """For the jobs of a test."""
    return Submitter(shared)


@pytest.mark.parametrize("export", ["ALL", "NONE", "A=1"])
def test_a_job_finds_its_data_when_it_starts(
    submitter: Submitter, shared: Shared, cluster: Cluster, export: str
) -> None:
    """A job would start without its data, or not be told where it is; or keep it after its end."""
    step = "/usr/bin/srun -n1 /bin/sh -c '/bin/grep -q ACGT $SC_DTOOL_VIEW/in/ref.fa' || exit 8"
    job = submitter.submit(f"--export={export}", submitter.script(step))
    shared.end(job)
    cluster.wait_for(job, "COMPLETED", "FAILED")
    assert cluster.states(job) == ["COMPLETED"]
    assert submitter.comment(job) == ""
    assert shared.verdict()[0] == "dead"
    assert not shared.is_kept()
    assert (shared.disk.holders(), shared.disk.names("sessions")) == ([], ["gone"])


def test_a_job_keeps_its_data_until_it_is_cancelled(submitter: Submitter, shared: Shared, cluster: Cluster) -> None:
    """Data would be removed while its job waits for another one, or be kept for a job that never starts."""
    first = cluster.submit("true", "--hold")
    job = submitter.submit("-d", f"afterany:{first}", submitter.script())
    reason = cluster.call("squeue", "-h", "-j", job, "-o", "%r").out.strip()
    assert reason in ("Dependency", "None")
    assert shared.verdict() == ("alive", f"Slurm: job {job} is PENDING")
    assert shared.is_kept()
    cluster.call("scancel", job, first)
    cluster.wait_for(job, "CANCELLED")
    assert shared.verdict()[0] == "dead"
    assert not shared.is_kept()


def test_a_job_may_give_its_data_back(submitter: Submitter, shared: Shared, cluster: Cluster) -> None:
    """A job that runs on for days would keep data that it does not need any more."""
    given_back = shared.directory / "given-back"
    unuse = f'{SC_DTOOL} -C {shared.root} unuse "$SC_DTOOL_VIEW" && touch {given_back}'
    job = submitter.submit("--comment=mine", submitter.script(unuse))
    wait_until(given_back.exists, "the job has given its data back")
    assert cluster.states(job) == ["RUNNING"]
    assert submitter.comment(job) == "mine"
    assert (shared.disk.leases(), shared.disk.holders()) == ([], [])
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")


def test_a_requeued_job_finds_its_data_again(submitter: Submitter, shared: Shared, cluster: Cluster) -> None:
    """The second start of a job would fail, because its data was removed after the first."""
    started = shared.directory / "started"
    job = submitter.submit(submitter.script("#SBATCH --requeue", f"echo $SLURM_RESTART_COUNT >>{started}"))
    wait_until(started.exists, "the job has found its data")
    cluster.tend(shared.root)
    cluster.call("scontrol", "requeue", job)
    wait_until(lambda: [one for one in cluster.epilogs() if one["job"] == job], "the epilog of the first start runs")
    assert shared.is_kept()
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")  # otherwise, two minutes later
    wait_until(lambda: started.read_text().split() == ["1"] or len(started.read_text().splitlines()) == 2, "again")
    assert shared.is_kept()
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")
    wait_until(lambda: not shared.disk.leases(), "the epilog of the second start ends the leases")
    assert not shared.is_kept()


def test_all_tasks_of_an_array_find_the_data(submitter: Submitter, shared: Shared, cluster: Cluster) -> None:
    """The data would be removed when the first task of an array has ended."""
    script = submitter.script("[ $SLURM_ARRAY_TASK_ID = 2 ] || exit 0")
    array = submitter.submit("--array=1-2", script)
    wait_until(lambda: sorted(cluster.states(array)) == ["COMPLETED", "RUNNING"], "one task has ended")
    assert shared.verdict()[0] == "alive"
    assert shared.is_kept()
    cluster.tend(shared.root)
    shared.end(array)
    cluster.wait_for(array, "COMPLETED")
    wait_until(lambda: not shared.disk.leases(), "the epilog of the last task ends the leases")
    assert not shared.is_kept()


def test_a_heterogeneous_job_is_released_as_a_whole(submitter: Submitter, shared: Shared, cluster: Cluster) -> None:
    """Only a part of the job would be released, or the options of its parts be mixed."""
    job = submitter.submit("-N1", "-n1", ":", "-N1", "-n2", submitter.script())
    cluster.wait_for(job, "RUNNING")
    shared.end(job)
    cluster.wait_for(job, "COMPLETED", "FAILED")
    assert cluster.states(job) == ["COMPLETED", "COMPLETED"]
    assert not shared.is_kept()


def test_a_job_whose_data_cannot_be_fetched_never_starts(
    submitter: Submitter, shared: Shared, cluster: Cluster
) -> None:
    """A job would wait for ever, or fail on a node, and its user not know why."""
    done = shared.sc("sbatch", submitter.script(source=shared.directory / "nothing"))
    assert (done.code, done.out) == (12, "")
    (number,) = re.findall(r"job ([0-9]+) was cancelled", done.err)
    assert cluster.states(number) == ["CANCELLED"]
    assert re.match("sc-dtool: .*nothing", submitter.comment(number))
    assert shared.disk.left() == []


@pytest.fixture
def fetching(submitter: Submitter, shared: Shared) -> Iterator[tuple[subprocess.Popen[str], str, httpserver.Server]]:
    """A command that fetches the data of its job; the job; and the server, which has not answered yet."""
    with httpserver.serve() as server:
        script = submitter.script(source=server.page("/ref.fa", b"ACGT\n", hold=True))
        words = [SC_DTOOL, "-C", str(shared.root), "sbatch", "-o", "/dev/null", str(script)]
        with start(words, env=shared.cluster.environment(), cwd=shared.directory) as process:
            server.wait_for_gets("/ref.fa")
            held = shared.cluster.call("squeue", "-h", "-t", "PENDING", "-O", "JobID:|,WorkDir:|").out
            (job,) = re.findall(rf"(?m)^([0-9]+)\|{shared.directory}\|", held)
            shared.fifos[job] = str(submitter.fifo)
            yield process, job, server


def test_a_job_that_is_cancelled_while_its_data_is_fetched(
    fetching: tuple[subprocess.Popen[str], str, httpserver.Server], shared: Shared, cluster: Cluster
) -> None:
    """Data would be kept for a job that has ended already."""
    process, job, server = fetching
    cluster.call("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    server.release()
    done = finish(process)
    assert (done.code, done.out) == (1, "")
    assert f"job {job} ended before its data was available" in done.err
    assert (shared.disk.leases(), shared.disk.holders()) == ([], [])


def test_a_job_whose_command_was_killed_is_found(
    fetching: tuple[subprocess.Popen[str], str, httpserver.Server],
    submitter: Submitter,
    shared: Shared,
    cluster: Cluster,
) -> None:
    """A job would stay held for ever, and nobody would know."""
    process, job, server = fetching
    assert "still held" not in shared.sc("sbatch", "--hold", submitter.script()).err
    process.kill()
    process.wait()
    assert f"job {job} is still held: the sc-dtool sbatch on" in shared.sc("reap").err
    assert cluster.states(job) == ["PENDING"]
    done = shared.sc("sbatch", "--hold", submitter.script())
    assert f"job {job} is still held: the sc-dtool sbatch on" in done.err
    assert f"sbatch --resume {job}; or cancel it: scancel {job}" in done.err
    server.release()
    assert shared.sc("sbatch", "--resume", job).code == 0
    cluster.wait_for(job, "RUNNING")
    assert "still held" not in shared.sc("sbatch", "--hold", submitter.script()).err
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")
    cluster.call("scancel", "--state=PENDING", "--user=root")


def test_what_sbatch_prints_and_returns(submitter: Submitter, shared: Shared, cluster: Cluster) -> None:
    """A script that submits jobs would have to be changed."""
    script = submitter.script("exit 3")
    done = shared.sc("sbatch", "-o", "/dev/null", script)
    assert re.fullmatch(r"Submitted batch job [0-9]+\n", done.out)
    assert shared.sc("sbatch", "-Q", "-o", "/dev/null", script).out == ""
    done = shared.sc("sbatch", "--wait", "--parsable", "-o", "/dev/null", script)
    assert (done.code, cluster.states(done.out.strip())) == (3, ["FAILED"])
    done = shared.sc("sbatch", submitter.script("#SBATCH --wait --parsable -o /dev/null", "exit 4"))
    assert (done.code, cluster.states(done.out.strip())) == (4, ["FAILED"])
    before = shared.disk.holders()
    done = shared.sc("sbatch", submitter.script("#SBATCH --test-only"))
    assert (done.code, done.out) == (0, "")
    assert "to start at" in done.err
    assert shared.disk.holders() == before
    done = shared.sc("sbatch", "-p", "nowhere", script)
    assert (done.code, done.out) == (1, "")
    assert "invalid partition" in done.err


# -- what the controller has forgotten; last, because it forgets everything ------------------------------------------


def test_a_forgotten_job_is_dead_only_where_there_is_an_account_of_it(shared: Shared, cluster: Cluster) -> None:
    """A job that is not listed would be taken for ended; or its leases, minutes after its end, be kept for ever."""
    job = shared.job()
    shared.end(job)
    cluster.wait_for(job, "COMPLETED")
    if cluster.with_accounting:
        account = ["sacct", "-X", "-n", "-P", "-j", job, "-o", "State"]
        wait_until(lambda: "COMPLETED" in cluster.call(*account).out, "the accounting hears of it")
    cluster.forget()
    state, evidence = shared.verdict(accounting=False)
    assert (state, "accounting is off" in evidence) == ("unknown", True)
    if not cluster.with_accounting:
        pytest.skip(f"the rest needs accounting: {slurm.lacking(slurm.ACCOUNTING)}")
    state, evidence = shared.verdict()
    assert (state, f"job {job} COMPLETED at" in evidence) == ("dead", True)
    assert not shared.is_kept()


def test_srun_starts_both_who_verify_a_file_system(shared: Shared) -> None:
    """`srun -N2 sc-dtool doctor --verify-filesystem DIR` would have two lead, or two jobs meet, or nobody."""
    place = shared.directory / "mount"
    place.mkdir()
    verify = [SC_DTOOL, "-f", "json", "doctor", "--verify-filesystem", str(place)]
    done = shared.cluster.call("srun", "-N2", "-n2", *verify)
    verdicts = {line for line in done.out.splitlines() if '"type": "verdict"' in line}
    assert len(verdicts) == 1, done
    assert "only" not in verdicts.pop()
    assert '"check": "visibility between hosts"' in done.out
    assert os.listdir(place) == []


# -- one command by the tasks of a step ------------------------------------------------------------------------------

PLAY = Path(__file__).parents[1] / "executors" / "play.py"

#: Items in the cache: enough for each task to have some.
ITEMS = 40

mpi = pytest.mark.skipif(find_spec("mpi4py") is None, reason="mpi4py is not installed")


def step(shared: Shared, options: str, *words: str, **more: str) -> Done:
    """Run a command as the tasks of a step on both nodes, in which the smallest work is shared."""
    cache = Cache(shared.root)
    for number in range(ITEMS):
        cache.use(shared.source, name=f"item-{number}")
    cache.close()
    events = shared.directory / "events"
    events.mkdir(exist_ok=True)
    command = [PYTHON, str(PLAY), "-C", str(shared.root), "-f", "json", *words]
    # The nodes share one kernel, whose shared memory MPI would use, and have process numbers of their own.
    environment = shared.cluster.environment(EVENTS=str(events), UCX_TLS="tcp,self", **more)
    return shell(["srun", "-N2", *options.split(), *command], env=environment)


@mpi
def test_all_tasks_of_a_step_clean_together(shared: Shared) -> None:
    """`srun -n 4 sc-dtool clean` would clean four times, print four results, or have three tasks look on."""
    done = step(shared, "-n4 --mpi=pmi2", "clean", "--all", "-y", "--trash", "1d", WAIT_FOR="4")
    assert done.code == 0, done
    total = done.row("total")
    assert (total["items"], total["failed"], total["gone"]) == (ITEMS, 0, 0)
    assert len(list((shared.directory / "events").glob("by-*"))) == 4
    assert len(shared.disk.names("trash")) == ITEMS
    assert shared.disk.names("tmp") == shared.disk.names("locks") == shared.disk.holders() == []


@mpi
@pytest.mark.parametrize("command", ["du", "ls", "status", "summary"])
def test_the_tasks_of_a_step_report_a_cache_once(shared: Shared, command: str) -> None:
    """`srun sc-dtool du` would print its sums once for each task."""
    done = step(shared, "-n4 --mpi=pmi2", command)
    assert done.code == 0, done
    alone = shell([SC_DTOOL, "-C", str(shared.root), "-f", "json", command])
    assert len(done.out.splitlines()) == len(alone.out.splitlines())


def test_a_step_without_mpi_is_one_task_that_says_what_is_missing(shared: Shared) -> None:
    """Each task has an MPI world of its own then, and everything would be done and printed four times."""
    done = step(shared, "-n4 --mpi=none", "du")
    assert (done.code, done.row("total")["items"]) == (0, ITEMS)
    assert done.err.count("--mpi=pmi2") == 1


@mpi
def test_a_step_that_loses_a_task_fails_and_the_next_clean_finishes(shared: Shared) -> None:
    """A node that fails would leave the step hanging, or the cache damaged."""
    words = ("clean", "--all", "-y", "--trash", "1d")
    done = step(shared, "-n2 -K --mpi=pmi2", *words, WAIT_FOR="2", KILL_RANK="1")
    assert done.code != 0
    assert '"type": "total"' not in done.out
    # srun may return before the other task has ended, which is on a node of its own: until then, nobody else cleans.
    tries: list[Done] = []

    def is_refused_no_longer() -> bool:
        tries.append(shell([SC_DTOOL, "-C", str(shared.root), "-f", "json", *words]))
        return tries[-1].code != Exit.IN_USE

    wait_until(is_refused_no_longer, "the other task has ended")
    assert tries[-1].code == 0, tries[-1]
    assert len(shared.disk.names("trash")) == ITEMS


def test_a_command_of_a_script_works_for_itself(shared: Shared) -> None:
    """A task whose script calls `du` would wait for other tasks, which do something else."""
    script = f"[ $SLURM_PROCID = 0 ] || {SC_DTOOL} -C {shared.root} -f json du; true"
    done = shell(["srun", "-n2", "--mpi=pmi2", "sh", "-c", script], env=shared.cluster.environment())
    assert (done.code, done.row("total")["items"]) == (0, 0)


def test_the_line_of_the_scrontab_cleans_as_a_job(shared: Shared, cluster: Cluster) -> None:
    """Options that Slurm does not know, or a line that finds no `sc-dtool` on a node, would show as a full cache."""
    config(shared.root, '[clean]\nolder_than = "0s"\n')
    Cache(shared.root).use(shared.source).release()
    bin = Path(__file__).parents[2] / "bin" / "cron"
    text = (bin / "scrontab").read_text().replace("/shared/lab/cache", str(shared.root))
    text = text.replace("/opt/sc-dtool/bin/clean.sh", str(bin / "clean.sh")).replace("/opt/sc-dtool/bin", SCRIPTS)
    lines = text.splitlines()
    options = [line.replace("#SCRON", "#SBATCH") for line in lines if line.startswith("#SCRON")]
    (command,) = [line.split(None, 5)[5] for line in lines if not line.startswith("#")]
    assert len(shared.disk.copies()) == 1
    job = cluster.submit("\n".join([*options, command]), f"--chdir={shared.directory}")
    cluster.wait_for(job, "COMPLETED")
    assert shared.disk.copies() == []
