"""`use`, `unuse`, `run`, `renew`: what batch jobs call."""

from __future__ import annotations

import os
import signal
from typing import Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation, common_options, lasting_options, naming_options, pass_invocation
from sccache_dtool.errors import Exit, LeaseLost, NoSpace, UsageError
from sccache_dtool.holders import Owner
from sccache_dtool.leases import Lease


@click.command("use")
@naming_options
@lasting_options
@common_options()
@pass_invocation
def use_command(
    now: Invocation,
    name: str | None,
    size: int | None,
    directories: str | None,
    holder: str,
    words: tuple[str, ...],
    ttl: float | None,
    wait: float | None,
) -> None:
    """Take a lease on an item and print its path, alone.

    What is not in the cache is fetched first, by one of all who want it. SOURCE is a path or an http(s) URL, STEP
    what is done with it: sha256:HEX (or another digest) checks it, tar unpacks it.

    The lease lasts until `unuse`, or until the process that called ends: the nearest that is no wrapper such as
    timeout, env or sudo. Uses are counted: who calls twice gives back twice.
    """
    lease, owner = _hold(now, directories, words, name, size, holder, ttl, wait)
    now.out.detail(f"held by {owner}")
    fields = {
        "path": os.fspath(lease),
        "item": lease.key,
        "lease": lease.name,
        "holder": str(owner),
    }
    now.out.result("use", fields, os.fspath(lease))


@click.command("unuse")
@naming_options
@click.option("--all", "everything", is_flag=True, help="Give back all uses of this holder on the item.")
@click.option("--evict-if-last", is_flag=True, help="Remove the item if nobody else uses it.")
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
    """Give back a use: the same words as for `use`, or the path that it printed.

    Once too often is no error: it says so, and exits 0.
    """
    caches = [now.cache(directory) for directory in _split(directories)]
    owners = caches[0].owners(holder)
    key = caches[0].key_for(words, name)
    released, evicted = 0, False
    for cache in caches:
        if len(caches) > 1 and not cache.has(key):
            continue
        released += cache.release(owners, key, everything=everything)
        if evict_if_last and cache.item(key).copies:
            evicted = cache.evict_if_idle(key)
        if released and not everything:
            break
    if not released:
        now.out.note(f"nothing to give back: {owners[-1]} holds no lease on {name or ' '.join(words)}")
    now.out.result("unuse", {"item": key, "released": released, "evicted": evicted, "holder": str(owners[-1])}, None)


class _WithCommand(click.Command):
    """A command whose words end at ``--``, where somebody else's begin."""

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
@click.option("--keep-going", is_flag=True, help="Let COMMAND go on when its lease is lost.")
@common_options()
@click.pass_context
def run_command(
    ctx: click.Context,
    name: str | None,
    size: int | None,
    directories: str | None,
    holder: str,
    words: tuple[str, ...],
    ttl: float | None,
    wait: float | None,
    keep_going: bool,
) -> int:
    """Run COMMAND with a lease on an item, and return its exit code.

    The path is in $SC_DTOOL_PATH, and wherever COMMAND says {}. Signals sent to sc-dtool reach COMMAND. The lease
    shows a heartbeat; if it is lost all the same, COMMAND is sent SIGTERM and the exit code is 75.
    """
    from sccache_dtool.cli.child import Child

    now = ctx.ensure_object(Invocation)
    command: list[str] = ctx.meta.get("command", [])
    if not command:
        raise UsageError("no command to run", hint="put it after two dashes: sc-dtool run SOURCE -- COMMAND...")
    lost: list[LeaseLost] = []
    child = Child()

    def give_up(error: LeaseLost) -> None:
        lost.append(error)
        now.out.error(error)
        if not keep_going:
            child.tell(signal.SIGTERM)

    try:
        lease, _ = _hold(now, directories, words, name, size, holder, ttl, wait, child=(child.pid, command))
        path = os.fspath(lease)
        order = [word.replace("{}", path) for word in command]
        try:
            code = child.run(order, {"SC_DTOOL_PATH": path}, lambda: lease.holder.start_heart(give_up))
        finally:
            lease.release()
            lease.holder.retire()
    finally:
        child.abandon()
    return Exit.LEASE_LOST if lost and not keep_going else code


@click.command("renew")
@click.option("--holder", default="auto", metavar="WHO", help="Whose leases: auto, pid:N, or a name.")
@common_options()
@pass_invocation
def renew_command(now: Invocation, holder: str) -> None:
    """Begin another lifetime for all leases taken with `use --ttl`.

    For scripts that run longer than they thought, and for holders that are but a name.
    """
    cache = now.cache()
    owners = cache.owners(holder)
    renewed = cache.renew(owners)
    if not renewed:
        now.out.note(f"nothing to renew: {owners[-1]} holds no lease with a lifetime (--ttl)")
    now.out.result("renew", {"renewed": renewed, "holder": str(owners[-1])}, None)


def _hold(
    now: Invocation,
    directories: str | None,
    words: tuple[str, ...],
    name: str | None,
    size: int | None,
    holder: str,
    ttl: float | None,
    wait: float | None,
    child: tuple[int, list[str]] | None = None,
) -> tuple[Lease, Owner]:
    """A lease on what the words mean, in the first cache that has it, or else the first with room for it."""
    caches = [now.cache(directory) for directory in _split(directories)]
    wanted = caches[0].wanted(words, name)
    cache = next((cache for cache in caches if cache.has(wanted.key)), None) or _first_with_room(caches, size)
    if child is None:
        owner = cache.owner(holder)
    else:
        owner = cache.owner_of_command(*child)
        ttl = cache.heartbeat_ttl if ttl is None else ttl
    return cache.hold(owner, wanted, ttl=ttl, wait=wait), owner


def _first_with_room(caches: list[Cache], size: int | None) -> Cache:
    if size is None:
        return caches[0]
    short = []
    for cache in caches:
        free = cache.free_space()
        if free >= size:
            return cache
        short.append(f"{cache.root}: {output.size(size - free)} missing")
    raise NoSpace(
        f"no cache has room for {output.size(size)}", details=short, hint="free some with `sc-dtool clean`, or give -d"
    )


def _split(directories: str | None) -> list[Any]:
    """The directories of ``-d``; [None], the cache of the invocation, where it was not given."""
    if directories is None:
        return [None]
    found = [directory for directory in directories.split(os.pathsep) if directory]
    if not found:
        raise UsageError("-d names no directory", hint="give one or more, with colons between: -d /scratch:/tmp")
    return found
