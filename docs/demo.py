"""Show what the program does: `make demo`.

An HTTP server on loopback serves a tar archive, and two batch jobs request it at the same moment. Every step is shown
and checked, so this is also a test of what the README says. Exits with 1 at the first check that fails.
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
read -r _    # computes until it gets a line
sc-dtool unuse "$URL" "$DIGEST" tar
"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a directory, and counts the downloads."""

    gets = 0

    def do_GET(self) -> None:
        """Count a download, and serve it."""
        type(self).gets += 1
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Do not log."""


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def check(claim: str, holds: bool) -> None:
    """Print whether a claim holds, and exit with 1 if it does not."""
    print(f"  {'ok' if holds else 'FAILED'}: {claim}", flush=True)
    if not holds:
        sys.exit(1)


def sc_dtool(*words: str, show: bool = True) -> str:
    """Run a command as a user does, and return its output."""
    if show:
        print(f"$ sc-dtool {' '.join(words)}", flush=True)
    done = subprocess.run([SC_DTOOL, *words], stdout=subprocess.PIPE, text=True, check=False)
    if show:
        print("  " + done.stdout.strip().replace("\n", "\n  "), flush=True)
    if done.returncode:
        sys.exit(f"sc-dtool {' '.join(words)} failed with {done.returncode}")
    return done.stdout


def rows(*words: str, kind: str) -> list[dict[str, object]]:
    """Return the JSON records of one type that a command prints."""
    lines = (json.loads(line) for line in sc_dtool("-f", "json", *words, show=False).splitlines())
    return [line for line in lines if line["type"] == kind]


def make_tar(directory: Path) -> tuple[Path, str]:
    """Create a tar archive of text files, and return its path and digest."""
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
    """Serve a directory on loopback; yields the address."""
    handler = functools.partial(Server, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def start_job(number: int, url: str, digest: str) -> subprocess.Popen[str]:
    """Start a batch job: a shell script that uses, reads and releases the item."""
    environment = os.environ | {"URL": url, "DIGEST": digest, "JOB": str(number)}
    return subprocess.Popen(
        ["bash", "-c", JOB], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(job: subprocess.Popen[str]) -> None:
    """Let a job finish."""
    job.communicate("go on\n")
    check("the job succeeded", job.returncode == 0)


def main() -> None:
    """Run the demonstration in a temporary directory."""
    os.environ["PATH"] = f"{Path(SC_DTOOL).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as temporary:
        served, cache = Path(temporary, "served"), Path(temporary, "cache")
        served.mkdir()
        os.environ["DTOOL_CACHE_DIRECTORY"] = str(cache)
        archive, digest = make_tar(served)
        with serving(served) as address:
            demonstrate(f"{address}/{archive.name}", digest)
    say("This needed no database and no daemon, only files in a shared directory.")


def demonstrate(url: str, digest: str) -> None:
    """Show and check each step."""
    say("Two batch jobs request the same tar archive at the same moment:")
    print(f"$ sc-dtool use {url} {digest[:20]}... tar", flush=True)
    jobs = [start_job(number, url, digest) for number in (1, 2)]
    output = [[(job.stdout.readline() if job.stdout else "").strip() for _ in range(2)] for job in jobs]
    for path, line in output:
        print(f"  {path}\n  {line}")
    check("one download", Server.gets == 1)
    check("both jobs got the same path, and read from it", output[0][0] == output[1][0] and "@sample 1" in output[0][1])

    say("What is in the cache, and who holds it:")
    sc_dtool("du")
    sc_dtool("status")
    sc_dtool("why", "reads")
    check("two leases are held", len(rows("why", "reads", kind="lease")) == 2)

    say("A data manager removes everything that is not in use:")
    sc_dtool("clean", "--all", "-y")
    check("the item in use still exists", Path(output[0][0]).is_dir())

    say("The jobs end and release their leases. The item was used today, so --older-than keeps it:")
    for job in jobs:
        end(job)
    sc_dtool("clean", "--older-than", "30d")
    check("the item used today still exists", Path(output[0][0]).is_dir())

    say("Now nobody uses the item, and it can be removed:")
    sc_dtool("clean", "--all", "-y")
    check("the item is gone", not Path(output[0][0]).exists())

    say("The log still contains all uses:")
    sc_dtool("log")
    check("both uses are in the log", len(rows("log", kind="use")) == 2)


if __name__ == "__main__":
    main()
