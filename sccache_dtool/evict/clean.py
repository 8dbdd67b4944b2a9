"""A cleaning from end to end: reap, plan, evict, tidy, delete. Names are freed first and space after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from sccache_dtool import history
from sccache_dtool.errors import explain
from sccache_dtool.evict import loose, trash
from sccache_dtool.evict.policies import Candidate, Plan
from sccache_dtool.evict.tidy import Leftover
from sccache_dtool.fsops import FileSystem
from sccache_dtool.holders import Holder
from sccache_dtool.items import Item
from sccache_dtool.layout import Layout, WorkName
from sccache_dtool.reaping import Reaped

Warn = Callable[[str], None]


class Failure(NamedTuple):
    """A copy that could not be removed, and why."""

    candidate: Candidate
    reason: str


class Cleaned(NamedTuple):
    """What a cleaning did. Sizes in bytes."""

    plan: Plan
    reaped: Reaped
    removed: tuple[Candidate, ...]
    taken: tuple[Candidate, ...]  # in use by the time they were asked for
    failed: tuple[Failure, ...]
    tidied: tuple[Leftover, ...]
    purged: int  # copies deleted from the trash, earlier evictions included

    @property
    def freed(self) -> int:
        """What the removed copies took up."""
        return sum(candidate.bytes for candidate in self.removed)

    @property
    def missed(self) -> int:
        """By how much the goal was missed."""
        return 0 if self.plan.goal is None else max(0, self.plan.size - self.freed - self.plan.goal)


def after_reaping(items: Iterable[Item], reaped: Reaped, now: float) -> Iterator[Item]:
    """The items as a reaping leaves them: a reaped lease is a use that has just ended."""
    ended = {judged.held for judged in reaped.leases}
    for item in items:
        copies = tuple(
            copy._replace(held=tuple(held for held in copy.held if held not in ended)) for copy in item.copies
        )
        count = item.leases - sum(len(copy.held) for copy in copies)
        if count:
            yield item._replace(copies=copies, finished_uses=item.finished_uses + count, last_end=now)
        else:
            yield item


def carry_out(
    fs: FileSystem, layout: Layout, plan: Plan, keep_until: int, holder: Holder | None = None, now: float = 0.0
) -> tuple[list[Candidate], list[Candidate], list[Failure]]:
    """Evict what the plan names: what went, what was in use by then, what failed.

    `holder` and `now` (seconds since 1970) are for files that dtool left, which are put into the trash together.
    """
    removed, taken, failed = [], [], []
    of_dtool = {}
    for candidate in plan.remove:
        if candidate.loose is not None:
            of_dtool[candidate.loose] = candidate
            continue
        try:
            outcome = trash.evict(fs, layout, candidate.key, candidate.generation, keep_until)
        except OSError as error:
            failed.append(Failure(candidate, explain(error)))
            continue
        if outcome is trash.Outcome.EVICTED:
            removed.append(candidate)
        elif outcome is trash.Outcome.IN_USE:
            taken.append(candidate)
    if holder is None:
        failed += [Failure(candidate, "no space left to move it to the trash") for candidate in of_dtool.values()]
    elif of_dtool:
        done = loose.remove(fs, layout, holder, of_dtool, keep_until, now)
        removed += [of_dtool[one] for one in done.gone]
        taken += [of_dtool[one] for one in done.changed]
        failed += [Failure(of_dtool[one], reason) for one, reason in done.failed]
    return removed, taken, failed


def put_away(leftovers: Iterable[Leftover], warn: Warn) -> list[Leftover]:
    """Put leftovers away; returns those for which it worked."""
    done = []
    for leftover in leftovers:
        try:
            leftover.put_away()
        except FileNotFoundError:
            continue  # somebody else did
        except OSError as error:
            warn(f"{explain(error)}; {leftover.what} is left for the next time")
            continue
        done.append(leftover)
    return done


def fold_histories(fs: FileSystem, layout: Layout, holder: Holder, items: Iterable[Item], warn: Warn) -> None:
    """Fold long histories; a failure costs nothing but the next listing's length."""
    for item in items:
        if item.finished_uses < history.FOLD_AT:
            continue
        tmp = f"{layout.tmp}/{WorkName(holder.next_lease(), 'fold')}"
        with contextlib.suppress(OSError):
            history.fold(fs, layout.history(item.key), tmp, warn, shared=layout.shared)
