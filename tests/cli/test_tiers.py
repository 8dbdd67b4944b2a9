"""`--upstream` on the command line: many processes of one node, a node without room, and what is given back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.tool import PYTHON, SC_DTOOL, Disk, Done, call, config, finish, heard, one_line_error, shell, start
from httpserver import Server
from sccache_dtool.cache import Cache

Sc = Callable[..., Done]

#: More than any disk has.
TOO_MUCH = "1PB"


@pytest.fixture
def shared(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The upstream of the test's cache, which is that of a node."""
    Cache(tmp_path / "shared").init()
    monkeypatch.setenv("SC_DTOOL_UPSTREAM", str(tmp_path / "shared"))
    return tmp_path / "shared"


def uses(root: Path) -> list[str]:
    """How the finished uses of everything in a cache ended."""
    return [use["how"] for use in call("-C", root, "-f", "json", "log").rows("use")]


# -- many processes on one node ----------------------------------------------------------------------------------------


def test_many_processes_of_a_node_make_one_copy(root: Path, shared: Path, server: Server, disk: Disk) -> None:
    """The tasks of a job that start at once on a node would each copy the file, or each download it."""
    url = server.page("/ref.fa", b"ACGT" * 1000, stall_after=1000)
    with contextlib.ExitStack() as stack:
        holder = ("--holder", f"pid:{os.getpid()}")
        tasks = [stack.enter_context(start([SC_DTOOL, "-v", "use", *holder, url])) for _ in range(8)]
        server.wait_for_gets("/ref.fa")
        server.release()
        done = [finish(task) for task in tasks]
    assert {one.code for one in done} == {0}
    (path,) = {one.out for one in done}
    assert path.startswith(f"{root}/")
    assert Path(path.strip()).read_bytes() == b"ACGT" * 1000
    assert server.gets["/ref.fa"] == 1
    assert len(disk.copies()) == 1
    assert len(disk.leases()) == 8
    assert Disk(shared).leases() == []
    assert uses(shared) == ["released"]


#: Uses an item, and stops in the middle of the copy until it is told to go on.
COPYING = """
import sys
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem

class Slow(FileSystem):
    def clone(self, source, target):
        self.write(target, b"AC")
        print("copying", flush=True)
        sys.stdin.read()

node, shared, source = sys.argv[1:]
Cache(node, upstream=shared, fs=Slow()).use(source)
"""


@pytest.fixture
def copying(root: Path, shared: Path, source: str) -> Iterator[int]:
    """A process that is in the middle of a copy; its number."""
    assert call("-C", shared, "use", "--holder", f"pid:{os.getpid()}", source).code == 0
    assert call("-C", shared, "unuse", "--holder", f"pid:{os.getpid()}", source).code == 0
    with start([PYTHON, "-c", COPYING, str(root), str(shared), source]) as process:
        assert heard(process) == "copying"
        yield process.pid


def test_a_copy_under_way_is_seen_on_both_tiers(sc: Sc, copying: int, shared: Path) -> None:
    """Nobody could tell why a job waits on a node, or who keeps the item on the shared file system."""
    (transfer,) = sc("-f", "json", "transfers").rows("transfer")
    assert (transfer["state"], transfer["name"]) == ("transferring", "ref.fa")
    (lease,) = sc("-C", shared, "-f", "json", "why", "ref.fa").rows("lease")
    assert lease["verdict"] == "alive"
    assert sc("-C", shared, "rm", "ref.fa").code == 14


def test_whoever_waits_takes_over_a_copy_whose_process_was_killed(
    sc: Sc, copying: int, shared: Path, source: str, disk: Disk
) -> None:
    """A killed task would leave half a copy, a lease that keeps the shared item, and other tasks that wait in vain."""
    with start([SC_DTOOL, "use", "--holder", f"pid:{os.getpid()}", source]) as waiting:
        assert waiting.stderr is not None
        assert f"process {copying}" in waiting.stderr.readline()
        assert disk.copies() == []
        os.kill(copying, signal.SIGKILL)
        assert finish(waiting).path.read_text() == "ACGT\n"
    assert len(disk.copies()) == 1
    assert sc("-C", shared, "reap").code == 0
    assert Disk(shared).leases() == []
    assert sorted(uses(shared)) == ["reaped", "released", "released"]
    sc("clean")
    assert disk.names("tmp") == []


# -- a node without room -----------------------------------------------------------------------------------------------


@pytest.fixture
def given_out(sc: Sc, shared: Path, source: str) -> Path:
    """A path in the upstream that was given out, as the node had no room."""
    assert sc("-C", shared, "use", source).code == 0
    assert sc("-C", shared, "unuse", source).code == 0
    done = sc("use", "--size", TOO_MUCH, source)
    assert "no space left for ref.fa, which needs 1.0 PB" in done.err
    assert f"using the item in the upstream cache {shared}" in done.err
    assert done.path.read_text() == "ACGT\n"
    assert len(Disk(shared).leases()) == 1
    return done.path


@pytest.mark.parametrize("known", [True, False], ids=["upstream known", "upstream unknown"])
def test_a_shared_path_is_given_back_like_any_other(
    sc: Sc, given_out: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """A job script could not give back what it was given, and the item would stay held until the job's end."""
    if not known:
        monkeypatch.delenv("SC_DTOOL_UPSTREAM")
    assert given_out.is_relative_to(shared)
    assert sc("-f", "json", "unuse", given_out).row("unuse")["released"] == 1
    assert Disk(shared).leases() == []
    assert "nothing to release" in sc("unuse", given_out).err


def test_it_is_given_back_by_the_words_too(sc: Sc, given_out: Path, source: str, shared: Path) -> None:
    """`unuse SOURCE` would say that there is nothing to release, and leave the lease."""
    assert sc("-f", "json", "unuse", source).row("unuse")["released"] == 1
    assert Disk(shared).leases() == []


def test_a_nodes_lease_is_given_back_first(sc: Sc, given_out: Path, source: str, disk: Disk, shared: Path) -> None:
    """`unuse SOURCE` would end the lease on the shared copy while the job still reads it, and not the other."""
    assert sc("use", source).path.is_relative_to(disk.root)
    assert sc("unuse", source).code == 0
    assert disk.leases() == []
    assert len(Disk(shared).leases()) == 1


def test_the_shared_item_is_not_removed_with_its_last_use(sc: Sc, given_out: Path, shared: Path) -> None:
    """A job script that empties the node's disk would remove the item for the whole cluster."""
    done = sc("unuse", "--evict-if-last", given_out)
    assert f"not removed from {shared}" in done.err
    assert len(Disk(shared).copies()) == 1


def test_the_lifetime_of_a_shared_lease_is_renewed(sc: Sc, shared: Path, source: str) -> None:
    """A long job would renew its leases, and lose the data all the same."""
    assert sc("-C", shared, "use", source).code == 0
    assert sc("-C", shared, "unuse", source).code == 0
    assert sc("use", "--size", TOO_MUCH, "--ttl", "1h", source).path.is_relative_to(shared)
    assert sc("-f", "json", "renew").row("renew")["renewed"] == 1
    os.rename(shared, f"{shared}.away")
    done = sc("renew")
    assert "leases in the upstream are not renewed" in done.err
    assert done.code == 0


def test_a_command_reads_the_shared_path(shared: Path, source: str) -> None:
    """`run` would fail where `use` does not."""
    assert call("-C", shared, "use", source).code == 0
    done = call("run", "--size", TOO_MUCH, source, "--", "cat", "{}")
    assert (done.code, done.out) == (0, "ACGT\n")
    assert uses(shared) == ["released"]


def test_the_other_directories_come_first(sc: Sc, root: Path, shared: Path, source: str, tmp_path: Path) -> None:
    """Of several disks of a node, the first that is full would send a job to the shared file system."""
    assert sc("use", "-d", f"{tmp_path / 'a'}:{tmp_path / 'b'}", source).path.is_relative_to(tmp_path / "a")
    other = tmp_path / "other.fa"
    other.write_text("TTTT\n")
    assert sc("-C", shared, "use", other).code == 0
    both = f"{tmp_path / 'a'}:{tmp_path / 'b'}"
    done = sc("use", "-d", both, "--size", TOO_MUCH, other)
    assert done.path.is_relative_to(shared)
    assert sc("-f", "json", "unuse", "-d", both, done.path).row("unuse")["released"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_disk_that_really_is_full(sc: Sc, shared: Path, tmp_path: Path) -> None:
    """What the checks of free space do not foresee would end in an error."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = shell(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)])
    if mounted.code:
        pytest.skip(f"cannot mount a file system: {mounted.err.strip()}")
    try:
        big = tmp_path / "big"
        big.write_bytes(b"x" * (2 << 20))
        assert sc("-C", place / "cache", "use", "--parents", big).path.is_relative_to(shared)
        filler = place / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        small = tmp_path / "small.fa"
        small.write_text("ACGT\n" * 2000)
        assert sc("-C", place / "cache", "use", small).path.is_relative_to(shared)
    finally:
        shell(["umount", str(place)])


# -- which upstream ----------------------------------------------------------------------------------------------------


def test_the_option_comes_before_the_variable_and_that_before_the_file(
    sc: Sc, root: Path, shared: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script could not choose another upstream than the site, or none."""
    Cache(tmp_path / "other").init()
    config(root, f'[fetch]\nupstream = "{tmp_path / "other"}"\n')
    assert sc("-f", "json", "config").row("config")["fetch.upstream"] == str(tmp_path / "other")

    def used(*options: str) -> list[str]:
        for place in (root, shared, tmp_path / "other"):
            sc("-C", place, "clean", "--all", "-y")
        assert sc("use", *options, source).code == 0
        assert sc("unuse", source).code == 0
        return [place.name for place in (shared, tmp_path / "other") if Disk(place).copies()]

    assert used("--upstream", str(tmp_path / "other")) == ["other"]
    assert used() == ["shared"]
    assert used("--upstream", "") == []
    monkeypatch.setenv("SC_DTOOL_UPSTREAM", "")
    assert used() == []
    monkeypatch.delenv("SC_DTOOL_UPSTREAM")
    assert used() == ["other"]


def test_the_variable_does_not_concern_the_cache_that_it_names(sc: Sc, shared: Path, source: str) -> None:
    """A profile that sets it for the nodes would make every command on the shared cache fail."""
    assert sc("-C", shared, "use", source).path.is_relative_to(shared)


def test_a_lock_is_copied_from_an_upstream_too(sc: Sc, root: Path, tmp_path: Path, source: str) -> None:
    """Only `use` could be told of an upstream, and a lock would download what is there already."""
    Cache(tmp_path / "shared").init()
    upstream = ("--upstream", str(tmp_path / "shared"))
    session = sc("session", "create", "--add", f"{source}:/ref.fa", *upstream).out.strip()
    assert sc("lock", "get", session, "/ref.fa", *upstream).code == 0
    assert len(Disk(tmp_path / "shared").copies()) == 1
    for words in (["lock", "ls"], ["transfers"], ["status"], ["renew", "--holder", "x"]):
        assert sc(*words, *upstream).code == 0
        assert sc(*upstream, *words).code == 0


def test_an_upstream_that_is_away_is_named(sc: Sc, root: Path, source: str, tmp_path: Path, disk: Disk) -> None:
    """A user could not tell which of two caches is missing, and who has named it."""
    done = sc("use", "--upstream", tmp_path / "away", source)
    assert done.code == 10
    assert one_line_error(done).startswith(f"Error: {tmp_path / 'away'}, the upstream of {root}, cannot be used")
    assert "--upstream ''" in done.err
    assert disk.left() == []
    assert not (tmp_path / "away").exists()


def test_nothing_else_needs_the_upstream(sc: Sc, root: Path, shared: Path, source: str) -> None:
    """While the shared file system is away, nobody could look at a node's cache, clean it, or give anything back."""
    path = sc("use", source).path
    os.rename(shared, f"{shared}.away")
    assert sc("use", source).path == path
    assert sc("unuse", path).code == 0
    assert sc("unuse", source).code == 0
    assert "nothing to release" in sc("unuse", source).err
    for words in (
        "ls",
        "du",
        "status",
        "why ref.fa",
        "log",
        "transfers",
        f"locate {source}",
        "doctor",
        "clean --all -y",
    ):
        assert sc(*words.split()).code == 0, words


def test_a_mistake_in_the_file_keeps_nobody_from_giving_back(sc: Sc, root: Path, source: str) -> None:
    """A wrong `upstream` would leave everything held that was used before it was written."""
    path = sc("use", source).path
    config(root, '[fetch]\nupstream = "shared"\n')
    assert sc("-f", "json", "unuse", path).row("unuse")["released"] == 1
