"""Content codings and transfer codings: undoing what a server did to a body, and noticing one that is cut."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

#: What servers say of a body that is as it was stored: RFC 9110's identity, what gateways store with an object that
#: was uploaded in chunks, and names of character sets.
NOTHING = frozenset(
    {"", "identity", "none", "aws-chunked", "chunked", "binary", "7bit", "8bit", "utf-8", "utf8", "ascii", "us-ascii",
     "iso-8859-1", "latin1"}
)  # fmt: skip

#: Codings of one body that are undone, at most, as urllib3 has it.
MOST = 5

#: Bytes that come out of a decoder at once: a small body may become a very large file.
_AT_ONCE = 1 << 20

#: Bytes that a decoder is given at once if what comes out of it cannot be limited: ten may become 16 MiB.
_SIP = 64


class CannotDecode(ValueError):
    """A body that is not coded as its server says."""


class Cut(CannotDecode):
    """A body that ends before what it was coded with does."""


def named(text: str | None) -> list[str]:
    """The codings that a header names, in the order of their use, without those that change nothing."""
    names = (name.partition(";")[0].strip().lower() for name in (text or "").split(","))
    return [name for name in names if name not in NOTHING]


def unknown(names: Iterable[str]) -> list[str]:
    """Those among codings that cannot be undone here."""
    return [name for name in names if _decoder(name) is None]


def decoded(pieces: Iterable[bytes], names: Iterable[str]) -> Iterator[bytes]:
    """`pieces` with codings undone, of which none is unknown. Raises CannotDecode, perhaps after the last piece."""
    for name in reversed(list(names)):
        pieces = _undo(pieces, name)
    yield from pieces


def _undo(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    decoder = _decoder(name)
    assert decoder is not None
    empty = True
    for data in pieces:
        empty = empty and not data
        yield from decoder.decode(data)
    if not empty:  # an empty body is one, whatever it is said to be coded with
        yield from decoder.finish()


def _decoder(name: str) -> _Zlib | _Other | None:
    if name in ("gzip", "x-gzip"):
        return _Zlib(31)
    if name == "deflate":
        return _Zlib(15)
    from urllib3 import response

    return _Other(response._get_decoder(name)) if name in response.HTTPResponse.CONTENT_DECODERS else None


class _Zlib:
    """gzip, in one or several members; deflate, with zlib's header, or without, as some servers send it."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._one = zlib.decompressobj(window)
        self._began = self._padding = False
        self._held = b""  # a byte that says nothing without the next one

    def decode(self, data: bytes) -> Iterator[bytes]:
        data, self._held = self._held + data, b""
        while data and not self._padding:
            if len(data) < 2 and (self._one.eof or not self._began):
                self._held = data
                return
            if self._one.eof:
                self._padding = self._window != 31 or not data.startswith(b"\x1f\x8b")
                self._one = zlib.decompressobj(self._window) if not self._padding else self._one
                continue
            try:
                yield self._one.decompress(data, _AT_ONCE)
            except zlib.error as error:
                if self._window != 15 or self._began:
                    raise CannotDecode(str(error)) from error
                self._window = -15
                self._one = zlib.decompressobj(self._window)
                continue
            self._began = True
            data = self._one.unused_data or self._one.unconsumed_tail

    def finish(self) -> Iterator[bytes]:
        yield self._one.flush()
        if not self._one.eof:
            raise Cut("it is truncated")


class _Other:
    """What urllib3 can decode besides, with packages that need not be there."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._can_limit = hasattr(decoder, "has_unconsumed_tail")  # since urllib3 2.6, for packages that can

    def decode(self, data: bytes) -> Iterator[bytes]:
        for begin in range(0, len(data), _SIP):
            yield self._decompress(data[begin : begin + _SIP])
            while self._can_limit and self._decoder.has_unconsumed_tail:
                yield self._decompress(b"")

    def _decompress(self, data: bytes) -> bytes:
        from urllib3.exceptions import HTTPError

        limit = {"max_length": _AT_ONCE} if self._can_limit else {}
        try:
            return bytes(self._decoder.decompress(data, **limit))
        except HTTPError:
            raise
        except Exception as error:  # each package has errors of its own
            raise CannotDecode(str(error)) from error

    def finish(self) -> Iterator[bytes]:
        try:
            yield self._decoder.flush()
        except Exception as error:
            raise CannotDecode(str(error)) from error
        is_finished = getattr(getattr(self._decoder, "_obj", None), "is_finished", None)  # brotli's
        if is_finished is not None and not is_finished():
            raise Cut("it is truncated")
