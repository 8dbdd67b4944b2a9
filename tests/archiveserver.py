"""The smallest server of an archive: the routes that `sccache_dtool.markers.serving` describes, over any archive.

    with archiveserver.serve(archive, token="hush", limit=1 << 20) as server:
        server.url                       # "http://127.0.0.1:…/objects", for [archive] url
        server.before("PUT", fault)      # the next PUT meets fault(handler), which answers, hangs up, or waits

With `socket`, it listens on a Unix socket instead.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpserver
from sccache_dtool.markers import serving
from sccache_dtool.markers.archive import Archive
from sccache_dtool.markers.serving import Answer, Refused

#: What a request meets before it is answered: None, to go on.
Fault = Callable[["Handler"], None]


class Done(Exception):
    """A fault has answered, or hung up."""


class Server:
    """An archive that is served."""

    def __init__(self, archive: Archive, token: str | None, limit: int | None, at: Path | None) -> None:
        self.archive = archive
        self.token = token
        self.limit = limit
        self.asked: list[tuple[str, str, dict[str, str]]] = []  # method, path and headers of each request
        self.received = 0  # bytes of bodies that were read
        self.released = threading.Event()
        self._faults: dict[str, list[Fault]] = {}
        self._http = _Tcp(("127.0.0.1", 0), Handler) if at is None else _Unix(str(at), Handler)
        self._http.owner = self
        self.url = f"http+unix://{at}" if at is not None else f"http://127.0.0.1:{self._http.server_address[1]}/objects"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def before(self, method: str, *faults: Fault) -> None:
        """Let the next requests of a kind meet these, one each."""
        self._faults.setdefault(method, []).extend(faults)

    def next_fault(self, method: str) -> Fault | None:
        """What the next request meets."""
        waiting = self._faults.get(method)
        return waiting.pop(0) if waiting else None

    def methods(self) -> list[str]:
        """What was asked, in order."""
        return [method for method, _, _ in self.asked]

    def close(self) -> None:
        """Serve no more."""
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Tcp(ThreadingHTTPServer):
    owner: Server
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is a part of some tests."""


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    owner: Server
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """See above."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: _Tcp | _Unix

    def do_HEAD(self) -> None:
        self._answer(self._look)

    def do_GET(self) -> None:
        self._answer(self._look if self.path.startswith("/objects/") else self._page)

    def do_PUT(self) -> None:
        self._answer(self._receive)

    def do_POST(self) -> None:
        self._answer(self._note)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "client"

    @property
    def owner(self) -> Server:
        """What is served."""
        return self.server.owner

    def _answer(self, work: Callable[[], Answer]) -> None:
        owner = self.owner
        owner.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.read = 0
        try:
            fault = owner.next_fault(self.command)
            if fault is not None:
                fault(self)
            if owner.token is not None and self.headers.get("Authorization") != f"Bearer {owner.token}":
                raise Refused(serving.HTTPStatus.UNAUTHORIZED, "a token is needed")
            answer = work()
        except Done:
            return
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        except Exception as error:  # whatever it is, the client is told
            answer = serving.refusal(error)
        self.send(answer)

    def send(self, answer: Answer) -> None:
        """Send an answer. A body that was not read ends the connection."""
        body = json.dumps(answer.document).encode() if answer.document is not None else b""
        if self.read < int(self.headers.get("Content-Length") or 0):
            self.close_connection = True
        self.send_response(answer.status)
        for name, text in answer.headers.items():
            self.send_header(name, text)
        if answer.document is not None:
            self.send_header("Content-Type", "application/json")
        if "Content-Length" not in answer.headers and answer.status != serving.HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body)
        for piece in answer.body or ():
            self.wfile.write(piece)

    def hang_up(self) -> None:
        """End the connection."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        raise Done

    def body(self, most: int | None = None) -> Iterator[bytes]:
        """What the client sends. Raises ConnectionError if it stops before the end."""
        left = int(self.headers.get("Content-Length") or 0)
        left = left if most is None else min(most, left)
        while left:
            data = self.rfile.read1(min(left, 1 << 20))
            if not data:
                raise ConnectionResetError
            left -= len(data)
            self.read += len(data)
            self.owner.received += len(data)
            yield data

    def _digits(self, under: str) -> str:
        return serving.digits_in(urlsplit(self.path).path.removeprefix(f"/{under}/"))

    def _look(self) -> Answer:
        headers = {name.lower(): text for name, text in self.headers.items()}
        return serving.look(self.owner.archive, self._digits("objects"), headers)

    def _receive(self) -> Answer:
        digits, length = self._digits("objects"), self.headers.get("Content-Length")
        with serving.Upload(self.owner.archive, digits, length, self.owner.limit) as upload:
            for data in self.body():
                upload.write(data)
            return upload.finish()

    def _page(self) -> Answer:
        url = urlsplit(self.path)
        if url.path != "/index":
            raise Refused(serving.HTTPStatus.NOT_FOUND, "there is nothing here")
        asked = {name: texts[0] for name, texts in parse_qs(url.query).items()}
        limit = int(asked.get("limit", serving.MOST_ENTRIES))
        document = serving.page(self.owner.archive, asked.get("after", ""), limit, asked.get("md5", ""))
        return Answer(serving.HTTPStatus.OK, {}, document)

    def _note(self) -> Answer:
        digits = self._digits("index")
        return serving.note(self.owner.archive, digits, json.loads(b"".join(self.body())))


def status(number: int, body: bytes = b"", **headers: str) -> Fault:
    """A fault: this answer, before the request's body is read. Names of headers have ``_`` for ``-``."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.send_response(number)
        for name, text in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)
        raise Done

    return answer


def garbage(text: bytes) -> Fault:
    """A fault: these bytes instead of an answer."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(text)
        handler.hang_up()

    return answer


def gone(after: int = 0) -> Fault:
    """A fault: the connection ends after so many bytes of the request's body."""

    def leave(handler: Handler) -> None:
        for _ in handler.body(after):
            pass
        handler.hang_up()

    return leave


def silent(handler: Handler) -> None:
    """A fault: nothing comes until the server is closed."""
    handler.owner.released.wait()
    handler.hang_up()


@contextlib.contextmanager
def serve(
    archive: Archive, *, token: str | None = None, limit: int | None = None, socket: Path | None = None
) -> Iterator[Server]:
    """A Server, for as long as the context lasts. `limit`: bytes of one upload."""
    server = Server(archive, token, limit, socket)
    try:
        with httpserver.past_proxies():
            yield server
    finally:
        server.close()
