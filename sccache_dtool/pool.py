"""Many pieces of work at a time: threads for I/O-bound work, and processes for CPU-bound work.

Python's threads run one at a time, so that they help only with waiting: a request to a file server takes a thousand
times as long as the processor needs for it. On a local disk, the processor takes the time, and threads make it worse.
The first pieces of work show which of both it is. What is soon done is done without either.
"""

from __future__ import annotations

import functools
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sccache_dtool.fallback import do_without, start_thread
from sccache_dtool.log import Log

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from multiprocessing.connection import Connection

_log = Log(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

#: Threads that wait for a server: where a request takes a millisecond, some ten thousand a second.
THREADS = 32

#: Processes at most: more do not help a scan, whose directories lie on one file system.
_MOST_PROCESSES = 8

#: Seconds of work after which it is known what takes the time.
PROBE = 0.005

#: Seconds that must be left for helpers to be worth their start.
WORTH = 0.1

#: Tasks that are many.
MANY = 1000

#: Tasks that a helper has at a time: one that it works on, and one that it need not wait for.
_AHEAD = 2

#: Results that may be kept for an earlier one that is not there yet, for each helper.
_WINDOW = 16


class Pool:
    """Does work, as many pieces at a time as it is told (`jobs`; None: as many as is good), or in turn (1).

    `each` returns results in the order of the tasks. What is done by other processes must do no harm if it is done
    twice: if one of them is lost, its tasks are done again.
    """

    def __init__(
        self,
        jobs: int | None = 1,
        watch: Callable[[int, int], None] | None = None,
        executor: Executor | None = None,
        *,
        forks: bool = True,
    ) -> None:
        """`watch` is told how many of how many tasks are done. `forks`: False for work that only this process can do.

        `executor`: what does large amounts of work, together with this process: processes of this host or of others,
        that run this package and see the same paths. Without one, threads and forked processes do it.
        """
        self._jobs = jobs
        self.watch = watch or (lambda done, total: None)
        self._executor = executor
        self._forks = forks
        self.helpers: list[Helper] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.dismiss()

    def start_helpers(self) -> None:
        """Start helper processes now: by fork, which is safe only as long as there are no threads.

        One fewer than there are processors, as this process works as well.
        """
        import threading

        wanted = min(processors(), _MOST_PROCESSES if self._jobs is None else self._jobs)
        if self._executor is None and not self.helpers and wanted > 1 and threading.active_count() == 1:
            try:
                for _ in range(wanted - 1):
                    self.helpers.append(Helper(self.helpers))
            except OSError as error:
                do_without(f"cannot start more processes ({error.strerror}): work on a large cache takes longer")

    def start_helpers_for(self, tasks: Sequence[object]) -> None:
        """Start helper processes if there will be much to do, and threads by then."""
        if self._jobs != 1 and len(tasks) > MANY:
            self.start_helpers()

    def dismiss(self) -> None:
        """End the helpers, whatever they are at."""
        for helper in self.helpers:
            helper.end()
        self.helpers = []

    def each(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Generator[Result, None, None]:
        """The results of `work` for each of the tasks, in their order.

        Once the generator is closed, no thread and no helper process of this one works on a task any more.
        """
        total = len(tasks)
        if self._executor is not None and (self._jobs or 1) > 1:  # it has been said that the work waits
            with closing(self.share(work, tasks, waiting=True)) as results:
                for done, result in enumerate(results, 1):
                    yield result
                    self.watch(done, total)
            return
        spent = _Spent(0.0, 0.0, 0)
        for number, task in enumerate(tasks):
            before = _Spent.now()
            result = work(task)
            spent = spent.and_since(before)
            yield result
            done = number + 1
            self.watch(done, total)
            may_share = self._jobs != 1 or self._executor is not None
            if may_share and spent.wall > PROBE and (total - done) * spent.wall / done > WORTH:
                # It has waited for something, rather than for a processor that others are using.
                waiting = spent.cpu < spent.wall / 2 and spent.yields > 0
                with closing(self.share(work, tasks[done:], waiting=waiting)) as results:
                    for result in results:
                        yield result
                        done += 1
                        self.watch(done, total)
                return

    def each_in_pieces(
        self, work: Callable[[Task], Result], tasks: Sequence[Task], size: int
    ) -> Generator[Result, None, None]:
        """As `each`, for tasks so small that `size` of them are assigned together."""
        pieces = [tasks[i : i + size] for i in range(0, len(tasks), size)]
        with closing(self.each(functools.partial(_each_of, work), pieces)) as parts:
            for part in parts:
                yield from part

    def share(
        self, work: Callable[[Task], Result], tasks: Sequence[Task], *, waiting: bool
    ) -> Generator[Result, None, None]:
        """As `each`, by the executor, or by threads or processes. `waiting`: the work waits for something."""
        if self._executor is not None:
            return _by_executor(self._executor, work, tasks, (self._jobs or THREADS) if waiting else 1)
        if waiting:
            return by_threads(work, tasks, self._jobs or THREADS)
        if self._forks:
            self.start_helpers()
        return self.by_processes(work, tasks) if self.helpers else _in_turn(work, tasks)

    def by_processes(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Generator[Result, None, None]:
        """Give the helpers what they can hold, take what they have done, and work as well until there is something."""
        from multiprocessing.connection import wait

        ready: dict[int, Any] = {}
        given = taken = 0
        try:
            while taken < len(tasks):
                most = min(len(tasks), taken + _WINDOW * (1 + len(self.helpers)))
                for helper in self.helpers:
                    while given < most and len(helper.at) < _AHEAD:
                        helper.give(work, given, tasks[given])
                        given += 1
                working: dict[Any, Helper] = {helper.connection: helper for helper in self.helpers if helper.at}
                arrived = wait(list(working), 0 if given < most else None) if working else []
                for connection in arrived:
                    helper = working[connection]
                    try:
                        ready[helper.at.popleft()] = helper.connection.recv()
                    except (EOFError, OSError):  # it was killed: this process does its work
                        self.helpers.remove(helper)
                        helper.end()
                        ready |= {number: attempt(work, tasks[number]) for number in helper.at}
                if not arrived and given < most:
                    ready[given] = attempt(work, tasks[given])
                    given += 1
                while taken in ready:
                    yield ready.pop(taken).get()
                    taken += 1
        finally:
            if any(helper.at for helper in self.helpers):  # the rest is not needed
                self.dismiss()


class _Spent(NamedTuple):
    """What this thread has spent, in seconds."""

    wall: float
    cpu: float
    yields: int  # how often it gave up the processor itself, minus how often it was preempted

    @classmethod
    def now(cls) -> _Spent:
        """What it has spent until now, since an arbitrary time."""
        used = resource.getrusage(resource.RUSAGE_THREAD)
        return cls(time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_nvcsw - used.ru_nivcsw)

    def and_since(self, before: _Spent) -> _Spent:
        """This, and what has been spent since `before`."""
        now = self.now()
        return _Spent(
            self.wall + now.wall - before.wall,
            self.cpu + now.cpu - before.cpu,
            self.yields + now.yields - before.yields,
        )


class TaskResult:
    """A result, or the error that came instead."""

    def __init__(self, result: Any, error: Exception | None) -> None:
        self._result = result
        self._error = error

    def get(self) -> Any:
        """The result. Raises the error."""
        if self._error is not None:
            raise self._error
        return self._result


def attempt(work: Callable[[Any], Any], task: Any) -> TaskResult:
    """What comes of a task."""
    try:
        return TaskResult(work(task), None)
    except Exception as error:
        return TaskResult(None, error)


class Helper:
    """A forked process that does what it is given, until nobody is there to give it more.

    (The processes of Python's own pool outlive a parent that is killed, and it starts a thread, beside which no process
    may be forked.)
    """

    def __init__(self, others: Sequence[Helper]) -> None:
        from multiprocessing import Pipe

        self.at: deque[int] = deque()
        self.connection: Connection[Any, Any]
        self._work: object = None  # which it has
        ours, its = Pipe()
        try:
            self.pid = os.fork()
        except OSError:
            ours.close()
            its.close()
            raise
        if self.pid == 0:
            ours.close()
            for other in others:
                other.connection.close()  # or its helper would not see that this process is gone
            _serve(its)
        its.close()
        self.connection = ours

    def give(self, work: Callable[[Any], Any], number: int, task: Any) -> None:
        """Give it a task. That it is dead is found when its answer is wanted.

        What is to be done may be large, such as with all pins of a cache. It is sent only to a helper that has no task:
        if both sides sent more than a pipe holds, each would wait for the other.
        """
        message = (None if work is self._work else work, task)
        self.at.append(number)
        self._work = work
        try:
            self.connection.send(message)
        except OSError:
            pass

    def end(self) -> None:
        """End it."""
        self.connection.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def _serve(connection: Connection[Any, Any]) -> None:
    """What a helper does; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which then ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work: Any = None
    try:
        while True:
            new, task = connection.recv()
            work = new or work
            connection.send(attempt(work, task))
    except BaseException:
        os._exit(0)  # the parent is gone; what it would tidy at its end is not this process's


def _each_of(work: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    return [work(task) for task in tasks]


def _in_turn(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Generator[Result, None, None]:
    for task in tasks:
        yield work(task)


def by_threads(work: Callable[[Task], Result], tasks: Sequence[Task], number: int) -> Generator[Result, None, None]:
    """As `Pool.each`, in `number` threads."""
    with Threads(number) as pool:
        pending: deque[Future[Result]] = deque()
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) > 2 * number:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


#: Tasks of a part of the work for each thread that does it, at most: of larger parts, nothing is heard for too long.
_ROUNDS = 8

#: Parts at most, unless they have that many tasks; and parts that an executor has that does not say how many processes
#: it has.
_PARTS, OUTSTANDING = 256, 32

#: Seconds without any result after which that is reported, and reports before this process does work of the executor's.
PATIENCE, _REPORTS = 60.0, 10


class _Part(NamedTuple):
    """A part of the work that is being done: by the executor, or by this process."""

    tasks: Sequence[Any]
    outcomes: Future[list[TaskResult]]
    given: bool  # to the executor


def _by_executor(
    executor: Executor, work: Callable[[Task], Result], tasks: Sequence[Task], threads: int
) -> Generator[Result, None, None]:
    """The results of `work`, by an executor and by this process. `threads`: of each process.

    Each process of the executor has one part at a time, with its share of what is left, so that the parts become
    smaller, and all end at nearly the same time. This process does single tasks meanwhile. A part whose process is lost
    is done here, unless the executor has it done again by itself.
    """
    workers = _workers(executor)
    most = max(_ROUNDS * threads, -(-len(tasks) // _PARTS))
    pending: dict[int, _Part] = {}  # by the number of its first task
    given = taken = silent = 0
    accepts = True  # whether the executor takes parts
    pool = Threads(threads if threads > 1 else 0)
    do_here = functools.partial(_do_part, work, threads=1)
    try:
        while taken < len(tasks):
            running = [part for part in pending.values() if not part.outcomes.done()]
            at_executor = sum(part.given for part in running)
            if accepts and given < len(tasks) and at_executor < workers:
                size = min(most, -(-(len(tasks) - given) // (workers + 1)))
                share = tasks[given : given + size]
                try:
                    pending[given] = _Part(share, executor.submit(_do_part, work, share, threads), True)
                except Exception as error:  # it was shut down, or has lost a process
                    accepts = False
                    _log.warning(f"the executor takes no more work ({error}); the rest is done here")
                else:
                    given += len(share)
            elif taken in pending and pending[taken].outcomes.done():
                part = pending.pop(taken)
                for outcome in _collected(part, work, threads):
                    yield outcome.get()
                taken += len(part.tasks)
            elif given < len(tasks) and len(running) - at_executor < threads and len(pending) < _PARTS:
                share = tasks[given : given + 1]
                pending[given] = _Part(share, pool.submit(do_here, share), False)
                given += 1
            elif _has_ended([part.outcomes for part in running]):
                silent = 0
            elif silent < _REPORTS or not pending[taken].given:
                silent += 1
                _log.warning(f"waiting for {len(running)} parts of the work, {at_executor} of which the executor has")
            else:
                _log.warning("the executor does not respond; this process does the next part of the work")
                part = pending[taken]
                part.outcomes.cancel()
                pending[taken] = _Part(part.tasks, pool.submit(do_here, part.tasks), False)
    finally:
        for part in pending.values():
            part.outcomes.cancel()
        pool.end()


def _workers(executor: Executor) -> int:
    """How many processes an executor has; a guess, if it does not say."""
    known = (getattr(executor, name, None) for name in ("num_workers", "_max_workers"))  # mpi4py's, Python's own
    return next((number for number in known if isinstance(number, int) and number > 0), OUTSTANDING)


def _do_part(work: Callable[[Task], Result], tasks: Sequence[Task], threads: int) -> list[TaskResult]:
    """What comes of each task. Runs in any process: it may start threads, and forks nothing."""
    each = functools.partial(attempt, work)
    return list(by_threads(each, tasks, threads) if min(threads, len(tasks)) > 1 else _in_turn(each, tasks))


def _collected(part: _Part, work: Callable[[Task], Result], threads: int) -> list[TaskResult]:
    try:
        return part.outcomes.result()
    except Exception as error:  # of the executor, not of the work, whose errors are outcomes
        _log.warning(f"a process of the executor was lost ({error}); its part of the work is done here")
        return _do_part(work, part.tasks, threads)


def _has_ended(futures: Sequence[Future[list[TaskResult]]]) -> bool:
    """Wait until one of them has ended; False if none does for long."""
    from concurrent.futures import FIRST_COMPLETED, wait

    return bool(wait(futures, PATIENCE, FIRST_COMPLETED).done)


class Threads:
    """Threads for I/O-bound work. Where the system gives none, the work is done by the caller. A context manager.

    After its end no thread begins a task, and those that were begun have ended. (Python's own pool fails where the
    system gives no thread, and does not wait for one that it was starting when a Ctrl-C came.)
    """

    def __init__(self, most: int, patience: float | None = None) -> None:
        """`most`: threads that are started at most.

        `patience`: how many seconds to wait for tasks that are running if the block ends by an error; None: until all
        have ended. They are left in threads that end with this process.
        """
        from queue import SimpleQueue
        from threading import Condition

        self._most = most
        self._patience = patience
        self._started = 0
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._changed = Condition()
        self._running = 0
        self._is_over = False

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.end(None if kind is None else self._patience)

    def submit(self, work: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Have a task done; what comes of it is in the future that is returned."""
        from concurrent.futures import Future

        future: Future[Result] = Future()

        def do() -> None:
            with self._changed:
                if self._is_over or not future.set_running_or_notify_cancel():
                    future.cancel()
                    return
                self._running += 1
            try:
                result = work(task)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

        if self._is_over:
            future.cancel()
            return future
        if self._started < self._most:
            if start_thread(self._serve, "sc-dtool pool", "work that waits for a server takes longer") is None:
                self._most = self._started
            else:
                self._started += 1
        if self._started:
            self._tasks.put(do)
        else:
            do()
        return future

    def end(self, patience: float | None = None) -> None:
        """Begin no more tasks, and wait for those that are running, for at most `patience` seconds."""
        with self._changed:
            self._is_over = True
            self._changed.wait_for(lambda: not self._running, patience)
        self._tasks.put(None)

    def _serve(self) -> None:
        while (do := self._tasks.get()) is not None:
            do()
        self._tasks.put(None)  # for the next thread


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
