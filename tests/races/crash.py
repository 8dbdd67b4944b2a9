"""`kill -9` at a chosen system call, by strace's fault injection (strace(1), ``inject=CALL:signal=KILL:when=N``).

A first, undisturbed run shows which system calls of a command change something below a directory. Each of them can
then be made the place where the command dies: just before the call, which is the same as just after the one before.
Only the main thread is traced. (`strace --seccomp-bpf` would be faster, and lets processes survive the signal.)

A Python that has the package imported already, and does nothing else, starts the commands as its children: to start
Python again, under strace, would take longer than all else that a command does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from hosts import leftovers
from waiting import wait_until

_CALLS = (
    "open,openat,creat,link,linkat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,symlink,symlinkat,"
    "chmod,fchmod,fchmodat,utimensat,write,pwrite64,ftruncate,truncate,fsync,fdatasync,copy_file_range,sendfile,"
    "fallocate"
)
_OPENS = frozenset({"open", "openat"})
_RANDOM_PARTS = re.compile(r"[0-9a-f]{12,}|[0-9]+")


class Point(NamedTuple):
    """The `nth` call of its name, which changes something."""

    call: str
    nth: int
    line: str  # as strace shows it, the directory as $D

    @property
    def kind(self) -> str:
        """What it does, without what differs from run to run."""
        return _RANDOM_PARTS.sub("#", self.line)


@functools.cache
def unavailable() -> str | None:
    """Why no process can be killed at its system calls here; None if it can."""
    try:
        done = _strace(["sh", "-c", "exec 3>/dev/null"], os.environ, "inject=openat:signal=KILL:when=1")[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no strace here: {error}"
    if done.returncode != -signal.SIGKILL:
        return f"strace cannot trace here: {done.stdout.strip() or done.returncode}"
    return None


def points(
    argv: Sequence[str], environment: Mapping[str, str], directory: str, codes: Collection[int] = (0,)
) -> list[Point]:
    """Run a command undisturbed; every call of its that changes something below `directory`.

    `codes`: with which it may end.
    """
    done, lines = _strace_started(argv, environment)
    assert done.returncode in codes, f"the undisturbed run ended with {done.returncode}:\n{done.stdout}"
    found, seen = [], dict[str, int]()
    for line in lines:
        call = line.partition("(")[0]
        if not re.fullmatch(r"\w+", call):
            continue
        seen[call] = seen.get(call, 0) + 1
        changes = call not in _OPENS or "O_CREAT" in line or "O_TRUNC" in line
        if f"{directory}/" in line and changes:
            found.append(Point(call, seen[call], line.replace(directory, "$D")))
    return found


def sample(found: Sequence[Point], most: int, seed: int) -> list[Point]:
    """At most `most` points: one of each kind at least, as far as that goes, and the others by chance."""
    dice = random.Random(seed)
    shuffled = dice.sample(found, len(found))
    first_of_kind = {point.kind: point for point in reversed(shuffled)}
    chosen = list(first_of_kind.values())[:most]
    rest = [point for point in shuffled if point not in chosen]
    return sorted(chosen + rest[: most - len(chosen)], key=found.index)


def kill_at(argv: Sequence[str], environment: Mapping[str, str], point: Point) -> bool:
    """Run a command and kill it just before a call; False if it did not come so far."""
    done, _ = _strace_started(argv, environment, f"inject={point.call}:signal=KILL:when={point.nth}")
    return done.returncode == -signal.SIGKILL


#: Seconds in which a command has ended, or strace has begun.
_PATIENCE = 120.0

_PR_SET_PTRACER, _ANYBODY = 0x59616D61, -1

#: Runs command lines of Python in children, which stop until they are traced. Says their numbers, and how they ended.
_STARTER = f"""
import ctypes, json, os, runpy, signal, sys
import click, flufl.lock, requests, sccache_dtool.cache, sccache_dtool.cli.main
for line in sys.stdin:
    words, environment, output = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    os.waitpid(pid, os.WUNTRACED) # it has stopped: only then can it be told to go on
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
os.environ.clear()
os.environ.update(environment)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for fd in (1, 2):
    os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), fd)
ctypes.CDLL(None).prctl({_PR_SET_PTRACER}, ctypes.c_long({_ANYBODY}), 0, 0, 0)
os.kill(os.getpid(), signal.SIGSTOP)
option, what, *sys.argv[1:] = words
if option == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    sys.argv[0] = "-c"
    exec(what)
"""


class _Starter:
    """Starts commands of Python, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONHASHSEED": "0",
                leftovers.VARIABLE: leftovers.this_run(),
            },
        )

    def start(self, words: Sequence[str], environment: Mapping[str, str], output: str) -> int:
        """Start a command, which stops at once; its number."""
        assert self._process.stdin is not None
        print(json.dumps([words, dict(environment), output]), file=self._process.stdin, flush=True)
        return self._next()

    def end(self) -> int:
        """Wait for the end of the command; its exit code, negative after a signal."""
        return self._next()

    def _next(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


#: Starters that start nothing now: each thread takes one, or makes one, and puts it back.
_idle: queue.SimpleQueue[_Starter] = queue.SimpleQueue()


@contextlib.contextmanager
def _starter() -> Iterator[_Starter]:
    try:
        taken = _idle.get_nowait()
    except queue.Empty:
        taken = _Starter()
    yield taken  # not put back after an error: it may wait for a command that does not end
    _idle.put(taken)


def _strace_started(
    argv: Sequence[str], environment: Mapping[str, str], *expressions: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """As `_strace`, for a command line of this Python."""
    with (
        tempfile.NamedTemporaryFile("r", prefix="crash-") as log,
        tempfile.NamedTemporaryFile("r") as output,
        _starter() as starter,
    ):
        pid = starter.start(argv[1:], environment, output.name)
        tracing = subprocess.Popen(
            ["strace", *_options(log.name, *expressions), "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: _is_traced(pid) or tracing.poll() is not None, "strace begins", pause=0.001)
        assert tracing.poll() is None, tracing.communicate()[1]
        os.kill(pid, signal.SIGCONT)
        code = starter.end()
        tracing.communicate(timeout=_PATIENCE)
        return subprocess.CompletedProcess(argv, code, output.read()), log.read().splitlines()


def _is_traced(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        return any(line.startswith("TracerPid:") and int(line.split()[1]) > 0 for line in file)


def _options(log: str, *expressions: str) -> list[str]:
    options = ["-y", "-qq", "-s", "300", "-o", log]
    for expression in ("signal=none", f"trace={_CALLS}", *expressions):
        options += ["-e", expression]
    return options


def _strace(
    argv: Sequence[str], environment: Mapping[str, str], *expressions: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    with tempfile.NamedTemporaryFile("r", prefix="crash-") as log:
        done = subprocess.run(
            ["strace", *_options(log.name, *expressions), "--", *argv],
            env={**environment, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done, log.read().splitlines()
