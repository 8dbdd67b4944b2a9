"""An application over a cache for each test, and a server of it on a Unix socket."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import httpserver
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.serve.access import Allowed
from sccache_dtool.serve.app import App
from sccache_dtool.serve.limits import Bounds
from sccache_dtool.serve.listening import make_server, unix_socket
from serve.client import Client, Socket
from waiting import PATIENCE


@pytest.fixture
def make_app(layout: Layout) -> Iterator[Callable[..., App]]:
    """Makes the application of the cache; by default, its user may change everything but clear it."""
    made: list[App] = []

    def make(allowed: Allowed = Allowed(changes=True), bounds: Bounds = Bounds()) -> App:  # noqa: B008
        made.append(App(lambda **more: Cache(layout.root, **more), allowed, bounds))
        return made[-1]

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: Callable[..., App]) -> App:
    """The application."""
    return make_app()


@pytest.fixture
def client(app: App) -> Client:
    """Asks as the user who runs the server."""
    return Client(app)


@pytest.fixture
def server() -> Iterator[httpserver.Server]:
    """A web server that misbehaves on command."""
    with httpserver.serve() as running:
        yield running


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="sc-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def listen(short_path: Path) -> Iterator[Callable[..., Socket]]:
    """Serves an application in a thread of this process, on a Unix socket."""
    stops: list[Callable[[], None]] = []

    def start(app: App, bounds: Bounds = Bounds()) -> Socket:  # noqa: B008
        path = str(short_path / "sock")
        listens, sockets = threading.Event(), unix_socket(path, for_others=False)
        server = make_server(app, bounds, listens.set)
        own = sockets.__enter__()
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([own])), daemon=True)
        thread.start()
        assert listens.wait(PATIENCE)

        def stop() -> None:
            server.should_exit = server.force_exit = True
            thread.join(PATIENCE)
            sockets.__exit__(None, None, None)

        stops.append(stop)
        return Socket(path)

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def item(tmp_path: Path) -> str:
    """A directory to be cached: a file, a folder with a file, and a link that leads out of it."""
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "x").write_bytes(b"0123456789")
    (top / "sub" / "y").write_text("y")
    os.symlink("/etc", top / "out")
    return str(top)


@pytest.fixture
def session(client: Client) -> Callable[..., dict[str, Any]]:
    """Creates a session: a source for each path."""

    def make(**more: str) -> dict[str, Any]:
        entries = [{"itemId": source, "mountPath": f"/{path}"} for path, source in more.items()]
        made = client.post("/session", json={"dataSet": entries}).json
        assert isinstance(made, dict)
        return made

    return make
