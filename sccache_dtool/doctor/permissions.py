"""What the permissions of a cache let nobody do who should, or everybody."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from functools import partial

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Item
from sccache_dtool.disk.names import DIRECTORIES, GATE, HISTORY, ITEM_FILE, MADE_LATER, PAYLOAD
from sccache_dtool.disk.trees import SHARED_DIRECTORY
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.log import Silent
from sccache_dtool.protocol.store import Store

_READ = stat.S_IRUSR | stat.S_IRGRP
_ENTER = stat.S_IXUSR | stat.S_IXGRP


class Permissions:
    """Of one cache: where a group shares it, its members can do everything in it; elsewhere its owner can.

    Only directories are ever repaired: a file may have been put there as a hard link to one whose permissions are
    nobody's business. What cannot be looked at is passed over, since its directory is told of.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._needed = SHARED_DIRECTORY if store.layout.shared else stat.S_IRWXU
        self._whose = stat.S_IRWXU | stat.S_IRWXG if store.layout.shared else stat.S_IRWXU
        self._who = "others of the group" if store.layout.shared else "its owner"
        self.closed: list[str] = []  # what cannot be entered: what is below is reported later
        self._group = store.fs.lstat(store.layout.control).st_gid

    def of_cache(self) -> Iterator[Finding]:
        """Of the directories that a cache is made of, and of what is said of it in files."""
        layout = self._store.layout
        yield from self._of_root()
        # Who may change the lots is for a person to say, by the permissions of their directories.
        others = (name for name in MADE_LATER if f"{layout.control}/{name}" not in (layout.lots, layout.reported_usage))
        made = (f"{layout.control}/{name}" for name in (*DIRECTORIES, *others))
        shards = (f"{layout.items}/{name}" for name in items.shards(self._store.logging_to(Silent())))
        for path in (layout.control, *made, *shards):
            yield from self.of_directory(path)
        for path in (layout.format_file, layout.config_file):
            yield from self.of_file(path)

    def of_item(self, item: Item) -> Iterator[Finding]:
        """Of the directories in an item's."""
        directory = self._store.layout.item(item.key)
        for path, status in self._statuses(directory, HISTORY, *(str(copy.generation) for copy in item.copies)):
            yield from self.of_directory(path, status)

    def of_copy(self, directory: str) -> Iterator[Finding]:
        """Of a copy's directories and its description, its payload left out."""
        for path, status in self._statuses(directory, GATE, PAYLOAD, ITEM_FILE):
            judge = self.of_file if path.endswith(ITEM_FILE) else self.of_directory
            yield from judge(path, status)

    def of_file(self, path: str, status: os.stat_result | None = None) -> Iterator[Finding]:
        """Whether all who use the cache can read it, and not everybody write it. A directory can be a payload.

        `status`: its attributes, if they are known.
        """
        status = status or self._status(path)
        if status is None or stat.S_ISLNK(status.st_mode):
            return
        is_dir = stat.S_ISDIR(status.st_mode)
        chmod = "chmod -R" if is_dir else "chmod"
        missing = self._missing(status, _READ | (_ENTER if is_dir else 0))
        if missing:
            what = f"its permissions are {_octal(status)}, so {self._who} cannot read it"
            yield Finding(path, what, None, f"its owner can run: {chmod} {missing}")
        elif status.st_mode & stat.S_IWOTH:
            yield Finding(path, _open_to_all(status, "it"), None, f"its owner can run: {chmod} o-w")

    def _of_root(self) -> Iterator[Finding]:
        status = self._status(f"{self._store.layout.root}/.")  # the root may be a link
        if status and (missing := self._missing(status, _READ | _ENTER)):
            what = f"its permissions are {_octal(status)}, so {self._who} cannot enter it"
            yield Finding(self._store.layout.root, what, None, f"its owner can run: chmod {missing}")

    def of_directory(self, path: str, status: os.stat_result | None = None) -> Iterator[Finding]:
        """Whether those who use the cache can write in it, and nobody else; whether its entries become the group's."""
        status = status or self._status(path)
        if status is None:
            return
        mode = status.st_mode
        is_right = stat.S_ISDIR(mode) and mode & (self._needed | stat.S_IWOTH) == self._needed
        if is_right and status.st_gid == self._group:
            return  # as nearly all are
        by_acl = self._is_by_acl(path, status)
        needed = self._needed & ~stat.S_ISGID if by_acl else self._needed
        repair = partial(self._store.fs.permit, path, stat.S_IMODE(mode) & ~stat.S_IWOTH | needed)
        if not stat.S_ISDIR(mode) or needed & _ENTER & ~mode:
            self.closed.append(path)
        if not stat.S_ISDIR(mode):
            what = f"{'a symbolic link' if stat.S_ISLNK(mode) else 'something else'} is in the place of a directory"
            yield Finding(path, what, None, "check who created it; nothing is removed because of it")
        elif mode & needed != needed:
            what = f"its permissions are {_octal(status)}, so {self._who} cannot work in it"
            does = "gives the group access" if self._store.layout.shared else "restores access"
            yield Finding(path, what, repair, f"{does} (only its owner can)")
        elif self._store.layout.shared and status.st_gid != self._group and not by_acl:
            what = f"it belongs to group {status.st_gid}, but the cache belongs to group {self._group}"
            yield Finding(path, what, None, f"its owner can run: chgrp {self._group}")
        elif mode & stat.S_IWOTH and path != self._store.layout.control:  # which is told of with the root
            yield Finding(path, _open_to_all(status, "here"), repair, "removes that permission (only its owner can)")

    def _is_by_acl(self, path: str, status: os.stat_result) -> bool:
        """Whether a POSIX ACL says who may write in a directory, whatever its group. Asked only where that matters."""
        is_of_group = status.st_mode & stat.S_ISGID and status.st_gid == self._group
        if not (self._store.layout.shared and stat.S_ISDIR(status.st_mode)) or is_of_group:
            return False
        with contextlib.suppress(OSError):
            return self._store.fs.has_acl(path)
        return False

    def _missing(self, status: os.stat_result, wanted: int) -> str:
        """What of the permissions wanted is not there, as chmod(1) wants it; empty if nothing is missing."""
        missing = wanted & self._whose & ~status.st_mode
        classes = (("u", missing >> 6 & 7), ("g", missing >> 3 & 7))
        return ",".join(f"{who}+{'r' * bool(bits & 4)}{'X' * bool(bits & 1)}" for who, bits in classes if bits)

    def _status(self, path: str) -> os.stat_result | None:
        with contextlib.suppress(OSError):
            return self._store.fs.lstat(path)
        return None

    def _statuses(self, directory: str, *names: str) -> Iterator[tuple[str, os.stat_result]]:
        """Paths and attributes of names in a directory."""
        with contextlib.suppress(OSError):
            for name, status in self._store.fs.statuses(directory, names):
                yield f"{directory}/{name}", status


def _octal(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):o}"


def _open_to_all(status: os.stat_result, where: str) -> str:
    return f"its permissions are {_octal(status)}, so every user of this host can write {where}"
