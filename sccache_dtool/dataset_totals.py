"""Totals by dataset: space, uses, and the download time that cache hits saved."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from sccache_dtool.catalog.broker_names import is_uuid
from sccache_dtool.catalog.facts import ItemFacts
from sccache_dtool.catalog.items import Item
from sccache_dtool.clock import iso
from sccache_dtool.fetch.request import DTOOL

if TYPE_CHECKING:
    from sccache_dtool.catalog.loose import LooseDirectory

#: The label of an item or of a view of a dataset: the beginning of its UUID, and what it is.
_LABEL = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{40}|dataset)", re.ASCII)


class DatasetItem(NamedTuple):
    """An item, with what the facts of its copies say about its dataset. The facts are evicted with the copies."""

    item: Item
    dataset: str  # a UUID, or its first eight digits; empty if the item does not belong to a dataset
    name: str  # the dataset's
    relpath: str
    saved: float | None  # seconds of download time; None if the time of a fetch is unknown
    is_view: bool = False  # whether it is a directory of links to the items of a dataset


def dataset_item(item: Item, facts_of_copies: Iterable[ItemFacts]) -> DatasetItem:
    """What is known of an item, from the facts of its copies.

    Every use saves the time of a fetch, except the one that fetched each copy. The time of a fetch is recorded with the
    copy. After an eviction it is therefore unknown until the item is fetched again.
    """
    facts_of_copies = list(facts_of_copies)
    match = _LABEL.fullmatch(item.label)
    if any(facts.source is not None and not _first(facts).startswith(DTOOL) for facts in facts_of_copies):
        match = None  # somebody has given it such a name
    dataset, name, relpath = match[1] if match else "", "", ""
    seconds: list[float] = []
    for facts in facts_of_copies:
        if facts.seconds is not None:
            seconds.append(facts.seconds)
        first = _first(facts)
        uuid = first.removeprefix(DTOOL).partition("/")[0]
        if first.startswith(DTOOL) and is_uuid(uuid):
            dataset = uuid
        name = (facts.dataset or {}).get("name") or name
        relpath = facts.relpath or relpath
    saved = max(0, item.uses - len(item.copies)) * sum(seconds) / len(seconds) if seconds else None
    return DatasetItem(item, dataset, name, relpath, saved, match is not None and match[2] == "dataset")


def _first(facts: ItemFacts) -> str:
    return facts.source[0] if facts.source else ""


def by_dataset(listed: Iterable[DatasetItem], left: Iterable[LooseDirectory]) -> list[dict[str, Any]]:
    """One record for each dataset, and one for all other items, the largest first."""
    listed, left = list(listed), list(left)
    whole = {one.dataset for one in listed} | {loose.dataset for loose in left}
    short = {uuid[:8]: uuid for uuid in whole if is_uuid(uuid)}
    sums: dict[str, dict[str, Any]] = {}

    def of(dataset: str) -> dict[str, Any]:
        dataset = short.get(dataset, dataset)
        return sums.setdefault(
            dataset,
            {
                "dataset": dataset or None,
                "name": "",
                "bytes": 0,
                "items": 0,
                "loose_files": 0,
                "loose_bytes": 0,
                "leases": 0,
                "uses": 0,
                "last_use": None,
                "saved_seconds": None,
                "_idle_since": 0.0,
            },
        )

    for one in listed:
        row = of(one.dataset)
        row["name"] = row["name"] or one.name
        row["bytes"] += one.item.bytes
        row["items"] += bool(one.item.copies) and not one.is_view
        if not one.is_view:
            row["leases"] += one.item.leases
            row["uses"] += one.item.uses
            if one.saved is not None:
                row["saved_seconds"] = round((row["saved_seconds"] or 0.0) + one.saved, 3)
        row["_idle_since"] = max(row["_idle_since"], one.item.idle_since)
    for loose in left:
        row = of(loose.dataset)
        row["bytes"] += loose.bytes
        row["loose_files"] += loose.files
        row["loose_bytes"] += loose.bytes
        row["_idle_since"] = max(row["_idle_since"], loose.newest)
    for row in sums.values():
        row["last_use"] = iso(row["_idle_since"])
    return sorted(sums.values(), key=lambda row: (-row["bytes"], str(row["dataset"])))
