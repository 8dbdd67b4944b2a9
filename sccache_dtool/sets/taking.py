"""Leases on many items for one holder: on all of them, or on none.

What is in the cache is leased first, in this thread, or in several if the file server makes them wait. What is missing
is then fetched, several items at a time. Nothing here waits for one item while it keeps others from being fetched, so
that two sets with common items never wait for each other for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.acquire import Acquirer
from sccache_dtool.clock import Clock
from sccache_dtool.errors import CacheError, LeaseLost, translate
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import Request
from sccache_dtool.pool import Pool, Threads
from sccache_dtool.protocol.leases import Lease

if TYPE_CHECKING:
    from sccache_dtool.fetch.progress import Progress

#: Items that are fetched at the same time.
AT_ONCE = 8

#: Seconds that a set that has failed waits for its other fetches to end: one may wait for a server that is silent. A
#: fetch that ends later gives its lease back, because the holder has retired by then.
_PATIENCE = 5.0

#: Seconds after which a waiting fetch notices that its set has failed.
_NOTICED_AFTER = 0.5


class Wanted(NamedTuple):
    """One item of a set."""

    path: str  # where it appears in the view
    request: Request
    size: int | None = None  # bytes that it needs, if that is known
    where: str = ""  # where it was named, for messages


def take_all(acquirer: Acquirer, wanted: Sequence[Wanted], max_age: float | None, jobs: int | None) -> list[Lease]:
    """Leases on all items, in their order; if one of them cannot be taken, on none. The holder must be beating.

    `acquirer`: for the holder of all leases; its progress shows all fetches as one. `max_age`: as for
    `Acquirer.acquire`. `jobs`: how many leases are taken at a time, see Pool.

    Raises what `acquire` raises, with the path of the item in the details.
    """
    taken: dict[int, Lease] = {}

    def take(number: int) -> None:
        with _telling_which(wanted[number]):
            lease = acquirer.take(wanted[number].request)
        if lease is not None:
            taken[number] = lease

    try:
        if max_age is None:  # otherwise each source is asked, as for a fetch
            with ExitStack() as stack:
                with suppress(OSError):  # then each item is reached from the root
                    stack.enter_context(acquirer.store.fs.near(acquirer.store.layout.items))
                pool = stack.enter_context(Pool(jobs, forks=False))
                for _ in stack.enter_context(closing(pool.each(take, range(len(wanted))))):
                    pass
        missing = [number for number in range(len(wanted)) if number not in taken]
        if missing:
            _fetch(acquirer, wanted, missing, taken, max_age)
    except BaseException:
        for lease in list(taken.values()):  # a thread that was not waited for may add one
            lease.give_back()
        raise
    return [taken[number] for number in range(len(wanted))]


def _fetch(
    acquirer: Acquirer, wanted: Sequence[Wanted], missing: Sequence[int], taken: dict[int, Lease], max_age: float | None
) -> None:
    """Take leases on what is missing, several at a time, and add them to `taken`. Raises what the first failure is."""
    over = threading.Event()
    terms = acquirer.make_terms()
    sizes = [wanted[number].size for number in missing]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    progress = _OneForAll(acquirer.progress or NoProgress(), len(missing), total, over)
    first: dict[str, int] = {}
    for number in missing:
        first.setdefault(wanted[number].request.key, number)
    most = AT_ONCE if len(first) > 1 else 0  # a single one is fetched in this thread
    again = set(missing).difference(first.values())  # further paths of the same items, which are there by then

    def acquire(number: int) -> None:
        one = wanted[number]
        alone = each._replace(make_terms=lambda: terms._replace(size=one.size))
        with _telling_which(one):
            taken[number] = alone.acquire(one.request, max_age)
        progress.count()

    with acquirer.working() as worker, closing(progress), Threads(most, _PATIENCE) as pool:
        clock = _Interruptible(acquirer.store.clock, over)
        each = acquirer._replace(store=acquirer.store._replace(clock=clock), progress=progress, worker=worker)
        try:
            for numbers in (first.values(), again):
                for future in as_completed([pool.submit(acquire, number) for number in numbers]):
                    future.result()
        except BaseException:
            over.set()
            raise


class _Abandoned(BaseException):
    """Ends the other fetches of a set that has failed. It is not an error of a fetch, which would be retried."""


class _OneForAll:
    """Shows the progress of many fetches, which several threads report, as one."""

    def __init__(self, shown: Progress, items: int, total: int | None, over: threading.Event) -> None:
        """`items`: how many there are, with `total` bytes."""
        self._shown = shown
        self._counted = getattr(shown, "counted", None)
        self._items, self._total = items, total
        self._there = 0  # items that are
        self._over = over
        self._lock = threading.Lock()
        self._is_shown = False

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        """One of the fetches begins; see Progress."""
        with self._lock:
            if not self._is_shown:
                self._is_shown = True
                self._shown.start(f"{self._items:,} items", self._total)
                self._show_count()
        self.advance(there)

    def count(self) -> None:
        """One more item is there."""
        with self._lock:
            self._there += 1
            if self._is_shown:
                self._show_count()

    def _show_count(self) -> None:
        if self._counted is not None:
            self._counted(self._there, self._items)

    def advance(self, n: int) -> None:
        """See Progress. Raises _Abandoned once the set has failed."""
        if self._over.is_set():
            raise _Abandoned
        with self._lock:
            self._shown.advance(n)

    def stage(self, text: str) -> None:
        """Show nothing: other fetches are at other stages."""

    def done(self) -> None:
        """Show nothing: other fetches go on."""

    def close(self) -> None:
        """All fetches have ended."""
        if self._is_shown:
            self._shown.done()


class _Interruptible(Clock):
    """A clock whose `sleep` ends once the set has failed."""

    def __init__(self, clock: Clock, over: threading.Event) -> None:
        self._clock = clock
        self._over = over
        self.wall, self.monotonic, self.since_boot = clock.wall, clock.monotonic, clock.since_boot  # type: ignore[method-assign]

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`. Raises _Abandoned once the set has failed."""
        while not self._over.is_set():
            self._clock.sleep(min(seconds, _NOTICED_AFTER))
            seconds -= _NOTICED_AFTER
            if seconds <= 0:
                return
        raise _Abandoned


@contextmanager
def _telling_which(one: Wanted) -> Iterator[None]:
    """Add to an error which item it concerns."""
    try:
        yield
    except LeaseLost:  # which concerns them all
        raise
    except (CacheError, OSError) as error:
        failure = translate(error) if isinstance(error, OSError) else error
        place = f" ({one.where})" if one.where else ""
        failure.details = (f"for {plain(one.path)}{place}; no item of the set is held", *failure.details)
        raise failure from error.__cause__
