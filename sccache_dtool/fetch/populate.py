"""Filling the cache with an item that is not there: one of all who want it fetches, the others wait for it.

What is fetched becomes visible by one rename of a complete generation, with the fetcher's lease already in its gate.
A second generation that is published by accident is only a duplicate, and can be evicted.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable

from sccache_dtool.catalog import items
from sccache_dtool.clock import iso
from sccache_dtool.disk import records
from sccache_dtool.disk.names import DONE, FAILED, GATE, ITEM_FILE, Generation, OutcomeName, WorkName, unique
from sccache_dtool.errors import FULL, GONE, CacheError, LeaseLost, NoSpace, TimedOut, explain
from sccache_dtool.fetch import slots, transfers, versions
from sccache_dtool.fetch.askers import asked_as
from sccache_dtool.fetch.context import Job
from sccache_dtool.fetch.errand import Errand
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.request import Terms, Wanted
from sccache_dtool.fetch.retry import GaveUp
from sccache_dtool.fetch.run import Fetched, fetch
from sccache_dtool.fetch.takeover import find_abandoned
from sccache_dtool.fetch.track import TakenOver, Track
from sccache_dtool.fetch.waiting import Waiter
from sccache_dtool.protocol import downloads, history
from sccache_dtool.protocol.downloads import FETCH, TAKEN
from sccache_dtool.protocol.election import Election
from sccache_dtool.protocol.leases import Lease, Place


class Populator:
    """Fetches items for one holder."""

    def __init__(self, errand: Errand, progress: Progress) -> None:
        self._errand = errand
        self._fs, self._layout, self._clock, self._holder, self._worker, self._proc, self._note = errand
        self._progress = progress

    def populate(
        self,
        wanted: Wanted,
        elect: Callable[[], Election],
        take_existing: Callable[[], Lease | None],
        terms: Terms,
    ) -> Lease:
        """A lease on the item, fetched by us, or by somebody else within `terms.wait` seconds.

        `take_existing` takes a lease on the item if it is there. Raises TimedOut, FetchFailed or NoSpace; also those
        of somebody else whose fetch we waited for.
        """
        waiter = Waiter(self._errand, wanted, terms)
        while True:
            election = elect()
            lease = waiter.wait(election, take_existing)
            if lease is not None:
                return lease
            try:
                items.refresh(self._fs, self._layout, wanted.key)
                lease = take_existing()
                return lease if lease is not None else self._fetch(wanted, election, take_existing, terms)
            except TakenOver:
                continue  # we were silent for so long that somebody else fetches it: wait for them
            finally:
                election.resign()

    def _fetch(
        self, wanted: Wanted, election: Election, take_existing: Callable[[], Lease | None], terms: Terms
    ) -> Lease:
        name = self._holder.next_lease()
        work = str(WorkName(self._worker.next_lease(), FETCH, wanted.key[:32]))
        area = f"{self._layout.tmp}/{work}"
        began, wall = self._clock.monotonic(), self._clock.wall()
        track = Track(
            self._fs,
            area,
            self._progress,
            on_total=lambda coming: self._check_room(wanted, coming, (wall, work), terms),
        )
        made = keep = interrupted = False
        try:
            aside = f"{self._layout.tmp}/{WorkName(self._worker.next_lease(), TAKEN, wanted.key[:32])}"
            taken = find_abandoned(self._fs, self._layout, wanted.key, aside, self._proc)
            track.taken = taken.area if taken else None
            facts = {
                **self._identity(wanted),
                "by": self._holder.by,
                "began": wall,
                "sign": election.sign,
                "there": taken.bytes if taken else 0,
            }
            self._fs.mkdir(area, shared=self._layout.shared)
            made = True
            track.begin(facts, terms.size, shared=self._layout.shared)
            if terms.size is not None:
                self._check_room(wanted, terms.size, (wall, work), terms)
            fetched = fetch(
                self._fs,
                wanted.stack,
                area,
                progress=self._progress,
                label=wanted.label,
                shared=self._layout.shared,
                clock=self._clock,
                track=track,
                rate=terms.rate,
                queue=lambda job: self._slot(job, terms),
                bring=wanted.bring,
                note=self._note,
            )
            track.end()
            lease = take_existing()  # an election may be wrong: of two who fetch, the first to end publishes
            if lease is None:
                lease = self._publish(wanted, area, name, fetched, self._clock.monotonic() - began)
            self._note_end(wanted, name, track, wall, DONE, {"bytes": fetched.bytes})
            return lease
        except (TakenOver, CacheError, OSError) as error:
            interrupted = isinstance(error, GaveUp)
            keep = interrupted and track.keepable
            if made and self._is_taken_away(area):
                if self._holder.lost or self._worker.lost:
                    raise self._lost(wanted) from error
                if self._is_without_cache():
                    raise CacheError(f"the cache in {self._layout.root} was removed during the download") from error
                raise TakenOver from error
            failure = self._explain(wanted, error)
            if not isinstance(failure, TimedOut):  # our own patience: others may have more, and fetch it
                self._note_end(wanted, name, track, wall, FAILED, _reasons(failure, error, wanted))
            raise failure from error
        except BaseException:
            interrupted, keep = True, track.keepable  # whoever wants the item next goes on with it
            raise
        finally:
            track.end()
            if not keep:
                self._discard(area)
            if track.taken is not None and (keep or not interrupted):  # else it is still all that there is
                self._discard(track.taken)

    def _slot(self, job: Job, terms: Terms) -> contextlib.AbstractContextManager[None]:
        return slots.slot(self._clock, terms.wait, lambda: self._queued(job))

    def _queued(self, job: Job) -> None:
        if job.track is not None:
            job.track.queue()
        self._note("waiting for your other downloads on this host to end")

    def _check_room(self, wanted: Wanted, coming: int, ours: tuple[float, str], terms: Terms) -> None:
        """Raise NoSpace at once, and not when the disk is full, if `coming` bytes do not fit beside earlier fetches."""
        free = self._fs.free_space(self._layout.root)
        if free is None:
            return  # then the disk says it when it is full
        taken = transfers.reserved(self._fs, self._layout, ours, self._proc)
        missing = coming - (free - taken)
        if missing > 0 and terms.make_room is not None:
            missing -= terms.make_room(missing)
        if missing <= 0:
            return
        import humanize

        reserved = f", {humanize.naturalsize(taken)} of it reserved by running downloads" if taken else ""
        raise NoSpace(
            f"no space left for {wanted.label}, which needs {humanize.naturalsize(coming)}",
            details=[
                f"{self._layout.root}: {humanize.naturalsize(missing)} missing, "
                f"{humanize.naturalsize(max(0, self._fs.free_space(self._layout.root) or 0))} free{reserved}"
            ],
            hint="free space with `sc-dtool clean`, or use --make-room to remove idle items",
        )

    def _is_taken_away(self, area: str) -> bool:
        """Whether our work area was renamed: by a successor, or by `clean` because we were taken for dead.

        On NFS a look at it may show for a minute what was there before. To remove it, the server is asked, and refuses
        because there is something in it.
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

    def _lost(self, wanted: Wanted) -> LeaseLost:
        return LeaseLost(
            f"the work area for {wanted.label} was removed, because another process considered this one dead",
            hint="use the item again",
        )

    def _explain(self, wanted: Wanted, error: Exception) -> CacheError:
        if isinstance(error, CacheError):
            return error
        if isinstance(error, OSError) and error.errno in FULL:
            return NoSpace(
                f"no space left in {self._layout.root} for {wanted.label}", hint="free space with: sc-dtool clean"
            )
        reason = explain(error) if isinstance(error, OSError) else str(error)
        return CacheError(f"cannot add {wanted.label} to the cache: {reason}")

    def _note_end(
        self, wanted: Wanted, name: str, track: Track, began: float, how: str, more: dict[str, object]
    ) -> None:
        now = self._clock.wall()
        facts = {
            **self._identity(wanted),
            "by": self._holder.by,
            "began": began,
            "bytes": track.bytes,
            "attempts": track.attempts,
            **more,
        }
        outcome = OutcomeName(wanted.key[:32], name, int(now * 1000), how)
        downloads.note_outcome(self._fs, self._layout, outcome, facts)

    def _identity(self, wanted: Wanted) -> dict[str, object]:
        return {"key": wanted.key, "label": wanted.name or wanted.label, "source": list(wanted.stack.canonical)}

    def _publish(self, wanted: Wanted, area: str, name: str, fetched: Fetched, seconds: float) -> Lease:
        now = self._clock.wall()
        version = versions.tag_of(fetched.versions, wanted.stack.chains) if wanted.bring is None else None
        took = int(seconds * 1000)
        generation = str(Generation(unique(), int(now), fetched.bytes, fetched.entries, took, version))
        place = Place.of(self._layout, wanted.key, generation, fetched.name)
        facts = records.encode_document(self._facts(wanted, fetched, now, seconds))
        self._fs.write_new(f"{area}/{ITEM_FILE}", facts, shared=self._layout.shared)
        self._strip(area)
        self._fs.mkdir(f"{area}/{GATE}", shared=self._layout.shared)
        self._fs.put_record(history.encode_lease(now, self._holder.by), f"{area}/{GATE}/{name}")
        self._fs.make_dirs(place.history, shared=self._layout.shared)
        try:
            self._fs.rename(area, self._layout.generation(wanted.key, generation))
        except OSError as error:
            if error.errno not in GONE or name not in self._fs.names(place.gate):
                raise  # otherwise the server has done it, and its reply was lost
        return Lease(self._fs, self._clock, self._holder, place, name)

    def _strip(self, area: str) -> None:
        """Remove from a complete work area what was there only to be shown while it was worked in."""
        for text in self._fs.names(area):
            if transfers.is_for_show(text):
                self._fs.unlink(f"{area}/{text}")

    def _facts(self, wanted: Wanted, fetched: Fetched, now: float, seconds: float) -> dict[str, object]:
        return {
            "format": 1,
            "key": wanted.key,
            "name": wanted.called,
            "source": list(wanted.stack.canonical),
            "payload": fetched.name,
            "bytes": fetched.bytes,
            "entries": fetched.entries,
            "digests": fetched.digests,
            "versions": [dict(fact) if fact else None for fact in fetched.versions],
            "fetched": iso(now),
            "seconds": round(seconds, 3),
            "by": self._holder.by,
            **(wanted.notes or {}),
        }

    def _discard(self, area: str) -> None:
        """Remove a work area; what cannot be removed now is removed by `clean`, once we are gone."""
        with contextlib.suppress(OSError):
            self._fs.remove_tree(area)


def _reasons(failure: CacheError, error: Exception, wanted: Wanted) -> dict[str, object]:
    """Why it failed, and for whom of those who wait that is their own failure; see `waiting.py`."""
    quota = any(isinstance(one, OSError) and one.errno == errno.EDQUOT for one in (error, error.__cause__))
    return {
        "error": failure.message,
        "details": list(failure.details),
        "hint": failure.hint,
        "no_space": isinstance(failure, NoSpace) and not quota,  # a quota is one user's
        "shared": failure.shared,
        "asked_as": asked_as(wanted) if failure.shared else None,
    }
