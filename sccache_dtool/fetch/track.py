"""What other processes see of a fetch of this process: its progress, and how much of its downloads is durable.

The state is a name that is renamed, see `transfers.py`. If the name to be renamed is gone, another process has taken
over the fetch. After any other failure nothing more is published, and the fetch continues.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import TRANSFER_FILE, PartName, StateName, WhyName
from sccache_dtool.errors import GONE
from sccache_dtool.fallback import do_without, start_thread
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.sink import Sink
from sccache_dtool.fetch.transfers import TransferState
from sccache_dtool.protocol import downloads

#: Seconds between two signs of progress, and so what a download can lose when its host dies.
PULSE = 5.0


class TakenOver(Exception):
    """Another process continues the fetch of this one, which was silent for too long."""


class Track:
    """Publishes the state of a fetch. It is a Progress, and passes everything on to another one."""

    def __init__(self, fs: FileSystem, area: str, shown: Progress, *, on_total: Callable[[int], None]) -> None:
        """`on_total` is called with the bytes that are still to come, once that is known; it may raise NoSpace."""
        self.message: str | None = None  # why the last attempt failed that was followed by another
        self.taken: str | None = None  # another process's work area, whose downloads are continued
        self._fs = fs
        self._area = area
        self._shown = shown
        self._on_total = on_total
        self._lock = threading.Lock()
        self._now = StateName(TransferState.INITIALIZING, 0, None, 1)
        self._published: StateName | None = None
        self._parts: dict[int, PartName] = {}
        self._following: tuple[int, Sink] | None = None
        self._bytes = 0
        self._expected = 0
        self._lost = False
        self._disabled = False  # True once nothing can be published any more
        self._failure: OSError | None = None  # why what was written is not on stable storage
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- a life ------------------------------------------------------------------------------------------------------

    def begin(self, facts: dict[str, Any], size: int | None, *, shared: bool) -> None:
        """Publish what is fetched; `size`: bytes that it will need, if that is known."""
        self._expected = size or 0
        self._now = self._now._replace(total=size)
        with self._dispensable():
            self._fs.write_new(f"{self._area}/{TRANSFER_FILE}", records.encode_document(facts), shared=shared)
            self._fs.put_record("-", f"{self._area}/{self._now}")
            self._published = self._now
        otherwise = "a download that is killed starts again from its last step, and `transfers` is not up to date"
        self._thread = start_thread(self._run, "sc-dtool transfer", otherwise)

    def end(self) -> None:
        """Publish nothing more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def bytes(self) -> int:
        """Bytes there so far."""
        return self._bytes

    @property
    def total(self) -> int | None:
        """Bytes that it needs in all, if that is known."""
        return max(self._expected, self._bytes) or None

    @property
    def attempts(self) -> int:
        """Number of attempts."""
        return self._now.attempts

    @property
    def keepable(self) -> bool:
        """Whether the downloads are large enough to be kept for a process that continues them."""
        return sum(part.bytes for part in self._parts.values()) >= downloads.WORTH_KEEPING

    # -- progress -----------------------------------------------------------------------------------------------------

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        """See Progress."""
        if total is not None:
            self._expected = max(self._expected, self._bytes - there + total)
            self._on_total(self._expected - self._bytes)
        self._publish(TransferState.TRANSFERRING)
        self._shown.start(label, total, there)

    def advance(self, n: int) -> None:
        """See Progress."""
        if self._lost:
            raise TakenOver
        if self._failure is not None:
            raise self._failure
        self._bytes += n
        self._shown.advance(n)

    def stage(self, text: str) -> None:
        """See Progress."""
        self._publish(TransferState.PROCESSING)
        self._shown.stage(text)

    def queue(self) -> None:
        """The fetch waits for other downloads of this host."""
        self._publish(TransferState.QUEUED)

    def failed(self, why: str) -> None:
        """An attempt failed, and another one follows, perhaps after a pause."""
        with self._lock:
            before, self.message = self.message, why
            if not self._disabled:
                with self._dispensable(), self._noticing_loss():
                    with contextlib.suppress(FileExistsError):  # the reply to a first request was lost
                        self._fs.put_record(records.encode({"message": why}), f"{self._area}/{WhyName(self.attempts)}")
                    if before is not None:
                        with contextlib.suppress(FileNotFoundError):
                            self._fs.unlink(f"{self._area}/{WhyName(self.attempts - 1)}")

    def attempt(self) -> None:
        """Another attempt begins."""
        self._publish(TransferState.TRANSFERRING, self.attempts + 1)

    def done(self) -> None:
        """See Progress."""
        self._shown.done()

    # -- downloads that others may continue --------------------------------------------------------------------------

    def follow(self, index: int, sink: Sink) -> None:
        """From now on, publish the progress of the download of source `index`, which fills `sink`."""
        with self._lock:
            self._following = (index, sink)
            if index not in self._parts and not self._disabled:
                with self._dispensable():
                    self._fs.put_record("-", f"{self._area}/{PartName(index, 0)}")
                    self._parts[index] = PartName(index, 0)

    def complete(self, index: int, size: int) -> None:
        """Publish that all of source `index` is there, on stable storage."""
        with self._lock:
            if not self._disabled:
                with self._dispensable():
                    self._fs.put_record("-", f"{self._area}/{PartName(index, size)}")
                    self._parts[index] = PartName(index, size)

    def leave(self, *, interrupted: bool) -> None:
        """The file is about to be closed. If it was `interrupted`, publish how much of it there is."""
        try:
            if interrupted:
                self.pulse()
            elif self._failure is not None:
                raise self._failure
        finally:
            with self._lock:
                self._following = None

    def forget(self, index: int) -> None:
        """The bytes of source `index` are about to be discarded: others must not continue them.

        Raises OSError if the name on which others rely cannot be changed.
        """
        with self._lock:
            part = self._parts.get(index)
            if part is not None and part.bytes:
                del self._parts[index]
                try:
                    self._move(part, PartName(index, 0))
                    self._parts[index] = PartName(index, 0)
                except OSError:
                    self._fs.unlink(f"{self._area}/{part}")

    def pulse(self) -> None:
        """Flush what was written to stable storage, then publish how much it is. Raises TakenOver, or OSError."""
        with self._lock:
            if self._following is not None:
                index, sink = self._following
                part = PartName(index, sink.size)
                known = self._parts.get(index)
                if known is not None and part != known:
                    self._sync(sink.fd)
                    if self._rename(known, part):
                        self._parts[index] = part
            self._publish_now()

    # -- within ------------------------------------------------------------------------------------------------------

    def _sync(self, fd: int) -> None:
        """Flush to stable storage. The kernel reports a failure only once (fsync(2)), so it is kept."""
        try:
            self._fs.sync(fd)
        except OSError as error:
            self._failure = error
            raise

    @contextlib.contextmanager
    def _dispensable(self) -> Iterator[None]:
        """Publish something; if that is refused, publish nothing more, and continue the fetch."""
        try:
            yield
        except OSError as error:
            self._disabled = True
            do_without(
                f"other processes can neither see the progress of this download nor continue it ({error.strerror})"
            )

    @contextlib.contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """Raise TakenOver if the work area is gone."""
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._lost = True
            raise TakenOver from None

    def _publish(self, state: TransferState, attempts: int | None = None) -> None:
        with self._lock:
            self._now = self._now._replace(state=state, attempts=attempts or self.attempts)
            self._publish_now()

    def _publish_now(self) -> None:
        expected = max(self._expected, self._bytes) if self._expected else None
        self._now = self._now._replace(bytes=max(0, self._bytes), total=expected)
        if self._published is not None and self._now != self._published and self._rename(self._published, self._now):
            self._published = self._now

    def _rename(self, old: object, new: object) -> bool:
        """Whether a published name was changed. Raises TakenOver."""
        if not self._disabled:
            with self._dispensable():
                self._move(old, new)
                return True
        return False

    def _move(self, old: object, new: object) -> None:
        try:
            self._fs.rename(f"{self._area}/{old}", f"{self._area}/{new}")
        except OSError as error:
            if error.errno not in GONE:
                raise
            if not self._is_there(str(new)):  # otherwise it was done, and the reply lost
                self._lost = True
                raise TakenOver from None

    def _is_there(self, name: str) -> bool:
        try:
            return name in self._fs.names(self._area)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return False

    def _run(self) -> None:
        while not self._stop.wait(PULSE):
            try:
                self.pulse()
            except (TakenOver, OSError):
                return  # the next `advance` raises it in the fetch
