"""dtool's users, with nothing changed: `make demo-dtool`.

A dataset on a real web server (dtool-http's own). Every step is checked as well as shown.
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
def serving(directory: Path, asked: list[str]) -> Iterator[str]:
    """dtool-http's server on loopback; `asked` lists the downloads of items."""
    import functools

    from dtool_http.server import DtoolHTTPRequestHandler

    class Handler(DtoolHTTPRequestHandler):  # type: ignore[misc]
        def do_GET(self) -> None:  # noqa: N802  (the name that http.server calls)
            if "/data/" in self.path:
                asked.append(self.path)
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
        sys.exit("dtool-http is not installed: pip install 'sccache-dtool[dtool]' dtool-http")
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    asked: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        served = Path(temporary, "served")
        served.mkdir()
        os.environ["DTOOL_CACHE_DIRECTORY"] = str(Path(temporary, "cache"))
        make_dataset(served)
        with serving(served, asked) as address:
            tell(f"{address}/reads", asked)
    say("That is all: `pip install sccache-dtool[dtool]`, and no line of anybody's code was changed.")


def tell(uri: str, asked: list[str]) -> None:
    say("Two Python scripts that know nothing of us ask dtool for the same three items at the same moment:")
    scripts = [start(uri), start(uri)]
    paths = [[(script.stdout.readline() if script.stdout else "").strip() for _ in range(3)] for script in scripts]
    print("  " + "\n  ".join(paths[0]))
    check("three downloads, and not six", len(asked) == 3)
    check("both got the same files", paths[0] == paths[1] and all(Path(path).is_file() for path in paths[0]))

    say("A data manager cleans everything that is not in use:")
    sc_dtool("clean", "--all", "-y")
    check("what the scripts hold is still there", all(Path(path).is_file() for path in paths[0]))

    say("One script ends, the other is killed:")
    scripts[0].communicate("go on\n")
    scripts[1].kill()
    scripts[1].wait()

    say("A shell script stages the whole dataset in one line:")
    staged = Path(sc_dtool("use", "--holder", f"pid:{os.getpid()}", f"dtool:{uri}").strip())
    found = sorted(str(path.relative_to(staged)) for path in staged.rglob("*.txt"))
    print("  " + "\n  ".join(found))
    check("the paths are the dataset's", found == [f"reads/sample-{number}.txt" for number in (1, 2, 3)])
    check("nothing was downloaded again", len(asked) == 3)
    sc_dtool("unuse", "--holder", f"pid:{os.getpid()}", f"dtool:{uri}")

    say("What the cache is good for:")
    sc_dtool("summary")
    (total,) = rows("summary", kind="summary")
    check("nine uses of three items", (total["uses"], total["items"]) == (9, 3))

    say("And now nobody needs it any more; the killed script's leases are found to be nobody's:")
    sc_dtool("clean", "--all", "-y")
    check("it is gone", not any(Path(path).exists() for path in paths[0]))


if __name__ == "__main__":
    main()
