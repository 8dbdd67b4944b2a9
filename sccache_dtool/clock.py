"""The only source of time. Which clock a rule may use is part of the rule; see `docs/explanation/clocks.md`."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The clocks of this host; tests hand in others."""

    def wall(self) -> float:
        """Seconds since 1970. It may step, and other hosts' differ: for display and policy, never for safety."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never step backwards, for measuring and bounding waits within one process."""
        return time.monotonic()

    def since_boot(self) -> float:
        """Seconds since this host booted, time asleep included: comparable between processes of one boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Do nothing for `seconds`."""
        time.sleep(seconds)


class Deadline:
    """A time on the monotonic clock after which nothing more is begun.

    If it is sent to another process, what is sent is the time that is left: no two hosts have the same clock.
    """

    def __init__(self, clock: Clock, at: float | None) -> None:
        self.clock = clock
        self.at = at

    def __reduce__(self) -> tuple[object, ...]:
        return _after, (self.clock, None if self.at is None else self.at - self.clock.monotonic())

    def is_over(self) -> bool:
        """Whether it has come."""
        return self.at is not None and self.clock.monotonic() > self.at


def _after(clock: Clock, seconds: float | None) -> Deadline:
    return Deadline(clock, None if seconds is None else clock.monotonic() + seconds)


#: There is time for everything.
NO_DEADLINE = Deadline(Clock(), None)


#: A day less than can be written with four digits for the year, in any time zone.
_LAST = 253_402_214_400.0


def _in_calendar(seconds: float) -> float:
    """A time that others have written, and may have made up; what no calendar has, at its edge."""
    return min(max(seconds, 0.0), _LAST)


def local(seconds: float) -> str:
    """A wall-clock time as people of this host's time zone write it: ``2026-11-21 14:02``."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(_in_calendar(seconds)))


def from_iso(text: object) -> float | None:
    """Seconds since 1970 of what `iso` has made; None for anything else."""
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
