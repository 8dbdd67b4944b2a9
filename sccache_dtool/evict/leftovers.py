"""What crashes and kills leave behind, and how each piece is put away. `clean` does it, `doctor` reports it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from sccache_dtool.catalog.items import Copy
from sccache_dtool.disk import records
from sccache_dtool.disk.names import (
    LOCK,
    PROBE,
    SIGN,
    HolderName,
    Purpose,
    TrashName,
    WorkName,
    is_of_election,
    understood,
)
from sccache_dtool.errors import GONE, Expected
from sccache_dtool.evict import trash
from sccache_dtool.liveness import State
from sccache_dtool.oddity import Fate
from sccache_dtool.protocol import downloads, sessions, versions
from sccache_dtool.protocol.reaping import Judge
from sccache_dtool.protocol.store import Store

#: Seconds after which something counts as abandoned if only its age can tell.
OLD = 86_400.0

#: Names in `locks/`: a lock, flufl.lock's claims to it (``…|<host>|<pid>|<random>``), and the winner's sign.

#: Purposes of work areas that are returned to the trash, and never deleted: the only copy may be in them.
RESTORING = frozenset({Purpose.RESTORE, Purpose.RETURN})


class Leftover(NamedTuple):
    """Something that nobody will come back for."""

    path: str
    what: str
    put_away: Callable[[], object]  # safe to call twice, and at the same time as another's call


def _is_probe(name: str) -> bool:
    return name.startswith(PROBE)


class Leftovers:
    """Finds leftovers in one cache."""

    def __init__(self, store: Store, judge: Judge, *, purge_follows: bool = False, keep_downloads: bool = True) -> None:
        """`purge_follows`: a purge deletes what is in the trash or gets there, with many processes and in time.

        `keep_downloads`: interrupted downloads that can still be continued are not leftovers.
        """
        self._store = store
        self._judge = judge
        self._purge_follows = purge_follows
        self._keep_downloads = keep_downloads

    def find(self, copies: Iterable[Copy], works: Iterable[str]) -> Iterator[Leftover]:
        """All leftovers; `copies` is what a scan saw, and `works` what a listing of `tmp/` did.

        Both must be older than the judge: a newer work area's holder would be missing in its list.
        """
        busy: set[str] = set()
        for copy in copies:
            busy.update(held.lease.holder for held in copy.held if held.lease)
            if copy.closed:
                yield self._closed(copy)
        yield from self.work_areas(works)
        if not self._purge_follows:
            yield from self._half_removed()
        yield from self._gone_holders(busy)
        yield from self._probes()
        yield from self._sessions()
        yield from self._elections()

    def _closed(self, copy: Copy) -> Leftover:
        path = self._store.layout.generation(copy.key, str(copy.generation))

        def finish() -> None:
            trash.evict(self._store, copy.key, str(copy.generation))
            if not self._purge_follows:
                trash.purge(self._store, self._store.clock.wall())

        return Leftover(path, "a copy whose eviction was interrupted", finish)

    def work_areas(self, works: Iterable[str]) -> Iterator[Leftover]:
        """The leftovers in `tmp/`; `works` as for `find`."""
        for text in works:
            path = f"{self._store.layout.tmp}/{text}"
            work = WorkName.parse(text)
            if work is None or (work.purpose in RESTORING and TrashName.parse(work.of) is None):
                self._report(f"{self._store.layout.tmp}/{records.printable(text)}", "not a work area")
            elif work.purpose in RESTORING:
                if work.purpose == Purpose.RETURN or self._is_of_the_dead(work):
                    what = "a restore that was interrupted: its copy returns to the trash"
                    yield Leftover(path, what, partial(self._end_work, work, Purpose.RETURN, trash.give_back))
            elif work.purpose == Purpose.GOING or (self._is_of_the_dead(work) and not self._can_be_continued(work)):
                what = f"the work area of an interrupted {work.purpose}"
                yield Leftover(path, what, partial(self._end_work, work, Purpose.GOING, trash.discard_work))

    def _report(self, path: str, kind: str) -> None:
        self._store.report(path, kind, Fate.LEFT_ALONE)

    def _can_be_continued(self, work: WorkName) -> bool:
        """Whether it is a download that the next who wants the item goes on with: not damage, and not left for good."""
        if not self._keep_downloads and work.purpose != Purpose.GLOBUS:  # whose holder need not be who waits for it
            return False
        until = downloads.continuable_until(self._store, work)
        return until is not None and self._judge.now < until

    def _is_of_the_dead(self, work: WorkName) -> bool:
        return self._judge.holder(work.holder)[1].state is State.DEAD

    def _end_work(self, work: WorkName, begun: str, end: Callable[[Store, WorkName], object]) -> None:
        """End the work of the dead by `end`, whose purpose is `begun` once somebody has begun with that."""
        if work.purpose == begun or self._judge.revoke(work.holder):
            end(self._store, work)

    def _half_removed(self) -> Iterator[Leftover]:
        for name in trash.listing(self._store):
            if name.going or not name.keep_until:
                path = f"{self._store.layout.trash}/{name}"
                remove = partial(self._store.fs.remove_tree, path)
                yield Leftover(path, "an evicted copy that is still to be removed", remove)

    def _gone_holders(self, busy: set[str]) -> Iterator[Leftover]:
        """Revoked holders without leases. They are kept for a day, for those who want to know."""
        gone = self._store.layout.gone
        for name in understood(gone, self._store.fs.names(gone), HolderName.parse, "not a holder", self._store.log):
            path = f"{gone}/{name}"
            if name.id not in busy and self._is_old(path):
                yield Leftover(path, "a holder that was revoked", partial(self._store.fs.unlink, path))

    def _probes(self) -> Iterator[Leftover]:
        for text in self._store.fs.names(self._store.layout.holders):
            path = f"{self._store.layout.holders}/{text}"
            if _is_probe(text) and self._is_old(path):
                yield Leftover(path, "left by an interrupted listing", partial(self._store.fs.unlink, path))

    def _sessions(self) -> Iterator[Leftover]:
        """Sessions whose deletion was interrupted, and what is left of those that ended more than a day ago."""
        store, layout = self._store, self._store.layout
        for facts in sessions.listing(store):
            path = layout.session(facts.id)
            if facts.has_ended:
                finish = partial(self._finish_deletion, facts.id)
                yield Leftover(path, "a session whose deletion was interrupted", finish)
        for one in sessions.ended(store):
            path = f"{layout.ended_sessions}/{one}"
            if self._judge.now - one.end / 1000 > OLD:
                yield Leftover(path, "a session that has ended", partial(store.fs.remove_tree, path))
        for directory in (layout.sessions, *map(layout.session, sessions.ids(store))):
            with Expected(GONE):
                found = store.fs.names_if_any(directory)
                for text in (*filter(_is_probe, found), *versions.stale(found)):
                    path = f"{directory}/{text}"
                    if self._is_old(path):
                        yield Leftover(path, "left by an interrupted change", partial(store.fs.unlink, path))

    def _finish_deletion(self, session: str) -> None:
        if sessions.has_ended(self._store, session):  # the listing was only a hint
            sessions.delete(self._store, session)

    def _elections(self) -> Iterator[Leftover]:
        """Claims of flufl.lock are of use for seconds; a lock's time lies in the future while it is held."""
        found = self._store.fs.names(self._store.layout.locks)
        for text in found:
            path = f"{self._store.layout.locks}/{text}"
            if not is_of_election(text):
                self._report(f"{self._store.layout.locks}/{records.printable(text)}", "not a lock")
            elif self._is_directory(path):
                self._report(path, "a directory in the place of a lock")
            elif self._is_old(path) and not self._is_of_running(text, found):
                yield Leftover(path, "left by an election", partial(self._store.fs.unlink, path))

    def _is_of_running(self, sign: str, found: list[str]) -> bool:
        """Whether it is the sign of a winner whose lock is fresh: a download may last for days."""
        lock = f"{sign.partition(SIGN)[0]}{LOCK}"
        return SIGN in sign and lock in found and not self._is_old(f"{self._store.layout.locks}/{lock}")

    def _is_old(self, path: str) -> bool:
        """By the file system's clock where it is known; if this host's is wrong, only tidying is late or early."""
        now = self._judge.now
        with Expected(GONE):
            status = self._store.fs.lstat(path)
            return now - max(status.st_ctime, status.st_mtime) > OLD
        return False

    def _is_directory(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(self._store.fs.lstat(path).st_mode)
        except OSError:
            return False  # gone by now; or it cannot be removed, which is told then
