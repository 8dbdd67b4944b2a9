"""What is kept for `restore` is not lost, whatever call is refused and whenever a process is killed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import REPEATED, Call, Counting, Dying, Failing, FakeProc, Interposing, Killed, store_of
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, ITEM_FILE, KeptName, Layout, Purpose, TrashName, WorkName
from sccache_dtool.errors import CacheError, Exit, InUse, NoSpace
from sccache_dtool.evict import trash
from sccache_dtool.policy.rules import Rules

FS = FileSystem()
KEEP = 100_000.0
OLD_ONLY = Rules(older_than=KEEP)
CHANGES = frozenset(REPEATED) | {"write", "link"}


@pytest.fixture
def host(tmp_path: Path) -> Callable[[], FakeProc]:
    """Makes a view of this host in which all processes before have ended."""
    made: list[FakeProc] = []

    def make() -> FakeProc:
        proc = FakeProc(str(tmp_path / f"proc{len(made)}"))
        proc.add(os.getpid(), "python", start=77 + len(made))
        made.append(proc)
        return proc

    return make


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "ref.fa"
    path.write_text("ACGT\n")
    return str(path)


@pytest.fixture
def fill(tmp_path: Path, source: str, host: Callable[[], FakeProc]) -> Callable[[], tuple[str, TrashName]]:
    """Makes a cache whose only copy is in the trash; its place, and the name there."""
    numbers = iter(range(10_000))
    template = str(tmp_path / "template")
    cache = Cache(template, fs=FileSystem(), proc=host())
    cache.init()
    lease = cache.use(source)
    lease.release()
    cache.remove(lease.key, keep_for=KEEP)
    cache.close()
    (name,) = trash.listing(store_of(FS, Layout(template)))

    def fill() -> tuple[str, TrashName]:
        place = str(tmp_path / f"cache{next(numbers)}")
        shutil.copytree(template, place, symlinks=True)
        return place, name

    return fill


def where_it_is(place: str, name: TrashName) -> str:
    """Where the whole copy is after one cleaning."""
    layout = Layout(place)
    (key,) = (entry for shard in Path(layout.items).iterdir() for entry in os.listdir(shard))
    found = []
    for generation in Path(layout.item(key)).glob("g*"):
        assert (generation / "payload" / "ref.fa").read_text() == "ACGT\n"
        assert (generation / GATE).is_dir()
        found.append("published")
    for _, kept in trash.restorable(store_of(FS, layout)):
        assert kept == name
        assert Path(layout.trash, str(kept), "payload", "ref.fa").read_text() == "ACGT\n"
        found.append("in the trash")
    assert len(found) == 1, found
    assert os.listdir(layout.tmp) == []
    return found[0]


def clean(place: str, proc: FakeProc) -> None:
    cache = Cache(place, fs=FileSystem(), proc=proc)
    assert cache.clean(OLD_ONLY).complete
    cache.close()


def failure_of(cache: Cache) -> CacheError | None:
    """What a restore fails with; None if it does not."""
    try:
        cache.restore("ref.fa")
    except CacheError as error:
        return error
    return None


def restore_and_be_killed(place: str, after: int, proc: FakeProc) -> None:
    """A process that restores, and is killed after so many changes, or at its end."""
    with contextlib.suppress(Killed):
        Cache(place, fs=Dying(after), proc=proc).restore("ref.fa")


def changing_calls(place: str, proc: FakeProc) -> list[Call]:
    fs = Counting()
    cache = Cache(place, fs=fs, proc=proc)
    cache.restore("ref.fa")
    cache.close()
    return [call for call in fs.calls if call.kind in CHANGES]


@pytest.mark.parametrize("times", [1, 1_000_000], ids=["once", "from then on"])
@pytest.mark.parametrize("error", [errno.EDQUOT, errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_refused_call_does_not_cost_the_copy(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc], error: int, times: int
) -> None:
    """A quota that is used up, or a fault of the network, would delete what somebody wanted back."""
    place, _ = fill()
    calls = changing_calls(place, host())
    assert len(calls) > 8
    seen = set[str]()
    for nth in range(len(calls)):
        place, name = fill()
        before = calls[: nth + 1]
        fs = Failing()
        for kind in CHANGES if times > 1 else {calls[nth].kind}:
            fs.fail(kind, error, nth=1 + sum(call.kind == kind for call in before[:-1]), times=times)
        failure = failure_of(Cache(place, fs=fs, proc=host()))
        if failure is not None:
            code = Exit.NO_SPACE if error in (errno.EDQUOT, errno.ENOSPC) else Exit.ERROR
            assert failure.exit_code == code
            assert "the copy is " in failure.details[0]
            assert failure.hint
        fs.repair()
        clean(place, host())
        seen.add(where_it_is(place, name))
    assert "in the trash" in seen


def test_a_restore_that_is_killed_anywhere_does_not_cost_the_copy(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc]
) -> None:
    """A restore that runs into the end of its job would delete what somebody wanted back."""
    place, _ = fill()
    seen = []
    for after in range(len(changing_calls(place, host())) + 1):
        place, name = fill()
        restore_and_be_killed(place, after, host())
        clean(place, host())
        seen.append(where_it_is(place, name))
    assert seen[0] == "in the trash"
    assert seen[-1] == "published"


def test_a_return_that_is_killed_anywhere_is_finished(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc]
) -> None:
    """The cleaner that returns the copy may be killed as well."""
    place, name = fill()
    calls = changing_calls(place, host())
    (claim,) = (number for number, call in enumerate(calls) if str(call).endswith("/trashed"))
    (publish,) = (number for number, call in enumerate(calls) if call.kind == "rename" and "/items/" in str(call))
    for after in range(claim, publish + 1):
        for again in itertools.count():
            place, name = fill()
            restore_and_be_killed(place, after, host())
            try:
                Cache(place, fs=Dying(again), proc=host()).clean(OLD_ONLY)
            except Killed:
                clean(place, host())
                where_it_is(place, name)
            else:
                assert again > 4
                break


def test_the_next_restore_finds_what_a_killed_one_had(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc]
) -> None:
    """Whoever tries again would be told that the copy does not exist."""
    place, _ = fill()
    (claim,) = (n for n, call in enumerate(changing_calls(place, host())) if str(call).endswith("/trashed"))
    place, name = fill()
    restore_and_be_killed(place, claim + 1, host())
    assert os.listdir(Layout(place).trash) == []
    Cache(place, fs=FileSystem(), proc=host()).restore("ref.fa")
    assert where_it_is(place, name) == "published"


def test_a_restore_that_goes_on_is_left_alone(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc]
) -> None:
    """A cleaner would take the copy from under a restore."""
    place, name = fill()
    proc = host()
    fs = Interposing()
    fs.before("rename", lambda: clean(place, proc), within="/items/")
    Cache(place, fs=fs, proc=proc).restore("ref.fa")
    assert where_it_is(place, name) == "published"


def test_a_restore_that_wakes_up_after_it_was_taken_for_dead_publishes_nothing(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc]
) -> None:
    """A suspended restore would publish what is in the trash, or what a purge deletes."""
    place, _ = fill()
    for nth in range(1, 1 + len([call for call in changing_calls(place, host()) if call.kind == "rename"])):
        place, name = fill()
        fs = Interposing()
        proc = host()
        later = host()
        fs.before("rename", lambda place=place, later=later: clean(place, later), nth=nth)
        cache = Cache(place, fs=fs, proc=proc)
        with contextlib.suppress(CacheError):
            cache.restore("ref.fa")
        clean(place, host())
        where_it_is(place, name)


def test_what_is_no_longer_to_be_kept_is_deleted_once_it_is_back(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc]
) -> None:
    """What interrupted restores leave would fill the disk."""
    place, name = fill()
    layout = Layout(place)
    work = WorkName("p0123456789ab-0123456789ab.0", Purpose.RETURN, str(name._replace(keep_until=1)))
    os.rename(f"{layout.trash}/{name}", f"{layout.tmp}/{work}")
    clean(place, host())
    assert (os.listdir(layout.tmp), os.listdir(layout.trash)) == ([], [])


@pytest.mark.parametrize("of", ["", "~", "~g1", "~..", "~../../x"])
def test_a_work_area_that_does_not_say_what_it_has_is_left_alone(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc], warnings: list[str], of: str
) -> None:
    """What somebody has made by hand would be deleted, or moved out of the cache."""
    place, _ = fill()
    layout = Layout(place)
    area = Path(layout.tmp, f"p0123456789ab-0123456789ab.0~return{of.replace('/', '')}")
    (area / "payload").mkdir(parents=True)
    Cache(place, fs=FileSystem(), proc=host()).clean(OLD_ONLY)
    assert area.is_dir()
    assert "not a work area" in " ".join(warnings)


# -- evictions for restore ---------------------------------------------------------------------------------------------


@pytest.fixture
def used(tmp_path: Path, source: str, host: Callable[[], FakeProc]) -> Callable[[], tuple[str, str, str]]:
    """Makes a cache with a copy that nobody uses: its place, its key and its name."""
    numbers = iter(range(1000))

    def make() -> tuple[str, str, str]:
        place = str(tmp_path / f"used{next(numbers)}")
        cache = Cache(place, fs=FileSystem(), proc=host())
        cache.init()
        lease = cache.use(source)
        lease.release()
        cache.close()
        return place, lease.key, lease.place.generation

    return make


def finish_by_cleaning(cache: Cache, key: str) -> None:
    cache.clean(OLD_ONLY)


def finish_by_evicting(cache: Cache, key: str) -> None:
    cache.evict_if_idle(key)


def finish_by_removing(cache: Cache, key: str) -> None:
    cache.remove(key, keep_for=0)


@pytest.mark.parametrize("finish", [finish_by_cleaning, finish_by_evicting, finish_by_removing])
def test_an_eviction_for_restore_that_is_killed_keeps_the_copy(
    used: Callable[[], tuple[str, str, str]], host: Callable[[], FakeProc], finish: Callable[[Cache, str], object]
) -> None:
    """`rm --trash 7d` that is killed between closing the copy and moving it would become `rm`."""
    place, key, generation = used()
    fs = Interposing()

    def kill() -> None:
        raise Killed

    fs.before("rename", kill, within="/trash/")
    with pytest.raises(Killed):
        trash.evict(store_of(fs, Layout(place)), key, generation, keep_until=2_000_000_000)
    finish(Cache(place, fs=FileSystem(), proc=host()), key)
    (name,) = trash.listing(store_of(FS, Layout(place)))
    assert (name.keep_until, name.going) == (2_000_000_000, False)
    assert [one for one, _ in trash.restorable(store_of(FS, Layout(place)))] == [key]
    Cache(place, fs=FileSystem(), proc=host()).restore("ref.fa")


def test_a_refused_eviction_leaves_no_note(
    used: Callable[[], tuple[str, str, str]], host: Callable[[], FakeProc]
) -> None:
    """The doctor would report a name in the copy that nobody made by hand."""
    place, key, _ = used()
    cache = Cache(place, fs=FileSystem(), proc=host())
    lease = cache.use(str(Path(place).parent / "ref.fa"))
    with pytest.raises(InUse):
        cache.remove(key, keep_for=KEEP)
    assert sorted(os.listdir(Path(lease.place.gate).parent)) == sorted([GATE, "payload", ITEM_FILE])
    lease.release()


def test_the_note_of_a_killed_eviction_is_not_a_finding(
    used: Callable[[], tuple[str, str, str]], host: Callable[[], FakeProc]
) -> None:
    """A cache in order would be reported as damaged."""
    place, key, generation = used()
    FS.put_record("-", f"{Layout(place).generation(key, generation)}/{KeptName(2_000_000_000)}")
    assert Cache(place, fs=FileSystem(), proc=host()).examine() == []


def test_on_a_full_disk_what_is_evicted_for_restore_goes_all_the_same(
    used: Callable[[], tuple[str, str, str]], host: Callable[[], FakeProc]
) -> None:
    """A cleaning could not free anything when it is needed most."""
    place, key, generation = used()
    fs = Failing()
    fs.fail("symlink", errno.ENOSPC)
    assert trash.evict(store_of(fs, Layout(place)), key, generation, 2_000_000_000) is trash.Outcome.EVICTED


def test_a_full_disk_is_reported_as_such(
    fill: Callable[[], tuple[str, TrashName]], host: Callable[[], FakeProc]
) -> None:
    """Exit code 1 and a bare path say neither what to do nor where the copy is."""
    place, _ = fill()
    fs = Failing()
    fs.fail("rename", errno.EDQUOT, within="/items/")
    with pytest.raises(NoSpace, match=r"no space left to restore ref\.fa") as caught:
        Cache(place, fs=fs, proc=host()).restore("ref.fa")
    assert "still in the trash, until" in caught.value.details[0]
    assert caught.value.exit_code == 13
