"""One laboratory for all tests that only use it, and another for each that needs one of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nfs import kernels
from nfs import lab as laboratory
from nfs.kernels import DoesNotBootError
from nfs.lab import Lab

#: NFS=full (`make test-nfs`): every version of the protocol and long storms; else the oldest, beside what tests name.
FULL = os.environ.get("NFS") == "full"
VERSIONS = ("3", "4.0", "4.2") if FULL else ("3",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "version" in metafunc.fixturenames and not any("version" in names for names in given):
        metafunc.parametrize("version", VERSIONS)


@pytest.fixture(autouse=True, scope="session")
def _needs(note: Callable[[str], None]) -> None:
    reason = laboratory.lacking()
    if reason is None:
        try:
            note(f"NFS laboratory: {kernels.choose().described}")
            return
        except DoesNotBootError as error:
            reason = f"no User-Mode Linux boots: {error}"
    note(f"NFS laboratory: none, its tests are skipped: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _shared_lab(_needs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab | DoesNotBootError]:
    clients = "abc" if FULL else "ab"
    with ExitStack() as stack:
        try:
            yield stack.enter_context(Lab(tmp_path_factory.mktemp("nfs"), clients, skew={"b": 3600, "c": -3600}))
        except DoesNotBootError as error:
            yield error


@pytest.fixture
def lab(_shared_lab: Lab | DoesNotBootError) -> Lab:
    """A server `s` and the clients `a`, `b`, whose clock is an hour ahead, and, at full length, `c`, an hour behind.

    If they do not come up, one test fails, and the others are skipped.
    """
    if isinstance(_shared_lab, Lab):
        return _shared_lab
    if not _told:
        _told.append(_shared_lab)
        raise _shared_lab
    pytest.skip(f"the laboratory is not up: {_shared_lab}")


#: Why the laboratory is not up, once a test has failed because of it.
_told: list[DoesNotBootError] = []


@pytest.fixture
def mounted(lab: Lab, version: str) -> Iterator[Lab]:
    """The laboratory, with an empty export mounted by all clients."""
    with lab.mounted(version):
        yield lab


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A file that all hosts see at the same path."""
    path = tmp_path / "source.bin"
    path.write_bytes(b"data")
    return str(path)


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Makes laboratories that end with the test."""
    with ExitStack() as stack:

        def make(**more: Any) -> Lab:
            return stack.enter_context(Lab(tmp_path, **more))

        yield make
