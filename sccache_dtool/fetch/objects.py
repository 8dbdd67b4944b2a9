"""Objects: files of the archive that `config.toml` names, each known by the SHA-256 of its content.

The archive is read by whatever reads its URL: `local.py` a directory, `http.py` a server, and `fsspec_source.py` an
object store. What they bring is checked here, whole, before anybody sees it. Objects are added by `markers/archive.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sccache_dtool.errors import GONE, FetchFailed, UsageError
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import OBJECT, Request, Source
from sccache_dtool.fetch.resolve import parse_request
from sccache_dtool.fetch.words import parse_sources
from sccache_dtool.policy import config

if TYPE_CHECKING:
    from sccache_dtool.disk.filesystem import FileSystem

#: The directories of an archive: its objects; a record of each time that one was added; what is being written.
OBJECTS, ADDED, WORK = "objects", "added", "tmp"

DIGITS = r"[0-9a-f]{64}"

#: The scheme of a server on a Unix socket: ``http+unix:///run/user/1000/sc-dtool/socket``.
UNIX = "http+unix"

#: What to do if the settings name no archive.
SET_UP = 'add to config.toml of the cache: [archive] and below it url = "/tank/archive"'


class Missing(FetchFailed):
    """The archive does not have the object."""


class Damaged(FetchFailed):
    """The content of an object is not what its name says."""


def word(digits: str) -> str:
    """The source that is the object with this digest."""
    return f"{OBJECT}:{digits}"


def digits_of(text: str) -> str | None:
    """The digest in ``sha256:HEX`` or ``HEX``, in lower case; None if the text is something else."""
    digits = text.removeprefix(f"{OBJECT}:").lower()
    return digits if re.fullmatch(DIGITS, digits) else None


def request(digits: str) -> Request:
    """The item that is the object with this digest."""
    found = parse_request([word(digits)], None, "")
    assert isinstance(found, Request)
    return found


def object_name(digits: str) -> str:
    """Where an object is in its archive."""
    return f"{OBJECTS}/{digits[:2]}/{digits[2:]}"


def is_served(url: str) -> bool:
    """Whether an archive is behind a server of its own: see `served.py`. Other URLs are those of files."""
    scheme, _, rest = url.partition("://")
    return scheme == UNIX or (scheme in ("http", "https") and rest.endswith("/objects"))


def source_in(url: str, name: str) -> Source:
    """What is called `name` in the archive at `url`, as a source."""
    return parse_sources(f"{url}/{name}", lambda: "/")[0]


def retrieve(context: Context, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Bring an object from the archive to `path`. Raises FetchFailed, also if it is not what its name says."""
    settings = config.load(context.fs, context.store.layout, context.store.log)
    url = settings.archive_url
    if url is None:
        raise FetchFailed(f"cannot fetch {source.canonical}: the cache has no archive", hint=SET_UP)
    digits = source.canonical.partition(":")[2]
    algorithms = tuple(dict.fromkeys((*algorithms, OBJECT)))
    if is_served(url):
        from sccache_dtool.fetch.served import Server

        server = Server(context.store, url, settings.archive_token_file)
        place = server.source(digits)
        retrieved = server.retrieve(context, digits, path, algorithms)
    else:
        place = source_in(url, object_name(digits))
        retrieved = _read(context, url, digits, place, path, algorithms)
    if retrieved.digests.get(OBJECT) != digits and not retrieved.resumed:  # otherwise it is fetched once more, whole
        raise damaged(digits, place.canonical, retrieved.digests.get(OBJECT))
    return retrieved._replace(version=None)


def _read(context: Context, url: str, digits: str, place: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Bring an object to `path` from where it is a file of its own."""
    if place.scheme == "file":
        check_directory(context.fs, url)
    module: Any = import_module(f"sccache_dtool.fetch.{_reader(place.scheme)}")
    try:
        retrieved: Retrieved = module.retrieve(context, place, path, algorithms)
    except OSError as error:
        if error.errno in GONE and error.filename == place.location:
            raise missing(digits, url) from error
        raise
    return retrieved


def is_unchanged(context: Context, source: Source, fact: Mapping[str, object]) -> bool:
    """Always: other content would be another object."""
    return True


def announced(source: Source) -> int | None:
    """Nothing is known before the archive is read."""
    return None


def check_directory(fs: FileSystem, url: str) -> None:
    """Raise FetchFailed if the directory is not an archive: such as an empty mount point, whose disk is away."""
    try:
        fs.names(f"{url}/{WORK}")
    except OSError as error:
        if error.errno not in GONE:
            raise FetchFailed(f"cannot read the archive: {plain(error.strerror or '')}: {url}") from error
        raise FetchFailed(
            f"there is no archive in {url}",
            hint="check that it is mounted; set up a new archive with: sc-dtool archive init",
        ) from error


def missing(digits: str, url: str) -> Missing:
    """The error for an object that the archive does not have."""
    return Missing(
        f"{word(digits)} is not in the archive {plain(url)}",
        hint="whoever has the file can add it again: sc-dtool add FILE",
    )


def damaged(digits: str, place: str, found: str | None) -> Damaged:
    """The error for an object whose content is not what its name says."""
    return Damaged(
        f"{word(digits)} is damaged in the archive",
        details=[f"{plain(place)} has {OBJECT} {found}"],
        hint="nothing was published; move the file away, and restore it from a backup or add it again",
    )


def of_setting(url: str | None) -> str:
    """The archive's URL. Raises UsageError if there is none."""
    if url is None:
        raise UsageError("the cache has no archive", hint=SET_UP)
    return url


def _reader(scheme: str) -> str:
    from sccache_dtool.fetch.sources import KINDS  # which imports this module by its name

    return KINDS[scheme]
