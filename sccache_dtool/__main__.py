"""The entry point of `sc-dtool`, ``python -m sccache_dtool`` and `bin/sc`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NoReturn

#: So many objects must have been made since the last garbage collection.
_OFTEN = 100_000


def main(command: Callable[[list[str]], int] | None = None) -> NoReturn:
    """Import the command line and run it; never returns. `command`: as for `cli.main.main`.

    Garbage collection is off during the imports, and ignores the imported modules afterwards: searching them, also at
    exit, would take a fifth of a short command's time. Later it is rare, because the many objects of a scan, which are
    searched again and again, are in no cycles.
    """
    gc.disable()
    from sccache_dtool.cli.main import main as run

    gc.freeze()
    gc.set_threshold(_OFTEN)
    gc.enable()
    run(command)


if __name__ == "__main__":
    main()
