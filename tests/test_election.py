"""Electing one to do what need not be done twice."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flufl.lock._lockfile
import pytest

from faults import Counting, Failing, FakeClock, FakeProc, LostReplies, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness import State, Verdict, caller
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.lifetime import Memory
from sccache_dtool.liveness.record import HolderRecord
from sccache_dtool.protocol import election
from sccache_dtool.protocol.election import Election

Standing = Callable[..., Election]


class Wrongly(FileSystem):
    """Removes one name, and then reports an error."""

    def __init__(self, within: str, error: int) -> None:
        self._within = within
        self._error = error
        self.answered = False

    def unlink(self, path: str) -> None:
        super().unlink(path)
        if self._within in path and not self.answered:
            self.answered = True
            raise OSError(self._error, os.strerror(self._error), path)


def judge_as(state: State) -> Callable[[HolderRecord], Verdict]:
    return lambda record: Verdict(state, "as the test says")


@pytest.fixture
def stand(layout: Layout, clock: FakeClock, proc: FakeProc) -> Standing:
    """Stands in the election "work", in the name of a process."""

    def stand(
        pid: int = os.getpid(),
        state: State = State.ALIVE,
        fs: FileSystem | None = None,
        seen_by: FakeClock | None = None,
    ) -> Election:
        if proc.stat(pid) is None:
            proc.add(pid, "job")
        record = holder_record.encode(caller.process_owner(caller.CALLER, proc, pid), None, clock)
        memory = Memory(str(layout.root) + ".memory", seen_by or clock)
        return Election(store_of(fs or FileSystem(), layout), "work", record, judge_as(state), memory)

    return stand


def test_one_is_elected_and_the_others_learn_whom(stand: Standing) -> None:
    """An item that many jobs want would be fetched by each of them, and nobody could tell who is at it."""
    first, second = stand(101), stand(102)
    assert first.poll() is True
    assert second.poll() is False
    assert "process 101 (job)" in (second.winner() or "")
    first.resign()
    assert second.winner() is None
    assert second.poll() is True
    second.resign()


def test_no_name_server_is_asked(stand: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a dead name server each miss would stand still for half a minute before anything is fetched."""
    asked: list[object] = []
    for name in ("getfqdn", "gethostbyaddr", "getaddrinfo"):
        monkeypatch.setattr(socket, name, lambda *given: asked.append(given) or "elsewhere")
    one = stand()
    assert one.poll()
    one.resign()
    assert asked == []
    assert flufl.lock._lockfile.socket is socket  # as it was, for whoever else uses flufl.lock in this process


def test_who_resigns_leaves_nothing(stand: Standing, layout: Layout) -> None:
    """Every download would leave files in the cache."""
    one = stand()
    assert one.poll()
    one.resign()
    assert os.listdir(layout.locks) == []
    one.resign()


def test_a_lock_that_cannot_be_read_for_a_moment_is_given_back(stand: Standing, layout: Layout) -> None:
    """After a fault of the network at the end of a cleaning, nobody could clean for five minutes."""
    fs = Failing()
    one = stand(fs=fs)
    assert one.poll()
    fs.fail("read_text", errno.EACCES, within=".lock", times=1)
    one.resign()
    assert os.listdir(layout.locks) == []


def test_a_lock_that_stays_says_whose_it_is(stand: Standing, layout: Layout) -> None:
    """Once its process has ended, others would have to wait although they could know."""
    fs = Failing()
    one = stand(fs=fs)
    assert one.poll()
    fs.fail("read_text", errno.EIO, within=".lock")
    one.resign()
    assert one.sign in os.listdir(layout.locks)
    assert stand(state=State.DEAD).poll()


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ESTALE])
@pytest.mark.parametrize("within", [".by-", ".lock"])
def test_who_passes_over_the_dead_goes_on_after_an_answer_that_may_be_wrong(
    stand: Standing, layout: Layout, within: str, error: int
) -> None:
    """A request that is repeated is told that there is nothing: the lock would stay, and nobody could know whose."""
    killed = stand(101)
    assert killed.poll()
    fs = Wrongly(within, error)
    second = stand(102, State.DEAD, fs=fs)
    assert second.poll() or second.poll()
    assert fs.answered
    assert [name for name in os.listdir(layout.locks) if ".by-" in name] == [second.sign]
    second.resign()
    assert [name for name in os.listdir(layout.locks) if "|" not in name] == []


@pytest.mark.parametrize("within", [".by-", ".lock"])
def test_who_fails_to_pass_over_the_dead_works_all_the_same(stand: Standing, layout: Layout, within: str) -> None:
    """A cleaner that met a fault of the network, and died, would keep all others from cleaning for five minutes."""
    killed = stand(101)
    assert killed.poll()
    fs = Failing()
    fs.fail("unlink", errno.EIO, within=within, times=1)
    unlucky = stand(102, State.DEAD, fs=fs)
    assert unlucky.poll()
    unlucky.resign()
    assert unlucky.sign in os.listdir(layout.locks)
    last = stand(103, State.DEAD)
    assert last.poll()
    last.resign()
    killed.resign()


def test_a_lock_that_is_ours_in_spite_of_an_error_has_a_sign(
    stand: Standing, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, when the reply to the lock itself was lost."""
    link = os.link

    def link_and_fail(*arguments: Any, **more: Any) -> None:
        link(*arguments, **more)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("os.link", link_and_fail)
        unlucky = stand(101)
        assert unlucky.poll()
    found = os.listdir(layout.locks)
    assert ("work.lock" in found) == (unlucky.sign in found)
    last = stand(102, State.DEAD)
    assert last.poll()
    last.resign()


def test_a_poll_while_another_works_lists_nothing(stand: Standing) -> None:
    """A thousand jobs that wait would load the server with lock attempts, or with the names of other elections."""
    winner = stand()
    assert winner.poll()
    fs = Counting()
    loser = stand(fs=fs)
    assert loser.poll() is False
    assert "symlink" not in fs.kinds()
    assert "names" not in fs.kinds()
    winner.resign()


def test_a_winner_that_is_proved_dead_is_passed_over_at_once(stand: Standing, layout: Layout) -> None:
    """After a fetcher was killed everybody would wait for minutes."""
    killed = stand(101)
    assert killed.poll()
    next_one = stand(102, State.DEAD)
    assert next_one.poll() is True
    assert "process 102" in (next_one.winner() or "")
    killed.resign()  # it was only stopped, and wakes up: nothing of the other's is touched
    assert "process 102" in (next_one.winner() or "")
    next_one.resign()
    # What flufl.lock leaves of the one that was passed over is its claim; the leftovers's business.
    assert [name for name in os.listdir(layout.locks) if "|" not in name] == []


@pytest.mark.parametrize("state", [State.ALIVE, State.UNKNOWN])
def test_a_winner_that_may_be_alive_is_waited_for(stand: Standing, state: State) -> None:
    """A download on another host would be done twice."""
    winner = stand(101)
    assert winner.poll()
    assert stand(102, state).poll() is False
    winner.resign()


def test_a_winner_of_whom_nothing_can_be_read_is_waited_for_until_its_time_is_up(
    stand: Standing, layout: Layout
) -> None:
    """A fetcher that was killed before it signed would stop its item for ever, or be overtaken while it works."""
    winner = stand(101)
    assert winner.poll()
    for name in os.listdir(layout.locks):
        if ".by-" in name:
            os.unlink(f"{layout.locks}/{name}")
    clock = FakeClock()
    late = stand(102, State.DEAD, seen_by=clock)
    assert late.poll() is False
    assert late.winner() is None
    clock.let_pass(election.LIFETIME)
    assert late.poll() is False
    clock.let_pass(1)
    assert late.poll() is True
    winner.resign()
    late.resign()


def test_a_silent_winner_is_passed_over_in_time(stand: Standing, layout: Layout) -> None:
    """After a fetcher's host has crashed, nobody could ever fetch its item."""
    winner = stand(101)
    assert winner.poll()
    clock = FakeClock()
    late = stand(102, State.UNKNOWN, seen_by=clock)
    assert late.poll() is False
    clock.let_pass(election.LIFETIME + 1)
    assert late.poll() is True
    assert "process 102" in (late.winner() or "")
    late.resign()
    winner.resign()


@pytest.mark.parametrize("ahead", [-400 * 86_400, -3600, 3600, 400 * 86_400])
def test_a_winner_whose_clock_is_wrong_is_waited_for(stand: Standing, layout: Layout, ahead: float) -> None:
    """Hosts whose clocks are an hour apart would take each download from each other, and none would ever be done."""
    winner = stand(101)
    assert winner.poll()
    path = f"{layout.locks}/work.lock"
    os.utime(path, (0, os.stat(path).st_mtime + ahead))
    assert stand(102, State.UNKNOWN).poll() is False
    winner.resign()


def test_a_winner_that_goes_on_is_never_passed_over(stand: Standing, layout: Layout) -> None:
    """A download of some hours would be begun again every few minutes."""
    winner = stand(101)
    assert winner.poll()
    clock = FakeClock()
    late = stand(102, State.UNKNOWN, seen_by=clock)
    path = f"{layout.locks}/work.lock"
    for minute in range(60):
        assert late.poll() is False
        clock.let_pass(60)
        os.utime(path, (0, 1000 + minute))
    winner.resign()


def test_cron_jobs_that_look_once_remember_what_they_saw(stand: Standing) -> None:
    """A cleaner that has died on another host would keep all others from cleaning for ever."""
    winner = stand(101)
    assert winner.poll()
    clock = FakeClock()
    assert stand(102, State.UNKNOWN, seen_by=clock).poll() is False
    clock.let_pass(election.LIFETIME + 1)
    late = stand(103, State.UNKNOWN, seen_by=clock)
    assert late.poll() is True
    late.resign()
    winner.resign()


def test_the_lock_is_held_for_minutes(stand: Standing, layout: Layout) -> None:
    """With flufl.lock's default of 15 s a fetcher that is slow for a moment would be overtaken."""
    winner = stand()
    assert winner.poll()
    path = f"{layout.locks}/work.lock"
    assert os.stat(path).st_mtime - os.stat(path).st_ctime > election.LIFETIME - 5
    assert election.REFRESH * 3 < election.LIFETIME
    winner.resign()


@pytest.mark.parametrize("text", ["", "garbage", "{}"])
def test_a_sign_that_nobody_can_read_is_no_proof_of_death(stand: Standing, layout: Layout, text: str) -> None:
    """A newer release's fetcher would be overtaken."""
    winner = stand(101)
    assert winner.poll()
    (sign,) = (name for name in os.listdir(layout.locks) if ".by-" in name)
    os.unlink(f"{layout.locks}/{sign}")
    Path(layout.locks, sign).write_text(text)
    assert stand(102, State.DEAD).poll() is False
    winner.resign()


def test_elections_for_different_work_do_not_disturb_each_other(
    stand: Standing, layout: Layout, clock: FakeClock
) -> None:
    """One download at a time would be all that a cache can do."""
    one = stand()
    other = Election(store_of(FileSystem(), layout), "wor", "{}", judge_as(State.DEAD), Memory(None, clock))
    assert one.poll()
    assert other.poll()
    assert other.winner() is None  # and not the winner of "work"
    one.resign()
    other.resign()


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_hard_links_everybody_may_work(
    stand: Standing, layout: Layout, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """On file systems without hard links nothing could ever be fetched."""

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("os.link", refuse)
    one, other = stand(101), stand(102)
    assert one.poll() is True
    assert other.poll() is True
    one.resign()
    other.resign()
    assert not [name for name in os.listdir(layout.locks) if ".by-" in name]


def test_on_a_full_disk_everybody_may_work(stand: Standing, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cleaner, who makes room, could not begin; who fetches learns of the full disk soon enough."""

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.link", refuse)
    standing = stand()
    assert standing.poll() is True
    standing.resign()
    assert os.listdir(layout.locks) == []


def test_there_is_no_lock_without_a_sign(stand: Standing, layout: Layout) -> None:
    """A cleaner that is killed on a disk without room for its sign would keep all others waiting for minutes."""
    fs = Failing()
    fs.fail("symlink", errno.EDQUOT)
    standing = stand(fs=fs)
    assert standing.poll() is True
    assert os.listdir(layout.locks) == []
    standing.resign()


def test_a_lock_that_vanishes_while_it_is_looked_at_is_free(stand: Standing) -> None:
    """A job would fail because another has just finished."""
    winner = stand(101)
    assert winner.poll()
    fs = Failing()
    fs.fail("lstat", errno.ENOENT)
    fs.fail("readlink", errno.ENOENT)
    late = stand(102, fs=fs)
    winner.resign()
    assert late.poll() is True
    late.resign()


def test_a_lost_reply_to_the_sign_is_no_error(stand: Standing, layout: Layout) -> None:
    """A download would fail because the server restarted."""
    fs = LostReplies()
    fs.lose("symlink")
    one = stand(fs=fs)
    assert one.poll() is True
    assert fs.lost
    one.resign()
    assert os.listdir(layout.locks) == []
