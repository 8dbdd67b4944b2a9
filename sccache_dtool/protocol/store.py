"""One cache to be worked on, and what with: the same for whoever judges, cleans, keeps or leads there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness.process import Proc


class Workplace(NamedTuple):
    """A cache that has been checked to be one; and whom to tell of what is damaged and passed over."""

    fs: FileSystem
    layout: Layout
    clock: Clock
    proc: Proc
    cache_id: str
    warn: Callable[[str], None]
