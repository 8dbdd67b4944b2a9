"""The lots of a cache and their rules, as pure values: every change returns other lots, and nothing touches a disk.

A lot is a share of the cache: an owner, the paths whose data counts for it, limits, and dates. Lots have parents, whose
limits hold for them, too. The rules are those of LotMan (https://github.com/PelicanPlatform/lotman), except where it
contradicts its own documentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fractions import Fraction
from itertools import accumulate
from typing import Any, NamedTuple

from sccache_dtool.errors import DoesNotExist, UsageError

#: The lot of all data that no other lot has. It is always there.
DEFAULT = "default"

#: Characters of a lot's name; it is part of commands, tables and pages.
LONGEST_NAME = 200

#: The largest size or number, and the last date (the end of the year 9999, in seconds since 1970), of a lot.
LARGEST, LAST = 10**18, 253_402_300_799

#: Lots that may be above each other. Each is looked at for each lot below it.
MOST_LEVELS = 100


class Claim(NamedTuple):
    """A path whose data counts for a lot, or, with `exclude`, does not."""

    path: str
    recursive: bool = True  # False: this very path only
    exclude: bool = False


def components(path: str) -> tuple[str, ...]:
    """Parts by which paths are compared: ``/foo`` does not contain ``/foobar``. A slash at the end means nothing."""
    return tuple(path.rstrip("/").split("/"))


def is_path(text: str) -> bool:
    """Whether a text is an absolute path, or says what it is of, as in ``user:ada`` and ``https://host/data``."""
    return text.startswith("/") or ":" in components(text)[0]


class Attribution(NamedTuple):
    """How much of what is given to a lot with several parents comes from one of them.

    None: an equal part of what does not come from the others.
    """

    parent: str
    dedicated: int | None = None
    opportunistic: int | None = None
    objects: int | None = None


@dataclass(frozen=True, slots=True)
class Lot:
    """A share of a cache. Sizes in bytes, times in seconds since 1970; None: without limit, or never."""

    name: str
    owner: str
    parents: frozenset[str]  # a root has itself as its only parent
    claims: tuple[Claim, ...] = ()
    dedicated: int = 0  # bytes that `clean` leaves
    opportunistic: int | None = None  # bytes beyond these that may be there as long as nobody needs the space
    objects: int | None = None  # files and directories
    created: float = 0.0  # before this time its paths are not consulted
    expires: float | None = None  # from this time on its data goes before that of others
    deletes: float | None = None  # from this time on its data goes at every `clean`
    attributions: tuple[Attribution, ...] = ()  # only reservations (`--strict`) depend on them

    def attributed(self, limit: str, parent: str) -> float:
        """How much of a limit comes from a parent; infinity for what is not limited."""
        whole = getattr(self, limit)
        if whole is None:
            return math.inf
        given = {one.parent: value for one in self.attributions if (value := getattr(one, limit)) is not None}
        if parent in given:
            return float(given[parent])
        others = len(self.parents - {self.name} - given.keys())
        return float((whole - sum(given.values())) / max(1, others))

    @property
    def is_root(self) -> bool:
        """Whether only its own owner may change it."""
        return self.parents == {self.name}


#: What a lot limits. Of each, the smallest value among a lot and its ancestors holds.
DATES = ("created", "expires", "deletes")
LIMITS = ("dedicated", "opportunistic", "objects", *DATES)


class Usage(NamedTuple):
    """What counts for a lot."""

    bytes: int = 0
    objects: int = 0
    bytes_being_written: int = 0
    objects_being_written: int = 0

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(*(mine + others for mine, others in zip(self, other, strict=True)))


class Share(NamedTuple):
    """Bytes of a lot and of its descendants that are within one of its limits; its own fill it first."""

    own: int
    descendants: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.own + self.descendants


class Balance(NamedTuple):
    """What a lot has of its own, and what its descendants have, each counted once."""

    lot: Lot
    own: Usage
    descendants: Usage

    @property
    def total(self) -> Usage:
        """Both together; part of it may be above all limits."""
        return self.own.plus(self.descendants)

    @property
    def dedicated(self) -> Share:
        """What is within `Lot.dedicated`."""
        return _divided(self.own.bytes, self.descendants.bytes, self.lot.dedicated)

    @property
    def opportunistic(self) -> Share:
        """What is beyond that, and within `Lot.opportunistic`."""
        dedicated = self.dedicated
        own, descendants = self.own.bytes - dedicated.own, self.descendants.bytes - dedicated.descendants
        return _divided(own, descendants, self.lot.opportunistic)


def _divided(own: int, descendants: int, limit: int | None) -> Share:
    if limit is None:
        return Share(own, descendants)
    mine = min(own, limit)
    return Share(mine, min(descendants, limit - mine))


class Question(StrEnum):
    """What a lot may be past."""

    DELETION = "del"
    EXPIRATION = "exp"
    OPPORTUNISTIC = "opp"
    OBJECTS = "obj"
    DEDICATED = "ded"


class Restriction(NamedTuple):
    """The value of a limit that holds for a lot, and the lot that it comes from; None: there is no limit."""

    value: float | None
    lot: str


class Match(NamedTuple):
    """The lot that a path belongs to, and by which of its claims; None for the default lot, which needs none."""

    lot: str
    claim: Claim | None


class Capacity(NamedTuple):
    """What of the limits of a lot is not given to the lots directly below it; None: without limit."""

    dedicated: int
    opportunistic: int | None
    objects: int | None


class NotAllowed(UsageError):
    """The caller owns neither a lot nor any of its ancestors."""


class Lots:
    """All lots of a cache. Immutable: what changes them returns others, checked as a whole."""

    def __init__(self, lots: Iterable[Lot] = ()) -> None:
        """Raises UsageError for lots that contradict each other. The default lot is added if it is missing."""
        self._lots = {lot.name: lot for lot in lots}
        self._lots.setdefault(DEFAULT, Lot(DEFAULT, "", frozenset({DEFAULT})))
        self._children: dict[str, set[str]] = {name: set() for name in self._lots}
        for lot in self._lots.values():
            for parent in lot.parents - {lot.name}:
                if parent not in self._lots:
                    raise UsageError(f"lot {lot.name!r} has the parent {parent!r}, which does not exist")
                self._children[parent].add(lot.name)
        self._check()
        self._claims = self._by_length()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lots) and self._lots == other._lots

    def __hash__(self) -> int:
        return hash(frozenset(self._lots.values()))

    def __iter__(self) -> Iterator[Lot]:
        return iter(self._lots.values())

    def __contains__(self, name: object) -> bool:
        return name in self._lots

    def __getitem__(self, name: str) -> Lot:
        """Raises UsageError if there is no such lot."""
        try:
            return self._lots[name]
        except KeyError:
            raise DoesNotExist(f"there is no lot {name!r}", hint="list the lots with: sc-dtool lot ls") from None

    # -- family ------------------------------------------------------------------------------------------------------

    def children(self, name: str) -> frozenset[str]:
        """The lots that have this one as a parent, itself not included."""
        return frozenset(self._children[self[name].name])

    def ancestors(self, name: str) -> list[str]:
        """All lots above this one, the nearest first, each once."""
        return _reachable(name, lambda one: sorted(self[one].parents))

    def descendants(self, name: str) -> list[str]:
        """All lots below this one, the nearest first, each once."""
        return _reachable(name, lambda one: sorted(self.children(one)))

    def owners(self, name: str) -> set[str]:
        """The owner of a lot, and those of its ancestors."""
        return {self[one].owner for one in (name, *self.ancestors(name))}

    def may_change(self, name: str, caller: str) -> bool:
        """Whether `caller` owns an ancestor of the lot, or the lot itself if it is a root."""
        lot = self[name]
        above = self.ancestors(name)
        return caller in {self[one].owner for one in (above or [name] if lot.is_root else above)}

    def downward(self) -> Iterator[str]:
        """The names of all lots, none before its parents."""
        missing = {lot.name: len(lot.parents - {lot.name}) for lot in self}
        ready = [name for name, count in missing.items() if not count]
        while ready:  # what is on a cycle, which `_check` refuses, is never ready
            name = ready.pop()
            yield name
            for child in self._children[name]:
                missing[child] -= 1
                if not missing[child]:
                    ready.append(child)

    # -- limits ------------------------------------------------------------------------------------------------------

    def restriction(self, name: str, limit: str) -> Restriction:
        """The smallest value of one of LIMITS among a lot and its ancestors; of equal ones the nearest lot's."""
        found = Restriction(None, name)
        for one in (name, *self.ancestors(name)):
            value = getattr(self[one], limit)
            if value is not None and (found.value is None or value < found.value):
                found = Restriction(value, one)
        return found

    def balances(self, used: Mapping[str, Usage]) -> dict[str, Balance]:
        """What each lot and its descendants have; `used`: what each has of its own."""
        nothing = Usage()
        found = {}
        for name, lot in self._lots.items():
            below = nothing
            for one in self.descendants(name):
                below = below.plus(used.get(one, nothing))
            found[name] = Balance(lot, used.get(name, nothing), below)
        return found

    def past(
        self,
        question: Question,
        used: Mapping[str, Usage],
        now: float,
        *,
        count_descendants: bool = True,
        with_descendants: bool = True,
    ) -> set[str]:
        """The lots that have reached a limit; to be at it is to be past it.

        `count_descendants`: what descendants have counts for a lot. `with_descendants`: if a lot is past, so are they.
        """
        if question in (Question.DELETION, Question.EXPIRATION):
            date = "deletes" if question is Question.DELETION else "expires"
            found = {lot.name for lot in self if (end := getattr(lot, date)) is not None and end <= now}
        elif count_descendants:
            found = {name for name, one in self.balances(used).items() if _reaches(question, one.lot, one.total)}
        else:
            found = {lot.name for lot in self if _reaches(question, lot, used.get(lot.name, Usage()))}
        if with_descendants:
            found.update(below for name in tuple(found) for below in self.descendants(name))
        return found

    # -- reservations ------------------------------------------------------------------------------------------------

    def capacity(self, name: str, begin: float, end: float = math.inf) -> Capacity:
        """What of a lot's limits may still be given to lots below it, from `begin` to `end` (seconds since 1970)."""
        lot = self[name]
        left: list[int | None] = []
        for limit in Capacity._fields:
            most = getattr(lot, limit)
            given = 0 if most is None else self._given(name, limit, begin, end)
            left.append(None if most is None else int(max(0, most - min(given, most))))
        return Capacity(left[0] or 0, *left[1:])

    def check_fit(self, before: Lots) -> None:
        """Raise UsageError if lots exceed what the lots above them have to give, and did not do so `before`."""
        was = before._excess()
        for (name, limit), excess in self._excess().items():
            if excess > was.get((name, limit), 0):
                if limit in ("expires", "deletes"):
                    what = f"last longer than it does: see {limit!r}"
                else:
                    space = "objects" if limit == "objects" else f"{limit} space"
                    what = f"exceed its {space} {'without limit' if excess == math.inf else f'by {excess:,.0f}'}"
                raise UsageError(
                    f"the lots below {name!r} would {what}",
                    hint=f"see what it has to give with: sc-dtool lot capacity {name}; or leave out --strict",
                )

    def _excess(self) -> dict[tuple[str, str], float]:
        """By how much lots below exceed the limits of lots, by the name of the lot and the limit."""
        found = {}
        for lot in self:
            below = [self[child] for child in self.children(lot.name)]
            for limit in Capacity._fields:
                most = getattr(lot, limit)
                if most is not None and (given := self._given(lot.name, limit, -math.inf, math.inf)) > most:
                    found[lot.name, limit] = given - most
            for date in ("expires", "deletes") if below else ():
                last = max(math.inf if (end := getattr(one, date)) is None else end for one in below)
                if (end := getattr(lot, date)) is not None and last > end:
                    found[lot.name, date] = last - end
        return found

    def _given(self, name: str, limit: str, begin: float, end: float) -> float:
        """The most of a limit that the lots directly below a lot have from it at any moment, until they expire."""
        changes: list[tuple[float, Fraction]] = []
        for one in (self[child] for child in self.children(name)):
            first, last = max(begin, one.created), math.inf if one.expires is None else one.expires
            if first >= last or (first >= end and first > begin):
                continue
            given = one.attributed(limit, name)
            if given == math.inf:
                return math.inf
            exact = Fraction(given)  # else what was added and taken away again would leave a rest
            changes += [(first, exact), (last, -exact)]
        changes.sort()  # what ends at a moment goes before what begins
        return float(max(accumulate((exact for _, exact in changes), initial=Fraction()), default=0))

    # -- paths -------------------------------------------------------------------------------------------------------

    def of(self, path: str, now: float | None = None) -> Match:
        """The lot that a path belongs to: that of the longest claim, unless the same lot excludes it by a longer one.

        An excluded path belongs to the lot of the next longest claim, and at last to the default lot, as do empty and
        relative paths. `now`: lots that are created later are not consulted.
        """
        parts = components(path) if is_path(path) else ()
        excluded: set[str] = set()
        for length in range(len(parts), 0, -1):
            there = [
                (lot, claim)
                for lot, claim in self._claims.get(parts[:length], ())
                if (claim.recursive or length == len(parts)) and (now is None or self._lots[lot].created <= now)
            ]
            for lot, claim in there:
                if not claim.exclude and lot not in excluded:
                    return Match(lot, claim)
            excluded.update(lot for lot, claim in there if claim.exclude)
        return Match(DEFAULT, None)

    # -- changes -----------------------------------------------------------------------------------------------------

    def add(self, lot: Lot, *, caller: str | None, children: Collection[str] = ()) -> Lots:
        """With one more lot; where a child of it had one of its parents as parent, the new lot takes that place.

        `caller`: who asks for it; None for somebody who may do everything. Anybody may add a root.
        Raises UsageError, and NotAllowed if the caller owns no ancestor of it, or may not change a child.
        """
        if lot.name in self:
            raise UsageError(f"lot {lot.name!r} exists already", hint=f"change it with: sc-dtool lot set {lot.name}")
        above = {one for parent in lot.parents - {lot.name} for one in (parent, *self.ancestors(parent))}
        if caller is not None and not lot.is_root and caller not in {self[one].owner for one in above}:
            raise _not_allowed(caller, lot.name, {self[one].owner for one in above})
        new = {**self._lots, lot.name: lot}
        for child in children:
            self._check_right(child, caller)
            new[child] = _with_parents(new[child], (new[child].parents - lot.parents - {child}) | {lot.name})
        return Lots(new.values())

    def update(self, name: str, *, caller: str | None, **changes: Any) -> Lots:
        """With other values of fields of a lot, but not of `name` and `created`."""
        lot = self[name]
        self._check_right(name, caller)
        unknown = changes.keys() - _CHANGEABLE
        if unknown:
            raise UsageError(f"{', '.join(sorted(unknown))} of a lot cannot be changed")
        new = replace(lot, **changes)
        if "attributions" not in changes:
            new = _with_parents(new, new.parents)
        return Lots({**self._lots, name: new}.values())

    def check_change(self, after: Lots, caller: str | None) -> None:
        """Raise NotAllowed if the caller may not put others in the place of these lots; None: may do all."""
        for lot in self:
            if lot.name not in after or after[lot.name] != lot:
                self._check_right(lot.name, caller)
        for lot in after:
            if lot.name not in self and not lot.is_root and caller is not None:
                owners = {self[one].owner for one in after.ancestors(lot.name) if one in self}
                if owners and caller not in owners:
                    raise _not_allowed(caller, lot.name, owners)

    def remove(
        self,
        name: str,
        *,
        caller: str | None,
        adopt_orphans: bool = False,
        adopt_all: bool = False,
        hand_down: bool = False,
    ) -> Lots:
        """Without a lot; its data belongs to whatever lot is the next to claim it.

        `adopt_orphans`: children without another parent get its parents. Without that they would become roots, and be
        free of all limits above them, so the removal is refused. `adopt_all`: the other children get them, too.
        `hand_down`: the lot's limits become those of its children, where theirs are wider.
        """
        lot = self[name]
        self._check_right(name, caller)
        if name == DEFAULT:
            raise UsageError("the default lot cannot be removed: data that no other lot claims belongs to it")
        children = [self[child] for child in sorted(self.children(name))]
        orphans = [child for child in children if child.parents <= {name, child.name}]
        if orphans and not (adopt_orphans or adopt_all):
            raise UsageError(
                f"lot {name!r} is the only parent of {_listed(child.name for child in orphans)}",
                hint="let its parents adopt them with --adopt-orphans, or remove them as well with --recursive",
            )
        adopted = children if adopt_all else orphans
        if adopted and lot.is_root:
            raise UsageError(
                f"lot {name!r} is a root, without parents that could adopt {_listed(child.name for child in adopted)}",
                hint="give them other parents first, with: sc-dtool lot set … --add-parent …",
            )
        new = {one.name: one for one in self if one.name != name}
        for child in children:
            parents = child.parents - {name} | (lot.parents - {name} if child in adopted else frozenset())
            narrower = _narrower(child, lot) if hand_down else {}
            with_others = _with_parents(child, parents)
            kept = () if narrower.keys() & {*Capacity._fields} else with_others.attributions
            new[child.name] = replace(with_others, **{**narrower, "attributions": kept})
        return Lots(new.values())

    def remove_all(self, name: str, *, caller: str | None) -> Lots:
        """Without a lot and all its descendants, also those that have another parent."""
        self._check_right(name, caller)
        going = {name, *self.descendants(name)}
        if DEFAULT in going:
            raise UsageError("the default lot cannot be removed: data that no other lot claims belongs to it")
        parents = {lot.name: lot.parents - going for lot in self if lot.name not in going}
        return Lots(_with_parents(self[name], left) for name, left in parents.items())

    # -- checks ------------------------------------------------------------------------------------------------------

    def _check_right(self, name: str, caller: str | None) -> None:
        if caller is not None and not self.may_change(name, caller):
            lot, above = self[name], self.ancestors(name)
            raise _not_allowed(caller, name, {self[one].owner for one in above} or {lot.owner})

    def _check(self) -> None:
        for lot in self:
            _check_values(lot)
        levels: dict[str, int] = {}
        for name in self.downward():
            levels[name] = 1 + max((levels[parent] for parent in self._lots[name].parents - {name}), default=0)
            if levels[name] > MOST_LEVELS:
                raise UsageError(f"lot {name!r} would be on level {levels[name]}; there can be {MOST_LEVELS}")
        if len(levels) < len(self._lots):
            raise UsageError(f"lots would be their own ancestors: {_listed(sorted(self._lots.keys() - levels.keys()))}")
        claimed: dict[tuple[str, ...], str] = {}
        for lot in self:
            own: set[tuple[str, ...]] = set()
            for claim in lot.claims:
                parts = components(claim.path)
                if parts in own:
                    raise UsageError(f"lot {lot.name!r} has the path {claim.path} twice")
                own.add(parts)
                if not claim.exclude and claimed.setdefault(parts, lot.name) != lot.name:
                    raise UsageError(
                        f"{claim.path} belongs to the lots {claimed[parts]!r} and {lot.name!r}: it can have only one",
                        hint=f"take it from the first with: sc-dtool lot unclaim {claim.path}",
                    )

    def _by_length(self) -> dict[tuple[str, ...], list[tuple[str, Claim]]]:
        found: dict[tuple[str, ...], list[tuple[str, Claim]]] = {}
        for lot in self:
            for claim in lot.claims:
                found.setdefault(components(claim.path), []).append((lot.name, claim))
        return found


_CHANGEABLE = {field.name for field in fields(Lot)} - {"name", "created"}


def _reachable(name: str, following: Callable[[str], Iterable[str]]) -> list[str]:
    """What can be reached from a lot, level by level, itself not included."""
    found = {name: None}
    for one in (level := [name]):
        for other in following(one):
            if other not in found:
                found[other] = None
                level.append(other)
    return list(found)[1:]


def _reaches(question: Question, lot: Lot, used: Usage) -> bool:
    match question:
        case Question.OBJECTS:
            return lot.objects is not None and used.objects >= lot.objects
        case Question.DEDICATED:
            return used.bytes >= lot.dedicated
        case _:
            return lot.opportunistic is not None and used.bytes >= lot.dedicated + lot.opportunistic


def _with_parents(lot: Lot, parents: frozenset[str]) -> Lot:
    """A lot with other parents; what came from those that it no longer has comes from the others."""
    kept = tuple(one for one in lot.attributions if one.parent in parents)
    if lot.attributions and parents - {lot.name} <= {one.parent for one in kept} and kept != lot.attributions:
        kept = ()
    return replace(lot, parents=parents, attributions=kept)


def _narrower(child: Lot, lot: Lot) -> dict[str, Any]:
    """The limits of a lot that are narrower than those of its child."""
    limits = {name: getattr(lot, name) for name in LIMITS if name != "created"}
    mine = {name: getattr(child, name) for name in limits}
    return {
        name: value
        for name, value in limits.items()
        if value is not None and (mine[name] is None or value < mine[name])
    }


def _check_values(lot: Lot) -> None:
    is_name = lot.name == lot.name.strip() and lot.name.isprintable() and "/" not in lot.name
    if not is_name or not 0 < len(lot.name) <= LONGEST_NAME:
        raise UsageError(f"{lot.name[:LONGEST_NAME]!r} cannot be the name of a lot")
    if not lot.owner.isprintable():
        raise UsageError(f"lot {lot.name!r}: {lot.owner!r} cannot be an owner")
    if not lot.parents:
        raise UsageError(f"lot {lot.name!r} has no parent; a root has itself as parent")
    for name in LIMITS:
        value, is_date = getattr(lot, name), name in DATES
        if value is not None and not 0 <= value <= (LAST if is_date else LARGEST):
            what = "a date before the year 10000" if is_date else f"a size or a number up to {LARGEST:,}"
            raise UsageError(f"lot {lot.name!r}: {name} is {str(value)[:40]}, which is not {what}")
    if lot.deletes is not None and lot.expires is not None and lot.deletes < lot.expires:
        raise UsageError(f"lot {lot.name!r} would be deleted before it expires")
    _check_attributions(lot)
    for claim in lot.claims:
        if not claim.path.isprintable() or not is_path(claim.path) or {".", ".."} & set(components(claim.path)):
            raise UsageError(
                f"lot {lot.name!r}: {claim.path!r} cannot be a path of a lot",
                hint="paths are absolute, or begin with what they are of, such as user:NAME, dataset:UUID, https://HOST",
            )


def _check_attributions(lot: Lot) -> None:
    named = [one.parent for one in lot.attributions]
    others = sorted(set(named) - (lot.parents - {lot.name}))
    if others or len(set(named)) < len(named):
        what = f"{_listed(others)}, which is not a parent of it" if others else "a parent twice"
        raise UsageError(f"lot {lot.name!r}: its attributions name {what}")
    for limit in Capacity._fields:
        whole, given = (
            getattr(lot, limit),
            [value for one in lot.attributions if (value := getattr(one, limit)) is not None],
        )
        if not given:
            continue
        if whole is None or min(given) < 0 or sum(given) > whole:
            raise UsageError(
                f"lot {lot.name!r}: {sum(given):,} of {limit} come from its parents, "
                f"and it has {'no limit' if whole is None else format(whole, ',')}"
            )
        if len(given) == len(lot.parents - {lot.name}) and sum(given) < whole:
            raise UsageError(
                f"lot {lot.name!r}: only {sum(given):,} of its {whole:,} of {limit} come from its parents",
                hint="leave out one parent: the rest comes from it",
            )


def _not_allowed(caller: str, name: str, owners: Collection[str]) -> NotAllowed:
    return NotAllowed(
        f"{caller or 'nobody'} may not change lot {name!r}",
        hint=f"those may who own a lot above it: {_listed(sorted(owners))}",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
