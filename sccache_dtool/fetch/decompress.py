"""Decompressing one file: all of it, or an error; a file that was cut is never taken for a shorter one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Protocol

from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.errors import CacheError, FetchFailed
from sccache_dtool.fetch.reasons import why

#: Decompressed bytes that are in memory at once.
_PIECE = 1 << 20


class _Stream(Protocol):
    """One compressed stream; a file may have several, one after the other."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


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
    """What is compressed in an open file, all its streams one after the other, in pieces of a bounded size.

    Raises what the decompressor raises for damaged data, and EOFError for a file that ends too early.
    """
    make = _maker(kind)
    stream: _Stream | None = None
    any_stream = False
    padding = 0
    pending = b""
    while data := (pending or fs.read(reading, CHUNK)):
        pending = b""
        if stream is None:
            if any_stream:
                # Zeros between streams or after the last one: the padding of xz, the last block of a tape.
                rest = data.lstrip(b"\0")
                padding += len(data) - len(rest)
                if not rest:
                    continue
                data = rest
                _check_padding(kind, padding)
                padding = 0
            stream, any_stream = make(), True
        if piece := stream.decompress(data):
            yield piece
        while not stream.eof and (more := _rest(stream)):
            yield more
        if stream.eof:
            pending, stream = stream.unused_data, None
    if stream is not None or not any_stream:
        raise EOFError("it is truncated")
    _check_padding(kind, padding)


def require(kind: str, source: str) -> None:
    """Raise FetchFailed, with what to install, if this Python cannot decompress files of a kind."""
    lacking = missing(kind)
    if lacking is not None:
        what = "zstd is not installed" if kind == "zst" else f"this Python was built without {kind}"
        raise FetchFailed(f"cannot decompress {source}: {what}", hint=f"install it: {lacking}")


def missing(kind: str) -> str | None:
    """What to install for a kind of compression; None if nothing is missing."""
    modules = {"gz": "zlib", "bz2": "bz2", "xz": "lzma"}
    if kind in modules:
        try:
            import_module(modules[kind])
        except ImportError:
            return f"a Python that was built with {modules[kind]}"
        return None
    return None if _zstd() else "pip install zstandard"


def _check_padding(kind: str, size: int) -> None:
    if kind == "xz" and size % 4:
        raise EOFError(f"{size} bytes of padding, which must be a multiple of four")


def _rest(stream: _Stream) -> bytes:
    """What a stream with a limit per call still has to give without more input."""
    return stream.decompress(b"") if getattr(stream, "needs_input", True) is False else b""


class _Limited:
    """A stream that gives at most so many bytes a call: a small file may decompress to a very large one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._stream.unused_data)

    @property
    def needs_input(self) -> bool:
        return bool(self._stream.needs_input)

    def decompress(self, data: bytes, /) -> bytes:
        return bytes(self._stream.decompress(data, _PIECE))


class _Gzip:
    """zlib's decompressor in the manner of bz2's and lzma's."""

    def __init__(self) -> None:
        import zlib

        self._stream = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    def decompress(self, data: bytes, /) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, _PIECE)


def _maker(kind: str) -> Callable[[], _Stream]:
    if kind == "gz":
        return _Gzip
    if kind == "bz2":
        import bz2

        return lambda: _Limited(bz2.BZ2Decompressor())
    if kind == "xz":
        import lzma

        return lambda: _Limited(lzma.LZMADecompressor())
    make = _zstd()
    assert make is not None, "`require` comes first"
    return make


def _zstd() -> Callable[[], _Stream] | None:
    """Makes a decompressor of zstd: Python's own from 3.14 on, else that of the package zstandard."""
    try:
        module = import_module("compression.zstd")
    except ImportError:
        pass
    else:
        return lambda: _Limited(module.ZstdDecompressor())
    try:
        module = import_module("zstandard")
    except ImportError:
        return None
    return lambda: _Sipping(module.ZstdDecompressor().decompressobj())


class _Sipping:
    """A stream without a limit per call is given little at a time: a block of 128 KiB may be four bytes long."""

    _SIP = 1024

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._data = b""
        self._at = 0

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._stream.unused_data) + self._data[self._at :]

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._data)

    def decompress(self, data: bytes, /) -> bytes:
        if data:
            self._data, self._at = self._data[self._at :] + data, 0
        made = []
        size = 0
        while not self.eof and not self.needs_input and size < _PIECE:
            sip = self._data[self._at : self._at + self._SIP]
            self._at += len(sip)
            made.append(self._stream.decompress(sip))
            size += len(made[-1])
        return b"".join(made)
