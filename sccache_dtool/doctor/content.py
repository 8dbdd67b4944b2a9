"""Reading whole payloads again: whether they still are what was published."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Copy
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import PAYLOAD, key_label
from sccache_dtool.disk.records import Damaged
from sccache_dtool.disk.trees import Usage
from sccache_dtool.doctor.copies import EVICTS, Evict
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.errors import GONE, CacheError, explain
from sccache_dtool.fetch.sink import Digests
from sccache_dtool.fetch.stack import parse_stack
from sccache_dtool.fetch.words import is_digest
from sccache_dtool.protocol.store import Store

if TYPE_CHECKING:
    from sccache_dtool.catalog.facts import ItemFacts
    from sccache_dtool.fetch.progress import Progress

#: Digests by algorithm, of a file below a payload ("" for the payload itself).
Expected = dict[str, dict[str, str]]


class Checked(NamedTuple):
    """What came of it: bad copies, how many were read, and how many have no digest that could be checked."""

    bad: tuple[Finding, ...]
    read: int
    without_digest: int


def verify_content(store: Store, progress: Progress | None, evict: Evict) -> Checked:
    """Read all payloads that have a digest, with a buffer of one size however large they are.

    `examine` compares sizes, and reports unknown names. What has just been evicted is passed over: it is not bad.
    """
    bad: list[Finding] = []
    read = without = 0
    for item in items.scan(store):
        for copy in item.copies:
            expected = {} if copy.closed else _expected(store, copy)
            if not any(expected.values()):
                without += not copy.closed
                continue
            read += 1
            bad.extend(_read(store, copy, expected, progress, evict))
    return Checked(tuple(bad), read, without)


def _expected(store: Store, copy: Copy) -> Expected:
    """Which digests the files of a payload have: those that were checked after everything else was done."""
    try:
        facts = items.facts(store, copy.key, str(copy.generation))
    except (OSError, Damaged):
        return {}
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


def _last(steps: Any) -> dict[str, str]:
    pairs = (step.partition(":") for step in takewhile(is_digest, reversed(steps)))
    return {algorithm: digits for algorithm, _, digits in pairs}


def _noted(facts: ItemFacts) -> dict[str, str]:
    pairs = (facts.digests or {}).items()
    return {name: digits for name, digits in pairs if is_digest(f"{name}:{digits}")}


def _read(store: Store, copy: Copy, expected: Expected, progress: Progress | None, evict: Evict) -> Iterator[Finding]:
    directory = store.layout.generation(copy.key, str(copy.generation))
    try:
        name = items.payload_name(store, copy.key, copy.generation)
        size = Usage(copy.generation.bytes, copy.generation.entries)
        if name is None or store.fs.usage(f"{directory}/{PAYLOAD}/{name}") != size:
            return  # told of by `examine`; and reading what somebody has made longer may have no end
        if progress is not None:
            progress.start(f"reading {key_label(copy.key)}", copy.generation.bytes)
        for inner, digests in expected.items():
            path = f"{directory}/{PAYLOAD}/{name}{inner}"
            wrong = {} if not digests else _wrong(store.fs, path, digests, progress)
            for algorithm, found in wrong.items():
                what = f"its {algorithm} is {found}, but was {digests[algorithm]} when it was published"
                yield Finding(path, what, partial(evict, copy), EVICTS)
                break
    except OSError as error:
        if error.errno not in GONE:  # otherwise it was evicted while it was read
            what = f"cannot be read: {explain(error)}"
            yield Finding(directory, what, None, "run doctor again; check the file system")
    finally:
        if progress is not None:
            progress.done()


def _wrong(fs: FileSystem, path: str, digests: dict[str, str], progress: Progress | None) -> dict[str, str]:
    """The digests of a file that are others than they should be, by algorithm, with what they are."""
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
