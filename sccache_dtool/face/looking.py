"""Looking into a cache: nothing is changed, and what is damaged is passed over with a warning."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool import find
from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Copy, Item, Sum
from sccache_dtool.disk import names
from sccache_dtool.disk.names import PinName
from sccache_dtool.errors import CacheError, NoCache
from sccache_dtool.face.opened import Opened
from sccache_dtool.protocol.holders import Roll

if TYPE_CHECKING:
    from pathlib import Path

    from sccache_dtool.catalog.facts import ItemFacts
    from sccache_dtool.catalog.loose import Loose, Pile
    from sccache_dtool.fetch.transfers import Transfer
    from sccache_dtool.metrics import Saved, State
    from sccache_dtool.policy.totals import Spared, Sums
    from sccache_dtool.protocol.history import Use
    from sccache_dtool.protocol.reaping import Judged


class Overview(NamedTuple):
    """What a glance at a cache shows."""

    root: Path
    id: str
    holders: int
    fetching: int  # fetches under way
    continuable: int  # downloads that were interrupted, and that the next who wants the item continues
    trashed: int  # evicted copies not yet deleted
    free: int | None  # bytes that the file system still has for us; None: it does not say so


class Looking(Opened):
    """What anybody may want to know of a cache."""

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

    def told(self) -> Iterator[tuple[Item, list[ItemFacts]]]:
        """Everything in the cache with the facts of its copies: a file is read for each."""
        self.check()
        with self._crew() as crew:
            yield from items.told(self._fs, self._layout, self._warn, crew)

    def item(self, key: str) -> Item:
        """One item as it is now."""
        self.check()
        return items.look(self._fs, self._layout, key, self._warn)

    def facts(self, copy: Copy) -> ItemFacts:
        """What was noted when a copy was fetched (`item.json`); empty if it cannot be read, with a warning."""
        return items.facts_or_none(self._fs, self._layout, copy, self._warn)

    def facts_of(self, key: str, generation: str) -> ItemFacts:
        """As `facts`, of a copy that a plan names."""
        return items.facts_if_readable(self._fs, self._layout, key, generation, self._warn)

    def path(self, copy: Copy) -> Path | None:
        """Where a copy's payload is; look, but take a lease before you read."""
        from pathlib import Path

        directory = f"{self._layout.generation(copy.key, str(copy.generation))}/{names.PAYLOAD}"
        try:
            payload = items.payload_name(self._fs, self._layout, copy.key, copy.generation)
        except OSError as error:
            self._warn(f"{directory}: {error.strerror}; passed over")
            return None
        return Path(directory, payload) if payload else None

    def is_whole(self, copy: Copy, path: str | os.PathLike[str]) -> bool:
        """Whether the payload of a copy, at `path`, is there as it was published; see `items.is_whole`."""
        return items.is_whole(self._fs, os.fspath(path), copy.generation)

    def find(self, word: str) -> str:
        """The key of the item that `word` means: its name, its key or the beginning of it, a path in it, or its source.

        Raises UsageError if it means none, or could mean several.
        """
        self.check()
        return find.find(self._fs, self._layout, word, self.request, self._warn)

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

    def is_fetching(self, key: str) -> bool:
        """Whether somebody has begun to fetch the item here; a hint, and False where there is no cache yet."""
        try:
            self.check()
        except NoCache:
            return False
        from sccache_dtool.fetch import transfers

        return transfers.is_fetched(self._store(), key)

    def transfers(self) -> list[Transfer]:
        """Fetches that run, waits for them, and fetches that have ended within a day."""
        from sccache_dtool.fetch import transfers

        self.check()
        return [*transfers.running(self._store()), *transfers.ended(self._store())]

    def free_space(self) -> int | None:
        """Bytes that may still be written to the cache's file system; None if it does not say so."""
        return self._fs.free_space(self._layout.root)

    def room(self) -> int | None:
        """Bytes that are free, less what running fetches have reserved; None if the file system does not say so."""
        try:
            self.check()
        except NoCache:
            return self.free_space()
        from sccache_dtool.fetch import transfers

        free = self.free_space()
        return None if free is None else free - transfers.reserved(self._store())

    def loose(self) -> Sequence[Loose]:
        """Files that dtool's own brokers left in the cache: no items, and nobody holds leases on them."""
        return self._keeper().loose().files

    def spared(self) -> Spared:
        """What `clean --all` would leave although nobody uses it."""
        from sccache_dtool.evict import pins
        from sccache_dtool.policy.totals import Spared

        self.check()
        now = self._clock.wall()
        try:
            pinned = pins.pinned(self._fs, self._layout, now, self._warn)
            return Spared(pinned, self.settings.clean_exclude, self.settings.clean_grace, now)
        except CacheError as error:  # what is pinned, or excluded by config.toml, is not known
            self._warn(f"{error.message}; nothing is counted as reclaimable")
            return Spared(everything=True)

    def reclaimable_piles(self) -> list[Pile]:
        """As `piles`; what `clean --all` would remove counts as old."""
        from sccache_dtool.catalog.loose import YOUNG

        try:
            grace, exclude = self.settings.clean_grace, self.settings.clean_exclude
        except CacheError:  # `spared` reports it
            return self.piles()
        return self.piles(untouched_since=self._clock.wall() - max(YOUNG, grace), exclude=exclude)

    def piles(self, untouched_since: float = 0.0, exclude: tuple[str, ...] = ()) -> list[Pile]:
        """As `loose`, summed up by directory; `untouched_since` (seconds since 1970) is what counts as old.

        `exclude`: patterns of what does not count as old.
        """
        from sccache_dtool.catalog import loose

        self.check()
        self._warn_of_strangers()
        named = self.settings.dtool_directories
        with self._crew() as crew:
            found = loose.piles(
                self._fs, self._layout, self._warn, crew, named, untouched_since=untouched_since, exclude=exclude
            )
            return list(found)

    def judged(self, item: Item) -> list[Judged]:
        """Who holds an item, and what can be said of each. Writes nothing into the cache."""
        return self._keeper().judged(item.held)

    def uses(self, key: str) -> list[Use]:
        """The finished uses of an item, the oldest first."""
        from sccache_dtool.protocol import history

        self.check()
        return history.read(self._fs, self._layout.history(key), self._warn)

    def overview(self) -> Overview:
        """What a glance at the cache shows."""
        from sccache_dtool.fetch import transfers

        cache_id = self.check()
        roll = Roll.glance(self._fs, self._layout)
        trashed = self._fs.names(self._layout.trash)
        found = list(transfers.running(self._store(), waits=False))
        abandoned = [one for one in found if one.state == transfers.State.ABANDONED]
        return Overview(
            root=self.root,
            id=cache_id,
            holders=len(roll.present),
            fetching=len(found) - len(abandoned),
            continuable=sum(one.continuable_until is not None for one in abandoned),
            trashed=len(trashed),
            free=self._fs.free_space(self._layout.root),
        )

    def state(self) -> State:
        """What a monitor wants to know; see `metrics.text`."""
        from sccache_dtool.evict import audit
        from sccache_dtool.metrics import Saved, State
        from sccache_dtool.policy.totals import Sums, total

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

    def pins(self) -> list[tuple[PinName, str]]:
        """All pins, and by whom."""
        from sccache_dtool.evict import pins

        self.check()
        found = pins.listing(self._fs, self._layout, self._warn)
        return [(name, pins.by_whom(self._fs, self._layout, name)) for name in found]


def _sums_and_saved(found: Iterator[Item]) -> tuple[Sums, Saved]:
    from sccache_dtool.metrics import saved
    from sccache_dtool.policy.totals import add_up

    listed = list(found)
    return add_up(0, iter(listed)), saved(iter(listed))
