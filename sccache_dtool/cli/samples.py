"""`sample`: sample scripts and units for cron, systemd and Slurm."""

from __future__ import annotations

import os
from importlib.resources import files

import click

from sccache_dtool.cli.options import Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column
from sccache_dtool.errors import UsageError, did_you_mean

#: The files in `samples/`, each with its description.
SAMPLES = {
    "slurm-epilog.sh": "Slurm epilog: releases the leases that a job still holds",
    "slurm-task-prolog.sh": "Slurm task prolog: sets DTOOL_CACHE_DIRECTORY for each job",
    "slurm-job.sbatch": "Slurm job that uses the cache",
    "clean.sh": "script that cleans at low priority; crontab, scrontab and systemd call it",
    "crontab": "line for cron",
    "scrontab": "lines for Slurm's scrontab",
    "report.sh": "script that mails a report; the next one calls it",
    "crontab-report": "line for cron that mails a report every week",
    "sc-dtool-clean.service": "systemd service",
    "sc-dtool-clean.timer": "systemd timer for that service",
    "sc-dtool-serve.socket": "systemd socket that starts the next one",
    "sc-dtool-serve.service": "systemd service for the REST interface",
}


@click.command("sample")
@click.argument("name", required=False)
@common_options()
@pass_invocation
def sample_command(call: Invocation, name: str | None) -> None:
    """List samples for Slurm, cron and systemd, or print one.

    NAME is a name from the list. Its extension may be left out if only one file has that name.

    \b
    Example:
      sc-dtool sample slurm-epilog > /etc/slurm/epilog.d/50-sc-dtool
    """
    if name is None:
        rows = ({"name": file, "about": about} for file, about in SAMPLES.items())
        call.out.table("sample", rows, [Column("NAME", "name"), Column("ABOUT", "about")])
        return
    found = [file for file in SAMPLES if name in (file, os.path.splitext(file)[0])]
    if len(found) != 1:
        what = (
            f"{name!r} could mean {' or '.join(found)}"
            if found
            else f"there is no sample {name!r}{did_you_mean(name, SAMPLES)}"
        )
        raise UsageError(what, hint=f"the samples are {', '.join(SAMPLES)}")
    text = (files("sccache_dtool") / "samples" / found[0]).read_text(encoding="utf-8")
    if call.out.format == "human":
        call.out.text(text)
    else:
        call.out.result("sample", {"name": found[0], "text": text})
