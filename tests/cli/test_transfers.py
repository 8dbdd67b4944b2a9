"""Who fetches what and how far, why it failed, how fast it may be, and where it goes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cli.tool import SC_DTOOL, Disk, Done, call, finish, make_tar, on_terminal, one_line_error, shell, start
from faults import store_of
from httpserver import Page, Server
from sccache_dtool.cache import Cache
from sccache_dtool.cli.progress import Bar, Lines
from sccache_dtool.disk import names
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout, shortened
from sccache_dtool.fetch import slots, transfers
from waiting import wait_until

MEBIBYTE = 1 << 20

#: The real command, with a sign of life twenty times a second.
HURRIED = [
    sys.executable,
    "-c",
    "from sccache_dtool.cli import main\nfrom sccache_dtool.fetch import track\ntrack.PULSE = 0.05\nmain.main()",
]

ETAG = '"one"'

ME = ("--holder", f"pid:{os.getpid()}")


def shown(sc: Callable[..., Done], *more: str) -> list[dict[str, object]]:
    return sc("transfers", "--all", "-f", "json", *more).rows("transfer")


def wait_for_state(sc: Callable[..., Done], state: str, key: str = "state") -> dict[str, object]:
    return wait_until(lambda: next((one for one in shown(sc) if one[key] == state), None), state)


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ref.bin", f"{'x' * 300}.bin"], ids=["short", "long"])
def test_a_download_is_seen_while_it_runs(sc: Callable[..., Done], server: Server, name: str) -> None:
    """Who waits for an hour would not know whether anything moves."""
    sc("init")
    url = server.page(f"/{name}", bytes(4 * MEBIBYTE), stall_after=MEBIBYTE)
    with start([*HURRIED, "use", url, *ME]) as fetching, start([*HURRIED, "use", url, *ME]) as waiting:
        wait_until(lambda: [one for one in shown(sc) if one["bytes"] == MEBIBYTE and one["waiting"]], "how far it is")
        (one, wait) = sorted(shown(sc), key=lambda row: str(row["state"]))
        assert (one["state"], one["state_number"], one["total"], one["percent"]) == (
            "transferring",
            2,
            4 * MEBIBYTE,
            25,
        )
        assert one["name"] == shortened(name)
        assert one["source"] == [url]
        assert f"[{os.getpid()}]" in str(one["by"])
        assert one["attempts"] == 1
        assert float(str(one["rate"])) > 0
        assert (one["waiting"], wait["state"], wait["item"]) == (1, "waiting", one["item"])
        text = sc("transfers").out
        assert "1.0 MB of 4.2 MB, 25 %" in text
        server.release()
        done = [finish(fetching), finish(waiting)]
    assert {one.code for one in done} == {0}
    waited = next(one for one in done if "waiting for" in one.err)
    assert "1.0 MB of 4.2 MB, 25 %" in waited.err
    assert f"process {fetching.pid}" in waited.err or f"process {waiting.pid}" in waited.err
    (one,) = shown(sc)
    assert (one["state"], one["state_number"], one["bytes"], one["error"]) == ("done", 3, 4 * MEBIBYTE, None)


def test_a_failure_is_seen_with_its_reason(sc: Callable[..., Done], server: Server) -> None:
    """Who looks for the reason of a failed job would have only that job's log."""
    sc("use", server.page("/x", b"", status=404))
    (one,) = shown(sc)
    assert (one["state"], one["state_number"]) == ("failed", 4)
    assert "404" in str(one["error"])
    assert "404" in sc("transfers", "--all").out


def test_progress_is_not_lost_on_a_failure(sc: Callable[..., Done], server: Server) -> None:
    """How far it came, and how often it was tried, says whether to try again."""
    url = server.page("/x", bytes(2 * MEBIBYTE), short=MEBIBYTE, etag='"one"', part=b"")
    sc("use", url)
    (left, one) = shown(sc)
    assert (one["state"], one["bytes"], one["attempts"]) == ("failed", MEBIBYTE, 5)
    assert left["state"] == "abandoned"


def test_only_what_is_under_way_is_listed(sc: Callable[..., Done], source: str) -> None:
    """A list of what runs would be full of what ran."""
    sc("use", source)
    assert len(shown(sc)) == 1
    done = sc("transfers")
    assert (done.out, done.code) == ("", 0)
    assert "--all" in done.err


def test_what_ended_a_day_ago_is_forgotten(
    sc: Callable[..., Done], source: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that lives for years would gather a file for each fetch."""
    sc("use", source)
    assert len(disk.names("transfers")) == 1
    sc("clean", "--older-than", "30d", "-y")
    assert len(disk.names("transfers")) == 1
    monkeypatch.setattr("sccache_dtool.protocol.downloads.KEEP", -1.0)
    sc("clean", "--older-than", "30d", "-y")
    assert disk.names("transfers") == []


def test_what_a_killed_fetch_left_is_called_abandoned(sc: Callable[..., Done], server: Server, disk: Disk) -> None:
    """A download whose process is gone would be shown as running for ever, and its room kept."""
    sc("init")
    url = server.page("/x", bytes(4 * MEBIBYTE), stall_after=MEBIBYTE)
    with start([*HURRIED, "use", url, *ME]) as fetching:
        wait_for_state(sc, "transferring")
        fetching.kill()
        fetching.wait()
    (one,) = shown(sc)
    assert one["state"] == "abandoned"
    assert transfers.reserved(store_of(FileSystem(), Layout(str(disk.root)))) == 0
    for name in disk.names("locks"):  # as the next who wants the item does it
        (disk.control / "locks" / name).unlink()
    assert [one["state"] for one in shown(sc)] == ["abandoned"]


def test_a_record_that_nobody_wrote_is_passed_over(sc: Callable[..., Done], disk: Disk, source: str) -> None:
    """One damaged file would hide everything."""
    sc("use", source)
    (item,) = disk.names("transfers")
    (name,) = disk.names(f"transfers/{item}")
    (disk.control / "transfers" / item / name.replace("~done", "~failed")).write_text("{")
    (disk.control / "transfers" / item / "notes").write_text("mine")
    (disk.control / "transfers" / "notes").write_text("mine")
    assert len(shown(sc)) == 1


def test_an_attempt_that_failed_will_be_repeated(sc: Callable[..., Done], server: Server) -> None:
    """Who asks why nothing comes would see a download that runs, at its third attempt, and not what is wrong."""
    sc("init")
    busy = Page(b"", 503, headers={"Retry-After": "300"})
    url = server.pages("/x", Page(b"", 503), busy)
    with start([*HURRIED, "use", url, *ME]):
        one = wait_for_state(sc, "retrying")
        assert one["state_number"] == 5
        one = wait_until(lambda: next((one for one in shown(sc) if one["attempts"] == 2), None), "the second attempt")
        assert "503" in str(one["message"])
        assert one["began"]
        (head, row) = sc("transfers").out.splitlines()
        assert head.split()[:5] == ["ITEM", "STATE", "DONE", "RATE", "ATTEMPTS"]
        assert str(one["began"]) in row
        assert "503" in row


def test_the_last_message_is_kept_when_all_ended_well(sc: Callable[..., Done], server: Server) -> None:
    """A server that is in trouble each night would not be seen in the morning."""
    url = server.pages("/x", Page(b"", 503), Page(b"", 503), Page(b"ACGT"))
    assert sc("use", url).code == 0
    (one,) = shown(sc)
    assert (one["state"], one["attempts"], one["error"]) == ("done", 3, None)
    assert "503" in str(one["message"])


def test_transfers_are_found_by_item_owner_and_session(sc: Callable[..., Done], server: Server) -> None:
    """On a busy cluster, the download that a job waits for could not be found among those of others."""
    sc("init")
    a, b = (server.page(f"/{name}", bytes(MEBIBYTE), hold=True) for name in ("aaa", "bbb"))
    session = sc("session", "create", "--ttl", "1h", "--add", f"{b}:/b").out.strip()
    with (
        start([*HURRIED, "use", a, "--holder", "first"]),
        start([*HURRIED, "lock", "get", session, "/b", "--owner", "container 7"]) as locking,
    ):
        server.wait_for_gets("/aaa")
        server.wait_for_gets("/bbb")
        with start([*HURRIED, "use", a, "--holder", "third"]):
            wait_until(lambda: len(shown(sc)) == 3, "one who waits")
            (ours,) = {str(one["by"]).partition("[")[0] for one in shown(sc)}

            def found(*words: str) -> list[tuple[object, object]]:
                return sorted((one["name"], str(one["by"]).partition("[")[2][:-1]) for one in shown(sc, *words))

            both = [("aaa", "first"), ("aaa", "third")]
            assert found("--item", "aaa") == found("--item", a) == both
            assert found("--item", "nothing") == []
            assert found("--owner", "first") == [("aaa", "first")]
            assert found("--owner", "third") == both  # and what it waits for
            assert found("--owner", ours) == found("--owner", ours.partition("@")[0]) == [*both, ("bbb", session)]
            assert found("--owner", "container 7", "--item", "aaa") == []
            assert found("--session", session) == found("--owner", "container 7") == [("bbb", session)]
            assert found("--session", "s0000000000000000") == []
            server.release()
            assert finish(locking).code == 0
    (one,) = shown(sc, "--session", session)  # also when it has ended
    assert (one["state"], one["session"], one["owner"]) == ("done", session, "container 7")


def test_the_list_is_redrawn_on_a_terminal(sc: Callable[..., Done], server: Server, root: Path) -> None:
    """Whoever watches a download would call the command again and again."""
    sc("init")
    url = server.page("/x", bytes(4 * MEBIBYTE), drip=MEBIBYTE)
    with (
        start([*HURRIED, "use", url, *ME]) as fetching,
        on_terminal([SC_DTOOL, "-C", str(root), "transfers", "--watch"]) as watching,
    ):
        for percent in (25, 50):
            server.let_drop()
            wait_until(lambda seen=f"{percent} %": seen in watching.text, f"{percent} %")
        server.let_drop(2)
        assert finish(fetching).code == 0
        wait_until(lambda: "no downloads" in watching.text, "an empty list")
        watching.process.send_signal(signal.SIGINT)
        assert watching.finish() == 0
    assert "Traceback" not in watching.text


def test_nothing_is_redrawn_in_a_pipe(sc: Callable[..., Done]) -> None:
    """A script would read the same list for ever."""
    sc("init")
    done = sc("transfers", "--watch")
    assert done.code == 2
    assert "needs a terminal" in one_line_error(done)


def test_who_waits_on_a_terminal_sees_the_bar_of_the_other(sc: Callable[..., Done], server: Server, root: Path) -> None:
    """An hour's wait for another's download would look like a command that hangs."""
    sc("init")
    url = server.page("/x", bytes(4 * MEBIBYTE), drip=MEBIBYTE)
    with start([*HURRIED, "use", url, *ME]) as fetching:
        server.wait_for_gets("/x")
        with (
            on_terminal([SC_DTOOL, "-C", str(root), "use", url, *ME], stdout=subprocess.PIPE) as waiting,
            start([SC_DTOOL, "use", url, *ME]) as piped,
        ):
            for come in ("1.0/4.2 MB", "2.1/4.2 MB"):
                server.let_drop()
                wait_until(lambda seen=come: seen in waiting.text, come)
            wait_until(lambda: sum(one["state"] == "waiting" for one in shown(sc)) == 2, "both wait")
            server.let_drop(2)
            assert waiting.finish() == 0
            done = finish(piped)
        assert finish(fetching).code == 0
    assert "waiting for x" in waiting.text
    assert done.err.count("waiting for x: fetched by") == len(done.err.splitlines()) == 1


@pytest.mark.parametrize("there", [False, True], ids=["for the first time", "again"])
def test_what_is_being_fetched_says_by_whom_and_how_far(sc: Callable[..., Done], server: Server, there: bool) -> None:
    """Who asks where the data is would be told that there is no such item, while it is on its way."""
    sc("init")
    slow = Page(bytes(4 * MEBIBYTE), stall_after=MEBIBYTE, etag='"two"')
    url = server.pages("/x", *[Page(b"old", etag='"one"')] * there, slow)
    if there:
        sc("use", url)
    state = "in-use" if there else "fetching"
    with start([*HURRIED, "use", url, "--refresh", "--holder", "night"]) as fetching:
        wait_until(lambda: [one for one in shown(sc) if one["percent"] == 25], "how far it is")
        for word in ("x", url):
            for command, kind in (("why", "why"), ("status", "item")):
                row = sc(command, word, "-f", "json").row(kind)
                assert (row["state"], row["fetching_percent"]) == (state, 25)
                assert row["fetching_by"].endswith(", holder 'night'")
                assert f"being fetched by {row['fetching_by']}, 25 %" in sc(command, word).out
        for words in (["ls"], ["ls", "--filter", "fetching"], ["ls", "-l", "--filter", "x"]):
            (row,) = sc(*words, "-f", "json").rows("item")
            assert (row["name"], row["state"], row["fetching_percent"]) == ("x", state, 25)
            assert (row["last_use"] is None) is (not there)
        assert ("in-use, fetching, 25 %" if there else "fetching, 25 %") in sc("ls").out
        assert len(sc("ls", "--filter", "idle", "-f", "json").rows("item")) == 0
        row = sc("status", "-f", "json").row("fetch")
        assert (row["name"], row["fetching_percent"]) == ("x", 25)
        assert "x is being fetched by " in sc("status").out
        server.release()
        assert finish(fetching).code == 0
    row = sc("why", "x", "-f", "json").row("why")
    assert (row["fetching_by"], row["fetching_percent"]) == (None, None)
    assert "fetch" not in sc("why", "x").out


# -- failures reach all who wait ---------------------------------------------------------------------------------------


def test_all_who_wait_are_told_why(sc: Callable[..., Done], server: Server) -> None:
    """Twenty jobs would each find out by themselves that a server says 404, one after the other."""
    sc("init")
    url = server.page("/x", b"", status=404, hold=True)
    with start([SC_DTOOL, "use", url, *ME]) as first:
        server.wait_for_gets("/x")
        with start([SC_DTOOL, "use", url, *ME]) as second, start([SC_DTOOL, "use", url, *ME]) as third:
            wait_until(lambda: sum(one["state"] == "waiting" for one in shown(sc)) == 2, "two who wait")
            server.release()
            ended = [finish(one) for one in (first, second, third)]
    assert [one.code for one in ended] == [12, 12, 12]
    assert all("the server answered 404" in one.err for one in ended)
    assert "while this process waited" in ended[1].err
    assert server.gets["/x"] == 1
    server.page("/x", b"ACGT")
    assert sc("use", url).path.read_bytes() == b"ACGT"  # it is tried again, and not remembered


def test_what_was_given_up_is_continued_by_the_next(sc: Callable[..., Done], server: Server, disk: Disk) -> None:
    """A line that was down for an hour would cost all that had come before."""
    body = os.urandom(3 * MEBIBYTE)
    cut = Page(body, short=2 * MEBIBYTE, etag='"one"')
    url = server.pages("/x", cut, *[Page(b"", 503)] * 4, Page(body, etag='"one"'))
    assert sc("use", url).code == 12
    assert len(disk.names("tmp")) == 1
    assert sc("use", url).path.read_bytes() == body
    assert server.ranges("/x")[-1] == f"bytes={2 * MEBIBYTE}-"
    assert disk.names("tmp") == []


def begin_and_stop(disk: Disk, server: Server, number: signal.Signals) -> tuple[str, bytes]:
    """A download that is stopped when half of it is there; where it is from, and what it is."""
    body = os.urandom(4 * MEBIBYTE)
    url = server.pages("/x", Page(body, stall_after=2 * MEBIBYTE, etag=ETAG), Page(body, etag=ETAG))
    with start([*HURRIED, "use", url, *ME]) as fetching:
        mark = f"part~0~{2 * MEBIBYTE}"  # what can be relied on: the bytes alone may be seen before
        wait_until(lambda: mark in {path.name for path in disk.control.glob("tmp/*/*")}, "how far it is")
        fetching.send_signal(number)
        server.release()
        fetching.wait()
    return url, body


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_can_be_continued_is_neither_damage_nor_a_fetch(
    sc: Callable[..., Done], server: Server, disk: Disk, number: signal.Signals
) -> None:
    """After a Ctrl-C a cron job would report a damaged cache, and `clean` throw away what had come."""
    sc("init")
    url, body = begin_and_stop(disk, server, number)
    sc("reap")
    (one,) = shown(sc)
    assert one["state"] == "abandoned"
    assert one["continuable_until"]
    assert f"can be continued, until {one['continuable_until']}" in sc("transfers", "--all").out
    status = sc("-f", "json", "status").row("cache")
    assert (status["fetching"], status["continuable"]) == (0, 1)
    assert "1 interrupted, which can be continued" in sc("status").out
    assert sc("clean", "--older-than", "30d", "-y").code == 0
    done = sc("doctor")
    assert done.code == 0, done
    assert sc("use", url).path.read_bytes() == body
    assert server.ranges("/x")[-1] == f"bytes={2 * MEBIBYTE}-"
    assert disk.names("tmp") == []


@pytest.mark.parametrize("words", [("--all",), ("--retain-size", "1kB")], ids=" ".join)
def test_what_can_be_continued_makes_room(
    sc: Callable[..., Done], server: Server, disk: Disk, words: tuple[str, ...], source: str
) -> None:
    """Interrupted downloads would fill a disk that a cleaning is to free."""
    Path(source).write_bytes(bytes(2000))
    sc("init")
    sc("use", source, *ME)  # in the way of the goal
    begin_and_stop(disk, server, signal.SIGKILL)
    sc("clean", *words, "-y")
    assert disk.names("tmp") == []


def test_what_can_be_continued_is_removed_in_the_end(
    sc: Callable[..., Done], server: Server, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads that nobody wants any more would stay for good."""
    sc("init")
    begin_and_stop(disk, server, signal.SIGKILL)
    monkeypatch.setattr("sccache_dtool.protocol.downloads.CONTINUE_FOR", -1.0)
    assert sc("doctor").code == 20
    sc("clean", "--older-than", "30d", "-y")
    assert disk.names("tmp") == []


def test_a_wait_of_a_killed_process_is_not_shown(sc: Callable[..., Done], server: Server) -> None:
    """More would seem to wait for a download than do."""
    sc("init")
    url = server.page("/x", bytes(MEBIBYTE), hold=True)
    with start([SC_DTOOL, "use", url, *ME]) as first:
        server.wait_for_gets("/x")
        with start([SC_DTOOL, "use", url, *ME]) as second:
            wait_for_state(sc, "waiting")
            second.kill()
            second.wait()
            assert [one["state"] for one in shown(sc)] != []
            assert "waiting" not in [one["state"] for one in shown(sc)]
        server.release()
        assert finish(first).code == 0


def test_little_that_came_is_not_kept(sc: Callable[..., Done], server: Server, disk: Disk) -> None:
    """Every failure would leave a directory behind."""
    sc("use", server.page("/x", bytes(1000), short=500, etag='"one"', part=b""))
    assert disk.names("tmp") == []


def test_who_comes_after_a_failure_tries_again(sc: Callable[..., Done], server: Server) -> None:
    """A failure of yesterday would be told for ever."""
    url = server.pages("/x", Page(b"", 404), Page(b"ACGT"))
    assert sc("use", url).code == 12
    assert sc("use", url).code == 0


# -- limits ------------------------------------------------------------------------------------------------------------


def test_max_rate_is_kept(sc: Callable[..., Done], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job would take the line of the whole cluster."""
    naps: list[float] = []
    monkeypatch.setattr("sccache_dtool.clock.Clock.sleep", lambda self, seconds: naps.append(seconds))
    assert sc("use", "--max-rate", "1MB", server.page("/x", bytes(2_000_000))).code == 0
    assert sum(naps) > 0.5
    assert sc("use", "--max-rate", "fast", server.url("/y")).code == 2


def test_downloads_on_one_host_are_bounded(
    sc: Callable[..., Done], server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A hundred jobs that start at once would each get a hundredth of the line, and time out."""
    sc("init")
    monkeypatch.setenv(slots.VARIABLE, "1")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    a, b = (server.page(path, b"ACGT", hold=True) for path in ("/a", "/b"))
    with start([SC_DTOOL, "use", a, *ME]) as first:
        server.wait_for_gets("/a")
        with start([SC_DTOOL, "use", b, *ME]) as second:
            assert wait_for_state(sc, "queued")["name"] == "b"
            assert server.gets["/b"] == 0
            server.release()
            assert [finish(first).code, finish(second).code] == [0, 0]
    assert sc("use", "--wait", "0s", server.page("/c", b"x")).code == 0


def test_a_fifo_in_the_place_of_a_slot_is_not_opened(
    sc: Callable[..., Done], server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A download would wait for ever for somebody to open the other end."""
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        place = tmp_path / name / f"sc-dtool-{os.geteuid()}"
        place.mkdir(parents=True, mode=0o700)
        os.mkfifo(place / "download-0")
    monkeypatch.setattr(slots, "directories", lambda: [str(place.parent / place.name)])
    monkeypatch.setenv(slots.VARIABLE, "1")
    done = sc("use", server.page("/x", b"ACGT"))
    assert done.path.read_bytes() == b"ACGT"
    assert "download-0 is not a regular file" in done.err


def test_who_ran_out_of_patience_in_a_queue_has_not_failed_for_others(
    sc: Callable[..., Done], server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A short --wait on a busy host would end the jobs of all hosts that have the patience, or the room."""
    sc("init")
    (tmp_path / "another host").mkdir()
    monkeypatch.setenv(slots.VARIABLE, "1")
    b = server.page("/b", b"ACGT")
    with start([SC_DTOOL, "use", server.page("/a", b"x", hold=True), *ME]):
        server.wait_for_gets("/a")
        with start([SC_DTOOL, "use", b, *ME, "--wait", "3s"]) as hasty:
            wait_for_state(sc, "queued")
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "another host"))
            with start([SC_DTOOL, "use", b, *ME]) as patient:
                first = finish(hasty)
                assert first.code == 11
                assert "waiting for your other downloads" in first.err
                done = finish(patient)
                assert done.code == 0, done.err
        server.release()


def test_a_place_is_free_again_when_its_download_is_killed(
    sc: Callable[..., Done], server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kill would take a place away until the next boot."""
    sc("init")
    monkeypatch.setenv(slots.VARIABLE, "1")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with start([SC_DTOOL, "use", server.page("/a", b"x", hold=True), *ME]) as first:
        server.wait_for_gets("/a")
        stuck = sc("use", "--wait", "0s", server.page("/b", b"x"))
        assert stuck.code == 11
        assert slots.VARIABLE in stuck.err
        first.kill()
        first.wait()
    assert sc("use", server.url("/b")).code == 0


def test_what_was_there_already_is_no_speed() -> None:
    """Who takes over five hours of download would be told that the rest takes a second."""
    now = [0.0]
    said: list[str] = []
    lines = Lines(said.append, lambda: now[0])
    lines.start("ref.tar", 10_000_000, 8_000_000)
    now[0] = 60
    lines.advance(600_000)
    assert said == ["ref.tar: 8.6 MB of 10.0 MB, 86 %, 10.0 kB/s, 2 min left"]


def test_one_bar_at_a_time() -> None:
    """Each source of an item would leave a bar of its own that never ends; some terminals' libraries even fail."""
    shown = io.StringIO()
    bar = Bar(lambda: Console(file=shown, force_terminal=True, width=100))
    bar.start("first", 10)
    first = bar._progress
    bar.start("second", 10, 5)
    assert first is not None
    assert not first.live.is_started
    bar.done()
    assert "5/10" in shown.getvalue()


def test_a_line_a_minute_without_a_terminal() -> None:
    """A log would be empty for six hours, or full of bars."""
    now = [0.0]
    said: list[str] = []
    lines = Lines(said.append, lambda: now[0])
    lines.start("ref.tar", 10_000_000)
    for _ in range(5):
        now[0] += 30
        lines.advance(1_000_000)
    assert said == [
        "ref.tar: 2.0 MB of 10.0 MB, 20 %, 33.3 kB/s, 4 min left",
        "ref.tar: 4.0 MB of 10.0 MB, 40 %, 33.3 kB/s, 3 min left",
    ]


# -- where to put it ---------------------------------------------------------------------------------------------------


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Path]]:
    """Two file systems of three and of twelve mebibytes."""
    made = []
    for name, size in (("small", "3m"), ("large", "12m")):
        place = tmp_path / name
        place.mkdir()
        mounted = shell(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)])
        if mounted.code:
            for one in made:
                shell(["umount", "-l", str(one)])
            pytest.skip(f"cannot mount a small file system here: {mounted.err.strip()}")
        made.append(place)
    yield made
    for place in made:
        shell(["umount", "-l", str(place)])


@pytest.mark.root
def test_the_first_with_room_takes_it(
    sc: Callable[..., Done], disks: list[Path], source: str, server: Server, tmp_path: Path
) -> None:
    """A download would run into a full disk beside an empty one."""
    both = f"{disks[0]}:{disks[1]}"
    assert sc("use", "-d", both, source).path.is_relative_to(disks[0])
    assert sc("use", "-d", both, "--size", "5MB", "-n", "five").path.is_relative_to(disks[1])
    # What the source announces is as good as a --size.
    assert sc("use", "-d", both, server.page("/x", bytes(5 * MEBIBYTE))).path.is_relative_to(disks[1])
    assert server.heads["/x"] == 1
    # It is found where it is, whatever is said of the size.
    assert sc("use", "-d", both, "--size", "5MB", source).path.is_relative_to(disks[0])


@pytest.mark.root
def test_no_room_anywhere_says_how_much_is_missing_where(
    sc: Callable[..., Done], disks: list[Path], source: str
) -> None:
    """Who is told "no space" asks "how much, and where?"."""
    done = sc("use", "-d", f"{disks[0]}:{disks[1]}", "--size", "100MB", source)
    assert done.code == 13
    assert "no cache has enough space for 100.0 MB" in one_line_error(done)
    assert f"{disks[0]}: 96.9 MB missing" in done.err
    assert f"{disks[1]}: 87.4 MB missing" in done.err
    assert "--make-room" in done.err


@pytest.mark.root
def test_what_runs_has_reserved_its_room(sc: Callable[..., Done], disks: list[Path], server: Server) -> None:
    """Two downloads would each see an empty disk, and fill it together."""
    both = f"{disks[0]}:{disks[1]}"
    shell([SC_DTOOL, "-C", str(disks[1]), "init"])
    url = server.page("/x", bytes(8 * MEBIBYTE), stall_after=MEBIBYTE)
    with start([*HURRIED, "use", "-d", both, url, *ME]) as fetching:
        wait_until(
            lambda: transfers.reserved(store_of(FileSystem(), Layout(str(disks[1])))) == 7 * MEBIBYTE, "a reservation"
        )
        done = sc("use", "-d", both, "--size", "6MB", "-n", "other")
        assert done.code == 13
        alone = sc("use", "-C", str(disks[1]), "--size", "6MB", "-n", "other")
        assert alone.code == 13
        assert "reserved by running downloads" in alone.err
        server.release()
        assert finish(fetching).code == 0


@pytest.mark.root
def test_what_is_being_fetched_is_waited_for_where_that_is(
    sc: Callable[..., Done], disks: list[Path], server: Server, tmp_path: Path
) -> None:
    """A download that fills most of a disk would leave too little there for itself, and run again on the next one."""
    third = tmp_path / "third"
    third.mkdir()
    shell([SC_DTOOL, "-C", str(disks[1]), "init"])
    body = bytes(8 * MEBIBYTE)
    url = server.pages("/x", Page(body, stall_after=MEBIBYTE), Page(body))
    with start([*HURRIED, "use", "-d", f"{disks[1]}:{third}", url, *ME]) as first:
        wait_until(
            lambda: transfers.reserved(store_of(FileSystem(), Layout(str(disks[1])))) == 7 * MEBIBYTE, "a reservation"
        )
        for there in (f"{disks[1]}:{third}", f"{third}:{disks[1]}"):
            late = sc("use", "-d", there, "--wait", "0s", url)
            assert late.code == 11
            assert f"process {first.pid}" in late.err
        server.release()
        assert finish(first).code == 0
    assert server.gets["/x"] == 1


@pytest.mark.root
def test_files_that_fit_one_after_the_other_fit(sc: Callable[..., Done], disks: list[Path], server: Server) -> None:
    """What has come already would be counted as still to come, and an item of two thirds of the disk refused."""
    words = [server.page(f"/{name}", bytes(4 * MEBIBYTE)) for name in "ab"]
    assert sc("use", "-C", str(disks[1]), *words).code == 0


@pytest.mark.root
@pytest.mark.parametrize("came", [3, 5, 8], ids=["a third", "a half", "more than fits twice"])
def test_what_was_interrupted_need_not_fit_twice(
    sc: Callable[..., Done], disks: list[Path], server: Server, came: int
) -> None:
    """A download of most of a disk could never be taken over: its beginning would stand in its own way."""
    body = os.urandom(9 * MEBIBYTE)
    url = server.pages("/x", Page(body, stall_after=came * MEBIBYTE, etag=ETAG), Page(body, etag=ETAG))
    cache = ("-C", str(disks[1]))
    sc("init", *cache)
    with start([*HURRIED, *cache, "use", url, *ME]) as first:
        mark = f"part~0~{came * MEBIBYTE}"
        wait_until(lambda: mark in {path.name for path in disks[1].glob(".sc-dtool/tmp/*/*")}, "how far it is")
        first.kill()
        first.wait()
    done = sc("use", *cache, url)
    assert done.path.read_bytes() == body, done.err
    continued = None if came == 8 else f"bytes={came * MEBIBYTE}-"
    assert server.ranges("/x") == [None, continued]


@pytest.mark.root
def test_room_is_made_of_what_is_idle(sc: Callable[..., Done], disks: list[Path], tmp_path: Path) -> None:
    """A cache is full sooner or later, and then every new job would fail until somebody cleans."""
    cache = ("-C", str(disks[1]))
    files = []
    for name in ("old", "held", "new"):
        (tmp_path / name).write_bytes(bytes(5 * MEBIBYTE))
        files.append(tmp_path / name)
    old, held, new = files
    sc("use", *cache, old)
    sc("unuse", *cache, old)
    kept = sc("use", *cache, held).path
    full = sc("use", *cache, new)
    assert full.code == 13
    assert "--make-room" in full.err
    assert sc("use", *cache, "--make-room", new).path.exists()
    assert kept.exists()
    in_use = sc("use", *cache, "--make-room", "--size", "8MB", "-n", "more")
    assert in_use.code == 13
    assert "--make-room" not in in_use.err
    assert kept.exists()
    assert sc("use", "-d", f"{disks[0]}:{disks[1]}", "--make-room", "--size", "11MB", "-n", "more").code == 13


@pytest.mark.root
def test_room_for_nobody_knows_how_much_is_asked_for(
    sc: Callable[..., Done], disks: list[Path], server: Server, tmp_path: Path
) -> None:
    """Who gave --make-room was told that nothing is idle, where the size was all that was missing."""
    (tmp_path / "idle").write_bytes(bytes(6 * MEBIBYTE))
    sc("use", "-C", str(disks[1]), tmp_path / "idle")
    sc("unuse", "-C", str(disks[1]), tmp_path / "idle")
    url = server.page("/x", bytes(7 * MEBIBYTE), unannounced=True)
    two = ("-d", f"{disks[0]}:{disks[1]}", "--make-room", url)
    unsaid = sc("use", *two)
    assert unsaid.code == 13
    assert "give it with --size" in unsaid.err
    assert sc("use", "--size", "8MB", *two).path.exists()


@pytest.mark.root
def test_an_announced_length_that_does_not_fit_is_told_at_once(
    sc: Callable[..., Done], disks: list[Path], server: Server
) -> None:
    """A day of downloading would end with a full disk."""
    done = sc("use", "-C", str(disks[0]), server.page("/x", bytes(8 * MEBIBYTE), stall_after=1))
    assert done.code == 13
    assert " MB missing, 3.1 MB free" in done.err


# -- where it is, and what there is ------------------------------------------------------------------------------------


def test_locate_takes_no_lease(sc: Callable[..., Done], source: str, disk: Disk) -> None:
    """A script that asks where its data is would hold it for ever."""
    path = sc("use", source).path
    before = disk.leases()
    assert sc("locate", source).path == path
    assert disk.leases() == before
    assert sc("locate", "/no/such").code == 1


def test_loaders_say_what_is_missing(sc: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants to fetch from S3 would find out in the job what has to be installed."""
    for name in ("fsspec", "fsspec.core", "backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = {(row["kind"], row["name"]): row for row in sc("loaders", "-f", "json").rows("loader")}
    assert rows["source", "http"]["ready"] is True
    assert rows["source", "s3"]["missing"] == "pip install fsspec s3fs"
    assert rows["step", "zst"]["missing"] == (
        "pip install backports.zstd" if sys.version_info < (3, 14) else "a Python that was built with compression.zstd"
    )
    assert rows["source", "dirac"]["ready"] is False
    assert rows["step", "adler32"]["ready"] is True
    assert "not installed: pip install fsspec s3fs" in sc("loaders").out
    remote = [row["summary"] for (kind, name), row in rows.items() if kind == "source" and "fsspec" in str(row)]
    assert len(set(remote)) == len(remote)


def test_an_item_of_several_sources(sc: Callable[..., Done], server: Server, tmp_path: Path) -> None:
    """A genome of many files is one item, used and given back together."""
    make_tar(tmp_path / "b.tar", {"member": b"data"})
    words = [server.page("/a", b"A"), "adler32:00420042", server.page("/b.tar", (tmp_path / "b.tar").read_bytes())]
    done = sc("use", *words)
    assert done.path.name == "a+1"
    assert sorted(os.listdir(done.path)) == ["a", "b.tar"]
    assert sc("unuse", *words, "-f", "json").row("unuse")["released"] == 1


def test_a_cache_of_an_earlier_release_has_no_transfers(sc: Callable[..., Done], disk: Disk, source: str) -> None:
    """A directory that is made on first need would be missed in a cache that has not needed it yet."""
    sc("init")
    shutil.rmtree(disk.control / "transfers", ignore_errors=True)
    assert shown(sc) == []
    assert sc("doctor").code == 0
    sc("use", source)
    assert len(shown(sc)) == 1
    assert sc("doctor").code == 0


def test_names_of_outcomes_and_states_are_read_as_they_were_written() -> None:
    """What one release writes, the next would pass over."""
    lease = f"p{'0' * 12}-{'1' * 12}.7"
    for name in (
        names.StateName("transferring", 5, None, 1),
        names.StateName("queued", 0, 10, 3),
        names.PartName(2, 4096),
        names.WhyName(3),
        names.OutcomeName("a" * 32, lease, 1_800_000_000_000, names.FAILED),
    ):
        assert type(name).parse(str(name)) == name
        assert type(name).parse(f"{name}.old") is None


def test_a_program_sees_its_own_transfers(tmp_path: Path, source: str) -> None:
    """A tool that shows a cache in a page of its own would have to run our command."""
    threads = threading.active_count()
    with Cache(tmp_path / "cache").use(source):
        (one,) = Cache(tmp_path / "cache").transfers()
    assert (one.state, one.bytes, one.percent) == ("done", 5, 100.0)
    assert json.dumps(one.source)
    assert threading.active_count() < threads + 20
    assert call("--version").code == 0
