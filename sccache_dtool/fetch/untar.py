"""Reading a tar archive: everything that GNU tar would unpack from it, or an error of one line.

`tarfile` parses the headers; it does not write. It takes a damaged header, or the end of a truncated file, for the end
of the archive, which is corrected here. `extraction` decides what a member may do to the disk.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator

from sccache_dtool.disk.extraction import Extraction, Parts, Refused
from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import decompress
from sccache_dtool.fetch.archives import member_named, unpacking
from sccache_dtool.fetch.reasons import why

#: How compressed files begin, and the step that decompresses them.
_COMPRESSED = (
    (b"\x1f\x8b", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "xz"),  # the older format of xz, .lzma
    (b"\x28\xb5\x2f\xfd", "zst"),
    *((bytes((0x50 + number, 0x2A, 0x4D, 0x18)), "zst") for number in range(16)),  # a skippable frame comes first
)

#: How files begin that GNU tar has another program for, and that are refused by name.
_UNKNOWN = ((b"LZIP", "lzip"), (b"\x89LZO", "lzop"), (b"\x1f\x9d", "compress"), (b"\x1f\xa0", "compress"))

#: The magic of GNU's own format, and of its oldest.
_GNU_MAGIC = b"ustar  \0"

#: Bytes of all headers of one member: its names, its extended attributes, where its holes are.
_MOST_OF_HEADERS = 16 << 20

# Types of members that only GNU tar writes, and `tarfile` does not know.
_DUMP_DIRECTORY = b"D"  # of an incremental dump: a directory, with a list of its files as its data
_CONTINUED = b"M"  # the rest of a file whose beginning is in another volume
_NO_MEMBERS = (b"V", b"N")  # the label of the archive; a list of long names


def unpack(fs: FileSystem, path: str, directory: str, source: str) -> None:
    """Unpack the tar at `path`, compressed or not, into `directory`, which is made; `source` is shown in errors.

    Raises FetchFailed for an archive that is damaged, truncated or not a tar, and for members that have an absolute
    name, lead outside, or are devices or FIFOs. Raises OSError if there is no space left. What was unpacked until then
    is left in `directory`.
    """
    fd = fs.open(path)
    try:
        with unpacking(fs, directory, source) as extraction:
            kind = _compression(fd, source)
            pieces = iter(lambda: fs.read(fd, CHUNK), b"") if kind is None else decompress.pieces(fs, fd, kind)
            stream = _Stream(pieces, source, proves_its_end=kind is not None)
            with _open(stream, source) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them in memory
                    stream.begin_member()
                    with member_named(member.name):
                        _unpack(fs, extraction, stream, member)
            while stream.some(CHUNK):  # the checksums are at the end
                pass
    finally:
        fs.close(fd)


def _compression(fd: int, source: str) -> str | None:
    """How an archive is compressed, by the step that undoes it; None if it is not."""
    begin = os.pread(fd, 8, 0)
    for magic, program in _UNKNOWN:
        if begin.startswith(magic):
            raise FetchFailed(
                f"cannot unpack {source}: it is compressed with {program}, which is not supported",
                hint="a tar may be plain, or compressed with gzip, bzip2, xz or zstd",
            )
    for magic, kind in _COMPRESSED:
        if begin.startswith(magic):
            decompress.require(kind, source)
            return kind
    return None


def _open(stream: _Stream, source: str) -> tarfile.TarFile:
    try:
        return tarfile.TarFile(fileobj=stream, mode="r", tarinfo=_Member)  # type: ignore[arg-type]
    except tarfile.ReadError as error:
        raise FetchFailed(
            f"cannot unpack {source}: it is not a tar archive, or its first block is damaged",
            hint="a tar may be plain, or compressed with gzip, bzip2, xz or zstd",
        ) from error


class _Stream:
    """Pieces of bytes as a file that is read forward; what is skipped is read, because the checksums are at the end."""

    def __init__(self, pieces: Iterator[bytes], source: str, *, proves_its_end: bool) -> None:
        """`proves_its_end`: whether `pieces` raises an error where something is missing at the end."""
        self.proves_its_end = proves_its_end
        self._pieces = pieces
        self._source = source
        self._piece = b""
        self._used = 0  # bytes of the piece
        self._position = 0
        self._of_headers = 0  # bytes that were read of the next member's

    def begin_member(self) -> None:
        """What is read from now on are the headers of another member."""
        self._of_headers = 0

    def read(self, size: int) -> bytes:
        """`size` bytes of headers, for `tarfile`, which keeps them in memory; fewer only at the end."""
        self._of_headers += size
        if self._of_headers > _MOST_OF_HEADERS:
            raise FetchFailed(
                f"cannot unpack {self._source}: a member has headers of more than {_MOST_OF_HEADERS >> 20} MiB"
            )
        parts = []
        while size > 0 and (part := self.some(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def some(self, most: int) -> bytes:
        """At most so many bytes; none only at the end."""
        while self._used == len(self._piece):
            self._piece, self._used = self._next(), 0
            if not self._piece:
                return b""
        part = self._piece[self._used : self._used + most]
        self._used += len(part)
        self._position += len(part)
        return part

    def _next(self) -> bytes:
        try:
            return next(self._pieces, b"")
        except Exception as error:  # zlib.error and the like, which `tarfile` would take for something else
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FetchFailed(f"cannot unpack {self._source}: {why(error)}") from error

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Go forward to a position, or to the end if that comes first. Raises ReadError for one that was passed."""
        if position < self._position:
            raise tarfile.ReadError("a header of a member points back into the archive")
        while position > self._position and self.some(min(position - self._position, CHUNK)):
            pass


class _Member(tarfile.TarInfo):
    """A member of an archive whose damaged headers are errors wherever they are, not the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0:
            raise tarfile.InvalidHeaderError("negative size")  # type: ignore[attr-defined]
        if bytes(buf[257:265]) == _GNU_MAGIC:
            # GNU's format has times where POSIX has the front of the name, and `tarfile` takes them for that.
            member.name = bytes(buf[:100]).partition(b"\0")[0].decode(encoding, errors)
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        at = archive.offset
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros that ends each archive
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            if at and getattr(
                archive.fileobj, "proves_its_end", False
            ):  # some programs write no end, and nothing is missing
                raise tarfile.EOFHeaderError("end of file") from error  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"it is truncated: no end of archive after {at} bytes") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header of a member, at byte {at}: {error}") from error


def _unpack(fs: FileSystem, extraction: Extraction, stream: _Stream, member: tarfile.TarInfo) -> None:
    if member.type in _NO_MEMBERS:
        return
    if member.type == _CONTINUED:
        raise Refused("it continues a file of another volume of the archive")
    path = _parts(member.name)
    if member.isdir() or member.type == _DUMP_DIRECTORY or (member.isreg() and member.name.endswith("/")):
        extraction.directory(path, member.mtime)
    elif member.issym():
        extraction.symlink(path, member.linkname)
    elif member.islnk():
        extraction.hard_link(path, _parts(member.linkname, "the target of the hard link"))
    elif member.isdev():
        raise Refused("it is a special file")
    else:  # a type that nobody knows is a file, says POSIX
        with extraction.file(path, member.mode, member.mtime) as fd:
            stream.seek(member.offset_data)
            parts: list[tuple[int, int]] | None = member.sparse  # type: ignore[assignment]
            for offset, size in [(0, member.size)] if parts is None else parts:
                os.lseek(fd, offset, os.SEEK_SET)
                _copy(fs, stream, fd, size)
            if parts is not None:
                os.ftruncate(fd, member.size)


def _copy(fs: FileSystem, stream: _Stream, fd: int, size: int) -> None:
    while size > 0:
        data = stream.some(min(size, CHUNK))
        if not data:
            raise tarfile.ReadError("it is truncated: unexpected end of data")
        fs.write(fd, data)
        size -= len(data)


def _parts(path: str, what: str = "its name") -> Parts:
    """The components of a name. Raises Refused for an absolute one and, like GNU tar, for one with ``..``."""
    if path.startswith("/"):
        raise Refused(f"{what} is absolute")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise Refused(f"{what} has '..' in it")
    return parts
