"""Clients of the service: one that calls the application in this process, and one that speaks through a socket."""

from __future__ import annotations

import asyncio
import http.client
import json as json_module
import os
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from sccache_dtool.serve.access import UID
from sccache_dtool.serve.app import App
from waiting import PATIENCE

#: What paths that do not begin with "//" are below.
DM = "/api/v1/dm"


class Reply(NamedTuple):
    """An answer."""

    code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The document in it."""
        return json_module.loads(self.body)


class Client:
    """Asks the application as a user of a Unix socket, or, with `uid` None, over TCP."""

    def __init__(self, app: App, uid: int | None = os.getuid(), **headers: str) -> None:
        self._app = app
        self._uid = uid
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def ask(
        self,
        method: str,
        path: str,
        /,
        *,
        json: Any = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Reply:
        """One request. A path without a second slash is below that of the data manager."""
        path = path.removeprefix("/") if path.startswith("//") else f"{DM}{path}"
        given = {"host": "localhost", **self._headers, **(headers or {})}
        if json is not None:
            body, given["content-type"] = json_module.dumps(json).encode(), "application/json"
        if body:
            given["content-length"] = str(len(body))
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path).encode(),
            "root_path": "",
            "query_string": urlencode({name: value for name, value in query.items() if value is not None}).encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
            "client": None,
            "server": None,
            "state": {} if self._uid is None else {UID: self._uid},
        }
        return asyncio.run(self._call(scope, body))

    async def _call(self, scope: dict[str, Any], body: bytes) -> Reply:
        requests = iter([{"type": "http.request", "body": body, "more_body": False}])
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return next(requests, None) or await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        start, *rest = sent
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
        return Reply(start["status"], headers, b"".join(one.get("body", b"") for one in rest))

    def get(self, path: str, /, **more: Any) -> Reply:
        """A GET."""
        return self.ask("GET", path, **more)

    def post(self, path: str, /, **more: Any) -> Reply:
        """A POST."""
        return self.ask("POST", path, **more)

    def put(self, path: str, /, **more: Any) -> Reply:
        """A PUT."""
        return self.ask("PUT", path, **more)

    def delete(self, path: str, /, **more: Any) -> Reply:
        """A DELETE."""
        return self.ask("DELETE", path, **more)


class Connection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


class Socket:
    """A server that listens on a Unix socket."""

    def __init__(self, path: str) -> None:
        self.path = path

    def raw(self, data: bytes = b"") -> socket.socket:
        """A connection on which these bytes were sent."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(PATIENCE)
        made.connect(self.path)
        made.sendall(data)
        return made

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """One request on a connection of its own."""
        connection = Connection(self.path)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())
        finally:
            connection.close()


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    try:
        while data := connection.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass
    return found
