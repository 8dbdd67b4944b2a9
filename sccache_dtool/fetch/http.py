"""http and https: streamed, tried again when that may help, and continued where it broke off.

This module is imported only where something is fetched: `requests` costs a tenth of a second. It retrieves what people
expect of a client: proxies from the environment, ~/.netrc, certificates.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from email.message import Message
from email.utils import collapse_rfc2231_value
from http.client import HTTPException, IncompleteRead
from typing import NamedTuple

import requests
import urllib3
from requests.exceptions import InvalidHeader
from requests.utils import get_netrc_auth

from sccache_dtool.errors import CacheError, FetchFailed
from sccache_dtool.fetch import codings, transport
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.partial import Origin, Partial, is_version
from sccache_dtool.fetch.reasons import CONTROL, causes, plain, why
from sccache_dtool.fetch.request import Source
from sccache_dtool.fetch.retry import GaveUp, Temporary, http_date, persist, retry_after
from sccache_dtool.fetch.transport import unfolded
from sccache_dtool.fetch.urls import path_of, readable
from sccache_dtool.fetch.words import EXTENSION

#: Seconds to wait for a connection, and for the next bytes on it.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0

#: Seconds to wait for an answer that may be done without: how large a file is, before it is fetched.
SIZE_TIMEOUT = 10.0

#: Bytes per read from the network: small enough that progress is seen on a slow line.
NETWORK_CHUNK = 1 << 17

#: Bytes per read on a fast line, and how fast that is, in bytes a second.
LARGE_CHUNK = 1 << 20
FAST = 16 << 20
TRIED_FOR = 16 << 20

# Of the other 2xx none carries a whole file: accepted for later, no content, a part.
_WHOLE = frozenset({200, 203})
_PART = 206
_NOT_MODIFIED = 304
_NO_SUCH_FILE = frozenset({404, 410})
_BEYOND = 416  # the range begins at the end, or after it

#: Characters of a Content-Disposition that is read: `email` takes much longer for longer ones.
_LONGEST_DISPOSITION = 4096

#: Answers that may be others later: timeout, too early, too many requests, and the server's own troubles.
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})

#: Answers to a request whose credentials are missing, wrong, or have expired.
_REFUSED = frozenset({400, 401, 403})

# Files that are compressed themselves. Servers label them with their own compression, as if it were done on the way;
# what was asked for is the file, and curl and wget keep it, too.
_COMPRESSED = re.compile(r"\.(gz|tgz|bgz|svgz)\Z", re.ASCII | re.IGNORECASE)
_SIZE = r"\d{1,18}"
_RANGE = re.compile(rf"bytes[ =]\s*({_SIZE})-({_SIZE})/({_SIZE}|\*)", re.ASCII | re.IGNORECASE)
_NO_RANGE = re.compile(rf"bytes[ =]\s*\*/({_SIZE})", re.ASCII | re.IGNORECASE)
_TAG = re.compile('(W/)?"([^"]*)"')
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})", re.ASCII)


class Refusal(FetchFailed):
    """The server has answered, and not with the file; `status` says how."""

    status = 0


def retrieve(
    context: Context, source: Source, path: str, algorithms: Sequence[str], made: requests.Session | None = None
) -> Retrieved:
    """Download `source` to the new file `path`, by a session that is closed then.

    Raises FetchFailed, GaveUp, and OSError for what `path` refuses.
    """
    with made or transport.session() as session, Partial(context, path, algorithms, source) as partial:
        download = _Download(context, session, source, partial)
        persist(context, source.canonical, lambda: partial.size, download.attempt)
        return Retrieved(
            partial.digests(),
            download.announced,
            partial.resumed,
            decoded=download.decoded,
            name=download.name,
            version=download.version or _named_before(partial.origin),
        )


def is_unchanged(context: Context, source: Source, fact: Mapping[str, object]) -> bool:
    """Whether the server still has the version that `fact` describes; one conditional request (RFC 9110, 13.1).

    False if the server named no version when it was fetched. Raises FetchFailed or GaveUp if it cannot be asked. The
    request is a GET whose body is not read, because a URL that is signed for GET is refused for HEAD.
    """
    noted = {name: text for name in ("etag", "last_modified") if isinstance(text := fact.get(name), str)}
    if not noted or not all(is_version(text) for text in noted.values()):
        return False
    headers = {"Accept-Encoding": "identity"}
    if "etag" in noted:
        headers["If-None-Match"] = noted["etag"]
    else:
        headers["If-Modified-Since"] = noted["last_modified"]
    session = transport.session()

    def note(text: str) -> None:
        context.store.log.note(f"{source.canonical}: {text}")

    def ask() -> bool:
        with failures(source.canonical):
            response = transport.answer(session, source.location, headers, (CONNECT_TIMEOUT, READ_TIMEOUT), note)
        with response:
            if response.status_code in _WHOLE:  # it has changed, or the server does not know conditional requests
                given = named_version(response)
                return all(given.get(name) == text for name, text in noted.items())
            if response.status_code == _NOT_MODIFIED:
                return True
            raise _refusal(source, response)

    with session:
        return persist(context, source.canonical, lambda: 0, ask)


def has_credentials(source: Source) -> bool:
    """Whether a request for `source` says who asks: by the URL, or by ~/.netrc."""
    return source.location != source.canonical or get_netrc_auth(source.canonical) is not None


def named_version(response: requests.Response) -> dict[str, str]:
    """What the server calls the version that it sends, for `item.json`. A weak ETag, too, tells whether it changed."""
    texts = {"etag": _header(response, "ETag"), "last_modified": _settled_date(response) or ""}
    return {name: text for name, text in texts.items() if is_version(text)}


def _named_before(origin: Origin | None) -> dict[str, str]:
    """The same for a download that was complete when it was taken over, so that nothing more was asked."""
    validator = None if origin is None else origin.validator
    if validator is None:
        return {}
    return {"etag" if validator.startswith('"') else "last_modified": validator}


def announced(source: Source) -> int | None:
    """Bytes that the server says `source` has, without fetching it; None if it does not say. Raises nothing."""
    try:
        with transport.session() as session:
            headers, timeout = {"Accept-Encoding": "identity"}, (SIZE_TIMEOUT, SIZE_TIMEOUT)
            response = transport.answer(session, source.location, headers, timeout, lambda text: None, method="HEAD")
            return _length(response) if response.status_code in _WHOLE else None
    except Exception:  # whatever it is, fetching reports it
        return None


class _Download:
    """One file on its way; `attempt` may be called until it returns."""

    def __init__(self, context: Context, session: requests.Session, source: Source, partial: Partial) -> None:
        self.announced: int | None = None
        self.version: dict[str, str] = {}
        self.decoded = False
        self.name = partial.origin.name if partial.origin is not None else None
        self._context = context
        self._session = session
        self._source = source
        self._partial = partial
        self._notes: set[str] = set()

    def attempt(self) -> None:
        """Fetch what is missing. Raises Temporary or FetchFailed."""
        if self._partial.size and not self._partial.resumable:
            self._partial.restart()
        if not self._partial.complete:
            with self._failures():
                response = self._ask()
            with response:
                if self._is_expected(response):
                    self._receive(response)
                    return
        self.announced = self._partial.size  # nothing is missing
        self._partial.show(self._partial.size)

    def _ask(self) -> requests.Response:
        """The answer to a request for what is missing, its body still to be read."""
        headers = {"Accept-Encoding": "identity"}  # what is stored and checked is the file, not a coding of it
        partial = self._partial
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
            if partial.origin is not None and partial.origin.validator:
                headers["If-Range"] = partial.origin.validator
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
        return transport.answer(self._session, self._source.location, headers, timeout, self._note)

    def _is_expected(self, response: requests.Response) -> bool:
        """Whether the file, or the part of it that was asked for, comes; False if nothing is missing.

        Raises Temporary or FetchFailed for any other answer.
        """
        status, have = response.status_code, self._partial.size
        part = _part(response)
        is_all = part is not None and part.begin == 0 and part.end == part.total
        if status in _WHOLE or (status == _PART and (have or is_all)):
            return True
        if have and status == _BEYOND:
            end = _NO_RANGE.fullmatch(_header(response, "Content-Range"))
            if end is not None and int(end[1]) == have and self._is_same_version(response):
                self._partial.resumed = True
                return False
            self._partial.restart()
        raise _refusal(self._source, response, begun=have > 0)

    def _receive(self, response: requests.Response) -> None:
        partial = self._partial
        with self._failures():
            coming = _length(response)
        undo = self._codings(response)
        part = _part(response) if response.status_code == _PART else None
        if response.status_code == _PART and partial.size:
            self._continue(response, part, coming, coded=bool(undo))
        else:
            # Ranges count the bytes as they are sent, so what was decoded cannot be continued.
            self.name = self._given_name(response)
            version = Origin(self._source.canonical, _validator(response), coming, self.name)
            partial.begin(None if undo else version)
            self.announced = coming
        self.version = named_version(response)
        partial.show(None if undo else self.announced)
        pieces = codings.decoded(self._pieces(response, slowly=bool(undo)), undo)
        while True:
            with self._failures():  # no code of this program writes within
                data = next(pieces, None)
            if data is None:
                break
            partial.write(data)
        came = response.raw.tell()
        if coming is not None and came != coming:
            raise Temporary(f"received {came} bytes of {coming}")
        if part is not None and part.total is not None and part.end < part.total and partial.size == part.end:
            raise Temporary("the server sent only a part of the file")
        if not undo and self.announced is not None and partial.size != self.announced:
            partial.restart()
            raise Temporary(f"the parts do not add up to the {self.announced} bytes announced")

    def _codings(self, response: requests.Response) -> list[str]:
        """What has to be undone of what the server did to the file, in the order in which it was done.

        Raises FetchFailed for what cannot be undone, and would be stored in the place of the file.
        """
        applied = codings.named(_header(response, "Content-Encoding"))
        names = (self._source.name, _name_of(response.url), _disposition(response) or "")
        if self._context.as_sent or any(_COMPRESSED.search(name) for name in names):
            applied = []
        unknown = codings.unknown(applied)
        if unknown and not self._partial.algorithms:
            raise FetchFailed(
                f"cannot fetch {self._source.canonical}: the server sends it with Content-Encoding "
                f"{plain(', '.join(unknown))}, which was not requested and cannot be decoded here",
                hint="give a digest, such as sha256:…, to store the file as it is sent. To decode it: br needs the "
                "package brotli, and zstd needs Python 3.14 or urllib3[zstd]",
            )
        if unknown:
            applied = []  # the digest says whether that is the file
        self.decoded = bool(applied)
        transferred = codings.named(_header(response, "Transfer-Encoding"))
        if codings.unknown(transferred):
            raise FetchFailed(
                f"cannot fetch {self._source.canonical}: the server sends it with Transfer-Encoding "
                f"{plain(', '.join(transferred))}, which cannot be decoded here"
            )
        undo = [*applied, *transferred]
        if len(undo) > codings.MOST:
            raise FetchFailed(
                f"cannot fetch {self._source.canonical}: the server reports {len(undo)} content encodings; "
                f"at most {codings.MOST} are decoded"
            )
        return undo

    def _pieces(self, response: requests.Response, *, slowly: bool) -> Iterator[bytes]:
        """The body as it is sent; after a while in larger pieces, if the line is fast."""
        raw = response.raw
        if slowly or _length(response) is None:  # such a body is not read on where another stopped
            yield from raw.stream(NETWORK_CHUNK, decode_content=False)
            return
        clock, came = self._context.clock, 0
        began = clock.monotonic()
        for data in raw.stream(NETWORK_CHUNK, decode_content=False):
            yield data
            came += len(data)
            if came >= TRIED_FOR and came >= FAST * (clock.monotonic() - began):
                break
        yield from raw.stream(LARGE_CHUNK, decode_content=False)

    def _continue(self, response: requests.Response, part: _Part | None, coming: int | None, *, coded: bool) -> None:
        """Check that what comes is the rest of what there is; begin again from the start if it is not."""
        partial, origin = self._partial, self._partial.origin
        fits = (
            part is not None
            and origin is not None
            and not coded
            and part.begin == partial.size < part.end
            and (coming is None or coming == part.end - part.begin)
            and (part.total is None or part.end <= part.total)
            and (origin.length is None or part.total is None or origin.length == part.total)
            and self._is_same_version(response)
        )
        if part is None or origin is None or not fits:
            partial.restart()
            raise Temporary("the server sent another range than the one requested")
        partial.resumed = True
        self.announced = part.total if origin.length is None else origin.length

    def _is_same_version(self, response: requests.Response) -> bool:
        """Whether an answer can be of the version that there is a beginning of. The server has compared it, too."""
        validator = self._partial.origin.validator if self._partial.origin is not None else None
        if validator is None:
            return True
        if not validator.startswith('"'):
            return _header(response, "Last-Modified") in ("", validator)
        tag = _TAG.fullmatch(_header(response, "ETag"))
        return tag is None or f'"{tag[2]}"' == validator

    def _given_name(self, response: requests.Response) -> str | None:
        """What the server calls the file, where its URL does not: as `curl -OJL` and pip have it."""
        if not self._source.provisional:
            return None
        given = _disposition(response)
        if given is None and re.search(EXTENSION, name := _name_of(response.url)):
            given = name
        return given

    def _note(self, text: str) -> None:
        """Say something, once."""
        if text not in self._notes:
            self._notes.add(text)
            self._context.store.log.note(f"{self._source.canonical}: {text}")

    def _failures(self) -> contextlib.AbstractContextManager[None]:
        return failures(self._source.canonical, self.announced, self._partial.size)


@contextlib.contextmanager
def failures(source: str, announced: int | None = None, came: int = 0, failing: str = "cannot fetch") -> Iterator[None]:
    """Turn whatever requests, urllib3, ssl and http.client may raise into Temporary or FetchFailed.

    No code of this program may run or write within.
    """
    try:
        yield
    except CacheError:
        raise
    except Exception as error:
        reason = _network_reason(error, announced, came)
        if _may_pass(error):
            raise Temporary(reason) from error
        raise FetchFailed(f"{failing} {source}: {reason}") from error


def is_temporary(status: int) -> bool:
    """Whether an answer may be another one later."""
    return status in _TEMPORARY


def _refusal(source: Source, response: requests.Response, *, begun: bool = False) -> Temporary | FetchFailed:
    """What to raise for an answer without what was asked for: Temporary, or FetchFailed.

    `begun`: whether a part of the file has come, which is kept for a request with new credentials.
    """
    status = response.status_code
    reason = plain(f"the server answered {status} {response.reason or ''}")
    if status in _TEMPORARY or (begun and status == _BEYOND):
        return Temporary(reason, after=retry_after(response.headers.get("Retry-After")))
    if 300 <= status < 400 and status != _NOT_MODIFIED:
        reason += ", without a Location"
    message = f"cannot fetch {source.canonical}: {reason}"
    signed = source.location.partition("?")[2] != source.canonical.partition("?")[2]
    if status not in _REFUSED or (status == 400 and not signed):
        return _with_status(Refusal(message, shared=status in _NO_SUCH_FILE), status)
    hint = (
        "the credentials in the URL may have expired: give a new URL of the same file"
        if signed
        else "credentials are taken from the URL (https://USER:PASSWORD@HOST/…) or ~/.netrc, and never stored"
    )
    return GaveUp(message, hint=hint) if begun else _with_status(Refusal(message, hint=hint), status)


def _with_status(refusal: Refusal, status: int) -> Refusal:
    refusal.status = status
    return refusal


# -- what answers say --------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """What a Content-Range says: the first byte, what follows the last one, and the size of the whole if known."""

    begin: int
    end: int
    total: int | None


def _part(response: requests.Response) -> _Part | None:
    match = _RANGE.fullmatch(_header(response, "Content-Range"))
    if match is None:
        return None
    return _Part(int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3]))


def _header(response: requests.Response, name: str) -> str:
    """A header in one line; empty if it is not there."""
    return unfolded(response.headers.get(name, ""))


def _length(response: requests.Response) -> int | None:
    """Bytes that the server said it would send, encoded as they are sent.

    Raises requests' InvalidHeader for what is not a number (RFC 9112, 6.3): no end could be told from a cut.
    """
    text = response.headers.get("Content-Length")
    if text is None or "Transfer-Encoding" in response.headers:  # which overrides it
        return None
    length = text.partition(",")[0].strip()  # servers behind each other may each say it; urllib3 compares
    if re.fullmatch(_SIZE, length, re.ASCII) is None:
        raise InvalidHeader(f"the server announced {plain(text[:40])!r} bytes, which is not a number")
    return int(length)


def _validator(response: requests.Response) -> str | None:
    """What tells this version of the file from every other (RFC 9110, 8.8): a strong ETag, else a date that is one."""
    tag = _TAG.fullmatch(_header(response, "ETag"))
    return tag[0] if tag is not None and tag[1] is None else _settled_date(response)


def _settled_date(response: requests.Response) -> str | None:
    """The Last-Modified of a file that was not changed within the second in which it was sent.

    Another date tells no versions apart: the file may be changed once more in that second.
    """
    modified = _header(response, "Last-Modified")
    sent, changed = http_date(_header(response, "Date")), http_date(modified)
    return modified if sent is not None and changed is not None and sent - changed >= 1 else None


def _disposition(response: requests.Response) -> str | None:
    """The file name in Content-Disposition (RFC 6266), fit to be one; None without one."""
    value = _header(response, "Content-Disposition")
    if not value or len(value) > _LONGEST_DISPOSITION:
        return None
    message = Message()
    message["Content-Disposition"] = value
    try:
        names = [text for name, text in message.get_params([], "content-disposition") if name == "filename"]
    except ValueError:  # of a part whose number has thousands of digits
        return None
    names.sort(key=lambda text: not isinstance(text, tuple))  # ``filename*`` before ``filename``
    for text in names:
        try:
            name = collapse_rfc2231_value(text)
        except ValueError:  # of what is not in the character set that it names, or of that name
            continue
        with contextlib.suppress(UnicodeError):
            name = name.encode("latin-1").decode()  # what is not ASCII is UTF-8 nowadays
        name = CONTROL.sub("", re.split(r"[/\\]", name)[-1]).strip().lstrip(".")
        with contextlib.suppress(UnicodeError):
            if name.encode():
                return name
    return None


def _name_of(url: str) -> str:
    """The last part of the path of a URL, as people write it."""
    path = re.sub(r"[?#].*", "", url).partition("://")[2].partition("/")[2]
    return readable(path_of(f"/{path}").rpartition("/")[2])


# -- what went wrong ---------------------------------------------------------------------------------------------------


def _may_pass(error: BaseException) -> bool:
    """Whether a failure on the network is one that may be over soon."""
    led = list(causes(error))
    if any(_is_cut(cause) or isinstance(cause, codings.Cut) for cause in led):
        return True
    if any(isinstance(cause, requests.exceptions.SSLError | urllib3.exceptions.SSLError) for cause in led):
        return False
    for cause in led:
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_AGAIN
        tunnel = _TUNNEL.search(str(cause)) if isinstance(cause, OSError) else None
        if tunnel is not None:
            return int(tunnel[1]) in _TEMPORARY
    passing = (
        ConnectionError,
        TimeoutError,
        requests.ConnectionError,
        requests.Timeout,
        urllib3.exceptions.ProtocolError,
        urllib3.exceptions.TimeoutError,
    )
    return isinstance(error, passing) and not isinstance(error, requests.exceptions.InvalidProxyURL)


def _network_reason(error: BaseException, announced: int | None, came: int) -> str:
    led = list(causes(error))
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    if any(isinstance(cause, urllib3.exceptions.ReadTimeoutError) for cause in led):
        return f"no data for {READ_TIMEOUT:g} s"
    of = "" if announced is None else f" of {announced}"
    for cause in reversed(led):  # the innermost one is what the system said
        if _ended_early(cause):
            partial = getattr(cause, "partial", 0)  # what was decoded on the way is written later, and of another size
            return f"the connection ended early, after {max(came, partial if type(partial) is int else 0)}{of} bytes"
        if isinstance(cause, ConnectionResetError) or getattr(cause, "errno", None) == errno.ECONNRESET:
            return f"the connection was reset, after {came} bytes"
        if isinstance(cause, codings.Cut):
            return "the compressed response is truncated"
        if isinstance(cause, codings.CannotDecode | urllib3.exceptions.DecodeError):
            return "the response cannot be decoded as its Content-Encoding says"
        if isinstance(cause, HTTPException):
            return f"the server's answer is not valid HTTP ({type(cause).__name__})"
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException) and cause.strerror:
            return why(cause)
    known = isinstance(error, OSError | ValueError | urllib3.exceptions.HTTPError)
    return why(error) if known else plain(f"{type(error).__name__}: {error}")


def _is_cut(error: BaseException) -> bool:
    """Whether a TLS connection has ended without saying so. Some Pythons do not give it its class."""
    if isinstance(error, ssl.SSLError) and getattr(error, "reason", None) == "UNEXPECTED_EOF_WHILE_READING":
        return True
    return isinstance(error, ssl.SSLEOFError)


def _ended_early(error: BaseException) -> bool:
    """Whether an exception of one of the libraries says that the connection ended within a body."""
    return (
        (isinstance(error, IncompleteRead) and not isinstance(error, urllib3.exceptions.InvalidChunkLength))
        or _is_cut(error)
        or str(error) == "Response ended prematurely"  # of urllib3, with nothing else to go by
    )
