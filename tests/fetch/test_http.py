"""Downloads survive what the network does to them, and what they give is the file, or an error that says why."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client as http_client
import importlib
import os
import re
import socket
import ssl
import time
import traceback
import zlib
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler

import pytest
import requests
import urllib3

import httpserver
from faults import FakeClock, request_for, store_of
from httpserver import Page, past_proxies
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import FetchFailed, NoSpace
from sccache_dtool.fetch import codings, http, retry, sources, transport
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.request import Terms
from sccache_dtool.fetch.run import fetch
from sccache_dtool.fetch.stack import parse_stack
from sccache_dtool.log import Log

BODY = os.urandom(500_000)
OTHER = os.urandom(500_000)
ETAG = '"one"'


class Slept(FakeClock):
    """A clock that notes how long somebody slept."""

    def __init__(self):
        super().__init__()
        self.naps = []

    def sleep(self, seconds):
        self.naps.append(seconds)
        super().sleep(seconds)


@pytest.fixture
def clock():
    return Slept()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(retry, "FIRST_PAUSE", 1.0)
    with httpserver.serve() as server:
        yield server


class Notes(Log):
    """Hands on what is noted."""

    def __init__(self, tell):
        super().__init__()
        self.note = tell


@pytest.fixture
def get(tmp_path, clock):
    """Fetches what the words mean; the content."""
    count = iter(range(100))

    def run(*words, **more):
        area = tmp_path / f"area-{next(count)}"
        area.mkdir()
        store = store_of(FileSystem(), None, clock=more.pop("clock", clock))
        if "note" in more:
            store = store.logging_to(Notes(more.pop("note")))
        terms = Terms(60, rate=more.pop("rate")) if "rate" in more else None
        fetched = fetch(store, request_for(words), str(area), **{"progress": NoProgress(), **more}, terms=terms)
        assert os.listdir(area) == ["payload"]
        payload = area / "payload" / fetched.name
        if payload.is_dir():
            return {path.name: path.read_bytes() for path in payload.iterdir()}
        return payload.read_bytes()

    return run


def md5(data):
    return f"md5:{hashlib.md5(data).hexdigest()}"


def refused(get, *words):
    with pytest.raises(FetchFailed) as caught:
        get(*words)
    return caught.value


# -- trying again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(get, server, clock, status):
    """A job would fail because a server restarted."""
    url = server.pages("/x", Page(b"sorry", status), Page(b"sorry", status), Page(BODY))
    assert get(url) == BODY
    assert server.gets["/x"] == 3
    assert 0.5 <= clock.naps[0] <= 1.5
    assert 1 <= clock.naps[1] <= 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 501])
def test_a_final_answer_is_final(get, server, clock, status):
    """A job that mistyped a URL would wait for minutes before it is told."""
    refused(get, server.page("/x", b"no", status=status))
    assert (server.gets["/x"], clock.naps) == (1, [])


def test_a_server_says_how_long_to_wait(get, server, clock):
    """Who asks too early again is locked out by many servers."""
    late = formatdate(time.time() + 540, usegmt=True)
    url = server.pages(
        "/x",
        Page(b"", 429, headers={"Retry-After": "17"}),
        Page(b"", 503, headers={"Retry-After": late}),
        Page(b"", 503, headers={"Retry-After": "soon"}),
        Page(BODY),
    )
    assert get(url) == BODY
    assert clock.naps[0] == 17
    assert 60 < clock.naps[1] <= 540  # longer than any pause of its own, however long the test takes
    assert clock.naps[2] < 10


def test_a_pause_is_told_before_it_is_made(get, server):
    """A job would stand still for ten minutes without a word, because a server asked for it."""
    said = []
    url = server.pages("/x", Page(b"", 503, "Busy", headers={"Retry-After": "540"}), Page(BODY))
    assert get(url, note=said.append) == BODY
    assert said == [f"{url}: the server answered 503 Busy; trying again in 9 min"]


def test_a_server_that_wants_too_much_patience_is_given_up(get, server, clock):
    """A job would sleep for a day because a server said so."""
    error = refused(get, server.page("/x", b"", status=503, headers={"Retry-After": "86400"}))
    assert "try again after 24 h" in error.hint
    assert clock.naps == []


@pytest.mark.parametrize("after", ["0", "Mon, 01 Jan 2001 00:00:00 GMT", "Mon, 01 Jan 2001 00:00:00 -0000"])
def test_a_server_that_says_at_once_is_given_time_all_the_same(get, server, clock, after):
    """All five attempts would be made within a blink, and the job would fail that a second's patience had saved."""
    refused(get, server.page("/x", b"", status=503, headers={"Retry-After": after}))
    assert all(nap >= 0.5 * 2**number for number, nap in enumerate(clock.naps))


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "Mon, 01 Jan 2024 00:00:00 +99999999999999999999"},
        {"Retry-After": "9" * 400},
        {"Retry-After": "9" * 5000},
        {"Retry-After": "-3"},
        {"Retry-After": "Mon, 01 Jan 99999999 00:00:00 GMT"},
        {"Date": "Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
    ],
)
def test_numbers_that_no_clock_knows_are_no_traceback(get, server, headers):
    """A word of a server would look like a fault of ours, and those who wait would not be told."""
    status = 503 if "Retry-After" in headers else 404
    assert str(status) in refused(get, server.page("/x", b"no", status=status, headers=headers)).message
    if status == 404:
        assert get(server.page("/y", BODY, headers=headers)) == BODY


def test_a_redirect_to_what_is_no_url_is_an_error_in_words(get, server):
    """A proxy's mistake would look like a fault of ours, and those who wait would not be told."""
    assert "Invalid IPv6 URL" in refused(get, server.redirect("/x", "http://[::1")).message


def test_somebody_who_never_answers_is_given_up(get, server, clock):
    """A dead server would be asked for ever."""
    error = refused(get, server.page("/x", b"", status=503))
    assert "503" in error.message
    assert error.details == (f"gave up after {retry.TRIES} attempts",)
    assert server.gets["/x"] == retry.TRIES
    assert all(nap < 1.5 * retry.LONGEST_PAUSE for nap in clock.naps)


def test_pauses_grow_and_are_spread(monkeypatch):
    """A thousand clients of one server would return in the same second, again and again."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 1.0)
    for number, middle in ((1, 1), (2, 2), (3, 4), (30, retry.LONGEST_PAUSE)):
        pauses = [retry.pause(number) for _ in range(200)]
        assert 0.5 * middle <= min(pauses) < max(pauses) <= 1.5 * middle
        assert max(pauses) - min(pauses) > 0.5 * middle


def test_a_connection_that_is_reset_is_made_again(get, server):
    """A firewall that forgets a connection would end the job."""
    url = server.pages("/x", Page(BODY, short=100_000, reset=True), Page(BODY))
    assert get(url) == BODY


def test_a_host_without_a_name_is_not_asked_again(get, monkeypatch, clock):
    """A mistyped host would cost a minute."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror(-2, "unknown")))
    refused(get, "http://no-such-host.invalid/x")
    assert clock.naps == []


# -- going on where it broke off ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["etag", "date"])
def test_a_broken_download_is_continued(get, server, how):
    """A file of a terabyte would never come through a line that breaks once an hour."""
    named = {"etag": ETAG} if how == "etag" else {"headers": {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}}
    url = server.pages("/x", Page(BODY, short=200_000, **named), Page(BODY, **named))
    assert get(url, md5(BODY)) == BODY
    assert server.ranges("/x") == [None, "bytes=200000-"]
    assert server.seen[1][1]["If-Range"] == (ETAG if how == "etag" else "Wed, 21 Oct 2015 07:28:00 GMT")


def test_progress_makes_patience_new(get, server):
    """A line that breaks often, and brings something each time, would be given up."""
    cuts = [Page(BODY, short=10_000, etag=ETAG)]
    cuts += [
        Page(BODY, etag=ETAG, part=BODY[n : n + 10_000], announced=500_000 - n) for n in range(10_000, 100_000, 10_000)
    ]
    assert get(server.pages("/x", *cuts, Page(BODY, etag=ETAG))) == BODY
    assert server.gets["/x"] == 11


def test_a_file_that_changed_between_two_halves_is_fetched_again(get, server):
    """Half of the old and half of the new version would be published as one file."""
    url = server.pages("/x", Page(BODY, short=200_000, etag=ETAG), Page(OTHER, etag='"two"'))
    assert get(url) == OTHER
    assert server.ranges("/x") == [None, "bytes=200000-"]


def test_a_server_that_ignores_if_range_is_found_out(get, server):
    """A server that sends the rest of another version would have us put two halves together."""
    lying = Page(OTHER, etag='"two"', part=OTHER[200_000:], announced=300_000)
    url = server.pages("/x", Page(BODY, short=200_000, etag=ETAG), lying._replace(etag=ETAG), Page(OTHER, etag='"two"'))
    assert get(url, md5(OTHER)) == OTHER  # the digest tells, and it is fetched once more from scratch
    assert server.ranges("/x")[-1] is None


@pytest.mark.parametrize("part", [BODY[100_000:], BODY[300_000:], b""], ids=["more", "less", "nothing"])
def test_a_part_of_another_size_is_no_rest(get, server, part):
    """A server that miscounts would give a file with a hole, or with something twice."""
    wrong = Page(BODY, etag=ETAG, part=part, announced=len(part))
    url = server.pages("/x", Page(BODY, short=200_000, etag=ETAG), wrong, Page(BODY, etag=ETAG))
    assert get(url) == BODY


def test_without_a_validator_nothing_is_continued(get, server):
    """What cannot be told from another version would be put together with it."""
    url = server.pages("/x", Page(BODY, short=200_000), Page(BODY))
    assert get(url) == BODY
    assert server.ranges("/x") == [None, None]


def test_a_weak_validator_is_none(get, server):
    """W/"…" says that two versions are equal enough for people, not byte for byte."""
    url = server.pages("/x", Page(BODY, short=200_000, etag='W/"one"'), Page(BODY, etag='W/"one"'))
    assert get(url) == BODY
    assert server.ranges("/x") == [None, None]


def test_a_file_changed_within_the_second_has_no_date(get, server, monkeypatch):
    """A date of one second cannot tell two versions of that second apart."""
    now = {"Last-Modified": formatdate(usegmt=True)}
    monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda self: now["Last-Modified"])
    url = server.pages("/x", Page(BODY, short=200_000, headers=now), Page(BODY, headers=now))
    assert get(url) == BODY
    assert server.ranges("/x") == [None, None]


def test_with_a_digest_the_rest_of_anything_may_be_tried(get, server):
    """Servers without validators are many; where a digest will tell, their files can be continued as well."""
    url = server.pages("/x", Page(BODY, short=200_000), Page(BODY))
    assert get(url, md5(BODY)) == BODY
    assert server.ranges("/x") == [None, "bytes=200000-"]


def test_a_wrong_digest_after_a_continuation_is_tried_once_more(get, server):
    """Two halves that do not belong together would be reported as a damaged source."""
    url = server.pages("/x", Page(OTHER, short=200_000, etag=ETAG), Page(BODY, etag=ETAG), Page(BODY, etag=ETAG))
    assert get(url, md5(BODY)) == BODY
    assert server.ranges("/x") == [None, "bytes=200000-", None]


def test_a_wrong_digest_is_not_fetched_for_ever(get, server):
    """A wrong digest on the command line would download a terabyte again and again."""
    error = refused(get, server.page("/x", BODY), md5(OTHER))
    assert "md5 of" in error.message
    assert server.gets["/x"] == 1
    url = server.pages("/y", Page(BODY, short=200_000, etag=ETAG), Page(BODY, etag=ETAG))
    refused(get, url, md5(OTHER))
    assert server.gets["/y"] == 3


def test_a_range_beyond_the_end_begins_again(get, server):
    """A file that became shorter would be asked for what it has not, for ever."""
    url = server.pages("/x", Page(BODY, short=200_000, etag=ETAG), Page(BODY[:100], etag=ETAG), Page(BODY[:100]))
    assert get(url) == BODY[:100]


def test_what_was_decoded_is_not_continued(get, server):
    """Ranges count compressed bytes, and would be glued to decompressed ones."""
    url = server.pages("/x", Page(BODY, gzip=True, short=1000, etag=ETAG), Page(BODY, gzip=True, etag=ETAG))
    assert get(url) == BODY
    assert server.ranges("/x") == [None, None]


# -- what is the file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.gz", "x.tgz", "x.tar.gz"])
def test_a_compressed_file_stays_compressed(get, server, name):
    """A .gz whose server labels it as coded would be unpacked behind the user's back, and fail its digest."""
    packed = gzip.compress(BODY)
    url = server.page(f"/{name}", packed, headers={"Content-Encoding": "gzip"})
    assert get(url, md5(packed)) == packed


@pytest.mark.parametrize("coding", ["br9", "gzip, br9"])
def test_a_coding_that_nobody_knows_is_refused(get, server, coding):
    """Compressed bytes would be published as the file, because this host cannot decompress them."""
    error = refused(get, server.page("/x", BODY, headers={"Content-Encoding": coding}))
    assert "Content-Encoding br9" in error.message


def test_what_is_not_coded_as_it_says_is_refused_in_words(get, server):
    """Who reads the log would find the names of three libraries' exceptions."""
    error = refused(get, server.page("/x", BODY, headers={"Content-Encoding": "gzip"}))
    assert error.message.endswith("the response cannot be decoded as its Content-Encoding says")


def test_a_page_that_says_sorry_with_status_200_fails_its_digest(get, server):
    """A login page would be read as data by every job to come."""
    assert "md5" in refused(get, server.page("/x", b"<html>please log in</html>"), md5(BODY)).message


def test_a_server_that_announces_too_much_or_too_little(get, server):
    """A body that is not as long as announced would be taken for whole."""
    assert refused(get, server.page("/x", BODY, announced=600_000))
    assert get(server.page("/y", BODY, announced=400_000)) == BODY[:400_000]  # more cannot be seen: HTTP ends there


@pytest.mark.parametrize("length", ["-5", "9" * 5000, "five", ""])
def test_a_length_that_is_none_is_an_error(get, server, length):
    """Where the end is not known, a body that was cut would be taken for whole."""
    headers = {"Content-Length": length}
    assert "is not a number" in refused(get, server.page("/x", BODY, unannounced=True, headers=headers)).message


def test_a_length_that_is_said_twice_is_one(get, server):
    """Two proxies behind each other may each say it."""
    headers = {"Content-Length": f"{len(BODY)}, {len(BODY)}"}
    assert get(server.page("/x", BODY, unannounced=True, headers=headers)) == BODY
    assert refused(get, server.page("/y", BODY, short=200_000, unannounced=True, headers=headers))


def test_the_user_in_a_url_wins_over_netrc(get, server, tmp_path):
    """Who writes a user into the URL, because that of ~/.netrc may not read it, would be sent as the latter."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password wrong\n")
    (tmp_path / "netrc").chmod(0o600)
    server.page("/x", BODY, auth=("me", "hush"))
    assert get(server.url("/x", "me:hush")) == BODY


def test_a_password_does_not_follow_a_redirect_to_another_host(get, server):
    """A server could collect passwords by sending people on to it."""
    with httpserver.serve() as other:
        other.page("/y", BODY)
        target = other.url("/y").replace("127.0.0.1", "localhost")
        server.redirect("/x", target)
        os.environ["no_proxy"] = "127.0.0.1,localhost"
        assert get(server.url("/x", "me:hush")) == BODY
        assert "Authorization" not in other.seen[0][1]


def test_a_proxy_is_used(get, server, monkeypatch):
    """On many clusters there is no other way out."""
    monkeypatch.setenv("http_proxy", server.url("").rstrip("/"))
    server.page("http://elsewhere.invalid/x", BODY)
    assert get("http://elsewhere.invalid/x") == BODY


def test_a_proxy_is_passed_by_where_it_is_told_so(get, server, monkeypatch):
    """`no_proxy` is how a site's own servers are reached."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    assert get(server.page("/x", BODY)) == BODY


# -- several -----------------------------------------------------------------------------------------------------------


def test_a_mirror_is_asked_when_one_fails(get, server):
    """A file that two servers have would be lost with one of them."""
    words = f"{server.page('/gone', b'', status=404)}|{server.page('/bad', OTHER)}|{server.page('/good', BODY)}"
    assert get(words, md5(BODY)) == BODY
    assert server.gets == {"/gone": 1, "/bad": 1, "/good": 1}


def test_what_a_bad_mirror_sent_is_not_counted(get, server):
    """A bar would show twice the bytes, and others would be told that more is there than is."""

    class Count(NoProgress):
        bytes = 0

        def advance(self, n):
            self.bytes += n

    count = Count()
    assert get(f"{server.page('/bad', OTHER)}|{server.page('/good', BODY)}", md5(BODY), progress=count) == BODY
    assert count.bytes == len(BODY)


def test_all_mirrors_that_fail_are_named(get, server):
    """Who asked three servers wants to know what each of them said."""
    error = refused(get, f"{server.page('/a', b'', status=404)}|{server.page('/b', b'', status=410)}")
    assert "from any of 2 mirrors" in error.message
    assert ["404" in error.details[0], "410" in error.details[1]] == [True, True]


def test_several_sources_are_one_item(get, server):
    """The chromosomes of a genome are used together, or not at all."""
    a, b = server.page("/a.gz", gzip.compress(BODY)), server.page("/b.gz", gzip.compress(OTHER))
    assert get(a, b, "gz") == {"a": BODY, "b": OTHER}


def test_one_bad_source_of_several_fails_all(get, server):
    """A genome without one chromosome would be published."""
    refused(get, server.page("/a", BODY), server.page("/b", b"", status=404))


# -- limits ------------------------------------------------------------------------------------------------------------


def test_the_rate_is_kept(get, server, clock):
    """A cluster's line to the world would be full for everybody."""
    assert get(server.page("/x", BODY), rate=100_000) == BODY
    assert 4 <= sum(clock.naps) <= 6


def test_a_large_file_takes_little_memory(tmp_path, server):
    """A job with a memory limit would be killed for a download."""
    import subprocess
    import sys

    size = 150 << 20
    url = server.page("/x", bytes(size))
    code = (
        "import sys\n"
        "from sccache_dtool.fetch.run import fetch\n"
        "from sccache_dtool.fetch.progress import NoProgress\n"
        "from sccache_dtool.fetch.request import Request\n"
        "from sccache_dtool.fetch.stack import parse_stack\n"
        "from sccache_dtool.clock import Clock\n"
        "from sccache_dtool.disk.filesystem import FileSystem\n"
        "from sccache_dtool.disk.names import Layout\n"
        "from sccache_dtool.liveness.process import Proc\n"
        "from sccache_dtool.protocol.store import Store\n"
        "store = Store(FileSystem(), Layout('/nowhere'), Clock(), Proc(), '')\n"
        "stack = parse_stack(sys.argv[2:])\n"
        "fetch(store, Request('', None, 'x', stack), sys.argv[1], progress=NoProgress())\n"
        # Not ru_maxrss, in which the process that forked us counts as well.
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), url, f"sha256:{hashlib.sha256(bytes(size)).hexdigest()}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) < 100 << 10


def test_what_a_source_announces_is_asked_without_a_get(server):
    """Where to put a file would be found out by fetching it."""
    url = server.page("/x", BODY)
    (chain,) = parse_stack([url]).chains
    assert sources.announced(chain.mirrors) == len(BODY)
    (chain,) = parse_stack([server.page("/y", b"", status=404)]).chains
    assert sources.announced(chain.mirrors) is None
    assert not server.gets


def test_a_server_that_does_not_say_its_size_is_not_waited_for(server, monkeypatch):
    """A job that gives a choice of directories would stand still for a minute for each mirror before it begins."""
    monkeypatch.setattr(http, "SIZE_TIMEOUT", 0.2)
    silent, other = server.page("/x", BODY, hold=True), server.page("/y", BODY)
    assert sources.announced(parse_stack([f"{silent}|{other}"]).chains[0].mirrors) == len(BODY)


def test_a_read_takes_larger_pieces_on_a_fast_line(get, server, monkeypatch):
    """A fast line would be slowed down by the counting of small pieces; nothing is lost at the change."""
    monkeypatch.setattr(http, "TRIED_FOR", 100_000)
    body = os.urandom(3_000_001)
    assert get(server.page("/x", body), md5(body)) == body


@pytest.mark.parametrize(
    ("status", "query", "shared"),
    [
        (404, "", True),
        (410, "", True),
        (404, "?token=SECRET", True),
        (400, "", False),
        (400, "?token=SECRET", False),
        (401, "", False),
        (403, "?token=SECRET", False),
        (300, "", False),
    ],
)
def test_a_refusal_of_one_asker_is_not_that_of_all(get, server, status, query, shared):
    """Those who wait would fail for another's expired signature, or each would ask for a file that is not there."""
    url = server.page(f"/x{query}", b"no", status=status)
    assert refused(get, url).shared == shared
    assert server.gets[f"/x{query}"] == 1
    assert refused(get, f"{url}|{server.page('/y', status=404)}").shared == shared


def test_a_dead_mirror_is_asked_once_for_a_change(get, server, clock):
    """A check of a file with mirrors would wait for the one that has gone, before it asks the next."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        (chain,) = parse_stack([f"{dead}|{server.url('/x')}"]).chains
        fact = {"source": dead, "etag": ETAG}
        before = clock.monotonic()
        assert not sources.is_unchanged(store_of(FileSystem(), None, clock=clock), chain, fact)
        assert clock.monotonic() == before


# -- what RFC 9110 and 9112 allow, and what they forbid ----------------------------------------------------------------

SMALL = b"0123456789" * 1000


def short_id(value):
    """A name for a parameter of a test that is the same in every process: those of bytes are not."""
    return "body" if isinstance(value, bytes) else "-".join(value) if isinstance(value, list) else None


def answer(body=SMALL, *fields, status="200 OK", length=True, first=b""):
    """An answer, byte by byte. It says that it is the connection's last: a client may be too quick to see that."""
    fields = fields if any(field.startswith("Connection:") for field in fields) else (*fields, "Connection: close")
    lines = [f"HTTP/1.1 {status}", *fields, *([f"Content-Length: {len(body)}"] if length else []), "", ""]
    return first + "\r\n".join(lines).encode("latin-1") + body


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def chunked(body, *, size=1000, end=b"0\r\n\r\n"):
    parts = (body[n : n + size] for n in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


@pytest.fixture
def get_raw(get, monkeypatch, tmp_path):
    """What is fetched from a server that sends these answers."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def run(*answers, digest=None, path="/x", **more):
        with httpserver.raw(*answers) as server:
            return get(server.url(path), *([digest] if digest else []), **more)

    return run


def refused_raw(get_raw, *answers, **more):
    with pytest.raises(FetchFailed) as caught:
        get_raw(*answers, **more)
    return caught.value


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 20,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 103\r\nLink: </b>\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 199 Whatever\r\nContent-Length: 7\r\n\r\n",
    ],
    ids=["100", "102", "103", "both"],
)
def test_an_informational_answer_is_not_the_final_one(get_raw, first):
    """A file behind a server that sends hints first could not be had."""
    assert get_raw(answer(first=first)) == SMALL


@pytest.mark.parametrize("first", [b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 103 Hint\r\n\r\n" * 1000])
def test_what_never_becomes_an_answer_is_an_error(get_raw, first):
    """A server that talks for ever before its answer would hold a job for ever."""
    assert "cannot fetch" in refused_raw(get_raw, answer(first=first)).message


@pytest.mark.parametrize("length", ["10000", "17", "20000", "many"])
def test_chunks_override_a_length(get_raw, length):
    """A file that is whole would be given up, because a proxy left a second length in the answer."""
    fields = ("Transfer-Encoding: chunked", f"Content-Length: {length}")
    assert get_raw(answer(chunked(SMALL), *fields, length=False)) == SMALL


def test_a_transfer_coding_is_undone(get_raw):
    """The compressed bytes, or the marks of the chunks, would be published as the file."""
    body = chunked(gzip.compress(SMALL))
    assert get_raw(answer(body, "Transfer-Encoding: gzip, chunked", length=False)) == SMALL
    error = refused_raw(get_raw, answer(body, "Transfer-Encoding: odd, chunked", length=False))
    assert "Transfer-Encoding odd" in error.message


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (["Content-Length: 20000"], SMALL),
        (["Content-Length: 20000", "Connection: keep-alive"], SMALL),
        (["Transfer-Encoding: chunked"], chunked(SMALL, end=b"")),
        (["Transfer-Encoding: chunked"], chunked(SMALL)[:-700]),
        (["Transfer-Encoding: chunked", "Content-Length: 10000"], chunked(SMALL, end=b"")),
        (["Content-Encoding: gzip"], gzip.compress(BODY)[:-100]),
        (["Content-Encoding: gzip"], gzip.compress(BODY)[:-4]),
        (["Content-Encoding: gzip", "Content-Length: 1000"], gzip.compress(BODY)[:1000]),
        (["Content-Encoding: deflate"], zlib.compress(BODY)[:-4]),
        (["Content-Encoding: gzip", "Transfer-Encoding: chunked"], chunked(gzip.compress(SMALL)[:-9])),
        (["Transfer-Encoding: gzip, chunked"], chunked(gzip.compress(SMALL)[:-9])),
    ],
    ids=short_id,
)
def test_a_body_that_is_cut_is_reported_as_cut(get_raw, head, body):
    """Half a file would be published, and read by every job to come."""
    error = refused_raw(get_raw, answer(body, *head, length=False))
    assert "ended early" in error.message or "is truncated" in error.message


def test_a_tls_connection_that_ends_without_saying_so_is_cut(get, tmp_path, monkeypatch):
    """Whoever can end a connection could have half a file published: TLS says where it ends (RFC 9112, 9.8)."""
    context = certified(tmp_path, monkeypatch)
    with httpserver.raw(answer(length=False), tls=context) as server:
        assert "ended early" in refused(get, server.url()).message
        assert server.connections == retry.TRIES
    with httpserver.raw(answer(), tls=context) as server:
        assert get(server.url()) == SMALL  # a length says so, too
    with httpserver.raw(answer(chunked(SMALL), "Transfer-Encoding: chunked", length=False), tls=context) as server:
        assert get(server.url()) == SMALL


def certified(tmp_path, monkeypatch):
    """A context for a server on the loopback interface, which clients are made to trust."""
    import shutil
    import ssl
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *names], check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize(
    "coding",
    [
        "aws-chunked",
        "UTF-8",
        "none",
        "identity",
        "",
        ",",
        "aws-chunked, identity",
        "binary",
        "utf8; q=1",
        "aws-chunked,",
    ],
)
def test_what_gateways_store_with_objects_is_no_coding(get_raw, coding):
    """An object that was uploaded in chunks could not be had from a gateway that noted it as its coding."""
    assert get_raw(answer(SMALL, f"Content-Encoding: {coding}")) == SMALL


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(SMALL)),
        ("X-GZip", gzip.compress(SMALL)),
        ("aws-chunked,gzip", gzip.compress(SMALL)),
        ("gzip, gzip", gzip.compress(gzip.compress(SMALL))),
        ("gzip", gzip.compress(SMALL[:5000]) + gzip.compress(SMALL[5000:]) + b"\0" * 512),
        ("deflate", zlib.compress(SMALL)),
        ("deflate", raw_deflate(SMALL)),
    ],
    ids=short_id,
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_coding_is_undone_whatever_the_pieces(get_raw, coding, body, size):
    """A file would be damaged where its pieces happen to be cut."""
    fields = (f"Content-Encoding: {coding}", "Transfer-Encoding: chunked")
    assert get_raw(answer(chunked(body, size=size), *fields, length=False)) == SMALL


def test_an_empty_file_is_empty_whatever_its_coding(get_raw):
    """An empty file would be an error because a server compresses everything."""
    assert get_raw(answer(b"", "Content-Encoding: gzip")) == b""


def test_a_digest_decides_about_codings(get_raw):
    """A file whose provider counts the bytes as they are stored, coded, would fail its digest for ever."""
    packed = gzip.compress(SMALL)
    coded = answer(packed, "Content-Encoding: gzip")
    assert get_raw(coded, digest=md5(packed)) == packed
    assert get_raw(coded, digest=md5(SMALL)) == SMALL
    assert get_raw(answer(SMALL, "Content-Encoding: odd"), digest=md5(SMALL)) == SMALL
    assert "md5 of" in refused_raw(get_raw, answer(SMALL, "Content-Encoding: odd"), digest=md5(OTHER)).message
    assert "give a digest" in refused_raw(get_raw, answer(SMALL, "Content-Encoding: odd")).hint


@pytest.mark.parametrize("how", ["redirect", "disposition"])
def test_a_compressed_file_stays_so_whoever_names_it(get, server, how):
    """A .gz that an address without a name leads to would be unpacked behind the user's back."""
    packed = gzip.compress(BODY)
    headers = {"Content-Encoding": "gzip"}
    if how == "redirect":
        url = server.redirect("/latest", server.page("/v1/ref.tar.gz?x=1", packed, headers=headers))
    else:
        headers["Content-Disposition"] = 'attachment; filename="ref.tar.gz"'
        url = server.page("/latest", packed, headers=headers)
    assert get(url) == packed


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200\r\nContent-Length: 10000\r\n\r\n" + SMALL,
        b"HTTP/1.1 200 \r\nContent-Length: 10000\r\n\r\n" + SMALL,
        b"HTTP/1.0 200 OK\r\n\r\n" + SMALL,
        b"HTTP/1.0 200 OK\r\nContent-Length: 10000\r\n\r\n" + SMALL,
        b"HTTP/1.1 200 OK\nContent-Length: 10000\n\n" + SMALL,
        b"HTTP/1.1 200 OK\r\nX-Long: a\r\n  b\r\nContent-Encoding:\r\n identity\r\nContent-Length: 10000\r\n\r\n"
        + SMALL,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\nContent-Length: 10000\r\n\r\n" + SMALL,
        b'HTTP/1.1 200 OK\r\nETag: "a"\r\nETag: "b"\r\nContent-Length: 10000\r\n\r\n' + SMALL,
        b"HTTP/1.1 203 Changed\r\nX: " + b"y" * 60_000 + b"\r\nContent-Length: 10000\r\n\r\n" + SMALL,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunked(SMALL, end=b"0;x=y\r\nTrailer: 1\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 10000\r\n\r\n" + SMALL,
    ],
    ids=short_id,
)
def test_odd_and_legal_answers_are_understood(get_raw, reply):
    """A file on an old or careless server could not be had."""
    assert get_raw(reply) == SMALL


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "reset"),
        (b"SSH-2.0-OpenSSH\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456", "Content-Length"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk|not valid"),
        (answer(b"", status="204 No Content"), "204"),
        (answer(b"", status="205 Reset Content"), "205"),
        (answer(b"", status="304 Not Modified"), "304"),
        (answer(b"", status="202 Accepted"), "202"),
        (answer(b"", status="300 Choices"), "300 Choices, without a Location"),
        (answer(b"", status="302 Found"), "302 Found, without a Location"),
        (answer(b"", "Location:", status="302 Found"), "302 Found, without a Location"),
        (answer(b"12345", "Content-Range: bytes 0-4/10", status="206 Partial"), "206"),
        (answer(b"12345", "Content-Type: multipart/byteranges; boundary=x", status="206 Partial"), "206"),
        (answer(b"", "Location: file:///etc/passwd", status="302 Found"), "not followed: file:///etc/passwd"),
        (answer(b"", "Location: ftp://h/x", status="302 Found"), "not followed: ftp://h/x"),
        (answer(b"", "Location: /x", status="302 Found"), "more than 30 redirects"),
        (answer(b"", "Location: http://", status="302 Found"), "cannot fetch"),
        (answer(b"", f"Location: http://{'a' * 300}/", status="302 Found"), "cannot fetch"),
        (answer(b"", "Location: http://a..b/", status="302 Found"), "cannot fetch"),
        (answer(b"", "Location: http://h:99999/", status="302 Found"), "cannot fetch"),
        (answer(b"", "Location: http://[::1", status="302 Found"), "cannot fetch"),
    ],
    ids=short_id,
)
def test_every_other_answer_is_an_error_in_words(get_raw, get, reply, reason):
    """A fault of a server would look like one of this program, and no other mirror would be asked."""
    assert re.search(reason, refused_raw(get_raw, reply).message)
    with httpserver.raw(reply) as bad, httpserver.raw(answer()) as good:
        assert get(f"{bad.url()}|{good.url()}") == SMALL


def test_the_whole_file_as_a_part_is_the_whole_file(get_raw):
    """A proxy that asked for a range would stand between a job and its file."""
    assert get_raw(answer(SMALL, "Content-Range: bytes 0-9999/10000", status="206 Partial")) == SMALL


# -- redirects ---------------------------------------------------------------------------------------------------------


def test_a_redirect_may_need_a_cookie(get, server):
    """A server that sends people round to set a cookie would send us round for ever."""
    url = server.pages("/x", Page(b"", 302, headers={"Location": "/x", "Set-Cookie": "seen=yes; Path=/"}), Page(BODY))
    assert get(url) == BODY
    assert server.seen[1][1]["Cookie"] == "seen=yes"


def test_the_body_of_a_redirect_is_not_read(get, server):
    """A server could fill the memory of a job with a page that nobody wants."""
    server.page("/x", BODY, status=302, headers={"Location": "/y"}, stall_after=10)
    server.page("/y", OTHER)
    assert get(server.url("/x")) == OTHER


def test_a_user_in_a_redirect_is_sent(get, server):
    """Some archives hand out their files in this way, and curl understands it."""
    server.page("/y", BODY, auth=("me", "hush"))
    assert get(server.redirect("/x", server.url("/y", "me:hush"))) == BODY


def test_a_redirect_to_what_is_not_encrypted_is_said(get, tmp_path, monkeypatch):
    """Whoever asked for https would not know that anybody on the way may have changed the file."""
    said = []
    with httpserver.raw(answer()) as plain:
        there = answer(b"", f"Location: {plain.url('/y?token=SECRET')}", status="302 Found")
        with httpserver.raw(there, tls=certified(tmp_path, monkeypatch)) as server:
            assert get(server.url(), note=said.append) == SMALL
            (note,) = said
            assert note.startswith(f"{server.url()}: redirected from https to http")


def test_an_address_of_version_6_is_one(get):
    """Hosts without a name, and without version 4, could not be asked."""
    if not socket.has_ipv6:
        pytest.skip("needs IPv6")
    try:
        with httpserver.raw(answer(), host="::1") as server:
            assert get(server.url()) == SMALL
    except OSError:
        pytest.skip("needs IPv6")


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def name_of(tmp_path, clock):
    """What the payload is called that the words mean."""
    count = iter(range(100))

    def run(*words):
        area = tmp_path / f"named-{next(count)}"
        area.mkdir()
        fetched = fetch(store_of(FileSystem(), None, clock=clock), request_for(words), str(area), progress=NoProgress())
        assert os.listdir(area / "payload") == [fetched.name]
        return fetched.name

    return run


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="ref.fa"', "ref.fa"),
        ("attachment; filename=ref.fa", "ref.fa"),
        ("inline; FileName = 'ref.fa'", "'ref.fa'"),
        ("attachment; filename=\"re.fa\"; filename*=UTF-8''%E6%9D%B1%20%E4%BA%AC.fa", "東 京.fa"),
        ("attachment; filename*=ISO-8859-1''%E9.fa; filename=\"e.fa\"", "é.fa"),
        ('attachment; filename="é.fa"', "é.fa"),
        ('attachment; filename="../../.bashrc"', "bashrc"),
        ('attachment; filename="C:\\\\data\\\\ref.fa"', "ref.fa"),
        ("attachment; filename*=UTF-8''..%2F..%2Fetc%2Fpasswd%0A", "passwd"),
        ('attachment; filename=".."', "download"),
        ('attachment; filename=""', "download"),
        ("attachment; filename*=UTF-8''%FF%FF", "\ufffd\ufffd"),
        ("attachment", "download"),
        ("; ; =;", "download"),
        (f"attachment; filename*{'9' * 5000}*=ref.fa", "download"),
        (f"attachment; filename*{'9' * 4000}0000*=a; filename*{'8' * 4000}*=b", "download"),
        (f"attachment; filename*=idna''%C3%A9{'a' * 100}", "download"),
        ("attachment; filename*=undefined''%C3", "download"),
        ("attachment; filename*=punycode''%FF; filename=ref.fa", "ref.fa"),
        ("attachment; filename*=a%00b''%C3", "download"),
        ('attachment; filename="' + ";" * 60_000, "download"),
    ],
)
def test_a_server_names_what_has_no_name_in_its_url(name_of, server, disposition, name):
    """Programs that go by the extension could not read what was fetched by a number; and no name leads elsewhere."""
    headers = {"Content-Disposition": disposition.encode().decode("latin-1")}
    assert name_of(server.page("/download", BODY, headers=headers)) == name


@pytest.mark.parametrize(
    ("path", "target", "name"),
    [
        ("/latest", "/v1/ref%20a.fa?token=x", "ref a.fa"),
        ("/latest", "/blob/1234", "latest"),
        ("/get.php?id=7", "/ref.fa", "ref.fa"),
        ("/ref.fa", "/other.fa", "ref.fa"),
        ("/ref.fa?token=SECRET", "/other.fa", "ref.fa"),
    ],
)
def test_the_target_of_a_redirect_may_name_it(name_of, server, path, target, name):
    """As `curl -OJL`; but a name that was asked for is the same on every host, whatever the server does today."""
    server.page(target, BODY)
    assert name_of(server.redirect(path, target)) == name


def test_steps_take_their_part_of_a_name_that_the_server_gives(name_of, server):
    """`x.gz` would be the name of what is not compressed any more."""
    headers = {"Content-Disposition": 'attachment; filename="ref.fa.gz"'}
    url = server.page("/download", gzip.compress(BODY), headers=headers)
    assert name_of(url, "gz") == "ref.fa"


def test_a_header_of_blanks_is_read_in_time_that_grows_with_its_length():
    """A server that redirects through some of them would hold a job for an hour."""
    blanks = "a" + " " * 2_000_000 + "b"
    assert transport.unfolded(blanks) == blanks
    assert transport.unfolded(" a \r\n\t b\n c ") == "a b c"


def test_a_body_that_was_coded_very_often_is_refused(server, get):
    """Undoing it would take a stack of ten thousand functions, and the memory of as many decoders."""
    url = server.page("/ref", BODY, headers={"Content-Encoding": ", ".join(["gzip"] * 10_000)})
    with pytest.raises(FetchFailed, match="10000 content encodings"):
        get(url)


@pytest.mark.parametrize("limited", [True, False])
def test_a_bomb_in_a_coding_of_a_package_s_comes_out_in_pieces(monkeypatch, limited):
    """A server could fill the memory of a job with one small answer."""

    class Bomb:
        """As urllib3's decoders for br and zstd: each byte is one MiB of zeros."""

        def __init__(self):
            self.left = 0

        def decompress(self, data, max_length=-1):
            self.left += len(data) << 20
            size = self.left if max_length < 0 else min(max_length, self.left)
            self.left -= size
            return bytes(size)

        def flush(self):
            return b""

    if limited:
        monkeypatch.setattr(Bomb, "has_unconsumed_tail", property(lambda self: self.left > 0), raising=False)
    monkeypatch.setattr(urllib3.response.HTTPResponse, "CONTENT_DECODERS", ["gzip", "deflate", "bomb"])
    monkeypatch.setattr(urllib3.response, "_get_decoder", lambda name: Bomb())
    sizes = [len(piece) for piece in codings.decoded([b"x" * 2000], ["bomb"])]
    assert sum(sizes) == 2000 << 20
    assert max(sizes) <= (1 << 20 if limited else 64 << 20)


@pytest.mark.parametrize(("package", "name"), [("brotli", "br"), ("backports.zstd", "zstd")])
def test_codings_of_packages_are_undone(server, get, package, name):
    """A server that sends br or zstd unasked would have its file refused, or stored in pieces."""
    try:
        module = importlib.import_module(package)
    except ImportError:
        pytest.skip(f"not installed: {package}")
    if name not in urllib3.response.HTTPResponse.CONTENT_DECODERS:
        pytest.skip(f"this urllib3 does not decode {name}")
    body = BODY + bytes(5 << 20) + BODY
    assert get(server.page("/ref", module.compress(body), headers={"Content-Encoding": name})) == body


# -- parts -------------------------------------------------------------------------------------------------------------


def whole(n, body=BODY, etag=ETAG, **more):
    return Page(body, short=n, etag=etag, **more)


def test_a_part_that_is_shorter_than_asked_for_is_a_part(get, server):
    """A server that sends at most so many bytes at a time would be asked from the start, again and again."""

    def part(begin, end):
        return Page(BODY[begin:end], 206, headers={"Content-Range": f"bytes {begin}-{end - 1}/500000", "ETag": ETAG})

    url = server.pages("/x", whole(200_000), part(200_000, 300_000), part(300_000, 450_000), part(450_000, 500_000))
    assert get(url) == BODY
    assert server.ranges("/x") == [None, "bytes=200000-", "bytes=300000-", "bytes=450000-"]


@pytest.mark.parametrize(
    ("headers", "continued"),
    [
        ({"Content-Range": "Bytes 200000-499999/500000", "ETag": ETAG}, True),
        ({"Content-Range": "bytes=200000-499999/500000"}, True),
        ({"Content-Range": "bytes 200000-499999/*", "ETag": ETAG}, True),
        ({"Content-Range": "bytes 200000-499999/500000", "ETag": 'W/"one"'}, True),
        ({"Content-Range": "bytes 200000-499999/500000", "ETag": 'W/"two"'}, False),
        ({"Content-Range": "bytes 200000-499999/500000", "ETag": '"two"'}, False),
        ({"Content-Range": "bytes 200000-499999/600000", "ETag": ETAG}, False),
        ({"Content-Range": "bytes 199999-499998/500000", "ETag": ETAG}, False),
        ({"Content-Range": "bytes 200000-500000/500000", "ETag": ETAG}, False),
        ({"Content-Range": "bytes */500000", "ETag": ETAG}, False),
        ({"Content-Range": "items 200000-499999/500000", "ETag": ETAG}, False),
        ({"Content-Range": "bytes 200000-499999/500000", "ETag": ETAG, "Content-Encoding": "gzip"}, False),
        ({"Content-Type": "multipart/byteranges; boundary=x", "ETag": ETAG}, False),
    ],
)
def test_only_the_rest_of_the_same_file_is_taken_for_it(get, server, headers, continued):
    """Bytes of another place, or of another version, would be in the middle of the file."""
    part = Page(BODY[200_000:], 206, headers=headers)
    url = server.pages("/x", whole(200_000), part, Page(BODY, etag=ETAG))
    assert get(url) == BODY
    assert server.gets["/x"] == (2 if continued else 3)


def test_a_file_that_is_there_to_its_last_byte_is_complete(get, get_raw):
    """A connection that breaks right before the mark of the end would break the same way each time."""
    cut = answer(chunked(SMALL, end=b""), "Transfer-Encoding: chunked", f"ETag: {ETAG}", length=False)
    end = answer(b"", "Content-Range: bytes */10000", status="416 Range Not Satisfiable")
    with httpserver.raw(cut, end) as server:
        assert get(server.url()) == SMALL
        assert "Range: bytes=10000-" in server.asked[1]
        assert server.connections == 2
    other = answer(b"", "Content-Range: bytes */10000", 'ETag: "two"', status="416 Range Not Satisfiable")
    assert get_raw(cut, other, answer(OTHER)) == OTHER


# -- mirrors and errors ------------------------------------------------------------------------------------------------


def test_a_dead_mirror_costs_one_connection(get, server, clock):
    """A job would wait for half a minute for each dead mirror, with a living one beside it."""
    with httpserver.raw(b"") as dead, httpserver.raw(b"HTTP/1.1 503 Busy\r\nRetry-After: 500\r\n\r\n") as busy:
        assert get(f"{dead.url()}|http://127.0.0.1:1/x|{busy.url()}|{server.page('/x', BODY)}") == BODY
        assert (dead.connections, busy.connections, clock.naps) == (1, 1, [])


def test_the_last_mirror_is_asked_with_patience_and_then_the_others(get, server):
    """A file that two servers have would be lost because both of them were restarted."""
    a = server.pages("/a", Page(b"", 503), Page(b"", 503), Page(BODY))
    assert get(f"{a}|{server.page('/b', b'', status=404)}") == BODY
    assert server.gets == {"/a": 3, "/b": 1}
    b = server.pages("/d", Page(b"", 503), Page(b"", 503), Page(BODY))
    assert get(f"{server.page('/c', b'', status=503)}|{b}") == BODY
    assert (server.gets["/c"], server.gets["/d"]) == (1, 3)
    error = refused(get, f"{server.page('/e', b'', status=503)}|{server.page('/f', b'', status=503)}")
    assert (server.gets["/e"], server.gets["/f"]) == (1 + retry.TRIES, retry.TRIES)
    assert len(error.details) == 2


def test_a_mirror_that_breaks_off_is_continued_and_not_left(get, server):
    """A terabyte would be fetched again from its first byte, because a connection broke at the last."""
    a = server.pages("/a", whole(400_000), Page(b"", 503), Page(BODY, etag=ETAG))
    assert get(f"{a}|{server.page('/b', OTHER)}") == BODY
    assert server.ranges("/a") == [None, "bytes=400000-", "bytes=400000-"]
    assert server.gets["/b"] == 0


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        UnicodeError("label too long"),
        KeyError("x"),
        OSError("no CA bundle at /nowhere"),
        FileNotFoundError(2, "No such file", "/nowhere/ca.pem"),
        requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support."),
        requests.exceptions.InvalidURL("x"),
        requests.exceptions.ContentDecodingError("x"),
        urllib3.exceptions.LocationParseError("x"),
        urllib3.exceptions.ProxySchemeUnknown("x"),
        http_client.InvalidURL("x"),
        http_client.ResponseNotReady("x"),
        ssl.SSLCertVerificationError("x"),
        ssl.SSLError("x"),
        ConnectionAbortedError("x"),
        socket.gaierror(-2, "unknown"),
        TimeoutError("x"),
        RecursionError("x"),
        AttributeError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("when", ["asked", "read"])
def test_whatever_fails_the_next_mirror_is_asked(get, server, monkeypatch, error, when):
    """A fault in one of four libraries would end a job that another server could have served."""
    really = requests.Session.request

    def fail(self, method, url, **more):
        if "/bad" not in url:
            return really(self, method, url, **more)
        if when == "asked":
            raise error
        response = really(self, method, url, **more)
        monkeypatch.setattr(response.raw, "stream", lambda *_, **__: (_ for _ in ()).throw(error))
        return response

    monkeypatch.setattr(requests.Session, "request", fail)
    bad = server.page("/bad", OTHER)
    assert get(f"{bad}|{server.page('/good', BODY)}") == BODY
    assert server.gets["/bad"] == (when == "read")
    assert "cannot fetch" in refused(get, bad).message


def test_a_full_disk_is_not_a_failure_of_the_source(tmp_path, server):
    """Every mirror would be downloaded until the disk is full once more."""

    class Full(FileSystem):
        def write(self, fd, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    words = f"{server.page('/a', BODY)}|{server.page('/b', BODY)}"
    with pytest.raises(NoSpace):
        fetch(store_of(Full(), None), request_for([words]), str(tmp_path), progress=NoProgress())
    assert server.gets == {"/a": 1}


def test_a_proxy_that_forbids_it_is_not_asked_again(get, monkeypatch):
    """A job would wait for half a minute to be told that its proxy does not let it out."""
    with httpserver.raw(b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:SECRET@{proxy.url('')[7:]}")
        error = refused(get, "https://elsewhere.invalid/x?sig=SECRET")
        assert (proxy.connections, "SECRET" in error.message) == (1, False)
        monkeypatch.setenv("no_proxy", ".invalid")
        refused(get, "https://elsewhere.invalid/x")
        assert proxy.connections == 1


# -- credentials -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x?sig=SECRET",
        "http://me:SECRET@127.0.0.1:1/x",
        "http://h..h/x?X-Amz-Signature=SECRET",
        "http://127.0.0.1:99/x?token=SECRET#access_token=SECRET",
    ],
)
def test_no_traceback_shows_a_credential(get, url):
    """A job's log would show the signature of a URL to all who can read it: libraries put URLs into their errors."""
    with past_proxies(), pytest.raises(FetchFailed) as caught:
        get(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in shown
    assert "SECRET" not in f"{caught.value.message}{caught.value.details}{caught.value.hint}"


@pytest.mark.parametrize("target", ["weird://me:SECRET@h/x?X-Amz-Signature=SECRET", "http://[SECRET/?sig=SECRET"])
def test_no_error_shows_a_credential_of_a_redirect(get, server, target):
    """Archives send people on to signed URLs, which would be in every log."""
    target = target.replace("[SECRET", "[")
    with pytest.raises(FetchFailed) as caught:
        get(server.redirect("/x", target))
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_what_is_sent_has_the_credentials(get, server):
    """A signed URL without its signature would be refused."""
    query = "a=1&X-Amz-Signature=abc%2F%3D&versionId=7"
    assert get(server.page(f"/x?{query}", BODY)) == BODY
    assert server.gets == {f"/x?{query}": 1}


def test_no_log_shows_a_credential(get, server, caplog):
    """A program that logs everything would log the signature of each URL."""
    caplog.set_level("DEBUG")
    server.redirect("/x?token=SECRET", "/y?sig=SECRET")
    server.page("/y?sig=SECRET", BODY)
    assert get(server.url("/x?token=SECRET", "me:SECRET")) == BODY
    assert "/y?sig=***" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_file_that_is_not_there_is_asked_for_elsewhere(get, server, tmp_path):
    """A copy on a disk that is not mounted would hide the one on the web."""
    assert get(f"{tmp_path}/missing|{server.page('/x', BODY)}") == BODY
