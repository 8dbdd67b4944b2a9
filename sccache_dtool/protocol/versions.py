"""A table that several users change: one text in force at a time, named by a name that is renamed to change it.

``now~<number>~<random>`` says which file is in force: ``data-<number>-<random>.json``. A change writes a file under a
new name, and then renames the name in force, from the one that was read to the new one. The server lets one of those
who saw the same version win, so that no change is lost, and no file is ever replaced.
"""

from __future__ import annotations

from typing import NamedTuple

from sccache_dtool.disk.names import VersionName, unique
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import GONE
from sccache_dtool.protocol.store import Store

#: Largest text of a table in bytes: a data set of 100,000 items has about 30 MB.
_LIMIT = 1 << 28

#: Listings after which a directory without a table in force is damaged: one may miss a name that is renamed meanwhile.
_MOST_LISTINGS = 20


class Version(NamedTuple):
    """The table in force, as it was read."""

    name: VersionName
    text: str
    beside: frozenset[str]  # all names in the directory


def begin(store: Store, directory: str, text: str) -> VersionName:
    """Write the first version, in a directory that nobody else can see yet."""
    name = VersionName(1, unique())
    store.fs.write_new(f"{directory}/{name.file}", text, shared=store.layout.shared)
    store.fs.put_record("-", f"{directory}/{name}")
    return name


def read(store: Store, directory: str) -> Version:
    """The table in force. Raises FileNotFoundError if the directory is not there, Damaged if it has no table.

    On a network file system it may be an older version, which `change` refuses to change.
    """
    for _ in range(_MOST_LISTINGS):
        found = store.fs.names(directory)
        name = max(filter(None, map(VersionName.parse, found)), default=None)
        if name is not None:
            try:
                return Version(name, store.fs.read_text(f"{directory}/{name.file}", _LIMIT), frozenset(found))
            except FileNotFoundError:
                pass  # replaced meanwhile
        store.fs.touch(directory)
    raise Damaged("no version of its data is in force")


def change(store: Store, directory: str, seen: VersionName, text: str) -> VersionName | None:
    """Put another text in force if `seen` still is; None if somebody else was first. Raises OSError."""
    fs = store.fs
    new = VersionName(seen.number + 1, unique())
    fs.write_new(f"{directory}/{new.file}", text, shared=store.layout.shared)
    try:
        fs.rename(f"{directory}/{seen}", f"{directory}/{new}")
    except OSError as error:
        if error.errno not in GONE:
            fs.unlink(f"{directory}/{new.file}")
            raise
        if not _is_or_was_in_force(store, directory, new):
            return None
    fs.unlink_all(directory, [seen.file])
    return new


def _is_or_was_in_force(store: Store, directory: str, new: VersionName) -> bool:
    """Whether a rename was done although it was reported as failed, because the reply was lost.

    If it was, and others have put a later version in force since, they have removed the file. If it was not, this does.
    """
    store.fs.touch(directory)
    found = filter(None, map(VersionName.parse, store.fs.names(directory)))
    if new in found:
        return True
    try:
        store.fs.unlink(f"{directory}/{new.file}")
    except FileNotFoundError:
        return True
    return False


def stale(found: frozenset[str], name: VersionName) -> list[str]:
    """Names of files that are not in force: of changes that were interrupted, or are being made."""
    return sorted(text for text in found if text != name.file and VersionName.parse_file(text) is not None)
