"""Unpacking a zip that may be hostile, or damaged in any way: all of it, or an error of one line."""

from __future__ import annotations

import os
import stat
import zipfile
from itertools import takewhile
from typing import NoReturn

from sccache_dtool.errors import FULL, CacheError, FetchFailed
from sccache_dtool.fetch.reasons import plain, why
from sccache_dtool.fsops import CHUNK, FileSystem

_LONGEST_LINK = 4096


def unpack(fs: FileSystem, path: str, directory: str, source: str) -> None:
    """Unpack the zip at `path` into `directory`, which is made; `source` is shown in errors.

    Raises FetchFailed for an archive that is damaged, encrypted or no zip, for members with an absolute name or
    ``..`` in their name, and for symbolic links that lead outside. Raises OSError if there is no space left. What was
    unpacked until then is left in `directory`.
    """
    fs.mkdir(directory)
    try:
        with os.fdopen(fs.open(path), "rb") as file, zipfile.ZipFile(file) as archive:
            _Unpacker(fs, archive, directory, source).run()
    except CacheError:
        raise
    except zipfile.BadZipFile as error:
        raise FetchFailed(f"cannot unpack {source}: {why(error)}", hint="is it a zip at all?") from error
    except Exception as error:  # damaged data raises anything: zlib.error, EOFError, RuntimeError, NotImplementedError
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise FetchFailed(f"cannot unpack {source}: {why(error).replace(f'{directory}/', '')}") from error


class _Unpacker:
    def __init__(self, fs: FileSystem, archive: zipfile.ZipFile, directory: str, source: str) -> None:
        self._fs = fs
        self._archive = archive
        self._directory = directory
        self._source = source
        self._links: set[str] = set()

    def run(self) -> None:
        links = []
        for member in self._archive.infolist():
            parts = self._parts(member)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.flag_bits & 1:
                self._refuse(member, "it is encrypted")
            if member.is_dir():
                self._fs.make_dirs(self._path(parts))
            elif kind == stat.S_IFLNK:
                links.append((member, parts))
            elif kind in (0, stat.S_IFREG):
                self._file(member, parts)
            else:
                self._refuse(member, "it is neither a file, a directory nor a link")
        for member, parts in links:  # last, so that nothing is written through one
            self._link(member, parts)

    def _file(self, member: zipfile.ZipInfo, parts: list[str]) -> None:
        self._fs.make_dirs(self._path(parts[:-1]))
        mode = member.external_attr >> 16 & 0o777
        fd = self._fs.create(self._path(parts), mode | 0o600 if mode else 0o666)
        try:
            with self._archive.open(member) as data:
                while piece := data.read(CHUNK):
                    self._fs.write(fd, piece)
        finally:
            self._fs.close(fd)

    def _link(self, member: zipfile.ZipInfo, parts: list[str]) -> None:
        if member.file_size > _LONGEST_LINK:
            self._refuse(member, "it is a link of more than 4096 bytes")
        if any("/".join(parts[:depth]) in self._links for depth in range(1, len(parts))):
            self._refuse(member, "a symbolic link of the archive is in its way")  # it would lie elsewhere than it says
        text = os.fsdecode(self._archive.read(member))
        way = [part for part in text.split("/") if part not in ("", ".")]
        climbs = len(list(takewhile(lambda part: part == "..", way)))
        # Down and up again may lead anywhere, if what it goes down through is itself a link.
        if not text or text.startswith("/") or climbs >= len(parts) or ".." in way[climbs:]:
            self._refuse(member, "it is a link that leads outside, or may")
        self._fs.make_dirs(self._path(parts[:-1]))
        self._fs.symlink(text, self._path(parts))
        self._links.add("/".join(parts))

    def _parts(self, member: zipfile.ZipInfo) -> list[str]:
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or name[1:2] == ":":
            self._refuse(member, "its name is absolute")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            self._refuse(member, "its name has '..' in it")
        if not parts and not member.is_dir():
            self._refuse(member, "it would take the place of the directory itself")
        return parts

    def _path(self, parts: list[str]) -> str:
        return "/".join((self._directory, *parts))

    def _refuse(self, member: zipfile.ZipInfo, reason: str) -> NoReturn:
        raise FetchFailed(f"cannot unpack {self._source}: refused member {plain(member.filename)!r}: {reason}")
