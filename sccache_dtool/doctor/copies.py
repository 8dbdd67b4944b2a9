"""What can be wrong with a copy of an item: its payload, its description, its leases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from sccache_dtool.catalog import items
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Copy
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import ITEM_FILE, PAYLOAD, is_named, key_name
from sccache_dtool.disk.records import Damaged, OtherFormat, printable
from sccache_dtool.disk.trees import Usage
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.doctor.permissions import Permissions
from sccache_dtool.errors import GONE, explain
from sccache_dtool.protocol import history
from sccache_dtool.protocol.leases import Held
from sccache_dtool.protocol.store import Store

#: Evicts a copy through its gate. Raises InUse.
Evict = Callable[[Copy], object]

EVICTS = "evicts this copy unless it is in use"
BY_HAND = "inspect it, then remove it with sc-dtool rm"


def findings(store: Store, copy: Copy, permissions: Permissions, evict: Evict) -> list[Finding]:
    """All that is wrong with a copy whose gate is open."""
    directory = store.layout.generation(copy.key, str(copy.generation))
    facts, found = _description(store, f"{directory}/{ITEM_FILE}", copy)
    payload = f"{directory}/{PAYLOAD}"
    with store.fs.near(payload):
        try:
            there = store.fs.names_if_any(payload)
        except OSError as error:
            found.append(Finding(payload, f"cannot be read ({error.strerror})", None, _who_can_repair(error)))
        else:
            for name in there:
                found += permissions.of_file(f"{payload}/{name}")
            found += _payload(store.fs, payload, there, facts, copy, partial(evict, copy))
    for held in copy.held:
        found += _lease(store.fs, f"{held.gate(store.layout)}/{held.name}", held)
    return found


def _who_can_repair(error: OSError) -> str:
    may_not = isinstance(error, PermissionError)
    return "its owner can repair its permissions" if may_not else "check what it is, and who owns it"


def _payload(
    fs: FileSystem, path: str, found: Sequence[str], facts: ItemFacts, copy: Copy, repair: Callable[[], object]
) -> Iterator[Finding]:
    if not found:
        yield Finding(path, "the payload is missing", repair, EVICTS)
    elif len(found) > 1:
        what = f"not exactly one payload: {', '.join(printable(name) for name in found[:3])}"
        yield Finding(path, what, None, f"{BY_HAND}, or remove the extra names")
    else:
        yield from _size(fs, f"{path}/{found[0]}", copy, repair if facts.source else None)


def _size(fs: FileSystem, path: str, copy: Copy, repair: Callable[[], object] | None) -> Iterator[Finding]:
    """A payload never changes, and the copy's name says how large it was when it was verified.

    What has no source cannot be had again, and somebody may have put into it what is nowhere else: `repair` is None.
    """
    try:
        usage = fs.usage(path)
    except OSError as error:
        if error.errno not in GONE:  # otherwise it has just been evicted
            yield Finding(path, f"cannot be read: {explain(error)}", None, _who_can_repair(error))
        return
    noted = Usage(copy.generation.bytes, copy.generation.entries)
    if usage != noted:
        what = f"it was changed: {_in_words(noted)} when it was published, {_in_words(usage)} now"
        yield Finding(path, what, repair, EVICTS if repair else BY_HAND)


def _in_words(usage: Usage) -> str:
    return f"{usage.bytes} bytes in {usage.entries} {'entry' if usage.entries == 1 else 'entries'}"


def _description(store: Store, path: str, copy: Copy) -> tuple[ItemFacts, list[Finding]]:
    """What `item.json` says, and what is wrong with it."""
    try:
        facts = items.facts(store, copy.key, str(copy.generation))
    except OtherFormat as error:
        return ItemFacts(), [Finding(path, f"cannot be read ({error})", None, "use a newer release of sc-dtool")]
    except (FileNotFoundError, Damaged) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        remedy = "writes it again from the rest of the copy; the item's source stays unknown"
        return ItemFacts(), [Finding(path, what, partial(items.describe_again, store, copy), remedy)]
    except OSError as error:
        return ItemFacts(), [Finding(path, f"cannot be read ({error.strerror})", None, _who_can_repair(error))]
    what, remedy = "", BY_HAND
    if facts.key != copy.key:
        what = f"describes another item: {printable(str(facts.key))[:100]}"
    elif key_name(copy.key) is None and not (facts.name is not None and is_named(copy.key, facts.name)):
        what = "does not contain the item's name, which is too long for the name of its directory"
        remedy = f"{BY_HAND}; clean keeps it as long as any name is excluded"
    elif "source" in facts.malformed:
        what = "does not contain the item's source"
    return (ItemFacts(), [Finding(path, what, None, remedy)]) if what else (facts, [])


def _lease(fs: FileSystem, path: str, held: Held) -> Iterator[Finding]:
    if held.lease is None:
        return  # not the name of a lease: the scan reports it
    since = None
    try:
        since, _ = history.decode_lease(fs.get_record(path))
    except OSError as error:
        if error.errno in GONE:
            return
    if since is None:
        yield Finding(path, "the record of this lease is invalid", None, "it still counts as a lease")
