"""What dtool uses: a plugin that leases items, whole datasets at once, and the functions of dtool's specification.

Names are loaded on first use: dtool loads this package with every command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sccache_dtool.dtool.plugin import leased
    from sccache_dtool.dtool.specified import (
        cache_item_lock_counter,
        decrement_cache_item_lock_counter,
        increment_cache_item_lock_counter,
        last_time_accessed,
        num_times_accessed,
        post_item_content_abspath,
        pre_item_content_abspath,
        register_cache_item_access,
        remove_cache_item_safely,
    )

__all__ = [
    "cache_item_lock_counter",
    "decrement_cache_item_lock_counter",
    "increment_cache_item_lock_counter",
    "last_time_accessed",
    "leased",
    "num_times_accessed",
    "post_item_content_abspath",
    "pre_item_content_abspath",
    "register_cache_item_access",
    "remove_cache_item_safely",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{'plugin' if name == 'leased' else 'specified'}"), name)
