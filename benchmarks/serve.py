"""What the service costs: requests a second, downloads beside `cat`, and memory while 8 clients download.

``serve.py [--dir DIRECTORY] [--seconds S] [--size BYTES] [--gigabytes N] [--rounds N] [--json]``. The files are sparse:
what is measured is the way from the page cache to the socket. A client runs on another core than the server, if there
is one. The targets are for one core, on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from from_shell import Installation
from measure import Figure, in_turns, ratio
from run import line, ran_on

from sccache_dtool import Cache

_DM = "/api/v1/dm"
_PIECE = 1 << 20


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class _Served:
    """A server of a cache, as a process."""

    def __init__(self, program: Sequence[str], root: Path, path: Path) -> None:
        words = [*program, "-C", str(root), "serve", "--allow-changes", "--socket", str(path)]
        begin = time.perf_counter()
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.started = time.perf_counter() - begin
        self.path = str(path)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = _Connection(self.path)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data!r}")
        return data

    def memory(self) -> int:
        """Bytes of memory of the process, without what it shares with others."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        private = [row.split() for row in text.splitlines() if row.startswith("Private_")]
        return sum(int(row[1]) for row in private) * 1024

    def cpu(self) -> float:
        """Seconds of processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def lock(self, source: Path) -> str:
        """A lock on a file, once it is held."""
        data_set = {"dataSet": [{"itemId": str(source), "mountPath": "/a"}]}
        session = json.loads(self.ask("POST", f"{_DM}/session", json.dumps(data_set).encode()))["_id"]
        lock = str(json.loads(self.ask("POST", f"{_DM}/lock?sessionId={session}&itemId=/a"))["_id"])
        while json.loads(self.ask("GET", f"{_DM}/lock/{quote(lock)}"))["state"] != "held":
            time.sleep(0.1)
        return lock


@contextlib.contextmanager
def _serving(installed: Installation, root: Path, path: Path) -> Iterator[_Served]:
    served = _Served([str(installed.python), str(installed.script)], root, path)
    try:
        yield served
    finally:
        served.process.terminate()
        served.process.wait()


def _sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def _figure(name: str, what: str, sign: str, target: float | None, found: list[float]) -> Figure:
    return Figure(name, what, sign, target, statistics.median(found), min(found), max(found), len(found), {})


def _requests(served: _Served, path: str, seconds: float) -> float:
    """Answers for each second of processor time of the server, one after the other on one connection."""
    connection = _Connection(served.path)
    begin, before, count = time.perf_counter(), served.cpu(), 0
    while time.perf_counter() - begin < seconds:
        connection.request("GET", path)
        connection.getresponse().read()
        count += 1
    connection.close()
    return count / (served.cpu() - before)


def _drain(connection: socket.socket) -> int:
    buffer, count = bytearray(_PIECE), 0
    while got := connection.recv_into(buffer):
        count += got
    return count


def _download(served: _Served, path: str, size: int) -> float:
    begin = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(served.path)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        if _drain(connection) < size:
            raise RuntimeError("the download is too short")
    return time.perf_counter() - begin


def _cat(payload: str, directory: Path, size: int) -> float:
    """The same bytes through a Unix socket from `cat`."""
    path = str(directory / "cat.sock")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        begin = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            accepted, _ = listening.accept()
            with subprocess.Popen(["cat", payload], stdout=accepted):
                accepted.close()
                if _drain(connection) < size:
                    raise RuntimeError("cat wrote too little")
    return time.perf_counter() - begin


def of_requests(served: _Served, directory: Path, seconds: float, rounds: int) -> Iterator[Figure]:
    """`GET /dm/lock/{id}`, and the smallest request for comparison."""
    lock = served.lock(_sparse(directory / "small", 1000))
    for name, path, target in (("locks", f"{_DM}/lock/{quote(lock)}", 300.0), ("healthz", "/healthz", None)):
        _requests(served, path, 0.5)
        found = [_requests(served, path, seconds) for _ in range(rounds)]
        text = f"GET {path.split('/n')[0]}, for each second of processor time of the server"
        yield _figure(name, text, ">=" if target else "", target, found)
    yield _figure("start", "seconds from the start of the program until it listens", "", None, [served.started])


def of_downloads(served: _Served, root: Path, directory: Path, size: int, rounds: int) -> Iterator[Figure]:
    """A download beside `cat` of the same file."""
    lock = served.lock(_sparse(directory / "large", size))
    path = f"{_DM}/lock/{quote(lock)}/download"
    (payload,) = root.glob(".sc-dtool/items/*/*large/g*/payload/large")
    sides = {
        "cat": lambda: _cat(str(payload), directory, size),
        "download": lambda: _download(served, path, size),
    }
    text = "the throughput of a download, as a share of that of `cat` through a Unix socket"
    yield ratio("download", text, "cat", "download", in_turns(sides, rounds, 120.0), ">=", 0.8)


def of_memory(served: _Served, directory: Path, gigabytes: int) -> Iterator[Figure]:
    """Memory while 8 clients download sparse files."""
    size = gigabytes * 10**9
    lock = served.lock(_sparse(directory / "huge", size))
    path = f"{_DM}/lock/{quote(lock)}/download"
    before = served.memory()
    threads = [threading.Thread(target=_download, args=(served, path, size)) for _ in range(8)]
    for thread in threads:
        thread.start()
    found = []
    while any(thread.is_alive() for thread in threads):
        found.append((served.memory() - before) / 10**6)
        time.sleep(0.05)
    text = f"MB of memory that 8 downloads of {gigabytes} GB add"
    yield Figure("memory", text, "<=", 20.0, max(found), min(found), max(found), len(found), {})


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--size", type=int, default=2 * 10**9)
    parser.add_argument("--gigabytes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="sc-") as text:
        directory = Path(text)
        installed = Installation.make(directory / "installation")
        root = directory / "cache"
        Cache(root).init()
        with _serving(installed, root, directory / "sock") as served:
            found = [
                *of_requests(served, directory, given.seconds, given.rounds),
                *of_downloads(served, root, directory, given.size, given.rounds),
                *of_memory(served, directory, given.gigabytes),
            ]
    if given.json:
        where = ran_on(str(given.dir or tempfile.gettempdir()))
        print(json.dumps({"version": 1, "ran_on": where, "figures": [one.fields() for one in found]}, indent=2))
    else:
        for one in found:
            print(line(one) if one.target else f"{one.what}: {one.value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
