"""Markers, lists of files, records and objects that somebody forged, and files that change at the wrong time."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sccache_dtool.cache import Cache
from sccache_dtool.cli.main import run as run_command
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.fetch.objects import object_name
from sccache_dtool.markers import files, marker, tree
from sccache_dtool.markers.marker import Chunk, Marker
from sccache_dtool.markers.tree import Memory, State


def put(cache: Cache, place: Path, content: bytes) -> Chunk:
    """An object of the archive with this content."""
    (place / "content").write_bytes(content)
    id = cache.files.add(str(place / "content"), archive_only=True)
    (place / "content").unlink()
    return Chunk(id[7:], len(content))


def put_list(cache: Cache, place: Path, paths: list[str], content: bytes = b"forged") -> Chunk:
    """A list of the files of a directory, each with the same content."""
    each = put(cache, place, content)
    entries = [{"path": path, "mode": "100755", **each._asdict()} for path in paths]
    return put(cache, place, json.dumps({"directory": "sc-dtool 1", "files": entries}).encode())


def restore(cache: Cache, *paths: Path, **how: bool) -> list[CacheError]:
    """Restore markers; what went wrong."""
    found = list(tree.find([str(path) for path in paths]))
    wrong = [one.error for one in found if one.error]
    for one in [one.marked for one in found if one.marked]:
        results = tree.restore(cache.files, one, Memory(FileSystem()), **how)
        wrong += [result for _, result in results if isinstance(result, CacheError)]
    return wrong


def everything_below(path: Path) -> set[str]:
    """The paths of all files."""
    return {str(one.relative_to(path)) for one in path.rglob("*") if not one.is_dir()}


# -- where it is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".git", ".GIT", "git~1", ".sc-dtool"])
def test_nothing_is_restored_as_the_directory_of_git(archived: Cache, data: Path, name: str) -> None:
    """Who restores the markers of a repository would run a hook that came with it."""
    inner = put_list(archived, data, ["hooks/post-checkout"])
    outer = put_list(archived, data, [f"sub/{name}/hooks/post-checkout"])
    plain = put(archived, data, b"gitdir: ../evil")
    other = Marker("x", inner.sha256, inner.bytes, directory=True)
    marker.write(FileSystem(), str(data / f"{name}.marker"), other)
    marker.write(FileSystem(), str(data / "named"), other._replace(name=name))
    marker.write(FileSystem(), str(data / "outer.marker"), Marker("outer", outer.sha256, outer.bytes, directory=True))
    (data / "sub").mkdir()
    marker.write(FileSystem(), str(data / "sub" / f"{name}.marker"), Marker("x", *plain))
    before = everything_below(data)
    assert len(restore(archived, data)) == 4
    assert everything_below(data) == before


def test_a_link_in_place_of_a_directory_leads_nowhere(archived: Cache, data: Path, tmp_path: Path) -> None:
    """A repository with a link to the home directory would write ~/.ssh/authorized_keys of whoever restores it."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    listed = put_list(archived, data, [".ssh/authorized_keys", "more/deep/x", "x"])
    (data / "raw").symlink_to(home)
    marker.write(FileSystem(), str(data / "raw.marker"), Marker("raw", listed.sha256, listed.bytes, directory=True))
    assert len(restore(archived, data)) == 3
    assert everything_below(home) == set()


def test_a_directory_that_is_swapped_for_a_link_leads_nowhere(archived: Cache, data: Path, tmp_path: Path) -> None:
    """Whoever can write in a directory could have another user write a file of any name anywhere."""
    home = tmp_path / "home"
    home.mkdir()
    (data / "sub").mkdir()
    marker.write(FileSystem(), str(data / "sub" / "x.marker"), Marker("x", *put(archived, data, b"forged")))
    (found,) = tree.find([str(data)])
    assert found.marked is not None
    (data / "sub").rename(data / "moved")
    (data / "sub").symlink_to(home)
    ((_, result),) = tree.restore(archived.files, found.marked, Memory(FileSystem()), force=True)
    assert isinstance(result, CacheError)
    assert everything_below(home) == set()


def test_a_device_or_fifo_is_not_replaced(archived: Cache, data: Path) -> None:
    """`get -o /dev/null --force` of an administrator would replace the device by a file."""
    id = archived.add(data / "data.csv")
    os.mkfifo(data / "fifo")
    with pytest.raises(UsageError, match="is not a file"):
        archived.files.copy_out(archived.files.marker_of(id), str(data / "fifo"), replace=True)
    assert (data / "fifo").is_fifo()


# -- what is never lost ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(archived: Cache, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command; its exit code."""
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(archived.root))

    def call(*words: str | Path) -> int:
        return run_command(list(map(str, words)))

    return call


def test_a_file_that_takes_the_place_of_its_marker_is_not_deleted(
    archived: Cache, data: Path, run: Callable[..., int]
) -> None:
    """A user whose markers are called as their files would lose both."""
    archived.save(data / "data.csv")
    (data / "data.csv.marker").rename(data / "data.csv")
    run("marker", "restore", "--force", "--delete-markers", data)
    assert (data / "data.csv").read_bytes() == b"0123456789"


def test_a_marker_that_is_named_twice_is_deleted_once(archived: Cache, data: Path, run: Callable[..., int]) -> None:
    """A command that has done all it was asked for would report an error."""
    archived.save(data / "data.csv")
    (data / "data.csv").unlink()
    assert run("marker", "restore", "--delete-markers", data, data / "data.csv.marker") == 0
    assert everything_below(data) == {"data.csv"}


def test_a_file_that_is_replaced_while_it_is_removed_stays(
    archived: Cache, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor that saves at that moment would lose what was typed."""
    path = data / "data.csv"
    before = os.stat(path)
    made = archived.save(path)
    rename = os.rename

    def late(source: str, target: str) -> None:
        (data / "new").write_bytes(b"typed late")
        os.replace(data / "new", path)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(CacheError, match="has changed"):
        files.remove(str(path), made.sha256, before)
    assert path.read_bytes() == b"typed late"
    assert everything_below(data) == {"data.csv", "data.csv.marker"}


@pytest.mark.parametrize("keeps_ctime", [True, False])
def test_a_change_that_the_times_do_not_show_is_noticed(
    archived: Cache, data: Path, monkeypatch: pytest.MonkeyPatch, keeps_ctime: bool
) -> None:
    """A program that writes the file twice within a tick of the clock, or sets its time back, would lose the second."""
    path = data / "data.csv"
    made = archived.save(path)
    before = os.stat(path)
    path.write_bytes(b"9876543210")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if keeps_ctime:
        before = os.stat(path)
    with pytest.raises(CacheError, match="has changed"):
        files.remove(str(path), made.sha256, before)
    assert path.read_bytes() == b"9876543210"


def test_a_copy_that_is_damaged_replaces_nothing(archived: Cache, data: Path) -> None:
    """`--force` would replace a file by a copy that was changed in the cache, and `--delete-markers` its marker."""
    id = archived.add(data / "data.csv")
    archived.save(data / "data.csv")
    with archived.use(id) as payload:
        os.chmod(payload, 0o644)
        Path(payload).write_bytes(b"012345678X")
    (data / "data.csv").write_bytes(b"my own")
    assert len(restore(archived, data, force=True)) == 1
    assert (data / "data.csv").read_bytes() == b"my own"
    (data / "data.csv").unlink()
    assert len(restore(archived, data, durable=True)) == 1
    assert everything_below(data) == {"data.csv.marker"}


def test_a_copy_of_another_size_is_not_restored(archived: Cache, data: Path) -> None:
    """A copy that was cut would be taken for the file."""
    id = archived.add(data / "data.csv")
    archived.save(data / "data.csv")
    (data / "data.csv").unlink()
    with archived.use(id) as payload:
        os.chmod(payload, 0o644)
        os.truncate(payload, 3)
    assert restore(archived, data) == []
    assert (data / "data.csv").read_bytes() == b"0123456789"


def test_a_directory_that_cannot_be_read_is_not_left_out(archived: Cache, data: Path, run: Callable[..., int]) -> None:
    """Whoever saves a directory as one, and deletes it, would lose what was in there."""
    script = "import sys; from sccache_dtool.markers.files import files_below; files_below(sys.argv[1])"
    (data / "sub").mkdir(mode=0)
    import sys

    done = subprocess.run(
        [sys.executable, "-c", "import os; os.geteuid() or os.setuid(65534); " + script, str(data)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "PermissionError" in done.stderr


@pytest.mark.parametrize("text", ["", "{", '{\n  "bytes": 10,\n  "marker": "sc-dtool 1",\n,\n}\n'])
def test_a_marker_that_was_damaged_keeps_its_objects(
    archived: Cache, data: Path, run: Callable[..., int], clock: Any, text: str
) -> None:
    """A conflict that was resolved badly, or a full disk, would have the data deleted."""
    archived.files.save(str(data / "data.csv"), archive_only=True)
    (data / "data.csv.marker").write_text(text)
    (found,) = tree.find([str(data)], strict=True)
    assert found.error is not None
    with pytest.raises(CacheError):
        tree.digits_named([found])


def test_an_unreadable_marker_or_directory_is_named(archived: Cache, data: Path) -> None:
    """`status` would say that all is well, and the rest would not be restored."""
    archived.save(data / "data.csv")
    (data / "data.csv").unlink()
    os.mkfifo(data / "a.marker")
    os.mkfifo(data / "other")
    marker.write(FileSystem(), str(data / "b.marker"), Marker("x", "0" * 64, 1)._replace(comment="x"))
    (data / "b.marker").write_text((data / "b.marker").read_text().replace("}", ""))
    errors = [one.place for one in tree.find([str(data)]) if one.error]
    assert [os.path.basename(path) for path in errors] == ["b.marker"]
    restore(archived, data)
    assert (data / "data.csv").read_bytes() == b"0123456789"


def test_a_marker_that_could_not_be_read_again_is_not_written(archived: Cache, data: Path) -> None:
    """After some thousand appends, a marker would be none any more, and its data an orphan."""
    place = data / "x.marker"
    part = Chunk("0" * 64, 1)
    marker.write(FileSystem(), str(place), Marker("x", "0" * 64, 1, chunks=(part,)))
    before = place.read_bytes()
    with pytest.raises(UsageError, match="chunks"):
        marker.write(FileSystem(), str(place), Marker("x", "0" * 64, 10000, chunks=(part,) * 10000))
    assert place.read_bytes() == before


def test_two_appends_at_once_are_both_kept(archived: Cache, data: Path, layout: Any) -> None:
    """What one of two jobs has appended to a log would be missing in it."""
    archived.save(data / "data.csv")
    place = str(data / "data.csv.marker")
    (data / "one").write_bytes(b"ONE")
    (data / "two").write_bytes(b"TWO")
    add = archived.files.archive.put
    ready = threading.Barrier(2, timeout=60)

    class Meeting:
        """An archive where both have added before one goes on."""

        def __getattr__(self, name: str) -> Any:
            return getattr(archived.archive, name)

        def put(self, *given: Any) -> Any:
            found = add(*given)
            ready.wait()
            return found

    both = archived.files._replace(archive=Meeting())
    threads = [threading.Thread(target=both.append, args=(place, str(data / name))) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with archived.open(place, "rb") as file:
        assert file.read() in (b"0123456789ONETWO", b"0123456789TWOONE")


def test_a_comment_at_the_same_time_keeps_what_was_appended(archived: Cache, data: Path) -> None:
    """A comment would take back what another process has appended."""
    archived.save(data / "data.csv")
    place = str(data / "data.csv.marker")
    (data / "one").write_bytes(b"ONE")
    note = archived.archive.add_record

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(archived.archive, name)

        def add_record(self, *given: Any) -> Any:
            archived.files.append(place, str(data / "one"))
            return note(*given)

    archived.files._replace(archive=Slow()).comment(place, "new")
    made = marker.read(place)
    assert (made.bytes, made.comment) == (13, "new")


# -- what does not end, and what is too much ---------------------------------------------------------------------------


def test_a_fifo_holds_nobody_up(archived: Cache, data: Path, run: Callable[..., int]) -> None:
    """Whoever can write in a directory could have the commands of others wait for ever."""
    os.mkfifo(data / "data.csv.marker")
    os.mkfifo(data / "x.marker")
    os.mkfifo(data / ".gitignore")
    os.mkfifo(data / "index.csv")
    os.mkfifo(data / f"{'0' * 32}.cache")
    with pytest.raises((CacheError, OSError)):
        archived.save(data / "data.csv")
    with pytest.raises((CacheError, OSError)):
        tree.ignore(FileSystem(), str(data / "data.csv"))
    with pytest.raises((CacheError, OSError)):
        list(archived.files.adopt(str(data / "index.csv")))
    (one,) = archived.files.adopt(str(data / "index.csv"), [("0" * 32, "")])
    assert one.identifier is None
    assert run("marker", "restore", data / "x.marker") != 0
    assert run("marker", "status", data) == 0


def test_a_link_is_not_read_into_gitignore(data: Path, tmp_path: Path) -> None:
    """The content of ~/.netrc would be committed."""
    (tmp_path / "secret").write_text("password")
    (data / ".gitignore").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="symbolic link"):
        tree.ignore(FileSystem(), str(data / "data.csv"))
    assert (tmp_path / "secret").read_text() == "password"


def test_a_name_of_several_lines_is_one_line_of_gitignore(data: Path) -> None:
    """Other files would be left out of version control."""
    tree.ignore(FileSystem(), str(data / "a\nb\r"))
    assert (data / ".gitignore").read_bytes() == b"/a?b?\n"


def test_long_names_of_several_bytes_a_character(archived: Cache, data: Path) -> None:
    """A file with a long Japanese name could not be saved."""
    path = data / ("あ" * 80)
    path.write_bytes(b"x")
    archived.save(path)
    path.unlink()
    assert restore(archived, data) == []
    assert path.read_bytes() == b"x"


def test_a_marker_of_thousands_of_parts_is_read(archived: Cache, data: Path) -> None:
    """A log to which a line was appended each day could not be read after three years."""
    part = put(archived, data, b"ab")
    whole = b"ab" * 300
    one = Marker("x", hashlib.sha256(whole).hexdigest(), len(whole), chunks=(part,) * 300)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
    try:
        with archived.open(one, "rb") as file:
            assert file.read() == whole
            file.seek(299)
            assert file.read(2) == b"ba"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "listing",
    [
        b"[" * 100_000,
        b'{"files": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"files": [{"path": "\\ud800", "mode": "100644", "sha256": "' + b"0" * 64 + b'", "bytes": 1}]}',
        b'{"files": [{"path": "x", "mode": "100644", "sha256": "' + b"0" * 64 + b'", "bytes": ' + b"9" * 5000 + b"}]}",
    ],
)
def test_a_list_that_is_none_is_named(archived: Cache, data: Path, listing: bytes) -> None:
    """One forged object would end a command with a traceback, and the other files would not be restored."""
    one = put(archived, data, listing)
    marker.write(FileSystem(), str(data / "a.marker"), Marker("a", *one, directory=True))
    assert [type(error) for error in restore(archived, data)] == [CacheError]


@pytest.mark.parametrize("field", ["name", "comment", "licence"])
def test_text_that_cannot_be_written_is_refused(data: Path, field: str) -> None:
    """A forged marker would end `marker status` of a whole repository with a traceback."""
    text = json.dumps({**json.loads(Marker("x", "0" * 64, 1).encode()), field: "\ud800"})
    with pytest.raises(UsageError):
        Marker.decode(text, "x")


def test_an_object_larger_than_its_marker_says_is_broken_off(
    archived: Cache, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends without an end would fill the user's disk."""
    came = 0

    def endless(digits: str, offset: int = 0) -> Iterator[bytes]:
        nonlocal came
        while True:
            came += 1
            assert came < 10, "it went on"
            yield bytes(1 << 16)

    marker.write(FileSystem(), str(data / "a.marker"), Marker("a", *put(archived, data, b"forged")))
    monkeypatch.setattr(archived.archive, "pieces", endless)
    assert len(restore(archived, data)) == 1
    assert everything_below(data) == {"data.csv", "a.marker"}


def test_a_file_system_that_looks_for_the_file_before_it_refuses_links(archived: Cache, data: Path) -> None:
    """Each add to an archive on such a file system (all of Linux) would fail after it was done."""
    import errno

    from sccache_dtool.disk.filesystem import FileSystem

    class WithoutLinks(FileSystem):
        def link(self, path: str, target: str) -> None:
            self.lstat(path)
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)

    archive = archived.archive
    archive.fs = WithoutLinks()
    id = archived.add(data / "data.csv")
    assert (Path(archive.url) / object_name(id[7:])).read_bytes() == b"0123456789"


def test_states_are_told_of_forged_markers(archived: Cache, data: Path, run: Callable[..., int]) -> None:
    """One forged marker would hide the states of all others."""
    archived.save(data / "data.csv")
    marker.write(FileSystem(), str(data / "a"), Marker("b" * 300, "0" * 64, 1))
    assert run("marker", "status", data) == 20
    (found,) = (one.marked for one in tree.find([str(data)]) if one.place.endswith("csv.marker"))
    assert found is not None
    assert tree.state_of(found, Memory(FileSystem())) is State.SAME
