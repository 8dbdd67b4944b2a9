"""Fetching without a cache around it."""

from __future__ import annotations

import os

import pytest

from faults import FakeClock, request_for, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.run import fetch


@pytest.fixture
def get(tmp_path):
    """Fetches what the words mean; the content."""
    count = iter(range(100))

    def run(*words):
        area = tmp_path / f"area-{next(count)}"
        area.mkdir()
        store = store_of(FileSystem(), None, clock=FakeClock())
        fetched = fetch(store, request_for(words), str(area), progress=NoProgress())
        assert os.listdir(area) == ["payload"]
        return (area / "payload" / fetched.name).read_bytes()

    return run
