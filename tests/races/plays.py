"""The plays: what actors do, in the program's own words, and which of them meet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

from faults import store_of
from races.baton import EVERYTHING, Act, Play, Scene
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import WorkName
from sccache_dtool.errors import CacheError
from sccache_dtool.evict import trash
from sccache_dtool.liveness.caller import program_owner
from sccache_dtool.protocol import history
from sccache_dtool.protocol.holders import Holder


def use(play: Play, cache: Cache) -> None:
    """As the command line does: a holder for each lease; and the lease is given back."""
    lease = cache.hold(play.owner(), cache.item_request([play.source]))
    play.holds(lease)
    cache.item(play.key)  # so that there is a moment at which it is held
    play.holds(None)
    cache.release([play.owner()], play.key, everything=True)


def use_and_stay(play: Play, cache: Cache) -> None:
    """A job that is still at it when all is over."""
    play.holds(cache.hold(play.owner(), cache.item_request([play.source])))


def evict(play: Play, cache: Cache) -> None:
    cache.evict_if_idle(play.key)


def remove(play: Play, cache: Cache) -> None:
    cache.remove(play.key, keep_for=100)


def clean(play: Play, cache: Cache) -> None:
    cache.clean(EVERYTHING, keep_for=0)


def reap(play: Play, cache: Cache) -> None:
    cache.reap()


def restore(play: Play, cache: Cache) -> None:
    cache.restore(play.key)


def purge(play: Play, cache: Cache) -> None:
    trash.purge(cache.store, cache._clock.wall() + 1e6)


def fold(play: Play, cache: Cache) -> None:
    holder = Holder(cache.store, program_owner(cache._proc), 1000.0)
    tmp = f"{play.layout.tmp}/{WorkName(holder.next_lease(), 'fold')}"
    with contextlib.suppress(OSError):
        history.fold(store_of(cache._fs, None), play.layout.history(play.key), tmp, least=2)
    holder.retire()


def count(play: Play, cache: Cache) -> None:
    """A reader misses no use that was over when it began, unless it says that it cannot read everything."""
    before = {use.lease for use in Cache(play.place, proc=cache._proc).uses(play.key)}
    missed = before - {use.lease for use in cache.uses(play.key)}
    if missed and not play.warnings:
        play.violations.append(f"a reader missed {sorted(missed)}")


def mend(play: Play, cache: Cache) -> None:
    for finding in cache.examine():
        if finding.repair is not None:
            with contextlib.suppress(OSError, CacheError):
                finding.repair()


class Case(NamedTuple):
    """Who meets, and in what cache."""

    prepare: tuple[Callable[[Scene], object], ...]
    acts: tuple[Act, ...]

    @property
    def name(self) -> str:
        before = ", ".join(one.__name__ for one in self.prepare) or "empty"
        return f"{before}: {' | '.join(act.__name__ for act in self.acts)}"

    def named(self) -> dict[str, Act]:
        """The acts, by the actors' names."""
        return {f"{act.__name__} {number}": act for number, act in enumerate(self.acts)}


def idle(scene: Scene) -> None:
    scene.use()


def twice(scene: Scene) -> None:
    with mock.patch("sccache_dtool.catalog.items.generations", return_value=[]):
        scene.use()


def orphaned(scene: Scene) -> None:
    scene.orphan()


def binned(scene: Scene) -> None:
    scene.cache.remove(scene.key, keep_for=1e5)


def often(scene: Scene) -> None:
    for _ in range(3):
        scene.use()


CASES = [
    Case((idle,), (use, evict)),
    Case((idle,), (use, clean)),
    Case((idle,), (use, remove)),
    Case((idle, twice), (use, evict)),
    Case((), (use, use)),
    Case((), (use, clean)),
    Case((idle,), (evict, evict)),
    Case((idle,), (clean, clean)),
    Case((idle, orphaned), (reap, reap)),
    Case((idle, orphaned), (reap, use)),
    Case((idle, orphaned), (mend, clean)),
    Case((idle, binned), (restore, purge)),
    Case((idle, binned), (restore, restore)),
    Case((idle, binned), (restore, use)),
    Case((often,), (fold, fold)),
    Case((often,), (fold, use)),
    Case((often,), (count, fold)),
]

#: Long ones, by chance.
CROWDS = [
    Case((idle,), (use, use, evict, clean)),
    Case((), (use, use_and_stay, use, evict)),
    Case((idle, orphaned), (reap, clean, use, mend)),
    Case((idle, binned), (restore, use, purge, clean)),
    Case((often,), (fold, use, count, reap, fold)),
    Case((idle,), (use, use_and_stay, remove, restore, clean, reap)),
]
