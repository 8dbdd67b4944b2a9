"""How full a cache may be: high and low marks, in bytes and in entries, and a floor for what must be free."""

from __future__ import annotations

import re

from sccache_dtool.disk.filesystem import Room
from sccache_dtool.errors import UsageError
from sccache_dtool.tuples import NamedTuple
from sccache_dtool.units import SIZE_FORMS, parse_size

#: In which order copies go; the first is what is done if nobody says. How each is reckoned: `policy/rules.py`.
ORDERS = ("cost", "lru", "lfu", "largest", "oldest")


#: In which order lots give way: past their deletion, expired, over their opportunistic space, over their number of
#: objects, over their dedicated space. What is within all that goes only on request.
LOT_ORDER = ("del", "exp", "opp", "obj", "ded")


class Mark(NamedTuple):
    """A share of the capacity, or a number of bytes or entries."""

    value: float
    is_share: bool

    def of(self, capacity: int) -> int:
        """The mark in bytes or entries."""
        return int(self.value * capacity) if self.is_share else int(self.value)

    def __str__(self) -> str:
        return f"{100 * self.value:g}%" if self.is_share else f"{self.value:.0f}"


#: Up to here a number without a unit is taken for one whose unit was forgotten.
_MOST_FORGOTTEN = 100


def parse_limit(text: str) -> int:
    """A size that a cleaning goes by. Raises UsageError, also for what would empty a cache by mistake."""
    return _meant(text, parse_size(text), "bytes", "give it a unit, such as TB")


def parse_mark(text: str) -> Mark:
    """A mark in bytes: ``"90%"`` of the capacity, or a size. Raises UsageError, also for 90: bytes are not meant."""
    hint = "give 90% for a percentage, or a size: 9TB"
    return _share(text) or Mark(_meant(text, parse_size(text), "bytes", hint), False)


def parse_entries_mark(text: str) -> Mark:
    """A mark in entries: ``"90%"``, or a number. Raises UsageError."""
    share = _share(text)
    if share is not None:
        return share
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise UsageError(
            f"cannot read {text!r} as a number of files", hint="give a number, or a percentage such as 90%"
        )
    return Mark(_meant(text, int(text), "files", "give 90% for a percentage, or a number above 100"), False)


def parse_fraction(value: object) -> Mark:
    """A mark as the data manager writes it: a fraction between 0 and 1. Raises UsageError."""
    try:
        fraction = float(str(value))
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise UsageError(f"{value!r} is not a fraction", hint="give a number above 0 and at most 1, such as 0.9")
    _check_not_none(str(value), fraction)
    return Mark(fraction, True)


def _share(text: str) -> Mark | None:
    match = re.fullmatch(r"(?a)(\d{1,3}(?:\.\d{1,6})?)\s*%", text.strip())
    if match is None:
        if "%" in text:
            raise UsageError(f"cannot read {text!r} as a percentage", hint=f"give 90%, or {SIZE_FORMS}")
        return None
    share = float(match[1]) / 100
    if share > 1:
        raise UsageError(f"{text!r} is more than 100%", hint="give 100% or less")
    _check_not_none(text, share)
    return Mark(share, True)


def _meant(text: str, value: int, unit: str, hint: str) -> int:
    """`value`. Raises UsageError if its unit was forgotten: 90 bytes are nobody's mark, and empty every cache."""
    _check_not_none(text, value)
    if value <= _MOST_FORGOTTEN and text.strip().isdecimal():
        raise UsageError(f"{text!r} would be {value} {unit}", hint=hint)
    return value


def _check_not_none(text: str, value: float) -> None:
    """Raise UsageError for 0, as of a variable that was never set."""
    if value == 0:
        raise UsageError(
            f"{text!r} is not a limit", hint="to remove everything that is not in use: sc-dtool clean --all"
        )


class Limits(NamedTuple):
    """When to begin to clean, and where to stop. Shares are of the capacity or, without one, of the file system."""

    capacity: int | None = None  # bytes
    high: Mark | None = None
    low: Mark | None = None
    entries_high: Mark | None = None
    entries_low: Mark | None = None
    least_free: int | None = None  # bytes that the file system must have left

    @property
    def of_file_system(self) -> bool:
        """Whether what others have on the file system, or what is in the trash, makes a difference."""
        in_bytes = self.capacity is None and self.high is not None and self.high.is_share
        in_entries = self.entries_high is not None and self.entries_high.is_share
        return in_bytes or in_entries or self.least_free is not None


def check(limits: Limits) -> Limits:
    """`limits`. Raises UsageError for a low mark that would never be used, or that is above the high one."""
    high = Mark(1.0, True) if limits.high is None and limits.capacity is not None else limits.high
    pairs = (high, limits.low, "watermark"), (limits.entries_high, limits.entries_low, "watermark for files")
    for high, low, what in pairs:
        if low is not None and high is None:
            text = f"the low {what}, {low}, needs a high {what}: without one, cleaning never starts"
            raise UsageError(text, hint="give both")
        if low and high and low.is_share == high.is_share and low.value > high.value:
            raise UsageError(
                f"the low {what}, {low}, is above the high one, {high}",
                hint="cleaning starts above the high one and stops at the low one",
            )
    return limits


class Trashed(NamedTuple):
    """Space used by the trash, and when it expires."""

    bytes: int = 0
    entries: int = 0
    until: int = 0  # seconds since 1970: so long the last of it is kept for `restore`; 0: nothing is

    def more(self, size: int, entries: int, until: int) -> Trashed:
        """With so much put there besides."""
        return Trashed(self.bytes + size, self.entries + entries, max(self.until, until))


class Excess(NamedTuple):
    """By how many bytes and entries something is above what is allowed; false if it is not."""

    bytes: int = 0
    entries: int = 0

    def __bool__(self) -> bool:
        return bool(self.bytes or self.entries)


class Spare(NamedTuple):
    """What a file system can take, once the trash is empty, before it is over a mark; None: it has none of that kind.

    Below 0: it is over its mark by so much.
    """

    bytes: int | None = None
    entries: int | None = None

    def withheld(self, size: int, entries: int, trashed: Trashed) -> Excess:
        """By how many bytes and entries it stays over its marks because of the trash alone, with so much removed."""
        return Excess(_lacking(self.bytes, size, trashed.bytes), _lacking(self.entries, entries, trashed.entries))


def _lacking(spare: int | None, removed: int, trashed: int) -> int:
    return 0 if spare is None else min(trashed, max(0, trashed - spare - removed))


class Goal(NamedTuple):
    """What a cache is to come down to; None: whatever it is. Below 0 if others have too much: it is missed."""

    bytes: int | None = None
    entries: int | None = None

    def missed(self, size: int, entries: int) -> Excess:
        """By how many bytes and entries it is missed."""
        over = 0 if self.bytes is None else max(0, size - self.bytes)
        return Excess(over, 0 if self.entries is None else max(0, entries - self.entries))


def goal(limits: Limits, retain_size: int | None, size: int, entries: int, room: Room | None) -> Goal | None:
    """What a cache that holds `size` bytes in `entries` must come down to; None if nothing is over its mark.

    A share of a capacity is compared with what the cache holds; a share of the file system with what is used there,
    by whomever: what the others use cannot be cleaned, but the cache can make up for it. `room` is what there is
    without the trash: who evicted it has made that room, and would make it again and again until it comes.
    """
    sizes = [] if retain_size is None else [retain_size]
    if limits.capacity is not None:
        sizes += _come_down(limits.high or Mark(1.0, True), limits.low, limits.capacity, size, size)
    elif limits.high is not None and not limits.high.is_share:
        sizes += _come_down(limits.high, limits.low, limits.high.of(0), size, size)
    elif limits.high is not None and room is not None:
        sizes += _come_down(limits.high, limits.low, room.bytes, room.bytes - room.free, size)
    if limits.least_free is not None and room is not None and room.free < limits.least_free:
        sizes.append(size - (limits.least_free - room.free))
    counts = []
    high = limits.entries_high
    if high is not None and not high.is_share:
        counts += _come_down(high, limits.entries_low, high.of(0), entries, entries)
    elif high is not None and room is not None and room.entries:  # some file systems do not count
        counts += _come_down(high, limits.entries_low, room.entries, room.entries - room.free_entries, entries)
    if not sizes and not counts:
        return None
    return Goal(min(sizes, default=None), min(counts, default=None))


def check_floor(limits: Limits, room: Room) -> None:
    """Raise UsageError for a floor that no cleaning can reach: all would be removed, again and again."""
    if limits.least_free is not None and limits.least_free >= room.bytes:
        import humanize

        wanted, size = humanize.naturalsize(limits.least_free), humanize.naturalsize(room.bytes)
        raise UsageError(
            f"{wanted} cannot be kept free: the file system has only {size} in total",
            hint="lower --min-free, or min_free in config.toml",
        )


def spare(limits: Limits, room: Room | None) -> Spare:
    """What there is before the file system is over one of its marks; `room` as for `goal`."""
    if room is None:
        return Spare()
    sizes, counts = [], []
    if limits.capacity is None and limits.high is not None and limits.high.is_share:
        sizes.append(limits.high.of(room.bytes) - (room.bytes - room.free))
    if limits.least_free is not None:
        sizes.append(room.free - limits.least_free)
    if limits.entries_high is not None and limits.entries_high.is_share and room.entries:
        counts.append(limits.entries_high.of(room.entries) - (room.entries - room.free_entries))
    return Spare(min(sizes, default=None), min(counts, default=None))


def _come_down(high: Mark, low: Mark | None, capacity: int, used: int, own: int) -> list[int]:
    """What of the cache's `own` bytes may stay if `used` is over the high mark: what brings it to the low one."""
    if used <= high.of(capacity):
        return []
    return [own - (used - min(high.of(capacity), (low or high).of(capacity)))]
