"""Classes made by `tuples.NamedTuple` are as those that `typing.NamedTuple` makes."""

from __future__ import annotations

import pickle
import typing

import pytest

from sccache_dtool.protocol.holders import Holder
from sccache_dtool.tuples import NamedTuple


class Mine(NamedTuple):
    """One that is made here."""

    name: str
    size: int | None = None
    nowhere: Holder | None = None

    @property
    def half(self) -> float:
        """A method of its own."""
        return (self.size or 0) / 2


class Theirs(typing.NamedTuple):
    """The same by the standard library."""

    name: str
    size: int | None = None
    nowhere: Holder | None = None


class Below(Mine):
    """A subclass, which has no fields of its own."""

    def __new__(cls, name: str) -> Below:
        return super().__new__(cls, name.upper())


def test_a_tuple_behaves_as_one_of_the_standard_library() -> None:
    """A record would lose its defaults, its names in an error message, or its way into another process."""
    assert (Mine._fields, Mine._field_defaults) == (Theirs._fields, Theirs._field_defaults)
    assert tuple(Mine("a")) == tuple(Theirs("a")) == ("a", None, None)
    assert Mine("a", size=4).half == 2.0
    assert Mine("a")._replace(size=1)._asdict() == {"name": "a", "size": 1, "nowhere": None}
    assert repr(Mine("a")) == repr(Theirs("a")).replace("Theirs", "Mine")
    assert pickle.loads(pickle.dumps(Mine("a", 1))) == Mine("a", 1)
    assert (Mine.__module__, Mine.__qualname__, Mine.__doc__) == (__name__, "Mine", "One that is made here.")
    assert Below("a").name == "A"
    with pytest.raises(TypeError):
        Mine()  # type: ignore[call-arg]
