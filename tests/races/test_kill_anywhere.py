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
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

import httpserver
from effort import CRASH_POINTS, SEED
from figures import tally
from races import crash
from races.actors import digest_of, generations, left_in, make_payload, names
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli.main import Commands, run
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout, WorkName
from sccache_dtool.protocol import sessions

_SOME = CRASH_POINTS // 3  # where most of the calls are those of another case, too

#: A set that a process holds.
_SESSION = "s0123456789abcdef"

#: Commands that write into the cache, or a file for whoever asked.
WRITING = (
    *("use", "unuse", "run", "renew", "clean", "rm", "restore", "reap", "doctor", "init", "pin", "unpin"),
    *("metrics", "session", "lock", "lot", "add", "save", "marker", "sbatch"),
)
#: These write no more into the cache than `use` and `save` do: `tests/markers` kills what writes into the archive.
_LIKE_OTHERS = ("get", "cat", "archive", "index")
_LOOKING = (
    "du", "summary", "ls", "status", "why", "log", "transfers", "loaders", "locate", "dir", "config", "sample",
    "report",
)  # fmt: skip

#: Commands that are killed in other tests: fetch/test_globus.py, serve/test_serve_command.py.
_ELSEWHERE = ("globus", "serve")


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
def running_job() -> Iterator[int]:
    """A process that can hold leases, until the end of the context."""
    process = subprocess.Popen([shutil.which("cat") or "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


class Thing(NamedTuple):
    """Something to use: the words that mean it, and what is read then.

    Of a whole dataset also the key of one of its items, and what is in that.
    """

    words: tuple[str, ...]
    digest: str
    key: str | None = None
    of_item: str | None = None


class Props(NamedTuple):
    """What things are made with: a directory, and what is closed when the accidents are over."""

    directory: Path
    at_the_end: contextlib.ExitStack


def _a_tree(props: Props) -> Thing:
    payload = make_payload(props.directory / "ref", 50)
    return Thing((payload.path,), payload.digest)


def _a_digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _a_file(props: Props) -> Thing:
    """With a digest, so that its content can be verified."""
    file = props.directory / "ref"
    file.write_bytes(b"ACGT" * 100)
    return Thing((str(file), _a_digest(b"ACGT" * 100)), digest_of(str(file)))


def _packed(props: Props) -> tuple[Path, str]:
    """A tar archive; also the digest of what is in it."""
    payload = make_payload(props.directory / "ref", 50)
    archive = props.directory / "ref.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(payload.path, ".")
    return archive, payload.digest


def _a_tar(props: Props) -> Thing:
    archive, digest = _packed(props)
    return Thing((str(archive), _a_digest(archive.read_bytes()), "tar"), digest)


def _a_tar_on_the_web(props: Props) -> Thing:
    archive, digest = _packed(props)
    body = archive.read_bytes()
    server = props.at_the_end.enter_context(httpserver.serve())
    return Thing((server.page("/ref.tar", body, etag='"1"'), _a_digest(body), "tar"), digest)


def _a_tar_that_breaks_off(props: Props) -> Thing:
    """The first answer ends after two thirds, and the rest comes when it is asked for."""
    archive, digest = _packed(props)
    body = archive.read_bytes()
    server = props.at_the_end.enter_context(httpserver.serve())
    url = server.page("/ref.tar", body, etag='"1"', short=len(body) * 2 // 3)
    return Thing((url, _a_digest(body), "tar"), digest)


def _two_files(props: Props) -> Thing:
    """Two sources that become one directory, one of them compressed."""
    payload = make_payload(props.directory / "ref", 50)
    compressed = props.directory / "b.gz"
    compressed.write_bytes(gzip.compress(Path(payload.path, "b").read_bytes()))
    os.remove(f"{payload.path}/deep/c")
    os.rmdir(f"{payload.path}/deep")
    return Thing((str(compressed), "gz", f"{payload.path}/a"), digest_of(payload.path))


_IN_DATASET = {"a/first.txt": b"one\n", "second.csv": b"two, three\n"}


def _dataset(props: Props) -> tuple[str, str]:
    """A dataset on the disk; its URI and UUID."""
    dtoolcore = pytest.importorskip("dtoolcore", reason="dtool is not installed")
    with dtoolcore.DataSetCreator("ds", f"file://{props.directory}") as creator:
        for name, content in _IN_DATASET.items():
            with open(creator.prepare_staging_abspath_promise(name), "wb") as file:
                file.write(content)
        uri = creator.uri
    return uri, dtoolcore.DataSet.from_uri(uri).uuid


def _an_item_of_a_dataset(props: Props) -> Thing:
    uri, _ = _dataset(props)
    return Thing((f"dtool:{uri}#second.csv",), digest_of(str(props.directory / "ds" / "data" / "second.csv")))


def _a_whole_dataset(props: Props) -> Thing:
    uri, uuid = _dataset(props)
    from sccache_dtool.fetch.dtool_source import item_key

    data, name = props.directory / "ds" / "data", "second.csv"
    key = item_key(uuid, hashlib.sha1(name.encode()).hexdigest())
    return Thing((f"dtool:{uri}",), digest_of(str(data)), key, digest_of(str(data / name)))


def _one_of_many(props: Props) -> Thing:
    """The first of three items that are listed in a file."""
    thing = _a_tree(props)
    lines = [f"{thing.words[0]} @the/tree"]
    for name in ("b", "c"):
        (props.directory / name).write_text(name)
        lines.append(f"{props.directory}/{name} @{name}")
    (props.directory / "items.txt").write_text("\n".join(lines))
    return thing


def _one_of_many_without_one(props: Props) -> Thing:
    """As before, but one of them is not there."""
    thing = _one_of_many(props)
    (props.directory / "b").unlink()
    return thing


def _an_item_on_the_web(props: Props) -> Thing:
    """Of a dataset that dtool itself fetches, and reads through the plugin."""
    pytest.importorskip("dtool_http", reason="dtool-http is not installed")
    from dtool.stores import Web

    _dataset(props)
    web = Web(props.directory)
    props.at_the_end.callback(web.stop)
    props.at_the_end.enter_context(httpserver.past_proxies())
    file = props.directory / "ds" / "data" / "second.csv"
    return Thing((f"dtool:{web.address}/ds#second.csv",), digest_of(str(file)))


def _an_object(props: Props) -> Thing:
    """What is added to the archive; before, only its file is there."""
    (props.directory / "ref").write_bytes(b"ACGT" * 100)
    return Thing((_a_digest(b"ACGT" * 100),), digest_of(str(props.directory / "ref")))


class Scene:
    """Where an accident is to happen: a cache in some state, and what leases there were in it."""

    def __init__(self, props: Props, make: Callable[[Props], Thing]) -> None:
        self.place = str(props.directory / "cache")
        self._at_the_end = props.at_the_end
        self.thing = make(props)
        self.cache = Cache(self.place, fs=FileSystem())
        self.cache.init()
        self.layout = Layout(self.place)
        self.key = self.thing.key or self.cache.item_request(self.thing.words).key
        self.values = {"$S": " ".join(self.thing.words), "$D": str(props.directory)}

    def set_for_all(self, variable: str, value: str) -> None:
        """Set an environment variable until the accidents are over."""
        self._at_the_end.enter_context(mock.patch.dict(os.environ, {variable: value}))

    def use(self, times: int = 1) -> None:
        """Use the item, and give it back."""
        for _ in range(times):
            self.cache.use(*self.thing.words).release()

    def held_by(self, pid: int) -> None:
        """Let a process hold it."""
        self.cache.hold(self.cache.owner(f"pid:{pid}"), self.cache.item_request(self.thing.words))

    def held_by_the_dead(self) -> str:
        """Let a process that is gone hold it; the holder's id."""
        with running_job() as pid:
            lease = self.cache.hold(self.cache.owner(f"pid:{pid}"), self.cache.item_request(self.thing.words))
        return lease.holder.id

    def locked_by_the_dead(self) -> None:
        """Let a downloader and a cleaner have been killed at work."""
        for election in (self.key[:32], "clean"):
            script = (
                "import os, sys; from sccache_dtool.cache import Cache\n"
                "from sccache_dtool.protocol.election import make_election\n"
                "assert make_election(Cache(sys.argv[1]).store, sys.argv[2]).poll(); os.kill(os.getpid(), 9)"
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


def _below_another(scene: Scene) -> None:
    """There is another cache that has the item, for whoever names it as the upstream."""
    shared = Cache(f"{scene.values['$D']}/shared", fs=FileSystem())
    shared.init()
    shared.use(*scene.thing.words).release()
    shared.close()


def _bare(scene: Scene) -> None:
    """No cache, and an empty directory for one."""
    shutil.rmtree(scene.place)
    os.mkdir(scene.place)


def _locked(scene: Scene) -> None:
    scene.locked_by_the_dead()


def _with_archive(scene: Scene) -> None:
    """An archive that is set up, and in it nothing."""
    (Path(scene.place).parent / "archive").mkdir()
    Path(scene.layout.config_file).write_text(f'[archive]\nurl = "{Path(scene.place).parent}/archive"\n')
    Cache(scene.place).archive.init()


def _archived(scene: Scene) -> None:
    """A marker, and what it stands for, in the archive."""
    _with_archive(scene)
    cache = Cache(scene.place)
    shutil.copy(Path(scene.place).parent / "ref", f"{scene.place}/ref")
    cache.files.save(f"{scene.place}/ref", archive_only=True)
    os.unlink(f"{scene.place}/ref")


def _idle(scene: Scene) -> None:
    scene.use()


def _listed(scene: Scene) -> None:
    """What a file lists is there."""
    scene.cache.use_many(scene.cache.manifest(f"{scene.values['$D']}/items.txt")).release()


def _listed_but_one(scene: Scene) -> None:
    """Of what a file lists, one item is missing: it is fetched in the thread that is traced."""
    for name in ("b", "c"):
        scene.cache.use(f"{scene.values['$D']}/{name}").release()


def _listed_but_the_missing(scene: Scene) -> None:
    """Of what a file lists, one item is neither here nor at its source."""
    scene.use()
    scene.cache.use(f"{scene.values['$D']}/c").release()


def _idle_and_being_cleaned(scene: Scene) -> None:
    scene.use()
    scene.locked_by_the_dead()


def _littered(scene: Scene) -> None:
    scene.use(101)  # enough for a history to be folded
    scene.left_by_the_dead()


def _reapable(scene: Scene) -> None:
    scene.held_by_the_dead()
    scene.held_by_the_dead()


def _binned(scene: Scene) -> None:
    scene.use()
    scene.cache.remove(scene.key, keep_for=100_000)


def _held_by_name(scene: Scene) -> None:
    """By somebody of whom nobody but a person can tell whether he is gone."""
    lease = scene.cache.hold(scene.cache.owner("ada"), scene.cache.item_request(scene.thing.words))
    scene.values["$H"] = lease.holder.id


def _in_session(scene: Scene) -> None:
    """An item in a session of the dead, which nobody has reaped yet, with a lock on it."""
    scene.use()
    with running_job() as pid:
        owner = scene.cache.owner(f"pid:{pid}")
        session = scene.cache.create_session({"/a": scene.thing.words}, owner=owner)
    scene.values["$I"], scene.values["$L"] = session.id, session.lock("/a").id


#: What stands in for Slurm's commands. Job 42 waits while `sbatch` runs, and was cancelled when one looks afterwards.
_SLURM = {
    "sbatch": "echo 42",
    "scontrol": 'case "$*" in *config) echo "ClusterName = lab";; esac',
    "squeue": """now=$(date +%s)
case "$*" in *Comment*) ;; *) echo "42|42|N/A|0|${JOB_STATE:-CANCELLED}|$((now - 5))|N/A|$now||lab|N/A|";; esac""",
    "scancel": "",
    "sinfo": "",
}


def _with_slurm(scene: Scene) -> None:
    """Slurm's commands are in $PATH, and a job script needs the item."""
    around = Path(scene.values["$D"])
    (around / "bin").mkdir()
    for name, script in _SLURM.items():
        (around / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (around / "bin" / name).chmod(0o755)
    (around / "job.sh").write_text(f"#!/bin/sh\n#SC {scene.values['$S']} @in/ref\n")
    scene.set_for_all("PATH", f"{around}/bin:{os.environ['PATH']}")


def _shared_out(scene: Scene) -> None:
    """The item belongs to a lot, which can be changed, and has been."""
    scene.use()
    Path(scene.values["$D"], "lots.toml").write_text('[lot.bob]\nowner = "bob"\ndedicated = "1GB"\n')
    for words in ("create group --path /", "create ada --parent group --max-objects 5", "set ada --max-objects +1"):
        assert sc_dtool(scene.place, "lot", *words.split()).code == 0


def _of_a_dead_lot(scene: Scene) -> None:
    """The item goes, and the lot with it."""
    _shared_out(scene)
    scene.cache.change_lots(lambda lots: lots.update("group", caller=None, expires=1.0, deletes=1.0))
    scene.cache.change_lots(lambda lots: lots.update("ada", caller=None, expires=1.0, deletes=1.0))
    Path(scene.layout.config_file).write_text('[lots]\nforget = "0s"\n')


def _planned(scene: Scene) -> None:
    scene.use()
    plan = scene.values["$D"] + "/plan.json"
    assert sc_dtool(scene.place, "clean", "--all", "-n", "-o", plan).code == 0


def _loose(scene: Scene) -> None:
    """Files of two datasets that dtool has left, and a directory that is somebody's."""
    scene.use()
    for dataset in ("", "s3/"):
        directory = Path(scene.place, f"{dataset}{uuid.uuid4()}")
        directory.mkdir(parents=True)
        for number in range(2):
            (directory / f"{number:040x}.txt").write_text("loose")
    Path(scene.place, "mine").mkdir()
    Path(scene.place, "mine", "notes").write_text("mine")


def _pinned(scene: Scene) -> None:
    scene.use()
    scene.cache.pin(scene.key, scene.cache._clock.wall() + 100_000)


def _half_made(scene: Scene) -> None:
    scene.use()
    scene.left_by_the_dead()
    os.rmdir(f"{scene.layout.gone}")
    os.unlink(scene.layout.tag_file)


def _without_directories(scene: Scene) -> None:
    """As a backup leaves it that saves no empty directories."""
    scene.use()
    FileSystem().remove_tree(scene.layout.items)
    for path in (scene.layout.gone, scene.layout.holders, scene.layout.tmp, scene.layout.trash, scene.layout.locks):
        FileSystem().remove_tree(path)


def _closed_to_the_group(scene: Scene) -> None:
    text = Path(scene.layout.format_file).read_text()
    Path(scene.layout.format_file).write_text(text.replace("shared: no", "shared: group"))
    scene.cache.close()
    scene.cache = Cache(scene.place, fs=FileSystem())
    scene.use()
    for path in Path(scene.layout.control).rglob("*"):
        if path.is_dir() and "payload" not in path.parent.parts:  # of what is in payloads the doctor only tells
            path.chmod(0o700)


def _payload(scene: Scene) -> Path:
    scene.use()
    (generation,) = generations(scene.place, scene.key)
    directory = f"{scene.layout.generation(scene.key, generation)}/payload"
    (name,) = names(directory)
    return Path(directory, name)


def _rotten(scene: Scene) -> None:
    """Bits have changed, and no size tells of it."""
    payload = _payload(scene)
    payload.chmod(0o600)
    payload.write_bytes(b"ACGA" + payload.read_bytes()[4:])


def _truncated(scene: Scene) -> None:
    payload = _payload(scene)
    payload.chmod(0o600)
    os.truncate(payload, 10)


#: What Python runs: the command line, or a program that knows nothing of us and reads through dtool.
SC_DTOOL = ("-m", "sccache_dtool", "--cache-dir", "$C")
#: As the first, on another cache.
ON_NODE = ("-m", "sccache_dtool", "--cache-dir", "$C.node")
READS = (
    "-c",
    """
import sys, dtoolcore
uri, _, relpath = sys.argv[1].removeprefix("dtool:").partition("#")
dataset = dtoolcore.DataSet.from_uri(uri)
path = dataset.item_content_abspath(dtoolcore.utils.generate_identifier(relpath))
assert "/.sc-dtool/" in path, path
open(path).read()
""",
)


class Case(NamedTuple):
    """A command, and the state in which it begins.

    $S: what is used; $P: a process that runs on; $C: the cache; $D: the directory around the scene; $H: a holder;
    $V: the view of a set; $I: a session; $L: a lock.
    """

    before: Callable[[Scene], None]
    words: str
    thing: Callable[[Props], Thing] = _a_tree
    most: int = CRASH_POINTS  # points at which it is killed
    missed: int = 0  # of these points at most: two threads do not make the same calls in each run
    leased: float | None = None  # the process $P has a lease on the item; its lifetime in seconds, 0: none
    listed: bool = False  # the process $P has what is listed in a file, as the set $V
    put_right: tuple[str, ...] = ("clean --all -y", "doctor --fix")  # said afterwards; $again: the command itself
    codes: tuple[int, ...] = (0,)  # with which the command may end
    bad: bool = False  # the copy in the cache is damaged before
    writes: str | None = None  # a file for whoever asked
    program: tuple[str, ...] = SC_DTOOL


_DOCTOR_FIRST = ("doctor --fix", "clean --all -y")  # `clean` wants its directories, and only the doctor makes them

#: A cleaning that evicts nothing of what was used today: what is kept for `restore` must be there after it.
_OF_WHAT_IS_OLD = ("clean --older-than 30d -y", "doctor --fix")

#: What was not archived yet is archived by the command itself.
_AGAIN_FIRST = ("$again", "clean --all -y", "doctor --fix")

CASES = {
    "use, a miss": Case(_nothing, "use --holder pid:$P $S"),
    "use, a tar": Case(_nothing, "use --holder pid:$P $S", _a_tar),
    "use, over HTTP": Case(_nothing, "use --holder pid:$P $S", _a_tar_on_the_web),
    "use, broken off and continued": Case(_nothing, "use --holder pid:$P $S", _a_tar_that_breaks_off, _SOME),
    "use, two files": Case(_nothing, "use --holder pid:$P $S", _two_files),
    "use, an item of a dataset": Case(_nothing, "use --holder pid:$P $S", _an_item_of_a_dataset, _SOME),
    "use, a whole dataset": Case(_nothing, "use --holder pid:$P $S", _a_whole_dataset, _SOME),
    "use, a list": Case(_nothing, "use --holder pid:$P --from $D/items.txt", _one_of_many),
    "use, a list with a miss": Case(_listed_but_one, "use --holder pid:$P --from $D/items.txt", _one_of_many),
    "use, a list that is there": Case(_listed, "use --holder pid:$P --from $D/items.txt", _one_of_many),
    "use, a list that fails": Case(
        _listed_but_the_missing, "use --holder pid:$P --from $D/items.txt", _one_of_many_without_one, codes=(12,)
    ),
    "use, from an upstream": Case(_below_another, "use --upstream $D/shared --holder pid:$P $S"),
    "use, as an upstream": Case(_nothing, "use --upstream $C --holder pid:$P $S", most=_SOME, program=ON_NODE),
    "use, a hit": Case(_idle, "use --holder pid:$P --ttl 1h $S"),
    "use, taking over": Case(_locked, "use --holder pid:$P $S"),
    "dtool's plugin": Case(_nothing, "$S", _an_item_on_the_web, _SOME, program=READS),
    "dtool's plugin, a hit": Case(_idle, "$S", _an_item_on_the_web, _SOME, program=READS),
    "clean, taking over": Case(_idle_and_being_cleaned, "clean --all -y"),
    "unuse": Case(_idle, "unuse --holder pid:$P $S", leased=0),
    "unuse and evict": Case(_idle, "unuse --evict-if-last --holder pid:$P $S", leased=0),
    "unuse, a list": Case(_idle, "unuse --holder pid:$P $V", _one_of_many, listed=True),
    "run": Case(_idle, "run $S -- true"),
    "run, a list": Case(_listed, "run --from $D/items.txt -- true", _one_of_many, _SOME),
    "run, a list with a miss": Case(_listed_but_one, "run --from $D/items.txt -- true", _one_of_many, _SOME),
    "run, a miss": Case(_nothing, "run $S -- true"),
    "clean": Case(_littered, "clean --all -y"),
    "clean --plan": Case(_planned, "clean --plan $D/plan.json", most=_SOME),
    "clean -n -o": Case(
        _idle, "clean -n --all -o $C/plan.json", put_right=("$again", "clean --all -y"), writes="plan.json"
    ),
    "clean, loose files": Case(_loose, "clean --older-than 0s", most=_SOME),
    "rm": Case(_reapable, "rm ref"),
    "rm --trash": Case(_idle, "rm --trash 1d ref", put_right=_OF_WHAT_IS_OLD),
    "restore": Case(_binned, "restore ref", put_right=_OF_WHAT_IS_OLD),
    "reap": Case(_reapable, "reap"),
    "reap --holder": Case(
        _held_by_name, "reap --holder $H -y", put_right=("$again", "clean --all -y", "doctor --fix"), codes=(0, 2)
    ),
    "renew": Case(_idle, "renew --holder pid:$P", leased=3600),
    "clean --trash": Case(_idle, "clean --all -y --trash 1d", put_right=_OF_WHAT_IS_OLD),
    "init": Case(_bare, "init", put_right=("init", "clean --all -y", "doctor --fix")),
    "pin": Case(_idle, "pin --until 1d ref"),
    "pin, another time": Case(_pinned, "pin ref"),
    "unpin": Case(_pinned, "unpin ref"),
    "doctor --fix": Case(_half_made, "doctor --fix", put_right=_DOCTOR_FIRST),
    "doctor --fix, directories": Case(_without_directories, "doctor --fix", most=_SOME, put_right=_DOCTOR_FIRST),
    "doctor --fix, a group's": Case(_closed_to_the_group, "doctor --fix", most=_SOME, put_right=_DOCTOR_FIRST),
    "doctor --fix, a bad copy": Case(_truncated, "doctor --fix", _a_file, _SOME, put_right=_DOCTOR_FIRST, bad=True),
    "doctor --fix --verify-content": Case(
        _rotten,
        "doctor --fix --verify-content",
        _a_file,
        _SOME,
        put_right=("doctor --fix --verify-content", "clean --all -y"),
        bad=True,
    ),
    "session create": Case(_idle, "session create --holder pid:$P --add $S:/a"),
    "session create, a list": Case(
        _listed, "session create --holder pid:$P --from $D/items.txt", _one_of_many, most=_SOME
    ),
    "session set": Case(_in_session, "session set $I $S:/b --force", most=_SOME),
    "session remove": Case(_in_session, "session remove $I /a --force", most=_SOME),
    "session renew": Case(_in_session, "session renew $I", most=_SOME),
    "sbatch": Case(_with_slurm, "sbatch $D/job.sh"),
    "session add": Case(_in_session, "session add $I $S:/b"),
    "session rm": Case(_in_session, "session rm $I"),
    "lot create": Case(_idle, "lot create physics --dedicated 0B"),
    "lot set": Case(_shared_out, "lot set ada --max-objects +1"),
    "lot rm": Case(_shared_out, "lot rm group --recursive", most=_SOME),
    "lot import": Case(_shared_out, "lot import $D/lots.toml", most=_SOME),
    "lot report": Case(_shared_out, "lot report ada --bytes 1GB", most=_SOME),
    "lot restore": Case(_shared_out, "lot restore 1", most=_SOME),
    "clean, a dead lot": Case(_of_a_dead_lot, "clean --high-watermark 1PB", most=_SOME),
    "lock get": Case(_in_session, "lock get $I /a"),
    "lock release": Case(_in_session, "lock release $L"),
    "add": Case(_with_archive, "add $D/ref", _an_object, _SOME, put_right=_AGAIN_FIRST),
    "save": Case(_with_archive, "save $D/ref", _an_object, _SOME, put_right=_AGAIN_FIRST),
    "marker restore": Case(_archived, "marker restore $C", _an_object, _SOME, put_right=_AGAIN_FIRST),
    "doctor --verify-filesystem": Case(_idle, "doctor --verify-filesystem $C", most=4, missed=1, codes=(0, 3)),
    "metrics": Case(_idle, "metrics -o $C/sc.prom", put_right=("$again", "clean --all -y"), writes="sc.prom"),
}


class Accidents:
    """One case, in as many copies as there are accidents."""

    def __init__(self, case: Case, directory: Path, at_the_end: contextlib.ExitStack) -> None:
        self.case = case
        self.directory = directory
        scene_directory = directory / "scene"
        scene_directory.mkdir()
        scene = Scene(Props(scene_directory, at_the_end), case.thing)
        case.before(scene)
        scene.cache.close()
        self.scene = scene
        self.thing = scene.thing
        self.made = {use.lease for use in scene.cache.uses(scene.key)} if os.path.isdir(scene.layout.items) else set()

    def prepare(self, name: str, pid: int) -> tuple[str, list[str], dict[str, str]]:
        """A fresh copy of the cache; where it is, the command line, and the environment."""
        place = str(self.directory / name)
        shutil.copytree(self.scene.place, place, symlinks=True)
        if self.case.leased is not None:
            cache = Cache(place, fs=FileSystem())
            cache.hold(
                cache.owner(f"pid:{pid}"),
                cache.item_request(self.thing.words),
                UseOptions(ttl=self.case.leased or None),
            )
        if self.case.listed:
            cache = Cache(place, fs=FileSystem())
            entries = cache.manifest(f"{self.scene.values['$D']}/items.txt")
            cache.hold_many(cache.owner(f"pid:{pid}"), entries, session=_SESSION)
        program = [word.replace("$C", place) for word in self.case.program]
        environment = {**os.environ, "XDG_STATE_HOME": f"{place}.state", "DTOOL_CACHE_DIRECTORY": place}
        environment["JOB_STATE"] = "PENDING"
        return place, [sys.executable, *program, *self._filled(self.case.words, place, pid)], environment

    def _filled(self, words: str, place: str, pid: int | None = None) -> list[str]:
        """The words of a command line, with what the names in them stand for."""
        view = sessions.view_path(Layout(place), _SESSION)
        for variable, value in {**self.scene.values, "$P": str(pid), "$C": place, "$V": view}.items():
            words = words.replace(variable, value)
        return words.split()

    def find_points(self) -> list[crash.Point]:
        """Every call before which the command can be killed."""
        with running_job() as pid:
            place, argv, environment = self.prepare("undisturbed", pid)
            return crash.points(argv, environment, place, self.case.codes)

    def happen(self, numbered: tuple[int, crash.Point]) -> tuple[str, crash.Point, bool]:
        """Kill the command, and let the job that it worked for end, too."""
        number, point = numbered
        with running_job() as pid:
            place, argv, environment = self.prepare(f"accident{number}", pid)
            killed = crash.kill_at(argv, environment, point)
        return place, point, killed

    def check(self, place: str, point: crash.Point) -> None:
        """What must hold afterwards."""
        where = f"killed before {point.line}"
        cache = Cache(place, fs=FileSystem())
        if not self.case.bad:
            self._only_whole_copies(place, cache, where)
        for words in self.case.put_right:
            again = words == "$again"
            done = sc_dtool(place, *self._filled(self.case.words if again else words, place))
            assert done.code in (self.case.codes if again else (0,)), f"{where}: {done}"
            if self.case.put_right is _OF_WHAT_IS_OLD:
                self._still_to_be_had(place, cache, where)
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
        self._only_what_belongs_there(place, where)

    def _only_what_belongs_there(self, place: str, where: str) -> None:
        """In the root: nothing of others is lost, and nothing of ours beside the cache."""
        if self.case.before is _loose:
            assert Path(place, "mine", "notes").read_text() == "mine", where
        if self.case.writes is not None:
            text = Path(place, self.case.writes).read_text()
            assert text.endswith("\n"), where

    def _still_to_be_had(self, place: str, cache: Cache, where: str) -> None:
        """What is, or was, to be kept for `restore` is published, or in the trash for as long."""
        published = generations(place, self.scene.key)
        kept = [name for _, name in cache.restorable()]
        assert len(published) + len(kept) == 1, f"{where}: {published}, {names(cache._layout.trash)}"
        asked = 100_000 if self.case.before is _binned else 86_400
        for name in kept:
            assert asked - 1000 < name.keep_until - os.stat(self.scene.place).st_mtime < asked + 1000, where

    def _only_whole_copies(self, place: str, cache: Cache, where: str) -> None:
        for generation in generations(place, self.scene.key):
            directory = cache._layout.generation(self.scene.key, generation)
            if "use" in names(directory):
                (name,) = names(directory, "payload")
                assert digest_of(f"{directory}/payload/{name}") == (self.thing.of_item or self.thing.digest), where


def test_every_command_that_writes_is_killed() -> None:
    """A new command, or a forgotten one, would be the one that leaves a cache stuck."""
    assert {case.words.split()[0] for case in CASES.values() if case.program is SC_DTOOL} == set(WRITING)
    assert set(WRITING) | set(_LOOKING) | set(_ELSEWHERE) | set(_LIKE_OTHERS) == {
        name for group in Commands.groups.values() for name in group
    }


@pytest.mark.parametrize("name", CASES)
def test_kill_anywhere(tmp_path: Path, name: str) -> None:
    """A power failure or an impatient user would leave a cache that shows half an item, or is stuck."""
    if reason := crash.unavailable():
        pytest.skip(reason)
    with contextlib.ExitStack() as at_the_end:
        accidents = Accidents(CASES[name], tmp_path, at_the_end)
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
    assert missed <= max(CASES[name].missed, len(chosen) // 10)
