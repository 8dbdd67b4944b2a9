"""`clean`: remove items by the cache's policy, by conditions, or by a plan."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli.clean_report import print_cleaned, print_notice, print_plan, print_trash, report_unmatched
from sccache_dtool.cli.files import STANDARD_OUTPUT, write_file
from sccache_dtool.cli.manage import print_reaped
from sccache_dtool.cli.options import (
    DURATION,
    FILES_MARK,
    LIMIT,
    MARK,
    Invocation,
    add_options,
    common_options,
    dry_run_option,
    pass_invocation,
    trash_option,
    yes_option,
)
from sccache_dtool.cli.tasks import by_all_tasks
from sccache_dtool.errors import Exit, UsageError
from sccache_dtool.liveness import caller
from sccache_dtool.policy.rules import Plan, Rules
from sccache_dtool.policy.thresholds import ORDERS, Limits, check

if TYPE_CHECKING:
    from sccache_dtool.evict.plan_file import Planned


#: Choose the items to remove. The command is given them as keyword arguments, for `_rules`.
_conditions = add_options(
    click.option("--all", "everything", is_flag=True, help="Remove all items that are not in use. Asks first."),
    click.option("--older-than", type=DURATION, help="Remove only items that were not used for TIME: 30d."),
    click.option(
        "--exclude-frequently-accessed",
        "fewer_uses_than",
        type=click.IntRange(min=0),
        metavar="N",
        help="Remove only items that were used fewer than N times.",
    ),
    click.option("--larger-than", type=LIMIT, help="Remove only items larger than SIZE: 1GB."),
    click.option("--retain-size", type=LIMIT, help="Stop when the cache is not larger than SIZE: 1TB."),
    click.option(
        "--high-watermark", "high", type=MARK, help="Remove nothing unless more than MARK is used: 90%, or a size."
    ),
    click.option("--low-watermark", "low", type=MARK, help="Stop when not more than MARK is used: 75%, or a size."),
    click.option(
        "--high-watermark-files",
        "entries_high",
        type=FILES_MARK,
        help="Like --high-watermark, for files and directories: 90%, or a number.",
    ),
    click.option(
        "--low-watermark-files", "entries_low", type=FILES_MARK, help="Like --low-watermark, for files and directories."
    ),
    click.option(
        "--capacity", type=LIMIT, help="The size of which watermarks are percentages. Default: that of the file system."
    ),
    click.option("--min-free", "least_free", type=LIMIT, help="Remove items until SIZE is free on the file system."),
    click.option(
        "--order",
        type=click.Choice(ORDERS),
        help=f"What to remove first if only some items must go. Default: {ORDERS[0]}.",
    ),
    click.option(
        "--exclude", multiple=True, metavar="PATTERN", help="Keep items whose name matches: 'hg38*'. Repeatable."
    ),
    click.option("--grace", type=DURATION, help="Keep items that were fetched within TIME: 1h."),
    click.option("--lot", metavar="LOT", help="Remove only what counts for this lot, or for one below it."),
    click.option("--beyond-dedicated", is_flag=True, help="Remove also what is within the shares of lots, at last."),
)


@click.command("clean")
@_conditions
@click.option("--plan", "plan_file", metavar="FILE", help="Remove what the plan in FILE lists, if it is still idle.")
@click.option("-o", "--output", "into", metavar="FILE", help="With -n: write the plan to FILE (-: standard output).")
@click.option("--empty-trash", is_flag=True, help="Delete everything in the trash, and do nothing else. Asks first.")
@click.option("--notice", type=DURATION, help="Only list what would be removed within TIME: 7d.")
@click.option(
    "--by",
    type=click.Choice(["item", "user", "lot"]),
    help="With --notice: list by item (default), by the user who fetched, or by lot.",
)
@click.option("--max-runtime", type=DURATION, help="Start no further removal after TIME: 50m.")
@dry_run_option
@yes_option
@trash_option
@common_options()
@pass_invocation
@by_all_tasks
def clean_command(
    call: Invocation,
    /,
    plan_file: str | None,
    into: str | None,
    empty_trash: bool,
    notice: float | None,
    by: str | None,
    max_runtime: float | None,
    dry_run: bool,
    yes: bool,
    trash: float | None,
    **conditions: Any,
) -> int:
    """Remove items not in use, by policy or by conditions.

    The conditions are given as options. Without any, the policy in config.toml applies. An item is removed only if it
    meets all conditions. Items with a lease, pinned items and excluded items are never removed. If there is a high
    watermark and usage is below it, nothing is removed.

    If the cache has lots, those that are over their limits give way first, and what is dedicated to a lot stays. What
    counts for a lot that is past its deletion is always removed.

    `clean` also ends the leases of dead processes and jobs, and deletes what crashes left behind.

    The exit code is 0 if everything was done, 3 if a goal was missed, an item could not be removed, or the time was
    up, and 14 if another process is cleaning.

    \b
    Examples:
      sc-dtool clean --older-than 30d --dry-run
      sc-dtool clean --high-watermark 90% --low-watermark 75% --max-runtime 50m
      sc-dtool clean -n -o plan.json --retain-size 1TB
      sc-dtool clean --plan plan.json
    """
    cache = call.cache()
    cache.check()
    _check_options(plan_file, into, notice, by, dry_run, conditions.values())
    if empty_trash:
        if _is_given(*conditions.values(), plan_file, notice, trash, max_runtime):
            raise UsageError(
                "--empty-trash cannot be combined with other options", hint="run `sc-dtool clean` separately"
            )
        return _empty_trash(call, cache, dry_run, yes)
    if notice is not None and _is_given(dry_run, yes, trash, max_runtime):
        raise UsageError("--notice removes nothing", hint="leave out -n, -y, --trash and --max-runtime")
    if plan_file is not None:
        done = cache.clean_as_planned(
            _read_plan(plan_file), keep_for=trash, most_seconds=max_runtime, why=f"plan {plan_file}"
        )
        return print_cleaned(call, done)
    exclude = conditions["exclude"]
    rules = _rules(cache, conditions)
    if notice is not None:
        return print_notice(call, cache, rules, notice, by, exclude)
    if dry_run:
        plan, reaped = cache.plan(rules, keep_for=trash)
        report_unmatched(call, plan, exclude)
        if into is not None:
            _write_plan(call, cache, plan, into)
        if into == STANDARD_OUTPUT:  # a program reads it: nothing else may be printed there
            return Exit.DONE
        print_reaped(call, reaped, True)
        return print_plan(call, plan)
    if rules.everything and not yes:
        of_lot = "" if rules.lot is None else f", and count for lot {rules.lot}"
        call.confirm(f"Remove all items from {cache.root} that are not in use{of_lot}?")
    done = cache.clean(rules, keep_for=trash, most_seconds=max_runtime, why=_words_of(rules))
    report_unmatched(call, done.plan, exclude)
    return print_cleaned(call, done)


def _check_options(
    plan_file: str | None,
    into: str | None,
    notice: float | None,
    by: str | None,
    dry_run: bool,
    conditions: Iterable[object],
) -> None:
    """Raises UsageError for options that have no effect together with the others."""
    if plan_file is not None and (_is_given(*conditions) or dry_run or notice is not None):
        raise UsageError(
            "--plan cannot be combined with conditions",
            hint="make a plan with these conditions: sc-dtool clean -n -o FILE",
        )
    if into is not None and (not dry_run or notice is not None):
        raise UsageError("-o needs -n: only a dry run writes a plan", hint="sc-dtool clean -n -o FILE")
    if by is not None and notice is None:
        raise UsageError("--by needs --notice", hint="sc-dtool clean --notice 7d --by user")


def _empty_trash(call: Invocation, cache: Cache, dry_run: bool, yes: bool) -> int:
    if dry_run:
        return print_trash(call, cache.trashed())
    if not yes:
        call.confirm(f"Delete everything in the trash of {cache.root}? It cannot be restored afterwards")
    trashed, purged = cache.empty_trash()
    return print_trash(call, trashed, purged)


def _is_given(*options: object) -> bool:
    """Whether any of the options was given, even as 0."""
    return any(value not in (None, ()) and value is not False for value in options)


def _rules(cache: Cache, given: dict[str, Any]) -> Rules:
    """The conditions of the command line or, without any, the cache's policy.

    The order, the exclusions and the grace period of the policy always apply; those of the command line replace the
    order and the grace period, and add exclusions. Raises UsageError if there is no condition at all.
    """
    policy = cache.policy()
    conditions = dict(given)
    order, exclude, grace = (conditions.pop(name) for name in ("order", "exclude", "grace"))
    limits = Limits(**{name: conditions.pop(name) for name in Limits._fields})
    rules = Rules(**conditions, limits=limits)
    if rules.lot is not None and rules.empty:
        raise UsageError(
            "--lot needs a condition",
            hint="give --all, --older-than 30d, or --retain-size 1TB, which is that of the lot",
        )
    if rules.empty and policy.empty:
        raise UsageError(
            "no condition is given, and config.toml has no policy",
            hint="give --older-than 30d, --retain-size 1TB, --high-watermark 90% or --all, or a policy in config.toml",
        )
    if rules.empty:
        rules = policy._replace(beyond_dedicated=rules.beyond_dedicated)
    else:
        if limits != Limits() and limits.capacity is None:
            limits = limits._replace(capacity=policy.limits.capacity)
        everything_of_lot = rules.everything and rules.lot is not None
        rules = rules._replace(limits=check(limits), beyond_dedicated=rules.beyond_dedicated or everything_of_lot)
    return rules._replace(
        order=order or policy.order,
        exclude=(*policy.exclude, *exclude),
        grace=policy.grace if grace is None else grace,
    )


def _words_of(rules: Rules) -> str:
    """The conditions as text, for the record of the run."""
    words = []
    for name, value in rules._asdict().items():
        if name == "limits":
            words += [f"{each} {what}" for each, what in value._asdict().items() if what is not None]
        elif value not in (None, False, (), 0.0):
            shown = " ".join(value) if isinstance(value, tuple) else value
            words.append(name if value is True else f"{name} {shown}")
    return ", ".join(words)


# -- plans -----------------------------------------------------------------------------------------------------------


def _write_plan(call: Invocation, cache: Cache, plan: Plan, into: str) -> None:
    from sccache_dtool.evict import plan_file as plans

    lines = plans.encode(plan, cache.check(), time.time(), f"{caller.user_name()}@{caller.host_name()}")
    write_file(call.out, into, lines)
    if into != STANDARD_OUTPUT:
        call.out.note(f"the plan is in {into}; to carry it out: {call.command('clean', '--plan', into)}")


def _read_plan(path: str) -> Planned:
    from sccache_dtool.evict import plan_file as plans

    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return plans.decode(file)
    except UsageError as error:
        raise UsageError(f"cannot use {path}: {error.message}", details=error.details, hint=error.hint) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
