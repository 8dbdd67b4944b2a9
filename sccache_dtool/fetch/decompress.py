"""Decompressing one file: all of it, or an error; a file that was cut is never taken for a shorter one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.errors import CacheError, FetchFailed
from sccache_dtool.fetch.reasons import why

#: The kinds of compression, each of which is a step, and what decompresses them. From Python 3.14 on, that of zstd is
#: in the standard library.
MODULES = {
    "gz": "zlib",
    "bz2": "bz2",
    "xz": "lzma",
    "zst": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
}

#: The zeros that may follow a stream: their number is a multiple of this. The programs of these kinds accept them, as
#: the padding of xz or the last block of a tape; zstd refuses them.
_PADDING = {"gz": 1, "bz2": 1, "xz": 4}


def decompress(fs: FileSystem, kind: str, path: str, target: str, source: str) -> None:
    """Decompress the file at `path` into the new file `target`; `kind`: gz, bz2, xz or zst.

    Raises FetchFailed for a file that is damaged, cut, or of another kind, with `source` in the message; OSError for
    what the file system refuses.
    """
    require(kind, source)
    reading = fs.open(path)
    try:
        writing = fs.create(target)
        try:
            for piece in pieces(fs, reading, kind):
                fs.write(writing, piece)
        finally:
            fs.close(writing)
    except CacheError:
        raise
    except Exception as error:  # damaged data raises zlib.error, LZMAError, ZstdError, EOFError, OSError without errno
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FetchFailed(f"cannot decompress {source} with {kind}: {why(error)}") from error
    finally:
        fs.close(reading)


def pieces(fs: FileSystem, reading: int, kind: str) -> Iterator[bytes]:
    """What is compressed in an open file, all its streams one after the other, in pieces of at most CHUNK bytes.

    Raises what the decompressor raises for damaged data and for what follows the last stream, and EOFError for a file
    that ends too early.
    """
    streams = Streams(kind)
    while data := fs.read(reading, CHUNK):
        yield from streams.feed(data)
    streams.end()


class Streams:
    """Decompresses what it is fed: streams of one kind, one after the other."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._stream = _stream(kind)
        self._ended = False  # whether a stream has ended and no other has begun
        self._zeros = 0  # since then

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes of more compressed bytes, in pieces of at most CHUNK bytes; see `pieces` for what it raises."""
        while data:
            if self._ended:
                if self._kind in _PADDING:
                    data, size = data.lstrip(b"\0"), len(data)
                    self._zeros += size - len(data)
                    if not data:
                        break
                    _check_padding(self._kind, self._zeros)
                self._stream, self._ended, self._zeros = _stream(self._kind), False, 0
            stream = self._stream
            piece = stream.decompress(data, CHUNK)
            while piece or not (stream.eof or stream.needs_input):
                if piece:
                    yield piece
                piece = b"" if stream.eof or stream.needs_input else stream.decompress(b"", CHUNK)
            self._ended = stream.eof
            data = stream.unused_data if self._ended else b""

    def end(self) -> None:
        """Raise EOFError if something is missing."""
        if not self._ended:
            raise EOFError("it is truncated")
        _check_padding(self._kind, self._zeros)


def require(kind: str, source: str) -> None:
    """Raise FetchFailed, with what to install, if this Python cannot decompress files of a kind."""
    lacking = missing(kind)
    if lacking is not None:
        what = "zstd is not installed" if kind == "zst" else f"this Python was built without {kind}"
        raise FetchFailed(f"cannot decompress {source}: {what}", hint=f"install it: {lacking}")


def missing(kind: str) -> str | None:
    """What to install for a kind of compression; None if nothing is missing."""
    module = MODULES[kind]
    try:
        import_module(module)
    except ImportError:
        return f"pip install {module}" if "backports" in module else f"a Python that was built with {module}"
    return None


def _check_padding(kind: str, size: int) -> None:
    if size and size % _PADDING[kind]:
        raise EOFError(f"{size} bytes of padding, which must be a multiple of four")


def _stream(kind: str) -> Any:
    """A decompressor for one stream of a kind for which nothing is missing, as the standard library's for bz2 is.

    A file may have several streams, one after the other.
    """
    module = import_module(MODULES[kind])
    if kind == "gz":
        return _Gzip(module.decompressobj(wbits=31))
    if kind == "bz2":
        return module.BZ2Decompressor()
    if kind == "xz":
        return module.LZMADecompressor()
    # Windows of up to 2 GiB (`zstd --long=31`). Memory is taken for what has been decompressed, up to the window.
    parameter = module.DecompressionParameter.window_log_max
    return module.ZstdDecompressor(options={parameter: parameter.bounds()[1]})


class _Gzip:
    """zlib's decompressor with the methods of the others; it also checks the checksums of gzip."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._stream.decompress(self._stream.unconsumed_tail + data, max_length))
