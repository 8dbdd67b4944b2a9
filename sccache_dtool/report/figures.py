"""What a report shows, as one typed record, and the pure functions that make its parts of what a scan saw.

Days are counted backwards from now: day 0 is the last 24 hours. Sizes in bytes, times in seconds since 1970.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sccache_dtool.disk.filesystem import Room
from sccache_dtool.policy.thresholds import Limits, Mark

DAY = 86_400.0

#: Days that a report looks back, in whole weeks; and shorter times, for a cache that is younger.
YEAR = 53 * 7
_SPANS = (28, 91, YEAR)

#: Up to how many seconds, and up to how many bytes, each class of a histogram goes; the last one has no end.
AGES = (
    (DAY, "up to 1 day"),
    (7 * DAY, "1 to 7 days"),
    (30 * DAY, "7 to 30 days"),
    (90 * DAY, "30 to 90 days"),
    (180 * DAY, "90 to 180 days"),
    (365 * DAY, "180 to 365 days"),
    (float("inf"), "more than 365 days"),
)
SIZES = (
    (10**6, "up to 1 MB"),
    (10**8, "1 to 100 MB"),
    (10**9, "100 MB to 1 GB"),
    (10**10, "1 to 10 GB"),
    (10**11, "10 to 100 GB"),
    (float("inf"), "more than 100 GB"),
)


def class_of(value: float, classes: Sequence[tuple[float, str]]) -> int:
    """The number of the class that a value is in."""
    for number, (most, _) in enumerate(classes):
        if value <= most:
            return number
    return len(classes) - 1


def days_ago(moment: float, now: float) -> int:
    """The day of a moment. What is older than a report looks back is on the day `YEAR`."""
    return min(YEAR, max(0, int((now - moment) // DAY)))


# -- how full ----------------------------------------------------------------------------------------------------------


class Level(NamedTuple):
    """What the size of the cache is compared with."""

    name: str
    bytes: int


def levels(limits: Limits, retain_size: int | None, room: Room | None, own: int) -> list[Level]:
    """The limits of a policy, as sizes of the cache, which holds `own` bytes now; the highest first.

    A share of the file system is reached by what others store there as well: the level is where the cache would reach
    it while that stays as it is.
    """
    found = []
    others = 0 if room is None else room.bytes - room.free - own
    if limits.capacity is not None:
        found.append(Level("capacity", limits.capacity))

    def add(name: str, mark: Mark | None) -> None:
        if mark is None:
            return
        if not mark.is_share:
            found.append(Level(name, mark.of(0)))
        elif limits.capacity is not None:
            found.append(Level(f"{name} ({mark})", mark.of(limits.capacity)))
        elif room is not None:
            found.append(Level(f"{name} ({mark} of the file system)", mark.of(room.bytes) - others))

    add("high mark", limits.high)
    add("low mark", limits.low)
    if limits.least_free is not None and room is not None:
        found.append(Level("least free space", own + room.free - limits.least_free))
    if retain_size is not None:
        found.append(Level("size to keep", retain_size))
    return sorted((one for one in found if one.bytes >= 0), key=lambda one: -one.bytes)


class Removed(NamedTuple):
    """A copy that was in the cache from one day to another."""

    added: int
    removed: int
    bytes: int


def fullness(added: Mapping[int, int], removed: Iterable[Removed]) -> list[int]:
    """The size of the cache at the end of each day, from `YEAR` days ago to today.

    `added`: the bytes of what is there now, by the day on which it came.
    """
    changes = Counter(added)
    for one in removed:
        changes[one.added] += one.bytes
        changes[one.removed] -= one.bytes
    sizes, size = [], 0
    for day in range(YEAR, -1, -1):
        size += changes[day]
        sizes.append(max(0, size))
    return sizes


def span(sizes: Sequence[int]) -> int:
    """How many of the last days are worth showing: since there was anything, in whole weeks."""
    first = next((number for number, size in enumerate(sizes) if size), len(sizes))
    return next(days for days in _SPANS if len(sizes) - first <= days + 1)


class Period(NamedTuple):
    """What happened in some days, which began at `begin`."""

    begin: float
    hits: int
    misses: int
    removed: int  # bytes


def periods(
    used: Mapping[int, int], fetched: Mapping[int, int], removed: Mapping[int, int], days: int, now: float
) -> list[Period]:
    """What happened in the last `days`, week by week or, in a short time, day by day; all is given by day."""
    step = 7 if days > 91 else 1
    found = []
    for first in range(days - step, -1, -step):
        own = range(first, first + step)
        misses = sum(fetched.get(day, 0) for day in own)
        hits = max(0, sum(used.get(day, 0) for day in own) - misses)
        found.append(Period(now - (first + step) * DAY, hits, misses, sum(removed.get(day, 0) for day in own)))
    return found


# -- what the page shows -----------------------------------------------------------------------------------------------


class Amount(NamedTuple):
    """Some items or files."""

    items: int = 0
    bytes: int = 0


class Group(NamedTuple):
    """What a user has fetched, or what a dataset has."""

    name: str
    bytes: int = 0
    copies: int = 0
    loose: int = 0  # files that dtool left
    leases: int = 0
    uses: int = 0
    last: float = 0.0  # when it was last used


class LotFigures(NamedTuple):
    """What counts for a lot, and its limits; None: it has none."""

    name: str
    owner: str
    bytes: int
    objects: int
    dedicated: int
    most: int | None  # dedicated and opportunistic space


class Lease(NamedTuple):
    """Who holds an item."""

    item: str
    by: str
    since: float | None
    lasts: str  # until when, in words


class Removal(NamedTuple):
    """What the next cleaning would remove, and why."""

    name: str
    bytes: int
    uses: int
    idle_since: float
    lot: str
    why: str


class Reason(NamedTuple):
    """Why something stays."""

    text: str
    copies: int
    bytes: int


class NextClean(NamedTuple):
    """What the next cleaning by the policy would do. If `unknown` is not empty, it says why that is not known."""

    unknown: str = ""
    policy: tuple[str, ...] = ()  # its conditions
    within: bool = False  # no mark is exceeded
    removals: tuple[Removal, ...] = ()  # the first of them
    items: int = 0  # all of them
    bytes: int = 0
    missed: int = 0  # bytes by which the goal is missed even so
    dead: int = 0  # leases whose holder has ended
    kept: tuple[Reason, ...] = ()


class Cleaning(NamedTuple):
    """A cleaning in the past."""

    ended: float
    copies: int
    bytes: int
    by: str
    why: str
    missed: int
    failed: int


class Fetch(NamedTuple):
    """A download that runs, or that has failed or was interrupted."""

    item: str
    state: str
    by: str
    began: float | None
    ended: float | None
    message: str


class Usage(NamedTuple):
    """How often the cache was used, and what that has saved, since it was set up."""

    uses: int = 0
    hits: int = 0
    misses: int = 0
    leases: int = 0
    saved_bytes: int = 0
    saved_seconds: float = 0.0


class Figures(NamedTuple):
    """Everything that a report shows."""

    root: str
    id: str
    now: float
    bytes: int  # loose files included
    items: int
    loose: Amount
    trashed: Amount
    room: Room | None  # of the file system, if it says so
    levels: tuple[Level, ...]
    sizes: tuple[int, ...]  # at the end of each day of `days`, the oldest first
    days: int
    periods: tuple[Period, ...]
    usage: Usage
    idle: tuple[tuple[Amount, ...], ...]  # by class of age, and of size
    users: tuple[Group, ...]
    datasets: tuple[Group, ...]
    lots: tuple[LotFigures, ...]
    leases: tuple[Lease, ...]
    next_clean: NextClean
    cleanings: tuple[Cleaning, ...]  # the last ones
    fetches: tuple[Fetch, ...]
    failures: tuple[Fetch, ...]
    not_removed: tuple[tuple[str, str], ...]  # what cleanings failed to remove, and why
    unread: tuple[str, ...]  # the first warnings about what could not be read
    unread_count: int  # all of them
    unread_facts: int  # copies of which it is not known who fetched them

    @property
    def idle_by_age(self) -> tuple[Amount, ...]:
        """What is not in use, by class of age."""
        return tuple(Amount(*map(sum, zip(*row, strict=True))) for row in self.idle)

    @property
    def fill(self) -> Level | None:
        """What 100 % is: the capacity or, without one, what the cache and the free space have together."""
        capacity = next((one for one in self.levels if one.name == "capacity"), None)
        if capacity is not None or self.room is None:
            return capacity
        return Level("cache and free space", self.bytes + self.room.free)
