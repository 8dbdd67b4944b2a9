"""The archive of the cache over HTTP: its objects, and its index. What is answered is decided in `markers/serving`."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from fastapi import APIRouter, Body, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from typing_extensions import TypedDict

from sccache_dtool.cache import Cache
from sccache_dtool.errors import CacheError
from sccache_dtool.markers import serving
from sccache_dtool.markers.archive import Archive
from sccache_dtool.markers.serving import Answer, Upload, digits_in
from sccache_dtool.serve.access import Reading, Writing
from sccache_dtool.serve.answers import errors
from sccache_dtool.serve.files import UNTRUSTED, chunks
from sccache_dtool.serve.service import cache_of

router = APIRouter(tags=["archive"])

Digits = Annotated[str, Path(description="The SHA-256 of the content: 64 lower-case hexadecimal digits.")]

_OBJECT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The object", "content": {"application/octet-stream": {}}},
    206: {"description": "The bytes of `Range`", "content": {"application/octet-stream": {}}},
    304: {"description": "Not changed: `If-None-Match` has its `ETag`"},
}


class Stored(TypedDict):
    """An object that is in the archive now."""

    id: str
    bytes: int


class IndexEntry(TypedDict):
    """A file that was added."""

    id: str
    ms: int
    bytes: int
    random: str
    archived: bool
    name: str
    by: str
    comment: str
    project: str


class IndexPage(TypedDict):
    """Entries of the index; `next` is what to give as `after`, and null at the end."""

    entries: list[IndexEntry]
    next: str | None


class NewRecord(TypedDict, total=False):
    """What is recorded of an object. `random`: 16 hexadecimal digits, the same when the request is repeated."""

    name: str
    by: str
    comment: str
    project: str
    random: str
    md5: str
    verify: bool


class Recorded(TypedDict):
    """A record."""

    id: str
    ms: int
    bytes: int
    random: str
    archived: NotRequired[bool]


def _archive(request: Request) -> tuple[Cache, Archive]:
    cache = cache_of(request)
    return cache, cache.archive


def _sent(found: Answer) -> Response:
    headers = dict(found.headers)
    if found.document is not None:
        return JSONResponse(dict(found.document), int(found.status), headers)
    headers |= UNTRUSTED
    if found.body is None:
        return Response(None, int(found.status), headers)
    return StreamingResponse(chunks(found.body), int(found.status), headers)


def _refused(error: Exception) -> Response:
    """What the archive answers to an error, with the details that all errors of this service have."""
    found = serving.refusal(error)
    details = list(error.details) if isinstance(error, CacheError) else []
    return _sent(found._replace(document={**(found.document or {}), "details": details}))


@router.get(
    "/objects/{sha256}",
    responses={**errors(404, 409, 416), **_OBJECT},
    response_class=Response,
    summary="Download an object of the archive",
)
def get_object(sha256: Digits, request: Request, peer: Reading) -> Response:
    """The bytes of an object, or those of `Range`. The client checks the digest of the whole."""
    try:
        return _sent(serving.look(_archive(request)[1], digits_in(sha256), dict(request.headers)))
    except Exception as error:
        return _refused(error)


@router.head(
    "/objects/{sha256}",
    responses={**errors(404, 409, 416), **_OBJECT},
    response_class=Response,
    summary="Ask for the size of an object",
)
def head_object(sha256: Digits, request: Request, peer: Reading) -> Response:
    """As GET, without the bytes."""
    try:
        found = serving.look(_archive(request)[1], digits_in(sha256), dict(request.headers))
        return Response(None, int(found.status), {**found.headers, **UNTRUSTED})
    except Exception as error:
        return _refused(error)


@router.put(
    "/objects/{sha256}",
    responses={
        **errors(404, 409, 411, 422, 507),
        200: {"description": "The archive has it already", "model": Stored},
        201: {"description": "It was stored", "model": Stored},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    summary="Upload an object to the archive",
)
async def put_object(sha256: Digits, request: Request, peer: Writing) -> Response:
    """Store an object. It is hashed as it comes; a wrong, broken or unfinished upload leaves nothing.

    Repeating an upload is safe. 413 if it is larger than `[archive] limit`.
    """

    def begin() -> Upload:
        digits = digits_in(sha256)
        cache, archive = _archive(request)
        return Upload(archive, digits, request.headers.get("content-length"), cache.settings.archive_limit)

    try:
        upload = await run_in_threadpool(begin)
        with upload:
            async for piece in request.stream():
                if piece:
                    await run_in_threadpool(upload.write, piece)
            return _sent(await run_in_threadpool(upload.finish))
    except HTTPException:  # it took too long
        raise
    except Exception as error:
        return _refused(error)


@router.get("/index", responses=errors(404), summary="List what was added to the archive")
def get_index(
    request: Request,
    peer: Reading,
    after: Annotated[str, Query(description="`next` of the answer before.")] = "",
    limit: Annotated[int, Query(ge=0, le=serving.MOST_ENTRIES)] = serving.MOST_ENTRIES,
    md5: Annotated[str, Query(description="Only the object that a predecessor knew by this MD5.")] = "",
) -> IndexPage:
    """The records of the archive, and the objects without one, ordered by digest and time."""
    try:
        found: Any = serving.page(_archive(request)[1], after, limit, md5)
        return found  # type: ignore[no-any-return]
    except Exception as error:
        return _refused(error)  # type: ignore[return-value]


@router.post(
    "/index/{sha256}",
    status_code=201,
    responses={
        **errors(404, 409, 422, 507),
        200: {"description": "It was recorded before", "model": Recorded},
        201: {"description": "It was recorded", "model": Recorded},
    },
    summary="Record an object of the archive",
)
def post_record(
    sha256: Digits, request: Request, peer: Writing, body: Annotated[NewRecord | None, Body()] = None
) -> Response:
    """Record that an object was added once more, such as with another comment."""
    try:
        by = None if peer.is_owner else peer.user
        return _sent(serving.note(_archive(request)[1], digits_in(sha256), dict(body or {}), by))
    except Exception as error:
        return _refused(error)
