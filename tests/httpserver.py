"""A web server on the loopback interface for tests: counts what is asked of it, and misbehaves on command.

    with httpserver.serve() as server:
        url = server.page("/ref.tar", body)              # or: status=404, short=10, stall_after=10, gzip=True …
        url = server.pages("/x", Page(body, short=9), Page(body))     # the first GET, the second and all others
        ...
        assert server.gets["/ref.tar"] == 1

Answers that no proper server gives are sent by `raw`, byte by byte.

Nothing in it waits for a time; a page that stalls or is held goes on when `server.release()` is called, or when the
server is closed.
"""

from __future__ import annotations

import base64
import contextlib
import gzip as gzip_module
import os
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from unittest import mock


class Page(NamedTuple):
    """What a GET of one path gets."""

    body: bytes = b""
    status: int = 200
    reason: str | None = None
    headers: Mapping[str, str] = {}
    announced: int | None = None  # Content-Length to claim, if not the true one
    unannounced: bool = False  # no Content-Length: the end of the connection is the end of the body
    short: int | None = None  # close the connection after so many bytes
    stall_after: int | None = None  # send so many bytes, then nothing until released
    drip: int | None = None  # send the body in pieces of so many bytes, one for each `server.let_drop()`
    hold: bool = False  # answer nothing at all until released
    gzip: bool = False  # compress the body on the way, asked or not
    auth: tuple[str, str] | None = None  # user and password, without which the answer is 401
    etag: str | None = None  # with one, ranges are served; If-Range is compared with it
    conditional: bool = True  # answer 304 to who has this version: by its ETag, or by its Last-Modified
    ranges: bool = True  # serve ranges where a validator allows it
    part: bytes | None = None  # what is sent instead of the range asked for, as if it were it
    reset: bool = False  # reset the connection instead of closing it at the end of what is sent


class Server:
    """Pages, and what was asked for."""

    def __init__(self) -> None:
        self.gets: Counter[str] = Counter()
        self.seen: list[tuple[str, dict[str, str]]] = []  # path and headers of each GET, in order
        self.heads: Counter[str] = Counter()
        self._pages: dict[str, list[Page]] = {}
        self._released = threading.Event()
        self._drops = threading.Semaphore(0)
        self._asked = threading.Condition()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def page(self, path: str, body: bytes = b"", **how: Any) -> str:
        """Serve `body` at `path`, in the way that the fields of Page say; its URL."""
        return self.pages(path, Page(body, **how))

    def pages(self, path: str, *pages: Page) -> str:
        """Serve one page after the other at `path`, and the last for ever; its URL."""
        self._pages[path] = list(pages)
        return self.url(path)

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each GET of `path`, in order."""
        return [headers.get("Range") for asked, headers in self.seen if asked == path]

    def redirect(self, path: str, target: str, status: int = 302) -> str:
        """Send who asks for `path` on to the URL or path `target`; the URL of `path`."""
        return self.page(path, status=status, headers={"Location": target})

    def url(self, path: str, userinfo: str = "") -> str:
        """The URL of a path, with `userinfo` (``"user:password"``) in it if given."""
        at = f"{userinfo}@" if userinfo else ""
        return f"http://{at}127.0.0.1:{self._http.server_port}{path}"

    def release(self) -> None:
        """Let all pages that stall or are held go on, now and in future."""
        self._released.set()

    def let_drop(self, pieces: int = 1) -> None:
        """Let pages that drip send so many pieces more."""
        self._drops.release(pieces)

    def wait_for_gets(self, path: str, number: int = 1, timeout: float = 30) -> None:
        """Return once `path` was asked for `number` times. Raises TimeoutError."""
        with self._asked:
            if not self._asked.wait_for(lambda: self.gets[path] >= number, timeout):
                raise TimeoutError(f"{path} was asked for {self.gets[path]} times, not {number}")

    def close(self) -> None:
        """End the server and all its connections."""
        self._released.set()
        self._drops.release(1000)
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        head = handler.command == "HEAD"
        with self._asked:
            if head:
                self.heads[handler.path] += 1
            else:
                self.gets[handler.path] += 1
                self.seen.append((handler.path, dict(handler.headers)))
            pages = self._pages.get(handler.path, [Page(b"<html>no such page</html>", 404)])
            page = pages[0] if head or len(pages) == 1 else pages.pop(0)
            self._asked.notify_all()
        if page.auth is not None and handler.headers.get("Authorization") != _basic(*page.auth):
            page = Page(b"<html>who are you?</html>", 401, headers={"WWW-Authenticate": 'Basic realm="test"'})
        if page.hold:
            self._released.wait()
        if page.conditional and _has_it(handler, page):
            page = Page(status=304, headers=page.headers, etag=page.etag)
        body = gzip_module.compress(page.body) if page.gzip else page.body
        span = _span(handler, page, len(body))
        if span is None:
            handler.send_response(page.status, page.reason)
        elif span.start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            body = b""
        else:
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {span.start}-{len(body) - 1}/{len(body)}")
            body = body[span] if page.part is None else page.part
        if page.etag is not None:
            handler.send_header("ETag", page.etag)
        for name, value in page.headers.items():
            handler.send_header(name, value)
        if page.gzip:
            handler.send_header("Content-Encoding", "gzip")
        if not page.unannounced:
            handler.send_header("Content-Length", str(len(body) if page.announced is None else page.announced))
        handler.end_headers()
        if not head:
            self._send(handler, page, body)
        handler.close_connection = True
        if page.reset:
            linger_not = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: the kernel sends RST instead of FIN
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
            handler.wfile.flush()
            handler.connection.close()

    def _send(self, handler: BaseHTTPRequestHandler, page: Page, body: bytes) -> None:
        if page.short is not None:
            body = body[: page.short]
        if page.stall_after is not None:
            handler.wfile.write(body[: page.stall_after])
            self._released.wait()
            body = body[page.stall_after :]
        if page.drip is None:
            handler.wfile.write(body)
            return
        for begin in range(0, len(body), page.drip):
            self._drops.acquire()
            handler.wfile.write(body[begin : begin + page.drip])


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: Server

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is a part of many tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http

    def do_GET(self) -> None:
        self.server.owner.answer(self)

    def do_HEAD(self) -> None:
        self.server.owner.answer(self)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A Server, for as long as the context lasts; this process and its children reach it past any proxy."""
    server = Server()
    try:
        with past_proxies():
            yield server
    finally:
        server.close()


class Raw:
    """Sends the bytes that it is given, one answer for each connection and the last for ever, and closes."""

    def __init__(self, answers: tuple[bytes, ...], tls: ssl.SSLContext | None, host: str) -> None:
        self.asked: list[str] = []  # the head of each request
        self.connections = 0
        self._answers = list(answers)
        self._tls = tls
        self._host = host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def url(self, path: str = "/x") -> str:
        """The URL of a path."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http{'s' if self._tls else ''}://{host}:{self._listener.getsockname()[1]}{path}"

    def close(self) -> None:
        """Serve no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
            threading.Thread(target=self._serve, args=(connection, answer), daemon=True).start()

    def _serve(self, connection: socket.socket, answer: bytes) -> None:
        with contextlib.suppress(OSError), connection:
            self._answer(connection, answer)

    def _answer(self, connection: socket.socket, answer: bytes) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            head = b""
            while not head.endswith(b"\r\n\r\n") and (more := connection.recv(1)):
                head += more
            self.asked.append(head.decode("latin-1"))
            connection.sendall(answer)
            if not isinstance(connection, ssl.SSLSocket):  # which closes without a word: what is cut looks like that
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass  # until the client hangs up: what was sent is not lost in a reset


@contextlib.contextmanager
def raw(*answers: bytes, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Raw]:
    """A Raw, for as long as the context lasts."""
    server = Raw(answers, tls, host)
    try:
        with past_proxies():
            yield server
    finally:
        server.close()


@contextlib.contextmanager
def past_proxies() -> Iterator[None]:
    """Let this process and its children reach servers on the loopback interface themselves."""
    with mock.patch.dict(os.environ, {"no_proxy": "127.0.0.1,::1", "NO_PROXY": "127.0.0.1,::1"}):
        yield


def _span(handler: BaseHTTPRequestHandler, page: Page, size: int) -> slice | None:
    """The part of the body that is to be sent; None for the whole."""
    asked = handler.headers.get("Range", "")
    validator = page.etag or page.headers.get("Last-Modified")
    if not asked.startswith("bytes=") or not page.ranges or page.status != 200:
        return None
    if "If-Range" in handler.headers and handler.headers["If-Range"] != validator:
        return None
    return slice(int(asked.removeprefix("bytes=").rstrip("-")), size)


def _has_it(handler: BaseHTTPRequestHandler, page: Page) -> bool:
    """Whether a client says that it has this version."""
    if page.etag is not None and "If-None-Match" in handler.headers:
        return handler.headers["If-None-Match"] == page.etag
    modified = page.headers.get("Last-Modified")
    return modified is not None and handler.headers.get("If-Modified-Since") == modified


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
