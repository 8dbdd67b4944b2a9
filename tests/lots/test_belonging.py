"""To which lot a copy belongs: the first of its kinds of paths that a lot claims decides."""

from __future__ import annotations

import pytest

from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.lots.belonging import Belonging, paths, words_of
from sccache_dtool.lots.model import DEFAULT, Claim, Lot, Lots, Match

KEY = f"{'a' * 32}-genome.fa"
FACTS = ItemFacts(
    source=("https://host/data/genome.fa", "gunzip"),
    name="genome",
    by="ada@node1",
    dataset={"uuid": "1234", "name": "refs", "uri": "s3://b/1234"},
    relpath="a/genome.fa",
)


def lots(**claims: str) -> Lots:
    """Lots that claim one path each."""
    return Lots(Lot(name, name, frozenset({name}), (Claim(path),)) for name, path in claims.items())


ALL = {
    "item": f"item:{KEY}",
    "dataset": "dataset:1234",
    "name": "name:genome",
    "source": "https://host/data",
    "user": "user:ada",
}


@pytest.mark.parametrize("without", range(6))
def test_the_first_kind_that_is_claimed_decides(without: int) -> None:
    """Data of a project would count for whoever happened to fetch it."""
    left = dict(list(ALL.items())[without:])
    found = Belonging(lots(**left), 0.0)
    assert found.of(KEY, words_of(FACTS)) == next(iter(left), DEFAULT)


def test_a_local_source_is_a_plain_path() -> None:
    """A claim on a directory would not hold for what was fetched from it."""
    assert Belonging(lots(a="/data/refs"), 0.0).of(KEY, words_of(ItemFacts(source=("file:/data/refs/x",)))) == "a"


def test_what_nobody_claims_is_of_the_default_lot() -> None:
    """It would be in no report."""
    found = Belonging(lots(a="user:bob", b="/data", c="dataset:12345"), 0.0)
    assert found.of(KEY, words_of(FACTS)) == DEFAULT
    assert found.of(KEY, words_of(ItemFacts())) == DEFAULT  # nothing is known of it


def test_it_is_explained_by_what_was_consulted() -> None:
    """Nobody could tell why data counts for a group."""
    table = lots(web="https://host", ada="user:ada")
    explained = Belonging(table, 0.0).explain(KEY, FACTS)
    assert [one.path for one in explained] == paths(KEY, words_of(FACTS))[:4]
    assert [one.match for one in explained] == [None, None, None, Match("web", Claim("https://host"))]


def test_loose_files_belong_by_path_and_then_by_owner() -> None:
    """What dtool left would belong to nobody."""
    found = Belonging(lots(proj="loose:1234", ada="user:ada"), 0.0)
    assert [found.of_loose(*one) for one in (("1234/x", "ada"), ("5/x", "ada"), ("5/x", "bob"))] == [
        "proj",
        "ada",
        DEFAULT,
    ]
