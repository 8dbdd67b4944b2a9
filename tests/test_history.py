"""Finished leases: counting, reading and folding, with crashes and others at work in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from faults import Counting, Failing, Interposing, LostReplies, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import EndedName, SegmentName
from sccache_dtool.protocol import history

FS = FileSystem()
HOLDER = "s0123456789ab-0123456789ab"


def name(number: int, end: int | None = None, how: str = "released") -> EndedName:
    """The name of a finished lease; ends are a second apart unless told otherwise."""
    return EndedName(f"{HOLDER}.{number}", 1_000 * (number + 1) if end is None else end, how)


@pytest.fixture
def past(tmp_path: Path) -> str:
    """A history without entries."""
    (tmp_path / "history").mkdir()
    return str(tmp_path / "history")


@pytest.fixture
def tmp(tmp_path: Path) -> str:
    """Where a segment may be written."""
    return str(tmp_path / "segment")


def add(past: str, *numbers: int) -> None:
    for number in numbers:
        os.symlink(history.encode_lease(number, f"user@host[{number}]"), f"{past}/{name(number)}")


def segments(past: str) -> list[str]:
    return [text for text in os.listdir(past) if SegmentName.parse(text)]


def entries(past: str) -> list[str]:
    return [text for text in os.listdir(past) if EndedName.parse(text)]


def uses(past: str) -> list[str]:
    """The numbers of all finished leases, as a reader gets them."""
    return [use.lease.rpartition(".")[2] for use in history.read(store_of(FS, None), past)]


# -- counting ----------------------------------------------------------------------------------------------------------


def test_no_history_is_no_use(past: str, warnings: list[str]) -> None:
    """An item that was never used would be an error, or would count as used."""
    assert history.summarise(store_of(FS, None), past)[:2] == (0, None)
    assert history.summarise(store_of(FS, None), f"{past}/missing")[:2] == (0, None)
    assert warnings == []


def test_uses_are_counted_from_names_in_one_call(past: str, warnings: list[str]) -> None:
    """A scan of a big cache would open a file for every use there ever was."""
    add(past, 0, 1, 2)
    fs = Counting()
    assert history.summarise(store_of(fs, None), past)[:2] == (3, 3.0)
    assert fs.kinds() == ["names"]


def test_a_segment_and_later_entries_are_counted_from_names_in_one_call(
    past: str, tmp: str, warnings: list[str]
) -> None:
    """Folding would make a scan slower instead of faster."""
    add(past, *range(5))
    history.fold(store_of(FS, None), past, tmp, least=2)
    add(past, 5, 6)
    fs = Counting()
    assert history.summarise(store_of(fs, None), past)[:2] == (7, 7.0)
    assert fs.kinds() == ["names"]


def test_an_entry_as_old_as_the_segment_is_not_counted_from_its_name(past: str, tmp: str, warnings: list[str]) -> None:
    """A use that is in the segment and still an entry, after a crash, would be counted twice."""
    add(past, 0, 1, 2)
    fs = Failing()
    fs.fail("unlink", errno.EIO, within=str(name(2)))
    with pytest.raises(OSError, match="Input/output"):
        history.fold(store_of(fs, None), past, tmp, least=2)
    assert len(segments(past)) == 1
    assert str(name(2)) in entries(past)
    assert history.summarise(store_of(FS, None), past)[:2] == (3, 3.0)


def test_a_late_entry_with_an_early_end_is_counted(past: str, tmp: str, warnings: list[str]) -> None:
    """A use of a host whose clock is behind would not be counted, because it seems to be older than the segment."""
    add(past, 3, 4, 5)
    history.fold(store_of(FS, None), past, tmp, least=2)
    add(past, 0)
    assert history.summarise(store_of(FS, None), past)[:2] == (4, 6.0)


def test_a_stranger_in_the_history_is_told_of_and_left(past: str, tmp: str, warnings: list[str]) -> None:
    """Somebody's file would be counted as a use, or deleted with the entries of a fold."""
    add(past, 0, 1)
    Path(past, "README").write_text("mine")
    assert history.summarise(store_of(FS, None), past).uses == 2
    assert "README" in warnings[0]
    history.fold(store_of(FS, None), past, tmp, least=2)
    assert Path(past, "README").read_text() == "mine"


def test_a_history_that_cannot_be_listed_is_an_error(past: str, warnings: list[str]) -> None:
    """A missing permission would look like "never used", and a popular item would be evicted."""
    fs = Failing()
    fs.fail("names", errno.EACCES)
    with pytest.raises(PermissionError):
        history.summarise(store_of(fs, None), past)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_uses_are_read_with_who_and_when_and_how(past: str, warnings: list[str]) -> None:
    """`log` would not tell who used an item, or that a killed job's use was ended by a reaper."""
    os.symlink(history.encode_lease(1_800_000_000.5, "ada@node7[123]"), f"{past}/{name(7, 1_800_000_060_000)}")
    os.symlink(history.encode_lease(1_800_000_001, "bob@node8[5]"), f"{past}/{name(8, 1_800_000_070_000, 'reaped')}")
    first, second = history.read(store_of(FS, None), past)
    assert first == (f"{HOLDER}.7", 1_800_000_000.5, 1_800_000_060.0, "ada@node7[123]", "released")
    assert (second.by, second.how) == ("bob@node8[5]", "reaped")


def test_a_damaged_record_is_still_a_use(past: str, warnings: list[str]) -> None:
    """A use whose record is damaged would not be counted, or would end `log` with a traceback."""
    os.symlink("no time here", f"{past}/{name(0)}")
    os.mkdir(f"{past}/{name(1)}")
    assert [(use.since, use.by) for use in history.read(store_of(FS, None), past)] == [(None, "?"), (None, "?")]


def test_a_record_does_not_drive_the_terminal(past: str, warnings: list[str]) -> None:
    """A record that somebody made by hand could clear the screen of whoever reads the log."""
    os.symlink("2026-11-21T09:30:12.000Z \x1b[2Jeve\nroot", f"{past}/{name(0)}")
    (use,) = history.read(store_of(FS, None), past)
    assert use.by == "�[2Jeve�root"


# -- folding -----------------------------------------------------------------------------------------------------------


def test_few_entries_are_not_folded(past: str, tmp: str, warnings: list[str]) -> None:
    """Every clean would write a file for every item."""
    add(past, *range(history.FOLD_AT - 1))
    assert history.fold(store_of(FS, None), past, tmp) == 0
    assert segments(past) == []


def test_folding_keeps_every_record(past: str, tmp: str, warnings: list[str]) -> None:
    """The log would lose what was folded."""
    add(past, *range(history.FOLD_AT))
    before = history.read(store_of(FS, None), past)
    assert history.fold(store_of(FS, None), past, tmp) == history.FOLD_AT
    assert entries(past) == []
    assert len(segments(past)) == 1
    assert history.read(store_of(FS, None), past) == before
    assert history.summarise(store_of(FS, None), past)[:2] == (history.FOLD_AT, float(history.FOLD_AT))
    assert warnings == []


def test_segments_are_folded_into_one(past: str, tmp: str, warnings: list[str]) -> None:
    """Segments would pile up, and every count would read them all."""
    for batch in (0, 10, 20):
        add(past, *range(batch, batch + 10))
        history.fold(store_of(FS, None), past, tmp, least=2)
    assert len(segments(past)) == 1
    assert uses(past) == [str(number) for number in range(30)]


@pytest.mark.parametrize("survivors", [1, 2, 3, 4])
def test_a_crash_while_entries_are_removed_counts_nothing_twice(
    past: str, tmp: str, warnings: list[str], survivors: int
) -> None:
    """A cleaner that is killed in the middle would make items look used more often than they were."""
    add(past, *range(5))
    fs = Failing()
    fs.fail("unlink", errno.EINTR, nth=6 - survivors)  # what is left when a process is killed there
    with pytest.raises(InterruptedError):
        history.fold(store_of(fs, None), past, tmp, least=2)
    assert len(entries(past)) == survivors
    assert history.summarise(store_of(FS, None), past).uses == 5
    assert uses(past) == ["0", "1", "2", "3", "4"]
    history.fold(store_of(FS, None), past, tmp, least=2)
    assert entries(past) == []
    assert uses(past) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("kind", ["create", "write", "sync", "close", "rename"])
def test_a_segment_that_cannot_be_written_removes_nothing(past: str, tmp: str, warnings: list[str], kind: str) -> None:
    """A full disk would cost the records of all uses."""
    add(past, *range(5))
    fs = Failing()
    fs.fail(kind, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        history.fold(store_of(fs, None), past, tmp, least=2)
    assert len(entries(past)) == 5
    assert not os.path.exists(tmp)


def test_a_lost_reply_to_the_publication_loses_nothing(past: str, tmp: str, warnings: list[str]) -> None:
    """After a server's restart uses would be counted twice, or not at all."""
    add(past, *range(5))
    fs = LostReplies()
    fs.lose("rename")
    with pytest.raises(FileNotFoundError):
        history.fold(store_of(fs, None), past, tmp, least=2)
    assert history.summarise(store_of(FS, None), past).uses == 5
    assert uses(past) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("moment", [("names", 1), ("readlink", 3), ("names", 2), ("create", 1), ("rename", 1)])
def test_two_who_fold_at_once_lose_and_double_nothing(
    past: str, tmp: str, warnings: list[str], moment: tuple[str, int]
) -> None:
    """Two cleaners at once, which a broken lock allows, would falsify the counts."""
    add(past, *range(6))
    fs = Interposing()
    kind, nth = moment
    fs.before(kind, lambda: history.fold(store_of(FS, None), past, f"{tmp}-other", least=2), nth=nth)
    history.fold(store_of(fs, None), past, tmp, least=2)
    read = history.read(store_of(FS, None), past)
    assert [use.lease.rpartition(".")[2] for use in read] == ["0", "1", "2", "3", "4", "5"]
    assert all(use.by.startswith("user@host") for use in read)
    assert history.summarise(store_of(FS, None), past).uses == 6
    assert warnings == []


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_reader_misses_nothing_while_another_folds(past: str, tmp: str, warnings: list[str], nth: int) -> None:
    """A count taken while a cleaner works would be too small, and let a popular item go."""
    add(past, *range(6))
    fs = Interposing()
    fs.before("readlink", lambda: history.fold(store_of(FS, None), past, tmp, least=2), nth=nth)
    assert len(history.read(store_of(fs, None), past)) == 6


def test_a_reader_follows_a_segment_that_is_folded_into_another(past: str, tmp: str, warnings: list[str]) -> None:
    """What is in a segment that vanishes between its listing and its opening would be missed."""
    add(past, *range(4))
    history.fold(store_of(FS, None), past, tmp, least=2)
    add(past, 4)
    fs = Interposing()
    fs.before("read_text", lambda: history.fold(store_of(FS, None), past, tmp, least=2))
    assert len(history.read(store_of(fs, None), past)) == 5
    assert warnings == []


@pytest.mark.parametrize("nth", [1, 2])
def test_a_listing_that_fails_is_not_an_empty_one(past: str, warnings: list[str], nth: int) -> None:
    """A server that restarts would make uses vanish from the log, and let a popular item go."""
    add(past, *range(4))
    fs = Failing()
    fs.fail("names", errno.ESTALE, nth=nth, times=1)
    with pytest.raises(OSError, match="Stale"):
        history.read(store_of(fs, None), past)


def test_a_segment_of_which_a_client_has_not_heard_yet_is_looked_for_again(
    past: str, tmp: str, warnings: list[str]
) -> None:
    """On NFS, a name that a listing shows may be answered with "no such file": all that was folded would be missed."""
    add(past, *range(4))
    history.fold(store_of(FS, None), past, tmp, least=2)
    fs = Failing()
    fs.fail("read_text", errno.ENOENT, times=2)
    assert len(history.read(store_of(fs, None), past)) == 4
    assert warnings == []


def test_a_segment_that_is_listed_and_never_found_is_told_of(past: str, tmp: str, warnings: list[str]) -> None:
    """A log with a hole would look like a whole one."""
    add(past, *range(4))
    history.fold(store_of(FS, None), past, tmp, least=2)
    fs = Failing()
    fs.fail("read_text", errno.ENOENT)
    assert history.read(store_of(fs, None), past) == []
    assert len(warnings) == 1
    assert "cannot be found" in warnings[0]


class HidingOnce(Interposing):
    """A file system whose first listing shows nothing: it ran into a fold, and a listing is no snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden = False

    def names(self, path: str, **more: Any) -> list[str]:
        found = super().names(path, **more)
        if not self._hidden:
            self._hidden, found = True, []
        return found


def test_a_listing_that_runs_into_a_fold_is_not_believed(past: str, warnings: list[str]) -> None:
    """A listing that shows neither the new segment nor the removed entries would make uses vanish from the log."""
    add(past, *range(4))
    assert len(history.read(store_of(HidingOnce(), None), past)) == 4


def test_entries_that_go_after_the_second_listing_are_found(past: str, tmp: str, warnings: list[str]) -> None:
    """A reader that is content with two listings would miss who used what a cleaner folds meanwhile."""
    add(past, *range(4))
    fs = HidingOnce()
    fs.before("readlink", lambda: history.fold(store_of(FS, None), past, tmp, least=2))
    assert [use.by for use in history.read(store_of(fs, None), past)] == [f"user@host[{n}]" for n in range(4)]


def test_a_segment_that_goes_after_the_second_listing_is_found(past: str, tmp: str, warnings: list[str]) -> None:
    """A reader that is content with two listings would miss what two cleaners fold meanwhile."""
    add(past, *range(4))
    history.fold(store_of(FS, None), past, tmp, least=2)
    add(past, 4)
    fs = HidingOnce()
    fs.before("read_text", lambda: history.fold(store_of(FS, None), past, tmp, least=2))
    assert len(history.read(store_of(fs, None), past)) == 5


def test_an_entry_that_comes_while_folding_stays(past: str, tmp: str, warnings: list[str]) -> None:
    """A use that ends while a cleaner folds would be removed without being in the segment."""
    add(past, *range(4))
    fs = Interposing()
    fs.before("rename", lambda: add(past, 4))
    history.fold(store_of(fs, None), past, tmp, least=2)
    assert uses(past) == ["0", "1", "2", "3", "4"]


def test_a_damaged_segment_stays_and_is_told_of(past: str, tmp: str, warnings: list[str]) -> None:
    """A segment of a newer format, or a half-broken one, would be deleted with what nobody could read in it."""
    add(past, 0, 1)
    damaged = SegmentName(2, 1_500, "0123456789abcdef")
    Path(past, str(damaged)).write_text(f"{name(7, 1_500)} good\nsomething else\n")
    assert history.fold(store_of(FS, None), past, tmp, least=2) == 2
    assert Path(past, str(damaged)).exists()
    assert str(damaged) in warnings[0]
    assert sorted(uses(past)) == ["0", "1", "7"]


def test_a_segment_that_cannot_be_read_stays(past: str, tmp: str, warnings: list[str]) -> None:
    """A passing fault of the server would cost all records of a segment."""
    add(past, *range(4))
    history.fold(store_of(FS, None), past, tmp, least=2)
    (segment,) = segments(past)
    add(past, 4, 5)
    fs = Failing()
    fs.fail("read_text", errno.EIO)
    history.fold(store_of(fs, None), past, tmp, least=2)
    assert segment in segments(past)
    assert uses(past) == ["0", "1", "2", "3", "4", "5"]


def test_an_entry_that_cannot_be_read_stays(past: str, tmp: str, warnings: list[str]) -> None:
    """A passing fault of the server would cost the log who used an item, and when."""
    add(past, 0, 1, 2)
    fs = Failing()
    fs.fail("readlink", errno.EIO, within=str(name(1)))
    assert history.fold(store_of(fs, None), past, tmp, least=2) == 2
    assert entries(past) == [str(name(1))]
    assert [use.by for use in history.read(store_of(FS, None), past)] == [
        "user@host[0]",
        "user@host[1]",
        "user@host[2]",
    ]
    assert history.summarise(store_of(FS, None), past).uses == 3


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\x0c", "\r", "\x1c"])
def test_only_a_newline_ends_a_line_of_a_segment(past: str, warnings: list[str], end: str) -> None:
    """A segment with an odd record, folded by another release, would count as damaged or add uses that never were."""
    segment = SegmentName(2, 2_000, "0123456789abcdef")
    with open(f"{past}/{segment}", "w", newline="") as file:
        file.write(f"{name(0)} odd{end}{name(9)} forged\n{name(1)} good\n")
    assert uses(past) == ["0", "1"]
    assert warnings == []


def test_nothing_but_damaged_segments_is_no_reason_to_fail(past: str, tmp: str, warnings: list[str]) -> None:
    """`clean` would end with a traceback for every user of a cache with a damaged history."""
    for digit in "ab":
        Path(past, str(SegmentName(3, 9_000, digit * 16))).write_text("")
    assert history.fold(store_of(FS, None), past, tmp, least=2) == 0
    assert len(segments(past)) == 2


def test_an_empty_segment_stays(past: str, tmp: str, warnings: list[str]) -> None:
    """A segment that a crashed server left empty would be removed, with the count in its name."""
    add(past, 0, 1)
    empty = SegmentName(3, 500, "0123456789abcdef")
    Path(past, str(empty)).touch()
    history.fold(store_of(FS, None), past, tmp, least=2)
    assert Path(past, str(empty)).exists()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("2026-11-21T09:30:12.000Z a\x85b\u2028c\x0cd\re@host[1]", id="other line ends"),
        pytest.param("two\nlines", id="newline"),
        pytest.param("\udcff@host[1]", id="not UTF-8"),
        pytest.param("", id="none"),
        pytest.param(f"x\u2028{name(99)} forged", id="a forged line"),
    ],
)
def test_hostile_records_fold_like_others(past: str, tmp: str, warnings: list[str], text: str) -> None:
    """One odd record would stop every later clean, or add uses that never were."""
    add(past, 0)
    if text:
        os.symlink(text, f"{past}/{name(1)}")
    else:
        Path(past, str(name(1))).touch()
    history.fold(store_of(FS, None), past, tmp, least=2)
    assert uses(past) == ["0", "1"]
    assert history.summarise(store_of(FS, None), past).uses == 2
    add(past, 2)
    history.fold(store_of(FS, None), past, tmp, least=2)
    assert len(segments(past)) == 1
    assert uses(past) == ["0", "1", "2"]
    assert warnings == []


def test_the_record_of_a_lease_is_read_as_written() -> None:
    """`log` and `status` would show another time or another user than the one who holds."""
    assert history.decode_lease(history.encode_lease(1_800_000_000.25, "ada@node[1]")) == (
        1_800_000_000.25,
        "ada@node[1]",
    )
