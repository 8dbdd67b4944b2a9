"""On whose behalf a command line runs."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from faults import FakeProc
from sccache_dtool.errors import UsageError
from sccache_dtool.liveness.ancestors import DAEMONS, Caller, find_owner
from sccache_dtool.liveness.caller import CALLER, NAMED, PROGRAM, owner_from, owners_from, process_owner, program_owner
from sccache_dtool.liveness.process import Proc


@pytest.fixture
def chain(proc: FakeProc) -> Callable[..., int]:
    """Runs programs, each the child of the one before, the first of `init`; returns the last one's number."""

    def make(*programs: str | list[str]) -> int:
        proc.add(1, "systemd", parent=0)
        pid = 1
        for number, program in enumerate(programs, 100):
            words = program.split() if isinstance(program, str) else program
            command = words[0].rpartition("/")[2][:15] if words else "(none)"
            pid = proc.add(number, command, parent=pid, words=words)
        return pid

    return make


def holds(found: Caller | None) -> int | None:
    """The number of the owner that was found."""
    return None if found is None else found.pid


def test_the_caller_holds(proc: FakeProc, chain: Callable[..., int]) -> None:
    """A lease would end with `sc-dtool use` itself, and protect nothing."""
    assert holds(find_owner(proc, chain("sshd: ada", "bash", "/bin/sh job.sh"))) == 102


@pytest.mark.parametrize(
    "wrappers",
    [
        ["timeout 60 sc-dtool use x"],
        ["env A=1 sc-dtool use x"],
        ["nice -n 19 sc-dtool use x"],
        ["sudo -u ada sc-dtool use x"],
        ["nohup sc-dtool use x"],
        ["time sc-dtool use x"],
        ["uv run sc-dtool use x"],
        [
            "sudo timeout 9 env nice sc-dtool use x",
            "timeout 9 env nice sc-dtool use x",
            "env nice sc-dtool use x",
            "nice sc-dtool use x",
        ],
        ["su ada", "setsid -w sc-dtool use x", "stdbuf -oL sc-dtool use x", "systemd-inhibit sc-dtool use x"],
    ],
)
def test_wrappers_hold_nothing(proc: FakeProc, chain: Callable[..., int], wrappers: list[str]) -> None:
    """`timeout 60 sc-dtool use` would take a lease that ends at once."""
    assert holds(find_owner(proc, chain("sshd: ada", "/bin/sh job.sh", *wrappers))) == 101


def test_a_script_between_wrappers_holds(proc: FakeProc, chain: Callable[..., int]) -> None:
    """A lease taken in a script would be held by a process above it, and outlive the script's job."""
    assert (
        holds(find_owner(proc, chain("bash", "timeout 60 ./job.sh", "/bin/bash ./job.sh", "env sc-dtool use x"))) == 102
    )


def test_forked_copies_of_a_shell_hold_nothing(proc: FakeProc, chain: Callable[..., int]) -> None:
    """`p=$(sc-dtool use x)` would take a lease that ends with the closing bracket."""
    assert holds(find_owner(proc, chain("sshd: ada", "bash job.sh 7", "bash job.sh 7", "bash job.sh 7"))) == 101


def test_forked_copies_and_wrappers_mix(proc: FakeProc, chain: Callable[..., int]) -> None:
    """`p=$(timeout 60 sc-dtool use x)` would take a lease that ends at once."""
    assert holds(find_owner(proc, chain("bash job.sh", "bash job.sh", "timeout 60 sc-dtool use x"))) == 100


@pytest.mark.parametrize(
    ("line", "owner"),
    [
        ("sc-dtool use x", 100),
        ("sc-dtool use x > path 2>&1", 100),
        ("sc-dtool use x &> path", 100),
        ("sc-dtool use 'https://example.org/x?a=1&b=2'", 100),
        ('sc-dtool use "https://example.org/x?a=1&b=2"', 100),
        ("sc-dtool use x | xargs align", 100),
        ("sc-dtool use x && align", 101),
        ("sc-dtool use x 2>&1 && align", 101),
        ("sc-dtool use x & align", 101),
        ('align "$(sc-dtool use x)"', 101),
        ("sc-dtool use x; align", 101),
    ],
)
def test_a_shell_for_one_command_holds_nothing(
    proc: FakeProc, chain: Callable[..., int], line: str, owner: int
) -> None:
    """A program that calls through a shell would get a path whose lease has ended already."""
    assert holds(find_owner(proc, chain("python program.py", ["sh", "-c", line]))) == owner


@pytest.mark.parametrize("wrapper", ["conda", "mamba", "micromamba"])
def test_a_script_that_a_wrapper_has_written_holds_nothing(
    proc: FakeProc, chain: Callable[..., int], wrapper: str
) -> None:
    """`conda run sc-dtool use` would give a path whose lease has ended already."""
    wrappers = f"{wrapper} run -n env sc-dtool use x", "/bin/bash /tmp/tmpm8b8i0r3"
    assert holds(find_owner(proc, chain("bash job.sh", *wrappers))) == 100
    assert holds(find_owner(proc, chain("bash", *wrappers, "bash job.sh"))) == 103


def test_who_is_passed_over_is_told(proc: FakeProc, chain: Callable[..., int]) -> None:
    """A shell's copy in the background, which outlives its script, would lose what it reads."""
    last = chain("bash job.sh", "bash job.sh", "bash job.sh", "timeout 60 sc-dtool use x")
    assert find_owner(proc, last) == Caller(100, (103, 102, 101))


def test_the_same_script_with_other_words_is_no_copy(proc: FakeProc, chain: Callable[..., int]) -> None:
    """A script that calls itself for each sample would hold all leases until the whole run ends."""
    assert holds(find_owner(proc, chain("bash job.sh all", "bash job.sh one"))) == 101


def test_processes_without_a_command_line_are_no_copies(proc: FakeProc, chain: Callable[..., int]) -> None:
    """Processes whose command line is empty or hidden would be taken for copies of each other."""
    assert holds(find_owner(proc, chain([], []))) == 101


def test_nobody_is_found_where_an_ancestor_is_hidden(proc: FakeProc, chain: Callable[..., int]) -> None:
    """A lease would be given to some process further up that has nothing to do with it."""
    last = chain("bash", "timeout 60 sc-dtool use x")
    proc.end(100)
    assert find_owner(proc, last) is None


def test_no_endless_search(proc: FakeProc) -> None:
    """In a container whose first process is a wrapper every command would hang, or fail without a word."""
    proc.add(1, "timeout", parent=0)
    proc.add(50, "env", parent=1)
    assert find_owner(proc, 50) is None


def test_who_cannot_be_found_is_named_instead(monkeypatch: pytest.MonkeyPatch, proc: FakeProc) -> None:
    """A user in a container would be told that something failed, and not how to go on."""
    monkeypatch.setattr("os.getppid", lambda: 999)
    with pytest.raises(UsageError, match="cannot find a process") as caught:
        owner_from("auto", proc)
    assert "--holder NAME --ttl" in (caught.value.hint or "")


def test_auto_is_the_calling_process(
    monkeypatch: pytest.MonkeyPatch, proc: FakeProc, chain: Callable[..., int]
) -> None:
    """`unuse` in the same script would not find the lease that `use` took."""
    last = chain("sshd: ada", "bash job.sh", "timeout 9 sc-dtool use x")
    monkeypatch.setattr("os.getppid", lambda: last)
    owner = owner_from("auto", proc)
    assert owner.process == proc.identify(101)
    assert owner.between == (proc.identify(102),)
    assert owner.token == owner_from("pid:101", proc).token
    assert str(owner) == "process 101 (bash job.sh)"


@pytest.mark.parametrize("daemon", sorted(DAEMONS))
def test_a_daemon_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, proc: FakeProc, chain: Callable[..., int], warnings: list[str], daemon: str
) -> None:
    """A lease taken from cron would stay until the next boot without anybody having been told."""
    last = chain([daemon], "timeout 9 sc-dtool use x")
    monkeypatch.setattr("os.getppid", lambda: last)
    assert owner_from("auto", proc).process is not None
    assert daemon in warnings[0]
    assert "--ttl" in warnings[0]


def test_a_shell_that_became_us_gives_back_its_own(
    monkeypatch: pytest.MonkeyPatch, proc: FakeProc, chain: Callable[..., int]
) -> None:
    """`bash -c '...; sc-dtool unuse x'` would give nothing back, because the shell has become sc-dtool itself."""
    last = chain("sshd: ada", "bash job.sh")
    monkeypatch.setattr("os.getppid", lambda: last)
    processes = [owner.process.pid for owner in owners_from("auto", proc) if owner.process]
    assert processes == [os.getpid(), 101]
    assert len(owners_from("a name", proc)) == 1


@pytest.mark.parametrize("spec", ["pid:", "pid:x", "pid:-1", "pid:1.5", "pid:٣", "", "a\nb", "\x1b[2J", "x" * 101])
def test_what_is_no_holder_is_refused(proc: FakeProc, spec: str) -> None:
    """A slip of the pen would become a holder's name, whose lease nobody ever gives back."""
    with pytest.raises(UsageError):
        owner_from(spec, proc)


def test_a_process_that_cannot_be_seen_is_refused(proc: FakeProc) -> None:
    """A lease would be held by a process of which nobody can tell that it ended."""
    with pytest.raises(UsageError, match="cannot be seen"):
        owner_from("pid:31999", proc)


def test_names_are_holders_on_every_host(proc: FakeProc) -> None:
    """A workflow could not give back on one host what it took on another."""
    one, other = owner_from("run 7", proc), owner_from("run 7", Proc("/nothing"))
    assert one == other
    assert one.kind is NAMED
    assert one.token == other.token
    assert one.token != owner_from("run 8", proc).token


def test_owners_of_different_kinds_do_not_share_leases(proc: FakeProc) -> None:
    """A program's `sc-dtool unuse` could give back what the program itself holds."""
    assert program_owner(proc).process == process_owner(CALLER, proc, os.getpid()).process
    assert program_owner(proc).prefix != process_owner(CALLER, proc, os.getpid()).prefix


def test_a_number_used_again_is_another_owner(proc: FakeProc) -> None:
    """A script could give back, or believe to hold, what a dead one with its number held."""
    before = process_owner(CALLER, proc, proc.add(300, "bash", start=5)).prefix
    assert process_owner(CALLER, proc, proc.add(300, "bash", start=6)).prefix != before


def test_where_processes_cannot_be_told_apart_a_program_has_a_name_of_its_own() -> None:
    """Two programs on hosts without /proc would be one holder, and end each other's leases."""
    nowhere = Proc("/nothing")
    assert program_owner(nowhere).kind is PROGRAM
    assert program_owner(nowhere).token != program_owner(nowhere).token
