"""Archives that are not directories: object stores and servers, through fsspec."""

from __future__ import annotations

import contextlib
import posixpath
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from http import HTTPStatus
from typing import Any

from sccache_dtool.disk.filesystem import CHUNK
from sccache_dtool.disk.names import unique
from sccache_dtool.errors import FetchFailed, UsageError
from sccache_dtool.fetch import http, objects, transport
from sccache_dtool.fetch.objects import WORK, source_in
from sccache_dtool.fetch.reasons import plain, why
from sccache_dtool.fetch.words import REMOTE
from sccache_dtool.markers.archive import Archive
from sccache_dtool.protocol.store import Store

#: Schemes of stores in which an upload is visible when it is complete, and not before.
_WHOLE = frozenset({"s3", "gs", "az", "abfs", "oci", "oss"})

#: Schemes whose packages let several threads ask at a time.
_FOR_THREADS = _WHOLE | {"webdav", "webdavs"}

#: Schemes of stores that list at once what others have written: `archive orphans --delete` relies on that.
_CURRENT = _WHOLE | {"sftp", "ssh", "webdav", "webdavs"}


def open_remote(store: Store, url: str, *, verify: bool, compress: str = "never") -> Archive:
    """The archive at a URL."""
    kind = RemoteArchive if source_in(url, "").scheme in REMOTE else _WebArchive
    return kind(store, url, verify=verify, compress=compress)


class RemoteArchive(Archive):
    """An archive in a store that fsspec opens. A file is hashed while it is copied to $TMPDIR, and then uploaded."""

    def __init__(self, store: Store, url: str, *, verify: bool = True, compress: str = "never") -> None:
        super().__init__(store, url, verify=verify, compress=compress)
        self._work = tempfile.gettempdir()
        self._opened: tuple[Any, str] | None = None
        # A package may drop what comes for another thread, which then waits for ever: paramiko does.
        self._turn = nullcontext() if url.partition(":")[0] in _FOR_THREADS else threading.RLock()

    def init(self) -> bool:
        """Write the sign of an archive; False if it is there."""
        if self._size_of(f"{WORK}/archive") is not None:
            return False
        self._write(f"{WORK}/archive", "sc-dtool\n")
        return True

    def path_of(self, digits: str, form: str = "") -> str:
        """See Archive."""
        return source_in(self.url, objects.object_name(digits, form)).canonical

    def _prepare(self) -> None:
        """See Archive. A file is made on this host first."""
        self.require()

    def _form_among(self, digits: str, forms: Sequence[str]) -> str | None:
        """See Archive."""
        return next((form for form in forms if self._size_of(objects.object_name(digits, form)) is not None), None)

    def _other_forms(self, form: str) -> list[str]:
        """None: each look is a request, for each file that is added. An object may be there in two forms."""
        return []

    def require(self) -> None:
        """See Archive."""
        if self._size_of(f"{WORK}/archive") is None:
            raise FetchFailed(
                f"there is no archive in {plain(self.url)}", hint="set up a new archive with: sc-dtool archive init"
            )

    def staged(self) -> list[str]:
        """See Archive."""
        return []

    @property
    def _shared(self) -> bool:
        return False

    def _place(self, path: str, name: str) -> bool:
        """Upload a file. Whoever loses a race has uploaded the same bytes."""
        if self._size_of(name) is not None:
            return False
        with self._asking() as (system, root):
            whole, target = f"{root}/{name}", f"{root}/{name}"
            if source_in(self.url, "").scheme not in _WHOLE:
                target = f"{root}/{WORK}/{unique(32)}"
                system.makedirs(posixpath.dirname(whole), exist_ok=True)
            system.put_file(path, target)
            if target != whole:
                system.mv(target, whole)
        if self._size_of(name) != self.fs.lstat(path).st_size:
            raise FetchFailed(f"cannot add to the archive {plain(self.url)}: {name} has another size than was uploaded")
        return True

    def _write(self, name: str, text: str) -> None:
        with self._asking() as (system, root):
            if source_in(self.url, "").scheme not in _WHOLE:
                system.makedirs(posixpath.dirname(f"{root}/{name}"), exist_ok=True)
            system.pipe_file(f"{root}/{name}", text.encode())

    def _size_of(self, name: str) -> int | None:
        size = None
        with self._asking(missing=True) as (system, root):
            system.invalidate_cache()
            size = system.info(f"{root}/{name}").get("size")
        return None if size is None else int(size)

    def require_removal(self) -> None:
        """See Archive."""
        scheme = source_in(self.url, "").scheme
        if scheme not in _CURRENT:
            raise UsageError(
                f"nothing is removed from {plain(self.url)}: it is not known whether {scheme}:// lists at once what "
                "others have written",
                hint="nobody may add files meanwhile: delete what is listed with the store's own tools",
            )

    def move(self, name: str, target: str) -> bool:
        """See Archive. A store without renaming copies; the object is deleted once its copy has its size."""
        size = self._size_of(name)
        if size is None:
            return False
        with self._asking() as (system, root):
            here, there = f"{root}/{name}", f"{root}/{target}"
            if source_in(self.url, "").scheme in _WHOLE:
                system.cp_file(here, there)
                if self._size_of(target) != size:
                    raise FetchFailed(f"{there} has another size than {here}, of which it is a copy")
                system.rm_file(here)
            else:
                system.makedirs(posixpath.dirname(there), exist_ok=True)
                system.mv(here, there)
        return True

    def move_back(self, name: str, target: str) -> None:
        """See Archive."""
        if self._size_of(target) is None:
            self.move(name, target)
        else:
            self.remove(name)

    def remove(self, name: str) -> None:
        """See Archive."""
        with self._asking(missing=True) as (system, root):
            system.rm_file(f"{root}/{name}")

    def _read(self, name: str) -> Iterator[bytes]:
        file: Any = None
        with self._asking(missing=True) as (system, root):
            file = system.open(f"{root}/{name}", "rb")
        if file is None:
            return
        try:
            while True:
                with self._asking():
                    data = file.read(CHUNK)
                if not data:
                    break
                yield data
        finally:
            with self._asking():
                file.close()

    def _content(self, name: str) -> bytes:
        found = [b""]
        with self._asking(missing=True) as (system, root):  # in one request, where a file needs several
            found.append(system.cat_file(f"{root}/{name}"))
        return found[-1]

    def _names(self, directory: str) -> list[str]:
        found: list[str] = []
        with self._asking(missing=True) as (system, root):
            system.invalidate_cache()
            found = system.ls(f"{root}/{directory}", detail=False)
        return sorted(posixpath.basename(str(path).rstrip("/")) for path in found)

    @contextlib.contextmanager
    def _asking(self, missing: bool = False) -> Iterator[tuple[Any, str]]:
        """The store, and the archive's name in it. Raises FetchFailed for whatever it may raise.

        `missing`: end the block if what it asks for is not there.
        """
        from sccache_dtool.fetch.fsspec_source import open_system

        try:
            with self._turn:
                if self._opened is None:
                    system, name = open_system(source_in(self.url, ""))
                    self._opened = system, name.rstrip("/")
                yield self._opened
        except FetchFailed:
            raise
        except Exception as error:
            if missing and (isinstance(error, FileNotFoundError) or type(error).__name__ == "ResourceNotFound"):
                return
            self._opened = None  # it may have been the connection
            raise FetchFailed(f"cannot use the archive {plain(self.url)}: {why(error)}") from error


class _WebArchive(RemoteArchive):
    """An archive on a web server: objects can be fetched from it, and nothing can be added."""

    def require(self) -> None:
        """Raises UsageError: this is asked before anything is added or listed."""
        raise UsageError(
            f"{plain(self.url)} can only be read",
            hint="add and list objects where the archive is a directory or a store",
        )

    def init(self) -> bool:
        """Raises UsageError."""
        self.require()
        return False

    def size(self, digits: str) -> int | None:
        """See Archive. None, too, if the server does not say how large it is."""
        return self._size_of(objects.object_name(digits))

    def _size_of(self, name: str) -> int | None:
        return http.announced(source_in(self.url, name))

    def _read(self, name: str) -> Iterator[bytes]:
        source = source_in(self.url, name)
        timeout = (http.CONNECT_TIMEOUT, http.READ_TIMEOUT)
        with transport.session() as session:
            headers = {"Accept-Encoding": "identity"}
            response = transport.answer(session, source.location, headers, timeout, self._store.log.note)
            with response:
                if response.status_code == HTTPStatus.OK:
                    yield from response.iter_content(CHUNK)
                elif response.status_code != HTTPStatus.NOT_FOUND:
                    raise FetchFailed(f"cannot read {source.canonical}: the server answers {response.status_code}")
