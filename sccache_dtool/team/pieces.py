"""A piece of work: some of the tasks of a Crew, sent to whoever does them; and what came of it, sent back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from sccache_dtool.clock import Clock
from sccache_dtool.crew import Crew, Outcome, attempt
from sccache_dtool.team.parcels import unwrap, wrap

#: In front of a piece: how many seconds the leader had been at it. Its signs of life then tell how old the piece is.
_CLOCK = struct.Struct(">d")

Work = Callable[[Any], Any]


def send_piece(work: Work, again: Work, tasks: Sequence[Any], leaders_clock: float) -> bytes:
    """A piece as bytes; see `Crew.each`."""
    return _CLOCK.pack(leaders_clock) + wrap((work, again, tasks))


def do_piece(clock: Clock, jobs: int | None, begun: bool, leaders_clock: float, data: bytes) -> bytes:
    """What comes of a piece, as bytes; `begun`: somebody has tried before. Raises if it cannot be read or sent."""
    (sent,) = _CLOCK.unpack_from(data)
    work, again, tasks = unwrap(data[_CLOCK.size :], clock, max(0.0, leaders_clock - sent))

    def do(listed: Sequence[Any]) -> list[Any]:
        with Crew(jobs) as crew:
            return list(crew.each(again if begun else work, listed, again))

    return wrap(attempt(do, tasks))


def receive(clock: Clock, data: bytes) -> Outcome:
    """What came of a piece. Raises pickle.UnpicklingError."""
    outcome = unwrap(data, clock, 0.0)
    assert isinstance(outcome, Outcome)
    return outcome
