"""`make test-nfs`: the tests on real NFS at full length; if they pass, what they did goes into the documentation."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import figures


def main() -> int:
    """Run them; pytest's exit code."""
    with tempfile.NamedTemporaryFile() as notes:
        os.environ |= {"NFS": "full", "FIGURES": notes.name}
        code = pytest.main(["-q", str(Path(__file__).parent), *sys.argv[1:]])
        if code == pytest.ExitCode.OK and not sys.argv[1:]:  # some of the tests are not what the page tells of
            figures.write("nfs", _table(figures.tallied(notes.name, "nfs storm")))
    return int(code)


def _table(storms: list[dict[str, int | str]]) -> Iterator[str]:
    columns = [name for name in storms[0] if name not in ("what", "name")] if storms else []
    yield f"| NFS | {' | '.join(columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for storm in storms:
        yield f"| {storm['name']} | {' | '.join(f'{int(storm[column]):,}' for column in columns)} |"
    yield ""
    yield "Violations: 0."


if __name__ == "__main__":
    sys.exit(main())
