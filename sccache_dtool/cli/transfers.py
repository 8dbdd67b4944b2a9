"""`transfers`, `loaders`, `locate`: who fetches what, what can be fetched, and where an item is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import click

from sccache_dtool.cli import output
from sccache_dtool.cli.options import Invocation, common_options, naming_options, pass_invocation
from sccache_dtool.cli.output import Column, Fields, field
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.transfers import State, Transfer

#: Seconds after which what has ended is shown with --all only.
_SHOWN_FOR = 60.0

#: The numbers that the Whole Tale data manager gives to states.
_NUMBERS = {
    State.INITIALIZING: 0,
    State.QUEUED: 1,
    State.TRANSFERRING: 2,
    State.PROCESSING: 2,
    State.DONE: 3,
    State.FAILED: 4,
}


@click.command("transfers")
@click.option("--all", "everything", is_flag=True, help="Also what has ended more than a minute ago, within a day.")
@common_options()
@pass_invocation
def transfers_command(now: Invocation, everything: bool) -> None:
    """Show what is being fetched: how far, how fast, by whom, who waits for it; and what has just ended, and how."""
    cache = now.cache()
    moment = time.time()
    found = cache.transfers()
    waiting: dict[str, int] = {}
    for one in found:
        waiting[one.key] = waiting.get(one.key, 0) + (one.state == State.WAITING)
    shown = [one for one in found if everything or one.ended is None or moment - one.ended < _SHOWN_FOR]
    now.out.table(
        "transfer",
        [_fields(one, waiting, moment) for one in shown],
        [
            Column("ITEM", field("name")),
            Column("STATE", field("state")),
            Column("DONE", _progress, right=True),
            Column("RATE", lambda row: f"{output.size(row['rate'])}/s" if row["rate"] else "", right=True),
            Column("WAITING", lambda row: str(row["waiting"] or ""), right=True),
            Column("BY", field("by")),
            Column("WHAT HAPPENED", lambda row: row["error"] or ""),
        ],
    )
    if not shown:
        now.out.note("nothing is being fetched" if everything else "nothing is being fetched; --all shows what was")


def _fields(one: Transfer, waiting: dict[str, int], moment: float) -> dict[str, Any]:
    rate = one.rate(moment)
    return {
        "item": one.key,
        "name": one.label,
        "state": str(one.state),
        "state_number": _NUMBERS.get(State(one.state)),
        "bytes": one.bytes,
        "total": one.total,
        "percent": None if one.percent is None else round(one.percent, 1),
        "rate": None if rate is None else round(rate),
        "by": one.by,
        "error": one.error,
        "attempts": one.attempts,
        "waiting": 0 if one.state == State.WAITING else waiting.get(one.key, 0),
        "began": output.moment(one.began),
        "ended": output.moment(one.ended),
        "source": list(one.source),
    }


def _progress(row: Fields) -> str:
    if row["state"] == State.WAITING:
        return ""
    done = output.size(row["bytes"])
    if row["state"] == State.DONE or row["percent"] is None:
        return done
    return f"{done} of {output.size(row['total'])}, {row['percent']:.0f} %"


@click.command("loaders")
@common_options()
@pass_invocation
def loaders_command(now: Invocation) -> None:
    """List the sources and steps that there are, and say what has to be installed for those that are not ready."""
    rows = list(_loaders())
    now.out.table(
        "loader",
        rows,
        [
            Column("KIND", field("kind")),
            Column("NAME", field("name")),
            Column("READY", lambda row: "yes" if row["ready"] else f"not installed: {row['missing']}"),
            Column("WHAT IT IS", field("summary")),
        ],
    )


def _loaders() -> Iterator[dict[str, Any]]:
    from sccache_dtool.fetch import decompress, plugins, remote
    from sccache_dtool.fetch.words import CHECKSUMS, REMOTE, SOURCES, STEPS

    for scheme in SOURCES:
        yield _loader("source", scheme, None, "a file or directory here" if scheme == "file" else "a file on the web")
    for scheme in REMOTE:
        missing = remote.missing(scheme)
        yield _loader("source", scheme, f"pip install {missing}" if missing else None, "a file, opened with fsspec")
    yield from _plugins("source", plugins.SOURCES)
    for name in STEPS:
        if name in ("tar", "zip"):
            yield _loader("step", name, None, "unpacks")
        else:
            yield _loader("step", name, decompress.missing(name), "decompresses")
    import hashlib

    for name in (*CHECKSUMS, *sorted(hashlib.algorithms_guaranteed)):
        if name in CHECKSUMS or hashlib.new(name, usedforsecurity=False).digest_size:
            yield _loader("step", name, None, "checks a digest")
    yield from _plugins("step", plugins.STEPS)


def _plugins(kind: str, group: str) -> Iterator[dict[str, Any]]:
    from sccache_dtool.fetch import plugins

    for name, package, plugin in plugins.listing(group):
        if isinstance(plugin, CacheError):
            yield _loader(kind, name, plugin.message, f"from {package}")
        else:
            yield _loader(kind, name, plugin.missing(), plugin.summary or f"from {package}")


def _loader(kind: str, name: str, missing: str | None, summary: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "ready": missing is None, "missing": missing, "summary": summary}


@click.command("locate")
@naming_options
@common_options()
@pass_invocation
def locate_command(
    now: Invocation, name: str | None, size: int | None, directories: str | None, words: tuple[str, ...]
) -> None:
    """Print the path of an item that is in the cache, without taking a lease: only `use` keeps it there.

    The same words as for `use`. Exits with 1 if it is in none of the caches.
    """
    caches = [now.cache(one) for one in (directories or "").split(os.pathsep) if one] or [now.cache()]
    key = caches[0].key_for(words, name)
    for cache in caches:
        if not cache.has(key):
            continue
        for copy in cache.item(key).copies:
            path = None if copy.closed else cache.path(copy)
            if path is not None and cache.is_whole(copy, path):
                now.out.path("locate", {"path": str(path), "item": key}, str(path))
                return
    if not words and name is None:
        raise UsageError("nothing to locate", hint="give the words that `use` was given")
    raise CacheError(f"{name or plain(' '.join(words))} is not in {' or '.join(str(cache.root) for cache in caches)}")
