"""What speed is claimed, measured: `make bench`. See README.md here for how, and for what a figure means."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dtool_hit
import from_shell
import in_process
from measure import Figure

from sccache_dtool.liveness.lifetime import mount_type

#: Benchmarks, each with its rounds at most and the seconds after which it ends early: under a minute together.
_BENCHMARKS = ((in_process.figures, 100, 15.0), (from_shell.figures, 120, 30.0), (dtool_hit.figures, 30, 15.0))


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="sc-dtool-bench-", dir=arguments.dir) as scratch:
        where = ran_on(scratch)
        if not arguments.json:
            print("\n".join(f"{name:<12}{value}" for name, value in where.items()), end="\n\n", flush=True)
        found: list[Figure] = []
        for number, (benchmark, rounds, budget) in enumerate(_BENCHMARKS):
            directory = Path(scratch, str(number))
            directory.mkdir()
            for figure in benchmark(directory, arguments.rounds or rounds, budget):
                found.append(figure)
                if not arguments.json:
                    print(line(figure), flush=True)
    if arguments.json:
        print(json.dumps({"version": 1, "ran_on": where, "figures": [figure.fields() for figure in found]}, indent=2))
    missed = [figure.name for figure in found if not figure.met]
    if missed and arguments.check:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", help="where to measure, such as a directory on NFS (default: a temporary one)")
    parser.add_argument(
        "--rounds", type=_positive, help="rounds of each benchmark (default: enough for steady figures)"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one round")
    return number


def ran_on(directory: str) -> dict[str, Any]:
    """What a result must name to be worth anything."""
    return {
        "file system": mount_type(directory) or "unknown",
        "directory": os.path.dirname(directory),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}",
        "processors": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.1f} processes in the last minute, before we began",
        "commit": _commit(),
    }


def _commit() -> str:
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return asked.stdout.strip()


def line(figure: Figure) -> str:
    """A figure for people."""
    verdict = "met" if figure.met else "MISSED"
    if not figure.medians:
        most = "at most " if figure.sign == "<=" else ""
        return f"{figure.what}: {figure.value:g} (target: {most}{figure.target:g}, {verdict})"
    if figure.target is None:
        target = "no target, to compare with"
    else:
        target = f"target: {'at most' if figure.sign == '<=' else 'at least'} {figure.target:g} x, {verdict}"
    times = ", ".join(f"{name} {_seconds(median)}" for name, median in figure.medians.items())
    return (
        f"{figure.what}: {figure.value:.2f} x ({target})\n"
        f"    {figure.rounds} rounds from {figure.least:.2f} to {figure.most:.2f} x; medians: {times}"
    )


def _seconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} us"


if __name__ == "__main__":
    sys.exit(main())
