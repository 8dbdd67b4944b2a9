"""A finding of the doctor's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Finding(NamedTuple):
    """Something that is not as it should be. `repair` is None for what only a person can judge; it is left alone."""

    path: str
    what: str
    repair: Callable[[], object] | None  # raises OSError, or CacheError for what is in use
    remedy: str  # what `repair` does, as in "creates it"; or what a person is to do
