"""`lock`: leases for sessions, taken, listed, read and released by their ids."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import DURATION, Actions, Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column
from sccache_dtool.disk.names import key_label
from sccache_dtool.errors import UsageError
from sccache_dtool.sets import locks
from sccache_dtool.sets.locks import Lock


@click.group("lock", cls=Actions)
@common_options()
def lock_command() -> None:
    """Take, list, read and release locks of sessions.

    A lock is a lease on an item for a session. While it is held, the item is never removed. It ends when it is
    released, or when its session ends.

    \b
    Example:
      id=$(sc-dtool lock get s2a00f74596eaf513 /refs/hg38.fa) && sc-dtool lock cat "$id" | head
    """


@lock_command.command("ls")
@click.option("--session", metavar="ID", help="Only the locks of this session. Fast even in a large cache.")
@click.option("--item", metavar="ITEM", help="Only the locks on this item: its name, key, or a path in it.")
@click.option("--owner", metavar="WHO", help="Only the locks that were taken with this --owner.")
@click.option("--user", metavar="NAME", help="Only the locks of this user.")
@click.option("--host", metavar="NAME", help="Only the locks that were taken on this host.")
@click.option("--job", metavar="JOB", help="Only the locks of this batch job: 48211, or slurm:48211.")
@click.option("--state", type=click.Choice(locks.STATES), help="Only the locks in this state.")
@common_options()
@pass_invocation
def ls(call: Invocation, /, item: str | None, **wanted: str | None) -> None:
    """List locks and all other leases.

    OWNER is what `lock get --owner` was given; otherwise, the session, name, job or process that holds the lease. If
    several options are given, all of them must match.

    \b
    Example:
      sc-dtool lock ls --session s2a00f74596eaf513
    """
    cache = call.cache()
    found = cache.locks(item=None if item is None else cache.find(item), **wanted)
    moment = time.time()
    labels = functools.cache(key_label)
    columns = [
        Column("LOCK", attrgetter("id")),
        Column("ITEM", lambda lock: labels(lock.item)),
        Column("OWNER", attrgetter("owner")),
        Column("USER", attrgetter("user")),
        Column("HOST", attrgetter("host")),
        Column("SINCE", lambda lock: output.ago(lock.since, moment)),
        Column("STATE", attrgetter("state")),
    ]
    rows = found if call.format == "human" else _with_paths(cache, found)  # people are shown no path
    call.out.table("lock", rows, columns, empty="no locks")


@lock_command.command("get")
@click.argument("session")
@click.argument("item")
@click.option("--owner", metavar="WHO", help="A text that names who asks, for `lock ls --owner`. Default: the session.")
@click.option("--wait", type=DURATION, help="Wait at most this long for another process's download: 1h.")
@common_options()
@pass_invocation
def get(call: Invocation, session: str, item: str, owner: str | None, wait: float | None) -> None:
    """Lock ITEM for a session, and print the lock's id, alone.

    ITEM is the path of an item in the session, its name, its key, or the beginning of its key. If it is not in the
    cache, it is fetched. The exit code is 11 if another process is still fetching it after --wait, 2 if the session has
    been deleted before, and 75 if it is deleted meanwhile.

    \b
    Example:
      sc-dtool lock get s2a00f74596eaf513 /refs/hg38.fa --owner viewer-7
    """
    if owner is not None and not (0 < len(owner) <= 100 and owner.isprintable()):
        raise UsageError("an owner has 1 to 100 printable characters")
    cache = call.cache()
    lock = cache.session(session).lock(item, owner, wait)
    try:
        shown = locks.Lock(
            lock.id, session, lock.key, owner or session, "", "", None, None, None, locks.HELD, lock.place.generation
        ) if call.format == "human" else locks.show(cache.store, lock.id)  # fmt: skip
        call.out.detail(f"path: {lock.place.payload}")
        call.out.path("lock", _with_path(cache, shown), lock.id)
    except BaseException:  # a caller that has not got the id cannot release the lock
        lock.release()
        raise


@lock_command.command("show")
@click.argument("lock")
@common_options()
@pass_invocation
def show(call: Invocation, lock: str) -> None:
    """Show a lock: its item, its owner, its state and its path.

    \b
    Example:
      sc-dtool lock show n2744ccd10c75-7a037d54789b.0
    """
    cache = call.cache()
    found = locks.show(cache.store, lock)
    fields = _with_path(cache, found)
    lines = [
        f"lock     {found.id}",
        f"state    {found.state}{f' at {output.moment(found.ended)}' if found.ended else ''}",
        f"item     {found.item}",
        f"path     {fields['path'] or 'none'}",
        f"session  {found.session or 'none'}",
        f"owner    {found.owner}",
        f"by       {found.by}: {found.verdict.state}, {found.verdict.evidence}",
    ]
    call.out.result("lock", fields, *lines)


@lock_command.command("release")
@click.argument("lock")
@common_options()
@pass_invocation
def release(call: Invocation, lock: str) -> None:
    """Release a lock.

    Releasing a lock twice is not an error: the command says when it was released.

    \b
    Example:
      sc-dtool lock release n2744ccd10c75-7a037d54789b.0
    """
    found, done = locks.release(call.cache().store, lock)
    at = output.moment(found.ended)
    text = f"released {found.id}" if done else f"{found.id} was already released, at {at}"
    call.out.result("released", {"lock": found.id, "item": found.item, "by_this_call": done, "released": at}, text)


@lock_command.command("cat")
@click.argument("lock")
@click.option("--path", default="", metavar="PATH", help="A file or directory inside the item.")
@click.option("--range", "span", metavar="A-B", help="Only these bytes of the file: 0-99, 100-, or -100 for the last.")
@click.option("--tar", is_flag=True, help="Write a tar archive. Needed for a directory.")
@click.option("--wait", type=DURATION, help="Wait at most this long for the item to be fetched. Default: 0s.")
@common_options()
@pass_invocation
def cat(call: Invocation, lock: str, path: str, span: str | None, tar: bool, wait: float | None) -> None:
    """Write the content of a locked item to standard output.

    The exit code is 11 if the item is still being fetched.

    \b
    Example:
      sc-dtool lock cat n2744ccd10c75-7a037d54789b.0 --range 0-99
    """
    if tar and span is not None:
        raise UsageError("--tar and --range cannot be combined")
    wanted = (0, None) if span is None else locks.parse_range(span)
    store = call.cache().store
    payload = locks.path_of(store, locks.wait_until_held(store, lock, wait or 0.0))
    if payload is None:
        raise UsageError(
            f"the item of lock {lock} has no file or directory", hint=f"to find out why: {call.command('doctor')}"
        )
    sys.stdout.flush()
    write: Callable[[bytes], Any] = sys.stdout.buffer.write
    if tar:
        locks.write_tar(store, payload, path, sys.stdout.buffer)
    else:
        for data in locks.read(store, payload, path, wanted):
            write(data)
    sys.stdout.buffer.flush()


def _fields(lock: Lock) -> dict[str, Any]:
    return {
        "lock": lock.id,
        "session": lock.session,
        "item": lock.item,
        "owner": lock.owner,
        "user": lock.user,
        "host": lock.host,
        "job": lock.job,
        "since": output.moment(lock.since),
        "state": lock.state,
        "verdict": str(lock.verdict.state),
        "evidence": lock.verdict.evidence,
    }


def _with_path(cache: Cache, lock: Lock) -> dict[str, Any]:
    return {**next(_with_paths(cache, [lock])), "ended": output.moment(lock.ended)}


def _with_paths(cache: Cache, found: Iterable[Lock]) -> Iterator[dict[str, Any]]:
    paths: dict[tuple[str, str | None], str | None] = {}
    for lock in found:
        copy = (lock.item, lock.generation)
        if copy not in paths:
            paths[copy] = locks.path_of(cache.store, lock)
        yield {**_fields(lock), "path": paths[copy]}
