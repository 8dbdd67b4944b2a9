"""Short texts that programs write for each other: one line of JSON, bounded, and never trusted when read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: Longest record in bytes: what every file system keeps in a symbolic link (XFS: 1024).
LIMIT = 1000

_LONGEST_FIELD = 120


class Damaged(ValueError):
    """A text in the cache that is not what we write; it is kept, and counted as held."""


def encode(fields: Mapping[str, Any]) -> str:
    """`fields` as one line of ASCII JSON of at most LIMIT bytes; long texts are cut, absent values left out."""
    short = {
        name: value[:_LONGEST_FIELD] if isinstance(value, str) else value
        for name, value in fields.items()
        if value is not None
    }
    while len(text := json.dumps(short, separators=(",", ":"))) > LIMIT:  # characters of up to twelve bytes each
        texts = {name: len(json.dumps(value)) for name, value in short.items() if isinstance(value, str)}
        longest = max(texts, key=texts.__getitem__)
        short[longest] = short[longest][: len(short[longest]) // 2]
    return text


def decode(text: str) -> dict[str, Any]:
    """The fields of a record. Raises Damaged for anything that `encode` does not write."""
    if len(text) > LIMIT:
        raise Damaged(f"a record of more than {LIMIT} characters")
    return decode_document(text)


def encode_document(fields: Mapping[str, Any]) -> str:
    """`fields` as JSON for people to read with `cat`: for files, whose length is no matter.

    In UTF-8; what cannot be written in it, as in the name of a file, is escaped.
    """
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


def decode_document(text: str) -> dict[str, Any]:
    """The fields of a JSON object. Raises Damaged for anything else."""
    try:
        fields = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise Damaged("not JSON") from error
    if not isinstance(fields, dict):
        raise Damaged("not a JSON object")
    return fields


#: No number of ours is as large; others cannot be reckoned with.
_LARGEST = 10**18


def _whole(text: str) -> int:
    number = int(text)
    if abs(number) > _LARGEST:
        raise ValueError("not a number as the program writes it")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not abs(number) <= _LARGEST:  # nor is NaN
        raise ValueError("not a number as the program writes it")
    return number


def printable(text: str) -> str:
    """`text` without control characters: what others wrote must not drive the reader's terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "�" for character in text)
