"""The short texts that programs write for each other."""

from __future__ import annotations

import pytest

from sccache_dtool.disk import records
from sccache_dtool.disk.records import Damaged


def test_a_record_is_read_as_written() -> None:
    """A holder would be judged by another identity than its own."""
    fields = {"kind": "process", "pid": 7, "ttl": 1.5, "command": 'sh -c "ä\n"', "name": None}
    assert records.decode(records.encode(fields)) == {"kind": "process", "pid": 7, "ttl": 1.5, "command": 'sh -c "ä\n"'}


def test_a_record_is_one_line_of_ascii() -> None:
    """A record would break the listing of whoever looks with `ls`."""
    text = records.encode({"command": "a\nb\x1b[2J\x85\u2028ä\ud800"})
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize("character", ["x", '"', "\n", "ä", "\U0001f600", "\udcff"])
@pytest.mark.parametrize("fields", [("command",), ("name",), ("name", "command"), ("user", "host", "name", "command")])
def test_no_record_is_longer_than_a_symbolic_link(character: str, fields: tuple[str, ...]) -> None:
    """A holder with a long or foreign name could not be entered, or would count as damaged for ever."""
    identity = {"boot": "b" * 36, "space": "4026531836.4026531834", "pid": 4_194_304, "start": 10**12}
    text = records.encode({**identity, "kind": "process", **dict.fromkeys(fields, character * 5000)})
    assert len(text) <= records.LIMIT
    decoded = records.decode(text)
    assert identity.items() <= decoded.items()
    assert all(decoded[field].startswith(character) for field in fields)


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", '"text"', "null", "7", "{", '{"a":1}x', "[" * 900, "1" * 999, '{"a":"' + "x" * 1000 + '"}'],
)
def test_what_is_no_record_is_damaged(text: str) -> None:
    """A text of somebody's own would end every command with a traceback, or be believed."""
    with pytest.raises(Damaged):
        records.decode(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1e19", "-1e19", "1" * 20, "9" * 5000])
def test_a_number_that_we_do_not_write_is_damage(number: str) -> None:
    """What is reckoned with it would overflow, and end a command with a traceback."""
    with pytest.raises(Damaged):
        records.decode_document(f'{{"bytes": {number}}}')


def test_a_deep_document_is_damaged() -> None:
    """An `item.json` made by hand could end `clean` for all users of a cache."""
    with pytest.raises(Damaged):
        records.decode_document('{"a":' * 100_000)


def test_a_document_may_be_long() -> None:
    """An item with a long loader stack could not be described."""
    fields = {"source": ["x" * 5000], "name": "Grüße"}
    text = records.encode_document(fields)
    assert records.decode_document(text) == fields
    assert "Grüße" in text


@pytest.mark.parametrize("control", ["\x1b", "\n", "\r", "\x00", "\x7f", "\x9b", "\u2028", "\u202e", "\udcff"])
def test_control_characters_are_not_shown(control: str) -> None:
    """A file name or a record could drive the terminal of whoever looks."""
    assert records.printable(f"a{control}b ü") == "a�b ü"
