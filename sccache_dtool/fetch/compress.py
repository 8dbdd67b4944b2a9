"""Compressed objects: files of one of three kinds, written and read piece by piece, in little memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from sccache_dtool.disk.filesystem import CHUNK
from sccache_dtool.errors import CacheError
from sccache_dtool.fetch import decompress
from sccache_dtool.fetch.reasons import why
from sccache_dtool.fetch.sink import Digest, Sink

#: The first bytes of a member of a zip file, as `struct` reads them: the signature, flags, method, and sizes.
_HEAD = struct.Struct("<4s2xHH8xIIHH")


def preferred() -> str:
    """The kind in which this host compresses: zst where it is installed, zip elsewhere."""
    return "zip" if decompress.missing("zst") else "zst"


def unpack(coming: Iterable[bytes], kind: str) -> Iterator[bytes]:
    """What is compressed in these bytes, in pieces of at most CHUNK bytes; the bytes themselves if `kind` is empty.

    Raises Damaged, at the latest at the end, if they are something else.
    """
    if not kind:
        yield from coming
        return
    unpacker = _unpacker(kind)
    try:
        for data in coming:
            yield from unpacker.feed(data)
        unpacker.end()
    except (OSError, CacheError):
        raise
    except Exception as error:  # each decompressor has its own
        raise Damaged(f"not a complete {kind} file: {why(error)}") from error


class Damaged(Exception):
    """Bytes are not what their name says."""


class Compressing(Sink):
    """A Sink that compresses what it stores. Its size and its digests are those of what is written to it."""

    def __init__(self, *arguments: Any, kind: str) -> None:
        super().__init__(*arguments)
        self.kind = kind
        self._compressor = _compressor(kind)
        self._checksum = 0

    def _stored_as(self, data: bytes) -> bytes:
        return self._noted(self._compressor.compress(data))

    def _noted(self, data: bytes) -> bytes:
        self._checksum = zlib.crc32(data, self._checksum)
        self.stored += len(data)
        self.stored_checksum = f"{self._checksum:08x}"
        return data

    def skip(self, size: int, *, counted: bool = False) -> None:
        """See Sink. Zeros are compressed as other bytes are."""
        for at in range(0, size, CHUNK):
            self.write(bytes(min(CHUNK, size - at)))

    def finish(self) -> None:
        """Store what is still in memory; nothing can be written any more."""
        self._fs.write(self.fd, self._noted(self._compressor.flush()))


class DigestOfContent:
    """The digest of what is compressed in a file."""

    def __init__(self, digest: Digest, kind: str) -> None:
        self._digest = digest
        self._unpacker = _unpacker(kind)
        self._wrong = ""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes of the file. What is wrong with them is seen at the end."""
        if not self._wrong:
            try:
                for piece in self._unpacker.feed(data):
                    self._digest.update(piece)
            except Exception as error:
                self._wrong = why(error)

    def hexdigest(self) -> str:
        """The digest; a text that is none if the file is not compressed in this way, or not complete."""
        try:
            if not self._wrong:
                self._unpacker.end()
        except Exception as error:
            self._wrong = why(error)
        return f"(none: {self._wrong})" if self._wrong else self._digest.hexdigest()


class _Unpacker(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...

    def end(self) -> None: ...


def _unpacker(kind: str) -> _Unpacker:
    if kind == "zip":
        return _FirstMember()
    decompress.require(kind, f"objects that are compressed with {kind}")
    return decompress.Streams(kind)


class _FirstMember:
    """Reads the first member of a zip file from its beginning: what comes from a server cannot be read from its end."""

    def __init__(self) -> None:
        self._head = b""
        self._inflate: Any = None
        self._left: int | None = None  # of a member that is not compressed
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes of more bytes; nothing after the member. Raises ValueError for what is not a zip file."""
        if self._inflate is None and self._left is None:
            self._head += data
            data = self._begin()
        if self._inflate is not None and not self._ended:
            while piece := self._inflate.decompress(data, CHUNK):
                yield piece
                data = self._inflate.unconsumed_tail
            self._ended = self._inflate.eof
        elif self._left is not None and not self._ended:
            piece = data[: self._left]
            self._left -= len(piece)
            self._ended = not self._left
            if piece:
                yield piece

    def _begin(self) -> bytes:
        """What follows the head; nothing if not all of the head is there yet."""
        if not b"PK\3\4".startswith(self._head[:4]):
            raise ValueError("it is not a zip file")
        if len(self._head) < _HEAD.size:
            return b""
        _, flags, method, size, _, name, extra = _HEAD.unpack_from(self._head)
        if len(self._head) < _HEAD.size + name + extra:
            return b""
        if flags & 1 or method not in (0, 8) or (method == 0 and (flags & 8 or size == 0xFFFFFFFF)):
            raise ValueError("it is encrypted, or compressed in an unknown way")
        if method == 8:  # deflate
            self._inflate = zlib.decompressobj(wbits=-15)
        else:
            self._left, self._ended = size, not size
        return self._head[_HEAD.size + name + extra :]

    def end(self) -> None:
        """Raise EOFError if something is missing."""
        if not self._ended:
            raise EOFError("it is truncated")


def _compressor(kind: str) -> Any:
    """An object with `compress` and `flush`."""
    if kind == "zip":
        return _ZipWriter()
    if kind == "gz":
        return zlib.compressobj(wbits=31)
    from importlib import import_module

    return import_module(decompress.MODULES[kind]).ZstdCompressor()


class _ZipWriter:
    """Makes a zip file with one member, from its beginning to its end."""

    def __init__(self) -> None:
        import zipfile

        self._made = _Made()
        self._file: Any = zipfile.ZipFile(self._made, mode="w")  # type: ignore[call-overload]
        member = zipfile.ZipInfo("content")
        member.compress_type = zipfile.ZIP_DEFLATED
        self._member = self._file.open(member, "w", force_zip64=True)

    def compress(self, data: bytes) -> bytes:
        """What to store next."""
        self._member.write(data)
        return self._made.take()

    def flush(self) -> bytes:
        """The rest of the file."""
        self._member.close()
        self._file.close()
        return self._made.take()


class _Made:
    """What `zipfile` takes for a file that cannot be sought in."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
