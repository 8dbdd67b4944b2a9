"""Show what the program does for unchanged programs that use dtool: `make demo-dtool`.

dtool-http's web server serves a dataset. Every step is shown and checked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from demo import check, rows, say, sc_dtool

SCRIPT = """
import sys, dtoolcore
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
for identifier in dataset.identifiers:
    print(dataset.item_content_abspath(identifier), flush=True)
input()
"""


@contextmanager
def serving(directory: Path, downloads: list[str]) -> Iterator[str]:
    """Serve a directory with dtool-http on loopback; `downloads` receives the paths of downloaded items."""
    import functools

    from dtool_http.server import DtoolHTTPRequestHandler

    class Handler(DtoolHTTPRequestHandler):  # type: ignore[misc]
        def do_GET(self) -> None:  # noqa: N802  (the name that http.server calls)
            if "/data/" in self.path:
                downloads.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def make_dataset(base: Path) -> None:
    import dtoolcore

    with dtoolcore.DataSetCreator("reads", f"file://{base}") as creator:
        for number in (1, 2, 3):
            path = Path(creator.prepare_staging_abspath_promise(f"reads/sample-{number}.txt"))
            path.write_text(f"@sample {number}\n" + "ACGT" * 50_000 * number)


def start(uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, uri], stdin=-1, stdout=-1, text=True)


def main() -> None:
    try:
        import dtool_http  # noqa: F401
    except ImportError:
        sys.exit("dtool-http is not installed: pip install '.[dtool]' dtool-http")
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    downloads: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        served = Path(temporary, "served")
        served.mkdir()
        os.environ["DTOOL_CACHE_DIRECTORY"] = str(Path(temporary, "cache"))
        make_dataset(served)
        with serving(served, downloads) as address:
            demonstrate(f"{address}/reads", downloads)
    say("This needed only the extra `dtool`. No program was changed.")


def demonstrate(uri: str, downloads: list[str]) -> None:
    say("Two unchanged Python scripts request the same three items from dtool at the same moment:")
    scripts = [start(uri), start(uri)]
    paths = [[(script.stdout.readline() if script.stdout else "").strip() for _ in range(3)] for script in scripts]
    print("  " + "\n  ".join(paths[0]))
    check("there were three downloads, not six", len(downloads) == 3)
    check("both scripts got the same files", paths[0] == paths[1] and all(Path(path).is_file() for path in paths[0]))

    say("A data manager removes everything that is not in use:")
    sc_dtool("clean", "--all", "-y")
    check("the items in use still exist", all(Path(path).is_file() for path in paths[0]))

    say("One script ends, and the other is killed:")
    scripts[0].communicate("go on\n")
    scripts[1].kill()
    scripts[1].wait()

    say("A shell script uses the whole dataset with one command:")
    staged = Path(sc_dtool("use", "--holder", f"pid:{os.getpid()}", f"dtool:{uri}").strip())
    found = sorted(str(path.relative_to(staged)) for path in staged.rglob("*.txt"))
    print("  " + "\n  ".join(found))
    check("the paths are those of the dataset", found == [f"reads/sample-{number}.txt" for number in (1, 2, 3)])
    check("nothing was downloaded again", len(downloads) == 3)
    sc_dtool("unuse", "--holder", f"pid:{os.getpid()}", f"dtool:{uri}")

    say("What the cache has saved:")
    sc_dtool("summary")
    (total,) = rows("summary", kind="summary")
    check("there were nine uses of three items", (total["uses"], total["items"]) == (9, 3))

    say("Now nobody uses the items. The leases of the killed script are ended first:")
    sc_dtool("clean", "--all", "-y")
    check("the items are gone", not any(Path(path).exists() for path in paths[0]))


if __name__ == "__main__":
    main()
