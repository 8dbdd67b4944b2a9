"""To which lot a copy belongs: by what it is, where it came from, or who fetched it.

A lot claims paths of several kinds: ``item:KEY``, ``dataset:UUID/PATH``, ``name:NAME``, the source (``/path`` or a
URL), ``loose:PATH`` for files that dtool left, and ``user:NAME``. The first kind of which a lot claims the copy's path
decides, in this order; within a kind the longest claim does.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.lots.model import DEFAULT, Lots, Match, components

#: What the paths of each kind begin with; those of sources begin with a slash, or with the scheme of a URL.
ITEM, DATASET, NAME, LOOSE, USER = "item:", "dataset:", "name:", "loose:", "user:"

_KINDS = (ITEM, DATASET, NAME, LOOSE, USER)


class Consulted(NamedTuple):
    """A path of a copy that was looked up, and the lot that claims it; None if no lot does."""

    path: str
    match: Match | None


class Belonging:
    """Looks up to which lot copies belong. It remembers what it has found, for there may be a million copies.

    It can be sent to other processes with each piece of their work: each of them unpacks it once.
    """

    def __init__(self, lots: Lots, now: float) -> None:
        """`now`: lots that are created later, in seconds since 1970, are not consulted."""
        self._lots = lots
        self._now = now
        claimed = {components(claim.path)[0] for lot in lots for claim in lot.claims if not claim.exclude}
        self._kinds = {next((kind for kind in _KINDS if first.startswith(kind)), "") for first in claimed}
        self._known: dict[str, str] = {}
        self._packed: bytes | None = None

    def __reduce__(self) -> tuple[object, ...]:
        if self._packed is None:
            self._packed = pickle.dumps((list(self._lots), self._now))
        return _unpack, (self._packed,)

    @property
    def asks_for_facts(self) -> bool:
        """Whether it depends on more than the key to which lot a copy belongs."""
        return not self._kinds <= {ITEM, LOOSE}

    def of(self, key: str, facts: ItemFacts) -> str:
        """The lot of a copy of an item."""
        if not self._kinds:
            return DEFAULT
        for kind, path in paths(key, facts):
            if kind in self._kinds and (found := self._lot(path)) != DEFAULT:
                return found
        return DEFAULT

    def of_loose(self, path: str, user: str) -> str:
        """The lot of a file that dtool left, by its path in the cache, and by its owner."""
        for kind, text in ((LOOSE, f"{LOOSE}{path}"), (USER, f"{USER}{user}")):
            if kind in self._kinds and (found := self._lot(text)) != DEFAULT:
                return found
        return DEFAULT

    def explain(self, key: str, facts: ItemFacts) -> list[Consulted]:
        """All paths of a copy that are looked up, in order, up to the first that a lot claims."""
        return self._until_claimed(path for _, path in paths(key, facts))

    def explain_loose(self, path: str, user: str) -> list[Consulted]:
        """As `explain`, of a file that dtool left."""
        return self._until_claimed((f"{LOOSE}{path}", f"{USER}{user}"))

    def _until_claimed(self, consulted: Iterable[str]) -> list[Consulted]:
        found = []
        for path in consulted:
            match = self._lots.of(path, self._now)
            found.append(Consulted(path, match if match.claim else None))
            if match.claim:
                break
        return found

    def _lot(self, path: str) -> str:
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = self._lots.of(path, self._now).lot
        return found


#: What this process has unpacked last.
_unpacked: dict[bytes, Belonging] = {}


def _unpack(packed: bytes) -> Belonging:
    found = _unpacked.get(packed)
    if found is None:
        _unpacked.clear()
        lots, now = pickle.loads(packed)
        found = _unpacked[packed] = Belonging(Lots(lots), now)
    return found


def paths(key: str, facts: ItemFacts) -> Iterator[tuple[str, str]]:
    """The paths of a copy, each with its kind, in the order in which they are consulted; ``""`` is that of sources."""
    yield ITEM, f"{ITEM}{key}"
    uuid = (facts.dataset or {}).get("uuid")
    if uuid:
        yield DATASET, f"{DATASET}{uuid}/{facts.relpath or ''}"
    if facts.name:
        yield NAME, f"{NAME}{facts.name}"
    if facts.source:  # the first one; what follows are steps, or further sources
        yield "", facts.source[0].removeprefix("file:")
    yield USER, f"{USER}{facts.user}"
