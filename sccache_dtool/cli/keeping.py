"""`init`, `reap`, `clean`, `rm`, `restore`, `doctor`: what data managers and cron call."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation, common_options, duration, pass_invocation, size
from sccache_dtool.cli.output import Column, field
from sccache_dtool.doctor import Finding
from sccache_dtool.errors import CacheError, Exit, UsageError, explain
from sccache_dtool.evict.clean import Cleaned
from sccache_dtool.evict.policies import Candidate, Plan, Rules
from sccache_dtool.layout import key_label
from sccache_dtool.reaping import Reaped

_dry_run = click.option("-n", "--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
_trash = click.option(
    "--trash", type=duration, metavar="TIME", help="Keep what is removed this long, for `restore`: 7d."
)


@click.command("init")
@click.argument("directory", required=False)
@common_options()
@pass_invocation
def init_command(now: Invocation, directory: str | None) -> None:
    """Set up a cache in DIRECTORY (default: --cache-dir, or dtool's own cache directory).

    Files that are there already are left alone. Refused: the root directory, home directories, dtool datasets.
    """
    cache = now.cache(directory)
    made = cache.init()
    if not made:
        now.out.note(f"{cache.root} is a cache already")
    now.out.path("init", {"path": str(cache.root), "made": made}, str(cache.root))


@click.command("reap")
@click.option("--holder", metavar="ID", help="Take this holder for gone on your word: the ID that `why` shows.")
@_dry_run
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common_options()
@pass_invocation
def reap_command(now: Invocation, holder: str | None, dry_run: bool, yes: bool) -> int:
    """End the leases of processes and batch jobs that are proved to be gone. What cannot be proved is kept.

    A lease of a host that was switched off, or of a container that is no more, can be proved by nobody; --holder
    takes your word for it. If you are wrong, data can be removed while it is read.
    """
    cache = now.cache()
    if holder is None:
        reaped = cache.reap(dry_run=dry_run)
    else:
        if not (dry_run or yes):
            cache.check()
            now.confirm(f"Are you sure that holder {holder} reads nothing any more?")
        reaped = cache.reap_on_word(holder, dry_run=dry_run)
    _print_reaped(now, reaped, dry_run)
    would = "would end" if dry_run else "ended"
    fields = {"leases": len(reaped.leases), "holders": len(reaped.holders), "failed": len(reaped.failed)}
    now.out.result("total", {**fields, "dry_run": dry_run}, f"{would} {output.count(len(reaped.leases), 'lease')}")
    return Exit.PARTIAL if reaped.failed else Exit.DONE


def _print_reaped(now: Invocation, reaped: Reaped, dry_run: bool) -> None:
    for one in reaped.leases:
        fields = {"item": one.held.key, "lease": one.held.name, "by": one.by, "evidence": one.verdict.evidence}
        would = "would end the lease" if dry_run else "ended the lease"
        text = f"{would} of {one.by} on {key_label(one.held.key)}: {one.verdict.evidence}"
        now.out.result("reaped", {**fields, "dry_run": dry_run}, text)


@click.command("clean")
@click.option("--all", "everything", is_flag=True, help="Everything that is not in use; asks, unless -y.")
@click.option("--older-than", type=duration, metavar="TIME", help="What has not been used for so long: 30d.")
@click.option("--retain-size", type=size, metavar="SIZE", help="Stop at this size, least recently used first: 1TB.")
@click.option(
    "--exclude-frequently-accessed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only what was used fewer than N times.",
)
@_dry_run
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_trash
@common_options()
@pass_invocation
def clean_command(
    now: Invocation,
    everything: bool,
    older_than: float | None,
    retain_size: int | None,
    exclude_frequently_accessed: int | None,
    dry_run: bool,
    yes: bool,
    trash: float | None,
) -> int:
    """Remove what is not in use. Conditions add up; what is leased always stays.

    Leases of processes that are proved to be gone are ended first, and what crashes have left behind is tidied up.
    """
    rules = Rules(everything, older_than, exclude_frequently_accessed, retain_size)
    if rules.empty:
        raise UsageError(
            "nothing says what to remove",
            hint="give --older-than 30d, --retain-size 1TB, --exclude-frequently-accessed 10, or --all",
        )
    cache = now.cache()
    cache.check()
    if dry_run:
        plan, reaped = cache.plan(rules)
        _print_reaped(now, reaped, True)
        _print_plan(now, plan)
        return Exit.DONE
    if everything and not yes:
        now.confirm(f"Remove everything from {cache.root} that is not in use?")
    done = cache.clean(rules, keep_for=trash)
    _print_reaped(now, done.reaped, False)
    _print_cleaned(now, done)
    return Exit.PARTIAL if done.failed or done.missed else Exit.DONE


def _candidate_fields(candidate: Candidate) -> dict[str, Any]:
    return {
        "item": candidate.key,
        "name": candidate.label,
        "bytes": candidate.bytes,
        "uses": candidate.uses,
        "last_use": output.moment(candidate.idle_since),
    }


def _print_candidates(now: Invocation, kind: str, candidates: tuple[Candidate, ...], title: str) -> None:
    moment = time.time()
    idle = {candidate.generation: candidate.idle_since for candidate in candidates}
    now.out.table(
        kind,
        ({**_candidate_fields(candidate), "copy": candidate.generation} for candidate in candidates),
        [
            Column(title, field("name")),
            Column("SIZE", lambda row: output.size(row["bytes"]), right=True),
            Column("USES", field("uses"), right=True),
            Column("LAST USE", lambda row: output.ago(idle[row["copy"]], moment)),
        ],
    )


def _print_plan(now: Invocation, plan: Plan) -> None:
    _print_candidates(now, "would_remove", plan.remove, "WOULD REMOVE")
    for kept in plan.keep:
        now.out.result("keep", {"item": kept.key, "name": kept.label, "bytes": kept.bytes, "reason": kept.reason})
    fields = {"items": len(plan.remove), "bytes": plan.freed, "kept": len(plan.keep), "missed_bytes": plan.missed}
    text = f"would remove {output.count(len(plan.remove), 'item')}, {output.size(plan.freed)}{_kept(plan)}"
    now.out.result("total", {**fields, "dry_run": True}, text)


def _print_cleaned(now: Invocation, done: Cleaned) -> None:
    _print_candidates(now, "removed", done.removed, "REMOVED")
    for kept in done.plan.keep:
        now.out.result("kept", {"item": kept.key, "name": kept.label, "bytes": kept.bytes, "reason": kept.reason})
    for candidate in done.taken:
        fields = {**_candidate_fields(candidate), "reason": "in use by now"}
        now.out.result("kept", fields, f"kept {candidate.label}: in use by now")
    for failure in done.failed:
        fields = {**_candidate_fields(failure.candidate), "reason": failure.reason}
        now.out.result("failed", fields, f"failed to remove {failure.candidate.label}: {failure.reason}")
    for leftover in done.tidied:
        now.out.detail(f"tidied up {leftover.path}: {leftover.what}")
    text = f"removed {output.count(len(done.removed), 'item')}, {output.size(done.freed)}{_kept(done.plan)}"
    if done.missed:
        text += f"\nthe goal was missed by {output.size(done.missed)}: what is left is in use or kept by the conditions"
        for kept in done.plan.keep:
            if kept.held:
                text += f"\n  {kept.label}, {output.size(kept.bytes)}: {kept.reason}"
    fields = {
        "items": len(done.removed),
        "bytes": done.freed,
        "kept": len(done.plan.keep) + len(done.taken),
        "failed": len(done.failed),
        "missed_bytes": done.missed,
        "tidied": len(done.tidied),
        "purged": done.purged,
        "dry_run": False,
    }
    now.out.result("total", fields, text)


def _kept(plan: Plan) -> str:
    """What a plan keeps, by reason: ``; kept 2 in use, 1 used within 30 d``."""
    reasons = Counter("in use" if kept.held else kept.reason for kept in plan.keep)
    return "; kept " + ", ".join(f"{number} {reason}" for reason, number in reasons.items()) if reasons else ""


@click.command("rm")
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@_dry_run
@_trash
@common_options()
@pass_invocation
def rm_command(now: Invocation, items: tuple[str, ...], dry_run: bool, trash: float | None) -> int:
    """Remove items that nobody uses."""
    cache = now.cache()
    keys = [cache.find(item) for item in items]

    def remove(key: str) -> None:
        present = cache.item(key)
        if not present.copies:
            raise UsageError(f"{key_label(key)} is not in the cache any more")
        freed = present.bytes if dry_run else cache.remove(key, keep_for=trash)
        text = f"{'would remove' if dry_run else 'removed'} {key_label(key)}, {output.size(freed)}"
        now.out.result("removed", {"item": key, "bytes": freed, "dry_run": dry_run}, text)

    return _each(now, keys, remove)


@click.command("restore")
@click.argument("items", nargs=-1, metavar="[ITEM]...")
@common_options()
@pass_invocation
def restore_command(now: Invocation, items: tuple[str, ...]) -> int:
    """Bring back items that were removed with --trash; without an ITEM, list them."""
    cache = now.cache()
    cache.check()
    if not items:
        _print_trash(now, cache)
        return Exit.DONE

    def restore(item: str) -> None:
        key = cache.restore(item)
        now.out.result("restored", {"item": key}, f"restored {key_label(key)}")

    return _each(now, list(items), restore)


def _print_trash(now: Invocation, cache: Cache) -> None:
    rows = [
        {
            "item": key,
            "name": key_label(key),
            "bytes": name.generation.bytes,
            "keep_until": output.moment(name.keep_until),
        }
        for key, name in cache.restorable()
    ]
    columns = [Column("NAME", field("name")), Column("KEY", lambda row: row["item"][:12])]
    columns += [Column("SIZE", lambda row: output.size(row["bytes"]), right=True), Column("UNTIL", field("keep_until"))]
    now.out.table("trashed", rows, columns)
    if not rows:
        now.out.note("there is nothing to restore; only what is removed with --trash is kept")


def _each(now: Invocation, items: list[str], act: Callable[[str], None]) -> int:
    """Act on each; a failure does not stop the rest. All failed: that exit code; some: done in part."""
    codes = []
    for item in items:
        try:
            act(item)
        except (CacheError, OSError) as error:
            failure = error if isinstance(error, CacheError) else CacheError(explain(error))
            now.out.error(failure)
            codes.append(failure.exit_code)
    if not codes:
        return Exit.DONE
    return codes[0] if len(codes) == len(items) else Exit.PARTIAL


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Repair what can be repaired without a person's judgement.")
@common_options()
@pass_invocation
def doctor_command(now: Invocation, fix: bool) -> int:
    """Look for leftovers and damage. Exit code 20 if anything is left that is not as it should be."""
    cache = now.cache()
    findings = cache.examine()
    mended = 0
    while fix and any(finding.mend for finding in findings):
        before = {finding.path for finding in findings if finding.mend}
        mended += sum(_mend(now, finding) for finding in findings)
        findings = cache.examine()
        if before & {finding.path for finding in findings if finding.mend}:
            break
    for finding in findings:
        fields = {"path": finding.path, "finding": finding.what, "repairable": finding.mend is not None}
        repair = " (--fix repairs it)" if finding.mend and not fix else ""
        now.out.result("finding", fields, f"{finding.path}: {finding.what}{repair}")
    text = f"{output.count(len(findings), 'finding')}" + (f", {mended} repaired" if fix else "")
    now.out.result("total", {"findings": len(findings), "repaired": mended}, text)
    return Exit.FINDINGS if findings else Exit.DONE


def _mend(now: Invocation, finding: Finding) -> bool:
    if finding.mend is None:
        return False
    try:
        finding.mend()
    except FileNotFoundError:
        return False  # mended by somebody else, or along with another finding
    except OSError as error:
        now.out.warning(f"{explain(error)}; not repaired")
        return False
    now.out.result(
        "repaired", {"path": finding.path, "finding": finding.what}, f"repaired {finding.path}: {finding.what}"
    )
    return True
