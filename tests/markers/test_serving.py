"""What a server of an archive answers to clients that are not sc-dtool, and to those that mean harm."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

import archiveserver
from archiveserver import Server
from faults import Failing, FakeClock
from sccache_dtool.cache import Cache
from sccache_dtool.fetch.objects import object_name
from sccache_dtool.markers import orphans
from sccache_dtool.markers.archive import Archive, Details
from waiting import wait_until

DATA = b"0123456789"
DIGITS = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(archive: Archive) -> Iterator[Server]:
    """The archive, served."""
    with archiveserver.serve(archive, limit=1 << 20) as found:
        yield found


def files_in(archive: Archive) -> list[str]:
    """All files of an archive."""
    return sorted(str(path.relative_to(archive.url)) for path in Path(archive.url).rglob("*") if path.is_file())


def put(server: Server, digits: str = DIGITS, data: bytes = DATA) -> requests.Response:
    """An upload."""
    return requests.put(f"{server.url}/{digits}", data, timeout=30)


def test_an_upload_is_there_with_its_bytes_and_once(server: Server) -> None:
    """Other programs could not add objects, or a repeated upload would be an error."""
    assert put(server).status_code == 201
    assert put(server).status_code == 200
    assert list(server.archive.objects()) == [DIGITS]
    got = requests.get(f"{server.url}/{DIGITS}", timeout=30)
    assert (got.status_code, got.content) == (200, DATA)
    assert (got.headers["ETag"], got.headers["Accept-Ranges"]) == (f'"{DIGITS}"', "bytes")
    assert requests.head(f"{server.url}/{DIGITS}", timeout=30).headers["Content-Length"] == "10"


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({"Range": "bytes=4-"}, 206, b"456789"),
        ({"Range": "bytes=4-5"}, 206, b"45"),
        ({"Range": "bytes=8-99"}, 206, b"89"),
        ({"Range": "bytes=-3"}, 206, b"789"),
        ({"Range": "bytes=4-", "If-Range": f'"{DIGITS}"'}, 206, b"456789"),
        ({"Range": "bytes=4-", "If-Range": '"other"'}, 200, DATA),
        ({"Range": "bytes=10-"}, 416, None),
        ({"Range": "bytes=5-4"}, 416, None),
        ({"Range": "lines=1-2"}, 200, DATA),
        ({"Range": "bytes=-"}, 200, DATA),
        ({"If-None-Match": f'"{DIGITS}"'}, 304, b""),
        ({"If-None-Match": '"other"'}, 200, DATA),
    ],
)
def test_parts_and_conditions(server: Server, headers: dict[str, str], status: int, body: bytes | None) -> None:
    """A download could not be continued, or would be continued with the wrong bytes."""
    put(server)
    got = requests.get(f"{server.url}/{DIGITS}", headers=headers, timeout=30)
    assert got.status_code == status
    assert body is None or got.content == body
    if status == 416:
        assert got.headers["Content-Range"] == "bytes */10"


def test_an_upload_with_other_bytes_leaves_nothing(server: Server) -> None:
    """An object would have another content than its name says."""
    before = files_in(server.archive)
    answer = put(server, data=b"other")
    assert answer.status_code == 422
    assert DIGITS in answer.json()["message"]
    assert files_in(server.archive) == before
    assert requests.head(f"{server.url}/{DIGITS}", timeout=30).status_code == 404


def test_an_upload_that_breaks_off_leaves_nothing(server: Server) -> None:
    """Halves of uploads would fill the archive, or be taken for objects."""
    before = files_in(server.archive)
    host, port = server.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"PUT /objects/{DIGITS} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234".encode())
        wait_until(lambda: server.received == 5, "half of the upload is there")
    wait_until(lambda: files_in(server.archive) == before, "what was received is removed")
    assert list(server.archive.objects()) == []


@pytest.mark.parametrize("compress", ["archive", "both"])
def test_an_upload_is_stored_compressed_and_read_as_it_was(
    with_archive: Callable[..., Cache], clock: FakeClock, compress: str
) -> None:
    """A served archive would fill its disk although it is to be compressed; or clients would get compressed bytes."""
    data = b"".join(b"line %d\n" % number for number in range(200_000))
    digits, wrong = hashlib.sha256(data).hexdigest(), "0" * 64
    archive = with_archive(compress=f'"{compress}"').archive
    with archiveserver.serve(archive) as server:
        url = f"{server.url}/{digits}"
        assert put(server, wrong, data).status_code == 422
        assert files_in(archive) == []
        assert [put(server, digits, data).status_code for _ in range(2)] == [201, 200]
        name = object_name(digits, archive.forms[0])
        assert files_in(archive) == [name] != [object_name(digits)]
        assert Path(archive.url, name).stat().st_size < len(data) / 3
        for _ in range(2):  # before there is a record, and after that
            assert requests.head(url, timeout=30).headers["Content-Length"] == str(len(data))
            assert requests.get(url, timeout=30).content == data
            got = requests.get(url, headers={"Range": "bytes=1500000-1500009"}, timeout=30)
            assert (got.status_code, got.content) == (206, data[1_500_000:1_500_010])
            assert got.headers["Content-Range"] == f"bytes 1500000-1500009/{len(data)}"
            assert requests.get(url, headers={"Range": "bytes=-5"}, timeout=30).content == data[-5:]
            assert requests.get(url, headers={"Range": f"bytes={len(data)}-"}, timeout=30).status_code == 416
            requests.post(f"{server.url[:-7]}index/{digits}", json={"name": "lines", "random": "1" * 16}, timeout=30)
        (record,) = archive.records()
        assert record.bytes == len(data)
        other = Path(archive.url, object_name(DIGITS))  # as it was stored before the setting was changed
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(DATA)
        assert put(server).status_code == 200
        assert put(server, DIGITS, b"x" * 10).status_code == 422
        assert files_in(archive).count(object_name(DIGITS)) == 1
        assert object_name(DIGITS, archive.forms[0]) not in files_in(archive)
    clock.let_pass(8 * 86400)
    assert sorted(orphans.find(archive, {DIGITS})) == [(digits, len(data))]
    assert orphans.remove(archive, digits)
    assert list(archive.objects()) == [DIGITS]
    clock.let_pass(8 * 86400)
    assert orphans.empty_trash(archive) == 1
    assert archive.staged() == archive.trashed() == []


def test_two_uploads_of_one_object_at_once(server: Server) -> None:
    """Two groups that add the same file would get an error, or each other's half."""
    both, answers = threading.Barrier(2), []

    def wait(handler: archiveserver.Handler) -> None:
        both.wait(30)

    server.before("PUT", wait, wait)
    threads = [threading.Thread(target=lambda: answers.append(put(server).status_code)) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(answers) == [200, 201]
    assert list(server.archive.verify(server.archive.objects())) == []
    assert server.archive.staged() == []


def test_an_upload_above_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    """A client could fill the disk of the archive."""
    host, port = server.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"PUT /objects/{DIGITS} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n".encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")  # without a byte of the body
    assert server.received == 0
    assert server.archive.staged() == []


def test_an_upload_without_its_length_is_refused(server: Server) -> None:
    """The limit would not hold for it."""
    answer = requests.put(f"{server.url}/{DIGITS}", iter([DATA]), timeout=30)
    assert answer.status_code == 411
    assert list(server.archive.objects()) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../added",
        "%2e%2e%2fadded",
        DIGITS[:-1],
        f"{DIGITS}0",
        DIGITS.upper(),
        f"{DIGITS}%00",
        f"{DIGITS}%0a",
        f"../objects/{DIGITS}",
        f"./{DIGITS}",
        f"%2f{DIGITS}",
        f"{DIGITS}/",
        f"{DIGITS[:2]}/{DIGITS[2:]}",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_path_that_names_no_object_is_refused(server: Server, name: str, method: str) -> None:
    """A client could read or write files outside of the objects."""
    host, port = server.url.split("/")[2].split(":")
    before = files_in(server.archive)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{method} /objects/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
    assert files_in(server.archive) == before


def test_the_index_is_listed_in_pages(server: Server) -> None:
    """A client with a large archive would miss entries, or see some twice."""
    archive = server.archive
    for number in range(5):
        data = b"%d" % number
        put(server, hashlib.sha256(data).hexdigest(), data)
        if number:
            for name in ("a", "b"):
                archive.add_record(hashlib.sha256(data).hexdigest(), Details(name))
    found, after = [], ""
    while True:
        document = requests.get(f"{server.url[:-7]}index", {"after": after, "limit": "2"}, timeout=30).json()
        assert len(document["entries"]) <= 2
        found += document["entries"]
        after = document["next"]
        if after is None:
            break
    assert [(one["id"][7:], one["ms"], one["bytes"], one["random"]) for one in found] == list(archive.entries())
    assert len(found) == 9
    assert all(one["archived"] for one in found)
    first = found[2]["id"][7:]
    from_there = requests.get(f"{server.url[:-7]}index", {"after": first}, timeout=30).json()["entries"]
    assert from_there[0]["id"][7:] == first
    for wrong in ({"after": "../x"}, {"limit": "-1"}, {"md5": "x"}):
        assert requests.get(f"{server.url[:-7]}index", wrong, timeout=30).status_code == 400


def test_a_record_is_posted_once_however_often_it_is_sent(server: Server) -> None:
    """A lost answer would make two records of one file, or none."""
    put(server)
    url, document = f"{server.url[:-7]}index/{DIGITS}", {"name": "data.csv", "comment": "first", "random": "0" * 16}
    assert [requests.post(url, json=document, timeout=30).status_code for _ in range(2)] == [201, 200]
    assert [server.archive.details(one).comment for one in server.archive.records()] == ["first"]
    other = f"{server.url[:-7]}index/{'0' * 64}"
    assert requests.post(other, json=document, timeout=30).status_code == 404
    for wrong in ({"random": "../x"}, {"name": "x" * 2000}, {"comment": 1}, {"md5": "0"}):
        assert requests.post(url, json=wrong, timeout=30).status_code == 400
    assert requests.post(url, json={"md5": "0" * 32}, timeout=30).status_code == 422
    assert len(list(server.archive.records())) == 1
    assert not os.path.exists(f"{server.archive.url}/added/md5")


def test_damaged_objects_have_an_answer_of_their_own(server: Server) -> None:
    """A client would try again for ever what only the archive's administrator can repair."""
    put(server)
    path = Path(server.archive.path_of(DIGITS))
    path.chmod(0o644)
    path.write_bytes(b"012345678X")
    assert put(server).status_code == 409
    url = f"{server.url[:-7]}index/{DIGITS}"
    assert requests.post(url, json={"verify": True}, timeout=30).status_code == 409


def test_a_full_disk_and_an_absent_archive(server: Server, archived: Cache, make_cache: Callable[..., Cache]) -> None:
    """A client would not know whether to wait."""
    fs = Failing()
    fs.fail("write", errno.ENOSPC)
    with archiveserver.serve(make_cache(fs=fs).archive) as full:
        assert put(full).status_code == 507
    assert server.archive.staged() == []
    Path(server.archive.url).rename(f"{server.archive.url}-away")
    away = requests.get(f"{server.url[:-7]}index", timeout=30)
    assert away.status_code == 503
    assert int(away.headers["Retry-After"]) > 0
    assert put(server).status_code == 503
