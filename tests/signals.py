"""Signals at every moment: what a handler does is done before each line that a thread is about to execute.

Python runs a signal handler between two instructions of the main thread. So a function that is called before a line
sees what a handler sees, and waits, as it does, for every lock that is held there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import linecache
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

#: Seconds after which an act that has not ended is taken to wait for ever; then all tracebacks are shown.
LONGEST = 300


def interrupt(act: Callable[[], object], handler: Callable[[], object], step: int, *files: str) -> bool:
    """Whether `handler` was called before the step-th line of those files that `act` executes, from 1 on.

    What the handler raises is raised there.
    """
    count = 0
    called = False

    def trace_call(frame: FrameType, event: str, argument: Any) -> Any:
        if called or not frame.f_code.co_filename.endswith(files):
            return None
        last = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal count, called, last
            if event == "line" and not called:
                # At the end of a `with` block its head is traced again. Python runs no handler between the two.
                number, file = frame.f_lineno, frame.f_code.co_filename
                count += not (number < last and linecache.getline(file, number).lstrip().startswith("with "))
                last = number
                if count == step:
                    called = True
                    handler()
            return trace

        return trace

    before = sys.gettrace()
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    sys.settrace(trace_call)
    try:
        act()
    finally:
        sys.settrace(before)
        faulthandler.cancel_dump_traceback_later()
    return called


@contextlib.contextmanager
def interrupted(act: Callable[[], object], handler: Callable[[], object], *files: str) -> Iterator[int]:
    """Calls `act`, which may be called often, with `handler` before each of its lines in turn; the number of lines."""
    step = 1
    while interrupt(act, handler, step, *files):
        step += 1
    yield step
