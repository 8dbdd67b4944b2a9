"""The program's own code in every order of steps with few switches, and in long orders by chance with misfortunes.

A play that fails is played again with ``PLAY='…' pytest -s tests/races/test_schedules.py``, which prints each call.
``make torture MINUTES=…`` plays for as long as it is told.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from effort import PLAYS, SAMPLE, SEED, STRIDE
from figures import tally
from races.baton import Play, Scene
from races.directors import Chance, Played, systematically
from races.plays import CASES, CROWDS, Case
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.evict import trash
from sccache_dtool.protocol.gate import Closing


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test pulls the plug; and each actor is as if on a host that remembers nothing."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr("sccache_dtool.liveness.lifetime.memory_path", lambda proc, name: None)


def told(played: Played) -> str:
    return "\n".join([*played.violations, f"switches: {played.switches}", *played.log])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_orders_with_few_switches(tmp_path: Path, case: Case) -> None:
    """Two commands at once would harm each other in some order of their steps."""
    count = 0
    for played in systematically(Scene(tmp_path, case.prepare), case.named(), 2, SAMPLE, SEED, STRIDE):
        assert not played.violations, told(played)
        count += 1
    tally("orders", case.name, played=count)
    print(f"{count} orders, seed {SEED}")
    assert count > 20


@pytest.mark.parametrize("case", [*CROWDS, *CASES], ids=lambda case: case.name)
def test_orders_by_chance_with_misfortunes(tmp_path: Path, case: Case) -> None:
    """A crash, a lost reply, a full disk or an old listing at the wrong moment would lose data, or a use."""
    chosen = os.environ.get("PLAY", "")
    if chosen and not chosen.startswith(f"{case.name} "):
        pytest.skip("another play was asked for")
    scene, counts = Scene(tmp_path, case.prepare), Counter[str]()
    for seed in [chosen] if chosen else [f"{case.name} {SEED} {number}" for number in range(PLAYS)]:
        chance = Chance(seed)
        play = Play(scene, case.named(), chance)
        violations = play.run()
        counts.update(chance.counts)
        if chosen:
            print("\n".join([*play.log, *play.failures]))
        assert not violations, "\n".join([f"PLAY='{seed}'", *violations, *play.failures, *play.log])
    print(f"{PLAYS} plays, seed {SEED}, {dict(counts)}")


def test_plays_would_notice_a_wrong_eviction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plays that cannot fail would say nothing."""

    def closing(fs: FileSystem, gate: str, via: object) -> Closing:
        try:
            leases = fs.names(gate)
        except FileNotFoundError:
            return Closing.CLOSED_BEFORE
        if not leases:
            fs.remove_tree(gate)
        return Closing.IN_USE if leases else Closing.CLOSED

    monkeypatch.setattr(trash.gate, "closing", closing)
    case = CROWDS[0]
    scene = Scene(tmp_path, case.prepare)
    assert any(Play(scene, case.named(), Chance(f"notice {number}")).run() for number in range(500))


def test_an_order_can_be_played_again(tmp_path: Path) -> None:
    """What a seed has found could not be looked at."""
    case = CROWDS[0]
    scene = Scene(tmp_path, case.prepare)
    kinds = []
    for _ in range(2):
        play = Play(scene, case.named(), Chance("again"))
        play.run()
        kinds.append([line.split()[:3] for line in play.log])
    assert kinds[0] == kinds[1]
