"""Sizes and durations as people type them."""

from __future__ import annotations

import pytest

from sccache_dtool.errors import Exit, UsageError
from sccache_dtool.units import parse_duration, parse_size, short_duration


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("512 B", 512),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1MB", 10**6),
        ("1MiB", 2**20),
        ("1.5GB", 1_500_000_000),
        ("10GiB", 10 * 2**30),
        ("1TB", 10**12),
        ("2 TiB", 2 * 2**40),
        ("3PB", 3 * 10**15),
        (" 1GB ", 10**9),
        ("0.1GB", 10**8),
        ("9007199254740993", 9007199254740993),  # more than a float can hold
        ("1125899906842624.5KiB", 1125899906842624 * 1024 + 512),
    ],
)
def test_sizes_mean_what_they_say(text: str, size: int) -> None:
    """`--retain-size` would keep another amount than the one asked for, and delete too much or too little."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "GB",
        "1G",
        "1g",
        "1 G",
        "1gb",
        "-1",
        "-1GB",
        "+1",
        "1e9",
        "1,5GB",
        "1.GB",
        ".5GB",
        "0.9",
        "1.5B",
        "0x10",
        "1 000",
        "1iB",
        "1BiB",
        "nan",
        "inf",
        "1GB\n1GB",
        "١GB",
        "9" * 400,
        "1" * 5000,
        f"{'9' * 400}.5GB",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """A typing error would be read as some size, perhaps 0, and everything deleted."""
    with pytest.raises(UsageError, match="as a size") as caught:
        parse_size(text)
    assert caught.value.exit_code is Exit.USAGE
    assert "KiB" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000), ("4w", 2_419_200), ("1.5h", 5400), ("0s", 0)],
)
def test_durations_mean_what_they_say(text: str, seconds: float) -> None:
    """A lease would end earlier, or an item be kept longer, than asked for."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "30", "d", "1 d", "-1d", "1y", "1M", "1ms", "12h30m", "1e3s", "nan", "infs", "1d\nx", "١d", "9" * 400 + "s"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A bare number would be seconds to one and days to another, and leases would end under their users."""
    with pytest.raises(UsageError, match="as a duration") as caught:
        parse_duration(text)
    assert "12h" in (caught.value.hint or "")


def test_a_duration_for_which_there_is_no_date_is_refused() -> None:
    """A lease "for ever" would get an end that nobody can read, and be taken for a lease without a holder."""
    with pytest.raises(UsageError, match="too long"):
        parse_duration("99999999w")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (90, "90 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d"), (86_400, "24 h")]
)
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    """People would be shown another duration than the one that counts."""
    assert short_duration(seconds) == text
