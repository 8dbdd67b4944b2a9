"""A table that several users change: one text in force at a time, named by a name that is renamed to change it.

``now~<number>~<random>`` says which version is in force; its text is in a file of its own, which also names the version
before it. A change writes a new file, and then renames the name in force, from the one that was read to the new one.
The server lets one of those who saw the same version win, so that no change is lost, and no file is ever replaced.

An error of the rename proves nothing, for the reply may have been lost: then the versions in force since then, each
with the one before it, say whether the change was made. Therefore nobody removes a file whose number is above the
number in force: a rename that is still on its way may yet put it in force.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from sccache_dtool.disk.names import VersionFile, VersionName, unique
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import GONE, NO_TEXT, CacheError, Expected
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple

#: Largest text of a table in bytes: a data set of 100,000 items has about 30 MB.
_LIMIT = 1 << 28

#: Listings after which a directory without a table in force is damaged: one may miss a name that is renamed meanwhile.
_MOST_LISTINGS = 20

#: Versions before the one in force whose files stay, so that whoever gets an error can tell what became of a change.
KEPT = 16

#: Changes that are tried, one after the other, if somebody else is first each time.
_MOST_CHANGES = 1000


class Version(NamedTuple):
    """The table in force, as it was read."""

    name: VersionName
    text: str
    beside: frozenset[str]  # all names in the directory


class Listing(NamedTuple):
    """Which table is in force, whether it can be read or not."""

    name: VersionName
    beside: frozenset[str]  # all names in the directory


def begin(store: Store, directory: str, text: str) -> VersionName:
    """Write the first version, in a directory that nobody else can see yet."""
    name = VersionName(1, unique())
    store.fs.write_new(f"{directory}/{VersionFile(name)}", text, shared=store.layout.shared)
    store.fs.put_record("-", f"{directory}/{name}")
    return name


def look(store: Store, directory: str) -> Listing:
    """Which table is in force, without reading it. Raises as `read`, but not for a text that is missing or damaged."""
    for _ in range(_MOST_LISTINGS):
        found = store.fs.names(directory)
        name = _in_force(found)
        if name is not None:
            return Listing(name, frozenset(found))
        store.fs.touch(directory)
    raise Damaged("no version of it is in force")


def read(store: Store, directory: str, limit: int = _LIMIT) -> Version:
    """The table in force. Raises FileNotFoundError if the directory is not there, Damaged if it has no table.

    On a network file system it may be an older version, which `change` refuses to change. `limit`: bytes of the
    largest text.
    """
    for _ in range(_MOST_LISTINGS):
        found = store.fs.names(directory)
        name = _in_force(found)
        file = None if name is None else _files(found).get(name)
        if name is not None and file is not None:
            try:
                with Expected(GONE):  # replaced meanwhile, and removed
                    return Version(name, store.fs.read_text(f"{directory}/{file}", limit), frozenset(found))
            except OSError as error:
                if error.errno not in NO_TEXT:
                    raise
                raise Damaged(f"{file} is not a file as the program writes it") from error
        store.fs.touch(directory)
    raise Damaged("no version of it is in force")


def change(
    store: Store, directory: str, make: Callable[[Version], str | None], *, keep: int = KEPT, limit: int = _LIMIT
) -> Version:
    """Put another text in force, which `make` makes of the one that is in force; returns what is in force then.

    `make` is called again if somebody else was first; it returns None if nothing is to be changed, and may raise.
    `keep`: versions before the one in force whose files stay. Raises CacheError if it cannot be known whether the
    change was made: then it must not be made again; Damaged if no version can come after the one in force.
    """
    return _change(store, directory, lambda: read(store, directory, limit), make, keep)


def replace(store: Store, directory: str, make: Callable[[VersionName], str], *, keep: int = KEPT) -> Version:
    """As `change`, of whatever is in force, also if it cannot be read."""

    def look_at() -> Version:
        found = look(store, directory)
        return Version(found.name, "", found.beside)

    return _change(store, directory, look_at, lambda seen: make(seen.name), keep)


def _change(
    store: Store,
    directory: str,
    look_at: Callable[[], Version],
    make: Callable[[Version], str | None],
    keep: int,
) -> Version:
    tried: set[VersionName] = set()
    for _ in range(_MOST_CHANGES):
        seen = look_at()
        text = make(seen)
        if text is None:
            return seen
        new = VersionName(seen.name.number + 1, unique())
        if VersionName.parse(str(new)) is None:  # somebody has made up the one that was read
            raise Damaged(f"its number is {seen.name.number}, and cannot grow")
        try:
            store.fs.write_new(f"{directory}/{VersionFile(new, seen.name.random)}", text, shared=store.layout.shared)
        except OSError as error:
            if error.errno not in GONE:
                raise
            store.fs.touch(directory)
            continue  # whoever was first has removed it, before it was complete (ESTALE); or the next look fails
        tried.add(new)
        try:
            store.fs.rename(f"{directory}/{seen.name}", f"{directory}/{new}")
        except OSError as error:
            store.fs.touch(directory)
            open_still = _still_open(store, directory, tried)
            if open_still is not None:
                if error.errno not in GONE:  # it was refused, or may still be on its way
                    raise
                tried = open_still
                continue
        beside = seen.beside | {str(VersionFile(new, seen.name.random))}
        store.fs.unlink_all(directory, superseded(beside, new, keep))
        return Version(new, text, beside)
    raise CacheError(
        f"{directory} was changed by others each of {_MOST_CHANGES} times",
        hint="try again when there are fewer changes",
    )


def _still_open(store: Store, directory: str, tried: Collection[VersionName]) -> set[VersionName] | None:
    """Which of the changes tried by this process may yet be made; None if one of them is in force, or was."""
    since = []
    for version in chain(store.fs.names(directory)):
        if version in tried:
            return None
        since.append(version.number)
        if version.number <= min(one.number for one in tried):
            return {one for one in tried if one.number > since[0]}  # the others have lost
    raise CacheError(
        f"it cannot be known whether the change of {directory} was made, because too much has changed since",
        hint="look at what is in force, and make the change again if it is missing",
    )


def chain(found: Iterable[str]) -> Iterator[VersionName]:
    """From a listing, the version in force, the one before it, and so on, as far back as there are files of them."""
    found = list(found)
    files, version = _files(found), _in_force(found)
    while version is not None:
        yield version
        file = files.get(version)
        version = file.before if file is not None and version.number > 1 else None


def earlier(found: Iterable[str], name: VersionName) -> list[VersionName]:
    """From a listing, the version in force and those before it, the newest first.

    Where the chain of them is broken, because a file is missing, all that there is of older ones is listed.
    """
    found = list(found)
    versions = dict.fromkeys(chain([*found, str(name)]))
    last = min(version.number for version in versions)
    if last > 1:
        versions |= dict.fromkeys(sorted((one for one in _files(found) if one.number < last), reverse=True))
    return list(versions)


def superseded(found: Iterable[str], name: VersionName, keep: int = KEPT) -> list[str]:
    """Names of files that will never be in force, `name` being in force or having been.

    Those of the last `keep` versions before it are left out.
    """
    found = list(found)
    kept = {version for version, _ in zip(chain([*found, str(name)]), range(keep + 1), strict=False)}
    return sorted(
        str(file) for version, file in _files(found).items() if version.number <= name.number and version not in kept
    )


def text_of(store: Store, directory: str, beside: Iterable[str], version: VersionName, limit: int = _LIMIT) -> str:
    """The text of an earlier version. Raises FileNotFoundError if its file has been removed."""
    file = _files(beside).get(version)
    if file is None:
        raise FileNotFoundError(f"{directory}/{version}")
    return store.fs.read_text(f"{directory}/{file}", limit)


def _in_force(found: Iterable[str]) -> VersionName | None:
    """The version that a listing shows to be in force. If it shows two, the older one's name was about to change."""
    return max(filter(None, map(VersionName.parse, found)), default=None)


def _files(found: Iterable[str]) -> Mapping[VersionName, VersionFile]:
    return {file.version: file for file in map(VersionFile.parse, found) if file is not None}
