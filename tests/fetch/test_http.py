"""Downloads survive what the network does to them, and what they give is the file, or an error that says why."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import time
from email.utils import formatdate

import pytest

import httpserver
from faults import FakeClock
from httpserver import Page
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import attempts, http, sources
from sccache_dtool.fetch.fetch import fetch
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.stack import parse_stack
from sccache_dtool.fsops import FileSystem

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
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 1.0)
    with httpserver.serve() as server:
        yield server


@pytest.fixture
def get(tmp_path, clock):
    """Fetches what the words mean; the content."""
    count = iter(range(100))

    def run(*words, **more):
        area = tmp_path / f"area-{next(count)}"
        area.mkdir()
        more = {"progress": NoProgress(), "clock": clock, **more}
        fetched = fetch(FileSystem(), parse_stack(words), str(area), **more)
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
    late = formatdate(clock.wall() + 90, usegmt=True)
    url = server.pages(
        "/x",
        Page(b"", 429, headers={"Retry-After": "17"}),
        Page(b"", 503, headers={"Retry-After": late}),
        Page(b"", 503, headers={"Retry-After": "soon"}),
        Page(BODY),
    )
    assert get(url) == BODY
    assert clock.naps[:2] == [17, pytest.approx(90 - 17, abs=2)]
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
    assert "come back in 24 h" in error.hint
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
    assert error.details == (f"given up after {attempts.TRIES} attempts",)
    assert server.gets["/x"] == attempts.TRIES
    assert all(nap < 1.5 * attempts.LONGEST_PAUSE for nap in clock.naps)


def test_pauses_grow_and_are_spread(monkeypatch):
    """A thousand clients of one server would return in the same second, again and again."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 1.0)
    for number, middle in ((1, 1), (2, 2), (3, 4), (30, attempts.LONGEST_PAUSE)):
        pauses = [attempts.pause(number) for _ in range(200)]
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


def test_a_file_that_changed_between_two_halves_is_fetched_anew(get, server):
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


def test_a_file_changed_within_the_second_has_no_date(get, server):
    """A date of one second cannot tell two versions of that second apart."""
    now = {"Last-Modified": formatdate(time.time() + 3600, usegmt=True)}  # however long the answer takes
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


def test_a_range_beyond_the_end_begins_anew(get, server):
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
    assert "coded as br9" in error.message


def test_what_is_not_coded_as_it_says_is_refused_in_words(get, server):
    """Who reads the log would find the names of three libraries' exceptions."""
    error = refused(get, server.page("/x", BODY, headers={"Content-Encoding": "gzip"}))
    assert error.message.endswith("what the server sent cannot be decoded in the way that it says")


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
    assert "is no number" in refused(get, server.page("/x", BODY, unannounced=True, headers=headers)).message


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
        "from sccache_dtool.fetch.fetch import fetch\n"
        "from sccache_dtool.fetch.progress import NoProgress\n"
        "from sccache_dtool.fetch.stack import parse_stack\n"
        "from sccache_dtool.fsops import FileSystem\n"
        "fetch(FileSystem(), parse_stack(sys.argv[2:]), sys.argv[1], progress=NoProgress())\n"
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
    monkeypatch.setattr(http, "_TRIED_FOR", 100_000)
    body = os.urandom(3_000_001)
    assert get(server.page("/x", body), md5(body)) == body
