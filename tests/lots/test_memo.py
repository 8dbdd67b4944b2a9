"""What is remembered of copies saves time, and is never believed where it cannot be right."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Counting
from sccache_dtool.cache import Cache
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.disk.names import Layout
from sccache_dtool.lots import memo
from sccache_dtool.lots.model import Claim, Lot, Usage

Making = Callable[..., Cache]


@pytest.fixture(autouse=True)
def _many_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "LEAST_NEW", 2)


@pytest.fixture
def many(cache: Cache, layout: Layout) -> Cache:
    """Copies of three users, all in one directory, and a lot for one of them."""
    cache.init()
    for number in range(30):
        add(layout, number)
    cache.change_lots(lambda lots: lots.add(Lot("u1", "u1", frozenset({"u1"}), (Claim("user:u1"),)), caller=None))
    return cache


def add(layout: Layout, number: int) -> Path:
    """Make a copy; its directory."""
    key = f"00{hashlib.sha256(str(number).encode()).hexdigest()[:30]}-i{number}"
    copy = Path(layout.item(key), f"g{number:016x}-1000-10-1")
    (copy / "use").mkdir(parents=True)
    (copy / "item.json").write_text(ItemFacts(key=key, by=f"u{number % 3}@h", name=f"i{number}").encode())
    return copy


def usage(cache: Cache) -> int:
    """Bytes of the lot."""
    return cache.lot_usage().get("u1", Usage()).bytes


def read(fs: Counting) -> int:
    """How many files were read of items."""
    return sum("item.json" in call.path for call in fs.calls)


def test_facts_are_read_once(make_cache: Making, many: Cache, layout: Layout) -> None:
    """Each report of a large cache would take a minute."""
    first, again = Counting(), Counting()
    assert usage(make_cache(fs=first)) == 100
    assert usage(make_cache(fs=again)) == 100
    assert (read(first), read(again)) == (30, 0)
    for number in range(30, 36):
        add(layout, number)
    more = Counting()
    assert usage(make_cache(fs=more)) == 120
    assert read(more) == 6
    assert len(os.listdir(layout.facts)) == 1


@pytest.mark.parametrize("damage", ["short", "empty", "binary", "deleted", "other lines"])
def test_a_damaged_file_is_not_used(make_cache: Making, many: Cache, layout: Layout, damage: str) -> None:
    """Data would count for the wrong lot after a crash."""
    usage(many)
    (file,) = Path(layout.facts).iterdir()
    text = file.read_text()
    match damage:
        case "short":
            file.write_text(text[: len(text) // 2])
        case "empty":
            file.write_text("")
        case "binary":
            file.write_bytes(bytes(range(256)))
        case "deleted":
            file.unlink()
        case _:
            file.write_text("x\n" * 30)
    fs = Counting()
    assert usage(make_cache(fs=fs)) == 100
    assert read(fs) == 30


def test_what_is_gone_is_forgotten(many: Cache, layout: Layout) -> None:
    """The files would grow for ever."""
    usage(many)
    for number in range(3, 30):
        copy = next(Path(layout.items, "00").glob(f"*/g{number:016x}-*"))
        (copy / "item.json").unlink()
        (copy / "use").rmdir()
        copy.rmdir()
    assert usage(many) == 10
    (name,) = os.listdir(layout.facts)
    assert name.startswith("00-3-")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o644), (0, 0o664), (0, 0o666)])
def test_what_somebody_else_could_have_written_is_not_believed(
    make_cache: Making, many: Cache, layout: Layout, owner: int, mode: int
) -> None:
    """A member of the group could have the data of others count for the lot of their own, or have it removed."""
    usage(many)
    (file,) = Path(layout.facts).iterdir()
    file.write_text(file.read_text().replace("\tu2\t", "\tu1\t").replace("\tu0\t", "\tu1\t"))
    assert usage(many) == 300  # root's own are believed
    os.chown(file, owner, -1)
    file.chmod(mode)
    assert usage(make_cache()) == 100
    fs = Counting()
    assert (usage(make_cache(fs=fs)), read(fs)) == (100, 0)  # and others are remembered


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_the_owner_of_the_lots_remembers_serves_all(make_cache: Making, many: Cache, layout: Layout) -> None:
    """Each user of a shared cache would have to read a million files."""
    usage(many)
    (file,) = Path(layout.facts).iterdir()
    assert file.stat().st_mode & 0o022 == 0
    os.chown(file, 65534, -1)
    os.chown(layout.lots, 65534, -1)
    fs = Counting()
    assert (usage(make_cache(fs=fs)), read(fs)) == (100, 0)


def test_nobody_needs_permission_to_remember(make_cache: Making, many: Cache, layout: Layout) -> None:
    """A user who may only read would get an error instead of a report."""
    Path(layout.facts).write_text("in the way")
    assert usage(make_cache()) == 100
    assert Path(layout.facts).read_text() == "in the way"


def test_what_cannot_be_a_line_is_read_each_time(make_cache: Making, many: Cache, layout: Layout) -> None:
    """A name with a line break could say that the next copy belongs to somebody else."""
    copy = add(layout, 99)
    (copy / "item.json").write_text(ItemFacts(by="u1@h", name="a\nb\tc").encode())
    for _ in range(2):
        fs = Counting()
        assert usage(make_cache(fs=fs)) == 110
    assert read(fs) == 1


def test_it_is_sent_to_other_processes_without_what_was_read(many: Cache) -> None:
    """Each piece of work would carry a million lines."""
    lookup = many.lookup()
    before = len(pickle.dumps(lookup))
    for item in many.items():
        assert lookup.of(item.copies[0])
    assert len(pickle.dumps(lookup)) < before + 100
