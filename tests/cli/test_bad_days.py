"""Bad days: full disks, kills in the middle, garbage in the cache, others at work, rights that are missing."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sccache_dtool
from cli.tool import (
    PYTHON,
    SC_DTOOL,
    Disk,
    Done,
    call,
    environment,
    finish,
    heard,
    make_tar,
    one_line_error,
    shell,
    start,
)
from httpserver import Server
from sccache_dtool.disk.filesystem import FileSystem
from waiting import wait_until

Sc = Callable[..., Done]

# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = shell(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)])
    if mounted.code:
        pytest.skip(f"cannot mount a small file system here: {mounted.err.strip()}")
    yield place
    shell(["umount", "-l", str(place)])


@pytest.mark.root
@pytest.mark.parametrize("kind", ["file", "http", "tar"])
def test_a_disk_that_is_really_full(small_disk: Path, sc: Sc, server: Server, tmp_path: Path, kind: str) -> None:
    """A download that fills the disk would leave half a file there, and the disk full."""
    body = os.urandom(700_000)
    source = tmp_path / "big"
    words: list[str | Path] = [source]
    if kind == "tar":
        make_tar(source, {"a": body, "b": bytes(10)})
        words.append("tar")
    else:
        source.write_bytes(body * 2)
    if kind == "http":
        words = [server.page("/big", source.read_bytes())]
    sc("-C", small_disk, "init")
    before = shutil.disk_usage(small_disk).used
    done = sc("-C", small_disk, "use", *words, "--holder", f"pid:{os.getpid()}")
    assert done.code == 13
    assert done.out == ""
    assert "o space left" in one_line_error(done)
    assert re.search(r"sc-dtool (\S+ \S+ )?clean\b", done.err)
    assert Disk(small_disk).left() == []
    assert shutil.disk_usage(small_disk).used < before + 50_000
    (tmp_path / "fits").write_bytes(bytes(100_000))
    assert sc("-C", small_disk, "use", tmp_path / "fits", "--holder", f"pid:{os.getpid()}").code == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("method", ["write", "symlink", "mkdir", "create", "rename", "sync", "seal"])
def test_no_space_at_whichever_call(
    sc: Sc, source: str, disk: Disk, monkeypatch: pytest.MonkeyPatch, number: int, method: str
) -> None:
    """A quota that is used up would look like a fault of ours, or leave something behind, wherever it strikes."""
    sc("init")
    allowed = {"rename": 0, "mkdir": 1}.get(method, 0)
    real = getattr(FileSystem, method)

    def full(self: FileSystem, *arguments: object, **more: object) -> object:
        nonlocal allowed
        if method == "rename" and "/trash/" in str(arguments):
            return real(self, *arguments, **more)
        if allowed:
            allowed -= 1
            return real(self, *arguments, **more)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, method, full)
        done = sc("use", source)
    assert done.code == 13, done
    assert done.out == ""
    one_line_error(done)
    assert disk.left() == []
    assert sc("use", source).code == 0


def test_no_space_for_a_lease_on_what_is_cached(
    sc: Sc, source: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk would give out paths without a lease."""
    sc("use", source)

    def full(self: FileSystem, text: str, path: str, **more: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "symlink", full)
        done = sc("use", source)
    assert done.code == 13
    assert done.out == ""
    assert len(disk.leases()) == 1


def test_a_failing_disk_is_no_full_one(sc: Sc, source: str, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken disk would be reported as a full one, and somebody would go and clean."""

    def broken(self: FileSystem, fd: int, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    sc("init")
    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "write", broken)
        done = sc("use", source)
    assert done.code in (1, 12)
    assert "Input/output error" in one_line_error(done)
    assert disk.left() == []


# -- interrupted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("how", [{"hold": True}, {"stall_after": 500_000}], ids=str)
def test_interrupted_in_the_middle_of_a_download(
    server: Server, sc: Sc, disk: Disk, number: int, code: int, how: dict[str, object]
) -> None:
    """A job that is cancelled while it downloads would leave half a file, its lease or a lock behind."""
    sc("init")
    url = server.page("/x.bin", bytes(1_000_000), **how)
    with start([SC_DTOOL, "use", url]) as fetching:
        server.wait_for_gets("/x.bin")
        if "stall_after" in how:
            wait_until(lambda: any(path.stat().st_size for path in disk.control.glob("tmp/*/work/*")), "no bytes")
        fetching.send_signal(number)
        done = finish(fetching)
    assert done.code == code
    assert done.out == ""
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 1
    assert disk.left() == []


def test_ctrl_c_on_a_terminal(server: Server, sc: Sc, disk: Disk) -> None:
    """Whoever presses Ctrl-C while they wait for a download would leave it running, or a lock behind."""
    import pty

    sc("init")
    url = server.page("/x.bin", bytes(1_000_000), stall_after=500_000)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(SC_DTOOL, [SC_DTOOL, "use", url])
    server.wait_for_gets("/x.bin")
    os.write(terminal, b"\x03")
    shown = b""
    try:
        while part := os.read(terminal, 10_000):
            shown += part
    except OSError:
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(terminal)
    assert b"interrupted" in shown
    assert b"Traceback" not in shown
    assert disk.left() == []


def _kill_while_it_fetches(script: str, server: Server) -> None:
    """Run a script, and end it and all its children with SIGKILL once it has asked for /x.bin, as batch systems do."""
    with start(["sh", "-c", script], start_new_session=True) as job:
        server.wait_for_gets("/x.bin")
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        wait_until(lambda: not _is_running(job.pid), "the end of all processes of the job")


def _is_running(group: int) -> bool:
    """Whether a process of a group is left; a killed one is there until the kernel gets round to all of its threads."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group, *more = stat.read_text().rpartition(") ")[2].split()
            threads = int(more[14])
            if int(its_group) == group and (state not in "ZX" or threads > 1):
                return True
    return False


def test_killed_in_the_middle_of_a_download(server: Server, sc: Sc, disk: Disk) -> None:
    """After a kill -9 the next job would wait for the dead, find half a file, or never get the item."""
    sc("init")
    body = os.urandom(1_000_000)
    url = server.page("/x.bin", body, stall_after=500_000)
    _kill_while_it_fetches(f"sc-dtool use {url}; true", server)
    assert disk.copies() == []
    server.page("/x.bin", body)
    assert sc("use", url).path.read_bytes() == body
    assert sc("unuse", url).code == 0
    assert sc("clean", "--all", "-y").code == 0
    assert disk.copies() == disk.holders() == []
    assert disk.names("tmp") == disk.names("trash") == []
    assert sc("doctor") == Done(0, "0 findings\n", "")


def test_what_a_killed_download_leaves_goes_though_its_caller_lives(server: Server, sc: Sc, disk: Disk) -> None:
    """A workflow manager whose downloads are killed would fill the disk with halves of files until it ends."""
    sc("init")
    url = server.page("/x.bin", bytes(1_000_000), stall_after=500_000)
    _kill_while_it_fetches(f"sc-dtool use --holder workflow {url}; true", server)
    assert len(disk.names("tmp")) == 1
    sc("clean", "--all", "-y")
    assert disk.names("tmp") == []


def test_waiting_for_another_s_download(server: Server, sc: Sc) -> None:
    """Whoever waits would not learn for whom, would wait for ever, or download a second time."""
    sc("init")
    url = server.page("/x.bin", bytes(1_000_000), stall_after=500_000)
    with start([SC_DTOOL, "use", url]) as fetching:
        server.wait_for_gets("/x.bin")
        done = sc("use", "--wait", "0s", url)
        assert done.code == 11
        assert "is still being fetched by another process" in one_line_error(done)
        assert f"process {fetching.pid}" in done.err
        with start([SC_DTOOL, "use", url]) as waiting:
            assert waiting.stderr is not None
            assert f"process {fetching.pid}" in waiting.stderr.readline()  # said after a second
            server.release()
            assert finish(waiting).path == finish(fetching).path
    assert server.gets["/x.bin"] == 1


def test_whoever_waits_takes_over_from_the_dead(server: Server, sc: Sc) -> None:
    """All who wait would hang for minutes when the one who downloads is killed."""
    sc("init")
    url = server.page("/x.bin", bytes(1_000_000), stall_after=500_000)
    with start([SC_DTOOL, "use", url]) as fetching, start([SC_DTOOL, "use", url]) as waiting:
        server.wait_for_gets("/x.bin")
        assert waiting.stderr is not None
        first, second = fetching, waiting
        if f"process {waiting.pid}" in sc("use", "--wait", "0s", url).err:
            first, second = waiting, fetching
        first.kill()
        server.release()
        assert finish(second).path.stat().st_size == 1_000_000


def test_a_failed_download_is_tried_again_by_the_next(server: Server, sc: Sc, disk: Disk) -> None:
    """One bad moment of a server would spoil an item for all time."""
    url = server.page("/x.bin", status=404)
    assert sc("use", url).code == 12
    server.page("/x.bin", b"now it is there")
    assert sc("use", url).path.read_bytes() == b"now it is there"
    assert len(disk.copies()) == 1


# -- two cleaners ------------------------------------------------------------------------------------------------------

CLEANER = """
import sys
from sccache_dtool.cache import Cache
from sccache_dtool.evict.cleaning import only_cleaner
with only_cleaner(Cache(sys.argv[1]).store):
    print("at it", flush=True)
    sys.stdin.readline()
"""


def test_two_cleaners_at_once(sc: Sc, source: str, disk: Disk) -> None:
    """Two cron jobs on two nodes would do the same work twice, or fail without saying why."""
    sc("use", source)
    sc("unuse", source)
    with start([PYTHON, "-c", CLEANER, str(disk.root)]) as other:
        assert heard(other) == "at it"
        done = sc("clean", "--all", "-y")
        assert done.code == 14
        assert done.out == ""
        assert "another cleaner is running" in one_line_error(done)
        assert f"process {other.pid}" in done.err
        assert len(disk.copies()) == 1
        assert finish(other).code == 0
    assert sc("clean", "--all", "-y").code == 0
    assert disk.left() == []


def test_a_cleaner_that_was_killed(sc: Sc, source: str, disk: Disk) -> None:
    """After a kill -9 of the cleaner nobody could clean any more."""
    sc("use", source)
    sc("unuse", source)
    with start([PYTHON, "-c", CLEANER, str(disk.root)]) as other:
        heard(other)
        other.kill()
        other.wait()
    assert sc("clean", "--all", "-y").code == 0
    assert disk.copies() == []


def test_reading_goes_on_while_somebody_cleans(sc: Sc, source: str, disk: Disk) -> None:
    """A cleaner at work would keep jobs from starting."""
    sc("use", source)
    with start([PYTHON, "-c", CLEANER, str(disk.root)]) as other:
        heard(other)
        for words in (["use", source], ["unuse", source], ["du"], ["status"], ["why", "ref.fa"], ["reap"], ["doctor"]):
            assert sc(*words).code == 0
        finish(other)


# -- garbage in the control directory ----------------------------------------------------------------------------------

PLACES = {
    "items": "items/garbage",
    "a shard": "items/{shard}/garbage",
    "an item": "items/{shard}/{key}/garbage",
    "a gate": "items/{shard}/{key}/{generation}/use/garbage",
    "a history": "items/{shard}/{key}/history/garbage",
    "holders": "holders/garbage",
    "gone holders": "holders/gone/garbage",
    "tmp": "tmp/garbage",
    "trash": "trash/garbage",
    "locks": "locks/garbage",
    "a key of another shard": "items/{shard}/ffffffffffffffffffffffffffffffff-x",
    "a holder without a record": "holders/s0123456789ab-0123456789ab.0.0",
    "a holder with a lifetime": "holders/n0123456789ab-0123456789ab.3.999999999999",
    "a shard that is a file": "items/00",
}


def _file(path: Path) -> None:
    path.write_text("garbage")


def _old_file(path: Path) -> None:
    path.write_text("garbage")
    os.utime(path, (0, 0))


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "deep").write_text("garbage")


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


OURS = dict.fromkeys(("use", "unuse"), ("--holder", f"pid:{os.getpid()}"))

ALL = [
    ["use", "{source}"],
    ["du"],
    ["ls"],
    ["status"],
    ["status", "ref.fa"],
    ["why", "ref.fa"],
    ["log"],
    ["reap"],
    ["unuse", "{source}"],
    ["clean", "--older-than", "1d"],
    ["clean", "--all", "-n"],
]


@pytest.mark.parametrize("kind", [_file, _old_file, _directory, _link, _fifo])
@pytest.mark.parametrize("where", list(PLACES))
def test_garbage_is_named_and_left_alone(
    sc: Sc, source: str, disk: Disk, where: str, kind: Callable[[Path], None]
) -> None:
    """One odd file in the cache, put there by who knows whom, would stop every job, or be deleted."""
    path = sc("use", source).path
    place = PLACES[where].format(shard=path.parents[3].name, key=path.parents[2].name, generation=path.parents[1].name)
    garbage = disk.control / place
    kind(garbage)
    said = ""
    for words in ALL:
        done = sc("-q", *words[:1], *OURS.get(words[0], ()), *(word.format(source=source) for word in words[1:]))
        assert done.code == 0, (words, done)
        assert "Traceback" not in done.err
        assert all(line.startswith("warning: ") for line in done.err.splitlines()), done
        said += done.err
    named = garbage / "deep" if (where, kind) == ("a shard that is a file", _directory) else garbage
    assert f"warning: {named}: " in said
    assert said.count(f"warning: {named}: ") <= len(ALL)
    assert os.path.lexists(garbage)
    found = sc("-f", "json", "doctor", "--fix")
    assert found.code == 20
    assert str(named) in [row["path"] for row in found.rows("finding")]
    assert os.path.lexists(garbage)
    assert path.read_text() == "ACGT\n"


@pytest.mark.parametrize("kind", [_file, _directory, _link, _fifo])
def test_garbage_in_a_gate_counts_as_held(sc: Sc, source: str, disk: Disk, kind: Callable[[Path], None]) -> None:
    """Something in a gate that we do not understand would be taken for nothing, and the data deleted."""
    path = sc("use", source).path
    sc("unuse", source)
    kind(path.parents[1] / "use" / "garbage")
    assert "kept 1 item in use" in sc("clean", "--all", "-y").out
    assert sc("rm", "ref.fa").code == 14
    assert sc("-f", "json", "du").row("item")["leases"] == 1
    assert "unknown" in sc("why", "ref.fa").out
    assert path.exists()
    assert sc("unuse", "--evict-if-last", source).code == 0
    assert path.exists()


@pytest.mark.parametrize("text", ["", "{}", "no json", "[" * 100_000, '{"kind":"process"}', "\x00"])
def test_a_holder_whose_record_is_garbage_is_alive(sc: Sc, source: str, disk: Disk, text: str) -> None:
    """A record that a crash has damaged would let the data of a living job go."""
    sc("use", source)
    (holder,) = disk.holders()
    holder.unlink()
    holder.write_text(text)
    done = sc("reap")
    assert done.out == "ended 0 leases\n"
    assert f"warning: {holder}: " in done.err
    assert "counted as alive" in done.err
    assert sc("rm", "ref.fa").code == 14
    assert len(disk.leases()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": 3, "by": 4, "seconds": "x", "fetched": {}}', "\xff" * 10])
def test_an_item_json_that_is_garbage(sc: Sc, source: str, disk: Disk, text: str) -> None:
    """A file that only informs would keep an item from being used or shown."""
    path = sc("use", source).path
    facts = path.parents[1] / "item.json"
    facts.chmod(0o600)
    facts.write_bytes(text.encode("latin-1"))
    for words in (["use", source], ["du"], ["ls"], ["status", "ref.fa"], ["du", "--by", "user"], ["unuse", source]):
        assert sc(*words).code == 0
        assert sc("-f", "json", *words).code == 0
    if not text.startswith('{"'):
        assert f"warning: {facts}: " in sc("ls", "-l").err


def test_a_history_that_is_garbage(sc: Sc, source: str, disk: Disk) -> None:
    """A damaged record of old uses would keep an item from being used or shown, or lose the other uses."""
    sc("use", source)
    sc("unuse", source)
    (history,) = disk.control.glob("items/*/*/history")
    (history / "segment-3-1700000000000-0123456789abcdef").write_bytes(b"\xff\xfe garbage\n\n")
    for words in (["use", source], ["du"], ["log"], ["unuse", source], ["clean", "--older-than", "1d"]):
        done = sc(*words)
        assert done.code == 0
        assert "Traceback" not in done.err
    assert len(sc("-f", "json", "log").rows("use")) == 2


# -- the cache goes away -----------------------------------------------------------------------------------------------


def test_a_cache_that_is_removed_meanwhile(source: str, root: Path) -> None:
    """A command whose cache is removed while it runs would make half a cache again, which nobody can use."""
    done = call("run", source, "--", "rm", "-rf", root)
    assert done.code in (0, 75)
    assert "Traceback" not in done.err
    assert not root.exists()
    assert call("unuse", source).code == 10
    assert call("use", source).code == 0


def test_a_cache_that_is_removed_during_a_download(server: Server, sc: Sc, root: Path) -> None:
    """A download into a cache that is gone would be a traceback, or come back from the dead."""
    sc("init")
    url = server.page("/x.bin", bytes(1_000_000), stall_after=500_000)
    with start([SC_DTOOL, "use", url]) as fetching:
        server.wait_for_gets("/x.bin")
        wait_until(lambda: list(root.glob(".sc-dtool/tmp/*/work/*")), "no work area")
        fetching.send_signal(signal.SIGSTOP)  # or it would make names in the directories that are being removed
        os.waitpid(fetching.pid, os.WUNTRACED)
        shutil.rmtree(root)
        fetching.send_signal(signal.SIGCONT)
        server.release()
        done = finish(fetching)
    assert done.code not in (0, 2)
    assert done.out == ""
    one_line_error(done)
    assert not list(root.glob(".sc-dtool/items/*/*/g*"))


# -- rights ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_rights() -> list[str]:
    """What to put before a command so that root is bound by the permissions of others' files."""
    words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown", "--"]
    if shutil.which("setpriv") is None or shell([*words, "true"]).code:
        pytest.skip("setpriv cannot take rights from root here")
    return words


#: Runs several commands in one process, up to the first that fails.
SEVERAL = """
import sys
from sccache_dtool.cli.main import run
for line in sys.argv[1:]:
    code = run(["-q", *line.split()])
    if code:
        sys.exit(f"{line} ended with exit code {code}")
"""


def _give_away(path: Path, mode: int) -> None:
    os.chown(path, 65534, 65534)
    path.chmod(mode)


@pytest.mark.root
@pytest.mark.parametrize(
    "where", ["a shard", "an item", "a gate", "a history", "a payload", "item.json", "a holder", "a work area"]
)
def test_what_may_not_be_read(without_rights: list[str], source: str, sc: Sc, disk: Disk, where: str) -> None:
    """Something that another user keeps private would stop every command, or be taken for unused."""
    path = sc("use", source).path
    generation = path.parents[1]
    if where == "a holder":
        (holder,) = disk.holders()
        text = os.readlink(holder)
        holder.unlink()
        holder.write_text(text)
        place = holder
    elif where == "a work area":
        place = disk.control / "tmp" / "p000000000000-000000000000.0~fetch"
        (place / "payload").mkdir(parents=True)
    else:
        places = {"a shard": path.parents[3], "an item": path.parents[2], "a gate": generation / "use"}
        places |= {"a history": generation.parent / "history", "a payload": generation / "payload"}
        places |= {"item.json": generation / "item.json"}
        place = places[where]
        (generation.parent / "history").mkdir(exist_ok=True)
    _give_away(place, 0)
    done = shell([*without_rights, PYTHON, "-c", SEVERAL, "du", "ls --long", "status", "log", "reap", "clean --all -y"])
    assert done.code == 0, done
    assert "Traceback" not in done.err
    assert str(place).removesuffix("~fetch") in done.err
    assert "ermission denied" in done.err or "not permitted" in done.err
    if where != "a work area":
        place.chmod(0o700)
    assert path.read_text() == "ACGT\n"


@pytest.mark.root
def test_a_cache_that_may_only_be_read(without_rights: list[str], source: str, sc: Sc, disk: Disk) -> None:
    """Who may only look at a cache would see tracebacks, or nothing."""
    sc("use", source)
    for path in [disk.root, *disk.root.rglob("*")]:
        if not path.is_symlink():
            os.chown(path, 65534, 65534)
            path.chmod(path.stat().st_mode & ~0o222)
    for words in (["du"], ["ls"], ["status"], ["status", "ref.fa"], ["why", "ref.fa"], ["log"], ["dir"], ["config"]):
        done = shell([*without_rights, SC_DTOOL, "-q", *words])
        assert (done.code, done.err) == (0, ""), (words, done)
    for words in (["use", source], ["unuse", source], ["reap"], ["rm", "ref.fa"], ["renew"]):
        done = shell([*without_rights, SC_DTOOL, *words])
        assert done.code in ((0, 1) if words[0] == "unuse" else (1,)), (words, done)
        if done.code:
            assert "ermission denied" in one_line_error(done)
    assert len(disk.leases()) == 1


@pytest.mark.root
def test_a_read_only_mount(source: str, sc: Sc, disk: Disk) -> None:
    """A cache on a read-only mount would see tracebacks, or nothing."""
    sc("use", source)
    mount = f"mount --bind {disk.root} {disk.root} && mount -o remount,ro,bind {disk.root}"
    if shell(["unshare", "--mount", "sh", "-c", mount]).code:
        pytest.skip("no mount name spaces here")
    for words, code in (("du", 0), ("why ref.fa", 0), ("status", 0), (f"use {source}", 1), ("reap", 1)):
        done = shell(["unshare", "--mount", "sh", "-c", f"{mount} && exec sc-dtool {words}"])
        assert done.code == code, done
        if code:
            assert "Read-only file system" in one_line_error(done)


class Stranger:
    """Another user of this machine, in a group with us."""

    def __init__(self, place: Path, group: int) -> None:
        self.place = place
        self.group = group
        self._packages = [str(Path(sccache_dtool.__file__).parents[1]), *filter(None, sys.path)]

    def argv(self, *words: str) -> list[str]:
        """The command line of sc-dtool as that user. Its lease is the caller's, as always."""
        identity = ["setpriv", "--reuid=65534", f"--regid={self.group}", "--clear-groups", "--"]
        return [*identity, self._python(), "-m", "sccache_dtool", *words]

    def __call__(self, *words: str | Path) -> Done:
        return shell(self.argv(*map(str, words)), env=self.env(), cwd="/")

    def env(self) -> dict[str, str]:
        """Its environment."""
        own = {"PYTHONPATH": os.pathsep.join(self._packages), "HOME": str(self.place), "XDG_STATE_HOME": ""}
        return dict(environment(**own, DTOOL_CACHE_DIRECTORY=str(self.place / "cache")))

    def _python(self) -> str:
        for python in (PYTHON, "/usr/bin/python3"):
            probe = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", _IMPORTS]
            if shell(probe, env=self.env(), cwd="/").code == 0:
                return python
        pytest.skip("no Python that another user may run, and that finds our packages")


_IMPORTS = "import sys, sccache_dtool.cli.main, flufl.lock, humanize, rich; assert sys.version_info >= (3, 11)"


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """Another user, and a directory that both may use; the cache of a group is in it."""
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv to become another user with")
    with tempfile.TemporaryDirectory() as directory:  # pytest's own directories are closed to others
        place = Path(directory)
        place.chmod(0o755)
        cache = place / "cache"
        cache.mkdir()
        os.chown(cache, 0, 65533)
        cache.chmod(0o2770)
        yield Stranger(place, 65533)


@pytest.mark.root
def test_two_users_share_a_cache(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A colleague could not use, give back or clean what one has fetched, or would delete it under one's hands."""
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(stranger.place / "cache"))
    monkeypatch.chdir("/")
    source = stranger.place / "ref.fa"
    source.write_text("ACGT\n")
    source.chmod(0o644)
    disk = Disk(stranger.place / "cache")
    ours = shell(["sh", "-c", f"umask 077; exec {SC_DTOOL} use {source} --holder us"])
    assert ours.path.read_text() == "ACGT\n"
    theirs = stranger("use", source, "--holder", "them")
    assert theirs.path == ours.path
    readable = ["setpriv", "--reuid=65534", "--regid=65533", "--clear-groups", "cat", str(theirs.path)]
    assert shell(readable).out == "ACGT\n"
    assert len(disk.leases()) == 2
    assert "kept 1 item in use" in stranger("clean", "--all", "-y").out
    assert stranger("unuse", source, "--holder", "them").err == ""
    assert "kept 1 item in use" in stranger("clean", "--all", "-y").out
    why = stranger("why", "ref.fa").out
    assert f"{pwd.getpwuid(0).pw_name}@" in why
    assert call("unuse", source, "--holder", "us").err == ""
    done = stranger("clean", "--all", "-y")
    assert (done.code, done.err) == (0, "")
    assert disk.left() == []
    assert stranger("doctor") == Done(0, "0 findings\n", "")
    other = stranger("use", "-n", "theirs", "--holder", "them")
    assert call("use", "-n", "theirs", "--holder", "us").path == other.path


@pytest.mark.root
def test_a_user_who_may_not_even_look(stranger: Stranger, tmp_path: Path) -> None:
    """Who is no member of the group would see a traceback."""
    call("-C", stranger.place / "cache", "init")
    stranger.group = 65534
    for words in (["du"], ["use", "-n", "x"], ["clean", "--all", "-y"], ["init"]):
        done = stranger(*words)
        assert done.code in (1, 2, 10), done
        assert "ermission denied" in one_line_error(done)


@pytest.mark.root
def test_another_user_s_processes_are_judged_rightly(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaner who is not root would take other users' running jobs for dead."""
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(stranger.place / "cache"))
    disk = Disk(stranger.place / "cache")
    with start(["cat"], cwd="/") as job:
        assert call("use", "-n", "ours", "--holder", f"pid:{job.pid}").code == 0
        assert stranger("reap").out == "ended 0 leases\n"
        assert len(disk.leases()) == 1
        finish(job)
    assert stranger("reap").out.endswith("ended 1 lease\n")
    assert disk.leases() == []


@pytest.mark.no_cache
def test_a_group_that_is_shared_with_nobody(root: Path, source: str) -> None:
    """A private cache would be opened to a group by a lax umask, or closed to its owner by a strict one."""
    root.mkdir(mode=0o700)
    for umask in ("077", "000", "027"):
        done = shell(["sh", "-c", f"umask {umask}; p=$(sc-dtool use {source}) && cat $p && sc-dtool unuse {source}"])
        assert (done.code, done.out) == (0, "ACGT\n")
    assert root.stat().st_mode & 0o777 == 0o700
    assert grp.getgrgid(root.stat().st_gid) is not None


# -- many at once ------------------------------------------------------------------------------------------------------


def test_many_processes_on_one_item(server: Server, sc: Sc, disk: Disk) -> None:
    """An array job whose tasks begin at once would download as often as it has tasks."""
    url = server.page("/x.bin", bytes(100_000))
    sc("init")
    jobs = [
        subprocess.Popen([SC_DTOOL, "use", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    paths = {Done(job.returncode, out, err).path for job in jobs for out, err in [job.communicate(timeout=60)]}
    assert len(paths) == 1
    assert server.gets["/x.bin"] == 1
    assert len(disk.leases()) == 8
    assert disk.names("tmp") == disk.names("locks") == []
