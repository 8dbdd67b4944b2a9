"""http and https: streamed, tried again when that may help, and continued where it broke off.

`requests` is imported only where something is fetched: it costs a tenth of a second. It brings what people expect of
a client: proxies from the environment, ~/.netrc, redirects, certificates.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.attempts import Temporary, http_date, persist, retry_after
from sccache_dtool.fetch.job import Job, Retrieved
from sccache_dtool.fetch.partial import Origin, Partial
from sccache_dtool.fetch.reasons import plain, why
from sccache_dtool.fetch.words import Source

if TYPE_CHECKING:
    import requests
    from requests.auth import HTTPBasicAuth

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
_TRIED_FOR = 16 << 20

# Of the other 2xx none carries a whole file: accepted for later, no content, a part.
_WHOLE = frozenset({200, 203})
_PART = 206
_NOT_MODIFIED = 304
_NO_SUCH_FILE = frozenset({404, 410})
_BEYOND = 416  # the range begins at the end, or after it

#: Characters of an ETag or a date that is noted; a longer one is not.
_LONGEST_VERSION = 1000

#: Answers that may be others later: timeout, too early, too many requests, and the server's own troubles.
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})

# Files that are compressed themselves. Servers label them with their own compression, as if it were done on the way;
# what was asked for is the file, and curl and wget keep it, too.
_COMPRESSED = re.compile(r"\.(gz|tgz|bgz|svgz)\Z", re.ASCII | re.IGNORECASE)
_SIZE = r"\d{1,18}"
_RANGE = re.compile(rf"bytes ({_SIZE})-({_SIZE})/({_SIZE}|\*)", re.ASCII)


def retrieve(job: Job, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Download `source` to the new file `path`. Raises FetchFailed, GaveUp, and OSError for what `path` refuses."""
    import requests

    with requests.Session() as session, Partial(job, path, algorithms, source.canonical) as partial:
        download = _Download(job, session, source, partial)
        persist(job, source.canonical, lambda: partial.size, download.attempt)
        named = download.version or _named_before(partial.origin)
        return Retrieved(partial.digests(), download.announced, partial.resumed, named)


def is_unchanged(job: Job, source: Source, fact: Mapping[str, object]) -> bool:
    """Whether the server still has the version that `fact` describes; one conditional request (RFC 9110, 13.1).

    False if the server named no version when it was fetched. Raises FetchFailed or GaveUp if it cannot be asked. The
    request is a GET whose body is not read, because a URL that is signed for GET is refused for HEAD.
    """
    import requests
    import urllib3

    noted = {name: text for name in ("etag", "last_modified") if isinstance(text := fact.get(name), str)}
    if not noted or not all(_is_version(text) for text in noted.values()):
        return False
    headers = {"Accept-Encoding": "identity"}
    if "etag" in noted:
        headers["If-None-Match"] = noted["etag"]
    else:
        headers["If-Modified-Since"] = noted["last_modified"]

    def ask() -> bool:
        try:
            response = session.get(
                source.canonical,  # which has no user in it
                stream=True,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                headers=headers,
                auth=_user(source),
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            reason = _network_reason(error, None, 0)
            if _may_pass(error):
                raise Temporary(reason) from error
            raise FetchFailed(f"cannot fetch {source.canonical}: {reason}") from error
        with response:
            if response.status_code in _WHOLE:  # it has changed, or the server does not know conditional requests
                given = named_version(response)
                return all(given.get(name) == text for name, text in noted.items())
            if response.status_code == _NOT_MODIFIED:
                return True
            reason = plain(f"the server answered {response.status_code} {response.reason or ''}")
            if response.status_code in _TEMPORARY:
                raise Temporary(reason, after=retry_after(response.headers.get("Retry-After"), job.clock.wall()))
            raise FetchFailed(f"cannot fetch {source.canonical}: {reason}")

    with requests.Session() as session:
        return persist(job, source.canonical, lambda: 0, ask)


def has_credentials(source: Source) -> bool:
    """Whether a request for `source` says who asks: by the URL, or by ~/.netrc."""
    from requests.utils import get_netrc_auth

    return source.location != source.canonical or get_netrc_auth(source.canonical) is not None


def named_version(response: requests.Response) -> dict[str, str]:
    """What the server calls the version that it sends, for `item.json`. A weak ETag, too, tells whether it changed.

    A date within the second in which it was sent does not: the file may be changed once more in that second.
    """
    sent, changed = (http_date(response.headers.get(name, "")) for name in ("Date", "Last-Modified"))
    headers = {"etag": "ETag"}
    if sent is not None and changed is not None and sent - changed >= 1:
        headers["last_modified"] = "Last-Modified"
    texts = {name: response.headers.get(header, "").strip() for name, header in headers.items()}
    return {name: text for name, text in texts.items() if _is_version(text)}


def _is_version(text: str) -> bool:
    """Whether a text can be noted, and sent again: what is noted, others may have changed."""
    return text.isascii() and text.isprintable() and 0 < len(text) <= _LONGEST_VERSION


def _named_before(origin: Origin | None) -> dict[str, str]:
    """The same for a download that was complete when it was taken over, so that nothing more was asked."""
    validator = None if origin is None else origin.validator
    if validator is None:
        return {}
    return {"etag" if validator.startswith('"') else "last_modified": validator}


def announced(source: Source) -> int | None:
    """Bytes that the server says `source` has, without fetching it; None if it does not say. Raises nothing."""
    import requests

    try:
        with requests.Session() as session:
            response = session.head(
                source.canonical,  # which has no user in it
                allow_redirects=True,
                timeout=SIZE_TIMEOUT,
                headers={"Accept-Encoding": "identity"},
                auth=_user(source),
            )
            return _length(response) if response.status_code in _WHOLE else None
    except (requests.RequestException, ValueError):
        return None


class _Download:
    """One file on its way; `attempt` may be called until it returns."""

    def __init__(self, job: Job, session: requests.Session, source: Source, partial: Partial) -> None:
        self.announced: int | None = None
        self.version: dict[str, str] = {}
        self._job = job
        self._session = session
        self._source = source
        self._partial = partial
        self._shown = False

    def attempt(self) -> None:
        """Fetch what is missing. Raises Temporary or FetchFailed."""
        import requests
        import urllib3

        if self._partial.size and not self._partial.resumable:
            self._partial.restart()
        if self._partial.complete:
            self.announced = self._partial.size
            self._show(self._partial.size)
            return
        try:
            with self._ask() as response:
                self._receive(response)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _network_reason(error, self.announced, self._partial.size)
            if _may_pass(error):
                raise Temporary(reason) from error
            raise FetchFailed(f"cannot fetch {self._source.canonical}: {reason}") from error

    def _ask(self) -> requests.Response:
        """The answer, its body still to be read."""
        headers = {"Accept-Encoding": "identity"}  # what is stored and checked is the file, not a coding of it
        partial, have = self._partial, self._partial.size
        if have:
            headers["Range"] = f"bytes={have}-"
            if partial.origin is not None and partial.origin.validator:
                headers["If-Range"] = partial.origin.validator
        try:
            response = self._session.get(
                self._source.canonical,  # which has no user in it
                stream=True,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                headers=headers,
                auth=_user(self._source),
            )
        except ValueError as error:  # what requests lets through of a URL that cannot be read, here or redirected to
            raise FetchFailed(f"cannot fetch {self._source.canonical}: {why(error)}") from error
        status = response.status_code
        if status in _WHOLE or (have and status == _PART):
            return response
        after = retry_after(response.headers.get("Retry-After"), self._job.clock.wall())
        response.close()
        reason = plain(f"the server answered {status} {response.reason or ''}")
        if have and status == _BEYOND:
            partial.restart()
            raise Temporary(reason)
        if status in _TEMPORARY:
            raise Temporary(reason, after=after)
        hint = None
        if status in (401, 403):
            hint = "credentials are taken from the URL (https://USER:PASSWORD@HOST/…) or ~/.netrc, and never stored"
        raise FetchFailed(f"cannot fetch {self._source.canonical}: {reason}", hint=hint, shared=status in _NO_SUCH_FILE)

    def _receive(self, response: requests.Response) -> None:
        partial = self._partial
        decode = bool(_codings(response)) and not _COMPRESSED.search(self._source.name)
        if decode:
            self._check_codings(response)
        coming = _length(response)
        if response.status_code == _PART:
            self._continue(response, decode)
        else:
            # Ranges count the bytes as they are sent, so what was decoded cannot be continued.
            partial.begin(Origin(self._source.canonical, None if decode else _validator(response), coming))
            self.announced = coming
        self.version = named_version(response)
        if decode:
            self._show(None)
        else:
            self._show(self.announced)
        for data in self._pieces(response, decode):
            partial.write(data)
        came = response.raw.tell()
        if coming is not None and came != coming:
            raise Temporary(f"{came} bytes came, and {coming} were announced")
        if not decode and self.announced is not None and partial.size != self.announced:
            partial.restart()
            raise Temporary(f"the parts add up to another size than the {self.announced} bytes announced")

    def _check_codings(self, response: requests.Response) -> None:
        """Raise FetchFailed for a coding that would be left as it is, and be stored in the place of the file."""
        from urllib3.response import HTTPResponse

        unknown = [coding for coding in _codings(response) if coding not in HTTPResponse.CONTENT_DECODERS]
        if unknown:
            names = plain(", ".join(unknown))
            raise FetchFailed(
                f"cannot fetch {self._source.canonical}: the server sends it coded as {names}, "
                "which was not asked for and cannot be decoded here",
                hint="urllib3 decodes br with the package brotli, and zstd with Python 3.14 or its extra zstd",
            )

    def _pieces(self, response: requests.Response, decode: bool) -> Iterator[bytes]:
        """The body; after a while in larger pieces, if the line is fast."""
        raw = response.raw
        if decode or _length(response) is None:  # such a body is not read on where another stopped
            yield from raw.stream(NETWORK_CHUNK, decode_content=decode)
            return
        clock, came = self._job.clock, 0
        began = clock.monotonic()
        for data in raw.stream(NETWORK_CHUNK, decode_content=False):
            yield data
            came += len(data)
            if came >= _TRIED_FOR and came >= FAST * (clock.monotonic() - began):
                break
        yield from raw.stream(LARGE_CHUNK, decode_content=False)

    def _continue(self, response: requests.Response, decode: bool) -> None:
        """Check that what comes is the rest of what there is; begin anew if it is not."""
        partial, origin = self._partial, self._partial.origin
        match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        total = int(match[3]) if match and match[3] != "*" else None
        validator = _validator(response)
        fits = (
            match is not None
            and int(match[1]) == partial.size
            and not decode
            and origin is not None
            and (origin.length is None or total is None or origin.length == total)
            and (origin.validator is None or validator is None or origin.validator == validator)
        )
        if not fits:
            response.close()
            partial.restart()
            raise Temporary("the server sent another part than the one that was missing")
        partial.resumed = True
        self.announced = total if origin is None or origin.length is None else origin.length

    def _show(self, total: int | None) -> None:
        """Begin to show progress, once."""
        if not self._shown:
            self._shown = True
            self._job.progress.start(self._source.name, total, self._partial.size)


def _user(source: Source) -> HTTPBasicAuth | None:
    """User and password of a URL, for which no other are looked up in ~/.netrc; None without them."""
    from urllib.parse import unquote_to_bytes

    from requests.auth import HTTPBasicAuth

    userinfo = source.location.partition("://")[2].partition("/")[0].rpartition("@")[0]
    if not userinfo:
        return None
    user, _, password = userinfo.partition(":")
    return HTTPBasicAuth(unquote_to_bytes(user), unquote_to_bytes(password))


def _codings(response: requests.Response) -> list[str]:
    """What the body was coded with on its way."""
    given = (coding.strip().lower() for coding in response.headers.get("Content-Encoding", "").split(","))
    return [coding for coding in given if coding not in ("", "identity")]


def _length(response: requests.Response) -> int | None:
    """Bytes that the server said it would send, encoded as they are sent.

    Raises requests' InvalidHeader for what is no number (RFC 9112, 6.3): no end could be told from a cut.
    """
    from requests.exceptions import InvalidHeader

    text = response.headers.get("Content-Length")
    if text is None:
        return None
    length = text.partition(",")[0].strip()  # servers behind each other may each say it; urllib3 compares
    if re.fullmatch(_SIZE, length, re.ASCII) is None:
        raise InvalidHeader(f"the server announced {plain(text[:40])!r} bytes, which is no number")
    return int(length)


def _validator(response: requests.Response) -> str | None:
    """What tells this version of the file from every other (RFC 9110, 8.8): a strong ETag, else a date that is one.

    A date is strong only if the file was not changed within the second in which it was sent.
    """
    etag = response.headers.get("ETag", "").strip()
    if len(etag) >= 2 and etag.startswith('"') and etag.endswith('"'):
        return etag
    modified = response.headers.get("Last-Modified", "").strip()
    sent, changed = http_date(response.headers.get("Date", "")), http_date(modified)
    return modified if sent is not None and changed is not None and sent - changed >= 1 else None


def _may_pass(error: BaseException) -> bool:
    """Whether a failure on the network is one that may be over soon."""
    import requests
    import urllib3

    causes = list(_causes(error))
    if any(isinstance(cause, requests.exceptions.SSLError | urllib3.exceptions.SSLError) for cause in causes):
        return False
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_AGAIN
    passing = (
        requests.ConnectionError,
        requests.Timeout,
        urllib3.exceptions.ProtocolError,
        urllib3.exceptions.TimeoutError,
    )
    return isinstance(error, passing) and not isinstance(error, requests.exceptions.InvalidProxyURL)


def _network_reason(error: BaseException, announced: int | None, came: int) -> str:
    from http.client import HTTPException

    import requests
    import urllib3

    causes = list(_causes(error))
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    if any(isinstance(cause, urllib3.exceptions.ReadTimeoutError) for cause in causes):
        return f"no data for {READ_TIMEOUT:g} s"
    for cause in reversed(causes):  # the innermost one is what the system said
        if isinstance(cause, urllib3.exceptions.IncompleteRead):
            of = "" if announced is None else f" of {announced}"
            # What was decoded on the way is written later, and of another size.
            return f"the connection ended early, after {max(came, cause.partial)}{of} bytes"
        if isinstance(cause, ConnectionResetError) or getattr(cause, "errno", None) == errno.ECONNRESET:
            return f"the connection was reset, after {came} bytes"
        if isinstance(cause, urllib3.exceptions.DecodeError):
            return "what the server sent cannot be decoded in the way that it says"
        if isinstance(cause, HTTPException):
            return f"what the server answered is no proper HTTP ({type(cause).__name__})"
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException) and cause.strerror:
            return why(cause)
    return why(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it, down to the first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
