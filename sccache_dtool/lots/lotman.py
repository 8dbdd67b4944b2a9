"""Lots in the words of LotMan: its JSON, with sizes in GB (10^9 bytes) and times in milliseconds since 1970.

Only `--lotman`, imports and tests use these words; see https://github.com/PelicanPlatform/lotman.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sccache_dtool.errors import UsageError
from sccache_dtool.lots.model import LIMITS, Attribution, Balance, Claim, Lot, Lots, Usage

GB = 10**9

#: LotMan's value for a limit that does not limit. There is none for `dedicated_GB`: then nothing could ever be evicted.
UNBOUNDED = -1

#: LotMan's names of limits, and in which unit of ours each is counted.
_KEYS = {
    "dedicated_GB": ("dedicated", GB),
    "opportunistic_GB": ("opportunistic", GB),
    "max_num_objects": ("objects", 1),
    "creation_time": ("created", 0.001),
    "expiration_time": ("expires", 0.001),
    "deletion_time": ("deletes", 0.001),
}
_ATTRIBUTED = ("dedicated_GB", "opportunistic_GB", "max_num_objects")
_NAMES = {name: key for key, (name, _) in _KEYS.items()}
_USAGE = {
    "self_GB": ("bytes", GB),
    "self_objects": ("objects", 1),
    "self_GB_being_written": ("bytes_being_written", GB),
    "self_objects_being_written": ("objects_being_written", 1),
}
_WHOLE = {"max_num_objects", "creation_time", "expiration_time", "deletion_time", "self_objects"}


def limits(attributes: Any, *, all_of_them: bool) -> dict[str, Any]:
    """Fields of a Lot from ``management_policy_attrs``. Raises UsageError."""
    found = _mapping(attributes, "management_policy_attrs", _KEYS, _KEYS if all_of_them else ())
    values: dict[str, Any] = {_KEYS[key][0]: _limit(key, number) for key, number in found.items()}
    if all_of_them and not any(found[key] for key in ("creation_time", "expiration_time", "deletion_time")):
        values["expires"] = values["deletes"] = None  # all three are 0: it never ends
    return values


def limit(name: str, value: float | None) -> float:
    """A limit in LotMan's unit; `name` is one of LIMITS."""
    if value is None:
        return UNBOUNDED
    _, unit = _KEYS[_NAMES[name]]
    if unit < 1:
        return round(value / unit)
    return int(value) // unit if value % unit == 0 else value / unit  # exactly, where that can be


def lot_from(document: Any) -> tuple[Lot, list[str]]:
    """A lot, and the names of its children, from what `add_lot` takes. Raises UsageError."""
    required = {"lot_name", "owner", "parents", "management_policy_attrs"}
    known = required | {"children", "paths", "parent_attributions"}
    found = _mapping(document, "a lot", known, required)
    name, owner = _text(found["lot_name"], "lot_name"), _text(found["owner"], "owner")
    parents = frozenset(_texts(found["parents"], "parents"))
    values = limits(found["management_policy_attrs"], all_of_them=True)
    claims = tuple(claim_from(one) for one in _list(found.get("paths", []), "paths"))
    shares = found.get("parent_attributions", {})
    lot = Lot(name, owner, parents, claims, **values, attributions=attributions_from(shares))
    return lot, _texts(found.get("children", []), "children")


def attributions_from(document: Any) -> tuple[Attribution, ...]:
    """What comes from which parent, from ``parent_attributions``. Raises UsageError."""
    if not isinstance(document, dict):
        raise UsageError("parent_attributions is not a JSON object")
    found = []
    for parent, values in document.items():
        amounts = _mapping(values, f"what comes from {parent!r}", _ATTRIBUTED, ())
        limits = {_KEYS[key][0]: _limit(key, number) for key, number in amounts.items()}
        found.append(
            Attribution(parent, **{name: None if value is None else int(value) for name, value in limits.items()})
        )
    return tuple(found)


def claim_from(document: Any) -> Claim:
    """A claim from an entry of ``paths``. Raises UsageError."""
    found = _mapping(document, "a path", {"path", "recursive", "exclude"}, {"path", "recursive"})
    recursive, exclude = found["recursive"], found.get("exclude", False)
    if not isinstance(recursive, bool) or not isinstance(exclude, bool):
        raise UsageError("recursive and exclude of a path are true or false")
    return Claim(_text(found["path"], "path"), recursive, exclude)


def document(lots: Lots, name: str, balance: Balance) -> dict[str, Any]:
    """A lot as `get_lot_as_json` gives it, restricting values and the usage of descendants included."""
    lot = lots[name]
    return {
        "lot_name": name,
        "owner": lot.owner,
        "owners": sorted(lots.owners(name)),
        "parents": sorted(lot.parents),
        "children": sorted(lots.children(name)),
        "paths": [path(name, claim) for claim in lot.claims],
        "management_policy_attrs": {
            _NAMES[one]: {"lot_name": holds.lot, "value": limit(one, holds.value)}
            for one in LIMITS
            for holds in (lots.restriction(name, one),)
        },
        "usage": usage(balance),
    }


def addition(lot: Lot) -> dict[str, Any]:
    """A lot as `add_lot` takes it."""
    found: dict[str, Any] = {
        "lot_name": lot.name,
        "owner": lot.owner,
        "parents": sorted(lot.parents),
        "paths": [claim._asdict() for claim in lot.claims],
        "management_policy_attrs": {_NAMES[name]: limit(name, getattr(lot, name)) for name in LIMITS},
    }
    if lot.attributions:
        found["parent_attributions"] = {
            one.parent: {
                _NAMES[name]: limit(name, value)
                for name, value in one._asdict().items()
                if name != "parent" and value is not None
            }
            for one in lot.attributions
        }
    return found


def path(lot: str, claim: Claim) -> dict[str, Any]:
    """A claim as `get_lot_dirs` gives it."""
    return {
        "lot_name": lot,
        "path": f"{claim.path.rstrip('/')}/",
        "recursive": claim.recursive,
        "exclude": claim.exclude,
    }


def usage(balance: Balance) -> dict[str, dict[str, float]]:
    """What a lot has, as `get_lot_usage` gives it."""
    own, below = balance.own, balance.descendants
    pairs = {
        "dedicated_GB": (balance.dedicated.own / GB, balance.dedicated.descendants / GB),
        "opportunistic_GB": (balance.opportunistic.own / GB, balance.opportunistic.descendants / GB),
        "total_GB": (own.bytes / GB, below.bytes / GB),
        "num_objects": (own.objects, below.objects),
        "GB_being_written": (own.bytes_being_written / GB, below.bytes_being_written / GB),
        "objects_being_written": (own.objects_being_written, below.objects_being_written),
    }
    return {
        key: {"self_contrib": mine, "children_contrib": others, "total": mine + others}
        for key, (mine, others) in pairs.items()
    }


class Report(NamedTuple):
    """What somebody says that a lot has: fields of Usage, by name; the others stay as they are."""

    lot: str
    values: Mapping[str, int]


def report_from(document: Any) -> Report:
    """A report from what `update_lot_usage` takes. Raises UsageError."""
    found = _mapping(document, "a report", {"lot_name", *_USAGE}, {"lot_name"})
    name = _text(found.pop("lot_name"), "lot_name")
    return Report(
        name,
        {_USAGE[key][0]: int(_value(key, number, _USAGE[key][1], "a report")) for key, number in found.items()},
    )


def reports_by_path(lots: Lots, documents: Any) -> list[Report]:
    """Reports from what `update_lot_usage_by_dir` takes: a tree of directories, shared out to lots by path.

    Where a directory says that it includes its subdirectories, what is listed of them is taken off it. What is given
    for one lot in several places is added up. Raises UsageError.
    """
    found: dict[str, dict[str, int]] = {}
    for directory, values in _directories(_list(documents, "a report of directories"), ""):
        own = found.setdefault(lots.of(directory).lot, {})
        for name, value in values.items():
            own[name] = own.get(name, 0) + value
    return [Report(lot, values) for lot, values in found.items()]


_TREE = {
    "size_GB": ("bytes", GB),
    "num_obj": ("objects", 1),
    "GB_being_written": ("bytes_being_written", GB),
    "objects_being_written": ("objects_being_written", 1),
}


def _directories(documents: Iterable[Any], above: str) -> Iterator[tuple[str, dict[str, int]]]:
    for document in documents:
        known = {"path", "includes_subdirs", "subdirs", *_TREE}
        found = _mapping(document, "a directory", known, {"path", "includes_subdirs"})
        directory = f"{above}{_text(found['path'], 'path')}"
        below = list(_directories(_list(found.get("subdirs", []), "subdirs"), f"{directory.rstrip('/')}/"))
        values = {
            name: int(_value(key, found[key], unit, directory)) for key, (name, unit) in _TREE.items() if key in found
        }
        yield (
            directory,
            (
                {name: value - sum(one.get(name, 0) for _, one in below) for name, value in values.items()}
                if found["includes_subdirs"]
                else values
            ),
        )
        yield from below


def reported(used: Mapping[str, Usage], reports: Iterable[Report], *, delta: bool) -> dict[str, Usage]:
    """What is reported to be used, after more reports; with `delta` they are differences.

    Raises UsageError if a lot would have less than nothing.
    """
    new = dict(used)
    for report in reports:
        before = new.get(report.lot, Usage())
        after = before._replace(
            **{name: value + (getattr(before, name) if delta else 0) for name, value in report.values.items()}
        )
        if min(after) < 0:
            raise UsageError(f"lot {report.lot!r} would have less than nothing: {min(after)}")
        new[report.lot] = after
    return new


# -- documents ---------------------------------------------------------------------------------------------------------


def _mapping(document: Any, what: str, known: Iterable[str], required: Iterable[str]) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise UsageError(f"{what} is not a JSON object")
    unknown, missing = sorted(set(document) - set(known)), sorted(set(required) - set(document))
    if unknown:
        raise UsageError(f"{what} has {', '.join(map(repr, unknown))}, which LotMan does not know")
    if missing:
        raise UsageError(f"{what} lacks {', '.join(map(repr, missing))}")
    return dict(document)


def _limit(key: str, number: Any) -> float | None:
    """A limit in our unit."""
    if number == UNBOUNDED and key != _NAMES["dedicated"]:
        return None
    value = _value(key, number, _KEYS[key][1], "management_policy_attrs")
    if value < 0:
        raise UsageError(f"{key} of management_policy_attrs is {number}, which is less than 0")
    return value


def _value(key: str, number: Any, unit: float, what: str) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number or abs(number) > 1e18:
        raise UsageError(f"{key} of {what} is {number!r}, which is not a number")
    if key in _WHOLE and number != int(number):
        raise UsageError(f"{key} of {what} is {number}, which is not a whole number")
    return number * unit if unit < 1 else round(number * unit)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{what} is {value!r}, which is not a text")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{what} is not a list")
    return value


def _texts(value: Any, what: str) -> list[str]:
    return [_text(one, what) for one in _list(value, what)]
