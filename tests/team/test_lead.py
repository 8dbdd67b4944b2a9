"""One who leads, and whom nobody helps, or not well: it is done all the same."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from faults import Failing
from sccache_dtool.clock import Clock
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Layout
from sccache_dtool.team.board import About, Board, all_boards
from sccache_dtool.team.lead import Lead, Superseded
from sccache_dtool.team.names import Seen

LEASE = "p000000000000-000000000000.0"


def posted(layout: Layout, fs: FileSystem) -> Board:
    return Board.make(fs, layout, LEASE, About("step", "0", "{}"))


def lead(board: Board, warnings: list[str]) -> Lead:
    """Without a process that does pieces beside it, and without a heart."""
    return Lead(board, Clock(), 0, 4, 1, frozenset(), warnings.append)


def negative(number: int) -> int:
    return -number


def refusing(number: int) -> int:
    if number == 5:
        raise PermissionError(13, "Permission denied", "x")
    return number


def test_without_members_the_leader_does_all(layout: Layout, warnings: list[str]) -> None:
    """A job whose other tasks have all failed would wait for them for ever."""
    board = posted(layout, FileSystem())
    found = lead(board, warnings).share(negative, abs, range(100))
    assert list(found) == [-number for number in range(100)]
    assert board.look() == Seen("lead~0", False, (), (), (), frozenset())


def test_an_error_comes_where_its_result_would(layout: Layout, warnings: list[str]) -> None:
    """A scan that failed would look like a small cache."""
    with pytest.raises(PermissionError, match="Permission denied"):
        list(lead(posted(layout, FileSystem()), warnings).share(refusing, refusing, range(20)))


def test_on_a_full_disk_there_is_no_board_and_the_work_is_done(layout: Layout, warnings: list[str]) -> None:
    """`srun sc-dtool clean` would fail on the full disk that it is to clean."""
    fs = Failing()
    board = posted(layout, fs)
    fs.fail("write", errno.ENOSPC, nth=3)
    assert list(lead(board, warnings).share(negative, negative, range(100))) == [-number for number in range(100)]


def test_what_cannot_be_read_is_done_again(layout: Layout, warnings: list[str]) -> None:
    """A file that was damaged on its way would end the command, or be taken for what it is not."""
    board = posted(layout, FileSystem())
    board.sign("member~1-00000000~0", "task 1")
    board.post("result~1~0~0", b"garbage")
    assert next(lead(board, warnings).share(negative, abs, range(1, 100))) == 1
    assert "cannot be read" in warnings[0]


def test_who_was_given_up_does_not_go_on(layout: Layout, warnings: list[str]) -> None:
    """Two leaders would tell of the same work."""
    board = posted(layout, FileSystem())
    leader = lead(board, warnings)
    assert board.move("lead~0", "heir~2")
    with pytest.raises(Superseded, match="another task has taken over from task 0"):
        leader.conclude()


def test_the_boards_of_others_are_not_looked_at(layout: Layout) -> None:
    """A board that a member of the group puts up would have our tasks do what is on it."""
    board = posted(layout, FileSystem())
    assert board.about() is not None
    Path(layout.tmp, str(board.name)).chmod(0o750)
    (found,) = all_boards(FileSystem(), layout)
    assert found.about() is None


def test_the_last_who_leaves_removes_the_board(layout: Layout) -> None:
    """Every scan would leave a directory behind; or be without one while others still need it."""
    board = posted(layout, FileSystem())
    board.leave(1, 3)
    assert os.listdir(layout.tmp) == [str(board.name)]
    board.move("lead~0", "done")
    board.leave(2, 3)
    assert os.listdir(layout.tmp) == []
