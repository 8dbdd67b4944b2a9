"""The public face: everything that the command line and other programs do with a cache goes through `Cache`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sccache_dtool import config, finding, holders, items, layout, leases, program, returning, root
from sccache_dtool.acquiring import Acquirer
from sccache_dtool.clock import Clock
from sccache_dtool.crew import Crew
from sccache_dtool.errors import InUse, LeaseLost, NoCache
from sccache_dtool.fetch.wanted import Terms, Wanted, wanted_from
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import Holder, Owner, Roll
from sccache_dtool.items import Copy, Item, Sum
from sccache_dtool.layout import Layout, PinName, TrashName
from sccache_dtool.leases import Lease, Place
from sccache_dtool.liveness.process import Proc
from sccache_dtool.units import check_lifetime

if TYPE_CHECKING:
    from pathlib import Path

    from sccache_dtool.doctor import Checked, Finding
    from sccache_dtool.evict.clean import Cleaned
    from sccache_dtool.evict.keeper import Keeper
    from sccache_dtool.evict.loose import Loose, Pile
    from sccache_dtool.evict.plans import Planned
    from sccache_dtool.evict.policies import Plan, Rules
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.fetch.transfers import Transfer
    from sccache_dtool.history import Use
    from sccache_dtool.metrics import Saved, State
    from sccache_dtool.reaping import Judged, Reaped
    from sccache_dtool.sums import Sums

#: One for the whole process, so that all `Cache` objects of one root share its holder.
_FILE_SYSTEM = FileSystem()

Tell = Callable[[str], None]


def _silently(text: str) -> None:
    """Tell nobody."""


def _watch_silently(done: int, total: int) -> None:
    """Tell nobody."""


class Overview(NamedTuple):
    """What a glance at a cache shows."""

    root: Path
    id: str
    holders: int
    fetching: int  # fetches under way, those of processes that were killed included
    trashed: int  # evicted copies not yet deleted
    free: int  # bytes that the file system still has for us


class Cache:
    """A cache: one directory on a file system that all its users share.

    Every method may raise CacheError, whose `hint` says what to do, or OSError for what the file system refuses.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        on_warning: Tell = _silently,
        on_note: Tell = _silently,
        on_lost: Callable[[LeaseLost], None] | None = None,
        progress: Progress | None = None,
        may_hold_data: bool = False,
        jobs: int | None = 1,
        on_scan: Callable[[int, int], None] = _watch_silently,
        fs: FileSystem = _FILE_SYSTEM,
        clock: Clock | None = None,
        proc: Proc | None = None,
    ) -> None:
        """Nothing is touched before the first call.

        `on_warning` is told of what is damaged and passed over, `on_note` whom we are waiting for, `on_lost`
        (from a thread) that this program's leases were revoked. `may_hold_data`: set a cache up on first use also
        where there are files already, as in dtool's own cache directory. `jobs`: how many look-ups may run at a
        time (None: as many as is good), in threads or, where this program has none, in forked processes; `on_scan`
        is told how many of how many parts of a scan are done. `fs`, `clock` and `proc` are for tests.
        """
        self._layout = Layout(os.fspath(root))
        self._fs = fs
        self._clock = clock or Clock()
        self._proc = proc or Proc()
        self._warn = on_warning
        self._note = on_note
        self._on_lost = on_lost
        self._progress = progress
        self._may_hold_data = may_hold_data
        self._jobs = jobs
        self._on_scan = on_scan
        self._id: str | None = None
        self._config: config.Config | None = None
        self._program: program.Program | None = None
        self._known: dict[tuple[object, ...], Place] = {}

    # -- the cache itself --------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The cache's directory, absolute."""
        from pathlib import Path  # loaded where one is wanted: a short command does without

        return Path(self._layout.root)

    @property
    def settings(self) -> config.Config:
        """What `config.toml` says, read once."""
        if self._config is None:
            self._config = config.load(self._fs, self._layout, self._warn)
        return self._config

    def init(self) -> bool:
        """Set the cache up; False if it was one already. Raises UsageError where there must be none."""
        made = root.set_up(self._fs, self._layout)
        self.check()
        self._warn_of_strangers()
        return made

    def check(self) -> str:
        """The cache's id. Raises NoCache if the directory is none; nothing is written or deleted before this."""
        if self._id is None:
            self._id = root.check(self._fs, self._layout)
        return self._id

    def _check_or_set_up(self) -> None:
        """For `use`: a new or empty directory, or dtool's own, becomes a cache on first need."""
        try:
            self.check()
        except NoCache:
            if not (self._may_hold_data or root.is_empty(self._fs, self._layout.root)):
                raise
            self.init()

    # -- using -------------------------------------------------------------------------------------------------------

    def use(self, source: str | os.PathLike[str] | None = None, *steps: str, name: str | None = None) -> Lease:
        """A lease on an item, fetched first if it is not there; held by this process until released.

        `source` is a path or URL and `steps` are what is done with it, such as ``"sha256:…", "tar"``. `name` names
        the item; a name without a source is a pure reference count, on an empty directory. The lease is a context
        manager whose value is the path.

        Raises UsageError, FetchFailed, NoSpace, or TimedOut when somebody else fetches it for longer than
        `settings.fetch_wait`. An item that this process has used before costs one file-system call.
        """
        words = (source, *steps, name)
        place = self._known.get(words)
        member = self._program
        if place is not None and member is not None and member.holder.usable:
            lease = leases.take(self._fs, self._clock, member.holder, place)
            if lease is not None:
                return lease.keep_in(member.leases)
        return self._use_slowly(words)

    def _use_slowly(self, words: tuple[object, ...]) -> Lease:
        *stack, name = (None if word is None else os.fspath(word) for word in words)  # type: ignore[call-overload]
        lease = self.use_wanted(self.wanted([word for word in stack if word is not None], name))
        if _means_the_same_anywhere(words):
            self._known[words] = lease.place
        return lease

    def use_wanted(self, wanted: Wanted) -> Lease:
        """As `use`, for what no words can say: an item of a dtool dataset that is open already."""
        self._check_or_set_up()
        member = program.enter(self._fs, self._layout, self._clock, self._proc, self.settings.heartbeat_ttl)
        if self._on_lost is not None and self._on_lost not in member.on_lost:
            member.on_lost.append(self._on_lost)
        lease = self._acquirer(member.holder).acquire(wanted, Terms(self.settings.fetch_wait))
        self._program = member
        return lease.keep_in(member.leases)

    def hold(
        self,
        owner: Owner,
        wanted: Wanted,
        *,
        ttl: float | None = None,
        wait: float | None = None,
        size: int | None = None,
        rate: float | None = None,
        make_room: bool = False,
    ) -> Lease:
        """A lease for somebody else, that lasts when this process has ended: until `release`, or the owner's end.

        `ttl`: its lifetime in seconds (default: the cache's); `wait`: how many seconds to wait for another's fetch.
        `size`: bytes that it will need, for which room is reserved while it is fetched; `rate`: bytes a second at
        most; `make_room`: whether idle items may be evicted for it.
        """
        holder = self.enter(owner, ttl, wanted.key)
        try:
            with holder.beating():
                return self.acquire(holder, wanted, wait=wait, size=size, rate=rate, make_room=make_room)
        except BaseException:
            holder.retire()
            raise

    def enter(self, owner: Owner, ttl: float | None = None, key: str | None = None) -> Holder:
        """A holder that stands for somebody else; `ttl` as for `hold`, `key` of the only item that it will hold."""
        self._check_or_set_up()
        if ttl is None:
            ttl = self.settings.lease_ttl
        else:
            check_lifetime(ttl)
        return Holder(self._fs, self._layout, self._clock, owner, ttl, key)

    def acquire(
        self,
        holder: Holder,
        wanted: Wanted,
        *,
        wait: float | None = None,
        size: int | None = None,
        rate: float | None = None,
        make_room: bool = False,
    ) -> Lease:
        """A lease for a holder, which must be beating if it has a lifetime; the rest is as for `hold`."""
        wait = self.settings.fetch_wait if wait is None else wait
        terms = Terms(wait, size, rate, self.make_room if make_room else None)
        return self._acquirer(holder).acquire(wanted, terms)

    def wanted(self, words: Sequence[str], name: str | None = None) -> Wanted:
        """What the words of a command or call mean. Raises UsageError if they mean nothing."""
        return wanted_from(words, name, self._layout.root)

    def key_for(self, words: Sequence[str], name: str | None = None) -> str:
        """The key of the item that the words of `use` mean, or a path that it printed. Raises UsageError."""
        within = self.key_within(words[0]) if len(words) == 1 and name is None else None
        return within or self.wanted(words, name).key

    def key_within(self, path: str) -> str | None:
        """The key of the item of this cache that `path` lies in, such as one that `use` printed; None if in none."""
        return self._layout.key_of(path)

    def has(self, key: str) -> bool:
        """Whether a listing shows the item; a hint, only `use` can tell. False where there is no cache yet."""
        try:
            self.check()
        except NoCache:
            return False
        return bool(items.generations(self._fs, self._layout, key))

    def free_space(self) -> int:
        """Bytes that may still be written to the cache's file system."""
        return self._fs.free_space(self._layout.root)

    def room(self) -> int:
        """Bytes that are free, less what running fetches have reserved."""
        try:
            self.check()
        except NoCache:
            return self.free_space()
        from sccache_dtool.fetch import transfers

        return self.free_space() - transfers.reserved(self._fs, self._layout)

    def is_fetching(self, key: str) -> bool:
        """Whether somebody has begun to fetch the item here; a hint, and False where there is no cache yet."""
        try:
            self.check()
        except NoCache:
            return False
        from sccache_dtool.fetch import transfers

        return transfers.is_fetched(self._fs, self._layout, key)

    def make_room(self, missing: int) -> int:
        """Evict what is idle to free `missing` bytes, in the order of the cache's policy; returns how many it freed."""
        from sccache_dtool.evict.policies import Rules

        there = sum(item.bytes for item in self.items()) + sum(pile.bytes for pile in self.piles())
        policy = self.policy()
        rules = Rules(
            retain_size=max(0, there - missing), order=policy.order, exclude=policy.exclude, grace=policy.grace
        )
        try:
            return self.clean(rules, keep_for=0, why=f"room for {missing} bytes").freed
        except InUse:  # another cleaner is at work
            return 0

    def announced(self, wanted: Wanted) -> int | None:
        """Bytes that the sources of an item say they have, asked without fetching; None if one does not say."""
        from sccache_dtool.fetch.sources import announced

        sizes = [announced(chain.mirrors) for chain in wanted.stack.chains]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def transfers(self) -> list[Transfer]:
        """Fetches that run, waits for them, and fetches that have ended within a day."""
        from sccache_dtool.fetch import transfers

        self.check()
        return [*transfers.running(self._fs, self._layout), *transfers.ended(self._fs, self._layout)]

    def _acquirer(self, holder: Holder) -> Acquirer:
        return Acquirer(
            self._fs,
            self._layout,
            self._clock,
            self._proc,
            holder,
            self.settings.heartbeat_ttl,
            self._progress,
            self._note,
            lambda key: self._keeper().election(key),
        )

    # -- giving back -------------------------------------------------------------------------------------------------

    def release(
        self, owners: Sequence[Owner], key: str, *, everything: bool = False, generation: str | None = None
    ) -> int:
        """Give back one use of any of `owners` on an item, or all; returns how many. Too many is no error: 0.

        `generation`: only of this copy.
        """
        return self.release_copies(owners, [(key, generation)], everything=everything)

    def release_copies(
        self, owners: Sequence[Owner], copies: Iterable[tuple[str, str | None]], *, everything: bool = False
    ) -> int:
        """As `release`, for many keys with their generations: holders are listed once."""
        self.check()
        ended: list[str] = []
        try:
            for key, generation in copies:
                item = items.look(self._fs, self._layout, key, self._warn)
                ended += returning.release(self._fs, self._layout, self._clock, item, owners, everything, generation)
        finally:
            returning.dismiss(self._fs, self._layout, ended)
        return len(ended)

    def holder_above(self, key: str) -> Owner | None:
        """Who of the processes above this one holds an item on which `release` found nothing; None if nobody."""
        self.check()
        return returning.holder_above(items.look(self._fs, self._layout, key, self._warn), self._proc)

    def renew(self, owners: Sequence[Owner]) -> int:
        """Begin another lifetime for all holders of `owners` that have one; returns how many."""
        self.check()
        return returning.renew(self._fs, self._layout, owners)

    # -- looking -----------------------------------------------------------------------------------------------------

    def items(self) -> Iterator[Item]:
        """Everything in the cache, as a scan sees it; also what was evicted and has a history."""
        self.check()
        return items.scan(self._fs, self._layout, self._warn)

    def survey(self, fold: Callable[[Iterator[Item]], Sum], *, uses: bool = True) -> Iterator[Sum]:
        """What `fold` makes of parts of the cache, many looked at at a time; see `items.survey`.

        `fold` may be called in another process: a function of a module, or a `functools.partial` of one.
        """
        self.check()
        with self._crew() as crew:
            yield from items.survey(self._fs, self._layout, self._warn, crew, fold, uses=uses)

    def told(self) -> Iterator[tuple[Item, list[dict[str, Any]]]]:
        """Everything in the cache with the facts of its copies: a file is read for each."""
        self.check()
        with self._crew() as crew:
            yield from items.told(self._fs, self._layout, self._warn, crew)

    def item(self, key: str) -> Item:
        """One item as it is now."""
        self.check()
        return items.look(self._fs, self._layout, key, self._warn)

    def facts(self, copy: Copy) -> dict[str, Any]:
        """What was noted when a copy was fetched (`item.json`); empty if it cannot be read, with a warning."""
        return items.facts_or_none(self._fs, self._layout, copy, self._warn)

    def facts_of(self, key: str, generation: str) -> dict[str, Any]:
        """As `facts`, of a copy that a plan names."""
        return items.facts_if_readable(self._fs, self._layout, key, generation, self._warn)

    def path(self, copy: Copy) -> Path | None:
        """Where a copy's payload is; look, but take a lease before you read."""
        from pathlib import Path

        directory = f"{self._layout.generation(copy.key, str(copy.generation))}/{layout.PAYLOAD}"
        try:
            payload = items.payload_name(self._fs, self._layout, copy.key, copy.generation)
        except OSError as error:
            self._warn(f"{directory}: {error.strerror}; passed over")
            return None
        return Path(directory, payload) if payload else None

    def find(self, word: str) -> str:
        """The key of the item that `word` means: a key or its beginning, a label, a path in the cache, or a source.

        Raises UsageError if none does, or several do.
        """
        self.check()
        return finding.find(self._fs, self._layout, word, self._warn)

    def loose(self) -> Sequence[Loose]:
        """Files that dtool's own brokers left in the cache: no items, and nobody holds leases on them."""
        return self._keeper().loose().files

    def piles(self, untouched_since: float = 0.0) -> list[Pile]:
        """As `loose`, summed up by directory; `untouched_since` (seconds since 1970) is what counts as old."""
        return self._keeper().piles(untouched_since)

    def judged(self, item: Item) -> list[Judged]:
        """Who holds an item, and what can be said of each. Writes nothing into the cache."""
        return self._keeper().judged(item.held)

    def uses(self, key: str) -> list[Use]:
        """The finished uses of an item, the oldest first."""
        from sccache_dtool import history

        self.check()
        return history.read(self._fs, self._layout.history(key), self._warn)

    def overview(self) -> Overview:
        """What a glance at the cache shows."""
        cache_id = self.check()
        roll = Roll.glance(self._fs, self._layout)
        trashed = self._fs.names(self._layout.trash)
        working = [work for text in self._fs.names(self._layout.tmp) if (work := layout.WorkName.parse(text))]
        return Overview(
            root=self.root,
            id=cache_id,
            holders=len(roll.present),
            fetching=sum(work.purpose == "fetch" for work in working),
            trashed=len(trashed),
            free=self._fs.free_space(self._layout.root),
        )

    def state(self) -> State:
        """What a monitor wants to know; see `metrics.text`."""
        from sccache_dtool.evict import audit
        from sccache_dtool.metrics import Saved, State
        from sccache_dtool.sums import Sums, total

        glance = self.overview()
        whole, parts = Saved(), list[Sums]()
        for sums, more in self.survey(_sums_and_saved):
            parts.append(sums)
            whole = Saved(whole.bytes + more.bytes, whole.seconds + more.seconds)
        left = self.piles()
        return State(
            cache_id=glance.id,
            root=self._layout.root,
            sums=total(parts, 0),
            saved=whole,
            loose_files=sum(pile.files for pile in left),
            loose_bytes=sum(pile.bytes for pile in left),
            cleanings=tuple(audit.listing(self._fs, self._layout, self._warn)),
            holders=glance.holders,
            fetching=glance.fetching,
            trashed=glance.trashed,
            free=glance.free,
            now=self._clock.wall(),
        )

    # -- keeping -----------------------------------------------------------------------------------------------------

    def reap(self, *, dry_run: bool = False) -> Reaped:
        """End the leases of all holders that are proved dead, and say on what evidence."""
        return self._keeper().reap(dry_run=dry_run)

    def reap_on_word(self, holder: str, *, dry_run: bool = False) -> Reaped:
        """End the leases of one holder, by its id, because a person knows that it is gone."""
        return self._keeper().reap_on_word(holder, dry_run=dry_run)

    def plan(self, rules: Rules, *, ahead: float = 0.0) -> tuple[Plan, Reaped]:
        """What `clean` with these rules would do now, and what it would reap first. Writes no more than a probe.

        `ahead`: what it would do in so many seconds, if nobody used anything until then.
        """
        return self._keeper().plan(rules, ahead=ahead)

    def clean(
        self, rules: Rules, *, keep_for: float | None = None, most_seconds: float | None = None, why: str = ""
    ) -> Cleaned:
        """Evict what `rules` let go. `keep_for`: seconds for which `restore` finds it (default: the cache's).

        Nothing in use is ever evicted: the file system refuses. Raises InUse while another cleaner is at work.
        `most_seconds`: after which the rest is left for the next time; `why`: for the record in `cleanings/`.
        """
        keep_for = self.settings.trash_keep if keep_for is None else keep_for
        return self._keeper().clean(rules, keep_for, most_seconds, why)

    def clean_as_planned(
        self, planned: Planned, *, keep_for: float | None = None, most_seconds: float | None = None, why: str = ""
    ) -> Cleaned:
        """Evict what a plan says, as far as it is still true: what was used, or pinned, since then stays."""
        keep_for = self.settings.trash_keep if keep_for is None else keep_for
        return self._keeper().clean_as_planned(planned, keep_for, most_seconds, why)

    def policy(self) -> Rules:
        """What `config.toml` says of cleaning."""
        from sccache_dtool.evict.policies import Rules

        settings = self.settings
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

    def pin(self, key: str, until: float | None = None) -> None:
        """Keep an item, whatever the rules of a cleaning are, until a time in seconds since 1970, or for good."""
        from sccache_dtool.evict import pins

        self.check()
        by = f"{holders.user_name()}@{holders.host_name()}"
        pins.pin(self._fs, self._layout, key, int(until or 0), by, self._warn)

    def unpin(self, key: str) -> bool:
        """Let an item be cleaned again; False if it was not pinned."""
        from sccache_dtool.evict import pins

        self.check()
        return pins.unpin(self._fs, self._layout, key, self._warn)

    def pins(self) -> list[tuple[PinName, str]]:
        """All pins, and by whom."""
        from sccache_dtool.evict import pins

        self.check()
        found = pins.listing(self._fs, self._layout, self._warn)
        return [(name, pins.by_whom(self._fs, self._layout, name)) for name in found]

    def remove(self, key: str, *, keep_for: float | None = None) -> int:
        """Evict one item; returns the bytes. Raises InUse, naming who holds it."""
        return self._keeper().remove(key, self.settings.trash_keep if keep_for is None else keep_for)

    def evict_if_idle(self, key: str) -> bool:
        """Evict an item unless somebody holds it; True if nothing is left of it."""
        return self._keeper().evict_if_idle(key)

    def restorable(self) -> Iterator[tuple[str, TrashName]]:
        """Keys of the items in the trash that can be brought back, and where they are there."""
        return self._keeper().restorable()

    def restore(self, word: str) -> str:
        """Bring an item back from the trash; returns its key. Raises UsageError if it is not there."""
        return self._keeper().restore(word)

    def examine(self) -> list[Finding]:
        """Everything in the cache that is not as it should be."""
        from sccache_dtool.doctor import examine

        self.check()
        return examine(self._fs, self._layout, self._clock, self._keeper)

    def verify_content(self) -> Checked:
        """Read all payloads again that have a digest, and compare."""
        from sccache_dtool.doctor import verify_content

        evict = self._keeper(settings=config.Config()).remove_copy
        return verify_content(self._fs, self._layout, self._progress, evict, self._warn)

    def owner(self, spec: str = "auto") -> Owner:
        """On whose behalf a command is run; see `holders.owner_from`."""
        return holders.owner_from(spec, self._proc, self._warn)

    def owners(self, spec: str = "auto") -> tuple[Owner, ...]:
        """Whose leases a command gives back; see `holders.owners_from`."""
        return holders.owners_from(spec, self._proc, self._warn)

    def owner_of_command(self, pid: int, command: Sequence[str]) -> Owner:
        """The owner that is a command which we run and beat for."""
        return holders.command_owner(self._proc, pid, command)

    @property
    def heartbeat_ttl(self) -> float:
        """Lifetime in seconds of holders that beat."""
        return self.settings.heartbeat_ttl

    def close(self) -> None:
        """Release all that this process holds in this cache. It happens by itself when the program ends."""
        program.forget(self._layout)

    def _warn_of_strangers(self) -> None:
        for path in root.open_to_all(self._fs, self._layout):
            self._warn(f"{path}: every user may write, and delete, here; use a group instead (chmod o-w)")

    def _keeper(self, warn: Tell | None = None, settings: config.Config | None = None) -> Keeper:
        from sccache_dtool.evict.keeper import Keeper

        cache_id = self.check()
        if warn is None:
            self._warn_of_strangers()
        settings = settings or self.settings
        return Keeper(
            self._fs,
            self._layout,
            self._clock,
            self._proc,
            cache_id,
            warn or self._warn,
            settings.heartbeat_ttl,
            settings.dtool_directories,
            self._crew,
        )

    def _crew(self) -> Crew:
        return Crew(self._jobs, self._on_scan)


def _sums_and_saved(found: Iterator[Item]) -> tuple[Sums, Saved]:
    from sccache_dtool.metrics import saved
    from sccache_dtool.sums import add_up

    listed = list(found)
    return add_up(0, iter(listed)), saved(iter(listed))


def _means_the_same_anywhere(words: tuple[object, ...]) -> bool:
    """Whether a call means the same item after a change of the working directory."""
    return words[0] is None or str(words[0]).startswith(("/", "http:", "https:", "file:/"))
