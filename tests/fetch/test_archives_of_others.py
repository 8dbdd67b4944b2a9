"""Archives that other programs write are unpacked as those programs unpack them: GNU tar and Info-ZIP's unzip."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from importlib.util import find_spec

import pytest

from faults import FakeClock, request_for, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.run import fetch

BLOCK = 512


def needs(*programs):
    lacking = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {', '.join(lacking)}")


#: Not asked of the program, which may be wrong.
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
has_zstd = pytest.mark.skipif(
    find_spec(ZSTD.partition(".")[0]) is None or find_spec(ZSTD) is None, reason=f"{ZSTD} is not installed"
)


@pytest.fixture
def unpack(tmp_path):
    """Unpacks an archive by a step, through a work area; the payload's path."""
    number = 0

    def run(data, step, name="x"):
        nonlocal number
        number += 1
        archive = tmp_path / f"{name}.{step}"
        archive.write_bytes(data)
        area = tmp_path / f"area{number}"
        area.mkdir()
        wanted = request_for([str(archive), step])
        fetched = fetch(store_of(FileSystem(), None, clock=FakeClock()), wanted, str(area), progress=NoProgress())
        return area / "payload" / fetched.name

    return run


@pytest.fixture
def unpacked_by(tmp_path):
    """Unpacks an archive with the program of its format; the directory."""

    def run(data, *command):
        archive, directory = tmp_path / "theirs", tmp_path / "theirs.d"
        archive.write_bytes(data)
        directory.mkdir()
        words = [word.format(archive=archive, directory=directory) for word in command]
        subprocess.run(words, check=True, capture_output=True)
        return directory

    return run


def tree(top):
    """What is in a directory: kinds, contents, times and executable bits, by path."""
    found = {}
    top = os.fsencode(top)
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            shown = os.path.relpath(path, top)
            if stat.S_ISLNK(status.st_mode):
                found[shown] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[shown] = ("directory",)
            else:
                with open(path, "rb") as file:
                    found[shown] = ("file", file.read(), int(status.st_mtime), bool(status.st_mode & stat.S_IXUSR))
    return found


def tar(*members, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, 1_600_000_000
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content.decode()
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def typed(data, kind, nth=0):
    """An archive whose nth header has another type."""
    changed = bytearray(data)
    at = nth * BLOCK
    changed[at + 156 : at + 157] = kind
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + BLOCK])
    return bytes(changed)


FILE, DIRECTORY, SYMLINK, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE

TARS = {
    "a name that occurs twice": tar(("f", FILE, b"old and longer"), ("g", LINK, b"f"), ("f", FILE, b"new")),
    "a link that a file replaces": tar(("f", FILE, b"1"), ("l", SYMLINK, b"f"), ("l", FILE, b"2")),
    "a file that a directory replaces": tar(("d", FILE, b"1"), ("d", DIRECTORY, b""), ("d/f", FILE, b"2")),
    "an empty directory that a file replaces": tar(("d", DIRECTORY, b""), ("d", FILE, b"2")),
    "a file that a link replaces": tar(("f", FILE, b"1"), ("l", FILE, b"2"), ("l", SYMLINK, b"f")),
    "a path through a link": tar(
        ("usr/lib/a", FILE, b"1"), ("lib", SYMLINK, b"usr/lib"), ("lib/b", FILE, b"2"), ("c", LINK, b"lib/b")
    ),
    "a hard link to itself": tar(("f", FILE, b"1"), ("f", LINK, b"f")),
    "a regular file with a slash at its end": typed(tar(("d/", FILE, b"")), b"0"),
    "no directories": tar(("a/b/c", FILE, b"1")),
    "names that are no text": tar(("caf\udce9 \x01 'q' \"", FILE, b"1")),
    "a colon and a backslash": tar(("X:100-200.bed", FILE, b"1"), ("a\\b", FILE, b"2")),
    "a dash at the front": tar(("-rf", FILE, b"1"), ("--", FILE, b"2")),
    "an unknown type": typed(tar(("f", FILE, b"content")), b"Z"),
    "a contiguous file": typed(tar(("f", FILE, b"content")), b"7"),
    "trailing garbage": tar(("f", FILE, b"1")) + b"garbage" * 1000,
    "GNU's long names": tar(("/".join(["d" * 100] * 3), FILE, b"1"), form=tarfile.GNU_FORMAT),
    "a directory that cannot be written": tar(("d", DIRECTORY, b""), ("d/f", FILE, b"1")),
}


@needs("tar")
@pytest.mark.parametrize("kind", TARS)
def test_a_tar_is_unpacked_as_gnu_tar_unpacks_it(unpack, unpacked_by, kind):
    """An archive that everybody else can read would be refused, or would have other content in the cache."""
    theirs = unpacked_by(TARS[kind], "tar", "-xf", "{archive}", "-C", "{directory}")
    assert tree(unpack(TARS[kind], "tar")) == tree(theirs) != {}


@needs("tar")
@pytest.mark.parametrize(
    "options",
    [
        ["--label=Backup 2026"],
        ["--listed-incremental=snapshot"],
        ["--sparse"],
        ["--sparse", "--format=posix", "--sparse-version=0.0"],
        ["--sparse", "--format=posix", "--sparse-version=0.1"],
        ["--sparse", "--format=posix", "--sparse-version=1.0"],
        ["--format=v7"],
        ["--format=oldgnu"],
        ["--format=ustar"],
        ["--blocking-factor=1"],
        ["--label=B", "--listed-incremental=snapshot", "--sparse", "--format=gnu"],
        ["--xattrs"],
        ["--gzip"],
        ["--bzip2"],
        pytest.param(["--xz"], marks=needs("xz")),
        pytest.param(["--lzma"], marks=needs("xz")),
        pytest.param(
            ["--zstd"],
            marks=[needs("zstd"), has_zstd],
        ),
    ],
    ids=" ".join,
)
def test_what_gnu_tar_writes_is_unpacked(unpack, tmp_path, options):
    """A backup made with an option of tar would be refused."""
    original = tmp_path / "original"
    (original / "d" / "empty").mkdir(parents=True)
    (original / "d" / "f").write_text("hello\n")
    (original / "d" / "run").write_text("#!/bin/sh\n")
    (original / "d" / "run").chmod(0o755)
    (original / "l").symlink_to("d/f")
    os.link(original / "d" / "f", original / "again")
    with open(original / "holes", "wb") as file:
        file.truncate(5 << 20)
        file.seek(2 << 20)
        file.write(b"data")
        file.seek(4 << 20)
        file.write(b"more")
    subprocess.run(["tar", "-cf", "archive", *options, "-C", "original", "."], cwd=tmp_path, check=True)
    payload = unpack((tmp_path / "archive").read_bytes(), "tar")
    assert tree(payload) == tree(original)
    if "--sparse" in options:
        assert (payload / "holes").stat().st_blocks * 512 < 1 << 20


def test_a_compressed_tar_needs_no_end_mark(unpack):
    """Some programs write none, and GNU tar accepts that; compression shows that nothing is missing."""
    whole = tar(("f", FILE, b"1"), ("g", FILE, b"2"))
    members = whole[: 4 * BLOCK]
    assert (unpack(gzip.compress(members), "tar") / "g").read_bytes() == b"2"
    with pytest.raises(FetchFailed, match="truncated"):
        unpack(members, "tar")
    with pytest.raises(FetchFailed, match="unexpected end"):
        unpack(gzip.compress(whole[: 3 * BLOCK]), "tar")


def test_a_part_of_a_volume_is_refused(unpack):
    """The second half of a file would be taken for the file."""
    with pytest.raises(FetchFailed, match="another volume"):
        unpack(typed(tar(("f", FILE, b"half")), b"M"), "tar")


def test_a_header_with_a_negative_size_is_refused(unpack):
    """A header that leads back into the archive would be read for ever."""
    data = bytearray(tar(("f", FILE, b"1"), form=tarfile.GNU_FORMAT))
    data[124:136] = b"\xff" * 12
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    with pytest.raises(FetchFailed, match="cannot unpack"):
        unpack(bytes(data), "tar")


def test_hard_links_become_copies_where_there_are_none(unpack, monkeypatch):
    """On a file system without hard links, no archive with one could be unpacked."""

    def refuse(*arguments, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    payload = unpack(tar(("f", FILE, b"1"), ("g", LINK, b"f")), "tar")
    assert (payload / "g").read_bytes() == b"1"


def test_a_sparse_file_of_terabytes_takes_no_time(unpack):
    """An image of a disk would fill the disk with its zeros."""
    member = tarfile.TarInfo("disk")
    size = 8 << 40
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "disk",
        "GNU.sparse.realsize": str(size),
    }
    content = b"1\n0\n4\n".ljust(BLOCK, b"\0") + b"data"
    member.size = len(content)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(content))
    status = (unpack(out.getvalue(), "tar") / "disk").stat()
    assert status.st_size == size
    assert status.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    "members",
    [
        [("a", SYMLINK, b"."), ("a/b", SYMLINK, b".."), ("a/b/f", FILE, b"!")],
        [("d/l", SYMLINK, b".."), ("d/l/up", SYMLINK, b"..")],
        [("l", SYMLINK, b"d/.."), ("d", SYMLINK, b"../..")],
        [("l", SYMLINK, b"../x"), ("m", LINK, b"l"), ("l", FILE, b"!")],
        [("d", DIRECTORY, b""), ("d/f", FILE, b"1"), ("d", SYMLINK, b"/tmp")],
        [("d", DIRECTORY, b""), ("d/f", FILE, b"1"), ("d", FILE, b"2")],
        [("l", SYMLINK, b"")],
        [("l", SYMLINK, b"l"), ("l/f", FILE, b"!")],
    ],
)
def test_links_that_lead_outside_or_nowhere_are_refused(unpack, tmp_path, members):
    """An archive from a stranger would write outside, or hand out files of this host."""
    with pytest.raises(FetchFailed, match="cannot unpack"):
        unpack(tar(*members), "tar")
    assert sorted(os.listdir(tmp_path)) == ["area1", "x.tar"]


def headers_without_end(kind):
    """A compressed archive of a few kilobytes whose first member has headers of 256 MiB."""
    if kind == "sparse":
        begin = bytearray(typed(tar(("f", FILE, b""), form=tarfile.GNU_FORMAT), b"S"))[:BLOCK]
        begin[482] = 1
        begin[148:156] = b" " * 8
        begin[148:156] = b"%06o\0 " % sum(begin)
        block = (b"%011o\0" % 1 + b"%011o\0" % 1) * 21 + b"\1" + bytes(7)
        return gzip.compress(bytes(begin) + block * (256 << 11))
    member = tarfile.TarInfo("x")
    member.type, member.size = kind.encode(), 256 << 20
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + b"a" * (256 << 20))


@pytest.mark.parametrize("kind", ["x", "g", "L", "K", "sparse"])
def test_headers_that_would_fill_the_memory_are_refused(unpack, kind):
    """An archive of a few kilobytes could end a job for want of memory, and others on its node."""
    with pytest.raises(FetchFailed, match="headers of more than"):
        unpack(headers_without_end(kind), "tar")


def test_a_path_of_a_million_directories_is_refused(unpack):
    """A single member could keep a job busy for days."""
    with pytest.raises(FetchFailed, match="directories deep"):
        unpack(gzip.compress(tar(("a/" * 1_000_000 + "f", FILE, b"1"))), "tar")


# -- compressed files --------------------------------------------------------------------------------------------------


PROGRAMS = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}
ENDS = {
    "nothing": lambda packed: b"",
    "one stream": lambda packed: packed,
    "two streams": lambda packed: packed * 2,
    "cut": lambda packed: packed[:-3],
    "cut in the second stream": lambda packed: packed + packed[:-3],
    "a line after the end": lambda packed: packed + b"this is not compressed\n",
    "a byte of zeros": lambda packed: packed + bytes(1),
    "four bytes of zeros": lambda packed: packed + bytes(4),
    "a block of zeros": lambda packed: packed + bytes(512),
    "zeros between streams": lambda packed: packed + bytes(4) + packed,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[needs(p), *([has_zstd] if k == "zst" else [])]) for k, p in PROGRAMS.items()]
)
def test_a_compressed_file_is_read_as_its_program_reads_it(unpack, kind, end):
    """A file that everybody else can read would be refused, or half of one would be taken for all of it."""
    text = b"some text\n" * 20_000
    packed = subprocess.run([PROGRAMS[kind], "-c"], input=text, capture_output=True, check=True).stdout
    data = ENDS[end](packed)
    theirs = subprocess.run([PROGRAMS[kind], "-dc"], input=data, capture_output=True, check=False)
    if theirs.returncode == 0 and not theirs.stderr:
        assert unpack(data, kind).read_bytes() == theirs.stdout != b""
    elif "zeros" in end and kind in ("gz", "bz2"):  # these programs ignore what follows, and say so
        assert unpack(data, kind).read_bytes() == text * data.count(packed)
    else:
        with pytest.raises(FetchFailed, match="cannot decompress"):
            unpack(data, kind)


@needs("zstd")
@has_zstd
def test_a_window_that_zstd_needs_an_option_for_is_accepted(unpack):
    """A genome that was compressed with `zstd --long=31` could not be used."""
    text = bytes(1 << 20)
    packed = subprocess.run(["zstd", "-qc", "--long=31"], input=text, capture_output=True, check=True).stdout
    assert subprocess.run(["zstd", "-dqc"], input=packed, capture_output=True, check=False).returncode
    assert unpack(packed, "zst").read_bytes() == text


@needs("xz")
@pytest.mark.parametrize("padding", [4, 8, 4 << 20])
def test_padding_between_streams_of_xz_is_accepted(unpack, padding):
    """What the format allows, and xz reads, would be refused."""
    streams = [subprocess.run(["xz"], input=text, capture_output=True, check=True).stdout for text in (b"1", b"2")]
    zeros = bytes(padding)
    assert unpack(streams[0] + zeros + streams[1] + zeros, "xz").read_bytes() == b"12"
    packed = subprocess.run(["xz"], input=tar(("f", FILE, b"1")), capture_output=True, check=True).stdout
    assert (unpack(packed + zeros, "tar") / "f").read_bytes() == b"1"


@needs("xz")
@pytest.mark.parametrize("padding", [1, 2, 3, 5])
def test_padding_that_xz_refuses_is_refused(unpack, padding):
    """A file that was damaged would be taken for a whole one."""
    packed = subprocess.run(["xz"], input=b"1", capture_output=True, check=True).stdout
    with pytest.raises(FetchFailed, match="padding"):
        unpack(packed + bytes(padding), "xz")
    with pytest.raises(FetchFailed, match="padding"):
        unpack(packed + bytes(padding) + packed, "xz")


def test_a_tar_of_several_gzip_members_is_unpacked(unpack):
    """Archives of parallel compressors, and of cat, would be cut after their first part."""
    whole = tar(("a", FILE, b"1" * 5000), ("b", FILE, b"2"))
    assert (unpack(gzip.compress(whole[:3000]) + gzip.compress(whole[3000:]), "tar") / "b").read_bytes() == b"2"


@pytest.mark.parametrize(
    ("magic", "program"), [(b"LZIP\1", "lzip"), (b"\x89LZO\0", "lzop"), (b"\x1f\x9d\x90", "compress")]
)
def test_a_compression_that_is_not_supported_is_named(unpack, magic, program):
    """The user would be told that the archive is damaged."""
    with pytest.raises(FetchFailed, match=f"compressed with {program}, which is not supported"):
        unpack(magic + bytes(1000), "tar")


@needs("zstd")
@has_zstd
@pytest.mark.parametrize("step", ["zst", "tar"])
def test_skippable_frames_of_zstd_are_skipped(unpack, step):
    """Files of pzstd and of seekable zstd begin or end with frames that hold no data."""
    frame = struct.pack("<LL", 0x184D2A50, 4) + b"meta"
    whole = tar(("f", FILE, b"1"))
    packed = subprocess.run(["zstd", "-q"], input=whole, capture_output=True, check=True).stdout
    payload = unpack(frame + packed + frame, step)
    assert (payload / "f").read_bytes() == b"1" if step == "tar" else payload.read_bytes() == whole


# -- zip ---------------------------------------------------------------------------------------------------------------


def zipped(*members, **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for info, data in members:
            archive.writestr(info, data)
    return out.getvalue()


def entry(name, *, system=3, mode=0, extra=b""):
    info = zipfile.ZipInfo(name, (2020, 2, 3, 4, 5, 6))
    info.create_system, info.external_attr, info.extra = system, mode << 16, extra
    return info


def raw_name(data, name):
    """A zip whose only member, called by as many letters x, has a name of these bytes, and no flag for UTF-8."""
    return data.replace(b"x" * len(name), name)


UTF8 = "übung.txt".encode()
STAMP = struct.pack("<HHBl", 0x5455, 5, 1, 1_500_000_000)

ZIPS = {
    "a colon in second place": zipped((entry("X:100-200.bed"), b"1")),
    "a backslash, from Unix": zipped((entry("a\\b"), b"1"), (entry("..\\c"), b"2")),
    "a backslash, from DOS": zipped((entry("a\\b", system=0), b"1")),
    "a name that occurs twice": zipped((entry("f"), b"1"), (entry("f"), b"2")),
    "a name that goes up and stays inside": zipped((entry("a/../b"), b"1")),
    "a type that means nothing": zipped((entry("f", mode=stat.S_IFIFO | 0o644), b"1")),
    "attributes of another system": zipped((entry("f", system=0, mode=stat.S_IFLNK | 0o777), b"content")),
    "UTF-8 without a flag, from Unix": raw_name(zipped((entry("x" * len(UTF8)), b"1")), UTF8),
    "bytes that are no text": raw_name(zipped((entry("xxxx"), b"1")), b"caf\xe9"),
    "a link, and what comes through it": zipped(
        (entry("l", mode=stat.S_IFLNK | 0o777), b"d/f"), (entry("d/f", mode=stat.S_IFREG | 0o755), b"1")
    ),
    "a link that goes up and stays inside": zipped(
        (entry("a/l", mode=stat.S_IFLNK | 0o777), b"../d/f"), (entry("d/f"), b"1")
    ),
    "times": zipped((entry("f", extra=STAMP), b"1"), (entry("g"), b"1")),
    "a program in front": b"#!/bin/sh\nexit\n" + zipped((entry("f"), b"1")),
    "bzip2": zipped((entry("f"), b"1" * 1000), compression=zipfile.ZIP_BZIP2),
}


@needs("unzip")
@pytest.mark.parametrize("kind", ZIPS)
def test_a_zip_is_unpacked_as_unzip_unpacks_it(unpack, unpacked_by, kind, monkeypatch):
    """An archive that everybody else can read would be refused, or would have other names in the cache."""
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("TZ", "Europe/Zurich")
    time.tzset()
    quiet = {"a backslash, from DOS", "a program in front", "a name that goes up and stays inside"}
    command = ("unzip", "-qq", "-o", "{archive}", "-d", "{directory}")
    if kind in quiet:  # unzip warns, and says so with exit code 1
        command = ("sh", "-c", '"$@" || [ $? = 1 ]', "sh", *command)
    theirs = unpacked_by(ZIPS[kind], *command)
    assert tree(unpack(ZIPS[kind], "zip")) == tree(theirs) != {}


def test_a_unicode_name_in_an_extra_field_counts(unpack):
    """Names written by older Windows programs would be in the letters of another alphabet."""
    name = "übung".encode()
    extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(b"xbung")) + name
    assert os.listdir(unpack(zipped((entry("xbung", system=0, extra=extra), b"1")), "zip")) == ["übung"]


@needs("zip")
def test_what_info_zip_writes_is_unpacked(unpack, tmp_path):
    """A zip made with the most common program would lose links, times or permissions."""
    original = tmp_path / "original"
    (original / "d").mkdir(parents=True)
    (original / "d" / "ünï ☃").write_text("1")
    (original / "run").write_text("#!/bin/sh\n")
    (original / "run").chmod(0o755)
    (original / "l").symlink_to("d/ünï ☃")
    os.utime(original / "run", (1_400_000_000, 1_400_000_000))
    subprocess.run(["zip", "-qry", "../archive.zip", "."], cwd=original, check=True)
    assert tree(unpack((tmp_path / "archive.zip").read_bytes(), "zip")) == tree(original)


# -- before anything is fetched ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["big.zst zst", "big.tar.zst tar", "big.tzst tar"])
def test_what_a_step_lacks_is_said_before_the_download(tmp_path, monkeypatch, name):
    """Hours of downloading would end with the name of a package."""
    for module in ("backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    file, step = name.split()
    wanted = request_for([f"http://127.0.0.1:9/{file}", step])  # nobody listens there
    with pytest.raises(FetchFailed, match="not installed") as caught:
        fetch(store_of(FileSystem(), None, clock=FakeClock()), wanted, str(tmp_path), progress=NoProgress())
    assert "compression.zstd" in caught.value.hint or "pip install backports.zstd" in caught.value.hint
