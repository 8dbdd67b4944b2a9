"""The policy that all users of one cache share: `config.toml` in its control directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sccache_dtool.errors import CacheError, UsageError, explain
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Layout
from sccache_dtool.units import parse_duration, parse_lifetime


class Config(NamedTuple):
    """The settings of a cache; times in seconds. A setting that is absent has the value that stands here."""

    lease_ttl: float | None = None  # lifetime of leases taken with `use`; None: until their process ends
    heartbeat_ttl: float = 12 * 3600.0  # lifetime of holders that beat: `run`, and Python programs
    fetch_wait: float = 3600.0  # how long to wait for somebody else's download
    trash_keep: float = 0.0  # how long `clean` and `rm` keep what they evict for `restore`
    dtool_directories: tuple[str, ...] = ()  # patterns: where else in the root dtool's brokers write, and nobody else


class Setting(NamedTuple):
    """Where a setting stands in the file, and what makes a value of what stands there."""

    table: str
    key: str
    parse: Callable[[Any], Any]


def _duration(value: object) -> float:
    return parse_duration(str(value))


def _lifetime(value: object) -> float:
    return parse_lifetime(str(value))


def _directories(value: object) -> tuple[str, ...]:
    """Patterns of directories below the root."""
    listed = value if isinstance(value, list) else [value]
    for pattern in listed:
        if not isinstance(pattern, str) or {"", ".", ".."} & set(pattern.split("/")):
            raise UsageError(
                f"{pattern!r} names no directory of the cache", hint='give a list such as ["study-1", "mirror/*"]'
            )
    return tuple(listed)


#: By the names of `Config`'s fields.
SETTINGS = {
    "lease_ttl": Setting("lease", "ttl", _lifetime),
    "heartbeat_ttl": Setting("lease", "heartbeat_ttl", _lifetime),
    "fetch_wait": Setting("fetch", "wait", _duration),
    "trash_keep": Setting("clean", "trash", _duration),
    "dtool_directories": Setting("dtool", "directories", _directories),
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
    given = {name: setting for name, setting in SETTINGS.items() if setting.key in _table(tables, setting.table)}
    return Config(**{name: _take(tables, setting, layout) for name, setting in given.items()})


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name)
    return table if isinstance(table, dict) else {}


def _take(tables: dict[str, Any], setting: Setting, layout: Layout) -> Any:
    try:
        return setting.parse(tables[setting.table][setting.key])
    except CacheError as error:
        place = f"{layout.config_file}: [{setting.table}] {setting.key}"
        raise CacheError(f"{place}: {error.message}", hint=error.hint) from error


def _warn_of_others(tables: dict[str, Any], layout: Layout, warn: Callable[[str], None]) -> None:
    known = {(setting.table, setting.key) for setting in SETTINGS.values()}
    for table, settings in tables.items():
        for key in settings if isinstance(settings, dict) else ("",):
            if (table, key) not in known:
                warn(f"{layout.config_file}: [{table}] {key} is not a setting that this release knows; passed over")
