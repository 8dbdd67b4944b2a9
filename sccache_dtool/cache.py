"""The public class: everything that the command line and other programs do with a cache goes through `Cache`.

It connects the parts, and decides nothing that a lower layer can decide. Its methods are in the order in which they are
needed during a day: set up, use, release, find, inspect, clean, repair.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeVar

from sccache_dtool import find, forking, release
from sccache_dtool.acquire import Acquirer, attempts
from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Copy, Item, Sum
from sccache_dtool.clock import Clock
from sccache_dtool.disk import names, root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import CleaningName, Generation, Layout, PinName, TrashName
from sccache_dtool.disk.root import choose as choose_root
from sccache_dtool.errors import FULL, CacheError, InUse, LeaseLost, NoCache, NoSpace, UsageError, explain
from sccache_dtool.fetch import versions
from sccache_dtool.fetch.freshness import Freshness
from sccache_dtool.fetch.request import DatasetRequest, Request, Stack, Terms
from sccache_dtool.fetch.resolve import one_item, parse_request
from sccache_dtool.find import Named
from sccache_dtool.liveness import caller
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.liveness.process import Proc
from sccache_dtool.liveness.record import Membership
from sccache_dtool.log import Log, Silent
from sccache_dtool.policy import config
from sccache_dtool.protocol import leases, program
from sccache_dtool.protocol.holders import Holder, HolderList
from sccache_dtool.protocol.leases import Lease, Place
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple
from sccache_dtool.units import check_lifetime

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sccache_dtool.catalog.facts import ItemFacts
    from sccache_dtool.catalog.holdings import Holding
    from sccache_dtool.catalog.loose import Loose, LooseDirectory
    from sccache_dtool.doctor import Checked, Finding
    from sccache_dtool.evict.audit import CleaningRecord
    from sccache_dtool.evict.cleaning import Cleaner, CleanOptions, Surveyed
    from sccache_dtool.evict.execution import Cleaned
    from sccache_dtool.evict.plan_file import Planned
    from sccache_dtool.evict.trash import Purged
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.fetch.transfers import Transfer
    from sccache_dtool.lots.lookup import Lookup
    from sccache_dtool.lots.model import Lots, Usage
    from sccache_dtool.lots.rights import LotRights
    from sccache_dtool.lots.table import Table as LotTable
    from sccache_dtool.markers.archive import Archive
    from sccache_dtool.markers.files import Files, Identifier
    from sccache_dtool.markers.marker import Marker
    from sccache_dtool.metrics import Saved, Snapshot
    from sccache_dtool.policy.rules import Plan, Rules
    from sccache_dtool.policy.shares import Shares
    from sccache_dtool.policy.thresholds import Trashed
    from sccache_dtool.policy.totals import Spared, Sums
    from sccache_dtool.pool import Pool
    from sccache_dtool.protocol.history import Use
    from sccache_dtool.protocol.reaping import Judged, Reaped
    from sccache_dtool.protocol.sessions import Deleted, SessionFacts
    from sccache_dtool.protocol.sessions import Entry as SessionEntry
    from sccache_dtool.sets.handle import Access, DataSet, Session
    from sccache_dtool.sets.holding import HeldSet, Released
    from sccache_dtool.sets.locks import Lock
    from sccache_dtool.sets.manifest import Entry

Taken = TypeVar("Taken")

#: One for the whole process, so that all `Cache` objects of one root share its holder.
_FILE_SYSTEM = FileSystem()


class UseOptions(NamedTuple):
    """How a lease for somebody else is taken, and how an item is fetched for it; see `Cache.hold`."""

    ttl: float | None = None  # lifetime of the holder in seconds; None: that of the cache's settings
    wait: float | None = None  # seconds to wait for another process's download; None: as the settings say
    size: int | None = None  # bytes that the item needs; room for them is reserved while it is fetched
    rate: float | None = None  # bytes per second at most
    make_room: bool = False  # whether idle items may be evicted for it
    max_age: float | None = None  # ask the source if the copy is older, in seconds (0: always; None: never)


_DEFAULTS = UseOptions()


class Overview(NamedTuple):
    """What a glance at a cache shows."""

    root: Path
    id: str
    holders: int
    fetching: int  # running downloads
    fetches: tuple[Transfer, ...]  # these
    continuable: int  # interrupted downloads that the next process to want the item continues
    trashed: int  # evicted copies not yet deleted
    free: int | None  # bytes that can still be written; None: the file system does not report it


class Cache:
    """A cache: one directory on a file system that all its users share.

    Every method may raise CacheError, whose `hint` says what to do, or OSError for what the file system refuses. All
    but `use`, `hold`, `enter`, `init` and those that say otherwise raise NoCache if the directory is not a cache. What
    is damaged is skipped and logged as a warning of the logger `sccache_dtool`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        upstream: str | os.PathLike[str] | None = None,
        on_lost: Callable[[LeaseLost], None] | None = None,
        progress: Progress | None = None,
        may_hold_data: bool = False,
        parents: bool = False,
        jobs: int | None = 1,
        on_scan: Callable[[int, int], None] | None = None,
        executor: Executor | None = None,
        fs: FileSystem = _FILE_SYSTEM,
        clock: Clock | None = None,
        proc: Proc | None = None,
    ) -> None:
        """Nothing is touched before the first call.

        `root`: the cache's directory, in which a leading ``~`` means your home (default: the one that `sc-dtool` uses,
        which is dtool's; UsageError is raised if its setting is wrong). `upstream`: the root of another cache, from
        which missing items are copied, instead of fetching them (default: what `config.toml` says; empty: none).
        `on_lost`: called from a thread if the leases of this program were revoked. `progress`: shows downloads.
        `may_hold_data`: set a cache up on first use even if there are files already, as in dtool's own cache directory;
        `parents`: even if directories above it are missing, which are then made. `jobs`: how many look-ups may run at a
        time (None: as many as is good), in threads or, if this program has none, in forked processes. `on_scan`: called
        with how many of how many parts of a scan are done. `executor`: shares large scans and removals with this
        process, such as a ProcessPoolExecutor, or that of MPI or Dask. `fs`, `clock` and `proc` are for tests.
        """
        if root is None:
            choice = choose_root(None, os.environ)
            root, may_hold_data, parents = choice.path, choice.may_hold_data, choice.parents
        self._layout = Layout(os.path.expanduser(root))
        self._upstream = os.path.abspath(os.path.expanduser(upstream)) if upstream else None if upstream is None else ""
        self._below: tuple[Cache, ...] = ()  # whose upstream this one is
        self._fs = fs
        self._clock = clock or Clock()
        self._proc = proc or Proc()
        self._log = Log()
        self._on_lost = on_lost
        self._progress = progress
        self._may_hold_data = may_hold_data
        self._parents = parents
        self._jobs = jobs
        self._on_scan = on_scan
        self._executor = executor
        self._store: Store | None = None
        self._permissions_checked = False
        self._config: config.Config | None = None
        self._archive: tuple[object, Archive] | None = None  # of this process
        self._program: program.Program | None = None
        self._known: dict[tuple[object, ...], tuple[Place, Stack]] = {}

    # -- setting up --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def root(self) -> Path:
        """The cache's directory, absolute. It need not be there."""
        from pathlib import Path  # loaded where one is wanted: a short command does without

        return Path(self._layout.root)

    def init(self, parents: bool = True) -> bool:
        """Set the cache up; False if it was one already. Raises UsageError where there must be none.

        `parents`: make missing directories above it, too; without, NoCache is raised for these.
        """
        made = root.set_up(self._fs, self._layout, parents=parents)
        self._check_permissions()
        return made

    @property
    def store(self) -> Store:
        """What the functions of the package work on. Nothing is written or deleted before the directory is checked."""
        if self._store is None:
            id = root.check(self._fs, self._layout)
            self._store = Store(self._fs, self._layout, self._clock, self._proc, id, self._log)
        return self._store

    def check(self) -> str:
        """The cache's id."""
        return self.store.id

    @property
    def settings(self) -> config.Config:
        """What `config.toml` says, read once. The directory need not be a cache yet."""
        if self._config is None:
            self._config = config.load(self._fs, self._layout, self._log)
        return self._config

    def lines_of_settings(self) -> dict[tuple[str, str], int]:
        """The line of `config.toml` that each setting in it begins in, by table and key. For display only."""
        try:
            return config.lines(self._fs.read_text(self._layout.config_file))
        except OSError:
            return {}

    @functools.cached_property
    def upstream(self) -> Cache | None:
        """The cache from which missing items are copied; None if there is none. Nothing is touched."""
        path = self.settings.fetch_upstream if self._upstream is None else self._upstream
        if not path:
            return None
        upstream = Cache(
            path,
            on_lost=self._on_lost,
            progress=self._progress,
            jobs=self._jobs,
            fs=self._fs,
            clock=self._clock,
            proc=self._proc,
        )
        upstream._below = (*self._below, self)
        return upstream

    def tiers(self) -> Iterator[Cache]:
        """This cache, its upstream, and so on: where leases of those who use this cache may be."""
        yield self
        if self._upstream is None and "fetch" in self.settings.faults:
            return  # said when something is fetched
        upstream = self.upstream
        if upstream is not None and upstream._layout.root not in [cache._layout.root for cache in upstream._below]:
            yield from upstream.tiers()

    def _open_upstream(self) -> Cache | None:
        """The upstream, once it is known to be a cache. It is not set up here: its file system may not be mounted.

        Raises NoCache, or UsageError for a cache that would be its own upstream.
        """
        from sccache_dtool.fetch.patience import within

        upstream = self.upstream
        if upstream is None:
            return None
        where = f"{upstream._layout.root}, the upstream of {self._layout.root},"
        hint = f"correct --upstream, ${root.UPSTREAM}, or [fetch] upstream in {self._layout.config_file}"
        try:
            otherwise = "how long the upstream may take to answer is not limited"
            store = within(versions.PATIENCE, upstream._check_permissions, otherwise)
        except (NoCache, OSError) as error:
            why = error.message if isinstance(error, NoCache) else explain(error)
            hint = f"mount its file system, or {hint}; to do without it: --upstream ''"
            raise NoCache(f"{where} cannot be used: {why}", hint=hint) from error
        below = [cache._store for cache in upstream._below]
        if store.id in [one.id for one in below if one is not None]:
            raise UsageError(f"{where} is the same cache, or copies from it", hint=hint)
        return upstream

    def or_upstream(self, action: Callable[[Cache], Taken]) -> Taken:
        """`action` on this cache or, if there is no room for what the upstream has, on the upstream."""
        try:
            return action(self)
        except (NoSpace, OSError) as error:
            upstream = self.upstream_after(error)
        return upstream.or_upstream(action)

    def upstream_after(self, error: NoSpace | OSError) -> Cache:
        """The upstream, with a note, if an error says that there is no room here. Otherwise the error is raised."""
        if error.of_upstream if isinstance(error, NoSpace) else error.errno not in FULL:
            raise error
        upstream = self._open_upstream()
        if upstream is None:
            raise error
        why = error.message if isinstance(error, NoSpace) else explain(error)
        self._log.note(f"{why} ({self._layout.root}); using the item in the upstream cache {upstream._layout.root}")
        return upstream

    @contextlib.contextmanager
    def lend(self, request: Request, options: UseOptions) -> Iterator[Lease]:
        """A lease of this process, while another cache copies the item."""
        with contextlib.ExitStack() as held:

            def take(cache: Cache) -> Lease:
                worker = program.worker(cache._store_for_use(), cache.settings.heartbeat_ttl)
                lease = cache.acquire(held.enter_context(worker), request, options)
                held.callback(lease.give_back)
                return lease

            yield self.or_upstream(take)

    def _store_for_use(self, *wanted: Request | DatasetRequest) -> Store:
        """For `use`: a new or empty directory, or dtool's own, becomes a cache on first need.

        `wanted`: what will be fetched. If that is a local path that is mistyped, no cache is set up.
        """
        if self._store is None:
            try:
                self._check_permissions()
            except NoCache:
                if self._may_hold_data or root.is_empty(self._fs, self._layout.root):
                    for one in wanted:
                        if isinstance(one, Request):
                            from sccache_dtool.fetch.sources import refuse_missing

                            refuse_missing(one)
                    if self.init(self._parents):
                        self._log.notice(f"set up a new cache in {self._layout.root}")
                else:
                    return self.store  # checked once more: another process may have set it up since
        return self.store

    def _check_permissions(self) -> Store:
        """Warn, once, of a cache in which everybody may put what its users read."""
        store = self.store
        if not self._permissions_checked:
            self._permissions_checked = True
            for path in root.open_to_all(store.fs, store.layout):
                store.log.warning(
                    f"{path}: every user can create and delete files here; share it with a group instead (chmod o-w)"
                )
        return store

    def _pool(self) -> Pool:
        from sccache_dtool.pool import Pool

        return Pool(self._jobs, self._on_scan, self._executor)

    # -- using -------------------------------------------------------------------------------------------------------

    def use(
        self,
        source: str | os.PathLike[str] | None = None,
        *steps: str,
        name: str | None = None,
        refresh: bool = False,
        max_age: float | None = None,
    ) -> Lease:
        """A lease on an item, fetched first if it is not there; held by this process until released.

        `source` is a path or URL and `steps` are what is done with it, such as ``"sha256:…", "tar"``. `name` names
        the item; a name without a source is a pure reference count, on an empty directory. The lease is a context
        manager whose value is the path.

        A local source is looked at, and a copy of another version is not used. Others are asked only if `refresh` is
        true, or the copy is older than `max_age` seconds. Then the copy is used if the source says that it has not
        changed, and FetchFailed is raised if it cannot be asked.

        Raises UsageError, FetchFailed, NoSpace, or TimedOut when somebody else fetches it for longer than
        `settings.fetch_wait`. An item that this process has used before costs one file-system call, and a look at a
        local source.
        """
        words = (source, *steps, name)
        if refresh or max_age is not None:
            if isinstance(max_age, str):
                raise UsageError(
                    f"max_age is {max_age!r}, which is not a number", hint="give seconds, such as 86_400 for one day"
                )
            return self._use_slowly(words, 0.0 if refresh else max_age)
        place, stack = self._known.get(words, _UNKNOWN)
        store, member = self._store, self._program
        if store and place and member and member.holder.usable and _is_current(place, stack):
            lease = leases.take(store, member.holder, place)
            if lease is not None and member.is_valid(lease):
                return lease
        return self._use_slowly(words)

    def _use_slowly(self, words: tuple[object, ...], max_age: float | None = None) -> Lease:
        *stack, name = (None if word is None else os.fspath(word) for word in words)  # type: ignore[call-overload]
        request = self.item_request([word for word in stack if word is not None], name)
        lease = self.use_request(request, max_age)
        if _means_the_same_anywhere(words) and lease.store is self._store:
            self._known[words] = lease.place, request.stack
        return lease

    def use_request(self, request: Request, max_age: float | None = None) -> Lease:
        """As `use`, for what no words can say: an item of a dtool dataset that is open already."""
        return self.or_upstream(lambda cache: cache._use_here(request, max_age))

    def _use_here(self, request: Request, max_age: float | None) -> Lease:
        options = UseOptions(max_age=max_age)
        lease = self._lease(request, lambda holder: self.acquire(holder, request, options))
        assert lease is not None
        return lease

    def _take_here(self, request: Request) -> Lease | None:
        """As `use_request`, but None if the item must be fetched first."""
        return self._lease(request, lambda holder: self._acquirer(holder, UseOptions()).take(request))

    def _lease(self, request: Request, take: Callable[[Holder], Lease | None]) -> Lease | None:
        store = self._store_for_use(request)
        for attempt in attempts():
            with attempt:
                member = program.enter(store, self.settings.heartbeat_ttl)
                if self._on_lost is not None and self._on_lost not in member.on_lost:
                    member.on_lost.append(self._on_lost)
                lease = take(member.holder)
                if lease is None:
                    return None
                if not member.is_valid(lease):
                    raise member.holder.revoked()
                self._program = member
                return lease
        raise AssertionError("the last attempt returns or raises")

    def item_request(self, words: Sequence[str], name: str | None = None) -> Request:
        """As `request`. Raises UsageError for a whole dataset."""
        return one_item(self.request(words, name))

    def request(self, words: Sequence[str], name: str | None = None) -> Request | DatasetRequest:
        """What the words of a command or call mean. Raises UsageError if they mean nothing. Works without
        a cache.

        The settings are read only if a URL may have credentials in it that they name.
        """
        may_have = any("://" in word and ("?" in word or "#" in word) for word in words)
        return parse_request(words, name, self._layout.root, self._credentials() if may_have else ())

    def _credentials(self) -> Sequence[str]:
        """Those of the upstream are among them: otherwise one item would have two names, and a credential be stored."""
        upstream = self._open_upstream()
        return (*self.settings.fetch_credentials, *(() if upstream is None else upstream._credentials()))

    def use_many(
        self,
        items: Mapping[str, str | os.PathLike[str] | Sequence[str]] | Sequence[Entry],
        *,
        refresh: bool = False,
        max_age: float | None = None,
        label: str = "",
    ) -> HeldSet:
        """Leases on many items, or on none of them, held by this process until released.

        `items`: a source, or a sequence of a source and steps, for each path at which an item is to appear; or what
        `manifest` returned. The set is a context manager. Its own path is that of a directory of links that shows each
        item at its path, and it maps these paths to those of the items. Items that are missing are fetched, several at
        a time. `refresh` and `max_age`: as for `use`; `label`: a text that describes the set.

        Raises as `use`; UsageError lists everything that is wrong with `items`.
        """
        from sccache_dtool.sets import manifest

        entries = manifest.parse_mapping(items, self.request) if isinstance(items, Mapping) else items
        return self.or_upstream(lambda cache: cache._use_many_here(entries, 0.0 if refresh else max_age, label))

    def _use_many_here(self, entries: Sequence[Entry], max_age: float | None, label: str) -> HeldSet:
        store = self._store_for_use(*(entry.request for entry in entries))

        @contextlib.contextmanager
        def beating(holder: Holder) -> Iterator[None]:
            holder.start_heartbeat(self._on_lost or (lambda error: None))
            yield

        options = UseOptions(ttl=self.settings.heartbeat_ttl, max_age=max_age)
        held = self._hold_many(caller.program_owner(store.proc), entries, options, None, label, beating)
        try:
            program.keep_set(store, held.holder, held.release)
        except BaseException:  # such as a Ctrl-C: nobody else could release it
            held.release()
            raise
        return held

    def manifest(self, path: str | os.PathLike[str]) -> list[Entry]:
        """The items that a manifest lists, with their paths, for `use_many`. Raises UsageError, or OSError."""
        from sccache_dtool.sets import manifest

        name = os.fspath(path)
        with open(path, "rb") as file:
            return manifest.parse(manifest.read(file, name), name, self.request)

    # -- using on behalf of others -----------------------------------------------------------------------------------

    def owner(self, spec: str = "auto") -> Owner:
        """On whose behalf a command is run; see `caller.owner_from`."""
        return caller.owner_from(spec, self._proc)

    def owners(self, spec: str = "auto") -> tuple[Owner, ...]:
        """Whose leases a command releases; see `caller.owners_from`."""
        return caller.owners_from(spec, self._proc)

    def owner_of_command(self, pid: int, command: Sequence[str]) -> Owner:
        """The owner that is a command which this process runs, and shows heartbeats for."""
        return caller.command_owner(self._proc, pid, command)

    def hold(self, owner: Owner, request: Request, options: UseOptions = _DEFAULTS) -> Lease:
        """A lease for somebody else, which lasts when this process has ended: until `release`, or the owner's end.

        It is one in this cache; see `or_upstream`.
        """
        self._store_for_use(request)
        for attempt in attempts():
            with attempt:
                holder = self.enter(owner, options.ttl, request.key)
                try:
                    with holder.beating():
                        return self._acquirer(holder, options).acquire(request, options.max_age)
                except BaseException:
                    holder.retire()
                    raise
        raise AssertionError("the last attempt returns or raises")

    def enter(
        self, owner: Owner, ttl: float | None = None, key: str | None = None, session: Membership | None = None
    ) -> Holder:
        """A holder for somebody else. `ttl`: see `UseOptions`; `key`: of the only item that it will hold.

        `session`: for which it holds leases, so that `release` of a single item leaves them.
        """
        store = self._store_for_use()
        return Holder(store, owner, self.settings.lease_ttl if ttl is None else check_lifetime(ttl), key, session)

    def acquire(self, holder: Holder, request: Request, options: UseOptions = _DEFAULTS) -> Lease:
        """A lease for a holder, which must be beating if it has a lifetime; `options.ttl` is ignored.

        Raises LeaseLost if the holder was revoked meanwhile.
        """
        return self._acquirer(holder, options).acquire(request, options.max_age)

    def _acquirer(self, holder: Holder, options: UseOptions) -> Acquirer:
        def terms() -> Terms:
            wait = self.settings.fetch_wait if options.wait is None else options.wait
            make_room = functools.partial(self.make_room, wait=wait)
            limit = self._limit_objects
            upstream = self._open_upstream()
            if upstream is None:
                return Terms(wait, options.size, options.rate, make_room if options.make_room else None, limit=limit)

            def seen(key: str) -> Transfer | None:
                return self.fetches(key).get(key)

            def lend(request: Request, max_age: float | None) -> contextlib.AbstractContextManager[Lease]:
                return upstream.lend(request, options._replace(max_age=max_age))

            # What is idle here can be copied again.
            return Terms(wait, options.size, options.rate, make_room, lend, seen, limit)

        return Acquirer(self.store, holder, lambda: self.settings.heartbeat_ttl, self._progress, terms)

    def hold_many(
        self,
        owner: Owner,
        entries: Sequence[Entry],
        options: UseOptions = _DEFAULTS,
        *,
        session: str | None = None,
        label: str = "",
    ) -> HeldSet:
        """As `hold`, for many items: leases on all of them, or on none, and one directory that shows them.

        `session`: the id of the session that the set becomes, from `sessions.new_id`, if its path must be known before.
        `label`: a text that describes the set. `options.size` is that of no single item, and is ignored.
        """
        return self._hold_many(owner, entries, options, session, label, lambda holder: holder.beating())

    def _hold_many(
        self,
        owner: Owner,
        entries: Sequence[Entry],
        options: UseOptions,
        session: str | None,
        label: str,
        beating: Callable[[Holder], AbstractContextManager[object]],
    ) -> HeldSet:
        from sccache_dtool.liveness.record import Membership
        from sccache_dtool.protocol import sessions
        from sccache_dtool.sets import holding

        store, id = self._store_for_use(*(entry.request for entry in entries)), session or sessions.new_id()
        ttl = self.settings.lease_ttl if options.ttl is None else check_lifetime(options.ttl)
        for attempt in attempts():
            with attempt:
                holder = Holder(store, owner, ttl, session=Membership(id))
                try:
                    with beating(holder):
                        acquirer = self._acquirer(holder, options._replace(size=None))
                        return holding.hold(
                            acquirer, entries, id, label=label, max_age=options.max_age, jobs=self._jobs
                        )
                except BaseException:
                    holder.retire()
                    raise
        raise AssertionError("the last attempt returns or raises")

    def announced(self, request: Request) -> int | None:
        """Bytes that the sources of an item say they have, asked without fetching; None if one does not say.

        Works without a cache.
        """
        from sccache_dtool.fetch.sources import announced

        sizes = [announced(chain.mirrors) for chain in request.stack.chains]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    # -- releasing ---------------------------------------------------------------------------------------------------

    def release(
        self, owners: Sequence[Owner], key: str, *, everything: bool = False, generation: str | None = None
    ) -> int:
        """Release one lease of any of `owners` on an item, or all; returns how many.

        `generation`: only on this copy. Releasing an item that is not in use is not an error: 0 is returned.
        """
        return self.release_copies(owners, [(key, generation)], everything=everything)

    def release_copies(
        self, owners: Sequence[Owner], copies: Iterable[tuple[str, str | None]], *, everything: bool = False
    ) -> int:
        """As `release`, for many keys with their generations: holders are listed once."""
        store = self.store
        ended: list[str] = []
        try:
            for key, generation in copies:
                ended += release.release(store, items.look(store, key, uses=False), owners, everything, generation)
        finally:
            release.dismiss(store, ended)
        return len(ended)

    def release_set(self, owners: Sequence[Owner], session: str) -> Released | None:
        """Release the set with this session; None if none of `owners` holds it, or it was released before."""
        from sccache_dtool.sets import holding

        return holding.release(self.store, owners, session)

    def sets_of_dataset(self, owners: Sequence[Owner], uuid: str) -> list[str]:
        """The sessions in which any of `owners` holds the whole dtool dataset `uuid`, the newest first."""
        from sccache_dtool.sets import holding

        return holding.of_dataset(self.store, owners, uuid)

    def holder_above(self, key: str) -> Owner | None:
        """Which process above this one holds an item on which `release` found nothing; None if none does."""
        return release.holder_above(self.store, items.look(self.store, key, uses=False), self._proc)

    def session_holding(self, owners: Sequence[Owner], key: str) -> str | None:
        """The session for which one of `owners` holds an item; None if there is none."""
        return release.session_holding(self.store, items.look(self.store, key, uses=False), owners)

    def renew(self, owners: Sequence[Owner]) -> int:
        """Extend the lifetime of all holders of `owners` that have one; returns how many. Raises LeaseLost."""
        return release.renew(self.store, owners)

    def close(self) -> None:
        """Release all that this process holds in this cache, and in its upstream. It happens by itself at the end.

        May be called from a signal handler. What another thread is about to use is leased again, by another holder.
        """
        program.forget(self._layout)
        if "upstream" in self.__dict__ and self.upstream is not None:
            self.upstream.close()

    # -- sessions and locks ------------------------------------------------------------------------------------------

    def create_session(
        self,
        data_set: DataSet,
        *,
        owner: Owner | None = None,
        label: str = "",
        ttl: float | None = None,
        id: str | None = None,
        user: str | None = None,
    ) -> Session:
        """Create a session: a list of items with the path of each, on which locks can be taken until it is deleted.

        `data_set`: for each path the source, or a sequence of a source and its steps. Nothing is fetched, except the
        list of the items of a whole dtool dataset, which take its place. The session ends at the latest with its
        `owner` (default: this process), or when nobody renews it for `ttl` seconds. It is a context manager that
        deletes itself. `id`: one that `sessions.new_id` gave. `user`: for whom it is created (default: the user of this
        process). Raises UsageError.
        """
        from sccache_dtool.sets import sessions
        from sccache_dtool.sets.handle import Session

        self._store_for_use()
        access = self._access()
        entries = access.entries(data_set)
        id = id or sessions.new_id()
        holder = self.enter(owner or self.owner(f"pid:{os.getpid()}"), ttl, session=Membership(id))
        try:
            sessions.create(access.store, holder, entries, label=label, id=id, user=user)
        except BaseException:
            holder.retire()
            raise
        return Session(access, id)

    def session_entries(self, request: Request | DatasetRequest, path: str) -> tuple[SessionEntry, ...]:
        """What a data set has for an item at a path; for a whole dtool dataset, each of its items below the path.

        Of a dataset, the list of its items is fetched if it is not there.
        """
        from sccache_dtool.sets.sessions import Entry

        if isinstance(request, Request):
            return (Entry(request.key, path, request.words, request.name),)
        from sccache_dtool.sets import datasets

        store = self._store_for_use()
        with program.worker(store, self.settings.heartbeat_ttl) as worker:
            wanted = datasets.wanted_of(store, request, self._acquirer(worker, _DEFAULTS).acquire, path)
        return tuple(Entry(one.request.key, one.path, one.request.words) for one in wanted)

    def entries_used(self, words: Sequence[str], path: str) -> tuple[SessionEntry, ...]:
        """As `session_entries`, of what a person has typed: a source with its steps, or a word as for `find_used`."""
        from sccache_dtool.sets.sessions import Entry

        try:
            named = self.find_used(words, None)
        except NoCache:  # one is set up for the session; it has no item yet that a name could mean
            return self.session_entries(self.request(words), path)
        try:
            request = self.request(words)
        except CacheError:  # the words are those of a name or a key
            request = None
        if request is not None and request.key == named.key:
            return self.session_entries(request, path)
        facts = next((self.facts(copy) for copy in self.item(named.key).copies), None)
        source = tuple(facts.source or ()) if facts else ()
        for name in (None, names.key_label(named.key)):
            with contextlib.suppress(CacheError):
                if self.item_request(source, name).key == named.key:
                    return (Entry(named.key, path, source, name),)
        label = names.key_label(named.key)
        raise UsageError(f"the source of {label} is not known", hint="give its source instead of its name")

    def session(self, id: str) -> Session:
        """The session with this id. Raises NoSession, which is a UsageError, if there is none."""
        from sccache_dtool.sets.handle import Session

        session = Session(self._access(), id)
        _ = session.facts
        return session

    def delete_session(self, id: str) -> Deleted:
        """Delete a session, whatever state it is in, and release all its locks. Raises NoSession."""
        from sccache_dtool.protocol import sessions

        return sessions.delete(self._check_permissions(), id)

    def sessions(self) -> list[SessionFacts]:
        """All sessions."""
        from sccache_dtool.sets import sessions

        return list(sessions.listing(self.store))

    def locks(
        self,
        *,
        session: str | None = None,
        item: str | None = None,
        owner: str | None = None,
        user: str | None = None,
        host: str | None = None,
        job: str | None = None,
        state: str | None = None,
    ) -> list[Lock]:
        """The locks, which are all leases, that match all arguments that are given. `item`: its key.

        `owner`: the text that the lock was taken with. With a session or an item, only the items concerned are looked
        at, otherwise the whole cache.
        """
        from sccache_dtool.sets import locks

        access = self._access()
        request = locks.Filter(session, item, owner, user, host, job, state)
        return locks.listing(access.store, request, access.unsettled)

    def _access(self) -> Access:
        from sccache_dtool.sets.handle import Access

        def acquire(holder: Holder, request: Request, wait: float | None) -> Lease:
            return self.acquire(holder, request, UseOptions(wait=wait))

        def take_cached(holder: Holder, request: Request) -> Lease | None:
            return self._acquirer(holder, _DEFAULTS).take(request)

        def unsettled() -> list[Item]:
            with self._pool() as pool:
                return [item for part in items.survey(self.store, pool, items.unsettled, uses=False) for item in part]

        return Access(
            self.store, self.request, self.item_request, self.session_entries, acquire, take_cached, unsettled
        )

    # -- files by their content --------------------------------------------------------------------------------------

    @property
    def archive(self) -> Archive:
        """The archive of objects that `config.toml` names. Raises UsageError if it names none."""
        from sccache_dtool.markers.archive import open_archive

        process = forking.token()
        if self._archive is None or self._archive[0] is not process:  # its connections are those of one process
            self._archive = process, open_archive(self.store, self.settings)
        return self._archive[1]

    @property
    def files(self) -> Files:
        """The files that are known by their content, with all that can be done with them."""
        from sccache_dtool.markers.files import Files

        store = self._store_for_use()
        return Files(
            store, self.archive, self.use_request, self._take_here, self.settings.archive_limit, self._progress
        )

    def add(self, path: str | os.PathLike[str], comment: str = "") -> Identifier:
        """Add a file to the archive and the cache; returns ``sha256:HEX``, by which it is known from now on.

        Raises UsageError, FetchFailed if the archive cannot be written, or NoSpace; then nothing has changed.
        """
        return self.files.add(os.fspath(path), comment=comment)

    def save(self, path: str | os.PathLike[str], comment: str | None = None) -> Marker:
        """As `add`; a marker of the file, for version control, is written beside it."""
        return self.files.save(os.fspath(path), comment=comment)

    def open(
        self,
        file: str | os.PathLike[str] | Marker,
        mode: str = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        offset: int = 0,
    ) -> IO[Any]:
        """Open what an identifier or a marker stands for, fetched first if it is not in the cache.

        `file`: an identifier, a marker, or the path of one or of its file. `mode`: ``r`` or ``rb``; other modes raise
        ValueError. `offset`: where to begin, in bytes. The file holds a lease until it is closed. Raises UsageError,
        FetchFailed or NoSpace.
        """
        return self.files.open(file, mode, encoding=encoding, errors=errors, newline=newline, offset=offset)

    def _limit_objects(self, coming: int) -> None:
        most = self.settings.archive_limit
        if most is not None:
            from sccache_dtool.markers import limit

            with self._pool() as pool:
                limit.make_room(self.store, self.archive, pool, most, coming)

    # -- finding an item ---------------------------------------------------------------------------------------------

    def key_for(self, words: Sequence[str], name: str | None = None) -> str:
        """The key of the item that `use` means by these words, or of a path that it printed; it need not be there.

        Nothing is looked up. Works without a cache. For what a person may have typed see `find_used`. Raises
        UsageError.
        """
        within = self.key_within(words[0]) if len(words) == 1 and name is None else None
        return within or self.request(words, name).key

    def key_within(self, path: str) -> str | None:
        """The key of the item of this cache that `path` lies in, such as one that `use` printed; None if in none."""
        return self._layout.key_of(path)

    def is_within(self, path: str) -> bool:
        """Whether `path` lies in an item or in the view of a set of this cache; neither need be there."""
        return (self._layout.key_of(path) or self._layout.session_at(path)) is not None

    def find(self, word: str) -> str:
        """The key of the item that `word` means: its name, its key or the beginning of it, a path in it, or its source.

        Raises UsageError if it means none, or could mean several.
        """
        return find.find(self.store, word, self.request)

    def meant(self, word: str, keys: Collection[str]) -> list[str]:
        """Those of `keys` that `word` may mean, as for `find`."""
        within = self.key_within(word)
        return find.meant(word, keys, self.request) if within is None else [key for key in keys if key == within]

    def find_used(self, words: Sequence[str], name: str | None = None) -> Named:
        """What the words and the name mean that `use` was given, a path that it printed, or any word for `find`.

        A path in a copy means that copy alone. Raises UsageError for a word that means no item, or several.
        """
        if not words:
            self.request(words, name)  # raises if there is no name either: that is wrong with any cache
        return find.find_used(self.store, words, name, self.request)

    def has(self, key: str) -> bool:
        """Whether a listing shows the item; a hint, as only `use` can tell. False if the cache is not set up yet."""
        try:
            store = self.store
        except NoCache:
            return False
        return bool(items.generations(store, key))

    def offers(self, request: Request) -> bool:
        """Whether a listing shows a copy of what the item's local sources have now; a hint, as `has`."""
        try:
            return next(self._current(request), None) is not None
        except NoCache:
            return False

    def locate(self, request: Request) -> Path | None:
        """Where the copy is that `use` would take; None if it would fetch. Take a lease before you read there."""
        found = ((copy, self.path(copy)) for copy in self._current(request))
        return next((path for copy, path in found if path is not None and self.is_whole(copy, path)), None)

    def _current(self, request: Request) -> Iterator[Copy]:
        """The copies of an item that `use` would take, the newest first."""
        store = self.store
        fresh = Freshness(store.logging_to(Silent()), request, None)
        copies = items.look(store, request.key, uses=False).copies
        return (copy for copy in copies if not copy.closed and fresh.accepts(copy.generation))

    # -- inspecting --------------------------------------------------------------------------------------------------

    def overview(self) -> Overview:
        """What a glance at the cache shows."""
        from sccache_dtool.fetch import transfers

        store = self.store
        found = list(transfers.running(store, waits=False))
        abandoned = [one for one in found if one.state == transfers.TransferState.ABANDONED]
        running = tuple(one for one in found if one.state != transfers.TransferState.ABANDONED)
        return Overview(
            root=self.root,
            id=store.id,
            holders=len(HolderList.glance(store).present),
            fetching=len(running),
            fetches=running,
            continuable=sum(one.continuable_until is not None for one in abandoned),
            trashed=len(store.fs.names(store.layout.trash)),
            free=self.free_space(),
        )

    def items(self) -> Iterator[Item]:
        """Everything in the cache, as a scan sees it; also what was evicted and has a history."""
        return items.scan(self.store)

    def survey(self, fold: Callable[[Iterator[Item]], Sum], *, uses: bool = True) -> Iterator[Sum]:
        """What `fold` makes of parts of the cache, many looked at at a time; see `items.survey`.

        `fold` may be called in another process: a function of a module, or a `functools.partial` of one.
        """
        with self._pool() as pool:
            yield from items.survey(self.store, pool, fold, uses=uses)

    def scan_with_facts(self) -> Iterator[tuple[Item, list[ItemFacts]]]:
        """Everything in the cache with the facts of its copies: a file is read for each."""
        with self._pool() as pool:
            yield from items.scan_with_facts(self.store, pool)

    def item(self, key: str) -> Item:
        """One item as it is now."""
        return items.look(self.store, key)

    def facts(self, copy: Copy) -> ItemFacts:
        """What was noted when a copy was fetched (`item.json`); empty if it cannot be read, with a warning."""
        return items.facts_or_none(self.store, copy)

    def facts_of(self, key: str, generation: str) -> ItemFacts:
        """As `facts`, of a copy that a plan names."""
        return items.facts_if_readable(self.store, key, generation)

    def path(self, copy: Copy) -> Path | None:
        """Where a copy's payload is; None if it cannot be seen, with a warning. Take a lease before you read there."""
        from pathlib import Path

        store = self.store
        directory = f"{store.layout.generation(copy.key, str(copy.generation))}/{names.PAYLOAD}"
        try:
            payload = items.payload_name(store, copy.key, copy.generation)
        except OSError as error:
            store.log.warning(f"{directory}: {error.strerror}; passed over")
            return None
        return Path(directory, payload) if payload else None

    def is_whole(self, copy: Copy, path: str | os.PathLike[str]) -> bool:
        """Whether the payload of a copy, at `path`, is there as it was published; see `items.is_whole`."""
        return items.is_whole(self._fs, os.fspath(path), copy.generation)

    def judged(self, item: Item) -> list[Judged]:
        """Who holds an item, and what can be said of each. Writes nothing into the cache."""
        from sccache_dtool.evict import single

        return single.judged(self._check_permissions(), item.held)

    def holdings(self, user: str | None = None) -> list[Holding]:
        """The leases of a user, or of everybody, with what can be said of each. Writes nothing into the cache."""
        from sccache_dtool.catalog.holdings import holdings

        store = self._check_permissions()
        with self._pool() as pool:
            return holdings(store, pool, user)

    def holdings_of(self, busy: Iterable[Item]) -> list[Holding]:
        """As `holdings`, of everybody, on items that a scan has found."""
        from sccache_dtool.catalog.holdings import of_items

        return of_items(self._check_permissions(), busy)

    def cleanings(self) -> list[CleaningName]:
        """The cleanings that have removed something, and what was restored."""
        from sccache_dtool.evict import audit

        return audit.listing(self.store)

    def cleaning(self, name: CleaningName) -> CleaningRecord:
        """The record of a cleaning. Raises OSError or records.Damaged."""
        from sccache_dtool.evict import audit

        return audit.read(self.store, name)

    def uses(self, key: str) -> list[Use]:
        """The finished uses of an item, the oldest first."""
        from sccache_dtool.protocol import history

        store = self.store
        return history.read(store, store.layout.history(key))

    def transfers(self) -> list[Transfer]:
        """Downloads that run, processes that wait for them, and downloads that have ended within a day."""
        from sccache_dtool.fetch import transfers

        store = self.store
        return [*map(self._progress_upstream(), transfers.running(store)), *transfers.ended(store)]

    def fetches(self, key: str | None = None) -> dict[str, Transfer]:
        """What is being fetched now, by key; with `key`, of this item alone. A hint."""
        from sccache_dtool.fetch import transfers

        upstream = self._progress_upstream(key)
        return {key: upstream(one) for key, one in transfers.in_progress(self.store, key).items()}

    def _progress_upstream(self, key: str | None = None) -> Callable[[Transfer], Transfer]:
        """Shows what is queued here as far as it is, if it waits for the download by the upstream.

        `key`: of the only item that is of interest.
        """
        from sccache_dtool.fetch.transfers import TransferState

        @functools.cache
        def coming() -> Mapping[str, Transfer]:
            with contextlib.suppress(CacheError, OSError):  # it is only shown
                upstream = self._open_upstream()
                return {} if upstream is None else upstream.fetches(key)
            return {}

        def shown(one: Transfer) -> Transfer:
            there = coming().get(one.key) if one.state == TransferState.QUEUED else None
            if there is None:
                return one
            return one._replace(
                state=there.state,
                bytes=there.bytes,
                total=there.total,
                attempts=there.attempts,
                message=there.message,
                there=there.there,
                began=there.began,
                upstream_by=there.upstream_by or there.who,
            )

        return shown

    def is_fetching(self, key: str) -> bool:
        """Whether somebody has begun to fetch the item here; a hint. False if the cache is not set up yet."""
        from sccache_dtool.fetch import transfers

        try:
            store = self.store
        except NoCache:
            return False
        return transfers.is_fetched(store, key)

    def free_space(self) -> int | None:
        """Bytes that may still be written to the cache's file system; None if it does not say so.

        Works without a cache.
        """
        return self._fs.free_space(self._layout.root)

    def room(self) -> int | None:
        """Bytes that are free, less what running downloads have reserved; None if the file system does not say so.

        Works without a cache.
        """
        from sccache_dtool.fetch import transfers

        free = self.free_space()
        try:
            store = self.store
        except NoCache:
            return free
        return None if free is None else free - transfers.reserved(store)

    def loose(self) -> Sequence[Loose]:
        """Files that dtool's own brokers left in the cache: no items, and nobody holds leases on them."""
        with self._pool() as pool:
            return self._cleaner(pool).loose().files

    def loose_directories(self, untouched_since: float = 0.0, exclude: tuple[str, ...] = ()) -> list[LooseDirectory]:
        """As `loose`, summed up by directory; `untouched_since` (seconds since 1970) is what counts as old.

        `exclude`: patterns of what does not count as old.
        """
        from sccache_dtool.catalog import loose  # and not by way of the cleaner: `du` would load much more

        store, named = self._check_permissions(), self.settings.dtool_directories
        with self._pool() as pool:
            return list(loose.sum_directories(store, pool, named, untouched_since=untouched_since, exclude=exclude))

    def reclaimable_loose(self) -> list[LooseDirectory]:
        """As `piles`; what `clean --all` would remove counts as old."""
        from sccache_dtool.catalog.loose import YOUNG

        try:
            grace, exclude = self.settings.clean_grace, self.settings.clean_exclude
            self.lots()
        except CacheError:  # `spared` reports it
            return self.loose_directories()
        return self.loose_directories(untouched_since=self._clock.wall() - max(YOUNG, grace), exclude=exclude)

    def spared(self) -> Spared:
        """What `clean --all` would leave although nobody uses it.

        Raises CacheError if `config.toml` does not say either where loose files are.
        """
        from sccache_dtool.evict import pins
        from sccache_dtool.policy.totals import Spared

        store, settings = self.store, self.settings
        now = store.clock.wall()
        try:
            self.lots()  # if they cannot be read, nothing is removed
            return Spared(pins.pinned(store, now), settings.clean_exclude, settings.clean_grace, now)
        except CacheError as error:  # what is pinned, excluded by config.toml, or within shares, is not known
            if "dtool" in settings.faults:
                raise
            store.log.warning(f"{error.message}; nothing is counted as reclaimable")
            return Spared(everything=True)

    def state(self) -> Snapshot:
        """What a monitor wants to know; see `metrics.text`."""
        from sccache_dtool.evict import audit
        from sccache_dtool.metrics import Saved, Snapshot
        from sccache_dtool.policy.totals import Sums, total

        store = self.store
        glance = self.overview()
        whole, parts = Saved(), list[Sums]()
        for sums, more in self.survey(_sums_and_saved):
            parts.append(sums)
            whole = Saved(whole.bytes + more.bytes, whole.seconds + more.seconds)
        left = self.loose_directories()
        return Snapshot(
            cache_id=glance.id,
            root=store.layout.root,
            sums=total(parts, 0),
            saved=whole,
            loose_files=sum(pile.files for pile in left),
            loose_bytes=sum(pile.bytes for pile in left),
            cleanings=tuple(audit.listing(store)),
            holders=glance.holders,
            fetching=glance.fetching,
            trashed=glance.trashed,
            free=glance.free,
            now=store.clock.wall(),
        )

    # -- cleaning ----------------------------------------------------------------------------------------------------

    def policy(self) -> Rules:
        """What `config.toml` says of cleaning. Raises UsageError if it has settings that this release does not know."""
        from sccache_dtool.policy.rules import Rules

        settings = self.settings
        strange = [str(one) for one in settings.unknown if one.may_concern_cleaning]
        if strange:
            raise UsageError(
                f"{self._layout.config_file}: {', '.join(strange)} is not a setting that this release knows",
                hint="nothing was cleaned, because the setting may protect items; correct it, or use a newer release",
            )
        return Rules(
            older_than=settings.clean_older_than,
            fewer_uses_than=settings.clean_fewer_uses,
            retain_size=settings.clean_retain_size,
            larger_than=settings.clean_larger_than,
            limits=settings.limits,
            order=settings.clean_order,
            exclude=settings.clean_exclude,
            grace=settings.clean_grace,
        )

    def plan(self, rules: Rules, *, ahead: float = 0.0, keep_for: float | None = None) -> tuple[Plan, Reaped]:
        """What `clean` with these rules would do now, and what it would reap first. Writes no more than a probe.

        `ahead`: what it would do in so many seconds, if nobody used anything until then; `keep_for`: as for `clean`.
        """
        with self._pool() as pool:
            return self._cleaner(pool).plan(rules, self._keep_for(keep_for), ahead=ahead)

    def survey_and_plan(
        self,
        rules: Rules | None,
        lots: Lots,
        fold: Callable[[Lookup, list[Item]], Sum],
        *,
        keep_for: float | None = None,
    ) -> Surveyed[Sum]:
        """What `clean` with these rules would do now, and what `fold` makes of parts of the cache, from one scan.

        `fold` is given a Lookup, which knows the facts of copies, and items, which say when each of their uses ended.
        Without `rules`, there is no plan. `lots`: those in force, as far as they could be read.
        """
        with self._pool() as pool:
            return self._cleaner(pool).survey(rules, self._keep_for(keep_for), lots, fold)

    def clean(
        self, rules: Rules, *, keep_for: float | None = None, most_seconds: float | None = None, why: str = ""
    ) -> Cleaned:
        """Evict what `rules` let go.

        Nothing in use is ever evicted: the file system refuses. Raises InUse while another cleaner is at work.
        `keep_for`: seconds for which `restore` finds what was evicted (default: the cache's). `most_seconds`: after
        so long the rest is left for the next clean; `why`: for the record in `cleanings/`.
        """
        options = self._clean_options(keep_for, most_seconds, why)
        with self._pool() as pool:
            return self._cleaner(pool).clean(rules, options)

    def clean_as_planned(
        self, planned: Planned, *, keep_for: float | None = None, most_seconds: float | None = None, why: str = ""
    ) -> Cleaned:
        """Evict what a plan says, as far as it is still true: what was used, or pinned, since then stays.

        The rest is as for `clean`.
        """
        options = self._clean_options(keep_for, most_seconds, why)
        with self._pool() as pool:
            return self._cleaner(pool).clean_as_planned(planned, self.settings.clean_exclude, options)

    def make_room(self, missing: int, wait: float = 0.0) -> int:
        """Evict what is idle to free `missing` bytes, in the order of the cache's policy; returns how many it freed.

        What was evicted before, and is still to be deleted, is deleted with it, and counts, as does what another
        cleaner frees that is waited for. Nothing is evicted, and 0 returned, if that would not be enough. Raises InUse
        if another cleaner is still at work after `wait` seconds.
        """
        from sccache_dtool.evict.cleaning import only_cleaner

        store = self._check_permissions()
        deadline, before = store.clock.monotonic() + wait, self.free_space() or 0
        while True:
            with only_cleaner(store, max(0.0, deadline - store.clock.monotonic())):
                freed = max(0, (self.free_space() or 0) - before)
            if freed >= missing:
                return freed
            there = sum(item.bytes for item in self.items()) + sum(pile.bytes for pile in self.loose_directories())
            try:
                with self._pool() as pool:
                    return freed + self._cleaner(pool).make_room(missing - freed, there, self.policy())
            except InUse:  # one that has begun meanwhile
                if store.clock.monotonic() >= deadline:
                    raise

    def _cleaner(self, pool: Pool) -> Cleaner:
        from sccache_dtool.evict.cleaning import Cleaner

        return Cleaner(self._check_permissions(), self.settings, pool)

    def _clean_options(self, keep_for: float | None, most_seconds: float | None, why: str) -> CleanOptions:
        from sccache_dtool.evict.cleaning import CleanOptions

        return CleanOptions(self._keep_for(keep_for), most_seconds, why)

    def _keep_for(self, seconds: float | None) -> float:
        return self.settings.trash_keep if seconds is None else seconds

    # -- single items ------------------------------------------------------------------------------------------------

    def pins(self) -> list[tuple[PinName, str]]:
        """All pins, and by whom."""
        from sccache_dtool.evict import pins

        return [(name, pins.pinned_by(self.store, name)) for name in pins.listing(self.store)]

    def pin(self, key: str, until: float | None = None) -> None:
        """Keep an item, whatever the rules of a cleaning are, until a time in seconds since 1970, or for good."""
        from sccache_dtool.evict import pins

        pins.pin(self.store, key, int(until or 0), f"{caller.user_name()}@{caller.host_name()}")

    def unpin(self, key: str) -> bool:
        """Let an item be cleaned again; False if it was not pinned."""
        from sccache_dtool.evict import pins

        return pins.unpin(self.store, key)

    def remove(self, key: str, *, keep_for: float | None = None) -> int:
        """Evict one item; returns the bytes. Raises InUse, naming who holds it. `keep_for`: as for `clean`."""
        from sccache_dtool.evict import single

        return single.remove(self._check_permissions(), key, self._keep_for(keep_for))

    def evict_if_idle(self, key: str) -> bool:
        """Evict an item unless somebody holds it; True if nothing is left of it."""
        from sccache_dtool.evict import single

        return single.evict_if_idle(self._check_permissions(), key)

    def trashed(self) -> Trashed:
        """What is in the trash, and until when the last of it is kept."""
        from sccache_dtool.evict import trash

        return trash.total_of(trash.listing(self.store))

    def restorable(self) -> Iterator[tuple[str, TrashName]]:
        """Keys of the items in the trash that can be brought back, and where they are there."""
        from sccache_dtool.evict import trash

        return trash.restorable(self._check_permissions())

    def restore(self, word: str) -> str:
        """Bring an item back from the trash; returns its key. Raises UsageError if it is not there."""
        from sccache_dtool.evict import single, trash

        store = self._check_permissions()
        single.return_interrupted_restores(store)
        there = dict(self.restorable())
        within = store.layout.key_of(word)
        found = find.meant(word, there, self.request) if within is None else [within]
        if not found:
            raise single.not_in_trash(word)

        def source(key: str) -> str:
            return trash.facts_of(store, there[key]).shown_source

        key = find.the_only(word, found, source)
        single.restore(store, key, self.settings.heartbeat_ttl)
        return key

    def empty_trash(self) -> tuple[Trashed, Purged]:
        """Delete also what is kept for `restore`: what was in the trash, and what was deleted.

        Raises InUse while a cleaner is at work.
        """
        with self._pool() as pool:
            return self._cleaner(pool).empty_trash()

    # -- lots --------------------------------------------------------------------------------------------------------

    def lots(self) -> LotTable:
        """The lots in force. Raises CacheError if they cannot be read."""
        from sccache_dtool.lots import table

        return table.read(self.store)

    def change_lots(self, make: Callable[[Lots], Lots], why: str = "by a program") -> LotTable:
        """Put other lots in force, which `make` makes of those in force; it may be called again. `why`: for the log.

        Raises UsageError if the lots contradict each other, and whatever `make` raises: then nothing is changed.
        """
        from sccache_dtool.lots import table

        return table.change(self._check_permissions(), make, why)

    def manages_lots(self) -> bool:
        """Whether this user may change every lot: root, the owner of `lots/`, and those whom `config.toml` names."""
        try:
            owner = self._fs.lstat(self._layout.lots).st_uid
        except FileNotFoundError:
            return True  # whoever makes the first lot is the owner
        return os.geteuid() in (0, owner) or caller.user_name() in self.settings.lots_managers

    def lot_rights(self) -> LotRights | None:
        """Who may change all lots; None if there are none."""
        from sccache_dtool.lots.rights import rights

        settings = config.load(self._fs, self._layout, Silent())  # what is wrong in there, `doctor` says by itself
        return rights(self.store, settings.lots_managers)

    def lots_log(self) -> list[LotTable]:
        """The lots in force, and those before them, as far as they are kept; the newest first."""
        from sccache_dtool.lots import table

        return list(table.log(self.store))

    def restore_lots(self, number: int, who: str | None = None) -> LotTable:
        """Put an earlier version of the lots in force again, also if the one in force cannot be read.

        `who`: the user who must have the right to; None for somebody who may do everything.
        """
        from sccache_dtool.lots import table

        return table.restore(self._check_permissions(), number, who)

    def reported_usage(self) -> dict[str, Usage]:
        """What was reported of data that lies elsewhere, by lot."""
        from sccache_dtool.lots import table

        return table.reported(self.store)

    def report_usage(self, make: Callable[[Mapping[str, Usage]], Mapping[str, Usage]]) -> dict[str, Usage]:
        """Put another usage of data that lies elsewhere in force, which `make` makes of the one in force."""
        from sccache_dtool.lots import table

        return table.report(self._check_permissions(), make)

    def lot_usage(self, lots: Lots | None = None) -> dict[str, Usage]:
        """What each lot has of its own: in the cache, on its way there, and as reported of data elsewhere. One scan.

        `lots`: instead of those in force.
        """
        from sccache_dtool.catalog.facts import ItemFacts
        from sccache_dtool.fetch import transfers
        from sccache_dtool.lots import table, usage
        from sccache_dtool.lots.model import Usage

        lookup = self.lookup(lots)
        parts = list(self.survey(functools.partial(usage.of_items, lookup), uses=False))
        for one in transfers.running(self.store, waits=False):
            lot = lookup.of_facts(one.key, ItemFacts(name=one.label, source=one.source, by=one.by))
            parts.append({lot: Usage(0, 0, one.bytes, 1)})
        return usage.total([*parts, usage.of_loose(self.loose_directories(), lookup), table.reported(self.store)])

    def shares(self) -> Shares | None:
        """What the lots protect; None if they protect nothing, or cannot be read, which `spared` reports."""
        from sccache_dtool.lots import table
        from sccache_dtool.lots.model import Question
        from sccache_dtool.policy.shares import Shares

        try:
            lots, settings = self.lots().lots, self.settings
            order = tuple(map(Question, settings.lots_order))
            shares = Shares(lots, table.reported(self.store), order, settings.lots_forget)
        except CacheError:
            return None
        return shares if shares.protect else None

    def lookup(self, lots: Lots | None = None, only: str | None = None) -> Lookup:
        """What finds the lots of copies. `lots`: instead of those in force; `only`: see there."""
        from sccache_dtool.lots.lookup import Lookup

        return Lookup(self.store, self.lots().lots if lots is None else lots, self._clock.wall(), only)

    # -- repairing ---------------------------------------------------------------------------------------------------

    def reap(self, *, dry_run: bool = False) -> Reaped:
        """End the leases of all holders that are proved dead, and say on what evidence."""
        from sccache_dtool.evict import single

        with self._pool() as pool:
            return single.reap(self._check_permissions(), pool, dry_run=dry_run)

    def reap_holder(self, holder: str, *, dry_run: bool = False) -> Reaped:
        """End the leases of one holder, by its id, because a person knows that it is gone."""
        from sccache_dtool.evict import single

        with self._pool() as pool:
            return single.reap_holder(self._check_permissions(), pool, holder, dry_run=dry_run)

    def examine(self) -> list[Finding]:
        """Everything in the cache that is not as it should be. Nothing is changed: each finding knows its repair."""
        from sccache_dtool.doctor import examine, examine_format

        try:
            store = self.store
        except NoCache:
            lost = examine_format(self._fs, self._layout)
            if not lost:
                raise
            return lost
        with self._pool() as pool:
            return examine(store, pool)

    def verify_content(self) -> Checked:
        """Read all payloads again that have a digest, and compare. Other damage is reported by `examine`."""
        from functools import partial

        from sccache_dtool.doctor import verify_content
        from sccache_dtool.evict import single

        store = self.store.logging_to(Silent())
        return verify_content(store, self._progress, partial(single.remove_copy, store))


def cache_save(cache: Cache, path: str | os.PathLike[str], comment: str | None = None) -> Marker:
    """See `Cache.save`."""
    return cache.save(path, comment)


def cache_open(cache: Cache, path: str | os.PathLike[str], mode: str = "r", **how: Any) -> IO[Any]:
    """See `Cache.open`. `path`: of a marker, or of the file that it stands for."""
    return cache.open(path, mode, **how)


_UNKNOWN: tuple[None, Stack] = None, Stack()


def _is_current(place: Place, stack: Stack) -> bool:
    """Whether a copy that was used before is still of what its local sources have now."""
    if not versions.is_tracked(stack):
        return True
    generation = Generation.parse(place.generation)
    current = versions.now(stack)
    # A source that cannot be read is warned of, and others are compared, where there is more time.
    return not current.unreadable and generation is not None and generation.version == current.tag


def _means_the_same_anywhere(words: tuple[object, ...]) -> bool:
    """Whether a call means the same item after a change of the working directory."""
    return words[0] is None or str(words[0]).startswith(("/", "http:", "https:", "file:/"))


def _sums_and_saved(found: Iterator[Item]) -> tuple[Sums, Saved]:
    from sccache_dtool.metrics import saved
    from sccache_dtool.policy.totals import add_up

    listed = list(found)
    return add_up(0, iter(listed)), saved(iter(listed))
