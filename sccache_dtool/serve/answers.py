"""Errors as answers: one form for all, each with the exit code that the command line would have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from sccache_dtool.errors import (
    FORBIDDEN,
    CacheError,
    DoesNotExist,
    FetchFailed,
    InUse,
    LeaseLost,
    NoCache,
    NoSpace,
    TimedOut,
    UsageError,
    translate,
)
from sccache_dtool.log import Log
from sccache_dtool.lots.model import NotAllowed

_log = Log(__name__)

#: Seconds after which a client may ask again for what is not ready.
RETRY_AFTER = 1


class Refused(CacheError):
    """What only HTTP knows: an error with the code of its answer."""

    def __init__(
        self, status: int, message: str, hint: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.headers = headers or {}


class NotReady(TimedOut):
    """An item that is still being fetched."""


class Error(TypedDict):
    """Why a request failed."""

    message: str
    type: str
    hint: str | None
    details: list[str]
    exit_code: int


#: The codes of errors, the first kind that fits; what each means, for the documentation.
_CODES: tuple[tuple[type[CacheError], int], ...] = (
    (NotReady, 409),
    (NotAllowed, 403),
    (DoesNotExist, 404),
    (UsageError, 400),
    (InUse, 409),
    (LeaseLost, 410),
    (FetchFailed, 502),
    (NoCache, 503),
    (TimedOut, 504),
    (NoSpace, 507),
)

MEANINGS = {
    400: "The request is invalid",
    401: "The token is missing or wrong (only over TCP)",
    403: "Not permitted to whoever asks, or not allowed by the server's user",
    404: "Does not exist",
    405: "Not possible with this method",
    408: "The request took too long to arrive",
    409: "In use, or not ready yet (see `Retry-After`)",
    410: "It has ended, or was lost",
    411: "The size of the body is missing",
    413: "The request is too large",
    416: "The range begins after the end",
    422: "The content does not have the digest that its name says",
    500: "An unexpected error",
    502: "The source cannot be fetched",
    503: "The cache is not available, or the server has too much to do",
    504: "Another process was still at work when the time to wait had passed",
    507: "There is not enough space",
}

#: What every route may answer.
_ANYWHERE = (400, 401, 403, 408, 413, 500, 503)


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its documentation: those of all routes, and `codes`."""
    # One schema for all of them, which the application adds.
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Error.__name__}"}}}
    return {code: {"content": content, "description": MEANINGS[code]} for code in sorted({*_ANYWHERE, *codes})}


def refusal(error: CacheError) -> JSONResponse:
    """The answer for an error."""
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        code, headers = error.status, dict(error.headers)
    else:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), 500)
    if isinstance(error, NotReady) or code == 503:
        headers["Retry-After"] = str(RETRY_AFTER)
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if code in (408, 413):
        headers["Connection"] = "close"  # the rest of the request is not read
    kind = {409: "not-ready"} if isinstance(error, NotReady) else {}
    body = {
        "message": error.message,
        "type": kind.get(code, _TYPES.get(code, "error")),
        "hint": error.hint,
        "details": list(error.details),
        "exit_code": int(error.exit_code),
    }
    return JSONResponse(body, code, headers)


_TYPES = {
    400: "usage",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method",
    408: "timeout",
    409: "in-use",
    410: "gone",
    411: "usage",
    413: "too-large",
    416: "range",
    422: "digest",
    502: "fetch",
    503: "unavailable",
    504: "timeout",
    507: "no-space",
}


def of_os(error: OSError) -> CacheError:
    """An error of the operating system as one of the service."""
    if error.errno in FORBIDDEN:
        found = translate(error)
        return Refused(403, found.message, found.hint)
    return translate(error)


def add_handlers(app: FastAPI) -> None:
    """Have every error answered in the form of `Error`."""

    async def of_cache(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, CacheError)
        return refusal(error)

    async def of_system(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OSError)
        return refusal(of_os(error))

    async def of_request(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return refusal(Refused(400, "; ".join(_explained(error.errors())), "see /openapi.json"))

    async def of_framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return refusal(DoesNotExist(f"there is nothing at {request.url.path!r}", hint="see /openapi.json"))
        return refusal(Refused(error.status_code, str(error.detail), "see /openapi.json", dict(error.headers or {})))

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return refusal(CacheError(f"{type(error).__name__}: {error}", hint="this is a bug in sc-dtool; report it"))

    app.add_exception_handler(CacheError, of_cache)
    app.add_exception_handler(OSError, of_system)
    app.add_exception_handler(RequestValidationError, of_request)
    app.add_exception_handler(HTTPException, of_framework)
    app.add_exception_handler(Exception, unexpected)


def _explained(found: Iterable[Any]) -> list[str]:
    return [f"{'.'.join(map(str, one['loc'][1:])) or one['loc'][0]}: {one['msg']}" for one in found][:5]
