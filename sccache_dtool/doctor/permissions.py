"""In a cache that a group shares: what its members cannot do to directories that another of them has made."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from sccache_dtool.doctor.findings import Finding
from sccache_dtool.errors import GONE, explain
from sccache_dtool.fsops import SHARED_DIRECTORY, FileSystem
from sccache_dtool.items import Item
from sccache_dtool.layout import CONTROL, DIRECTORIES, GATE, HISTORY, PAYLOAD, Layout


def findings(fs: FileSystem, layout: Layout, found: list[Item]) -> Iterator[Finding]:
    """Directories that the group cannot write in, or whose entries do not become the group's."""
    if not layout.shared:
        return
    group = fs.lstat(layout.control).st_gid
    for path in _directories(layout, found):
        try:
            status = fs.lstat(path)
        except OSError as error:
            if error.errno not in GONE:
                yield Finding(path, f"cannot be looked at: {explain(error)}", None, "look who owns it")
            continue
        if not stat.S_ISDIR(status.st_mode):
            continue
        if status.st_mode & SHARED_DIRECTORY != SHARED_DIRECTORY:
            what = f"its permissions are {stat.S_IMODE(status.st_mode):o}, so others of the group can do nothing here"
            yield Finding(path, what, _Sharer(fs, path), "gives it to the group (its owner must do it)")
        elif status.st_gid != group:
            what = f"it belongs to group {status.st_gid}, and the cache to {group}"
            yield Finding(path, what, None, f"its owner can say: chgrp {group}")


class _Sharer:
    def __init__(self, fs: FileSystem, path: str) -> None:
        self._fs = fs
        self._path = path

    def __call__(self) -> None:
        self._fs.share(self._path)


def _directories(layout: Layout, found: list[Item]) -> Iterator[str]:
    yield layout.control
    yield from (f"{layout.root}/{CONTROL}/{name}" for name in DIRECTORIES)
    yield layout.transfers
    yield from sorted({f"{layout.items}/{item.key[:2]}" for item in found})
    for item in found:
        yield layout.item(item.key)
        yield f"{layout.item(item.key)}/{HISTORY}"
        for copy in item.copies:
            directory = layout.generation(copy.key, str(copy.generation))
            yield from (directory, f"{directory}/{GATE}", f"{directory}/{PAYLOAD}")
