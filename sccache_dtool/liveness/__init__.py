"""ALIVE, DEAD or UNKNOWN, each with its evidence in words. DEAD is said only on proof; UNKNOWN counts as alive."""

from __future__ import annotations

from enum import StrEnum

from sccache_dtool.tuples import NamedTuple


class State(StrEnum):
    """What can be said of a holder."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Verdict(NamedTuple):
    """A state and the evidence for it, as a sentence without a full stop."""

    state: State
    evidence: str
