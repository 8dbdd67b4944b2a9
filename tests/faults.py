"""File systems with faults: each is a layer of `FileSystem` through which every call of the package goes.

All of them note the calls in `calls`, so that a test can count them. What is put together from several calls
(`put_record`, `write_new`, `make_dirs` …) is seen as the calls that it is made of.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.fetch.request import Request
from sccache_dtool.fetch.stack import parse_stack
from sccache_dtool.liveness.process import Proc
from sccache_dtool.protocol.store import Store


class Call(NamedTuple):
    """One call on the file system: its method, and what it was given."""

    kind: str
    arguments: tuple[Any, ...]

    @property
    def path(self) -> str:
        """The path that is acted on: of two it is the second for `symlink`, and the first for `rename`."""
        return str(self.arguments[1 if self.kind == "symlink" else 0])

    def __str__(self) -> str:
        return f"{self.kind} {' '.join(str(argument) for argument in self.arguments)}"


class Counting(FileSystem):
    """Notes every call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def kinds(self) -> list[str]:
        """The methods called so far, in order."""
        return [call.kind for call in self.calls]

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        """What becomes of a call; layers with faults say it differently."""
        return do()


_COMPOSED = {
    *("put_record", "get_record", "write_new", "make_dirs", "names_if_any", "names_if_made", "look_anew"),
    *("seems_there", "open_directory"),
}


def _forward(kind: str) -> Callable[..., Any]:
    def call_through(self: Counting, *arguments: Any, **more: Any) -> Any:
        call = Call(kind, arguments)
        self.calls.append(call)
        return self.handle(call, lambda: getattr(super(Counting, self), kind)(*arguments, **more))

    return call_through


for _kind in dir(FileSystem):
    if not _kind.startswith("_") and _kind not in _COMPOSED:
        setattr(Counting, _kind, _forward(_kind))


class Fault(NamedTuple):
    """Which call a fault strikes: the `nth` and the `times` - 1 after it, of those whose path has `within` in it."""

    kind: str
    within: str
    nth: int
    times: int


class _Striking(Counting):
    """Counts the calls that each fault is about."""

    def __init__(self) -> None:
        super().__init__()
        self._met: dict[Fault, int] = {}

    def _strikes(self, fault: Fault, call: Call) -> bool:
        if call.kind != fault.kind or fault.within not in str(call):
            return False
        self._met[fault] = self._met.get(fault, 0) + 1
        return fault.nth <= self._met[fault] < fault.nth + fault.times


#: What a server says to a repeated request that it has already carried out (measured on NFS).
REPEATED = {
    "symlink": errno.EEXIST,
    "mkdir": errno.EEXIST,
    "create": errno.EEXIST,
    "rename": errno.ENOENT,
    "rmdir": errno.ENOENT,
    "unlink": errno.ENOENT,
}


class LostReplies(_Striking):
    """Carries a call out, loses the reply, and reports what the server says to the repetition."""

    def __init__(self) -> None:
        super().__init__()
        self._faults: list[Fault] = []
        self.lost: list[Call] = []

    def lose(self, kind: str, within: str = "", nth: int = 1, times: int = 1) -> None:
        """Lose the reply to the `nth` call of a kind from now on."""
        self._faults.append(Fault(kind, within, nth, times))

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        result = do()
        struck = [self._strikes(fault, call) for fault in self._faults]  # each counts the call
        if any(struck):
            self.lost.append(call)
            number = REPEATED[call.kind]
            raise OSError(number, os.strerror(number), call.path)
        return result


class Failing(_Striking):
    """Refuses calls, without doing them."""

    def __init__(self) -> None:
        super().__init__()
        self._faults: list[tuple[Fault, int]] = []

    def fail(self, kind: str, error: int, within: str = "", nth: int = 1, times: int = 1_000_000) -> None:
        """Raise `error` at the `nth` call of a kind from now on, and the next `times` - 1."""
        self._faults.append((Fault(kind, within, nth, times), error))

    def repair(self) -> None:
        """Fail no more."""
        self._faults.clear()

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        for fault, error in self._faults:
            if self._strikes(fault, call):
                raise OSError(error, os.strerror(error), call.path)
        return do()


class Interposing(_Striking):
    """Slips somebody else's act in just before or just after a call, once."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[Fault, Callable[[], object]]] = []
        self._after: list[tuple[Fault, Callable[[], object]]] = []
        self.results: list[Any] = []  # what the acts returned

    @property
    def pending(self) -> int:
        """How many acts have not happened, as their call has not come."""
        return sum(self._met.get(fault, 0) < fault.nth for fault, _ in (*self._before, *self._after))

    def before(self, kind: str, act: Callable[[], object], within: str = "", nth: int = 1) -> None:
        """Run `act` before the `nth` call of a kind from now on, once."""
        self._before.append((Fault(kind, within, nth, 1), act))

    def after(self, kind: str, act: Callable[[], object], within: str = "", nth: int = 1) -> None:
        """Run `act` just after such a call, if that succeeds."""
        self._after.append((Fault(kind, within, nth, 1), act))

    def forget(self) -> None:
        """Run nothing any more."""
        self._before.clear()
        self._after.clear()

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        self._slip_in(self._before, call)
        result = do()
        self._slip_in(self._after, call)
        return result

    def _slip_in(self, acts: list[tuple[Fault, Callable[[], object]]], call: Call) -> None:
        for fault, act in [*acts]:
            if self._strikes(fault, call):
                self.results.append(act())


class Killed(BaseException):
    """Stands for SIGKILL: nothing that the program does afterwards reaches the disk."""


#: Calls that change something on disk.
CHANGES = frozenset({"symlink", "link", "rename", "mkdir", "rmdir", "unlink", "unlink_all", "remove_tree"}) | frozenset(
    {"create", "write", "touch"}
)


class Dying(Counting):
    """Does the first `after` calls that change something, and nothing any more; None: it lives on."""

    def __init__(self, after: int | None = None) -> None:
        super().__init__()
        self.left = after

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        if self.left is not None and (call.kind in CHANGES or self.left < 0):
            self.left -= 1
            if self.left < 0:
                raise Killed
        return do()


class FakeClock(Clock):
    """Clocks that stand still until a test lets time pass."""

    def __init__(self, wall: float = 1_700_000_000.0, boot: float = 50_000.0) -> None:
        self.passed = 0.0
        self._wall = wall
        self._boot = boot

    def let_pass(self, seconds: float) -> None:
        """Time goes by, on all clocks."""
        self.passed += seconds

    def wall(self) -> float:
        return self._wall + self.passed

    def monotonic(self) -> float:
        return self.passed

    def since_boot(self) -> float:
        return self._boot + self.passed

    def sleep(self, seconds: float) -> None:
        self.let_pass(seconds)


class OnClock(FileSystem):
    """A file system whose server has the time of a FakeClock, for what is made as a symbolic link."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def symlink(self, text: str, path: str, **more: bool) -> None:
        super().symlink(text, path, **more)
        os.utime(path, (self._clock.wall(), self._clock.wall()), follow_symlinks=False)


class FakeProc(Proc):
    """A host whose /proc is a directory that a test fills; nothing of the real host is asked."""

    def __init__(self, root: str, *, boot: str = "b0071d", space: str = "4026531836.4026531834") -> None:
        super().__init__(root)
        self.hidden: set[int] = set()
        pid_space, _, time_space = space.partition(".")
        os.makedirs(f"{root}/sys/kernel/random")
        with open(f"{root}/sys/kernel/random/boot_id", "w") as file:
            file.write(f"{boot}\n")
        os.makedirs(f"{root}/{os.getpid()}/ns")
        os.symlink(f"pid:[{pid_space}]", f"{root}/{os.getpid()}/ns/pid")
        for name in ("time", "time_for_children"):
            os.symlink(f"time:[{time_space}]", f"{root}/{os.getpid()}/ns/{name}")
        self.shift(0)
        os.symlink(str(os.getpid()), f"{root}/self")
        self.add(os.getpid(), "python", start=77)

    def add(
        self,
        pid: int,
        command: str = "job",
        *,
        parent: int = 1,
        start: int = 1000,
        state: str = "S",
        threads: int = 1,
        words: Iterable[str] | None = None,
    ) -> int:
        """Let a process run (or replace one); returns its number."""
        os.makedirs(f"{self.root}/{pid}", exist_ok=True)
        rest = f"{state} {parent} {' '.join('0' * 15)} {threads} 0 {start} {' '.join('0' * 30)}"
        with open(f"{self.root}/{pid}/stat", "w") as file:
            file.write(f"{pid} ({command}) {rest}\n")
        with open(f"{self.root}/{pid}/cmdline", "w") as file:
            file.write("".join(f"{word}\0" for word in ((command,) if words is None else words)))
        return pid

    def shift(self, seconds: int) -> None:
        """Set the clock since boot of our time name space."""
        with open(f"{self.root}/{os.getpid()}/timens_offsets", "w") as file:
            file.write(f"monotonic           0         0\nboottime   {seconds:10}         0\n")

    def end(self, pid: int) -> None:
        """Let a process end."""
        os.unlink(f"{self.root}/{pid}/stat")
        os.unlink(f"{self.root}/{pid}/cmdline")

    def is_there(self, pid: int) -> bool:
        return pid in self.hidden or os.path.exists(f"{self.root}/{pid}/stat")


def store_of(fs: FileSystem, layout: Layout | None, *, clock: Clock | None = None, proc: Proc | None = None) -> Store:
    """The cache in which `layout` says where everything is, by `fs`; with the clock and processes of this host."""
    return Store(fs, layout or Layout("/nowhere"), clock or Clock(), proc or Proc(), "cache-id")


def request_for(words: Iterable[str], label: str | None = None) -> Request:
    """What `use` would fetch for these words, in whatever cache."""
    stack = parse_stack(list(words))
    return Request("", None, stack.label if label is None else label, stack)
