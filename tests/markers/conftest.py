"""A cache with an archive for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from faults import FakeClock
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.markers.archive import Archive


@pytest.fixture
def archive_path(tmp_path: Path) -> Path:
    """The directory of the archive."""
    path = tmp_path / "archive"
    path.mkdir()
    return path


@pytest.fixture
def configure(layout: Layout, archive_path: Path) -> Callable[..., None]:
    """Write the table [archive] of the cache's settings: the directory, and what is given."""

    def write(**settings: str) -> None:
        lines = [f'url = "{archive_path}"', *(f"{name} = {value}" for name, value in settings.items())]
        Path(layout.config_file).write_text("[archive]\n" + "\n".join(lines) + "\n")

    return write


@pytest.fixture
def with_archive(
    make_cache: Callable[..., Cache], configure: Callable[..., None], clock: FakeClock
) -> Callable[..., Cache]:
    """Makes a cache whose archive is set up, with settings for [archive]."""

    def make(**settings: str) -> Cache:
        configure(**settings)
        made = make_cache()
        made.archive.init()
        return made

    return make


@pytest.fixture
def archived(with_archive: Callable[..., Cache]) -> Cache:
    """A cache with an archive and the default settings."""
    return with_archive()


@pytest.fixture
def archive(archived: Cache) -> Archive:
    """Its archive."""
    return archived.archive


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory of a user, with one file of ten bytes."""
    path = tmp_path / "project"
    path.mkdir()
    (path / "data.csv").write_bytes(b"0123456789")
    return path
