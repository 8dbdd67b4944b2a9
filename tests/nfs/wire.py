"""The wire between a test and the agent on a host: `serve` there, `connect` in the hosts' network, pipes for the test.

`serve ADDRESS` is the first process of a host: it reaps what others leave behind. Each connection gets an agent of its
own (see `agent.py` in `hosts/`), so that a test can do two things at a time.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

_PORT = 7000
_AGENT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "hosts", "agent.py")


def serve(address: str) -> None:
    """Start an agent for each connection, for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped by the kernel
    listening = socket.create_server((address, _PORT), backlog=16)
    print("LAB-UP", flush=True)  # on the console, which is the log that `lab.py` reads
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (0, 1):
                os.dup2(connection.fileno(), end)
            os.execv(sys.executable, [sys.executable, _AGENT])
        connection.close()


def connect(address: str, patience: str) -> None:
    """Carry lines to an agent, which may take `patience` seconds to be up, and its answers back."""
    with _connected(address, time.monotonic() + float(patience)) as connection:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_carry_lines_to, args=(connection,), daemon=True).start()
        while data := connection.recv(1 << 16):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _connected(address: str, deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((address, _PORT), timeout=1)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _carry_lines_to(connection: socket.socket) -> None:
    for line in sys.stdin.buffer:
        connection.sendall(line)
    connection.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    {"serve": serve, "connect": connect}[sys.argv[1]](*sys.argv[2:])
