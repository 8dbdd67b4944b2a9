"""flufl.lock, for directories in which others may put anything in the place of a lock.

It reads the lock's text by `open` and `read`, which wait for ever at a FIFO, and take in all of a file of any size.
"""

from __future__ import annotations

import os
import socket
from types import FunctionType, SimpleNamespace
from typing import Any

from flufl.lock import Lock

from sccache_dtool.disk.filesystem import FileSystem

#: The text is a path.
LONGEST = 8192


def _without_name_server(method: Any) -> FunctionType:
    """A method of flufl.lock for which this host's full name is the name that it has for itself.

    flufl.lock puts the full name into its claims, and getfqdn() waits for a dead server as long as the resolver does,
    at every miss. The host's own name will do: a claim has the process and a random number in it, too. Its module is
    left as it is, because other threads may use it.
    """
    names = {**method.__globals__, "socket": SimpleNamespace(getfqdn=socket.gethostname)}
    return FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)


_init = _without_name_server(Lock.__init__)


class CarefulLock(Lock):
    """A lock whose text is read with bounds; what cannot be a lock's text is nobody's."""

    def __init__(self, fs: FileSystem, path: str, lifetime: int, number: int) -> None:
        """`lifetime` in seconds; `number`: never drawn twice, by which the lock's text shows who holds it."""
        self._number = number
        _init(self, path, lifetime)
        self._fs = fs

    def _set_claimfile(self) -> None:
        self._claimfile = self._separator.join((self._lockfile, self.hostname, str(os.getpid()), str(self._number)))

    def _read(self) -> str | None:
        try:
            return self._fs.read_text(self.lockfile, LONGEST)
        except OSError:
            return None
