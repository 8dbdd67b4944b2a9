"""The documents of the Whole Tale data manager: sessions, locks, transfers, items and folders.

Their fields are those of https://github.com/whole-tale/girder_wt_data_manager. Times are in ISO 8601.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from sccache_dtool.as_rows import moment
from sccache_dtool.cache import Cache
from sccache_dtool.catalog.items import Item
from sccache_dtool.disk.names import is_key, key_label
from sccache_dtool.errors import DoesNotExist
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.transfers import Transfer, TransferState
from sccache_dtool.protocol import sessions as on_disk
from sccache_dtool.serve.access import Peer
from sccache_dtool.sets.locks import Lock
from sccache_dtool.sets.sessions import Object, SessionFacts

#: What a user may do with a document: anything, or read it.
_ADMIN, _READ = 2, 0

FOLDER, ITEM = "folder", "item"


class DataSetEntry(TypedDict):
    """An item at a path of a session."""

    itemId: str
    mountPath: str
    type: NotRequired[str | None]
    obj: NotRequired[ObjectDocument | None]


class SessionDocument(TypedDict):
    """A session."""

    _id: str
    _modelType: str
    _accessLevel: int
    ownerId: str
    dataSet: list[DataSetEntry]
    seq: int
    taleId: str | None
    created: str
    state: str


class LockDocument(TypedDict):
    """A lock; `ownerId` is the text that it was taken with, or the session."""

    _id: str
    _modelType: str
    _accessLevel: int
    userId: str
    sessionId: str | None
    itemId: str
    ownerId: str
    state: str
    error: str | None
    since: str | None


class TransferDocument(TypedDict):
    """A download, or one that has ended within a day."""

    _id: str
    _modelType: str
    _accessLevel: int
    ownerId: str
    sessionId: str | None
    itemId: str
    status: int
    error: str | None
    size: int | None
    transferred: int
    path: str
    startTime: str | None
    endTime: str | None
    attempts: int
    message: str | None


class TransferOfItem(TypedDict):
    """For whom an item is fetched."""

    userId: str
    sessionId: str | None


class CacheState(TypedDict):
    """What the cache knows of an item."""

    cached: bool
    psPath: str | None
    lockCount: int
    transferInProgress: bool
    deleteInProgress: bool
    lastUnlocked: str | None
    downloadCount: int
    errorCount: int
    transferError: bool
    transferErrorMessage: str | None
    transfer: TransferOfItem | None


class ObjectDocument(TypedDict):
    """An item, a file or a folder."""

    _id: str | None
    _modelType: str
    name: str
    size: int | None
    type: str | None
    path: NotRequired[str]
    state: NotRequired[str]
    dm: NotRequired[CacheState]


class ObjectAnswer(TypedDict):
    """What is at a path of a session."""

    object: ObjectDocument
    children: NotRequired[list[ObjectDocument] | None]


class Listing(TypedDict):
    """What is in a folder."""

    folders: list[ObjectDocument]
    files: list[ObjectDocument]
    links: list[ObjectDocument]


class Place(NamedTuple):
    """What an id stands for: an item, or something in it."""

    key: str
    inner: str  # a path without a slash at its beginning; empty: the item itself


def id_of(place: Place) -> str:
    """The id of an item, which is its key, or of something in it."""
    if not place.inner:
        return place.key
    inner = place.inner.encode(errors="surrogateescape")
    return f"{place.key[:32]}.{base64.urlsafe_b64encode(inner).decode().rstrip('=')}"


def place_of(cache: Cache, id: str) -> Place:
    """What an id stands for. Raises DoesNotExist for one that `id_of` does not give."""
    if is_key(id):
        return Place(id, "")
    match = re.fullmatch(r"([0-9a-f]{32})\.([A-Za-z0-9_-]+)", id)
    if match:
        try:
            inner = base64.urlsafe_b64decode(match[2] + "=" * (-len(match[2]) % 4)).decode(errors="surrogateescape")
        except (binascii.Error, ValueError):
            inner = ""
        for key in on_disk.keys_of(cache.store, match[1]):
            if inner and id_of(Place(key, inner)) == id:
                return Place(key, inner)
    raise DoesNotExist(f"there is no item {plain(id)!r}", hint="an id is what another answer has in `_id` or `itemId`")


def session(facts: SessionFacts, peer: Peer) -> SessionDocument:
    """The document of a session."""
    return {
        "_id": facts.id,
        "_modelType": "session",
        "_accessLevel": _ADMIN if peer.owns(facts.user) else _READ,
        "ownerId": facts.user,
        "dataSet": [{"itemId": one.item or " ".join(one.words), "mountPath": one.mount} for one in facts.entries],
        "seq": facts.seq,
        "taleId": facts.label or None,
        "created": facts.created,
        "state": "ending" if facts.has_ended else "active",
    }


def lock(one: Lock, of: SessionFacts | None, peer: Peer) -> LockDocument:
    """The document of a lock. `of`: its session, unless that has ended."""
    user = one.user if of is None else of.user
    keys = [] if of is None else [entry.item for entry in (*of.entries, *of.detached) if entry.item]
    return {
        "_id": one.stable_id,
        "_modelType": "lock",
        "_accessLevel": _ADMIN if peer.owns(user) else _READ,
        "userId": user,
        "sessionId": one.session,
        "itemId": next((key for key in keys if key[:32] == one.item[:32]), one.item),
        "ownerId": one.owner,
        "state": one.state,
        "error": one.error,
        "since": moment(one.since),
    }


def transfer(one: Transfer, path: str, peer: Peer) -> TransferDocument:
    """The document of a transfer. `path`: of its item, in the session or on its own."""
    user = one.by.partition("@")[0]
    status = one.number
    return {
        "_id": f"{one.holder or one.area or '?'}-{one.key[:8]}-{int(one.began or 0)}",
        "_modelType": "transfer",
        "_accessLevel": _ADMIN if peer.owns(user) else _READ,
        "ownerId": user,
        "sessionId": one.session,
        "itemId": one.key,
        "status": 1 if status is None else status,
        "error": one.error,
        "size": one.total,
        "transferred": one.bytes,
        "path": path,
        "startTime": moment(one.began),
        "endTime": moment(one.ended),
        "attempts": one.attempts,
        "message": one.message,
    }


def item(cache: Cache, found: Item, transfers: list[Transfer]) -> ObjectDocument:
    """The document of an item. `transfers`: those of the cache; others are passed over."""
    of_it = [one for one in transfers if one.key[:32] == found.key[:32]]
    coming = next(
        (
            one
            for one in of_it
            if one.ended is None and one.state not in (TransferState.ABANDONED, TransferState.WAITING)
        ),
        None,
    )
    last = max((one for one in of_it if one.ended is not None), key=lambda one: one.ended or 0.0, default=None)
    newest = found.newest
    path = None if newest is None else cache.path(newest)
    failed = last is not None and last.state == TransferState.FAILED and newest is None
    is_folder = path is not None and path.is_dir()
    return {
        "_id": found.key,
        "_modelType": FOLDER if is_folder else ITEM,
        "type": None if path is None else FOLDER if is_folder else ITEM,
        "name": found.label,
        "size": None if newest is None else newest.generation.bytes,
        "dm": {
            "cached": path is not None,
            "psPath": None if path is None else str(path),
            "lockCount": found.leases,
            "transferInProgress": coming is not None,
            "deleteInProgress": any(copy.closed for copy in found.copies),
            "lastUnlocked": moment(found.last_end),
            "downloadCount": max(len(found.copies), sum(one.state == TransferState.DONE for one in of_it)),
            "errorCount": sum(one.state == TransferState.FAILED for one in of_it),
            "transferError": failed,
            "transferErrorMessage": last.error if failed and last else None,
            "transfer": None
            if coming is None
            else {"userId": coming.by.partition("@")[0], "sessionId": coming.session},
        },
    }


def placed(place: Place | None, name: str, kind: str | None, size: int | None) -> ObjectDocument:
    """The document of something in an item, or of a folder that is in none."""
    return {
        "_id": None if place is None else id_of(place),
        "_modelType": FOLDER if kind == FOLDER else ITEM,
        "type": kind,
        "name": name,
        "size": size,
    }


def place_in(found: Object) -> Place | None:
    """Where an object of a session is; None for a folder that is in no item."""
    if found.entry is None or found.entry.item is None:
        return None
    mount = found.entry.mount.rstrip("/")
    return Place(found.entry.item, found.path[len(mount) :].lstrip("/"))


def found_object(found: Object) -> ObjectDocument:
    """The document of what is at a path of a session."""
    place = place_in(found)
    name = found.name or (place and key_label(place.key)) or "/"
    return {**placed(place, name, found.type, found.size), "path": found.path, "state": found.state}
