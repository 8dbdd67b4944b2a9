"""`run`: a command under a lease; real processes, real signals, a real terminal."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import PYTHON, SC_DTOOL, Disk, Done, call, config, finish, heard, one_line_error, say, shell, start
from httpserver import Server
from sccache_dtool.cli.child import Child
from waiting import PATIENCE, wait_until

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
    done = call("run", source, "--", "sh", "-c", 'echo "$1"; echo "$SC_DTOOL_PATH"; cat "$2"', "sh", "{}", "{}")
    first, second, text = done.out.splitlines()
    assert first == second
    assert text == "ACGT"


@pytest.mark.parametrize("name", ["two words", "it's", '"; touch owned; "', "$(touch owned)", "{}", "-n"])
def test_a_name_never_becomes_a_part_of_a_script(tmp_path: Path, name: str) -> None:
    """A file with a space in its name would break a script, and one with a quote would run as a command."""
    (tmp_path / name).write_text("ACGT\n")
    script = 'test -z "{}" || printf "%s" {} && cat "$SC_DTOOL_PATH"'
    done = call("run", f"./{name}", "--", "sh", "-c", script, "{}", "--in={}", cwd=tmp_path)
    assert (done.code, done.out) == (0, "{}ACGT\n")
    assert call("run", f"./{name}", "--", "cat", "--", "{}", cwd=tmp_path).out == "ACGT\n"
    assert not (tmp_path / "owned").exists()


def test_another_marker_can_be_chosen(source: str) -> None:
    """An argument that must stay {}, as of `find -exec` or `xargs`, could not be given."""
    echo = ["--", "echo", "{}", "@", "x@"]
    assert re.fullmatch(r"/\S+/ref\.fa @ x@\n", call("run", source, *echo).out)
    assert re.fullmatch(r"\{\} /\S+/ref\.fa x@\n", call("run", "-I", "@", source, *echo).out)
    assert call("run", "-I", "", source, *echo, "").out == "{} @ x@ \n"


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


# -- the exit code is the command's, whatever happens beside it --------------------------------------------------------


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _stopped_when_the_command_ended(running: subprocess.Popen[str]) -> None:
    """Wait for a `run` whose command has stopped it, and ended since."""
    wait_until(lambda: _state(running.pid) == "T", "run is stopped")
    (command,) = _children(running.pid)
    wait_until(lambda: _state(command) == "Z", "the command has ended")


@pytest.mark.parametrize("code", [0, 7])
def test_a_cleaner_that_sees_the_end_first_changes_nothing(source: str, disk: Disk, code: int) -> None:
    """A command that has read all it wanted, and succeeded, would be reported as one that has lost its data."""
    with start([SC_DTOOL, "run", source, "--", "sh", "-c", f"kill -STOP $PPID; exit {code}"]) as running:
        _stopped_when_the_command_ended(running)
        assert call("clean", "--all", "-y").code == 0
        assert disk.leases() == disk.copies() == []
        os.kill(running.pid, signal.SIGCONT)
        done = finish(running)
    assert done.code == code
    assert "revoked" not in done.err
    assert disk.holders() == []


def test_a_loss_that_was_not_noticed_before_the_end_is_reported(sc: Sc, source: str, disk: Disk) -> None:
    """After a host was suspended, nobody would hear that the data may have been deleted while it was read."""
    config(disk.root, '[lease]\nheartbeat_ttl = "1s"\n')
    command = "kill -STOP $PPID; read line; exit 9"
    with start([SC_DTOOL, "run", source, "--", "sh", "-c", command]) as running:
        wait_until(lambda: _state(running.pid) == "T", "run is stopped")
        _revoke(disk)
        (lease,) = disk.leases()
        lease.rename(lease.parents[2] / "history" / f"{lease.name}~{int(time.time() * 1000)}~reaped")
        (holder,) = (disk.control / "holders" / "gone").iterdir()
        wait_until(lambda: time.time() > int(holder.name.rsplit(".", 1)[1]) + 1, "its lifetime has passed")
        say(running)
        _stopped_when_the_command_ended(running)
        os.kill(running.pid, signal.SIGCONT)
        done = finish(running)
    assert done.code == 9
    assert "were revoked" in one_line_error(done)


def test_signals_after_the_end_do_not_take_its_place(source: str, disk: Disk) -> None:
    """A Ctrl-C, or the end of a job, that comes while the lease is given back would make a failure of a success."""
    with start([SC_DTOOL, "run", source, "--", "sh", "-c", "kill -STOP $PPID; exit 7"]) as running:
        _stopped_when_the_command_ended(running)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(running.pid, number)
        os.kill(running.pid, signal.SIGCONT)
        assert finish(running).code == 7
    assert disk.leases() == disk.holders() == []


#: Puts a file in the place of the history, so that no lease can be moved there.
NO_HISTORY = 'h=${SC_DTOOL_PATH%/*/*/*}/history; rmdir "$h" && touch "$h"; exit '


@pytest.mark.parametrize("code", [0, 7])
@pytest.mark.parametrize("stderr", ["", "2>/dev/full", "2>&-", "2>&1 | true"])
def test_a_lease_that_cannot_be_given_back(source: str, disk: Disk, code: int, stderr: str) -> None:
    """A quota, or a file server that is away, would turn the exit code of a long computation into another."""
    line = f'sc-dtool run "$0" -- sh -c "$1" {stderr}; exit ${{PIPESTATUS:-$?}}'
    done = shell(["bash", "-c", line, source, f"{NO_HISTORY}{code}"])
    assert done.code == code
    if not stderr:
        assert "Error: could not release the lease" in done.err
        assert "/history" in done.err
        assert "hint: " in done.err
    (lease,) = disk.leases()
    history = lease.parents[2] / "history"
    history.unlink()
    assert call("reap").out.endswith("ended 1 lease\n")


def test_a_command_that_is_stopped_has_not_ended(source: str, disk: Disk) -> None:
    """The data of a command that a batch system has suspended would be given back."""
    with start([SC_DTOOL, "run", source, "--", "sh", "-c", "kill -STOP $$; exit 5"]) as running:
        (command,) = wait_until(lambda: _children(running.pid), "the command starts")
        wait_until(lambda: _state(command) == "T", "the command is stopped")
        assert len(disk.leases()) == 1
        os.kill(command, signal.SIGCONT)
        assert finish(running).code == 5
    assert disk.leases() == []


def test_a_signal_to_the_whole_process_group(source: str, disk: Disk) -> None:
    """What `timeout`, or a shell, sends to all of a job would end us before the command."""
    words = [SC_DTOOL, "run", source, "--", PYTHON, "-c", CATCHER]
    with start(words, start_new_session=True) as running:
        assert heard(running) == "ready"
        os.killpg(running.pid, signal.SIGTERM)
        assert heard(running) == "SIGTERM"
        assert finish(running).code == 40
    assert disk.leases() == disk.holders() == []


def test_what_the_command_sends_is_not_sent_back(source: str) -> None:
    """A script with `trap 'kill 0' TERM` would be sent its own signal again and again."""
    sender = CATCHER.replace('print("ready"', 'import os; os.kill(os.getppid(), signal.SIGTERM); print("ready"')
    with start([SC_DTOOL, "run", source, "--", PYTHON, "-c", sender]) as running:
        assert heard(running) == "ready"
        os.kill(running.pid, signal.SIGXCPU)  # is passed on after a SIGTERM that were to be passed on
        assert heard(running) == "SIGXCPU"
        assert finish(running).code == 40


#: Runs a command with a thread that takes whatever signals it can, while the main thread is not waiting for any.
WITH_A_THREAD = """
import os, signal, sys, threading
from sccache_dtool.cli import child, main

thread = threading.Thread(target=threading.Event().wait, daemon=True)
thread.start()
wait, first = signal.sigtimedwait, True

def late(watched, timeout):
    global first
    if first:
        first = False
        meanwhile()
    return wait(watched, 0.001)

def the_command_ends():
    os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)

def the_thread_takes_a_signal():
    signal.pthread_kill(thread.ident, signal.SIGTERM)

meanwhile = {0}
signal.sigtimedwait = late
command = child.Child()
try:
    sys.exit(command.run(["sh", "-c", {1!r}], {{}}, lambda: None))
finally:
    command.close()
"""


def test_a_thread_that_takes_the_news_of_the_end() -> None:
    """A library that leaves a thread behind, as fsspec does, would let `run` wait for ever."""
    done = shell([PYTHON, "-c", WITH_A_THREAD.format("the_command_ends", "exit 7")])
    assert done == Done(7, "", "")


def test_a_thread_that_takes_a_signal_for_the_command() -> None:
    """The batch system's SIGTERM would end us, and leave the command without a lease."""
    done = shell([PYTHON, "-c", WITH_A_THREAD.format("the_thread_takes_a_signal", "exec sleep 60")])
    assert done == Done(128 + signal.SIGTERM, "", "")


def test_threads_that_are_left_behind_are_not_waited_for() -> None:
    """A download that hangs in a library's thread would keep `run`, and its exit code, for ever."""
    script = "import threading\nfrom sccache_dtool.cli.main import main\n"
    script += "main(lambda words: threading.Thread(target=threading.Event().wait).start() or 7)"
    assert shell([PYTHON, "-c", script]) == Done(7, "", "")


def test_a_command_that_is_killed_before_it_starts() -> None:
    """An out-of-memory killer that takes it would leave an exit code that says nothing."""
    child = Child()
    os.kill(child.pid, signal.SIGKILL)
    try:
        assert child.run(["true"], {}, lambda: None) == 128 + signal.SIGKILL
    finally:
        child.close()
        child.restore()


def test_a_command_that_may_not_be_signalled_goes_on(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    """A signal for a command under sudo would end us instead, and leave it without a lease."""
    child = Child()
    monkeypatch.setattr(os, "kill", _refuse)
    child.send_signal(signal.SIGTERM)
    monkeypatch.undo()
    assert warnings == ["cannot send SIGTERM to the command: Operation not permitted"]
    child.close()


def _refuse(pid: int, number: int) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_machine_without_another_process(sc: Sc, source: str, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could tell what is "temporarily unavailable"."""

    def no_fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", no_fork)
    done = sc("run", source, "--", "true")
    assert done.code == 1
    assert one_line_error(done).startswith("Error: cannot start a process for the command: Resource temporarily")


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
    assert done.code == 40
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
