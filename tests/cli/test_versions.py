"""Sources that change, as seen from the command line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import httpserver
from cli.tool import SC_DTOOL, Done, call
from sccache_dtool.errors import Exit

Run = Callable[..., Done]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "ref.fa"
    path.write_text("ACGT\n")
    return path


def change(path: Path) -> None:
    status = path.stat()
    path.write_text("TTTT\n")
    os.utime(path, ns=(0, status.st_mtime_ns + 1))


def test_a_changed_file_is_used_as_it_is_now(sc: Run, source: Path) -> None:
    """A script that writes its input again would read the input of its first run for ever."""
    old = sc("use", source).path
    change(source)
    new = sc("use", source).path
    assert (old.read_text(), new.read_text()) == ("ACGT\n", "TTTT\n")
    assert sc("run", source, "--", "cmp", "{}", source).code == 0


def test_locate_finds_what_use_would_take(sc: Run, source: Path) -> None:
    """A script would read the old content where `use` would give the new one."""
    path = sc("use", source).path
    assert sc("locate", source).path == path
    change(source)
    done = sc("locate", source)
    assert (done.code, done.out) == (Exit.ERROR, "")
    assert "has changed since it was fetched" in done.err
    assert "use" in done.err.partition("hint:")[2]
    new = sc("use", source).path
    assert sc("locate", source).path == new
    assert sc("locate", path).code == 0  # a path means the item


def test_unuse_gives_back_the_newest_copy_first(sc: Run, source: Path) -> None:
    """Whoever took the new version last would give back the old one, which it still reads."""
    old = sc("use", source).path
    change(source)
    new = sc("use", source).path
    os.utime(new.parents[1])
    state = {path: len(os.listdir(path.parents[1] / "use")) for path in (old, new)}
    assert state == {old: 1, new: 1}
    created = [int(path.parents[1].name.split("-")[1]) for path in (old, new)]
    assert sc("unuse", source).code == 0
    if created[0] != created[1]:  # by the second
        assert os.listdir(new.parents[1] / "use") == []
    assert sc("unuse", source).code == 0
    assert os.listdir(old.parents[1] / "use") == []


def test_rm_removes_all_versions(sc: Run, source: Path) -> None:
    """Old versions would be left that nothing names any more."""
    sc("use", source)
    change(source)
    sc("use", source)
    assert sc("unuse", "--all", source).code == 0
    assert sc("status", source, "-f", "json").row("item")["copies"] == 2
    assert sc("rm", source).code == 0
    assert sc("status", source, "-f", "json").row("item")["copies"] == 0


def test_a_source_that_is_gone_is_used_with_a_warning(sc: Run, source: Path) -> None:
    """A job would stop on a node where the archive is not mounted, though all it needs is in the cache."""
    path = sc("use", source).path
    source.unlink()
    done = sc("use", "-q", source)
    assert done.path == path
    assert "warning: cannot read" in done.err
    done = sc("use", "--refresh", source)
    assert done.code == Exit.FETCH_FAILED
    assert "leave out --refresh" in done.err
    assert sc("use", "--max-age", "1d", source).path == path


def test_refresh_and_max_age_ask_a_server(sc: Run, server: httpserver.Server) -> None:
    """There would be no way to have what a server has today, but to remove what it had yesterday."""
    url = server.page("/x", b"one", etag='"1"')
    path = sc("use", url).path
    assert sc("use", "--max-age", "1h", url).path == path
    assert server.gets["/x"] == 1
    assert sc("use", "--refresh", url).path == path
    assert server.gets["/x"] == 2
    server.page("/x", b"two", etag='"2"')
    assert sc("use", url).path == path
    assert sc("run", "--max-age", "0s", url, "--", "sh", "-c", 'grep -q two "$SC_DTOOL_PATH"').code == 0
    server.page("/x", status=500)
    assert sc("use", "--refresh", url).code == Exit.FETCH_FAILED


def test_refresh_and_max_age_exclude_each_other(sc: Run, source: Path) -> None:
    """One of the two would be ignored without a word."""
    done = sc("use", "--refresh", "--max-age", "1d", source)
    assert (done.code, done.out) == (Exit.USAGE, "")


@pytest.mark.root
def test_the_same_path_on_two_hosts_is_two_files(tmp_path: Path, root: Path) -> None:
    """A job on one node would silently read what a job on another node wrote to its own disk."""
    call("init")
    script = (
        'mount -t tmpfs sc-dtool-test /mnt && printf %s "$1" >/mnt/data && '
        'path=$("$0" use --holder "$1" --ttl 1h /mnt/data) && cat "$path"'
    )

    def on_host(name: str) -> str:
        argv = ["unshare", "--mount", "sh", "-c", script, SC_DTOOL, name]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
        if "unshare" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done
        return done.stdout

    assert on_host("host-a") == "host-a"
    assert on_host("host-b") == "host-b"


def test_who_waits_uses_its_own_credentials(tmp_path: Path, server: httpserver.Server) -> None:
    """A job with the right password would fail because another, which it waited for, had none."""
    call("init")
    server.page("/x", b"secret", auth=("ada", "hush"))
    held = server.pages("/x", httpserver.Page(hold=True, status=401), httpserver.Page(b"secret", auth=("ada", "hush")))
    environment = {**os.environ, "NETRC": str(tmp_path / "netrc")}

    def start(url: str) -> subprocess.Popen[str]:
        argv = [SC_DTOOL, "run", url, "--", "cat", "{}"]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, bufsize=0
        )

    first = start(held)
    server.wait_for_gets("/x", timeout=300)
    second = start(server.url("/x", "ada:hush"))
    assert second.stderr is not None
    while "waiting for" not in (line := second.stderr.readline()):
        assert line
    server.release()
    out, err = second.communicate(timeout=300)
    assert (second.returncode, out) == (0, "secret"), err
    assert first.wait(300) == Exit.FETCH_FAILED
    first.communicate()
