"""What the words of a command or call mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.fetch.stack import Stack

if TYPE_CHECKING:
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.fsops import FileSystem

    #: Puts a source's file at a path, where nothing is yet, with its size and digest checked. Raises FetchFailed.
    Bring = Callable[[FileSystem, str, Progress], None]

#: What a source begins with that is an item of a dtool dataset, or a whole one.
DTOOL = "dtool:"


class Wanted(NamedTuple):
    """An item to be had: its key, what it is called on the command line, how to get it."""

    key: str
    name: str | None
    label: str
    stack: Stack
    #: What brings the source, where that is not `sources.py`'s business; the digests among the steps are its own.
    bring: Bring | None = None
    #: Further facts for `item.json`.
    notes: Mapping[str, object] | None = None
    #: Finds out the rest where that may cost a network's round trip, which a hit must not. Until it has been called,
    #: `label` is no more than a word for people, and the payload's name is looked up.
    complete: Callable[[], Wanted] | None = None
    #: Whether the payload at a path will do; None: every copy of the item does.
    fits: Callable[[str], bool] | None = None
