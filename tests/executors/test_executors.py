"""Large scans and removals by an executor: the result of one process, once, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli.tool import SC_DTOOL, Disk, Done, call
from sccache_dtool import executors
from sccache_dtool.cache import Cache
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.executors import Rank, rank_from
from sccache_dtool.pool import Pool
from waiting import PATIENCE, wait_until

PLAY = str(Path(__file__).with_name("play.py"))

#: Items in the cache: enough for each process to have some.
ITEMS = 40


@pytest.fixture
def cache(cache: Cache, source: str) -> Cache:
    """The same with items that nobody uses."""
    for number in range(ITEMS):
        cache.use(source, name=f"item-{number}")
    cache.close()
    return cache


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Where processes leave traces."""
    made = tmp_path / "events"
    made.mkdir()
    return made


@pytest.fixture
def share_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest work is shared."""
    monkeypatch.setattr("sccache_dtool.pool.PROBE", 0.0)
    monkeypatch.setattr("sccache_dtool.pool.WORTH", -1.0)


def number_and_process(number: int) -> tuple[int, int]:
    return number, os.getpid()


def refusing(number: int) -> int:
    if number == 5:
        raise PermissionError(13, "Permission denied", "x")
    return number


def dying(us: int, number: int) -> int:
    if os.getpid() != us and number % 7 == 3:
        os._exit(1)
    return number


# -- any executor of the standard library ------------------------------------------------------------------------------


def test_results_come_in_order_from_all_processes(share_everything: None) -> None:
    """A listing would be shuffled, or only one processor be used."""
    with ProcessPoolExecutor(2) as pool:
        found = list(Pool(1, executor=pool).each(number_and_process, range(400)))
    assert [number for number, _ in found] == list(range(400))
    assert len({pid for _, pid in found}) > 1


def test_an_error_comes_where_its_result_would(share_everything: None) -> None:
    """A scan that failed on another host would look like a small cache."""
    found: list[int] = []
    with ProcessPoolExecutor(2) as pool, pytest.raises(PermissionError, match="Permission denied"):
        found.extend(Pool(1, executor=pool).each(refusing, range(20)))
    assert found == [0, 1, 2, 3, 4]


def test_what_lost_processes_had_is_done_here(share_everything: None, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that the out-of-memory killer ends would take items with it, or end the scan."""
    import functools

    with ProcessPoolExecutor(2) as pool:
        found = list(Pool(1, executor=pool).each(functools.partial(dying, os.getpid()), range(100)))
    assert found == list(range(100))
    assert "its part of the work is done here" in caplog.text


def test_an_executor_that_was_shut_down_ends_no_scan(share_everything: None, caplog: pytest.LogCaptureFixture) -> None:
    """A program that ends its workers too early would see an error instead of what is in the cache."""
    with ProcessPoolExecutor(2) as pool:
        pass
    assert [number for number, _ in Pool(1, executor=pool).each(number_and_process, range(50))] == list(range(50))
    assert [text for text in caplog.messages if "takes no more work" in text] == caplog.messages


def test_an_executor_whose_process_was_killed_before_ends_no_scan(
    share_everything: None, caplog: pytest.LogCaptureFixture
) -> None:
    """After the out-of-memory killer has ended one worker, every command of the program would fail."""
    with ProcessPoolExecutor(2) as pool:
        assert pool.submit(os._exit, 1).exception() is not None
        assert [number for number, _ in Pool(1, executor=pool).each(number_and_process, range(50))] == list(range(50))
    assert len(caplog.messages) == 1


class Slow(Executor):
    """An executor that does the first `most` parts of the work, and takes the others without doing them."""

    def __init__(self, most: int) -> None:
        self.given: list[Future[Any]] = []
        self._most = most

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take a part."""
        future: Future[Any] = Future()
        if len(self.given) < self._most:
            future.set_result(fn(*args, **kwargs))
        self.given.append(future)
        return future


def test_whoever_stops_early_leaves_nothing_to_be_done(share_everything: None) -> None:
    """`sc-dtool ls | head` would let a cluster go on scanning."""
    slow = Slow(1)
    results = Pool(1, executor=slow).each(number_and_process, range(1000))
    assert [next(results)[0], next(results)[0]] == [0, 1]
    results.close()
    assert len(slow.given) > 1
    assert all(future.cancelled() for future in slow.given[1:])


def test_an_executor_that_does_not_answer_does_not_stop_a_scan(
    share_everything: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster that hangs would hang the command for ever."""
    monkeypatch.setattr("sccache_dtool.pool.PATIENCE", 0.001)
    found = list(Pool(1, executor=Slow(3)).each(number_and_process, range(300)))
    assert [number for number, _ in found] == list(range(300))
    assert "does not respond" in caplog.text


def test_a_program_may_bring_its_own_executor(cache: Cache, share_everything: None) -> None:
    """Programs with a pool of their own could not use it for a large cache."""
    with ProcessPoolExecutor(2) as pool:
        scanned = Cache(cache.root, executor=pool)
        assert sum(1 for _ in scanned.items()) == ITEMS


# -- which rank this is ------------------------------------------------------------------------------------------------

SRUN = {"SLURM_TASK_PID": "7", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "4"}


@pytest.mark.parametrize(
    ("environment", "parent", "expected"),
    [
        ({}, "bash", None),
        (MPICH, "hydra_pmi_proxy", Rank(1, 4, True)),
        (MPICH, "python3", None),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "prterun", Rank(0, 2, True)),
        ({**SRUN, **MPICH}, "slurmstepd", Rank(1, 4, True)),
        (SRUN, "slurmstepd", Rank(1, 4, False)),
        ({**SRUN, "SLURM_TASK_PID": "6"}, "sh", None),
        ({**SRUN, **MPICH, "SLURM_TASK_PID": "6"}, "sh", None),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, "slurmstepd", None),
        ({"PMI_RANK": "x", "PMI_SIZE": "y"}, "mpiexec", None),
    ],
)
def test_ranks_are_told_from_what_they_start(environment: dict[str, str], parent: str, expected: Rank | None) -> None:
    """A command that a rank's script calls would wait for other ranks, which do something else."""
    assert rank_from(environment, 7, parent) == expected


# -- MPI ---------------------------------------------------------------------------------------------------------------


def mpiexec(ranks: int, root: Path, events: Path, *words: str, program: str | None = None, **more: str) -> Done:
    """Run `sc-dtool` as so many MPI ranks."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    launcher = Path(sys.executable).with_name("mpiexec")
    if not launcher.exists():
        pytest.skip("mpich is not installed beside this Python")
    command = [program] if program else [sys.executable, PLAY]
    done = subprocess.run(
        [str(launcher), "-n", str(ranks), *command, "-C", str(root), "-f", "json", *words],
        env={**os.environ, "EVENTS": str(events), **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.lab
@pytest.mark.parametrize("words", ["du", "ls", "status", "summary", "clean --all -n"])
def test_ranks_give_the_result_of_one_process(cache: Cache, events: Path, words: str) -> None:
    """`mpiexec -n 4 sc-dtool du` would print its sums four times, or other sums."""
    alone = call("-C", str(cache.root), "-f", "json", *words.split())
    shared = mpiexec(4, cache.root, events, *words.split())
    assert shared.code == alone.code, shared
    assert [_timeless(line) for line in shared.out.splitlines()] == [_timeless(line) for line in alone.out.splitlines()]


def _timeless(line: str) -> dict[str, Any]:
    """A record without what changes from one second to the next."""
    found = json.loads(line)
    return {name: value for name, value in found.items() if name not in ("free_bytes", "free", "now", "percent")}


@pytest.mark.lab
def test_ranks_clean_together(cache: Cache, events: Path) -> None:
    """One rank would do all the work, or the removed items be counted twice."""
    done = mpiexec(3, cache.root, events, "clean", "--all", "-y", "--trash", "1d", WAIT_FOR="3")
    assert done.code == 0, done
    total = done.row("total")
    assert (total["items"], total["failed"], total["gone"]) == (ITEMS, 0, 0)
    assert len(list(events.glob("by-*"))) == 3
    disk = Disk(cache.root)
    assert len(disk.names("trash")) == ITEMS
    assert disk.names("tmp") == disk.names("locks") == disk.holders() == []


@pytest.mark.lab
@pytest.mark.parametrize("rank", [0, 1])
def test_a_clean_that_loses_a_rank_fails_and_the_next_one_finishes(cache: Cache, events: Path, rank: int) -> None:
    """A node that fails would leave the command hanging, or the cache damaged."""
    done = mpiexec(3, cache.root, events, "clean", "--all", "-y", "--trash", "1d", WAIT_FOR="3", KILL_RANK=str(rank))
    assert done.code != 0
    assert '"type": "total"' not in done.out
    again = call("-C", str(cache.root), "-f", "json", "clean", "--all", "-y", "--trash", "1d")
    assert again.code == 0, again
    disk = Disk(cache.root)
    assert disk.copies() == []
    assert len(disk.names("trash")) == ITEMS
    assert call("-C", str(cache.root), "doctor").code == 0


@pytest.mark.lab
def test_without_mpi4py_one_rank_works_alone(cache: Cache, events: Path, tmp_path: Path) -> None:
    """Users without the extra would get a traceback from each rank."""
    hidden = tmp_path / "hidden" / "mpi4py"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no mpi4py here')\n")
    done = mpiexec(2, cache.root, events, "du", PYTHONPATH=str(hidden.parent))
    assert (done.code, done.row("total")["items"]) == (0, ITEMS)
    assert "pip install 'mpi4py" in done.err
    assert done.err.count("mpi4py is not installed") == 1


@pytest.mark.lab
def test_an_error_of_ranks_is_printed_once(tmp_path: Path, events: Path) -> None:
    """A mistyped directory would be reported sixteen times, or leave the other ranks waiting."""
    done = mpiexec(3, tmp_path / "no cache", events, "du", program=SC_DTOOL)
    assert done.code == 10
    assert done.err.count("Error:") == 1


# -- Dask --------------------------------------------------------------------------------------------------------------


class Dask:
    """A scheduler and workers, as processes."""

    def __init__(self, directory: Path, events: Path) -> None:
        pytest.importorskip("distributed", reason="distributed is not installed")
        self.file = directory / "scheduler.json"
        self._running = [
            self._start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
                        "--dashboard-address", "127.0.0.1:0", events=events)
        ]  # fmt: skip
        wait_until(self._is_written, "the scheduler listens")
        self.address = json.loads(self.file.read_text())["address"]
        self.workers = [self._worker(directory, number, events) for number in range(2)]

    def _is_written(self) -> bool:
        """The scheduler makes the file first, and writes into it afterwards."""
        try:
            return bool(json.loads(self.file.read_text()))
        except (OSError, ValueError):
            return False

    def _start(self, module: str, *words: str, events: Path) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(PLAY).parents[1]), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-m", module, "--scheduler-file", str(self.file), *words],
            env={**os.environ, "EVENTS": str(events), "WAIT_FOR": "3", "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _worker(self, directory: Path, number: int, events: Path) -> subprocess.Popen[bytes]:
        place = directory / f"worker-{number}"
        started = self._start(
            "distributed.cli.dask_worker", "--no-nanny", "--no-dashboard", "--nthreads", "1", "--host", "127.0.0.1",
            "--local-directory", str(place), "--preload", "executors.play", events=events,
        )  # fmt: skip
        self._running.append(started)
        return started

    def end(self) -> None:
        """End what was started."""
        for process in reversed(self._running):
            process.kill()
            process.wait(timeout=PATIENCE)


@pytest.fixture
def dask(tmp_path: Path, events: Path) -> Iterator[Dask]:
    """A Dask cluster of two workers."""
    made = Dask(tmp_path, events)
    yield made
    made.end()


def on_dask(cache: Cache, events: Path, place: str, *words: str) -> Done:
    done = subprocess.run(
        [sys.executable, PLAY, "-C", str(cache.root), "-f", "json", "--executor", f"dask:{place}", *words],
        env={**os.environ, "EVENTS": str(events), "WAIT_FOR": "3"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.lab
@pytest.mark.parametrize("by", ["file", "address"])
def test_workers_of_dask_clean_together(cache: Cache, events: Path, dask: Dask, by: str) -> None:
    """One process would do all the work, or the removed items be counted twice."""
    place = str(dask.file) if by == "file" else dask.address
    done = on_dask(cache, events, place, "clean", "--all", "-y", "--trash", "1d")
    assert done.code == 0, done
    total = done.row("total")
    assert (total["items"], total["failed"], total["gone"]) == (ITEMS, 0, 0)
    assert len(list(events.glob("by-*"))) == 3
    assert len(Disk(cache.root).names("trash")) == ITEMS


@pytest.mark.lab
def test_a_worker_of_dask_that_is_killed_costs_nothing(cache: Cache, events: Path, dask: Dask) -> None:
    """A worker that is lost in the middle of a clean would take its part of the result with it."""
    import threading

    def kill_one() -> None:
        wait_until(lambda: len(list(events.glob("by-*"))) >= 2, "two processes are about to evict")
        dask.workers[0].kill()
        (events / "by-nobody").touch()

    killing = threading.Thread(target=kill_one)
    killing.start()
    done = on_dask(cache, events, str(dask.file), "clean", "--all", "-y", "--trash", "1d")
    killing.join()
    assert done.code == 0, done
    total = done.row("total")
    assert (total["items"], total["failed"], total["gone"]) == (ITEMS, 0, 0)
    assert len(Disk(cache.root).names("trash")) == ITEMS


@pytest.mark.parametrize(
    ("place", "insecure", "refused"),
    [
        ("tcp://10.1.2.3:8786", False, True),
        ("tcp://[2001:db8::1]:8786", False, True),
        ("ws://cluster:80", False, True),
        ("tcp://cluster", False, True),
        ("nothing.json", False, True),
    ],
)
def test_a_scheduler_that_runs_anybodys_code_is_refused(place: str, insecure: bool, refused: bool) -> None:
    """Whoever reaches the scheduler's port could delete what the user may delete."""
    with pytest.raises(UsageError), executors.dask(place, insecure=insecure):
        pass


def test_a_scheduler_that_does_not_answer_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that was shut down would be a traceback, or a command that never ends."""
    pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setattr(executors, "DASK_TIMEOUT", 1)
    with pytest.raises(CacheError, match="cannot connect to the Dask scheduler"), executors.dask("tcp://127.0.0.1:9"):
        pass


def test_an_unknown_executor_is_a_usage_error(cache: Cache) -> None:
    """A typing error would be taken for an executor that does nothing."""
    done = call("-C", str(cache.root), "--executor", "spark", "du")
    assert done.code == 2
    assert "dask:ADDRESS" in done.err
