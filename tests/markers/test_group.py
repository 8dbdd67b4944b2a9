"""Files by their content in a cache and an archive that a group shares: two real users, whatever their umask."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hostile.users import load_everything, open_directory, run_as, share


def states(*places: Path) -> dict[Path, tuple[int, int, int]]:
    """Owner, group and mode of all files below directories."""
    found = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path: ((s := path.lstat()).st_uid, s.st_gid, s.st_mode) for path in found}


@pytest.mark.root
def test_another_user_restores_what_one_has_saved() -> None:
    """The second user would get "Permission denied", or change the files of the first."""
    load_everything()
    with open_directory() as place:
        shared, archive, projects = place / "shared", place / "archive", place / "projects"
        share(shared)
        share(archive)
        projects.mkdir()
        projects.chmod(0o1777)
        first, second = projects / "first", projects / "second"
        made = run_as("daemon", shared, "init")
        assert made.code == 0, made.err
        (shared / ".sc-dtool" / "config.toml").write_text(f'[archive]\nurl = "{archive}"\n')
        (shared / ".sc-dtool" / "config.toml").chmod(0o644)
        for project in (first, second):
            project.mkdir()
            project.chmod(0o777)
        (first / "data.csv").write_bytes(b"0123456789")
        (first / "data.csv").chmod(0o644)
        assert run_as("daemon", shared, "archive", "init").code == 0
        saved = run_as("daemon", shared, "save", str(first / "data.csv"), "--comment", "of the first")
        assert saved.code == 0, saved.err
        before = states(archive / "objects", archive / "added", *shared.glob(".sc-dtool/items/*/*/*/payload"))
        assert len(before) == 3  # the object, its record, and the copy in the cache

        marker = second / "data.csv.marker"
        marker.write_bytes((first / "data.csv.marker").read_bytes())
        marker.chmod(0o644)
        restored = run_as("games", shared, "marker", "restore", str(second))
        assert restored.code == 0, restored.err
        copy = second / "data.csv"
        assert copy.read_bytes() == b"0123456789"
        assert copy.owner() == "games"
        assert not copy.is_symlink()
        assert copy.stat().st_nlink == 1
        assert states(*{path.parent for path in before}).items() >= before.items()

        id = f"sha256:{hashlib.sha256(b'0123456789').hexdigest()}"
        again = run_as("games", shared, "index", "add", id, "--comment", "of the second")
        assert again.code == 0, again.err
        listed = run_as("daemon", shared, "index", "ls", id)
        assert "of the first" in listed.out
        assert "of the second" in listed.out
