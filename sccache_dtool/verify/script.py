"""A whole verification: the script that both hosts run, with barriers and one result file for each host.

Each side runs the steps of the checks. What they return is the result of that side. The results of both sides are
evaluated together, and in the same way on both hosts.

Two hosts that share nothing but a directory find each other so: the peer makes a scratch directory and waits in it; the
leader looks for such directories, and marks one after the other until a peer answers: there may be some that were
killed. A barrier is a mark of each host. A result file says who its host is, and what it has found so far. Whoever may
write in the directory can forge all of it, and gets a wrong verdict for that. But each read and each wait is bounded,
no link is followed, no text that is shown drives a terminal, and nothing says what the other host is to do.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import UnionType
from typing import Any, NamedTuple

from sccache_dtool import __version__
from sccache_dtool.clock import Clock
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.mounts import mount_of
from sccache_dtool.disk.names import is_of_verification, unique
from sccache_dtool.errors import FULL, GONE, CacheError, TimedOut, explain
from sccache_dtool.fallback import collecting
from sccache_dtool.liveness.caller import host_name
from sccache_dtool.liveness.process import Proc
from sccache_dtool.units import short_duration
from sccache_dtool.verify.checks import CHECKS, Check
from sccache_dtool.verify.directory import LEADER, LONGEST_DELAY, PEER, Directory, scratch
from sccache_dtool.verify.findings import (
    Announce,
    Finding,
    Report,
    Weight,
    broken_off,
    cannot_be_used,
    known_of,
    reason,
)

#: Seconds that one host waits for the other at a barrier (only a stopped one needs longer for a step), and after which
#: a session ends, even if the other host is in time at each barrier (a minute or two is usual).
PATIENCE, _LONGEST_SESSION = 120.0, 3600.0

#: Seconds in which a peer that lives answers a leader, and peers that one leader calls: hardly so many were killed.
ANSWER, _PEERS_CALLED = 10.0, 20

#: Seconds between two looks: the first; the longest at a barrier, and while a host waits for the other to come.
_FIRST_PAUSE, _LONGEST_PAUSE, _RELAXED = 0.005, 0.1, 1.0

#: What is said of the other host where no check is about it.
TWO_HOSTS = "two hosts"

#: Characters of the longest text of another host that is shown.
_LONGEST_TEXT = 600

#: Marks in their order: the leader's choice of this peer, the first barrier, and the end of the session.
CLAIM, FIRST, END = "00-000", "00-001", "99-999"


class Failed(CacheError):
    """The other host could not go on, or what it left cannot be read."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="see what the other host reports, and start both again with the same release")


def _shown(text: str) -> str:
    return records.printable(text)[:_LONGEST_TEXT]


class Result(NamedTuple):
    """What the result file of a host says: who it is, and what it has found alone and between hosts."""

    host: str
    boot: str
    device: str
    release: str
    meeting: str
    kind: str  # of its file system
    alone: list[Finding]
    between: list[Finding]

    def is_worth_trying(self) -> bool:
        """Whether what this host found alone leaves anything to be tried by two."""
        return all(one.weight < Weight.UNTRIED for one in self.alone)

    def encode(self) -> str:
        """The content of the file."""
        lists = {name: [one.as_fields() for one in getattr(self, name)] for name in ("alone", "between")}
        return records.encode_document(self._asdict() | lists)

    @classmethod
    def decode(cls, host: str, document: object) -> Result:
        """What another host has written: each field of its type, and texts that can be shown. Raises Failed."""

        def typed(fields: object, types: Mapping[str, type | UnionType]) -> dict[str, Any]:
            values = fields if isinstance(fields, dict) else {}
            for name, kind in types.items():
                if not isinstance(values.get(name), kind):
                    raise Failed(f"cannot read what {host} wrote ({_shown(name)}): does it run the same release?")
            return {name: _shown(values[name]) if isinstance(values[name], str) else values[name] for name in types}

        def finding(document: object) -> Finding:
            fields = typed(document, {"check": str, "weight": int, "what": str, "figures": dict})
            fields["figures"] = typed(fields["figures"], dict.fromkeys(fields["figures"], str | int | float | None))
            weight = {"weight": {weight.value: weight for weight in Weight}.get(fields["weight"])}
            return Finding(**fields | typed(weight, {"weight": Weight}))

        fields = typed(document, dict.fromkeys(cls._fields, str) | {"alone": list, "between": list})
        return cls(**fields | {name: [finding(one) for one in fields[name]] for name in ("alone", "between")})


class Session:
    """One of the two hosts, in the scratch directory of both.

    Left as a context, it waits until the other host has read everything, too, and removes the directory.
    """

    def __init__(self, directory: Directory, me: str, own: Result) -> None:
        self.directory, self.me, self.own, self._other = directory, me, own, PEER if me == LEADER else LEADER
        self.other = f"the {self._other}"  # by name, once its result file was read
        self._token = unique()  # in each mark: a lost reply is not taken for somebody else's mark
        self._check = self._passed = self._results = 0
        self._is_other_silent = False
        self._end = directory.clock.monotonic() + _LONGEST_SESSION

    def mark(self, name: str, why: str = "") -> None:
        """Leave a mark. Raises FileExistsError if another process has left it on this side."""
        text, path = f"{self._token} {why}"[: records.LIMIT], f"{self.directory.path}/{name}.{self.me}"
        try:
            self.directory.fs.put_record(text, path)
        except FileExistsError:
            if self.directory.fs.get_record(path) != text:
                raise  # otherwise a reply was lost

    def publish(self) -> None:
        """Write this host's result file, under a new name: a file that is replaced may still be read as it was."""
        self._results += 1
        self.directory.put(f"result-{self._results:02}.{self.me}", self.own.encode())
        self.directory.remove(f"result-{self._results - 1:02}.{self.me}")

    def names(self) -> set[str]:
        """All that the other host has written."""
        suffix = f".{self._other}"
        return {name.removesuffix(suffix) for name in self.directory.fresh_names() if name.endswith(suffix)}

    def read(self) -> dict[str, Any]:
        """The last result file of the other host that can be read; empty if there is none."""
        for name in sorted(filter(lambda name: name.startswith("result-"), self.names()), reverse=True):
            with contextlib.suppress(OSError, records.Damaged):
                return records.decode_document(self._text(name))
        return {}

    def read_result(self) -> Result:
        """The same, decoded. Raises Failed if the other host runs another script."""
        result = Result.decode(self.other, self.read())
        if result.release != self.own.release:
            raise Failed(f"{self.other} runs another release: {result.release}, not {self.own.release}")
        self.other = result.host
        return result

    def next_check(self) -> None:
        """Count the barriers of another check."""
        self._check, self._passed = self._check + 1, 0

    def barrier(self) -> None:
        """Wait until the other host comes as far, or goes on to a later check, as it does if it fails in this one.

        Raises TimedOut, and Failed if the other host has ended early.
        """
        self._passed += 1
        here = f"{self._check:02}-{self._passed:03}"
        self.mark(here)
        if self.directory.clock.monotonic() > self._end:
            self._is_other_silent = True
            hint = "other users may be able to write in that directory: give one of your own on that mount"
            raise TimedOut(f"{self.other} has not finished within {short_duration(_LONGEST_SESSION)}", hint=hint)
        if not any(here <= name < END for name in self.wait_for(here, PATIENCE, self.other)):
            text = ""
            with contextlib.suppress(OSError):
                text = self._text(END).partition(" ")[2]
            raise Failed(f"{self.other} has ended early: {_shown(text) or 'no reason given'}")

    def end(self, why: str = "") -> None:
        """Say that this host reads nothing more, and why, if early. If that fails, the other host waits in vain."""
        with contextlib.suppress(OSError):
            self.mark(END, why)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, OSError | CacheError):
            self.end(reason(error) if error else "")
            with contextlib.suppress(OSError, TimedOut):
                if not self._is_other_silent:
                    self.wait_for(END, PATIENCE, self.other)
        self.directory.remove_all()

    def _text(self, name: str) -> str:
        return self.directory.fs.get_record(f"{self.directory.path}/{name}.{self._other}")

    def wait_for(self, here: str, seconds: float, whom: str, longest_pause: float = _LONGEST_PAUSE) -> set[str]:
        """Wait until the other host has left this mark or a later one: all that it has written. Raises TimedOut."""
        clock, pause = self.directory.clock, _FIRST_PAUSE
        end = clock.monotonic() + seconds
        while True:
            names = self.names()
            if any(here <= name <= END for name in names):
                return names
            if clock.monotonic() > end:
                self._is_other_silent = True
                hint = "run the command on both hosts, with the same directory on the same mount; --wait waits longer"
                raise TimedOut(f"no message from {whom} within {seconds:.0f} s", hint=hint)
            clock.sleep(pause)
            pause = min(2 * pause, longest_pause)


def join_as_peer(scratch: Directory, own: Result, wait: float) -> Session:
    """As the peer: a session with the leader, in a directory of its own. Raises TimedOut if none comes in time."""
    session, parent = Session(scratch, PEER, own), os.path.dirname(scratch.path)
    session.publish()
    scratch.announce(f"waiting {wait:.0f} s at most for the other host, which is to verify {parent}, too")
    session.wait_for(CLAIM, wait, "a leader", _RELAXED)
    return session


def begin_as_leader(parent: Directory, own: Result, wait: float) -> Session | None:
    """As the leader: a session with the first peer that answers; None if there is none within `wait` seconds."""
    seen, called, end = set[str](), 0, parent.clock.monotonic() + wait
    if wait:
        parent.announce(f"waiting {wait:.0f} s at most for the peer, which is to look at {parent.path}")
    while True:
        before, is_last = called, parent.clock.monotonic() >= end
        for name in sorted(set(filter(is_of_verification, parent.fresh_names())) - seen):
            session = Session(parent.at(name), LEADER, own)
            try:
                result = session.read()  # empty: it is not complete
                seen.update([name] if result else [])
                if result.get("meeting") == own.meeting and called < _PEERS_CALLED:
                    called += 1
                    session.mark(CLAIM)
                    session.publish()
                    session.wait_for(FIRST, ANSWER, "the peer")
                    return session
            except FileExistsError:
                pass  # it has another leader
            except TimedOut:
                session.end("it has not answered in time")
            except OSError as error:
                if error.errno in FULL:
                    raise
                if error.errno not in GONE:  # otherwise it has given up
                    seen.add(name)
                    parent.announce(f"cannot take part in {session.directory.path}: {explain(error)}")
        if is_last and called == before:  # otherwise others may have come meanwhile
            return None
        parent.clock.sleep(_RELAXED)


class Role(NamedTuple):
    """Which of the two hosts this is, in which meeting, and how many seconds it waits for the other."""

    is_peer: bool
    meeting: str
    wait: float


def verify(
    fs: FileSystem,
    directory: str,
    role: Role,
    announce: Announce,
    *,
    clock: Clock | None = None,
    proc: Proc | None = None,
    mounts: str = "/proc/self/mountinfo",
    longest_delay: float = LONGEST_DELAY,
) -> Report:
    """Try out the file system of `directory`, with the other host if it comes within the role's time.

    Both hosts have the same verdict, from the same findings. What is made is removed; nothing else in `directory` is
    touched. `announce`: told what is waited for. `clock` and what follows are for tests.

    Raises UsageError if `directory` is not one in which this user may write, and NoSpace if the file system is full,
    which says nothing about it. The peer also raises TimedOut and CacheError, if the leader does not come, or does not
    reach a verdict; the leader reports that as a finding.
    """
    try:
        fs.names(directory)
        is_shared, device = fs.is_shared(directory), str(fs.lstat(directory).st_dev)
    except OSError as error:
        raise cannot_be_used(directory, error) from error
    mount, here = mount_of(directory, mounts), (proc or Proc()).here()
    kind, boot = records.printable(mount.type) if mount else "of unknown type", here[0] if here else ""
    own = Result(host_name(), boot, device, __version__, role.meeting, kind, [*known_of(mount)], [])
    if any(one.weight is Weight.UNFIT for one in own.alone):
        return _judge(directory, own)  # what the mount tells is enough: nothing is even tried
    parent = Directory(fs, clock or Clock(), directory, is_shared, kind, announce, longest_delay)
    try:
        with scratch(parent) as place:
            if role.is_peer:
                return _of_two(directory, join_as_peer(place, own, role.wait))
            own.alone.extend(_run_alone(place))
        try:
            session = begin_as_leader(parent, own, role.wait)
        except OSError as error:
            return _judge(directory, own, None, _broken(error))
        if session:
            return _of_two(directory, session)
        what = "no peer took part: start `sc-dtool doctor --verify-filesystem DIR --peer` on another host first"
        return _judge(directory, own, None, Finding(TWO_HOSTS, Weight.TOLD, what))
    except OSError as error:
        raise broken_off(directory, error) from error


def _of_two(directory: str, session: Session) -> Report:
    """Run the checks with the other host; the report that follows from the results of both.

    If the other host falls silent or cannot go on, the leader reports that, after what was found until then. What this
    host has no room for is raised, and the other host is told.
    """
    is_leader, other, broken = session.me == LEADER, None, list[Finding]()
    with session:
        try:
            session.barrier()
            other = session.read_result()
            if (session.own if is_leader else other).is_worth_trying():
                _run_with(session)
            session.next_check()
            session.barrier()
            other = session.read_result()
        except (OSError, CacheError) as error:
            if not is_leader:
                raise
            session.end(reason(error))
            broken.append(_broken(error))
            with contextlib.suppress(OSError, CacheError):
                other = other and session.read_result()
        if is_leader or not other:
            return _judge(directory, session.own, other, *broken)
        return _judge(directory, other, session.own)


def _broken(error: Exception) -> Finding:
    """What it means for the leader that two hosts did not reach the end. Raises an error that means "no space left"."""
    if isinstance(error, OSError) and error.errno in FULL:
        raise error
    return Finding(TWO_HOSTS, Weight.ONE_HOST, f"broken off: {reason(error)}")


def _judge(directory: str, leader: Result, peer: Result | None = None, *more: Finding) -> Report:
    """The report that follows from the results, in the same way on both hosts. `more`: why it is not complete."""
    if not peer:
        return Report(directory, leader.kind, (leader.host,), False, (*leader.alone, *more))
    of_peer = (one.on(peer.host) for one in peer.alone if one.weight >= Weight.ONE_HOST)
    between = evaluate(CHECKS, (leader, peer), not more) if leader.is_worth_trying() else ()
    independent = (leader.boot, leader.device) != (peer.boot, peer.device)
    found = (*leader.alone, *of_peer, *between, *more)
    return Report(directory, leader.kind, (leader.host, peer.host), independent, found)


def _run_alone(directory: Directory) -> Iterator[Finding]:
    """Run the checks of one host. What the program does without is reported, too."""
    for number, check in enumerate(CHECKS):
        if check.alone:
            with collecting() as refused:
                results = _play_sides(check, directory, f"check-{number:02}")
            yield check.evaluate(results, between=False)
            yield from (Finding(check.name, Weight.TOLD, str(text)) for _, text in refused.messages)


def _play_sides(check: Check, directory: Directory, name: str) -> Sequence[Finding]:
    barrier = threading.Barrier(check.sides)

    def play(me: str) -> Finding:
        found = None
        try:
            found = check.play(replace(directory, me=me, barrier=barrier.wait), name)
            return found
        finally:
            if not found or found.weight > Weight.TOLD:
                barrier.abort()  # or the other side would wait for ever

    if check.sides == 1:
        return [play(LEADER)]
    with ThreadPoolExecutor(1) as pool:
        try:
            peer = pool.submit(play, PEER)
        except RuntimeError as error:  # the system gives no more threads
            return [Finding("", Weight.UNTRIED, f"could not be tried: {error}")]
        return play(LEADER), peer.result()


def _run_with(session: Session) -> None:
    """Run the checks between hosts, and keep this host's result file up to date with what its side finds."""
    directory = replace(session.directory, me=session.me, barrier=session.barrier, is_alone=False)
    for number, check in enumerate(check for check in CHECKS if check.sides > 1):
        session.next_check()
        found = check.play(directory, f"check-{number:02}")
        session.own.between.append(found._replace(check=check.title(between=True)))
        session.publish()


def evaluate(checks: Sequence[Check], results: Sequence[Result], is_complete: bool) -> Iterator[Finding]:
    """What the results of two hosts show. `is_complete`: both have finished, so that each check must be there."""
    hosts, sides = [result.host for result in results], [{one.check: one for one in side.between} for side in results]
    for check in (check for check in checks if check.sides > 1):
        title = check.title(between=True)
        found = [(host, side[title]) for host, side in zip(hosts, sides, strict=True) if title in side]
        if len(found) < len(sides) and not is_complete:
            return
        bad = [one.on(host) for host, one in found if one.weight >= Weight.ONE_HOST]
        try:
            yield check.evaluate(bad or [side[title] for side in sides], between=True)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            what = f"the results of {' and '.join(hosts)} do not match: do both run the same release?"
            yield Finding(title, Weight.ONE_HOST, what)
