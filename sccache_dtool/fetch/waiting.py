"""Waiting for somebody else's fetch: bounded, showing that we wait, and saying for whom and how far they are.

The wait ends with the item, with the reason why it could not be fetched, or with our election in the other's place.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

from sccache_dtool.catalog import items
from sccache_dtool.disk import records
from sccache_dtool.disk.names import FAILED, OutcomeName, WorkName
from sccache_dtool.errors import FetchFailed, NoSpace, TimedOut
from sccache_dtool.fetch import transfers
from sccache_dtool.fetch.askers import asked_as
from sccache_dtool.fetch.errand import Errand
from sccache_dtool.fetch.request import Terms, Wanted
from sccache_dtool.fetch.transfers import WAIT, State
from sccache_dtool.protocol import downloads
from sccache_dtool.protocol.election import Election
from sccache_dtool.protocol.leases import Lease
from sccache_dtool.units import short_duration

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_REFRESH_EVERY = 5.0
_NOTE_AFTER = 1.0
_NOTE_EVERY = 60.0


class Waiter:
    """Waits for one holder for one item, for as long as its terms say."""

    def __init__(self, errand: Errand, wanted: Wanted, terms: Terms) -> None:
        self._fs, self._layout, self._clock, self._holder, self._worker, self._proc, self._note = errand
        self._wanted = wanted
        self._terms = terms
        self._deadline = self._clock.monotonic() + terms.wait

    def wait(self, election: Election, take_existing: Callable[[], Lease | None]) -> Lease | None:
        """A lease on what somebody else has fetched, or None once we are elected to fetch it.

        Raises TimedOut at the deadline, and what the other's fetch has failed with.
        """
        if election.poll():
            return None
        began = self._clock.monotonic()
        next_note, next_refresh, pause = began + _NOTE_AFTER, began + _REFRESH_EVERY, _FIRST_PAUSE
        known = set(self._failures())
        with contextlib.ExitStack() as signs:
            try:
                while not election.poll():
                    now = self._clock.monotonic()
                    if now >= self._deadline:
                        raise self._too_long(election)
                    if now >= next_note:
                        if next_note == began + _NOTE_AFTER:
                            signs.enter_context(self._sign())
                        self._note(f"waiting for {self._wanted.label}: fetched by {self._who(election)}")
                        next_note = now + _NOTE_EVERY
                    self._clock.sleep(min(pause * random.uniform(0.5, 1.5), max(0.0, self._deadline - now)))
                    pause = min(pause * 1.5, _LONGEST_PAUSE)
                    if now >= next_refresh:
                        items.refresh(self._fs, self._layout, self._wanted.key)
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

    def _too_long(self, election: Election) -> TimedOut:
        after = short_duration(self._terms.wait)
        return TimedOut(
            f"{self._wanted.label} is still being fetched by another process after {after}",
            details=[self._who(election)],
            hint="wait longer with --wait; if that process dies, the next `sc-dtool use` takes over its download",
        )

    def _who(self, election: Election) -> str:
        """Who fetches, and how far."""
        who = election.winner() or "an unknown process"
        with contextlib.suppress(OSError):  # it is a message only
            for transfer in transfers.running(self._fs, self._layout, self._proc, waits=False):
                if transfer.key == self._wanted.key and transfer.state != State.ABANDONED:
                    return f"{who}; {transfers.describe(transfer, self._clock.wall())}"
        return who

    def _failures(self) -> Iterator[OutcomeName]:
        for name in downloads.outcomes(self._fs, self._layout, self._wanted.key):
            if name.how == FAILED:
                yield name

    def _raise_new(self, known: set[OutcomeName]) -> None:
        """Raise what a fetch that was waited for has failed with, if the same fetch by us would fail in the same way.

        That is so if the reason is what was asked for (it is not there, or not what its digest says), and we ask for
        it as the other did. Credentials, permissions, hosts, quotas and servers in trouble are the other's own, or of
        the moment: the wait goes on until it is our turn. Who comes later tries again in any case.
        """
        for name in set(self._failures()) - known:
            try:
                facts = records.decode_document(self._fs.read_text(downloads.path_of(self._layout, name)))
            except (OSError, records.Damaged):
                continue
            known.add(name)
            by, reason = (records.printable(str(facts.get(field, "?"))) for field in ("by", "error"))
            no_space = facts.get("no_space") and self._terms.make_room is None  # with it, we may do what they might not
            if not no_space and not (facts.get("shared") and facts.get("asked_as") == asked_as(self._wanted)):
                self._note(f"{by} could not fetch {self._wanted.label}: {reason}; trying again")
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
    def _sign(self) -> Iterator[None]:
        """Show that we wait, while we do; a failure to do so is no reason to stop waiting."""
        path = f"{self._layout.tmp}/{WorkName(self._worker.next_lease(), WAIT)}"
        wanted, now = self._wanted, self._clock.wall()
        facts = {"key": wanted.key[:32], "label": wanted.name or wanted.label, "by": self._holder.by, "began": now}
        with contextlib.suppress(OSError):
            self._fs.put_record(records.encode(facts), path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._fs.unlink(path)
