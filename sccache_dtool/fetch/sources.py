"""Sources: what brings a file or a directory into a work area, in a stream and with its digests taken on the way.

`requests` is imported only where something is fetched over HTTP: it costs a tenth of a second.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.reasons import plain, why
from sccache_dtool.fetch.stack import Stack
from sccache_dtool.fsops import CHUNK, FileSystem

if TYPE_CHECKING:
    import requests

#: Seconds to wait for a connection, and for the next bytes on it.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0

#: Bytes per read from the network: small enough that progress is seen on a slow line.
NETWORK_CHUNK = 1 << 17

# Of the other 2xx none carries a whole file: accepted for later, no content, a part.
_WHOLE = frozenset({200, 203})
_MOST_LINKS = 40  # as Linux has it: path_resolution(7)


class Retrieved(NamedTuple):
    """What a source brought: its digests by algorithm, in hexadecimal; the bytes announced, if any were."""

    digests: dict[str, str]
    announced: int | None


Retriever = Callable[[FileSystem, Stack, str, Sequence[str], Progress], Retrieved]


def retrieve(fs: FileSystem, stack: Stack, target: str, algorithms: Sequence[str], progress: Progress) -> Retrieved:
    """Bring what `stack.location` names to `target`, which must not exist: a file, or a directory.

    `algorithms` are digests to take of a file on the way, so that it is read once. Raises FetchFailed, and OSError
    for what the file system refuses; an incomplete `target` may then be left.
    """
    return RETRIEVERS[stack.source.partition(":")[0]](fs, stack, target, algorithms, progress)


class Sink:
    """A new file that is being filled; counts its bytes and takes digests. A context manager."""

    def __init__(
        self, fs: FileSystem, path: str, algorithms: Sequence[str], progress: Progress, mode: int = 0o666
    ) -> None:
        self.size = 0
        self._fs = fs
        self._progress = progress
        if algorithms:
            import hashlib

            self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        else:
            self._hashes = {}
        self._fd = fs.create(path, mode)

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        self._fs.write(self._fd, data)
        for digest in self._hashes.values():
            digest.update(data)
        self.size += len(data)
        self._progress.advance(len(data))

    def digests(self) -> dict[str, str]:
        """The digests of what was written so far, in hexadecimal, by algorithm."""
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._fs.close(self._fd)
        except OSError:
            if error is None:  # otherwise the first error says more
                raise


# -- local files and directories ---------------------------------------------------------------------------------------


def _local(fs: FileSystem, stack: Stack, target: str, algorithms: Sequence[str], progress: Progress) -> Retrieved:
    path = _follow(fs, stack.location)
    status = fs.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        progress.start(stack.label, status.st_size)
        return Retrieved(_copy_file(fs, path, target, algorithms, progress), status.st_size)
    if stack.steps:
        raise FetchFailed(f"cannot fetch {stack.source}: it is a directory, and {stack.steps[0]} needs a file")
    progress.start(stack.label, None)
    _copy_directory(fs, path, target, progress)
    return Retrieved({}, None)


def _follow(fs: FileSystem, path: str) -> str:
    """The path that the symbolic links in the last component of `path` lead to."""
    for _ in range(_MOST_LINKS):
        try:
            text = fs.readlink(path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return path
            raise
        path = os.path.join(os.path.dirname(path), text).rstrip("/") or "/"
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _copy_directory(fs: FileSystem, source: str, target: str, progress: Progress) -> None:
    """Copy a tree; its symbolic links stay as they are, and what was private stays so."""
    fs.mkdir(target, stat.S_IMODE(fs.lstat(source).st_mode) & 0o777 | 0o700)
    ours = _identity(fs.lstat(target))
    pending = [(source, target)]
    while pending:
        here, there = pending.pop()
        for name in fs.names(here):
            old, new = f"{here}/{name}", f"{there}/{name}"
            status = fs.lstat(old)
            if stat.S_ISDIR(status.st_mode):
                if _identity(status) == ours:
                    raise FetchFailed(f"cannot fetch {plain(source)}: the cache is in it, and would copy itself")
                fs.mkdir(new, stat.S_IMODE(status.st_mode) & 0o777 | 0o700)
                pending.append((old, new))
            elif stat.S_ISLNK(status.st_mode):
                fs.symlink(fs.readlink(old), new)
            else:
                _copy_file(fs, old, new, (), progress)


def _copy_file(
    fs: FileSystem, source: str, target: str, algorithms: Sequence[str], progress: Progress
) -> dict[str, str]:
    """Copy one regular file with its permissions; its digests."""
    mode = fs.lstat(source).st_mode
    if not stat.S_ISREG(mode):  # before it is opened: to open a device may do something
        raise FetchFailed(f"cannot fetch {plain(source)}: it is {_kind(mode)}, neither a file nor a directory")
    fd = fs.open(source)
    try:
        before = fs.lstat(source)  # after it was opened: before that, NFS may show attributes that are a minute old
        with Sink(fs, target, algorithms, progress, stat.S_IMODE(mode) & 0o777 | 0o600) as sink:
            while data := fs.read(fd, CHUNK):
                sink.write(data)
        after = fs.lstat(source)
    finally:
        fs.close(fd)
    if sink.size < before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FetchFailed(
            f"cannot fetch {plain(source)}: it changed while it was copied",
            details=[f"{before.st_size} bytes at first, {sink.size} copied, {after.st_size} now"],
            hint="try again when nobody writes it any more",
        )
    return sink.digests()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something special")


# -- http and https ----------------------------------------------------------------------------------------------------


def _web(fs: FileSystem, stack: Stack, target: str, algorithms: Sequence[str], progress: Progress) -> Retrieved:
    with Sink(fs, target, algorithms, progress) as sink:
        # One attempt. Retries go round this call; to resume, it asks for what comes after `sink.size`.
        announced = _download(stack, sink, progress)
    return Retrieved(sink.digests(), announced)


def _download(stack: Stack, sink: Sink, progress: Progress) -> int | None:
    """Fill `sink` with what the server sends; the bytes that it announced."""
    import requests
    import urllib3

    announced: int | None = None
    try:
        with requests.Session() as session, _get(session, stack) as response:
            announced = _announced(response)
            # A decoded body is longer than announced, and by how much nobody knows.
            encoded = response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
            progress.start(stack.label, None if encoded else announced)
            for data in response.iter_content(NETWORK_CHUNK):
                sink.write(data)
            came = response.raw.tell()
    # requests lets some of urllib3's errors through, and UnicodeError for host names that cannot be encoded.
    except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
        raise FetchFailed(f"cannot fetch {stack.source}: {_network_reason(error, announced)}") from error
    if announced is not None and came != announced:
        raise FetchFailed(f"cannot fetch {stack.source}: {came} bytes came, and {announced} were announced")
    return announced


def _get(session: requests.Session, stack: Stack) -> requests.Response:
    """The answer, its body still to be read. Proxies and ~/.netrc are used, and redirects followed."""
    response = session.get(
        stack.location,
        stream=True,
        timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
        headers={"Accept-Encoding": "identity"},  # what is stored and checked is the file, not a coding of it
    )
    if response.status_code in _WHOLE:
        return response
    response.close()
    hint = None
    if response.status_code in (401, 403):
        hint = "credentials are taken from ~/.netrc or from the URL (https://USER:PASSWORD@HOST/…), and never stored"
    answer = plain(f"{response.status_code} {response.reason or ''}")
    raise FetchFailed(f"cannot fetch {stack.source}: the server answered {answer}", hint=hint)


def _announced(response: requests.Response) -> int | None:
    """Bytes that the server said it would send, encoded as they are sent."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def _network_reason(error: BaseException, announced: int | None) -> str:
    import requests
    import urllib3

    causes = list(_causes(error))
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    if any(isinstance(cause, urllib3.exceptions.ReadTimeoutError) for cause in causes):
        return f"no data for {READ_TIMEOUT:g} s"
    for cause in reversed(causes):  # the innermost one is what the system said
        if isinstance(cause, urllib3.exceptions.IncompleteRead):
            of = "" if announced is None else f" of {announced}"
            return f"the connection ended early, after {cause.partial}{of} bytes"
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException) and cause.strerror:
            return why(cause)
    return why(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it, down to the first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


#: What retrieves a source, by the scheme of its canonical form.
RETRIEVERS: dict[str, Retriever] = {"file": _local, "http": _web, "https": _web}
