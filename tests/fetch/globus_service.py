"""Globus on the loopback interface: its transfer service, and its tokens. Collections are directories.

    with globus_service.serve({SOURCE: directory, CACHE: root}, monkeypatch) as globus:
        globus.mode = "hold"                        # what becomes of a task that is submitted from now on
        ...
        globus.finish()                             # of all that are held

The SDK finds it through its own variables of the environment, in this process and in its children.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

import httpserver

SOURCE, CACHE, CLIENT = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "abc")

_SCOPE = "urn:globus:auth:scope:transfer.api.globus.org"

#: What a collection calls the cache's directory.
BASE = "/lab/cache"


class Globus:
    """The service. `mode` is ``"at once"``, ``"hold"``, ``"fail"``, ``"pause"`` or ``"inactive"``."""

    def __init__(self, collections: Mapping[str, Path]) -> None:
        self.mode = "at once"
        self.lose_replies = 0  # of so many submissions that are accepted, the reply is lost
        self.busy = 0  # so many requests are answered with 503
        self.busy_after = ""  # all requests after one with this text in it are answered so
        self.lost_bytes = 0  # Globus writes so many bytes less than it says
        self.who = "ada"
        self.tasks: dict[str, dict[str, Any]] = {}  # by submission id
        self.asked: list[str] = []
        self.changed = threading.Condition()
        self.url = ""
        self.scopes: list[str] = []
        self._key: Any = None
        self._collections = collections

    def finish(self) -> None:
        """Complete every task that is held."""
        with self.changed:
            for task in self.tasks.values():
                if task["status"] in ("ACTIVE", "INACTIVE"):
                    self._succeed(task)
            self.mode = "at once"

    def wait_for(self, text: str, number: int = 1, patience: float = 60.0) -> None:
        """Return once `number` requests with `text` in them were answered."""
        with self.changed:
            if not self.changed.wait_for(lambda: sum(text in one for one in self.asked) >= number, patience):
                raise TimeoutError(f"{text}: {self.asked}")

    def answer(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> tuple[int, Any]:
        """Status and document; status 0: the reply is lost."""
        parts = path.strip("/").split("/")[1:]
        if path.startswith(("/v2/oauth2/token", "/.well-known", "/jwk")):
            return 200, self._authorize(path, body)
        if self.busy:
            self.busy -= 1
            return 503, {"code": "ServiceUnavailable", "message": "busy"}
        if parts == ["submission_id"]:
            return 200, {"value": str(uuid.uuid4())}
        if parts == ["transfer"]:
            return self._submit(body)
        if parts[0] == "operation":
            return self._stat(parts[2], query["path"][0])
        task = next((one for one in self.tasks.values() if one["task_id"] == parts[1]), None)
        if task is None or task["owner"] != self.who:
            return 404, {"code": "ClientError.NotFound", "message": "there is no such task"}
        if parts[2:] == ["cancel"]:
            task["status"], task["fatal_error"] = "FAILED", {"code": "CANCELED", "description": "canceled by the user"}
        elif method == "PUT":
            task.update(body)
        return 200, {key: value for key, value in task.items() if key != "document"}

    def _authorize(self, path: str, form: Mapping[str, str]) -> dict[str, Any]:
        """A token for the transfer service; for a user who has logged in, with the proof of who that is."""
        if path.startswith("/.well-known"):
            return {"jwks_uri": f"{self.url}jwk.json", "id_token_signing_alg_values_supported": ["RS512"]}
        import jwt
        from cryptography.hazmat.primitives.asymmetric import rsa

        self._key = self._key or rsa.generate_private_key(65537, 2048)
        if path.startswith("/jwk"):
            return {"keys": [jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)]}
        if path.endswith("/revoke"):
            return {"active": False}
        self.scopes.append(form.get("scope", ""))
        common = {"access_token": "token", "expires_in": 172800, "token_type": "Bearer"}
        transfer = {"scope": f"{_SCOPE}:all", "resource_server": "transfer.api.globus.org", **common}
        if form["grant_type"] == "client_credentials":
            return {**transfer, "other_tokens": []}
        transfer["refresh_token"] = "refresh"
        identity = {
            "sub": str(uuid.uuid4()),
            "aud": CLIENT,
            "iss": self.url,
            "exp": time.time() + 600,
            "iat": time.time(),
        }
        openid = {"scope": "openid", "resource_server": "auth.globus.org", "refresh_token": "refresh", **common}
        signed = jwt.encode(identity, self._key, algorithm="RS512")
        return {**transfer, "other_tokens": [openid], "id_token": signed}

    def _submit(self, document: dict[str, Any]) -> tuple[int, Any]:
        known = self.tasks.get(document["submission_id"])
        task = known or {
            "task_id": str(uuid.uuid4()),
            "status": "INACTIVE" if self.mode == "inactive" else "ACTIVE",
            "is_paused": self.mode == "pause",
            "bytes_transferred": 3,
            "fatal_error": None,
            "deadline": document.get("deadline"),
            "owner": self.who,
            "label": document.get("label"),
            "document": document,
        }
        self.tasks[document["submission_id"]] = task
        if known is None and self.mode == "at once":
            self._succeed(task)
        elif known is None and self.mode == "fail":
            task["status"] = "FAILED"
            task["fatal_error"] = {"code": "PERMISSION_DENIED", "description": "you may not read /x"}
        if self.lose_replies:
            self.lose_replies -= 1
            return 0, None
        return 202, {"code": "Duplicate" if known else "Accepted", "task_id": task["task_id"]}

    def _succeed(self, task: dict[str, Any]) -> None:
        document = task["document"]
        (item,) = document["DATA"]
        source = self._collections[document["source_endpoint"]] / item["source_path"].lstrip("/")
        target = Path(item["destination_path"])
        target = self._collections[document["destination_endpoint"]] / target.relative_to(BASE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if self.lost_bytes:
            target.write_bytes(source.read_bytes()[: -self.lost_bytes])
            self.lost_bytes = 0
        task.update(status="SUCCEEDED", is_paused=False, bytes_transferred=source.stat().st_size)

    def _stat(self, collection: str, path: str) -> tuple[int, Any]:
        there = self._collections[collection] / path.lstrip("/")
        if not there.exists():
            return 404, {"code": "NotFound", "message": "Path not found"}
        if there.name == "secret":
            more = {"required_scopes": ["urn:x"], "code": "ConsentRequired", "message": "consent is required"}
            return 403, more
        status = there.stat()
        kind = "dir" if there.is_dir() else "file"
        return 200, {"type": kind, "size": status.st_size, "last_modified": str(status.st_mtime_ns)}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    globus: Globus

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed is a part of many tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http

    def _answer(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url, globus = urlsplit(self.path), self.server.globus
        is_json = "json" in self.headers.get("Content-Type", "")
        body = json.loads(data or b"null") if is_json else dict(parse_qsl(data.decode()))
        with globus.changed:
            status, document = globus.answer(self.command, url.path, parse_qs(url.query), body)
            globus.asked.append(f"{self.command} {url.path}")
            if globus.busy_after and globus.busy_after in globus.asked[-1]:
                globus.busy = 1000
            globus.changed.notify_all()
        self.close_connection = True
        if status:
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve(collections: Mapping[str, Path], environment: pytest.MonkeyPatch) -> Iterator[Globus]:
    """The service, for as long as the context lasts."""
    server = _Http(("127.0.0.1", 0), _Handler)
    server.globus = Globus(collections)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.globus.url = f"http://127.0.0.1:{server.server_port}/"
    for name in ("TRANSFER", "AUTH"):
        environment.setenv(f"GLOBUS_SDK_SERVICE_URL_{name}", server.globus.url)
    environment.setenv("GLOBUS_CLIENT_ID", CLIENT)
    environment.setenv("GLOBUS_CLIENT_SECRET", "hush")
    try:
        with httpserver.past_proxies():
            yield server.globus
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
