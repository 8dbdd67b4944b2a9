"""`ls`, `status`, `why`, `log`, `dir`: commands that only read."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from sccache_dtool import __version__, as_rows
from sccache_dtool.cache import Cache
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Item
from sccache_dtool.cli import output
from sccache_dtool.cli.options import DURATION, Invocation, common_options, pass_invocation, user_options
from sccache_dtool.cli.output import Column, Fields
from sccache_dtool.cli.tasks import by_all_tasks
from sccache_dtool.disk.names import key_label
from sccache_dtool.errors import UsageError
from sccache_dtool.liveness import State
from sccache_dtool.patterns import matches, note_matching
from sccache_dtool.policy.totals import add_up, total

if TYPE_CHECKING:
    from sccache_dtool.catalog.holdings import Holding
    from sccache_dtool.fetch.transfers import Transfer
    from sccache_dtool.lots.lookup import Lookup
    from sccache_dtool.protocol.reaping import Judged

NAME = Column("NAME", "name")
KEY = Column("KEY", lambda row: row["item"][:12])
SIZE = Column("SIZE", lambda row: output.size(row["bytes"]), right=True)
LEASES = Column("LEASES", "leases", right=True)
USES = Column("USES", "uses", right=True)


def last_use(now: float) -> Column:
    """A column that shows the last use, for rows with `_idle_since` (seconds since 1970) and, if any, `leases`."""
    return Column(
        "LAST USE", lambda row: "in use" if row.get("leases") else output.ago(row["_idle_since"] or None, now)
    )


def item_fields(item: Item) -> dict[str, Any]:
    """The fields of an `item` record, which all listings have."""
    return {**as_rows.item(item), "_idle_since": item.idle_since}


def _state(item: Item, fetch: Transfer | None = None) -> str:
    return "fetching" if fetch is not None and not item.copies else as_rows.state(item)


def fetch_fields(fetch: Transfer | None) -> dict[str, Any]:
    """Who fetches an item, and how far, for records of items."""
    return {
        "fetching_by": None if fetch is None else fetch.who,
        "fetching_percent": None if fetch is None or fetch.percent is None else round(fetch.percent, 1),
    }


def being_fetched(fetch: Transfer) -> str:
    """``being fetched by ada@login1, Slurm job 4711, 24 %``."""
    how_far = output.size(fetch.bytes) if fetch.percent is None else f"{fetch.percent:.0f} %"
    return f"being fetched by {fetch.who}, {how_far if fetch.bytes else fetch.state}"


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
    help="Show only items in this state (idle, in-use, evicted, fetching), of this lot (lot:NAME), or with a name that "
    "matches this pattern ('hg*'). Repeatable: all filters must match.",
)
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    help="Sort by this. Default: name; with -f json or tsv: unsorted.",
)
@click.option(
    "-l", "--long", is_flag=True, help="Show the source too. This is slower: it reads one file for each item."
)
@user_options
@common_options()
@pass_invocation
@by_all_tasks
def ls_command(call: Invocation, filters: tuple[str, ...], sort: str | None, long: bool, user: str | None) -> None:
    """List the items with their keys, sizes and states.

    An item is in-use if it has a lease, idle if it has none, and evicted if only its history is left. One that is not
    in the cache yet is fetching while it is being fetched.

    \b
    Examples:
      sc-dtool ls --filter in-use --sort size
      sc-dtool ls --filter 'hg*' -f json
      sc-dtool ls --mine
    """
    cache = call.cache()
    moment = time.time()
    matched: set[str] = set()
    fetches = cache.fetches()
    held: dict[str, list[Holding]] = {}
    for one in () if user is None else cache.holdings(user):
        held.setdefault(one.item.key, []).append(one)
    lots = [cache.lookup(only=word.removeprefix(_LOT)) for word in filters if word.startswith(_LOT)]
    filters = tuple(word for word in filters if not word.startswith(_LOT))
    found: Iterable[Item] = _filtered(cache, filters, fetches, matched, lots)
    if user is not None:
        found = (item for item in found if item.key in held)
    if sort or call.format == "human":
        found = sorted(found, key=_SORTS[sort or "name"])
    columns = [NAME, KEY, SIZE, Column("STATE", _shown_state), USES, last_use(moment)]
    if long:
        columns.append(Column("SOURCE", lambda row: " ".join(row["source"])))
        columns.append(Column("FETCHED BY", lambda row: row["fetching_by"] or row["fetched_by"] or ""))
    rows = (_row(cache, item, fetches.get(item.key), long) for item in found)
    if user is not None:
        from sccache_dtool.cli.holdings import sum_fields

        columns.append(Column("UNTIL", lambda row: ", ".join(row["lasts"])))
        rows = ({**row, **sum_fields(held[row["item"]])} for row in rows)
    call.out.table("item", rows, columns, "" if user is None else f"no item is held by {user}")
    for pattern in dict.fromkeys(filters):
        if pattern not in _STATES and pattern not in matched:
            call.out.note(f"no item has a name that matches {pattern!r}")


#: States that `--filter` accepts; every other word is a pattern.
_STATES = frozenset({"idle", "in-use", "evicted", "fetching"})

#: What begins the name of a lot.
_LOT = "lot:"


def _shown_state(row: Fields) -> str:
    percent = "" if row["fetching_percent"] is None else f", {row['fetching_percent']:.0f} %"
    if row["fetching_by"] is None or row["state"] == "fetching":
        return f"{row['state']}{percent}"
    return f"{row['state']}, fetching{percent}"


def _row(cache: Cache, item: Item, fetch: Transfer | None, long: bool) -> dict[str, Any]:
    fields = _listed(cache, item) if long else item_fields(item)
    return {**fields, "state": _state(item, fetch), **fetch_fields(fetch)}


def _filtered(
    cache: Cache,
    filters: tuple[str, ...],
    fetches: Mapping[str, Transfer],
    matched: set[str],
    lots: Sequence[Lookup] = (),
) -> Iterator[Item]:
    """The items that match all filters. Adds to `matched` each pattern that matches some name.

    What is being fetched for the first time has no directory yet.
    """
    keys = frozenset(fetches)
    there = set[str]()
    for found, also_matched in cache.survey(functools.partial(_passing, filters, keys, lots=lots)):
        matched |= also_matched
        there.update(item.key for item in found if item.key in keys)
        yield from found
    new = (Item(key, (), 0, None) for key in fetches if key not in there and not cache.has(key))
    found, also_matched = _passing(filters, keys, new, lots)
    matched |= also_matched
    yield from found


def _passing(
    filters: tuple[str, ...], fetching: frozenset[str], items: Iterator[Item], lots: Sequence[Lookup] = ()
) -> tuple[list[Item], set[str]]:
    passing, matched, key = [], set[str](), ""
    patterns = [word for word in filters if word not in _STATES]
    states = {word for word in filters if word in _STATES}
    for item in items:
        of_item = {_state(item)} if item.copies or item.key not in fetching else set()
        if item.key in fetching:
            of_item.add("fetching")
        if of_item == {"evicted"} and "evicted" not in filters:
            continue
        note_matching(patterns, item.label, matched)
        if not (states <= of_item and all(matches(one, item.label) for one in patterns)):
            continue
        key = item.key
        if all(lookup.asks_for_any(item.copies) for lookup in lots):
            passing.append(item)
    for lookup in lots:
        lookup.close(key)
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
@user_options
@click.option("--notice", type=DURATION, help="Only list the leases whose lifetime ends within TIME: 2d.")
@click.option("--ical", is_flag=True, help="Print the ends of leases as a calendar (RFC 5545).")
@common_options()
@pass_invocation
@by_all_tasks
def status_command(call: Invocation, item: str | None, user: str | None, notice: float | None, ical: bool) -> None:
    """Show the state of the cache, or of one ITEM and its holders.

    ITEM is a name, a key, the beginning of a key, or a path in the cache. With --mine, --user, --notice or --ical, list
    leases instead, and until when they are held. Without --mine and --user, these are the leases of everybody.

    \b
    Examples:
      sc-dtool status hg38.tar.gz
      sc-dtool status --mine
      sc-dtool status --user ada --notice 2d
    """
    cache = call.cache()
    if user is not None or notice is not None or ical:
        from sccache_dtool.cli.holdings import print_holdings

        if item is not None:
            raise UsageError(
                "lists of leases cannot be restricted to one item", hint=f"to show who holds it: sc-dtool why {item}"
            )
        print_holdings(call, cache, user, notice, ical)
        return
    if item is None:
        _cache_status(call, cache)
        return
    found = cache.item(cache.find(item))
    fetch = cache.fetches(found.key).get(found.key)
    fields = _row(cache, found, fetch, long=True)
    lines = [f"{found.label}: {fields['state']}", f"key      {found.key}"]
    if found.copies:
        lines += [
            f"source   {' '.join(fields['source']) or 'none'}",
            f"path     {fields['path'] or 'none'}",
            f"size     {output.size(found.bytes)}, files and directories: {fields['entries']:,}",
            f"fetched  {_fetched(fields)}",
        ]
    if fetch is not None:
        lines.append(f"fetch    {being_fetched(fetch)}")
    lines.append(f"uses     {found.uses:,}, {found.leases:,} of them not finished")
    call.out.result("item", fields, *lines)
    _print_leases(call, cache.judged(found))


def _fetched(fields: Fields) -> str:
    if fields["fetched"] is None:
        return "at an unknown time"
    took = "" if fields["fetch_seconds"] is None else f" in {fields['fetch_seconds']} s"
    return f"{fields['fetched']} by {fields['fetched_by'] or 'an unknown user'}{took}"


#: Downloads that `status` lists for people.
_MOST_FETCHES = 10


def _cache_status(call: Invocation, cache: Cache) -> None:
    glance = cache.overview()
    for error in cache.settings.mistakes:
        call.out.warning(error.message)
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
        f"; {glance.continuable:,} interrupted, which can be continued: see `sc-dtool transfers --all`"
        if glance.continuable
        else ""
    )
    lines = [
        f"cache     {glance.root}",
        f"items     {sums.items:,}, {output.size(sums.bytes)}; {output.free(glance.free)}",
        f"in use    {output.count(sums.busy_items, 'item')}, {output.count(sums.leases, 'lease')}",
        f"holders   {glance.holders:,}",
        f"fetching  {glance.fetching:,}{continuable}",
        *(f"          {one.label} is {being_fetched(one)}" for one in glance.fetches[:_MOST_FETCHES]),
        f"in trash  {glance.trashed:,}",
        f"uses      {fields['uses']:,} so far",
    ]
    call.out.result("cache", fields, *lines)
    for one in glance.fetches:
        call.out.result("fetch", {"item": one.key, "name": one.label, "state": str(one.state), **fetch_fields(one)})


@click.command("why")
@click.argument("item")
@common_options()
@pass_invocation
def why_command(call: Invocation, item: str) -> None:
    """Show who holds ITEM, since when, and how that is known.

    ITEM is a name, a key, the beginning of a key, or a path in the cache. Each holder is alive, dead or unknown.
    Unknown counts as alive.

    \b
    Example:
      sc-dtool why hg38.tar.gz
    """
    cache = call.cache()
    found = cache.item(cache.find(item))
    fetch = cache.fetches(found.key).get(found.key)
    fields = {"item": found.key, "name": found.label, "state": _state(found, fetch), "leases": found.leases}
    if not found.copies and fetch is not None:
        reason = f"{found.label} is {being_fetched(fetch)}"
    elif not found.copies:
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
    also = [f"it is {being_fetched(fetch)}"] if fetch is not None and found.copies else []
    call.out.result("why", {**fields, "reason": reason, **fetch_fields(fetch)}, reason, *also)
    _print_leases(call, cache.judged(found))


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


def _print_leases(call: Invocation, judged: list[Judged]) -> None:
    moment = time.time()
    for one in judged:
        fields = lease_fields(one)
        since = "an unknown time" if one.since is None else output.ago(one.since, moment)
        human = f"  {one.by}, since {since}: {one.verdict.state}, {one.verdict.evidence}"
        call.out.result("lease", fields, human)
        if one.verdict.state is State.UNKNOWN and one.held.lease is not None:
            command = call.command("reap", "--holder", one.holder_id)
            call.out.note(f"    if you know that it has ended: {command}")


@click.command("log")
@click.argument("item", required=False)
@click.option("--since", type=DURATION, help="Show only uses that ended within the last TIME: 7d.")
@common_options()
@pass_invocation
def log_command(call: Invocation, item: str | None, since: float | None) -> None:
    """Show the finished uses of ITEM, or of all items.

    ITEM is a name, a key, the beginning of a key, or a path in the cache.

    \b
    Example:
      sc-dtool log --since 7d
    """
    cache = call.cache()
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
    call.out.table("use", rows, columns, empty)


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
def dir_command(call: Invocation) -> None:
    """Print the cache's directory.

    It is the directory of --cache-dir, or else of $DTOOL_CACHE_DIRECTORY, or else dtool's own cache directory. The exit
    code is 10 if there is no cache.

    \b
    Example:
      cd "$(sc-dtool dir)"
    """
    cache = call.cache()
    cache.check()
    call.out.path("dir", {"path": str(cache.root)}, str(cache.root))
