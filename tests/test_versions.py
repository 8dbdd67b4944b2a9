"""Tables changed by one rename: no change is lost or made twice, whoever changes, is killed, or hears no reply."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Dying, Failing, Interposing, Killed, LostReplies, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import CacheError
from sccache_dtool.protocol import versions


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A directory whose table is 0."""
    versions.begin(store_of(FileSystem(), None), str(tmp_path), "0")
    return str(tmp_path)


def add(number: int) -> Callable[[versions.Version], str]:
    """A change that adds a number."""
    return lambda version: str(int(version.text) + number)


def value(table: str) -> int:
    """What is in force."""
    return int(versions.read(store_of(FileSystem(), None), table).text)


def files(table: str) -> int:
    """How many texts there are."""
    return sum(name.startswith("data-") for name in os.listdir(table))


def test_a_change_replaces_what_is_in_force(table: str) -> None:
    """A change would not be seen, or leave what it replaced for ever."""
    made = versions.change(store_of(FileSystem(), None), table, add(5))
    assert (made.text, made.name.number, value(table)) == ("5", 2, 5)
    for _ in range(3 * versions.KEPT):
        versions.change(store_of(FileSystem(), None), table, add(1))
    assert files(table) == versions.KEPT + 1


def test_nothing_is_written_where_nothing_changes(table: str) -> None:
    """A declarative import from cron would fill the log of changes."""
    before = sorted(os.listdir(table))
    assert versions.change(store_of(FileSystem(), None), table, lambda version: None).text == "0"
    assert sorted(os.listdir(table)) == before


def test_a_change_that_is_refused_leaves_nothing(table: str) -> None:
    """Half of a change would be in force, as with LotMan."""
    before = sorted(os.listdir(table))

    def refuse(version: versions.Version) -> str:
        raise CacheError("no")

    with pytest.raises(CacheError):
        versions.change(store_of(FileSystem(), None), table, refuse)
    assert sorted(os.listdir(table)) == before


def test_whoever_is_second_begins_again(table: str) -> None:
    """The change of whoever was first would be lost."""
    fs = Interposing()
    fs.before("rename", lambda: versions.change(store_of(FileSystem(), None), table, add(10)))
    versions.change(store_of(fs, None), table, add(1))
    assert (value(table), files(table)) == (11, 3)


def test_a_file_that_is_removed_while_it_is_written_is_written_anew(table: str) -> None:
    """Of writers on two hosts (NFS), one would fail: another removes what has lost, even if it is not whole."""
    fs = Failing()
    fs.fail("sync", errno.ESTALE, times=1)
    versions.change(store_of(fs, None), table, add(1))
    assert value(table) == 1


@pytest.mark.parametrize("later", [0, 1, 2])
def test_a_change_whose_reply_is_lost_is_made_once(table: str, later: int) -> None:
    """A share would be raised twice, because a server was slow to answer, whoever changed it since then."""
    fs = _LostThenChanged(table, later, 64)
    versions.change(store_of(fs, None), table, add(1), keep=64)
    assert value(table) == 1 + 10 * later


def test_what_cannot_be_known_is_not_repeated(table: str) -> None:
    """The same, where too little is left of what others changed since then to tell."""
    fs = _LostThenChanged(table, 2, 0)
    with pytest.raises(CacheError, match="cannot be known"):
        versions.change(store_of(fs, None), table, add(1))
    assert value(table) == 21


class _LostThenChanged(LostReplies):
    """The reply to the first rename is lost; by the time of the error others have made changes."""

    def __init__(self, table: str, times: int, keep: int) -> None:
        super().__init__()
        self._table, self._times, self._keep = table, times, keep
        self.lose("rename")

    def touch(self, path: str) -> None:
        for _ in range(self._times):
            versions.change(store_of(FileSystem(), None), self._table, add(10), keep=self._keep)
        self._times = 0
        super().touch(path)


@pytest.mark.parametrize("error", [errno.EIO, errno.ETIMEDOUT, errno.EACCES])
def test_a_file_stays_whose_rename_may_be_on_its_way(table: str, error: int) -> None:
    """A rename that the server does late would put a version in force whose text is gone."""
    fs = Failing()
    fs.fail("rename", error, times=1)
    with pytest.raises(OSError, match=os.strerror(error)):
        versions.change(store_of(fs, None), table, add(1))
    assert (value(table), files(table)) == (0, 2)
    late = next(one for one in os.listdir(table) if one.startswith("data-2"))
    seen = versions.read(store_of(FileSystem(), None), table)
    assert late not in versions.superseded(seen.beside, seen.name)
    versions.change(store_of(FileSystem(), None), table, add(3))
    assert late not in os.listdir(table)


def test_earlier_versions_are_kept_and_found(table: str) -> None:
    """A mistake could not be undone."""
    store = store_of(FileSystem(), None)
    for _ in range(5):
        versions.change(store, table, add(1), keep=9)
    there = frozenset(os.listdir(table))
    chain = list(versions.chain(there))
    assert [name.number for name in chain] == [6, 5, 4, 3, 2, 1]
    assert [versions.text_of(store, table, there, name) for name in chain] == ["5", "4", "3", "2", "1", "0"]
    versions.change(store, table, add(1), keep=3)
    assert [name.number for name in versions.chain(os.listdir(table))] == [7, 6, 5, 4, 3]


def test_a_directory_without_a_version_in_force_is_damaged(table: str) -> None:
    """A purge by age would look like an empty table."""
    (Path(table) / next(name for name in os.listdir(table) if name.startswith("now~"))).unlink()
    with pytest.raises(Damaged):
        value(table)
    with pytest.raises(FileNotFoundError):
        value(f"{table}/missing")


_ADD = """
import sys
from faults import store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.protocol import versions
for _ in range(int(sys.argv[2])):
    versions.change(store_of(FileSystem(), None), sys.argv[1], lambda v: str(int(v.text) + 1), keep=1000)
"""


def test_processes_lose_no_change(table: str) -> None:
    """Of changes made at the same time some would be lost, as of LotMan's."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", _ADD, table, "25"]
    running = [subprocess.Popen(command, env=environment) for _ in range(6)]
    assert [process.wait() for process in running] == [0] * 6
    assert value(table) == 150


def test_killed_at_any_call_a_change_is_made_or_not(table: str) -> None:
    """A table would be damaged by whoever is killed while changing it."""
    for nth in range(40):
        before = value(table)
        fs = Dying(nth)
        try:
            versions.change(store_of(fs, None), table, add(1))
        except Killed:
            assert value(table) in (before, before + 1)
            continue
        assert value(table) == before + 1
        break
    else:
        pytest.fail("the change never came to its end")
