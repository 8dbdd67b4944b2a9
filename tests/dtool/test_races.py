"""Many who want the same items at the same moment: one downloads, all get the right content."""

from __future__ import annotations

import threading

import pytest

from dtool import stores
from sccache_dtool.cache import Cache
from sccache_dtool.fetch.dtool_source import item_key

PROCESSES, ITEMS = 8, 60

ALL = """
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
say("ready")
input()
for identifier in sorted(dataset.identifiers):
    say(identifier, digest(dataset.item_content_abspath(identifier)))
"""

ONE = """
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
say("ready")
say(digest(dataset.item_content_abspath(sys.argv[2])))
input()
"""

BIG = bytes(range(256)) * 4096
BIG_ID = stores.identifier("big.bin")


def test_eight_processes_fetch_sixty_items_without_an_error(s3, cache_dir, run_python):
    """With dtool alone: a third of these fetches die, because all of them write to the same file."""
    import hashlib

    files = {f"item{number:02}.dat": b"%d\n" % number * 100 for number in range(ITEMS)}
    dataset = stores.make_dataset(s3, files)
    expected = {stores.identifier(name): hashlib.sha256(content).hexdigest() for name, content in files.items()}
    users = [run_python(ALL, dataset.uri) for _ in range(PROCESSES)]
    for user in users:
        assert user.line() == "ready"
    ends = []
    threads = [threading.Thread(target=lambda user=user: ends.append(user.end())) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == PROCESSES
    for out, err in ends:
        assert dict(line.split() for line in out.splitlines()) == expected
        assert "warning" not in err
    cache = Cache(cache_dir)
    found = [cache.item(item_key(dataset.uuid, identifier)) for identifier in expected]
    assert [item.uses for item in found] == [PROCESSES] * ITEMS
    assert [len(item.copies) for item in found] == [1] * ITEMS


@pytest.fixture
def held(web, tmp_path):
    """A dataset on the web server whose only item stops half way until it is let go."""
    dataset = stores.make_dataset(f"file://{tmp_path / 'web'}", {"big.bin": BIG}, "large")
    half_way, go_on = threading.Event(), threading.Event()

    def wait(number):
        half_way.set()
        if number == 1:
            assert go_on.wait(100)

    web.before_data = wait
    return f"{web.address}/large", dataset.uuid, half_way, go_on


def sha(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_a_second_fetch_in_the_middle_of_the_first_waits_for_it(held, web, cache_dir, run_python):
    """With dtool alone: the second overwrites the file that the first is reading, which gets wrong content."""
    uri, uuid, half_way, go_on = held
    first = run_python(ONE, uri, BIG_ID)
    assert first.line() == "ready"
    assert half_way.wait(100)
    second = run_python(ONE, uri, BIG_ID)
    assert second.line() == "ready"
    said = second.error_line()  # who waits is told for whom: that is how we know that it has come to waiting
    assert "waiting for big.bin: fetched by" in said
    go_on.set()
    assert first.line() == second.line() == sha(BIG)
    assert web.data_requests == 1
    assert Cache(cache_dir).item(item_key(uuid, BIG_ID)).leases == 2
    first.end()
    second.end()


def test_whoever_waits_takes_over_from_a_killed_fetch(held, web, cache_dir, run_python):
    """With dtool alone: a torn file of the right size stays in the cache for good."""
    uri, _, half_way, go_on = held
    first = run_python(ONE, uri, BIG_ID)
    assert first.line() == "ready"
    assert half_way.wait(100)
    second = run_python(ONE, uri, BIG_ID)
    assert second.line() == "ready"
    assert "waiting for big.bin" in second.error_line()
    first.kill()
    assert second.line() == sha(BIG)
    assert web.data_requests == 2
    go_on.set()
    second.end()
    with open(next((cache_dir / ".sc-dtool" / "items").glob("*/*/*/payload/big.bin")), "rb") as file:
        assert file.read() == BIG


def test_a_killed_fetch_leaves_nothing_that_is_served(held, web, cache_dir, run_python):
    """Half a file must never be somebody's data."""
    uri, uuid, half_way, go_on = held
    first = run_python(ONE, uri, BIG_ID)
    assert first.line() == "ready"
    assert half_way.wait(100)
    first.kill()
    go_on.set()
    cache = Cache(cache_dir)
    assert not cache.item(item_key(uuid, BIG_ID)).copies
    third = run_python(ONE, uri, BIG_ID)
    assert third.line() == "ready"
    assert third.line() == sha(BIG)
    third.end()


def test_two_threads_of_a_process_fetch_an_item_once(dataset, web, cache_dir):
    """Libraries load data in threads."""
    paths = []
    identifier = stores.identifier("second.csv")
    threads = [
        threading.Thread(target=lambda: paths.append(dataset.item_content_abspath(identifier))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8
    assert len(set(paths)) == 1
    assert web.data_requests == 1
    assert Cache(cache_dir).item(item_key(dataset.uuid, identifier)).uses == 1
