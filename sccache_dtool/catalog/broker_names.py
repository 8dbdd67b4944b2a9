"""What dtool and its storage brokers name things by, in the cache and elsewhere: UUIDs, and identifiers of items."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import NamedTuple

_SHA1 = 40
_LOOSE = rf"([0-9a-f]{{{_SHA1}}})(\.[^/]*)?"
_PARTIAL = r"(\.[^/.]*)?\.tmp(\.[0-9A-Za-z]{8})?"
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


#: What a name begins with, and the character after that; functions in C.
_IDENTIFIER = operator.itemgetter(slice(0, _SHA1))
_AFTER = operator.itemgetter(slice(_SHA1, _SHA1 + 1))


class LooseName(NamedTuple):
    """A file that dtool's own brokers put into the root: ``<identifier><ext>``, and ``….tmp`` while it is coming.

    Of a name that is an identifier and ``.tmp`` alone nobody can tell which of both it is: ``weird.tmp`` is a good
    name for an item. It counts as coming, and only its age decides.
    """

    identifier: str
    partial: bool

    @classmethod
    def parse(cls, name: str) -> LooseName | None:
        """The loose file that `name` stands for; None if it is not such a name."""
        match = re.fullmatch(_LOOSE, name)
        return cls(match[1], re.fullmatch(_PARTIAL, match[2] or "") is not None) if match else None


def are_loose(names: Sequence[str]) -> bool:
    """Whether all of `names` are such as `LooseName` stands for; all at once, as there may be a million of them.

    Digits are hexadecimal, and in lower case, if what Python reads them as is written the same again.
    """
    identifiers = "".join(map(_IDENTIFIER, names))
    try:
        same = len(identifiers) == _SHA1 * len(names) and bytes.fromhex(identifiers).hex() == identifiers
    except ValueError:
        return False
    return same and set(map(_AFTER, names)) <= {"", "."}


def is_uuid(name: str) -> bool:
    """Whether `name` is a UUID as dtool writes them."""
    return re.fullmatch(_UUID, name) is not None
