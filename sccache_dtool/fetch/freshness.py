"""Which copies of an item may be used: those of the version that its source has now, as far as that is asked for.

Local sources are always looked at: the same path may be another file on another host. Without further terms, nothing
is asked over a network. With `max_age`, the source of a copy that is older is asked whether it has changed. When it
says that it has not, that is noted beside the copy, as a name with the time, so that it counts as fresh from then on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sccache_dtool.catalog import items
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.disk import records
from sccache_dtool.disk.names import CheckedName, Generation
from sccache_dtool.fetch import versions
from sccache_dtool.fetch.request import Request
from sccache_dtool.protocol.store import Store

if TYPE_CHECKING:
    from sccache_dtool.fetch.tier import Tier

#: Seconds by which the clocks of two hosts may differ. What was noted later than that from now was noted by a clock
#: that was wrong, and would count as fresh until that time has come.
_MOST_AHEAD = 60.0


class Freshness:
    """Judges the copies of one item for one use; a copy is judged once, however often it is found."""

    def __init__(self, store: Store, request: Request, max_age: float | None, tier: Tier | None = None) -> None:
        """`max_age`: seconds for which a copy is used without asking its source; 0: always ask; None: never ask.

        `tier`: the upstream, which asks the sources of what was copied from there.
        """
        self._store = store
        self._request = request
        self._max_age = max_age
        self._tier = tier
        self._judged: dict[str, bool] = {}
        self._now: versions.CurrentVersion | None = None
        self._outdated: int | None = None  # when a copy was fetched of which the source has another version by now
        self._warned = False

    def begin(self) -> None:
        """A new search begins, with the newest copy: look at the sources again."""
        self._now = None

    @property
    def election(self) -> str:
        """The name of the election for fetching the item; processes that want another version have another one."""
        name, stack = self._request.key[:32], self._request.stack
        if self._request.retrieve is not None or not versions.is_tracked(stack):
            return name
        versions.refuse_around(stack, self._store.layout.root)
        return f"{name}-{versions.now(stack).tag}"

    def accepts(self, generation: Generation) -> bool:
        """Whether a copy may be used. Raises FetchFailed if its source must be asked, and cannot be."""
        if self._request.retrieve is not None or not self._request.stack:
            return True  # items of datasets never change, and what has no source cannot
        name = str(generation)
        if name not in self._judged:
            self._judged[name] = self._judge(generation)
        return self._judged[name]

    def _judge(self, generation: Generation) -> bool:
        if not versions.fits(self._local, generation.version, lambda: self._noted(generation)):
            return False
        if not self._must_ask(generation):
            if self._local.unreadable and not self._warned:
                self._warned = True
                unreadable = self._local.unreadable[0]
                self._store.log.warning(f"cannot read {unreadable}; using the copy that was fetched earlier")
            return True
        if self._outdated is not None and generation.created < self._outdated:
            return False  # nor has it the version before that
        moment = self._confirm(generation)
        if moment is not None:
            self._note_check(generation, moment)
            return True
        self._outdated = generation.created
        return False

    @property
    def _local(self) -> versions.CurrentVersion:
        if self._now is None:
            self._now = versions.now(self._request.stack)
        return self._now

    def _must_ask(self, generation: Generation) -> bool:
        """Whether sources whose version cannot be seen locally must be asked."""
        if self._max_age is None:
            return False
        chains = self._request.stack.chains
        looked_at = all(versions.is_pinned(chain) or versions.tracked(chain) is not None for chain in chains)
        return not (looked_at and not self._local.unreadable) and not self._is_young(generation)

    # -- asking ------------------------------------------------------------------------------------------------------

    def _is_young(self, generation: Generation) -> bool:
        """Whether it was fetched, or found unchanged, within the time."""
        max_age = self._max_age or 0.0
        if not max_age:
            return False
        return self._store.clock.wall() - last_confirmed(self._store, self._request.key, str(generation)) < max_age

    def _confirm(self, generation: Generation) -> int | None:
        """When the source was last found to have the version of a copy, after it was asked; None if it has another."""
        copied = self._facts(generation).upstream
        if self._tier is not None and copied is not None:
            return self._tier.confirmed(copied)
        return int(self._store.clock.wall()) if self._is_unchanged(generation) else None

    def _is_unchanged(self, generation: Generation) -> bool:
        from sccache_dtool.fetch import sources

        chains = self._request.stack.chains
        noted = self._noted(generation)
        if len(noted) != len(chains):
            return False
        for chain, fact in zip(chains, noted, strict=True):
            if versions.is_pinned(chain):
                continue
            source = versions.tracked(chain)
            if source is None:
                same = sources.is_unchanged(self._store, chain, fact)
            elif self._local.unreadable:
                try:
                    same = versions.is_as_noted(source, fact)
                except OSError as error:
                    raise versions.unreadable(source, error) from error
            else:
                same = True  # `fits` has compared it
            if not same:
                return False
        return True

    def _noted(self, generation: Generation) -> Sequence[Any]:
        """What `item.json` says of the version of each source; empty if it says nothing that can be understood."""
        return self._facts(generation).versions or ()

    def _facts(self, generation: Generation) -> ItemFacts:
        return _facts(self._store, self._request.key, str(generation))

    # -- what was asked before ---------------------------------------------------------------------------------------

    def _note_check(self, generation: Generation, moment: int) -> None:
        """A failure to do so means only that the source is asked again."""
        fs, directory = self._store.fs, self._store.layout.generation(self._request.key, str(generation))
        with contextlib.suppress(OSError):
            before = [one for one in _checks(self._store, self._request.key, str(generation)) if one < moment]
            fs.put_record("-", f"{directory}/{CheckedName(moment)}")
            for old in before:
                with contextlib.suppress(OSError):
                    fs.unlink(f"{directory}/{CheckedName(old)}")


def last_confirmed(store: Store, key: str, generation: str) -> float:
    """When the source was last known to have the version of a copy, in seconds since 1970; 0 if nothing says when.

    That is when the copy was fetched, or when the source was asked. A copy that was restored, or copied from another
    cache, is as old as its fetch.
    """
    from datetime import datetime

    try:
        fetched = datetime.fromisoformat(_facts(store, key, generation).fetched or "").timestamp()
    except (ValueError, OverflowError, OSError):
        fetched = 0.0
    now = store.clock.wall()
    known = [moment for moment in (fetched, *_checks(store, key, generation)) if moment <= now + _MOST_AHEAD]
    return max(known, default=0.0)


def _facts(store: Store, key: str, generation: str) -> ItemFacts:
    try:
        return items.facts(store, key, generation)
    except (OSError, records.Damaged):
        return ItemFacts()


def _checks(store: Store, key: str, generation: str) -> list[int]:
    """When the source was found unchanged."""
    try:
        names = store.fs.names(store.layout.generation(key, generation))
    except OSError:
        return []
    return [checked.time for name in names if (checked := CheckedName.parse(name))]
