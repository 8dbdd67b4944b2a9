"""A finding of the doctor's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Finding(NamedTuple):
    """Something that is not as it should be. `mend` is None for what only a person can judge; it is left alone."""

    path: str
    what: str
    mend: Callable[[], object] | None  # raises OSError, or CacheError for what is in use
    remedy: str  # what `mend` does, as in "makes it"; or what a person is to do
