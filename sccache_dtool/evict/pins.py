"""Pins: items that a person wants kept, whatever the rules are. One name each in `pins/`, made when there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout, PinName, understood
from sccache_dtool.errors import CacheError, explain

Warn = Callable[[str], None]


def listing(fs: FileSystem, layout: Layout, warn: Warn) -> list[PinName]:
    """All pins, those among them that have run out. Raises CacheError if nobody can tell: then nothing is evicted."""
    try:
        found = fs.names_if_any(layout.pins)
    except OSError as error:
        raise CacheError(
            f"cannot read the pins: {explain(error)}",
            hint="nothing is removed until this is resolved; check what is at that path, and who owns it",
        ) from error
    return list(understood(layout.pins, found, PinName.parse, "not a pin", warn))


def pinned(fs: FileSystem, layout: Layout, now: float, warn: Warn) -> frozenset[str]:
    """Keys of the items that are pinned at the time `now` (seconds since 1970)."""
    return frozenset(pin.key for pin in listing(fs, layout, warn) if not pin.until or pin.until > now)


def pin(fs: FileSystem, layout: Layout, key: str, until: int, by: str, warn: Warn) -> None:
    """Pin an item until a time (seconds since 1970; 0: for good); an earlier pin of it is replaced."""
    name = PinName(key, until)
    earlier = [one for one in listing(fs, layout, warn) if one.key == key and one != name]
    fs.make_dirs(layout.pins, shared=layout.shared)
    with contextlib.suppress(FileExistsError):
        fs.put_record(by, f"{layout.pins}/{name}")
    for one in earlier:  # last, so that the item is pinned all the while
        _remove(fs, layout, one)


def unpin(fs: FileSystem, layout: Layout, key: str, warn: Warn) -> bool:
    """Take the pins of an item away; False if it had none."""
    found = [one for one in listing(fs, layout, warn) if one.key == key]
    for one in found:
        _remove(fs, layout, one)
    return bool(found)


def any_expired(fs: FileSystem, layout: Layout, now: float, warn: Warn) -> bool:
    """Whether there is anything to tidy."""
    return any(one.until and one.until <= now for one in listing(fs, layout, warn))


def tidy(fs: FileSystem, layout: Layout, now: float, warn: Warn) -> None:
    """Remove pins that have run out."""
    for one in listing(fs, layout, warn):
        if one.until and one.until <= now:
            _remove(fs, layout, one)


def by_whom(fs: FileSystem, layout: Layout, name: PinName) -> str:
    """Who has pinned it."""
    try:
        return records.printable(fs.get_record(f"{layout.pins}/{name}"))
    except OSError:
        return "?"


def _remove(fs: FileSystem, layout: Layout, name: PinName) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(f"{layout.pins}/{name}")
