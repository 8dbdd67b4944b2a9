"""Objects: files of the archive that `config.toml` names, each known by the SHA-256 of its content.

The archive is read by whatever reads its URL: `local.py` a directory, `http.py` a server, and `fsspec_source.py` an
object store. What they retrieve is checked here, whole, before anybody sees it. `markers/archive.py` adds objects.
"""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from sccache_dtool.disk.filesystem import CHUNK
from sccache_dtool.disk.names import ORIGIN
from sccache_dtool.errors import GONE, FetchFailed, UsageError
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import COMPRESSIONS, OBJECT, Request, Source
from sccache_dtool.fetch.resolve import parse_request
from sccache_dtool.fetch.retry import GaveUp
from sccache_dtool.fetch.words import parse_sources
from sccache_dtool.policy import config

if TYPE_CHECKING:
    from sccache_dtool.disk.filesystem import FileSystem
    from sccache_dtool.fetch.served import Server

#: The directories of an archive: its objects; a record of each time that one was added; what is being written.
OBJECTS, ADDED, WORK = "objects", "added", "tmp"

DIGITS = r"[0-9a-f]{64}"

#: The scheme of a server on a Unix socket: ``http+unix:///run/user/1000/sc-dtool/socket``.
UNIX = "http+unix"

#: What to do if the settings name no archive.
SET_UP = 'add to .sc-dtool/config.toml in the cache: [archive], and below it url = "/tank/archive"'


class Missing(FetchFailed):
    """The archive does not have the object."""


class Damaged(FetchFailed):
    """The content of an object is not what its name says."""


def word(digits: str, compression: str = "") -> str:
    """The source that is the object with this digest. `compression`: as a file that is compressed in this way."""
    return f"{_scheme(compression)}:{digits}"


def digits_of(text: str) -> str | None:
    """The digest in the word of an object, or in ``HEX``, in lower case; None if the text is something else."""
    kinds = "|".join(COMPRESSIONS)
    match = re.fullmatch(rf"(?:{OBJECT}(?:\.(?:{kinds}))?:)?({DIGITS})", text.lower())
    return match[1] if match else None


def check_word(text: str) -> None:
    """Raise UsageError for what begins as the word of an object, but has no digest after it."""
    scheme = text.partition(":")[0].lower()
    if scheme == OBJECT and digits_of(text) is None:
        parse_sources(text, lambda: "/")


def request(digits: str, compression: str = "") -> Request:
    """The item that is the object with this digest; `compression`: see `word`."""
    found = parse_request([word(digits, compression)], None, "")
    assert isinstance(found, Request)
    return found


def object_name(digits: str, compression: str = "") -> str:
    """Where an object is in its archive."""
    return f"{OBJECTS}/{digits[:2]}/{digits[2:]}{'.' if compression else ''}{compression}"


def _scheme(compression: str) -> str:
    return f"{OBJECT}{'.' if compression else ''}{compression}"


def is_served(url: str) -> bool:
    """Whether an archive is behind a server of its own: see `served.py`. Other URLs are those of files."""
    scheme, _, rest = url.partition("://")
    return scheme == UNIX or (scheme in ("http", "https") and rest.endswith("/objects"))


def source_in(url: str, name: str) -> Source:
    """What is called `name` in the archive at `url`, as a source."""
    return parse_sources(f"{url}/{name}", lambda: "/")[0]


def retrieve(context: Context, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Retrieve an object from the archive to `path`. Raises FetchFailed, also if it is not what its name says.

    It may be in the archive in another form than is wanted, compressed or not.
    """
    settings = config.load(context.fs, context.store.layout, context.store.log)
    if settings.archive_url is None:
        raise FetchFailed(f"cannot fetch {source.canonical}: the cache has no archive", hint=SET_UP)
    scheme, _, digits = source.canonical.partition(":")
    server = None
    if is_served(settings.archive_url):
        from sccache_dtool.fetch.served import Server

        server = Server(context.store, settings.archive_url, settings.archive_token_file)
    wanted = scheme.partition(".")[2]
    bringing = _Bringing(context, settings.archive_url, digits, wanted, path, algorithms, server)
    there = ("",) if server is not None else forms(settings.archive_compress)  # a server sends the content
    first, *others = dict.fromkeys((*([wanted] if wanted in there else []), *there))
    try:
        return bringing.retrieve(first)
    except (FetchFailed, OSError) as error:
        if isinstance(error, GaveUp) or (isinstance(error, OSError) and error.errno not in GONE):
            raise
        for other in others:
            if bringing.has(other):
                clear(context.fs, path)
                return bringing.retrieve(other)
        if isinstance(error, OSError) and error.filename == bringing.place(first).location:
            raise missing(digits, settings.archive_url) from error
        raise


def forms(compress: str) -> tuple[str, ...]:
    """How an object may be compressed in the archive ("" for not at all): the form of the setting comes first."""
    if compress == "never":
        return ("", *COMPRESSIONS)
    from sccache_dtool.fetch.compress import preferred

    return tuple(dict.fromkeys((preferred(), "", *COMPRESSIONS)))


class _Bringing(NamedTuple):
    """One object that is brought to `path` in the form that is `wanted`."""

    context: Context
    url: str
    digits: str
    wanted: str
    path: str
    algorithms: Sequence[str]
    server: Server | None  # that has the archive

    def place(self, form: str) -> Source:
        if self.server is not None:
            return self.server.source(self.digits)
        return source_in(self.url, object_name(self.digits, form))

    @property
    def _reader(self) -> Any:
        return import_module(f"sccache_dtool.fetch.{_reader(self.place('').scheme)}")

    def _fetch(self, place: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
        if self.server is not None:
            return self.server.retrieve(self.context, self.digits, path, algorithms)
        found: Retrieved = self._reader.retrieve(self.context, place, path, algorithms)
        return found

    def has(self, form: str) -> bool:
        """Whether the archive says that it has the object in this form."""
        return self._reader.announced(self.place(form)) is not None

    def retrieve(self, form: str) -> Retrieved:
        """Retrieve what is in the archive in this form. Raises FetchFailed, or OSError if it is not there."""
        place = self.place(form)
        if place.scheme == "file":
            check_directory(self.context.fs, self.url)
        if form == self.wanted:
            algorithm = _scheme(form)
            algorithms = tuple(dict.fromkeys((*self.algorithms, algorithm)))
            retrieved = self._fetch(place, self.path, algorithms)
            found = retrieved.digests.get(algorithm)
            if found != self.digits and not retrieved.resumed:  # otherwise it is fetched once more, whole
                raise damaged(self.digits, place.canonical, found)
            return retrieved._replace(version=None)
        beside = f"{self.path}.{form or 'content'}"
        clear(self.context.fs, beside)
        self._fetch(place, beside, ())
        try:
            return self._convert(beside, form, place)
        finally:
            clear(self.context.fs, beside)

    def _convert(self, beside: str, form: str, place: Source) -> Retrieved:
        """Read it twice: nothing is written, however much it may be, before its content is known to be the object."""
        from sccache_dtool.fetch.compress import Compressing, Damaged, unpack
        from sccache_dtool.fetch.sink import Sink, new_digest

        fs, progress = self.context.fs, self.context.progress
        progress.stage("decompressing")
        digest, size = new_digest(OBJECT), 0
        try:
            for piece in unpack(_pieces(fs, beside), form):
                digest.update(piece)
                size += len(piece)
        except Damaged as error:
            raise damaged(self.digits, place.canonical, f"(none: {error})") from error
        if digest.hexdigest() != self.digits:
            raise damaged(self.digits, place.canonical, digest.hexdigest())
        progress.start(word(self.digits)[:15], size)
        clear(fs, self.path)
        others = [name for name in self.algorithms if name != _scheme(self.wanted)]
        mode = stat.S_IMODE(fs.lstat(beside).st_mode) & 0o777 | 0o600
        arguments = fs, self.path, others, progress, mode
        with Compressing(*arguments, kind=self.wanted) if self.wanted else Sink(*arguments) as sink:
            for piece in unpack(_pieces(fs, beside), form):
                sink.write(piece)
            sink.finish()
        return Retrieved({**sink.digests(), _scheme(self.wanted): self.digits}, None)


def clear(fs: FileSystem, path: str) -> None:
    """Remove what an attempt has left of a download."""
    for left in (path, f"{path}{ORIGIN}"):
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(left)


def _pieces(fs: FileSystem, path: str) -> Iterator[bytes]:
    fd = fs.open(path)
    try:
        yield from iter(partial(fs.read, fd, CHUNK), b"")
    finally:
        fs.close(fd)


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
