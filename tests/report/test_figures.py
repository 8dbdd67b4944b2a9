"""The figures of a report: pure functions over days and sizes."""

from __future__ import annotations

import pytest

from sccache_dtool.disk.filesystem import Room
from sccache_dtool.policy.thresholds import Limits, Mark
from sccache_dtool.report.figures import (
    AGES,
    DAY,
    SIZES,
    YEAR,
    Level,
    Removed,
    class_of,
    days_ago,
    fullness,
    levels,
    periods,
    span,
)

NOW = 1_700_000_000.0


def test_the_size_of_each_day_is_what_was_there() -> None:
    """The curve would show a cache that nobody had."""
    sizes = fullness({10: 100, 2: 5}, [Removed(20, 5, 1000), Removed(YEAR, 8, 7)])
    assert len(sizes) == YEAR + 1
    assert sizes[-1] == 105
    assert sizes[YEAR - 2] == 105
    assert sizes[YEAR - 4] == 100
    assert sizes[YEAR - 6] == 1100
    assert sizes[YEAR - 15] == 1007
    assert sizes[0] == 7


def test_nothing_was_ever_less_than_empty() -> None:
    """A record that is wrong would draw a curve below the axis."""
    assert min(fullness({}, [Removed(3, 5, 100)])) == 0


@pytest.mark.parametrize(("day", "expected"), [(0, 28), (28, 28), (29, 91), (91, 91), (92, YEAR), (YEAR, YEAR)])
def test_a_young_cache_is_not_a_speck_at_the_edge(day: int, expected: int) -> None:
    """The curve of the first week of a cache would be a line at the right edge of a year of nothing."""
    assert span(fullness({day: 1}, [])) == expected
    assert span(fullness({}, [])) == 28


def test_what_is_older_than_a_year_is_there_when_it_begins() -> None:
    """A cache of ten years would seem to begin empty a year ago."""
    assert days_ago(NOW - 4000 * DAY, NOW) == YEAR
    assert days_ago(NOW + 100, NOW) == 0
    assert fullness({YEAR: 9}, [])[0] == 9


def test_hits_are_uses_that_were_not_fetches() -> None:
    """A fetch would count as a hit, and the cache would seem better than it is."""
    found = periods({0: 5, 3: 1, 8: 2}, {0: 2, 9: 4}, {1: 100}, 28, NOW)
    assert len(found) == 28
    assert [(one.hits, one.misses) for one in found[-4:]] == [(1, 0), (0, 0), (0, 0), (3, 2)]
    assert found[-10][1:] == (0, 4, 0)
    assert found[-2].removed == 100
    weeks = periods({0: 5, 3: 1, 8: 2}, {0: 2}, {}, YEAR, NOW)
    assert len(weeks) == 53
    assert [(one.hits, one.misses) for one in weeks[-2:]] == [(2, 0), (4, 2)]
    assert weeks[-1].begin == NOW - 7 * DAY


@pytest.mark.parametrize(
    ("value", "classes", "label"),
    [
        (0, AGES, "up to 1 day"),
        (-5, AGES, "up to 1 day"),
        (8 * DAY, AGES, "7 to 30 days"),
        (1e12, AGES, "more than 365 days"),
        (10**9, SIZES, "100 MB to 1 GB"),
        (10**15, SIZES, "more than 100 GB"),
    ],
)
def test_every_age_and_size_is_in_one_class(value: float, classes: tuple[tuple[float, str], ...], label: str) -> None:
    """What is in no class would be missing in the sums."""
    assert classes[class_of(value, classes)][1] == label


def test_marks_are_shown_as_sizes_of_the_cache() -> None:
    """A mark of the file system would be drawn where the cache alone reaches it, though others are there as well."""
    room = Room(1000, 400, 10, 10)  # 600 used, of which 200 by the cache
    high, low = Mark(0.9, True), Mark(0.75, True)
    shares = levels(Limits(high=high, low=low), None, room, 200)
    assert shares == [
        Level("high mark (90% of the file system)", 500),
        Level("low mark (75% of the file system)", 350),
    ]
    capacity = levels(Limits(capacity=1000, high=high), 300, room, 200)
    assert capacity == [Level("capacity", 1000), Level("high mark (90%)", 900), Level("size to keep", 300)]
    assert levels(Limits(high=Mark(700, False), least_free=100), None, room, 200) == [
        Level("high mark", 700),
        Level("least free space", 500),
    ]
    assert levels(Limits(high=high, low=low), None, None, 200) == []
    assert levels(Limits(), None, room, 200) == []
