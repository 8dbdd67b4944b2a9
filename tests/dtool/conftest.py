"""Real datasets on real servers on loopback: moto for S3, dtool-http's own for HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sccache_dtool.cache import Cache

pytest.importorskip("dtoolcore", reason="dtool is not installed: it is in the extra `dtool`")

from dtool import stores


@pytest.fixture(scope="session")
def _moto() -> Iterator[Any]:
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed, so there is no S3 here")
    pytest.importorskip("dtool_s3", reason="dtool-s3 is not installed")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The cache directory of dtool, for this process and those that it starts; all leases are given back at the end."""
    path = tmp_path / "dtool-cache"
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SC_DTOOL_PLUGIN", "debug")
    if request.node.get_closest_marker("no_cache") is None:  # otherwise its being made is said on standard error
        Cache(path).init()
    yield path
    stores.give_everything_back()


@pytest.fixture(scope="session")
def _bucket(_moto: Any) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        yield stores.new_bucket(_moto, patch)


@pytest.fixture
def s3(_bucket: str, cache_dir: Path) -> str:
    """The base URI of a bucket."""
    return _bucket


@pytest.fixture(scope="session")
def _on_s3(_bucket: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SC_DTOOL_PLUGIN", "off")
        return stores.make_dataset(_bucket, stores.FILES)


@pytest.fixture
def on_s3(_on_s3: Any, cache_dir: Path) -> Any:
    """A dataset on S3, opened; to make and to open one takes boto3 seconds, so that there is one for all tests."""
    return stores.at_home_in(_on_s3, cache_dir)


@pytest.fixture
def web(cache_dir: Path, tmp_path: Path, serve: Callable[[Path], stores.Web]) -> stores.Web:
    """A server with a dataset called `study`."""
    base = tmp_path / "web"
    base.mkdir()
    stores.make_dataset(f"file://{base}", stores.FILES)
    return serve(base)


@pytest.fixture
def dataset(web: stores.Web) -> Any:
    """A dataset on a web server, opened."""
    return stores.open_dataset(f"{web.address}/study")


@pytest.fixture
def serve() -> Iterator[Callable[[Path], stores.Web]]:
    """Starts servers of dtool-http's, one for each directory."""
    pytest.importorskip("dtool_http", reason="dtool-http is not installed")
    running: list[stores.Web] = []

    def start(directory: Path) -> stores.Web:
        running.append(stores.Web(directory))
        return running[-1]

    yield start
    for web in running:
        web.stop()


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., stores.Process]:
    """Starts Python on a program text, in an empty directory."""
    place = tmp_path / "elsewhere"
    place.mkdir()

    def start(program: str, *arguments: object, **environment: str) -> stores.Process:
        return stores.Process(program, [str(one) for one in arguments], {**os.environ, **environment}, place)

    return start
