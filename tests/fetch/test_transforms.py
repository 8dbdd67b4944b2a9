"""Steps give what the file holds, all of it and nothing outside; what is damaged or hostile is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile

import pytest

from faults import request_for, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import steps
from sccache_dtool.fetch.context import Context
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.run import fetch

BLOCK = 512


def member(name, data=b"", kind=tarfile.REGTYPE, link="", mode=0o644):
    """One member of an archive, and its data."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
    return info, data


def tar(*members, mode="w", **options):
    """An archive as bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def directory(name):
    return member(name, kind=tarfile.DIRTYPE, mode=0o755)


def symlink(name, target):
    return member(name, kind=tarfile.SYMTYPE, link=target)


def hardlink(name, target):
    return member(name, kind=tarfile.LNKTYPE, link=target)


@pytest.fixture
def unpack(tmp_path):
    """Fetches an archive given as bytes through a work area; the payload's path."""

    def run(data, *digests):
        (tmp_path / "x.tar").write_bytes(data)
        area = tmp_path / "work" / "area"
        area.mkdir(parents=True)
        fetched = fetch(
            store_of(FileSystem(), None),
            request_for([f"{tmp_path}/x.tar", *digests, "tar"]),
            str(area),
            progress=NoProgress(),
        )
        assert os.listdir(area) == ["payload"]
        assert os.listdir(area / "payload") == [fetched.name] == ["x"]
        return area / "payload" / "x"

    return run


@pytest.fixture
def refused(tmp_path, unpack):
    """Fetches an archive that must be refused; the error's text."""

    def run(data, *digests):
        with pytest.raises(FetchFailed) as caught:
            unpack(data, *digests)
        assert f"file:{tmp_path}/x.tar" in caught.value.message
        assert caught.value.message.isprintable()
        assert os.listdir(tmp_path / "work" / "area" / "payload") == []
        assert sorted(os.listdir(tmp_path)) == ["work", "x.tar"]
        assert os.listdir(tmp_path / "work") == ["area"]
        return caught.value.message

    return run


GOOD = (
    directory("./"),
    directory("./bin"),
    member("./bin/run", b"#!/bin/sh\n", mode=0o4755),
    member("./data/deep/file", b"x" * 3000, mode=0o466),
    symlink("./data/link", "../bin/run"),
    symlink("./data/dangling", "deep/../nothing"),
    symlink("./data/circle", "circle"),
    hardlink("./again", "./data/deep/file"),
)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_are_unpacked(unpack, mode, form):
    """Every usual kind of tar becomes the directory that it was made of, and the archive is not kept."""
    payload = unpack(tar(*GOOD, mode=mode, format=form))
    assert sorted(os.listdir(payload)) == ["again", "bin", "data"]
    assert (payload / "data" / "deep" / "file").read_bytes() == b"x" * 3000
    assert os.readlink(payload / "data" / "link") == "../bin/run"
    assert (payload / "again").samefile(payload / "data" / "deep" / "file")
    assert stat.S_IMODE((payload / "bin" / "run").stat().st_mode) == 0o555
    assert (payload / "data" / "deep" / "file").stat().st_mode & 0o222 == 0


def test_an_empty_archive_is_an_empty_directory(unpack):
    """A tar of nothing is no error."""
    assert os.listdir(unpack(tar())) == []


def test_names_that_are_no_text_survive(unpack):
    """Files named in another encoding keep their names, byte for byte."""
    assert os.listdir(os.fsencode(unpack(tar(member("caf\udce9"))))) == [b"caf\xe9"]


def test_long_names_and_sparse_files_survive(unpack):
    """What GNU tar writes in its own ways is unpacked."""
    name = "/".join(["d" * 100] * 3)
    assert (unpack(tar(member(name, b"x"), format=tarfile.GNU_FORMAT)) / name).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("members", "name", "reason"),
    [
        ([member("../evil")], "../evil", "'..'"),
        ([member("a/../../evil")], "a/../../evil", "'..'"),
        ([member("a/../b")], "a/../b", "'..'"),
        ([member("/tmp/evil")], "/tmp/evil", "absolute"),
        ([member("//tmp/evil")], "//tmp/evil", "absolute"),
        ([member("zero", kind=tarfile.CHRTYPE)], "zero", "special file"),
        ([member("disk", kind=tarfile.BLKTYPE)], "disk", "special file"),
        ([member("pipe", kind=tarfile.FIFOTYPE)], "pipe", "special file"),
        ([member(".")], ".", "directory itself"),
        ([symlink("./", "x")], "./", "directory itself"),
        ([symlink("evil", "/etc")], "evil", "absolute path"),
        ([symlink("evil", "../..")], "evil", "outside"),
        ([symlink("a/b/evil", "../../../x")], "evil", "outside"),
        ([symlink("evil", "../.."), member("evil/x", b"!")], "evil", "outside"),
        ([hardlink("evil", "../../../x.tar")], "evil", "'..'"),
        ([hardlink("evil", "/etc/passwd")], "evil", "absolute"),
        ([hardlink("evil", "nothing")], "evil", "not an earlier file of the archive"),
        ([directory("d"), hardlink("evil", "d")], "evil", "not an earlier file of the archive"),
        ([member("new\nline\x1b[2J/../../x")], "new line", "'..'"),
    ],
)
def test_members_that_lead_outside_are_refused(refused, members, name, reason):
    """An archive from a stranger writes nothing outside, and publishes nothing of this host."""
    message = refused(tar(member("harmless", b"x"), *members))
    assert name in message
    assert reason in message


def test_links_through_later_links_are_refused(refused):
    """A link that was harmless when it came and leads outside through a later one is found (CVE-2025-4330)."""
    assert "'x'" in refused(tar(symlink("x", "a/../b"), directory("d"), symlink("a", "."), symlink("b", "d")))


def test_links_over_long_paths_are_refused(refused):
    """A path too long for `realpath` does not blind the check (CVE-2025-4517)."""
    members, path = [], ""
    for letter in "abcdefghijklmnop":
        members += [directory(path + "d" * 247), symlink(path + letter, "d" * 247)]
        path += "d" * 247 + "/"
    through = "/".join("abcdefghijklmnop")
    members += [symlink(path + "l" * 200, "../" * 16), symlink("escape", f"{through}/{'l' * 200}/../../../..")]
    refused(tar(*members, member("escape/evil", b"!"), format=tarfile.GNU_FORMAT))


def test_hard_links_to_symbolic_links_are_checked_where_they_are(refused):
    """A link moved up by a hard link does not lead further than the archive."""
    assert "'up'" in refused(tar(directory("a"), symlink("a/l", "../x"), hardlink("up", "a/l")))


def test_a_hard_link_to_a_symbolic_link_inside_is_kept(unpack):
    """Archives in which a symbolic link has two names are unpacked."""
    payload = unpack(tar(member("f", b"x"), symlink("l", "f"), hardlink("m", "l")))
    assert (payload / "m").read_bytes() == b"x"


FILES = [member(f"file{n}", os.urandom(2000)) for n in range(50)]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.95])
def test_truncated_archives_are_refused(refused, mode, part):
    """A part of an archive is never published as the whole."""
    whole = tar(*FILES, mode=mode)
    assert "cannot unpack" in refused(whole[: int(len(whole) * part)])


def test_an_archive_cut_between_two_members_is_refused(refused):
    """A tar that ends after a complete member, and not at its end, is not the whole (tarfile takes it)."""
    whole = tar(*FILES)
    assert "truncated" in refused(whole[: 20 * (BLOCK + 2048)])


def test_a_gzip_without_its_checksum_is_refused(refused):
    """A file cut in its last bytes is noticed, though all members are there."""
    assert "cannot unpack" in refused(tar(*FILES, mode="w:gz")[:-4])


def test_a_gzip_with_a_wrong_checksum_is_refused(refused):
    """Data that gzip knows to be damaged is not published."""
    whole = bytearray(gzip.compress(tar(*FILES)))
    whole[-8] ^= 1
    assert "incorrect data check" in refused(bytes(whole))


def test_a_damaged_header_is_refused(refused):
    """A member that cannot be read is not left out in silence (tarfile stops there)."""
    whole = bytearray(tar(*FILES))
    whole[20 * (BLOCK + 2048)] ^= 1
    assert "damaged header" in refused(bytes(whole))


@pytest.mark.parametrize(
    "data", [b"", b"<html>not found</html>" * 100, os.urandom(4096)], ids=["empty", "html", "noise"]
)
def test_what_is_no_tar_is_refused(refused, data):
    """An error page that was saved as a tar is reported as that, in one line."""
    assert "it is not a tar" in refused(data)


def test_a_file_in_the_way_of_a_directory_is_an_error_in_words(refused):
    """An archive that contradicts itself gives an error, and no traceback."""
    assert "cannot unpack" in refused(tar(member("a"), member("a/b")))


def test_names_with_nul_are_refused(refused):
    """A name that no file system takes gives an error, and no traceback."""
    info, data = member("x")
    info.pax_headers = {"path": "a\0b"}
    assert "cannot unpack" in refused(tar((info, data)))


def test_a_wrong_digest_is_found_before_unpacking(refused):
    """Nothing is done with an archive that is not the one that was meant."""
    assert "md5 of" in refused(tar(member("../evil")), f"md5:{'0' * 32}")


def test_the_right_digest_lets_it_pass(unpack):
    """A checked archive is unpacked."""
    data = tar(*GOOD)
    assert (unpack(data, f"sha256:{hashlib.sha256(data).hexdigest()}") / "again").exists()


def test_a_python_without_filters_unpacks_just_as_well(unpack, monkeypatch):
    """Debian 12's Python 3.11.2 has no extraction filters, and users of it could not unpack any tar."""
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    assert (unpack(tar(*GOOD)) / "again").exists()


def test_a_digest_can_be_checked_after_other_steps(tmp_path):
    """A digest that was not taken on the way is taken from the file."""
    path = tmp_path / "x"
    path.write_bytes(b"x" * 3_000_000)
    right = hashlib.sha1(b"x" * 3_000_000).hexdigest()
    arguments = (str(path), str(tmp_path / "y"), "file:/x")
    context = Context(store_of(FileSystem(), None), NoProgress())
    assert steps.apply_step(context, f"sha1:{right}", *arguments) == str(path)
    with pytest.raises(FetchFailed, match=f"sha1 of file:/x is {right}, not {'0' * 40}"):
        steps.apply_step(context, f"sha1:{'0' * 40}", *arguments)
