"""Several actors in one process, of whom one at a time goes on, from one call on the file system to the next.

Each actor runs the program's own code in a thread. Before each of its calls it asks who is to go on, and waits for its
turn; so an order of steps is a list of numbers, and can be played again. Before and after the call itself there may be
misfortunes: see `Misfortune`. Time stands still but for those who sleep, and nobody sleeps while others can go on.

An actor that crashes stops where it is, for ever: none of its cleaning up is done. (Its thread is let go when all is
over and the directory is gone.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import scratch
from faults import REPEATED, Call, Counting, FakeClock
from races.actors import findings, left_in
from sccache_dtool import log
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import PROBE, Layout
from sccache_dtool.errors import CacheError
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.caller import CALLER, Owner
from sccache_dtool.liveness.process import Proc, Process
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol.leases import Lease

EVERYTHING = Rules(everything=True)
CONTENT = b"ACGT\n"

_BOOT, _SPACE = "boot", "1.1"

#: Calls after which nobody is believed to come to an end any more.
_MOST_CALLS = 4000

_LOOKS = frozenset({"lstat", "readlink", "read_text"})


class Misfortune(StrEnum):
    """What can befall one call."""

    CRASH_BEFORE = "crashes before"
    CRASH_AFTER = "crashes after"
    LOST = "done, its reply lost, and refused when it is repeated"
    DONE_EIO = "done, and EIO reported"
    EIO = "EIO"
    ESTALE = "ESTALE"
    ENOSPC = "ENOSPC"
    EDQUOT = "EDQUOT"
    EACCES = "EACCES"
    STALE = "a look-up that is out of date"


_REFUSALS = frozenset({Misfortune.EIO, Misfortune.ESTALE, Misfortune.ENOSPC, Misfortune.EDQUOT, Misfortune.EACCES})
_CHANGES = frozenset(REPEATED)


def possible(call: Call) -> list[Misfortune]:
    """The misfortunes that a call can meet."""
    found = [Misfortune.CRASH_BEFORE, Misfortune.CRASH_AFTER, Misfortune.EIO, Misfortune.ESTALE, Misfortune.EACCES]
    if call.kind in _CHANGES:
        found += [Misfortune.LOST, Misfortune.DONE_EIO]
    if call.kind in ("symlink", "mkdir", "create", "write", "rename"):
        found += [Misfortune.ENOSPC, Misfortune.EDQUOT]
    if call.kind in _LOOKS or call.kind == "names":
        found.append(Misfortune.STALE)
    return found


class Director(Protocol):
    """Decides who goes on, and what goes wrong."""

    def turn(self, current: int | None, ready: list[int]) -> int:
        """Who makes the next call: one of `ready`. `current`: who has made the last one, if it can go on."""

    def misfortune(self, call: Call) -> Misfortune | None:
        """What befalls this call."""


class Buried(BaseException):
    """Raised in the threads of those who have crashed, once nobody sees them any more."""


class _Actor:
    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.go = threading.Semaphore(0)
        self.over = False
        self.asleep = False


class Host(Proc):
    """The host of one actor, which has a process of its own as far as anybody can tell."""

    def __init__(self, number: int, dead: set[int]) -> None:
        super().__init__("/nowhere")
        self.process = Process(_BOOT, _SPACE, number + 1, 1)
        self._dead = dead

    def here(self) -> tuple[str, str]:
        return _BOOT, _SPACE

    def identify(self, pid: int) -> Process:
        return self.process

    def judge(self, process: Process) -> Verdict:
        return Verdict(State.DEAD, "gone") if process.pid - 1 in self._dead else Verdict(State.ALIVE, "running")


class _Clock(FakeClock):
    """Time passes for those who sleep, while nobody else can go on."""

    def __init__(self, play: Play) -> None:
        super().__init__(wall=time.time(), boot=time.clock_gettime(time.CLOCK_BOOTTIME))
        self._play = play

    def sleep(self, seconds: float) -> None:
        self.let_pass(seconds)
        self._play.sleeps()


class _Disk(Counting):
    """The file system as one actor sees it."""

    def __init__(self, play: Play, actor: _Actor) -> None:
        super().__init__()
        self._play = play
        self._actor = actor

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        return self._play.call(self._actor, call, do)


Act = Callable[["Play", Cache], object]


class Play:
    """One order of steps of several actors on one cache."""

    def __init__(self, scene: Scene, acts: Mapping[str, Act], director: Director) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sc-dtool-play-", dir=scratch.memory()))
        self.place = str(self.directory / "cache")
        shutil.copytree(scene.place, self.place, symlinks=True)
        self.layout = Layout(self.place)
        self.source, self.key = scene.source, scene.key
        self.made = set(scene.made)
        self.log: list[str] = []
        self.violations: list[str] = []
        self.failures: list[str] = []
        self.warnings: list[str] = []
        self.crashed: set[int] = set()
        self._holding: dict[int, Lease] = {}
        self._director = director
        self._clock = _Clock(self)
        self._seen: dict[str, list[list[str]]] = {}
        self._by: dict[str, int] = {}
        self._actors = [_Actor(number, name) for number, name in enumerate(acts)]
        self._acts = list(acts.values())
        self._over = threading.Event()
        self._buried = False
        self._here = threading.local()
        self._calls = 0
        log.show(log.NOTE + 1, lambda level, text: self.warnings.append(text))
        self._caches = [
            Cache(
                self.place,
                fs=_Disk(self, actor),
                clock=self._clock,
                proc=Host(actor.number, self.crashed),
            )
            for actor in self._actors
        ]

    def run(self) -> list[str]:
        """Play it, put everything in order, and return what is wrong."""
        with _the_same_names("play"):
            return self._run()

    def _run(self) -> list[str]:
        threads = [threading.Thread(target=self._live, args=(actor,), daemon=True) for actor in self._actors]
        try:
            for thread in threads:
                thread.start()
            self._hand_over(None)
            if not self._over.wait(60):
                self.violations.append(f"no end: {self.log[-3:]}")
            if not self.violations:
                self._recover()
        finally:
            self._buried = True
            shutil.rmtree(self.directory, ignore_errors=True)
            for actor in self._actors:
                actor.go.release()
            for thread in threads:
                thread.join(10)
        return self.violations

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return self._calls

    # -- what actors do ------------------------------------------------------------------------------------------------

    def owner(self) -> Owner:
        """Who holds what the actor holds whose turn it is: its process."""
        return Owner(CALLER, Host(self._here.actor.number, self.crashed).process, None, "actor")

    def holds(self, lease: Lease | None) -> None:
        """From now on the actor whose turn it is relies on a lease, or on none."""
        number = self._here.actor.number
        self._holding.pop(number, None)
        if lease is not None:
            self._holding[number] = lease
            self._look(f"when {self._here.actor.name} got its lease")

    # -- the baton -----------------------------------------------------------------------------------------------------

    def _live(self, actor: _Actor) -> None:
        actor.go.acquire()
        self._here.actor = actor
        try:
            self._acts[actor.number](self, self._caches[actor.number])
        except (CacheError, OSError) as error:
            self.failures.append(f"{actor.name}: {error}")
        except Buried:
            return
        except BaseException as error:
            self.violations.append(f"{actor.name}: {type(error).__name__}: {error}")
        self._holding.pop(actor.number, None)
        actor.over = True
        self._hand_over(actor)

    def _hand_over(self, actor: _Actor | None) -> None:
        """Let somebody else go on; `actor` has ended, or crashed."""
        ready = [one.number for one in self._actors if not one.over]
        if self._buried:
            return
        if not ready:
            self._over.set()
            return
        self._actors[self._director.turn(None, ready)].go.release()

    def _wait_for_turn(self, actor: _Actor, *, asleep: bool = False) -> None:
        ready = [one.number for one in self._actors if not one.over]
        awake = [number for number in ready if number != actor.number]
        if asleep:
            chosen = awake[self._calls % len(awake)] if awake else actor.number
        else:
            chosen = self._director.turn(actor.number, ready)
        if chosen != actor.number:
            self._actors[chosen].go.release()
            actor.go.acquire()
        if self._buried:
            raise Buried

    def sleeps(self) -> None:
        """Whoever waits for others lets them go on."""
        actor = getattr(self._here, "actor", None)
        if actor is not None and not self._buried:
            self._tick()
            self._wait_for_turn(actor, asleep=True)

    def _tick(self) -> None:
        self._calls += 1
        if self._calls > _MOST_CALLS:
            raise AssertionError(f"nobody comes to an end: {self.log[-3:]}")

    def call(self, actor: _Actor, call: Call, do: Callable[[], Any]) -> Any:
        """One call of an actor, when its turn comes."""
        if self._buried:
            raise Buried
        if getattr(self._here, "actor", None) is not actor:
            return do()  # a thread that beats for it
        self._tick()
        self._wait_for_turn(actor)
        chosen = self._director.misfortune(call)
        self.log.append(f"{actor.name}: {call}".replace(self.place, "$C") + (f" [{chosen}]" if chosen else ""))
        if chosen is Misfortune.CRASH_BEFORE:
            self._crash(actor)
        if chosen in _REFUSALS:
            raise _error(chosen.name, call)
        if chosen is Misfortune.STALE:
            return self._out_of_date(actor, call, do)
        before = self._leases_in(call)
        result = do()
        self._note(actor, call, result, before)
        if chosen is Misfortune.CRASH_AFTER:
            self._crash(actor)
        if chosen is Misfortune.LOST:
            raise OSError(REPEATED[call.kind], os.strerror(REPEATED[call.kind]), call.path)
        if chosen is Misfortune.DONE_EIO:
            raise _error("EIO", call)
        return result

    def _crash(self, actor: _Actor) -> None:
        self.crashed.add(actor.number)
        self._holding.pop(actor.number, None)
        actor.over = True
        self._hand_over(actor)
        actor.go.acquire()
        raise Buried

    # -- what is seen --------------------------------------------------------------------------------------------------

    def _leases_in(self, call: Call) -> list[str]:
        """The leases that a rename into the items publishes."""
        if call.kind == "rename" and "/tmp/" in call.arguments[0] and "/items/" in call.arguments[1]:
            return _names(f"{call.arguments[0]}/use")
        return []

    def _note(self, actor: _Actor, call: Call, result: Any, published: list[str]) -> None:
        if call.kind == "symlink" and "/items/" in call.path and "/use/" in call.path:
            self.made.add(call.path.rpartition("/")[2])
        self.made.update(published)
        if call.kind in _CHANGES:
            self._by[str(call.arguments[1]) if call.kind in ("rename", "symlink") else call.path] = actor.number
            self._look(f"after {self.log[-1]}")
        elif call.kind == "names":
            self._seen.setdefault(call.path, []).append(result)

    def _look(self, when: str) -> None:
        """While a lease exists, what its user was given stays complete and unchanged at its path."""
        for number, lease in [*self._holding.items()]:
            try:
                data = Path(lease.path).read_bytes()
            except OSError as error:
                data = str(error).encode()
            if data != CONTENT:
                self.violations.append(f"{when}: {self._actors[number].name} reads {data!r}")

    def _out_of_date(self, actor: _Actor, call: Call, do: Callable[[], Any]) -> Any:
        """A listing as it once was, or that something is not there that somebody else has just made."""
        result = do()
        if call.kind == "names":
            if any(name.startswith(PROBE) and self._is_ours(actor, call, name) for name in result):
                return result  # a change of our own makes the client ask the server
            old = self._seen.get(call.path, [])
            return old[0] if old else result
        if self._by.get(call.path, actor.number) != actor.number:
            raise _error("ENOENT", call)
        return result

    def _is_ours(self, actor: _Actor, call: Call, name: str) -> bool:
        return self._by.get(f"{call.path}/{name}") == actor.number

    # -- the end -------------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """When all have ended: `clean` and `doctor --fix` leave a cache in order, and nothing is lost."""
        host = Host(len(self._actors), {actor.number for actor in self._actors})
        self._clock.let_pass(200_000)
        keeper = Cache(self.place, fs=FileSystem(), clock=self._clock, proc=host)
        try:
            keeper.clean(EVERYTHING, keep_for=0)
            for finding in keeper.examine():
                if finding.repair is not None:
                    finding.repair()
            keeper.clean(EVERYTHING, keep_for=0)
            wrong = findings(keeper)
            uses = [use.lease for use in keeper.uses(self.key)]
            count = keeper.item(self.key).uses
        except (CacheError, OSError) as error:
            self.violations.append(f"cannot be put in order: {error}")
            return
        self.violations += [f"doctor: {one}" for one in wrong]
        self.violations += [f"left: {what}: {where}" for what, where in left_in(self.place).items()]
        if sorted(uses) != sorted(self.made) or count != len(uses):
            twice = sorted({use for use in uses if uses.count(use) > 1})
            self.violations.append(
                f"history: lost {sorted(self.made - set(uses))}, unknown {sorted(set(uses) - self.made)}, "
                f"twice {twice}, counted {count} of {len(uses)}"
            )


class Scene:
    """A cache before the curtain rises: made once, and copied for each play."""

    def __init__(self, directory: Path, prepare: Iterable[Callable[[Scene], object]] = ()) -> None:
        self.place = str(directory / "cache")
        self.source = str(directory / "ref")
        Path(self.source).write_bytes(CONTENT)
        self.made: set[str] = set()
        self.cache = Cache(self.place, fs=FileSystem(), proc=Host(99, set()))
        self.layout = Layout(self.place)
        self.key = self.cache.key_for([self.source])
        with _the_same_names("scene"):
            self.cache.init()
            for act in prepare:
                act(self)

    def hold(self) -> Lease:
        """A lease of a process that is alive until told otherwise."""
        owner = Owner(CALLER, Process(_BOOT, _SPACE, 100, 1), None, "scene")
        lease = self.cache.hold(owner, self.cache.item_request([self.source]))
        self.made.add(lease.name)
        return lease

    def use(self) -> None:
        """Have it in the cache, unused."""
        lease = self.hold()
        lease.release()
        lease.holder.retire()

    def orphan(self) -> None:
        """A lease whose holder has ended."""
        self.hold().holder.retire()


def _the_same_names(seed: str) -> contextlib.AbstractContextManager[object]:
    """Names are drawn by chance, and listings are sorted: for an order to be the same again they must be, too."""
    return mock.patch("os.urandom", random.Random(seed).randbytes)


def _error(name: str, call: Call) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), call.path)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
