"""A copy of a local source is used only while the source is what it was when it was fetched."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import httpserver
from faults import Counting, FakeClock, Interposing, store_of
from sccache_dtool.cache import Cache
from sccache_dtool.catalog import items
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import patience, versions
from sccache_dtool.fetch.stack import parse_stack
from waiting import PATIENCE

Make = Callable[..., Cache]


def change(path: str | Path, text: str) -> None:
    """Write another content of the same length, as one who comes a while later."""
    status = os.stat(path)
    assert len(text) == status.st_size
    Path(path).write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_a_source_that_has_changed_is_fetched_again(cache: Cache, make_cache: Make, source: str) -> None:
    """The old content would be given for ever, however often the file is written again."""
    old = cache.use(source)
    change(source, "TTTT\n")
    new = cache.use(source)
    assert new.path.read_text() == "TTTT\n"
    assert old.path.read_text() == "ACGT\n"  # whoever holds it keeps it
    assert make_cache().use(source).path == new.path
    assert old.key == new.key


def test_what_has_not_changed_is_not_fetched_again(cache: Cache, make_cache: Make, source: str) -> None:
    """Every use of a local file would be another copy."""
    first = cache.use(source)
    os.chmod(source, 0o600)
    os.link(source, f"{source}.backup")  # as a backup does: it changes the ctime
    assert cache.use(source).path == first.path
    assert make_cache().use(source).path == first.path


def test_a_look_at_the_source_asks_nothing_of_the_cache(make_cache: Make, source: str) -> None:
    """A hit would cost the file server of the cache more than the one call that takes the lease."""
    make_cache().use(source)
    fs = Counting()
    cache = make_cache(fs=fs)
    cache.use(source)
    first = Counter(fs.kinds())
    assert first["read_text"] <= 2  # FORMAT and the settings, and no item.json
    fs.calls.clear()
    cache.use(source)
    assert fs.kinds() == ["symlink"]


def test_the_uses_of_all_versions_are_those_of_the_item(cache: Cache, source: str) -> None:
    """What is used every day would look unused whenever its source has changed."""
    key = cache.use(source).key
    change(source, "TTTT\n")
    cache.use(source)
    cache.close()
    item = cache.item(key)
    assert (item.uses, len(item.copies)) == (2, 2)


def test_a_file_of_another_host_under_the_same_path_is_another_version(
    cache: Cache, source: str, tmp_path: Path
) -> None:
    """Who asks for /tmp/x of one host would be given /tmp/x of another."""
    mine, aside = cache.use(source), tmp_path / "aside"
    os.rename(source, aside)
    Path(source).write_text("TTTT\n")
    os.utime(source, ns=(0, os.stat(aside).st_mtime_ns + 1))
    theirs = cache.use(source)
    assert (mine.path.read_text(), theirs.path.read_text()) == ("ACGT\n", "TTTT\n")
    os.rename(aside, source)
    assert cache.use(source).path == mine.path


def test_the_same_file_on_the_disks_of_two_hosts_is_one_version(cache: Cache, source: str) -> None:
    """A reference that is kept on the disk of every node would be in the cache once for every node."""
    first = cache.use(source)
    shutil.copy2(source, f"{source}.new")
    os.rename(f"{source}.new", source)  # another inode, and another ctime
    assert cache.use(source).path == first.path


def test_with_a_digest_the_digest_alone_decides(cache: Cache, source: str) -> None:
    """What is known by its content would be fetched again because somebody has touched it."""
    digest = f"sha256:{hashlib.sha256(b'ACGT' + bytes([10])).hexdigest()}"
    first = cache.use(source, digest)
    change(source, "TTTT\n")
    assert cache.use(source, digest).path == first.path
    assert cache.use(source, digest, refresh=True).path == first.path


@pytest.mark.parametrize("what", ["content", "new", "gone", "link"])
def test_a_directory_is_another_version_if_anything_in_it_is(cache: Cache, tmp_path: Path, what: str) -> None:
    """A file that is written in place, or far below, leaves the times of the directory as they were."""
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("one")
    (tree / "a" / "link").symlink_to("b")
    first = cache.use(tree)
    assert cache.use(tree).path == first.path
    if what == "content":
        change(tree / "a" / "b" / "file", "two")
    elif what == "new":
        (tree / "a" / "b" / "more").write_text("")
    elif what == "gone":
        (tree / "a" / "b" / "file").unlink()
    else:
        (tree / "a" / "link").unlink()
        (tree / "a" / "link").symlink_to("elsewhere")
    second = cache.use(tree)
    assert second.path != first.path
    assert cache.use(tree).path == second.path


def test_a_link_that_leads_elsewhere_is_another_version(cache: Cache, tmp_path: Path) -> None:
    """`/data/current` would stay what it was when it was first used."""
    for number in (1, 2):
        (tmp_path / f"v{number}").write_text(f"version {number}")
        os.utime(tmp_path / f"v{number}", ns=(0, number))
    (tmp_path / "current").symlink_to("v1")
    assert cache.use(tmp_path / "current").path.read_text() == "version 1"
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("v2")
    assert cache.use(tmp_path / "current").path.read_text() == "version 2"


@pytest.mark.parametrize("several", [False, True])
def test_what_cannot_be_looked_at_is_taken_from_the_cache_with_a_warning(
    cache: Cache, source: str, warnings: list[str], tmp_path: Path, several: bool
) -> None:
    """What was staged where an archive is mounted could not be used where it is not."""
    (tmp_path / "other").write_text("other")
    words = (source, str(tmp_path / "other")) if several else (source,)
    first = cache.use(*words)
    os.rename(source, f"{source}.away")
    assert cache.use(*words).path == first.path
    assert f"cannot read file:{source}: No such file or directory" in warnings[-1]
    with pytest.raises(FetchFailed, match="cannot read") as caught:
        cache.use(*words, refresh=True)
    assert "leave out --refresh" in str(caught.value.hint)
    if several:  # what can be looked at is still compared
        change(tmp_path / "other", "OTHER")
        with pytest.raises(FetchFailed, match="No such file"):
            cache.use(*words)


def test_mirrors_are_known_by_the_first_of_them(cache: Cache, source: str, tmp_path: Path) -> None:
    """What was fetched from a mirror, because the first could not be read, would be fetched again at every use."""
    first, second = tmp_path / "first", Path(source)
    os.mkfifo(first)  # is there, and cannot be copied
    words = f"file:{first}|file:{second}"
    lease = cache.use(words)
    assert lease.path.read_text() == "ACGT\n"
    assert cache.use(words).path == lease.path
    first.unlink()
    first.write_text("first")
    assert cache.use(words).path.read_text() == "first"


def test_a_name_stands_for_what_its_source_is_now(cache: Cache, source: str) -> None:
    """-n would keep the old content under its name."""
    cache.use(source, name="ref")
    change(source, "TTTT\n")
    assert cache.use(source, name="ref").path.read_text() == "TTTT\n"


@pytest.mark.parametrize("name", [None, "ref"])
def test_a_local_source_is_looked_at_whatever_the_age(cache: Cache, source: str, name: str | None) -> None:
    """With --max-age, a job would be given the content of a file of another host, or of one that has changed."""
    first = cache.use(source, name=name)
    assert cache.use(source, name=name, max_age=60).path == first.path
    change(source, "TTTT\n")
    assert cache.use(source, name=name, max_age=60).path.read_text() == "TTTT\n"


def test_a_local_source_with_another_of_a_server_is_looked_at_as_well(
    cache: Cache, source: str, clock: FakeClock
) -> None:
    """What is made of a local file and of a URL would keep the old content of the file."""
    with httpserver.serve() as server:
        url = server.page("/b", b"b", etag='"1"')
        first = cache.use(source, url, max_age=60)
        assert (cache.use(source, url, max_age=60).path, server.gets["/b"]) == (first.path, 1)
        clock.let_pass(61)
        assert (cache.use(source, url, max_age=60).path, server.gets["/b"]) == (first.path, 2)
        change(source, "TTTT\n")
        assert (cache.use(source, url, max_age=60).path / Path(source).name).read_text() == "TTTT\n"


def test_a_copy_says_what_it_is_of(cache: Cache, source: str, tmp_path: Path) -> None:
    """Nobody could tell two versions apart."""
    os.utime(source, ns=(0, 1_234_567_890_000_000_001))
    (copy,) = cache.item(cache.use(source).key).copies
    assert cache.facts(copy).versions == [{"source": f"file:{source}", "size": 5, "mtime": "1234567890.000000001"}]
    assert copy.generation.version == versions.tag(["5 1234567890.000000001"])


def test_a_source_that_does_not_answer_does_not_hang_a_hit(
    cache: Cache, source: str, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server of an archive is down, no job could use what is in the cache."""
    first = cache.use(source)
    silent = threading.Event()
    monkeypatch.setattr(versions, "PATIENCE", 0.05)
    stat = os.stat

    def stat_of_a_silent_server(path: Any, **more: Any) -> os.stat_result:
        if path == source:
            silent.wait(PATIENCE)
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", stat_of_a_silent_server)
    try:
        assert cache.use(source).path == first.path
        assert "no answer for" in warnings[-1]
        with pytest.raises(FetchFailed, match="no answer for"):
            cache.use(source, refresh=True)
    finally:
        silent.set()


def test_a_tree_that_takes_long_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large directory on a slow server would be taken for one that does not answer."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abcdef":
        (tree / name).write_text(name)
    expected = versions.look(str(tree))
    turn, answered = threading.Semaphore(0), threading.Semaphore(0)
    waits = []

    class InTurns:
        """The time is always over, and one more answer has come in it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def acquire(self, timeout: float | None = None) -> bool:
            if timeout is None:
                return self._lock.acquire()
            if waits:
                turn.release()
            waits.append(timeout)
            answered.acquire()
            return self._lock.acquire(blocking=False)

        def release(self) -> None:
            self._lock.release()
            answered.release()

    really = versions.describe

    def describe(*words: Any) -> bytes:
        answered.release()
        turn.acquire()
        return really(*words)

    monkeypatch.setattr(patience, "Lock", InTurns)
    monkeypatch.setattr(versions, "describe", describe)
    assert versions.look(str(tree)) == expected
    assert waits == [versions.PATIENCE] * 7  # six entries, and the end


# -- changes while it is copied ----------------------------------------------------------------------------------------


def test_a_directory_that_changes_while_it_is_copied_is_refused(
    make_cache: Make, tmp_path: Path, layout: Layout
) -> None:
    """A mixture of two versions would be published as one of them."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("a")
    (tree / "b").write_text("b")
    fs = Interposing()
    fs.before("open", lambda: (tree / "c").write_text("late"), within="/tree/b")
    with pytest.raises(FetchFailed, match="changed while it was copied"):
        make_cache(fs=fs).use(tree)
    key = make_cache().item_request([str(tree)]).key
    assert items.generations(store_of(FileSystem(), layout), key) == []


@pytest.mark.parametrize(
    ("age", "nanoseconds", "least"), [(0.0, 1, 0.02), (0.0, 0, 2.0), (-1.0, 1, 0.02), (61.0, 1, 0.0), (61.0, 0, 0.0)]
)
def test_a_file_that_was_just_written_is_given_time_to_get_another_one(
    make_cache: Make, source: str, age: float, nanoseconds: int, least: float
) -> None:
    """Written twice in one tick of the clock, a file keeps its time, and its first content would be given for ever."""
    written = 1_700_000_000
    os.utime(source, ns=(0, written * 1_000_000_000 + nanoseconds))
    clock = FakeClock(wall=written + age)
    make_cache(clock=clock).use(source)
    assert clock.passed == pytest.approx(least)


def test_a_change_in_that_time_is_seen(make_cache: Make, source: str) -> None:
    """The wait would be for nothing."""
    clock = FakeClock(wall=os.stat(source).st_mtime)
    really = clock.sleep

    def sleep(seconds: float) -> None:
        really(seconds)
        change(source, "TTTT\n")

    clock.sleep = sleep  # type: ignore[method-assign]
    with pytest.raises(FetchFailed, match="changed while it was copied"):
        make_cache(clock=clock).use(source)


def test_a_file_that_may_not_be_read_is_looked_at_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may list a file and not read it would be given any version of it, with a warning at each use."""
    (tmp_path / "x").write_text("x")
    expected = versions.look(str(tmp_path / "x"))

    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(versions.os, "open", refuse)
    assert versions.look(str(tmp_path / "x")) == expected


def test_a_device_is_not_opened_to_look_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open a tape rewinds it, and to open a FIFO waits for a writer."""
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(versions.os, "open", None)
    versions.look(str(tmp_path / "fifo"))


def test_sources_that_nobody_looks_at_have_no_version() -> None:
    """A hit on what is far away would depend on something on this host."""
    current = versions.now(parse_stack(["https://example.org/x", "tar"]))
    assert (current.tag, current.unreadable) == (None, ())
    assert not versions.is_tracked(parse_stack(["https://example.org/x"]))


def test_who_wants_another_version_does_not_wait(make_cache: Make, source: str) -> None:
    """The hundred nodes of a job, each with its own /tmp/input, would copy them one after the other."""
    slow, wanted = make_cache(), make_cache().item_request([source])
    other: list[str] = []

    class Meanwhile(Interposing):
        """Somebody on another host wants what the path leads to there, while this host copies."""

    fs = Meanwhile()

    def use_elsewhere() -> None:
        os.rename(source, f"{source}.here")
        Path(source).write_text("TTTT\n")
        os.utime(source, ns=(0, 1))
        other.append(make_cache().use(source).path.read_text())
        os.rename(f"{source}.here", source)

    fs.before("read", use_elsewhere)
    assert make_cache(fs=fs).use_request(wanted).path.read_text() == "ACGT\n"
    assert other == ["TTTT\n"]
    assert len(slow.item(wanted.key).copies) == 2
