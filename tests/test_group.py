"""A cache that a group shares: two real users, whatever their umask."""

from __future__ import annotations

import contextlib
import grp
import importlib
import os
import pkgutil
import pwd
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

import sccache_dtool
from sccache_dtool.cli import main, output


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory of the group `users`, which neither of the two users owns."""
    root = tmp_path / "shared"
    root.mkdir()
    os.chown(root, -1, grp.getgrnam("users").gr_gid)
    root.chmod(0o2770)
    for parent in (*tmp_path.parents, tmp_path):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return root


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


def _load_everything() -> None:
    """Load what a command may load later: another user may not be able to read this Python."""
    for module in pkgutil.walk_packages(sccache_dtool.__path__, "sccache_dtool."):
        if not module.name.startswith(("sccache_dtool.dtool", "sccache_dtool.__main__")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in (
        "encodings.idna",
        "flufl.lock",
        "portalocker",
        "humanize",
        "rich.console",
        "rich.table",
        "rich.text",
        "tomllib",
    ):
        importlib.import_module(name)
    output.size(1)
    output.ago(0.0, 1.0)


def _as(user: str, root: Path, *words: str) -> Done:
    """Run a command as another user, with a umask that lets nobody else in."""
    read, write = zip(*(os.pipe() for _ in range(2)), strict=True)
    child = os.fork()
    if child == 0:
        try:
            for number, fd in enumerate(write, 1):
                os.dup2(fd, number)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            os.setgroups([grp.getgrnam("users").gr_gid])
            os.setgid(pwd.getpwnam(user).pw_gid)
            os.setuid(pwd.getpwnam(user).pw_uid)
            os.umask(0o077)
            os.chdir("/")
            os.environ |= {"DTOOL_CACHE_DIRECTORY": str(root), "HOME": "/nonexistent"}
            code = main.run(list(words))
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    for fd in write:
        os.close(fd)
    said = []
    for fd in read:  # what is said here is far less than a pipe holds
        with open(fd) as file:
            said.append(file.read())
    return Done(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *said)


@pytest.mark.root
def test_two_users_share_with_the_strictest_umask(shared: Path, tmp_path: Path) -> None:
    """The second user of a group's cache would get "Permission denied", and could evict nothing."""
    source = tmp_path / "ref"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("ACGT")
    source.chmod(0o755)
    (source / "deep").chmod(0o755)
    (source / "deep" / "file").chmod(0o644)
    _load_everything()

    first = _as("daemon", shared, "use", "--holder", "first", str(source))
    assert first.code == 0, first.err
    second = _as("games", shared, "use", "--holder", "second", str(source))
    assert (second.code, second.out) == (0, first.out), second.err
    read = _as("games", shared, "run", str(source), "--", "cat", "{}/deep/file")
    assert (read.code, read.out) == (0, "ACGT"), read.err

    assert _as("games", shared, "clean", "--all", "-y").out.startswith("removed 0 items")
    for user, holder in (("daemon", "first"), ("games", "second")):
        assert _as(user, shared, "unuse", "--holder", holder, str(source)).code == 0
    evicted = _as("games", shared, "clean", "--all", "-y")
    assert evicted.code == 0, evicted.err
    assert not Path(first.out.strip()).exists()
    assert os.listdir(shared / ".sc-dtool" / "trash") == []
