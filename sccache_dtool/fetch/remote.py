"""Everything that fsspec can open: object stores, sftp, WebDAV, HDFS, XRootD … streamed, never through its caches.

fsspec and the package for each protocol are optional; an error names what to install. A download is tried again, and
continued, as one over http is, where the store gives something that tells one version of a file from another.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.attempts import Temporary, persist
from sccache_dtool.fetch.job import Job, Retrieved
from sccache_dtool.fetch.partial import Origin, Partial
from sccache_dtool.fetch.patience import within
from sccache_dtool.fetch.reasons import plain, why
from sccache_dtool.fetch.words import REMOTE, Source

#: Bytes that are asked for at once, and so what is in memory.
BLOCK = 8 << 20

#: Bytes that are written at once.
_PIECE = 1 << 20

#: Seconds to wait for what a store is asked: not all packages have a limit of their own, and a block may come slowly.
PATIENCE = 300.0

#: The same for what may be done without: how large a file is, before it is fetched; and that a file is closed.
SIZE_PATIENCE = 30.0
CLOSE_PATIENCE = 3.0

Result = TypeVar("Result")

# What stores call the version of a file. A size alone is none; times are kept to a second or better.
_VERSIONS = (
    "VersionId", "ETag", "etag", "generation", "md5Hash", "content_md5", "crc32c", "mtime", "LastModified",
    "last_modified", "updated", "modified", "modificationTime",
)  # fmt: skip

_FINAL = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EINVAL})


def retrieve(job: Job, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Download `source` to the new file `path`. Raises FetchFailed, GaveUp, and OSError for what `path` refuses."""
    with Partial(job, path, algorithms, source.canonical) as partial:
        download = _Download(job, source, partial)
        persist(job, source.canonical, lambda: partial.size, download.attempt)
        return Retrieved(partial.digests(), partial.size, partial.resumed)


def announced(source: Source) -> int | None:
    """Bytes that the store says `source` has; None if it does not say. Raises nothing but FetchFailed."""
    try:
        return _size(_ask(source, lambda: _info(*_open_system(source)), SIZE_PATIENCE))
    except (Temporary, FetchFailed):
        return None


def missing(scheme: str) -> str | None:
    """What to install for a scheme, as the words of a pip command; None if it is there."""
    try:
        import_module("fsspec").get_filesystem_class(scheme)
        import_module(REMOTE[scheme].replace("-", "_"))  # some of fsspec's classes miss it only when they are used
    except (ImportError, ValueError):
        return _wanted(scheme)
    return None


def _wanted(scheme: str) -> str:
    package = REMOTE[scheme]
    return "fsspec" if package == "fsspec" else f"fsspec {package}"


class _Download:
    """One file on its way; `attempt` may be called until it returns."""

    def __init__(self, job: Job, source: Source, partial: Partial) -> None:
        self._job = job
        self._source = source
        self._partial = partial
        self._shown = False

    def attempt(self) -> None:
        """Fetch what is missing. Raises Temporary or FetchFailed."""
        system, name = _ask(self._source, lambda: _open_system(self._source))
        before = _ask(self._source, lambda: _info(system, name))
        if before.get("type") == "directory":
            raise FetchFailed(
                f"cannot fetch {self._source.canonical}: it is a directory", hint="give its files, each by its URL"
            )
        origin = Origin(self._source.canonical, _version(before), _size(before))
        partial = self._partial
        if partial.size and partial.resumable and partial.origin == origin:
            partial.resumed = True
        else:
            partial.begin(origin)
        if not self._shown:
            self._shown = True
            self._job.progress.start(self._source.name, origin.length, partial.size)
        if partial.size != origin.length:
            for data in self._pieces(system, name):
                partial.write(data)
        if origin.length is not None and partial.size != origin.length:
            size = partial.size
            partial.restart()
            raise Temporary(f"{size} bytes came, and {origin.length} were announced")
        after = _ask(self._source, lambda: _info(system, name))
        if (_version(after), _size(after)) != (origin.validator, origin.length):
            partial.restart()
            raise Temporary("it changed while it was downloaded")

    def _pieces(self, system: Any, name: str) -> Iterator[bytes]:
        file = _ask(self._source, lambda: system.open(name, "rb", block_size=BLOCK, cache_type="readahead"))
        try:
            if self._partial.size:
                _ask(self._source, lambda: file.seek(self._partial.size))
            while data := _ask(self._source, lambda: file.read(_PIECE)):
                yield data
        finally:
            with contextlib.suppress(Exception):
                within(CLOSE_PATIENCE, file.close)


def _open_system(source: Source) -> tuple[Any, str]:
    try:
        core = import_module("fsspec.core")
        # No instance of an earlier attempt: its connection may be the one that broke.
        system, name = core.url_to_fs(str(source.location), skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise FetchFailed(
            f"cannot fetch {source.canonical}: what {source.scheme}:// needs is not installed ({why(error)})",
            hint=f"install it: pip install {_wanted(source.scheme)}",
        ) from error
    return system, str(name)


def _info(system: Any, name: str) -> Mapping[str, Any]:
    """What the store says of the file now."""
    system.invalidate_cache()
    info: Mapping[str, Any] = system.info(name)
    return info


def _ask(source: Source, question: Callable[[], Result], patience: float | None = None) -> Result:
    """What a store answers, in the end. Raises Temporary or FetchFailed."""
    with _failures(source):
        return within(PATIENCE if patience is None else patience, question)


@contextlib.contextmanager
def _failures(source: Source) -> Iterator[None]:
    """Turn what any store may raise into ours. Nothing of ours, and no writing of ours, may happen within."""
    try:
        yield
    except FetchFailed:
        raise
    except FileNotFoundError as error:
        raise FetchFailed(f"cannot fetch {source.canonical}: there is no such file") from error
    except PermissionError as error:
        raise FetchFailed(
            f"cannot fetch {source.canonical}: permission denied",
            hint="credentials are taken from where that store's own tools look for them",
        ) from error
    except (OSError, EOFError, TimeoutError) as error:
        if isinstance(error, OSError) and error.errno in _FINAL:
            raise FetchFailed(f"cannot fetch {source.canonical}: {why(error)}") from error
        raise Temporary(why(error)) from error
    except Exception as error:  # each store has errors of its own
        name = type(error).__name__
        if "Credential" in name or "Authentication" in name or "BadHostKey" in name:
            raise FetchFailed(
                f"cannot fetch {source.canonical}: {why(error)}",
                hint="credentials are taken from where that store's own tools look for them",
            ) from error
        raise Temporary(plain(f"{name}: {error}")) from error


def _size(info: Mapping[str, Any]) -> int | None:
    size = info.get("size")
    return size if isinstance(size, int) else None


def _version(info: Mapping[str, Any]) -> str | None:
    """A text that is another one for every other version of the file; None if the store has none."""
    known = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name) is not None]
    return " ".join(known) or None
