"""Looking a cache over: all that is not as it should be. Nothing is changed; each finding knows how it is mended."""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import cached_property, partial

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Item
from sccache_dtool.catalog.leftover import OLD
from sccache_dtool.clock import Clock
from sccache_dtool.disk import root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import (
    DIRECTORIES,
    GATE,
    IN_CONTROL,
    ITEM_FILE,
    PAYLOAD,
    TAG_NAME,
    CheckedName,
    CleaningName,
    HolderName,
    KeptName,
    Layout,
    OutcomeName,
    PinName,
    is_of_verification,
    is_outcomes,
    understood,
)
from sccache_dtool.disk.records import printable
from sccache_dtool.disk.root import Tag
from sccache_dtool.doctor import copies, register
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.doctor.permissions import Permissions
from sccache_dtool.errors import GONE, CacheError
from sccache_dtool.evict.single import Keeper
from sccache_dtool.policy import config
from sccache_dtool.policy.config import Config
from sccache_dtool.protocol import downloads
from sccache_dtool.protocol.reaping import Reaped

#: What an NFS client makes of a file that was deleted while a process of its host had it open.
_SILLY = re.compile(r"\.nfs[0-9a-f]{8,}\Z", re.ASCII)

#: All that there can be in a copy of an item.
_IN_COPY = frozenset({GATE, PAYLOAD, ITEM_FILE})

Warn = Callable[[str], None]


def examine(
    fs: FileSystem, layout: Layout, clock: Clock, keeper_that_warns: Callable[[Warn, Config], Keeper]
) -> list[Finding]:
    """All findings in a cache that has been checked to be one. Nothing is changed.

    While a directory is missing nothing else can be told: mend, and examine again.
    """
    permissions = Permissions(fs, layout)
    missing = list(_missing_directories(fs, layout, permissions))
    if missing:
        return _each_once(missing, permissions.shut)
    strange: list[str] = []
    settings, misunderstood = _settings(fs, layout, strange.append)
    keeper = keeper_that_warns(strange.append, settings)
    _strangers_in(fs, layout.control, IN_CONTROL, strange.append)
    _look_at_made_later(fs, layout, strange.append)
    found = [
        *_about_the_root(fs, layout, clock),
        *misunderstood,
        *permissions.of_cache(),
        *_in_items(fs, layout, items.scan(fs, layout, strange.append), permissions, keeper, strange.append),
        *_left_behind(keeper),
    ]
    found += [_stranger(fs, clock, warning) for warning in dict.fromkeys(strange)]
    return _each_once(found, permissions.shut)


def examine_format(fs: FileSystem, layout: Layout) -> list[Finding]:
    """What is wrong with FORMAT in what is a cache otherwise; nothing else can be told until it is there."""
    damage = root.damage_of_format(fs, layout)
    if damage is None:
        return []
    what = f"{damage}, so no command accepts this directory as a cache"
    return [Finding(layout.format_file, what, partial(root.put_format_anew, fs, layout), "writes it again")]


def _each_once(found: list[Finding], shut: list[str]) -> list[Finding]:
    """Of each path what can be mended or, if nothing can, what was found first; nothing below what is `shut`."""
    told = {finding.path for finding in found if finding.mend}
    once = []
    for finding in found:
        above = finding.path.startswith(tuple(f"{path}/" for path in shut))
        if finding.mend or not (above or finding.path in told):
            once.append(finding)
            told.add(finding.path)
    return once


def _missing_directories(fs: FileSystem, layout: Layout, permissions: Permissions) -> Iterator[Finding]:
    made: set[str] = set()
    for name in DIRECTORIES:
        path = f"{layout.control}/{name}"
        if os.path.dirname(path) in made:
            continue  # with what it is in
        try:
            fs.names(path)
        except FileNotFoundError:
            made.add(path)
            if path == layout.holders:
                yield register.missing(fs, layout)
            else:
                yield Finding(path, "missing", partial(fs.make_dirs, path, shared=layout.shared), "creates it")
        except OSError as error:
            unlisted = [Finding(path, f"{error.strerror}", None, "check what it is, and who owns it")]
            yield from list(permissions.of_directory(path)) or unlisted


def _about_the_root(fs: FileSystem, layout: Layout, clock: Clock) -> Iterator[Finding]:
    tag = root.tag(fs, layout) if TAG_NAME in fs.names(layout.root) else None
    if tag is None or tag is Tag.BEGUN:
        what = f"{'missing' if tag is None else 'incomplete'}, so backup programs include the cache"
        yield Finding(layout.tag_file, what, partial(root.put_tag_anew, fs, layout), "creates it")
    elif tag is Tag.OTHER:
        what = "not a cache directory tag, so backup programs include the cache"
        yield Finding(layout.tag_file, what, None, "remove it; --fix then creates a valid one")
    for path in root.unfinished(fs, layout):
        if _is_old(fs, clock, path):
            what = "left by an interrupted init"
            yield Finding(path, what, partial(root.remove_unfinished, fs, path), "removes its empty directories")
    for name in fs.names(layout.root):
        path = f"{layout.root}/{name}"
        if is_of_verification(name) and _is_old(fs, clock, path):
            what = "left by an interrupted verification of the file system"
            yield Finding(path, what, partial(fs.remove_tree, path), "removes it")
    for path in root.open_to_all(fs, layout):
        what = "every user of this host can create and delete files here"
        yield Finding(path, what, None, "share it with a group instead (chmod o-w)")


def _is_old(fs: FileSystem, clock: Clock, path: str) -> bool:
    try:
        return clock.wall() - fs.lstat(path).st_ctime > OLD
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False


def _settings(fs: FileSystem, layout: Layout, warn: Warn) -> tuple[Config, list[Finding]]:
    """What `config.toml` says, with the defaults, and findings, where that cannot be understood."""
    settings = config.load(fs, layout, warn)
    return Config(*settings), [
        Finding(
            layout.config_file,
            f"cannot be used: {error.message.removeprefix(f'{layout.config_file}: ')}",
            None,
            error.hint or "correct it",
        )
        for error in settings.mistakes
    ]


def _look_at_made_later(fs: FileSystem, layout: Layout, warn: Warn) -> None:
    kinds: dict[str, tuple[Callable[[str], object], str]] = {
        layout.transfers: (lambda name: name if is_outcomes(name) else None, downloads.WHAT),
        layout.pins: (PinName.parse, "not a pin"),
        layout.cleanings: (CleaningName.parse, "not the record of a cleaning"),
    }
    for path, (parse, what) in kinds.items():
        try:
            found = fs.names(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            warn(f"{path}: {error.strerror}; passed over")
            continue
        deque(understood(path, found, parse, what, warn), maxlen=0)
        for name in filter(is_outcomes, found if path == layout.transfers else ()):
            _strangers_in(fs, f"{path}/{name}", (), warn, OutcomeName.parse)


def _strangers_in(
    fs: FileSystem,
    directory: str,
    known: Collection[str],
    warn: Warn,
    is_known: Callable[[str], object] = lambda name: False,
) -> None:
    """Report names in a directory in which the program makes none but these."""
    try:
        found = fs.names_if_any(directory)
    except OSError as error:
        if error.errno not in GONE:
            warn(f"{directory}: {error.strerror}; passed over")
        return
    for name in found:
        if name not in known and not is_known(name):
            warn(f"{directory}/{printable(name)}: not part of the cache; left alone")


def _is_mark_of_copy(name: str) -> bool:
    """Whether `use --refresh` or an eviction makes such a name in a copy's directory."""
    return bool(CheckedName.parse(name) or KeptName.parse(name))


def _in_items(
    fs: FileSystem, layout: Layout, scanned: Iterator[Item], permissions: Permissions, keeper: Keeper, warn: Warn
) -> Iterator[Finding]:
    for item in scanned:
        yield from permissions.of_item(item)
        for copy in item.copies:
            if not copy.closed:
                yield from copies.findings(fs, layout, copy, permissions, keeper.remove_copy)
                _strangers_in(fs, layout.generation(copy.key, str(copy.generation)), _IN_COPY, warn, _is_mark_of_copy)


def _left_behind(keeper: Keeper) -> Iterator[Finding]:
    for leftover in keeper.leftovers():
        yield Finding(leftover.path, leftover.what, leftover.put_away, "does what clean does with it")
    reaped = keeper.reap(dry_run=True)
    reap = _Reaping(keeper)
    for judged in reaped.leases:
        path = keeper.path_of(judged.held)
        what = f"a lease of a dead holder: {judged.verdict.evidence}"
        yield Finding(path, what, partial(reap.must_end, path), "ends it")
    if not reaped.leases:
        for holder, evidence in reaped.holders:
            yield Finding(holder, f"a dead holder: {evidence}", partial(reap.must_end, holder), "revokes it")


class _Reaping:
    """One reaping that mends many findings: it looks at the whole cache, so that one for each would be too many."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def must_end(self, name: str) -> None:
        """End the lease at this path, or the holder of this id. Raises FileNotFoundError if others were first."""
        if name in self._ended:
            return
        if self._done.failed:
            raise CacheError(f"{name}: not ended", details=self._done.failed)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    @cached_property
    def _done(self) -> Reaped:
        return self._keeper.reap()

    @cached_property
    def _ended(self) -> frozenset[str]:
        leases = (self._keeper.path_of(judged.held) for judged in self._done.leases)
        return frozenset((*leases, *(holder for holder, _ in self._done.holders)))


#: What a person can do, by what the scan has made of it.
_WHAT_TO_DO = {
    "left alone": "left alone; remove it if nobody needs it",
    "passed over": "skipped; check what it is, and who owns it",
    "counted as held": "counted as held; remove it if nobody needs it",
    "counted as alive": "counted as alive; if you know that it is gone: sc-dtool reap --holder {holder}",
}


def _stranger(fs: FileSystem, clock: Clock, warning: str) -> Finding:
    path, text = _about(fs, warning)
    if _SILLY.search(path):
        return _deleted_while_open(fs, clock, path)
    what, _, so = text.partition("; ")
    remedy = _WHAT_TO_DO.get(so, so) or "left alone; check what it is"
    holder = HolderName.parse(path.rpartition("/")[2])
    return Finding(path, what, None, remedy.format(holder=holder.id if holder else "ID"))


def _about(fs: FileSystem, warning: str) -> tuple[str, str]:
    """The path that a warning is about, and what it says of it; there may be a colon in either."""
    ends = [match.start() for match in re.finditer(": ", warning)] or [len(warning)]
    longest = next((end for end in reversed(ends[1:]) if fs.seems_there(warning[:end])), ends[0])
    return warning[:longest], warning[longest + 2 :]


def _deleted_while_open(fs: FileSystem, clock: Clock, path: str) -> Finding:
    what = "an NFS leftover of a file that was deleted while a process had it open"
    if _is_old(fs, clock, path):
        return Finding(path, f"{what}, more than a day ago", partial(fs.unlink, path), "removes it")
    return Finding(path, what, None, "it disappears when that process closes it")
