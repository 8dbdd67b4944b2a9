"""`ls`, `status`, `why`, `log`, `dir`: commands that only read."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from sccache_dtool import __version__
from sccache_dtool.cache import Cache
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Item
from sccache_dtool.cli import output
from sccache_dtool.cli.options import DURATION, Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column, Fields
from sccache_dtool.cli.tasks import by_all_tasks
from sccache_dtool.disk.names import key_label
from sccache_dtool.liveness import State
from sccache_dtool.patterns import matches, note_matching
from sccache_dtool.policy.totals import add_up, total

if TYPE_CHECKING:
    from sccache_dtool.protocol.reaping import Judged

NAME = Column("NAME", "name")
KEY = Column("KEY", lambda row: row["item"][:12])
SIZE = Column("SIZE", lambda row: output.size(row["bytes"]), right=True)
LEASES = Column("LEASES", "leases", right=True)
USES = Column("USES", "uses", right=True)


def last_use(now: float) -> Column:
    """A column that shows the last use, for rows with `_idle_since` (seconds since 1970) and, if any, `leases`."""
    return Column("LAST USE", lambda row: "in use" if row.get("leases") else output.ago(row["_idle_since"], now))


def item_fields(item: Item) -> dict[str, Any]:
    """The fields of an `item` record, which all listings have."""
    return {
        "item": item.key,
        "name": item.label,
        "bytes": item.bytes,
        "entries": sum(copy.generation.entries for copy in item.copies),
        "copies": len(item.copies),
        "leases": item.leases,
        "uses": item.uses,
        "last_use": output.moment(item.idle_since),
        "state": _state(item),
        "_idle_since": item.idle_since,
    }


def _state(item: Item) -> str:
    if not item.copies:
        return "evicted"
    return "in-use" if item.leases else "idle"


_SORTS: dict[str, Callable[[Item], Any]] = {
    "name": lambda item: item.label,
    "size": lambda item: -item.bytes,
    "uses": lambda item: -item.uses,
    "last-use": lambda item: -item.idle_since,
}


@click.command("ls")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="WHAT",
    help="Show only items in this state (idle, in-use, evicted), or with a name that matches this pattern ('hg*'). "
    "Repeatable: all filters must match.",
)
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    help="Sort by this. Default: name; with -f json or tsv: unsorted.",
)
@click.option(
    "-l", "--long", is_flag=True, help="Show the source too. This is slower: it reads one file for each item."
)
@common_options()
@pass_invocation
@by_all_tasks
def ls_command(now: Invocation, filters: tuple[str, ...], sort: str | None, long: bool) -> None:
    """List the items with their keys, sizes and states.

    An item is in-use if it has a lease, idle if it has none, and evicted if only its history is left.

    \b
    Examples:
      sc-dtool ls --filter in-use --sort size
      sc-dtool ls --filter 'hg*' -f json
    """
    cache = now.cache()
    moment = time.time()
    matched: set[str] = set()
    found: Iterable[Item] = _filtered(cache, filters, matched)
    if sort or now.format == "human":
        found = sorted(found, key=_SORTS[sort or "name"])
    columns = [NAME, KEY, SIZE, Column("STATE", "state"), USES, last_use(moment)]
    if long:
        columns.append(Column("SOURCE", lambda row: " ".join(row["source"])))
    now.out.table("item", (_listed(cache, item) if long else item_fields(item) for item in found), columns)
    for pattern in dict.fromkeys(filters):
        if pattern not in _STATES and pattern not in matched:
            now.out.note(f"no item has a name that matches {pattern!r}")


#: States that `--filter` accepts; every other word is a pattern.
_STATES = frozenset({"idle", "in-use", "evicted"})


def _filtered(cache: Cache, filters: tuple[str, ...], matched: set[str]) -> Iterator[Item]:
    """The items that match all filters. Adds to `matched` each pattern that matches some name."""
    for found, also_matched in cache.survey(functools.partial(_passing, filters)):
        matched |= also_matched
        yield from found


def _passing(filters: tuple[str, ...], items: Iterator[Item]) -> tuple[list[Item], set[str]]:
    passing, matched = [], set[str]()
    patterns = [word for word in filters if word not in _STATES]
    states = [word for word in filters if word in _STATES]
    for item in items:
        if not item.copies and "evicted" not in filters:
            continue
        note_matching(patterns, item.label, matched)
        if all(_state(item) == word for word in states) and all(matches(one, item.label) for one in patterns):
            passing.append(item)
    return passing, matched


def _listed(cache: Cache, item: Item) -> dict[str, Any]:
    copy = next((one for one in item.copies if not one.closed), None)  # a closed copy is being moved to the trash
    facts = cache.facts(copy) if copy else ItemFacts()
    path = cache.path(copy) if copy else None
    return {
        **item_fields(item),
        "source": list(facts.source or ()),
        "path": None if path is None else str(path),
        "fetched": facts.fetched,
        "fetch_seconds": facts.seconds,
        "fetched_by": facts.by,
    }


@click.command("status")
@click.argument("item", required=False)
@common_options()
@pass_invocation
@by_all_tasks
def status_command(now: Invocation, item: str | None) -> None:
    """Show the state of the cache, or of one ITEM and its holders.

    ITEM is a name, a key, the beginning of a key, or a path in the cache.

    \b
    Examples:
      sc-dtool status
      sc-dtool status hg38.tar.gz
    """
    cache = now.cache()
    if item is None:
        _cache_status(now, cache)
        return
    found = cache.item(cache.find(item))
    fields = _listed(cache, found)
    lines = [f"{found.label}: {_state(found)}", f"key      {found.key}"]
    if found.copies:
        lines += [
            f"source   {' '.join(fields['source']) or 'none'}",
            f"path     {fields['path'] or 'none'}",
            f"size     {output.size(found.bytes)}, files and directories: {fields['entries']:,}",
            f"fetched  {_fetched(fields)}",
        ]
    lines.append(f"uses     {found.uses:,}, {found.leases:,} of them not finished")
    now.out.result("item", fields, *lines)
    _print_leases(now, cache.judged(found))


def _fetched(fields: Fields) -> str:
    if fields["fetched"] is None:
        return "at an unknown time"
    took = "" if fields["fetch_seconds"] is None else f" in {fields['fetch_seconds']} s"
    return f"{fields['fetched']} by {fields['fetched_by'] or 'an unknown user'}{took}"


def _cache_status(now: Invocation, cache: Cache) -> None:
    glance = cache.overview()
    for error in cache.settings.mistakes:
        now.out.warning(error.message)
    sums = total(cache.survey(functools.partial(add_up, 0)), 0)
    fields = {
        "root": str(glance.root),
        "id": glance.id,
        "items": sums.items,
        "bytes": sums.bytes,
        "free_bytes": glance.free,
        "items_in_use": sums.busy_items,
        "leases": sums.leases,
        "holders": glance.holders,
        "fetching": glance.fetching,
        "continuable": glance.continuable,
        "trashed": glance.trashed,
        "uses": sums.uses,
        "program": __version__,
    }
    continuable = (
        f"; {glance.continuable:,} interrupted, which can be continued: see `sc-dtool transfers`"
        if glance.continuable
        else ""
    )
    lines = [
        f"cache     {glance.root}",
        f"items     {sums.items:,}, {output.size(sums.bytes)}; {output.free(glance.free)}",
        f"in use    {output.count(sums.busy_items, 'item')}, {output.count(sums.leases, 'lease')}",
        f"holders   {glance.holders:,}",
        f"fetching  {glance.fetching:,}{continuable}",
        f"in trash  {glance.trashed:,}",
        f"uses      {fields['uses']:,} so far",
    ]
    now.out.result("cache", fields, *lines)


@click.command("why")
@click.argument("item")
@common_options()
@pass_invocation
def why_command(now: Invocation, item: str) -> None:
    """Show who holds ITEM, since when, and how that is known.

    ITEM is a name, a key, the beginning of a key, or a path in the cache. Each holder is alive, dead or unknown.
    Unknown counts as alive.

    \b
    Example:
      sc-dtool why hg38.tar.gz
    """
    cache = now.cache()
    found = cache.item(cache.find(item))
    fields = {"item": found.key, "name": found.label, "state": _state(found), "leases": found.leases}
    if not found.copies:
        reason = (
            f"{found.label} is not in the cache any more; its last use ended {output.ago(found.last_end, time.time())}"
        )
    elif not found.leases:
        reason = (
            f"{found.label} is not in use, so `clean` may remove it; "
            f"its last use ended {output.ago(found.idle_since, time.time())}"
        )
    else:
        reason = f"{found.label} is kept: {output.count(found.leases, 'lease')} held"
    now.out.result("why", {**fields, "reason": reason}, reason)
    _print_leases(now, cache.judged(found))


def lease_fields(one: Judged) -> dict[str, Any]:
    """The fields of a `lease` record."""
    return {
        "lease": one.held.name,
        "item": one.held.key,
        "holder": None if one.held.lease is None else one.held.lease.holder,
        "by": one.by,
        "since": output.moment(one.since),
        "verdict": str(one.verdict.state),
        "evidence": one.verdict.evidence,
    }


def _print_leases(now: Invocation, judged: list[Judged]) -> None:
    moment = time.time()
    for one in judged:
        fields = lease_fields(one)
        since = "an unknown time" if one.since is None else output.ago(one.since, moment)
        human = f"  {one.by}, since {since}: {one.verdict.state}, {one.verdict.evidence}"
        now.out.result("lease", fields, human)
        if one.verdict.state is State.UNKNOWN and one.held.lease is not None:
            command = now.command("reap", "--holder", one.holder_id)
            now.out.note(f"    if you know that it has ended: {command}")


@click.command("log")
@click.argument("item", required=False)
@click.option("--since", type=DURATION, help="Show only uses that ended within the last TIME: 7d.")
@common_options()
@pass_invocation
def log_command(now: Invocation, item: str | None, since: float | None) -> None:
    """Show the finished uses of ITEM, or of all items.

    ITEM is a name, a key, the beginning of a key, or a path in the cache.

    \b
    Example:
      sc-dtool log --since 7d
    """
    cache = now.cache()
    keys = [key for part in cache.survey(_used) for key in part] if item is None else [cache.find(item)]
    earliest = 0.0 if since is None else time.time() - since
    columns = [
        Column("END", "end"),
        Column("LASTED", lambda row: output.duration(row["seconds"]), right=True),
        Column("ITEM", "name"),
        Column("BY", "by"),
        Column("HOW", "how"),
    ]
    rows = sorted(_uses(cache, keys, earliest), key=lambda row: row["_end"])
    empty = "no use has ended yet" if since is None else "no use has ended in that time"
    now.out.table("use", rows, columns, empty)


def _used(items: Iterator[Item]) -> list[str]:
    return [item.key for item in items if item.finished_uses]


def _uses(cache: Cache, keys: list[str], earliest: float) -> Iterator[dict[str, Any]]:
    for key in keys:
        for use in cache.uses(key):
            if use.end >= earliest:
                yield {
                    "item": key,
                    "name": key_label(key),
                    "since": output.moment(use.since),
                    "end": output.moment(use.end),
                    "_end": use.end,
                    "seconds": None if use.since is None else round(max(0.0, use.end - use.since), 3),
                    "by": use.by,
                    "how": use.how,
                    "lease": use.lease,
                }


@click.command("dir")
@common_options()
@pass_invocation
def dir_command(now: Invocation) -> None:
    """Print the cache's directory.

    It is the directory of --cache-dir, or else of $DTOOL_CACHE_DIRECTORY, or else dtool's own cache directory. The exit
    code is 10 if there is no cache.

    \b
    Example:
      cd "$(sc-dtool dir)"
    """
    cache = now.cache()
    cache.check()
    now.out.path("dir", {"path": str(cache.root)}, str(cache.root))
