"""One cache to be worked on, and what with: the same for whoever judges, cleans, keeps or leads there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness.process import Proc
from sccache_dtool.log import Log


class Workplace(NamedTuple):
    """A cache that has been checked to be one; and whom to tell of what is damaged and passed over."""

    fs: FileSystem
    layout: Layout
    clock: Clock
    proc: Proc
    cache_id: str
    warn: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Store:
    """One cache, and what every operation on it needs."""

    fs: FileSystem
    layout: Layout
    clock: Clock
    proc: Proc  # this host's processes
    id: str  # the cache's id; a Store is made only of a directory that was checked to be a cache
    log: Log = field(default_factory=Log)  # is given anomalies, as Oddity, and what else users must know
