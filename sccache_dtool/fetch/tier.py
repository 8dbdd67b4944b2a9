"""Another cache as the source of an item: the upstream of a cache that is nearer, such as on a node's own disk.

The upstream fetches what it does not have, as for every use. A lease there keeps its copy until that is copied and
verified here. Election, waiting, progress and publication are those of any other fetch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sccache_dtool.catalog import items
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Generation
from sccache_dtool.errors import FetchFailed, NoSpace, translate
from sccache_dtool.fetch import local
from sccache_dtool.fetch.content import digests_of, wrong_digests
from sccache_dtool.fetch.context import Context
from sccache_dtool.fetch.freshness import last_confirmed
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.request import Chain, Location, Request, Source, Stack, Terms
from sccache_dtool.fetch.run import Fetched, fetch
from sccache_dtool.fetch.sink import Throttle
from sccache_dtool.fetch.track import Track
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.protocol.store import Store

if TYPE_CHECKING:
    from sccache_dtool.fetch.request import Lend

#: Fields of `item.json` that describe the content, and so are the same for all copies of a copy.
_KEPT = ("source", "digests", "versions", "fetched", "dataset", "relpath")


class Tier:
    """One item, as the upstream has it."""

    def __init__(self, request: Request, max_age: float | None, lend: Lend) -> None:
        """`max_age`: see `Freshness`."""
        self._request = request
        self._max_age = max_age
        self._lend = lend

    def fetch(self, store: Store, area: str, track: Track, terms: Terms) -> Fetched:
        """As `run.fetch`: a copy of what the upstream has, in a work area of `store`.

        Raises what the upstream raises; NoSpace then says whose space it is.
        """
        track.queue()
        with self._leased() as lease:
            fetched = _copy(store, lease, self._request, area, track, terms)
            if not lease.is_valid():
                raise lease.holder.revoked()
            return fetched

    def confirmed(self, copied: str) -> int | None:
        """When the source last had the version of the upstream's copy at the path `copied`; None if it has another.

        The upstream asks the source, unless it has done so within the time. Seconds since 1970.
        """
        with self._leased() as lease:
            if os.path.basename(copied) != lease.place.generation:
                return None
            return int(last_confirmed(lease.store, lease.key, lease.place.generation))

    @contextmanager
    def _leased(self) -> Iterator[Lease]:
        with ExitStack() as held:
            try:
                lease = held.enter_context(self._lend(self._request, self._max_age))
            except NoSpace as error:
                error.of_upstream = True
                raise
            except OSError as error:  # not an error of the file system that the copy is on
                failure = translate(error)
                if isinstance(failure, NoSpace):
                    failure.of_upstream = True
                raise failure from error
            yield lease


def _copy(store: Store, lease: Lease, request: Request, area: str, track: Track, terms: Terms) -> Fetched:
    """Copy what is leased, verify the copy, and take over what is known of it."""
    origin, name = lease.place.payload, os.path.basename(lease.place.payload)
    generation = Generation.parse(lease.place.generation)
    assert generation is not None  # it was leased by that name
    facts = items.facts_if_readable(lease.store, lease.key, lease.place.generation)
    throttle = None if terms.rate is None else Throttle(terms.rate, store.clock)

    def retrieve(fs: FileSystem, path: str, progress: Progress) -> None:
        status = fs.lstat(origin)
        is_file = stat.S_ISREG(status.st_mode)
        progress.start(name, local.data_in(fs, origin, status) if is_file else generation.bytes)
        context = Context(store, progress, throttle=throttle)
        if is_file:
            local.copy_file(context, origin, path, ())
        else:
            local.copy_directory(context, origin, path)
        progress.stage("verifying the copy")
        _verify(fs, path, facts, request, origin)

    source = Source(f"file:{origin}", Location(origin), name)
    stack = Stack((source.canonical,), name, (Chain((source,), (), name),))
    copied = Request(request.key, request.name, name, stack, retrieve)
    fetched = fetch(store, copied, area, progress=track, track=track, terms=terms)
    # A program may have put something into a directory since, such as an index; a file has the size that it had.
    is_whole = fetched.bytes == generation.bytes if fetched.entries == 1 else fetched.bytes >= generation.bytes
    if not is_whole or fetched.entries < generation.entries:
        there = f"{fetched.bytes} bytes in {fetched.entries} files and directories"
        raise _not_copied(origin, f"{there} were copied, but {generation.bytes} in {generation.entries} were published")
    kept = {field: value for field in _KEPT if (value := getattr(facts, field)) is not None}
    noted: Mapping[str, Any] = {**kept, "upstream": lease.store.layout.generation(lease.key, str(generation))}
    return fetched._replace(version=generation.version, noted=noted)


def _verify(fs: FileSystem, path: str, facts: ItemFacts, request: Request, origin: str) -> None:
    """Read what was copied, if it has digests. Raises FetchFailed if one is another than it was when published.

    Those that are asked for here are checked even if the upstream does not tell them: others may have changed that.
    """
    asked = digests_of(ItemFacts(source=request.stack.canonical))
    noted = digests_of(facts)
    for inner in {**noted, **asked}:
        digests = {**noted.get(inner, {}), **asked.get(inner, {})}
        for algorithm, found in (wrong_digests(fs, f"{path}{inner}", digests, None) if digests else {}).items():
            what = f"the {algorithm} of the copy is {found}, but was {digests[algorithm]} when it was published"
            raise _not_copied(f"{origin}{inner}", what)


def _not_copied(origin: str, why: str) -> FetchFailed:
    return FetchFailed(
        f"cannot copy {origin}: {why}",
        hint="try again; if it fails again, examine the upstream cache: sc-dtool -C UPSTREAM doctor --verify-content",
    )
