"""Files that commands write."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from sccache_dtool.cli.output import Output
from sccache_dtool.disk.names import unique
from sccache_dtool.errors import FULL, CacheError, NoSpace

#: The name of standard output on the command line.
STANDARD_OUTPUT = "-"


def write_file(out: Output, path: str, lines: Iterable[str]) -> None:
    """Write `lines` to `path`; `-` is standard output. Raises CacheError, or NoSpace.

    A regular file is replaced atomically, so that readers see either the old or the new content. Any other file, such
    as a pipe or a device, is opened and written to.
    """
    if path == STANDARD_OUTPUT:
        for line in lines:
            out.text(line)
        return
    try:
        if _may_be_replaced(path):
            _replace(os.path.realpath(path) if os.path.islink(path) else path, lines)
        else:
            fd = _stream(path)  # duplicated, because opening it again would truncate it
            with open(path if fd is None else os.dup(fd), "w", encoding="utf-8") as file:
                file.writelines(lines)
    except OSError as error:
        kind = NoSpace if error.errno in FULL else CacheError
        raise kind(f"cannot write {path}: {error.strerror or error}") from error


def _may_be_replaced(path: str) -> bool:
    """Whether `path` does not exist, or is a regular file that is not one of the standard streams."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and _stream(path) is None
    except FileNotFoundError:
        return True


def _stream(path: str) -> int | None:
    """The number of the standard stream that `path` is, such as 1 for `/dev/stdout`; None if it is not one."""
    status = os.stat(path)
    for fd in (1, 2):
        with contextlib.suppress(OSError):  # the stream is closed
            if os.path.samestat(status, os.fstat(fd)):
                return fd
    return None


def _replace(path: str, lines: Iterable[str]) -> None:
    tmp = f"{path}.{unique()}.tmp"  # not the process number, which is often the same in containers
    try:
        with open(tmp, "x", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    finally:
        with contextlib.suppress(OSError):  # it exists only after an error or an interrupt
            os.unlink(tmp)
