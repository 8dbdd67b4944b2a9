"""Who fetches what, how far, who waits for it, and how it ended: written by each, read by all.

Nothing here is needed for safety. What moves is a name, because a name is fresh on every host while a file's content
may be a minute old: in its work area a fetch has one name that says its state (`layout.StateName`), and one for each
download that says how much of it can be relied on (`layout.PartName`). How a fetch ended: see `downloads.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from sccache_dtool.clock import iso
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import TRANSFER_FILE, Layout, PartName, StateName, WorkName
from sccache_dtool.fallback import do_without
from sccache_dtool.liveness import State as Life
from sccache_dtool.liveness import Verdict
from sccache_dtool.liveness.process import Proc
from sccache_dtool.protocol import downloads, holders
from sccache_dtool.protocol.downloads import FETCH, TAKEN, parts
from sccache_dtool.protocol.holders import HolderRecord, Roll
from sccache_dtool.units import short_duration

__all__ = ["FETCH", "TAKEN", "WAIT", "State", "Transfer", "parts"]

WAIT = "wait"

#: Names that elections of fetchers give to signs; those of local sources have the version in them, see `Freshness`.
_SIGN = r"[0-9a-f]{32}(?:-[0-9a-f]{16})?\.by-[0-9a-f]{16}"


class State(StrEnum):
    """What a fetch is doing."""

    INITIALIZING = "initializing"
    QUEUED = "queued"
    TRANSFERRING = "transferring"
    PROCESSING = "processing"  # unpacking, verifying, writing to disk
    DONE = "done"
    FAILED = "failed"
    WAITING = "waiting"  # for somebody else, who fetches it
    ABANDONED = "abandoned"  # by whoever began it; the next who wants the item goes on with it


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

    @property
    def percent(self) -> float | None:
        """How much of it is there."""
        return None if not self.total else min(100.0, 100.0 * self.bytes / self.total)

    def rate(self, now: float) -> float | None:
        """Bytes a second since it began, on average; None where none have come."""
        seconds = 0.0 if self.began is None else (self.ended or now) - self.began
        came = self.bytes - self.there
        return came / seconds if seconds > 0 and came > 0 else None


def running(fs: FileSystem, layout: Layout, proc: Proc | None = None, *, waits: bool = True) -> Iterator[Transfer]:
    """The fetches and waits that have a name in `tmp/`; what cannot be read, or is just ending, is passed over.

    `proc`: this host's processes, among which one that was killed is noticed; `waits`: whether waits are read, too.
    """
    proc = proc or Proc()
    gone: frozenset[str] | None = None
    for text in fs.names(layout.tmp):
        work = WorkName.parse(text)
        if work is None or work.purpose not in (FETCH, WAIT):
            continue
        try:
            if work.purpose == FETCH:
                transfer = _fetched_in(fs, layout, work, proc)
            elif waits:
                gone = _who_is_gone(fs, layout, proc) if gone is None else gone
                if work.holder in gone:
                    continue
                transfer = _transfer(records.decode(fs.get_record(f"{layout.tmp}/{text}")), text, None)
            else:
                continue
        except (OSError, records.Damaged):
            continue
        yield transfer


def _fetched_in(fs: FileSystem, layout: Layout, work: WorkName, proc: Proc) -> Transfer:
    """The fetch in a work area. Raises OSError or records.Damaged."""
    area = f"{layout.tmp}/{work}"
    found = fs.names(area)
    facts = records.decode_document(fs.read_text(f"{area}/{TRANSFER_FILE}"))
    state = next((parsed for name in found if (parsed := StateName.parse(name))), None)
    transfer = _transfer(facts, str(work), state)
    if not is_abandoned(fs, layout, transfer.sign, proc):
        return transfer
    until = downloads.continuable_until(fs, layout, work)
    return transfer._replace(state=State.ABANDONED, continuable_until=until)


def is_abandoned(fs: FileSystem, layout: Layout, sign: str, proc: Proc) -> bool:
    """Whether a fetcher is gone: its election has ended, or its process was killed on this host.

    `sign`: of the election that it won. A sign is made before the work area, and no two have the same name. Empty
    where none could be made: then nobody can tell.
    """
    if not sign:
        return False
    if re.fullmatch(_SIGN, sign) is None:
        return True
    try:
        record = HolderRecord.decode(fs.get_record(f"{layout.locks}/{sign}"))
    except FileNotFoundError:
        return True
    except OSError as error:
        do_without(f"abandoned downloads cannot be recognised ({error.strerror})")
        return False
    except records.Damaged:
        return False
    return _is_dead(record, proc)


def _is_dead(record: HolderRecord, proc: Proc) -> bool:
    return holders.judge(record, proc, lambda ttl: Verdict(Life.UNKNOWN, "not seen from here")).state is Life.DEAD


def _who_is_gone(fs: FileSystem, layout: Layout, proc: Proc) -> frozenset[str]:
    """Ids of holders whose process was killed on this host. They may still be in `holders/`."""
    gone = set()
    for name in Roll.glance(fs, layout).present.values():
        try:
            if _is_dead(holders.read(fs, layout, name), proc):
                gone.add(name.id)
        except (OSError, records.Damaged):
            continue
    return frozenset(gone)


def is_fetched(fs: FileSystem, layout: Layout, key: str) -> bool:
    """Whether a fetch of the item has begun and not ended; also one that was abandoned, and can be gone on with."""
    return any(one.key == key for one in _running_if_known(fs, layout))


def is_for_show(name: str) -> bool:
    """Whether a name in a work area only tells how far the work is."""
    return name == TRANSFER_FILE or StateName.parse(name) is not None or PartName.parse(name) is not None


def reserved(fs: FileSystem, layout: Layout, before: tuple[float, str] | None = None, proc: Proc | None = None) -> int:
    """Bytes that running fetches still have to write, as far as they know.

    `before`: only those that began before this time and area; two that begin at once must not make way for each other.
    """
    total = 0
    for transfer in _running_if_known(fs, layout, proc):
        if transfer.state == State.ABANDONED or transfer.total is None:
            continue
        if before is None or (transfer.began or 0.0, transfer.area) < before:
            total += max(0, transfer.total - transfer.bytes)
    return total


def _running_if_known(fs: FileSystem, layout: Layout, proc: Proc | None = None) -> list[Transfer]:
    try:
        return list(running(fs, layout, proc, waits=False))
    except OSError as error:
        do_without(f"running downloads, and the space that they need, are not taken into account ({error.strerror})")
        return []


def ended(fs: FileSystem, layout: Layout) -> Iterator[Transfer]:
    """The fetches that have ended within a day, the oldest first."""
    for name in sorted(downloads.all_outcomes(fs, layout), key=lambda one: one.end):
        try:
            facts = records.decode_document(fs.read_text(downloads.path_of(layout, name)))
        except (OSError, records.Damaged):
            continue
        state = StateName(
            name.how, _integer(facts, "bytes") or 0, _integer(facts, "bytes"), _integer(facts, "attempts") or 1
        )
        yield _transfer(facts, "", state)._replace(ended=name.end / 1000)


def describe(transfer: Transfer, now: float) -> str:
    """How far a fetch is, in words: ``1.2 GB of 5.0 GB, 24 %, 30 MB/s, 2 min left``."""
    import humanize

    if transfer.state in (State.QUEUED, State.ABANDONED):
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
    return ", ".join(words)


def continuing(transfer: Transfer) -> str:
    """That a fetch can be continued, and until when; empty if it cannot."""
    until = transfer.continuable_until
    return "" if until is None else f"can be continued, until {iso(until)}"


def _transfer(facts: dict[str, Any], area: str, state: StateName | None) -> Transfer:
    source = facts.get("source")
    began = facts.get("began")
    error = facts.get("error")
    return Transfer(
        key=str(facts.get("key", "?")),
        label=str(facts.get("label", "?")),
        source=tuple(str(word) for word in source) if isinstance(source, list) else (),
        state=state.state if state else State.WAITING,
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
    )


def _integer(facts: dict[str, Any], name: str) -> int | None:
    value = facts.get(name)
    return value if isinstance(value, int) else None
