"""A lease on an item for one holder: on a copy that is there, else on one that is fetched first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sccache_dtool.catalog import items
from sccache_dtool.disk.names import Generation
from sccache_dtool.disk.records import Damaged, OtherFormat
from sccache_dtool.errors import CacheError, LeaseLost, UsageError
from sccache_dtool.fetch.freshness import Freshness
from sccache_dtool.fetch.request import Request, Terms
from sccache_dtool.liveness.caller import PROGRAM
from sccache_dtool.log import Log
from sccache_dtool.protocol import leases, program
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Lease, Place
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple

if TYPE_CHECKING:
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.fetch.tier import Tier

_log = Log(__name__)

#: What to do if another release has written what this one does not understand.
_NEWER = "use a newer release of sc-dtool"

#: How often a use whose holder was revoked begins again.
_MOST_ATTEMPTS = 4


def attempts() -> Iterator[contextlib.AbstractContextManager[None]]:
    """Contexts to take leases in, each with a holder of its own: the next one if that holder was revoked meanwhile.

    ::

        for attempt in attempts():
            with attempt:
                return ...

    Raises LeaseLost if that happens again and again.
    """
    for number in range(1, _MOST_ATTEMPTS + 1):
        yield _attempt(is_last=number == _MOST_ATTEMPTS)


@contextlib.contextmanager
def _attempt(*, is_last: bool) -> Iterator[None]:
    try:
        yield
    except LeaseLost as error:
        if is_last:
            raise
        _log.note(f"{error.message} before the path was printed; starting again")


class Acquirer(NamedTuple):
    """Takes leases for `holder`, and has this process fetch what is not there."""

    store: Store
    holder: Holder
    heartbeat_ttl: Callable[[], float]  # lifetime in seconds of this process while it fetches for another holder
    progress: Progress | None
    make_terms: Callable[
        [], Terms
    ]  # called only if something must be fetched: terms may depend on a setting that is wrong
    worker: Holder | None = None  # this process while it fetches, if it is one holder for many fetches

    def acquire(self, request: Request, max_age: float | None = None) -> Lease:
        """A lease on the item. Raises UsageError, FetchFailed, NoSpace or TimedOut.

        `max_age`: see Freshness. Raises LeaseLost if the holder was revoked meanwhile, so that the lease would not
        protect anything.
        """
        tier = None if max_age is None else _tier(request, max_age, self.make_terms())
        fresh = Freshness(self.store, request, max_age, tier)
        damaged: set[str] = set()
        lease = self._take_existing(request, fresh, damaged)
        if lease is None:
            terms = self.make_terms()
            tier = tier or _tier(request, max_age, terms)
            if request.complete is not None and tier is None:
                request = request.complete()
            from sccache_dtool.fetch.populate import Populator
            from sccache_dtool.fetch.progress import NoProgress
            from sccache_dtool.protocol.election import make_election

            with self.working() as worker:
                lease = Populator(
                    self.store,
                    self.holder,
                    worker,
                    request,
                    terms,
                    self.progress or NoProgress(),
                    lambda: make_election(self.store, fresh.election),
                    lambda: self._take_existing(request, fresh, damaged),
                    tier,
                ).populate()
            try:
                self.holder.prove()  # a fetch takes long: this process may have been stopped, and taken for dead
            except BaseException:
                lease.give_back()
                raise
        return self._standing(lease)

    def take(self, request: Request, max_age: float | None = None) -> Lease | None:
        """As `acquire`, but None if the item must be fetched first."""
        lease = self._take_existing(request, Freshness(self.store, request, max_age), set())
        return None if lease is None else self._standing(lease)

    def _standing(self, lease: Lease) -> Lease:
        if not lease.is_valid():
            raise self.holder.revoked()
        return lease

    @contextlib.contextmanager
    def working(self) -> Iterator[Holder]:
        """This process as a holder, for work areas: the holder of the lease may live on when this process is killed."""
        if self.worker is not None or self.holder.owner.kind is PROGRAM:
            yield self.worker or self.holder
            return
        with program.worker(self.store, self.heartbeat_ttl()) as worker:
            yield worker

    def _take_existing(self, request: Request, fresh: Freshness, damaged: set[str]) -> Lease | None:
        """A lease on a copy that is there. A listing only hints at copies; whether one is open, its gate says.

        `damaged`: generations that were found not to be whole, and are passed over; more may be added.
        """
        fresh.begin()
        with self.store.fs.near(self.store.layout.item(request.key)):
            for generation in items.generations(self.store, request.key):
                if str(generation) in damaged:
                    continue
                payload: str | None = request.label
                if request.named_by_source:
                    payload = items.payload_name(self.store, request.key, generation)
                    if payload is None:
                        payload = items.payload_name(self.store, request.key, generation, fresh=True)
                if payload is None:
                    damaged.add(str(generation))
                    if not items.is_of_other_format(self.store, request.key, str(generation)):
                        self._evict(request.key, str(generation))
                    continue
                place = Place.of(self.store.layout, request.key, str(generation), payload)
                if request.name is not None and not self._is_of_same_stack(request, str(generation)):
                    continue
                if not fresh.accepts(generation):
                    continue
                lease = leases.take(self.store, self.holder, place)
                if lease is None:
                    continue
                if self._is_whole(lease, generation):
                    return lease
                damaged.add(str(generation))
                self._give_up(lease)
        return None

    def _is_whole(self, lease: Lease, generation: Generation) -> bool:
        try:
            return items.is_whole(self.store.fs, lease.place.payload, generation)
        except BaseException:
            lease.give_back()
            raise

    def _give_up(self, lease: Lease) -> None:
        lease.give_back()
        self.store.log.note(f"{lease.place.payload} was removed or changed since it was fetched: fetching it again")
        self._evict(lease.key, lease.place.generation)

    def _evict(self, key: str, generation: str) -> None:
        """Remove a copy whose payload is not whole, so that nobody is given it, unless somebody else holds it."""
        from sccache_dtool.evict import trash

        store = self.store
        with contextlib.suppress(OSError):  # whoever uses it next finds out as well
            if trash.evict(store, key, generation) is trash.Outcome.EVICTED:
                trash.purge_copy(store, generation)  # its space is needed for the new one

    def _is_of_same_stack(self, request: Request, generation: str) -> bool:
        """False if the copy has gone meanwhile. Raises UsageError for a name that stands for something else."""
        try:
            there = items.facts(self.store, request.key, generation)
        except OtherFormat as error:
            raise CacheError(f"cannot read the source of {request.name}: {error}", hint=_NEWER) from error
        except (FileNotFoundError, Damaged):
            return False
        except OSError as error:
            raise CacheError(f"cannot read the source of {request.name}: {error}") from error
        if there.source is None and "source" not in there.malformed:  # see items.describe_again
            return False
        if there.source == request.stack.canonical:
            return True
        raise UsageError(
            f"{request.name} is already in the cache {self.store.layout.root}, with another source or other steps",
            details=[f"in the cache: {_words(there.source)}", f"requested: {_words(request.stack.canonical)}"],
            hint="choose another name, or remove the item first: sc-dtool rm",
        )


def _tier(request: Request, max_age: float | None, terms: Terms) -> Tier | None:
    """The upstream as the source of the item; None if there is none, or if the item is of this cache alone."""
    if terms.lend is None or not request.stack:
        return None
    from sccache_dtool.fetch.tier import Tier

    return Tier(request, max_age, terms.lend)


def _words(stack: tuple[str, ...] | None) -> str:
    return " ".join(stack) if stack else "(no source)"
