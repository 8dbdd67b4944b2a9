"""Who fetches what, how far, who waits for it, and how it ended: written by each, read by all.

Nothing here is needed for safety. What moves is a name, because a name is fresh on every host while a file's content
may be a minute old: in its work area a fetch has one name that says its state (`layout.StateName`), and one for each
download that says how much of it can be relied on (`layout.PartName`). How a fetch ended is a small file in
`transfers/`, kept for a day, by which those who waited learn the reason.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from sccache_dtool import records
from sccache_dtool.clock import Clock
from sccache_dtool.errors import GONE
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.sink import Sink
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import TRANSFER_FILE, Layout, OutcomeName, PartName, StateName, WorkName
from sccache_dtool.units import short_duration

#: Seconds between two signs of progress, and so what a download can lose when its host dies.
PULSE = 5.0

#: Bytes of interrupted downloads that are kept for the next who wants the item; less is faster fetched again.
WORTH_KEEPING = 1 << 20

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


class TakenOver(Exception):
    """Somebody else goes on with our fetch: we were silent for so long that we were passed over."""


class Track:
    """A fetch of ours as others see it. It is a Progress, and hands on what it hears to another."""

    def __init__(self, fs: FileSystem, area: str, shown: Progress, *, on_total: Callable[[int], None]) -> None:
        """`on_total` is told how many bytes are to come, as soon as that is known; it may raise NoSpace."""
        self.taken: str | None = None  # the work area of another, from which its downloads can be continued
        self._fs = fs
        self._area = area
        self._shown = shown
        self._on_total = on_total
        self._lock = threading.Lock()
        self._now = StateName(State.INITIALIZING, 0, None, 1)
        self._placed: StateName | None = None
        self._parts: dict[int, PartName] = {}
        self._following: tuple[int, Sink] | None = None
        self._bytes = 0
        self._expected = 0
        self._lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- a life ------------------------------------------------------------------------------------------------------

    def begin(self, facts: dict[str, Any], size: int | None, *, shared: bool) -> None:
        """Say what is fetched; `size`: bytes that it will need, if somebody said so."""
        self._fs.write_new(f"{self._area}/{TRANSFER_FILE}", records.encode_document(facts), shared=shared)
        self._expected = size or 0
        self._now = self._now._replace(total=size)
        self._fs.put_record("-", f"{self._area}/{self._now}")
        self._placed = self._now
        self._thread = threading.Thread(target=self._run, name="sc-dtool transfer", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Say no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def bytes(self) -> int:
        """Bytes there so far."""
        return self._bytes

    @property
    def attempts(self) -> int:
        """How often it was tried."""
        return self._now.attempts

    @property
    def keepable(self) -> bool:
        """Whether there is so much of downloads that it is worth keeping for who goes on with them."""
        return sum(part.bytes for part in self._parts.values()) >= WORTH_KEEPING

    # -- what the fetch says -----------------------------------------------------------------------------------------

    def start(self, label: str, total: int | None) -> None:
        """See Progress."""
        if total is not None:
            self._expected = max(self._expected, self._bytes + total)
            self._on_total(self._expected)
        self._say(State.TRANSFERRING)
        self._shown.start(label, total)

    def advance(self, n: int) -> None:
        """See Progress."""
        if self._lost:
            raise TakenOver
        self._bytes += n
        self._shown.advance(n)

    def stage(self, text: str) -> None:
        """See Progress."""
        self._say(State.PROCESSING)
        self._shown.stage(text)

    def queue(self) -> None:
        """We wait for other downloads of this host to end."""
        self._say(State.QUEUED)

    def attempt(self, number: int) -> None:
        """It is tried again, for the `number`-th time in all."""
        self._now = self._now._replace(attempts=number)
        self._say(State.TRANSFERRING)

    def done(self) -> None:
        """See Progress."""
        self._shown.done()

    # -- downloads that others may continue --------------------------------------------------------------------------

    def follow(self, index: int, sink: Sink) -> None:
        """From now on say how far the download of source `index` is, which fills `sink`."""
        with self._lock:
            self._following = (index, sink)
            if index not in self._parts:
                self._parts[index] = PartName(index, 0)
                self._fs.put_record("-", f"{self._area}/{self._parts[index]}")

    def leave(self, *, interrupted: bool) -> None:
        """The file is about to be closed; `interrupted`: it is not complete, so note how far it is."""
        try:
            if interrupted:
                self.pulse()
        finally:
            with self._lock:
                self._following = None

    def forget(self, index: int) -> None:
        """What there is of source `index` is no beginning of anything: called before it is thrown away."""
        with self._lock:
            part = self._parts.get(index)
            if part is not None and part.bytes:
                self._rename(part, PartName(index, 0))
                self._parts[index] = PartName(index, 0)

    def pulse(self) -> None:
        """Put on stable storage what is there, then say so. Raises TakenOver, or OSError."""
        with self._lock:
            if self._following is not None:
                index, sink = self._following
                part = PartName(index, sink.size)
                if part != self._parts[index]:
                    self._fs.sync(sink.fd)
                    self._rename(self._parts[index], part)
                    self._parts[index] = part
            self._place()

    # -- within ------------------------------------------------------------------------------------------------------

    def _say(self, state: State) -> None:
        with self._lock:
            self._now = self._now._replace(state=state)
            self._place()

    def _place(self) -> None:
        expected = max(self._expected, self._bytes) if self._expected else None
        self._now = self._now._replace(bytes=max(0, self._bytes), total=expected)
        if self._placed is not None and self._now != self._placed:
            self._rename(self._placed, self._now)
            self._placed = self._now

    def _rename(self, old: object, new: object) -> None:
        try:
            self._fs.rename(f"{self._area}/{old}", f"{self._area}/{new}")
        except OSError as error:
            if error.errno not in GONE:
                raise
            if not self._is_there(str(new)):  # otherwise it was done, and the reply lost
                self._lost = True
                raise TakenOver from None

    def _is_there(self, name: str) -> bool:
        try:
            return name in self._fs.names(self._area)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return False

    def _run(self) -> None:
        while not self._stop.wait(PULSE):
            try:
                self.pulse()
            except TakenOver:
                return  # the next `advance` says it to the fetch
            except OSError:
                continue  # the fetch itself meets what is wrong


# -- what others see ---------------------------------------------------------------------------------------------------


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
        """Bytes a second since it began, on average."""
        seconds = 0.0 if self.began is None else (self.ended or now) - self.began
        return self.bytes / seconds if seconds > 0 and self.bytes else None


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
        if signs is None:
            signs = set(fs.names(layout.locks))  # after the areas: whoever has one was elected before
        state = next((parsed for name in found if (parsed := StateName.parse(name))), None)
        transfer = _transfer(facts, text, state)
        yield transfer if transfer.sign in signs else transfer._replace(state=State.ABANDONED)


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
    for transfer in running(fs, layout):
        if transfer.state in (State.WAITING, State.ABANDONED) or transfer.total is None:
            continue
        if before is None or (transfer.began or 0.0, transfer.area) < before:
            total += max(0, transfer.total - transfer.bytes)
    return total


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
        found = fs.names(layout.transfers)
    except FileNotFoundError:
        return []
    return [name for text in found if (name := OutcomeName.parse(text))]


def note_outcome(fs: FileSystem, layout: Layout, clock: Clock, name: OutcomeName, facts: dict[str, Any]) -> None:
    """Say how a fetch ended, and forget what was said a day ago. A failure to do so is none of the fetch's."""
    with contextlib.suppress(OSError):
        path = f"{layout.transfers}/{name}"
        text = records.encode_document(facts)
        try:
            fs.write_new(path, text, shared=layout.shared)
        except FileNotFoundError:
            fs.make_dirs(layout.transfers, shared=layout.shared)
            fs.write_new(path, text, shared=layout.shared)
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
        began=float(began) if isinstance(began, int | float) else None,
        ended=None,
        error=None if error is None else records.printable(str(error)),
        area=area,
        sign=str(facts.get("sign", "")),
    )


def _integer(facts: dict[str, Any], name: str) -> int | None:
    value = facts.get(name)
    return value if isinstance(value, int) else None
