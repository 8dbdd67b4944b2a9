"""Pins: items that a person wants kept, whatever the rules are. One name each in `pins/`, made when there is one."""

from __future__ import annotations

import contextlib

from sccache_dtool.disk import records
from sccache_dtool.disk.names import PinName, understood
from sccache_dtool.errors import CacheError, explain
from sccache_dtool.protocol.store import Store

#: The end of the pin of an object that is not in the archive yet, so that the copy here may be the only one: the last
#: second of the year 9999. Such a pin is beside those of users, and ends when the object is archived.
UNTIL_ARCHIVED = 253402300799


def listing(store: Store) -> list[PinName]:
    """All pins, those among them that have run out. Raises CacheError if nobody can tell: then nothing is evicted."""
    try:
        found = store.fs.names_if_made(store.layout.pins)
    except OSError as error:
        raise CacheError(
            f"cannot read the pins: {explain(error)}",
            hint="nothing is removed until this is resolved; check what is at that path, and who owns it",
        ) from error
    return list(understood(store.layout.pins, found, PinName.parse, "not a pin", store.log))


def pinned(store: Store, now: float) -> frozenset[str]:
    """Keys of the items that are pinned at the time `now` (seconds since 1970)."""
    return frozenset(pin.key for pin in listing(store) if not pin.until or pin.until > now)


def pin(store: Store, key: str, until: int, by: str) -> None:
    """Pin an item until a time (seconds since 1970; 0: for good); an earlier pin of it is replaced."""
    name = PinName(key, until)
    apart = (until, UNTIL_ARCHIVED)
    earlier = [one for one in listing(store) if one.key == key and one.until not in apart and until != UNTIL_ARCHIVED]
    store.fs.make_dirs(store.layout.pins, shared=store.layout.shared)
    with contextlib.suppress(FileExistsError):
        store.fs.put_record(by, f"{store.layout.pins}/{name}")
    for one in earlier:  # last, so that the item is pinned all the while
        _remove(store, one)


def unpin(store: Store, key: str) -> bool:
    """Take the pins of an item away; False if it had none. That of an object that is not archived yet stays."""
    found = [one for one in listing(store) if one.key == key and one.until != UNTIL_ARCHIVED]
    for one in found:
        _remove(store, one)
    return bool(found)


def unarchived(store: Store) -> list[str]:
    """Keys of the objects that are not in the archive yet."""
    return [one.key for one in listing(store) if one.until == UNTIL_ARCHIVED]


def note_archived(store: Store, key: str) -> None:
    """End the pin of an object that is in the archive now."""
    _remove(store, PinName(key, UNTIL_ARCHIVED))


def any_expired(store: Store, now: float) -> bool:
    """Whether there is anything to tidy."""
    return bool(_expired(store, now))


def tidy(store: Store, now: float) -> None:
    """Remove pins that have run out."""
    for one in _expired(store, now):
        _remove(store, one)


def _expired(store: Store, now: float) -> list[PinName]:
    return [one for one in listing(store) if one.until and one.until <= now]


def pinned_by(store: Store, name: PinName) -> str:
    """Who has pinned it."""
    try:
        return records.printable(store.fs.get_record(f"{store.layout.pins}/{name}"))
    except OSError:
        return "?"


def _remove(store: Store, name: PinName) -> None:
    with contextlib.suppress(FileNotFoundError):
        store.fs.unlink(f"{store.layout.pins}/{name}")
