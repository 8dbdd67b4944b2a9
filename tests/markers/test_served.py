"""An archive that another host serves: everything that works on an archive in a directory, and what goes wrong."""

from __future__ import annotations

import hashlib
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import archiveserver
import httpserver
from archiveserver import Handler, Server, garbage, gone, status
from faults import FakeClock
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, FetchFailed, NoSpace, UsageError
from sccache_dtool.fetch import http
from sccache_dtool.markers import index, orphans, serving
from sccache_dtool.markers.archive import Archive
from sccache_dtool.policy.rules import Rules

ALL = Rules(everything=True)
TOKEN = "hush-hush-hush"
DATA = b"0123456789"
DIGITS = hashlib.sha256(DATA).hexdigest()
ID = f"sha256:{DIGITS}"
LARGE = bytes(range(256)) * (12 << 10)  # three of the pieces that are read at once


@pytest.fixture
def configured(layout: Layout, make_cache: Callable[..., Cache], tmp_path: Path) -> Callable[..., Cache]:
    """Makes a cache whose archive is at a URL."""

    def make(url: str, *more: str) -> Cache:
        Path(layout.config_file).write_text("\n".join(["[archive]", f'url = "{url}"', *more]) + "\n")
        return make_cache()

    return make


@pytest.fixture
def server(archive: Archive) -> Iterator[Server]:
    """The archive of a directory, served."""
    with archiveserver.serve(archive) as found:
        yield found


@pytest.fixture
def client(server: Server, configured: Callable[..., Cache]) -> Cache:
    """A cache on another host, as it were, whose archive is that server's."""
    return configured(server.url)


def names_of(cache: Cache) -> set[str]:
    """The names of the items that have copies."""
    return {item.label for item in cache.items() if item.copies}


# -- what works --------------------------------------------------------------------------------------------------------


def test_the_cycle_of_a_file(client: Cache, server: Server, data: Path) -> None:
    """A site without the group's disks could not save, restore, or list files."""
    assert not client.archive.init()
    saved = client.save(data / "data.csv", comment="first")
    assert saved.sha256 == DIGITS
    assert client.add(data / "data.csv") == ID
    client.files.comment(str(data / "data.csv"), "second")
    served = server.archive
    assert list(served.objects()) == [DIGITS]
    assert sorted(served.details(one).comment for one in served.records()) == ["", "first", "second"]
    archive = client.archive
    assert list(archive.records()) == list(served.records()) == list(archive.records(DIGITS))
    assert [archive.details(one) for one in archive.records()] == [served.details(one) for one in served.records()]
    assert [archive.details(one).comment for one in served.records()] == [
        served.details(one).comment for one in served.records()
    ]
    assert list(archive.objects()) == list(archive.known()) == [DIGITS]
    assert list(archive.verify([DIGITS])) == []
    assert index.IndexCSV(archive).has(ID)
    assert not index.IndexCSV(archive).has("0" * 64)
    client.clean(ALL)
    (data / "data.csv").unlink()
    client.files.copy_out(client.files.marker_of(str(data / "data.csv.marker")), str(data / "got"), replace=False)
    assert (data / "got").read_bytes() == DATA
    with client.open(data / "data.csv.marker", offset=4) as file:
        assert file.read() == "456789"


def test_a_file_that_is_there_is_not_sent_again(client: Cache, server: Server, data: Path) -> None:
    """Each add of a large file that the group has would take as long as the first."""
    client.add(data / "data.csv")
    server.asked.clear()
    client.files.add(str(data / "data.csv"), archive_only=True)
    assert "PUT" not in server.methods()
    assert len(list(server.archive.records())) == 2


def test_a_unix_socket(archive: Archive, configured: Callable[..., Cache], data: Path, tmp_path: Path) -> None:
    """A service that listens on a socket only, as it does by default, could not be used; nor past a proxy."""
    with archiveserver.serve(archive, token=TOKEN, socket=tmp_path / "socket") as server:
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        (tmp_path / "token").chmod(0o600)
        client = configured(server.url, f'token_file = "{tmp_path}/token"')
        assert client.add(data / "data.csv") == ID
        client.clean(ALL)
        with client.use(ID) as path:
            assert path.read_bytes() == DATA
        assert names_of(client) == {f"sha256-{DIGITS[:8]}"}
    with pytest.raises(FetchFailed, match="cannot use the archive http"):
        configured(server.url).archive.size(DIGITS)


def test_files_of_a_predecessor_are_found_by_md5(client: Cache, server: Server, tmp_path: Path) -> None:
    """Whoever has only the MD5 in old notes could not have the file from a server."""
    old = tmp_path / "old"
    old.mkdir()
    md5 = hashlib.md5(DATA).hexdigest()
    (old / f"{md5}.cache").write_bytes(DATA)
    (old / "index.csv").write_text(f"{md5},2020-01-01:00:00:00\n")
    assert [one.identifier for one in client.files.adopt(str(old / "index.csv"))] == [ID]
    assert client.files.marker_of(f"md5:{md5}").sha256 == DIGITS
    assert len(list(server.archive.records())) == 1
    assert client.archive.alias("0" * 32) is None


def test_many_entries_are_listed_in_pages(client: Cache, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of more than one page would be cut, or listed for ever."""
    monkeypatch.setattr(serving, "MOST_ENTRIES", 3)
    archive = server.archive
    for number in range(10):
        digits = hashlib.sha256(b"%d" % number).hexdigest()
        archive.fs.make_dirs(f"{archive.url}/added/{digits[:2]}")
        archive.fs.write_new(f"{archive.url}/added/{digits[:2]}/{digits}~{number + 1}~1~{number:016x}", "{}")
    assert list(client.archive.entries()) == list(archive.entries())
    assert list(client.archive.known()) == list(archive.known())
    assert len(list(client.archive.known())) == 10
    assert list(client.archive.objects()) == []


def test_orphans_are_named_and_cannot_be_removed_from_here(
    client: Cache, server: Server, data: Path, clock: FakeClock
) -> None:
    """An administrator would be told nothing of where to delete, or clients could delete what others need."""
    client.add(data / "data.csv")
    clock.let_pass(8 * 86400)
    assert list(orphans.find(client.archive, set())) == [(DIGITS, 10)]
    assert list(orphans.find(client.archive, {DIGITS})) == []
    with pytest.raises(UsageError, match="no request for that") as caught:
        orphans.remove(client.archive, DIGITS)
    assert "on the server's host" in str(caught.value.hint)
    assert server.archive.size(DIGITS) == 10


# -- downloads and uploads that break off ------------------------------------------------------------------------------


@pytest.fixture
def large(server: Server, client: Cache, data: Path) -> str:
    """An object that comes in several pieces."""
    (data / "large").write_bytes(LARGE)
    return client.files.add(str(data / "large"), archive_only=True)


def cut(handler: Handler) -> None:
    """A fault: half of the object, and then the end of the connection."""
    body = LARGE[: len(LARGE) // 2]
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(LARGE)))
    handler.send_header("ETag", f'"{hashlib.sha256(LARGE).hexdigest()}"')
    handler.end_headers()
    handler.wfile.write(body)
    handler.hang_up()


def test_a_download_is_continued_where_it_broke_off(client: Cache, server: Server, large: str) -> None:
    """A large file over a bad line would begin again from the start, each time."""
    server.before("GET", cut)
    with client.use(large) as path:
        assert path.read_bytes() == LARGE
    assert f"bytes={len(LARGE) // 2}-" in [headers.get("range") for _, _, headers in server.asked]


def test_a_stream_is_continued_where_it_broke_off(client: Cache, server: Server, large: str) -> None:
    """What passes the cache by, such as a file that is too large for it, could not be had over a bad line."""
    server.before("GET", cut, status(503))
    assert b"".join(client.archive.pieces(large[7:])) == LARGE
    assert f"bytes={len(LARGE) // 2}-" in [headers.get("range") for _, _, headers in server.asked]


@pytest.mark.parametrize(
    "faults",
    [
        (gone(1 << 20),),
        (gone(), gone()),
        (status(503, Retry_After="1"), status(429, Retry_After="2")),
        (status(422, b'{"message": "not these bytes"}'),),
        (garbage(b"what?\r\n\r\n"),),
        (garbage(b""), garbage(b"HTTP/1.1 201")),
    ],
    ids=["cut", "gone", "busy", "spoiled", "garbage", "short"],
)
def test_an_upload_is_sent_again(client: Cache, server: Server, data: Path, faults: tuple[archiveserver.Fault]) -> None:
    """A file would not be archived because of a bad line, or be there twice or by half."""
    (data / "large").write_bytes(LARGE)
    server.before("PUT", *faults)
    id = client.files.add(str(data / "large"), archive_only=True)
    assert server.methods().count("PUT") == len(faults) + 1
    assert list(server.archive.verify([id[7:]])) == []
    assert server.archive.staged() == []
    assert len(list(server.archive.records())) == 1


def test_a_record_whose_answer_is_lost_is_there_once(client: Cache, server: Server, data: Path) -> None:
    """A file would seem to have been added twice."""

    def answer_nothing(handler: Handler) -> None:
        handler.body_of_record = b"".join(handler.body())  # type: ignore[attr-defined]
        document = archiveserver.json.loads(handler.body_of_record)  # type: ignore[attr-defined]
        serving.note(server.archive, DIGITS, document)
        handler.hang_up()

    server.before("POST", answer_nothing)
    client.add(data / "data.csv")
    assert len(list(server.archive.records())) == 1


def test_an_object_that_is_collected_meanwhile_is_sent_again(client: Cache, server: Server, data: Path) -> None:
    """`add` would succeed for a file that is not in the archive."""

    def collect(handler: Handler) -> None:
        Path(server.archive.path_of(DIGITS)).unlink()

    server.before("POST", collect)
    client.add(data / "data.csv")
    assert list(server.archive.verify([DIGITS])) == []
    assert server.methods().count("PUT") == 2


# -- what errors mean --------------------------------------------------------------------------------------------------


def test_a_server_that_stays_away_costs_a_bounded_time(
    client: Cache, server: Server, data: Path, clock: FakeClock
) -> None:
    """A job would wait for ever, or its file would be lost."""
    server.before("GET", *[status(503)] * 100)
    with pytest.raises(FetchFailed, match="503"):
        client.add(data / "data.csv")
    assert len(server.asked) < 20
    assert names_of(client) == set()
    id = client.files.add(str(data / "data.csv"), later=True)
    assert len(names_of(client)) == 1
    client.clean(ALL)
    assert len(names_of(client)) == 1
    server.close()
    assert [error is not None for _, error in client.files.push()] == [True]
    with archiveserver.serve(server.archive) as again:
        client.settings  # noqa: B018
        Path(client.root, ".sc-dtool/config.toml").write_text(f'[archive]\nurl = "{again.url}"\n')
        back = Cache(client.root, clock=clock)
        assert list(back.files.push()) == [(id, None)]
        back.close()
    assert list(server.archive.verify([DIGITS])) == []


def test_a_silent_server_is_given_up(
    client: Cache, server: Server, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs would hang every job."""
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.05)
    server.before("GET", *[archiveserver.silent] * 100)
    with pytest.raises(FetchFailed, match="no data for"):
        client.add(data / "data.csv")


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (status(403, b'{"message": "only readers"}'), FetchFailed, "403"),
        (status(411), FetchFailed, "411"),
        (status(413, b'{"message": "at most 5 bytes"}'), NoSpace, "413"),
        (status(507), NoSpace, "507"),
        (status(400, b'{"message": "no"}'), FetchFailed, "400"),
        (status(409, b'{"message": "other bytes"}'), FetchFailed, "damaged"),
        (status(404, b"<html>"), FetchFailed, "not a server of an archive"),
        (status(302, Location="http://127.0.0.1:1/x"), FetchFailed, "redirected"),
        (status(503, Retry_After="86400"), FetchFailed, "503"),
    ],
)
def test_a_refused_upload_says_why_and_leaves_nothing(
    client: Cache, server: Server, data: Path, answer: archiveserver.Fault, error: type[CacheError], text: str
) -> None:
    """The user would not know whether to wait, to ask somebody, or to use another file."""
    server.before("PUT", answer)
    with pytest.raises(error, match=text) as caught:
        client.save(data / "data.csv")
    assert caught.value.hint or caught.value.details or text == "redirected"
    assert server.methods().count("PUT") == 1
    assert not (data / "data.csv.marker").exists()
    assert names_of(client) == set()
    assert list(server.archive.known()) == []
    server.before("PUT", answer)
    client.files.add(str(data / "data.csv"), later=True)
    assert len(names_of(client)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        status(200, b"<html>Please log in</html>", Content_Type="text/html"),
        status(200, b"[" * 100_000),
        status(200, b'{"entries": {}}'),
        status(200, b'{"next": null}', ETag='"other"'),
        status(404, b"<html>"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST"])
def test_answers_that_no_archive_gives(
    client: Cache, server: Server, data: Path, answer: archiveserver.Fault, method: str
) -> None:
    """A page that asks for a password would be taken for "it is archived", and the file be deleted by its owner."""
    server.before(method, *[answer] * 4)
    with pytest.raises(FetchFailed):
        client.save(data / "data.csv")
    assert not (data / "data.csv.marker").exists()
    assert names_of(client) == set()


ENTRY = f'{{"id": "{ID}", "ms": 1, "bytes": 1, "random": "{"0" * 16}"}}'.encode()
RECORD = f"{DIGITS}~1~1~{'0' * 16}".encode()


@pytest.mark.parametrize(
    "page",
    [
        b'{"entries": [{"id": "sha256:../x", "ms": 1, "bytes": 1, "random": "0"}], "next": null}',
        b'{"entries": [1], "next": null}',
        b'{"entries": [], "next": 1}',
        b'{"entries": [], "next": "%s"}' % RECORD,  # which would go on for ever
        b'{"entries": [%s, %s], "next": null}' % (ENTRY, ENTRY),
        b'{"entries": [%s], "next": "%s"}' % (ENTRY, RECORD.replace(b"~1~", b"~0~")),
    ],
)
def test_entries_that_make_no_sense_are_refused(client: Cache, server: Server, page: bytes) -> None:
    """A hostile server could make the client go on for ever, or print what drives a terminal."""
    server.before("GET", *[status(200, page)] * 3)
    with pytest.raises(FetchFailed, match="not a server of an archive"):
        list(client.archive.entries())


@pytest.mark.parametrize("length", [b"", b"Content-Length: " + b"9" * 5000 + b"\r\n"])
def test_an_answer_without_an_end_is_refused(client: Cache, server: Server, length: bytes) -> None:
    """A hostile server could send for ever, or end the command with a traceback."""
    head = b'HTTP/1.1 200 OK\r\nETag: "%s"\r\n%s\r\n' % (DIGITS.encode(), length)
    server.before("HEAD", *[archiveserver.garbage(head)] * 4)
    server.before("GET", *[archiveserver.garbage(head + b"x" * 100)] * 4)
    with pytest.raises(FetchFailed, match="not a server of an archive"):
        client.archive.size(DIGITS)
    with pytest.raises(FetchFailed, match="not a server of an archive"):
        list(client.archive.pieces(DIGITS))


def test_a_damaged_object_is_named_and_never_published(client: Cache, server: Server, data: Path) -> None:
    """A job would read a flipped bit; or a file would be taken for archived because the archive has a bad one."""
    id = client.files.add(str(data / "data.csv"), archive_only=True)
    path = Path(server.archive.path_of(DIGITS))
    path.chmod(0o644)
    path.write_bytes(b"012345678X")
    for read in (
        lambda: client.use(id),
        lambda: list(client.archive.pieces(DIGITS)),
        lambda: client.add(data / "data.csv"),
    ):
        with pytest.raises(FetchFailed, match="damaged") as caught:
            read()
        assert id in caught.value.message
    assert names_of(client) == set()
    assert len(list(client.archive.verify([DIGITS]))) == 1


def test_a_missing_object(client: Cache, server: Server) -> None:
    """The user would not be told that somebody has to add the file again."""
    for read in (
        lambda: client.use(ID),
        lambda: list(client.archive.pieces(DIGITS)),
        lambda: client.files.record(DIGITS, "x"),
    ):
        with pytest.raises(FetchFailed, match="is not in the archive"):
            read()
    assert client.archive.size(DIGITS) is None


# -- the token ---------------------------------------------------------------------------------------------------------


def test_the_token_is_sent_and_never_shown(
    archive: Archive,
    configured: Callable[..., Cache],
    data: Path,
    tmp_path: Path,
    warnings: list[str],
    notes: list[str],
) -> None:
    """Whoever reads a log, an error or item.json could use the archive in the user's name."""
    token = tmp_path / "token"
    with archiveserver.serve(archive, token=TOKEN) as server:
        client = configured(server.url, f'token_file = "{token}"')
        with pytest.raises(FetchFailed, match="401") as caught:
            client.add(data / "data.csv")
        assert str(token) in str(caught.value.hint)
        token.write_text("wrong-token\n")
        token.chmod(0o644)
        with pytest.raises(UsageError, match="others may read"):
            client.add(data / "data.csv")
        token.chmod(0o600)
        with pytest.raises(FetchFailed, match="401") as caught:
            client.add(data / "data.csv")
        assert "not valid" in str(caught.value.hint)
        with pytest.raises(FetchFailed, match="401"):
            client.use(ID)
        token.write_text(f"{TOKEN}\n")
        client.add(data / "data.csv")
        client.clean(ALL)
        client.use(ID).release()
        server.before("PUT", status(400, b'{"message": "bad token %s"}' % TOKEN.encode()))
        (data / "other").write_bytes(b"other")
        with pytest.raises(FetchFailed) as caught:
            client.add(data / "other")
        assert TOKEN not in f"{caught.value} {caught.value.details}"
    kept = [path for path in Path(client.root).rglob("*") if path.is_file() and not path.is_symlink()]
    assert kept
    assert not any(TOKEN.encode() in path.read_bytes() for path in kept)
    assert TOKEN not in "\n".join([*warnings, *notes])


def test_the_token_goes_to_no_other_host(
    archive: Archive, configured: Callable[..., Cache], data: Path, tmp_path: Path
) -> None:
    """Whoever can redirect a request would get the token."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(stat.S_IRUSR)
    with archiveserver.serve(archive, token=TOKEN) as server, httpserver.serve() as other:
        client = configured(server.url, f'token_file = "{token}"')
        client.add(data / "data.csv")
        client.clean(ALL)
        server.before("GET", status(302, Location=other.page("/x", DATA)))
        with client.use(ID) as path:
            assert path.read_bytes() == DATA
        assert "Authorization" not in other.seen[0][1]


@pytest.mark.parametrize("text", ["", "two words", "line\nline", "\x00", "ä"])
def test_a_file_that_has_no_token_in_it(
    server: Server, configured: Callable[..., Cache], tmp_path: Path, text: str
) -> None:
    """A wrong file would be sent to the server, or break the request."""
    (tmp_path / "token").write_text(text)
    (tmp_path / "token").chmod(0o600)
    client = configured(server.url, f'token_file = "{tmp_path}/token"')
    with pytest.raises(UsageError, match="token"):
        client.archive.require()
    assert server.asked == []


def test_an_address_at_which_nothing_is(configured: Callable[..., Cache], data: Path, archive_path: Path) -> None:
    """A mistake in config.toml would be reported as a missing file."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    client = configured(f"http://127.0.0.1:{port}/objects")
    shutil.rmtree(archive_path)
    with httpserver.past_proxies(), pytest.raises(FetchFailed, match="cannot use the archive"):
        client.add(data / "data.csv")
    with httpserver.serve() as plain, pytest.raises(FetchFailed, match="not a server of an archive") as caught:
        configured(plain.page("/objects", b"hello")).add(data / "data.csv")
    assert "config.toml" in str(caught.value.hint)
