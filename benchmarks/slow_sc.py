"""``slow_sc.py SECONDS WORD…``: `sc-dtool` on a file system each of whose calls takes so much longer.

Calls wait beside each other, as requests do on the way to a server that is far away, or to many servers. Every method
of the injectable file system counts as one call; for a whole tree that is too few.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable
from typing import Any

from sccache_dtool.cli import main
from sccache_dtool.disk.filesystem import FileSystem

#: What makes no request of its own.
_FREE = frozenset({"near", "seek", "close", "write", "extract", "fstat"})


def _slowly(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @functools.wraps(call)
    def wait_and_call(*arguments: Any, **more: Any) -> Any:
        time.sleep(seconds)
        return call(*arguments, **more)

    return wait_and_call


def slow_down(seconds: float) -> None:
    """Let every call of every file system in this process take longer."""
    for name, call in inspect.getmembers(FileSystem, inspect.isfunction):
        if not name.startswith("_") and name not in _FREE:
            setattr(FileSystem, name, _slowly(call, seconds))


if __name__ == "__main__":
    slow_down(float(sys.argv.pop(1)))
    sys.argv[0] = "sc-dtool"
    main.main()
