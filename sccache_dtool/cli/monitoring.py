"""`metrics`: for monitors."""

from __future__ import annotations

import click

from sccache_dtool import metrics
from sccache_dtool.cli.files import write_file
from sccache_dtool.cli.options import Invocation, common_options, pass_invocation


@click.command("metrics")
@click.option("-o", "--output", "into", metavar="FILE", help="Write into FILE, whole or not at all.")
@common_options()
@pass_invocation
def metrics_command(now: Invocation, into: str | None) -> None:
    """Print what a monitor wants to know, as Prometheus's node exporter reads it from a text file."""
    lines = list(metrics.text(now.cache().state()))
    if into is not None:
        write_file(into, lines)
    else:
        now.out.text("".join(lines))
