"""Calls that are given up if they take too long, such as a look at a file on a mount whose server is down."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TypeVar

from sccache_dtool.fallback import start_thread
from sccache_dtool.units import short_duration

Result = TypeVar("Result")


class _Caller:
    """A thread that makes one call after another: starting a thread takes longer than most calls."""

    def __init__(self) -> None:
        self._call: Callable[[], None]
        self._given = Lock()
        self._given.acquire()

    def run(self) -> None:
        """Make calls, for as long as the process lives. Signals are left to the other threads.

        `run` can tell who sent a signal only if its own thread receives it.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            self._given.acquire()
            self._call()

    def make(self, call: Callable[[], None]) -> Lock:
        """Make a call in this thread, which must be idle. Returns a lock that is released at the end of the call."""
        running = Lock()
        running.acquire()

        def make() -> None:
            call()
            _idle.append(self)  # before whoever waits for this call goes on, and makes the next one
            running.release()

        self._call = make
        self._given.release()
        return running


#: Threads that have nothing to do. One whose call does not end is not among them.
_idle: list[_Caller] = []
os.register_at_fork(after_in_child=_idle.clear)  # a forked child has none of them


def within(
    seconds: float, call: Callable[[], Result], otherwise: str, answers: Sequence[object] | None = None
) -> Result:
    """What `call` returns, or raises. Raises TimeoutError if it does neither for so many seconds.

    `answers` grows with each sign that the call goes on; the time begins again then.

    The call cannot be broken off: it is left to a thread that does not keep this process alive. If the system starts
    no thread, there is no limit, which `otherwise` says.
    """
    found: list[tuple[Result, None] | tuple[None, BaseException]] = []

    def run() -> None:
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))

    try:
        caller = _idle.pop()
    except IndexError:
        caller = _Caller()
        if start_thread(caller.run, "sc-dtool call", otherwise) is None:
            return call()
    running = caller.make(run)
    seen = -1  # the first period may begin in the middle of an answer
    while not running.acquire(timeout=seconds):
        if answers is None or len(answers) == seen:
            raise TimeoutError(f"no answer for {short_duration(seconds)}")
        seen = len(answers)
    result, error = found.pop()  # so that the thread does not keep it
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # the first of the pair, as there is no second
