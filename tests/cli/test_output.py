"""What is printed where: results on standard output, everything else on standard error, in three formats."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import PYTHON, SC_DTOOL, Disk, Done, call, environment, finish, one_line_error, shell, start
from httpserver import Server

Sc = Callable[..., Done]

#: Commands with a result, for a cache with `ref.fa` in use and `idle`, which is not.
RESULTS = [
    ["use", "-n", "new"],
    ["unuse", "-n", "idle"],
    ["renew"],
    ["du"],
    ["du", "--by", "user"],
    ["ls"],
    ["ls", "--filter", "in-use"],
    ["status"],
    ["status", "ref.fa"],
    ["why", "ref.fa"],
    ["why", "idle"],
    ["log"],
    ["clean", "--all", "-n"],
    ["clean", "--all", "-y"],
    ["rm", "-n", "idle"],
    ["rm", "idle"],
    ["reap"],
    ["reap", "-n"],
    ["init"],
    ["dir"],
    ["config", "show"],
]

#: What a row can be, and the head of a table.
TYPES = "type cache config dir finding init item keep kept lease removed renew reaped total unuse use user why".split()
TYPES += ["would_remove"]


@pytest.fixture
def filled(sc: Sc, source: str) -> str:
    """A cache with `ref.fa` in use, and `idle` used once."""
    sc("use", source)
    sc("use", "-n", "idle")
    sc("unuse", "-n", "idle")
    return source


def on_terminal(*words: str, **env: str | None) -> str:
    """What a command shows on a terminal, both streams."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(SC_DTOOL, [SC_DTOOL, *words], dict(environment(**env)))
    shown = b""
    while True:
        try:
            part = os.read(terminal, 10_000)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    os.waitpid(pid, 0)
    return shown.decode()


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("words", RESULTS, ids=" ".join)
def test_every_result_is_there_as_json(sc: Sc, words: list[str]) -> None:
    """What a person can see, a program could not, or only by parsing a table."""
    done = sc("-f", "json", *words)
    assert done.code == 0
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert rows
    for row in rows:
        assert list(row)[:2] == ["type", "version"]
        assert row["version"] == 1
        assert not [name for name in row if name.startswith("_")]
        assert all(re.fullmatch("[a-z][a-z_.]*", name) for name in row)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("words", RESULTS, ids=" ".join)
def test_every_result_is_there_as_tsv(sc: Sc, words: list[str]) -> None:
    """`cut` and `awk` would find columns that are not named, or rows of another length."""
    done = sc("-f", "tsv", *words)
    assert done.code == 0
    header: list[str] = []
    for line in done.out.splitlines():
        cells = line.split("\t")
        if cells[0] == "type":
            header = cells
        else:
            assert len(cells) == len(header)
    assert header


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("words", [*RESULTS, ["doctor"]], ids=" ".join)
def test_notes_are_not_among_the_results(sc: Sc, words: list[str]) -> None:
    """A pipe would get notes among its data."""
    for format in ("json", "tsv"):
        done = sc("-f", format, *words)
        beginnings = ("{",) if format == "json" else tuple(f"{row}\t" for row in TYPES)
        assert all(line.startswith(beginnings) for line in done.out.splitlines()), done
        again = sc("-q", "-f", format, *words)
        assert all(line.startswith("Error: ") for line in again.err.splitlines()), again


def test_json_and_tsv_survive_odd_names(sc: Sc, tmp_path: Path) -> None:
    """A name with a tab or an escape sequence would shift columns, or drive the terminal."""
    sc("use", "-n", "x y 文")
    holder = "a colleague ünï"
    sc("use", "--holder", holder, "-n", "x y 文")
    assert [row["name"] for row in sc("-f", "json", "ls").rows("item")] == ["x y 文"]
    assert holder in " ".join(row["by"] for row in sc("-f", "json", "why", "x y 文").rows("lease"))


def test_what_others_wrote_does_not_drive_the_terminal(sc: Sc, filled: str, disk: Disk) -> None:
    """A colleague's command line, or a file in the cache, could send escape sequences to a data manager's terminal."""
    (lease,) = disk.leases()
    lease.unlink()
    lease.symlink_to("2026-01-01T00:00:00Z evil\x1b]0;title\x07[1]\x1b[2J")
    (disk.control / "items" / "\x1b[2Jevil").mkdir()
    (disk.control / "tmp" / "evil\nname").mkdir()
    (disk.control / "holders" / "evil\x1b[2J").symlink_to("x")
    for words in (["du"], ["ls"], ["why", "ref.fa"], ["status", "ref.fa"], ["doctor"], ["clean", "--all", "-y"]):
        for format in ("human", "tsv", "json"):
            done = sc("-f", format, *words)
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", done.out + done.err)
            assert "evil\nname" not in done.err


# -- colour ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("filled")
def test_no_colour_in_a_pipe() -> None:
    """A log file would be full of escape sequences."""
    assert "\x1b" not in call("du").out


@pytest.mark.usefixtures("filled")
def test_colour_on_a_terminal() -> None:
    """A table on a terminal would have no head that stands out."""
    assert "\x1b[1m" in on_terminal("du")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_colour_where_none_is_wanted(env: dict[str, str]) -> None:
    """NO_COLOR and dumb terminals would get escape sequences all the same."""
    assert "\x1b" not in on_terminal("du", **env)
    assert "\x1b[1m" in on_terminal("--color", "always", "du", **env)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1"}], ids=str)
def test_color_never_is_never(env: dict[str, str]) -> None:
    """`--color never` would leave the bold, or give way to a variable."""
    assert "\x1b" not in on_terminal("--color", "never", "du", **env)
    assert "\x1b" not in on_terminal("du", "--color", "never", **env)
    assert "\x1b" not in call("--color", "never", "du", env=environment(**env)).out


@pytest.mark.usefixtures("filled")
def test_color_always_is_always() -> None:
    """`--color always | less -R` would be grey."""
    assert "\x1b[1m" in call("--color", "always", "du").out
    assert "\x1b[1m" in call("du", "--color", "always", env=environment(NO_COLOR="1")).out
    assert "\x1b" not in call("-f", "json", "--color", "always", "du").out


# -- quiet, verbose, progress ------------------------------------------------------------------------------------------


def test_quiet_keeps_results_and_errors(sc: Sc, source: str) -> None:
    """Cron would send a mail for every note, or none for an error."""
    assert sc("-q", "use", source, "--holder", f"pid:{os.getpid()}").path.read_text() == "ACGT\n"
    sc("unuse", source)
    assert sc("unuse", "-q", source) == Done(0, "", "")
    assert "Error: " in sc("-q", "status", "nothing").err


def test_verbose_says_which_cache_and_why(sc: Sc, source: str, root: Path) -> None:
    """Nobody could tell which of four settings chose the cache."""
    sc("init")
    assert sc("-v", "dir") == Done(0, f"{root}\n", f"cache: {root} (from $DTOOL_CACHE_DIRECTORY)\n")
    assert sc("-v", "-C", root, "dir").err == f"cache: {root} (from --cache-dir)\n"
    assert "held by process" in sc("use", "-v", source).err


def test_the_cache_s_directory_is_found_as_dtool_finds_it(root: Path) -> None:
    """Dtool and we would look at two different caches."""
    home = Path(os.environ["HOME"])
    call("-C", root, "init")
    (home / ".config" / "dtool").mkdir(parents=True)
    settings = home / ".config" / "dtool" / "dtool.json"
    without = environment(DTOOL_CACHE_DIRECTORY=None)
    settings.write_text(json.dumps({"DTOOL_CACHE_DIRECTORY": str(root)}))
    assert call("-v", "dir", env=without) == Done(0, f"{root}\n", f"cache: {root} (from ~/.config/dtool/dtool.json)\n")
    for text in ("{}", "no json", '{"DTOOL_CACHE_DIRECTORY": 3}', "[]"):
        settings.write_text(text)
        done = call("-v", "dir", env=without)
        assert done.code == 10
        assert f"cache: {home}/.cache/dtool (from the default)" in done.err


def test_progress_is_for_terminals(server: Server) -> None:
    """A log would fill with progress, or a person would stare at nothing."""
    url = server.page("/big.bin", bytes(3_000_000))
    assert "big.bin" in on_terminal("use", url).partition("/.sc-dtool/")[0]
    for words, env in ((["-q"], {}), ([], {"TERM": "dumb"})):
        url = server.page(f"/big{len(words)}.bin", bytes(3_000_000))
        assert on_terminal(*words, "use", url, **env).count("\n") == 1
    url = server.page("/other.bin", bytes(3_000_000))
    assert call("use", url).err == ""


def test_progress_does_not_touch_the_result(server: Server, tmp_path: Path) -> None:
    """`p=$(sc-dtool use …)` on a terminal would hold a progress bar."""
    url = server.page("/big.bin", bytes(3_000_000))
    on_terminal("--version")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv("/bin/sh", ["sh", "-c", f'p=$(sc-dtool use {url}); printf %s "$p" > {tmp_path}/p'])
    try:
        while os.read(terminal, 10_000):
            pass
    except OSError:
        pass
    os.waitpid(pid, 0)
    os.close(terminal)
    assert Path((tmp_path / "p").read_text()).stat().st_size == 3_000_000


# -- options before and after ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["-f", "json"], ["--format=json"], ["--format", "json", "-q", "--no-input"]])
def test_common_options_stand_before_and_after(sc: Sc, tmp_path: Path, source: str, words: list[str]) -> None:
    """Whoever adds `-f json` at the end of a line would get a usage error."""
    for order in ([*words, "-C", str(tmp_path / "c"), "init"], ["init", *words, "-C", str(tmp_path / "c")]):
        assert sc(*order).row("init")["path"] == str(tmp_path / "c")
    us = ["--holder", f"pid:{os.getpid()}"]
    for order in ([*words, "use", *us, source], ["use", *words, *us, source], ["use", *us, source, *words]):
        assert Path(sc(*order).row("use")["path"]).exists()


def test_the_later_option_wins(sc: Sc, tmp_path: Path) -> None:
    """An alias with -C could not be overruled."""
    sc("-C", tmp_path / "one", "init")
    sc("-C", tmp_path / "two", "init")
    assert sc("-C", tmp_path / "one", "dir", "-C", tmp_path / "two").out == f"{tmp_path / 'two'}\n"
    assert sc("-f", "json", "dir", "-f", "human", "-C", tmp_path / "one").out == f"{tmp_path / 'one'}\n"


# -- streams that are closed, full, or read no further -----------------------------------------------------------------


#: Each way to the same entry point.
WAYS = [[SC_DTOOL], [PYTHON, "-m", "sccache_dtool"]]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("command", ["du", "ls", "log", "status", "-f json du", "--help", "du --help", "--version"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone(command: str, unbuffered: str) -> None:
    """`sc-dtool ls | head` would end in a page of Python, or look like a failure of `ls`."""
    for way in WAYS:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*way, *command.split()],
            stdout=write,
            stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            text=True,
            check=False,
            timeout=60,
        )
        os.close(write)
        assert done.stderr == ""
        assert done.returncode == 128 + signal.SIGPIPE


def test_a_path_that_nobody_got_holds_nothing(source: str, disk: Disk) -> None:
    """A job whose `use` failed because its output could not be written would hold the item until it ends."""
    read, write = os.pipe()
    os.close(read)
    with start([SC_DTOOL, "use", source], stdout=write) as process:
        os.close(write)
        assert finish(process).code == 128 + signal.SIGPIPE
    assert disk.leases() == disk.holders() == []


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2>&1 >{path} | true"])
def test_messages_that_cannot_be_written_stop_nothing(source: str, disk: Disk, tmp_path: Path, stderr: str) -> None:
    """A log on a full disk would stop a job whose data is there."""
    path = tmp_path / "path"
    where = stderr.format(path=path) if "{" in stderr else f">{path} {stderr}"
    done = shell(["bash", "-c", f"sc-dtool -v use --holder h --ttl 1h {source} {where}; exit ${{PIPESTATUS[0]}}"])
    assert (done.code, done.err) == (0, "")
    assert Path(path.read_text().rstrip()).read_text() == "ACGT\n"
    assert len(disk.leases()) == 1
    shell(["bash", "-c", f"sc-dtool status nothing {where}; exit ${{PIPESTATUS[0]}}"])
    assert shell(["bash", "-c", "sc-dtool status nothing 2>/dev/full"]).code == 2
    assert shell(["bash", "-c", "sc-dtool --no-such-option 2>/dev/full"]).code == 2


@pytest.mark.parametrize("command", ["--help", "--version", "du --help", "-f json loaders"])
def test_help_for_a_full_disk(command: str) -> None:
    """`sc-dtool --help > file` on a full disk would end in a page of Python, or blame the cache."""
    for way in WAYS:
        done = shell(["sh", "-c", f'"$@" {command} >/dev/full', "sh", *way])
        assert done == Done(1, "", "Error: cannot write the result: No space left on device\n")


def test_a_full_disk_for_our_output(filled: str, disk: Disk) -> None:
    """`sc-dtool use … > list` on a full disk would blame the cache's file system, or go unnoticed."""
    for command in ("use -n other", "du", "-f json ls"):
        done = shell(["sh", "-c", f"sc-dtool {command} > /dev/full"])
        assert done.code == 1
        assert one_line_error(done) == "Error: cannot write the result: No space left on device"
    assert len(disk.leases()) == 1
    assert filled


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_standard_streams_that_are_closed(source: str, disk: Disk, closed: str) -> None:
    """A daemon that closes its streams could not call us, or would get our words into its files."""
    script = f"sc-dtool use {source} {closed} && sc-dtool du {closed} && sc-dtool unuse {source} {closed}"
    done = shell(["sh", "-c", f"{script}; echo $?; sc-dtool status nothing {closed}; echo $?"])
    assert done.out.endswith("0\n2\n")
    assert ("Error: there is no item 'nothing'" in done.err) is ("2>" not in closed)
    assert "Error" not in done.out
    assert disk.leases() == []


@pytest.mark.usefixtures("filled")
def test_a_command_gets_the_streams_that_it_had(filled: str) -> None:
    """`run` under a closed standard output would give its command another file in its place."""
    done = shell(["sh", "-c", f"sc-dtool run {filled} -- sh -c 'echo x; echo y >&2' >&-"])
    assert done.out == ""
    assert "y" in done.err


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_fault_of_ours_is_a_sentence_and_a_traceback_only_with_debug(sc: Sc, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user would see a page of Python, and whoever mends it would not."""
    from sccache_dtool.cache import Cache

    def fault(self: Cache, **options: object) -> None:
        raise KeyError("oops")

    sc("init")
    monkeypatch.setattr(Cache, "loose_directories", fault)
    done = sc("du")
    assert done.code == 1
    assert done.err.splitlines() == [
        "Error: KeyError: 'oops'",
        "hint: this is a bug in sc-dtool: run the command again with --debug, and report the traceback",
    ]
    with pytest.raises(KeyError):
        sc("--debug", "du")


def test_an_error_of_the_file_system_names_the_file(sc: Sc, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Permission denied` without a name would help nobody."""
    from sccache_dtool.disk.filesystem import FileSystem

    sc("init")

    def refuse(self: FileSystem, text: str, path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(FileSystem, "symlink", refuse)
    monkeypatch.setattr(FileSystem, "put_record", refuse)
    done = sc("use", "-n", "x")
    assert done.code == 1
    assert "/holders/" in one_line_error(done)
