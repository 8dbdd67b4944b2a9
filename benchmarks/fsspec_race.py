"""Processes that open one file at once by fsspec: how many read it right, and how often it is downloaded.

    python benchmarks/fsspec_race.py [--processes 8] [--rounds 10] [--megabytes 16]

fsspec's own `simplecache` and `filecache`, with one directory for all processes, and `sccache`. A read is wrong if it
raises, or if the bytes are not those of the file. See filesystem_spec, issue 639.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_METHODS = ("simplecache", "filecache", "sccache")


class Result(NamedTuple):
    """What the rounds of one method came to."""

    method: str
    reads: int
    wrong: int
    gets: float  # for each round

    def line(self) -> str:
        """The result as a row."""
        return f"{self.method:<14}{self.wrong:>5} of {self.reads:<8}{self.gets:>10.1f}"


@contextmanager
def _serve(body: bytes) -> Iterator[tuple[str, list[str]]]:
    gets: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()

        def do_GET(self) -> None:
            gets.append(self.path)
            self.do_HEAD()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that has failed breaks off what it was sent."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/file", gets
    server.shutdown()


def _options(method: str, directory: str) -> dict[str, Any]:
    return {method: {"cache": directory} if method == "sccache" else {"cache_storage": directory}}


def _read(method: str, url: str, directory: str, start: Any, answers: Any) -> None:
    import fsspec

    logging.disable()  # sccache says that it sets up a cache
    start.wait()
    try:
        with fsspec.open(f"{method}::{url}", **_options(method, directory)) as file:
            answers.put(hashlib.sha256(file.read()).hexdigest())
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")


def race(method: str, body: bytes, processes: int, rounds: int) -> Result:
    """The rounds of one method, each with an empty directory."""
    context = multiprocessing.get_context("spawn")
    right, wrong = hashlib.sha256(body).hexdigest(), 0
    with _serve(body) as (url, gets), tempfile.TemporaryDirectory(prefix="sc-dtool-bench-") as scratch:
        for number in range(rounds):
            start, answers = context.Barrier(processes), context.Queue()
            given = (method, url, os.path.join(scratch, str(number)), start, answers)
            workers = [context.Process(target=_read, args=given) for _ in range(processes)]
            for worker in workers:
                worker.start()
            wrong += sum(answers.get() != right for _ in workers)
            for worker in workers:
                worker.join()
    return Result(method, processes * rounds, wrong, len(gets) / rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=16)
    arguments = parser.parse_args()
    body = os.urandom(arguments.megabytes << 20)
    print(f"{'':<14}{'wrong reads':<17}{'GETs a round':>10}")
    for method in _METHODS:
        print(race(method, body, arguments.processes, arguments.rounds).line(), flush=True)


if __name__ == "__main__":
    main()
