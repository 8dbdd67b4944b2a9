"""`sc-dtool`: finds the command, and turns every error into a sentence and an exit code."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from io import BufferedWriter, FileIO, TextIOWrapper
from types import FrameType
from typing import Any, NoReturn

import click

from sccache_dtool import __version__, log
from sccache_dtool.cli.options import Invocation, common_options, invocation
from sccache_dtool.cli.output import cannot_write_result
from sccache_dtool.disk.names import CONTROL
from sccache_dtool.errors import CacheError, Exit, explain, translate

#: Where each command is, in the order in which the help lists them.
_COMMANDS = {
    "use": "use",
    "unuse": "use",
    "run": "use",
    "renew": "use",
    "du": "usage",
    "summary": "usage",
    "ls": "inspect",
    "status": "inspect",
    "why": "inspect",
    "log": "inspect",
    "clean": "clean",
    "pin": "manage",
    "unpin": "manage",
    "rm": "manage",
    "restore": "manage",
    "metrics": "metrics",
    "reap": "manage",
    "doctor": "doctor",
    "init": "manage",
    "transfers": "transfers",
    "loaders": "transfers",
    "locate": "transfers",
    "dir": "inspect",
    "config": "inspect",
    "sample": "samples",
}


_AS_ON_DISK = "sc-dtool-as-on-disk"


class Commands(click.Group):
    """Loads a command's module only when the command is named: most of a short command's time is loading."""

    #: Of `sc-dtool`'s commands, those that this group has.
    names: tuple[str, ...] = tuple(_COMMANDS)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the help."""
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, its module loaded."""
        module = _COMMANDS.get(cmd_name)
        if module is None or cmd_name not in self.names:
            return None
        from importlib import import_module

        command = getattr(import_module(f"sccache_dtool.cli.{module}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, with the commands of similar names in the error."""
        name = args[0]
        if name not in self.names and not name.startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(name, self.names, 3)
            suggestion = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            ctx.fail(f"No such command {name!r}.{suggestion}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="The options above may also follow the command. Exit codes: 0 done, 1 error, 2 usage, 3 done in part, "
    "10 no cache here, 11 waited too long, 12 fetch or checksum failed, 13 no space, 14 in use, 20 findings, "
    "75 lease lost, 130 interrupted, 141 output pipe closed, 143 terminated.",
)
@common_options(hidden=False)
@click.version_option(__version__, prog_name="sc-dtool", message="%(prog)s %(version)s")
def sc_dtool() -> None:
    """Share a cache of large files: take a lease, read, release it.

    \b
    In a batch job:
      path=$(sc-dtool use https://example.org/ref.tar sha256:... tar) || exit
      analyse "$path"
      sc-dtool unuse "$path"

    An item with a lease is never deleted. `sc-dtool clean` deletes others.
    """  # noqa: D301  (click wants the backspace itself: do not wrap the next lines)


def main(command: Callable[[list[str]], int] | None = None) -> NoReturn:
    """Run the command line; never returns.

    `command` is given the words of the command line and returns an exit code; default: `run`. Whatever it does has the
    streams, signals and exit codes of `sc-dtool`.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:  # who called us wants it ignored (`trap '' TERM`)
        signal.signal(signal.SIGTERM, _terminate)
    _open_closed_streams()
    # A path is printed as it is on disk, whatever the locale; what it cannot spell otherwise is replaced.
    codecs.register_error(_AS_ON_DISK, _as_on_disk)
    raw = _StandardOutput(sys.stdout.fileno(), "w", closefd=False)
    sys.stdout = TextIOWrapper(
        BufferedWriter(raw), sys.getfilesystemencoding(), _AS_ON_DISK, line_buffering=raw.isatty()
    )
    messages = BufferedWriter(_StandardError(sys.stderr.fileno(), "w", closefd=False))
    sys.stderr = TextIOWrapper(messages, sys.stderr.encoding, "backslashreplace", line_buffering=True)
    try:
        code = run(sys.argv[1:], owns_process=True) if command is None else command(sys.argv[1:])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else Exit.DONE if end.code is None else Exit.ERROR
    except (Exception, KeyboardInterrupt) as error:
        code = _code_of(error, None) if command is not None or isinstance(error, KeyboardInterrupt) else _show(error)
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process with an exit code, or another if the code says "done" and the output could not be written.

    `sys.exit` would wait for threads that others have left behind, and replace the code if a stream cannot be flushed.
    Only ranks of MPI end by it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    error = _unwritten()
    if code == Exit.DONE and error is not None:
        code = _code_of(error, None)
    with contextlib.suppress(OSError, ValueError):  # of a program that does not begin with `main`
        sys.stderr.flush()
    if "mpi4py.MPI" in sys.modules:
        sys.exit(code)  # a rank that ends without MPI_Finalize, which mpi4py calls late, counts as killed
    os._exit(code)


def _open_closed_streams() -> None:
    """Whoever closed a standard stream (``>&-``) wants to hear nothing; and no file of ours must get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _as_on_disk(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes that were no text stay as they are (PEP 383); a character that there is no code for becomes ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    try:
        return codecs.lookup_error("surrogateescape")(one)
    except UnicodeEncodeError:
        return codecs.lookup_error("replace")(one)


def run(words: list[str], *, owns_process: bool = False) -> int:
    """Run one command; returns its exit code. `owns_process`: whether this process ends when the command does."""
    context: click.Context | None = None
    try:
        with sc_dtool.make_context("sc-dtool", words, obj=Invocation(owns_process)) as context:
            result = sc_dtool.invoke(context)
    except (Exception, KeyboardInterrupt) as error:
        return _code_of(error, context)
    finally:
        if not owns_process:
            log.hide()
    return result if isinstance(result, int) else Exit.DONE


def _show(error: Exception) -> int:
    """What --debug is for: a traceback, with no credentials in any of its texts."""
    import traceback

    from sccache_dtool.fetch.reasons import without_credentials

    traceback.print_exception(without_credentials(error))
    return Exit.ERROR


def _code_of(error: Exception | KeyboardInterrupt, context: click.Context | None) -> int:
    """The exit code for what has ended a command, which is reported."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    if isinstance(error, BrokenPipeError) and isinstance(_unwritten(), BrokenPipeError):
        return Exit.PIPE_CLOSED
    return report(error, context)


def report(error: Exception, context: click.Context | None) -> int:
    """Print an error for people; its exit code. With --debug it is raised."""
    now = invocation(context) if context is not None else Invocation()
    if now.debug:
        raise error
    if not isinstance(error, CacheError):
        error = _translate(error)
    now.out.error(error)
    return error.exit_code


class _StandardError(FileIO):
    """Drops what cannot be written: messages, and progress on a terminal that has gone, stop nothing."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _StandardOutput(FileIO):
    """Remembers that it could not be written, for what an error says of that is no more than its number."""

    failure: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _unwritten() -> OSError | None:
    """Why what was printed cannot be written; None if it is written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    except ValueError:  # it is closed
        return None
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _StandardOutput) else None


def _translate(error: Exception) -> CacheError:
    if isinstance(error, OSError):
        if _unwritten() is not None:
            return cannot_write_result(error)
        if isinstance(error, FileNotFoundError) and f"/{CONTROL}/" in str(error.filename2 or error.filename):
            return CacheError(explain(error), hint="`sc-dtool doctor` reports what is missing")
        return translate(error)
    return CacheError(
        f"{type(error).__name__}: {error}",
        hint="this is a bug in sc-dtool: run the command again with --debug, and report the traceback",
    )


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """A batch system's SIGTERM: leave tidily, as after Ctrl-C."""
    raise SystemExit(128 + number)
