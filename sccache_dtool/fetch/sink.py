"""A file that is being filled, with its digests taken on the way and its speed kept within a limit."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.fallback import start_thread
from sccache_dtool.fetch.progress import Progress

#: Seconds of unused speed that may be caught up on.
_CREDIT = 0.5

_ZEROS = bytes(CHUNK)


class Throttle:
    """Keeps to so many bytes a second on average, by sleeping after each piece."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._free_at = clock.monotonic()  # when all bytes so far will have been paid for

    def pay(self, n: int) -> None:
        """Wait as long as `n` bytes more call for."""
        now = self._clock.monotonic()
        self._free_at = max(self._free_at, now - _CREDIT) + n / self._rate
        if self._free_at > now:
            self._clock.sleep(self._free_at - now)


class Sink:
    """A new file; counts its bytes and takes digests. A context manager."""

    kind = ""  # how what is stored is compressed, its bytes and its CRC32: see `compress.Compressing`
    stored = 0
    stored_checksum = ""

    def __init__(
        self,
        fs: FileSystem,
        path: str,
        algorithms: Sequence[str],
        progress: Progress,
        mode: int = 0o666,
        throttle: Throttle | None = None,
    ) -> None:
        self.size = 0
        self._fs = fs
        self.path = path
        self.algorithms = tuple(algorithms)
        self._progress = progress
        self._mode = mode
        self._throttle = throttle
        self._digests = Digests(algorithms)
        self.fd = fs.create(path, mode)

    def write(self, data: bytes, *, came: bool = True) -> None:
        """Write all of `data`. `came`: whether it came from the source, whose speed is limited."""
        self._fs.write(self.fd, self._stored_as(data))
        self._digests.update(data)
        self.size += len(data)
        self._progress.advance(len(data))
        if came and self._throttle is not None:
            self._throttle.pay(len(data))

    def _stored_as(self, data: bytes) -> bytes:
        """What is stored of `data`."""
        return data

    def skip(self, size: int, *, counted: bool = False) -> None:
        """Go on after a hole of so many bytes, which read as zeros. `counted`: they are part of what was announced."""
        if size:
            self.size += size
            self._fs.extend(self.fd, self.size)
            if counted:
                self._progress.advance(size)
            for at in range(0, size if self.algorithms else 0, CHUNK):
                self._digests.update(_ZEROS[: size - at])

    def clone(self, fd: int) -> bool:
        """Take all of an open file, as a copy that shares its blocks; False, with nothing taken, if that cannot be.

        No digest is taken.
        """
        if not self._fs.clone(fd, self.fd):
            return False
        self.size = self._fs.fstat(self.fd).st_size
        self._progress.advance(self.size)
        return True

    def restart(self) -> None:
        """Start again with a new file. The old one is never truncated: another process may be copying it."""
        self._fs.close(self.fd)
        self._fs.unlink(self.path)
        self.fd = self._fs.create(self.path, self._mode)
        self._digests.close()
        self._digests = Digests(self.algorithms)
        self._progress.advance(-self.size)
        self.size = 0

    def take(self, path: str, size: int) -> bool:
        """Begin with the first `size` bytes of another file; False, with nothing taken, if it has not so many."""
        fd = self._fs.open(path)
        try:
            while self.size < size and (data := self._fs.read(fd, min(CHUNK, size - self.size))):
                self.write(data, came=False)
        finally:
            self._fs.close(fd)
        if self.size != size:
            self.restart()
        return self.size == size

    def finish(self) -> None:
        """Store what is still in memory: nothing."""

    def digests(self) -> dict[str, str]:
        """The digests of what was written so far, in hexadecimal, by algorithm."""
        return self._digests.hexdigests()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._digests.close()
        try:
            self._fs.close(self.fd)
        except OSError:
            if error is None:  # otherwise the first error says more
                raise


# -- digests -----------------------------------------------------------------------------------------------------------


class Digest(Protocol):
    """What the objects of hashlib can do; the checksums of zlib, which grid storage uses, can do it here too."""

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


def new_digest(name: str) -> Digest:
    """A digest by its canonical name. Raises ValueError for one that this host's OpenSSL has switched off."""
    if name == "adler32":
        return _Checksum(zlib.adler32, 1)
    if name == "crc32":
        return _Checksum(zlib.crc32, 0)
    algorithm, _, compression = name.partition(".")
    if compression:
        from sccache_dtool.fetch.compress import DigestOfContent

        return DigestOfContent(new_digest(algorithm), compression)
    import hashlib

    return hashlib.new(name, usedforsecurity=False)


#: Bytes after which digests are taken in a thread of their own: a short file is done before that would pay.
_ASIDE_FROM = 8 << 20

#: Pieces that may wait for that thread: so few that they are still in the processor's cache when their turn comes.
_MOST_WAITING = 2


class Digests:
    """Several digests of one stream. Those of a long one are taken beside it, on another processor if there is one."""

    def __init__(self, names: Sequence[str]) -> None:
        self._digests = {name: new_digest(name) for name in names}
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
