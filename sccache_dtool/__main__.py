"""Where `sc-dtool` begins, and with it ``python -m sccache_dtool`` and `bin/sc`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NoReturn


def main(command: Callable[[list[str]], int] | None = None) -> NoReturn:
    """Load the command line and run it; never returns. `command`: as for `cli.main.main`.

    What is loaded is not garbage and never becomes any. Left alone, the collector searches it while it is loaded,
    and once more when the interpreter ends: a fifth of a short command's time.
    """
    gc.disable()
    from sccache_dtool.cli.main import main as run

    gc.freeze()
    gc.enable()
    run(command)


if __name__ == "__main__":
    main()
