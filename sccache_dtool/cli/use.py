"""`use`, `unuse`, `run`, `renew`: take, release and renew leases."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli.options import (
    Invocation,
    common_options,
    fetching_options,
    holder_option,
    lasting_options,
    naming_options,
    pass_invocation,
)
from sccache_dtool.cli.output import Output
from sccache_dtool.errors import CacheError, LeaseLost, NoCache, UsageError, explain
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DTOOL
from sccache_dtool.find import Named, NotFound
from sccache_dtool.protocol.holders import Owner
from sccache_dtool.protocol.leases import Lease


@click.command("use")
@naming_options
@holder_option
@lasting_options
@fetching_options
@common_options()
@pass_invocation
def use_command(
    now: Invocation,
    name: str | None,
    size: int | None,
    directories: str | None,
    parents: bool,
    holder: str,
    words: tuple[str, ...],
    ttl: float | None,
    wait: float | None,
    max_rate: int | None,
    make_room: bool,
    refresh: bool,
    max_age: float | None,
) -> None:
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
    terms = {"ttl": ttl, "wait": wait, "size": size, "rate": _rate(max_rate), "make_room": make_room}
    terms["max_age"] = _max_age(refresh, max_age)
    if _is_dataset(words):
        from sccache_dtool.cli.use_dataset import use_dataset

        use_dataset(now, _caches(now, directories, parents, progress=None), words, name, holder, terms)
        return
    lease, owner = _hold(now, directories, parents, words, name, holder, terms)
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
@naming_options
@holder_option
@click.option("--all", "everything", is_flag=True, help="Release all leases of this holder on the item.")
@click.option("--evict-if-last", is_flag=True, help="Then remove the item, unless it is still in use.")
@common_options()
@pass_invocation
def unuse_command(
    now: Invocation,
    name: str | None,
    size: int | None,
    directories: str | None,
    holder: str,
    words: tuple[str, ...],
    everything: bool,
    evict_if_last: bool,
) -> None:
    """Release a lease that `use` took.

    Give the path that `use` printed, the words that `use` was given, or the item's name or key. A path means the lease
    on that copy only. Releasing an item that is not in use is not an error: the command says so and exits with 0.

    \b
    Example:
      sc-dtool unuse "$path"
    """
    if not words and name is None:
        raise UsageError(
            "no item is given", hint="give the path that `use` printed, the words that it was given, or -n NAME"
        )
    caches = _caches(now, directories)
    owners = caches[0].owners(holder)
    meant = _meant(caches, words, name)
    released, evicted = 0, False
    for cache, (key, generation) in meant:
        give_back, evict = _ways_back(cache, words, key)
        released += give_back(cache, owners, key, everything=everything, generation=generation)
        if evict_if_last and cache.item(key).copies:
            evicted = evict(cache, key)
        if released and not everything:
            break
    if not released:
        there = meant if holder == "auto" else []
        above = next((found for cache, (key, _) in there if (found := cache.holder_above(key))), None)
        hint = f"; its ancestor {above} does: unuse --holder pid:{above.short}" if above is not None else ""
        now.out.note(f"nothing to release: {owners[-1]} holds no lease on {name or plain(' '.join(words))}{hint}")
    item = meant[0][1].key if meant else None
    now.out.result("unuse", {"item": item, "released": released, "evicted": evicted, "holder": str(owners[-1])})


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


def _ways_back(
    cache: Cache, words: tuple[str, ...], key: str
) -> tuple[Callable[..., int], Callable[[Cache, str], bool]]:
    """The functions that release an item, and that evict it."""
    if key.endswith(".dataset"):
        from sccache_dtool.dtool import staging  # only for datasets: importing it takes as long as everything else

        if staging.is_view(cache, words, key):
            return staging.release, staging.evict
    return Cache.release, Cache.evict_if_idle


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
@naming_options
@lasting_options
@fetching_options
@click.option(
    "-I", "--replace", default="{}", metavar="STR", help="Replace arguments that are STR instead of {}; empty: none."
)
@click.option("--keep-going", is_flag=True, help="If the lease is lost, let COMMAND run on.")
@common_options()
@click.pass_context
def run_command(
    ctx: click.Context,
    name: str | None,
    size: int | None,
    directories: str | None,
    parents: bool,
    words: tuple[str, ...],
    ttl: float | None,
    wait: float | None,
    max_rate: int | None,
    make_room: bool,
    replace: str,
    refresh: bool,
    max_age: float | None,
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
    child = Child(now.out.warning)

    def give_up(error: LeaseLost) -> None:
        if child.has_ended:  # a cleaner has noticed that and ended the lease
            return
        lost.append(error)
        if not keep_going:
            child.tell(signal.SIGTERM)
        now.out.error(error)

    try:
        terms = {"ttl": ttl, "wait": wait, "size": size, "rate": _rate(max_rate), "make_room": make_room}
        terms["max_age"] = _max_age(refresh, max_age)
        path, leases = _hold_for_command(now, directories, parents, words, name, terms, (child.pid, command))
        order = [path if word == replace != "" else word for word in command]
        try:
            return child.run(order, {"SC_DTOOL_PATH": path}, lambda: leases[0].holder.start_heart(give_up))
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
        holder.stop_heart()
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


def _is_dataset(words: tuple[str, ...]) -> bool:
    """Whether the words mean a whole dtool dataset. dtool is imported only if they may."""
    if not (words and words[0].startswith(DTOOL)):
        return False
    from sccache_dtool.dtool import staging

    return staging.is_dataset(words)


def _hold_for_command(
    now: Invocation,
    directories: str | None,
    parents: bool,
    words: tuple[str, ...],
    name: str | None,
    terms: dict[str, Any],
    child: tuple[int, list[str]],
) -> tuple[str, Sequence[Lease]]:
    """The path for a command, and the leases that it needs, all of one holder."""
    if _is_dataset(words):
        from sccache_dtool.cli.use_dataset import hold_dataset

        staged = hold_dataset(now, _caches(now, directories, parents, progress=None), words, name, terms, child)
        return os.fspath(staged), staged.all
    lease, _ = _hold(now, directories, parents, words, name, "", terms, child)
    return os.fspath(lease), (lease,)


def _hold(
    now: Invocation,
    directories: str | None,
    parents: bool,
    words: tuple[str, ...],
    name: str | None,
    holder: str,
    terms: dict[str, Any],
    child: tuple[int, list[str]] | None = None,
) -> tuple[Lease, Owner]:
    """A lease on what the words mean, in the first cache that has it, or else the first with room for it.

    `terms` are those of `Cache.hold`.
    """
    caches = _caches(now, directories, parents)
    wanted = caches[0].wanted(words, name)
    owner = caches[0].owner(holder) if child is None else caches[0].owner_of_command(*child)

    def hold(cache: Cache) -> Lease:
        ttl = cache.heartbeat_ttl if terms["ttl"] is None and child is not None else terms["ttl"]
        return cache.hold(owner, wanted, **{**terms, "ttl": ttl})

    there = caches[0] if len(caches) == 1 else next((cache for cache in caches if cache.offers(wanted)), None)
    if there is not None:
        return hold(there), owner
    from sccache_dtool.cli.placement import fetch_where_room_is

    return fetch_where_room_is(caches, wanted, terms["size"], terms["make_room"], hold), owner


def _rate(text: int | None) -> float | None:
    if text is not None and text < 1:
        raise UsageError("--max-rate must be at least one byte a second")
    return text


def _max_age(refresh: bool, max_age: float | None) -> float | None:
    """Seconds after which the source of a copy is asked whether it has changed; None: it is not asked."""
    if refresh and max_age is not None:
        raise UsageError("--refresh and --max-age cannot be combined", hint="--refresh is the same as --max-age 0s")
    return 0.0 if refresh else max_age


def _caches(now: Invocation, directories: str | None, parents: bool = False, **more: Any) -> list[Cache]:
    """The caches in the directories of ``-d``; without it, the cache of the invocation. `more`: for each `Cache`."""
    if directories is None:
        return [now.cache(parents=parents, **more)]
    found = [directory for directory in directories.split(os.pathsep) if directory]
    if not found:
        raise UsageError("-d names no directory", hint="give one or more, with colons between: -d /scratch:/tmp")
    return [now.cache(directory, parents=parents, **more) for directory in found]
