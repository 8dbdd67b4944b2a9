"""Real servers on the loopback interface, one for each protocol that fsspec serves and `loaders` calls tested.

    with servers.webdav(directory) as base:
        ...                                  # base + "/name" is the URL of directory/name

Each is started in this process or as a child of it, and ended with its context. What is not installed skips the test.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import httpserver
from waiting import wait_until

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
_PLACES = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/libexec", "/usr/lib/ssh")
SFTP = next((f"{place}/sftp-server" for place in _PLACES if os.path.exists(f"{place}/sftp-server")), None)

USER, PASSWORD = "ada", "hush/hush"


def need(*modules: str) -> None:
    """Skip the test unless these are installed."""
    gone = [name for name in modules if importlib.util.find_spec(name) is None]
    if gone:
        pytest.skip(f"not installed: {' '.join(gone)}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@contextlib.contextmanager
def webdav(directory: Path, *, tls: bool = False) -> Iterator[str]:
    """WsgiDAV; `tls`: with a certificate of its own, which this process trusts as long as the context lasts."""
    need("fsspec", "webdav4", "wsgidav", "cheroot")
    from cheroot import wsgi
    from cheroot.ssl.builtin import BuiltinSSLAdapter
    from wsgidav.wsgidav_app import WsgiDAVApp

    config = {
        "provider_mapping": {"/dav": str(directory)},
        "http_authenticator": {"domain_controller": None, "accept_basic": True, "accept_digest": False},
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
        "dir_browser": {"enable": False},
        "verbose": 0,
        "logging": {"enable": False},
    }
    server = wsgi.Server(("127.0.0.1", 0), WsgiDAVApp(config))
    with contextlib.ExitStack() as stack:
        stack.enter_context(httpserver.past_proxies())
        if tls:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            certificate, key = _certificate(directory.parent)
            server.ssl_adapter = BuiltinSSLAdapter(certificate, key)
            patch.setenv("SSL_CERT_FILE", certificate)
        server.prepare()
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        try:
            scheme = "webdavs" if tls else "webdav"
            yield f"{scheme}://{USER}:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{server.bind_addr[1]}/dav"
        finally:
            server.stop()
            thread.join()


def _certificate(directory: Path) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    ssl.create_default_context(cafile=certificate)
    return str(certificate), str(key)


@contextlib.contextmanager
def ftp(directory: Path) -> Iterator[str]:
    """A server of pyftpdlib."""
    need("fsspec", "pyftpdlib")
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import ThreadedFTPServer

    class Handler(FTPHandler):  # type: ignore[misc]
        authorizer = DummyAuthorizer()
        timeout = 30

    Handler.authorizer.add_user(USER, "hush", str(directory), perm="elr")
    server = ThreadedFTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.05, "handle_exit": False}, daemon=True)
    thread.start()
    try:
        yield f"ftp://{USER}:hush@127.0.0.1:{server.address[1]}"
    finally:
        server.close_all()
        thread.join(30)


@contextlib.contextmanager
def sftp(directory: Path) -> Iterator[str]:
    """OpenSSH's sshd, which this user may enter."""
    need("fsspec", "paramiko")
    with ssh(directory.parent / "ssh") as base:
        yield f"{base}{directory}"


@contextlib.contextmanager
def ssh(home: Path) -> Iterator[str]:
    """The same, for all paths of this host. `home`: a directory that is made, and is HOME meanwhile."""
    if SSHD is None or SFTP is None:
        pytest.skip("there is no sshd on this machine (Debian: openssh-server)")
    home.mkdir(mode=0o700)
    (home / ".ssh").mkdir(mode=0o700)
    for name in ("host", ".ssh/id_rsa"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f", home / name], check=True
        )
    keys = home / "authorized_keys"
    keys.write_text((home / ".ssh/id_rsa.pub").read_text())
    keys.chmod(0o600)
    port = free_port()
    (home / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nPidFile none\nAuthorizedKeysFile {keys}\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp {SFTP}\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", home / "config"], stderr=subprocess.DEVNULL)
    try:

        def answers() -> bool:
            assert daemon.poll() is None, "sshd does not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_until(answers, "sshd answers", pause=0.02)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))
            patch.delenv("SSH_AUTH_SOCK", raising=False)
            yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}"
    finally:
        daemon.terminate()
        daemon.wait(30)


@contextlib.contextmanager
def s3(directory: Path) -> Iterator[str]:
    """Moto; its bucket has what `directory` has whenever it is asked."""
    need("s3fs", "moto", "boto3")
    with moto() as client:
        client.create_bucket(Bucket="shown")

        def put(path: Path) -> None:
            client.put_object(Bucket="shown", Key=str(path.relative_to(directory)), Body=path.read_bytes())

        PUT[directory] = put
        try:
            yield "s3://shown"
        finally:
            del PUT[directory]
            listed = client.get_paginator("list_objects_v2").paginate(Bucket="shown")
            for one in [one for page in listed for one in page.get("Contents", [])]:  # the next server has them too
                client.delete_object(Bucket="shown", Key=one["Key"])


#: What has to be called after a file below a directory was written.
PUT: dict[Path, Callable[[Path], None]] = {}


@contextlib.contextmanager
def moto() -> Iterator[Any]:
    """A server of S3, and a boto3 client of it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        server.start()
        try:
            host, port = server.get_host_and_port()
            for name, value in {
                "AWS_ACCESS_KEY_ID": "me",
                "AWS_SECRET_ACCESS_KEY": "hush",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_CONFIG_FILE": "/dev/null",
                "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
                "no_proxy": "127.0.0.1,localhost",
            }.items():
                patch.setenv(name, value)
            yield boto3.client("s3")
        finally:
            server.stop()


@contextlib.contextmanager
def webdavs(directory: Path) -> Iterator[str]:
    """WebDAV over TLS."""
    with webdav(directory, tls=True) as base:
        yield base


ALL = {"ftp": ftp, "s3": s3, "sftp": sftp, "webdav": webdav, "webdavs": webdavs}


class Waypoint:
    """A port that leads to another, and can hold back what comes from there until enough has been asked for.

    What is asked for meanwhile is counted in bytes, as a line that may be encrypted shows no more.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._change = threading.Condition()
        self._asked = 0
        self._least = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def hold_back_until(self, asked: int) -> None:
        """From now on let answers through only once so many bytes more have been asked for; then all."""
        with self._change:
            self._asked, self._least = 0, asked

    def close(self) -> None:
        """No more connections."""
        with self._change:
            self._least = 0
            self._change.notify_all()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._pump, args=(here, there, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(there, here, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, asking: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._change:
                    if asking:
                        self._asked += len(data)
                        self._change.notify_all()
                    else:
                        self._change.wait_for(lambda: self._asked >= self._least)
                        self._least = 0
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
