"""Fetching of an item that the cache does not have: one of the processes that want it fetches it, the others wait.

A complete generation becomes visible by one rename, with the fetcher's lease already in its gate. A second generation
that is published by accident is only a duplicate, and can be evicted.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from functools import partial

from sccache_dtool.catalog import items
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.clock import iso
from sccache_dtool.disk.names import DONE, FAILED, GATE, ITEM_FILE, Generation, OutcomeName, WorkName, unique
from sccache_dtool.errors import FULL, GONE, CacheError, LeaseLost, NoSpace, TimedOut, explain
from sccache_dtool.fetch import transfers, versions
from sccache_dtool.fetch.askers import asked_as
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.request import Request, Terms
from sccache_dtool.fetch.retry import GaveUp
from sccache_dtool.fetch.run import Fetched, fetch
from sccache_dtool.fetch.track import TakenOver, Track
from sccache_dtool.fetch.waiting import Waiter
from sccache_dtool.protocol import downloads, history
from sccache_dtool.protocol.downloads import FETCH, TAKEN
from sccache_dtool.protocol.election import Election
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Lease, Place
from sccache_dtool.protocol.store import Store


class Populator:
    """Fetches items for one holder."""

    def __init__(self, store: Store, holder: Holder, worker: Holder, progress: Progress) -> None:
        """`holder` gets the leases. `worker` is this process, whose work areas are removed once it has ended."""
        self._store = store
        self._fs, self._layout, self._clock = store.fs, store.layout, store.clock
        self._holder = holder
        self._worker = worker
        self._progress = progress

    def populate(
        self,
        request: Request,
        elect: Callable[[], Election],
        take_existing: Callable[[], Lease | None],
        terms: Terms,
    ) -> Lease:
        """A lease on the item, fetched by this process, or by another one within `terms.wait` seconds.

        `take_existing` takes a lease on the item if it is there. Raises TimedOut, FetchFailed or NoSpace, including
        those of another process whose fetch was waited for.
        """
        waiter = Waiter(self._store, self._holder, self._worker, request, terms)
        while True:
            election = elect()
            lease = waiter.wait(election, take_existing)
            if lease is not None:
                return lease
            try:
                items.refresh(self._store, request.key)
                lease = take_existing()
                return lease if lease is not None else self._fetch(request, election, take_existing, terms)
            except TakenOver:
                continue  # this process was silent for so long that another one fetches the item: wait for it
            finally:
                election.resign()

    def _fetch(
        self, request: Request, election: Election, take_existing: Callable[[], Lease | None], terms: Terms
    ) -> Lease:
        name = self._holder.next_lease()
        work = str(WorkName(self._worker.next_lease(), FETCH, request.key[:32]))
        area = f"{self._layout.tmp}/{work}"
        began, wall = self._clock.monotonic(), self._clock.wall()
        check_room = partial(_check_room, self._store, request.label, terms.make_room, (wall, work))
        track = Track(self._fs, area, self._progress, on_total=check_room)
        made = keep = interrupted = False
        try:
            aside = f"{self._layout.tmp}/{WorkName(self._worker.next_lease(), TAKEN, request.key[:32])}"
            taken = transfers.find_abandoned(self._store, request.key, aside)
            track.taken = taken.area if taken else None
            facts = {
                **self._identity(request),
                "by": self._holder.by,
                "began": wall,
                "sign": election.sign,
                "there": taken.bytes if taken else 0,
            }
            self._fs.mkdir(area, shared=self._layout.shared)
            made = True
            track.begin(facts, terms.size, shared=self._layout.shared)
            if terms.size is not None:
                check_room(terms.size)
            fetched = fetch(self._store, request, area, progress=self._progress, track=track, terms=terms)
            track.end()
            lease = take_existing()  # an election may be wrong: of two who fetch, the first to end publishes
            if lease is None:
                lease = self._publish(request, area, name, fetched, self._clock.monotonic() - began)
            self._record_outcome(request, name, track, wall, DONE, {"bytes": fetched.bytes})
            return lease
        except (TakenOver, CacheError, OSError) as error:
            interrupted = isinstance(error, GaveUp)
            keep = interrupted and track.keepable
            if made and self._is_taken_away(area):
                if self._holder.lost or self._worker.lost:
                    raise self._area_lost(request) from error
                if self._is_without_cache():
                    raise CacheError(f"the cache in {self._layout.root} was removed during the download") from error
                raise TakenOver from error
            failure = self._explain(request, error)
            if not isinstance(failure, TimedOut):  # of this process alone: others may wait longer
                self._record_outcome(request, name, track, wall, FAILED, _reasons(failure, error, request))
            raise failure from error
        except BaseException:
            interrupted, keep = True, track.keepable  # the next process that wants the item continues it
            raise
        finally:
            track.end()
            if not keep:
                self._discard(area)
            if track.taken is not None and (keep or not interrupted):  # otherwise it is still the only one
                self._discard(track.taken)

    def _is_taken_away(self, area: str) -> bool:
        """Whether the work area was renamed: by a successor, or by `clean` because this process was taken for dead.

        On NFS, a look at it may show for a minute what was there before. An attempt to remove it reaches the server,
        which refuses because the area is not empty.
        """
        try:
            self._fs.rmdir(area)
        except OSError as error:
            return error.errno in GONE
        return False

    def _is_without_cache(self) -> bool:
        try:
            self._fs.names(self._layout.tmp)
        except OSError as error:
            return error.errno in GONE
        return False

    def _area_lost(self, request: Request) -> LeaseLost:
        return LeaseLost(
            f"the work area for {request.label} was taken away: this process was taken for dead meanwhile",
            hint="use the item again",
        )

    def _explain(self, request: Request, error: Exception) -> CacheError:
        if isinstance(error, CacheError):
            return error
        if isinstance(error, OSError) and error.errno in FULL:
            return NoSpace(
                f"no space left in {self._layout.root} for {request.label}", hint="free space with: sc-dtool clean"
            )
        reason = explain(error) if isinstance(error, OSError) else str(error)
        return CacheError(f"cannot put {request.label} into the cache: {reason}")

    def _record_outcome(
        self, request: Request, name: str, track: Track, began: float, how: str, more: dict[str, object]
    ) -> None:
        now = self._clock.wall()
        facts = {
            **self._identity(request),
            "by": self._holder.by,
            "began": began,
            "bytes": track.bytes,
            "attempts": track.attempts,
            **more,
        }
        outcome = OutcomeName(request.key[:32], name, int(now * 1000), how)
        downloads.note_outcome(self._store, outcome, facts)

    def _identity(self, request: Request) -> dict[str, object]:
        return {"key": request.key, "label": request.name or request.label, "source": list(request.stack.canonical)}

    def _publish(self, request: Request, area: str, name: str, fetched: Fetched, seconds: float) -> Lease:
        now = self._clock.wall()
        version = versions.tag_of(fetched.versions, request.stack.chains) if request.bring is None else None
        took = int(seconds * 1000)
        generation = str(Generation(unique(), int(now), fetched.bytes, fetched.entries, took, version))
        place = Place.of(self._layout, request.key, generation, fetched.name)
        facts = self._facts(request, fetched, now, seconds).encode()
        self._fs.write_new(f"{area}/{ITEM_FILE}", facts, shared=self._layout.shared)
        self._strip(area)
        self._fs.mkdir(f"{area}/{GATE}", shared=self._layout.shared)
        self._fs.put_record(history.encode_lease(now, self._holder.by), f"{area}/{GATE}/{name}")
        self._fs.make_dirs(place.history, shared=self._layout.shared)
        try:
            self._fs.rename(area, self._layout.generation(request.key, generation))
        except OSError as error:
            if error.errno not in GONE or name not in self._fs.names(place.gate):
                raise  # otherwise the server has done it, and its reply was lost
        return Lease(self._store, self._holder, place, name)

    def _strip(self, area: str) -> None:
        """Remove from a complete work area the names that only showed its progress."""
        for text in self._fs.names(area):
            if transfers.is_for_show(text):
                self._fs.unlink(f"{area}/{text}")

    def _facts(self, request: Request, fetched: Fetched, now: float, seconds: float) -> ItemFacts:
        return ItemFacts(
            key=request.key,
            name=request.item_name,
            source=request.stack.canonical,
            payload=fetched.name,
            bytes=fetched.bytes,
            entries=fetched.entries,
            digests=fetched.digests,
            versions=[dict(fact) if fact else None for fact in fetched.versions],
            fetched=iso(now),
            seconds=round(seconds, 3),
            by=self._holder.by,
            dataset=request.dataset,
            relpath=request.relpath,
        )

    def _discard(self, area: str) -> None:
        """Remove a work area; what cannot be removed now is removed by `clean` once this process has ended."""
        with contextlib.suppress(OSError):
            self._fs.remove_tree(area)


def _check_room(
    store: Store, label: str, make_room: Callable[[int], int] | None, this: tuple[float, str], coming: int
) -> None:
    """Raise NoSpace at once, and not when the disk is full, if `coming` bytes do not fit beside earlier fetches."""
    free = store.fs.free_space(store.layout.root)
    if free is None:
        return  # the write that does not fit fails
    taken = transfers.reserved(store, this)
    missing = coming - (free - taken)
    if missing > 0 and make_room is not None:
        missing -= make_room(missing)
    if missing <= 0:
        return
    import humanize

    reserved = f", {humanize.naturalsize(taken)} of it reserved by running downloads" if taken else ""
    free = max(0, store.fs.free_space(store.layout.root) or 0)
    raise NoSpace(
        f"no space left for {label}, which needs {humanize.naturalsize(coming)}",
        details=[
            f"{store.layout.root}: {humanize.naturalsize(missing)} missing, {humanize.naturalsize(free)} free{reserved}"
        ],
        hint="free space with `sc-dtool clean`, or use --make-room to remove idle items"
        if make_room is None
        else "no more idle items can be removed; wait, or name another cache with -d",
    )


def _reasons(failure: CacheError, error: Exception, request: Request) -> dict[str, object]:
    """Why it failed, and which of the waiting processes would fail in the same way; see `waiting.py`."""
    quota = any(isinstance(one, OSError) and one.errno == errno.EDQUOT for one in (error, error.__cause__))
    return {
        "error": failure.message,
        "details": list(failure.details),
        "hint": failure.hint,
        "no_space": isinstance(failure, NoSpace) and not quota,  # a quota is one user's
        "shared": failure.shared,
        "asked_as": asked_as(request) if failure.shared else None,
    }
