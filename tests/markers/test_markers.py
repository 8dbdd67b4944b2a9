"""Markers: what they say, how files become them, and how they become files again."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import FakeClock
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import CacheError, FetchFailed, UsageError
from sccache_dtool.markers import marker, tree
from sccache_dtool.markers.files import Files
from sccache_dtool.markers.marker import Marker, NotMarker
from sccache_dtool.markers.tree import Marked, Memory, State


def found_in(path: Path) -> list[Marked]:
    """The markers in a directory."""
    return [one.marked for one in tree.find([str(path)]) if one.marked]


def states(files: Files, path: Path, **how: bool) -> dict[str, State]:
    """The states of the files of all markers, by their names."""
    memory = Memory(FileSystem())
    result = {os.path.basename(one.target): tree.state_of_all(files, one, memory, **how) for one in found_in(path)}
    memory.keep()
    return result


def restore(files: Files, path: Path, *, force: bool = False) -> list[CacheError]:
    """Restore all markers in a directory; what went wrong."""
    results = [
        result for one in found_in(path) for _, result in tree.restore(files, one, Memory(FileSystem()), force=force)
    ]
    return [one for one in results if isinstance(one, CacheError)]


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_marker_is_lines_that_git_can_merge(archived: Cache, data: Path) -> None:
    """Two people who change different fields would get a conflict in the whole file."""
    archived.save(data / "data.csv", comment="zwölf")
    text = (data / "data.csv.marker").read_text()
    fields = json.loads(text)
    assert list(fields) == sorted(fields)
    assert fields["marker"] == "sc-dtool 1"
    assert (fields["name"], fields["bytes"], fields["comment"]) == ("data.csv", 10, "zwölf")
    assert text.endswith("}\n")
    assert len(text.splitlines()) == len(fields) + 2
    assert Marker.decode(text, "x").encode() == text


def test_fields_of_later_releases_are_kept(archived: Cache, data: Path) -> None:
    """A colleague with an older release would delete what a newer one has stored."""
    archived.save(data / "data.csv")
    place = data / "data.csv.marker"
    place.write_text(json.dumps({**json.loads(place.read_text()), "licence": {"id": "CC0"}}))
    archived.files.comment(str(place), "new")
    assert json.loads(place.read_text())["licence"] == {"id": "CC0"}
    (data / "data.csv").write_bytes(b"other")
    archived.save(data / "data.csv")
    after = json.loads(place.read_text())
    assert (after["licence"], after["comment"], after["bytes"]) == ({"id": "CC0"}, "new", 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"marker": "sc-dtool 2"}, "later release"),
        ({"sha256": "../../etc/passwd"}, "damaged"),
        ({"bytes": -1}, "damaged"),
        ({"bytes": True}, "damaged"),
        ({"name": "../x"}, "damaged"),
        ({"name": ""}, "damaged"),
        ({"chunks": [{"sha256": "0" * 64, "bytes": 3}]}, "damaged"),
        ({"chunks": "x"}, "damaged"),
        ({"marker": "other"}, "not a marker"),
        ({"marker": None}, "not a marker"),
    ],
)
def test_what_cannot_be_trusted_is_refused(
    archived: Cache, data: Path, change: dict[str, object], message: str
) -> None:
    """A marker from elsewhere would write where it likes, or be taken for what it is not."""
    archived.save(data / "data.csv")
    place = data / "data.csv.marker"
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    with pytest.raises(UsageError, match=message):
        marker.read(str(place))


def test_a_marker_is_known_by_its_content(archived: Cache, data: Path) -> None:
    """A data file that is called .marker would be taken for one, and a renamed marker would be lost."""
    archived.save(data / "data.csv")
    (data / "data.csv").unlink()
    (data / "data.csv.marker").rename(data / "renamed")
    (data / "other.marker").write_bytes(b"\0" * 10)
    (data / "json.marker").write_text('{"a": 1}')
    assert [(os.path.basename(one.place), os.path.basename(one.target)) for one in found_in(data)] == [
        ("renamed", "data.csv")
    ]
    with pytest.raises(NotMarker):
        marker.read(str(data / "other.marker"))


def test_a_merge_conflict_is_called_one(data: Path, archived: Cache) -> None:
    """The user would be told that the marker is not one, and look for the wrong fault."""
    archived.save(data / "data.csv")
    place = data / "data.csv.marker"
    place.write_text(place.read_text().replace('  "bytes"', '<<<<<<< HEAD\n  "bytes"'))
    assert [one.error.message for one in tree.find([str(data)]) if one.error] == [f"{place} has a merge conflict"]


def test_saving_over_something_else_is_refused(archived: Cache, data: Path) -> None:
    """A file of the user's that happens to be called so would be lost."""
    (data / "data.csv.marker").write_text("mine")
    with pytest.raises(UsageError, match="in the way"):
        archived.save(data / "data.csv")
    assert (data / "data.csv.marker").read_text() == "mine"
    assert list(archived.archive.known()) == []


# -- restore and status ------------------------------------------------------------------------------------------------


def test_save_and_restore_give_the_same_file(archived: Cache, data: Path) -> None:
    """A script would not be executable any more, or have other bytes."""
    path = data / "run.sh"
    path.write_bytes(b"#!/bin/sh\n\0\xff")
    path.chmod(0o750)
    archived.save(path)
    path.unlink()
    assert states(archived.files, data) == {"run.sh": State.ABSENT}
    assert restore(archived.files, data) == []
    assert path.read_bytes() == b"#!/bin/sh\n\0\xff"
    assert path.stat().st_mode & 0o111
    assert states(archived.files, data) == {"run.sh": State.SAME}
    assert sorted(os.listdir(data)) == ["data.csv", "run.sh", "run.sh.marker"]


def test_a_changed_file_is_not_touched(archived: Cache, data: Path) -> None:
    """Work that was not saved would be overwritten."""
    archived.save(data / "data.csv")
    (data / "data.csv").write_bytes(b"9876543210")
    assert states(archived.files, data) == {"data.csv": State.CHANGED}
    (error,) = restore(archived.files, data)
    assert "differs" in error.message
    assert (data / "data.csv").read_bytes() == b"9876543210"
    assert restore(archived.files, data, force=True) == []
    assert (data / "data.csv").read_bytes() == b"0123456789"


def test_what_is_missing_is_named_and_the_rest_restored(archived: Cache, data: Path) -> None:
    """One lost file would keep all others away."""
    for name in "abc":
        (data / name).write_text(name)
        archived.save(data / name)
        (data / name).unlink()
    lost = marker.read(str(data / "b.marker"))
    archived.remove(archived.key_for([f"sha256:{lost.sha256}"]))
    Path(archived.archive.path_of(lost.sha256)).unlink()
    assert states(archived.files, data) == {"a": State.ABSENT, "b": State.LOST, "c": State.ABSENT}
    (error,) = restore(archived.files, data)
    assert str(data / "b") in error.message
    assert lost.sha256 in error.message
    assert ((data / "a").read_text(), (data / "c").read_text()) == ("a", "c")


def test_status_reads_a_file_again_only_if_it_may_have_changed(
    archived: Cache, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`marker status` of a terabyte would take an hour each time, or say that a changed file is the same."""
    path = data / "data.csv"
    archived.save(path)
    memory = Memory(FileSystem())
    digits = marker.read(f"{path}.marker").sha256
    monkeypatch.setattr(tree, "SETTLED", -1.0)
    assert memory.digest(str(path), os.lstat(path)) == digits
    memory.keep()
    (kept,) = (Path(os.environ["XDG_STATE_HOME"]) / "sc-dtool" / "files").glob("*.json")
    kept.write_text(kept.read_text().replace(digits, "0" * 64))
    assert Memory(FileSystem()).digest(str(path), os.lstat(path)) == "0" * 64
    assert Memory(FileSystem()).digest(str(path), os.lstat(path), read=True) == digits
    path.write_bytes(b"9876543210")
    assert Memory(FileSystem()).digest(str(path), os.lstat(path)) not in (digits, "0" * 64)
    kept.write_text("[")
    assert Memory(FileSystem()).digest(str(path), os.lstat(path)) not in (digits, "0" * 64)


def test_a_file_that_was_just_written_is_not_remembered(archived: Cache, data: Path) -> None:
    """A change of the same size within one tick of the clock would never be seen."""
    path = data / "data.csv"
    path.write_bytes(b"9876543210")
    memory = Memory(FileSystem())
    memory.digest(str(path), os.lstat(path))
    memory.keep()
    assert not (Path(os.environ["XDG_STATE_HOME"]) / "sc-dtool" / "files").exists() or not any(
        "data.csv" in one.read_text() and str(os.lstat(path).st_mtime_ns) in one.read_text()
        for one in (Path(os.environ["XDG_STATE_HOME"]) / "sc-dtool" / "files").glob("*.json")
    )


# -- directories, chunks, comments -------------------------------------------------------------------------------------


def test_a_directory_is_saved_as_one(archived: Cache, data: Path) -> None:
    """A directory of a thousand files would need a thousand markers, or come back without its parts."""
    (data / "raw" / "deep").mkdir(parents=True)
    (data / "raw" / "a").write_text("a")
    (data / "raw" / "deep" / "b").write_text("b")
    (data / "raw" / "deep" / "b").chmod(0o755)
    archived.files.save_directory(str(data / "raw"))
    assert states(archived.files, data) == {"raw": State.SAME}
    (data / "raw" / "a").unlink()
    assert states(archived.files, data) == {"raw": State.ABSENT}
    subprocess.run(["rm", "-r", data / "raw"], check=True)
    assert restore(archived.files, data) == []
    assert (data / "raw" / "a").read_text() == "a"
    assert os.access(data / "raw" / "deep" / "b", os.X_OK)


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ".", "", "a//b"])
def test_a_list_of_files_cannot_lead_outside(archived: Cache, data: Path, path: str) -> None:
    """A marker of somebody else's would overwrite a file of the user's elsewhere."""
    (data / "raw").mkdir()
    (data / "raw" / "a").write_text("a")
    made = archived.files.save_directory(str(data / "raw"))
    document = json.loads(archived.open(made, "rb").read())
    document["files"][0]["path"] = path
    (data / "list").write_text(json.dumps(document))
    id = archived.add(data / "list")
    evil = made._replace(sha256=id[7:], bytes=(data / "list").stat().st_size)
    with pytest.raises(CacheError, match="not a list"):
        archived.files.entries(evil)


def test_a_link_in_a_directory_leads_nowhere(archived: Cache, data: Path, tmp_path: Path) -> None:
    """A link that came with a repository would have files written outside of it."""
    (data / "raw" / "deep").mkdir(parents=True)
    (data / "raw" / "deep" / "b").write_text("b")
    archived.files.save_directory(str(data / "raw"))
    subprocess.run(["rm", "-r", data / "raw"], check=True)
    (tmp_path / "outside").mkdir()
    (data / "raw").mkdir()
    (data / "raw" / "deep").symlink_to(tmp_path / "outside")
    assert len(restore(archived.files, data)) == 1
    assert os.listdir(tmp_path / "outside") == []


def test_appended_data_is_an_object_of_its_own(archived: Cache, data: Path) -> None:
    """The whole log would be stored again each day, or read with a hole between two days."""
    archived.save(data / "data.csv")
    place = data / "data.csv.marker"
    for number in range(3):
        (data / "more").write_bytes(b"%d" % number * 5)
        archived.files.append(str(place), str(data / "more"))
    whole = b"0123456789" + b"0" * 5 + b"1" * 5 + b"2" * 5
    one = marker.read(str(place))
    assert [part.bytes for part in one.chunks] == [10, 5, 5, 5]
    for offset in range(len(whole) + 2):
        with archived.open(place, "rb", offset=offset) as file:
            assert file.read() == whole[offset:]
    (data / "data.csv").unlink()
    assert restore(archived.files, data) == []
    assert (data / "data.csv").read_bytes() == whole
    assert states(archived.files, data) == {"data.csv": State.SAME}


def test_an_append_that_fails_leaves_the_marker(archived: Cache, data: Path, archive_path: Path) -> None:
    """The marker would stand for bytes that are nowhere."""
    archived.save(data / "data.csv")
    before = (data / "data.csv.marker").read_text()
    (data / "more").write_text("more")
    archive_path.rename(archive_path.with_name("away"))
    with pytest.raises(FetchFailed):
        archived.files.append(str(data / "data.csv.marker"), str(data / "more"))
    assert (data / "data.csv.marker").read_text() == before


def test_parts_that_are_not_the_file_are_never_put_in_place(archived: Cache, data: Path) -> None:
    """A marker that was merged badly would restore a file that never existed."""
    archived.save(data / "data.csv")
    (data / "more").write_text("more")
    made = archived.files.append(str(data / "data.csv"), str(data / "more"))
    marker.write(FileSystem(), str(data / "data.csv.marker"), made._replace(chunks=made.chunks[::-1]))
    (data / "data.csv").unlink()
    (error,) = restore(archived.files, data)
    assert "are not the file" in error.message
    assert not (data / "data.csv").exists()


def test_comments_are_seen_by_all_projects(archived: Cache, data: Path, clock: FakeClock) -> None:
    """A warning about a file would reach only those who share the repository."""
    id = archived.add(data / "data.csv", comment="first")
    archived.save(data / "data.csv")
    archived.files.comment(str(data / "data.csv"), "calibration was wrong")
    archive = archived.archive
    assert {archive.details(one).comment for one in archive.records(id[7:])} == {"first", "", "calibration was wrong"}
    assert marker.read(str(data / "data.csv.marker")).comment == "calibration was wrong"


def test_gitignore_is_kept_in_order(data: Path) -> None:
    """Git would add the large file, or ignore others."""
    (data / ".gitignore").write_bytes(b"*.log")
    tree.ignore(FileSystem(), str(data / "data.csv"))
    tree.ignore(FileSystem(), str(data / "data.csv"))
    tree.ignore(FileSystem(), str(data / "a[1].csv"))
    assert (data / ".gitignore").read_bytes() == b"*.log\n/data.csv\n/a\\[1].csv\n"


# -- with git ----------------------------------------------------------------------------------------------------------


def test_a_repository_is_cloned_and_restored(
    archived: Cache, data: Path, tmp_path: Path, make_cache: Callable[..., Cache]
) -> None:
    """Whoever clones a repository would have markers, and no data."""
    environment = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*words: str, cwd: Path = data) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=cwd, env=environment,
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout

    git("init", "-q", ".")
    content = {}
    for number in range(50):
        path = data / f"run{number % 5}" / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number * 1000)
        archived.save(path)
        tree.ignore(FileSystem(), str(path))
        content[path.relative_to(data)] = path.read_bytes()
    git("add", ".")
    git("commit", "-q", "-m", "data")
    assert "0.bin\n" not in git("ls-files").replace("0.bin.marker\n", "")
    clone = tmp_path / "clone"
    git("clone", "-q", str(data), str(clone))
    other = make_cache()
    assert len(found_in(clone)) == 50
    assert restore(other.files, clone) == []
    assert {path: (clone / path).read_bytes() for path in content} == content
    assert git("status", "--porcelain", cwd=clone) == ""
    assert set(states(other.files, clone).values()) == {State.SAME}
