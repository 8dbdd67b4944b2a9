"""A cache whose misses are copied from another one: the upstream of a cache on a node's own disk."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import httpserver
from faults import Counting, Failing, FakeClock, FakeProc, Interposing
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import CacheError, FetchFailed, NoCache, NoSpace, TimedOut, UsageError
from sccache_dtool.liveness.caller import Owner, user_name
from waiting import wait_until

Making = Callable[..., Cache]


@pytest.fixture
def make(tmp_path: Path, clock: FakeClock, proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> Iterator[Making]:
    """Makes caches by the name of their directory, all of this host; everything is released at the end."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    made: list[Cache] = []

    def make_(name: str, upstream: str | None = None, **more: Any) -> Cache:
        given = {"clock": clock, "proc": proc, "fs": FileSystem(), **more}
        made.append(Cache(tmp_path / name, upstream=upstream and tmp_path / upstream, **given))
        return made[-1]

    yield make_
    for cache in made:
        cache.close()


@pytest.fixture
def shared(make: Making) -> Cache:
    """The upstream."""
    cache = make("shared")
    cache.init()
    return cache


@pytest.fixture
def node(make: Making, shared: Cache) -> Cache:
    """The cache on the node's disk."""
    return make("node", "shared")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpserver.Server]:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with httpserver.serve() as running:
        yield running


class Full(FileSystem):
    """The disk of the node has room for so many bytes; that of the others has more than enough."""

    def __init__(self, free: int, within: str = "/node") -> None:
        self.free, self.within = free, within

    def free_space(self, path: str) -> int | None:
        return self.free if self.within in path else 1 << 40


def left(cache: Cache) -> list[str]:
    """What only a fetch or a lease leaves: holders, work areas, elections."""
    control = cache.root / ".sc-dtool"
    found = [*(control / "holders").glob("*.*"), *(control / "tmp").iterdir(), *(control / "locks").iterdir()]
    return [path.name for path in found]


def facts(path: os.PathLike[str] | str) -> dict[str, Any]:
    """The `item.json` of a copy, by the path of its payload."""
    found: dict[str, Any] = json.loads(Path(path).parents[1].joinpath("item.json").read_text())
    return found


# -- a miss ------------------------------------------------------------------------------------------------------------


def test_a_miss_is_copied_and_the_lease_given_back(node: Cache, shared: Cache, server: httpserver.Server) -> None:
    """The data would stay on the shared file system, or be held there for as long as the node's copy is used."""
    url = server.page("/ref.fa", b"ACGT\n")
    lease = node.use(url)
    assert node.root in lease.path.parents
    assert lease.path.read_text() == "ACGT\n"
    assert lease.path.stat().st_mode & 0o222 == 0
    (item,) = shared.items()
    assert (item.leases, item.finished_uses) == (0, 1)
    assert left(shared) == []
    assert facts(lease)["upstream"].startswith(f"{shared.root}/.sc-dtool/items/")
    assert facts(lease)["source"] == [url]
    assert node.use(url).path == lease.path
    assert server.gets["/ref.fa"] == 1


def test_the_download_of_the_upstream_is_shown_on_the_node(
    make: Making, node: Cache, server: httpserver.Server, job: Owner
) -> None:
    """Whoever waits on the node would see something queued, and not how long that may take."""
    url = server.page("/big", bytes(1000), stall_after=400)
    node.init()
    using = threading.Thread(target=lambda: node.use(url).release())
    using.start()
    try:
        seen = make("node", "shared")
        wait_until(lambda: [one for one in seen.transfers() if one.total == 1000], "the total is shown")
        assert [one.state for one in seen.transfers()] == ["transferring"]
        assert [one.total for one in seen.fetches().values()] == [1000]
        assert [one.state for one in make("node").transfers()] == ["queued"]
        with pytest.raises(TimedOut) as late:
            seen.hold(job, seen.item_request([url]), UseOptions(wait=0.0))
        (line,) = late.value.details
        assert " of 1.0 kB, " in line
        assert f"fetched into the upstream by {user_name()}@" in line
    finally:
        server.release()
        using.join()


def test_a_hit_asks_nothing_of_the_upstream(make: Making, shared: Cache, source: str) -> None:
    """Each use on the node would wait for the shared file system, which is what the copy is there to avoid."""
    fs = Counting()
    node = make("node", "shared", fs=fs)
    node.use(source).release()
    os.rename(shared.root, f"{shared.root}.away")
    fs.calls.clear()
    node.use(source).release()
    assert fs.kinds() == ["symlink", "rename"]
    again = make("node", "shared", fs=fs)
    again.use(source).release()
    assert not [call for call in fs.calls if str(shared.root) in str(call)]


def test_steps_are_applied_upstream(node: Cache, shared: Cache, server: httpserver.Server) -> None:
    """Each node would unpack the archive again, or copy the archive instead of what is in it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("a", "deep/b"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"ACGT\n"))
        link = tarfile.TarInfo("deep/c")
        link.type, link.linkname = tarfile.SYMTYPE, "b"
        tar.addfile(link)
    path = node.use(server.page("/reads.tar", packed.getvalue()), "tar").path
    assert path.name == "reads"
    assert sorted(str(one.relative_to(path)) for one in path.rglob("*")) == ["a", "deep", "deep/b", "deep/c"]
    assert (path / "deep" / "c").read_text() == "ACGT\n"
    assert os.readlink(path / "deep" / "c") == "b"
    assert server.gets["/reads.tar"] == 1


def test_what_is_known_of_the_content_comes_with_it(node: Cache, shared: Cache, server: httpserver.Server) -> None:
    """`doctor --verify-content` could not check the copies on a node, and `ls -l` not say where they are from."""
    body = b"ACGT\n"
    digest = f"md5:{hashlib.md5(body).hexdigest()}"
    lease = node.use(server.page("/ref.fa", body, etag='"1"'), digest, name="the reference")
    there = facts(shared.use(server.url("/ref.fa"), digest, name="the reference"))
    here = facts(lease)
    for field in ("key", "name", "source", "digests", "versions", "fetched", "bytes", "entries"):
        assert here[field] == there[field]
    assert node.verify_content().read == 1


def test_a_name_without_a_source_stays_on_the_node(node: Cache, shared: Cache) -> None:
    """What jobs of one node count would be counted on the shared file system as well."""
    assert node.use(name="jobs").path.is_dir()
    assert list(shared.items()) == []


def test_a_failure_is_that_of_the_upstream_and_leaves_nothing(
    node: Cache, shared: Cache, server: httpserver.Server
) -> None:
    """A 404 would be told as if the copy had failed, or leave a lease in one of the caches."""
    with pytest.raises(FetchFailed, match="404"):
        node.use(server.page("/x", status=404))
    node.close()
    assert (left(node), left(shared)) == ([], [])


# -- a copy that is not what it should be ------------------------------------------------------------------------------


@pytest.mark.parametrize("described", [True, False])
def test_a_digest_that_is_asked_for_is_checked(
    node: Cache, shared: Cache, server: httpserver.Server, described: bool
) -> None:
    """Whoever can write in the upstream could have other data verified, with a description without a digest."""
    url = server.page("/ref.fa", b"ACGT")
    digest = f"sha256:{hashlib.sha256(b'ACGT').hexdigest()}"
    with shared.use(url, digest) as path:
        path.chmod(0o644)
        path.write_bytes(b"ACGA")
        described_in = path.parent.parent / "item.json"
        if described:
            described_in.write_text(json.dumps({**json.loads(described_in.read_text()), "source": [url]}))
        else:
            described_in.unlink()
        with pytest.raises(FetchFailed, match=r"the sha256 of the copy is"):
            node.use(url, digest)


def test_a_copy_with_another_digest_is_not_used(node: Cache, shared: Cache, server: httpserver.Server) -> None:
    """A file that was damaged on the shared disk, or on its way to the node, would be read by all jobs of the node."""
    digest = f"sha256:{hashlib.sha256(b'ACGT').hexdigest()}"
    url = server.page("/x", b"ACGT")
    with shared.use(url, digest) as path:
        path.chmod(0o644)
        path.write_bytes(b"ACGA")
    with pytest.raises(FetchFailed, match="the sha256 of the copy is") as raised:
        node.use(url, digest)
    assert "doctor --verify-content" in str(raised.value.hint)
    assert [item.copies for item in node.items()] == []
    node.close()
    assert left(node) == []


def test_a_directory_that_a_purge_has_cut_is_not_copied(make: Making, shared: Cache, tmp_path: Path) -> None:
    """What a purge removes while the copy is made would be missing on the node, for as long as the copy is there."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abc":
        (tree / name).write_text(name)
    with shared.use(tree) as there:
        pass
    fs = Interposing()
    fs.before("names", (there / "b").unlink, within=str(there))
    node = make("node", "shared", fs=fs)
    with pytest.raises(FetchFailed, match="were copied, but 3 in 4 were published"):
        node.use(tree)
    assert node.use(tree).path.joinpath("b").read_text() == "b"  # the upstream has noticed it, and fetched it again


def test_what_a_program_has_put_into_a_directory_does_no_harm(node: Cache, shared: Cache, tmp_path: Path) -> None:
    """A reference beside which somebody has made an index could not be copied any more."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("a")
    with shared.use(tree) as there:
        (there / "a.idx").write_text("index")
    assert sorted(path.name for path in node.use(tree).path.iterdir()) == ["a", "a.idx"]


# -- while it is copied ------------------------------------------------------------------------------------------------


def test_what_is_copied_cannot_be_evicted(make: Making, shared: Cache, source: str) -> None:
    """A cleaner of the shared cache would delete the file under the node that copies it."""
    shared.use(source).release()
    fs = Interposing()
    node = make("node", "shared", fs=fs)
    key = node.key_for([source])
    fs.before("clone", lambda: shared.evict_if_idle(key))
    assert node.use(source).path.read_text() == "ACGT\n"
    assert fs.results == [False]
    assert shared.evict_if_idle(key)


def test_a_copy_is_made_again_if_its_lease_was_lost(make: Making, shared: Cache, source: str) -> None:
    """A node that slept while it copied would publish what a cleaner had begun to delete."""
    shared.use(source).release()
    fs = Interposing()

    def revoke() -> int:
        names = [path.name for path in (shared.root / ".sc-dtool" / "holders").glob("*.*")]
        return sum(len(shared.reap_holder(name.partition(".")[0]).leases) for name in names)

    clock = FakeClock()
    fs.before("clone", lambda: (revoke(), clock.let_pass(86_400)))
    node = make("node", "shared", fs=fs, clock=clock)
    assert node.use(source).path.read_text() == "ACGT\n"
    assert fs.results == [(1, None)]
    (item,) = node.items()
    assert len(item.copies) == 1
    assert sorted(use.how for use in shared.uses(item.key)) == ["reaped", "released", "released"]  # by two clocks


# -- when a source changes ---------------------------------------------------------------------------------------------


def test_a_changed_file_is_noticed_through_both_tiers(node: Cache, shared: Cache, source: str) -> None:
    """A job would read the file as it was when the first job of the node, or of the cluster, has used it."""
    first = node.use(source).path
    Path(source).write_text("TTTT\n")
    second = node.use(source).path
    assert (first.read_text(), second.read_text()) == ("ACGT\n", "TTTT\n")
    assert node.use(source).path == second
    (item,) = shared.items()
    assert len(item.copies) == 2


def test_a_change_that_only_the_upstream_has_seen(make: Making, shared: Cache, source: str) -> None:
    """A node would be given the upstream's older copy, and call it the newest."""
    node, other = make("node", "shared"), make("other", "shared")
    status = os.stat(source)
    old = node.use(source).path
    Path(source).write_text("TTTT\n")
    new = other.use(source).path
    Path(source).write_text("ACGT\n")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert node.use(source).path == old
    assert other.use(source).path.read_text() == "ACGT\n"
    assert new.read_text() == "TTTT\n"
    (item,) = shared.items()
    assert len(item.copies) == 2


def test_refresh_asks_once_and_copies_only_what_has_changed(
    node: Cache, shared: Cache, server: httpserver.Server
) -> None:
    """`--refresh` on a node would miss a new version, or copy the whole file again each time."""
    url = server.page("/x", b"one", etag='"1"')
    first = node.use(url).path
    assert node.use(url, refresh=True).path == first
    assert server.gets["/x"] == 2
    server.page("/x", b"two", etag='"2"')
    second = node.use(url, refresh=True).path
    assert second.read_text() == "two"
    assert node.use(url).path == second


@pytest.mark.present
def test_an_age_is_that_of_the_data_and_not_of_the_copy(
    node: Cache, shared: Cache, server: httpserver.Server, clock: FakeClock
) -> None:
    """Data of last week would count as fresh on each node that has copied it today; or twice as old as was allowed."""
    url = server.page("/x", b"one", etag='"1"')
    shared.use(url).release()
    clock.let_pass(50)
    node.use(url).release()
    node.use(url, max_age=60).release()
    assert server.gets["/x"] == 1
    clock.let_pass(20)
    shared.use(url, max_age=60).release()  # asked by another node: it need not be asked again
    assert server.gets["/x"] == 2
    clock.let_pass(50)
    node.use(url, max_age=60).release()
    assert server.gets["/x"] == 2
    clock.let_pass(20)  # 70 seconds after it was last asked, and 20 after the node was told
    node.use(url, max_age=60).release()
    assert server.gets["/x"] == 3


# -- a node without room -----------------------------------------------------------------------------------------------


def test_without_room_the_shared_path_is_given_out(
    make: Making, shared: Cache, source: str, notes: list[str], tmp_path: Path
) -> None:
    """A job would fail on a node whose disk is full, though the data is there to be read."""
    node = make("node", "shared", fs=Full(4))
    lease = node.use(source)
    assert shared.root in lease.path.parents
    assert notes[-1].endswith(f"({node.root}); using the item in the upstream cache {shared.root}")
    (item,) = shared.items()
    assert item.leases == 1
    assert not shared.evict_if_idle(item.key)
    with node.use(source) as again:
        assert again == lease.path
        assert shared.item(item.key).leases == 2
    assert lease.release()
    assert shared.item(item.key).leases == 0
    node.use(source)
    node.close()
    assert shared.item(item.key).leases == 0
    assert (left(node), left(shared)) == ([], [])


def test_a_lease_for_a_job_is_given_out_upstream_too(make: Making, shared: Cache, source: str, job: Owner) -> None:
    """The shared path that a job was given would be held by the command that has ended."""
    node = make("node", "shared", fs=Full(4))
    lease = node.or_upstream(lambda cache: cache.hold(job, cache.item_request([source])))
    (item,) = shared.items()
    (held,) = shared.judged(item)
    assert held.verdict.state.name == "ALIVE"
    assert held.held.name == lease.name
    assert shared.release([job], item.key) == 1


@pytest.mark.parametrize("kind", ["symlink", "mkdir"])
def test_a_disk_without_a_single_block_is_no_room(make: Making, shared: Cache, source: str, kind: str) -> None:
    """Where not even a lease can be written on the node, a job would fail."""
    fs = Failing()
    node = make("node", "shared", fs=fs)
    node.init()
    fs.fail(kind, errno.ENOSPC, within="/node/")
    assert shared.root in node.use(source).path.parents


def test_idle_copies_make_way(make: Making, shared: Cache, tmp_path: Path) -> None:
    """A node's disk would fill up with the first items, and all later ones be read from the shared file system."""
    for name in ("old", "new", "huge"):
        (tmp_path / name).write_bytes(b"x" * (1000 if name == "huge" else 10))
    fs = Full(15)
    node = make("node", "shared", fs=fs)
    node.use(tmp_path / "old").release()
    fs.free = 5
    assert node.root in node.use(tmp_path / "new").path.parents
    assert [item.label for item in node.items() if item.copies] == ["new"]


def test_what_does_not_fit_anyway_evicts_nothing(make: Making, shared: Cache, tmp_path: Path) -> None:
    """An item that is larger than the disk would empty the node's cache each time that it is used."""
    for name, size in {"small": 10, "huge": 1000}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    node = make("node", "shared", fs=Full(15))
    node.use(tmp_path / "small").release()
    assert shared.root in node.use(tmp_path / "huge").path.parents
    assert [item.label for item in node.items() if item.copies] == ["small"]


def test_an_upstream_without_room_is_an_error(make: Making, shared: Cache, source: str, notes: list[str]) -> None:
    """The note would say that the node is full, and the item be fetched twice in vain."""
    node = make("node", "shared", fs=Full(4, "/shared"))
    with pytest.raises(NoSpace) as raised:
        node.use(source)
    assert str(shared.root) in raised.value.details[0]
    assert not any("using the item in the upstream" in note for note in notes)
    node.close()
    assert (left(node), left(shared)) == ([], [])


# -- which upstream ----------------------------------------------------------------------------------------------------


def test_an_upstream_that_is_not_there_is_not_set_up(make: Making, tmp_path: Path, source: str) -> None:
    """Where the shared file system is not mounted, a cache would be made on the node's own disk in its place."""
    (tmp_path / "mnt").mkdir()
    node = make("node", "mnt")
    with pytest.raises(NoCache, match=r"mnt, the upstream of .*node, cannot be used: no cache in") as raised:
        node.use(source)
    assert "[fetch] upstream" in str(raised.value.hint)
    assert os.listdir(tmp_path / "mnt") == []
    node.close()
    assert left(node) == []


def test_a_cache_is_not_its_own_upstream(make: Making, tmp_path: Path, source: str) -> None:
    """A use would wait for itself until its time is over."""
    node = make("node", "node")
    with pytest.raises(UsageError, match="is the same cache"):
        node.use(source)
    (tmp_path / "link").symlink_to(tmp_path / "node")
    with pytest.raises(UsageError, match="is the same cache"):
        make("node", "link").use(source)
    assert [cache.root for cache in node.tiers()] == [node.root]


def test_a_chain_of_tiers(make: Making, shared: Cache, server: httpserver.Server) -> None:
    """A cache in each rack, between the nodes and the shared one, would not be possible."""
    url = server.page("/x", b"ACGT")
    rack = make("rack")
    rack.init()
    (rack.root / ".sc-dtool" / "config.toml").write_text(f'[fetch]\nupstream = "{shared.root}"\n')
    node = make("node", "rack")
    assert [cache.root for cache in node.tiers()] == [node.root, rack.root, shared.root]
    lease = node.use(url)
    assert node.root in lease.path.parents
    assert facts(lease)["upstream"].startswith(f"{rack.root}/")
    assert [len(list(cache.items())) for cache in (node, rack, shared)] == [1, 1, 1]
    assert server.gets["/x"] == 1
    shared_config = shared.root / ".sc-dtool" / "config.toml"
    shared_config.write_text(f'[fetch]\nupstream = "{rack.root}"\n')
    with pytest.raises(UsageError, match="or copies from it"):
        make("node", "rack").use(server.page("/y", b"ACGT"))


def test_a_tier_without_room_is_passed_over(make: Making, shared: Cache, source: str) -> None:
    """A full disk in the middle of a chain would keep the nodes from their copies."""
    rack = make("rack")
    rack.init()
    (rack.root / ".sc-dtool" / "config.toml").write_text(f'[fetch]\nupstream = "{shared.root}"\n')
    lease = make("node", "rack", fs=Full(4, "/rack")).use(source)
    assert facts(lease)["upstream"].startswith(f"{shared.root}/")


@pytest.mark.parametrize("value", ['"here"', "7", '"~/cache"'])
def test_an_upstream_is_an_absolute_path(make: Making, source: str, value: str) -> None:
    """The upstream would depend on the directory from which a command is started."""
    node = make("node")
    node.init()
    (node.root / ".sc-dtool" / "config.toml").write_text(f"[fetch]\nupstream = {value}\n")
    with pytest.raises(CacheError, match=r"\[fetch\] upstream: .* is not an absolute path"):
        node.use(source)


def test_an_empty_upstream_is_none(make: Making, shared: Cache, source: str) -> None:
    """Nobody could do without an upstream that config.toml names, such as when it is away."""
    node = make("node")
    node.init()
    (node.root / ".sc-dtool" / "config.toml").write_text(f'[fetch]\nupstream = "{shared.root}"\n')
    make("node", "").use(source)
    assert list(shared.items()) == []
    assert node.upstream is not None


def test_a_credential_that_only_the_upstream_knows_of_is_not_stored(
    node: Cache, shared: Cache, server: httpserver.Server
) -> None:
    """A ticket in a URL would be stored for all to read, and the item be another one than that of everybody else."""
    (shared.root / ".sc-dtool" / "config.toml").write_text('[fetch]\ncredentials = ["permit"]\n')
    lease = node.use(server.page("/x?permit=sesame", b"ACGT"))
    assert lease.key == shared.key_for([server.url("/x")])
    for root in (node.root, shared.root):
        assert not [path for path in root.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]


def test_terms_are_those_of_the_upstream_too(node: Cache, shared: Cache, source: str, job: Owner) -> None:
    """`--wait` and `--max-rate` would not hold for the download that the upstream makes for this use."""
    seen: list[UseOptions] = []
    lend = Cache.lend

    def watch(cache: Cache, wanted: Any, options: UseOptions) -> Any:
        seen.append(options)
        return lend(cache, wanted, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cache, "lend", watch)
        node.hold(job, node.item_request([source]), UseOptions(wait=7.0, rate=1 << 30))
    assert seen == [UseOptions(wait=7.0, rate=1 << 30)]
