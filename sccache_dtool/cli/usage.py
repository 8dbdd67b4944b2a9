"""`du` and `summary`: the space that items take, and how much they are used. They only read."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from sccache_dtool import as_rows
from sccache_dtool.cache import Cache
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Item
from sccache_dtool.cli import output
from sccache_dtool.cli.inspect import LEASES, SIZE, USES, item_fields, last_use
from sccache_dtool.cli.options import DURATION, Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column, Fields
from sccache_dtool.cli.tasks import by_all_tasks
from sccache_dtool.dataset_totals import DatasetItem, by_dataset, dataset_item
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.lots.model import Usage
from sccache_dtool.policy.totals import OfLot, Sums, add_up, total
from sccache_dtool.units import short_duration

if TYPE_CHECKING:
    from rich.table import Table

    from sccache_dtool.catalog.loose import LooseDirectory
    from sccache_dtool.lots.lookup import Lookup
    from sccache_dtool.policy.shares import Shares

_ITEMS = Column("ITEMS", "items", right=True)
_ENTRIES = Column("FILES", "entries", right=True)
_LOOSE = Column("LOOSE", "loose_files", right=True)
_SAVED = Column("SAVED", lambda row: output.duration(row["saved_seconds"]), right=True)

#: Number of items shown without --top.
_SHOWN = 50


def _dataset_name(row: Fields) -> str:
    if row["dataset"] is None:
        return "(no dataset)"
    return f"{row['name']} {row['dataset']}".strip()


@click.command("du")
@click.option(
    "--by",
    type=click.Choice(["item", "dataset", "user", "lot"]),
    default="item",
    show_default=True,
    help="What each line shows.",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Show the N largest. Default: {_SHOWN}; with -f json or tsv: all, unsorted.",
)
@common_options()
@pass_invocation
@by_all_tasks
def du_command(call: Invocation, by: str, top: int | None) -> None:
    """Show the space that items take, and how much is reclaimable.

    Space is reclaimable if no lease, pin, exclusion or share of a lot protects it. Loose files are files that dtool
    wrote into the cache without sc-dtool's plugin. Sizes are the sizes of the files, not of the disk blocks.

    \b
    Examples:
      sc-dtool du --top 10
      sc-dtool du --by user
    """
    cache = call.cache()
    moment = time.time()
    shares = cache.shares()
    lookup = None if shares is None else cache.lookup(shares.lots)
    if by == "item" and top is None and call.format != "human":
        whole, left = _every_item(call, cache, lookup)
    elif by == "item":
        whole, left = _largest_items(call, cache, _SHOWN if top is None else top, moment, lookup)
    elif by == "lot":
        whole, left = _by_lot(call, cache, top, shares)
    else:
        whole, left = _summed_up(call, cache, by, top, moment, lookup)
    fields = as_rows.total(whole, left)
    files, loose_bytes = fields["loose_files"], fields["loose_bytes"]
    if shares is not None and lookup is not None:
        of_lots = _reclaimable(shares, lookup, whole, left)
        most = sum(own.reclaimable_items for lot, own in whole.of_lots.items() if of_lots[lot])
        fields["reclaimable_bytes"] = sum(of_lots.values())
        fields["reclaimable_items"] = min(fields["reclaimable_items"], most)
    loose = f", of which {output.size(loose_bytes)} in {output.count(files, 'loose file')}" if files else ""
    call.out.result(
        "total",
        fields,
        f"{output.count(whole.items, 'item')}, {output.size(fields['bytes'])}{loose}; not in use and reclaimable: "
        f"{'' if shares is None else 'at most '}{output.count(fields['reclaimable_items'], 'item')}, "
        f"{output.size(fields['reclaimable_bytes'])}",
    )


def _reclaimable(shares: Shares, lookup: Lookup, whole: Sums, left: Sequence[LooseDirectory]) -> dict[str, int]:
    """At most how many bytes of each lot `clean --all` would remove."""
    from sccache_dtool.lots.usage import of_loose, old_loose
    from sccache_dtool.lots.usage import total as total_of
    from sccache_dtool.policy.shares import reclaimable

    used = {lot: Usage(own.bytes, own.entries) for lot, own in whole.of_lots.items()}
    idle, old = {lot: own.reclaimable_bytes for lot, own in whole.of_lots.items()}, old_loose(left, lookup)
    both = {lot: idle.get(lot, 0) + old.get(lot, 0) for lot in idle.keys() | old.keys()}
    return reclaimable(shares, total_of([used, of_loose(left, lookup)]), both, time.time())


def _every_item(call: Invocation, cache: Cache, lookup: Lookup | None) -> tuple[Sums, list[LooseDirectory]]:
    """Print each item during the scan, so that none is kept in memory."""
    parts = []
    spared = cache.spared()
    for found in cache.survey(_present):
        call.out.table("item", (item_fields(item) for item in found))
        parts.append(add_up(0, iter(found), spared, lookup))
    left = cache.reclaimable_loose()
    call.out.table("item", map(_loose_fields, left))
    return total(parts, 0), left


def _present(items: Iterator[Item]) -> list[Item]:
    return [item for item in items if item.copies]


def _largest_items(
    call: Invocation, cache: Cache, top: int, moment: float, lookup: Lookup | None
) -> tuple[Sums, list[LooseDirectory]]:
    """Print the largest items. Only their uses are counted, unless a program reads the total of all."""
    fold = functools.partial(add_up, top, spared=cache.spared(), lookup=lookup)
    whole = total(cache.survey(fold, uses=call.format != "human"), top)
    left = cache.reclaimable_loose()
    largest: list[Item | LooseDirectory] = [*whole.largest, *sorted(left, key=lambda loose: -loose.bytes)[:top]]
    largest.sort(key=lambda one: -one.bytes)
    rows = [item_fields(cache.item(one.key)) if isinstance(one, Item) else _loose_fields(one) for one in largest[:top]]
    call.out.table("item", rows, [Column("ITEM", "name"), SIZE, LEASES, USES, last_use(moment)])
    more = whole.items + len(left) - len(rows)
    if more and top:
        call.out.note(f"{more:,} more are not shown, none of them larger; to show more: --top {2 * top}")
    return whole, left


def _loose_fields(loose: LooseDirectory) -> dict[str, Any]:
    """The fields of an `item` record, for a directory of loose files."""
    return {
        "item": loose.directory,
        "name": f"{loose.directory} (loose files)",
        "bytes": loose.bytes,
        "entries": loose.files,
        "copies": 0,
        "leases": 0,
        "uses": 0,
        "last_use": output.moment(loose.newest),
        "state": "loose",
        "_idle_since": loose.newest,
    }


def _summed_up(
    call: Invocation, cache: Cache, by: str, top: int | None, moment: float, lookup: Lookup | None
) -> tuple[Sums, list[LooseDirectory]]:
    listed = list(cache.scan_with_facts())
    left = cache.reclaimable_loose()
    if by == "dataset":
        rows = by_dataset(
            (dataset_item(item, facts_of_copies) for item, facts_of_copies in listed if item.copies), left
        )
        columns = [Column("DATASET", _dataset_name), SIZE, _ITEMS, _LOOSE, LEASES, USES, last_use(moment)]
    else:
        rows = _by_user(listed, left)
        columns = [Column("FETCHED BY", "user"), SIZE, _ITEMS, LEASES, USES]
    rows.sort(key=lambda row: row["bytes"], reverse=True)
    call.out.table(by, rows[:top], columns)
    return add_up(0, (item for item, _ in listed if item.copies), cache.spared(), lookup), left


def _by_lot(
    call: Invocation, cache: Cache, top: int | None, shares: Shares | None
) -> tuple[Sums, list[LooseDirectory]]:
    """Print the lots during the scan, of which nothing but sums is kept."""
    from sccache_dtool.lots.usage import of_loose, old_loose

    lookup = cache.lookup(None if shares is None else shares.lots)
    fold = functools.partial(add_up, 0, spared=cache.spared(), lookup=lookup)
    whole = total(cache.survey(fold, uses=call.format != "human"), 0)
    left = cache.reclaimable_loose()
    loose = of_loose(left, lookup)
    if shares is None:
        old = old_loose(left, lookup)
        going = {lot: own.reclaimable_bytes + old.get(lot, 0) for lot, own in whole.of_lots.items()}
    else:
        going = _reclaimable(shares, lookup, whole, left)
    rows: list[dict[str, Any]] = [
        {
            "lot": lot,
            "bytes": own.bytes + used.bytes,
            "entries": own.entries + used.objects,
            "copies": own.copies,
            "loose_files": used.objects,
            "loose_bytes": used.bytes,
            "leases": own.leases,
            "reclaimable_bytes": going.get(lot, 0),
        }
        for lot in sorted(whole.of_lots.keys() | loose.keys())
        for own, used in [(whole.of_lots.get(lot, OfLot()), loose.get(lot, Usage()))]
    ]
    rows.sort(key=lambda row: row["bytes"], reverse=True)
    reclaimable = Column("RECLAIMABLE", lambda row: output.size(row["reclaimable_bytes"]), right=True)
    columns = [
        Column("LOT", "lot"),
        SIZE,
        Column("COPIES", "copies", right=True),
        _ENTRIES,
        _LOOSE,
        LEASES,
        reclaimable,
    ]
    call.out.table("lot", rows[:top], columns)
    return whole, left


def _by_user(
    listed: Iterable[tuple[Item, Sequence[ItemFacts]]], left: Iterable[LooseDirectory]
) -> list[dict[str, Any]]:
    users: dict[str, dict[str, Any]] = {}

    def of(user: str) -> dict[str, Any]:
        return users.setdefault(user, {"user": user, "bytes": 0, "items": 0, "leases": 0, "uses": 0})

    for item, facts_of_copies in listed:
        for copy, facts in zip(item.copies, facts_of_copies, strict=True):
            sums = of(facts.user)
            sums["bytes"] += copy.generation.bytes
            sums["items"] += 1
            sums["leases"] += len(copy.held)
            sums["uses"] += item.uses
    for loose in left:
        for uid, size in loose.bytes_of.items():
            of(user_name(uid))["bytes"] += size
    return list(users.values())


# -- summary -----------------------------------------------------------------------------------------------------------


@click.command("summary")
@click.option(
    "--by", type=click.Choice(["dataset", "item"]), default="dataset", show_default=True, help="What each line shows."
)
@click.option(
    "--unused",
    type=DURATION,
    default="30d",
    show_default=True,
    help="An item counts as unused after TIME without a use.",
)
@common_options()
@pass_invocation
@by_all_tasks
def summary_command(call: Invocation, by: str, unused: float) -> None:
    """Show space, uses, and the download time saved by the cache.

    Time is saved by each use that finds its item in the cache: as much as the item's download took. On a terminal, bars
    show how full the cache is and what has been idle, and a line its size over the last year.

    \b
    Example:
      sc-dtool summary --by item --unused 90d
    """
    cache = call.cache()
    moment = time.time()
    listed = [dataset_item(item, facts_of_copies) for item, facts_of_copies in cache.scan_with_facts()]
    left = cache.loose_directories(untouched_since=moment - unused)
    if by == "dataset":
        rows = by_dataset(listed, left)
        columns = [Column("DATASET", _dataset_name), SIZE, _ITEMS, _LOOSE, LEASES, USES, last_use(moment), _SAVED]
        call.out.table("dataset", rows, columns)
    else:
        _print_items(call, listed, moment)
    _print_totals(call, cache, listed, left, moment, unused)


def _print_items(call: Invocation, listed: Iterable[DatasetItem], moment: float) -> None:
    rows = [
        {
            **item_fields(one.item),
            "dataset": one.dataset or None,
            "relpath": one.relpath or None,
            "saved_seconds": None if one.saved is None else round(one.saved, 3),
        }
        for one in listed
        if not one.is_view
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
    call.out.table("item", rows, columns)


def _print_totals(
    call: Invocation,
    cache: Cache,
    listed: Sequence[DatasetItem],
    left: Sequence[LooseDirectory],
    moment: float,
    unused: float,
) -> None:
    present = [one.item for one in listed if one.item.copies and not one.is_view]
    idle = [item for item in present if not item.leases]
    old = [item for item in idle if moment - item.idle_since >= unused]
    old_files = sum(loose.old_files for loose in left)
    old_bytes = sum(loose.old_bytes for loose in left)
    used = [one for one in listed if not one.is_view]
    loose_bytes = sum(one.bytes for one in left)
    loose_files = sum(one.files for one in left)
    fields: dict[str, Any] = {
        "root": str(cache.root),
        "items": len(present),
        "bytes": sum(item.bytes for item in present) + loose_bytes,
        "free_bytes": cache.free_space(),
        "loose_files": loose_files,
        "loose_bytes": loose_bytes,
        "unused_seconds": unused,
        "unused_items": len(old),
        "unused_bytes": sum(item.bytes for item in old) + old_bytes,
        "idle_items": len(idle),
        "idle_bytes": sum(item.bytes for item in idle),
        "leases": sum(one.item.leases for one in used),
        "uses": sum(one.item.uses for one in used),
        "saved_seconds": round(sum(one.saved or 0.0 for one in used), 3),
        "saved_unknown_uses": sum(one.item.uses for one in used if one.saved is None),
    }
    size = output.size
    gone = fields["saved_unknown_uses"]
    and_more = f"; not counted: {output.count(gone, 'use')} of evicted items" if gone else ""
    lines = [
        f"cache   {fields['root']}",
        f"space   {size(fields['bytes'])}: {output.count(len(present), 'item')}, "
        f"and {size(loose_bytes)} in {output.count(loose_files, 'loose file')}; {output.free(fields['free_bytes'])}",
        f"unused  {size(fields['unused_bytes'])} for {short_duration(unused)}: {output.count(len(old), 'item')}, "
        f"{output.count(old_files, 'loose file')}",
        f"idle    {size(fields['idle_bytes'])}: {output.count(len(idle), 'item')} not in use",
        f"uses    {fields['uses']:,} so far, {fields['leases']:,} of them not finished",
        f"saved   {short_duration(fields['saved_seconds'])} of download time by cache hits{and_more}",
    ]
    call.out.result("summary", fields, *lines)
    call.out.drawing(lambda: _drawing(cache, present, left, moment))


def _drawing(cache: Cache, present: Sequence[Item], left: Sequence[LooseDirectory], moment: float) -> Table:
    from sccache_dtool.cli import drawing

    return drawing.summary(cache, present, left, moment)
