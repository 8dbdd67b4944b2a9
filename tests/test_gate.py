"""The three operations that the protocol rests on, with every answer that a server may give."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from faults import Counting, Failing, Interposing, LostReplies
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.protocol import gate

LEASE = "s0123456789ab-0123456789ab.0"
ENDED = f"{LEASE}~1800000000000~released"


@pytest.fixture
def doors(tmp_path: Path) -> tuple[str, str]:
    """A gate and a history, both empty."""
    (tmp_path / "use").mkdir()
    (tmp_path / "history").mkdir()
    return str(tmp_path / "use"), str(tmp_path / "history")


# -- enter -------------------------------------------------------------------------------------------------------------


def test_entering_is_one_call_and_keeps_the_record(doors: tuple[str, str]) -> None:
    """A use would cost more than one request, or nobody could see whose it is."""
    fs = Counting()
    assert gate.enter(fs, doors[0], LEASE, "who and when") is True
    assert fs.kinds() == ["symlink"]
    assert os.readlink(f"{doors[0]}/{LEASE}") == "who and when"


def test_entering_after_a_lost_reply_is_held(doors: tuple[str, str]) -> None:
    """A user whose server restarted would be refused a lease that it holds, and the item could never be evicted."""
    fs = LostReplies()
    fs.lose("symlink")
    assert gate.enter(fs, doors[0], LEASE, "ours") is True
    assert os.listdir(doors[0]) == [LEASE]


def test_a_name_with_another_text_is_not_ours(doors: tuple[str, str]) -> None:
    """Two users would both believe in one lease, and the first release would leave the second without one."""
    os.symlink("somebody else's", f"{doors[0]}/{LEASE}")
    with pytest.raises(FileExistsError):
        gate.enter(FileSystem(), doors[0], LEASE, "ours")
    assert os.readlink(f"{doors[0]}/{LEASE}") == "somebody else's"


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ESTALE, errno.ENOTDIR])
def test_a_closed_gate_is_not_entered(doors: tuple[str, str], error: int) -> None:
    """A user would be told of an error instead of being given the next copy, or fetching one."""
    fs = Failing()
    fs.fail("symlink", error)
    assert gate.enter(fs, doors[0], LEASE, "ours") is False


def test_nothing_is_made_where_the_gate_was_closed(doors: tuple[str, str]) -> None:
    """A lease made in a place that is no gate any more would protect nothing."""
    os.rmdir(doors[0])
    assert gate.enter(FileSystem(), doors[0], LEASE, "ours") is False
    assert not os.path.lexists(doors[0])


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_any_other_refusal_is_not_taken_for_a_closed_gate(doors: tuple[str, str], error: int) -> None:
    """A full or read-only file system would look like an evicted item, and be filled with one more copy."""
    fs = Failing()
    fs.fail("symlink", error)
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        gate.enter(fs, doors[0], LEASE, "ours")
    assert caught.value.errno == error


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_symbolic_links_a_file_is_the_lease(doors: tuple[str, str], error: int) -> None:
    """On file systems without symbolic links nothing could be leased, or everybody would have the same lease."""
    fs = Failing()
    fs.fail("symlink", error)
    assert gate.enter(fs, doors[0], LEASE, "ours") is True
    assert FileSystem().get_record(f"{doors[0]}/{LEASE}") == "ours"
    assert gate.close(fs, doors[0]) is False
    with pytest.raises(FileExistsError):
        gate.enter(fs, doors[0], LEASE, "another's")


# -- leave -------------------------------------------------------------------------------------------------------------


def test_leaving_is_one_call_and_becomes_history(doors: tuple[str, str]) -> None:
    """A release would cost more than one request, or the use would not be counted."""
    gate.enter(FileSystem(), doors[0], LEASE, "ours")
    fs = Counting()
    assert gate.leave(fs, doors[0], LEASE, doors[1], ENDED) is True
    assert fs.kinds() == ["rename"]
    assert os.listdir(doors[0]) == []
    assert os.readlink(f"{doors[1]}/{ENDED}") == "ours"


def test_leaving_makes_a_history_that_is_missing(doors: tuple[str, str]) -> None:
    """A lease could never be given back where the history is missing, since that says ENOENT as well."""
    gate.enter(FileSystem(), doors[0], LEASE, "ours")
    os.rmdir(doors[1])
    assert gate.leave(FileSystem(), doors[0], LEASE, doors[1], ENDED) is True
    assert os.listdir(doors[0]) == []
    assert os.listdir(doors[1]) == [ENDED]


def test_leaving_twice_counts_one_use(doors: tuple[str, str]) -> None:
    """A use that its user and a reaper both end would be counted twice, or be an error to one of them."""
    gate.enter(FileSystem(), doors[0], LEASE, "ours")
    assert gate.leave(FileSystem(), doors[0], LEASE, doors[1], ENDED) is True
    assert gate.leave(FileSystem(), doors[0], LEASE, doors[1], f"{LEASE}~1800000000001~reaped") is False
    assert os.listdir(doors[1]) == [ENDED]


def test_a_lost_reply_to_leaving_is_no_error_and_ours(doors: tuple[str, str]) -> None:
    """`unuse` would give back a second use of the same user, because it takes the first for another's deed."""
    gate.enter(FileSystem(), doors[0], LEASE, "ours")
    fs = LostReplies()
    fs.lose("rename")
    assert gate.leave(fs, doors[0], LEASE, doors[1], ENDED) is True
    assert os.listdir(doors[0]) == []
    assert os.listdir(doors[1]) == [ENDED]


def test_a_second_lost_reply_to_leaving_is_no_error_either(doors: tuple[str, str]) -> None:
    """A release whose history had to be made first would fail when the server restarts in the middle."""
    gate.enter(FileSystem(), doors[0], LEASE, "ours")
    os.rmdir(doors[1])
    fs = LostReplies()
    fs.lose("rename", nth=1)
    assert gate.leave(fs, doors[0], LEASE, doors[1], ENDED) is True
    assert os.listdir(doors[1]) == [ENDED]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_refused_release_is_an_error_and_keeps_the_lease(doors: tuple[str, str], error: int, nth: int) -> None:
    """A release that failed would look done, and its lease would keep the item for ever without a word."""
    gate.enter(FileSystem(), doors[0], LEASE, "ours")
    os.rmdir(doors[1])  # so that there is a second attempt
    fs = Failing()
    fs.fail("rename", error, nth=nth)
    with pytest.raises(OSError, match=os.strerror(error)):
        gate.leave(fs, doors[0], LEASE, doors[1], ENDED)
    assert os.listdir(doors[0]) == [LEASE]


# -- close -------------------------------------------------------------------------------------------------------------


def test_closing_an_empty_gate_is_one_call_and_final(doors: tuple[str, str]) -> None:
    """A user could take a lease on what is about to be deleted."""
    fs = Counting()
    assert gate.close(fs, doors[0]) is True
    assert fs.kinds() == ["rmdir"]
    assert gate.enter(FileSystem(), doors[0], LEASE, "ours") is False


def test_a_lease_keeps_the_gate_open(doors: tuple[str, str]) -> None:
    """Data would be deleted under its reader."""
    gate.enter(FileSystem(), doors[0], LEASE, "ours")
    assert gate.close(FileSystem(), doors[0]) is False
    assert os.listdir(doors[0]) == [LEASE]


def test_a_name_that_nobody_knows_keeps_the_gate_open(doors: tuple[str, str]) -> None:
    """What a newer release, or a person, put into the gate would not protect the data."""
    Path(doors[0], "do not delete").touch()
    assert gate.close(FileSystem(), doors[0]) is False


@pytest.mark.parametrize("error", [errno.ENOTEMPTY, errno.EEXIST])
def test_both_ways_of_saying_not_empty_mean_in_use(doors: tuple[str, str], error: int) -> None:
    """On file systems that say EEXIST an eviction would fail, or worse, succeed."""
    fs = Failing()
    fs.fail("rmdir", error)
    assert gate.close(fs, doors[0]) is False


def test_a_gate_closed_before_is_closed(doors: tuple[str, str]) -> None:
    """An eviction that was interrupted, or whose reply was lost, could never be finished."""
    fs = LostReplies()
    fs.lose("rmdir")
    assert gate.close(fs, doors[0]) is True
    assert gate.close(FileSystem(), doors[0]) is True


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EACCES, errno.ENOTDIR, errno.EIO, errno.EBUSY, errno.EPERM])
def test_any_other_answer_keeps_the_copy(doors: tuple[str, str], error: int) -> None:
    """A stale handle or a missing permission would be taken for "nobody is in there", and data in use deleted."""
    fs = Failing()
    fs.fail("rmdir", error)
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        gate.close(fs, doors[0])
    assert caught.value.errno == error
    assert os.path.isdir(doors[0])


# -- together ----------------------------------------------------------------------------------------------------------


def test_who_enters_just_before_the_close_wins(doors: tuple[str, str]) -> None:
    """An evictor that looked before would delete what has been leased since."""
    fs = Interposing()
    fs.before("rmdir", lambda: gate.enter(FileSystem(), doors[0], LEASE, "ours"))
    assert gate.close(fs, doors[0]) is False


def test_who_enters_just_after_the_close_loses(doors: tuple[str, str]) -> None:
    """A user would be told that it holds what is being deleted."""
    fs = Interposing()
    fs.before("symlink", lambda: gate.close(FileSystem(), doors[0]))
    assert gate.enter(fs, doors[0], LEASE, "ours") is False
