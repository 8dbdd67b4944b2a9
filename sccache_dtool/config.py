"""The policy that all users of one cache share: `config.toml` in its control directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sccache_dtool.errors import CacheError, explain
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Layout
from sccache_dtool.units import parse_duration, parse_lifetime


class Config(NamedTuple):
    """The settings of a cache, in seconds. A setting that is absent has the value that stands here."""

    lease_ttl: float | None = None  # lifetime of leases taken with `use`; None: until their process ends
    heartbeat_ttl: float = 12 * 3600.0  # lifetime of holders that beat: `run`, and Python programs
    fetch_wait: float = 3600.0  # how long to wait for somebody else's download
    trash_keep: float = 0.0  # how long `clean` and `rm` keep what they evict for `restore`


#: Where each setting stands in the file: (table, key).
PLACES = {
    "lease_ttl": ("lease", "ttl"),
    "heartbeat_ttl": ("lease", "heartbeat_ttl"),
    "fetch_wait": ("fetch", "wait"),
    "trash_keep": ("clean", "trash"),
}


def load(fs: FileSystem, layout: Layout, warn: Callable[[str], None]) -> Config:
    """The settings of a cache. Raises CacheError for a file that cannot be understood; no file is no settings."""
    try:
        text = fs.read_text(layout.config_file)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise CacheError(f"cannot read {explain(error)}") from error
    import tomllib

    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CacheError(f"{layout.config_file}: {error}") from error
    _warn_of_others(tables, layout, warn)
    return Config(**{name: _take(tables, *place, layout) for name, place in PLACES.items() if _has(tables, *place)})


def _has(tables: dict[str, Any], table: str, key: str) -> bool:
    return isinstance(tables.get(table), dict) and key in tables[table]


def _take(tables: dict[str, Any], table: str, key: str, layout: Layout) -> float:
    value = tables[table][key]
    try:
        parse = parse_lifetime if table == "lease" else parse_duration
        return parse(str(value))
    except CacheError as error:
        raise CacheError(f"{layout.config_file}: [{table}] {key}: {error.message}", hint=error.hint) from error


def _warn_of_others(tables: dict[str, Any], layout: Layout, warn: Callable[[str], None]) -> None:
    known = set(PLACES.values())
    for table, settings in tables.items():
        for key in settings if isinstance(settings, dict) else ("",):
            if (table, key) not in known:
                warn(f"{layout.config_file}: [{table}] {key} is not a setting that this release knows; passed over")
