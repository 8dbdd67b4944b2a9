"""Plans in files: written by one command, looked at by a person, carried out by another, as far as still true."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sccache_dtool import items
from sccache_dtool.clock import iso
from sccache_dtool.errors import UsageError
from sccache_dtool.evict.loose import Loose
from sccache_dtool.evict.policies import Candidate, Kept, Plan, is_excluded
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Generation, Layout, is_key
from sccache_dtool.marks import Goal

#: Version of the form.
_VERSION = 1


class Planned(NamedTuple):
    """A plan that was read."""

    cache_id: str
    remove: tuple[Candidate, ...]
    size: int
    entries: int
    goal: Goal | None


def encode(plan: Plan, cache_id: str, now: float, by: str) -> Iterator[str]:
    """The lines of a plan as one JSON object: piece by piece, as there may be a million copies in it."""
    head = {
        "format": _VERSION,
        "cache": cache_id,
        "made": iso(now),
        "by": by,
        "bytes": plan.freed,
        "cache_bytes": plan.size,
        "cache_entries": plan.entries,
        "goal_bytes": plan.goal.bytes if plan.goal else None,
        "goal_entries": plan.goal.entries if plan.goal else None,
    }
    yield json.dumps(head)[:-1] + ', "remove": [\n'
    last = len(plan.remove) - 1
    for number, candidate in enumerate(plan.remove):
        yield json.dumps(_encode_one(candidate)) + ("\n" if number == last else ",\n")
    yield "]}\n"


def _encode_one(candidate: Candidate) -> dict[str, Any]:
    common = {"bytes": candidate.bytes, "uses": candidate.uses, "idle_since": candidate.idle_since}
    if candidate.loose is None:
        return {"item": candidate.key, "copy": candidate.generation, **common}
    return {"loose": candidate.loose.path, "newest": candidate.loose.newest, "stamp": candidate.loose.stamp, **common}


def decode(text: str) -> Planned:
    """The plan that `text` is. Raises UsageError for anything else."""
    try:
        fields = json.loads(text)
        if fields["format"] != _VERSION:
            raise ValueError
        goal = Goal(_number(fields["goal_bytes"]), _number(fields["goal_entries"]))
        remove = tuple(_decode_one(one) for one in fields["remove"])
        size, entries = int(fields["cache_bytes"]), int(fields["cache_entries"])
        return Planned(str(fields["cache"]), remove, size, entries, None if goal == Goal() else goal)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        hint = "sc-dtool clean -n -o plan.json writes one"
        raise UsageError("this is no plan that this release can read", hint=hint) from None


def _number(value: object) -> int | None:
    return None if value is None else int(str(value))


def _decode_one(fields: Mapping[str, Any]) -> Candidate:
    uses, since = int(fields["uses"]), float(fields["idle_since"])
    if "loose" in fields:
        directory, _, name = str(fields["loose"]).rpartition("/")
        device, inode, size, changed = (int(number) for number in fields["stamp"])
        newest = float(fields["newest"])
        one = Loose(directory, name, int(fields["bytes"]), newest, 0, (device, inode, size, changed))
        return Candidate(one.path, uses, since, loose=one)
    key, generation = str(fields["item"]), str(fields["copy"])
    if not is_key(key) or Generation.parse(generation) is None:
        raise ValueError(key)
    return Candidate(f"{key}/{generation}", uses, since)


def still_true(
    fs: FileSystem,
    layout: Layout,
    pinned: Collection[str],
    exclude: Collection[str],
    loose: Mapping[str, Loose],
    planned: Sequence[Candidate],
) -> list[Candidate | Kept | None]:
    """Of each planned removal whether it is still to be done, or why not any more; None: it is gone.

    `loose`: what dtool has left by now, as a scan finds it: a path that comes from a file is not believed.
    """
    return [_still_true(fs, layout, pinned, exclude, loose, candidate) for candidate in planned]


def _still_true(
    fs: FileSystem,
    layout: Layout,
    pinned: Collection[str],
    exclude: Collection[str],
    loose: Mapping[str, Loose],
    candidate: Candidate,
) -> Candidate | Kept | None:
    if is_excluded(candidate.label, exclude):
        return Kept(candidate, "excluded")
    if candidate.loose is not None:
        found = loose.get(candidate.place)
        if found is None:
            return None
        if (found.stamp, found.newest) != (candidate.loose.stamp, candidate.loose.newest):
            return Kept(candidate, "touched since the plan was made")
        return candidate._replace(loose=found)
    if candidate.key in pinned:
        return Kept(candidate, "pinned")
    item = items.look(fs, layout, candidate.key, _silently)
    copy = next((one for one in item.copies if str(one.generation) == candidate.generation), None)
    if copy is None or copy.closed:
        return None
    if copy.held:
        return Kept(candidate, f"in use: {len(copy.held)} lease{'s' if len(copy.held) != 1 else ''}", True)
    if item.uses != candidate.uses:  # each use counts; when the last one ended is not known where its holder was reaped
        return Kept(candidate, "used since the plan was made")
    return candidate


def _silently(text: str) -> None:
    """What is damaged is told of by a scan."""
