"""Files that Globus transfers: one task for each, whoever is killed, and none that nobody waits for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.test_speed_of_loading import loaded
from cli.tool import config, environment, finish, heard, say, shell, start
from faults import FakeClock
from fetch import globus_service, servers
from fetch.globus_service import BASE, CACHE, SOURCE, Globus
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import FetchFailed, TimedOut
from sccache_dtool.fetch.retry import GaveUp
from sccache_dtool.liveness.caller import Owner
from sccache_dtool.policy.rules import Rules
from waiting import wait_until

BODY = b"ACGT" * 1000
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
URL = f"globus://{SOURCE}/data/ref.fa"

TESTS = str(Path(__file__).parent.parent)

Words = Callable[..., list[str]]

SETTINGS = f'[globus]\ncollection = "{CACHE}"\nbase = "{BASE}"\n'

#: The real command line, which asks often, so that nobody waits for it here.
HURRIED = """
from sccache_dtool.cli import main
from sccache_dtool.fetch import globus, retry, track
from sccache_dtool.protocol import election
globus.FIRST_POLL = globus.LONGEST_POLL = retry.FIRST_PAUSE = track.PULSE = 0.05
election.LIFETIME, election.REFRESH = 2, 0.3
main.main()
"""


#: Uses what it is told to, in a child each that is killed before a certain call that concerns the transfer.
KILLED = """
import os, signal, sys
import globus_sdk, sccache_dtool.fetch.populate
from faults import Counting
from sccache_dtool.cache import Cache
from sccache_dtool.fetch import track
from sccache_dtool.protocol import election
track.PULSE, election.LIFETIME, election.REFRESH = 3600.0, 2, 0.3
class Killing(Counting):
    def handle(self, call, do):
        if "~globus~" in str(call) or "/work" in str(call):
            self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return do()
for line in sys.stdin:
    nth, url = line.split()
    child = os.fork()
    if child == 0:
        fs = Killing()
        fs.left = int(nth)
        Cache(sys.argv[1], fs=fs).use(url)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What the source's collection shows."""
    (tmp_path / "lab/data").mkdir(parents=True)
    (tmp_path / "lab/data/ref.fa").write_bytes(BODY)
    return tmp_path / "lab"


@pytest.fixture
def globus(layout: Layout, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    servers.need("globus_sdk")
    config(Path(layout.root), SETTINGS)
    with globus_service.serve({SOURCE: place, CACHE: Path(layout.root)}, monkeypatch) as running:
        yield running


@pytest.fixture
def sc(layout: Layout) -> Words:
    """The words of a command that this process holds leases of."""

    def words(*given: str) -> list[str]:
        holder = ("--holder", f"pid:{os.getpid()}") if given[0] == "use" else ()
        return [sys.executable, "-c", HURRIED, "-C", layout.root, *given, *holder]

    return words


def left(layout: Layout) -> list[str]:
    return [name for name in os.listdir(layout.tmp) if "~wait" not in name]


# -- one process -------------------------------------------------------------------------------------------------------


def test_a_file_is_transferred_and_checked(globus: Globus, cache: Cache, layout: Layout) -> None:
    """A site without a web server for its data could not fill its cache; or mails would come for every file."""
    with cache.use(URL, DIGEST) as path:
        assert path.read_bytes() == BODY
        assert path.name == "ref.fa"
        assert not path.stat().st_mode & 0o222
    (task,) = globus.tasks.values()
    document = task["document"]
    assert document["verify_checksum"] is True
    assert not any(document[f"notify_on_{what}"] for what in ("succeeded", "failed", "inactive"))
    assert left(layout) == []
    with cache.use(URL, DIGEST):
        assert len(globus.tasks) == 1


def test_a_wrong_digest_is_refused(globus: Globus, cache: Cache, layout: Layout) -> None:
    """What Globus has transferred well may still be another file than the one that was asked for."""
    with pytest.raises(FetchFailed, match="sha256 of globus://"):
        cache.use(URL, f"sha256:{'0' * 64}")
    assert left(layout) == []


def test_a_failure_is_told_with_the_words_of_globus(globus: Globus, cache: Cache, layout: Layout) -> None:
    """Who may not read a file would be told that something has failed."""
    globus.mode = "fail"
    with pytest.raises(FetchFailed, match="you may not read /x") as caught:
        cache.use(URL)
    assert "PERMISSION_DENIED: https://app.globus.org/activity/" in caught.value.details[0]
    assert left(layout) == []
    globus.mode = "at once"
    cache.use(URL).release()


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("nope", "there is no such file", ""),
        ("data", "it is not a file", "give its files"),
        ("secret", "consent is required", f"sc-dtool globus login --collection {SOURCE}"),
    ],
)
def test_what_cannot_be_transferred_is_told_before(
    globus: Globus, cache: Cache, layout: Layout, place: Path, name: str, message: str, hint: str
) -> None:
    """A task would run, and fail after an hour, for a mistyped name or a consent that nobody has given."""
    (place / "secret").write_text("x")
    with pytest.raises(FetchFailed, match=message) as caught:
        cache.use(f"globus://{SOURCE}/{name}")
    assert hint in (caught.value.hint or "")
    assert globus.tasks == {}
    assert left(layout) == []


def test_a_lost_reply_is_one_task(globus: Globus, cache: Cache, notes: list[str]) -> None:
    """A terabyte would be transferred twice because one reply was lost, as with the Whole Tale data manager."""
    globus.lose_replies = 3
    with cache.use(URL) as path:
        assert path.read_bytes() == BODY
    assert len(globus.tasks) == 1
    assert sum(one == "POST /v0.10/transfer" for one in globus.asked) == 4


def test_a_service_in_trouble_is_asked_again(globus: Globus, cache: Cache) -> None:
    """A passing fault of the service would fail the job."""
    globus.busy = 3
    cache.use(URL).release()
    assert len(globus.tasks) == 1


def test_a_file_that_is_shorter_than_announced_is_transferred_again(globus: Globus, cache: Cache) -> None:
    """A collection that loses the end of a file would put the rest of it into the cache."""
    globus.lost_bytes = 1
    with cache.use(URL) as path:
        assert path.read_bytes() == BODY
    assert len(globus.tasks) == 2


@pytest.mark.parametrize(
    ("mode", "message"), [("pause", "resume it"), ("inactive", "credentials for one of the collections have expired")]
)
def test_what_is_held_is_waited_for_and_then_told(
    globus: Globus, cache: Cache, layout: Layout, job: Owner, notes: list[str], mode: str, message: str
) -> None:
    """Who has to renew a credential would find out from an error that says only that time is up."""
    globus.mode = mode
    with pytest.raises(FetchFailed) as caught:
        cache.hold(job, cache.item_request([URL]), UseOptions(wait=600.0))
    assert message in caught.value.details[0]
    assert "https://app.globus.org/activity/" in (caught.value.hint or "")
    assert len([note for note in notes if message in note]) == 1
    (task,) = globus.tasks.values()
    assert task["fatal_error"]["code"] == "CANCELED"
    assert left(layout) == []


def test_a_transfer_ends_with_the_wait(
    globus: Globus, cache: Cache, layout: Layout, job: Owner, clock: FakeClock
) -> None:
    """A task that nobody waits for any more would go on for days, and write into the cache."""
    globus.mode = "hold"
    with pytest.raises(TimedOut, match="still being transferred by Globus after 10 min") as caught:
        cache.hold(job, cache.item_request([URL]), UseOptions(wait=600.0))
    assert caught.value.hint == "wait longer with --wait"
    (task,) = globus.tasks.values()
    assert task["fatal_error"]["code"] == "CANCELED"
    assert task["document"]["deadline"]
    assert left(layout) == []


def test_a_new_version_is_noticed_with_one_request(globus: Globus, cache: Cache, place: Path) -> None:
    """`--refresh` would transfer everything again, or never notice a change."""
    first = cache.use(URL)
    assert cache.use(URL, refresh=True).path == first.path
    (place / "data/ref.fa").write_bytes(b"new")
    assert cache.use(URL, refresh=True).path.read_bytes() == b"new"
    assert len(globus.tasks) == 2


def test_without_settings_or_login_it_is_said_what_is_missing(
    globus: Globus, make_cache: Callable[..., Cache], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new user would see an error of a library."""
    config(Path(layout.root), "")
    with pytest.raises(FetchFailed) as caught:
        make_cache().use(URL)
    assert "[globus] collection" in (caught.value.hint or "")
    config(Path(layout.root), SETTINGS)
    monkeypatch.delenv("GLOBUS_CLIENT_SECRET")
    monkeypatch.setenv("HOME", layout.root)
    with pytest.raises(FetchFailed, match="not logged in") as caught:
        make_cache().use(URL)
    assert caught.value.hint == "log in with: sc-dtool globus login"
    monkeypatch.delenv("GLOBUS_CLIENT_ID")
    with pytest.raises(FetchFailed, match="no application is set up"):
        make_cache().use(URL)


def test_a_service_that_does_not_answer_leaves_the_task_for_the_next(
    globus: Globus, cache: Cache, layout: Layout, notes: list[str]
) -> None:
    """An hour's transfer would be lost in an outage of the service that says how far it is."""
    globus.mode = "hold"
    globus.busy_after = "GET /v0.10/task"
    with pytest.raises(GaveUp, match="busy"):
        cache.use(URL)
    globus.busy, globus.busy_after = 0, ""
    globus.finish()
    with cache.use(URL) as path:
        assert path.read_bytes() == BODY
    assert len(globus.tasks) == 1
    assert left(layout) == []


def test_a_user_logs_in_once(
    globus: Globus,
    layout: Layout,
    sc: Words,
    tmp_path: Path,
    make_cache: Callable[..., Cache],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has no application of his own could not use Globus; or a batch job would wait for somebody to log in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shell(sc("globus", "login")).code == 2  # the application needs none
    monkeypatch.delenv("GLOBUS_CLIENT_SECRET")
    monkeypatch.delenv("GLOBUS_CLIENT_ID")
    config(Path(layout.root), f'{SETTINGS}client = "{globus_service.CLIENT}"\n')
    with start(sc("globus", "login", "--collection", SOURCE)) as process:
        assert process.stdin is not None
        process.stdin.write("the code that the page shows\n")
        done = finish(process)
    assert done.code == 0, done
    assert f"https://auth.globus.org/scopes/{SOURCE}/data_access".replace("/", "%2F").replace(":", "%3A") in done.out
    assert done.out.endswith("logged in to Globus\n")
    tokens = next((tmp_path / ".globus").rglob("tokens.json"))
    assert tokens.stat().st_mode & 0o77 == 0
    with make_cache().use(URL) as path:
        assert path.read_bytes() == BODY
    assert shell(sc("globus", "logout")).code == 0
    with pytest.raises(FetchFailed, match="not logged in"):
        make_cache().use(URL, refresh=True)


def test_nothing_of_globus_is_loaded_but_to_transfer(globus: Globus, layout: Layout, cache: Cache, place: Path) -> None:
    """Each use, and each download from elsewhere, would load the clients of a service that it does not ask."""
    cache.use(URL)
    me = ("--holder", f"pid:{os.getpid()}")
    for words in (["use", URL, *me], ["use", str(place / "data/ref.fa"), *me], ["loaders"], ["config", "show"]):
        modules = loaded("-C", layout.root, *words)
        assert {"globus_sdk", "jwt"} & modules == set(), words
    assert "sccache_dtool.fetch.globus" not in loaded("-C", layout.root, "use", URL, *me)


# -- several processes -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fetching(globus: Globus, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has asked how far its task is."""
    globus.mode = "hold"
    with start(words) as process:
        globus.wait_for("GET /v0.10/task")
        yield process


@contextlib.contextmanager
def waiting(layout: Layout, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that shows that it waits for another one."""
    with start(words) as process:
        wait_until(lambda: any("~wait" in name for name in os.listdir(layout.tmp)), "nobody waits")
        yield process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def states(globus: Globus) -> list[str]:
    return [task["status"] for task in globus.tasks.values()]


def test_who_is_killed_is_succeeded_with_the_same_task(globus: Globus, layout: Layout, sc: Words) -> None:
    """A terabyte would be transferred again because the job that asked for it was killed."""
    words = sc("use", URL, DIGEST, "--wait", "2d")
    with fetching(globus, words) as first, waiting(layout, words) as second:
        (task,) = globus.tasks.values()
        before = task["deadline"]
        kill(first)
        globus.wait_for("PUT /v0.10/task")
        assert task["deadline"] >= before  # for as long as the second waits
        globus.finish()
        assert finish(second).path.read_bytes() == BODY
    assert states(globus) == ["SUCCEEDED"]
    assert left(layout) == []


def test_who_is_killed_before_the_reply_is_succeeded_with_the_same_task(
    globus: Globus, layout: Layout, sc: Words, cache: Cache
) -> None:
    """Between a submission and its reply, a kill would make two tasks of one."""
    globus.mode = "hold"
    globus.lose_replies = 1000
    with start(sc("use", URL)) as first:
        globus.wait_for("POST /v0.10/transfer")
        kill(first)
    globus.lose_replies = 0
    assert states(globus) == ["ACTIVE"]
    globus.finish()
    with cache.use(URL) as path:
        assert path.read_bytes() == BODY
    assert states(globus) == ["SUCCEEDED"]
    assert left(layout) == []


def test_a_kill_before_any_call_is_still_one_task(globus: Globus, layout: Layout, place: Path) -> None:
    """At some moment a killed job would have its terabyte transferred again, or leave the cache with the half of it."""
    survived, nth = False, 0
    counts = []
    with start([sys.executable, "-c", KILLED, layout.root], env=environment(PYTHONPATH=TESTS)) as victims:
        while not survived:
            globus.tasks.clear()
            (place / f"data/{nth}").write_bytes(BODY)
            url = f"globus://{SOURCE}/data/{nth}"
            say(victims, f"{nth} {url}")
            assert heard(victims)
            survived = len(list(Path(layout.items).glob("*/*/g*"))) > nth  # it has published the item
            if not survived:
                counts.append(tasks_of_successor(globus, layout, url))
            nth += 1
    assert nth > 15
    assert counts.count(2) <= 3
    Cache(layout.root).clean(Rules(everything=True))
    assert [name for name in left(layout) if "~globus~" not in name] == []


def tasks_of_successor(globus: Globus, layout: Layout, url: str) -> int:
    """How many tasks there are after another process has used the item."""
    notes = [*Path(layout.tmp).glob("*~globus~*/0.json"), *Path(layout.tmp).glob("*~fetch~*/work/0.origin")]
    # What is just being published, no other process can use, whatever its source is.
    tasks = 2 if globus.tasks and not notes else 1
    cache = Cache(layout.root)
    with cache.use(url) as path:
        assert path.read_bytes() == BODY
    cache.close()
    assert len(globus.tasks) == tasks, url
    return tasks


def test_a_task_that_nobody_waits_for_is_cancelled(globus: Globus, layout: Layout, sc: Words) -> None:
    """A job that is cancelled would leave a transfer that goes on for hours."""
    with fetching(globus, sc("use", URL)) as process:
        process.send_signal(signal.SIGTERM)
        assert finish(process).code == 128 + signal.SIGTERM
    assert [task["fatal_error"]["code"] for task in globus.tasks.values()] == ["CANCELED"]
    assert left(layout) == []


def test_a_task_that_another_waits_for_is_not_cancelled(globus: Globus, layout: Layout, sc: Words) -> None:
    """The first of many jobs that ends would have the transfer for all others begin again."""
    words = sc("use", URL)
    with fetching(globus, words) as first, waiting(layout, words) as second:
        first.send_signal(signal.SIGTERM)
        assert finish(first).code == 128 + signal.SIGTERM
        globus.wait_for("PUT /v0.10/task")
        globus.finish()
        assert finish(second).path.read_bytes() == BODY
    assert states(globus) == ["SUCCEEDED"]
    assert left(layout) == []


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGTERM])
def test_who_was_frozen_wakes_up_and_does_no_harm(
    globus: Globus, layout: Layout, sc: Words, end: signal.Signals
) -> None:
    """A suspended process would cancel the task of its successor, or take the file away from it."""
    words = sc("use", URL)
    with fetching(globus, words) as first:
        first.send_signal(signal.SIGSTOP)
        with start(words) as second:
            globus.wait_for("PUT /v0.10/task")  # within the lifetime of the election
            first.send_signal(end)
            first.send_signal(signal.SIGCONT)
            if end is signal.SIGTERM:
                assert finish(first).code == 128 + signal.SIGTERM
            assert states(globus) == ["ACTIVE"]
            globus.finish()
            path = finish(second).path
        if end is signal.SIGCONT:
            assert finish(first).path == path
    assert path.read_bytes() == BODY
    assert states(globus) == ["SUCCEEDED"]
    assert left(layout) == []


def test_the_task_of_another_user_is_not_continued(globus: Globus, layout: Layout, sc: Words, cache: Cache) -> None:
    """Globus shows tasks to their owner only: a colleague could not fetch what a killed job has begun."""
    with fetching(globus, sc("use", URL)) as first:
        kill(first)
    globus.who, globus.mode = "grace", "at once"
    with cache.use(URL) as path:
        assert path.read_bytes() == BODY
    assert states(globus) == ["ACTIVE", "SUCCEEDED"]


def test_a_task_for_something_else_is_left_alone(
    globus: Globus, layout: Layout, sc: Words, cache: Cache, job: Owner
) -> None:
    """A member of the group could have a user's own transfers cancelled, by what he leaves in the cache."""
    with fetching(globus, sc("use", URL)) as first:
        kill(first)
    (task,) = globus.tasks.values()
    task["label"] = "my thesis"
    with pytest.raises(TimedOut):
        cache.hold(job, cache.item_request([URL]), UseOptions(wait=600.0))
    assert states(globus) == ["ACTIVE", "FAILED"]
    assert task["status"] == "ACTIVE"


def test_what_has_failed_since_is_begun_again(globus: Globus, layout: Layout, sc: Words, cache: Cache) -> None:
    """The deadline of a killed job would be the end of the one that takes over."""
    with fetching(globus, sc("use", URL)) as first:
        kill(first)
    (task,) = globus.tasks.values()
    task["status"], task["fatal_error"] = "FAILED", {"code": "X", "description": "the deadline has passed"}
    globus.mode = "at once"
    cache.use(URL).release()
    assert states(globus) == ["FAILED", "SUCCEEDED"]
    assert left(layout) == []


def test_cleaning_leaves_what_is_transferred_and_not_for_ever(
    globus: Globus, layout: Layout, sc: Words, make_cache: Callable[..., Cache]
) -> None:
    """`clean` would remove the directory that a file is just written to, as who has made it was killed; or never."""
    cleaner = Cache(layout.root)
    words = sc("use", URL)
    with fetching(globus, words) as first, waiting(layout, words) as second:
        kill(first)
        globus.wait_for("PUT /v0.10/task")
        cleaner.clean(Rules(everything=True))
        globus.finish()
        assert finish(second).path.read_bytes() == BODY
    globus.asked.clear()
    with fetching(globus, sc("use", f"{URL}", "sha1:" + hashlib.sha1(BODY).hexdigest())) as third:
        kill(third)
    cleaner.clean(Rules(everything=True))
    (name,) = left(layout)
    assert "~globus~" in name
    os.utime(f"{layout.tmp}/{name}", (0, 0))
    cleaner.clean(Rules(everything=True))
    assert left(layout) == []
