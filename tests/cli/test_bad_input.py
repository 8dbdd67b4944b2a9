"""Input that makes no sense: refused with the reason in one line, and nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import PYTHON, SC_DTOOL, Disk, Done, call, config, environment, one_line_error, shell
from httpserver import Server
from sccache_dtool.disk.filesystem import FileSystem

Sc = Callable[..., Done]

SIZES = ["101", "10 B", "10 kB", "1.5GB", "10GiB", "1TB"]
NO_SIZES = [
    "10tb",
    "10 GBB",
    "GB",
    "-5",
    "1e9",
    "1,5GB",
    "",
    " ",
    "1.GB",
    "0x10",
    "9" * 400 + ".5GB",
    "9" * 5000,
    "∞",
    "١GB",
]
NO_DURATIONS = ["30", "30x", "d", "-1d", "1h30m", "", "1 day", "9" * 400 + "w", "99999999999w", "nan", "1e3s", "٣d"]


# -- sizes and ages ----------------------------------------------------------------------------------------------------


@pytest.mark.no_cache
@pytest.mark.parametrize("option", [["clean", "--retain-size"], ["use", "-n", "x", "--size"]])
@pytest.mark.parametrize("text", NO_SIZES)
def test_no_size(sc: Sc, option: list[str], text: str, disk: Disk) -> None:
    """A size that is silently read as 0 deletes everything."""
    done = sc(*option, text)
    assert done.code == 2
    assert "kB MB GB TB PB (powers of 1000), KiB MiB GiB TiB PiB (powers of 1024)" in one_line_error(done)
    assert not disk.root.exists()


@pytest.mark.parametrize("text", SIZES)
def test_a_size(sc: Sc, text: str) -> None:
    """A size as people write it would be refused."""
    sc("init")
    assert sc("clean", "--retain-size", text).code == 0


@pytest.mark.no_cache
@pytest.mark.parametrize(
    "option",
    [
        ["clean", "--older-than"],
        ["log", "--since"],
        ["use", "-n", "x", "--ttl"],
        ["use", "-n", "x", "--wait"],
        ["rm", "x", "--trash"],
    ],
)
@pytest.mark.parametrize("text", NO_DURATIONS)
def test_no_duration(sc: Sc, option: list[str], text: str, disk: Disk) -> None:
    """`--older-than 30` would be seconds to us and days to the user, and the cache would be empty."""
    done = sc(*option, text)
    assert done.code == 2
    error = one_line_error(done)
    assert "a number with a unit: 90s, 15m, 12h, 30d, 4w" in error or "the longest duration is" in error
    assert not disk.root.exists()


@pytest.mark.no_cache
@pytest.mark.parametrize("text", ["0s", "0.5s", "0w"])
def test_a_lifetime_of_nothing(sc: Sc, source: str, text: str, disk: Disk) -> None:
    """A heart that beats without a pause would keep the file server busy, for a lease that has ended already."""
    done = sc("use", "--ttl", text, source)
    assert done.code == 2
    assert "s is too short" in one_line_error(done)
    assert not disk.root.exists()


def test_the_longest_lifetime_is_not_taken_for_none(sc: Sc, source: str, disk: Disk) -> None:
    """A lifetime whose end is too long a number would make the lease of a living process look abandoned."""
    assert sc("use", "--ttl", "52000w", source).code == 0
    assert sc("use", "--ttl", "53000w", source).code == 2
    assert sc("reap").out == "ended 0 leases\n"
    assert len(disk.leases()) == 1


@pytest.mark.no_cache
@pytest.mark.parametrize(
    "text",
    [
        "[lease]\nttl = 30\n",
        '[lease]\nttl = "30"\n',
        '[lease]\nttl = "0s"\n',
        '[lease]\nheartbeat_ttl = "0s"\n',
        "[lease]\nttl = [1]\n",
        "[lease\n",
        "\0",
    ],
)
def test_a_setting_that_means_nothing(sc: Sc, source: str, disk: Disk, text: str) -> None:
    """A slip in config.toml would be a traceback to every job, or another lifetime than was meant."""
    sc("init")
    config(disk.root, text)
    done = sc("use", source)
    assert done.code == 1
    assert "config.toml" in one_line_error(done)
    assert disk.left() == []


#: What each mistake in config.toml stops, and what it does not; `x` is in the cache and idle, `y` is not in it.
NEEDS = {
    '[lease]\nttl = "30"\n': (["use x", "clean --all -y"], ["unuse x", "rm x", "use --ttl 1h x", "du", "reap"]),
    '[fetch]\nwait = "soon"\n': (
        ["use y"],
        ["use x", "use --wait 1m --upstream= y", "run x -- true", "clean --all -y", "du"],
    ),
    "[clean]\ntrash = 7d\n": (
        ["clean --all -y", "clean", "rm x", "clean --all -n --trash 0s", "use --make-room --size 999PB y"],
        ["use x", "use y", "run x -- true", "unuse x", "du", "reap", "restore"],
    ),
    "[dtool]\ndirectories = 1\n": (["du"], ["use x", "use y", "run x -- true", "unuse x", "rm x", "reap", "status"]),
    "[lease\n": (["use x", "clean --all -y"], ["unuse x", "ls", "log", "why x", "dir", "transfers", "reap"]),
}


@pytest.mark.parametrize(
    ("text", "line", "stopped"),
    [(text, line, False) for text, (_, goes) in NEEDS.items() for line in goes]
    + [(text, line, True) for text, (stops, _) in NEEDS.items() for line in stops],
)
def test_a_mistake_stops_only_what_needs_its_table(
    sc: Sc, tmp_path: Path, disk: Disk, text: str, line: str, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error in the policy of cleaning would stop every job that uses the cache."""
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        (tmp_path / name).write_text(name)
    sc("use", "x")
    sc("unuse", "x")
    config(disk.root, text)
    done = sc(*line.split())
    if stopped:
        assert done.code == 1
        table = text.partition("]")[0].partition("\n")[0]
        assert f"config.toml: {table}]" in one_line_error(done) or "[lease\n" in text
        assert "config.toml" in one_line_error(done)
    else:
        assert done.code == 0, done
    assert disk.leases() == [] or line.startswith("use")


@pytest.mark.parametrize("text", NEEDS)
def test_a_mistake_is_reported_by_whoever_looks(sc: Sc, disk: Disk, text: str) -> None:
    """The data manager would hear of it from users, one by one."""
    config(disk.root, text)
    status = sc("status")
    assert status.code == 0
    assert "warning: " in status.err
    shown = sc("config", "show")
    assert shown.code == 1
    doctor = sc("doctor")
    assert doctor.code == 20
    for said in (status.err, shown.err, doctor.out):
        assert "config.toml" in said
    if text != "[lease\n":
        assert text[1:6] not in shown.out
        assert shown.out.count("\n") >= 10 or text.startswith("[clean]")


def test_a_setting_that_nobody_knows(sc: Sc, source: str, disk: Disk) -> None:
    """A mistyped setting would be passed over in silence, and one of a later release would stop all jobs."""
    sc("init")
    config(disk.root, '[lease]\ntll = "1d"\n[quota]\nsize = "1TB"\n')
    done = sc("use", source)
    assert done.code == 0
    assert "config.toml: [lease] tll is not a setting" in done.err
    assert "config.toml: [quota] size is not a setting" in done.err


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.no_cache
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["use"], "nothing to use"),
        (["unuse"], "no item is given"),
        (["use", ""], "a source or step is empty"),
        (["use", "gopher://example.org/x"], "unknown kind of source 'gopher'"),
        (["use", "http://"], "cannot read"),
        (["use", "http://host:99999/x"], "cannot read the host and port"),
        (["use", "x", "untie"], "untie is not a step"),
        (["use", "x", "sha256:abc"], "expected 64 hexadecimal digits"),
        (["use", "x", "crc33:00000000"], "crc33"),
        (["use", "x", "tar", "md5:" + "0" * 32], "cannot come after tar"),
        (["use", "md5:" + "0" * 32, "x"], "the first word must be a source"),
        (["use", "-n", ""], "cannot be an item's name"),
        (["use", "-n", "a\nb"], "cannot be an item's name"),
        (["use", "-n", "x" * 201], "cannot be an item's name"),
        (["use", "a\nb"], "control character"),
        (["use", "a\x1b[31mb"], "control character"),
        (["use", "-d", ":", "x"], "-d names no directory"),
        (["clean", "--frobnicate"], "No such option"),
        (["cleen"], "No such command"),
        (["-f", "xml", "du"], "'xml' is not one of"),
        (["du", "--color", "blue"], "'blue' is not one of"),
        (["clean", "--exclude-frequently-accessed", "-1"], "is not in the range"),
        (["clean", "--exclude-frequently-accessed", "many"], "is not a valid integer"),
        (["config", "edit"], "'edit' is not"),
        (["why"], "Missing argument"),
        (["rm"], "Missing argument"),
        (["du", "extra"], "unexpected extra argument"),
    ],
)
def test_words_that_mean_nothing(sc: Sc, disk: Disk, words: list[str], says: str) -> None:
    """A slip of the finger would do something else than was meant."""
    done = sc(*words)
    assert done.code == 2
    assert done.out == ""
    assert says in one_line_error(done)
    assert "\x1b" not in done.err
    assert not disk.root.exists()


@pytest.mark.parametrize(
    "holder", ["pid:x", "pid:", "pid:-1", "pid:٣", "pid:999999999", "", "x" * 101, "a\nb", "pid:" + "9" * 50]
)
def test_a_holder_that_is_nobody(sc: Sc, source: str, disk: Disk, holder: str) -> None:
    """A lease would be held by nobody, and end at once."""
    done = sc("use", "--holder", holder, source)
    assert done.code == 2
    one_line_error(done)
    assert not disk.root.exists() or disk.left() == []


def test_bytes_that_are_no_text(source: str) -> None:
    """A name in another encoding would be a traceback."""
    done = call("use", os.fsdecode(b"\xff.fa"))
    assert done.code == 2
    assert "is not valid UTF-8" in one_line_error(done)


# -- roots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["init"], ["use", "-n", "x"]])
def test_roots_that_must_be_no_cache(
    sc: Sc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    """`clean` in `/`, a home directory or a dtool dataset would be the end of somebody's data."""
    dataset = tmp_path / "dataset"
    (dataset / ".dtool").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/")

    def must_not(self: FileSystem, *arguments: object, **more: object) -> None:
        raise AssertionError(f"would have written: {arguments}")  # if it were not refused, into the real root directory

    for method in ("mkdir", "make_dirs", "create", "symlink", "rename"):
        monkeypatch.setattr(FileSystem, method, must_not)
    home = Path(os.environ["HOME"])
    for unfit, says in (
        ("/", "the root directory"),
        (home, "a home directory"),
        (dataset, "a dtool dataset"),
        (tmp_path / "link", "the root directory"),
        (f"{home}/.", "a home directory"),
        ("~", "a home"),
    ):
        monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(unfit))
        done = sc(*command)
        assert done.code == 2
        assert says in one_line_error(done)
    assert os.listdir(home) == []
    assert os.listdir(dataset) == [".dtool"]
    assert not Path("/.sc-dtool").exists()


@pytest.mark.no_cache
@pytest.mark.parametrize(
    "words",
    [
        ["du"],
        ["ls"],
        ["status"],
        ["why", "x"],
        ["log"],
        ["dir"],
        ["config"],
        ["clean", "--all", "-y"],
        ["rm", "x"],
        ["restore", "x"],
        ["reap"],
        ["doctor", "--fix"],
        ["unuse", "-n", "x"],
        ["renew"],
    ],
)
@pytest.mark.parametrize("root_is", ["missing", "empty", "full", "a file", "a dangling link", "without FORMAT"])
def test_no_cache_there(sc: Sc, root: Path, words: list[str], root_is: str) -> None:
    """A command on a mistyped directory would write there, or say something that helps nobody."""
    if root_is == "a file":
        root.write_text("")
    elif root_is == "a dangling link":
        root.symlink_to("nowhere")
    elif root_is != "missing":
        root.mkdir()
    if root_is == "full":
        (root / "thesis.tex").write_text("kept")
    hint = f"hint: to set one up: sc-dtool --cache-dir {root} init"
    if root_is == "without FORMAT":
        sc("init")
        (root / ".sc-dtool" / "FORMAT").unlink()
        hint = f"sc-dtool --cache-dir {root} doctor --fix"
    before = sorted(root.rglob("*")) if root.is_dir() else None
    done = sc(*words)
    if root_is == "without FORMAT" and words == ["doctor", "--fix"]:
        assert done.code == 0
        return
    assert done.code == 10
    assert str(root) in one_line_error(done)
    if root_is not in ("a file",):
        assert hint in done.err
    assert before == (sorted(root.rglob("*")) if root.is_dir() else None)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 10),
        ("something else\nversion: 1\nid: x\n", 10),
        ("sc-dtool cache\nversion: 2\nid: x\n", 1),
        ("\0" * 5000, 10),
    ],
)
def test_a_format_that_is_not_ours(sc: Sc, source: str, disk: Disk, text: str, code: int) -> None:
    """A cache of a later release, or somebody else's directory, would be taken for ours and cleaned."""
    sc("use", source)
    (disk.control / "FORMAT").write_text(text)
    for words in (["use", source], ["clean", "--all", "-y"], ["du"], ["init"]):
        done = sc(*words)
        assert done.code == code
        one_line_error(done)
    assert len(disk.leases()) == 1


@pytest.mark.parametrize("text", ["", " ", "a\nb"])
def test_a_cache_directory_that_is_no_path(text: str) -> None:
    """An unset variable would make the working directory a cache."""
    for done in (call("init", env=environment(DTOOL_CACHE_DIRECTORY=text)), call("-C", text, "init")):
        assert done.code == 2
        assert "is empty or not a path" in one_line_error(done)


def test_a_tilde_is_the_home_directory(sc: Sc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dtool's own setting `~/cache` would become a directory called `~`."""
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", "~/deep/cache")
    assert sc("init").out == f"{os.environ['HOME']}/deep/cache\n"


def test_a_tilde_of_nobody(sc: Sc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mistyped user would become a directory called `~bbo` in the working directory."""
    monkeypatch.chdir(tmp_path)
    done = sc("-C", "~no-such-user/cache", "init")
    assert done.code == 2
    assert "no such user" in one_line_error(done)
    assert not list(tmp_path.glob("~*"))


def test_without_a_home(root: Path, source: str) -> None:
    """A cron job or a container without HOME would see a traceback."""
    for home in (None, "", "/nonexistent"):
        done = call("use", source, env=environment(HOME=home, XDG_STATE_HOME=None if home else ""))
        assert done.code == 0, done
        assert Path(done.out.rstrip()).is_relative_to(root)
        assert call("reap", env=environment(HOME=home, XDG_STATE_HOME="/nonexistent/x")).code == 0


@pytest.mark.no_cache
def test_roots_that_cannot_be_made(sc: Sc, tmp_path: Path) -> None:
    """A root that cannot be would end in a traceback, or in a loop."""
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    for unfit in (
        tmp_path / "file",
        tmp_path / "file" / "x",
        tmp_path / "dangling",
        tmp_path / "dangling" / "x",
        tmp_path / ("x" * 300),
        "/proc/x",
        "/dev/null",
    ):
        done = sc("-C", unfit, "init")
        assert done.code in (1, 2), done
        one_line_error(done)


def test_a_cache_behind_a_symbolic_link(sc: Sc, source: str, tmp_path: Path) -> None:
    """A scratch directory that is reached by two names would be two caches, or lose its leases."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    by_link = sc("-C", tmp_path / "link", "use", source).path
    assert by_link.is_relative_to(tmp_path / "link")
    by_name = sc("-C", tmp_path / "real", "use", source).path
    assert by_name.samefile(by_link)
    assert sc("-C", tmp_path / "real", "unuse", by_link).err == ""
    assert sc("-C", tmp_path / "link", "unuse", by_name).err == ""
    assert "nothing to release" in sc("-C", tmp_path / "link", "unuse", by_name).err


def test_a_working_directory_that_is_gone(root: Path, source: str, tmp_path: Path) -> None:
    """A job whose scratch directory was removed could not give back what it holds."""
    (tmp_path / "scratch").mkdir()
    script = f"""
        cd {tmp_path / "scratch"} && rmdir ../scratch
        p=$(sc-dtool use {source}) && cat "$p" && sc-dtool why ref.fa && sc-dtool unuse "$p" && sc-dtool unuse {source}
        sc-dtool use relative.fa; echo $?
        sc-dtool -C relative du; echo $?
    """
    done = shell(["bash", "-c", script])
    assert done.out.startswith("ACGT\nref.fa is kept")
    assert done.out.endswith("\n2\n2\n")
    assert "Traceback" not in done.err
    assert done.err.count("the working directory was removed") == 2


# -- sources that cannot be had ----------------------------------------------------------------------------------------


def _member(name: str, **how: object) -> bytes:
    """A tar with a harmless member, and one of that name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        good = tarfile.TarInfo("good")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        bad = tarfile.TarInfo(name)
        for field, value in how.items():
            setattr(bad, field, value)
        tar.addfile(bad)
    return out.getvalue()


EVIL = {
    "a parent": _member("../evil"),
    "a parent deep inside": _member("a/../../evil"),
    "an absolute name": _member("/tmp/evil"),
    "a device": _member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a block device": _member("sda", type=tarfile.BLKTYPE, devmajor=8),
    "a fifo": _member("fifo", type=tarfile.FIFOTYPE),
    "a link outside": _member("link", type=tarfile.SYMTYPE, linkname="../../../../etc/passwd"),
    "an absolute link": _member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link outside": _member("link", type=tarfile.LNKTYPE, linkname="../good"),
    "no tar": b"this is no tar" * 100,
    "nothing": b"",
    "half a tar": _member("x")[:700],
    "half a gzip": b"\x1f\x8b\x08\x00half",
}


@pytest.mark.parametrize("what", list(EVIL))
def test_a_tar_that_must_not_be_unpacked(sc: Sc, server: Server, disk: Disk, what: str) -> None:
    """A tar from the web would write outside the cache, or half of it would be published."""
    url = server.page("/x.tar", EVIL[what])
    done = sc("use", url, "tar")
    assert done.code == 12
    assert done.out == ""
    assert one_line_error(done).startswith(f"Error: cannot unpack {url}: ")
    assert disk.left() == []
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"status": 404}, "the server answered 404"),
        ({"status": 500}, "the server answered 500"),
        ({"status": 401}, "the server answered 401"),
        ({"status": 204}, "the server answered 204"),
        ({"status": 404, "reason": "No\x1b[31m such"}, "the server answered 404"),
        ({"short": 3}, ""),
        ({"announced": 3}, ""),
    ],
)
def test_a_server_that_does_not_give_it(sc: Sc, server: Server, disk: Disk, how: dict[str, object], says: str) -> None:
    """An error page, or half a file, would be read as data by every job to come."""
    url = server.page("/x.bin", b"ACGT\n", **how)
    done = sc("use", url, "md5:" + "0" * 32)
    assert done.code == 12
    assert done.out == ""
    assert says in one_line_error(done)
    assert "\x1b" not in done.err
    assert disk.left() == []


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "blake2b"])
def test_a_digest_that_is_another_s(sc: Sc, server: Server, disk: Disk, algorithm: str) -> None:
    """A file that was damaged on the way would be read by every job to come."""
    import hashlib

    size = hashlib.new(algorithm).digest_size
    url = server.page("/x.bin", b"ACGT\n")
    done = sc("use", url, f"{algorithm}:{'0' * 2 * size}")
    assert done.code == 12
    assert one_line_error(done).startswith(f"Error: {algorithm} of {url} is ")
    assert disk.left() == []
    right = hashlib.new(algorithm, b"ACGT\n").hexdigest()
    assert sc("use", url, f"{algorithm}:{right.upper()}").code == 0


def test_a_server_that_is_not_there(sc: Sc, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down would be a page of Python to the user."""
    monkeypatch.setenv("no_proxy", "*")
    done = sc("use", "http://127.0.0.1:9/x.bin")
    assert done.code == 12
    assert one_line_error(done) == "Error: cannot fetch http://127.0.0.1:9/x.bin: Connection refused"
    assert disk.left() == []


@pytest.mark.parametrize("kind", ["missing", "fifo", "device", "loop", "dangling", "no file in a file"])
def test_a_local_source_that_cannot_be_had(sc: Sc, disk: Disk, tmp_path: Path, kind: str) -> None:
    """A special file would hang the job for ever, or be read to no end."""
    path = tmp_path / "special"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "no file in a file":
        path.write_text("")
        path /= "x"
    done = sc("use", path)
    assert done.code == 12
    assert str(path) in one_line_error(done)
    assert disk.left() == []


def test_a_directory_that_the_cache_is_in(sc: Sc, tmp_path: Path, disk: Disk) -> None:
    """`use .` in the directory above the cache would copy the copy of the copy."""
    done = sc("use", tmp_path)
    assert done.code == 12
    assert "the cache is in it" in one_line_error(done)
    assert disk.left() == []


@pytest.mark.parametrize(
    "name", ["with space", "-n", "'quoted\"", "$HOME", "*", "a" * 255, ".hidden", "x" * 250 + ".fa", "tab\u00a0é.fa"]
)
def test_names_that_are_hard_to_spell(name: str, sc: Sc, tmp_path: Path, disk: Disk) -> None:
    """A file with an odd name could not be cached, or its path would not be what is printed."""
    path = tmp_path / "names" / name
    path.parent.mkdir()
    path.write_text("ACGT\n")
    done = shell(["bash", "-c", 'p=$(sc-dtool use "$1") && cat "$p" && exec sc-dtool unuse "$p"', "-", str(path)])
    assert done == Done(0, "ACGT\n", "")
    assert disk.leases() == []
    for words in (["du"], ["ls"], ["log"]):
        assert sc(*words).code == 0


@pytest.mark.parametrize("variable", ["PYTHONIOENCODING=ascii", "LC_ALL=C", "LC_ALL=POSIX", "LANG=nonsense"])
def test_locales_that_cannot_spell_a_name(variable: str, tmp_path: Path, disk: Disk) -> None:
    """In a batch job, which has no locale, a name with an accent would be a traceback, or another path."""
    path = tmp_path / "é ü 文.fa"
    path.write_text("ACGT\n")
    name, _, value = variable.partition("=")
    script = 'p=$(sc-dtool use "$1") && cat "$p" && sc-dtool why "$p" >/dev/null && sc-dtool unuse "$p"'
    done = shell(["bash", "-c", script, "-", str(path)], env=environment(LC_ALL=None) | {name: value})
    assert (done.code, done.out) == (0, "ACGT\n"), done
    assert disk.leases() == []


@pytest.mark.no_cache
def test_names_with_a_new_line(sc: Sc, tmp_path: Path, disk: Disk) -> None:
    """`p=$(…)` of a name with a new line would hold another path than the one that is protected."""
    (tmp_path / "a\nb").write_text("x")
    done = sc("use", tmp_path / "a\nb")
    assert done.code == 2
    assert "control character" in one_line_error(done)
    assert not disk.root.exists()


def test_new_lines_inside_a_directory_do_no_harm(sc: Sc, tmp_path: Path) -> None:
    """A dataset with an odd name somewhere inside could not be cached."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a\nb").write_text("x")
    (tmp_path / "data" / os.fsdecode(b"\xff")).write_text("y")
    path = sc("use", tmp_path / "data").path
    assert sorted(os.listdir(path)) == sorted(["a\nb", os.fsdecode(b"\xff")])


def test_python_without_site_packages_is_no_traceback_of_ours() -> None:
    """`python -m sccache_dtool` would be another program than `sc-dtool`."""
    done = shell([PYTHON, "-m", "sccache_dtool", "--version"])
    assert done == call("--version")
    assert shutil.which("sc-dtool") == SC_DTOOL


def test_a_directory_with_the_cache_in_it_is_refused_before_it_is_read(sc: Sc, root: Path) -> None:
    """`use /` would read the whole file system for hours, and fail only then."""
    for source in ("/", str(root), str(root.parent)):
        done = sc("use", source)
        assert (done.code, "the cache is in it" in one_line_error(done)) == (12, True)
        assert "hint: give a directory that does not contain the cache" in done.err


def test_a_mistyped_command_gets_a_suggestion(sc: Sc) -> None:
    """Whoever mistypes a command would have to read the help."""
    assert "No such command 'ues' (did you mean 'use'?)" in sc("ues").err


def test_a_mistyped_name_gets_a_suggestion(sc: Sc, tmp_path: Path) -> None:
    """Whoever mistypes an item's name would have to search all names for the right one."""
    (tmp_path / "genome.fa").write_text("x")
    sc("use", "--holder", "me", tmp_path / "genome.fa")
    assert "similar: genome.fa" in sc("why", "genone.fa").err


def test_a_file_that_cannot_be_opened_is_named(sc: Sc, tmp_path: Path) -> None:
    """An error such as "cannot read No such file" would say neither what was tried nor where."""
    assert one_line_error(sc("clean", "--plan", "none.json")).startswith("Error: cannot read none.json: No such file")
    path = tmp_path / "missing" / "x.prom"
    assert one_line_error(sc("metrics", "-o", path)) == f"Error: cannot write {path}: No such file or directory"


def test_a_source_that_is_missing_is_named_once(sc: Callable[..., Done], tmp_path: Path) -> None:
    """The reason would stand at the end of two long paths, in the third line of a terminal."""
    done = sc("use", tmp_path / "missing")
    assert one_line_error(done) == f"Error: cannot fetch file:{tmp_path}/missing: No such file or directory"


def test_a_copy_that_a_later_release_describes_is_kept(sc: Callable[..., Done], source: str, disk: Disk) -> None:
    """After a day with a newer release, an older one would misread what that has noted, or remove the copies."""
    path = sc("use", source).path
    named = sc("use", "-n", "ref", source).path
    for copy in disk.copies():
        facts = json.loads((copy / "item.json").read_text())
        (copy / "item.json").write_text(json.dumps({**facts, "format": 2, "source": "in another form"}))
    (path.parent / "index").write_text("made by a program")  # so that only item.json says which is the payload
    before = {one: (one / "item.json").read_text() for one in disk.copies()}
    done = sc("doctor", "--fix", "-f", "json")
    findings = [row for row in done.rows("finding") if "format 2" in row["finding"]]
    assert [row["repairable"] for row in findings] == [False, False]
    assert "newer release" in findings[0]["remedy"]
    refused = sc("use", "-n", "ref", source)
    assert refused.code == 1
    assert "it has format 2, which this release does not know" in one_line_error(refused)
    sc("unuse", "--all", source)
    assert sc("use", source).code == 0
    assert {one: (one / "item.json").read_text() for one in before} == before
    assert named.exists()
    assert "format 2" in sc("ls", "-l").err
