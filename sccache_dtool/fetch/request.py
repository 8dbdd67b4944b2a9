"""What is asked for: one item, or all items of a dataset, with its sources, its steps, its name and its terms.

Words are parsed into a request once, where they come in: see `resolve.py`. Everything below takes the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sccache_dtool.disk.names import item_key, key_name
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.tuples import NamedTuple

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sccache_dtool.disk.filesystem import FileSystem
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.protocol.leases import Lease

    #: Puts a source's file at a path, where nothing is yet, with its size and digest checked. Raises FetchFailed.
    Retrieve = Callable[[FileSystem, str, Progress], None]

    #: A lease in another cache, which fetches the item if need be, until the end of the block. The number is the
    #: `max_age` of `Freshness`. Raises what a use raises.
    Lend = Callable[["Request", float | None], AbstractContextManager[Lease]]

#: The prefix of a source that is an item of a dtool dataset, or a whole dataset.
DTOOL = "dtool:"

#: The scheme of a source that is an object of the archive: ``sha256:HEX``, the digest of its content. As a later word,
#: the same text is a step.
OBJECT = "sha256"

#: How the labels of lists end, which say what is in a whole dataset; and of the views of an earlier release.
DATASET = ".dataset"


class Location(str):
    """Where a source really is; its `repr` shows no credentials, so that none end in a log or a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(plain(self))


class Source(NamedTuple):
    """A source, parsed from its word. `name` is the last part of its path, and may be empty.

    `canonical` is stored and shown, and has no credentials in it: `location` has.
    """

    canonical: str
    location: Location
    name: str
    #: Whether the server may know a better name for the file.
    provisional: bool = False

    @property
    def scheme(self) -> str:
        """The scheme, which decides how it is retrieved."""
        return self.canonical.partition(":")[0]


class Step(NamedTuple):
    """A step, parsed from its word."""

    canonical: str
    unpacks: bool = False  # whether it makes a directory, after which no further step is possible
    suffix: str = ""  # a pattern for the ending that it removes from the payload's name


class Chain(NamedTuple):
    """One source of a stack with all its mirrors, and its steps."""

    mirrors: tuple[Source, ...]
    steps: tuple[str, ...]
    label: str

    @property
    def source(self) -> str:
        """The source in its canonical form, fit to be shown."""
        return "|".join(mirror.canonical for mirror in self.mirrors)


class Stack(NamedTuple):
    """A loader stack, parsed. It is false when empty: an item without a source, a pure reference count."""

    #: The words, sources and steps: what identifies the item. There are no credentials in it.
    canonical: tuple[str, ...] = ()
    #: A file name for the payload: the same for the same canonical stack, on every host. Of a long name, a part.
    label: str = "data"
    #: The sources with their steps. If there are several, each becomes an entry of a directory.
    chains: tuple[Chain, ...] = ()
    #: The name of the item: the last part of the first source, without what the steps take from it.
    name: str = "data"

    @property
    def location(self) -> Location:
        """What is fetched first: an absolute path, or a URL with its credentials; empty for an empty stack."""
        return self.chains[0].mirrors[0].location if self.chains else Location()

    @property
    def source(self) -> str:
        """The first source in its canonical form, fit to be shown; empty for an empty stack."""
        return self.canonical[0] if self.canonical else ""

    @property
    def is_object(self) -> bool:
        """Whether it is an object of the archive, so that `[archive] limit` applies."""
        return self.source.startswith(f"{OBJECT}:")

    @property
    def provisional(self) -> bool:
        """Whether the payload may get another name than `label`, which the source says: see Source."""
        return len(self.chains) == 1 and self.chains[0].mirrors[0].provisional

    @property
    def steps(self) -> tuple[str, ...]:
        """What follows the first source, in order, in canonical form."""
        return self.canonical[1:]

    def __bool__(self) -> bool:
        return bool(self.canonical)


class Request(NamedTuple):
    """One item: its key, its name and label, and how it is fetched."""

    key: str
    name: str | None
    label: str
    stack: Stack
    #: Fetches the source if `sources.py` does not, and checks the digests among the steps.
    retrieve: Retrieve | None = None
    dataset: Mapping[str, str] | None = None  # of an item of dtool's: see ItemFacts
    relpath: str | None = None
    #: Returns the whole request, if that may need a round trip over the network, which a hit must not make. Before it
    #: is called, `label` is only a text for people, and the payload's name is looked up in the cache.
    complete: Callable[[], Request] | None = None
    spelled: tuple[str, ...] = ()  # see `words`

    @property
    def words(self) -> tuple[str, ...]:
        """Words that mean the item for `resolve.parse_request`, without credentials. Of dtool's, they say where it is.

        What identifies it, `stack.canonical`, says only which item of which dataset it is.
        """
        return self.spelled or self.stack.canonical

    @property
    def item_name(self) -> str:
        """The item's name."""
        return key_name(self.key) or self.name or self.stack.name

    @property
    def named_by_source(self) -> bool:
        """Whether a copy's payload may have another name than `label`."""
        return self.complete is not None or self.stack.provisional


class DatasetRequest(NamedTuple):
    """All items of a dtool dataset: a set, see `sets/datasets.py`."""

    uri: str
    uuid: str

    @property
    def key(self) -> str:
        """The key of the item that lists what is in the dataset."""
        return item_key((f"{DTOOL}{self.uuid}", "items"), f"{self.uuid[:8]}{DATASET}")

    @property
    def label(self) -> str:
        """The dataset, for people."""
        return plain(self.uri)


class Terms(NamedTuple):
    """On what terms an item is fetched."""

    wait: float  # seconds to wait for another process's download
    size: int | None = None  # bytes that it will need, if that is known
    rate: float | None = None  # bytes per second at most
    # Evicts idle items for so many bytes, and returns the bytes freed. Raises InUse if another cleaner is at work.
    make_room: Callable[[int], int] | None = None
    lend: Lend | None = None  # takes leases in the upstream, from which the item is copied; None: there is none
    #: Makes room within `[archive] limit` for an object of so many bytes. Raises NoSpace.
    limit: Callable[[int], None] | None = None
