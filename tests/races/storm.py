"""The storm: processes use, evict, reap and restore at once and without pause, and are killed and stopped at random.

Users check what they read while they hold it, and each keeps a journal outside the cache of every lease it tried to
take, took, and gave back. When all have ended, `verdict` compares the journals with the history. Everything that is
not as it must be is a violation, a sentence; a storm without violations is an empty list.

Nobody sleeps. Everybody waits for tokens: evictors and reapers get theirs for so many uses, and users get as many
again for each eviction that was tried, so that neither runs away from the other; faults, too, come by the number of
uses. The only clocks are safety nets.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import random
import select
import shutil
import signal
import tarfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flufl.lock  # noqa: F401  (these three: loaded once, and not by each process that is born)

import sccache_dtool.evict.single
import sccache_dtool.fetch.populate  # noqa: F401
from races.actors import digest_of, findings, left_in, make_payload
from sccache_dtool import log
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import REAPED, RELEASED
from sccache_dtool.errors import InUse, LeaseLost, TimedOut, UsageError
from sccache_dtool.policy.rules import Rules

EVERYTHING = Rules(everything=True)

#: Seconds in which everybody ends who is told to.
_PATIENCE = 30.0

#: What was noted, by the kind of note.
Journal = dict[str, set[str]]

#: The kinds of notes. `wrong`: what somebody held was not there, or not theirs any more. `robbed`: the same on a host
#: that may have been taken for dead. `lost`: a program there was told so. `waited`: in vain, for another's fetch.
#: `counts`: of all that has happened so far.
KINDS = ("try", "took", "gave", "wrong", "robbed", "lost", "waited", "violation", "warning", "counts")

_REPORTS = {
    b"U": "uses",
    b"W": "uses given up",
    b"T": "tries to evict",
    b"E": "evictions",
    b"R": "reaped",
    b"V": "violations",
}


class Item(NamedTuple):
    """Something to use, and the digest that what is read must have."""

    words: tuple[str, ...]
    digest: str


class Weather(NamedTuple):
    """How strong a storm is, and for how long. It ends when both counts are reached, or the time is over."""

    seed: int
    uses: int
    evictions: int
    seconds: float = 45.0
    users: int = 5
    evictors: int = 2
    uses_per_eviction: int = 6
    uses_per_reaping: int = 30
    uses_per_fault: int = 15  # 0: no faults
    stopped_at_once: int = 3
    pause: float = 0.002  # the longest, of those who wait for a download: the storm's items are small
    stuck: float = 30.0  # without any progress, though nobody is stopped: then it is said to be stuck
    durable: bool = False  # notes survive a power failure
    may_be_robbed: bool = False  # by others, who take this host for dead


class Slip:
    """Slips one use into the middle of one eviction: between its look at the gate and what it does to it."""

    def __init__(self) -> None:
        self._asked, self._taken, self._evicted = os.pipe(), os.pipe(), os.pipe()
        self._pending = True
        self._within = False

    def before_use(self) -> None:
        """In the user."""
        if self._pending:
            os.read(self._asked[0], 1)

    def between_reads(self) -> None:
        """In the user, which holds the lease and has read once."""
        if self._pending:
            self._pending = False
            os.write(self._taken[1], b".")
            os.read(self._evicted[0], 1)

    def within_eviction(self) -> None:
        """In the evictor."""
        if self._pending:
            self._pending = False
            self._within = True
            os.write(self._asked[1], b".")
            os.read(self._taken[0], 1)

    def after_eviction(self) -> None:
        """In the evictor, once it has done what it does."""
        if self._within:
            self._within = False
            os.write(self._evicted[1], b".")


class NoSlip(Slip):
    """Nothing is arranged; a user yields between its two reads."""

    def __init__(self) -> None:
        self._pending = self._within = False

    def between_reads(self) -> None:
        os.sched_yield()


class _Evicting(FileSystem):
    """The file system of an evictor: reports evictions, and lets the slip happen just before a gate is closed."""

    def __init__(self, report: Callable[[bytes], None], slip: Slip) -> None:
        self._report = report
        self._slip = slip

    def rmdir(self, path: str, **more: Any) -> None:
        if path.endswith("/use"):
            self._slip.within_eviction()
        super().rmdir(path, **more)

    def rename(self, source: str, target: str, **more: Any) -> None:
        super().rename(source, target, **more)
        if "/items/" in source and "/trash/" in target:
            self._report(b"E")


class ListThenDelete(_Evicting):
    """A broken eviction, the obvious one: if a listing shows no lease, the gate is deleted with all that is in it."""

    def rmdir(self, path: str, **more: Any) -> None:
        if not path.endswith("/use"):
            super().rmdir(path, **more)
            return
        if self.names(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._slip.within_eviction()
        shutil.rmtree(path)


class _Journaling(FileSystem):
    """The file system of a user: notes every lease before it is made, and so before anybody can see it."""

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note

    def symlink(self, text: str, path: str, **more: bool) -> None:
        if "/use/" in path:
            self._note("try", os.path.basename(path))
        super().symlink(text, path, **more)


class _Hasty(Clock):
    """Those who wait for a download look again soon."""

    def __init__(self, longest: float) -> None:
        self._longest = longest

    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, self._longest))


class Notes:
    """Journals in a directory, one for each process; who is killed in between leaves no half line but at the end."""

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        self._directory = directory
        self._durable = durable

    def add(self, number: int, *words: str) -> None:
        """Write a line into the journal of a process."""
        fd = os.open(self._directory / str(number), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(fd, (" ".join(words).replace("\n", "\\n") + "\n").encode())
        if self._durable:
            os.fsync(fd)
        os.close(fd)

    def read(self) -> Journal:
        """All lines so far, by their kind."""
        lines: Journal = {kind: set() for kind in KINDS}
        for path in self._directory.iterdir():
            *whole, _ = path.read_text().split("\n")
            for line in whole:
                kind, _, rest = line.partition(" ")
                lines[kind].add(rest)
        return lines

    def counts(self) -> Counter[str]:
        """The counts as they were noted last."""
        with contextlib.suppress(FileNotFoundError):
            *whole, _ = (self._directory / "0").read_text().split("\n")
            for line in reversed(whole):
                if line.startswith("counts "):
                    return Counter(json.loads(line.removeprefix("counts ")))
        return Counter()


class _Later(Clock):
    """A clock by which nothing in the trash is to be kept any longer."""

    def wall(self) -> float:
        return super().wall() + 100_000


class Storm:
    """One storm over one cache."""

    def __init__(
        self,
        directory: Path,
        items: list[Item],
        weather: Weather,
        *,
        slip: Slip | None = None,
        evicting: type[_Evicting] = _Evicting,
        place: str | None = None,
        journals: Path | None = None,
        until: int | None = None,
    ) -> None:
        """In `directory` is what only this host writes; `place`, the cache, may rage on other hosts as well.

        `journals`: an empty directory for them; `until`: a descriptor whose end ends the storm.
        """
        self.place = place or str(directory / "cache")
        self.items = items
        self.weather = weather
        self.counts: Counter[str] = Counter()
        self._directory = directory
        journals = journals or directory / "journals"
        journals.mkdir(exist_ok=True)
        self.notes = Notes(journals, durable=weather.durable)
        self._until = until
        self._slip = slip or NoSlip()
        self._evicting = evicting
        self._dice = random.Random(weather.seed)
        self._stop = mmap.mmap(-1, 1)
        self._progress = os.pipe()
        self._tokens = {work: os.pipe() for work in (self._user, self._evictor, self._reaper)}
        self._running: dict[int, Callable[[int], None]] = {}
        self._stopped: dict[int, int] = {}  # and the number of uses at which each goes on
        self._born = 0
        Cache(self.place, fs=FileSystem()).init()

    def prepare(self, evictions: int) -> None:
        """Have everything in the cache, unused, and so many evictions before the first use ends."""
        cache = self._cache(0, _Journaling(lambda *words: self._note(0, *words)))
        for item in self.items:
            cache.use(*item.words).release()
        cache.close()
        self._grant(self._evictor, evictions)

    # -- the parent ----------------------------------------------------------------------------------------------------

    def rage(self) -> list[str]:
        """Let it rage, and return the violations."""
        stuck = self.blow()
        journal = self.notes.read()
        self.warnings = journal["warning"]
        violations, self.counts["in history"] = verdict(self.place, self.items, journal)
        self.counts["tried"], self.counts["took"] = len(journal["try"]), len(journal["took"])
        return [*stuck, *violations]

    def blow(self) -> list[str]:
        """Let it rage, and return what is wrong with those who did; what they did, their journals tell."""
        for _ in range(self.weather.users):
            self._start(self._user)
        for _ in range(self.weather.evictors):
            self._start(self._evictor)
        self._start(self._reaper)
        self._grant(self._user, 4 * self.weather.users)
        stuck = None
        try:
            stuck = self._blow_until_enough()
        finally:
            ended = self._calm_down()
        return [*([stuck] if stuck else []), *ended]

    def _blow_until_enough(self) -> str | None:
        began = last = time.monotonic()
        next_fault = self.weather.uses_per_fault
        while not self.counts["violations"] and (
            self.counts["uses"] < self.weather.uses or self.counts["evictions"] < self.weather.evictions
        ):
            now = time.monotonic()
            if now - began > self.weather.seconds:
                break
            if now - last > self.weather.stuck:
                return f"nobody got any further for {self.weather.stuck:g} s"
            told = [] if self._until is None else [self._until]
            ready, _, _ = select.select([self._progress[0], *told], [], [], 0.2)
            if self._until in ready and not os.read(self._until, 1):
                break
            if not ready:
                self._go_on(everybody=True)
                continue
            last = now
            self._count(os.read(self._progress[0], 4096))
            self._note(0, "counts", json.dumps(self.counts))
            self._go_on()
            if self.weather.uses_per_fault and self.counts["uses"] >= next_fault:
                next_fault += self.weather.uses_per_fault
                self._fault()
        return None

    def _count(self, reports: bytes) -> None:
        before = self.counts["uses"]
        for letter, what in _REPORTS.items():
            self.counts[what] += reports.count(letter)
        for work, per in (
            (self._evictor, self.weather.uses_per_eviction),
            (self._reaper, self.weather.uses_per_reaping),
        ):
            self._grant(work, self.counts["uses"] // per - before // per)
        self._grant(self._user, reports.count(b"T") * self.weather.uses_per_eviction + reports.count(b"W"))

    def _grant(self, work: Callable[[int], None], tokens: int) -> None:
        os.write(self._tokens[work][1], b"." * tokens)

    def _granted(self, work: Callable[[int], None]) -> bool:
        """In a child: wait for a token; False when there is nothing more to do."""
        return bool(os.read(self._tokens[work][0], 1)) and not self._stop[0]

    def _fault(self) -> None:
        pid = self._dice.choice(list(self._running))
        if self._dice.random() < 0.5:
            self.counts["kills"] += 1
            work = self._running.pop(pid)
            self._stopped.pop(pid, None)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._start(work)
            self._grant(work, 1)  # for the one that it may have died with
        elif len(self._stopped) < self.weather.stopped_at_once:
            self.counts["stops"] += 1
            self._stopped[pid] = self.counts["uses"] + self._dice.randrange(5, 60)
            os.kill(pid, signal.SIGSTOP)

    def _go_on(self, *, everybody: bool = False) -> None:
        for pid, when in [*self._stopped.items()]:
            if everybody or self.counts["uses"] >= when:
                del self._stopped[pid]
                os.kill(pid, signal.SIGCONT)

    def _calm_down(self) -> list[str]:
        self._go_on(everybody=True)
        self._stop[0] = 1
        for pipe in self._tokens.values():
            os.close(pipe[1])
        violations = []
        os.set_blocking(self._progress[0], False)
        deadline = time.monotonic() + _PATIENCE
        for pid, work in self._running.items():
            done = 0
            while not done and time.monotonic() < deadline:
                done, status = os.waitpid(pid, os.WNOHANG)
                select.select([self._progress[0]], [], [], 0.01)
                with contextlib.suppress(BlockingIOError):
                    reports = os.read(self._progress[0], 1 << 16)
                    self.counts.update({what: reports.count(letter) for letter, what in _REPORTS.items()})
            if not done:
                violations.append(f"{work.__name__} {pid} does not end")
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            elif status:
                violations.append(f"{work.__name__} {pid} ended with {os.waitstatus_to_exitcode(status)}")
        for pipe in self._tokens.values():
            os.close(pipe[0])
        for end in self._progress:
            os.close(end)
        self._note(0, "counts", json.dumps(self.counts))
        return violations

    def _start(self, work: Callable[[int], None]) -> None:
        self._born += 1
        number = self._born
        pid = os.fork()
        if pid:
            self._running[pid] = work
            return
        status = 1
        try:
            for pipe in self._tokens.values():
                os.close(pipe[1])
            os.environ["XDG_STATE_HOME"] = str(self._directory / f"state of {work.__name__}")
            work(number)
            status = 0
        except BaseException:
            self._note(number, "violation", traceback.format_exc())
        finally:
            os._exit(status)

    # -- the children --------------------------------------------------------------------------------------------------

    def _report(self, letter: bytes) -> None:
        os.write(self._progress[1], letter)

    def _note(self, number: int, *words: str) -> None:
        self.notes.add(number, *words)
        if words[0] in ("violation", "wrong"):
            self._report(b"V")

    def _cache(self, number: int, fs: FileSystem) -> Cache:
        clock = _Hasty(self.weather.pause)
        log.show(log.NOTE + 1, lambda level, text: self._note(number, "warning", text))
        return Cache(self.place, fs=fs, clock=clock)

    def _user(self, number: int) -> None:
        dice = random.Random(f"{self.weather.seed} {number}")
        cache = self._cache(number, _Journaling(lambda *words: self._note(number, *words)))
        while self._granted(self._user):
            item = dice.choice(self.items)
            self._slip.before_use()
            try:
                self._use(number, cache, item, depth=dice.choice((0, 0, 0, 1)), dice=dice)
            except TimedOut as error:
                self._note(number, "waited", error.message)
                self._report(b"W")
            except LeaseLost as error:
                self._note(number, "lost" if self.weather.may_be_robbed else "wrong", f"{number} {error.message}")
                self._report(b"W")
        cache.close()

    def _use(self, number: int, cache: Cache, item: Item, depth: int, dice: random.Random) -> None:
        lease = cache.use(*item.words)
        self._note(number, "took", lease.name)
        self._read(number, lease.name, os.fspath(lease), item, "first")
        if depth:
            self._use(number, cache, dice.choice(self.items), 0, dice)
        self._slip.between_reads()
        self._read(number, lease.name, os.fspath(lease), item, "second")
        if lease.release():
            self._note(number, "gave", lease.name)
        else:
            self._wrong(number, lease.name, "was taken away from a living process")
        self._report(b"U")

    def _wrong(self, number: int, lease: str, what: str) -> None:
        self._note(number, "robbed" if self.weather.may_be_robbed else "wrong", f"{lease} {what}")

    def _read(self, number: int, lease: str, path: str, item: Item, which: str) -> None:
        try:
            whole = digest_of(path) == item.digest
        except OSError as error:
            self._wrong(number, lease, f"{which} reading: {error}")
            return
        if not whole:
            self._wrong(number, lease, f"{which} reading: {path} is not whole")

    def _evictor(self, number: int) -> None:
        dice = random.Random(f"{self.weather.seed} {number}")
        cache = self._cache(number, self._evicting(self._report, self._slip))
        while self._granted(self._evictor):
            with contextlib.suppress(InUse, UsageError):  # in use, or not in the trash: as it should be
                self._evict(number, cache, dice)
            self._slip.after_eviction()
            self._report(b"T")

    def _evict(self, number: int, cache: Cache, dice: random.Random) -> None:
        key = cache.key_for(dice.choice(self.items).words)
        chance = dice.random()
        if chance < 0.4:
            cache.evict_if_idle(key)
        elif chance < 0.6:
            cache.remove(key, keep_for=dice.choice((0, 1000)))
        elif chance < 0.7:
            cache.restore(key)
        else:
            done = cache.clean(EVERYTHING, keep_for=dice.choice((0, 0, 1000)))
            for failure in done.failed:
                self._note(number, "violation", f"clean failed: {failure.reason}")

    def _reaper(self, number: int) -> None:
        cache = self._cache(number, FileSystem())
        while self._granted(self._reaper):
            reaped = cache.reap()
            self._report(b"R" * len(reaped.leases))
            for failure in reaped.failed:
                self._note(number, "violation", failure)


# -- afterwards --------------------------------------------------------------------------------------------------------


def verdict(place: str, items: Sequence[Item], journal: Journal) -> tuple[list[str], int]:
    """What is not as it must be, once everybody has ended, and how many uses are in the history."""
    violations = [*journal["violation"], *journal["wrong"]]
    cache = Cache(place, fs=FileSystem(), clock=_Later())
    cache.reap()
    cache.clean(EVERYTHING)
    violations += [f"left behind: {what}: {where}" for what, where in left_in(place).items()]
    violations += [f"doctor says: {finding}" for finding in findings(cache, for_a_person=True)]
    ended: Counter[str] = Counter()
    how: dict[str, str] = {}
    for key in (cache.key_for(item.words) for item in items):
        uses = cache.uses(key)
        ended.update(use.lease for use in uses)
        how |= {use.lease: use.how for use in uses}
        counted = cache.item(key).uses
        if counted != len(uses):
            violations.append(f"{counted} uses of {key} are counted, and {len(uses)} are in the history")
    violations += [f"lease {lease} ended {times} times" for lease, times in ended.items() if times > 1]
    violations += [f"lease {lease} is not in the history" for lease in journal["took"] - ended.keys()]
    violations += [f"lease {lease} was never made" for lease in ended.keys() - journal["try"]]
    violations += [
        f"lease {lease} was given back, and is said to be {how[lease]}"
        for lease in journal["gave"]
        if how.get(lease, RELEASED) != RELEASED
    ]
    violations += [line for line in journal["robbed"] if how.get(line.partition(" ")[0]) != REAPED]
    return violations + _still_usable(cache, items), ended.total()


def _still_usable(cache: Cache, items: Sequence[Item]) -> list[str]:
    """Nothing that was killed may keep the next from working."""
    violations = []
    for item in items:
        wanted = cache.item_request(item.words)
        lease = cache.hold(cache.owner(f"pid:{os.getpid()}"), wanted, UseOptions(wait=10))
        if digest_of(os.fspath(lease)) != item.digest:
            violations.append(f"{lease.key} is not whole after the storm")
        lease.release()
        lease.holder.retire()
    return violations


def make_items(directory: Path) -> list[Item]:
    """Nine: files, directories and tars."""
    items = []
    for number in range(3):
        tree = make_payload(directory / f"tree{number}", 5000, seed=number)
        file = directory / f"file{number}"
        file.write_bytes(random.Random(number).randbytes(50_000))
        archive = directory / f"archive{number}.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(tree.path, ".")
        items.append(Item((tree.path,), tree.digest))
        items.append(Item((str(file),), digest_of(str(file))))
        items.append(Item((str(archive), "tar"), tree.digest))
    return items
