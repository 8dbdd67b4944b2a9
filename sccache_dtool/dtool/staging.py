"""Whole datasets: a lease on every item, and one directory that shows all items under their own paths.

The directory, called a view, is a small item too, made of symbolic links to the items' payloads. It is valid while its
links lead to leased copies, so a user of it holds leases on everything that it shows: first the items are leased, then
a view is found that shows exactly these copies, or made. `clean` may remove a view, or what it shows, when nobody holds
them. Release works in the reverse order: the view says which copies it shows, so no server is asked, and its own lease
is released last, so that an interrupted release can be repeated.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.disk import names as layout
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fallback import start_thread
from sccache_dtool.fetch import dtool_source
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DTOOL, VIEW, Chain, DatasetRequest, Location, Request, Source, Stack, view_key
from sccache_dtool.pool import Threads
from sccache_dtool.protocol.holders import pause_between_beats

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache
    from sccache_dtool.catalog.items import Copy
    from sccache_dtool.disk.filesystem import FileSystem
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.liveness.caller import Owner
    from sccache_dtool.protocol.leases import Lease

#: Items that are fetched at the same time.
AT_ONCE = 8

#: The longest time in seconds between two checks of which holders need a heartbeat.
_LONGEST_PAUSE = 1.0

#: What the payloads of views are called.
_NAME = "items"


class _Shown(NamedTuple):
    """What a link in a view leads to."""

    relpath: str
    key: str
    generation: str
    name: str


def is_view(cache: Cache, key: str) -> bool:
    """Whether the item that a key is of is a view."""
    return layout.key_label(key).endswith(VIEW) and _uuid_of(cache, key) is not None


def _uuid_of(cache: Cache, key: str) -> str | None:
    """The dataset whose views have this key; None if no view that is there says so."""
    sources = ((cache.facts(copy).source or ("",))[0] for copy in cache.item(key).copies)
    uuids = (source.removeprefix(DTOOL) for source in sources)
    return next((uuid for uuid in uuids if view_key(uuid) == key), None)


# -- use ---------------------------------------------------------------------------------------------------------------


class Staged(NamedTuple):
    """A dataset in use: leases on all its items, and on the view that shows them."""

    view: Lease
    leases: tuple[Lease, ...]

    def __fspath__(self) -> str:
        return os.fspath(self.view)

    @property
    def all(self) -> tuple[Lease, ...]:
        """All leases, in the order in which they are to be given back."""
        return (*self.leases, self.view)

    def release(self) -> None:
        """Release all leases, and remove their holders."""
        for lease in self.all:
            _release(lease)


def hold(
    cache: Cache, request: DatasetRequest, hold_one: Callable[[Request], Lease], progress: Progress | None
) -> Staged:
    """Lease all items of a dataset, what is missing fetched first, and a view that shows them.

    All or nothing: what was leased before something failed is given back. `hold_one` is called from several threads.
    Raises LeaseLost if the holder of an item was revoked while others were fetched.
    """
    identifiers = _identifiers(cache, request)
    with contextlib.ExitStack() as undo:
        held: list[Lease] = []
        with _beating(held):
            leases = _hold_items(cache, request, identifiers, undo, hold_one, progress or NoProgress(), held)
            items = layout.Layout(os.fspath(cache.root)).items
            links = {relpath: os.path.relpath(os.fspath(lease), items) for relpath, lease in leases.items()}
            view = hold_one(_view(request, links))
            undo.callback(_release, view)
        for lease in (*held, view):
            if not lease.is_valid():
                raise lease.holder.revoked()
        undo.pop_all()
    if len(cache.item(view.key).copies) > 1:
        cache.evict_if_idle(view.key)  # other views show copies that are gone; this one is leased, and stays
    return Staged(view, tuple(leases.values()))


def bytes_of(request: DatasetRequest) -> int:
    """What all items of the dataset take up. Asks a server. Raises FetchFailed."""
    return sum(size for _, _, size in dtool_source.items_of(dtool_source.open_dataset(request.uri)))


def _identifiers(cache: Cache, request: DatasetRequest) -> Mapping[str, str]:
    """Identifiers of a dataset's items by their paths: from a view that is there, else from the manifest."""
    for copy in cache.item(request.key).copies if cache.has(request.key) else ():
        found = _shown_by(cache, copy)
        if found is not None:
            shown = {one.relpath: layout.key_label(one.key).rpartition(".")[2] for one in found}
            if all(map(dtool_source.is_identifier, shown.values())):  # otherwise somebody else has made it
                return shown
    dataset = dtool_source.open_dataset(request.uri)
    identifiers = {relpath: identifier for identifier, relpath, _ in dtool_source.items_of(dataset)}
    for relpath in identifiers:  # which must not lead out of the directory
        if any(part in ("", ".", "..") for part in relpath.split("/")) or "\0" in relpath:
            raise FetchFailed(f"the dataset has an item {plain(relpath)!r}, which is not a path inside the dataset")
    return identifiers


def _hold_items(
    cache: Cache,
    request: DatasetRequest,
    identifiers: Mapping[str, str],
    undo: contextlib.ExitStack,
    hold_one: Callable[[Request], Lease],
    progress: Progress,
    held: list[Lease],
) -> dict[str, Lease]:
    """Leases on all items by path, several at a time, added to `held` one by one; `undo` gives them back."""
    root, open_dataset = str(cache.root), partial(dtool_source.open_dataset, request.uri)
    leases: dict[str, Lease] = {}

    def hold_item(one: Request) -> Lease:
        lease = hold_one(one)
        undo.callback(_release, lease)
        held.append(lease)
        return lease

    progress.start(request.uri, None)
    try:
        with Threads(AT_ONCE) as pool:
            coming = {}
            for relpath, identifier in identifiers.items():
                one = dtool_source.item_request(request.uuid, identifier, root, open_dataset)
                coming[pool.submit(hold_item, one)] = relpath
            for future in as_completed(coming):
                leases[coming[future]] = lease = future.result()
                progress.advance(os.stat(lease).st_size)
    finally:
        progress.done()
    return leases


@contextlib.contextmanager
def _beating(held: Sequence[Lease]) -> Iterator[None]:
    """Show heartbeats for the leases in `held`, and those added to it, while other items are fetched."""
    over = threading.Event()

    def pause() -> float:
        lifetimes = (lease.holder.ttl for lease in tuple(held))
        return min((_LONGEST_PAUSE, *(pause_between_beats(ttl) for ttl in lifetimes if ttl is not None)))

    def run() -> None:
        while not over.wait(pause()):
            for lease in tuple(held):
                with contextlib.suppress(OSError):  # it may pass; at the end each is looked at again
                    lease.holder.confirm()

    otherwise = "if fetching a dataset takes longer than the lifetime of its leases, the first ones may be lost"
    thread = start_thread(run, "sc-dtool heartbeats", otherwise)
    try:
        yield
    finally:
        over.set()
        if thread is not None:
            thread.join()


def _release(lease: Lease) -> None:
    lease.release()
    lease.holder.retire()


def _view(request: DatasetRequest, links: Mapping[str, str]) -> Request:
    """A view that shows exactly `links`, from the directory of items on: any that is there, or a new one."""
    expected = {(relpath, *_parts(link)) for relpath, link in links.items()}

    def fits(path: str) -> bool:
        return {tuple(one) for one in _links(path) or ()} == expected

    def bring(fs: FileSystem, target: str, progress: Progress) -> None:
        progress.stage("linking")
        fs.mkdir(target)
        for relpath, link in links.items():
            up = "../" * (relpath.count("/") + _DEPTH)
            fs.make_dirs(os.path.dirname(f"{target}/{relpath}"))
            fs.symlink(f"{up}{link}", f"{target}/{relpath}")

    dataset = {"uuid": request.uuid, "uri": request.label}
    source = Source(f"{DTOOL}{request.uuid}", Location(request.uri), _NAME)
    stack = Stack((source.canonical,), _NAME, (Chain((source,), (), _NAME),))
    return Request(request.key, None, _NAME, stack, bring, dataset, fits=fits)


#: From a link in ``<2 hex>/<key>/<generation>/payload/<name>/`` up to the directory of items.
_DEPTH = 5


def _parts(link: str) -> tuple[str, str, str]:
    """Key, generation and name in ``…/<2 hex>/<key>/<generation>/payload/<name>``. Raises ValueError for others."""
    _, key, generation, _, name = link.split("/")[-5:]
    if not layout.is_key(key) or layout.Generation.parse(generation) is None:
        raise ValueError(link)  # what somebody has made up, such as a way out of the cache
    return key, generation, name


def _links(path: str, entries: int | None = None) -> list[_Shown] | None:
    """What the view at `path` shows; None if it is none, or not whole: it may be on its way into the trash.

    `entries`: how many files and directories there must be, the view itself included.
    """
    found: list[_Shown] = []
    count = 1
    for directory, directories, names in os.walk(path):
        count += len(directories) + len(names)
        for name in names:
            link = f"{directory}/{name}"
            try:
                found.append(_Shown(os.path.relpath(link, path), *_parts(os.readlink(link))))
            except (OSError, ValueError):
                return None
    return found if entries in (None, count) else None


# -- unuse -------------------------------------------------------------------------------------------------------------


def release(
    cache: Cache, owners: Sequence[Owner], key: str, *, everything: bool = False, generation: str | None = None
) -> int:
    """Give back one use of a dataset by the key of its views, or all; returns how many. `generation`: of this view."""
    prefixes = tuple(owner.prefix for owner in owners)
    count = 0
    for copy in cache.item(key).copies:
        if generation not in (None, str(copy.generation)):
            continue
        for _ in range(_leases(copy, prefixes)):
            cache.release_copies(owners, _leased_for(cache, copy, prefixes))
            count += cache.release(owners, key, generation=str(copy.generation))
            if not everything:
                return count
    return count


def leases_on_items(cache: Cache, owners: Sequence[Owner], key: str) -> int:
    """How many leases the owners have on items of the dataset whose views have this key."""
    prefixes = tuple(owner.prefix for owner in owners)
    counts = ((_leases(copy, prefixes), copy) for item in cache.items() for copy in item.copies)
    uuids = ((count, (cache.facts(copy).dataset or {}).get("uuid", "")) for count, copy in counts if count)
    return sum(count for count, uuid in uuids if view_key(uuid) == key)


def _leased_for(cache: Cache, view: Copy, prefixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Keys and generations of what is leased together with a view by holders of these prefixes.

    If a purge of the file system removed links, what they led to is found among the dataset's items that are leased:
    the newest copies when the view was made, but none that another view of these holders needs.
    """
    links = _shown_by(cache, view)
    if links is not None:
        return [(one.key, one.generation) for one in links]
    left = {one.key: one.generation for one in _shown_by(cache, view, all_of_it=False) or ()}
    others = [copy for copy in cache.item(view.key).copies if copy.generation != view.generation]
    needed = Counter[tuple[str, str]]()
    for copy in others:
        for one in _shown_by(cache, copy) or ():
            needed[one.key, one.generation] += _leases(copy, prefixes)
    uuid = _uuid_of(cache, view.key)
    for item in cache.items() if uuid is not None else ():
        identifier = layout.key_label(item.key).rpartition(".")[2]
        if uuid is None or item.key in left or item.key != dtool_source.item_key(uuid, identifier):
            continue
        spare = [copy for copy in item.copies if _leases(copy, prefixes) > needed[item.key, str(copy.generation)]]
        older = [copy for copy in spare if copy.generation.created <= view.generation.created]
        if spare:  # the newest first
            left[item.key] = str((older or spare[-1:])[0].generation)
    return list(left.items())


def _leases(copy: Copy, prefixes: tuple[str, ...]) -> int:
    return sum(1 for one in copy.held if one.lease and one.lease.holder.startswith(prefixes))


def _shown_by(cache: Cache, view: Copy, *, all_of_it: bool = True) -> list[_Shown] | None:
    """What a view shows; None if it is not whole. `all_of_it`: False for the links that are still there."""
    path = cache.path(view)
    if path is None:
        return None
    return _links(str(path), view.generation.entries if all_of_it else None)


def evict(cache: Cache, key: str) -> bool:
    """Remove what views show and nobody uses, then the views; whether nothing is left."""
    shown = {one.key for copy in cache.item(key).copies for one in _shown_by(cache, copy, all_of_it=False) or ()}
    gone = [cache.evict_if_idle(item) for item in sorted(shown)]
    return all(gone) and cache.evict_if_idle(key)
