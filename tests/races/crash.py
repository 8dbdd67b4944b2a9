"""`kill -9` at a chosen system call, by strace's fault injection (strace(1), ``inject=CALL:signal=KILL:when=N``).

A first, undisturbed run shows which system calls of a command change something below a directory. Each of them can
then be made the place where the command dies: just before the call, which is the same as just after the one before.
Only the main thread is traced. (`strace --seccomp-bpf` would be faster, and lets processes survive the signal.)
"""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

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
    done, lines = _strace(argv, environment)
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
    done, _ = _strace(argv, environment, f"inject={point.call}:signal=KILL:when={point.nth}")
    return done.returncode == -signal.SIGKILL


def _strace(
    argv: Sequence[str], environment: Mapping[str, str], *expressions: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    with tempfile.NamedTemporaryFile("r", prefix="crash-") as log:
        options = ["-y", "-qq", "-s", "300", "-o", log.name]
        for expression in ("signal=none", f"trace={_CALLS}", *expressions):
            options += ["-e", expression]
        done = subprocess.run(
            ["strace", *options, "--", *argv],
            env={**environment, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done, log.read().splitlines()
