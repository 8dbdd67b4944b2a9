"""The output of `clean`: what was removed or would be, what was kept, and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.inspect import SIZE, USES, last_use, lease_fields
from sccache_dtool.cli.manage import print_reaped
from sccache_dtool.cli.options import Invocation
from sccache_dtool.cli.output import Column
from sccache_dtool.errors import Exit
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.lots.model import DEFAULT
from sccache_dtool.policy.rules import BEING_DOWNLOADED, UNKNOWN_LOT, UNREADABLE, Candidate, Kept, Plan, Rules
from sccache_dtool.policy.shares import within_share
from sccache_dtool.units import short_duration

if TYPE_CHECKING:
    from sccache_dtool.evict.execution import Cleaned
    from sccache_dtool.evict.trash import Purged
    from sccache_dtool.policy.thresholds import Excess, Trashed
    from sccache_dtool.protocol.reaping import Judged

#: Number of removed items, and of items in use, that are listed for people. A plan (-n) lists all, because it is read
#: before anything happens.
_SHOWN = 50

#: Reasons that are sentences, as what is said of a number of items.
_PHRASES = {
    BEING_DOWNLOADED: "that dtool may be downloading",
    UNREADABLE: "whose name cannot be read, so that the exclusions may apply",
    UNKNOWN_LOT: "whose lots cannot be read",
}


def _fields(candidate: Candidate, **more: Any) -> dict[str, Any]:
    of_lot = {"lot": candidate.lot, "class": candidate.limit or None} if candidate.lot else {}
    return {
        "item": candidate.key,
        "name": candidate.label,
        "bytes": candidate.bytes,
        "uses": candidate.uses,
        "last_use": output.moment(candidate.idle_since),
        **of_lot,
        **more,
        "_idle_since": candidate.idle_since,
    }


def _print_candidates(call: Invocation, kind: str, candidates: Sequence[Candidate], title: str) -> None:
    rows = (_fields(one, copy=one.generation) for one in candidates)
    of_lot = [Column("LOT", "lot"), Column("CLASS", "class")] if any(one.lot for one in candidates) else []
    call.out.table(kind, rows, [Column(title, "name"), SIZE, USES, last_use(time.time()), *of_lot])


def _record_kept(call: Invocation, kind: str, keep: Iterable[Kept]) -> None:
    """What is kept, for programs."""
    rows = ({"item": kept.key, "name": kept.label, "bytes": kept.bytes, "reason": kept.reason} for kept in keep)
    call.out.table(kind, rows)


def report_unmatched(call: Invocation, plan: Plan, given: Collection[str]) -> None:
    """Report patterns that match nothing. `given` are those of the command line."""
    for pattern in plan.unmatched:
        if pattern in given:
            call.out.warning(f"--exclude {pattern!r} has no effect: it matches no item's name")
        else:
            call.out.note(f"{pattern!r} in [clean] exclude has no effect: it matches no item's name")
    for pattern in plan.unmatched_directories:
        call.out.note(f"{pattern!r} in [dtool] directories has no effect: it matches no directory of the cache")


def print_plan(call: Invocation, plan: Plan) -> int:
    """Print what would be removed, and what would not. Returns the exit code."""
    _print_candidates(call, "would_remove", plan.remove, "WOULD REMOVE")
    _record_kept(call, "keep", plan.keep)
    fields = {
        "items": len(plan.remove),
        "bytes": plan.freed,
        "kept": len(plan.keep),
        **_goal_fields(plan.missed, plan.withheld, plan.trashed),
        **_lot_fields(plan),
        "dry_run": True,
    }
    text = f"would remove {output.count(len(plan.remove), 'item')}, {output.size(plan.freed)}{_reasons(plan.keep)}"
    if plan.within:
        text = _nothing_to_remove(plan, plan.withheld)
    missed = (*_missed(plan, plan.missed, "would be"), *_withheld(plan.withheld, plan.trashed, "would be"))
    call.out.result("total", fields, text, *missed, *_of_lots(plan), *_forgotten(plan, "would remove lots"))
    return Exit.DONE


def _nothing_to_remove(plan: Plan, withheld: Excess) -> str:
    why = "no watermark is exceeded" if not withheld else "emptying the trash is sufficient"
    what = f"{output.size(plan.size)} in {output.count(plan.entries, 'file or directory', 'files and directories')}"
    return f"nothing to remove: {why}; the cache contains {what}"


def print_cleaned(call: Invocation, done: Cleaned) -> int:
    """Print what was removed, what was kept, and why. Returns the exit code."""
    print_reaped(call, done.reaped, False)
    shown = done.removed if call.format != "human" else done.removed[:_SHOWN]
    _print_candidates(call, "removed", shown, "REMOVED")
    if len(done.removed) > len(shown):
        call.out.note(f"and {len(done.removed) - len(shown):,} more; to list all: -f json")
    _record_kept(call, "kept", done.plan.keep)
    for candidate in done.taken:
        call.out.result("kept", _fields(candidate, reason="in use now"), f"kept {candidate.label}: in use now")
    for failure in done.failed:
        text = f"failed to remove {failure.candidate.label}: {failure.reason}"
        call.out.result("failed", _fields(failure.candidate, reason=failure.reason), text)
    call.out.table("lease", map(lease_fields, done.in_the_way))
    for leftover in done.tidied:
        call.out.detail(f"removed leftover {leftover.path}: {leftover.what}")
    fields = {
        "items": len(done.removed),
        "bytes": done.freed,
        "kept": len(done.plan.keep) + len(done.taken),
        "failed": len(done.failed),
        "left": len(done.left),
        "gone": len(done.gone),
        **_goal_fields(done.missed, done.withheld, done.trashed),
        **_lot_fields(done.plan),
        "tidied": len(done.tidied),
        "purged": done.purged,
        "unpurged": done.unpurged,
        "unpurged_bytes": done.unpurged_bytes,
        "dry_run": False,
    }
    call.out.result("total", fields, *_sentences(done))
    return Exit.DONE if done.complete else Exit.PARTIAL


def _sentences(done: Cleaned) -> Iterable[str]:
    if done.plan.within and not done.plan.forget and not done.tidied and not done.reaped.leases:
        yield _nothing_to_remove(done.plan, done.withheld)
    else:
        yield f"removed {output.count(len(done.removed), 'item')}, {output.size(done.freed)}{_reasons(done.plan.keep)}"
        if done.gone:
            yield f"{output.count(len(done.gone), 'item')} had already been removed"
        if done.left:
            yield f"the time limit was reached: {output.count(len(done.left), 'item')} left for the next clean"
        for sentence in _missed(done.plan, done.missed, "was"):
            yield sentence
            yield from _in_the_way(done)
    yield from _of_lots(done.plan)
    yield from _forgotten(done.plan, "removed lots")
    yield from _withheld(done.withheld, done.trashed, "was")
    yield from _still_there(done.unpurged, done.unpurged_bytes)


def _in_the_way(done: Cleaned) -> Iterable[str]:
    """The items in use, the largest first, each with its holders."""
    leases: dict[str, list[Judged]] = {}
    for judged in done.in_the_way:
        leases.setdefault(judged.held.key, []).append(judged)
    held = sorted((kept for kept in done.kept if kept.held), key=lambda kept: -kept.bytes)
    for kept in held[:_SHOWN]:
        yield f"  {kept.label}, {output.size(kept.bytes)}: {kept.reason}"
        for judged in leases.pop(kept.key, ()):  # only once if an item has several copies
            yield f"    {judged.by}: {judged.verdict.state}, {judged.verdict.evidence}"
    if len(held) > _SHOWN:
        yield f"  and {len(held) - _SHOWN:,} more; to list all: -f json"


def _missed(plan: Plan, missed: Excess, verb: str) -> Iterable[str]:
    """By how many bytes and entries the goal is missed, if it is."""
    if missed:
        kept = "kept by the conditions or the shares of lots" if plan.shares else "kept by the conditions"
        why = f"the rest is in use, {kept}, or not part of this cache"
        yield f"the goal {verb} missed by {_amount(missed.bytes, missed.entries)}: {why}"


#: Number of lots that are named for people.
_MOST_LOTS = 10


def _of_lots(plan: Plan) -> Iterable[str]:
    """What stays because it is dedicated, and what is in use although it should go."""
    shares = _bytes_by_lot(plan.shares).most_common()
    if shares:
        lots = ", ".join(f"{lot} {output.size(size)}" for lot, size in shares[:_MOST_LOTS])
        more = f", and {len(shares) - _MOST_LOTS:,} more lots" if len(shares) > _MOST_LOTS else ""
        yield f"  within the shares of lots: {lots}{more}; to remove that too: sc-dtool clean --beyond-dedicated"
    if plan.overdue:
        lots = ", ".join(sorted(_bytes_by_lot(kept.candidate for kept in plan.overdue))[:_MOST_LOTS])
        number = output.count(len(plan.overdue), "item")
        yield f"  in use, although their lots are past their deletion: {number} of {lots}"


def _forgotten(plan: Plan, verb: str) -> Iterable[str]:
    if plan.forget:
        yield f"{verb} {', '.join(plan.forget)}: past deletion, and without data"


def _lot_fields(plan: Plan) -> dict[str, Any]:
    """For programs; nothing for a cache without lots."""
    fields = {
        "within_shares": dict(_bytes_by_lot(plan.shares)),
        "overdue": len(plan.overdue),
        "forgotten_lots": list(plan.forget),
    }
    return {name: value for name, value in fields.items() if value}


def _bytes_by_lot(candidates: Iterable[Candidate]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for one in candidates:
        sizes[one.lot] += one.bytes
    return sizes


def _withheld(over: Excess, trashed: Trashed, verb: str) -> Iterable[str]:
    """By how much the trash keeps the file system above its watermark, if it does."""
    if not over:
        return
    yield (
        f"the goal {verb} missed: the file system stays above its watermark by {_amount(over.bytes, over.entries)} "
        "until the trash is deleted"
    )
    there = _amount(trashed.bytes, trashed.entries)
    if trashed.until > time.time():
        yield f"  in the trash: {there}, kept for `restore` until {output.moment(trashed.until)} at the latest"
        yield "  no other items are removed instead; to delete the trash now: sc-dtool clean --empty-trash"
    else:
        yield f"  in the trash: {there} that could not be deleted in this run; the next clean continues"


def _goal_fields(missed: Excess, over: Excess, trashed: Trashed) -> dict[str, Any]:
    return {
        "missed_bytes": missed.bytes,
        "missed_entries": missed.entries,
        "withheld_bytes": over.bytes,
        "withheld_entries": over.entries,
        "withheld_until": output.moment(trashed.until) if over and trashed.until else None,
    }


def _amount(size: int, entries: int) -> str:
    return " and ".join([output.size(size)] * bool(size) + [output.count(entries, "file")] * bool(entries))


def _reasons(keep: Iterable[Kept]) -> str:
    """The number of kept items by reason: ``; kept 2 items in use, 1 item used within 30 d``."""
    reasons = Counter("in use" if kept.held else _phrase(kept) for kept in keep)
    kept = ", ".join(f"{output.count(number, 'item')} {reason}" for reason, number in reasons.items())
    return f"; kept {kept}" if kept else ""


def _phrase(kept: Kept) -> str:
    if kept.candidate.lot and kept.reason == within_share(kept.candidate.lot):
        return "within the share of its lot"
    return _PHRASES.get(kept.reason, kept.reason)


def print_trash(call: Invocation, trashed: Trashed, purged: Purged | None = None) -> int:
    """Print what is in the trash or, with `purged`, what was deleted from it. Returns the exit code."""
    if purged is None:
        until = output.moment(trashed.until) if trashed.until else None
        fields = {"bytes": trashed.bytes, "entries": trashed.entries, "until": until, "dry_run": True}
        kept = f", kept until {until} at the latest" if until else ""
        call.out.result("total", fields, f"in the trash: {_amount(trashed.bytes, trashed.entries) or 'nothing'}{kept}")
        return Exit.DONE
    size = trashed.bytes - purged.left_bytes
    fields = {
        "bytes": size,
        "purged": purged.copies,
        "unpurged": purged.left,
        "unpurged_bytes": purged.left_bytes,
        "dry_run": False,
    }
    text = f"deleted {output.count(purged.copies, 'evicted copy', 'evicted copies')}, {output.size(size)}"
    call.out.result("total", fields, text, *_still_there(purged.left, purged.left_bytes))
    return Exit.PARTIAL if purged.left else Exit.DONE


def _still_there(copies: int, size: int) -> Iterable[str]:
    """The copies in the trash that are due but could not be deleted."""
    if copies:
        left = output.count(copies, "copy is", "copies are")
        yield f"{left} still to be deleted: {output.size(size)}; the next clean continues"


# -- notice ----------------------------------------------------------------------------------------------------------


def print_notice(
    call: Invocation, cache: Cache, rules: Rules, notice: float, by: str | None, exclude: Collection[str] = ()
) -> int:
    """Print what `clean` would remove in `notice` seconds if nothing were used until then. Returns the exit code."""
    plan, _ = cache.plan(rules, ahead=notice)
    report_unmatched(call, plan, exclude)
    rows: Iterable[dict[str, Any]] = [
        _fields(one, copy=one.generation, user=_fetched_by(cache, one)) for one in plan.remove
    ]
    columns = [Column("FETCHED BY", "user"), Column("WOULD REMOVE", "name"), SIZE, last_use(time.time())]
    if by in ("user", "lot"):
        sums: dict[str, dict[str, Any]] = {}
        for row in rows:
            group = row.get(by, DEFAULT)
            one = sums.setdefault(group, {by: group, "bytes": 0, "items": []})
            one["bytes"] += row["bytes"]
            one["items"].append(row["name"])
        rows = sorted(sums.values(), key=lambda row: -row["bytes"])
        first = columns[0] if by == "user" else Column("LOT", "lot")
        columns = [first, SIZE, Column("ITEMS", lambda row: " ".join(row["items"]))]
    call.out.table("notice", rows, columns)
    fields = {"items": len(plan.remove), "bytes": plan.freed, "within_seconds": notice}
    what = f"{output.count(len(plan.remove), 'item')}, {output.size(plan.freed)}"
    call.out.result("total", {**fields, "dry_run": True}, f"{what} would be removed within {short_duration(notice)}")
    return Exit.DONE


def _fetched_by(cache: Cache, one: Candidate) -> str:
    """The user who fetched an item. For a loose file, its owner."""
    return cache.facts_of(one.key, one.generation).user if one.loose is None else user_name(one.loose.uid)
