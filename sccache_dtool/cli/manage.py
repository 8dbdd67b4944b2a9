"""`init`, `reap`, `rm`, `restore`, `pin`, `unpin`: what data managers call."""

from __future__ import annotations

from collections.abc import Callable

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation, common_options, dry_run_option, pass_invocation, trash_option, until
from sccache_dtool.cli.output import Column, field
from sccache_dtool.disk.names import key_label
from sccache_dtool.errors import CacheError, Exit, UsageError, translate
from sccache_dtool.protocol.reaping import Reaped


@click.command("init")
@click.argument("directory", required=False)
@common_options()
@pass_invocation
def init_command(now: Invocation, directory: str | None) -> None:
    """Set up a cache in DIRECTORY.

    The default is the directory of --cache-dir, or else dtool's own cache directory. If the group may write in
    DIRECTORY, the cache is shared with the group. Files in DIRECTORY are left alone. The root directory, home
    directories and dtool datasets are refused.
    """
    cache = now.cache(directory)
    made = cache.init()
    if not made:
        now.out.note(f"{cache.root} is a cache already")
    now.out.path("init", {"path": str(cache.root), "made": made}, str(cache.root))


@click.command("reap")
@click.option(
    "--holder",
    metavar="ID",
    help="End the leases of this holder, because you know that it is gone. `why` shows the ID.",
)
@dry_run_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@common_options()
@pass_invocation
def reap_command(now: Invocation, holder: str | None, dry_run: bool, yes: bool) -> int:
    """End the leases of processes and batch jobs that are gone.

    A lease is ended only if it is proved that its holder is gone. Nobody can prove that of a host that was switched
    off, or of a container that was deleted. If you know it, give --holder. If you are wrong, data can be removed while
    somebody reads it.
    """
    cache = now.cache()
    if holder is None:
        reaped = cache.reap(dry_run=dry_run)
    else:
        if not (dry_run or yes):
            cache.check()
            now.confirm(f"Are you sure that holder {holder} reads nothing any more?")
        reaped = cache.reap_holder(holder, dry_run=dry_run)
    print_reaped(now, reaped, dry_run)
    would = "would end" if dry_run else "ended"
    fields = {"leases": len(reaped.leases), "holders": len(reaped.holders), "failed": len(reaped.failed)}
    now.out.result("total", {**fields, "dry_run": dry_run}, f"{would} {output.count(len(reaped.leases), 'lease')}")
    return Exit.PARTIAL if reaped.failed else Exit.DONE


def print_reaped(now: Invocation, reaped: Reaped, dry_run: bool) -> None:
    """The leases that were ended, or would be."""
    for one in reaped.leases:
        fields = {"item": one.held.key, "lease": one.held.name, "by": one.by, "evidence": one.verdict.evidence}
        would = "would end the lease" if dry_run else "ended the lease"
        text = f"{would} of {one.by} on {key_label(one.held.key)}: {one.verdict.evidence}"
        now.out.result("reaped", {**fields, "dry_run": dry_run}, text)


@click.command("rm")
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@dry_run_option
@trash_option
@common_options()
@pass_invocation
def rm_command(now: Invocation, items: tuple[str, ...], dry_run: bool, trash: float | None) -> int:
    """Remove single items that are not in use."""
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


@click.command("pin")
@click.argument("items", nargs=-1, metavar="[ITEM]...")
@click.option(
    "--until", type=until, metavar="WHEN", help="End of the pin: 30d, or a date such as 2027-01-31. Default: never."
)
@common_options()
@pass_invocation
def pin_command(now: Invocation, items: tuple[str, ...], until: float | None) -> int:
    """Protect items from `clean`; without an ITEM, list the pins.

    `rm` removes pinned items nevertheless.
    """
    cache = now.cache()
    cache.check()
    if until is not None and not items:
        raise UsageError("--until needs an ITEM", hint="sc-dtool pin ITEM --until WHEN")
    if not items:
        rows = [
            {"item": pin.key, "name": key_label(pin.key), "until": output.moment(pin.until or None), "by": by}
            for pin, by in cache.pins()
        ]
        columns = [Column("NAME", field("name")), Column("KEY", lambda row: row["item"][:12])]
        columns += [Column("UNTIL", lambda row: row["until"] or "for good"), Column("BY", field("by"))]
        now.out.table("pin", rows, columns)
        if not rows:
            now.out.note("no item is pinned")
        return Exit.DONE

    def pin(item: str) -> None:
        key = cache.find(item)
        cache.pin(key, until)
        end = output.moment(until)
        text = f"pinned {key_label(key)} {f'until {end}' if end else 'for good'}"
        now.out.result("pinned", {"item": key, "until": end}, text)

    return _each(now, list(items), pin)


@click.command("unpin")
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@common_options()
@pass_invocation
def unpin_command(now: Invocation, items: tuple[str, ...]) -> int:
    """Undo `pin`: let `clean` remove these items again."""
    cache = now.cache()

    def unpin(item: str) -> None:
        key = cache.find(item)
        was = cache.unpin(key)
        text = f"{key_label(key)} is not pinned any more" if was else f"{key_label(key)} was not pinned"
        now.out.result("unpinned", {"item": key, "was_pinned": was}, text)

    return _each(now, list(items), unpin)


@click.command("restore")
@click.argument("items", nargs=-1, metavar="[ITEM]...")
@common_options()
@pass_invocation
def restore_command(now: Invocation, items: tuple[str, ...]) -> int:
    """Restore items from the trash; without an ITEM, list it.

    Items are in the trash if they were removed with --trash, or if config.toml sets [clean] trash.
    """
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
        now.out.note("the trash is empty; only items removed with --trash are kept in it")


def _each(now: Invocation, items: list[str], act: Callable[[str], None]) -> int:
    """Act on each; a failure does not stop the rest. All failed: that exit code; some: done in part."""
    codes = []
    for item in items:
        try:
            act(item)
        except (CacheError, OSError) as error:
            failure = error if isinstance(error, CacheError) else translate(error)
            now.out.error(failure)
            codes.append(failure.exit_code)
    if not codes:
        return Exit.DONE
    return codes[0] if len(codes) == len(items) else Exit.PARTIAL
