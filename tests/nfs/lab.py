"""Real NFS for tests: a server and clients, each a Linux kernel of its own, as processes (User-Mode Linux).

They see the machine's files, read-only, at the same paths, so that what is tested runs there as it stands; what they
share is on the server, mounted by the kernel's own client. It takes root and /dev/net/tun, no virtualisation hardware,
and seconds. A host can be frozen, cut off, crashed and started again, have another clock and a slow network.

Everything of a laboratory is below one directory and in one network name space, and ends with it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hosts import leftovers
from hosts.machine import Done, Host
from nfs import kernels
from nfs.kernels import PATIENCE, DoesNotBootError

_HERE = Path(__file__).resolve().parent
_SERVER = "s"
_MOUNT = "/mnt/nfs"

#: What there is of it on the server.
EXPORT = "/mnt/export"

#: Where every host writes what must outlive it: a directory of the machine, whatever becomes of the network.
NOTES = "/mnt/notes"

#: What the first process of a host prints once its agent can be reached.
_UP = re.compile(r"^LAB-UP\b", re.MULTILINE)

#: Tells apart the laboratories of one run.
_numbers = itertools.count(1)

_PROGRAMS = "ip tc mkfs.ext4 setquota rpcbind exportfs rpc.nfsd rpc.mountd rpc.statd modprobe mount.nfs".split()
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def lacking() -> str | None:
    """Why there can be no laboratory here; None if there can."""
    if os.geteuid() != 0:
        return f"needs root, and runs as user {os.geteuid()}"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
    missing += [path for path in (kernels.INSTALLED, "/dev/net/tun") if not os.path.exists(path)]
    return f"no {', '.join(missing)} here (on Debian: `.ci/packages nfs`)" if missing else None


class NfsHost(Host):
    """A host of the laboratory; what it does, the agent on it does (see `Host`)."""

    def __init__(self, lab: Lab, name: str, number: int, skew: int) -> None:
        """Begin to boot it; `skew`: seconds by which its clock is ahead."""
        self.name = name
        self._lab = lab
        self._number = number
        self._skew = skew
        self._kernel: subprocess.Popen[bytes]
        self.boot()

    @property
    def is_server(self) -> bool:
        """Whether it is the server."""
        return self.name == _SERVER

    def boot(self) -> None:
        """Power on; `connect` waits until it is up."""
        log = self._lab.log(self.name)
        self._booted_at = log.stat().st_size if log.exists() else 0
        self._kernel = self._lab.start_kernel(self.name, self._number, self._skew)

    def connect(self) -> None:
        """Wait until it is up, and have its agent obey.

        Raises:
            DoesNotBootError: It does not come up; raised as soon as that is known.
        """
        try:
            kernels.wait_until_said(_UP, self._kernel, self._lab.log(self.name), self._booted_at)
        except DoesNotBootError as error:
            where = self._lab.log(self.name)
            raise DoesNotBootError(f"host {self.name} does not come up: {error} ({where})") from error
        wire = [sys.executable, str(_HERE / "wire.py"), "connect", f"10.78.0.{self._number}", f"{PATIENCE:g}"]
        self.attach(self._lab.within(wire), {"PATH": _PATH})
        threading.Thread(target=self._hang_up, args=(self._kernel, self._process), daemon=True).start()
        assert self._ask("getpid")

    @staticmethod
    def _hang_up(kernel: subprocess.Popen[bytes], wire: subprocess.Popen[str]) -> None:
        """When the kernel has ended, the test that waits for an answer is told that the host is down."""
        kernel.wait()
        wire.kill()

    def mount(self, version: str, options: str = "") -> None:
        """Mount what the server has; `version`: of the protocol, such as ``"4.2"``."""
        source = f"10.77.0.1:/{'mnt/export' if version.startswith('3') else ''}"
        words = f"vers={version}{',' if options else ''}{options}"
        self.do("mount", "-t", "nfs", "-o", words, source, _MOUNT)

    def unmount(self) -> None:
        """Forget all that this host remembers of the server."""
        self.do("umount", _MOUNT)

    def do(self, *argv: str) -> str:
        """Run a command that must succeed; what it prints."""
        done = self.run(*argv)
        assert done.code == 0, (self.name, argv, done)
        return done.out

    def sc_dtool(self, *words: str) -> Done:
        """Run a command of the package on the cache that all hosts share."""
        return super().sc_dtool("--cache-dir", self.place, *words)

    def records(self, *words: str) -> list[dict[str, Any]]:
        """What a command of the package, which must succeed, says in JSON."""
        done = self.sc_dtool("--format", "json", *words)
        assert done.code == 0, (self.name, words, done)
        return [json.loads(line) for line in done.out.splitlines()]

    def leases(self) -> int:
        """How many are held, as this host sees it."""
        return sum(int(record["leases"]) for record in self.records("du") if record["type"] == "total")

    @property
    def place(self) -> str:
        """Where the shared cache is, seen from here."""
        return f"{EXPORT if self.is_server else _MOUNT}/cache"

    def freeze(self) -> None:
        """Stop the whole host: its processes run only through its kernel."""
        self._kernel.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._kernel.send_signal(signal.SIGCONT)

    def cut(self) -> None:
        """Pull the plug of its network, but for what the test says to it."""
        self._lab.ip("link", "set", f"{self.name}0", "nomaster")

    def heal(self) -> None:
        """Put it back."""
        self._lab.ip("link", "set", f"{self.name}0", "master", "br0")

    def suffer(self, *what: str) -> None:
        """Have what it sends to the others delayed or lost, in the words of netem."""
        self.do("tc", "qdisc", "replace", "dev", "vec0", "root", "netem", *what)

    def recover(self) -> int:
        """End that; how many packets were lost."""
        (queue,) = json.loads(self.do("tc", "-s", "-j", "qdisc", "show", "dev", "vec0", "root"))
        self.do("tc", "qdisc", "del", "dev", "vec0", "root")
        return int(queue["drops"])

    @property
    def boot_id(self) -> str:
        """What tells this boot from every other."""
        return self.do("cat", "/proc/sys/kernel/random/boot_id").strip()

    def crash(self) -> None:
        """A power failure: the kernel and all its processes are gone, and nothing is written."""
        kernels.end(self._kernel)
        self.power_off()


class Lab:
    """A server and its clients; a context manager."""

    def __init__(self, work: Path, clients: Sequence[str] = ("a", "b"), skew: Mapping[str, int] | None = None) -> None:
        self._work = work
        self._kernel = kernels.choose()
        leftovers.remove()
        self._space = f"{leftovers.this_run()}.{next(_numbers)}"
        self.version = ""  # of NFS, while it is mounted
        self._disk = work / "export.img"
        self._hosts: dict[str, NfsHost] = {}
        self.notes = leftovers.make_directory("notes", "/dev/shm")  # where nothing waits for a disk
        names = [_SERVER, *clients]
        skews = skew or {}
        try:
            self._run("ip", "netns", "add", self._space)
            self._make_network(names)
            self._make_disk()
            for number, name in enumerate(names, 1):
                self._hosts[name] = NfsHost(self, name, number, skews.get(name, 0))
            for host in self._hosts.values():
                host.connect()
        except BaseException:
            self.down()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.down()

    def __getitem__(self, name: str) -> NfsHost:
        return self._hosts[name]

    @property
    def server(self) -> NfsHost:
        """The host whose disk it all is on."""
        return self._hosts[_SERVER]

    @property
    def clients(self) -> list[NfsHost]:
        """All others."""
        return [host for host in self._hosts.values() if not host.is_server]

    @contextlib.contextmanager
    def mounted(self, version: str) -> Iterator[None]:
        """With the server's files, and nothing in them, mounted on all clients."""
        self.version = version
        self.server.do("sh", "-c", f"rm -rf {EXPORT}/cache*")
        for left in self.notes.iterdir():
            shutil.rmtree(left)
        for client in self.clients:
            client.mount(version)
        try:
            yield
        finally:
            for client in self.clients:
                client.heal()  # a test that has failed may not have come to that
                client.thaw()
                client.run("umount", "-f", "-l", _MOUNT)

    def down(self) -> None:
        """End all hosts and their network."""
        for host in self._hosts.values():
            host.crash()
        leftovers.remove_space(self._space)
        shutil.rmtree(self.notes)

    # -- for the hosts -------------------------------------------------------------------------------------------------

    def within(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in the network of the laboratory."""
        return ["ip", "netns", "exec", self._space, *argv]

    def ip(self, *words: str) -> None:
        """A command of `ip` in that network."""
        self._run("ip", "-n", self._space, *words)

    def log(self, name: str) -> Path:
        """What a host's kernel says."""
        return self._work / f"{name}.log"

    def start_kernel(self, name: str, number: int, skew: int) -> subprocess.Popen[bytes]:
        """Start a host; its processes are all in one process group."""
        given = {
            "NAME": name,
            "NUMBER": number,
            "ROLE": "server" if name == _SERVER else "client",
            "HERE": _HERE,
            "PYTHON": sys.executable,
            "MODULES": self._kernel.modules,
            "SKEW": skew or "",
            "NOTES": self.notes,
        }
        cards = [f"vec{net}:transport=tap,ifname={name}{net},mac=02:00:00:00:0{net}:{number:02x}" for net in (0, 1)]
        kernel = self._kernel.command(_HERE / "init.sh", name, self._work / "uml")
        disk = [f"ubda={self._disk}"] if name == _SERVER else []
        environment = [f"LAB_{key}={value}" for key, value in given.items()]
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                self.within([*kernel, *disk, *cards, *environment]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "PATH": _PATH,
                    "TMPDIR": "/dev/shm",  # where its memory is
                    leftovers.VARIABLE: leftovers.this_run(),
                },
            )

    # -- making it -----------------------------------------------------------------------------------------------------

    def _make_network(self, names: Sequence[str]) -> None:
        """Two: one for NFS, which tests cut, and one for what they say."""
        for net in (0, 1):
            self.ip("link", "add", f"br{net}", "type", "bridge")
            self.ip("address", "add", f"10.7{7 + net}.0.254/24", "dev", f"br{net}")
            self.ip("link", "set", f"br{net}", "up")
            for name in names:
                self.ip("tuntap", "add", "dev", f"{name}{net}", "mode", "tap")
                self.ip("link", "set", f"{name}{net}", "master", f"br{net}", "up")

    def _make_disk(self) -> None:
        with self._disk.open("wb") as disk:
            disk.truncate(512 << 20)
        self._run("mkfs.ext4", "-q", "-i", "4096", "-O", "quota", "-E", "quotatype=usrquota", str(self._disk))

    def _run(self, *argv: str) -> None:
        done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PATH": _PATH}, check=False)
        assert done.returncode == 0, (argv, done.stderr)
