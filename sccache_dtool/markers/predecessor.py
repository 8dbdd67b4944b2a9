"""The index of a predecessor, which knew files by their MD5: `index.csv`, and beside it the files ``<md5>.cache``."""

from __future__ import annotations

import csv
import io
import re
from typing import NamedTuple

from sccache_dtool.disk.records import printable
from sccache_dtool.errors import UsageError
from sccache_dtool.markers.marker import open_regular


class Adopted(NamedTuple):
    """A file of the predecessor: its MD5, what it is known by now, or what is wrong."""

    md5: str
    identifier: str | None
    wrong: str = ""


def predecessors_of(path: str) -> list[tuple[str, str]]:
    """The MD5s and times in the predecessor's `index.csv`. Raises UsageError for a file in another form."""
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not an index in CSV") from error
    for row in rows:
        if len(row) != 2 or re.fullmatch("[0-9a-fA-F]{32}", row[0]) is None:
            raise UsageError(
                f"{path} is not an index with MD5s",
                details=[f"a row is {printable(','.join(row)[:80])}"],
                hint="each row must be an MD5 and a time, without a header",
            )
    return [(row[0].lower(), row[1]) for row in rows]
