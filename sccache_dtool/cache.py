"""The public face: everything that the command line and other programs do with a cache goes through `Cache`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sccache_dtool import config, holders, items, layout, leases, program, root
from sccache_dtool.clock import Clock
from sccache_dtool.errors import CacheError, InUse, LeaseLost, NoCache, UsageError
from sccache_dtool.fetch.stack import Stack, parse_stack
from sccache_dtool.fetch.wanted import Wanted
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import Holder, Owner, Roll
from sccache_dtool.items import Copy, Item
from sccache_dtool.layout import HolderName, Layout, LeaseName
from sccache_dtool.leases import Held, Lease, Place
from sccache_dtool.liveness.process import Proc
from sccache_dtool.records import Damaged

if TYPE_CHECKING:
    from pathlib import Path

    from sccache_dtool.doctor import Finding
    from sccache_dtool.evict.clean import Cleaned
    from sccache_dtool.evict.keeper import Keeper
    from sccache_dtool.evict.policies import Plan, Rules
    from sccache_dtool.fetch.progress import Progress
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
        wanted = self.wanted([word for word in stack if word is not None], name)
        self._check_or_set_up()
        member = program.enter(self._fs, self._layout, self._clock, self._proc, self.settings.heartbeat_ttl)
        if self._on_lost is not None and self._on_lost not in member.on_lost:
            member.on_lost.append(self._on_lost)
        lease = self._acquire(member.holder, wanted, self.settings.fetch_wait)
        self._program = member
        if _means_the_same_anywhere(words):
            self._known[words] = lease.place
        return lease.keep_in(member.leases)

    def hold(self, owner: Owner, wanted: Wanted, *, ttl: float | None = None, wait: float | None = None) -> Lease:
        """A lease for somebody else, that lasts when this process has ended: until `release`, or the owner's end.

        `ttl`: its lifetime in seconds (default: the cache's); `wait`: how many seconds to wait for another's fetch.
        """
        self._check_or_set_up()
        if ttl is None:
            ttl = self.settings.lease_ttl
        holder = Holder(self._fs, self._layout, self._clock, owner, ttl)
        try:
            with holder.beating():
                return self._acquire(holder, wanted, self.settings.fetch_wait if wait is None else wait)
        except BaseException:
            holder.retire()
            raise

    def wanted(self, words: Sequence[str], name: str | None = None) -> Wanted:
        """What the words of a command or call mean. Raises UsageError if they mean nothing."""
        stack = parse_stack(words)
        if name is None and not stack:
            raise UsageError("nothing to use", hint="give a source (a path or URL), or a name with -n NAME, or both")
        if name is not None and not (name.strip() and name.isprintable() and len(name) <= 200):
            raise UsageError(f"{name!r} cannot be an item's name", hint="give 1 to 200 printable characters")
        label = stack.label if stack else layout.slug(name or "")
        return Wanted(self._key(stack, name), name, label, stack)

    def key_for(self, words: Sequence[str], name: str | None = None) -> str:
        """The key of the item that the words of `use` mean, or a path that it printed. Raises UsageError."""
        within = self._layout.key_of(words[0]) if len(words) == 1 and name is None else None
        return within or self.wanted(words, name).key

    def has(self, key: str) -> bool:
        """Whether a listing shows the item; a hint, only `use` can tell."""
        return bool(items.generations(self._fs, self._layout, key))

    def free_space(self) -> int:
        """Bytes that may still be written to the cache's file system."""
        return self._fs.free_space(self._layout.root)

    @staticmethod
    def _key(stack: Stack, name: str | None) -> str:
        if name is not None:
            return layout.item_key((f"name:{name}",), name)
        return layout.item_key(stack.canonical, stack.label)

    def _acquire(self, holder: Holder, wanted: Wanted, wait: float) -> Lease:
        lease = self._take_existing(holder, wanted)
        if lease is not None:
            return lease
        from sccache_dtool.fetch.populate import Populator
        from sccache_dtool.fetch.progress import NoProgress

        populator = Populator(self._fs, self._layout, self._clock, holder, self._progress or NoProgress(), self._note)
        election = self._keeper().election(wanted.key[:32])
        return populator.populate(wanted, election, lambda: self._take_existing(holder, wanted), wait)

    def _take_existing(self, holder: Holder, wanted: Wanted) -> Lease | None:
        """A lease on a copy that is there. A listing only hints at copies; whether one is open, its gate says."""
        for generation in items.generations(self._fs, self._layout, wanted.key):
            payload = wanted.label
            place = Place.of(self._layout, wanted.key, str(generation), payload)
            lease = leases.take(self._fs, self._clock, holder, place)
            if lease is None:
                continue
            if wanted.name is not None:
                self._check_same_stack(lease, wanted)
            return lease
        return None

    def _check_same_stack(self, lease: Lease, wanted: Wanted) -> None:
        """Refuse to give under a name what was fetched from elsewhere."""
        try:
            facts = items.facts(self._fs, self._layout, wanted.key, lease.place.generation)
            there = facts.get("source")
        except (OSError, Damaged) as error:
            lease.release()
            raise CacheError(f"cannot read what {wanted.name} was fetched from: {error}") from error
        if there == list(wanted.stack.canonical):
            return
        lease.release()
        raise UsageError(
            f"{wanted.name} is in the cache already, made from something else",
            details=[f"there: {_words(there)}", f"asked: {_words(wanted.stack.canonical)}"],
            hint="choose another name, or remove the item first: sc-dtool rm",
        )

    # -- giving back -------------------------------------------------------------------------------------------------

    def release(self, owners: Sequence[Owner], key: str, *, everything: bool = False) -> int:
        """Give back one use of any of `owners` on an item, or all; returns how many. Too many is no error: 0."""
        self.check()
        prefixes = tuple(owner.prefix for owner in owners)
        count = 0
        for held in reversed(_held(items.look(self._fs, self._layout, key, self._warn))):
            if held.lease is None or not held.lease.holder.startswith(prefixes):
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
            ttl = holders.read(self._fs, self._layout, name).ttl
            if ttl is not None and roll.now is not None:
                with contextlib.suppress(LookupError):
                    holders.renew(self._fs, self._layout, name, int(roll.now + ttl))
                    count += 1
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
            self._warn(f"{self._layout.generation(copy.key, str(copy.generation))}/{layout.ITEM_FILE}: {error}")
            return {}

    def path(self, copy: Copy) -> Path | None:
        """Where a copy's payload is; look, but take a lease before you read."""
        from pathlib import Path

        payload = items.payload_name(self._fs, self._layout, copy.key, copy.generation)
        return (
            Path(self._layout.generation(copy.key, str(copy.generation)), layout.PAYLOAD, payload) if payload else None
        )

    def find(self, word: str) -> str:
        """The key of the item that `word` means: a key or its beginning, a label, a path in the cache, or a source.

        Raises UsageError if none does, or several do.
        """
        self.check()
        within = self._layout.key_of(word)
        if within is not None:
            return within
        keys = list(items.keys(self._fs, self._layout, self._warn))
        for matches in (
            [key for key in keys if key == word],
            [key for key in keys if layout.key_label(key) == layout.slug(word)],
            [key for key in keys if len(word) >= 4 and key.startswith(word)],
            [key for key in keys if key in self._keys_of_source(word)],
        ):
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
            return {self._key(parse_stack([word]), None)}
        except UsageError:
            return set()

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

    def restore(self, word: str) -> str:
        """Bring an item back from the trash; returns its key. Raises UsageError if it is not there."""
        keeper = self._keeper()
        found = [
            (key, name) for key, name in keeper.restorable() if word in (key, layout.key_label(key), key[: len(word)])
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
        if not keeper.restore(key, name):
            raise UsageError(f"{word!r} has just been deleted from the trash")
        return key

    def examine(self) -> list[Finding]:
        """Everything in the cache that is not as it should be."""
        from sccache_dtool.doctor import examine

        self.check()
        return examine(self._fs, self._layout, self._keeper)

    def owner(self, spec: str = "auto") -> Owner:
        """On whose behalf a command is run; see `holders.owner_from`."""
        return holders.owner_from(spec, self._proc, self._warn)

    def owners(self, spec: str = "auto") -> tuple[Owner, ...]:
        """Whose leases a command gives back; see `holders.owners_from`."""
        return holders.owners_from(spec, self._proc, self._warn)

    def owner_of_command(self, pid: int, command: Sequence[str]) -> Owner:
        """The owner that is a command which we run and beat for."""
        return holders.process_owner(holders.COMMAND, self._proc, pid)._replace(command=holders.one_line(command))

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
