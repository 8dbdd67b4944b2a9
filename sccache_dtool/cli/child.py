"""The command of `sc-dtool run`: a child process that is forked early, and to which signals are forwarded.

It is forked before the lease is taken, so that it is the holder of the lease. If `sc-dtool` is killed, the lease
therefore lasts as long as the command, and other processes can see when the command has ended.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from sccache_dtool.errors import CacheError, Exit, explain
from sccache_dtool.log import Log

_log = Log(__name__)

#: Signals that are forwarded to the command.
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

#: `si_code` of a signal from the kernel, such as a terminal's: the command has received it as well (sigaction(2)).
_SI_KERNEL = 0x80

#: Signals that Python ignores, and that are restored for the command, as subprocess does.
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)

#: Seconds between two looks at the command if no signal arrives. A library's thread may receive SIGCHLD instead of the
#: main thread.
_LONGEST_WAIT = 1.0

_Handler = Callable[[int, FrameType | None], Any] | int | None


#: Flags of waitid(2): report the end of a process, but do not reap it.
_END = os.WEXITED | os.WNOWAIT


class Child:
    """A child process that waits until it receives a command, and then executes it."""

    def __init__(self) -> None:
        """Fork the process. Raises CacheError if no process can be started."""
        read_order, self._write_order = os.pipe()
        self._read_failure, write_failure = os.pipe()
        self._handlers: dict[signal.Signals, _Handler] = {}
        self._reaped = False
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is inherited as ignored, exit codes are lost
        try:
            self.pid = os.fork()
        except OSError as error:
            for fd in (read_order, self._write_order, self._read_failure, write_failure):
                os.close(fd)
            raise CacheError(f"cannot start a process for the command: {explain(error)}") from error
        if self.pid == 0:
            os.close(self._write_order)
            os.close(self._read_failure)
            _become(read_order, write_failure)
        os.close(read_order)
        os.close(write_failure)

    def run(self, command: Sequence[str], extra: Mapping[str, str], begin: Callable[[], None]) -> int:
        """Execute `command` and return its exit code as a shell does: 128 + N for signal N.

        `extra` is added to its environment. `begin` is called first, while the watched signals are blocked, so that a
        thread that it starts inherits the mask. Raises CacheError: with exit code 127 if the command does not exist,
        and with 126 if it cannot be executed.

        When this returns, the signals are ignored, because they could only replace the command's exit code. `restore`
        undoes that.
        """
        watched = FORWARDED | {signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            for number in FORWARDED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._pass_on)
            begin()
        except BaseException:
            self.restore()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise
        try:
            failure = self._order(command, extra)
            end = self._watch(watched)
        finally:
            for number in self._handlers:
                signal.signal(number, signal.SIG_IGN)  # which discards what is pending (POSIX)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if failure:
            errno_text, _, reason = failure.partition(" ")
            raise _NotStarted(command[0], int(errno_text), reason)
        return end.si_status if end.si_code == os.CLD_EXITED else 128 + end.si_status

    def restore(self) -> None:
        """Restore the signal handlers that were set before `run`."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()

    @property
    def has_ended(self) -> bool:
        """Whether the command has ended. Its process number is not reused before `close`."""
        return self._reaped or os.waitid(os.P_PID, self.pid, _END | os.WNOHANG) is not None

    def send_signal(self, number: int) -> None:
        """Send the command a signal, unless it has ended."""
        if self._reaped:
            return
        try:
            os.kill(self.pid, number)
        except OSError as error:  # it may belong to another user now, as with sudo
            _log.warning(f"cannot send {signal.Signals(number).name} to the command: {explain(error)}")

    def close(self) -> None:
        """Reap the process, and kill it if it has not received a command."""
        if self._reaped:
            return
        if self._write_order >= 0:
            os.close(self._write_order)
            self._write_order = -1
            self.send_signal(signal.SIGKILL)  # SIGKILL, because the process may be stopped
        os.close(self._read_failure)
        os.waitpid(self.pid, 0)
        self._reaped = True

    def _order(self, command: Sequence[str], extra: Mapping[str, str]) -> str:
        """Send the command to the process. Returns the error of its execution, or an empty text."""
        fd, self._write_order = self._write_order, -1
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(json.dumps([list(command), dict(extra)]).encode())
        except BrokenPipeError:
            pass  # it was killed, and its exit code says so
        return os.read(self._read_failure, 4096).decode()

    def _watch(self, watched: frozenset[signal.Signals]) -> os.waitid_result:
        """Wait until the command ends, and forward signals until then. Does not reap it."""
        while (end := os.waitid(os.P_PID, self.pid, _END | os.WNOHANG)) is None:
            arrived = signal.sigtimedwait(watched, _LONGEST_WAIT)
            if arrived is None or arrived.si_signo == signal.SIGCHLD:
                continue
            # What the kernel or the command itself sends to the process group, the command has received already.
            if arrived.si_code != _SI_KERNEL and arrived.si_pid != self.pid:
                self.send_signal(arrived.si_signo)
        return end

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal that another thread received: its sender is unknown."""
        self.send_signal(number)


class _NotStarted(CacheError):
    """The command could not be started."""

    def __init__(self, command: str, number: int, reason: str) -> None:
        super().__init__(f"cannot run {command}: {reason}")
        self.exit_code = Exit.NOT_FOUND if number in (2, 20) else Exit.NOT_EXECUTABLE


def _become(read_order: int, write_failure: int) -> NoReturn:
    """In the child: wait for the command and execute it; exit if there is none."""
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
