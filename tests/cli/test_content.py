"""`add`, `save`, `get`, `cat`, `marker`, `archive`, `index`, as commands."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import Done, call
from sccache_dtool.errors import Exit

Sc = Callable[..., Done]

TEN = b"0123456789"
ID = f"sha256:{hashlib.sha256(TEN).hexdigest()}"


@pytest.fixture
def place(root: Path, tmp_path: Path, sc: Sc, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a project with data.csv. The cache has an archive."""
    (tmp_path / "archive").mkdir()
    (root / ".sc-dtool" / "config.toml").write_text(f'[archive]\nurl = "{tmp_path}/archive"\nlimit = "1kB"\n')
    assert sc("archive", "init").code == 0
    project = tmp_path / "project"
    project.mkdir()
    (project / "data.csv").write_bytes(TEN)
    monkeypatch.chdir(project)
    return project


def test_add_prints_ids_and_all_commands_take_them(place: Path, sc: Sc) -> None:
    """A script could not pass on what it has added."""
    assert sc("add", "data.csv") == Done(0, f"{ID}\n", "")
    assert sc("use", ID).path.read_bytes() == TEN
    assert sc("unuse", ID).code == 0
    assert sc("get", ID, "-o", "copy").code == 0
    assert (place / "copy").read_bytes() == TEN
    assert sc("get", ID, "-o", "copy").code == Exit.USAGE
    assert sc("get", ID, "-o", "copy", "--force").code == 0
    assert call("cat", ID, "--offset", "4").out == "456789"
    assert sc("index", "has", ID).code == 0
    assert sc("index", "has", f"sha256:{'0' * 64}").code == 1
    assert sc("index", "known").out == f"{ID}\n"


def test_the_cycle_of_a_file(place: Path, sc: Sc) -> None:
    """A file that was saved and removed would not come back with one command."""
    done = sc("save", "data.csv", "--gitignore", "--remove", "--comment", "first")
    assert (done.code, sorted(os.listdir("."))) == (0, [".gitignore", "data.csv.marker"])
    assert (place / ".gitignore").read_text() == "/data.csv\n"
    assert sc("marker", "status").code == Exit.FINDINGS
    assert sc("-f", "json", "marker", "status").row("marker")["state"] == "absent"
    assert sc("marker", "restore").code == 0
    assert (place / "data.csv").read_bytes() == TEN
    assert sc("marker", "status", "--verify").code == 0
    assert sc("marker", "verify").code == 0
    (place / "data.csv").write_bytes(b"x" * 10)
    assert sc("marker", "restore").code == Exit.PARTIAL
    assert sc("marker", "restore", "--force", "--delete-markers").code == 0
    assert sorted(os.listdir(".")) == [".gitignore", "data.csv"]


def test_a_missing_object_is_named_and_the_marker_stays(place: Path, sc: Sc, tmp_path: Path) -> None:
    """The only trace of a file would be deleted although the file was not restored."""
    (place / "other").write_text("other")
    sc("save", "data.csv", "other", "--remove", "--archive-only")
    (tmp_path / "archive" / "objects" / ID[7:9] / ID[9:]).unlink()
    done = sc("marker", "restore", "--delete-markers")
    assert done.code == Exit.PARTIAL
    assert f"{ID} is not in the archive" in done.err
    assert sorted(os.listdir(".")) == ["data.csv.marker", "other"]
    assert sc("marker", "verify").code == Exit.FINDINGS
    assert "lost" in sc("marker", "status").out


def test_save_a_tree(place: Path, sc: Sc) -> None:
    """Markers and git's own files would be archived as data, again with each save."""
    (place / "raw").mkdir()
    for name in ("a", "b", ".gitignore"):
        (place / "raw" / name).write_text(name)
    assert sc("save", "-r", "raw").code == 0
    assert sc("save", "-r", "raw").code == 0
    assert sorted(os.listdir("raw")) == [".gitignore", "a", "a.marker", "b", "b.marker"]
    assert sc("save", "raw").code == Exit.USAGE
    assert sc("save", "-r", "--as-one", "raw").code == Exit.USAGE
    assert sc("save", "--as-one", "raw").code == 0
    assert (place / "raw.marker").exists()


def test_one_file_that_cannot_be_saved_stops_no_other(place: Path, sc: Sc) -> None:
    """A save of a thousand files would have to be begun again because of one."""
    (place / "large").write_bytes(b"x" * 2000)
    done = sc("save", "large", "nothing", "data.csv")
    assert done.code == Exit.PARTIAL
    assert "[archive] limit" in done.err
    assert (place / "data.csv.marker").exists()
    assert not (place / "large.marker").exists()
    assert sc("add", "large").code == Exit.NO_SPACE
    assert sc("add", "large", "--archive-only").code == 0


def test_an_object_above_the_limit_is_read_from_the_archive(place: Path, sc: Sc) -> None:
    """A file that the archive has could not be had at all."""
    (place / "large").write_bytes(b"x" * 2000)
    sc("save", "large", "--archive-only", "--remove")
    assert sc("marker", "restore").code == 0
    assert (place / "large").read_bytes() == b"x" * 2000
    assert sc("ls").out == ""


def test_later_and_push(place: Path, sc: Sc, tmp_path: Path) -> None:
    """Work would stop while the archive is away, or its results would be lost."""
    (tmp_path / "archive").rename(tmp_path / "away")
    assert sc("add", "data.csv").code == Exit.FETCH_FAILED
    done = sc("add", "data.csv", "--later")
    assert (done.code, done.out) == (0, f"{ID}\n")
    assert "archive push" in done.err
    assert "archived" in sc("pin").out
    assert sc("clean", "--all", "-y").code == 0
    assert sc("archive", "push").code == Exit.PARTIAL
    (tmp_path / "away").rename(tmp_path / "archive")
    assert sc("archive", "push").code == 0
    assert sc("clean", "--all", "-y").code == 0
    assert sc("ls").out == ""
    assert sc("archive", "verify").code == 0


def test_a_damaged_object(place: Path, sc: Sc, tmp_path: Path) -> None:
    """Nobody would learn which file has to come from the backup."""
    sc("save", "data.csv", "--archive-only")
    path = tmp_path / "archive" / "objects" / ID[7:9] / ID[9:]
    path.chmod(0o644)
    path.write_bytes(b"012345678X")
    for words in (("use", ID), ("get", ID, "-o", "x"), ("cat", "data.csv.marker")):
        done = sc(*words)
        assert done.code == Exit.FETCH_FAILED
        assert ID in done.err
        assert str(path) in done.err
    assert not (place / "x").exists()
    assert sc("archive", "verify").code == Exit.FINDINGS
    assert sc("marker", "verify").code == Exit.FINDINGS


def test_append_comment_and_index(place: Path, sc: Sc) -> None:
    """A log could not grow, or its comments would be seen by nobody."""
    sc("save", "data.csv")
    (place / "more").write_text("abc")
    assert sc("marker", "append", "data.csv", "more").code == 0
    assert call("cat", "data.csv.marker", "--offset", "8").out == "89abc"
    (place / "one").write_text("one")
    sc("save", "one")
    assert sc("marker", "comment", "one.marker", "see issue 7").code == 0
    rows = sc("-f", "json", "index", "ls", "--comments").rows("entry")
    assert [(row["name"], row["comment"]) for row in rows] == [("one", "see issue 7")]
    assert sc("index", "add", rows[0]["id"], "--comment", "again").code == 0
    assert len(sc("-f", "json", "index", "ls", rows[0]["id"]).rows("entry")) == 3
    for form in ("csv", "json", "sqlite"):
        assert sc("index", "export", "--to", form, f"index.{form}").code == 0
        assert (place / f"index.{form}").exists()


def test_adopting_and_orphans(place: Path, sc: Sc, tmp_path: Path) -> None:
    """The files of a predecessor, or those that nobody needs, could not be told from the others."""
    md5 = hashlib.md5(b"one", usedforsecurity=False).hexdigest()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / f"{md5}.cache").write_bytes(b"one")
    (tmp_path / "old" / "index.csv").write_text(f"{md5},x\n{'0' * 32},y\n")
    done = sc("archive", "adopt", tmp_path / "old")
    assert done.code == Exit.PARTIAL
    assert f"md5:{md5} is sha256:" in done.out
    assert sc("index", "import", tmp_path / "old" / "index.csv").code == Exit.PARTIAL
    assert call("cat", f"md5:{md5}").out == "one"
    assert sc("archive", "orphans").code == Exit.USAGE
    assert sc("archive", "orphans", "--markers", place) == Done(0, "", "")


def test_without_an_archive(sc: Sc, tmp_path: Path) -> None:
    """The user would not be told what to set."""
    (tmp_path / "x").write_text("x")
    for words in (("add", "x"), ("marker", "restore"), ("archive", "init"), ("index", "ls")):
        done = sc(*words)
        assert done.code == Exit.USAGE
        assert "config.toml" in done.err


WRONG_WORDS = [
    (["cat", "sha256:00"], "'00' is not a sha256 digest: expected 64 hexadecimal digits, not 2"),
    (["get", "sha256:00", "-o", "x"], "expected 64 hexadecimal digits"),
    (["cat", "md5:00"], "'00' is not an MD5"),
    (["cat", "nothing"], "nothing does not exist"),
    (["get", "nothing", "-o", "x"], "nothing does not exist"),
    (["add", "x", "--comment", "c" * 10_001], "a comment has at most"),
    (["save", "x", "--comment", "c" * 10_001], "a comment has at most"),
    (["save", "x", "--link", "--remove"], "--link cannot be combined"),
    (["marker", "comment", "nothing", "text"], "nothing does not exist"),
    (["marker", "append", "nothing", "x"], "nothing does not exist"),
    (["archive", "verify", "sha256:00"], "expected 64 hexadecimal digits"),
    (["archive", "verify", "nothing"], "'nothing' is not an identifier"),
    (["archive", "orphans", "--markers", "nothing"], "nothing does not exist"),
    (["archive", "adopt", "nothing"], "nothing/index.csv"),
    (["index", "ls", "sha256:00"], "expected 64 hexadecimal digits"),
    (["index", "has", "sha256:00"], "expected 64 hexadecimal digits"),
    (["index", "add", "sha256:00"], "expected 64 hexadecimal digits"),
    (["index", "import", "nothing"], "there is no file nothing"),
]


@pytest.mark.parametrize(("words", "text"), WRONG_WORDS, ids=[" ".join(words)[:40] for words, _ in WRONG_WORDS])
def test_what_is_wrong_with_the_words_comes_first(sc: Sc, tmp_path: Path, words: list[str], text: str) -> None:
    """Somebody who mistyped an id would be sent to the administrator, to set up an archive."""
    done = sc(*words)
    assert done.code not in (Exit.DONE, Exit.FINDINGS)
    assert text in done.err
    assert "has no archive" not in done.err


def test_a_link_is_made_only_in_a_command_of_run(place: Path, sc: Sc) -> None:
    """A link would lead nowhere after the next cleaning, or a job would be told that it saved space when it has not."""
    done = sc("save", "data.csv", "--link")
    assert done.code == 0
    assert not (place / "data.csv").is_symlink()
    assert "a link needs a lease that lasts" in done.out or "reflink" in done.out
    script = (
        "sc-dtool -q -f json save data.csv --link && readlink data.csv && sc-dtool -q clean --all -y && cat data.csv"
        " && sc-dtool marker status"
    )
    done = call("run", "--name", "nothing", "--", "sh", "-c", script)
    assert done.code == 0, done
    assert '"kept":"link"' in done.out.replace(" ", "")
    assert TEN.decode() in done.out
    assert (place / "data.csv").is_symlink()
    assert sc("clean", "--all", "-y").code == 0  # the command has ended, and its lease with it
    assert not (place / "data.csv").exists()
    assert sc("-f", "json", "marker", "status").row("marker")["state"] == "absent"
    assert sc("marker", "restore").code == 0
    assert not (place / "data.csv").is_symlink()
    assert (place / "data.csv").read_bytes() == TEN


def test_the_variable_of_another_process_gives_no_link(place: Path, sc: Sc, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that a command of `run` left behind would be given links that nothing keeps valid."""
    monkeypatch.setenv("SC_DTOOL_RUN", "1000000000")
    assert sc("-f", "json", "save", "data.csv", "--link").row("saved")["kept"] != "link"
