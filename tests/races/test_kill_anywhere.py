"""`kill -9` anywhere: each command is killed before each of its system calls that change something in the cache.

After every accident: what is visible is complete, the source is as it was, and `clean`, `doctor --fix`, and the next
`use` work, and leave nothing behind. Of long commands some points are left out, chosen by a seed that is printed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from figures import tally
from races import crash
from races.actors import digest_of, generations, left_in, make_payload, names
from sccache_dtool.cache import Cache
from sccache_dtool.cli.main import Commands, run
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Layout, WorkName

SEED = int(os.environ.get("SEED", "20261121"))
MOST_POINTS = int(os.environ.get("CRASH_POINTS", "18"))  # of each command; CRASH_POINTS=1000 leaves none out

#: Commands that write into the cache.
WRITING = ("use", "unuse", "run", "renew", "clean", "rm", "restore", "reap", "doctor", "init", "pin", "unpin")
_LOOKING = ("du", "summary", "ls", "status", "why", "log", "transfers", "loaders", "locate", "dir", "config", "metrics")


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def sc_dtool(place: str, *words: str) -> Result:
    """A command, in this process: it is the same code, and a tenth of a second faster."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["--cache-dir", place, *words])
    return Result(int(code), out.getvalue(), err.getvalue())


@contextlib.contextmanager
def job() -> Iterator[int]:
    """A process that can hold leases, until the end of the context."""
    process = subprocess.Popen([shutil.which("cat") or "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


class Thing(NamedTuple):
    """Something to use: the words that mean it, and what is read then."""

    words: tuple[str, ...]
    digest: str


def _a_tree(directory: Path) -> Thing:
    payload = make_payload(directory / "ref", 50)
    return Thing((payload.path,), payload.digest)


def _a_tar(directory: Path) -> Thing:
    payload = make_payload(directory / "ref", 50)
    archive = directory / "ref.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(payload.path, ".")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Thing((str(archive), f"sha256:{digest}", "tar"), payload.digest)


def _two_files(directory: Path) -> Thing:
    """Two sources that become one directory, one of them compressed."""
    payload = make_payload(directory / "ref", 50)
    compressed = directory / "b.gz"
    compressed.write_bytes(gzip.compress(Path(payload.path, "b").read_bytes()))
    os.remove(f"{payload.path}/deep/c")
    os.rmdir(f"{payload.path}/deep")
    return Thing((str(compressed), "gz", f"{payload.path}/a"), digest_of(payload.path))


def _an_item_of_a_dataset(directory: Path) -> Thing:
    dtoolcore = pytest.importorskip("dtoolcore", reason="dtool is not installed")
    with dtoolcore.DataSetCreator("ds", f"file://{directory}") as creator:
        with open(creator.prepare_staging_abspath_promise("second.csv"), "w") as file:
            file.write("two, three\n")
        uri = creator.uri
    return Thing((f"dtool:{uri}#second.csv",), digest_of(str(directory / "ds" / "data" / "second.csv")))


class Scene:
    """Where an accident is to happen: a cache in some state, and what leases there were in it."""

    def __init__(self, directory: Path, make: Callable[[Path], Thing]) -> None:
        self.place = str(directory / "cache")
        self.thing = make(directory)
        self.cache = Cache(self.place, fs=FileSystem())
        self.cache.init()
        self.layout = Layout(self.place)
        self.wanted = self.cache.wanted(self.thing.words)
        self.key = self.wanted.key

    def use(self, times: int = 1) -> None:
        """Use the item, and give it back."""
        for _ in range(times):
            self.cache.use(*self.thing.words).release()

    def held_by(self, pid: int) -> None:
        """Let a process hold it."""
        self.cache.hold(self.cache.owner(f"pid:{pid}"), self.cache.wanted(self.thing.words))

    def held_by_the_dead(self) -> str:
        """Let a process that is gone hold it; the holder's id."""
        with job() as pid:
            lease = self.cache.hold(self.cache.owner(f"pid:{pid}"), self.cache.wanted(self.thing.words))
        return lease.holder.id

    def locked_by_the_dead(self) -> None:
        """Let a downloader and a cleaner have been killed at work."""
        for election in (self.key[:32], "clean"):
            script = (
                "import os, sys; from sccache_dtool.cache import Cache\n"
                "assert Cache(sys.argv[1])._keeper().election(sys.argv[2]).poll(); os.kill(os.getpid(), 9)"
            )
            subprocess.run([sys.executable, "-c", script, self.place, election])
        locks = [name for name in names(self.layout.locks) if name.endswith(".lock")]
        assert len(locks) == 2

    def left_by_the_dead(self) -> None:
        """Let there be all that crashes leave behind."""
        holder = self.held_by_the_dead()
        area = Path(self.layout.tmp, str(WorkName(f"{holder}.7", "fetch")))
        (area / "payload").mkdir(parents=True)
        (area / "payload" / "half").write_text("half")
        other = make_payload(Path(self.place).parent / "other", 50)
        self.cache.use(other.path).release()
        self.cache.remove(self.cache.key_for([other.path]), keep_for=1000)
        (trashed,) = names(self.layout.trash)
        os.rename(f"{self.layout.trash}/{trashed}", f"{self.layout.trash}/{trashed}~going")
        self.cache.use(other.path).release()
        (generation,) = generations(self.place, self.cache.key_for([other.path]))
        os.rmdir(f"{self.layout.generation(self.cache.key_for([other.path]), generation)}/use")


def _nothing(scene: Scene) -> None:
    """An empty cache."""


def _in_use(scene: Scene) -> None:
    """`unuse` finds a lease of the job: see `Accidents.prepare`."""
    scene.use()


def _renewable(scene: Scene) -> None:
    """`renew` finds a lease of the job that has a lifetime: see `Accidents.prepare`."""
    scene.use()


def _bare(scene: Scene) -> None:
    """No cache, and an empty directory for one."""
    shutil.rmtree(scene.place)
    os.mkdir(scene.place)


def _locked(scene: Scene) -> None:
    scene.locked_by_the_dead()


def _idle(scene: Scene) -> None:
    scene.use()


def _littered(scene: Scene) -> None:
    scene.use(101)  # enough for a history to be folded
    scene.left_by_the_dead()


def _reapable(scene: Scene) -> None:
    scene.held_by_the_dead()
    scene.held_by_the_dead()


def _binned(scene: Scene) -> None:
    scene.use()
    scene.cache.remove(scene.key, keep_for=100_000)


def _pinned(scene: Scene) -> None:
    scene.use()
    scene.cache.pin(scene.key, scene.cache._clock.wall() + 100_000)


def _half_made(scene: Scene) -> None:
    scene.use()
    scene.left_by_the_dead()
    os.rmdir(f"{scene.layout.gone}")
    os.unlink(scene.layout.tag_file)


class Case(NamedTuple):
    """A command, and the state in which it begins. $S: what is used; $P: a process that runs on."""

    before: Callable[[Scene], None]
    words: str
    thing: Callable[[Path], Thing] = _a_tree
    most: int = MOST_POINTS  # points at which it is killed


CASES = {
    "use, a miss": Case(_nothing, "use --holder pid:$P $S"),
    "use, a tar": Case(_nothing, "use --holder pid:$P $S", _a_tar),
    "use, two files": Case(_nothing, "use --holder pid:$P $S", _two_files),
    "use, an item of a dataset": Case(_nothing, "use --holder pid:$P $S", _an_item_of_a_dataset, MOST_POINTS // 3),
    "use, a hit": Case(_idle, "use --holder pid:$P --ttl 1h $S"),
    "use, taking over": Case(_locked, "use --holder pid:$P $S"),
    "clean, taking over": Case(_locked, "clean --all -y"),
    "unuse": Case(_in_use, "unuse --holder pid:$P $S"),
    "unuse and evict": Case(_in_use, "unuse --evict-if-last --holder pid:$P $S"),
    "run": Case(_idle, "run $S -- true"),
    "run, a miss": Case(_nothing, "run $S -- true"),
    "clean": Case(_littered, "clean --all -y"),
    "rm": Case(_reapable, "rm ref"),
    "rm --trash": Case(_idle, "rm --trash 1d ref"),
    "restore": Case(_binned, "restore ref"),
    "reap": Case(_reapable, "reap"),
    "renew": Case(_renewable, "renew --holder pid:$P"),
    "clean --trash": Case(_idle, "clean --all -y --trash 1d"),
    "init": Case(_bare, "init"),
    "pin": Case(_idle, "pin --until 1d ref"),
    "unpin": Case(_pinned, "unpin ref"),
    "doctor --fix": Case(_half_made, "doctor --fix"),
}


class Accidents:
    """One case, in as many copies as there are accidents."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.case = case
        self.directory = directory
        scene_directory = directory / "scene"
        scene_directory.mkdir()
        scene = Scene(scene_directory, case.thing)
        case.before(scene)
        scene.cache.close()
        self.scene = scene
        self.thing = scene.thing
        self.made = set() if case.before is _bare else {use.lease for use in scene.cache.uses(scene.key)}

    def prepare(self, name: str, pid: int) -> tuple[str, list[str], dict[str, str]]:
        """A fresh copy of the cache; where it is, the command line, and the environment."""
        place = str(self.directory / name)
        shutil.copytree(self.scene.place, place, symlinks=True)
        if self.case.before in (_in_use, _renewable):
            cache = Cache(place, fs=FileSystem())
            ttl = 3600.0 if self.case.before is _renewable else None
            cache.hold(cache.owner(f"pid:{pid}"), cache.wanted(self.thing.words), ttl=ttl)
        values = {"$P": str(pid), "$S": " ".join(self.thing.words)}
        words = self.case.words
        for variable, value in values.items():
            words = words.replace(variable, value)
        environment = {**os.environ, "XDG_STATE_HOME": f"{place}.state"}
        return place, [sys.executable, "-m", "sccache_dtool", "--cache-dir", place, *words.split()], environment

    def find_points(self) -> list[crash.Point]:
        """Every call before which the command can be killed."""
        with job() as pid:
            place, argv, environment = self.prepare("undisturbed", pid)
            return crash.points(argv, environment, place)

    def happen(self, numbered: tuple[int, crash.Point]) -> tuple[str, crash.Point, bool]:
        """Kill the command, and let the job that it worked for end, too."""
        number, point = numbered
        with job() as pid:
            place, argv, environment = self.prepare(f"accident{number}", pid)
            killed = crash.kill_at(argv, environment, point)
        return place, point, killed

    def check(self, place: str, point: crash.Point) -> None:
        """What must hold afterwards."""
        where = f"killed before {point.line}"
        cache = Cache(place, fs=FileSystem())
        self._only_whole_copies(place, cache, where)
        put_right = [("clean", "--all", "-y"), ("doctor", "--fix")]
        if self.case.before is _half_made:  # `clean` wants its directories, and only `doctor` makes them
            put_right.reverse()
        if self.case.before is _bare:
            put_right.insert(0, ("init",))
        for words in put_right:
            done = sc_dtool(place, *words)
            assert done.code == 0, f"{where}: {done}"
        self._only_whole_copies(place, cache, where)
        holder = ("--holder", f"pid:{os.getpid()}")
        used = sc_dtool(place, "use", "--wait", "20s", *holder, *self.thing.words)
        assert used.code == 0, f"{where}: {used}"
        assert digest_of(used.out.removesuffix("\n")) == self.thing.digest, where
        assert sc_dtool(place, "unuse", *holder, *self.thing.words).code == 0, where
        leases = [use.lease for use in cache.uses(self.scene.key)]
        assert len(leases) == len(set(leases)) == cache.item(self.scene.key).uses, where
        assert self.made <= set(leases), where
        cleaned = sc_dtool(place, "clean", "--all", "-y")
        assert cleaned.code == 0, f"{where}: {cleaned}"
        left = left_in(place)
        if "--trash" in self.case.words or self.case.before is _binned:  # it stays there for as long as was asked
            left.pop("trash", None)
        assert left == {}, where
        looked = sc_dtool(place, "doctor")
        assert looked.code == 0, f"{where}: {looked}"

    def _only_whole_copies(self, place: str, cache: Cache, where: str) -> None:
        for generation in generations(place, self.scene.key):
            directory = cache._layout.generation(self.scene.key, generation)
            if "use" in names(directory):
                (name,) = names(directory, "payload")
                assert digest_of(f"{directory}/payload/{name}") == self.thing.digest, where


def test_every_command_that_writes_is_killed() -> None:
    """A new command, or a forgotten one, would be the one that leaves a cache stuck."""
    assert {case.words.split()[0] for case in CASES.values()} == set(WRITING)
    assert set(WRITING) | set(_LOOKING) == set(Commands.names)


@pytest.mark.parametrize("name", CASES)
def test_kill_anywhere(tmp_path: Path, name: str) -> None:
    """A power failure or an impatient user would leave a cache that shows half an item, or is stuck."""
    if reason := crash.unavailable():
        pytest.skip(reason)
    accidents = Accidents(CASES[name], tmp_path)
    found = accidents.find_points()
    chosen = crash.sample(found, CASES[name].most, SEED)
    missed = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for place, point, killed in pool.map(accidents.happen, enumerate(chosen)):
            missed += not killed
            accidents.check(place, point)
    tally("crash points", name, at=len(chosen), of=len(found))
    print(f"{name}: {len(chosen)} of {len(found)} crash points, seed {SEED}; {missed} were not reached")
    assert chosen, "the command changed nothing"
    assert missed <= len(chosen) // 10
