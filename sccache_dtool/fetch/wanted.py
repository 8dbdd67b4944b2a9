"""What the words of a command or call mean."""

from __future__ import annotations

from typing import NamedTuple

from sccache_dtool.fetch.stack import Stack


class Wanted(NamedTuple):
    """An item to be had: its key, what it is called on the command line, how to get it."""

    key: str
    name: str | None
    label: str
    stack: Stack
