"""Fetches for locks: the only thing that goes on in the server after an answer.

If the server is killed, each is an ordinary abandoned work area, which the next process to want the item continues.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from sccache_dtool.errors import CacheError, LeaseLost
from sccache_dtool.log import Log
from sccache_dtool.serve.answers import Refused, of_os
from sccache_dtool.sets.handle import Session
from sccache_dtool.sets.locks import Begun

_log = Log(__name__)

#: Items that are fetched, or waited for, at a time; the number of downloads of a host is bounded by the cache.
AT_A_TIME = 32

#: Seconds that the end of the server waits for fetches to stop.
_LONGEST_STOP = 10.0

#: Locks that may wait.
_MOST_WAITING = 10_000


class _Stopped(BaseException):
    """Ends a fetch like Ctrl-C: what has come is kept, and the next process that wants the item continues."""


class Fetches:
    """Fetches items of locks in threads: for each item one after the other, so that only the first one fetches.

    It is the progress display of the caches that fetch, too, by which it can stop them.
    """

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._waiting: dict[str, deque[tuple[Session, Begun]]] = {}
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(AT_A_TIME, "sc-dtool fetch")

    def begin(self, session: Session, begun: Begun) -> None:
        """Fetch the item of a lock, which ends as the lock does. Returns at once. Raises Refused."""
        key = begun.request.key
        with self._lock:
            if self._stopping.is_set() or sum(map(len, self._waiting.values())) >= _MOST_WAITING:
                begun.abandon()
                raise Refused(503, "too many locks wait for their items", "try again later")
            queue = self._waiting.get(key)
            if queue is not None:
                queue.append((session, begun))
                return
            self._waiting[key] = deque([(session, begun)])
        self._threads.submit(self._run, key)

    def _run(self, key: str) -> None:
        while True:
            with self._lock:
                queue = self._waiting[key]
                if not queue:
                    del self._waiting[key]
                    self._lock.notify_all()
                    return
                session, begun = queue[0]
            try:
                self._check()
                session.finish_lock(begun)
            except LeaseLost:
                begun.abandon()  # its session has ended, which is no fault of the source
            except (CacheError, OSError) as error:
                begun.note_failure(of_os(error) if isinstance(error, OSError) else error)
            except _Stopped:
                begun.abandon()
            except Exception as error:  # a bug must not keep the others of the item waiting
                _log.warning(f"cannot fetch {begun.request.label}: {type(error).__name__}: {error}")
                begun.note_failure(CacheError(f"{type(error).__name__}: {error}"))
            finally:
                with self._lock:
                    queue.popleft()

    def stop(self) -> None:
        """Stop all fetches, so that others continue them at once. A server that does not answer is not waited for."""
        self._stopping.set()
        self._threads.shutdown(wait=False)
        with self._lock:
            self._lock.wait_for(lambda: not self._waiting, _LONGEST_STOP)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    # What follows are the calls of a fetch; see `fetch.progress.Progress`.

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        """Stop if asked to."""
        self._check()

    def advance(self, n: int) -> None:
        """Stop if asked to."""
        self._check()

    def stage(self, text: str) -> None:
        """Stop if asked to."""
        self._check()

    def waiting(self, label: str, done: int, total: int | None) -> None:
        """Stop if asked to."""
        self._check()

    def done(self) -> None:
        """Nothing is shown."""
