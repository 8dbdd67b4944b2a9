"""Markers: small files in the users' own directories that stand for large ones, and are kept in version control.

A marker is JSON, one key in a line, so that git merges it line by line. It is known by what is in it, whatever it is
called. Fields that this release does not know are kept. Others write markers as well: nothing in one is trusted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shlex
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from typing import IO, Any, NamedTuple

from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import CONTROL, unique
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import CacheError, UsageError, translate
from sccache_dtool.fetch.objects import DIGITS

#: The value of the field `marker`, and the number of the form that this release reads and writes.
_MAGIC = "sc-dtool"
_FORMAT = 1

#: What the name of a marker ends with, if sc-dtool gives it.
SUFFIX = ".marker"

#: Bytes of a marker. A larger file is not one.
LARGEST = 1 << 20

#: Names, in lower case, that nothing is given which a marker stands for: git runs commands that files in such a
#: directory name. The last is what FAT calls the first.
_RESERVED = frozenset({".git", CONTROL, "git~1"})


#: Seconds to wait for another process that changes a marker.
_PATIENCE = 30.0


class NotMarker(UsageError):
    """The file is not a marker."""


class Chunk(NamedTuple):
    """A part of a file to which data was appended: an object of its own."""

    sha256: str
    bytes: int


class Marker(NamedTuple):
    """What a marker says. `sha256` and `bytes` are those of the whole file, whether or not it has chunks."""

    name: str
    sha256: str
    bytes: int
    executable: bool = False
    comment: str = ""
    chunks: tuple[Chunk, ...] = ()
    directory: bool = False  # whether the object is a list of the files of a directory
    more: Mapping[str, Any] = {}  # fields of later releases

    @property
    def parts(self) -> tuple[Chunk, ...]:
        """The objects whose bytes, one after the other, are the file."""
        return self.chunks or (Chunk(self.sha256, self.bytes),)

    @classmethod
    def decode(cls, text: str, path: str) -> Marker:
        """The marker with this text. Raises NotMarker, or UsageError for one that this release cannot read."""
        try:
            fields = json.loads(text)
            json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except (ValueError, RecursionError) as error:
            if re.search(r"^<<<<<<< ", text, re.MULTILINE) and f'"{_MAGIC} ' in text:
                raise UsageError(
                    f"{printable(path)} has a merge conflict", hint="resolve it, as in any other file"
                ) from error
            if re.search(rf'^\s*"marker": "{_MAGIC} ', text, re.MULTILINE):
                raise _damaged(path) from error
            raise NotMarker(f"{printable(path)} is not a marker") from error
        magic = fields.get("marker") if isinstance(fields, dict) else None
        number = re.fullmatch(rf"{_MAGIC} ([0-9]{{1,6}})", magic) if isinstance(magic, str) else None
        if number is None:
            raise NotMarker(f"{printable(path)} is not a marker")
        if int(number[1]) > _FORMAT:
            raise UsageError(
                f"{printable(path)} was written by a later release of sc-dtool (form {number[1]}, not {_FORMAT})",
                hint="install that release",
            )
        name, digits, size = fields.get("name"), fields.get("sha256"), fields.get("bytes")
        chunks = fields.get("chunks") or []
        fits = isinstance(chunks, list) and all(isinstance(one, dict) for one in chunks)
        parts = tuple(Chunk(one.get("sha256"), one.get("bytes")) for one in chunks) if fits else ()
        if not (fits and _is_name(name) and all(map(_is_object, ((digits, size), *parts)))) or (
            parts and sum(part.bytes for part in parts) != size
        ):
            raise _damaged(path)
        comment = fields.get("comment")
        known = {*cls._fields, "marker"} - {"more"}
        return cls(
            name,
            digits,
            size,
            fields.get("executable") is True,
            comment if isinstance(comment, str) else "",
            parts,
            fields.get("directory") is True,
            {key: value for key, value in fields.items() if key not in known},
        )

    def encode(self) -> str:
        """The text of the file."""
        fields: dict[str, Any] = {
            **self.more,
            "bytes": self.bytes,
            "chunks": [part._asdict() for part in self.chunks] or None,
            "comment": self.comment,
            "executable": self.executable,
            "marker": f"{_MAGIC} {_FORMAT}",
            "name": self.name,
            "sha256": self.sha256,
        }
        if self.directory:
            fields["directory"] = True
        return json.dumps(fields, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def path_for(path: str) -> str:
    """Where the marker of a file is."""
    return path.rstrip("/") + SUFFIX


def target_of(path: str, marker: Marker) -> str:
    """The file that a marker stands for: beside it, named as it is without the suffix, or else as it says."""
    directory, name = os.path.split(path)
    stem = name.removesuffix(SUFFIX)
    return os.path.join(directory, stem if stem not in ("", name) else marker.name)


def read(path: str) -> Marker:
    """The marker in a file. Raises NotMarker, UsageError or OSError."""
    with open_regular(path) as file:
        return _read(file, path)


def _read(file: IO[bytes], path: str, begin: bytes = b"") -> Marker:
    data = begin + file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise NotMarker(f"{printable(path)} is not a marker")
    return Marker.decode(data.decode("utf-8", "surrogateescape"), path)


def open_regular(path: str) -> BufferedReader:
    """Open a regular file for reading. Raises OSError for anything else: others may have put a FIFO there."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", path)
    return file


def read_if_marker(path: str) -> Marker | None:
    """The marker in a file; None if the file is something else. Looks at its first bytes only, unless they fit.

    Raises CacheError for a file that may be a marker, and cannot be read.
    """
    try:
        with open_regular(path) as file:
            begin = file.read(1)
            return _read(file, path, begin) if begin in (b"{", b"<") else None
    except (NotMarker, FileNotFoundError):
        return None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EINVAL) and not path.endswith(SUFFIX):
            return None
        raise translate(error) from error


def find(path: str) -> tuple[str, Marker]:
    """The marker that `path` is, or that is beside the file `path`, with its place. Raises NotMarker or OSError."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotMarker):
        return path, read(path)
    beside = path_for(path)
    try:
        return beside, read(beside)
    except FileNotFoundError as error:
        if not os.path.lexists(path):
            raise NotMarker(f"{printable(path)} does not exist, and there is no marker for it") from error
        raise NotMarker(
            f"{printable(path)} is not a marker, and there is none for it",
            hint=f"to write one: sc-dtool save {shlex.quote(path)}",
        ) from error


def write(fs: FileSystem, path: str, marker: Marker) -> None:
    """Write a marker, by one rename; the permissions of an earlier one are kept.

    Raises UsageError if it is too large to be read again.
    """
    data = marker.encode().encode("utf-8", "surrogateescape")
    if len(data) > LARGEST:
        raise UsageError(
            f"{printable(path)} would have more than {LARGEST:,} bytes: it has {len(marker.chunks):,} chunks",
            hint="restore the file, and save it again as a whole",
        )
    replace(fs, path, data)


@contextlib.contextmanager
def changing(path: str) -> Iterator[None]:
    """Keep other processes from changing a marker until the block ends, where the file system has locks (flock).

    Raises CacheError if another process does so for too long.
    """
    end = time.monotonic() + _PATIENCE
    with contextlib.ExitStack() as stack:
        while not _locked(path, stack):
            if time.monotonic() > end:
                raise CacheError(
                    f"another process has been changing {printable(path)} for {_PATIENCE:.0f} seconds",
                    hint="try again; `fuser` names the process",
                )
            time.sleep(0.02)
        yield


def _locked(path: str, stack: contextlib.ExitStack) -> bool:
    """Whether the file is locked, or cannot be."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it can be replaced all the same
        return True
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if not os.path.samestat(os.fstat(fd), os.stat(path)):  # it was replaced meanwhile
            return False
        stack.push(closing.pop_all())
        return True


def replace(fs: FileSystem, path: str, data: bytes) -> None:
    """Write a small file as a whole: a reader, or a crash, finds the earlier content or this."""
    draft = draft_of(path)
    try:
        with created(fs, draft) as fd:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(fd, os.stat(path).st_mode & 0o777)
            fs.write(fd, data)
            fs.sync(fd)
        fs.rename(draft, path)
    except BaseException:
        remove(fs, draft)
        raise


@contextlib.contextmanager
def created(fs: FileSystem, path: str, mode: int = 0o666) -> Iterator[int]:
    """The descriptor of a new file, which is closed at the end."""
    fd = fs.create(path, mode)
    try:
        yield fd
    finally:
        fs.close(fd)


def remove(fs: FileSystem, draft: str) -> None:
    """Remove a draft, if it is there and can be removed."""
    with contextlib.suppress(OSError):
        fs.unlink(draft)


def draft_of(path: str) -> str:
    """A name beside a file for what is to take its place."""
    directory, name = os.path.split(path)
    begin = os.fsdecode(os.fsencode(name)[:200])
    return os.path.join(directory, f".{begin}.{unique()}.part")


def is_draft(name: str) -> bool:
    """Whether a name was made by `draft_of`."""
    return re.fullmatch(r"\..*\.[0-9a-f]{16}\.part", name, re.DOTALL) is not None


def check_comment(comment: str | None, longest: int) -> str | None:
    """The comment. Raises UsageError for one that cannot be stored."""
    if comment is not None and (len(comment) > longest or "\x00" in comment):
        raise UsageError(f"a comment has at most {longest} characters")
    return comment


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and "\x00" not in name
        and not is_reserved(name)
    )


def is_reserved(name: str) -> bool:
    """Whether nothing that a marker stands for is given this name."""
    return name.lower() in _RESERVED


def _is_object(part: Sequence[object]) -> bool:
    digits, size = part
    return (
        isinstance(digits, str)
        and re.fullmatch(DIGITS, digits) is not None
        and isinstance(size, int)
        and not isinstance(size, bool)
        and 0 <= size < 1 << 60
    )


def _damaged(path: str) -> UsageError:
    return UsageError(f"{printable(path)} is damaged", hint="take an earlier version of it from version control")


def damaged(marker: Marker, path: str) -> CacheError:
    """The error for parts that, put together, are not the file of the marker."""
    return CacheError(
        f"the parts of {printable(path)} are not the file that its marker stands for (sha256 {marker.sha256})",
        hint="take an earlier version of the marker from version control",
    )
