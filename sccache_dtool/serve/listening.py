"""The sockets of the server, the credentials of whoever connects, and bounds for slow and many clients."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import Server

from sccache_dtool.errors import CacheError, InUse, UsageError, explain
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.serve.access import UID
from sccache_dtool.serve.files import PROTOCOL
from sccache_dtool.serve.limits import Bounds

#: The first descriptor that systemd passes, and what says how many there are, and to which process.
_FIRST_FD = 3
_FDS, _FDS_PID = "LISTEN_FDS", "LISTEN_PID"

#: Connections that are accepted before those that are too many are refused. asyncio takes all of a backlog at once, and
#: complains about each for which there is no descriptor.
_AT_ONCE = 16

#: Descriptors that a connection takes during a download, and that the server itself takes.
_DESCRIPTORS, _OWN_DESCRIPTORS = 4, 64

#: Connections that wait to be accepted.
_BACKLOG = 1024


class Protocol(H11Protocol):
    """One connection: who is at its other end, and how long it may take."""

    bounds = Bounds()

    _waiting_for_header: asyncio.TimerHandle | None = None
    _waiting_for_reader: asyncio.TimerHandle | None = None

    @property
    def patience(self) -> float:
        """Seconds in which a client must do something."""
        return self.bounds.patience

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        own: socket.socket = transport.get_extra_info("socket")
        self.app_state = {**self.app_state, PROTOCOL: self}
        self.timeout_keep_alive = min(self.timeout_keep_alive, self.patience)  # type: ignore[assignment]
        if own.family == socket.AF_UNIX:
            credentials = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.app_state[UID] = struct.unpack("3i", credentials)[1]
        if len(self.connections) > self.bounds.connections:
            transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self._close_soon()
            return
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._end_wait_for_header()
        self._end_wait_for_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request have come."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_idle:
            self._expect_header()
        else:
            self._end_wait_for_header()

    def _expect_header(self) -> None:
        """From the first byte, or the connection, to the end of the header."""
        if self._waiting_for_header is None:
            self._waiting_for_header = self.loop.call_later(self.patience, self._give_up)

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.response_complete)

    def _end_wait_for_header(self) -> None:
        if self._waiting_for_header is not None:
            self._waiting_for_header.cancel()
            self._waiting_for_header = None

    def _end_wait_for_reader(self) -> None:
        if self._waiting_for_reader is not None:
            self._waiting_for_reader.cancel()
            self._waiting_for_reader = None

    def _give_up(self) -> None:
        if not self.transport.is_closing() and self._is_idle:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self._close_soon()

    def _close_soon(self) -> None:
        self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)  # what is not read by then is dropped

    def pause_writing(self) -> None:
        """The client does not read as fast as it is sent to."""
        super().pause_writing()
        if self._waiting_for_reader is None:
            self._waiting_for_reader = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        self._end_wait_for_reader()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """An answer is over."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(self.patience, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more has come. Unread answers do not keep the connection."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(1.0, self.transport.abort)


class _Server(Server):
    """A server that ends when it is told to, which is its normal end."""

    def __init__(self, config: Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the server."""
        loop = asyncio.get_running_loop()
        added = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
                loop.add_signal_handler(number, self.handle_exit, number, None)
                added.append(number)
        try:
            yield
        finally:
            for number in added:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_BACKLOG)
        self._on_start()


def within_descriptors(bounds: Bounds) -> Bounds:
    """Bounds under which the descriptors of this process suffice; as many as it may have are taken."""
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OWN_DESCRIPTORS + bounds.connections * _DESCRIPTORS
    if most != resource.RLIM_INFINITY and most < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        bounds = bounds._replace(connections=max(1, (most - _OWN_DESCRIPTORS) // _DESCRIPTORS))
    return bounds


def make_server(app: Any, bounds: Bounds, on_start: Callable[[], None] = lambda: None) -> Server:
    """A server of an application; `run` or `serve` it with sockets. `on_start`: called once it listens."""
    bounded = type("BoundedProtocol", (Protocol,), {"bounds": bounds})
    config = Config(
        app,
        http=bounded,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=bounds.header,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        backlog=_AT_ONCE,
        proxy_headers=False,
    )
    return _Server(config, on_start)


# -- sockets -----------------------------------------------------------------------------------------------------------


def default_path(cache_id: str, environ: Mapping[str, str]) -> str:
    """Where the socket of a cache's server is. Its directory is made, for this user alone. Raises CacheError."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    directory = os.path.join(runtime, "sc-dtool") if runtime else f"/tmp/sc-dtool-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise CacheError(
            f"{directory} is not a directory of {user_name()} alone",
            hint="remove it, or choose another place with --socket",
        )
    return f"{directory}/{cache_id[:16]}.sock"


@contextlib.contextmanager
def unix_socket(path: str, *, for_others: bool) -> Iterator[socket.socket]:
    """A socket at a path, which is removed at the end. One that a killed server has left is replaced.

    `for_others`: other users may connect; they are told apart by their credentials. Raises InUse if a server listens
    there.
    """
    guard = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InUse(
                f"another server listens on {path}", hint="use that one, or choose another place with --socket"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise UsageError(f"{path} is not a socket", hint="remove it, or choose another place with --socket")
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            try:
                _bind(made, path, 0o666 if for_others else 0o600)
            except OSError as error:
                raise CacheError(
                    f"cannot listen on {path}: {explain(error)}", hint="choose another place with --socket"
                ) from error
            try:
                yield made
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(path)
    finally:
        os.close(guard)  # the file stays: whoever removed it could let two servers in


def _bind(made: socket.socket, path: str, mode: int) -> None:
    before = os.umask(0o177)
    try:
        made.bind(path)
    finally:
        os.umask(before)
    os.chmod(path, mode)
    made.listen(_BACKLOG)


@contextlib.contextmanager
def tcp_socket(host: str, port: int, *, anywhere: bool) -> Iterator[socket.socket]:
    """A socket of an address of this host alone, unless `anywhere`. Raises UsageError, or CacheError."""
    import ipaddress

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"{host!r} is not an address of this host: {error.strerror}") from None
    if not anywhere and not ipaddress.ip_address(address[0]).is_loopback:
        raise UsageError(
            f"{host} can be reached from other hosts, and HTTP sends the token as it is",
            hint="listen on 127.0.0.1 behind a server with TLS or an SSH tunnel, or add --anywhere",
        )
    with socket.socket(family, kind, protocol) as made:
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(_BACKLOG)
        except OSError as error:
            raise InUse(f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another port") from error
        yield made


def of_systemd(environ: Mapping[str, str]) -> list[socket.socket]:
    """The sockets that systemd has opened for this process (socket activation); none if it was started otherwise."""
    count = environ.get(_FDS, "")
    if environ.get(_FDS_PID) != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    try:
        found = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]
    except OSError:
        raise UsageError(
            f"{_FDS}={count[:20]}: not all of these descriptors are sockets", hint="use a .socket unit"
        ) from None
    for one in found:
        os.set_inheritable(one.fileno(), False)
    if [one for one in found if one.type != socket.SOCK_STREAM]:
        raise UsageError(
            "systemd passes a socket that is not a stream", hint="write ListenStream= into the .socket unit"
        )
    return found


def is_unix(one: socket.socket) -> bool:
    """Whether it is a Unix socket, which tells who connects."""
    return one.family == socket.AF_UNIX


def shown(one: socket.socket) -> str:
    """The address of a socket, for people and their clients."""
    if is_unix(one):
        return f"unix:{os.path.abspath(one.getsockname())}"
    host, port = one.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
