"""What is known of the copies of a cache, to look up their lots without a file of each: a million files take a minute.

A copy never changes what was noted of it. So the facts on which its lot depends are remembered in `facts/`, in a file
for each directory of items. Whoever has read many of them writes a new one. It only saves time: a file that is missing,
or has another number of lines than its name says, is not used, and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from sccache_dtool.catalog import items
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Copy
from sccache_dtool.disk.names import MemoName, unique
from sccache_dtool.protocol.store import Store

#: Copies that must be new for a file to be written, and the share that they must be of what was known.
LEAST_NEW, _SHARE_NEW = 16, 20

#: What is remembered of a copy, in a line that begins with its generation.
_WORDS = 5

#: Bytes of the largest file.
_LIMIT = 1 << 25


class _Page:
    """What is known of the copies in one directory of items."""

    def __init__(self, known: dict[str, str], files: Iterable[str]) -> None:
        self.known = known
        self.files = list(files)
        self.new = 0
        self.seen: set[str] = set()


class Memo:
    """What is known of copies. It can be sent to other processes, without what it has read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pages: dict[str, _Page] = {}  # by directory: threads look at different ones
        self._files: list[str] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return Memo, (self._store,)

    def facts(self, copy: Copy) -> ItemFacts:
        """The facts of a copy on which its lot depends. Raises OSError or records.Damaged."""
        page = self._pages.get(copy.key[:2]) or self._open(copy.key[:2])
        generation = str(copy.generation)
        page.seen.add(generation)
        line = page.known.get(generation)
        if line is not None:
            return _decode(line)
        facts = items.facts(self._store, copy.key, generation)
        if (line := _encode(facts)) is not None:
            page.new += 1
            page.known[generation] = line
        return facts

    def close(self, directory: str, *, complete: bool = False) -> None:
        """Remember what was read of the copies in a directory of items. `complete`: all have been looked up."""
        page = self._pages.pop(directory, None)
        if page is None:
            return
        known = page.known
        if complete and len(known) > 2 * len(page.seen) + LEAST_NEW:  # most of it is of copies that are gone
            known = {generation: line for generation, line in known.items() if generation in page.seen}
        elif page.new < max(LEAST_NEW, len(known) // _SHARE_NEW):
            return
        name = MemoName(directory, len(known), unique())
        text = "".join(f"{generation}\t{line}\n" for generation, line in known.items())
        fs, layout = self._store.fs, self._store.layout
        with contextlib.suppress(OSError):  # not permitted, or no space: then it takes longer the next time, too
            fs.make_dirs(layout.facts, shared=layout.shared)
            fd = fs.create(f"{layout.facts}/{name}")
            try:
                fs.write(fd, text.encode())
            finally:
                fs.close(fd)
            for file in page.files:
                fs.unlink(f"{layout.facts}/{file}")

    def _open(self, directory: str) -> _Page:
        if self._files is None:
            try:
                self._files = self._store.fs.names(self._store.layout.facts)
            except OSError:
                self._files = []
        names = sorted(name for one in self._files if (name := MemoName.parse(one)) and name.directory == directory)
        known: dict[str, str] = {}
        for name in names:
            with contextlib.suppress(OSError):
                lines = self._store.fs.read_text(f"{self._store.layout.facts}/{name}", _LIMIT).split("\n")
                if len(lines) == name.lines + 1 and not lines[-1]:  # else it is being written
                    whole = (line for line in lines[:-1] if line.count("\t") == _WORDS)  # else it has another form
                    known.update(tuple(line.split("\t", 1)) for line in whole)  # type: ignore[misc]
        page = self._pages[directory] = _Page(known, map(str, names))
        return page


def _encode(facts: ItemFacts) -> str | None:
    """The facts as a line; None if that cannot be."""
    dataset = (facts.dataset or {}).get("uuid", "")
    source = facts.source[0] if facts.source else ""
    words = [facts.user, source, dataset, facts.relpath or "", facts.name or ""]
    return "\t".join(words) if not facts.malformed and all(word.isprintable() for word in words) else None


def _decode(line: str) -> ItemFacts:
    user, source, dataset, relpath, name = line.split("\t")
    return ItemFacts(
        name=name or None,
        source=(source,) if source else None,
        by=user,
        dataset={"uuid": dataset} if dataset else None,
        relpath=relpath or None,
    )
