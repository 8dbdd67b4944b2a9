"""Each operation on files and markers ends before each of its changes, as if its process had been killed there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from faults import Dying, Killed
from sccache_dtool.cache import Cache
from sccache_dtool.markers import marker, orphans, tree
from sccache_dtool.markers.tree import Memory

#: Prepares what an operation needs, and returns the operation, which is then done with a cache that may die.
Prepare = Callable[[Cache, Path], Callable[[Cache], object]]


def add(cache: Cache, place: Path) -> Callable[[Cache], object]:
    """A file is added."""
    return lambda dying: dying.add(place / "data")


def save(cache: Cache, place: Path) -> Callable[[Cache], object]:
    """A file is saved again, with another content."""
    cache.save(place / "data")
    (place / "data").write_bytes((place / "data").read_bytes() * 2)
    return lambda dying: dying.save(place / "data")


def append(cache: Cache, place: Path) -> Callable[[Cache], object]:
    """Data is appended."""
    cache.save(place / "data")
    return lambda dying: dying.files.append(str(place / "data"), str(place / "more"))


def comment(cache: Cache, place: Path) -> Callable[[Cache], object]:
    """The comment of a marker is changed."""
    cache.save(place / "data")
    return lambda dying: dying.files.comment(str(place / "data"), "another")


def restore(cache: Cache, place: Path) -> Callable[[Cache], object]:
    """A file is put back that is large enough for a copy in the cache."""
    (place / "data").write_bytes((place / "data").read_bytes() * 110_000)
    cache.files.save(str(place / "data"), archive_only=True)
    (place / "data").unlink()

    def act(dying: Cache) -> object:
        (found,) = tree.find([str(place / "data.marker")])
        assert found.marked is not None
        return tree.restore(dying.files, found.marked, Memory(dying.store.fs))

    return act


def push(cache: Cache, place: Path) -> Callable[[Cache], object]:
    """What was kept in the cache is archived."""
    archive = Path(cache.archive.url)
    archive.rename(archive.with_name("away"))
    cache.files.add(str(place / "data"), later=True)
    archive.with_name("away").rename(archive)
    return lambda dying: list(dying.files.push())


def adopt(cache: Cache, place: Path) -> Callable[[Cache], object]:
    """The index of a predecessor is imported."""
    content = (place / "data").read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    (place / f"{md5}.cache").write_bytes(content)
    (place / "index.csv").write_text(f"{md5},2024-01-01:00:00:00\n")
    return lambda dying: list(dying.files.adopt(str(place / "index.csv")))


def delete_orphan(cache: Cache, place: Path) -> Callable[[Cache], object]:
    """An object that no marker names is moved to the trash."""
    id = cache.files.add(str(place / "data"), archive_only=True)
    return lambda dying: orphans.remove(dying.archive, id[7:])


OPERATIONS: list[Prepare] = [add, save, append, comment, restore, push, adopt, delete_orphan]


@pytest.mark.parametrize("prepare", OPERATIONS, ids=lambda one: one.__name__)
def test_an_operation_that_is_killed_leaves_nothing_wrong(
    with_archive: Callable[..., Cache],
    make_cache: Callable[..., Cache],
    tmp_path: Path,
    prepare: Prepare,
) -> None:
    """A crash would leave a marker without its file, a file that is half there, or what no repetition can repair."""
    cache = with_archive()
    points, survived = 0, False
    while not survived:
        place = tmp_path / f"{points}"
        place.mkdir()
        content = b"content %d\n" % points
        (place / "data").write_bytes(content)
        (place / "more").write_bytes(b"more %d\n" % points)
        act = prepare(cache, place)
        before = {path.name: path.read_bytes() for path in place.iterdir()}
        fs = Dying()
        dying = make_cache(fs=fs)
        fs.left = points
        with suppress(Killed):
            act(dying)
            survived = True
        fs.left = None
        dying.close()
        archive = cache.archive
        for path in place.iterdir():
            if path.name.endswith(".marker"):
                for part in marker.read(str(path)).parts:
                    assert archive.has(part.sha256)
            elif not marker.is_draft(path.name):
                assert path.read_bytes() == before.get(path.name, content * 110_000)
        act(cache)  # once more
        points += 1
    assert points > 1
    archive = cache.archive
    wanted = archive.objects() if prepare is delete_orphan else archive.known()
    assert [str(error) for error in archive.verify(wanted)] == []
