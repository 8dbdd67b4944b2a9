"""What two hosts that share nothing but a scratch directory leave there for each other: marks, and a result file each.

A barrier is a mark of each host; at the first one they introduce themselves. Whoever may write in the directory can
forge all of it, and gets a wrong verdict for that. But each read and each wait is bounded, no link is followed, no text
that is shown drives a terminal, and nothing says what the other host is to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, TypeVar

from sccache_dtool.disk import records
from sccache_dtool.disk.names import unique
from sccache_dtool.errors import CacheError, TimedOut
from sccache_dtool.units import short_duration
from sccache_dtool.verify.directory import LEADER, PEER, Directory
from sccache_dtool.verify.findings import reason

#: Seconds that one host waits for the other at a barrier: only a stopped one needs longer for a step.
PATIENCE = 120.0

#: Seconds between two looks: the first; the longest at a barrier, and while a host waits for the other to come.
_FIRST_PAUSE, _LONGEST_PAUSE, RELAXED = 0.005, 0.1, 1.0

#: Seconds after which a session ends, even if the other host is in time at each barrier. A minute or two is usual.
_LONGEST_SESSION = 3600.0

#: Characters of the longest text of another host that is shown.
_LONGEST_TEXT = 600

#: Marks in their order: an introduction, the first barrier, the end of the script, and of the session.
HELLO, FIRST, DONE, END = "00-000", "00-001", "99-998", "99-999"

Found = TypeVar("Found")


class Ended(Exception):
    """The other host has finished its script."""


class Failed(CacheError):
    """The other host could not go on, or what it left cannot be read."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="see what the other host reports, and start both again with the same release")


def shown(value: object) -> str:
    """What another host has written, as a text that can be shown."""
    return records.printable(str(value))[:_LONGEST_TEXT]


def typed(host: str, fields: object, types: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """The fields that `host` has written, each of its type, with texts that can be shown. Raises Failed."""
    values = fields if isinstance(fields, dict) else {}
    for name, kind in types.items():
        if not isinstance(values.get(name), kind):
            raise Failed(f"cannot read what {host} wrote ({shown(name)}): does it run the same release?")
    return {name: shown(values[name]) if isinstance(values[name], str) else values[name] for name in types}


def wait_for(
    directory: Directory, look: Callable[[], Found | None], seconds: float, whom: str, pause: float = _LONGEST_PAUSE
) -> Found:
    """Look, with pauses of at most `pause` seconds, until there is something. Raises TimedOut, which names `whom`."""
    end, next_pause = directory.clock.monotonic() + seconds, _FIRST_PAUSE
    while not (found := look()):
        if directory.clock.monotonic() > end:
            hint = "run the command on both hosts, with the same directory on the same mount; --wait waits longer"
            raise TimedOut(f"no message from {whom} within {seconds:.0f} s", hint=hint)
        directory.clock.sleep(next_pause)
        next_pause = min(2 * next_pause, pause)
    return found


class Session:
    """One of the two hosts, in the scratch directory of both.

    Left as a context, it waits until the other host has read everything, too, and removes the directory.
    """

    def __init__(self, directory: Directory, me: str) -> None:
        self.directory, self.me, self._other = directory, me, PEER if me == LEADER else LEADER
        self.other = f"the {self._other}"  # by name, once it has introduced itself
        self._token = unique()  # in all that this host writes: a lost reply is not taken for somebody else's text
        self._check = self._passed = self._results = 0
        self._has_ended = self._is_other_silent = False
        self._end = directory.clock.monotonic() + _LONGEST_SESSION

    def put(self, name: str, fields: Mapping[str, object]) -> None:
        """Leave a mark. Raises FileExistsError if another process has left it on this side."""
        text, path = records.encode({**fields, "token": self._token}), f"{self.directory.path}/{name}.{self.me}"
        try:
            self.directory.fs.put_record(text, path)
        except FileExistsError:
            if self.directory.fs.get_record(path) != text:
                raise  # otherwise a reply was lost

    def names(self) -> set[str]:
        """All that the other host has written."""
        suffix = f".{self._other}"
        return {name.removesuffix(suffix) for name in self.directory.fresh_names() if name.endswith(suffix)}

    def read(self, wanted: str) -> dict[str, Any]:
        """The last thing that the other host has written whose name begins like this; empty if it cannot be read."""
        for name in sorted((name for name in self.names() if name.startswith(wanted)), reverse=True):
            with contextlib.suppress(OSError, records.Damaged):
                text = self.directory.fs.get_record(f"{self.directory.path}/{name}.{self._other}")
                return records.decode_document(text)
        return {}

    def meet(self, me: Mapping[str, str]) -> dict[str, str]:
        """How the other host has introduced itself. Raises Failed if it does not run the same script."""
        hello = typed(self.other, self.read(HELLO), dict.fromkeys(me, str))
        if hello["release"] != me["release"]:
            raise Failed(f"{self.other} runs another release: {hello['release']}, not {me['release']}")
        self.other = hello["host"]
        return hello

    def next_check(self) -> None:
        """Count the barriers of another check."""
        self._check, self._passed = self._check + 1, 0

    def barrier(self, here: str = "") -> None:
        """Wait until the other host comes as far, or goes on to a later check, as it does if it fails in this one.

        Raises TimedOut; Ended if the other host has finished its script; and Failed if it has ended that early.
        """
        self._passed += 1
        here = here or f"{self._check:02}-{self._passed:03}"
        self.put(here, {})
        if self.directory.clock.monotonic() > self._end:
            self._is_other_silent = True
            hint = "other users may be able to write in that directory: give one of your own on that mount"
            raise TimedOut(f"{self.other} has not finished within {short_duration(_LONGEST_SESSION)}", hint=hint)
        names = self._wait_for(here)
        if here in names or any(here <= name < DONE for name in names):
            return
        if DONE in names:
            raise Ended
        why = shown(self.read(END).get("reason") or "no reason given")
        raise Failed(f"{self.other} has ended early: {why}")

    def publish(self, result: Mapping[str, object]) -> None:
        """Write this host's result file, under a new name: a file that is replaced may still be read as it was."""
        self._results += 1
        self.directory.put(f"result-{self._results:02}.{self.me}", records.encode_document(result))
        if self._results > 1:
            self.directory.remove(f"result-{self._results - 1:02}.{self.me}")

    def end(self, why: str = "") -> None:
        """Say that this host reads nothing more, and why, if early. If that fails, the other host waits in vain."""
        if not self._has_ended:
            self._has_ended = True
            with contextlib.suppress(OSError):
                self.put(END, {"reason": why})

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, OSError | CacheError):
            self.end(reason(error) if error else "")
            with contextlib.suppress(OSError, TimedOut):
                if not self._is_other_silent:
                    self._wait_for(END)
        self.directory.remove_all()

    def _wait_for(self, here: str) -> set[str]:
        """Wait until the other host has left this mark or a later one: all that it has written."""

        def look() -> set[str]:
            names = self.names()
            return names if any(here <= name <= END for name in names) else set()

        try:
            return wait_for(self.directory, look, PATIENCE, self.other)
        except TimedOut:
            self._is_other_silent = True
            raise
