"""A hostile member of a group: puts symbolic links in the place of directories, at every single call of somebody else.

The links lead out of the cache, to a copy of what was there: every name is found at the other end, whatever the
victim does next. Nothing there may change.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from faults import Call, Counting, FakeClock
from sccache_dtool.disk.names import EndedName, LeaseName


class Swapping(Counting):
    """Before the `nth` call (counted from 0) a directory of the cache is swapped for a link to a copy of it.

    `depth`: which of the directories on the way to what the call is about, from the control directory down.
    """

    def __init__(self, clock: FakeClock, root: Path, outside: Path) -> None:
        super().__init__()
        self._clock = clock
        self._root = root
        self._outside = outside
        self._nth = self._depth = -1
        self.swapped: Path | None = None
        self.before: dict[str, str] = {}

    def arm(self, nth: int, depth: int) -> None:
        """Count from now on."""
        self.calls.clear()
        self._nth, self._depth = nth, depth

    def handle(self, call: Call, do: Callable[[], object]) -> object:
        if len(self.calls) - 1 == self._nth:
            places = directories_on_the_way(call, self._root)
            if self._depth < len(places):
                self.swap(places[self._depth])
        result = do()
        if call.kind == "symlink":  # the file system has the test's clock
            os.utime(call.path, (self._clock.wall(), self._clock.wall()), follow_symlinks=False)
        return result

    def swap(self, directory: Path) -> None:
        """Put a link in the place of a directory."""
        shutil.copytree(directory, self._outside, symlinks=True)
        self.before = snapshot(self._outside)
        self.swapped = directory
        directory.rename(f"{directory}.aside")
        directory.symlink_to(self._outside)

    def changes(self) -> set[str]:
        """What is not at the other end of the link as it was, but for records: nobody else has names like theirs."""
        after = snapshot(self._outside)
        changed = {name for name in self.before.keys() | after.keys() if self.before.get(name) != after.get(name)}
        return {name for name in changed if not is_record(os.path.basename(name))}


def is_record(name: str) -> bool:
    """Whether it is a lease, before or after its end, or a claim of flufl.lock's: random, and never used twice."""
    return LeaseName.parse(name) is not None or EndedName.parse(name) is not None or ".lock|" in name


def directories_on_the_way(call: Call, root: Path) -> list[Path]:
    """Directories of the cache that a call's paths lead through, that are directories now."""
    found: dict[Path, None] = {}
    for argument in call.arguments:
        if not (isinstance(argument, str) and argument.startswith(f"{root}/")):
            continue
        way = reversed((Path(argument), *Path(argument).parents))
        found |= dict.fromkeys(place for place in way if is_ours(place, root) and is_directory(place))
    return list(found)


def is_ours(place: Path, root: Path) -> bool:
    """Whether a member of the group can swap it: all but the root itself."""
    return place != root and place.is_relative_to(root)


def is_directory(place: Path) -> bool:
    try:
        return stat.S_ISDIR(place.lstat().st_mode)
    except OSError:
        return False


def snapshot(tree: Path) -> dict[str, str]:
    """Names, kinds, permissions, texts and times of files of a tree; of directories but kind and permissions."""
    return {os.path.relpath(path, tree): _described(path) for path in (tree, *_below(tree))}


def _below(tree: Path) -> Iterator[Path]:
    for directory, inner, files in os.walk(tree):
        yield from (Path(directory, name) for name in (*inner, *files))


def _described(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"link {os.readlink(path)}"
    if stat.S_ISDIR(status.st_mode):
        return f"directory {status.st_mode:o}"
    return f"{status.st_mode:o} {status.st_mtime_ns} {path.read_bytes()!r}"
