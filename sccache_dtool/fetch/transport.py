"""Connections as RFC 9112 wants them, where http.client is content with less.

Informational answers before the final one are passed over, and a TLS connection that ends without saying so is cut
short, not at its end. Redirects are followed here: no body of theirs is read, and a password stays with its host.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, parse_headers
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.util.ssl_ import create_urllib3_context

from sccache_dtool.credentials import hide

if TYPE_CHECKING:
    from urllib3.connectionpool import HTTPConnectionPool

#: Informational answers before the final one, and redirects of one request, at most.
MOST_INFORMATIONAL = 100
MOST_REDIRECTS = 30

_REDIRECTS = frozenset({300, 301, 302, 303, 307, 308})
_SAME_REQUEST = frozenset({307, 308})  # those that mean the same method, with the same body

#: Connections of one session that are kept.
_MOST_CONNECTIONS = 32


class BadRedirect(requests.RequestException):
    """A redirect that is not followed."""


class _Answer(HTTPResponse):
    """Passes over 1xx, which http.client does for 100 alone; but 101 is the end of HTTP, and was not asked for."""

    def _read_status(self) -> tuple[str, int, str]:
        read: Callable[[], tuple[str, int, str]] = super()._read_status  # type: ignore[misc]
        for _ in range(MOST_INFORMATIONAL):
            version, status, reason = read()
            if not 100 <= status < 200 or status == HTTPStatus.SWITCHING_PROTOCOLS:
                return version, status, reason
            parse_headers(self.fp)
        raise HTTPException(f"more than {MOST_INFORMATIONAL} informational answers")


@cache
def _careful(kind: Any) -> Any:
    """A class of connections, made careful."""

    class Careful(kind):  # type: ignore[misc]
        response_class = _Answer

        def connect(self) -> None:
            if hasattr(self, "ssl_context"):
                # Python lets OpenSSL 3 take an end of the connection for the end of what is sent.
                context = getattr(self, "ssl_context", None) or create_urllib3_context()
                context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
                self.ssl_context = context
            super().connect()
            if hasattr(self.sock, "suppress_ragged_eofs"):
                self.sock.suppress_ragged_eofs = False

    return Careful


@cache
def _unix(path: str) -> Any:
    """A class of connections to a Unix socket."""
    from urllib3.connection import HTTPConnection

    class Unix(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.settimeout(self.timeout)
                made.connect(path)
            except BaseException:
                made.close()
                raise
            return made

    return Unix


class _Adapter(HTTPAdapter):
    def __init__(self, path: str | None) -> None:
        super().__init__(pool_maxsize=_MOST_CONNECTIONS)
        self._path = path

    # The first is of requests 2.32 and later, the second of those before.

    def get_connection_with_tls_context(self, *args: Any, **more: Any) -> HTTPConnectionPool:
        return self._made_careful(super().get_connection_with_tls_context(*args, **more))

    def get_connection(self, *args: Any, **more: Any) -> HTTPConnectionPool:
        return self._made_careful(super().get_connection(*args, **more))

    def _made_careful(self, pool: Any) -> HTTPConnectionPool:
        made: HTTPConnectionPool = pool
        if getattr(made.ConnectionCls, "response_class", None) is not _Answer:
            made.ConnectionCls = _careful(made.ConnectionCls if self._path is None else _unix(self._path))
        return made


class _Session(requests.Session):
    """Leaves redirects to `answer`: requests reads their bodies, even those that it does not follow."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """There is none."""


def _without_credentials(record: logging.LogRecord) -> bool:
    """A filter of log records, which a program may have asked for: urllib3 puts whole URLs into them."""
    record.msg, record.args = hide(record.getMessage()), None
    return True


class _Bearer(AuthBase):
    """A token, for the host that it is meant for and no other."""

    def __init__(self, token: str, url: str) -> None:
        self._token = token
        self._origin = _origin(url)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if _origin(request.url or "") == self._origin:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def session(path: str | None = None, token: str | None = None, url: str = "") -> requests.Session:
    """A session whose connections are careful; for `answer`.

    `path`: of the Unix socket to which all connections go. `token`: a credential for the host of `url`.
    """
    logging.getLogger("urllib3.connectionpool").addFilter(_without_credentials)  # once, however often it is added
    made = _Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter(path))
    if path is not None:
        made.trust_env = False  # no proxy leads there, and ~/.netrc knows hosts
    if token is not None:
        made.auth = _Bearer(token, url)
    return made


def answer(
    made: requests.Session,
    location: str,
    headers: Mapping[str, str],
    timeout: tuple[float, float],
    note: Callable[[str], None],
    *,
    method: str = "GET",
    data: Iterable[bytes] | bytes | None = None,
) -> requests.Response:
    """The final answer for `location`, a URL with its credentials; its body is still to be read.

    `data`: the request's body, which is read again for each request. `note` is told of a redirect from https to http.
    Raises what requests, urllib3 and others raise.
    """
    url, auth = _apart(location)
    for _ in range(MOST_REDIRECTS + 1):
        came = made.request(method, url, stream=True, timeout=timeout, headers=dict(headers), auth=auth, data=data)
        target = _target(came)
        if target is None:
            return came
        came.close()
        if data is not None and came.status_code not in _SAME_REQUEST:
            raise BadRedirect(f"a {method} was redirected with {came.status_code}: {urljoin(url, target)}")
        before, (url, of_target) = url, _apart(urljoin(url, target))
        scheme = urlsplit(url).scheme
        if scheme not in ("http", "https"):
            raise BadRedirect(f"redirect not followed: {url}")
        if scheme == "http" and urlsplit(before).scheme == "https":
            note("redirected from https to http: the data can be read and changed in transit")
        if of_target is not None or made.should_strip_auth(before, url):  # type: ignore[no-untyped-call]
            auth = of_target  # with None, requests looks the new host up in ~/.netrc
    raise BadRedirect(f"more than {MOST_REDIRECTS} redirects")


def unfolded(header: str, between: str = " ") -> str:
    """A header in one line: it may have been folded (RFC 9112, 5.2). `between`: what is to be where it was."""
    return between.join(line.strip() for line in header.split("\n")).strip()


def _target(came: requests.Response) -> str | None:
    if came.status_code not in _REDIRECTS:
        return None
    target = unfolded(came.headers.get("Location", ""), "")
    if not target:
        return None
    try:
        return target.encode("latin-1").decode()  # as browsers read what is not ASCII
    except UnicodeError:
        return target


def _apart(location: str) -> tuple[str, HTTPBasicAuth | None]:
    """A URL without its user, and that user; None without one, who is then looked up in ~/.netrc."""
    parts = urlsplit(location)
    userinfo, _, where = parts.netloc.rpartition("@")
    url = urlunsplit(parts._replace(netloc=where, fragment=""))
    if not userinfo:
        return url, None
    user, _, password = userinfo.partition(":")
    return url, HTTPBasicAuth(unquote_to_bytes(user), unquote_to_bytes(password))
