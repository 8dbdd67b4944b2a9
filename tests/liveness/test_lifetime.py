"""Lapsed lifetimes: the two proofs, and everything that is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults import FakeClock
from sccache_dtool.disk.names import HolderName
from sccache_dtool.liveness import State, Verdict, lifetime
from sccache_dtool.liveness.lifetime import MARGIN, Memory, mount_type

ID = "r0123456789ab-0123456789ab"
TTL = 3600.0
END = 1_800_000_000


def judge(
    clock: FakeClock,
    *,
    ttl: float | None = TTL,
    memory: Memory | None = None,
    server: float | None = None,
    wall: float = END - 1000.0,
    end: int = END,
    beats: int = 1,
) -> Verdict:
    return lifetime.judge(HolderName(ID, beats, end), ttl, memory or Memory(None, clock), server, wall)


def test_without_a_lifetime_nothing_lapses(clock: FakeClock) -> None:
    """A lease that is to last until its process ends would be ended by the clock."""
    memory = Memory(None, clock)
    judge(clock, ttl=None, memory=memory)
    clock.let_pass(10**9)
    assert judge(clock, ttl=None, memory=memory, server=10.0**12, wall=10.0**12, end=0).state is State.UNKNOWN


# -- a fixed end -------------------------------------------------------------------------------------------------------


def test_an_end_passed_on_both_clocks_is_proof(clock: FakeClock) -> None:
    """Leases of jobs on hosts that crashed would stay for ever."""
    late = END + MARGIN + 1
    assert judge(clock, server=late, wall=late).state is State.DEAD


@pytest.mark.parametrize(
    ("server", "wall"),
    [
        (END + MARGIN, END + MARGIN),
        (END + MARGIN - 1, END + 10**6),
        (END + 10**6, END + MARGIN - 1),
        (END + 10**6, 0.0),
    ],
)
def test_an_end_not_passed_on_both_clocks_with_a_margin_is_none(clock: FakeClock, server: float, wall: float) -> None:
    """One clock that is wrong, a server's or a cleaner's, would end every lease there is."""
    assert judge(clock, server=server, wall=wall).state is State.UNKNOWN


def test_no_end_is_looked_at_where_there_is_no_one_clock(clock: FakeClock) -> None:
    """On Lustre or GPFS, where times come from clients, a client whose clock is ahead would end all leases."""
    assert judge(clock, server=None, wall=END + 10.0**6).state is State.UNKNOWN


def test_an_open_end_never_passes(clock: FakeClock) -> None:
    """A holder that has not shown its first heartbeat would be dead at birth."""
    assert judge(clock, end=0, server=10.0**11, wall=10.0**11).state is State.UNKNOWN


# -- observation -------------------------------------------------------------------------------------------------------


def test_silence_for_a_whole_lifetime_is_proof(clock: FakeClock) -> None:
    """On Lustre or GPFS leases of hosts that crashed would stay for ever."""
    memory = Memory(None, clock)
    assert judge(clock, memory=memory).state is State.UNKNOWN
    clock.let_pass(TTL + MARGIN + 1)
    assert judge(clock, memory=memory).state is State.DEAD


def test_silence_not_longer_than_lifetime_and_margin_is_none(clock: FakeClock) -> None:
    """A holder would be taken for dead in the moment of its next heartbeat."""
    memory = Memory(None, clock)
    judge(clock, memory=memory)
    clock.let_pass(TTL + MARGIN)
    assert judge(clock, memory=memory).state is State.UNKNOWN


def test_a_heartbeat_begins_a_new_observation(clock: FakeClock) -> None:
    """A job that runs longer than one lifetime would lose its leases although it beats."""
    memory = Memory(None, clock)
    judge(clock, memory=memory)
    clock.let_pass(TTL)
    assert judge(clock, memory=memory, beats=2).state is State.UNKNOWN
    clock.let_pass(TTL)
    assert judge(clock, memory=memory, beats=2).state is State.UNKNOWN


def test_observation_goes_on_in_the_next_run(tmp_path: Path, clock: FakeClock) -> None:
    """A cron job, which looks once a day, would never prove anything."""
    path = str(tmp_path / "state" / "seen.json")
    for passed, state in ((0.0, State.UNKNOWN), (TTL, State.UNKNOWN), (TTL, State.DEAD)):
        clock.let_pass(passed)
        memory = Memory(path, clock)
        with memory.remembered():
            assert judge(clock, memory=memory).state is state


def test_without_a_file_observation_ends_with_the_run(clock: FakeClock) -> None:
    """A run without a memory would take its first look for the second."""
    for _ in range(2):
        memory = Memory(None, clock)
        with memory.remembered():
            assert judge(clock, memory=memory).state is State.UNKNOWN
        clock.let_pass(10 * TTL)


def test_a_file_that_cannot_be_kept_is_done_without(tmp_path: Path, clock: FakeClock) -> None:
    """A user without a home directory could not clean at all."""
    (tmp_path / "file").touch()
    memory = Memory(str(tmp_path / "file" / "seen.json"), clock)
    with memory.remembered():
        assert judge(clock, memory=memory).state is State.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "[" * 100_000,
        '{"%s": 1e999}',
        '{"%s": NaN}',
        '{"%s": -1e9}',
        '{"%s": 1%s}',
        '{"%s": "x"}',
        '{"%s": null}',
        '{"%s": [1]}',
        '{"%s": 1e15}',
    ],
)
def test_a_damaged_memory_proves_nothing(tmp_path: Path, clock: FakeClock, text: str) -> None:
    """A half-written file of observations would end leases, or all commands."""
    path = tmp_path / "seen.json"
    path.write_text(text.replace("%s", str(HolderName(ID, 1, END))))
    memory = Memory(str(path), clock)
    with memory.remembered():
        assert judge(clock, memory=memory).state is State.UNKNOWN
    json.loads(path.read_text())


def test_who_has_gone_is_forgotten(tmp_path: Path, clock: FakeClock) -> None:
    """The file of observations would grow with every job there ever was."""
    path = tmp_path / "seen.json"
    memory = Memory(str(path), clock)
    with memory.remembered():
        memory.unchanged_for("gone")
        memory.unchanged_for("here")
        memory.forget_unless({"here", "never seen"}.__contains__)
    assert list(json.loads(path.read_text())) == ["here"]


def test_files_of_boots_that_are_over_are_removed(tmp_path: Path, clock: FakeClock) -> None:
    """Each boot of each node would leave a file in a user's home directory for ever."""
    names = {"seen-c1-boot1.json": 31, "elected-c1-boot1.json": 31, "seen-c1-boot2.json": 29, "notes.json": 31}
    for name, days in names.items():
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (time.time() - days * 86_400,) * 2)
    for _ in range(2):
        memory = Memory(str(tmp_path / "seen-c1-boot3.json"), clock)
        with memory.remembered():
            memory.unchanged_for("holder")
        assert sorted(os.listdir(tmp_path)) == ["lock", "notes.json", "seen-c1-boot2.json", "seen-c1-boot3.json"]


def test_without_a_directory_for_temporary_files_it_goes_on(tmp_path: Path) -> None:
    """On a node whose disks are full no command would do anything but fail."""
    script = f"""
import tempfile
tempfile._candidate_tempdir_list = lambda: [{str(tmp_path / "missing")!r}]
from sccache_dtool.clock import Clock
from sccache_dtool.liveness.batch import query
from sccache_dtool.liveness.lifetime import Memory
with Memory({str(tmp_path / "seen.json")!r}, Clock()).remembered():
    try:
        query.run_command(["true"])
    except query.Absent as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("there is no space for the answer of true on this host")


def test_an_error_in_a_run_is_not_hidden(tmp_path: Path, clock: FakeClock) -> None:
    """A fault of the file system in the middle of a cleaning would look like a success."""
    with pytest.raises(OSError, match="the server"), Memory(str(tmp_path / "seen.json"), clock).remembered():
        raise OSError("the server is away")


# -- which file systems have one clock ---------------------------------------------------------------------------------


def mountinfo(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "mountinfo"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_the_type_of_a_mount_is_found_by_its_device(tmp_path: Path) -> None:
    """A cache on Lustre would be taken for one with a clock of its own, and live leases ended by skewed clocks."""
    device = os.stat(tmp_path).st_dev
    mounts = mountinfo(
        tmp_path,
        "21 1 253:9999 / / rw shared:1 - ext4 /dev/sda1 rw",
        f"22 1 {os.major(device)}:{os.minor(device)} / /scratch rw shared:2 master:3 - lustre 10.0.0.1@tcp:/s rw",
    )
    assert mount_type(str(tmp_path), mounts) == "lustre"
    assert "lustre" not in lifetime.ONE_CLOCK


def test_a_mount_that_is_not_listed_has_no_type(tmp_path: Path) -> None:
    """A mount that cannot be told would be trusted to have one clock."""
    mounts = mountinfo(tmp_path, "21 1 0:99999 / / rw - ext4 /dev/sda1 rw")
    assert mount_type(str(tmp_path), mounts) == ""
    assert mount_type(str(tmp_path), str(tmp_path / "missing")) == ""
    assert "" not in lifetime.ONE_CLOCK


@pytest.mark.parametrize(
    "kind",
    ["lustre", "gpfs", "beegfs", "ocfs2", "fuse.sshfs", "fuse", "ceph", "glusterfs", "fuse.glusterfs", "9p", "cifs"],
)
def test_cluster_file_systems_have_no_one_clock(kind: str) -> None:
    """A client's clock would be taken for the file system's, and a wrong one would end leases."""
    assert kind not in lifetime.ONE_CLOCK


def test_this_file_system_has_a_type(tmp_path: Path) -> None:
    """On a real host no fixed end would ever be looked at."""
    assert mount_type(str(tmp_path)) != ""
