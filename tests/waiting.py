"""Waiting for what nothing tells of when it comes: the state of another process, or of a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_Value = TypeVar("_Value")

#: Seconds after which something is given up. Nothing takes a tenth of that; it only ends what would hang for ever.
PATIENCE = 60.0


def wait_until(what: Callable[[], _Value], why: str, *, patience: float = PATIENCE, pause: float = 0.005) -> _Value:
    """The first true value of `what`, asked again and again, with so many seconds between; `why`: for the error."""
    deadline = time.monotonic() + patience
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {patience:g} s: {why}"
        time.sleep(pause)
    return value
