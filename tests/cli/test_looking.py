"""`du`, `ls`, `status`, `why`, `log`, `dir`, `config`: what people ask. None of it changes anything."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import SC_DTOOL, Disk, Done, config, heard, one_line_error, say, start
from httpserver import Server
from waiting import wait_until

Sc = Callable[..., Done]


@pytest.fixture
def used(sc: Sc, source: str, server: Server) -> str:
    """A cache with `ref.fa` in use once, `big.bin` used twice and idle, and `once` evicted; the URL of big.bin."""
    url = server.page("/big.bin", bytes(2_500_000))
    sc("use", source)
    for _ in range(2):
        sc("use", url)
        sc("unuse", url)
    sc("use", "-n", "once")
    sc("unuse", "-n", "once", "--evict-if-last")
    return url


@pytest.mark.usefixtures("used")
def test_du_shows_what_is_in_use_and_what_could_go(sc: Sc) -> None:
    """A data manager could not see what takes the space."""
    done = sc("du")
    head, big, small, total = done.out.splitlines()
    assert head.split() == ["ITEM", "SIZE", "LEASES", "USES", "LAST", "USE"]
    assert big.split()[:5] == ["big.bin", "2.5", "MB", "0", "2"]
    assert small.split() == ["ref.fa", "5", "Bytes", "1", "1", "in", "use"]
    assert total == "2 items, 2.5 MB; not in use and reclaimable: 1 item, 2.5 MB"


@pytest.mark.usefixtures("used")
def test_du_in_json_is_exact(sc: Sc) -> None:
    """A monitor would have to parse what is meant for people."""
    done = sc("-f", "json", "du")
    big, small = sorted(done.rows("item"), key=lambda row: -row["bytes"])
    assert (big["name"], big["bytes"], big["leases"], big["uses"], big["state"]) == ("big.bin", 2_500_000, 0, 2, "idle")
    assert (small["name"], small["bytes"], small["leases"], small["state"]) == ("ref.fa", 5, 1, "in-use")
    assert done.row("total")["reclaimable_bytes"] == 2_500_000
    assert done.row("total")["leases"] == 1


@pytest.mark.usefixtures("used")
def test_du_by_user(sc: Sc) -> None:
    """Who fetched how much could not be told."""
    (row,) = sc("-f", "json", "du", "--by", "user").rows("user")
    assert row["bytes"] == 2_500_005
    assert row["items"] == 2
    assert len(sc("du", "--by", "user").out.splitlines()) == 3


@pytest.mark.parametrize("more", [(), ("--by", "user"), ("--by", "dataset"), ("--top", "1")])
def test_what_du_calls_reclaimable_is_what_clean_removes(
    sc: Sc, tmp_path: Path, disk: Disk, more: tuple[str, ...]
) -> None:
    """A data manager who needs 2 TB would be promised what is pinned, or excluded in the settings."""
    for number, name in enumerate(("idle", "pinned", "mine.keep", "held")):
        (tmp_path / name).write_bytes(bytes(10 ** (number + 1)))
        sc("use", tmp_path / name)
        if name != "held":
            sc("unuse", tmp_path / name)
    sc("pin", "pinned")
    (disk.control / "config.toml").write_text('[clean]\nexclude = ["*.keep"]\n')
    directory = disk.root / "0123abcd-0123-4567-89ab-0123456789ab"
    directory.mkdir()
    (directory / f"{'1' * 40}.txt").write_bytes(bytes(3))  # by dtool, and so fresh that it may be in use
    total = sc("-f", "json", "du", *more).row("total")
    plan = sc("-f", "json", "clean", "--all", "-n").row("total")
    assert total["reclaimable_bytes"] == plan["bytes"]
    assert total["reclaimable_items"] == 1
    assert total["items"] == 4


def test_du_with_a_grace_period(sc: Sc, source: str, disk: Disk) -> None:
    """What was fetched just now stays, and would be promised."""
    sc("use", source)
    sc("unuse", source)
    assert sc("-f", "json", "du").row("total")["reclaimable_items"] == 1
    (disk.control / "config.toml").write_text('[clean]\ngrace = "1h"\n')
    assert sc("-f", "json", "du").row("total")["reclaimable_items"] == 0


def test_du_where_the_settings_cannot_be_read(sc: Sc, source: str, disk: Disk) -> None:
    """A warning would promise a result, and an error for the same reason would come instead."""
    sc("use", source)
    (disk.control / "config.toml").mkdir()
    done = sc("du")
    assert (done.code, done.out) == (1, "")
    assert one_line_error(done).endswith("config.toml: cannot be read: not a regular file")
    assert "warning" not in done.err


def test_an_empty_cache(sc: Sc) -> None:
    """A new cache would be an error, or a traceback, to every command that looks."""
    sc("init")
    assert sc("du").out == "0 items, 0 Bytes; not in use and reclaimable: 0 items, 0 Bytes\n"
    assert sc("ls") == Done(0, "", "")
    assert "items     0" in sc("status").out
    assert sc("log") == Done(0, "", "no use has ended yet\n")
    assert sc("-q", "log") == Done(0, "", "")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["big.bin", "ref.fa"]),
        (["--filter", "idle"], ["big.bin"]),
        (["--filter", "in-use"], ["ref.fa"]),
        (["--filter", "evicted"], ["once"]),
        (["--filter", "b*"], ["big.bin"]),
        (["--filter", "b*", "--filter", "in-use"], []),
        (["--sort", "size"], ["big.bin", "ref.fa"]),
        (["--sort", "uses"], ["big.bin", "ref.fa"]),
    ],
)
def test_ls_filters_and_sorts(sc: Sc, used: str, words: list[str], names: list[str]) -> None:
    """A long cache could not be searched."""
    named = [row["name"] for row in sc("-f", "json", "ls", *words).rows("item")]
    assert named == names if "--sort" in words else sorted(named) == sorted(names)
    shown = sc("ls", *words).out.splitlines()
    assert [line.split()[0] for line in shown[1:]] == names


def test_ls_names_sources_without_credentials(sc: Sc, server: Server) -> None:
    """The password in a URL would be shown to everybody who lists the cache."""
    server.page("/x.bin", b"x", auth=("me", "secret"))
    path = sc("use", server.url("/x.bin", "me:secret")).path
    row = sc("-f", "json", "ls", "--long").row("item")
    assert row["source"] == [server.url("/x.bin")]
    assert row["path"] == str(path)
    for words in (["ls"], ["ls", "-l"], ["status", "x.bin"], ["why", "x.bin"], ["log"], ["du"]):
        assert "secret" not in sc(*words).out


def test_no_password_is_shown_of_the_command_that_holds(sc: Sc, root: Path, server: Server) -> None:
    """The command line of a job has the password in it that its URL had, and everybody sees who holds what."""
    server.page("/x.bin", b"x")
    url = server.url("/x.bin", "me:secret")
    use = shlex.join([SC_DTOOL, "-C", str(root), "use", url])
    with start(["sh", "-c", f": {url}; {use}; read wait"]) as job:  # at its beginning: a long line is cut
        heard(job)
        for words in (["status", "x.bin"], ["why", "x.bin"], ["-f", "json", "why", "x.bin"]):
            shown = sc(*words).out
            assert f": {server.url('/x.bin')}" in shown
            assert "secret" not in shown
        say(job)


@pytest.mark.parametrize("command", ["unuse", "locate", "why", "log", "status"])
def test_no_password_is_said_back(sc: Sc, command: str) -> None:
    """The log of a job is read by others, and would have the password of its URL in it."""
    sc("init")
    done = sc(command, "http://me:secret@127.0.0.1:1/x.bin")
    assert "127.0.0.1:1/x.bin" in done.err
    assert "secret" not in done.err


@pytest.mark.usefixtures("used")
def test_status_of_the_cache(sc: Sc, root: Path) -> None:
    """A glance would not tell whether the cache is full, in use, or fetching."""
    row = sc("-f", "json", "status").row("cache")
    assert row["root"] == str(root)
    assert (row["items"], row["bytes"], row["items_in_use"], row["leases"], row["holders"]) == (2, 2_500_005, 1, 1, 1)
    assert (row["fetching"], row["trashed"], row["uses"]) == (0, 0, 4)
    assert row["free_bytes"] > 0
    assert len(sc("status").out.splitlines()) == 7


@pytest.mark.parametrize("spelling", ["ref.fa", "{key}", "{key:.8}", "{source}", "file:{source}", "{path}"])
def test_an_item_is_named_in_many_ways(sc: Sc, source: str, spelling: str) -> None:
    """Only the very key would do, which nobody can type."""
    path = sc("use", source).path
    word = spelling.format(key=path.parents[2].name, source=source, path=path)
    row = sc("-f", "json", "status", word).row("item")
    assert (row["name"], row["path"], row["leases"]) == ("ref.fa", str(path), 1)
    assert row["source"] == [f"file:{source}"]


@pytest.mark.parametrize("command", ["status", "why", "log", "rm"])
@pytest.mark.parametrize("word", ["nothing", "", "ref", "../ref.fa", "./ref.fa", "/"])
def test_an_item_that_is_not_there(sc: Sc, source: str, command: str, word: str) -> None:
    """A mistyped item would show another one, or a traceback."""
    sc("use", source)
    done = sc(command, word)
    assert done.code == 2
    assert one_line_error(done).startswith(f"Error: there is no item {word!r} in ")
    assert "hint: to list the items: sc-dtool -C " in done.err


def test_two_items_of_one_name_are_told_apart(sc: Sc, source: str, tmp_path: Path) -> None:
    """`rm ref.fa` would remove one of two items of that name at random."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ref.fa").write_text("TTTT\n")
    first, second = sc("use", source).path, sc("use", tmp_path / "b" / "ref.fa").path
    done = sc("status", "ref.fa")
    assert done.code == 2
    assert "could be any of 2 items" in one_line_error(done)
    for path in (first, second):
        assert path.parents[2].name in done.err
        assert sc("-f", "json", "status", path.parents[2].name[:12]).row("item")["path"] == str(path)


def test_why_says_who_holds_it_and_how_that_is_known(sc: Sc, source: str) -> None:
    """Whoever wants to delete an item could not find out whom to ask."""
    sc("use", source)
    sc("use", "--holder", "workflow 7", "--ttl", "2h", source)
    done = sc("why", "ref.fa")
    first, *leases = done.out.splitlines()
    assert first == "ref.fa is kept: 2 leases held"
    (ours,) = (line for line in leases if f"process {os.getpid()} " in line)
    (named,) = (line for line in leases if "holder 'workflow 7'" in line)
    assert ": alive, " in ours
    assert ": unknown, " in named
    assert "lifetime" in named
    rows = sc("-f", "json", "why", "ref.fa").rows("lease")
    assert {row["verdict"] for row in rows} == {"alive", "unknown"}


@pytest.mark.usefixtures("used")
def test_why_of_what_is_idle_or_gone(sc: Sc) -> None:
    """`why` would say nothing of an item that nobody holds."""
    assert sc("why", "big.bin").out.startswith("big.bin is not in use, so `clean` may remove it; its last use ended ")
    assert sc("why", "once").out.startswith("once is not in the cache any more; its last use ended ")
    assert sc("-f", "json", "why", "once").row("why")["state"] == "evicted"


@pytest.mark.usefixtures("used")
def test_log_shows_each_use_once(sc: Sc, used: str) -> None:
    """Who used what, the record that all policies go by, would have holes."""
    rows = sc("-f", "json", "log").rows("use")
    assert [row["name"] for row in rows] == ["big.bin", "big.bin", "once"]
    assert all(f"[{os.getpid()}]" in row["by"] for row in rows)
    assert {row["how"] for row in rows} == {"released"}
    assert len({row["lease"] for row in rows}) == 3
    assert len(sc("log", used).out.splitlines()) == 3
    assert sc("log", "ref.fa").err == "no use has ended yet\n"


@pytest.mark.usefixtures("used")
def test_log_since(sc: Sc) -> None:
    """A weekly report would have to read years."""
    assert len(sc("-f", "json", "log", "--since", "1d").rows("use")) == 3
    done = sc("log", "--since", "0s")
    assert (done.code, done.out) == (0, "")
    assert done.err == "no use has ended in that time\n"


@pytest.mark.no_cache
def test_dir_is_where_the_cache_is(sc: Sc, root: Path) -> None:
    """A script could not find the cache that a user's settings name."""
    assert sc("dir").code == 10
    sc("init")
    assert sc("dir").out == f"{root}\n"
    assert sc("dir", "-f", "json").row("dir")["path"] == str(root)


def test_config_shows_what_holds(sc: Sc, disk: Disk) -> None:
    """Nobody could tell which lifetime a lease gets."""
    sc("init")
    shown = dict(line.split(maxsplit=1) for line in sc("config").out.splitlines())
    assert (shown["lease.ttl"], shown["lease.heartbeat_ttl"], shown["clean.trash"]) == ("none", "12 h", "0 s")
    config(disk.root, '[lease]\nttl = "2d"\n[clean]\ntrash = "1w"\n')
    row = sc("-f", "json", "config", "show").row("config")
    assert (row["lease.ttl"], row["clean.trash"], row["lease.heartbeat_ttl"]) == (2 * 86_400, 7 * 86_400, 12 * 3600)


def test_config_shows_where_each_value_comes_from(sc: Sc, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could tell which line, variable or option to change, or that a setting has no effect here."""
    text = '[lease]\nttl = "2d"\n\n[dm]\ngc_collect_start_fraction = 0.5\n'
    config(disk.root, f'{text}private_storage_path = "/tmp/ps"\ngc_run_interval = 600\n')
    monkeypatch.setenv("SC_DTOOL_DOWNLOADS", "2")
    rows = {row["setting"]: row for row in sc("-f", "json", "config", "show", "--origin").rows("setting")}

    def origin(name: str) -> tuple[object, ...]:
        return tuple(rows[name][field] for field in ("value", "origin", "name", "line"))

    assert origin("directory") == (str(disk.root), "environment", "$DTOOL_CACHE_DIRECTORY", None)
    assert origin("lease.ttl") == (2 * 86_400, "config.toml", "lease.ttl", 2)
    assert origin("clean.high_watermark") == ("50%", "alias", "dm.gc_collect_start_fraction", 5)
    assert origin("clean.order") == ("cost", "default", None, None)
    assert origin("downloads") == (2, "environment", "$SC_DTOOL_DOWNLOADS", None)
    assert origin("dm.private_storage_path") == (None, "ignored", None, 6)
    lines = {line.split()[0]: line for line in sc("-C", disk.root, "config", "show", "--origin").out.splitlines()}
    assert lines["directory"].endswith("  --cache-dir")
    assert lines["lease.ttl"].endswith("  config.toml, line 2")
    assert lines["clean.high_watermark"].endswith("  config.toml, line 5, as dm.gc_collect_start_fraction")
    assert "run `sc-dtool clean` from cron" in lines["dm.gc_run_interval"]


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize(
    "words", [["du"], ["ls"], ["status"], ["status", "ref.fa"], ["why", "ref.fa"], ["log"], ["dir"], ["config"]]
)
def test_looking_changes_nothing(sc: Sc, disk: Disk, words: list[str]) -> None:
    """A look at the cache would make a read-only mount an error, or touch what policies go by."""
    before = {path: path.lstat() for path in disk.root.rglob("*")}
    assert sc(*words).code == 0
    after = {path: path.lstat() for path in disk.root.rglob("*")}
    assert before.keys() == after.keys()
    assert [path for path in before if before[path].st_mtime_ns != after[path].st_mtime_ns] == []


def test_what_is_being_fetched_is_shown(sc: Sc, server: Server) -> None:
    """A download under way would be invisible."""
    from cli.tool import SC_DTOOL, finish, start

    url = server.page("/slow.bin", bytes(1000), hold=True)
    sc("init")
    with start([SC_DTOOL, "use", url]) as fetching:
        server.wait_for_gets("/slow.bin")
        wait_until(lambda: sc("-f", "json", "status").row("cache")["fetching"] == 1, "no work area")
        server.release()
        assert finish(fetching).code == 0
    assert sc("-f", "json", "status").row("cache")["fetching"] == 0
