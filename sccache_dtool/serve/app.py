"""The application: all routes over one cache, with what is allowed. It keeps nothing between two requests.

Every request makes a `Cache` of its own. Only fetches that were begun by a lock go on after the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from sccache_dtool import __version__
from sccache_dtool.cache import Cache
from sccache_dtool.serve import data_manager, look, lots, objects
from sccache_dtool.serve.access import SERVICE, Allowed, Gate, Scope
from sccache_dtool.serve.answers import Error, add_handlers
from sccache_dtool.serve.fetches import Fetches
from sccache_dtool.serve.limits import Bounds, Limits
from sccache_dtool.serve.service import Service

_ABOUT = """The REST interface of an sc-dtool cache.

- `/api/v1/dm`: sessions, locks and transfers, as in the Whole Tale data manager.
- `/api/v1.0/lots`: lots, as in Pelican.
- `/objects`, `/index`: the archive.
- `/items`, `/du`, `/transfers`, `/metrics`, `/healthz`: the cache.

Whatever changes something is refused unless the user who runs the server has allowed it. A GET changes nothing.
"""


class App:
    """The application, as uvicorn calls it, and its fetches, which `close` ends."""

    def __init__(self, make_cache: Callable[..., Cache], allowed: Allowed, bounds: Bounds = Bounds()) -> None:  # noqa: B008
        """`make_cache` takes further arguments of `Cache`; it is called for each request."""
        self._service = Service(make_cache, Fetches(), allowed)
        self._outermost = Limits(Gate(_api(), allowed), bounds)

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """One request."""
        scope.setdefault("state", {})[SERVICE] = self._service
        await self._outermost(scope, receive, send)

    def close(self) -> None:
        """Stop the fetches; whoever wants their items continues them."""
        self._service.fetches.stop()


@cache
def _api() -> FastAPI:
    app = FastAPI(title="sc-dtool", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None)
    for one in (data_manager, lots, objects, look):
        app.include_router(one.router)
    add_handlers(app)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _documented(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _documented(app: FastAPI) -> dict[str, Any]:
    """The document of the interface. Invalid parameters are 400 here, and not 422 as FastAPI documents them."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in made["paths"].values():
        for operation in operations.values():
            unprocessable = operation["responses"].get("422", {})
            if "HTTPValidationError" in str(unprocessable):
                del operation["responses"]["422"]
    components = made.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(name, None)
    components.setdefault("schemas", {})[Error.__name__] = TypeAdapter(Error).json_schema()
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "Over TCP only"},
        "girderToken": {"type": "apiKey", "in": "header", "name": "Girder-Token", "description": "Over TCP only"},
    }
    made["security"] = [{"token": []}, {"girderToken": []}, {}]
    return made
