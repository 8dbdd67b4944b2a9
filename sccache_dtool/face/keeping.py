"""Keeping a cache in order: ending what the dead hold, removing and restoring, pinning, repairing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sccache_dtool import find
from sccache_dtool.disk.names import TrashName
from sccache_dtool.errors import InUse, NoCache, UsageError
from sccache_dtool.face.looking import Looking
from sccache_dtool.face.opened import silently
from sccache_dtool.policy import config
from sccache_dtool.protocol import holders

if TYPE_CHECKING:
    from sccache_dtool.doctor import Checked, Finding
    from sccache_dtool.evict.execution import Cleaned
    from sccache_dtool.evict.plan_file import Planned
    from sccache_dtool.evict.trash import Purged
    from sccache_dtool.policy.rules import Plan, Rules
    from sccache_dtool.policy.thresholds import Trashed
    from sccache_dtool.protocol.reaping import Reaped


class Keeping(Looking):
    """What data managers do with a cache."""

    def reap(self, *, dry_run: bool = False) -> Reaped:
        """End the leases of all holders that are proved dead, and say on what evidence."""
        return self._keeper().reap(dry_run=dry_run)

    def reap_on_word(self, holder: str, *, dry_run: bool = False) -> Reaped:
        """End the leases of one holder, by its id, because a person knows that it is gone."""
        return self._keeper().reap_on_word(holder, dry_run=dry_run)

    def plan(self, rules: Rules, *, ahead: float = 0.0, keep_for: float | None = None) -> tuple[Plan, Reaped]:
        """What `clean` with these rules would do now, and what it would reap first. Writes no more than a probe.

        `ahead`: what it would do in so many seconds, if nobody used anything until then; `keep_for`: as for `clean`.
        """
        keep_for = self.settings.trash_keep if keep_for is None else keep_for
        return self._keeper().plan(rules, keep_for, ahead=ahead)

    def clean(
        self, rules: Rules, *, keep_for: float | None = None, most_seconds: float | None = None, why: str = ""
    ) -> Cleaned:
        """Evict what `rules` let go. `keep_for`: seconds for which `restore` finds it (default: the cache's).

        Nothing in use is ever evicted: the file system refuses. Raises InUse while another cleaner is at work.
        `most_seconds`: after which the rest is left for the next clean; `why`: for the record in `cleanings/`.
        """
        keep_for = self.settings.trash_keep if keep_for is None else keep_for
        return self._keeper().clean(rules, keep_for, most_seconds, why)

    def clean_as_planned(
        self, planned: Planned, *, keep_for: float | None = None, most_seconds: float | None = None, why: str = ""
    ) -> Cleaned:
        """Evict what a plan says, as far as it is still true: what was used, or pinned, since then stays."""
        keep_for = self.settings.trash_keep if keep_for is None else keep_for
        return self._keeper().clean_as_planned(planned, self.settings.clean_exclude, keep_for, most_seconds, why)

    def make_room(self, missing: int) -> int:
        """Evict what is idle to free `missing` bytes, in the order of the cache's policy; returns how many it freed.

        What was evicted before, and is still to be deleted, is deleted with it, and counts.
        """
        from sccache_dtool.evict import trash
        from sccache_dtool.policy.rules import Rules

        there = sum(item.bytes for item in self.items()) + sum(pile.bytes for pile in self.piles())
        policy = self.policy()
        now = self._clock.wall()
        listed = trash.listing(self._fs, self._layout, self._warn)
        due = trash.weigh(name for name in listed if trash.is_expired(name, now)).bytes
        retained = max(0, there - max(0, missing - due))
        rules = Rules(retain_size=retained, order=policy.order, exclude=policy.exclude, grace=policy.grace)
        try:
            done = self.clean(rules, keep_for=0, why=f"room for {missing} bytes")
        except InUse:  # another cleaner is at work
            return 0
        return max(0, done.freed + due - done.unpurged_bytes)

    def policy(self) -> Rules:
        """What `config.toml` says of cleaning. Raises UsageError if it says more than we understand."""
        from sccache_dtool.policy.rules import Rules

        settings = self.settings
        strange = [one for one in settings.unknown if config.of_cleaning(one)]
        if strange:
            raise UsageError(
                f"{self._layout.config_file}: {', '.join(strange)} is not a setting that this release knows",
                hint="nothing was cleaned, because the setting may protect items; correct it, or use a newer release",
            )
        return Rules(
            older_than=settings.clean_older_than,
            fewer_uses_than=settings.clean_fewer_uses,
            retain_size=settings.clean_retain_size,
            larger_than=settings.clean_larger_than,
            limits=settings.limits,
            order=settings.clean_order,
            exclude=settings.clean_exclude,
            grace=settings.clean_grace,
        )

    def pin(self, key: str, until: float | None = None) -> None:
        """Keep an item, whatever the rules of a cleaning are, until a time in seconds since 1970, or for good."""
        from sccache_dtool.evict import pins

        self.check()
        by = f"{holders.user_name()}@{holders.host_name()}"
        pins.pin(self._fs, self._layout, key, int(until or 0), by, self._warn)

    def unpin(self, key: str) -> bool:
        """Let an item be cleaned again; False if it was not pinned."""
        from sccache_dtool.evict import pins

        self.check()
        return pins.unpin(self._fs, self._layout, key, self._warn)

    def remove(self, key: str, *, keep_for: float | None = None) -> int:
        """Evict one item; returns the bytes. Raises InUse, naming who holds it."""
        return self._keeper().remove(key, self.settings.trash_keep if keep_for is None else keep_for)

    def evict_if_idle(self, key: str) -> bool:
        """Evict an item unless somebody holds it; True if nothing is left of it."""
        return self._keeper().evict_if_idle(key)

    def restorable(self) -> Iterator[tuple[str, TrashName]]:
        """Keys of the items in the trash that can be brought back, and where they are there."""
        return self._keeper().restorable()

    def restore(self, word: str) -> str:
        """Bring an item back from the trash; returns its key. Raises UsageError if it is not there."""
        from sccache_dtool.evict import trash
        from sccache_dtool.evict.single import not_in_trash

        keeper = self._keeper()
        keeper.return_interrupted_restores()
        there = dict(keeper.restorable())
        within = self._layout.key_of(word)
        found = find.meant(word, there, self.wanted) if within is None else [within]
        if not found:
            raise not_in_trash(word)

        def source(key: str) -> str:
            return find.source_of(trash.facts(self._fs, self._layout, there[key]))

        key = find.the_only(word, found, source)
        keeper.restore(key)
        return key

    def empty_trash(self) -> tuple[Trashed, Purged]:
        """Delete also what is kept for `restore`: what was in the trash, and what was deleted.

        Raises InUse while a cleaner is at work.
        """
        return self._keeper().empty_trash()

    def trashed(self) -> Trashed:
        """What is in the trash, and until when the last of it is kept."""
        from sccache_dtool.evict import trash

        self.check()
        return trash.weigh(trash.listing(self._fs, self._layout, self._warn))

    def examine(self) -> list[Finding]:
        """Everything in the cache that is not as it should be."""
        from sccache_dtool.doctor import examine, examine_format

        try:
            self.check()
        except NoCache:
            lost = examine_format(self._fs, self._layout)
            if not lost:
                raise
            return lost
        with self._crew() as crew:
            return examine(self._fs, self._layout, self._clock, crew, self._keeper)

    def verify_content(self) -> Checked:
        """Read all payloads again that have a digest, and compare. What is strange besides, `examine` tells."""
        from sccache_dtool.doctor import verify_content

        evict = self._keeper(silently, config.Config()).remove_copy
        return verify_content(self._fs, self._layout, self._progress, evict)
