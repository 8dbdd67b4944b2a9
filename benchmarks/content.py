"""What files by their content cost: `add`, `save`, `marker status`, `open`, and the export of the index.

``content.py [--dir DIRECTORY] [--bytes N] [--files N] [--records N] [--rounds N] [--dvc PATH] [--json]``. The targets
are for 1 GB, 10,000 files and a million records, on an idle machine. With ``--dvc``, the program `dvc` is measured
beside it: `dvc add`, `dvc checkout` and `dvc status` of the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from from_shell import Installation
from measure import Figure, in_turns, ratio
from run import line, ran_on

from sccache_dtool import Cache
from sccache_dtool.fetch.context import Context
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.markers import index
from sccache_dtool.markers.archive import Details

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # the server is that of the tests


def _timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _figure(name: str, what: str, target: float | None, times: list[float]) -> Figure:
    sign = "<=" if target else ""
    return Figure(name, what, sign, target, statistics.median(times), min(times), max(times), len(times), {})


def _run(*argv: str | Path, cwd: Path | None = None) -> None:
    argv_text = [str(word) for word in argv]
    subprocess.run(argv_text, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)


def of_one_file(directory: Path, command: Callable[..., None], size: int, rounds: int) -> Iterator[Figure]:
    """`add` of a large file, and `sha256sum` and `cp` of the same."""
    large = directory / "large"

    def fresh() -> None:
        with large.open("wb") as file:
            for _ in range(max(1, size >> 20)):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())

    def add(*options: str) -> float:
        fresh()
        return _timed(lambda: command("add", *options, str(large)))

    def plainly() -> float:
        fresh()

        def both() -> None:
            _run("sha256sum", large)
            _run("cp", large, directory / "copy")
            _run("sync", directory / "copy")

        took = _timed(both)
        (directory / "copy").unlink()
        return took

    times = in_turns({"add": add, "archive": lambda: add("--archive-only"), "plain": plainly}, rounds, 600)
    yield ratio("add", "`add` of one large file to sha256sum, cp and sync", "add", "plain", times)
    what = "`add --archive-only` of one large file to sha256sum, cp and sync"
    yield ratio("add-archive-only", what, "archive", "plain", times, "<=", 1.15)
    large.unlink()


def of_many_files(
    directory: Path, command: Callable[..., None], files: int, rounds: int, dvc: str | None
) -> Iterator[Figure]:
    """`save`, `marker status` and `marker restore` of many small files, and the same with dvc."""
    of = f"of {files:,} files of 1 kB"

    def make(name: str) -> Path:
        place = directory / name
        place.mkdir()
        for number in range(files):
            (place / f"{number}.dat").write_bytes(os.urandom(1000))
        return place

    place = make("files")
    yield _figure("save", f"seconds of `save -r` {of}", 10.0, [_timed(lambda: command("save", "-r", str(place)))])
    took = _timed(lambda: command("save", "--as-one", str(make("one"))))
    yield _figure("save-as-one", f"seconds of `save --as-one` {of}", None, [took])
    time.sleep(3)  # what was just written is not remembered
    command("marker", "status", str(place))
    times = [_timed(lambda: command("marker", "status", str(place))) for _ in range(rounds)]
    yield _figure("status", f"seconds of `marker status` {of}, none changed", 1.0, times)
    project = directory / "dvc"
    if dvc is not None:
        shutil.copytree(place, project / "data", ignore=shutil.ignore_patterns("*.marker"))
    for path in place.glob("*.dat"):
        path.unlink()
    yield _figure(
        "restore", f"seconds of `marker restore` {of}", None, [_timed(lambda: command("marker", "restore", str(place)))]
    )
    if dvc is None:
        return
    _run("git", "init", "-q", ".", cwd=project)
    _run(dvc, "init", "-q", cwd=project)
    _run(dvc, "remote", "add", "-d", "local", directory / "remote", cwd=project)
    names = [f"data/{number}.dat" for number in range(files)]
    yield _figure(
        "dvc-add", f"seconds of `dvc add` {of}", None, [_timed(lambda: _run(dvc, "add", *names, cwd=project))]
    )
    times = [_timed(lambda: _run(dvc, "status", cwd=project)) for _ in range(rounds)]
    yield _figure("dvc-status", f"seconds of `dvc status` {of}, none changed", None, times)
    for name in names:
        (project / name).unlink()
    took = _timed(lambda: _run(dvc, "checkout", cwd=project))
    yield _figure("dvc-checkout", f"seconds of `dvc checkout` {of}", None, [took])


def of_open(cache: Cache, directory: Path, rounds: int) -> Iterator[Figure]:
    """`open` of a cached object, and `use` of the same."""
    (directory / "small").write_bytes(b"small")
    id = cache.add(directory / "small")

    def use() -> None:
        for _ in range(100):
            with cache.use(id) as path, path.open("rb") as file:
                file.read()

    def opened() -> None:
        for _ in range(100):
            with cache.open(id, "rb") as file:
                file.read()

    times = in_turns({"open": lambda: _timed(opened), "use": lambda: _timed(use)}, max(5, rounds), 60)
    yield ratio("open", "open of a cached object to use and open of its path", "open", "use", times)


def of_server(cache: Cache, directory: Path, size: int, rounds: int) -> Iterator[Figure]:
    """Upload to and download from the smallest server, and the same bytes through a socket from `cat` to `cat`.

    The server is a process of its own.
    """
    path, id = directory / "sent", ""
    root = directory / "client"
    Cache(root).init()
    with _server_of(cache) as url:
        Path(root, ".sc-dtool", "config.toml").write_text(f'[archive]\nurl = "{url}"\n')
        client = Cache(root)

        def fresh() -> None:
            path.write_bytes(os.urandom(size))

        def upload() -> float:
            nonlocal id
            fresh()
            staged = client.archive.stage(Context(client.store, NoProgress()), str(path))
            took = _timed(lambda: client.archive.put(staged, Details()))
            client.archive.discard(staged.path)
            id = staged.digits
            return took

        def download() -> float:
            def get() -> None:
                with (directory / "got").open("wb") as file:
                    for piece in client.archive.pieces(id):
                        file.write(piece)

            return _timed(get)

        def cat() -> float:
            return _timed(lambda: _through_a_socket(path, directory / "copy"))

        times = in_turns({"upload": upload, "cat": cat, "download": download}, max(3, rounds), 120)
        client.close()
    of = f"of {size >> 20:,} MiB, to `cat` through a socket (hashed, checked, synchronized)"
    yield ratio("upload", f"seconds of the upload {of}", "upload", "cat", times, "<=", 1.25)
    yield ratio("download", f"seconds of the download {of}", "download", "cat", times, "<=", 1.25)


@contextlib.contextmanager
def _server_of(cache: Cache) -> Iterator[str]:
    """The URL of a server of the cache's archive, until the block ends."""
    argv = [sys.executable, __file__, "--serve", str(cache.root)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()  # which ends it


def _serve(root: str) -> None:
    import archiveserver

    with archiveserver.serve(Cache(root).archive) as server:
        print(server.url, flush=True)
        sys.stdin.read()


def _through_a_socket(source: Path, target: Path) -> None:
    """Copy a file by two processes and a TCP connection between."""
    with socket.create_server(("127.0.0.1", 0)) as listener, target.open("wb") as written, source.open("rb") as read:
        there = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
        with here, there:
            sender = subprocess.Popen(["cat"], stdin=read, stdout=there)
            there.close()
            receiver = subprocess.Popen(["cat"], stdin=here, stdout=written)
            for process in (sender, receiver):
                process.wait()
        os.fsync(written.fileno())


def of_export(cache: Cache, directory: Path, number: int) -> Iterator[Figure]:
    """The export of many records."""
    for one in range(number):
        digits = hashlib.sha256(str(one).encode()).hexdigest()
        place = Path(cache.archive.url, "added", digits[:2])
        place.mkdir(exist_ok=True)
        (place / f"{digits}~{1_700_000_000_000 + one}~1000~{one:016x}").touch()
    took = _timed(lambda: index.export(cache.archive, "csv", str(directory / "index.csv")))
    yield _figure("export", f"seconds of the export of {number:,} records to CSV", 30.0, [took])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    yield _figure("export-memory", "MB of memory at most", 100.0, [peak])


def figures(directory: Path, arguments: argparse.Namespace) -> Iterator[Figure]:
    """All figures."""
    installed = Installation.make(directory / "installation")
    root, archive = directory / "cache", directory / "archive"
    archive.mkdir()
    Cache(root).init()
    Path(root, ".sc-dtool", "config.toml").write_text(f'[archive]\nurl = "{archive}"\n')
    os.environ["XDG_STATE_HOME"] = str(directory / "state")
    cache = Cache(root)
    cache.archive.init()

    def command(*words: str) -> None:
        _run(installed.python, installed.script, "-C", root, "-q", *words)

    yield from of_export(cache, directory, arguments.records)
    yield from of_open(cache, directory, arguments.rounds)
    yield from of_server(cache, directory, arguments.bytes // 4, arguments.rounds)
    yield from of_one_file(directory, command, arguments.bytes, arguments.rounds)
    yield from of_many_files(directory, command, arguments.files, arguments.rounds, arguments.dvc)
    cache.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to measure (default: a temporary directory)")
    parser.add_argument("--bytes", type=int, default=1_000_000_000, help="size of the large file (default: 1 GB)")
    parser.add_argument("--files", type=int, default=10_000, help="how many small files (default: 10,000)")
    parser.add_argument("--records", type=int, default=1_000_000, help="how many records (default: a million)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of what can be repeated (default: 3)")
    parser.add_argument("--dvc", help="the program dvc, to be measured as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve)
        return 0
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sc-dtool-content-", dir=arguments.dir) as scratch:
        where = ran_on(scratch)
        for one in figures(Path(scratch), arguments):
            found.append(one)
            if not arguments.json:
                print(line(one) if one.target else f"{one.what}: {one.value:.3f}", flush=True)
    if arguments.json:
        print(json.dumps({"version": 1, "ran_on": where, "figures": [one.fields() for one in found]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
