"""What is known of the copies of a cache, to look up their lots without a file of each: a million files take a minute.

A copy never changes what was noted of it. So the facts on which its lot depends are remembered in `facts/`, in a file
for each directory of items. Whoever has read many of them writes a new one. It only saves time: a file that is missing,
or has another number of lines than its name says, is not used, and may be deleted at any time.

Whoever may write there could say of the data of others that it belongs to another lot. So a file is believed only if it
is the reader's own, root's, or that of whoever owns the lots, and nobody else can write to it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence

from sccache_dtool.catalog import items
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Copy
from sccache_dtool.disk.names import MemoName, unique
from sccache_dtool.disk.records import Damaged
from sccache_dtool.lots.belonging import words_of
from sccache_dtool.protocol.store import Store

#: Copies that must be new for a file to be written, and the share that they must be of what was known.
LEAST_NEW, _SHARE_NEW = 16, 20

#: Bytes of the largest file.
_LIMIT = 1 << 25


#: Rights of others to a file, with which it is not believed, and those that it gets.
_BY_OTHERS, _MODE = stat.S_IWGRP | stat.S_IWOTH, 0o644

#: What is known of nobody and nothing.
NO_WORDS = ("?", "", "", "", "")

#: Fields of facts on which the lot of a copy depends.
_DECISIVE = {"name", "source", "by", "dataset", "relpath"}


class _Page:
    """What is known of the copies in one directory of items."""

    def __init__(self, known: dict[str, str], files: Iterable[str]) -> None:
        self.known = known
        self.files = list(files)  # that a new one replaces
        self.new = 0
        self.seen: set[str] = set()


class Memo:
    """What is known of copies. It can be sent to other processes, without what it has read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pages: dict[str, _Page] = {}  # by directory: threads look at different ones
        self._files: list[str] | None = None
        self._owners: frozenset[int] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return Memo, (self._store,)

    def facts(self, copy: Copy) -> ItemFacts:
        """The facts of a copy on which its lot depends. Raises OSError or records.Damaged."""
        user, source, dataset, relpath, name = self.words(copy)
        return ItemFacts(
            name=name or None,
            source=(source,) if source else None,
            by=user,
            dataset={"uuid": dataset} if dataset else None,
            relpath=relpath or None,
        )

    def words(self, copy: Copy) -> Sequence[str]:
        """What `words_of` says of them. Raises OSError or records.Damaged."""
        page = self._pages.get(copy.key[:2]) or self._open(copy.key[:2])
        generation = str(copy.generation)
        page.seen.add(generation)
        line = page.known.get(generation)
        if line is not None:
            return line.split("\t")
        facts = items.facts(self._store, copy.key, generation)
        if facts.malformed & _DECISIVE:
            raise Damaged("what was noted of the copy does not say for which lot it counts")
        words = words_of(facts)
        if all(map(str.isprintable, words)):
            page.new += 1
            page.known[generation] = "\t".join(words)
        return words

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
            fd = fs.create(f"{layout.facts}/{name}", _MODE)
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
        known: dict[str, str] = {}
        replaced = []
        of_directory = (one for one in self._files if one.startswith(f"{directory}-"))
        for name in sorted(filter(None, map(MemoName.parse, of_directory))):
            with contextlib.suppress(OSError):
                text, is_own = self._read(f"{self._store.layout.facts}/{name}")
                if is_own:
                    replaced.append(str(name))
                lines = text.split("\n")
                if len(lines) == name.lines + 1 and not lines[-1]:  # else it is being written
                    whole = (
                        line for line in lines[:-1] if line.count("\t") == len(NO_WORDS)
                    )  # else it has another form
                    known.update(line.split("\t", 1) for line in whole)  # type: ignore[misc]
        page = self._pages[directory] = _Page(known, replaced)
        return page

    def _read(self, path: str) -> tuple[str, bool]:
        """The text of a file, empty if it is not believed, and whether this user may replace it for all who read it."""
        fs = self._store.fs
        if self._owners is None:
            self._owners = frozenset({0, os.geteuid(), fs.lstat(self._store.layout.lots).st_uid})
        fd = fs.open(path)
        try:
            status = fs.fstat(fd)
            is_own = status.st_uid == os.geteuid()
            is_believed = status.st_uid in self._owners and stat.S_ISREG(status.st_mode)
            if not is_believed or status.st_mode & _BY_OTHERS or status.st_size > _LIMIT:
                return "", is_own
            parts = []
            while part := fs.read(fd):
                parts.append(part)
        finally:
            fs.close(fd)
        return b"".join(parts).decode("utf-8", "replace"), is_own
