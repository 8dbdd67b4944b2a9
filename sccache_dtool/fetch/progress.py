"""The progress of a fetch, as an interface for whatever shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a fetch calls while it runs; all calls come from the thread that fetches.

    If it also has a method `waiting(label, done, total)`, that is called once a second while another process fetches
    the item: `done` bytes of `total` (None: unknown) are there. `done` ends that, too.

    If it has a method `counted(done, total)`, that is called when `done` of the `total` items that are fetched for one
    set are there. Between two calls of it, `advance` tells of all of them.
    """

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        """Bytes of `label` begin to come: `total` in all, or an unknown number.

        `there`: how many of them an interrupted download has left. They are not reported to `advance` again.
        """

    def advance(self, n: int) -> None:
        """`n` more bytes were written."""

    def stage(self, text: str) -> None:
        """Something else than copying begins now, such as ``"unpacking"``."""

    def done(self) -> None:
        """It is over, well or badly; called exactly once for each fetch."""


class NoProgress:
    """A Progress that says nothing."""

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        """Say nothing."""

    def advance(self, n: int) -> None:
        """Say nothing."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def done(self) -> None:
        """Say nothing."""
