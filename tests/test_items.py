"""What a scan sees: everything, at the price of listings, and without dying of one bad entry."""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator

import pytest
from pyfakefs.fake_filesystem import FakeFilesystem

from faults import Counting, Failing, store_of
from sccache_dtool.catalog import items
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, HISTORY, ITEM_FILE, PAYLOAD, Generation, Layout, item_key
from sccache_dtool.policy import totals
from sccache_dtool.pool import Pool

HOLDER = "s0123456789ab-0123456789ab"
PLACE = Layout("/cache")
KEY = item_key(("file:/ref.fa",), "ref.fa")
ONE = Generation("1" * 16, 1_800_000_000, 100, 3)
TWO = Generation("2" * 16, 1_800_000_500, 50, 1)


def put(fs: FakeFilesystem, generation: Generation = ONE, *leases: str, key: str = KEY, closed: bool = False) -> None:
    """Publish a copy with leases on it."""
    directory = PLACE.generation(key, str(generation))
    fs.create_file(f"{directory}/{PAYLOAD}/ref.fa")
    fs.create_file(f"{directory}/{ITEM_FILE}", contents='{"key": "x"}')
    if not closed:
        fs.create_dir(f"{directory}/{GATE}")
    for lease in leases:
        fs.create_symlink(f"{directory}/{GATE}/{lease}", "record")


def finish(fs: FakeFilesystem, *names: str, key: str = KEY) -> None:
    for name in names:
        fs.create_symlink(f"{PLACE.history(key)}/{name}", "record")


def look(warnings: list[str], on: FileSystem | None = None, key: str = KEY) -> items.Item:
    return items.look(store_of(on or FileSystem(), PLACE), key)


def test_nothing_is_an_empty_item(fs: FakeFilesystem, warnings: list[str]) -> None:
    """A question about an item that is not there would be an error, or have an answer."""
    item = look(warnings)
    assert (item.copies, item.uses, item.bytes, item.idle_since) == ((), 0, 0, 0.0)
    assert list(items.scan(store_of(FileSystem(), PLACE))) == []
    assert warnings == []


def test_an_item_is_seen_as_it_is(fs: FakeFilesystem, warnings: list[str]) -> None:
    """`du`, `ls` and `clean` would go by wrong sizes, ages and counts."""
    put(fs, ONE, f"{HOLDER}.0", f"{HOLDER}.1")
    put(fs, TWO)
    finish(fs, f"{HOLDER}.7~1800000100000~released", f"{HOLDER}.8~1800000900000~reaped")
    item = look(warnings)
    assert item.label == "ref.fa"
    assert item.bytes == 150
    assert (item.leases, item.finished_uses, item.uses) == (2, 2, 4)
    assert item.last_end == 1_800_000_900.0
    assert [len(copy.held) for copy in item.copies] == [0, 2]  # the newest first
    assert [held.lease.number for held in item.copies[1].held if held.lease] == [0, 1]
    assert warnings == []


@pytest.mark.parametrize(
    ("ended", "idle_since"),
    [((), 1_800_000_500.0), (("1800000100000",), 1_800_000_500.0), (("1800000900000",), 1_800_000_900.0)],
)
def test_an_item_is_idle_since_its_last_use_or_its_fetch(
    fs: FakeFilesystem, warnings: list[str], ended: tuple[str, ...], idle_since: float
) -> None:
    """What was just fetched, and never used yet, would be the first to go."""
    put(fs, ONE)
    put(fs, TWO)
    finish(fs, *(f"{HOLDER}.{number}~{end}~released" for number, end in enumerate(ended)))
    assert look(warnings).idle_since == idle_since


def test_a_copy_without_a_gate_is_closed(fs: FakeFilesystem, warnings: list[str]) -> None:
    """A copy whose eviction was interrupted would be counted as usable, or stay for ever."""
    put(fs, ONE, closed=True)
    (copy,) = look(warnings).copies
    assert copy.closed


def test_an_unknown_name_in_a_gate_counts_as_held_and_is_told_of(fs: FakeFilesystem, warnings: list[str]) -> None:
    """Something that a newer release, or a person, put into the gate would not keep the data."""
    put(fs, ONE, "do\nnot")
    (copy,) = look(warnings).copies
    assert [(held.name, held.lease) for held in copy.held] == [("do\nnot", None)]
    assert "counted as held" in warnings[0]
    assert "\n" not in warnings[0]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTDIR])
def test_a_gate_that_cannot_be_listed_counts_as_held(fs: FakeFilesystem, warnings: list[str], error: int) -> None:
    """A passing fault would look like "nobody uses it"."""
    put(fs, ONE, f"{HOLDER}.0")
    on = Failing()
    on.fail("names", error, within=f"/{GATE}")
    (copy,) = look(warnings, on).copies
    assert not copy.closed
    assert len(copy.held) == 1
    assert "counted as held" in warnings[0]


def test_one_bad_item_does_not_hide_the_others(fs: FakeFilesystem, warnings: list[str]) -> None:
    """One directory without permissions would end every `du` and every `clean`."""
    keys = [item_key((name,), "x") for name in "abc"]
    for key in keys:
        put(fs, key=key)
        finish(fs, f"{HOLDER}.7~1800000100000~released", key=key)
    on = Failing()
    on.fail("names", errno.EIO, within=f"{keys[0]}/{HISTORY}")
    on.fail("names", errno.EACCES, within=f"{keys[1]}")
    found = {item.key: item for item in items.scan(store_of(on, PLACE))}
    assert set(found) == set(keys)
    assert (found[keys[0]].bytes, found[keys[0]].finished_uses) == (100, 0)
    assert found[keys[1]].copies == ()
    assert (found[keys[2]].bytes, found[keys[2]].finished_uses) == (100, 1)
    assert len(warnings) == 2


@pytest.mark.parametrize(
    "path",
    [
        "{items}/README",
        "{items}/abc/x",
        "{items}/é1/x",
        "{items}/..x/y",
        "{shard}/README",
        "{shard}/{key}~/x",
        "{shard}/new\nline/x",
        "{item}/g123/use/x",
        "{item}/README",
        "{item}/.nfs0000",
    ],
)
def test_what_is_not_ours_is_told_of_and_passed_over(fs: FakeFilesystem, warnings: list[str], path: str) -> None:
    """Somebody's own file in the cache would end every command, or be taken for an item."""
    put(fs)
    fs.create_file(path.format(items=PLACE.items, shard=f"{PLACE.items}/{KEY[:2]}", item=PLACE.item(KEY), key=KEY))
    (item,) = items.scan(store_of(FileSystem(), PLACE))
    assert (item.key, item.bytes) == (KEY, 100)
    assert len(warnings) == 1
    assert "\n" not in warnings[0]


def test_an_item_in_the_wrong_place_is_passed_over(fs: FakeFilesystem, warnings: list[str]) -> None:
    """An item would be listed that no use ever finds."""
    fs.create_dir(f"{PLACE.items}/zz/{KEY}/{ONE}/{GATE}")
    assert list(items.scan(store_of(FileSystem(), PLACE))) == []
    assert len(warnings) == 1


def test_evicted_items_keep_their_history(fs: FakeFilesystem, warnings: list[str]) -> None:
    """What was used often, and evicted, would seem never to have been used."""
    finish(fs, f"{HOLDER}.7~1800000100000~released")
    (item,) = items.scan(store_of(FileSystem(), PLACE))
    assert (item.copies, item.uses, item.bytes) == ((), 1, 0)


def test_a_scan_only_lists(fs: FakeFilesystem, warnings: list[str]) -> None:
    """A scan of ten thousand items would open thirty thousand files."""
    put(fs, ONE, f"{HOLDER}.0")
    finish(fs, f"{HOLDER}.7~1800000100000~released")
    on = Counting()
    list(items.scan(store_of(on, PLACE)))
    assert set(on.kinds()) == {"names"}
    assert len(on.calls) == 5  # items, its shard, the item, the gate, the history


def test_generations_come_the_newest_first(fs: FakeFilesystem) -> None:
    """A user would be given an old copy though there is a new one."""
    put(fs, ONE)
    put(fs, TWO)
    fs.create_file(f"{PLACE.item(KEY)}/README")
    assert items.generations(store_of(FileSystem(), PLACE), KEY) == [TWO, ONE]
    assert items.generations(store_of(FileSystem(), PLACE), item_key(("x",), "x")) == []


def test_there_is_exactly_one_payload(fs: FakeFilesystem) -> None:
    """A user would be given one of several files, or the path to none."""
    put(fs, ONE)
    directory = PLACE.generation(KEY, str(ONE))
    assert items.payload_name(store_of(FileSystem(), PLACE), KEY, ONE) == "ref.fa"
    fs.create_file(f"{directory}/{PAYLOAD}/second")
    assert items.payload_name(store_of(FileSystem(), PLACE), KEY, ONE) is None
    fs.remove_object(f"{directory}/{PAYLOAD}")
    assert items.payload_name(store_of(FileSystem(), PLACE), KEY, ONE) is None


def test_a_survey_opens_no_file(fs: FakeFilesystem, warnings: list[str]) -> None:
    """`du`, `ls`, `status` and `clean` of a million items would read a million files."""
    for name in "abc":
        key = item_key((name,), name)
        put(fs, ONE, f"{HOLDER}.0", key=key)
        finish(fs, f"{HOLDER}.7~1800000100000~released", f"segment-5-1800000000000-{'0' * 16}", key=key)
    on = Counting()
    (total,) = {sum(part) for part in [list(items.survey(store_of(on, PLACE), Pool(), count_uses))]}
    assert total == 3 * 7
    assert set(on.kinds()) == {"names"}
    assert len(on.calls) == 1 + len({item_key((name,), name)[:2] for name in "abc"}) + 3 * 3
    on.calls.clear()
    list(items.survey(store_of(on, PLACE), Pool(), count_uses, uses=False))
    assert len(on.calls) == 1 + len({item_key((name,), name)[:2] for name in "abc"}) + 3 * 2


def count_uses(found: Iterator[items.Item]) -> int:
    return sum(item.uses for item in found)


def test_parts_add_up_to_the_whole(fs: FakeFilesystem, warnings: list[str]) -> None:
    """`du` would show other sums for a large cache than for a small one."""
    for number in range(20):
        key = item_key((str(number),), f"i{number}")
        leases = [f"{HOLDER}.0"] if number < 3 else []
        put(fs, Generation(f"{number:016x}", 1_800_000_000 + number, 10 + number, 1), *leases, key=key)
    scanned = items.scan(store_of(FileSystem(), PLACE))
    parts = items.survey(store_of(FileSystem(), PLACE), Pool(), functools.partial(totals.add_up, 5))
    whole, at_once = totals.total(parts, 5), totals.add_up(5, scanned)
    assert whole == at_once
    assert (whole.items, whole.busy_items, whole.idle_items, whole.leases) == (20, 3, 17, 3)
    assert whole.bytes == sum(10 + number for number in range(20))
    assert whole.oldest_idle == 1_800_000_003
    assert [item.bytes for item in whole.largest] == [29, 28, 27, 26, 25]


def test_before_something_is_fetched_the_server_is_asked_again(fs: FakeFilesystem, warnings: list[str]) -> None:
    """On NFS a host that has looked before would not see what another has fetched meanwhile, and fetch it again."""
    put(fs)
    counting = Counting()
    items.refresh(store_of(counting, PLACE), KEY)
    shard = f"{PLACE.items}/{KEY[:2]}"
    assert [call.arguments[0] for call in counting.calls] == [PLACE.items, shard, f"{shard}/{KEY}"]
    assert {call.kind for call in counting.calls} == {"touch"}


def test_what_is_not_there_needs_no_refreshing(fs: FakeFilesystem) -> None:
    """The first use of an item would fail."""
    items.refresh(store_of(FileSystem(), PLACE), KEY)
    assert not fs.exists(PLACE.items)
