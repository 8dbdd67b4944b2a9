"""What the cache has, and how it is: items, sums, downloads, metrics, health."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from typing_extensions import TypedDict

from sccache_dtool import __version__, as_rows, metrics
from sccache_dtool.catalog import items
from sccache_dtool.disk.names import is_key
from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.transfers import TransferState
from sccache_dtool.policy.totals import add_up, total
from sccache_dtool.serve.access import Reading
from sccache_dtool.serve.answers import Refused, errors
from sccache_dtool.serve.service import cache_of

router = APIRouter(tags=["cache"])

#: Items in one answer, if nothing else is said, and at most.
_ITEMS, _MOST_ITEMS = 1000, 10_000

#: Scans of the whole cache at a time, and the seconds for which another one waits for its turn.
_SCANS, _TURN = threading.BoundedSemaphore(2), 20.0

#: Looks at the cache that may hang: a monitor asks for as long as a mount is dead, and each takes a thread.
_LOOKS = threading.BoundedSemaphore(16)

#: Seconds that a look at the cache may take before it counts as not available.
_HEALTHY = 5.0


#: Seconds after which a browser loads the page again.
_RELOAD = 600

#: A name in the page that looks like HTML would have to get past its escaping and past this.
_PAGE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Health(TypedDict):
    """That the server and the cache are there."""

    status: str
    cache: str
    version: str


class ItemRow(TypedDict):
    """An item, as in `sc-dtool -f json ls`."""

    item: str
    name: str
    bytes: int
    entries: int
    copies: int
    leases: int
    uses: int
    last_use: str | None
    state: str


class Items(TypedDict):
    """Items, by key; `next` is what to give as `after`, and null at the end."""

    items: list[ItemRow]
    next: str | None


class Total(TypedDict):
    """What all items add up to, as in `sc-dtool -f json du`."""

    items: int
    bytes: int
    leases: int
    uses: int
    reclaimable_items: int
    reclaimable_bytes: int
    loose_files: int
    loose_bytes: int


class Usage(TypedDict):
    """The space that items take."""

    total: Total
    largest: list[ItemRow]
    free_bytes: int | None


class TransferRow(TypedDict):
    """A download, as in `sc-dtool -f json transfers`."""

    item: str
    name: str
    state: str
    state_number: int | None
    bytes: int
    total: int | None
    percent: float | None
    rate: int | None
    by: str
    error: str | None
    attempts: int
    waiting: int
    began: str | None
    ended: str | None
    source: list[str]
    continuable_until: str | None
    message: str | None
    holder: str | None
    session: str | None
    owner: str | None


@contextlib.contextmanager
def one_scan(request: Request) -> Iterator[None]:
    """A scan of the whole cache: only so many at a time, whoever asks for them. Raises Refused."""
    if not _SCANS.acquire(timeout=_TURN):
        raise Refused(503, "other scans of the cache are running", "try again later")
    try:
        yield
    finally:
        _SCANS.release()


@router.get("/healthz", responses=errors(), summary="Say whether the cache is available")
async def healthz(request: Request, peer: Reading) -> Health:
    """Whether the cache can be read: 503 if its file system does not answer within 5 seconds."""
    with anyio.move_on_after(_HEALTHY):
        # A thread of its own: it must not wait for those that hang.
        id = await anyio.to_thread.run_sync(
            lambda: _check(request), abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
        return {"status": "ok", "cache": id, "version": __version__}
    raise Refused(503, f"the file system of the cache does not answer within {_HEALTHY:g} s")


def _check(request: Request) -> str:
    cache = cache_of(request)
    if not _LOOKS.acquire(blocking=False):
        raise Refused(503, "the file system of the cache has not answered earlier looks")
    try:
        return cache.check()
    finally:
        _LOOKS.release()


@router.get(
    "/metrics",
    response_class=Response,
    responses={**errors(), 200: {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Metrics for Prometheus",
)
def get_metrics(request: Request, peer: Reading) -> Response:
    """What `sc-dtool metrics` prints, from one scan of the cache."""
    with one_scan(request):
        text = "".join(metrics.text(cache_of(request).state()))
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/items", responses=errors(), summary="List the items")
def get_items(
    request: Request,
    peer: Reading,
    after: Annotated[str | None, Query(description="`next` of the answer before.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_ITEMS)] = _ITEMS,
) -> Items:
    """The items in the cache, ordered by key."""
    cache = cache_of(request)
    if after is not None and not is_key(after):
        raise UsageError(f"{after!r} is not the key of an item", hint="give `next` of the answer before")
    with one_scan(request):
        found = (items.look(cache.store, key) for key in items.keys(cache.store, after or ""))
        rows: list[Any] = [as_rows.item(one) for one in islice((one for one in found if one.copies), limit + 1)]
    return {"items": rows[:limit], "next": rows[limit - 1]["item"] if len(rows) > limit else None}


@router.get("/du", responses=errors(), summary="Show the space that items take")
def get_du(request: Request, peer: Reading, top: Annotated[int, Query(ge=0, le=_MOST_ITEMS)] = 50) -> Usage:
    """What all items take, what of it is reclaimable, and the largest items; from one scan of the cache."""
    cache = cache_of(request)
    with one_scan(request):
        whole = total(cache.survey(functools.partial(add_up, top, spared=cache.spared())), top)
        summed: Any = as_rows.total(whole, cache.reclaimable_loose())
    largest: list[Any] = [as_rows.item(one) for one in whole.largest]
    return {"total": summed, "largest": largest, "free_bytes": cache.free_space()}


@router.get("/transfers", responses=errors(), summary="List the downloads")
def get_transfers(
    request: Request,
    peer: Reading,
    everything: Annotated[bool, Query(alias="all", description="Also those that ended within a day.")] = False,
) -> list[TransferRow]:
    """The downloads in progress, and who waits for them."""
    cache = cache_of(request)
    found = cache.transfers()
    keys = {one.key[:32]: one.key for one in found if one.state != TransferState.WAITING}
    found = [one._replace(key=keys.get(one.key[:32], one.key)) for one in found]
    waiting = Counter(one.key for one in found if one.state == TransferState.WAITING)
    over = (TransferState.DONE, TransferState.FAILED, TransferState.ABANDONED)
    now = cache.store.clock.wall()
    rows: list[Any] = [
        as_rows.transfer(one, waiting[one.key], now) for one in found if everything or one.state not in over
    ]
    return rows


@router.get(
    "/",
    response_class=Response,
    responses={**errors(), 200: {"description": "A page", "content": {"text/html": {"schema": {"type": "string"}}}}},
    summary="A page on the cache, for people",
)
def get_page(request: Request, peer: Reading) -> Response:
    """What `sc-dtool report` writes, as of now: no script, nothing from elsewhere. Browsers load it again."""
    from sccache_dtool import report

    try:
        with one_scan(request):
            page = report.render(cache_of(request))
    except UsageError as error:
        raise Refused(503, error.message, error.hint) from error
    return Response(page, media_type="text/html; charset=utf-8", headers={**_PAGE, "Refresh": str(_RELOAD)})
