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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool import layout
from sccache_dtool.crew import Pool
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import broker, datasets
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.stack import Chain, Stack
from sccache_dtool.fetch.wanted import DTOOL, Wanted
from sccache_dtool.fetch.words import Location, Source

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.fsops import FileSystem
    from sccache_dtool.holders import Holder, Owner
    from sccache_dtool.leases import Lease

#: Items that are fetched at the same time.
AT_ONCE = 8

#: How the keys of views end, and what their payloads are called.
_LABEL = ".dataset"
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


def view_of(cache: Cache, words: Sequence[str], name: str | None) -> str | None:
    """The key of the view that the words, or a path in it, mean; None if they mean something else."""
    if name is not None or len(words) != 1:
        return None
    if is_dataset(words):
        return key_of(words)
    key = cache.key_within(words[0])
    if key is None or layout.key_label(key) != f"{layout.key_label(key)[:8]}{_LABEL}":
        return None
    sources = [str((cache.facts(copy).get("source") or [""])[0]) for copy in cache.item(key).copies]
    return key if any(view_key(source.removeprefix(DTOOL)) == key for source in sources) else None


def view_key(uuid: str) -> str:
    """The key of a dataset's views."""
    return layout.item_key((f"{DTOOL}{uuid}",), f"{uuid[:8]}{_LABEL}")


# -- use ---------------------------------------------------------------------------------------------------------------


class Staged(NamedTuple):
    """A dataset in use: leases on all its items, and on the view that shows them."""

    view: Lease
    leases: tuple[Lease, ...]

    def __fspath__(self) -> str:
        return os.fspath(self.view)

    @property
    def holder(self) -> Holder:
        """Who holds them, where one holder has them all."""
        return self.view.holder

    def release(self) -> bool:
        """Give everything back; False if any lease was lost before."""
        given_back = [lease.release() for lease in (*self.leases, self.view)]
        return all(given_back)


def hold(cache: Cache, words: Sequence[str], hold_one: Callable[[Wanted], Lease], progress: Progress | None) -> Staged:
    """Lease all items of a dataset, what is missing fetched first, and a view that shows them.

    All or nothing: what was leased before something failed is given back. `hold_one` is called from several threads.
    """
    uri = datasets.parse(words).uri
    uuid = datasets.parse(words).uuid
    relpaths = _relpaths(cache, uuid, uri)
    with contextlib.ExitStack() as undo:
        leases = _hold_items(cache, uuid, uri, relpaths, undo, hold_one, progress or NoProgress())
        links = {relpath: _link(cache, lease) for relpath, lease in leases.items()}
        view = hold_one(_view(uuid, uri, links))
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
    manifest = broker.manifest_of(datasets.open_dataset(datasets.parse(words).uri))
    return sum(int(properties["size_in_bytes"]) for properties in manifest["items"].values())


def _relpaths(cache: Cache, uuid: str, uri: str) -> Mapping[str, str]:
    """Identifiers of a dataset's items by their paths: from a view that is there, else from the manifest."""
    for copy in cache.item(view_key(uuid)).copies if cache.has(view_key(uuid)) else ():
        path = cache.path(copy)
        found = None if path is None else _links(str(path), copy.generation.entries)
        if found is not None:
            return {one.relpath: layout.key_label(one.key).rpartition(".")[2] for one in found}
    manifest = broker.manifest_of(datasets.open_dataset(uri))
    relpaths = {str(properties["relpath"]): identifier for identifier, properties in manifest["items"].items()}
    for relpath in relpaths:
        _check(relpath)
    return relpaths


def _check(relpath: str) -> None:
    """Raise FetchFailed for a path that would lead out of the directory."""
    if any(part in ("", ".", "..") for part in relpath.split("/")) or "\0" in relpath:
        raise FetchFailed(f"the dataset has an item {plain(relpath)!r}, which is no path in a directory")


def _hold_items(
    cache: Cache,
    uuid: str,
    uri: str,
    relpaths: Mapping[str, str],
    undo: contextlib.ExitStack,
    hold_one: Callable[[Wanted], Lease],
    progress: Progress,
) -> dict[str, Lease]:
    """Leases on all items by path, several at a time; `undo` gives them back."""
    root = str(cache.root)
    leases: dict[str, Lease] = {}
    progress.start(uri, None)
    with Pool(AT_ONCE) as pool:
        coming = {}
        for relpath, identifier in relpaths.items():
            wanted = broker.wanted(uuid, identifier, root, lambda: datasets.open_dataset(uri))
            coming[pool.submit(hold_one, wanted)] = relpath
        try:
            for one in as_completed(coming):
                lease = one.result()
                leases[coming[one]] = lease
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


def release(cache: Cache, owners: Sequence[Owner], key: str, *, everything: bool = False) -> int:
    """Give back one use of a dataset by the key of its views, or all; returns how many."""
    prefixes = tuple(owner.prefix for owner in owners)
    count = 0
    for copy in cache.item(key).copies:
        for _ in (one for one in copy.held if one.lease and one.lease.holder.startswith(prefixes)):
            cache.release_copies(owners, [(one.key, one.generation) for one in _links(str(cache.path(copy))) or ()])
            count += cache.release(owners, key, generation=str(copy.generation))
            if not everything:
                return count
    return count


def evict(cache: Cache, key: str) -> bool:
    """Remove what views show and nobody uses, then the views; whether nothing is left."""
    paths = [str(cache.path(copy)) for copy in cache.item(key).copies]
    shown = {one.key for path in paths for one in _links(path) or ()}
    gone = [cache.evict_if_idle(item) for item in sorted(shown)]
    return all(gone) and cache.evict_if_idle(key)
