"""The archive over HTTP: what goes up comes down, and nothing else stays."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.serve.access import Allowed
from sccache_dtool.serve.app import App
from sccache_dtool.serve.limits import Bounds
from serve.client import Client, Socket, read_all
from waiting import wait_until

DATA = b"0123456789" * 100
DIGITS = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def archive(layout: Layout, tmp_path: Path) -> Path:
    """The directory of the archive, with a limit for objects of 10 kB."""
    path = tmp_path / "archive"
    path.mkdir()
    Path(layout.config_file).write_text(f'[archive]\nurl = "{path}"\nlimit = "10kB"\n')
    Cache(layout.root).archive.init()
    return path


def files(archive: Path) -> list[str]:
    """All files of the archive."""
    return sorted(
        os.path.relpath(os.path.join(path, name), archive) for path, _, names in os.walk(archive) for name in names
    )


def test_what_goes_up_comes_down(client: Client, archive: Path) -> None:
    """A file would be other than the one that was archived, or be there twice."""
    path = f"//objects/{DIGITS}"
    assert client.get(path).code == 404
    assert client.put(path, body=DATA).code == 201
    assert client.put(path, body=DATA).code == 200
    assert files(archive) == [f"objects/{DIGITS[:2]}/{DIGITS[2:]}"]
    whole = client.get(path)
    assert (whole.body, whole.headers["etag"], whole.headers["accept-ranges"]) == (DATA, f'"{DIGITS}"', "bytes")
    head = client.ask("HEAD", path)
    assert (head.code, head.headers["content-length"], head.body) == (200, "1000", b"")
    part = client.get(path, headers={"range": "bytes=5-9"})
    assert (part.code, part.body, part.headers["content-range"]) == (206, b"56789", "bytes 5-9/1000")
    assert client.get(path, headers={"range": "bytes=1000-"}).code == 416
    assert client.get(path, headers={"if-none-match": f'"{DIGITS}"'}).code == 304
    noted = client.post(f"//index/{DIGITS}", json={"name": "data.csv", "comment": "first"})
    assert noted.code == 201
    (entry,) = client.get("//index").json["entries"]
    assert (entry["id"], entry["name"], entry["comment"]) == (f"sha256:{DIGITS}", "data.csv", "first")
    again = client.post(f"//index/{DIGITS}", json={"name": "data.csv", "random": entry["random"]})
    assert (again.code, len(client.get("//index").json["entries"])) == (200, 1)


def test_an_upload_is_stored_as_the_settings_say(client: Client, archive: Path, layout: Layout) -> None:
    """A service whose archive is to be compressed would store plain files, or send compressed ones."""
    Path(layout.config_file).write_text(f'[archive]\nurl = "{archive}"\ncompress = "archive"\n')
    path = f"//objects/{DIGITS}"
    assert [client.put(path, body=DATA).code for _ in range(2)] == [201, 200]
    (stored,) = files(archive)
    assert stored.partition(".")[2] in ("zst", "zip")
    assert client.ask("HEAD", path).headers["content-length"] == "1000"
    assert client.get(path).body == DATA
    assert client.get(path, headers={"range": "bytes=5-9"}).body == b"56789"


@pytest.mark.parametrize("digits", ["x", "0" * 63, DIGITS.upper(), "..", f"{DIGITS}.zip"])
def test_a_name_that_is_not_a_digest(client: Client, archive: Path, digits: str) -> None:
    """A client could write another file of the host."""
    assert client.put(f"//objects/{digits}", body=DATA).code == 400
    assert client.get(f"//objects/{digits}").code == 400
    assert client.post(f"//index/{digits}", json={}).code == 400
    assert files(archive) == []


def test_a_wrong_upload_leaves_nothing(client: Client, archive: Path) -> None:
    """A damaged upload would be found under the name of the right file."""
    assert client.put(f"//objects/{DIGITS}", body=DATA[1:]).code == 422
    assert client.put(f"//objects/{DIGITS}").code == 411
    assert files(archive) == []
    assert client.post(f"//index/{DIGITS}", json={"name": "x"}).code == 404


def test_an_upload_over_the_limit_is_refused_before_it_is_read(
    app: App, listen: Callable[..., Socket], archive: Path
) -> None:
    """A client would send a terabyte, to be told at the end that there is no room."""
    served = listen(app)
    head = f"PUT /objects/{DIGITS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n"
    head += "Expect: 100-continue\r\n\r\n"
    with served.raw(head.encode()) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 413")
    assert files(archive) == []


def test_an_upload_that_breaks_off(make_app: Callable[..., App], listen: Callable[..., Socket], archive: Path) -> None:
    """Half a file would be found, or stay in the archive for ever."""
    bounds = Bounds(patience=0.2)
    served = listen(make_app(bounds=bounds), bounds)
    head = f"PUT /objects/{DIGITS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n".encode() + DATA[:500]
    with served.raw(head):
        wait_until(lambda: files(archive), "the upload does not begin")
    wait_until(lambda: not files(archive), "half of the upload stays")
    with served.raw(head) as connection:  # it stops, and the connection stays
        assert read_all(connection)[:12] in (b"HTTP/1.1 408", b"")
    wait_until(lambda: not files(archive), "half of the upload stays")
    assert served.ask("PUT", f"/objects/{DIGITS}", DATA).code == 201


def test_two_uploads_at_once(app: App, listen: Callable[..., Socket], archive: Path) -> None:
    """Two who add the same file would disturb each other."""
    served = listen(app)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(served.ask("PUT", f"/objects/{DIGITS}", DATA).code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] * 7 + [201]
    assert files(archive) == [f"objects/{DIGITS[:2]}/{DIGITS[2:]}"]


def test_a_damaged_object(client: Client, archive: Path) -> None:
    """A client would take a damaged object for uploaded."""
    client.put(f"//objects/{DIGITS}", body=DATA)
    path = archive / files(archive)[0]
    path.chmod(0o644)
    path.write_bytes(b"x" + DATA[1:])
    assert client.put(f"//objects/{DIGITS}", body=DATA).code == 409


def test_an_archive_that_is_away(client: Client, archive: Path) -> None:
    """A client would be told that its files were never archived."""
    (archive / "tmp").rmdir()
    for reply in (
        client.get(f"//objects/{DIGITS}"),
        client.get("//index"),
        client.put(f"//objects/{DIGITS}", body=DATA),
    ):
        assert reply.code == 503


def test_a_cache_without_an_archive(client: Client, layout: Layout) -> None:
    """A client would be told that the server is broken."""
    Path(layout.config_file).write_text("")
    reply = client.get("//index")
    assert (reply.code, "archive" in reply.json["message"]) == (400, True)


def test_who_may_upload(make_app: Callable[..., App]) -> None:
    """Whoever may look could fill the archive, or a record would name somebody else."""
    assert Client(make_app(Allowed())).put(f"//objects/{DIGITS}", body=DATA).code == 403
    other = Client(make_app(Allowed(changes=True, writers=frozenset({"*"}))), 65534)
    assert other.put(f"//objects/{DIGITS}", body=DATA).code == 201
    other.post(f"//index/{DIGITS}", json={"by": "ada@host"})
    (entry,) = other.get("//index").json["entries"]
    assert entry["by"] != "ada@host"
