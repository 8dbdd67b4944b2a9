"""A download goes on when the one who downloads is killed, frozen or cut off, and who wakes up does no harm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import httpserver
from cli.tool import start
from faults import Interposing, store_of
from hosts.nshost import host_command
from httpserver import Page
from races.actors import SlippingAt, findings, generations, left_in
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout, PartName
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import track, transfers
from sccache_dtool.policy.rules import Rules
from waiting import PATIENCE, wait_until

BODY = os.urandom(6 << 20)
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
ETAG = '"one"'

#: The real command line, with signs of life so often that nobody waits for them here.
HURRIED = """
import sys
from sccache_dtool.protocol import election
from sccache_dtool.fetch import track
from sccache_dtool.cli import main
track.PULSE, election.LIFETIME, election.REFRESH = 0.05, 2, 0.3
main.main()
"""


#: So many processes run one command line. They are forked, as the start of Python would take longer than all else.
THIRTY_TWO = """
import contextlib, os
import click, flufl.lock, requests, sccache_dtool.cache
from sccache_dtool.cli import main
for _ in range(32):
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        main.main()
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
"""


@pytest.fixture
def server() -> Iterator[httpserver.Server]:
    with httpserver.serve() as running:
        yield running


@pytest.fixture
def layout(place: str) -> Layout:
    return Layout(place)


def sc(place: str, *words: str) -> list[str]:
    return [sys.executable, "-c", HURRIED, "-C", place, *words]


def noted(layout: Layout) -> int:
    """Bytes that a download under way has said to be on disk."""
    most = 0
    for area in Path(layout.tmp).iterdir():
        try:
            found = [PartName.parse(name) for name in os.listdir(area)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        most = max([most, *(part.bytes for part in found if part)])
    return most


def path_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out.rstrip("\n")


def begun(server: httpserver.Server) -> str:
    """A file whose first download stops in the middle, and stays there."""
    return server.pages("/x", Page(BODY, stall_after=4 << 20, etag=ETAG), Page(BODY, etag=ETAG))


def continued_at(server: httpserver.Server) -> int:
    (_, second) = server.ranges("/x")
    assert second is not None, "it was begun again"
    return int(second.removeprefix("bytes=").rstrip("-"))


# -- real processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [[], [DIGEST]], ids=["as it is", "checked"])
def test_after_a_kill_the_next_goes_on(
    place: str, layout: Layout, server: httpserver.Server, digest: list[str]
) -> None:
    """Six hours of download would be lost with the job that did it."""
    url = begun(server)
    with start(sc(place, "use", url, *digest, "--holder", f"pid:{os.getpid()}")) as first:
        wait_until(lambda: noted(layout) == 4 << 20, "no sign of progress")
        first.kill()
        first.wait()
        with start(sc(place, "use", url, *digest, "--holder", f"pid:{os.getpid()}")) as second:
            path = path_of(second)
    assert Path(path).read_bytes() == BODY
    assert continued_at(server) == 4 << 20
    assert [name for name in os.listdir(layout.tmp) if name.endswith("taken")] == []


def test_what_a_successor_had_taken_is_continued_if_it_is_killed_too(
    place: str, layout: Layout, server: httpserver.Server, actor: Callable[..., Cache]
) -> None:
    """The second job that is killed would lose six hours of the first one's download."""
    url = begun(server)
    with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as first:
        wait_until(lambda: noted(layout) == 4 << 20, "no sign of progress")
        first.kill()
        first.wait()

    class Interrupted(BaseException):
        pass

    def interrupt() -> None:
        raise Interrupted

    fs = Interposing()
    fs.before("create", interrupt, within="/work/0")
    with pytest.raises(Interrupted):
        actor(fs).use(url)
    (left,) = os.listdir(layout.tmp)
    assert "~taken~" in left
    with actor().use(url) as path:
        assert path.read_bytes() == BODY
    assert continued_at(server) == 4 << 20
    assert os.listdir(layout.tmp) == []


def test_after_sigterm_the_next_goes_on(place: str, layout: Layout, server: httpserver.Server) -> None:
    """A batch system ends a job politely, and its download would be thrown away out of politeness."""
    url = begun(server)
    with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as first:
        wait_until(lambda: noted(layout) == 4 << 20, "no sign of progress")
        first.send_signal(signal.SIGTERM)
        server.release()
        assert first.wait(PATIENCE) == 128 + signal.SIGTERM
    with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as second:
        assert Path(path_of(second)).read_bytes() == BODY
    assert continued_at(server) == 4 << 20


def test_who_was_frozen_wakes_up_and_does_no_harm(place: str, layout: Layout, server: httpserver.Server) -> None:
    """A suspended process would write into the file that its successor continues, or publish half of it."""
    url = begun(server)
    with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as first:
        wait_until(lambda: noted(layout) == 4 << 20, "no sign of progress")
        first.send_signal(signal.SIGSTOP)
        with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as second:
            path = path_of(second)  # within the lifetime of the election
        assert Path(path).read_bytes() == BODY
        assert continued_at(server) == 4 << 20
        server.release()
        first.send_signal(signal.SIGCONT)
        assert path_of(first) == path
    assert Path(path).read_bytes() == BODY
    assert os.listdir(layout.tmp) == []
    assert server.gets["/x"] == 2


@pytest.mark.hosts
def test_a_host_that_goes_away_is_succeeded_by_another(place: str, layout: Layout, server: httpserver.Server) -> None:
    """A power failure on one node would leave all others waiting for it."""
    url = begun(server)
    words = ("use", url, DIGEST, "--holder", "a campaign", "--ttl", "1h")
    with start(host_command("a", sc(place, *words), network=True)) as first:
        wait_until(lambda: noted(layout) == 4 << 20, "no sign of progress")
        with start(host_command("b", sc(place, *words), network=True)) as second:
            first.kill()
            path = path_of(second)
    assert Path(path).read_bytes() == BODY
    assert continued_at(server) == 4 << 20


@pytest.mark.hosts
def test_one_download_for_64_processes_on_two_hosts(place: str, layout: Layout, server: httpserver.Server) -> None:
    """Each node of a cluster would fetch the same terabyte."""
    url = server.page("/x", BODY, hold=True)
    words = ["-C", place, "use", url, DIGEST, "--holder", "all", "--ttl", "1h"]
    hosts = [
        subprocess.Popen(
            host_command(name, [sys.executable, "-c", THIRTY_TWO, *words], network=True),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    try:
        server.wait_for_gets("/x", timeout=PATIENCE)
        wait_until(lambda: len(os.listdir(layout.holders)) > 60, "not all have come")
        server.release()
        lines = [host.communicate(timeout=2 * PATIENCE)[0].splitlines() for host in hosts]
    finally:
        for host in hosts:
            host.kill()
            host.wait()
    assert [len(of_host) for of_host in lines] == [32, 32]
    assert server.gets["/x"] == 1
    (path,) = {line for of_host in lines for line in of_host}
    assert Path(path).read_bytes() == BODY


# -- every order of steps ----------------------------------------------------------------------------------------------


def pass_over(layout: Layout) -> None:
    """What happens to the winner of an election who is silent for too long."""
    for name in os.listdir(layout.locks):
        if ".lock" in name or ".by-" in name:
            Path(layout.locks, name).unlink(missing_ok=True)


def test_a_takeover_before_every_single_call(
    place: str, layout: Layout, server: httpserver.Server, actor: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At some moment of a download a successor would make the two of them publish something that is not the file."""
    monkeypatch.setattr(track, "PULSE", 3600.0)
    body = BODY[: 300 << 10]
    frozen = SlippingAt()
    victim, successor = actor(frozen), actor()
    victim.use(server.page("/warm-up", b"x")).release()
    paths: list[bytes] = []
    nth = 0
    while nth == 0 or frozen.where is not None:
        url = server.page(f"/{nth}", body, etag=ETAG)
        frozen.where = None

        def succeed(url: str = url) -> None:
            frozen.nth = -1
            pass_over(layout)
            with successor.use(url) as path:
                paths.append(path.read_bytes())

        frozen.arm(nth, succeed)
        with victim.use(url) as path:
            assert path.read_bytes() == body, f"call {nth}: {frozen.where}"
        nth += 1
    assert nth > 30
    assert set(paths) == {body}
    assert [name for name in os.listdir(layout.tmp) if "~fetch~" in name] == []
    successor.close()
    victim.close()
    cache = actor()
    cache.clean(Rules(everything=True))
    assert left_in(place) == {}
    assert findings(cache) == []


def test_of_two_who_are_elected_one_publishes(
    place: str, layout: Layout, server: httpserver.Server, actor: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever two are elected, the cache would have two copies of a terabyte."""
    monkeypatch.setattr("sccache_dtool.fetch.transfers.find_abandoned", lambda *given: None)
    url = server.page("/x", BODY, etag=ETAG)
    fs, other = Interposing(), actor()
    paths: list[Path] = []

    def be_elected_too() -> None:
        pass_over(layout)
        with other.use(url) as path:
            paths.append(path)

    fs.before("mkdir", be_elected_too, within="/payload")
    with actor(fs).use(url) as path:
        assert path.read_bytes() == BODY
        assert [path] == paths
    assert server.gets["/x"] == 2
    assert len(generations(place, layout.key_of(str(path)) or "")) == 1


def test_what_a_frozen_one_writes_does_not_reach_its_successor(
    place: str, layout: Layout, server: httpserver.Server, actor: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor would continue in a file into which somebody else still writes."""
    monkeypatch.setattr(track, "PULSE", 3600.0)
    noise = os.urandom(1 << 20)

    class Frozen(FileSystem):
        def write(self, fd: int, data: bytes) -> None:
            super().write(fd, data)
            if os.fstat(fd).st_size == 1 << 20 and not done:
                done.append(fd)
                for area in Path(layout.tmp).glob("*~fetch~*"):  # what the thread that beats does every few seconds
                    (old,) = area.glob("part~0~*")
                    old.rename(area / f"part~0~{1 << 20}")
                held = os.dup(fd)
                pass_over(layout)
                with actor().use(url) as path:
                    seen.append(path.read_bytes())
                    os.write(held, noise)
                    seen.append(path.read_bytes())
                os.close(held)

    done: list[int] = []
    seen: list[bytes] = []
    url = server.page("/x", BODY, etag=ETAG)
    with actor(Frozen()).use(url) as path:
        assert path.read_bytes() == BODY
    assert seen == [BODY, BODY]
    assert server.ranges("/x") == [None, f"bytes={1 << 20}-"]
    assert len(generations(place, layout.key_of(str(path)) or "")) == 1


def test_only_what_was_said_to_be_on_disk_is_continued(
    place: str, layout: Layout, server: httpserver.Server, actor: Callable[..., Cache]
) -> None:
    """After a power failure the end of a file may be a hole of zeros, which nobody would notice without a digest."""
    url = server.pages("/x", Page(BODY, stall_after=2 << 20, etag=ETAG), Page(BODY, etag=ETAG))
    with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as first:
        wait_until(lambda: noted(layout) == 2 << 20, "no sign of progress")
        first.kill()
        first.wait()
    (area,) = Path(layout.tmp).glob("*~fetch~*")
    with open(area / "work" / "0", "ab") as file:
        file.write(bytes(1 << 20))
    with actor().use(url) as path:
        assert path.read_bytes() == BODY


@pytest.mark.parametrize("damage", ["origin", "short", "other version", "facts"])
def test_what_is_damaged_is_not_continued(
    place: str, layout: Layout, server: httpserver.Server, actor: Callable[..., Cache], damage: str
) -> None:
    """A work area that a crash has damaged would be taken for the beginning of the file."""
    url = begun(server)
    with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as first:
        wait_until(lambda: noted(layout) == 4 << 20, "no sign of progress")
        first.kill()
        first.wait()
    (area,) = Path(layout.tmp).glob("*~fetch~*")
    if damage == "origin":
        (area / "work" / "0.origin").write_text("{")
    elif damage == "short":
        os.truncate(area / "work" / "0", 1 << 20)
    elif damage == "other version":
        server.page("/x", BODY, etag='"two"')
    else:
        (area / "transfer.json").write_text("[]")
    with actor().use(url) as path:
        assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    "name", ["../../../../../thesis", "{precious}", "..", "a/../../b", "", "\x1b[2J", "\ud800", "a\0b"]
)
def test_what_others_left_of_a_download_leads_nowhere_else(
    place: str, layout: Layout, server: httpserver.Server, actor: Callable[..., Cache], tmp_path: Path, name: str
) -> None:
    """A colleague could have a file of the user's own replaced, by what he had left as the name of a download."""
    precious = tmp_path / "thesis"
    precious.write_text("precious")
    below = Path(place).parent / "thesis"
    below.write_text("precious")
    url = begun(server)
    with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as first:
        wait_until(lambda: noted(layout) == 4 << 20, "no sign of progress")
        first.kill()
        first.wait()
    (area,) = Path(layout.tmp).glob("*~fetch~*")
    origin = area / "work" / "0.origin"
    facts = json.loads(origin.read_text())
    text = json.dumps({**facts, "name": name.format(precious=precious)})
    origin.unlink()
    origin.write_text(text)
    with actor().use(url) as path:
        assert path.name in {"x", "data"}
        assert path.read_bytes() == BODY
    assert precious.read_text() == below.read_text() == "precious"


@pytest.mark.parametrize("validator", ['"a\r\nX: y"', " ", "\u20ac", "x" * 100_000, ""])
def test_what_others_left_of_a_download_is_not_sent_as_it_is(
    place: str, layout: Layout, server: httpserver.Server, actor: Callable[..., Cache], validator: str
) -> None:
    """A header that cannot be sent would make every download of the item fail, as long as the rest of one is there."""
    url = begun(server)
    with start(sc(place, "use", url, "--holder", f"pid:{os.getpid()}")) as first:
        wait_until(lambda: noted(layout) == 4 << 20, "no sign of progress")
        first.kill()
        first.wait()
    (area,) = Path(layout.tmp).glob("*~fetch~*")
    origin = area / "work" / "0.origin"
    text = json.dumps({**json.loads(origin.read_text()), "validator": validator})
    origin.unlink()
    origin.write_text(text)
    with actor().use(url) as path:
        assert path.read_bytes() == BODY


def test_a_copy_from_a_local_file_is_not_taken_away_while_it_runs(
    layout: Layout, actor: Callable[..., Cache], tmp_path: Path
) -> None:
    """Whoever wanted the file's next version would remove what another one is still copying, and who copies it again
    would do the same; and its room would not be reserved.
    """
    source = tmp_path / "ref.fa"
    source.write_text("ACGT\n")
    fs = Interposing()
    seen = []

    def look() -> None:
        seen.extend(one.state for one in transfers.running(store_of(FileSystem(), layout)))
        source.write_text("ACGTACGT\n")
        with actor().use(str(source)) as path:
            assert path.read_text() == "ACGTACGT\n"
        seen.extend(one.state for one in transfers.running(store_of(FileSystem(), layout)))
        source.write_text("ACGT\n")

    fs.before("create", look, within="work/0")
    with contextlib.suppress(FetchFailed):  # the source has changed meanwhile
        actor(fs=fs).use(str(source)).release()
    assert seen
    assert transfers.TransferState.ABANDONED not in seen
    assert len(seen) == 2
