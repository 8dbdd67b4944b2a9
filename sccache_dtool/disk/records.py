"""Short records on disk: one line of JSON of bounded length, which is checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from sccache_dtool.log import printable as printable

#: Longest record in bytes: the most that every file system stores in a symbolic link (XFS: 1024).
LIMIT = 1000

_LONGEST_FIELD = 120

#: What JSON allows around a value.
_SPACE = " \t\n\r"


class Damaged(ValueError):
    """A text in the cache that does not have the form of a record. It is kept, and counts as held."""


class OtherFormat(Damaged):
    """A text that a release with another format has written: nothing in it is understood, and it must stay."""


def encode(fields: Mapping[str, Any]) -> str:
    """`fields` as one line of ASCII JSON of at most LIMIT bytes. Long texts are cut; None is left out."""
    short = {
        name: value[:_LONGEST_FIELD] if isinstance(value, str) else value
        for name, value in fields.items()
        if value is not None
    }
    while len(text := json.dumps(short, separators=(",", ":"))) > LIMIT:  # a character is escaped by up to twelve bytes
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
    """`fields` as indented JSON in UTF-8, which people can read with `cat`; for files, which have no limit.

    Characters that are not valid in UTF-8, such as those of some file names, are escaped.
    """
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


def encode_lists(fields: Mapping[str, Any], lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """As `encode_document`, with long lists after the other fields: one line for each of their elements."""
    encode_line = json.JSONEncoder(ensure_ascii=False).encode
    parts = [f"  {encode_line(name)}: {encode_line(value)}" for name, value in fields.items()]
    for name, found in lists.items():
        lines = ",\n".join(f"    {encode_line(one)}" for one in found)
        parts.append(f"  {encode_line(name)}: [\n{lines}\n  ]")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    return text.encode("utf-8", "backslashreplace").decode()


def decode_document(text: str) -> dict[str, Any]:
    """The fields of a JSON object. Raises Damaged for anything else."""
    try:
        text = text.strip(_SPACE)
        fields, end = _decoder().raw_decode(text)  # `decode` takes half as long again
    except (ValueError, RecursionError) as error:
        raise Damaged("not JSON") from error
    if end != len(text):
        raise Damaged("not JSON")
    if not isinstance(fields, dict):
        raise Damaged("not a JSON object")
    return fields


@cache
def _decoder() -> json.JSONDecoder:
    """One for all: making it takes longer than reading a record."""
    return json.JSONDecoder(parse_int=partial(_number, kind=int), parse_float=_number, parse_constant=_number)


#: The program writes no larger number; a larger one may overflow in calculations.
_LARGEST = 10**18


def _number(text: str, kind: type[int] | type[float] = float) -> float:
    number = kind(text)
    if not abs(number) <= _LARGEST:  # NaN is refused as well
        raise ValueError("not a number as the program writes it")
    return number
