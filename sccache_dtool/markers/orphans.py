"""Objects that no marker names: found, and moved to the archive's trash, where they are kept for some days."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import groupby

from sccache_dtool.disk.names import unique
from sccache_dtool.fetch.objects import object_name
from sccache_dtool.fetch.request import COMPRESSIONS
from sccache_dtool.markers.archive import TRASH, Archive, Record

#: Seconds for which an object that was just added is not an orphan, and for which one is kept in the trash.
YOUNG = 7 * 86400.0


def find(archive: Archive, named: Collection[str]) -> Iterator[tuple[str, int]]:
    """Objects that are not named and were not added of late, with their bytes."""
    for digits, records in groupby(archive.entries(), lambda one: one.digits):
        if digits not in named and not any(_is_young(archive, one) for one in records):
            size = archive.size(digits)
            if size is not None:
                yield digits, size


def remove(archive: Archive, digits: str) -> bool:
    """Move an object to the trash; False if somebody has added it meanwhile, or it is gone.

    Whoever adds it writes a record, and looks at the object after that; here the object is moved, and the records are
    listed after that. So one of both sees what the other has done, and the object stays. Raises UsageError if the
    archive cannot be changed in this way.
    """
    archive.require_removal()
    form = archive.form_of(digits)
    if form is None:
        return False
    name = object_name(digits, form)
    before = set(archive.records(digits))
    trashed = f"{TRASH}/{digits}{'.' if form else ''}{form}~{int(archive.now() * 1000)}~{unique()}"
    if not archive.move(name, trashed):
        return False
    archive.refresh(digits)
    after = set(archive.records(digits))
    if after <= before and not any(_is_young(archive, one) for one in after):
        return archive.form_of(digits) is None or remove(archive, digits)  # it may be there in several forms
    archive.move_back(trashed, name)
    return False


def empty_trash(archive: Archive) -> int:
    """Delete what has been in the trash for long enough; how many objects.

    What was added at the time when it was moved there is moved back: the process that did it was killed.
    """
    archive.require_removal()
    deleted = 0
    for name in archive.trashed():
        stored, _, rest = name.partition("~")
        (digits, _, form), ms = stored.partition("."), rest.partition("~")[0]
        if not ms.isdecimal() or form not in ("", *COMPRESSIONS):
            continue
        if any(record.ms / 1000 > int(ms) / 1000 - YOUNG for record in archive.records(digits)):
            archive.move_back(f"{TRASH}/{name}", object_name(digits, form))
        elif archive.now() - int(ms) / 1000 > YOUNG:
            archive.remove(f"{TRASH}/{name}")
            deleted += 1
    return deleted


def _is_young(archive: Archive, record: Record) -> bool:
    return archive.now() - record.ms / 1000 < YOUNG
