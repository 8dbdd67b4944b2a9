"""Filling the cache with an item that is not there: one of all who want it fetches, the others wait for it.

What is fetched becomes visible by one rename of a complete generation, with the fetcher's lease already in its gate.
A second generation that is published by accident is only a duplicate, and can be evicted.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

from sccache_dtool import history, records
from sccache_dtool.clock import Clock, iso
from sccache_dtool.election import Election
from sccache_dtool.errors import FULL, GONE, CacheError, LeaseLost, NoSpace, TimedOut, explain
from sccache_dtool.fetch.fetch import Fetched, fetch
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.wanted import Wanted
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import Holder
from sccache_dtool.layout import GATE, ITEM_FILE, Generation, Layout, WorkName, unique
from sccache_dtool.leases import Lease, Place
from sccache_dtool.units import short_duration

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_NOTE_AFTER = 1.0
_NOTE_EVERY = 60.0


class Populator:
    """Fetches items for one holder."""

    def __init__(
        self,
        fs: FileSystem,
        layout: Layout,
        clock: Clock,
        holder: Holder,
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        """`note` is told, in a sentence, whom we are waiting for."""
        self._fs = fs
        self._layout = layout
        self._clock = clock
        self._holder = holder
        self._progress = progress
        self._note = note

    def populate(
        self, wanted: Wanted, election: Election, take_existing: Callable[[], Lease | None], wait: float
    ) -> Lease:
        """A lease on the item, fetched by us or by somebody else within `wait` seconds.

        `take_existing` takes a lease on the item if it is there. Raises TimedOut, FetchFailed or NoSpace.
        """
        lease = self._wait(wanted, election, take_existing, wait)
        if lease is not None:
            return lease
        try:
            return take_existing() or self._fetch(wanted)
        finally:
            election.resign()

    def _wait(
        self, wanted: Wanted, election: Election, take_existing: Callable[[], Lease | None], wait: float
    ) -> Lease | None:
        """A lease on what somebody else has fetched, or None once we are elected to fetch it."""
        now = self._clock.monotonic()
        deadline, next_note, pause = now + wait, now + _NOTE_AFTER, _FIRST_PAUSE
        while not election.poll():
            now = self._clock.monotonic()
            if now >= deadline:
                raise TimedOut(
                    f"{wanted.label} is still being fetched by somebody else after {short_duration(wait)}",
                    details=[election.winner() or "it is not known by whom"],
                    hint="wait longer with --wait; when the one who fetches is gone, the next to ask takes over",
                )
            if now >= next_note:
                self._note(f"waiting for {wanted.label}: fetched by {election.winner() or 'an unknown process'}")
                next_note = now + _NOTE_EVERY
            self._clock.sleep(min(pause * random.uniform(0.5, 1.5), deadline - now))
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            lease = take_existing()
            if lease is not None:
                return lease
        return None

    def _fetch(self, wanted: Wanted) -> Lease:
        name = self._holder.next_lease()
        area = f"{self._layout.tmp}/{WorkName(name, 'fetch')}"
        began = self._clock.monotonic()
        try:
            self._fs.mkdir(area, shared=self._layout.shared)
            fetched = fetch(
                self._fs, wanted.stack, area, progress=self._progress, label=wanted.label, shared=self._layout.shared
            )
            return self._publish(wanted, area, name, fetched, self._clock.monotonic() - began)
        except OSError as error:
            self._discard(area)
            if error.errno in FULL:
                raise NoSpace(
                    f"no space left in {self._layout.root} for {wanted.label}", hint="`sc-dtool clean` makes room"
                ) from error
            if error.errno in GONE:
                raise LeaseLost(
                    f"the work area for {wanted.label} was taken away: this process was taken for dead meanwhile",
                    hint="use the item again",
                ) from error
            raise CacheError(f"cannot put {wanted.label} into the cache: {explain(error)}") from error
        except BaseException:
            self._discard(area)
            raise

    def _publish(self, wanted: Wanted, area: str, name: str, fetched: Fetched, seconds: float) -> Lease:
        now = self._clock.wall()
        generation = str(Generation(unique(), int(now), fetched.bytes, fetched.entries))
        place = Place.of(self._layout, wanted.key, generation, fetched.name)
        facts = records.encode_document(self._facts(wanted, fetched, now, seconds))
        self._fs.write_new(f"{area}/{ITEM_FILE}", facts, shared=self._layout.shared)
        self._fs.mkdir(f"{area}/{GATE}", shared=self._layout.shared)
        self._fs.put_record(history.encode_lease(now, self._holder.by), f"{area}/{GATE}/{name}")
        self._fs.make_dirs(place.history, shared=self._layout.shared)
        try:
            self._fs.rename(area, self._layout.generation(wanted.key, generation))
        except OSError as error:
            if error.errno not in GONE or name not in self._fs.names(place.gate):
                raise  # otherwise the server has done it, and its reply was lost
        return Lease(self._fs, self._clock, self._holder, place, name)

    def _facts(self, wanted: Wanted, fetched: Fetched, now: float, seconds: float) -> dict[str, object]:
        return {
            "format": 1,
            "key": wanted.key,
            "name": wanted.name,
            "source": list(wanted.stack.canonical),
            "payload": fetched.name,
            "bytes": fetched.bytes,
            "entries": fetched.entries,
            "digests": fetched.digests,
            "fetched": iso(now),
            "seconds": round(seconds, 3),
            "by": self._holder.by,
        }

    def _discard(self, area: str) -> None:
        """Remove a work area; what cannot be removed now is removed by `clean`, once we are gone."""
        with contextlib.suppress(OSError):
            self._fs.remove_tree(area)
