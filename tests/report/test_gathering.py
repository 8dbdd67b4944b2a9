"""What a report says of a cache is what the other commands say, and what the next `clean` does."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import FakeClock
from report.year import DAY, change_facts, live, policy
from sccache_dtool import metrics
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.nofollow import DirectoryHandle
from sccache_dtool.lots.model import Claim, Lot, Lots
from sccache_dtool.report.gathering import look

Make = Callable[..., Cache]


@pytest.fixture
def lived(cache: Cache, clock: FakeClock, tmp_path: Path) -> Cache:
    live(cache, clock, tmp_path)
    return cache


def test_a_year_is_as_it_was(lived: Cache) -> None:
    """The curve would not show when the cache was cleaned, and what it held before."""
    it = look(lived)
    assert it.sizes[-1] == it.bytes == 1700

    def ago(days: int) -> int:
        return it.sizes[-1 - days]

    assert [ago(250), ago(150), ago(75), ago(25)] == [1000, 1500, 500, 1500]
    assert [(one.copies, one.bytes, one.why) for one in it.cleanings] == [(1, 1000, "a test")]
    (removed,) = [one for one in it.periods if one.removed]
    assert removed.removed == 1000


def test_hits_and_misses_are_those_of_metrics(lived: Cache) -> None:
    """The page and the monitor would contradict each other."""
    it = look(lived)
    text = "".join(metrics.text(lived.state()))
    values = {line.split("{")[0]: line.split()[-1] for line in text.splitlines() if not line.startswith("#")}
    assert it.usage.uses == int(values["sc_dtool_uses_total"]) == 9
    assert it.usage.misses == int(values["sc_dtool_misses"]) == 3
    assert it.usage.hits == int(values["sc_dtool_hits"]) == 6
    assert it.usage.saved_bytes == int(values["sc_dtool_saved_bytes"])
    assert sum(one.hits for one in it.periods) == 6
    assert sum(one.misses for one in it.periods) == 3


def test_folded_uses_count_on_their_days(lived: Cache, tmp_path: Path) -> None:
    """Items that are used most often, whose histories are folded, would seem never to be used."""
    before = look(lived)
    for _ in range(120):
        lived.use(tmp_path / "new.dat").release()
    policy(lived, {"older_than": "900d"})
    lived.clean(lived.policy()._replace(older_than=900 * DAY))
    item = next(one for one in lived.items() if one.label == "new.dat")
    assert any(name.startswith("segment-") for name in os.listdir(lived.store.layout.history(item.key)))
    it = look(lived)
    assert it.periods[-1].hits == before.periods[-1].hits + 120
    assert it.usage.uses == before.usage.uses + 120


def test_it_says_what_the_next_clean_then_removes(lived: Cache, make_cache: Make) -> None:
    """A group would be told that other files go than those that go."""
    policy(lived, {"retain_size": "1500"})
    cache = make_cache()
    it = look(cache)
    told = it.next_clean
    assert (told.items, told.bytes, told.unknown) == (1, told.removals[0].bytes, "")
    done = cache.clean(cache.policy())
    assert [one.name for one in told.removals] == [one.label for one in done.removed]
    assert all(one.why.startswith("not used for ") for one in told.removals)
    assert {one.text for one in told.kept} == {"not needed to reach the goal"}


def test_what_is_held_is_said_with_its_holder(lived: Cache, make_cache: Make, tmp_path: Path) -> None:
    """Nobody could ask whoever keeps the cache full."""
    policy(lived, {"older_than": "1d"})
    cache = make_cache()
    with cache.use(tmp_path / "new.dat"):
        it = look(cache)
    (lease,) = it.leases
    assert lease.item == "new.dat"
    assert "process" in lease.by
    assert "ends" in lease.lasts
    assert [one.text for one in it.next_clean.kept if one.text == "in use"] == ["in use"]
    assert it.usage.leases == 1


def test_without_a_policy_it_says_so(lived: Cache) -> None:
    """An empty list would be read as if nothing were ever removed."""
    it = look(lived)
    assert "has no policy" in it.next_clean.unknown
    assert it.levels == ()


def test_a_policy_that_cannot_be_read_stops_nothing_else(lived: Cache, make_cache: Make) -> None:
    """A misspelt setting would take the whole report away."""
    policy(lived, {"older_then": "1d"})
    it = look(make_cache())
    assert "older_then" in it.next_clean.unknown
    assert it.items == 3


def test_what_cannot_be_read_is_counted_and_said(lived: Cache, tmp_path: Path) -> None:
    """Figures without a part of the cache would be taken for those of all of it."""
    key = lived.key_for([str(tmp_path / "new.dat")])
    for file in Path(lived.store.layout.item(key)).glob("g*/item.json"):
        file.write_text("{")
    (Path(lived.store.layout.items) / key[:2] / "strange").mkdir()
    (record,) = (one for one in lived.cleanings() if not one.restored)
    Path(f"{lived.store.layout.cleanings}/{record}").write_text("not JSON\n")
    it = look(lived)
    assert it.unread_facts == 1
    assert it.unread_count == len(it.unread) == 2
    assert any("strange" in text for text in it.unread)
    assert any("the record of a cleaning cannot be read" in text for text in it.unread)
    assert it.bytes == 1700
    assert "?" in [one.name for one in it.users]


def test_by_user_dataset_and_lot(lived: Cache, tmp_path: Path) -> None:
    """Nobody would know whose data it is."""
    uuid = "1c10766c-4a29-4536-a638-14e12c2d9b1f"
    dataset = {"uuid": uuid, "name": "mice", "uri": "s3://bucket"}
    for name in ("old.dat", "new.dat"):
        key = lived.key_for([str(tmp_path / name)])
        change_facts(lived, key, by="ada@login1", dataset=dataset, source=[f"dtool:{uuid}/{key[:32]}"])
    lived.change_lots(
        lambda lots: Lots([*lots, Lot("biology", "ada", frozenset({"biology"}), (Claim("user:ada"),), 1000, 200)])
    )
    it = look(lived)
    assert {one.name: (one.bytes, one.copies) for one in it.users}["ada"] == (1500, 2)
    assert {one.name: (one.bytes, one.copies) for one in it.datasets} == {
        f"mice {uuid}": (1500, 2),
        "(no dataset)": (200, 1),
    }
    assert [(one.name, one.bytes, one.dedicated, one.most) for one in it.lots] == [
        ("biology", 1500, 1000, 1200),
        ("default", 200, 0, None),
    ]


@pytest.mark.present
def test_files_that_dtool_left_count(cache: Cache) -> None:
    """In a cache that dtool fills without the plugin, the report would show next to nothing."""
    uuid = "1c10766c-4a29-4536-a638-14e12c2d9b1f"
    directory = Path(cache.root) / uuid
    directory.mkdir()
    (directory / f"{'a' * 40}.txt").write_bytes(bytes(70))
    it = look(cache)
    assert (it.loose.items, it.loose.bytes, it.bytes) == (1, 70, 70)
    assert [(one.name, one.loose, one.bytes) for one in it.datasets] == [(uuid, 1, 70)]
    assert sum(one.items for one in it.idle_by_age) == 1


def test_idle_items_are_in_their_classes(lived: Cache) -> None:
    """What has been idle for a year would be listed with what was used yesterday."""
    it = look(lived)
    by_age = [(one.items, one.bytes) for one in it.idle_by_age]
    assert by_age == [(1, 200), (0, 0), (0, 0), (1, 1000), (0, 0), (1, 500), (0, 0)]
    assert sum(amount.items for row in it.idle for amount in row) == 3


class _Counting(FileSystem):
    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()

    def open_directory(self, path: str, via: DirectoryHandle | None = None) -> DirectoryHandle | None:
        self.opened[path] += 1
        return super().open_directory(path, via)


def test_the_cache_is_scanned_once(lived: Cache, make_cache: Make) -> None:
    """A report on a large cache would take as long as all the commands whose figures it shows."""
    policy(lived, {"retain_size": "1500"})
    fs = _Counting()
    look(make_cache(fs=fs))
    keys = [item.key for item in lived.items()]
    assert {fs.opened[lived.store.layout.item(key)] for key in keys} == {1}


def test_nothing_is_changed(lived: Cache, make_cache: Make) -> None:
    """A report would end leases, or fold histories, by the way."""
    policy(lived, {"retain_size": "1500"})

    def listed() -> set[str]:
        found = {str(path) for path in Path(lived.root).rglob("*")}
        return {path for path in found if "/facts" not in path}

    before = listed()
    look(make_cache())
    assert listed() == before
