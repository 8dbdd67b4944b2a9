"""Where `sc-dtool` begins, which ``python -m sccache_dtool`` is too."""

from __future__ import annotations

import gc
from typing import NoReturn


def main() -> NoReturn:
    """Load the command line and run it; never returns.

    What is loaded is not garbage and never becomes any. Left alone, the collector searches it while it is loaded,
    and once more when the interpreter ends: a fifth of a short command's time.
    """
    gc.disable()
    from sccache_dtool.cli.main import main as run

    gc.freeze()
    gc.enable()
    run()


if __name__ == "__main__":
    main()
