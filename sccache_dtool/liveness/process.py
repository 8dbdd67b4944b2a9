"""Processes of this host: who they are, and whether they are gone.

A process is identified by boot id, PID and time name space, process number and start time. Its number alone says
nothing: numbers are used again, and every container has its own. Host names say nothing either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from sccache_dtool import forking
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.tuples import NamedTuple

#: Position of a field in /proc/<pid>/stat after the command's closing bracket (proc(5) counts from 1, with two before).
_STATE, _PPID, _THREADS, _START = 0, 1, 17, 19


#: The highest number that a process can have (proc_sys_kernel(5), pid_max).
_MOST_PROCESSES = 1 << 22


class Stat(NamedTuple):
    """What the kernel says of a process."""

    command: str  # at most 15 characters, as set by the last exec
    state: str
    ppid: int
    threads: int
    start: int  # clock ticks since boot


class Process(NamedTuple):
    """A process, told apart from every other that ever ran on any host."""

    boot: str
    space: str  # "<PID name space>.<time name space>": start times are shifted in a time name space
    pid: int
    start: int

    def fields(self) -> dict[str, Any]:
        """As the fields of a record."""
        return self._asdict()

    @property
    def text(self) -> str:
        """As one text; `from_text` reads it."""
        return " ".join(map(str, self))

    @classmethod
    def from_text(cls, text: str) -> Process | None:
        """The process that a text names; None if it names none."""
        match = re.fullmatch(r"(\S+) (\S+) ([0-9]{1,9}) ([0-9]{1,18})", text)
        return cls(match[1], match[2], int(match[3]), int(match[4])) if match else None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Process | None:
        """The process that a record names; None if it names none."""
        boot, space, pid, start = (fields.get(name) for name in cls._fields)
        if not (isinstance(boot, str) and isinstance(space, str) and isinstance(start, int)):
            return None
        if isinstance(pid, int) and 0 < pid <= _MOST_PROCESSES:
            return cls(boot, space, pid, start)
        return None


class Proc:
    """The process file system of this host; tests hand in a directory of their own."""

    def __init__(self, root: str = "/proc") -> None:
        self.root = root
        self._here: tuple[str, str] | None = None
        self._looked_as: tuple[int, object] | None = None

    def here(self) -> tuple[str, str] | None:
        """Boot id and name spaces of this process; None where they cannot be known.

        A /proc of another PID name space (`unshare --pid` without a mount of its own) would show other processes
        under this one's numbers: then nothing may be said.
        """
        who = (os.getpid(), forking.token())
        if self._looked_as != who:
            self._looked_as = who
            self._here = self._look()
        return self._here

    def uptime_domain(self) -> str | None:
        """What those share whose times since boot may be compared; None where it cannot be known.

        A time namespace offsets them. Its number proves nothing: the next one may have it, with another offset.
        """
        here = self.here()
        if here is None:
            return None
        try:
            spaces = {_inode(os.readlink(f"{self.root}/self/ns/{name}")) for name in ("time", "time_for_children")}
        except FileNotFoundError:
            return here[0]  # Linux before 5.6 has no time name spaces
        except OSError:
            return None
        lines = (line.split() for line in self._read("self/timens_offsets").splitlines())  # those of the children
        offset = next((words[1:] for words in lines if words[:1] == ["boottime"]), None)
        if len(spaces) > 1 or not offset:
            return None
        return f"{here[0]}-{'.'.join(offset)}"

    def identify(self, pid: int) -> Process | None:
        """The identity of a process that this process can see; None if it is gone or cannot be seen."""
        here, stat = self.here(), self.stat(pid)
        return Process(*here, pid, stat.start) if here and stat else None

    def stat(self, pid: int) -> Stat | None:
        """What the kernel says of `pid`; None if it says nothing."""
        text = self._read(f"{pid}/stat")
        opening, closing = text.find("("), text.rfind(")")
        fields = text[closing + 2 :].split()
        if opening < 0 or len(fields) <= _START:
            return None
        return Stat(
            command=text[opening + 1 : closing],
            state=fields[_STATE],
            ppid=int(fields[_PPID]),
            threads=int(fields[_THREADS]),
            start=int(fields[_START]),
        )

    def words(self, pid: int) -> tuple[str, ...]:
        """The command line of `pid`; empty if it cannot be read."""
        return tuple(self._read(f"{pid}/cmdline").rstrip("\0").split("\0"))

    def environ(self, pid: int) -> dict[str, str]:
        """The environment that `pid` was started with; empty if it may not be read."""
        pairs = (entry.partition("=") for entry in self._read(f"{pid}/environ").split("\0"))
        return {name: value for name, _, value in pairs if name}

    def cgroups(self) -> str:
        """The control groups of this process, as the kernel lists them; empty if it does not say."""
        return self._read("self/cgroup")

    def is_there(self, pid: int) -> bool:
        """Whether any process has this number, also where /proc hides other users' processes (hidepid)."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def judge(self, process: Process) -> Verdict:
        """Whether `process` is alive, as far as this host and name space can tell."""
        here = self.here()
        if here is None:
            return Verdict(State.UNKNOWN, "processes cannot be identified on this host")
        if process.boot != here[0]:
            return Verdict(State.UNKNOWN, f"process {process.pid} is of another host, or of an earlier boot")
        if process.space != here[1]:
            return Verdict(
                State.UNKNOWN, f"process {process.pid} is in another container (PID name space) of this host"
            )
        stat = self.stat(process.pid)
        if stat is None:
            if self.is_there(process.pid):
                return Verdict(State.UNKNOWN, f"process {process.pid} is hidden from this user")
            return Verdict(State.DEAD, f"process {process.pid} of this boot is gone")
        if stat.start != process.start:
            return Verdict(State.DEAD, f"process {process.pid} is gone, and its number belongs to another process")
        if stat.state in "ZX" and stat.threads <= 1:  # a dead leader may have living threads
            return Verdict(State.DEAD, f"process {process.pid} has ended (a zombie)")
        return Verdict(State.ALIVE, f"process {process.pid} ({stat.command}) is running")

    def _look(self) -> tuple[str, str] | None:
        boot = self._read("sys/kernel/random/boot_id").strip()
        try:
            if os.readlink(f"{self.root}/self") != str(os.getpid()):
                return None
            space = _inode(os.readlink(f"{self.root}/self/ns/pid"))
        except OSError:
            return None
        try:
            space += f".{_inode(os.readlink(f'{self.root}/self/ns/time'))}"
        except FileNotFoundError:
            space += ".0"  # Linux before 5.6 has no time name spaces
        except OSError:
            return None
        return (boot, space) if boot else None

    def _read(self, name: str) -> str:
        try:
            with open(f"{self.root}/{name}", encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""


def _inode(link: str) -> str:
    """``pid:[4026531836]`` → ``4026531836``."""
    return link[link.find("[") + 1 : -1]


class OwnProcess(NamedTuple):
    """The process that made this object, which a forked child finds in its memory and must not take for itself."""

    token: object
    pid: int
    process: Process | None  # None: processes cannot be identified on this host

    @classmethod
    def now(cls) -> OwnProcess:
        """This process."""
        return cls(forking.token(), os.getpid(), Proc().identify(os.getpid()))

    def is_this_process(self) -> bool:
        """Whether this process made it. Reads nothing: it is asked at every use.

        A child with the same number, given again after the end of its grandparent, is told by the token.
        """
        return self.token is forking.token() and self.pid == os.getpid()

    def is_certainly_this_process(self) -> bool:
        """As `is_this_process`, also where a fork (by a library) or a restored checkpoint told Python nothing.

        Compares boot, name spaces, number and start time, as far as they can be known. Reads /proc.
        """
        if not self.is_this_process():
            return False
        now = Proc().identify(os.getpid())
        return self.process is None or now is None or self.process == now

    def of_another_process(self) -> OwnProcess:
        """What this is once it was found to be of another process: never this one's again."""
        return self._replace(token=None)
