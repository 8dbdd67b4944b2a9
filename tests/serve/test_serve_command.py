"""`sc-dtool serve` as a process: where it listens, to whom, how it ends, and what is left when it is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.tool import PYTHON, SC_DTOOL, call, heard, shell, start
from httpserver import Page, Server
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from serve.client import DM, Reply, Socket
from waiting import PATIENCE, wait_until


@contextlib.contextmanager
def serving(layout: Layout, *words: str, **how: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and the address that it has printed."""
    with start([SC_DTOOL, "-C", layout.root, "serve", *words], **how) as process:
        yield process, heard(process).removeprefix("serving ")


@contextlib.contextmanager
def on_socket(layout: Layout, *words: str) -> Iterator[tuple[subprocess.Popen[str], Socket]]:
    """A server on a Unix socket."""
    with serving(layout, *words) as (process, address):
        yield process, Socket(address.removeprefix("unix:"))


@pytest.fixture(autouse=True)
def runtime(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for sockets."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(short_path / "config"))
    return short_path


def test_the_socket_is_for_its_user_alone(layout: Layout, runtime: Path) -> None:
    """Every user of the host could connect, as to a socket that the library makes (mode 0666)."""
    with on_socket(layout) as (process, served):
        path = Path(served.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (path.parent.parent, stat.S_IMODE(path.parent.stat().st_mode)) == (runtime, 0o700)
        assert served.ask("GET", "/healthz").json["cache"] == Cache(layout.root).check()
        second = call("-C", layout.root, "serve")
        assert (second.code, "another server listens on" in second.err) == (14, True)
        assert served.ask("GET", "/healthz").code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert not path.exists()


def test_the_socket_of_a_killed_server_is_replaced(layout: Layout) -> None:
    """A server could not be started again after it was killed, until somebody removes its socket."""
    with on_socket(layout) as (process, served):
        process.kill()
        process.wait(PATIENCE)
        assert Path(served.path).exists()
    with on_socket(layout) as (_, again):
        assert (again.path, again.ask("GET", "/healthz").code) == (served.path, 200)


def test_what_is_in_the_way_of_the_socket(layout: Layout, runtime: Path) -> None:
    """A file of the user would be removed, or a socket be made where others can put one in its place."""
    (runtime / "file").write_text("data")
    assert call("-C", layout.root, "serve", "--socket", runtime / "file").code == 2
    assert (runtime / "file").read_text() == "data"
    (runtime / "sc-dtool").mkdir(mode=0o755)
    done = call("-C", layout.root, "serve")
    assert (done.code, "is not a directory of" in done.err) == (1, True)


def test_tcp_with_a_token(layout: Layout, runtime: Path) -> None:
    """Every user of the host, and every page in a browser, could use the cache as this user."""
    with serving(layout, "--listen", "127.0.0.1:0", "--allow-changes") as (process, address):
        path = runtime / "config" / "sc-dtool" / "serve-token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token, port = path.read_text().strip(), int(address.rpartition(":")[2])

        def ask(**headers: str) -> Reply:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request("GET", f"{DM}/session", headers={k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            made = Reply(answer.status, {}, answer.read())
            connection.close()
            return made

        assert ask().code == 401
        assert ask(Girder_Token="wrong").code == 401
        assert ask(Girder_Token=token).code == 200
        assert ask(Authorization=f"Bearer {token}").code == 200
        assert ask(Girder_Token=token, Host="evil.example").code == 400
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
        assert token not in out + err
    path.chmod(0o644)
    done = call("-C", layout.root, "serve", "--listen", "127.0.0.1:0")
    assert (done.code, "others can read" in done.err) == (2, True)


@pytest.mark.parametrize("words", [["--listen", "0.0.0.0:0"], ["--listen", "x"], ["--listen", "127.0.0.1:99999"],
                                   ["--listen", "127.0.0.1:0", "--socket", "/x"], ["--allow-clear"]])  # fmt: skip
def test_options_that_are_refused(layout: Layout, words: list[str]) -> None:
    """A server would listen where its user did not want it to."""
    assert call("-C", layout.root, "serve", *words).code == 2


def test_a_directory_that_is_not_a_cache(tmp_path: Path) -> None:
    """A server would be started that answers every request with an error."""
    assert call("-C", tmp_path / "nothing", "serve").code == 10


def test_a_socket_of_systemd(layout: Layout, short_path: Path) -> None:
    """A server could not be started by its first client."""
    path = str(short_path / "activated")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        os.set_inheritable(listening.fileno(), True)
        # As systemd does: the socket is descriptor 3, and the variables name the process that gets it.
        script = 'exec 3<&"$1"; export LISTEN_FDS=1 LISTEN_PID=$$; shift; exec "$@"'
        words = ["bash", "-c", script, "-", str(listening.fileno()), SC_DTOOL, "-C", layout.root, "serve"]
        with start(words, pass_fds=[listening.fileno()]) as process:
            assert heard(process) == f"serving unix:{path}"
            assert Socket(path).ask("GET", "/healthz").code == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert os.path.exists(path)  # it is systemd's


def test_a_killed_server_loses_nothing(layout: Layout, server: Server) -> None:
    """What has come of a large file would be lost, or the file could not be used for hours."""
    size = 1 << 20
    url = server.pages("/x", Page(bytes(size), drip=1 << 18, etag='"1"'), Page(bytes(size), etag='"1"'))
    with on_socket(layout, "--allow-changes") as (process, served):
        body = json.dumps({"dataSet": [{"itemId": url, "mountPath": "/a"}]}).encode()
        made = served.ask("POST", f"{DM}/session", body, content_type="application/json").json
        lock = served.ask("POST", f"{DM}/lock?sessionId={made['_id']}&itemId=/a").json
        server.let_drop(2)
        wait_until(lambda: [one for one in served.ask("GET", "/transfers").json if one["bytes"]], "nothing comes")
        process.kill()
        process.wait(PATIENCE)
    cache = Cache(layout.root)
    (left,) = cache.transfers()
    assert (left.state, left.session) == ("abandoned", made["_id"])
    done = call("-C", layout.root, "use", "--holder", f"pid:{os.getpid()}", url)
    assert done.path.stat().st_size == size
    assert server.ranges("/x")[1] is not None  # continued, and not begun again
    with on_socket(layout, "--allow-changes") as (_, again):
        assert again.ask("GET", f"{DM}/session/{made['_id']}").json == made
        assert again.ask("GET", f"{DM}/lock/{lock['_id']}").code == 404
        assert again.ask("POST", f"{DM}/lock?sessionId={made['_id']}&itemId=/a").json["state"] == "held"
    cache.reap()
    cache.session(made["_id"]).delete()
    assert [one for one in cache.locks() if one.session] == []


@pytest.mark.root
def test_another_user_of_the_host(layout: Layout, short_path: Path) -> None:
    """A socket in a directory that others can enter would be open to all of them."""
    short_path.chmod(0o755)
    path = short_path / "shared"
    nobody = pwd.getpwnam("nobody")
    script = f"""
import os, socket
os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect({str(path)!r})
    connection.sendall(b"GET /session HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
    print(connection.recv(12).decode())
except PermissionError:
    print("refused by the kernel")
"""
    for words, said in (
        ([], "refused by the kernel"),
        (["--readers", "someone-else"], "HTTP/1.1 403"),
        (["--readers", "nobody"], "HTTP/1.1 404"),
    ):
        with on_socket(layout, "--socket", str(path), *words):
            assert shell([PYTHON, "-c", script]).out.strip() == said, words


def test_no_other_command_loads_the_service(layout: Layout, source: str) -> None:
    """Every short command would load a web framework."""
    probe = """
import sys
from sccache_dtool.cli.main import run
for words in (["use", sys.argv[1]], ["du"], ["ls"], ["session", "ls"], ["lock", "ls"], ["-h"], ["serve", "-h"]):
    run(["-C", sys.argv[2], *words])
heavy = {"fastapi", "starlette", "uvicorn", "pydantic", "anyio", "h11", "asyncio"}
print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""
    done = shell([PYTHON, "-c", probe, source, layout.root])
    assert done.err.splitlines()[-1] == "[]", done


def test_few_descriptors(layout: Layout) -> None:
    """Idle clients would take all descriptors that the host allows, and nobody else could read anything."""
    limited = ["bash", "-c", 'ulimit -n 128; exec "$@"', "-", SC_DTOOL, "-C", layout.root, "serve"]
    with start(limited) as process, contextlib.ExitStack() as until_end:
        served = Socket(heard(process).removeprefix("serving unix:"))
        for _ in range(150):
            until_end.enter_context(served.raw())
        wait_until(lambda: served.ask("GET", "/healthz").code == 503, "it takes more than it can serve")
        until_end.close()
        wait_until(lambda: served.ask("GET", "/items").code == 200, "it does not recover")


@pytest.mark.parametrize(
    ("fds", "pid", "code"), [("1", "1", None), ("9", "$$", 2), ("x", "$$", None), ("²", "$$", None)]
)
def test_variables_of_systemd_that_do_not_fit(layout: Layout, fds: str, pid: str, code: int | None) -> None:
    """A server below another service would take that one's descriptors for its sockets."""
    script = f'export LISTEN_FDS={fds} LISTEN_PID={pid}; exec "$@"'
    words = ["bash", "-c", script, "-", SC_DTOOL, "-C", layout.root, "serve"]
    if code is not None:
        assert shell(words).code == code
        return
    with start(words) as process:
        assert Socket(heard(process).removeprefix("serving unix:")).ask("GET", "/healthz").code == 200


@pytest.mark.parametrize("url", ["/data", "file:///data", "s3://bucket", "https://a/|http://b/"])
def test_sources_that_are_not_of_the_web(layout: Layout, url: str) -> None:
    """A mistyped limit for writers would limit nothing."""
    assert call("-C", layout.root, "serve", "--sources", url).code == 2
