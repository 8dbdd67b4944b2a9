"""In a cache that a group shares: what its members cannot do to directories that another of them has made."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import partial

from sccache_dtool.doctor.findings import Finding
from sccache_dtool.errors import GONE, explain
from sccache_dtool.fsops import SHARED_DIRECTORY, FileSystem
from sccache_dtool.items import Item
from sccache_dtool.layout import DIRECTORIES, GATE, HISTORY, MADE_LATER, PAYLOAD, Layout


def of_cache(fs: FileSystem, layout: Layout) -> Iterator[Finding]:
    """Of the directories that a cache is made of."""
    shards = (f"{layout.items}/{name}" for name in fs.names(layout.items)) if layout.shared else ()
    made = (f"{layout.control}/{name}" for name in (*DIRECTORIES, *MADE_LATER))
    for path in (layout.control, *made, *shards):
        yield from _of_directory(fs, layout, path)


def of_item(fs: FileSystem, layout: Layout, item: Item) -> Iterator[Finding]:
    """Of an item's directories, those within payloads left out."""
    for path in (layout.item(item.key), f"{layout.item(item.key)}/{HISTORY}"):
        yield from _of_directory(fs, layout, path)
    for copy in item.copies:
        directory = layout.generation(copy.key, str(copy.generation))
        for path in (directory, f"{directory}/{GATE}", f"{directory}/{PAYLOAD}"):
            yield from _of_directory(fs, layout, path)


def _of_directory(fs: FileSystem, layout: Layout, path: str) -> Iterator[Finding]:
    """Whether the group can write in it, and its entries become the group's."""
    if not layout.shared:
        return
    try:
        status, group = fs.lstat(path), fs.lstat(layout.control).st_gid
    except OSError as error:
        if error.errno not in GONE:
            yield Finding(path, f"cannot be looked at: {explain(error)}", None, "look who owns it")
        return
    if not stat.S_ISDIR(status.st_mode):
        return
    if status.st_mode & SHARED_DIRECTORY != SHARED_DIRECTORY:
        what = f"its permissions are {stat.S_IMODE(status.st_mode):o}, so others of the group can do nothing here"
        yield Finding(path, what, partial(fs.share, path), "gives it to the group (its owner must do it)")
    elif status.st_gid != group:
        what = f"it belongs to group {status.st_gid}, and the cache to {group}"
        yield Finding(path, what, None, f"its owner can say: chgrp {group}")
