"""Loose files, which dtool left in the cache: found by strict rules, let go by age, and nothing else is touched."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from faults import FakeClock, Killed, store_of
from sccache_dtool.cache import Cache
from sccache_dtool.catalog.broker_names import LooseName, are_loose
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import CleaningName, TrashName
from sccache_dtool.disk.nofollow import DirectoryHandle
from sccache_dtool.evict import loose_removal
from sccache_dtool.evict.trash import Outcome
from sccache_dtool.liveness.caller import program_owner
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol.holders import Holder

UUID = "0123abcd-0123-4567-89ab-0123456789ab"
ID = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
DAY = 86_400
MONTH = 30 * DAY


@pytest.fixture
def root(tmp_path):
    """A cache of the real clock: the times of files are the file system's."""
    cache = Cache(tmp_path / "cache")
    cache.init()
    return cache.root


def put(root: Path, path: str, *, size: int = 5) -> Path:
    """A file as dtool leaves it."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    return file


class Ahead(FileSystem):
    """A file system on which what dtool left was put there some time ago: a change time cannot be set back."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def _older(self, status: os.stat_result) -> os.stat_result:
        times = {name: getattr(status, name) - self._seconds for name in ("st_atime", "st_mtime", "st_ctime")}
        exact = {name: getattr(status, name) for name in ("st_mtime_ns", "st_ctime_ns")}
        return os.stat_result((*status[:7], *map(int, times.values())), {**times, **exact})  # type: ignore[arg-type]

    def fstat(self, fd: int) -> os.stat_result:
        return self._older(super().fstat(fd))

    def lstat(self, path: str) -> os.stat_result:
        status = super().lstat(path)
        return status if "/.sc-dtool/" in path else self._older(status)

    def lstat_in(self, directory: int, name: str) -> os.stat_result:
        return self._older(super().lstat_in(directory, name))

    def statuses(
        self, path: str, names: Iterable[str], *, via: DirectoryHandle | None = None
    ) -> Iterator[tuple[str, os.stat_result]]:
        for name, status in super().statuses(path, names, via=via):
            yield name, self._older(status)


class Overtaken(FileSystem):
    """One on which a broker puts a fresh file in the place of `late`, in the last moment before it is moved."""

    late: Path

    def move_out(self, directory: int, name: str, target: str) -> None:
        fresh = self.late.parent.parent / "fresh"
        fresh.write_bytes(b"fresh")
        fresh.rename(self.late)
        super().move_out(directory, name, target)


def aged(root: Path, seconds: float) -> Cache:
    """The cache, with everything in it that dtool left put there `seconds` ago."""
    return Cache(root, fs=Ahead(seconds))


@pytest.mark.parametrize(
    ("name", "partial"),
    [
        (ID, False),
        (f"{ID}.txt", False),
        (f"{ID}.gz", False),
        (f"{ID}.", False),
        (f"{ID}.tmpx", False),
        (f"{ID}.fastq.gz", False),
        (f"{ID}.tmp", True),
        (f"{ID}.csv.tmp", True),
        (f"{ID}.tmp.1a2B3c4D", True),
        (f"{ID}.csv.tmp.1a2B3c4D", True),
        (f"{ID}.tmp.1a2B3c4", False),
    ],
)
def test_names_that_brokers_write(name, partial):
    """A partial download taken for a whole one would be counted, and the other way round it would be lost early."""
    assert LooseName.parse(name) == LooseName(ID, partial)
    assert are_loose([ID, name])


@pytest.mark.parametrize(
    "name",
    ["", "notes.txt", ID[:-1], f"{ID}0", f"{ID}x", ID.upper(), f".{ID}", f"x{ID}.txt", f"{ID[:-1]} ", f"{ID[:-1]}ü"],
)
def test_names_that_brokers_do_not_write(name):
    """Whatever else is in the root is somebody's data."""
    assert LooseName.parse(name) is None
    assert not are_loose([ID, name, ID])


def test_names_are_not_taken_for_what_they_are_together():
    """Two files of somebody's, with an even number of digits between them, would be deleted."""
    assert not are_loose([ID[:-1], f"{ID}0"])
    assert not are_loose([f"{ID[:-2]} {ID[-2:]}", ID])


def test_the_layouts_of_all_brokers_are_found(root):
    """What is not found is not counted, and fills the disk for good."""
    for path in (
        f"{UUID}/{ID}",
        f"{UUID}/{OTHER}.txt",
        f"bucket/{UUID}/{ID}.gz",
        f"s3/{UUID}/{ID}",
    ):
        put(root, path)
    found = Cache(root).loose()
    assert sorted(one.path for one in found) == sorted(
        [f"{UUID}/{ID}", f"{UUID}/{OTHER}.txt", f"bucket/{UUID}/{ID}.gz", f"s3/{UUID}/{ID}"]
    )
    assert {pile.dataset for pile in Cache(root).loose_directories()} == {UUID}


def test_copies_of_datasets_and_other_stores_are_left_alone(root):
    """The only copy of somebody's dataset, mirrored from its bucket, would be cleaned as if it were a cache."""
    for path in (
        f"mirror/{UUID}/manifest.json",
        f"mirror/{UUID}/data/{ID}",
        f"flat/{UUID}/manifest.json",
        f"flat/{UUID}/{ID}",
        f"store/sha1/ab/{ID}.dat",
        f"study-1/{ID}.csv",  # dtool-http writes so where no UUID is in the URL; nobody can tell it from the others
    ):
        put(root, path)
    assert list(Cache(root).loose()) == []


def test_directories_that_the_settings_name_are_dtools(root):
    """What dtool-http wrote by the path of a URL without a UUID would fill the disk for good."""
    (root / ".sc-dtool" / "config.toml").write_text('[dtool]\ndirectories = ["study-1", "mirror/*"]\n')
    ours = [put(root, f"study-1/{ID}.csv"), put(root, f"mirror/2024/{OTHER}")]
    kept = [put(root, f"study-2/{ID}.csv"), put(root, f"mirror/2023/{ID}"), put(root, "mirror/2023/notes.txt")]
    cache = aged(root, 400 * DAY)
    assert sorted(pile.dataset for pile in cache.loose_directories()) == ["mirror/2024", "study-1"]
    cache.clean(Rules(everything=True))
    assert not any(file.exists() for file in ours)
    assert all(file.exists() for file in kept)


def test_everything_else_in_the_root_is_left_alone(root, tmp_path):
    """People point the cache at their scratch directory: one wrong match is somebody's thesis."""
    kept = [
        put(root, "thesis.tex"),
        put(root, ID),  # in no directory of a broker's
        put(root, f"results/{ID}.csv"),
        put(root, "results/summary.txt"),  # so this is not a broker's directory
        put(root, f"results/deeper/{UUID}/{ID}"),
        put(root, f"{UUID}/notes.txt"),
        put(root, f"my-dataset/{UUID}/{ID}"),
        put(root, "my-dataset/.dtool/manifest.json"),
        put(root, f"hub/models--a--b/blobs/{ID}"),
        put(root, f".git/{UUID}/{ID}"),
        put(root, f"{UUID}/.hidden/{ID}"),
    ]
    outside = tmp_path / "outside"
    kept += [put(outside, f"{ID}.txt"), put(outside, f"{UUID}/{ID}")]
    (root / "linked").symlink_to(outside)
    (root / "another-uuid").mkdir()
    (root / "another-uuid" / OTHER).symlink_to(outside / f"{ID}.txt")
    (root / UUID / f"{ID}.lnk").symlink_to(outside / f"{ID}.txt")
    (root / UUID / OTHER).mkdir()
    cache = aged(root, 400 * DAY)
    assert list(cache.loose()) == []
    cache.clean(Rules(everything=True, older_than=0.0))
    assert all(file.is_file() for file in kept)
    assert (root / "another-uuid" / OTHER).is_symlink()
    assert (root / UUID / f"{ID}.lnk").is_symlink()
    assert (root / UUID / OTHER).is_dir()


@pytest.mark.parametrize(
    ("rules", "age", "goes"),
    [
        (Rules(older_than=MONTH), 31 * DAY, True),
        (Rules(older_than=MONTH), 29 * DAY, False),
        (Rules(older_than=0.0), 1, True),
        (Rules(older_than=0.0, grace=5 * DAY), 4 * DAY, False),
        (Rules(older_than=0.0, grace=5 * DAY), 6 * DAY, True),
        (Rules(everything=True), 2 * DAY, True),
        (Rules(everything=True), DAY / 2, False),
        (Rules(retain_size=0), 2 * DAY, True),
        (Rules(retain_size=0), DAY / 2, False),
        (Rules(retain_size=5), 2 * DAY, False),
        (Rules(fewer_uses_than=1), 2 * DAY, True),
        (Rules(fewer_uses_than=0), 2 * DAY, True),
        (Rules(older_than=MONTH, retain_size=0), 2 * DAY, False),
    ],
)
def test_age_decides(root, rules, age, goes):
    """Nobody holds leases on loose files, so a young one may be in use, whatever the rule is."""
    file = put(root, f"{UUID}/{ID}.txt")
    cache = aged(root, age)
    plan, _ = cache.plan(rules)
    assert [candidate.label for candidate in plan.remove] == ([f"{UUID}/{ID}.txt"] if goes else [])
    assert file.exists()
    done = cache.clean(rules)
    assert file.exists() != goes
    assert len(done.removed) == goes
    assert done.freed == (5 if goes else 0)


def test_the_newest_of_its_times_counts(root):
    """A file that was copied here with its old times, or is read every day, is no old file."""
    read, copied = put(root, f"{UUID}/{ID}"), put(root, f"{UUID}/{OTHER}")
    now = time.time()
    os.utime(read, (now + 40 * DAY, now))  # read since
    os.utime(copied, (now - 400 * DAY, now - 400 * DAY))  # its change time tells when it came
    cache = aged(root, 20 * DAY)
    plan, _ = cache.plan(Rules(older_than=MONTH))
    assert not plan.remove
    plan, _ = cache.plan(Rules(older_than=10 * DAY))
    assert [candidate.label for candidate in plan.remove] == [f"{UUID}/{OTHER}"]


@pytest.mark.parametrize("name", [f"{ID}.csv.tmp", f"{ID}.tmp.0a1B2c3D", f"{ID}.tmp"])
def test_broken_downloads_go_after_a_day_whatever_the_rules_are(root, name):
    """They are of use to nobody, and nobody will ever name them."""
    file = put(root, f"{UUID}/{name}")
    aged(root, DAY / 2).clean(Rules(older_than=0.0))
    assert file.exists()
    done = aged(root, 2 * DAY).clean(Rules(older_than=400 * DAY))
    assert not file.exists()
    assert [leftover.path for leftover in done.tidied] == [str(file)]


def test_a_download_under_way_is_kept_even_by_all(root):
    """To remove it would make another user's download fail."""
    file = put(root, f"{UUID}/{ID}.csv.tmp")
    plan, _ = Cache(root).plan(Rules(everything=True, older_than=0.0))
    assert [kept.reason for kept in plan.keep] == ["dtool may be downloading it"]
    Cache(root).clean(Rules(everything=True, older_than=0.0))
    assert file.exists()


def test_directories_are_removed_only_when_they_have_been_empty_for_a_day(root):
    """A broker makes its directory first and its file some requests later: without the directory it dies."""
    put(root, f"{UUID}/{ID}")
    (root / "empty").mkdir()
    (root / "runs" / UUID).mkdir(parents=True)  # a program may be about to write into it
    aged(root, 2 * DAY).clean(Rules(everything=True))
    assert (root / UUID).is_dir()
    aged(root, DAY / 2).clean(Rules(everything=True))
    assert (root / UUID).is_dir()
    aged(root, 2 * DAY).clean(Rules(everything=True))
    assert not (root / UUID).exists()
    assert (root / "empty").is_dir()
    assert (root / "runs" / UUID).is_dir()


def test_what_changes_between_the_plan_and_the_deed_stays(root):
    """A broker may put a fresh file in an old one's place at any moment."""
    file = put(root, f"{UUID}/{ID}")
    put(root, f"{UUID}/{OTHER}")
    cache = aged(root, 2 * DAY)
    found = [one._replace(newest=one.newest) for one in cache.loose()]
    os.utime(file)
    fs, layout = Ahead(2 * DAY), cache._layout
    holder = Holder(store_of(fs, layout, clock=cache._clock), program_owner(cache._proc), None)
    became = {}
    loose_removal.remove(
        store_of(fs, layout), holder, found, 0, time.time(), lambda one, what: became.update({one.path: what.outcome})
    )
    holder.retire()
    assert became == {f"{UUID}/{ID}": Outcome.IN_USE, f"{UUID}/{OTHER}": Outcome.EVICTED}
    assert file.exists()


def test_a_file_put_there_in_the_last_moment_is_put_back(root):
    """Between the last look and the rename there is always a moment."""
    file = put(root, f"{UUID}/{ID}")

    class Late(Overtaken, Ahead):
        late = file

    done = Cache(root, fs=Late(2 * DAY)).clean(Rules(everything=True))
    assert [candidate.label for candidate in done.taken] == [f"{UUID}/{ID}"]
    assert file.read_bytes() == b"fresh"


def test_a_directory_swapped_for_a_link_is_not_followed(root, tmp_path):
    """Whoever may write in the root must not be able to have us delete elsewhere."""
    put(root, f"{UUID}/{ID}")
    outside = put(tmp_path / "outside", ID)
    os.utime(outside, (0, 0))

    class Swapped(Ahead):
        def open_below(self, top: str, inner: str) -> int:
            if not (root / UUID).is_symlink():
                shutil.rmtree(root / UUID)
                (root / UUID).symlink_to(outside.parent)
            return super().open_below(top, inner)

    done = Cache(root, fs=Swapped(2 * DAY)).clean(Rules(everything=True))
    assert len(done.failed) == 1
    assert outside.exists()


def test_they_go_through_the_trash(root, warnings):
    """Who has one open on NFS reads on while the trash is kept; and what was no item is not restored as one."""
    put(root, f"{UUID}/{ID}")
    cache = aged(root, 2 * DAY)
    cache.clean(Rules(everything=True), keep_for=DAY)
    kept = [path.read_bytes() for path in (root / ".sc-dtool" / "trash").glob("*/payload/*")]
    assert kept == [b"xxxxx"]
    again = Cache(root)
    assert list(again.restorable()) == []
    again.clean(Rules(older_than=MONTH))
    assert warnings == []


class Dying(Ahead):
    """Ends a cleaner, which has no time to say good-bye, as soon as it has moved so many files."""

    def __init__(self, moves: int) -> None:
        super().__init__(2 * DAY)
        self._moves = moves

    def move_out(self, directory: int, name: str, target: str) -> None:
        super().move_out(directory, name, target)
        self._moves -= 1
        if not self._moves:
            raise Killed

    def __getattribute__(self, name: str) -> object:
        moves = object.__getattribute__(self, "__dict__").get("_moves", 1)
        if name in ("rename", "remove_tree", "lstat", "write_new") and moves < 1:
            raise Killed
        return super().__getattribute__(name)


def in_trash(root: Path) -> int:
    return len(list((root / ".sc-dtool" / "trash").glob("*/payload/*")))


def test_a_clean_that_was_killed_leaves_nothing_for_good(root):
    """Files moved out of sight by a clean that was killed must not take up space for ever."""
    for name in (ID, OTHER):
        put(root, f"{UUID}/{name}")
    with pytest.raises(Killed):
        Cache(root, fs=Dying(1)).clean(Rules(everything=True))
    assert len(list(root.glob(f"{UUID}/*"))) == 1
    aged(root, 2 * DAY).clean(Rules(older_than=MONTH))
    assert os.listdir(root / ".sc-dtool" / "tmp") == []
    assert os.listdir(root / ".sc-dtool" / "trash") == []


def test_what_is_to_be_kept_in_the_trash_is_kept_although_the_clean_was_killed(root, warnings):
    """`--trash 7d` would be no promise: the next clean would delete what the killed one has moved."""
    for name in (ID, OTHER):
        put(root, f"{UUID}/{name}")
    with pytest.raises(Killed):
        Cache(root, fs=Dying(1)).clean(Rules(everything=True), keep_for=7 * DAY)
    later = Cache(root, fs=Ahead(2 * DAY))
    later.clean(Rules(older_than=MONTH))
    assert in_trash(root) == 1
    assert list(later.restorable()) == []
    assert warnings == []


@pytest.mark.parametrize("keep_for", [0.0, 7.0 * DAY])
@pytest.mark.parametrize("moved", [False, True])
def test_loose_files_that_went_are_on_record_although_the_cleaning_was_broken_off(root, keep_for, moved):
    """After a Ctrl-C nobody could say who removed thousands of files, nor how large they were."""
    names = [f"{number:040x}" for number in range(10)]
    for name in names:
        put(root, f"{UUID}/{name}")

    class Interrupted(Ahead):
        def move_out(self, directory: int, name: str, target: str) -> None:
            if moved:
                super().move_out(directory, name, target)
            if name == names[5]:
                raise KeyboardInterrupt
            if not moved:
                super().move_out(directory, name, target)

    with pytest.raises(KeyboardInterrupt):
        Cache(root, fs=Interrupted(2 * DAY)).clean(Rules(everything=True), keep_for=keep_for)
    gone = 10 - len(list(root.glob(f"{UUID}/*")))
    assert gone == in_trash(root) == 5 + moved
    (record,) = os.listdir(root / ".sc-dtool" / "cleanings")
    assert CleaningName.parse(record)[1:3] == (gone, 5 * gone)
    (entry,) = os.listdir(root / ".sc-dtool" / "trash")
    assert TrashName.parse(entry).generation[2:4] == (5 * gone, gone + 1)
    assert os.listdir(root / ".sc-dtool" / "tmp") == []


class NoBlocks(Ahead):
    """A disk on which there is room for records, which are links, and for nothing else."""

    def __init__(self) -> None:
        super().__init__(2 * DAY)

    def mkdir(self, path: str, mode: int = 0o777, *, shared: bool = False) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


class NoInodes(NoBlocks):
    """A disk on which nothing can be made any more."""

    def put_record(self, text: str, path: str, **more: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


@pytest.mark.parametrize("full", [NoBlocks, NoInodes])
def test_on_a_full_disk_loose_files_are_deleted_at_once(root, full):
    """That is when it is needed most; and the cleaner would say that all is done, and leave them there."""
    for name in (ID, OTHER):
        put(root, f"{UUID}/{name}")
    done = Cache(root, fs=full()).clean(Rules(everything=True))
    assert (done.freed, len(done.removed), done.failed) == (10, 2, ())
    assert list(root.glob(f"{UUID}/*")) == []
    assert os.listdir(root / ".sc-dtool" / "trash") == []


def test_on_a_disk_that_is_too_full_for_the_trash_what_is_to_be_kept_there_stays(root):
    """What somebody may want back would be deleted; or the cleaner say that all is done."""
    file = put(root, f"{UUID}/{ID}")
    done = Cache(root, fs=NoInodes()).clean(Rules(everything=True), keep_for=7 * DAY)
    assert ["not enough space for it in the trash" in one.reason for one in done.failed] == [True]
    assert not done.complete
    assert file.exists()


def test_a_fresh_file_is_put_back_on_a_full_disk_too(root):
    """A broker's new file would be deleted in the old one's stead, as it comes in the last moment."""
    file = put(root, f"{UUID}/{ID}")

    class Late(Overtaken, NoInodes):
        late = file

    done = Cache(root, fs=Late()).clean(Rules(everything=True))
    assert [candidate.label for candidate in done.taken] == [f"{UUID}/{ID}"]
    assert file.read_bytes() == b"fresh"


def test_loose_files_for_which_there_is_no_time_are_left(root):
    """A cron job would run into the next one: on a file server a hundred thousand files take minutes."""
    for name in (ID, OTHER):
        put(root, f"{UUID}/{name}")

    class Slow(Ahead):
        def move_out(self, directory: int, name: str, target: str) -> None:
            super().move_out(directory, name, target)
            clock.let_pass(60)

    clock = FakeClock(wall=time.time())
    done = Cache(root, fs=Slow(2 * DAY), clock=clock).clean(Rules(everything=True), most_seconds=30.0)
    assert (len(done.removed), len(done.left), done.complete) == (1, 1, False)


@pytest.mark.root
def test_what_may_not_be_removed_is_told_of(open_tmp_path):
    """Loose files belong to whoever fetched them: with a tight umask nobody else can remove them."""
    root = open_tmp_path / "cache"
    Cache(root).init()
    put(root, f"{UUID}/{ID}")
    for path in (root / ".sc-dtool").rglob("*"):
        path.chmod(0o777)
    (root / ".sc-dtool").chmod(0o777)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setuid(65534)
            done = aged(root, 2 * DAY).clean(Rules(everything=True))
            code = 0 if len(done.failed) == 1 and "Permission denied" in done.failed[0].reason else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (root / UUID / ID).exists()
