"""Sessions that others made up, changed or broke: each does harm to itself at most."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.tool import Disk, Done, one_line_error
from faults import Failing
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import VersionFile, VersionName, unique
from sccache_dtool.policy.rules import Rules

NOBODY = "n000000000000-00000000000a"

Sc = Callable[..., Done]


def forged(disk: Disk, *, number: int = 1, text: str | None = None, **fields: Any) -> Path:
    """A session that no program made; `text`: of its data set."""
    known = {
        "format": 1,
        "label": "",
        "owner": "eve@host",
        "user": "eve",
        "holder": NOBODY,
        "created": "",
        "dataSet": [],
    }
    directory = disk.control / "sessions" / f"s{unique()}"
    (directory / "use").mkdir(parents=True)
    name = VersionName(number, unique())
    (directory / str(name)).symlink_to("-")
    (directory / str(VersionFile(name))).write_text(json.dumps({**known, **fields}) if text is None else text)
    return directory


def as_link(directory: Path) -> None:
    (file,) = directory.glob("data-*")
    file.unlink()
    file.symlink_to("/etc/passwd")


def as_fifo(directory: Path) -> None:
    (file,) = directory.glob("data-*")
    file.unlink()
    os.mkfifo(file)


def as_directory(directory: Path) -> None:
    (file,) = directory.glob("data-*")
    file.unlink()
    file.mkdir()


def with_directory_in_gate(directory: Path) -> None:
    (directory / "use" / "x" / "y").mkdir(parents=True)


def with_file_as_gate(directory: Path) -> None:
    (directory / "use").rmdir()
    (directory / "use").write_text("")


def with_link_as_gate(directory: Path) -> None:
    (directory / "use").rmdir()
    (directory / "use").symlink_to("/tmp")


def a_file_as_session(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("")


BREAK = [
    as_link,
    as_fifo,
    as_directory,
    with_directory_in_gate,
    with_file_as_gate,
    with_link_as_gate,
    a_file_as_session,
]


@pytest.mark.parametrize("broken", BREAK)
def test_a_broken_session_stops_nobody(root: Path, disk: Disk, sc: Sc, broken: Callable[[Path], None]) -> None:
    """One member of the group would keep all others from listing sessions, and from cleaning, for ever."""
    session = Cache(root).create_session({"/a": "/data/x"})
    broken(forged(disk))
    listed = sc("session", "ls", "-f", "json")
    assert session.id in [row["session"] for row in listed.rows("session")]
    for words in (["reap"], ["clean", "--all", "-y"], ["lock", "ls"]):
        done = sc(*words)
        assert done.code == 0, done
    assert sc("doctor").code in (0, 20)


@pytest.mark.parametrize("broken", BREAK)
def test_a_broken_session_can_be_deleted(disk: Disk, sc: Sc, broken: Callable[[Path], None]) -> None:
    """Nothing but `rm -r` would end it, and with it whatever it holds."""
    directory = forged(disk)
    broken(directory)
    done = sc("session", "rm", directory.name)
    assert done.code == 0, done
    assert not directory.exists()


@pytest.mark.parametrize("broken", [with_file_as_gate, with_link_as_gate, a_file_as_session])
def test_what_is_in_the_place_of_a_session_is_named(
    disk: Disk, sc: Sc, source: str, broken: Callable[[Path], None]
) -> None:
    """A session would be listed that cannot be used, and nobody be told why, and how to get rid of it."""
    directory = forged(disk, dataSet=[{"mountPath": "/a", "words": [source]}])
    broken(directory)
    done = sc("lock", "get", directory.name, "/a")
    assert "is not a directory" in one_line_error(done)
    assert f"session rm {directory.name}" in done.err
    assert disk.holders() == []
    found = [row for row in sc("doctor", "-f", "json").rows("finding") if row["finding"].startswith("not a directory")]
    assert [row["path"] for row in found] in ([str(directory)], [str(directory / "use")])
    assert f"session rm {directory.name}" in found[0]["remedy"]


def test_a_session_that_cannot_be_read_stops_nobody(root: Path, disk: Disk, tmp_path: Path) -> None:
    """A member whose session is not readable for the group would keep all others from cleaning."""
    fs = Failing()
    cache = Cache(root, fs=fs)
    session = cache.create_session({"/a": str(tmp_path / "x")})
    fs.fail("names", errno.EACCES, within=forged(disk).name)
    assert [one.id for one in cache.sessions()] == [session.id]
    cache.clean(Rules(everything=True))


@pytest.mark.parametrize("mount", ["../../x", "rel", "/a/../b", "/a//b", "/a/", "/a\0b"])
def test_a_path_that_no_session_has_is_not_shown(disk: Disk, sc: Sc, mount: str) -> None:
    """A program that puts a session's paths below a directory of its own would write outside it."""
    directory = forged(disk, dataSet=[{"item": None, "mountPath": mount}])
    for words in (["show"], ["show", "--objects"], ["object"], ["renew"], ["add"], ["remove"]):
        more = {"object": ["/x"], "add": ["/data/x:/b"], "remove": ["/b"]}.get(words[0], [])
        done = sc("session", words[0], directory.name, *words[1:], *more)
        assert done.code == 1, done
        assert f"session {directory.name} is damaged" in one_line_error(done)
        assert f"session rm {directory.name}" in done.err
    assert sc("session", "rm", directory.name).code == 0


def test_a_data_set_whose_number_cannot_grow_is_not_lost(disk: Disk, sc: Sc) -> None:
    """The next change would put a version in force that nobody can read."""
    directory = forged(disk, number=10**12 - 1)
    assert sc("session", "add", directory.name, "/data/x:/b").code == 1
    assert sc("session", "show", directory.name).code == 0


@pytest.mark.parametrize("kind", ["program", "name"])
def test_a_session_that_names_the_leases_of_others_does_not_end_them(
    root: Path, disk: Disk, sc: Sc, tmp_path: Path, kind: str
) -> None:
    """Whoever tidies up what somebody has made up would take away what a third one reads."""
    source = tmp_path / "x"
    source.write_text("x")
    cache = Cache(root)
    if kind == "program":
        held = cache.use_many({"x": str(source)})
        holder = held.holder
    else:
        owner = cache.owner("ada")
        holder = cache.enter(owner)
        cache.acquire(holder, cache.item_request([str(source)]))
    (lease,) = disk.leases()
    entry = {"item": lease.parents[2].name, "mountPath": "/x", "generation": lease.parents[1].name, "lease": lease.name}
    directory = forged(disk, holder=holder.id, dataSet=[entry])
    assert sc("session", "rm", directory.name).code == 0
    assert not directory.exists()
    assert disk.leases() == [lease]
    assert holder.prove()
    if kind == "program":
        held.release()


@pytest.mark.parametrize("fields", [{"item": "../../x"}, {"item": ".."}, {"session": "../x"}, {"session": "s1\x1b[2J"}])
def test_a_made_up_holder_stops_nobody(root: Path, disk: Disk, sc: Sc, tmp_path: Path, fields: dict[str, str]) -> None:
    """One name in the cache would keep everybody from listing locks."""
    source = tmp_path / "x"
    source.write_text("x")
    session = Cache(root).create_session({"/a": str(source)})
    lock = session.lock("/a")
    (entry,) = [path for path in disk.holders() if path.name.startswith(lock.holder.id)]
    record = {**json.loads(os.readlink(entry)), **fields}
    (entry.parent / f"{NOBODY}.0.0").symlink_to(json.dumps(record))
    for words in (["lock", "ls"], ["lock", "show", lock.id], ["lock", "show", f"{NOBODY}.0"], ["status", "--mine"]):
        done = sc(*words)
        assert done.code == (2 if words[-1] == f"{NOBODY}.0" else 0), done
    assert sc("reap").code == 0
    session.delete()
    assert not disk.leases()


def test_a_set_whose_list_names_the_leases_of_others_does_not_end_them(root: Path, disk: Disk, tmp_path: Path) -> None:
    """Whoever changes a list would have its program take away what a third one reads."""
    source = tmp_path / "x"
    source.write_text("x")
    cache = Cache(root)
    held, other = (cache.use_many({"x": str(source)}) for _ in range(2))
    (file,) = Path(held.view).parent.glob("data-*")
    (lease,) = [path for path in disk.leases() if path.name.startswith(other.holder.id)]
    fields = json.loads(file.read_text())
    entry = {**fields["dataSet"][0], "lease": lease.name}
    file.write_text(json.dumps({**fields, "holder": other.holder.id, "dataSet": [entry]}))
    held.release()
    assert disk.leases() == [lease]
    other.check()
    other.release()


def as_large_file(path: Path) -> None:
    path.write_bytes(bytes(1 << 21))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, as_large_file])
def test_a_session_whose_holder_is_not_a_record_can_be_deleted(
    root: Path, disk: Disk, sc: Sc, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Whoever replaces one name would keep a set for ever, and its items with it."""
    (tmp_path / "x").write_text("x")
    (tmp_path / "items").write_text(f"{tmp_path / 'x'} @x\n")
    view = sc("use", "--holder", "ada", "--from", tmp_path / "items").path
    (holder,) = disk.holders()
    holder.unlink()
    make(holder)
    done = sc("session", "rm", view.parent.name)
    assert done.code == 0, done
    assert not view.exists()
    ending = f"reap --holder {holder.name.partition('.')[0]}"
    assert ending in done.err
    assert sc(*ending.split(), "-y").code == 0
    assert not disk.leases()
