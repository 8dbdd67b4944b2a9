"""Reading a zip archive: everything that Info-ZIP's unzip would unpack from it, or an error of one line.

`zipfile` parses the archive and decompresses; it does not write. `extraction` decides what a member may do to the disk.
"""

from __future__ import annotations

import os
import stat
import struct
import time
import zipfile
import zlib

from sccache_dtool.disk.extraction import Extraction, Parts, Refused
from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.archives import member_named, unpacking
from sccache_dtool.fetch.reasons import why

_LONGEST_LINK = 4096

# The system that a member comes from ("version made by"): it decides what the member's attributes and name mean.
_DOS, _UNIX, _DARWIN = 0, 3, 19

_UTF8_NAME = 0x800  # flag of a member: its name is UTF-8

# Extra fields (Info-ZIP's proginfo/extrafld.txt).
_TIMES = 0x5455
_UNICODE_NAME = 0x7075


def unpack(fs: FileSystem, path: str, directory: str, source: str) -> None:
    """Unpack the zip at `path` into `directory`, which is made; `source` is shown in errors.

    Raises FetchFailed for an archive that is damaged, encrypted or not a zip, and for members that have an absolute
    name or lead outside. Raises OSError if there is no space left. What was unpacked until then is left in
    `directory`.
    """
    with unpacking(fs, directory, source) as extraction:
        try:
            with os.fdopen(fs.open(path), "rb") as file, zipfile.ZipFile(file) as archive:
                # Links last, as unzip does, so that no member is written through one.
                for member in sorted(archive.infolist(), key=_is_link):
                    with member_named(name := _name(member)):
                        _unpack(fs, extraction, archive, member, name)
        except zipfile.BadZipFile as error:
            raise FetchFailed(
                f"cannot unpack {source}: {why(error)}", hint="check that the file is a zip archive"
            ) from error


def _unpack(
    fs: FileSystem, extraction: Extraction, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str
) -> None:
    path = _parts(name)
    if member.flag_bits & 1:
        raise Refused("it is encrypted")
    if name.endswith("/"):
        extraction.directory(path, _modified(member))
    elif _is_link(member):
        if member.file_size > _LONGEST_LINK:
            raise Refused(f"it is a link of more than {_LONGEST_LINK} bytes")
        extraction.symlink(path, os.fsdecode(archive.read(member)))
    else:
        mode = _unix_mode(member) & 0o777
        with extraction.file(path, mode or 0o666, _modified(member)) as fd, archive.open(member) as data:
            while piece := data.read(CHUNK):
                fs.write(fd, piece)


def _unix_mode(member: zipfile.ZipInfo) -> int:
    """Type and permissions of a member as Unix has them; 0 if it comes from a system that has none."""
    return member.external_attr >> 16 if member.create_system in (_UNIX, _DARWIN) else 0


def _is_link(member: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(_unix_mode(member))


def _name(member: zipfile.ZipInfo) -> str:
    """The name of a member, in bytes that its creator meant.

    Without the flag for UTF-8, `zipfile` decodes names as DOS wrote them; what comes from Unix has the bytes of the
    file name, as Info-ZIP's zip and macOS write it.
    """
    name = member.filename
    if not member.flag_bits & _UTF8_NAME:
        raw = member.orig_filename.encode("cp437", "surrogateescape")
        unicode_name = _extra(member, _UNICODE_NAME)
        if len(unicode_name) > 5 and struct.unpack("<L", unicode_name[1:5])[0] == zlib.crc32(raw):
            name = unicode_name[5:].decode("utf-8", "surrogateescape")
        elif member.create_system in (_UNIX, _DARWIN):
            name = os.fsdecode(raw.partition(b"\0")[0])
    if member.create_system == _DOS and "/" not in name:
        name = name.replace("\\", "/")
    return name


def _modified(member: zipfile.ZipInfo) -> float | None:
    """When a member was changed last, in seconds since the epoch; None if that makes no sense."""
    times = _extra(member, _TIMES)
    if len(times) >= 5 and times[0] & 1:
        return float(struct.unpack("<l", times[1:5])[0])
    try:
        return time.mktime((*member.date_time, 0, 0, -1))
    except (OverflowError, ValueError):
        return None


def _extra(member: zipfile.ZipInfo, tag: int) -> bytes:
    """The data of an extra field of a member; empty if it has none."""
    rest = member.extra
    while len(rest) >= 4:
        found, size = struct.unpack("<HH", rest[:4])
        if found == tag:
            return rest[4 : 4 + size]
        rest = rest[4 + size :]
    return b""


def _parts(name: str) -> Parts:
    """The components of a name. Raises Refused for one that leads outside.

    ``..`` that stays inside is left out, as by unzip.
    """
    if name.startswith("/"):
        raise Refused("its name is absolute")
    depth = 0
    parts = []
    for part in name.split("/"):
        if part == "..":
            depth -= 1
            if depth < 0:
                raise Refused("its name leads outside with '..'")
        elif part not in ("", "."):
            depth += 1
            parts.append(part)
    return tuple(parts)
