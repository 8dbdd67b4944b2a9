"""A lease on an item for one holder: on a copy that is there, else on one that is fetched first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool import items, leases
from sccache_dtool.clock import Clock
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.fetch.wanted import Terms, Wanted
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import PROGRAM, Holder, program_owner
from sccache_dtool.layout import Layout
from sccache_dtool.leases import Lease, Place
from sccache_dtool.liveness.process import Proc
from sccache_dtool.records import Damaged

if TYPE_CHECKING:
    from sccache_dtool.election import Election
    from sccache_dtool.fetch.progress import Progress


class Acquirer(NamedTuple):
    """Takes leases for `holder`, and has this process fetch what is not there."""

    fs: FileSystem
    layout: Layout
    clock: Clock
    proc: Proc
    holder: Holder
    heartbeat_ttl: float  # lifetime in seconds of this process while it fetches for another holder
    progress: Progress | None
    note: Callable[[str], None]  # told, in a sentence, whom we are waiting for
    elect: Callable[[str], Election]

    def acquire(self, wanted: Wanted, terms: Terms) -> Lease:
        """A lease on the item. Raises UsageError, FetchFailed, NoSpace or TimedOut."""
        lease = self._take_existing(wanted)
        if lease is not None:
            return lease
        if wanted.complete is not None:
            wanted = wanted.complete()
        from sccache_dtool.fetch.errand import Errand
        from sccache_dtool.fetch.populate import Populator
        from sccache_dtool.fetch.progress import NoProgress

        with self._worker() as worker:
            errand = Errand(self.fs, self.layout, self.clock, self.holder, worker, self.note)
            return Populator(errand, self.progress or NoProgress()).populate(
                wanted, lambda: self.elect(wanted.key[:32]), lambda: self._take_existing(wanted), terms
            )

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Holder]:
        """This process as a holder, for work areas: who is to have the lease may live on when we are killed."""
        if self.holder.owner.kind is PROGRAM:
            yield self.holder
            return
        worker = Holder(self.fs, self.layout, self.clock, program_owner(self.proc), self.heartbeat_ttl)
        try:
            with worker.beating():
                yield worker
        finally:
            worker.retire()

    def _take_existing(self, wanted: Wanted) -> Lease | None:
        """A lease on a copy that is there. A listing only hints at copies; whether one is open, its gate says."""
        for generation in items.generations(self.fs, self.layout, wanted.key):
            payload: str | None = wanted.label
            if wanted.complete is not None:
                payload = items.payload_name(self.fs, self.layout, wanted.key, generation)
            if payload is None:
                continue
            place = Place.of(self.layout, wanted.key, str(generation), payload)
            if wanted.fits is not None and not wanted.fits(place.payload):
                continue
            if wanted.name is not None and not self._is_of_same_stack(wanted, str(generation)):
                continue
            lease = leases.take(self.fs, self.clock, self.holder, place)
            if lease is not None:
                return lease
        return None

    def _is_of_same_stack(self, wanted: Wanted, generation: str) -> bool:
        """False if the copy has gone meanwhile. Raises UsageError for a name that stands for something else."""
        try:
            there = items.facts(self.fs, self.layout, wanted.key, generation).get("source")
        except (FileNotFoundError, Damaged):
            return False
        except OSError as error:
            raise CacheError(f"cannot read what {wanted.name} was fetched from: {error}") from error
        if there is None:  # see items.describe_anew
            return False
        if there == list(wanted.stack.canonical):
            return True
        raise UsageError(
            f"{wanted.name} is in the cache already, made from something else",
            details=[f"there: {_words(there)}", f"asked: {_words(wanted.stack.canonical)}"],
            hint="choose another name, or remove the item first: sc-dtool rm",
        )


def _words(stack: object) -> str:
    return " ".join(str(word) for word in stack) if isinstance(stack, list | tuple) and stack else "(no source)"
