"""Who fetches what, how far, who waits for it, and how it ended: written by each, read by all.

Nothing here is needed for safety. What moves is a name, because a name is fresh on every host while a file's content
may be a minute old: in its work area a fetch has one name that says its state (`layout.StateName`), and one for each
download that says how much of it can be relied on (`layout.PartName`). How a fetch ended is a small file in
`transfers/`, kept for a day, by which those who waited learn the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from sccache_dtool import records
from sccache_dtool.clock import Clock
from sccache_dtool.fallback import do_without
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import TRANSFER_FILE, Layout, OutcomeName, PartName, StateName, WorkName
from sccache_dtool.units import short_duration

#: Seconds for which it is kept how a fetch ended.
KEEP = 86_400.0

FETCH, WAIT, TAKEN = "fetch", "wait", "taken"


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

    key: str
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

    @property
    def percent(self) -> float | None:
        """How much of it is there."""
        return None if not self.total else min(100.0, 100.0 * self.bytes / self.total)

    def rate(self, now: float) -> float | None:
        """Bytes a second since it began, on average; None where none have come."""
        seconds = 0.0 if self.began is None else (self.ended or now) - self.began
        came = self.bytes - self.there
        return came / seconds if seconds > 0 and came > 0 else None


def running(fs: FileSystem, layout: Layout) -> Iterator[Transfer]:
    """The fetches and waits that have a name in `tmp/`; what cannot be read, or is just ending, is passed over."""
    signs: set[str] | None = None
    for text in fs.names(layout.tmp):
        work = WorkName.parse(text)
        if work is None or work.purpose not in (FETCH, WAIT):
            continue
        try:
            if work.purpose == WAIT:
                yield _transfer(records.decode(fs.get_record(f"{layout.tmp}/{text}")), text, None)
                continue
            found = fs.names(f"{layout.tmp}/{text}")
            facts = records.decode_document(fs.read_text(f"{layout.tmp}/{text}/{TRANSFER_FILE}"))
        except (OSError, records.Damaged):
            continue
        state = next((parsed for name in found if (parsed := StateName.parse(name))), None)
        transfer = _transfer(facts, text, state)
        if signs is None and transfer.sign:
            signs = _signs(fs, layout)  # after the areas: whoever has one was elected before
        is_abandoned = transfer.sign and signs is not None and transfer.sign not in signs
        yield transfer._replace(state=State.ABANDONED) if is_abandoned else transfer


def _signs(fs: FileSystem, layout: Layout) -> set[str] | None:
    """The signs of those who are elected; None where they cannot be listed: then no fetch counts as abandoned."""
    try:
        return set(fs.names(layout.locks))
    except OSError as error:
        do_without(f"whether a download is abandoned cannot be told ({error.strerror})")
        return None


def is_fetched(fs: FileSystem, layout: Layout, key: str) -> bool:
    """Whether a fetch of the item has begun and not ended; also one that was abandoned, and can be gone on with."""
    return any(one.key == key and one.state != State.WAITING for one in _running_if_known(fs, layout))


def parts(fs: FileSystem, area: str) -> dict[int, int]:
    """Bytes that can be relied on in the downloads of a work area, by the number of the source."""
    found = (PartName.parse(name) for name in fs.names(area))
    return {part.source: part.bytes for part in found if part and part.bytes}


def is_for_show(name: str) -> bool:
    """Whether a name in a work area only tells how far the work is."""
    return name == TRANSFER_FILE or StateName.parse(name) is not None or PartName.parse(name) is not None


def reserved(fs: FileSystem, layout: Layout, before: tuple[float, str] | None = None) -> int:
    """Bytes that running fetches still have to write, as far as they know.

    `before`: only those that began before this time and area; two that begin at once must not make way for each other.
    """
    total = 0
    for transfer in _running_if_known(fs, layout):
        if transfer.state in (State.WAITING, State.ABANDONED) or transfer.total is None:
            continue
        if before is None or (transfer.began or 0.0, transfer.area) < before:
            total += max(0, transfer.total - transfer.bytes)
    return total


def _running_if_known(fs: FileSystem, layout: Layout) -> list[Transfer]:
    try:
        return list(running(fs, layout))
    except OSError as error:
        do_without(f"running downloads, and the space that they need, are not taken into account ({error.strerror})")
        return []


def ended(fs: FileSystem, layout: Layout) -> Iterator[Transfer]:
    """The fetches that have ended within a day, the oldest first."""
    for name in sorted(outcomes(fs, layout), key=lambda one: one.end):
        try:
            facts = records.decode_document(fs.read_text(f"{layout.transfers}/{name}"))
        except (OSError, records.Damaged):
            continue
        state = StateName(
            name.how, _integer(facts, "bytes") or 0, _integer(facts, "bytes"), _integer(facts, "attempts") or 1
        )
        yield _transfer(facts, "", state)._replace(ended=name.end / 1000)


def outcomes(fs: FileSystem, layout: Layout) -> list[OutcomeName]:
    """The names of what is known of ended fetches. One listing."""
    try:
        found = fs.names_if_any(layout.transfers)
    except OSError as error:
        do_without(f"how other downloads ended cannot be told ({error.strerror})")
        return []
    return [name for text in found if (name := OutcomeName.parse(text))]


def note_outcome(fs: FileSystem, layout: Layout, clock: Clock, name: OutcomeName, facts: dict[str, Any]) -> None:
    """Say how a fetch ended, and forget what was said a day ago. A failure to do so is none of the fetch's."""
    path = f"{layout.transfers}/{name}"
    text = records.encode_document(facts)
    try:
        try:
            fs.write_new(path, text, shared=layout.shared)
        except FileNotFoundError:
            fs.make_dirs(layout.transfers, shared=layout.shared)
            fs.write_new(path, text, shared=layout.shared)
    except OSError as error:
        do_without(f"others are not told how this download ended ({error.strerror})")
    for old in outcomes(fs, layout):
        if old.end / 1000 < clock.wall() - KEEP:
            with contextlib.suppress(OSError):
                fs.unlink(f"{layout.transfers}/{old}")


def describe(transfer: Transfer, now: float) -> str:
    """How far a fetch is, in words: ``1.2 GB of 5.0 GB, 24 %, 30 MB/s, 2 min left``."""
    import humanize

    if transfer.state in (State.QUEUED, State.ABANDONED):
        return str(transfer.state)
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
