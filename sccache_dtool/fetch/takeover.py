"""Going on with the downloads of a fetch whose process is gone, or was silent for so long that it was passed over.

Only the winner of the item's election comes here, and takes only work areas whose fetcher has no election any more:
it has resigned, or was proved dead or silent, and then its sign was removed. The whole area changes its name in one
rename, so that of two who want it one gets it, and whoever only slept finds that it has nothing left to publish.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import TRANSFER_FILE, Layout, WorkName
from sccache_dtool.errors import GONE
from sccache_dtool.fetch import transfers
from sccache_dtool.liveness.process import Proc
from sccache_dtool.protocol import downloads
from sccache_dtool.protocol.downloads import FETCH, TAKEN


class Taken(NamedTuple):
    """A work area that was another's, and how many bytes in it can be relied on."""

    area: str
    bytes: int


def find_abandoned(fs: FileSystem, layout: Layout, key: str, target: str, proc: Proc | None = None) -> Taken | None:
    """Make the best of the abandoned work areas of an item ours, under the path `target`; None if there is none.

    The others are of no use to anybody, and are removed. A failure means only that nothing is continued.
    """
    with contextlib.suppress(OSError):
        found = [text for text in fs.names(layout.tmp) if _is_left(fs, layout, key, text, proc)]
        taken = None
        for size, area in sorted(((_size(fs, f"{layout.tmp}/{area}"), area) for area in found), reverse=True):
            if size and taken is None and _rename(fs, f"{layout.tmp}/{area}", target):
                taken = Taken(target, size)
            else:
                _remove(fs, layout, area)
        return taken
    return None


def _is_left(fs: FileSystem, layout: Layout, key: str, text: str, proc: Proc | None) -> bool:
    """Whether a name in `tmp/` is a download of the item that nobody goes on with.

    The names of others are not looked into. What a successor had taken, and was killed over, is its predecessor's
    download still.
    """
    work = WorkName.parse(text)
    if work is None or work.purpose not in (FETCH, TAKEN) or work.of not in ("", key[:32]):
        return False
    try:
        facts = records.decode_document(fs.read_text(f"{layout.tmp}/{text}/{TRANSFER_FILE}"))
    except (OSError, records.Damaged):
        return False
    if facts.get("key") != key:
        return False
    sign = str(facts.get("sign", ""))
    return work.purpose == TAKEN or transfers.is_abandoned(fs, layout, sign, proc or Proc())


def _size(fs: FileSystem, area: str) -> int:
    """Bytes that can be relied on."""
    try:
        return sum(downloads.parts(fs, area).values())
    except OSError:
        return 0


def _rename(fs: FileSystem, area: str, target: str) -> bool:
    try:
        fs.rename(area, target)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    return True


def _remove(fs: FileSystem, layout: Layout, area: str) -> None:
    """Renamed before anything in it is deleted, as `clean` does: who wakes up must not publish half of it."""
    work = WorkName.parse(area)
    if work is None:
        return
    going = f"{layout.tmp}/{work._replace(purpose='going')}"
    with contextlib.suppress(OSError):
        fs.rename(f"{layout.tmp}/{area}", going)
        fs.remove_tree(going)
