"""Wrong protocols, each wrong in one place: every one must be refuted, or the model would prove nothing.

A mutant replaces functions of `actors` by others. Most of them are what one writes at first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

from model import actors
from model.actors import (
    HISTORY,
    Judge,
    Program,
    _suppressing,
    gather,
    list_holders,
    list_without_a_snapshot,
    remove_tree,
    write_new,
)
from model.disk import EEXIST, ENOENT, ENOTEMPTY, GONE, WHOLE, Refused
from model.explorer import Explorer, Result
from model.invariants import violated
from model.scenarios import scenarios


class Mutant(NamedTuple):
    """A wrong protocol, and the scenario that refutes it."""

    name: str
    scenario: str
    instead: dict[str, Callable[..., Program]]

    def refute(self) -> Result:
        """Explore; the result has a violation unless the model is blind for it."""
        with mock.patch.multiple(actors, **self.instead):
            scenario = scenarios()[self.scenario]._replace(recovery=None)  # what happens while it runs says more
            return Explorer(scenario, violated).run()


def _list_then_delete(gate: str) -> Program:
    try:
        leases = yield "names", gate
        if leases:
            return False
        yield from remove_tree(gate)
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
    return True


def _mark_then_look(gate: str) -> Program:
    marker = f"{gate.removesuffix('/use')}/closed"
    try:
        yield from _suppressing((EEXIST,), "symlink", "marker", marker)
        leases = yield "names", gate
        if leases:
            yield from _suppressing((ENOENT,), "unlink", marker)
            return False
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
    return True


def _enter_unless_marked(gate: str, lease: str) -> Program:
    if (yield from _suppressing(GONE, "lstat", f"{gate.removesuffix('/use')}/closed")):
        return False
    return (yield from _suppressing(GONE, "symlink", lease, f"{gate}/{lease}"))


def _close_on_any_error(gate: str) -> Program:
    try:
        yield "rmdir", gate
    except Refused as refusal:
        return refusal.why != "ENOTEMPTY"
    return True


_publish = actors.publish


def _publish_under_one_name(generation: str, area: str, lease: str) -> Program:
    return _publish("g0", area, lease)


def _publish_then_lease(generation: str, area: str, lease: str) -> Program:
    yield from write_new(f"{area}/json", "facts")
    yield "mkdir", f"{area}/use"
    yield from _suppressing((EEXIST,), "mkdir", HISTORY)
    yield "rename", area, f"item/{generation}"
    yield from _suppressing(GONE, "symlink", lease, f"item/{generation}/use/{lease}")
    return generation


def _only_say_revoked(name: str) -> Program:
    return (yield from _suppressing(GONE, "lstat", f"holders/{name}"))


def _dead_though_it_has_beaten(present: tuple[str, ...]) -> Program:
    dead: tuple[str, ...] = ()
    while present:
        name, present = present[0], present[1:]
        if not (yield from _suppressing(GONE, "readlink", f"holders/{name}")):
            continue
        if (yield "judge", name.rpartition(".")[0]) == "dead":
            yield from actors.revoke(name)
            dead = (*dead, name.rpartition(".")[0])
    return dead


def _missing_once(me: str, judge: Judge, holder: str) -> Program:
    yield from ()
    return holder in (*judge.gone, *judge.dead) or holder not in judge.present, judge


def _missing_twice(me: str, judge: Judge, holder: str) -> Program:
    if holder in judge.gone or holder in judge.present:
        return holder in (*judge.gone, *judge.dead), judge
    if judge.second is None:
        names, _ = yield from list_holders(me, 2)
        judge = judge._replace(second=tuple(name.rpartition(".")[0] for name in names))
    return holder not in (judge.second or ()), judge


def _write_then_unlink(gate: str, lease: str, ended: str) -> Program:
    yield from _suppressing((EEXIST,), "symlink", lease, f"{HISTORY}/{ended}")
    return (yield from _suppressing(GONE, "unlink", f"{gate}/{lease}"))


def _unlink_then_write(gate: str, lease: str, ended: str) -> Program:
    if (yield from _suppressing(GONE, "unlink", f"{gate}/{lease}")):
        yield "symlink", lease, f"{HISTORY}/{ended}"


def _fold_before_publishing(me: str) -> Program:
    listing = yield from list_without_a_snapshot(HISTORY)
    texts, segments = yield from gather()
    covered = (*(name for name in listing if name in texts), *segments)
    while covered:
        name, covered = covered[0], covered[1:]
        yield from _suppressing((ENOENT,), "unlink", f"{HISTORY}/{name}")
    yield from write_new(f"tmp/{me}~fold", " ".join(texts))
    yield "rename", f"tmp/{me}~fold", f"{HISTORY}/segment-{me}"


def _gather_once() -> Program:
    texts: tuple[str, ...] = ()
    listing = yield from list_without_a_snapshot(HISTORY)
    segments = tuple(name for name in listing if actors.is_segment(name))
    todo = segments
    while todo:
        name, todo = todo[0], todo[1:]
        lines = yield "read_text", f"{HISTORY}/{name}"
        texts = (*texts, *lines.split())
    return (*texts, *(name for name in listing if not actors.is_segment(name))), segments


def _remove_in_place(work: str) -> Program:
    yield from remove_tree(f"tmp/{work}")


def _go_on_in_the_same_file(area: str, taken: str | None) -> Program:
    if taken is None:
        yield from _download(area, None)
        return
    yield "rename", f"{taken}/payload", f"{area}/payload"
    file = yield "open", f"{area}/payload"
    yield "write", file, WHOLE


_download = actors.download


def _restore_the_directory(me: str, name: str) -> Program:
    try:
        yield "mkdir", f"trash/{name}/use"
        yield "rename", f"trash/{name}", f"item/g-{me}"
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
        return None
    return f"g-{me}"


def _return_without_renaming(work: str) -> Program:
    """Look into the work area where the restorer may still publish it."""
    area, name = f"tmp/{work}", work.rpartition("~")[2]
    yield from _suppressing((*GONE, ENOTEMPTY), "rmdir", f"{area}/use")
    yield from _suppressing(GONE, "rename", f"{area}/payload", f"{area}/trashed/payload")
    yield from _suppressing(GONE, "rename", f"{area}/json", f"{area}/trashed/json")
    yield from _suppressing(GONE, "rename", f"{area}/trashed", f"trash/{name}")
    yield from actors.remove_tree(area)


def _evict_without_a_note(generation: str, *, keep: bool = False) -> Program:
    if not (yield from actors.close(f"item/{generation}/use")):
        return False
    name = generation if keep else f"{generation}~going"
    return (yield from _suppressing(GONE, "rename", f"item/{generation}", f"trash/{name}"))


def _evict_by_name(generation: str) -> Program:
    """Rename first, and look at the gate then."""
    if not (yield from _suppressing(GONE, "rename", f"item/{generation}", f"trash/{generation}")):
        return True
    leases = yield "names", f"trash/{generation}/use"
    if leases:
        yield "rename", f"trash/{generation}", f"item/{generation}"
        return False
    return True


MUTANTS = [
    Mutant(
        "an eviction that lists the leases, and then deletes", "two users, two evictors", {"close": _list_then_delete}
    ),
    Mutant(
        "a marker instead of the gate",
        "two users, two evictors",
        {"close": _mark_then_look, "enter": _enter_unless_marked},
    ),
    Mutant("an eviction that renames first, and looks then", "two users, two evictors", {"evict": _evict_by_name}),
    Mutant(
        "an eviction that takes every error for a closed gate",
        "a user and an evictor, on a failing network",
        {"close": _close_on_any_error},
    ),
    Mutant(
        "a generation's name that is used again",
        "a fetcher and two evictors",
        {"publish": _publish_under_one_name},
    ),
    Mutant(
        "a lease that is made after the publication", "a fetcher and two evictors", {"publish": _publish_then_lease}
    ),
    Mutant("a reaper that does not revoke", "a heart that beats, a reaper", {"revoke": _only_say_revoked}),
    Mutant(
        "a holder that one listing misses is taken for gone",
        "a heart that beats, a reaper",
        {"ask": _missing_once},
    ),
    Mutant(
        "a holder that two listings miss is taken for gone",
        "a heart that beats, a reaper",
        {"ask": _missing_twice},
    ),
    Mutant(
        "work is taken from a holder that beat the reaper",
        "a slow fetcher and a cleaner",
        {"_judge_all": _dead_though_it_has_beaten},
    ),
    Mutant(
        "a release that writes the record, then removes the lease", "a user, two reapers", {"leave": _write_then_unlink}
    ),
    Mutant(
        "a release that removes the lease, then writes the record", "a user, two reapers", {"leave": _unlink_then_write}
    ),
    Mutant("a fold that deletes before it publishes", "two folders and a release", {"fold": _fold_before_publishing}),
    Mutant("a reader that lists once", "a reader, a folder and a release", {"gather": _gather_once}),
    Mutant(
        "a work area that is removed where it stands",
        "a fetcher and a cleaner that takes it for dead",
        {"discard_work": _remove_in_place},
    ),
    Mutant(
        "a successor that goes on in the same file",
        "two fetchers, one election that elects anybody",
        {"download": _go_on_in_the_same_file},
    ),
    Mutant(
        "a restored copy that keeps its directory",
        "an eviction, a restoration, and a memory of before",
        {"restore": _restore_the_directory},
    ),
    Mutant(
        "a cleaner that removes what a killed restorer had taken",
        "a restorer, and a cleaner that returns the copy, out of date",
        {"put_away": actors.discard_work},
    ),
    Mutant(
        "a cleaner that returns a copy from where it can still be published",
        "a restorer, and a cleaner that returns the copy, out of date",
        {"give_back": _return_without_renaming},
    ),
    Mutant(
        "an eviction that does not note how long the copy is to be kept",
        "an eviction for restore that another evictor finishes",
        {"evict": _evict_without_a_note},
    ),
]
