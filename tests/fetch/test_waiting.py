"""Waiting for somebody else's fetch ends with its item, with its reason, or with our turn."""

from __future__ import annotations

from typing import Any

import pytest

from faults import FakeClock
from sccache_dtool import downloads
from sccache_dtool.errors import CacheError, FetchFailed, NoSpace
from sccache_dtool.fetch.errand import Errand
from sccache_dtool.fetch.waiting import Waiter
from sccache_dtool.fetch.wanted import Terms, wanted_from
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import FAILED, Layout, OutcomeName
from sccache_dtool.liveness.process import Proc

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
            downloads.note_outcome(FileSystem(), self.layout, name, self.facts)
        return self.polls >= 3

    def resign(self) -> None:
        self.resigned = True


@pytest.mark.parametrize(
    ("facts", "make_room", "kind"),
    [
        ({"error": "the server answered 404"}, False, FetchFailed),
        ({"error": "the server answered 404"}, True, FetchFailed),
        ({"error": "no space left", "no_space": True}, False, NoSpace),
        ({"error": "no space left", "no_space": True}, True, None),
    ],
    ids=["404", "404, but we make room", "no space", "no space, but we make room"],
)
def test_the_reason_of_a_failure_is_ours_unless_we_can_do_more(
    layout: Layout, facts: dict[str, Any], make_room: bool, kind: type[CacheError] | None
) -> None:
    """Who gave --make-room would fail for want of room, because another who waited for nothing did not give it."""
    wanted = wanted_from(["https://example.org/x"], None, layout.root)
    terms = Terms(60, make_room=(lambda missing: missing) if make_room else None)
    nobody: Any = None
    waiter = Waiter(Errand(FileSystem(), layout, FakeClock(), nobody, nobody, Proc(), print), wanted, terms)
    election: Any = Lost(layout, facts, wanted.key)
    if kind is None:
        assert waiter.wait(election, lambda: None) is None
        return
    with pytest.raises(kind, match=facts["error"]):
        waiter.wait(election, lambda: None)
    assert election.resigned
