"""`holders/`, made anew after somebody has removed it: so that nobody is taken for gone because of that."""

from __future__ import annotations

import contextlib
from functools import partial

from sccache_dtool.catalog import items
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import HolderName, Layout, WorkName, unique
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.errors import CacheError, explain

#: The record of a holder of whom nothing is known any more: no record, so that only a person's word can end it.
_UNKNOWN = "unknown, because doctor had to create holders/ again"


def missing(fs: FileSystem, layout: Layout) -> Finding:
    """The finding that it is missing."""
    mend = partial(_make_anew, fs, layout)
    try:
        named = _named(fs, layout)
    except (OSError, CacheError) as error:
        reason = explain(error) if isinstance(error, OSError) else error.message
        what = f"missing, and the holders that belong in it cannot be determined: {reason}"
        return Finding(layout.holders, what, None, "resolve that first: an empty directory would end all leases")
    if not named:
        return Finding(layout.holders, "missing", mend, "creates it")
    who = f"{len(named)} holder{'s' if len(named) > 1 else ''}"
    what = f"missing, together with the records of {who} of leases and work areas"
    return Finding(layout.holders, what, mend, "creates it and counts them as alive until sc-dtool reap --holder ID")


def _named(fs: FileSystem, layout: Layout) -> set[str]:
    """The ids of all whom a lease or a work area names. Raises CacheError where there may be more."""
    if not fs.names_if_any(layout.items):
        return set()
    told: list[str] = []
    held = [one for item in items.scan(fs, layout, told.append) for copy in item.copies for one in copy.held]
    if any(one.name == items.UNLISTED for one in held) or any(text.endswith(items.PASSED_OVER) for text in told):
        raise CacheError("cannot list all leases")
    works = map(WorkName.parse, fs.names_if_any(layout.tmp))
    return {one.lease.holder for one in held if one.lease} | {work.holder for work in works if work}


def _make_anew(fs: FileSystem, layout: Layout) -> None:
    """Make it in one rename: without its entries, if only for a moment, it would prove that all are gone."""
    named = _named(fs, layout)
    area = f"{layout.tmp}/{WorkName(f'p{unique(12)}-{unique(12)}.0', 'register')}"
    fs.make_dirs(f"{area}/gone", shared=layout.shared)
    try:
        for id in named:
            fs.put_record(_UNKNOWN, f"{area}/{HolderName(id, 0, 0)}")
        fs.rename(area, layout.holders)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.remove_tree(area)
        raise
    for id in _named(fs, layout) - named:  # who has taken a lease meanwhile
        fs.put_record(_UNKNOWN, f"{layout.holders}/{HolderName(id, 0, 0)}")
