"""Who may do what: users of a Unix socket by their credentials, and whoever has the token over TCP.

A request that is refused here has cost nothing but its headers.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, MutableMapping
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request

from sccache_dtool.errors import CacheError
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.serve.answers import Refused, refusal

Scope = MutableMapping[str, Any]

#: Where the protocol notes the user id of the process at the other end of a Unix socket. Only it can: no header can.
UID = "sc_dtool_uid"

#: Where it is noted what the one who asks may do.
_PEER = "sc_dtool_peer"

#: Where a request finds its service.
SERVICE = "sc_dtool_service"

#: Names of this host that `Host` may always have.
OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

#: Headers that decide who may do what: given twice, a proxy and this server could each go by another one.
_DECIDING = (b"host", b"origin", b"authorization", b"girder-token")

#: Stands for all users in `Allowed.readers` and `Allowed.writers`.
EVERYBODY = "*"


class Allowed(NamedTuple):
    """What is allowed, and to whom. By default, the server's own user may read."""

    changes: bool = False  # whether anything may be changed
    clearing: bool = False  # whether all idle items may be removed at once
    readers: frozenset[str] = frozenset()  # users who may read over a Unix socket, beside the server's own
    writers: frozenset[str] = frozenset()  # users who may have sessions of their own
    token: bytes | None = None  # what must be shown over TCP
    hosts: frozenset[str] = OWN_NAMES  # what may be in `Host`, in lower case, without the port
    sources: tuple[str, ...] = ()  # below which URLs other users may have items fetched; empty: all of the web


class Peer(NamedTuple):
    """The one who asks."""

    user: str
    is_owner: bool  # the server's own user, root, or whoever has the token
    may_write: bool  # have sessions of their own

    def owns(self, user: str) -> bool:
        """Whether something that belongs to a user may be changed by this one."""
        return self.is_owner or (self.may_write and user == self.user)


class Gate:
    """Middleware: refuses whoever may not even read."""

    def __init__(self, app: Callable[..., Any], allowed: Allowed) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """One request."""
        if scope["type"] == "http":
            try:
                scope.setdefault("state", {})[_PEER] = self._peer(scope)
            except CacheError as error:
                await refusal(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _peer(self, scope: Scope) -> Peer:
        headers = self._checked(scope)
        uid = scope.get("state", {}).get(UID)
        if uid is None:
            return self._with_token(headers)
        if uid in (0, os.geteuid()):
            return Peer(user_name(), True, True)
        user, allowed = user_name(uid), self._allowed
        may_write = bool({user, EVERYBODY} & allowed.writers)
        if not may_write and not {user, EVERYBODY} & allowed.readers:
            raise Refused(403, f"user {user} may not use this server", "its user can allow it with --readers")
        return Peer(user, False, may_write)

    def _checked(self, scope: Scope) -> dict[bytes, bytes]:
        """The headers that decide. Raises Refused for what a page of another site makes a browser send.

        That concerns Unix sockets, too: ssh forwards them to ports of the user's own computer.
        """
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _DECIDING and headers.setdefault(name, value) != value:
                raise Refused(400, f"two different headers {name.decode()!r}", "send each header once")
        # A page of another site that makes its name lead here (DNS rebinding) has that name in `Host`.
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _without_port(host) not in self._allowed.hosts:
            raise Refused(400, "the server has another name than the one in `Host`", "allow it with --host-name")
        # A page of another site may also send a form here. Browsers then say where the page is from.
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.partition("://")[2] != host:
            raise Refused(403, "the request comes from a page of another site", "send no `Origin`")
        return headers

    def _with_token(self, headers: dict[bytes, bytes]) -> Peer:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else headers.get(b"girder-token", b"")
        if self._allowed.token is None or not hmac.compare_digest(given, self._allowed.token):
            raise Refused(
                401, "the token is missing or wrong", "send it as `Authorization: Bearer …` or `Girder-Token`"
            )
        return Peer(user_name(), True, True)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[")
    return host.rpartition(":")[0] if host.count(":") == 1 else host


async def _peer_of(request: Request) -> Peer:
    peer = getattr(request.state, _PEER)
    assert isinstance(peer, Peer)
    return peer


async def _writer(request: Request) -> Peer:
    peer, allowed = await _peer_of(request), getattr(request.state, SERVICE).allowed
    if not allowed.changes:
        raise Refused(403, "this server changes nothing", "its user can allow it with --allow-changes")
    if not peer.may_write:
        raise Refused(403, f"user {peer.user} may only read", "the server's user can allow it with --writers")
    return peer


async def _owner(request: Request) -> Peer:
    peer = await _writer(request)
    if not peer.is_owner:
        raise Refused(403, f"user {peer.user} may only change sessions of their own", "ask the server's user")
    return peer


#: Who asks, as an argument of a route: anybody who may read; whoever may have sessions; the server's own user.
Reading = Annotated[Peer, Depends(_peer_of)]
Writing = Annotated[Peer, Depends(_writer)]
Owning = Annotated[Peer, Depends(_owner)]
