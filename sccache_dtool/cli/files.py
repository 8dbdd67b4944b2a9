"""Files that commands write for whoever called them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from typing import TextIO

from sccache_dtool.cli.output import Output
from sccache_dtool.disk.names import unique
from sccache_dtool.errors import FULL, CacheError, NoSpace

#: What a person calls standard output.
STANDARD_OUTPUT = "-"


def write_file(out: Output, path: str, lines: Iterable[str]) -> None:
    """Write into what `path` names: standard output (`-`), or a file, or what is there. Raises CacheError.

    A file is written whole, or not at all: whoever reads it meanwhile sees the old one. What is no regular file, such
    as a pipe or a device, is written to as it is: a file in its place is not what was meant.
    """
    if path == STANDARD_OUTPUT:
        for line in lines:
            out.text(line)
        return
    try:
        if _may_be_replaced(path):
            _replace(os.path.realpath(path) if os.path.islink(path) else path, lines)
        else:
            with _open(path) as file:
                file.writelines(lines)
    except OSError as error:
        kind = NoSpace if error.errno in FULL else CacheError
        raise kind(f"cannot write {path}: {error.strerror or error}") from error


def _may_be_replaced(path: str) -> bool:
    """Whether there is nothing, or a regular file; not one into which our results go, such as a log."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and _stream(path) is None
    except FileNotFoundError:
        return True


def _stream(path: str) -> int | None:
    """Which of the streams that we were given `path` is, as `/dev/stdout` is; None if it is none of them."""
    status = os.stat(path)
    for fd in (1, 2):
        with contextlib.suppress(OSError):  # it was closed
            if os.path.samestat(status, os.fstat(fd)):
                return fd
    return None


def _open(path: str) -> TextIO:
    """Open what is there for writing. A stream goes on where it is: opened anew, what is in it would be lost."""
    fd = _stream(path)
    return open(path if fd is None else os.dup(fd), "w", encoding="utf-8")


def _replace(path: str, lines: Iterable[str]) -> None:
    tmp = f"{path}.{unique()}.tmp"  # a number of a process would come again, in a container above all
    try:
        with open(tmp, "x", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    finally:
        with contextlib.suppress(OSError):  # it is there only if something went wrong, or somebody has interrupted us
            os.unlink(tmp)
