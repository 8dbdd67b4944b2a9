"""Findings, then optional repairs: what in a cache is not as it should be, and how each of it is mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sccache_dtool import items, root
from sccache_dtool.clock import Clock
from sccache_dtool.errors import explain
from sccache_dtool.evict.keeper import Keeper
from sccache_dtool.evict.tidy import OLD
from sccache_dtool.fsops import FileSystem
from sccache_dtool.items import Copy
from sccache_dtool.layout import DIRECTORIES, ITEM_FILE, PAYLOAD, TAG_NAME, Layout
from sccache_dtool.records import Damaged


class Finding(NamedTuple):
    """Something that is not as it should be. `mend` is None for what only a person can judge; it is left alone."""

    path: str
    what: str
    mend: Callable[[], object] | None


def examine(
    fs: FileSystem, layout: Layout, clock: Clock, keeper_that_warns: Callable[[Callable[[str], None]], Keeper]
) -> list[Finding]:
    """All findings in a cache that has been checked to be one. Nothing is changed.

    While a directory is missing nothing else can be told: mend, and examine again.
    """
    missing = list(_missing_directories(fs, layout))
    if missing:
        return missing
    strange: list[str] = []
    keeper = keeper_that_warns(strange.append)
    found = [*_about_the_root(fs, layout, clock), *_in_copies(fs, layout, strange.append), *_left_behind(keeper)]
    return [*found, *(_stranger(warning) for warning in dict.fromkeys(strange))]


def _missing_directories(fs: FileSystem, layout: Layout) -> Iterator[Finding]:
    for name in DIRECTORIES:
        path = f"{layout.control}/{name}"
        try:
            fs.names(path)
        except FileNotFoundError:
            yield Finding(path, "missing", _maker(fs, path, layout.shared))
        except OSError as error:
            yield Finding(path, explain(error), None)


def _maker(fs: FileSystem, path: str, shared: bool) -> Callable[[], object]:
    return lambda: fs.make_dirs(path, shared=shared)


def _about_the_root(fs: FileSystem, layout: Layout, clock: Clock) -> Iterator[Finding]:
    if TAG_NAME not in fs.names(layout.root):
        yield Finding(layout.tag_file, "missing, so backup programs save the cache", lambda: root.put_tag(fs, layout))
    for path in root.unfinished(fs, layout):
        if clock.wall() - fs.lstat(path).st_ctime > OLD:
            yield Finding(path, "the beginnings of a cache that was never finished", _remover(fs, path))
    for path in root.open_to_all(fs, layout):
        yield Finding(path, "every user of this machine may write, and delete, here; use a group (chmod o-w)", None)


def _remover(fs: FileSystem, path: str) -> Callable[[], object]:
    return lambda: root.remove_unfinished(fs, path)


def _in_copies(fs: FileSystem, layout: Layout, warn: Callable[[str], None]) -> Iterator[Finding]:
    for item in items.scan(fs, layout, warn):
        for copy in item.copies:
            if not copy.closed:
                yield from _in_copy(fs, layout, copy)


def _in_copy(fs: FileSystem, layout: Layout, copy: Copy) -> Iterator[Finding]:
    directory = layout.generation(copy.key, str(copy.generation))
    try:
        if items.payload_name(fs, layout, copy.key, copy.generation) is None:
            yield Finding(f"{directory}/{PAYLOAD}", "not exactly one payload; remove the item: sc-dtool rm", None)
    except OSError as error:
        yield Finding(f"{directory}/{PAYLOAD}", f"cannot be read ({error.strerror})", None)
    try:
        items.facts(fs, layout, copy.key, str(copy.generation))
    except (OSError, Damaged) as error:
        yield Finding(f"{directory}/{ITEM_FILE}", f"cannot be read ({error}); remove the item: sc-dtool rm", None)


def _left_behind(keeper: Keeper) -> Iterator[Finding]:
    for leftover in keeper.leftovers():
        yield Finding(leftover.path, leftover.what, leftover.put_away)
    reaped = keeper.reap(dry_run=True)
    for judged in reaped.leases:
        yield Finding(keeper.path_of(judged.held), f"a lease that nobody holds: {judged.verdict.evidence}", keeper.reap)
    if not reaped.leases:
        for holder, evidence in reaped.holders:
            yield Finding(holder, f"a holder that is gone: {evidence}", keeper.reap)


def _stranger(warning: str) -> Finding:
    path, _, what = warning.partition(": ")
    return Finding(path, what, None)
