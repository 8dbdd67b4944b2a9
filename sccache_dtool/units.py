"""Sizes and durations as people type them; how they are shown is the command line's business."""

from __future__ import annotations

import re

from sccache_dtool.errors import UsageError

_DECIMAL = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(?P<bytes>B)?|(?P<prefix>[kKMGTP])(?P<binary>i)?B)", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d|w)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

SIZE_FORMS = "a number of bytes, or with a unit: kB MB GB TB PB (powers of 1000), KiB MiB GiB TiB PiB (powers of 1024)"
DURATION_FORMS = "a number with a unit: 90s, 15m, 12h, 30d, 4w"


def parse_size(text: str) -> int:
    """Bytes meant by `text`, such as ``"1.5GB"`` (1 500 000 000) or ``"10GiB"``.

    kB, MB, GB, TB, PB are powers of 1000 and KiB, MiB, … powers of 1024 (IEC 80000-13). A bare number is
    bytes. Raises UsageError for anything else: a size that is silently read as 0 deletes data.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read {text!r} as a size", hint=f"give {SIZE_FORMS}")
    prefix = match["prefix"]
    if prefix is None:
        factor = 1
    else:
        factor = (1024 if match["binary"] else 1000) ** _DECIMAL[prefix.lower()]
    return round(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def parse_duration(text: str) -> float:
    """Seconds meant by `text`, such as ``"12h"``. Raises UsageError for anything else, a bare number too."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read {text!r} as a duration", hint=f"give {DURATION_FORMS}")
    return float(match[1]) * _SECONDS[match[2]]


def short_duration(seconds: float) -> str:
    """`seconds` in the largest unit that keeps it readable: ``"90 s"``, ``"12 min"``, ``"3 h"``, ``"5 d"``."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
