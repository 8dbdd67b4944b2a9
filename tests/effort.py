"""How much of an exploration is done. `make test` tries a sample of all steps; `.ci/run` and `make torture` set these
variables of the environment, and try more of them, or all.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence


def _given(name: str, sampled: int) -> int:
    return int(os.environ.get(name, sampled))


#: What everything that is chosen by chance follows from.
SEED = _given("SEED", 20261121)

#: Of the steps before which something else can happen, every so many are tried; 1: each of them.
STRIDE = _given("STRIDE", 8)

#: How many orders of steps with two switches are played, of each case.
SAMPLE = _given("SAMPLE", 3)

#: How many orders of steps by chance are played, of each case.
PLAYS = _given("PLAYS", 4)

#: How many system calls each command is killed at; 1000 leaves none out.
CRASH_POINTS = _given("CRASH_POINTS", 4)


def sampled(calls: Sequence[Hashable]) -> list[int]:
    """Which of these calls to try, counted from 0: every `STRIDE`-th of them, and the first of each kind."""
    first = {kind: number for number, kind in reversed([*enumerate(calls)])}
    return sorted({*range(0, len(calls), STRIDE), *first.values()})
