"""Lots as people write them: TOML with sizes and dates, to be imported and exported. The form of LotMan is read, too.

[lot.physics]
owner = "carol"
parents = ["site"]
paths = ["dataset:8c3f…", "-dataset:8c3f…/raw"]
dedicated = "40TB"
expires = 2027-12-31
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from typing import Any

from sccache_dtool.clock import iso
from sccache_dtool.errors import UsageError
from sccache_dtool.lots import lotman
from sccache_dtool.lots.model import DEFAULT, Attribution, Claim, Lot, Lots
from sccache_dtool.units import parse_size

#: What stands for a limit that does not limit.
UNLIMITED = "unlimited"

#: Keys of a lot, each with the field of Lot that it is.
_KEYS = {
    "owner": "owner",
    "parents": "parents",
    "paths": "claims",
    "dedicated": "dedicated",
    "opportunistic": "opportunistic",
    "max_objects": "objects",
    "from": "created",
    "expires": "expires",
    "deletes": "deletes",
    "attributions": "attributions",
}


def decode(text: str, owner: str) -> Lots:
    """The lots that a file describes. `owner`: of lots for which it names none. Raises UsageError.

    The file is TOML, or JSON with what LotMan's `add_lot` takes: one lot, or a list of them.
    """
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _from_lotman(json.loads(text))
        except (ValueError, RecursionError):
            pass  # a TOML file may begin with a bracket, too
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of a number of thousands of digits it is a plain ValueError
        raise UsageError(f"the lots cannot be read: {error}", hint="an example: sc-dtool lot export") from None
    unknown = document.keys() - {"lot"}
    tables = document.get("lot", {})
    if unknown or not isinstance(tables, dict):
        raise UsageError(
            f"the file has {', '.join(map(repr, sorted(unknown))) or 'lot'}, which is not a table [lot.NAME]",
            hint="an example: sc-dtool lot export",
        )
    return Lots(_lot(name, table, owner) for name, table in tables.items())


def _from_lotman(document: Any) -> Lots:
    lots = Lots()
    pairs = [lotman.lot_from(one) for one in (document if isinstance(document, list) else [document])]
    waiting = {lot.name: (lot, children) for lot, children in pairs}
    while waiting:
        ready = [
            name
            for name, (lot, children) in waiting.items()
            if not (lot.parents | set(children)) - {name} & waiting.keys()
        ]
        if not ready:
            raise UsageError(f"lots are each other's parents: {', '.join(sorted(waiting))}")
        for name in ready:
            lot, children = waiting.pop(name)
            lots = (
                Lots([*(one for one in lots if one.name != DEFAULT), lot])
                if name == DEFAULT
                else lots.add(lot, caller=None, children=children)
            )
    return lots


def _lot(name: str, table: Any, owner: str) -> Lot:
    where = f"lot {name!r}"
    if not isinstance(table, dict):
        raise UsageError(f"{where} is not a table", hint=f"write [lot.{name}]")
    unknown = sorted(table.keys() - _KEYS)
    if unknown:
        raise UsageError(f"{where}: {', '.join(unknown)} is not a key of a lot", hint=f"keys are {', '.join(_KEYS)}")
    values = {_KEYS[key]: value for key, value in table.items()}
    parents = frozenset(_texts(values.get("parents", []), f"{where}: parents")) or frozenset({name})
    claims = tuple(map(claim, _texts(values.get("claims", []), f"{where}: paths")))
    if not isinstance(values.get("owner", ""), str):
        raise UsageError(f"{where}: owner is not a text")
    return Lot(
        name,
        values.get("owner", "" if name == DEFAULT else owner),
        parents,
        claims,
        _size(values.get("dedicated", 0), f"{where}: dedicated"),
        _limit(values.get("opportunistic"), f"{where}: opportunistic"),
        _number(values.get("objects"), f"{where}: max_objects"),
        _moment(values.get("created"), f"{where}: from") or 0.0,
        _moment(values.get("expires"), f"{where}: expires"),
        _moment(values.get("deletes"), f"{where}: deletes"),
        _attributions(values.get("attributions", {}), f"{where}: attributions"),
    )


def _attributions(table: Any, what: str) -> tuple[Attribution, ...]:
    """What comes from which parent: ``attributions.site = { dedicated = "4TB" }``."""
    amounts: dict[str, Callable[[Any, str], int | None]] = {
        "dedicated": _size,
        "opportunistic": _size,
        "max_objects": _number,
    }
    if not isinstance(table, dict) or not all(
        isinstance(values, dict) and values.keys() <= amounts.keys() for values in table.values()
    ):
        raise UsageError(f"{what} is not a table of parents", hint='write attributions.LOT = { dedicated = "4TB" }')
    return tuple(
        Attribution(parent, **{_KEYS[key]: amounts[key](value, f"{what}: {key}") for key, value in values.items()})
        for parent, values in table.items()
    )


def attribution(text: str) -> Attribution:
    """What comes from a parent, as people write it on a command line: ``LOT:dedicated=4TB,max_objects=1000``."""
    parent, colon, amounts = text.rpartition(":")
    pairs = [pair.partition("=") for pair in amounts.split(",")]
    values = {key: int(value) if value.isdecimal() else value for key, _, value in pairs}
    if not colon or not all(equals for _, equals, _ in pairs) or len(values) < len(pairs):
        raise UsageError(
            f"cannot read {text!r} as what comes from a parent",
            hint="write LOT:dedicated=4TB, or LOT:opportunistic=1TB,max_objects=1000",
        )
    (found,) = _attributions({parent: values}, repr(text))
    return found


def claim(text: str) -> Claim:
    """A path as people write it: ``-/path`` is excluded, and ``=/path`` is that path only, without what is below."""
    inner = text.removeprefix("-")
    return Claim(inner.removeprefix("="), not inner.startswith("="), inner != text)


def claim_text(one: Claim) -> str:
    """What `claim` reads."""
    return f"{'-' if one.exclude else ''}{'' if one.recursive else '='}{one.path}"


def encode(lots: Lots) -> str:
    """The lots as TOML, which `decode` reads."""
    return "\n".join(_table(lot) for lot in sorted(lots, key=lambda one: (one.name != DEFAULT, one.name)))


def _table(lot: Lot) -> str:
    values: Mapping[str, Any] = {
        "owner": lot.owner,
        "parents": sorted(lot.parents),
        "paths": [claim_text(one) for one in lot.claims],
        "dedicated": lot.dedicated,
        "opportunistic": UNLIMITED if lot.opportunistic is None else lot.opportunistic,
        "max_objects": UNLIMITED if lot.objects is None else lot.objects,
        "from": lot.created or None,
        "expires": lot.expires,
        "deletes": lot.deletes,
    }
    attributed = {
        one.parent: {key: value for key, name in _KEYS.items() if (value := one._asdict().get(name)) is not None}
        for one in lot.attributions
    }
    is_bare = re.fullmatch(r"[A-Za-z0-9_-]+", lot.name) is not None
    lines = [f"[lot.{lot.name if is_bare else _quoted(lot.name)}]"]
    for key, value in values.items():
        if value is None:
            continue
        text = iso(value) if key in ("from", "expires", "deletes") else _quoted(value)
        lines.append(f"{key} = {text}")
    for parent, amounts in attributed.items():
        text = ", ".join(f"{key} = {value}" for key, value in amounts.items())
        lines.append(f"attributions.{_quoted(parent)} = {{ {text} }}")
    return "\n".join(lines) + "\n"


def _quoted(value: Any) -> str:
    """A text, a number or a list of texts in TOML, whose strings escape as those of JSON do."""
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _texts(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"{what} is not a list of texts", hint='write ["…", "…"]')
    return value


def _size(value: Any, what: str) -> int:
    if type(value) is int and value >= 0:
        return value
    if not isinstance(value, str):
        raise UsageError(f"{what} is {value!r}, which is not a size", hint='write "40TB"')
    try:
        return parse_size(value)
    except UsageError as error:
        raise UsageError(f"{what}: {error.message}", hint=error.hint) from None


def _limit(value: Any, what: str) -> int | None:
    return None if value in (None, UNLIMITED) else _size(value, what)


def _number(value: Any, what: str) -> int | None:
    if value in (None, UNLIMITED):
        return None
    if type(value) is not int or value < 0:
        raise UsageError(f"{what} is {value!r}, which is not a number of files", hint=f'a number, or "{UNLIMITED}"')
    return value


def _moment(value: Any, what: str) -> float | None:
    """Seconds since 1970 of a date or time of TOML. Those without a zone are in local time, and a date is its end."""
    try:
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, date):
            return datetime.combine(value, time.max).timestamp()
        if value is None:
            return None
    except (OverflowError, ValueError, OSError):
        pass
    raise UsageError(f"{what} is {value!r}, which is not a date", hint="write 2027-12-31, without quotes")
