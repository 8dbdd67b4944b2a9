"""Bounds of a request's body, in bytes and in time, whoever sends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException  # which FastAPI lets through from the middle of a body

from sccache_dtool.serve.access import Scope
from sccache_dtool.serve.answers import Refused, refusal

#: The path below which bodies may have any size: they are not kept in memory. Their route bounds them.
UPLOADS = "/objects/"


#: Bytes of an upload that is refused, and seconds, in which the rest of a request is read before its answer is sent.
_SHORT, _REST = 64 << 10, 1.0

_CLOSE = {"Connection": "close"}


class Bounds(NamedTuple):
    """What a client may take up. Sizes in bytes, times in seconds."""

    header: int = 64 << 10
    body: int = 4 << 20  # of a request that is not an upload
    patience: float = 30.0  # for the header; for such a body; between two pieces of an upload, or of an answer
    connections: int = 1000


class Limits:
    """Middleware: refuses what is too large or too slow."""

    def __init__(self, app: Callable[..., Any], bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bounds, loop = self._bounds, asyncio.get_running_loop()
        is_upload = scope["path"].startswith(UPLOADS) and scope["method"] == "PUT"
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # A proxy may go by the other one, and take the rest of this request for the next one.
            await refusal(Refused(400, "both Content-Length and Transfer-Encoding", "send one of them", _CLOSE))(
                scope, receive, send
            )
            return
        if not is_upload and (not announced.isdigit() or int(announced) > bounds.body):
            await refusal(_too_large(bounds.body))(scope, receive, send)
            return
        is_short = b"expect" not in headers and (not is_upload or (announced.isdigit() and int(announced) <= _SHORT))
        came, deadline = 0, loop.time() + bounds.patience
        pending = announced not in (b"0", b"") or b"transfer-encoding" in headers

        async def bounded() -> Any:
            nonlocal came, pending
            if not pending:
                return await receive()  # nothing more comes but the end of the connection
            try:
                async with asyncio.timeout_at(loop.time() + bounds.patience if is_upload else deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the request took too long to arrive") from None
            came += len(message.get("body", b""))
            if not is_upload and came > bounds.body:
                raise HTTPException(413, _too_large(bounds.body).message)
            pending = bool(message.get("more_body", False))
            return message

        async def closing(message: Any) -> None:
            if message["type"] == "http.response.start" and pending and is_short:
                # A client that is still sending when the connection is closed does not see the answer.
                with contextlib.suppress(HTTPException, TimeoutError):
                    async with asyncio.timeout(min(_REST, bounds.patience)):
                        while pending:
                            await bounded()
            if message["type"] == "http.response.start" and pending:
                # What is still to come would have to be read to the end before another request.
                kept = [pair for pair in message["headers"] if pair[0].lower() != b"connection"]
                message = {**message, "headers": [*kept, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, bounded, closing)


def _too_large(most: int) -> Refused:
    return Refused(413, f"the request has more than {most} bytes", "send less at a time")
