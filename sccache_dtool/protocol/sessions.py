"""Sessions on disk: a data set, a gate of its own, and the leases that belong to it, which end together.

A session has one holder for its life. If it is a set that is held, all its leases are that holder's, and its data set
names them. A lock that was taken on its own is a lease too; its holder is an entry of its own, which names the session.
Nothing is counted, and nothing is kept twice.

Whoever takes a lock enters the session's gate after that, which proves that the session has not ended. Ending a session
closes the gate first. Then no lock can begin any more, and a listing of the holders shows all that did.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sccache_dtool.clock import iso
from sccache_dtool.disk import records
from sccache_dtool.disk.names import (
    GATE,
    PROBE,
    RELEASED,
    VIEW,
    EndedSession,
    Generation,
    HolderName,
    Layout,
    LeaseName,
    VersionName,
    WorkName,
    is_key,
    is_session,
    unique,
)
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import GONE, NOT_EMPTY, CacheError, DoesNotExist, Expected, InUse, UsageError, explain
from sccache_dtool.liveness.caller import BEATING, NAMED, Owner, user_name
from sccache_dtool.liveness.record import HolderRecord, Membership
from sccache_dtool.oddity import Fate
from sccache_dtool.protocol import gate, leases, versions
from sccache_dtool.protocol.gate import Closing
from sccache_dtool.protocol.holders import Holder, HolderList, probing, revoke
from sccache_dtool.protocol.holders import read as read_holder
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple

#: The purpose of the work area in which a session is made.
SESSION = "session"

#: Attempts to close a session's gate, in which names of lockers come and go.
_MOST_CLOSINGS = 100


#: Attempts to revoke a holder that shows heartbeats, each of which saves it.
_MOST_REVOCATIONS = 3


class NoSession(DoesNotExist):
    """There is no such session; `ended` is when it was deleted, in seconds since 1970, if that is known."""

    def __init__(self, store: Store, id: str, ended: float | None) -> None:
        if ended is None:
            message = f"there is no session '{records.printable(id)}'"
            super().__init__(message, hint=f"to list the sessions: {store.command('session', 'ls')}")
        else:
            message = f"session {id} was deleted at {iso(ended)}"
            super().__init__(message, hint=f"create another one: {store.command('session', 'create')}")
        self.ended = ended


class DamagedSession(CacheError, Damaged):
    """What somebody has put in the place of a session, or has made of it."""

    def __init__(self, store: Store, id: str, why: object) -> None:
        super().__init__(f"session {id} is damaged: {why}", hint=f"to delete it: {store.command('session', 'rm', id)}")


class Entry(NamedTuple):
    """One entry of a data set: what is shown at a path of the session."""

    item: str | None  # the key of the item; None while it is not known
    mount: str  # the path in the session: absolute, "/" between its parts, no "." or ".."
    words: tuple[str, ...] = ()  # source and steps in canonical form, without credentials: `Request.words`
    name: str | None = None  # the name that was given to the item, if any
    generation: str | None = None  # the copy that the session's own holder has a lease on
    lease: str | None = None  # the name of that lease; None: the session does not hold it

    @classmethod
    def decode(cls, fields: Any) -> Entry:
        """The entry in a record. Raises Damaged for anything that no session writes."""
        if not isinstance(fields, dict):
            raise Damaged("not an entry of a data set")
        item, mount, words = fields.get("item"), fields.get("mountPath"), fields.get("words", [])
        name, generation, lease = fields.get("name"), fields.get("generation"), fields.get("lease")
        texts = isinstance(words, list) and all(isinstance(one, str) for one in words) and _is_path(mount)
        is_known = (item is None or is_key(str(item))) and (name is None or isinstance(name, str))
        leased = (generation is None and lease is None) or (Generation.parse(str(generation)) and item is not None)
        if not (texts and is_known and leased and (lease is None or LeaseName.parse(str(lease)))):
            raise Damaged("not an entry of a data set")
        return cls(item, str(mount), tuple(words), name, generation, lease)

    def fields(self) -> dict[str, Any]:
        """The entry as it is written."""
        found = {"item": self.item, "mountPath": self.mount, "words": [*self.words], "name": self.name}
        return {
            name: value
            for name, value in (found | {"generation": self.generation, "lease": self.lease}).items()
            if value is not None
        }


def _is_path(mount: object) -> bool:
    """Whether an entry can be there: readers put these paths below directories of their own."""
    if not isinstance(mount, str) or not mount.startswith("/") or "\0" in mount:
        return False
    return mount == "/" or not any(part in ("", ".", "..") for part in mount[1:].split("/"))


class SessionFacts(NamedTuple):
    """A session as it was read. Written by others: for showing, never trusted further."""

    id: str
    label: str
    owner: str  # user@host[process, job or name] of its holder
    user: str
    holder: str  # the id of its holder
    created: str  # ISO 8601
    entries: tuple[Entry, ...]
    detached: tuple[Entry, ...] = ()  # taken out of the data set although the session holds a lease on them
    version: VersionName = VersionName(0, "")  # of the data set
    has_ended: bool = False  # its gate is closed: its deletion was begun

    @property
    def seq(self) -> int:
        """How often the data set was written."""
        return self.version.number

    def encode(self) -> str:
        """The text of the data set; `decode` reads it."""
        fields = {
            "format": 1,
            "label": self.label,
            "owner": self.owner,
            "user": self.user,
            "holder": self.holder,
            "created": self.created,
        }
        lists = {"dataSet": self.entries} | ({"detached": self.detached} if self.detached else {})
        return records.encode_lists(fields, {name: [one.fields() for one in found] for name, found in lists.items()})

    @classmethod
    def of_version(cls, id: str, version: versions.Version) -> SessionFacts:
        """What was read of a session. Raises Damaged for anything that no session writes."""
        fields = records.decode_document(version.text)
        if fields.get("format") != 1:
            raise Damaged("not the data set of a session")
        told = (str(fields.get(name, "?")) for name in ("label", "owner", "user", "holder", "created"))
        label, owner, user, holder, created = map(records.printable, told)
        entries, detached = fields.get("dataSet"), fields.get("detached", [])
        if not (isinstance(entries, list) and isinstance(detached, list)):
            raise Damaged("not the data set of a session")
        decoded = tuple(map(Entry.decode, entries)), tuple(map(Entry.decode, detached))
        return cls(id, label, owner, user, holder, created, *decoded, version.name, GATE not in version.beside)


def new_id() -> str:
    """An id for a session, never used before. It may be chosen long before the session is created."""
    return f"s{unique()}"


def view_path(layout: Layout, id: str) -> str:
    """The directory that shows a set, whether the session is there or not."""
    return f"{layout.session(id)}/{VIEW}"


def id_of_view(layout: Layout, path: str) -> str | None:
    """The id of the session whose view is at `path`, or contains it; None for other paths. Need not be there."""
    return layout.session_at(path)


def lock_owner(id: str) -> Owner:
    """The owner in whose name the holders of a session's locks are entered."""
    return Owner(NAMED, None, id, "")


# -- creating ----------------------------------------------------------------------------------------------------------


def create(
    store: Store,
    holder: Holder,
    entries: Sequence[Entry],
    *,
    label: str = "",
    links: Mapping[str, str] | None = None,
    id: str | None = None,
    worker: Holder | None = None,
    user: str | None = None,
) -> SessionFacts:
    """Make a session of `holder`, and put it in place by one rename: nobody ever sees a part of it.

    `holder` lasts as long as the session: nothing else is to be held by it. It was entered with ``Membership(id)``:
    its leases that the entries name end with the session, and not by `unuse` of a single item. Nothing is released if
    this fails.

    `links`: what the view shows, from paths relative to it (``refs/hg38.fa``) to absolute paths of payloads in this
    cache (`Place.payload`). None: the session has no view. `id`: one that `new_id` gave, and that was not used yet.
    `worker`: this process, in whose name the work area is made; without it, a work area that a killed process leaves
    is removed when `holder` has ended. `user`: whose session it is (default: the user of this process). Raises
    UsageError for an id or a link that is impossible, or OSError.
    """
    id = id or new_id()
    if not is_session(id):
        raise UsageError(f"{id!r} is not the id of a session", hint="an id is s and 16 hexadecimal digits")
    fs, layout = store.fs, store.layout
    facts = SessionFacts(id, label, holder.by, user or user_name(), holder.id, iso(store.clock.wall()), tuple(entries))
    area = f"{layout.tmp}/{WorkName((worker or holder).next_lease(), SESSION)}"
    fs.mkdir(area, shared=layout.shared)
    try:
        fs.mkdir(f"{area}/{GATE}", shared=layout.shared)
        if links is not None:
            fs.mkdir(f"{area}/{VIEW}", shared=layout.shared)
            make_links(store, f"{area}/{VIEW}", links)
        version = versions.begin(store, area, facts.encode())
        _put_in_place(store, area, id, version)
    except BaseException:
        with contextlib.suppress(OSError):  # otherwise `clean` removes it
            fs.remove_tree(area)
        raise
    return facts._replace(version=version)


def _put_in_place(store: Store, area: str, id: str, version: VersionName) -> None:
    fs, directory = store.fs, store.layout.session(id)
    for is_last in (False, True):
        try:
            fs.rename(area, directory)
            return
        except OSError as error:
            if error.errno in NOT_EMPTY:
                raise UsageError(f"session {id} already exists", hint="choose another id") from None
            if error.errno not in GONE:
                raise
            with Expected(GONE):
                if str(version) in fs.names(directory):
                    return  # the server has done it, and its reply was lost
            if is_last:
                raise
            fs.make_dirs(store.layout.ended_sessions, shared=store.layout.shared)


def make_links(store: Store, view: str, links: Mapping[str, str]) -> None:
    """Make links to payloads in a view; see `create`.

    They are relative, so that they are right on every host, wherever the cache is mounted.
    """
    fs, shared, control = store.fs, store.layout.shared, f"{store.layout.control}/"
    by_directory: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for path, payload in links.items():
        *above, name = path.split("/")
        if not payload.startswith(control) or any(part in ("", ".", "..") for part in (*above, name)) or "\0" in path:
            raise UsageError(f"{path!r} cannot be a path in a view", hint="give a relative path without '..'")
        text = f"{'../' * (len(above) + 3)}{payload.removeprefix(control)}"
        by_directory["".join(f"/{part}" for part in above)][name] = text
    for directory, found in by_directory.items():
        if directory:
            fs.make_dirs(f"{view}{directory}", shared=shared)
        with fs.near(f"{view}{directory}"):
            for name, text in found.items():
                fs.symlink(text, f"{view}{directory}/{name}")


# -- reading -----------------------------------------------------------------------------------------------------------


def read(store: Store, id: str) -> SessionFacts:
    """A session as it is now. Raises NoSession, DamagedSession or OSError.

    A session that is not found is looked for again after a change by this host: a network file system may hide one that
    another host has just created.
    """
    if is_session(id):
        for again in (True, False):
            try:
                return _read(store, id)
            except Damaged as error:
                raise DamagedSession(store, id, error) from error
            except OSError as error:
                if error.errno not in GONE:
                    raise
            if again:
                refresh(store)
        refuse_other(store, id)
    raise NoSession(store, id, ended_at(store, id))


def find_other(store: Store, id: str) -> str | None:
    """The path of what is where a session, or its gate, is to be, and is not a directory."""
    directory = store.layout.session(id)
    for path in (directory, f"{directory}/{GATE}"):
        with Expected(GONE):
            if not stat.S_ISDIR(store.fs.lstat(path).st_mode):
                return path
    return None


def refuse_other(store: Store, id: str) -> None:
    """Raise DamagedSession if something else is where a session, or its gate, is to be."""
    other = find_other(store, id)
    if other is not None:
        raise DamagedSession(store, id, f"{other} is not a directory")


def _read(store: Store, id: str, directory: str | None = None) -> SessionFacts:
    return SessionFacts.of_version(id, versions.read(store, directory or store.layout.session(id)))


def refresh(store: Store) -> None:
    """Have the next look for a session be the server's answer, by a create of this host's own."""
    try:
        with probing(store, store.layout.sessions):
            pass
    except FileNotFoundError:  # perhaps it only seems so: another host may just have made the first session
        store.fs.look_anew(store.layout.control)
    except OSError:
        store.fs.look_anew(store.layout.sessions)


def ids(store: Store) -> list[str]:
    """The ids of all sessions that are listed; a hint."""
    found = store.fs.names_if_made(store.layout.sessions)
    for text in found:
        if not (is_session(text) or text == "gone" or text.startswith(PROBE)):
            store.report(f"{store.layout.sessions}/{records.printable(text)}", "not a session", Fate.LEFT_ALONE)
    return list(filter(is_session, found))


def listing(store: Store) -> Iterator[SessionFacts]:
    """All sessions, those included whose deletion was begun (`has_ended`).

    What is damaged or cannot be read is skipped and logged: it must not keep others from what they do with theirs.
    """
    for id in ids(store):
        try:
            facts = _read(store, id)
        except (Damaged, OSError) as error:
            if not isinstance(error, OSError):
                store.report(store.layout.session(id), str(error), Fate.PASSED_OVER)
            elif error.errno not in GONE:
                store.report(store.layout.session(id), f"cannot be read ({error.strerror})", Fate.PASSED_OVER)
        else:
            yield facts


def ended(store: Store) -> list[EndedSession]:
    """Sessions that have ended, and are still remembered."""
    return list(filter(None, map(EndedSession.parse, store.fs.names_if_any(store.layout.ended_sessions))))


def listing_of_ended(store: Store) -> Iterator[SessionFacts]:
    """What is still known of sessions that have ended."""
    for one in ended(store):
        with contextlib.suppress(OSError, Damaged):
            yield _read(store, one.id, f"{store.layout.ended_sessions}/{one}")


def ended_at(store: Store, id: str) -> float | None:
    """When a session was deleted, in seconds since 1970; None if nothing is known of it."""
    for again in (True, False):
        at = max((one.end / 1000 for one in ended(store) if one.id == id), default=None)
        if at is not None:
            return at
        if again:
            _touch(store, store.layout.ended_sessions)
    return None


# -- the proof that a session has not ended, or that it has ------------------------------------------------------------


def prove_open(store: Store, id: str, lease: str) -> bool:
    """Whether a session has not ended, asked after `lease` was taken for it: then its deletion ends that lease, too.

    Entering its gate is the proof. Names in it guard nothing, so that one that a killed process leaves is harmless.
    """
    path = f"{store.layout.session(id)}/{GATE}"
    for again in (True, False):
        if gate.enter(store.fs, path, lease, "-"):
            with Expected(GONE):
                store.fs.unlink(f"{path}/{lease}")
            return True
        if again:
            refresh(store)
    return False


def seems_open(store: Store, id: str) -> bool:
    """Whether a session has not ended, for its own host. One call, for which a network file system asks its server."""
    try:
        with store.fs.open_directory(f"{store.layout.session(id)}/{GATE}"):
            return True
    except OSError as error:
        if error.errno not in GONE and error.errno != errno.ELOOP:
            raise
    return False


def has_ended(store: Store, id: str) -> bool:
    """Whether a session that was there has certainly ended: its name is missing, or its gate is.

    It is proved by listings after creates of this host's own, never by a look-up.
    """
    fs, layout = store.fs, store.layout
    fs.make_dirs(layout.sessions, shared=layout.shared)
    with probing(store, layout.sessions):
        if id not in fs.names(layout.sessions):
            return True
    with Expected(GONE), probing(store, layout.session(id)):
        return GATE not in fs.names(layout.session(id))
    return False  # it is moved just now: a later look proves it


# -- deleting ----------------------------------------------------------------------------------------------------------


class Deleted(NamedTuple):
    """What became of a session."""

    id: str
    at: float  # when it was deleted, in seconds since 1970
    by_this_call: bool  # False: it had been deleted before
    leases: int  # that this call ended


def delete(store: Store, id: str, how: str = RELEASED, *, is_own: bool = False) -> Deleted:
    """End a session with all its leases and locks. Complete, and may be repeated by anyone at any time.

    Raises NoSession for one that never was, and CacheError or OSError if something cannot be ended; then a later call,
    or `clean`, finishes it. `how`: what the history says of the leases. `is_own`: whether its holder asks for that.
    Otherwise a holder that shows heartbeats is revoked first, so that its process learns of it.
    """
    fs, layout = store.fs, store.layout
    directory = layout.session(id)
    if not is_session(id):
        raise NoSession(store, id, None)
    facts = None
    try:
        _close(store, f"{directory}/{GATE}")
        try:
            facts = _read(store, id)
        except Damaged as error:
            store.report(directory, str(error), "its holder's leases are ended by reap")
    except OSError as error:
        if error.errno not in GONE:
            raise
        at = ended_at(store, id)
        if at is None:
            if _unlink_other(store, directory):
                return Deleted(id, store.clock.wall(), True, 0)
            raise NoSession(store, id, None) from None
        return Deleted(id, at, False, 0)
    listed = HolderList.complete(store)  # after the gate was closed: whoever is missing cannot take a lock
    present = listed.present
    try:
        if facts:
            _check_holder(store, facts, listed, is_own=is_own)
    except Damaged as error:
        facts = None
        store.report(directory, str(error), "the leases that it names are left to reap")
    count = 0
    try:
        count += _end_own(store, facts, present, how) if facts else 0
    finally:
        with fs.near(layout.holders):
            locks = _revoke_locks(store, id, present)
        found = (*facts.entries, *facts.detached) if facts else ()
        keys = {entry.item[:32]: entry.item for entry in found if entry.item}
        count += sum(end_leases(store, digits, of, how, keys.get(digits)) for digits, of in locks.items() if digits)
    done = EndedSession(id, int(store.clock.wall() * 1000))
    target = f"{layout.ended_sessions}/{done}"
    try:
        fs.make_dirs(layout.ended_sessions, shared=layout.shared)
        fs.rename(directory, target)
    except OSError as error:
        at = ended_at(store, id)
        if error.errno not in GONE or at is None:
            raise
        return Deleted(id, at, at == done.end / 1000, count)
    with contextlib.suppress(OSError):  # otherwise `clean` removes it, with the rest
        fs.remove_tree(f"{target}/{VIEW}")
    return Deleted(id, done.end / 1000, True, count)


def _close(store: Store, path: str) -> None:
    """Close a session's gate. Raises FileNotFoundError if the session is not there.

    Names in it guard nothing: they are those of lockers, which are there for a moment, or died there.
    """
    fs = store.fs
    for _ in range(_MOST_CLOSINGS):
        try:
            closing = gate.closing(fs, path)
        except NotADirectoryError:
            if _unlink_other(store, path):
                return
            raise
        if closing is Closing.CLOSED:
            return
        if closing is Closing.CLOSED_BEFORE:
            refresh(store)  # it may be one that another host has just created
            if gate.closing(fs, path) is not Closing.IN_USE:
                fs.names(os.path.dirname(path))
                return
        with Expected(GONE), probing(store, path):
            found = fs.names(path)
            try:
                fs.unlink_all(path, found)
            except (IsADirectoryError, PermissionError):  # somebody has made a directory
                for name in found:
                    with Expected(GONE):
                        fs.remove_tree(f"{path}/{name}")
    raise InUse(f"other processes keep taking locks in {os.path.dirname(path)}", hint="try again")


def _unlink_other(store: Store, path: str) -> bool:
    """Remove what is not a directory, but where one is to be; False if there is nothing of that kind."""
    with Expected(GONE):
        if not stat.S_ISDIR(store.fs.lstat(path).st_mode):
            store.report(path, "not a directory", "removed")
            store.fs.unlink(path)
            return True
    return False


def _check_holder(store: Store, facts: SessionFacts, listed: HolderList, *, is_own: bool) -> None:
    """Raise Damaged if the holder that a data set names is for something else, and revoke one that shows heartbeats.

    The data set may be made up: the leases of others do not end because it names them.
    """
    for _ in range(_MOST_REVOCATIONS):
        name = listed.present.get(facts.holder)
        if name is not None:
            with Expected(GONE):
                session = _membership(store, name)
                if session is None or (session.session, session.item) != (facts.id, None):
                    raise Damaged("its holder does not hold anything for it")
                if is_own or not _beats(facts) or revoke(store, name):
                    return
        elif facts.holder in listed.gone or not _beats(facts):
            return
        listed = HolderList.complete(store)  # it has ended, or has shown a heartbeat meanwhile


def _membership(store: Store, holder: HolderName) -> Membership | None:
    """The session for which a holder holds leases, if any. Raises Damaged if its record says nothing, or OSError."""
    try:
        return read_holder(store, holder).session
    except Damaged as error:
        ending = store.command("reap", "--holder", holder.id)
        raise Damaged(f"its holder cannot be read ({error}); to end its leases: {ending}") from error


def _beats(facts: SessionFacts) -> bool:
    return facts.holder[:1] in {kind.letter for kind in BEATING}


def _end_own(store: Store, facts: SessionFacts, present: Mapping[str, HolderName], how: str) -> int:
    """End the leases that the data set names, and remove their holder. One that fails does not keep the others."""
    count, failed = 0, list[OSError]()
    for entry in (*facts.entries, *facts.detached):
        if entry.item and entry.generation and entry.lease and entry.lease.rpartition(".")[0] == facts.holder:
            path = f"{store.layout.generation(entry.item, entry.generation)}/{GATE}"
            try:
                count += leases.end(store, path, store.layout.history(entry.item), entry.lease, how)
            except OSError as error:
                failed.append(error)
    if failed:
        raise CacheError(
            f"could not release {len(failed)} of {len(failed) + count} leases",
            details=[*dict.fromkeys(map(explain, failed))][:3],
            hint="try again, or let the next `clean` end the leases once their holder has ended",
        )
    if not _beats(facts):
        with Expected(GONE):
            if facts.holder in present:
                store.fs.unlink(f"{store.layout.holders}/{present[facts.holder]}")
    return count


def _revoke_locks(store: Store, id: str, present: Mapping[str, HolderName]) -> Mapping[str, set[str]]:
    """Revoke the holders of all locks of a session whose gate is closed; their ids, by the digits of their items."""
    layout, prefix = store.layout, lock_owner(id).prefix
    locks: defaultdict[str, set[str]] = defaultdict(set)
    for name in [name for one, name in present.items() if one.startswith(prefix)]:
        digits = _item_of(store, f"{layout.holders}/{name}")
        # If it is not there: it was released meanwhile, or revoked, and is found below; or it has shown its heartbeat,
        # and learns next that it cannot enter the session's gate.
        with Expected(GONE):
            store.fs.rename(f"{layout.holders}/{name}", f"{layout.gone}/{name}")
        locks[digits].add(name.id)
    # After `holders/`: another deleter or a reaper may have revoked a holder, and not yet ended its lease.
    known = {id for digits, of in locks.items() if digits for id in of}
    for name in _gone(store, prefix):
        if name.id not in known:
            locks[_item_of(store, f"{layout.gone}/{name}")].add(name.id)
    return locks


def _gone(store: Store, prefix: str) -> list[HolderName]:
    names = map(HolderName.parse, store.fs.names(store.layout.gone))
    return [name for name in names if name and name.id.startswith(prefix)]


def items_of_gone(store: Store, holder: str) -> set[str]:
    """The digits of the item that a lock is on whose holder was revoked; none if it is not known any more."""
    return {_item_of(store, f"{store.layout.gone}/{name}") for name in _gone(store, holder)} - {""}


def _item_of(store: Store, path: str) -> str:
    """The digits of the item that a lock is on; empty if its record is gone or cannot be read."""
    try:
        record = HolderRecord.decode(store.fs.get_record(path))
    except FileNotFoundError:
        return ""
    except (OSError, Damaged) as error:
        store.report(path, str(error), "its leases are ended by reap")
        return ""
    return (record.session and record.session.item) or ""


def end_leases(store: Store, digits: str, of: Collection[str], how: str, key: str | None = None) -> int:
    """End the leases of holders on one item, whose key begins with these digits; returns how many."""
    found = [*_leases_on(store, digits, key, of)]
    return sum(leases.end(store, path, store.layout.history(one), text, how) for one, path, text in found)


def has_lease(store: Store, digits: str, holder: str) -> bool:
    """Whether a holder has a lease on an item now. Also true if that cannot be known."""
    try:
        return any(True for _ in _leases_on(store, digits, None, {holder}))
    except OSError:
        return True


def _leases_on(store: Store, digits: str, key: str | None, of: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """The leases of holders on one item: key, gate and name, as the server has them."""
    if not key:
        _touch(store, f"{store.layout.items}/{digits[:2]}")
    for one in [key] if key else keys_of(store, digits):
        directory = store.layout.item(one)
        _touch(store, directory)
        for generation in _names(store, directory):
            if Generation.parse(generation) is None:
                continue
            path = f"{directory}/{generation}/{GATE}"
            _touch(store, path)
            yield from ((one, path, text) for text in _names(store, path) if text.rpartition(".")[0] in of)


def keys_of(store: Store, digits: str) -> list[str]:
    """The keys of items that begin with these 32 digits: one, if the item is there."""
    found = _names(store, f"{store.layout.items}/{digits[:2]}")
    return [key for key in found if key.startswith(digits) and is_key(key)]


def _touch(store: Store, directory: str) -> None:
    """Have the next look into a directory be the server's answer."""
    with contextlib.suppress(OSError):  # missing, or not permitted: then the look must suffice
        store.fs.touch(directory)


def _names(store: Store, directory: str) -> list[str]:
    with Expected(GONE):
        return store.fs.names(directory)
    return []
