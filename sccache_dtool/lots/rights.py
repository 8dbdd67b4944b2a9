"""Who may change all lots of a cache: by its settings, and by the permissions of the directory of the lots."""

from __future__ import annotations

import grp
import stat
from typing import NamedTuple

from sccache_dtool.liveness.caller import user_name
from sccache_dtool.protocol.store import Store


class LotRights(NamedTuple):
    """Who may change all lots, and who can write where they are, so that only rules keep them from it."""

    directory: str
    owner: str  # of the directory
    managers: tuple[str, ...]
    group: str | None  # its members can write there; None: they cannot
    everybody: bool  # all users can


def rights(store: Store, managers: tuple[str, ...]) -> LotRights | None:
    """The rights in a cache, whose settings name these managers; None for a cache without lots."""
    try:
        status = store.fs.lstat(store.layout.lots)
    except OSError:
        return None
    group = _group_name(status.st_gid) if status.st_mode & stat.S_IWGRP else None
    return LotRights(
        store.layout.lots, user_name(status.st_uid), managers, group, everybody=bool(status.st_mode & stat.S_IWOTH)
    )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OSError):
        return str(gid)
