"""Who fetches what, how far, who waits for it, and how it ended: written by each, read by all.

Nothing here is needed for safety. What moves is a name, because a name is fresh on every host while a file's content
may be a minute old: in its work area a fetch has one name that says its state (`layout.StateName`), and one for each
download that says how much of it can be relied on (`layout.PartName`). How a fetch ended: see `downloads.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from sccache_dtool.clock import iso
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import TRANSFER_FILE, PartName, Purpose, StateName, WhyName, WorkName, is_fetcher_sign
from sccache_dtool.errors import GONE
from sccache_dtool.fallback import do_without
from sccache_dtool.liveness import State as Life
from sccache_dtool.liveness import Verdict
from sccache_dtool.liveness import record as holder_record
from sccache_dtool.liveness.process import Proc
from sccache_dtool.liveness.record import HolderRecord
from sccache_dtool.protocol import downloads, holders
from sccache_dtool.protocol.holders import HolderList
from sccache_dtool.protocol.store import Store
from sccache_dtool.units import short_duration


class TransferState(StrEnum):
    """What a fetch is doing."""

    INITIALIZING = "initializing"
    QUEUED = "queued"
    TRANSFERRING = "transferring"
    RETRYING = "retrying"  # an attempt has failed, and the next one is to come; derived, and not the name on disk
    PROCESSING = "processing"  # unpacking, verifying, writing to disk
    DONE = "done"
    FAILED = "failed"
    WAITING = "waiting"  # for another process, which fetches it
    ABANDONED = "abandoned"  # its process has ended; the next that wants the item continues it


class Transfer(NamedTuple):
    """A fetch, or a wait for one, as seen from outside. Sizes in bytes, times in seconds since 1970."""

    key: str  # of a wait, only its digits
    label: str
    source: tuple[str, ...]
    state: str
    bytes: int
    total: int | None
    attempts: int
    by: str
    there: int  # bytes that an interrupted download had left, and that did not come in this one
    began: float | None
    ended: float | None
    error: str | None
    area: str  # the work area's name; empty for one that has ended
    sign: str  # of the election that its fetcher won; empty for others
    continuable_until: float | None = None  # if it was abandoned, and is worth continuing
    message: str | None = None  # why the last attempt failed; of one that succeeded in the end, too
    who: str = "?"  # `by` in words
    holder: str = ""  # the id of the holder that is to get the lease; empty if an earlier release fetches
    session: str | None = None  # for which that holder holds leases
    lock_owner: str | None = None  # the text that the session's lock was taken with

    @property
    def percent(self) -> float | None:
        """How much of it is there."""
        return None if not self.total else min(100.0, 100.0 * self.bytes / self.total)

    def rate(self, now: float) -> float | None:
        """Bytes a second since it began, on average; None where none have come."""
        seconds = 0.0 if self.began is None else (self.ended or now) - self.began
        came = self.bytes - self.there
        return came / seconds if seconds > 0 and came > 0 else None


def running(store: Store, *, waits: bool = True, key: str | None = None) -> Iterator[Transfer]:
    """The fetches and waits that have a name in `tmp/`; what cannot be read, or is just ending, is passed over.

    `waits`: whether waits are read, too. `key`: only fetches of this item; those of others are not opened.
    """
    gone: frozenset[str] | None = None
    for text in store.fs.names(store.layout.tmp):
        work = WorkName.parse(text)
        if work is None or work.purpose not in (Purpose.FETCH, Purpose.WAIT):
            continue
        if key is not None and work.of not in ("", key[:32]):
            continue
        try:
            if work.purpose == Purpose.FETCH:
                transfer = _fetched_in(store, work)
            elif waits:
                gone = _who_is_gone(store) if gone is None else gone
                if work.holder in gone:
                    continue
                facts = records.decode(store.fs.get_record(f"{store.layout.tmp}/{text}"))
                transfer = _transfer(facts, text, None)
            else:
                continue
        except (OSError, records.Damaged):
            continue
        if key in (None, transfer.key):
            yield transfer


def in_progress(store: Store, key: str | None = None) -> dict[str, Transfer]:
    """What is being fetched, by the keys of the items, or of one item alone; abandoned fetches are left out.

    Empty, with a note, if that cannot be read: it is only shown.
    """
    found: dict[str, Transfer] = {}
    for one in _running_if_known(store, key):
        if one.state != TransferState.ABANDONED and (one.key not in found or one.bytes > found[one.key].bytes):
            found[one.key] = one
    return found


def _fetched_in(store: Store, work: WorkName) -> Transfer:
    """The fetch in a work area. Raises OSError or records.Damaged."""
    area = f"{store.layout.tmp}/{work}"
    found = store.fs.names(area)
    facts = records.decode_document(store.fs.read_text(f"{area}/{TRANSFER_FILE}"))
    state = next((parsed for name in found if (parsed := StateName.parse(name))), None)
    transfer = _transfer(facts, str(work), state)
    if reason := max((failed for name in found if (failed := WhyName.parse(name))), default=None):
        with contextlib.suppress(FileNotFoundError, records.Damaged):  # the next attempt may just have failed, too
            message = records.decode(store.fs.get_record(f"{area}/{reason}")).get("message")
            transfer = transfer._replace(message=records.printable(str(message)))
        if reason.attempt == transfer.attempts and transfer.state == TransferState.TRANSFERRING:
            transfer = transfer._replace(state=TransferState.RETRYING)
    if not is_abandoned(store, transfer.sign):
        return transfer
    by_globus = work._replace(purpose=Purpose.GLOBUS)
    until = downloads.continuable_until(store, work) or downloads.continuable_until(store, by_globus)
    return transfer._replace(state=TransferState.ABANDONED, continuable_until=until)


def is_abandoned(store: Store, sign: str) -> bool:
    """Whether a fetcher is gone: its election has ended, or its process was killed on this host.

    `sign`: of the election that it won. A sign is made before the work area, and no two have the same name. It is empty
    if none could be made: then nothing is known.
    """
    if not sign:
        return False
    if not is_fetcher_sign(sign):
        return True
    try:
        record = HolderRecord.decode(store.fs.get_record(f"{store.layout.locks}/{sign}"))
    except FileNotFoundError:
        return True
    except OSError as error:
        do_without(f"abandoned downloads cannot be recognised ({error.strerror})")
        return False
    except records.Damaged:
        return False
    return _is_dead(record, store.proc)


def _is_dead(record: HolderRecord, proc: Proc) -> bool:
    return holder_record.judge(record, proc, lambda ttl: Verdict(Life.UNKNOWN, "not seen from here")).state is Life.DEAD


def _who_is_gone(store: Store) -> frozenset[str]:
    """Ids of holders whose process was killed on this host. They may still be in `holders/`."""
    gone = set()
    for name in HolderList.glance(store).present.values():
        try:
            if _is_dead(holders.read(store, name), store.proc):
                gone.add(name.id)
        except (OSError, records.Damaged):
            continue
    return frozenset(gone)


def is_fetched(store: Store, key: str) -> bool:
    """Whether a fetch of the item has begun and not ended; an abandoned one, which can be continued, counts."""
    return bool(_running_if_known(store, key))


def only_shows_progress(name: str) -> bool:
    """Whether a name in a work area only shows its progress."""
    return name == TRANSFER_FILE or any(kind.parse(name) for kind in (StateName, PartName, WhyName))


def reserved(store: Store, before: tuple[float, str] | None = None) -> int:
    """Bytes that running fetches still have to write, as far as they know.

    `before`: only those that began before this time and area; two that begin at once must not make way for each other.
    """
    total = 0
    for transfer in _running_if_known(store):
        if transfer.state == TransferState.ABANDONED or transfer.total is None:
            continue
        if before is None or (transfer.began or 0.0, transfer.area) < before:
            total += max(0, transfer.total - transfer.bytes)
    return total


def _running_if_known(store: Store, key: str | None = None) -> list[Transfer]:
    try:
        return list(running(store, waits=False, key=key))
    except OSError as error:
        do_without(f"running downloads, and the space that they need, are not taken into account ({error.strerror})")
        return []


def ended(store: Store) -> Iterator[Transfer]:
    """The fetches that have ended within a day, the oldest first."""
    for name in sorted(downloads.all_outcomes(store), key=lambda one: one.end):
        try:
            facts = records.decode_document(store.fs.read_text(downloads.path_of(store.layout, name)))
        except (OSError, records.Damaged):
            continue
        size = _integer(facts, "bytes")
        total = size if name.how == TransferState.DONE else _integer(facts, "total")
        state = StateName(name.how, size or 0, total, _integer(facts, "attempts") or 1)
        yield _transfer(facts, "", state)._replace(ended=name.end / 1000)


def describe(transfer: Transfer, now: float) -> str:
    """How far a fetch is, in words: ``1.2 GB of 5.0 GB, 24 %, 30 MB/s, 2 min left``."""
    import humanize

    if transfer.state in (TransferState.QUEUED, TransferState.ABANDONED):
        return continuing(transfer) or str(transfer.state)
    words = [humanize.naturalsize(transfer.bytes)]
    if transfer.total:
        words = [f"{words[0]} of {humanize.naturalsize(transfer.total)}", f"{transfer.percent:.0f} %"]
    rate = transfer.rate(now)
    if rate:
        words.append(f"{humanize.naturalsize(rate)}/s")
        if transfer.total:
            words.append(f"{short_duration((transfer.total - transfer.bytes) / rate)} left")
    if transfer.attempts > 1:
        words.append(f"attempt {transfer.attempts}")
    if transfer.state == TransferState.RETRYING and transfer.message:
        words.append(transfer.message)
    return ", ".join(words)


def continuing(transfer: Transfer) -> str:
    """That a fetch can be continued, and until when; empty if it cannot."""
    until = transfer.continuable_until
    return "" if until is None else f"can be continued, until {iso(until)}"


def _transfer(facts: dict[str, Any], area: str, state: StateName | None) -> Transfer:
    source = facts.get("source")
    began = facts.get("began")
    error = facts.get("error")
    message = facts.get("message") if error is None else error
    return Transfer(
        key=str(facts.get("key", "?")),
        label=str(facts.get("label", "?")),
        source=tuple(str(word) for word in source) if isinstance(source, list) else (),
        state=state.state if state else TransferState.WAITING,
        bytes=state.bytes if state else 0,
        total=state.total if state else None,
        attempts=state.attempts if state else 0,
        by=records.printable(str(facts.get("by", "?"))),
        there=_integer(facts, "there") or 0,
        began=float(began) if isinstance(began, int | float) else None,
        ended=None,
        error=None if error is None else records.printable(str(error)),
        area=area,
        sign=str(facts.get("sign", "")),
        message=None if message is None else records.printable(str(message)),
        who=records.printable(str(facts.get("who") or facts.get("by", "?"))),
        holder=str(facts.get("holder", "")),
        session=_text(facts, "session"),
        lock_owner=_text(facts, "lock_owner"),
    )


def _text(facts: dict[str, Any], name: str) -> str | None:
    value = facts.get(name)
    return records.printable(value) if isinstance(value, str) else None


def _integer(facts: dict[str, Any], name: str) -> int | None:
    value = facts.get(name)
    return value if isinstance(value, int) else None


# -- continuing what others have left -------------------------------------------------------------------------------


class Taken(NamedTuple):
    """A work area that was another's, and how many bytes in it can be relied on."""

    area: str
    bytes: int


def find_abandoned(store: Store, key: str, target: str) -> Taken | None:
    """Take over the best of the abandoned work areas of an item, under the path `target`; None if there is none.

    The others are removed. A failure means only that nothing is continued.

    Only the winner of the item's election calls this, and takes only work areas whose fetcher has no election any
    more: it has resigned, or was proved dead or silent, and then its sign was removed. The whole area changes its name
    in one rename, so that of two who want it one gets it, and whoever only slept finds that it has nothing to publish.
    """
    fs, tmp = store.fs, store.layout.tmp
    with contextlib.suppress(OSError):
        found = [text for text in fs.names(tmp) if _is_left(store, key, text)]
        taken = None
        for size, area in sorted(((_size(fs, f"{tmp}/{area}"), area) for area in found), reverse=True):
            if size and taken is None and _rename(fs, f"{tmp}/{area}", target):
                taken = Taken(target, size)
            else:
                _remove(store, area)
        return taken
    return None


def is_taken_away(fs: FileSystem, area: str) -> bool:
    """Whether a work area was renamed: by a successor, or by `clean` because its process was taken for dead.

    On NFS, a look at it may show for a minute what was there before. An attempt to remove it reaches the server, which
    refuses because the area is not empty.
    """
    try:
        fs.rmdir(area)
    except OSError as error:
        return error.errno in GONE
    return False


def _is_left(store: Store, key: str, text: str) -> bool:
    """Whether a name in `tmp/` is a download of the item that nobody continues.

    Areas of other items are not opened. What a successor had taken over before it was killed is still its
    predecessor's download.
    """
    work = WorkName.parse(text)
    if work is None or work.purpose not in (Purpose.FETCH, Purpose.TAKEN) or work.of not in ("", key[:32]):
        return False
    try:
        facts = records.decode_document(store.fs.read_text(f"{store.layout.tmp}/{text}/{TRANSFER_FILE}"))
    except (OSError, records.Damaged):
        return False
    if facts.get("key") != key:
        return False
    sign = str(facts.get("sign", ""))
    return work.purpose == Purpose.TAKEN or is_abandoned(store, sign)


def _size(fs: FileSystem, area: str) -> int:
    """Bytes that can be relied on."""
    try:
        return sum(downloads.parts(fs, area).values())
    except OSError:
        return 0


def _rename(fs: FileSystem, area: str, target: str) -> bool:
    try:
        fs.rename(area, target)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    return True


def _remove(store: Store, area: str) -> None:
    """Rename an area, then delete it, as `clean` does: a process that wakes up must not publish half of it."""
    work = WorkName.parse(area)
    if work is None:
        return
    going = f"{store.layout.tmp}/{work._replace(purpose=Purpose.GOING)}"
    with contextlib.suppress(OSError):
        store.fs.rename(f"{store.layout.tmp}/{area}", going)
        store.fs.remove_tree(going)
