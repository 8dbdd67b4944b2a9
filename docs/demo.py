"""The main job, narrated: `make demo`.

A real HTTP server on loopback serves a real tar file. Two batch jobs ask for it at the same moment. Every step is
checked as well as shown, so this is also a test of what the README promises; it exits 1 at the first broken promise.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SC_DTOOL = str(Path(sysconfig.get_path("scripts"), "sc-dtool"))

JOB = r"""
path=$(sc-dtool use "$URL" "$DIGEST" tar) || exit
echo "$path"
echo "job $JOB reads: $(head -n 1 "$path/reads/sample-1.txt")"
read -r _    # computes, until it is told to end
sc-dtool unuse "$URL" "$DIGEST" tar
"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a directory, and counts."""

    gets = 0

    def do_GET(self) -> None:
        """One download."""
        type(self).gets += 1
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def say(text: str) -> None:
    """Narrate."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def check(promise: str, kept: bool) -> None:
    """Hold the program to its word."""
    print(f"  {'ok' if kept else 'BROKEN'}: {promise}", flush=True)
    if not kept:
        sys.exit(1)


def sc_dtool(*words: str, show: bool = True) -> str:
    """Run a command as a user would; returns what it prints."""
    if show:
        print(f"$ sc-dtool {' '.join(words)}", flush=True)
    done = subprocess.run([SC_DTOOL, *words], stdout=subprocess.PIPE, text=True, check=False)
    if show:
        print("  " + done.stdout.strip().replace("\n", "\n  "), flush=True)
    if done.returncode:
        sys.exit(f"sc-dtool {' '.join(words)} failed with {done.returncode}")
    return done.stdout


def rows(*words: str, kind: str) -> list[dict[str, object]]:
    """The JSON records of one kind that a command prints."""
    lines = (json.loads(line) for line in sc_dtool("-f", "json", *words, show=False).splitlines())
    return [line for line in lines if line["type"] == kind]


def make_tar(directory: Path) -> tuple[Path, str]:
    """A tar with some text in it, and its digest."""
    for number in range(1, 4):
        sample = directory / "reads" / f"sample-{number}.txt"
        sample.parent.mkdir(exist_ok=True)
        sample.write_text(f"@sample {number}\n" + "ACGT" * 50_000 * number + "\n")
    archive = directory / "reads.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(directory / "reads", "reads")
    return archive, f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """A server on loopback; yields its address."""
    handler = functools.partial(Server, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def start_job(number: int, url: str, digest: str) -> subprocess.Popen[str]:
    """A batch job: a shell script that uses, reads, and gives back."""
    environment = os.environ | {"URL": url, "DIGEST": digest, "JOB": str(number)}
    return subprocess.Popen(
        ["bash", "-c", JOB], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(job: subprocess.Popen[str]) -> None:
    """Let a job compute no longer."""
    job.communicate("go on\n")
    check("the job ended well", job.returncode == 0)


def main() -> None:
    """Tell the story."""
    os.environ["PATH"] = f"{Path(SC_DTOOL).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as temporary:
        served, cache = Path(temporary, "served"), Path(temporary, "cache")
        served.mkdir()
        os.environ["DTOOL_CACHE_DIRECTORY"] = str(cache)
        archive, digest = make_tar(served)
        with serving(served) as address:
            tell(f"{address}/{archive.name}", digest)
    say("That is all: no database, no daemon, only files on a shared directory.")


def tell(url: str, digest: str) -> None:
    """The story itself."""
    say("Two batch jobs ask for the same tar file at the same moment:")
    print(f"$ sc-dtool use {url} {digest[:20]}... tar", flush=True)
    jobs = [start_job(number, url, digest) for number in (1, 2)]
    said = [[(job.stdout.readline() if job.stdout else "").strip() for _ in range(2)] for job in jobs]
    for path, line in said:
        print(f"  {path}\n  {line}")
    check("one download", Server.gets == 1)
    check("both jobs got the same path, and read from it", said[0][0] == said[1][0] and "@sample 1" in said[0][1])

    say("What is in the cache, and who holds it:")
    sc_dtool("du")
    sc_dtool("status")
    sc_dtool("why", "reads")
    check("two leases are held", len(rows("why", "reads", kind="lease")) == 2)

    say("A data manager cleans everything that is not in use:")
    sc_dtool("clean", "--all", "-y")
    check("what is in use is still there", Path(said[0][0]).is_dir())

    say("The jobs end, and release their leases. The item was used today, so that --older-than keeps it:")
    for job in jobs:
        end(job)
    sc_dtool("clean", "--older-than", "30d")
    check("what was used today is still there", Path(said[0][0]).is_dir())

    say("Now nobody uses the item:")
    sc_dtool("clean", "--all", "-y")
    check("it is gone", not Path(said[0][0]).exists())

    say("The log still has all uses:")
    sc_dtool("log")
    check("both uses are in the log", len(rows("log", kind="use")) == 2)


if __name__ == "__main__":
    main()
