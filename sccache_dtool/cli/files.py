"""Files that commands write for whoever called them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from sccache_dtool.errors import CacheError, explain
from sccache_dtool.layout import unique


def write_file(path: str, lines: Iterable[str]) -> None:
    """Write a file whole, or not at all: whoever reads it meanwhile sees the old one. Raises CacheError."""
    tmp = f"{path}.{unique()}.tmp"  # a number of a process would come again, in a container above all
    try:
        with open(tmp, "x", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except OSError as error:
        raise CacheError(f"cannot write {explain(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # it is there only if something went wrong, or somebody has interrupted us
            os.unlink(tmp)
