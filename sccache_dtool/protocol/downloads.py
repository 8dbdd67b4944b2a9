"""What fetches leave in the cache for others: how they ended, and downloads that can be continued.

How a fetch ended is a small file in a directory of its item, `transfers/<32 digits of the key>/`. So what a fetch does
there, and whoever waits for it, does not depend on how many other fetches there were. `clean` removes them after a day.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout, OutcomeName, PartName, Purpose, WorkName, is_outcomes, only_if, understood
from sccache_dtool.errors import GONE
from sccache_dtool.fallback import do_without
from sccache_dtool.protocol.store import Store

#: Seconds for which it is kept how a fetch ended.
KEEP = 86_400.0

#: Seconds for which a download that was interrupted can be continued, since its last sign of progress.
CONTINUE_FOR = 86_400.0

#: Bytes of interrupted downloads that are kept for the next who wants the item; less is faster fetched again.
WORTH_KEEPING = 1 << 20


def outcomes(store: Store, key: str) -> list[OutcomeName]:
    """The names of what is known of the ended fetches of one item. One listing."""
    return _outcomes_in(store.fs, f"{store.layout.transfers}/{key[:32]}")


def all_outcomes(store: Store) -> Iterator[OutcomeName]:
    """The same of all items. A listing for each item that was fetched within a day."""
    for name in _names(store.fs, store.layout.transfers):
        if is_outcomes(name):
            yield from _outcomes_in(store.fs, f"{store.layout.transfers}/{name}")


def _outcomes_in(fs: FileSystem, directory: str) -> list[OutcomeName]:
    return [name for text in _names(fs, directory) if (name := OutcomeName.parse(text))]


def _names(fs: FileSystem, directory: str) -> list[str]:
    try:
        return fs.names(directory)
    except OSError as error:
        if error.errno not in GONE:
            do_without(f"how other downloads ended cannot be read ({error.strerror})")
        return []


def path_of(layout: Layout, name: OutcomeName) -> str:
    """Where it is noted how a fetch ended."""
    return f"{layout.transfers}/{name.key}/{name}"


def note_outcome(store: Store, name: OutcomeName, facts: dict[str, Any]) -> None:
    """Note how a fetch ended. A failure to do so is none of the fetch's."""
    path, text = path_of(store.layout, name), records.encode_document(facts)
    try:
        try:
            store.fs.write_new(path, text, shared=store.layout.shared)
        except FileNotFoundError:
            store.fs.make_dirs(path.rpartition("/")[0], shared=store.layout.shared)
            store.fs.write_new(path, text, shared=store.layout.shared)
    except OSError as error:
        do_without(f"other processes cannot see how this download ended ({error.strerror})")


def any_expired(store: Store, now: float) -> bool:
    """Whether there is anything for `tidy` to do, at the time `now` (seconds since 1970)."""
    return any(name.end / 1000 < now - KEEP for name in all_outcomes(store))


def tidy(store: Store, now: float) -> None:
    """Remove what was noted more than a day ago."""
    found = _names(store.fs, store.layout.transfers)
    for item in understood(store.layout.transfers, found, only_if(is_outcomes), WHAT, store.log):
        directory = f"{store.layout.transfers}/{item}"
        names = _outcomes_in(store.fs, directory)
        for name in names:
            if name.end / 1000 < now - KEEP:
                with contextlib.suppress(OSError):
                    store.fs.unlink(f"{directory}/{name}")
        if all(name.end / 1000 < now - KEEP for name in names):
            with contextlib.suppress(OSError):  # somebody has just fetched the item again
                store.fs.rmdir(directory)


#: What a name in `transfers/` is not, for a warning.
WHAT = "not how fetches of an item ended"


def parts(fs: FileSystem, area: str) -> dict[int, int]:
    """Bytes that can be relied on in the downloads of a work area, by the number of the source."""
    found = (PartName.parse(name) for name in fs.names(area))
    return {part.source: part.bytes for part in found if part and part.bytes}


def continuable_until(store: Store, work: WorkName) -> float | None:
    """Until when the download in an abandoned work area is kept to be continued, by the file system's clock.

    In seconds since 1970; None if it is not worth keeping. Every sign of progress changes the area.
    """
    area = f"{store.layout.tmp}/{work}"
    try:
        if work.purpose != Purpose.GLOBUS and (
            work.purpose not in (Purpose.FETCH, Purpose.TAKEN) or sum(parts(store.fs, area).values()) < WORTH_KEEPING
        ):
            return None
        return store.fs.lstat(area).st_mtime + CONTINUE_FOR
    except OSError:
        return None
