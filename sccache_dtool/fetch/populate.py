"""Fetching of an item that the cache does not have: one of the processes that want it fetches it, the others wait.

A complete generation becomes visible by one rename, with the fetcher's lease already in its gate. A second generation
that is published by accident is only a duplicate, and can be evicted.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.clock import iso
from sccache_dtool.disk.names import DONE, FAILED, GATE, ITEM_FILE, Generation, OutcomeName, Purpose, WorkName, unique
from sccache_dtool.errors import FULL, GONE, CacheError, InUse, LeaseLost, NoSpace, TimedOut, explain
from sccache_dtool.fetch import transfers
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.request import Request, Terms
from sccache_dtool.fetch.retry import GaveUp
from sccache_dtool.fetch.run import Fetched, fetch
from sccache_dtool.fetch.track import TakenOver, Track
from sccache_dtool.fetch.waiting import Waiter, asked_as
from sccache_dtool.protocol import downloads, history
from sccache_dtool.protocol.election import Election
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Lease, Place
from sccache_dtool.protocol.store import Store

if TYPE_CHECKING:
    from sccache_dtool.fetch.tier import Tier


class Populator(NamedTuple):
    """Fetches an item for one holder."""

    store: Store
    holder: Holder  # gets the lease
    worker: Holder  # this process, whose work areas are removed once it has ended
    request: Request
    terms: Terms
    progress: Progress
    elect: Callable[[], Election]
    take_existing: Callable[[], Lease | None]  # takes a lease on the item if it is there
    tier: Tier | None = None  # another cache that has, or fetches, the item for this one

    def populate(self) -> Lease:
        """A lease on the item, fetched by this process, or by another one within `terms.wait` seconds.

        Raises TimedOut, FetchFailed or NoSpace, including those of another process whose fetch was waited for.
        """
        waiter = Waiter(self.store, self.holder, self.worker, self.request, self.terms, self.progress)
        while True:
            election = self.elect()
            lease = waiter.wait(election, self.take_existing)
            if lease is not None:
                return lease
            try:
                items.refresh(self.store, self.request.key)
                return self.take_existing() or self._fetch(election)
            except TakenOver:
                continue  # this process was silent for so long that another one fetches the item: wait for it
            finally:
                election.resign()

    def _fetch(self, election: Election) -> Lease:
        store, request, terms = self.store, self.request, self.terms
        fs, layout, clock = store.fs, store.layout, store.clock
        name = self.holder.next_lease()
        work = str(WorkName(self.worker.next_lease(), Purpose.FETCH, request.key[:32]))
        area = f"{layout.tmp}/{work}"
        began, wall = clock.monotonic(), clock.wall()
        check_room = partial(_check_room, store, request.label, terms.make_room, (wall, work))
        limit = terms.limit if request.stack.is_object else None

        def on_total(coming: int) -> None:
            if limit is not None:
                limit(coming)
            check_room(coming)

        track = Track(fs, area, self.progress, on_total=on_total)
        facts: dict[str, Any] = {
            "key": request.key,
            "label": request.name or request.label,
            "source": list(request.stack.canonical),
            **self.holder.facts,
            "holder": self.holder.id,
            "began": wall,
        }

        def note_outcome(how: str, more: dict[str, object]) -> None:
            outcome = OutcomeName(request.key[:32], name, int(clock.wall() * 1000), how)
            known = {"bytes": track.bytes, "total": track.total, "attempts": track.attempts, "message": track.message}
            downloads.note_outcome(store, outcome, {**facts, **known, **more})

        made = keep = interrupted = False
        try:
            aside = f"{layout.tmp}/{WorkName(self.worker.next_lease(), Purpose.TAKEN, request.key[:32])}"
            taken = transfers.find_abandoned(store, request.key, aside)
            track.taken = taken.area if taken else None
            fs.mkdir(area, shared=layout.shared)
            made = True
            there = taken.bytes if taken else 0
            track.begin({**facts, "sign": election.sign, "there": there}, terms.size, shared=layout.shared)
            if terms.size is not None:
                check_room(terms.size)
            if self.tier is None:
                fetched = fetch(store, request, area, progress=self.progress, track=track, terms=terms)
            else:
                fetched = self.tier.fetch(store, area, track, terms)
            track.end()
            lease = self.take_existing()  # an election may be wrong: of two who fetch, the first to end publishes
            if lease is None:
                lease = self._publish(area, name, fetched, clock.monotonic() - began)
            note_outcome(DONE, {"bytes": fetched.bytes})
            return lease
        except (TakenOver, CacheError, OSError) as error:
            interrupted = isinstance(error, GaveUp)
            keep = interrupted and track.keepable
            if made and transfers.is_taken_away(fs, area):
                if self.holder.lost or self.worker.lost:
                    raise LeaseLost(
                        f"the work area for {request.label} was removed, "
                        "because another process considered this one dead",
                        hint="use the item again",
                    ) from error
                if self._is_without_cache():
                    raise CacheError(f"the cache in {layout.root} was removed during the download") from error
                raise TakenOver from error
            failure = self._explain(error)
            if not isinstance(failure, TimedOut):  # of this process alone: others may wait longer
                note_outcome(FAILED, _reasons(failure, error, request))
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

    def _is_without_cache(self) -> bool:
        try:
            self.store.fs.names(self.store.layout.tmp)
        except OSError as error:
            return error.errno in GONE
        return False

    def _explain(self, error: Exception) -> CacheError:
        if isinstance(error, CacheError):
            return error
        root, label = self.store.layout.root, self.request.label
        if isinstance(error, OSError) and error.errno in FULL:
            return NoSpace(
                f"no space left in {root} for {label}", hint=f"free space with: {self.store.command('clean')}"
            )
        reason = explain(error) if isinstance(error, OSError) else str(error)
        return CacheError(f"cannot put {label} into the cache: {reason}")

    def _publish(self, area: str, name: str, fetched: Fetched, seconds: float) -> Lease:
        fs, layout, request, now = self.store.fs, self.store.layout, self.request, self.store.clock.wall()
        took = int(seconds * 1000)
        generation = str(Generation(unique(), int(now), fetched.bytes, fetched.entries, took, fetched.version))
        place = Place.of(layout, request.key, generation, fetched.name)
        facts = ItemFacts(
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
            by=self.holder.by,
            dataset=request.dataset,
            relpath=request.relpath,
        )._replace(**fetched.noted)
        fs.write_new(f"{area}/{ITEM_FILE}", facts.encode(), shared=layout.shared)
        for text in fs.names(area):
            if transfers.only_shows_progress(text):
                fs.unlink(f"{area}/{text}")
        fs.mkdir(f"{area}/{GATE}", shared=layout.shared)
        fs.put_record(history.encode_lease(now, self.holder.by), f"{area}/{GATE}/{name}")
        fs.make_dirs(place.history, shared=layout.shared)
        try:
            fs.rename(area, layout.generation(request.key, generation))
        except OSError as error:
            if error.errno not in GONE or name not in fs.names(place.gate):
                raise  # otherwise the server has done it, and its reply was lost
        return Lease(self.store, self.holder, place, name)

    def _discard(self, area: str) -> None:
        """Remove a work area; what cannot be removed now is removed by `clean` once this process has ended."""
        with contextlib.suppress(OSError):
            self.store.fs.remove_tree(area)


def _check_room(
    store: Store, label: str, make_room: Callable[[int], int] | None, this: tuple[float, str], coming: int
) -> None:
    """Raise NoSpace at once, and not when the disk is full, if `coming` bytes do not fit beside earlier fetches."""
    free = store.fs.free_space(store.layout.root)
    if free is None:
        return  # the write that does not fit fails
    taken = transfers.reserved(store, this)
    missing = coming - (free - taken)
    cleaner: list[str] = []
    if missing > 0 and make_room is not None:
        try:
            missing -= make_room(missing)
        except InUse as error:
            cleaner = [error.message, *error.details]
    if missing <= 0:
        return
    import humanize

    reserved = f", {humanize.naturalsize(taken)} of it reserved by running downloads" if taken else ""
    free = max(0, store.fs.free_space(store.layout.root) or 0)
    there = f"{humanize.naturalsize(free)} free{reserved}"
    raise NoSpace(
        f"no space left for {label}, which needs {humanize.naturalsize(coming)}",
        details=[
            f"{store.layout.root}: {humanize.naturalsize(missing)} missing, {there}",
            *cleaner,
        ],
        hint=f"free space with `{store.command('clean')}`, or use --make-room to remove idle items"
        if make_room is None
        else "wait longer with --wait, so that this command can clean afterwards"
        if cleaner
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
