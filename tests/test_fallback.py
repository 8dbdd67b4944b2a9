"""What only saves work is done without where it is refused, and the user is told once; what decides is not."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import httpserver
from faults import Failing, FakeClock, FakeProc, store_of
from sccache_dtool import fallback
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import TAG_NAME, TRANSFER_FILE, Layout
from sccache_dtool.errors import CacheError, NoSpace, TimedOut
from sccache_dtool.fetch import slots
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.sink import Sink
from sccache_dtool.fetch.track import Track
from sccache_dtool.liveness.caller import NAMED, Owner
from sccache_dtool.liveness.lifetime import Memory, memory_path
from sccache_dtool.liveness.record import HolderRecord
from sccache_dtool.policy.rules import Rules
from sccache_dtool.policy.thresholds import Limits
from sccache_dtool.protocol import holders
from sccache_dtool.protocol.election import make_election
from sccache_dtool.protocol.holders import Holder, HolderList

Making = Callable[..., Cache]
BODY = bytes(range(256)) * 100


@pytest.fixture
def server() -> Iterator[httpserver.Server]:
    """A web server."""
    with httpserver.serve() as running:
        yield running


def refuse(number: int) -> Callable[..., Any]:
    """A system call that always fails."""

    def call(*arguments: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def is_fetched(cache: Cache, *words: str) -> None:
    """Fetch an item, give it back and evict it."""
    with cache.use(*words) as path:
        assert path.exists()
    cache.clean(Rules(everything=True), keep_for=0)
    assert not path.exists()
    assert cache.examine() == []


# -- telling -----------------------------------------------------------------------------------------------------------


def test_each_text_is_logged_once(warnings: list[str]) -> None:
    """A program that fetches a million files would print a million warnings, or nobody would hear of it."""
    for text in ("no locks", "no threads", "no locks"):
        fallback.do_without(text)
    assert warnings == ["no locks", "no threads"]


def test_what_says_that_the_disk_is_full_or_failing_is_an_error() -> None:
    """A copy would be published that is not on the disk."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOENT, errno.ESTALE, errno.ELOOP):
        with pytest.raises(OSError), fallback.dispensable("nothing"):  # noqa: PT011
            refuse(number)()


# -- places among the downloads of this host ---------------------------------------------------------------------------


def use_url(make_cache: Making, server: httpserver.Server) -> None:
    """Download something."""
    is_fetched(make_cache(), server.page("/f", BODY))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EIO])
def test_a_download_needs_no_locks(
    make_cache: Making, server: httpserver.Server, monkeypatch: pytest.MonkeyPatch, warnings: list[str], number: int
) -> None:
    """Where flock fails a download would be queued behind nobody (Lustre without -o flock, NFS without lockd)."""
    monkeypatch.setattr("portalocker.portalocker.LOCKER", refuse(number))
    use_url(make_cache, server)
    assert "cannot be limited" in "".join(warnings)


@pytest.mark.parametrize("bad", ["status", "connection", "content"])
def test_asking_the_next_mirror_does_without_nothing(
    make_cache: Making, server: httpserver.Server, warnings: list[str], bad: str
) -> None:
    """A download after a dead mirror would be shown to nobody, and be lost when it is killed."""
    first = {
        "status": server.page("/gone", b"", status=404),
        "connection": "http://127.0.0.1:1/f",
        "content": server.page("/other", b"other"),
    }[bad]
    cache = make_cache()
    is_fetched(cache, f"{first}|{server.page('/f', BODY)}", f"sha256:{hashlib.sha256(BODY).hexdigest()}")
    assert warnings == []


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_place_that_is_taken_is_waited_for(clock: FakeClock, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The bound on downloads would bind nobody."""
    monkeypatch.setattr("portalocker.portalocker.LOCKER", refuse(number))
    queued: list[bool] = []
    with pytest.raises(TimedOut), slots.slot(clock, 3, lambda: queued.append(True)):
        pass
    assert queued == [True]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EMFILE])
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_download_needs_no_directory_for_temporary_files(
    make_cache: Making,
    server: httpserver.Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    warnings: list[str],
    call: str,
    number: int,
) -> None:
    """A full or read-only /tmp would stop a download into a cache that has space."""
    module = builtins if call == "open" else os
    original = getattr(module, call)

    def act(path: Any, *arguments: Any, **more: Any) -> Any:
        if f"sc-dtool-{os.geteuid()}" in str(path):
            raise OSError(number, os.strerror(number))
        return original(path, *arguments, **more)

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(module, call, act)
    use_url(make_cache, server)
    assert os.strerror(number) in "".join(warnings)


def test_another_directory_serves_where_the_first_is_not_there(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `su` the directory of the session is another user's, and downloads would not be limited; or litter the
    working directory, where Python looks for room for temporary files at last.
    """
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with slots.slot(clock, 0, lambda: None):
        (place,) = tmp_path.iterdir()
        assert len(list(place.iterdir())) == 1
    assert slots.directories()[-1].startswith("/tmp/")
    monkeypatch.setenv("TMPDIR", "here")
    assert all(os.path.isabs(place) for place in slots.directories())


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_a_download_needs_no_threads(
    make_cache: Making,
    server: httpserver.Server,
    no_thread: Callable[[int], None],
    layout: Layout,
    warnings: list[str],
    given: int,
) -> None:
    """On a login node that limits processes a download would end with "this is a fault in sc-dtool"."""
    body = bytes(20_000_000)
    url = server.page("/f", body)
    server.page("/f", body)
    cache = make_cache()
    starts = threading.Thread.start
    no_thread(given)

    def beside(thread: threading.Thread) -> None:  # the server's own threads are not of this program
        (starts if "process_request" in thread.name else limited)(thread)

    limited = threading.Thread.start
    threading.Thread.start = beside  # type: ignore[method-assign]
    lease = cache.use(url, f"sha256:{hashlib.sha256(body).hexdigest()}")
    assert any("cannot start a thread" in text for text in warnings)
    assert len(warnings) == len(set(warnings))
    lease.release()


def records_in(layout: Layout) -> list[HolderRecord]:
    """What the holders say of themselves."""
    fs = FileSystem()
    return [
        holders.read(store_of(fs, layout), name) for name in HolderList.glance(store_of(fs, layout)).present.values()
    ]


def test_a_program_without_a_heartbeat_has_no_lifetime(
    make_cache: Making, source: str, layout: Layout, no_thread: Callable[[int], None], clock: FakeClock
) -> None:
    """Twelve hours later another host would take it for dead, and delete what it reads."""
    no_thread(0)
    cache = make_cache()
    with cache.use(source) as path:
        assert [record.ttl for record in records_in(layout)] == [None]
        clock.let_pass(30 * 86_400)
        elsewhere = make_cache(proc=FakeProc(f"{layout.root}/proc", boot="0ther"))
        elsewhere.clean(Rules(everything=True), keep_for=0)
        assert path.exists()
    cache.close()
    assert records_in(layout) == []


def test_a_lifetime_that_was_asked_for_begins_after_a_download_without_a_heartbeat(
    make_cache: Making, source: str, layout: Layout, no_thread: Callable[[int], None], clock: FakeClock, proc: FakeProc
) -> None:
    """`use --ttl` would hold its item for ever, or lose it while it is fetched."""
    no_thread(0)
    cache = make_cache()
    fs, owner = FileSystem(), Owner(NAMED, None, "job", "")
    holder = Holder(store_of(fs, layout, clock=clock), owner, 3600.0)
    with holder.beating():
        assert [record.ttl for record in records_in(layout)] == [None]
        clock.let_pass(7200)
    assert [record.ttl for record in records_in(layout)] == [3600.0]
    assert not holder.lost
    (name,) = HolderList.glance(store_of(fs, layout)).present.values()
    assert name.end > 0
    with holder.beating():
        holders.revoke(store_of(fs, layout), next(iter(HolderList.glance(store_of(fs, layout)).present.values())))
    assert holder.lost
    holder.retire()
    lease = cache.hold(owner, cache.item_request([source]), UseOptions(ttl=3600.0))
    assert [record.ttl for record in records_in(layout)] == [3600.0]
    lease.release()


def test_a_lifetime_that_cannot_be_changed_stays(
    layout: Layout, no_thread: Callable[[int], None], clock: FakeClock
) -> None:
    """A holder would end, or think that it has no lifetime, because a disk is full."""
    no_thread(0)
    fs = Failing()
    holder = Holder(store_of(fs, layout, clock=clock), Owner(NAMED, None, "job", ""), 3600.0)
    fs.fail("symlink", errno.ENOSPC)
    with holder.beating():
        assert [record.ttl for record in records_in(layout)] == [3600.0]
    holder.beat()
    holder.retire()


def test_a_local_source_is_looked_at_without_a_thread(
    make_cache: Making, words: list[str], no_thread: Callable[[int], None]
) -> None:
    """On a login node that limits processes, no local file could be used."""
    no_thread(0)
    is_fetched(make_cache(), *words)


# -- permissions and synchronising -------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "directory", "tar", "zip"])
def words(request: pytest.FixtureRequest, source: str, tmp_path: Path) -> list[str]:
    """What is to be fetched: a file, a directory, or what is in an archive."""
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "f").write_text("x")
    if request.param == "file":
        return [source]
    if request.param == "directory":
        return [str(tree)]
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
            archive.writestr("tree/f", "x")
        return [str(tmp_path / "tree.zip"), "zip"]
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        member = tarfile.TarInfo("tree")
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(member)
        member = tarfile.TarInfo("tree/f")
        member.size, member.mode = 1, 0o644
        tar.addfile(member, io.BytesIO(b"x"))
    return [str(tmp_path / "tree.tar"), "tar"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS])
def test_an_item_needs_no_change_of_permissions(
    make_cache: Making, words: list[str], warnings: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nothing could be fetched where chmod is refused (CIFS, filesets with ACLs only, some FUSE mounts)."""
    for call in ("chmod", "fchmod"):
        monkeypatch.setattr(os, call, refuse(number))
    is_fetched(make_cache(), *words)
    assert [text for text in warnings if "permissions cannot be changed" in text]


def test_permissions_that_are_right_are_not_changed(
    make_cache: Making, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning would be printed where nothing is lost."""
    monkeypatch.setattr(os, "fchmod", refuse(errno.EPERM))
    monkeypatch.setattr(FileSystem, "write_new", lambda fs, path, text, **more: Path(path).write_text(text))
    make_cache().use(name="a name alone").release()
    assert warnings == []


def test_what_others_could_change_is_not_unpacked(
    make_cache: Making, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write there could lead what is unpacked to a file of the user's: that keeps others out, and saves no
    work, so it is not done without.
    """
    with tarfile.open(tmp_path / "f.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("f"))
    monkeypatch.setattr(os, "fchmod", refuse(errno.EPERM))
    mkdir = FileSystem.mkdir
    monkeypatch.setattr(
        FileSystem, "mkdir", lambda fs, path, *rest, **more: (mkdir(fs, path, *rest, **more), os.chmod(path, 0o777))
    )
    with pytest.raises(CacheError, match="others can write"):
        make_cache().use(str(tmp_path / "f.tar"), "tar")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES])
def test_directories_need_not_be_synchronised(
    make_cache: Making, words: list[str], warnings: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nothing could be fetched where fsync of a directory is refused (CIFS, 9p, VirtualBox, gcsfuse)."""

    def sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", sync)
    is_fetched(make_cache(), *words)
    assert [text for text in warnings if "fsync of directories fails" in text]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_files_that_cannot_be_synchronised_are_told_of(
    make_cache: Making, source: str, warnings: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nothing could be fetched where there is no fsync at all, or nobody would know that power failures matter."""
    monkeypatch.setattr(os, "fsync", refuse(number))
    is_fetched(make_cache(), source)
    assert [text for text in warnings if "power failure" in text]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("what", ["files", "directories"])
def test_what_is_not_on_the_disk_is_not_published(
    make_cache: Making, layout: Layout, source: str, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    """A payload that the disk has lost would be handed out as complete and verified."""

    def sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) == (what == "directories"):
            raise OSError(number, os.strerror(number))

    cache = make_cache()
    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(CacheError) as failed:
        cache.use(source)
    assert isinstance(failed.value, NoSpace) == (number != errno.EIO)
    assert os.listdir(layout.items) == [] or not list(Path(layout.items).glob("*/*/g*"))


def test_a_failure_to_synchronise_that_nobody_saw_is_not_forgotten(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of it once: if that is in the thread that says how far a download is, the end of the download
    sees none, and what the disk has lost is published.
    """
    track = Track(FileSystem(), str(tmp_path), NoProgress(), on_total=lambda size: None)
    track.begin({}, None, shared=False)
    with Sink(FileSystem(), str(tmp_path / "0"), (), track) as sink:
        track.follow(0, sink)
        sink.write(BODY)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse(errno.EIO))
            with pytest.raises(OSError, match="Input/output error"):
                track.pulse()
        with pytest.raises(OSError, match="Input/output error"):
            sink.write(BODY)
        with pytest.raises(OSError, match="Input/output error"):
            track.leave(interrupted=False)
    track.end()


# -- what others are told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EXDEV, errno.EROFS, errno.ENAMETOOLONG, errno.EPERM])
@pytest.mark.parametrize(("kind", "within"), [("create", TRANSFER_FILE), ("symlink", "at~"), ("rename", "at~")])
def test_a_fetch_goes_on_where_nobody_can_be_told_of_it(
    make_cache: Making, source: str, warnings: list[str], kind: str, within: str, number: int
) -> None:
    """A download that is good would be thrown away because it could not say how far it is."""
    fs = Failing()
    fs.fail(kind, number, within=within)
    if kind == "symlink":
        fs.fail("create", number, within=within)  # which is tried where there are no symbolic links
    is_fetched(make_cache(fs=fs), source)
    assert [text for text in warnings if "other processes can neither see" in text]


@pytest.mark.parametrize(("kind", "within"), [("rename", "part~"), ("symlink", "part~")])
def test_a_download_goes_on_where_it_cannot_be_continued(
    make_cache: Making, server: httpserver.Server, kind: str, within: str
) -> None:
    """The same, of the names by which others continue it."""
    fs = Failing()
    fs.fail(kind, errno.EACCES, within=within)
    url = server.pages("/f", httpserver.Page(BODY, short=9, etag='"1"'), httpserver.Page(BODY, etag='"1"'))
    is_fetched(make_cache(fs=fs), url)


def test_a_download_goes_on_where_it_cannot_be_said_what_it_is_of(
    make_cache: Making, server: httpserver.Server, warnings: list[str]
) -> None:
    """The same, of the file that says of which version of the source it is the beginning."""
    fs = Failing()
    fs.fail("create", errno.EACCES, within=".origin")
    url = server.pages("/f", httpserver.Page(BODY, short=9, etag='"1"'), httpserver.Page(BODY, etag='"1"'))
    is_fetched(make_cache(fs=fs), url)
    assert [text for text in warnings if "can continue this download" in text]


@pytest.mark.parametrize("kind", ["create", "mkdir", "names"])
def test_how_a_fetch_ended_need_not_be_noted(make_cache: Making, source: str, warnings: list[str], kind: str) -> None:
    """A complete download would be reported as failed, or the next user of the item would not get it."""
    fs = Failing()
    fs.fail(kind, errno.EACCES, within="/transfers")
    cache = make_cache(fs=fs)
    with cache.use(source) as path:
        assert path.exists()
    assert cache.transfers() == []
    assert [text for text in warnings if "ended" in text]


def test_a_cache_needs_no_tag(tmp_path: Path, warnings: list[str]) -> None:
    """A new cache would be reported as failed although it is there."""
    fs = Failing()
    fs.fail("create", errno.ENOSPC, within=TAG_NAME)
    cache = Cache(tmp_path / "new", fs=fs)
    assert cache.init()
    assert TAG_NAME in warnings[0]
    fs.repair()
    (finding,) = cache.examine()
    assert finding.repair is not None


# -- elections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENOENT])
@pytest.mark.parametrize("kind", ["names", "read_text", "symlink"])
def test_a_fetch_needs_no_election(
    make_cache: Making, source: str, warnings: list[str], kind: str, number: int
) -> None:
    """A directory of locks that somebody has closed, or removed, would stop every download."""
    fs = Failing()
    fs.fail(kind, number, within="/locks")
    with make_cache(fs=fs).use(source) as path:
        assert path.exists()
    assert kind != "symlink" or [text for text in warnings if "may do the same work" in text]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENOENT])
def test_nobody_waits_for_a_lock_whose_holder_cannot_be_looked_for(
    make_cache: Making, warnings: list[str], layout: Layout, number: int
) -> None:
    """A lock that does not say whose it is, in a directory that cannot be listed, would stop every download."""
    fs = Failing()
    election = make_election(make_cache(fs=fs).store, "work")
    Path(f"{layout.locks}/work.lock").touch()
    fs.fail("names", number, within="/locks")
    assert election.poll()
    assert election.winner() is None
    election.resign()
    assert [text for text in warnings if "may do the same work" in text]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EACCES])
@pytest.mark.parametrize("call", ["link", "utime"])
def test_a_fetch_needs_no_hard_links(
    make_cache: Making, source: str, layout: Layout, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """On BeeGFS, on exFAT, or after the last link that an inode may have, nothing could be fetched."""
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse(number))
        is_fetched(make_cache(), source)
    assert os.listdir(layout.locks) == []
    is_fetched(make_cache(), source)


def test_a_lock_is_given_back_where_link_counts_are_wrong(
    make_cache: Making, source: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSHFS has hard links and says that each file has one: the lock would stay, and the next download wait for it."""
    original = os.stat

    def look(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        found = original(path, *rest, **more)
        return os.stat_result((*found[:3], 1, *found[4:])) if "/locks/" in str(path) else found

    monkeypatch.setattr(os, "stat", look)
    is_fetched(make_cache(), source)
    assert os.listdir(layout.locks) == []


def test_a_fetch_without_a_sign_is_not_taken_for_abandoned(
    make_cache: Making, server: httpserver.Server, layout: Layout
) -> None:
    """Where nobody can be elected two who want the same would take the download from each other for ever."""
    fs = Failing()
    fs.fail("symlink", errno.EACCES, within="/locks")
    url = server.pages("/f", httpserver.Page(BODY, stall_after=1000), httpserver.Page(BODY))
    paths: list[Path] = []

    def use() -> None:
        with make_cache(fs=fs).use(url) as path:
            paths.append(path)

    first = threading.Thread(target=use)
    first.start()
    server.wait_for_gets("/f")
    other = Cache(layout.root, fs=(second := Failing()))
    second.fail("symlink", errno.EACCES, within="/locks")
    assert [one.state for one in other.transfers()] != ["abandoned"]
    with other.use(url) as path:
        assert path.read_bytes() == BODY
    other.close()
    server.release()
    first.join(60)
    assert paths


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_cleaning_needs_no_work_area(make_cache: Making, source: str, layout: Layout, number: int) -> None:
    """Where nothing can be made any more nothing could be removed either."""
    cache = make_cache()
    cache.use(source).release()
    fs = Failing()
    fs.fail("symlink", number, within="/holders/", times=1)
    assert len(make_cache(fs=fs).clean(Rules(everything=True), keep_for=0).removed) == 1


# -- the memory of this host -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_where_there_is_no_home_nothing_is_remembered(
    proc: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    """A directory called ``~`` would be made in the working directory of a service that has no home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path.replace("~", home or "~"))
    assert memory_path(proc, "seen") is None
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert memory_path(proc, "seen") is None


@pytest.mark.parametrize("call", ["open", "mkdir", "replace"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ENOTDIR])
def test_a_cleaning_needs_no_memory(
    make_cache: Making,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    call: str,
    number: int,
) -> None:
    """A home directory that is full, read-only or not there would keep a cron job from cleaning."""
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    for name in {"open": ["open"], "mkdir": ["mkdir"], "replace": ["replace"]}[call]:
        original = getattr(os, name)

        def act(path: Any, *rest: Any, original: Any = original, **more: Any) -> Any:
            if str(state) in str(path):
                raise OSError(number, os.strerror(number), path)
            return original(path, *rest, **more)

        monkeypatch.setattr(os, name, act)
    is_fetched(make_cache(), source)
    cache = make_cache()
    lease = cache.use(source)
    cache.reap()
    lease.release()


def test_a_memory_is_kept_where_there_are_no_locks(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a home directory on NFS without lockd every command would wait for ten seconds, and nothing be remembered."""
    monkeypatch.setattr("portalocker.portalocker.LOCKER", refuse(errno.ENOLCK))
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    for seconds in (0.0, 100.0):
        memory = Memory(str(tmp_path / "state" / "seen.json"), clock)
        with memory.remembered():
            assert memory.unchanged_for("holder") == seconds
        assert not memory.is_lost
        clock.let_pass(100)


def test_what_was_remembered_survives_a_full_disk(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that this host has seen of holders would be lost, and none be reaped, as often as the disk is full."""
    path = str(tmp_path / "seen.json")
    memory = Memory(path, clock)
    with memory.remembered():
        memory.unchanged_for("holder")
    clock.let_pass(100)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse(errno.ENOSPC))
        memory = Memory(path, clock)
        with memory.remembered():
            memory.unchanged_for("other")
        assert memory.is_lost
    assert sorted(os.listdir(tmp_path)) == ["lock", "seen.json"]
    memory = Memory(path, clock)
    with memory.remembered():
        assert memory.unchanged_for("holder") == 100


# -- a file system that does not say how large it is -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["zeros", "ENOSYS", "EACCES"])
def test_a_file_system_that_does_not_say_how_much_is_free(
    make_cache: Making, source: str, warnings: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A cache with space would be called full, and `clean` take "0 in all" for its size."""
    nothing = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", refuse(getattr(errno, how)) if how != "zeros" else lambda path: nothing)
    cache = make_cache()
    assert cache.free_space() is None
    assert cache.room() is None
    assert cache.overview().free is None
    lease = cache.hold(cache.owner("long-lived"), cache.item_request([source]), UseOptions(ttl=60.0, size=10**15))
    lease.release()
    assert cache.clean(Rules(limits=Limits(least_free=10**9))).removed == ()
    assert [text for text in warnings if "ignored" in text]
    from sccache_dtool import metrics

    assert "free_bytes" not in "".join(metrics.text(cache.state()))


def test_room_that_is_really_used_up_is_none(make_cache: Making, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would be taken for one that says nothing."""
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    cache = make_cache()
    assert cache.free_space() == 0
    with pytest.raises(NoSpace):
        cache.use(source)
