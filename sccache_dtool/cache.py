"""The public face: everything that the command line and other programs do with a cache goes through `Cache`.

Using is here, and giving back; looking and keeping are below, in `face/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from sccache_dtool import holders, items, leases, program, returning
from sccache_dtool.acquiring import Acquirer
from sccache_dtool.face.keeping import Keeping
from sccache_dtool.fetch.wanted import Terms, Wanted, wanted_from
from sccache_dtool.holders import Holder, Owner
from sccache_dtool.leases import Lease
from sccache_dtool.units import check_lifetime


class Cache(Keeping):
    """A cache: one directory on a file system that all its users share.

    Every method may raise CacheError, whose `hint` says what to do, or OSError for what the file system refuses.
    """

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

    def wanted(self, words: Sequence[str], name: str | None = None) -> Wanted:
        """What the words of a command or call mean. Raises UsageError if they mean nothing."""
        credentials = self.settings.fetch_credentials if any("=" in word for word in words) else ()
        return wanted_from(words, name, self._layout.root, credentials)

    def key_for(self, words: Sequence[str], name: str | None = None) -> str:
        """The key of the item that the words of `use` mean, or a path that it printed. Raises UsageError."""
        within = self.key_within(words[0]) if len(words) == 1 and name is None else None
        return within or self.wanted(words, name).key

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


def _means_the_same_anywhere(words: tuple[object, ...]) -> bool:
    """Whether a call means the same item after a change of the working directory."""
    return words[0] is None or str(words[0]).startswith(("/", "http:", "https:", "file:/"))
