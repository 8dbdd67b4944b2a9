"""`sc-dtool use` of an item that is in the cache, as a batch job calls it, beside ``python -c "import click"``."""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import click
from measure import Figure, in_turns, ratio

import sccache_dtool
from sccache_dtool import Cache

#: What pip writes for the entry point of setup.cfg, less the line that only Windows needs.
_SCRIPT = """\
import sys
from sccache_dtool.__main__ import main
if __name__ == '__main__':
    sys.exit(main())
"""


class Installation(NamedTuple):
    """The package as a user has it: not editable, all byte code compiled."""

    python: Path
    script: Path

    @classmethod
    def make(cls, directory: Path) -> Installation:
        """Install this checkout and its click in an environment of their own, made from our own interpreter.

        An editable installation would load a finder of setuptools at each start, on both sides, and so make the
        ratio look better than what users get. What else the package needs is found where it is now.
        """
        venv.EnvBuilder(symlinks=True).create(directory)
        site = directory / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        for package in (sccache_dtool, click):
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, site / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        (site / "needs.pth").write_text(f"{Path(str(click.__file__)).parent.parent}\n")
        if not compileall.compile_dir(site, quiet=1):
            raise RuntimeError(f"cannot compile {site}")
        script = directory / "bin" / "sc-dtool"
        script.write_text(_SCRIPT)
        return cls(directory / "bin" / "python", script)


def figures(directory: Path, rounds: int, budget: float) -> Iterator[Figure]:
    """The figure of this module; the cache is in `directory`, which is new."""
    installed = Installation.make(directory / "installation")
    words = _tar(directory)
    cache = Cache(directory / "cache")
    cache.use(*words).release()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["DTOOL_CACHE_DIRECTORY"] = str(cache.root)
    owners, key = cache.owners(f"pid:{os.getpid()}"), cache.key_for(words)
    use = _timed([str(installed.python), str(installed.script), "use", *words], environment)

    def use_cached() -> float:
        seconds = use()
        if cache.release(owners, key, everything=True) != 1:  # taken on our behalf, because we are the caller
            raise RuntimeError("sc-dtool use took no lease")
        return seconds

    runners = {
        "sc-dtool use": use_cached,
        "import click": _timed([str(installed.python), "-c", "import click"], environment),
    }
    for runner in runners.values():  # the standard library's byte code may have to be written
        runner()
    times = in_turns(runners, rounds, budget)
    cache.close()
    yield ratio(
        "shell",
        'sc-dtool use of a cached item, beside python -c "import click"',
        "sc-dtool use",
        "import click",
        times,
        "<=",
        1.5,
    )


def _tar(directory: Path) -> tuple[str, ...]:
    """The words for a tar with a digest: every kind that is parsed before the cache is looked at."""
    member, path = directory / "reads.txt", directory / "reads.tar"
    member.write_text("ACGT\n")
    with tarfile.open(path, "w") as archive:
        archive.add(member, member.name)
    return str(path), f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", "tar"


def _timed(command: list[str], environment: Mapping[str, str]) -> Callable[[], float]:
    def run() -> float:
        begin = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begin

    return run
