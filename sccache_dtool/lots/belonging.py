"""To which lot a copy belongs: by what it is, where it came from, or who fetched it.

A lot claims paths of several kinds: ``item:KEY``, ``dataset:UUID/PATH``, ``name:NAME``, the source (``/path`` or a
URL), ``loose:PATH`` for files that dtool left, and ``user:NAME``. The first kind of which a lot claims the copy's path
decides, in this order; within a kind the longest claim does.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.lots.model import DEFAULT, Lots, Match, components

#: What the paths of each kind begin with; those of sources begin with a slash, or with the scheme of a URL.
ITEM, DATASET, NAME, SOURCE, LOOSE, USER = "item:", "dataset:", "name:", "", "loose:", "user:"

_KINDS = (ITEM, DATASET, NAME, LOOSE, USER)

#: The path of a copy of each kind, from its key and its `words_of`, in the order in which they are consulted; empty if
#: it has none.
_PATHS: dict[str, Callable[[str, Sequence[str]], str]] = {
    ITEM: lambda key, words: f"{ITEM}{key}",
    DATASET: lambda key, words: words[2] and f"{DATASET}{words[2]}/{words[3]}",
    NAME: lambda key, words: words[4] and f"{NAME}{words[4]}",
    SOURCE: lambda key, words: words[1].removeprefix("file:"),
    USER: lambda key, words: f"{USER}{words[0]}",
}


class Consulted(NamedTuple):
    """A path of a copy that was looked up, and the lot that claims it; None if no lot does."""

    path: str
    match: Match | None


class Belonging:
    """Looks up to which lot copies belong. It remembers the lots of directories, for there may be a million copies.

    It can be sent to other processes with each piece of their work: each of them unpacks it once.
    """

    def __init__(self, lots: Lots, now: float) -> None:
        """`now`: lots that are created later, in seconds since 1970, are not consulted."""
        self._lots = lots
        self._now = now
        claimed = {components(claim.path)[0] for lot in lots for claim in lot.claims if not claim.exclude}
        self._kinds = {next((kind for kind in _KINDS if first.startswith(kind)), SOURCE) for first in claimed}
        #: Whether it depends on more than the key to which lot a copy belongs.
        self.asks_for_facts = not self._kinds <= {ITEM, LOOSE}
        self._paths = [path for kind, path in _PATHS.items() if kind in self._kinds]
        claims = {claim.path.rstrip("/") for lot in lots for claim in lot.claims}
        self._claimed = {path: lots.of(path or "/", now).lot for path in claims}
        self._below: dict[str, str] = {}  # what is in a directory, and not claimed itself
        self._packed: bytes | None = None

    def __reduce__(self) -> tuple[object, ...]:
        if self._packed is None:
            self._packed = pickle.dumps((list(self._lots), self._now))
        return _unpack, (self._packed,)

    def of(self, key: str, words: Sequence[str]) -> str:
        """The lot of a copy of an item, of which this is known: see `words_of`."""
        for path_of in self._paths:
            if (path := path_of(key, words)) and (found := self._lot(path)) != DEFAULT:
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
        return self._until_claimed(paths(key, words_of(facts)))

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
        path = path.rstrip("/")
        found = self._claimed.get(path)
        if found is not None:
            return found
        parent, slash, _ = path.rpartition("/")
        if not slash:
            return DEFAULT
        found = self._below.get(parent)
        if found is None:
            found = self._below[parent] = self._lots.of(f"{parent}/\0", self._now).lot  # no path of a lot has this name
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


def words_of(facts: ItemFacts) -> Sequence[str]:
    """What the lot of a copy depends on: user, source, dataset, path in it, and name; empty if there is none."""
    dataset = (facts.dataset or {}).get("uuid", "")
    source = facts.source[0] if facts.source else ""  # what follows are steps, or further sources
    return facts.user, source, dataset, facts.relpath or "", facts.name or ""


def paths(key: str, words: Sequence[str]) -> list[str]:
    """The paths of a copy, in the order in which they are consulted."""
    return [path for path_of in _PATHS.values() if (path := path_of(key, words))]
