"""`make torture MINUTES=…`: crashes at every system call, orders of steps, and a storm, for so long and longer.

The first half of the time belongs to plays by chance (see `test_schedules`), a fifth to a storm of processes; before
that each command is killed at every system call, which takes as long as it takes. What was done is written into the
documentation, and what failed is printed with the seed that plays it again, as soon as it is found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import figures
import scratch
from races.baton import Play, Scene
from races.directors import Chance
from races.plays import CASES, CROWDS
from races.storm import Storm, Weather
from races.test_storm import make_items

_HERE = Path(__file__).parent


class Played(Counter[str]):
    """What plays came to: their number, their calls, and the misfortunes, by kind."""


def play(seed: str, until: float) -> tuple[Played, list[str]]:
    """Play by chance until then; what was done, and what went wrong."""
    done, wrong = Played(), list[str]()
    with (
        tempfile.TemporaryDirectory(dir=scratch.memory()) as directory,
        mock.patch("os.fsync"),
        mock.patch("sccache_dtool.liveness.lifetime.memory_path", return_value=None),
    ):
        scenes = []
        for number, case in enumerate([*CROWDS, *CASES]):
            place = Path(directory, str(number))
            place.mkdir()
            scenes.append((case, Scene(place, case.prepare)))
        number = 0
        while time.monotonic() < until:
            case, scene = scenes[number % len(scenes)]
            name = f"{case.name} {seed} {number}"
            chance = Chance(name)
            one = Play(scene, case.named(), chance)
            violations = one.run()
            done.update(plays=1, calls=one.calls, **{str(kind): count for kind, count in chance.counts.items()})
            if violations:
                wrong.append(f"SEED={seed} PLAY='{name}': {violations}")
                print(wrong[-1], flush=True)  # at once: it can be looked into while the others go on
            number += 1
    return done, wrong


def _play_in_process(given: tuple[str, float]) -> tuple[Played, list[str]]:
    return play(*given)


def rage(seed: int, seconds: float) -> tuple[Counter[str], list[str]]:
    """A storm: what was done, and what went wrong."""
    with tempfile.TemporaryDirectory() as directory:
        storm = Storm(
            Path(directory), make_items(Path(directory)), Weather(seed, uses=10**9, evictions=10**9, seconds=seconds)
        )
        return storm.counts, storm.rage()


def crash(seed: int, sample: int, notes: str) -> int:
    """Kill every command at every system call, and play the orders with few switches."""
    environment = {
        "CRASH_POINTS": "1000",
        "STRIDE": "1",
        **os.environ,
        "SEED": str(seed),
        "SAMPLE": str(sample),
        "FIGURES": notes,
    }
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        str(_HERE / "test_kill_anywhere.py"),
        str(_HERE / "test_schedules.py"),
    ]
    return subprocess.run([*words, "-k", "kill_anywhere or few_switches"], env=environment).returncode


def report(notes: str, played: Played, storm: Counter[str], seed: int, minutes: float) -> Iterator[str]:
    """What was done, for the documentation."""
    points = figures.tallied(notes, "crash points")
    orders = figures.tallied(notes, "orders")
    yield f"Seed {seed}; {minutes:g} minutes of plays and storm."
    yield ""
    yield "| what | how much |"
    yield "|---|---:|"
    yield f"| plays by chance | {played['plays']:,} |"
    yield f"| calls in them | {played['calls']:,} |"
    for kind in sorted(set(played) - {"plays", "calls"}):
        yield f"| … of which: {kind} | {played[kind]:,} |"
    yield f"| orders with at most two switches | {sum(int(one['played']) for one in orders):,} |"
    for what in ("uses", "evictions", "reaped", "kills", "stops"):
        yield f"| storm: {what} | {storm[what]:,} |"
    yield ""
    yield "| command killed | at so many system calls | of |"
    yield "|---|---:|---:|"
    for one in points:
        yield f"| {one['name']} | {one['at']:,} | {one['of']:,} |"
    yield f"| **all {len(points)}** | **{sum(int(one['at']) for one in points):,}** | |"


def main() -> int:
    """Exit code 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as notes:
        failed = crash(given.seed, int(20 * given.minutes), notes.name)
        until = time.monotonic() + 0.75 * given.minutes * 60
        processes = os.cpu_count() or 1
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            results = pool.map(_play_in_process, [(f"{given.seed}.{number}", until) for number in range(processes)])
        storm, wrong = rage(given.seed, 0.25 * given.minutes * 60)
        played = Played()
        for done, violations in results:
            played.update(done)
            wrong += violations
        lines = list(report(notes.name, played, storm, given.seed, given.minutes))
    print("\n".join([*lines, *wrong]))
    figures.write("torture", [*lines, "", f"Violations: {len(wrong) + bool(failed)}."])
    return int(bool(wrong or failed))


if __name__ == "__main__":
    sys.exit(main())
