"""Looking a cache over: all that is not as it should be. Nothing is changed; each finding knows how it is mended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from sccache_dtool import config, items, root
from sccache_dtool.clock import Clock
from sccache_dtool.config import Config
from sccache_dtool.doctor import copies, permissions
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.errors import GONE, CacheError, explain
from sccache_dtool.evict.keeper import Keeper
from sccache_dtool.evict.tidy import OLD
from sccache_dtool.fsops import FileSystem
from sccache_dtool.items import Item
from sccache_dtool.layout import DIRECTORIES, TAG_NAME, VERIFICATION, CleaningName, Layout, OutcomeName, PinName
from sccache_dtool.records import printable

#: What an NFS client makes of a file that was deleted while a process of its host had it open.
_SILLY = re.compile(r"\.nfs[0-9a-f]{8,}\Z", re.ASCII)

Warn = Callable[[str], None]


def examine(
    fs: FileSystem, layout: Layout, clock: Clock, keeper_that_warns: Callable[[Warn, Config], Keeper]
) -> list[Finding]:
    """All findings in a cache that has been checked to be one. Nothing is changed.

    While a directory is missing nothing else can be told: mend, and examine again.
    """
    missing = list(_missing_directories(fs, layout))
    if missing:
        return missing
    strange: list[str] = []
    settings, misunderstood = _settings(fs, layout, strange.append)
    keeper = keeper_that_warns(strange.append, settings)
    found = [
        *_about_the_root(fs, layout, clock),
        *misunderstood,
        *_made_when_needed(fs, layout, strange.append),
        *permissions.of_cache(fs, layout),
        *_in_items(fs, layout, items.scan(fs, layout, strange.append), keeper),
        *_left_behind(keeper),
    ]
    return [*found, *(_stranger(fs, layout, clock, warning) for warning in dict.fromkeys(strange))]


def _missing_directories(fs: FileSystem, layout: Layout) -> Iterator[Finding]:
    for name in DIRECTORIES:
        path = f"{layout.control}/{name}"
        try:
            fs.names(path)
        except FileNotFoundError:
            yield Finding(path, "missing", partial(fs.make_dirs, path, shared=layout.shared), "makes it")
        except OSError as error:
            yield Finding(path, explain(error), None, "look what it is, and who owns it")


def _about_the_root(fs: FileSystem, layout: Layout, clock: Clock) -> Iterator[Finding]:
    if TAG_NAME not in fs.names(layout.root):
        what = "missing, so backup programs save the cache"
        yield Finding(layout.tag_file, what, partial(root.put_tag, fs, layout), "makes it")
    for path in root.unfinished(fs, layout):
        if _is_old(fs, clock, path):
            what = "the beginnings of a cache that was never finished"
            yield Finding(path, what, partial(root.remove_unfinished, fs, path), "removes what is empty")
    for name in fs.names(layout.root):
        path = f"{layout.root}/{name}"
        if name.startswith(VERIFICATION) and _is_old(fs, clock, path):
            what = "what a verification of the file system left that was killed"
            yield Finding(path, what, partial(fs.remove_tree, path), "removes it")
    for path in root.open_to_all(fs, layout):
        what = "every user of this machine may write, and delete, here"
        yield Finding(path, what, None, "use a group (chmod o-w)")


def _is_old(fs: FileSystem, clock: Clock, path: str) -> bool:
    try:
        return clock.wall() - fs.lstat(path).st_ctime > OLD
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False


def _settings(fs: FileSystem, layout: Layout, warn: Warn) -> tuple[Config, list[Finding]]:
    """What `config.toml` says; the defaults, and a finding, where it says nothing that can be understood."""
    try:
        return config.load(fs, layout, warn), []
    except CacheError as error:
        what = error.message.removeprefix(f"{layout.config_file}: ")
        return Config(), [
            Finding(layout.config_file, f"cannot be understood: {what}", None, error.hint or "correct it")
        ]


def _made_when_needed(fs: FileSystem, layout: Layout, warn: Warn) -> Iterator[Finding]:
    for path, (parse, what) in {
        layout.transfers: (OutcomeName.parse, "not how a fetch ended"),
        layout.pins: (PinName.parse, "not a pin"),
        layout.cleanings: (CleaningName.parse, "not the record of a cleaning"),
    }.items():
        try:
            found = fs.names_if_any(path)
        except OSError as error:
            yield Finding(path, explain(error), None, "look what it is, and who owns it")
            continue
        for name in found:
            if parse(name) is None:
                warn(f"{path}/{printable(name)}: {what}; left alone")


def _in_items(fs: FileSystem, layout: Layout, scanned: Iterator[Item], keeper: Keeper) -> Iterator[Finding]:
    for item in scanned:
        yield from permissions.of_item(fs, layout, item)
        for copy in item.copies:
            if not copy.closed:
                yield from copies.findings(fs, layout, copy, keeper.remove_copy)


def _left_behind(keeper: Keeper) -> Iterator[Finding]:
    for leftover in keeper.leftovers():
        yield Finding(leftover.path, leftover.what, leftover.put_away, "puts it away, as clean does")
    reaped = keeper.reap(dry_run=True)
    for judged in reaped.leases:
        what = f"a lease that nobody holds: {judged.verdict.evidence}"
        yield Finding(keeper.path_of(judged.held), what, keeper.reap, "ends it")
    if not reaped.leases:
        for holder, evidence in reaped.holders:
            yield Finding(holder, f"a holder that is gone: {evidence}", keeper.reap, "revokes it")


def _stranger(fs: FileSystem, layout: Layout, clock: Clock, warning: str) -> Finding:
    inner, _, text = warning.removeprefix(layout.root).partition(": ")  # the root may have a colon in it
    path = f"{layout.root}{inner}" if warning.startswith(layout.root) else inner
    if _SILLY.search(path):
        return _deleted_while_open(fs, clock, path)
    what, _, remedy = text.partition("; ")
    return Finding(path, what, None, remedy or "look at it; it is left alone")


def _deleted_while_open(fs: FileSystem, clock: Clock, path: str) -> Finding:
    what = "deleted while a process had it open, on NFS"
    if _is_old(fs, clock, path):
        return Finding(path, f"{what}, more than a day ago", partial(fs.unlink, path), "removes it")
    return Finding(path, what, None, "it goes when that process closes it")
