"""`clean`: by the cache's own policy, by conditions, or by a plan; what data managers and cron call."""

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
    Command,
    Invocation,
    common_options,
    dry_run_option,
    duration,
    files_mark,
    limit,
    mark,
    pass_invocation,
    trash_option,
)
from sccache_dtool.cli.tasks import by_all_tasks
from sccache_dtool.errors import Exit, UsageError
from sccache_dtool.liveness import caller
from sccache_dtool.policy.rules import Plan, Rules
from sccache_dtool.policy.thresholds import ORDERS, Limits, check

if TYPE_CHECKING:
    from sccache_dtool.evict.plan_file import Planned


def _conditions(function: Command) -> Command:
    """What may go, and how much."""
    count = click.IntRange(min=0)
    for add in reversed(
        (
            click.option(
                "--all", "everything", is_flag=True, help="Remove everything that is not in use; asks, unless -y."
            ),
            click.option(
                "--older-than", type=duration, metavar="TIME", help="Remove only items not used for this time: 30d."
            ),
            click.option(
                "--exclude-frequently-accessed",
                "fewer_uses_than",
                type=count,
                metavar="N",
                help="Remove only items used fewer than N times.",
            ),
            click.option("--larger-than", type=limit, metavar="SIZE", help="Remove only items larger than this: 1GB."),
            click.option("--retain-size", type=limit, metavar="SIZE", help="Stop once the cache is this small: 1TB."),
            click.option(
                "--high-watermark",
                "high",
                type=mark,
                metavar="MARK",
                help="Do nothing unless more than this is used: 90%, or a size.",
            ),
            click.option(
                "--low-watermark",
                "low",
                type=mark,
                metavar="MARK",
                help="Stop once no more than this is used: 75%, or a size.",
            ),
            click.option(
                "--high-watermark-files",
                "entries_high",
                type=files_mark,
                metavar="MARK",
                help="Like --high-watermark, for inodes: 90%, or a number.",
            ),
            click.option(
                "--low-watermark-files",
                "entries_low",
                type=files_mark,
                metavar="MARK",
                help="Like --low-watermark, for inodes.",
            ),
            click.option(
                "--capacity", type=limit, metavar="SIZE", help="What 100% is. Default: the size of the file system."
            ),
            click.option(
                "--min-free",
                "least_free",
                type=limit,
                metavar="SIZE",
                help="Remove until this much of the file system is free.",
            ),
        )
    ):
        function = add(function)
    return function


@click.command("clean")
@_conditions
@click.option(
    "--order", type=click.Choice(ORDERS), help=f"What to remove first if there is a goal. Default: {ORDERS[0]}."
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Keep items whose name matches: 'hg38*'. Repeatable.")
@click.option("--grace", type=duration, metavar="TIME", help="Keep items fetched within this time: 1h.")
@click.option(
    "--plan", "plan_file", metavar="FILE", help="Carry out a plan that -n -o wrote, as far as it still applies."
)
@click.option("-o", "--output", "into", metavar="FILE", help="With -n: write the plan to FILE (-: standard output).")
@click.option("--empty-trash", is_flag=True, help="Delete all that is kept for `restore`, and nothing else.")
@click.option("--notice", type=duration, metavar="TIME", help="Only list what would be removed within this time: 7d.")
@click.option(
    "--by",
    type=click.Choice(["item", "user"]),
    help="With --notice: list by item (default), or by the user who fetched.",
)
@click.option("--max-runtime", type=duration, metavar="TIME", help="Start no removal after this time: 50m.")
@dry_run_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@trash_option
@common_options()
@pass_invocation
@by_all_tasks
def clean_command(
    now: Invocation,
    /,
    order: str | None,
    exclude: tuple[str, ...],
    grace: float | None,
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
    """Remove items that are not in use, by policy or by conditions.

    The conditions are those given as options. If none are given, the policy in config.toml applies. An item must meet
    all conditions to be removed. Items that are leased, pinned or excluded always stay. If there is a high watermark
    and usage is below it, nothing is removed.

    Leases whose holders are proved to be dead are ended first. Leftovers of crashes are deleted as well.
    """
    cache = now.cache()
    cache.check()
    rest = [*conditions.values(), order, exclude, grace]
    _check_options(plan_file, into, notice, by, dry_run, rest)
    if empty_trash:
        if _is_given(*rest, plan_file, notice, trash, max_runtime):
            raise UsageError(
                "--empty-trash cannot be combined with other options", hint="run `sc-dtool clean` separately"
            )
        return _empty_trash(now, cache, dry_run, yes)
    if notice is not None and _is_given(dry_run, yes, trash, max_runtime):
        raise UsageError("--notice removes nothing", hint="leave out -n, -y, --trash and --max-runtime")
    if plan_file is not None:
        done = cache.clean_as_planned(
            _read_plan(plan_file), keep_for=trash, most_seconds=max_runtime, why=f"plan {plan_file}"
        )
        return print_cleaned(now, done)
    rules = _rules(cache, conditions)
    rules = rules._replace(
        order=order or rules.order,
        exclude=(*rules.exclude, *exclude),
        grace=rules.grace if grace is None else grace,
    )
    if notice is not None:
        return print_notice(now, cache, rules, notice, by, exclude)
    if dry_run:
        plan, reaped = cache.plan(rules, keep_for=trash)
        report_unmatched(now, plan, exclude)
        if into is not None:
            _write_plan(now, cache, plan, into)
        if into == STANDARD_OUTPUT:  # where it is the whole result, for a program to read
            return Exit.DONE
        print_reaped(now, reaped, True)
        return print_plan(now, plan)
    if rules.everything and not yes:
        now.confirm(f"Remove everything from {cache.root} that is not in use?")
    done = cache.clean(rules, keep_for=trash, most_seconds=max_runtime, why=_words_of(rules))
    report_unmatched(now, done.plan, exclude)
    return print_cleaned(now, done)


def _check_options(
    plan_file: str | None,
    into: str | None,
    notice: float | None,
    by: str | None,
    dry_run: bool,
    conditions: Iterable[object],
) -> None:
    """Raises UsageError for options that would do nothing next to the others."""
    if plan_file is not None and (_is_given(*conditions) or dry_run or notice is not None):
        raise UsageError(
            "--plan cannot be combined with conditions",
            hint="make another one with the conditions: sc-dtool clean -n -o FILE",
        )
    if into is not None and (not dry_run or notice is not None):
        raise UsageError("-o needs -n: only a dry run writes a plan", hint="sc-dtool clean -n -o FILE")
    if by is not None and notice is None:
        raise UsageError("--by needs --notice", hint="sc-dtool clean --notice 7d --by user")


def _empty_trash(now: Invocation, cache: Cache, dry_run: bool, yes: bool) -> int:
    if dry_run:
        return print_trash(now, cache.trashed())
    if not yes:
        now.confirm(f"Delete for good what is kept for `restore` in {cache.root}?")
    trashed, purged = cache.empty_trash()
    return print_trash(now, trashed, purged)


def _is_given(*options: object) -> bool:
    """Whether any of the options was given, be it as nought."""
    return any(value not in (None, ()) and value is not False for value in options)


def _rules(cache: Cache, conditions: dict[str, Any]) -> Rules:
    """The conditions of the command line or, without any, those of the cache's policy; what it protects, always."""
    policy = cache.policy()
    limits = Limits(**{name: conditions.pop(name) for name in Limits._fields})
    asked = Rules(**conditions, limits=limits)
    if asked.empty and policy.empty:
        raise UsageError(
            "nothing says what to remove",
            hint="give --older-than 30d, --retain-size 1TB, --high-watermark 90% or --all, or a policy in config.toml",
        )
    if asked.empty:
        return policy
    if limits != Limits() and limits.capacity is None:
        limits = limits._replace(capacity=policy.limits.capacity)
    return asked._replace(limits=check(limits), order=policy.order, exclude=policy.exclude, grace=policy.grace)


def _words_of(rules: Rules) -> str:
    """What was asked for, for the record."""
    words = []
    for name, value in rules._asdict().items():
        if name == "limits":
            words += [f"{each} {what}" for each, what in value._asdict().items() if what is not None]
        elif value not in (None, False, (), 0.0):
            words.append(f"{name} {' '.join(value) if isinstance(value, tuple) else value}")
    return ", ".join(words)


# -- plans -----------------------------------------------------------------------------------------------------------


def _write_plan(now: Invocation, cache: Cache, plan: Plan, into: str) -> None:
    from sccache_dtool.evict import plan_file as plans

    lines = plans.encode(plan, cache.check(), time.time(), f"{caller.user_name()}@{caller.host_name()}")
    write_file(now.out, into, lines)
    if into != STANDARD_OUTPUT:
        now.out.note(f"the plan is in {into}; carry it out with: {now.command('clean', '--plan', into)}")


def _read_plan(path: str) -> Planned:
    from sccache_dtool.evict import plan_file as plans

    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return plans.decode(file)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
