"""A cache that is being worked with: what it is, what its settings say, and what the rest is made with."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sccache_dtool import config, fallback, program, root
from sccache_dtool.clock import Clock
from sccache_dtool.crew import Crew
from sccache_dtool.errors import LeaseLost, NoCache
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Layout
from sccache_dtool.leases import Place
from sccache_dtool.liveness.process import Proc, Process
from sccache_dtool.workplace import Workplace

if TYPE_CHECKING:
    from pathlib import Path

    from sccache_dtool.evict.keeper import Keeper
    from sccache_dtool.fetch.progress import Progress
    from sccache_dtool.team.lead import Lead
    from sccache_dtool.team.task import Task

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
        jobs: int | None = 1,
        on_scan: Callable[[int, int], None] = _watch_silently,
        team: Lead | None = None,
        fs: FileSystem = _FILE_SYSTEM,
        clock: Clock | None = None,
        proc: Proc | None = None,
    ) -> None:
        """Nothing is touched before the first call.

        `on_warning` is told of what is damaged and passed over, `on_note` whom we are waiting for, `on_lost`
        (from a thread) that this program's leases were revoked. `may_hold_data`: set a cache up on first use also
        where there are files already, as in dtool's own cache directory. `jobs`: how many look-ups may run at a
        time (None: as many as is good), in threads or, where this program has none, in forked processes; `on_scan`
        is told how many of how many parts of a scan are done; `team`: who shares the work, see `take_part`. `fs`,
        `clock` and `proc` are for tests.
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
        self._jobs = jobs
        self._on_scan = on_scan
        self._team = team
        self._warned = False
        self._audience = fallback.Audience(on_warning)  # as long as this lives, it is told what is done without
        self._id: str | None = None
        self._config: config.Config | None = None
        self._program: program.Program | None = None
        self._known: dict[tuple[object, ...], Place] = {}

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

    @property
    def heartbeat_ttl(self) -> float:
        """Lifetime in seconds of holders that beat."""
        return self.settings.heartbeat_ttl

    def init(self) -> bool:
        """Set the cache up; False if it was one already. Raises UsageError where there must be none."""
        made = root.set_up(self._fs, self._layout)
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
            if not (self._may_hold_data or root.is_empty(self._fs, self._layout.root)):
                raise
            self.init()

    def take_part(self, task: Task, command: Callable[[Lead | None], Value]) -> Value | None:
        """What `command` returns, which one of many tasks calls, with the team that others make; None for these.

        `command` makes a Cache that has the team. It must do no harm if it is done twice.
        """
        from sccache_dtool.team.part import Part

        return Part(self._workplace(), task, self._jobs, self.settings.heartbeat_ttl).take(command)

    def _warn_of_strangers(self) -> None:
        """Warn, once, of a cache in which everybody may put what its users read."""
        if self._warned:
            return
        self._warned = True
        for path in root.open_to_all(self._fs, self._layout):
            self._warn(f"{path}: every user may write, and delete, here; use a group instead (chmod o-w)")

    def _keeper(self, warn: Tell | None = None, settings: config.Config | None = None) -> Keeper:
        from sccache_dtool.evict.keeper import Keeper

        place = self._workplace(warn)
        if warn is None:
            self._warn_of_strangers()
        settings = settings or self.settings
        given_up = self._team.lost if self._team is not None else frozenset[Process]()
        return Keeper(place, settings.heartbeat_ttl, settings.dtool_directories, self._crew, given_up)

    def _workplace(self, warn: Tell | None = None) -> Workplace:
        return Workplace(self._fs, self._layout, self._clock, self._proc, self.check(), warn or self._warn)

    def _crew(self) -> Crew:
        return Crew(self._jobs, self._on_scan, self._team)

    def close(self) -> None:
        """Release all that this process holds in this cache. It happens by itself when the program ends."""
        program.forget(self._layout)
