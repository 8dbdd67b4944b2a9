"""A session as programs use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.catalog.items import Item
from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.request import DatasetRequest, Request
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.protocol.store import Store
from sccache_dtool.sets import locks, sessions
from sccache_dtool.sets.locks import Begun, Filter, Lock, SessionLock
from sccache_dtool.sets.sessions import Deleted, Entry, Object, SessionFacts

if TYPE_CHECKING:
    from types import TracebackType

#: What the entries of a data set may be given as: by path, a source or a source with steps; or entries.
DataSet = Mapping[str, str | Sequence[str]] | Iterable[Entry]


class Access(NamedTuple):
    """What a session needs of its cache."""

    store: Store
    request: Callable[[Sequence[str], str | None], Request | DatasetRequest]  # parses words and a name
    item_request: Callable[[Sequence[str], str | None], Request]  # as `request`, of one item
    entries_of: Callable[[Request | DatasetRequest, str], Iterable[Entry]]  # at a path; see `Cache.session_entries`
    acquire: Callable[
        [Holder, Request, float | None], Lease
    ]  # waits at most so many seconds; None: as the settings say
    take_cached: Callable[[Holder, Request], Lease | None]  # None: it must be fetched first
    unsettled: Callable[[], Iterable[Item]]

    def entries(self, data_set: DataSet) -> tuple[Entry, ...]:
        """The entries that a data set means. Raises UsageError for words that mean nothing."""
        if not isinstance(data_set, Mapping):
            return sessions.normal(data_set)
        made: list[Entry] = []
        for mount, words in data_set.items():
            made += self.entries_of(self.request([words] if isinstance(words, str) else [*words], None), mount)
        return sessions.normal(made)

    def request_of(self, entry: Entry) -> Request:
        """What an entry of a data set asks for. Raises UsageError if its words mean another item now."""
        request = self.item_request(entry.words, entry.name)
        if entry.item not in (None, request.key):
            raise UsageError(
                f"the source of {entry.mount} now means another item",
                hint="remove the item from the session, and add it again",
            )
        return request


class Session:
    """A session of a cache: items at paths, and the locks on them, which end with it.

    A context manager: leaving it deletes the session. Every method may raise NoSession, or LeaseLost if the session is
    being deleted.
    """

    def __init__(self, access: Access, id: str) -> None:
        self._access = access
        self.id = id

    @property
    def facts(self) -> SessionFacts:
        """The session as it is now."""
        return sessions.read(self._access.store, self.id)

    @property
    def items(self) -> tuple[Entry, ...]:
        """The entries of its data set."""
        return self.facts.entries

    def object(self, path: str, *, children: bool = False) -> Object:
        """What is at an absolute path. Raises UsageError if nothing is."""
        return sessions.find(self._access.store, self.facts, path, children=children)

    def lock(self, item: str, owner: str | None = None, wait: float | None = None) -> SessionLock:
        """A lock on an item of the data set, given by its path, key or name, which is fetched if it is not there.

        It lasts until it is released, or the session is deleted. `owner`: a text that names who asks for it
        (default: the session). `wait`: seconds to wait for another process's download. Raises as `Cache.use` does.
        """
        return self.finish_lock(self.begin_lock(item, owner), wait)

    def begin_lock(self, item: str, owner: str | None = None) -> Begun:
        """As `lock`, in two steps: the id of the lock is known after this one, and nothing was waited for."""
        return Begun(self._access.store, self.id, item, owner, self._access.request_of)

    def finish_lock(self, begun: Begun, wait: float | None = None) -> SessionLock:
        """Fetch the item of a lock that was begun, if it is not there. If this raises, nothing of the lock is left."""
        return begun.finish(lambda holder, request: self._access.acquire(holder, request, wait))

    def finish_if_cached(self, begun: Begun) -> SessionLock | None:
        """As `finish_lock`, but None, and the lock is still begun, if the item must be fetched first."""
        return begun.finish_if_cached(self._access.take_cached)

    def locks(self) -> list[Lock]:
        """All locks of the session."""
        return locks.listing(self._access.store, Filter(self.id), self._access.unsettled)

    def change(self, data_set: DataSet, *, if_seq: int | None = None, force: bool = False) -> SessionFacts:
        """Replace the data set. Raises InUse if its number is not `if_seq`, or if another process was first.

        Raises InUse, too, if it would take out an item on which the session has a lock, unless `force`.
        """
        entries = self._access.entries(data_set)
        return self.edit(lambda before: entries, if_seq=if_seq, force=force)

    def edit(
        self, make: Callable[[Sequence[Entry]], Iterable[Entry]], *, if_seq: int | None = None, force: bool = False
    ) -> SessionFacts:
        """As `change`, to what `make` makes of the present data set."""
        return sessions.change(self._access.store, self.id, make, if_seq=if_seq, force=force)

    def renew(self) -> bool:
        """Extend the lifetime of the session's holder; False if it has none."""
        return sessions.renew(self._access.store, self.id)

    def delete(self) -> Deleted:
        """Delete the session, and release all its locks. Deleting it twice is not an error."""
        return sessions.delete(self._access.store, self.id)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()
