"""`run`: a command under a lease; real processes, real signals, a real terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import (
    PATIENCE,
    PYTHON,
    SC_DTOOL,
    Disk,
    Done,
    call,
    config,
    finish,
    heard,
    one_line_error,
    shell,
    start,
    wait_until,
)
from httpserver import Server

Sc = Callable[..., Done]

#: A command that says when it is there, and then which signal it got.
CATCHER = """
import signal, sys
caught = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU}
signal.pthread_sigmask(signal.SIG_BLOCK, caught)
print("ready", flush=True)
number = signal.sigwait(caught)
print(signal.Signals(number).name, flush=True)
sys.exit(40)
"""

#: A command that goes on until its standard input ends.
WAITER = "echo $$; read line; echo over"


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_passed_on(source: str, code: int) -> None:
    """A batch system would take a failed job for a good one."""
    assert call("run", source, "--", "sh", "-c", f"exit {code}").code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_signal_is_128_and_its_number(source: str, number: int) -> None:
    """A command that was killed would look like one that ended well."""
    assert call("run", source, "--", "sh", "-c", f"kill -{int(number)} $$").code == 128 + number


def test_whoever_ignores_the_end_of_children_is_no_hindrance(source: str) -> None:
    """Below a daemon that ignores SIGCHLD `run` would wait for ever for a command that has ended."""
    ignore = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    assert shell([PYTHON, "-c", ignore, SC_DTOOL, "run", source, "--", "sh", "-c", "exit 7"]).code == 7


def test_the_path_is_in_braces_and_in_the_environment(source: str) -> None:
    """A command could not find what the lease is on."""
    done = call("run", source, "--", "sh", "-c", 'echo "{}"; echo "$SC_DTOOL_PATH"; cat {}; echo --in={}')
    first, second, text, option = done.out.splitlines()
    assert first == second
    assert text == "ACGT"
    assert option == f"--in={first}"


def test_input_and_output_are_the_commands(source: str) -> None:
    """`sc-dtool run … -- cmd < in > out` would mix words of ours into a result."""
    done = call("run", source, "--", "cat", input="from stdin\n")
    assert done == Done(0, "from stdin\n", "")


def test_options_after_the_dashes_are_the_commands(source: str) -> None:
    """A command's own -n or --help would be taken for ours."""
    assert call("run", source, "--", "echo", "-n", "--help", "-f", "json").out == "--help -f json"


def test_a_second_pair_of_dashes_is_the_commands(source: str) -> None:
    """`run X -- git log -- file` would lose its dashes."""
    assert call("run", source, "--", "echo", "a", "--", "b").out == "a -- b\n"


def test_a_command_that_is_not_there(source: str, disk: Disk) -> None:
    """A mistyped command would leave a lease behind, or a traceback."""
    done = call("run", source, "--", "no-such-command", "x")
    assert done.code == 127
    assert one_line_error(done) == "Error: cannot run no-such-command: No such file or directory"
    assert disk.leases() == disk.holders() == []


def test_a_command_that_cannot_be_run(source: str, disk: Disk) -> None:
    """A script without its execute bit would look like one that is not there."""
    done = call("run", source, "--", source)
    assert done.code == 126
    assert one_line_error(done) == f"Error: cannot run {source}: Permission denied"
    assert disk.leases() == disk.holders() == []


def test_no_command_is_a_usage_error(sc: Sc, source: str) -> None:
    """`run X` without a command would take a lease and do nothing."""
    for words in (["run", source], ["run", source, "--"]):
        done = sc(*words)
        assert done.code == 2
        assert "-- COMMAND" in done.err


def test_what_cannot_be_fetched_starts_no_command(source: str, disk: Disk, tmp_path: Path) -> None:
    """A command would run on data that is not there."""
    done = call("run", f"{source}.missing", "--", "touch", tmp_path / "started")
    assert done.code == 12
    assert not (tmp_path / "started").exists()
    assert disk.left() == []


def test_the_lease_is_held_while_it_runs_and_gone_after(source: str, disk: Disk) -> None:
    """The data could be deleted under the command, or would be kept for ever after."""
    with start([SC_DTOOL, "run", source, "--", "sh", "-c", WAITER]) as running:
        heard(running)
        (lease,) = disk.leases()
        assert lease.name.startswith("r")
        assert call("reap").out == "ended 0 leases\n"
        assert call("clean", "--all", "-y").code == 0
        assert len(disk.copies()) == 1
        assert finish(running).code == 0
    assert disk.leases() == disk.holders() == []
    (use,) = call("-f", "json", "log").rows("use")
    assert use["how"] == "released"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU])
def test_signals_sent_to_us_reach_the_command(source: str, disk: Disk, number: signal.Signals) -> None:
    """A batch system's SIGTERM would kill us, and leave the command without a lease or a chance to save its work."""
    with start([SC_DTOOL, "run", source, "--", PYTHON, "-c", CATCHER]) as running:
        assert heard(running) == "ready"
        os.kill(running.pid, number)
        assert heard(running) == number.name
        assert finish(running).code == 40
    assert disk.leases() == disk.holders() == []


COUNTER = """
import signal, sys
got = []
signal.signal(signal.SIGINT, lambda *_: (got.append(1), print("interrupts:", len(got), flush=True)))
signal.signal(signal.SIGUSR1, lambda *_: (print("in all:", len(got), flush=True), sys.exit(0)))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGUSR1})
print("ready", flush=True)
while True:
    signal.sigtimedwait([signal.SIGUSR2], 0.01)
"""


def test_ctrl_c_on_a_terminal_is_delivered_once(source: str) -> None:
    """A command that asks "really?" at the first Ctrl-C would be gone before anybody can answer."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(SC_DTOOL, [SC_DTOOL, "run", source, "--", PYTHON, "-c", COUNTER])
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        shown = b""

        def shows(pattern: bytes) -> bytes:
            nonlocal shown
            while not (match := re.search(pattern, shown)):
                shown += screen.read(1000)
            return match[0]

        shows(b"ready")
        os.write(terminal, b"\x03")
        shows(b"interrupts: 1")
        os.kill(pid, signal.SIGUSR1)  # is passed on after a SIGINT that were to be passed on
        assert shows(rb"in all: \d+") == b"in all: 1"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_holder_shows_a_heartbeat(sc: Sc, source: str, disk: Disk) -> None:
    """Other hosts would take a long command for dead, and delete what it reads."""
    sc("init")
    config(disk.root, '[lease]\nheartbeat_ttl = "1s"\n')
    with start([SC_DTOOL, "run", source, "--", "sh", "-c", WAITER]) as running:
        heard(running)
        (first,) = disk.holders()
        beats = int(first.name.split(".")[1])

        def later() -> bool:
            return any(int(path.name.split(".")[1]) >= beats + 2 for path in disk.holders())

        wait_until(later, "no heartbeat")
        assert finish(running).code == 0
    assert disk.holders() == []


def test_the_lease_outlives_us_for_the_command(source: str, disk: Disk) -> None:
    """An out-of-memory killer that takes us would let the data be deleted under the command, which goes on."""
    with start([SC_DTOOL, "run", source, "--", "sh", "-c", WAITER]) as running:
        command = int(heard(running))
        running.kill()
        assert running.wait(PATIENCE) == -signal.SIGKILL
        assert os.path.exists(f"/proc/{command}")
        assert call("reap").out == "ended 0 leases\n"
        why = call("-f", "json", "why", "ref.fa").row("lease")
        assert why["verdict"] == "alive"
        assert str(command) in why["evidence"]
        assert call("rm", "ref.fa").code == 14
        finish(running)  # its input ends, and so does the command
    wait_until(lambda: call("reap").out.endswith("ended 1 lease\n"), "the lease of a command that has ended")
    assert disk.leases() == disk.holders() == []
    (use,) = call("-f", "json", "log").rows("use")
    assert use["how"] == "reaped"


def _revoke(disk: Disk) -> None:
    """What a reaper on another host does; a heartbeat may come first."""

    def once() -> bool:
        (holder,) = disk.holders()
        try:
            holder.rename(disk.control / "holders" / "gone" / holder.name)
        except FileNotFoundError:
            return False
        return True

    wait_until(once, "the holder beats too fast")


def test_a_lost_lease_ends_the_command(sc: Sc, source: str, disk: Disk) -> None:
    """A command would go on reading what is being deleted, and write wrong results."""
    sc("init")
    config(disk.root, '[lease]\nheartbeat_ttl = "1s"\n')
    with start([SC_DTOOL, "run", source, "--", PYTHON, "-c", CATCHER]) as running:
        assert heard(running) == "ready"
        _revoke(disk)
        assert heard(running) == "SIGTERM"
        done = finish(running)
    assert done.code == 75
    assert "were revoked" in one_line_error(done)
    assert disk.leases() == []


def test_a_command_may_go_on_without_its_lease(sc: Sc, source: str, disk: Disk) -> None:
    """`--keep-going` would not keep going, or keep silent about the loss."""
    sc("init")
    config(disk.root, '[lease]\nheartbeat_ttl = "1s"\n')
    with start([SC_DTOOL, "run", "--keep-going", source, "--", "sh", "-c", WAITER + "; exit 9"]) as running:
        heard(running)
        _revoke(disk)
        assert running.stderr is not None
        assert "were revoked" in running.stderr.readline()
        done = finish(running)
    assert done.out == "over\n"
    assert done.code == 9


def test_sigterm_during_the_download_starts_no_command(server: Server, disk: Disk, tmp_path: Path) -> None:
    """A job that is cancelled while it downloads would start its command all the same, or leave a process behind."""
    url = server.page("/ref.fa", b"ACGT\n" * 1000, stall_after=100)
    with start([SC_DTOOL, "run", url, "--", "touch", str(tmp_path / "started")]) as running:
        server.wait_for_gets("/ref.fa")
        running.terminate()
        done = finish(running)
    assert done.code == 128 + signal.SIGTERM
    assert "Traceback" not in done.err
    assert not (tmp_path / "started").exists()
    assert disk.left() == []


def test_no_process_is_left_when_the_lease_cannot_be_had(source: str, disk: Disk) -> None:
    """The process that waits to become the command would hang about after an error, and keep the pipes open."""
    with start([SC_DTOOL, "run", f"{source}.missing", "--", "cat"], stdin=subprocess.PIPE) as running:
        done = finish(running)  # returns only when nobody has the pipe any more
    assert done.code == 12


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM", "USR1"])
def test_ignored_signals_stay_ignored_for_the_command(source: str, name: str) -> None:
    """Under `nohup`, or in the background of a script, the command would die of what it was to be spared."""
    command = f"kill -{name} $$; echo survived"
    done = shell(["sh", "-c", f"trap '' {name}; exec sc-dtool run {source} -- sh -c '{command}'"])
    assert done == Done(0, "survived\n", "")
