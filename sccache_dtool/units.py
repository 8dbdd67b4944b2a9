"""Parses sizes, durations and dates in the forms that users type, and formats durations."""

from __future__ import annotations

import re
import time
from datetime import datetime

from sccache_dtool.errors import UsageError

_DECIMAL = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
# Not compiled here: most commands need none of these patterns, and `re` caches those that are used.
_SIZE = r"(?a)(\d{1,18})(?:\s*B|(?:\.(\d{1,18}))?\s*(?P<prefix>[kKMGTP])(?P<binary>i)?B)?"
_DURATION = r"(?a)(\d{1,18}(?:\.\d{1,18})?)(s|m|h|d|w)"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

#: A thousand years in seconds: the end of a longer duration might not fit into a name on disk.
LONGEST = 1000 * 366 * 86_400.0

#: The shortest lifetime of a lease, in seconds.
SHORTEST_LIFETIME = 1.0

SIZE_FORMS = "a number of bytes, or with a unit: kB MB GB TB PB (powers of 1000), KiB MiB GiB TiB PiB (powers of 1024)"
DURATION_FORMS = "a number with a unit: 90s, 15m, 12h, 30d, 4w"


def parse_size(text: str) -> int:
    """The size in bytes that `text` means, such as ``"1.5GB"`` (1 500 000 000) or ``"10GiB"``.

    kB, MB, GB, TB, PB are powers of 1000 and KiB, MiB, … powers of 1024 (IEC 80000-13). A number without a unit is a
    whole number of bytes. Raises UsageError for anything else, such as 0.9: reading it as 0 could delete data.
    """
    match = re.fullmatch(_SIZE, text.strip())
    if match is None:
        raise UsageError(f"cannot read {text!r} as a size", hint=f"give {SIZE_FORMS}")
    prefix = match["prefix"]
    if prefix is None:
        factor = 1
    else:
        factor = (1024 if match["binary"] else 1000) ** _DECIMAL[prefix.lower()]
    fraction = match[2] or ""
    parts: int = 10 ** len(fraction)
    return int(match[1] + fraction) * factor // parts


def parse_duration(text: str) -> float:
    """The seconds that `text` means, such as ``"12h"``. Raises UsageError for other forms, and without a unit."""
    match = re.fullmatch(_DURATION, text.strip())
    if match is None:
        raise UsageError(f"cannot read {text!r} as a duration", hint=f"give {DURATION_FORMS}")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > LONGEST:
        raise UsageError(f"{text!r} is too long", hint="the longest duration is 52000w (a thousand years)")
    return seconds


def parse_until(text: str) -> float:
    """The time that `text` means, in seconds since 1970: a date or time in ISO 8601, in local time if it has no zone,
    or a duration from now. Raises UsageError for other forms, and for a time in the past.
    """
    now = time.time()
    hint = "give a future date, such as 2099-12-31, or a duration: 30d"
    try:
        moment = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        try:
            moment = now + parse_duration(text)
        except UsageError as error:
            raise UsageError(f"cannot read {text!r} as a date or a duration", hint=hint) from error
    if moment <= now:
        raise UsageError(f"{text!r} is in the past", hint=hint)
    return moment


def parse_lifetime(text: str) -> float:
    """The seconds that `text` means, as a lifetime. Raises UsageError if it is shorter than SHORTEST_LIFETIME."""
    return check_lifetime(parse_duration(text))


def check_lifetime(seconds: float) -> float:
    """Return `seconds`. Raises UsageError if a lifetime is too short: a heartbeat renews it several times."""
    if seconds < SHORTEST_LIFETIME:
        raise UsageError(f"a lifetime of {seconds:g} s is too short", hint="give 1s or more, such as 12h")
    return seconds


def short_duration(seconds: float) -> str:
    """`seconds` in a readable unit: ``"90 s"``, ``"12 min"``, ``"3 h"``, ``"5 d"``."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
