"""On whose behalf `sc-dtool` runs: real shells, real wrappers. The lease lives as long as the script that took it."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import PYTHON, Disk, Done, finish, heard, say, shell, start
from waiting import wait_until

Sc = Callable[..., Done]


def _unlike(*names: str) -> list[str]:
    """Shells, without those that are another name of one before them; a missing one is kept, to be told of."""
    found = {os.path.realpath(shutil.which(name.split()[0]) or name): name for name in reversed(names)}
    return [name for name in names if name in found.values()]


SHELLS = _unlike("bash", "dash", "sh", "ksh", "zsh", "busybox sh")

#: How a script may call us; `USE` stands for the command.
WAYS = {
    "in brackets": "p=$(USE)",
    "in backquotes": "p=`USE`",
    "bare": "USE > path; read p < path",
    "timeout": "p=$(timeout 60 USE)",
    "env": "p=$(env A=b USE)",
    "nice": "p=$(nice -n 1 USE)",
    "nohup": "p=$(nohup USE 2>/dev/null)",
    "setsid": "p=$(setsid -w USE)",
    "stdbuf": "p=$(stdbuf -oL USE)",
    "xargs": "p=$(echo | xargs USE)",
    "nested wrappers": "p=$(nice -n 1 env A=b nohup timeout 60 setsid -w env USE 2>/dev/null)",
    "a subshell": "(USE) > path; read p < path",
    "a subshell in a subshell": "(true; (true; p=$(USE); echo $p > path; true); true); read p < path",
    "the head of a pipeline": "p=$(USE | cat)",
    "the tail of a pipeline": "p=$(echo x | USE)",
    "a pipeline of its own": "USE | cat > path; read p < path",
    "a function": "f() { USE; }; p=$(f)",
    "a loop": "for i in 1; do p=$(USE); done",
    "eval": 'eval "p=\\$(USE)"',
    "the background": "USE > path & wait; read p < path",
}

SCRIPT = """
{way} || exit
{way} || exit
cat "$p"
read line
sc-dtool unuse {source}
echo given back
read line
"""


def _there(name: str) -> list[str]:
    words = name.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"there is no {name} on this machine")
    return words


def _lives_with_its_script(way: str, interpreter: list[str], sc: Sc, source: str, disk: Disk, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(SCRIPT.format(way=way.replace("USE", f"sc-dtool use {source}"), source=source))
    with start([*interpreter, str(script)], cwd=tmp_path) as job:
        assert heard(job) == "ACGT"
        assert len(disk.leases()) == 2
        assert sc("reap").out == "ended 0 leases\n"
        assert sc("why", "ref.fa").out.count(f"process {job.pid} (") == 4
        say(job)
        assert heard(job) == "given back"
        assert len(disk.leases()) == 1
        assert sc("reap").out == "ended 0 leases\n"
        done = finish(job)
    assert (done.code, done.err) == (1, "")  # `read` at the end of its input
    assert sc("reap").out.endswith("ended 1 lease\n")
    assert disk.leases() == disk.holders() == []


@pytest.mark.parametrize("way", list(WAYS))
def test_the_lease_lives_with_its_script(way: str, sc: Sc, source: str, disk: Disk, tmp_path: Path) -> None:
    """A wrapper or bracket around the call would hold the lease, and the data would go while the script reads it."""
    for word in ("timeout", "nohup", "setsid", "stdbuf", "xargs"):
        if word in WAYS[way]:
            _there(word)
    _lives_with_its_script(WAYS[way], _there("bash"), sc, source, disk, tmp_path)


@pytest.mark.parametrize("interpreter", SHELLS[1:])
@pytest.mark.parametrize("way", ["in brackets", "nested wrappers", "a subshell in a subshell", "a pipeline of its own"])
def test_in_every_shell(interpreter: str, way: str, sc: Sc, source: str, disk: Disk, tmp_path: Path) -> None:
    """A script for another shell than bash would lose its leases, since each forks in its own way."""
    _lives_with_its_script(WAYS[way], _there(interpreter), sc, source, disk, tmp_path)


@pytest.mark.root
@pytest.mark.parametrize(
    "prefix", ["sudo -n --preserve-env=PATH,HOME,DTOOL_CACHE_DIRECTORY,XDG_STATE_HOME env PATH=$PATH", "setpriv --nnp"]
)
def test_through_what_changes_privileges(prefix: str, sc: Sc, source: str, disk: Disk, tmp_path: Path) -> None:
    """`sudo -u data sc-dtool use …` would give a lease that ends with sudo."""
    _there(prefix.split()[0])
    _lives_with_its_script(f"p=$({prefix} USE)", _there("bash"), sc, source, disk, tmp_path)


@pytest.mark.parametrize("interpreter", SHELLS)
@pytest.mark.parametrize("opening", ["", "exec "])
def test_a_shell_that_becomes_its_last_command(interpreter: str, opening: str, sc: Sc, source: str, disk: Disk) -> None:
    """`bash -c '…; sc-dtool unuse X'` would not find its own lease, since bash becomes its last command."""
    script = f"p=$(sc-dtool use {source}); cat $p; {opening}sc-dtool unuse {source}"
    done = shell([*_there(interpreter), "-c", script])
    assert (done.code, done.out, done.err) == (0, "ACGT\n", "")
    assert disk.leases() == disk.holders() == []


def test_a_script_in_a_script_has_leases_of_its_own(sc: Sc, source: str, disk: Disk, tmp_path: Path) -> None:
    """A script that calls another would have its lease given back by it."""
    (tmp_path / "inner.sh").write_text(f"sc-dtool use {source} >/dev/null\nsc-dtool unuse --all {source}\n")
    outer = f"p=$(sc-dtool use {source}); bash {tmp_path / 'inner.sh'}; echo $p; read line"
    with start(["bash", "-c", outer]) as job:
        assert Path(heard(job)).read_text() == "ACGT\n"
        assert len(disk.leases()) == 1
        assert sc("reap").out == "ended 0 leases\n"
        finish(job)


def test_two_scripts_at_once_hold_two_leases(sc: Sc, source: str, disk: Disk) -> None:
    """The first job to end would give back the other's lease."""
    script = f"p=$(sc-dtool use {source}); echo $p; read line; sc-dtool unuse --all {source}"
    with start(["bash", "-c", script]) as one, start(["bash", "-c", script]) as two:
        assert heard(one) == heard(two)
        assert len(disk.leases()) == 2
        assert finish(one).code == 0
        (left,) = disk.leases()
        assert f"process {two.pid} " in sc("why", "ref.fa").out
        assert sc("reap").out == "ended 0 leases\n"
        assert disk.leases() == [left]
        assert finish(two).code == 0
    assert disk.leases() == []


PROGRAM = """
import subprocess, sys
use = ["sc-dtool", "use", sys.argv[1]]
path = subprocess.run(use, check=True, capture_output=True, text=True).stdout.rstrip()
print(open(path).read(), end="", flush=True)
sys.stdin.readline()
subprocess.run(["sc-dtool", "unuse", sys.argv[1]], check=True)
print("given back", flush=True)
subprocess.run(use, check=True, capture_output=True)
print("again", flush=True)
sys.stdin.readline()
"""


def test_a_program_that_calls_by_subprocess(sc: Sc, source: str, disk: Disk) -> None:
    """A Python or R program that calls the command would lose its lease at once."""
    with start([PYTHON, "-c", PROGRAM, source]) as job:
        assert heard(job) == "ACGT"
        assert f"process {job.pid} " in sc("why", "ref.fa").out
        say(job)
        assert heard(job) == "given back"
        assert disk.leases() == []
        assert heard(job) == "again"
        assert sc("reap").out == "ended 0 leases\n"
        say(job)
        assert finish(job).code == 0
    assert sc("reap").out.endswith("ended 1 lease\n")


def test_a_program_that_calls_in_a_thread(sc: Sc, source: str, disk: Disk) -> None:
    """A workflow engine that starts commands from threads would hold leases of threads that end."""
    program = textwrap.indent(PROGRAM, "    ")
    program = f"import threading\ndef work():{program}\nt = threading.Thread(target=work); t.start(); t.join()"
    with start([PYTHON, "-c", program, source]) as job:
        assert heard(job) == "ACGT"
        assert sc("reap").out == "ended 0 leases\n"
        say(job)
        assert heard(job) == "given back"
        assert heard(job) == "again"
        say(job)
        finish(job)
    assert sc("reap").out.endswith("ended 1 lease\n")


@pytest.mark.parametrize("interpreter", SHELLS[1:2])
def test_a_program_that_calls_through_a_shell(interpreter: str, sc: Sc, source: str, disk: Disk) -> None:
    """`subprocess.run("sc-dtool use X", shell=True)`, R's `system()` or a recipe of make would get a path whose
    lease has ended already.
    """
    program = PROGRAM.replace("use = [", "use = [sys.argv[2], '-c', ' '.join([").replace(
        "argv[1]]\n", "argv[1]])]\n", 1
    )
    with start([PYTHON, "-c", program, source, *_there(interpreter)]) as job:
        assert heard(job) == "ACGT"
        assert sc("reap").out == "ended 0 leases\n"


def test_a_background_that_outlives_its_script_keeps_its_data(sc: Sc, source: str, disk: Disk, tmp_path: Path) -> None:
    """What a script has left in the background would read while its data is deleted."""
    script = tmp_path / "job.sh"
    copy = f"exec 3<&0; (p=$(sc-dtool use {source}); echo $p; read line <&3; cat $p; read line <&3) &\nread line"
    script.write_text(copy)
    with start(["bash", str(script)]) as job:
        path = Path(heard(job))
        job.send_signal(9)
        job.wait()
        assert sc("reap").out == "ended 0 leases\n"
        assert "which called for it" in sc("why", "ref.fa").out
        say(job)
        assert heard(job) == "ACGT"
        assert path.exists()
        say(job)
        said = wait_until(lambda: sc("reap").out.removeprefix("ended 0 leases\n"), "nobody is left, and it is kept")
    assert said.endswith("ended 1 lease\n")
    assert disk.leases() == disk.holders() == []


def test_the_death_of_a_script_is_seen(sc: Sc, source: str, disk: Disk) -> None:
    """A job that is killed would keep its data in the cache for ever."""
    with start(["bash", "-c", f"p=$(sc-dtool use {source}); echo $p; read line"]) as job:
        heard(job)
        job.kill()
        job.wait()
        assert sc("reap", "-n").out.endswith("would end 1 lease\n")
        assert len(disk.leases()) == 1
        done = sc("reap")
    assert f"process {job.pid} of this boot is gone" in done.out
    assert disk.leases() == disk.holders() == []


def test_a_script_that_nobody_has_waited_for_is_dead(sc: Sc, source: str, disk: Disk) -> None:
    """A job whose parent does not wait for it, a zombie, would keep its data in the cache."""
    with start(["bash", "-c", f"p=$(sc-dtool use {source}); echo $p; read line"]) as job:
        heard(job)
        job.kill()
        assert job.stdout is not None
        assert job.stdout.read() == ""  # it has ended, and we have not called wait()
        said = wait_until(lambda: sc("reap").out.removeprefix("ended 0 leases\n"), "a zombie is taken for alive")
    assert "zombie" in said or "is gone" in said
    assert disk.leases() == []


def test_a_process_that_is_named_holds(sc: Sc, source: str, disk: Disk) -> None:
    """`--holder pid:$$` would hold for somebody else, or for nobody."""
    with start(["cat"]) as job:
        assert sc("use", "--holder", f"pid:{job.pid}", source).code == 0
        assert sc("reap").out == "ended 0 leases\n"
        assert sc("unuse", "--holder", f"pid:{job.pid}", source).err == ""
        assert disk.leases() == []
        sc("use", "--holder", f"pid:{job.pid}", source)
        finish(job)
    assert sc("reap").out.endswith("ended 1 lease\n")


def test_a_name_holds_until_it_is_released(sc: Sc, source: str, disk: Disk) -> None:
    """A workflow of many processes could not hold a lease in one name."""
    assert sc("use", "--holder", "workflow 7", source).code == 0
    assert sc("reap").out == "ended 0 leases\n"
    assert "holder 'workflow 7'" in sc("why", "ref.fa").out
    assert sc("unuse", "--holder", "workflow 7", source).err == ""
    assert disk.leases() == []
