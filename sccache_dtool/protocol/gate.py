"""The three operations that the protocol rests on: enter, leave, close.

A lease is a name in a generation's gate, the directory `use/`. The server that holds the directory decides every
one of these calls, whatever any client has cached: `rmdir` is refused while a name is there, and once it has
succeeded no name can ever be made there again. That is all that keeps data from being deleted under its readers.
"""

from __future__ import annotations

import contextlib
import errno
import os
from enum import StrEnum

from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.nofollow import DirectoryHandle
from sccache_dtool.errors import GONE, NOT_EMPTY


def enter(fs: FileSystem, gate: str, lease: str, record: str) -> bool:
    """Make `lease` in `gate`: True when it is held, False when the generation was closed. One call.

    Open the payload only after this has returned True. A lease that is there already with the caller's own text is
    held: the server did it and its reply was lost (seen on NFS).
    """
    path = f"{gate}/{lease}"
    try:
        fs.put_record(record, path, unique=True)
    except FileExistsError:
        if fs.get_record(path) != record:
            raise
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    return True


def leave(fs: FileSystem, gate: str, lease: str, history: str, ended: str) -> bool:
    """Move `lease` from `gate` to `history` as `ended`: True when this call ended it. One call.

    The finished lease is the record of the access, so a use is logged exactly once, whoever ends it.
    False: it had been ended before, by somebody else. If it is there as `ended`, the reply to this call was lost.
    """
    lease_path, ended_path = f"{gate}/{lease}", f"{history}/{ended}"
    try:
        fs.rename(lease_path, ended_path, unique=True)
    except OSError as error:
        if error.errno not in GONE:
            raise
    else:
        return True
    try:
        # A missing target directory says ENOENT too. Only that one is made: what is above it holds the lease as well,
        # and a cache that somebody has removed must not be begun again by halves.
        with contextlib.suppress(FileExistsError):
            fs.mkdir(history, shared=fs.is_shared(os.path.dirname(history)))
        fs.rename(lease_path, ended_path, unique=True)
    except OSError as error:
        if error.errno not in GONE or error.errno == errno.ENOTDIR:  # a file is in the history's place
            raise
        return fs.seems_there(ended_path)
    return True


class Closing(StrEnum):
    """What became of an attempt to close a gate."""

    CLOSED = "closed"
    CLOSED_BEFORE = "closed before"
    IN_USE = "in use"


def close(fs: FileSystem, gate: str, via: DirectoryHandle | None = None) -> bool:
    """Close `gate` permanently: True when it is closed, now or before; False when a lease is in it. One call."""
    return closing(fs, gate, via) is not Closing.IN_USE


def closing(fs: FileSystem, gate: str, via: DirectoryHandle | None = None) -> Closing:
    """Close `gate` permanently, and return whether this call did it. One call.

    Only ENOENT means that it had been closed before, or that the reply to the request was lost. Every other error
    is raised and the generation kept. `via`: the handle of a directory above it.
    """
    try:
        fs.rmdir(gate, via=via)
    except OSError as error:
        if error.errno in NOT_EMPTY:
            return Closing.IN_USE
        if error.errno != errno.ENOENT:
            raise
        return Closing.CLOSED_BEFORE
    return Closing.CLOSED
