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
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import NamedTuple

from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.disk.names import unique
from sccache_dtool.errors import GONE, CacheError, FetchFailed, explain
from sccache_dtool.fetch import local, objects
from sccache_dtool.fetch.context import Context
from sccache_dtool.fetch.objects import ADDED, DIGITS, OBJECTS, WORK, object_name
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.request import COMPRESSIONS, OBJECT
from sccache_dtool.fetch.sink import Sink, new_digest
from sccache_dtool.liveness import caller
from sccache_dtool.policy.config import Config
from sccache_dtool.protocol.store import Store

#: The checksum by which a copy is compared with what was hashed just before: it costs a fraction of another SHA-256.
CHECKSUM = "crc32"

#: How often a file is read again that changes while it is added, or an object placed again that was collected.
_ATTEMPTS = 3

#: Characters of a comment.
LONGEST_COMMENT = 10_000

#: The directory, among the records, of what predecessors knew objects by.
_MD5 = "md5"

#: The name of an object in its shard.
_OBJECT_NAME = re.compile(rf"([0-9a-f]{{62}})(\.({'|'.join(COMPRESSIONS)}))?")
#: The directory of objects that no marker names, until they are deleted.
TRASH = "trash"

#: errno values for a file system that has no hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Staged(NamedTuple):
    """A file that was copied, and hashed on the way: on stable storage, but without a name in the archive."""

    path: str
    digits: str  # SHA-256, in hexadecimal: of the content, as are the next two
    checksum: str
    bytes: int
    compression: str = ""  # how the copy is compressed, its bytes, and its checksum
    stored: int = 0
    stored_checksum: str = ""


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
    """An archive in a directory. `remote.py` has those that are elsewhere; paths below it are called names here."""

    def __init__(self, store: Store, url: str, *, verify: bool = True, compress: str = "never") -> None:
        """`verify`: whether an object that is there already is read before it is taken for the file that is added.

        `compress`: what is compressed, see `objects.forms`. What is read may have any form.
        """
        self._store = store
        self.fs: FileSystem = store.fs
        self._verify = verify
        self.compress = compress
        self.url = url
        self._work = f"{url}/{WORK}"
        self._received: dict[str, int] = {}  # bytes of compressed objects that have no record yet, to say so

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

    def path_of(self, digits: str, form: str = "") -> str:
        """Where an object in this form is, for people."""
        return f"{self.url}/{object_name(digits, form)}"

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that objects may have in this archive; the first is that of new ones."""
        return objects.forms(self.compress)

    def local_path(self, staged: Staged) -> str:
        """Where the bytes of a staged file can be read on this host once it was put into the archive."""
        try:
            self.fs.lstat(staged.path)
        except FileNotFoundError:  # it was renamed, because there are no hard links
            return self.path_of(staged.digits, staged.compression)
        return staged.path

    def now(self) -> float:
        """The time, in seconds since 1970."""
        return self._store.clock.wall()

    @property
    def _shared(self) -> bool:
        return _is_shared(self.fs, self.url)

    # -- adding ------------------------------------------------------------------------------------------------------

    def stage(self, context: Context, path: str) -> Staged:
        """Copy a file into the archive, where it has no name yet. Raises FetchFailed if it does not stop changing."""
        self._prepare()
        path = os.path.realpath(path)
        for attempt in range(1, _ATTEMPTS + 1):
            staged = f"{self._work}/{unique(32)}"
            try:
                context.progress.start(os.path.basename(path), os.stat(path).st_size)
                made = self._copy(context, path, staged)
                self.fs.seal(staged, shared=self._shared)
                return made
            except FileNotFoundError:
                self.require()
                raise
            except FetchFailed:
                self.discard(staged)
                if attempt == _ATTEMPTS:
                    raise
            except BaseException:
                self.discard(staged)
                raise
            finally:
                context.progress.done()
        raise AssertionError("the last attempt returns or raises")

    def _prepare(self) -> None:
        """Raise FetchFailed if that there is no archive would not show when a file is made in it."""

    def _copy(self, context: Context, path: str, staged: str) -> Staged:
        form = self.forms[0]
        if not form:
            digests = local.copy_file(context, path, staged, (OBJECT, CHECKSUM))
            return Staged(staged, digests[OBJECT], digests[CHECKSUM], self.fs.lstat(staged).st_size)

        def make(mode: int) -> Sink:
            return self._sink(context, staged, mode)

        return staged_in(local.copy_into(context, path, make))

    def _sink(self, context: Context, path: str, mode: int = 0o666) -> Sink:
        """A new file for an object, in the form that objects get here."""
        form = self.forms[0]
        if not form:
            return context.sink(path, (OBJECT, CHECKSUM), mode)
        from sccache_dtool.fetch.compress import Compressing

        return Compressing(context.fs, path, (OBJECT, CHECKSUM), context.progress, mode, kind=form)

    def put(self, staged: Staged, details: Details) -> Record:
        """Give a staged file its name, and record it. Raises FetchFailed if another file is there under that name."""
        others = self._other_forms(staged.compression)
        name = object_name(staged.digits, staged.compression)
        other = self._form_among(staged.digits, others)
        if other is not None or not self._place(staged.path, name):
            self._check_same(staged)
        record = Record(staged.digits, int(self._store.clock.wall() * 1000), staged.bytes, unique())
        for _ in range(_ATTEMPTS):
            self._note(record, details)
            other = other and self._form_among(staged.digits, others)
            if other is not None or not self._place(
                staged.path, name
            ):  # nobody collected it before the record was seen
                return record
        return record

    def _other_forms(self, form: str) -> list[str]:
        """The forms that are looked for before an object is placed, so that it is not stored twice."""
        return [other for other in self.forms if other != form]

    def add_record(self, digits: str, details: Details, random: str = "") -> Record:
        """Record an object that is there once more, such as with another comment. Raises FetchFailed if it is not.

        `random`: the last part of the record's name, 16 hexadecimal digits.
        """
        size = self.size(digits)
        if size is None:
            raise objects.missing(digits, self.url)
        record = Record(digits, int(self._store.clock.wall() * 1000), size, random or unique())
        self._note(record, details)
        self._received.pop(digits, None)
        if not self.has(digits):  # collected before the record was seen
            raise objects.missing(digits, self.url)
        return record

    def receive(self) -> Sink:
        """A file that others send, which `accept` gives its name."""
        return self._sink(Context(self._store, NoProgress()), f"{self._work}/{unique(32)}")

    def accept(self, staged: Staged) -> bool:
        """Give a file that was received its name, without a record; False if it is there already, in whatever form.

        Raises FetchFailed if another file is there under that name. What was received is left to `discard`.
        """
        self.fs.seal(staged.path, shared=self._shared)
        form = staged.compression
        other = self._form_among(staged.digits, self._other_forms(form))
        if other is not None or not self._place(staged.path, object_name(staged.digits, form)):
            self._check_same(staged)
            return False
        if form:
            self._received[staged.digits] = staged.bytes
        return True

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
                if self._size_of(name) is not None:  # the file was renamed before, because there are no hard links
                    return False
                self.fs.make_dirs(os.path.dirname(target), shared=self._shared)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if self._size_of(name) is not None:
                    return False
                self.fs.make_dirs(os.path.dirname(target), shared=self._shared)
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rename(path, target)
                    return True
        raise FetchFailed(
            f"cannot add to the archive: {target} cannot be made", hint="check the directory, and try again"
        )

    def _note(self, record: Record, details: Details) -> None:
        given = {name: text for name, text in details._asdict().items() if text}
        text = records.encode_document({"format": 1, **given, "host": caller.host_name()})
        self._write(f"{ADDED}/{record.digits[:2]}/{record}", text)

    def _write(self, name: str, text: str) -> None:
        """Write a new text. If there is one already, it is this one: the reply was lost, or it is written again."""
        path = f"{self.url}/{name}"
        with contextlib.suppress(FileExistsError):
            try:
                self.fs.write_new(path, text, shared=self._shared)
            except FileNotFoundError:
                self.fs.make_dirs(os.path.dirname(path), shared=self._shared)
                self.fs.write_new(path, text, shared=self._shared)

    def _check_same(self, staged: Staged) -> None:
        """Raise FetchFailed unless the object that is there is the staged file."""
        if self._verify:
            self.check(staged.digits)
        elif self.size(staged.digits) != staged.bytes:
            raise objects.damaged(staged.digits, self.path_of(staged.digits), "of another size")

    # -- removing, as `orphans.py` does ------------------------------------------------------------------------------

    def require_removal(self) -> None:
        """Raise UsageError if objects cannot be removed from here."""

    def move(self, name: str, target: str) -> bool:
        """Give what is called `name` another name; False if it is not there."""
        self.fs.make_dirs(os.path.dirname(f"{self.url}/{target}"), shared=self._shared)
        with contextlib.suppress(FileNotFoundError):
            self.fs.rename(f"{self.url}/{name}", f"{self.url}/{target}")
            return True
        return False

    def move_back(self, name: str, target: str) -> None:
        """The same, where somebody else may have written the target."""
        with contextlib.suppress(FileNotFoundError):
            self._place(f"{self.url}/{name}", target)
        self.remove(name)

    def remove(self, name: str) -> None:
        """Delete what is called `name`."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.unlink(f"{self.url}/{name}")

    def trashed(self) -> list[str]:
        """The names in the trash."""
        return self._names(TRASH)

    def refresh(self, digits: str) -> None:
        """Let the next listing of the records of an object be current.

        One on NFS is that only after a change of one's own in the directory.
        """
        probe = f"{ADDED}/{digits[:2]}/probe-{unique()}"
        self._write(probe, "")
        self.remove(probe)

    # -- looking -----------------------------------------------------------------------------------------------------

    def size(self, digits: str) -> int | None:
        """Bytes of an object; None if the archive does not have it. Raises FetchFailed if it is away."""
        form = self.form_of(digits)
        if form is None:
            return None
        if not form:
            return self._size_of(object_name(digits))
        recorded = self._recorded(digits)
        if recorded is None:
            recorded = self._received.get(digits)
        return sum(map(len, self.pieces(digits))) if recorded is None else recorded

    def has(self, digits: str) -> bool:
        """Whether the archive has an object. Raises FetchFailed if it is away."""
        return self.form_of(digits) is not None

    def form_of(self, digits: str) -> str | None:
        """The form that an object has in the archive; None if it does not have it. Raises FetchFailed if it is away."""
        form = self._form_among(digits, self.forms)
        if form is None:
            self.require()
        return form

    def _form_among(self, digits: str, forms: Sequence[str]) -> str | None:
        """The first of some forms that an object has; see `_size_of` for why its directory is opened first."""
        if not forms:
            return None
        names = {form: f"{self.url}/{object_name(digits, form)}" for form in forms}
        with self._reading(), self.fs.open_directory(os.path.dirname(names[forms[0]])):
            for form, name in names.items():
                with contextlib.suppress(FileNotFoundError):
                    self.fs.lstat(name)
                    return form
        return None

    def _recorded(self, digits: str) -> int | None:
        """Bytes of an object, by its records; None if there is none. Anybody may have written one: the most counts."""
        return max((record.bytes for record in self.records(digits)), default=None)

    def _size_of(self, name: str) -> int | None:
        """Its directory is opened first: a look-up alone may find what another host has removed (NFS)."""
        path, size = f"{self.url}/{name}", None
        with self._reading():
            with self.fs.open_directory(os.path.dirname(path)):
                fd = self.fs.open(path)
            try:
                size = self.fs.fstat(fd).st_size
            finally:
                self.fs.close(fd)
        return size

    def pieces(self, digits: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of an object from `offset` on. They are wrong if FetchFailed is raised, at the latest at the end.

        If it is compressed, and has more bytes than was recorded when it was added, that is noticed at once.
        """
        from sccache_dtool.fetch import compress

        forms = iter(self.forms)
        form, coming = next(forms), b""
        reading = self._read(object_name(digits, form))
        while not (coming := next(reading, b"")) and self._size_of(object_name(digits, form)) is None:
            following = next(forms, None)
            if following is None:
                self.require()
                raise objects.missing(digits, self.url)
            form, reading = following, self._read(object_name(digits, following))
        most = self._recorded(digits) if form else None
        digest, size = new_digest(OBJECT), 0
        try:
            for piece in compress.unpack(chain([coming], reading) if coming else reading, form):
                digest.update(piece)
                skipped = max(0, offset - size)
                size += len(piece)
                if most is not None and size > most:
                    raise compress.Damaged(f"more than {most} bytes")
                if skipped < len(piece):
                    yield piece[skipped:] if skipped else piece
        except compress.Damaged as error:
            raise objects.damaged(digits, self.path_of(digits, form), f"(none: {error})") from error
        if digest.hexdigest() != digits:
            raise objects.damaged(digits, self.path_of(digits, form), digest.hexdigest())

    def part(self, digits: str, begin: int, size: int) -> Iterator[bytes]:
        """So many bytes of an object from `begin` on, not checked: for servers, whose clients check the whole."""
        try:
            fd = self.fs.open(self.path_of(digits))
        except OSError:  # it has another form here
            yield from _within(self.pieces(digits), begin, size)
            return
        try:
            self.fs.seek(fd, begin)
            while size and (data := self.fs.read(fd, min(CHUNK, size))):
                size -= len(data)
                yield data
        finally:
            self.fs.close(fd)

    def _read(self, name: str) -> Iterator[bytes]:
        """The bytes of a file; nothing if it is not there."""
        with self._reading():
            fd = self.fs.open(f"{self.url}/{name}")
            try:
                while data := self.fs.read(fd):
                    yield data
            finally:
                self.fs.close(fd)

    def _content(self, name: str) -> bytes:
        """The same of a small file."""
        return b"".join(self._read(name))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """End the block if what it reads is not there. Raises FetchFailed for every other error."""
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise FetchFailed(f"cannot read the archive: {explain(error)}") from error

    def check(self, digits: str) -> None:
        """Read an object, and raise FetchFailed if it is damaged or missing."""
        for _ in self.pieces(digits):
            pass

    def objects(self, first: str = "") -> Iterator[str]:
        """The digests of all objects, sorted; `first`: of those from this digest on."""
        for shard in self._shards(OBJECTS, first):
            yield from (digits for digits in self._objects_in(shard) if digits >= first)

    def _objects_in(self, shard: str) -> list[str]:
        """The digests of the objects in a shard, sorted, each once whatever its forms."""
        found = (_OBJECT_NAME.fullmatch(name) for name in self._names(f"{OBJECTS}/{shard}"))
        return sorted({f"{shard}{match[1]}" for match in found if match})

    def records(self, digits: str | None = None) -> Iterator[Record]:
        """All records, sorted by the digest and the time; or those of one object."""
        for shard in self._shards(ADDED) if digits is None else [digits[:2]]:
            found = (Record.parse(name) for name in self._names(f"{ADDED}/{shard}"))
            yield from sorted(one for one in found if one is not None and digits in (None, one.digits))

    def entries(self, after: Record | None = None) -> Iterator[Record]:
        """As `records`, with one at the time 0 for each object without any: its process was killed.

        `after`: of those that are sorted after this record, which need not be there.
        """
        first = "" if after is None else after.digits
        for shard in sorted({*self._shards(OBJECTS, first), *self._shards(ADDED, first)}):
            found = [one for one in map(Record.parse, self._names(f"{ADDED}/{shard}")) if one is not None]
            recorded = {one.digits for one in found}
            for digits in self._objects_in(shard):
                if digits not in recorded:
                    found.append(Record(digits, 0, self.size(digits) or 0, "0" * 16))
            yield from (one for one in sorted(found) if after is None or one > after)

    def known(self) -> Iterator[str]:
        """The digests of all that was ever added, sorted: each of a record or an object, once."""
        for digits, _ in groupby(self.entries(), lambda one: one.digits):
            yield digits

    def details(self, record: Record) -> Details:
        """What a record says; nothing if it cannot be read."""
        text = self._content(f"{ADDED}/{record.digits[:2]}/{record}").decode("utf-8", "replace")
        try:
            document = records.decode_document(text)
        except records.Damaged:
            return Details()
        return Details(*(value if isinstance(value := document.get(name), str) else "" for name in Details._fields))

    def require(self) -> None:
        """Raise FetchFailed if there is no archive: such as where its disk is not mounted."""
        objects.check_directory(self.fs, self.url)

    def alias(self, md5: str) -> str | None:
        """The digest of the object that a predecessor knew by an MD5; None if none was adopted."""
        return objects.digits_of(self._content(f"{ADDED}/{_MD5}/{md5}").decode("ascii", "replace"))

    def add_alias(self, md5: str, digits: str) -> None:
        """Let an object be found by its MD5 as well."""
        self._write(f"{ADDED}/{_MD5}/{md5}", digits)

    def _shards(self, directory: str, first: str = "") -> list[str]:
        self.require()
        names = self._names(directory)
        return [name for name in names if re.fullmatch("[0-9a-f]{2}", name) and name >= first[:2]]

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


def staged_in(sink: Sink) -> Staged:
    """What was written to a Sink of the archive, to the end."""
    digests = sink.digests()
    return Staged(
        sink.path, digests[OBJECT], digests[CHECKSUM], sink.size, sink.kind, sink.stored, sink.stored_checksum
    )


def open_archive(store: Store, settings: Config) -> Archive:
    """The archive that the settings name. Raises UsageError if they name none."""
    url = objects.of_setting(settings.archive_url)
    if "://" not in url:
        return Archive(store, url, verify=settings.archive_verify, compress=settings.archive_compress)
    if objects.is_served(url):
        from sccache_dtool.markers.served import ServedArchive

        return ServedArchive(store, url, verify=settings.archive_verify, token_file=settings.archive_token_file)
    from sccache_dtool.markers.remote import open_remote

    return open_remote(store, url, verify=settings.archive_verify, compress=settings.archive_compress)


def _within(pieces: Iterator[bytes], begin: int, size: int) -> Iterator[bytes]:
    """So many of these bytes from `begin` on."""
    end, at = begin + size, 0
    for piece in pieces:
        yield piece[max(0, begin - at) : max(0, end - at)]
        at += len(piece)
        if at >= end:
            return


@lru_cache(maxsize=64)
def _is_shared(fs: FileSystem, url: str) -> bool:
    return fs.is_shared(url)
