"""Forks: which process this is, and that a forked child waits for nothing that no thread of its own will do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sccache_dtool.forking import Guard
from sccache_dtool.liveness.process import OwnProcess

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_child(act: Callable[[], bool]) -> bool:
    """What `act` returns in a forked child; False if that does not end."""
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(60)
        code = 1
        try:
            code = 0 if act() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def hold_elsewhere(guard: Guard) -> Callable[[], None]:
    """Have another thread hold a guard, until what is returned is called."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with guard.lock:
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(60)

    def end() -> None:
        done.set()
        thread.join()

    return end


def test_a_child_is_another_process_even_with_the_number_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is given the number of the process that took its leases would take them for its own."""
    me = OwnProcess.now()
    number = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: number)
    assert me.is_this_process()
    assert me.is_certainly_this_process()
    assert in_child(lambda: not me.is_this_process() and not me.is_certainly_this_process())
    assert in_child(lambda: OwnProcess.now().is_this_process())


@pytest.mark.parametrize("field", ["boot", "space", "start"])
def test_a_process_that_only_looks_the_same_is_another(field: str) -> None:
    """A program that was restored from a checkpoint, or forked by a library, would use leases that are not its own."""
    me = OwnProcess.now()
    if me.process is None:
        pytest.skip("processes cannot be identified on this host")
    other = me.process._replace(**{field: 1 if field == "start" else "another"})
    assert me.is_certainly_this_process()
    assert not me._replace(process=other).is_certainly_this_process()
    assert me._replace(process=None).is_certainly_this_process()


def test_a_guard_of_another_thread_is_free_in_a_child() -> None:
    """A worker process would wait for ever for a lock that no thread of its own can release."""
    guard = Guard()
    end = hold_elsewhere(guard)
    assert not guard.lock.acquire(timeout=0)
    assert in_child(lambda: guard.lock.acquire(timeout=60))
    end()


def test_a_guard_of_the_forking_thread_is_its_own_in_a_child() -> None:
    """A program that forks within a guarded block would end with an error at the end of the block."""
    guard = Guard()
    with guard.lock:
        assert in_child(lambda: (guard.lock.release(), guard.lock.acquire(timeout=0)) == (None, True))
    end = hold_elsewhere(guard)
    end()


_MODULE = """
import os, __main__
if os.getpid() == __main__.parent:
    __main__.importing.set()
    __main__.forked.wait({pause})
import concurrent.futures.thread, logging
whole = True
"""

_PROGRAM = """
import os, signal, sys, threading
from sccache_dtool import forking
{begin}
parent, importing, forked = os.getpid(), threading.Event(), threading.Event()
sys.path.insert(0, sys.argv[1])
def load():
    import late
    assert late.whole
thread = threading.Thread(target=load)
thread.start()
assert importing.wait(100)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    load()
    import logging
    logging.getLogger("x").debug("a lock of its own")
    os._exit(0)
forked.set()
print(os.waitpid(pid, 0)[1])
thread.join()
load()
"""


@pytest.mark.parametrize(
    ("begin", "pause"),
    [("forking.wait_for_imports()", 0.5), ("forking.LONGEST_WAIT = 0; forking.wait_for_imports()", 100), ("", 100)],
    ids=["waiting", "wait too short", "no wait"],
)
def test_a_child_can_import_what_another_thread_was_importing(tmp_path: Path, begin: str, pause: float) -> None:
    """A worker process would wait for ever for a module that nobody goes on loading in it."""
    (tmp_path / "late.py").write_text(_MODULE.format(pause=pause))
    _succeeds(_PROGRAM.format(begin=begin), str(tmp_path))


_FORKING = """
import os
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_fork_in_the_middle_of_its_own_import_does_not_wait(tmp_path: Path) -> None:
    """A module that starts workers while it is imported would stand still for seconds at each."""
    (tmp_path / "starts_workers.py").write_text(_FORKING)
    _succeeds(
        """
import sys
from sccache_dtool import forking
forking.wait_for_imports()
forking.LONGEST_WAIT = 1e9
sys.path.insert(0, sys.argv[1])
import starts_workers
print(0)
""",
        str(tmp_path),
    )


def _succeeds(text: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", text, *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
