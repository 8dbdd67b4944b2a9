"""Everything that fsspec can open: object stores, sftp, WebDAV, HDFS, XRootD … streamed, never through its caches.

fsspec and the package for each protocol are optional; an error names what to install. A download is tried again, and
continued, as one over http is, if the store gives something that identifies the version of a file.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

from sccache_dtool.clock import Clock
from sccache_dtool.credentials import hide_those_of
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.partial import Origin, Partial
from sccache_dtool.fetch.patience import within
from sccache_dtool.fetch.reasons import plain, why
from sccache_dtool.fetch.request import Source
from sccache_dtool.fetch.retry import Temporary, persist
from sccache_dtool.fetch.words import REMOTE

#: Bytes that are asked for at once, and so what is in memory.
BLOCK = 8 << 20

#: The least and the most bytes that are under way at a time where each request brings only a few (sftp: 32 KiB).
_FIRST_AHEAD, _MOST_AHEAD = 1 << 20, 16 << 20

#: Seconds: what is read ahead is doubled if it came faster.
_SWIFT = 1.0

#: The schemes whose downloads the project's tests show, each from a real server.
SHOWN = frozenset({"ftp", "s3", "sftp", "webdav", "webdavs"})

#: Bytes that are written at once.
_PIECE = 1 << 20

#: Seconds to wait for what a store is asked: not all packages have a limit of their own, and a block may come slowly.
PATIENCE = 300.0

#: The same for what may be done without: how large a file is, before it is fetched; and that a file is closed.
SIZE_PATIENCE = 30.0
CLOSE_PATIENCE = 3.0

_UNLIMITED = "how long a server may take to answer is not limited"

#: Seconds to wait for a connection to a WebDAV server, and for the next bytes on it.
WEBDAV_TIMEOUT = 60.0

Result = TypeVar("Result")

# What stores call the version of a file. A size alone is none; times are kept to a second or better.
_VERSIONS = (
    "VersionId", "ETag", "etag", "generation", "md5Hash", "content_md5", "crc32c", "mtime", "LastModified",
    "last_modified", "updated", "modified", "modificationTime", "modify", "last_write_time", "blob_id",
)  # fmt: skip

_FTP_TIME = r"[0-9]{14}(\.[0-9]+)?"  # RFC 3659, 2.3

_NO_SUCH_FILE = frozenset({404, 410})
_PASSING = frozenset({408, 425, 429})  # of those that mean the client's fault: timeout, too early, too many requests
_REFUSALS = ("Credential", "Authentication", "BadHostKey", "Forbidden")  # in the names of stores' errors

_FINAL = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EINVAL})


def retrieve(context: Context, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Download `source` to the new file `path`. Raises FetchFailed, GaveUp, and OSError for what `path` refuses."""
    with Partial(context, path, algorithms, source) as partial:
        persist(context, source.canonical, lambda: partial.size, lambda: _attempt(context, source, partial))
        version = None if partial.origin is None else partial.origin.validator
        fact = {"version": version, "size": partial.size} if version else None
        return Retrieved(partial.digests(), partial.size, partial.resumed, fact)


def is_unchanged(context: Context, source: Source, fact: Mapping[str, object]) -> bool:
    """Whether the store still has the version that `fact` describes; False if it tells no versions apart.

    Raises FetchFailed or GaveUp if it cannot be asked.
    """
    version = fact.get("version")
    if not isinstance(version, str):
        return False

    def ask() -> bool:
        found = _ask(source, lambda: _info(*open_system(source)))
        return _version(found) == version and _size(found) in (None, fact.get("size"))

    return persist(context, source.canonical, lambda: 0, ask)


def announced(source: Source) -> int | None:
    """Bytes that the store says `source` has; None if it does not say. Raises nothing but FetchFailed."""
    try:
        return _size(_ask(source, lambda: _info(*open_system(source)), SIZE_PATIENCE))
    except (Temporary, FetchFailed):
        return None


def missing(scheme: str) -> str | None:
    """What to install for a scheme, as the words of a pip command; None if it is there."""
    try:
        import_module("fsspec").get_filesystem_class("webdav" if scheme in _WEBDAV else scheme)
        import_module(REMOTE[scheme].replace("-", "_"))  # some of fsspec's classes miss it only when they are used
    except (ImportError, ValueError):
        return _packages(scheme)
    return None


def to_install(scheme: str) -> str | None:
    """The pip command that installs what a scheme needs; None if it is there."""
    packages = missing(scheme)
    return packages and f"pip install {packages}"


def _packages(scheme: str) -> str:
    package = REMOTE[scheme]
    return "fsspec" if package == "fsspec" else f"fsspec {package}"


def _attempt(context: Context, source: Source, partial: Partial) -> None:
    """Fetch what is missing. Raises Temporary or FetchFailed."""
    system, name = _ask(source, lambda: open_system(source))
    before = _ask(source, lambda: _info(system, name))
    if before.get("type") == "directory":
        raise FetchFailed(
            f"cannot fetch {source.canonical}: it is a directory",
            hint="give its files, each with its own URL",
            shared=True,
        )
    origin = Origin(source.canonical, _version(before), _size(before))
    if partial.size and partial.resumable and partial.origin == origin:
        partial.resumed = True
    else:
        partial.begin(origin)
    partial.show(origin.length)
    start, length = partial.size, origin.length
    if start != length:
        file = _ask(source, lambda: open_file(source, system, name, start, length, context.clock))
        try:
            while data := _ask(source, lambda: file.read(_PIECE)):
                partial.write(data)
        finally:
            with contextlib.suppress(Exception):
                within(CLOSE_PATIENCE, file.close, _UNLIMITED)
    if length is not None and partial.size != length:
        size = partial.size
        partial.restart()
        raise Temporary(f"received {size} bytes of {length}")
    after = _ask(source, lambda: _info(system, name))
    if (_version(after), _size(after)) != (origin.validator, length):
        partial.restart()
        raise Temporary("it changed while it was downloaded")


# -- files of stores ---------------------------------------------------------------------------------------------------


class _ReadAhead:
    """A file of which many small requests are sent before the answer to the first comes: paramiko's `readv`.

    They are for one window after another, so that no more than that is in memory, however slowly it is written.
    """

    def __init__(self, file: Any, start: int, length: int, clock: Clock) -> None:
        self._file = file
        self._at = start
        self._length = length
        self._clock = clock
        self._window = _FIRST_AHEAD
        self._data = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        if not self._data:
            self._data = memoryview(self._next())
        data, self._data = self._data[:size], self._data[size:]
        return bytes(data)

    def _next(self) -> bytes:
        size = min(self._window, self._length - self._at)
        if size <= 0:  # what was announced is there; whether there is more, the store is asked
            self._file.seek(self._at)
            rest: bytes = self._file.read(_PIECE)
            self._at += len(rest)
            return rest
        began = self._clock.monotonic()
        data = b"".join(self._file.readv([(self._at, size)]))
        self._at += len(data)
        if self._clock.monotonic() - began < _SWIFT:
            self._window = min(2 * self._window, _MOST_AHEAD)
        return data

    def close(self) -> None:
        self._file.close()


class _FtpFile:
    """A file that comes over one connection. fsspec's own begins another one for every block, and breaks it off."""

    def __init__(self, ftp: Any, name: str, start: int) -> None:
        self._ftp = ftp
        ftp.voidcmd("TYPE I")
        self._connection = ftp.transfercmd(f"RETR {name}", rest=start or None)
        self._ended = False

    def read(self, size: int, /) -> bytes:
        data: bytes = b"" if self._ended else self._connection.recv(size)
        if not data and not self._ended:
            self._ended = True
            self._connection.close()
            self._ftp.voidresp()  # says whether that was all of it
        return data

    def close(self) -> None:
        self._connection.close()
        if not self._ended:  # what the server says of that would be taken for its answer to the next command
            self._ftp.close()


def open_file(source: Source, system: Any, name: str, start: int, length: int | None, clock: Clock) -> Any:
    """A file of a store from byte `start` on, with `read` and `close`. `length`: its size, if that is known."""
    if source.scheme == "ftp":
        return _FtpFile(system.ftp, name, start)
    file = system.open(name, "rb", block_size=BLOCK, cache_type="readahead")
    if length is not None and hasattr(file, "readv"):
        return _ReadAhead(file, start, length, clock)
    if start:
        file.seek(start)
    return file


# -- stores ------------------------------------------------------------------------------------------------------------

#: The schemes of fsspec's class for WebDAV, which does not read its URLs.
_WEBDAV = ("webdav", "webdavs")


def open_system(source: Source) -> tuple[Any, str]:
    """The file system of fsspec for a source, and the source's name in it. Raises FetchFailed."""
    """The store that a source is in, and the source's name in it."""
    try:
        if source.scheme in _WEBDAV:
            return _open_webdav(source)
        core = import_module("fsspec.core")
        # No instance of an earlier attempt: its connection may be the one that broke.
        system, name = core.url_to_fs(str(source.location), skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        reason = hide_those_of(source.location, why(error))
        raise FetchFailed(
            f"cannot fetch {source.canonical}: support for {source.scheme}:// is not installed ({reason})",
            hint=f"install it: pip install {_packages(source.scheme)}",
        ) from error
    return system, str(name)


def _open_webdav(source: Source) -> tuple[Any, str]:
    """The class of fsspec for WebDAV takes neither the host nor the user from a URL."""
    from urllib.parse import unquote

    from requests.utils import get_netrc_auth

    authority, slash, path = source.location.partition("://")[2].partition("/")
    userinfo, at, host = authority.rpartition("@")
    base = f"{'https' if source.scheme == 'webdavs' else 'http'}://{host}"
    user, _, password = userinfo.partition(":")
    auth = (unquote(user), unquote(password)) if at else get_netrc_auth(base)
    system = import_module("fsspec").get_filesystem_class("webdav")(
        base,
        auth=auth,
        timeout=WEBDAV_TIMEOUT,
        headers={"Accept-Encoding": "identity"},  # what is stored and checked is the file, not a coding of it
        skip_instance_cache=True,
    )
    return system, slash + path


def _info(system: Any, name: str) -> Mapping[str, Any]:
    """What the store says of the file now."""
    system.invalidate_cache()
    info: Mapping[str, Any] = system.info(name)
    return info


def _ask(source: Source, question: Callable[[], Result], patience: float | None = None) -> Result:
    """What a store answers, in the end. Raises Temporary or FetchFailed."""
    try:
        return within(PATIENCE if patience is None else patience, question, _UNLIMITED)
    except FetchFailed:
        raise
    except Exception as error:
        raise _failure(source, error) from error


def _failure(source: Source, error: Exception) -> FetchFailed | Temporary:
    """What is raised for whatever a store may raise."""
    name, is_of_system = type(error).__name__, isinstance(error, OSError | EOFError)
    status = None if is_of_system else _status(error)
    reason, named = (hide_those_of(source.location, text) for text in (why(error), plain(f"{name}: {error}")))
    hint = None
    if isinstance(error, FileNotFoundError) or status in _NO_SUCH_FILE:
        return FetchFailed(f"cannot fetch {source.canonical}: there is no such file", shared=True)
    if isinstance(error, PermissionError):
        reason, hint = "permission denied", _CREDENTIALS_HINT
    elif is_of_system:
        if not isinstance(error, OSError) or error.errno not in _FINAL:
            return Temporary(reason)
    elif type(error).__module__ == "builtins":  # a TypeError and its like: the next attempt would come to the same
        reason, hint = named, f"this is a bug in the package for {source.scheme}://, or in sc-dtool"
    elif status in (401, 403) or any(word in name for word in _REFUSALS):
        hint = _CREDENTIALS_HINT
    elif name in _OF_THE_CALLER or (status is not None and 400 <= status < 500 and status not in _PASSING):
        reason = named
    else:
        return Temporary(named)
    return FetchFailed(f"cannot fetch {source.canonical}: {reason}", hint=hint)


#: What to do if a store refuses.
_CREDENTIALS_HINT = "set up credentials as for the storage's own tools, such as `aws configure` for s3://"

#: What packages call the errors that another attempt would meet as well: of ftplib's and of botocore's.
_OF_THE_CALLER = frozenset({"error_perm", "ParamValidationError"})


def _status(error: Exception) -> int | None:
    """The HTTP status in an error of a store; None if it has none."""
    response = getattr(error, "response", None)
    for holder, name in ((error, "status_code"), (error, "status"), (error, "code"), (response, "status_code")):
        status = getattr(holder, name, None)
        if isinstance(status, int) and 100 <= status < 600:
            return int(status)
    return None


def _size(info: Mapping[str, Any]) -> int | None:
    size = info.get("size")
    return size if isinstance(size, int) else None


def _version(info: Mapping[str, Any]) -> str | None:
    """A text that is another one for every other version of the file; None if the store has none."""
    known = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name) is not None]
    if not re.fullmatch(_FTP_TIME, str(info.get("modify"))):  # from a server that tells times to the minute only
        known = [one for one in known if not one.startswith("modify=")]
    return plain(" ".join(known)) or None
