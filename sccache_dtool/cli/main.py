"""`sc-dtool`: finds the command, and turns every error into a sentence and an exit code."""

from __future__ import annotations

import codecs
import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import click

from sccache_dtool import __version__
from sccache_dtool.cli.options import common_options, invocation
from sccache_dtool.errors import FULL, CacheError, Exit, NoSpace, explain
from sccache_dtool.layout import CONTROL

#: Where each command is, in the order in which the help lists them.
_COMMANDS = {
    "use": "using",
    "unuse": "using",
    "run": "using",
    "renew": "using",
    "du": "space",
    "summary": "space",
    "ls": "looking",
    "status": "looking",
    "why": "looking",
    "log": "looking",
    "clean": "cleaning",
    "pin": "keeping",
    "unpin": "keeping",
    "rm": "keeping",
    "restore": "keeping",
    "metrics": "monitoring",
    "reap": "keeping",
    "doctor": "doctoring",
    "init": "keeping",
    "transfers": "transfers",
    "loaders": "transfers",
    "locate": "transfers",
    "dir": "looking",
    "config": "looking",
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


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="The options above may also stand after the command. Exit codes: 0 done, 1 error, 2 usage, 3 done in part, "
    "10 no cache here, 11 waited too long, 12 fetch or checksum failed, 13 no space, 14 in use, 20 findings, "
    "75 lease lost, 130 interrupted, 143 terminated.",
)
@common_options(hidden=False)
@click.version_option(__version__, prog_name="sc-dtool", message="%(prog)s %(version)s")
def sc_dtool() -> None:
    """Share a cache of large files: take a lease, read, give it back.

    \b
    In a batch job:
      p=$(sc-dtool use https://example.org/ref.tar sha256:... tar)
      analyse "$p"
      sc-dtool unuse https://example.org/ref.tar sha256:... tar

    What is leased is never deleted; what is not can be, with `sc-dtool clean`.
    """  # noqa: D301  (click wants the backspace itself: do not wrap the next lines)


def main() -> NoReturn:
    """Run the command line; never returns."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:  # who called us wants it ignored (`trap '' TERM`)
        signal.signal(signal.SIGTERM, _terminate)
    _open_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        # A path is printed as it is on disk, whatever the locale; what it cannot spell otherwise is replaced.
        codecs.register_error(_AS_ON_DISK, _as_on_disk)
        sys.stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors=_AS_ON_DISK)
    sys.exit(run(sys.argv[1:]))


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


def run(words: list[str]) -> int:
    """Run one command; returns its exit code."""
    context: click.Context | None = None
    try:
        with sc_dtool.make_context("sc-dtool", words) as context:
            result = sc_dtool.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone, and has said nothing about it
        return Exit.ERROR
    except Exception as error:
        return report(error, context)
    return result if isinstance(result, int) else Exit.DONE


def report(error: Exception, context: click.Context | None) -> int:
    """Print an error for people; its exit code. With --debug it is raised, with no credentials in any of its texts."""
    now = invocation(context) if context is not None else None
    if now is None or now.debug:
        from sccache_dtool.fetch.reasons import without_credentials

        raise without_credentials(error)
    if not isinstance(error, CacheError):
        error = _translate(error)
    now.out.error(error)
    return error.exit_code


def _translate(error: Exception) -> CacheError:
    if isinstance(error, OSError):
        if error.errno in FULL:
            return NoSpace(explain(error), hint="free some with: sc-dtool clean")
        missing = isinstance(error, FileNotFoundError) and f"/{CONTROL}/" in str(error.filename2 or error.filename)
        return CacheError(explain(error), hint="`sc-dtool doctor` tells what is missing" if missing else None)
    return CacheError(
        f"{type(error).__name__}: {error}", hint="this is a fault in sc-dtool; --debug shows where, please report it"
    )


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """A batch system's SIGTERM: leave tidily, as after Ctrl-C."""
    raise SystemExit(128 + number)
