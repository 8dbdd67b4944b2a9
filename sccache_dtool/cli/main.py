"""`sc-dtool`: finds the command, and turns every error into a sentence and an exit code."""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import click

from sccache_dtool import __version__
from sccache_dtool.cli.options import common_options, invocation
from sccache_dtool.errors import FULL, CacheError, Exit, NoSpace, explain

#: Where each command is, in the order in which the help lists them.
_COMMANDS = {
    "use": "using",
    "unuse": "using",
    "run": "using",
    "renew": "using",
    "du": "looking",
    "ls": "looking",
    "status": "looking",
    "why": "looking",
    "log": "looking",
    "clean": "keeping",
    "rm": "keeping",
    "restore": "keeping",
    "reap": "keeping",
    "doctor": "keeping",
    "init": "keeping",
    "dir": "looking",
    "config": "looking",
}


class _Commands(click.Group):
    """Loads a command's module only when the command is named: most of a short command's time is loading."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        from importlib import import_module

        command = getattr(import_module(f"sccache_dtool.cli.{module}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="The options above may also stand after the command. Exit codes: 0 done, 1 error, 2 usage, 3 done in part, "
    "10 no cache here, 11 waited too long, 12 fetch or checksum failed, 13 no space, 14 in use, 20 findings, "
    "75 lease lost, 130 interrupted.",
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
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is printed as it is, UTF-8 or not
    sys.exit(run(sys.argv[1:]))


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
        return _report(error, context)
    return result if isinstance(result, int) else Exit.DONE


def _report(error: Exception, context: click.Context | None) -> int:
    now = invocation(context) if context is not None else None
    if now is None or now.debug:
        raise error
    if not isinstance(error, CacheError):
        error = _translate(error)
    now.out.error(error)
    return error.exit_code


def _translate(error: Exception) -> CacheError:
    if isinstance(error, OSError):
        if error.errno in FULL:
            return NoSpace(explain(error), hint="free some with: sc-dtool clean")
        return CacheError(explain(error))
    return CacheError(
        f"{type(error).__name__}: {error}", hint="this is a fault in sc-dtool; --debug shows where, please report it"
    )


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """A batch system's SIGTERM: leave tidily, as after Ctrl-C."""
    raise SystemExit(128 + number)
