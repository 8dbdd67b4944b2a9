"""Leases: taking one in a generation, and giving it back. Reaping is `reaping.py`'s."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING

from sccache_dtool.disk.names import GATE, PAYLOAD, RELEASED, Layout, LeaseName
from sccache_dtool.errors import LeaseLost
from sccache_dtool.protocol import gate, history
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class Place(NamedTuple):
    """One generation of an item, with every path that a use needs."""

    key: str
    generation: str
    gate: str
    history: str
    payload: str

    @classmethod
    def of(cls, layout: Layout, key: str, generation: str, payload: str) -> Place:
        """The place of a generation whose payload is called `payload`."""
        directory = layout.generation(key, generation)
        return cls(key, generation, f"{directory}/{GATE}", layout.history(key), f"{directory}/{PAYLOAD}/{payload}")


def take(store: Store, holder: Holder, place: Place) -> Lease | None:
    """A lease of `holder` on `place`; None if that generation was closed. One file-system call."""
    name = holder.next_lease()
    if not gate.enter(store.fs, place.gate, name, history.encode_lease(store.clock.wall(), holder.by)):
        return None
    return Lease(store, holder, place, name)


class Lease:
    """Holds an item in the cache: until `release`, nothing can delete what is at `path`.

    A context manager whose value is `path`::

        with cache.use("/data/ref.fa") as path:
            ...
    """

    __slots__ = ("_kept_in", "_lock", "holder", "name", "place", "released", "store")

    def __init__(self, store: Store, holder: Holder, place: Place, name: str) -> None:
        self.store = store
        self._lock = threading.RLock()  # reentrant: a signal handler may release in the middle of a release
        self.holder = holder
        self.place = place
        self.name = name
        self.released = False
        self._kept_in: dict[str, Lease] | None = None

    def keep_in(self, leases: dict[str, Lease]) -> Lease:
        """List the lease in `leases`, under its name, until it is released."""
        leases[self.name] = self
        self._kept_in = leases
        return self

    @property
    def path(self) -> Path:
        """What to read: a file, or a directory."""
        return _as_path(self.place.payload)

    @property
    def key(self) -> str:
        """The key of the item in the cache."""
        return self.place.key

    def check(self) -> None:
        """Raise LeaseLost if the lease does not protect anything any more. In a forked child, as far as it was told.

        Costs one file-system call if this process was stopped for so long that it may have been taken for dead.
        """
        if self.released:
            raise LeaseLost(f"the lease on {self.key} was released", hint="use the item again")
        if self.holder.lost or (self.holder.is_of_this_process and not self.holder.confirm()):
            raise LeaseLost(f"the lease on {self.key} was revoked", hint="use the item again")

    def is_valid(self) -> bool:
        """Whether it protects what it is on, so that its path can be given out; if it does not, it is given back."""
        is_valid = False
        try:
            is_valid = self.holder.confirm()
        finally:
            if not is_valid:
                self.give_back()
        return is_valid

    def give_back(self) -> None:
        """Release what nobody was given; what fails now is done by a reaper, once this process is gone."""
        with contextlib.suppress(OSError):
            self.release()

    def release(self) -> bool:
        """Give the lease back; True if this call did it. Releasing twice is not an error. One file-system call.

        In a forked child this does nothing: the lease is its parent's.
        """
        if not self.holder.is_of_this_process:  # asked first: a fork may have copied the lock while it was held
            return False
        with self._lock:
            if self.released:
                return False
            done = end(self.store, self.place.gate, self.place.history, self.name, RELEASED)
            self.released = True
        if self._kept_in is not None:
            self._kept_in.pop(self.name, None)
        return done

    def __fspath__(self) -> str:
        """The path as text, so that a lease can be given to `open`."""
        return self.place.payload

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease {self.name} on {self.place.payload}{' (released)' if self.released else ''}>"


@functools.lru_cache
def _as_path(text: str) -> Path:
    """A path never changes, so that one does for all uses of a copy; making it takes as long as a system call."""
    from pathlib import Path  # loaded by whoever wants one: the command line does not

    return Path(text)


def end(store: Store, gate_path: str, history_path: str, lease: str, how: str) -> bool:
    """Move a lease to the history; True if this call did it."""
    return gate.leave(store.fs, gate_path, lease, history_path, f"{lease}~{int(store.clock.wall() * 1000)}~{how}")


class Held(NamedTuple):
    """A name in a gate, as seen by somebody who looks around."""

    key: str
    generation: str
    name: str
    lease: LeaseName | None  # None: not a name of a lease; it counts as held all the same

    def gate(self, layout: Layout) -> str:
        """The directory that the name is in."""
        return f"{layout.generation(self.key, self.generation)}/{GATE}"
