"""Clients that are slow, huge, broken or mean; each on a real socket, beside others that are not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.serve.app import App
from sccache_dtool.serve.limits import Bounds
from serve.client import DM, Socket, read_all
from waiting import wait_until

Making = Callable[..., App]
Listening = Callable[..., Socket]

#: For clients that are to be given up: nothing else of these tests takes so long.
IMPATIENT = Bounds(header=8 << 10, body=64 << 10, patience=0.2)


@pytest.fixture
def impatient(make_app: Making, listen: Listening) -> Socket:
    """A server that waits for a client for a moment only."""
    return listen(make_app(bounds=IMPATIENT), IMPATIENT)


@pytest.fixture
def served(app: App, listen: Listening) -> Socket:
    """A server."""
    return listen(app)


def locked(served: Socket, source: str | Path) -> str:
    """The path of the download of an item that is locked."""
    data_set = json.dumps({"dataSet": [{"itemId": str(source), "mountPath": "/a"}]}).encode()
    made = served.ask("POST", f"{DM}/session", data_set, content_type="application/json").json
    lock = served.ask("POST", f"{DM}/lock?sessionId={made['_id']}&itemId=/a").json
    return f"{DM}/lock/{lock['_id']}/download"


@pytest.fixture
def cached(layout: Layout, tmp_path: Path) -> Callable[[int], Path]:
    """A file of so many bytes that is in the cache."""

    def make(size: int) -> Path:
        path = tmp_path / "large"
        path.write_bytes(os.urandom(1 << 16) * (size >> 16))
        with Cache(layout.root).use(path):
            return path

    return make


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"G",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health",
    ],
    ids=["nothing", "a byte", "half a header", "half of a second request"],
)
def test_a_header_that_does_not_end(impatient: Socket, begin: bytes) -> None:
    """A client that sends nothing would keep a connection for ever."""
    with impatient.raw(begin) as connection:
        assert b"healthz" not in read_all(connection)
    assert impatient.ask("GET", "/healthz").code == 200


@pytest.mark.parametrize("path", [f"{DM}/session", f"/objects/{'0' * 64}"])
def test_a_body_that_does_not_end(impatient: Socket, path: str) -> None:
    """A client that never sends what it announces would keep a connection, and memory, for ever."""
    method = "PUT" if "objects" in path else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n[".encode()
    with impatient.raw(head) as connection:
        answer = read_all(connection)
    assert answer.split()[1] in (b"408", b"400"), answer  # without an archive, an upload is refused at once


def test_a_body_that_is_too_large(impatient: Socket) -> None:
    """A client could fill the memory of the server."""
    huge = b"x" * (65 << 10)
    assert impatient.ask("POST", f"{DM}/session", huge).code == 413
    with impatient.raw(
        b"POST /api/v1/dm/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    ) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 413")
    head = b"POST /api/v1/dm/session HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with impatient.raw(head) as connection:
        answer = b""
        try:
            for _ in range(100):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = read_all(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413"), answer
    assert impatient.ask("GET", "/healthz").code == 200


def test_a_header_that_is_too_large(impatient: Socket) -> None:
    """A client could fill the memory of the server before its request begins."""
    with impatient.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (64 << 10)) as connection:
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"")
    assert impatient.ask("GET", "/healthz").code == 200


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET", b"\0\0\0\0", b"GET /x HTTP/9.9", b"GET http://x/ HTTP/1.1\r\nHost: a\r\nHost: b",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\nContent-Length: -1", b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", b"GET /\xff HTTP/1.1", b"PRI * HTTP/2.0",
    ],
)  # fmt: skip
def test_what_is_not_http(impatient: Socket, request_line: bytes) -> None:
    """A client that speaks something else would end the server, or be taken for another."""
    with impatient.raw(request_line + b"\r\n\r\n") as connection:
        answer = read_all(connection)
    assert answer == b"" or 400 <= int(answer.split()[1]) < 500, answer
    assert impatient.ask("GET", "/healthz").code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/api/v1/dm/fs/..%2f..%2fetc%2fpasswd/raw",
        "/api/v1/dm/lock/..%2f..%2fx/download", "/objects/..%2f..%2fetc%2fpasswd", "/objects/%00",
        "/api/v1/dm/session/%00",
        "/api/v1/dm/session/s0123456789abcdef%2f..", "/api/v1/dm/fs/item/%ff%fe",
        "/api/v1.0/lots/%00", "/items?after=../x",
    ],
)  # fmt: skip
def test_paths_that_lead_out(served: Socket, path: str) -> None:
    """A client could read a file of the host, or end the server."""
    with served.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()) as connection:
        answer = read_all(connection)
    assert 400 <= int(answer.split()[1]) < 500, answer
    assert b"root:" not in answer


def test_requests_one_after_the_other_on_a_connection(served: Socket, cached: Callable[[int], Path]) -> None:
    """Answers would be mixed up, or be those to another request, if a client does not wait for each."""
    path = locked(served, cached(1 << 20))
    whole = served.ask("GET", path).body
    one = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    part = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=5-9\r\nConnection: close\r\n\r\n".encode()
    with served.raw(one + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" + one + part) as connection:
        answers = read_all(connection)
    assert answers.count(whole) == 2
    assert answers.endswith(b"\r\n\r\n" + whole[5:10])
    assert [one[:3] for one in answers.replace(whole, b"").split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200", b"206"]


def test_a_client_that_does_not_read(impatient: Socket, cached: Callable[[int], Path]) -> None:
    """A client that stops reading would keep a connection and an open file for ever."""
    path = locked(impatient, cached(8 << 20))
    with impatient.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) as connection:
        # Nothing is read until another client sees that the server has given this one up.
        connection.recv(1, socket.MSG_PEEK)
        received = 0
        while impatient.ask("GET", "/healthz").code == 200:
            if _hung_up(connection):
                break
        received = len(read_all(connection))
    assert received < 8 << 20
    assert len(impatient.ask("GET", path).body) == 8 << 20


def _hung_up(connection: socket.socket) -> bool:
    """Whether the other end has closed a connection of which nothing is read."""
    poll = select.poll()
    poll.register(connection, select.POLLHUP | select.POLLRDHUP)
    return bool([event for _, event in poll.poll(20) if event & (select.POLLHUP | select.POLLRDHUP)])


def test_a_client_that_hangs_up_during_a_download(served: Socket, cached: Callable[[int], Path]) -> None:
    """An interrupted download would leave an open file, or break the server."""
    path = locked(served, cached(8 << 20))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with served.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) as connection:
            connection.recv(1000)
    assert len(served.ask("GET", path).body) == 8 << 20
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1, "files stay open")


def test_two_hundred_slow_clients_and_a_fast_one(served: Socket, cached: Callable[[int], Path]) -> None:
    """A few clients with bad connections would keep all others from their data."""
    path = locked(served, cached(4 << 20))
    kinds = [
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),  # a download that is not read
        b"GET /healthz HTTP/1.1\r\nHost: ",
        b"POST /api/v1/dm/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
        b"",
    ]
    slow = [served.raw(kinds[number % 4]) for number in range(200)]
    try:
        for connection in slow[::4]:
            connection.recv(1, socket.MSG_PEEK)  # its download has begun
        assert served.ask("GET", "/healthz").code == 200
        assert len(served.ask("GET", path).body) == 4 << 20
        for connection in slow:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError) if connection not in slow[::4] else _nothing():
                connection.recv(1, socket.MSG_PEEK)  # all are still waited for
    finally:
        for connection in slow:
            connection.close()


def _nothing() -> Any:
    return contextlib.nullcontext()


def test_too_many_connections(make_app: Making, listen: Listening) -> None:
    """Connections that are never used would take all descriptors of the server, and the cache could not be read."""
    bounds = Bounds(connections=5)
    served = listen(make_app(bounds=bounds), bounds)
    kept = [served.raw() for _ in range(5)]
    with served.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as one_more:
        assert read_all(one_more).startswith(b"HTTP/1.1 503")
    for connection in kept:
        connection.close()
    wait_until(lambda: served.ask("GET", "/healthz").code == 200, "it does not recover")


def test_many_at_a_time(served: Socket, cached: Callable[[int], Path]) -> None:
    """Two downloads at a time would be mixed up."""
    path = locked(served, cached(4 << 20))
    whole = served.ask("GET", path).body
    found: list[bool] = []

    def download(begin: int) -> None:
        found.append(served.ask("GET", path, range=f"bytes={begin}-").body == whole[begin:])

    threads = [threading.Thread(target=download, args=(number * 1000,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 16


#: Texts that end or leave a path, or are not what they look like, in every place where an id or a path is given.
NASTY = (
    "%00", "a%00b", "..", "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%2Fetc%2Fpasswd", "..%5c..%5cetc", "%c0%ae%c0%ae",
    "%ff%fe", "%0d%0aX:%20y", "%25%32%66", "%F0%9F%92%A9", "%C2%B2" * 32 + "-x", "%C2%B2" * 32 + ".x",
    "0" * 5000, "-", "~",
    "s0000000000000000", "0" * 32 + "-x.%00", "0" * 32 + "-x.2e2e", "0" * 32 + ".2e2e2f2e2e", "0" * 32 + "-..%2f..",
    "n%00.1", "1e400", "%7B%7D", "'%3B--", "*", "%3Cscript%3E",
)  # fmt: skip


def test_nasty_texts_in_every_parameter(served: Socket, tmp_path: Path, layout: Layout) -> None:
    """A client could read a file of the host, write outside of the cache, or end the server by an odd id."""
    document = served.ask("GET", "/openapi.json").json
    before = sorted(str(one) for one in tmp_path.rglob("*") if not one.is_relative_to(layout.root))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
            for text in NASTY:
                if "{" not in path and not names:
                    continue
                url = re.sub(r"\{[^}]*\}", text.replace("\\", r"\\"), path)
                query = "&".join(f"{name}={text}" for name in names)
                body = b"{}" if method in ("post", "put", "patch") else None
                reply = served.ask(method.upper(), f"{url}?{query}", body, content_type="application/json")
                assert reply.code < 500 or reply.code == 503, (method, url, query, reply)
                assert b"root:" not in reply.body, (method, url, reply)
                assert "x" not in reply.headers, (method, url, reply)
    assert sorted(str(one) for one in tmp_path.rglob("*") if not one.is_relative_to(layout.root)) == before


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"Host: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"Host: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", b"400"),
        (b"Host: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n[]", b"400"),
        (b"Host: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"Host: localhost\r\nContent-Length: +2\r\n\r\n[]", b"400"),
        (b"Host: localhost\r\nContent-Length : 2\r\n\r\n[]", b"400"),
        (b"Host: localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"Host: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n\r\n", b"400"),
        (b"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n[]", b"400"),
        (b"Host: localhost\r\nHost: evil.example\r\n\r\n", b"400"),
        (b"Host: localhost\r\n folded: x\r\n\r\n", b"400"),
        (b"\r\n", b"400"),
        (b"Host: evil.example\r\n\r\n", b"400"),
    ],
)
def test_requests_that_a_proxy_reads_otherwise(served: Socket, head: bytes, code: bytes) -> None:
    """What one client sends would be taken for the request of another one, behind the same proxy."""
    smuggled = b"DELETE /api/v1/dm/session/x HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served.raw(b"POST /api/v1/dm/session HTTP/1.1\r\n" + head + smuggled) as connection:
        connection.shutdown(socket.SHUT_WR)
        found = read_all(connection)
    # At most one answer: not that of what was smuggled. None if the body was cut.
    assert [one.split(b" ", 1)[0] for one in found.split(b"HTTP/1.1 ")[1:]] in ([code], [b"400"], []), found


def test_the_whole_url_of_another_host(served: Socket) -> None:
    """A server that takes the host from the request line would go by another one than it has checked."""
    with served.raw(b"GET http://evil.example/items HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as one:
        assert read_all(one).startswith(b"HTTP/1.1 404")


def test_a_cache_that_goes_away(served: Socket, layout: Layout, short_path: Path) -> None:
    """A server whose cache is moved or not mounted would have to be started again, or answer as if it were empty."""
    assert served.ask("GET", "/healthz").code == 200
    os.rename(layout.root, short_path / "away")
    for path in ("/healthz", "/items", "/du", "/metrics", "/transfers", "/", f"{DM}/session", f"{DM}/lock"):
        reply = served.ask("GET", path)
        assert (reply.code, reply.headers["retry-after"]) == (503, "1"), (path, reply)
    os.rename(short_path / "away", layout.root)
    assert served.ask("GET", "/healthz").code == 200


def test_archives_that_nobody_waits_for(served: Socket, cached: Callable[[int], Path], tmp_path: Path) -> None:
    """A client that hangs up at once would cost two descriptors each time, until the server has none."""
    top = tmp_path / "folder"
    top.mkdir()
    (top / "x").write_bytes(bytes(4 << 20))
    path = locked(served, top)
    wait_until(lambda: served.ask("GET", f"{path}?tar", range="bytes=0-").code == 200, "not fetched")
    before = len(os.listdir("/proc/self/fd"))
    request = f"GET {path}?tar HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for _ in range(30):
        served.raw(request).close()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2, "descriptors are left open")


def test_a_refusal_reaches_a_client_that_is_still_sending(served: Socket) -> None:
    """A client would see a broken connection, and never learn that its request is not allowed, or why."""
    head = b"POST /api/v1/dm/session HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 4\r\n\r\n"
    for _ in range(20):
        with served.raw(head + b"[") as connection:
            assert not select.select([connection], [], [], 0.02)[0]  # no answer yet
            connection.sendall(b"12]")
            assert connection.recv(12) == b"HTTP/1.1 400"
