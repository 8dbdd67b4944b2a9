"""sccache-dtool: leases, reference counts and safe eviction for caches on shared file systems.

The public face is small::

    from sccache_dtool import Cache

    with Cache("/shared/cache").use("https://example.org/ref.tar", "sha256:…", "tar") as path:
        ...                     # nothing can delete what is at `path` in here

Names are loaded on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Cache",
    "CacheError",
    "IndexCSV",
    "IndexJSON",
    "IndexSQLite",
    "Lease",
    "LeaseLost",
    "__version__",
    "cache_open",
    "cache_save",
]

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache, cache_open, cache_save
    from sccache_dtool.errors import CacheError, LeaseLost
    from sccache_dtool.markers.index import IndexCSV, IndexJSON, IndexSQLite
    from sccache_dtool.protocol.leases import Lease

_HOMES = {
    "Cache": "sccache_dtool.cache",
    "CacheError": "sccache_dtool.errors",
    "IndexCSV": "sccache_dtool.markers.index",
    "IndexJSON": "sccache_dtool.markers.index",
    "IndexSQLite": "sccache_dtool.markers.index",
    "Lease": "sccache_dtool.protocol.leases",
    "LeaseLost": "sccache_dtool.errors",
    "cache_open": "sccache_dtool.cache",
    "cache_save": "sccache_dtool.cache",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
