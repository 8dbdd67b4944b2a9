"""GlusterFS for tests: a replicated volume in a network name space, and two mounts of it, each with caches of its own.

Both are on this machine, so they share one kernel and one clock; what a client remembers they do not share. It takes
root, /dev/fuse and a few seconds. Everything is below one directory and ends with the tests, but for logs of
GlusterFS's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from waiting import wait_until

#: Seconds in which a daemon is up, or something is given up.
PATIENCE = 60.0

_ADDRESS = "10.79.0.1"  # Gluster takes no server at 127.0.0.1
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_DAEMON = """volume management
    type mgmt/glusterd
    option working-directory {work}/state
    option run-directory {work}/run
    option transport-type socket
    option transport.socket.listen-port 24007
    option transport.address-family inet
    option ping-timeout 0
    option glusterd-sockfile {work}/socket
end-volume
"""


def lacking() -> str | None:
    """Why there can be no GlusterFS here; None if there can."""
    if os.geteuid() != 0:
        return f"needs root, and runs as user {os.geteuid()}"
    missing = [name for name in ("glusterd", "glusterfs", "gluster", "ip") if shutil.which(name, path=_PATH) is None]
    missing += [path for path in ("/dev/fuse",) if not os.path.exists(path)]
    return f"no {', '.join(missing)} here (on Debian: glusterfs-server)" if missing else None


class Volume:
    """A replicated volume with two mounts; a context manager."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._space = f"sc-dtool-gluster-{os.getpid()}"
        self._daemon: subprocess.Popen[bytes] | None = None
        self.mounts = [work / "a", work / "b"]

    def __enter__(self) -> Volume:
        try:
            self._up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.down()

    def _up(self) -> None:
        for name in ("state", "run", "log", "brick1", "brick2", "a", "b"):
            (self._work / name).mkdir()
        self._run("ip", "netns", "add", self._space)
        self._run("ip", "-n", self._space, "link", "set", "lo", "up")
        self._run("ip", "-n", self._space, "address", "add", f"{_ADDRESS}/32", "dev", "lo")
        settings = self._work / "glusterd.vol"
        settings.write_text(_DAEMON.format(work=self._work))
        daemon = ["glusterd", "-N", "-f", str(settings), "-p", f"{self._work}/glusterd.pid"]
        self._daemon = subprocess.Popen(
            self._within(*daemon, "-l", f"{self._work}/log/glusterd.log"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": _PATH},
        )
        wait_until(lambda: self._gluster("pool", "list").returncode == 0, "glusterd answers", pause=0.1)
        bricks = [f"{_ADDRESS}:{self._work}/brick{number}" for number in (1, 2)]
        self._run(*self._words("volume", "create", "vol", "replica", "2", *bricks, "force"))
        self._run(*self._words("volume", "set", "vol", "cluster.self-heal-daemon", "off"))
        self._run(*self._words("volume", "start", "vol"))
        for mount in self.mounts:
            words = ["glusterfs", f"--volfile-server={_ADDRESS}", "--volfile-id=vol", "-p", f"{mount}.pid"]
            self._run(*self._within(*words, "-l", f"{self._work}/log/{mount.name}.log", str(mount)))
            wait_until(partial(_is_up, mount), f"{mount} is mounted", pause=0.1)

    def down(self) -> None:
        """Unmount, and end all daemons: those whose numbers they have written down here."""
        for mount in self.mounts:
            subprocess.run(["umount", "-l", str(mount)], capture_output=True, check=False)
        self._gluster("volume", "stop", "vol", "force")
        for noted in (*self._work.glob("*.pid"), *self._work.glob("run/**/*.pid")):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(noted.read_text()), 15)
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
        subprocess.run(["ip", "netns", "delete", self._space], env={**os.environ, "PATH": _PATH}, check=False)

    def _within(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._space}", *argv]

    def _words(self, *words: str) -> list[str]:
        return self._within("gluster", "--mode=script", f"--glusterd-sock={self._work}/socket", *words)

    def _gluster(self, *words: str) -> subprocess.CompletedProcess[str]:
        return _call(self._words(*words))

    def _run(self, *argv: str) -> None:
        done = _call(argv)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)


def _call(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": _PATH}
    return subprocess.run(argv, capture_output=True, text=True, env=environment, check=False, timeout=PATIENCE)


def _is_up(mount: Path) -> bool:
    if not os.path.ismount(mount):
        return False
    try:
        (mount / ".up").touch()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    """A volume, mounted twice."""
    if reason := lacking():
        pytest.skip(reason)
    with Volume(tmp_path_factory.mktemp("gluster")) as made:
        yield made
