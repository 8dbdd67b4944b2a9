"""What is fetched is complete and right, or the fetch fails and says why."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import threading

import pytest
import urllib3

import httpserver
from faults import FakeClock, request_for, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import Exit, FetchFailed, NoSpace, UsageError
from sccache_dtool.fetch import http
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.run import fetch
from sccache_dtool.fetch.stack import parse_stack

BODY = bytes(range(256)) * 2000


class Recorder:
    """A Progress that remembers."""

    def __init__(self):
        self.started = []
        self.bytes = 0
        self.stages = []
        self.ended = 0
        self.moved = threading.Event()

    def start(self, label, total, there=0):
        self.started.append((label, total))

    def advance(self, n):
        self.bytes += n
        self.moved.set()

    def stage(self, text):
        self.stages.append(text)

    def done(self):
        self.ended += 1


@pytest.fixture
def area(tmp_path):
    path = tmp_path / "area"
    path.mkdir()
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with httpserver.serve() as server:
        yield server


def get(area, *words, fs=None, progress=None, label=None, clock=None):
    """Fetch what the words mean; what came, and where it lies."""
    fetched = fetch(
        store_of(fs or FileSystem(), None, clock=clock or FakeClock()),
        request_for(words, label),
        str(area),
        progress=progress or NoProgress(),
    )
    assert os.listdir(area) == ["payload"]
    assert os.listdir(area / "payload") == [fetched.name]
    return fetched, area / "payload" / fetched.name


def failure(area, *words, kind=FetchFailed, **options):
    """The error of a fetch that must fail, checked for what all of them owe the user."""
    with pytest.raises(kind) as caught:
        get(area, *words, **options)
    error = caught.value
    assert all(text.isprintable() for text in (error.message, *error.details, error.hint or ""))
    assert not os.path.isdir(area / "payload") or os.listdir(area / "payload") == []
    return error


# -- local -------------------------------------------------------------------------------------------------------------


def test_a_file_is_copied_and_sealed(area, tmp_path):
    """Users read what the source was, and cannot change it for each other."""
    source = tmp_path / "ref.fa"
    source.write_bytes(BODY)
    progress = Recorder()
    fetched, payload = get(area, str(source), progress=progress)
    assert payload.read_bytes() == BODY
    assert stat.S_IMODE(payload.stat().st_mode) & 0o222 == 0
    assert fetched[:5] == ("ref.fa", len(BODY), 1, {}, len(BODY))
    assert (progress.started, progress.bytes, progress.ended) == ([("ref.fa", len(BODY))], len(BODY), 1)
    assert source.read_bytes() == BODY


def test_a_program_stays_executable_and_a_private_file_private(area, tmp_path):
    """Tools run from the cache, and nobody reads there what he could not read before."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, mode in (("run", 0o755), ("secret", 0o600)):
        (tree / name).write_bytes(b"x")
        (tree / name).chmod(mode)
    _, payload = get(area, str(tree))
    assert stat.S_IMODE((payload / "run").stat().st_mode) & 0o100
    assert stat.S_IMODE((payload / "secret").stat().st_mode) == 0o400


def test_a_directory_is_copied_with_its_links(area, tmp_path):
    """A reference made of many files works in the cache as it did where it was."""
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(BODY)
    (tree / "inside").symlink_to("sub/file")
    (tree / "outside").symlink_to("/nowhere/at/all")
    (tree / "sub" / "new\nline").write_bytes(b"")
    fetched, payload = get(area, str(tree))
    assert (payload / "sub" / "file").read_bytes() == BODY
    assert (payload / "sub" / "new\nline").exists()
    assert os.readlink(payload / "inside") == "sub/file"
    assert os.readlink(payload / "outside") == "/nowhere/at/all"
    assert os.listdir(payload / "sub" / "empty") == []
    assert (fetched.bytes, fetched.entries, fetched.announced) == (len(BODY), 7, None)


def test_a_source_may_be_a_symbolic_link(area, tmp_path):
    """`/data/current` brings what it leads to, through relative links as well."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(BODY)
    (tmp_path / "real" / "latest").symlink_to("file")
    (tmp_path / "current").symlink_to("real/latest")
    _, payload = get(area, str(tmp_path / "current"))
    assert payload.name == "current"
    assert not payload.is_symlink()
    assert payload.read_bytes() == BODY


def test_a_link_that_leads_in_a_circle_is_an_error(area, tmp_path):
    """A broken source does not hang a job."""
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in failure(area, str(tmp_path / "loop")).message


def test_a_missing_file_is_named(area, tmp_path):
    """Who mistyped a path sees which."""
    error = failure(area, str(tmp_path / "missing"))
    assert f"file:{tmp_path}/missing" in error.message
    assert "No such file" in error.message
    assert error.exit_code == Exit.FETCH_FAILED


def test_a_file_that_cannot_be_read_is_named(area, tmp_path):
    """Who lacks a permission sees on which file of a directory."""

    class Refusing(FileSystem):
        def open(self, path):
            if path.endswith("/private"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return super().open(path)

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "private").write_bytes(b"")
    error = failure(area, str(tmp_path / "tree"), fs=Refusing())
    assert "Permission denied" in error.message
    assert f"{tmp_path}/tree/private" in error.message


@pytest.mark.parametrize("where", ["alone", "in a directory"])
def test_a_fifo_is_refused(area, tmp_path, where):
    """A source with a FIFO in it neither hangs the job nor is copied in part."""
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "pipe")
    error = failure(area, str(tree / "pipe" if where == "alone" else tree))
    assert f"{tree}/pipe" in error.message
    assert "a FIFO" in error.message


def test_devices_and_sockets_are_refused(area, tmp_path, monkeypatch):
    """`/dev/zero` does not fill the cache."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert "a socket" in failure(area, "socket").message
    other = tmp_path / "other"
    other.mkdir()
    assert "a device" in failure(other, "/dev/zero").message


def test_a_cache_within_the_source_is_refused(tmp_path):
    """Caching the directory that the cache lies in ends with an error, and not with a full disk."""
    area = tmp_path / "cache" / "area"
    area.mkdir(parents=True)
    assert "contain itself" in failure(area, str(tmp_path)).message


def test_a_directory_cannot_be_checked_or_unpacked(area, tmp_path):
    """Nobody believes that a digest was checked when it was not."""
    (tmp_path / "tree").mkdir()
    assert "it is a directory, and md5:" in failure(area, str(tmp_path / "tree"), f"md5:{'0' * 32}", "tar").message


@pytest.mark.parametrize("change", [BODY[:-1], BODY + b"more", BODY[::-1]], ids=["shorter", "longer", "other"])
def test_a_file_that_changes_while_it_is_copied_is_refused(area, tmp_path, change):
    """Half of an old and half of a new version is never published."""
    source = tmp_path / "ref"
    source.write_bytes(BODY)
    os.utime(source, (1, 1))

    class Meddling(FileSystem):
        def write(self, fd, data):
            super().write(fd, data)
            source.write_bytes(change)

    assert "changed while it was copied" in failure(area, str(source), fs=Meddling()).message


def test_a_file_that_ends_early_is_refused(area, tmp_path):
    """A source shorter than its size says does not count as done."""

    class Short(FileSystem):
        def read(self, fd, size=0):
            return b""

    (tmp_path / "ref").write_bytes(BODY)
    assert "0 copied" in failure(area, str(tmp_path / "ref"), fs=Short()).details[0]


def test_an_empty_stack_is_an_empty_directory(area):
    """A pure reference count has a path to give, too."""
    fetched, payload = get(area, label="counter")
    assert fetched[:5] == ("counter", 0, 1, {}, None)
    assert not fetched.versions
    assert os.listdir(payload) == []


def test_the_label_may_be_chosen_but_leads_nowhere_else(area, tmp_path):
    """A payload lies where the caller said, always within the work area."""
    (tmp_path / "ref").write_bytes(BODY)
    for label in ("..", ".", "a/b", "a\nb"):
        failure(area, str(tmp_path / "ref"), kind=UsageError, label=label)
    assert get(area, str(tmp_path / "ref"), label="mine")[0].name == "mine"


# -- no room -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "close", "seal", "mkdir", "extract"])
def test_a_full_disk_is_told_apart(area, tmp_path, server, code, call):
    """Who has no space left, or no quota, is told that and gets the exit code for it, whichever call finds out."""

    def full(*arguments, **options):
        raise OSError(code, os.strerror(code))

    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(BODY)
    words = [str(tree)]
    if call == "extract":
        import tarfile

        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tree, "tree")
        words = [server.page("/x.tar", (tmp_path / "x.tar").read_bytes()), "tar"]
    fs = FileSystem()
    setattr(fs, call, full)
    progress = Recorder()
    with pytest.raises(NoSpace) as caught:
        get(area, *words, fs=fs, progress=progress)
    assert "no space left" in caught.value.message
    assert parse_stack(words).source in caught.value.message
    assert caught.value.exit_code == Exit.NO_SPACE
    assert progress.ended == 1


# -- http --------------------------------------------------------------------------------------------------------------


def test_a_page_is_fetched_once(area, server):
    """What a server has is had, in one request, with progress in bytes."""
    progress = Recorder()
    fetched, payload = get(area, server.page("/a/ref.fa?v=1", BODY), progress=progress)
    assert payload.read_bytes() == BODY
    assert payload.name == "ref.fa"
    assert (fetched.bytes, fetched.announced) == (len(BODY), len(BODY))
    assert server.gets == {"/a/ref.fa?v=1": 1}
    assert (progress.started, progress.bytes, progress.ended) == ([("ref.fa", len(BODY))], len(BODY), 1)


def test_an_empty_page_is_an_empty_file(area, server):
    """An empty file is a file."""
    fetched, payload = get(area, server.page("/empty"))
    assert (fetched.bytes, fetched.announced, payload.read_bytes()) == (0, 0, b"")


def test_a_body_of_unannounced_length_is_fetched(area, server):
    """Servers that make pages as they send them work."""
    fetched, payload = get(area, server.page("/x", BODY, unannounced=True))
    assert (payload.read_bytes(), fetched.announced) == (BODY, None)


@pytest.mark.parametrize("status", [202, 204, 206, 300, 304, 403, 404, 500, 503])
def test_an_error_page_is_not_data(area, server, status):
    """A 404 page, or a part of a file, is never stored as success."""
    error = failure(area, server.page("/x", b"<html>sorry</html>" if status not in (204, 304) else b"", status=status))
    assert f"the server answered {status} " in error.message
    assert server.url("/x") in error.message
    assert ("netrc" in (error.hint or "")) == (status == 403)


def test_a_hostile_reason_does_not_reach_the_terminal(area, server):
    """A server cannot drive the terminal of who reads the error."""
    assert "418 tea [2J" in failure(area, server.page("/x", status=418, reason="tea\x1b[2J")).message


def test_a_short_body_is_refused(area, server):
    """A download that broke off is never taken for the file."""
    error = failure(area, server.page("/x", BODY, short=100_000))
    assert f"after 100000 of {len(BODY)} bytes" in error.message
    assert error.exit_code == Exit.FETCH_FAILED


def test_a_short_body_is_refused_whatever_the_library_does(area, server, monkeypatch):
    """With urllib3 before 2.0, which does not compare lengths, a download that broke off is noticed all the same."""
    original = urllib3.response.HTTPResponse.__init__

    def lenient(self, *arguments, **options):
        original(self, *arguments, **{**options, "enforce_content_length": False})

    monkeypatch.setattr(urllib3.response.HTTPResponse, "__init__", lenient)
    error = failure(area, server.page("/x", BODY, short=100_000))
    assert f"received 100000 bytes of {len(BODY)}" in error.message


def test_a_server_that_stalls_is_given_up(area, server, monkeypatch):
    """A dead server does not hold a job for ever."""
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.2)
    assert "no data for 0.2 s" in failure(area, server.page("/x", BODY, stall_after=1000)).message
    assert "no data for 0.2 s" in failure_elsewhere(area, server.page("/y", BODY, hold=True)).message


def failure_elsewhere(area, *words):
    other = area.parent / "other"
    other.mkdir()
    return failure(other, *words)


def test_a_slow_server_is_followed_as_it_sends(area, server):
    """Progress moves while a slow download is under way, and the whole of it arrives."""
    piece = http.NETWORK_CHUNK
    url = server.page("/x", bytes(2 * piece), drip=piece)
    progress = Recorder()
    server.let_drop()
    thread = threading.Thread(target=lambda: (progress.moved.wait(30), server.let_drop()))
    thread.start()
    fetched, _ = get(area, url, progress=progress)
    thread.join()
    assert (fetched.bytes, progress.bytes) == (2 * piece, 2 * piece)


def test_nobody_listening_is_said_in_words(area):
    """A server that is down is reported as that, in one line."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://me:hush@127.0.0.1:{unused.getsockname()[1]}/x"
        error = failure(area, url)
    assert error.message.endswith("Connection refused")
    assert "hush" not in error.message


def test_a_transfer_encoding_is_undone(area, server):
    """A server that compresses unasked delivers the file all the same."""
    progress = Recorder()
    url = server.page("/x", BODY, gzip=True)
    fetched, payload = get(area, url, f"md5:{hashlib.md5(BODY).hexdigest()}", progress=progress)
    assert payload.read_bytes() == BODY
    assert fetched.bytes == len(BODY)
    assert fetched.announced is not None
    assert fetched.announced < len(BODY)
    assert progress.started == [("x", None)]
    assert server.seen[0][1]["Accept-Encoding"] == "identity"


def test_a_damaged_transfer_encoding_is_refused(area, server):
    """Compressed data that was cut or damaged on the way is not published."""
    assert "cannot fetch" in failure(area, server.page("/x", BODY, headers={"Content-Encoding": "gzip"})).message
    assert "after 100 of" in failure_elsewhere(area, server.page("/y", BODY, gzip=True, short=100)).message


def test_redirects_are_followed(area, server):
    """A file that has moved is found, and keeps the name that was asked for."""
    server.page("/there", BODY)
    fetched, payload = get(area, server.redirect("/here", "/there"))
    assert (fetched.name, payload.read_bytes()) == ("here", BODY)
    assert server.gets == {"/here": 1, "/there": 1}


def test_redirects_in_a_circle_end(area, server):
    """A server that sends on and on does not hang a job."""
    assert "redirects" in failure(area, server.redirect("/x", "/x")).message


def test_redirects_lead_to_no_local_file(area, server, tmp_path):
    """A server cannot have files of this host published."""
    (tmp_path / "secret").write_bytes(b"secret")
    failure(area, server.redirect("/x", f"file://{tmp_path}/secret"))


def test_credentials_in_the_url_are_used_and_not_shown(area, server):
    """Protected data can be fetched, and errors do not give the password away."""
    server.page("/x", BODY, auth=("me", "hu@sh"))
    error = failure(area, server.url("/x", "me:wrong"))
    assert "401" in error.message
    assert "wrong" not in f"{error.message} {error.hint}"
    other = area.parent / "other"
    other.mkdir()
    assert get(other, server.url("/x", "me:hu%40sh"))[1].read_bytes() == BODY


def test_credentials_in_netrc_are_used(area, server, tmp_path):
    """Whoever keeps passwords in ~/.netrc need not write them anywhere else."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hush\n")
    (tmp_path / "netrc").chmod(0o600)
    assert get(area, server.page("/x", BODY, auth=("me", "hush")))[1].read_bytes() == BODY


def test_a_name_that_is_no_host_is_an_error_in_words(area, server):
    """An impossible host name gives no traceback."""
    assert "cannot fetch" in failure(area, f"http://{'a' * 70}.invalid/").message
    assert "cannot fetch" in failure_elsewhere(area, f"http://é{'a' * 70}.invalid/").message


def test_digests_are_taken_on_the_way(area, server):
    """A large file is not read twice to check it."""

    class NoReading(FileSystem):
        def read(self, fd, size=0):
            raise AssertionError("read again")

    md5, sha256 = hashlib.md5(BODY).hexdigest(), hashlib.sha256(BODY).hexdigest()
    fetched, _ = get(area, server.page("/x", BODY), f"md5:{md5}", f"sha256:{sha256}", fs=NoReading())
    assert fetched.digests == {"md5": md5, "sha256": sha256}


@pytest.mark.parametrize("position", [0, 1])
def test_a_wrong_digest_is_refused(area, server, position):
    """What is not what was promised is never published, and both digests are shown."""
    right, wrong = hashlib.sha256(BODY).hexdigest(), "0" * 64
    steps = [f"sha256:{right}"]
    steps.insert(position, f"sha256:{wrong}")
    error = failure(area, server.page("/x", BODY), *steps)
    assert f"is {right}, not {wrong}" in error.message
    assert server.url("/x") in error.message
    assert error.exit_code == Exit.FETCH_FAILED


def test_a_link_in_a_cache_that_leads_upwards_is_followed(get, tmp_path):
    """What a view of a dataset shows could not be put into another cache."""
    view = tmp_path / ".sc-dtool" / "items" / "view"
    view.mkdir(parents=True)
    (tmp_path / ".sc-dtool" / "items" / "ref.fa").write_text("ACGT")
    (view / "link").symlink_to("../../items/ref.fa")
    (view / "again").symlink_to("./../view/link")
    assert get(str(view / "link")) == get(str(view / "again")) == b"ACGT"
