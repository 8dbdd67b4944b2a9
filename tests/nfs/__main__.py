"""`make test-nfs`: the tests on real NFS at full length; if they pass, what they did goes into the documentation."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import figures


def main() -> int:
    """Run them; pytest's exit code."""
    began = time.monotonic()
    with tempfile.NamedTemporaryFile() as notes:
        os.environ |= {"NFS": "full", "FIGURES": notes.name}
        code = pytest.main(["-q", str(Path(__file__).parent), *sys.argv[1:]])
        if code == pytest.ExitCode.OK and not sys.argv[1:]:  # some of the tests are not what the page tells of
            figures.write("nfs", _report(notes.name, time.monotonic() - began))
    return int(code)


def _report(notes: str, seconds: float) -> Iterator[str]:
    storms = figures.tallied(notes, "nfs storm")
    yield f"All tests on NFS, and of these so many storms: {len(storms)}; {seconds / 60:.0f} minutes."
    yield ""
    yield from _table(storms)
    yield "Violations: 0."
    yield ""
    for mutant in figures.tallied(notes, "nfs mutant"):
        yield f'- A storm with "{mutant["name"]}" was caught after {int(mutant["uses"]):,} uses.'
    yield ""
    yield "Requests to the server, as the client's kernel counts them:"
    yield ""
    yield from _table(figures.tallied(notes, "nfs requests"))
    yield "For each item of a set, and each lock of a session:"
    yield ""
    yield from _table(figures.tallied(notes, "nfs requests each"))


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    columns = [name for name in rows[0] if name not in ("what", "name")] if rows else []
    yield f"| NFS | {' | '.join(columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for row in rows:
        yield f"| {row['name']} | {' | '.join(f'{row[column]:,}' for column in columns)} |"
    yield ""


if __name__ == "__main__":
    sys.exit(main())
