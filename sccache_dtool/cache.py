"""The public face: everything that the command line and other programs do with a cache goes through `Cache`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sccache_dtool import config, holders, items, layout, leases, program, root
from sccache_dtool.clock import Clock
from sccache_dtool.errors import CacheError, FetchFailed, InUse, LeaseLost, NoCache, UsageError
from sccache_dtool.fetch.stack import Stack, parse_stack
from sccache_dtool.fetch.wanted import DTOOL, Wanted
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import Holder, Owner, Roll
from sccache_dtool.items import Copy, Item
from sccache_dtool.layout import HolderName, Layout, LeaseName, TrashName
from sccache_dtool.leases import Held, Lease, Place
from sccache_dtool.liveness.process import Proc
from sccache_dtool.records import Damaged
from sccache_dtool.units import check_lifetime

if TYPE_CHECKING:
    from pathlib import Path

    from sccache_dtool.doctor import Finding
    from sccache_dtool.evict.clean import Cleaned
    from sccache_dtool.evict.keeper import Keeper
    from sccache_dtool.evict.loose import Loose
    from sccache_dtool.evict.policies import Plan, Rules
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.fetch.transfers import Transfer
    from sccache_dtool.history import Use
    from sccache_dtool.reaping import Judged, Reaped

#: One for the whole process, so that all `Cache` objects of one root share its holder.
_FILE_SYSTEM = FileSystem()

Tell = Callable[[str], None]


def _silently(text: str) -> None:
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
        fs: FileSystem = _FILE_SYSTEM,
        clock: Clock | None = None,
        proc: Proc | None = None,
    ) -> None:
        """Nothing is touched before the first call.

        `on_warning` is told of what is damaged and passed over, `on_note` whom we are waiting for, `on_lost`
        (from a thread) that this program's leases were revoked. `may_hold_data`: set a cache up on first use also
        where there are files already, as in dtool's own cache directory. `fs`, `clock` and `proc` are for tests.
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
        if root.is_open_to_all(self._fs, self._layout):
            self._warn(f"{self._layout.root}: every user may write, and delete, here; use a group instead (chmod o-w)")
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
        lease = self._acquire(member.holder, wanted, self.settings.fetch_wait)
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
        self._check_or_set_up()
        if ttl is None:
            ttl = self.settings.lease_ttl
        else:
            check_lifetime(ttl)
        holder = Holder(self._fs, self._layout, self._clock, owner, ttl, wanted.key)
        try:
            with holder.beating():
                wait = self.settings.fetch_wait if wait is None else wait
                return self._acquire(holder, wanted, wait, size, rate, make_room)
        except BaseException:
            holder.retire()
            raise

    def wanted(self, words: Sequence[str], name: str | None = None) -> Wanted:
        """What the words of a command or call mean. Raises UsageError if they mean nothing."""
        if words and words[0].startswith(DTOOL):
            from sccache_dtool.fetch.datasets import wanted_from_words

            of_dataset = wanted_from_words(words, self._layout.root)
            stack = of_dataset.stack
        else:
            of_dataset, stack = None, parse_stack(words)
        if name is None and not stack:
            raise UsageError("nothing to use", hint="give a source (a path or URL), or a name with -n NAME, or both")
        if name is not None and not (name.strip() and name.isprintable() and len(name) <= 200):
            raise UsageError(f"{name!r} cannot be an item's name", hint="give 1 to 200 printable characters")
        if of_dataset is not None:
            if name is None:
                return of_dataset
            whole = of_dataset.complete() if of_dataset.complete is not None else of_dataset
            return whole._replace(key=self._key(whole.stack, name), name=name)
        label = stack.label if stack else layout.slug(name or "")
        return Wanted(self._key(stack, name), name, label, stack)

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

    @staticmethod
    def _key(stack: Stack, name: str | None) -> str:
        if name is not None:
            return layout.item_key((f"name:{name}",), name)
        return layout.item_key(stack.canonical, stack.label)

    def room(self) -> int:
        """Bytes that are free, less what running fetches have reserved."""
        try:
            self.check()
        except NoCache:
            return self.free_space()
        from sccache_dtool.fetch import transfers

        return self.free_space() - transfers.reserved(self._fs, self._layout)

    def make_room(self, missing: int) -> int:
        """Evict what is idle, the least recently used first, to free `missing` bytes; returns how many it freed."""
        from sccache_dtool.evict.policies import Rules

        there = sum(item.bytes for item in self.items())
        try:
            return self.clean(Rules(retain_size=max(0, there - missing)), keep_for=0).freed
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

    def _acquire(
        self,
        holder: Holder,
        wanted: Wanted,
        wait: float,
        size: int | None = None,
        rate: float | None = None,
        make_room: bool = False,
    ) -> Lease:
        lease = self._take_existing(holder, wanted)
        if lease is not None:
            return lease
        if wanted.complete is not None:
            wanted = wanted.complete()
        from sccache_dtool.fetch.populate import Populator, Terms
        from sccache_dtool.fetch.progress import NoProgress

        with self._worker(holder) as worker:
            progress = self._progress or NoProgress()
            return Populator(self._fs, self._layout, self._clock, holder, worker, progress, self._note).populate(
                wanted,
                lambda: self._keeper().election(wanted.key[:32]),
                lambda: self._take_existing(holder, wanted),
                Terms(wait, size, rate, self.make_room if make_room else None),
            )

    @contextlib.contextmanager
    def _worker(self, holder: Holder) -> Iterator[Holder]:
        """This process as a holder, for work areas: who is to have the lease may live on when we are killed."""
        if holder.owner.kind is holders.PROGRAM:
            yield holder
            return
        owner = holders.program_owner(self._proc)
        worker = Holder(self._fs, self._layout, self._clock, owner, self.settings.heartbeat_ttl)
        try:
            with worker.beating():
                yield worker
        finally:
            worker.retire()

    def _take_existing(self, holder: Holder, wanted: Wanted) -> Lease | None:
        """A lease on a copy that is there. A listing only hints at copies; whether one is open, its gate says."""
        for generation in items.generations(self._fs, self._layout, wanted.key):
            payload: str | None = wanted.label
            if wanted.complete is not None:
                payload = items.payload_name(self._fs, self._layout, wanted.key, generation)
            if payload is None:
                continue
            place = Place.of(self._layout, wanted.key, str(generation), payload)
            if wanted.fits is not None and not wanted.fits(place.payload):
                continue
            if wanted.name is not None and not self._is_of_same_stack(wanted, str(generation)):
                continue
            lease = leases.take(self._fs, self._clock, holder, place)
            if lease is not None:
                return lease
        return None

    def _is_of_same_stack(self, wanted: Wanted, generation: str) -> bool:
        """False if the copy has gone meanwhile. Raises UsageError for a name that stands for something else."""
        try:
            there = items.facts(self._fs, self._layout, wanted.key, generation).get("source")
        except FileNotFoundError:
            return False
        except (OSError, Damaged) as error:
            raise CacheError(f"cannot read what {wanted.name} was fetched from: {error}") from error
        if there == list(wanted.stack.canonical):
            return True
        raise UsageError(
            f"{wanted.name} is in the cache already, made from something else",
            details=[f"there: {_words(there)}", f"asked: {_words(wanted.stack.canonical)}"],
            hint="choose another name, or remove the item first: sc-dtool rm",
        )

    # -- giving back -------------------------------------------------------------------------------------------------

    def release(
        self, owners: Sequence[Owner], key: str, *, everything: bool = False, generation: str | None = None
    ) -> int:
        """Give back one use of any of `owners` on an item, or all; returns how many. Too many is no error: 0.

        `generation`: only of this copy.
        """
        self.check()
        prefixes = tuple(owner.prefix for owner in owners)
        count = 0
        for held in reversed(_held(items.look(self._fs, self._layout, key, self._warn))):
            if held.lease is None or not held.lease.holder.startswith(prefixes):
                continue
            if generation not in (None, held.generation):
                continue
            gate, ended = held.gate(self._layout), self._layout.history(key)
            if leases.end(self._fs, self._clock, gate, ended, held.name, layout.RELEASED):
                count += 1
                self._dismiss(held.lease)
            if count and not everything:
                break
        return count

    def _dismiss(self, lease: LeaseName) -> None:
        """Remove the holder of a lease that was its only one: what `hold` makes."""
        try:
            self._fs.unlink(f"{self._layout.holders}/{HolderName(lease.holder, 0, 0)}")
        except FileNotFoundError:  # it has a lifetime, so its name has changed
            name = Roll.glance(self._fs, self._layout).present.get(lease.holder)
            if name is not None:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.unlink(f"{self._layout.holders}/{name}")

    def renew(self, owners: Sequence[Owner]) -> int:
        """Begin another lifetime for all holders of `owners` that have one; returns how many."""
        self.check()
        prefixes = tuple(owner.prefix for owner in owners)
        roll = Roll.call(self._fs, self._layout)
        count = 0
        for name in roll.present.values():
            if not name.id.startswith(prefixes):
                continue
            with contextlib.suppress(FileNotFoundError, LookupError):  # given back meanwhile
                ttl = holders.read(self._fs, self._layout, name).ttl
                if ttl is not None and roll.now is not None:
                    holders.renew(self._fs, self._layout, name, int(roll.now + ttl))
                    count += 1
        if not count and any(id.startswith(prefixes) for id in roll.gone):
            raise LeaseLost(
                f"the leases of {owners[-1]} were revoked, their lifetime being over",
                hint="what it reads may be deleted: stop, and use the data anew",
            )
        return count

    # -- looking -----------------------------------------------------------------------------------------------------

    def items(self) -> Iterator[Item]:
        """Everything in the cache, as a scan sees it; also what was evicted and has a history."""
        self.check()
        return items.scan(self._fs, self._layout, self._warn)

    def item(self, key: str) -> Item:
        """One item as it is now."""
        self.check()
        return items.look(self._fs, self._layout, key, self._warn)

    def facts(self, copy: Copy) -> dict[str, Any]:
        """What was noted when a copy was fetched (`item.json`); empty if it cannot be read, with a warning."""
        try:
            return items.facts(self._fs, self._layout, copy.key, str(copy.generation))
        except (OSError, Damaged) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._warn(f"{self._layout.generation(copy.key, str(copy.generation))}/{layout.ITEM_FILE}: {reason}")
            return {}

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
        within = self._layout.key_of(word)
        if within is not None:
            return within
        keys = list(items.keys(self._fs, self._layout, self._warn))
        # `./ref.fa` means that very file, and no item of somebody else's that is called so.
        label = "" if word.startswith((".", "/")) or not word else layout.slug(word)
        of_source = self._keys_of_source(word)
        for matches in (
            [key for key in keys if key == word],
            [key for key in keys if layout.key_label(key) == label],
            [key for key in keys if len(word) >= 4 and key.startswith(word)],
            [key for key in keys if key in of_source],
        ):
            if len(matches) > 1:
                matches = [key for key in matches if self.has(key)] or matches  # rather than what was evicted
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise UsageError(
                    f"{word!r} could be any of {len(matches)} items",
                    details=matches[:10],
                    hint="give more of the key",
                )
        raise UsageError(f"there is no item {word!r} in {self._layout.root}", hint="list them with: sc-dtool ls")

    def _keys_of_source(self, word: str) -> set[str]:
        try:
            return {self.wanted([word]).key}
        except (UsageError, FetchFailed):
            return set()

    def loose(self) -> Sequence[Loose]:
        """Files that dtool's own brokers left in the cache: no items, and nobody holds leases on them."""
        return self._keeper().loose().files

    def judged(self, item: Item) -> list[Judged]:
        """Who holds an item, and what can be said of each. Writes nothing into the cache."""
        return self._keeper().judged(_held(item))

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

    # -- keeping -----------------------------------------------------------------------------------------------------

    def reap(self, *, dry_run: bool = False) -> Reaped:
        """End the leases of all holders that are proved dead, and say on what evidence."""
        return self._keeper().reap(dry_run=dry_run)

    def reap_on_word(self, holder: str, *, dry_run: bool = False) -> Reaped:
        """End the leases of one holder, by its id, because a person knows that it is gone."""
        return self._keeper().reap_on_word(holder, dry_run=dry_run)

    def plan(self, rules: Rules) -> tuple[Plan, Reaped]:
        """What `clean` with these rules would do now, and what it would reap first. Writes no more than a probe."""
        return self._keeper().plan(rules)

    def clean(self, rules: Rules, *, keep_for: float | None = None) -> Cleaned:
        """Evict what `rules` let go. `keep_for`: seconds for which `restore` finds it (default: the cache's).

        Nothing in use is ever evicted: the file system refuses. Raises InUse while another cleaner is at work.
        """
        return self._keeper().clean(rules, self.settings.trash_keep if keep_for is None else keep_for)

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
        found = [
            (key, name)
            for key, name in self.restorable()
            if word in (key, layout.key_label(key)) or (len(word) >= 4 and key.startswith(word))
        ]
        if not found:
            raise UsageError(f"there is no {word!r} in the trash", hint="only what was evicted with --trash is kept")
        if len({key for key, _ in found}) > 1:
            raise UsageError(
                f"{word!r} could be any of several items in the trash", details=sorted({key for key, _ in found})
            )
        key, name = max(found, key=lambda pair: pair[1].generation.created)
        if items.generations(self._fs, self._layout, key):
            raise InUse(f"{layout.key_label(key)} is in the cache already", hint="the copy in the trash stays there")
        if not self._keeper().restore(key, name):
            raise UsageError(f"{word!r} has just been deleted from the trash")
        return key

    def examine(self) -> list[Finding]:
        """Everything in the cache that is not as it should be."""
        from sccache_dtool.doctor import examine

        self.check()
        return examine(self._fs, self._layout, self._clock, self._keeper)

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

    def _keeper(self, warn: Tell | None = None) -> Keeper:
        from sccache_dtool.evict.keeper import Keeper

        return Keeper(self._fs, self._layout, self._clock, self._proc, self.check(), warn or self._warn)


def _held(item: Item) -> list[Held]:
    return [held for copy in item.copies for held in copy.held]


def _means_the_same_anywhere(words: tuple[object, ...]) -> bool:
    """Whether a call means the same item after a change of the working directory."""
    return words[0] is None or str(words[0]).startswith(("/", "http:", "https:", "file:/"))


def _words(stack: object) -> str:
    return " ".join(str(word) for word in stack) if isinstance(stack, list | tuple) and stack else "(no source)"
