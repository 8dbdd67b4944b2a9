"""Reaping, and removing and restoring single items."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Copy, Item
from sccache_dtool.clock import iso
from sccache_dtool.disk.names import LOCK, TrashName, WorkName, key_label
from sccache_dtool.errors import FULL, CacheError, InUse, NoSpace, UsageError, explain
from sccache_dtool.evict import audit, execution, trash
from sccache_dtool.evict.leftovers import RESTORING, Leftovers
from sccache_dtool.liveness import caller
from sccache_dtool.pool import Pool
from sccache_dtool.protocol import program, reaping, sessions
from sccache_dtool.protocol.leases import Held
from sccache_dtool.protocol.reaping import Judge, Judged, Reaped, open_judge
from sccache_dtool.protocol.sessions import SessionFacts
from sccache_dtool.protocol.store import Store


def unsettled(store: Store, pool: Pool) -> list[Item]:
    """Items with leases, or with copies whose eviction was interrupted; their finished uses are not counted."""
    parts = items.survey(store, pool, items.unsettled, uses=False)
    return [item for part in parts for item in part]


def judged(store: Store, held: Iterable[Held]) -> list[Judged]:
    """Leases with what can be said of them; writes nothing into the cache."""
    listed = list(held)
    with open_judge(store, glance=True) as judge:
        judge.expect({one.lease.holder for one in listed if one.lease})
        return [judge.lease(one) for one in listed]


def end_leases(
    store: Store,
    judge: Judge,
    found: Iterable[Item],
    *,
    dry_run: bool = False,
    everybody: bool = True,
    also: Collection[str] = (),
    open_sessions: Iterable[SessionFacts] = (),
) -> Reaped:
    """End the leases on `found` whose holders are proved dead, as `reaping.reap` does. Failures are logged."""
    held = [one for item in found for one in item.held]
    reaped = reaping.reap(
        store, judge, held, dry_run=dry_run, everybody=everybody, also=also, open_sessions=open_sessions
    )
    for failure in reaped.failed:
        store.log.warning(failure)
    if not dry_run:
        for one in reaped.leases:
            store.log.debug(f"ended the lease of {one.by} on {key_label(one.held.key)}: {one.verdict.evidence}")
        for holder, evidence in reaped.holders.items():
            store.log.info(f"ended holder {holder}: {evidence}")
        for session, evidence in reaped.sessions.items():
            store.log.info(f"ended session {session}: {evidence}")
    return reaped


def reap(store: Store, pool: Pool, *, dry_run: bool = False, found: list[Item] | None = None) -> Reaped:
    """End all leases whose holder is proved dead, and the elections that such have won.

    `found`: the unsettled items, where the cache has just been scanned.
    """
    if not dry_run:
        _end_elections_of_the_dead(store)
    found = unsettled(store, pool) if found is None else found
    of_sessions = list(sessions.listing(store))
    with open_judge(store, dry_run=dry_run) as judge:
        return end_leases(store, judge, found, dry_run=dry_run, open_sessions=of_sessions)


def _end_elections_of_the_dead(store: Store) -> None:
    """So that other hosts, which cannot prove it, need not wait for a fetcher that was killed on this one."""
    from sccache_dtool.protocol.election import make_election

    for name in store.fs.names(store.layout.locks):
        if name.endswith(LOCK):
            election = make_election(store, name.removesuffix(LOCK))
            if election.poll():
                election.resign()


def reap_holder(store: Store, pool: Pool, holder: str, *, dry_run: bool = False) -> Reaped:
    """End the leases of one holder, because a person says that it is gone. Raises UsageError if there is none."""
    found = unsettled(store, pool)
    leased = any(one.lease and one.lease.holder == holder for item in found for one in item.held)
    of_sessions = list(sessions.listing(store))
    with open_judge(store, dry_run=dry_run) as judge:
        of_session = any(facts.holder == holder for facts in of_sessions)
        if not (leased or of_session) and holder not in judge.listing.present:
            raise UsageError(f"there is no holder {holder!r}", hint="`sc-dtool why ITEM` shows who holds an item")
        judge.declare_dead(holder, f"{caller.user_name()} says that it is gone")
        of_holder = [item._replace(copies=tuple(_only_of(holder, copy) for copy in item.copies)) for item in found]
        return end_leases(
            store, judge, of_holder, dry_run=dry_run, everybody=False, also=[holder], open_sessions=of_sessions
        )


def remove(store: Store, key: str, keep_for: float) -> int:
    """Evict all copies of one item; returns the bytes. Raises InUse, naming who holds it."""
    return _remove(store, lambda: items.look(store, key), keep_for)


def remove_copy(store: Store, copy: Copy) -> int:
    """Evict one copy of an item; returns the bytes. Raises InUse, naming who holds it."""

    def look() -> Item:
        found = items.look(store, copy.key)
        return found._replace(copies=tuple(one for one in found.copies if one.generation == copy.generation))

    return _remove(store, look, 0.0)


def _remove(store: Store, look: Callable[[], Item], keep_for: float) -> int:
    found = look()
    with open_judge(store) as judge:
        end_leases(store, judge, [found], everybody=False)
    now = store.clock.wall()
    keep_until = int(now + keep_for) if keep_for else 0
    freed, taken = 0, False
    for copy in found.copies:
        outcome = trash.evict(store, copy.key, str(copy.generation), keep_until)
        freed += copy.generation.bytes if outcome is trash.Outcome.EVICTED else 0
        taken = taken or outcome is trash.Outcome.IN_USE
    left = look()
    if left.leases or taken:
        raise _in_use(store, left)
    trash.purge(store, now)
    return freed


def _in_use(store: Store, item: Item) -> InUse:
    if not item.leases:
        return InUse(f"cannot remove {key_label(item.key)}: it was in use a moment ago", hint="try again")
    count = f"{item.leases} lease{'s' if item.leases != 1 else ''}"
    found = judged(store, item.held)
    commands = " or ".join(f"`sc-dtool {command}`" for command in sorted({_releasing(one) for one in found}))
    return InUse(
        f"cannot remove {key_label(item.key)}: {count} held",
        details=[f"{one.by}: {one.verdict.evidence}" for one in found],
        hint=f"release them with {commands}; `sc-dtool reap` ends those of dead holders",
    )


def _releasing(one: Judged) -> str:
    """The command that releases a lease."""
    session = None if one.record is None else one.record.session
    return "unuse" if session is None else "session rm" if session.item is None else "lock release"


def evict_if_idle(store: Store, key: str) -> bool:
    """Evict what of an item nobody uses; True if nothing of it is left.

    What others have put into the trash is not looked at: `clean` deletes it.
    """
    found = items.look(store, key, uses=False)
    outcomes = []
    for copy in found.copies:
        outcomes.append(trash.evict(store, key, str(copy.generation)))
        if outcomes[-1] is trash.Outcome.EVICTED:
            trash.purge_copy(store, str(copy.generation))
    return trash.Outcome.IN_USE not in outcomes


def restore(store: Store, key: str, ttl: float) -> None:
    """Bring back an item from the trash, the newest copy of it. Raises UsageError or InUse.

    `ttl`: lifetime in seconds of this process as a holder meanwhile.
    """
    trashed = trash.restorable(store)
    found = [name for each, name in trashed if each == key]
    if not found:
        raise not_in_trash(key)
    name = max(found, key=lambda one: one.generation.created)
    if items.generations(store, key):
        raise InUse(f"{key_label(key)} is already in the cache", hint="the copy in the trash stays there")
    try:
        with program.worker(store, ttl) as holder:
            if not trash.restore(store, holder, key, name):
                raise UsageError(f"{key_label(key)} has just been deleted from the trash")
            audit.write_restored(store, key, holder)
    except OSError as error:
        raise _not_restored(store, key, name, error) from error


def return_interrupted_restores(store: Store) -> None:
    """Return to the trash what an earlier `restore`, which was killed, has taken from there."""
    named = ((text, WorkName.parse(text)) for text in store.fs.names(store.layout.tmp))
    works = [text for text, work in named if work and work.purpose in RESTORING]
    if works:
        with open_judge(store) as judge:
            execution.put_away(store, Leftovers(store, judge).work_areas(works))


def _not_restored(store: Store, key: str, name: TrashName, error: OSError) -> CacheError:
    """Why a copy could not be restored, and where it is now."""
    until = iso(name.keep_until)
    where = [f"the copy is still in the trash, until {until}"]
    hint = (
        "free space with `sc-dtool clean`, then restore it again"
        if error.errno in FULL
        else "resolve that, then restore it again"
    )
    try:
        if str(name) not in store.fs.names(store.layout.trash):
            where = [f"the copy is in {store.layout.tmp}, to be returned to the trash until {until}"]
            hint = "run `sc-dtool clean`, which returns it to the trash, then restore it again"
    except OSError as unlisted:
        where = [f"the copy is still in the cache directory, but the trash cannot be listed: {explain(unlisted)}"]
        hint = "run `sc-dtool clean`, which returns it to the trash"
    label = key_label(key)
    if error.errno in FULL:
        return NoSpace(f"no space left to restore {label}: {explain(error)}", details=where, hint=hint)
    return CacheError(f"cannot restore {label}: {explain(error)}", details=where, hint=hint)


def not_in_trash(word: str) -> UsageError:
    """The error that says that `restore` cannot find what a word means."""
    return UsageError(
        f"there is no {word!r} in the trash",
        hint="only items removed with --trash are kept; to list them: sc-dtool restore",
    )


def _only_of(holder: str, copy: Copy) -> Copy:
    """The copy, with no leases but those of one holder."""
    return copy._replace(held=tuple(one for one in copy.held if one.lease and one.lease.holder == holder))
