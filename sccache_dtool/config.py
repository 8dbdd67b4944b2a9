"""The policy that all users of one cache share: `config.toml` in its control directory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sccache_dtool.credentials import hide_also
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Layout
from sccache_dtool.marks import ORDERS, Limits, Mark, check, parse_entries_mark, parse_fraction, parse_limit, parse_mark
from sccache_dtool.units import parse_duration, parse_lifetime


class Config(NamedTuple):
    """The settings of a cache; times in seconds. A setting that is absent has the value that stands here."""

    lease_ttl: float | None = None  # lifetime of leases taken with `use`; None: until their process ends
    heartbeat_ttl: float = 12 * 3600.0  # lifetime of holders that beat: `run`, and Python programs
    fetch_wait: float = 3600.0  # how long to wait for somebody else's download
    trash_keep: float = 0.0  # how long `clean` and `rm` keep what they evict for `restore`
    clean_capacity: int | None = None  # bytes that shares are of; None: the file system's
    clean_high: Mark | None = None  # in bytes: `clean` begins above it
    clean_low: Mark | None = None  # and stops below it
    clean_high_files: Mark | None = None  # the same in entries (inodes)
    clean_low_files: Mark | None = None
    clean_least_free: int | None = None  # bytes that the file system must have left
    clean_older_than: float | None = None  # the conditions of `clean`, as on its command line
    clean_fewer_uses: int | None = None
    clean_larger_than: int | None = None
    clean_retain_size: int | None = None
    clean_order: str = ORDERS[0]
    clean_exclude: tuple[str, ...] = ()  # patterns of names that stay
    clean_grace: float = 0.0  # how long a fresh copy stays
    dtool_directories: tuple[str, ...] = ()  # patterns: where else in the root dtool's brokers write, and nobody else
    fetch_credentials: tuple[str, ...] = ()  # names of parameters in URLs, in lower case, beside `credentials.NAMES`
    unknown: tuple[str, ...] = ()  # what else the file has, as ``[table] key``

    @property
    def limits(self) -> Limits:
        """When `clean` begins, and where it stops."""
        return Limits(
            self.clean_capacity,
            self.clean_high,
            self.clean_low,
            self.clean_high_files,
            self.clean_low_files,
            self.clean_least_free,
        )


class Setting(NamedTuple):
    """Where a setting stands in the file, and what makes a value of what stands there."""

    table: str
    key: str
    parse: Callable[[Any], Any]


def _duration(value: object) -> float:
    return parse_duration(str(value))


def _lifetime(value: object) -> float:
    return parse_lifetime(str(value))


def _limit(value: object) -> int:
    return parse_limit(str(value))


def _mark(value: object) -> Mark:
    return parse_mark(str(value))


def _files_mark(value: object) -> Mark:
    return parse_entries_mark(str(value))


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise UsageError(f"{value!r} is no number of uses", hint="give a whole number, such as 10")
    return value


def _order(value: object) -> str:
    if value not in ORDERS:
        raise UsageError(f"{value!r} is no order", hint=f"give one of {', '.join(ORDERS)}")
    return str(value)


def _patterns(value: object) -> tuple[str, ...]:
    """Patterns of items' names."""
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(pattern, str) and pattern for pattern in listed):
        raise UsageError(f"{value!r} is no list of patterns", hint='give a list such as ["hg38*", "*.fa"]')
    return tuple(listed)


def _parameters(value: object) -> tuple[str, ...]:
    """Names of parameters in URLs, as patterns."""
    listed: list[Any] = value if isinstance(value, list) else [value]
    for name in listed:
        if not isinstance(name, str) or re.fullmatch(r"(?a)[^\s=&?#;%/]*\w[^\s=&?#;%/]*", name) is None:
            raise UsageError(
                f"{name!r} is not the name of a parameter in a URL", hint='give a list such as ["ticket", "x-site-*"]'
            )
    return tuple(name.lower() for name in listed)


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
    "fetch_credentials": Setting("fetch", "credentials", _parameters),
    "trash_keep": Setting("clean", "trash", _duration),
    "clean_capacity": Setting("clean", "capacity", _limit),
    "clean_high": Setting("clean", "high_watermark", _mark),
    "clean_low": Setting("clean", "low_watermark", _mark),
    "clean_high_files": Setting("clean", "high_watermark_files", _files_mark),
    "clean_low_files": Setting("clean", "low_watermark_files", _files_mark),
    "clean_least_free": Setting("clean", "min_free", _limit),
    "clean_older_than": Setting("clean", "older_than", _duration),
    "clean_fewer_uses": Setting("clean", "exclude_frequently_accessed", _count),
    "clean_larger_than": Setting("clean", "larger_than", _limit),
    "clean_retain_size": Setting("clean", "retain_size", _limit),
    "clean_order": Setting("clean", "order", _order),
    "clean_exclude": Setting("clean", "exclude", _patterns),
    "clean_grace": Setting("clean", "grace", _duration),
    "dtool_directories": Setting("dtool", "directories", _directories),
}

#: What the Whole Tale data manager calls some of them.
ALIASES = (
    ("clean_capacity", Setting("clean", "private_storage_capacity", _limit)),
    ("clean_high", Setting("clean", "gc_collect_start_fraction", parse_fraction)),
    ("clean_low", Setting("clean", "gc_collect_end_fraction", parse_fraction)),
)


def load(fs: FileSystem, layout: Layout, warn: Callable[[str], None]) -> Config:
    """The settings of a cache. Raises CacheError for a file that cannot be understood; no file is no settings."""
    try:
        text = fs.read_text(layout.config_file)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise CacheError(f"{layout.config_file}: cannot be read: {error.strerror}") from error
    import tomllib

    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CacheError(f"{layout.config_file}: {error}") from error
    unknown = tuple(_others(tables))
    for setting in unknown:
        warn(f"{layout.config_file}: {setting} is not a setting that this release knows; passed over")
    known = [*ALIASES, *SETTINGS.items()]  # our own name, if both are given
    given = {name: setting for name, setting in known if setting.key in _table(tables, setting.table)}
    config = Config(**{name: _take(tables, setting, layout) for name, setting in given.items()}, unknown=unknown)
    hide_also(config.fetch_credentials)
    _told_where(f"{layout.config_file}: [clean]", check, config.limits)
    return config


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name)
    return table if isinstance(table, dict) else {}


def _take(tables: dict[str, Any], setting: Setting, layout: Layout) -> Any:
    place = f"{layout.config_file}: [{setting.table}] {setting.key}"
    return _told_where(place, setting.parse, tables[setting.table][setting.key])


def _told_where(place: str, parse: Callable[[Any], Any], value: Any) -> Any:
    """What `parse` makes of a value; an error names the place."""
    try:
        return parse(value)
    except CacheError as error:
        raise CacheError(f"{place}: {error.message}", hint=error.hint) from error


def _others(tables: dict[str, Any]) -> Iterator[str]:
    known = {(setting.table, setting.key) for setting in (*SETTINGS.values(), *(one for _, one in ALIASES))}
    for table, settings in tables.items():
        for key in settings if isinstance(settings, dict) else ("",):
            if (table, key) not in known:
                yield f"[{table}] {key}".strip()
