"""What sources and steps are given to work with, including those of plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.sink import Sink, Throttle
from sccache_dtool.protocol.store import Store

if TYPE_CHECKING:
    from sccache_dtool.fetch.track import Track


class Retrieved(NamedTuple):
    """The result of a retrieval: digests by algorithm, in hexadecimal; the size that was announced, if one was."""

    digests: dict[str, str]
    announced: int | None
    resumed: bool = False  # whether it was put together from several attempts
    #: What tells this version of the source from others, for `item.json`; None if nothing does. See `versions.py`.
    version: Mapping[str, object] | None = None
    decoded: bool = False  # whether what the server called a coding of it was undone
    name: str | None = None  # what the source calls it, where it says so: see `Source.provisional`


class Context(NamedTuple):
    """One fetch: where it writes, how it is shown, and how fast it may be."""

    store: Store
    progress: Progress
    track: Track | None = None  # publishes its progress; None if no other process can see it
    throttle: Throttle | None = None
    number: int = 0  # number of the source that is being fetched
    step: str = ""  # the first step for the result, which needs a file; empty for none
    fresh: bool = False  # whether to start from the first byte
    others: bool = False  # whether another mirror is asked if this one does not answer
    wait: float | None = None  # seconds that a transfer by another service may take; None: no bound
    as_sent: bool = False  # whether a content coding is to be left as it is

    @property
    def fs(self) -> FileSystem:
        """The file system that the cache is on."""
        return self.store.fs

    @property
    def clock(self) -> Clock:
        """The clock to read, and to wait by."""
        return self.store.clock

    def sink(self, path: str, algorithms: Sequence[str], mode: int = 0o666) -> Sink:
        """A new file at `path`, counted and digested while it is written."""
        return Sink(self.fs, path, algorithms, self.progress, mode, self.throttle)

    def failed(self, why: str) -> None:
        """Publish that an attempt failed, and that another one follows."""
        if self.track is not None:
            self.track.failed(why)

    def attempt(self) -> None:
        """Publish that another attempt begins."""
        if self.track is not None:
            self.track.attempt()
