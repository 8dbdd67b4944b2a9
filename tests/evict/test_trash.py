"""Letting go: evict, purge, restore, and what a paused process may not do any more."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Counting, Failing, FakeClock, Interposing, LostReplies, store_of
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, ITEM_FILE, PAYLOAD, Generation, Layout, TrashName, WorkName
from sccache_dtool.evict import trash
from sccache_dtool.evict.trash import Outcome, Purged
from sccache_dtool.liveness.caller import NAMED, Owner
from sccache_dtool.protocol import gate
from sccache_dtool.protocol.holders import Holder

FS = FileSystem()
KEY = f"{'0123456789abcdef' * 2}-ref.fa"
GENERATION = Generation("0123456789abcdef", 1_700_000_000, 5, 1)
LEASE = "s0123456789ab-0123456789ab.0"


@pytest.fixture
def directory(layout: Layout) -> Path:
    """A published copy that nobody uses."""
    path = Path(layout.generation(KEY, str(GENERATION)))
    (path / GATE).mkdir(parents=True)
    (path / PAYLOAD).mkdir()
    (path / PAYLOAD / "ref.fa").write_text("ACGT\n")
    (path / ITEM_FILE).write_text(records.encode_document({"key": KEY}))
    return path


@pytest.fixture
def holder(layout: Layout, clock: FakeClock) -> Holder:
    """Somebody who restores."""
    return Holder(store_of(FS, layout, clock=clock), Owner(NAMED, None, "keeper", ""), None)


def evict(layout: Layout, fs: FileSystem = FS, keep_until: int = 0) -> Outcome:
    return trash.evict(store_of(fs, layout), KEY, str(GENERATION), keep_until)


def copies(layout: Layout) -> list[Generation]:
    names = os.listdir(layout.item(KEY)) if os.path.isdir(layout.item(KEY)) else []
    return [generation for name in names if (generation := Generation.parse(name))]


# -- evict -------------------------------------------------------------------------------------------------------------


def test_an_eviction_is_two_calls_and_frees_the_name(layout: Layout, directory: Path) -> None:
    """Cleaning a cache of ten thousand items would take longer than it must, or leave copies that can be used."""
    fs = Counting()
    assert evict(layout, fs) is Outcome.EVICTED
    assert fs.kinds() == ["rmdir", "rename"]
    assert not directory.exists()
    assert Path(layout.trash, str(TrashName(GENERATION, 0, going=True)), PAYLOAD, "ref.fa").read_text() == "ACGT\n"


def test_what_is_leased_stays_as_it_is(layout: Layout, directory: Path) -> None:
    """Data would be deleted under its reader."""
    gate.enter(FS, str(directory / GATE), LEASE, "ours")
    fs = Counting()
    assert evict(layout, fs) is Outcome.IN_USE
    assert fs.kinds() == ["rmdir"]
    assert (directory / PAYLOAD / "ref.fa").read_text() == "ACGT\n"


def test_a_lease_taken_at_the_last_moment_wins(layout: Layout, directory: Path) -> None:
    """Who takes a lease between an evictor's look and its act would lose the data."""
    fs = Interposing()
    fs.before("rmdir", lambda: gate.enter(FS, str(directory / GATE), LEASE, "ours"))
    assert evict(layout, fs) is Outcome.IN_USE
    assert directory.exists()


def test_no_lease_is_made_once_the_gate_is_closed(layout: Layout, directory: Path) -> None:
    """Who takes a lease between the closing and the move would be given what is on its way to the trash."""
    entered: list[bool] = []
    fs = Interposing()
    fs.before("rename", lambda: entered.append(gate.enter(FS, str(directory / GATE), LEASE, "ours")))
    assert evict(layout, fs) is Outcome.EVICTED
    assert entered == [False]


def test_evicting_twice_is_no_error(layout: Layout, directory: Path) -> None:
    """Two cleaners at once would fail, or count what they freed twice."""
    assert [evict(layout), evict(layout)] == [Outcome.EVICTED, Outcome.ALREADY_GONE]


@pytest.mark.parametrize("kind", ["rmdir", "rename"])
def test_of_two_who_evict_at_once_one_does(layout: Layout, directory: Path, kind: str) -> None:
    """Two cleaners at once would fail, or count what they freed twice."""
    fs = Interposing()
    other: list[Outcome] = []
    fs.before(kind, lambda: other.append(evict(layout)))
    assert evict(layout, fs) is Outcome.ALREADY_GONE
    assert other == [Outcome.EVICTED]


def test_an_interrupted_eviction_is_finished_by_the_next(layout: Layout, directory: Path) -> None:
    """A cleaner killed between its two calls would leave a copy that nobody can use or remove."""
    assert gate.close(FS, str(directory / GATE))
    assert evict(layout) is Outcome.EVICTED
    assert not directory.exists()


@pytest.mark.parametrize("kind", ["rmdir", "rename"])
def test_lost_replies_to_an_eviction_are_no_errors(layout: Layout, directory: Path, kind: str) -> None:
    """A restart of the server would end a cleaning in the middle."""
    fs = LostReplies()
    fs.lose(kind)
    assert evict(layout, fs) in (Outcome.EVICTED, Outcome.ALREADY_GONE)
    assert fs.lost
    assert not directory.exists()
    assert len(os.listdir(layout.trash)) == 1


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EACCES, errno.ENOTDIR, errno.EIO, errno.EPERM])
def test_a_gate_that_does_not_answer_keeps_the_copy(layout: Layout, directory: Path, error: int) -> None:
    """A fault of the server would be taken for "nobody is in there", and data in use be deleted."""
    fs = Failing()
    fs.fail("rmdir", error)
    with pytest.raises(OSError, match=os.strerror(error)):
        evict(layout, fs)
    assert fs.kinds() == ["rmdir"]
    assert (directory / PAYLOAD / "ref.fa").exists()


@pytest.mark.parametrize("name", ["", "..", "history", f"../{KEY}", "g1", f"{GENERATION}\n", "../../../../mine"])
def test_only_copies_are_evicted(layout: Layout, directory: Path, tmp_path: Path, name: str) -> None:
    """A name made by hand would lead an eviction out of the cache."""
    (tmp_path / "mine" / GATE).mkdir(parents=True)
    fs = Counting()
    with pytest.raises(ValueError, match="not a generation"):
        trash.evict(store_of(fs, layout), KEY, name)
    assert fs.calls == []


# -- purge -------------------------------------------------------------------------------------------------------------


def purge(layout: Layout, warnings: list[str], now: float = 1_700_000_000.0, fs: FileSystem = FS) -> int:
    return trash.purge(store_of(fs, layout), now).copies


def test_what_nobody_wants_back_is_deleted(layout: Layout, directory: Path, warnings: list[str]) -> None:
    """A cleaning would free no space."""
    evict(layout)
    assert purge(layout, warnings) == 1
    assert os.listdir(layout.trash) == []


@pytest.mark.parametrize(("now", "left"), [(1_700_000_999.0, 1), (1_700_001_000.0, 0), (1_700_001_001.0, 0)])
def test_what_may_be_wanted_back_is_kept_until_then(
    layout: Layout, directory: Path, warnings: list[str], now: float, left: int
) -> None:
    """`restore` would find nothing, or the trash never be emptied."""
    evict(layout, keep_until=1_700_001_000)
    purge(layout, warnings, now)
    assert len(os.listdir(layout.trash)) == left


def test_a_copy_is_marked_before_anything_in_it_is_deleted(
    layout: Layout, directory: Path, warnings: list[str]
) -> None:
    """`restore` could bring back half of what a purge has begun to delete."""
    evict(layout, keep_until=1_600_000_000)
    fs = Counting()
    purge(layout, warnings, fs=fs)
    deeds = [call for call in fs.calls if call.kind in ("rename", "remove_tree")]
    assert [call.kind for call in deeds] == ["rename", "remove_tree"]
    assert deeds[1].path == deeds[0].arguments[1] == f"{layout.trash}/{TrashName(GENERATION, 1_600_000_000, True)}"


def test_a_deletion_that_was_interrupted_is_finished(layout: Layout, directory: Path, warnings: list[str]) -> None:
    """Half-deleted copies would fill the disk for ever."""
    evict(layout, keep_until=2_000_000_000)
    os.rename(
        f"{layout.trash}/{TrashName(GENERATION, 2_000_000_000)}",
        f"{layout.trash}/{TrashName(GENERATION, 2_000_000_000, True)}",
    )
    assert purge(layout, warnings) == 1
    assert os.listdir(layout.trash) == []


def test_one_that_cannot_be_deleted_does_not_keep_the_others(
    layout: Layout, directory: Path, warnings: list[str]
) -> None:
    """One `.nfs` file that somebody holds open would stop every later cleaning."""
    evict(layout)
    other = TrashName(GENERATION._replace(random="f" * 16), 0)
    os.mkdir(f"{layout.trash}/{other}")
    fs = Failing()
    fs.fail("remove_tree", errno.ENOTEMPTY, within=GENERATION.random)
    assert purge(layout, warnings, fs=fs) == 1
    assert os.listdir(layout.trash) == [str(TrashName(GENERATION, 0, True))]
    assert "left for the next clean" in warnings[0]


def test_strangers_in_the_trash_are_left(layout: Layout, warnings: list[str]) -> None:
    """Somebody's own file would be deleted because of where it is."""
    for name in ("README", "g1~0", f"{GENERATION}~0.bak"):
        Path(layout.trash, name).touch()
    assert purge(layout, warnings) == 0
    assert len(os.listdir(layout.trash)) == 3
    assert len(warnings) == 3


NOBODY = 65534


def as_nobody(act: Callable[[], object]) -> str:
    """What becomes of `act` when an ordinary user does it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            text = repr(act())
        except BaseException as error:
            text = type(error).__name__
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read) as file:
        return file.read()


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A temporary directory that an ordinary user can get at."""
    for parent in tmp_path.parents:
        if not os.stat(parent).st_mode & 0o001:
            os.chmod(parent, os.stat(parent).st_mode | 0o011)
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.mark.root
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_read_only_directories_are_deleted(open_path: Path, mode: int) -> None:
    """What an archive made read-only could never be removed from the cache."""
    tree = open_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    (tree / "file").touch()
    for path in (open_path, tree, tree / "a", tree / "a" / "b"):
        os.chown(path, NOBODY, NOBODY)
    for path in (tree / "a" / "b", tree / "a", tree):
        path.chmod(mode)
    assert as_nobody(lambda: FS.remove_tree(str(tree))) == "None"
    assert not tree.exists()


@pytest.mark.root
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_cannot_be_deleted_does_not_lock_others_out(open_path: Path) -> None:
    """Who tries to delete another user's copy would close the trash to the whole group, and nobody could evict."""
    trash_directory = open_path / "trash"
    (trash_directory / "theirs").mkdir(parents=True)
    (trash_directory / "theirs" / "file").touch()
    (trash_directory / "theirs").chmod(0o700)
    trash_directory.chmod(0o775)
    os.chown(trash_directory, NOBODY, NOBODY)
    assert as_nobody(lambda: FS.remove_tree(str(trash_directory / "theirs"))) == "PermissionError"
    assert os.stat(trash_directory).st_mode & 0o777 == 0o775
    assert (trash_directory / "theirs" / "file").exists()


def test_no_link_is_followed_when_something_is_deleted(tmp_path: Path) -> None:
    """A link in a copy would lead its deletion to somebody's data."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "mine")
    FS.remove_tree(str(tmp_path / "tree"))
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    FS.remove_tree(str(tmp_path / "link"))
    assert (tmp_path / "mine" / "file").exists()
    assert os.listdir(tmp_path) == ["mine"]


# -- restore -----------------------------------------------------------------------------------------------------------


NAME = TrashName(GENERATION, 1_700_001_000)


@pytest.fixture
def trashed(layout: Layout, directory: Path) -> TrashName:
    """A copy in the trash."""
    assert evict(layout, keep_until=NAME.keep_until) is Outcome.EVICTED
    return NAME


def restore(layout: Layout, clock: FakeClock, holder: Holder, fs: FileSystem = FS) -> bool:
    return trash.restore(store_of(fs, layout, clock=clock), holder, KEY, NAME)


def test_a_restored_copy_is_open_under_a_new_name(
    layout: Layout, trashed: TrashName, clock: FakeClock, holder: Holder
) -> None:
    """A paused evictor that wakes up would close a copy that is in use again."""
    clock.let_pass(500)
    assert restore(layout, clock, holder)
    (generation,) = copies(layout)
    assert generation.random != GENERATION.random
    assert generation.created == int(clock.wall())
    assert (generation.bytes, generation.entries) == (5, 1)
    path = Path(layout.generation(KEY, str(generation)))
    assert (path / PAYLOAD / "ref.fa").read_text() == "ACGT\n"
    assert gate.enter(FS, str(path / GATE), LEASE, "ours")
    assert evict(layout) is Outcome.ALREADY_GONE  # whoever still means the old one
    assert (os.listdir(layout.trash), os.listdir(layout.tmp)) == ([], [])


def test_a_copy_is_seen_only_with_its_gate(
    layout: Layout, trashed: TrashName, clock: FakeClock, holder: Holder
) -> None:
    """A cleaner that looks in the middle would take the restored copy for one whose eviction was interrupted."""
    fs = Counting()
    assert restore(layout, clock, holder, fs)
    published = next(
        index for index, call in enumerate(fs.calls) if call.kind == "rename" and "items" in call.arguments[1]
    )
    made = next(index for index, call in enumerate(fs.calls) if call.kind == "mkdir" and call.path.endswith(GATE))
    assert made < published


def test_a_purge_that_comes_first_wins(
    layout: Layout, trashed: TrashName, clock: FakeClock, holder: Holder, warnings: list[str]
) -> None:
    """Half of a copy would be brought back."""
    fs = Interposing()
    fs.before("rename", lambda: purge(layout, warnings, 2_000_000_000.0))
    assert restore(layout, clock, holder, fs) is False
    assert copies(layout) == []
    assert (os.listdir(layout.trash), os.listdir(layout.tmp)) == ([], [])


@pytest.mark.parametrize("emptied", [True, False])
def test_what_has_no_payload_any_more_is_not_restored(
    layout: Layout, trashed: TrashName, warnings: list[str], emptied: bool
) -> None:
    """A copy without its data would be published, and handed out."""
    assert [name for _, name in trash.restorable(store_of(FS, layout))] == [trashed]
    payload = Path(layout.trash, str(trashed), PAYLOAD)
    shutil.rmtree(payload)
    if emptied:
        payload.mkdir()
    assert list(trash.restorable(store_of(FS, layout))) == []
    assert "its payload is missing" in warnings[0]


def test_a_purge_that_has_only_marked_wins_too(
    layout: Layout, trashed: TrashName, clock: FakeClock, holder: Holder
) -> None:
    """Half of a copy would be brought back."""
    os.rename(f"{layout.trash}/{NAME}", f"{layout.trash}/{NAME._replace(going=True)}")
    assert restore(layout, clock, holder) is False
    assert [name for _, name in trash.restorable(store_of(FS, layout))] == []


@pytest.mark.parametrize("kind", ["rename", "remove_tree"])
def test_a_restore_that_comes_first_wins(
    layout: Layout, trashed: TrashName, clock: FakeClock, holder: Holder, warnings: list[str], kind: str
) -> None:
    """A purge would delete what has just been brought back."""
    fs = Interposing()
    done: list[bool] = []
    fs.before(kind, lambda: done.append(restore(layout, clock, holder)))
    purged = purge(layout, warnings, 2_000_000_000.0, fs)
    assert done == [purged == 0]
    assert len(copies(layout)) == int(done[0])
    for generation in copies(layout):
        assert Path(layout.generation(KEY, str(generation)), PAYLOAD, "ref.fa").read_text() == "ACGT\n"
    assert warnings == []


@pytest.mark.parametrize("nth", [1, 2])
def test_lost_replies_to_a_restore_are_no_losses(
    layout: Layout, trashed: TrashName, clock: FakeClock, holder: Holder, nth: int
) -> None:
    """A restart of the server would cost the copy that somebody wanted back."""
    fs = LostReplies()
    fs.lose("rename", nth=nth)
    assert restore(layout, clock, holder, fs) is True
    assert fs.lost
    (generation,) = copies(layout)
    assert Path(layout.generation(KEY, str(generation)), GATE).is_dir()


@pytest.mark.parametrize(
    "text",
    ["", "{}", "garbage", '{"key": 7}', '{"key": "../../x"}', f'{{"key": "../{KEY}"}}', f'{{"key": "{KEY}\\n"}}'],
)
def test_a_description_made_by_hand_restores_nothing(
    layout: Layout, trashed: TrashName, warnings: list[str], text: str
) -> None:
    """A restore could put files outside the cache."""
    Path(layout.trash, str(NAME), ITEM_FILE).write_text(text)
    assert list(trash.restorable(store_of(FS, layout))) == []
    assert len(warnings) == 1


# -- work areas --------------------------------------------------------------------------------------------------------


WORK = WorkName(LEASE, "fetch")


@pytest.fixture
def area(layout: Layout) -> Path:
    """What a fetch has made so far."""
    path = Path(layout.tmp, str(WORK))
    (path / PAYLOAD).mkdir(parents=True)
    (path / PAYLOAD / "ref.fa").write_text("AC")
    return path


def test_a_work_area_is_renamed_before_anything_in_it_is_deleted(layout: Layout, area: Path) -> None:
    """A fetcher that was only paused would wake up and publish what is left of its item."""
    fs = Counting()
    assert trash.discard_work(store_of(fs, layout), WORK) is True
    assert [call.kind for call in fs.calls if call.kind in ("rename", "remove_tree")] == ["rename", "remove_tree"]
    assert fs.calls[-1].path != str(area)
    assert os.listdir(layout.tmp) == []


def test_a_paused_fetcher_cannot_publish_what_is_being_deleted(layout: Layout, area: Path) -> None:
    """Half of an item would be given to its users as the whole."""
    fs = Interposing()
    published: list[str] = []

    def wake_up() -> None:
        try:
            os.rename(area, f"{layout.root}/published")
        except FileNotFoundError:
            published.append("no")

    fs.before("remove_tree", wake_up)
    assert trash.discard_work(store_of(fs, layout), WORK) is True
    assert published == ["no"]
    assert not os.path.exists(f"{layout.root}/published")


def test_a_fetcher_that_publishes_first_wins(layout: Layout, area: Path) -> None:
    """A cleaner would delete what has just been published."""
    fs = Interposing()
    fs.before("rename", lambda: os.rename(area, f"{layout.root}/published"))
    assert trash.discard_work(store_of(fs, layout), WORK) is False
    assert Path(layout.root, "published", PAYLOAD, "ref.fa").exists()


def test_discarding_twice_and_at_once_is_no_error(layout: Layout, area: Path) -> None:
    """Two cleaners at once would fail."""
    fs = Interposing()
    fs.before("rename", lambda: trash.discard_work(store_of(FS, layout), WORK))
    assert trash.discard_work(store_of(fs, layout), WORK) is False
    assert trash.discard_work(store_of(FS, layout), WORK) is False


def test_a_discard_that_was_interrupted_is_finished(layout: Layout, area: Path) -> None:
    """A cleaner that was killed would leave files that nobody ever deletes."""
    going = WORK._replace(purpose="going")
    os.rename(area, f"{layout.tmp}/{going}")
    assert trash.discard_work(store_of(FS, layout), going) is True
    assert os.listdir(layout.tmp) == []


def test_a_segment_that_was_not_published_is_discarded(layout: Layout) -> None:
    """What a killed fold leaves is a file, and would stay for ever."""
    work = WORK._replace(purpose="fold")
    Path(layout.tmp, str(work)).touch()
    assert trash.discard_work(store_of(FS, layout), work) is True
    assert os.listdir(layout.tmp) == []


@pytest.mark.parametrize("deep", [False, True])
def test_a_large_copy_is_removed_in_parts(layout: Layout, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    """A dataset of a million files would be removed by one process, for hours; or something of it be left."""
    monkeypatch.setattr(trash, "LARGE", 10)
    monkeypatch.setattr(trash, "NAMES_AT_ONCE", 7)
    name = TrashName(Generation("a" * 16, 1_700_000_000, 5, 99), 0, going=True)
    payload = Path(layout.trash, str(name), PAYLOAD, "big")
    for number in range(30):
        directory = payload / f"d{number % 3}" / f"e{number % 5}" if deep else payload
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").touch()
    outside = Path(layout.root, "outside")
    outside.mkdir()
    (outside / "kept").touch()
    (payload / "link").symlink_to(outside)
    warnings: list[str] = []
    assert trash.purge(store_of(FS, layout), 0.0) == Purged(1)
    assert (os.listdir(layout.trash), warnings) == ([], [])
    assert (outside / "kept").exists()


# -- what cannot be renamed: EXDEV, as for what lies in the lower layer of an overlay ----------------------------------


class Fixed(FileSystem):
    """A file system on which directories cannot be renamed; files can."""

    def rename(self, source: str, target: str, **more: object) -> None:
        if os.path.isdir(source) and not os.path.islink(source):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
        super().rename(source, target, **more)  # type: ignore[arg-type]


def test_a_copy_that_cannot_be_renamed_is_deleted_in_its_place(layout: Layout, directory: Path) -> None:
    """What came with a container image would be closed and then stay: no use of it, and no cleaning would succeed."""
    assert evict(layout, Fixed()) is Outcome.EVICTED
    assert copies(layout) == []
    assert os.listdir(layout.trash) == []


def test_a_copy_that_cannot_be_renamed_is_kept_in_parts(
    layout: Layout, directory: Path, holder: Holder, clock: FakeClock, warnings: list[str]
) -> None:
    """`rm --trash` would delete for good what the user wants to be able to restore."""
    inner = directory / PAYLOAD / "ref.fa"
    inner.unlink()
    (inner / "a" / "b").mkdir(parents=True)
    (inner / "a" / "b" / "f").write_text("ACGT\n")
    (inner / "a" / "link").symlink_to("b")
    (inner / "a" / "b").chmod(0o555)
    until = int(clock.wall()) + 1000
    assert evict(layout, Fixed(), until) is Outcome.EVICTED
    assert not directory.exists()
    ((key, name),) = trash.restorable(store_of(FS, layout))
    assert trash.restore(store_of(FS, layout, clock=clock), holder, key, name)
    (generation,) = copies(layout)
    restored = Path(layout.generation(KEY, str(generation)), PAYLOAD, "ref.fa", "a")
    assert (restored / "b" / "f").read_text() == "ACGT\n"
    assert os.readlink(restored / "link") == "b"


@pytest.mark.parametrize("nth", [1, 2])
def test_a_copy_that_was_moved_in_part_is_not_restored(
    layout: Layout, directory: Path, clock: FakeClock, warnings: list[str], nth: int
) -> None:
    """Half of an item would be published if the mover was killed."""

    class Killed(Fixed):
        left = nth

        def rename(self, source: str, target: str, **more: object) -> None:
            if os.path.isfile(source):
                self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            super().rename(source, target, **more)

        def move_tree(self, source: str, target: str) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            super().move_tree(source, target)

    with pytest.raises(KeyboardInterrupt):
        evict(layout, Killed(), int(clock.wall()) + 1000)
    assert list(trash.restorable(store_of(FS, layout))) == []
    assert evict(layout, Fixed()) is Outcome.EVICTED
    assert copies(layout) == []


def test_what_cannot_be_renamed_in_the_trash_is_deleted_there(
    layout: Layout, directory: Path, clock: FakeClock, warnings: list[str]
) -> None:
    """A trash that came with an image would be told of at each cleaning, and never be empty."""
    assert evict(layout, FS, 1) is Outcome.EVICTED
    assert trash.purge(store_of(Fixed(), layout), clock.wall()).copies == 1
    assert os.listdir(layout.trash) == warnings == []


def test_a_work_area_that_cannot_be_renamed_is_removed(layout: Layout) -> None:
    """The same, of a download that was killed while the image was made."""
    work = WorkName("s0123456789ab-0123456789ab.0", "fetch")
    os.makedirs(f"{layout.tmp}/{work}/{PAYLOAD}")
    assert trash.discard_work(store_of(Fixed(), layout), work)
    assert os.listdir(layout.tmp) == []


@pytest.mark.root
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_what_lies_in_the_lower_layer_of_an_overlay_is_evicted(
    layout: Layout, directory: Path, clock: FakeClock, tmp_path: Path, kept: bool, warnings: list[str]
) -> None:
    """The same on a real one, which knows what can be renamed."""
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={layout.root},upperdir={tmp_path}/upper,workdir={tmp_path}/work,redirect_dir=off"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(tmp_path / "merged")]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount an overlay here: {mounted.stderr.strip()}")
    try:
        there = Layout(str(tmp_path / "merged"))
        assert evict(there, FS, int(clock.wall()) + 1000 if kept else 0) is Outcome.EVICTED
        assert copies(there) == []
        assert len(list(trash.restorable(store_of(FS, there)))) == kept
        trash.purge(store_of(FS, there), clock.wall() + 2000)
        assert os.listdir(there.trash) == warnings == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "merged")], check=True)
    assert directory.exists()
