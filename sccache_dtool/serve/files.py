"""Files as answers: whole or in part, sent by the kernel where there is a socket.

A file is opened before the answer begins, and its descriptor is read from then on. No link is followed. What is read
from a disk, which may be a server's that does not answer, is read in a thread, and never by the loop that serves all.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import io
import os
import re
import select
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from email.utils import formatdate
from typing import Any, NamedTuple
from urllib.parse import quote

import h11
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sccache_dtool.errors import UsageError
from sccache_dtool.protocol.store import Store
from sccache_dtool.serve.access import Scope
from sccache_dtool.serve.answers import Refused
from sccache_dtool.sets import locks

#: Where the protocol notes itself, so that a file can be sent without copies.
PROTOCOL = "sc_dtool_protocol"

#: Bytes that one call sends at most.
_PIECE = 1 << 20

#: Milliseconds for which a thread waits for a client that reads fast, instead of a turn of the loop.
_PAUSE = 2

#: Bytes that the kernel may hold for a client; it has a limit of its own.
_IN_FLIGHT = 1 << 20

#: Headers of everything that users have put into the cache: a browser must not take it for a page of this server.
UNTRUSTED = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Accept-Ranges": "bytes",
}


class Content(NamedTuple):
    """An open file."""

    fd: int
    size: int
    mtime: float
    close: Callable[[], None]


def open_file(store: Store, path: str, shown: str) -> Content:
    """Open what is at a path. Raises UsageError for what is not a file."""
    fd = store.fs.open(path)
    try:
        status = store.fs.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"{shown!r} is not a file", hint="give a file in it with `path`, or read all of it with `tar`"
            )
        return Content(fd, status.st_size, status.st_mtime, functools.partial(store.fs.close, fd))
    except BaseException:
        store.fs.close(fd)
        raise


def answer(request: Request, content: Content, name: str, etag: str) -> Response:
    """The answer to a GET or HEAD of a file; `etag` is different for other content. The file is closed at its end."""
    try:
        tag = f'"{etag}"'
        headers = {**UNTRUSTED, "ETag": tag, "Last-Modified": formatdate(content.mtime, usegmt=True)}
        if _matches(request.headers.get("if-none-match"), tag):
            content.close()
            return Response(status_code=304, headers=headers)
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name.encode(errors='surrogateescape'))}"
        first, end, code = 0, content.size, 200
        wanted = request.headers.get("range")
        if wanted is not None and request.headers.get("if-range", tag) == tag:
            span = _span(wanted, content.size)
            if span is not None:
                (first, end), code = span, 206
                headers["Content-Range"] = f"bytes {first}-{end - 1}/{content.size}"
        return _FileResponse(content, first, end, code, headers)
    except BaseException:
        content.close()
        raise


def _matches(header: str | None, tag: str) -> bool:
    return header is not None and (
        header.strip() == "*" or tag in [one.strip().removeprefix("W/") for one in header.split(",")]
    )


def _span(text: str, size: int) -> tuple[int, int] | None:
    """The first byte, and that behind the last; None for what means the whole file. Raises Refused."""
    match = re.fullmatch(r"\s*bytes\s*=\s*([0-9]{0,18}-[0-9]{0,18})\s*", text)
    if match is None:
        return None  # another unit, or several ranges: the whole file is a right answer
    try:
        first, last = locks.parse_range(match[1])
    except UsageError:
        return None
    if first is None:
        first, last = max(0, size - (last or 0)), None
    if first >= size:
        what = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        raise Refused(416, f"the range begins after the end: the file has {size} bytes", None, what)
    return first, size if last is None else min(last + 1, size)


class _FileResponse(Response):
    """Sends a part of an open file."""

    def __init__(self, content: Content, first: int, end: int, code: int, headers: dict[str, str]) -> None:
        super().__init__(None, code, {**headers, "Content-Length": str(end - first)}, "application/octet-stream")
        self._content = content
        self._first, self._end = first, end

    def init_headers(self, headers: Any = None) -> None:
        """As in Starlette, which would add the length of an empty body."""
        self.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in {**(headers or {}), "Content-Type": "application/octet-stream"}.items()
        ]

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Send it."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            protocol = scope.get("state", {}).get(PROTOCOL)
            if scope["method"] == "HEAD":
                pass
            elif protocol is not None and protocol.transport.get_extra_info("sslcontext") is None:
                await _send_by_kernel(protocol, self._content.fd, self._first, self._end)
            else:
                await self._send_pieces(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._content.close()

    async def _send_pieces(self, send: Any) -> None:
        at = self._first
        while at < self._end:
            data = await run_in_threadpool(os.pread, self._content.fd, min(_PIECE, self._end - at), at)
            if not data:
                raise OSError(errno.EIO, "the file has become shorter")
            at += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})


async def _send_by_kernel(protocol: Any, fd: int, first: int, end: int) -> None:
    """Send a part of a file from the page cache to the socket. Nobody else writes there before the answer is over.

    The call is made in a thread, because it may wait for the disk; it never waits for the client.
    """
    transport = protocol.transport
    while transport.get_write_buffer_size():  # the headers, if the client has not read the answer before this one
        if transport.is_closing():
            return
        await asyncio.sleep(0.01)
    out = transport.get_extra_info("socket").dup()
    try:
        out.setblocking(False)
        out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _IN_FLIGHT)
        at = first
        while at < end:
            if protocol.cycle.disconnected or transport.is_closing():
                return
            try:
                sent = await run_in_threadpool(_sendfile, out, fd, at, min(_PIECE * 8, end - at))
            except (BrokenPipeError, ConnectionResetError):
                return
            if sent == 0:
                await _until_writable(out, protocol)
            at += max(sent, 0)
            if sent < 0:  # the file has become shorter: the client must notice
                transport.abort()
                return
        if end > first and protocol.conn.our_state is h11.SEND_BODY:  # otherwise the client has hung up
            protocol.conn.send_with_data_passthrough(h11.Data(data=_Sent(end - first)))
    finally:
        out.close()


class _Sent(bytes):
    """Stands for bytes that the kernel has sent: h11 only counts them."""

    def __new__(cls, length: int) -> _Sent:
        made = super().__new__(cls)
        made._length = length  # type: ignore[attr-defined]
        return made

    def __len__(self) -> int:
        return self._length  # type: ignore[attr-defined,no-any-return]


def _sendfile(out: socket.socket, fd: int, at: int, count: int) -> int:
    """Bytes that were sent: as many as the client takes without a pause; -1 at the end of the file."""
    total, poll = 0, select.poll()
    poll.register(out, select.POLLOUT)
    while total < count:
        try:
            sent = os.sendfile(out.fileno(), fd, at + total, count - total)
        except BlockingIOError:
            if not poll.poll(_PAUSE):
                break
        else:
            if sent == 0:
                return -1
            total += sent
    return total


async def _until_writable(out: socket.socket, protocol: Any) -> None:
    """Wait for the client to read; a client that reads nothing for too long loses its connection."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(out.fileno(), ready.set)
    try:
        async with asyncio.timeout(protocol.patience):
            await ready.wait()
    except TimeoutError:
        protocol.transport.abort()
    finally:
        loop.remove_writer(out.fileno())


def tar(store: Store, payload: str, inner: str, name: str) -> Response:
    """All that is at a path in a payload, as a tar archive made while it is sent."""
    store.fs.lstat("/".join((payload, *inner.strip("/").split("/"))) if inner.strip("/") else payload)
    failed: list[BaseException] = []

    def write(sender: int) -> None:
        try:
            with io.FileIO(sender, "w") as out:
                locks.write_tar(store, payload, inner, io.BufferedWriter(out, _PIECE))
        except BaseException as error:  # BrokenPipeError: nobody reads it any more
            failed.append(error)

    async def pieces() -> AsyncIterator[bytes]:
        receiver, sender = os.pipe()  # not before: nobody would close them if the client is gone already
        with io.FileIO(receiver, "r") as reader:
            threading.Thread(target=write, args=(sender,), name="sc-dtool tar", daemon=True).start()
            while data := await run_in_threadpool(reader.read, _PIECE):
                yield data
        if failed:
            raise failed[0]  # the connection is closed without the end of the body

    disposition = f"attachment; filename*=UTF-8''{quote(name.encode(errors='surrogateescape'))}.tar"
    headers = {**UNTRUSTED, "Content-Disposition": disposition}
    headers.pop("Accept-Ranges")
    return StreamingResponse(pieces(), headers=headers, media_type="application/x-tar")


def chunks(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What a blocking iterator gives, each piece fetched in a thread."""

    async def each() -> AsyncIterator[bytes]:
        while (piece := await run_in_threadpool(next, pieces, None)) is not None:
            yield piece

    return each()
