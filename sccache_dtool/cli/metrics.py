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
    help="Write to FILE, as a whole or not at all. Default: standard output (-).",
)
@common_options()
@pass_invocation
def metrics_command(now: Invocation, into: str) -> None:
    """Print metrics in the text format of Prometheus.

    Prometheus's node exporter reads such a file with its textfile collector.
    """
    write_file(now.out, into, list(metrics.text(now.cache().state())))
