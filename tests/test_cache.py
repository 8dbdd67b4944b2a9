"""The Python face of a cache: what programs rely on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import httpserver
from faults import Counting, Failing, FakeClock, FakeProc, Interposing, LostReplies, store_of
from sccache_dtool import log
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.disk import names, root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, EndedName, HolderName, Layout, LeaseName
from sccache_dtool.errors import (
    CacheError,
    FetchFailed,
    InUse,
    LeaseLost,
    NoCache,
    NoSpace,
    TimedOut,
    UsageError,
)
from sccache_dtool.find import Named
from sccache_dtool.liveness import caller
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import gate, holders, program
from sccache_dtool.protocol.election import make_election
from sccache_dtool.protocol.leases import Lease
from signals import interrupt

FS = FileSystem()
Making = Callable[..., Cache]
EVERYTHING = Rules(everything=True)


def in_gates(layout: Layout) -> list[str]:
    """All leases there are."""
    return sorted(path.name for path in Path(layout.items).glob(f"*/*/g*/{GATE}/*"))


def finished(layout: Layout) -> list[EndedName]:
    found = (EndedName.parse(path.name) for path in Path(layout.items).glob("*/*/history/*"))
    return [name for name in found if name]


def present(layout: Layout) -> list[HolderName]:
    return [name for text in os.listdir(layout.holders) if (name := HolderName.parse(text))]


def tree(directory: str) -> dict[str, bytes | str | None]:
    """Everything below a directory, with what is in it."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(Path(directory).rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        else:
            found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


# -- using -------------------------------------------------------------------------------------------------------------


def test_a_use_gives_a_path_to_the_data(cache: Cache, source: str, layout: Layout) -> None:
    """A program would not get the data that it asked for."""
    with cache.use(source) as path:
        assert path.read_text() == "ACGT\n"
        assert path.name == "ref.fa"
        assert len(in_gates(layout)) == 1
    assert in_gates(layout) == []


def test_using_again_in_one_process_is_two_calls(make_cache: Making, source: str) -> None:
    """A program that uses an item a million times would load the server with more than two requests each time."""
    fs = Counting()
    cache = make_cache(fs=fs)
    cache.use(source).release()
    for _ in range(3):
        fs.calls.clear()
        cache.use(source).release()
        assert fs.kinds() == ["symlink", "rename"]


def test_another_source_is_not_taken_for_the_remembered_one(cache: Cache, source: str, tmp_path: Path) -> None:
    """A program would read another file than the one that it asked for."""
    (tmp_path / "other").write_text("other")
    assert cache.use(source).path.read_text() == "ACGT\n"
    assert cache.use(tmp_path / "other").path.read_text() == "other"
    assert cache.use(source).path.read_text() == "ACGT\n"


def test_a_relative_source_after_a_change_of_directory_is_another_file(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that changes its working directory would read the file of the former one."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text(name)
    for name in ("one", "two", "one"):
        monkeypatch.chdir(tmp_path / name)
        with cache.use("data") as path:
            assert path.read_text() == name


def test_a_path_object_means_the_same_as_its_text(cache: Cache, source: str) -> None:
    """A file given as a Path would be fetched twice."""
    assert cache.use(source).path == cache.use(Path(source)).path


def test_an_evicted_item_is_fetched_again(cache: Cache, source: str) -> None:
    """A program that remembers where an item was would be given a path to what is deleted."""
    with cache.use(source) as path:
        first = path
    assert cache.clean(EVERYTHING).freed == 5
    with cache.use(source) as path:
        assert path != first
        assert path.read_text() == "ACGT\n"


def test_nothing_is_evicted_between_lease_and_return(make_cache: Making, source: str, layout: Layout) -> None:
    """An evictor that comes in the last moment of a fetch would delete what is just being handed over."""
    fs = Interposing()
    other = make_cache()
    outcomes: list[object] = []

    def clean() -> None:
        outcomes.append(other.clean(EVERYTHING).removed)

    cache = make_cache(fs=fs)
    for moment in ("symlink", "rename", "rmdir"):
        fs.before(moment, clean, within="/use" if moment == "symlink" else "/g")
    with cache.use(source) as path:
        clean()
        assert path.read_text() == "ACGT\n"
    assert outcomes
    assert not any(outcomes)


def test_a_lease_is_a_path_for_open(cache: Cache, source: str) -> None:
    """A lease could not be given to `open`."""
    with open(cache.use(source)) as file:
        assert file.read() == "ACGT\n"


def test_a_name_alone_is_a_reference_count(cache: Cache) -> None:
    """Something that is in no cache could not be counted."""
    one, other = cache.use(name="database"), cache.use(name="database")
    assert one.path == other.path
    assert list(one.path.iterdir()) == []
    assert cache.item(one.key).leases == 2
    one.release()
    with pytest.raises(InUse):
        cache.remove(one.key)
    other.release()
    cache.remove(one.key)


def test_a_named_item_with_another_source_is_refused_and_shows_both(
    cache: Cache, source: str, tmp_path: Path, layout: Layout
) -> None:
    """Who asks for a name would be given something else under it, or keep it from being removed."""
    (tmp_path / "other.fa").write_text("other")
    cache.use(source, name="hg38").release()
    with pytest.raises(UsageError, match="with another source or other steps") as caught:
        cache.use(tmp_path / "other.fa", name="hg38")
    assert caught.value.details == (f"in the cache: file:{source}", f"requested: file:{tmp_path}/other.fa")
    assert in_gates(layout) == []
    with pytest.raises(UsageError, match="with another source or other steps"):
        cache.use(name="hg38")
    with cache.use(source, name="hg38") as path:
        assert path.read_text() == "ACGT\n"


@pytest.mark.parametrize("text", ["garbage", "{}", "[]"])
def test_a_named_item_whose_description_is_damaged_is_not_given(
    make_cache: Making, source: str, layout: Layout, text: str
) -> None:
    """Who asks for a name would be given what nobody knows the origin of."""
    lease = make_cache().use(source, name="hg38")
    lease.release()
    (Path(lease.place.gate).parent / names.ITEM_FILE).unlink()
    (Path(lease.place.gate).parent / names.ITEM_FILE).write_text(text)
    with make_cache().use(source, name="hg38") as path:
        assert path != lease.path
    assert in_gates(layout) == []


def test_a_named_item_without_a_description_is_not_given(make_cache: Making, source: str) -> None:
    """Who asks for a name would be given what nobody knows the origin of."""
    lease = make_cache().use(source, name="hg38")
    lease.release()
    (Path(lease.place.gate).parent / names.ITEM_FILE).unlink()
    assert make_cache().use(source, name="hg38").path != lease.path


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[2J", "x" * 201])
def test_what_is_no_name_is_refused(cache: Cache, name: str) -> None:
    """An item would be made that nobody can name on a command line."""
    with pytest.raises(UsageError):
        cache.use(name=name)


def test_a_maximum_age_as_a_text_is_refused_in_words(make_cache, source):
    """`max_age="1d"`, as on the command line, would end in a TypeError of a comparison somewhere in the package."""
    with pytest.raises(UsageError, match="max_age is '1d', which is not a number"):
        make_cache().use(source, max_age="1d")


def test_nothing_to_use_is_refused(cache: Cache) -> None:
    """A slip in a program would make an item of nothing."""
    with pytest.raises(UsageError, match="nothing to use"):
        cache.use()


def test_a_source_that_is_not_there_leaves_nothing(cache: Cache, tmp_path: Path, layout: Layout) -> None:
    """A wrong path would leave a half-made item, or a lock that keeps others waiting."""
    with pytest.raises(FetchFailed):
        cache.use(tmp_path / "missing")
    assert os.listdir(layout.tmp) == []
    assert os.listdir(layout.locks) == []
    assert in_gates(layout) == []


@pytest.mark.parametrize("kind", ["create", "write", "sync", "mkdir"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_leaves_nothing(
    make_cache: Making, source: str, layout: Layout, kind: str, error: int
) -> None:
    """A half-fetched item would be visible, or keep the space that is short."""
    fs = Failing()
    cache = make_cache(fs=fs)
    cache.use(name="another")
    fs.fail(kind, error)
    with pytest.raises(NoSpace):
        cache.use(source)
    fs.repair()
    assert os.listdir(layout.tmp) == []
    assert os.listdir(layout.locks) == []
    assert not list(Path(layout.items).glob("*/*ref.fa/g*"))


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENOENT])
def test_where_nothing_can_be_fetched_it_is_told(make_cache: Making, source: str, error: int) -> None:
    """A user who may not write into the cache would wait for ever, and load the server all the while."""
    fs = Failing()
    cache = make_cache(fs=fs)
    cache.use(name="another")
    fs.fail("mkdir", error, within="/tmp/")
    with pytest.raises(CacheError, match=os.strerror(error)):
        cache.use(source)


def test_a_fault_while_publishing_leaves_nothing_in_the_way(make_cache: Making, source: str, layout: Layout) -> None:
    """An item could never be fetched again after one fault of the server."""
    fs = Failing()
    fs.fail("rename", errno.EIO, within="payload", times=1)
    fs.fail("rename", errno.EIO, within="/g", times=1)
    cache = make_cache(fs=fs)
    with pytest.raises(CacheError):
        cache.use(source)
    fs.repair()
    with cache.use(source) as path:
        assert path.read_text() == "ACGT\n"
    assert os.listdir(layout.tmp) == []


def test_a_lost_reply_to_the_publication_is_a_success(make_cache: Making, source: str, layout: Layout) -> None:
    """What was fetched for hours would be fetched again, and its first copy be leased for ever."""
    fs = LostReplies()
    fs.lose("rename", within="items/")
    with make_cache(fs=fs).use(source) as path:
        assert [str(call) for call in fs.lost if "items/" in str(call)]
        assert path.read_text() == "ACGT\n"
        assert len(in_gates(layout)) == 1
    assert in_gates(layout) == []
    assert len(list(Path(layout.items).glob("*/*/g*"))) == 1


def test_lost_replies_to_a_use_and_its_release_are_no_errors(make_cache: Making, source: str, layout: Layout) -> None:
    """A restart of the server in the middle of a use would end the program, or leave the item leased."""
    fs = LostReplies()
    cache = make_cache(fs=fs)
    cache.use(source).release()
    fs.lose("symlink")
    fs.lose("rename")
    lease = cache.use(source)
    assert in_gates(layout) == [lease.name]
    assert lease.release() is True
    assert len(fs.lost) == 2
    assert in_gates(layout) == []
    assert len(finished(layout)) == 2


def test_a_use_goes_to_the_next_copy_if_the_first_is_closed(make_cache: Making, source: str, layout: Layout) -> None:
    """An eviction that was interrupted would keep an item from everybody."""
    cache = make_cache()
    lease = cache.use(source)
    lease.release()
    assert gate.close(FS, lease.place.gate)
    with cache.use(source) as path:
        assert str(path) != lease.place.payload
        assert path.read_text() == "ACGT\n"


def test_a_copy_evicted_between_listing_and_lease_is_passed_over(
    make_cache: Making, source: str, layout: Layout
) -> None:
    """A user would be told of an error because somebody cleaned at the same time."""
    make_cache().use(source).release()
    fs = Interposing()
    cleaned: list[int] = []
    fs.before("symlink", lambda: cleaned.append(make_cache().clean(EVERYTHING).freed), within="/use/")
    with make_cache(fs=fs).use(source) as path:
        assert path.read_text() == "ACGT\n"
    assert cleaned == [5]


# -- waiting for others ------------------------------------------------------------------------------------------------


def test_who_waits_is_told_for_whom_and_ends_in_time(
    make_cache: Making, source: str, layout: Layout, clock: FakeClock, notes: list[str]
) -> None:
    """A job would wait for ever, or without a word, for somebody else's download."""
    Path(layout.config_file).write_text('[fetch]\nwait = "2m"\n')
    slow = make_cache()
    fs = Interposing()
    caught: list[TimedOut] = []

    def try_too() -> None:
        began = clock.monotonic()
        with pytest.raises(TimedOut) as error:
            slow.use(source)
        assert 120 <= clock.monotonic() - began < 121
        caught.append(error.value)

    fs.before("sync", try_too)
    make_cache(fs=fs).use(source).release()
    assert f"process {os.getpid()}" in caught[0].details[0]
    assert f"process {os.getpid()}" in notes[0]
    assert len(notes) <= 4


def test_who_waits_gets_what_the_other_fetches(
    make_cache: Making, source: str, layout: Layout, clock: FakeClock
) -> None:
    """An item that many jobs want would be fetched by each of them."""
    fetching = make_cache()
    election = make_election(fetching.store, fetching.item_request([source]).key[:32])
    assert election.poll()
    fetched: list[Path] = []

    class Waiting(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if not fetched:
                election.resign()
                fetched.append(fetching.use(source).path)

    with make_cache(clock=Waiting()).use(source) as path:
        assert [path] == fetched
    assert len(list(Path(layout.items).glob("*/*/g*"))) == 1


def test_two_copies_published_at_once_are_both_good(make_cache: Making, source: str, layout: Layout) -> None:
    """Where two were elected by accident, one of them would lose its data or its lease."""
    fs = Interposing()
    other = make_cache()
    first: list[Lease] = []
    fs.before("rename", lambda: first.append(_fetch_past_the_lock(other, source, layout)), within="items/")
    lease = make_cache(fs=fs).use(source)
    assert lease.path != first[0].path
    assert lease.path.read_text() == first[0].path.read_text() == "ACGT\n"
    assert len(in_gates(layout)) == 2
    lease.release()
    cleaned = other.clean(EVERYTHING)
    assert len(cleaned.removed) == 1
    assert first[0].path.read_text() == "ACGT\n"


def _fetch_past_the_lock(cache: Cache, source: str, layout: Layout) -> Lease:
    for name in os.listdir(layout.locks):
        os.unlink(f"{layout.locks}/{name}")
    return cache.use(source)


# -- one process as a holder -------------------------------------------------------------------------------------------


def test_all_caches_of_a_process_share_one_holder(
    cache: Cache, layout: Layout, source: str, clock: FakeClock, proc: FakeProc
) -> None:
    """A program with many `Cache` objects would have as many hearts."""
    same = Cache(layout.root, fs=cache._fs, clock=clock, proc=proc)
    cache.use(source)
    same.use(source)
    assert len(present(layout)) == 1
    assert len(in_gates(layout)) == 2
    same.close()
    assert in_gates(layout) == []
    assert present(layout) == []


def test_a_lease_that_a_program_forgets_lasts(cache: Cache, layout: Layout, source: str) -> None:
    """`path = cache.use(x).path` would protect nothing, because the lease is collected as garbage."""
    import gc

    path = cache.use(source).path
    gc.collect()
    assert len(in_gates(layout)) == 1
    assert path.read_text() == "ACGT\n"


def test_releasing_twice_is_no_error(cache: Cache, source: str, layout: Layout) -> None:
    """A program that tidies up twice would fail, or give back somebody else's use."""
    lease, other = cache.use(source), cache.use(source)
    assert lease.release() is True
    assert lease.release() is False
    assert in_gates(layout) == [other.name]


def test_a_release_that_failed_can_be_repeated(make_cache: Making, source: str, layout: Layout) -> None:
    """After one fault of the server a lease could never be given back."""
    fs = Failing()
    lease = make_cache(fs=fs).use(source)
    fs.fail("rename", errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output"):
        lease.release()
    assert not lease.released
    assert lease.release() is True
    assert in_gates(layout) == []


def test_a_revoked_program_is_told_and_enters_again(make_cache: Making, source: str, layout: Layout) -> None:
    """A program that was taken for dead would go on under a holder that is gone, and its new leases be reaped."""
    cache = make_cache()
    lease = cache.use(source)
    assert holders.revoke(store_of(FS, layout), present(layout)[0])
    with pytest.raises(LeaseLost):
        lease.holder.beat()
    with pytest.raises(LeaseLost):
        lease.check()
    again = cache.use(source)
    assert again.holder.id != lease.holder.id
    again.check()
    assert [name.id for name in present(layout)] == [again.holder.id]


def test_whoever_asked_is_told_of_a_loss(make_cache: Making, source: str) -> None:
    """A program that wants to stop when its data may be deleted would not hear of it."""
    told: list[LeaseLost] = []
    lease = make_cache(on_lost=told.append).use(source)
    (member,) = [one for one in program._programs if one.holder is lease.holder]
    member._tell(LeaseLost("gone"))
    assert [error.message for error in told] == ["gone"]


@pytest.mark.filterwarnings("error")
def test_one_who_fails_over_a_loss_does_not_keep_it_from_the_others(
    make_cache: Making, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library whose callback raises would leave the rest of its program reading what is being deleted."""
    told: list[LeaseLost] = []
    failures: list[object] = []
    monkeypatch.setattr("threading.excepthook", lambda of: failures.append(of.exc_value))
    failure = RuntimeError("the log is full")

    def fail(error: LeaseLost) -> None:
        raise failure

    lease = make_cache(on_lost=fail, fs=FS).use(source)
    make_cache(on_lost=told.append, fs=FS).use(source)
    (member,) = [one for one in program._programs if one.holder is lease.holder]
    member._tell(LeaseLost("gone"))
    assert [error.message for error in told] == ["gone"]
    assert failures == [failure]


def revoke_all(layout: Layout) -> None:
    for name in present(layout):
        assert holders.revoke(store_of(FS, layout), name)


def test_a_use_of_a_program_that_was_stopped_for_long_is_three_calls(
    make_cache: Making, source: str, clock: FakeClock
) -> None:
    """A laptop that was closed for a night would be given what was reaped and deleted meanwhile."""
    fs = Counting()
    cache = make_cache(fs=fs)
    cache.use(source).release()
    clock.let_pass(10 * cache.settings.heartbeat_ttl)
    for expected in (["symlink", "rename", "rename"], ["symlink", "rename"]):
        fs.calls.clear()
        cache.use(source).release()
        assert fs.kinds() == expected


@pytest.mark.parametrize("known", [True, False])
def test_a_program_that_was_reaped_while_it_was_stopped_gets_a_lease_that_protects(
    make_cache: Making, source: str, layout: Layout, clock: FakeClock, notes: list[str], known: bool
) -> None:
    """A program that goes on after a suspension would be given a lease that the next `clean` ends."""
    cache = make_cache()
    before = cache.use(source)
    revoke_all(layout)
    clock.let_pass(10 * cache.settings.heartbeat_ttl)
    if not known:
        cache._known.clear()
    lease = cache.use(source)
    assert before.holder.lost
    assert lease.holder.id in {name.id for name in present(layout)}
    assert make_cache().clean(EVERYTHING).removed == ()
    assert lease.path.read_text() == "ACGT\n"
    assert len([one for one in finished(layout) if one.lease == lease.name]) == 0
    assert any("starting again" in note for note in notes) is not known


@pytest.mark.parametrize("ttl", [None, 100.0])
@pytest.mark.parametrize("clean", [False, True], ids=["revoked", "revoked and removed"])
def test_a_holder_that_was_revoked_during_a_fetch_is_not_given_a_void_lease(
    make_cache: Making, job: caller.Owner, source: str, layout: Layout, ttl: float | None, clean: bool
) -> None:
    """`use` would exit with 0, and the data be deleted while the job that asked for it reads."""
    fs = Interposing()
    fs.before("rename", lambda: revoke_all(layout), within="/items/")
    if clean:  # by the heartbeat after the fetch, which is the next
        fs.before("rename", lambda: make_cache().clean(EVERYTHING), within="/holders/", nth=2 if ttl else 1)
    cache = make_cache(fs=fs)
    lease = cache.hold(job, cache.item_request([source]), UseOptions(ttl=ttl))
    assert lease.holder.id in {name.id for name in present(layout)}
    assert make_cache().clean(EVERYTHING).removed == ()
    assert lease.path.read_text() == "ACGT\n"
    assert in_gates(layout) == [lease.name]
    assert cache.release([job], lease.key) == 1
    assert present(layout) == []


def test_a_holder_that_is_revoked_again_and_again_is_told(
    make_cache: Making, job: caller.Owner, source: str, layout: Layout, clock: FakeClock
) -> None:
    """A program whose lifetime is too short would fetch for ever."""
    fs = Interposing()
    make_cache().use(source).release()
    make_cache().close()

    def lapse() -> None:
        clock.let_pass(600.0)  # ten lifetimes without a heartbeat
        revoke_all(layout)

    for number in range(1, 20):
        fs.before("symlink", lapse, within=f"/{GATE}/", nth=number)
    cache = make_cache(fs=fs)
    with pytest.raises(LeaseLost, match="were revoked"):
        cache.hold(job, cache.item_request([source]), UseOptions(ttl=60.0))
    assert in_gates(layout) == []


def test_a_use_while_another_part_of_the_program_closes_is_valid(
    make_cache: Making, source: str, layout: Layout
) -> None:
    """A library that is done with its cache would take the data from another that is just fetching it."""
    fs = Interposing()
    cache, other = make_cache(fs=fs), make_cache(fs=fs)
    other.use(name="another").release()
    fs.before("rename", other.close, within="/items/")
    lease = cache.use(source)
    lease.check()
    assert lease.holder.id in {name.id for name in present(layout)}
    assert make_cache().clean(EVERYTHING).freed == 0
    assert lease.path.read_text() == "ACGT\n"
    assert in_gates(layout) == [lease.name]


def test_a_lease_that_cannot_be_confirmed_is_not_left_behind(
    make_cache: Making, source: str, layout: Layout, clock: FakeClock
) -> None:
    """Each use while the server is half away would leave a lease, until the program ends."""
    fs = Failing()
    cache = make_cache(fs=fs)
    cache.use(source).release()
    clock.let_pass(10 * cache.settings.heartbeat_ttl)
    fs.fail("rename", errno.EIO, within="/holders/")
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            cache.use(source)
        cache._known.clear()
    assert in_gates(layout) == []


def test_a_lease_says_that_it_protects_nothing(cache: Cache, source: str, layout: Layout, clock: FakeClock) -> None:
    """A program that asks before it reads on would be told that all is well until the next heartbeat."""
    lease, given_back, closed = cache.use(source), cache.use(source), cache.use(source)
    lease.check()
    given_back.release()
    with pytest.raises(LeaseLost, match="was released"):
        given_back.check()
    revoke_all(layout)
    clock.let_pass(10 * cache.settings.heartbeat_ttl)
    with pytest.raises(LeaseLost, match="was revoked"):
        lease.check()
    cache.close()
    with pytest.raises(LeaseLost):
        closed.check()


# -- signal handlers ---------------------------------------------------------------------------------------------------

#: All that a use goes through.
_FILES = ("cache.py", "program.py", "holders.py", "leases.py", "acquire.py", "gate.py", "election.py")

#: What it starts threads with, whose own waits do not bear it that a handler raises.
_LIBRARY = ("threading.py",)


@pytest.mark.parametrize("fetched", [True, False], ids=["hit", "miss"])
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "goes on"])
def test_a_signal_handler_can_close_at_any_moment(
    make_cache: Making, source: str, layout: Layout, fetched: bool, ends: bool
) -> None:
    """A job that gives everything back when it is told to end would wait for ever, and be killed without doing so."""
    every = 3 if fetched else 11
    step = 1
    while True:
        cache = make_cache(fs=FileSystem())
        if fetched:
            Cache(layout.root).use(source).release()
        else:
            cache.clean(EVERYTHING)
        other = make_cache(fs=cache._fs)  # another part of the program, whose holder is there already
        if step % 2:
            other.use(name="another")

        def use(cache: Cache = cache) -> None:
            for _ in range(2):
                lease = cache.use(source)
                if not lease.released:  # by the handler, in the last moment
                    assert lease.path.read_text() == "ACGT\n"
                lease.release()

        def handle(cache: Cache = cache) -> None:
            cache.close()
            if ends:
                raise SystemExit

        try:
            was_interrupted = interrupt(use, handle, step, *_FILES, *(() if ends else _LIBRARY))
        except SystemExit:
            was_interrupted = True
        program._close_all()
        assert not program._entering.lock._is_owned()  # type: ignore[attr-defined]
        if in_gates(layout):  # taken in the very moment: its holder is gone
            assert ends
            assert {LeaseName.parse(name).holder for name in in_gates(layout)}.isdisjoint(  # type: ignore[union-attr]
                name.id for name in present(layout)
            )
            Cache(layout.root, clock=FakeClock()).reap()
            assert in_gates(layout) == []
        if not ends:
            assert present(layout) == []
        for name in present(layout):  # made in the very moment, and removed once this process has ended
            holders.revoke(store_of(FS, layout), name)
        if not was_interrupted:
            break
        step += every
    assert step > 150


# -- fork and exit -----------------------------------------------------------------------------------------------------


def in_child(act: Callable[[], object]) -> str:
    """What `act` returns in a forked child, which ends without ado."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = repr(act())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_release_its_parents_leases(cache: Cache, source: str, layout: Layout) -> None:
    """A worker process that ends would leave its parent without a lease."""
    lease = cache.use(source)
    assert in_child(lease.release) == "False"
    assert in_child(cache.close) == "None"
    assert in_child(program._close_all) == "None"
    assert in_gates(layout) == [lease.name]
    assert len(present(layout)) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_uses_in_its_own_name(cache: Cache, source: str, layout: Layout) -> None:
    """A child's lease would end with its parent, while the child still reads."""
    lease = cache.use(source)
    name = in_child(lambda: cache.use(source).name).strip("'")
    parsed = LeaseName.parse(name)
    assert parsed is not None
    assert parsed.holder != lease.holder.id
    assert sorted(in_gates(layout)) == sorted([lease.name, name])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_is_at_work_does_not_hang(cache: Cache, source: str) -> None:
    """A worker process would wait for ever for a lock that no thread of its own can release."""
    lease = cache.use(source)
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with program._entering.lock, lease._lock, lease.holder._beating:
            taken.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert taken.wait(60)
    assert in_child(lambda: (lease.release(), cache.use(source).path.read_text())) == repr((False, "ACGT\n"))
    done.set()
    other.join()


_PROGRAM = """
import os, sys
from sccache_dtool import Cache

cache = Cache(sys.argv[1])
kept = [cache.use(sys.argv[2]), cache.use(sys.argv[2])]
cache.use(name="another")
{ending}
"""


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise RuntimeError", "kept[0].release()"])
def test_a_program_that_ends_releases_everything(layout: Layout, source: str, ending: str) -> None:
    """Every program that ends without giving back would leave leases, and a thread that keeps it from ending."""
    _run(_PROGRAM.format(ending=ending), layout.root, source)
    assert in_gates(layout) == []
    assert present(layout) == []
    assert [name.how for name in finished(layout)] == ["released"] * 3


def test_a_program_that_is_killed_is_reaped(layout: Layout, source: str) -> None:
    """A killed program's leases would keep items for ever."""
    _run(_PROGRAM.format(ending="os.kill(os.getpid(), 9)"), layout.root, source)
    assert len(in_gates(layout)) == 3
    reaped = Cache(layout.root).reap()
    assert len(reaped.leases) == 3
    assert in_gates(layout) == []
    assert [name.how for name in finished(layout)] == ["reaped"] * 3


def _run(text: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", text, *words], capture_output=True, timeout=60, check=False)


# -- leases for others -------------------------------------------------------------------------------------------------


def test_a_held_lease_outlives_this_process(cache: Cache, job: caller.Owner, source: str, layout: Layout) -> None:
    """The lease of `sc-dtool use` would end with the command."""
    lease = cache.hold(job, cache.item_request([source]))
    cache.close()
    program._close_all()
    assert in_gates(layout) == [lease.name]
    assert lease.holder.id.startswith(job.prefix)


def test_uses_are_given_back_one_by_one(cache: Cache, job: caller.Owner, source: str, layout: Layout) -> None:
    """A script that uses an item twice would lose it at its first `unuse`."""
    wanted = cache.item_request([source])
    for _ in range(3):
        cache.hold(job, wanted)
    assert cache.release([job], wanted.key) == 1
    assert len(in_gates(layout)) == 2
    assert cache.release([job], wanted.key, everything=True) == 2
    assert cache.release([job], wanted.key) == 0
    assert in_gates(layout) == []
    assert present(layout) == []


def test_a_lost_reply_does_not_give_back_a_second_use(
    make_cache: Making, job: caller.Owner, source: str, layout: Layout
) -> None:
    """One `unuse` during a restart of the server would give back two uses, and the data be deleted under the second."""
    fs = LostReplies()
    cache = make_cache(fs=fs)
    wanted = cache.item_request([source])
    for _ in range(2):
        cache.hold(job, wanted)
    fs.lose("rename", within=f"/{GATE}/")
    assert cache.release([job], wanted.key) == 1
    assert len(fs.lost) == 1
    assert len(in_gates(layout)) == 1


def test_two_who_give_back_at_once_give_back_two(
    make_cache: Making, job: caller.Owner, source: str, layout: Layout
) -> None:
    """A script that gives back in parallel would leave a lease behind."""
    fs = Interposing()
    cache, other = make_cache(fs=fs), make_cache(clock=FakeClock(wall=1_700_000_000.001))
    wanted = cache.item_request([source])
    for _ in range(2):
        cache.hold(job, wanted)
    done: list[int] = []
    fs.before("rename", lambda: done.append(other.release([job], wanted.key)), within=f"/{GATE}/")
    assert cache.release([job], wanted.key) == 1
    assert done == [1]
    assert in_gates(layout) == []


def test_nobody_gives_back_what_others_hold(
    cache: Cache, job: caller.Owner, source: str, layout: Layout, proc: FakeProc
) -> None:
    """A job's `unuse` would delete the data under another job."""
    wanted = cache.item_request([source])
    other = caller.process_owner(caller.CALLER, proc, proc.add(4243, "bash", start=1000))
    mine, theirs = cache.hold(job, wanted), cache.hold(other, wanted)
    own = cache.use(source)
    assert cache.release([job], wanted.key, everything=True) == 1
    assert set(in_gates(layout)) == {theirs.name, own.name}
    assert mine.name not in in_gates(layout)


def test_a_fetch_that_fails_leaves_no_holder(cache: Cache, job: caller.Owner, tmp_path: Path, layout: Layout) -> None:
    """Every `use` that fails would leave a holder, until the job ends."""
    with pytest.raises(FetchFailed):
        cache.hold(job, cache.item_request([str(tmp_path / "missing")]))
    assert present(layout) == []


def test_a_renewal_begins_another_lifetime(
    cache: Cache, job: caller.Owner, source: str, layout: Layout, tmp_path: Path
) -> None:
    """A script that runs longer than it thought would lose its lease in spite of `renew`."""
    lease = cache.hold(job, cache.item_request([source]), UseOptions(ttl=3600))
    cache.hold(job, cache.item_request([source]))
    (before,) = [name for name in present(layout) if name.id == lease.holder.id]
    assert cache.renew([job]) == 1
    (after,) = [name for name in present(layout) if name.id == lease.holder.id]
    assert after.beats == before.beats + 1
    assert after.end >= before.end
    assert cache.release([job], lease.key, everything=True) == 2
    assert present(layout) == []


def test_a_renewal_passes_over_a_damaged_record(
    make_cache: Making, layout: Layout, job: caller.Owner, source: str, warnings: list[str]
) -> None:
    """One damaged record would end `renew`, and the job lose all its other leases."""
    cache = make_cache()
    for name in ("one", "two"):
        cache.hold(job, cache.item_request([source], name), UseOptions(ttl=3600.0))
    (damaged, _) = sorted(path for path in Path(layout.holders).iterdir() if path.name != "gone")
    damaged.unlink()
    damaged.symlink_to("damaged")
    assert cache.renew([job]) == 1
    assert warnings == [f"{damaged}: not JSON; its lifetime is not known, and not renewed"]


def test_a_renewal_passes_over_what_ends_meanwhile(
    make_cache: Making, job: caller.Owner, source: str, layout: Layout
) -> None:
    """`renew` would fail because another part of the script has just given back."""
    fs = Interposing()
    cache, other = make_cache(fs=fs), make_cache()
    wanted = cache.item_request([source])
    for _ in range(2):
        cache.hold(job, wanted, UseOptions(ttl=3600))
    fs.before("readlink", lambda: other.release([job], wanted.key), within="holders", nth=1)
    assert cache.renew([job]) == 1


def test_a_path_in_the_cache_names_its_item(cache: Cache, source: str) -> None:
    """`unuse` could not be given what `use` printed."""
    lease = cache.use(source)
    assert cache.find_used([os.fspath(lease)]) == Named(lease.key, lease.place.generation)
    assert cache.find_used([source]) == Named(lease.key)
    assert cache.find(os.fspath(lease)) == lease.key


def test_words_do_not_mean_the_item_in_which_the_user_stands(
    cache: Cache, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has changed into an item and gives back or removes another would lose the one that it reads."""
    here = cache.use(name="here")
    other = cache.use(source)
    monkeypatch.chdir(here.path)
    assert cache.find_used(["https://example.org/ref.fa"]).key != here.key
    assert cache.find("ref.fa") == other.key


# -- finding and looking -----------------------------------------------------------------------------------------------


def test_an_item_is_found_by_what_people_know_of_it(cache: Cache, source: str) -> None:
    """An item that is listed could not be named."""
    key = cache.use(source).key
    for word in (key, key[:4], key[:20], "ref.fa", source, f"file:{source}"):
        assert cache.find(word) == key


@pytest.mark.parametrize("word", ["", "x", "nothing", "a\nb", "..", "*", "[", "http://["])
def test_what_is_not_there_is_not_found(cache: Cache, source: str, word: str) -> None:
    """`rm` of a slip of the pen would remove some item, or end with a traceback."""
    cache.use(source)
    with pytest.raises(UsageError):
        cache.find(word)


def test_an_ambiguous_word_is_refused_and_shows_what_it_could_be(cache: Cache, tmp_path: Path) -> None:
    """`rm ref.fa` would remove one of two items of that name."""
    keys = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ref.fa").write_text(name)
        keys.append(cache.use(tmp_path / name / "ref.fa").key)
    with pytest.raises(UsageError, match="any of 2 items") as caught:
        cache.find("ref.fa")
    sources = [f"file:{tmp_path / name / 'ref.fa'}" for name in ("a", "b")]
    assert sorted(caught.value.details) == sorted(f"{key}: {of}" for key, of in zip(keys, sources, strict=True))


def test_uses_are_counted_and_logged(cache: Cache, source: str) -> None:
    """`clean --exclude-frequently-accessed` would go by wrong counts."""
    for _ in range(3):
        cache.use(source).release()
    lease = cache.use(source)
    item = cache.item(lease.key)
    assert (item.finished_uses, item.leases, item.uses, item.bytes) == (3, 1, 4, 5)
    assert len(cache.uses(lease.key)) == 3
    (judged,) = cache.judged(item)
    assert judged.verdict.state == "alive"


def test_looking_writes_nothing(make_cache: Making, source: str) -> None:
    """A user who may only read could not look at the cache."""
    make_cache().use(source)
    fs = Counting()
    cache = make_cache(fs=fs)
    for item in cache.items():
        cache.judged(item)
        cache.uses(item.key)
        for copy in item.copies:
            cache.facts(copy)
            cache.path(copy)
    cache.overview()
    assert not set(fs.kinds()) & {"symlink", "rename", "mkdir", "rmdir", "unlink", "create", "write", "remove_tree"}


def test_a_copy_is_described(cache: Cache, source: str, clock: FakeClock) -> None:
    """Nobody could tell later where an item came from, or how large it is."""
    lease = cache.use(source)
    (copy,) = cache.item(lease.key).copies
    facts = cache.facts(copy)
    assert facts.source == (f"file:{source}",)
    assert (facts.bytes, facts.entries, facts.key) == (5, 1, lease.key)
    assert facts.by == lease.holder.by
    assert cache.path(copy) == lease.path
    assert (copy.generation.bytes, copy.generation.created) == (5, int(clock.wall()))


def test_an_overview_counts_what_there_is(cache: Cache, source: str, layout: Layout) -> None:
    """`status` would show another cache than there is."""
    cache.use(source).release()
    cache.clean(EVERYTHING, keep_for=1000)
    view = cache.overview()
    assert (view.root, view.holders, view.fetching, view.trashed) == (Path(layout.root), 1, 0, 1)
    assert view.free > 0


# -- setting up --------------------------------------------------------------------------------------------------------


def test_a_use_sets_up_a_new_directory(
    tmp_path: Path, source: str, clock: FakeClock, proc: FakeProc, caplog: pytest.LogCaptureFixture
) -> None:
    """A job could not begin with an empty scratch directory; or a mistyped path would become a cache unnoticed."""
    cache = Cache(tmp_path / "b", fs=FileSystem(), clock=clock, proc=proc)
    for _ in range(2):
        with cache.use(source) as path:
            assert path.read_text() == "ACGT\n"
    cache.close()
    assert caplog.messages == [f"set up a new cache in {tmp_path}/b"]
    caplog.set_level(log.NOTE, log.ROOT)
    cache = Cache(tmp_path / "c", fs=FileSystem(), clock=clock, proc=proc)
    cache.use(source).release()
    cache.close()
    assert [(record.levelno, record.getMessage()) for record in caplog.records[1:]] == [
        (log.NOTE, f"set up a new cache in {tmp_path}/c")
    ]


def test_a_use_makes_no_directory_above_its_cache(
    tmp_path: Path, source: str, clock: FakeClock, proc: FakeProc
) -> None:
    """Where a file system is not mounted, the cache would be made on the disk below, and fill it."""
    with pytest.raises(NoCache, match="its parent directory does not exist"):
        Cache(tmp_path / "a" / "b", clock=clock, proc=proc).use(source)
    assert not (tmp_path / "a").exists()
    cache = Cache(tmp_path / "a" / "b", fs=FileSystem(), clock=clock, proc=proc, parents=True)
    with cache.use(source) as path:
        assert path.read_text() == "ACGT\n"
    cache.close()


def test_two_first_uses_at_once_both_succeed(tmp_path: Path, source: str, clock: FakeClock, proc: FakeProc) -> None:
    """One of the first two jobs in a new cache would be told that there is none."""
    fs = Interposing()
    first = Cache(tmp_path / "new", fs=FileSystem(), clock=clock, proc=proc)
    second = Cache(tmp_path / "new", fs=fs, clock=clock, proc=proc)
    fs.before("names", first.init)
    assert second.use(source).path.read_text() == "ACGT\n"
    second.close()


def test_a_use_leaves_a_directory_with_files_alone(
    tmp_path: Path, source: str, clock: FakeClock, proc: FakeProc
) -> None:
    """A slip in --cache-dir would make a cache of somebody's data directory."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("mine")
    before = tree(str(tmp_path / "data"))
    with pytest.raises(NoCache):
        Cache(tmp_path / "data", clock=clock, proc=proc).use(source)
    assert tree(str(tmp_path / "data")) == before


def test_dtools_own_directory_is_set_up_although_there_are_files(
    tmp_path: Path, source: str, clock: FakeClock, proc: FakeProc
) -> None:
    """Dtool's users would have to set up what exists already; or their files would be touched."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "item").write_text("dtool's")
    cache = Cache(tmp_path / "data", clock=clock, proc=proc, may_hold_data=True, fs=FileSystem())
    cache.use(source).release()
    cache.clean(EVERYTHING)
    assert (tmp_path / "data" / "item").read_text() == "dtool's"
    cache.close()


def test_a_dangling_link_as_a_root_is_an_error(tmp_path: Path, source: str) -> None:
    """Where a scratch file system is not mounted, every command would end with a traceback."""
    (tmp_path / "link").symlink_to(tmp_path / "not" / "mounted")
    with pytest.raises((CacheError, OSError)):
        Cache(tmp_path / "link").use(source)


CALLS: dict[str, Callable[[Cache], object]] = {
    "use": lambda cache: cache.use("/etc/hostname"),
    "hold": lambda cache: cache.hold(caller.Owner(caller.NAMED, None, "x", ""), cache.item_request(["/etc/hostname"])),
    "release": lambda cache: cache.release([caller.Owner(caller.NAMED, None, "x", "")], f"{'0' * 32}-x"),
    "renew": lambda cache: cache.renew([caller.Owner(caller.NAMED, None, "x", "")]),
    "items": lambda cache: list(cache.items()),
    "item": lambda cache: cache.item(f"{'0' * 32}-x"),
    "find": lambda cache: cache.find("x"),
    "uses": lambda cache: cache.uses(f"{'0' * 32}-x"),
    "overview": lambda cache: cache.overview(),
    "reap": lambda cache: cache.reap(),
    "plan": lambda cache: cache.plan(EVERYTHING),
    "clean": lambda cache: cache.clean(EVERYTHING, keep_for=0),
    "remove": lambda cache: cache.remove(f"{'0' * 32}-x", keep_for=0),
    "evict_if_idle": lambda cache: cache.evict_if_idle(f"{'0' * 32}-x"),
    "restore": lambda cache: cache.restore("x"),
    "verify_content": lambda cache: cache.verify_content(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "garbage\n",
        "sc-dtool cache\n",
        "sc-dtool cache\nversion: 1\n",
        f"sc-dtool cache\nversion: 2\nid: {'a' * 32}\n",
    ],
    ids=["missing", "empty", "garbage", "cut off", "no id", "another version"],
)
def test_without_a_format_that_we_know_nothing_is_touched(
    layout: Layout, source: str, make_cache: Making, call: Callable[[Cache], object], text: str | None
) -> None:
    """A newer release's cache, or a directory that is none, would be damaged by this one."""
    make_cache().use(source)
    os.unlink(layout.format_file)
    if text is not None:
        Path(layout.format_file).write_text(text)
    before = tree(layout.root)
    with pytest.raises(CacheError):
        call(Cache(layout.root))
    assert tree(layout.root) == before


# -- removing and restoring --------------------------------------------------------------------------------------------


def test_what_is_in_use_is_not_removed_and_its_holders_are_named(cache: Cache, source: str) -> None:
    """Data would be deleted under its reader, or nobody could tell why it is not removed."""
    lease = cache.use(source)
    with pytest.raises(InUse, match="1 lease held") as caught:
        cache.remove(lease.key)
    assert f"process {os.getpid()}" in caught.value.details[0]
    assert lease.path.read_text() == "ACGT\n"
    assert cache.evict_if_idle(lease.key) is False
    assert cache.clean(EVERYTHING).removed == ()
    assert lease.path.read_text() == "ACGT\n"


def test_an_unknown_name_in_the_gate_keeps_the_item(cache: Cache, source: str, warnings: list[str]) -> None:
    """Something that a newer release, or a person, put there would not keep the data."""
    lease = cache.use(source)
    Path(lease.place.gate, "keep").touch()
    lease.release()
    with pytest.raises(InUse):
        cache.remove(lease.key)
    assert cache.clean(EVERYTHING).removed == ()
    assert lease.path.read_text() == "ACGT\n"
    assert any("keep" in warning for warning in warnings)


def test_what_was_removed_to_the_trash_comes_back_under_a_new_name(cache: Cache, source: str, layout: Layout) -> None:
    """`restore` would not bring back the data, or open a closed copy to a paused evictor."""
    lease = cache.use(source)
    lease.release()
    assert cache.remove(lease.key, keep_for=1000) == 5
    assert not lease.path.exists()
    assert cache.restore("ref.fa") == lease.key
    os.unlink(source)
    again = cache.use(source)
    assert again.path.read_text() == "ACGT\n"
    assert again.place.generation != lease.place.generation
    assert os.listdir(layout.trash) == []
    assert cache.item(lease.key).finished_uses == 1


def test_the_trash_is_emptied_in_time(cache: Cache, source: str, clock: FakeClock, layout: Layout) -> None:
    """What is to be restored would be gone too early, or fill the disk for ever."""
    lease = cache.use(source)
    lease.release()
    cache.remove(lease.key, keep_for=1000)
    clock.let_pass(999)
    assert cache.clean(EVERYTHING).purged == 0
    clock.let_pass(2)
    assert cache.clean(EVERYTHING).purged == 1
    assert os.listdir(layout.trash) == []
    with pytest.raises(UsageError, match="in the trash"):
        cache.restore("ref.fa")


@pytest.mark.parametrize("word", ["", "x", "0", "nothing"])
def test_what_is_not_in_the_trash_is_not_restored(cache: Cache, source: str, word: str) -> None:
    """`restore ""` in a script with an empty variable would bring back something that nobody asked for."""
    lease = cache.use(source)
    lease.release()
    cache.remove(lease.key, keep_for=1000)
    with pytest.raises(UsageError):
        cache.restore(word)


def test_an_item_that_is_there_is_not_restored_over(cache: Cache, source: str) -> None:
    """A restored copy would hide the one that was fetched since."""
    lease = cache.use(source)
    lease.release()
    cache.remove(lease.key, keep_for=1000)
    cache.use(source)
    with pytest.raises(InUse):
        cache.restore("ref.fa")


def test_an_item_is_described_as_json(cache: Cache, source: str) -> None:
    """Other programs could not read what an item is."""
    lease = cache.use(source)
    assert json.loads((Path(lease.place.gate).parent / names.ITEM_FILE).read_text())["format"] == 1


def test_the_settings_of_a_cache_are_used(make_cache: Making, source: str, layout: Layout, proc: FakeProc) -> None:
    """What a data manager has set would have no effect."""
    Path(layout.config_file).write_text('[lease]\nttl = "1h"\nheartbeat_ttl = "2h"\n[clean]\ntrash = "7d"\n')
    cache = make_cache()
    owner = caller.Owner(caller.NAMED, None, "x", "")
    assert cache.hold(owner, cache.item_request([source])).holder.ttl == 3600
    assert cache.use(source).holder.ttl == 7200
    cache.release([owner], cache.item_request([source]).key)
    cache.close()
    cache.clean(EVERYTHING)
    assert cache.restore("ref.fa")


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test leaves a holder in this process, whose heart would beat on."""
    before = set(program._programs)
    yield
    assert set(program._programs) <= before


def test_root_is_named_in_errors(tmp_path: Path) -> None:
    """A user with several caches would not know which one is meant."""
    with pytest.raises(NoCache, match=str(tmp_path)) as caught:
        root.check(FS, Layout(str(tmp_path)))
    assert "init" in (caught.value.hint or "")


def test_an_index_beside_the_payload_does_not_hide_it(make_cache: Making) -> None:
    """`samtools faidx` writes its index beside the file: the file would be fetched again at each use."""
    with httpserver.serve() as server:
        url = server.page("/download?id=7", b"ACGT\n")
        with make_cache().use(url) as path:
            (path.parent / f"{path.name}.fai").write_text("index")
        cache = make_cache()
        with cache.use(url) as again:
            assert again == path
        assert [cache.path(copy) for copy in cache.item(cache.key_for([url])).copies] == [path]
        assert server.gets == {"/download?id=7": 1}


def test_the_default_is_the_cache_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that names no cache would fail, or work on another one than `sc-dtool` in the same shell."""
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(tmp_path / "there"))
    with contextlib.closing(Cache()) as cache, cache.use(name="x"):
        pass
    assert [item.key for item in Cache(tmp_path / "there").items()]


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Cache("~/cache")` would make a directory called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache("~/cache").root == tmp_path / "cache"
