"""The markers below directories: whether their files are there and true, and putting the files back."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.disk.nofollow import ONWARD
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import CacheError, Expected, UsageError, translate
from sccache_dtool.markers import marker
from sccache_dtool.markers.archive import Archive
from sccache_dtool.markers.files import Files
from sccache_dtool.markers.marker import SUFFIX, Marker

#: Seconds for which a file must have been unchanged when it is hashed, so that its times tell any later change.
SETTLED = 2.0


class State(StrEnum):
    """How the file of a marker is."""

    SAME = "same"
    CHANGED = "changed"  # it is there, and is not what the marker stands for
    ABSENT = "absent"  # it is not there, and can be restored
    LOST = "lost"  # it is not there, nor in the archive
    BAD = "bad"  # the marker itself cannot be read


class Marked(NamedTuple):
    """A marker with its place, and the file that it stands for."""

    place: str
    marker: Marker
    target: str
    root: str = ""  # the directory that was searched, below which no link is followed; empty: that of the marker


class Found(NamedTuple):
    """A marker, or what is wrong with the file that should be one."""

    place: str
    marked: Marked | None
    error: CacheError | None = None


def find(paths: Iterable[str], *, strict: bool = False) -> Iterator[Found]:
    """The markers that paths name, and those in directories and all directories below them.

    A path may also be that of a file with a marker beside it. Links to directories are not followed. A marker is found
    by its content; a file that has a marker is not looked at. `strict`: what is called as a marker must be one.
    """
    for path in paths:
        if os.path.isdir(path):
            yield from _below(path, strict)
        else:
            try:
                place, one = marker.find(path)
            except (CacheError, OSError) as error:
                yield Found(path, None, error if isinstance(error, CacheError) else translate(error))
            else:
                yield Found(place, Marked(place, one, marker.target_of(place, one)))


def _below(path: str, strict: bool) -> Iterator[Found]:
    pending = [path]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(directory, None, translate(error))
            continue
        names = {entry.name for entry in entries}
        below = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in (".git", ".sc-dtool"):
                    below.append(entry.path)
                continue
            if f"{entry.name}{SUFFIX}" in names or marker.is_draft(entry.name):
                continue
            is_named = strict and entry.name.endswith(SUFFIX)
            if not is_named and not _may_be_marker(entry):
                continue
            try:
                one = marker.read(entry.path) if is_named else marker.read_if_marker(entry.path)
            except (CacheError, OSError) as error:
                yield Found(entry.path, None, error if isinstance(error, CacheError) else translate(error))
                continue
            if one is not None:
                yield Found(entry.path, Marked(entry.path, one, marker.target_of(entry.path, one), path))
        pending.extend(reversed(below))


def _may_be_marker(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size <= marker.LARGEST
    except OSError:  # it is gone
        return False


class Memory:
    """What is known of files that were hashed before: nothing has to be read of one that has not changed since.

    One file for each directory, in ~/.local/state. It only saves work: what it does not say is hashed.
    """

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        self._home = f"{state}/sc-dtool/files" if os.path.isabs(state) else None
        self._known: dict[str, dict[str, list[object]]] = {}
        self._changed: set[str] = set()
        self._real: dict[str, str] = {}  # the real paths of directories

    def digest(self, path: str, status: os.stat_result, *, read: bool = False) -> str:
        """The SHA-256 of a file with this status. `read`: whatever is known of it. Raises OSError."""
        directory, name = self._place_of(path)
        known = self._of(directory)
        mark = _mark(status)
        found = known.get(name)
        if not read and found is not None and found[:-1] == mark:
            return str(found[-1])
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while data := file.read(CHUNK):
                digest.update(data)
            after = os.fstat(file.fileno())
        digits = digest.hexdigest()
        if _mark(after) == mark and time.time() - max(after.st_mtime, after.st_ctime) > SETTLED:
            known[name] = [*mark, digits]
            self._changed.add(directory)
        return digits

    def _place_of(self, path: str) -> tuple[str, str]:
        """The directory that a file is in, without links in its path, and its name."""
        if os.path.islink(path):
            path = os.path.realpath(path)
        directory, name = os.path.split(path)
        if directory not in self._real:
            self._real[directory] = os.path.realpath(directory)
        return self._real[directory], name

    def keep(self) -> None:
        """Write down what is known by now."""
        for directory in self._changed:
            path = self._path(directory)
            with contextlib.suppress(OSError):
                if path is not None:
                    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                    marker.replace(self._fs, path, json.dumps(self._known[directory]).encode())
        self._changed.clear()

    def _of(self, directory: str) -> dict[str, list[object]]:
        if directory not in self._known:
            path = self._path(directory)
            found: object = {}
            with contextlib.suppress(OSError, ValueError, RecursionError):
                if path is not None:
                    with open(path, encoding="utf-8") as file:
                        found = json.load(file)
            rows = found.items() if isinstance(found, dict) else ()
            self._known[directory] = {name: row for name, row in rows if isinstance(row, list) and row}
        return self._known[directory]

    def _path(self, directory: str) -> str | None:
        name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:32]
        return None if self._home is None else f"{self._home}/{name}.json"


def _mark(status: os.stat_result) -> list[object]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def state_of(one: Marked, memory: Memory, archive: Archive | None = None, *, read: bool = False) -> State:
    """How the file of a marker is. `archive`: asked for the objects of a file that is not there. Raises OSError.

    `read`: read the file, even if it has not changed since it was read.
    """
    try:
        status = os.lstat(one.target)
        if stat.S_ISLNK(status.st_mode) and _is_link_into_cache(one.target):
            status = os.stat(one.target)
    except FileNotFoundError:
        if archive is not None and not all(archive.has(part.sha256) for part in one.marker.parts):
            return State.LOST
        return State.ABSENT
    if not stat.S_ISREG(status.st_mode) or status.st_size != one.marker.bytes:
        return State.CHANGED
    return State.SAME if memory.digest(one.target, status, read=read) == one.marker.sha256 else State.CHANGED


def _is_link_into_cache(path: str) -> bool:
    """Whether it is a link that `save --link` made; what it leads to may have been evicted."""
    try:
        return "/.sc-dtool/items/" in os.readlink(path)
    except OSError:
        return False


def files_of(files: Files, one: Marked) -> list[Marked]:
    """The files that a marker stands for: one, or all of a directory that was saved as one."""
    if not one.marker.directory:
        return [one]
    found = files.entries(one.marker)
    return [Marked(one.place, each, os.path.join(one.target, path), one.root) for path, each in found]


def state_of_all(files: Files, one: Marked, memory: Memory, *, read: bool = False) -> State:
    """As `state_of`, for a file or a directory: the worst state of its files."""
    if one.marker.directory and not os.path.lexists(one.target):
        return state_of(one, memory, files.archive)
    states = {state_of(each, memory, files.archive, read=read) for each in files_of(files, one)}
    return next((state for state in (State.LOST, State.CHANGED, State.ABSENT) if state in states), State.SAME)


def restore(
    files: Files, one: Marked, memory: Memory, *, force: bool = False, durable: bool = False
) -> list[tuple[Marked, bool | CacheError]]:
    """Put back what a marker stands for: for each file whether it was written, or why it could not be.

    A file that is there is left as it is: it is either the same, or an error, unless `force`. `durable`: it is read
    once more, and on stable storage, before it has its name.
    """
    try:
        wanted = files_of(files, one)
    except CacheError as error:
        return [(one, error)]
    results: list[tuple[Marked, bool | CacheError]] = []
    for each in wanted:
        try:
            within = one.target if one.marker.directory else ""
            results.append((each, _restore(files, each, memory, within, force, durable)))
        except CacheError as error:
            results.append((each, error))
        except OSError as error:
            results.append((each, translate(error)))
    return results


def _restore(files: Files, one: Marked, memory: Memory, within: str, force: bool, durable: bool) -> bool:
    if marker.is_reserved(os.path.basename(within or one.target)):
        raise UsageError(f"{printable(one.target)} is not restored: git or sc-dtool would take it for its own")
    state = state_of(one, memory)
    if state is State.SAME:
        return False
    if state is State.CHANGED and not force:
        raise UsageError(
            f"{printable(one.target)} differs from its marker",
            hint="to keep the file as it is: sc-dtool save; to replace it: sc-dtool marker restore --force",
        )
    directory = _open_directory(one, within)
    try:
        replace = force or _is_link_into_cache(one.target)
        files.copy_out(one.marker, one.target, replace=replace, durable=durable or force, directory=directory)
    except CacheError as error:
        error.message = f"{printable(one.target)}: {error.message}"
        raise
    finally:
        os.close(directory)
    return True


def _open_directory(one: Marked, within: str) -> int:
    """Open the directory of a file that is restored; it is made below `within`, if that is not empty.

    Raises OSError if a link leads out of what was searched: no marker is trusted, nor who else can write there.
    """
    root = one.root or os.path.dirname(one.place) or "."
    parts = [part for part in os.path.relpath(os.path.dirname(one.target) or ".", root).split("/") if part != "."]
    first = len(parts) if not within else len([part for part in os.path.relpath(within, root).split("/") if part]) - 1
    fd = os.open(root, ONWARD & ~os.O_NOFOLLOW)
    try:
        path = root
        for number, part in enumerate(parts):
            path = f"{path}/{part}"
            if number >= first:
                with Expected({errno.EEXIST}):
                    os.mkdir(part, dir_fd=fd)
            above = fd
            try:
                fd = os.open(part, ONWARD, dir_fd=above)
            except OSError as error:
                code = errno.ELOOP if os.path.islink(path) else error.errno or errno.EIO
                raise OSError(code, os.strerror(code), path) from error
            os.close(above)
    except BaseException:
        os.close(fd)
        raise
    return fd


def ignore(fs: FileSystem, path: str) -> None:
    """Add a file to the `.gitignore` of its directory, unless it is there."""
    directory, name = os.path.split(os.path.abspath(path.rstrip("/")))
    place = f"{directory}/.gitignore"
    # git has no way to write the end of a line
    escaped = "".join("?" if each in "\r\n" else f"\\{each}" if each in "\\*?[ " else each for each in name)
    line = f"/{escaped}".encode("utf-8", "surrogateescape")
    text = b""
    if os.path.islink(place):  # as for git, which does not follow it
        raise UsageError(f"{printable(place)} is a symbolic link", hint="git does not read it: make it a file")
    with contextlib.suppress(FileNotFoundError), marker.open_regular(place) as file:
        text = file.read()
    if line not in text.splitlines():
        marker.replace(fs, place, text + (b"" if not text or text.endswith(b"\n") else b"\n") + line + b"\n")


def digits_named(found: Iterable[Found]) -> set[str]:
    """The digests of all objects that markers name. Raises what is wrong with one that cannot be read."""
    named = set()
    for one in found:
        if one.error is not None:
            raise one.error
        if one.marked is not None:
            named |= {part.sha256 for part in one.marked.marker.parts} | {one.marked.marker.sha256}
    return named
