"""Trying again what may succeed later: how often, after how long, and when to give up."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TypeVar

from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.context import Context
from sccache_dtool.units import LONGEST, short_duration

#: Attempts in a row that come no further than any before; one that does is a new beginning.
TRIES = 5

#: Attempts in all: a server that sends a byte at a time must not hold a process for ever.
MOST_TRIES = 100

#: Seconds of the first pause; each further one is twice as long, up to the longest, and all are spread by half.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

#: The longest wait, in seconds, that a server may ask for (Retry-After).
LONGEST_ASKED = 600.0

Result = TypeVar("Result")


class Temporary(Exception):
    """An attempt failed in a way that a later one may not. `after`: seconds that the server asks to wait."""

    def __init__(self, reason: str, *, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class GaveUp(FetchFailed):
    """It may succeed another time, and what has come so far is worth continuing."""


def persist(
    context: Context, source: str, size: Callable[[], int], attempt: Callable[[], Result], failing: str = "cannot fetch"
) -> Result:
    """The result of `attempt`, which is repeated while it raises Temporary; `size`: bytes that are there.

    Raises GaveUp after too many failures, or if the server asks for a longer wait than LONGEST_ASKED; and at once if
    nothing has come, and another mirror can be asked.
    """
    in_vain, most = 0, size()
    for number in range(1, MOST_TRIES + 1):
        try:
            return attempt()
        except Temporary as error:
            in_vain = 1 if size() > most else in_vain + 1
            most = max(most, size())
            if context.others and not size():
                raise GaveUp(f"{failing} {source}: {error.reason}") from error
            if error.after is not None and error.after > LONGEST_ASKED:
                raise GaveUp(
                    f"{failing} {source}: {error.reason}",
                    hint=f"the server asks to try again after {short_duration(error.after)}",
                ) from error
            if in_vain >= TRIES or number == MOST_TRIES:
                raise GaveUp(
                    f"{failing} {source}: {error.reason}", details=[f"gave up after {number} attempts"]
                ) from error
            seconds = max(pause(in_vain), error.after or 0.0)  # the server may say 0
            context.store.log.note(f"{source}: {error.reason}; trying again in {short_duration(seconds)}")
            context.failed(error.reason)
            context.clock.sleep(seconds)
            context.attempt()
    raise AssertionError("the last attempt returns or raises")


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row: spread, so that a thousand clients do not return at once."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1)) * random.uniform(0.5, 1.5))


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3), at most LONGEST; None if it says nothing."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    parser = Retry()
    parser.retry_after_max = int(LONGEST)  # where urllib3 has this bound, it is six hours
    try:
        return None if value is None else min(float(parser.parse_retry_after(value)), LONGEST)
    except (InvalidHeader, ValueError, OverflowError):  # ValueError: more digits, or a later year, than Python reads
        return None


def http_date(text: str) -> float | None:
    """The seconds since 1970 that a date in a header means; None if it means none."""
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
