"""`lot`: shares of the cache, with owners, limits and dates."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import (
    SIZE,
    UNTIL,
    Actions,
    Invocation,
    Quantity,
    add_options,
    common_options,
    dry_run_option,
    pass_invocation,
)
from sccache_dtool.cli.output import Column, Fields
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import UsageError
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.lots import document, lotman
from sccache_dtool.lots.belonging import Belonging, Consulted
from sccache_dtool.lots.document import claim, claim_text
from sccache_dtool.lots.model import (
    DEFAULT,
    LIMITS,
    Attribution,
    Balance,
    Claim,
    Lot,
    Lots,
    Match,
    Question,
    Usage,
    components,
    is_path,
)
from sccache_dtool.units import parse_size, parse_until


class _NoLimit:
    """The value of an option for a limit that is taken away; None stands for an option that was not given."""


_NO_LIMIT = _NoLimit()


def _limit(text: str) -> int | _NoLimit:
    """A size; "none" is none of it, as opposed to no limit."""
    return _NO_LIMIT if text == document.UNLIMITED else 0 if text == "none" else parse_size(text)


def _count(text: str) -> int | str | _NoLimit:
    """A number of files, a difference such as ``+100``, or no limit."""
    if text == document.UNLIMITED:
        return _NO_LIMIT
    if text[:1] in "+-" and text[1:].isdecimal():
        return text
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise UsageError(f"cannot read {text!r} as a number of files", hint=f"give a number, or {document.UNLIMITED}")
    return int(text)


def _moment(text: str) -> float | _NoLimit:
    return _NO_LIMIT if text == "never" else float(int(parse_until(text)))


def _difference(text: str) -> int:
    return -parse_size(text[1:]) if text.startswith("-") else parse_size(text)


#: A file that people have written; bytes that are no text are refused where they would mean something.
_TEXT = click.File(encoding="utf-8", errors="surrogateescape")
_LIMIT = Quantity("SIZE", _limit)
_DIFFERENCE = Quantity("SIZE", _difference)
_COUNT = Quantity("N", _count)
_MOMENT = Quantity("WHEN", _moment)

as_option = click.option("--as", "caller", metavar="OWNER", help="Act as this owner. Default: your user name.")


strict_option = click.option(
    "--strict", is_flag=True, help="Refuse it if lots would exceed what the lots above them have to give."
)


def _limits(*, new: bool) -> Callable[[Any], Any]:
    """The options that set limits and dates. `new`: of a new lot. In another one, what is not given stays as it is."""

    def text(what: str, default: str) -> str:
        return f"{what} Default: {default}." if new else what

    return lambda function: add_options(
        click.option("--owner", metavar="OWNER", help=text("Who owns the lot.", "your user name")),
        click.option("--dedicated", type=SIZE, help=text("Space that `clean` leaves to the lot: 40TB.", "0")),
        click.option(
            "--opportunistic", type=_LIMIT, help=text("Space beyond that, while it is free, or none.", "unlimited")
        ),
        click.option("--max-objects", type=_COUNT, help=text("Files and directories, or +N.", "unlimited")),
        click.option(
            "--attribute",
            "attributions",
            multiple=True,
            metavar="LOT:LIMIT=N,...",
            help=text("How much of a limit comes from a parent: site:dedicated=4TB. Repeatable.", "equal parts"),
        ),
        click.option("--expires", type=_MOMENT, help=text("When its data begins to go before others'.", "never")),
        click.option("--deletes", type=_MOMENT, help=text("When its data goes at every `clean`.", "never")),
    )(function)


@click.group("lot", cls=Actions)
@common_options()
def lot_command() -> None:
    """Create and change lots: shares of the cache for groups.

    A lot has an owner, paths whose data counts for it, limits and dates. Lots can have parents, whose limits hold for
    them, too. `clean` leaves the dedicated space of each lot, and removes first what is beyond it.

    A path is user:NAME, dataset:UUID, name:NAME, item:KEY, loose:PATH, the path of a local source, or a URL. It
    includes what is below it. -PATH is excluded, and =PATH does not include what is below it.

    \b
    Example:
      sc-dtool lot create physics --dedicated 40TB --path user:ada --path user:bob
    """


@lot_command.command("create")
@click.argument("name")
@click.option("--parent", "parents", multiple=True, metavar="LOT", help="A lot above it. Repeatable. Default: none.")
@click.option("--child", "children", multiple=True, metavar="LOT", help="A lot that it is to be above. Repeatable.")
@click.option("--path", "paths", multiple=True, metavar="PATH", help="A path. Repeatable. Default: user:NAME.")
@click.option("--exclude", "excluded", multiple=True, metavar="PATH", help="A path below that is not its. Repeatable.")
@click.option("--no-recursive", is_flag=True, help="The paths do not include what is below them.")
@click.option("--from", "created", type=UNTIL, help="When its paths begin to count. Default: now.")
@_limits(new=True)
@strict_option
@as_option
@common_options()
@pass_invocation
def create(
    call: Invocation,
    /,
    name: str,
    parents: tuple[str, ...],
    children: tuple[str, ...],
    paths: tuple[str, ...],
    excluded: tuple[str, ...],
    no_recursive: bool,
    created: float | None,
    owner: str | None,
    strict: bool,
    caller: str | None,
    **given: Any,
) -> None:
    """Create a lot.

    Without --parent it is a root: only its owner can change it, and no other lot limits it.

    \b
    Example:
      sc-dtool lot create physics --dedicated 40TB --path dataset:8c3fe4b0-1d2a-4d0e-9d6e-3b5a7e0c1f2d
    """
    claims = (*(Claim(path, not no_recursive) for path in paths), *(Claim(path, exclude=True) for path in excluded))
    who = caller or user_name()
    new = Lot(
        name,
        owner or who,
        frozenset(parents or {name}),
        claims or (Claim(f"user:{name}"),),
        created=float(int(time.time() if created is None else created)),
        **_given(given, Lot(name, "", frozenset())),
    )
    cache = call.cache()

    def make(lots: Lots) -> Lots:
        return _fit(lots, lots.add(new, caller=_caller(cache, caller), children=children), strict)

    table = cache.change_lots(make, f"create {name}")
    _print(call, table.lots, [name], {})


@lot_command.command("set")
@click.argument("name")
@click.option("--add-parent", multiple=True, metavar="LOT", help="Put another lot above it. Repeatable.")
@click.option("--rm-parent", multiple=True, metavar="LOT", help="It is no longer below this lot. Repeatable.")
@click.option("--add-path", multiple=True, metavar="PATH", help="A further path. Repeatable.")
@click.option("--rm-path", multiple=True, metavar="PATH", help="A path that it no longer has. Repeatable.")
@_limits(new=False)
@strict_option
@as_option
@common_options()
@pass_invocation
def set_lot(
    call: Invocation,
    /,
    name: str,
    add_parent: tuple[str, ...],
    rm_parent: tuple[str, ...],
    add_path: tuple[str, ...],
    rm_path: tuple[str, ...],
    owner: str | None,
    strict: bool,
    caller: str | None,
    **given: Any,
) -> None:
    """Change a lot.

    What is not given stays as it is. The owner of any lot above may change it. Its own owner may only if it is a root.

    \b
    Example:
      sc-dtool lot set physics --dedicated 60TB --expires 2099-12-31
    """
    cache = call.cache()

    def make(lots: Lots) -> Lots:
        lot = lots[name]
        changes = _given(given, lot)
        missing = [path for path in rm_path if components(path) not in {components(one.path) for one in lot.claims}]
        missing += [parent for parent in rm_parent if parent not in lot.parents]
        if missing:
            raise UsageError(f"lot {name!r} does not have {', '.join(missing)}")
        left = tuple(one for one in lot.claims if components(one.path) not in set(map(components, rm_path)))
        if add_path or rm_path:
            changes["claims"] = (*left, *map(claim, add_path))
        if add_parent or rm_parent:
            base = lot.parents - ({name} if lot.is_root and add_parent else set())
            changes["parents"] = (base | set(add_parent)) - set(rm_parent) or frozenset({name})
        if owner is not None:
            changes["owner"] = owner
        if not changes:
            raise UsageError("nothing to change was given", hint="see: sc-dtool lot set -h")
        return _fit(lots, lots.update(name, caller=_caller(cache, caller), **changes), strict)

    _print(call, cache.change_lots(make, f"set {name}").lots, [name], {})


@lot_command.command("rm")
@click.argument("name")
@click.option("--adopt-orphans", is_flag=True, help="Children without another parent get its parents.")
@click.option("--adopt-all", is_flag=True, help="All its children get its parents.")
@click.option("--hand-down-policy", is_flag=True, help="Its limits become those of its children, where narrower.")
@click.option("--recursive", is_flag=True, help="Remove all lots below it as well.")
@as_option
@common_options()
@pass_invocation
def rm(
    call: Invocation,
    name: str,
    adopt_orphans: bool,
    adopt_all: bool,
    hand_down_policy: bool,
    recursive: bool,
    caller: str | None,
) -> None:
    """Remove a lot.

    Its data stays, and then counts for the next lot that claims it, or for `default`.

    \b
    Example:
      sc-dtool lot rm physics --adopt-orphans
    """
    if recursive and (adopt_orphans or adopt_all or hand_down_policy):
        raise UsageError("--recursive leaves no children that could be adopted")
    cache = call.cache()

    def make(lots: Lots) -> Lots:
        who = _caller(cache, caller)
        if recursive:
            return lots.remove_all(name, caller=who)
        return lots.remove(
            name, caller=who, adopt_orphans=adopt_orphans, adopt_all=adopt_all, hand_down=hand_down_policy
        )

    before = {one.name for one in cache.lots().lots}
    after = {one.name for one in cache.change_lots(make, f"rm {name}").lots}
    for gone in sorted(before - after):
        call.out.result("removed", {"lot": gone}, f"removed lot {gone}")


@lot_command.command("ls")
@click.option("--tree", is_flag=True, help="Show each lot below its parents.")
@common_options()
@pass_invocation
def ls(call: Invocation, tree: bool) -> None:
    """List the lots, with what they use.

    \b
    Example:
      sc-dtool lot ls --tree
    """
    cache = call.cache()
    lots = cache.lots().lots
    names = _in_tree(lots) if tree else [(name, 0) for name in sorted(one.name for one in lots)]
    _table(call, lots, lots.balances(cache.lot_usage(lots)), names)


@lot_command.command("show")
@click.argument("name")
@click.option("--restricting", is_flag=True, help="Show the limits that hold, and the lots that they come from.")
@click.option("--lotman", "as_lotman", is_flag=True, help="Print what LotMan prints, as JSON with GB and ms.")
@common_options()
@pass_invocation
def show(call: Invocation, name: str, restricting: bool, as_lotman: bool) -> None:
    """Show a lot, and what it uses.

    \b
    Example:
      sc-dtool lot show physics --restricting
    """
    cache = call.cache()
    lots = cache.lots().lots
    lots[name]
    balances = lots.balances(cache.lot_usage(lots))
    if as_lotman:
        import json

        call.out.text(json.dumps(lotman.document(lots, name, balances[name]), indent=2))
        return
    _print(call, lots, [name], balances)
    if restricting:
        rows = [
            {"limit": limit, "value": _shown(limit, found.value), "lot": found.lot, "lots_own": found.lot == name}
            for limit in LIMITS
            for found in (lots.restriction(name, limit),)
        ]
        call.out.table(
            "restriction", rows, [Column("LIMIT", "limit"), Column("VALUE", "value"), Column("OF LOT", "lot")]
        )


@lot_command.command("of")
@click.argument("what", metavar="PATH|ITEM")
@common_options()
@pass_invocation
def of(call: Invocation, what: str) -> None:
    """Show the lot that a path or an item belongs to, and why.

    \b
    Example:
      sc-dtool lot of hg38.fa
    """
    cache = call.cache()
    lots = cache.lots().lots
    belonging = Belonging(lots, time.time())
    root = str(cache.root)
    if is_path(what) and Layout(root).within(what) is None:
        if what.startswith(f"{root}/") and os.path.isfile(what):
            user = user_name(os.lstat(what).st_uid)
            consulted = belonging.explain_loose(what.removeprefix(f"{root}/"), user)
        else:
            consulted = [Consulted(what, lots.of(what, time.time()))]
        _explain(call, lots, {"path": what}, consulted)
        return
    item = cache.item(cache.find(what))
    for copy in item.copies:
        consulted = belonging.explain(item.key, cache.facts(copy))
        _explain(call, lots, {"item": item.key, "copy": str(copy.generation)}, consulted)


def _explain(call: Invocation, lots: Lots, fields: Mapping[str, Any], consulted: Sequence[Consulted]) -> None:
    """Print the lot of something, and by which of its paths it was found."""
    last = consulted[-1].match
    lot = last.lot if last else DEFAULT
    above = lots.ancestors(lot)
    lines = [f"  {one.path}: {_why(one.match)}" for one in consulted]
    if above:
        lines.append(f"  it counts for the lots above as well: {', '.join(above)}")
    looked_up = [one.path for one in consulted]
    call.out.result("lot", {**fields, "lot": lot, "above": above, "consulted": looked_up}, lot, *lines)


@lot_command.command("past")
@click.argument("question", type=click.Choice([str(one) for one in Question]))
@click.option("--own", is_flag=True, help="Count only what lots have themselves, not what those below them have.")
@click.option("--descendants", is_flag=True, help="List also the lots below those.")
@common_options()
@pass_invocation
def past(call: Invocation, question: str, own: bool, descendants: bool) -> None:
    """List the lots that are past a limit: at it, or beyond it.

    del: the time of deletion; exp: the time of expiration; opp: the opportunistic space; obj: the number of objects;
    ded: the dedicated space.

    \b
    Example:
      sc-dtool lot past exp
    """
    cache = call.cache()
    lots, asked = cache.lots().lots, Question(question)
    dated = asked in (Question.DELETION, Question.EXPIRATION)
    used: Mapping[str, Usage] = {} if dated else cache.lot_usage(lots)
    found = lots.past(asked, used, time.time(), count_descendants=not own, with_descendants=descendants)
    for name in sorted(found):
        call.out.result("lot", {"lot": name, "past": question}, name)


@lot_command.command("paths")
@click.argument("name")
@click.option("--recursive", is_flag=True, help="Show also those of the lots below it.")
@common_options()
@pass_invocation
def paths(call: Invocation, name: str, recursive: bool) -> None:
    """List the paths of a lot.

    \b
    Example:
      sc-dtool lot paths physics --recursive
    """
    lots = call.cache().lots().lots
    for one in (name, *(lots.descendants(name) if recursive else ())):
        for path in lots[one].claims:
            call.out.result("path", {"lot": one, **path._asdict()}, f"{claim_text(path)}  {one}")


@lot_command.command("unclaim")
@click.argument("given", nargs=-1, required=True, metavar="PATH...")
@as_option
@common_options()
@pass_invocation
def unclaim(call: Invocation, given: tuple[str, ...], caller: str | None) -> None:
    """Take paths from whichever lots have them.

    \b
    Example:
      sc-dtool lot unclaim user:ada
    """
    cache = call.cache()

    def make(lots: Lots) -> Lots:
        for path in given:
            owner = next((lot for lot in lots if any(_is_path(one, path) for one in lot.claims)), None)
            if owner is None:
                raise UsageError(f"no lot has the path {path}", hint="list them with: sc-dtool lot paths LOT")
            left = tuple(one for one in owner.claims if not _is_path(one, path))
            lots = lots.update(owner.name, caller=_caller(cache, caller), claims=left)
        return lots

    cache.change_lots(make, f"unclaim {' '.join(given)}")


@lot_command.command("report")
@click.argument("name", required=False)
@click.option("--bytes", type=_DIFFERENCE, help="Space that the lot has elsewhere.")
@click.option("--objects", type=int, help="Files and directories that it has elsewhere.")
@click.option("--bytes-being-written", type=_DIFFERENCE, help="Space that it is about to take there.")
@click.option("--objects-being-written", type=int, help="Files and directories that are being written there.")
@click.option("--delta", is_flag=True, help="Add the numbers to what was reported; --bytes=-1TB subtracts.")
@click.option("--tree", type=_TEXT, metavar="FILE", help="Sizes of directories, in the form of LotMan.")
@as_option
@common_options()
@pass_invocation
def report(
    call: Invocation, /, name: str | None, delta: bool, tree: Any, caller: str | None, **numbers: int | None
) -> None:
    """Report what a lot has outside this cache.

    It counts for the lot from then on, until it is reported again.

    \b
    Example:
      sc-dtool lot report physics --bytes 3TB --objects 12000
    """
    cache = call.cache()
    lots = cache.lots().lots
    if (name is None) == (tree is None) or (tree is not None and any(one is not None for one in numbers.values())):
        raise UsageError("give a lot and its numbers, or --tree FILE")
    if tree is not None:
        import json

        try:
            reports = lotman.reports_by_path(lots, json.load(tree))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{tree.name} is not JSON: {error}") from None
    else:
        given = {field: value for field, value in numbers.items() if value is not None}
        if not given:
            raise UsageError("give --bytes or --objects")
        reports = [lotman.Report(str(name), given)]
    who = _caller(cache, caller)
    for one in reports:
        lots[one.lot]
        if who is not None and not lots.may_change(one.lot, who):
            raise UsageError(f"{who} may not report for lot {one.lot!r}", hint="the owner of a lot above it may")
    cache.report_usage(lambda used: lotman.reported(used, reports, delta=delta))


@lot_command.command("capacity")
@click.argument("name", metavar="LOT")
@click.option("--from", "begin", type=UNTIL, metavar="WHEN", help="The beginning of the period. Default: now.")
@click.option("--until", "end", type=UNTIL, metavar="WHEN", help="The end of the period. Default: always.")
@common_options()
@pass_invocation
def capacity(call: Invocation, name: str, begin: float | None, end: float | None) -> None:
    """Show what a lot can still give to lots below it.

    \b
    Example:
      sc-dtool lot capacity biology --until 2099-12-31
    """
    lots = call.cache().lots().lots
    left = lots.capacity(name, time.time() if begin is None else begin, math.inf if end is None else end)
    fields = {
        "lot": name,
        "dedicated_bytes": left.dedicated,
        "opportunistic_bytes": left.opportunistic,
        "objects": left.objects,
    }
    objects = document.UNLIMITED if left.objects is None else f"{left.objects:,}"
    call.out.result(
        "capacity",
        fields,
        f"{'dedicated':<14}{output.size(left.dedicated)}",
        f"{'opportunistic':<14}{_size(left.opportunistic)}",
        f"{'max objects':<14}{objects}",
    )


@lot_command.command("log")
@common_options()
@pass_invocation
def log(call: Invocation) -> None:
    """List the earlier versions of the lots, the newest first.

    \b
    Example:
      sc-dtool lot log
    """
    rows = [
        {"number": one.number, "when": one.when, "by": one.by, "why": one.why, "lots": sum(1 for _ in one.lots)}
        for one in call.cache().lots_log()
    ]
    columns = [
        Column("NUMBER", "number", right=True),
        Column("WHEN", "when"),
        Column("BY", "by"),
        Column("LOTS", "lots", right=True),
        Column("WHY", "why"),
    ]
    call.out.table("version", rows, columns, "this cache has no lots")


@lot_command.command("restore")
@click.argument("number", type=int)
@as_option
@common_options()
@pass_invocation
def restore(call: Invocation, number: int, caller: str | None) -> None:
    """Put an earlier version of the lots in force again.

    It works also if the version in force cannot be read. Only whoever may change all lots can do it then.

    \b
    Example:
      sc-dtool lot restore 12
    """
    cache = call.cache()
    made = cache.restore_lots(number, _caller(cache, caller))
    call.out.result(
        "version", {"number": made.number, "of": number}, f"version {made.number} is as version {number} was"
    )


@lot_command.command("import")
@click.argument("file", type=_TEXT, metavar="FILE")
@dry_run_option
@strict_option
@as_option
@common_options()
@pass_invocation
def import_lots(call: Invocation, file: Any, dry_run: bool, strict: bool, caller: str | None) -> None:
    """Replace the lots by those of a file.

    The file is TOML, or the JSON of LotMan. If the lots are already as in the file, nothing is changed. Lots that the
    file does not name are removed. `lot export` writes such a file.

    \b
    Example:
      sc-dtool lot import lots.toml --dry-run
    """
    cache = call.cache()
    wanted = document.decode(file.read(), caller or user_name())
    before = cache.lots().lots
    for line in _differences(before, wanted):
        call.out.result("change", {"change": line, "dry_run": dry_run}, line)
    if before == wanted:
        call.out.note("the lots are as in the file")
    if dry_run:
        return
    who = _caller(cache, caller)

    def make(lots: Lots) -> Lots:
        lots.check_change(wanted, who)
        return _fit(lots, wanted, strict)

    cache.change_lots(make, f"import {file.name}")


@lot_command.command("export")
@click.option("--lotman", "as_lotman", is_flag=True, help="Write the JSON of LotMan.")
@common_options()
@pass_invocation
def export(call: Invocation, as_lotman: bool) -> None:
    """Print the lots as TOML, for `lot import`.

    \b
    Example:
      sc-dtool lot export > lots.toml
    """
    lots = call.cache().lots().lots
    if as_lotman:
        import json

        call.out.text(json.dumps([lotman.addition(lot) for lot in lots], indent=2))
    else:
        call.out.text(document.encode(lots))


# -- common ------------------------------------------------------------------------------------------------------------


def _caller(cache: Cache, given: str | None) -> str | None:
    """Who asks for a change; None for whoever may change every lot: the managers of the cache."""
    who = given or user_name()
    return None if given is None and cache.manages_lots() else who


def _fit(before: Lots, after: Lots, strict: bool) -> Lots:
    """The lots after a change, if they fit."""
    if strict:
        after.check_fit(before)
    return after


def _given(given: Mapping[str, Any], lot: Lot) -> dict[str, Any]:
    """The limits that were given, as fields of a lot. Differences are to those of `lot`."""
    found = {"objects" if name == "max_objects" else name: value for name, value in given.items() if value is not None}
    if shares := found.pop("attributions", ()):
        found["attributions"] = () if shares == ("equal",) else tuple(map(document.attribution, shares))
    objects = found.get("objects")
    if isinstance(objects, str):
        found["objects"] = (lot.objects or 0) + int(objects)
    return {name: None if value is _NO_LIMIT else value for name, value in found.items()}


def _why(match: Match | None) -> str:
    return (
        "no lot claims it" if match is None or match.claim is None else f"{match.lot} claims {claim_text(match.claim)}"
    )


def _is_path(one: Claim, path: str) -> bool:
    return components(one.path) == components(path)


def _differences(before: Lots, after: Lots) -> Iterable[str]:
    for lot in before:
        if lot.name not in after:
            yield f"remove lot {lot.name}"
    for lot in after:
        if lot.name not in before:
            yield f"create lot {lot.name}"
        elif lot != before[lot.name]:
            old = before[lot.name]
            changed = [
                name for name in (*LIMITS, "owner", "parents", "claims") if getattr(lot, name) != getattr(old, name)
            ]
            yield f"change lot {lot.name}: {', '.join(changed)}"


def _in_tree(lots: Lots) -> list[tuple[str, int]]:
    """The lots, each with its level. What is below a lot with several parents is shown below the first of them only."""
    found: list[tuple[str, int]] = []
    seen: set[str] = set()

    def visit(name: str, depth: int) -> None:
        found.append((name, depth))
        if name not in seen:
            seen.add(name)
            for child in sorted(lots.children(name)):
                visit(child, depth + 1)

    for lot in sorted(lots, key=lambda one: one.name):
        if not lot.parents - {lot.name}:
            visit(lot.name, 0)
    return found


def _table(call: Invocation, lots: Lots, balances: Mapping[str, Balance], names: Iterable[tuple[str, int]]) -> None:
    past = _all_past(lots, balances)
    rows = [{**_fields(lots, name, balances, past), "_shown": f"{'  ' * depth}{name}"} for name, depth in names]
    columns = [
        Column("LOT", "_shown"),
        Column("OWNER", "owner"),
        Column("USED", lambda row: output.size(row["usage"]["bytes"]), right=True),
        Column("DEDICATED", lambda row: output.size(row["dedicated_bytes"]), right=True),
        Column("OPPORTUNISTIC", lambda row: _size(row["opportunistic_bytes"]), right=True),
        Column("OBJECTS", lambda row: f"{row['usage']['objects']:,}", right=True),
        Column("STATUS", "status"),
        Column("PAST", _past_for_people),
    ]
    call.out.table("lot", rows, columns)


def _past_for_people(row: Fields) -> str:
    """A lot with a limit of 0 and no data is past it by the letter, which helps nobody."""
    dates = (Question.DELETION, Question.EXPIRATION)
    has_data = row["usage"]["bytes"] or row["usage"]["objects"]
    return " ".join(one for one in row["past"] if has_data or one in dates)


def _print(call: Invocation, lots: Lots, names: Iterable[str], balances: Mapping[str, Balance]) -> None:
    past = _all_past(lots, balances)
    for name in names:
        fields = _fields(lots, name, balances, past)
        lines = [f"{title:<14}{text}" for title, text in _lines(fields) if text]
        call.out.result("lot", fields, *lines)


def _lines(fields: Fields) -> Iterable[tuple[str, str]]:
    yield "lot", fields["name"]
    yield "owner", fields["owner"]
    yield "parents", ", ".join(parent for parent in fields["parents"] if parent != fields["name"]) or "none"
    yield "children", ", ".join(fields["children"])
    for one in fields["paths"]:
        yield "path", claim_text(Claim(**one))
    yield "dedicated", output.size(fields["dedicated_bytes"])
    yield "opportunistic", _size(fields["opportunistic_bytes"])
    yield "max objects", document.UNLIMITED if fields["max_objects"] is None else f"{fields['max_objects']:,}"
    for parent, values in fields["attributions"].items():
        amounts = {"dedicated": values["dedicated_bytes"], "opportunistic": values["opportunistic_bytes"]}
        parts = [f"{name} {output.size(value)}" for name, value in amounts.items() if value is not None]
        parts += [] if values["max_objects"] is None else [output.count(values["max_objects"], "object")]
        yield f"of {parent}", ", ".join(parts)
    yield "expires", fields["expires"] or "never"
    yield "deletes", fields["deletes"] or "never"
    yield "status", fields["status"]
    if fields["usage"]:
        used = fields["usage"]
        yield "used", f"{output.size(used['bytes'])} in {output.count(used['objects'], 'object')}"
        yield "of its own", f"{output.size(used['self_bytes'])} in {output.count(used['self_objects'], 'object')}"
    yield "past", ", ".join(fields["past"])


def _all_past(lots: Lots, balances: Mapping[str, Balance]) -> Mapping[Question, set[str]]:
    """The lots that are past each limit; nothing if it is not known what they use."""
    own = {one: balance.own for one, balance in balances.items()}
    asked = Question if balances else ()
    return {one: lots.past(one, own, time.time(), with_descendants=False) for one in asked}


def _fields(
    lots: Lots, name: str, balances: Mapping[str, Balance], past: Mapping[Question, set[str]]
) -> dict[str, Any]:
    lot, moment = lots[name], time.time()
    used = balances.get(name)
    usage = None
    if used is not None:
        usage = {
            "bytes": used.total.bytes,
            "objects": used.total.objects,
            "self_bytes": used.own.bytes,
            "self_objects": used.own.objects,
            "children_bytes": used.descendants.bytes,
            "children_objects": used.descendants.objects,
            "self_bytes_being_written": used.own.bytes_being_written,
            "self_objects_being_written": used.own.objects_being_written,
            "children_bytes_being_written": used.descendants.bytes_being_written,
            "children_objects_being_written": used.descendants.objects_being_written,
            "dedicated_bytes": used.dedicated.total,
            "opportunistic_bytes": used.opportunistic.total,
        }
    return {
        "name": name,
        "owner": lot.owner,
        "parents": sorted(lot.parents),
        "children": sorted(lots.children(name)),
        "paths": [one._asdict() for one in lot.claims],
        "dedicated_bytes": lot.dedicated,
        "opportunistic_bytes": lot.opportunistic,
        "max_objects": lot.objects,
        "created": output.moment(lot.created),
        "expires": output.moment(lot.expires),
        "deletes": output.moment(lot.deletes),
        "status": _status(lot, moment, used),
        "usage": usage,
        "past": [str(one) for one, names in past.items() if name in names],
        "attributions": {one.parent: _attributed(one) for one in lot.attributions},
    }


def _attributed(one: Attribution) -> dict[str, int | None]:
    return {"dedicated_bytes": one.dedicated, "opportunistic_bytes": one.opportunistic, "max_objects": one.objects}


def _status(lot: Lot, moment: float, used: Balance | None) -> str:
    if lot.created > moment:
        return "pending"
    if lot.deletes is not None and lot.deletes <= moment:
        return "past deletion" if used is None or any(used.total) else "deleted"
    return "expired" if lot.expires is not None and lot.expires <= moment else "active"


def _size(value: int | None) -> str:
    return document.UNLIMITED if value is None else output.size(value)


def _shown(limit: str, value: float | None) -> str:
    if value is None:
        return "never" if limit in ("expires", "deletes") else document.UNLIMITED
    if limit in ("created", "expires", "deletes"):
        return output.moment(value) or "never"
    return f"{value:,.0f}" if limit == "objects" else output.size(int(value))
