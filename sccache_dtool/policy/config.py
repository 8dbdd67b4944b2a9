"""The policy that all users of one cache share: `config.toml` in its control directory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sccache_dtool.credentials import hide_also
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.log import Log
from sccache_dtool.oddity import Fate, Oddity
from sccache_dtool.policy.thresholds import (
    ORDERS,
    Limits,
    Mark,
    check,
    parse_entries_mark,
    parse_fraction,
    parse_limit,
    parse_mark,
)
from sccache_dtool.units import parse_duration, parse_lifetime


class _Settings(NamedTuple):
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
    archive_url: str | None = None  # where objects are kept: a directory, or a URL
    archive_limit: int | None = None  # bytes that objects may take up in this cache
    archive_verify: bool = True  # whether an object that is in the archive already is read when it is added again
    unknown: tuple[str, ...] = ()  # what else the file has, as ``[table] key``


class Config(_Settings):
    """The settings of a cache; times in seconds. A setting that is absent has the value that stands above.

    A mistake in a table stops what needs that table, and nothing else: a setting of such a table raises when it is
    read, and has its default only as an element of this tuple.
    """

    #: The mistakes in the file, by table.
    faults: Mapping[str, Sequence[CacheError]] = MappingProxyType({})

    def __getattribute__(self, name: str) -> Any:
        if name in SETTINGS and (found := self.faults.get(SETTINGS[name].table)):
            raise found[0]
        return super().__getattribute__(name)

    @property
    def mistakes(self) -> list[CacheError]:
        """All that is wrong with the file."""
        return list(dict.fromkeys(error for found in self.faults.values() for error in found))

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


def _text(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """`parse`, for a value of any type."""
    return lambda value: parse(str(value))


_duration, _lifetime, _limit = _text(parse_duration), _text(parse_lifetime), _text(parse_limit)
_mark, _files_mark = _text(parse_mark), _text(parse_entries_mark)


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise UsageError(f"{value!r} is not a number of uses", hint="give a whole number, such as 10")
    return value


def _order(value: object) -> str:
    if value not in ORDERS:
        raise UsageError(f"{value!r} is not an order", hint=f"give one of {', '.join(ORDERS)}")
    return str(value)


def _patterns(value: object) -> tuple[str, ...]:
    """Patterns of items' names."""
    if not all(isinstance(pattern, str) and pattern for pattern in _listed(value)):
        raise UsageError(f"{value!r} is not a list of patterns", hint='give a list such as ["hg38*", "*.fa"]')
    return tuple(_listed(value))


def _parameters(value: object) -> tuple[str, ...]:
    """Names of parameters in URLs, as patterns."""
    for name in _listed(value):
        if not isinstance(name, str) or re.fullmatch(r"(?a)[^\s=&?#;%/]*\w[^\s=&?#;%/]*", name) is None:
            raise UsageError(
                f"{name!r} is not the name of a parameter in a URL", hint='give a list such as ["ticket", "x-site-*"]'
            )
    return tuple(name.lower() for name in _listed(value))


def _archive(value: object) -> str:
    """An absolute path, or a URL without a password: all users of the cache can read the file."""
    if not isinstance(value, str) or not (value.startswith("/") or "://" in value):
        raise UsageError(
            f"{value!r} does not name an archive", hint='give an absolute path or a URL, such as "/tank/archive"'
        )
    userinfo = value.partition("://")[2].partition("/")[0].rpartition("@")[0]
    if ":" in userinfo:
        raise UsageError("the URL of the archive contains a password", hint="put it into ~/.netrc of each user")
    return value.rstrip("/") or "/"


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither true nor false", hint="write true or false, without quotes")
    return value


def _directories(value: object) -> tuple[str, ...]:
    """Patterns of directories below the root."""
    for pattern in _listed(value):
        if not isinstance(pattern, str) or {"", ".", ".."} & set(pattern.split("/")):
            raise UsageError(
                f"{pattern!r} does not name a directory of the cache",
                hint='give a list such as ["study-1", "mirror/*"]',
            )
    return tuple(_listed(value))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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
    "archive_url": Setting("archive", "url", _archive),
    "archive_limit": Setting("archive", "limit", _limit),
    "archive_verify": Setting("archive", "verify", _switch),
    "dtool_directories": Setting("dtool", "directories", _directories),
}

#: What the Whole Tale data manager calls some of them.
ALIASES = (
    ("clean_capacity", Setting("clean", "private_storage_capacity", _limit)),
    ("clean_high", Setting("clean", "gc_collect_start_fraction", parse_fraction)),
    ("clean_low", Setting("clean", "gc_collect_end_fraction", parse_fraction)),
)


#: All of them; sc-dtool's own name is the later one, and so counts if both are given.
_KNOWN = (*ALIASES, *SETTINGS.items())

#: The tables that the file may have.
TABLES = tuple(dict.fromkeys(setting.table for setting in SETTINGS.values()))

#: The line that a table begins with, and lines that say nothing of where one begins.
_HEAD = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(?:#.*)?")
_BODY = re.compile(r"\s*(?:#.*|[A-Za-z0-9_-]+\s*=.*)?")


#: Hint for a file that cannot be parsed.
_CORRECT = "correct the file: it must be valid TOML"


def load(fs: FileSystem, layout: Layout, log: Log) -> Config:
    """The settings of a cache; the defaults if there is no file. Mistakes in the file are in `Config.faults`."""
    place = layout.config_file
    try:
        text = fs.read_text(place)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        return _without_any(
            CacheError(f"{place}: cannot be read: {error.strerror}", hint="check its owner and permissions")
        )
    faults: dict[str, list[CacheError]] = {}
    try:
        tables = _parse(text)
    except ValueError as error:
        tables = {}
        for name, lines in _split(text).items():
            try:
                tables |= _parse(lines)
            except ValueError as mistake:
                faults[name] = [CacheError(f"{place}: [{name}]: {mistake}", hint=_CORRECT)]
        if not faults.keys() <= set(TABLES) or not faults:  # it cannot be said which table is concerned
            return _without_any(CacheError(f"{place}: {error}", hint=_CORRECT))
    unknown = tuple(_others(tables))
    for one in unknown:
        log.warning(Oddity(place, f"{one} is not a setting that this release knows", Fate.IGNORED))
    for name in TABLES:
        if not isinstance(tables.get(name, {}), dict):
            faults[name] = [CacheError(f"{place}: [{name}] is not a table", hint=f"write it as a line: [{name}]")]
    values: dict[str, Any] = {}
    for field, setting in _KNOWN:
        table = tables.get(setting.table)
        if isinstance(table, dict) and setting.key in table:
            with _collecting(faults, place, setting.table, f" {setting.key}"):
                values[field] = setting.parse(table[setting.key])
    hide_also(values.get("fetch_credentials", ()))  # whatever else is wrong
    settings = Config(**values, unknown=unknown)
    if "clean" not in faults:
        with _collecting(faults, place, "clean"):
            check(settings.limits)
    settings.faults = faults
    return settings


def _without_any(error: CacheError) -> Config:
    settings = Config()
    settings.faults = {table: [error] for table in TABLES}
    return settings


def _parse(text: str) -> dict[str, Any]:
    """What TOML says. Raises ValueError."""
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(error) from error


def _split(text: str) -> dict[str, str]:
    """The lines of each table in a text that is not TOML, each at its place; nothing if these cannot be told apart.

    Nothing is guessed: a line that could be the mistyped head of a table could hide settings of that table.
    """
    found: dict[str, str] = {}
    name: str | None = None
    for number, line in enumerate(text.split("\n")):
        head = _HEAD.fullmatch(line)
        if head is not None:
            name = head[1]
            lines = found.setdefault(name, "")
            found[name] += "\n" * (number - lines.count("\n"))
        elif _BODY.fullmatch(line) is None or (name is None and "=" in line) or '"""' in line or "'''" in line:
            return {}
        if name is not None:
            found[name] += f"{line}\n"
    return found


@contextlib.contextmanager
def _collecting(faults: dict[str, list[CacheError]], place: str, table: str, key: str = "") -> Iterator[None]:
    """Add an error to the faults of a table, with where it is."""
    try:
        yield
    except CacheError as error:
        mistake = CacheError(f"{place}: [{table}]{key}: {error.message}", hint=error.hint)
        faults.setdefault(table, []).append(mistake)


def _others(tables: dict[str, Any]) -> Iterator[str]:
    known = {(setting.table, setting.key) for _, setting in _KNOWN}
    for table, settings in tables.items():
        if isinstance(settings, dict):
            yield from (f"[{table}] {key}" for key in settings if (table, key) not in known)
        elif table not in TABLES:
            yield table


def of_cleaning(unknown: str) -> bool:
    """Whether what is not a setting may be meant for `clean`: it is in its table, or named like one of its settings."""
    table, _, key = unknown.rpartition(" ")
    return table == "[clean]" or any(setting.table == "clean" and setting.key == key for _, setting in _KNOWN)
