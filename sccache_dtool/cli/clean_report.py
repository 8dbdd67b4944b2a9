"""The output of `clean`: what was removed or would be, what was kept, and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.inspect import SIZE, USES, lease_fields
from sccache_dtool.cli.manage import print_reaped
from sccache_dtool.cli.options import Invocation
from sccache_dtool.cli.output import Column, field
from sccache_dtool.errors import Exit
from sccache_dtool.policy.rules import Candidate, Kept, Plan, Rules
from sccache_dtool.units import short_duration

if TYPE_CHECKING:
    from sccache_dtool.evict.execution import Cleaned
    from sccache_dtool.evict.trash import Purged
    from sccache_dtool.policy.thresholds import Trashed
    from sccache_dtool.protocol.reaping import Judged

#: Number of removed items, and of items in use, that are listed for people. A plan (-n) lists all, because it is read
#: before anything happens.
_SHOWN = 50


def _candidate_fields(candidate: Candidate) -> dict[str, Any]:
    return {
        "item": candidate.key,
        "name": candidate.label,
        "bytes": candidate.bytes,
        "uses": candidate.uses,
        "last_use": output.moment(candidate.idle_since),
    }


def _kept_fields(kept: Kept) -> dict[str, Any]:
    return {"item": kept.key, "name": kept.label, "bytes": kept.bytes, "reason": kept.reason}


def _print_candidates(now: Invocation, kind: str, candidates: Sequence[Candidate], title: str) -> None:
    moment = time.time()
    now.out.table(
        kind,
        ({**_candidate_fields(one), "copy": one.generation, "_idle_since": one.idle_since} for one in candidates),
        [
            Column(title, field("name")),
            SIZE,
            USES,
            Column("LAST USE", lambda row: output.ago(row["_idle_since"], moment)),
        ],
    )


def report_unmatched(now: Invocation, plan: Plan, given: Collection[str]) -> None:
    """Report patterns that match nothing. `given` are those of the command line."""
    for pattern in plan.unmatched:
        if pattern in given:
            now.out.warning(f"--exclude {pattern!r} has no effect: it matches no item's name")
        else:
            now.out.note(f"{pattern!r} in [clean] exclude has no effect: it matches no item's name")
    for pattern in plan.unmatched_directories:
        now.out.note(f"{pattern!r} in [dtool] directories has no effect: it matches no directory of the cache")


def print_plan(now: Invocation, plan: Plan) -> int:
    """Print what would be removed, and what would not. Returns the exit code."""
    _print_candidates(now, "would_remove", plan.remove, "WOULD REMOVE")
    if now.format != "human":
        for kept in plan.keep:
            now.out.result("keep", _kept_fields(kept))
    missed, missed_entries = plan.missed_after(plan.remove)
    fields = {"items": len(plan.remove), "bytes": plan.freed, "kept": len(plan.keep), "missed_bytes": missed}
    text = f"would remove {output.count(len(plan.remove), 'item')}, {output.size(plan.freed)}{_reasons(plan.keep)}"
    if plan.within:
        text = _nothing_to_remove(plan, plan.withheld)
    missing = [*_missed(missed, missed_entries, "would be"), *_withheld(plan.withheld, plan.trashed, "would be")]
    fields.update(missed_entries=missed_entries, **_withheld_fields(plan.withheld, plan.trashed))
    now.out.result("total", {**fields, "dry_run": True}, text, *missing)
    return Exit.DONE


def _nothing_to_remove(plan: Plan, withheld: tuple[int, int]) -> str:
    what = f"{output.size(plan.size)} in {plan.entries:,} files and directories"
    if withheld != (0, 0):
        return f"nothing to remove: emptying the trash is sufficient; the cache contains {what}"
    return f"nothing to remove: no watermark is exceeded; the cache contains {what}"


def print_cleaned(now: Invocation, done: Cleaned) -> int:
    """Print what was removed, what was kept, and why. Returns the exit code."""
    print_reaped(now, done.reaped, False)
    shown = done.removed if now.format != "human" else done.removed[:_SHOWN]
    _print_candidates(now, "removed", shown, "REMOVED")
    if len(done.removed) > len(shown):
        now.out.note(f"and {len(done.removed) - len(shown):,} more; to list all: -f json")
    if now.format != "human":
        for kept in done.plan.keep:
            now.out.result("kept", _kept_fields(kept))
    for candidate in done.taken:
        fields = {**_candidate_fields(candidate), "reason": "in use now"}
        now.out.result("kept", fields, f"kept {candidate.label}: in use now")
    for failure in done.failed:
        fields = {**_candidate_fields(failure.candidate), "reason": failure.reason}
        now.out.result("failed", fields, f"failed to remove {failure.candidate.label}: {failure.reason}")
    if now.format != "human":
        for judged in done.in_the_way:
            now.out.result("lease", lease_fields(judged))
    for leftover in done.tidied:
        now.out.detail(f"removed leftover {leftover.path}: {leftover.what}")
    missed, missed_entries = done.missed_both
    fields = {
        "items": len(done.removed),
        "bytes": done.freed,
        "kept": len(done.plan.keep) + len(done.taken),
        "failed": len(done.failed),
        "left": len(done.left),
        "gone": len(done.gone),
        "missed_bytes": missed,
        "missed_entries": missed_entries,
        **_withheld_fields(done.withheld, done.trashed),
        "tidied": len(done.tidied),
        "purged": done.purged,
        "unpurged": done.unpurged,
        "unpurged_bytes": done.unpurged_bytes,
        "dry_run": False,
    }
    now.out.result("total", fields, *_sentences(done))
    return Exit.DONE if done.complete else Exit.PARTIAL


def _sentences(done: Cleaned) -> Iterable[str]:
    if done.plan.within and not done.tidied and not done.reaped.leases:
        yield _nothing_to_remove(done.plan, done.withheld)
        yield from _withheld(done.withheld, done.trashed, "was")
    else:
        yield from _what_went(done)
    yield from _still_there(done.unpurged, done.unpurged_bytes)


def _what_went(done: Cleaned) -> Iterable[str]:
    yield f"removed {output.count(len(done.removed), 'item')}, {output.size(done.freed)}{_reasons(done.plan.keep)}"
    if done.gone:
        yield f"{output.count(len(done.gone), 'item')} had already been removed by another process"
    if done.left:
        yield f"the time limit was reached: {output.count(len(done.left), 'item')} left for the next clean"
    missed, missed_entries = done.missed_both
    yield from _missed(missed, missed_entries, "was")
    if missed or missed_entries:
        yield from _in_the_way(done)
    yield from _withheld(done.withheld, done.trashed, "was")


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


def _missed(size: int, entries: int, verb: str) -> Iterable[str]:
    """By how much the goal is missed, if it is."""
    if size or entries:
        why = "the rest is in use, kept by the conditions, or not part of this cache"
        yield f"the goal {verb} missed by {_amount(size, entries)}: {why}"


def _withheld(over: tuple[int, int], trashed: Trashed, verb: str) -> Iterable[str]:
    """By how much the trash keeps the file system above its watermark, if it does."""
    if over == (0, 0):
        return
    yield (
        f"the goal {verb} missed: the file system stays above its watermark by {_amount(*over)} "
        "until the trash is deleted"
    )
    there = _amount(trashed.bytes, trashed.entries)
    if trashed.until > time.time():
        yield f"  in the trash: {there}, kept for `restore` until {output.moment(trashed.until)} at the latest"
        yield "  no other items are removed instead; to delete the trash now: sc-dtool clean --empty-trash"
    else:
        yield f"  in the trash: {there} that could not be deleted in this run; the next clean continues"


def _withheld_fields(over: tuple[int, int], trashed: Trashed) -> dict[str, Any]:
    until = output.moment(trashed.until) if over != (0, 0) and trashed.until else None
    return {"withheld_bytes": over[0], "withheld_entries": over[1], "withheld_until": until}


def _amount(size: int, entries: int) -> str:
    return " and ".join([output.size(size)] * bool(size) + [output.count(entries, "file")] * bool(entries))


def _reasons(keep: Iterable[Kept]) -> str:
    """The number of kept items by reason: ``; kept 2 in use, 1 used within 30 d``."""
    reasons = Counter("in use" if kept.held else kept.reason for kept in keep)
    return "; kept " + ", ".join(f"{number} {reason}" for reason, number in reasons.items()) if reasons else ""


def print_trash(now: Invocation, trashed: Trashed, purged: Purged | None = None) -> int:
    """Print what is in the trash or, with `purged`, what was deleted from it. Returns the exit code."""
    if purged is None:
        until = output.moment(trashed.until) if trashed.until else None
        fields = {"bytes": trashed.bytes, "entries": trashed.entries, "until": until, "dry_run": True}
        kept = f", kept until {until} at the latest" if until else ""
        now.out.result("total", fields, f"in the trash: {_amount(trashed.bytes, trashed.entries) or 'nothing'}{kept}")
        return Exit.DONE
    size = trashed.bytes - purged.left_bytes
    fields = {
        "bytes": size,
        "purged": purged.copies,
        "unpurged": purged.left,
        "unpurged_bytes": purged.left_bytes,
        "dry_run": False,
    }
    copies = "1 evicted copy" if purged.copies == 1 else f"{purged.copies:,} evicted copies"
    left = _still_there(purged.left, purged.left_bytes)
    now.out.result("total", fields, f"deleted {copies}, {output.size(size)}", *left)
    return Exit.PARTIAL if purged.left else Exit.DONE


def _still_there(copies: int, size: int) -> Iterable[str]:
    """The copies in the trash that are due but could not be deleted."""
    if copies:
        which = "1 copy is" if copies == 1 else f"{copies:,} copies are"
        yield f"{which} still to be deleted: {output.size(size)}; the next clean continues"


# -- notice ----------------------------------------------------------------------------------------------------------


def print_notice(
    now: Invocation, cache: Cache, rules: Rules, notice: float, by: str | None, exclude: Collection[str] = ()
) -> int:
    """Print what `clean` would remove in `notice` seconds if nothing were used until then. Returns the exit code."""
    plan, _ = cache.plan(rules, ahead=notice)
    report_unmatched(now, plan, exclude)
    users = _fetched_by(cache, plan.remove)
    rows = [{**_candidate_fields(one), "copy": one.generation, "user": users[one.place]} for one in plan.remove]
    moment = time.time()
    columns = [
        Column("FETCHED BY", field("user")),
        Column("WOULD REMOVE", field("name")),
        SIZE,
        Column("LAST USE", lambda row: output.ago(row["_idle_since"], moment)),
    ]
    if by == "user":
        sums: dict[str, dict[str, Any]] = {}
        for row in rows:
            one = sums.setdefault(row["user"], {"user": row["user"], "bytes": 0, "items": []})
            one["bytes"] += row["bytes"]
            one["items"].append(row["name"])
        columns = [columns[0], columns[2], Column("ITEMS", lambda row: " ".join(row["items"]))]
        now.out.table("notice", sorted(sums.values(), key=lambda row: -row["bytes"]), columns)
    else:
        shown = zip(rows, plan.remove, strict=True)
        now.out.table("notice", ({**row, "_idle_since": one.idle_since} for row, one in shown), columns)
    fields = {"items": len(plan.remove), "bytes": plan.freed, "within_seconds": notice}
    what = f"{output.count(len(plan.remove), 'item')}, {output.size(plan.freed)}"
    now.out.result("total", {**fields, "dry_run": True}, f"{what}; would be removed within {short_duration(notice)}")
    return Exit.DONE


def _fetched_by(cache: Cache, candidates: Iterable[Candidate]) -> dict[str, str]:
    """The user who fetched each item, by place. For a loose file, its owner."""
    from sccache_dtool.cli.usage import user_of

    def tell(one: Candidate) -> str:
        if one.loose is not None:
            return user_of(one.loose.uid)
        return cache.facts_of(one.key, one.generation).user

    return {one.place: tell(one) for one in candidates}
