"""Where a cache is, whether it is one, and setting one up."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from faults import Counting, Failing, LostReplies
from sccache_dtool.disk import root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import DIRECTORIES, Layout
from sccache_dtool.errors import CacheError, Exit, NoCache, UsageError

FS = FileSystem()
VARIABLE = "DTOOL_CACHE_DIRECTORY"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without anything in it."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    return path


# -- which directory ---------------------------------------------------------------------------------------------------


def configure(home: Path, text: str) -> None:
    path = home / ".config" / "dtool"
    path.mkdir(parents=True)
    (path / "dtool.json").write_text(text)


def test_the_directory_is_chosen_as_dtool_does(home: Path) -> None:
    """Dtool and sc-dtool would use two caches, and nobody would clean the one that is full."""
    assert root.choose(None, {})[:2] == (f"{home}/.cache/dtool", "the default")
    configure(home, json.dumps({VARIABLE: "/from/file"}))
    assert root.choose(None, {})[0] == "/from/file"
    assert root.choose(None, {VARIABLE: "/from/env"})[:2] == ("/from/env", f"${VARIABLE}")
    assert root.choose("/given", {VARIABLE: "/from/env"})[:2] == ("/given", "--cache-dir")


def test_without_a_home_directory_there_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory called ``~`` would become a cache wherever a service without a home was started."""
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(UsageError, match="no home directory"):
        root.choose(None, {})


def test_only_dtools_own_directory_may_hold_data(home: Path) -> None:
    """A slip in --cache-dir would make a cache of somebody's data directory."""
    assert not root.choose("/given", {}).may_hold_data
    assert root.choose(None, {VARIABLE: "/x"}).may_hold_data
    assert root.choose(None, {}).may_hold_data


def test_a_directory_is_made_absolute(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of directory a command would work on another cache."""
    monkeypatch.chdir(tmp_path)
    assert root.choose("cache", {}).path == f"{tmp_path}/cache"
    assert root.choose("~/cache", {}).path == f"{home}/cache"


@pytest.mark.parametrize("text", ["", " ", "\t", "a\nb", "a\0b", "~nobody-of-that-name/cache"])
def test_what_is_no_directory_is_refused(home: Path, text: str) -> None:
    """An empty variable in a batch script would make a cache of the working directory."""
    with pytest.raises(UsageError):
        root.choose(text, {})
    with pytest.raises(UsageError):
        root.choose(None, {VARIABLE: text})


@pytest.mark.parametrize("text", ["", "garbage", "[]", "{}", '{"DTOOL_CACHE_DIRECTORY": 7}', "null"])
def test_a_dtool_file_that_says_nothing_is_passed_over(home: Path, text: str) -> None:
    """A broken file of dtool's would end every command with a traceback."""
    configure(home, text)
    assert root.choose(None, {}).origin == "the default"


# -- setting up --------------------------------------------------------------------------------------------------------


def test_a_cache_is_complete_when_it_is_seen(tmp_path: Path) -> None:
    """A user who comes in the middle of `init` would find half a cache."""
    place = Layout(str(tmp_path / "a" / "cache"))
    fs = Counting()
    assert root.set_up(fs, place) is True
    for name in DIRECTORIES:
        assert os.path.isdir(f"{place.control}/{name}")
    assert len(root.check(FS, place)) == 32
    assert Path(place.tag_file).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    assert sorted(os.listdir(place.root)) == [".sc-dtool", "CACHEDIR.TAG"]
    (made_visible,) = [call for call in fs.calls if call.kind == "rename"]
    assert made_visible.arguments[1] == place.control


def test_without_parents_only_the_last_directory_is_made(tmp_path: Path) -> None:
    """A mistyped path, or one on a file system that is not mounted, would become a cache."""
    with pytest.raises(NoCache, match="its parent directory does not exist") as caught:
        root.set_up(FS, Layout(str(tmp_path / "a" / "b" / "cache")), parents=False)
    assert f"sc-dtool --cache-dir {tmp_path}/a/b/cache init" in (caught.value.hint or "")
    assert os.listdir(tmp_path) == []
    assert root.set_up(FS, Layout(str(tmp_path / "cache")), parents=False) is True
    (tmp_path / "there").mkdir()
    assert root.set_up(FS, Layout(str(tmp_path / "there")), parents=False) is True


def test_only_a_default_that_nobody_has_typed_may_be_made_whole(home: Path) -> None:
    """On a new account, dtool's own place could not be used, as there is no ~/.cache; or a mistyped one would be."""
    assert root.choose(None, {}).parents
    configure(home, json.dumps({VARIABLE: "/from/file"}))
    for choice in (root.choose(None, {}), root.choose(None, {VARIABLE: "/x"}), root.choose("/x", {})):
        assert not choice.parents


def test_without_a_home_nothing_is_made_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where home directories are not mounted, one would be made."""
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    assert not root.choose(None, {}).parents


def test_setting_up_twice_changes_nothing(layout: Layout) -> None:
    """A second `init` would empty a cache that is in use."""
    before = root.check(FS, layout)
    Path(layout.items, "ab").mkdir()
    assert root.set_up(FS, layout) is False
    assert root.check(FS, layout) == before
    assert os.listdir(layout.items) == ["ab"]
    assert sorted(os.listdir(layout.root)) == [".sc-dtool", "CACHEDIR.TAG"]


def test_files_that_are_there_are_left_alone(tmp_path: Path) -> None:
    """`init` in a directory with data would damage it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("mine")
    (tmp_path / "CACHEDIR.TAG").write_text("somebody's own")
    root.set_up(FS, Layout(str(tmp_path)))
    assert (tmp_path / "data" / "mine").read_text() == "mine"
    assert (tmp_path / "CACHEDIR.TAG").read_text() == "somebody's own"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_of_many_who_set_up_at_once_one_does(tmp_path: Path) -> None:
    """The first jobs of a run would each make a cache, and see different ones."""
    place = Layout(str(tmp_path / "cache"))
    gate_read, gate_write = os.pipe()
    result_read, result_write = os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            os.close(gate_write)
            os.read(gate_read, 1)  # until the parent has let go of it
            try:
                made = root.set_up(FS, place)
                os.write(result_write, f"{int(made)} {root.check(FS, place)}\n".encode())
            finally:
                os._exit(0)
        children.append(child)
    os.close(gate_write)
    os.close(result_write)
    for child in children:
        os.waitpid(child, 0)
    with open(result_read) as file:
        results = [line.split() for line in file]
    os.close(gate_read)
    assert len(results) == 8
    assert sum(int(made) for made, _ in results) == 1
    assert len({id for _, id in results}) == 1
    assert sorted(os.listdir(place.root)) == [".sc-dtool", "CACHEDIR.TAG"]


def test_a_lost_reply_to_setting_up_is_no_error(tmp_path: Path) -> None:
    """The first job of a run would fail because its server restarted."""
    fs = LostReplies()
    fs.lose("rename")
    place = Layout(str(tmp_path / "cache"))
    assert root.set_up(fs, place) is False
    assert root.check(FS, place)


@pytest.mark.parametrize("kind", ["mkdir", "create", "write", "sync", "rename"])
def test_a_set_up_that_fails_leaves_nothing(tmp_path: Path, kind: str) -> None:
    """After a full disk a directory would be neither a cache nor empty."""
    fs = Failing()
    (tmp_path / "cache").mkdir()
    fs.fail(kind, errno.ENOSPC, within=".sc-dtool" if kind in ("mkdir", "create", "rename") else "")
    with pytest.raises(CacheError):
        root.set_up(fs, Layout(str(tmp_path / "cache")))
    assert os.listdir(tmp_path / "cache") == []


def test_a_control_directory_that_is_no_caches_is_kept(tmp_path: Path) -> None:
    """`init` would replace a cache whose FORMAT was lost, with all that is in it."""
    (tmp_path / ".sc-dtool" / "items").mkdir(parents=True)
    with pytest.raises(CacheError):
        root.set_up(FS, Layout(str(tmp_path)))
    assert os.listdir(tmp_path) == [".sc-dtool"]
    assert os.listdir(tmp_path / ".sc-dtool") == ["items"]


def test_the_root_directory_is_refused() -> None:
    """`sc-dtool -C / init` would make a cache of the whole machine."""
    for path in ("/", "//", "/tmp/.."):
        with pytest.raises(UsageError, match="root directory") as caught:
            root.set_up(FS, Layout(path))
        assert caught.value.exit_code is Exit.USAGE


def test_home_directories_are_refused(home: Path, tmp_path: Path) -> None:
    """A slip would make a cache of a home directory, and a cleaner's mistake cost what is in it."""
    (tmp_path / "link").symlink_to(home)
    for path in (home, tmp_path / "link", f"{home}/x/.."):
        with pytest.raises(UsageError, match="home directory"):
            root.set_up(FS, Layout(str(path)))
    assert os.listdir(home) == []
    assert root.set_up(FS, Layout(str(home / "cache")))


def test_datasets_are_refused(tmp_path: Path) -> None:
    """A dtool dataset, which never changes, would be changed."""
    (tmp_path / ".dtool").mkdir()
    with pytest.raises(UsageError, match="dataset"):
        root.set_up(FS, Layout(str(tmp_path)))
    assert os.listdir(tmp_path) == [".dtool"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    """A slip would end with a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be a cache"):
        root.set_up(FS, Layout(str(tmp_path / "file")))


def test_a_dangling_link_is_an_error(tmp_path: Path) -> None:
    """Where a scratch file system is not mounted, `init` would recurse until it breaks."""
    (tmp_path / "link").symlink_to(tmp_path / "not" / "there")
    with pytest.raises((CacheError, OSError)):
        root.set_up(FS, Layout(str(tmp_path / "link")))
    with pytest.raises((CacheError, OSError)):
        root.set_up(FS, Layout(str(tmp_path / "link" / "cache")))
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize(("mode", "shared"), [(0o2775, True), (0o775, True), (0o755, False), (0o700, False)])
def test_a_group_shares_what_is_in_a_directory_that_it_shares(tmp_path: Path, mode: int, shared: bool) -> None:
    """The second user of a group could not take a lease, or a private cache would be open to others."""
    tmp_path.chmod(mode)
    before = os.umask(0o077)
    try:
        root.set_up(FS, Layout(str(tmp_path)))
    finally:
        os.umask(before)
    place = Layout(str(tmp_path))
    root.check(FS, place)
    assert place.shared is shared
    for name in ("", *DIRECTORIES):
        bits = os.stat(f"{place.control}/{name}").st_mode
        assert bool(bits & stat.S_IWGRP and bits & stat.S_ISGID) is shared
        assert not bits & stat.S_IRWXO
    assert bool(os.stat(place.format_file).st_mode & stat.S_IRGRP) is shared


# -- checking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "sc-dtool cache",
        "sc-dtool cache\n",
        "sc-dtool cache\nversion: 1\n",
        "sc-dtool cachex\nversion: 1\nid: a\n",
        " sc-dtool cache\nversion: 1\nid: a\n",
        "x" * 10_000,
        "version: 1\nid: a\n",
    ],
)
def test_what_is_no_format_is_no_cache(layout: Layout, text: str) -> None:
    """Somebody's own directory of that name would be emptied."""
    os.unlink(layout.format_file)
    Path(layout.format_file).write_text(text)
    with pytest.raises(NoCache) as caught:
        root.check(FS, layout)
    assert caught.value.exit_code is Exit.NO_CACHE


@pytest.mark.parametrize("version", ["0", "2", "10", "1.0", "1 ", "x", ""])
def test_another_version_is_refused(layout: Layout, version: str) -> None:
    """A newer release's cache would be damaged."""
    os.unlink(layout.format_file)
    Path(layout.format_file).write_text(f"sc-dtool cache\nversion: {version}\nid: abc\n")
    with pytest.raises(CacheError, match="format"):
        root.check(FS, layout)


@pytest.mark.parametrize("id", ["../../x", "a/b", "", "x" * 65, "ABC", "g"])
def test_an_id_that_nobody_of_ours_makes_is_refused(layout: Layout, id: str) -> None:
    """It becomes part of a path in each user's own directory: a hostile cache could write wherever they can."""
    os.unlink(layout.format_file)
    Path(layout.format_file).write_text(f"sc-dtool cache\nversion: 1\nid: {id}\n")
    with pytest.raises(NoCache):
        root.check(FS, layout)


def test_no_link_is_followed_to_a_format(layout: Layout, tmp_path: Path) -> None:
    """A directory of somebody's own could be made a cache by a link to another's FORMAT."""
    os.rename(layout.format_file, tmp_path / "FORMAT")
    os.symlink(tmp_path / "FORMAT", layout.format_file)
    with pytest.raises(NoCache):
        root.check(FS, layout)


def test_a_fifo_does_not_hang(layout: Layout) -> None:
    """A prank of another user would let every command wait for ever."""
    os.unlink(layout.format_file)
    os.mkfifo(layout.format_file)
    with pytest.raises(NoCache):
        root.check(FS, layout)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_format_that_cannot_be_read_is_no_cache(layout: Layout, error: int) -> None:
    """A passing fault would look like "no cache here", and `use` would set up another one."""
    fs = Failing()
    fs.fail("read_text", error)
    with pytest.raises(NoCache, match="cannot tell"):
        root.check(fs, layout)


def test_an_empty_directory_is_told(tmp_path: Path) -> None:
    """A directory with data would become a cache at first use, or an empty one would not."""
    assert root.is_empty(FS, str(tmp_path / "missing"))
    assert root.is_empty(FS, str(tmp_path))
    (tmp_path / ".sc-dtool.0123456789abcdef").mkdir()
    (tmp_path / "CACHEDIR.TAG").touch()
    assert root.is_empty(FS, str(tmp_path))
    (tmp_path / "mine").touch()
    assert not root.is_empty(FS, str(tmp_path))


def test_a_root_that_is_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    """Every link has mode 777: a private cache would be opened to the group, and warned of by every command."""
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("real")
    fs, place = FileSystem(), Layout(str(tmp_path / "link"))
    root.set_up(fs, place)
    assert not place.shared
    assert root.open_to_all(fs, place) == []


def test_a_control_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """A colleague could have all commands work in another cache than the one that was meant."""
    fs = FileSystem()
    for name in ("mine", "shared"):
        root.set_up(fs, Layout(str(tmp_path / name)))
    (tmp_path / "shared" / ".sc-dtool").rename(tmp_path / "aside")
    (tmp_path / "shared" / ".sc-dtool").symlink_to(tmp_path / "mine" / ".sc-dtool")
    with pytest.raises(
        NoCache, match=r"the path contains a symbolic link, which is not followed: .*/shared/\.sc-dtool"
    ):
        root.check(fs, Layout(str(tmp_path / "shared")))
