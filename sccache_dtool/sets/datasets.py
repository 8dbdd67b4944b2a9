"""A dtool dataset as a set: one item for each of its own, at the path that it has in the dataset.

Which items these are is what its manifest says. That is an item of the cache as well, so that a dataset that is in the
cache needs no server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import dtool_source
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DTOOL, Chain, DatasetRequest, Location, Request, Source, Stack
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.protocol.store import Store
from sccache_dtool.sets.taking import Wanted

#: What the payload of a list is called.
_NAME = "items.json"

#: Largest list in bytes: a dataset of a million items has less.
_LIMIT = 1 << 28


def list_request(request: DatasetRequest) -> Request:
    """The item that lists what is in a dataset, fetched from its server if it is not there."""

    def retrieve(fs: FileSystem, target: str, progress: Progress) -> None:
        progress.stage("listing")
        found = dtool_source.items_of(dtool_source.open_dataset(request.uri))
        listed = {one.relpath: [one.identifier, one.size] for one in found}
        fs.write_new(target, json.dumps({"format": 1, "uuid": request.uuid, "items": listed}))

    source = Source(f"{DTOOL}{request.uuid}", Location(request.uri), _NAME)
    stack = Stack((source.canonical,), _NAME, (Chain((source,), (), _NAME),))
    return Request(request.key, None, _NAME, stack, retrieve, {"uuid": request.uuid, "uri": request.label})


def wanted_of(
    store: Store, request: DatasetRequest, take: Callable[[Request], Lease], prefix: str = ""
) -> list[Wanted]:
    """The items of a dataset, at their paths below `prefix`. `take`: takes a lease on the item that lists them.

    Raises FetchFailed, also for a list that is damaged.
    """
    lease = take(list_request(request))
    try:
        listed = _read(store.fs, lease.place.payload)
    finally:
        lease.give_back()
    open_dataset = partial(dtool_source.open_dataset, request.uri)
    found = []
    for relpath, pair in listed.items():
        if any(part in ("", ".", "..") for part in relpath.split("/")) or "\0" in relpath:
            raise FetchFailed(f"the dataset has an item {plain(relpath)!r}, which is not a path inside the dataset")
        identifier, size = pair
        if not dtool_source.is_identifier(identifier) or not isinstance(size, int):
            raise FetchFailed(f"{lease.place.payload} is damaged", hint=f"remove it: sc-dtool rm {request.key}")
        item = dtool_source.item_request(request.uuid, identifier, store.layout.root, open_dataset, uri=request.uri)
        found.append(Wanted(f"{prefix}/{relpath}" if prefix else relpath, item, size, f"{DTOOL}{request.label}"))
    return found


def _read(fs: FileSystem, path: str) -> dict[str, Any]:
    try:
        listed = records.decode_document(fs.read_text(path, _LIMIT)).get("items")
    except records.Damaged:
        listed = None
    if not isinstance(listed, dict) or not all(isinstance(pair, list) and len(pair) == 2 for pair in listed.values()):
        raise FetchFailed(f"{path} is damaged", hint=f"remove it: sc-dtool rm {path}")
    return listed


def bytes_of(request: DatasetRequest) -> int:
    """What all items of the dataset take up. Asks a server. Raises FetchFailed."""
    return sum(one.size for one in dtool_source.items_of(dtool_source.open_dataset(request.uri)))
