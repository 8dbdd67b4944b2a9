"""Who decides over the order of steps in a play: all orders with few switches, or chance with a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from faults import Call
from races.baton import Act, Misfortune, Play, Scene, possible


class Switch(NamedTuple):
    """Before call `at`, counted from 0, actor `to` goes on instead of who would."""

    at: int
    to: int


class Switches:
    """Everybody goes on for as long as he can, but for a few switches."""

    def __init__(self, switches: tuple[Switch, ...], misfortunes: Mapping[int, Misfortune] | None = None) -> None:
        self._switches = {switch.at: switch.to for switch in switches}
        self._misfortunes = misfortunes or {}
        self._step = -1
        self.others: list[list[int]] = []  # at each step, who could have gone on instead
        self.met: list[list[Misfortune]] = []  # for each call that was made, what could have befallen it

    def turn(self, current: int | None, ready: list[int]) -> int:
        self._step += 1
        chosen = self._switches.get(self._step)
        if chosen is None or chosen not in ready:
            chosen = ready[0] if current is None else current
        self.others.append([number for number in ready if number != chosen])
        return chosen

    def misfortune(self, call: Call) -> Misfortune | None:
        here = len(self.met)
        self.met.append(possible(call))
        wanted = self._misfortunes.get(here)
        return wanted if wanted in self.met[here] else None


class Chance:
    """Everything by chance: long stretches and short ones, rare misfortunes and frequent ones."""

    def __init__(self, seed: object) -> None:
        self._dice = random.Random(str(seed))
        self._restless = self._dice.choice((0.05, 0.2, 0.6))
        self._unlucky = self._dice.choice((0.0, 0.01, 0.05))
        self.counts: dict[Misfortune, int] = {}

    def turn(self, current: int | None, ready: list[int]) -> int:
        if current is None or self._dice.random() < self._restless:
            return self._dice.choice(ready)
        return current

    def misfortune(self, call: Call) -> Misfortune | None:
        if self._dice.random() >= self._unlucky:
            return None
        chosen = self._dice.choice(possible(call))
        self.counts[chosen] = self.counts.get(chosen, 0) + 1
        return chosen


#: Orders with one switch that are played of even the shortest case.
_FEW = 20


class Played(NamedTuple):
    """One order that was played."""

    switches: tuple[Switch, ...]
    violations: list[str]
    log: list[str]


def systematically(
    scene: Scene, acts: Mapping[str, Act], most: int, sample: int | None, seed: int, stride: int = 1
) -> Iterator[Played]:
    """Every order with at most `most` switches, whoever begins.

    `sample`: of the orders with more than one switch only so many, by chance; None for all.
    `stride`: of the orders with one switch only one in so many, but _FEW at least, from one that is chosen by chance.
    """
    dice = random.Random(seed)
    pending = [(Switch(0, first),) for first in range(len(acts))]
    for count in range(most + 1):
        if count == 1:
            step = max(1, min(stride, len(pending) // _FEW))
            pending = pending[dice.randrange(step) :: step]
        if sample is not None and count > 1:
            pending = dice.sample(pending, min(sample, len(pending)))
        longer: list[tuple[Switch, ...]] = []
        for switches in pending:
            director = Switches(switches)
            play = Play(scene, acts, director)
            violations = play.run()
            yield Played(switches, violations, play.log)
            begin = switches[-1].at + 1
            longer += [
                (*switches, Switch(begin + at, to))
                for at, others in enumerate(director.others[begin:])
                for to in others
            ]
        pending = longer
