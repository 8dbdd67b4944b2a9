"""A set that is held: a session with leases on all its items, and a directory of links that shows each at its path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.acquire import Acquirer
from sccache_dtool.catalog import items
from sccache_dtool.disk.names import RELEASED, HolderName
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import GONE, CacheError, Expected, LeaseLost
from sccache_dtool.fetch.request import DatasetRequest
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.protocol import holders, leases, sessions
from sccache_dtool.protocol.holders import Holder, HolderList
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.protocol.sessions import NoSession
from sccache_dtool.protocol.store import Store
from sccache_dtool.sets.manifest import Entry
from sccache_dtool.sets.taking import Wanted, take_all

if TYPE_CHECKING:
    from pathlib import Path


class HeldSet(Mapping[str, "Path"]):
    """A set in use: the path of each item by its path in the view. Nothing of it can be deleted until `release`.

    Its own path is that of the view. A context manager::

        with cache.use_many({"ref.fa": "/data/ref.fa"}) as held:
            open(held["ref.fa"]), os.listdir(held)
    """

    def __init__(self, store: Store, session: str, holder: Holder, taken: Mapping[str, Lease]) -> None:
        self._store = store
        self._leases = taken
        self._is_released = False
        self.session = session
        self.holder = holder

    @property
    def view(self) -> str:
        """The directory of links."""
        return sessions.view_path(self._store.layout, self.session)

    def check(self) -> None:
        """Raise LeaseLost if the items are not protected any more; see `Lease.check`, also for a forked child.

        One file-system call, which finds out whether the session was deleted.
        """
        if self._is_released:
            raise LeaseLost(f"the set {self.session} was released", hint="use it again")
        if not sessions.seems_open(self._store, self.session):
            # Somebody deletes it; or a purge of the file system has removed its gate, and the leases are there.
            is_held = self.holder.ttl is not None and self.holder.prove()
        else:
            is_held = not self.holder.lost and (not self.holder.is_of_this_process or self.holder.confirm())
        if not is_held:
            raise self.holder.revoked()

    def release(self) -> int:
        """Give everything back; returns how many leases this call ended. Releasing twice is not an error.

        In a forked child this does nothing: the set is its parent's.
        """
        if self._is_released or not self.holder.is_of_this_process:
            return 0
        count = 0
        with suppress(NoSession):  # others, or a purge of the file system, have removed it
            count = sessions.delete(self._store, self.session, is_own=True).leases
        if count < len(self._leases):  # it does not name them all any more
            count += sum([lease.release() for lease in self._leases.values()])
        self._is_released = True
        self.holder.retire()
        return count

    def __fspath__(self) -> str:
        return self.view

    def __getitem__(self, path: str) -> Path:
        return self._leases[path].path

    def __iter__(self) -> Iterator[str]:
        return iter(self._leases)

    def __len__(self) -> int:
        return len(self._leases)

    def __enter__(self) -> HeldSet:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def hold(
    acquirer: Acquirer,
    entries: Sequence[Entry],
    session: str,
    *,
    label: str = "",
    max_age: float | None = None,
    jobs: int | None = None,
) -> HeldSet:
    """Leases on all entries for the holder of `acquirer`, which must be beating, and the session that shows them.

    All or nothing. `session`: an id that was not used yet. `label`: a text that describes the set. `max_age`,
    `jobs`: see `take_all`.
    """
    wanted = list(_expanded(acquirer, entries, max_age))
    taken = take_all(acquirer, wanted, max_age, jobs)
    store, holder = acquirer.store, acquirer.holder
    pairs = [*zip(wanted, taken, strict=True)]
    links = {one.path: lease.place.payload for one, lease in pairs}
    is_made = False  # a session that was there already is somebody else's
    try:
        sessions.create(store, holder, [_recorded(*pair) for pair in pairs], label=label, links=links, id=session)
        is_made = True
        if not holder.confirm():
            raise holder.revoked()
    except BaseException:
        if is_made:
            with suppress(OSError, CacheError):  # then `clean` removes it
                sessions.delete(store, session, is_own=True)
        for lease in taken:
            lease.give_back()
        raise
    return HeldSet(store, session, holder, {one.path: lease for one, lease in pairs})


def _recorded(one: Wanted, lease: Lease) -> sessions.Entry:
    """What the data set of the session says of an item."""
    key, generation = lease.place.key, lease.place.generation
    return sessions.Entry(key, f"/{one.path}", one.request.words, one.request.name, generation, lease.name)


def _expanded(acquirer: Acquirer, entries: Sequence[Entry], max_age: float | None) -> Iterator[Wanted]:
    """The items of a set, with those of whole datasets in their place."""
    for entry in entries:
        if isinstance(entry.request, DatasetRequest):
            from sccache_dtool.sets import datasets  # dtool itself is loaded only if something must be fetched

            yield from datasets.wanted_of(acquirer.store, entry.request, acquirer.acquire, entry.path)
        else:
            yield Wanted(entry.path, entry.request, entry.size, entry.where)


# -- giving back by what is on disk ------------------------------------------------------------------------------------


class Released(NamedTuple):
    """A set that was given back."""

    leases: int
    keys: tuple[str, ...]  # of its items


def release(store: Store, owners: Sequence[Owner], session: str) -> Released | None:
    """Give back the set whose session has this id; None if it is not of any of `owners`, or was given back before."""
    prefixes = tuple(owner.prefix for owner in owners)
    try:
        facts = sessions.read(store, session)
    except NoSession as error:
        return None if error.ended else _release_what_is_left(store, prefixes, session)
    except Damaged:
        return _release_what_is_left(store, prefixes, session)
    if not facts.holder.startswith(prefixes):
        return None
    count = sessions.delete(store, session, is_own=True).leases
    return Released(count, tuple(entry.item for entry in facts.entries if entry.item))


def of_dataset(store: Store, owners: Sequence[Owner], uuid: str) -> list[str]:
    """The ids of the sessions in which any of `owners` holds this whole dataset, the newest first."""
    prefixes = tuple(owner.prefix for owner in owners)
    found = [one for one in sessions.listing(store) if one.label == label_of(uuid)]
    ours = [one for one in found if one.holder.startswith(prefixes) and not one.has_ended]
    return [one.id for one in sorted(ours, key=lambda one: one.created, reverse=True)]


def label_of(uuid: str) -> str:
    """The label of a set that is a whole dataset."""
    return f"dtool:{uuid}"


def _release_what_is_left(store: Store, prefixes: tuple[str, ...], session: str) -> Released | None:
    """Give back a set whose list was lost, as by a purge of the file system: a scan finds its leases."""
    present = HolderList.complete(store).present.values()
    holder = next((one for one in present if one.id.startswith(prefixes) and _is_for(store, one, session)), None)
    if holder is None:
        return None
    found = [held for item in items.scan(store) for held in item.held if held.lease and held.lease.holder == holder.id]
    for held in found:
        leases.end(store, held.gate(store.layout), store.layout.history(held.key), held.name, RELEASED)
    with Expected(GONE):
        store.fs.unlink(f"{store.layout.holders}/{holder}")
    with suppress(NoSession):
        sessions.delete(store, session)
    return Released(len(found), tuple(held.key for held in found))


def _is_for(store: Store, holder: HolderName, session: str) -> bool:
    try:
        record = holders.read(store, holder)
    except (OSError, Damaged):
        return False
    return record.session is not None and record.session.session == session
