"""Whole datasets: every item leased, and one directory in which all stand under their own paths.

The directory is an item too, a small one made of symbolic links to the items' payloads; it is called a view. A view
is good for as long as its links lead to what is leased, so whoever uses one holds leases on all that it shows: first
the items are leased, then a view is looked for that shows those very copies, or made. It is only a picture: `clean`
may remove it, or what it shows, whenever nobody holds them. Giving back goes the other way round: what a view shows is
read from the view, so no server is asked, and its own lease is given back last, so that it can be done again if it was
broken off.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.disk import names as layout
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fallback import start_thread
from sccache_dtool.fetch import datasets, dtool_source
from sccache_dtool.fetch.datasets import VIEW, view_key
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DTOOL, Wanted
from sccache_dtool.fetch.stack import Chain, Stack
from sccache_dtool.fetch.words import Location, Source
from sccache_dtool.pool import Pool
from sccache_dtool.protocol.holders import pause_between_beats

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache
    from sccache_dtool.catalog.items import Copy
    from sccache_dtool.disk.filesystem import FileSystem
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.protocol.holders import Owner
    from sccache_dtool.protocol.leases import Lease

#: Items that are fetched at the same time.
AT_ONCE = 8

#: Seconds between two looks at what is to show a heartbeat, at most.
_LONGEST_PAUSE = 1.0

#: What the payloads of views are called.
_NAME = "items"


class _Shown(NamedTuple):
    """What a link in a view leads to."""

    relpath: str
    key: str
    generation: str
    name: str


def is_dataset(words: Sequence[str]) -> bool:
    """Whether the words of a command mean a whole dataset."""
    return len(words) == 1 and words[0].startswith(DTOOL) and datasets.parse(words).identifier is None


def key_of(words: Sequence[str]) -> str:
    """The key of the views of the dataset that the words mean. Raises FetchFailed if a server must be asked."""
    return view_key(datasets.parse(words).uuid)


def is_view(cache: Cache, words: Sequence[str], key: str) -> bool:
    """Whether the item that the words of a command mean is a view."""
    if is_dataset(words):
        return True
    if not layout.key_label(key).endswith(VIEW):
        return False
    return _uuid_of(cache, key) is not None


def _uuid_of(cache: Cache, key: str) -> str | None:
    """The dataset whose views have this key; None if no view that is there says so."""
    sources = (str((cache.facts(copy).get("source") or [""])[0]) for copy in cache.item(key).copies)
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


def hold(cache: Cache, words: Sequence[str], hold_one: Callable[[Wanted], Lease], progress: Progress | None) -> Staged:
    """Lease all items of a dataset, what is missing fetched first, and a view that shows them.

    All or nothing: what was leased before something failed is given back. `hold_one` is called from several threads.
    Raises LeaseLost if the holder of an item was revoked while others were fetched.
    """
    uri = datasets.parse(words).uri
    uuid = datasets.parse(words).uuid
    relpaths = _relpaths(cache, uuid, uri)
    with contextlib.ExitStack() as undo:
        held: list[Lease] = []
        with _kept_alive(held):
            leases = _hold_items(cache, uuid, uri, relpaths, undo, hold_one, progress or NoProgress(), held)
            links = {relpath: _link(cache, lease) for relpath, lease in leases.items()}
            view = hold_one(_view(uuid, uri, links))
            undo.callback(_give_back, view)
        for lease in (*held, view):
            if not lease.stands():
                raise lease.holder.revoked()
        undo.pop_all()
    if len(cache.item(view.key).copies) > 1:
        cache.evict_if_idle(view.key)  # pictures of what is gone; ours is leased, and stays
    return Staged(view, tuple(leases.values()))


def wanted(words: Sequence[str]) -> Wanted:
    """The dataset that the words mean, as something to be put into a cache."""
    uri = datasets.parse(words).uri
    return Wanted(key_of(words), None, plain(uri), Stack())


def bytes_of(words: Sequence[str]) -> int:
    """What all items of the dataset take up. Asks a server. Raises FetchFailed."""
    uri = datasets.parse(words).uri
    manifest = dtool_source.manifest_of(datasets.open_dataset(uri))
    return sum(dtool_source.described(uri, properties)[1] for properties in manifest["items"].values())


def _relpaths(cache: Cache, uuid: str, uri: str) -> Mapping[str, str]:
    """Identifiers of a dataset's items by their paths: from a view that is there, else from the manifest."""
    for copy in cache.item(view_key(uuid)).copies if cache.has(view_key(uuid)) else ():
        path = cache.path(copy)
        found = None if path is None else _links(str(path), copy.generation.entries)
        if found is not None:
            shown = {one.relpath: layout.key_label(one.key).rpartition(".")[2] for one in found}
            if all(map(dtool_source.is_identifier, shown.values())):  # otherwise somebody else has made it
                return shown
    manifest = dtool_source.manifest_of(datasets.open_dataset(uri))
    relpaths = {dtool_source.described(uri, properties)[0]: one for one, properties in manifest["items"].items()}
    for relpath in relpaths:
        _check(relpath)
    return relpaths


def _check(relpath: str) -> None:
    """Raise FetchFailed for a path that would lead out of the directory."""
    if any(part in ("", ".", "..") for part in relpath.split("/")) or "\0" in relpath:
        raise FetchFailed(f"the dataset has an item {plain(relpath)!r}, which is not a path inside the dataset")


def _hold_items(
    cache: Cache,
    uuid: str,
    uri: str,
    relpaths: Mapping[str, str],
    undo: contextlib.ExitStack,
    hold_one: Callable[[Wanted], Lease],
    progress: Progress,
    held: list[Lease],
) -> dict[str, Lease]:
    """Leases on all items by path, several at a time, added to `held` one by one; `undo` gives them back."""
    root = str(cache.root)
    leases: dict[str, Lease] = {}
    progress.start(uri, None)
    with Pool(AT_ONCE) as pool:
        coming = {}
        for relpath, identifier in relpaths.items():
            wanted = dtool_source.wanted(uuid, identifier, root, lambda: datasets.open_dataset(uri))
            coming[pool.submit(hold_one, wanted)] = relpath
        try:
            for one in as_completed(coming):
                lease = one.result()
                leases[coming[one]] = lease
                held.append(lease)
                progress.advance(os.stat(lease).st_size)
        except BaseException:
            for one in coming:
                one.cancel()
            pool.end()
            for one in coming:
                if one.done() and not one.cancelled() and one.exception() is None:
                    _give_back(one.result())
            raise
        finally:
            progress.done()
    for lease in leases.values():
        undo.callback(_give_back, lease)
    return leases


@contextlib.contextmanager
def _kept_alive(held: Sequence[Lease]) -> Iterator[None]:
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


def _give_back(lease: Lease) -> None:
    lease.release()
    lease.holder.retire()


def _link(cache: Cache, lease: Lease) -> str:
    """The way from the directory of items to what a lease protects."""
    return os.path.relpath(os.fspath(lease), f"{cache.root}/{layout.CONTROL}/items")


def _view(uuid: str, uri: str, links: Mapping[str, str]) -> Wanted:
    """A view that shows exactly `links`: any that is there, or a new one."""
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

    dataset = {"uuid": uuid, "uri": plain(uri)}
    source = Source(f"{DTOOL}{uuid}", Location(uri), _NAME)
    stack = Stack((source.canonical,), source.location, _NAME, (Chain((source,), (), _NAME),))
    return Wanted(view_key(uuid), None, _NAME, stack, bring, {"dataset": dataset}, None, fits)


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
        for _ in (one for one in copy.held if one.lease and one.lease.holder.startswith(prefixes)):
            cache.release_copies(owners, _leased_for(cache, copy, prefixes))
            count += cache.release(owners, key, generation=str(copy.generation))
            if not everything:
                return count
    return count


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
