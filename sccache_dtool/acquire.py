"""A lease on an item for one holder: on a copy that is there, else on one that is fetched first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sccache_dtool.catalog import items
from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Generation, Layout
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import CacheError, LeaseLost, UsageError
from sccache_dtool.fetch.freshness import Freshness, Surroundings
from sccache_dtool.fetch.request import Terms, Wanted
from sccache_dtool.liveness.process import Proc
from sccache_dtool.protocol import leases
from sccache_dtool.protocol.holders import PROGRAM, Holder, program_owner
from sccache_dtool.protocol.leases import Lease, Place

if TYPE_CHECKING:
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.protocol.election import Election

#: What is leased: an item, or all items of a dataset.
Leased = TypeVar("Leased")

#: How often a use whose holder was revoked begins again.
_MOST_ATTEMPTS = 4


def until_it_stands(attempt: Callable[[], Leased], note: Callable[[str], None]) -> Leased:
    """What `attempt` leases, which enters another holder each time; again if its holder is revoked meanwhile.

    `note` is told of it. Raises LeaseLost if that happens again and again.
    """
    for _ in range(_MOST_ATTEMPTS - 1):
        try:
            return attempt()
        except LeaseLost as error:
            note(f"{error.message} before the path was printed; starting again")
    return attempt()


class Acquirer(NamedTuple):
    """Takes leases for `holder`, and has this process fetch what is not there."""

    fs: FileSystem
    layout: Layout
    clock: Clock
    proc: Proc
    holder: Holder
    heartbeat_ttl: Callable[[], float]  # lifetime in seconds of this process while it fetches for another holder
    progress: Progress | None
    note: Callable[[str], None]  # told, in a sentence, whom we are waiting for
    warn: Callable[[str], None]  # told that a source cannot be looked at
    elect: Callable[[str], Election]

    def acquire(self, wanted: Wanted, make_terms: Callable[[], Terms], max_age: float | None = None) -> Lease:
        """A lease on the item. Raises UsageError, FetchFailed, NoSpace or TimedOut.

        `make_terms` is called only if it must be fetched: terms may depend on a setting that is wrong. `max_age`:
        see Freshness. Raises LeaseLost if the holder was revoked meanwhile, so that the lease would not protect
        anything.
        """
        fresh = Freshness(Surroundings(self.fs, self.layout, self.clock, self.warn, self.note), wanted, max_age)
        damaged: set[str] = set()
        lease = self._take_existing(wanted, fresh, damaged)
        if lease is None:
            lease = self._have_fetched(wanted, make_terms(), fresh, damaged)
            self._prove(lease)
        if not lease.stands():
            raise self.holder.revoked()
        return lease

    def _prove(self, lease: Lease) -> None:
        """After a fetch, which takes long: this process may have been stopped, and taken for dead."""
        try:
            self.holder.prove()  # the holder keeps what comes of it
        except BaseException:
            lease.give_back()
            raise

    def _have_fetched(self, wanted: Wanted, terms: Terms, fresh: Freshness, damaged: set[str]) -> Lease:
        """A lease on an item that is not there yet: fetched by this process, or by another that is waited for."""
        if wanted.complete is not None:
            wanted = wanted.complete()
        from sccache_dtool.fetch.errand import Errand
        from sccache_dtool.fetch.populate import Populator
        from sccache_dtool.fetch.progress import NoProgress

        with self._worker() as worker:
            errand = Errand(self.fs, self.layout, self.clock, self.holder, worker, self.proc, self.note)
            return Populator(errand, self.progress or NoProgress()).populate(
                wanted,
                lambda: self.elect(fresh.election),
                lambda: self._take_existing(wanted, fresh, damaged),
                terms,
            )

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Holder]:
        """This process as a holder, for work areas: who is to have the lease may live on when we are killed."""
        if self.holder.owner.kind is PROGRAM:
            yield self.holder
            return
        worker = Holder(self.fs, self.layout, self.clock, program_owner(self.proc), self.heartbeat_ttl())
        try:
            with worker.beating():
                yield worker
        finally:
            worker.retire()

    def _take_existing(self, wanted: Wanted, fresh: Freshness, damaged: set[str]) -> Lease | None:
        """A lease on a copy that is there. A listing only hints at copies; whether one is open, its gate says.

        `damaged`: generations that were found not to be whole, and are passed over; more may be added.
        """
        fresh.begin()
        for generation in items.generations(self.fs, self.layout, wanted.key):
            if str(generation) in damaged:
                continue
            payload: str | None = wanted.label
            if wanted.named_by_source:
                payload = items.payload_name(self.fs, self.layout, wanted.key, generation)
                if payload is None:
                    payload = items.payload_name(self.fs, self.layout, wanted.key, generation, fresh=True)
            if payload is None:
                damaged.add(str(generation))
                self._evict(wanted.key, str(generation))
                continue
            place = Place.of(self.layout, wanted.key, str(generation), payload)
            if wanted.fits is not None and not wanted.fits(place.payload):
                continue
            if wanted.name is not None and not self._is_of_same_stack(wanted, str(generation)):
                continue
            if not fresh.accepts(generation):
                continue
            lease = leases.take(self.fs, self.clock, self.holder, place)
            if lease is None:
                continue
            if self._is_whole(lease, generation):
                return lease
            damaged.add(str(generation))
            self._give_up(lease)
        return None

    def _is_whole(self, lease: Lease, generation: Generation) -> bool:
        try:
            return items.is_whole(self.fs, lease.place.payload, generation)
        except BaseException:
            lease.give_back()
            raise

    def _give_up(self, lease: Lease) -> None:
        lease.give_back()
        self.note(f"{lease.place.payload} was removed or changed since it was fetched: fetching it again")
        self._evict(lease.key, lease.place.generation)

    def _evict(self, key: str, generation: str) -> None:
        """Remove a copy whose payload is not whole, so that nobody is given it, unless somebody else holds it."""
        from sccache_dtool.evict import trash

        with contextlib.suppress(OSError):  # whoever uses it next finds out as well
            if trash.evict(self.fs, self.layout, key, generation) is trash.Outcome.EVICTED:
                trash.purge_copy(self.fs, self.layout, generation, self.warn)  # its space is needed for the new one

    def _is_of_same_stack(self, wanted: Wanted, generation: str) -> bool:
        """False if the copy has gone meanwhile. Raises UsageError for a name that stands for something else."""
        try:
            there = items.facts(self.fs, self.layout, wanted.key, generation).get("source")
        except (FileNotFoundError, Damaged):
            return False
        except OSError as error:
            raise CacheError(f"cannot read the source of {wanted.name}: {error}") from error
        if there is None:  # see items.describe_anew
            return False
        if there == list(wanted.stack.canonical):
            return True
        raise UsageError(
            f"{wanted.name} is already in the cache, with another source or other steps",
            details=[f"in the cache: {_words(there)}", f"requested: {_words(wanted.stack.canonical)}"],
            hint="choose another name, or remove the item first: sc-dtool rm",
        )


def _words(stack: object) -> str:
    return " ".join(str(word) for word in stack) if isinstance(stack, list | tuple) and stack else "(no source)"
