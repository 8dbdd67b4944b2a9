"""What the tests of races share: a cache, and something to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from races.actors import Payload, make_payload
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A cache that has been set up; its directory."""
    directory = str(tmp_path / "cache")
    Cache(directory, fs=FileSystem()).init()
    return directory


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    """A directory of three files to be cached."""
    return make_payload(tmp_path / "ref")


@pytest.fixture
def actor(place: str) -> Iterator[Callable[..., Cache]]:
    """Makes actors: a `Cache` each, with a file system and so a holder of its own, as if in a process of its own."""
    made: list[Cache] = []

    def make(fs: FileSystem | None = None, **more: Any) -> Cache:
        made.append(Cache(place, fs=fs or FileSystem(), **more))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
