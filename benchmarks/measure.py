"""How things are measured here: in turns, in one run; the figure is the median of the ratios of all rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

#: Below this number of rounds a slow file system is not let off.
_LEAST_ROUNDS = 5


class Figure(NamedTuple):
    """A claim, and what was measured of it."""

    name: str
    what: str
    sign: str  # "=", "<=" or ">="; empty where nothing is claimed, and the figure only explains another
    target: float | None
    value: float  # the median of all rounds, or a count
    least: float
    most: float
    rounds: int
    medians: Mapping[str, float]  # seconds of one operation, for whoever wants to reckon; never compared across runs

    @property
    def met(self) -> bool:
        """Whether what was measured is what is claimed."""
        if self.target is None:
            return True
        return {"=": self.value == self.target, "<=": self.value <= self.target, ">=": self.value >= self.target}[
            self.sign
        ]

    def fields(self) -> dict[str, Any]:
        """As the fields of a JSON object."""
        return {**self._asdict(), "medians": dict(self.medians), "met": self.met}


Times = Mapping[str, Sequence[float]]


def in_turns(runners: Mapping[str, Callable[[], float]], rounds: int, budget: float) -> Times:
    """Seconds that each runner says of each round. Who is first changes from round to round.

    Ends early, though not before a few rounds, when `budget` seconds are used up.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    deadline = time.monotonic() + budget
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.monotonic() > deadline:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(runners[name]())
    return times


def ratio(
    name: str, what: str, over: str, under: str, times: Times, sign: str = "", target: float | None = None
) -> Figure:
    """How many times as long as `under` takes `over`, and what is claimed of that."""
    ratios = [one / other for one, other in zip(times[over], times[under], strict=True)]
    medians = {each: statistics.median(times[each]) for each in (over, under)}
    return Figure(name, what, sign, target, statistics.median(ratios), min(ratios), max(ratios), len(ratios), medians)


def count(name: str, what: str, counts: Sequence[int], target: int) -> Figure:
    """The claim that something is done so many times: the worst round decides."""
    return Figure(name, what, "=", target, max(counts), min(counts), max(counts), len(counts), {})
