"""A cache that is being worked with: what it is, what its settings say, and what the rest is made with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from sccache_dtool import fallback
from sccache_dtool.clock import Clock
from sccache_dtool.disk import root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import LeaseLost, NoCache
from sccache_dtool.fetch.request import Wanted, wanted_from
from sccache_dtool.liveness.process import Proc
from sccache_dtool.policy import config
from sccache_dtool.pool import Crew
from sccache_dtool.protocol import program
from sccache_dtool.protocol.leases import Place
from sccache_dtool.protocol.store import Workplace

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from sccache_dtool.evict.single import Keeper
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.fetch.stack import Stack

#: One for the whole process, so that all `Cache` objects of one root share its holder.
_FILE_SYSTEM = FileSystem()

Tell = Callable[[str], None]
Value = TypeVar("Value")


def silently(text: str) -> None:
    """Tell nobody."""


def _watch_silently(done: int, total: int) -> None:
    """Tell nobody."""


class Opened:
    """What all of `Cache` stands on."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        on_warning: Tell = silently,
        on_note: Tell = silently,
        on_lost: Callable[[LeaseLost], None] | None = None,
        progress: Progress | None = None,
        may_hold_data: bool = False,
        parents: bool = False,
        jobs: int | None = 1,
        on_scan: Callable[[int, int], None] = _watch_silently,
        executor: Executor | None = None,
        fs: FileSystem = _FILE_SYSTEM,
        clock: Clock | None = None,
        proc: Proc | None = None,
    ) -> None:
        """Nothing is touched before the first call.

        `on_warning` is told of what is damaged and passed over, `on_note` whom we are waiting for, `on_lost`
        (from a thread) that this program's leases were revoked. `may_hold_data`: set a cache up on first use also
        where there are files already, as in dtool's own cache directory; `parents`: also if directories above it are
        missing, which are made. A cache that is set up on first use is told to `on_note`, or else logged as a warning.
        `jobs`: how many look-ups may run at a
        time (None: as many as is good), in threads or, where this program has none, in forked processes; `on_scan`
        is told how many of how many parts of a scan are done; `executor`: what shares large scans and
        removals with this process, such as a ProcessPoolExecutor, or that of MPI or Dask. `fs`, `clock`
        and `proc` are for tests.
        """
        self._layout = Layout(os.fspath(root))
        self._fs = fs
        self._clock = clock or Clock()
        self._proc = proc or Proc()
        self._warn = on_warning
        self._note = on_note
        self._on_lost = on_lost
        self._progress = progress
        self._may_hold_data = may_hold_data
        self._parents = parents
        self._jobs = jobs
        self._on_scan = on_scan
        self._executor = executor
        self._warned = False
        self._audience = fallback.Audience(on_warning)  # as long as this lives, it is told what is done without
        self._id: str | None = None
        self._config: config.Config | None = None
        self._program: program.Program | None = None
        self._known: dict[tuple[object, ...], tuple[Place, Stack]] = {}

    @property
    def root(self) -> Path:
        """The cache's directory, absolute."""
        from pathlib import Path  # loaded where one is wanted: a short command does without

        return Path(self._layout.root)

    @property
    def settings(self) -> config.Config:
        """What `config.toml` says, read once."""
        if self._config is None:
            self._config = config.load(self._fs, self._layout, self._warn)
        return self._config

    def wanted(self, words: Sequence[str], name: str | None = None) -> Wanted:
        """What the words of a command or call mean. Raises UsageError if they mean nothing.

        The settings are read only if a URL may have credentials in it that they name.
        """
        may_have = any("://" in word and ("?" in word or "#" in word) for word in words)
        credentials = self.settings.fetch_credentials if may_have else ()
        return wanted_from(words, name, self._layout.root, credentials)

    @property
    def heartbeat_ttl(self) -> float:
        """Lifetime in seconds of holders that beat."""
        return self.settings.heartbeat_ttl

    def init(self, parents: bool = True) -> bool:
        """Set the cache up; False if it was one already. Raises UsageError where there must be none.

        `parents`: make missing directories above it, too; without, NoCache is raised for these.
        """
        made = root.set_up(self._fs, self._layout, parents=parents)
        self.check()
        self._warn_of_strangers()
        return made

    def check(self) -> str:
        """The cache's id. Raises NoCache if the directory is none; nothing is written or deleted before this."""
        if self._id is None:
            self._id = root.check(self._fs, self._layout)
        return self._id

    def _check_or_set_up(self) -> None:
        """For `use`: a new or empty directory, or dtool's own, becomes a cache on first need."""
        if self._id is not None:
            return
        try:
            self.check()
            self._warn_of_strangers()
        except NoCache:
            if self._may_hold_data or root.is_empty(self._fs, self._layout.root):
                if self.init(self._parents):
                    self._tell_of_new_cache()
                return
            self.check()  # once more: another process may have set it up since

    def _tell_of_new_cache(self) -> None:
        text = f"set up a new cache in {self._layout.root}"
        if self._note is not silently:
            self._note(text)
            return
        import logging

        logging.getLogger("sccache_dtool").warning(text)

    def _warn_of_strangers(self) -> None:
        """Warn, once, of a cache in which everybody may put what its users read."""
        if self._warned:
            return
        self._warned = True
        for path in root.open_to_all(self._fs, self._layout):
            self._warn(
                f"{path}: every user can create and delete files here; share it with a group instead (chmod o-w)"
            )

    def _keeper(self, warn: Tell | None = None, settings: config.Config | None = None) -> Keeper:
        from sccache_dtool.evict.single import Keeper

        place = self._workplace(warn)
        if warn is None:
            self._warn_of_strangers()
        return Keeper(place, self.settings if settings is None else settings, self._crew)

    def _workplace(self, warn: Tell | None = None) -> Workplace:
        return Workplace(self._fs, self._layout, self._clock, self._proc, self.check(), warn or self._warn)

    def _crew(self) -> Crew:
        return Crew(self._jobs, self._on_scan, self._executor)

    def close(self) -> None:
        """Release all that this process holds in this cache. It happens by itself when the program ends.

        May be called from a signal handler. What another thread is about to use is leased again, by another holder.
        """
        program.forget(self._layout)
