"""Markers: small files in the users' own directories that stand for large ones, and are kept in version control.

A marker is JSON, one key in a line, so that git merges it line by line. It is known by what is in it, whatever it is
called. Fields that this release does not know are kept. Others write markers as well: nothing in one is trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import unique
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.fetch.objects import DIGITS

#: The value of the field `marker`, and the number of the form that this release reads and writes.
_MAGIC = "sc-dtool"
_FORMAT = 1

#: What the name of a marker ends with, if sc-dtool gives it.
SUFFIX = ".marker"

#: Bytes of a marker. A larger file is not one.
LARGEST = 1 << 20

#: Bytes of a file that are read to see whether it may be a marker: all of most markers.
_FIRST = 4096


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
        except (ValueError, RecursionError) as error:
            if re.search(r"^<<<<<<< ", text, re.MULTILINE) and f'"{_MAGIC} ' in text:
                raise UsageError(
                    f"{printable(path)} has a merge conflict", hint="resolve it, as in any other file"
                ) from error
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
            raise UsageError(f"{printable(path)} is damaged", hint="take an earlier version of it from version control")
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
    with open(path, "rb", buffering=0) as file:
        data = file.read(_FIRST)
        if data[:1] not in (b"{", b"<", b" ", b"\n", b"\t", b"\r"):  # nor is it JSON, or a conflict
            raise NotMarker(f"{printable(path)} is not a marker")
        while _FIRST <= len(data) <= LARGEST and (more := file.read(LARGEST)):
            data += more
    if len(data) > LARGEST:
        raise NotMarker(f"{printable(path)} is not a marker")
    return Marker.decode(data.decode("utf-8", "surrogateescape"), path)


def read_if_marker(path: str) -> Marker | None:
    """The marker in a file; None if the file is something else. Looks at its first bytes only, unless they fit."""
    try:
        return read(path)
    except (NotMarker, OSError):
        return None


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
    """Write a marker, by one rename; the permissions of an earlier one are kept."""
    replace(fs, path, marker.encode().encode("utf-8", "surrogateescape"))


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
    return os.path.join(directory, f".{name[:200]}.{unique()}.part")


def is_draft(name: str) -> bool:
    """Whether a name was made by `draft_of`."""
    return re.fullmatch(r"\..*\.[0-9a-f]{16}\.part", name, re.DOTALL) is not None


def check_comment(comment: str | None, longest: int) -> str | None:
    """The comment. Raises UsageError for one that cannot be stored."""
    if comment is not None and (len(comment) > longest or "\x00" in comment):
        raise UsageError(f"a comment has at most {longest} characters")
    return comment


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\x00" not in name


def _is_object(part: Sequence[object]) -> bool:
    digits, size = part
    return (
        isinstance(digits, str)
        and re.fullmatch(DIGITS, digits) is not None
        and isinstance(size, int)
        and not isinstance(size, bool)
        and 0 <= size < 1 << 60
    )


def damaged(marker: Marker, path: str) -> CacheError:
    """The error for parts that, put together, are not the file of the marker."""
    return CacheError(
        f"the parts of {printable(path)} are not the file that its marker stands for (sha256 {marker.sha256})",
        hint="take an earlier version of the marker from version control",
    )
