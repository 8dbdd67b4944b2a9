"""The command line for tests: run in this process where that will do, as a real process where processes matter."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import sysconfig
import tarfile
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from waiting import PATIENCE

SCRIPTS = sysconfig.get_path("scripts")
SC_DTOOL = str(Path(SCRIPTS, "sc-dtool"))

COMMANDS = "use unuse run renew du ls status why log clean rm restore reap doctor init dir config".split()
COMMANDS += ["transfers", "loaders", "locate", "sample", "summary", "pin", "unpin", "metrics", "globus", "sbatch"]
COMMANDS += ["session", "lock", "lot", "report", "serve"]
COMMANDS += ["add", "save", "get", "cat", "marker", "archive", "index"]


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def path(self) -> Path:
        """The one line on standard output, as a path."""
        assert self.code == 0, self
        assert self.out.count("\n") == 1, self
        return Path(self.out.rstrip("\n"))

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The JSON records of one kind."""
        return [row for row in map(json.loads, self.out.splitlines()) if row["type"] == kind]

    def row(self, kind: str) -> dict[str, Any]:
        """The one JSON record of that kind."""
        (row,) = self.rows(kind)
        return row


def call(*words: str | Path, **how: Any) -> Done:
    """Run the real command to its end."""
    return shell([SC_DTOOL, *map(str, words)], **how)


def shell(argv: list[str], **how: Any) -> Done:
    """Run any command to its end."""
    how = {"stdin": subprocess.DEVNULL, "timeout": PATIENCE, **how}
    if "input" in how:
        del how["stdin"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **how)
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def start(argv: list[str] | tuple[str, ...], **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is talked to through pipes; killed at the end of the context if it is still there."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(argv, text=True, **{**pipes, **how})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


class Terminal:
    """A process on a terminal of its own, and all that it has written there so far."""

    def __init__(self, argv: list[str], **how: Any) -> None:
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self.process = subprocess.Popen(argv, **{"stdin": slave, "stdout": slave, "stderr": slave, **how})
        os.close(slave)
        self.text = ""
        self._reader = threading.Thread(target=self._read, args=(master,), daemon=True)
        self._reader.start()

    def _read(self, master: int) -> None:
        with open(master, "rb", buffering=0) as shown, suppress(OSError):  # EIO: nobody has it open any more
            while piece := shown.read(1 << 16):
                self.text += piece.decode("utf-8", "replace")

    def finish(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


@contextmanager
def on_terminal(argv: list[str], **how: Any) -> Iterator[Terminal]:
    """A process on a terminal; killed at the end of the context if it is still there."""
    terminal = Terminal(argv, env=environment(TERM="xterm"), **how)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.finish()


def heard(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def say(process: subprocess.Popen[str], line: str = "go on") -> None:
    """Tell a process that waits for a line to go on."""
    assert process.stdin is not None
    print(line, file=process.stdin, flush=True)


def finish(process: subprocess.Popen[str]) -> Done:
    """Close its standard input, and wait for the end of it."""
    out, err = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, out, err)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for nothing but to be taken away."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def environment(**more: str | None) -> dict[str, str]:
    """The environment with some variables changed, or taken away (None)."""
    merged = {**os.environ, **more}
    return {name: value for name, value in merged.items() if value is not None}


class Disk:
    """What lies in a cache's control directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.control = root / ".sc-dtool"

    def leases(self) -> list[Path]:
        """Everything in gates."""
        return sorted(self.control.glob("items/*/*/g*/use/*"))

    def copies(self) -> list[Path]:
        """All generations."""
        return sorted(self.control.glob("items/*/*/g*"))

    def holders(self) -> list[Path]:
        """Holders, those that were revoked not among them."""
        return sorted(path for path in (self.control / "holders").iterdir() if path.name != "gone")

    def names(self, directory: str) -> list[str]:
        """What is in a directory of the control directory."""
        return sorted(os.listdir(self.control / directory))

    def left(self) -> list[str]:
        """What a fetch that failed must not leave: copies, leases, holders, work areas, locks, evicted copies."""
        found = [*self.copies(), *self.leases(), *self.holders()]
        for directory in ("tmp", "locks", "trash"):
            found += [self.control / directory / name for name in self.names(directory)]
        return [str(path.relative_to(self.control)) for path in found]


def config(root: Path, text: str) -> None:
    """Give a cache settings."""
    (root / ".sc-dtool" / "config.toml").write_text(text)


def make_tar(path: Path, members: Mapping[str, bytes]) -> str:
    """Write a tar; its digest."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def one_line_error(done: Done) -> str:
    """The error of a command: one line, with further lines only for details and the hint, and no traceback.

    What a command tells of its attempts before it gives up is no error.
    """
    lines = [line for line in done.err.splitlines() if "; trying again in " not in line]
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1, done
    assert all(
        line.startswith(("Error: ", "hint: ", "  ", "Usage: ", "Try ", "warning: ")) or not line for line in lines
    )
    assert "Traceback" not in done.err, done
    assert "this is a bug in sc-dtool" not in done.err, done
    return errors[0]


PYTHON = sys.executable
