"""Looks up the lots of copies during a scan, also in other processes, and reads as little of the disk as it can."""

from __future__ import annotations

from collections.abc import Iterable

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Copy
from sccache_dtool.disk import records
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.lots.belonging import Belonging, words_of
from sccache_dtool.lots.memo import NO_WORDS, Memo
from sccache_dtool.lots.model import Lots, Question
from sccache_dtool.protocol.store import Store


class Lookup:
    """The lots of what a scan finds.

    `past_deletion` has the names of lots whose data goes at every cleaning; `only` those of lots that are asked for,
    and is None if all are.
    """

    def __init__(self, store: Store, lots: Lots, now: float, only: str | None = None) -> None:
        """`now` in seconds since 1970; `only`: a lot, which is asked for with all below it."""
        self._memo = Memo(store)
        self._belonging = Belonging(lots, now)
        self._users: dict[int, str] = {}
        self.past_deletion = frozenset(lots.past(Question.DELETION, {}, now))
        self.only = None if only is None else frozenset((lots[only].name, *lots.descendants(only)))

    def of(self, copy: Copy) -> str | None:
        """The lot of a copy; None if what was noted of the copy cannot be read."""
        if not self._belonging.asks_for_facts:
            return self._belonging.of(copy.key, NO_WORDS)
        try:
            return self._belonging.of(copy.key, self._memo.words(copy))
        except (OSError, records.Damaged):
            return None

    def facts(self, copy: Copy) -> ItemFacts:
        """What is remembered of a copy: user, source, dataset and names. Raises OSError or records.Damaged."""
        return self._memo.facts(copy)

    def close(self, key: str, *, complete: bool = False) -> None:
        """Remember what was read in the directory of this item. `complete`: all copies there have been looked up."""
        self._memo.close(key[:2], complete=complete)

    def asks_for_any(self, copies: Iterable[Copy]) -> bool:
        """Whether one of the copies belongs to the lots that are asked for."""
        return self.only is None or any(self.of(copy) in self.only for copy in copies)

    def of_loose(self, path: str, uid: int) -> str:
        """The lot of a file that dtool left, by its path in the cache and by its owner."""
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = user_name(uid)
        return self._belonging.of_loose(path, user)

    def of_facts(self, key: str, facts: ItemFacts) -> str:
        """The lot of what is known to be such a copy, as of one that is being fetched."""
        return self._belonging.of(key, words_of(facts))
