"""Sessions for their users: changing the data set, and finding objects by path. See also `protocol/sessions.py`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.disk.names import Generation, key_label
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import GONE, DoesNotExist, InUse, LeaseLost, UsageError
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DTOOL
from sccache_dtool.liveness.record import Membership as Membership
from sccache_dtool.protocol import holders, versions
from sccache_dtool.protocol.holders import HolderList
from sccache_dtool.protocol.leases import Place
from sccache_dtool.protocol.sessions import Deleted as Deleted
from sccache_dtool.protocol.sessions import Entry as Entry
from sccache_dtool.protocol.sessions import NoSession as NoSession
from sccache_dtool.protocol.sessions import SessionFacts as SessionFacts
from sccache_dtool.protocol.sessions import create as create
from sccache_dtool.protocol.sessions import delete as delete
from sccache_dtool.protocol.sessions import id_of_view as id_of_view
from sccache_dtool.protocol.sessions import listing as listing
from sccache_dtool.protocol.sessions import new_id as new_id
from sccache_dtool.protocol.sessions import read as read
from sccache_dtool.protocol.sessions import refuse_other
from sccache_dtool.protocol.sessions import view_path as view_path
from sccache_dtool.protocol.store import Store


def read_open(store: Store, id: str) -> SessionFacts:
    """As `read`. Raises LeaseLost if the session is being deleted, or DamagedSession if its gate is no directory."""
    facts = read(store, id)
    refuse_other(store, id)
    if facts.has_ended:
        raise LeaseLost(
            f"session {id} is being deleted", hint=f"create another one: {store.command('session', 'create')}"
        )
    return facts


# -- paths -------------------------------------------------------------------------------------------------------------


def parts_of(path: str) -> tuple[str, ...]:
    """The parts of an absolute path in a session; none for "/". Raises UsageError for a path that cannot be one."""
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if not path.startswith("/") or ".." in parts or "\0" in path:
        raise UsageError(f"{plain(path)!r} is not a path in a session", hint="give an absolute path without '..'")
    return parts


def normal(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries with their paths in normal form. Raises UsageError if two have the same path."""
    made = tuple(entry._replace(mount=f"/{'/'.join(parts_of(entry.mount))}") for entry in entries)
    seen: set[str] = set()
    for entry in made:
        if entry.mount in seen:
            raise UsageError(f"two items have the path {plain(entry.mount)}", hint="give each item a path of its own")
        seen.add(entry.mount)
    return made


def meant(store: Store, facts: SessionFacts, word: str) -> Entry:
    """The entry that a word means: by its path, by the key of its item or the beginning of it, or by its name.

    Raises UsageError if it means none, or items of different keys.
    """
    by_path = [entry for entry in facts.entries if entry.mount == word]
    found = by_path or [
        entry
        for entry in facts.entries
        if entry.item is not None
        and (word in (entry.item, key_label(entry.item)) or (len(word) >= 4 and entry.item.startswith(word)))
    ]
    if not found:
        raise DoesNotExist(
            f"session {facts.id} has no item {plain(word)}",
            hint=f"to list its items: {store.command('session', 'show', facts.id)}",
        )
    if len({entry.item for entry in found}) > 1:
        raise UsageError(f"{plain(word)!r} could be any of {len(found)} items of the session", hint="give its path")
    return found[0]


# -- changing ----------------------------------------------------------------------------------------------------------


def change(
    store: Store,
    id: str,
    make: Callable[[Sequence[Entry]], Iterable[Entry]],
    *,
    if_seq: int | None = None,
    force: bool = False,
) -> SessionFacts:
    """Put another data set in force: what `make` makes of the present one. It is called again if others were first.

    `if_seq`: raise InUse unless the data set has this number. Raises InUse, too, if an item is to be taken out on
    which the session has a lease, unless `force`: then the lease stays valid until it is released, or the session ends.
    """
    read_open(store, id)

    def text(version: versions.Version) -> str:
        facts = SessionFacts.of_version(id, version)
        if facts.has_ended:
            raise NoSession(store, id, None)
        if if_seq not in (None, facts.seq):
            raise InUse(
                f"session {id} was changed: its number is {facts.seq}, not {if_seq}",
                hint=f"to see the changes: {store.command('session', 'show', id)}",
            )
        before = {(entry.item, entry.mount): entry for entry in facts.entries}
        entries = tuple(before.get((entry.item, entry.mount), entry) for entry in normal(make(facts.entries)))
        kept = {entry.item for entry in entries}
        if not force:
            _check_not_locked(store, facts, {one.item for one in facts.entries if one.item and one.item not in kept})
        named = {entry.lease for entry in entries}
        detached = tuple(
            entry for entry in (*facts.entries, *facts.detached) if entry.lease and entry.lease not in named
        )
        return facts._replace(entries=entries, detached=detached).encode()

    return SessionFacts.of_version(id, versions.change(store, store.layout.session(id), text))


def _check_not_locked(store: Store, facts: SessionFacts, keys: set[str]) -> None:
    """Raise InUse, naming the holders, if the session has locks on any of these items."""
    from sccache_dtool.sets import locks

    found = [lock for key in sorted(keys) for lock in locks.on_item(store, key, session=facts.id)]
    if found:
        raise InUse(
            f"cannot remove {key_label(found[0].item)} from session {facts.id}: it is locked",
            details=[f"lock {lock.id} of {lock.owner} ({lock.by}) on {key_label(lock.item)}" for lock in found[:10]],
            hint=f"release it: {store.command('lock', 'release', found[0].id)}; "
            "or remove it with --force, which leaves the lock valid",
        )


def renew(store: Store, id: str) -> bool:
    """Extend the lifetime of a session's holder; False if it has none, so that this is not needed.

    Raises LeaseLost if it was revoked.
    """
    facts = read_open(store, id)
    listed = HolderList.complete(store)
    name = listed.present.get(facts.holder)
    lost = LeaseLost(f"the holder of session {id} was revoked", hint="create another session, and use the items again")
    if name is None:
        raise lost
    ttl = holders.read(store, name).ttl
    if ttl is None or listed.now is None:
        return False
    try:
        holders.renew(store, name, int(listed.now + ttl))
    except LookupError:
        raise lost from None
    return True


# -- objects -----------------------------------------------------------------------------------------------------------


class Child(NamedTuple):
    """Something in a folder."""

    name: str
    type: str  # folder, item, or other: what is neither a file nor a directory


class Object(NamedTuple):
    """What is at a path of a session. It may change at any time; take a lock before you read it."""

    path: str
    type: str | None  # folder or item; other: neither a file nor a directory; None while the item is not there
    name: str
    size: int | None  # bytes of a file
    state: str  # cached, absent, or virtual: a folder that there is only above the paths of items
    entry: Entry | None  # in which it is; None: a virtual folder
    place: str | None  # where it is on disk
    children: tuple[Child, ...] | None


def find(store: Store, facts: SessionFacts, path: str, *, children: bool = False) -> Object:
    """The object at an absolute path: the entry with the longest path above it decides. Raises UsageError.

    No link is followed. `children`: list a folder as well.
    """
    parts = parts_of(path)
    normal_path = f"/{'/'.join(parts)}"
    mounts = {parts_of(entry.mount): entry for entry in facts.entries}
    for length in range(len(parts), -1, -1):
        entry = mounts.get(parts[:length])
        if entry is not None:
            return _within(store, entry, parts[length:], normal_path, children)
    below = sorted({mount[len(parts)] for mount in mounts if mount[: len(parts)] == parts and len(mount) > len(parts)})
    if not below and parts:
        raise _not_there(facts.id, normal_path)
    listed = tuple(Child(name, _type_of(store, mounts.get((*parts, name)))) for name in below) if children else None
    return Object(normal_path, "folder", parts[-1] if parts else "", None, "virtual", None, None, listed)


def _not_there(session: str, path: str) -> UsageError:
    return UsageError(f"session {session} has nothing at {plain(path)}", hint="paths begin with those of its items")


def _within(store: Store, entry: Entry, rest: tuple[str, ...], path: str, children: bool) -> Object:
    name = rest[-1] if rest else path.rpartition("/")[2]
    payload = payload_of(store, entry)
    if payload is None:
        # An item of dtool's is a file. Of others, nobody knows before they are fetched.
        is_file = not rest and len(entry.words) == 1 and entry.words[0].startswith(DTOOL)
        return Object(path, "item" if is_file else None, name, None, "absent", entry, None, None)
    place = "/".join((payload, *rest))
    try:
        status = store.fs.lstat(place)
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "item" if stat.S_ISREG(status.st_mode) else "other"
        listed = None
        if children and kind == "folder":
            with store.fs.open_directory(place) as handle:
                listed = tuple(map(_child, os.scandir(handle.directory)))
    except OSError as error:
        raise unreachable(error, path) from None
    size = status.st_size if kind == "item" else None
    return Object(path, kind, name, size, "cached", entry, place, listed and tuple(sorted(listed)))


def unreachable(error: OSError, path: str) -> Exception:
    """What is said of a path in an item that cannot be reached."""
    if error.errno in GONE:
        return UsageError(f"there is nothing at {plain(path)}", hint="list the folder above it")
    if error.errno == errno.ELOOP:
        return UsageError(f"{plain(path)} leads through a symbolic link", hint="links in items are not followed")
    return error


def _child(entry: os.DirEntry[str]) -> Child:
    is_dir, is_file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
    return Child(entry.name, "folder" if is_dir else "item" if is_file else "other")


def _type_of(store: Store, entry: Entry | None) -> str:
    found = None if entry is None else _within(store, entry, (), entry.mount, False).type
    return found or ("folder" if entry is None else "absent")


def payload_of(store: Store, entry: Entry) -> str | None:
    """Where the payload of an entry is: of the copy that the session holds, or else of the newest; None if absent."""
    if entry.item is None:
        return None
    held = Generation.parse(entry.generation or "")
    for generation in [held] if held else items.generations(store, entry.item):
        try:
            name = items.payload_name(store, entry.item, generation)
        except (OSError, Damaged):
            continue
        if name is not None:
            return Place.of(store.layout, entry.item, str(generation), name).payload
    return None
