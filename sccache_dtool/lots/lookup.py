"""Looks up the lots of copies during a scan, also in other processes, and reads as little of the disk as it can."""

from __future__ import annotations

from sccache_dtool.catalog import items
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Copy
from sccache_dtool.catalog.loose import Loose
from sccache_dtool.disk import records
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.lots.belonging import Belonging
from sccache_dtool.lots.model import Lots, Question
from sccache_dtool.protocol.store import Store


class Lookup:
    """The lots of what a scan finds.

    `past_deletion` has the names of lots whose data goes at every cleaning; `only` those of lots that are asked for,
    and is None if all are.
    """

    def __init__(self, store: Store, lots: Lots, now: float, only: str | None = None) -> None:
        """`now` in seconds since 1970; `only`: a lot, which is asked for with all below it."""
        self._store = store
        self._belonging = Belonging(lots, now)
        self._users: dict[int, str] = {}
        self.past_deletion = frozenset(lots.past(Question.DELETION, {}, now))
        self.only = None if only is None else frozenset((lots[only].name, *lots.descendants(only)))

    def of(self, copy: Copy) -> str | None:
        """The lot of a copy; None if what was noted of the copy cannot be read."""
        if not self._belonging.asks_for_facts:
            return self._belonging.of(copy.key, ItemFacts())
        try:
            return self._belonging.of(copy.key, items.facts(self._store, copy.key, str(copy.generation)))
        except (OSError, records.Damaged):
            return None

    def of_loose(self, one: Loose) -> str:
        """The lot of a file that dtool left."""
        user = self._users.get(one.uid)
        if user is None:
            user = self._users[one.uid] = user_name(one.uid)
        return self._belonging.of_loose(one.path, user)
