"""Objects that no marker names: found, and moved to the archive's trash, where they are kept for some days."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from sccache_dtool.disk.names import unique
from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.objects import ADDED, object_name
from sccache_dtool.markers.archive import Archive

#: Seconds for which an object that was just added is not an orphan, and for which one is kept in the trash.
YOUNG = 7 * 86400.0


def find(archive: Archive, named: Collection[str]) -> Iterator[tuple[str, int]]:
    """Objects that are not named and were not added of late, with their bytes."""
    for digits in archive.objects():
        if digits not in named and not _is_young(archive, digits):
            yield digits, archive.size(digits) or 0


def remove(archive: Archive, digits: str) -> bool:
    """Move an object to the trash; False if somebody has added it meanwhile, or it is gone.

    Whoever adds it writes a record, and looks at the object after that; here the object is moved, and the records are
    listed after that. So one of both sees what the other has done, and the object stays.
    """
    fs, url = archive.fs, archive.url
    if "://" in url:
        raise UsageError(
            "objects can be removed from an archive in a directory only", hint="remove them with its tools"
        )
    form = archive.form_of(digits)
    if form is None:
        return False
    name = object_name(digits, form)
    before = {str(record) for record in archive.records(digits)}
    trashed = f"{url}/{_TRASH}/{digits}~{int(archive.now() * 1000)}~{unique()}"
    fs.make_dirs(f"{url}/{_TRASH}", shared=fs.is_shared(url))
    with contextlib.suppress(FileNotFoundError):
        fs.rename(f"{url}/{name}", trashed)
        probe = f"{url}/{ADDED}/{digits[:2]}/probe-{unique()}"
        fs.make_dirs(f"{url}/{ADDED}/{digits[:2]}", shared=fs.is_shared(url))
        fs.write_new(probe, "")  # a listing on NFS is current only after a change of one's own
        fs.unlink(probe)
        if {str(record) for record in archive.records(digits)} <= before:
            return archive.form_of(digits) is None or remove(archive, digits)  # it may be there in several forms
        with contextlib.suppress(FileExistsError):
            fs.link(trashed, f"{url}/{name}")
        fs.unlink(trashed)
    return False


def empty_trash(archive: Archive) -> int:
    """Delete what has been in the trash for long enough; how many objects."""
    fs, trash = archive.fs, f"{archive.url}/{_TRASH}"
    deleted = 0
    if "://" in archive.url:
        return deleted
    for name in fs.names_if_any(trash):
        _, _, rest = name.partition("~")
        ms = rest.partition("~")[0]
        if ms.isdecimal() and archive.now() - int(ms) / 1000 > YOUNG:
            with contextlib.suppress(FileNotFoundError):
                fs.unlink(f"{trash}/{name}")
                deleted += 1
    return deleted


def _is_young(archive: Archive, digits: str) -> bool:
    return any(archive.now() - record.ms / 1000 < YOUNG for record in archive.records(digits))


_TRASH = "trash"
