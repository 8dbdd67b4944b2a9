"""Calls of the real LotMan, recorded with its answers, are answered in the same way; its faults are not copied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sccache_dtool.errors import UsageError
from sccache_dtool.lots import lotman
from sccache_dtool.lots.model import DEFAULT, LIMITS, Claim, Lots, Question, Usage, components

CASES = json.loads((Path(__file__).parent / "data" / "lotman-cases.json").read_text())["cases"]

#: Later than the dates that are over in the cases, and earlier than the others, in seconds since 1970.
NOW = 1_790_000_000.0

#: Of each limit, LotMan's name.
NAMES = dict(
    zip(
        LIMITS,
        ("dedicated_GB", "opportunistic_GB", "max_num_objects", "creation_time", "expiration_time", "deletion_time"),
        strict=True,
    )
)


class Driver:
    """LotMan's C interface, on our lots."""

    def __init__(self) -> None:
        self.lots: Lots | None = None
        self.used: dict[str, Usage] = {}
        self.caller = ""

    def set_context_str(self, caller: str) -> None:
        self.caller = caller

    def lot_exists(self, lot_name: str) -> bool:
        return self.lots is not None and lot_name in self.lots

    def is_root(self, lot_name: str) -> bool:
        return self._all[lot_name].is_root

    def list_all_lots(self) -> list[str]:
        return sorted(lot.name for lot in self._all)

    def add_lot(self, **document: Any) -> None:
        lot, children = lotman.lot_from(document)
        if self.lots is None and lot.name == DEFAULT:
            self.lots = Lots([lot])
        else:
            self.lots = self._all.add(lot, caller=self.caller, children=children)

    def update_lot(self, json: dict[str, Any]) -> None:
        document = dict(json)
        name = document.pop("lot_name")
        lot = self._all[name]
        changes: dict[str, Any] = {}
        if "owner" in document:
            changes["owner"] = document.pop("owner")
        if "management_policy_attrs" in document:
            changes |= lotman.limits(document.pop("management_policy_attrs"), all_of_them=False)
        for change in document.pop("parents", ()):
            parents = changes.get("parents", lot.parents)
            if change["current"] not in parents:
                raise UsageError(f"{change['current']} is not a parent")
            changes["parents"] = parents - {change["current"]} | {change["new"]}
        claims = {components(claim.path): claim for claim in lot.claims}
        for change in document.pop("paths", ()):
            if claims.pop(components(change["current"]), None) is not None:
                new = Claim(change["new"], change["recursive"], change.get("exclude", False))
                claims[components(new.path)] = new
        if document:
            raise UsageError(f"unknown: {sorted(document)}")
        self.lots = self._all.update(name, caller=self.caller, **{**changes, "claims": tuple(claims.values())})

    def add_to_lot(self, json: dict[str, Any]) -> None:
        lot = self._all[json["lot_name"]]
        claims = tuple(lotman.claim_from(one) for one in json.get("paths", ()))
        self.lots = self._all.update(
            lot.name, caller=self.caller, claims=lot.claims + claims, parents=lot.parents | set(json.get("parents", ()))
        )

    def rm_paths_from_lots(self, json: dict[str, Any]) -> None:
        going = {components(path) for path in json["paths"]}
        for lot in self._all:
            left = tuple(claim for claim in lot.claims if components(claim.path) not in going)
            if left != lot.claims:
                self.lots = self._all.update(lot.name, caller=self.caller, claims=left)

    def remove_lot(self, lot_name: str, **options: bool) -> None:
        orphans, others, down, _ = options.values()
        self.lots = self._all.remove(
            lot_name, caller=self.caller, adopt_orphans=orphans, adopt_all=others, hand_down=down
        )

    def remove_lots_recursive(self, lot_name: str) -> None:
        self.lots = self._all.remove_all(lot_name, caller=self.caller)

    def get_owners(self, lot_name: str, recursive: bool) -> list[str]:
        return sorted(self._all.owners(lot_name)) if recursive else [self._all[lot_name].owner]

    def get_parent_names(self, lot_name: str, recursive: bool, get_self: bool) -> list[str]:
        found = set(self._all.ancestors(lot_name)) if recursive else self._all[lot_name].parents - {lot_name}
        return sorted(found | (self._all[lot_name].parents & {lot_name} if get_self else set()))

    def get_children_names(self, lot_name: str, recursive: bool, get_self: bool) -> list[str]:
        found = set(self._all.descendants(lot_name)) if recursive else set(self._all.children(lot_name))
        return sorted(found | (self._all[lot_name].parents & {lot_name} if get_self else set()))

    def get_policy_attributes(self, lot_name: str, **keys: bool) -> dict[str, Any] | None:
        lot, answer = self._all[lot_name], {}
        for name, key in NAMES.items():
            if keys.get(key):
                holds = self._all.restriction(lot_name, name)
                answer[key] = {"lot_name": holds.lot, "value": lotman.limit(name, holds.value)}
            elif key in keys:
                answer[key] = {"value": lotman.limit(name, getattr(lot, name))}
        return answer or None

    def get_lot_usage(self, lot_name: str, **keys: bool) -> dict[str, Any]:
        answer = lotman.usage(self._all.balances(self.used)[lot_name])
        return {
            key: answer[key] if below else {"self_contrib": answer[key]["self_contrib"]} for key, below in keys.items()
        }

    def update_lot_usage(self, json: dict[str, Any], delta_mode: bool) -> None:
        report = lotman.report_from(json)
        if not self._all.may_change(report.lot, self.caller):
            raise UsageError("not allowed")
        self.used = lotman.reported(self.used, [report], delta=delta_mode)

    def update_lot_usage_by_dir(self, json: list[Any], delta_mode: bool) -> None:
        self.used = lotman.reported(self.used, lotman.reports_by_path(self._all, json), delta=delta_mode)

    def get_lot_dirs(self, lot_name: str, recursive: bool) -> list[dict[str, Any]]:
        names = [lot_name, *(self._all.descendants(lot_name) if recursive else ())]
        found = [lotman.path(name, claim) for name in names for claim in self._all[name].claims]
        return sorted(found, key=lambda one: one["path"])

    def get_lots_from_dir(self, dir: str, recursive: bool) -> list[str]:
        lot = self._all.of(dir).lot
        return [lot, *(self._all.ancestors(lot) if recursive else ())]

    def __getattr__(self, name: str) -> Callable[..., list[str]]:
        question = Question(name.removeprefix("get_lots_past_"))

        def past(recursive: bool = False, recursive_quota: bool = False, recursive_children: bool = False) -> list[str]:
            return sorted(
                self._all.past(
                    question,
                    self.used,
                    NOW,
                    count_descendants=recursive_quota,
                    with_descendants=recursive or recursive_children,
                )
            )

        return past

    @property
    def _all(self) -> Lots:
        if self.lots is None:
            raise UsageError("the default lot must be there first")
        return self.lots


#: Where our answer is another one, by case and step: because LotMan's is plainly wrong, or contradicts its own pages.
OURS: dict[str, dict[int, tuple[int, Any]]] = {
    "default_first": {14: (-1, None), 15: (0, ["a", "default"])},  # a lot that would be deleted before it expires
    "path_exclusive": {  # a path that belongs to a lot does not change hands without a word
        4: (-1, None),
        5: (0, ["A"]),
        6: (0, [{"lot_name": "A", "path": "/p/", "recursive": True, "exclude": False}]),
        7: (-1, None),  # B was refused, so it is not there
        8: (-1, None),
        9: (0, ["A"]),
        11: (0, [{"lot_name": "A", "path": "/p/", "recursive": True, "exclude": False}]),
        **dict.fromkeys(range(12, 18), (-1, None)),
    },
    "usage_opp_bug": {
        7: (0, {"opportunistic_GB": {"self_contrib": 0.0}}),
        10: (0, {"opportunistic_GB": {"self_contrib": 3.0}}),
    },
    "by_dir": {24: (0, {"num_objects": {"self_contrib": 3.0}, "total_GB": {"self_contrib": 3.0}})},
    "by_dir_deep_bug": {
        5: (0, {"num_objects": {"self_contrib": 6.0}, "total_GB": {"self_contrib": 6.0}}),
        6: (0, {"num_objects": {"self_contrib": 4.0}, "total_GB": {"self_contrib": 4.0}}),
        8: (0, None),
        10: (0, {"num_objects": {"self_contrib": 5.0}, "total_GB": {"self_contrib": 1.0}}),
    },
    "removal_root": {12: (0, ["A"])},  # a lot that was removed is nobody's parent any more
    "removal_non_orphans": {10: (0, ["A"]), 11: (0, ["A", "S"])},
    "cycles": {  # a parent must exist
        16: (-1, None),
        17: (0, ["B"]),
        18: (-1, None),
        19: (0, ["B"]),
        21: (-1, None),
        22: (0, ["B"]),
        24: (0, ["D"]),
    },
    "update_lot": {17: (0, None), 18: (0, ["C"]), 20: (0, ["dave"])},  # a change is made whole, or not at all
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_calls_are_answered_as_lotman_answers_them(case: dict[str, Any]) -> None:
    """A site that comes from LotMan would find its lots evicted by other rules."""
    driver, ours = Driver(), OURS.get(case["id"], {})
    for number, step in enumerate(case["steps"]):
        assert _answer(driver, step) == ours.get(number, (step["rc"], step.get("out"))), f"step {number}: {step}"


def test_departures_are_only_from_what_is_recorded_as_wrong() -> None:
    """A rule of LotMan that we broke by mistake could be declared a fault of LotMan's."""
    for case in CASES:
        wrong = [number for number, step in enumerate(case["steps"]) if step.get("defect")]
        for number in OURS.get(case["id"], {}):  # or what follows from one
            assert case["kind"] == "defect" or min(wrong) <= number, (case["id"], number)


def _answer(driver: Driver, step: dict[str, Any]) -> tuple[int, Any]:
    """The return code and the answer of a call, as LotMan gives them."""
    try:
        answer = getattr(driver, step["call"])(**step["args"])
    except UsageError:
        return -1, None
    return (int(answer), None) if isinstance(answer, bool) else (0, answer)
