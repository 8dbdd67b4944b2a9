"""What a report costs: beside `du` of the same cache, with a policy that removes some of it, and a year of uses.

``report.py [--dir DIRECTORY] [--items N] [--rounds N] [--json]``. The files of the items are empty: what is measured
are names and directories. The target is for 200,000 items, on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from from_shell import Installation
from measure import Figure, in_turns, ratio
from run import line, ran_on
from scale import managed

from lots import Run, describe

#: Seconds that a report may take besides twice the time of `du`.
_MORE = 3.0


def of_report(directory: Path, items: int, rounds: int) -> Iterator[Figure]:
    """`report` beside `du`: the first time, when nothing is known of the copies, and later."""
    installed = Installation.make(directory / "installation")
    root = directory / "cache"
    managed(root, items)
    describe(root, 20)
    (root / ".sc-dtool" / "config.toml").write_text(
        f'[clean]\nretain_size = "{(1000 + items // 2) * items * 2 // 3}"\n'
    )
    du = Run(installed, root, "du")
    page = directory / "report.html"
    report = Run(installed, root, "report", "-o", str(page))
    du()
    report()
    times = dict(in_turns({"du": du, "report": report}, rounds, 3600.0))

    def first() -> float:
        shutil.rmtree(root / ".sc-dtool" / "facts", ignore_errors=True)
        return report()

    times |= in_turns({"first": first}, rounds, 3600.0)
    allowed = [2 * seconds + _MORE for seconds in times["du"]]
    what = f"report on {items:,} items beside 2 x du + {_MORE:g} s"
    yield ratio("report", what, "report", "allowed", {**times, "allowed": allowed}, "<=", 1.0)
    yield ratio("report-first", f"the first {what}", "first", "allowed", {**times, "allowed": allowed})
    yield ratio("report-du", f"report on {items:,} items beside du", "report", "du", times)
    memory = partial(Figure, "report-memory", "MB that it takes", "", None)
    yield memory(*[report.memory / 10**6] * 3, rounds, {})
    size = page.stat().st_size / 10**3
    yield Figure("report-size", "kB of the page", "", None, size, size, size, 1, {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to measure (default: a temporary directory)")
    parser.add_argument("--items", type=int, default=200_000, help="how many items (default: 200,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sc-dtool-report-", dir=arguments.dir) as scratch:
        where = ran_on(scratch)
        for one in of_report(Path(scratch), arguments.items, arguments.rounds):
            found.append(one)
            if not arguments.json:
                seconds = ", ".join(f"{name} {value:.2f} s" for name, value in one.medians.items())
                print(line(one) if one.target is not None else f"{one.what}: {one.value:.2f}", seconds, flush=True)
    if arguments.json:
        print(json.dumps({"version": 1, "ran_on": where, "figures": [one.fields() for one in found]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
