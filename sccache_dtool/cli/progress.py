"""A progress bar on standard error, for people who watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class Bar:
    """What is fetched, how far, how fast, how long it will take. Loads rich once there is something to show."""

    def __init__(self, console: Callable[[], Console]) -> None:
        self._make_console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, label: str, total: int | None) -> None:
        """Begin to show; `total` in bytes, None if nobody knows."""
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
        )
        self._progress.start()
        self._task = self._progress.add_task(label, total=total)

    def advance(self, n: int) -> None:
        """`n` more bytes are there."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, n)

    def stage(self, text: str) -> None:
        """Something else is being done now."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)

    def done(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None
