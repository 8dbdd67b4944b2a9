"""Which kernel the hosts of the laboratory run: the first that boots on this processor.

The User-Mode Linux of Debian 12 (6.1) panics as soon as a process runs, if the processor saves more state than it has
space for (AMX); so does that of Debian 13 (6.12). Therefore each kernel is tried first, which takes a second: the one
that the environment variable NFS_KERNEL names, the one that is installed, and a newer one of Debian unstable, which
`fetch_uml.sh` unpacks into the user's cache directory. The newer one is fetched only if the others do not boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from waiting import wait_until

_HERE = Path(__file__).resolve().parent

#: The kernel that is installed, by Debian's package user-mode-linux.
INSTALLED = "/usr/bin/linux.uml"

#: The suite of Debian whose kernel is newer.
_NEWER = "sid"

#: Seconds in which a kernel is up, or is given up. None that boots takes a tenth of that.
PATIENCE = 60.0

#: Seconds that downloading a newer kernel may take.
_DOWNLOAD = 240.0

_TRIED = re.compile(r"^LAB-TRIED (\S+)", re.MULTILINE)

#: What a kernel prints when it will not go on. The second one is followed by a panic, which names only its effect.
_FATAL = re.compile(r"Kernel panic - not syncing|ptrace \w+ fp ?regs failed")


class DoesNotBootError(Exception):
    """Why a kernel, or a host, does not come up."""


class Kernel(NamedTuple):
    """A User-Mode Linux that boots here."""

    program: str
    release: str = ""
    remark: str = ""  # why it is not another one

    @property
    def modules(self) -> str:
        """The directory with its modules."""
        return str(Path(self.program).parents[1] / "lib/uml/modules")

    @property
    def described(self) -> str:
        """For those who read about a test run."""
        remark = f", because {self.remark}" if self.remark else ""
        return f"User-Mode Linux {self.release} ({self.program}){remark}"

    def command(self, init: Path, name: str, directory: Path, memory: str = "192M") -> list[str]:
        """The command line that boots a host called `name` from this machine's files, read-only."""
        words = [self.program, f"mem={memory}", f"umid={name}", f"uml_dir={directory}"]
        root = ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"]
        return [*words, *root, "con=null", "con0=null,fd:1", "quiet"]


@functools.cache
def choose() -> Kernel:
    """The first kernel that boots.

    Raises:
        DoesNotBootError: None does; with the reason of each.
    """
    reasons: list[str] = []
    for program in (os.environ.get("NFS_KERNEL"), INSTALLED, newer_kernel):
        try:
            path = program() if callable(program) else program
            if path and os.path.exists(path):
                return Kernel(path, _try(path), "; ".join(dict.fromkeys(reasons)))
            if path:
                reasons.append(f"{path} does not exist")
        except DoesNotBootError as error:
            reasons.append(str(error))
    raise DoesNotBootError("; ".join(dict.fromkeys(reasons)))


def wait_until_said(sign: re.Pattern[str], kernel: subprocess.Popen[bytes], log: Path, since: int = 0) -> re.Match[str]:
    """Read what a kernel prints into `log`, from the offset `since`, until it matches `sign`.

    Raises:
        DoesNotBootError: It panicked or ended, or has not printed that within `PATIENCE` seconds.
    """
    last = ""

    def look() -> re.Match[str] | None:
        nonlocal last
        ended = kernel.poll()  # asked first: what it printed before its end is then in the log
        with log.open("rb") as file:
            file.seek(since)
            text = file.read().decode(errors="replace")
        if found := sign.search(text):
            return found
        if _FATAL.search(text):
            raise DoesNotBootError(next(_plain(line) for line in text.splitlines() if _FATAL.search(line)))
        last = next((f": {_plain(line)}" for line in reversed(text.splitlines()) if line.strip()), "")
        if ended is not None:
            raise DoesNotBootError(f"it ended with code {ended}{last}")
        return None

    try:
        return wait_until(look, "it is up", patience=PATIENCE)
    except AssertionError:
        raise DoesNotBootError(f"it is not up after {PATIENCE:g} seconds{last}") from None


def end(kernel: subprocess.Popen[bytes]) -> None:
    """End a kernel, which leads a process group of its own, and all processes of its host."""
    for number in (signal.SIGKILL, signal.SIGCONT):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(kernel.pid, number)
    kernel.wait()


def _try(program: str) -> str:
    """The release of a kernel that boots, and starts a process."""
    with tempfile.TemporaryDirectory(prefix="sc-dtool-trial-") as work:
        log = Path(work, "log")
        with log.open("wb") as file:
            command = Kernel(program).command(_HERE / "trial.sh", "trial", Path(work, "uml"), "64M")
            try:
                kernel = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                    env={**os.environ, "TMPDIR": "/dev/shm"},  # where its memory is
                )
            except OSError as error:
                raise DoesNotBootError(f"{program} cannot be started: {error.strerror}") from error
        try:
            return wait_until_said(_TRIED, kernel, log)[1]
        except DoesNotBootError as error:
            raise DoesNotBootError(f"{program} does not boot here: {error}") from error
        finally:
            end(kernel)


def newer_kernel() -> str:
    """The newer kernel, fetched if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sc-dtool-tests")
    place = cache / f"user-mode-linux-{_NEWER}"
    program = place / "usr/bin/linux.uml"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = cache.stat()
        if about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise DoesNotBootError(f"a newer one is not fetched into {cache}, where others may write")
        with _locked(cache):
            if not program.exists():
                _fetch(place)
    except OSError as error:
        raise DoesNotBootError(f"a newer one cannot be kept in {cache}: {error.strerror}") from error
    return str(program)


def _fetch(place: Path) -> None:
    command = ["bash", str(_HERE / "fetch_uml.sh"), str(place), _NEWER]
    why = f"no end after {_DOWNLOAD:g} seconds"
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as fetching:
        try:
            said = fetching.communicate(timeout=_DOWNLOAD)[0].decode(errors="replace").strip()
            if fetching.returncode == 0:
                return
            why = _plain(said.splitlines()[-1]) if said else f"fetch_uml.sh ended with code {fetching.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(fetching.pid, signal.SIGTERM)  # it removes what it has made so far
    raise DoesNotBootError(f"a newer one cannot be fetched: {why}")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time fetches."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _plain(line: str) -> str:
    """A line of a log, without the colours and the carriage returns of a console."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
