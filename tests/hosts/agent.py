"""Runs on a host of `nshost.py` and does there what a test asks for, line by line: see `class Host` in `machine.py`.

Each line is a list in JSON, its first element what is to be done; each answer is a line, too. It imports nothing of
the package: what is tested runs in processes of its own, with the process numbers of this host.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

_children: dict[int, subprocess.Popen[str]] = {}


def run(*argv: str) -> list[object]:
    """Run a command to its end: exit code, what it printed, what it said."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]


def start(*argv: str) -> int:
    """Start a process, which reads nothing; its number on this host."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _children[process.pid] = process
    return process.pid


def said(pid: int) -> str:
    """Wait for the next line that a started process prints."""
    out = _children[pid].stdout
    assert out is not None
    line = b""
    while not line.endswith(b"\n") and (one := os.read(out.fileno(), 1)):  # what follows is left to `wait`
        line += one
    return line.decode()


def wait(pid: int) -> list[object]:
    """Let a started process read the end of its input, and wait for its end; as `run` does."""
    process = _children.pop(pid)
    out, err = process.communicate()
    return [process.returncode, out, err]


def kill(pid: int) -> None:
    """Kill a started process, and wait until it is gone."""
    process = _children.pop(pid)
    process.kill()
    process.communicate()


def number(next_pid: int) -> bool:
    """Give the next process of this host a number, if we may (CAP_CHECKPOINT_RESTORE in a new name space)."""
    try:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(next_pid - 1))
    except OSError:
        return False
    return True


def main() -> None:
    """Obey until there are no more lines."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    acts = {act.__name__: act for act in (run, start, said, wait, kill, number, os.getpid)}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(acts[name](*arguments)), flush=True)


if __name__ == "__main__":
    main()
