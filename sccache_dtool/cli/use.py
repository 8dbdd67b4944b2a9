"""`use`, `unuse`, `run`, `renew`: take, release and renew leases."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

import click

from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli.options import (
    Invocation,
    ItemOptions,
    common_options,
    holder_option,
    item_options,
    pass_invocation,
    size_ignored_option,
    use_options,
)
from sccache_dtool.cli.output import Output
from sccache_dtool.errors import CacheError, LeaseLost, NoCache, UsageError, explain
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DTOOL, VIEW, DatasetRequest, Request
from sccache_dtool.find import Named, NotFound
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.protocol.leases import Lease


@click.command("use")
@item_options
@holder_option
@use_options
@common_options()
@pass_invocation
def use_command(now: Invocation, item: ItemOptions, holder: str, options: UseOptions, parents: bool) -> None:
    """Take a lease on an item and print its path, alone.

    If the item is not in the cache, one of the processes that ask for it fetches it, and the others wait. SOURCE is a
    path or a URL. Each STEP processes what was fetched: sha256:HEX checks a digest, tar unpacks an archive.
    `sc-dtool loaders` lists all kinds of sources and steps.

    The lease lasts until `unuse`. In a batch job, it ends with the job at the latest. Elsewhere, it ends with the
    calling process: the nearest one that is not a wrapper such as timeout, env or sudo. Uses are counted: whoever
    calls `use` twice calls `unuse` twice.

    dtool:URI#ITEM is one item of a dtool dataset. dtool:URI is the whole dataset, as a directory of links.

    The exit code is 11 if another process is still fetching the item after --wait, 12 if the item cannot be fetched,
    and 13 if there is not enough space.

    \b
    Example:
      path=$(sc-dtool use https://example.org/hg38.tar.gz sha256:HEX tar) || exit
    """
    caches, request = _requested(now, item, parents)
    owner = caches[0].owner(holder)
    if isinstance(request, DatasetRequest):
        from sccache_dtool.cli.use_dataset import use_dataset

        use_dataset(now, caches, request, owner, options)
        return
    lease = _hold(caches, request, owner, options)
    now.out.detail(f"held by {owner}")
    fields = {
        "path": os.fspath(lease),
        "item": lease.key,
        "lease": lease.name,
        "holder": str(owner),
    }
    try:
        now.out.path("use", fields, os.fspath(lease))
    except BaseException:  # a full disk, or a closed pipe: a caller that has not got the path cannot release the lease
        lease.release()
        lease.holder.retire()
        raise


@click.command("unuse")
@item_options
@size_ignored_option
@holder_option
@click.option("--all", "everything", is_flag=True, help="Release all leases of this holder on the item.")
@click.option("--evict-if-last", is_flag=True, help="Then remove the item, unless it is still in use.")
@common_options()
@pass_invocation
def unuse_command(now: Invocation, item: ItemOptions, holder: str, everything: bool, evict_if_last: bool) -> None:
    """Release a lease that `use` took.

    Give the path that `use` printed, the words that `use` was given, or the item's name or key. A path means the lease
    on that copy only. Releasing an item that is not in use is not an error: the command says so and exits with 0.

    \b
    Example:
      sc-dtool unuse "$path"
    """
    words, name = item.words, item.name
    if not words and name is None:
        raise UsageError(
            "no item is given", hint="give the path that `use` printed, the words that it was given, or -n NAME"
        )
    caches = item.caches(now)
    owners = caches[0].owners(holder)
    meant = _meant(caches, words, name)
    released, evicted = 0, False
    for cache, named in meant:
        release, evict = _functions_for(cache, named)
        released += release(cache, owners, named.key, everything=everything, generation=named.generation)
        if evict_if_last and cache.item(named.key).copies:
            evicted = evict(cache, named.key)
        if released and not everything:
            break
    if not released:
        there = meant if holder == "auto" else []
        above = next((found for cache, named in there if (found := cache.holder_above(named.key))), None)
        hint = f"; its ancestor {above} does: unuse --holder pid:{above.short}" if above is not None else ""
        left = sum(_leases_on_items(cache, owners, named) for cache, named in meant)
        if left:  # of items that were used alone, which nothing but their own names must release; or of a killed `use`
            hint += f", but {left} on items of the dataset: to release one, sc-dtool unuse {DTOOL}URI#ITEM"
        now.out.note(f"nothing to release: {owners[-1]} holds no lease on {name or plain(' '.join(words))}{hint}")
    first = meant[0][1].key if meant else None
    now.out.result("unuse", {"item": first, "released": released, "evicted": evicted, "holder": str(owners[-1])})


def _meant(caches: list[Cache], words: tuple[str, ...], name: str | None) -> list[tuple[Cache, Named]]:
    """What the words mean in each directory that is a cache. A path belongs to only one of them.

    Raises UsageError if no cache knows the item.
    """
    if len(caches) == 1:
        return [(caches[0], caches[0].find_used(words, name))]
    home = next((cache for cache in caches if words and name is None and cache.key_within(words[0])), None)
    found: list[tuple[Cache, Named]] = []
    unknown: list[NotFound] = []
    for cache in caches if home is None else [home]:
        try:
            found.append((cache, cache.find_used(words, name)))
        except NotFound as error:
            unknown.append(error)
        except NoCache:
            continue
    if unknown and not found:
        raise unknown[0]
    return found


def _functions_for(cache: Cache, item: Named) -> tuple[Callable[..., int], Callable[[Cache, str], bool]]:
    """The functions that release an item, and that evict it."""
    if item.is_dataset or item.key.endswith(VIEW):
        from sccache_dtool.dtool import staging  # only for datasets: importing it takes as long as everything else

        if item.is_dataset or staging.is_view(cache, item.key):
            return staging.release, staging.evict
    return Cache.release, Cache.evict_if_idle


def _leases_on_items(cache: Cache, owners: Sequence[Owner], item: Named) -> int:
    """How many leases the owners have on items of the dataset that is meant; 0 if none is meant."""
    if not item.is_dataset:
        return 0
    from sccache_dtool.dtool import staging

    return staging.leases_on_items(cache, owners, item.key)


class _WithCommand(click.Command):
    """A command whose arguments end at ``--``; those of another command follow."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            args, ctx.meta["command"] = args[:cut], args[cut + 1 :]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


@click.command("run", cls=_WithCommand)
@item_options
@use_options
@click.option(
    "-I", "--replace", default="{}", metavar="STR", help="Replace arguments that are STR instead of {}; empty: none."
)
@click.option("--keep-going", is_flag=True, help="If the lease is lost, let COMMAND run on.")
@common_options()
@click.pass_context
def run_command(
    ctx: click.Context,
    item: ItemOptions,
    options: UseOptions,
    parents: bool,
    replace: str,
    keep_going: bool,
) -> int:
    """Hold a lease on an item while COMMAND runs.

    SOURCE and STEP are as in `use`. COMMAND finds the path in $SC_DTOOL_PATH, and in place of each argument that is {}.
    Signals sent to sc-dtool are forwarded to COMMAND. The lease is renewed while COMMAND runs. If it is lost
    nevertheless, COMMAND gets SIGTERM. Once COMMAND has started, the exit code is always that of COMMAND. Errors of
    sc-dtool are then only printed.

    \b
    Example:
      sc-dtool run https://example.org/hg38.tar.gz tar -- align --reference {} sample.fastq
    """
    from sccache_dtool.cli.child import Child

    now = ctx.ensure_object(Invocation)
    command: list[str] = ctx.meta.get("command", [])
    if not command:
        raise UsageError("no command to run", hint="put it after two dashes: sc-dtool run SOURCE -- COMMAND...")
    lost: list[LeaseLost] = []
    child = Child()

    def give_up(error: LeaseLost) -> None:
        if child.has_ended:  # a cleaner has noticed that and ended the lease
            return
        lost.append(error)
        if not keep_going:
            child.send_signal(signal.SIGTERM)
        now.out.error(error)

    try:
        caches, request = _requested(now, item, parents)
        owner = caches[0].owner_of_command(child.pid, command)
        path, leases = _hold_for_command(now, caches, request, owner, options)
        order = [path if word == replace != "" else word for word in command]
        try:
            return child.run(order, {"SC_DTOOL_PATH": path}, lambda: leases[0].holder.start_heartbeat(give_up))
        finally:
            _give_back(now.out, leases, lost)
    finally:
        child.close()
        if not now.owns_process:
            child.restore()


def _give_back(out: Output, leases: Sequence[Lease], lost: Sequence[LeaseLost]) -> None:
    """Release the leases of a command, and report errors. Nothing is raised: the exit code is the command's."""
    holder = leases[0].holder
    failed: list[str] = []
    all_kept = True
    try:
        holder.stop_heartbeat()
        for lease in leases:
            try:
                all_kept &= lease.release()
            except OSError as error:
                failed.append(explain(error))
        # Without this condition, a lease that a cleaner ended because the command had ended would be reported as lost.
        noticed_late = holder.revoked() if not (all_kept or lost) and holder.has_lapsed else None
        if not failed:
            holder.retire()
        if noticed_late is not None:
            out.error(noticed_late)
    except Exception as error:
        failed.append(f"{type(error).__name__}: {error}")
    if failed:
        out.error(
            CacheError(
                f"could not release {len(failed)} of {len(leases)} leases",
                details=list(dict.fromkeys(failed))[:3],
                hint="`sc-dtool reap`, or the next `clean`, ends the leases of a command that has ended",
            )
        )


@click.command("renew")
@holder_option
@common_options()
@pass_invocation
def renew_command(now: Invocation, holder: str) -> None:
    """Extend the lifetime of leases taken with `use --ttl`.

    All leases of the holder that have a lifetime get the same lifetime again, counted from now. Use it in scripts that
    run longer than their --ttl, and for leases held under a name (--holder NAME).

    \b
    Example:
      sc-dtool renew --holder nightly
    """
    cache = now.cache()
    owners = cache.owners(holder)
    renewed = cache.renew(owners)
    if not renewed:
        now.out.note(f"nothing to renew: {owners[-1]} holds no lease with a lifetime (--ttl)")
    now.out.result("renew", {"renewed": renewed, "holder": str(owners[-1])})


def _requested(now: Invocation, item: ItemOptions, parents: bool) -> tuple[list[Cache], Request | DatasetRequest]:
    """The caches, and what the words mean. Progress is shown for a whole dataset, and not for each of its items."""
    is_dataset = bool(item.words) and item.words[0].startswith(DTOOL) and "#" not in item.words[0]
    caches = item.caches(now, parents=parents, **({"progress": None} if is_dataset else {}))
    return caches, caches[0].request(item.words, item.name)


def _hold_for_command(
    now: Invocation, caches: Sequence[Cache], request: Request | DatasetRequest, owner: Owner, options: UseOptions
) -> tuple[str, Sequence[Lease]]:
    """The path for a command, and the leases that it needs, all of one holder."""
    if isinstance(request, DatasetRequest):
        from sccache_dtool.cli.use_dataset import hold_dataset

        staged = hold_dataset(now, caches, request, owner, options)
        return os.fspath(staged), staged.all
    lease = _hold(caches, request, owner, options, beats=True)
    return os.fspath(lease), (lease,)


def _hold(
    caches: Sequence[Cache], request: Request, owner: Owner, options: UseOptions, *, beats: bool = False
) -> Lease:
    """A lease on the item, in the first cache that has it, or else the first with room for it.

    `beats`: whether this process shows heartbeats for the owner.
    """

    def options_in(cache: Cache) -> UseOptions:
        return options._replace(ttl=cache.settings.heartbeat_ttl) if beats and options.ttl is None else options

    there = caches[0] if len(caches) == 1 else next((cache for cache in caches if cache.offers(request)), None)
    if there is not None:
        return there.hold(owner, request, options_in(there))
    from sccache_dtool.cli.placement import fetch_where_room_is

    return fetch_where_room_is(caches, request, options, lambda cache: cache.hold(owner, request, options_in(cache)))
