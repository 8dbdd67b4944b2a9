"""What must always hold, as in `docs/explanation/protocol.md`: said of a tree and of what the actors believe."""

from __future__ import annotations

from model.disk import WHOLE, Tree
from model.explorer import Fact, finished, visible_leases


def violated(tree: Tree, facts: frozenset[Fact]) -> str | None:
    """The first thing that does not hold, as a sentence; None if all is well."""
    return _data_is_deleted(tree, facts) or _half_is_shown(tree) or _miscounted(tree, facts) or _robbed(tree)


def _data_is_deleted(tree: Tree, facts: frozenset[Fact]) -> str | None:
    """While a lease exists, what its user was given stays complete and unchanged at its path."""
    for fact in facts:
        if fact[0] != "holds":
            continue
        _, actor, lease, generation = fact
        there = lease in tree.inside(f"item/{generation}/use")
        if there and not is_whole(tree, generation):
            return f"{actor} holds {generation}, and its data is not complete"
        if not there and not _is_revoked(tree, lease):
            return f"{actor} holds {generation} and was not told otherwise, and its lease {lease} is not there"
    return None


def _half_is_shown(tree: Tree) -> str | None:
    """A published payload is complete; what is not, is not visible."""
    for generation in tree.inside("item"):
        if generation != "history" and tree.at(f"item/{generation}/use") and not is_whole(tree, generation):
            return f"{generation} can be used, and is not complete"
    return None


def _miscounted(tree: Tree, facts: frozenset[Fact]) -> str | None:
    """Every lease that was ever made is in a gate, or in the history exactly once."""
    there = visible_leases(tree)
    ended = [name.partition("~")[0] for name in finished(tree)]
    for fact in facts:
        if fact[0] == "made" and (count := there.count(fact[1]) + ended.count(fact[1])) != 1:
            return f"lease {fact[1]} was made once and is there {count} times"
    return None


def _robbed(tree: Tree) -> str | None:
    """No lease and no work area of a holder is ended by somebody else that was not revoked, or has not ended."""
    for name in finished(tree):
        if name.endswith("~reaped") and _is_present(tree, name):
            return f"lease {name.partition('~')[0]} was reaped, and its holder was not revoked"
    for name in tree.inside("tmp"):
        if name.endswith("~going") and _is_present(tree, name):
            return f"the work area {name} was taken away, and its holder was not revoked"
    return None


def is_whole(tree: Tree, generation: str) -> bool:
    payload = tree.at(f"item/{generation}/payload")
    return (
        payload is not None and tree.names.get((payload, "data")) == WHOLE and bool(tree.at(f"item/{generation}/json"))
    )


def _holder(name: str) -> str:
    """The holder that a lease, an ended lease or a work area is of."""
    return name.partition("~")[0].partition(".")[0]


def _is_present(tree: Tree, name: str) -> bool:
    return any(_holder(there) == _holder(name) for there in tree.inside("holders") if there != "gone")


def _is_revoked(tree: Tree, lease: str) -> bool:
    return any(_holder(there) == _holder(lease) for there in tree.inside("holders/gone"))
