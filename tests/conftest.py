"""Markers that ask for something of the machine; a skipped test says what was missing."""

from __future__ import annotations

import os

import pytest

from hosts import nshost


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip(f"needs root, and runs as user {os.geteuid()}")
    if item.get_closest_marker("hosts") and (reason := nshost.available()):
        pytest.skip(reason)
