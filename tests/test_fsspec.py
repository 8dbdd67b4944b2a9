"""`sccache::URL`, for programs that open files by fsspec."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import httpserver
from sccache_dtool.cache import Cache
from sccache_dtool.errors import FetchFailed, UsageError
from sccache_dtool.policy.rules import Rules

fsspec = pytest.importorskip("fsspec", reason="needs the extra `fsspec`")
pytest.importorskip("aiohttp", reason="needs the extra `fsspec`")

from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests  # noqa: E402

from sccache_dtool.fsspec_cache import SccacheFileSystem  # noqa: E402

BODY = b"a,b\n1,2\n3,4\n"


@pytest.fixture
def server() -> Iterator[httpserver.Server]:
    with httpserver.serve() as one:
        yield one


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cache that the environment names; each test has its own file systems, which fsspec keeps by their options."""
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(tmp_path / "cache"))
    SccacheFileSystem.clear_instance_cache()
    MemoryFileSystem.store.clear()
    return str(tmp_path / "cache")


@pytest.fixture
def cleaner(root: str) -> Iterator[Callable[[], int]]:
    """What another process's `clean --all` removes; returns how many copies."""

    def clean() -> int:
        cache = Cache(root)
        return len(cache.clean(Rules(everything=True), keep_for=0.0).removed)

    yield clean
    Cache(root).close()


def test_a_file_is_fetched_once_and_read_from_the_cache(root: str, server: httpserver.Server) -> None:
    """Every run of a program would download its input again."""
    url = server.page("/x.csv", BODY)
    for _ in range(3):
        with fsspec.open(f"sccache::{url}") as file:
            assert file.read() == BODY
    assert server.gets["/x.csv"] == 1


def test_a_copy_is_shared_with_the_command_line(root: str, server: httpserver.Server) -> None:
    """A file that `sc-dtool use` has fetched would be fetched once more for Python programs."""
    url = server.page("/x.csv", BODY)
    with Cache(root).use(url) as path, fsspec.open(f"sccache::{url}") as file:
        assert file.read() == path.read_bytes()
    assert server.gets["/x.csv"] == 1


def test_text(root: str, server: httpserver.Server) -> None:
    """`open(…, "r", encoding=…)` would give bytes, or the wrong characters."""
    url = server.page("/x.txt", "Grüße\r\n".encode("latin-1"))
    with fsspec.open(f"sccache::{url}", "r", encoding="latin-1") as file:
        assert file.read() == "Grüße\n"


def test_a_file_is_leased_while_it_is_open(root: str, server: httpserver.Server, cleaner: Callable[[], int]) -> None:
    """A cleaner could delete a file that a program reads."""
    url = server.page("/x.csv", BODY)
    with fsspec.open(f"sccache::{url}") as file:
        assert cleaner() == 0
        assert file.read() == BODY
    assert cleaner() == 1


def test_a_file_that_is_collected_is_released(root: str, server: httpserver.Server, cleaner: Callable[[], int]) -> None:
    """A file that a program forgot to close would stay in the cache until the program ends."""
    url = server.page("/x.csv", BODY)
    opened = [fsspec.open(f"sccache::{url}").open()]
    assert cleaner() == 0
    with pytest.warns(ResourceWarning):
        opened.clear()
    gc.collect()
    assert cleaner() == 1


def test_cat_reads_parts_as_slices_do(root: str, server: httpserver.Server) -> None:
    """A Parquet reader, which reads the end first, would get wrong bytes."""
    system, path = fsspec.url_to_fs(f"sccache::{server.page('/x.csv', BODY)}")
    assert system.cat(path) == BODY
    for start, end in [(2, 5), (-4, None), (None, -4), (-6, -2), (5, 2), (0, 1000), (1000, None)]:
        assert system.cat_file(path, start, end) == BODY[start:end]
    assert system.cat_ranges([path, path], [0, 4], [3, 7]) == [BODY[0:3], BODY[4:7]]
    assert system.head(path, 3) == BODY[:3]
    assert server.gets["/x.csv"] == 1


def test_get_copies_a_file(root: str, server: httpserver.Server, tmp_path: Path) -> None:
    """A copy for the user could be a link into the cache, or a second download."""
    system, path = fsspec.url_to_fs(f"sccache::{server.page('/x.csv', BODY)}")
    system.get(path, str(tmp_path / "mine"))
    assert (tmp_path / "mine").read_bytes() == BODY
    assert not (tmp_path / "mine").is_symlink()
    assert (tmp_path / "mine").stat().st_nlink == 1
    opened = io.BytesIO()
    system.get_file(path, opened)
    assert opened.getvalue() == BODY
    assert server.gets["/x.csv"] == 1


def test_size_and_existence_of_a_copy_cost_no_request(root: str, server: httpserver.Server) -> None:
    """A compute node without internet access could not open what is in the cache."""
    url = server.page("/x.csv", BODY)
    with fsspec.open(f"sccache::{url}"):
        pass
    system, path = fsspec.url_to_fs(f"sccache::{url}")
    server.page("/x.csv", status=503)
    assert system.info(path) == {"name": path, "size": len(BODY), "type": "file"}
    assert system.exists(path)
    assert system.isfile(path)
    assert system.size(path) == len(BODY)
    assert system.cat(path) == BODY
    assert sum(server.gets.values()) == 1
    assert not server.heads


def test_what_is_not_cached_is_asked_of_the_source(root: str) -> None:
    """A directory of files could not be listed, or a pattern not be expanded."""
    MemoryFileSystem().pipe({"/d/one.csv": b"1", "/d/two.csv": b"22"})
    system, _ = fsspec.url_to_fs("sccache::memory://d")
    assert [Path(name).name for name in system.ls("/d", detail=False)] == ["one.csv", "two.csv"]
    assert system.glob("/d/t*.csv") == ["/d/two.csv"]
    assert system.info("/d/two.csv")["size"] == 2
    assert system.isdir("/d")
    with fsspec.open_files("sccache::memory://d/*.csv") as files:
        assert [file.read() for file in files] == [b"1", b"22"]
    assert system.unstrip_protocol("/d/one.csv") == "sccache::memory:///d/one.csv"


def test_a_missing_file(root: str, server: httpserver.Server) -> None:
    """Zarr takes a chunk that is missing for an error, unless it is a FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        fsspec.open("sccache::memory://nothing").open()
    with pytest.raises(FileNotFoundError):
        fsspec.open(f"sccache::{server.page('/none', status=404)}").open()
    with pytest.raises(FetchFailed):
        fsspec.open(f"sccache::{server.page('/secret', status=403)}").open()


def test_nothing_is_written(root: str, tmp_path: Path) -> None:
    """What is written by way of the cache would leave an outdated copy in it for everybody."""
    system, _ = fsspec.url_to_fs(f"sccache::file://{tmp_path}/x")
    for change in (
        lambda: fsspec.open(f"sccache::file://{tmp_path}/x", "wb").open(),
        lambda: system.open(f"{tmp_path}/x", "ab"),
        lambda: system.pipe(f"{tmp_path}/x", b"1"),
        lambda: system.put(__file__, f"{tmp_path}/x"),
        lambda: system.rm(str(tmp_path)),
        lambda: system.mv(str(tmp_path), str(tmp_path / "y")),
        lambda: system.touch(f"{tmp_path}/x"),
        lambda: system.mkdir(f"{tmp_path}/d"),
        lambda: system.makedirs(f"{tmp_path}/d"),
    ):
        with pytest.raises(OSError, match="only reads"):
            change()
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "d").exists()


def test_digests_and_steps_are_options(root: str, server: httpserver.Server) -> None:
    """A program could not have its input checked, or unpacked once for everybody."""
    url = server.page("/x.csv.gz", gzip.compress(BODY))
    digest = hashlib.sha256(gzip.compress(BODY, mtime=0)).hexdigest()
    with pytest.raises(FetchFailed, match="sha256"):
        fsspec.open(f"sccache::{url}", sccache={"sha256": digest}).open()
    system, path = fsspec.url_to_fs(f"sccache::{url}", sccache={"steps": "gz"})
    assert system.info(path)["size"] == len(BODY)
    assert system.cat(path) == BODY
    with pytest.raises(UsageError):
        fsspec.open(f"sccache::{url}", sccache={"steps": "nonsense"})


def test_a_directory_cannot_be_opened(root: str, tmp_path: Path) -> None:
    """A program would get an error about the file system's own names."""
    (tmp_path / "d").mkdir()
    system, path = fsspec.url_to_fs(f"sccache::file://{tmp_path}/d")
    with pytest.raises(IsADirectoryError):
        system.cat_file(path)


def test_a_changed_source_is_fetched_again(root: str, server: httpserver.Server) -> None:
    """A program that asks for data of today would get that of last year."""
    url = server.page("/x.csv", BODY, etag='"1"')
    options: dict[str, Any] = {"sccache": {"max_age": 0}}
    with fsspec.open(f"sccache::{url}", **options) as file:
        assert file.read() == BODY
    server.page("/x.csv", b"new", etag='"2"')
    with fsspec.open(f"sccache::{url}") as file:
        assert file.read() == BODY
    with fsspec.open(f"sccache::{url}", **options) as file:
        assert file.read() == b"new"


def test_the_cache_is_named_by_an_option(root: str, server: httpserver.Server, tmp_path: Path) -> None:
    """Two projects with a cache each could not be used in one program."""
    url = server.page("/x.csv", BODY)
    with fsspec.open(f"sccache::{url}", sccache={"cache": str(tmp_path / "other")}) as file:
        assert file.read() == BODY
    assert len(list(Cache(tmp_path / "other").items())) == 1
    assert not Path(root).exists()


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """A store whose data depends on an option."""

    protocol = "bucket"
    cachable = False
    _strip_protocol = classmethod(fsspec.AbstractFileSystem._strip_protocol.__func__)

    def __init__(self, endpoint: str = "", secret: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.endpoint = endpoint
        self.secret = secret

    def info(self, path: str, **kwargs: Any) -> Any:
        return {**super().info(f"{self.endpoint}{path}"), "name": path}

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super()._open(f"{self.endpoint}{path}", *args, **kwargs)


def test_options_that_mean_other_data_make_another_item(root: str) -> None:
    """A file of one server could be taken for that of the same name of another server."""
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    MemoryFileSystem().pipe({"/one/x": b"1", "/two/x": b"2"})

    def read(endpoint: str, secret: str) -> bytes:
        url = "sccache::bucket:///x"
        with fsspec.open(url, bucket={"endpoint": endpoint, "secret": secret}) as file:
            data: bytes = file.read()
            return data

    assert read("/one", "pw-of-ada") == b"1"
    assert read("/two", "pw-of-ada") == b"2"
    assert read("/one", "pw-of-bob") == b"1"
    assert len(list(Cache(root).items())) == 2
    stored = subprocess.run(["grep", "-r", "pw-of-", root], capture_output=True, check=False)
    assert stored.stdout == b""


def test_it_can_be_pickled(root: str, server: httpserver.Server) -> None:
    """Dask could not send a task that reads to another process."""
    system, path = fsspec.url_to_fs(f"sccache::{server.page('/x.csv', BODY)}")
    assert pickle.loads(pickle.dumps(system)).cat(path) == BODY
    opened = pickle.loads(pickle.dumps(fsspec.open(f"sccache::{server.url('/x.csv')}")))
    with opened as file:
        assert file.read() == BODY
    assert server.gets["/x.csv"] == 1


def _read(system: Any, path: str, start: Any, answers: Any) -> None:
    start.wait()
    answers.put(hashlib.sha256(system.cat(path)).hexdigest())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_begin_at_once_download_once(root: str, server: httpserver.Server, method: str) -> None:
    """Workers of one program would get torn files of each other, or download the same file many times."""
    body = bytes(range(256)) * 4096
    system, path = fsspec.url_to_fs(f"sccache::{server.page('/big', body)}")
    context = multiprocessing.get_context(method)
    number = 6 if method == "fork" else 2
    start, answers = context.Barrier(number), context.Queue()
    workers = [context.Process(target=_read, args=(system, path, start, answers)) for _ in range(number)]
    for worker in workers:
        worker.start()
    read = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert set(read) == {hashlib.sha256(body).hexdigest()}
    assert server.gets["/big"] == 1


def test_a_child_does_not_release_what_its_parent_has_open(
    root: str, server: httpserver.Server, cleaner: Callable[[], int]
) -> None:
    """A worker that inherits an open file and ends would let a cleaner delete it under its parent."""
    with fsspec.open(f"sccache::{server.page('/x.csv', BODY)}") as file:
        child = multiprocessing.get_context("fork").Process(target=file.close)
        child.start()
        child.join()
        assert cleaner() == 0
        assert file.read() == BODY


def test_a_path_without_its_lease_is_not_given(root: str, tmp_path: Path) -> None:
    """Fsspec's `open_local` closes the file before it gives its path: that could be deleted at any time."""
    (tmp_path / "x").write_bytes(BODY)
    with pytest.raises(ValueError, match="local_file"):
        fsspec.open_local(f"sccache::file://{tmp_path}/x")
    system, path = fsspec.url_to_fs(f"sccache::file://{tmp_path}/x")
    with system.lease(path) as copy:
        assert copy.read_bytes() == BODY


def test_a_url_of_no_other_file_system(root: str) -> None:
    """`sccache://x` would fail with an error about fsspec's inside."""
    with pytest.raises(UsageError, match="one other file system"):
        SccacheFileSystem()


@pytest.mark.parametrize("package", ["pandas", "xarray", "zarr", "dask.bytes"])
def test_programs_read_with_no_further_line_of_code(package: str, root: str, tmp_path: Path) -> None:
    """A library that a user expects to work fails, or reads past the cache."""
    library = pytest.importorskip(package, reason=f"{package} is not installed")
    program = {
        "pandas": "import pandas as l; l.DataFrame({'a': [1, 2]}).to_parquet('x'); r = l.read_parquet(u + 'x').a.sum()",
        "xarray": "import xarray as l; l.Dataset({'a': ('n', [1, 2])}).to_zarr('x'); "
        "r = int(l.open_zarr(u + 'x').a.sum())",
        "zarr": "import zarr as l, numpy; l.save('x', numpy.array([1, 2])); r = l.open(u + 'x', mode='r')[:].sum()",
        "dask.bytes": "import dask, dask.bytes as l; open('x', 'wb').write(b'12'); "
        "r = sum(int(chr(c)) for c in dask.compute(*l.read_bytes(u + 'x')[1][0], scheduler='processes')[0])",
    }[package]
    code = f"if __name__ == '__main__':\n    u = 'sccache::file://{tmp_path}/'\n    {program}\n    print('is', r)"
    (tmp_path / "program.py").write_text(code)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.stdout.splitlines()[-1:] == ["is 3"], ran.stderr + str(library)
    assert list(Cache(root).items())


# -- fsspec's own tests ------------------------------------------------------------------------------------------------


class Writable(SccacheFileSystem):
    """fsspec's tests make their files by way of the file system that they test; here they are made in the other one."""

    cachable = False

    def __getattribute__(self, name: str) -> Any:
        if name in {"pipe", "pipe_file", "touch", "mkdir", "makedirs", "rm", "put"}:
            return getattr(super().__getattribute__("fs"), name)
        return super().__getattribute__(name)


class _Fixtures(AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture
    def fs(self, root: str) -> Any:
        return Writable(fs=MemoryFileSystem(), max_age=0)

    @pytest.fixture
    def fs_path(self) -> str:
        return ""

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)


class TestGet(_Fixtures, AbstractGetTests):  # type: ignore[misc]
    """All of fsspec's tests of `get`."""
