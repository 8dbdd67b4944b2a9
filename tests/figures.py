"""Writes what a run has measured into the documentation: nobody copies a number by hand."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "how-it-is-tested.md"


def write(block: str, lines: Iterable[str]) -> None:
    """Replace what is between ``<!-- BLOCK: … -->`` and ``<!-- end -->`` of the page by these lines."""
    measured = (
        f"Written by a run on {datetime.now(UTC):%Y-%m-%d}: Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}, {os.cpu_count()} cores."
    )
    text = "\n".join(["", measured, "", *lines, ""])
    page = PAGE.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- {block}: [^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
    assert marks.search(page), f"{PAGE} has no place for {block}"
    PAGE.write_text(marks.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page, count=1), encoding="utf-8")


def tally(what: str, name: str, **counts: int) -> None:
    """Note what a test has done, for whoever asked for it: a line of JSON in the file $FIGURES."""
    if path := os.environ.get("FIGURES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "name": name, **counts}) + "\n")


def tallied(path: str, what: str) -> list[dict[str, int | str]]:
    """What was noted of one kind, in order."""
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [line for line in lines if line["what"] == what]
