"""Whether a copy is still what its source has: asked only if somebody wants to know, and in one request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

import httpserver
from faults import FakeClock
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import CheckedName
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import fsspec_source

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
SOON = formatdate(time.time() + 3600, usegmt=True)  # no second older than the answer, however long that takes


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpserver.Server]:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with httpserver.serve() as server:
        yield server


def test_without_being_asked_for_a_hit_uses_no_network(cache: Cache, server: httpserver.Server) -> None:
    """A job would stop where a server is down, though it has the data."""
    url = server.page("/x", b"one", etag='"1"')
    cache.use(url)
    cache.use(url)
    assert server.gets["/x"] == 1


@pytest.mark.parametrize(
    ("how", "header"),
    [
        ({"etag": '"1"'}, ("If-None-Match", '"1"')),
        ({"etag": 'W/"1"'}, ("If-None-Match", 'W/"1"')),
        ({"headers": {"Last-Modified": DATE}}, ("If-Modified-Since", DATE)),
    ],
    ids=["etag", "weak etag", "date"],
)
@pytest.mark.parametrize("conditional", [True, False])
def test_what_has_not_changed_costs_one_request(
    cache: Cache, server: httpserver.Server, how: dict[str, object], header: tuple[str, str], conditional: bool
) -> None:
    """Every `--refresh` would be another download, also from a server that does not know conditional requests."""
    url = server.page("/x", b"one" * 10_000_000, conditional=conditional, **how)
    first = cache.use(url)
    assert cache.use(url, refresh=True).path == first.path
    assert server.gets["/x"] == 2
    assert server.heads["/x"] == 0  # a URL that is signed for GET is refused for HEAD
    assert server.seen[1][1][header[0]] == header[1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"etag": '"1"'}, {"etag": '"2"'}),
        ({"etag": '"1"'}, {}),
        ({"headers": {"Last-Modified": DATE}}, {"headers": {"Last-Modified": DATE.replace("2015", "2016")}}),
        ({"headers": {"Last-Modified": SOON}}, {"headers": {"Last-Modified": SOON}}),
        ({}, {}),
        ({"headers": {"ETag": "x" * 5000}}, {"headers": {"ETag": "x" * 5000}}),
    ],
    ids=["etag", "no etag any more", "date", "changed just now", "nothing to go by", "too much to go by"],
)
def test_what_may_have_changed_is_fetched_again(
    cache: Cache, server: httpserver.Server, first: dict[str, object], second: dict[str, object]
) -> None:
    """Who says --refresh would be given what the server had yesterday."""
    url = server.page("/x", b"one", **first)
    old = cache.use(url)
    server.page("/x", b"two", **second)
    new = cache.use(url, refresh=True)
    assert (old.path.read_bytes(), new.path.read_bytes()) == (b"one", b"two")
    assert cache.use(url).path == new.path


@pytest.mark.parametrize(
    ("how", "reason"), [({"status": 404}, "404"), ({"status": 403}, "403"), ({"status": 503}, "503")]
)
def test_a_source_that_cannot_be_asked_is_an_error(
    cache: Cache, server: httpserver.Server, how: dict[str, object], reason: str
) -> None:
    """Who wants fresh data would be given old data, and not know it."""
    url = server.page("/x", b"one", etag='"1"')
    first = cache.use(url)
    server.page("/x", b"gone", **how)
    with pytest.raises(FetchFailed, match=f"cannot check for changes of .*{reason}") as caught:
        cache.use(url, refresh=True)
    assert "leave out --refresh" in str(caught.value.hint)
    assert cache.use(url).path == first.path


def test_a_mirror_that_cannot_be_asked_is_not_the_last(cache: Cache, server: httpserver.Server) -> None:
    """One dead mirror would keep what the others have from being fetched."""
    one, two = server.page("/1", b"one", etag='"1"'), server.page("/2", b"two", etag='"2"')
    cache.use(f"{one}|{two}")
    server.page("/1", b"gone", status=404)
    assert cache.use(f"{one}|{two}", refresh=True).path.read_bytes() == b"two"
    assert server.gets["/2"] == 1
    assert cache.use(f"{one}|{two}", refresh=True).path.read_bytes() == b"two"  # the one that it came from is asked
    assert server.seen[-1][1]["If-None-Match"] == '"2"'


def test_several_sources_are_asked_each_for_itself(cache: Cache, server: httpserver.Server) -> None:
    """A change of the second file would not be seen."""
    one, two = server.page("/1", b"one", etag='"1"'), server.page("/2", b"two", etag='"2"')
    first = cache.use(one, two)
    assert cache.use(one, two, refresh=True).path == first.path
    server.page("/2", b"new", etag='"3"')
    assert (cache.use(one, two, refresh=True).path / "2").read_bytes() == b"new"


def test_credentials_go_with_the_question(cache: Cache, server: httpserver.Server) -> None:
    """What needs a password could be fetched, and never be asked about."""
    server.page("/x", b"one", etag='"1"', auth=("ada", "secret"))
    url = server.url("/x", "ada:secret")
    first = cache.use(url)
    assert cache.use(url, refresh=True).path == first.path


def test_max_age_asks_once_in_that_time(cache: Cache, server: httpserver.Server, clock: FakeClock) -> None:
    """A thousand jobs a day would ask a thousand times, or none would ever."""
    url = server.page("/x", b"one", etag='"1"')
    first = cache.use(url)
    asked = []
    for _ in range(8):
        assert cache.use(url, max_age=100).path == first.path
        asked.append(server.gets["/x"])
        clock.let_pass(60)
    assert asked == [1, 1, 2, 2, 3, 3, 4, 4]
    names = [CheckedName.parse(name) for name in (path.name for path in first.path.parents[1].iterdir())]
    assert len([name for name in names if name]) == 1


def test_what_a_clock_that_was_wrong_has_noted_does_not_count(
    cache: Cache, server: httpserver.Server, clock: FakeClock
) -> None:
    """A host whose clock was a year ahead would keep all others from asking for a year."""
    url = server.page("/x", b"one", etag='"1"')
    path = cache.use(url).path
    (path.parents[1] / str(CheckedName(int(clock.wall()) + 31_536_000))).write_text("-")
    clock.let_pass(100)
    server.page("/x", b"two", etag='"2"')
    with cache.use(url, max_age=10) as now:
        assert now.read_bytes() == b"two"


def test_a_restored_copy_is_as_old_as_its_fetch(
    cache: Cache, make_cache: Callable[..., Cache], server: httpserver.Server, clock: FakeClock
) -> None:
    """What was brought back from the trash would be taken for what the server has today."""
    url = server.page("/x", b"one", etag='"1"')
    key = cache.use(url).key
    cache.close()
    clock.let_pass(1000)
    cache.remove(key, keep_for=10_000)
    cache.restore(key)
    server.page("/x", b"two", etag='"2"')
    assert make_cache().use(url, max_age=500).path.read_bytes() == b"two"


def test_who_waited_for_another_does_not_ask_again_and_again(
    make_cache: Callable[..., Cache], server: httpserver.Server
) -> None:
    """A copy that was judged once would be asked about at every look of one who waits."""
    url = server.page("/x", b"one", etag='"1"')
    make_cache().use(url)
    server.pages("/x", httpserver.Page(b"two", etag='"2"'), httpserver.Page(b"two", etag='"2"'))
    assert make_cache().use(url, refresh=True).path.read_bytes() == b"two"
    assert server.gets["/x"] == 3  # the first, the question, the second


def test_items_of_datasets_and_pure_counts_have_nothing_to_ask(cache: Cache) -> None:
    """--refresh on an empty item would make another one at every use, and its count begin again."""
    first = cache.use(name="counter")
    assert cache.use(name="counter", refresh=True).path == first.path


class Store:
    """A store of one file that names its version."""

    def __init__(self) -> None:
        self.facts: dict[str, object] = {"type": "file", "size": 3, "ETag": "one"}
        self.opened = 0

    def invalidate_cache(self) -> None:
        pass

    def info(self, name: str) -> dict[str, object]:
        return self.facts

    def open(self, name: str, mode: str, **more: object) -> object:
        import io

        self.opened += 1
        return io.BytesIO(b"abc")


@pytest.mark.parametrize(
    ("change", "opened"), [({}, 1), ({"ETag": "two"}, 2), ({"ETag": None}, 2)], ids=["same", "changed", "no version"]
)
def test_what_fsspec_opens_is_asked_by_its_version(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], opened: int
) -> None:
    """An object in a store could only be fetched once, or always."""
    store = Store()
    monkeypatch.setattr(fsspec_source, "open_system", lambda source: (store, "x"))
    cache.use("s3://b/x")
    store.facts.update(change)
    cache.use("s3://b/x", refresh=True)
    assert store.opened == opened
