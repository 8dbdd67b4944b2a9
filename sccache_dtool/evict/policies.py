"""Which copies may go: pure functions over what a scan saw. They touch nothing and ask nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sccache_dtool.evict.loose import YOUNG, Loose
from sccache_dtool.items import Copy, Item
from sccache_dtool.units import short_duration


class Rules(NamedTuple):
    """What a user asked for. Conditions AND together; `retain_size` is where to stop, least recently used first."""

    everything: bool = False
    older_than: float | None = None  # seconds since the last use
    fewer_uses_than: int | None = None
    retain_size: int | None = None  # bytes

    @property
    def empty(self) -> bool:
        """Whether nothing was asked for at all."""
        return self == Rules()


class Candidate(NamedTuple):
    """A copy that a plan would remove. Sizes in bytes, times in seconds since 1970."""

    key: str
    label: str
    generation: str
    bytes: int
    entries: int
    uses: int
    idle_since: float
    loose: Loose | None = None  # a file that dtool left, and no copy of an item


class Kept(NamedTuple):
    """A copy that a plan leaves, and why."""

    key: str
    label: str
    bytes: int
    reason: str
    held: bool


class Plan(NamedTuple):
    """What would be removed, and what not: look at it, then carry it out. Sizes in bytes."""

    remove: tuple[Candidate, ...]
    keep: tuple[Kept, ...]
    size: int
    goal: int | None  # the size to come down to; None: whatever the conditions give

    @property
    def freed(self) -> int:
        """What the removals free."""
        return sum(candidate.bytes for candidate in self.remove)

    @property
    def missed(self) -> int:
        """By how much the goal is missed even so."""
        return 0 if self.goal is None else max(0, self.size - self.freed - self.goal)


def make_plan(
    items: Iterable[Item], rules: Rules, now: float, loose: Iterable[Loose] = (), loose_now: float | None = None
) -> Plan:
    """The plan that `rules` mean for `items`, and for files that dtool left, at the time `now` (seconds since 1970).

    `loose_now` is the same time on the clock by which the times of `loose` were set.

    Copies with anything in their gate are left out: not for safety, which is the gate's business, but because
    trying would be in vain.
    """
    eligible: list[Candidate] = []
    kept: list[Kept] = []
    size = 0
    for item, copy in _open_copies(items):
        size += copy.generation.bytes
        reason = _reason_to_keep(item, copy, rules, now)
        if reason:
            kept.append(Kept(item.key, item.label, copy.generation.bytes, reason, bool(copy.held)))
        else:
            eligible.append(_candidate(item, copy))
    ahead = 0.0 if loose_now is None else loose_now - now
    for one in loose:
        if one.is_broken(now + ahead):
            continue  # it is tidied away, whatever the rules are
        size += one.bytes
        reason = _reason_to_keep_loose(one, rules, now + ahead)
        if reason:
            kept.append(Kept(one.path, one.path, one.bytes, reason, False))
        else:
            eligible.append(Candidate(one.path, one.path, one.path, one.bytes, 1, 0, one.newest - ahead, one))
    eligible.sort(key=lambda candidate: (candidate.idle_since, candidate.key))
    if rules.retain_size is None:
        return Plan(tuple(eligible), tuple(kept), size, None)
    remaining = size
    remove: list[Candidate] = []
    for candidate in eligible:
        if remaining > rules.retain_size:
            remove.append(candidate)
            remaining -= candidate.bytes
        else:
            reason = "used more recently than what suffices to reach the size"
            kept.append(Kept(candidate.key, candidate.label, candidate.bytes, reason, False))
    return Plan(tuple(remove), tuple(kept), size, rules.retain_size)


def _open_copies(items: Iterable[Item]) -> Iterator[tuple[Item, Copy]]:
    """Every copy that can be used; closed ones are not the policy's business, they are tidied anyway."""
    return ((item, copy) for item in items for copy in item.copies if not copy.closed)


def _reason_to_keep(item: Item, copy: Copy, rules: Rules, now: float) -> str | None:
    if copy.held:
        return f"in use: {len(copy.held)} lease{'s' if len(copy.held) != 1 else ''}"
    if rules.older_than is not None and now - item.idle_since < rules.older_than:
        return f"used within {short_duration(rules.older_than)}"
    if rules.fewer_uses_than is not None and item.uses >= rules.fewer_uses_than:
        return f"used {item.uses} times"
    return None


def _reason_to_keep_loose(one: Loose, rules: Rules, now: float) -> str | None:
    """Nobody holds leases on what dtool left. Only its age tells, so that there is always an age that it must have."""
    if one.partial:
        return "dtool may be downloading it"
    age = YOUNG if rules.older_than is None else rules.older_than
    if now - one.newest < age:
        return f"left by dtool and touched within {short_duration(age)}"
    return None


def _candidate(item: Item, copy: Copy) -> Candidate:
    return Candidate(
        key=item.key,
        label=item.label,
        generation=str(copy.generation),
        bytes=copy.generation.bytes,
        entries=copy.generation.entries,
        uses=item.uses,
        idle_since=item.idle_since,
    )
