"""The command under `sc-dtool run`: started late, watched, and sent every signal that we are sent.

It is forked before the lease is taken, so that the lease can be held in its name: if `sc-dtool` is killed, the
command still protects what it reads, and when it ends, whoever looks sees that.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from sccache_dtool.errors import CacheError, Exit

#: Signals that are meant for the command when they are sent to us.
FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGWINCH,
        signal.SIGXCPU,
    }
)

#: `si_code` of a signal that the kernel made: a terminal's, which the command has got as well (sigaction(2)).
_SI_KERNEL = 0x80

#: Signals that Python ignores, and that a program expects to find as they were (as subprocess restores them).
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)


class Child:
    """A process that waits to be told which command to become."""

    def __init__(self) -> None:
        read_order, self._write_order = os.pipe()
        self._read_failure, write_failure = os.pipe()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would never tell of the command's end
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._write_order)
            os.close(self._read_failure)
            _become(read_order, write_failure)
        os.close(read_order)
        os.close(write_failure)
        self._status: int | None = None

    def run(self, command: Sequence[str], extra: Mapping[str, str], begin: Callable[[], None]) -> int:
        """Become `command`, and return its exit code as a shell gives it: 128 + N for signal N.

        `extra` is added to its environment. `begin` is called first, with all signals blocked that we watch for: a
        thread that it starts inherits that, and takes none away from us. Raises CacheError with exit code 127 if there
        is no such command, 126 if it cannot be run.
        """
        watched = FORWARDED | {signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            begin()
            os.write(self._write_order, json.dumps([list(command), dict(extra)]).encode())
            os.close(self._write_order)
            self._write_order = -1
            failure = os.read(self._read_failure, 4096).decode()
            self._watch(watched)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if failure:
            number, _, reason = failure.partition(" ")
            raise _NotStarted(command[0], int(number), reason)
        code = os.waitstatus_to_exitcode(self._status or 0)
        return code if code >= 0 else 128 - code

    def tell(self, number: signal.Signals) -> None:
        """Send the command a signal; nothing if it has ended."""
        if self._status is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def abandon(self) -> None:
        """End the waiting process if it was never told anything."""
        if self._write_order >= 0:
            os.close(self._write_order)
            self._write_order = -1
            os.waitpid(self.pid, 0)
            self._status = 0

    def _watch(self, watched: frozenset[signal.Signals]) -> None:
        """Wait for the command's end, and pass signals on meanwhile."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
                return
            arrived = signal.sigwaitinfo(watched)
            if arrived.si_signo != signal.SIGCHLD and arrived.si_code != _SI_KERNEL:
                self.tell(signal.Signals(arrived.si_signo))


class _NotStarted(CacheError):
    """The command could not be started."""

    def __init__(self, command: str, number: int, reason: str) -> None:
        super().__init__(f"cannot run {command}: {reason}")
        self.exit_code = Exit.NOT_FOUND if number in (2, 20) else Exit.NOT_EXECUTABLE


def _become(read_order: int, write_failure: int) -> NoReturn:
    """In the child: wait for the order and obey; leave without a trace if none comes."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # what is ignored stays so, as under `nohup` or `… &`
                signal.signal(number, signal.SIG_DFL)
        for number in _RESTORED:
            signal.signal(number, signal.SIG_DFL)
        order = b""
        while part := os.read(read_order, 1 << 16):
            order += part
        if not order:
            os._exit(0)
        command, extra = json.loads(order)
        os.execvpe(command[0], command, os.environ | extra)
    except OSError as error:
        os.write(write_failure, f"{error.errno} {error.strerror}".encode())
    except BaseException as error:
        os.write(write_failure, f"0 {error}".encode())
    os._exit(127)
