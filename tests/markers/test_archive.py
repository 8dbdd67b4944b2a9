"""Files by their content: what is archived, what is in the cache, and what a fault leaves of both."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from faults import Counting, Failing, FakeClock, Interposing
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, FetchFailed, NoSpace, UsageError
from sccache_dtool.fetch.objects import object_name
from sccache_dtool.markers import index, orphans
from sccache_dtool.markers.archive import Archive, Details
from sccache_dtool.policy.rules import Rules

ALL = Rules(everything=True)


def id_of(content: bytes) -> str:
    """What a file with this content is known by."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def object_of(archive: Archive, id: str) -> Path:
    """The file of an object in the archive."""
    return Path(archive.url, object_name(id.partition(":")[2]))


def tree(path: str | Path) -> list[str]:
    """All paths below a directory."""
    return sorted(str(one.relative_to(path)) for one in Path(path).rglob("*"))


def names_of(cache: Cache) -> set[str]:
    """The names of the items that have copies."""
    return {item.label for item in cache.items() if item.copies}


def make(directory: Path, name: str, content: bytes) -> Path:
    """A file."""
    path = directory / name
    path.write_bytes(content)
    return path


# -- adding ------------------------------------------------------------------------------------------------------------


def test_a_file_is_known_by_its_content(archived: Cache, data: Path) -> None:
    """The id would not find the bytes, in the archive, in the cache, or by `use`."""
    id = archived.add(data / "data.csv")
    assert id == id_of(b"0123456789")
    assert object_of(archived.archive, id).read_bytes() == b"0123456789"
    with archived.use(id) as path:
        assert path.read_bytes() == b"0123456789"


def test_the_same_content_is_stored_once_and_recorded_each_time(archived: Cache, data: Path) -> None:
    """Two names would make two objects or two items, or the second name would be lost."""
    make(data, "copy.csv", b"0123456789")
    assert archived.add(data / "data.csv") == archived.add(data / "copy.csv")
    archive = archived.archive
    assert len(list(archive.objects())) == 1
    assert {archive.details(one).name for one in archive.records()} == {"data.csv", "copy.csv"}
    assert len(list(archive.known())) == 1
    assert len([item for item in archived.items() if item.copies]) == 1


def test_an_object_is_checked_by_doctor(archived: Cache, data: Path) -> None:
    """A copy that rotted in the cache would be read as if it were the file."""
    id = archived.add(data / "data.csv")
    with archived.use(id) as path:
        pass
    path.chmod(0o644)
    path.write_bytes(b"012345678X")
    checked = archived.verify_content()
    assert checked.read == 1
    assert len(checked.bad) == 1


def test_adds_of_many_processes_are_all_kept(archived: Cache, data: Path, layout: Layout) -> None:
    """Of processes that add at the same time, one would overwrite what another has recorded."""
    for number in range(50):
        make(data, f"{number}", b"%d" % number)
    script = (
        "import sys\nfrom sccache_dtool.cache import Cache\ncache = Cache(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n    cache.files.add(name, archive_only=True)\n"
    )
    files = [str(data / str(number)) for number in range(50)]
    running = [subprocess.Popen([sys.executable, "-c", script, layout.root, *files]) for _ in range(8)]
    assert [one.wait() for one in running] == [0] * 8
    archive = archived.archive
    assert len(list(archive.records())) == 400
    assert len(list(archive.objects())) == len(list(archive.known())) == 50
    assert archive.staged() == []
    assert list(archive.verify(archive.objects())) == []


def test_a_file_that_changes_while_it_is_added_is_refused(
    make_cache: Callable[..., Cache], archived: Cache, data: Path
) -> None:
    """The id would be that of bytes which the file never had at one time."""
    path, fs = data / "data.csv", Interposing()
    growing = make_cache(fs=fs)
    for number in range(3, 12, 3):  # the look after the copy, of each attempt
        fs.before("lstat", lambda: path.write_bytes(path.read_bytes() + b"x"), within="data.csv", nth=number)
    with pytest.raises(FetchFailed, match="changed while it was copied"):
        growing.add(path)
    assert list(archived.archive.known()) == []
    assert archived.archive.staged() == []


KILLED = """
import os, signal, sys
from faults import Counting
from sccache_dtool.cache import Cache

class Killing(Counting):
    def handle(self, call, do):
        if len(self.calls) >= int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return do()

fs = Killing()
Cache(sys.argv[1], fs=fs).save(sys.argv[2])
print(len(fs.calls))
"""


def test_a_save_that_is_killed_leaves_nothing_wrong(archived: Cache, data: Path) -> None:
    """A crash would leave a known id without its file, half of an object, or a marker of what is not archived."""
    archive, real = archived.archive, Cache(archived.root)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

    def save(nth: int) -> subprocess.CompletedProcess[str]:
        path = make(data, f"{nth}", b"content %d" % nth)
        script = [sys.executable, "-c", KILLED, str(archived.root), str(path), str(nth)]
        return subprocess.run(script, env=environment, stdout=subprocess.PIPE, text=True, check=False)

    total = int(save(1_000_000).stdout)
    points = range(1, total, total // 15)
    for nth in points:
        assert save(nth).returncode == -signal.SIGKILL
        assert list(archive.verify(archive.known())) == []
        if (data / f"{nth}.marker").exists():
            assert archive.size(real.files.marker_of(data / f"{nth}").sha256) is not None
    again = [real.add(data / f"{nth}") for nth in points]
    assert {id[7:] for id in again} <= set(archive.known())
    real.reap()
    real.clean(ALL)
    real.close()
    assert os.listdir(f"{archived.root}/.sc-dtool/tmp") == []


def test_a_file_system_without_hard_links_is_served(
    make_cache: Callable[..., Cache], archived: Cache, data: Path
) -> None:
    """Nothing could be added on such a file system."""
    fs = Failing()
    fs.fail("link", errno.EPERM)
    cache = make_cache(fs=fs)
    assert cache.add(data / "data.csv") == cache.add(data / "data.csv")
    archive = archived.archive
    assert list(archive.verify(archive.objects())) == []
    assert len(list(archive.records())) == 2
    assert archive.staged() == []


# -- faults of the archive ---------------------------------------------------------------------------------------------


def test_a_damaged_object_is_named_and_never_published(archived: Cache, data: Path) -> None:
    """A job would read a flipped bit."""
    id = archived.files.add(str(data / "data.csv"), archive_only=True)
    path = object_of(archived.archive, id)
    path.chmod(0o644)
    path.write_bytes(b"0123456788")
    with pytest.raises(FetchFailed) as caught:
        archived.use(id)
    assert id in caught.value.message
    assert str(path) in caught.value.details[0]
    assert names_of(archived) == set()
    assert [error.message for error in archived.archive.verify(archived.archive.objects())] == [caught.value.message]


def test_adding_a_file_whose_object_is_damaged_says_so(archived: Cache, data: Path) -> None:
    """The file would be taken for archived, and deleted by its owner."""
    id = archived.files.add(str(data / "data.csv"), archive_only=True)
    path = object_of(archived.archive, id)
    path.chmod(0o644)
    path.write_bytes(b"0123456788")
    with pytest.raises(FetchFailed, match="damaged"):
        archived.add(data / "data.csv")
    assert len(list(archived.archive.records())) == 1


def test_an_archive_that_is_not_mounted_is_not_written(archived: Cache, data: Path, archive_path: Path) -> None:
    """Files would be archived on the disk below the mount point, and be gone after the next mount."""
    archive_path.rename(archive_path.with_name("away"))
    archive_path.mkdir()
    with pytest.raises(FetchFailed, match="there is no archive"):
        archived.save(data / "data.csv")
    assert tree(archive_path) == []
    assert tree(data) == ["data.csv"]
    assert names_of(archived) == set()


def test_later_keeps_the_only_copy_until_it_is_archived(archived: Cache, data: Path, archive_path: Path) -> None:
    """A cleaning would remove the only copy of a file whose owner was told that it is kept."""
    archive_path.rename(archive_path.with_name("away"))
    id = archived.files.add(str(data / "data.csv"), later=True)
    archived.clean(ALL)
    assert len(names_of(archived)) == 1
    key = archived.key_for([id])
    archived.pin(key)
    archived.unpin(key)
    archived.clean(ALL)
    assert len(names_of(archived)) == 1
    assert [error is not None for _, error in archived.files.push()] == [True]
    archive_path.with_name("away").rename(archive_path)
    assert list(archived.files.push()) == [(id, None)]
    assert list(archived.archive.verify(archived.archive.known())) == []
    archived.clean(ALL)
    assert names_of(archived) == set()
    assert list(archived.files.push()) == []


# -- the limit ---------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_object_makes_room(
    with_archive: Callable[..., Cache], data: Path, clock: FakeClock
) -> None:
    """What everybody uses would be evicted for what somebody adds."""
    cache = with_archive(limit='"20B"')
    a, b, c = (make(data, name, name.encode() * 10) for name in "abc")
    id_a = cache.add(a)
    clock.let_pass(10)
    id_b = cache.add(b)
    clock.let_pass(10)
    cache.use(id_a).release()
    clock.let_pass(10)
    id_c = cache.add(c)
    assert names_of(cache) == {f"sha256-{id[7:15]}" for id in (id_a, id_c)}
    clock.let_pass(10)
    cache.use(id_b).release()
    assert names_of(cache) == {f"sha256-{id[7:15]}" for id in (id_b, id_c)}


def test_a_file_above_the_limit_is_refused_before_anything_is_done(
    with_archive: Callable[..., Cache], data: Path, archive_path: Path
) -> None:
    """The whole cache would be emptied for a file that cannot fit."""
    cache = with_archive(limit='"10B"')
    cache.add(data / "data.csv")
    before = tree(archive_path), names_of(cache)
    large = make(data, "large", b"x" * 11)
    with pytest.raises(NoSpace, match="limit"):
        cache.add(large)
    assert (tree(archive_path), names_of(cache)) == before
    id = cache.files.add(str(large), archive_only=True)
    assert cache.archive.size(id[7:]) == 11
    with pytest.raises(NoSpace):
        cache.use(id)
    assert names_of(cache) == before[1]
    cache.files.copy_out(cache.files.marker_of(id), str(data / "got"), replace=False)
    assert (data / "got").read_bytes() == b"x" * 11


def test_nothing_is_evicted_for_an_object_that_is_lost(with_archive: Callable[..., Cache], data: Path) -> None:
    """The only copy of one file would be evicted to make room for another that does not come."""
    cache = with_archive(limit='"10B"')
    lost = cache.files.add(str(make(data, "lost", b"x" * 10)), archive_only=True)
    cache.add(data / "data.csv")
    object_of(cache.archive, lost).unlink()
    before = names_of(cache)
    with pytest.raises(FetchFailed, match="is not in the archive"):
        cache.open(lost)
    assert names_of(cache) == before


def test_what_is_leased_pinned_or_not_archived_makes_no_room(with_archive: Callable[..., Cache], data: Path) -> None:
    """Data would vanish under a reader, or the only copy would be evicted."""
    cache = with_archive(limit='"40B"')
    leased, pinned, gone = (cache.add(make(data, name, name.encode() * 10)) for name in "abc")
    lease = cache.use(leased)
    cache.pin(cache.key_for([pinned]))
    object_of(cache.archive, gone).unlink()
    before = names_of(cache)
    with pytest.raises(NoSpace) as caught:
        cache.add(make(data, "d", b"d" * 20))
    assert names_of(cache) == before
    assert any("sha256-" in line for line in caught.value.details)
    lease.release()


# -- reading -----------------------------------------------------------------------------------------------------------


def test_an_open_file_holds_its_object(archived: Cache, data: Path) -> None:
    """A cleaning would delete what a program is reading."""
    archived.save(data / "data.csv")
    with archived.open(data / "data.csv.marker") as file:
        archived.clean(ALL)
        assert file.read() == "0123456789"
        assert len(names_of(archived)) == 1
    archived.clean(ALL)
    assert names_of(archived) == set()


def test_a_forgotten_file_gives_its_lease_back(archived: Cache, data: Path) -> None:
    """A program that closes nothing would keep the whole cache full."""
    id = archived.add(data / "data.csv")
    file: IO[bytes] | None = archived.open(id, "rb")
    assert file is not None
    assert file.read(1) == b"0"
    with pytest.warns(ResourceWarning, match="unclosed file of the cache"):
        file = None
    gc.collect()
    archived.clean(ALL)
    assert names_of(archived) == set()


@pytest.mark.parametrize("mode", ["w", "a", "x", "r+", "wb", "rw", "", "U"])
def test_writing_is_refused_before_anything_is_fetched(archived: Cache, data: Path, mode: str) -> None:
    """The marker would not be true any more."""
    id = archived.files.add(str(data / "data.csv"), archive_only=True)
    with pytest.raises(ValueError, match="for reading"):
        archived.open(id, mode)
    assert names_of(archived) == set()


def test_text_bytes_and_offsets(archived: Cache, data: Path) -> None:
    """A program would read other characters than the file has, or from another place."""
    id = archived.add(make(data, "text", "zwölf\r\n".encode("latin-1")))
    with archived.open(id, "rb", offset=3) as file:
        assert file.read() == b"lf\r\n"
        file.seek(0)
        assert file.read(2) == b"zw"
    with archived.open(id, encoding="latin-1") as text:
        assert text.read() == "zwölf\n"
    with archived.open(id, encoding="latin-1", newline="", offset=2) as text:
        assert text.read() == "ölf\r\n"
    with archived.open(id, "rb", offset=100) as file:
        assert file.read() == b""


def test_open_costs_no_more_than_a_use(make_cache: Callable[..., Cache], archived: Cache, data: Path) -> None:
    """A loop over thousands of small files would wait for the file server more often than it must."""
    id = archived.add(data / "data.csv")
    fs = Counting()
    cache = make_cache(fs=fs)
    cache.use(id).release()
    fs.calls.clear()
    cache.use(id).release()
    of_use = fs.kinds()
    fs.calls.clear()
    cache.open(id, "rb").close()
    assert len(fs.kinds()) <= len(of_use), (fs.kinds(), of_use)


# -- the index and orphans ---------------------------------------------------------------------------------------------


def test_what_a_crash_left_without_a_record_is_known(archived: Cache, data: Path) -> None:
    """An object whose record was not written would never be listed again."""
    id = archived.add(data / "data.csv")
    (record,) = archived.archive.records()
    Path(archived.archive.url, "added", id[7:9], str(record)).unlink()
    assert list(archived.archive.known()) == [id[7:]]
    assert [one.identifier for one in index.entries(archived.archive)] == [id]


def test_a_record_that_is_damaged_is_still_an_entry(archived: Cache, data: Path) -> None:
    """One bad record would make the whole index unreadable."""
    id = archived.files.add(str(data / "data.csv"), comment="good")
    (record,) = archived.archive.records()
    path = Path(archived.archive.url, "added", id[7:9], str(record))
    path.chmod(0o644)
    path.write_text('{"comment": ')
    assert archived.archive.details(record).comment == ""
    assert [one.identifier for one in index.entries(archived.archive)] == [id]


def test_orphans_are_old_and_named_by_nobody(archived: Cache, data: Path, clock: FakeClock) -> None:
    """What a colleague added a minute ago would be deleted before the marker is committed."""
    old, named = archived.add(make(data, "old", b"old")), archived.add(data / "data.csv")
    assert list(orphans.find(archived.archive, {named[7:]})) == []
    clock.let_pass(8 * 86400)
    archived.add(make(data, "new", b"new"))
    assert list(orphans.find(archived.archive, {named[7:]})) == [(old[7:], 3)]
    assert orphans.remove(archived.archive, old[7:])
    assert archived.archive.size(old[7:]) is None
    assert orphans.empty_trash(archived.archive) == 0
    clock.let_pass(8 * 86400)
    assert orphans.empty_trash(archived.archive) == 1


def test_an_orphan_that_is_added_again_comes_back(
    make_cache: Callable[..., Cache], archived: Cache, data: Path, clock: FakeClock
) -> None:
    """A file that was added while orphans were deleted would be lost, although `add` has succeeded."""
    id = archived.add(data / "data.csv")
    clock.let_pass(8 * 86400)

    fs = Interposing()
    fs.before("rename", lambda: archived.archive.add_record(id[7:], Details(comment="again")), within="/objects/")
    racing = make_cache(fs=fs)
    assert not orphans.remove(racing.archive, id[7:])
    assert list(archived.archive.verify([id[7:]])) == []


def test_settings_that_name_no_archive(cache: Cache, data: Path) -> None:
    """The user would not be told where to name one."""
    with pytest.raises(UsageError, match="no archive") as caught:
        cache.add(data / "data.csv")
    assert "config.toml" in str(caught.value.hint)
    with pytest.raises(CacheError, match="no archive"):
        cache.use(id_of(b"x"))


def test_a_fault_while_the_object_is_placed_leaves_no_record(
    make_cache: Callable[..., Cache], archived: Cache, data: Path
) -> None:
    """A full archive would list a file that it does not have."""
    fs = Failing()
    fs.fail("link", errno.ENOSPC)
    cache = make_cache(fs=fs)
    with pytest.raises((CacheError, OSError)):
        cache.add(data / "data.csv")
    assert list(archived.archive.known()) == []
    assert archived.archive.staged() == []
    assert names_of(archived) == set()
