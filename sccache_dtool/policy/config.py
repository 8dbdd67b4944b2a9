"""The policy that all users of one cache share: `config.toml` in its control directory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sccache_dtool.credentials import hide_also
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.log import Log
from sccache_dtool.oddity import Fate, Oddity
from sccache_dtool.policy.thresholds import (
    LOT_ORDER,
    ORDERS,
    Limits,
    Mark,
    check,
    parse_entries_mark,
    parse_fraction,
    parse_limit,
    parse_mark,
)
from sccache_dtool.tuples import NamedTuple
from sccache_dtool.units import parse_duration, parse_lifetime


class UnknownSetting(NamedTuple):
    """A key in the file that this release does not know; `table` is empty for one outside of the known tables."""

    table: str
    key: str

    def __str__(self) -> str:
        return f"[{self.table}] {self.key}" if self.table else self.key

    @property
    def may_concern_cleaning(self) -> bool:
        """Whether it is in a table by which `clean` goes, or named like one of its settings."""
        return self.table in ("clean", "lots", DATA_MANAGER) or any(
            one.table == "clean" and one.key == self.key for _, one in _KNOWN
        )


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
    fetch_upstream: str | None = None  # root of the cache from which missing items are copied; None: they are fetched
    fetch_credentials: tuple[str, ...] = ()  # names of parameters in URLs, in lower case, beside `credentials.NAMES`
    lots_order: tuple[str, ...] = LOT_ORDER  # which lots give way first
    lots_forget: float | None = None  # how long after its deletion an empty lot is removed; None: never
    lots_managers: tuple[str, ...] = ()  # users who may change every lot, beside the owner of `lots/`
    archive_url: str | None = None  # where objects are kept: a directory, or a URL
    archive_token_file: str | None = None  # where each user has the token for the archive's server
    archive_limit: int | None = None  # bytes that objects may take up in this cache
    archive_compress: str = (
        "never"  # what is compressed: nothing, the archive's files, or the copies in the cache as well
    )
    archive_verify: bool = True  # whether an object that is in the archive already is read when it is added again
    globus_collection: str | None = None  # the Globus collection that the cache is in, by its UUID
    globus_base: str | None = None  # the path of the cache in that collection
    globus_client: str | None = None  # the application that users log in to, by its UUID
    unknown: tuple[UnknownSetting, ...] = ()  # what else the file contains


class Config(_Settings):
    """The settings of a cache; times in seconds. A setting that is absent has the value that stands above.

    A mistake in a table stops what needs that table, and nothing else: a setting of such a table raises when it is
    read, and has its default only as an element of this tuple.
    """

    #: The mistakes in the file, by table.
    faults: Mapping[str, Sequence[Mistake]] = MappingProxyType({})

    #: Under which of its names a setting is in the file, by the names of fields.
    given: Mapping[str, Setting] = MappingProxyType({})

    def __getattribute__(self, name: str) -> Any:
        if name in SETTINGS and (found := self.faults.get(SETTINGS[name].table)):
            raise found[0]
        return super().__getattribute__(name)

    @property
    def mistakes(self) -> list[Mistake]:
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


class Mistake(CacheError):
    """A mistake in the file `path`; `what` says what it is, without the path."""

    def __init__(self, path: str, what: str, hint: str | None) -> None:
        super().__init__(f"{path}: {what}", hint=hint)
        self.what = what


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


def _root(value: object) -> str | None:
    """The root of another cache; None for an empty text."""
    if not isinstance(value, str) or not (value == "" or (value.startswith("/") and value.isprintable())):
        raise UsageError(f"{value!r} is not an absolute path", hint='give the root of a cache: "/shared/lab/cache"')
    return value or None


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


def _compress(value: object) -> str:
    """What is compressed."""
    if value not in ("never", "archive", "both"):
        raise UsageError(f"{value!r} does not say what to compress", hint='give "never", "archive" or "both"')
    return str(value)


def _token_file(value: object) -> str:
    """A path that means a file of each user's own."""
    if not isinstance(value, str) or not value.startswith(("/", "~/")):
        raise UsageError(
            f"{value!r} is not a path", hint='give one in the home directory, such as "~/.config/sc-dtool/token"'
        )
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither true nor false", hint="write true or false, without quotes")
    return value


def _uuid(value: object) -> str:
    """The UUID of a collection or an application."""
    from sccache_dtool.catalog.broker_names import is_uuid

    text = str(value).lower()
    if not is_uuid(text):
        raise UsageError(f"{value!r} is not a UUID", hint="copy it from https://app.globus.org")
    return text


def _path_in_collection(value: object) -> str:
    """The path of a directory in a collection."""
    if not isinstance(value, str) or not value.startswith("/") or ".." in value.split("/"):
        raise UsageError(f"{value!r} is not an absolute path", hint='give a path in the collection, such as "/cache"')
    return value.rstrip("/")


def _directories(value: object) -> tuple[str, ...]:
    """Patterns of directories below the root."""
    for pattern in _listed(value):
        if not isinstance(pattern, str) or {"", ".", ".."} & set(pattern.split("/")):
            raise UsageError(
                f"{pattern!r} does not name a directory of the cache",
                hint='give a list such as ["study-1", "mirror/*"]',
            )
    return tuple(_listed(value))


def _users(value: object) -> tuple[str, ...]:
    """Names of users."""
    if not all(isinstance(name, str) and name for name in _listed(value)):
        raise UsageError(f"{value!r} is not a list of users", hint='give a list such as ["ada", "bob"]')
    return tuple(_listed(value))


def _lot_order(value: object) -> tuple[str, ...]:
    """Classes of lots, each at most once."""
    found = _listed(value)
    if not set(found) <= set(LOT_ORDER) or len(set(found)) < len(found):
        raise UsageError(f"{value!r} is not an order of classes", hint=f"give a list of {', '.join(LOT_ORDER)}")
    return tuple(found)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


#: By the names of `Config`'s fields.
SETTINGS = {
    "lease_ttl": Setting("lease", "ttl", _lifetime),
    "heartbeat_ttl": Setting("lease", "heartbeat_ttl", _lifetime),
    "fetch_wait": Setting("fetch", "wait", _duration),
    "fetch_upstream": Setting("fetch", "upstream", _root),
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
    "archive_compress": Setting("archive", "compress", _compress),
    "archive_token_file": Setting("archive", "token_file", _token_file),
    "archive_limit": Setting("archive", "limit", _limit),
    "archive_verify": Setting("archive", "verify", _switch),
    "dtool_directories": Setting("dtool", "directories", _directories),
    "lots_order": Setting("lots", "order", _lot_order),
    "lots_forget": Setting("lots", "forget", _duration),
    "lots_managers": Setting("lots", "managers", _users),
    "globus_collection": Setting("globus", "collection", _uuid),
    "globus_base": Setting("globus", "base", _path_in_collection),
    "globus_client": Setting("globus", "client", _uuid),
}

#: The table of the Whole Tale data manager's settings. A mistake in it counts for `[clean]`.
DATA_MANAGER = "dm"

#: What the data manager calls some of them: in its own table, or in `[clean]`.
ALIASES = tuple(
    (field, Setting(table, key, parse))
    for table in ("clean", DATA_MANAGER)
    for field, key, parse in (
        ("clean_capacity", "private_storage_capacity", _limit),
        ("clean_high", "gc_collect_start_fraction", parse_fraction),
        ("clean_low", "gc_collect_end_fraction", parse_fraction),
    )
)

#: Settings of the data manager that mean nothing here, and what is done instead.
IGNORED = {
    (DATA_MANAGER, "private_storage_path"): "ignored: the cache is the directory that this file is in",
    (DATA_MANAGER, "gc_run_interval"): "ignored: there is no daemon; run `sc-dtool clean` from cron",
}


#: Variables of the environment that take the place of settings.
VARIABLES = {"globus_client": "GLOBUS_CLIENT_ID"}

#: All of them; sc-dtool's own name is the later one, and so counts if both are given.
_KNOWN = (*ALIASES, *SETTINGS.items())

#: The tables that the file may have, besides `DATA_MANAGER`.
TABLES = tuple(dict.fromkeys(setting.table for setting in SETTINGS.values()))

#: The line that a table begins with, and lines that say nothing of where one begins.
_HEAD = r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(?:#.*)?"
_BODY = r"\s*(?:#.*|[A-Za-z0-9_-]+\s*=.*)?"

#: A line that a setting begins in, with its key, or the table's name and the key.
_KEY = r"\s*(?:([A-Za-z0-9_-]+)\s*\.\s*)?([A-Za-z0-9_-]+)\s*=.*"


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
        return _without_any(Mistake(place, f"cannot be read: {error.strerror}", hint="check its owner and permissions"))
    faults: dict[str, list[Mistake]] = {}
    try:
        tables = _parse(text)
    except ValueError as error:
        tables = {}
        for name, lines in _split(text).items():
            try:
                tables |= _parse(lines)
            except ValueError as mistake:
                faults.setdefault(_counting(name), []).append(Mistake(place, f"[{name}]: {mistake}", hint=_CORRECT))
        if not faults.keys() <= set(TABLES) or not faults:  # it cannot be said which table is concerned
            return _without_any(Mistake(place, str(error), hint=_CORRECT))
    unknown = tuple(_others(tables))
    for one in unknown:
        log.warning(Oddity(place, f"{one} is not a setting that this release knows", Fate.IGNORED))
    for name in (*TABLES, DATA_MANAGER):
        if not isinstance(tables.get(name, {}), dict):
            no_table = Mistake(place, f"[{name}] is not a table", hint=f"write it as a line: [{name}]")
            faults.setdefault(_counting(name), []).append(no_table)
    values: dict[str, Any] = {}
    given: dict[str, Setting] = {}
    for field, setting in _KNOWN:
        table = tables.get(setting.table)
        if isinstance(table, dict) and setting.key in table:
            with _collecting(faults, place, setting.table, f" {setting.key}"):
                values[field] = setting.parse(table[setting.key])
                given[field] = setting
    hide_also(values.get("fetch_credentials", ()))  # whatever else is wrong
    settings = Config(**values, unknown=unknown)
    if "clean" not in faults:
        with _collecting(faults, place, "clean"):
            check(settings.limits)
    settings.faults = faults
    settings.given = given
    return settings


def _counting(table: str) -> str:
    """The table that a mistake in `table` counts for."""
    return "clean" if table == DATA_MANAGER else table


def lines(text: str) -> dict[tuple[str, str], int]:
    """The number of the line that each setting of a file begins in, by table and key. For display only."""
    found: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), 1):
        if head := re.fullmatch(_HEAD, line):
            table = head[1]
        elif key := re.fullmatch(_KEY, line):
            found.setdefault((table or key[1] or "", key[2]), number)
    return found


def _without_any(error: Mistake) -> Config:
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
        head = re.fullmatch(_HEAD, line)
        if head is not None:
            name = head[1]
            lines = found.setdefault(name, "")
            found[name] += "\n" * (number - lines.count("\n"))
        elif re.fullmatch(_BODY, line) is None or (name is None and "=" in line) or '"""' in line or "'''" in line:
            return {}
        if name is not None:
            found[name] += f"{line}\n"
    return found


@contextlib.contextmanager
def _collecting(faults: dict[str, list[Mistake]], place: str, table: str, key: str = "") -> Iterator[None]:
    """Add an error to the faults of a table, with where it is."""
    try:
        yield
    except CacheError as error:
        mistake = Mistake(place, f"[{table}]{key}: {error.message}", hint=error.hint)
        faults.setdefault(_counting(table), []).append(mistake)


def _others(tables: dict[str, Any]) -> Iterator[UnknownSetting]:
    known = {*((setting.table, setting.key) for _, setting in _KNOWN), *IGNORED}
    for table, settings in tables.items():
        if isinstance(settings, dict):
            yield from (UnknownSetting(table, key) for key in settings if (table, key) not in known)
        elif table not in (*TABLES, DATA_MANAGER):
            yield UnknownSetting("", table)
