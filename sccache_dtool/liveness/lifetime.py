"""Lapsed lifetimes: for holders whose process cannot be seen from here.

No clock of two hosts is ever compared. Two proofs are accepted, and either is enough:

- *A fixed end*, which the holder took from the file system's own clock, has passed on that clock and on this host's,
  with a margin. Only where the file system has one clock: local ones and NFS. On Lustre, GPFS or BeeGFS times come from
  the clients. That clock, too, may be set right after the end was taken from it; so of a holder that beats, this host
  must also have seen no heartbeat for several times as long as there is between two.
- *Observation*: the name has not changed for the whole lifetime, on this host's clock since boot. What was seen is
  remembered between runs in a file of this user on this host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator

from sccache_dtool.clock import Clock
from sccache_dtool.disk.mounts import mount_of
from sccache_dtool.disk.names import HolderName, unique
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.process import Proc
from sccache_dtool.units import short_duration

#: Seconds added to every lifetime: for coarse clocks, and for drift between a holder's clock and the server's.
MARGIN = 60.0

#: So many heartbeats must have been missed before a fixed end is believed of a holder that beats.
MISSED_BEATS = 4

#: Files of other boots in which nothing has been noted for so many seconds are of no use to anybody. A home directory
#: may be shared, so that the boot of another host, whose cleaner runs, looks like an old one of this.
FORGOTTEN = 30 * 86_400.0

#: The names that `memory_path` makes: what is noted, of which cache and boot.
_MEMORY = re.compile(r"(elected|seen)-[0-9a-f]+-.*\.json(\.[0-9a-f]{16})?")

#: How often a lock that another process has is tried, and seconds in between: they write for milliseconds.
_TRIES, _PAUSE = 200, 0.05

#: File systems that have one clock for all their clients.
ONE_CLOCK = frozenset("bcachefs btrfs ext2 ext3 ext4 f2fs nfs nfs4 overlay tmpfs xfs zfs".split())


class Memory:
    """When this host first saw each name, such as a holder's present one, in seconds since boot."""

    def __init__(self, path: str | None, clock: Clock) -> None:
        """`path`: the file that outlives this process, None for no file. Its name carries the boot it is of."""
        self.path = path
        self.is_lost = False  # True once what was seen could not be kept for the next run
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        self._is_wanted: Callable[[str], bool] = lambda name: True
        self._is_used = True  # False: within `remembered`, and nobody has asked yet

    def unchanged_for(self, name: str) -> float:
        """Seconds since this host first saw `name`; 0 at the first time."""
        self._begin()
        now = self._clock.since_boot()
        return max(0.0, now - self._seen.setdefault(name, now))

    @contextlib.contextmanager
    def remembered(self) -> Iterator[None]:
        """Read the file once it is needed, and write it after. It is locked for a moment only: this may last long.

        Where no file can be kept, what is seen is forgotten at the end: leases are kept longer, never shorter.
        """
        self._is_used = False
        yield
        if not self._is_used:
            return
        self.is_lost = bool(self._seen)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            path = self._recall(stack)  # others of this host may have seen more meanwhile
            if path is not None:
                _replace(path, json.dumps(self._seen | self._noted))
                self.is_lost = False

    def _begin(self) -> None:
        """Read the file, if that has not been done."""
        if not self._is_used:
            self._is_used = True
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                self._recall(stack)

    def _recall(self, stack: contextlib.ExitStack) -> str | None:
        """Take in what the file says; its path, locked until `stack` ends. None if there is no place for it."""
        if self.path is None:
            return None
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        _lock(f"{os.path.dirname(self.path)}/lock", stack)
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                self._add(_parse(file.read()))
        except FileNotFoundError:  # the first time in this boot
            _tidy_beside(self.path)
        return self.path

    def _add(self, read: dict[str, float]) -> None:
        """Take in what a file says: the earlier sight of a holder, and notes of which there is none newer."""
        for name, value in read.items():
            if " " in name:  # no holder's name
                self._noted.setdefault(name, value)
            elif self._is_wanted(name):
                self._seen[name] = min(value, self._seen.get(name, value))

    def recall(self, what: str) -> float | None:
        """A number that was noted, by this run or an earlier one of this boot; None for none, or 0."""
        self._begin()
        return self._noted.get(what) or None

    def note(self, what: str, value: float) -> None:
        """Note a number under a name with a space in it, which no holder has; 0: as if none had been noted."""
        self._begin()
        self._noted[what] = value

    def forget_unless(self, is_wanted: Callable[[str], bool]) -> None:
        """Drop names of what is no longer there."""
        self._is_wanted = is_wanted
        self._seen = {name: first for name, first in self._seen.items() if is_wanted(name)}


def memory_path(proc: Proc, name: str) -> str | None:
    """Where a memory is kept: of this user and boot, since times since boot mean nothing elsewhere."""
    domain = proc.uptime_domain()
    if domain is None:
        return None
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/sc-dtool/{name}-{domain}.json" if os.path.isabs(state) else None


def _tidy_beside(path: str) -> None:
    """Remove the files of boots that nobody notes anything of any more."""
    with contextlib.suppress(OSError), os.scandir(os.path.dirname(path)) as entries:
        now = os.stat(os.path.dirname(path)).st_mtime  # on the clock of the file system that the others are on, too
        for entry in entries:
            if _MEMORY.fullmatch(entry.name) and entry.stat().st_mtime < now - FORGOTTEN:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _lock(path: str, stack: contextlib.ExitStack) -> None:
    """Keep this user's other processes from writing until `stack` ends; where that cannot be had, go on.

    Without the lock, one of two who write at once is forgotten, so that leases are kept longer. The kernel releases it
    when the process ends. Some file systems have no locks: ENOLCK on NFS without lockd, ENOSYS on Lustre without
    -o flock.
    """
    import portalocker

    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(_unlock_and_close, fd)
        with contextlib.suppress(portalocker.LockException):
            for _ in range(_TRIES):
                try:
                    portalocker.lock(fd, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
                    return
                except portalocker.AlreadyLocked:
                    time.sleep(_PAUSE)


def _unlock_and_close(fd: int) -> None:
    """Unlock a file, for children that were forked meanwhile as well, and close it."""
    import portalocker

    with contextlib.suppress(OSError, portalocker.LockException):
        portalocker.unlock(fd)
    os.close(fd)


def _replace(path: str, text: str) -> None:
    """Write a file as a whole: half of it must never be read, nor what was in it be lost on a full disk."""
    draft = f"{path}.{unique()}"
    try:
        with open(draft, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def _parse(text: str) -> dict[str, float]:
    with contextlib.suppress(ValueError, OverflowError, RecursionError):
        seen = json.loads(text)
        if isinstance(seen, dict):
            return {name: float(time) for name, time in seen.items() if _is_since_boot(time)}
    return {}


def _is_since_boot(time: object) -> bool:
    """Whether it is a number of seconds; NaN is none, and before the boot there was nothing."""
    return isinstance(time, int | float) and not isinstance(time, bool) and time >= 0


def judge(
    name: HolderName,
    ttl: float | None,
    memory: Memory,
    file_system_now: float | None,
    wall: float,
    pause: float | None = None,
    promised: float = 0.0,
) -> Verdict:
    """Whether the lifetime of a holder has lapsed.

    `ttl`: its lifetime in seconds, None for none. `file_system_now`: the file system's clock, in seconds since
    1970, None where it has no single one. `wall`: this host's. `pause`: seconds between two heartbeats, None for a
    holder that shows none. `promised`: the end as the holder's own host reckoned it at the beginning; it only defers.
    """
    if ttl is None:
        return Verdict(State.UNKNOWN, "it has no lifetime (--ttl)")
    silent = memory.unchanged_for(str(name))
    end = max(name.end, promised)
    if name.end and file_system_now is not None and min(file_system_now, wall) > end + MARGIN:
        ago = short_duration(min(file_system_now, wall) - end)
        evidence = f"its lifetime of {short_duration(ttl)} ended {ago} ago without renewal"
        if pause is None or silent > MISSED_BEATS * pause + MARGIN:
            return Verdict(State.DEAD, evidence)
        return Verdict(State.UNKNOWN, f"{evidence}, but it has been observed for only {short_duration(silent)}")
    if silent > ttl + MARGIN:
        return Verdict(State.DEAD, f"no heartbeat for {short_duration(silent)}, lifetime {short_duration(ttl)}")
    if name.end and file_system_now is not None and file_system_now < name.end:
        return Verdict(State.UNKNOWN, f"its lifetime lasts for another {short_duration(name.end - file_system_now)}")
    return Verdict(State.UNKNOWN, f"no heartbeat seen for {short_duration(silent)}, lifetime {short_duration(ttl)}")


def mount_type(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that `path` is on, such as ``nfs4``; empty if it cannot be told."""
    mount = mount_of(path, mounts)
    return mount.type if mount else ""
