"""`report`: a page of HTML on the cache, for people."""

from __future__ import annotations

import click

from sccache_dtool.cli.files import write_file
from sccache_dtool.cli.options import Invocation, common_options, pass_invocation
from sccache_dtool.cli.tasks import by_all_tasks


@click.command("report")
@click.option(
    "-o", "--output", "into", required=True, metavar="FILE", help="Write to FILE, atomically; - is standard output."
)
@common_options()
@pass_invocation
@by_all_tasks
def report_command(call: Invocation, into: str) -> None:
    """Write a report on the cache, as a web page.

    The report shows how full the cache is, how much it is used, what is idle, who holds what, what the next `clean`
    would remove, and what failed. It is one file of HTML, with no script, that loads nothing.

    This needs the extra `report`.

    \b
    Example:
      sc-dtool report -o report.html
    """
    from sccache_dtool import report

    write_file(call.out, into, [report.render(call.cache())])
