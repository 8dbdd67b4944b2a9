"""Plans in files: written by one command, looked at by a person, carried out by another, as far as still true."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Item
from sccache_dtool.catalog.loose import Loose, Stamp
from sccache_dtool.clock import iso
from sccache_dtool.disk.names import Generation, is_key
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import UsageError
from sccache_dtool.log import Silent
from sccache_dtool.policy.rules import EXCLUDED, UNREADABLE, Candidate, Kept, Plan, in_use, is_excluded
from sccache_dtool.policy.thresholds import Goal
from sccache_dtool.pool import Pool
from sccache_dtool.protocol.store import Store

#: Version of the form.
_VERSION = 1

#: How the first line ends in a file with a line for each removal, and what the last one is.
_BEGIN, _END = '"remove": [', "]}"

#: No sum of bytes, entries or uses has so many; what has more is somebody's slip.
_TOO_MANY = 10**18


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
    yield f"{json.dumps(head)[:-1]}, {_BEGIN}\n"
    last = len(plan.remove) - 1
    for number, candidate in enumerate(plan.remove):
        yield json.dumps(_encode_one(candidate)) + ("\n" if number == last else ",\n")
    yield f"{_END}\n"


def _encode_one(candidate: Candidate) -> dict[str, Any]:
    common = {"bytes": candidate.bytes, "uses": candidate.uses, "idle_since": candidate.idle_since}
    if candidate.loose is None:
        return {"item": candidate.key, "copy": candidate.generation, **common}
    return {"loose": candidate.loose.path, "newest": candidate.loose.newest, "stamp": candidate.loose.stamp, **common}


def decode(lines: Iterable[str]) -> Planned:
    """The plan that a file's lines are. Raises UsageError for anything else.

    Line by line, as there may be a million; a plan that some program has laid out in another way is read as a whole.
    """
    try:
        fields, entries = _parts(iter(lines))
        if fields["format"] != _VERSION:
            raise ValueError
        goal = Goal(_goal(fields["goal_bytes"]), _goal(fields["goal_entries"]))
        remove = _decode_each(entries)
        size, count = _number(fields["cache_bytes"]), _number(fields["cache_entries"])
        return Planned(str(fields["cache"]), remove, size, count, None if goal == Goal() else goal)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        hint = "to make a plan: sc-dtool clean -n -o plan.json"
        raise UsageError("this is not a plan that this release can read", hint=hint) from None


def _parts(lines: Iterator[str]) -> tuple[dict[str, Any], Iterable[dict[str, Any]]]:
    """What a plan says of itself, and its removals."""
    first = next(lines, "")
    if not first.rstrip().endswith(_BEGIN):
        fields = json.loads(first + "".join(lines))
        return fields, fields["remove"]
    return json.loads(first + _END), _each_line(lines)


def _each_line(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """What is in each line. Lines may have been taken out: of the last one's comma nobody thinks."""
    for line in lines:
        text = line.strip()
        if text == _END:
            break
        yield from json.loads(f"[{text.removesuffix(',')}]")
    else:
        raise ValueError("it is truncated")
    if any(line.strip() for line in lines):
        raise ValueError("it has lines after its end")


def _decode_each(entries: Iterable[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    """The removals. Raises UsageError for one that comes twice: of what is gone, each would count again."""
    found: list[Candidate] = []
    seen: set[str] = set()
    for fields in entries:
        one = _decode_one(fields)
        if one.place in seen:
            raise UsageError(f"the plan contains {printable(one.place)} twice", hint="remove one of the two")
        seen.add(one.place)
        found.append(one)
    return tuple(found)


def _goal(value: object) -> int | None:
    """What to come down to, also below nought, where others have too much; None: there is no goal."""
    return None if value is None else _number(value, 1 - _TOO_MANY)


def _number(value: object, least: int = 0) -> int:
    if type(value) is not int or not least <= value < _TOO_MANY:
        raise ValueError(value)
    return value


def _time(value: object) -> float:
    """Seconds since 1970."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return float(value)


def _decode_one(fields: Mapping[str, Any]) -> Candidate:
    uses, since = _number(fields["uses"]), _time(fields["idle_since"])
    if "loose" in fields:
        directory, _, name = str(fields["loose"]).rpartition("/")
        stamp = Stamp(*(int(number) for number in fields["stamp"]))
        one = Loose(directory, name, _number(fields["bytes"]), _time(fields["newest"]), 0, stamp)
        return Candidate(one.path, uses, since, loose=one)
    key, generation = str(fields["item"]), str(fields["copy"])
    if not is_key(key) or Generation.parse(generation) is None:
        raise ValueError(key)
    return Candidate(f"{key}/{generation}", uses, since)


# -- what of it is still true ------------------------------------------------------------------------------------------


class Rechecked(NamedTuple):
    """Planned removals: those that are still to be done, what stays by now, and what is gone already."""

    remove: list[Candidate]
    keep: list[Kept]
    gone: list[Candidate]

    def add(self, one: Candidate, validity: _Validity) -> None:
        """Add a removal by how it stands with it."""
        if validity == _GONE:
            self.gone.append(one)
        elif validity.reason:
            self.keep.append(Kept(one, validity.reason, validity.held))
        else:
            self.remove.append(one)


class _Validity(NamedTuple):
    """How it stands with a removal: still to be done, unless there is a reason to keep what it is of."""

    reason: str = ""
    held: bool = False


_GONE = _Validity("gone")

#: Copies that are looked at as one piece of work.
_AT_ONCE = 64


def recheck(
    store: Store,
    planned: Iterable[Candidate],
    pinned: Collection[str],
    exclude: Collection[str],
    loose: Mapping[str, Loose],
    pool: Pool,
) -> Rechecked:
    """What of the planned removals is still true.

    `loose`: what dtool has left by now, as a scan finds it: a path that comes from a file is not believed. The pool
    looks at copies, and gets nothing else: whatever it is given goes with each piece of its work.
    """
    rechecked = Rechecked([], [], [])
    copies: list[Candidate] = []
    for one in planned:
        if one.loose is not None:
            found = loose.get(one.place)
            validity = _validity_of_loose(one.loose, found, exclude)
            rechecked.add(one._replace(loose=found or one.loose), validity)  # what is there is as the scan says
        elif one.key in pinned:
            rechecked.add(one, _Validity("pinned"))
        else:
            copies.append(one)
    look = functools.partial(_validity_of, store.logging_to(Silent()), tuple(exclude))
    for one, validity in zip(copies, pool.each_in_pieces(look, copies, _AT_ONCE), strict=True):
        rechecked.add(one, validity)
    return rechecked


def _validity_of_loose(planned: Loose, found: Loose | None, exclude: Collection[str]) -> _Validity:
    if is_excluded(planned.path, exclude):
        return _Validity(EXCLUDED)
    if found is None:
        return _GONE
    changed = (found.stamp, found.newest) != (planned.stamp, planned.newest)
    return _Validity("changed since the plan was made" if changed else "")


def _validity_of(store: Store, exclude: Collection[str], candidate: Candidate) -> _Validity:
    item = items.look(store, candidate.key)
    copy = next((one for one in item.copies if str(one.generation) == candidate.generation), None)
    if copy is None or copy.closed:
        return _GONE
    if is_excluded(item.name, exclude):
        return _Validity(EXCLUDED if item.name is not None else UNREADABLE)
    if copy.held:
        return _Validity(in_use(copy), True)
    # Each use counts; when the last one ended is not known where its holder was reaped.
    return _Validity("used since the plan was made" if item.uses != candidate.uses else "")


def in_use_besides(leased: Iterable[Item], planned: Iterable[Candidate]) -> tuple[Kept, ...]:
    """Copies with leases that no plan names: they may be what keeps it from its goal."""
    named = {one.place for one in planned}
    return tuple(
        Kept(Candidate(place, item.uses, item.idle_since), in_use(copy), True)
        for item in leased
        for copy in item.copies
        if copy.held and (place := f"{copy.key}/{copy.generation}") not in named
    )
