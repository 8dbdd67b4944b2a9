"""Who holds leases: one entry per process (or job, or name), whose heartbeats are renames.

A heartbeat and a revocation are both a rename of the same name, so the server lets exactly one of them win. A
holder is revoked before any lease of its is touched, and learns of it at its next heartbeat.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping

from sccache_dtool.disk import names, records
from sccache_dtool.disk.names import PROBE, REVOKED, HolderName
from sccache_dtool.errors import GONE, NO_TEXT, Expected, LeaseLost
from sccache_dtool.fallback import do_without, start_thread
from sccache_dtool.liveness.caller import Owner, host_name, user_name
from sccache_dtool.liveness.process import OwnProcess
from sccache_dtool.liveness.record import HolderRecord, Membership, encode
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple

#: Heartbeats in a lifetime, at least: five may fail.
BEATS_PER_LIFETIME = 6
LONGEST_PAUSE = 600.0

#: Pauses between heartbeats after which the last one is too old to hand out a path: this process may have been stopped,
#: and taken for dead. At least `lifetime.MISSED_BEATS` must have been missed before it is.
_STALE_PAUSES = 2

#: Seconds between two looks whether the thread has ended that shows heartbeats.
_LOOK_EVERY = 0.1

#: The latest end that a name can tell of, in seconds since 1970.
_LATEST = 10**12 - 1

#: Seconds within which two changes of a directory may bear the same time: Linux counts in ticks of 1 to 10 ms.
_TICK = 0.05
_WHOLE_SECOND = 10**9

#: The same where times are kept in whole seconds, or in every other one (FAT).
_COARSE_TICK = 2.05


class _Times(NamedTuple):
    """When something was done, in seconds by the clock since boot and by the wall clock."""

    boot: float
    wall: float


class Holder:
    """A holder of this process, with its entry in `holders/`."""

    def __init__(
        self, store: Store, owner: Owner, ttl: float | None, item: str | None = None, session: Membership | None = None
    ) -> None:
        """Enter a new holder; `ttl` is its lifetime in seconds, None for one that only its owner's end ends.

        `item`: the key of the only item that it will hold; `session`: the session for which it holds leases.
        """
        self.owner = owner
        self.ttl = ttl
        self._item = item
        self._session = session
        self._suspended_ttl: float | None = None  # the lifetime that goes on once a heartbeat is not needed any more
        self.lost = False
        self.by = f"{user_name()}@{host_name()}[{owner.short}]"
        # For those who look at what is fetched for it.
        self.facts = {"by": self.by, "who": f"{user_name()}@{host_name()}, {owner}"}
        if session is not None:
            self.facts |= {"session": session.session, "lock_owner": session.lock_owner or session.session}
        self._store = store
        self._numbers = itertools.count()
        self._heartbeat: Heartbeat | None = None
        self._myself = OwnProcess.now()
        self._retired = False
        self._beating = threading.RLock()  # reentrant: a signal handler may need a heartbeat in the middle of one
        self._name = HolderName(f"{owner.prefix}{names.unique(12)}", 0, 0)
        # Before it is made, not after: a process stopped in between must not set too early an end.
        self._shown = before = self._times()
        try:
            with contextlib.suppress(FileExistsError):  # the name is unique: the reply to a first request was lost
                store.fs.put_record(self._record(ttl), self._path(self._name))
            if ttl is not None:
                # From here on the end is reckoned on the file system's clock, carried forward by this host's clock.
                self._ahead = store.fs.lstat(self._path(self._name)).st_mtime - before.boot
                self.beat()
        except BaseException:
            self.retire()
            raise

    @property
    def id(self) -> str:
        """The part of the name that stays."""
        return self._name.id

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, which may neither use nor release what its parent holds."""
        return self._myself.is_this_process()

    @property
    def usable(self) -> bool:
        """Whether new leases may be taken: not after a revocation or the retirement, and not in a forked child."""
        return not self.lost and not self._retired and self._myself.is_this_process()

    @property
    def has_beaten(self) -> bool:
        """Whether it has shown a heartbeat: of one without a lifetime, only if `prove` was called."""
        return self._name.beats > 0

    def confirm(self) -> bool:
        """Whether what this holder holds is protected now: asked after a lease was taken, before its path is given out.

        Costs one call if the last heartbeat is older than it should be, and none otherwise.
        """
        if not self.usable:
            return False
        return self._is_fresh() or self.prove()

    def prove(self) -> bool:
        """As `confirm`, by one heartbeat, however old the last is. Raises OSError where that is refused."""
        if not self.usable:
            return False
        if not self._myself.is_certainly_this_process():
            self._myself = self._myself.of_another_process()
            return False
        try:
            self.beat()
        except LeaseLost:
            return False
        return self.usable

    def _is_fresh(self) -> bool:
        """Whether the last heartbeat is so recent that nobody can have taken this holder for dead.

        By two clocks: the one since boot goes on while this host is suspended, but not while a virtual machine is.
        """
        if self.ttl is None:
            return True
        now, limit = self._times(), _STALE_PAUSES * pause_between_beats(self.ttl)
        return abs(now.boot - self._shown.boot) <= limit and abs(now.wall - self._shown.wall) <= limit

    @property
    def has_lapsed(self) -> bool:
        """Whether its lifetime has passed since its last heartbeat, so that other hosts may have revoked it."""
        return self.ttl is not None and self._ahead + self._store.clock.since_boot() >= self._name.end

    def next_lease(self) -> str:
        """A name for a lease, never used before."""
        return f"{self._name.id}.{next(self._numbers)}"

    def beat(self) -> None:
        """Show that the holder is alive, for another lifetime: one rename. Raises LeaseLost if it was revoked."""
        with self._beating:
            if self.lost:
                raise self.revoked()
            now = self._times()
            try:
                self._name = renew(self._store, self._name, self._next_end(now, self.ttl))
            except LookupError:
                self.lost = not self._retired
                if self._heartbeat is not None:
                    self._heartbeat.beat_now()  # so that it tells of the loss now
                raise self.revoked() from None
            self._shown = now
        if self._retired:  # meanwhile, by another thread or a signal handler, under the name before this one
            self._leave()

    def stop_taking(self) -> None:
        """Take no more leases: whoever is about to hand one out takes it from another holder."""
        self._retired = True

    def retire(self) -> None:
        """Stop, and remove the entry; all leases have been released before. Does nothing in a forked child."""
        if not self.is_of_this_process:
            return
        self._retired = True
        self.stop_heartbeat()
        self._leave()

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            self._store.fs.unlink(self._path(self._name))

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Beat for as long as something takes that may be long, such as a download."""
        self.start_heartbeat(lambda error: None)  # who uses the result confirms the holder then
        try:
            yield
        finally:
            self.stop_heartbeat()

    def stop_heartbeat(self) -> None:
        """Beat no more."""
        heartbeat = self._heartbeat
        if heartbeat is not None:
            heartbeat.stop()
            self._heartbeat = None
        elif self._suspended_ttl is not None and self.usable:
            self._change_lifetime(self._suspended_ttl)
            self._suspended_ttl = None

    def start_heartbeat(self, on_lost: Callable[[LeaseLost], None]) -> None:
        """Beat in a thread until `retire`; `on_lost` is called once, from that thread, if it was revoked.

        Where the system gives no thread, the holder has no lifetime instead, until `stop_heartbeat`: whoever shows no
        heartbeat must not be taken for dead because of that.
        """
        if self._heartbeat is not None or self.ttl is None or self._retired:
            return
        heartbeat = Heartbeat(self, pause_between_beats(self.ttl), on_lost)
        if heartbeat.is_beating:
            self._heartbeat = heartbeat
            if not self.usable:  # closed meanwhile, by another thread or a signal handler
                self.stop_heartbeat()
        else:
            self._suspended_ttl = self.ttl
            self._change_lifetime(None)

    def _change_lifetime(self, ttl: float | None) -> None:
        """Enter under a new name with another lifetime. The old name goes after it, so that no listing misses both.

        Until then a heartbeat, such as one of a signal handler, is of the old lifetime, and so has another name.
        """
        with self._beating:
            now = self._times()
            new = HolderName(self._name.id, self._name.beats + 1, min(self._next_end(now, ttl), _LATEST))
            try:
                with contextlib.suppress(FileExistsError):  # as for the first one
                    self._store.fs.put_record(self._record(ttl), self._path(new))
            except OSError as error:
                do_without(f"the lifetime of leases cannot be changed ({error.strerror})")
                return
            old, self._name, self.ttl, self._shown = self._name, new, ttl, now
            try:
                self._store.fs.unlink(self._path(old))
            except OSError as error:
                if error.errno in GONE and old.id in HolderList.complete(self._store).gone:
                    self.lost = True  # otherwise it was done, and the reply lost
        if self._retired:  # as in `beat`
            self._leave()

    def _record(self, ttl: float | None) -> str:
        return encode(self.owner, ttl, self._store.clock, self._item, self._session)

    def _next_end(self, now: _Times, ttl: float | None) -> int:
        return 0 if ttl is None else int(self._ahead + now.boot + ttl)

    def _times(self) -> _Times:
        return _Times(self._store.clock.since_boot(), self._store.clock.wall())

    def _path(self, name: HolderName) -> str:
        return f"{self._store.layout.holders}/{name}"

    def revoked(self) -> LeaseLost:
        """The error that says that it was revoked, or that another part of this program has released everything."""
        if self._retired and not self.lost:
            return LeaseLost(f"the leases of {self.owner} were released by another process", hint="use the item again")
        why = "another process saw no heartbeat for a whole lifetime and considered it dead, or somebody revoked it"
        return LeaseLost(
            f"the leases of {self.owner} were revoked",
            details=[why],
            hint="the data that it reads may be deleted: stop, and use the item again; a longer --ttl makes this rarer",
        )


def pause_between_beats(ttl: float) -> float:
    """Seconds between two heartbeats of a holder with a lifetime of `ttl` seconds."""
    return min(ttl / BEATS_PER_LIFETIME, LONGEST_PAUSE)


class Heartbeat:
    """A thread that beats. A beat that fails for a passing reason is tried again at the next.

    It is stopped by plain locks: unlike those of `threading.Event` and `Thread.join`, their calls cannot be interrupted
    half way by a signal handler that stops the same heart.
    """

    def __init__(self, holder: Holder, pause: float, on_lost: Callable[[LeaseLost], None]) -> None:
        self._holder = holder
        self._pause = pause
        self._on_lost = on_lost
        self._is_stopped = self._has_ended = False
        self._wake, self._end = threading.Lock(), threading.Lock()
        self._wake.acquire()
        self._end.acquire()
        otherwise = (
            "no heartbeat is shown, so these leases have no lifetime: they end with the process, or by reap --holder"
        )
        self._thread = start_thread(self._run, "sc-dtool heartbeat", otherwise)

    @property
    def is_beating(self) -> bool:
        """False if there was no thread for it."""
        return self._thread is not None

    def beat_now(self) -> None:
        """Beat now."""
        with contextlib.suppress(RuntimeError):  # it has been told before
            self._wake.release()

    def stop(self) -> None:
        """Beat no more; returns when a beat under way has ended. A forked child has no heart, and does not wait."""
        self._is_stopped = True
        self.beat_now()
        if self._thread in (None, threading.current_thread()) or not self._holder.is_of_this_process:
            return
        while not self._has_ended:
            if self._end.acquire(timeout=_LOOK_EVERY):
                self._end.release()

    def _run(self) -> None:
        error = None
        try:
            while error is None:
                self._wake.acquire(timeout=self._pause)
                if self._is_stopped:
                    break
                try:
                    self._holder.beat()
                except LeaseLost as lost:
                    error = lost
                except OSError:
                    pass  # the server may be away for minutes; the lifetime is much longer
        finally:
            self._has_ended = True
            self._end.release()
        if error is not None and self._holder.lost:
            self._on_lost(error)


def renew(store: Store, name: HolderName, end: int) -> HolderName:
    """Rename a holder to its next beat, with a new end. Raises LookupError when it is not there any more.

    ENOENT alone proves nothing: the rename may have been done and its reply lost. Only a listing made after a
    create by this host shows what the server has.
    """
    beat = HolderName(name.id, name.beats + 1, min(end, _LATEST))
    try:
        store.fs.rename(f"{store.layout.holders}/{name}", f"{store.layout.holders}/{beat}")
    except OSError as error:
        if error.errno not in GONE:
            raise
        present = HolderList.complete(store).present.get(name.id)
        if present is None:
            raise LookupError(name.id) from None
        return present
    return beat


class HolderList(NamedTuple):
    """All holders of a cache at one moment."""

    present: Mapping[str, HolderName]
    gone: frozenset[str]  # ids of those who were revoked
    now: float | None  # the file system's clock, in seconds since 1970; None after a mere glance
    unknown_names: tuple[str, ...]  # names that no holder has

    @property
    def is_proof(self) -> bool:
        """Whether a holder that is missing here is really missing."""
        return self.now is not None

    @classmethod
    def complete(cls, store: Store) -> HolderList:
        """List the holders, after a create in the same directory.

        Before such a create an NFS v3 client may hide a holder made in the same clock tick, and stay wrong. The
        created name's time is the file system's present time.
        """
        with probing(store, store.layout.holders) as probe:
            return cls._list(store, store.fs.lstat(probe).st_mtime)

    @classmethod
    def if_unchanged(cls, store: Store) -> HolderList | None:
        """As `complete`, while no holder comes, goes or shows a heartbeat; None if one does.

        A listing may miss a name that is renamed meanwhile (readdir(3)), each time again: only when nothing has changed
        in the directory is a missing holder really missing. What changes in the same tick as `before` cannot be seen,
        so that the listing begins in a later one.
        """
        with probing(store, store.layout.holders) as probe:
            before = store.fs.changed(store.layout.holders)
            store.clock.sleep(_TICK if before % _WHOLE_SECOND else _COARSE_TICK)
            listing = cls._list(store, store.fs.lstat(probe).st_mtime)
            return listing if store.fs.changed(store.layout.holders) == before else None

    @classmethod
    def glance(cls, store: Store) -> HolderList:
        """List the holders without writing anything: enough to show them, not to say that one is missing."""
        return cls._list(store, None)

    @classmethod
    def _list(cls, store: Store, now: float | None) -> HolderList:
        present: dict[str, HolderName] = {}
        unknown_names = []
        for text in store.fs.names(store.layout.holders):
            name = HolderName.parse(text)
            if name is not None:
                known = present.get(name.id)
                if known is None or known.beats < name.beats:  # for a moment there may be two: see _change_lifetime
                    present[name.id] = name
            elif text != REVOKED and not text.startswith(PROBE):
                unknown_names.append(text)
        gone = (HolderName.parse(text) for text in store.fs.names(store.layout.gone))
        return cls(present, frozenset(name.id for name in gone if name), now, tuple(unknown_names))


@contextlib.contextmanager
def probing(store: Store, directory: str) -> Iterator[str]:
    """A name in a directory, for a moment: a listing made meanwhile shows what was there before. Yields its path."""
    path = f"{directory}/{PROBE}{names.unique()}"
    with contextlib.suppress(FileExistsError):  # the reply to a first request was lost
        store.fs.put_record("probe", path)
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):  # as above
            store.fs.unlink(path)


def read(store: Store, name: HolderName) -> HolderRecord:
    """What a holder says of itself. Raises records.Damaged, also for what is not a record at all, or OSError."""
    try:
        return HolderRecord.decode(store.fs.get_record(f"{store.layout.holders}/{name}"))
    except OSError as error:
        if error.errno not in NO_TEXT:
            raise
        raise records.Damaged(error.strerror) from error


def read_all(store: Store, wanted: Mapping[str, HolderName]) -> dict[str, HolderRecord]:
    """What holders say of themselves, by their ids. What cannot be read in one pass is left out."""
    ids, found = {str(name): id for id, name in wanted.items()}, {}
    for name, text in store.fs.get_records(store.layout.holders, ids):
        try:
            found[ids[name]] = HolderRecord.decode(text)
        except records.Damaged:  # thousands may be read, for which `suppress` takes long
            continue
    return found


def revoke(store: Store, name: HolderName) -> bool:
    """Take a holder's entry away: False if it has beaten, or was revoked, in the meantime. One call."""
    with Expected(GONE):
        store.fs.rename(f"{store.layout.holders}/{name}", f"{store.layout.gone}/{name}")
        return True
    return False
