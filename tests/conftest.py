"""Markers that ask for something of the machine (a skipped test says what was missing), and shared fixtures."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import scratch
from faults import FakeClock, FakeProc, OnClock
from hosts import leftovers, nshost
from sccache_dtool import fallback, log
from sccache_dtool.cache import Cache
from sccache_dtool.disk import root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness.caller import CALLER, Owner, process_owner


def pytest_configure() -> None:
    """`make test` has the directories of its tests in memory; `.ci/run` on a disk."""
    if os.environ.get("SCRATCH") == "memory" and (place := scratch.memory_for_all()):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", place)


def pytest_sessionstart() -> None:
    """What is started in the background may have been told to ignore Ctrl-C, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    leftovers.remove()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip(f"needs root, and runs as user {os.geteuid()}")
    if item.get_closest_marker("hosts") and (reason := nshost.available()):
        pytest.skip(reason)


#: Tests that need other kernels, a cluster or another file system, by directory: `make test-hosts` runs them.
_LABORATORIES = ("nfs", "gluster")

_HERE = Path(__file__).parent

_NOTES = pytest.StashKey[set[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE) and item.path.relative_to(_HERE).parts[0] in _LABORATORIES:
            item.add_marker("lab")


@pytest.fixture(scope="session")
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Take a line that is printed once at the end of the run, whichever worker has said it."""
    return request.config.stash.setdefault(_NOTES, set()).add


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist, whose terminal is the controller's
        session.config.workeroutput["notes"] = sorted(session.config.stash.get(_NOTES, set()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash.setdefault(_NOTES, set()).update(getattr(node, "workeroutput", {}).get("notes", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in sorted(terminalreporter.config.stash.get(_NOTES, set())):
        terminalreporter.write_line(f"note: {line}")


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What observations of lifetimes are remembered in must be no file of the user who runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(autouse=True)
def _own_slots(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must not wait for a place among the downloads of other tests, or of the user who runs them."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.getbasetemp()))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a server that a test has told to fail; how long the pauses are is tested by itself."""
    monkeypatch.setattr("sccache_dtool.fetch.retry.FIRST_PAUSE", 0.001)


@pytest.fixture(scope="session")
def once_in_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], str]], str]:
    """Given a name and what makes a text: whichever worker comes first makes it, and all others get the same."""
    here = tmp_path_factory.getbasetemp()
    shared = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here

    def get(name: str, make: Callable[[], str]) -> str:
        with open(shared / f"{name}.made", "a+") as made:
            fcntl.flock(made, fcntl.LOCK_EX)
            made.seek(0)
            text = made.read()
            if not text:
                text = make()
                made.write(text)
        return text

    return get


@pytest.fixture
def open_tmp_path() -> Iterator[Path]:
    """A directory that other users can enter, which they cannot those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="sc-dtool-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def fast_path() -> Iterator[Path]:
    """A directory in memory, where there is such a place: for tests that make thousands of small files."""
    path = leftovers.make_directory("test", scratch.memory() or tempfile.gettempdir())
    yield path
    shutil.rmtree(path)


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Called with a number, lets the system give so many threads more and then none, as where they are limited."""
    start = threading.Thread.start

    def limit(left: int) -> None:
        rest = iter(range(left))

        def start_or_refuse(thread: threading.Thread) -> None:
            if next(rest, None) is None:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr("threading.Thread.start", start_or_refuse)

    return limit


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> FakeClock:
    """Clocks that stand still; at the present where a test is marked `present`."""
    return FakeClock(wall=time.time()) if request.node.get_closest_marker("present") else FakeClock()


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    """A host with no processes but this one."""
    return FakeProc(str(tmp_path / "proc"))


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An empty cache on the real file system, in a process that does not wait for the disk: no test pulls the plug."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    place = Layout(str(tmp_path / "cache"))
    root.set_up(FileSystem(), place)
    return place


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the package warned of, from now on."""
    with _messages(logging.WARNING) as texts:
        yield texts


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What the package noted for whoever runs it, from now on."""
    with _messages(log.NOTE) as texts:
        yield texts


@contextlib.contextmanager
def _messages(level: int) -> Iterator[list[str]]:
    """The texts that the package's loggers are given, of one level."""
    texts: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == level:
                texts.append(record.getMessage())

    logger, handler = logging.getLogger(log.ROOT), Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(log.NOTE)
    yield texts
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture(autouse=True)
def _said_again() -> Iterator[None]:
    """What was done without in an earlier test is logged again, and nothing is shown as an earlier test wanted it."""
    fallback.said.clear()
    yield
    log.hide()


@pytest.fixture
def make_cache(layout: Layout, clock: FakeClock, proc: FakeProc) -> Iterator[Callable[..., Cache]]:
    """Makes `Cache` objects of one root, of this host unless told otherwise; all is released at the end."""
    made: list[Cache] = []

    def make(**more: Any) -> Cache:
        given = {"clock": clock, "proc": proc, "fs": FileSystem(), **more}
        made.append(Cache(layout.root, **given))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def cache(make_cache: Callable[..., Cache], clock: FakeClock, request: pytest.FixtureRequest) -> Cache:
    """A cache, used by this process; where a test is marked `present`, its file system has the test's clock."""
    return make_cache(fs=OnClock(clock)) if request.node.get_closest_marker("present") else make_cache()


@pytest.fixture
def job(proc: FakeProc) -> Owner:
    """A job that runs on this host: on behalf of it the command line is run."""
    return process_owner(CALLER, proc, proc.add(4242, "job", start=1000))


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A file of five bytes to be cached."""
    path = tmp_path / "ref.fa"
    path.write_text("ACGT\n")
    return str(path)
