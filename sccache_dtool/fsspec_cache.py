"""``sccache::URL`` for all programs that open files by fsspec: a file is fetched once, and leased while it is open.

fsspec loads this module by the entry point `sccache` in the group `fsspec.specs`. Files are read from the cache;
listings, and what is not in the cache, are asked of the file system that the URL names. Nothing is written.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.chained import ChainedFileSystem

from sccache_dtool import credentials
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import item_key
from sccache_dtool.errors import FetchFailed, NoCache, UsageError
from sccache_dtool.fetch import words
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import Location, Request, Source
from sccache_dtool.fetch.stack import parse_stack, stack_of
from sccache_dtool.protocol.leases import Lease

#: Options of file systems that tell who asks and how, but not which data is meant. Those that `credentials` knows are
#: not named again.
_NOT_THE_DATA = frozenset({
    "anon", "key", "username", "user", "profile", "requester_pays", "default_block_size", "default_fill_cache",
    "default_cache_type", "cache_type", "block_size", "asynchronous", "loop", "batch_size", "use_listings_cache",
    "listings_expiry_time", "max_paths", "skip_instance_cache", "timeout", "auto_mkdir",
})  # fmt: skip


class SccacheFileSystem(ChainedFileSystem):  # type: ignore[misc]
    """The files of another file system of fsspec, read by way of a shared cache.

    `cache`: the cache's directory (default: the one that `sc-dtool` would use). `sha256`: the digest of the file, which
    is checked when it is fetched. `steps`: what is done with the file, as words of `sc-dtool use`, such as ``["gz"]``.
    `max_age`: seconds after which the source is asked whether it has changed (0: always; None: never). `fs`, or
    `target_protocol` and `target_options`: the other file system, which fsspec gives.

    Raises UsageError for options that mean nothing. What cannot be fetched raises FetchFailed, or FileNotFoundError if
    the other file system has no such file.
    """

    protocol: ClassVar[str] = "sccache"
    cachable = True

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        fs: Any = None,
        *,
        fo: object = None,
        cache: str | os.PathLike[str] | None = None,
        sha256: str | None = None,
        steps: str | Sequence[str] = (),
        max_age: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if (target_protocol is None) == (fs is None):
            raise UsageError(
                "sccache needs one other file system to read from",
                hint='give a URL such as "sccache::s3://bucket/file", or one of fs and target_protocol',
            )
        self._options = dict(target_options or {})
        self.target_protocol = target_protocol
        self.fs = fs if fs is not None else fsspec.filesystem(target_protocol, **self._options)
        self._identity = _identity(self._options) if fs is None else _identity(dict(fs.storage_options))
        self._steps = (*([f"sha256:{sha256}"] if sha256 else []), *([steps] if isinstance(steps, str) else steps))
        self._changes_content = any(not words.is_digest(words.parse_step(step).canonical) for step in self._steps)
        self._max_age = max_age
        self.cache = Cache(cache)
        # fsspec calls it of the class for what stands before `::`, which is empty here, and of the object for paths.
        self._strip_protocol = self._as_in_target

    # -- names -------------------------------------------------------------------------------------------------------

    def _as_in_target(self, path: Any) -> Any:
        """A path, or a list of them, as the other file system writes it."""
        if isinstance(path, list):
            return [self._as_in_target(one) for one in path]
        return self.fs._strip_protocol(os.fspath(path).removeprefix("sccache::").removeprefix("sccache://"))

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a file in this file system."""
        return f"sccache::{self.fs.unstrip_protocol(self._strip_protocol(name))}"

    def _url(self, path: str) -> str:
        url: str = self.fs.unstrip_protocol(self._strip_protocol(path))
        return url

    def _is_plain(self, url: str) -> bool:
        """Whether `sc-dtool use URL` means the same, so that both have one copy."""
        return not self._options and words.is_url(url)

    def request(self, path: str) -> Request:
        """What is asked of the cache for a path."""
        url = self._url(path)
        if self._is_plain(url):
            return self.cache.item_request([url, *self._steps])
        stack = parse_stack([url, *self._steps]) if words.is_url(url) else stack_of(_source(url), self._steps)
        first, *others = stack.chains
        mirror = first.mirrors[0]._replace(opened=lambda: (self.fs, self._strip_protocol(path)))
        identity = (*stack.canonical, *([f"fsspec:{self._identity}"] if self._identity else []))
        stack = stack._replace(canonical=identity, chains=(first._replace(mirrors=(mirror,)), *others))
        return Request(item_key(identity, stack.name), None, stack.label, stack)

    # -- files -------------------------------------------------------------------------------------------------------

    def lease(self, path: str) -> Lease:
        """A lease on a file, for programs that need its path: valid until it is released, as from `Cache.use`."""
        url = self._url(path)
        try:
            if self._is_plain(url):
                return self.cache.use(url, *self._steps, max_age=self._max_age)
            return self.cache.use_request(self.request(path), self._max_age)
        except FetchFailed as error:
            # fsspec's file system for http says of whatever a server refuses that there is none.
            if (error.shared or not url.startswith("http")) and _is_missing(self.fs, self._strip_protocol(path)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
            raise

    @contextmanager
    def _leased(self, path: str) -> Iterator[Path]:
        with self.lease(path) as copy:
            if copy.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            yield copy

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BufferedReader:
        if mode != "rb":
            raise _read_only(path)
        lease = self.lease(path)
        try:
            return io.BufferedReader(_LeasedFile(lease))
        except BaseException:
            lease.give_back()
            raise

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of a file; `start` and `end` count from its end if they are negative."""
        with self._leased(path) as copy, open(copy, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin, stop, _ = slice(start, end).indices(size)
            file.seek(begin)
            return file.read(max(0, stop - begin))

    def get_file(self, rpath: str, lpath: Any, callback: Any = None, outfile: Any = None, **kwargs: Any) -> None:
        """Copy a file to a local path, or to an open file."""
        if outfile is None and not hasattr(lpath, "write") and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        with self._leased(rpath) as copy:
            if callback is not None:
                callback.set_size(copy.stat().st_size)
            if outfile is not None or hasattr(lpath, "write"):
                with open(copy, "rb") as file:
                    shutil.copyfileobj(file, lpath if outfile is None else outfile)
            else:
                os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
                shutil.copyfile(copy, lpath)
            if callback is not None:
                callback.absolute_update(copy.stat().st_size)

    # -- what there is -----------------------------------------------------------------------------------------------

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, size and type: of the copy in the cache if there is one, so that the size is that of what is read."""
        name = self._strip_protocol(path)
        if self._max_age is None:
            copy = self._copy_of(path)
            if copy is None and self._changes_content and self.fs.isfile(name):
                with self.lease(path) as copy:
                    return _info_of(name, copy)
            if copy is not None:
                return _info_of(name, copy)
        found: dict[str, Any] = self.fs.info(name, **kwargs)
        return found

    def _copy_of(self, path: str) -> Path | None:
        try:
            return self.cache.locate(self.request(path))
        except NoCache:  # it is set up by the first file
            return None

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """What the other file system lists."""
        return self.fs.ls(self._strip_protocol(path), detail=detail, **kwargs)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget listings of the other file system. The cache keeps its files: `max_age` says when they are checked."""
        self.fs.invalidate_cache(path)

    def checksum(self, path: str) -> Any:
        """What the other file system says."""
        return self.fs.checksum(self._strip_protocol(path))

    ukey = checksum

    # -- nothing is written ------------------------------------------------------------------------------------------

    def _refuse(self, path: Any = "", *args: Any, **kwargs: Any) -> Any:
        raise _read_only(str(path))

    mkdir = makedirs = rmdir = _rm = rm_file = rm = cp_file = mv = put_file = pipe_file = touch = _refuse


class _LeasedFile(io.FileIO):
    """A file whose lease is given back when it is closed, or collected."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        super().__init__(lease.place.payload)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._lease.give_back()


def _source(url: str) -> Source:
    """A source of which only fsspec knows what its URL means."""
    stored = credentials.hide(url)
    return Source(plain(stored), Location(url), plain(stored).rstrip("/").rpartition("/")[2])


def _identity(options: Mapping[str, Any]) -> str:
    """A text that differs if options may mean other data, such as another endpoint; empty if there are none."""
    telling = _telling(options)
    return sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()[:16] if telling else ""


def _telling(value: Any) -> Any:
    """A value of an option as JSON can write it, without what tells only who asks and how."""
    if isinstance(value, Mapping):
        kept = {str(name): _telling(one) for name, one in value.items() if not _is_private(str(name).lower())}
        return {name: one for name, one in kept.items() if one not in ({}, [], None)}
    if isinstance(value, list | tuple | set | frozenset):
        return [_telling(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__qualname__


def _is_private(name: str) -> bool:
    return name in _NOT_THE_DATA or credentials.is_credential(name)


def _is_missing(system: Any, name: str) -> bool:
    try:
        return not system.exists(name)
    except Exception:  # a store may raise anything; the error that it raised first is reported
        return False


def _info_of(name: str, copy: os.PathLike[str]) -> dict[str, Any]:
    status = os.stat(copy)
    is_directory = stat.S_ISDIR(status.st_mode)
    return {
        "name": name,
        "size": 0 if is_directory else status.st_size,
        "type": "directory" if is_directory else "file",
    }


def _read_only(path: str) -> OSError:
    return OSError(errno.EROFS, "sccache:: only reads; write to the URL without it", path)
