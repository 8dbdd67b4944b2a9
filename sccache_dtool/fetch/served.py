"""An archive that `sc-dtool serve` serves, asked over HTTP or a Unix socket.

The server's side is `markers/serving.py`. A request that may be done twice, as all may here, is tried again when that
may help. Objects are downloaded as every file is that comes over HTTP.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import requests

from sccache_dtool.credentials import HIDDEN
from sccache_dtool.errors import CacheError, FetchFailed, NoSpace, UsageError
from sccache_dtool.fetch import http, objects, transport
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import Location, Source
from sccache_dtool.fetch.retry import Temporary, persist, retry_after
from sccache_dtool.fetch.words import parse_sources
from sccache_dtool.protocol.store import Store

#: Seconds to wait for the end of what a server does with a whole object, and what it does in a second, in bytes.
PATIENCE = 600.0
_SPEED = 10e6

#: Bytes of an answer that are read, other than an object's; and of one that says what is wrong.
_LONGEST = 64 << 20
_LONGEST_REFUSAL = 1 << 16

#: Digits of a number in a header.
_LONGEST_NUMBER = 18

#: Attempts at one object that is read as a stream, in all.
_MOST_TRIES = 100

_FAILING = "cannot use the archive"

Result = TypeVar("Result")


class Answer(NamedTuple):
    """What a server has answered, without the bytes of an object."""

    status: int
    headers: Mapping[str, str]
    document: Mapping[str, Any]  # empty if it is not one


class Server:
    """The server of an archive."""

    def __init__(self, store: Store, url: str, token_file: str | None = None) -> None:
        """`token_file`: where the user has a token; None: `~/.netrc` may have a password."""
        self.url = url
        self._store = store
        self._token_file = token_file
        self._token: str | None = None
        self._socket = url.partition("://")[2] if url.startswith(f"{objects.UNIX}:") else None
        base = "http://localhost/objects" if self._socket is not None else url
        self._base = base.removesuffix("/objects")
        self._session: requests.Session | None = None
        self._is_there = False

    def source(self, digits: str) -> Source:
        """An object, as a source of `http.retrieve`."""
        return self._source(f"/objects/{digits}", digits)

    def _source(self, route: str, name: str) -> Source:
        if self._socket is not None:
            return Source(f"{self.url}{route}", Location(f"{self._base}{route}"), name)
        return parse_sources(f"{self._base}{route}", lambda: "/")[0]._replace(name=name, provisional=False)

    def session(self) -> requests.Session:
        """A session of its own, with the token that the file has now."""
        self._token = _token_in(self._token_file)
        return transport.session(self._socket, self._token, f"{self._base}/")

    def retrieve(self, context: Context, digits: str, path: str, algorithms: Sequence[str]) -> Retrieved:
        """Bring an object to `path`, which must not exist; its content is not checked. Raises FetchFailed."""
        try:
            return http.retrieve(context, self.source(digits), path, algorithms, self.session())
        except http.Refusal as error:
            raise self._refusal(error.status, self.source(digits).canonical, digits, error.message) from error

    def ask(
        self,
        method: str,
        route: str,
        *,
        digits: str = "",
        query: Mapping[str, str | int] | None = None,
        data: Iterable[bytes] | bytes | None = None,
        size: int = 0,
    ) -> Answer:
        """What the server answers, if it is 200 or 201. Raises FetchFailed or NoSpace.

        `digits`: the object that is meant. `size`: bytes with which it has to do something before it answers.
        """
        asked = f"{route}?{urlencode(query)}" if query else route
        patience = http.READ_TIMEOUT if not size else PATIENCE + size / _SPEED

        def attempt() -> Answer:
            with self.answer(method, asked, {}, data, patience, digits) as response:
                text = self._read(response, _LONGEST)
            return Answer(response.status_code, response.headers, _document(text))

        return self.persist(attempt)

    def pieces(self, digits: str) -> Iterator[bytes]:
        """The bytes of an object, not checked. Where the connection ends, the rest is asked for. Raises FetchFailed."""
        with contextlib.closing(_Stream(self, digits)) as stream:
            while data := self.persist(stream.piece, lambda: stream.at):
                yield data

    def require(self) -> None:
        """Raise FetchFailed unless the URL is that of an archive; asked once."""
        if not self._is_there:
            found = self.ask("GET", "/index", query={"limit": 0})
            if not isinstance(found.document.get("entries"), list):
                raise self.strange()
            self._is_there = True

    def strange(self) -> FetchFailed:
        """The error for an answer that no archive gives."""
        return FetchFailed(
            f"{_FAILING} {plain(self.url)}: what answers there is not a server of an archive",
            hint="check [archive] url in config.toml; for a server, it ends with /objects",
        )

    def persist(self, attempt: Callable[[], Result], size: Callable[[], int] = lambda: 0) -> Result:
        """The result of `attempt`, which is repeated while that may help; `size`: bytes that have come."""
        return persist(Context(self._store, NoProgress()), plain(self.url), size, attempt, _FAILING)

    def answer(
        self,
        method: str,
        route: str,
        headers: Mapping[str, str],
        data: Iterable[bytes] | bytes | None,
        patience: float,
        digits: str,
    ) -> requests.Response:
        """An answer without an error in it. Raises Temporary, or what the error means."""
        if self._session is None:
            self._session = self.session()
        source = self._source(route, "")
        sending = http.READ_TIMEOUT if data is not None else http.CONNECT_TIMEOUT
        headers = {"Accept-Encoding": "identity", **headers}
        if isinstance(data, bytes):
            headers["Content-Type"] = "application/json"
        with http.failures(self.url, failing=_FAILING):
            response = transport.answer(
                self._session,
                source.location,
                headers,
                (sending, patience),
                self._store.log.note,
                method=method,
                data=data,
            )
        if response.status_code in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.PARTIAL_CONTENT):
            return response
        with response:
            status = response.status_code
            reason = plain(f"the server answered {status} {response.reason or ''}")
            text = self._read(response, _LONGEST_REFUSAL)
            if http.is_temporary(status) or status == HTTPStatus.UNPROCESSABLE_ENTITY:
                said = self._shown(_document(text).get("message"))
                reason += f": {said}" if said else ""
                raise Temporary(reason, after=retry_after(response.headers.get("Retry-After")))
        raise self._refusal(status, plain(self.url), digits, f"{_FAILING} {plain(self.url)}: {reason}", text)

    def _read(self, response: requests.Response, most: int) -> bytes:
        text = bytearray()
        with http.failures(self.url, failing=_FAILING):
            for data in response.raw.stream(http.NETWORK_CHUNK, decode_content=False):
                text += data
                if len(text) > most:
                    break
        return bytes(text[:most])

    def _refusal(self, status: int, where: str, digits: str, message: str, text: bytes = b"") -> CacheError:
        """What an answer means that no repetition changes."""
        document = _document(text)
        said, hint = (self._shown(document.get(name)) for name in ("message", "hint"))
        if status == HTTPStatus.NOT_FOUND:
            if digits and (not text or document):
                self.require()
                return objects.missing(digits, where)
            return self.strange()
        details = [f"the server says: {said}"] if said else []
        if status == HTTPStatus.LENGTH_REQUIRED:
            hint = "sc-dtool sends the length of each upload: check the proxies between"
        if status == HTTPStatus.UNAUTHORIZED:
            self._session = None  # the next request reads the token again
            return FetchFailed(message, details=details, hint=self._credentials_hint())
        if status == HTTPStatus.FORBIDDEN:
            hint = hint or "the server does not let this user do that: ask whoever runs it"
            return FetchFailed(message, details=details, hint=hint)
        if status == HTTPStatus.CONFLICT and digits:
            hint = "whoever runs the server can move the file away; then add it again"
            return objects.Damaged(f"{objects.word(digits)} is damaged in the archive", details=details, hint=hint)
        if status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.INSUFFICIENT_STORAGE):
            hint = hint or "ask whoever runs the server; `--later` keeps the file in the cache until it can be archived"
            return NoSpace(message, details=details, hint=hint)
        return FetchFailed(message, details=details, hint=hint)

    def _credentials_hint(self) -> str:
        if self._token_file is None:
            return 'name a file with a token in config.toml: token_file = "~/.config/sc-dtool/token" below [archive]'
        if self._token is None:
            return f"write the token that the server's administrator gave you into {self._token_file}, with mode 0600"
        return f"the token in {self._token_file} is not valid there, or not any more: get a new one"

    def _shown(self, text: object) -> str:
        """A text of the server's, in one line, without the token that it may have repeated."""
        shown = plain(text[:1000]) if isinstance(text, str) else ""
        return shown.replace(self._token, HIDDEN) if self._token else shown


class _Stream:
    """The bytes of an object, as they come."""

    def __init__(self, server: Server, digits: str) -> None:
        self.at = 0
        self._server = server
        self._digits = digits
        self._total: int | None = None
        self._tries = 0
        self._response: requests.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def piece(self) -> bytes:
        """What comes next; nothing at the end. Raises Temporary if the connection has ended before."""
        if self._response is None:
            self._begin()
        try:
            with http.failures(self._server.url, self._total, self.at, _FAILING):
                data = next(self._pieces, b"")
            if not data and self._total is not None and self.at < self._total:
                raise Temporary(f"received {self.at} bytes of {self._total}")
        except Temporary as error:
            self.close()
            if self._tries >= _MOST_TRIES:
                raise FetchFailed(f"{_FAILING} {plain(self._server.url)}: {error.reason}") from error
            raise
        self.at += len(data)
        return data

    def _begin(self) -> None:
        self._tries += 1
        headers = {"Range": f"bytes={self.at}-", "If-Range": f'"{self._digits}"'} if self.at else {}
        route = f"/objects/{self._digits}"
        came = self._server.answer("GET", route, headers, None, http.READ_TIMEOUT, self._digits)
        if self.at and came.status_code != HTTPStatus.PARTIAL_CONTENT:
            came.close()
            raise FetchFailed(
                f"{_FAILING} {plain(self._server.url)}: the server sent a whole object again, and not the rest of it"
            )
        length = content_length(came.headers)
        if length is None:  # there need not be an end
            came.close()
            raise self._server.strange()
        self._response, self._pieces = came, came.raw.stream(http.LARGE_CHUNK, decode_content=False)
        if self._total is None:
            self._total = length

    def close(self) -> None:
        """Ask for no more."""
        if self._response is not None:
            self._response.close()
            self._response = None


def content_length(headers: Mapping[str, str]) -> int | None:
    """Bytes that an answer has, as it says; None if it does not say so."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_NUMBER else None


def _document(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _token_in(path: str | None) -> str | None:
    """The token in a file; None if the user has no such file. Raises UsageError if others may read it."""
    if path is None:
        return None
    path = os.path.expanduser(path)
    try:
        with open(path, encoding="ascii") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise UsageError(f"others may read the token in {path}", hint=f"chmod 600 {path}")
            token = file.read(_LONGEST_REFUSAL).strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the token in {path}", hint="check the file") from error
    if not token.isprintable() or len(token.split()) != 1:
        raise UsageError(f"{path} does not contain one token", hint="write the token into it, and nothing else")
    return token
