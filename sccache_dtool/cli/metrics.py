"""`metrics`: print metrics for monitoring."""

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
    help="Write to FILE, atomically. Default: standard output (-).",
)
@common_options()
@pass_invocation
def metrics_command(call: Invocation, into: str) -> None:
    """Print metrics in the text format of Prometheus.

    The textfile collector of Prometheus's node exporter reads such a file.

    \b
    Example:
      sc-dtool metrics -o /var/lib/node_exporter/sc_dtool.prom
    """
    write_file(call.out, into, list(metrics.text(call.cache().state())))
