"""The public face: everything that the command line and other programs do with a cache goes through `Cache`.

Using is here, and giving back; looking and keeping are below, in `face/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sccache_dtool import find, release
from sccache_dtool.acquire import Acquirer, until_it_stands
from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Copy
from sccache_dtool.disk.names import Generation
from sccache_dtool.errors import NoCache, UsageError
from sccache_dtool.face.keeping import Keeping
from sccache_dtool.face.opened import silently
from sccache_dtool.fetch import versions
from sccache_dtool.fetch.freshness import Freshness, Surroundings
from sccache_dtool.fetch.request import Terms, Wanted
from sccache_dtool.fetch.stack import Stack
from sccache_dtool.find import Named
from sccache_dtool.protocol import holders, leases, program
from sccache_dtool.protocol.holders import Holder, Owner
from sccache_dtool.protocol.leases import Lease, Place
from sccache_dtool.units import check_lifetime

if TYPE_CHECKING:
    from pathlib import Path


class Cache(Keeping):
    """A cache: one directory on a file system that all its users share.

    Every method may raise CacheError, whose `hint` says what to do, or OSError for what the file system refuses.
    """

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
        member = self._program
        if place is not None and member is not None and member.holder.usable and _is_current(place, stack):
            lease = leases.take(self._fs, self._clock, member.holder, place)
            if lease is not None and member.stands(lease):
                return lease
        return self._use_slowly(words)

    def _use_slowly(self, words: tuple[object, ...], max_age: float | None = None) -> Lease:
        *stack, name = (None if word is None else os.fspath(word) for word in words)  # type: ignore[call-overload]
        wanted = self.wanted([word for word in stack if word is not None], name)
        lease = self.use_wanted(wanted, max_age)
        if _means_the_same_anywhere(words):
            self._known[words] = lease.place, wanted.stack
        return lease

    def use_wanted(self, wanted: Wanted, max_age: float | None = None) -> Lease:
        """As `use`, for what no words can say: an item of a dtool dataset that is open already."""
        self._check_or_set_up()
        return until_it_stands(lambda: self._use_as_program(wanted, max_age), self._note)

    def _use_as_program(self, wanted: Wanted, max_age: float | None) -> Lease:
        member = program.enter(self._fs, self._layout, self._clock, self._proc, self.settings.heartbeat_ttl)
        if self._on_lost is not None and self._on_lost not in member.on_lost:
            member.on_lost.append(self._on_lost)
        lease = self._acquirer(member.holder).acquire(wanted, lambda: Terms(self.settings.fetch_wait), max_age)
        if not member.stands(lease):
            raise member.holder.revoked()
        self._program = member
        return lease

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
        max_age: float | None = None,
    ) -> Lease:
        """A lease for somebody else, that lasts when this process has ended: until `release`, or the owner's end.

        `ttl`: its lifetime in seconds (default: the cache's); `wait`: how many seconds to wait for another's fetch.
        `size`: bytes that it will need, for which room is reserved while it is fetched; `rate`: bytes a second at
        most; `make_room`: whether idle items may be evicted for it. `max_age`: as for `use`; 0: always ask.
        """
        terms = {"wait": wait, "size": size, "rate": rate, "make_room": make_room, "max_age": max_age}
        return until_it_stands(lambda: self._hold(owner, ttl, wanted, terms), self._note)

    def _hold(self, owner: Owner, ttl: float | None, wanted: Wanted, terms: dict[str, Any]) -> Lease:
        holder = self.enter(owner, ttl, wanted.key)
        try:
            with holder.beating():
                return self.acquire(holder, wanted, **terms)
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
        max_age: float | None = None,
    ) -> Lease:
        """A lease for a holder, which must be beating if it has a lifetime; the rest is as for `hold`.

        Raises LeaseLost if the holder was revoked meanwhile.
        """

        def terms() -> Terms:
            seconds = self.settings.fetch_wait if wait is None else wait
            return Terms(seconds, size, rate, self.make_room if make_room else None)

        return self._acquirer(holder).acquire(wanted, terms, max_age)

    def _acquirer(self, holder: Holder) -> Acquirer:
        return Acquirer(
            self._fs,
            self._layout,
            self._clock,
            self._proc,
            holder,
            lambda: self.heartbeat_ttl,
            self._progress,
            self._note,
            self._warn,
            lambda key: self._keeper().election(key),
        )

    def offers(self, wanted: Wanted) -> bool:
        """Whether a listing shows a copy of what the item's local sources have now; a hint, as `has`."""
        try:
            self.check()
        except NoCache:
            return False
        return next(self._current(wanted), None) is not None

    def locate(self, wanted: Wanted) -> Path | None:
        """Where the copy is that `use` would take; None if it would fetch. Look, but take a lease before you read."""
        found = ((copy, self.path(copy)) for copy in self._current(wanted))
        return next((path for copy, path in found if path is not None and self.is_whole(copy, path)), None)

    def _current(self, wanted: Wanted) -> Iterator[Copy]:
        """The copies of an item that `use` would take, the newest first."""
        around = Surroundings(self._fs, self._layout, self._clock, silently, silently)
        fresh = Freshness(around, wanted, None)
        copies = items.look(self._fs, self._layout, wanted.key, self._warn, uses=False).copies
        return (copy for copy in copies if not copy.closed and fresh.accepts(copy.generation))

    def key_for(self, words: Sequence[str], name: str | None = None) -> str:
        """The key of the item that `use` means by these words, or of a path that it printed; it need not be there.

        Nothing is looked up; for what a person may have typed see `find_used`. Raises UsageError.
        """
        within = self.key_within(words[0]) if len(words) == 1 and name is None else None
        return within or self.wanted(words, name).key

    def find_used(self, words: Sequence[str], name: str | None = None) -> Named:
        """What the words and the name mean that `use` was given, a path that it printed, or any word for `find`.

        A path in a copy means that copy alone. Raises UsageError for a word that means no item, or several.
        """
        if not words:
            self.wanted(words, name)  # raises if there is no name either: that is wrong with any cache
        self.check()
        return find.find_used(self._fs, self._layout, words, name, self.wanted, self._warn)

    def announced(self, wanted: Wanted) -> int | None:
        """Bytes that the sources of an item say they have, asked without fetching; None if one does not say."""
        from sccache_dtool.fetch.sources import announced

        sizes = [announced(chain.mirrors) for chain in wanted.stack.chains]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    # -- on whose behalf ---------------------------------------------------------------------------------------------

    def owner(self, spec: str = "auto") -> Owner:
        """On whose behalf a command is run; see `holders.owner_from`."""
        return holders.owner_from(spec, self._proc, self._warn)

    def owners(self, spec: str = "auto") -> tuple[Owner, ...]:
        """Whose leases a command gives back; see `holders.owners_from`."""
        return holders.owners_from(spec, self._proc, self._warn)

    def owner_of_command(self, pid: int, command: Sequence[str]) -> Owner:
        """The owner that is a command which we run and beat for."""
        return holders.command_owner(self._proc, pid, command)

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
                item = items.look(self._fs, self._layout, key, self._warn, uses=False)
                ended += release.release(self._fs, self._layout, self._clock, item, owners, everything, generation)
        finally:
            release.dismiss(self._fs, self._layout, ended)
        return len(ended)

    def holder_above(self, key: str) -> Owner | None:
        """Who of the processes above this one holds an item on which `release` found nothing; None if nobody."""
        self.check()
        return release.holder_above(items.look(self._fs, self._layout, key, self._warn, uses=False), self._proc)

    def renew(self, owners: Sequence[Owner]) -> int:
        """Begin another lifetime for all holders of `owners` that have one; returns how many."""
        self.check()
        return release.renew(self._fs, self._layout, owners)


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
