"""Digests by name: hashlib's, and the two checksums of zlib that grid storage goes by."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from sccache_dtool.fallback import start_thread


class Digest(Protocol):
    """What hashlib's objects can do."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far, in hexadecimal."""


class _Checksum:
    def __init__(self, function: Callable[[bytes, int], int], start: int) -> None:
        self._function = function
        self._value = start

    def update(self, data: bytes, /) -> None:
        self._value = self._function(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def new(name: str) -> Digest:
    """A digest by its canonical name. Raises ValueError for one that this host's OpenSSL has switched off."""
    if name == "adler32":
        return _Checksum(zlib.adler32, 1)
    if name == "crc32":
        return _Checksum(zlib.crc32, 0)
    import hashlib

    return hashlib.new(name, usedforsecurity=False)


#: Bytes after which digests are taken in a thread of their own: a short file is done before that would pay.
_ASIDE_FROM = 8 << 20

#: Pieces that may wait for that thread: so few that they are still in the processor's cache when their turn comes.
_MOST_WAITING = 2


class Digests:
    """Several digests of one stream. Those of a long one are taken beside it, on another processor if there is one."""

    def __init__(self, names: Sequence[str]) -> None:
        self._digests = {name: new(name) for name in names}
        self._seen = 0
        self._may_go_aside = True
        self._pieces: queue.SimpleQueue[bytes | None] | None = None
        self._room = threading.Semaphore(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def update(self, data: bytes) -> None:
        """Take in more bytes."""
        if not self._digests:
            return
        if self._pieces is None:
            self._take(data)
            self._seen += len(data)
            if self._seen >= _ASIDE_FROM and self._may_go_aside:
                pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
                run = partial(self._run, pieces)
                self._thread = start_thread(run, "sc-dtool digest", "digests are taken in turn with the download")
                self._may_go_aside = self._thread is not None
                self._pieces = pieces if self._may_go_aside else None
            return
        self._room.acquire()
        self._pieces.put(data)

    def hexdigests(self) -> dict[str, str]:
        """The digests of all bytes so far, in hexadecimal, by name."""
        self.close()
        return {name: digest.hexdigest() for name, digest in self._digests.items()}

    def close(self) -> None:
        """Wait for the thread to have taken in everything, and end it; `update` would begin another."""
        if self._pieces is not None and self._thread is not None:
            self._pieces.put(None)
            self._thread.join()
            self._pieces = self._thread = None

    def _run(self, pieces: queue.SimpleQueue[bytes | None]) -> None:
        while (data := pieces.get()) is not None:
            self._take(data)
            self._room.release()

    def _take(self, data: bytes) -> None:
        for digest in self._digests.values():
            digest.update(data)
