"""Who holds leases: heartbeats, revocations, and listing calls."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults import Call, Counting, Failing, FakeClock, FakeProc, Interposing, LostReplies, OnClock, store_of
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import PROBE, HolderName, Layout
from sccache_dtool.errors import LeaseLost
from sccache_dtool.liveness import State, Verdict, caller
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.caller import CALLER, COMMAND, NAMED, PROGRAM, Owner
from sccache_dtool.liveness.process import OwnProcess, Process
from sccache_dtool.liveness.record import HolderRecord
from sccache_dtool.protocol import holders
from sccache_dtool.protocol.holders import Holder, HolderList
from signals import interrupted

FS = FileSystem()
JOB = Process("b0071d", "4026531836.4026531834", 4242, 1000)
OWNER = Owner(CALLER, JOB, None, "job.sh")
TTL = 3600.0


def entries(layout: Layout) -> list[HolderName]:
    return [name for text in os.listdir(layout.holders) if (name := HolderName.parse(text))]


# -- entering and records ----------------------------------------------------------------------------------------------


def test_a_holder_without_a_lifetime_is_one_call(layout: Layout, clock: FakeClock) -> None:
    """`sc-dtool use` would cost more requests than it must."""
    fs = Counting()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, None)
    assert fs.kinds() == ["symlink"]
    assert [str(name) for name in entries(layout)] == [f"{holder.id}.0.0"]


def test_a_holder_with_a_lifetime_has_its_end_on_the_file_systems_clock(layout: Layout) -> None:
    """A host whose clock is wrong would hold leases for too short, or for ever."""
    server, host = FakeClock(wall=1_900_000_000.0), FakeClock(wall=1_000.0)
    Holder(store_of(OnClock(server), layout, clock=host), OWNER, TTL)
    (name,) = entries(layout)
    assert name.end == 1_900_000_000 + TTL


def test_a_pause_while_entering_does_not_make_the_end_earlier(layout: Layout, clock: FakeClock) -> None:
    """A process that was stopped for a while as it started would beat and be taken for dead all the same."""
    fs = Interposing()
    fs.before("lstat", lambda: clock.let_pass(10 * TTL))
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    (name,) = entries(layout)
    made = os.lstat(f"{layout.holders}/{name}").st_mtime
    assert name.end >= int(made + 10 * TTL + TTL)
    clock.let_pass(100.0)
    holder.beat()
    (later,) = entries(layout)
    assert later.end == name.end + 100


def test_a_lost_reply_to_entering_is_no_error(layout: Layout, clock: FakeClock) -> None:
    """A user whose server restarted would be told that a file exists, and not get the data."""
    fs = LostReplies()
    fs.lose("symlink")
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, None)
    assert [name.id for name in entries(layout)] == [holder.id]


@pytest.mark.parametrize("ttl", [1e15, 1e300])
def test_an_endless_lifetime_is_a_name_that_can_be_read(layout: Layout, clock: FakeClock, ttl: float) -> None:
    """A lease "for ever" would have a holder that nobody finds, and be ended at the next `reap`."""
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, ttl)
    holder.beat()
    assert holder.id in HolderList.complete(store_of(FS, layout)).present


def test_a_full_disk_is_told(layout: Layout, clock: FakeClock) -> None:
    """A lease would be taken in the name of a holder that is nowhere, and be reaped at once."""
    fs = Failing()
    fs.fail("symlink", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        Holder(store_of(fs, layout, clock=clock), OWNER, None)


def test_ids_are_never_used_twice(layout: Layout, clock: FakeClock) -> None:
    """Two holders of one owner would end each other's leases."""
    one, other = (
        Holder(store_of(FS, layout, clock=clock), OWNER, None),
        Holder(store_of(FS, layout, clock=clock), OWNER, None),
    )
    assert one.id != other.id
    assert one.id.startswith(OWNER.prefix)
    assert other.id.startswith(OWNER.prefix)
    assert len({one.next_lease() for _ in range(100)} | {other.next_lease()}) == 101


@pytest.mark.parametrize(
    "owner",
    [
        OWNER,
        Owner(PROGRAM, JOB, None, ""),
        Owner(COMMAND, JOB, None, "x" * 5000),
        Owner(NAMED, None, "run 7", ""),
        Owner(NAMED, None, "\U0001f600" * 100, ""),
    ],
    ids=["caller", "program", "long command", "name", "long name"],
)
@pytest.mark.parametrize("ttl", [None, 1.0, TTL])
def test_a_record_is_read_as_written(layout: Layout, clock: FakeClock, owner: Owner, ttl: float | None) -> None:
    """A holder's own record would count as damaged, and its leases stay for ever."""
    Holder(store_of(FS, layout, clock=clock), owner, ttl)
    (name,) = entries(layout)
    record = holders.read(store_of(FS, layout), name)
    assert (record.kind, record.process, record.ttl) == (owner.kind, owner.process, ttl)
    assert record.host == caller.host_name()
    assert record.user == caller.user_name()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "[]",
        "{}",
        '{"kind":"emperor","ttl":1}',
        '{"kind":"process"}',
        '{"kind":"process","boot":"b","space":"s","pid":"1","start":1}',
        '{"kind":"process","boot":"b","space":"s","pid":1000000000000000000000000000000,"start":1}',
        '{"kind":"name","name":"x","boot":"b","space":"s","pid":1,"start":1}',
        '{"kind":"name","name":"x","ttl":"1h"}',
        '{"kind":"name","name":"x","ttl":-1}',
        '{"kind":"name","name":"x","ttl":true}',
        '{"kind":"name","name":"x","ttl":NaN}',
        '{"kind":"name","name":"x","ttl":Infinity}',
        '{"kind":"name","name":"x","ttl":1e400}',
        f'{{"kind":"name","name":"x","ttl":1{"0" * 400}}}',
        '{"kind":"name","name":"x","ttl":[1]}',
        '{"kind":"command","name":"x"}',
        '{"kind":"job","name":"x"}',
    ],
)
def test_what_no_holder_writes_is_damaged(text: str) -> None:
    """A record made by hand would be believed, or end every command with a traceback."""
    with pytest.raises(records.Damaged):
        HolderRecord.decode(text)


def test_a_record_does_not_drive_the_terminal(layout: Layout, clock: FakeClock) -> None:
    """A name or command of somebody else's could clear the screen of whoever looks."""
    text = records.encode({"kind": "name", "name": "x\x1b[2J", "user": "a\nb", "host": "\x9b", "command": "\u202e"})
    assert str(HolderRecord.decode(text)).isprintable()


# -- heartbeats --------------------------------------------------------------------------------------------------------


def test_a_heartbeat_is_one_call_and_a_new_name(layout: Layout, clock: FakeClock) -> None:
    """Thousands of jobs would load the server with more than they must, or not be seen to live."""
    fs = Counting()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    (before,) = entries(layout)
    fs.calls.clear()
    clock.let_pass(600)
    holder.beat()
    (after,) = entries(layout)
    assert fs.kinds() == ["rename"]
    assert (after.id, after.beats, after.end) == (before.id, before.beats + 1, before.end + 600)


def test_a_lost_reply_to_a_heartbeat_is_no_loss(layout: Layout, clock: FakeClock) -> None:
    """A job would be told to stop because a server restarted."""
    fs = LostReplies()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    fs.lose("rename")
    holder.beat()
    assert fs.lost
    assert not holder.lost
    holder.beat()
    assert [name.beats for name in entries(layout)] == [3]


def test_a_revoked_holder_is_told_at_its_next_heartbeat(layout: Layout, clock: FakeClock) -> None:
    """A job that was taken for dead would go on reading what is being deleted, without a word."""
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, TTL)
    assert holders.revoke(store_of(FS, layout), entries(layout)[0])
    with pytest.raises(LeaseLost, match="were revoked"):
        holder.beat()
    assert holder.lost
    assert not holder.usable
    with pytest.raises(LeaseLost):
        holder.beat()
    assert entries(layout) == []


def test_a_passing_fault_is_no_revocation(layout: Layout, clock: FakeClock) -> None:
    """A server that is away for a minute would end all jobs."""
    fs = Failing()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    fs.fail("rename", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        holder.beat()
    assert not holder.lost
    fs.repair()
    holder.beat()
    assert [name.beats for name in entries(layout)] == [2]


def test_a_directory_that_cannot_be_listed_is_no_revocation(layout: Layout, clock: FakeClock) -> None:
    """A heartbeat whose reply was lost while the server is still half away would end the job."""
    fs = Failing()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    fs.fail("rename", errno.ENOENT)
    fs.fail("names", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        holder.beat()
    assert not holder.lost


def test_a_heart_beats_and_tells_of_its_loss_once(layout: Layout, clock: FakeClock) -> None:
    """A program would not hear that its data may be deleted."""
    told: list[LeaseLost] = []
    heard = threading.Event()

    def hear(error: LeaseLost) -> None:
        told.append(error)
        heard.set()

    beating = threading.Event()
    fs = Interposing()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, 0.01)
    fs.before("rename", beating.set, within=holder.id, nth=3)
    holder.start_heartbeat(hear)
    assert beating.wait(30)
    while not any(holders.revoke(store_of(FS, layout), name) for name in entries(layout)):
        pass
    assert heard.wait(30)
    holder.stop_heartbeat()
    assert len(told) == 1
    assert holder.lost


def test_a_heart_outlives_passing_faults(layout: Layout, clock: FakeClock) -> None:
    """A heart that stops at the first fault would lose the leases of a long job."""
    fs = Failing()
    told: list[LeaseLost] = []
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, 0.01)
    over = threading.Event()
    fs.fail("rename", errno.EIO, within=holder.id, times=3)
    unhurt = fs.handle

    def handle(call: object, do: object) -> object:
        result = unhurt(call, do)  # type: ignore[arg-type]
        over.set()
        return result

    fs.handle = handle  # type: ignore[method-assign, assignment]
    holder.start_heartbeat(told.append)
    assert over.wait(30)
    holder.stop_heartbeat()
    assert told == []
    assert entries(layout)[0].beats >= 2


def test_a_heart_without_a_lifetime_does_not_beat(layout: Layout, clock: FakeClock) -> None:
    """Holders that only their process's end ends would load the server for nothing."""
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, None)
    before = threading.active_count()
    holder.start_heartbeat(lambda error: None)
    assert threading.active_count() == before


@pytest.mark.parametrize("ttl", [None, TTL])
def test_who_retires_leaves_nothing(layout: Layout, clock: FakeClock, ttl: float | None) -> None:
    """Holders of programs that ended well would pile up."""
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, ttl)
    holder.start_heartbeat(lambda error: None)
    holder.retire()
    assert os.listdir(layout.holders) == ["gone"]
    holder.retire()


def test_a_forked_child_does_not_retire_its_parent(layout: Layout, clock: FakeClock) -> None:
    """A worker process that ends would let its parent's leases be reaped."""
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, None)
    child = os.fork()
    if child == 0:
        holder.retire()
        os._exit(0 if not holder.usable and not holder.is_of_this_process else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(entries(layout)) == 1


def test_a_holder_that_has_just_beaten_is_confirmed_without_a_call(layout: Layout, clock: FakeClock) -> None:
    """Each use would load the server with a heartbeat."""
    fs = Counting()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    fs.calls.clear()
    clock.let_pass(holders.pause_between_beats(TTL))
    assert holder.confirm()
    assert fs.calls == []


@pytest.mark.parametrize("clocks", [("boot", "wall"), ("boot",), ("wall",)])
@pytest.mark.parametrize("seconds", [TTL, -TTL])
def test_a_holder_that_has_not_beaten_for_long_is_confirmed_by_a_heartbeat(
    layout: Layout, clock: FakeClock, clocks: tuple[str, ...], seconds: float
) -> None:
    """A program that was suspended, or restored elsewhere, would be given what is deleted under it."""
    fs = Counting()
    one, other = (
        Holder(store_of(fs, layout, clock=clock), OWNER, TTL),
        Holder(store_of(fs, layout, clock=clock), OWNER, TTL),
    )
    if "boot" in clocks:
        clock._boot += seconds
    if "wall" in clocks:
        clock._wall += seconds
    (name,) = [name for name in entries(layout) if name.id == other.id]
    assert holders.revoke(store_of(FS, layout), name)
    fs.calls.clear()
    assert one.confirm()
    assert fs.kinds() == ["rename"]
    assert not other.confirm()
    assert other.lost
    assert one.confirm()


@pytest.mark.parametrize("ttl", [None, TTL])
def test_a_revocation_is_found_out_by_a_heartbeat_however_fresh_the_last(
    layout: Layout, clock: FakeClock, ttl: float | None
) -> None:
    """After a long download a lease would be given to a job that was taken for dead meanwhile."""
    fs = Counting()
    one, other = (
        Holder(store_of(fs, layout, clock=clock), OWNER, ttl),
        Holder(store_of(fs, layout, clock=clock), OWNER, ttl),
    )
    (name,) = [name for name in entries(layout) if name.id == other.id]
    assert holders.revoke(store_of(FS, layout), name)
    fs.calls.clear()
    assert one.prove()
    assert fs.kinds() == ["rename"]
    assert not other.prove()


def test_a_heartbeat_that_cannot_be_sent_confirms_nothing(layout: Layout, clock: FakeClock) -> None:
    """While the server is away, nobody could say that a lease protects anything."""
    fs = Failing()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    clock.let_pass(TTL)
    fs.fail("rename", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        holder.confirm()
    fs.repair()
    assert holder.confirm()


def test_who_was_restored_from_a_checkpoint_confirms_nothing(
    layout: Layout, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that was frozen with its memory and goes on elsewhere would use the leases of what was frozen."""
    frozen = OwnProcess.now()
    if frozen.process is None:
        pytest.skip("processes cannot be identified on this host")
    frozen = frozen._replace(process=frozen.process._replace(start=1))
    monkeypatch.setattr(OwnProcess, "now", lambda: frozen)
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, TTL)
    monkeypatch.undo()
    assert not holder.prove()
    assert not holder.confirm()
    assert not holder.usable
    assert not holder.is_of_this_process


def test_who_has_retired_confirms_nothing(layout: Layout, clock: FakeClock) -> None:
    """A thread would be given a lease in the name of a holder that another thread has just removed."""
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, TTL)
    holder.retire()
    assert not holder.confirm()
    assert not holder.prove()
    with pytest.raises(LeaseLost, match="released by another"):
        raise holder.revoked()


class AfterRename(FileSystem):
    """Runs an act after the next rename, before its caller hears of it."""

    def __init__(self) -> None:
        self.act: Callable[[], object] | None = None

    def rename(self, source: str, target: str, **more: Any) -> None:
        super().rename(source, target, **more)
        act, self.act = self.act, None
        if act is not None:
            act()


def test_who_retires_in_the_middle_of_a_heartbeat_leaves_nothing(layout: Layout, clock: FakeClock) -> None:
    """A signal handler that gives everything back would leave a holder, for as long as the program lives."""
    fs = AfterRename()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    fs.act = holder.retire
    holder.beat()
    assert os.listdir(layout.holders) == ["gone"]
    assert not holder.lost


def test_a_heartbeat_in_the_middle_of_a_heartbeat_is_no_loss(layout: Layout, clock: FakeClock) -> None:
    """A signal handler that uses something would wait for ever, or take the program for revoked."""
    fs = AfterRename()
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    fs.act = holder.beat
    for _ in range(3):
        holder.beat()
    assert not holder.lost
    assert [name.id for name in entries(layout)] == [holder.id]


def test_a_heart_tells_at_once_of_a_loss_that_another_thread_has_found(layout: Layout, clock: FakeClock) -> None:
    """A program would go on reading for minutes what may be deleted, though a part of it knows."""
    heard = threading.Event()
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, TTL)
    holder.start_heartbeat(lambda error: heard.set())
    assert holders.revoke(store_of(FS, layout), entries(layout)[0])
    assert not holder.prove()
    assert heard.wait(60)
    holder.stop_heartbeat()


def test_a_heart_can_be_stopped_while_it_is_being_started_and_stopped(layout: Layout, clock: FakeClock) -> None:
    """A signal handler that gives everything back would wait for ever if the program was just doing that."""
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, TTL)

    def live() -> None:
        holder.start_heartbeat(lambda error: None)
        holder.stop_heartbeat()

    with interrupted(live, holder.stop_heartbeat, "holders.py", "threading.py") as steps:
        assert steps > 50
    assert holder._heartbeat is None


def test_a_heart_is_not_waited_for_by_what_it_tells(layout: Layout, clock: FakeClock) -> None:
    """A program that is told of a loss, and waits for its main thread to stop, would wait for ever if that closes."""
    told, over = threading.Event(), threading.Event()

    def tell(error: LeaseLost) -> None:
        told.set()
        over.wait(60)

    holder = Holder(store_of(FS, layout, clock=clock), OWNER, TTL)
    holder.start_heartbeat(tell)
    assert holders.revoke(store_of(FS, layout), entries(layout)[0])
    assert not holder.prove()
    assert told.wait(60)
    holder.retire()
    over.set()


# -- revocations -------------------------------------------------------------------------------------------------------


def test_a_heartbeat_that_comes_first_wins(layout: Layout, clock: FakeClock) -> None:
    """A holder that lives would lose its leases in spite of a heartbeat."""
    holder = Holder(store_of(FS, layout, clock=clock), OWNER, TTL)
    (seen,) = entries(layout)
    fs = Interposing()
    fs.before("rename", holder.beat)
    assert holders.revoke(store_of(fs, layout), seen) is False
    assert [name.id for name in entries(layout)] == [holder.id]
    assert os.listdir(layout.gone) == []


def test_of_two_who_revoke_one_wins(layout: Layout, clock: FakeClock) -> None:
    """Two cleaners would both believe to have ended a holder, and tell of it twice."""
    Holder(store_of(FS, layout, clock=clock), OWNER, TTL)
    (seen,) = entries(layout)
    assert [holders.revoke(store_of(FS, layout), seen), holders.revoke(store_of(FS, layout), seen)] == [True, False]


def test_a_revocation_that_is_refused_is_an_error(layout: Layout, clock: FakeClock) -> None:
    """A cleaner without permission would end the leases of a holder that does not learn of it."""
    Holder(store_of(FS, layout, clock=clock), OWNER, TTL)
    fs = Failing()
    fs.fail("rename", errno.EACCES)
    with pytest.raises(PermissionError):
        holders.revoke(store_of(fs, layout), entries(layout)[0])


# -- lists of holders --------------------------------------------------------------------------------------------------


def test_a_roll_call_creates_before_it_lists(layout: Layout, clock: FakeClock) -> None:
    """On NFS v3 a holder of the same clock tick would be hidden, and its leases be reaped."""
    Holder(store_of(FS, layout, clock=clock), OWNER, None)
    fs = Counting()
    listing = HolderList.complete(store_of(fs, layout))
    assert fs.kinds()[0] == "symlink"
    assert fs.calls[0].path.startswith(f"{layout.holders}/{PROBE}")
    assert fs.kinds().index("symlink") < fs.kinds().index("names")
    assert listing.is_proof
    assert len(listing.present) == 1


def test_a_roll_call_leaves_no_probe(layout: Layout) -> None:
    """Every look would leave a file in the cache."""
    HolderList.complete(store_of(FS, layout))
    assert os.listdir(layout.holders) == ["gone"]
    fs = Failing()
    fs.fail("names", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        HolderList.complete(store_of(fs, layout))
    assert os.listdir(layout.holders) == ["gone"]


class WholeSeconds(Counting):
    """A file system that keeps times in whole seconds, by a clock that stands still until a test lets time pass."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self._changed = 0

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        if call.kind in ("symlink", "rename", "unlink"):
            self._changed = int(self._clock.wall()) * 10**9
        result = do()
        return self._changed if call.kind == "changed" else result


def test_who_is_missing_is_known_where_times_are_whole_seconds(layout: Layout, clock: FakeClock) -> None:
    """The leases of programs that have ended would stay for ever on such a file system."""
    fs = WholeSeconds(clock)
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)
    listing = HolderList.if_unchanged(store_of(fs, layout, clock=clock))
    assert listing is not None
    assert set(listing.present) == {holder.id}


def test_who_beats_during_a_roll_call_is_noticed_where_times_are_whole_seconds(
    layout: Layout, clock: FakeClock
) -> None:
    """A holder that is renamed during the listing, in the same second, would be missing in it, and lose its leases."""
    fs = WholeSeconds(clock)
    holder = Holder(store_of(fs, layout, clock=clock), OWNER, TTL)

    class Beating(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            clock.let_pass(seconds)
            holder.beat()

    assert HolderList.if_unchanged(store_of(fs, layout, clock=Beating())) is None


@pytest.mark.parametrize("kind", ["symlink", "unlink"])
def test_a_lost_reply_about_the_probe_is_no_error(layout: Layout, kind: str) -> None:
    """No lease could be judged, and no heartbeat saved, while a server restarts."""
    fs = LostReplies()
    fs.lose(kind)
    assert HolderList.complete(store_of(fs, layout)).is_proof
    assert fs.lost
    assert os.listdir(layout.holders) == ["gone"]


def test_a_glance_writes_nothing_and_proves_nothing(layout: Layout) -> None:
    """`status` could not be asked by users who may only read, or would say who has ended without knowing."""
    fs = Counting()
    listing = HolderList.glance(store_of(fs, layout))
    assert set(fs.kinds()) == {"names"}
    assert not listing.is_proof


def test_the_time_of_a_roll_is_the_file_systems(layout: Layout, clock: FakeClock) -> None:
    """Lifetimes would be reckoned by the clock of a cleaner's host."""
    clock.let_pass(12_345)
    assert HolderList.complete(store_of(OnClock(clock), layout)).now == clock.wall()


def test_a_roll_tells_who_is_there_who_was_revoked_and_what_is_strange(layout: Layout, clock: FakeClock) -> None:
    """A revoked holder would count as present, or a stranger's file as a holder."""
    here, revoked = (
        Holder(store_of(FS, layout, clock=clock), OWNER, None),
        Holder(store_of(FS, layout, clock=clock), OWNER, None),
    )
    holders.revoke(store_of(FS, layout), HolderName(revoked.id, 0, 0))
    Path(layout.holders, "README").touch()
    Path(layout.holders, f"{PROBE}0123456789abcdef").touch()
    Path(layout.gone, "notes").touch()
    listing = HolderList.complete(store_of(FS, layout))
    assert set(listing.present) == {here.id}
    assert listing.gone == {revoked.id}
    assert listing.unknown_names == ("README",)


# -- judging -----------------------------------------------------------------------------------------------------------


def _dead(ttl: float | None) -> Verdict:
    return Verdict(State.DEAD, f"lapsed {ttl}")


def _never(ttl: float | None) -> Verdict:
    raise AssertionError("asked")


def record(process: Process | None = JOB, ttl: float | None = TTL) -> HolderRecord:
    return HolderRecord(CALLER if process else NAMED, "h", "u", process, None if process else "n", "", ttl, "?")


def test_a_process_that_is_seen_to_run_outlives_its_lifetime(proc: FakeProc) -> None:
    """A job whose heart stands still for long would lose its leases even on the host that sees it run."""
    proc.add(4242, start=1000)
    assert holder_record.judge(record(), proc, _never).state is State.ALIVE


def test_a_process_that_is_seen_to_be_gone_does_not(proc: FakeProc) -> None:
    """The lease of a killed job would stay until its lifetime ends."""
    assert holder_record.judge(record(), proc, _never).state is State.DEAD


def test_a_process_that_cannot_be_seen_is_judged_by_its_lifetime(proc: FakeProc) -> None:
    """Leases of hosts that crashed would never end."""
    elsewhere = record(JOB._replace(boot="another"))
    verdict = holder_record.judge(elsewhere, proc, _dead)
    assert verdict.state is State.DEAD
    assert "another host" in verdict.evidence
    assert f"lapsed {TTL}" in verdict.evidence


def test_a_name_is_judged_by_its_lifetime_alone(proc: FakeProc) -> None:
    """A named holder would be judged by some process."""
    assert holder_record.judge(record(None), proc, _dead) == _dead(TTL)
