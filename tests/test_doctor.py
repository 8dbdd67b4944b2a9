"""What the doctor finds, and what it repairs."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Counting, Failing, FakeClock, FakeProc, store_of
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.disk.names import (
    DIRECTORIES,
    ITEM_FILE,
    PAYLOAD,
    PROBE,
    TAG_TEXT,
    VERIFICATION,
    Generation,
    HolderName,
    Layout,
    TrashName,
    WorkName,
)
from sccache_dtool.disk.nofollow import DirectoryHandle
from sccache_dtool.doctor import Finding
from sccache_dtool.errors import CacheError, InUse
from sccache_dtool.liveness import caller
from sccache_dtool.liveness.caller import CALLER, Owner
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import gate
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.leases import Lease

FS = FileSystem()
Making = Callable[..., Cache]
ID = "s0123456789ab-0123456789ab"
TRASHED = TrashName(Generation("0123456789abcdef", 1_700_000_000, 5, 1), 0, True)
DAYS = 10 * 86_400.0


pytestmark = pytest.mark.present


def repair(cache: Cache) -> None:
    """As `doctor --fix` does: repair what can be repaired, and look again."""
    for _ in range(5):
        repairable = [finding for finding in cache.examine() if finding.repair]
        if not repairable:
            return
        for finding in repairable:
            assert finding.repair is not None
            try:
                finding.repair()
            except FileNotFoundError:
                continue
    raise AssertionError("the doctor never comes to an end")


def test_a_healthy_cache_has_no_findings(cache: Cache, source: str) -> None:
    """The doctor would cry wolf, and nobody would listen."""
    assert cache.examine() == []
    cache.use(source)
    cache.use(name="other").release()
    assert cache.examine() == []


def test_what_is_evicted_meanwhile_has_no_findings(make_cache: Making, cache: Cache, source: str) -> None:
    """On a cache that is cleaned while it is examined, `doctor` would report copies as damaged that are gone."""
    cleaning = make_cache()
    cache.use(source).release()
    cache.use(name="other").release()
    cache.close()

    class Evicting(FileSystem):
        def near(self, path: str) -> contextlib.AbstractContextManager[None]:
            key = os.path.basename(path)
            if key.endswith("-other"):
                cleaning.evict_if_idle(key)
            return super().near(path)

    assert make_cache(fs=Evicting()).examine() == []


@pytest.mark.parametrize("max_age", [None, 0.0])
def test_a_copy_whose_source_was_asked_has_no_findings(cache: Cache, source: str, max_age: float | None) -> None:
    """After each `use --refresh`, `doctor` would advise to remove what the program has noted."""
    for _ in range(2):
        cache.use(source, refresh=max_age is None, max_age=max_age).release()
    assert cache.examine() == []


def test_examining_writes_nothing_but_a_probe(make_cache: Making, cache: Cache, source: str) -> None:
    """`doctor` without --fix would change something."""
    cache.use(source).release()
    fs = Counting()
    make_cache(fs=fs).examine()
    changes = [
        call
        for call in fs.calls
        if call.kind in ("symlink", "rename", "mkdir", "rmdir", "unlink", "create", "remove_tree")
    ]
    assert all(PROBE in call.path for call in changes)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_missing_directory_is_made(cache: Cache, source: str, layout: Layout, name: str) -> None:
    """After a slip with `rm` a cache could not be used any more."""
    path = f"{layout.control}/{name}"
    FS.remove_tree(path)
    assert path in [finding.path for finding in cache.examine()]
    repair(cache)
    assert cache.examine() == []
    cache.use(source).release()


def test_nobody_is_taken_for_gone_because_the_register_is(
    cache: Cache, make_cache: Making, job: Owner, source: str, layout: Layout
) -> None:
    """After a slip with `rm`, or a backup without it, the repair would let all that is in use be deleted."""
    lease = cache.hold(job, cache.item_request([source]))
    working = WorkName(f"{ID}.0", "fetch")
    os.makedirs(f"{layout.tmp}/{working}/{PAYLOAD}")
    FS.remove_tree(layout.holders)
    (finding,) = cache.examine()
    assert "together with the records of 2 holders" in finding.what
    repair(cache)
    assert {name.partition(".")[0] for name in os.listdir(layout.holders)} == {lease.holder.id, ID, "gone"}
    assert all("reap --holder" in left.remedy for left in cache.examine())
    other = make_cache()
    assert other.reap().leases == ()
    other.clean(Rules(everything=True), keep_for=0)
    assert Path(lease.place.payload).exists()
    assert os.path.exists(f"{layout.tmp}/{working}")
    for id in (lease.holder.id, ID):
        other.reap_holder(id)
    other.clean(Rules(everything=True), keep_for=0)
    assert not Path(lease.place.payload).exists()
    assert cache.examine() == []


def test_who_comes_back_to_a_new_register_gives_back(cache: Cache, job: Owner, source: str, layout: Layout) -> None:
    """A job that went on meanwhile would keep its item for ever."""
    lease = cache.hold(job, cache.item_request([source]))
    FS.remove_tree(layout.holders)
    repair(cache)
    cache.release([job], lease.key, everything=True)
    assert os.listdir(lease.place.gate) == []
    assert cache.examine() == []


def test_a_register_is_not_made_again_while_nobody_can_tell_who_was_in_it(
    cache: Cache, make_cache: Making, job: Owner, source: str, layout: Layout
) -> None:
    """A gate that cannot be listed for a moment would make its user one who is gone."""
    lease = cache.hold(job, cache.item_request([source]))
    FS.remove_tree(layout.holders)
    fs = Failing()
    fs.fail("names", errno.EACCES, within=lease.place.gate)
    found = make_cache(fs=fs).examine()
    assert [(finding.path, finding.repair) for finding in found] == [(layout.holders, None)]
    assert not os.path.exists(layout.holders)


def test_a_new_register_is_there_with_everybody_or_not_at_all(
    cache: Cache, make_cache: Making, job: Owner, source: str, layout: Layout
) -> None:
    """A reaper that looks between the directory and its entries would end every lease."""
    cache.hold(job, cache.item_request([source]))
    FS.remove_tree(layout.holders)
    fs = Failing()
    fs.fail("symlink", errno.ENOSPC, within="register")
    (finding,) = make_cache(fs=fs).examine()
    assert finding.repair is not None
    with pytest.raises(OSError, match="No space"):
        finding.repair()
    assert not os.path.exists(layout.holders)
    assert os.listdir(layout.tmp) == []


def test_a_missing_tag_is_made(cache: Cache, layout: Layout) -> None:
    """Backup programs would save the cache."""
    os.unlink(layout.tag_file)
    assert [finding.path for finding in cache.examine()] == [layout.tag_file]
    repair(cache)
    assert Path(layout.tag_file).read_text().startswith("Signature: ")


@pytest.mark.parametrize("directory", ["root", "control"])
def test_a_cache_that_everybody_may_write_to_is_told_of(cache: Cache, layout: Layout, directory: str) -> None:
    """Anybody on the machine could delete or replace what others read, and nobody would be told."""
    path = getattr(layout, directory)
    os.chmod(path, 0o777)
    (finding,) = cache.examine()
    assert (finding.path, finding.repair) == (path, None)
    assert "every user" in finding.what


def _two_payloads(lease: Lease) -> str:
    Path(lease.place.payload).with_name("second").touch()
    return str(Path(lease.place.payload).parent)


def _no_description(lease: Lease) -> str:
    path = Path(lease.place.gate).parent / ITEM_FILE
    path.unlink()
    return str(path)


def _no_words(lease: Lease) -> str:
    path = Path(lease.place.gate).parent / ITEM_FILE
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "source": [{"of": "wrong type"}]}))
    return str(path)


def _damaged_description(lease: Lease) -> str:
    path = Path(lease.place.gate).parent / ITEM_FILE
    path.write_text("garbage")
    return str(path)


def _of_another(lease: Lease) -> str:
    path = Path(lease.place.gate).parent / ITEM_FILE
    path.write_text(path.read_text().replace(lease.key, f"{'0' * 32}-other"))
    return str(path)


@pytest.mark.parametrize("damage", [_two_payloads, _no_words, _of_another])
def test_a_damaged_copy_is_told_of_and_left_to_a_person(
    cache: Cache, source: str, damage: Callable[[Lease], str]
) -> None:
    """Users would be given a copy that is damaged, and nobody would know; or it would be deleted under them."""
    lease = cache.use(source)
    path = damage(lease)
    finding = cache.examine()[0]
    assert (finding.path, finding.repair) == (path, None)
    assert finding.remedy
    assert PAYLOAD in path or ITEM_FILE in path
    lease.release()
    cache.remove(lease.key)
    assert cache.examine() == []


@pytest.mark.parametrize("damage", [_no_description, _damaged_description])
@pytest.mark.parametrize("name", [None, "a name"])
def test_a_lost_description_is_written_again(
    cache: Cache, make_cache: Making, source: str, name: str | None, damage: Callable[[Lease], str]
) -> None:
    """After a purge of old files all that is in the cache would have to be fetched again, or be a finding for ever."""
    lease = cache.use(source, name=name)
    payload = Path(lease.place.payload)
    path = damage(lease)
    (finding,) = cache.examine()
    assert finding.path == path
    repair(cache)
    assert cache.examine() == []
    assert payload.read_text() == "ACGT\n"
    written = json.loads(Path(path).read_text())
    assert (written["key"], written["payload"], written["bytes"]) == (lease.key, payload.name, 5)
    lease.release()
    with make_cache().use(source, name=name) as used:  # what a name stands for cannot be told any more
        assert (used == payload) == (name is None)
    kept = cache.remove(lease.key, keep_for=DAYS)
    assert kept
    assert cache.restore(lease.key) == lease.key


def test_what_is_not_a_description_is_left_alone(cache: Cache, source: str) -> None:
    """What somebody has put in its place would be replaced."""
    lease = cache.use(source)
    path = Path(_no_description(lease))
    for make in (path.mkdir, lambda: path.symlink_to("elsewhere"), lambda: os.mkfifo(path)):
        make()
        assert [finding.repair for finding in cache.examine() if finding.path == str(path)] == [None]
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_description_without_a_payload_is_not_written(cache: Cache, source: str) -> None:
    """A copy without data would look like one that is whole."""
    lease = cache.use(source)
    path = Path(_no_description(lease))
    os.unlink(lease.place.payload)
    finding = next(finding for finding in cache.examine() if finding.path == str(path))
    assert finding.repair is not None
    with pytest.raises(FileNotFoundError):
        finding.repair()
    assert not path.exists()


def _whole(layout: Layout) -> str:
    return Path(layout.format_file).read_text()


@pytest.mark.parametrize("left", [None, 0, 5, 25, 40, 64, -2, -5, "zeros"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_lost_format_is_written_again(
    cache: Cache, make_cache: Making, source: str, layout: Layout, left: int | str | None, shared: bool
) -> None:
    """After a purge of old files, or a crash that left a file without its end, a whole cache would be lost."""
    if shared:
        for path in (layout.control, *(f"{layout.control}/{name}" for name in DIRECTORIES)):
            os.chmod(path, 0o2770)
        Path(layout.format_file).write_text(_whole(layout).replace("shared: no", "shared: group"))
    lease = make_cache().use(source)
    before = _whole(layout)
    if left is None:
        os.unlink(layout.format_file)
    else:
        Path(layout.format_file).write_text("\0" * 80 if isinstance(left, str) else before[:left])
    with pytest.raises(CacheError) as refused:
        make_cache().use(source)
    assert "doctor --fix" in str(refused.value.hint)
    with pytest.raises(CacheError) as refused:
        make_cache().init()
    assert "doctor --fix" in str(refused.value.hint)
    other = make_cache()
    (finding,) = other.examine()
    assert finding.path == layout.format_file
    assert not isinstance(left, int) or _whole(layout) == before[:left]
    repair(other)
    assert make_cache().examine() == []
    after = _whole(layout)
    assert after.splitlines()[3] == before.splitlines()[3]
    assert (after == before) == (left in (64, -2, -5))
    with make_cache().use(source) as path:
        assert path == Path(lease.place.payload)
    assert sorted(os.listdir(layout.root)) == [".sc-dtool", "CACHEDIR.TAG"]


def test_a_format_without_its_last_end_of_line_is_right(make_cache: Making, layout: Layout) -> None:
    """An editor that leaves it out would make a cache unusable."""
    Path(layout.format_file).write_text(_whole(layout).rstrip("\n"))
    assert make_cache().examine() == []


def _of_a_newer_release(layout: Layout) -> None:
    Path(layout.control, "what a newer release makes").mkdir()
    os.unlink(layout.format_file)


def _elsewhere(layout: Layout) -> None:
    os.unlink(layout.format_file)
    os.symlink("elsewhere", layout.format_file)


def _without_items(layout: Layout) -> None:
    os.unlink(layout.format_file)
    FS.remove_tree(layout.items)


@pytest.mark.parametrize("how", [_of_a_newer_release, _elsewhere, _without_items])
def test_what_may_be_no_cache_of_ours_is_not_made_one(
    cache: Cache, make_cache: Making, layout: Layout, how: Callable[[Layout], None]
) -> None:
    """Data of somebody else's, or of a newer release, would be cleaned by rules that are not theirs."""
    how(layout)
    before = sorted(str(path) for path in Path(layout.root).rglob("*"))
    with pytest.raises(CacheError):
        make_cache().examine()
    assert sorted(str(path) for path in Path(layout.root).rglob("*")) == before


def test_a_new_format_that_cannot_be_written_leaves_nothing(cache: Cache, make_cache: Making, layout: Layout) -> None:
    """A repair on a full disk would add to what is to be repaired."""
    os.unlink(layout.format_file)
    for kind in ("mkdir", "create", "write", "rename"):
        fs = Failing()
        fs.fail(kind, errno.ENOSPC)
        (finding,) = make_cache(fs=fs).examine()
        assert finding.repair is not None
        with pytest.raises(OSError, match="No space"):
            finding.repair()
        assert sorted(os.listdir(layout.root)) == [".sc-dtool", "CACHEDIR.TAG"]
        assert not os.path.exists(layout.format_file)


def test_all_but_the_content_can_be_lost(cache: Cache, make_cache: Making, source: str, layout: Layout) -> None:
    """A purge takes all that is old at once, and not one thing after the other."""
    lease = cache.use(source)
    lease.release()
    cache.close()
    for name in ("FORMAT", "holders", "tmp", "trash", "locks", "transfers"):
        FS.remove_tree(f"{layout.control}/{name}")
    os.unlink(layout.tag_file)
    _no_description(lease)
    other = make_cache()
    repair(other)
    assert other.examine() == []
    with other.use(source) as path:
        assert path == Path(lease.place.payload)


# -- access by an ACL --------------------------------------------------------------------------------------------------


@pytest.fixture
def by_acl(tmp_path: Path, source: str) -> Cache:
    """A cache in a directory that an ACL opens to two users, and in which both have used an item."""
    root = tmp_path / "by-acl"
    root.mkdir(mode=0o700)
    if shutil.which("setfacl") is None:
        pytest.skip("there is no setfacl")
    rules = "u:2001:rwx,u:2002:rwx,d:u:2001:rwx,d:u:2002:rwx,d:u::rwx"
    done = subprocess.run(["setfacl", "-m", rules, str(root)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no ACLs here: {done.stderr.strip()}")
    cache = Cache(root, fs=FileSystem())
    cache.init()
    cache.use(source).release()
    return cache


def test_a_cache_that_an_acl_opens_is_in_order(by_acl: Cache, source: str) -> None:
    """`doctor` would find fault with every directory of a cache in which everybody can do what they should."""
    control = by_acl.root / ".sc-dtool"
    for path in [control, *control.rglob("*")]:
        if path.is_dir():
            os.chmod(path, 0o770)  # without setgid, as it is where the user is not in the group
            os.chown(path, -1, 3001 if os.geteuid() == 0 else -1)
    assert by_acl.examine() == []
    with by_acl.use(name="later") as path:
        assert (path.parent.stat().st_mode & 0o777) == 0o770
    assert by_acl.examine() == []
    by_acl.close()


def test_an_acl_whose_mask_keeps_everybody_out_is_found_and_opened(by_acl: Cache) -> None:
    """After a `chmod` the ACL would say that others may write, and none of them could."""
    path = by_acl.root / ".sc-dtool" / "tmp"
    os.chmod(path, 0o700)
    assert [finding.path for finding in by_acl.examine()] == [str(path)]
    repair(by_acl)
    assert by_acl.examine() == []
    assert (path.stat().st_mode & 0o777) == 0o770


@pytest.mark.root
def test_two_users_share_a_cache_by_an_acl(by_acl: Cache, open_tmp_path: Path) -> None:
    """Whoever is in no group with the other could not use, or clean, what the other has fetched."""
    root = open_tmp_path / "cache"
    shutil.copytree(by_acl.root, root, ignore=lambda *_: [".sc-dtool", "CACHEDIR.TAG"])
    rules = "u:2001:rwx,u:2002:rwx,d:u:2001:rwx,d:u:2002:rwx,d:u::rwx"
    os.chmod(root, 0o700)
    os.chown(root, 2001, 3001)
    subprocess.run(["setfacl", "-m", rules, str(root)], check=True)
    data = open_tmp_path / "data"
    data.write_text("ACGT\n")

    def as_user(user: int, act: Callable[[Cache], object]) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(user + 1000)
                os.setuid(user)
                os.umask(0o077)
                cache = Cache(root, fs=FileSystem())
                act(cache)
                cache.close()
                assert Cache(root, fs=FileSystem()).examine() == []
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    for user, act in (
        (2001, lambda cache: cache.init()),
        (2002, lambda cache: cache.use(data).release()),
        (2001, lambda cache: cache.use(data).release()),
        (2001, lambda cache: cache.clean(Rules(everything=True), keep_for=0)),
        (2002, lambda cache: cache.use(name="x").release()),
    ):
        assert as_user(user, act) == 0


def test_a_lease_that_nobody_holds_is_ended(cache: Cache, job: Owner, proc: FakeProc, source: str) -> None:
    """What killed jobs hold would be found by nobody."""
    lease = cache.hold(job, cache.item_request([source]))
    proc.end(4242)
    (finding,) = cache.examine()
    assert finding.path == f"{lease.place.gate}/{lease.name}"
    assert "4242" in finding.what
    repair(cache)
    assert os.listdir(lease.place.gate) == []
    assert [use.how for use in cache.uses(lease.key)] == ["reaped"]
    assert cache.examine() == []


def test_a_lease_whose_holder_is_missing_is_ended(cache: Cache, job: Owner, source: str, layout: Layout) -> None:
    """What a killed `unuse` leaves, or a slip with `rm` in holders/, would keep its item for ever."""
    lease = cache.hold(job, cache.item_request([source]))
    (name,) = (name for name in os.listdir(layout.holders) if name.startswith(lease.holder.id))
    os.unlink(f"{layout.holders}/{name}")
    (finding,) = cache.examine()
    assert finding.path == f"{lease.place.gate}/{lease.name}"
    assert "has ended" in finding.what
    repair(cache)
    assert [use.how for use in cache.uses(lease.key)] == ["reaped"]
    assert cache.examine() == []


def test_one_reaping_ends_all_leases(make_cache: Making, proc: FakeProc, source: str, layout: Layout) -> None:
    """After the crash of a large job the doctor would look through the whole cache again for each lease."""
    fs = Counting()
    cache = make_cache(fs=fs)
    calls = []
    for many in (1, 20):
        for pid in range(4242, 4242 + many):
            cache.hold(
                caller.process_owner(CALLER, proc, proc.add(pid, "job", start=1000)), cache.item_request([source])
            )
            proc.end(pid)
        found = cache.examine()
        assert len(found) == many
        fs.calls.clear()
        for finding in found:
            assert finding.repair is not None
            finding.repair()
        calls.append(sum(call.kind == "names" and str(call).count(layout.items) > 0 for call in fs.calls))
    assert calls[0] == calls[1]
    assert cache.examine() == []


def test_a_lease_that_cannot_be_ended_is_not_called_repaired(
    make_cache: Making, cache: Cache, job: Owner, proc: FakeProc, source: str, layout: Layout
) -> None:
    """The doctor would say that it has repaired what is as it was, and not who can."""
    cache.hold(job, cache.item_request([source]))
    proc.end(4242)
    fs = Failing()
    fs.fail("rename", errno.EACCES, within=f"{layout.gone}/")
    (finding,) = make_cache(fs=fs).examine()
    assert finding.repair is not None
    with pytest.raises(CacheError) as refused:
        finding.repair()
    assert "the owner of the cache, must do it" in refused.value.details[0]


def test_a_holder_that_is_gone_is_revoked(
    cache: Cache, job: Owner, proc: FakeProc, layout: Layout, clock: FakeClock
) -> None:
    """Holders of killed jobs would pile up."""
    holder = Holder(store_of(FS, layout, clock=clock), job, None)
    proc.end(4242)
    (finding,) = cache.examine()
    assert holder.id in finding.path
    repair(cache)
    assert os.listdir(layout.holders) == ["gone"]


def _interrupted_eviction(cache: Cache, layout: Layout) -> str:
    lease = cache.use(name="evicted")
    lease.release()
    assert gate.close(FS, lease.place.gate)
    return str(Path(lease.place.gate).parent)


def _work(cache: Cache, layout: Layout) -> str:
    path = Path(layout.tmp, str(WorkName(f"{ID}.0", "fetch")))
    (path / PAYLOAD).mkdir(parents=True)
    return str(path)


def _half_deleted(cache: Cache, layout: Layout) -> str:
    path = Path(layout.trash, str(TRASHED))
    (path / PAYLOAD).mkdir(parents=True)
    return str(path)


def _probe(cache: Cache, layout: Layout) -> str:
    os.symlink("probe", f"{layout.holders}/{PROBE}0123456789abcdef")
    return f"{layout.holders}/{PROBE}0123456789abcdef"


def _revoked(cache: Cache, layout: Layout) -> str:
    os.symlink("{}", f"{layout.gone}/{HolderName(ID, 1, 0)}")
    return f"{layout.gone}/{HolderName(ID, 1, 0)}"


def _lock(cache: Cache, layout: Layout) -> str:
    Path(layout.locks, "0f.lock").touch()
    return f"{layout.locks}/0f.lock"


@pytest.mark.parametrize("leave", [_interrupted_eviction, _half_deleted])
def test_what_a_cleaning_puts_away_meanwhile_is_no_finding(
    make_cache: Making, cache: Cache, layout: Layout, leave: Callable[[Cache, Layout], str]
) -> None:
    """Whoever runs `doctor` during the nightly `clean` would be told of interruptions that there were not."""
    path = leave(cache, layout)

    class Cleaned(FileSystem):
        def names(self, path: str, *, via: DirectoryHandle | None = None) -> list[str]:
            found = super().names(path, via=via)
            if path == layout.trash:
                make_cache().clean(Rules())
            return found

    examined = make_cache(fs=Cleaned()).examine()
    assert not os.path.exists(path)
    assert [finding for finding in examined if finding.path == path] == []


@pytest.mark.parametrize("leave", [_interrupted_eviction, _work, _half_deleted, _probe, _revoked, _lock])
def test_what_crashes_leave_is_put_away(
    cache: Cache, layout: Layout, clock: FakeClock, leave: Callable[[Cache, Layout], str]
) -> None:
    """What killed processes leave would stay for ever."""
    path = leave(cache, layout)
    clock.let_pass(DAYS)
    (finding,) = cache.examine()
    assert finding.path == path
    assert finding.repair is not None
    repair(cache)
    assert not os.path.lexists(path)
    assert cache.examine() == []


STRANGE = {
    "control": "{control}/README",
    "copy": "{gate}/../README",
    "items": "{items}/README",
    "shard": "{items}/ab/README",
    "item": "{item}/README",
    "gate": "{gate}/README",
    "history": "{item}/history/README",
    "holders": "{holders}/README",
    "gone": "{gone}/README",
    "tmp": "{tmp}/README",
    "trash": "{trash}/README",
    "locks": "{locks}/README",
    "transfers": "{transfers}/README",
    "pins": "{pins}/README",
    "cleanings": "{cleanings}/README",
    "newline": "{trash}/READ\nME",
    "colons": "{tmp}/READ: a; b",
    "digits": "{items}/READ٣",
}


@pytest.mark.parametrize("path", STRANGE.values(), ids=STRANGE)
def test_what_is_not_ours_is_told_of_once_and_left_to_a_person(
    cache: Cache, layout: Layout, source: str, clock: FakeClock, path: str
) -> None:
    """Somebody's own file would be deleted, or stay in the way without anybody being told."""
    lease = cache.use(source)
    place = Path(path.format(**vars(layout), item=layout.item(lease.key), gate=lease.place.gate))
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    clock.let_pass(DAYS)
    found = cache.examine()
    assert [finding.repair for finding in found] == [None]
    assert Path(found[0].path).name.startswith("READ")
    assert found[0].path.isprintable()
    assert found[0].what
    repair(cache)
    assert place.read_text() == "mine"


def test_a_colon_in_the_root_is_part_of_the_path(tmp_path: Path, proc: FakeProc) -> None:
    """The doctor would tell of a file that there is not."""
    cache = Cache(tmp_path / "data: of 2026", proc=proc)
    cache.init()
    (cache.root / ".sc-dtool/trash/README").touch()
    assert [finding.path for finding in cache.examine()] == [str(cache.root / ".sc-dtool/trash/README")]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_what_cannot_be_listed_is_told_of(make_cache: Making, source: str, layout: Layout, error: int) -> None:
    """A directory without permissions would look as if nothing were in it."""
    lease = make_cache().use(source)
    fs = Failing()
    fs.fail("names", error, within=layout.item(lease.key))
    found = make_cache(fs=fs).examine()
    assert found
    assert all(finding.repair is None for finding in found)
    assert any(finding.path.startswith(layout.item(lease.key)) for finding in found)


def test_a_holder_that_cannot_be_understood_is_told_of(cache: Cache, layout: Layout) -> None:
    """A lease of a damaged holder would stay for ever, and nobody would know why."""
    path = f"{layout.holders}/{HolderName(ID, 0, 0)}"
    os.symlink("garbage", path)
    found: list[Finding] = cache.examine()
    assert [(finding.path, finding.repair) for finding in found] == [(path, None)]


def _everything(cache: Cache, layout: Layout, clock: FakeClock, job: Owner, proc: FakeProc, source: str) -> None:
    """Leave something of each kind."""
    cache.hold(job, cache.item_request([source]))
    proc.end(4242)
    os.unlink(layout.tag_file)
    for leave in (_interrupted_eviction, _work, _half_deleted, _probe, _revoked, _lock):
        leave(cache, layout)
    Path(layout.trash, "README").touch()
    clock.let_pass(DAYS)


def test_several_at_once_are_all_mended(
    cache: Cache, layout: Layout, clock: FakeClock, job: Owner, proc: FakeProc, source: str
) -> None:
    """One finding would hide another, or be repaired at its cost; or a person not learn what to do about one."""
    _everything(cache, layout, clock, job, proc, source)
    assert all(finding.remedy for finding in cache.examine())
    repair(cache)
    left = cache.examine()
    assert [os.path.basename(finding.path) for finding in left] == ["README"]


# -- copies that are bad -----------------------------------------------------------------------------------------------


def _no_payload(path: Path) -> None:
    path.unlink()


def _no_payload_directory(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


def _truncated(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, 2)


def _more_in_it(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "more").write_text("ACGT\n")


@pytest.mark.parametrize("damage", [_no_payload, _no_payload_directory, _truncated, _more_in_it])
def test_a_bad_copy_is_evicted_but_never_while_it_is_leased(
    cache: Cache, source: str, damage: Callable[[Path], None]
) -> None:
    """Users would be given what is not there any more; or it would be taken away under somebody who reads it."""
    lease = cache.use(source)
    damage(Path(lease.place.payload))
    (finding,) = cache.examine()
    assert finding.path.startswith(str(Path(lease.place.payload).parent))
    assert finding.repair is not None
    with pytest.raises(InUse) as refused:
        finding.repair()
    assert "is running" in refused.value.details[0]
    assert os.path.isdir(lease.place.gate)
    lease.release()
    repair(cache)
    assert cache.examine() == []
    assert cache.use(source).path.read_text() == "ACGT\n"


def test_what_has_no_source_is_not_evicted_for_its_size(cache: Cache) -> None:
    """What somebody has put into an item that is only a name is nowhere else, and would be deleted."""
    lease = cache.use(name="mine")
    (lease.path / "notes").write_text("mine alone")
    lease.release()
    (finding,) = cache.examine()
    assert "was changed" in finding.what
    assert finding.repair is None


def _sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_content_is_read_again_and_compared(cache: Cache, source: str) -> None:
    """Bits that have rotted on the disk would be handed out for ever."""
    leases = [cache.use(source, _sha256("ACGT\n")), cache.use(source)]
    checked = cache.verify_content()
    assert (checked.bad, checked.read, checked.without_digest) == ((), 1, 1)
    bad = Path(leases[0].place.payload)
    bad.chmod(0o600)
    bad.write_text("ACGA\n")
    assert cache.examine() == []
    (finding,) = cache.verify_content().bad
    assert finding.path == str(bad)
    assert "sha256" in finding.what
    assert finding.repair is not None
    with pytest.raises(InUse):
        finding.repair()
    assert bad.exists()
    leases[0].release()
    finding.repair()
    assert not bad.exists()
    assert os.path.exists(leases[1].place.payload)
    assert cache.verify_content().bad == ()


def test_only_digests_of_what_was_kept_are_compared(cache: Cache, tmp_path: Path) -> None:
    """A good copy would be evicted because the digest of its archive is not that of its content."""
    packed, text = tmp_path / "ref.txt.gz", "ACGT" * 100
    packed.write_bytes(gzip.compress(text.encode()))
    of_packed = f"sha256:{hashlib.sha256(packed.read_bytes()).hexdigest()}"
    cache.use(str(packed), of_packed, "gz")
    assert cache.verify_content() == ((), 0, 1)
    both = cache.use(str(packed), of_packed, "gz", _sha256(text))
    assert cache.verify_content() == ((), 1, 1)
    Path(both.place.payload).chmod(0o600)
    Path(both.place.payload).write_text("ACGA" * 100)
    assert len(cache.verify_content().bad) == 1


def test_each_of_several_sources_is_compared(cache: Cache, tmp_path: Path) -> None:
    """Of an item made of several files only the first would be read."""
    words = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        words += [str(tmp_path / name), _sha256(name)]
    lease = cache.use(*words)
    assert cache.verify_content() == ((), 1, 0)
    second = Path(lease.place.payload, "two")
    second.chmod(0o600)
    second.write_text("tw0")
    (finding,) = cache.verify_content().bad
    assert finding.path == str(second)


def test_content_that_was_made_longer_is_told_of_once(cache: Cache, source: str) -> None:
    """The same copy would be found twice; and of a file with a hole of terabytes the reading would never end."""
    payload = Path(cache.use(source, _sha256("ACGT\n")).place.payload)
    payload.chmod(0o600)
    os.truncate(payload, 1 << 42)
    assert len(cache.examine()) == 1
    assert cache.verify_content().bad == ()


def test_content_that_cannot_be_read_is_kept(make_cache: Making, source: str) -> None:
    """A payload on a disk with errors, or without permissions, would be taken for bad and deleted."""
    lease = make_cache().use(source, _sha256("ACGT\n"))
    fs = Failing()
    fs.fail("read", errno.EIO)
    (finding,) = make_cache(fs=fs).verify_content().bad
    assert finding.repair is None
    assert "cannot be read" in finding.what
    assert os.path.exists(lease.place.payload)


def test_content_is_read_in_pieces(make_cache: Making, tmp_path: Path) -> None:
    """A payload larger than the memory would end the program, or the node."""
    large = tmp_path / "large"
    large.write_bytes(b"x" * (3 * CHUNK))
    digest = f"md5:{hashlib.md5(large.read_bytes()).hexdigest()}"
    make_cache().use(str(large), digest)
    fs = Counting()
    assert make_cache(fs=fs).verify_content().bad == ()
    assert fs.kinds().count("read") == 4


def test_reading_content_shows_how_far_it_is(make_cache: Making, source: str) -> None:
    """Whoever has hours of data read again could not tell whether it goes on."""
    make_cache().use(source, _sha256("ACGT\n"))
    said: list[object] = []

    class Noting:
        def start(self, label: str, total: int | None) -> None:
            said.append((label, total))

        def advance(self, n: int) -> None:
            said.append(n)

        def stage(self, text: str) -> None:
            said.append(text)

        def done(self) -> None:
            said.append("done")

    make_cache(progress=Noting()).verify_content()
    assert said == [("reading ref.fa", 5), 5, "done"]


# -- text that is garbage, settings, permissions -----------------------------------------------------------------------


def test_a_lease_that_cannot_be_understood_is_told_of_and_kept(cache: Cache, source: str) -> None:
    """Whoever wonders who holds an item would see `?` and no reason."""
    lease = cache.use(source)
    path = f"{lease.place.gate}/{lease.name}"
    os.unlink(path)
    os.symlink("garbage", path)
    (finding,) = cache.examine()
    assert (finding.path, finding.repair) == (path, None)


def test_settings_that_cannot_be_understood_are_a_finding(cache: Cache, make_cache: Making, layout: Layout) -> None:
    """A slip in config.toml would keep the doctor itself from looking."""
    Path(layout.config_file).write_text("[clean\n")
    (finding,) = make_cache().examine()
    assert (finding.path, finding.repair) == (layout.config_file, None)
    Path(layout.config_file).write_text("[clean]\nrubbish = 1\n")
    (finding,) = make_cache().examine()
    assert "rubbish" in finding.what
    assert Path(layout.config_file).exists()


@pytest.mark.parametrize(
    "text", ["garbage", "sc-dtool cache\nid: 0123\n", "sc-dtool cache\nversion: 99\nid: 0123\nshared: no\n"]
)
def test_another_format_is_not_touched(
    make_cache: Making, cache: Cache, source: str, layout: Layout, text: str
) -> None:
    """An older program would repair a newer one's cache to death."""
    cache.use(source).release()
    _interrupted_eviction(cache, layout)
    Path(layout.format_file).write_text(text)
    before = sorted(str(path) for path in Path(layout.root).rglob("*"))
    fs = Counting()
    with pytest.raises(CacheError):
        make_cache(fs=fs).examine()
    with pytest.raises(CacheError):
        make_cache(fs=fs).verify_content()
    assert sorted(str(path) for path in Path(layout.root).rglob("*")) == before
    assert set(fs.kinds()) <= {"read_text", "names", "lstat"}


@pytest.fixture
def of_group(cache: Cache, layout: Layout, source: str) -> Lease:
    """A lease in a cache that a group shares, all of whose directories are the group's."""
    text = Path(layout.format_file).read_text()
    Path(layout.format_file).write_text(text.replace("shared: no", "shared: group"))
    cache.use(source).release()
    lease = cache.use(source)
    for path in (layout.control, *(str(one) for one in Path(layout.control).rglob("*") if one.is_dir())):
        FS.share(path)
    return lease


@pytest.mark.parametrize(
    "place",
    ["{control}", "{items}", "{holders}", "{tmp}", "{trash}", "{shard}", "{item}", "{history}", "{copy}", "{gate}"],
)
def test_what_the_group_cannot_write_in_is_given_to_it(
    make_cache: Making, of_group: Lease, layout: Layout, place: str
) -> None:
    """Members of a group could not take leases, or not evict, where one of them has a umask of 077."""
    inside = layout.item(of_group.key)
    more = {"shard": os.path.dirname(inside), "item": inside, "history": f"{inside}/history"}
    path = place.format(**vars(layout), **more, copy=os.path.dirname(of_group.place.gate), gate=of_group.place.gate)
    assert make_cache().examine() == []
    os.chmod(path, 0o700)
    found = make_cache().examine()
    assert [finding.path for finding in found] == [path]
    repair(make_cache())
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o2770
    assert make_cache().examine() == []


def test_in_a_cache_of_one_user_permissions_are_his(cache: Cache, layout: Layout) -> None:
    """The doctor would open a private cache to the group."""
    os.chmod(layout.items, 0o700)
    assert cache.examine() == []


def test_files_that_nfs_has_kept_are_removed_when_they_are_old(
    cache: Cache, layout: Layout, source: str, clock: FakeClock, job: Owner
) -> None:
    """What NFS keeps for a host that crashed would stay for ever, and an item with it count as held."""
    lease = cache.hold(job, cache.item_request([source]))
    kept = [f"{lease.place.gate}/.nfs0000000012345678000000ab", f"{layout.trash}/.nfs0000000012345678000000ac"]
    for path in kept:
        Path(path).touch()
    found = cache.examine()
    assert sorted(finding.path for finding in found) == sorted(kept)
    assert [finding.repair for finding in found] == [None, None]
    clock.let_pass(DAYS)
    repair(cache)
    assert not any(os.path.exists(path) for path in kept)
    assert os.path.lexists(f"{lease.place.gate}/{lease.name}")


def test_what_a_verification_left_is_removed_when_it_is_old(cache: Cache, layout: Layout, clock: FakeClock) -> None:
    """What a verification left that was killed would stay; or one under way be swept away."""
    left = Path(layout.root, f"{VERIFICATION}0123456789abcdef")
    (left / "talk").mkdir(parents=True)
    assert cache.examine() == []
    clock.let_pass(DAYS)
    (finding,) = cache.examine()
    assert finding.path == str(left)
    repair(cache)
    assert not left.exists()


def test_what_only_looks_like_a_verification_stays(cache: Cache, layout: Layout, clock: FakeClock) -> None:
    """Somebody's notes on a verification, outside the cache, would be deleted."""
    notes = Path(layout.root, f"{VERIFICATION}notes")
    notes.write_text("mine")
    clock.let_pass(DAYS)
    repair(cache)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    "place", ["{items}", "{holders}", "{tmp}", "{trash}", "{locks}", "{gone}", "{transfers}", "{pins}"]
)
def test_a_directory_of_the_cache_that_cannot_be_listed_is_told_of(
    make_cache: Making, cache: Cache, source: str, layout: Layout, place: str
) -> None:
    """The doctor would end in a traceback where it is needed most, or call everything in there missing."""
    cache.use(source)
    path = place.format(**vars(layout))
    fs = Failing()
    fs.fail("names", errno.EACCES, within=path)
    found = make_cache(fs=fs).examine()
    assert any(finding.path == path and finding.repair is None for finding in found)


@pytest.mark.parametrize("place", ["{transfers}", "{pins}", "{cleanings}"])
@pytest.mark.parametrize("put", [Path.touch, lambda path: path.symlink_to("/tmp")], ids=["file", "link"])
def test_what_is_in_the_place_of_a_directory_that_is_made_later_is_told_of(
    cache: Cache, layout: Layout, place: str, put: Callable[[Path], None]
) -> None:
    """Nothing could be pinned, and nobody would learn why."""
    path = Path(place.format(**vars(layout)))
    FS.make_dirs(str(path))
    FS.remove_tree(str(path))
    put(path)
    assert [(finding.path, finding.repair) for finding in cache.examine()] == [(str(path), None)]


@pytest.mark.parametrize("place", ["{items}", "{holders}", "{tmp}", "{trash}", "{locks}"])
def test_a_file_in_the_place_of_a_directory_is_left_to_a_person(cache: Cache, layout: Layout, place: str) -> None:
    """Somebody's file would be deleted to make room for a directory of ours."""
    path = Path(place.format(**vars(layout)))
    FS.remove_tree(str(path))
    path.write_text("mine")
    assert (str(path), None) in [(finding.path, finding.repair) for finding in cache.examine()]
    assert path.read_text() == "mine"


# -- what clumsy and hostile people do ---------------------------------------------------------------------------------


def _place_of(lease: Lease, layout: Layout, what: str) -> Path:
    """Where something of an item's is."""
    copy = Path(lease.place.gate).parent
    return {
        "shard": copy.parents[1],
        "item": copy.parent,
        "history": copy.parent / "history",
        "copy": copy,
        "gate": copy / "use",
        "payloads": copy / PAYLOAD,
        "payload": Path(lease.place.payload),
        "item.json": copy / ITEM_FILE,
        "items": Path(layout.items),
        "FORMAT": Path(layout.format_file),
        "config.toml": Path(layout.config_file),
        "root": Path(layout.root),
    }[what]


@pytest.mark.parametrize("put", [Path.touch, lambda path: path.symlink_to("/tmp")], ids=["file", "link"])
@pytest.mark.parametrize("what", ["shard", "item", "history", "copy", "gate", "payloads"])
def test_what_is_in_a_directory_s_place_is_told_of_once_and_kept(
    cache: Cache, layout: Layout, source: str, what: str, put: Callable[[Path], None]
) -> None:
    """Somebody's file would be deleted; or three complaints in the system's words would hide what is wrong."""
    lease = cache.use(source)
    place = _place_of(lease, layout, what)
    lease.release()
    FS.remove_tree(str(place))
    put(place)
    (finding,) = cache.examine()
    assert (finding.path, finding.repair) == (str(place), None)
    assert "in the place of a directory" in finding.what
    repair(cache)
    assert place.is_symlink() or place.is_file()


def test_a_use_that_cannot_be_put_into_the_history_is_not_called_given_back(
    cache: Cache, layout: Layout, source: str
) -> None:
    """A lease would stay for ever, and who gives it back be told that there is none."""
    lease = cache.use(source)
    history = _place_of(lease, layout, "history")
    FS.remove_tree(str(history))
    history.touch()
    with pytest.raises(NotADirectoryError):
        lease.release()
    assert os.path.lexists(f"{lease.place.gate}/{lease.name}")
    history.unlink()
    assert lease.release()


@pytest.mark.parametrize("mode", [0, 0o500, 0o777], ids=oct)
@pytest.mark.parametrize("what", ["items", "shard", "item", "history", "copy", "gate", "payloads"])
def test_a_directory_with_bad_permissions_is_mended(
    cache: Cache, layout: Layout, source: str, what: str, mode: int
) -> None:
    """After a slip with chmod an item could not be used, or every user of the machine could delete it."""
    lease = cache.use(source)
    lease.release()
    place = _place_of(lease, layout, what)
    before = stat.S_IMODE(place.stat().st_mode)
    place.chmod(mode)
    (finding,) = cache.examine()
    assert finding.path == str(place)
    repair(cache)
    assert stat.S_IMODE(place.stat().st_mode) & 0o702 == before & 0o702 == 0o700
    assert cache.examine() == []


def _as_told(finding: Finding) -> None:
    """Do what a finding says that the owner can do."""
    command = finding.remedy.removeprefix("its owner can run: ").split()
    assert command[0] == "chmod"
    subprocess.run([*command, finding.path], check=True)


@pytest.mark.parametrize("mode", [0, 0o666], ids=oct)
@pytest.mark.parametrize("what", ["FORMAT", "config.toml", "item.json", "payload"])
def test_a_file_with_bad_permissions_is_told_of(
    make_cache: Making, cache: Cache, layout: Layout, source: str, what: str, mode: int
) -> None:
    """What nobody can read would look like a cache in order; or every user of the machine could change it."""
    lease = cache.use(source)
    lease.release()
    Path(layout.config_file).touch()
    place = _place_of(lease, layout, what)
    place.chmod(mode)
    (finding,) = cache.examine()
    assert (finding.path, finding.repair) == (str(place), None)
    _as_told(finding)
    assert make_cache().examine() == []


@pytest.mark.parametrize("what", ["root", "FORMAT", "config.toml", "item.json", "payload"])
def test_what_others_of_the_group_cannot_read_is_told_of(
    make_cache: Making, of_group: Lease, layout: Layout, what: str
) -> None:
    """A cache would serve the one who filled it, and everybody else of the group would see errors."""
    Path(layout.config_file).touch()
    place = _place_of(of_group, layout, what)
    for path in (layout.format_file, layout.config_file, layout.root):
        os.chmod(path, os.stat(path).st_mode | 0o50)
    assert make_cache().examine() == []
    place.chmod(0o700 if place.is_dir() else 0o600)
    (finding,) = make_cache().examine()
    assert (finding.path, finding.repair) == (str(place), None)
    assert "others of the group cannot" in finding.what
    _as_told(finding)
    assert make_cache().examine() == []


def test_a_directory_that_the_group_shares_in_is_read_by_it(make_cache: Making, layout: Layout, tmp_path: Path) -> None:
    """A payload that is a directory would be told of as a file is, and be out of reach after what was advised."""
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").write_text("text")
    cache = make_cache()
    cache.init()
    lease = cache.use(str(tree))
    lease.release()
    lease.path.chmod(0)
    (finding,) = cache.examine()
    assert finding.path == str(lease.path)
    _as_told(finding)
    assert (lease.path / "deep" / "file").read_text() == "text"
    assert cache.examine() == []


@pytest.mark.parametrize(
    "put",
    [Path.mkdir, lambda path: path.write_text("mine"), lambda path: path.symlink_to("nowhere")],
    ids=["directory", "text", "link"],
)
def test_a_tag_that_is_none_is_told_of(cache: Cache, layout: Layout, put: Callable[[Path], object]) -> None:
    """Backup programs would save the cache, and a look at the root show nothing that is missing."""
    tag = Path(layout.tag_file)
    tag.unlink()
    put(tag)
    (finding,) = cache.examine()
    assert (finding.path, finding.repair) == (str(tag), None)
    FS.remove_tree(str(tag))
    repair(cache)
    assert cache.examine() == []


@pytest.mark.parametrize("text", ["", TAG_TEXT[:20]])
def test_a_tag_that_was_begun_is_made_again(cache: Cache, layout: Layout, text: str) -> None:
    """A set-up that was killed would ask for a person, who knows no more of it."""
    Path(layout.tag_file).write_text(text)
    (finding,) = cache.examine()
    assert finding.path == layout.tag_file
    repair(cache)
    assert Path(layout.tag_file).read_text() == TAG_TEXT


def test_a_directory_in_a_lock_s_place_is_told_of(cache: Cache, layout: Layout, clock: FakeClock) -> None:
    """Nobody could clean any more, each being told that another cleaner is at work."""
    path = Path(layout.locks, "clean.lock")
    path.mkdir()
    clock.let_pass(DAYS)
    (finding,) = cache.examine()
    assert (finding.path, finding.repair) == (str(path), None)
    assert "in the place of a lock" in finding.what


def test_what_nobody_wants_back_is_deleted(cache: Cache, layout: Layout) -> None:
    """Loose files that a clean had moved to the trash when it was killed would stay until somebody cleans again."""
    path = Path(layout.trash, str(TRASHED._replace(going=False)))
    (path / PAYLOAD).mkdir(parents=True)
    kept = Path(layout.trash, str(TRASHED._replace(going=False, keep_until=1_700_000_000)))
    kept.mkdir()
    (finding,) = cache.examine()
    assert finding.path == str(path)
    repair(cache)
    assert os.listdir(layout.trash) == [kept.name]


@pytest.mark.parametrize("put", [Path.mkdir, lambda path: path.symlink_to("garbage")], ids=["directory", "garbage"])
def test_a_holder_that_cannot_be_understood_goes_on_a_person_s_word(
    cache: Cache, layout: Layout, put: Callable[[Path], object]
) -> None:
    """What the doctor advises would do nothing, and its finding stay for ever."""
    put(Path(layout.holders, str(HolderName(ID, 0, 0))))
    (finding,) = cache.examine()
    assert f"sc-dtool reap --holder {ID}" in finding.remedy
    assert [*cache.reap_holder(ID).holders] == [ID]
    assert cache.examine() == []


def test_a_lease_of_nobody_whose_text_is_garbage_is_one_finding(cache: Cache, source: str) -> None:
    """A person would be asked to judge what --fix has ended."""
    lease = cache.use(source)
    path = f"{lease.place.gate}/{ID}.5"
    os.symlink("garbage", path)
    (finding,) = cache.examine()
    assert finding.path == path
    repair(cache)
    assert cache.examine() == []
