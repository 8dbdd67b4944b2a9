"""Hosts that stay up while a test does several things on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hosts.nshost import host_command

_AGENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent.py")


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


class Host:
    """A host with an agent on it; a context manager, at whose end the host has a power failure."""

    _process: subprocess.Popen[str] | None = None  # what carries words to its agent

    def __init__(self, name: str, environment: Mapping[str, str], boot_id: str | None = None) -> None:
        """Begin to boot it; its network is this machine's."""
        self.name = name
        self.attach(host_command(name, [sys.executable, _AGENT], boot_id, network=True), environment)

    def attach(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Have a command of this machine carry what is said, to the agent and back."""
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.power_off()

    def power_off(self) -> None:
        """End all its processes at once."""
        if self._process is not None:  # else it did not come up
            self._process.kill()
            self._process.communicate()
            self._process = None

    def run(self, *argv: str) -> Done:
        """Run a command to its end."""
        return Done(*self._ask("run", *argv))

    def sc_dtool(self, *words: str) -> Done:
        """Run a command of the package to its end."""
        return self.run(sys.executable, "-m", "sccache_dtool", *words)

    def start(self, *argv: str) -> int:
        """Start a process; its number on the host."""
        return int(self._ask("start", *argv))

    def start_sc_dtool(self, *words: str) -> int:
        """Start a command of the package; its number on the host."""
        return self.start(sys.executable, "-m", "sccache_dtool", *words)

    def said(self, pid: int) -> str:
        """Wait for the next line that a started process prints."""
        return str(self._ask("said", pid)).rstrip("\n")

    def wait(self, pid: int) -> Done:
        """Wait for the end of a started process."""
        return Done(*self._ask("wait", pid))

    def kill(self, pid: int) -> None:
        """Kill a started process."""
        self._ask("kill", pid)

    def number(self, next_pid: int) -> bool:
        """Let the next process have this number; False if that cannot be arranged."""
        return bool(self._ask("number", next_pid))

    def _ask(self, *words: object) -> Any:
        assert self._process is not None, f"host {self.name} is not up"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"host {self.name} is down"
        return json.loads(answer)
