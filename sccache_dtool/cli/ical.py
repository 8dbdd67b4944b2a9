"""Calendars in iCalendar's format (RFC 5545)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sccache_dtool import __version__
from sccache_dtool.clock import iso
from sccache_dtool.disk.records import printable

#: Octets in a line without its end (RFC 5545, 3.1).
_LONGEST_LINE = 75


class Event(NamedTuple):
    """A moment in a calendar."""

    uid: str  # the same whenever the event is written again
    revision: int  # grows when it changes
    at: float  # seconds since 1970
    summary: str
    description: str


def calendar(events: Iterable[Event], now: float) -> str:
    """The text of a calendar; `now` in seconds since 1970. There must be at least one event."""
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", f"PRODID:-//sccache-dtool//sc-dtool {__version__}//EN"]
    for event in events:
        lines += [
            "BEGIN:VEVENT",
            f"UID:{_text(event.uid)}",
            f"SEQUENCE:{event.revision}",
            f"DTSTAMP:{_utc(now)}",
            f"DTSTART:{_utc(event.at)}",
            f"SUMMARY:{_text(event.summary)}",
            f"DESCRIPTION:{_text(event.description)}",
            "TRANSP:TRANSPARENT",
            "END:VEVENT",
        ]
    lines.append("END:VCALENDAR")
    return "".join(f"{part}\r\n" for line in lines for part in _folded(line))


def _utc(seconds: float) -> str:
    return iso(seconds).replace("-", "").replace(":", "")


def _text(text: str) -> str:
    for character in "\\;,":
        text = text.replace(character, f"\\{character}")
    return "\\n".join(map(printable, text.split("\n")))


def _folded(line: str) -> Iterator[str]:
    """The parts of a line that is too long; all but the first begin with a space. No character is split."""
    part, size = "", 0
    for character in line:
        length = len(character.encode("utf-8", "replace"))
        if size + length > _LONGEST_LINE:
            yield part
            part, size = " ", 1
        part, size = part + character, size + length
    yield part
