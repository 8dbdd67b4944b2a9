"""What the other side says: a record that anybody may have written, of which each field is read as what it must be.

Nothing else of a record is looked at. Numbers are bounded here, because who asks decides what they cost who is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from sccache_dtool.disk.records import printable

Choice = TypeVar("Choice")


class Garbled(Exception):
    """What was said makes no sense."""

    def __init__(self, field: str) -> None:
        super().__init__(f"what was said makes no sense ({field}): another release?")


class Said:
    """The fields of a record. What is missing, of another type or out of bounds raises Garbled."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields

    def __contains__(self, field: str) -> bool:
        return field in self._fields

    def text(self, field: str) -> str:
        """A text, such as can be shown."""
        value = self._fields.get(field)
        if not isinstance(value, str):
            raise Garbled(field)
        return printable(value)

    def remark(self, field: str) -> str:
        """A text that is shown and nothing else; empty for what is none."""
        value = self._fields.get(field)
        return printable(value) if isinstance(value, str) else ""

    def matching(self, field: str, pattern: str) -> str:
        """A text that is as a regular expression says, from its beginning to its end."""
        value = self.text(field)
        if re.fullmatch(pattern, value) is None:
            raise Garbled(field)
        return value

    def choice(self, field: str, choices: Mapping[str, Choice]) -> Choice:
        """What a text stands for, of what it may stand for."""
        value = self.text(field)
        if value not in choices:
            raise Garbled(field)
        return choices[value]

    def flag(self, field: str) -> bool:
        """Yes or no."""
        value = self._fields.get(field)
        if not isinstance(value, bool):
            raise Garbled(field)
        return value

    def number(self, field: str, least: float, most: float) -> float:
        """A number from `least` to `most`."""
        value = self._fields.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise Garbled(field)
        return float(value)

    def number_if_any(self, field: str, least: float, most: float) -> float | None:
        """A number, or that there is none."""
        if field in self._fields and self._fields[field] is None:
            return None
        return self.number(field, least, most)

    def whole(self, field: str, most: int) -> int:
        """A whole number from 0 to `most`."""
        value = self._fields.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise Garbled(field)
        return value
