"""What the words of `use` mean, and on what terms it is to be had."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.disk.names import item_key, key_name, label
from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.stack import Stack, parse_stack

if TYPE_CHECKING:
    from sccache_dtool.disk.filesystem import FileSystem
    from sccache_dtool.fetch.progress import Progress

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
    dataset: Mapping[str, str] | None = None  # of an item of dtool's: see ItemFacts
    relpath: str | None = None
    #: Finds out the rest where that may cost a network's round trip, which a hit must not. Until it has been called,
    #: `label` is no more than a word for people, and the payload's name is looked up.
    complete: Callable[[], Wanted] | None = None
    #: Whether the payload at a path will do; None: every copy of the item does.
    fits: Callable[[str], bool] | None = None

    @property
    def called(self) -> str:
        """The item's name."""
        return key_name(self.key) or self.name or self.stack.name

    @property
    def named_by_source(self) -> bool:
        """Whether a copy's payload may have another name than `label`."""
        return self.complete is not None or self.stack.provisional


class Terms(NamedTuple):
    """On what terms an item is fetched."""

    wait: float  # seconds to wait for somebody else's download
    size: int | None = None  # bytes that it will need, if somebody said so
    rate: float | None = None  # bytes a second at most
    make_room: Callable[[int], int] | None = None  # evicts what is idle; given and returns bytes


def wanted_from(words: Sequence[str], name: str | None, root: str, credentials: Collection[str] = ()) -> Wanted:
    """The item of the cache at `root` that words and a name mean. Raises UsageError if they mean none.

    `credentials`: see `parse_stack`.
    """
    if words and words[0].startswith(DTOOL):
        from sccache_dtool.fetch.datasets import wanted_from_words

        of_dataset = wanted_from_words(words, root)
        stack = of_dataset.stack
    else:
        of_dataset, stack = None, parse_stack(words, credentials=credentials)
    if name is None and not stack:
        raise UsageError("nothing to use", hint="give a source (a path or URL), or a name with -n NAME, or both")
    if name is not None and not (name.strip() and name.isprintable() and len(name) <= 200):
        raise UsageError(f"{name!r} cannot be an item's name", hint="give 1 to 200 printable characters")
    if of_dataset is not None:
        if name is None:
            return of_dataset
        whole = of_dataset.complete() if of_dataset.complete is not None else of_dataset
        return whole._replace(key=_key(whole.stack, name), name=name)
    return Wanted(_key(stack, name), name, stack.label if stack else label(name or ""), stack)


def _key(stack: Stack, name: str | None) -> str:
    if name is not None:
        return item_key((f"name:{name}",), name)
    return item_key(stack.canonical, stack.name)
