"""A cache that several Unix users share: real users, whatever their umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dtool import stores

pytestmark = pytest.mark.root

GROUP = 54321
ADA, BOB, EVE = 54001, 54002, 54003
FIRST, SECOND = stores.identifier("a/first.txt"), stores.identifier("second.csv")

USE = (
    stores.AS_OTHERS
    + """
from sccache_dtool.cache import Cache
uid, gid, umask, *wanted = sys.argv[2:]
become(int(uid), int(gid))
os.umask(int(umask, 8))
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
for identifier in wanted:
    path = dataset.item_content_abspath(identifier)
    assert "/.sc-dtool/" in path, path
    say(open(path).read().strip())
input()
"""
)

CLEAN = (
    stores.AS_OTHERS
    + """
from sccache_dtool.cache import Cache
from sccache_dtool.policy.rules import Rules
Cache(os.environ["DTOOL_CACHE_DIRECTORY"]).init()
become(int(sys.argv[2]), int(sys.argv[3]))
done = Cache(os.environ["DTOOL_CACHE_DIRECTORY"]).clean(Rules(everything=True))
say(len(done.removed), len(done.failed), len(done.plan.keep))
input()
"""
)


@pytest.fixture
def group_dir(cache_dir: Path, open_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as a group shares one: its group may write, and what is made in it belongs to the group."""
    shared = open_tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, ADA, GROUP)
    shared.chmod(0o2770)
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(shared))
    return shared


@pytest.mark.parametrize("umask", ["077", "022", "002"])
def test_what_one_user_fetches_another_uses_and_a_third_cleans(dataset, group_dir, run_python, umask, web):
    """With dtool alone: the second user gets PermissionError, and can evict nothing."""
    ada = run_python(USE, dataset.uri, ADA, GROUP, umask, FIRST)
    assert ada.line() == "one"
    served = web.data_requests
    bob = run_python(USE, dataset.uri, BOB, GROUP, umask, FIRST, SECOND)
    assert [bob.line(), bob.line()] == ["one", "two, three"]
    ada.end()
    bob.end()
    eve = run_python(CLEAN, dataset.uri, EVE, GROUP)
    assert eve.line() == "2 0 0"
    eve.end()
    assert served >= 1


def test_an_item_that_another_user_holds_stays(dataset, group_dir, run_python):
    """Whoever cleans for the group must not need to know who is at work."""
    ada = run_python(USE, dataset.uri, ADA, GROUP, "077", FIRST)
    assert ada.line() == "one"
    bob = run_python(CLEAN, dataset.uri, BOB, GROUP)
    assert bob.line() == "0 0 1"
    bob.end()
    ada.end()


def test_everything_belongs_to_the_group(dataset, group_dir, run_python):
    """One directory with the wrong bits, and the group's other members are locked out of it."""
    run = run_python(USE, dataset.uri, ADA, GROUP, "077", FIRST)
    run.line()
    run.end()
    for directory, _, names in os.walk(group_dir / ".sc-dtool"):
        status = os.stat(directory)
        assert status.st_gid == GROUP, directory
        assert stat.S_IMODE(status.st_mode) & 0o2070 == 0o2070, directory
        for name in names:
            found = os.lstat(f"{directory}/{name}")
            if stat.S_ISREG(found.st_mode) and "/locks" not in directory:
                assert found.st_mode & stat.S_IRGRP, f"{directory}/{name}"


def test_who_is_not_in_the_group_gets_in_nowhere(dataset, group_dir, run_python):
    """Group data is for the group: a user outside it falls back to what dtool does, and is refused."""
    run = run_python(USE, dataset.uri, ADA, GROUP, "022", FIRST)
    run.line()
    run.end()
    _, err = run_python(USE, dataset.uri, EVE, EVE, "022", FIRST, SC_DTOOL_PLUGIN="").end(expected=1)
    assert "continues without leases" in err
    assert "PermissionError" in err
