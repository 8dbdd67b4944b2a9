"""Laboratories on machines where their kernels do not boot, and what they leave behind when a test run is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import environment, has_ended, heard, shell, start
from hosts import leftovers
from nfs import kernels, lab
from nfs.kernels import DoesNotBootError, Kernel

TESTS = Path(__file__).parents[1]

PANIC = """echo 'userspace - ptrace set fp regs failed, errno = 14'
echo 'Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b'"""

MakeKernel = Callable[[str, str], str]


@pytest.fixture
def make_kernel(tmp_path: Path) -> MakeKernel:
    """Makes programs that do what kernels do, as far as the choice of one goes."""

    def make(name: str, script: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/started\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def kernels_are(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets which kernels there are: one that the environment names, one that is installed, a newer one."""

    def there_are(named: str, installed: str, newer: str = "/nowhere") -> None:
        monkeypatch.setenv("NFS_KERNEL", named)
        monkeypatch.setattr(kernels, "INSTALLED", installed)
        monkeypatch.setattr(kernels, "newer_kernel", lambda: newer)

    return there_are


def started(tmp_path: Path) -> list[int]:
    """The processes of all kernels that were started."""
    return [int(line) for line in (tmp_path / "started").read_text().split()]


BOOTS = "echo LAB-TRIED 9.9; exec sleep 600"


@pytest.mark.parametrize("then", ["exit 134", "exec sleep 600"], ids=["and ends", "and hangs"])
def test_a_newer_kernel_is_used_where_one_panics(
    tmp_path: Path, make_kernel: MakeKernel, kernels_are: Callable[..., None], then: str
) -> None:
    """On a processor with AMX, every test on NFS would wait for a minute, and fail."""
    kernels_are(make_kernel("old", f"{PANIC}\n{then}"), "/nowhere", make_kernel("new", BOOTS))
    chosen = kernels.choose.__wrapped__()
    assert (Path(chosen.program).name, chosen.release) == ("new", "9.9")
    assert "old does not boot here: userspace - ptrace set fp regs failed, errno = 14" in chosen.described
    assert len(started(tmp_path)) == 2
    assert all(map(has_ended, started(tmp_path)))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (f"{PANIC}\nexec sleep 600", "userspace - ptrace set fp regs failed, errno = 14"),
        ("echo 'Kernel panic - not syncing: no root'; exec sleep 600", "Kernel panic - not syncing: no root"),
        ("echo no memory; exit 3", "it ended with code 3: no memory"),
        ("exit 3", "it ended with code 3"),
    ],
)
def test_where_no_kernel_boots_the_reasons_are_told(
    make_kernel: MakeKernel, kernels_are: Callable[..., None], script: str, reason: str
) -> None:
    """Nobody would know what the machine lacks, and so why nothing was tested on NFS."""
    kernels_are(make_kernel("named", script), "/nowhere")
    with pytest.raises(DoesNotBootError) as failure:
        kernels.choose.__wrapped__()
    assert f"named does not boot here: {reason}; " in str(failure.value)
    assert "/nowhere does not exist" in str(failure.value)


def test_a_kernel_that_says_nothing_is_given_up(
    tmp_path: Path, make_kernel: MakeKernel, kernels_are: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that hangs would hang the test run."""
    monkeypatch.setattr(kernels, "PATIENCE", 0)
    kernels_are(make_kernel("silent", "exec sleep 600"), "/nowhere")
    with pytest.raises(DoesNotBootError, match="silent does not boot here: it is not up after 0 seconds"):
        kernels.choose.__wrapped__()
    assert not (tmp_path / "started").exists() or all(map(has_ended, started(tmp_path)))


def test_a_newer_kernel_that_cannot_be_fetched(
    tmp_path: Path, make_kernel: MakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a network, the reason would be missing, or half a kernel be there for the next run."""
    make_kernel("apt-get", "echo 'E: no network' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NFS_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "INSTALLED", "/nowhere")
    with pytest.raises(DoesNotBootError, match="a newer one cannot be fetched: E: no network"):
        kernels.choose.__wrapped__()
    assert list((tmp_path / "cache" / "sc-dtool-tests").iterdir()) == []


def test_a_newer_kernel_is_not_kept_where_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root would run what another user has put there."""
    cache = tmp_path / "sc-dtool-tests"
    cache.mkdir()
    cache.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NFS_KERNEL", raising=False)
    monkeypatch.setattr(kernels, "INSTALLED", "/nowhere")
    with pytest.raises(DoesNotBootError, match="where others may write"):
        kernels.choose.__wrapped__()


def run_tests_on_nfs(tmp_path: Path, kernel: str, how: str) -> str:
    """What pytest prints about the short tests on NFS, on a machine with no kernel but this one."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, pytest\n"
        "from nfs import kernels\n"
        "kernels.INSTALLED = sys.argv[1]\n"
        "kernels.newer_kernel = lambda: sys.argv[1]\n"
        "if sys.argv[2] == 'untried':\n"
        "    kernels.choose = lambda: kernels.Kernel(sys.argv[1], '9.9')\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[3:]]))\n"
    )
    paths = [str(TESTS / "nfs" / name) for name in ("test_nfs_faults.py", "test_nfs_quota.py", "test_nfs_verify.py")]
    done = shell(
        [sys.executable, str(script), kernel, how, *paths, "--deselect", f"{paths[0]}::test_hosts_that_fall_silent"],
        cwd=TESTS.parent,
        env=environment(PYTHONPATH=str(TESTS), NFS_KERNEL=None, PYTEST_ADDOPTS=f"--basetemp={tmp_path / 'inner'}"),
    )
    return done.out


needs_laboratory = pytest.mark.skipif(lab.lacking() is not None, reason=lab.lacking() or "")


@needs_laboratory
def test_tests_on_nfs_are_skipped_where_no_kernel_boots(tmp_path: Path, make_kernel: MakeKernel) -> None:
    """A machine that cannot run a laboratory would seem to have found faults in the program."""
    out = run_tests_on_nfs(tmp_path, make_kernel("old", f"{PANIC}\nexit 134"), "tried")
    assert "failed" not in out.splitlines()[-1], out
    assert "skipped" in out.splitlines()[-1]
    assert "no User-Mode Linux boots: " in out
    (note,) = [line for line in out.splitlines() if line.startswith("note: ")]
    assert note.startswith("note: NFS laboratory: none, its tests are skipped: ")
    assert "ptrace set fp regs failed, errno = 14" in note


@needs_laboratory
def test_one_test_fails_where_the_hosts_do_not_come_up(tmp_path: Path, make_kernel: MakeKernel) -> None:
    """One fault of a laboratory would be reported once for each test in it, each after a minute."""
    out = run_tests_on_nfs(tmp_path, make_kernel("old", f"{PANIC}\nexec sleep 600"), "untried")
    assert " 1 failed" in f" {out.splitlines()[-1]}" or " 1 error" in f" {out.splitlines()[-1]}", out
    assert "does not come up: userspace - ptrace set fp regs failed, errno = 14" in out
    assert all(map(has_ended, started(tmp_path)))


@needs_laboratory
@pytest.mark.parametrize("then", ["exit 134", "sleep 600 & wait"])
def test_hosts_that_do_not_come_up_leave_nothing(
    tmp_path: Path, make_kernel: MakeKernel, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Each failure would leave processes, a name space and a directory in memory on the machine."""
    kernel = Kernel(make_kernel("old", f"{PANIC}\n{then}"), "9.9")
    monkeypatch.setattr(kernels, "choose", lambda: kernel)

    def made() -> set[str]:
        places = [Path("/run/netns"), Path("/dev/shm")]
        return {str(path) for place in places for path in place.glob(f"{leftovers.this_run()}*")}

    before = made()
    with pytest.raises(DoesNotBootError, match="host s does not come up: userspace - ptrace set fp regs failed"):
        lab.Lab(tmp_path)
    assert made() == before
    assert all(map(has_ended, started(tmp_path)))


# -- what a killed test run leaves -------------------------------------------------------------------------------------

#: Does what a laboratory does, and waits to be killed.
LABORATORY = """
import os, subprocess, sys
from hosts import leftovers
run = leftovers.this_run()
directory = leftovers.make_directory("notes")
marked = {**os.environ, leftovers.VARIABLE: run}
quiet = {"start_new_session": True, "stderr": subprocess.DEVNULL}
pids = [subprocess.Popen(["sleep", "600"], env=marked, stdout=subprocess.DEVNULL, **quiet).pid]
if os.geteuid() == 0:
    subprocess.run(["ip", "netns", "add", f"{run}.1"], check=True)
    held = ["ip", "netns", "exec", f"{run}.1", "sh", "-c", "echo; exec sleep 600"]
    inside = subprocess.Popen(held, stdout=subprocess.PIPE, **quiet)
    inside.stdout.readline()
    pids.append(inside.pid)
print(run, directory, *pids, flush=True)
sys.stdin.read()
"""


def begin(process: subprocess.Popen[str]) -> tuple[str, Path, list[int]]:
    """The run, the directory and the processes of a laboratory that has just been set up."""
    run, directory, *pids = heard(process).split()
    return run, Path(directory), [int(pid) for pid in pids]


def test_only_what_killed_runs_have_left_is_removed() -> None:
    """A killed test run would leave kernels that run for ever; or the next one would end those of a run beside it."""
    command = [sys.executable, "-c", LABORATORY]
    with start(command, env=environment(PYTHONPATH=f"{TESTS}:{TESTS.parent}")) as living:
        here, kept, staying = begin(living)
        with start(command, env=environment(PYTHONPATH=f"{TESTS}:{TESTS.parent}")) as killed:
            gone, left, orphans = begin(killed)
            killed.kill()
            killed.wait()
            assert not any(map(has_ended, orphans))
            removed = leftovers.remove()
        assert gone in removed
        assert here not in removed
        assert not left.exists()
        assert all(map(has_ended, orphans))
        assert kept.exists()
        assert not any(map(has_ended, staying))
        spaces = {path.name for path in Path("/run/netns").glob("*")}
        assert f"{gone}.1" not in spaces
        assert f"{here}.1" in spaces or os.geteuid() != 0
    leftovers.remove()
    assert all(map(has_ended, staying))
    assert not kept.exists()
