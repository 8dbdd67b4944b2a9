"""What `item.json` says of a copy, in one type."""

from __future__ import annotations

import json

import pytest

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.disk.records import Damaged

FACTS = ItemFacts(
    key="0123",
    name="a.txt",
    source=("file:/a.txt", "md5:00"),
    payload="a.txt",
    bytes=5,
    entries=1,
    digests={"md5": "00"},
    versions=[{"size": 5}, None],
    fetched="2024-01-01T00:00:00+00:00",
    seconds=0.5,
    by="me@host",
    dataset={"uuid": "u"},
    relpath="data/a.txt",
)


def test_what_is_written_is_read_again() -> None:
    """A later command would not know where an item came from."""
    assert ItemFacts.decode(FACTS.encode()) == FACTS
    assert list(json.loads(FACTS.encode()))[:3] == ["format", "key", "name"]


@pytest.mark.parametrize("wrong", [{"of": "another type"}, [1], 1.5, "text"])
def test_a_field_of_another_type_is_not_believed(wrong: object) -> None:
    """A number or list where a text is expected would end `ls` or `clean` for all users of a cache."""
    document = dict.fromkeys(json.loads(FACTS.encode()), wrong)
    facts = ItemFacts.decode(json.dumps(document))
    assert facts.source is None
    assert "source" in facts.malformed
    assert isinstance(facts.key, str | None)
    assert isinstance(facts.seconds, float | None)
    assert facts.shown_source == "no source"
    assert facts.user == ("text" if wrong == "text" else "?")


def test_a_text_that_is_no_object_is_damaged() -> None:
    """`doctor` could not tell a damaged description from an empty one."""
    with pytest.raises(Damaged):
        ItemFacts.decode("[]")
