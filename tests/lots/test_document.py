"""Lots as people write them: what is exported is imported again, and what is not understood is refused."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccache_dtool.errors import UsageError
from sccache_dtool.lots.document import claim, claim_text, decode, encode
from sccache_dtool.lots.model import DEFAULT, Claim, Lot, Lots

SITE = """
[lot.site]
owner = "carol"
dedicated = "100TB"

[lot.physics]
parents = ["site"]
paths = ["dataset:8c3f", "-dataset:8c3f/raw", "=/scratch/one"]
dedicated = "40TB"
opportunistic = "10TiB"
max_objects = 2000000
from = 2027-01-01T00:00:00Z
expires = 2027-12-31
deletes = 2028-12-31T12:00:00+02:00
"""


def test_a_table_is_read() -> None:
    """Three groups could not be set up from a file."""
    lots = decode(SITE, "root")
    assert lots["site"] == Lot("site", "carol", frozenset({"site"}), (), 100 * 10**12)
    assert lots["physics"] == Lot(
        "physics",
        "root",
        frozenset({"site"}),
        (Claim("dataset:8c3f"), Claim("dataset:8c3f/raw", exclude=True), Claim("/scratch/one", recursive=False)),
        40 * 10**12,
        10 * 1024**4,
        2_000_000,
        1798761600.0,
        time.mktime((2027, 12, 31, 23, 59, 59, 0, 0, -1)) + 0.999999,
        1861869600.0,
    )


_TEXT = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1, max_size=8)
_TIMES = st.none() | st.integers(0, 4 * 10**9).map(float)


@st.composite
def tables(draw: st.DrawFn) -> Lots:
    """Lots with anything in them that a file can say."""
    lots = Lots([Lot(DEFAULT, draw(_TEXT), frozenset({DEFAULT}), (), draw(st.integers(0, 10**18)))])
    for name in draw(st.sets(_TEXT, max_size=4)) - {DEFAULT}:
        parents = frozenset(draw(st.sets(st.sampled_from(sorted(one.name for one in lots)), max_size=2)) or {name})
        limit = st.none() | st.integers(0, 10**17)
        created, expires = draw(_TIMES) or 0.0, draw(_TIMES)
        paths = (
            Claim(f"name:{name}", draw(st.booleans())),
            Claim(f"/x/{name}", draw(st.booleans()), draw(st.booleans())),
        )
        new = Lot(
            name, draw(_TEXT), parents, paths, draw(st.integers(0, 9)), draw(limit), draw(limit), created, expires
        )
        lots = lots.add(new, caller=None)
    return lots


@given(tables())
def test_what_is_exported_is_imported(lots: Lots) -> None:
    """A cache whose lots were copied from another would have other shares."""
    assert decode(encode(lots), "nobody") == lots


@pytest.mark.parametrize("text", ["-/a", "=/a", "-=/a", "/a", "user:ada"])
def test_paths_are_written_as_they_are_read(text: str) -> None:
    """An excluded path would be claimed by the next import."""
    assert claim_text(claim(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[lot.a\n", "cannot be read"),
        ("[lots.a]\n", "'lots'"),
        ("lot = 5\n", "is not a table"),
        ("[lot]\na = 5\n", "'a' is not a table"),
        ("[lot.a]\nquota = 5\n", "quota is not a key"),
        ("[lot.a]\nowner = 5\n", "owner is not a text"),
        ("[lot.a]\nparents = 'b'\n", "parents is not a list"),
        ("[lot.a]\nparents = ['b']\n", "'b', which does not exist"),
        ("[lot.a]\npaths = [5]\n", "paths is not a list"),
        ("[lot.a]\ndedicated = '5XB'\n", "dedicated: cannot read '5XB'"),
        ("[lot.a]\ndedicated = -1\n", "dedicated is -1"),
        ("[lot.a]\ndedicated = 'unlimited'\n", "cannot read 'unlimited'"),
        ("[lot.a]\nmax_objects = 1.5\n", "max_objects is 1.5"),
        ("[lot.a]\nmax_objects = true\n", "max_objects is True"),
        ("[lot.a]\nexpires = '2027-12-31'\n", "not a date"),
        ("[lot.a]\nexpires = 2027-12-31\ndeletes = 2026-12-31\n", "before it expires"),
        ('{"lot_name": "a"}', "lacks"),
        ('[{"lot_name": 5}]', "lacks"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, reason: str) -> None:
    """A mistyped limit would be no limit."""
    with pytest.raises(UsageError, match=reason):
        decode(text, "root")


@pytest.mark.parametrize(
    "text",
    [
        f"[lot.a]\ndedicated = {'9' * 5000}",
        f'[{{"lot_name": {"9" * 5000}}}]',
        "[" * 100_000,
        "\x00\udcff\udcfe",
        '[lot."a\udcff"]',
        '[lot."\\u001b[31m"]',
        '[lot." "]',
        '[lot.a]\npaths = ["user:\\u202e"]',
        "[lot.a]\nexpires = 0001-01-01",
        "[lot.a]\nexpires = 9999-12-31T23:59:59-12:00",
        "[lot.a]\ndedicated = nan",
        "[lot.a]\nmax_objects = 9223372036854775808",
        '[lot.a]\ndedicated = "2000PB"',
        '[lot.a]\nparents = ["b"]\n[lot.b]\nparents = ["a"]',
    ],
)
def test_what_somebody_has_made_up_is_refused(text: str) -> None:
    """An import of a file from elsewhere would end in a traceback, or in a table that nobody can read again."""
    with pytest.raises(UsageError):
        decode(text, "ada")


def test_lots_of_lotman_are_read() -> None:
    """A site that comes from LotMan would have to type all its lots again."""
    limits = {
        "dedicated_GB": 1.5,
        "opportunistic_GB": -1,
        "max_num_objects": 9,
        "creation_time": 1000,
        "expiration_time": 2000,
        "deletion_time": 3000,
    }
    never = {**limits, "creation_time": 0, "expiration_time": 0, "deletion_time": 0}
    child = {"lot_name": "c", "owner": "c", "parents": ["p"], "management_policy_attrs": limits}
    parent = {"lot_name": "p", "owner": "p", "parents": ["p"], "management_policy_attrs": never}
    lots = decode(json.dumps([child, parent]), "root")
    assert lots["c"] == Lot("c", "c", frozenset({"p"}), (), 1_500_000_000, None, 9, 1.0, 2.0, 3.0)
    assert lots["p"].expires is None
    with pytest.raises(UsageError, match="each other"):
        decode(json.dumps([{**child, "children": ["p"]}, {**parent, "children": ["c"]}]), "root")
