"""On whose behalf `use` was called, with real processes: whichever way, the right one holds, and `unuse` finds it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from cli.tool import PYTHON, SC_DTOOL, Disk, call, finish, heard, say, shell, start
from sccache_dtool.liveness.record import HolderRecord
from waiting import wait_until


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "cache"
    assert call("-C", place, "init").code == 0
    return place


@pytest.fixture
def disk(root: Path) -> Disk:
    return Disk(root)


@pytest.fixture
def environment(root: Path, source: str, tmp_path: Path) -> Mapping[str, str]:
    """What scripts call: $SC and $SRC."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {**kept, "SC": SC_DTOOL, "SRC": source, "DTOOL_CACHE_DIRECTORY": str(root)}


def holder(disk: Disk) -> HolderRecord:
    (path,) = disk.holders()
    return HolderRecord.decode(os.readlink(path))


def script(path: Path, text: str, shell: str = "/bin/bash") -> str:
    path.write_text(f"#!{shell}\n{text}\n")
    path.chmod(0o755)
    return str(path)


#: How a script calls; the lease is to be the script's. `{}` is `use` or `unuse`, with its words.
CALLS = {
    "plainly": '"$SC" {} "$SRC"',
    "in brackets": 'x=$("$SC" {} "$SRC")',
    "in a subshell": '( cd /; "$SC" {} "$SRC" )',
    "in a pipe": '"$SC" {} "$SRC" | cat',
    "under timeout": 'timeout 60 "$SC" {} "$SRC"',
    "under timeout, in brackets": 'x=$(timeout 60 nice "$SC" {} "$SRC")',
    "under env": 'env A=b nohup "$SC" {} "$SRC"',
    "in a session of its own": 'setsid -w "$SC" {} "$SRC"',
    "in one shell for one command": """bash -c '"$SC" {} "$SRC"'""",
    "in sh -c, under timeout": """timeout 60 sh -c 'exec "$SC" {} "$SRC"'""",
    "under sudo": 'sudo -E "$SC" {} "$SRC"',
    "under find": 'find "$SRC" -exec "$SC" {} "$SRC" ";"',
    "as another program's child": """xargs -I@ "$SC" {} @ <<<"$SRC" """,
}


def able(how: str) -> None:
    if "sudo" in how and shutil.which("sudo") is None:
        pytest.skip("no sudo here")


@pytest.mark.parametrize("how", CALLS)
def test_the_script_holds(disk: Disk, environment: Mapping[str, str], tmp_path: Path, how: str) -> None:
    """A lease would end while the script reads, or go on when it has ended."""
    able(how)
    text = f"{CALLS[how].format('use')} >/dev/null\necho taken; read x; true"
    with start([script(tmp_path / "job.sh", text)], env=environment) as job:
        assert heard(job) == "taken"
        process = holder(disk).process
        assert process is not None
        assert process.pid == job.pid
        assert call("-C", disk.root, "reap").code == 0
        assert len(disk.leases()) == 1
        say(job)
        finish(job)
    call("-C", disk.root, "reap")
    assert disk.leases() == []


@pytest.mark.parametrize("how", CALLS)
def test_unuse_finds_it_again(disk: Disk, environment: Mapping[str, str], tmp_path: Path, how: str) -> None:
    """What a script takes in one way and gives back in another would stay held until the script ends."""
    able(how)
    text = f'"$SC" use "$SRC" >/dev/null\n{CALLS[how].format("unuse")}\necho given back; read x; true'
    with start([script(tmp_path / "job.sh", text)], env=environment) as job:
        assert heard(job) == "given back"
        assert (disk.leases(), disk.holders()) == ([], [])


def test_a_script_that_becomes_another_program(disk: Disk, environment: Mapping[str, str], tmp_path: Path) -> None:
    """A script that ends with `exec` would lose its data as soon as the program starts that is to read it."""
    text = '"$SC" use "$SRC" >/dev/null\nexec sh -c "echo running; read x"'
    with start([script(tmp_path / "job.sh", text)], env=environment) as job:
        assert heard(job) == "running"
        assert call("-C", disk.root, "reap").code == 0
        assert len(disk.leases()) == 1
        job.kill()
        job.wait()
    call("-C", disk.root, "reap")
    assert disk.leases() == []


def test_a_shell_that_becomes_unuse(disk: Disk, environment: Mapping[str, str]) -> None:
    """`bash -c '…; sc-dtool unuse X'` would give nothing back: its shell becomes that very command."""
    assert shell(["bash", "-c", '"$SC" use "$SRC" >/dev/null; "$SC" unuse "$SRC"'], env=environment).code == 0
    assert disk.leases() == []


def test_what_a_caller_holds_is_told_and_not_taken(disk: Disk, environment: Mapping[str, str], tmp_path: Path) -> None:
    """A helper that gives back once too often would take the data from its caller, or nobody learn whose it is."""
    inner = """bash -c '"$SC" unuse "$SRC"; true'"""
    text = f'"$SC" use "$SRC" >/dev/null\n{inner} 2>{tmp_path}/said; echo tried; read x; true'
    with start([script(tmp_path / "job.sh", text)], env=environment) as job:
        assert heard(job) == "tried"
        assert len(disk.leases()) == 1
        said = (tmp_path / "said").read_text()
        assert "nothing to release" in said
        assert f" does: unuse --holder pid:{job.pid}\n" in said


def test_a_notebook_holds_what_its_cells_take(disk: Disk, environment: Mapping[str, str]) -> None:
    """`!sc-dtool use …` in a cell would take a lease that ends with the cell."""
    kernel = """
import os, subprocess, sys
subprocess.run([os.environ["SC"], "use", os.environ["SRC"]], stdout=subprocess.DEVNULL, check=True)
os.system('"$SC" use "$SRC" >/dev/null')
print("taken", flush=True)
sys.stdin.readline()
os.system('"$SC" unuse --all "$SRC"')
print("given back", flush=True)
sys.stdin.readline()
"""
    with start([PYTHON, "-c", kernel], env=environment) as running:
        assert heard(running) == "taken"
        pids = {HolderRecord.decode(os.readlink(path)).process.pid for path in disk.holders()}  # type: ignore[union-attr]
        assert pids == {running.pid}
        assert len(disk.leases()) == 2
        say(running)
        assert heard(running) == "given back"
        assert disk.leases() == []


def test_cron_is_warned_of(disk: Disk, environment: Mapping[str, str], tmp_path: Path) -> None:
    """A lease taken directly from cron would be held by cron until the next boot, without a word."""
    cron = script(tmp_path / "cron", """setsid sh -c '"$SC" use "$SRC"'; true""", shell="/bin/dash")
    done = shell([cron], env=environment)
    assert done.code == 0
    assert "will be held by cron" in done.err
    assert "--ttl" in done.err


def test_a_job_of_cron_holds_for_itself(disk: Disk, environment: Mapping[str, str], tmp_path: Path) -> None:
    """A script that cron runs would hold its leases until cron ends."""
    job = script(tmp_path / "nightly.sh", f'echo $$ >{tmp_path}/pid; "$SC" use "$SRC" >/dev/null; true')
    cron = script(tmp_path / "cron", f"setsid sh -c {shlex.quote(job)}; true", shell="/bin/dash")
    done = shell([cron], env=environment)
    assert "cron" not in done.err
    process = holder(disk).process
    assert process is not None
    assert process.pid == int((tmp_path / "pid").read_text())


def test_a_shell_in_screen_holds_until_it_ends(disk: Disk, environment: Mapping[str, str], tmp_path: Path) -> None:
    """What was taken in `screen` or `tmux` would end when the user's connection does."""
    text = f'"$SC" use "$SRC" >/dev/null; echo $$ >{tmp_path}/pid; read x <{tmp_path}/go; true'
    os.mkfifo(tmp_path / "go")
    login = subprocess.run(["setsid", "--fork", script(tmp_path / "inner.sh", text)], env=environment, check=True)
    assert login.returncode == 0
    pid = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it has taken one"))
    process = holder(disk).process
    assert process is not None
    assert process.pid == pid
    call("-C", disk.root, "reap")
    assert len(disk.leases()) == 1
    (tmp_path / "go").write_text("\n")
    wait_until(lambda: call("-C", disk.root, "reap").code == 0 and not disk.leases(), "its shell has ended")


def test_variables_of_a_job_that_has_ended_are_not_believed(
    disk: Disk, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """A `screen` that was begun in a job would take leases for that job, and lose them at once."""
    stale = {"SLURM_JOB_ID": "1", "SLURM_CLUSTER_NAME": "lab", "PBS_JOBID": "1.server", "LSB_JOBID": "1"}
    text = '"$SC" use "$SRC" >/dev/null; true'
    assert shell([script(tmp_path / "job.sh", text)], env={**environment, **stale}).code == 0
    assert holder(disk).kind.title == "process"
    assert holder(disk).job is None


FORKING = """
import os, sys
from sccache_dtool import Cache
cache = Cache(os.environ["DTOOL_CACHE_DIRECTORY"])
lease = cache.use(os.environ["SRC"])
child = os.fork()
if child == 0:
    assert lease.release() is False
    cache.close()
    with cache.use(os.environ["SRC"]):
        pass
    sys.exit()  # as a child of multiprocessing ends
assert os.waitpid(child, 0)[1] == 0
print("child ended", flush=True)
sys.stdin.readline()
"""


def test_a_forked_child_ends_nothing_of_its_parents(disk: Disk, environment: Mapping[str, str]) -> None:
    """The first worker of a pool that ends would take the data from the program and all its other workers."""
    with start([PYTHON, "-c", FORKING], env=environment) as program:
        assert heard(program) == "child ended"
        assert len(disk.leases()) == 1
        call("-C", disk.root, "reap")
        assert len(disk.leases()) == 1
        say(program)
        assert finish(program).code == 0
    assert disk.leases() == []
