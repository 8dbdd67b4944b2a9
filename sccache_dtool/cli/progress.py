"""The progress of a fetch on standard error: a bar on a terminal, one line a minute in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from sccache_dtool.fallback import start_thread

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


def _count_of(done: int, total: int) -> str:
    """``7 of 20 items``."""
    return f"{done:,} of {total:,} items"


class Bar:
    """A progress bar with rate and remaining time. Imports rich when it is first shown."""

    def __init__(self, console: Callable[[], Console]) -> None:
        self._make_console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        """Show a new bar in place of the previous one; see Progress."""
        self.done()
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._make_console(),
            transient=True,
            auto_refresh=start_thread(lambda: None, "sc-dtool bar", "the progress bar does not move") is not None,
        )
        self._progress.start()
        self._task = self._progress.add_task(label, total=total, completed=there)

    def advance(self, n: int) -> None:
        """Add `n` bytes."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, n)

    def stage(self, text: str) -> None:
        """Show what is being done now."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)

    def counted(self, done: int, total: int) -> None:
        """Show how many items are there; see Progress."""
        self.stage(_count_of(done, total))

    def waiting(self, label: str, done: int, total: int | None) -> None:
        """Show how far another process's fetch is; see Progress."""
        if self._progress is None:
            self.start(f"waiting for {label}", total, done)
        elif self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def done(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


class Share:
    """The progress of a long scan: one line that is overwritten, and erased at the end."""

    #: Seconds until the line is first shown, and between two updates.
    AFTER, EVERY = 1.0, 0.2

    def __init__(self, label: str, file: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`file`: the terminal; None shows nothing."""
        self._label = label
        self._file = file
        self._clock = clock
        self._next = clock() + self.AFTER
        self._shown = False

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` parts are done."""
        if self._file is None:
            return
        if done >= total:
            if self._shown:
                self._write("\r\x1b[K")
            self._shown = False
        elif self._clock() >= self._next:
            self._next = self._clock() + self.EVERY
            self._shown = True
            self._write(f"\r{self._label}: {100 * done / total:.0f} %\x1b[K")

    def _write(self, text: str) -> None:
        if self._file is not None:
            self._file.write(text)
            self._file.flush()


class Lines:
    """One line a minute, and none for a fetch that takes less."""

    #: Seconds between two lines.
    EVERY = 60.0

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._note = note
        self._clock = clock
        self._label = ""
        self._total: int | None = None
        self._there = self._bytes = 0
        self._began = self._next = 0.0
        self._said = False

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        """Begin to count; see Progress."""
        self._label, self._total, self._there, self._bytes = label, total, there, there
        self._began = self._clock()
        self._next = self._began + self.EVERY

    def advance(self, n: int) -> None:
        """Add `n` bytes."""
        self._bytes += n
        now = self._clock()
        if self._label and now >= self._next:
            self._next = now + self.EVERY
            self._said = True
            self._note(f"{self._label}: {self._how_far(now - self._began)}")

    def stage(self, text: str) -> None:
        """Show what is being done now."""
        if self._said:
            self._note(f"{self._label}: {text}")

    def counted(self, done: int, total: int) -> None:
        """Name in the next line how many items are there; see Progress."""
        self._label = _count_of(done, total)

    def done(self) -> None:
        """Do nothing: the caller reports the end."""

    def _how_far(self, seconds: float) -> str:
        import humanize

        from sccache_dtool.units import short_duration

        rate = max(0.0, (self._bytes - self._there) / seconds)
        if not self._total:
            return f"{humanize.naturalsize(self._bytes)}, {humanize.naturalsize(rate)}/s"
        left = short_duration((self._total - self._bytes) / rate) if rate > 0 else "unknown time"
        return (
            f"{humanize.naturalsize(self._bytes)} of {humanize.naturalsize(self._total)}, "
            f"{100 * self._bytes / self._total:.0f} %, {humanize.naturalsize(rate)}/s, {left} left"
        )
