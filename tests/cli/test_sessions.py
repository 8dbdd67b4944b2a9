"""`session` and `lock`: what a shell sees of them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import httpserver
from cli.tool import SC_DTOOL, Disk, Done
from sccache_dtool.cache import Cache

Sc = Callable[..., Done]


@pytest.fixture
def ref(tmp_path: Path) -> str:
    """A file of ten bytes."""
    path = tmp_path / "ref"
    path.write_bytes(b"0123456789")
    return str(path)


def create(sc: Sc, *items: str) -> str:
    """A new session; its id."""
    done = sc(
        "session", "create", "--holder", f"pid:{os.getpid()}", *(word for one in items for word in ("--add", one))
    )
    assert done.code == 0, done
    return done.out.strip()


def test_a_session_that_nobody_was_told_of_is_not_left(ref: str, disk: Disk) -> None:
    """A script that fails because a disk is full could not delete what it has created."""
    with open("/dev/full", "w") as full:
        command = [SC_DTOOL, "session", "create", "--add", f"{ref}:/a"]
        assert subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL).returncode == 1
    assert disk.names("sessions") == ["gone"]
    assert not disk.holders()


def test_a_session_from_its_beginning_to_its_end(sc: Sc, ref: str, disk: Disk) -> None:
    """A script could not use what the commands print."""
    session = create(sc, f"{ref}:/a", f"{ref}:/b/c")
    assert sc("session", "ls", "-f", "json").row("session")["state"] == "active"
    lock = sc("lock", "get", session, "/b/c", "--owner", "viewer-7").out.strip()
    row = sc("lock", "ls", "--session", session, "--owner", "viewer-7", "-f", "json").row("lock")
    assert (row["lock"], row["session"], row["state"]) == (lock, session, "held")
    assert Path(row["path"]).read_bytes() == b"0123456789"
    shown = sc("session", "show", session, "--objects", "-f", "json").row("session")
    assert [(one["mount"], one["type"], one["state"]) for one in shown["data_set"]] == [
        ("/a", "item", "cached"),
        ("/b/c", "item", "cached"),
    ]
    assert sc("lock", "show", lock).code == 0
    done = [sc("lock", "release", lock) for _ in range(2)]
    assert [one.code for one in done] == [0, 0]
    assert "was already released, at" in done[1].out
    released = sc("lock", "show", lock, "-f", "json").row("lock")
    assert (released["state"], released["session"]) == ("released", session)
    sc("lock", "get", session, "/a")
    done = [sc("session", "rm", session) for _ in range(2)]
    assert [one.code for one in done] == [0, 0]
    assert "released 1 lock" in done[0].out
    assert "was deleted at" in done[1].out
    assert (disk.leases(), sc("lock", "ls").err) == ([], "no locks\n")
    assert sc("lock", "get", session, "/a").code == 2


def test_a_session_without_an_end_is_noted(sc: Sc) -> None:
    """A session would keep its locks for ever, and nobody would have been told how to bound it."""
    done = sc("session", "create")
    assert "--ttl" in done.err
    assert sc("session", "create", "--ttl", "1h").err == ""
    assert "no lifetime" in sc("session", "renew", done.out.strip()).out


@pytest.mark.parametrize("item", ["ref", "ref:", ":/a", "https://example.org/x", "'ref:/a", "nosuch://x:/a", "nope:/a"])
def test_an_item_that_means_nothing_is_refused(sc: Sc, disk: Disk, item: str) -> None:
    """A mistyped item would be put into a session, and fail when it is needed."""
    assert sc("session", "create", "--add", item).code == 2
    assert list(disk.control.glob("holders/*")) == [disk.control / "holders" / "gone"]


def test_a_source_with_colons_and_steps(sc: Sc, server: httpserver.Server) -> None:
    """The path of a source with a port would be taken for the path in the session."""
    body = b"0123456789"
    source = f"{server.page('/ref', body)} sha256:{hashlib.sha256(body).hexdigest()}"
    session = create(sc, f"{source}:/refs/ref")
    lock = sc("lock", "get", session, "/refs/ref").out.strip()
    assert sc("lock", "cat", lock, "--range", "5-9").out == "56789"
    assert len(sc("session", "show", session, "-f", "json").row("session")["data_set"][0]["words"]) == 2


def test_an_item_by_its_name(sc: Sc, ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees an item in `ls` could not put it into a session."""
    sc("use", "-n", "mine", ref)
    monkeypatch.chdir("/")
    session = create(sc, "mine:/m")
    lock = sc("lock", "get", session, "mine").out.strip()
    assert sc("lock", "cat", lock).out == "0123456789"


def test_of_two_changes_the_second_learns_of_the_first(sc: Sc, ref: str) -> None:
    """A program would overwrite what another one has changed."""
    session = create(sc, f"{ref}:/a")
    assert sc("session", "add", session, f"{ref}:/b", "--if-seq", "1").code == 0
    done = sc("session", "set", session, f"{ref}:/c", "--if-seq", "1")
    assert (done.code, "its number is 2" in done.err) == (14, True)
    assert sc("session", "set", session, f"{ref}:/c", "--if-seq", "2").code == 0


def test_a_locked_item_is_taken_out_only_by_force(sc: Sc, ref: str) -> None:
    """A change could take the data away from whoever reads it."""
    session = create(sc, f"{ref}:/a")
    lock = sc("lock", "get", session, "/a", "--owner", "viewer-7").out.strip()
    done = sc("session", "remove", session, "/a")
    assert (done.code, "viewer-7" in done.err) == (14, True)
    assert sc("session", "remove", session, "/a", "--force").code == 0
    assert sc("lock", "cat", lock).out == "0123456789"
    assert sc("session", "rm", session).code == 0
    assert sc("lock", "show", lock, "-f", "json").row("lock")["state"] == "released"


def test_the_holder_of_a_lock_is_named_by_its_session(sc: Sc, ref: str) -> None:
    """A user would not learn which session keeps an item, nor how to release it."""
    session = create(sc, f"{ref}:/a")
    lock = sc("lock", "get", session, "/a", "--owner", "window-3").out.strip()
    assert f", session {session} for window-3, since" in sc("why", "ref").out
    refused = sc("rm", "ref")
    assert refused.code == 14
    assert "release them with `sc-dtool lock release`;" in refused.err
    assert sc("session", "remove", "--force", session, "/a").code == 0
    assert sc("lock", "release", lock).out == f"released {lock}\n"
    assert sc("lock", "release", lock).out.startswith(f"{lock} was already released, at ")
    assert f"session  {session}\n" in sc("lock", "show", lock).out


def test_the_first_session_sets_up_the_cache(sc: Sc, ref: str, root: Path) -> None:
    """A service would have to run `init` before its first session, although `use` does not need that."""
    shutil.rmtree(root, ignore_errors=True)
    done = sc("session", "create", "--ttl", "1h", "--add", f"{ref}:/a")
    assert done.code == 0
    assert f"set up a new cache in {root}" in done.err
    assert ref in sc("session", "show", done.out.strip()).out


def test_an_item_of_a_set_is_not_released_alone(sc: Sc, ref: str, root: Path, tmp_path: Path) -> None:
    """`unuse` of one item of a set would name the caller's own process as the holder, and no way to release it."""
    (tmp_path / "items").write_text(f"{ref} @a")
    view = sc("use", "--from", tmp_path / "items").out.strip()
    assert re.search(r"\.0  ref +pid:[0-9]+  ", sc("lock", "ls").out) is None
    sc("use", ref)
    assert re.search(r"\.0  ref +pid:[0-9]+  ", sc("lock", "ls").out)
    sc("unuse", ref)
    session = view.split("/")[-2]
    assert f", session {session}, since" in sc("why", "ref").out
    assert "release them with `sc-dtool session rm`;" in sc("rm", "ref").err
    done = sc("unuse", ref)
    assert done.code == 0
    release = f"sc-dtool -C {root} session rm {session}"
    assert done.err.endswith(f"on {ref}; session {session} holds it with its other items: {release}\n")
    assert "deleted" in sc("session", "rm", session).out


def test_what_is_not_fetched_yet_is_not_ready(sc: Sc, root: Path, ref: str) -> None:
    """A reader would take an error for the content, or would wait without an end."""
    from sccache_dtool.liveness.record import Membership
    from sccache_dtool.protocol import sessions
    from sccache_dtool.protocol.holders import Holder

    session = create(sc, f"{ref}:/a")
    cache = Cache(root)
    key = cache.item_request([ref]).key
    holder = Holder(cache.store, sessions.lock_owner(session), None, session=Membership(session, "x", key))
    row = sc("lock", "ls", "--state", "waiting", "-f", "json").row("lock")
    assert row["lock"] == f"{holder.id}.0"
    done = sc("lock", "cat", row["lock"], "--wait", "0s")
    assert (done.code, done.out) == (11, "")
    assert "is not ready: waiting" in done.err


@pytest.mark.parametrize("path", ["/ab", "/a/../b", "a", "/a/x"])
def test_a_path_where_nothing_is(sc: Sc, ref: str, path: str) -> None:
    """A script could not tell a wrong path from an item that is still to be fetched."""
    session = create(sc, f"{ref}:/a")
    sc("lock", "get", session, "/a")
    assert sc("session", "object", session, path).code == 2
    found = sc("session", "object", session, "/", "--children", "-f", "json").row("object")
    assert (found["kind"], found["children"]) == ("folder", [{"name": "a", "type": "item"}])


def test_a_directory_is_read_as_an_archive(sc: Sc, tmp_path: Path) -> None:
    """The content of an item that is a directory could not be had."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_text("hello")
    session = create(sc, f"{tmp_path / 'd'}:/d")
    lock = sc("lock", "get", session, "/d").out.strip()
    done = sc("lock", "cat", lock)
    assert (done.code, "--tar" in done.err) == (2, True)
    assert sc("lock", "cat", lock, "--path", "x").out == "hello"
    assert "hello" in sc("lock", "cat", lock, "--tar").out


def test_a_session_of_a_manifest(sc: Sc, ref: str, tmp_path: Path, disk: Disk) -> None:
    """Whoever has a manifest would have to write its items once more; or half of a wrong one would be taken."""
    manifest = tmp_path / "items.toml"
    manifest.write_text(f'[[item]]\nsource = "{ref}"\nname = "genes"\nat = "refs/genes"\n')
    session = sc("session", "create", "--ttl", "1h", "--add", f"{ref}:/a", "--from", manifest).out.strip()
    row = sc("session", "show", session, "-f", "json").row("session")
    assert [one["mount"] for one in row["data_set"]] == ["/a", "/refs/genes"]
    lock = sc("lock", "get", session, "/refs/genes").out.strip()
    assert sc("lock", "cat", lock).out == "0123456789"
    assert sc("session", "rm", session).code == 0
    manifest.write_text(f'[[item]]\nsource = "{ref}"\nat = "a"\n')
    before = [*os.walk(disk.control)]
    done = sc("session", "create", "--ttl", "1h", "--add", f"{ref}:/a", "--from", manifest)
    assert (done.code, "two items have the path /a" in done.err) == (2, True)
    assert [*os.walk(disk.control)] == before
