"""A link in the place of a directory, put there before each single call of each command that deletes or writes.

In a cache that a group shares, any member can do that. What is at the other end of the link is the victim's own: not a
name of it may go, not a bit of it may change, whatever becomes of the command.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

import scratch
from effort import sampled
from faults import FakeClock, FakeProc, OnClock, store_of
from hostile.swaps import Swapping, snapshot
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, Layout, TrashName, WorkName, unique
from sccache_dtool.errors import CacheError
from sccache_dtool.evict.leftovers import OLD
from sccache_dtool.fetch import untar
from sccache_dtool.liveness import caller
from sccache_dtool.liveness.caller import PROGRAM
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import history
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.verify import Role, RoleKind, checks, verify

EVERYTHING = Rules(everything=True)
UUID = "12345678-1234-1234-1234-123456789abc"
SHA1 = "0123456789abcdef0123456789abcdef01234567"


class Scene:
    """A cache with something to do for every command, and a victim who works in it."""

    def __init__(self, place: Path, template: Path, fs: Callable[[FakeClock, Path, Path], Swapping]) -> None:
        self.place = place
        self.sources = template.parent / "sources"
        self.root = place / "cache"
        shutil.copytree(template, place, symlinks=True)
        self.clock = FakeClock(wall=time.time() + 3 * OLD)
        self.fs = fs(self.clock, self.root, place / "outside")
        self.proc = FakeProc(str(place / "proc-of-victim"))
        self.cache = Cache(self.root, fs=self.fs, clock=self.clock, proc=self.proc)

    def key(self, label: str) -> str:
        return Cache(self.root, fs=FileSystem()).find(label)


def make_template(place: Path) -> None:
    """One of everything that is found, evicted, tidied, folded, restored or mended; beside it, things to be cached."""
    place.mkdir()
    sources = place.parent / "sources"
    clock = FakeClock(wall=time.time())
    proc = FakeProc(str(place / "proc"))
    cache = Cache(place / "cache", fs=OnClock(clock), clock=clock, proc=proc)
    cache.init()
    layout = Layout(str(cache.root))
    fs = FileSystem()
    (sources / "ref" / "deep").mkdir(parents=True)
    (sources / "ref" / "deep" / "file").write_text("ACGT")
    (sources / "new.fa").write_text("new")
    with tarfile.open(sources / "new.tar", "w") as tar:
        for name in ("a/b/one", "a/two"):
            tar.addfile(member := tarfile.TarInfo(name), io.BytesIO(b"x" * member.size))
    for label in ("idle", "trashed", "closed", "held", "named"):
        cache.use(str(sources / "ref"), name=label).release()
    cache.remove(cache.find("trashed"), keep_for=100 * OLD)
    copy = cache.item(cache.find("closed")).copies[0]
    fs.rmdir(f"{layout.generation(copy.key, str(copy.generation))}/{GATE}")
    dead = proc.add(4242)
    cache.hold(caller.process_owner(PROGRAM, proc, dead), cache.item_request([str(sources / "ref")], "held"))
    cache.hold(cache.owner("somebody"), cache.item_request([str(sources / "ref")], "named"), UseOptions(ttl=3600.0))
    gone = Holder(store_of(fs, layout, clock=clock), caller.process_owner(PROGRAM, proc, dead), None)
    area = f"{layout.tmp}/{WorkName(gone.next_lease(), 'fetch')}"
    fs.make_dirs(f"{area}/payload/deep")
    fs.write_new(f"{area}/payload/deep/part", "half")
    proc.end(dead)
    going = TrashName(copy.generation._replace(random=unique()), 0, True)
    shutil.copytree(sources / "ref", f"{layout.trash}/{going}")
    for name in (f"{SHA1}.csv", f"{SHA1[::-1]}.csv.tmp"):
        (cache.root / UUID).mkdir(exist_ok=True)
        (cache.root / UUID / name).write_text("loose")
    (cache.root / UUID.replace("abc", "def")).mkdir()
    aside = cache.root / f".sc-dtool.{unique()}"
    (aside / "items").mkdir(parents=True)
    (aside / "FORMAT").write_text("begun")
    cache.close()


def clean(scene: Scene) -> None:
    scene.cache.clean(EVERYTHING, keep_for=0)


def remove(scene: Scene) -> None:
    scene.cache.remove(scene.key("idle"), keep_for=0)


def restore(scene: Scene) -> None:
    scene.cache.restore("trashed")


def doctor(scene: Scene) -> None:
    for finding in scene.cache.examine():
        if finding.repair:
            with contextlib.suppress(CacheError, OSError):
                finding.repair()


def reap(scene: Scene) -> None:
    scene.cache.reap()


def use_and_release(scene: Scene) -> None:
    scene.cache.use(str(scene.sources / "ref"), name="idle").release()


def unuse(scene: Scene) -> None:
    scene.cache.release([scene.cache.owner("somebody")], scene.key("named"))


def renew(scene: Scene) -> None:
    scene.cache.renew([scene.cache.owner("somebody")])


def fetch(scene: Scene) -> None:
    scene.cache.use(str(scene.sources / "new.fa")).release()


def fetch_tree(scene: Scene) -> None:
    scene.cache.use(str(scene.sources / "new.tar"), "tar").release()


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A directory on a file system in memory, where there is one: a thousand caches are made here."""
    place = Path(tempfile.mkdtemp(dir=scratch.memory()))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def template(memory: Path) -> Path:
    with mock.patch("os.fsync"):
        make_template(memory / "template")
    return memory / "template"


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting for the disk, histories that are folded when they are short, and no memory of other tests."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr(history, "FOLD_AT", 2)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def attempt(act: Callable[[Scene], None], scene: Scene) -> None:
    """Errors that are meant for people are in order; anything else is a fault of ours."""
    try:
        with contextlib.suppress(CacheError, OSError):
            act(scene)
    finally:
        scene.cache.close()


@pytest.mark.parametrize(
    "act", [clean, remove, restore, doctor, reap, use_and_release, unuse, renew, fetch, fetch_tree]
)
def test_a_link_in_the_place_of_a_directory_at_every_call(
    act: Callable[[Scene], None], template: Path, memory: Path
) -> None:
    """A colleague could have a victim's own files deleted, moved or opened to the group, by the victim's program."""
    undisturbed = Scene(memory / act.__name__, template, Swapping)
    before = snapshot(undisturbed.root)
    undisturbed.fs.calls.clear()
    act(undisturbed)
    undisturbed.cache.close()
    calls = len(undisturbed.fs.calls)
    assert snapshot(undisturbed.root) != before, "this proves nothing: it does nothing"
    done = 0
    for nth in sampled(undisturbed.fs.kinds()):
        for depth in range(12):
            scene = Scene(memory / f"{act.__name__}-{nth}-{depth}", template, Swapping)
            scene.fs.arm(nth, depth)
            attempt(act, scene)
            if scene.fs.swapped is None:
                break
            done += 1
            where = (
                f"before call {nth}: {undisturbed.fs.calls[nth]}, {scene.fs.swapped.relative_to(scene.root)} swapped"
            )
            assert scene.fs.changes() == set(), where
            shutil.rmtree(scene.place)
    assert done > 0
    print(f"{act.__name__}: {calls} calls, {done} swaps")


def test_a_link_in_the_place_of_the_room_of_a_verification(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever verifies a mount that a group writes to could have files of her own deleted, moved or replaced."""
    monkeypatch.setattr(checks, "NAMES", 2)
    monkeypatch.setattr(checks, "RUNS_ALONE", 1)
    monkeypatch.setattr(checks, "LISTED", 2)
    swaps: dict[str, int] = {}

    def verify_in(place: Path, nth: int, depth: int) -> Swapping:
        root = place / "mount"
        root.mkdir(parents=True)
        fs = Swapping(FakeClock(time.time()), root, place / "outside")
        fs.arm(nth, depth)
        with contextlib.suppress(CacheError, OSError):
            verify(fs, str(root), Role(RoleKind.LEAD, "", 0.0), lambda text: None)
        return fs

    undisturbed = verify_in(memory / "verify", -1, 0)
    assert undisturbed.swapped is None
    for nth in sampled(undisturbed.kinds()):
        for depth in range(4):
            place = memory / f"verify-{nth}-{depth}"
            fs = verify_in(place, nth, depth)
            if fs.swapped is None:
                break
            assert fs.changes() == set(), f"before call {nth}: {fs.calls[nth]}, {fs.swapped} swapped"
            swaps[fs.calls[nth].kind] = swaps.get(fs.calls[nth].kind, 0) + 1
            shutil.rmtree(place)
    assert {"unlink", "rename", "rmdir", "remove_tree", "mkdir", "create", "symlink"} <= swaps.keys()
    print(f"verify: {len(undisturbed.calls)} calls, {sum(swaps.values())} swaps")


# -- within one call of the layer --------------------------------------------------------------------------------------


class Hook:
    """Acts before the `nth` call that Python reports to audit hooks (PEP 578): opens, listings, removals, chmods.

    An audit hook cannot be taken away again, so there is one for all tests.
    """

    def __init__(self) -> None:
        self.count = 0
        self._nth: int | None = None
        self._act: Callable[[], None] = lambda: None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._nth is None or not (event == "open" or event.startswith("os.")):
            return
        self.count += 1
        if self.count - 1 == self._nth:
            self._nth = None
            self._act()

    @contextlib.contextmanager
    def armed(self, nth: int, act: Callable[[], None]) -> Iterator[None]:
        """Count from 0 within the context."""
        self.count, self._nth, self._act = 0, nth, act
        try:
            yield
        finally:
            self._nth = None


@pytest.fixture(scope="module")
def hook() -> Hook:
    return Hook()


def seal_and_measure(tree: Path, archive: Path) -> None:
    FileSystem().seal(str(tree), shared=True)
    FileSystem().usage(str(tree))


def remove_tree(tree: Path, archive: Path) -> None:
    FileSystem().remove_tree(str(tree))


def unpack(tree: Path, archive: Path) -> None:
    untar.unpack(FileSystem(), str(archive), str(tree / "unpacked"), "x.tar")


def make_victim(directory: Path) -> None:
    """What a victim has, and would like to keep: also under the names that are in the archive."""
    for name in ("a/b/one", "a/two", "a/b/c/three", "unpacked/a/two", "unpacked/a/b/one"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
        path.chmod(0o600)
    (directory / "a" / "b").chmod(0o500)


def is_private(directory: Path, tree: Path) -> bool:
    """Whether nobody else gets there, because of it or of a directory of `tree` on the way."""
    places = [place for place in (directory, *directory.parents) if place.is_relative_to(tree)]
    return any(not place.stat().st_mode & 0o077 for place in places)


@pytest.mark.parametrize("act", [seal_and_measure, remove_tree, unpack])
def test_a_link_in_the_place_of_a_directory_within_a_walk(
    act: Callable[[Path, Path], None], memory: Path, template: Path, hook: Hook
) -> None:
    """A colleague who is quick could have files of the victim's own deleted, overwritten, or opened to the group."""
    nth, depths, done = 0, ("", "a", "a/b", "a/b/c", "unpacked", "unpacked/a", "unpacked/a/b"), list[Path]()
    archive = template.parent / "sources" / "new.tar"
    while True:
        reached = False
        for depth in depths:
            place = memory / f"{act.__name__}-{nth}-{depth.replace('/', '-')}"
            tree, outside = place / "cache" / ".sc-dtool" / "tmp" / "area", place / "outside"
            make_victim(tree)
            make_victim(outside)
            if act is unpack:
                shutil.rmtree(tree / "unpacked")
            before = snapshot(outside)

            def swap(directory: Path = tree / depth, target: Path = outside / depth, tree: Path = tree) -> None:
                if directory.is_dir() and not is_private(directory.parent, tree):
                    directory.rename(f"{directory}.aside")
                    directory.symlink_to(target)
                    done.append(directory)

            with hook.armed(nth, swap):
                with contextlib.suppress(CacheError, OSError):
                    act(tree, archive)
                reached = reached or hook.count > nth
            assert snapshot(outside) == before, f"before call {nth}, {depth or 'the tree'} swapped"
            shutil.rmtree(place)
        if not reached:
            break
        nth += 1
    assert len(done) > len(depths)
    print(f"{act.__name__}: {nth} calls, {len(done)} swaps")
