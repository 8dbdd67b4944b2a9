"""Two actors, and every order of their steps: one's act is slipped in before each single call of the other's.

The first half names the interleavings that the protocol is made for. The second half leaves none out: an act is
repeated with the other's slipped in before its first call, its second, and so on to the last, and after each of
these the same is asked: whoever got a lease reads complete data, every lease is in the history exactly once, and
nothing is left that `reap` and `clean` do not put away.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from effort import STRIDE
from faults import Interposing, store_of
from races.actors import (
    Payload,
    SlippingAt,
    digest_of,
    findings,
    generations,
    left_in,
    make_payload,
    names,
)
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.clock import Clock
from sccache_dtool.disk import root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout, WorkName
from sccache_dtool.errors import InUse, LeaseLost, UsageError
from sccache_dtool.evict import trash
from sccache_dtool.evict.trash import Purged
from sccache_dtool.liveness import caller, lifetime
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.liveness.process import Proc
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import history
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Lease

EVERYTHING = Rules(everything=True)

Actor = Callable[..., Cache]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test pulls the plug; and the only thing that is waited for here is a tick of the kernel's clock."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr(Clock, "sleep", lambda self, seconds: time.sleep(min(seconds, 0.011)))


class Shifted(Clock):
    """A clock that can be put back, so that a holder's end is one that has passed.

    Its time of day is behind always, so that the holder's host itself took it for a passed one.
    """

    shift = 0.0

    def wall(self) -> float:
        return super().wall() - 5000

    def since_boot(self) -> float:
        return super().since_boot() + self.shift


def is_whole(lease: Lease, payload: Payload) -> bool:
    return digest_of(os.fspath(lease)) == payload.digest


def key_of(cache: Cache, payload: Payload) -> str:
    return cache.key_for([payload.path])


def put(cache: Cache, payload: Payload) -> str:
    """Have an item in the cache that nobody uses; its key."""
    lease = cache.use(payload.path)
    lease.release()
    return lease.key


@contextlib.contextmanager
def elsewhere(directory: Path | str) -> Iterator[None]:
    """As another user on this host: what is remembered of lifetimes is one file per user, and locked meanwhile."""
    with mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(directory)}):
        yield


def break_all_elections(place: str, *, signs: bool = True) -> None:
    """What a lock that is broken wrongly comes to; without its sign, the downloader is taken for gone."""
    for name in names(Layout(place).locks):
        if signs or name.endswith(".lock"):
            os.unlink(f"{Layout(place).locks}/{name}")


def dead_owner(cache: Cache) -> tuple[subprocess.Popen[str], Owner]:
    """A process that can hold leases; kill it for an owner that is gone."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, text=True)
    return process, cache.owner(f"pid:{process.pid}")


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_use_between_the_closing_of_the_gate_and_the_move_to_the_trash(actor: Actor, payload: Payload) -> None:
    """A job that asks at the worst moment of an eviction would read what is being deleted."""
    fs = Interposing()
    evictor, user = actor(fs), actor()
    key = put(user, payload)
    (dead,) = generations(str(user.root), key)
    fs.after("rmdir", lambda: user.use(payload.path), within="/use")
    assert evictor.evict_if_idle(key)
    (lease,) = fs.results
    assert lease.place.generation != dead
    assert is_whole(lease, payload)
    assert generations(str(user.root), key) == [lease.place.generation]


def test_use_between_the_look_and_the_closing_of_the_gate(actor: Actor, payload: Payload) -> None:
    """An item would be evicted on the strength of an old listing, though a job holds it by now."""
    fs = Interposing()
    evictor, user = actor(fs), actor()
    key = put(user, payload)
    fs.before("rmdir", lambda: user.use(payload.path), within="/use")
    assert not evictor.evict_if_idle(key)
    (lease,) = fs.results
    assert is_whole(lease, payload)


def test_eviction_between_the_listing_and_the_lease(actor: Actor, payload: Payload) -> None:
    """A job would get the path of a copy that was evicted while it looked."""
    fs = Interposing()
    user, evictor = actor(fs), actor()
    key = put(evictor, payload)
    fs.after("names", lambda: evictor.evict_if_idle(key), within=key)
    lease = user.use(payload.path)
    assert fs.results == [True]
    assert is_whole(lease, payload)


def test_eviction_right_after_the_lease(actor: Actor, payload: Payload) -> None:
    """A lease that was just taken would not count."""
    fs = Interposing()
    user, evictor = actor(fs), actor()
    key = put(evictor, payload)
    fs.after("symlink", lambda: evictor.evict_if_idle(key), within="/use/")
    lease = user.use(payload.path)
    assert fs.results == [False]
    assert is_whole(lease, payload)


def test_eviction_right_after_the_publication(actor: Actor, place: str, payload: Payload) -> None:
    """What a job has just downloaded would be evicted before it gets its lease."""
    fs = Interposing()
    user, evictor = actor(fs), actor()
    key = key_of(user, payload)
    fs.after("rename", lambda: evictor.evict_if_idle(key), within=f"{Layout(place).item(key)}/g")
    lease = user.use(payload.path)
    assert fs.results == [False]
    assert is_whole(lease, payload)


def test_the_fast_path_notices_an_eviction(actor: Actor, payload: Payload) -> None:
    """A program that remembers where an item was would read a copy that is gone."""
    user, evictor = actor(), actor()
    key = put(user, payload)
    assert evictor.evict_if_idle(key)
    assert is_whole(user.use(payload.path), payload)


def test_a_lease_taken_after_close_is_protected(actor: Actor, payload: Payload) -> None:
    """A program that closes its cache and uses it again would have leases that any reaper takes away."""
    user, evictor = actor(), actor()
    key = put(user, payload)
    user.close()
    lease = user.use(payload.path)
    assert not evictor.reap().leases
    assert not evictor.evict_if_idle(key)
    assert is_whole(lease, payload)


def test_two_publish_one_item(actor: Actor, place: str, payload: Payload) -> None:
    """After a lock was broken wrongly, the second of two downloaders would harm what the first one's job reads."""
    fs = Interposing()
    first, second = actor(fs), actor()

    def publish_too() -> Lease:
        break_all_elections(place, signs=False)
        return second.use(payload.path)

    fs.after("mkdir", publish_too, within="/use")  # it has looked for the last time
    own = first.use(payload.path)
    (other,) = fs.results
    assert own.place.generation != other.place.generation
    assert len(generations(place, own.key)) == 2
    assert is_whole(own, payload)
    assert is_whole(other, payload)
    other.release()
    assert not second.evict_if_idle(own.key)
    assert generations(place, own.key) == [own.place.generation]
    assert is_whole(own, payload)


# -- heartbeats and reapers --------------------------------------------------------------------------------------------


@pytest.fixture
def one_clock(place: str) -> None:
    kind = lifetime.mount_type(place)
    if kind not in lifetime.ONE_CLOCK:
        pytest.skip(f"fixed ends say nothing on {kind or 'this file system'}")


def lapsed(cache: Cache, payload: Payload, clock: Shifted) -> Lease:
    """A lease of a name whose lifetime has passed, of which nothing was heard since."""
    lease = cache.hold(cache.owner("a job"), cache.item_request([payload.path]), UseOptions(ttl=100))
    clock.shift = -5000
    lease.holder.beat()
    clock.shift = 0
    return lease


@pytest.mark.usefixtures("one_clock")
def test_a_heartbeat_just_before_the_revocation_saves_the_leases(actor: Actor, payload: Payload) -> None:
    """A job that was slow to show its heartbeat, and did, would lose its data all the same."""
    clock, fs = Shifted(), Interposing()
    user, reaper = actor(clock=clock), actor(fs)
    lease = lapsed(user, payload, clock)
    fs.before("rename", lease.holder.beat, within="/holders/gone/")
    assert not reaper.reap().leases
    assert fs.pending == 0
    assert not reaper.evict_if_idle(lease.key)
    lease.holder.beat()
    assert is_whole(lease, payload)


@pytest.mark.usefixtures("one_clock")
def test_a_revocation_just_before_the_heartbeat_is_noticed(actor: Actor, payload: Payload) -> None:
    """A job whose leases were revoked would go on reading data that is being deleted."""
    clock, fs = Shifted(), Interposing()
    user, reaper = actor(fs, clock=clock), actor()
    lease = lapsed(user, payload, clock)
    fs.before("rename", reaper.reap, within="/holders/")
    with pytest.raises(LeaseLost):
        lease.holder.beat()
    assert [one.held.name for one in fs.results[0].leases] == [lease.name]
    with pytest.raises(LeaseLost):
        lease.check()


@pytest.mark.usefixtures("one_clock")
@pytest.mark.parametrize("times", [1, 2, 1000])
def test_a_heartbeat_in_the_middle_of_listings_is_no_end(
    actor: Actor, place: str, payload: Payload, times: int
) -> None:
    """A holder that listings miss, because it was just then renamed, would be taken for gone."""
    user = actor(clock=Shifted())
    lease = user.hold(user.owner("a job"), user.item_request([payload.path]), UseOptions(ttl=100))

    class Missing(FileSystem):
        """The first listings miss a name that is renamed meanwhile, as readdir(3) allows."""

        missed = 0

        def names(self, path: str, **more: Any) -> list[str]:
            found = super().names(path, **more)
            if path == Layout(place).holders and self.missed < times:
                self.missed += 1
                lease.holder.beat()
                return [name for name in found if not name.startswith(lease.holder.id)]
            return found

    fs = Missing()
    assert not actor(fs).reap().leases
    assert fs.missed
    lease.holder.beat()


@pytest.mark.usefixtures("one_clock")
@pytest.mark.parametrize("command", ["clean", "doctor"])
def test_a_heartbeat_just_before_the_revocation_saves_the_work(actor: Actor, place: str, command: str) -> None:
    """A download, or a copy on its way out of the trash, would be taken from a process that has just shown it lives."""
    clock, fs = Shifted(), Interposing()
    holder = Holder(
        store_of(FileSystem(), Layout(place), clock=clock), Owner(caller.NAMED, None, "somebody", ""), 100.0
    )
    clock.shift = -5000
    holder.beat()
    clock.shift = 0
    area = f"{Layout(place).tmp}/{WorkName(holder.next_lease(), 'restore', 'g0123456789abcdef-1-2-3~9999999999')}"
    os.makedirs(f"{area}/trashed/payload")
    fs.before("rename", holder.beat, within="/holders/gone/")
    cache = actor(fs)
    if command == "clean":
        cache.clean(EVERYTHING)
    else:
        for finding in cache.examine():
            if finding.repair is not None:
                with contextlib.suppress(FileNotFoundError):  # somebody else was first: here, the heartbeat
                    finding.repair()
    assert fs.pending == 0
    assert os.path.isdir(area)
    holder.retire()


def test_giving_back_and_reaping_at_once_count_once(actor: Actor, payload: Payload) -> None:
    """A use would be counted twice, or lost, when a script's end meets a reaper."""
    for order in ("reap first", "unuse first"):
        fs = Interposing()
        late, early = actor(fs), actor()
        process, owner = dead_owner(late)
        lease = late.hold(owner, late.item_request([payload.path]))
        end(process)
        before = len(late.uses(lease.key))
        if order == "reap first":
            fs.before("rename", early.reap, within="/use/")
            assert late.release([owner], lease.key) == 0
            assert len(fs.results[0].leases) == 1
        else:
            fs.before("rename", functools.partial(early.release, [owner], lease.key), within="/use/")
            assert not late.reap().leases
            assert fs.results == [1]
        uses = late.uses(lease.key)
        assert len(uses) == before + 1
        assert sum(use.lease == lease.name for use in uses) == 1


# -- histories ---------------------------------------------------------------------------------------------------------


def used(cache: Cache, payload: Payload, times: int) -> str:
    for _ in range(times):
        key = put(cache, payload)
    return key


@pytest.mark.parametrize("seen", [0, 2, 6])
def test_a_reader_whose_listing_a_fold_runs_into(actor: Actor, place: str, payload: Payload, seen: int) -> None:
    """A log that is read while histories are folded would lack uses."""
    user = actor()
    key = used(user, payload, 6)
    where = Layout(place).history(key)

    class Torn(FileSystem):
        """A listing that is no snapshot: what was added meanwhile is missed, and what was removed too (readdir(3))."""

        torn = 0

        def names(self, path: str, **more: Any) -> list[str]:
            found = super().names(path, **more)
            if path == where and not self.torn:
                self.torn += 1
                history.fold(store_of(FileSystem(), None), where, f"{place}/.sc-dtool/tmp/one", least=2)
                return found[:seen]
            return found

    fs = Torn()
    assert len(actor(fs).uses(key)) == 6
    assert fs.torn


# -- the trash ---------------------------------------------------------------------------------------------------------


def test_restore_just_before_a_purge_wins(actor: Actor, place: str, payload: Payload) -> None:
    """What was brought back from the trash would be deleted under the one who brought it back."""
    fs = Interposing()
    user = actor()
    key = put(user, payload)
    user.remove(key, keep_for=1.0)
    layout = Layout(place)
    fs.before("rename", lambda: user.restore(payload.path.rpartition("/")[2]), within="~going")
    trash.purge(store_of(fs, layout), Clock().wall() + 100)
    assert fs.results == [key]
    (generation,) = generations(place, key)
    lease = user.use(payload.path)
    assert lease.place.generation == generation
    assert is_whole(lease, payload)


def test_purge_just_before_a_restore_is_told(actor: Actor, place: str, payload: Payload) -> None:
    """`restore` would publish a copy that is half deleted."""
    fs = Interposing()
    restorer, user = actor(fs), actor()
    key = put(user, payload)
    user.remove(key, keep_for=1.0)
    fs.before(
        "rename", lambda: trash.purge(store_of(FileSystem(), Layout(place)), Clock().wall() + 100), within="~restore"
    )
    with pytest.raises(UsageError, match="just been deleted"):
        restorer.restore(key)
    assert fs.results == [Purged(1)]
    assert generations(place, key) == []


def test_rm_says_in_use_also_when_the_user_was_quick(actor: Actor, place: str, payload: Payload) -> None:
    """`rm` would report as removed what it has left in place."""
    fs = Interposing()
    remover, user = actor(fs), actor()
    key = put(user, payload)
    leases: list[Lease] = []
    fs.before("rmdir", lambda: leases.append(user.use(payload.path)), within="/use")
    fs.before("names", lambda: leases.pop().release(), within=f"{key}/g", nth=2)
    with contextlib.suppress(InUse):
        remover.remove(key)
        assert generations(place, key) == []


# -- every interleaving ------------------------------------------------------------------------------------------------


class Stage:
    """A cache with an item, and two who act on it."""

    def __init__(self, directory: Path, nth: int) -> None:
        self.place = str(directory / "cache")
        self.state = str(directory / "state")
        self.layout = Layout(self.place)
        self.payload = make_payload(directory / "ref", 20)
        self.fs = SlippingAt()
        self.nth = nth
        Cache(self.place, fs=FileSystem()).init()
        self.outer = Cache(self.place, fs=self.fs)
        self.inner = Cache(self.place, fs=FileSystem())
        self.key = key_of(self.outer, self.payload)
        self.made = 0  # leases
        self.held: list[Lease] = []
        self.begun: list[tuple[Holder, str]] = []

    def present(self, copies: int = 1) -> None:
        """Let the item be there, unused."""
        for _ in range(copies):
            with mock.patch("sccache_dtool.catalog.items.generations", return_value=[]):
                self.inner.use(self.payload.path).release()
            self.made += 1

    def use(self, cache: Cache) -> None:
        """Use the item as the command line does, with a holder for each lease, and keep the lease."""
        self.held.append(cache.hold(cache.owner(f"pid:{os.getpid()}"), cache.item_request([self.payload.path])))
        self.made += 1

    def dead(self) -> Owner:
        """Let there be a lease of a process that is gone."""
        process, owner = dead_owner(self.inner)
        self.inner.hold(owner, self.inner.item_request([self.payload.path]))
        self.made += 1
        end(process)
        return owner

    def orphan(self) -> None:
        """Let there be a lease whose holder has ended in order, and could not give it back."""
        lease = self.inner.hold(self.inner.owner("somebody"), self.inner.item_request([self.payload.path]))
        lease.holder.retire()
        self.made += 1

    def run(self, outer: Callable[[], object], inner: Callable[[], object]) -> bool:
        """Whether the inner act could be slipped in; False when there are no more calls before which to do so."""

        def act() -> None:
            with elsewhere(self.state):
                inner()

        self.fs.arm(self.nth, act)
        outer()
        return self.fs.where is not None

    def check(self) -> None:
        """What must always hold."""
        where = f"slipped in before call {self.nth}: {self.fs.where}"
        keeper = Cache(self.place, fs=FileSystem())
        keeper.reap()
        with contextlib.suppress(InUse):
            keeper.clean(EVERYTHING)
        for lease in self.held:
            assert is_whole(lease, self.payload), where
            assert lease.release(), where
            lease.holder.retire()
        for holder, area in self.begun:
            assert os.path.isdir(area), where
            holder.retire()
        self.outer.close()
        self.inner.close()
        later = Clock()
        later.wall = lambda: Clock().wall() + 10_000  # type: ignore[method-assign]
        Cache(self.place, fs=FileSystem(), clock=later).clean(EVERYTHING)
        assert left_in(self.place) == {}, where
        assert findings(keeper) == [], where
        uses = [use.lease for use in keeper.uses(self.key)]
        assert len(uses) == len(set(uses)) == self.made == keeper.item(self.key).uses, where


def _evict(stage: Stage, cache: Cache) -> None:
    cache.evict_if_idle(stage.key)


def _clean(stage: Stage, cache: Cache) -> None:
    with contextlib.suppress(InUse):
        cache.clean(EVERYTHING, keep_for=100)


def _clean_in_spite(stage: Stage, cache: Cache) -> None:
    break_all_elections(stage.place)
    cache.clean(EVERYTHING)


def _remove(stage: Stage, cache: Cache) -> None:
    with contextlib.suppress(InUse):
        cache.remove(stage.key)


def _use(stage: Stage, cache: Cache) -> None:
    stage.use(cache)


def _use_in_spite(stage: Stage, cache: Cache) -> None:
    break_all_elections(stage.place)
    stage.use(cache)


def _use_beside(stage: Stage, cache: Cache) -> None:
    break_all_elections(stage.place, signs=False)
    stage.use(cache)


def _reap(stage: Stage, cache: Cache) -> None:
    cache.reap()


def _begin(stage: Stage, cache: Cache) -> None:
    """Begin a download, and be slow."""
    holder = Holder(cache.store, caller.program_owner(Proc()), 1000.0)
    area = f"{stage.layout.tmp}/{WorkName(holder.next_lease(), 'fetch')}"
    cache._fs.mkdir(area)
    stage.begun.append((holder, area))


def _restore(stage: Stage, cache: Cache) -> None:
    with contextlib.suppress(InUse, UsageError):
        cache.restore(stage.key)


def _mend(stage: Stage, cache: Cache) -> None:
    for finding in cache.examine():
        if finding.repair is not None:
            with contextlib.suppress(FileNotFoundError):
                finding.repair()


def _purge(stage: Stage, cache: Cache) -> None:
    trash.purge(cache.store, Clock().wall() + 1000)


def _fold(stage: Stage, cache: Cache) -> None:
    holder = Holder(cache.store, caller.program_owner(Proc()), 1000.0)
    tmp = f"{stage.layout.tmp}/{WorkName(holder.next_lease(), 'fold')}"
    history.fold(store_of(cache._fs, None), stage.layout.history(stage.key), tmp, least=2)
    holder.retire()


def _count(stage: Stage, cache: Cache) -> None:
    assert len(cache.uses(stage.key)) == stage.made
    assert cache.item(stage.key).uses == stage.made


def _absent(stage: Stage) -> None:
    """Nothing yet."""


def _idle(stage: Stage) -> None:
    stage.present()


def _two_copies(stage: Stage) -> None:
    stage.present(2)


def _orphaned(stage: Stage) -> None:
    stage.present()
    stage.orphan()


def _held_by_the_dead(stage: Stage) -> None:
    stage.dead()


def _binned(stage: Stage) -> None:
    stage.present()
    stage.inner.remove(stage.key, keep_for=100)


def _used_often(stage: Stage) -> None:
    for _ in range(5):
        stage.inner.use(stage.payload.path).release()
    stage.made += 5


Act = Callable[[Stage, Cache], None]


@pytest.mark.parametrize(
    ("before", "outer", "inner"),
    [
        pytest.param(*row, id=f"{row[0].__name__}-{row[1].__name__}-{row[2].__name__}".replace("_", " ").strip())
        for row in [
            (_idle, _use, _evict),
            (_idle, _evict, _use),
            (_idle, _evict, _evict),
            (_idle, _use, _clean),
            (_idle, _clean, _use),
            (_idle, _clean, _clean_in_spite),
            (_idle, _remove, _use),
            (_two_copies, _use, _clean),
            (_two_copies, _clean, _use),
            (_absent, _use, _clean),
            (_absent, _use, _evict),
            (_absent, _use, _mend),
            (_absent, _use, _use_in_spite),
            (_absent, _use, _use_beside),
            (_orphaned, _clean, _use),
            (_orphaned, _clean, _begin),
            (_orphaned, _mend, _begin),
            (_orphaned, _reap, _use),
            (_orphaned, _use, _reap),
            (_orphaned, _mend, _use),
            (_held_by_the_dead, _reap, _reap),
            (_held_by_the_dead, _clean, _reap),
            (_held_by_the_dead, _reap, _clean),
            (_held_by_the_dead, _mend, _clean),
            (_binned, _restore, _purge),
            (_binned, _purge, _restore),
            (_binned, _restore, _restore),
            (_binned, _restore, _clean),
            (_binned, _restore, _use),
            (_binned, _use, _restore),
            (_binned, _purge, _purge),
            (_used_often, _fold, _fold),
            (_used_often, _fold, _use),
            (_used_often, _count, _fold),
            (_used_often, _use, _fold),
        ]
    ],
)
def test_every_interleaving(fast_path: Path, before: Callable[[Stage], None], outer: Act, inner: Act) -> None:
    """Two commands at once would harm each other at one of their steps."""
    nth, more = 0, True
    while more:
        directory = fast_path / str(nth)
        directory.mkdir()
        stage = Stage(directory, nth)
        before(stage)
        more = stage.run(lambda s=stage: outer(s, s.outer), lambda s=stage: inner(s, s.inner))
        stage.check()
        nth += STRIDE
    print(f"{nth // STRIDE} interleavings")
    assert nth > 3


def test_every_interleaving_of_giving_back_and_reaping(fast_path: Path) -> None:
    """A use would be counted twice, or never, when `unuse` meets `reap` at one of their steps."""
    for first in ("unuse", "reap"):
        nth, more = 0, True
        while more:
            directory = fast_path / f"{first}{nth}"
            directory.mkdir()
            stage = Stage(directory, nth)
            owner = stage.dead()
            acts: dict[str, Callable[[Cache], Any]] = {
                "unuse": lambda cache, s=stage, o=owner: cache.release([o], s.key),
                "reap": lambda cache: cache.reap(),
            }
            second = "reap" if first == "unuse" else "unuse"
            more = stage.run(lambda s=stage, a=acts[first]: a(s.outer), lambda s=stage, a=acts[second]: a(s.inner))
            stage.check()
            nth += STRIDE


def test_every_interleaving_of_two_who_set_a_cache_up(fast_path: Path) -> None:
    """Two jobs that come first at once would each make a cache, and one would lose its own."""
    nth, more = 0, True
    while more:
        layout = Layout(str(fast_path / f"{nth}" / "cache"))
        fs, made = SlippingAt(), []
        fs.arm(nth, lambda made=made, layout=layout: made.append(root.set_up(FileSystem(), layout)))
        made.append(root.set_up(fs, layout))
        more = fs.where is not None
        if more:
            assert sorted(made) == [False, True], f"call {nth}: {fs.where}"
        assert [name for name in names(layout.root) if name != "CACHEDIR.TAG"] == [".sc-dtool"]
        assert findings(Cache(layout.root, fs=FileSystem())) == []
        nth += STRIDE
    assert nth > 8
