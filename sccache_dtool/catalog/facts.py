"""What `item.json` says of a copy: written when the copy is fetched, and not trusted when it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sccache_dtool.disk import records
from sccache_dtool.tuples import NamedTuple

#: Version of the form of `item.json`.
FORMAT = 1


class ItemFacts(NamedTuple):
    """The content of an `item.json`. What is missing, or in another form than this program writes, is None."""

    key: str | None = None
    name: str | None = None
    source: tuple[str, ...] | None = None  # canonical words; empty for an item without a source
    payload: str | None = None  # the name of what users read
    bytes: int | None = None
    entries: int | None = None  # files and directories, the payload itself included
    digests: Mapping[str, str] | None = None  # those that were checked, in hexadecimal, by algorithm
    versions: Sequence[Any] | None = None  # what tells the version of each source, see `fetch/versions.py`
    fetched: str | None = None  # when it was read from its source, as ISO 8601
    seconds: float | None = None  # how long it took
    by: str | None = None  # USER@HOST
    dataset: Mapping[str, str] | None = None  # of an item of dtool's: "uuid", "name" and "uri" of its dataset
    relpath: str | None = None  # of an item of dtool's: its path in the dataset
    upstream: str | None = None  # of a copy of what another cache has: the path of that copy
    loose: int | None = None  # in the trash: how many loose files are in it; it is not an item then
    first: str | None = None  # the path that the first of these had in the cache
    malformed: frozenset[str] = frozenset()  # names of fields in another form than this program writes

    @classmethod
    def decode(cls, text: str) -> ItemFacts:
        """The facts in the text of an `item.json`. Raises records.Damaged, such as OtherFormat."""
        document = records.decode_document(text)
        form = document.get("format", FORMAT)
        if type(form) is int and form != FORMAT:
            raise records.OtherFormat(f"it has format {form}, which this release does not know")
        fields: dict[str, Any] = {}
        malformed = set()
        for name, value in document.items():
            if value is not None and name in _FIELDS:
                fields[name] = _FIELDS[name](value)
                if fields[name] is None:
                    malformed.add(name)
        return cls(**fields, malformed=frozenset(malformed))

    def encode(self) -> str:
        """The text of an `item.json`."""
        known = {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}
        return records.encode_document({"format": FORMAT, **known})

    @property
    def user(self) -> str:
        """Who fetched it, without the host."""
        return (self.by or "?").partition("@")[0]

    @property
    def shown_source(self) -> str:
        """The loader stack, for people."""
        return records.printable(" ".join(self.source or ())) or "no source"


def _of(*kinds: type) -> Callable[[object], Any]:
    """A value, if it is of one of these types."""
    return lambda value: value if isinstance(value, kinds) else None


_text, _integer, _number, _list = _of(str), _of(int), _of(int, float), _of(list)


def _words(value: object) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else None


def _texts(value: object) -> dict[str, str] | None:
    """A JSON object, without those of its values that are not texts."""
    return {name: text for name, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else None


#: What makes a field of what JSON says; None for a value that a field cannot have. In the order of the file.
_FIELDS: dict[str, Callable[[object], Any]] = {
    "key": _text,
    "name": _text,
    "source": _words,
    "payload": _text,
    "bytes": _integer,
    "entries": _integer,
    "digests": _texts,
    "versions": _list,
    "fetched": _text,
    "seconds": _number,
    "by": _text,
    "dataset": _texts,
    "relpath": _text,
    "upstream": _text,
    "loose": _integer,
    "first": _text,
}
