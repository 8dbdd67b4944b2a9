"""Signatures, tokens and passwords in URLs: nobody else sees them, and a renewed one means the same item."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import SC_DTOOL, Disk, Done, call, config, finish, start
from httpserver import Page, Server
from sccache_dtool.cache import Cache
from waiting import wait_until

Sc = Callable[..., Done]

MEBIBYTE = 1 << 20
ETAG = '"one"'
SIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20260101T000000Z&X-Amz-Expires=600&X-Amz-Signature="

#: All commands that show something of an item.
LOOKING = [
    ("ls", "-l"), ("ls", "-f", "json"), ("status", "-f", "json"), ("why", "x.bin"), ("log", "-f", "json"),
    ("transfers", "--all", "-f", "json"), ("transfers", "--all"), ("du", "-f", "json"), ("doctor",),
]  # fmt: skip


def stored(root: Path) -> str:
    """Everything that the cache has on disk: names, the texts of symbolic links, and files."""
    found = []
    for directory, directories, names in os.walk(root):
        for name in (*directories, *names):
            path = Path(directory, name)
            found.append(str(path))
            if path.is_symlink():
                found.append(os.readlink(path))
            elif path.is_file():
                found.append(path.read_bytes().decode("latin-1"))
    return "\n".join(found)


@pytest.mark.parametrize(
    "query",
    [
        f"{SIGNED}SECRET",
        "sv=2022-11-02&se=2026-01-01T00%3A00%3A00Z&sr=b&sp=r&sig=SECRET",
        "token=SECRET",
        "access_token=SECRET",
        "AWSAccessKeyId=SECRET&Expires=1&Signature=SECRET",
        "X-Goog-Credential=SECRET&X-Goog-Signature=SECRET",
        "of=https%3A%2F%2Fexample.org%2Fy%3Fsig%3DSECRET",
        "a=1#access_token=SECRET",
    ],
)
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_no_credential_is_stored_or_shown(sc: Sc, root: Path, server: Server, query: str, ends: str) -> None:
    """Everybody who may read the cache could read what the URL was signed for, and whatever else its token opens."""
    path = f"/x.bin?{query.partition('#')[0]}"
    server.page(path, b"x", status=200 if ends == "well" else 403)
    done = sc("use", f"{server.url('/x.bin', 'me:SECRET')}?{query}")
    assert (done.code, server.gets[path]) == (0 if ends == "well" else 12, 1)
    assert "SECRET" not in f"{done.out}{done.err}{stored(root)}"
    for words in LOOKING:
        shown = sc(*words)
        assert "SECRET" not in f"{shown.out}{shown.err}", words


def test_a_redirect_to_a_signed_url_is_not_stored_or_shown(sc: Sc, root: Path, server: Server) -> None:
    """Archives hand out files by signed URLs that nobody has typed."""
    server.redirect("/x.bin", "/y?sig=SECRET")
    for status in (404, 200):
        server.page("/y?sig=SECRET", b"x", status=status)
        done = sc("use", server.url("/x.bin"))
        assert "SECRET" not in f"{done.out}{done.err}{stored(root)}"


@pytest.mark.parametrize("url", ["http://me:SECRET@a..b/x.bin?sig=SECRET", "http://me:SECRET@h:x/?sig=SECRET"])
def test_no_credential_is_in_a_traceback(root: Path, server: Server, url: str) -> None:
    """Whoever reports a fault would send a password with it: libraries put whole URLs into their errors."""
    done = call("--debug", "use", "--holder", "me", "--ttl", "1h", url)
    assert "Traceback" in done.err
    assert "SECRET" not in f"{done.out}{done.err}"


def test_no_credential_is_shown_in_an_error_that_has_no_url(sc: Sc, root: Path) -> None:
    """The package for S3 puts what it takes for the name of a bucket into its error: user, key and all."""
    pytest.importorskip("s3fs")
    done = sc("use", "s3://USER:SECRET%2Fkey@bucket/x.bin?token=SECRET")
    assert done.code == 12
    assert "SECRET" not in f"{done.out}{done.err}{stored(root)}"
    assert "SECRET" not in sc("transfers", "--all").out
    assert "trying again" not in done.err  # the name of a bucket would be refused each time


def test_a_renewed_url_means_the_same_item(sc: Sc, server: Server) -> None:
    """A signature is valid for an hour, and each new one would be another download, and another name refused."""
    for signature in ("one", "two", "three"):
        server.page(f"/x.bin?{SIGNED}{signature}", b"x")
    first = sc("use", "-n", "ref", f"{server.url('/x.bin')}?{SIGNED}one")
    assert sc("use", "-n", "ref", f"{server.url('/x.bin')}?{SIGNED}two").path == first.path
    item = sc("use", f"{server.url('/x.bin')}?{SIGNED}one")
    assert sc("use", f"{server.url('/x.bin')}?{SIGNED}three").path == item.path
    assert sc("use", server.url("/x.bin")).path == item.path
    assert sum(server.gets.values()) == 2
    assert sc("unuse", f"{server.url('/x.bin')}?{SIGNED}four").code == 0
    assert sc("why", f"{server.url('/x.bin')}?{SIGNED}four").code == 0


def test_two_objects_are_two_items_whatever_their_signatures(sc: Sc, server: Server) -> None:
    """The second version of an object would be given to whoever asks for the first."""
    for version in ("1", "2"):
        server.page(f"/x.bin?versionId={version}&{SIGNED}s", version.encode())
        assert sc("use", server.url(f"/x.bin?versionId={version}&{SIGNED}s")).path.read_text() == version


def test_a_download_is_continued_with_a_renewed_url(sc: Sc, root: Path, disk: Disk, server: Server) -> None:
    """A download that takes longer than its signature is valid would never end."""
    body = os.urandom(4 * MEBIBYTE)
    server.page(f"/x.bin?{SIGNED}SECRET1", body, etag=ETAG, stall_after=3 * MEBIBYTE)
    server.page(f"/x.bin?{SIGNED}SECRET2", body, etag=ETAG)
    sc("init")
    use = ["use", "--holder", "me", "--ttl", "1h"]
    with start([SC_DTOOL, *use, f"{server.url('/x.bin')}?{SIGNED}SECRET1"]) as fetching:
        wait_until(lambda: any(file.stat().st_size >= 3 * MEBIBYTE for file in files(disk)), "three quarters")
        assert "SECRET" not in stored(root)
        fetching.terminate()
        assert "SECRET" not in finish(fetching).err
    assert "SECRET" not in stored(root)
    assert call(*use, f"{server.url('/x.bin')}?{SIGNED}SECRET2").path.read_bytes() == body
    assert server.ranges(f"/x.bin?{SIGNED}SECRET2") == [f"bytes={3 * MEBIBYTE}-"]
    assert "X-Amz" not in stored(root)


def test_a_signature_that_expires_meanwhile_loses_nothing(sc: Sc, root: Path, server: Server) -> None:
    """What came before a connection broke would be thrown away because the URL cannot be asked any more."""
    body = os.urandom(4 * MEBIBYTE)
    server.pages(
        f"/x.bin?{SIGNED}one", Page(body, etag=ETAG, short=3 * MEBIBYTE), Page(b"Request has expired", status=403)
    )
    server.page(f"/x.bin?{SIGNED}two", body, etag=ETAG)
    done = sc("use", f"{server.url('/x.bin')}?{SIGNED}one")
    assert done.code == 12
    assert "give a new URL of the same file" in done.err
    assert sc("use", f"{server.url('/x.bin')}?{SIGNED}two").path.read_bytes() == body
    assert server.ranges(f"/x.bin?{SIGNED}two") == [f"bytes={3 * MEBIBYTE}-"]


def test_refresh_asks_with_the_signature_and_downloads_nothing(sc: Sc, root: Path, server: Server) -> None:
    """A server refuses a question without a signature, and a check would be an error, or another download."""
    old, new = f"/x.bin?{SIGNED}SECRET1", f"/x.bin?{SIGNED}SECRET2"
    for path in (old, new):
        server.page(path, b"x", etag=ETAG, auth=("me", "SECRET"))
    server.page("/x.bin", status=403)
    path = sc("use", server.url(old, "me:SECRET")).path
    assert sc("use", "--refresh", server.url(new, "me:SECRET")).path == path
    asked, headers = server.seen[-1]
    assert (asked, headers["If-None-Match"], len(server.seen)) == (new, ETAG, 2)  # the answer to it is 304
    server.page(new, b"Request has expired", status=403)
    done = sc("use", "--refresh", server.url(new, "me:SECRET"))
    assert done.code == 12
    assert "cannot check for changes of" in done.err
    assert "give a new URL of the same file; to use the copy in the cache" in done.err
    assert server.gets == {old: 1, new: 2}
    assert "SECRET" not in f"{done.out}{done.err}{stored(root)}"


def files(disk: Disk) -> list[Path]:
    return [path for path in disk.control.glob("tmp/*/work/0") if path.is_file()]


def test_a_cache_may_have_names_of_its_own(sc: Sc, root: Path, server: Server) -> None:
    """A site whose servers know a parameter of their own would have its passwords stored."""
    sc("init")
    config(root, '[fetch]\ncredentials = ["Site-Ticket", "x-lab-*"]\n')
    server.page("/x.bin?site-ticket=SECRET&X-Lab-Key=SECRET", b"x")
    done = sc("use", server.url("/x.bin?site-ticket=SECRET&X-Lab-Key=SECRET"))
    assert sc("use", server.url("/x.bin?site-ticket=other")).path == done.path
    assert sc("why", server.url("/x.bin?site-ticket=other")).code == 0
    failed = sc("use", server.url("/y.bin?site-ticket=SECRET"))
    assert failed.code == 12
    assert "SECRET" not in f"{done.out}{done.err}{failed.err}{stored(root)}"
    config(root, '[fetch]\ncredentials = ["a=b"]\n')
    assert "is not the name of a parameter" in sc("use", server.url("/z.bin?a=b")).err


def test_a_mistake_elsewhere_in_the_settings_shows_no_credential(sc: Sc, root: Path, server: Server) -> None:
    """A job would fail, or a password would be stored, for a mistake in what only `clean` needs."""
    sc("init")
    config(root, '[clean]\norder = "none"\n\n[fetch]\ncredentials = ["ticket"]\n')
    server.page("/x.bin?ticket=SECRET", b"x")
    path = sc("use", server.url("/x.bin?ticket=SECRET")).path
    for command in ("use", "locate"):
        assert sc(command, server.url("/x.bin?ticket=other")).path == path
    assert sc("why", server.url("/x.bin?ticket=other")).code == 0
    failed = sc("use", server.url("/y.bin?ticket=SECRET"))
    assert failed.code == 12
    assert "SECRET" not in f"{failed.err}{stored(root)}"


def test_a_mistake_in_the_settings_of_fetches_stops_only_what_needs_them(sc: Sc, root: Path, tmp_path: Path) -> None:
    """A local file, or a name, could not be used because of a setting that is about URLs."""
    source = tmp_path / "a=b?.txt"
    source.write_text("x")
    sc("use", source)
    config(root, '[fetch]\ncredentials = ["a=b"]\n')
    assert sc("use", source).code == 0
    assert sc("why", "a=b?.txt").code == 0


def test_a_program_finds_the_item_by_a_renewed_url(root: Path, server: Server) -> None:
    """A notebook that signs a URL for each call would download the file each time."""
    for signature in ("one", "two"):
        server.page(f"/x.bin?{SIGNED}{signature}", b"x")
    cache = Cache(root)
    with cache.use(server.url(f"/x.bin?{SIGNED}one")) as one, cache.use(server.url(f"/x.bin?{SIGNED}two")) as two:
        assert one == two
    assert sum(server.gets.values()) == 1


# -- one URL, one item -------------------------------------------------------------------------------------------------


def test_two_spellings_of_a_url_are_one_item(sc: Sc, server: Server) -> None:
    """A file with a space in its name would be downloaded by each who writes it in another way."""
    server.page("/a/sp%20ace~.txt", b"x")
    base = server.url("")
    spellings = ["/a/sp%20ace~.txt", "/a/sp ace~.txt", "/a/sp%20ace%7E.txt", "/a/./b/../sp%20ace%7e.txt#part"]
    paths = {sc("use", base + one).path for one in spellings} | {sc("use", f"HTTP{base[4:]}{spellings[0]}").path}
    assert {path.name for path in paths} == {"sp ace~.txt"}
    assert (len(paths), server.gets) == (1, {"/a/sp%20ace~.txt": 1})


def test_a_payload_that_the_server_named_is_found_again(sc: Sc, server: Server) -> None:
    """The second job would look for a file by a name that the first one's does not have."""
    headers = {"Content-Disposition": 'attachment; filename="ref.fa"'}
    url = server.page("/download?id=7", b"x", headers=headers)
    first = sc("use", url).path
    assert (first.name, first.read_bytes()) == ("ref.fa", b"x")
    assert sc("use", url).path == first
    assert sc("locate", url).path == first or sc("locate", url).code == 0
    assert sc("doctor", "--verify-content").code == 0
    assert server.gets == {"/download?id=7": 1}
