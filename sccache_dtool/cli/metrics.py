"""`metrics`: for monitors."""

from __future__ import annotations

import click

from sccache_dtool import metrics
from sccache_dtool.cli.files import STANDARD_OUTPUT, write_file
from sccache_dtool.cli.options import Invocation, common_options, pass_invocation


@click.command("metrics")
@click.option(
    "-o",
    "--output",
    "into",
    default=STANDARD_OUTPUT,
    metavar="FILE",
    help="Write into FILE, whole or not at all. Default: standard output, as for '-'.",
)
@common_options()
@pass_invocation
def metrics_command(now: Invocation, into: str) -> None:
    """Print what a monitor wants to know, as Prometheus's node exporter reads it from a text file."""
    write_file(now.out, into, list(metrics.text(now.cache().state())))
