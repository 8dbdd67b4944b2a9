"""The hosts that other tests stand on are what they claim to be."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from hosts.nshost import host_command
from waiting import PATIENCE

pytestmark = pytest.mark.hosts

BOOT = "00000000-1111-2222-3333-444444444444"
WHO = """
import os, socket
print(socket.gethostname(), open("/proc/sys/kernel/random/boot_id").read().strip(), os.readlink("/proc/self/ns/pid"))
"""


def who(name, boot_id=None):
    argv = host_command(name, [sys.executable, "-c", WHO], boot_id)
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout.split()


def test_hosts_differ_in_name_boot_and_process_numbers():
    """Two hosts share no name, boot id or PID name space."""
    argv = host_command("a", [sys.executable, "-uc", f"{WHO}input()"])
    # Both are up at once: when a host has gone, the kernel may use the number of its name space again.
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        a, b = first.stdout.readline().split(), who("b")
        first.communicate("\n", timeout=30)
    assert len(a) == len(b) == 3
    assert all(one != other for one, other in zip(a, b, strict=True))


def test_a_boot_id_can_be_given():
    """One host can be entered twice."""
    assert who("a", BOOT)[:2] == who("a", BOOT)[:2] == ["a", BOOT]


def test_a_command_can_be_killed_and_its_exit_code_is_seen():
    """A command is not process 1, which signals from within cannot kill."""
    killed = subprocess.run(host_command("a", ["bash", "-c", "kill -KILL $$"]), timeout=30, capture_output=True)
    failed = subprocess.run(host_command("a", ["bash", "-c", "exit 7"]), timeout=30)
    assert (killed.returncode, failed.returncode) == (128 + signal.SIGKILL, 7)


def test_killing_the_host_kills_everything_on_it():
    """A power failure ends processes in the background, too."""
    script = "while :; do sleep 0.02; done & echo up; sleep 1000000"
    host = subprocess.Popen(host_command("a", ["bash", "-c", script]), stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"up\n"
    host.kill()
    host.communicate(timeout=PATIENCE)  # until all have ended that have the pipe open
