"""What tasks send to each other: what this package sends, and nothing else; and read from private files alone."""

from __future__ import annotations

import collections
import functools
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from faults import FakeClock
from sccache_dtool import items, layout
from sccache_dtool.clock import NO_DEADLINE, Deadline
from sccache_dtool.crew import Outcome
from sccache_dtool.errors import InUse
from sccache_dtool.evict import clean
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Generation, Layout
from sccache_dtool.team.parcels import unwrap, wrap

#: What each work of a crew is made of.
COPY = items.Copy("k", Generation("0" * 16, 1, 2, 3), False, ())


@pytest.mark.parametrize(
    "content",
    [
        functools.partial(items.unsettled, [COPY]),
        Outcome([COPY, {1: 2.0}, {"x"}, frozenset({3}), b"", None], None),
    ],
)
def test_what_is_sent_arrives(content: Any) -> None:
    """A scan could not be shared."""
    assert repr(vars(unwrap(wrap(content), FakeClock(), 0.0))) == repr(vars(content))


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "x"), InUse("busy", details=["a"], hint="b")]
)
def test_errors_arrive_whole(error: Exception) -> None:
    """A scan that failed on another host would end with another error, or look like a small cache."""
    with pytest.raises(type(error)) as raised:
        unwrap(wrap(Outcome(None, error)), FakeClock(), 0.0).get()
    assert vars(raised.value) == vars(error)
    assert raised.value.args == error.args


class _Calls:
    """Calls something when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._called = (function, arguments)

    def __reduce__(self) -> Any:
        return self._called


@pytest.mark.parametrize(
    "function",
    [os.system, subprocess.run, eval, getattr, __import__, open, collections.OrderedDict, layout.os.urandom],
)
def test_nothing_else_is_taken_out(function: Any) -> None:
    """Whoever could put a file in a task's way would have it run any program."""
    with pytest.raises(pickle.UnpicklingError, match="is not sent between tasks"):
        unwrap(pickle.dumps(_Calls(function, "true")), FakeClock(), 0.0)


@pytest.mark.parametrize("name", ["os", "os.system", "NamedTuple", "re.sub"])
def test_nothing_that_our_modules_import_is_taken_out(name: str) -> None:
    """A module's own imports would be a way to everything."""
    text = b"\x80\x04\x8c\x14sccache_dtool.layout\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    with pytest.raises((pickle.UnpicklingError, AttributeError)):
        unwrap(text, FakeClock(), 0.0)


def test_a_deadline_is_over_everywhere_at_once() -> None:
    """A task on a host with another clock would go on for hours after `--max-runtime`, or never begin."""
    here, there = FakeClock(), FakeClock()
    there.let_pass(100_000)
    data = wrap(functools.partial(clean._evict_each, None, None, 0, Deadline(here, here.monotonic() + 60)))
    deadline = unwrap(data, there, 20.0).args[3]
    there.let_pass(39)
    assert not deadline.is_over()
    there.let_pass(2)
    assert deadline.is_over()
    assert not unwrap(wrap(NO_DEADLINE), there, 1e9).is_over()


# -- private files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def private(layout: Layout) -> Path:
    """A file in a directory, both for us alone."""
    directory = Path(layout.tmp, "board")
    directory.mkdir(mode=0o700)
    file = directory / "piece"
    file.touch(mode=0o600)
    file.write_bytes(b"work")
    return file


def test_a_private_file_is_read(private: Path) -> None:
    """No task could read what it is to do."""
    assert FileSystem().read_private(str(private)) == b"work"


@pytest.mark.parametrize(
    ("part", "mode"), [("file", 0o640), ("file", 0o602), ("directory", 0o710), ("directory", 0o1702)]
)
def test_what_others_may_touch_is_not_read(private: Path, part: str, mode: int) -> None:
    """A member of the group could put work in our way, and have it done as us."""
    (private if part == "file" else private.parent).chmod(mode)
    with pytest.raises(PermissionError, match="ours alone"):
        FileSystem().read_private(str(private))


@pytest.mark.root
@pytest.mark.parametrize("part", ["file", "directory"])
def test_what_is_of_somebody_else_is_not_read(private: Path, part: str) -> None:
    """The same, for who owns what lies there."""
    os.chown(private if part == "file" else private.parent, 65534, 65534)
    with pytest.raises(PermissionError, match="ours alone"):
        FileSystem().read_private(str(private))


def test_no_link_is_followed_to_a_private_file(private: Path) -> None:
    """A private file of ours that others chose would be taken for a task's."""
    link = private.with_name("link")
    link.symlink_to(private)
    with pytest.raises(OSError, match=r"symbolic links"):
        FileSystem().read_private(str(link))
