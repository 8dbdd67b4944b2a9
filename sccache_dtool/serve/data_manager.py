"""The REST interface of the Whole Tale data manager: sessions, locks, transfers, files; below ``/api/v1/dm``.

Parameters may be in the query, as its clients send them, or in a JSON body. Its codes are kept: what is not at a path
of a session is 400, and what has another id than any is 404.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from typing_extensions import TypedDict

from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import FAILED, RELEASED, is_key, key_label
from sccache_dtool.errors import GONE, CacheError, DoesNotExist, Expected, LeaseLost, UsageError
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DatasetRequest
from sccache_dtool.fetch.request import Request as ItemRequest
from sccache_dtool.fetch.transfers import TransferState
from sccache_dtool.serve import files, shapes
from sccache_dtool.serve.access import Owning, Peer, Reading, Writing
from sccache_dtool.serve.answers import NotReady, Refused, errors
from sccache_dtool.serve.service import Service, cache_of, service_of
from sccache_dtool.serve.shapes import (
    FOLDER,
    ITEM,
    Listing,
    LockDocument,
    ObjectAnswer,
    ObjectDocument,
    Place,
    SessionDocument,
    TransferDocument,
)
from sccache_dtool.sets import locks, sessions
from sccache_dtool.sets.handle import Session
from sccache_dtool.sets.locks import HELD, Begun, Lock
from sccache_dtool.sets.sessions import Entry, Object, SessionFacts

if TYPE_CHECKING:
    from sccache_dtool.evict.execution import Cleaned

router = APIRouter(prefix="/api/v1/dm", tags=["data manager"])

#: Seconds after its end at which a transfer is old.
_OLD = 60.0

#: Characters of an owner of a lock, and of the id of a tale.
_LONGEST_TEXT = 100

#: What a user other than the server's may have fetched: never what the server can read, and they cannot.
FOR_EVERYBODY = ("http", "https")

Flag = Annotated[str | None, Query(description="Set if it is present, unless it is `false` or `0`.")]
DataSetText = Annotated[str | None, Query(alias="dataSet", description='JSON: `[{"itemId": "…", "mountPath": "/…"}]`')]
_SHORT = Query(max_length=_LONGEST_TEXT)


class DataSetItem(TypedDict):
    """An item, and where it is to appear. `itemId`: an id, a name, or a source with its steps."""

    itemId: str
    mountPath: str


class SessionBody(TypedDict, total=False):
    """What a session is to have."""

    dataSet: list[DataSetItem]
    taleId: str


def _is_set(flag: str | None) -> bool:
    return flag is not None and flag.lower() not in ("false", "0")


# -- sessions ----------------------------------------------------------------------------------------------------------


def _data_set(
    service: Service, cache: Cache, peer: Peer, text: str | None, body: SessionBody | None
) -> tuple[Entry, ...]:
    """The entries that a request gives. Raises UsageError."""
    found: Any = body.get("dataSet") if body else None
    if text is not None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"dataSet is not JSON: {error}") from None
    if found is None:
        raise UsageError("dataSet is missing", hint='give dataSet=[{"itemId": "…", "mountPath": "/…"}]')
    if not isinstance(found, list):
        raise UsageError("dataSet is not a list")
    made: list[Entry] = []
    for one in found:
        if not (isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("itemId", "mountPath"))):
            raise UsageError("an entry of dataSet has no itemId or no mountPath", hint="both are texts")
        made += _entries(service, cache, peer, one["itemId"], one["mountPath"])
    return sessions.normal(made)


def _entries(service: Service, cache: Cache, peer: Peer, word: str, mount: str) -> Iterable[Entry]:
    sessions.parts_of(mount)
    try:
        words = shlex.split(word)
    except ValueError as error:
        raise UsageError(f"{plain(word)!r}: {error}") from None
    if not words or "\0" in word:
        raise UsageError("an itemId is empty", hint="give an id, a name, or a source with its steps")
    if not peer.is_owner:
        _check_source(service, cache, peer, words)
    return cache.entries_used(words, mount)


def _check_source(service: Service, cache: Cache, peer: Peer, words: list[str]) -> None:
    """Raise Refused for what would be read with the rights of the server's user."""
    try:
        request = cache.request(words)
    except CacheError:
        return  # the words are those of an item in the cache, or mean nothing
    if not (isinstance(request, ItemRequest) and cache.has(request.key)):
        _check_fetch(service, peer, request)


def _check_fetch(service: Service, peer: Peer, request: ItemRequest | DatasetRequest) -> None:
    """Raise Refused if this user may not have something fetched."""
    if peer.is_owner:
        return
    below = service.allowed.sources
    sources = (
        [one for chain in request.stack.chains for one in chain.mirrors] if isinstance(request, ItemRequest) else []
    )
    where = f"below {' and '.join(below)}" if below else "of the web"
    if not sources or not all(
        one.scheme in FOR_EVERYBODY and (not below or any(_is_below(one.canonical, url) for url in below))
        for one in sources
    ):
        raise Refused(
            403,
            f"user {peer.user} may add items {where}, and such as are in the cache",
            "fetch it with sc-dtool use",
        )


def _is_below(url: str, top: str) -> bool:
    return url == top or url.startswith(f"{top.rstrip('/')}/")


def _own(cache: Cache, peer: Peer, id: str) -> SessionFacts:
    """A session that may be changed. Raises Refused for one of another user."""
    facts = cache.session(id).facts
    if not peer.owns(facts.user):
        raise Refused(403, f"session {id} belongs to {facts.user}", "only its owner may change it")
    return facts


@router.post("/session", responses=errors(404, 502), summary="Create a session")
def create_session(
    request: Request,
    peer: Writing,
    data_set: DataSetText = None,
    tale: Annotated[str | None, Query(alias="taleId", max_length=_LONGEST_TEXT)] = None,
    body: SessionBody | None = None,
) -> SessionDocument:
    """Create a session: items at paths, on which locks can be taken. Nothing is fetched.

    The session lasts until it is deleted.
    """
    cache = cache_of(request)
    entries = _data_set(service_of(request), cache, peer, data_set, body)
    label = (body or {}).get("taleId", "") if tale is None else tale
    if len(label) > _LONGEST_TEXT or not label.isprintable():
        raise UsageError(f"a taleId has at most {_LONGEST_TEXT} printable characters")
    id = sessions.new_id()
    owner = cache.owner(f"session {id}")
    made = cache.create_session(entries, owner=owner, label=label, id=id, user=peer.user)
    return shapes.session(made.facts, peer)


@router.get("/session", responses=errors(), summary="List your sessions")
def list_sessions(request: Request, peer: Reading, loadObjects: Flag = None) -> list[SessionDocument]:
    """The sessions of whoever asks. The server's own user sees all."""
    cache = cache_of(request)
    found = [one for one in cache.sessions() if peer.is_owner or one.user == peer.user]
    return [_session(cache, one, peer, loadObjects) for one in found]


@router.get("/session/{id}", responses=errors(404), summary="Show a session")
def get_session(id: str, request: Request, peer: Reading, loadObjects: Flag = None) -> SessionDocument:
    """A session. With `loadObjects`, each entry has its type and its object, too."""
    cache = cache_of(request)
    return _session(cache, cache.session(id).facts, peer, loadObjects)


def _session(cache: Cache, facts: SessionFacts, peer: Peer, load: str | None) -> SessionDocument:
    made = shapes.session(facts, peer)
    if _is_set(load):
        for one, entry in zip(made["dataSet"], facts.entries, strict=True):
            found = sessions.find(cache.store, facts, entry.mount)
            one["type"], one["obj"] = found.type, shapes.found_object(found)
    return made


@router.put("/session/{id}", responses=errors(404, 409, 410, 502), summary="Change the items of a session")
def change_session(
    id: str,
    request: Request,
    peer: Writing,
    data_set: DataSetText = None,
    body: SessionBody | None = None,
) -> SessionDocument:
    """Replace the data set of a session; `seq` grows by one. 409 if an item would be removed that is locked."""
    cache = cache_of(request)
    _own(cache, peer, id)
    entries = _data_set(service_of(request), cache, peer, data_set, body)
    return shapes.session(cache.session(id).edit(lambda before: entries), peer)


@router.delete("/session/{id}", responses=errors(404, 409), summary="Delete a session")
def delete_session(id: str, request: Request, peer: Writing) -> None:
    """Delete a session, and release all its locks. Deleting it twice is not an error."""
    cache = cache_of(request)
    try:
        _own(cache, peer, id)
    except sessions.NoSession as error:
        if error.ended is None:
            raise
        return
    except CacheError:
        if not peer.is_owner:
            raise  # it is damaged, and nobody knows whose it is
    cache.delete_session(id)


@router.get("/session/{id}/object", responses=errors(404), summary="Find what is at a path of a session")
def get_object(id: str, request: Request, peer: Reading, path: str, children: Flag = None) -> ObjectAnswer:
    """What is at an absolute path: that of an item, in an item, or above items. The longest path of an item decides.

    With `children`, what is in the folder; null if its item is not in the cache yet. Nothing is fetched.
    """
    cache = cache_of(request)
    facts = cache.session(id).facts
    found = sessions.find(cache.store, facts, path, children=_is_set(children))
    made = shapes.found_object(found)
    if not _is_set(children):
        return {"object": made}
    return {"object": made, "children": _children(cache, facts, found)}


def _children(cache: Cache, facts: SessionFacts, found: Object) -> list[ObjectDocument] | None:
    if found.children is None:
        return None
    if found.entry is None or found.place is None:  # there are only the paths of items
        above = found.path.rstrip("/")
        return [shapes.found_object(sessions.find(cache.store, facts, f"{above}/{one.name}")) for one in found.children]
    place, made = shapes.place_in(found), list[ObjectDocument]()
    for one in found.children:
        size = None
        if one.type == ITEM:
            with Expected(GONE):
                size = cache.store.fs.lstat(f"{found.place}/{one.name}").st_size
        inner = place and Place(place.key, f"{place.inner}/{one.name}".lstrip("/"))
        made.append(shapes.placed(inner, one.name, one.type if one.type in (FOLDER, ITEM) else None, size))
    return made


# -- locks -------------------------------------------------------------------------------------------------------------


def _listed(
    cache: Cache, peer: Peer, session: str | None, item: str | None = None, owner: str | None = None
) -> list[LockDocument]:
    of = {one.id: one for one in cache.sessions()}
    if item is not None and not is_key(item):
        item = cache.find(item)
    found = cache.locks(session=session, item=item, owner=owner)
    made = [shapes.lock(one, of.get(one.session or ""), peer) for one in found if one.session is not None]
    return [one for one in made if peer.is_owner or one["userId"] == peer.user]


@router.get("/session/{id}/lock", responses=errors(404), summary="List the locks of a session")
def list_locks_of_session(id: str, request: Request, peer: Reading) -> list[LockDocument]:
    """All locks of a session."""
    return _listed(cache_of(request), peer, id)


@router.get("/lock", responses=errors(404), summary="List your locks")
def list_locks(
    request: Request,
    peer: Reading,
    sessionId: str | None = None,
    itemId: str | None = None,
    ownerId: str | None = None,
) -> list[LockDocument]:
    """The locks of whoever asks that match all that is given. The server's own user sees those of all sessions."""
    return _listed(cache_of(request), peer, sessionId, itemId, ownerId)


@router.post("/lock", responses=errors(404, 410), summary="Lock an item for a session")
def create_lock(
    request: Request,
    peer: Writing,
    sessionId: str,
    itemId: str,
    ownerId: Annotated[str | None, Query(min_length=1, max_length=_LONGEST_TEXT)] = None,
) -> LockDocument:
    """Lock an item of a session: by its id, its path, its name or its source. While it is locked, it is not removed.

    The answer comes at once. If the item is not in the cache, it is being fetched, and `state` is not yet `held`.
    """
    if ownerId is not None and not ownerId.isprintable():
        raise UsageError("an ownerId has printable characters only")
    service = service_of(request)
    cache = service.cache(progress=service.fetches)
    facts = _own(cache, peer, sessionId)
    session = cache.session(sessionId)
    begun = session.begin_lock(_word_in(cache, facts, itemId), ownerId)
    taken = session.finish_if_cached(begun)
    try:
        if taken is None:
            _begin_fetch(service, peer, session, begun)
        return shapes.lock(locks.show(cache.store, begun.id), facts, peer)
    except BaseException:
        if taken is not None:  # a client that has not got the id cannot release the lock
            taken.release()
        raise


def _begin_fetch(service: Service, peer: Peer, session: Session, begun: Begun) -> None:
    """Fetch for a lock. What its session says may be older than the server, or be written beside it. Raises Refused."""
    try:
        _check_fetch(service, peer, begun.request)
    except Refused:
        begun.abandon()
        raise
    service.fetches.begin(session, begun)


def _word_in(cache: Cache, facts: SessionFacts, item: str) -> str:
    """The word by which an item of a session is found, for an id, also of a file in it. Raises DoesNotExist."""
    if item[:32].isalnum() and item[32:33] == ".":
        return shapes.place_of(cache, item).key
    if "\0" in item:
        raise UsageError("an itemId has no null characters")
    if not [one for one in facts.entries if item in (one.item, one.mount)]:
        try:  # its source, as the data set was given it
            words = shlex.split(item)
            key = cache.request(words).key if words else None
        except (ValueError, CacheError):
            key = None
        if key is not None and [one for one in facts.entries if one.item == key]:
            return key
    return item


def _lock(cache: Cache, id: str) -> tuple[Lock, SessionFacts | None]:
    """A lock, and its session; None if that has ended. Raises DoesNotExist."""
    found = locks.show(cache.store, id)
    if found.session is None:
        raise DoesNotExist(f"{plain(id)!r} is a lease, and not a lock of a session")
    try:
        return found, sessions.read(cache.store, found.session)
    except CacheError:
        return found, None


@router.get("/lock/{id}", responses=errors(404), summary="Show a lock")
def get_lock(id: str, request: Request, peer: Reading) -> LockDocument:
    """A lock: held, waited for, failed or released."""
    return shapes.lock(*_lock(cache_of(request), id), peer)


@router.delete("/lock/{id}", responses=errors(404, 409), summary="Release a lock")
def release_lock(id: str, request: Request, peer: Writing) -> None:
    """Release a lock. Releasing it twice is not an error."""
    cache = cache_of(request)
    found, session = _lock(cache, id)
    if found.state not in (RELEASED, FAILED) and not (
        peer.is_owner or (session is not None and peer.owns(session.user))
    ):
        raise Refused(403, f"lock {id} is of a session of another user", "only its owner may release it")
    locks.release(cache.store, id)


_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes", "content": {"application/octet-stream": {}, "application/x-tar": {}}},
    206: {"description": "The bytes of `Range`", "content": {"application/octet-stream": {}}},
    304: {"description": "Not changed: `If-None-Match` has its `ETag`"},
}


@router.get(
    "/lock/{id}/download",
    responses={**errors(404, 409, 410, 416, 502), **_BYTES},
    response_class=Response,
    summary="Download what is locked",
)
def download(
    id: str,
    request: Request,
    peer: Reading,
    path: Annotated[str, Query(description="A file or folder in the item.")] = "",
    tar: Flag = None,
) -> Response:
    """The bytes of a locked item, or those of `Range`; with `tar`, all of a folder as a tar archive.

    409 with `Retry-After` if the item is still being fetched.
    """
    cache = cache_of(request)
    found, _ = _lock(cache, id)
    if found.state == RELEASED:
        raise LeaseLost(f"lock {id} was released", hint="take another one")
    if found.state == FAILED:
        raise Refused(502, found.error or "the item could not be fetched", "correct its source, and take another lock")
    payload = locks.path_of(cache.store, found) if found.state == HELD else None
    if payload is None:
        raise NotReady(f"the item of lock {id} is not ready: {found.state}", hint="try again later")
    return _content(cache, request, payload, path, str(found.generation), _is_set(tar))


def _content(cache: Cache, request: Request, payload: str, inner: str, tag: str, tar: bool) -> Response:
    parts = sessions.parts_of(f"/{inner}")
    place, name = "/".join((payload, *parts)), (parts or (payload.rpartition("/")[2],))[-1]
    try:
        if tar:
            return files.tar(cache.store, payload, "/".join(parts), name)
        if stat.S_ISDIR(cache.store.fs.lstat(place).st_mode):
            raise UsageError(f"{plain(name)!r} is a folder", hint="give a file in it with `path`, or add `tar`")
        content = files.open_file(cache.store, place, name)
    except OSError as error:
        raise sessions.unreachable(error, f"/{inner}") from None
    return files.answer(
        request, content, name, tag + "".join(f"-{part.encode('utf-8', 'surrogateescape').hex()}" for part in parts)
    )


# -- transfers ---------------------------------------------------------------------------------------------------------


@router.get("/session/{id}/transfer", responses=errors(404), summary="List the transfers of a session")
def list_transfers_of_session(
    id: str,
    request: Request,
    peer: Reading,
    discardOld: bool = True,
) -> list[TransferDocument]:
    """What is fetched for a session."""
    cache = cache_of(request)
    _ = cache.session(id)
    return _transfers(cache, peer, id, discardOld)


@router.get("/transfer", responses=errors(), summary="List transfers")
def list_transfers(
    request: Request,
    peer: Reading,
    sessionId: str | None = None,
    discardOld: bool = True,
) -> list[TransferDocument]:
    """What is fetched. By default, downloads that ended more than a minute ago are left out; others for a day."""
    return _transfers(cache_of(request), peer, sessionId, discardOld)


def _transfers(cache: Cache, peer: Peer, session: str | None, discard_old: bool) -> list[TransferDocument]:
    paths: dict[tuple[str, str | None], str] = {}
    for facts in cache.sessions():
        if session in (None, facts.id):
            paths |= {(facts.id, entry.item): entry.mount for entry in facts.entries}
    now = cache.store.clock.wall()
    found = cache.transfers()
    keys = {one.key[:32]: one.key for one in found if one.state != TransferState.WAITING}
    made = []
    for one in found:
        one = one._replace(key=keys.get(one.key[:32], one.key))
        if session not in (None, one.session) or (discard_old and one.ended is not None and now - one.ended > _OLD):
            continue
        made.append(shapes.transfer(one, paths.get((one.session or "", one.key), one.label), peer))
    return made


# -- items and folders -------------------------------------------------------------------------------------------------


@router.get("/fs/item/{id}", responses=errors(404), summary="Show an item")
def get_item(id: str, request: Request, peer: Reading) -> ObjectDocument:
    """An item, with what the cache knows of it in `dm`."""
    return _item(cache_of(request), id)


@router.get("/session/{id}/item/{item}", responses=errors(404), summary="Show an item of a session")
def get_item_of_session(id: str, item: str, request: Request, peer: Reading) -> ObjectDocument:
    """As `/fs/item`, of an item of a session."""
    cache = cache_of(request)
    facts = cache.session(id).facts
    entry = sessions.meant(cache.store, facts, _word_in(cache, facts, item))
    return _item(cache, entry.item or item, in_session=True)


def _item(cache: Cache, id: str, *, in_session: bool = False) -> ObjectDocument:
    place = shapes.place_of(cache, id)
    found = cache.item(place.key)
    transfers = cache.transfers()
    known = found.copies or found.uses or in_session or [one for one in transfers if one.key[:32] == place.key[:32]]
    if not known:
        raise DoesNotExist(f"there is no item {plain(id)!r} in the cache")
    return shapes.item(cache, found, transfers)


def _payload(cache: Cache, id: str) -> tuple[Place, str, str]:
    """What an id stands for, where its item is, and in which copy. Raises DoesNotExist if it is not in the cache."""
    place = shapes.place_of(cache, id)
    copy = cache.item(place.key).newest
    path = None if copy is None else cache.path(copy)
    if copy is None or path is None:
        raise DoesNotExist(
            f"{key_label(place.key)} is not in the cache", hint="lock it in a session: POST /api/v1/dm/lock"
        )
    return place, str(path), str(copy.generation)


@router.get(
    "/fs/{id}/raw",
    responses={**errors(404, 416), **_BYTES},
    response_class=Response,
    summary="Download a file that is in the cache",
)
def get_raw(id: str, request: Request, peer: Reading, tar: Flag = None) -> Response:
    """The bytes of a file, or those of `Range`. Nothing is locked: an item that is removed may end the download."""
    cache = cache_of(request)
    place, payload, generation = _payload(cache, id)
    return _content(cache, request, payload, place.inner, generation, _is_set(tar))


@router.get("/fs/{id}/listing", responses=errors(404), summary="List a folder that is in the cache")
def get_listing(id: str, request: Request, peer: Reading) -> Listing:
    """The folders, the files and the links in a folder. Links are never followed."""
    cache = cache_of(request)
    place, payload, _ = _payload(cache, id)
    parts = sessions.parts_of(f"/{place.inner}")
    made: Listing = {"folders": [], "files": [], "links": []}
    try:
        with cache.store.fs.open_directory("/".join((payload, *parts))) as handle:
            found = sorted(os.scandir(handle.directory), key=lambda one: one.name)
            for one in found:
                status = one.stat(follow_symlinks=False)
                inner = Place(place.key, "/".join((*parts, one.name)))
                if stat.S_ISDIR(status.st_mode):
                    made["folders"].append(shapes.placed(inner, one.name, FOLDER, None))
                elif stat.S_ISLNK(status.st_mode):
                    made["links"].append(shapes.placed(inner, one.name, None, None))
                elif stat.S_ISREG(status.st_mode):
                    made["files"].append(shapes.placed(inner, one.name, ITEM, status.st_size))
    except OSError as error:
        raise sessions.unreachable(error, f"/{place.inner}") from None
    return made


@router.delete("/fs/{id}", responses=errors(404, 409), summary="Remove an item from the cache")
def remove_item(id: str, request: Request, peer: Owning) -> None:
    """Remove an item. 409, with the holders, if it is in use."""
    cache = cache_of(request)
    place = shapes.place_of(cache, id)
    if place.inner:
        raise UsageError("a part of an item cannot be removed", hint="remove the item")
    if not cache.item(place.key).copies:
        raise DoesNotExist(f"there is no item {plain(id)!r} in the cache")
    cache.remove(place.key)


class Cleared(TypedDict):
    """What was removed."""

    copies: int
    bytes: int
    kept: int


@router.put("/clearCache", responses=errors(409), summary="Remove everything that nobody uses")
def clear_cache(request: Request, peer: Owning, force: Flag = None) -> Cleared:
    """Remove all items without a lease, a pin or an exclusion. `force` is accepted, and removes no more than that."""
    if not service_of(request).allowed.clearing:
        raise Refused(403, "this server does not clear the cache", "its user can allow it with --allow-clear")
    from sccache_dtool.policy.rules import Rules

    cache = cache_of(request)
    policy = cache.policy()
    done = cache.clean(
        Rules(everything=True, exclude=policy.exclude, grace=policy.grace), why="clearCache of the server"
    )
    return _cleared(done)


def _cleared(done: Cleaned) -> Cleared:
    return {"copies": len(done.removed), "bytes": done.freed, "kept": len(done.kept)}


@router.get("/fs/{id}/evict", include_in_schema=False)
@router.put("/fs/{id}/setProperties", include_in_schema=False)
def not_offered(id: str) -> None:
    """What the data manager did here is not done: a GET changed something, and a PUT could write any field."""
    raise Refused(405, "this is not offered", "remove an item with DELETE /api/v1/dm/fs/{id}", {"Allow": "DELETE"})
