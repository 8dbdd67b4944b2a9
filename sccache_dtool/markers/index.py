"""Indexes: what the archive's listing says, in the forms that other programs read. Nothing here depends on them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from sccache_dtool import clock
from sccache_dtool.disk.names import unique
from sccache_dtool.errors import UsageError
from sccache_dtool.fetch import objects
from sccache_dtool.markers.archive import Archive, Details, Record
from sccache_dtool.markers.files import Identifier


class CacheEntry(NamedTuple):
    """An object, and when it was added (ISO 8601). One that was added twice has two entries."""

    identifier: Identifier
    timestamp: str


class Index(Protocol):
    """What the archive has ever been given."""

    def has(self, identifier: str) -> bool:
        """Whether it was ever added."""

    def known(self) -> set[str]:
        """All identifiers."""

    def add(self, identifier: str) -> None:
        """Record an object that is in the archive once more, now."""

    def load(self) -> list[CacheEntry]:
        """All entries, sorted."""


class _Exported:
    """An index over an archive, which is written as a file of one form into a directory whenever it is added to.

    The file is for other programs: everything is read from the archive.
    """

    form = ""

    def __init__(self, archive: Archive, index_dir: str | os.PathLike[str] | None = None) -> None:
        self._archive = archive
        self._directory: str | None = None
        if index_dir is not None:
            self.set_index_dir(index_dir)

    def get_index_dir(self) -> str | None:
        """The directory of the file; None if none is written."""
        return self._directory

    def set_index_dir(self, index_dir: str | os.PathLike[str]) -> None:
        """Write the file into this directory, now and whenever an object is added."""
        self._directory = os.fspath(index_dir)
        self.save()

    @property
    def path(self) -> str | None:
        """The file."""
        return None if self._directory is None else os.path.join(self._directory, f"index.{self.form}")

    def has(self, identifier: str) -> bool:
        """See Index."""
        digits = digits_of(identifier)
        return self._archive.has(digits) or any(True for _ in self._archive.records(digits))

    def known(self) -> set[str]:
        """See Index."""
        return {objects.word(digits) for digits in self._archive.known()}

    def add(self, identifier: str) -> None:
        """See Index."""
        self._archive.add_record(digits_of(identifier), Details())
        self.save()

    def load(self) -> list[CacheEntry]:
        """See Index."""
        return list(entries(self._archive))

    def save(self) -> None:
        """Replace the file by the present index."""
        if self.path is not None:
            export(self._archive, self.form, self.path)


class IndexCSV(_Exported):
    """As `index.csv`: identifier and time, without a header."""

    form = "csv"


class IndexJSON(_Exported):
    """As `index.json`: a list of objects."""

    form = "json"


class IndexSQLite(_Exported):
    """As `index.sqlite`: the table ``entries(identifier, timestamp, bytes, name, by)``."""

    form = "sqlite"


FORMS = ("csv", "json", "sqlite")


def digits_of(identifier: str) -> str:
    """The digest in an identifier. Raises UsageError if it is not one."""
    digits = objects.digits_of(identifier)
    if digits is None:
        objects.check_word(identifier)
        raise UsageError(f"{identifier!r} is not an identifier", hint="give sha256: and 64 hexadecimal digits")
    return digits


def entries(archive: Archive) -> Iterator[CacheEntry]:
    """All entries."""
    return map(_entry, archive.entries())


def _entry(record: Record) -> CacheEntry:
    return CacheEntry(Identifier(objects.word(record.digits)), clock.iso(record.ms / 1000))


def export(archive: Archive, form: str, path: str) -> int:
    """Write an index to `path`, by one rename; how many entries it has. A row at a time is in memory."""
    draft = f"{path}.{unique()}.part"
    try:
        count = _WRITERS[form](archive, draft)
        os.replace(draft, path)
    except BaseException:
        if os.path.lexists(draft):
            os.unlink(draft)
        raise
    return count


def _write_csv(archive: Archive, path: str) -> int:
    count = 0
    with open(path, "x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for count, entry in enumerate(entries(archive), 1):  # noqa: B007
            writer.writerow(entry)
    return count


def _write_json(archive: Archive, path: str) -> int:
    count = 0
    with open(path, "x", encoding="utf-8") as file:
        file.write("[")
        for count, entry in enumerate(entries(archive), 1):
            file.write(("\n " if count == 1 else ",\n ") + json.dumps(entry._asdict()))
        file.write("\n]\n" if count else "]\n")
    return count


def _write_sqlite(archive: Archive, path: str) -> int:
    """Made on a local disk: a database must not be written on a network file system."""
    import shutil
    import sqlite3
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sc-dtool-") as directory:
        made = f"{directory}/index.sqlite"
        database = sqlite3.connect(made, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=OFF")
            database.execute("PRAGMA synchronous=OFF")
            database.execute("BEGIN")
            database.execute("CREATE TABLE entries(identifier TEXT, timestamp TEXT, bytes INTEGER, name TEXT, by TEXT)")
            database.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", _rows(archive))
            count = database.execute("SELECT count(*) FROM entries").fetchone()[0]
            database.execute("COMMIT")
        finally:
            database.close()
        shutil.copyfile(made, path)
    return int(count)


def _rows(archive: Archive) -> Iterator[tuple[Any, ...]]:
    for record in archive.entries():
        details = archive.details(record) if record.ms else Details()
        yield (*_entry(record), record.bytes, details.name, details.by)


_WRITERS = {"csv": _write_csv, "json": _write_json, "sqlite": _write_sqlite}
