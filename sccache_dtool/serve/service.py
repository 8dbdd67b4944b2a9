"""What a request is given: its cache, the fetches, and what is allowed. The routes are the same for all services."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from starlette.requests import Request

from sccache_dtool.cache import Cache
from sccache_dtool.serve.access import SERVICE, Allowed
from sccache_dtool.serve.fetches import Fetches


class Service(NamedTuple):
    """One cache, as it is served."""

    cache: Callable[..., Cache]  # takes further arguments of `Cache`
    fetches: Fetches
    allowed: Allowed


def service_of(request: Request) -> Service:
    """The service that a request is made to."""
    service = getattr(request.state, SERVICE)
    assert isinstance(service, Service)
    return service


def cache_of(request: Request) -> Cache:
    """The cache, for this request alone."""
    return service_of(request).cache()
