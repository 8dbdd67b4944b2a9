"""Electing one to do what need not be done twice: one downloader of an item, one cleaner of a cache.

flufl.lock elects. Nothing depends on its being right: two who are elected at once do something twice, and nothing
is lost. Beside the lock lies a record of who was elected, so that those who wait can name them, and need not wait
for one who is proved dead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sccache_dtool.clock import Clock
from sccache_dtool.errors import GONE
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import HolderRecord
from sccache_dtool.layout import Layout, unique
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.records import Damaged

if TYPE_CHECKING:
    from flufl.lock import Lock

#: Seconds after which a silent winner is passed over (flufl.lock allows ten more for skewed clocks).
LIFETIME = 300

#: Seconds between two refreshments of a won election.
REFRESH = 60.0

_SLOP = 10


class Election:
    """One election; `poll` until it is won, or until somebody else has done the work."""

    def __init__(
        self,
        fs: FileSystem,
        layout: Layout,
        clock: Clock,
        name: str,
        record: str,
        judge: Callable[[HolderRecord], Verdict],
    ) -> None:
        """`name`: what is to be done, as a file name; `record`: who we are; `judge`: whether another is alive."""
        self._fs = fs
        self._clock = clock
        self._directory = layout.locks
        self._lock_name = f"{name}.lock"
        self._lock_path = f"{layout.locks}/{self._lock_name}"
        self._sign_prefix = f"{name}.by-"
        self._sign_path = f"{layout.locks}/{self._sign_prefix}{unique()}"
        self._record = record
        self._judge = judge
        self._lock: Lock | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def poll(self) -> bool:
        """Whether we are elected now. Never waits; costs one listing while another is at it."""
        found = self._fs.names(self._directory)
        if self._lock_name in found and not self._passed_over(found):
            return False
        return self._try()

    def winner(self) -> str | None:
        """Who was elected, in words; None if nobody is known."""
        for sign in self._signs(self._fs.names(self._directory)):
            record = self._read(sign)
            if record is not None:
                return f"{record}, since {record.since}"
        return None

    def resign(self) -> None:
        """Let others have it; no error if it was taken from us."""
        from flufl.lock import NotLockedError

        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self._fs.unlink(self._sign_path)
        if self._lock is not None:
            with contextlib.suppress(OSError, NotLockedError):
                self._lock.unlock()

    def _try(self) -> bool:
        from flufl.lock import AlreadyLockedError, Lock, TimeOutError

        lock = Lock(self._lock_path, lifetime=LIFETIME)
        try:
            lock.lock(timeout=-1)  # in the past: one attempt, no sleep
        except TimeOutError:
            return False
        except AlreadyLockedError:
            pass  # the reply to the first attempt was lost
        except OSError as error:
            if error.errno in GONE:
                return False
            return self._without_hard_links(error)
        self._lock = lock
        self._fs.put_record(self._record, self._sign_path)
        self._thread = threading.Thread(target=self._refresh, args=(lock,), name="sc-dtool election", daemon=True)
        self._thread.start()
        return True

    def _without_hard_links(self, error: OSError) -> bool:
        """Where there are no hard links nobody can be elected; everybody may work, since nothing depends on it."""
        import errno

        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise error
        self._fs.put_record(self._record, self._sign_path)
        return True

    def _refresh(self, lock: Lock) -> None:
        from flufl.lock import NotLockedError

        while not self._stop.wait(REFRESH):
            try:
                lock.refresh()
            except NotLockedError:
                return  # somebody passed us over: harmless, see above
            except OSError:
                continue

    def _passed_over(self, found: list[str]) -> bool:
        """Take the lock from a winner who is proved dead, or silent for longer than the lifetime.

        Removing the sign has one winner: only who removed it removes the lock, which could be a newer winner's.
        """
        signs = self._signs(found)
        read = [self._read(sign) for sign in signs]
        if not signs or any(record is None or self._judge(record).state is not State.DEAD for record in read):
            return self._expired(signs)
        for name in (*signs, self._lock_name):
            try:
                self._fs.unlink(f"{self._directory}/{name}")
            except OSError as error:
                if error.errno not in GONE:
                    raise
                return False
        return True

    def _expired(self, signs: list[str]) -> bool:
        try:
            until = self._fs.lstat(self._lock_path).st_mtime
        except OSError as error:
            if error.errno not in GONE:
                raise
            return True
        if self._clock.wall() <= until + _SLOP:
            return False
        for name in (*signs, self._lock_name):
            with contextlib.suppress(FileNotFoundError):
                self._fs.unlink(f"{self._directory}/{name}")
        return True

    def _signs(self, found: list[str]) -> list[str]:
        return [name for name in found if name.startswith(self._sign_prefix)]

    def _read(self, sign: str) -> HolderRecord | None:
        try:
            return HolderRecord.decode(self._fs.get_record(f"{self._directory}/{sign}"))
        except (OSError, Damaged):
            return None
