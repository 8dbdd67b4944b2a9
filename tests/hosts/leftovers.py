"""What killed test runs have left behind: processes, network name spaces, directories.

Laboratories (hosts with kernels of their own, clusters) outlive a pytest that is killed. So whatever a laboratory
starts has the name of the run in its environment, and whatever it makes outside pytest's directories has a name that
begins with it. The name tells which process made it; what belongs to a process that is gone is removed when the next
test run begins. What belongs to a process that lives, or of which nothing is known, stays.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from sccache_dtool.liveness import State
from sccache_dtool.liveness.process import Proc, Process

#: The environment variable with the name of the run.
VARIABLE = "SC_DTOOL_TEST_RUN"

_NAME = re.compile(r"sc-dtool-run\.(?P<space>\d+\.\d+)\.(?P<pid>\d+)\.(?P<start>\d+)\b")

_SPACES = Path("/run/netns")

#: Where laboratories make directories.
_PLACES = ("/dev/shm", tempfile.gettempdir())

#: Seconds that a process takes at most to end after SIGKILL, unless it hangs in the kernel.
_PATIENCE = 10.0

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@functools.cache
def _run_of(pid: int) -> str:
    process = Proc().identify(pid)
    assert process is not None, "/proc does not show this process"
    return f"sc-dtool-run.{process.space}.{process.pid}.{process.start}"


def this_run() -> str:
    """The name of this run: the PID and time name spaces, number and start time of this process."""
    return _run_of(os.getpid())


def make_directory(what: str, place: str = _PLACES[-1]) -> Path:
    """A directory of this run, for what other users or the machine's own kernel must reach."""
    return Path(tempfile.mkdtemp(prefix=f"{this_run()}.{what}.", dir=place))


def remove_space(name: str) -> None:
    """End all processes in a network name space, and delete it."""
    space = _SPACES / name
    with contextlib.suppress(OSError):  # it is not mounted
        about = space.stat()
        while [pid for pid in _pids() if _end(pid, functools.partial(_is_in, pid, about))]:
            pass  # one of them may have started another before it was ended
    environment = {**os.environ, "PATH": _PATH}
    subprocess.run(["ip", "netns", "delete", name], env=environment, stderr=subprocess.DEVNULL, check=False)


def remove() -> list[str]:
    """Remove what runs have left whose process is gone; the names of these runs."""
    removed = set()
    for pid in _pids():
        run = _started_by(pid)
        if _is_dead(run) and _end(pid, lambda: _started_by(pid) == run):  # noqa: B023
            removed.add(run)
    for path in [path for place in (*_PLACES, _SPACES) for path in Path(place).glob("sc-dtool-run.*")]:
        if (name := _NAME.match(path.name)) and _is_dead(name[0]):
            if path.parent == _SPACES:
                remove_space(path.name)
            else:
                shutil.rmtree(path, ignore_errors=True)  # another run may remove it at the same time
            removed.add(name[0])
    return sorted(removed)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _started_by(pid: int) -> str:
    """The run whose laboratory a process belongs to; empty if to none."""
    return Proc().environ(pid).get(VARIABLE, "")


def _is_in(pid: int, space: os.stat_result) -> bool:
    """Whether a process is in a network name space."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), space)
    except OSError:
        return False


def _is_dead(run: str) -> bool:
    """Whether it is certain that the process of a run is gone."""
    found, proc = _NAME.fullmatch(run), Proc()
    here = proc.here()
    if found is None or here is None:
        return False
    process = Process(here[0], found["space"], int(found["pid"]), int(found["start"]))
    return proc.judge(process).state is State.DEAD


def _end(pid: int, is_meant: Callable[[], bool]) -> bool:
    """End a process if it is meant, and wait until it runs no more; False if it is not meant, or is gone."""
    try:
        fd = os.pidfd_open(pid)  # from now on, its number cannot be taken for another's
    except OSError:
        return False
    try:
        if not is_meant():
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return bool(select.select([fd], [], [], _PATIENCE)[0])
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
