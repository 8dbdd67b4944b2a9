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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from faults import REPEATED, Call, Counting, Failing, FakeClock, FakeProc, LostReplies
from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import VERIFICATION
from sccache_dtool.errors import CacheError, NoSpace, TimedOut, UsageError
from sccache_dtool.verify import (
    Fitness,
    Part,
    Report,
    Role,
    Verdict,
    Weight,
    assist,
    contests,
    meeting,
    pair,
    probes,
    role_from,
    verification,
    verify,
)
from sccache_dtool.verify.findings import Place
from sccache_dtool.verify.said import Said
from sccache_dtool.verify.talk import Goodbye, Talk

A_CONTEST = "two who make one record"

#: What nobody means who asks for a number of things, or a time.
ENDLESS: list[object] = ["inf", "x", float("inf"), float("nan"), 100_000_000_000, 76, -1, None, [], True]

ALONE = Role(Part.LEAD, "", 0.0)
LEADER = Role(Part.LEAD, "", 30.0)
PEER = Role(Part.PEER, "", 30.0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the disk, and few rounds will do."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr(contests, "NAMES", 6)


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
        (LooksBeforeItCreates, "two who make one record"),
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
    monkeypatch.setattr(contests, "_RUNS", 1)
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


@pytest.mark.parametrize("raises_in", ["first", "second"])
def test_a_fault_of_our_own_in_a_contest_is_raised(
    raises_in: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side would wait for ever for the other, which has ended with a traceback."""

    def act(place: Place) -> None:
        raise TypeError("not called like this")

    contest = contests.CONTESTS["two who make one record"]
    monkeypatch.setitem(contests.CONTESTS, "two who make one record", contest._replace(**{raises_in: act}))
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
    assert found(report, Weight.TOLD).keys() >= {"rename", "two who publish under one name"}


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
        (assist if role is PEER else verify)(fs, place, role, lambda text: None, mounts=str(tmp_path / "no mountinfo"))
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
    said = assist(fs, place, PEER, lambda text: None, mounts=mounted(place, tmp_path, mount))
    assert said == Verdict(Fitness.UNFIT, report.verdict)
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
    assert assist(fs, place, PEER, lambda text: None, mounts=mounts).fitness is Fitness.UNFIT
    assert set(fs.kinds()) <= {"names", "lstat", "is_shared"}


# -- which part ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "peer", "part", "waits"),
    [
        ({}, False, Part.LEAD, False),
        ({}, True, Part.PEER, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, False, Part.LEAD, True),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, False, Part.PEER, True),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}, False, Part.NONE, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, False, Part.LEAD, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False, Part.LEAD, False),
        ({"SLURM_PROCID": "x", "SLURM_STEP_NUM_TASKS": "2"}, False, Part.LEAD, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True, Part.PEER, True),
    ],
)
def test_slurm_says_who_is_the_peer(environment: dict[str, str], peer: bool, part: Part, waits: bool) -> None:
    """Under `srun -N2` both would lead and test one host each; or a batch script would wait for a peer in vain."""
    role = role_from(environment, peer=peer, wait=None)
    assert (role.part, role.wait > 0) == (part, waits)
    assert role_from(environment, peer=peer, wait=7.0).wait == 7.0


def test_two_steps_do_not_meet() -> None:
    """A task of one job would talk with a task of another, about different mounts."""
    steps = [{"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": job} for job in ("1", "2")]
    first, second = (role_from(step, peer=False, wait=None).meeting for step in steps)
    assert first != second


# -- two hosts -------------------------------------------------------------------------------------------------------


def both(place: str, tmp_path: Path, of_leader: FileSystem, of_peer: FileSystem, boots: str = "ab") -> Report:
    """A verification by two hosts, each with its own look at the file system."""
    procs = [FakeProc(str(tmp_path / f"proc{number}"), boot=boot) for number, boot in enumerate(boots)]
    with ThreadPoolExecutor() as pool:
        peer = pool.submit(assist, of_peer, place, PEER, lambda text: None, proc=procs[1])
        report = verify(
            of_leader,
            place,
            LEADER,
            lambda text: None,
            proc=procs[0],
            mounts=str(tmp_path / "no mountinfo"),
            longest_delay=2.0,
        )
        assert peer.result(30) == Verdict(report.fitness, report.verdict)
    return report


def test_two_hosts_find_a_good_file_system_fit(place: str, tmp_path: Path) -> None:
    """Nobody would ever be told that a file system is fit for several hosts."""
    report = both(place, tmp_path, FileSystem(), FileSystem())
    assert report.fitness is Fitness.FIT, report.findings
    figures = {name: value for one in report.findings for name, value in one.figures.items()}
    assert figures["delay_listed"] < 2.0
    assert figures["delay_looked_up"] < 2.0


class Sleepy(FileSystem):
    """Of a host that is slow to look for what is said last."""

    def put_record(self, text: str, path: str, *, unique: bool = False) -> None:
        if text == "nudge" and any('"goodbye"' in said for said in self._said(os.path.dirname(path))):
            time.sleep(0.5)
        super().put_record(text, path, unique=unique)

    def _said(self, talk: str) -> list[str]:
        return [self.get_record(f"{talk}/{name}") for name in os.listdir(talk) if name.endswith(".leader")]


def test_a_peer_that_is_slow_hears_the_verdict(place: str, tmp_path: Path) -> None:
    """The leader would have removed what they talk in, and the peer end with an error that means nothing."""
    assert both(place, tmp_path, FileSystem(), Sleepy()).fitness is Fitness.FIT


def test_two_processes_of_one_host_are_one_host(place: str, tmp_path: Path) -> None:
    """Two shells on one host would vouch for what hosts do to each other."""
    report = both(place, tmp_path, FileSystem(), FileSystem(), boots="aa")
    assert report.fitness is Fitness.ONE_HOST
    assert "one host" in report.verdict
    assert len(report.hosts) == 2


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
        (Late, "names made by another host", "taken for dead"),
        (ReadsHalf, "a copy published by another host", "something else"),
        (ReplacesTheFull, "rename onto what another host filled", "is replaced"),
        (ReplacesNames, "two who make one record, between hosts", "both won"),
        (Refuses, "rename onto what another host filled", "Permission denied"),
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
    assert "differ by 60 min" in found(report, Weight.TOLD)["clocks of two hosts"]


def test_a_clock_that_is_wrong_is_told_of(place: str, tmp_path: Path) -> None:
    """A host whose clock is an hour off would hear of it only where a second host takes part."""
    report = alone(OwnClock(), place, tmp_path)
    assert "60 min ahead of this host's: lifetimes last longer" in found(report, Weight.TOLD)["clock"]


def test_a_peer_that_was_killed_is_not_waited_for_in_vain(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card of a peer that is no more would keep every later verification waiting."""
    monkeypatch.setattr(meeting, "_ANSWER", 0.2)
    card = f"{place}/{VERIFICATION}0123456789abcdef.peer"
    os.symlink('{"host":"gone","meeting":""}', card)
    report = alone(FileSystem(), place, tmp_path)
    os.unlink(card)
    assert len(report.hosts) == 1
    assert report.fitness is Fitness.ONE_HOST


def test_a_peer_that_falls_silent_is_named(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader would wait for ever for a host that was switched off, or not say for whom it waited."""
    monkeypatch.setattr(meeting, "PATIENCE", 1.0)
    peer = FakeProc(str(tmp_path / "proc"), boot="b")
    with ThreadPoolExecutor() as pool:

        def answer_once() -> None:
            fs = FileSystem()
            me = meeting.Host("node7", "b", 1)
            with meeting.join(Place(fs, Clock(), place), me, PEER, lambda text: None):
                assert peer.here()

        pool.submit(answer_once)
        report = verify(FileSystem(), place, LEADER, lambda text: None, mounts=str(tmp_path / "none"))
    assert report.fitness is Fitness.ONE_HOST
    assert "no message from node7 within 1 s" in report.verdict


@pytest.mark.parametrize("room", ["link", "../place", "data", ""])
def test_a_peer_enters_no_room_that_is_none(room: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write in a directory could send the peer of another user through a link into that user's own files."""
    monkeypatch.setattr(meeting, "unique", lambda: "0123456789abcdef")
    name = f"{VERIFICATION}link" if room == "link" else room
    if room == "link":
        os.symlink(place, f"{place}/{name}")
    os.symlink(json.dumps({"room": name}), f"{place}/{VERIFICATION}0123456789abcdef.call")
    with pytest.raises(TimedOut):
        assist(FileSystem(), place, PEER._replace(wait=0.2), lambda text: None)
    for left in set(os.listdir(place)) - {"data"}:
        assert os.path.islink(f"{place}/{left}")
        os.unlink(f"{place}/{left}")


def test_a_peer_without_a_leader_gives_up(place: str) -> None:
    """A peer that was started on the wrong mount would wait for ever."""
    with pytest.raises(TimedOut, match="no message from a leader"):
        assist(FileSystem(), place, PEER._replace(wait=0.2), lambda text: None)


class Script(Talk):
    """A leader that says what it is told to, and hears what the peer answers."""

    def __init__(self, *says: dict[str, object]) -> None:
        self.says = [{"host": "node8"}, *says, {"goodbye": "done", "fitness": "fit"}]
        self.heard: list[dict[str, object]] = []

    def hear(self) -> Said:
        said = Said(self.says.pop(0))
        if "goodbye" in said:
            raise Goodbye(said)
        return said

    def say(self, **fields: object) -> None:
        self.heard.append(fields)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"do": "clock", "in": "../place"}, "(in)"),
        ({"do": "clock", "in": ".."}, "(in)"),
        ({"do": "clock", "in": "p0/.."}, "(in)"),
        ({"do": "clock", "in": "p" + "0" * 300}, "(in)"),
        ({"do": "clock", "in": ["p0"]}, "(in)"),
        ({"do": "clock"}, "(in)"),
        ({"do": "something new", "in": "p0"}, "another release"),
        ({"do": ["clock"], "in": "p0"}, "(do)"),
        ({}, "(do)"),
        *(({"do": "watch", "in": "p0", "longest": longest}, "(longest)") for longest in ENDLESS),
        ({"do": "watch", "in": "p0"}, "(longest)"),
        *(({"do": "contest", "in": "p0", "name": A_CONTEST, "names": names}, "(names)") for names in ENDLESS),
        ({"do": "contest", "in": "p0", "name": A_CONTEST}, "(names)"),
        ({"do": "contest", "in": "p0", "name": "another", "names": 1}, "(name)"),
        ({"do": "contest", "in": "p0", "name": [], "names": 1}, "(name)"),
        ({"do": "contest", "in": "p0", "names": 1}, "(name)"),
        ({"do": "list", "in": "p0"}, "(name)"),
        ({"do": "list", "in": "p0", "name": {}}, "(name)"),
    ],
)
def test_a_peer_does_nothing_that_it_does_not_know(asked: dict[str, object], answer: str, place: str) -> None:
    """Who may write in a directory could have another user make names anywhere, wait or work without end; or a newer
    release get a traceback.
    """
    talk = Script(asked)
    assert pair.serve(Place(FileSystem(), Clock(), place), talk) == Verdict(Fitness.FIT, "done")
    assert answer in str(talk.heard[0]["failed"])


def test_a_peer_reads_no_file_without_end(tmp_path: Path) -> None:
    """A leader could keep another user's process reading for ever, with a sparse file that takes no room."""
    generation = tmp_path / "p0" / "generation"
    generation.mkdir(parents=True)
    with open(generation / "payload", "wb") as file:
        file.truncate(1 << 26)
    fs, talk = Counting(), Script({"do": "read", "in": "p0"}, {"go": True})
    pair.serve(Place(fs, Clock(), str(tmp_path)), talk)
    assert "digest" in talk.heard[1]
    assert fs.kinds().count("read") < 10


@pytest.mark.parametrize(
    "goodbye",
    [{"goodbye": "over"}, {"goodbye": "over", "fitness": "nope"}, {"goodbye": 1, "fitness": []}, {"goodbye": None}],
    ids=str,
)
def test_a_goodbye_without_a_verdict_is_none(goodbye: dict[str, object], place: str) -> None:
    """A peer would call it a fault in sc-dtool, or a success, that the leader has broken off."""
    with pytest.raises(CacheError, match="ended without a verdict") as refused:
        pair.serve(Place(FileSystem(), Clock(), place), Script(goodbye))
    assert "start both again" in str(refused.value.hint)


def test_a_talk_without_end_ends(tmp_path: Path) -> None:
    """A leader could keep another user's process at work for as long as it likes, by asking for one thing more."""
    clock = FakeClock()
    place = Place(FileSystem(), clock, str(tmp_path))
    leader, peer = Talk(place, "leader", "peer", "the peer", 1.0), Talk(place, "peer", "leader", "the leader", 1.0)

    def go_on() -> None:
        for _ in range(1000):
            leader.say(go=True)
            peer.hear()
            clock.let_pass(60.0)

    with pytest.raises(TimedOut, match="the leader has not finished within 60 min"):
        go_on()


# -- hosts that mean no good -------------------------------------------------------------------------------------------


class Stranger(FileSystem):
    """A peer's view by which it says something else than it should, in the answers that have a field, or in all."""

    def __init__(self, field: str, says: object) -> None:
        self._field, self._says = field, json.dumps(says)

    def put_record(self, text: str, path: str, *, unique: bool = False) -> None:
        is_said = path.endswith(".peer") and "/talk/" in path
        super().put_record(self._says if is_said and f'"{self._field}"' in text else text, path, unique=unique)


def introduced(**fields: object) -> dict[str, object]:
    """An introduction of a peer with something else in it."""
    return {"host": "node7", "boot": "b", "device": 1, **fields}


def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification of two hosts and one contest: for tests of how they talk."""
    monkeypatch.setattr(meeting, "PATIENCE", 1.0)
    monkeypatch.setattr(probes, "PROBES", {})
    monkeypatch.setattr(contests, "_RUNS", 1)
    monkeypatch.setattr(pair, "_CHECKS", {})
    for name in set(contests.CONTESTS) - {A_CONTEST}:
        monkeypatch.delitem(contests.CONTESTS, name)


@pytest.mark.parametrize(
    ("field", "says", "check", "word"),
    [
        ("device", introduced(device="abc"), "two hosts", "(device)"),
        ("device", introduced(device=[1]), "two hosts", "(device)"),
        ("device", introduced(device=-1), "two hosts", "(device)"),
        ("device", introduced(device=True), "two hosts", "(device)"),
        ("device", introduced(boot=None), "two hosts", "(boot)"),
        ("device", introduced(host={}), "two hosts", "(host)"),
        ("device", {}, "two hosts", "(host)"),
        ("device", introduced(goodbye=1), "two hosts", "the other has ended it"),
        ("ready", {"goodbye": 1}, "two hosts", "the other has ended it: no reason given"),
        ("second", {"goodbye": "so\x1b[2J"}, "two hosts", "the other has ended it: so�[2J"),
        ("second", {"failed": "so\x1b[2J"}, f"{A_CONTEST}, between hosts", "failed on node: so�[2J"),
        ("second", {}, f"{A_CONTEST}, between hosts", "(second)"),
    ],
)
def test_a_leader_believes_no_nonsense(
    field: str, says: object, check: str, word: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write in the directory could end the verification of another user in a traceback, without a report."""
    few_checks(monkeypatch)
    monkeypatch.setattr(verification, "host_name", lambda: "node")
    with ThreadPoolExecutor() as pool:
        proc = FakeProc(str(tmp_path / "proc"), boot="b")
        peer = pool.submit(assist, Stranger(field, says), place, PEER, lambda text: None, proc=proc)
        led = pool.submit(verify, FileSystem(), place, LEADER, lambda text: None, mounts=str(tmp_path / "no mountinfo"))
        report = led.result(30)
        with contextlib.suppress(CacheError):
            peer.result(30)
    assert report.fitness is Fitness.ONE_HOST
    assert word in found(report, Weight.ONE_HOST)[check]


class Parrot(Talk):
    """A peer that always answers the same."""

    name_of_other = "node7"

    def __init__(self, says: dict[str, object]) -> None:
        self._says = Said(says)

    def hear(self) -> Said:
        return self._says

    def say(self, **fields: object) -> None:
        """Nobody listens."""


#: What answers the leader, and does not make sense to it.
NONSENSE: dict[str, list[dict[str, object]]] = {
    f"{A_CONTEST}, between hosts": [
        {"second": "1"},
        {"second": "1" * 7},
        {"second": "9" * 6},
        {"second": "1" * 6 + "\n"},
        {"second": 111111},
        {"second": ["1"] * 6},
        {"failed": 1},
    ],
    "names made by another host": [{"there": "yes"}, {"there": 1}, {"there": None}],
    "rename onto what another host filled": [{"refused": 1}, {"refused": []}],
    "a copy published by another host": [{"digest": 1}],
    "clocks of two hosts": [
        {"offset": "now", "stamp": 1},
        {"offset": True, "stamp": 1},
        {"offset": 1e17, "stamp": 1},
        {"offset": float("nan"), "stamp": 1},
        {"offset": 1},
    ],
    "visibility between hosts": [
        {"looked up": "x", "listed": None},
        {"looked up": -1, "listed": None},
        {"looked up": 1e17, "listed": None},
        {"looked up": 1},
    ],
}


@pytest.mark.parametrize("says", [{}, *(says for answers in NONSENSE.values() for says in answers)], ids=str)
def test_an_answer_that_makes_no_sense_is_that_of_a_peer_that_failed(says: dict[str, object], tmp_path: Path) -> None:
    """An answer of another release, or a forged one, would end the leader in a traceback."""
    place = Place(FileSystem(), Clock(), str(tmp_path))
    checks = {one.check: one for one in pair.run(pair.Pair(place, Parrot(says), "", 0.1, lambda text: None))}
    for check in [check for check, answers in NONSENSE.items() if says in answers or says == {}]:
        assert checks[check].weight is Weight.ONE_HOST
        assert "failed on node7: what was said makes no sense" in checks[check].what


@pytest.mark.parametrize(
    "room", [1, ["x"], "..", f"{VERIFICATION}0123456789abcdef/..", f"{VERIFICATION}0123456789abcdef.peer"], ids=str
)
def test_a_peer_follows_no_call_that_makes_no_sense(room: object, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged call would end the peer of another user in a traceback, or lead it out of the directory."""
    monkeypatch.setattr(meeting, "unique", lambda: "0123456789abcdef")
    call = f"{place}/{VERIFICATION}0123456789abcdef.call"
    os.symlink(json.dumps({"room": room}), call)
    with pytest.raises(TimedOut, match="no message from a leader"):
        assist(FileSystem(), place, PEER._replace(wait=0.2), lambda text: None)
    os.unlink(call)


@pytest.mark.parametrize(
    ("greeting", "word"),
    [
        ({}, r"makes no sense \(host\)"),
        ({"host": 1}, r"makes no sense \(host\)"),
        ({"host": []}, r"makes no sense \(host\)"),
        ({"goodbye": 1}, "without a verdict"),
    ],
)
def test_a_leader_without_a_name_is_none(
    greeting: object, word: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged greeting would end the peer of another user in a traceback."""
    monkeypatch.setattr(meeting, "unique", lambda: "0123456789abcdef")
    room = f"{place}/{VERIFICATION}fedcba9876543210"
    os.makedirs(f"{room}/talk")
    os.symlink(json.dumps(greeting), f"{room}/talk/0.leader")
    call = f"{place}/{VERIFICATION}0123456789abcdef.call"
    os.symlink(json.dumps({"room": os.path.basename(room)}), call)
    with pytest.raises(CacheError, match=word) as refused:
        assist(FileSystem(), place, PEER, lambda text: None)
    assert "start both again" in str(refused.value.hint)
    shutil.rmtree(room)
    os.unlink(call)


def test_many_cards_do_not_keep_a_leader_busy(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write in the directory could have another user make as many names there as it likes."""
    monkeypatch.setattr(meeting, "_ANSWER", 0.2)
    cards = [f"{place}/{VERIFICATION}{number:016x}.peer" for number in range(100)]
    for number, card in enumerate(cards):
        os.symlink(json.dumps({"host": "gone", "meeting": "" if number else []}), card)
    fs = Counting()
    report = alone(fs, place, tmp_path)
    for card in cards:
        os.unlink(card)
    assert len(report.hosts) == 1
    assert sum(call.kind == "symlink" and call.path.endswith(".call") for call in fs.calls) == 20


@pytest.mark.parametrize("full", ["leader", "peer"])
def test_who_has_no_room_left_says_so_and_the_other_does_not_wait(full: str, place: str, tmp_path: Path) -> None:
    """A quota that is used up on one of two hosts would look like a host that was switched off."""
    failing = Failing()
    failing.fail("rename", errno.EDQUOT, within="/tmp /" if full == "leader" else "/yours")  # nowhere but between hosts
    of_leader, of_peer = (failing, FileSystem()) if full == "leader" else (FileSystem(), failing)
    procs = [FakeProc(str(tmp_path / f"proc{boot}"), boot=boot) for boot in "ab"]
    with ThreadPoolExecutor() as pool:
        peer = pool.submit(assist, of_peer, place, PEER, lambda text: None, proc=procs[1])
        led = pool.submit(
            verify, of_leader, place, LEADER, lambda text: None, proc=procs[0], mounts=str(tmp_path / "no mountinfo")
        )
        if full == "leader":
            with pytest.raises(NoSpace, match="Disk quota exceeded"):
                led.result(30)
            with pytest.raises(CacheError, match="ended without a verdict: Disk quota exceeded"):
                peer.result(30)
        else:
            with pytest.raises(NoSpace, match="Disk quota exceeded"):
                peer.result(30)
            assert "the other has ended it: Disk quota exceeded" in led.result(30).verdict
            assert led.result().fitness is Fitness.ONE_HOST
