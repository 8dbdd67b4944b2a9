"""zip, gz, bz2, xz, zst: all of what the file holds and nothing outside, or an error."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import os
import stat
import sys
import warnings
import zipfile

import pytest

from faults import FakeClock, request_for, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.run import fetch

BODY = os.urandom(300_000) + bytes(3_000_000)


def _zst(data):
    return importlib.import_module(ZSTD).compress(data)


ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
try:
    importlib.import_module(ZSTD)
    no_zstd = False
except ImportError:
    no_zstd = True
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": _zst}
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(kind == "zst" and no_zstd, reason=f"{ZSTD} is not installed"))
    for kind in PACK
]


@pytest.fixture
def get(tmp_path):
    """Fetches a file with this content and does a step with it; the payload."""

    def run(data, step):
        (tmp_path / f"x.{step}").write_bytes(data)
        area = tmp_path / "work" / "area"
        area.mkdir(parents=True)
        words = [f"{tmp_path}/x.{step}", step]
        store = store_of(FileSystem(), None, clock=FakeClock())
        fetched = fetch(store, request_for(words), str(area), progress=NoProgress())
        assert os.listdir(area) == ["payload"]
        assert fetched.name == "x"
        return area / "payload" / "x"

    return run


@pytest.fixture
def refused(tmp_path, get):
    """The error of a file that must be refused; nothing of it is left but in the work area."""

    def run(data, step):
        with pytest.raises(FetchFailed) as caught:
            get(data, step)
        assert caught.value.message.isprintable()
        assert f"file:{tmp_path}/x.{step}" in caught.value.message
        assert os.listdir(tmp_path / "work" / "area" / "payload") == []
        assert sorted(os.listdir(tmp_path)) == ["work", f"x.{step}"]
        return caught.value.message

    return run


# -- one file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_file_is_decompressed(get, kind):
    """Programs that read plain files could not use what is distributed compressed."""
    assert get(PACK[kind](BODY), kind).read_bytes() == BODY


@pytest.mark.parametrize("kind", KINDS)
def test_streams_in_a_row_are_one_file(get, kind):
    """Files of sequencers are many streams, one after the other; all but the first would be lost."""
    assert get(PACK[kind](BODY) + PACK[kind](b"more") + PACK[kind](b""), kind).read_bytes() == BODY + b"more"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["in the middle", "at the end", "after the first", "nothing"])
def test_a_file_that_was_cut_is_refused(refused, kind, where):
    """Half a file would be taken for all of it."""
    whole = PACK[kind](BODY)
    cut = {
        "in the middle": whole[: len(whole) // 2],
        "at the end": whole[:-1],
        "after the first": whole + whole[:-3],
        "nothing": b"",
    }[where]
    assert f"with {kind}" in refused(cut, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_refused(refused, kind):
    """A page that says sorry would become an empty file."""
    assert f"cannot decompress file:" in refused(b"<html>sorry</html>" * 100, kind)  # noqa: F541


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_damage_in_the_middle_is_refused(refused, kind):
    """A checksum stands at the end of each stream, and would not be read."""
    whole = bytearray(PACK[kind](BODY))
    whole[len(whole) // 3] ^= 0xFF
    refused(bytes(whole), kind)


def test_zeros_at_the_end_of_a_gzip_are_padding(get):
    """Files that were on a tape end with zeros."""
    assert get(gzip.compress(BODY) + bytes(2_000_000), "gz").read_bytes() == BODY


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_takes_little_memory(get, kind, monkeypatch):
    """A file of a few bytes that becomes gigabytes would kill the job, before the disk is full."""
    largest = 0
    original = FileSystem.write

    def write(self, fd, data):
        nonlocal largest
        largest = max(largest, len(data))
        original(self, fd, data)

    monkeypatch.setattr(FileSystem, "write", write)
    assert get(PACK[kind](bytes(64 << 20)), kind).stat().st_size == 64 << 20
    assert largest <= 48 << 20


def test_zst_without_its_package_says_what_to_install(get, monkeypatch):
    """Who lacks the package would see an ImportError."""
    for name in ("backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FetchFailed, match="zstd is not installed") as caught:
        get(b"x", "zst")
    assert "compression.zstd" in caught.value.hint or "pip install backports.zstd" in caught.value.hint


# -- zip ---------------------------------------------------------------------------------------------------------------


def zipped(*members, **how):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **how) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for member, data in members:
            archive.writestr(member, data)
    return out.getvalue()


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def test_a_zip_is_unpacked(get):
    """Data that is distributed as a zip could not be used."""
    program = special("bin/run", stat.S_IFREG | 0o755)
    link = special("latest", stat.S_IFLNK | 0o777)
    data = zipped(
        ("deep/a", BODY), ("empty/", b""), (program, b"#!"), (link, b"deep/a"), compression=zipfile.ZIP_DEFLATED
    )
    path = get(data, "zip")
    assert (path / "deep" / "a").read_bytes() == BODY
    assert (path / "latest").read_bytes() == BODY
    assert (path / "empty").is_dir()
    assert (path / "bin" / "run").stat().st_mode & 0o111
    assert not (path / "deep" / "a").stat().st_mode & 0o222


@pytest.mark.parametrize(
    ("name", "mode", "data"),
    [
        ("../evil", 0, b"x"),
        ("/etc/evil", 0, b"x"),
        ("a/../../evil", 0, b"x"),
        ("", 0, b"x"),
        ("link", stat.S_IFLNK, b"/etc/passwd"),
        ("link", stat.S_IFLNK, b"../../evil"),
        ("a/link", stat.S_IFLNK, b"../../evil"),
        ("link", stat.S_IFLNK, b"a/../../evil"),
        ("link", stat.S_IFLNK, b"x" * 5000),
        ("link", stat.S_IFLNK, b""),
    ],
)
def test_a_hostile_member_is_refused(refused, name, mode, data):
    """A zip could write anywhere, or have others read what is none of theirs."""
    member = special(name or "x", mode | 0o644 if mode else 0)
    member.filename = name or "."
    assert "refused member" in refused(zipped((member, data)), "zip")


def test_nothing_is_written_through_a_link(refused):
    """A link to a directory, and then a file in it, is how a zip gets out."""
    link = special("d", stat.S_IFLNK | 0o777)
    refused(zipped((link, b"."), ("d/evil", b"x")), "zip")


@pytest.mark.parametrize(
    "links",
    [
        pytest.param([("a/b/x", b"../.."), ("a/b/x/y", b"../../../evil")], id="a link that is made through a link"),
        pytest.param([("...", b"."), ("y", b".../../evil")], id="down through a link with a name of dots"),
    ],
)
def test_links_together_do_not_lead_outside(refused, links):
    """Each of two links may look harmless, and both together have others read what is none of theirs."""
    members = [(special(name, stat.S_IFLNK | 0o777), text) for name, text in links]
    assert "refused member" in refused(zipped(("a/b/f", b"x"), *members), "zip")


@pytest.mark.parametrize("damage", ["cut", "bytes", "no zip"])
def test_a_damaged_zip_is_refused(refused, damage):
    """Half an archive would be taken for all of it."""
    whole = bytearray(zipped(("a", BODY[:300_000]), compression=zipfile.ZIP_DEFLATED))
    if damage == "bytes":
        whole[1000] ^= 0xFF
    refused(bytes({"cut": whole[: len(whole) // 2], "bytes": whole, "no zip": b"<html>sorry</html>"}[damage]), "zip")


def test_an_encrypted_zip_is_refused(refused):
    """A zip that needs a password would be a traceback."""
    data = bytearray(zipped(("a", b"x")))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    assert "encrypted" in refused(bytes(data), "zip")
