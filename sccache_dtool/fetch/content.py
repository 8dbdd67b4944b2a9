"""Which digests the files of a payload must have, and whether they have them."""

from __future__ import annotations

import stat
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import CacheError
from sccache_dtool.fetch.sink import Digests
from sccache_dtool.fetch.stack import parse_stack
from sccache_dtool.fetch.words import is_digest

if TYPE_CHECKING:
    from sccache_dtool.fetch.progress import Progress

#: Digests by algorithm, of a file below a payload ("" for the payload itself).
Expected = dict[str, dict[str, str]]


def digests_of(facts: ItemFacts) -> Expected:
    """Which digests the files of a payload have: those that were checked after everything else was done."""
    if not facts.source:
        return {}
    try:
        chains = parse_stack(facts.source, cwd="/").chains
    except CacheError:  # of a dataset, or of a plugin that is not here
        steps = facts.source[1:]
        return {"": _noted(facts)} if all(is_digest(step) for step in steps) else {"": _last(steps)}
    if len(chains) == 1:
        return {"": _last(chains[0].steps)}
    return {f"/{chain.label}": _last(chain.steps) for chain in chains}


def wrong_digests(fs: FileSystem, path: str, digests: dict[str, str], progress: Progress | None) -> dict[str, str]:
    """Read a file: its digests that are others than they should be, by algorithm, with what they are."""
    taken = Digests(sorted(digests))
    fd = fs.open(path)
    try:
        if not stat.S_ISREG(fs.fstat(fd).st_mode):
            return dict.fromkeys(digests, "not available, because it is not a file")
        for data in iter(partial(fs.read, fd), b""):
            taken.update(data)
            if progress is not None:
                progress.advance(len(data))
    finally:
        fs.close(fd)
        found = taken.hexdigests()
    return {name: digits for name, digits in found.items() if digits != digests[name]}


def _last(steps: Any) -> dict[str, str]:
    pairs = (step.partition(":") for step in takewhile(is_digest, reversed(steps)))
    return {algorithm: digits for algorithm, _, digits in pairs}


def _noted(facts: ItemFacts) -> dict[str, str]:
    pairs = (facts.digests or {}).items()
    return {name: digits for name, digits in pairs if is_digest(f"{name}:{digits}")}
