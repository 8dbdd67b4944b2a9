"""Lots over HTTP, in the shape of Pelican's service: below ``/api/v1.0/lots``, sizes in GB and times in milliseconds.

See https://github.com/PelicanPlatform/pelican. What it derives from a token is derived from the user who asks: the
owner of a new lot. Its parent is the lot that its first path belongs to.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from sccache_dtool.cache import Cache
from sccache_dtool.errors import UsageError
from sccache_dtool.lots import lotman
from sccache_dtool.lots.model import DEFAULT, LIMITS, Attribution, Claim, Lot, Lots, is_path
from sccache_dtool.serve.access import Owning, Peer, Reading, Writing
from sccache_dtool.serve.answers import errors
from sccache_dtool.serve.look import one_scan
from sccache_dtool.serve.service import cache_of

router = APIRouter(prefix="/api/v1.0/lots", tags=["lots"])

#: Pelican's names of limits, and LotMan's.
_LIMITS = {
    "dedicatedGB": "dedicated_GB",
    "opportunisticGB": "opportunistic_GB",
    "maxNumObjects": "max_num_objects",
    "creationTimeMs": "creation_time",
    "expirationTimeMs": "expiration_time",
    "deletionTimeMs": "deletion_time",
}

#: The same in the order of the model's names of limits.
_NAMES = dict(zip(LIMITS, _LIMITS, strict=True))

#: And of axes of usage.
_USAGE = {
    "dedicatedGB": "dedicated_GB",
    "opportunisticGB": "opportunistic_GB",
    "totalGB": "total_GB",
    "numObjects": "num_objects",
    "gbBeingWritten": "GB_being_written",
    "objectsBeingWritten": "objects_being_written",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LotPath(_Strict):
    """A path whose data counts for a lot."""

    path: str = Field(min_length=1)
    recursive: bool = False


class Attributes(_Strict):
    """Limits of a lot. What is left out stays, or is without limit; -1 is without limit."""

    dedicatedGB: float | None = None
    opportunisticGB: float | None = None
    maxNumObjects: int | None = None
    creationTimeMs: int | None = None
    expirationTimeMs: int | None = None
    deletionTimeMs: int | None = None


class Attributed(_Strict):
    """How much of the limits of a lot comes from one of its parents. The rest comes from the others, in equal parts."""

    dedicatedGB: float | None = None
    opportunisticGB: float | None = None
    maxNumObjects: int | None = None


class NewLot(_Strict):
    """A lot to be created; without a name it gets a UUID."""

    lotName: str | None = None
    paths: list[LotPath] = Field(min_length=1)
    managementPolicyAttrs: Attributes
    parentAttributions: dict[str, Attributed] = {}


class ChangedLot(_Strict):
    """What is to be changed of a lot. Attributions take the place of all that there were."""

    managementPolicyAttrs: Attributes = Attributes()
    parentAttributions: dict[str, Attributed] | None = None


class Reclaiming(_Strict):
    """Why a lot is reclaimed."""

    reason: str = Field(default="", max_length=1000)


class LotPathShown(TypedDict):
    """A path of a lot."""

    path: str
    recursive: bool
    lotName: str


class AttributedShown(TypedDict, total=False):
    """What of the limits of a lot comes from one of its parents."""

    dedicatedGB: float
    opportunisticGB: float
    maxNumObjects: int


class Reservation(TypedDict):
    """A lot. A limit that is left out does not limit, and a time that is left out never comes."""

    reservationId: str
    paths: list[LotPathShown]
    owner: str
    parents: list[str]
    status: str
    dedicatedGB: float
    opportunisticGB: NotRequired[float]
    maxNumObjects: NotRequired[int]
    creationTimeMs: NotRequired[int]
    expirationTimeMs: NotRequired[int]
    deletionTimeMs: NotRequired[int]
    parentAttributions: NotRequired[dict[str, AttributedShown]]


class LotList(TypedDict):
    """Names of lots."""

    lots: list[str]


class Children(TypedDict):
    """The lots below a lot."""

    lotName: str
    children: list[str]


class Simple(TypedDict):
    """That something was done."""

    status: str
    msg: str


class Axis(TypedDict):
    """What a lot has itself, what those below it have, and both."""

    selfContrib: float
    childrenContrib: float
    total: float


class UsageShown(TypedDict, total=False):
    """What a lot uses. An axis without anything is left out."""

    dedicatedGB: Axis
    opportunisticGB: Axis
    totalGB: Axis
    numObjects: Axis
    gbBeingWritten: Axis
    objectsBeingWritten: Axis


class Restricting(TypedDict):
    """The value of a limit that holds, and the lot that it comes from; -1: without limit."""

    lotName: str
    value: float


class Policy(TypedDict):
    """The limits that hold for a lot: the smallest of it and the lots above it."""

    dedicatedGB: Restricting
    opportunisticGB: Restricting
    maxNumObjects: Restricting
    creationTimeMs: Restricting
    expirationTimeMs: Restricting
    deletionTimeMs: Restricting


class Capacity(TypedDict):
    """What of the limits of a lot is not given to the lots directly below it, and what is; -1: without limit."""

    availableDedicatedGB: float
    availableOpportunisticGB: float
    availableMaxNumObjects: int
    availableTotalGB: float
    peakDedicatedGB: float
    peakOpportunisticGB: float
    peakMaxNumObjects: int
    peakTotalGB: float


class Reclaimed(TypedDict):
    """What became of a reclamation."""

    lotName: str
    status: str
    reason: str
    reclaimedAtMs: int


def _caller(cache: Cache, peer: Peer) -> str | None:
    """In whose name lots are changed; None for somebody who may change all."""
    return None if peer.is_owner and cache.manages_lots() else peer.user


def _reservation(lots: Lots, lot: Lot, now: float) -> Reservation:
    made: dict[str, Any] = {
        "reservationId": lot.name,
        "paths": [
            {"path": one.path, "recursive": one.recursive, "lotName": lot.name} for one in lot.claims if not one.exclude
        ],
        "owner": lot.owner,
        "parents": sorted(lot.parents),
        "status": _status(lot, now),
    }
    for name, key in _NAMES.items():
        value = getattr(lot, name)
        if value is not None and (value or name in ("dedicated", "opportunistic", "objects")):
            made[key] = lotman.limit(name, value)
    if lot.attributions:
        made["parentAttributions"] = {one.parent: _attributed(one) for one in lot.attributions}
    return made  # type: ignore[return-value]


def _status(lot: Lot, now: float) -> str:
    if now < lot.created:
        return "pending"
    if lot.deletes is not None and now >= lot.deletes:
        return "deleted"
    return "expired" if lot.expires is not None and now >= lot.expires else "active"


def _limits(given: Attributes) -> dict[str, Any]:
    """Fields of a lot. Raises UsageError."""
    values = given.model_dump(exclude_none=True)
    never = {key: None for key in ("expirationTimeMs", "deletionTimeMs") if values.get(key) == lotman.UNBOUNDED}
    found = lotman.limits({_LIMITS[key]: values[key] for key in values if key not in never}, all_of_them=False)
    return found | {name: None for name, key in _NAMES.items() if key in never}


def _attributed(one: Attribution) -> dict[str, float]:
    amounts = {name: value for name in LIMITS[:3] if (value := getattr(one, name)) is not None}
    return {_NAMES[name]: lotman.limit(name, value) for name, value in amounts.items()}


def _attributions(given: Mapping[str, Attributed]) -> tuple[Attribution, ...]:
    """What comes from which parent. Raises UsageError."""
    values = {parent: one.model_dump(exclude_none=True) for parent, one in given.items()}
    return lotman.attributions_from(
        {parent: {_LIMITS[key]: value for key, value in amounts.items()} for parent, amounts in values.items()}
    )


@router.get("", responses=errors(), summary="List the lots")
def list_lots(
    request: Request,
    peer: Reading,
    owner: Annotated[str | None, Query(description="Only lots of this owner.")] = None,
    recursive: Annotated[bool, Query(description="Not only roots.")] = True,
) -> LotList:
    """The names of all lots."""
    lots = cache_of(request).lots().lots
    return {"lots": sorted(one.name for one in lots if owner in (None, one.owner) and (recursive or one.is_root))}


@router.post("", status_code=201, responses=errors(409), summary="Create a lot")
def create_lot(request: Request, peer: Writing, body: NewLot) -> Reservation:
    """Create a lot of whoever asks, below the lot that its first path belongs to; otherwise it is a root."""
    cache = cache_of(request)
    name = body.lotName or str(uuid.uuid4())
    if body.managementPolicyAttrs.dedicatedGB is None:
        raise UsageError("dedicatedGB is missing", hint="a lot needs a size; 0 is one")
    now = cache.store.clock.wall()
    values = {"created": now, **_limits(body.managementPolicyAttrs)}
    claims = tuple(Claim(one.path, one.recursive) for one in body.paths)
    attributions = _attributions(body.parentAttributions)

    def make(lots: Lots) -> Lots:
        above = lots.of(claims[0].path, now).lot
        parents = frozenset({name if above == DEFAULT else above})
        lot = Lot(name, peer.user, parents, claims, **values, attributions=attributions)
        return lots.add(lot, caller=_caller(cache, peer))

    lots = cache.change_lots(make, f"create {name}").lots
    return _reservation(lots, lots[name], now)


@router.get("/by-path", responses=errors(), summary="Find the lot that a path belongs to")
def by_path(
    request: Request,
    peer: Reading,
    path: Annotated[str, Query(min_length=1)],
    recursive: Annotated[bool, Query(description="Also lots of paths below.")] = False,
    fromMs: Annotated[int, Query(description="At this time; 0: now.")] = 0,
) -> list[Reservation]:
    """The lot that a path belongs to; with `recursive`, also those that have paths below it."""
    cache = cache_of(request)
    lots, now = cache.lots().lots, cache.store.clock.wall()
    names = [lots.of(path, fromMs / 1000 if fromMs else now).lot]
    if recursive:
        whole = Claim(path)
        below = (lot.name for lot in lots for one in lot.claims if not one.exclude and _is_below(one, whole))
        names += [name for name in dict.fromkeys(below) if name not in names]
    return [_reservation(lots, lots[name], now) for name in names]


def _is_below(claim: Claim, whole: Claim) -> bool:
    from sccache_dtool.lots.model import components

    above = components(whole.path)
    return is_path(claim.path) and components(claim.path)[: len(above)] == above


@router.get("/by-path/capacity", responses=errors(), summary="Show what a lot can still give")
def capacity(
    request: Request,
    peer: Reading,
    path: Annotated[str, Query(min_length=1)],
    fromMs: Annotated[int, Query(ge=0, le=10**16)] = 0,
    toMs: Annotated[int, Query(ge=0, le=10**16)] = 0,
) -> Capacity:
    """What the lot that a path belongs to can still give to lots directly below it, in a time."""
    cache = cache_of(request)
    lots, now = cache.lots().lots, cache.store.clock.wall()
    begin = fromMs / 1000 if fromMs else now
    lot = lots[lots.of(path, begin).lot]
    found = lots.capacity(lot.name, begin, toMs / 1000 if toMs / 1000 > begin else math.nextafter(begin, math.inf))
    dedicated, objects = found.dedicated / lotman.GB, found.objects
    more = None if found.opportunistic is None else found.opportunistic / lotman.GB
    most = None if lot.opportunistic is None else lot.opportunistic / lotman.GB
    given, given_more = lot.dedicated / lotman.GB - dedicated, 0.0 if more is None or most is None else most - more
    return {
        "availableDedicatedGB": dedicated,
        "availableOpportunisticGB": lotman.UNBOUNDED if more is None else more,
        "availableMaxNumObjects": lotman.UNBOUNDED if objects is None else objects,
        "availableTotalGB": lotman.UNBOUNDED if more is None else dedicated + more,
        "peakDedicatedGB": given,
        "peakOpportunisticGB": given_more,
        "peakMaxNumObjects": 0 if objects is None or lot.objects is None else lot.objects - objects,
        "peakTotalGB": given + given_more,
    }


@router.get("/{lotName}", responses=errors(404), summary="Show a lot")
def get_lot(lotName: str, request: Request, peer: Reading) -> Reservation:
    """A lot."""
    cache = cache_of(request)
    lots = cache.lots().lots
    return _reservation(lots, lots[lotName], cache.store.clock.wall())


@router.patch("/{lotName}", responses=errors(404, 409), summary="Change the limits of a lot")
def change_lot(lotName: str, request: Request, peer: Writing, body: ChangedLot) -> Simple:
    """Change limits of a lot, and what of them comes from which parent. Its owner, parents and paths stay."""
    cache = cache_of(request)
    values = _limits(body.managementPolicyAttrs)
    if "created" in values:
        raise UsageError("creationTimeMs of a lot cannot be changed")
    if body.parentAttributions is not None:
        values["attributions"] = _attributions(body.parentAttributions)
    if not values:
        raise UsageError("nothing to change was given", hint="give limits in managementPolicyAttrs")
    cache.change_lots(lambda lots: lots.update(lotName, caller=_caller(cache, peer), **values), f"set {lotName}")
    return {"status": "success", "msg": "lot updated"}


@router.delete("/{lotName}", responses=errors(404, 409), summary="Remove a lot and all lots below it")
def delete_lot(lotName: str, request: Request, peer: Writing) -> Simple:
    """Remove a lot and all lots below it. Their data stays, and counts for the next lot that claims it."""
    cache = cache_of(request)
    cache.change_lots(lambda lots: lots.remove_all(lotName, caller=_caller(cache, peer)), f"rm {lotName}")
    return {"status": "success", "msg": "lot deleted"}


@router.post("/{lotName}/reclaim", responses=errors(404, 409), summary="Remove the idle data of a lot")
def reclaim(
    lotName: str,
    request: Request,
    peer: Owning,
    body: Reclaiming | None = None,
) -> Reclaimed:
    """Remove all data of a lot, and of the lots below it, that nobody uses, as `sc-dtool clean --lot` does."""
    from sccache_dtool.policy.rules import Rules

    cache = cache_of(request)
    lots, reason = cache.lots().lots, "" if body is None else body.reason
    lots[lotName]
    policy = cache.policy()
    rules = Rules(everything=True, lot=lotName, beyond_dedicated=True, exclude=policy.exclude, grace=policy.grace)
    done = cache.clean(rules, why=f"reclaim of lot {lotName}{f': {reason}' if reason.isprintable() and reason else ''}")
    return {
        "lotName": lotName,
        "status": "reclaimed" if done.removed else "alreadyReclaimed",
        "reason": reason,
        "reclaimedAtMs": int(cache.store.clock.wall() * 1000),
    }


@router.get("/{lotName}/children", responses=errors(404), summary="List the lots below a lot")
def children(lotName: str, request: Request, peer: Reading, recursive: bool = False) -> Children:
    """The lots directly below a lot, or all below it."""
    lots = cache_of(request).lots().lots
    found = lots.descendants(lotName) if recursive else lots.children(lotName)
    return {"lotName": lotName, "children": sorted(found)}


@router.get("/{lotName}/usage", responses=errors(404), summary="Show what a lot uses")
def usage(
    lotName: str,
    request: Request,
    peer: Reading,
    dedicatedGB: bool = True,
    opportunisticGB: bool = True,
    totalGB: bool = True,
    numObjects: bool = True,
    gbBeingWritten: bool = True,
    objectsBeingWritten: bool = True,
) -> UsageShown:
    """What a lot uses, from one scan of the cache. A parameter that is false leaves out that axis."""
    cache = cache_of(request)
    lots = cache.lots().lots
    lots[lotName]
    with one_scan(request):
        found = lotman.usage(lots.balances(cache.lot_usage(lots))[lotName])
    wanted: Mapping[str, bool] = {
        "dedicatedGB": dedicatedGB,
        "opportunisticGB": opportunisticGB,
        "totalGB": totalGB,
        "numObjects": numObjects,
        "gbBeingWritten": gbBeingWritten,
        "objectsBeingWritten": objectsBeingWritten,
    }
    made = {key: _axis(found[_USAGE[key]]) for key, is_wanted in wanted.items() if is_wanted}
    return {key: axis for key, axis in made.items() if axis["total"]}  # type: ignore[return-value]


def _axis(found: Mapping[str, float]) -> Axis:
    return {
        "selfContrib": found["self_contrib"],
        "childrenContrib": found["children_contrib"],
        "total": found["total"],
    }


@router.get("/{lotName}/policy", responses=errors(404), summary="Show the limits that hold for a lot")
def policy(lotName: str, request: Request, peer: Reading) -> Policy:
    """The limits that hold for a lot, and the lots that they come from."""
    lots = cache_of(request).lots().lots
    made = {}
    for name, key in _NAMES.items():
        found = lots.restriction(lotName, name)
        made[key] = {"lotName": found.lot, "value": lotman.limit(name, found.value)}
    return made  # type: ignore[return-value]
