"""Many pieces of work at a time: in order, complete, and none the worse for a helper that dies."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sccache_dtool.pool import Pool, Threads
from waiting import PATIENCE, wait_until


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is too little work to be shared."""
    monkeypatch.setattr("sccache_dtool.pool.PROBE", 0.0)
    monkeypatch.setattr("sccache_dtool.pool.WORTH", -1.0)
    monkeypatch.setattr("sccache_dtool.pool.processors", lambda: 3)


@pytest.fixture
def helped(at_once: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool that has helpers, whatever takes the time, and whatever threads other tests have left."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with Pool(None) as made:
        made.start_helpers()
        assert len(made.helpers) == 2
        made.share = lambda work, tasks, waiting: made.by_processes(work, tasks)  # type: ignore[method-assign]
        yield made


def number_and_process(number: int) -> tuple[int, int]:
    return number, os.getpid()


def test_work_that_is_soon_done_is_done_by_ourselves() -> None:
    """Every `du` of a small cache would start processes."""
    with Pool(None) as made:
        assert {pid for _, pid in made.each(number_and_process, range(500))} == {os.getpid()}
        assert not made.helpers


def test_results_come_in_order_from_several_processes(helped: Pool) -> None:
    """A listing would be shuffled, or only one processor be used."""
    found = list(helped.each(number_and_process, range(200)))
    assert [number for number, _ in found] == list(range(200))
    assert len({pid for _, pid in found}) == 3


def killing(marker: str, us: int, number: int) -> int:
    """Kill the first helper that gets something to do."""
    if os.getpid() != us:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return number
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_small_tasks_are_handed_out_together(helped: Pool) -> None:
    """A million copies would each cost a message to another process."""
    found = list(helped.each_in_pieces(number_and_process, range(95), 10))
    assert [number for number, _ in found] == list(range(95))
    assert all(len({pid for _, pid in found[i : i + 10]}) == 1 for i in range(0, 95, 10))
    assert list(helped.each_in_pieces(number_and_process, range(0), 10)) == []


def test_what_a_killed_helper_was_at_is_done_all_the_same(helped: Pool, tmp_path: Path) -> None:
    """An out-of-memory killer would make items vanish from a listing, or hang it."""
    work = functools.partial(killing, str(tmp_path / "killed"), os.getpid())
    assert list(helped.each(work, range(100))) == list(range(100))
    assert len(helped.helpers) == 1


def test_all_helpers_may_die(helped: Pool) -> None:
    """The last one's death would end the scan."""
    for helper in helped.helpers:
        os.kill(helper.pid, signal.SIGKILL)
    assert [number for number, _ in helped.each(number_and_process, range(50))] == list(range(50))


def as_large(given: bytes, number: int) -> bytes:
    return given


def test_large_work_with_large_results_comes_to_an_end(helped: Pool) -> None:
    """`clean` would hang in a cache with a million items and thousands of pins: both sides would wait for the other."""
    large = bytes(2_000_000)  # more than a pipe holds
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(int(PATIENCE))
    try:
        assert all(result == large for result in helped.each(functools.partial(as_large, large), range(20)))
    finally:
        signal.alarm(0)


def test_a_helper_does_one_work_after_another(helped: Pool) -> None:
    """The second pass over a cache would give the results of the first."""
    for text in (b"a", b"b"):
        assert set(helped.each(functools.partial(as_large, text), range(20))) == {text}


def refusing(number: int) -> int:
    if number == 5:
        raise PermissionError(13, "Permission denied", "x")
    return number


def test_an_error_comes_where_its_result_would(helped: Pool) -> None:
    """A scan that failed would look like a small cache."""
    found: list[int] = []
    with pytest.raises(PermissionError, match="Permission denied"):
        found.extend(helped.each(refusing, range(20)))
    assert found == [0, 1, 2, 3, 4]


def test_whoever_stops_early_leaves_nobody_behind(at_once: None) -> None:
    """`sc-dtool ls | head` would leave processes that go on scanning."""
    with Pool(None) as made:
        made.start_helpers()
        pids = [helper.pid for helper in made.helpers]
        results = made.by_processes(number_and_process, range(1000))
        assert next(results)[0] == 0
        results.close()  # type: ignore[attr-defined]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_waiting_is_shared_by_threads(at_once: None) -> None:
    """A scan of a server a millisecond away would take a millisecond for each directory."""
    together = threading.Barrier(8)

    def wait(number: int) -> int:
        if number == 0:
            for _ in range(20):  # what a server takes: this is how the pool sees that it is waited for
                time.sleep(0.0025)  # many times, as others on this machine take the processor from us now and then
        else:
            together.wait(timeout=30)  # passes only if eight are at it at a time
        return number

    assert list(Pool(8).each(wait, range(17))) == list(range(17))


def test_no_thread_works_once_its_pool_has_ended() -> None:
    """After a Ctrl-C a thread would go on evicting, and the record of the cleaning would not know of it."""
    pool = Threads(1)
    begun, may_end = threading.Event(), threading.Event()
    done: list[int] = []
    seen: list[list[int]] = []

    def work(number: int) -> None:
        begun.set()
        assert may_end.wait(timeout=30)
        done.append(number)

    def end() -> None:
        pool.end()
        seen.append([*done])

    pool.submit(work, 1)
    assert begun.wait(timeout=30)
    queued = pool.submit(work, 2)
    ending = threading.Thread(target=end)
    ending.start()
    wait_until(lambda: pool._is_over, "the pool refuses what is new")
    may_end.set()
    ending.join(timeout=30)
    assert seen == [[1]]
    assert pool.submit(work, 3).cancelled()
    assert done == [1]
    assert not queued.running()


@pytest.mark.parametrize("given", [0, 2])
def test_all_is_done_where_there_are_few_threads(no_thread: Callable[[int], None], given: int) -> None:
    """On a login node that limits processes, `clean` would fail on a server that is a millisecond away."""
    no_thread(given)
    with Threads(8) as pool:
        coming = [pool.submit(lambda number: 2 * number, number) for number in range(50)]
        assert [one.result() for one in coming] == [2 * number for number in range(50)]
        assert pool._started == given


def test_all_is_done_where_no_process_can_be_started(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a scan of a large cache on a local disk would fail."""

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr("os.fork", refuse)
    with Pool(None) as made:
        made.start_helpers()
        assert list(made.each(number_and_process, range(200))) == [(number, os.getpid()) for number in range(200)]


def test_one_job_is_one_at_a_time(at_once: None) -> None:
    """`--jobs 1`, and programs that use `Cache`, would get threads that they did not ask for."""
    used: set[int] = set()

    def note(number: int) -> int:
        used.add(threading.get_ident())
        return number

    assert list(Pool(1).each(note, range(50))) == list(range(50))
    assert used == {threading.get_ident()}


def test_no_fork_beside_threads(at_once: None) -> None:
    """A lock that another thread holds would be held for ever in the helper."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        with Pool(None) as made:
            made.start_helpers()
            assert not made.helpers
            assert list(made.each(refusing, range(5))) == list(range(5))
    finally:
        ended.set()
        thread.join()


def test_the_watch_is_told_of_every_piece(helped: Pool) -> None:
    """A progress display would stand still, or never end."""
    told: list[tuple[int, int]] = []
    helped.watch = lambda done, total: told.append((done, total))
    list(helped.each(number_and_process, range(10)))
    assert told == [(number + 1, 10) for number in range(10)]
