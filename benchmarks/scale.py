"""Whether a large cache is looked through, and cleaned, as fast as the machine allows: beside du, gdu and rm.

``scale.py [--dir DIRECTORY] [--items N] [--rounds N] [--json] [--only NAME]``. Trees are made with few calls, their
files empty: what is measured are names and directories. At full size this takes an hour and ten million inodes; the
sizes of all parts are shares of `--items`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from from_shell import Installation
from measure import Figure, count, in_turns, ratio
from run import line, ran_on

from sccache_dtool import Cache
from sccache_dtool.catalog.facts import ItemFacts

#: Items of the largest tree; the others are shares of it.
FULL = 1_000_000

#: Items of the one that the largest is compared with: no more than five times as many as that has. Fewer take no longer
#: than the start of the program.
_SMALL = 10_000

_HERE = Path(__file__).parent
_USED = "2026-11-21T10:00:00.000 ada@login1[process 4242 (python)]"


# -- trees -------------------------------------------------------------------------------------------------------------


def managed(root: Path, number: int) -> None:
    """A cache of so many items, one file each, each used once."""
    Cache(root).init()
    keys = (f"{hashlib.sha256(str(n).encode()).hexdigest()[:32]}-item{n}.dat" for n in range(number))
    shards: dict[str, list[str]] = {}
    for key in keys:
        shards.setdefault(key[:2], []).append(key)
    _by_two(_fill_shards, root / ".sc-dtool" / "items", sorted(shards.items()))


def _fill_shards(items: Path, shards: Sequence[tuple[str, list[str]]]) -> None:
    now = int(time.time())
    for shard, keys in shards:
        os.mkdir(items / shard)
        os.chdir(items / shard)
        for number, key in enumerate(keys):
            copy = f"{key}/g{os.urandom(8).hex()}-{now - 86_400 - number}-{1000 + number}-1-t250"
            for directory in (key, copy, f"{copy}/use", f"{copy}/payload", f"{key}/history"):
                os.mkdir(directory)
            for file in (f"{copy}/payload/data", f"{copy}/item.json"):
                os.close(os.open(file, os.O_CREAT | os.O_WRONLY))
            holder = f"p{os.urandom(6).hex()}-{os.urandom(6).hex()}"
            os.symlink(_USED, f"{key}/history/{holder}.0~{(now - number) * 1000}~released")


def loose(root: Path, files: int, directories: int) -> None:
    """A cache of dtool's, with so many files that its brokers left in so many directories."""
    Cache(root).init()
    names = [str(uuid.UUID(int=(1 << 100) + n)) for n in range(directories)]
    _by_two(_fill_datasets, root, [(name, files // directories) for name in names])


def _fill_datasets(root: Path, datasets: Sequence[tuple[str, int]]) -> None:
    for name, files in datasets:
        os.mkdir(root / name)
        os.chdir(root / name)
        for number in range(files):
            digest = hashlib.sha1(f"{name}{number}".encode()).hexdigest()
            os.close(os.open(f"{digest}.fq", os.O_CREAT | os.O_WRONLY))


def _by_two(fill: Callable[[Path, Any], None], root: Path, parts: Sequence[Any]) -> None:
    children = []
    for half in (0, 1):
        child = os.fork()
        if child == 0:
            fill(root, parts[half::2])
            os._exit(0)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("a tree could not be made")


# -- measuring ---------------------------------------------------------------------------------------------------------


def _timed(argv: Sequence[str | Path], *, codes: Sequence[int] = (0,)) -> float:
    """Seconds that a command takes; Python's own variables, which may forbid byte code, are taken away."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    begin = time.perf_counter()
    done = subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode not in codes:
        raise RuntimeError(f"{argv}: {done.returncode}, {done.stderr.decode()}")
    return seconds


class _Tool:
    """Our program, as a user has it."""

    def __init__(self, directory: Path) -> None:
        installed = Installation.make(directory)
        self.words = (str(installed.python), str(installed.script), "-q")

    def on(self, root: Path, *words: str) -> Callable[[], float]:
        """A run of a command on the cache in `root`, which returns how many seconds it took."""
        argv = [*self.words, "-C", str(root), *words]
        return lambda: _timed(argv)


def _du(root: Path) -> Callable[[], float]:
    return lambda: _timed(["du", "-s", str(root)])


def _limit(tool: _Tool, root: Path) -> Callable[[], float]:
    """The start of our program, and then what one in C does on all processors: nothing of ours can take less."""
    directories = [path for path in root.iterdir() if path.is_dir()]
    number = len(os.sched_getaffinity(0))
    commands = [["du", "-s", *map(str, directories[i::number])] for i in range(number)]

    def run() -> float:
        begin = time.perf_counter()
        subprocess.run([*tool.words, "--version"], stdout=subprocess.DEVNULL, check=True)
        running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
        codes = [one.wait() for one in running]
        if any(codes):
            raise RuntimeError("du failed")
        return time.perf_counter() - begin

    return run


def of_items(tool: _Tool, directory: Path, items: int, rounds: int) -> Iterator[Figure]:
    """`du` of managed items beside ``du -s``, and a `clean` that finds nothing to do."""
    root, number = directory / "items", items // 5
    managed(root, number)
    (root / ".sc-dtool" / "config.toml").write_text('[clean]\nhigh_watermark = "100%"\n')
    runners = {"sc-dtool du": tool.on(root, "du"), "du -s": _du(root), "clean": tool.on(root, "clean")}
    for runner in runners.values():
        runner()
    before = _changes(root)
    times = in_turns(runners, rounds, 3600.0)
    what = f"sc-dtool du of {number:,} items, beside du -s"
    yield ratio("du-items", what, "sc-dtool du", "du -s", times, "<=", 0.35)
    seconds = times["sc-dtool du"]
    again = {"later": seconds[1:], "first": [seconds[0]] * len(seconds[1:])}
    yield ratio("du-again", "later runs of that, beside the first", "later", "first", again)
    yield ratio("clean-idle", f"a clean of {number:,} items with nothing to do", "clean", "sc-dtool du", times)
    yield count("clean-writes", "directories that it changed", [len(_changes(root) ^ before)], 0)
    shutil.rmtree(root)


def _changes(root: Path) -> set[tuple[str, int]]:
    """The times of the directories in which anything would be written."""
    control = root / ".sc-dtool"
    names = [control, *(control / name for name in ("holders", "locks", "tmp", "trash"))]
    return {(str(name), name.stat().st_mtime_ns) for name in names}


def of_loose(tool: _Tool, directory: Path, items: int, rounds: int) -> Iterator[Figure]:
    """`du` of loose files beside ``du -s`` and gdu."""
    root, number = directory / "loose", items // 5
    loose(root, number, max(1, number // 100))
    runners = {"sc-dtool du": tool.on(root, "du"), "du -s": _du(root)}
    if shutil.which("gdu"):
        runners["gdu"] = lambda: _timed(["gdu", "-n", "-p", str(root)])
        runners["limit"] = _limit(tool, root)
    for runner in runners.values():
        runner()
    times = in_turns(runners, rounds, 3600.0)
    what = f"sc-dtool du of {number:,} loose files, beside"
    yield ratio("du-loose", f"{what} du -s", "sc-dtool du", "du -s", times, "<=", 1.2)
    if "gdu" in runners:
        yield ratio("du-loose-gdu", f"{what} gdu -n -p", "sc-dtool du", "gdu", times, "<=", 0.5)
        what = "sc-dtool --version, then du -s of all parts at once, one for each processor, beside gdu"
        yield ratio("du-loose-limit", what, "limit", "gdu", times)
    shutil.rmtree(root)


def of_eviction(tool: _Tool, directory: Path, items: int, rounds: int) -> Iterator[Figure]:
    """Evicting half of the items beside ``rm -rf`` of the same trees."""
    number = items // 10
    times: dict[str, list[float]] = {"clean": [], "rm -rf": []}
    for round in range(rounds):
        order: list[tuple[str, Callable[[Path], float]]] = [
            ("clean", partial(_clean_half, tool)),
            ("rm -rf", _remove_half),
        ]
        for name, remove in order if round % 2 else reversed(order):
            root = directory / "evicted"
            managed(root, number)
            os.sync()
            times[name].append(remove(root))
            shutil.rmtree(root)
    what = f"evicting {number // 2:,} of {number:,} items, beside rm -rf of the same trees"
    yield ratio("evict", what, "clean", "rm -rf", times, "<=", 1.5)


def _copies(root: Path) -> list[Path]:
    return [copy for copy in (root / ".sc-dtool" / "items").glob("*/*/*") if copy.name != "history"]


def _clean_half(tool: _Tool, root: Path) -> float:
    left = sum(int(copy.name.split("-")[2]) for copy in _copies(root)) // 2
    return tool.on(root, "clean", "--retain-size", str(left))()


def _remove_half(root: Path) -> float:
    copies = _copies(root)
    listed = b"\0".join(str(copy).encode() for copy in copies[: len(copies) // 2])
    begin = time.perf_counter()
    subprocess.run(["xargs", "-0", "rm", "-rf"], input=listed, check=True)
    return time.perf_counter() - begin


def of_doctor(tool: _Tool, directory: Path, items: int, rounds: int) -> Iterator[Figure]:
    """`doctor` of items about which there is nothing to report, in seconds and beside ``du -s``."""
    root, number = directory / "doctor", items // 50
    managed(root, number)
    for copy in _copies(root):
        size = int(copy.name.split("-")[2])
        facts = ItemFacts(key=copy.parent.name, source=("file:/data",), payload="data", bytes=size, entries=1)
        (copy / "item.json").write_text(facts.encode())
        os.truncate(copy / "payload" / "data", size)
    runners = {"sc-dtool doctor": tool.on(root, "doctor"), "du -s": _du(root)}
    for runner in runners.values():
        runner()
    times = in_turns(runners, rounds, 3600.0)
    seconds = times["sc-dtool doctor"]
    middle = statistics.median(seconds)
    what = f"seconds that sc-dtool doctor of {number:,} items takes"
    yield Figure("doctor", what, "<=", 2.0, middle, min(seconds), max(seconds), len(seconds), {})
    yield ratio("doctor-du", f"sc-dtool doctor of {number:,} items, beside du -s", "sc-dtool doctor", "du -s", times)
    shutil.rmtree(root)


def of_latency(tool: _Tool, directory: Path, items: int, rounds: int) -> Iterator[Figure]:
    """`du` behind a millisecond of latency beside ``du -s``, through FUSE."""
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        print(f"latency: not measured, {error}", file=sys.stderr)
        return
    root, mount, number = directory / "fast", directory / "slow", max(100, items // 500)
    managed(root, number)
    mount.mkdir()
    argv = [sys.executable, str(_HERE / "slow_fs.py"), str(root), str(mount), "0.001"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (mount / ".sc-dtool").exists():
            if server.poll() is not None:
                print("latency: not measured, FUSE cannot be mounted here", file=sys.stderr)
                return
            time.sleep(0.05)

        def forgotten(run: Callable[[], float]) -> Callable[[], float]:
            def wait_and_run() -> float:
                time.sleep(1.5)  # until the kernel has forgotten what it knew of names
                return run()

            return wait_and_run

        runners = {"sc-dtool du": forgotten(tool.on(mount, "du")), "du -s": forgotten(_du(mount))}
        times = in_turns(runners, rounds, 3600.0)
        what = f"du -s of {number:,} items 1 ms away, beside sc-dtool du"
        yield ratio("latency", what, "du -s", "sc-dtool du", times, ">=", 10.0)
    finally:
        subprocess.run(["fusermount3", "-u", str(mount)], check=False)
        server.wait()
        shutil.rmtree(root)


#: Seconds that a request takes to the servers that `of_ranks` imitates: much longer than the processor needs for it.
_FAR = 0.03


def of_ranks(tool: _Tool, directory: Path, items: int, rounds: int) -> Iterator[Figure]:
    """`du` and `clean -n` by 1, 2 and 4 MPI ranks on a file system each of whose calls takes 0.03 s."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not (mpiexec.exists() and importlib.util.find_spec("mpi4py")):
        print("ranks: not measured, the extra mpi is not installed", file=sys.stderr)
        return
    root, empty, number = directory / "ranks", directory / "none", max(200, items // 500)
    managed(root, number)
    managed(empty, 0)

    def run(ranks: int, words: Sequence[str]) -> float:
        """Without the start of the ranks, which is the same for any number of items."""
        argv = [mpiexec, "-n", str(ranks), sys.executable, _HERE / "slow_sc.py", str(_FAR), "-q", "-C"]
        return _timed([*argv, root, *words]) - _timed([*argv, empty, *words])

    for words in (["du", "--top", "0", "--jobs", "8"], ["clean", "--all", "-n", "--jobs", "8"]):
        times = in_turns({f"{n}": partial(run, n, words) for n in (1, 2, 4)}, rounds, 3600.0)
        what = f"sc-dtool {' '.join(words)} of {number:,} items {_FAR:g} s away, by one rank, beside"
        yield ratio(f"ranks-{words[0]}-2", f"{what} two", "1", "2", times)
        yield ratio(f"ranks-{words[0]}-4", f"{what} four", "1", "4", times, ">=", 3.2)
    shutil.rmtree(root)
    shutil.rmtree(empty)


def of_growth(tool: _Tool, directory: Path, items: int, rounds: int) -> Iterator[Figure]:
    """What an item costs in a large cache beside one in a small, and how much memory that takes."""
    seconds: dict[str, list[float]] = {}
    start = 0.0
    few = min(_SMALL, 5 * items)
    for name, number in (("empty", 0), ("small", few), ("large", items)):
        root = directory / name
        managed(root, number)
        run = tool.on(root, "du")
        run()
        taken = [run() for _ in range(rounds)]
        if not number:
            start = min(taken)  # of the program, which is the same for any number of items
            continue
        seconds[name] = [(one - start) / number for one in taken]
        if name == "large":
            for words in (["du"], ["status"], ["ls"], ["clean", "--all", "-n"]):
                yield _memory(tool, root, number, words)
        shutil.rmtree(root)
    what = f"what du costs for each of {items:,} items, beside each of {few:,}"
    yield ratio("growth", what, "large", "small", seconds, "<=", 1.3)


def _memory(tool: _Tool, root: Path, number: int, words: Sequence[str]) -> Figure:
    """MiB that a command takes at most, its helpers not counted, which come and go with a part each."""
    argv = [*tool.words, "-C", str(root), "-f", "json", *words]
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    mib = int(done.stdout) / 1024
    what = f"MiB that `{' '.join(words)}` of {number:,} items takes"
    return Figure(f"memory-{words[0]}", what, "<=", 500.0, mib, mib, mib, 1, {})


_PARTS = {
    "items": of_items,
    "loose": of_loose,
    "eviction": of_eviction,
    "doctor": of_doctor,
    "latency": of_latency,
    "ranks": of_ranks,
    "growth": of_growth,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to measure (default: a temporary directory)")
    parser.add_argument("--items", type=int, default=FULL, help=f"items of the largest tree (default: {FULL:,})")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--only", action="append", choices=list(_PARTS), help="only this part; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sc-dtool-scale-", dir=arguments.dir) as scratch:
        where = ran_on(scratch)
        tool = _Tool(Path(scratch, "installation"))
        for name in arguments.only or _PARTS:
            directory = Path(scratch, name)
            directory.mkdir()
            for figure in _PARTS[name](tool, directory, arguments.items, arguments.rounds):
                found.append(figure)
                if not arguments.json:
                    print(line(figure), flush=True)
    if arguments.json:
        print(json.dumps({"version": 1, "ran_on": where, "figures": [one.fields() for one in found]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
