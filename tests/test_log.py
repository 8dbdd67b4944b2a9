"""What the package logs: the warnings of a program, and what -v and --debug show."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.tool import call
from sccache_dtool import log
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.log import Log
from sccache_dtool.oddity import Fate, Oddity
from sccache_dtool.policy.rules import Rules
from waiting import PATIENCE

PROGRAM = """
import sys
import threading
from sccache_dtool import Cache
for number in range(2):
    with Cache(sys.argv[1]).use(sys.argv[2]):
        pass
"""


def run(program: str, *words: str) -> list[str]:
    """The lines that a Python program prints on standard error."""
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_program_that_does_not_configure_logging_sees_warnings(tmp_path: Path, layout: Layout, source: str) -> None:
    """It would never learn that everybody may replace what it reads, or that a mistyped path became a cache."""
    assert run(PROGRAM, str(tmp_path / "new"), source) == [f"set up a new cache in {tmp_path}/new"]
    Path(layout.root).chmod(0o777)
    (first, second) = run(PROGRAM, layout.root, source)  # of each of two Cache objects
    assert first == second
    assert first.startswith(f"{layout.root}: every user can create and delete files here")


@pytest.mark.parametrize(("level", "count"), [("WARNING", 1), ("ERROR", 0)])
def test_a_program_decides_what_it_sees(tmp_path: Path, source: str, level: str, count: int) -> None:
    """A program that has a log of its own would have lines on its standard error that it cannot switch off."""
    configure = f'import logging; logging.basicConfig(level="{level}", format="%(name)s %(levelname)s %(message)s")\n'
    lines = run(configure + PROGRAM, str(tmp_path / "new"), source)
    assert lines == [f"sccache_dtool WARNING set up a new cache in {tmp_path}/new"] * count


def test_a_hit_does_not_load_logging(layout: Layout, source: str) -> None:
    """Each of ten thousand jobs would wait for a module that it does not need."""
    Cache(layout.root).use(source).release()
    show = "from sccache_dtool.log import Log\nLog().info('x'); Log().debug('x'); Log().note('x')\n"
    assert run(f"import sys\n{show}assert 'logging' not in sys.modules") == []


@pytest.fixture
def used(layout: Layout, source: str) -> Layout:
    """A cache with an item that nobody uses."""
    cache = Cache(layout.root)
    cache.use(source).release()
    cache.close()
    return layout


@pytest.mark.parametrize(
    ("option", "shown"),
    [(None, []), ("-v", ["removing 1 copy"]), ("--debug", ["removing 1 copy", "elected: clean"])],
)
def test_verbose_shows_information_and_debug_more(used: Layout, option: str | None, shown: list[str]) -> None:
    """A person who asks why something was removed, or what is waited for, would see no more than before."""
    done = call(*([option] if option else []), "-C", used.root, "clean", "--all", "-y")
    assert done.code == 0
    assert [text for text in ("removing 1 copy", "elected: clean") if text in done.err] == shown


def test_what_is_shown_is_shown_until_it_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    """A command that a program runs in its own process would print the program's messages from then on."""
    first, second = list[str](), list[str]()
    log.show(log.NOTE, lambda level, text: first.append(text))
    Log("sccache_dtool.one").note("a")
    Log().info("b")
    log.show(log.INFO, lambda level, text: second.append(text))
    Log().info("c")
    log.hide()
    Log().note("d")
    Log().warning("e")
    assert (first, second) == (["a"], ["c"])
    assert caplog.messages == ["a", "c", "e"]
    assert not logging.getLogger(log.ROOT).handlers


def test_a_cleaning_says_what_it_removes_and_why(
    make_cache: Callable[..., Cache], source: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that cleans every night would find no trace of that in its own log."""
    cache = make_cache()
    cache.use(source).release()
    caplog.set_level(logging.INFO, log.ROOT)
    cache.clean(Rules(everything=True), why="nightly")
    assert caplog.messages == ["removing 1 copy, 5 bytes: nightly"]


def test_the_first_messages_of_two_threads_are_shown_once_each() -> None:
    """A command whose threads have something to say at the same time would print each line twice from then on."""
    shown = list[str]()
    met, made = threading.Barrier(2), logging.Handler.__init__

    def make_together(handler: logging.Handler, *more: Any) -> None:
        met.wait(PATIENCE)
        made(handler, *more)

    log.show(log.NOTE, lambda level, text: shown.append(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.Handler, "__init__", make_together)
        threads = [threading.Thread(target=Log().warning, args=[text]) for text in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    Log().warning("c")
    log.hide()
    assert sorted(shown) == ["a", "b", "c"]
    assert not logging.getLogger(log.ROOT).handlers


def test_a_handler_that_fails_does_not_end_the_use(
    make_cache: Callable[..., Cache], layout: Layout, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program whose log server is away could read nothing, and its leases would lapse with the thread that beats."""

    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ConnectionError("the log server is away")

    failures = list[object]()
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: failures.append(error))
    handler, logger = Failing(), logging.getLogger(log.ROOT)
    Path(layout.root).chmod(0o777)
    logger.addHandler(handler)
    try:
        with make_cache().use(source) as path:
            assert path.read_text() == "ACGT\n"
    finally:
        logger.removeHandler(handler)
    assert [str(failure) for failure in failures] == ["the log server is away"]


HOSTILE = "a\nsccache_dtool: all is well\x1b[2J"


@pytest.mark.parametrize("message", [HOSTILE, Oddity(f"/cache/{HOSTILE}", "not a lease", Fate.HELD)])
def test_a_message_is_one_line_and_does_not_control_the_terminal(
    caplog: pytest.LogCaptureFixture, message: object
) -> None:
    """Another user of the cache could write lines into a program's log, or clear an administrator's screen."""
    Log().warning(message)
    assert caplog.messages == [str(message).replace("\n", "�").replace("\x1b", "�")]
