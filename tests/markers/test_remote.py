"""Archives that are not directories, each behind a real server."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import httpserver
from fetch import servers
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import FetchFailed, UsageError
from sccache_dtool.markers import index
from sccache_dtool.policy.rules import Rules


@pytest.fixture(autouse=True)
def _credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the WebDAV server asks for: passwords are refused in config.toml, which all users can read."""
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {servers.USER} password {servers.PASSWORD}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def configure(layout: Layout, url: str) -> None:
    """Name the archive in the settings."""
    url = re.sub("//.*@", "//", url)
    Path(layout.config_file).write_text(f'[archive]\nurl = "{url}"\n')


@pytest.fixture(params=["s3", "webdav"])
def remote(
    request: pytest.FixtureRequest, layout: Layout, tmp_path: Path, make_cache: Callable[..., Cache]
) -> Iterator[tuple[Cache, Path]]:
    """A cache whose archive is behind a server, and the directory that a WebDAV server shows."""
    shown = tmp_path / "shown"
    shown.mkdir()
    with servers.ALL[request.param](shown) as base:
        configure(layout, f"{base}/archive")
        yield make_cache(), shown


def test_files_are_added_listed_and_read(remote: tuple[Cache, Path], data: Path) -> None:
    """A file would be archived in one kind of archive, and not in another."""
    cache, _ = remote
    with pytest.raises(FetchFailed, match="there is no archive"):
        cache.add(data / "data.csv")
    assert cache.archive.init()
    assert not cache.archive.init()
    marker = cache.save(data / "data.csv", comment="first")
    assert cache.add(data / "data.csv") == f"sha256:{marker.sha256}"
    archive = cache.archive
    assert list(archive.objects()) == list(archive.known()) == [marker.sha256]
    assert sorted(archive.details(record).comment for record in archive.records()) == ["", "first"]
    assert list(archive.verify(archive.objects())) == []
    cache.clean(Rules(everything=True))
    with cache.open(data / "data.csv.marker") as file:
        assert file.read() == "0123456789"
    assert len(list(index.entries(archive))) == 2
    assert archive.size("0" * 64) is None
    with pytest.raises(FetchFailed):
        cache.use(f"sha256:{'0' * 64}")


def test_a_damaged_object_is_never_published(
    layout: Layout, tmp_path: Path, data: Path, make_cache: Callable[..., Cache]
) -> None:
    """A server that sends other bytes would be believed."""
    shown = tmp_path / "shown"
    shown.mkdir()
    with servers.ALL["webdav"](shown) as base:
        configure(layout, f"{base}/archive")
        cache = make_cache()
        cache.archive.init()
        id = cache.files.add(str(data / "data.csv"), archive_only=True)
        (path,) = (path for path in shown.rglob("*") if path.name == id[9:])
        path.write_bytes(b"012345678X")
        with pytest.raises(FetchFailed, match="damaged") as caught:
            cache.use(id)
        assert servers.PASSWORD not in str(caught.value.details)
        with pytest.raises(FetchFailed, match="damaged"):
            cache.add(data / "data.csv")
        assert not [item for item in cache.items() if item.copies]


def test_an_archive_on_a_web_server_is_read(
    archived: Cache, layout: Layout, data: Path, archive_path: Path, make_cache: Callable[..., Cache]
) -> None:
    """Another site could not use what this one shows."""
    id = archived.files.add(str(data / "data.csv"), archive_only=True)
    path = archived.archive.path_of(id[7:])
    with httpserver.serve() as server:
        url = server.page(f"/{Path(path).relative_to(archive_path)}", b"0123456789")
        configure(layout, url.partition("/objects/")[0])
        shutil.rmtree(archive_path)
        reader = make_cache()
        with reader.use(id) as got:
            assert got.read_bytes() == b"0123456789"
        assert b"".join(reader.archive.pieces(id[7:])) == b"0123456789"
        with pytest.raises(UsageError, match="can only be read"):
            reader.add(data / "data.csv")
        other = hashlib.sha256(b"other").hexdigest()
        with pytest.raises(FetchFailed):
            reader.use(f"sha256:{other}")
