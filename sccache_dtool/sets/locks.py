"""Locks: the leases of a cache, each with its session, its owner and its state. A lock's id is its lease's name.

A lock that was taken on its own is held by an entry of its own, which names its session, and lasts until it is released
or its session ends.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Item
from sccache_dtool.clock import from_iso
from sccache_dtool.disk.names import (
    FAILED,
    RELEASED,
    EndedName,
    Generation,
    LeaseName,
    OutcomeName,
    is_key,
    is_session,
    key_label,
)
from sccache_dtool.disk.records import Damaged, printable
from sccache_dtool.errors import (
    GONE,
    CacheError,
    DoesNotExist,
    Expected,
    FetchFailed,
    InUse,
    LeaseLost,
    TimedOut,
    UsageError,
)
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.caller import BEATING, job_here
from sccache_dtool.liveness.record import HolderRecord, Membership
from sccache_dtool.protocol import downloads, history, leases, reaping, sessions
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Held, Lease, Place
from sccache_dtool.protocol.reaping import Judge
from sccache_dtool.protocol.store import Store
from sccache_dtool.release import dismiss
from sccache_dtool.sets.sessions import Entry, meant, parts_of, read_open, unreachable

if TYPE_CHECKING:
    from sccache_dtool.fetch.request import Request
    from sccache_dtool.liveness.job import Job

HELD, WAITING, TRANSFERRING = "held", "waiting", "transferring"

#: What makes the request of an entry of a data set.
RequestOf = Callable[[Entry], "Request"]

#: Times that a lock is looked for whose holder is there.
_LOOKS = 5

#: States in which locks are listed, and those of a single one that was asked for.
STATES = (HELD, WAITING, TRANSFERRING)


class Lock(NamedTuple):
    """A lock as it was seen. Written by others: for showing, never trusted further."""

    id: str
    session: str | None
    item: str  # the key
    owner: str  # the text that it was taken with; otherwise the session, or the name, process or job
    user: str
    host: str
    job: str | None  # scheduler:number, in which it was taken, or whose session it is
    record: HolderRecord | str | None  # what its holder says of itself; of one that has ended, what is known of it
    since: float | None  # seconds since 1970
    state: str  # held, transferring, waiting, failed, or released
    generation: str | None = None
    verdict: Verdict = Verdict(State.UNKNOWN, "")
    ended: float | None = None  # seconds since 1970
    error: str | None = None  # why it failed

    @property
    def stable_id(self) -> str:
        """An id that is known before the item is there, and does not change."""
        holder = self.id.rpartition(".")[0]
        return _first_lease(holder) if _is_own(self.session, holder) else self.id

    @property
    def by(self) -> str:
        """Who holds it, for people."""
        return "?" if self.record is None else str(self.record)


class Filter(NamedTuple):
    """Which locks are meant; None matches all."""

    session: str | None = None
    item: str | None = None  # a key
    owner: str | None = None
    user: str | None = None
    host: str | None = None
    job: str | None = None  # its number, or scheduler:number
    state: str | None = None

    def choose(self, found: Iterable[Lock]) -> list[Lock]:
        """Those that are meant."""
        for name in self._fields:
            wanted = getattr(self, name)
            if wanted is not None and name == "job":
                found = [one for one in found if one.job and wanted in (one.job, one.job.partition(":")[2])]
            elif wanted is not None:
                found = [one for one in found if getattr(one, name) == wanted]
        return list(found)


# -- taking ------------------------------------------------------------------------------------------------------------


class SessionLock(Lease):
    """A lease for a session. It lasts until it is released, or the session is deleted, whatever this process does."""

    __slots__ = ("session",)
    session: str

    @classmethod
    def of(cls, store: Store, lease: Lease, session: str) -> SessionLock:
        """The same lease, whose holder goes with it."""
        lock = cls(store, lease.holder, lease.place, lease.name)
        lock.session = session
        return lock

    @property
    def id(self) -> str:
        """The id of the lock."""
        return self.name

    def check(self) -> None:
        """Raise LeaseLost if the lock was released, or its session deleted, by whomever. Two file-system calls."""
        super().check()
        is_open = sessions.seems_open(self.store, self.session)
        if not (is_open and self.store.fs.seems_there(f"{self.place.gate}/{self.name}")):
            what = "released by another process" if is_open else f"lost: session {self.session} was deleted"
            raise LeaseLost(f"lock {self.name} was {what}", hint="take another one")

    def release(self) -> bool:
        """Give the lock back; True if this call did it."""
        done = super().release()
        self.holder.retire()
        return done


class Begun:
    """A lock that was asked for, and is not held yet: others see it wait. `finish` or `abandon` ends that."""

    def __init__(self, store: Store, session: str, word: str, owner: str | None, request_of: RequestOf) -> None:
        """See `take`."""
        self._store = store
        self._session = session
        self.request = request_of(meant(store, read_open(store, session), word))
        job, taker = job_here(store.proc), store.proc.identify(os.getpid())
        named = _text_of(job.job if job else None)
        membership = Membership(session, owner or session, self.request.key, taker and taker.text, named)
        self._holder = Holder(store, sessions.lock_owner(session), None, session=membership)

    @property
    def id(self) -> str:
        """By which the lock can be shown and released from now on."""
        return _first_lease(self._holder.id)

    def finish(self, acquire: Callable[[Holder, Request], Lease]) -> SessionLock:
        """The lock, held; see `take`. If this fails, nothing of it is left."""
        with self._until_it_fails():
            return self._held(acquire(self._holder, self.request))

    def finish_if_cached(self, take: Callable[[Holder, Request], Lease | None]) -> SessionLock | None:
        """As `finish`, or None, and still begun, if the item must be fetched first."""
        with self._until_it_fails():
            lease = take(self._holder, self.request)
            return None if lease is None else self._held(lease)

    @contextlib.contextmanager
    def _until_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.abandon()
            if isinstance(error, LeaseLost) and self._holder.lost:
                raise self._over() from None
            raise

    def _held(self, lease: Lease) -> SessionLock:
        lock = SessionLock.of(self._store, lease, self._session)
        try:
            # Others who saw it wait may have released it: then nothing would protect the lease. The heartbeat comes
            # before the proof, for a deletion that misses the holder because of it relies on that.
            is_ours = self._holder.has_beaten or self._holder.prove()
            if is_ours and sessions.prove_open(self._store, self._session, lock.name):
                return lock
        except BaseException:
            lock.give_back()
            raise
        lock.give_back()
        raise self._over()

    def _over(self) -> LeaseLost:
        if sessions.seems_open(self._store, self._session):
            return LeaseLost(f"lock {self.id} was released by another process", hint="take another one")
        return LeaseLost(
            f"session {self._session} has ended", hint=f"create another one: {self._store.command('session', 'create')}"
        )

    def abandon(self) -> None:
        """Give up."""
        self._holder.retire()

    def note_failure(self, error: CacheError) -> None:
        """Let those who ask for the lock know why it failed, unless its own download has noted it."""
        if _failure(self._store, self._holder.id) is None:
            facts = {
                "label": self.request.name or self.request.label,
                "source": list(self.request.stack.canonical),
                **self._holder.facts,
            }
            _note_failure(self._store, self._holder.id, self.request.key, facts, error.message)


def _note_failure(store: Store, holder: str, key: str, facts: Mapping[str, object], error: str) -> None:
    """Remember for a day why a lock never came to be held."""
    now = store.clock.wall()
    name = OutcomeName(key[:32], _first_lease(holder), int(now * 1000), FAILED)
    downloads.note_outcome(store, name, {"key": key, **facts, "holder": holder, "began": now, "error": error})


def take(
    store: Store,
    session: str,
    word: str,
    owner: str | None,
    request_of: RequestOf,
    acquire: Callable[[Holder, Request], Lease],
) -> SessionLock:
    """A lock for a session on the item of its data set that `word` means, fetched first if it is not there.

    `acquire` takes a lease for a holder, and waits as long as it may. Raises what it raises; UsageError, before
    anything is written, if the item is not in the data set; LeaseLost if the session has ended.
    """
    return Begun(store, session, word, owner, request_of).finish(acquire)


def _first_lease(holder: str) -> str:
    """The id of a lock that was taken on its own. Its holder has no other lease; the name may have another number."""
    return f"{holder}.0"


def _is_own(session: str | None, holder: str) -> bool:
    """Whether a holder is that of a lock that was taken on its own."""
    return session is not None and holder.startswith(sessions.lock_owner(session).prefix)


# -- listing -----------------------------------------------------------------------------------------------------------


def listing(store: Store, wanted: Filter, unsettled: Callable[[], Iterable[Item]]) -> list[Lock]:
    """The locks that are meant. `unsettled` gives all items with leases, and is called if no other filter narrows it.

    With a session or an item, only the items concerned are looked at.
    """
    with reaping.open_judge(store, glance=True) as judge:
        reader = _Reader(store, judge, wanted.session)
        if wanted.item is not None:
            found = iter([items.look(store, wanted.item, uses=False)])
        elif wanted.session is not None:
            found = (items.look(store, key, uses=False) for key in reader.items_of(wanted.session))
        else:
            found = iter(unsettled())
        held = [one for item in found for one in item.held if one.lease is not None]
        holding = {one.lease.holder for one in held if one.lease}
        judge.expect(holding)
        locks = [*map(reader.lock, held), *reader.not_held(holding)]
    return sorted(wanted.choose(locks), key=lambda lock: (lock.item, lock.since or 0.0, lock.id))


def on_item(store: Store, key: str, *, session: str | None = None) -> list[Lock]:
    """The locks that are held on one item; `session`: only those of this session."""
    return [lock for lock in listing(store, Filter(session, key), lambda: ()) if lock.state == HELD]


class _Reader:
    """Reads leases and their holders as locks."""

    def __init__(self, store: Store, judge: Judge, session: str | None = None) -> None:
        """`session`: the only one whose locks are of interest, among those that are not held yet."""
        self._store = store
        self._judge = judge
        self._sessions: dict[str, str] | None = None  # the session of a lease whose holder does not name one
        prefix = "n" if session is None else sessions.lock_owner(session).prefix
        self._named = [id for id in judge.listing.present if id.startswith(prefix)]

    def lock(self, held: Held) -> Lock:
        """What a lease is as a lock."""
        assert held.lease is not None
        record, verdict = self._judge.holder(held.lease.holder)
        if record is None or (record.session is None and record.kind in BEATING):
            session = self._session_of(held.name)
        else:
            session = record.session and record.session.session
        return self._made(held.name, session, held.key, record, verdict, HELD, held.generation)

    def _session_of(self, lease: str) -> str | None:
        if self._sessions is None:
            listed = sessions.listing(self._store)
            self._sessions = {
                entry.lease: facts.id for facts in listed for entry in (*facts.entries, *facts.detached) if entry.lease
            }
        return self._sessions.get(lease)

    def items_of(self, session: str) -> list[str]:
        """The keys of all items on which a session may have locks. Raises NoSession."""
        facts = sessions.read(self._store, session)
        keys = dict.fromkeys(entry.item for entry in (*facts.entries, *facts.detached) if entry.item)
        digits = {key[:32] for key in keys}
        for _, membership, _ in self._entered():  # of items that were taken out of the data set by force
            if membership.item not in digits:
                keys |= dict.fromkeys(sessions.keys_of(self._store, str(membership.item)))
        return list(keys)

    def _entered(self, but: Collection[str] = ()) -> list[tuple[str, Membership, HolderRecord]]:
        """The holders of locks that were taken on their own, except these."""
        ids = [id for id in self._named if id not in but] if but else self._named
        self._judge.expect(ids)
        found = ((id, self._judge.holder(id)[0]) for id in ids)
        return [(id, one.session, one) for id, one in found if one and one.session and one.session.item]

    def not_held(self, holding: set[str]) -> Iterator[Lock]:
        """Locks whose item is still to be fetched: their holders have no lease yet."""
        # Whoever was killed before that has left its holder, which `reap` removes.
        pending = [one for one in self._entered(holding) if not reaping.has_died(self._store, one[1].taker)]
        if not pending:
            return
        from sccache_dtool.fetch import transfers

        coming = {one.key[:32]: one.key for one in transfers.running(self._store, waits=False)}
        for id, membership, record in pending:
            digits = str(membership.item)
            keys = [coming[digits]] if digits in coming else sessions.keys_of(self._store, digits)
            state = TRANSFERRING if digits in coming else WAITING
            verdict = self._judge.holder(id)[1]
            yield self._made(f"{id}.0", membership.session, (keys or [digits])[0], record, verdict, state)

    def _made(
        self,
        id: str,
        session: str | None,
        item: str,
        record: HolderRecord | None,
        verdict: Verdict,
        state: str,
        generation: str | None = None,
    ) -> Lock:
        if record is None:
            return Lock(id, session, item, "?", "?", "?", None, None, None, state, generation, verdict)
        member = record.session
        job = _text_of(record.job) or (member and member.job) or (self._judge.job_of(session) if session else None)
        process = None if record.process is None else f"pid:{record.process.pid}"
        owner = (member and member.lock_owner) or session or record.name or job or process or "?"
        user, host = record.user, record.host
        if not f"{owner}{user}{host}".isprintable():
            owner, user, host = map(printable, (owner, user, host))
        since = _moment(record.since)
        return Lock(id, session, item, owner, user, host, job, record, since, state, generation, verdict)


_moment = functools.lru_cache(from_iso)


def _text_of(job: Job | None) -> str | None:
    return None if job is None else f"{job.scheduler}:{job.id}"


# -- one lock ----------------------------------------------------------------------------------------------------------


def show(store: Store, id: str) -> Lock:
    """One lock by its id: as it is held, is still waited for, or was released. Raises UsageError if there was none."""
    lease = LeaseName.parse(id)
    if lease is None:
        raise _no_lock(store, id)
    for _ in range(_LOOKS):
        found, is_there = _seen(store, lease)
        if found is not None:
            return found
        if not is_there:
            break
    raise _no_lock(store, id)


def _seen(store: Store, lease: LeaseName) -> tuple[Lock | None, bool]:
    """A lock, and whether its holder is there. Both looks miss one that is taken between them: look again."""
    with reaping.open_judge(store, glance=True) as judge:
        reader, is_there = _Reader(store, judge), lease.holder in judge.listing.present
        record = judge.holder(lease.holder)[0] if is_there else None  # None also if it has just shown a heartbeat
        keys: list[str] = []
        alone = record is not None and record.session is not None and record.session.item is not None
        if record is not None and record.session is not None and record.session.item is not None:
            keys = sessions.keys_of(store, record.session.item)
        keys = keys or _likely_keys(store, lease)
        for key in keys or items.keys(store):
            for held in items.look(store, key, uses=False).held:
                if held.lease == lease or (alone and held.lease and held.lease.holder == lease.holder):
                    return reader.lock(held), True
        if record is not None:
            for lock in reader.not_held(set()):
                if lock.id.startswith(f"{lease.holder}."):
                    return lock, True
    failed = _failure(store, lease.holder)
    if failed is not None:
        return failed, True
    for key in itertools.chain(keys, items.keys(store)):  # it may have been taken out of its session by force
        ended = _ended(store, key, lease)
        if ended is not None:
            return ended, True
    return None, is_there


def _failure(store: Store, holder: str) -> Lock | None:
    """A lock whose item could not be fetched, as long as that is remembered: a day."""
    from sccache_dtool.fetch import transfers

    if not holder.startswith("n"):
        return None
    for name in downloads.all_outcomes(store):
        if name.how == FAILED and name.lease.rpartition(".")[0] == holder:
            one = transfers.outcome(store, name)
            if one is not None and _is_own(one.session, holder):
                user, _, rest = one.by.partition("@")
                verdict = Verdict(State.DEAD, "failed")
                return Lock(
                    name.lease, one.session, one.key, one.lock_owner or one.session or "?", user,
                    rest.partition("[")[0], None, one.who, one.began, FAILED, verdict=verdict, ended=one.ended,
                    error=one.error,
                )  # fmt: skip
    return None


def _no_lock(store: Store, id: str) -> DoesNotExist:
    return DoesNotExist(f"there is no lock '{printable(id)}'", hint=f"to list the locks: {store.command('lock', 'ls')}")


def _likely_keys(store: Store, lease: LeaseName) -> list[str]:
    """The keys of items that a lock may be on: those of its session; none for a lease of no session."""
    found = dict.fromkeys(
        key for digits in sessions.items_of_gone(store, lease.holder) for key in sessions.keys_of(store, digits)
    )
    prefix = f"{lease.holder.rpartition('-')[0]}-"
    for facts in (*sessions.listing(store), *sessions.listing_of_ended(store)):
        if facts.holder == lease.holder or sessions.lock_owner(facts.id).prefix == prefix:
            found |= dict.fromkeys(entry.item for entry in (*facts.entries, *facts.detached) if entry.item)
    return list(found)


def _ended(store: Store, key: str, lease: LeaseName) -> Lock | None:
    """A lock that was released, from the history of its item."""
    id, of = str(lease), f"{lease.holder}."
    for use in history.read(store, store.layout.history(key)) if _has_history(store, key, of) else ():
        if not use.lease.startswith(of):
            continue
        user, _, rest = use.by.partition("@")
        host, _, held_by = rest.removesuffix("]").partition("[")
        session = held_by if is_session(held_by) else None
        if use.lease == id or _is_own(session, lease.holder):
            verdict = Verdict(State.DEAD, use.how)
            return Lock(
                use.lease, session, key, session or use.by, user, host, None, use.by, use.since, RELEASED,
                verdict=verdict, ended=use.end,
            )  # fmt: skip
    return None


def _has_history(store: Store, key: str, of: str) -> bool:
    """Whether the history of an item may have a lease whose name begins so: it is listed, or there is a segment."""
    with Expected(GONE):
        for name in store.fs.names(store.layout.history(key)):
            entry = EndedName.parse(name)
            if entry is None or entry.lease.startswith(of):
                return True
    return False


def release(store: Store, id: str) -> tuple[Lock, bool]:
    """Give a lock back, whoever holds it; also whether this call did it. Raises UsageError if there was none.

    Raises InUse for the lease of a set, which ends with its session, and for one of a running program.
    """
    lock = show(store, id)
    if lock.state in (RELEASED, FAILED):
        return lock, False
    lease = LeaseName.parse(lock.id)
    assert lease is not None
    if lock.session is not None and not lease.holder.startswith(sessions.lock_owner(lock.session).prefix):
        raise InUse(
            f"{id} is a lease of a set, which is released as a whole",
            hint=f"to release the set: {store.command('session', 'rm', lock.session)}",
        )
    if lease.holder[0] in {kind.letter for kind in BEATING}:
        raise InUse(f"{id} is held by a running program: {lock.by}", hint="the program releases it")
    done = False
    if lock.generation is not None:
        gate = Held(lock.item, lock.generation, lock.id, lease).gate(store.layout)
        done = leases.end(store, gate, store.layout.history(lock.item), lock.id, RELEASED)
    dismiss(store, [lease.holder])
    # It may have got its lease meanwhile.
    if lock.generation is None and not sessions.end_leases(store, lock.item[:32], {lease.holder}, RELEASED):
        by = {"by": f"{lock.user}@{lock.host}[{lock.session}]", "who": lock.by}
        facts = {"label": key_label(lock.item), **by, "session": lock.session, "lock_owner": lock.owner}
        _note_failure(store, lease.holder, lock.item, facts, "the lock was released before its item was there")
    return lock._replace(state=RELEASED, ended=store.clock.wall()), done or lock.generation is None


def wait_until_held(store: Store, id: str, seconds: float) -> Lock:
    """A lock once it is held. Raises TimedOut if it is not within so many seconds, or UsageError if it is released."""
    deadline, pause = store.clock.monotonic() + seconds, 0.05
    while True:
        lock = show(store, id)
        if lock.state == HELD:
            return lock
        if lock.state == RELEASED:
            taking = store.command("lock", "get", lock.session or "SESSION", lock.item)
            raise UsageError(f"lock {id} was released", hint=f"take another one: {taking}")
        if lock.state == FAILED:
            raise FetchFailed(lock.error or f"the item of lock {id} could not be fetched")
        left = deadline - store.clock.monotonic()
        if left <= 0:
            raise TimedOut(
                f"the item of lock {id} is not ready: {lock.state}", hint="wait for it with --wait, or try again later"
            )
        store.clock.sleep(min(pause, left))
        pause = min(pause * 1.5, 2.0)


def path_of(store: Store, lock: Lock) -> str | None:
    """Where the payload of a lock that is held is."""
    generation = Generation.parse(lock.generation or "")
    if generation is None or not is_key(lock.item):
        return None
    with contextlib.suppress(OSError, Damaged):
        payload = items.payload_name(store, lock.item, generation)
        return payload and Place.of(store.layout, lock.item, str(generation), payload).payload
    return None


# -- reading -----------------------------------------------------------------------------------------------------------


def parse_range(text: str) -> tuple[int | None, int | None]:
    """First and last byte of ``A-B``, ``A-`` and ``-N``, the last N bytes, as in HTTP. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,18})?-([0-9]{1,18})?", text)
    first, last = (None if part is None else int(part) for part in match.groups()) if match else (None, None)
    if (first, last) == (None, None) or (first is not None and last is not None and last < first):
        raise UsageError(f"{text!r} is not a range of bytes", hint="give A-B, A- or -N: 0-99 are the first 100 bytes")
    return first, last


def read(
    store: Store, payload: str, inner: str = "", span: tuple[int | None, int | None] = (0, None)
) -> Iterator[bytes]:
    """The bytes of the file at a path in a payload, or of a range of it. No link is followed.

    Raises UsageError for what is not a file, or a range that begins after its end.
    """
    fs = store.fs
    path = _inside(payload, inner)
    try:
        fd = fs.open(path)
    except OSError as error:
        raise unreachable(error, inner) from None
    try:
        status = fs.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"{printable(inner or path.rpartition('/')[2])} is not a file",
                hint="give a file in it with --path, or read all of it as an archive with --tar",
            )
        first, last = span
        if first is None:
            first, last = max(0, status.st_size - (last or 0)), None
        if first and first >= status.st_size:
            raise UsageError(f"the range begins after the end: the file has {status.st_size} bytes")
        end = status.st_size if last is None else min(last + 1, status.st_size)
        fs.seek(fd, first)
        while first < end and (data := fs.read(fd, min(end - first, 1 << 20))):
            first += len(data)
            yield data
    finally:
        fs.close(fd)


def write_tar(store: Store, payload: str, inner: str, out: IO[bytes]) -> None:
    """Write what is at a path in a payload as a tar archive. Links in it are written as links, and never followed."""
    import tarfile

    fs, top = store.fs, _inside(payload, inner)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        pending = [(top, top.rpartition("/")[2])]
        while pending:
            path, name = pending.pop()
            try:
                status = fs.lstat(path)
            except OSError as error:
                raise unreachable(error, inner) from None
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime
            if stat.S_ISDIR(status.st_mode):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
                with fs.open_directory(path) as handle:
                    found = fs.names(path, via=handle)
                pending += ((f"{path}/{one}", f"{name}/{one}") for one in reversed(found))
            elif stat.S_ISLNK(status.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, fs.readlink(path)
                archive.addfile(info)
            elif stat.S_ISREG(status.st_mode):
                info.size = status.st_size
                with os.fdopen(fs.open(path), "rb") as file:
                    archive.addfile(info, file)


def _inside(payload: str, inner: str) -> str:
    """The path of what is in a payload. Raises UsageError for a path that leads out of it."""
    return "/".join((payload, *parts_of(f"/{inner}")))
