"""Carrying out a loader stack in a work area, until what lies there is complete, verified and durable."""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

from sccache_dtool.errors import FULL, FetchFailed, NoSpace, UsageError, explain
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.reasons import CONTROL, plain
from sccache_dtool.fetch.sources import retrieve
from sccache_dtool.fetch.stack import Stack, is_digest
from sccache_dtool.fetch.transforms import apply_step, compare
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import PAYLOAD


class Fetched(NamedTuple):
    """What lies at ``payload/<name>`` of a work area, complete and read-only."""

    name: str
    bytes: int
    entries: int  # files and directories, the payload itself included
    digests: dict[str, str]  # those that were checked, in hexadecimal, by algorithm
    announced: int | None  # bytes of the source, if it said so


def fetch(
    fs: FileSystem, stack: Stack, area: str, *, progress: Progress, label: str | None = None, shared: bool = False
) -> Fetched:
    """Fetch `stack` into `area`, a private empty directory: ``area/payload/<label>`` is made, and nothing else.

    The default of `label` is the stack's. An empty stack makes an empty directory. `shared`: the directory's group may
    read the files, and remove them. Raises FetchFailed, NoSpace (a quota included), or UsageError for a label that is
    no file name; what was made until then is left in `area`, and the caller removes it.
    """
    name = label or stack.label
    what = stack.source or plain(name)
    if name in (".", "..") or "/" in name or CONTROL.search(name):
        raise UsageError(f"{plain(name)!r} cannot be the name of a payload")
    try:
        return _carry_out(fs, stack, area, name, progress, shared)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(
                f"no space left in {area} while fetching {what}: {plain(explain(error))}",
                hint="`sc-dtool clean` makes room",
            ) from error
        raise FetchFailed(f"cannot fetch {what}: {plain(explain(error))}") from error
    finally:
        progress.done()


def _carry_out(fs: FileSystem, stack: Stack, area: str, name: str, progress: Progress, shared: bool) -> Fetched:
    payload = f"{area}/{PAYLOAD}"
    target = f"{payload}/{name}"
    digests: dict[str, str] = {}
    announced = None
    fs.mkdir(payload)
    if stack:
        work = f"{area}/work"
        fs.mkdir(work)
        at_once = [_digest(step) for step in takewhile(is_digest, stack.steps)]
        path = f"{work}/0"
        retrieved = retrieve(fs, stack, path, [algorithm for algorithm, _ in at_once], progress)
        announced = retrieved.announced
        for algorithm, expected in at_once:
            compare(algorithm, expected, retrieved.digests[algorithm], stack.source)
        for number, step in enumerate(stack.steps[len(at_once) :], 1):
            path = apply_step(fs, step, path, f"{work}/{number}", stack.source, progress)
        digests.update(_digest(step) for step in stack.steps if is_digest(step))
        fs.rename(path, target)
        fs.rmdir(work)
    else:
        fs.mkdir(target)
    progress.stage("writing to disk")
    fs.seal(payload, shared=shared)
    usage = fs.usage(target)
    return Fetched(name, usage.bytes, usage.entries, digests, announced)


def _digest(step: str) -> tuple[str, str]:
    algorithm, _, expected = step.partition(":")
    return algorithm, expected
