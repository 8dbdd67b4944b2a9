"""Unpacking a tar that may be hostile, or damaged in any way: all of it, or an error of one line.

Python's own `data_filter` (PEP 706) is used and not trusted alone. Until Python 3.11.13, 3.12.11 and 3.13.4 it can be
led outside by links to links (CVE-2024-12718, CVE-2025-4138, -4330, -4517), and it strips leading slashes in silence.
And `tarfile` takes a damaged header, or the end of a truncated file, for the end of the archive.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from typing import NoReturn

from sccache_dtool.errors import FULL, CacheError, FetchFailed
from sccache_dtool.fetch.reasons import plain, why
from sccache_dtool.fsops import CHUNK, FileSystem

_MOST_LINKS = 40  # the kernel follows no more: path_resolution(7)


def unpack(fs: FileSystem, path: str, directory: str, source: str) -> None:
    """Unpack the tar at `path`, compressed or not, into `directory`, which is made; `source` is shown in errors.

    Raises FetchFailed for an archive that is damaged, truncated or no tar, and for members that have an absolute
    name, have ``..`` in their name, are devices or FIFOs, or are links that lead outside. Raises OSError if there is
    no space left. What was unpacked until then is left in `directory`.
    """
    if not hasattr(tarfile, "data_filter"):
        raise FetchFailed(
            f"cannot unpack {source}: this Python cannot refuse dangerous members of a tar",
            hint="use Python 3.11.4 or later",
        )
    fs.mkdir(directory, 0o755)  # so that nobody else can write in it, also where permissions cannot be changed
    guard = _Guard(fs, directory, source)
    try:
        with os.fdopen(fs.open(path), "rb") as file, _open(file, source) as archive:
            fs.extract(archive, directory, guard)
            # The rest is read, too: the checksum of a compressed file stands at its end.
            rest = archive.fileobj
            while rest.read(CHUNK):
                pass
        guard.check_links()
    except CacheError:
        raise
    except Exception as error:  # Damaged data raises anything: zlib.error, EOFError, KeyError, UnicodeError …
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise FetchFailed(f"cannot unpack {source}: {why(error).replace(f'{directory}/', '')}") from error


def _open(file: object, source: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member)  # type: ignore[call-overload,no-any-return]
    except tarfile.ReadError as error:  # its text has a line for each compression that was tried
        raise FetchFailed(
            f"cannot unpack {source}: it is no tar, or damaged at its start",
            hint="a tar may be plain, or compressed with gzip, bzip2 or xz",
        ) from error


class _Member(tarfile.TarInfo):
    """A member of an archive whose damaged headers are errors wherever they are, not the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        at = archive.offset
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros that ends each archive
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"it is truncated: no end of archive after {at} bytes") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header of a member, at byte {at}: {error}") from error


class _Guard:
    """The extraction filter of one archive: returns a member as it may be unpacked, or raises."""

    def __init__(self, fs: FileSystem, directory: str, source: str) -> None:
        self._fs = fs
        self._directory = directory
        self._source = source
        self._links: set[str] = set()

    def __call__(self, member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        parts = self._parts(member, member.name, "name")
        if not parts and not member.isdir():
            self._refuse(member, "it would take the place of the directory itself")
        if member.islnk():
            target = self._parts(member, member.linkname, "link")
            mode = self._mode(target)
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                self._refuse(member, f"it is a hard link to {plain(member.linkname)!r}, no file before it")
            is_link = stat.S_ISLNK(mode)
        else:
            is_link = member.issym()
        self._stay_off_links(member, parts[:-1] if member.issym() else parts)
        try:
            filtered = tarfile.data_filter(member, path)
        except tarfile.FilterError as error:
            raise FetchFailed(f"cannot unpack {self._source}: refused member {why(error)}") from error
        if is_link:
            self._links.add("/".join(parts))
        return filtered

    def check_links(self) -> None:
        """Raise FetchFailed if a symbolic link leads outside, now that all it may lead through is there."""
        for name in sorted(self._links):
            if not self._leads_inside(name):
                raise FetchFailed(
                    f"cannot unpack {self._source}: refused member {plain(name)!r}: it is a link that leads outside"
                )

    def _leads_inside(self, name: str) -> bool:
        """Walk as the kernel does, one component after another: `realpath` gives up on long paths in silence."""
        here: list[str] = []
        ahead = name.split("/")[::-1]
        followed = 0
        while ahead:
            part = ahead.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not here:
                    return False
                here.pop()
                continue
            try:
                text = self._fs.readlink("/".join((self._directory, *here, part)))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                    raise
                here.append(part)  # no link, or nothing there
                continue
            followed += 1
            if followed > _MOST_LINKS:
                return True  # a circle: it leads nowhere
            if text.startswith("/"):
                return False
            ahead.extend(text.split("/")[::-1])
        return True

    def _parts(self, member: tarfile.TarInfo, path: str, what: str) -> list[str]:
        if path.startswith("/"):
            self._refuse(member, f"its {what} is absolute")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            self._refuse(member, f"its {what} has '..' in it")
        return parts

    def _stay_off_links(self, member: tarfile.TarInfo, parts: list[str]) -> None:
        """Nothing is written through a symbolic link, wherever that leads."""
        if self._links and any("/".join(parts[:depth]) in self._links for depth in range(1, len(parts) + 1)):
            self._refuse(member, "a symbolic link of the archive is in its way")

    def _mode(self, parts: list[str]) -> int:
        """The type of what was unpacked under that name; 0 if there is nothing, or if a link leads there."""
        if self._links and any("/".join(parts[:depth]) in self._links for depth in range(1, len(parts))):
            return 0
        try:
            return self._fs.lstat("/".join((self._directory, *parts))).st_mode
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                return 0
            raise

    def _refuse(self, member: tarfile.TarInfo, reason: str) -> NoReturn:
        raise FetchFailed(f"cannot unpack {self._source}: refused member {plain(member.name)!r}: {reason}")
