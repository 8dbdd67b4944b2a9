"""`use`, `unuse`, `run`, `renew`: take, release and renew leases."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli.options import (
    Invocation,
    ItemOptions,
    common_options,
    find_options,
    holder_option,
    item_options,
    pass_invocation,
    size_ignored_option,
    use_options,
)
from sccache_dtool.disk.names import cache_of
from sccache_dtool.errors import CacheError, LeaseLost, NoCache, NoSpace, UsageError, explain
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import Request
from sccache_dtool.fetch.words import MANY
from sccache_dtool.find import Named, NotFound
from sccache_dtool.liveness.caller import RUN, Owner
from sccache_dtool.protocol.leases import Lease

if TYPE_CHECKING:
    from sccache_dtool.cli.use_many import Many
    from sccache_dtool.sets.holding import HeldSet


_from_option = click.option(
    "--from",
    "file",
    metavar="FILE",
    help="Use all items that FILE lists (-: standard input), one on each line: SOURCE [STEP]... @PATH; or in TOML.",
)


@click.command("use")
@item_options
@_from_option
@holder_option
@use_options
@common_options()
@pass_invocation
def use_command(
    call: Invocation, item: ItemOptions, file: str | None, holder: str, options: UseOptions, parents: bool
) -> None:
    """Take a lease on an item and print its path, alone.

    If the item is not in the cache, one of the processes that ask for it fetches it, and the others wait. SOURCE is a
    path or a URL. Each STEP processes what was fetched: sha256:HEX checks a digest, tar unpacks an archive.
    `sc-dtool loaders` lists all kinds of sources and steps.

    The lease lasts until `unuse`. In a batch job, it ends with the job at the latest. Elsewhere, it ends with the
    calling process: the nearest one that is not a wrapper such as timeout, env or sudo. Uses are counted: whoever
    calls `use` twice calls `unuse` twice.

    With --from, leases are taken on all items of a manifest, or on none, and the path is that of a view: a directory
    that shows each item at its PATH. `unuse` of this path releases them all. dtool:URI is such a set, too: a whole
    dtool dataset. dtool:URI#ITEM is one item of it.

    The exit code is 11 if another process is still fetching the item after --wait, 12 if the item cannot be fetched,
    and 13 if there is not enough space.

    \b
    Example:
      path=$(sc-dtool use https://example.org/hg38.tar.gz sha256:HEX tar) || exit
    """
    caches, request = _requested(call, item, file, parents)
    owner = caches[0].owner(holder)
    if not isinstance(request, Request):
        from sccache_dtool.cli.use_many import use_many

        use_many(call, caches, request, owner, options)
        return
    _note_joint_item(call, caches[0], request)
    lease = _hold(caches, request, owner, options)
    call.out.detail(f"held by {owner}")
    fields = {
        "path": os.fspath(lease),
        "item": lease.key,
        "lease": lease.name,
        "holder": str(owner),
    }
    try:
        call.out.path("use", fields, os.fspath(lease))
    except BaseException:  # a full disk, or a closed pipe: a caller that has not got the path cannot release the lease
        lease.release()
        lease.holder.retire()
        raise


def _note_joint_item(call: Invocation, cache: Cache, request: Request) -> None:
    """Say that several local files become one item, once: perhaps a shell has made them of a pattern."""
    chains = request.stack.chains
    are_files = len(chains) > 1 and all(chain.source.startswith("file:") and not chain.steps for chain in chains)
    if are_files and not cache.has(request.key):
        call.out.note(f"these {len(chains)} sources become one item, a directory with all of them; {MANY}")


@click.command("unuse")
@find_options
@size_ignored_option
@holder_option
@click.option("--all", "everything", is_flag=True, help="Release all leases of this holder on the item.")
@click.option("--evict-if-last", is_flag=True, help="Then remove the item, unless it is still in use.")
@common_options()
@pass_invocation
def unuse_command(call: Invocation, item: ItemOptions, holder: str, everything: bool, evict_if_last: bool) -> None:
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
    caches = item.caches(call)
    owners = caches[0].owners(holder)
    released, evicted = 0, False
    meant: list[tuple[Cache, Named]] = []
    for cache, named in _meant(_places(call, caches, item), words, name):
        meant.append((cache, named))
        count, keys = _release(cache, owners, named, everything=everything)
        released += count
        if evict_if_last and cache.root not in [one.root for one in caches]:
            call.out.note(f"not removed from {cache.root}: --evict-if-last does not concern an upstream cache")
        elif evict_if_last:
            gone = [cache.evict_if_idle(key) for key in dict.fromkeys(keys) if cache.item(key).copies]
            evicted = all(gone) if gone else evicted
        if released and not everything:
            break
    if not released:
        there = meant if holder == "auto" else []
        above = next((found for cache, named in there if (found := cache.holder_above(named.key))), None)
        hint = f"; its ancestor {above} does: unuse --holder pid:{above.short}" if above is not None else ""
        hint += "".join(_why_not(cache, owners, named) for cache, named in meant)
        call.out.note(f"nothing to release: {owners[-1]} holds no lease on {name or plain(' '.join(words))}{hint}")
    first = meant[0][1].key or None if meant else None
    call.out.result("unuse", {"item": first, "released": released, "evicted": evicted, "holder": str(owners[-1])})


def _places(call: Invocation, caches: Sequence[Cache], item: ItemOptions) -> Iterator[Cache]:
    """Where the leases may be: in the cache that a path is in, whichever that is; or in the caches, or upstream.

    An upstream comes last, so that it is not asked if a cache has the lease: it may be away.
    """
    path = item.words[0] if len(item.words) == 1 and item.name is None else ""
    home = next((cache for cache in caches if path and cache.is_within(path)), None)
    root = cache_of(path) if home is None else None
    if home is not None or root is not None:
        yield home or call.cache(root)
        return
    yield from caches
    for cache in caches:
        yield from itertools.islice(cache.tiers(), 1, None)


def _meant(caches: Iterable[Cache], words: tuple[str, ...], name: str | None) -> Iterator[tuple[Cache, Named]]:
    """What the words mean in each directory that is a cache.

    Raises NotFound if no cache knows the item, and NoCache if the only directory is not a cache.
    """
    found = False
    refusals: list[CacheError] = []
    for cache in caches:
        try:
            named = cache.find_used(words, name)
        except (NotFound, NoCache) as error:
            refusals.append(error)
        else:
            found = True
            yield cache, named
    unknown = [error for error in refusals if isinstance(error, NotFound)] or refusals
    if not found and (isinstance(unknown[0], NotFound) or len(unknown) == 1):
        raise unknown[0]


def _release(cache: Cache, owners: Sequence[Owner], meant: Named, *, everything: bool) -> tuple[int, list[str]]:
    """Release what is meant; how often, and the keys of the items that were held."""
    if meant.session or meant.dataset:
        from sccache_dtool.cli import use_many

        return use_many.release(cache, owners, meant, everything=everything)
    count = cache.release(owners, meant.key, everything=everything, generation=meant.generation)
    return count, [meant.key]


def _why_not(cache: Cache, owners: Sequence[Owner], meant: Named) -> str:
    if not (meant.session or meant.dataset):
        session = cache.session_holding(owners, meant.key)
        if session is None:
            return ""
        return f"; session {session} holds it with its other items: {cache.store.command('session', 'rm', session)}"
    from sccache_dtool.cli import use_many

    return use_many.why_not(cache, owners, meant)


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
@_from_option
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
    file: str | None,
    options: UseOptions,
    parents: bool,
    replace: str,
    keep_going: bool,
) -> int:
    """Hold a lease on an item while COMMAND runs.

    SOURCE, STEP and --from are as in `use`. COMMAND finds the path in $SC_DTOOL_PATH, and in place of each argument
    that is {}. The directory that shows many items is in $SC_DTOOL_VIEW as well.
    Signals sent to sc-dtool are forwarded to COMMAND. The lease is renewed while COMMAND runs. If it is lost
    nevertheless, COMMAND gets SIGTERM. Once COMMAND has started, the exit code is always that of COMMAND. Errors of
    sc-dtool are then only printed.

    \b
    Example:
      sc-dtool run https://example.org/hg38.tar.gz tar -- align --reference {} sample.fastq
    """
    from sccache_dtool.cli.child import Child

    call = ctx.ensure_object(Invocation)
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
        call.out.error(error)

    try:
        caches, request = _requested(call, item, file, parents)
        owner = caches[0].owner_of_command(child.pid, command)
        held = _hold_for_command(caches, request, owner, options)
        path = os.fspath(held)
        order = [path if word == replace != "" else word for word in command]
        names = ("SC_DTOOL_PATH",) if isinstance(held, Lease) else ("SC_DTOOL_PATH", "SC_DTOOL_VIEW")
        try:
            extra = {**dict.fromkeys(names, path), RUN: str(child.pid)}
            return child.run(order, extra, lambda: held.holder.start_heartbeat(give_up))
        finally:
            _give_back(call, held, lost)
    finally:
        child.close()
        if not call.owns_process:
            child.restore()


def _give_back(call: Invocation, held: Lease | HeldSet, lost: Sequence[LeaseLost]) -> None:
    """Release what a command holds, and report errors. Nothing is raised: the exit code is the command's."""
    holder = held.holder
    failed: CacheError | None = None
    try:
        holder.stop_heartbeat()
        all_kept = held.release() == (1 if isinstance(held, Lease) else len(held))
        # Without this condition, a lease that a cleaner ended because the command had ended would be reported as lost.
        noticed_late = holder.revoked() if not (all_kept or lost) and holder.has_lapsed else None
        holder.retire()
        if noticed_late is not None:
            call.out.error(noticed_late)
    except OSError as error:
        failed = CacheError(f"could not release the lease: {explain(error)}")
    except CacheError as error:
        failed = error
    except Exception as error:
        failed = CacheError(f"could not release the lease: {type(error).__name__}: {error}")
    if failed is not None:
        failed.hint = f"`{call.command('reap')}`, or the next `clean`, ends the leases of a command that has ended"
        call.out.error(failed)


@click.command("renew")
@holder_option
@common_options()
@pass_invocation
def renew_command(call: Invocation, holder: str) -> None:
    """Extend the lifetime of leases taken with `use --ttl`.

    All leases of the holder that have a lifetime get the same lifetime again, counted from now. Use it in scripts that
    run longer than their --ttl, and for leases held under a name (--holder NAME). Leases in the upstream are extended
    as well.

    \b
    Example:
      sc-dtool renew --holder nightly
    """
    cache = call.cache()
    owners = cache.owners(holder)
    renewed = cache.renew(owners)
    for tier in list(cache.tiers())[1:]:
        try:
            renewed += tier.renew(owners)
        except NoCache as error:
            call.out.warning(f"leases in the upstream are not renewed: {error.message}")
    if not renewed:
        call.out.note(f"nothing to renew: {owners[-1]} holds no lease with a lifetime (--ttl)")
    call.out.result("renew", {"renewed": renewed, "holder": str(owners[-1])})


def _requested(
    call: Invocation, item: ItemOptions, file: str | None, parents: bool
) -> tuple[list[Cache], Request | Many]:
    """The caches, and what the words or the manifest mean."""
    if file is not None and (item.words or item.name is not None):
        raise UsageError("--from cannot be combined with a SOURCE or -n", hint="add the item to the manifest")
    caches = item.caches(call, parents=parents)
    request = None if file is not None else caches[0].request(item.words, item.name)
    if isinstance(request, Request):
        return caches, request
    from sccache_dtool.cli.use_many import Many

    return caches, Many.of_dataset(request) if request is not None else Many.from_file(caches[0], file or "-")


def _hold_for_command(
    caches: Sequence[Cache], request: Request | Many, owner: Owner, options: UseOptions
) -> Lease | HeldSet:
    """What a command needs, all of one holder."""
    if isinstance(request, Request):
        return _hold(caches, request, owner, options, beats=True)
    from sccache_dtool.cli.use_many import hold_many

    return hold_many(caches, request, owner, options, beats=True)


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
        try:
            return there.hold(owner, request, options_in(there))
        except (NoSpace, OSError) as error:
            return _hold([there.upstream_after(error)], request, owner, options, beats=beats)
    from sccache_dtool.cli.placement import fetch_where_room_is

    return fetch_where_room_is(caches, request, options, lambda cache: cache.hold(owner, request, options_in(cache)))
