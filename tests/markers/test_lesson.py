"""The tests of the lesson "A File Cache", and its exercises, as its text describes them."""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import FakeClock
from sccache_dtool import cache_open, cache_save
from sccache_dtool.cache import Cache
from sccache_dtool.errors import UsageError
from sccache_dtool.markers.index import Index, IndexCSV, IndexJSON, IndexSQLite

INDEXES = [IndexCSV, IndexJSON, IndexSQLite]


@pytest.fixture
def index_dir(tmp_path: Path) -> Path:
    """The directory of the index."""
    path = tmp_path / "index"
    path.mkdir()
    return path


@pytest.mark.parametrize("kind", INDEXES)
def test_can_the_index_be_loaded_immediately(archived: Cache, index_dir: Path, kind: type[IndexCSV]) -> None:
    """The first program that looks would fail, because nobody has made the file."""
    index = kind(archived.archive, index_dir)
    assert index.load() == []
    assert index.known() == set()
    assert index.get_index_dir() == str(index_dir)
    assert Path(str(index.path)).exists()


@pytest.mark.parametrize("kind", INDEXES)
def test_can_entries_be_saved_and_inspected(
    archived: Cache, data: Path, index_dir: Path, clock: FakeClock, kind: type[IndexCSV]
) -> None:
    """A file that was added would not be in the index, or without its time."""
    index: Index = kind(archived.archive, index_dir)
    id = archived.add(data / "data.csv")
    assert index.has(id)
    assert not index.has("sha256:" + "0" * 64)
    assert [entry.identifier for entry in index.load()] == [id]
    assert index.load()[0].timestamp == "2023-11-14T22:13:20Z"
    clock.let_pass(60)
    index.add(id)
    assert [entry.timestamp for entry in index.load()] == ["2023-11-14T22:13:20Z", "2023-11-14T22:14:20Z"]
    assert index.known() == {id}
    with pytest.raises(UsageError):
        index.has("data.csv")


def test_the_three_forms_say_the_same(archived: Cache, data: Path, index_dir: Path, clock: FakeClock) -> None:
    """A program that reads another form would see another archive."""
    for number in range(5):
        (data / f"{number}").write_text(str(number))
        archived.add(data / f"{number}")
    for kind in INDEXES:
        kind(archived.archive, index_dir)
    with (index_dir / "index.csv").open(newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert rows == [tuple(entry) for entry in IndexCSV(archived.archive).load()]
    assert [tuple(one.values()) for one in json.loads((index_dir / "index.json").read_text())] == rows
    with sqlite3.connect(index_dir / "index.sqlite") as database:
        found = database.execute(
            "SELECT identifier, timestamp, bytes, name FROM entries ORDER BY identifier"
        ).fetchall()
    assert [row[:2] for row in found] == rows
    assert {row[2:] for row in found} == {(1, str(number)) for number in range(5)}


def test_is_the_cache_initially_empty(archived: Cache) -> None:
    """A new user would find files of others."""
    assert list(archived.archive.known()) == []


def test_can_files_be_added_and_found(archived: Cache, data: Path) -> None:
    """A file that was added could not be read back by its id."""
    id = archived.add(data / "data.csv")
    with archived.use(id) as path:
        assert path.read_bytes() == b"0123456789"


def test_save_and_open_by_name(archived: Cache, data: Path) -> None:
    """The user would have to remember which name has which id."""
    cache_save(archived, data / "data.csv")
    (data / "data.csv").unlink()
    with cache_open(archived, data / "data.csv") as file:
        assert file.read() == "0123456789"
    with cache_open(archived, data / "data.csv.marker", "rb") as file:
        assert file.read() == b"0123456789"
    with pytest.raises(ValueError, match="for reading"):
        cache_open(archived, data / "data.csv", "w")


def test_a_file_that_is_not_there(archived: Cache, data: Path) -> None:
    """A wrong name would be reported as a fault of the cache."""
    with pytest.raises(FileNotFoundError):
        archived.add(data / "nothing")
    with pytest.raises(UsageError, match="does not exist, and there is no marker for it"):
        archived.open(data / "nothing")


def test_the_predecessors_files_are_adopted(archived: Cache, data: Path, tmp_path: Path) -> None:
    """Whoever has used the lesson's own cache would lose the files, or have damaged ones taken for good."""
    old = tmp_path / "old"
    old.mkdir()
    md5s = []
    for content in (b"one", b"two", b"three"):
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        (old / f"{md5}.cache").write_bytes(content)
        md5s.append(md5)
    (old / f"{md5s[2]}.cache").write_bytes(b"damaged")
    missing = hashlib.md5(b"missing", usedforsecurity=False).hexdigest()
    (old / "index.csv").write_text("".join(f"{md5},2023-06-01:12:00:00\n" for md5 in (*md5s, missing)))
    adopted = list(archived.files.adopt(str(old / "index.csv")))
    assert [one.identifier is not None for one in adopted] == [True, True, False, False]
    assert adopted[0].identifier == f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    for name in (f"md5:{md5s[0]}", md5s[0], str(adopted[0].identifier)):
        with archived.open(name, "rb") as file:
            assert file.read() == b"one"


def test_an_index_in_another_form_is_refused(archived: Cache, tmp_path: Path) -> None:
    """Half of the files would be adopted before the mistake is seen."""
    (tmp_path / "index.csv").write_text("name,id\n")
    with pytest.raises(UsageError, match="not an index"):
        list(archived.files.adopt(str(tmp_path / "index.csv")))


def test_the_export_is_replaced_as_a_whole(
    archived: Cache, data: Path, index_dir: Path, make_cache: Callable[..., Cache]
) -> None:
    """A reader of the index would find half a file."""
    index = IndexCSV(archived.archive, index_dir)
    before = (index_dir / "index.csv").stat().st_ino
    archived.add(data / "data.csv")
    index.save()
    assert (index_dir / "index.csv").stat().st_ino != before
    assert [path.name for path in index_dir.iterdir()] == ["index.csv"]
