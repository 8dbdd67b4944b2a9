"""The only source of time. `docs/explanation/clocks.md` says which clock each rule uses."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The clocks of this host. Tests use a subclass."""

    def wall(self) -> float:
        """Seconds since 1970. It may step, and hosts differ: use it for display and policy, never for safety."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never step backwards, for measuring and bounding waits within one process."""
        return time.monotonic()

    def since_boot(self) -> float:
        """Seconds since this host booted, including suspend: comparable between the processes of one boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`."""
        time.sleep(seconds)


class Deadline:
    """A time on the monotonic clock after which no further work is started.

    Pickling it stores the remaining time, because the monotonic clocks of two hosts differ.
    """

    def __init__(self, clock: Clock, at: float | None) -> None:
        self.clock = clock
        self.at = at

    def __reduce__(self) -> tuple[object, ...]:
        return _after, (self.clock, None if self.at is None else self.at - self.clock.monotonic())

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.at is not None and self.clock.monotonic() > self.at


def _after(clock: Clock, seconds: float | None) -> Deadline:
    return Deadline(clock, None if seconds is None else clock.monotonic() + seconds)


#: A deadline that never passes.
NO_DEADLINE = Deadline(Clock(), None)


#: The last time that has a year of four digits in every time zone, in seconds since 1970.
_LAST = 253_402_214_400.0


def _in_calendar(seconds: float) -> float:
    """`seconds`, limited to the range that a date can represent: other users may have written any number."""
    return min(max(seconds, 0.0), _LAST)


def local(seconds: float) -> str:
    """A wall-clock time in the time zone of this host: ``2026-11-21 14:02``."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(_in_calendar(seconds)))


def from_iso(text: object) -> float | None:
    """Seconds since 1970 from a text that `iso` wrote; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def date(seconds: float) -> datetime:
    """A wall-clock time as a date in UTC."""
    return datetime.fromtimestamp(_in_calendar(seconds), UTC)


def iso(seconds: float, timespec: str = "seconds") -> str:
    """A wall-clock time as ISO 8601 in UTC: ``2026-11-21T09:30:12Z``."""
    return f"{date(seconds).replace(tzinfo=None).isoformat(timespec=timespec)}Z"
