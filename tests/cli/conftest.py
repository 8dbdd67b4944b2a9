"""A cache, a runner and a web server for each test of the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import httpserver
from cli.tool import SCRIPTS, Disk, Done
from sccache_dtool.cache import Cache
from sccache_dtool.cli import main

_CHANGES_OUTPUT = (
    "NO_COLOR FORCE_COLOR CLICOLOR CLICOLOR_FORCE COLORTERM TTY_COMPATIBLE TTY_INTERACTIVE COLUMNS".split()
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """The cache of the test: what every command goes to that is not told otherwise.

    It is set up already, as `use` says on standard error that it sets one up, but where a test is marked `no_cache`.
    """
    for name in _CHANGES_OUTPUT:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PATH", f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(tmp_path / "cache"))
    if request.node.get_closest_marker("no_cache") is None:
        Cache(tmp_path / "cache").init()
    return tmp_path / "cache"


@pytest.fixture
def disk(root: Path) -> Disk:
    """What lies in the cache."""
    return Disk(root)


@pytest.fixture
def sc(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a command in this process. Leases are this process's own, wherever the tests are started from."""

    def run(*words: str | Path) -> Done:
        given = [str(word) for word in words]
        if given[0] in ("use", "unuse", "renew") and "--holder" not in given:
            given[1:1] = ["--holder", f"pid:{os.getpid()}"]
        capsys.readouterr()
        code = main.run(given)
        said = capsys.readouterr()
        return Done(int(code), said.out, said.err)

    return run


@pytest.fixture
def server() -> Iterator[httpserver.Server]:
    """A web server that misbehaves on command."""
    with httpserver.serve() as running:
        yield running
