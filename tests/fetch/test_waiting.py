"""Waiting for somebody else's fetch ends with its item, with its reason, or with our turn."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from faults import FakeClock, store_of
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import FAILED, Layout, OutcomeName
from sccache_dtool.errors import CacheError, FetchFailed, NoSpace
from sccache_dtool.fetch.populate import _reasons
from sccache_dtool.fetch.request import Terms
from sccache_dtool.fetch.resolve import one_item, parse_request
from sccache_dtool.fetch.waiting import Waiter, asked_as
from sccache_dtool.protocol import downloads
from sccache_dtool.protocol.holders import user_name

LEASE = f"p{'0' * 12}-{'1' * 12}.7"


class Lost:
    """An election that another has won, whose fetch fails while we wait; then it is our turn."""

    def __init__(self, layout: Layout, facts: dict[str, Any], key: str) -> None:
        self.layout, self.facts, self.key = layout, facts, key
        self.polls = 0
        self.resigned = False

    def poll(self) -> bool:
        self.polls += 1
        if self.polls == 2:
            name = OutcomeName(self.key[:32], LEASE, 1_800_000_000_000, FAILED)
            downloads.note_outcome(store_of(FileSystem(), self.layout), name, self.facts)
        return self.polls >= 3

    def resign(self) -> None:
        self.resigned = True


MISSING = {"error": "the server answered 404", "shared": True, "asked_as": "anybody"}
FULL = {"error": "no space left", "no_space": True}
URL = "https://example.org/x"


@pytest.mark.parametrize(
    ("facts", "url", "make_room", "kind"),
    [
        (MISSING, URL, False, FetchFailed),
        (MISSING, URL, True, FetchFailed),
        (MISSING, "https://ada:secret@example.org/x", False, None),
        ({**MISSING, "asked_as": "somebody"}, URL, False, None),
        ({"error": "the server answered 401"}, URL, False, None),
        ({"error": "permission denied", "shared": False, "asked_as": "anybody"}, URL, False, None),
        ({"error": "the server answered 503"}, URL, False, None),
        (FULL, URL, False, NoSpace),
        (FULL, URL, True, None),
    ],
    ids=[
        "404",
        "404, but we make room",
        "404, but we have a password",
        "404 for somebody with a password",
        "401",
        "a refusal",
        "503",
        "no space",
        "no space, but we make room",
    ],
)
def test_a_failure_is_taken_over_only_if_the_same_fetch_would_fail_again(
    layout: Layout, facts: dict[str, Any], url: str, make_room: bool, kind: type[CacheError] | None
) -> None:
    """A job would fail for another's missing password, or for want of room that it may make and the other may not."""
    wanted = one_item(parse_request([url], None, layout.root))
    terms = Terms(60, make_room=(lambda missing: missing) if make_room else None)
    nobody: Any = None
    waiter = Waiter(store_of(FileSystem(), layout, clock=FakeClock()), nobody, nobody, wanted, terms)
    election: Any = Lost(layout, facts, wanted.key)
    if kind is None:
        assert waiter.wait(election, lambda: None) is None
        return
    with pytest.raises(kind, match=facts["error"]):
        waiter.wait(election, lambda: None)
    assert election.resigned


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (FetchFailed("no such file", shared=True), {"shared": True, "asked_as": "anybody", "no_space": False}),
        (FetchFailed("the server answered 401"), {"shared": False, "asked_as": None, "no_space": False}),
        (OSError(errno.EACCES, "Permission denied"), {"shared": False, "asked_as": None, "no_space": False}),
        (OSError(errno.ENOSPC, "No space left"), {"shared": False, "asked_as": None, "no_space": True}),
        (OSError(errno.EDQUOT, "Quota exceeded"), {"shared": False, "asked_as": None, "no_space": False}),
    ],
    ids=["missing", "401", "unreadable", "full", "quota"],
)
def test_it_is_noted_for_whom_a_failure_is_one(layout: Layout, error: Exception, kept: dict[str, Any]) -> None:
    """Those who wait could not tell the source's fault from that of the one who asked, or of one user's quota."""
    wanted = one_item(parse_request([URL], None, layout.root))
    failure = error if isinstance(error, CacheError) else NoSpace("no space left")
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        failure = CacheError("cannot put it into the cache")
    reasons = _reasons(failure, error, wanted)
    assert {name: reasons[name] for name in kept} == kept


def test_two_ask_alike_only_if_a_server_takes_them_for_one(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal of one user would be told to another, whom the server knows."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine known.example.org login ada password secret\n")
    (tmp_path / "netrc").chmod(0o600)

    def asked(word: str) -> str:
        return asked_as(one_item(parse_request([word], None, layout.root)))

    me = user_name()
    assert asked("https://example.org/x") == "anybody"
    assert asked("https://ada:secret@example.org/x") == me
    assert asked("https://known.example.org/x") == me
    assert asked("s3://bucket/x") == me
    source = tmp_path / "x"
    assert asked(str(source)) == f"{me}: No such file or directory"
    source.write_text("x")
    before = asked(str(source))
    os.utime(source, ns=(0, 0))
    assert asked(str(source)) != before
