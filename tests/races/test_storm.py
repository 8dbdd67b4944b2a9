"""Thousands of uses against hundreds of evictions, kills and stops; see `storm.py`, and its self-check below.

The storm's seed is printed, and can be given: ``SEED=123456 pytest tests/races/test_storm.py``. It fixes what each
process does and which faults there are, not how the kernel interleaves them. STORM=10 makes it ten times as long.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from races.storm import ListThenDelete, Slip, Storm, Weather, _Evicting, make_items

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
TIMES = float(os.environ.get("STORM", "1"))


def test_storm(tmp_path: Path) -> None:
    """Under load, with kills and stops, a job would read deleted data, or a use would be lost or counted twice."""
    weather = Weather(SEED, uses=int(2000 * TIMES), evictions=int(200 * TIMES), seconds=45 * TIMES)
    storm = Storm(tmp_path, make_items(tmp_path), weather)
    print(f"seed {SEED}")
    violations = storm.rage()
    print(f"{dict(storm.counts)}")
    for warning in sorted(storm.warnings)[:20]:
        print(f"warned: {warning}")
    assert violations == []
    assert storm.counts["uses"] > 0
    assert storm.counts["evictions"] > 0


@pytest.mark.parametrize("evicting", [ListThenDelete, _Evicting])
def test_the_storm_would_notice(tmp_path: Path, evicting: type[_Evicting]) -> None:
    """A storm that cannot fail would say nothing: list-then-delete must be caught in it, and the real eviction not.

    Nothing is left to luck: the one use that matters is slipped into the one eviction, between the look at the gate
    and the deletion of it. The real eviction has the same use slipped in before it closes the gate, and is refused.
    """
    weather = Weather(SEED, uses=1, evictions=0, users=1, evictors=1, uses_per_fault=0)
    storm = Storm(tmp_path, make_items(tmp_path)[:1], weather, slip=Slip(), evicting=evicting)
    storm.prepare(evictions=20)
    violations = storm.rage()
    if evicting is ListThenDelete:
        assert any("second reading" in violation for violation in violations), violations
        assert any("is not in the history" in violation for violation in violations), violations
    else:
        assert violations == []
