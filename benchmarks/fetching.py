"""Downloads, beside others: `make bench-fetching` (ARGS: --race, --speed, --json, --size MB, --rounds N, --dir DIR).

The race: eight processes want one file, a fifth of a second apart, and its download takes 1.6 seconds. How many get
the right bytes, and how often is the server asked? The speed: one large file, digest taken on the way, beside `curl`,
which takes none; in turns, as a ratio, with the processor time of both and the memory of ours. What is not installed
(the extra `bench` has it) is left out, and said so.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from measure import Figure, in_turns, ratio

READERS, APART, SECONDS, PIECES = 8, 0.2, 1.6, 32
BODY = os.urandom(4_000_000)
HOST = Path(__file__).parents[1] / "tests" / "hosts" / "nshost.sh"

#: Each reads the URL in argv[1] with what is in the directory argv[2], and prints the digest of what it got.
_END = "\nimport hashlib; print(hashlib.md5(data).hexdigest())"
_FSSPEC = (
    "import sys, fsspec\n"
    "options = {1}\n"
    "with fsspec.open('{0}::' + sys.argv[1], {0}=options) as file: data = file.read()"
)
_STORAGE = "{'cache_storage': sys.argv[2], 'same_names': True}"
_SCRIPTS = {
    "fsspec simplecache": ("fsspec", _FSSPEC.format("simplecache", _STORAGE) + _END),
    "fsspec filecache": ("fsspec", _FSSPEC.format("filecache", _STORAGE) + _END),
    "fsspec sccache": ("fsspec", _FSSPEC.format("sccache", "{'cache': sys.argv[2]}") + _END),
    "pooch": (
        "pooch",
        "import sys, pooch\npooch.get_logger().disabled = True\n"
        f"path = pooch.retrieve(sys.argv[1], 'md5:{hashlib.md5(BODY).hexdigest()}', 'x', sys.argv[2])\n"
        "data = open(path, 'rb').read()" + _END,
    ),
    "cached-path": (
        "cached_path",
        "import sys; from cached_path import cached_path\n"
        "data = open(cached_path(sys.argv[1], cache_dir=sys.argv[2], quiet=True), 'rb').read()" + _END,
    ),
}
_OURS = [sys.executable, "-m", "sccache_dtool", "-q", "-C"]
_READ = 'path=$("$@" --holder race --ttl 1h) && md5sum <"$path" | cut -d" " -f1'


class _Server(socketserver.ThreadingTCPServer):
    """Serves BODY slowly at /slow, and a large file at once at /large; counts."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 64
    gets = 0
    large = ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are a part of it."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_HEAD(self) -> None:
        self._head(200, len(BODY))

    def do_GET(self) -> None:
        if self.path == "/large":
            self._head(200, os.path.getsize(self.server.large))
            with open(self.server.large, "rb") as file:
                self.connection.sendfile(file)
            return
        self.server.gets += 1
        asked = self.headers.get("Range", "")
        begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self._head(206 if asked else 200, len(BODY) - begin, begin)
        step = len(BODY) // PIECES
        for at in range(begin, len(BODY), step):
            self.wfile.write(BODY[at : at + step])
            time.sleep(SECONDS / PIECES)

    def _head(self, status: int, length: int, begin: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"one"')
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _serving() -> Iterator[tuple[_Server, str]]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["no_proxy"] = "127.0.0.1"
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


# -- the race ----------------------------------------------------------------------------------------------------------


def race(scratch: Path) -> Iterator[dict[str, Any]]:
    """Who got what, of each library; ours also on two hosts, and with the first downloader killed half way."""
    for name, (module, script) in _SCRIPTS.items():
        if importlib.util.find_spec(module) is None:
            yield {"who": name, "missing": True}
            continue
        yield _run(name, scratch, lambda number, url, where: [sys.executable, "-c", script, url, where])  # noqa: B023
    yield _run("sc-dtool", scratch, _ours)
    yield _run("sc-dtool, the first killed", scratch, _ours, kill=True)
    probe = subprocess.run(["bash", HOST, "probe", "--", "true"], capture_output=True, check=False)
    if probe.returncode == 0:
        yield _run(
            "sc-dtool, two hosts",
            scratch,
            lambda number, url, where: ["bash", str(HOST), "ab"[number % 2], "-n", "--", *_ours(number, url, where)],
        )


def _ours(number: int, url: str, where: str) -> list[str]:
    return ["bash", "-c", _READ, "-", *_OURS, where, "use", url]


def _run(
    name: str, scratch: Path, command: Callable[[int, str, str], list[str]], *, kill: bool = False
) -> dict[str, Any]:
    where = scratch / name.replace(" ", "-").replace(",", "")
    where.mkdir()
    right = hashlib.md5(BODY).hexdigest()
    with _serving() as (server, url):
        readers = []
        for number in range(READERS):
            readers.append(
                subprocess.Popen(
                    command(number, f"{url}/slow", str(where)),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            )
            time.sleep(APART)
            if kill and number == READERS // 2:
                os.killpg(readers[0].pid, signal.SIGKILL)
        said = [reader.communicate(timeout=120)[0].strip() for reader in readers]
        if kill:
            said = said[1:]
        return {
            "who": name,
            "readers": len(said),
            "right": said.count(right),
            "corrupt": sum(len(one) == 32 and one != right for one in said),
            "failed": sum(len(one) != 32 for one in said),
            "gets": server.gets,
        }


# -- the speed ---------------------------------------------------------------------------------------------------------

_FETCH = (
    "import sys, time\n"
    "from sccache_dtool.fetch import run\n"
    "from sccache_dtool.fetch.progress import NoProgress\n"
    "from sccache_dtool.fetch.request import Request\n"
    "from sccache_dtool.fetch.stack import parse_stack\n"
    "from sccache_dtool.clock import Clock\n"
    "from sccache_dtool.disk.filesystem import FileSystem\n"
    "from sccache_dtool.disk.names import Layout\n"
    "from sccache_dtool.liveness.process import Proc\n"
    "from sccache_dtool.protocol.store import Store\n"
    "import requests\n"
    "fs = FileSystem()\n"
    "fs.seal = lambda *a, **b: None\n"  # curl does not wait for the disk either
    "began = time.perf_counter()\n"
    "store = Store(fs, Layout('/nowhere'), Clock(), Proc(), '')\n"
    "request = Request('', None, 'x', parse_stack(sys.argv[2:]))\n"
    "run.fetch(store, request, sys.argv[1], progress=NoProgress())\n"
    "took = time.perf_counter() - began\n"
    "print(took, open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
)


class _Speed:
    """Fetches one file in several ways; seconds, and what else was seen."""

    def __init__(self, scratch: Path, url: str, digest: str) -> None:
        self._scratch = scratch
        self._url = url
        self._digest = digest
        self.memory = 0
        self.processor: dict[str, list[float]] = {}

    def curl(self) -> float:
        target = self._scratch / "curl"
        began = time.perf_counter()
        self._call("curl", ["curl", "-s", "-o", str(target), self._url])
        took = time.perf_counter() - began
        target.unlink()
        return took

    def ours(self, *steps: str) -> float:
        area = self._scratch / "area"
        area.mkdir()
        name = "ours, sha256" if steps else "ours"
        said = self._call(name, [sys.executable, "-c", _FETCH, str(area), self._url, *steps])
        shutil.rmtree(area)
        seconds, memory = said.split()
        self.memory = max(self.memory, int(memory) << 10)
        return float(seconds)

    def checked(self) -> float:
        return self.ours(self._digest)

    def _call(self, name: str, argv: list[str]) -> str:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.processor.setdefault(name, []).append(used)
        return done.stdout


def speed(scratch: Path, size: int, rounds: int, budget: float) -> tuple[list[Figure], dict[str, Any]]:
    """Ratios of throughput to curl's, and what was used."""
    body = scratch / "large"
    digest = hashlib.sha256()
    with open(body, "wb") as file:
        piece = os.urandom(1 << 20)
        for _ in range(size >> 20):
            file.write(piece)
            digest.update(piece)
    with _serving() as (server, url):
        server.large = str(body)
        runs = _Speed(scratch, f"{url}/large", f"sha256:{digest.hexdigest()}")
        times = in_turns({"curl": runs.curl, "plain": runs.ours, "checked": runs.checked}, rounds, budget)
    body.unlink()
    plain = ratio("curl", "throughput beside curl", "curl", "plain", times, ">=", 0.9)
    checked = ratio("curl-digest", "with SHA-256 on the way, beside curl without", "curl", "checked", times, ">=", 0.9)
    more = {
        "memory": runs.memory,
        "processor": {name: statistics.median(found) for name, found in runs.processor.items()},
    }
    return [plain, checked], more


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--race", action="store_true", help="only the race")
    parser.add_argument("--speed", action="store_true", help="only the speed")
    parser.add_argument("--size", type=int, default=1024, help="megabytes of the large file (default: 1024)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dir", help="where to measure (default: a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    both = not (given.race or given.speed)
    result: dict[str, Any] = {"version": 1, "load": os.getloadavg()[0], "processors": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="sc-dtool-bench-", dir=given.dir) as directory:
        if given.race or both:
            result["race"] = list(race(Path(directory)))
        if given.speed or both:
            figures, more = speed(Path(directory), given.size << 20, given.rounds, 240.0)
            result["speed"] = {"figures": [figure.fields() for figure in figures], **more}
    print(json.dumps(result, indent=2) if given.json else _shown(result))
    return 0


def _shown(result: dict[str, Any]) -> str:
    lines = [f"load {result['load']:.1f} on {result['processors']} processors"]
    for row in result.get("race", ()):
        if row.get("missing"):
            lines.append(f"{row['who']:28} not installed")
        else:
            lines.append(
                f"{row['who']:28} {row['right']} of {row['readers']} right, {row['corrupt']} corrupt, "
                f"{row['failed']} failed, {row['gets']} GETs"
            )
    for figure in result.get("speed", {}).get("figures", ()):
        lines.append(
            f"{figure['what']}: {figure['value']:.2f} x, from {figure['least']:.2f} to {figure['most']:.2f} in "
            f"{figure['rounds']} rounds (target: at least {figure['target']:g} x)"
        )
    if "speed" in result:
        used = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["speed"]["processor"].items())
        lines.append(f"processor time: {used}; our memory at most {result['speed']['memory'] / 2**20:.0f} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
