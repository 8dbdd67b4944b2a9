"""What takes up no room at a source on this host takes up none in the cache."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import FakeClock, request_for, store_of
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.fetch import dtool_source, sources
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.run import fetch
from sccache_dtool.fetch.stack import parse_stack

MIB = 1 << 20


def blocks(path: str | Path) -> int:
    """Bytes that a file takes up."""
    return os.stat(path).st_blocks * 512


def make(path: Path, size: int, *parts: tuple[int, bytes]) -> Path:
    """A file of holes with something in some places."""
    with open(path, "wb") as file:
        for at, data in parts:
            file.seek(at)
            file.write(data)
        file.truncate(size)
        os.fsync(file.fileno())
    if blocks(path) >= size:
        pytest.skip(f"the file system of {path} keeps no holes")
    return path


SHAPES = {
    "nothing but a hole": ((), 64 * MIB),
    "a hole first": (((63 * MIB, b"x" * MIB),), 64 * MIB),
    "a hole last": (((0, b"x" * MIB),), 64 * MIB),
    "holes between": (((0, b"a" * 4096), (20 * MIB + 5, b"b"), (40 * MIB, b"c" * 70_000)), 64 * MIB + 3),
}


class Told(NoProgress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.bytes = 0

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        self.total = total

    def advance(self, n: int) -> None:
        self.bytes += n


def copied(tmp_path: Path, source: Path, *steps: str, fs: FileSystem | None = None) -> tuple[Path, Told]:
    area, told = tmp_path / "area", Told()
    area.mkdir()
    store = store_of(fs or FileSystem(), None, clock=FakeClock())
    fetched = fetch(store, request_for([str(source), *steps]), str(area), progress=told)
    return area / "payload" / fetched.name, told


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("digest", [False, True])
def test_holes_stay_holes(tmp_path: Path, shape: str, digest: bool) -> None:
    """An image of a disk that takes up a hundredth of its length would fill the cache."""
    parts, size = SHAPES[shape]
    source = make(tmp_path / "image", size, *parts)
    content = source.read_bytes()
    steps = [f"sha256:{hashlib.sha256(content).hexdigest()}"] if digest else []
    payload, told = copied(tmp_path, source, *steps)
    assert payload.read_bytes() == content
    assert blocks(payload) <= blocks(source) + MIB
    assert told.bytes == told.total  # a bar that ends at its end
    assert told.bytes < size


def test_holes_stay_holes_in_a_directory(tmp_path: Path) -> None:
    """Only a file that is given by itself would be copied with care."""
    (tmp_path / "tree").mkdir()
    source = make(tmp_path / "tree" / "image", 64 * MIB, (MIB, b"x"))
    payload, _ = copied(tmp_path, tmp_path / "tree")
    assert (payload / "image").read_bytes() == source.read_bytes()
    assert blocks(payload / "image") < MIB


def test_where_nobody_says_where_holes_are_zeros_become_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an older NFS the same image would be written out in full."""
    source = make(tmp_path / "image", 64 * MIB, (20 * MIB, b"x"), (40 * MIB, b"y" * MIB))
    really_seek = os.lseek

    def seek(fd: int, offset: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_seek(fd, offset, how)

    monkeypatch.setattr(os, "lseek", seek)
    payload, told = copied(tmp_path, source)
    assert payload.read_bytes() == source.read_bytes()
    assert blocks(payload) <= 4 * MIB
    assert told.bytes == told.total


def test_room_is_wanted_for_what_is_no_hole(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    """An image that is longer than the disk, and takes up a block of it, would be refused for want of room."""
    size = 2 * FileSystem().free_space(str(tmp_path)) + (1 << 30)
    try:
        source = make(tmp_path / "image", size, (1 << 20, b"x"))
    except OSError as error:
        pytest.skip(f"no file of {size} bytes here: {error.strerror}")
    lease = make_cache().use(source)
    assert os.stat(lease).st_size == size
    (chain,) = parse_stack([str(source)]).chains
    announced = sources.announced(chain.mirrors)
    assert announced is not None
    assert 0 < announced < MIB


def test_blocks_are_shared_where_they_can_be(tmp_path: Path) -> None:
    """On a file system that clones files, a copy would take time and room."""

    class Cloning(FileSystem):
        cloned = 0

        def clone(self, source: int, target: int) -> bool:
            self.cloned += 1
            os.sendfile(target, source, 0, os.fstat(source).st_size)
            return True

    fs = Cloning()
    source = tmp_path / "file"
    source.write_bytes(b"x" * 100_000)
    payload, told = copied(tmp_path, source, fs=fs)
    assert payload.read_bytes() == source.read_bytes()
    assert (fs.cloned, told.bytes) == (1, 100_000)


def test_what_cannot_be_cloned_is_copied(tmp_path: Path) -> None:
    """A refusal of the file system to share blocks would end the fetch, or leave a file empty."""
    (tmp_path / "a").write_bytes(b"x")
    reading = os.open(tmp_path / "a", os.O_RDONLY)
    writing = os.open("/dev/null", os.O_WRONLY)
    try:
        assert FileSystem().clone(reading, writing) is False
    finally:
        os.close(reading)
        os.close(writing)


def test_items_of_datasets_keep_their_holes(tmp_path: Path) -> None:
    """Data that dtool has on this host would take up more in the cache than where it is."""
    source = make(tmp_path / "image", 64 * MIB, (20 * MIB, b"x"))
    fs = FileSystem()
    fd = fs.open(str(source))
    try:
        dtool_source._copy(fs, fd, str(tmp_path / "copy"))
    finally:
        fs.close(fd)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert blocks(tmp_path / "copy") < MIB
