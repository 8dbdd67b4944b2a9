"""Sessions and locks: what is held, what ends it, and what crashes leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.tool import heard, say
from faults import Call, Counting, Dying, FakeProc, Interposing, Killed, LostReplies
from races.actors import names
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import InUse, LeaseLost, UsageError
from sccache_dtool.liveness.caller import JOB, Owner
from sccache_dtool.liveness.job import Job
from sccache_dtool.liveness.record import Membership
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import sessions as on_disk
from sccache_dtool.protocol.holders import Holder, HolderList
from sccache_dtool.protocol.leases import take as take_lease
from sccache_dtool.sets import locks, sessions
from sccache_dtool.sets.sessions import Entry, NoSession

Making = Callable[..., Cache]

EVERYTHING = Rules(everything=True)


@pytest.fixture
def tree(tmp_path: Path) -> str:
    """A directory to be cached, with a link that leads out of it."""
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "x").write_text("hello")
    (top / "sub" / "y").write_text("y")
    (top / "out").symlink_to("/etc")
    return str(top)


def held(cache: Cache) -> list[str]:
    """The names of all leases."""
    return sorted(one.name for item in cache.items() for one in item.held)


def history(cache: Cache) -> list[str]:
    """The names of all leases that have ended, once for each time that they did."""
    return sorted(use.lease for item in cache.items() for use in cache.uses(item.key))


def left(layout: Layout) -> list[str]:
    """What there is of sessions, holders and work areas, but for what is remembered for a day, and this program."""
    found = [*names(layout.sessions), *names(layout.holders), *names(layout.tmp)]
    return [name for name in found if name != "gone" and not name.startswith("p")]


# -- the data set ------------------------------------------------------------------------------------------------------


def test_two_items_cannot_have_one_path(cache: Cache, source: str, tree: str, layout: Layout) -> None:
    """One of two items would never be found, and nobody would say which."""
    with pytest.raises(UsageError, match="two items have the path /a"):
        cache.create_session({"/a": source, "/a/": tree})
    assert left(layout) == []
    cache.create_session({"/a": source, "/a/b": tree}).delete()


def test_a_session_may_be_empty(cache: Cache) -> None:
    """A session could not be created before it is known what it will hold."""
    with cache.create_session({}) as session:
        assert session.items == ()
        assert session.object("/", children=True).children == ()


@pytest.mark.parametrize("path", ["a", "", "/a/../b", "/..", "/a\0b"])
def test_a_path_that_leads_elsewhere_is_refused(cache: Cache, source: str, path: str) -> None:
    """A path could lead out of a session."""
    with cache.create_session({"/a": source}) as session:
        with pytest.raises(UsageError, match="not a path in a session"):
            session.object(path)
        with pytest.raises(UsageError, match="not a path in a session"):
            session.change({path: source})


def test_the_longest_path_decides(cache: Cache, source: str, tree: str) -> None:
    """An item would be looked for inside another one, whose path is shorter (as the predecessor did)."""
    with cache.create_session({"/a": source, "/a/b": tree}) as session:
        session.lock("/a/b")
        found = session.object("/a/b/sub/y")
        assert (found.type, found.size, found.name) == ("item", 1, "y")
        folder = session.object("/a//b/./", children=True)
        assert [tuple(child) for child in folder.children or ()] == [
            ("out", "other"),
            ("sub", "folder"),
            ("x", "item"),
        ]
        with pytest.raises(UsageError, match="nothing at /ab"):
            session.object("/ab")
        with pytest.raises(UsageError, match="nothing at /a/b/nope"):
            session.object("/a/b/nope")


def test_no_link_is_followed_out_of_an_item(cache: Cache, tree: str) -> None:
    """A link in a payload would show files of the host on which the command runs."""
    with cache.create_session({"/t": tree}) as session:
        session.lock("/t")
        assert session.object("/t/out").type == "other"
        with pytest.raises(UsageError, match="symbolic link"):
            session.object("/t/out/passwd")


def test_what_is_not_fetched_is_absent(cache: Cache, source: str) -> None:
    """Looking at a session would fetch, or fail."""
    with cache.create_session({"/refs/a": source}) as session:
        found = session.object("/refs/a", children=True)
        assert (found.type, found.state, found.children) == (None, "absent", None)
        above = session.object("/", children=True)
        assert (above.state, [tuple(child) for child in above.children or ()]) == ("virtual", [("refs", "folder")])


def test_of_two_who_change_a_data_set_both_are_heard(make_cache: Making, source: str, tree: str) -> None:
    """A change would be lost because somebody else made one at the same time."""
    fs = Interposing()
    session = make_cache(fs=fs).create_session({})
    other = make_cache().session(session.id)
    make_entry = other._access.entries
    fs.before("rename", lambda: other.edit(lambda before: (*before, *make_entry({"/b": tree}))), within="now~")
    session.edit(lambda before: (*before, *make_entry({"/a": source})))
    assert fs.pending == 0
    assert [entry.mount for entry in session.items] == ["/b", "/a"]
    assert session.facts.seq == 3
    with pytest.raises(InUse, match="its number is 3, not 2"):
        session.change({}, if_seq=2)


def test_a_change_whose_reply_is_lost_is_made_once(make_cache: Making, source: str, layout: Layout) -> None:
    """After an interruption of the network, a change would be reported as failed, or be made twice."""
    fs = LostReplies()
    session = make_cache(fs=fs).create_session({})
    fs.lose("rename", within="now~")
    assert session.change({"/a": source}).seq == 2
    assert len(fs.lost) == 1
    assert session.facts.seq == 2
    assert len(names(layout.session(session.id))) == 4  # the gate, the name in force, its file and the one before


def test_an_item_that_is_locked_is_not_taken_out(cache: Cache, source: str) -> None:
    """Somebody would lose the data that they read; or an item could never be taken out."""
    with cache.create_session({"/a": source}) as session:
        lock = session.lock("/a", "viewer-7")
        with pytest.raises(InUse, match="it is locked") as error:
            session.change({})
        assert "viewer-7" in error.value.details[0]
        session.change({}, force=True)
        assert session.items == ()
        cache.clean(EVERYTHING)
        assert lock.path.read_text() == "ACGT\n"
        assert [one.id for one in session.locks()] == [lock.id]
    assert held(cache) == []


# -- locks -------------------------------------------------------------------------------------------------------------


def test_a_lock_ends_with_its_session(cache: Cache, source: str, layout: Layout) -> None:
    """Locks of deleted sessions would keep items for ever (as in the predecessor)."""
    session = cache.create_session({"/a": source})
    ids = sorted(session.lock("/a", f"reader-{number}").id for number in range(3))
    assert held(cache) == ids
    first = session.delete()
    assert (first.by_this_call, first.leases) == (True, 3)
    again = session.delete()
    assert (again.by_this_call, again.leases, again.at) == (False, 0, first.at)
    assert (held(cache), history(cache), cache.locks(), left(layout)) == ([], ids, [], [])
    with pytest.raises(NoSession, match="was deleted at"):
        session.lock("/a")
    with pytest.raises(NoSession, match="there is no session"):
        on_disk.delete(cache.store, sessions.new_id())


def test_releasing_a_lock_twice_is_not_an_error(cache: Cache, source: str) -> None:
    """The count of an item would be wrong for ever after a second release (as in the predecessor)."""
    with cache.create_session({"/a": source}) as session:
        lock = session.lock("/a")
        assert [locks.release(cache.store, lock.id)[1] for _ in range(2)] == [True, False]
        assert locks.show(cache.store, lock.id).state == "released"
        assert (held(cache), history(cache)) == ([], [lock.id])
        mine = session.lock("/a")
        assert (mine.release(), mine.release()) == (True, False)


@pytest.mark.parametrize("when", ["before the lease", "after the lease"])
def test_a_lock_that_is_released_while_it_waits_is_not_handed_out(
    make_cache: Making, source: str, layout: Layout, when: str
) -> None:
    """Its holder has gone: whoever got its path would read what nothing protects."""
    cache = make_cache()
    session = cache.create_session({"/a": source})
    begun = session.begin_lock("/a")
    seen = locks.show(cache.store, begun.id)
    assert seen.state == "waiting"
    if when == "before the lease":
        assert [locks.release(cache.store, begun.id)[1] for _ in range(2)] == [True, False]  # not "no such lock"
        with pytest.raises(LeaseLost, match=f"lock {begun.id} was released by another process"):
            session.finish_lock(begun)
    else:
        fs = Interposing()
        fs.before("unlink", lambda: session.finish_lock(begun), within=begun.id.rpartition(".")[0])
        assert locks.release(make_cache(fs=fs).store, begun.id)[1]
        assert not fs.pending
    assert held(cache) == []
    assert [name for name in names(layout.holders) if begun.id.rpartition(".")[0] in name] == []
    session.delete()


def test_a_lock_is_shown_while_its_holder_shows_a_heartbeat(make_cache: Making, source: str, layout: Layout) -> None:
    """Whoever asks for a lock in the moment in which its item comes would be told that there is none."""
    session = make_cache().create_session({"/a": source})
    begun = session.begin_lock("/a")
    holder = f"{layout.holders}/{begun.id.rpartition('.')[0]}"
    fs = Interposing()
    fs.before("readlink", lambda: os.rename(f"{holder}.0.0", f"{holder}.1.0"), within=holder)
    assert locks.show(make_cache(fs=fs).store, begun.id).state == "waiting"
    assert not fs.pending
    session.delete()


def test_an_unknown_item_leaves_nothing_behind(cache: Cache, source: str, layout: Layout) -> None:
    """A mistyped name would wait for ever, and leave a lock (as in the predecessor)."""
    with cache.create_session({"/a": source}) as session:
        before = names(layout.holders)
        with pytest.raises(UsageError, match="has no item nope"):
            session.lock("nope")
        assert names(layout.holders) == before


def test_a_fetch_that_fails_leaves_no_lock(cache: Cache, tmp_path: Path, layout: Layout) -> None:
    """Every failed download would leave an entry of a lock that nobody has."""
    with cache.create_session({"/a": str(tmp_path / "missing")}) as session:
        before = names(layout.holders)
        with pytest.raises(Exception, match="missing"):
            session.lock("/a")
        assert (names(layout.holders), session.locks()) == (before, [])


def test_each_filter_filters(cache: Cache, source: str, tree: str) -> None:
    """A filter would match nothing, or everything (as in the predecessor)."""
    one, two = cache.create_session({"/a": source, "/t": tree}), cache.create_session({"/a": source})
    a, b, c = one.lock("/a", "ada"), one.lock("/t", "bob"), two.lock("/a", "ada")
    plain = cache.use(tree)
    key = a.key

    def ids(**wanted: str) -> set[str]:
        return {lock.id for lock in cache.locks(**wanted)}

    me, host = cache.locks()[0].user, cache.locks()[0].host
    assert ids() == {a.id, b.id, c.id, plain.name}
    assert ids(session=one.id) == {a.id, b.id}
    assert ids(item=key) == {a.id, c.id}
    assert ids(owner="ada") == {a.id, c.id}
    assert ids(owner="ada", session=one.id) == {a.id}
    assert ids(user=me) == ids(host=host) == ids(state="held") == ids()
    assert ids(user="nobody-else") == ids(host="elsewhere") == ids(job="1") == ids(state="waiting") == set()
    one.delete()
    assert ids() == {c.id, plain.name}


def test_locks_are_found_by_their_job(cache: Cache, source: str, tree: str) -> None:
    """Nobody could see what a job keeps in the cache: its locks would be of nobody's job."""
    batch = Job("slurm", "big", "4711")
    with cache.create_session({"/a": source}, owner=Owner(JOB, None, None, "", batch)) as session:
        lock = session.lock("/a")
        assert [one.id for one in cache.locks(job="4711")] == [lock.id]
    with cache.create_session({"/t": tree}) as session:
        member = Membership(session.id, "viewer", session.items[0].item, None, "slurm:4712")
        Holder(cache.store, on_disk.lock_owner(session.id), None, session=member)
        found = cache.locks(job="slurm:4712")
        assert [(one.owner, one.job, one.state) for one in found] == [("viewer", "slurm:4712", "waiting")]
        assert cache.locks(job="4711") == []


def test_whoever_is_killed_before_it_has_its_lock_does_not_wait_for_ever(
    cache: Cache, source: str, job: Owner, proc: FakeProc, layout: Layout
) -> None:
    """`kill -9` of `lock get` would show a lock that waits until the session ends, although nobody waits."""
    with cache.create_session({"/a": source}, owner=cache.owner("ada")) as session:
        lock = session.lock("/a")
        member = Membership(session.id, "viewer", session.items[0].item, job.process and job.process.text)
        waiting = Holder(cache.store, on_disk.lock_owner(session.id), None, session=member)
        leased = Holder(cache.store, on_disk.lock_owner(session.id), None, session=member)
        taken = take_lease(cache.store, leased, lock.place)
        assert taken is not None
        assert sorted(one.state for one in session.locks()) == ["held", "held", "waiting"]
        cache.reap()
        assert waiting.id in HolderList.complete(cache.store).present
        proc.end(4242)
        assert sorted(one.id for one in session.locks()) == sorted([lock.id, taken.name])
        assert "killed before it had the lease" in cache.reap().holders[waiting.id]
        assert waiting.id not in HolderList.complete(cache.store).present
        assert sorted(held(cache)) == sorted([lock.id, taken.name])


def test_a_lock_is_read_in_ranges(cache: Cache, tmp_path: Path, tree: str) -> None:
    """A reader of a part of a file would be given another part, or be led out of the item by a link."""
    file = tmp_path / "digits"
    file.write_bytes(b"0123456789")
    with cache.create_session({"/d": str(file), "/t": tree}) as session:
        lock, folder = session.lock("/d"), session.lock("/t")

        def read(path: str, inner: str = "", span: str = "0-") -> bytes:
            return b"".join(locks.read(cache.store, path, inner, locks.parse_range(span)))

        payload = os.fspath(lock)
        assert hashlib.sha256(read(payload)).digest() == hashlib.sha256(b"0123456789").digest()
        assert [read(payload, span=span) for span in ("5-9", "8-", "-3", "9-99")] == [b"56789", b"89", b"789", b"9"]
        for wrong in ("9-5", "-", "a-b", ""):
            with pytest.raises(UsageError, match="not a range"):
                locks.parse_range(wrong)
        with pytest.raises(UsageError, match="after the end"):
            read(payload, span="10-")
        assert read(os.fspath(folder), "sub/y") == b"y"
        for inner in ("out", "out/passwd", "../../item.json", "nope", "sub"):
            with pytest.raises(UsageError):
                read(os.fspath(folder), inner)


def test_what_cannot_be_proved_is_given_back(make_cache: Making, source: str, layout: Layout) -> None:
    """A lock that began while its session was deleted would stay for ever."""
    fs = Interposing()
    cache = make_cache(fs=fs)
    cache.use(source).release()
    session = cache.create_session({"/a": source})
    fs.before("symlink", make_cache().session(session.id).delete, within="/use/n")
    with pytest.raises(LeaseLost, match="has ended"):
        session.lock("/a")
    assert (held(cache), len(history(cache))) == ([], 2)
    assert [name for name in left(layout) if name.startswith("n")] == []


@pytest.mark.parametrize("what", ["lock", "session"])
def test_a_lock_that_somebody_ends_is_known_to_be_lost(make_cache: Making, source: str, what: str) -> None:
    """A program would read a file that is deleted meanwhile."""
    cache = make_cache()
    session = cache.create_session({"/a": source})
    lock = session.lock("/a")
    lock.check()
    other = make_cache()
    if what == "lock":
        locks.release(other.store, lock.id)
    else:
        other.session(session.id).delete()
    with pytest.raises(LeaseLost):
        lock.check()


# -- what ends a session -----------------------------------------------------------------------------------------------


def test_a_session_ends_with_its_holder(cache: Cache, source: str, job: Owner, proc: FakeProc, layout: Layout) -> None:
    """Locks of a killed container would stay (as in the predecessor)."""
    session = cache.create_session({"/a": source}, owner=job)
    lock = session.lock("/a")
    assert not cache.reap().sessions
    assert held(cache) == [lock.id]
    proc.end(4242)
    assert list(cache.reap(dry_run=True).sessions) == [session.id]
    assert held(cache) == [lock.id]
    assert list(cache.reap().sessions) == [session.id]
    assert (held(cache), history(cache), left(layout)) == ([], [lock.id], [])


def test_clean_ends_the_sessions_of_the_dead(cache: Cache, source: str, job: Owner, proc: FakeProc) -> None:
    """A cache that only cron cleans would keep the items of sessions that nobody has."""
    cache.create_session({"/a": source}, owner=job).lock("/a")
    proc.end(4242)
    assert len(cache.clean(EVERYTHING).removed) == 1


def test_a_person_can_end_a_session_by_its_holder(cache: Cache, source: str) -> None:
    """A session of a name without a lifetime, whose user is gone, could only be deleted by its id."""
    session = cache.create_session({"/a": source}, owner=cache.owner("ada"))
    session.lock("/a")
    assert not cache.reap().sessions
    assert list(cache.reap_holder(session.facts.holder).sessions) == [session.id]
    assert held(cache) == []


def accidents(run: Callable[[int], bool]) -> int:
    """Call `run` with 0, 1, …, until it says that the command has ended before that many calls; how many there are."""
    for number in range(1000):
        if run(number):
            return number
    raise AssertionError("the command makes too many calls")


def test_a_creation_that_is_killed_leaves_nothing(
    make_cache: Making, source: str, job: Owner, proc: FakeProc, layout: Layout
) -> None:
    """`kill -9` while a session is created would leave a part of it, or its holder, for ever."""

    def run(number: int) -> bool:
        proc.add(4242, "job", start=1000)
        fs = Dying(number)
        try:
            make_cache(fs=fs).create_session({"/a": source, "/b/c": source}, owner=job)
            survived = True
        except Killed:
            survived = False
        found = list(on_disk.listing(make_cache().store))
        assert all(len(facts.entries) == 2 for facts in found)
        proc.end(4242)
        make_cache().clean(EVERYTHING)
        assert left(layout) == []
        assert make_cache().examine() == []
        return survived

    assert accidents(run) > 5


@pytest.mark.parametrize("finished_by", ["clean", "delete"])
def test_a_deletion_that_is_killed_is_finished(
    make_cache: Making, source: str, tree: str, job: Owner, layout: Layout, finished_by: str
) -> None:
    """`kill -9` while a session is deleted would leave locks that nobody can release."""
    for path in (source, tree):
        make_cache().use(path).release()
    known = len(history(make_cache()))

    def run(number: int) -> bool:
        nonlocal known
        cache = make_cache()
        session = cache.create_session({"/a": source, "/t": tree}, owner=job)
        for path in ("/a", "/a", "/t"):
            session.lock(path)
        try:
            make_cache(fs=Dying(number)).session(session.id).delete()
            survived = True
        except Killed:
            survived = False
        if finished_by == "clean" and number:  # before the first call nothing has been begun
            cache.clean(Rules())
        else:
            session.delete()
        assert (held(cache), left(layout)) == ([], [])
        done = history(cache)
        known += 3
        assert (len(done), len(set(done))) == (known, known)
        return survived

    assert accidents(run) > 10


@pytest.mark.parametrize("kind", ["readlink", "rename"])
def test_a_deleter_finishes_what_another_one_left(make_cache: Making, source: str, kind: str) -> None:
    """Of two who delete a session the first may be killed half way, and the second would leave a lock."""
    make_cache().use(source).release()
    session = make_cache().create_session({"/a": source})
    session.lock("/a")

    class DyingOnceRevoked(Counting):
        """Does nothing more once it has revoked the holder of a lock."""

        dead = False

        def handle(self, call: Call, do: Callable[[], Any]) -> Any:
            if self.dead:
                raise Killed
            result = do()
            self.dead = call.kind == "rename" and "/holders/n" in call.path
            return result

    def delete() -> None:
        with pytest.raises(Killed):
            make_cache(fs=DyingOnceRevoked()).session(session.id).delete()

    fs = Interposing()
    fs.before(kind, delete, within="/holders/n")
    make_cache(fs=fs).session(session.id).delete()
    assert fs.pending == 0
    assert held(make_cache()) == []


def test_a_locker_that_is_killed_keeps_nothing_after_its_session(
    make_cache: Making, source: str, job: Owner, layout: Layout
) -> None:
    """A lock of a process that was killed while it took it would outlive its session."""
    make_cache().use(source).release()

    def run(number: int) -> bool:
        cache = make_cache()
        session = cache.create_session({"/a": source}, owner=job)
        try:
            make_cache(fs=Dying(number)).session(session.id).lock("/a")
            survived = True
        except Killed:
            survived = False
        cache.reap()
        session.delete()
        assert (held(cache), left(layout)) == ([], [])
        assert len(history(cache)) == len(set(history(cache)))
        return survived

    assert accidents(run) > 2


def test_a_locker_that_dies_too_late_is_reaped(make_cache: Making, source: str, layout: Layout) -> None:
    """A lease that a killed process took after its session had ended would keep the item for ever."""
    other = make_cache()
    other.use(source).release()
    session = other.create_session({"/a": source})

    class Doomed(Interposing):
        """Does nothing more once it has a lease."""

        dead = False

        def handle(self, call: Call, do: Callable[[], Any]) -> Any:
            if self.dead:
                raise Killed
            result = super().handle(call, do)
            self.dead = call.kind == "symlink" and "/use/n" in call.path
            return result

    fs = Doomed()
    fs.before("symlink", session.delete, within=f"{layout.holders}/n")
    with pytest.raises(Killed):
        make_cache(fs=fs).session(session.id).lock("/a")
    assert len(held(other)) == 1
    (reaped,) = other.reap().leases
    assert "its session was deleted at" in reaped.verdict.evidence
    assert held(other) == []


def test_a_lock_of_a_session_that_a_listing_misses_is_not_reaped(
    make_cache: Making, source: str, layout: Layout
) -> None:
    """A network file system that hides a session for a minute would let a reaper end locks that are in use."""

    class Hiding(Counting):
        """Does not list sessions until something was created in their directory, as NFS may for a while."""

        created = False

        def handle(self, call: Call, do: Callable[[], Any]) -> Any:
            result = do()
            self.created = self.created or (call.kind == "symlink" and f"{layout.sessions}/" in call.path)
            if call.kind == "names" and call.path == layout.sessions and not self.created:
                return []
            return result

    session = make_cache().create_session({"/a": source})
    lock = session.lock("/a")
    assert make_cache(fs=Hiding()).reap().leases == ()
    assert held(make_cache()) == [lock.id]


# -- sets --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_set(cache: Cache, owner: Owner, *sources: str) -> Iterator[str]:
    """The id of a set that is held, with a view."""
    id = sessions.new_id()
    holder = cache.enter(owner, session=sessions.Membership(id))
    entries, links = [], {}
    for number, path in enumerate(sources):
        request = cache.item_request([path])
        lease = cache.acquire(holder, request)
        mount = f"d/{number}"
        generation = lease.place.generation
        entries.append(Entry(lease.key, f"/{mount}", request.stack.canonical, None, generation, lease.name))
        links[mount] = lease.place.payload
    on_disk.create(cache.store, holder, entries, links=links, id=id)
    yield id


def test_a_set_is_given_back_as_a_whole(cache: Cache, source: str, tree: str, job: Owner, layout: Layout) -> None:
    """An item of a set could be evicted, because a use of the same item alone was given back."""
    with held_set(cache, job, source, tree) as id:
        view = on_disk.view_path(layout, id)
        assert Path(view, "d", "0").read_text() == "ACGT\n"
        assert Path(view, "d", "1", "x").read_text() == "hello"
        assert layout.session_at(f"{view}/d/0") == id
        alone = cache.hold(job, cache.item_request([source]))
        assert cache.release([job], alone.key) == 1
        assert cache.release([job], alone.key, everything=True) == 0
        assert len(cache.locks(session=id)) == 2
        for lock in cache.locks(session=id):
            with pytest.raises(InUse, match="released as a whole"):
                locks.release(cache.store, lock.id)
        assert on_disk.delete(cache.store, id).leases == 2
    assert (held(cache), left(layout), os.path.exists(view)) == ([], [], False)


def test_the_doctor_makes_a_link_again_that_a_purge_removed(
    cache: Cache, source: str, job: Owner, layout: Layout
) -> None:
    """A job whose file system purges by age would lose the paths of what it holds."""
    with held_set(cache, job, source) as id:
        link = Path(on_disk.view_path(layout, id), "d", "0")
        text = os.readlink(link)
        link.unlink()
        link.parent.rmdir()
        (finding,) = cache.examine()
        assert (finding.path, finding.what) == (str(link), "missing in the view of a set that is held")
        assert finding.repair is not None
        finding.repair()
        assert (os.readlink(link), cache.examine()) == (text, [])


def test_a_set_of_the_dead_is_reaped(cache: Cache, source: str, job: Owner, proc: FakeProc, layout: Layout) -> None:
    """A set of a job that was killed would be held for ever."""
    with held_set(cache, job, source):
        proc.end(4242)
        reaped = cache.reap()
        assert (len(reaped.leases), len(reaped.sessions)) == (1, 1)
        assert (held(cache), left(layout)) == ([], [])


@pytest.mark.present
def test_what_is_remembered_of_sessions_is_removed_after_a_day(
    cache: Cache, source: str, clock: Any, layout: Layout
) -> None:
    """Every session that ever was would stay on the disk."""
    cache.create_session({"/a": source}).delete()
    cache.clean(Rules())
    assert len(names(layout.ended_sessions)) == 1
    clock.let_pass(90_000)
    cache.clean(Rules())
    assert names(layout.ended_sessions) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1, "dataSet": [{"item": "../x", "mountPath": "/a"}]}', '{"format": 2}']
)
def test_a_damaged_session_is_reported_and_can_be_deleted(cache: Cache, source: str, layout: Layout, text: str) -> None:
    """A file that somebody has cut short would stop every cleaning, or keep locks for ever."""
    session = cache.create_session({"/a": source})
    session.lock("/a")
    (file,) = Path(layout.session(session.id)).glob("data-*")
    file.write_text(text)
    assert cache.sessions() == []
    cache.clean(Rules())
    assert [finding.path for finding in cache.examine()] == [layout.session(session.id)]
    assert on_disk.delete(cache.store, session.id).by_this_call
    assert held(cache) == []


def test_a_session_that_depends_on_itself_ends_nothing(cache: Cache, source: str, layout: Layout) -> None:
    """What somebody has made up would keep a reaper busy for ever."""
    session = cache.create_session({"/a": source})
    lock = session.lock("/a")
    facts = session.facts._replace(holder=lock.id.rpartition(".")[0])
    (file,) = Path(layout.session(session.id)).glob("data-*")
    file.write_text(facts.encode())
    assert cache.reap().leases == ()
    assert held(cache) == [lock.id]


# -- many processes ----------------------------------------------------------------------------------------------------

_LOCKER = """
import sys
from sccache_dtool.cache import Cache
from sccache_dtool.errors import CacheError
cache = Cache(sys.argv[1])
session = cache.session(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
count = 0
try:
    while True:
        lock = session.lock(sys.argv[3 + count % 2], sys.argv[5])
        count += 1
        if count % 3 == 0:
            lock.release()
        if count == 5:
            print("five", flush=True)
except CacheError as error:
    print(count, error.message, flush=True)
"""


def test_lockers_against_a_deleter(tmp_path: Path, source: str, tree: str) -> None:
    """A lock that is taken while the session is deleted would be left, or be counted twice in the history."""
    cache = Cache(tmp_path / "cache")
    cache.init()
    for _ in range(3):
        session = cache.create_session({"/a": source, "/t": tree})
        for path in ("/a", "/t"):
            session.lock(path)
        words = [sys.executable, "-c", _LOCKER, str(cache.root), session.id, "/a", "/t"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        lockers = [subprocess.Popen([*words, f"w{n}"], text=True, **pipes) for n in range(4)]
        assert [heard(locker) for locker in lockers] == ["ready"] * 4
        for locker in lockers:
            say(locker)
        assert [heard(locker) for locker in lockers] == ["five"] * 4
        session.delete()
        told = [locker.communicate()[0] for locker in lockers]
        assert all(session.id in text for text in told), told
        assert held(cache) == []
        done = history(cache)
        assert len(done) == len(set(done)) >= 2 + sum(int(text.split()[0]) for text in told)
        assert [name for name in left(Layout(str(cache.root))) if name.startswith("n")] == []
    cache.reap()
    assert held(cache) == []


_FETCHER = """
import sys
from sccache_dtool.cache import Cache
session = Cache(sys.argv[1]).session(sys.argv[2])
print([session.lock(path, sys.argv[3]).id for path in ("/a", "/t")])
"""


def test_many_who_lock_fetch_once(tmp_path: Path, source: str, tree: str) -> None:
    """An item of a session would be fetched by each of those who lock it at the same time."""
    cache = Cache(tmp_path / "cache")
    cache.init()
    with cache.create_session({"/a": source, "/t": tree}) as session:
        words = [sys.executable, "-c", _FETCHER, str(cache.root), session.id]
        running = [subprocess.Popen([*words, str(n)], stdout=subprocess.PIPE) for n in range(16)]
        for one in running:
            one.communicate()
            assert one.returncode == 0
        assert len(session.locks()) == len(held(cache)) == 32
        assert [len(item.copies) for item in cache.items()] == [1, 1]
    assert held(cache) == []
