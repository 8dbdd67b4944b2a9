"""`init`, `reap`, `rm`, `restore`, `pin`, `unpin`: administer a cache."""

from __future__ import annotations

import shutil

import click

from sccache_dtool.cli import output
from sccache_dtool.cli.each import each
from sccache_dtool.cli.inspect import KEY, NAME, SIZE
from sccache_dtool.cli.options import (
    UNTIL,
    Invocation,
    common_options,
    dry_run_option,
    pass_invocation,
    trash_option,
    yes_option,
)
from sccache_dtool.cli.output import Column, Fields
from sccache_dtool.disk.names import key_label
from sccache_dtool.errors import Exit, UsageError
from sccache_dtool.evict.pins import UNTIL_ARCHIVED
from sccache_dtool.protocol.reaping import Reaped


@click.command("init")
@click.argument("directory", required=False)
@common_options()
@pass_invocation
def init_command(call: Invocation, directory: str | None) -> None:
    """Set up a cache in DIRECTORY.

    The default is the directory of --cache-dir or $DTOOL_CACHE_DIRECTORY, or else dtool's own cache directory. If the
    group can write in DIRECTORY, the cache is shared with the group. Existing files in DIRECTORY are not changed. The
    root directory, home directories and dtool datasets are refused.

    \b
    Example:
      mkdir -m 2775 /shared/lab/cache
      sc-dtool init /shared/lab/cache
    """
    cache = call.cache(directory)
    made = cache.init()
    if not made:
        call.out.note(f"{cache.root} is already a cache")
    call.out.path("init", {"path": str(cache.root), "made": made}, str(cache.root))


@click.command("reap")
@click.option(
    "--holder",
    metavar="ID",
    help="End the leases of this holder, because you know that it has ended. `why` shows its ID.",
)
@dry_run_option
@yes_option
@common_options()
@pass_invocation
def reap_command(call: Invocation, holder: str | None, dry_run: bool, yes: bool) -> int:
    """End the leases of processes and batch jobs that are gone.

    Their sessions end as well. A lease is ended only if there is proof that its holder has ended. There is no proof for
    a process of a host that was switched off or of a container that was deleted. If you know that it has ended, give
    --holder. If you are wrong, data may be removed while it is read. Jobs of yours are reported that are still held in
    Slurm because a `sc-dtool sbatch` was killed.

    The exit code is 3 if a lease could not be ended.

    \b
    Examples:
      sc-dtool reap --dry-run
      sc-dtool reap --holder n2744ccd10c75-7a037d54789b
    """
    cache = call.cache()
    if holder is None:
        reaped = cache.reap(dry_run=dry_run)
        if shutil.which("squeue"):
            from sccache_dtool.cli.sbatch import report_held

            report_held(call)
    else:
        if not (dry_run or yes):
            cache.check()
            call.confirm(f"Has holder {holder} ended? If it still reads its items, they may be removed")
        reaped = cache.reap_holder(holder, dry_run=dry_run)
    print_reaped(call, reaped, dry_run)
    fields = {"leases": len(reaped.leases), "holders": len(reaped.holders), "sessions": len(reaped.sessions)}
    fields["failed"] = len(reaped.failed)
    text = f"ended {output.count(len(reaped.leases), 'lease')}"
    if dry_run:
        text = f"would end {output.count(len(reaped.leases), 'lease')}" if reaped.leases else "no lease to end"
    call.out.result("total", {**fields, "dry_run": dry_run}, text)
    return Exit.PARTIAL if reaped.failed else Exit.DONE


def print_reaped(call: Invocation, reaped: Reaped, dry_run: bool) -> None:
    """Print the leases and sessions that were ended or, with `dry_run`, would be."""
    for session, evidence in reaped.sessions.items():
        text = f"{'would end' if dry_run else 'ended'} session {session}: {evidence}"
        call.out.result("reaped-session", {"session": session, "evidence": evidence, "dry_run": dry_run}, text)
    for one in reaped.leases:
        fields = {"item": one.held.key, "lease": one.held.name, "by": one.by, "evidence": one.verdict.evidence}
        would = "would end the lease" if dry_run else "ended the lease"
        text = f"{would} of {one.by} on {key_label(one.held.key)}: {one.verdict.evidence}"
        call.out.result("reaped", {**fields, "dry_run": dry_run}, text)


@click.command("rm")
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@dry_run_option
@trash_option
@common_options()
@pass_invocation
def rm_command(call: Invocation, items: tuple[str, ...], dry_run: bool, trash: float | None) -> int:
    """Remove single items that are not in use.

    ITEM is a name, a key, or the beginning of a key, as `sc-dtool ls` shows them. Pinned items are removed as well. The
    exit code is 14 if all items are in use, and 3 if some could not be removed.

    \b
    Example:
      sc-dtool rm hg38.tar.gz --trash 7d
    """
    cache = call.cache()
    keys = [cache.find(item) for item in items]

    def remove(key: str) -> None:
        present = cache.item(key)
        if not present.copies:
            raise UsageError(f"{key_label(key)} is not in the cache any more")
        freed = present.bytes if dry_run else cache.remove(key, keep_for=trash)
        text = f"{'would remove' if dry_run else 'removed'} {key_label(key)}, {output.size(freed)}"
        call.out.result("removed", {"item": key, "bytes": freed, "dry_run": dry_run}, text)

    return each(call, keys, remove)


@click.command("pin")
@click.argument("items", nargs=-1, metavar="[ITEM]...")
@click.option("--until", type=UNTIL, help="End of the pin: 30d, or a date such as 2027-01-31. Default: no end.")
@common_options()
@pass_invocation
def pin_command(call: Invocation, items: tuple[str, ...], until: float | None) -> int:
    """Protect items from `clean`; without an ITEM, list the pins.

    ITEM is a name, a key, or the beginning of a key, as `sc-dtool ls` shows them. `rm` removes pinned items
    nevertheless.

    \b
    Examples:
      sc-dtool pin hg38.tar.gz --until 2027-01-31
      sc-dtool pin
    """
    cache = call.cache()
    cache.check()
    if until is not None and not items:
        raise UsageError("--until needs an ITEM", hint="sc-dtool pin ITEM --until WHEN")
    if not items:
        rows = (
            {"item": pin.key, "name": key_label(pin.key), "until": output.moment(pin.until or None), "by": by}
            for pin, by in cache.pins()
        )
        columns = [NAME, KEY, Column("UNTIL", _until), Column("BY", "by")]
        call.out.table("pin", rows, columns, empty="no item is pinned")
        return Exit.DONE

    def pin(item: str) -> None:
        key = cache.find(item)
        cache.pin(key, until)
        end = output.moment(until)
        text = f"pinned {key_label(key)}{f' until {end}' if end else ''}"
        call.out.result("pinned", {"item": key, "until": end}, text)

    return each(call, items, pin)


def _until(row: Fields) -> str:
    return "archived" if row["until"] == output.moment(UNTIL_ARCHIVED) else row["until"] or "no end"


@click.command("unpin")
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@common_options()
@pass_invocation
def unpin_command(call: Invocation, items: tuple[str, ...]) -> int:
    """Undo `pin`: let `clean` remove these items again.

    ITEM is a name, a key, or the beginning of a key, as `sc-dtool pin` shows them.

    \b
    Example:
      sc-dtool unpin hg38.tar.gz
    """
    cache = call.cache()

    def unpin(item: str) -> None:
        key = cache.find(item)
        was = cache.unpin(key)
        text = f"{key_label(key)} is not pinned any more" if was else f"{key_label(key)} was not pinned"
        call.out.result("unpinned", {"item": key, "was_pinned": was}, text)

    return each(call, items, unpin)


@click.command("restore")
@click.argument("items", nargs=-1, metavar="[ITEM]...")
@common_options()
@pass_invocation
def restore_command(call: Invocation, items: tuple[str, ...]) -> int:
    """Restore items from the trash; without an ITEM, list it.

    Removed items are kept in the trash if --trash was given, or if config.toml sets [clean] trash. ITEM is a name, a
    key, or the beginning of a key.

    \b
    Examples:
      sc-dtool restore
      sc-dtool restore hg38.tar.gz
    """
    cache = call.cache()
    cache.check()
    if not items:
        rows = (
            {
                "item": key,
                "name": key_label(key),
                "bytes": name.generation.bytes,
                "keep_until": output.moment(name.keep_until),
            }
            for key, name in cache.restorable()
        )
        empty = "the trash is empty; only items removed with --trash are kept in it"
        call.out.table("trashed", rows, [NAME, KEY, SIZE, Column("UNTIL", "keep_until")], empty)
        return Exit.DONE

    def restore(item: str) -> None:
        key = cache.restore(item)
        call.out.result("restored", {"item": key}, f"restored {key_label(key)}")

    return each(call, items, restore)
