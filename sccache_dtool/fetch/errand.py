"""For whom an item is had, by whom, and with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness.process import Proc
from sccache_dtool.protocol.holders import Holder


class Errand(NamedTuple):
    """What waiting for an item and fetching it have in common."""

    fs: FileSystem
    layout: Layout
    clock: Clock
    holder: Holder  # is to have the lease
    worker: Holder  # this process, of whom work areas and signs are: they are tidied when it is gone
    proc: Proc  # this host's processes
    note: Callable[[str], None]  # told, in a sentence, whom or what we are waiting for
