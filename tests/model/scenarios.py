"""What is explored: a few actors each, in small worlds. Several small ones say more than one large."""

from __future__ import annotations

from functools import partial

from model import actors
from model.disk import Tree, tree_of
from model.explorer import Luck, Scenario

EMPTY = ("item", "item/history", "holders", "holders/gone", "tmp", "trash")
COPY = ("item/g0", "item/g0/use", "item/g0/payload#", "item/g0/json#")


def _tree(*more: str, **texts: str) -> Tree:
    return tree_of(*EMPTY, *more, **texts)


def _ended(*leases: str) -> dict[str, str]:
    return {f"item/history/{lease}~x~released": "record" for lease in leases}


recovery = partial(actors.cleaner, "after")


def scenarios() -> dict[str, Scenario]:
    """All, by name."""
    found = [
        Scenario(
            "two users, two evictors",
            _tree(*COPY),
            {
                "u1": partial(actors.user, "u1", 2),
                "u2": partial(actors.user, "u2", 1),
                "e1": actors.evictor,
                "e2": partial(actors.alone, partial(actors.evict, "g0")),
            },
            Luck(crashes=1, lost=1),
            recovery=recovery,
        ),
        Scenario(
            "a user and two evictors, out of date",
            _tree(*COPY),
            {
                "u1": partial(actors.user, "u1", 2),
                "e1": partial(actors.evictor, "g0"),
                "e2": partial(actors.alone, partial(actors.evict, "g0")),
            },
            Luck(crashes=1, lost=1, stale=1),
            recovery=recovery,
        ),
        Scenario(
            "a user and an evictor, on a failing network",
            _tree(*COPY),
            {
                "u1": partial(actors.user, "u1", 2),
                "e1": actors.evictor,
            },
            Luck(crashes=1, lost=2, errors=2, stale=1),
            recovery=recovery,
        ),
        Scenario(
            "a heart that beats, a reaper",
            _tree(*COPY),
            {
                "u1": partial(actors.user, "u1", 1, beats=2),
                "r1": partial(actors.reaper, "r1"),
            },
            Luck(crashes=1, lost=1, lapses=1),
            recovery=recovery,
        ),
        Scenario(
            "a user, two reapers",
            _tree(*COPY),
            {
                "u1": partial(actors.user, "u1", 1),
                "r1": partial(actors.reaper, "r1"),
                "r2": partial(actors.reaper, "r2"),
            },
            Luck(crashes=1, lapses=1),
            recovery=recovery,
        ),
        Scenario(
            "a heartbeat, a reaper and an evictor, out of date",
            _tree(*COPY),
            {
                "u1": partial(actors.user, "u1", 1, beats=1),
                "r1": partial(actors.reaper, "r1"),
                "e1": partial(actors.evictor, "g0"),
            },
            Luck(crashes=1, stale=1, lapses=1),
            recovery=recovery,
        ),
        Scenario(
            "two folders and a release",
            _tree(*COPY, **_ended("a.0", "b.0"), **{"item/g0/use/u1.0": "u1.0"}),
            {
                "f1": partial(actors.fold, "f1"),
                "f2": partial(actors.fold, "f2"),
                "u1": partial(actors.release, "u1", "g0", "u1.0"),
            },
            Luck(crashes=1, lost=1),
        ),
        Scenario(
            "a reader, a folder and a release",
            _tree(*COPY, **_ended("a.0", "b.0")),
            {
                "reads": actors.read_history,
                "f1": partial(actors.fold, "f1"),
                "u1": partial(actors.user, "u1", 1),
            },
            Luck(crashes=1),
        ),
        Scenario(
            "two fetchers, one election that elects anybody",
            _tree(),
            {
                "u1": partial(actors.user, "u1", 1, fetches=1),
                "u2": partial(actors.user, "u2", 1, fetches=1),
            },
            Luck(crashes=1, lost=1),
            recovery=recovery,
        ),
        Scenario(
            "a fetcher and a cleaner that takes it for dead",
            _tree(),
            {
                "u1": partial(actors.user, "u1", 1, fetches=1),
                "c1": partial(actors.cleaner, "c1"),
            },
            Luck(crashes=1, lost=1, lapses=1, stale=0),
            recovery=recovery,
        ),
        Scenario(
            "a slow fetcher and a cleaner",
            _tree(),
            {
                "u1": partial(actors.slow_fetcher, "u1"),
                "c1": partial(actors.cleaner, "c1"),
            },
            Luck(crashes=1, lost=1, lapses=1),
            recovery=recovery,
        ),
        Scenario(
            "a fetcher and two evictors",
            _tree(*COPY),
            {
                "u1": partial(actors.user, "u1", 1, fetches=1),
                "e1": actors.evictor,
                "e2": partial(actors.evictor, "g0"),
            },
            Luck(crashes=1),
            recovery=recovery,
        ),
        Scenario(
            "an eviction, a restoration, and a memory of before",
            _tree(*COPY),
            {
                "u1": partial(actors.user, "u1", 2),
                "e1": partial(actors.alone, partial(actors.evict, "g0", keep=True)),
                "s1": partial(actors.restorer, "s1"),
            },
            Luck(stale=1),
            recovery=recovery,
        ),
        Scenario(
            "a restorer, an evictor, a user",
            _tree("trash/g0", "trash/g0/payload#", "trash/g0/json#"),
            {
                "s1": partial(actors.restorer, "s1"),
                "e1": actors.evictor,
                "u1": partial(actors.user, "u1", 1),
            },
            Luck(crashes=1, lost=1),
            recovery=recovery,
        ),
        Scenario(
            "a restorer, and two cleaners that return the copy",
            _tree("trash/g0", "trash/g0/payload#", "trash/g0/json#"),
            {
                "s1": partial(actors.restorer, "s1"),
                "c1": partial(actors.returner, "c1"),
                "c2": partial(actors.alone, partial(actors.give_back, "s1.1~restore~g0")),
            },
            Luck(crashes=1),
            recovery=partial(actors.returner, "after"),
            wanted="#trash/g0/payload",
        ),
        Scenario(
            "a restorer, and a cleaner that returns the copy, out of date",
            _tree("trash/g0", "trash/g0/payload#", "trash/g0/json#"),
            {
                "s1": partial(actors.restorer, "s1"),
                "c1": partial(actors.returner, "c1"),
            },
            Luck(crashes=1, lost=1, stale=1, lapses=1, errors=1),
            recovery=partial(actors.returner, "after"),
            wanted="#trash/g0/payload",
        ),
        Scenario(
            "an eviction for restore that another evictor finishes",
            _tree(*COPY),
            {
                "e1": partial(actors.alone, partial(actors.evict, "g0", keep=True)),
                "e2": partial(actors.alone, partial(actors.finish, "g0")),
            },
            Luck(crashes=1, lost=1, errors=1),
            recovery=partial(actors.finisher, "after", "g0"),
            wanted="#item/g0/payload",
        ),
    ]
    return {scenario.name: scenario for scenario in found}
