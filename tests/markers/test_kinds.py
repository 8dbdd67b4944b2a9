"""The same on each kind of archive: a directory, S3, WebDAV, SFTP, and a server of our own."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import archiveserver
from faults import FakeClock
from fetch import servers
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.objects import object_name
from sccache_dtool.markers import index, orphans
from sccache_dtool.markers.archive import Details
from sccache_dtool.policy.rules import Rules
from sccache_dtool.pool import Threads

ALL = Rules(everything=True)


@pytest.fixture(scope="module", params=["directory", "s3", "webdav", "sftp", "served"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A kind of archive, and the URL of a place for such; its server starts once."""
    shown = tmp_path_factory.mktemp("shown") / "shown"
    shown.mkdir()
    with contextlib.ExitStack() as stack:
        if request.param in servers.ALL:
            base = stack.enter_context(servers.ALL[request.param](shown))
            netrc = shown.parent / "netrc"
            netrc.write_text(f"machine 127.0.0.1 login {servers.USER} password {servers.PASSWORD}\n")
            stack.enter_context(pytest.MonkeyPatch.context()).setenv("NETRC", str(netrc))
            yield request.param, re.sub(f"//{servers.USER}:.*@", "//", base)
        else:
            yield request.param, str(shown)


@pytest.fixture
def use_archive(
    kind: tuple[str, str],
    layout: Layout,
    tmp_path: Path,
    make_cache: Callable[..., Cache],
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Cache]]:
    """Makes a cache with a new archive of that kind."""
    name, base = kind
    place = f"{base}/{request.node.name.partition('[')[0]}"
    with contextlib.ExitStack() as stack:

        def make(**settings: str) -> Cache:
            url = place
            if name in ("directory", "served"):
                Path(place).mkdir()
            if name == "served":
                Path(layout.config_file).write_text(f'[archive]\nurl = "{place}"\n')
                behind = make_cache()
                behind.archive.init()
                url = stack.enter_context(archiveserver.serve(behind.archive)).url
            lines = ["[archive]", f'url = "{url}"', *(f"{name} = {value}" for name, value in settings.items())]
            Path(layout.config_file).write_text("\n".join(lines) + "\n")
            cache = make_cache()
            if name != "served":
                with pytest.raises(FetchFailed, match="there is no archive"):
                    cache.archive.require()
                assert cache.archive.init()
            assert not cache.archive.init()
            return cache

        yield make


@pytest.fixture
def cache(use_archive: Callable[..., Cache]) -> Cache:
    """A cache with such an archive."""
    return use_archive()


def make(directory: Path, name: str, content: bytes) -> Path:
    """A file."""
    path = directory / name
    path.write_bytes(content)
    return path


def names_of(cache: Cache) -> set[str]:
    """The names of the items that have copies."""
    return {item.label for item in cache.items() if item.copies}


def test_fifty_files_at_once_are_all_listed(cache: Cache, data: Path, kind: tuple[str, str]) -> None:
    """Of files that are added at the same time some would be lost, or an export would have others than the listing."""
    paths = [str(make(data, f"{number}", b"%d" % number)) for number in range(50)]
    files = cache.files
    with Threads(8) as threads:
        added = [threads.submit(lambda path: files.add(path, archive_only=True), path) for path in paths]
        ids = {one.result() for one in added}
    archive = cache.archive
    entries = list(archive.entries())
    assert len(entries) == 50
    assert {f"sha256:{one.digits}" for one in entries} == ids
    assert all(one.ms for one in entries)  # each has its record
    for form in index.FORMS if kind[0] in ("directory", "served") else ("csv",):  # the rest is the same for all kinds
        assert index.export(archive, form, str(data / f"index.{form}")) == 50
    with (data / "index.csv").open(newline="") as file:
        assert {row[0] for row in csv.reader(file)} == ids
    if (data / "index.sqlite").exists():
        assert {one["identifier"] for one in json.loads((data / "index.json").read_text())} == ids
        database = sqlite3.connect(data / "index.sqlite")
        rows = dict(database.execute("SELECT name, identifier FROM entries"))
        database.close()
        assert set(rows) == {str(number) for number in range(50)}
        assert set(rows.values()) == ids


def test_the_least_recently_used_object_makes_room(
    use_archive: Callable[..., Cache], data: Path, clock: FakeClock
) -> None:
    """With one kind of archive, what everybody uses would be evicted, or nothing."""
    cache = use_archive(limit='"20B"')
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


def test_what_was_uploaded_comes_back(cache: Cache, data: Path) -> None:
    """A file would be archived, and could not be had again, or with other bytes."""
    content = bytes(range(256)) * 5000
    id = cache.add(make(data, "large", content))
    empty = cache.add(make(data, "empty", b""))
    cache.clean(ALL)
    assert names_of(cache) == set()
    with cache.use(id) as path, cache.use(empty) as nothing:
        assert path.read_bytes() == content
        assert nothing.read_bytes() == b""
    archive = cache.archive
    assert b"".join(archive.pieces(id[7:])) == content
    assert b"".join(archive.part(id[7:], 1000, 2000)) == content[1000:3000]
    assert archive.size(id[7:]) == len(content)
    assert archive.size("0" * 64) is None
    assert list(archive.verify(archive.objects())) == []
    with pytest.raises(FetchFailed):
        cache.use(f"sha256:{'0' * 64}")


def test_two_projects_and_what_neither_names(cache: Cache, data: Path, clock: FakeClock, kind: tuple[str, str]) -> None:
    """What only the second project has a marker of would be listed, and deleted; or what nobody needs would stay."""
    other = data.parent / "other"
    other.mkdir()
    first = cache.save(data / "data.csv", comment="seen by both")
    second = cache.files.save(str(make(other, "b", b"second")), archive_only=True)
    unnamed = cache.files.add(str(make(data, "c", b"unnamed")), archive_only=True)
    archive = cache.archive
    named = {first.sha256, second.sha256}
    assert list(orphans.find(archive, named)) == []  # all of it is young
    clock.let_pass(8 * 86400)
    assert list(orphans.find(archive, named)) == [(unnamed[7:], 7)]
    archive.add_record(first.sha256, Details(comment="of the second project"))
    assert {archive.details(one).comment for one in archive.records(first.sha256)} == {
        "seen by both",
        "of the second project",
    }
    if kind[0] == "served":
        return  # see test_served.py
    assert orphans.remove(archive, unnamed[7:])
    assert archive.size(unnamed[7:]) is None
    assert sorted(archive.objects()) == sorted(named)
    assert orphans.empty_trash(archive) == 0
    assert cache.files.add(str(data / "c"), archive_only=True) == unnamed  # while the old one is in the trash
    assert list(archive.verify(archive.objects())) == []
    clock.let_pass(8 * 86400)
    orphans.empty_trash(archive)
    assert archive.trashed() == []
    assert archive.size(unnamed[7:]) == 7
    assert not orphans.remove(archive, "0" * 64)


def test_an_orphan_that_is_added_at_the_same_time_stays(
    cache: Cache, data: Path, clock: FakeClock, kind: tuple[str, str]
) -> None:
    """A file that was added while orphans were deleted would be lost, although `add` has succeeded."""
    if kind[0] == "served":
        pytest.skip("a server removes nothing for its clients")
    id = cache.files.add(str(data / "data.csv"), archive_only=True)
    clock.let_pass(8 * 86400)

    class Racing(type(cache.archive)):  # type: ignore[misc]
        def move(self, name: str, target: str) -> bool:
            if name.startswith("objects/"):
                archive.add_record(id[7:], Details(comment="again"))
            return bool(super().move(name, target))

    archive = cache.archive
    racing = Racing(cache.store, archive.url)
    assert not orphans.remove(racing, id[7:])
    assert list(archive.verify([id[7:]])) == []
    assert archive.trashed() == []


def test_an_orphan_whose_remover_was_killed_comes_back(
    cache: Cache, data: Path, clock: FakeClock, kind: tuple[str, str]
) -> None:
    """The object of a file that was added at the wrong moment would be deleted with the trash."""
    if kind[0] == "served":
        pytest.skip("a server removes nothing for its clients")
    id = cache.files.add(str(data / "data.csv"), archive_only=True)
    archive = cache.archive
    clock.let_pass(8 * 86400)
    archive.add_record(id[7:], Details())
    archive.move(object_name(id[7:]), f"trash/{id[7:]}~{int(clock.wall() * 1000)}~x")
    assert archive.size(id[7:]) is None
    assert orphans.empty_trash(archive) == 0
    assert list(archive.verify([id[7:]])) == []
    assert archive.trashed() == []
