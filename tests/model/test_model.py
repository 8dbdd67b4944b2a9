"""The protocol, explored: every order of steps, with crashes, lost replies and views that are out of date.

`make model` shows the same with its figures, and each mutant's trace.
"""

from __future__ import annotations

import pytest

from model.explorer import Explorer
from model.invariants import violated
from model.mutants import MUTANTS, Mutant
from model.scenarios import scenarios


@pytest.mark.parametrize("name", scenarios())
def test_everything_holds_in_every_order(name: str) -> None:
    """The protocol itself would lose data in some order of steps that no test of the program happens to meet."""
    result = Explorer(scenarios()[name], violated).run()
    print(f"{result.states} states, {result.transitions} transitions, {result.seconds:.1f} s")
    assert result.violation is None, "\n".join([result.violation or "", *result.trace])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_protocol_is_refuted(mutant: Mutant) -> None:
    """A model that is blind would prove nothing."""
    result = mutant.refute()
    assert result.violation is not None, f"{result.states} states, and nothing was seen"
    print("\n".join([result.violation, *result.trace]))
