"""What nobody will come back for: found by `tidy` and `loose`, put away by `clean`, told of by `doctor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

#: Seconds for which things are left that only their age tells to be abandoned.
OLD = 86_400.0


class Leftover(NamedTuple):
    """Something that nobody will come back for."""

    path: str
    what: str
    put_away: Callable[[], object]  # safe to call twice, and at the same time as another's call
