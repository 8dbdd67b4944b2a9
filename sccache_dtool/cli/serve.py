"""`serve`: the cache over HTTP, for programs. What serves is loaded here, and by no other command."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli.options import Invocation, common_options, pass_invocation
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.extras import to_install

if TYPE_CHECKING:
    import socket

_users = functools.partial(click.option, multiple=True, metavar="USER")


@click.command("serve")
@click.option("--socket", "path", metavar="PATH", help="Listen on this Unix socket. Default: one for this user alone.")
@click.option("--listen", metavar="HOST:PORT", help="Listen on TCP, for whoever has the token.")
@click.option("--anywhere", is_flag=True, help="Accept an address for --listen that other hosts can reach.")
@click.option("--token-file", metavar="FILE", help="The file with the token. Created if it is missing.")
@click.option(
    "--host-name", "names", multiple=True, metavar="NAME", help="A name by which clients know this server. Repeatable."
)
@_users("--readers", help="A user who may read over the Unix socket; * means all. Repeatable.")
@_users("--writers", help="A user who may also have sessions and add objects; * means all. Repeatable.")
@click.option("--sources", multiple=True, metavar="URL", help="Writers may only add items below this URL. Repeatable.")
@click.option("--allow-changes", is_flag=True, help="Allow requests that change something.")
@click.option("--allow-clear", is_flag=True, help="Also allow the removal of all idle items at once.")
@common_options()
@pass_invocation
def serve_command(
    call: Invocation,
    path: str | None,
    listen: str | None,
    anywhere: bool,
    token_file: str | None,
    names: tuple[str, ...],
    readers: tuple[str, ...],
    writers: tuple[str, ...],
    sources: tuple[str, ...],
    allow_changes: bool,
    allow_clear: bool,
) -> None:
    """Serve the cache over HTTP, until SIGTERM or Ctrl-C.

    It listens on a Unix socket that only you can use. Nothing can be changed without --allow-changes. It keeps nothing
    in memory: if it is killed, nothing is lost. It also takes the sockets that systemd passes to it. It needs the extra
    `serve`.

    \b
    Examples:
      sc-dtool serve --allow-changes
      sc-dtool serve --listen 127.0.0.1:8080 --token-file ~/.config/sc-dtool/token
    """
    try:
        from sccache_dtool.serve import listening
        from sccache_dtool.serve.access import OWN_NAMES, Allowed
        from sccache_dtool.serve.app import App
        from sccache_dtool.serve.limits import Bounds
    except ModuleNotFoundError as error:
        raise CacheError(
            f"the service needs the package {error.name}", hint=f"install it: {to_install('serve')}"
        ) from None
    if path is not None and listen is not None:
        raise UsageError("--socket and --listen cannot be combined", hint="run two servers: they share nothing")
    if allow_clear and not allow_changes:
        raise UsageError("--allow-clear needs --allow-changes")

    below = tuple(_canonical(url) for url in sources)

    def make_cache(**more: Any) -> Cache:
        return call.cache(**{"progress": None, "on_scan": None, **more})

    id = make_cache().check()
    with contextlib.ExitStack() as open_until_end:
        found = listening.of_systemd(os.environ)
        if not found:
            where = _listening(path, listen, id, anywhere, for_others=bool(readers or writers))
            found = [open_until_end.enter_context(where)]
        over_tcp = [one for one in found if not listening.is_unix(one)]
        token = _token(token_file or _default_token_file(os.environ), call) if over_tcp or token_file else None
        hosts = frozenset(
            name.lower() for name in (*OWN_NAMES, *names, *(str(one.getsockname()[0]) for one in over_tcp))
        )
        allowed = Allowed(allow_changes, allow_clear, frozenset(readers), frozenset(writers), token, hosts, below)
        app = App(make_cache, allowed)
        server = listening.make_server(
            app,
            listening.within_descriptors(Bounds()),
            lambda: call.out.result("serving", {"addresses": shown}, *(f"serving {one}" for one in shown)),
        )
        shown = [listening.shown(one) for one in found]
        try:
            server.run(found)
        finally:
            app.close()


def _listening(
    path: str | None, listen: str | None, id: str, anywhere: bool, *, for_others: bool
) -> contextlib.AbstractContextManager[socket.socket]:
    from sccache_dtool.serve.listening import default_path, tcp_socket, unix_socket

    if listen is None:
        return unix_socket(path or default_path(id, os.environ), for_others=for_others)
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{listen!r} is not an address and a port", hint="give --listen 127.0.0.1:8080")
    return tcp_socket(host.strip("[]") or "127.0.0.1", int(port), anywhere=anywhere)


def _canonical(url: str) -> str:
    from sccache_dtool.fetch.stack import parse_stack
    from sccache_dtool.serve.data_manager import FOR_EVERYBODY

    (chain, *more) = parse_stack([url]).chains
    (source, *mirrors) = chain.mirrors
    if more or mirrors or chain.steps or source.scheme not in FOR_EVERYBODY or "?" in source.canonical:
        raise UsageError(f"{url!r} is not a URL of the web", hint="give --sources https://data.example.org/public/")
    return source.canonical


def _default_token_file(environ: Mapping[str, str]) -> str:
    base = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "sc-dtool", "serve-token")


def _token(path: str, call: Invocation) -> bytes:
    """The token in a file that only this user can read, made if there is none. Raises UsageError."""
    import secrets
    import stat

    path = os.path.expanduser(path)
    with contextlib.suppress(FileExistsError):
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_urlsafe(32)}\n")
        call.out.note(f"wrote a new token into {path}")
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        token = file.read(4096).strip()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UsageError(f"others can read or change {path}", hint=f"chmod 600 {path}, and write a new token into it")
    if len(token) < 16 or not token.isascii() or b" " in token:
        raise UsageError(f"{path} does not contain a token", hint="remove it, so that a new one is made")
    return token
