"""Waiting for another process's fetch. The wait is bounded and visible, and notes who fetches, and how far it is.

It ends with the item, with the reason why it could not be fetched, or with the election of this process.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator

from sccache_dtool.catalog import items
from sccache_dtool.disk import records
from sccache_dtool.disk.names import FAILED, OutcomeName, Purpose, WorkName
from sccache_dtool.errors import FetchFailed, NoSpace, TimedOut
from sccache_dtool.fetch import transfers
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.request import Request, Source, Terms
from sccache_dtool.fetch.transfers import TransferState
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.protocol import downloads
from sccache_dtool.protocol.election import Election
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.protocol.store import Store
from sccache_dtool.units import short_duration

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_REFRESH_EVERY = 5.0
_NOTE_AFTER = 1.0
_NOTE_EVERY = 60.0
_LOOK_EVERY = 1.0


class Waiter:
    """Waits for one item on behalf of one holder, for as long as the terms say."""

    def __init__(
        self,
        store: Store,
        holder: Holder,
        worker: Holder,
        request: Request,
        terms: Terms,
        progress: Progress | None = None,
    ) -> None:
        """`holder` gets the lease. `worker` is this process, whose signs are removed once it has ended.

        `progress`: shows how far the other's fetch is, if it can; see Progress.
        """
        self._store = store
        self._fs, self._layout, self._clock = store.fs, store.layout, store.clock
        self._holder = holder
        self._worker = worker
        self._request = request
        self._terms = terms
        self._progress = progress
        self._deadline = self._clock.monotonic() + terms.wait

    def wait(self, election: Election, take_existing: Callable[[], Lease | None]) -> Lease | None:
        """A lease on what another process has fetched, or None once this process is elected to fetch it.

        Raises TimedOut at the deadline, and the error of the other's fetch if it concerns this process, too.
        """
        if election.poll():
            return None
        began = self._clock.monotonic()
        next_note, next_refresh, pause = began + _NOTE_AFTER, began + _REFRESH_EVERY, _FIRST_PAUSE
        show, next_look = getattr(self._progress, "waiting", None), next_note
        known = self._failures()
        with contextlib.ExitStack() as signs:
            try:
                while not election.poll():
                    now = self._clock.monotonic()
                    if now >= self._deadline:
                        raise TimedOut(
                            f"{self._request.label} is still being fetched by another process after "
                            f"{short_duration(self._terms.wait)}",
                            details=[self._who(election)],
                            hint="wait longer with --wait; "
                            "if that process dies, the next `sc-dtool use` takes over its download",
                        )
                    if now >= next_note:
                        if next_note == began + _NOTE_AFTER:
                            signs.enter_context(self._shown_as_waiting())
                        self._store.log.note(f"waiting for {self._request.label}: fetched by {self._who(election)}")
                        next_note = now + _NOTE_EVERY
                    if show is not None and now >= next_look:
                        if self._progress is not None and next_look == began + _NOTE_AFTER:
                            signs.callback(self._progress.done)
                        self._show(show)
                        next_look = now + _LOOK_EVERY
                    self._clock.sleep(min(pause * random.uniform(0.5, 1.5), max(0.0, self._deadline - now)))
                    pause = min(pause * 1.5, _LONGEST_PAUSE if show is None else _LOOK_EVERY)
                    if now >= next_refresh:
                        items.refresh(self._store, self._request.key)
                        next_refresh = now + _REFRESH_EVERY
                    lease = take_existing()
                    if lease is not None:
                        return lease
                    self._raise_new(known)
                self._raise_new(known)
            except BaseException:
                election.resign()
                raise
        return None

    def _who(self, election: Election) -> str:
        """Who fetches the item, and how far the fetch is."""
        who = election.winner() or "an unknown process"
        with contextlib.suppress(OSError):  # it is a message only
            for transfer in transfers.running(self._store, waits=False, key=self._request.key):
                if transfer.state != TransferState.ABANDONED:
                    return f"{who}; {transfers.describe(transfer, self._clock.wall())}"
        return who

    def _show(self, show: Callable[[str, int, int | None], None]) -> None:
        with contextlib.suppress(OSError):
            for transfer in transfers.running(self._store, waits=False, key=self._request.key):
                if transfer.state != TransferState.ABANDONED:
                    show(transfer.label, transfer.bytes, transfer.total)
                    return

    def _failures(self) -> set[OutcomeName]:
        return {name for name in downloads.outcomes(self._store, self._request.key) if name.how == FAILED}

    def _raise_new(self, known: set[OutcomeName]) -> None:
        """Raise the error of a fetch that was waited for, if a fetch by this process would fail in the same way.

        It would if the source is the reason (it does not exist, or its digest is another one), and this process asks
        for it under the same identity. Credentials, permissions, hosts, quotas and servers in trouble concern only the
        other process, or only this moment: the wait continues until this process is elected. A process that comes
        later tries again in any case.
        """
        for name in self._failures() - known:
            try:
                facts = records.decode_document(self._fs.read_text(downloads.path_of(self._layout, name)))
            except (OSError, records.Damaged):
                continue
            known.add(name)
            by, reason = (records.printable(str(facts.get(field, "?"))) for field in ("by", "error"))
            no_space = facts.get("no_space") and self._terms.make_room is None  # this process may evict for it
            if not no_space and not (facts.get("shared") and facts.get("asked_as") == asked_as(self._request)):
                self._store.log.note(f"{by} could not fetch {self._request.label}: {reason}; trying again")
                continue
            kind = NoSpace if no_space else FetchFailed
            details, hint = facts.get("details"), facts.get("hint")
            raise kind(
                reason,
                details=[
                    *(records.printable(str(line)) for line in (details if isinstance(details, list) else ())),
                    f"fetched by {by}, while this process waited",
                ],
                hint=records.printable(hint) if isinstance(hint, str) else None,
            )

    @contextlib.contextmanager
    def _shown_as_waiting(self) -> Iterator[None]:
        """Show that this process waits; a failure to do so does not end the wait."""
        path = f"{self._layout.tmp}/{WorkName(self._worker.next_lease(), Purpose.WAIT)}"
        request, now = self._request, self._clock.wall()
        facts = {"key": request.key[:32], "label": request.name or request.label, "began": now}
        facts |= {**self._holder.facts, "holder": self._holder.id}
        with contextlib.suppress(OSError):
            self._fs.put_record(records.encode(facts), path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._fs.unlink(path)


def asked_as(request: Request) -> str:
    """The identity under which an item's sources are asked, without credentials.

    A request to a web server without credentials has the identity "anybody". Every other server may know its users, or
    its client may find credentials in places of its own. A local path leads to the same file if its size and its time
    of modification are the same.
    """
    if request.retrieve is not None or request.complete is not None:
        return user_name()
    return " | ".join(_asked_as(mirror) for chain in request.stack.chains for mirror in chain.mirrors)


def _asked_as(source: Source) -> str:
    if source.scheme == "file":
        try:
            status = os.stat(source.location)
        except OSError as error:
            return f"{user_name()}: {error.strerror}"
        return f"{status.st_size} {status.st_mtime_ns}"
    if source.scheme in ("http", "https"):
        from sccache_dtool.fetch import http

        return user_name() if http.has_credentials(source) else "anybody"
    return user_name()
