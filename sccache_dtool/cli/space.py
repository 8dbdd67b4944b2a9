"""`du` and `summary`: what takes up how much space, who uses it, and what it is good for. Nothing is changed."""

from __future__ import annotations

import pwd
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.datasets import Told, by_dataset, is_view, tell
from sccache_dtool.cli.looking import LEASES, SIZE, USES, item_fields, last_use
from sccache_dtool.cli.options import Invocation, common_options, duration, pass_invocation
from sccache_dtool.cli.output import Column, Fields, field
from sccache_dtool.items import Item
from sccache_dtool.units import short_duration

if TYPE_CHECKING:
    from sccache_dtool.evict.loose import Loose

_ITEMS = Column("ITEMS", field("items"), right=True)
_LOOSE = Column("LOOSE", field("loose_files"), right=True)
_SAVED = Column("SAVED", lambda row: _duration(row["saved_seconds"]), right=True)
_MONTH = 30 * 86_400.0


def _duration(seconds: float | None) -> str:
    return "?" if seconds is None else short_duration(seconds)


def _dataset_name(row: Fields) -> str:
    if row["dataset"] is None:
        return "(no dataset)"
    return f"{row['name']} {row['dataset']}".strip()


@click.command("du")
@click.option(
    "--by", type=click.Choice(["item", "dataset", "user"]), default="item", show_default=True, help="Sum up by what."
)
@common_options()
@pass_invocation
def du_command(now: Invocation, by: str) -> None:
    """Show how much space the cache takes, who uses it, and what could be reclaimed.

    Files that dtool itself has left in the cache, without the plugin, are counted as loose.
    """
    cache = now.cache()
    found = [item for item in cache.items() if item.copies]
    left = cache.loose()
    moment = time.time()
    if by == "item":
        rows = [{**item_fields(item), "_idle_since": item.idle_since} for item in found] + _by_directory(left)
        columns = [Column("ITEM", field("name")), SIZE, LEASES, USES, last_use(moment)]
    elif by == "dataset":
        rows = by_dataset((tell(cache, item) for item in found), left)
        columns = [Column("DATASET", _dataset_name), SIZE, _ITEMS, _LOOSE, LEASES, USES, last_use(moment)]
    else:
        rows = _by_user(cache, found, left)
        columns = [Column("FETCHED BY", field("user")), SIZE, _ITEMS, LEASES, USES]
    rows.sort(key=lambda row: row["bytes"], reverse=True)
    now.out.table(by, rows, columns)
    idle = [item for item in found if not item.leases]
    loose_bytes = sum(one.bytes for one in left)
    total = {
        "items": len(found),
        "bytes": sum(item.bytes for item in found) + loose_bytes,
        "leases": sum(item.leases for item in found),
        "uses": sum(item.uses for item in found),
        "reclaimable_items": len(idle),
        "reclaimable_bytes": sum(item.bytes for item in idle) + loose_bytes,
        "loose_files": len(left),
        "loose_bytes": loose_bytes,
    }
    loose = f", of which {output.size(loose_bytes)} in {output.count(len(left), 'loose file')}" if left else ""
    now.out.result(
        "total",
        total,
        f"{output.count(total['items'], 'item')}, {output.size(total['bytes'])}{loose}; "
        f"not in use and reclaimable: {output.count(len(idle), 'item')}, {output.size(total['reclaimable_bytes'])}",
    )


def _by_directory(left: Iterable[Loose]) -> list[dict[str, Any]]:
    """Loose files beside items: a record for each of their directories, with the same fields."""
    rows: dict[str, dict[str, Any]] = {}
    for one in left:
        row = rows.setdefault(
            one.directory,
            {
                "item": one.directory,
                "name": f"{one.directory} (loose files)",
                "bytes": 0,
                "entries": 0,
                "copies": 0,
                "leases": 0,
                "uses": 0,
                "last_use": None,
                "state": "loose",
                "_idle_since": 0.0,
            },
        )
        row["bytes"] += one.bytes
        row["entries"] += 1
        row["_idle_since"] = max(row["_idle_since"], one.newest)
    for row in rows.values():
        row["last_use"] = output.moment(row["_idle_since"])
    return list(rows.values())


def _by_user(cache: Cache, found: Iterable[Item], left: Iterable[Loose]) -> list[dict[str, Any]]:
    users: dict[str, dict[str, Any]] = {}

    def of(user: str) -> dict[str, Any]:
        return users.setdefault(user, {"user": user, "bytes": 0, "items": 0, "leases": 0, "uses": 0})

    for item in found:
        for copy in item.copies:
            sums = of(str(cache.facts(copy).get("by", "?")).partition("@")[0])
            sums["bytes"] += copy.generation.bytes
            sums["items"] += 1
            sums["leases"] += len(copy.held)
            sums["uses"] += item.uses
    for one in left:
        of(_user(one.uid))["bytes"] += one.bytes
    return list(users.values())


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# -- summary -----------------------------------------------------------------------------------------------------------


@click.command("summary")
@click.option(
    "--by", type=click.Choice(["dataset", "item"]), default="dataset", show_default=True, help="What each line is of."
)
@click.option(
    "--unused", type=duration, default="30d", show_default=True, metavar="TIME", help="What counts as unused: 30d."
)
@common_options()
@pass_invocation
def summary_command(now: Invocation, by: str, unused: float) -> None:
    """Show what the cache is good for: space, what is unused, how often each was used, how much time that saved."""
    cache = now.cache()
    told = [tell(cache, item) for item in cache.items()]
    left = cache.loose()
    moment = time.time()
    if by == "dataset":
        rows = by_dataset(told, left)
        columns = [Column("DATASET", _dataset_name), SIZE, _ITEMS, _LOOSE, LEASES, USES, last_use(moment), _SAVED]
        now.out.table("dataset", rows, columns)
    else:
        _print_items(now, told, moment)
    _print_totals(now, cache, told, left, moment, unused)


def _print_items(now: Invocation, told: Iterable[Told], moment: float) -> None:
    rows = [
        {
            **item_fields(one.item),
            "dataset": one.dataset or None,
            "relpath": one.relpath or None,
            "saved_seconds": None if one.saved is None else round(one.saved, 3),
            "_idle_since": one.item.idle_since,
        }
        for one in told
        if not is_view(one.item)
    ]
    rows.sort(key=lambda row: (-row["uses"], str(row["name"])))
    columns = [
        Column("ITEM", lambda row: row["relpath"] or row["name"]),
        Column("DATASET", lambda row: (row["dataset"] or "")[:8]),
        SIZE,
        LEASES,
        USES,
        last_use(moment),
        _SAVED,
    ]
    now.out.table("item", rows, columns)


def _print_totals(
    now: Invocation, cache: Cache, told: Sequence[Told], left: Sequence[Loose], moment: float, unused: float
) -> None:
    present = [one.item for one in told if one.item.copies and not is_view(one.item)]
    idle = [item for item in present if not item.leases]
    old = [item for item in idle if moment - item.idle_since >= unused]
    old_left = [one for one in left if moment - one.newest >= unused]
    used = [one for one in told if not is_view(one.item)]
    loose_bytes = sum(one.bytes for one in left)
    fields: dict[str, Any] = {
        "root": str(cache.root),
        "items": len(present),
        "bytes": sum(item.bytes for item in present) + loose_bytes,
        "free_bytes": cache.free_space(),
        "loose_files": len(left),
        "loose_bytes": loose_bytes,
        "unused_seconds": unused,
        "unused_items": len(old),
        "unused_bytes": sum(item.bytes for item in old) + sum(one.bytes for one in old_left),
        "idle_items": len(idle),
        "idle_bytes": sum(item.bytes for item in idle),
        "leases": sum(one.item.leases for one in used),
        "uses": sum(one.item.uses for one in used),
        "saved_seconds": round(sum(one.saved or 0.0 for one in used), 3),
        "saved_unknown_uses": sum(one.item.uses for one in used if one.saved is None),
    }
    size = output.size
    gone = fields["saved_unknown_uses"]
    and_more = f"; not counted: {output.count(gone, 'use')} of what was evicted" if gone else ""
    lines = [
        f"cache   {fields['root']}",
        f"space   {size(fields['bytes'])}: {output.count(len(present), 'item')}, "
        f"and {size(loose_bytes)} in {output.count(len(left), 'loose file')}; {size(fields['free_bytes'])} free",
        f"unused  {size(fields['unused_bytes'])} for {short_duration(unused)}: {output.count(len(old), 'item')}, "
        f"{output.count(len(old_left), 'loose file')}",
        f"idle    {size(fields['idle_bytes'])}: {output.count(len(idle), 'item')} that nobody uses now",
        f"uses    {fields['uses']:,} so far, {fields['leases']:,} of them now",
        f"saved   {short_duration(fields['saved_seconds'])} of fetching, by all uses but those that fetched{and_more}",
    ]
    now.out.result("summary", fields, "\n".join(lines))
