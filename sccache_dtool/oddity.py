"""Anomalies: what is found in a cache and is not as the program makes it, and what becomes of it."""

from __future__ import annotations

from enum import Enum

from sccache_dtool.tuples import NamedTuple


class Fate(Enum):
    """What the program does with it; the value is how people read it."""

    LEFT_ALONE = "left alone"
    PASSED_OVER = "passed over"
    HELD = "counted as held"
    ALIVE = "counted as alive"
    IGNORED = "ignored"


class Oddity(NamedTuple):
    """One anomaly."""

    path: str
    kind: str  # what is wrong, as a phrase: "not a holder", "Permission denied"
    fate: Fate | str  # a phrase where none of Fate fits; empty if nothing follows from it

    def __str__(self) -> str:
        """For people; no code reads it."""
        fate = self.fate.value if isinstance(self.fate, Fate) else self.fate
        return f"{self.path}: {self.kind}; {fate}" if fate else f"{self.path}: {self.kind}"
