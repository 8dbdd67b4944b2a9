"""Compressed objects: whatever is compressed, and by whom, ids, sizes and bytes are those of the content."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import httpserver
from faults import Counting, FakeClock
from fetch import servers
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, FetchFailed, NoSpace
from sccache_dtool.fetch import decompress
from sccache_dtool.fetch.objects import object_name
from sccache_dtool.markers import orphans
from sccache_dtool.policy.rules import Rules

ALL = Rules(everything=True)
ZSTD = import_module(decompress.MODULES["zst"])
SETTINGS = ["never", "archive", "both"]
TEXT = b"".join(b"line %d\n" % number for number in range(400_000))


def zipped(content: bytes, method: int) -> bytes:
    """A zip file with one member."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr("data", content)
    return file.getvalue()


MAKE: dict[str, Callable[[bytes], bytes]] = {
    "zst": ZSTD.compress,
    "gz": gzip.compress,
    "zip": lambda content: zipped(content, zipfile.ZIP_DEFLATED),
}


def digits_of(content: bytes) -> str:
    """The digest of an object."""
    return hashlib.sha256(content).hexdigest()


def put(cache: Cache, content: bytes, form: str, stored: bytes) -> str:
    """Place an object in the archive as somebody else may have done; its id."""
    path = Path(cache.archive.url, object_name(digits_of(content), form))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(stored)
    return f"sha256:{digits_of(content)}"


def stored(cache: Cache) -> list[Path]:
    """The files of all objects in the archive."""
    return sorted(path for path in Path(cache.archive.url, "objects").rglob("*") if path.is_file())


def copies(cache: Cache) -> dict[str, int]:
    """The names of the items that have copies, and their bytes."""
    return {item.label: item.bytes for item in cache.items() if item.copies}


def changed(cache: Cache, make_cache: Callable[..., Cache], configure: Callable[..., None], **settings: str) -> Cache:
    """The same cache after its settings were changed."""
    cache.close()
    configure(**settings)
    return make_cache()


@pytest.mark.parametrize("content", [b"", b"0123456789", TEXT], ids=["empty", "short", "long"])
@pytest.mark.parametrize("compress", SETTINGS)
def test_everything_is_that_of_the_content(
    with_archive: Callable[..., Cache], data: Path, compress: str, content: bytes
) -> None:
    """A program would read compressed bytes, or be told the size of a compressed file."""
    cache = with_archive(compress=f'"{compress}"')
    (data / "file").write_bytes(content)
    marker = cache.save(data / "file")
    assert (marker.sha256, marker.bytes) == (digits_of(content), len(content))
    archive = cache.archive
    assert archive.size(marker.sha256) == len(content)
    assert [record.bytes for record in archive.entries()] == [len(content)]
    assert list(archive.objects()) == [marker.sha256]
    assert list(archive.verify(archive.objects())) == []
    (path,) = stored(cache)
    assert (path.suffix == ".zst") == (compress != "never")
    (label,) = copies(cache)
    assert label.endswith(".zst") == (compress == "both")
    for _ in range(2):  # from what `save` has left, and then from the archive
        with cache.open(f"sha256:{marker.sha256}", "rb") as file:
            assert file.read() == content
            assert file.seek(-min(5, len(content)), os.SEEK_END) == max(0, len(content) - 5)
            assert file.read() == content[-5:]
            file.seek(3)
            assert file.read(4) == content[3:7]
        with cache.open(data / "file.marker", "rb", offset=7) as file:
            assert file.read() == content[7:]
        cache.files.copy_out(marker, str(data / "got"), replace=True)
        assert (data / "got").read_bytes() == content
        cache.clean(ALL)
    with cache.use(f"sha256:{marker.sha256}") as used:  # a path: any program can read it
        assert used.read_bytes() == content
    assert len(TEXT) // 2 > path.stat().st_size or compress == "never" or content is not TEXT


@pytest.mark.parametrize("compress", SETTINGS)
@pytest.mark.parametrize("form", [*MAKE, "zip, not compressed"])
def test_each_kind_of_file_is_read_whatever_the_setting(
    with_archive: Callable[..., Cache], data: Path, compress: str, form: str
) -> None:
    """An archive that somebody filled with other settings or other tools could not be read."""
    cache = with_archive(compress=f'"{compress}"')
    file = zipped(TEXT, zipfile.ZIP_STORED) if "," in form else MAKE[form](TEXT)
    id = put(cache, TEXT, form[:3], file)
    archive = cache.archive
    assert archive.size(id[7:]) == len(TEXT)  # nobody has recorded it
    assert b"".join(archive.pieces(id[7:])) == TEXT
    assert [one.bytes for one in archive.entries()] == [len(TEXT)]
    with cache.open(id, "rb", offset=10) as opened:
        assert opened.read() == TEXT[10:]
    with cache.use(id) as path:
        assert path.read_bytes() == TEXT
    (data / "file").write_bytes(TEXT)
    assert cache.add(data / "file") == id
    assert len(stored(cache)) == 1


def test_a_changed_setting_leaves_nothing_unreadable(
    with_archive: Callable[..., Cache],
    make_cache: Callable[..., Cache],
    configure: Callable[..., None],
    data: Path,
    archive_path: Path,
) -> None:
    """What is in the cache would have to be fetched again, or could not be, after somebody edited config.toml."""
    cache = with_archive(compress='"both"')
    marker = cache.save(data / "data.csv")
    archive_path.rename(archive_path.with_name("away"))
    for compress in SETTINGS:
        cache = changed(cache, make_cache, configure, compress=f'"{compress}"')
        with cache.open(data / "data.csv.marker") as file:
            assert file.read() == "0123456789"
        cache.files.copy_out(marker, str(data / compress), replace=False)
    archive_path.with_name("away").rename(archive_path)
    for compress in SETTINGS:
        cache = changed(cache, make_cache, configure, compress=f'"{compress}"')
        cache.clean(ALL)
        assert cache.add(data / "data.csv") == f"sha256:{marker.sha256}"
        assert len(stored(cache)) == 1


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda file: file[: len(file) // 2],
    "empty": lambda file: b"",
    "garbage": lambda file: b"garbage" * 1000,
    "flipped": lambda file: file[:-100] + bytes([file[-100] ^ 1]) + file[-99:],
}


@pytest.mark.parametrize("form", MAKE)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_damaged_file_is_named_and_never_published(
    with_archive: Callable[..., Cache], data: Path, form: str, wrong: str
) -> None:
    """A job would read the beginning of a file, or a file would be taken for archived that is lost."""
    cache = with_archive(compress='"both"')
    content = os.urandom(1_000_000)
    id = put(cache, content, form, WRONG[wrong](MAKE[form](content)))
    (data / "file").write_bytes(content)
    target = str(data / "got")
    marker = cache.files.marker_of(id)
    actions: list[Callable[[], Any]] = [
        lambda: cache.use(id),
        lambda: cache.open(id),
        lambda: cache.add(data / "file"),
        lambda: cache.files.copy_out(marker, target, replace=False),
        lambda: cache.files.copy_out(marker._replace(bytes=len(content)), target, replace=False),
    ]
    for act in actions:
        with pytest.raises(FetchFailed, match="damaged") as caught:
            act()
        assert id in caught.value.message
        assert f".{form}" in caught.value.details[0]
    assert copies(cache) == {}
    assert not os.path.exists(target)
    assert len(list(cache.archive.verify(cache.archive.objects()))) == 1
    assert list(cache.archive.records()) == []


@pytest.mark.parametrize("form", MAKE)
def test_a_small_file_cannot_fill_the_disk(
    with_archive: Callable[..., Cache], make_cache: Callable[..., Cache], data: Path, form: str
) -> None:
    """A file of some kB whose content is endless would fill the cache before its digest shows that it is wrong."""
    cache = with_archive(compress='"archive"')
    id = cache.files.add(str(data / "data.csv"), archive_only=True)
    (path,) = stored(cache)
    path.unlink()
    put(cache, b"0123456789", form, MAKE[form](bytes(50_000_000)))
    fs = Counting()
    counted = make_cache(fs=fs)
    with pytest.raises(FetchFailed, match="damaged"):
        counted.use(id)
    made = [os.path.basename(call.path) for call in fs.calls if call.kind == "create" and "/work/" in call.path]
    assert made == [f"0.{form}"]  # the file of the archive, and no file for its content
    received: list[bytes] = []
    with pytest.raises(FetchFailed, match="damaged") as caught:
        received.extend(cache.archive.pieces(id[7:]))
    assert sum(map(len, received)) <= 10  # as the record says
    assert "more than 10 bytes" in caught.value.details[0]


def test_the_limit_counts_what_the_copies_take_up(with_archive: Callable[..., Cache], data: Path) -> None:
    """A cache of compressed copies would hold no more than one of others, or more than its limit."""
    cache = with_archive(compress='"both"', limit='"100kB"')
    (data / "large").write_bytes(bytes(1_000_000))
    id = cache.add(data / "large")
    ((label, size),) = copies(cache).items()
    assert label == f"sha256-{id[7:15]}.zst"
    assert size < 100_000
    before = stored(cache)
    (data / "other").write_bytes(os.urandom(200_000))
    with pytest.raises(NoSpace, match="limit"):
        cache.add(data / "other")
    assert (stored(cache), list(copies(cache))) == (before, [label])
    with pytest.raises(NoSpace):  # the content itself is too large
        cache.use(id)
    (data / "second").write_bytes(os.urandom(99_990))
    cache.add(data / "second")
    assert label not in copies(cache)  # the least recently used one made room


def test_a_compressed_copy_that_rots_is_found(with_archive: Callable[..., Cache], data: Path) -> None:
    """`doctor` would take each compressed copy for damaged, or none."""
    cache = with_archive(compress='"both"')
    (data / "file").write_bytes(TEXT)
    id = cache.add(data / "file")
    assert cache.verify_content().bad == ()
    compressed = cache.use(f"sha256.zst:{id[7:]}")
    path = compressed.place.payload
    compressed.release()
    good = Path(path).read_bytes()
    os.chmod(path, 0o644)
    Path(path).write_bytes(good[:-1000] + bytes(1000))
    with pytest.raises(CacheError, match="is damaged"), cache.open(id, "rb") as file:
        file.read()
    assert len(cache.verify_content().bad) == 1


def test_later_push_orphans_and_adopt_know_compressed_objects(
    with_archive: Callable[..., Cache], data: Path, archive_path: Path, clock: FakeClock
) -> None:
    """An object would be archived uncompressed, not be found, or come back compressed under its plain name."""
    cache = with_archive(compress='"both"')
    archive_path.rename(archive_path.with_name("away"))
    id = cache.files.add(str(data / "data.csv"), later=True)
    with cache.open(id) as file:
        assert file.read() == "0123456789"
    archive_path.with_name("away").rename(archive_path)
    assert list(cache.files.push()) == [(id, None)]
    (path,) = stored(cache)
    assert path.suffix == ".zst"
    clock.let_pass(8 * 86400)
    put(cache, b"0123456789", "gz", gzip.compress(b"0123456789"))
    assert list(orphans.find(cache.archive, set())) == [(id[7:], 10)]
    assert orphans.remove(cache.archive, id[7:])
    assert stored(cache) == []
    assert not cache.archive.has(id[7:])
    md5 = hashlib.md5(b"old", usedforsecurity=False).hexdigest()
    (data / f"{md5}.cache").write_bytes(b"old")
    (data / "index.csv").write_text(f"{md5},2024-01-01:00:00:00\n")
    (adopted,) = cache.files.adopt(str(data / "index.csv"))
    assert adopted.identifier == f"sha256:{digits_of(b'old')}"
    with cache.open(f"md5:{md5}") as file:
        assert file.read() == "old"


def test_appended_parts_may_be_compressed(with_archive: Callable[..., Cache], data: Path) -> None:
    """An offset behind the first part would be counted in compressed bytes."""
    cache = with_archive(compress='"both"')
    cache.save(data / "data.csv")
    for number in range(3):
        (data / "more").write_bytes(b"abcde" * (number + 1))
        cache.files.append(str(data / "data.csv"), str(data / "more"))
    whole = b"0123456789" + b"abcde" * 6
    for offset in range(len(whole) + 2):
        with cache.open(data / "data.csv.marker", "rb", offset=offset) as file:
            assert file.read() == whole[offset:]
    with cache.open(data / "data.csv.marker", "rb") as file:
        assert file.seek(-7, os.SEEK_END) == len(whole) - 7
        assert file.read() == whole[-7:]


def test_a_wrong_setting_is_refused(with_archive: Callable[..., Cache], data: Path) -> None:
    """A typing error would leave everything uncompressed, or be found after a night of uploads."""
    with pytest.raises(CacheError, match="compress"):
        with_archive(compress='"zip"')


@pytest.mark.parametrize("kind", ["s3", "webdav"])
def test_a_store_has_compressed_objects(
    layout: Layout,
    tmp_path: Path,
    data: Path,
    make_cache: Callable[..., Cache],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Only archives in directories could be compressed."""
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {servers.USER} password {servers.PASSWORD}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    shown = tmp_path / "shown"
    shown.mkdir()
    with servers.ALL[kind](shown) as base:
        url = base.replace(base.partition("//")[2].rpartition("@")[0] + "@", "")
        Path(layout.config_file).write_text(f'[archive]\nurl = "{url}/archive"\ncompress = "archive"\n')
        cache = make_cache()
        cache.archive.init()
        (data / "file").write_bytes(TEXT)
        id = cache.add(data / "file")
        assert cache.add(data / "file") == id
        archive = cache.archive
        assert list(archive.objects()) == [id[7:]]
        assert (archive.size(id[7:]), archive.form_of(id[7:])) == (len(TEXT), "zst")
        assert list(archive.verify(archive.objects())) == []
        cache.clean(ALL)
        with cache.use(id) as path:
            assert path.read_bytes() == TEXT


def test_a_web_server_shows_compressed_objects(
    archived: Cache, layout: Layout, make_cache: Callable[..., Cache], archive_path: Path
) -> None:
    """A site that compresses its archive could not show it to others."""
    digits = digits_of(TEXT)
    with httpserver.serve() as server:
        url = server.page(f"/{object_name(digits, 'gz')}", gzip.compress(TEXT))
        Path(layout.config_file).write_text(f'[archive]\nurl = "{url.partition("/objects/")[0]}"\n')
        shutil.rmtree(archive_path)
        reader = make_cache()
        with reader.use(f"sha256:{digits}") as path:
            assert path.read_bytes() == TEXT
        with pytest.raises(FetchFailed):
            reader.use(f"sha256:{'0' * 64}")
