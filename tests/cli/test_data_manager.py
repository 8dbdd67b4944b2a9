"""The test cases of the Whole Tale data manager, and what its users ran into."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import SC_DTOOL, Disk, Done, config, finish, start
from httpserver import Page, Server
from sccache_dtool.fetch import http
from test_config import DM
from waiting import wait_until

Sc = Callable[..., Done]

#: A hundredth of what the data manager's test calls the capacity.
UNIT = 1000

ORDERED = f"{DM}[clean]\norder = 'lru'\n"


@pytest.fixture
def put(sc: Sc, tmp_path: Path) -> Callable[[int], Path]:
    """Uses an item that takes 20 of 100 units of the capacity; its source."""

    def make(number: int) -> Path:
        source = tmp_path / f"item-{number}"
        source.write_bytes(bytes(20 * UNIT))
        assert sc("use", source).code == 0
        return source

    return make


def settings(text: str = ORDERED) -> str:
    return text.replace("capacity = 1000", f"capacity = {100 * UNIT}")


# -- collecting --------------------------------------------------------------------------------------------------------


def test_nothing_is_collected_below_the_start(sc: Sc, disk: Disk, put: Callable[[int], Path]) -> None:
    """Files would be removed that there is room for."""
    for number in range(2):
        sc("unuse", put(number))
    config(disk.root, settings())
    assert sc("clean").out.startswith("nothing to remove")
    assert len(disk.copies()) == 2


def test_above_the_start_it_is_collected_down_to_the_end(sc: Sc, disk: Disk, put: Callable[[int], Path]) -> None:
    """Collecting would stop as soon as it begins, or never."""
    for number in range(3):
        sc("unuse", put(number))
    config(disk.root, settings())
    assert sc("clean").code == 0
    assert len(disk.copies()) == 1  # 60, then 20: at most 25


def test_what_was_released_first_is_collected_first(sc: Sc, disk: Disk, put: Callable[[int], Path]) -> None:
    """What was just used would be fetched again at once."""
    sources = [put(number) for number in range(4)]
    for source in reversed(sources):
        sc("unuse", source)
    config(disk.root, settings().replace("0.25", "0.5"))
    sc("clean")
    left = [row["name"] for row in sc("-f", "json", "ls").rows("item")]
    assert sorted(left) == ["item-0", "item-1"]  # 3 was released first, then 2


def test_a_cache_full_of_locked_files_is_reported_with_their_holders(
    sc: Sc, disk: Disk, put: Callable[[int], Path]
) -> None:
    """The collector would run again and again, and nobody be told who is in the way."""
    for number in range(3):
        put(number)
    config(disk.root, settings())
    done = sc("clean")
    assert done.code == 3
    for number in range(3):
        assert f"item-{number}, 20.0 kB: in use: 1 lease" in done.out
    assert len(re.findall(rf"process {os.getpid()} .* is running", done.out)) == 3
    assert len(disk.copies()) == 3


def test_an_end_above_the_start_is_refused(sc: Sc, disk: Disk, put: Callable[[int], Path]) -> None:
    """Collecting would begin, and end without having removed anything."""
    sc("unuse", put(0))
    config(disk.root, settings().replace("start_fraction = 0.5", "start_fraction = 0.2"))
    done = sc("clean")
    assert done.code != 0
    assert "is above the high one" in done.err
    assert len(disk.copies()) == 1


# -- transferring ------------------------------------------------------------------------------------------------------


def transfer(sc: Sc) -> dict[str, object]:
    return sc("-f", "json", "transfers", "--all").row("transfer")


def test_a_source_that_ends_early_has_failed(sc: Sc, server: Server, disk: Disk) -> None:
    """A file without its end would count as done, or as if nothing had come, for no reason."""
    url = server.page("/x", bytes(UNIT), announced=UNIT + 1)
    assert sc("use", url).code == 12
    row = transfer(sc)
    assert (row["state"], row["bytes"]) == ("failed", UNIT)
    assert f"after {UNIT} of {UNIT + 1} bytes" in str(row["error"])
    assert disk.left() == []


def test_a_server_that_is_busy_twice(sc: Sc, server: Server) -> None:
    """A passing fault would be an error, or an error a passing fault."""
    sc("use", server.pages("/x", Page(status=503), Page(status=503), Page(b"data")))
    row = transfer(sc)
    assert (row["state"], row["attempts"], row["bytes"]) == ("done", 3, 4)


def test_a_size_that_is_not_known(sc: Sc, server: Server) -> None:
    """A download would stand at 0 %, or at 100 %, from beginning to end."""
    url = server.page("/x", bytes(UNIT), unannounced=True, stall_after=10)
    with start([SC_DTOOL, "use", url]) as process:
        server.wait_for_gets("/x")
        row = wait_until(lambda: next((row for row in running(sc) if row["state"] == "transferring"), None), "no start")
        assert (row["total"], row["percent"]) == (None, None)
        server.release()
        assert finish(process).code == 0


def running(sc: Sc) -> list[dict[str, object]]:
    return sc("-f", "json", "transfers").rows("transfer")


def test_a_server_that_stalls(sc: Sc, server: Server, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer would stay at the same byte for ever."""
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.05)
    assert sc("use", server.page("/x", bytes(UNIT), stall_after=10)).code == 12
    row = transfer(sc)
    assert row["state"] == "failed"
    assert "no data for 0.05 s" in str(row["error"])
    assert disk.left() == []


def test_a_uri_with_a_space(sc: Sc, tmp_path: Path) -> None:
    """A file that was registered by its URI would not be found."""
    (tmp_path / "a b").write_text("data")
    for uri in (f"file://{tmp_path}/a%20b", f"local://{tmp_path}/a%20b", f"local:{tmp_path}/a b", f"{tmp_path}/a b"):
        assert sc("use", uri).path.read_text() == "data"
    assert len(sc("-f", "json", "ls").rows("item")) == 1
