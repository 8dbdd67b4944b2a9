"""Payloads that a purge of the file system removed, which ignores leases: nobody is given a path to nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import httpserver
from faults import Call, Counting, Failing
from sccache_dtool.cache import Cache
from sccache_dtool.catalog import items
from sccache_dtool.disk import names as names
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, Generation, Layout
from sccache_dtool.liveness import caller
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.protocol.leases import Lease

Making = Callable[..., Cache]

JOB = Owner(caller.NAMED, None, "a job", "")


@pytest.fixture
def tree(tmp_path: Path) -> str:
    """A directory to be cached, with six entries below it."""
    source = tmp_path / "tree"
    (source / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three", "a/b/four"):
        (source / name).write_text(name)
    return str(source)


def copies(layout: Layout) -> list[str]:
    return sorted(str(path.parent) for path in Path(layout.items).glob(f"*/*/g*/{GATE}"))


def leases(layout: Layout) -> list[str]:
    return sorted(path.name for path in Path(layout.items).glob(f"*/*/g*/{GATE}/*"))


def _remove(path: Path) -> None:
    path.unlink()


def _remove_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def _cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("")


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _link(path: Path) -> None:
    path.rename(path.with_name("archived"))
    path.symlink_to("archived")


def _special(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


#: What may have become of a file, and of a directory with six entries.
OF_FILE = [_remove, _remove_directory, _cut, _dangling, _link, _special]


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path)


def _remove_files(path: Path) -> None:
    for one in [one for one in path.rglob("*") if one.is_file()]:
        one.unlink()


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _remove_one(path: Path) -> None:
    (path / "a" / "b" / "three").unlink()


OF_TREE = [_remove_tree, _remove_files, _empty, _remove_one]


def _use(cache: Cache, source: str) -> Lease:
    return cache.use(source)


def _hold(cache: Cache, source: str) -> Lease:
    return cache.hold(JOB, cache.item_request([source]))


@pytest.mark.parametrize("take", [_use, _hold])
@pytest.mark.parametrize("purge", OF_FILE)
def test_a_file_that_was_purged_is_fetched_again(
    make_cache: Making,
    source: str,
    layout: Layout,
    notes: list[str],
    purge: Callable[[Path], None],
    take: Callable[[Cache, str], Lease],
) -> None:
    """A job would be given, with exit code 0, a path to nothing, and so would all that come later."""
    lease = make_cache().use(source)
    lease.release()
    purge(lease.path)
    again = take(make_cache(), source)
    assert again.path.read_text() == "ACGT\n"
    assert copies(layout) == [str(Path(again.place.gate).parent)]
    assert leases(layout) == [again.name]
    assert len([note for note in notes if "fetching it again" in note]) == 1


@pytest.mark.parametrize("purge", OF_TREE)
def test_a_tree_that_was_purged_is_fetched_again(
    make_cache: Making, tree: str, layout: Layout, purge: Callable[[Path], None]
) -> None:
    """A job would read a dataset that has lost some of its files, and compute something else."""
    lease = make_cache().use(tree)
    lease.release()
    purge(lease.path)
    again = make_cache().use(tree)
    assert (again.path / "a" / "b" / "three").read_text() == "a/b/three"
    assert copies(layout) == [str(Path(again.place.gate).parent)]


def test_what_a_purge_left_is_removed(make_cache: Making, tree: str, layout: Layout) -> None:
    """The space of the old copy would be taken until the next `clean`, and `doctor` would call it an interruption."""
    cache = make_cache()
    lease = cache.use(tree)
    lease.release()
    _remove_one(lease.path)
    make_cache().use(tree)
    assert os.listdir(layout.trash) == []
    assert cache.examine() == []


def test_what_programs_put_beside_the_files_does_not_matter(make_cache: Making, tree: str) -> None:
    """A program that writes an index into the directory would have it fetched again by each job."""
    lease = make_cache().use(tree)
    lease.release()
    (lease.path / "a" / "two.index").write_text("an index")
    assert make_cache().use(tree).path == lease.path


def test_what_programs_put_beside_a_file_does_not_matter(make_cache: Making, tmp_path: Path, layout: Layout) -> None:
    """An index beside a file would have the file fetched again by each use, or lost, where its server is gone."""
    with httpserver.serve() as server:
        url = server.page("/7", b"ACGT\n", headers={"Content-Disposition": "attachment; filename=ref.fa"})
        with make_cache().use(url) as path:
            path.with_name("a.fai").write_text("index")
            path.with_name("ref.fa.fai").write_text("index")
    (before,) = copies(layout)
    cache = make_cache()
    with cache.use(url) as again:
        assert again == path
    assert copies(layout) == [before]
    (copy,) = next(iter(cache.items())).copies
    assert cache.path(copy) == path
    key = copy.key
    cache.remove(key, keep_for=3600.0)
    cache.restore(key)
    with cache.use(url) as restored:
        assert restored.name == "ref.fa"
        assert restored.with_name("ref.fa.fai").read_text() == "index"


def test_directories_and_empty_items_are_whole(make_cache: Making, tmp_path: Path) -> None:
    """What has no files would be fetched again by each job."""
    (tmp_path / "hollow" / "directory").mkdir(parents=True)
    (tmp_path / "empty").touch()
    cache = make_cache()
    for words in ((tmp_path / "hollow",), (tmp_path / "empty",)):
        assert cache.use(*words).path == make_cache().use(*words).path
    assert cache.use(name="a count").path == make_cache().use(name="a count").path


def test_a_large_tree_is_not_counted(layout: Layout, tmp_path: Path) -> None:
    """Each use of a dataset of a million files would list them all."""
    for number in range(40):
        (tmp_path / "large" / f"{number:02}").mkdir(parents=True)
        for name in range(40):
            (tmp_path / "large" / f"{number:02}" / str(name)).touch()
    assert FileSystem().sample(str(tmp_path / "large"), 100) == (100, True, False)
    whole = Generation("0123456789abcdef", 1_800_000_000, 5, 10**6)
    assert items.is_whole(FileSystem(), str(tmp_path / "large"), whole)
    for name in (tmp_path / "large").rglob("*"):
        if name.is_file():
            name.unlink()
    assert not items.is_whole(FileSystem(), str(tmp_path / "large"), whole)


def test_a_purged_copy_that_somebody_holds_is_left_to_them(make_cache: Making, source: str, layout: Layout) -> None:
    """Who has the file open would be reported as a user of something else, or keep everybody from the data."""
    held = make_cache().use(source)
    held.path.unlink()
    for _ in range(2):
        again = make_cache(fs=FileSystem()).use(source)
        assert again.path.read_text() == "ACGT\n"
        assert again.path != held.path
    assert len(copies(layout)) == 2
    assert held.name in leases(layout)
    assert held.release()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ETIMEDOUT])
def test_what_cannot_be_looked_at_is_not_taken_for_purged(make_cache: Making, source: str, number: int) -> None:
    """After one fault of the file server everything would be fetched again."""
    lease = make_cache().use(source)
    lease.release()
    fs = Failing()
    fs.fail("lstat", number, within="/payload/")
    assert make_cache(fs=fs).use(source).path == lease.path


class Remembering(Counting):
    """An NFS client that has looked into a payload directory before it was filled, and remembers what it saw."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self._size = size  # of the file when it was looked at; None: it was not there
        self._remembers = True

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        if call.kind in ("touch", "open") and "/payload" in call.path:
            self._remembers = False
        result = do()
        if not (self._remembers and call.kind == "lstat" and "/payload/" in call.path):
            return result
        if self._size is None:
            raise FileNotFoundError(errno.ENOENT, "remembered", call.path)
        return os.stat_result((*result[:6], self._size, *result[7:10]))


@pytest.mark.parametrize("size", [None, 3])
def test_what_a_client_remembers_of_before_the_publication_is_no_proof(
    make_cache: Making, source: str, size: int | None
) -> None:
    """What another host has just published would be removed, and fetched a second time."""
    lease = make_cache().use(source)
    lease.release()
    assert make_cache(fs=Remembering(size)).use(source).path == lease.path


def test_a_description_that_was_purged_keeps_nobody_from_the_data(make_cache: Making, source: str) -> None:
    """A purge that removes small old files would have everything fetched again."""
    lease = make_cache().use(source)
    lease.release()
    (Path(lease.place.gate).parent / names.ITEM_FILE).unlink()
    assert make_cache().use(source).path == lease.path


def test_what_a_process_has_used_before_is_not_looked_at_again(make_cache: Making, source: str) -> None:
    """A program that uses an item a million times would load the server with more than two requests each time."""
    fs = Counting()
    cache = make_cache(fs=fs)
    cache.use(source).release()
    fs.calls.clear()
    cache.use(source).release()
    assert fs.kinds() == ["symlink", "rename"]


def test_an_interruption_while_looking_leaves_no_lease(make_cache: Making, source: str, layout: Layout) -> None:
    """A Ctrl-C at the wrong moment would keep the item for as long as the program lives."""
    make_cache().use(source).release()

    class Interrupted(Counting):
        def handle(self, call: object, do: Callable[[], object]) -> object:
            if "lstat" in str(call) and "/payload/" in str(call):
                raise KeyboardInterrupt
            return do()

    cache = make_cache(fs=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        cache.use(source)
    assert leases(layout) == []
