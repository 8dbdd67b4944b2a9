"""Where cleaners and keepers stand: whom they judge, and how only one of them is at work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from sccache_dtool.catalog import items
from sccache_dtool.catalog import loose as loose_files
from sccache_dtool.catalog.items import Item
from sccache_dtool.catalog.leftover import Leftover
from sccache_dtool.catalog.loose import LooseFiles
from sccache_dtool.errors import FULL, GONE, InUse
from sccache_dtool.evict import loose_removal
from sccache_dtool.evict.leftovers import Leftovers
from sccache_dtool.fallback import do_without
from sccache_dtool.liveness import caller
from sccache_dtool.policy.config import Config
from sccache_dtool.pool import Pool
from sccache_dtool.protocol.election import Election, make_election
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Held
from sccache_dtool.protocol.reaping import Judge, Judged, Reaped, open_judge, reap
from sccache_dtool.protocol.store import Store


class Post:
    """What cleaners and keepers have in common."""

    def __init__(
        self,
        store: Store,
        settings: Config,
        pool: Callable[[], Pool] = Pool,
    ) -> None:
        self._store = store
        self._fs, self._layout, self._clock, self._proc = store.fs, store.layout, store.clock, store.proc
        self._warn: Callable[[str], None] = store.log.warning
        self._settings = settings  # each is read where it is needed: one that is wrong stops nothing else
        self._pool = pool

    def judge(self, *, glance: bool = False, dry_run: bool = False) -> AbstractContextManager[Judge]:
        """See `reaping.open_judge`."""
        return open_judge(self._store, glance=glance, dry_run=dry_run)

    def judged(self, held: Iterable[Held]) -> list[Judged]:
        """Leases with what can be said of them; writes nothing into the cache."""
        listed = list(held)
        with self.judge(glance=True) as judge:
            judge.expect({one.lease.holder for one in listed if one.lease})
            return [judge.lease(one) for one in listed]

    def path_of(self, held: Held) -> str:
        """Where a lease is."""
        return f"{held.gate(self._layout)}/{held.name}"

    def election(self, name: str) -> Election:
        """An election in which this process stands; processes that are proved dead are passed over at once."""
        return make_election(self._store, name)

    def _reap(
        self, judge: Judge, found: Iterable[Item], *, dry_run: bool, everybody: bool = True, also: Collection[str] = ()
    ) -> Reaped:
        held = [one for item in found for one in item.held]
        reaped = reap(self._store, judge, held, dry_run=dry_run, everybody=everybody, also=also)
        for failure in reaped.failed:
            self._warn(failure)
        return reaped

    def _unsettled(self) -> list[Item]:
        """Items with leases, or with copies whose eviction was interrupted; their finished uses are not counted."""
        with self._pool() as pool:
            parts = items.survey(self._store, pool, items.unsettled, uses=False)
            return [item for part in parts for item in part]

    def _leftovers(self, judge: Judge, *, purge_follows: bool = False, keep_downloads: bool = True) -> Leftovers:
        return Leftovers(
            self._store,
            judge,
            purge_follows=purge_follows,
            keep_downloads=keep_downloads,
        )

    def loose(self) -> LooseFiles:
        """What dtool left in the cache."""
        with self._pool() as pool:
            return self._loose(pool)

    def _loose(self, pool: Pool) -> LooseFiles:
        now = self._clock.wall()
        return loose_files.scan(self._store, now, pool, self._settings.dtool_directories)

    def _of_dtool(self, left: LooseFiles, now: float | None) -> Iterator[Leftover]:
        return loose_removal.leftovers(self._store, left, self._clock.wall() if now is None else now)

    @contextmanager
    def _at_work(self) -> Iterator[Holder]:
        """A holder for work areas of ours, so that nobody takes them for abandoned."""
        owner = caller.program_owner(self._proc)
        holder = Holder(self._store, owner, self._settings.heartbeat_ttl)
        try:
            with holder.beating():
                yield holder
        finally:
            holder.retire()

    @contextmanager
    def _at_work_if_room(self) -> Iterator[Holder | None]:
        """As `_at_work`; None where that is refused, as on a full disk: items can be evicted all the same."""
        with ExitStack() as entered:
            holder = None
            try:
                holder = entered.enter_context(self._at_work())
            except OSError as error:
                if error.errno in GONE:
                    raise
                if error.errno not in FULL:
                    do_without(f"this cleaning is not recorded, and the history is not compacted ({error.strerror})")
            yield holder

    @contextmanager
    def _elected(self) -> Iterator[None]:
        election = self.election("clean")
        if not election.poll():
            winner = election.winner() or "an unknown process"
            raise InUse(
                f"another cleaner is running in {self._layout.root}",
                details=[winner],
                hint="nothing was done; the other cleaner does the work",
            )
        try:
            yield
        finally:
            election.resign()
