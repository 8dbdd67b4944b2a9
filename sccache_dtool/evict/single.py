"""The keeper of a cache: cleans, and reaps, removes and restores single items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Copy, Item
from sccache_dtool.catalog.leftover import Leftover
from sccache_dtool.clock import iso
from sccache_dtool.disk.names import TrashName, WorkName, key_label
from sccache_dtool.errors import FULL, CacheError, InUse, NoSpace, UsageError, explain
from sccache_dtool.evict import audit, execution, trash
from sccache_dtool.evict.cleaning import Cleaner
from sccache_dtool.evict.trash import Purged
from sccache_dtool.policy.thresholds import Trashed
from sccache_dtool.protocol import holders
from sccache_dtool.protocol.election import LOCK
from sccache_dtool.protocol.holders import Holder
from sccache_dtool.protocol.reaping import Reaped


class Keeper(Cleaner):
    """Works on one cache that has been checked to be one."""

    def reap(self, *, dry_run: bool = False) -> Reaped:
        """End all leases whose holder is proved dead, and the elections that such have won."""
        if not dry_run:
            self._end_elections_of_the_dead()
        found = self._unsettled()
        with self.court(dry_run=dry_run) as court:
            return self._reap(court, found, dry_run=dry_run)

    def _end_elections_of_the_dead(self) -> None:
        """So that other hosts, which cannot prove it, need not wait for a fetcher that was killed on this one."""
        for name in self._fs.names(self._layout.locks):
            if name.endswith(LOCK):
                election = self.election(name.removesuffix(LOCK))
                if election.poll():
                    election.resign()

    def reap_on_word(self, holder: str, *, dry_run: bool = False) -> Reaped:
        """End the leases of one holder, because a person says that it is gone. Raises UsageError if there is none."""
        found = self._unsettled()
        leased = any(one.lease and one.lease.holder == holder for item in found for one in item.held)
        with self.court(dry_run=dry_run) as court:
            if not leased and holder not in court.roll.present:
                raise UsageError(f"there is no holder {holder!r}", hint="`sc-dtool why ITEM` shows who holds an item")
            court.convict(holder, f"{holders.user_name()} says that it is gone")
            of_holder = [item._replace(copies=tuple(_only_of(holder, copy) for copy in item.copies)) for item in found]
            return self._reap(court, of_holder, dry_run=dry_run, everybody=False, also=[holder])

    def remove(self, key: str, keep_for: float) -> int:
        """Evict all copies of one item; returns the bytes. Raises InUse, naming who holds it."""
        return self._remove(lambda: items.look(self._fs, self._layout, key, self._warn), keep_for)

    def remove_copy(self, copy: Copy) -> int:
        """Evict one copy of an item; returns the bytes. Raises InUse, naming who holds it."""

        def look() -> Item:
            found = items.look(self._fs, self._layout, copy.key, self._warn)
            return found._replace(copies=tuple(one for one in found.copies if one.generation == copy.generation))

        return self._remove(look, 0.0)

    def _remove(self, look: Callable[[], Item], keep_for: float) -> int:
        found = look()
        with self.court() as court:
            self._reap(court, [found], dry_run=False, everybody=False)
        now = self._clock.wall()
        keep_until = int(now + keep_for) if keep_for else 0
        freed, taken = 0, False
        for copy in found.copies:
            outcome = trash.evict(self._fs, self._layout, copy.key, str(copy.generation), keep_until)
            freed += copy.generation.bytes if outcome is trash.Outcome.EVICTED else 0
            taken = taken or outcome is trash.Outcome.IN_USE
        left = look()
        if left.leases or taken:
            raise self._in_use(left)
        trash.purge(self._fs, self._layout, now, self._warn)
        return freed

    def _in_use(self, item: Item) -> InUse:
        if not item.leases:
            return InUse(f"cannot remove {key_label(item.key)}: it was in use a moment ago", hint="try again")
        judged = self.judged(item.held)
        count = f"{item.leases} lease{'s' if item.leases != 1 else ''}"
        return InUse(
            f"cannot remove {key_label(item.key)}: {count} held",
            details=[f"{one.by}: {one.verdict.evidence}" for one in judged],
            hint="release them with `sc-dtool unuse`; `sc-dtool reap` ends those of dead holders",
        )

    def evict_if_idle(self, key: str) -> bool:
        """Evict what of an item nobody uses; True if nothing of it is left.

        What others have put into the trash is not looked at: `clean` deletes it.
        """
        found = items.look(self._fs, self._layout, key, self._warn, uses=False)
        outcomes = []
        for copy in found.copies:
            outcomes.append(trash.evict(self._fs, self._layout, key, str(copy.generation)))
            if outcomes[-1] is trash.Outcome.EVICTED:
                trash.purge_copy(self._fs, self._layout, str(copy.generation), self._warn)
        return trash.Outcome.IN_USE not in outcomes

    def restorable(self) -> Iterator[tuple[str, TrashName]]:
        """Keys of items in the trash, and where they are there."""
        return trash.restorable(self._fs, self._layout, self._warn)

    def restore(self, key: str) -> None:
        """Bring back an item from the trash, the newest copy of it. Raises UsageError or InUse."""
        found = [name for trashed, name in self.restorable() if trashed == key]
        if not found:
            raise not_in_trash(key)
        name = max(found, key=lambda one: one.generation.created)
        if items.generations(self._fs, self._layout, key):
            raise InUse(f"{key_label(key)} is already in the cache", hint="the copy in the trash stays there")
        try:
            with self._at_work() as holder:
                if not trash.restore(self._fs, self._layout, self._clock, holder, key, name):
                    raise UsageError(f"{key_label(key)} has just been deleted from the trash")
                self._note_restored(key, holder)
        except OSError as error:
            raise self._not_restored(key, name, error) from error

    def return_interrupted_restores(self) -> None:
        """Return to the trash what an earlier `restore`, which was killed, has taken from there."""
        works = self._fs.names(self._layout.tmp)
        if any(map(_is_of_restore, works)):
            with self.court() as court:
                execution.put_away(self._broom(court).interrupted_restores(works), self._warn)

    def _not_restored(self, key: str, name: TrashName, error: OSError) -> CacheError:
        """Why a copy could not be restored, and where it is now."""
        until = iso(name.keep_until)
        where = [f"the copy is still in the trash, until {until}"]
        hint = (
            "free space with `sc-dtool clean`, then restore it again"
            if error.errno in FULL
            else "resolve that, then restore it again"
        )
        try:
            if str(name) not in self._fs.names(self._layout.trash):
                where = [f"the copy is in {self._layout.tmp}; in the trash, it is kept until {until}"]
                hint = "run `sc-dtool clean`, which returns it to the trash, then restore it again"
        except OSError as unlisted:
            where = [f"the copy is still in the cache directory, but the trash cannot be listed: {explain(unlisted)}"]
            hint = "run `sc-dtool clean`, which returns it to the trash"
        label = key_label(key)
        if error.errno in FULL:
            return NoSpace(f"no space left to restore {label}: {explain(error)}", details=where, hint=hint)
        return CacheError(f"cannot restore {label}: {explain(error)}", details=where, hint=hint)

    def _note_restored(self, key: str, holder: Holder) -> None:
        tmp = f"{self._layout.tmp}/{WorkName(holder.next_lease(), 'audit')}"
        try:
            audit.write_restored(self._fs, self._layout, key, self._clock.wall(), holder.by, tmp)
        except OSError as error:
            self._warn(f"{explain(error)}; the restore is not recorded, so metrics count it as a miss")

    def empty_trash(self) -> tuple[Trashed, Purged]:
        """Delete all that is in the trash, what is kept for `restore` too: what it was, and what was done.

        Raises InUse while a cleaner is at work.
        """
        with self._elected(), self._crew() as crew:
            trashed = trash.weigh(trash.listing(self._fs, self._layout, self._warn))
            return trashed, trash.purge(self._fs, self._layout, math.inf, self._warn, crew)

    def leftovers(self) -> Iterator[Leftover]:
        """What crashes have left behind."""
        found = self._unsettled()
        works = self._fs.names(self._layout.tmp)
        with self.court() as court:
            yield from self._broom(court).find((copy for item in found for copy in item.copies), works)
        yield from self._of_dtool(self.loose(), court.roll.now)


def not_in_trash(word: str) -> UsageError:
    """The error that says that `restore` cannot find what a word means."""
    return UsageError(
        f"there is no {word!r} in the trash",
        hint="only items removed with --trash are kept; to list them: sc-dtool restore",
    )


def _is_of_restore(name: str) -> bool:
    """Whether a name in `tmp/` is a work area of `restore`."""
    work = WorkName.parse(name)
    return work is not None and work.purpose in (trash.RESTORE, trash.RETURN)


def _only_of(holder: str, copy: Copy) -> Copy:
    """The copy, with no leases but those of one holder."""
    return copy._replace(held=tuple(one for one in copy.held if one.lease and one.lease.holder == holder))
