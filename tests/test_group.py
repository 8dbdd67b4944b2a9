"""A cache that a group shares: two real users, whatever their umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostile.users import load_everything, open_directory, run_as, share


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach."""
    with open_directory() as directory:
        yield directory


@pytest.mark.root
def test_two_users_share_with_the_strictest_umask(place: Path) -> None:
    """The second user of a group's cache would get "Permission denied", and could evict nothing."""
    shared = place / "shared"
    share(shared)
    source = place / "ref"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("ACGT")
    source.chmod(0o755)
    (source / "deep").chmod(0o755)
    (source / "deep" / "file").chmod(0o644)
    load_everything()

    first = run_as("daemon", shared, "use", "--holder", "first", str(source))
    assert first.code == 0, first.err
    second = run_as("games", shared, "use", "--holder", "second", str(source))
    assert (second.code, second.out) == (0, first.out), second.err
    read = run_as("games", shared, "run", str(source), "--", "sh", "-c", "cat $SC_DTOOL_PATH/deep/file")
    assert (read.code, read.out) == (0, "ACGT"), read.err

    assert run_as("games", shared, "clean", "--all", "-y").out.startswith("removed 0 items")
    for user, holder in (("daemon", "first"), ("games", "second")):
        assert run_as(user, shared, "unuse", "--holder", holder, str(source)).code == 0
    evicted = run_as("games", shared, "clean", "--all", "-y")
    assert evicted.code == 0, evicted.err
    assert not Path(first.out.strip()).exists()
    assert os.listdir(shared / ".sc-dtool" / "trash") == []
