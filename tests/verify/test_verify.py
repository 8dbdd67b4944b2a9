"""Whether a file system is fit: what the probes find on good and on bad ones, and that they leave nothing behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from faults import REPEATED, Call, Counting, Failing, FakeClock, FakeProc, LostReplies
from sccache_dtool import __version__
from sccache_dtool.cli.doctor import role_from
from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import VERIFICATION
from sccache_dtool.errors import CacheError, NoSpace, TimedOut, UsageError
from sccache_dtool.verify import (
    Fitness,
    Report,
    Role,
    Weight,
    checks,
    script,
    verify,
)
from sccache_dtool.verify.directory import LEADER as LEADS
from sccache_dtool.verify.directory import PEER as ASSISTS
from sccache_dtool.verify.directory import Directory, scratch
from sccache_dtool.verify.findings import Finding, Refuted, good
from sccache_dtool.verify.script import Result, Session

CHECKS = {check.name: check for check in checks.CHECKS}

A_RACE = "concurrent creation of a record"

#: The end of a session; the result file in which a host only says who it is, and the one after the first check.
END, INTRODUCTION, RESULT = script.END, "result-01", "result-02"

ALONE = Role(False, "", 0.0)
LEADER = Role(False, "", 30.0)
PEER = Role(True, "", 30.0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the disk, and few rounds will do."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr(checks, "NAMES", 6)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    """A directory with something in it, in which nothing may change."""
    path = tmp_path / "place"
    path.mkdir()
    (path / "data").write_text("mine")
    before = os.stat(path / "data")
    yield str(path)
    assert os.listdir(path) == ["data"]
    assert os.stat(path / "data") == before


def alone(fs: FileSystem, place: str, tmp_path: Path) -> Report:
    """A verification by one host, whose file system has a type that says nothing."""
    return verify(fs, place, ALONE, lambda text: None, mounts=str(tmp_path / "no mountinfo"))


def found(report: Report, weight: Weight) -> dict[str, str]:
    """What was found of a weight."""
    return {one.check: one.what for one in report.findings if one.weight == weight}


def test_a_good_file_system_is_fit_for_the_host_that_tried(place: str, tmp_path: Path) -> None:
    """A good disk would be called unfit; or several hosts be vouched for, of which none took part."""
    report = alone(FileSystem(), place, tmp_path)
    assert report.fitness is Fitness.ONE_HOST
    assert "only" in report.verdict
    assert "took part" in report.verdict
    assert found(report, Weight.UNFIT) == found(report, Weight.ONE_HOST) == {}
    assert found(report, Weight.TOLD).keys() == {"file system", "two hosts"}


class DeletesTheFull(FileSystem):
    """Its rmdir takes what is in the directory along."""

    def rmdir(self, path: str, **more: Any) -> None:
        shutil.rmtree(path)


class RemovesNothing(FileSystem):
    """Its rmdir says that it has been done, and has not."""

    def rmdir(self, path: str, **more: Any) -> None:
        if os.listdir(path):
            raise OSError(errno.ENOTEMPTY, "not empty", path)


class ReplacesNames(FileSystem):
    """Makes what is there once more."""

    def symlink(self, text: str, path: str, *, unique: bool = False) -> None:
        if os.path.islink(path):
            os.unlink(path)
        os.symlink(text, path)


class ReplacesTheFull(FileSystem):
    """Renames directories onto others, whatever is in them."""

    def rename(self, source: str, target: str, *, unique: bool = False) -> None:
        if os.path.isdir(source) and os.path.isdir(target):
            shutil.rmtree(target)
        os.rename(source, target)


class LosesTexts(FileSystem):
    """Keeps the first bytes of a symbolic link."""

    def symlink(self, text: str, path: str, *, unique: bool = False) -> None:
        os.symlink(text[:255], path)


class HidesNames(FileSystem):
    """Lists a directory as it was at the first time."""

    def __init__(self) -> None:
        self._seen: dict[str, list[str]] = {}

    def names(self, path: str) -> list[str]:
        return self._seen.setdefault(path, super().names(path))


class LooksBeforeItRemoves(FileSystem):
    """Its rmdir looks, and removes later what was empty then; who makes a name meanwhile is told that it is there."""

    def __init__(self) -> None:
        self._made = threading.Event()

    def symlink(self, text: str, path: str, *, unique: bool = False) -> None:
        super().symlink(text, path)
        if path.endswith("/use/lease"):
            self._made.set()

    def rmdir(self, path: str, **more: Any) -> None:
        if re.search(r"/r\d+/use$", path) is None:
            super().rmdir(path)
            return
        if os.listdir(path):
            raise OSError(errno.ENOTEMPTY, "not empty", path)
        self._made.wait(5)
        self._made.clear()
        shutil.rmtree(path)


class LooksBeforeItCreates(FileSystem):
    """Two who make one record at once are both told that they have."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2)

    def symlink(self, text: str, path: str, *, unique: bool = False) -> None:
        if re.search(r"/r\d+/name$", path) is None:
            super().symlink(text, path)
            return
        self._both.wait(5)
        try:
            super().symlink(text, path)
        except FileExistsError:
            pass


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (DeletesTheFull, "rmdir"),
        (RemovesNothing, "rmdir"),
        (ReplacesNames, "exclusive creation"),
        (ReplacesTheFull, "rename"),
        (LosesTexts, "symbolic links"),
        (LooksBeforeItRemoves, "eviction against a new lease"),
        (LooksBeforeItCreates, A_RACE),
    ],
)
def test_a_bad_file_system_is_unfit(make: Callable[[], FileSystem], check: str, place: str, tmp_path: Path) -> None:
    """Data would be deleted under its readers on a file system that was called fit."""
    report = alone(make(), place, tmp_path)
    assert report.fitness is Fitness.UNFIT
    assert report.verdict.startswith("unfit: ")
    assert "\n" not in report.verdict
    assert check in found(report, Weight.UNFIT)


KINDS = ["mkdir", "symlink", "rename", "rmdir", "create", "sync", "touch", "names"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_is_a_finding_and_nothing_is_left(kind: str, place: str, tmp_path: Path) -> None:
    """A mount that cannot do what we need would end in a traceback, or be littered."""
    fs = Failing()
    fs.fail(kind, errno.EINVAL, within="" if kind == "sync" else VERIFICATION, nth=3)
    report = alone(fs, place, tmp_path)
    assert report.fitness is Fitness.UNFIT
    assert any("failed" in what for what in found(report, Weight.UNFIT).values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_for_the_moment_is_no_verdict(kind: str, place: str, tmp_path: Path) -> None:
    """A good file system would be called unfit because its server was away for a minute."""
    fs = Failing()
    fs.fail(kind, errno.EIO, within="" if kind == "sync" else VERIFICATION, nth=3)
    report = alone(fs, place, tmp_path)
    assert report.fitness is Fitness.UNDECIDED
    assert report.verdict.startswith("undecided: ")
    assert found(report, Weight.UNFIT) == {}
    assert "could not be tried: Input/output error" in report.verdict


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["mkdir", "symlink", "link", "rename", "create", "write", "sync", "share"])
def test_a_full_disk_is_no_verdict(
    kind: str, error: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good file system would be called unfit, or be vouched for, by a verification that had no room to try it."""
    monkeypatch.setattr(checks, "RUNS_ALONE", 1)
    noting = Counting()
    alone(noting, place, tmp_path)
    calls = noting.kinds().count(kind)
    for nth in {1, calls // 2 + 1, calls}:
        fs = Failing()
        fs.fail(kind, error, nth=nth)
        with pytest.raises(NoSpace, match="could not be tried") as refused:
            alone(fs, place, tmp_path)
        assert "nothing is known" in str(refused.value.hint)
        assert os.listdir(place) == ["data"], f"{kind} {nth}"


@pytest.mark.root
@pytest.mark.parametrize("full", [True, False], ids=["before", "on the way"])
def test_a_disk_that_is_really_full_is_no_verdict(full: bool, tmp_path: Path) -> None:
    """`doctor` would say of a full disk that it is unfit, and leave on it what it had no room to try."""
    small = tmp_path / "small"
    small.mkdir()
    options = f"size=400k,nr_inodes={200 if full else 40}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        with open(small / "data", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while full:
                file.write(bytes(4096))
        with pytest.raises(NoSpace, match="could not be tried"):
            alone(FileSystem(), str(small), tmp_path)
        assert os.listdir(small) == ["data"]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize(
    ("kind", "error", "check", "what"),
    [
        ("symlink", errno.EPERM, "symbolic links", "records are files"),
        ("link", errno.EPERM, "hard links", "nothing is lost"),
        ("share", errno.EPERM, "permissions", "of one user"),
    ],
)
def test_what_can_be_done_without_is_told_of(
    kind: str, error: int, check: str, what: str, place: str, tmp_path: Path
) -> None:
    """A file system that is fit would be refused for what nothing depends on."""
    fs = Failing()
    fs.fail(kind, error)
    report = alone(fs, place, tmp_path)
    assert report.fitness is Fitness.ONE_HOST
    assert what in found(report, Weight.TOLD)[check]


class RenamesNoFull(FileSystem):
    """Renames a directory only as long as there is nothing in it but names of files (EXDEV, as in some layers)."""

    def rename(self, source: str, target: str, **more: Any) -> None:
        if os.path.isdir(source) and any(entry.is_dir() for entry in os.scandir(source)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
        os.rename(source, target)


class SealsNothing(FileSystem):
    """Cannot make a tree durable."""

    def seal(self, path: str, **more: Any) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)


class EmptiesNothing(FileSystem):
    """Cannot remove what is in directories that are read-only."""

    def remove_tree(self, path: str, **more: Any) -> None:
        if path.endswith("/trash/copy"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        super().remove_tree(path, **more)


@pytest.mark.parametrize("make", [RenamesNoFull, SealsNothing, EmptiesNothing])
def test_where_no_item_can_live_is_unfit(make: Callable[[], FileSystem], place: str, tmp_path: Path) -> None:
    """A mount would be called good on which nothing can be published, evicted or deleted."""
    report = alone(make(), place, tmp_path)
    assert report.fitness is Fitness.UNFIT
    assert "a whole item" in found(report, Weight.UNFIT)


def refuse(number: int, *, directories: bool = False) -> Callable[..., None]:
    """A system call on a descriptor that fails, perhaps only on directories."""

    def call(fd: int, *rest: Any) -> None:
        if not directories or stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("call", "act", "what"),
    [
        ("fchmod", refuse(errno.EPERM), "permissions cannot be changed"),
        ("fchmod", lambda fd, mode: None, "files stay writable"),
        ("fsync", refuse(errno.EINVAL, directories=True), "fsync of directories fails"),
        ("fsync", refuse(errno.ENOSYS), "fsync of files fails"),
        ("statvfs", refuse(errno.ENOSYS), "does not report its free space"),
    ],
)
def test_what_the_program_does_without_is_told_of(
    call: str, act: Callable[..., Any], what: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know before the first power failure, or the first slip, what a mount does not have."""
    monkeypatch.setattr(os, call, act)
    report = alone(FileSystem(), place, tmp_path)
    assert report.fitness is Fitness.ONE_HOST
    assert any(what in one.what for one in report.findings if one.weight is Weight.TOLD)


def test_without_threads_nothing_is_vouched_for(place: str, tmp_path: Path, no_thread: Callable[[int], None]) -> None:
    """A verification would end with "this is a fault in sc-dtool" where processes are limited."""
    no_thread(0)
    report = alone(FileSystem(), place, tmp_path)
    assert report.fitness is Fitness.UNDECIDED
    assert "can't start new thread" in report.verdict


def test_lost_replies_are_no_second_winner(place: str, tmp_path: Path) -> None:
    """A bad network would be taken for a bad file system."""
    fs = LostReplies()
    fs.lose("rename", within="holder.0", times=4)
    report = alone(fs, place, tmp_path)
    assert report.fitness is Fitness.ONE_HOST
    assert "replies were lost" in found(report, Weight.TOLD)["a heartbeat against a revocation"]


class Noting(Counting):
    """Notes where something is changed, in the room: once for all places that differ in numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[tuple[str, str], str] = {}

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        if call.kind in REPEATED and VERIFICATION in call.path:
            inner = re.split("[0-9a-f]{16}", call.path)[-1]
            self.places.setdefault((call.kind, re.sub("[0-9]+", "0", inner)), inner)
        return do()


def test_a_lost_reply_is_no_finding(place: str, tmp_path: Path) -> None:
    """A good NFS would be called unfit because it was slow for a moment, and a request was sent to it twice."""
    noting = Noting()
    alone(noting, place, tmp_path)
    places = [(kind, inner) for (kind, _), inner in noting.places.items()]
    lost = 0
    for part in range(4):
        fs = LostReplies()
        for kind, inner in places[part::4]:
            fs.lose(kind, within=inner)
        assert found(alone(fs, place, tmp_path), Weight.UNFIT) == {}, fs.lost
        lost += len(fs.lost)
    assert lost > 50


@pytest.mark.parametrize("side", ["leader", "peer"])
def test_lost_replies_of_two_hosts_are_no_finding(side: str, place: str, tmp_path: Path) -> None:
    """Two hosts on a network that loses something would be told not to share a cache, or wait for each other."""
    losing = LostReplies()
    for kind in ("mkdir", "symlink", "rename", "unlink"):
        for nth in range(1, 400, 7):
            losing.lose(kind, nth=nth)
    of_leader, of_peer = (losing, FileSystem()) if side == "leader" else (FileSystem(), losing)
    report = both(place, tmp_path, of_leader, of_peer)
    assert {call.kind for call in losing.lost} == {"mkdir", "symlink", "rename", "unlink"}
    assert report.fitness is Fitness.FIT, report.verdict


@pytest.mark.parametrize("raises_in", [LEADS, ASSISTS])
def test_a_fault_of_our_own_on_one_side_is_raised(
    raises_in: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side would wait for ever for the other, which has ended with a traceback."""

    def steps(at: Directory) -> Finding:
        if at.me == raises_in:
            raise TypeError("not called like this")
        at.barrier()
        return good()

    monkeypatch.setattr(script, "CHECKS", [CHECKS[A_RACE]._replace(steps=steps)])
    with pytest.raises(TypeError, match="not called like this"):
        alone(FileSystem(), place, tmp_path)


class SaysNoMore(FileSystem):
    """As SFTP has it: what is refused is not permitted, whatever the reason."""

    def rename(self, source: str, target: str, *, unique: bool = False) -> None:
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source) from None
            raise


def test_a_refusal_for_an_unusual_reason_is_a_refusal(place: str, tmp_path: Path) -> None:
    """A file system that loses nothing would be called unfit for its choice of words."""
    report = alone(SaysNoMore(), place, tmp_path)
    assert report.fitness is Fitness.ONE_HOST
    assert found(report, Weight.TOLD).keys() >= {"rename", "concurrent publication under one name"}


@pytest.mark.parametrize("limit", [200, 100])
def test_short_names_are_told_of_or_unfit(limit: int, place: str, tmp_path: Path) -> None:
    """Elections and records would fail in the middle of the night with "File name too long"."""

    class Short(FileSystem):
        def mkdir(self, path: str, mode: int = 0o777, *, shared: bool = False) -> None:
            if len(os.path.basename(path)) > limit:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
            super().mkdir(path, mode, shared=shared)

    report = alone(Short(), place, tmp_path)
    assert "names" in found(report, Weight.TOLD if limit == 200 else Weight.UNFIT)


def test_what_cannot_be_removed_is_named(place: str, tmp_path: Path) -> None:
    """A verification would end in a traceback and leave its directory behind without a word."""
    fs, said = Failing(), list[str]()
    fs.fail("remove_tree", errno.EIO)
    verify(fs, place, ALONE, said.append, mounts=str(tmp_path / "no mountinfo"))
    (left,) = (name for name in os.listdir(place) if name.startswith(VERIFICATION))
    assert any(left in one and "by hand" in one for one in said)
    shutil.rmtree(f"{place}/{left}")


def test_a_room_is_removed_while_somebody_makes_names_in_it(place: str, tmp_path: Path) -> None:
    """A peer that was still looking for an answer would have the directory left behind for a person to remove."""
    fs = Failing()
    fs.fail("remove_tree", errno.ENOTEMPTY, times=3)
    alone(fs, place, tmp_path)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    """A slip in DIR would end in a traceback."""
    with pytest.raises(UsageError, match="cannot verify"):
        alone(FileSystem(), str(tmp_path / "missing"), tmp_path)


@pytest.mark.parametrize("role", [ALONE, PEER], ids=["leader", "peer"])
def test_where_nothing_can_be_made_a_person_is_told_what_to_give(place: str, tmp_path: Path, role: Role) -> None:
    """Whoever may only read would see the name of a directory of ours, and not learn what is wanted."""
    fs = Failing()
    fs.fail("mkdir", errno.EACCES, nth=1)
    fs.fail("symlink", errno.EACCES, nth=1)
    with pytest.raises(UsageError, match=f"cannot verify {place}: Permission denied") as refused:
        verify(fs, place, role, lambda text: None, mounts=str(tmp_path / "no mountinfo"))
    assert "in which you can write" in str(refused.value.hint)


# -- what the mount tells ----------------------------------------------------------------------------------------------


def mounted(place: str, tmp_path: Path, type_source_options: str) -> str:
    """A mountinfo that says what `place` is."""
    device = os.stat(place).st_dev
    path = tmp_path / "mountinfo"
    path.write_text(f"30 1 {os.major(device)}:{os.minor(device)} / / rw,relatime shared:1 - {type_source_options}\n")
    return str(path)


@pytest.mark.parametrize(
    "mount",
    [
        "fuse.s3fs s3fs rw",
        "fuse.goofys bucket rw",
        "fuse.rclone remote:path rw",
        "fuse.gcsfuse bucket rw",
        "fuse mountpoint-s3 rw",
        "fuse.mountpoint-s3 bucket rw",
        "fuse blobfuse2 rw",
        "fuse.blobfuse2 blobfuse2 rw",
    ],
)
def test_an_object_store_is_refused_and_not_touched(mount: str, place: str, tmp_path: Path) -> None:
    """Data would be lost on what looks like a file system for a while; or a bucket be littered by the trial."""
    fs = Counting()
    report = verify(fs, place, ALONE, lambda text: None, mounts=mounted(place, tmp_path, mount))
    assert report.fitness is Fitness.UNFIT
    assert "object store" in report.verdict
    of_peer = verify(fs, place, PEER, lambda text: None, mounts=mounted(place, tmp_path, mount))
    assert (of_peer.fitness, of_peer.verdict) == (Fitness.UNFIT, report.verdict)
    assert set(fs.kinds()) <= {"names", "lstat", "is_shared"}


@pytest.mark.parametrize(
    ("mount", "weight", "word"),
    [
        ("fuse.sshfs me@there:/data rw", Weight.ONE_HOST, "20 s old"),
        ("nfs4 s:/e rw,vers=4.2,hard,local_lock=none", Weight.GOOD, "vers=4.2"),
        ("nfs s:/e rw,vers=2", Weight.UNFIT, "vers=2"),
        ("nfs s:/e rw,vers=3,local_lock=all", Weight.TOLD, "local_lock"),
        ("nfs4 s:/e rw,vers=4.1,nocto", Weight.TOLD, "nocto"),
        ("nfs4 s:/e rw,vers=4.1,acregmin=600,acregmax=600,acdirmin=600,acdirmax=600", Weight.TOLD, "600 s"),
        ("nfs4 s:/e rw,vers=4.1,soft", Weight.TOLD, "soft"),
        ("nfs4 s:/e rw,vers=4.1,noac", Weight.TOLD, "noac"),
        ("ext4 /dev/sda1 ro", Weight.UNFIT, "nothing can be written"),
        ("fuse.glusterfs s:vol rw", Weight.GOOD, "glusterfs"),
        ("ext4 /dev/my\\040disk rw", Weight.GOOD, "/dev/my disk"),
    ],
)
def test_what_is_known_of_types_and_options_is_told(
    mount: str, weight: Weight, word: str, place: str, tmp_path: Path
) -> None:
    """An unfit mount would be found out by the loss of data, since no probe can see what its options will do."""
    report = verify(FileSystem(), place, ALONE, lambda text: None, mounts=mounted(place, tmp_path, mount))
    told = [
        one.what for one in report.findings if one.check in ("file system", "mount options") and one.weight == weight
    ]
    assert any(word in what for what in told)


def test_a_mount_that_is_unfit_by_what_is_known_of_it_is_not_tried(place: str, tmp_path: Path) -> None:
    """Of a read-only mount there would be an error in the place of a verdict."""
    fs = Counting()
    mounts = mounted(place, tmp_path, "ext4 /dev/sda1 ro")
    report = verify(fs, place, ALONE, lambda text: None, mounts=mounts)
    assert report.verdict == "unfit: mount options: ro: nothing can be written"
    assert verify(fs, place, PEER, lambda text: None, mounts=mounts).fitness is Fitness.UNFIT
    assert set(fs.kinds()) <= {"names", "lstat", "is_shared"}


# -- which part ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "peer", "is_peer", "waits"),
    [
        ({}, False, False, False),
        ({}, True, True, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, False, False, True),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, False, True, True),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}, False, None, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, False, False, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False, False, False),
        ({"SLURM_PROCID": "x", "SLURM_STEP_NUM_TASKS": "2"}, False, False, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True, True, True),
    ],
)
def test_slurm_says_who_is_the_peer(
    environment: dict[str, str], peer: bool, is_peer: bool | None, waits: bool | None
) -> None:
    """Under `srun -N2` both would lead and test one host each; or a batch script would wait for a peer in vain."""
    role = role_from(environment, peer=peer, wait=None)
    assert (role and role.is_peer, role and role.wait > 0) == (is_peer, waits)
    role = role_from(environment, peer=peer, wait=7.0)
    assert role is None or role.wait == 7.0


def test_two_steps_do_not_meet() -> None:
    """A task of one job would talk with a task of another, about different mounts."""
    steps = [{"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": job} for job in ("1", "2")]
    first, second = (role_from(step, peer=False, wait=None) for step in steps)
    assert first
    assert second
    assert first.meeting != second.meeting


# -- two hosts -------------------------------------------------------------------------------------------------------


def both(place: str, tmp_path: Path, of_leader: FileSystem, of_peer: FileSystem, boots: str = "ab") -> Report:
    """A verification by two hosts, each with its own look at the file system."""
    procs = [FakeProc(str(tmp_path / f"proc{number}"), boot=boot) for number, boot in enumerate(boots)]
    with ThreadPoolExecutor() as pool:
        more = {"mounts": str(tmp_path / "no mountinfo"), "longest_delay": 2.0}
        assisting = pool.submit(verify, of_peer, place, PEER, lambda text: None, proc=procs[1], **more)
        report = verify(of_leader, place, LEADER, lambda text: None, proc=procs[0], **more)
        of_peer_too = assisting.result(30)
        assert (of_peer_too.fitness, of_peer_too.verdict) == (report.fitness, report.verdict)
    return report


def test_two_hosts_find_a_good_file_system_fit(place: str, tmp_path: Path) -> None:
    """Nobody would ever be told that a file system is fit for several hosts."""
    report = both(place, tmp_path, FileSystem(), FileSystem())
    assert report.fitness is Fitness.FIT, report.findings
    figures = {name: value for one in report.findings for name, value in one.figures.items()}
    assert {"delay_listed", "delay_looked_up"} <= figures.keys()


class Sleepy(FileSystem):
    """Of a host that is slow to look for what the other has written last."""

    def names(self, path: str) -> list[str]:
        found = super().names(path)
        if f"{script.END}.leader" in found:
            time.sleep(0.5)
        return found


def test_a_peer_that_is_slow_hears_the_verdict(place: str, tmp_path: Path) -> None:
    """The leader would have removed the results, and the peer end with an error that means nothing."""
    assert both(place, tmp_path, FileSystem(), Sleepy()).fitness is Fitness.FIT


def test_two_processes_of_one_host_are_one_host(place: str, tmp_path: Path) -> None:
    """Two shells on one host would vouch for what hosts do to each other."""
    report = both(place, tmp_path, FileSystem(), FileSystem(), boots="aa")
    assert report.fitness is Fitness.ONE_HOST
    assert "one host" in report.verdict
    assert len(report.hosts) == 2


def test_what_only_the_mount_of_the_peer_tells_counts(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system would be called fit for two hosts of which one sees it through a mount that is not."""
    few_checks(monkeypatch)
    procs = [FakeProc(str(tmp_path / f"proc{boot}"), boot=boot) for boot in "ab"]
    of_peer = mounted(place, tmp_path, "fuse.sshfs me@there:/data rw")
    with ThreadPoolExecutor() as pool:
        peer = pool.submit(verify, FileSystem(), place, PEER, lambda text: None, proc=procs[1], mounts=of_peer)
        nothing = str(tmp_path / "no mountinfo")
        report = verify(FileSystem(), place, LEADER, lambda text: None, proc=procs[0], mounts=nothing)
        assert peer.result(30).verdict == report.verdict
    assert report.fitness is Fitness.ONE_HOST
    assert "20 s old" in report.verdict


class OwnClock(FileSystem):
    """A host whose clock is an hour ahead, on a file system that takes times from its clients."""

    def lstat(self, path: str) -> os.stat_result:
        status = os.lstat(path)
        return os.stat_result([*status[:7], *(when + 3600 for when in status[7:10])])


class Late(FileSystem):
    """A host that is never shown what others have made in a directory once it has listed it."""

    def names(self, path: str) -> list[str]:
        found = super().names(path)
        return [name for name in found if not (name.startswith("n") and name[1:].isdecimal())]


class ReadsHalf(FileSystem):
    """A host that reads the beginning of what another has written."""

    def read(self, fd: int, size: int = 4096) -> bytes:
        return os.read(fd, size)[: size // 2] if size <= 4096 else b""


class Refuses(FileSystem):
    """A host that may rename nothing."""

    def rename(self, source: str, target: str, *, unique: bool = False) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), source)


@pytest.mark.parametrize(
    ("make", "check", "word"),
    [
        (Late, "listings, between hosts", "taken for dead"),
        (ReadsHalf, "publication, between hosts", "does not have the content"),
        (ReplacesTheFull, "rename, between hosts", "can be renamed onto"),
        (ReplacesNames, f"{A_RACE}, between hosts", "both sides won"),
        (Refuses, "rename, between hosts", "Permission denied"),
    ],
)
def test_a_host_that_sees_otherwise_makes_it_fit_for_one(
    make: Callable[[], FileSystem], check: str, word: str, place: str, tmp_path: Path
) -> None:
    """A file system would be called fit on which leases of two hosts do not hold each other off."""
    report = both(place, tmp_path, FileSystem(), make())
    assert report.fitness is Fitness.ONE_HOST
    assert word in found(report, Weight.ONE_HOST)[check]


def test_times_that_come_from_the_hosts_are_told_of(place: str, tmp_path: Path) -> None:
    """Nobody would hear that the clocks of two nodes differ by an hour."""
    report = both(place, tmp_path, FileSystem(), OwnClock())
    assert report.fitness is Fitness.FIT
    assert "differ by 60 min" in found(report, Weight.TOLD)["clock, between hosts"]


def test_a_clock_that_is_wrong_is_told_of(place: str, tmp_path: Path) -> None:
    """A host whose clock is an hour off would hear of it only where a second host takes part."""
    report = alone(OwnClock(), place, tmp_path)
    assert "60 min ahead of this host's: lifetimes last longer" in found(report, Weight.TOLD)["clock"]


def waiting(place: str, number: int, hello: object) -> str:
    """The scratch directory of a peer that waits there, or did until it was killed."""
    path = f"{place}/{VERIFICATION}{number:016x}"
    os.mkdir(path)
    Path(path, f"{INTRODUCTION}.peer").write_text(hello if isinstance(hello, str) else json.dumps(hello))
    return path


def test_a_peer_that_was_killed_is_not_waited_for_in_vain(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a peer left that was killed would keep every later verification waiting."""
    monkeypatch.setattr(script, "ANSWER", 0.2)
    left = waiting(place, 7, introduced(host="gone"))
    report = alone(FileSystem(), place, tmp_path)
    shutil.rmtree(left)
    assert len(report.hosts) == 1
    assert report.fitness is Fitness.ONE_HOST


def test_a_killed_peer_does_not_shorten_the_wait_for_one_that_lives(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that comes within `--wait` would not be waited for, because one was killed there before."""
    monkeypatch.setattr(script, "ANSWER", 5.0)
    few_checks(monkeypatch)
    left = waiting(place, 7, introduced(host="gone"))
    looked = threading.Event()

    class Noticing(FileSystem):
        def put_record(self, text: str, path: str, *, unique: bool = False) -> None:
            super().put_record(text, path, unique=unique)
            if path.endswith(f"/{script.CLAIM}.leader"):
                looked.set()

    with ThreadPoolExecutor() as pool:
        led = pool.submit(verify, Noticing(), place, LEADER, lambda text: None, mounts=str(tmp_path / "none"))
        assert looked.wait(30)
        peer = pool.submit(verify, FileSystem(), place, PEER, lambda text: None, mounts=str(tmp_path / "none"))
        assert len(led.result(30).hosts) == len(peer.result(30).hosts) == 2
    shutil.rmtree(left)


def test_a_peer_that_falls_silent_is_named(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader would wait for ever for a host that was switched off, or not say for whom it waited."""
    monkeypatch.setattr(script, "PATIENCE", 1.0)
    is_over = threading.Event()
    with ThreadPoolExecutor() as pool:

        def answer_once() -> None:
            parent = Directory(FileSystem(), Clock(), place)
            with scratch(parent) as own:
                script.join_as_peer(own, Result(**introduced(host="node7")), 30.0).barrier()
                is_over.wait(30)

        pool.submit(answer_once)
        report = verify(FileSystem(), place, LEADER, lambda text: None, mounts=str(tmp_path / "none"))
        is_over.set()
    assert report.fitness is Fitness.ONE_HOST
    assert "no message from node7 within 1 s" in report.verdict


class Dies(FileSystem):
    """A host that is switched off before a check: nothing that it does arrives any more."""

    def __init__(self, check: str, is_over: threading.Event) -> None:
        self._mark, self._is_over = f"/{check}-001.peer", is_over

    def put_record(self, text: str, path: str, *, unique: bool = False) -> None:
        if path.endswith(self._mark):
            self._is_over.wait(30)
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        super().put_record(text, path, unique=unique)


def test_what_was_found_before_a_host_died_is_reported(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that dies in the middle of a verification would take along what the two had found until then."""
    monkeypatch.setattr(script, "PATIENCE", 1.0)
    is_over = threading.Event()
    with ThreadPoolExecutor() as pool:
        peer = pool.submit(verify, Dies("03", is_over), place, PEER, lambda text: None, mounts=str(tmp_path / "none"))
        report = verify(FileSystem(), place, LEADER, lambda text: None, mounts=str(tmp_path / "none"))
        is_over.set()
        with pytest.raises(CacheError):
            peer.result(30)
    found = [one.check for one in report.findings if one.check.endswith("between hosts")]
    assert found == [check.title(between=True) for check in checks.CHECKS if check.sides > 1][:2]
    assert report.verdict.startswith("fit for one host: two hosts: broken off: no message from ")


def test_a_leader_follows_no_link(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write in a directory could send another user through a link into that user's own files."""
    monkeypatch.setattr(script, "ANSWER", 0.2)
    left, elsewhere = waiting(place, 7, introduced()), tmp_path / "elsewhere"
    shutil.move(left, elsewhere)
    os.symlink(elsewhere, left)
    before = os.stat(elsewhere), os.listdir(elsewhere)
    report = alone(FileSystem(), place, tmp_path)
    assert len(report.hosts) == 1
    assert (os.stat(elsewhere).st_mtime_ns, os.listdir(elsewhere)) == (before[0].st_mtime_ns, before[1])
    os.unlink(left)


def test_a_peer_without_a_leader_gives_up(place: str) -> None:
    """A peer that was started on the wrong mount would wait for ever."""
    with pytest.raises(TimedOut, match="no message from a leader"):
        verify(FileSystem(), place, PEER._replace(wait=0.2), lambda text: None)


def test_a_peer_reads_no_file_without_end(tmp_path: Path) -> None:
    """A leader could keep another user's process reading for ever, with a sparse file that takes no room."""
    generation = tmp_path / "generation"
    generation.mkdir()
    with open(generation / "payload", "wb") as file:
        file.truncate(1 << 26)
    fs = Counting()
    with pytest.raises(Refuted):
        CHECKS["publication"].steps(Directory(fs, Clock(), str(tmp_path), me=ASSISTS))
    assert fs.kinds().count("read") < 10


def test_a_session_without_end_ends(tmp_path: Path) -> None:
    """A leader could keep another user's process waiting for as long as it likes, by always coming just in time."""
    clock = FakeClock()
    place = Directory(FileSystem(), clock, str(tmp_path))
    peer = Session(place, ASSISTS, Result(**introduced()))

    def go_on() -> None:
        for number in range(1, 1000):
            os.symlink("{}", tmp_path / f"00-{number:03}.leader")
            peer.barrier()
            clock.let_pass(60.0)

    with pytest.raises(TimedOut, match="the leader has not finished within 60 min"):
        go_on()


# -- hosts that mean no good -------------------------------------------------------------------------------------------


class Stranger(Counting):
    """A host's view by which it writes something else than it should, under names that begin with a word."""

    def __init__(self, word: str, says: object) -> None:
        super().__init__()
        self._word, self._says = word, says if isinstance(says, str) else json.dumps(says)

    def put_record(self, text: str, path: str, *, unique: bool = False) -> None:
        super().put_record(self._says if self._is_it(path) else text, path, unique=unique)

    def write(self, fd: int, data: bytes) -> None:
        is_it = self._is_it(os.readlink(f"/proc/self/fd/{fd}"))
        super().write(fd, self._says.encode() if is_it else data)

    def _is_it(self, path: str) -> bool:
        name = os.path.basename(path)
        return name.startswith(self._word) and name.endswith((".leader", ".peer"))


def introduced(**fields: Any) -> dict[str, Any]:
    """A result file of a host that has tried nothing yet, with something else in it."""
    who = {"host": "node7", "boot": "b", "device": "1", "release": __version__, "meeting": "", "kind": "k"}
    return {**who, "alone": [], "between": [], **fields}


def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification of two hosts and one contest: for tests of how they meet, and what they leave for each other."""
    monkeypatch.setattr(script, "PATIENCE", 1.0)
    monkeypatch.setattr(checks, "RUNS_ALONE", 1)
    monkeypatch.setattr(script, "CHECKS", [CHECKS[A_RACE]])


class UntilTheOtherEnds(Clock):
    """A clock by which every wait is over once the other host has ended, and this one has looked again."""

    def __init__(self) -> None:
        self.is_alone = threading.Event()
        self._ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.is_alone.is_set():  # and all that the other has written is there at the next look
            self._ahead = 10 * LEADER.wait


def together(of_leader: FileSystem, of_peer: FileSystem, place: str, tmp_path: Path) -> tuple[Any, Any]:
    """What both hosts end with: a report or an error."""
    more = {"mounts": str(tmp_path / "no mountinfo"), "longest_delay": 0.5}
    procs = [FakeProc(str(tmp_path / f"proc{boot}"), boot=boot) for boot in "ab"]
    clocks = UntilTheOtherEnds(), UntilTheOtherEnds()
    with ThreadPoolExecutor() as pool:
        peer = pool.submit(verify, of_peer, place, PEER, lambda text: None, proc=procs[1], clock=clocks[1], **more)
        led = pool.submit(verify, of_leader, place, LEADER, lambda text: None, proc=procs[0], clock=clocks[0], **more)
        peer.add_done_callback(lambda ended: clocks[0].is_alone.set())
        led.add_done_callback(lambda ended: clocks[1].is_alone.set())
        done = [one.exception(60) or one.result() for one in (led, peer)]
    return done[0], done[1]


def result(**fields: object) -> dict[str, object]:
    """A result file with something else in its only finding."""
    figures = {"outcomes": "0" * 24}
    return introduced(between=[{"check": IT, "weight": 0, "what": "w", "figures": figures} | fields])


IT = f"{A_RACE}, between hosts"


@pytest.mark.parametrize(
    ("name", "says", "check", "word"),
    [
        (INTRODUCTION, introduced(device=[1]), "two hosts", "(device)"),
        (INTRODUCTION, introduced(device=True), "two hosts", "(device)"),
        (INTRODUCTION, introduced(boot=None), "two hosts", "(boot)"),
        (INTRODUCTION, introduced(host={}), "two hosts", "(host)"),
        (INTRODUCTION, introduced(release="0"), "two hosts", "another release: 0, not"),
        (INTRODUCTION, {"meeting": ""}, "two hosts", "(host)"),
        (RESULT, {}, "two hosts", "(host)"),
        (RESULT, "no JSON", "two hosts", "(host)"),
        (RESULT, introduced(kind=1), "two hosts", "(kind)"),
        (RESULT, introduced(between={}), "two hosts", "(between)"),
        (RESULT, introduced(between=[1]), "two hosts", "(check)"),
        (RESULT, result(check=None), "two hosts", "(check)"),
        (RESULT, result(weight=5), "two hosts", "(weight)"),
        (RESULT, result(weight="so"), "two hosts", "(weight)"),
        (RESULT, result(figures=[]), "two hosts", "(figures)"),
        (RESULT, result(figures={"so\x1b[2J": []}), "two hosts", "(so�[2J)"),
        (RESULT, result(weight=4, what="so\x1b[2J"), IT, "on node7: so�[2J"),
        (RESULT, result(figures={}), IT, "do not match: do both run the same release?"),
        (RESULT, result(figures={"outcomes": 1}), IT, "do not match: do both run the same release?"),
        (RESULT, result(figures={"outcomes": "1"}), IT, "do not match: do both run the same release?"),
        (RESULT, result(check="another"), IT, "do not match: do both run the same release?"),
    ],
)
def test_a_leader_believes_no_nonsense(
    name: str, says: object, check: str, word: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write in the directory could end the verification of another user in a traceback, without a report."""
    few_checks(monkeypatch)
    monkeypatch.setattr(script, "host_name", lambda: "node")
    report, _ = together(FileSystem(), Stranger(name, says), place, tmp_path)
    assert report.fitness is Fitness.ONE_HOST
    assert word in found(report, Weight.ONE_HOST)[check]


@pytest.mark.parametrize(
    ("name", "says", "word"),
    [
        (INTRODUCTION, {"meeting": ""}, r"cannot read what the leader wrote \(host\)"),
        (INTRODUCTION, introduced(host=1), r"cannot read what the leader wrote \(host\)"),
        (INTRODUCTION, introduced(host=[]), r"cannot read what the leader wrote \(host\)"),
        (INTRODUCTION, introduced(release="0"), "the leader runs another release: 0, not "),
        (RESULT, {}, r"cannot read what .* wrote \(host\)"),
        (RESULT, introduced(kind=1), r"cannot read what .* wrote \(kind\)"),
    ],
)
def test_a_peer_believes_no_nonsense(
    name: str, says: object, word: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged leader would end the peer of another user in a traceback, or with a verdict that nobody has reached."""
    few_checks(monkeypatch)
    _, error = together(Stranger(name, says), FileSystem(), place, tmp_path)
    assert isinstance(error, CacheError)
    assert re.search(word, str(error))
    assert "start both again" in str(error.hint)


@pytest.mark.parametrize(
    ("says", "word"),
    [
        ("token so\x1b[2J", "so�[2J"),
        ("token ", "no reason given"),
        ("so", "no reason given"),
    ],
    ids=str,
)
def test_why_a_host_has_ended_early_is_shown(says: str, word: str, tmp_path: Path) -> None:
    """A host that ends early would look like one that was switched off, or drive the terminal of the other."""
    os.symlink(says, tmp_path / f"{END}.leader")
    with pytest.raises(CacheError, match=re.escape(f"the leader has ended early: {word}")) as ended:
        Session(Directory(FileSystem(), Clock(), str(tmp_path)), ASSISTS, Result(**introduced())).barrier()
    assert "start both again" in str(ended.value.hint)


@pytest.mark.parametrize("honest", ["leader", "peer"])
@pytest.mark.parametrize("name", [INTRODUCTION, "result", END, "0"])
def test_nothing_that_a_host_writes_leads_the_other_out_of_the_directory(
    honest: str, name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write in a directory could have another user make, move or read names anywhere."""
    monkeypatch.setattr(script, "PATIENCE", 1.0)
    monkeypatch.setattr(script, "CHECKS", [check for check in checks.CHECKS if check.sides > 1])
    says = {"meeting": "", **dict.fromkeys(("host", "boot", "device", "release", "reason", "in", "do"), "../../data")}
    hosts: list[FileSystem] = [
        Counting(),
        Stranger(name, {**says, "kind": "../data", "alone": [says], "between": [says]}),
    ]
    watched = hosts[0]
    assert isinstance(watched, Counting)
    together(*(hosts if honest == "leader" else hosts[::-1]), place=place, tmp_path=tmp_path)
    for call in watched.calls:
        arguments = call.arguments[1:] if call.kind == "symlink" else call.arguments  # the first is a record's text
        paths = [text for text in arguments if isinstance(text, str) and (text.startswith("/") or ".." in text)]
        assert all(path.startswith(place) and ".." not in path for path in paths), call


#: What no host that runs the script writes, by the check whose figures it forges.
NONSENSE: dict[str, list[dict[str, Any]]] = {
    A_RACE: [{"outcomes": says} for says in ("1" * 7, "", 111111, None)],
    "clock": [
        {"offset": "now"},
        {"stamp": "now"},
        {"offset": None},
        {"passed": None, "offset": "now", "stamp": "now"},
    ],
}


@pytest.mark.parametrize(
    ("name", "says"), [(name, says) for name, all_of in NONSENSE.items() for says in all_of], ids=str
)
@pytest.mark.parametrize("is_missing", [False, True], ids=["wrong", "missing"])
def test_results_that_make_no_sense_are_those_of_hosts_that_do_not_match(
    name: str, says: dict[str, Any], is_missing: bool
) -> None:
    """A result of another release, or a forged one, would end the other host in a traceback."""
    right = {"outcomes": "0" * 6, "offset": 0.0, "stamp": 0.0, "passed": 1.0, "kind": "", "is_alone": False}
    check = CHECKS[name]
    title = check.title(between=True)
    wrong = {} if is_missing else right | says
    sides = [
        Result(**introduced(host=host, between=[Finding(title, Weight.GOOD, "", figures)]))
        for host, figures in (("node7", right), ("node8", wrong))
    ]
    (one,) = script.evaluate([check], sides, is_complete=True)
    assert (one.check, one.weight) == (title, Weight.ONE_HOST)
    assert "the results of node7 and node8 do not match" in one.what


@pytest.mark.parametrize("hello", ["", "no JSON", "[]", {}, introduced(meeting=1), introduced(meeting="7.0")], ids=str)
def test_a_leader_does_not_meet_whom_it_does_not_look_for(
    hello: object, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs that verify one directory would meet crosswise; or what somebody left would end in a traceback."""
    monkeypatch.setattr(script, "ANSWER", 0.2)
    left = waiting(place, 7, hello or "?")
    report = alone(FileSystem(), place, tmp_path)
    assert os.listdir(left) == [f"{INTRODUCTION}.peer"]
    shutil.rmtree(left)
    assert "no peer took part" in found(report, Weight.TOLD)["two hosts"]


@pytest.mark.parametrize("meetings", [("1.0", "2.0"), ("", "")], ids=["by Slurm", "by hand"])
def test_two_pairs_in_one_directory_do_not_meet(
    meetings: tuple[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who verify one directory at once would end with an error, because a leader takes both peers."""
    few_checks(monkeypatch)
    monkeypatch.setattr(script, "PATIENCE", 30.0)
    mounts = str(tmp_path / "no mountinfo")

    def start(pool: ThreadPoolExecutor, is_peer: bool, number: int) -> Future[Report]:
        proc = FakeProc(str(tmp_path / f"proc-{is_peer}-{number}"), boot=f"{is_peer}-{number}")
        role = Role(is_peer, meetings[number], 30.0)
        return pool.submit(verify, FileSystem(), place, role, lambda text: None, proc=proc, mounts=mounts)

    with ThreadPoolExecutor(4) as pool:
        running = [start(pool, is_peer, number) for is_peer in (True, False) for number in range(2)]
        reports = [one.result(60) for one in running]
    assert [report.fitness for report in reports] == [Fitness.FIT] * 4, reports


def test_a_peer_in_whose_directory_nothing_can_be_made_is_named(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts that run as different users would be told that no peer took part, and not why."""
    monkeypatch.setattr(script, "ANSWER", 0.2)
    left, said, fs = waiting(place, 7, introduced()), list[str](), Failing()
    fs.fail("symlink", errno.EACCES, within=f"/{script.CLAIM}.leader")
    report = verify(fs, place, ALONE, said.append, mounts=str(tmp_path / "no mountinfo"))
    shutil.rmtree(left)
    assert any(f"cannot take part in {left}: Permission denied" in one for one in said)
    assert "no peer took part" in found(report, Weight.TOLD)["two hosts"]


def test_many_waiting_peers_do_not_keep_a_leader_busy(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write in the directory could have another user make as many names there as it likes."""
    monkeypatch.setattr(script, "ANSWER", 0.2)
    left = [waiting(place, number, introduced(meeting="" if number else [])) for number in range(100)]
    fs = Counting()
    report = alone(fs, place, tmp_path)
    for path in left:
        shutil.rmtree(path)
    assert len(report.hosts) == 1
    assert sum(call.kind == "symlink" and call.path.endswith(f"/{script.CLAIM}.leader") for call in fs.calls) == 20


@pytest.mark.parametrize("full", ["leader", "peer"])
def test_who_has_no_room_left_says_so_and_the_other_does_not_wait(full: str, place: str, tmp_path: Path) -> None:
    """A quota that is used up on one of two hosts would look like a host that was switched off."""
    failing = Failing()
    call, inner = ("mkdir", "/looked_up") if full == "leader" else ("rename", "/yours")
    failing.fail(call, errno.EDQUOT, within=inner)  # nowhere but between hosts
    hosts = (failing, FileSystem()) if full == "leader" else (FileSystem(), failing)
    led, assisted = together(*hosts, place, tmp_path)
    if full == "leader":
        assert isinstance(led, NoSpace)
        assert "Disk quota exceeded" in str(led)
        assert isinstance(assisted, CacheError)
        assert "has ended early: Disk quota exceeded" in str(assisted)
    else:
        assert isinstance(assisted, NoSpace)
        assert "Disk quota exceeded" in str(assisted)
        assert "has ended early: Disk quota exceeded" in led.verdict
        assert led.fitness is Fitness.ONE_HOST
