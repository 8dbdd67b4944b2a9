"""Carrying out a loader stack in a work area, until what lies there is complete, verified and durable."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NamedTuple

from sccache_dtool.disk.names import PAYLOAD, WORK
from sccache_dtool.errors import FULL, FetchFailed, NoSpace, UsageError, explain
from sccache_dtool.fetch import partial, slots, versions
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.reasons import CONTROL, plain
from sccache_dtool.fetch.request import Chain, Request, Stack, Terms
from sccache_dtool.fetch.sink import Throttle
from sccache_dtool.fetch.sources import require as require_source
from sccache_dtool.fetch.sources import retrieve
from sccache_dtool.fetch.stack import label_for
from sccache_dtool.fetch.steps import apply_step
from sccache_dtool.fetch.steps import require as require_step
from sccache_dtool.fetch.track import Track
from sccache_dtool.fetch.words import is_digest
from sccache_dtool.protocol.store import Store


class Fetched(NamedTuple):
    """What lies at ``payload/<name>`` of a work area, complete and read-only."""

    name: str
    bytes: int
    entries: int  # files and directories, the payload itself included
    digests: dict[str, str]  # those that were checked, in hexadecimal, by algorithm
    announced: int | None  # bytes of the source, if it said so
    versions: Sequence[Mapping[str, object] | None] = ()  # what tells the version of each source; see `versions.py`
    version: str | None = None  # what stands for the versions of local sources in the name of the copy
    noted: Mapping[str, Any] = MappingProxyType({})  # fields of `item.json` that are those of another copy


def fetch(
    store: Store,
    request: Request,
    area: str,
    *,
    progress: Progress,
    track: Track | None = None,
    terms: Terms | None = None,
) -> Fetched:
    """Fetch an item into `area`, a private empty directory: ``area/payload/<label>`` is made, and nothing else.

    An item without a source is an empty directory. `track`: what others see of it; it takes the place of `progress`.
    `terms`: how fast it may be, and how long it waits for other downloads of this host; None: no bounds.

    Raises FetchFailed, NoSpace (a quota included), or UsageError for a label that is not a file name; what was made
    until then is left in `area`, and the caller removes it.
    """
    fs, stack, name = store.fs, request.stack, request.label
    what = stack.source or plain(name)
    if not is_payload_name(name):
        raise UsageError(f"{plain(name)!r} cannot be the name of a payload")
    throttle = None if terms is None or terms.rate is None else Throttle(terms.rate, store.clock)
    context = Context(store, track or progress, track, throttle, wait=None if terms is None else terms.wait)
    came: list[Retrieved] = []
    payload, work, shared = f"{area}/{PAYLOAD}", f"{area}/{WORK}", store.layout.shared
    try:
        for chain in stack.chains:  # what cannot be done on this host, before the first byte is fetched
            if request.retrieve is None:
                require_source(chain)
            for step in chain.steps:
                require_step(step, chain.mirrors[0].name, chain.source)
        fs.mkdir(payload, shared=shared)
        if not stack:
            fs.mkdir(f"{payload}/{name}")
        else:
            fs.mkdir(work, shared=shared)
            # Everything is fetched before anything is unpacked, so that whoever continues an interrupted fetch finds
            # every file that was complete.
            for index, chain in enumerate(stack.chains):
                context = context._replace(number=index, step=chain.steps[0] if chain.steps else "")
                came.append(_retrieve(context, request, chain, f"{work}/{index}", terms))
            if stack.provisional and came[0].name:
                given = label_for(came[0].name, stack.chains[0].steps)  # by a server, or another's interrupted download
                name = given if is_payload_name(given) else name
            _fill(context, stack, work, f"{payload}/{name}", shared)
            fs.rmdir(work)
        context.progress.stage("writing to disk")
        fs.seal(payload, shared=shared)
        usage = fs.usage(f"{payload}/{name}")
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(
                f"no space left in {area} while fetching {what}: {plain(explain(error))}",
                hint="free space with: sc-dtool clean",
            ) from error
        raise FetchFailed(f"cannot fetch {what}: {plain(explain(error, what))}") from error
    finally:
        context.progress.done()
    checked = dict(_digest(step) for chain in stack.chains for step in chain.steps if is_digest(step))
    sizes = [one.announced for one in came]
    announced = None if None in sizes or not sizes else sum(size for size in sizes if size is not None)
    facts = [one.version for one in came]
    version = None if request.retrieve is not None else versions.tag_of(facts, stack.chains)
    return Fetched(name, usage.bytes, usage.entries, checked, announced, facts, version)


def is_payload_name(name: str) -> bool:
    """Whether a payload can be called so: a file name that drives no terminal."""
    try:
        os.fsencode(name)
    except UnicodeError:
        return False
    return name not in ("", ".", "..") and "/" not in name and not CONTROL.search(name)


def _retrieve(context: Context, request: Request, chain: Chain, path: str, terms: Terms | None) -> Retrieved:
    """Bring the source of a chain to `path`, within one of the slots of this host."""
    digests = [_digest(step) for step in takewhile(is_digest, chain.steps)]

    def on_queue() -> None:
        if context.track is not None:
            context.track.queue()
        context.store.log.note("waiting for your other downloads on this host to end")

    wait = None if terms is None or chain.mirrors[0].scheme == "file" else terms.wait
    with nullcontext() if wait is None else slots.slot(context.clock, wait, on_queue):
        if request.retrieve is not None:
            request.retrieve(context.fs, path, context.progress)
            retrieved = Retrieved({}, None)
        else:
            seen = versions.see(context, chain)
            retrieved = retrieve(context, chain, path, digests)
            if seen is not None:
                retrieved = retrieved._replace(version=versions.confirm(context, seen))
    if chain.steps and stat.S_ISDIR(context.fs.lstat(path).st_mode):
        raise FetchFailed(
            f"cannot fetch {chain.source}: it is a directory, and {chain.steps[0]} needs a file", shared=True
        )
    return retrieved


def _fill(context: Context, stack: Stack, work: str, target: str, shared: bool) -> None:
    """Make the payload of what was retrieved: do the steps of each source, and move what comes of them in place."""
    several = len(stack.chains) > 1
    if several:
        context.fs.mkdir(target, shared=shared)
    for index, chain in enumerate(stack.chains):
        path = f"{work}/{index}"
        partial.tidy(context, path)
        at_once = len(list(takewhile(is_digest, chain.steps)))
        for number, step in enumerate(chain.steps[at_once:], 1):
            path = apply_step(context, step, path, f"{work}/{index}.{number}", chain.source)
        context.fs.rename(path, f"{target}/{chain.label}" if several else target)


def _digest(step: str) -> tuple[str, str]:
    algorithm, _, expected = step.partition(":")
    return algorithm, expected
