"""Commands run by real users of one group, each in a process of its own, with a umask that lets nobody else in."""

from __future__ import annotations

import contextlib
import grp
import importlib
import os
import pkgutil
import pwd
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import sccache_dtool
import scratch
from sccache_dtool.cli import main, output

#: Seconds that a command may take; nothing here takes a tenth of that.
PATIENCE = 60.0

#: Bytes of memory that a command may take beyond what this process has.
ROOM = 400 << 20


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach; pytest's own are closed, again and again where several run."""
    with tempfile.TemporaryDirectory(dir=scratch.memory()) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def share(root: Path) -> None:
    """Make a directory that the group `users` shares."""
    root.mkdir()
    os.chown(root, -1, grp.getgrnam("users").gr_gid)
    root.chmod(0o2770)


def load_everything() -> None:
    """Load what a command may load later: another user may not be able to read this Python."""
    for module in pkgutil.walk_packages(sccache_dtool.__path__, "sccache_dtool."):
        if not module.name.startswith(("sccache_dtool.dtool", "sccache_dtool.__main__")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in (
        "encodings.idna",
        "flufl.lock",
        "humanize",
        "rich.console",
        "rich.table",
        "rich.text",
        "tomllib",
    ):
        importlib.import_module(name)
    output.size(1)
    output.ago(0.0, 1.0)


def become(user: str) -> None:
    """Let this process be another user's, of the group; for good."""
    os.setgroups([grp.getgrnam("users").gr_gid])
    os.setgid(pwd.getpwnam(user).pw_gid)
    os.setuid(pwd.getpwnam(user).pw_uid)
    os.umask(0o077)
    os.chdir("/")


def run_as(user: str, root: Path, *words: str) -> Done:
    """Run a command as another user; bytes that are not UTF-8 are kept (surrogateescape)."""
    return act_as(user, lambda: main.run(list(words)), root)


def act_as(user: str, act: Callable[[], int | None], root: Path) -> Done:
    """Do something as another user of the group, within bounds of time and memory; it ends with what `act` returns."""
    pipes = [os.pipe() for _ in range(2)]
    child = os.fork()
    if child == 0:
        try:
            for number, (_, fd) in enumerate(pipes, 1):
                os.dup2(fd, number)
            sys.stdout, sys.stderr = (
                open(number, "w", closefd=False, errors="surrogateescape")  # noqa: SIM115
                for number in (1, 2)
            )
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
            become(user)
            os.environ |= {"DTOOL_CACHE_DIRECTORY": str(root), "HOME": "/nonexistent"}
            code = act() or 0
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    for _, fd in pipes:
        os.close(fd)
    try:
        said = _read_all([fd for fd, _ in pipes])
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Done(code, *(data.decode("utf-8", "surrogateescape") for data in said))


def _read_all(fds: list[int]) -> list[bytes]:
    """What comes through pipes up to their ends, which must come in time."""
    said = dict.fromkeys(fds, b"")
    deadline = time.monotonic() + PATIENCE
    with selectors.DefaultSelector() as waiting:
        for fd in fds:
            waiting.register(fd, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(deadline - time.monotonic())
            if not ready:
                raise TimeoutError(f"no end of it after {PATIENCE} s")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                said[key.fd] += data
                if not data:
                    waiting.unregister(key.fd)
                    os.close(key.fd)
    return list(said.values())
