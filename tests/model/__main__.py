"""`make model`: explore every scenario, refute every mutant, say what was found, and write it into the docs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import figures
from model.explorer import Explorer, Result
from model.invariants import violated
from model.mutants import MUTANTS
from model.scenarios import scenarios

Tell = Callable[[str], None]


def explore(tell: Tell) -> Iterator[Result]:
    """Each scenario, to its end."""
    for name, scenario in scenarios().items():
        result = Explorer(scenario, violated).run()
        verdict = result.violation or "holds"
        tell(
            f"{name:51}{result.states:8,} states {result.transitions:9,} transitions {result.seconds:5.1f} s  {verdict}"
        )
        for line in result.trace:
            tell(f"    {line}")
        yield result


def refute(tell: Tell) -> Iterator[tuple[str, Result]]:
    """Each mutant, to its first violation, by one of the shortest ways there is."""
    for mutant in MUTANTS:
        result = mutant.refute()
        tell(f"\n{mutant.name} ({mutant.scenario}): {result.violation or 'NOT REFUTED'}")
        for line in result.trace:
            tell(f"    {line}")
        yield mutant.name, result


def main() -> int:
    """Exit code 1 if a scenario does not hold, or a mutant does."""
    explored = list(explore(print))
    refuted = list(refute(print))
    states, transitions = sum(one.states for one in explored), sum(one.transitions for one in explored)
    seconds = sum(one.seconds for one in explored)
    print(f"\n{len(explored)} scenarios: {states:,} states, {transitions:,} transitions, {seconds:.1f} s")
    print(f"{sum(result.violation is not None for _, result in refuted)} of {len(refuted)} mutants refuted")
    figures.write("model", [*_table_of_scenarios(explored), "", *_table_of_mutants(refuted)])
    failed = any(one.violation for one in explored) or any(not result.violation for _, result in refuted)
    return int(failed)


def _table_of_scenarios(explored: list[Result]) -> Iterator[str]:
    yield "| scenario | misfortunes | states | transitions | verdict |"
    yield "|---|---|---:|---:|---|"
    for one in explored:
        luck = ", ".join(f"{count} {kind}" for kind, count in one.scenario.luck._asdict().items() if count)
        yield f"| {one.scenario.name} | {luck} | {one.states:,} | {one.transitions:,} | {one.violation or 'holds'} |"
    states, transitions = sum(one.states for one in explored), sum(one.transitions for one in explored)
    yield f"| **all {len(explored)}** | | **{states:,}** | **{transitions:,}** | |"


def _table_of_mutants(refuted: list[tuple[str, Result]]) -> Iterator[str]:
    yield "| mutant | refuted after | because |"
    yield "|---|---:|---|"
    for name, result in refuted:
        yield f"| {name} | {len(result.trace)} steps | {result.violation or '**not refuted**'} |"


if __name__ == "__main__":
    sys.exit(main())
