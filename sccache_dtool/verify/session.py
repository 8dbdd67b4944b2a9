"""How two hosts that share nothing but a directory find each other, and what they leave there for each other.

The peer makes a scratch directory and waits in it; the leader looks for such directories, and marks one after the other
until a peer answers: there may be some that were killed. A barrier is a mark of each host. A result file says who its
host is, and what it has found so far. Whoever may write in the directory can forge all of it, and gets a wrong verdict
for that. But each read and each wait is bounded, no link is followed, no text that is shown drives a terminal, and
nothing says what the other host is to do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from types import UnionType
from typing import Any, NamedTuple

from sccache_dtool.disk import records
from sccache_dtool.disk.names import is_of_verification, unique
from sccache_dtool.errors import FULL, GONE, CacheError, TimedOut, explain
from sccache_dtool.units import short_duration
from sccache_dtool.verify.directory import LEADER, PEER, Directory
from sccache_dtool.verify.findings import Finding, Weight, reason

#: Seconds that one host waits for the other at a barrier: only a stopped one needs longer for a step.
PATIENCE = 120.0

#: Seconds in which a peer that lives answers a leader, and peers that one leader calls: hardly so many were killed.
ANSWER, _PEERS_CALLED = 10.0, 20

#: Seconds between two looks: the first; the longest at a barrier, and while a host waits for the other to come.
_FIRST_PAUSE, _LONGEST_PAUSE, _RELAXED = 0.005, 0.1, 1.0

#: Seconds after which a session ends, even if the other host is in time at each barrier. A minute or two is usual.
_LONGEST_SESSION = 3600.0

#: Characters of the longest text of another host that is shown.
_LONGEST_TEXT = 600

#: Marks in their order: the leader's choice of this peer, the first barrier, and the end of the session.
CLAIM, FIRST, END = "00-000", "00-001", "99-999"


class Failed(CacheError):
    """The other host could not go on, or what it left cannot be read."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="see what the other host reports, and start both again with the same release")


def _typed(host: str, fields: object, types: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """The fields that `host` has written, each of its type, with texts that can be shown. Raises Failed."""
    values = fields if isinstance(fields, dict) else {}
    for name, kind in types.items():
        if not isinstance(values.get(name), kind):
            raise Failed(f"cannot read what {host} wrote ({_shown(name)}): does it run the same release?")
    return {name: _shown(values[name]) if isinstance(values[name], str) else values[name] for name in types}


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

    @property
    def is_worth_trying(self) -> bool:
        """Whether what this host found alone leaves anything to be tried by two."""
        return all(one.weight < Weight.UNTRIED for one in self.alone)

    def encode(self) -> str:
        """The content of the file."""
        lists = {name: [one.as_fields() for one in getattr(self, name)] for name in ("alone", "between")}
        return records.encode_document(self._asdict() | lists)

    @classmethod
    def decode(cls, host: str, document: object) -> Result:
        """What another host has written. Raises Failed if its fields are of other types."""
        fields = _typed(host, document, dict.fromkeys(cls._fields, str) | {"alone": list, "between": list})
        for name in ("alone", "between"):
            fields[name] = [_decode_finding(host, one) for one in fields[name]]
        return cls(**fields)


def _decode_finding(host: str, document: object) -> Finding:
    fields = _typed(host, document, {"check": str, "weight": int, "what": str, "figures": dict})
    figures = _typed(host, fields["figures"], dict.fromkeys(fields["figures"], str | int | float | None))
    if fields["weight"] not in list(Weight):
        raise Failed(f"cannot read what {host} wrote (weight): does it run the same release?")
    return Finding(fields["check"], Weight(fields["weight"]), fields["what"], figures)


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
        for name in sorted((name for name in self.names() if name.startswith("result-")), reverse=True):
            with contextlib.suppress(OSError, records.Damaged):
                return records.decode_document(self.directory.fs.get_record(self._path(name)))
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
                text = self.directory.fs.get_record(self._path(END)).partition(" ")[2]
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

    def _path(self, name: str) -> str:
        return f"{self.directory.path}/{name}.{self._other}"

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
                if result := session.read():  # otherwise it is not complete
                    seen.add(name)
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
