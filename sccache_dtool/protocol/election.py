"""Electing one to do what need not be done twice: one downloader of an item, one cleaner of a cache.

flufl.lock elects. Nothing depends on its being right: two who are elected at once do something twice, and nothing
is lost. Beside the lock lies a record of who was elected, so that those who wait can name them, and need not wait
for one who is proved dead.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

from flufl.lock import AlreadyLockedError, Lock, NotLockedError, TimeOutError

from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import LOCK, SIGN, unique
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import GONE, Expected
from sccache_dtool.fallback import do_without, start_thread
from sccache_dtool.liveness import State, Verdict, caller, lifetime
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.lifetime import Memory
from sccache_dtool.liveness.record import HolderRecord
from sccache_dtool.log import Log
from sccache_dtool.protocol.store import Store

#: Seconds after which a winner is passed over that has not been seen to refresh its lock: on the observer's own clock,
#: because flufl.lock writes the time of the winner's into it, which may be hours ahead or behind.
LIFETIME = 300

#: Seconds between two refreshments of a won election.
REFRESH = 60.0

_log = Log(__name__)

#: Bytes of a lock's text that are read; it is a path.
_LONGEST = 8192


def make_election(store: Store, name: str) -> Election:
    """An election in which this process stands; winners that are proved dead are passed over at once.

    `name`: what is to be done, as a file name.
    """
    record = holder_record.encode(caller.program_owner(store.proc), None, store.clock)
    memory = Memory(lifetime.memory_path(store.proc, f"elected-{store.id}"), store.clock)

    def judge(record: HolderRecord) -> Verdict:
        return holder_record.judge(record, store.proc, lambda ttl: Verdict(State.UNKNOWN, "not seen from here"))

    return Election(store, name, record, judge, memory)


class Election:
    """One election; `poll` until it is won, or until somebody else has done the work."""

    def __init__(
        self, store: Store, name: str, record: str, judge: Callable[[HolderRecord], Verdict], memory: Memory
    ) -> None:
        """`name`: what is to be done, as a file name; `record`: of this process; `judge`: whether another is alive.

        `memory`: what this host has seen of winners before, since a cron job looks only once.
        """
        self._store = store
        self._memory = memory
        self._remembers = False
        self._directory = store.layout.locks
        self._lock_name = f"{name}{LOCK}"
        self._lock_path = f"{store.layout.locks}/{self._lock_name}"
        self._sign_prefix = f"{name}{SIGN}"
        self._number = unique()
        self._own_sign = f"{self._sign_prefix}{self._number}"
        self._sign_path = f"{store.layout.locks}/{self._own_sign}"
        self._record = record
        self._judge = judge
        self._is_announced = False
        self._sign_stays = False  # True if a lock may be left that has no other sign: see `_passed_over`
        self._lock: Lock | None = None
        self._taking_over = False  # the sign is there because a lock is taken from a winner who is gone
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def sign(self) -> str:
        """The name beside the lock while this process is elected; whoever takes the lock from it removes the name.

        Empty where it could not be made: then nobody can tell whether the lock was taken.
        """
        return self._own_sign if self._is_announced else ""

    def poll(self) -> bool:
        """Whether this process is elected now. Never waits.

        While another is at it no directory is listed: the lock's text leads to the winner's sign. So the cost does not
        depend on how many other elections there are. Where nobody can be elected (no hard links, no room, no
        permission) everybody may work, since nothing depends on the election.
        """
        is_passing = False
        try:
            text = self._lock_text()
            is_passing = text is not None
            if text is not None and not self._passed_over(text):
                return False
            is_passing = False
            return self._try()
        except OSError as error:
            self._sign_stays = is_passing
            do_without(f"two processes may do the same work ({error.strerror})")
            return True

    def winner(self) -> str | None:
        """Who was elected, in words; None if nobody is known. Signs of the killed may lie beside the winner's."""
        sign = self._sign_in(self._lock_text() or "")
        elected = None if sign is None else self._read(sign)
        if elected is not None:
            return f"{elected}, since {elected.since}"
        try:
            found = self._store.fs.names(self._directory)
        except OSError:
            return None
        read = [self._read(sign) for sign in self._signs(found)]
        known = [record for record in read if record is not None]
        living = [record for record in known if self._judge(record).state is not State.DEAD]
        return next((f"{record}, since {record.since}" for record in living or known), None)

    def resign(self) -> None:
        """Let others be elected, if the lock was not taken before. The sign goes last, or stays too: see `_try`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if (self._lock is None and not self._sign_stays) or (self._lock and self._is_given_back(self._lock)):
            self._withdraw()

    def _is_given_back(self, lock: Lock) -> bool:
        """Whether the lock is given back. An error may pass, and flufl.lock takes it for somebody else's lock."""
        for _ in range(2):
            try:
                lock.unlock()
                return True
            except (NotLockedError, OSError):
                if not self._is_ours(lock):
                    return True
        with contextlib.suppress(OSError):  # where all link counts are 1, flufl.lock takes it for somebody else's
            if self._store.fs.read_text(self._lock_path) == lock.claimfile:
                self._store.fs.unlink(self._lock_path)
                self._store.fs.unlink(lock.claimfile)
                return True
        return False

    def _is_ours(self, lock: Lock) -> bool:
        try:
            return self._store.fs.read_text(self._lock_path) == lock.claimfile
        except FileNotFoundError:
            return False
        except OSError:  # nobody knows
            return True

    def _try(self) -> bool:
        """One attempt. The sign is there before the lock and for longer, whenever this process may be killed: a lock
        without one says nothing of its winner, and would keep everybody waiting until it expires. Raises OSError where
        nobody can be elected.
        """
        lock = _CarefulLock(self._store.fs, self._lock_path, LIFETIME, int(self._number, 16))
        self._announce()
        try:
            lock.lock(timeout=-1)  # in the past: one attempt, no sleep
        except TimeOutError:
            self._withdraw()
            return False
        except AlreadyLockedError:
            pass  # the reply to the first attempt was lost
        except OSError as error:
            if error.errno in GONE:
                if self._is_given_back(lock):  # the lock may be taken in spite of the error
                    self._withdraw()
                return False
            if self._is_ours(lock):
                self._lock = lock  # likewise; `resign` gives it back
            else:
                with contextlib.suppress(OSError):
                    self._store.fs.unlink(lock.claimfile)  # made, and then there was no room for its text, or no link
            raise
        self._lock = lock
        _log.debug(f"elected: {self._lock_name.removesuffix(LOCK)}")
        otherwise = "after five minutes others may do the same work"
        self._thread = start_thread(functools.partial(self._refresh, lock), "sc-dtool election", otherwise)
        return True

    def _announce(self) -> None:
        """Make the sign."""
        with contextlib.suppress(FileExistsError):  # it was made before, or the reply was lost
            self._store.fs.put_record(self._record, self._sign_path)
        self._is_announced = True

    def _withdraw(self) -> None:
        self._taking_over = False
        with contextlib.suppress(OSError):
            self._store.fs.unlink(self._sign_path)

    def _refresh(self, lock: Lock) -> None:
        while not self._stop.wait(REFRESH):
            try:
                lock.refresh()
            except NotLockedError:
                return  # somebody took the lock: harmless, see above
            except OSError:
                continue

    def _lock_text(self) -> str | None:
        """What the lock says; None if there is none, and empty if it cannot be read."""
        try:
            return self._store.fs.read_text(self._lock_path, _LONGEST)
        except OSError as error:
            return None if error.errno in GONE else ""

    def _sign_in(self, text: str) -> str | None:
        """The sign of the winner whose lock has this text; None if it is not a lock's."""
        number = text.rpartition("|")[2]
        if not (number.isascii() and number.isdigit() and len(number) <= 20):
            return None
        return f"{self._sign_prefix}{int(number):016x}"

    def _passed_over(self, text: str) -> bool:
        """Take the lock from a winner who is proved dead, or silent for longer than the lifetime.

        `text`: what the lock says.
        """
        sign = self._sign_in(text)
        if sign == self._own_sign:
            return True  # its own, in spite of an error
        winner = None if sign is None else self._read(sign)
        if winner is not None:
            if self._judge(winner).state is State.DEAD or self._is_silent():
                return self.take_over(text, sign)
            if self._taking_over:
                self._withdraw()  # somebody else was faster
            return False
        # The winner's sign is removed before its lock: somebody was, or is, about to take over.
        found = self._store.fs.names(self._directory)
        others = self._signs_of_others(found)
        begun = self._own_sign in found and not others
        if begun or (others and all(map(self._is_of_the_dead, others))) or self._is_silent():
            return self.take_over(text, sign)
        return False

    def take_over(self, text: str, sign: str | None) -> bool:
        """Remove the sign and the lock of a winner; False if another does it, or if it is too early.

        Everybody who takes over shows a sign of its own first, and removes the lock only if a listing made afterwards
        shows the same lock and no sign of anybody else. So of two at most one removes it; and as whoever is elected
        shows its sign before its lock and for longer, it is never the lock of somebody who was elected meanwhile.
        Removing the winner's sign has one winner, who stays if there are several. The sign stays after an error, as
        the lock may have no other; then this process begins again or, once it has ended, somebody else.
        """
        others = [name for name in self._signs_of_others(self._store.fs.names(self._directory)) if name != sign]
        if not all(self._is_of_the_dead(name) or self._is_left(name) for name in others):
            return False
        self._announce()
        self._taking_over = True
        with Expected(GONE):
            first, *rest = (sign, *others) if sign is not None else (*others, None)
            is_ours = first is None or self._is_removed(first)
            for name in filter(None, rest):
                self._is_removed(name)
            found = self._store.fs.names(self._directory)
            if self._signs_of_others(found):
                if not is_ours:
                    self._withdraw()
                return False
            if self._lock_name in found:
                now = self._lock_text()
                if now not in (text, None):
                    self._withdraw()
                    return False
                self._is_removed(self._lock_name)
            return True
        return False

    def _is_of_the_dead(self, sign: str) -> bool:
        record = self._read(sign)
        return record is not None and self._judge(record).state is State.DEAD

    def _is_left(self, sign: str) -> bool:
        """Whether a sign that is not the winner's has been there for longer than the lifetime: nobody needs so long."""
        return self._unchanged_for(sign) > LIFETIME

    def _is_removed(self, name: str) -> bool:
        """Whether this call removed it. If it was gone, a repeated request of this call may have removed it."""
        try:
            self._store.fs.unlink(f"{self._directory}/{name}")
        except FileNotFoundError:
            return False
        return True

    def _is_silent(self) -> bool:
        """Whether the winner has not refreshed its lock for longer than the lifetime."""
        try:
            refreshed = self._store.fs.lstat(self._lock_path).st_mtime_ns
        except OSError as error:
            if error.errno not in GONE:
                raise
            return True
        return self._unchanged_for(f"{self._lock_name}@{refreshed}") > LIFETIME

    def _unchanged_for(self, sight: str) -> float:
        """Seconds since this host first saw a name as it is now. Only the first time looks into the host's memory."""
        if self._remembers:
            return self._memory.unchanged_for(sight)
        self._remembers = True
        with self._memory.remembered():
            self._memory.forget_unless(self._may_be_there)
            return self._memory.unchanged_for(sight)

    def _may_be_there(self, sight: str) -> bool:
        name = sight.partition("@")[0]
        return name == self._lock_name or self._store.fs.seems_there(f"{self._directory}/{name}")

    def _signs(self, found: list[str]) -> list[str]:
        return [name for name in found if name.startswith(self._sign_prefix)]

    def _signs_of_others(self, found: list[str]) -> list[str]:
        return [name for name in self._signs(found) if name != self._own_sign]

    def _read(self, sign: str) -> HolderRecord | None:
        try:
            return HolderRecord.decode(self._store.fs.get_record(f"{self._directory}/{sign}"))
        except (OSError, Damaged):
            return None


def _without_name_server(method: Any) -> FunctionType:
    """A method of flufl.lock for which this host's full name is the name that it has for itself.

    flufl.lock puts the full name into its claims, and getfqdn() waits for a dead server as long as the resolver does,
    at every miss. The host's own name will do: a claim has the process and a random number in it, too. Its module is
    left as it is, because other threads may use it.
    """
    names = {**method.__globals__, "socket": SimpleNamespace(getfqdn=socket.gethostname)}
    return FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)


_init = _without_name_server(Lock.__init__)


class _CarefulLock(Lock):
    """A lock whose text is read with bounds; what cannot be a lock's text is nobody's.

    flufl.lock reads it by `open` and `read`, which wait for ever at a FIFO, and take in all of a file of any size:
    others may put anything in the place of a lock.
    """

    def __init__(self, fs: FileSystem, path: str, lifetime: int, number: int) -> None:
        """`lifetime` in seconds; `number`: never drawn twice, by which the lock's text shows who holds it."""
        self._number = number
        _init(self, path, lifetime)
        self._fs = fs

    def _set_claimfile(self) -> None:
        self._claimfile = self._separator.join((self._lockfile, self.hostname, str(os.getpid()), str(self._number)))

    def _read(self) -> str | None:
        try:
            return self._fs.read_text(self.lockfile, _LONGEST)
        except OSError:
            return None
