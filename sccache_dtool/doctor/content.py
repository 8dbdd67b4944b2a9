"""Reading whole payloads again: whether they still are what was published."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Copy
from sccache_dtool.disk.names import PAYLOAD, key_label
from sccache_dtool.disk.records import Damaged
from sccache_dtool.disk.trees import Usage
from sccache_dtool.doctor.copies import EVICTS, Evict
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.errors import GONE, explain
from sccache_dtool.fetch.content import Expected, digests_of, wrong_digests
from sccache_dtool.protocol.store import Store

if TYPE_CHECKING:
    from sccache_dtool.fetch.progress import Progress


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
    try:
        return digests_of(items.facts(store, copy.key, str(copy.generation)))
    except (OSError, Damaged):
        return {}


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
            wrong = {} if not digests else wrong_digests(store.fs, path, digests, progress)
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
