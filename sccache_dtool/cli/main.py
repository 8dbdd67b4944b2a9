"""The command `sc-dtool`: selects the subcommand, and turns every error into a message and an exit code."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from io import BufferedWriter, FileIO, TextIOWrapper
from types import FrameType
from typing import Any, NoReturn

import click

from sccache_dtool import __version__, log
from sccache_dtool.cli.options import Invocation, common_options, explained, invocation
from sccache_dtool.cli.output import cannot_write_result
from sccache_dtool.disk.names import CONTROL
from sccache_dtool.errors import CacheError, Exit, did_you_mean, explain, translate

#: The module of each command, in the groups and in the order in which the help lists them.
_GROUPS = {
    "Use the cache": {
        "use": "use",
        "unuse": "use",
        "run": "use",
        "renew": "use",
        "sbatch": "sbatch",
        "session": "session",
        "lock": "lock",
        "add": "content",
        "save": "content",
        "get": "content",
        "cat": "content",
        "marker": "marker",
        "locate": "transfers",
        "loaders": "transfers",
    },
    "Look at the cache": {
        "du": "usage",
        "ls": "inspect",
        "summary": "usage",
        "status": "inspect",
        "why": "inspect",
        "log": "inspect",
        "transfers": "transfers",
        "report": "report",
    },
    "Clean the cache": {
        "clean": "clean",
        "rm": "manage",
        "restore": "manage",
        "pin": "manage",
        "unpin": "manage",
    },
    "Administer the cache": {
        "init": "manage",
        "archive": "archive",
        "index": "index",
        "dir": "inspect",
        "config": "settings",
        "lot": "lot",
        "globus": "globus",
        "reap": "manage",
        "doctor": "doctor",
        "metrics": "metrics",
        "serve": "serve",
        "sample": "samples",
    },
}
_MODULES = {name: module for group in _GROUPS.values() for name, module in group.items()}

#: Longest summary of a command in the help, in characters, with its full stop.
_SUMMARY = 61

_AS_ON_DISK = "sc-dtool-as-on-disk"


class Commands(click.Group):
    """A group that imports the module of a command only if it is named: imports dominate the time of a short one."""

    #: The commands of this group by the titles under which its help lists them.
    groups: Mapping[str, Iterable[str]] = _GROUPS

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, in the order of the help."""
        return [name for group in self.groups.values() for name in group]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None if there is none."""
        if cmd_name not in self.list_commands(ctx):
            return None
        from importlib import import_module

        command = getattr(import_module(f"sccache_dtool.cli.{_MODULES[cmd_name]}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return explained(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, one section for each group, in columns of the same width."""
        width = max(map(len, self.list_commands(ctx)))
        for title, group in self.groups.items():
            with formatter.section(title):
                rows = [(name.ljust(width), self.get_command(ctx, name)) for name in group]
                formatter.write_dl([(name, one.get_short_help_str(_SUMMARY)) for name, one in rows if one is not None])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, but the error for an unknown command suggests similar names."""
        name = args[0]
        names = self.list_commands(ctx)
        if name not in names and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}{did_you_mean(name, names)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="The options above may also follow the command. `sc-dtool COMMAND -h` describes a command. Exit codes: "
    "0 done, 1 error, 2 usage, 3 done in part, 10 no cache here, 11 waited too long, 12 fetch or checksum failed, "
    "13 no space, 14 in use, 20 findings, 75 lease lost, 130 interrupted, 141 output pipe closed, 143 terminated.",
)
@common_options(hidden=False)
@click.version_option(__version__, prog_name="sc-dtool", message="%(prog)s %(version)s")
def sc_dtool() -> None:
    """Share one copy of large files among many jobs, users and hosts.

    A job takes a lease on an item (`use`), reads it, and releases the lease (`unuse`). An item with a lease is never
    removed. `clean` removes other items.

    \b
    In a batch job:
      source=https://example.org/hg38.tar.gz
      digest=sha256:5d41402abc4b2a76b9719d911017c592ae4b7e1ac0fe2f1f9f0a8d3bb1c6e7d2
      path=$(sc-dtool use --ttl 13h "$source" "$digest" tar) || exit
      trap 'sc-dtool unuse "$path"' EXIT
      align --reference "$path" sample.fastq > sample.bam
    """


def main(command: Callable[[list[str]], int] | None = None) -> NoReturn:
    """Run the command line; never returns.

    `command` takes the arguments of the command line and returns an exit code. The default is `run`. Standard streams,
    signals and unexpected errors are handled in the same way for every `command`.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:  # the caller ignores it (`trap '' TERM`)
        signal.signal(signal.SIGTERM, _terminate)
    _open_closed_streams()
    # Paths are printed as they are on disk, in every locale. Other characters that the locale lacks become `?`.
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
    """End this process with exit code `code`, or with an error's if `code` is DONE but the output cannot be written.

    `sys.exit` would wait for threads of libraries, and replace the code if a stream cannot be flushed. It is used only
    for MPI ranks.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    error = _unwritten()
    if code == Exit.DONE and error is not None:
        code = _code_of(error, None)
    with contextlib.suppress(OSError, ValueError):  # a program that does not start in `main` has its own stream
        sys.stderr.flush()
    if "mpi4py.MPI" in sys.modules:
        sys.exit(code)  # a rank that ends without MPI_Finalize, which mpi4py calls late, counts as killed
    os._exit(code)


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that is closed (``>&-``), so that no other file gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _as_on_disk(error: UnicodeError) -> tuple[str | bytes, int]:
    """Keep bytes that are not text (PEP 383), and replace characters that the encoding lacks with ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    try:
        return codecs.lookup_error("surrogateescape")(one)
    except UnicodeEncodeError:
        return codecs.lookup_error("replace")(one)


def run(words: list[str], *, owns_process: bool = False) -> int:
    """Run one command and return its exit code. `owns_process`: whether this process ends with the command."""
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
    """Print the traceback for --debug, without credentials, and return the exit code."""
    import traceback

    from sccache_dtool.fetch.reasons import without_credentials

    traceback.print_exception(without_credentials(error))
    return Exit.ERROR


def _code_of(error: Exception | KeyboardInterrupt, context: click.Context | None) -> int:
    """Report the error that ended a command, and return its exit code."""
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
    """Print an error and return its exit code. With --debug, raise it instead."""
    call = invocation(context) if context is not None else Invocation()
    if call.debug:
        raise error
    if not isinstance(error, CacheError):
        error = _translate(error)
    call.out.error(error)
    return error.exit_code


class _StandardError(FileIO):
    """Standard error that ignores write errors: a message or a closed terminal must not stop a command."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _StandardOutput(FileIO):
    """Standard output that remembers its write error: the error that reaches `report` does not name the stream."""

    failure: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _unwritten() -> OSError | None:
    """The error that prevents the output from being written; None if it has been written."""
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
    """Handle SIGTERM, which batch systems send, as Ctrl-C is handled: release what is held, then exit."""
    raise SystemExit(128 + number)
