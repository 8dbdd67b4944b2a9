"""Datasets and their servers, for tests."""

from __future__ import annotations

import copy
import functools
import hashlib
import http.server
import itertools
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sccache_dtool.fetch.dtool_source import redirected

_numbers = itertools.count()

#: What a program of `Process` may say without importing.
PRELUDE = """
import os, sys, json, hashlib
import dtoolcore
def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
def say(*words):
    print(*words, flush=True)
"""

#: Become another user. Python itself may lie where that user reads nothing, so that all is loaded before.
AS_OTHERS = """
import tempfile
from sccache_dtool.dtool import plugin
def become(uid, gid):
    with tempfile.TemporaryDirectory() as empty:
        shared, os.environ["DTOOL_CACHE_DIRECTORY"] = os.environ["DTOOL_CACHE_DIRECTORY"], empty
        dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
        for identifier in dataset.identifiers:
            dataset.item_content_abspath(identifier)
        for cache in plugin._state.caches.values():
            cache.close()
        plugin._forget()
    os.environ["DTOOL_CACHE_DIRECTORY"] = shared
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
"""

#: What is in the datasets of `conftest.py`.
FILES = {"a/first.txt": b"one\n", "second.csv": b"two, three\n", "bare": b"", "ünïcödé dir/täg.txt": b"four\n"}


def identifier(relpath: str) -> str:
    return hashlib.sha1(relpath.encode()).hexdigest()


def make_dataset(base_uri: str, files: Mapping[str, bytes], name: str = "study") -> Any:
    """A frozen dataset; returns it opened."""
    import dtoolcore

    with dtoolcore.DataSetCreator(name, base_uri) as creator:
        for relpath, content in files.items():
            with open(creator.prepare_staging_abspath_promise(relpath), "wb") as file:
                file.write(content)
        uri = creator.uri
    return dtoolcore.DataSet.from_uri(uri)


def open_dataset(uri: str) -> Any:
    import dtoolcore

    return dtoolcore.DataSet.from_uri(uri)


def at_home_in(dataset: Any, cache_dir: Path) -> Any:
    """An open dataset, as if it had been opened while this was dtool's cache directory."""
    twin = copy.copy(dataset)
    twin._storage_broker = redirected(dataset._storage_broker, str(cache_dir))
    return twin


def new_bucket(moto: Any, monkeypatch: Any) -> str:
    import boto3

    host, port = moto.get_host_and_port()
    bucket = f"bkt{next(_numbers)}x{os.getpid()}"
    for name, value in {
        f"DTOOL_S3_ENDPOINT_{bucket}": f"http://{host}:{port}",
        f"DTOOL_S3_ACCESS_KEY_ID_{bucket}": "testing",
        f"DTOOL_S3_SECRET_ACCESS_KEY_{bucket}": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def take_server_away(dataset: Any, monkeypatch: Any) -> None:
    """Let the S3 server of an open dataset be down."""
    broker = dataset._storage_broker
    for client in (broker.s3client, broker.s3resource.meta.client):
        monkeypatch.setattr(client, "_make_api_call", _refuse, raising=False)


def _refuse(*arguments: object, **more: object) -> None:
    raise ConnectionRefusedError("the server is down")


class Web:
    """dtool-http's server, which counts what it is asked for, and can be told to misbehave.

    `before_data` is called with the number of the request for an item's content, before its second half is sent;
    what it returns is sent in place of that, None for what belongs there, an empty text for the connection's end.
    """

    def __init__(self, directory: Path) -> None:
        from dtool_http.server import DtoolHTTPRequestHandler

        web = self

        class Handler(DtoolHTTPRequestHandler):  # type: ignore[misc]
            def do_GET(self) -> None:  # noqa: N802  (the name that http.server calls)
                if "/data/" in self.path:
                    web.send(self)
                else:
                    super().do_GET()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        self.data_requests = 0
        self.before_data: Callable[[int], bytes | None] = lambda number: None
        self._guard = threading.Lock()
        self._server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def send(self, handler: Any) -> None:
        with self._guard:
            self.data_requests += 1
            number = self.data_requests
        content = Path(handler.translate_path(handler.path)).read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        half = len(content) // 2
        handler.wfile.write(content[:half])
        handler.wfile.flush()
        rest = self.before_data(number)
        handler.wfile.write(content[half:] if rest is None else rest)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Process:
    """Python that runs a program of a test's, and is heard line by line."""

    def __init__(self, program: str, arguments: Sequence[str], environment: Mapping[str, str], place: Path) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + program, *arguments],
            env=dict(environment),
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints; what it said on standard error if there is none."""
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        line = self._popen.stdout.readline().rstrip("\n")
        assert line, self._popen.stderr.read()
        return line

    def error_line(self) -> str:
        """The next line that it says on standard error."""
        assert self._popen.stderr is not None
        return self._popen.stderr.readline()

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def end(self, expected: int = 0) -> tuple[str, str]:
        """Let it go on past its `input()`, and wait; what it printed since, and its standard error."""
        out, err = self._popen.communicate("go on\n", timeout=120)
        assert self._popen.returncode == expected, err
        return out, err


def give_everything_back() -> None:
    from sccache_dtool.dtool import plugin

    for cache in plugin._state.caches.values():
        cache.close()
    plugin._forget()
