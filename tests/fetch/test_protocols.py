"""Each protocol that `loaders` calls tested brings files from a real server, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cli.tool import call
from faults import FakeClock
from fetch import servers
from sccache_dtool.cache import Cache
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import fsspec_source
from sccache_dtool.fetch.request import OBJECT_SCHEMES
from sccache_dtool.fetch.words import REMOTE, SOURCES

BODY = os.urandom(9_000_000)  # more than a block
DIGEST = f"md5:{hashlib.md5(BODY).hexdigest()}"


class Place(NamedTuple):
    """What a server serves."""

    scheme: str
    base: str
    directory: Path

    def put(self, name: str, body: bytes) -> str:
        """Serve a file; its URL."""
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
        if self.directory in servers.PUT:
            servers.PUT[self.directory](path)
        return f"{self.base}/{name}"


@pytest.fixture(scope="module", params=sorted(servers.ALL))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp(request.param) / "served"
    directory.mkdir()
    with servers.ALL[request.param](directory) as base:
        yield Place(request.param, base, directory)


Get = Callable[..., bytes]


def refused(get: Get, *words: str) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        get(*words)
    assert caught.value.message.isprintable()
    assert servers.PASSWORD not in caught.value.message
    return caught.value


@pytest.mark.parametrize("name", ["ref.fa", "sub/with space.fa", "ümlaut.fa", "plus+and&more.fa"])
def test_a_file_is_fetched(place: Place, get: Get, name: str) -> None:
    """A protocol that is listed as ready would bring nothing, or something else."""
    assert get(place.put(name, BODY), DIGEST) == BODY


def test_an_empty_file_is_fetched(place: Place, get: Get) -> None:
    """What has nothing in it would be asked for again and again."""
    assert get(place.put("empty", b"")) == b""


def test_what_is_not_there_is_an_error_in_words(place: Place, get: Get) -> None:
    """Who mistyped a path would see a traceback, after a minute of attempts."""
    assert "no such file" in refused(get, f"{place.base}/missing").message


def test_a_directory_is_refused(place: Place, get: Get) -> None:
    """Half a directory, or a page about it, would be taken for a file."""
    place.put("folder/file", b"x")
    assert "directory" in refused(get, f"{place.base}/folder").message


def test_what_broke_off_is_continued(place: Place, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that breaks once an hour would never bring a file of a terabyte."""
    url = place.put("long", BODY)
    begun: list[int] = []
    really_open = fsspec_source.open_file

    def open_file(source: Any, system: Any, name: str, start: int, *more: Any) -> Any:
        begun.append(start)
        file = really_open(source, system, name, start, *more)
        if len(begun) > 1:
            return file
        came: list[int] = []
        really_read = file.read

        def read(size: int) -> bytes:
            if sum(came) > 2_000_000:
                raise ConnectionResetError(104, "Connection reset by peer")
            data: bytes = really_read(size)
            came.append(len(data))
            return data

        file.read = read
        return file

    monkeypatch.setattr(fsspec_source, "open_file", open_file)
    assert get(url, DIGEST) == BODY
    assert begun[0] == 0
    assert begun[1] > 2_000_000


def test_what_has_not_changed_is_not_fetched_again(
    place: Place, make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--refresh` would download everything, or see no change."""
    begun: list[str] = []
    really_open = fsspec_source.open_file

    def open_file(source: Any, system: Any, name: str, *more: Any) -> Any:
        begun.append(name)
        return really_open(source, system, name, *more)

    monkeypatch.setattr(fsspec_source, "open_file", open_file)
    cache = make_cache()
    url = place.put("changing", b"one")
    first = cache.use(url)
    assert cache.use(url, refresh=True).path == first.path
    assert len(begun) == 1
    place.put("changing", b"two, longer")
    assert cache.use(url, refresh=True).path.read_bytes() == b"two, longer"


def test_the_protocols_that_are_shown_are_those_of_the_tests() -> None:
    """`loaders` would promise what nobody has tried."""
    assert set(fsspec_source.SHOWN) == set(servers.ALL) <= set(REMOTE)
    # test_sources.py, test_http.py, test_globus.py, tests/markers
    assert set(SOURCES) == {"file", "local", "http", "https", "globus", *OBJECT_SCHEMES}


def test_what_is_not_shown_is_said_to_be_untested(tmp_path: Path) -> None:
    """Who has a package installed would take for granted that it works with this release."""
    rows = {row["name"]: row for row in call("loaders", "-f", "json").rows("loader") if row["kind"] == "source"}
    for scheme in REMOTE:
        assert rows[scheme]["tested"] == (scheme in fsspec_source.SHOWN)
    shown = {line.split()[1]: line for line in call("loaders").out.splitlines() if line.startswith("source")}
    for scheme in REMOTE:
        ready = rows[scheme]["ready"]
        assert ("  yes  " in shown[scheme]) == (ready and scheme in fsspec_source.SHOWN)
        assert ("not tested" in shown[scheme]) == (ready and scheme not in fsspec_source.SHOWN)


# -- how fast ----------------------------------------------------------------------------------------------------------


def test_sftp_sends_many_requests_before_the_first_answer(
    get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a line of 40 ms, 32 KiB a request would be 0.8 MB/s, however wide the line is."""
    (tmp_path / "big").write_bytes(BODY)
    servers.need("fsspec", "paramiko")
    with servers.ssh(tmp_path / "ssh") as base:
        before, _, port = base.rpartition(":")
        waypoint = servers.Waypoint(int(port))
        really_open = fsspec_source.open_file

        def open_file(*words: Any) -> Any:
            file = really_open(*words)
            waypoint.hold_back_until(16 * 64)  # requests of at least so many bytes, with what encrypts them
            return file

        monkeypatch.setattr(fsspec_source, "open_file", open_file)
        monkeypatch.setattr(fsspec_source, "PATIENCE", 30.0)  # only if it fails
        try:
            assert get(f"{before}:{waypoint.port}{tmp_path}/big", DIGEST) == BODY
        finally:
            waypoint.close()


class Windows:
    """A file that says how much of it was asked for at a time, each in so many seconds."""

    def __init__(self, size: int, clock: FakeClock, seconds: float) -> None:
        self.size, self.clock, self.seconds = size, clock, seconds
        self.asked: list[int] = []
        self.at = 0

    def readv(self, chunks: list[tuple[int, int]]) -> Iterator[bytes]:
        for offset, size in chunks:
            assert offset == sum(self.asked)
            self.asked.append(size)
            self.clock.let_pass(self.seconds)
            yield bytes(size)

    def seek(self, at: int) -> None:
        self.at = at

    def read(self, size: int) -> bytes:
        return bytes(min(size, self.size - self.at))


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 16 << 20), (2.0, 1 << 20)])
def test_no_more_is_read_ahead_than_is_good(seconds: float, most: int) -> None:
    """A file of a terabyte would come to be in memory; and on a slow line, a block would take longer than is waited."""
    clock = FakeClock()
    windows = Windows(100 << 20, clock, seconds)
    file = fsspec_source._ReadAhead(windows, 0, 100 << 20, clock)
    came = 0
    while data := file.read(1 << 20):
        came += len(data)
        assert len(data) <= 1 << 20
    assert came == 100 << 20
    assert max(windows.asked) == most
    assert windows.asked[0] == 1 << 20


# -- what is not tried again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, NotImplementedError, AssertionError])
def test_a_fault_in_a_program_is_told_at_once(get: Get, monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    """Who has a package that does not fit would wait through five attempts for what cannot become better."""
    asked = []

    def open_system(source: object) -> None:
        asked.append(source)
        raise error("missing 1 required positional argument: 'base_url'")

    monkeypatch.setattr(fsspec_source, "open_system", open_system)
    failure = refused(get, "s3://b/x")
    assert error.__name__ in failure.message
    assert "bug in the package" in str(failure.hint)
    assert len(asked) == 1


class StrangeError(Exception):
    """What a store raises that has errors of its own."""

    def __init__(self, **facts: object) -> None:
        super().__init__("something strange")
        self.__dict__.update(facts)


class PermissionForbidden(StrangeError):
    """Refused."""


class error_perm(Exception):  # noqa: N801
    """As ftplib has it."""


@pytest.mark.parametrize(
    ("error", "attempts", "shared"),
    [
        (StrangeError(), 5, False),
        (StrangeError(status_code=503), 5, False),
        (StrangeError(status=429), 5, False),
        (StrangeError(status=400), 1, False),
        (StrangeError(code=401), 1, False),
        (StrangeError(status_code=404), 1, True),
        (StrangeError(response=StrangeError(status_code=410)), 1, True),
        (PermissionForbidden(), 1, False),
        (error_perm("550 no"), 1, False),
        (FileNotFoundError("x"), 1, True),
        (PermissionError("x"), 1, False),
        (EOFError(), 5, False),
    ],
)
def test_only_what_may_pass_is_tried_again(
    get: Get, monkeypatch: pytest.MonkeyPatch, error: Exception, attempts: int, shared: bool
) -> None:
    """A refusal would be told after minutes only, or a server in trouble be given up at once."""
    asked = []

    def open_system(source: object) -> None:
        asked.append(source)
        raise error

    monkeypatch.setattr(fsspec_source, "open_system", open_system)
    assert refused(get, "s3://b/x").shared == shared
    assert len(asked) == attempts


def test_a_fault_in_a_program_is_told_at_once_over_http_too(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind would be fixed in one place only."""
    asked = []

    def fail(*words: object, **more: object) -> None:
        asked.append(words)
        raise TypeError("wrong")

    monkeypatch.setattr("requests.Session.request", fail)
    assert "TypeError: wrong" in refused(get, "http://127.0.0.1:9/x").message
    assert len(asked) == 1
