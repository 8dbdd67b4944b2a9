"""The command under `sc-dtool run`: started late, watched, and sent every signal that we are sent.

It is forked before the lease is taken, so that the lease can be held in its name: if `sc-dtool` is killed, the
command still protects what it reads, and when it ends, whoever looks sees that.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from sccache_dtool.errors import CacheError, Exit, explain

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

#: `si_code` of a signal that the kernel made: a terminal's, which the command has received as well (sigaction(2)).
_SI_KERNEL = 0x80

#: Signals that Python ignores, and that a program expects to find as they were (as subprocess restores them).
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)

#: Seconds after which the command is looked at even if no signal has arrived. A thread that a library has left behind
#: may take SIGCHLD away from the main thread.
_LONGEST_WAIT = 1.0

_Handler = Callable[[int, FrameType | None], Any] | int | None


#: Look at the end of a process, and leave it to be waited for.
_END = os.WEXITED | os.WNOWAIT


class Child:
    """A process that waits to be told which command to become."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Fork it. `warn`, which must not raise, is told of signals that do not reach the command.

        Raises CacheError if no process can be started.
        """
        self._warn = warn
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
        """Become `command`, and return its exit code as a shell gives it: 128 + N for signal N.

        `extra` is added to its environment. `begin` is called first, with all signals blocked that are watched for: a
        thread that it starts inherits that. Raises CacheError with exit code 127 if there is no such command, 126 if
        it cannot be run.

        When this has returned, the signals are ignored: all that they could still do is to take the place of the
        command's exit code. `restore` undoes that.
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
        """Handle signals again as before `run`."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()

    @property
    def has_ended(self) -> bool:
        """Whether the command has ended. Until `close`, nobody else can have its process number."""
        return self._reaped or os.waitid(os.P_PID, self.pid, _END | os.WNOHANG) is not None

    def tell(self, number: int) -> None:
        """Send the command a signal; nothing if it has ended."""
        if self._reaped:
            return
        try:
            os.kill(self.pid, number)
        except OSError as error:  # it has become another user's, as under sudo
            self._warn(f"cannot send {signal.Signals(number).name} to the command: {explain(error)}")

    def close(self) -> None:
        """Forget the process, and end it if it was never told anything."""
        if self._reaped:
            return
        if self._write_order >= 0:
            os.close(self._write_order)
            self._write_order = -1
            self.tell(signal.SIGKILL)  # it has done nothing, and may be stopped
        os.close(self._read_failure)
        os.waitpid(self.pid, 0)
        self._reaped = True

    def _order(self, command: Sequence[str], extra: Mapping[str, str]) -> str:
        """Say what to become; returns why that failed, or nothing."""
        fd, self._write_order = self._write_order, -1
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(json.dumps([list(command), dict(extra)]).encode())
        except BrokenPipeError:
            pass  # somebody has ended it, and it has an exit code that says so
        return os.read(self._read_failure, 4096).decode()

    def _watch(self, watched: frozenset[signal.Signals]) -> os.waitid_result:
        """Wait for the command's end, and pass signals on meanwhile. It stays to be waited for."""
        while (end := os.waitid(os.P_PID, self.pid, _END | os.WNOHANG)) is None:
            arrived = signal.sigtimedwait(watched, _LONGEST_WAIT)
            if arrived is None or arrived.si_signo == signal.SIGCHLD:
                continue
            # The command has received what the kernel, or itself, has sent to its whole process group.
            if arrived.si_code != _SI_KERNEL and arrived.si_pid != self.pid:
                self.tell(arrived.si_signo)
        return end

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """A signal that another thread has taken, so that nobody can say who sent it."""
        self.tell(number)


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
