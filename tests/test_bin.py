"""The scripts in `bin/`: what a site puts into Slurm's configuration. They run without Slurm, as Slurm runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import Disk, has_ended
from faults import FakeProc, store_of
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness.caller import CALLER, JOB, Owner
from sccache_dtool.liveness.job import Job
from sccache_dtool.liveness.process import Process
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import history
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.sets import manifest
from waiting import wait_until

BIN = Path(__file__).parents[1] / "bin"
EPILOG, PROLOG = BIN / "slurm-epilog.sh", BIN / "slurm-task-prolog.sh"

TAKEN = Job("slurm", "lab", "48211", "0", "", "n1")

#: What Slurm 22.05 gives an epilog, as far as it matters (recorded in tests/hosts/slurmlab.sh's cluster).
SLURM = {
    "SLURM_CLUSTER_NAME": "lab",
    "SLURM_JOB_ID": "48211",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_RESTART_COUNT": "0",
    "SLURMD_NODENAME": "n1",
    "SLURM_NODELIST": "n1",
}


def run(script: Path, *arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the few variables that Slurm gives it."""
    environment = {"PATH": os.environ["PATH"], **SLURM, **changes}
    words = ["sh", str(script), *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def disk(cache: Cache) -> Disk:
    return Disk(cache.root)


@pytest.fixture
def take(cache: Cache, source: str) -> Callable[..., Lease]:
    """Takes a lease for a job, as `sc-dtool use` does in it."""

    def take(job: Job = TAKEN, process: Process | None = None, ttl: float | None = None) -> Lease:
        return cache.hold(Owner(JOB, process, None, "align", job), cache.item_request([source]), UseOptions(ttl=ttl))

    return take


def uses(lease: Lease) -> list[history.Use]:
    return history.read(store_of(FileSystem(), None), lease.place.history)


@pytest.mark.parametrize("ttl", [None, 3600.0])
@pytest.mark.parametrize("way", ["argument", "variable"])
def test_the_epilog_gives_back_what_the_job_holds(
    cache: Cache, disk: Disk, take: Callable[..., Lease], way: str, ttl: float | None
) -> None:
    """What a job held would be kept until somebody reaps, and its use be counted as none or as two."""
    lease = take(ttl=ttl)
    take()
    arguments = [cache.root] if way == "argument" else []
    done = run(EPILOG, *arguments, SC_DTOOL_CACHES=f"/nonexistent:{cache.root}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (disk.leases(), disk.holders()) == ([], [])
    assert [(use.how, use.by) for use in uses(lease)] == [("released", lease.holder.by)] * 2
    assert all(abs(use.end - os.stat(cache.root).st_mtime) < 3600 for use in uses(lease))
    assert cache.item(lease.key).copies


@pytest.mark.parametrize("name", ["Proben-ä", "a 'b' $(touch owned) *", "-n", "x" * 200, "東京都" * 60, "a/g1/use/x"])
def test_the_epilog_goes_by_no_name(cache: Cache, disk: Disk, source: str, name: str) -> None:
    """What a job holds of an item with an odd or long name would be kept until somebody reaps."""
    lease = cache.hold(Owner(JOB, None, None, "align", TAKEN), cache.item_request([source], name))
    run(EPILOG, cache.root)
    assert (disk.leases(), disk.holders(), len(uses(lease))) == ([], [], 1)
    assert not os.path.exists("owned")


def test_a_task_of_an_array_is_found_by_the_number_that_its_node_knows(
    cache: Cache, disk: Disk, take: Callable[..., Lease]
) -> None:
    """An epilog is not told of arrays: no task's leases would be given back."""
    take(TAKEN._replace(id="48200_7", raw="48211"))
    run(EPILOG, cache.root)
    assert disk.leases() == []


def test_the_epilog_gives_back_a_set(cache: Cache, disk: Disk, tmp_path: Path) -> None:
    """A set that a job held would be kept until somebody reaps, or its items be counted as used twice."""
    names = ["plain", "a..", "a 'b' $(touch owned) *", "deep"]
    entries = manifest.parse_mapping({name: str(make_source(tmp_path, name)) for name in names[:-1]}, cache.request)
    entries += manifest.parse_mapping({"x/y/z.fa": str(make_source(tmp_path, "deep"))}, cache.request)
    held = cache.hold_many(Owner(JOB, None, None, "align", TAKEN), entries)
    assert len(disk.leases()) == 4
    done = run(EPILOG, cache.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (disk.leases(), disk.holders()) == ([], [])
    for lease in disk.copies():
        uses = history.read(store_of(FileSystem(), None), str(lease.parent / "history"))
        assert [use.how for use in uses] == ["released"]
    assert not os.path.exists("owned")
    with pytest.raises(FileNotFoundError):
        os.stat(disk.control / "sessions" / held.session / "use")
    cache.clean(Rules())
    assert disk.names("sessions") == ["gone"]


def test_the_epilog_leaves_a_set_whose_view_does_not_show_all(cache: Cache, disk: Disk, source: str) -> None:
    """The lease on an item that was taken out of a session would stay without its holder."""
    held = cache.hold_many(Owner(JOB, None, None, "", TAKEN), manifest.parse_mapping({"x": source}, cache.request))
    (data,) = (disk.control / "sessions" / held.session).glob("data-*")
    data.write_text(data.read_text().rstrip().removesuffix("}") + ', "detached": []}')
    run(EPILOG, cache.root)
    assert len(disk.leases()) == len(disk.holders()) == 1


def make_source(directory: Path, name: str) -> Path:
    path = directory / name
    path.write_text(name)
    return path


@pytest.mark.parametrize(
    "job",
    [
        TAKEN._replace(id="48212"),
        TAKEN._replace(cluster="other"),
        TAKEN._replace(incarnation="1"),
        TAKEN._replace(incarnation=""),
        TAKEN._replace(nodes="n2"),
        TAKEN._replace(nodes="n[1-2]"),
        TAKEN._replace(nodes=""),
        Job("slurm", "lab", "48211"),
        TAKEN._replace(id="48211_3", raw="48300"),
    ],
    ids=str,
)
def test_the_epilog_leaves_what_is_not_its_own(cache: Cache, disk: Disk, take: Callable[..., Lease], job: Job) -> None:
    """Another job, another start of it, or the job's processes on other nodes would lose what they read."""
    take(job)
    assert run(EPILOG, cache.root).returncode == 0
    assert len(disk.leases()) == len(disk.holders()) == 1


def test_the_epilog_leaves_what_a_process_holds_too(
    cache: Cache, disk: Disk, take: Callable[..., Lease], proc: FakeProc, source: str
) -> None:
    """A shell under `salloc` on a login node would lose what it reads; a script what it took for itself."""
    process = proc.identify(os.getpid())
    take(process=process)
    cache.hold(Owner(CALLER, process, None, "x", TAKEN), cache.item_request([source]))
    run(EPILOG, cache.root)
    assert len(disk.leases()) == 2


def test_the_epilog_leaves_a_job_on_several_nodes(cache: Cache, disk: Disk, take: Callable[..., Lease]) -> None:
    """The first node to end would take the data from all others."""
    take()
    run(EPILOG, cache.root, SLURM_JOB_NUM_NODES="2")
    assert len(disk.leases()) == 1


def test_an_item_without_a_history_gets_one(cache: Cache, disk: Disk, take: Callable[..., Lease]) -> None:
    """A use would stay in the gate for ever, because there is nowhere to put it."""
    lease = take()
    os.rmdir(lease.place.history)
    run(EPILOG, cache.root)
    assert disk.leases() == []
    assert len(uses(lease)) == 1


@pytest.mark.parametrize("key", ["../../../victim", "", ".", "0123/../../x", "$(touch owned)", "a b", "a*"])
def test_a_record_made_by_hand_moves_nothing_elsewhere(cache: Cache, layout: Layout, tmp_path: Path, key: str) -> None:
    """A user could let the epilog rename or remove the files of others."""
    cache.check()
    id = f"{Owner(JOB, None, None, '', TAKEN).prefix}0123456789ab"
    for directory in (tmp_path / "victim" / "g1" / "use", tmp_path / "x" / "g1" / "use"):
        directory.mkdir(parents=True)
        (directory / f"{id}.0").write_text("mine")
    record = f'{{"kind":"job","incarnation":"0","nodes":"n1","item":"{key}"}}'
    os.symlink(record, f"{layout.holders}/{id}.0.0")
    assert run(EPILOG, cache.root).returncode == 0
    assert os.readlink(f"{layout.holders}/{id}.0.0") == record
    assert len(list(tmp_path.glob("*/g1/use/*"))) == 2
    assert not os.path.exists("owned")


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_JOB_ID": ""},
        {"SLURM_CLUSTER_NAME": ""},
        {"SLURMD_NODENAME": ""},
        {"SLURM_JOB_NUM_NODES": ""},
        {"SLURM_JOB_UID": "nobody such", "SLURM_JOB_USER": "nobody such"},
        {"SLURM_JOB_ID": "$(false)"},
    ],
)
def test_the_epilog_never_fails(cache: Cache, take: Callable[..., Lease], changes: dict[str, str]) -> None:
    """A failing epilog drains its node, and soon the whole cluster."""
    take()
    for place in (cache.root, "/nonexistent", "/proc", ""):
        done = run(EPILOG, place, **changes)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_epilog_never_fails_without_programs(cache: Cache, take: Callable[..., Lease], tmp_path: Path) -> None:
    """On a node without coreutils in PATH the epilog would drain the node."""
    take()
    done = subprocess.run(["/bin/sh", str(EPILOG), str(cache.root)], env={**SLURM, "PATH": str(tmp_path)}, timeout=60)
    assert done.returncode == 0


def test_the_epilog_gives_up_when_a_file_server_hangs(cache: Cache, take: Callable[..., Lease], tmp_path: Path) -> None:
    """A file server that is away would let every node that ends a job wait for it, and drain."""
    take()
    programs = tmp_path / "bin"
    programs.mkdir()
    hung = tmp_path / "pid"
    (programs / "mv").write_text(f"#!/bin/sh\ntrap '' TERM\necho $$ >{hung}\nexec sleep 600\n")
    (programs / "mv").chmod(0o755)
    done = run(EPILOG, cache.root, PATH=f"{programs}:{os.environ['PATH']}", SC_DTOOL_SECONDS="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = int(hung.read_text())
    wait_until(lambda: has_ended(pid), "what hung is killed")


#: A job as `--holder slurm:48211` and `sc-dtool sbatch` name it: any start of it.
OF_ANY_START = Job("slurm", "lab", "48211")


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """What makes the epilog ask a `squeue` that answers with these rows, one answer after the other, without pauses."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def answers(*found: str, code: int = 0) -> dict[str, str]:
        for number, rows in enumerate(found, 1):
            (programs / f"answer-{number}").write_text(rows)
        script = f"""echo "$*" >>{programs}/asked
            cat {programs}/answer-$(wc -l <{programs}/asked); exit {code}"""
        for name, text in {"squeue": script, "sleep": "exit 0"}.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        return {"PATH": f"{programs}:{os.environ['PATH']}"}

    return answers


def test_the_epilog_asks_slurm_only_for_jobs_that_need_it(
    cache: Cache, take: Callable[..., Lease], slurm: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """An epilog that asks the controller at the end of each of ten thousand jobs takes it down."""
    take()
    take(OF_ANY_START._replace(id="48212"))
    run(EPILOG, cache.root, **slurm("COMPLETED n1\n"))
    assert not (tmp_path / "programs" / "asked").exists()
    code = "".join(line for line in EPILOG.read_text().splitlines(keepends=True) if not line.lstrip().startswith("#"))
    for word in ("scontrol", "sacct", "scancel", "sc-dtool ", "python"):
        assert word not in code


@pytest.mark.parametrize(
    "answers",
    [
        ["COMPLETED n1\n"],
        ["COMPLETING n1\n", "COMPLETING n1\n", "CANCELLED n1\n"],
        ["COMPLETED n1\nFAILED n2\nCANCELLED \n"],  # tasks of an array
        ["TIMEOUT n1\n"],
    ],
)
def test_the_epilog_gives_back_once_the_job_has_ended(
    cache: Cache, disk: Disk, source: str, slurm: Callable[..., dict[str, str]], answers: list[str]
) -> None:
    """What `sc-dtool sbatch` or `--holder slurm:ID` took for a job would be kept until somebody reaps."""
    owner = Owner(JOB, None, None, "", OF_ANY_START)
    cache.hold(owner, cache.item_request([source]))
    cache.hold_many(owner, manifest.parse_mapping({"x/ref.fa": source}, cache.request))
    done = run(EPILOG, cache.root, **slurm(*answers))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wait_until(lambda: not disk.holders(), "the leases are ended")
    assert disk.leases() == []


@pytest.mark.parametrize(
    "answers",
    [
        ["PENDING \n"],
        ["COMPLETING n1\n", "PENDING \n"],  # it is requeued
        ["COMPLETING n1\n"] * 6,
        ["COMPLETED n1\nRUNNING n1\n"],  # tasks of an array
        ["COMPLETED n1\nCOMPLETING n2\n"],
        ["TIMEOUT n2\n"],  # which may not answer
        ["COMPLETED n[1-2]\n"],
        ["NODE_FAIL n1\n"],
        ["SOMETHING_NEW n1\n"],
        [""],
    ],
)
def test_the_epilog_leaves_the_data_of_jobs_that_go_on(
    cache: Cache, disk: Disk, take: Callable[..., Lease], slurm: Callable[..., dict[str, str]], answers: list[str]
) -> None:
    """A job that is requeued, or another task of its array, would start without its data."""
    take(OF_ANY_START)
    run(EPILOG, cache.root, **slurm(*answers), SC_DTOOL_STAGE="waiting")
    assert len(disk.leases()) == len(disk.holders()) == 1


def test_the_epilog_leaves_the_data_if_slurm_does_not_answer(
    cache: Cache, disk: Disk, take: Callable[..., Lease], slurm: Callable[..., dict[str, str]]
) -> None:
    """Half an answer of a controller in trouble would end the leases of a job that runs."""
    take(OF_ANY_START)
    run(EPILOG, cache.root, **slurm("COMPLETED n1\n", code=1), SC_DTOOL_STAGE="waiting")
    assert len(disk.leases()) == 1


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_the_scripts_are_plain_shell(shell: str) -> None:
    """On distributions with another /bin/sh the epilog would be a syntax error, and drain every node."""
    for script in (EPILOG, PROLOG):
        words = ["busybox", "sh"] if shell == "busybox" else [shell]
        try:
            done = subprocess.run([*words, "-n", str(script)], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"no {shell} here")
        assert (done.returncode, done.stderr) == (0, "")


def test_the_prolog_tells_where_the_cache_is() -> None:
    """Each user would have to find out, and set it, in every job script."""
    done = run(PROLOG, SC_DTOOL_CACHES="/shared/cache:/other")
    assert (done.returncode, done.stdout) == (0, "export DTOOL_CACHE_DIRECTORY=/shared/cache\n")
    done = run(PROLOG, SC_DTOOL_CACHES="/shared/cache", DTOOL_CACHE_DIRECTORY="/my/own")
    assert (done.returncode, done.stdout) == (0, "")
