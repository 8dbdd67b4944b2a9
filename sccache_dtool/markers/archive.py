"""The archive: every object that was ever added, and a record of each time; nothing in it is ever written twice.

An object is complete, and on stable storage, before it has its name; the record comes after it. So a crash leaves at
most an object without a record, or a record of a name that no marker has: what is known are the records and the objects
together. See `docs/reference/format.md`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import unique
from sccache_dtool.errors import GONE, CacheError, FetchFailed, UsageError, explain
from sccache_dtool.fetch import local, objects, sources
from sccache_dtool.fetch.context import Job
from sccache_dtool.fetch.objects import ADDED, DIGITS, OBJECTS, WORK, object_name
from sccache_dtool.fetch.request import OBJECT
from sccache_dtool.fetch.steps import file_digest
from sccache_dtool.liveness import caller
from sccache_dtool.protocol.store import Store

#: The checksum by which a copy is compared with what was hashed just before: it costs a fraction of another SHA-256.
CHECKSUM = "crc32"

#: How often a file is read again that changes while it is added, or an object placed again that was collected.
_ATTEMPTS = 3

#: Characters of a comment.
LONGEST_COMMENT = 10_000

#: The directory, among the records, of what predecessors knew objects by.
_MD5 = "md5"

#: errno values for a file system that has no hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Staged(NamedTuple):
    """A file that was copied, and hashed on the way: on stable storage, but without a name in the archive."""

    path: str
    digits: str  # SHA-256, in hexadecimal
    checksum: str
    bytes: int


class Record(NamedTuple):
    """The name of a record: ``<digits>~<milliseconds since 1970>~<bytes>~<random>``."""

    digits: str
    ms: int
    bytes: int
    random: str

    def __str__(self) -> str:
        return f"{self.digits}~{self.ms}~{self.bytes}~{self.random}"

    @classmethod
    def parse(cls, name: str) -> Record | None:
        """The record that `name` stands for; None if it has another form."""
        match = re.fullmatch(rf"({DIGITS})~([0-9]{{1,15}})~([0-9]{{1,18}})~([0-9a-f]{{16}})", name)
        return cls(match[1], int(match[2]), int(match[3]), match[4]) if match else None


class Details(NamedTuple):
    """What a record says: of one file that was added. Written by others, and never trusted."""

    name: str = ""
    by: str = ""
    comment: str = ""
    project: str = ""


class Archive:
    """An archive in a directory."""

    def __init__(self, store: Store, url: str, *, verify: bool = True) -> None:
        """`verify`: whether an object that is there already is read before it is taken for the file that is added."""
        self._store = store
        self.fs: FileSystem = store.fs
        self._verify = verify
        self.url = url
        self._work = f"{url}/{WORK}"

    def init(self) -> bool:
        """Set the archive up in its directory, which must exist; False if it is one already."""
        fs = self.fs
        shared = fs.is_shared(self.url)
        made = False
        for name in (OBJECTS, ADDED, WORK):  # the last is what makes it an archive
            with contextlib.suppress(FileExistsError):
                fs.mkdir(f"{self.url}/{name}", shared=shared)
                made = True
        return made

    def path_of(self, digits: str) -> str:
        """Where an object is."""
        return f"{self.url}/{object_name(digits)}"

    def now(self) -> float:
        """The time, in seconds since 1970."""
        return self._store.clock.wall()

    @property
    def _shared(self) -> bool:
        return _is_shared(self.fs, self.url)

    # -- adding ------------------------------------------------------------------------------------------------------

    def stage(self, job: Job, path: str) -> Staged:
        """Copy a file into the archive, where it has no name yet. Raises FetchFailed if it does not stop changing."""
        self._require_directory()
        path = os.path.realpath(path)
        for attempt in range(1, _ATTEMPTS + 1):
            staged = f"{self._work}/{unique(32)}"
            try:
                digests = local.copy_file(job, path, staged, (OBJECT, CHECKSUM))
                self.fs.seal(staged, shared=self._shared)
                return Staged(staged, digests[OBJECT], digests[CHECKSUM], self.fs.lstat(staged).st_size)
            except FetchFailed:
                self.discard(staged)
                if attempt == _ATTEMPTS:
                    raise
            except BaseException:
                self.discard(staged)
                raise
        raise AssertionError("the last attempt returns or raises")

    def put(self, staged: Staged, details: Details) -> Record:
        """Give a staged file its name, and record it. Raises FetchFailed if another file is there under that name."""
        name = object_name(staged.digits)
        if not self._place(staged.path, name):
            self._check_same(staged)
        record = Record(staged.digits, int(self._store.clock.wall() * 1000), staged.bytes, unique())
        for _ in range(_ATTEMPTS):
            self._note(record, details)
            if not self._place(staged.path, name):  # it is there: nobody collected it before the record was seen
                return record
        return record

    def add_record(self, digits: str, details: Details) -> Record:
        """Record an object that is there once more, such as with another comment. Raises FetchFailed if it is not."""
        size = self.size(digits)
        if size is None:
            raise objects.missing(digits, self.url)
        record = Record(digits, int(self._store.clock.wall() * 1000), size, unique())
        self._note(record, details)
        return record

    def discard(self, staged: str) -> None:
        """Remove what is staged, or was left there."""
        with contextlib.suppress(OSError):
            self.fs.unlink(staged)

    def _place(self, path: str, name: str) -> bool:
        """Make `name` another name of the file; False if there is one already. The server decides which is first."""
        target = f"{self.url}/{name}"
        for _ in range(_ATTEMPTS):
            try:
                self.fs.link(path, target)
                self.fs.sync_directory(os.path.dirname(target))
                return True
            except FileExistsError:
                return False
            except FileNotFoundError:
                self.fs.make_dirs(os.path.dirname(target), shared=self._shared)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if self._size_of(target) is not None:
                    return False
                self.fs.make_dirs(os.path.dirname(target), shared=self._shared)
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rename(path, target)
                    return True
        raise FetchFailed(
            f"cannot add to the archive: {target} cannot be made", hint="check the directory, and try again"
        )

    def _note(self, record: Record, details: Details) -> None:
        path = f"{self.url}/{ADDED}/{record.digits[:2]}/{record}"
        given = {name: text for name, text in details._asdict().items() if text}
        text = records.encode_document({"format": 1, **given, "host": caller.host_name()})
        try:
            self._write(path, text)
        except FileNotFoundError:
            self.fs.make_dirs(os.path.dirname(path), shared=self._shared)
            self._write(path, text)

    def _write(self, path: str, text: str) -> None:
        with contextlib.suppress(FileExistsError):  # it is this one: the reply was lost, or it is placed once more
            self.fs.write_new(path, text, shared=self._shared)

    def _check_same(self, staged: Staged) -> None:
        """Raise FetchFailed unless the object that is there is the staged file."""
        path = self.path_of(staged.digits)
        if self._verify:
            self.check(staged.digits)
        elif self._size_of(path) != staged.bytes:
            raise objects.damaged(staged.digits, path, "of another size")

    # -- looking -----------------------------------------------------------------------------------------------------

    def size(self, digits: str) -> int | None:
        """Bytes of an object; None if the archive does not have it. Raises FetchFailed if it is away."""
        if "://" in self.url:
            return sources.announced([objects.source_in(self.url, object_name(digits))])
        found = self._size_of(self.path_of(digits))
        if found is None:
            objects.check_directory(self.fs, self.url)
        return found

    def _size_of(self, path: str) -> int | None:
        """Its directory is opened first: a look-up alone may find what another host has removed (NFS)."""
        try:
            with self.fs.way_to(os.path.dirname(path)):
                fd = self.fs.open(path)
            try:
                return self.fs.fstat(fd).st_size
            finally:
                self.fs.close(fd)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise FetchFailed(f"cannot read the archive: {explain(error)}") from error

    def check(self, digits: str) -> None:
        """Read an object, and raise FetchFailed if it is damaged or missing."""
        path = self.path_of(digits)
        try:
            found = file_digest(self.fs, path, OBJECT)
        except OSError as error:
            if error.errno in GONE:
                objects.check_directory(self.fs, self.url)
                raise objects.missing(digits, self.url) from error
            raise FetchFailed(f"cannot read {objects.word(digits)} in the archive: {explain(error)}") from error
        if found != digits:
            raise objects.damaged(digits, path, found)

    def objects(self) -> Iterator[str]:
        """The digests of all objects, sorted."""
        for shard in self._shards(OBJECTS):
            for name in self._names(f"{OBJECTS}/{shard}"):
                if re.fullmatch(DIGITS, f"{shard}{name}"):
                    yield f"{shard}{name}"

    def records(self, digits: str | None = None) -> Iterator[Record]:
        """All records, sorted by the digest and the time; or those of one object."""
        for shard in self._shards(ADDED) if digits is None else [digits[:2]]:
            found = (Record.parse(name) for name in self._names(f"{ADDED}/{shard}"))
            yield from sorted(one for one in found if one is not None and digits in (None, one.digits))

    def known(self) -> Iterator[str]:
        """The digests of all that was ever added, sorted: each of a record or an object, once."""
        for shard in sorted({*self._shards(OBJECTS), *self._shards(ADDED)}):
            names = {f"{shard}{name}" for name in self._names(f"{OBJECTS}/{shard}")}
            found = {one for one in names if re.fullmatch(DIGITS, one)}
            parsed = (Record.parse(name) for name in self._names(f"{ADDED}/{shard}"))
            yield from sorted(found | {one.digits for one in parsed if one is not None})

    def details(self, record: Record) -> Details:
        """What a record says; nothing if it cannot be read."""
        try:
            document = records.decode_document(self.fs.read_text(f"{self.url}/{ADDED}/{record.digits[:2]}/{record}"))
        except (OSError, records.Damaged):
            return Details()
        return Details(*(value if isinstance(value := document.get(name), str) else "" for name in Details._fields))

    def _require_directory(self) -> None:
        """Raise UsageError for an archive elsewhere, and FetchFailed for a directory that is not an archive."""
        if "://" in self.url:
            raise UsageError(
                f"{self.url} is not a directory: objects can only be fetched from it",
                hint="add and list objects on a host where the archive is a directory",
            )
        objects.check_directory(self.fs, self.url)

    def alias(self, md5: str) -> str | None:
        """The digest of the object that a predecessor knew by an MD5; None if none was adopted."""
        self._require_directory()
        try:
            return objects.digits_of(self.fs.read_text(f"{self.url}/{ADDED}/{_MD5}/{md5}"))
        except OSError as error:
            if error.errno in GONE:
                return None
            raise FetchFailed(f"cannot read the archive: {explain(error)}") from error

    def add_alias(self, md5: str, digits: str) -> None:
        """Let an object be found by its MD5 as well."""
        self.fs.make_dirs(f"{self.url}/{ADDED}/{_MD5}", shared=self._shared)
        self._write(f"{self.url}/{ADDED}/{_MD5}/{md5}", digits)

    def _shards(self, directory: str) -> list[str]:
        self._require_directory()
        return [name for name in self._names(directory) if re.fullmatch("[0-9a-f]{2}", name)]

    def _names(self, directory: str) -> list[str]:
        try:
            return self.fs.names_if_any(f"{self.url}/{directory}")
        except OSError as error:
            raise FetchFailed(f"cannot read the archive: {explain(error)}") from error

    def staged(self) -> list[str]:
        """The paths of what is being added, or was left by processes that were killed."""
        return [f"{self._work}/{name}" for name in self._names(WORK)]

    def verify(self, digits: Iterable[str]) -> Iterator[CacheError]:
        """Read objects; what is wrong with each that is damaged or missing."""
        for one in digits:
            try:
                self.check(one)
            except CacheError as error:
                yield error


@lru_cache(maxsize=64)
def _is_shared(fs: FileSystem, url: str) -> bool:
    return fs.is_shared(url)
