"""Files as objects: adds them to the archive and the cache, opens them, and keeps markers of them true."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import lru_cache, partial
from typing import IO, Any, NamedTuple, NewType

from sccache_dtool.catalog import items
from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import CacheError, FetchFailed, NoSpace, UsageError
from sccache_dtool.evict import pins
from sccache_dtool.fetch import local, objects
from sccache_dtool.fetch.context import Context
from sccache_dtool.fetch.progress import NoProgress, Progress
from sccache_dtool.fetch.request import OBJECT, Request
from sccache_dtool.fetch.sink import Digests
from sccache_dtool.fetch.steps import compare
from sccache_dtool.liveness import caller
from sccache_dtool.markers import limit, marker
from sccache_dtool.markers.archive import CHECKSUM, LONGEST_COMMENT, Archive, Details, Record, Staged
from sccache_dtool.markers.marker import Chunk, Marker
from sccache_dtool.markers.predecessor import Adopted, predecessors_of
from sccache_dtool.pool import Threads
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.protocol.store import Store

#: What a file is known by: ``sha256:HEX``.
Identifier = NewType("Identifier", str)


#: Files that are added or restored at a time, if nothing else is said: each waits for the disk several times.
AT_A_TIME = 16

#: Bytes of the list of the files of a directory: of a million and more.
_LONGEST_LIST = 1 << 28

#: Seconds for which a file must have been unchanged when it is saved, so that its times tell any later change.
_SETTLED = 2.0

#: When this process began.
_STARTED = time.time()

#: Bytes up to which a file that is not in the cache is restored from the archive alone: to fetch it costs more.
_SMALL = 1 << 20


class Sharing(StrEnum):
    """How a file that was saved shares its space with the cache."""

    LINK = "link"  # it is a symbolic link to the copy in the cache
    REFLINK = "reflink"  # the file system stores its blocks once
    COPY = "copy"  # not at all


class Files(NamedTuple):
    """The files of one cache that are known by their content."""

    store: Store
    archive: Archive
    use: Callable[[Request], Lease]  # a lease of this process, on what is fetched if it is not there
    take: Callable[[Request], Lease | None]  # the same, but None if it must be fetched first
    limit: int | None = None  # bytes of all objects in the cache
    progress: Progress | None = None

    # -- adding ------------------------------------------------------------------------------------------------------

    def add(
        self,
        path: str,
        *,
        comment: str = "",
        archive_only: bool = False,
        later: bool = False,
    ) -> Identifier:
        """Add a file to the archive and the cache; what it is known by from now on.

        `archive_only`: leave the cache as it is. `later`: if the archive cannot be written, keep the file in the cache,
        where nothing removes it until `push` has archived it. Raises UsageError, FetchFailed or NoSpace; then the cache
        is as before.
        """
        return Identifier(objects.word(self._add(path, comment, archive_only, later).sha256))

    def _add(
        self, path: str, comment: str = "", archive_only: bool = False, later: bool = False, name: str = ""
    ) -> Chunk:
        marker.check_comment(comment, LONGEST_COMMENT)
        size = _size_of(path)
        is_packed = self._cached_form != ""
        if not (archive_only or is_packed):
            limit.check_size(printable(path), size, self.limit)
        context = Context(self.store, self.progress or NoProgress())
        details = Details(name or os.path.basename(path), _by(), comment, _project(path))
        try:
            most = self.limit if is_packed and not archive_only else None
            staged = self._archived(context, path, details, most)
        except (FetchFailed, NoSpace, OSError) as error:
            if not later or isinstance(error, FileNotFoundError | limit.TooLarge):
                raise
            self.store.log.warning(f"{printable(path)} is kept in the cache until `sc-dtool archive push`: {error}")
            return self._add_later(context, path)
        try:
            if not archive_only:
                self._keep(staged._replace(path=self.archive.local_path(staged)))
        finally:
            self.archive.discard(staged.path)
        return Chunk(staged.digits, staged.bytes)

    def _archived(self, context: Context, path: str, details: Details, most: int | None) -> Staged:
        """Put a file into the archive. What is staged is left to whoever calls.

        `most`: bytes that it may have there, compressed. Raises NoSpace.
        """
        staged = self.archive.stage(context, path)
        try:
            limit.check_size(printable(path), staged.stored, most)
            self.archive.put(staged, details)
        except BaseException:
            self.archive.discard(staged.path)
            raise
        return staged

    def _keep(self, staged: Staged, algorithm: str = CHECKSUM) -> None:
        """Put what is staged into the cache, unless it is there."""
        is_packed = self.archive.compress == "both" and staged.compression != ""

        def retrieve(fs: FileSystem, path: str, progress: Progress) -> None:
            progress.start(objects.word(staged.digits)[:15], staged.stored if is_packed else staged.bytes)
            context = Context(self.store, progress)
            if staged.compression and not is_packed:
                found = _unpack_file(context, staged, path, algorithm)
            else:
                found = local.copy_file(context, staged.path, path, (algorithm,))
            expected = staged.stored_checksum if is_packed else staged.checksum
            compare(algorithm, expected, found[algorithm], printable(staged.path))

        wanted = objects.request(staged.digits, staged.compression if is_packed else "")
        with self.use(wanted._replace(retrieve=retrieve)):
            pass

    @property
    def _cached_form(self) -> str:
        """How copies in the cache are compressed."""
        return self.archive.forms[0] if self.archive.compress == "both" else ""

    def lease(self, digits: str) -> tuple[Lease, str]:
        """A lease on a copy of an object, in whatever form there is one, or else fetched; how it is compressed.

        Raises FetchFailed or NoSpace.
        """
        wanted = self._cached_form
        for form in dict.fromkeys((wanted, *self.archive.forms)):
            found = self.take(objects.request(digits, form))
            if found is not None:
                return found, form
        return self.use(objects.request(digits, wanted)), wanted

    def _add_later(self, context: Context, path: str) -> Chunk:
        """Keep a file in the cache alone. It is pinned before it is there."""
        digits, size = _digest_of(path), _size_of(path)
        key = objects.request(digits).key
        was_pinned = key in pins.unarchived(self.store)
        pins.pin(self.store, key, pins.UNTIL_ARCHIVED, _by())
        try:
            self._keep(Staged(os.path.realpath(path), digits, digits, size), OBJECT)
        except BaseException:
            if not was_pinned:
                pins.note_archived(self.store, key)
            raise
        return Chunk(digits, size)

    def adopt(self, index: str, rows: Sequence[tuple[str, str]] | None = None) -> Iterator[Adopted]:
        """Add the files of a predecessor: those that are beside its `index.csv`, called ``<md5>.cache``.

        Each can then be found by its MD5 as well. One whose content has another MD5 is left out. `rows`: what is in the
        index, if it has been read.
        """
        import hashlib

        for md5, added in predecessors_of(index) if rows is None else rows:
            path = os.path.join(os.path.dirname(index), f"{md5}.cache")
            try:
                with marker.open_regular(path) as file:
                    found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                if found != md5:
                    yield Adopted(md5, None, f"{path} has the MD5 {found}")
                    continue
                one = self._add(path, f"added {added}", archive_only=True)
            except (CacheError, OSError) as error:
                yield Adopted(md5, None, str(error))
                continue
            self.archive.add_alias(md5, one.sha256)
            yield Adopted(md5, objects.word(one.sha256))

    def push(self) -> Iterator[tuple[str, CacheError | None]]:
        """Archive the objects that are only in the cache; each with what went wrong, if anything did."""
        for key in pins.unarchived(self.store):
            try:
                digits = self._push(key)
                yield objects.word(digits), None
            except CacheError as error:
                yield key, error

    def _push(self, key: str) -> str:
        for generation in items.generations(self.store, key):
            source = items.facts_if_readable(self.store, key, str(generation)).source or ("",)
            digits = objects.digits_of(source[0])
            if digits is None:
                continue
            with self.use(objects.request(digits)) as path:
                staged = self.archive.stage(Context(self.store, self.progress or NoProgress()), str(path))
                try:
                    if staged.digits != digits:
                        raise objects.damaged(digits, str(path), staged.digits)
                    self.archive.put(staged, Details("", _by()))
                finally:
                    self.archive.discard(staged.path)
            pins.note_archived(self.store, key)
            return digits
        raise CacheError(f"{key} is pinned until it is archived, but it is not in the cache", hint="add the file again")

    # -- markers -----------------------------------------------------------------------------------------------------

    def save(self, path: str, *, comment: str | None = None, archive_only: bool = False, later: bool = False) -> Marker:
        """Add a file, and write a marker beside it. A marker that is there keeps its comment unless one is given."""
        place = marker.path_for(path)
        before = _earlier(place)
        comment = (before.comment if before else "") if comment is None else comment
        added = self._add(path, comment, archive_only, later)
        made = Marker(
            os.path.basename(path),
            added.sha256,
            added.bytes,
            _is_executable(path),
            comment,
            more=before.more if before else {},
        )
        if made != before:
            marker.write(self.store.fs, place, made)
        return made

    def save_directory(
        self, path: str, *, comment: str | None = None, archive_only: bool = False, later: bool = False
    ) -> Marker:
        """Add all files of a directory, and write one marker for all of them beside it."""
        import json

        def add(inner: str) -> dict[str, object]:
            whole = os.path.join(path, inner)
            mode = "100755" if _is_executable(whole) else "100644"
            return {"path": inner, "mode": mode, **self._add(whole, "", archive_only, later)._asdict()}

        with Threads(AT_A_TIME) as threads:
            entries = [each.result() for each in [threads.submit(add, inner) for inner in files_below(path)]]
        place = marker.path_for(path)
        before = _earlier(place)
        comment = (before.comment if before else "") if comment is None else comment
        text = json.dumps({"directory": "sc-dtool 1", "files": entries}, sort_keys=True, indent=1) + "\n"
        with _temporary(text.encode("utf-8", "surrogateescape")) as listing:
            name = os.path.basename(os.path.abspath(path))
            added = self._add(listing, comment, archive_only, later, name)
        made = Marker(
            name, added.sha256, added.bytes, False, comment, directory=True, more=before.more if before else {}
        )
        if made != before:
            marker.write(self.store.fs, place, made)
        return made

    def entries(self, one: Marker) -> list[tuple[str, Marker]]:
        """The files of a directory that was saved as one, by their paths in it."""
        import json

        with self.open(one, "rb") as file:
            data = file.read(_LONGEST_LIST + 1)
        try:
            if len(data) > _LONGEST_LIST:
                raise ValueError(f"more than {_LONGEST_LIST} bytes")
            found = [
                (
                    entry["path"],
                    Marker(os.path.basename(entry["path"]), entry["sha256"], entry["bytes"], entry["mode"] == "100755"),
                )
                for entry in json.loads(data)["files"]
            ]
            for path, each in found:
                Marker.decode(each.encode(), path)
                parts = path.split("/")
                if {"", ".", ".."} & set(parts) or "\x00" in path or any(map(marker.is_reserved, parts)):
                    raise ValueError(path)
        except (ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
            raise CacheError(f"{objects.word(one.sha256)} is not a list of the files of a directory") from error
        return found

    def append(self, path: str, more: str) -> Marker:
        """Add the bytes of the file `more` to the file that a marker stands for: as an object of its own.

        The marker is replaced at the end; until then, and if anything fails, it is as it was.
        """
        place, one = marker.find(path)
        added: Chunk | None = None
        while True:
            if one.directory:
                raise UsageError(f"{printable(path)} stands for a directory", hint="save the directory again")
            added = added or self._add(more)
            made = self._with(one, added)
            with marker.changing(place):
                now = marker.read(place)
                if now == one:
                    marker.write(self.store.fs, place, made)
                    return made
            one = now  # another process was faster

    def _with(self, one: Marker, added: Chunk) -> Marker:
        """The marker of a file with another object after it."""
        digests = Digests([OBJECT])
        for target in (one, objects.word(added.sha256)):
            with self.open(target, "rb") as file:
                while data := file.read(CHUNK):
                    digests.update(data)
        parts = (*(part for part in one.parts if part.bytes), added)
        return one._replace(sha256=digests.hexdigests()[OBJECT], bytes=one.bytes + added.bytes, chunks=parts)

    def comment(self, path: str, text: str) -> Marker:
        """Change the comment of a marker, and record it for whoever else has the same file."""
        marker.check_comment(text, LONGEST_COMMENT)
        place, one = marker.find(path)
        if not one.chunks:
            self.archive.add_record(one.sha256, Details(one.name, _by(), text, _project(place)))
        with marker.changing(place):
            made = marker.read(place)._replace(comment=text)
            marker.write(self.store.fs, place, made)
        return made

    def record(self, digits: str, comment: str) -> Record:
        """Record an object of the archive once more."""
        marker.check_comment(comment, LONGEST_COMMENT)
        return self.archive.add_record(digits, Details("", _by(), comment, _project("x")))

    def share(self, path: str, digits: str, before: os.stat_result, hold: Callable[[Request], Lease] | None) -> Sharing:
        """Let a file that was just saved, and had the status `before`, share its space with the copy in the cache.

        `hold`: takes a lease that lasts. Without one, nothing would keep the target of a link. Raises CacheError if the
        file has changed.
        """
        fs, draft = self.store.fs, marker.draft_of(path)
        if hold is not None:
            lease = hold(objects.request(digits))
            try:
                fs.symlink(lease.place.payload, draft)
                check_unchanged(path, before)
                fs.rename(draft, path)
            except BaseException:
                marker.remove(fs, draft)
                lease.release()
                raise
            return Sharing.LINK
        held, form = self.lease(digits)
        try:
            with held as payload, open(payload, "rb", buffering=0) as source, marker.created(fs, draft) as fd:
                if form or not fs.clone(source.fileno(), fd):
                    return Sharing.COPY
                os.fchmod(fd, stat.S_IMODE(before.st_mode))
                os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            check_unchanged(path, before)
            fs.rename(draft, path)
        finally:
            marker.remove(fs, draft)
        return Sharing.REFLINK

    # -- reading -----------------------------------------------------------------------------------------------------

    def marker_of(self, target: str | os.PathLike[str] | Marker) -> Marker:
        """The marker that is meant: by an identifier, by its path, or by the path of its file. Raises UsageError."""
        found = meant(target)
        if isinstance(found, Marker):
            return found
        digits = self.archive.alias(found)
        if digits is None:
            raise UsageError(
                f"md5:{found} was not adopted", hint="`sc-dtool archive adopt DIR` adopts what a predecessor has"
            )
        return _anonymous(digits)

    def open(
        self,
        target: str | os.PathLike[str] | Marker,
        mode: str = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        offset: int = 0,
    ) -> IO[Any]:
        """Open what an identifier or a marker stands for, for reading from byte `offset` on; see `Cache.open`."""
        check_mode(mode)
        one = self.marker_of(target)
        raw = _Parts(self.lease, one)
        try:
            raw.seek(offset)
            buffered = io.BufferedReader(raw, 1 << 17)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
        except BaseException:
            raw.close()
            raise

    def copy_out(
        self,
        one: Marker,
        target: str,
        *,
        replace: bool,
        executable: bool | None = None,
        durable: bool = False,
        directory: int | None = None,
    ) -> None:
        """Write what a marker stands for to `target`, beside it first. Raises FileExistsError unless `replace`.

        If there is no room for it in the cache, or it is small and not there, it comes from the archive alone.
        `durable`: nothing else may be left of it, so it is read once more, and on stable storage, before it has its
        name. `directory`: that of `target`, opened.
        """
        place = target if directory is None else os.path.basename(target)
        draft = marker.draft_of(place)
        both: dict[str, Any] = {"src_dir_fd": directory, "dst_dir_fd": directory}
        try:
            mode = 0o777 if (one.executable if executable is None else executable) else 0o666
            with open(draft, "x+b", opener=partial(os.open, mode=mode, dir_fd=directory)) as file:
                self._write_out(one, file, target)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
                if (one.chunks or durable) and _digest_in(file) != one.sha256:
                    raise marker.damaged(one, target)
            if replace:
                _check_replaceable(place, target, directory)
                os.replace(draft, place, **both)
            else:
                try:
                    os.link(draft, place, **both)
                except OSError as error:
                    if isinstance(error, FileExistsError) or os.path.lexists(target):
                        raise FileExistsError(error.errno, error.strerror, target) from error
                    os.rename(draft, place, **both)  # no hard links here
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=directory)

    def _is_here(self, digits: str) -> bool:
        """Whether a listing shows a copy of an object, in whatever form."""
        keys = (objects.request(digits, form).key for form in self.archive.forms)
        return any(items.generations(self.store, key) for key in keys)

    def _write_out(self, one: Marker, file: IO[bytes], target: str) -> None:
        end = 0
        for part in one.parts:
            self._write_part(one, part, file, target)
            end += part.bytes
            if part.bytes >= 0 and file.seek(0, os.SEEK_END) != end:
                raise marker.damaged(one, target)

    def _write_part(self, one: Marker, part: Chunk, file: IO[bytes], target: str) -> None:
        def copy(pieces: Iterator[bytes]) -> None:
            size = 0
            for data in pieces:
                size += len(data)
                if 0 <= part.bytes < size:  # there need not be an end
                    raise marker.damaged(one, target)
                file.write(data)

        if 0 <= part.bytes <= _SMALL and not self._is_here(part.sha256):
            copy(self.archive.pieces(part.sha256))
            return
        try:
            lease, form = self.lease(part.sha256)
            with lease as path, open(path, "rb", buffering=0) as source:
                if form or len(one.parts) > 1 or not self.store.fs.clone(source.fileno(), file.fileno()):
                    copy(unpacked(source, form))
        except NoSpace as error:
            self.store.log.note(f"{error.message}; {objects.word(part.sha256)} is read from the archive alone")
            copy(self.archive.pieces(part.sha256))


def unpacked(file: io.FileIO, form: str) -> Iterator[bytes]:
    """The content of a copy from where it is read. Raises CacheError if it is damaged."""
    from sccache_dtool.fetch import compress

    try:
        yield from compress.unpack(iter(partial(file.read, CHUNK), b""), form)
    except compress.Damaged as error:
        raise CacheError(f"{file.name} is damaged: {error}", hint="sc-dtool doctor --verify-content --fix") from error


def _unpack_file(context: Context, staged: Staged, path: str, algorithm: str) -> dict[str, str]:
    """Decompress what is staged into the new file `path`; its digest."""
    with open(staged.path, "rb", buffering=0) as source, context.sink(path, (algorithm,)) as sink:
        for data in unpacked(source, staged.compression):
            sink.write(data)
    return sink.digests()


def meant(target: str | os.PathLike[str] | Marker) -> Marker | str:
    """What an identifier, a marker, or the path of one or of its file means, as far as can be told without an archive.

    It is the marker, or an MD5 by which a predecessor knew an object. Raises UsageError.
    """
    if isinstance(target, Marker):
        return target
    text = os.fspath(target)
    if not os.path.lexists(text):
        digits = objects.digits_of(text)
        if digits is not None:
            return _anonymous(digits)
        if re.fullmatch("(md5:)?[0-9a-fA-F]{32}", text):
            return text[-32:].lower()
        if re.match("(md5|sha256):", text) and not os.path.lexists(marker.path_for(text)):
            objects.check_word(text)
            raise UsageError(f"{printable(text[4:])!r} is not an MD5: expected 32 hexadecimal digits")
    return marker.find(text)[1]


def _anonymous(digits: str) -> Marker:
    """A marker of which nothing is known but the content."""
    return Marker(f"{OBJECT}-{digits[:8]}", digits, -1)


def check_unchanged(path: str, before: os.stat_result) -> None:
    """Raise CacheError if a file that was saved is not what it was any more."""
    now = os.stat(path)
    if now.st_ctime_ns != before.st_ctime_ns or not _is_same(now, before):
        raise _changed(path)


def remove(path: str, digits: str, before: os.stat_result) -> None:
    """Remove a file that was saved, and had the status `before`, if it is still that. Raises CacheError otherwise.

    It is given another name first: what others write to `path` meanwhile stays. If it was written so late that a later
    change in it need not show in its times, it is read once more.
    """
    check_unchanged(path, before)
    aside = marker.draft_of(path)
    os.rename(path, aside)
    try:
        is_settled = _STARTED - max(before.st_mtime, before.st_ctime) > _SETTLED
        if _is_same(os.stat(aside), before) and (is_settled or _digest_of(aside) == digits):
            os.unlink(aside)
            return
    except BaseException:
        _put_back(aside, path)
        raise
    _put_back(aside, path)
    raise _changed(path)


def _put_back(aside: str, path: str) -> None:
    """Give a file its name again. Raises CacheError, and leaves it, if there is another by now."""
    try:
        os.link(aside, path, follow_symlinks=False)
    except OSError as error:
        if isinstance(error, FileExistsError) or os.path.lexists(path):
            raise CacheError(
                f"{printable(path)} was replaced while it was removed", hint=f"the earlier one is {printable(aside)}"
            ) from error
        os.rename(aside, path)  # no hard links here
    else:
        os.unlink(aside)


def _is_same(now: os.stat_result, before: os.stat_result) -> bool:
    return (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def _changed(path: str) -> CacheError:
    return CacheError(f"{printable(path)} has changed since it was saved", hint="save it again")


def _check_replaceable(place: str, target: str, directory: int | None) -> None:
    """Raise UsageError if what would be replaced is a device, a FIFO or a socket."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(place, dir_fd=directory, follow_symlinks=False).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise UsageError(f"{printable(target)} is not a file", hint="to write to it: sc-dtool cat")


def check_mode(mode: str) -> None:
    """Raise ValueError for a mode that is not for reading: the marker would not be true any more."""
    if mode not in ("r", "rt", "tr", "rb", "br"):
        raise ValueError(f"mode {mode!r}: files of the cache are opened for reading, with 'r', 'rt' or 'rb'")


def files_below(path: str) -> list[str]:
    """The paths in a directory of all its files, sorted; links, markers' drafts and `.git` are left out."""
    found = []
    for directory, directories, names in os.walk(path, onerror=_raise):  # what is left out would be taken for saved
        directories[:] = [name for name in directories if not marker.is_reserved(name)]
        for name in names:
            whole = os.path.join(directory, name)
            if not marker.is_reserved(name) and stat.S_ISREG(os.lstat(whole).st_mode) and not marker.is_draft(name):
                found.append(os.path.relpath(whole, path))
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


class _Packed(io.RawIOBase):
    """The content of a compressed copy. A place is reached by reading on to it, from the beginning if it is before."""

    def __init__(self, path: str, form: str) -> None:
        super().__init__()
        self._file = io.FileIO(path)
        self._form = form
        self.size: int | None = None  # of the content; known once its end was reached
        self._start()

    def _start(self) -> None:
        self._file.seek(0)
        self._coming = unpacked(self._file, self._form)
        self._rest = memoryview(b"")
        self._at = 0

    def count(self) -> int:
        """Bytes of the content. If they are not known, everything is read."""
        while self.size is None:
            self._take(CHUNK)
        return self.size

    def _take(self, most: int) -> memoryview:
        """Up to so many of the next bytes; none at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._coming, b""))
            if not self._rest:
                self.size = self._at
        data, self._rest = self._rest[:most], self._rest[most:]
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if offset < self._at:
            self._start()
        while self._at < offset and self._take(offset - self._at):
            pass
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Parts(io.RawIOBase):
    """The bytes of one or more objects, one after the other; their leases are held until it is closed."""

    def __init__(self, lease: Callable[[str], tuple[Lease, str]], one: Marker) -> None:
        super().__init__()
        self._leases: list[Lease] = []
        self._forms: list[str] = []
        self._sizes: list[int | None] = []  # of the content, as far as they are known
        self._open: tuple[int, io.FileIO | _Packed] | None = None  # one at a time: there may be thousands
        self._at = 0
        try:
            for part in one.parts:
                held, form = lease(part.sha256)
                self._leases.append(held)
                self._forms.append(form)
                self._sizes.append(None)
            if len(self._leases) == 1:
                self._file(0)
        except BaseException:
            self.close()
            raise
        self.name = one.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._forms == [""]:
            return self._file(0).fileno()
        raise io.UnsupportedOperation("it is made of several files, or compressed")

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = self._at if whence == os.SEEK_CUR else 0
        if whence == os.SEEK_END:
            start = sum(map(self._count, range(len(self._leases))))
        if start + offset < 0:
            raise ValueError(f"negative offset {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        start = 0
        for number, form in enumerate(self._forms):
            size = self._sizes[number] if form else self._count(number)
            if size is None or self._at < start + size:
                file = self._file(number)
                file.seek(self._at - start)
                got = file.readinto(buffer) or 0
                self._at += got
                if got:
                    return got
            start += self._count(number)
        return 0

    def _file(self, number: int) -> io.FileIO | _Packed:
        """A part, opened."""
        if self._open is None or self._open[0] != number:
            self._close_file()
            path, form = self._leases[number].place.payload, self._forms[number]
            self._open = number, _Packed(path, form) if form else io.FileIO(path)
        return self._open[1]

    def _count(self, number: int) -> int:
        """Bytes of the content of a part."""
        size = self._sizes[number]
        if size is None:
            file = self._file(number)
            size = file.count() if isinstance(file, _Packed) else os.fstat(file.fileno()).st_size
            self._sizes[number] = size
        return size

    def _close_file(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        if self.closed:
            return
        self._close_file()
        for lease in self._leases:
            lease.give_back()
        super().close()

    def _dealloc_warn(self, source: object) -> None:
        """Called by the reader above, as on any raw file of `io`, if it is collected before it was closed."""
        warnings.warn(f"unclosed file of the cache: {source!r}", ResourceWarning, 2, source=source)


def _digest_of(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return _digest_in(file)


def _digest_in(file: IO[bytes] | io.FileIO) -> str:
    """That of a whole file, wherever it was read or written last."""
    digests = Digests([OBJECT])
    file.seek(0)
    while data := file.read(CHUNK):
        digests.update(data)
    return digests.hexdigests()[OBJECT]


@contextlib.contextmanager
def _temporary(data: bytes) -> Iterator[str]:
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="sc-dtool-") as file:
        file.write(data)
        file.flush()
        yield file.name


def _by() -> str:
    return f"{caller.user_name()}@{caller.host_name()}"


def _size_of(path: str) -> int:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        hint = "for all files in it: sc-dtool save -r" if stat.S_ISDIR(status.st_mode) else None
        raise UsageError(f"{printable(path)} is not a file", hint=hint)
    return status.st_size


def _is_executable(path: str) -> bool:
    return bool(os.stat(path).st_mode & stat.S_IXUSR)


def _earlier(place: str) -> Marker | None:
    """The marker that is at a place. Raises UsageError if something else is there."""
    try:
        return marker.read(place)
    except FileNotFoundError:
        return None
    except marker.NotMarker as error:
        raise UsageError(f"{printable(place)} is in the way: it is not a marker", hint="rename it") from error


def _project(path: str) -> str:
    """The name of the git repository that a file is in; empty if it is in none."""
    return _project_of(os.path.dirname(os.path.abspath(path)))


@lru_cache(maxsize=1024)
def _project_of(directory: str) -> str:
    if os.path.lexists(f"{directory}/.git"):
        return os.path.basename(directory)
    above = os.path.dirname(directory)
    return "" if above == directory else _project_of(above)


def parts_of(markers: Sequence[Marker]) -> list[str]:
    """The digests of all objects that markers name, sorted, each once."""
    return sorted({part.sha256 for one in markers for part in one.parts})
