"""Two who are elected at once: looked for in every order of steps with few switches, by chance, and at each call.

flufl.lock's own calls are one step here: they do not go through the package's file system. Where a winner is silent
for its whole lifetime and wakes up, there may be two; that is not played.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from effort import PLAYS, SAMPLE, SEED, STRIDE
from faults import Call, FakeClock, FakeProc, Interposing, store_of
from races.baton import Misfortune, Play, Scene
from races.directors import Chance, systematically
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness import State, Verdict, caller
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.lifetime import Memory
from sccache_dtool.protocol.election import Election, make_election

AT_WORK: set[int] = set()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr("sccache_dtool.liveness.lifetime.memory_path", lambda proc, name: None)


def work_alone(play: Play, cache: Cache) -> None:
    """Stand for election until elected, work for some calls, resign; and the process ends at once."""
    number = play._here.actor.number
    for _ in range(20):
        standing = make_election(cache.store, "work")
        if standing.poll():
            others = AT_WORK - play.crashed
            if others:
                play.violations.append(f"{number} and {sorted(others)} are elected at once")
            AT_WORK.add(number)
            for _ in range(3):
                cache._fs.names(play.layout.items)
            AT_WORK.discard(number)
            standing.resign()
            break
        cache._clock.sleep(1)
    play.crashed.add(number)


class _Killer(Chance):
    """Processes are killed, and replies lost."""

    def misfortune(self, call: Call) -> Misfortune | None:
        chosen = super().misfortune(call)
        return chosen if chosen in (Misfortune.CRASH_BEFORE, Misfortune.CRASH_AFTER, Misfortune.LOST) else None


def play_by_chance(scene: Scene, name: str, plays: int) -> list[str]:
    """The first violation, with what led to it."""
    for number in range(plays):
        AT_WORK.clear()
        seed = f"{name} {SEED} {number}"
        play = Play(scene, {f"worker {worker}": work_alone for worker in range(4)}, _Killer(seed))
        play.run()
        found = [one for one in play.violations if "elected at once" in one or "Error" in one]
        if found:
            return [seed, *found, *play.log]
    return []


def test_two_are_never_elected_at_once_by_chance(tmp_path: Path) -> None:
    """Many processes that want one item would download it more than once."""
    found = play_by_chance(Scene(tmp_path), "elected", 15 * PLAYS)
    assert not found, "\n".join(found)


def test_two_are_never_elected_at_once_in_orders_with_few_switches(tmp_path: Path) -> None:
    """The same."""
    count = 0
    AT_WORK.clear()
    acts = {f"worker {worker}": work_alone for worker in range(3)}
    for played in systematically(Scene(tmp_path), acts, 2, 10 * SAMPLE, SEED, STRIDE):
        assert not [one for one in played.violations if "at once" in one], "\n".join(played.log)
        AT_WORK.clear()
        count += 1
    assert count > 50


def test_plays_would_notice_a_lock_that_is_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plays that cannot fail would say nothing."""

    def take_over(self: Election, text: str, sign: str | None) -> bool:
        self._is_removed(self._lock_name)
        return True

    monkeypatch.setattr(Election, "take_over", take_over)
    assert play_by_chance(Scene(tmp_path), "elected", 500)


#: What happens just when somebody has read who was elected, and asks whether that process runs.
ENDING: list[Callable[[], object]] = []


# -- whatever happens between two calls of somebody who takes over -----------------------------------------------------

Stand = Callable[..., Election]


@pytest.fixture
def stand(layout: Layout, clock: FakeClock, proc: FakeProc) -> Stand:
    """Stands in the election "work", in the name of a process; who has ended is dead for everybody."""

    def judge(record: holder_record.HolderRecord) -> Verdict:
        while ENDING:
            ENDING.pop()()
        gone = record.process is None or proc.stat(record.process.pid) is None
        return Verdict(State.DEAD if gone else State.ALIVE, "as the test says")

    def stand(pid: int, fs: FileSystem | None = None) -> Election:
        proc.add(pid, "job")
        record = holder_record.encode(caller.process_owner(caller.CALLER, proc, pid), None, clock)
        return Election(store_of(fs or FileSystem(), layout), "work", record, judge, Memory(None, clock))

    return stand


KINDS = ("names", "readlink", "read_text", "unlink", "symlink", "lstat")


def overtake(
    stand: Stand, layout: Layout, kind: str, arrange: Callable[[Election, Election], Callable[[], bool]]
) -> None:
    """Somebody takes over from a winner, and before each of its calls of a kind there happens what `arrange` returns.

    `arrange` is given the winner and a third one, and what it returns says whether the third one is elected.
    """
    for nth in range(1, 8):
        first = stand(101)
        assert first.poll()
        fs = Interposing()
        slow, fast = stand(102, fs), stand(103)
        fs.before(kind, arrange(first, fast), nth=nth)
        mine = slow.poll()
        fs.forget()
        assert not (mine and any(fs.results)), f"two are elected at once, before {kind} {nth}"
        for one in (first, slow, fast):
            one.resign()
        for name in os.listdir(layout.locks):
            os.unlink(f"{layout.locks}/{name}")


@pytest.mark.parametrize("resigns", [True, False], ids=["has resigned", "was killed"])
@pytest.mark.parametrize("kind", KINDS)
def test_who_takes_over_does_not_remove_the_lock_of_the_next_winner(
    stand: Stand, proc: FakeProc, layout: Layout, kind: str, resigns: bool
) -> None:
    """A process that looks just when a winner ends would be elected beside the next one, and download the item too."""

    def arrange(first: Election, fast: Election) -> Callable[[], bool]:
        def end_and_succeed() -> bool:
            if resigns:
                first.resign()
            proc.end(101)
            return fast.poll() or fast.poll()

        return end_and_succeed

    overtake(stand, layout, kind, arrange)


@pytest.mark.parametrize("kind", KINDS)
def test_who_looks_just_when_a_winner_ends_is_not_elected_beside_the_next(
    stand: Stand, proc: FakeProc, layout: Layout, kind: str
) -> None:
    """The sign was read while the winner was there, and the process is gone when it is asked for: it was not killed."""

    def arrange(first: Election, fast: Election) -> Callable[[], bool]:
        ENDING[:] = [lambda: proc.end(101), first.resign]
        return fast.poll

    overtake(stand, layout, kind, arrange)


def test_two_who_take_over_at_once_come_to_an_end(stand: Stand, proc: FakeProc, layout: Layout) -> None:
    """Both would wait for the other, or for the lifetime of a winner who is gone."""
    for nth in range(1, 12):
        for kind in ("names", "readlink", "read_text", "unlink", "symlink"):
            first = stand(101)
            assert first.poll()
            proc.end(101)
            fs = Interposing()
            one, other = stand(102, fs), stand(103)
            won: list[bool] = []
            fs.before(kind, lambda other=other, won=won: won.append(other.poll()), nth=nth)
            mine = one.poll()
            theirs = any(won)
            fs.forget()
            assert not (mine and theirs)
            for _ in range(3):
                if not (mine or theirs):
                    mine = one.poll()
                if not (mine or theirs):
                    theirs = other.poll()
            assert mine or theirs, f"nobody is elected, before {kind} {nth}"
            (one if mine else other).resign()
            first.resign()
            assert "work.lock" not in os.listdir(layout.locks)
            for name in os.listdir(layout.locks):
                os.unlink(f"{layout.locks}/{name}")
