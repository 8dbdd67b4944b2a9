"""flufl.lock, for directories in which others may put anything in the place of a lock.

It reads the lock's text by `open` and `read`, which wait for ever at a FIFO, and take in all of a file of any size.
"""

from __future__ import annotations

import os

from flufl.lock import Lock

from sccache_dtool.fsops import FileSystem

#: The text is a path.
LONGEST = 8192


class CarefulLock(Lock):
    """A lock whose text is read with bounds; what cannot be a lock's text is nobody's."""

    def __init__(self, fs: FileSystem, path: str, lifetime: int, number: int) -> None:
        """`lifetime` in seconds; `number`: never drawn twice, by which the lock's text shows who holds it."""
        self._number = number
        super().__init__(path, lifetime=lifetime)
        self._fs = fs

    def _set_claimfile(self) -> None:
        self._claimfile = self._separator.join((self._lockfile, self.hostname, str(os.getpid()), str(self._number)))

    def _read(self) -> str | None:
        try:
            return self._fs.read_text(self.lockfile, LONGEST)
        except OSError:
            return None
