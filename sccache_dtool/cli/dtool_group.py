"""`dtool cache summary`, `clean` and `log`: commands of `sc-dtool` under the names of dtool's specification."""

from __future__ import annotations

from typing import Any

import click

from sccache_dtool.cli.main import Commands, leave, report
from sccache_dtool.cli.options import common_options
from sccache_dtool.errors import Exit


class _OfDtool(Commands):
    """Reports errors and sets exit codes itself: dtool's own entry point knows neither of them."""

    groups = {"Commands": ("summary", "clean", "log")}  # noqa: RUF012

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise  # click handles these
        except BrokenPipeError:
            leave(Exit.PIPE_CLOSED)
        except Exception as error:
            code = report(error, ctx)
        if isinstance(code, int) and code:
            ctx.exit(code)


@click.group("cache", cls=_OfDtool, context_settings={"help_option_names": ["-h", "--help"]})
@common_options(hidden=False)
def cache() -> None:
    """Inspect and clean dtool's cache.

    Items in use are never removed. `sc-dtool` has more commands: see `sc-dtool -h`.
    """
