"""Two real users of one group, one of them hostile: what she can put into the cache, and what the other one's commands
make of it. They end, say what is wrong in words fit for a terminal, and touch nothing of the victim's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from effort import STRIDE
from hostile.swaps import snapshot
from hostile.users import PATIENCE, Done, act_as, become, load_everything, open_directory, run_as, share
from sccache_dtool.disk.names import (
    Generation,
    HolderName,
    Layout,
    PinName,
    SegmentName,
    StateName,
    TrashName,
    WorkName,
)
from sccache_dtool.liveness.process import Proc

pytestmark = pytest.mark.root

VICTIM, MALLORY = "games", "daemon"
GENERATION = Generation("0123456789abcdef", 1_700_000_000, 5, 1)
ID = "s0123456789ab-0123456789ab"
UUID = "12345678-1234-1234-1234-123456789abc"
GOING = TrashName(GENERATION, 0, True)
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
FAULTS = ("this is a fault", "Traceback", "RecursionError", "MemoryError")

LOOKING = [
    ["ls"],
    ["du"],
    ["status"],
    ["why", "ref.fa"],
    ["status", "ref.fa"],
    ["log"],
    ["transfers", "--all"],
    ["locate", "ref.fa"],
    ["ls", "--long"],
    ["du", "--by", "user"],
    ["du", "--by", "dataset"],
    ["summary"],
    ["summary", "--by", "item"],
    ["metrics"],
    ["pin"],
    ["restore"],
    ["config", "show"],
    ["clean", "--all", "-n"],
    ["clean", "--older-than", "0s", "--notice", "1d"],
    ["clean", "--older-than", "0s", "--notice", "1d", "--by", "user"],
]
CHANGING = [
    ["use", "--holder", "her", "{source}"],
    ["reap"],
    ["clean", "--older-than", "1d", "-y"],
    ["restore", "nothing"],
    ["doctor"],
    ["doctor", "--fix"],
    ["unuse", "--holder", "her", "{source}"],
    ["rm", "ref.fa"],
    ["clean", "--all", "-y"],
]


class Scene:
    """A shared cache with one item, and a directory of the victim's own."""

    def __init__(self, place: Path) -> None:
        self.root = place / "shared"
        share(self.root)
        load_everything()
        self.source = place / "ref.fa"
        self.source.write_text("ACGT\n")
        self.own = place / "own"
        self.own.mkdir()
        for name in ("thesis", "payload/thesis", "deep/deeper/thesis"):
            (self.own / name).parent.mkdir(parents=True, exist_ok=True)
            (self.own / name).write_text("precious")
            (self.own / name).chmod(0o600)
        for path in (self.own, *self.own.rglob("*")):
            shutil.chown(path, VICTIM, VICTIM)
        self.precious = snapshot(self.own)
        self.layout = Layout(str(self.root))
        made = self.victim("use", "--holder", "first", str(self.source))
        assert made.code == 0, made
        self.key = next(Path(self.layout.items).glob("*/*")).name
        self.copy = Path(made.out.strip()).parents[1]
        assert self.victim("use", "--holder", "second", str(self.source)).code == 0
        assert self.victim("unuse", "--holder", "second", str(self.source)).code == 0

    def victim(self, *words: str) -> Done:
        done = run_as(VICTIM, self.root, *(word.format(source=self.source) for word in words))
        assert not any(fault in done.out + done.err for fault in FAULTS), done
        assert done.code in {0, 1, 2, 3, 10, 14, 20}, done
        return done

    def mallory(self, act: Callable[[], object]) -> None:
        def do() -> None:
            os.umask(0o007)
            act()

        done = act_as(MALLORY, do, self.root)
        assert done.code == 0, done.err

    def everything(self, *options: str) -> Iterator[tuple[list[str], Done]]:
        for words in (*LOOKING, *CHANGING):
            yield words, self.victim(*options, *words)

    def check(self) -> None:
        assert snapshot(self.own) == self.precious


@pytest.fixture
def scene() -> Iterator[Scene]:
    with open_directory() as place:
        yield Scene(place)


# -- names and texts ---------------------------------------------------------------------------------------------------

EVIL = b"evil\n\x1b]0;owned\x07\xff\xc2\x9b31m\r\xe2\x80\xae"


@pytest.mark.parametrize("format", ["human", "json", "tsv"])
def test_what_others_named_is_shown_without_driving_the_terminal(scene: Scene, format: str) -> None:
    """A colleague could retitle the victim's terminal, forge lines of output, or end the command with a traceback."""
    places = [
        scene.layout.items,
        str(scene.copy.parents[1]),
        str(scene.copy.parent),
        f"{scene.copy.parent}/history",
        f"{scene.copy}/use",
        f"{scene.copy}/payload",
        scene.layout.holders,
        scene.layout.gone,
        scene.layout.tmp,
        scene.layout.trash,
        scene.layout.locks,
        scene.layout.transfers,
        f"{scene.root}/{UUID}",
    ]

    evil = EVIL.decode("utf-8", "replace")

    def spoil() -> None:
        os.mkdir(f"{scene.root}/{UUID}")
        for place in places:
            with open(os.fsencode(place) + b"/" + EVIL, "w"):
                pass
            os.mkdir(os.fsencode(place) + b"/" + EVIL + b".d")
        facts = {"format": 1, "key": scene.key, "source": [evil], "fetched": evil, "by": evil, "seconds": evil}
        os.rename(f"{scene.copy}/item.json", f"{scene.copy}/use/item.json")
        Path(f"{scene.copy}/item.json").write_text(json.dumps(facts))
        os.chmod(f"{scene.copy}/item.json", 0o640)
        os.symlink(EVIL, f"{scene.copy}/use/{ID}.1")
        os.symlink(EVIL, f"{scene.layout.holders}/{ID}.0.0")
        os.symlink(EVIL, f"{scene.copy.parent}/history/{ID}.2~1700000000000~released")
        for place in (scene.layout.pins, f"{scene.layout.trash}/{TrashName(GENERATION, 9_999_999_999)}"):
            os.makedirs(place, exist_ok=True)
        os.symlink(EVIL, f"{scene.layout.pins}/{PinName(scene.key, 9_999_999_999)}")
        trashed = f"{scene.layout.trash}/{TrashName(GENERATION, 9_999_999_999)}/item.json"
        Path(trashed).write_text(json.dumps({"key": f"{'0' * 32}-{evil}"}))
        outcome = f"{scene.layout.transfers}/{scene.key[:32]}/{scene.key[:32]}~{ID}.9~{int(time.time() * 1000)}~failed"
        more = {"label": evil, "error": evil, "details": [evil], "hint": evil, "began": evil, "bytes": evil}
        Path(outcome).write_text(json.dumps(facts | more))
        work = f"{scene.layout.tmp}/{WorkName(f'{ID}.6', 'fetch')}"
        os.makedirs(work)
        Path(f"{work}/transfer.json").write_text(json.dumps(facts | more))
        os.symlink(json.dumps(more | {"key": scene.key}), f"{scene.layout.tmp}/{WorkName(f'{ID}.8', 'wait')}")
        Path(scene.layout.config_file).write_text(f"[clean]\n{json.dumps(evil)} = 1\n[{json.dumps(evil)}]\nx = 1\n")

    scene.mallory(spoil)
    shown = 0
    for words, done in scene.everything("--format", format):
        found = CONTROL_CHARACTERS.search(done.out + done.err)
        assert not found, (words, found, done)
        assert not re.search("evil$", done.out + done.err, re.MULTILINE), (words, done)
        shown += (done.out + done.err).count("owned")
        for line in done.out.splitlines() if format == "json" and words != ["metrics"] else ():
            assert json.loads(line)["type"]
    assert shown > 10
    scene.check()


# -- numbers that nobody can reckon with -------------------------------------------------------------------------------


def test_names_with_absurd_numbers(scene: Scene) -> None:
    """One name that a colleague makes up would end everybody's `du`, `ls` and `clean` with a fault."""
    most = 10**12 - 1
    absurd = Generation("0" * 16, most, 10**18 - 1, most, most)
    trashed = f"{scene.layout.trash}/{TrashName(absurd, most)}"

    def spoil() -> None:
        os.makedirs(f"{scene.copy.parent}/{absurd}/use")
        os.symlink("x", f"{scene.copy.parent}/history/{ID}.5~{10**15 - 1}~released")
        os.makedirs(trashed)
        Path(f"{trashed}/item.json").write_text(json.dumps({"key": scene.key}))
        os.makedirs(scene.layout.pins)
        os.symlink("x", f"{scene.layout.pins}/{PinName(scene.key, most)}")
        os.symlink("{}", f"{scene.layout.holders}/{HolderName(ID, most, most)}")

    scene.mallory(spoil)
    for _ in scene.everything():
        pass
    scene.check()


def test_a_segment_that_claims_to_be_huge(scene: Scene) -> None:
    """Memory would be taken for what a name says, and every command end for want of it."""
    segment = SegmentName(10**12 - 1, 1_700_000_000_000, "0" * 16)
    scene.mallory(lambda: Path(f"{scene.copy.parent}/history/{segment}").write_text("x"))
    for _ in scene.everything():
        pass
    assert scene.victim("unuse", "--holder", "first", str(scene.source)).code == 0


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e308", "-1e17", "9" * 300, "-1"])
def test_records_with_absurd_numbers(scene: Scene, number: str) -> None:
    """A record that a colleague makes up would end `transfers` or `summary` with a fault."""
    names = ("bytes", "seconds", "began", "attempts", "there", "total", "ttl", "since", "pid", "start", "fetched")
    text = f'{{"key": {json.dumps(scene.key)}, "source": ["x"], ' + ", ".join(f'"{name}": {number}' for name in names)

    def spoil() -> None:
        os.rename(f"{scene.copy}/item.json", f"{scene.copy}/use/item.json")
        Path(f"{scene.copy}/item.json").write_text(f"{text}}}")
        outcome = f"{scene.key[:32]}/{scene.key[:32]}~{ID}.9~{int(time.time() * 1000)}~done"
        Path(f"{scene.layout.transfers}/{outcome}").write_text(f"{text}}}")
        work = f"{scene.layout.tmp}/{WorkName(f'{ID}.6', 'fetch')}"
        os.makedirs(work)
        Path(f"{work}/transfer.json").write_text(f"{text}}}")
        os.symlink("-", f"{work}/{StateName('transferring', 10**18 - 1, 10**18 - 1, 1)}")
        for kind in "prsnj":
            os.symlink(f'{text}, "kind": "{kind}"}}', f"{scene.layout.holders}/{kind}{ID[1:]}.0.0")

    scene.mallory(spoil)
    for _ in scene.everything():
        pass
    scene.check()


def test_an_id_that_is_a_path(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory of a cache is a file called by its id: a colleague could have any file of the victim's overwritten."""
    state = scene.own / "state"
    state.mkdir()
    shutil.chown(state, VICTIM, VICTIM)
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    domain = Proc().uptime_domain()

    def spoil() -> None:
        os.mkdir(f"{scene.root}/evil")
        os.symlink(scene.own / "thesis", f"{scene.root}/evil/x-{domain}.json")
        os.rename(scene.layout.format_file, f"{scene.root}/aside")
        id = f"{'/..' * 12}{scene.root}/evil/x"
        Path(scene.layout.format_file).write_text(f"sc-dtool cache\nversion: 1\nid: {id}\nshared: group\n")
        os.chmod(scene.layout.format_file, 0o644)

    scene.mallory(spoil)
    for words in (["reap"], ["clean", "--all", "-y"], ["use", "--holder", "her", "{source}"], ["doctor", "--fix"]):
        assert scene.victim(*words).code == 10
    assert (scene.own / "thesis").read_text() == "precious"
    assert os.listdir(state) == []


# -- things in the place of records ------------------------------------------------------------------------------------


def fifo(path: str) -> None:
    """With two names: as many as a lock has."""
    os.mkfifo(path)
    os.link(path, f"{path}.twin")


def bound_socket(path: str) -> None:
    os.chdir(os.path.dirname(path))  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.basename(path))


def huge(path: str) -> None:
    """A file of a gigabyte, none of it on the disk."""
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    os.chmod(path, 0o666)


def nested(path: str) -> None:
    with open(path, "w") as file:
        file.write(("x=" if path.endswith("toml") else "") + "[" * 500_000)
    os.chmod(path, 0o666)


def tree(path: str) -> None:
    os.makedirs(f"{path}/deep/deeper")


PLACES = {
    "item.json": lambda scene: f"{scene.copy}/item.json",
    "a segment": lambda scene: f"{scene.copy.parent}/history/{SegmentName(5, 1_700_000_000_000, '0123456789abcdef')}",
    "an ended lease": lambda scene: f"{scene.copy.parent}/history/{ID}.5~1700000000000~released",
    "a lease": lambda scene: f"{scene.copy}/use/{ID}.5",
    "a holder": lambda scene: f"{scene.layout.holders}/{HolderName(ID, 0, 0)}",
    "the lock of a cleaner": lambda scene: f"{scene.layout.locks}/clean.lock",
    "the sign of a winner": lambda scene: f"{scene.layout.locks}/clean.by-0123456789abcdef",
    "the settings": lambda scene: scene.layout.config_file,
    "FORMAT": lambda scene: scene.layout.format_file,
    "a work area": lambda scene: f"{scene.layout.tmp}/{WorkName(f'{ID}.7', 'fetch')}",
    "a fetch's record": lambda scene: f"{scene.layout.tmp}/{WorkName(f'{ID}.8', 'fetch')}/transfer.json",
    "an outcome": lambda scene: (
        f"{scene.layout.transfers}/{'0' * 32}/{'0' * 32}~{ID}.9~{int(time.time() * 1000)}~failed"
    ),
    "what was evicted": lambda scene: f"{scene.layout.trash}/{TrashName(GENERATION, 9_999_999_999)}/item.json",
    "what is being removed": lambda scene: f"{scene.layout.trash}/{GOING}",
    "a loose file": lambda scene: f"{scene.root}/{UUID}/{'0' * 40}.csv",
}


KINDS = [fifo, bound_socket, huge, nested, tree, "link"]

#: One in so many of the places is taken with each kind, and other ones with the next: each place with two kinds.
EVERY = min(STRIDE, len(KINDS) // 2)


@pytest.mark.parametrize("kind", KINDS)
def test_anything_in_the_place_of_a_record(scene: Scene, kind: Callable[[str], None] | str) -> None:
    """A colleague could hang the victim's jobs at a FIFO, fill their memory, or have them read other files."""
    for name, where in [*PLACES.items()][KINDS.index(kind) % EVERY :: EVERY]:
        path = where(scene)

        def spoil(path: str = path) -> None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, f"{scene.root}/aside")
            if callable(kind):
                kind(path)
            else:
                os.symlink(scene.own / "thesis", path)

        def restore(path: str = path) -> None:
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                for left in (path, f"{path}.twin"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(left)
            if os.path.lexists(f"{scene.root}/aside"):
                os.rename(f"{scene.root}/aside", path)

        scene.mallory(spoil)
        words = [["status"], ["why", "ref.fa"], ["log"], ["transfers"], ["reap"], ["clean", "--older-than", "1d", "-y"]]
        for line in (
            *words,
            ["use", "--holder", "her", "{source}"],
            ["unuse", "--holder", "her", "{source}"],
            ["doctor"],
        ):
            done = scene.victim(*line)
            assert CONTROL_CHARACTERS.search(done.out + done.err) is None, (name, line, done)
            assert "precious" not in done.out + done.err
        assert scene.copy.is_dir(), f"{name}: what is in use has gone"
        scene.check()
        if name in ("item.json", "FORMAT", "the settings"):
            scene.mallory(restore)


# -- trees -------------------------------------------------------------------------------------------------------------


def make_deep(path: str, depth: int) -> None:
    """Deeper than any path can say."""
    os.mkdir(path)
    here = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_a_tree_deeper_than_a_path_can_say(scene: Scene) -> None:
    """A colleague could make a tree that no clean ever gets rid of: too deep for a stack, and for a path."""
    scene.mallory(lambda: make_deep(f"{scene.layout.trash}/{GOING}", 3000))
    assert scene.victim("clean", "--older-than", "1d", "-y").code == 0
    assert os.listdir(scene.layout.trash) == []


def test_what_a_colleague_keeps_private_is_named_and_left(scene: Scene) -> None:
    """One directory that may not be entered would keep everything else from being cleaned."""
    other = GOING._replace(generation=GENERATION._replace(random="f" * 16))

    def spoil() -> None:
        os.makedirs(f"{scene.layout.trash}/{GOING}/private/deep")
        os.chmod(f"{scene.layout.trash}/{GOING}/private", 0o700)
        os.makedirs(f"{scene.layout.trash}/{other}/open")

    scene.mallory(spoil)
    done = scene.victim("clean", "--older-than", "1d", "-y")
    assert f"{GOING}/private" in done.err
    assert os.listdir(scene.layout.trash) == [str(GOING)]


def test_a_hard_link_to_a_file_of_the_victim_s(scene: Scene) -> None:
    """Where the kernel lets others link to one's files, emptying the trash must not open or change them."""
    scene.mallory(lambda: os.makedirs(f"{scene.layout.trash}/{GOING}/payload"))
    os.link(scene.own / "thesis", f"{scene.layout.trash}/{GOING}/payload/thesis")  # as if fs.protected_hardlinks were 0
    assert scene.victim("clean", "--older-than", "1d", "-y").code == 0
    assert os.listdir(scene.layout.trash) == []
    scene.check()


def test_a_hard_link_in_the_place_of_a_file_is_not_opened_to_the_group(scene: Scene) -> None:
    """The doctor would let the group read a file of the victim's own, in the belief that it is one of the cache's."""
    (payload,) = (scene.copy / "payload").iterdir()
    for place in (scene.copy / "item.json", payload, Path(scene.layout.config_file), Path(scene.layout.format_file)):
        before = place.read_bytes() if place.exists() else None
        place.unlink(missing_ok=True)
        os.link(scene.own / "thesis", place)  # as if fs.protected_hardlinks were 0
        scene.victim("doctor", "--fix")
        scene.check()
        place.unlink()
        if before is not None:
            place.write_bytes(before)
            place.chmod(0o640)
            shutil.chown(place, VICTIM, "users")


# -- races -------------------------------------------------------------------------------------------------------------


def flip(first: str, second: str, until: int) -> None:
    """Let `first` be a directory and a link by turns, as fast as can be, until a pipe is closed at its other end."""
    while not select.select([until], [], [], 0)[0]:
        with contextlib.suppress(OSError):
            os.rename(first, f"{first}.aside")
            os.rename(second, first)
        with contextlib.suppress(OSError):
            os.rename(first, second)
            os.rename(f"{first}.aside", first)


@contextlib.contextmanager
def flipping(scene: Scene, first: str, second: str) -> Iterator[None]:
    """A process of Mallory's that flips for as long as the context lasts, and no longer than its parent."""
    until, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        signal.alarm(int(PATIENCE))
        become(MALLORY)
        flip(first, second, until)
        os._exit(0)
    os.close(until)
    try:
        yield
    finally:
        os.close(end)
        os.waitpid(child, 0)


@pytest.mark.parametrize("what", ["trash", "going", "deep", "items", "control"])
def test_a_directory_that_is_a_link_by_turns(scene: Scene, what: str) -> None:
    """A colleague who is quick enough could have the victim's own files deleted in the course of a clean."""
    going = f"{scene.layout.trash}/{GOING}"
    place = {
        "trash": scene.layout.trash,
        "going": going,
        "deep": f"{going}/deep",
        "items": scene.layout.items,
        "control": scene.layout.control,
    }[what]
    target = {
        "trash": scene.own,
        "going": scene.own,
        "deep": scene.own / "deep",
        "items": scene.own,
        "control": scene.own,
    }
    (scene.own / str(GOING) / "deep" / "deeper").mkdir(parents=True)  # were names known, these would be found
    (scene.own / str(GOING) / "deep" / "deeper" / "thesis").write_text("precious")
    for path in (scene.own / str(GOING), *(scene.own / str(GOING)).rglob("*")):
        shutil.chown(path, VICTIM, VICTIM)
    scene.precious = snapshot(scene.own)
    second = f"{scene.root}/link"
    scene.mallory(lambda: (os.makedirs(f"{going}/deep/deeper/still"), os.symlink(target[what], second)))
    with flipping(scene, place, second):
        for _ in range(4):
            run_as(VICTIM, scene.root, "clean", "--all", "-y")
            run_as(VICTIM, scene.root, "doctor", "--fix")
    scene.check()


# -- permissions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", ["items", "holders", "trash", "items/??", "items/??/*", "items/??/*/history", "items/??/*/g*/use"]
)
def test_its_owner_repairs_what_lets_nobody_in(what: str) -> None:
    """The tests of the doctor are root's, whom every directory lets in; others would be told of what is below, too."""
    with open_directory() as place:
        root = place / "own"
        root.mkdir()
        shutil.chown(root, VICTIM, VICTIM)
        source = place / "ref.fa"
        source.write_text("ACGT\n")
        load_everything()
        for words in (["use", str(source)], ["unuse", str(source)]):
            assert run_as(VICTIM, root, words[0], "--holder", "her", *words[1:]).code == 0
        (path,) = (root / ".sc-dtool").glob(what)
        path.chmod(0)
        found = run_as(VICTIM, root, "-f", "json", "doctor")
        assert [row["path"] for row in map(json.loads, found.out.splitlines()) if row["type"] == "finding"] == [
            str(path)
        ]
        mended = run_as(VICTIM, root, "doctor", "--fix")
        assert mended.code == 0, mended
        assert run_as(VICTIM, root, "doctor") == (0, "0 findings\n", "")


def test_what_another_one_owns_is_not_repaired_and_says_so_once(scene: Scene) -> None:
    """A member would believe that she has opened to the group what another one has closed."""
    scene.copy.parent.joinpath("history").chmod(0o700)
    shutil.chown(scene.copy.parent / "history", MALLORY)
    done = scene.victim("doctor", "--fix")
    assert done.code == 20
    (line,) = (line for line in done.out.splitlines() if "history" in line)
    assert "others of the group cannot work in it; not repaired: Operation not permitted" in line
    assert done.err == ""
    by_owner = run_as(MALLORY, scene.root, "doctor", "--fix")
    assert by_owner.code == 0, by_owner
