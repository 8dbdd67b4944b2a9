"""What two hosts that share nothing but a scratch directory leave there for each other: marks, and a result file each.

A barrier is a mark of each host. Whoever may write in the directory can forge both: each field is read as what it must
be, and each wait is bounded. Nothing in them says what the other host is to do.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from sccache_dtool import __version__
from sccache_dtool.disk import records
from sccache_dtool.disk.names import unique
from sccache_dtool.errors import CacheError, TimedOut
from sccache_dtool.units import short_duration
from sccache_dtool.verify.directory import Directory

LEADER, PEER = "leader", "peer"

#: Seconds that one host waits for the other at a barrier: only a stopped one needs longer for a step.
PATIENCE = 120.0

#: Seconds between two looks: the first; the longest at a barrier, and while a host waits for the other to come.
_FIRST_PAUSE, _LONGEST_PAUSE, RELAXED = 0.005, 0.1, 1.0

#: Seconds after which a session ends, even if the other host is in time at each barrier. A minute or two is usual.
_LONGEST_SESSION = 3600.0

#: Characters of the longest name that a host has (HOST_NAME_MAX), and of a sentence in a result.
LONGEST_NAME, _LONGEST_TEXT = 64, 600

Found = TypeVar("Found")


class Ended(Exception):
    """The other host has ended its script."""


class Failed(Exception):
    """The other host could not go on or do its part of a check, or what it left makes no sense."""


class Fields:
    """What a host has written. A field that is missing, of another type or out of bounds raises Failed."""

    def __init__(self, host: str, fields: Mapping[str, object]) -> None:
        self.host = host
        self._fields = fields

    def __contains__(self, field: str) -> bool:
        return field in self._fields

    def text(self, field: str, pattern: str = ".*") -> str:
        """A text that can be shown, and that a regular expression matches as a whole."""
        value = self._fields.get(field)
        if not isinstance(value, str) or re.fullmatch(pattern, shown := records.printable(value)) is None:
            raise self._garbled(field)
        return shown[:_LONGEST_TEXT]

    def number(self, field: str, least: float, most: float) -> float:
        """A number from `least` to `most`."""
        value = self._fields.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self._garbled(field)
        return value

    def fields(self, field: str) -> Fields:
        """Fields in a field."""
        value = self._fields.get(field)
        if not isinstance(value, dict):
            raise self._garbled(field)
        return Fields(self.host, value)

    def _garbled(self, field: str) -> Failed:
        return Failed(f"{self.host}: what was said makes no sense ({field}): another release?")


class Host(NamedTuple):
    """A host: its name, and what two have in common that share more than the file system."""

    name: str
    boot: str  # of the kernel
    device: str  # of the mount


def wait_for(
    directory: Directory, look: Callable[[], Found | None], seconds: float, whom: str, pause: float = _LONGEST_PAUSE
) -> Found:
    """Look, with pauses of at most `pause` seconds, until there is something. Raises TimedOut, which names `whom`."""
    end, next_pause = directory.clock.monotonic() + seconds, _FIRST_PAUSE
    while (found := look()) is None:
        if directory.clock.monotonic() > end:
            hint = "run the command on both hosts, with the same directory on the same mount; --wait waits longer"
            raise TimedOut(f"no message from {whom} within {seconds:.0f} s", hint=hint)
        directory.clock.sleep(next_pause)
        next_pause = min(2 * next_pause, pause)
    return found


class Session:
    """One of the two hosts, in the scratch directory of both. Left as a context, it waits for the other to leave."""

    def __init__(self, directory: Directory, me: str) -> None:
        self.directory, self.me, self._other = directory, me, PEER if me == LEADER else LEADER
        self.other = f"the {self._other}"  # by name, once it has introduced itself
        self._exchange = directory.at("exchange")
        self._token = unique()  # in all that this host writes: a lost reply is not taken for somebody else's text
        self.check = self._passed = 0
        self._result = ""
        self._is_other_silent = False
        self._end = directory.clock.monotonic() + _LONGEST_SESSION

    def introduce(self, me: Host, meeting: str) -> None:
        """Take this side in this directory. Raises FileExistsError if another process has taken it."""
        if self.me == PEER:
            self.directory.make("exchange")
        hello = {"host": me.name, "boot": me.boot, "device": me.device, "release": __version__, "meeting": meeting}
        self._put("hello", hello)

    def hello(self) -> Fields | None:
        """How the other host has introduced itself; None if it has not done so yet."""
        return self._read("hello") if "hello" in self._names_of_other() else None

    def meet(self) -> Host:
        """The other host. Raises Failed if it is not one that runs the same script."""
        hello = self.hello() or Fields(self.other, {})
        host = Host(hello.text("host")[:LONGEST_NAME], hello.text("boot"), hello.text("device", "[0-9]{1,20}"))
        hello.text("release", re.escape(__version__))
        self.other = host.name
        return host

    def has_answered(self) -> bool:
        """Whether the other host has come to the first barrier."""
        return "00-001" in self._names_of_other()

    def next_check(self) -> None:
        """Count the barriers of another check."""
        self.check, self._passed = self.check + 1, 0

    def barrier(self) -> None:
        """Wait until the other host comes as far, or goes on to a later check, as it does if it fails in this one.

        Raises TimedOut, and Ended if the other host has ended its script.
        """
        self._passed += 1
        here = f"{self.check:02}-{self._passed:03}"
        self._put(here, {})
        if self.directory.clock.monotonic() > self._end:
            self._is_other_silent = True
            hint = "other users may be able to write in that directory: give one of your own on that mount"
            raise TimedOut(f"{self.other} has not finished within {short_duration(_LONGEST_SESSION)}", hint=hint)
        if "end" in self._wait_for(lambda name: name == "end" or (name[0].isdecimal() and name >= here)):
            raise Ended

    def publish(self, result: Mapping[str, object]) -> None:
        """Write this host's result file, under a new name: a file that is replaced may still be read as it was."""
        before, self._result = self._result, f"result-{self.check:02}.{self.me}"
        self._exchange.put(self._result, records.encode_document(result).encode())
        if before:
            self._exchange.remove(before)

    def result(self) -> Fields:
        """The other host's result as far as it has come; without fields if there is none."""
        names = sorted((name for name in self._names_of_other() if name.startswith("result-")), reverse=True)
        return next(filter(None, map(self._read, names)), Fields(self.other, {}))

    def end(self, reason: str = "") -> None:
        """Say that this host has ended its script, and why, if early. If that fails, the other host waits in vain."""
        with contextlib.suppress(OSError):
            self._put("end", {"reason": reason})

    def wait_for_end(self) -> None:
        """Wait until the other host has ended its script. Raises TimedOut, and an error if it has ended early."""
        self._wait_for("end".__eq__)
        try:
            reason = (self._read("end") or Fields(self.other, {})).text("reason")
        except Failed:
            reason = "no reason given"
        if reason and self.me == PEER:
            hint = "see what it says itself, and start both again"
            raise CacheError(f"the leader has ended without a verdict: {reason}", hint=hint)
        if reason:
            raise Failed(f"the other has ended it: {reason}")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Wait until the other host has read everything, too: only then may the directory be removed."""
        if error is None or isinstance(error, OSError | CacheError | Failed):
            with contextlib.suppress(OSError, TimedOut):
                self._put("left", {})
                if not self._is_other_silent:
                    self._wait_for("left".__eq__)

    def _put(self, name: str, fields: Mapping[str, object]) -> None:
        text, path = records.encode({**fields, "token": self._token}), f"{self._exchange.path}/{name}.{self.me}"
        try:
            self._exchange.fs.put_record(text, path)
        except FileExistsError:
            if self._exchange.fs.get_record(path) != text:
                raise  # somebody else has written it; otherwise a reply was lost

    def _read(self, name: str) -> Fields | None:
        """What the other host has written; None while it is not there as a whole."""
        try:
            text = self._exchange.fs.get_record(f"{self._exchange.path}/{name}.{self._other}")
            return Fields(self.other, records.decode_document(text))
        except (OSError, records.Damaged):
            return None

    def _names_of_other(self) -> set[str]:
        suffix = f".{self._other}"
        return {name.removesuffix(suffix) for name in self._exchange.fresh_names() if name.endswith(suffix)}

    def _wait_for(self, is_wanted: Callable[[str], bool]) -> set[str]:
        """Wait until the other host has written a certain name: all that it has written."""

        def look() -> set[str] | None:
            names = self._names_of_other()
            return names if any(map(is_wanted, names)) else None

        try:
            return wait_for(self._exchange, look, PATIENCE, self.other)
        except TimedOut:
            self._is_other_silent = True
            raise
