"""Shell patterns for item names, for `clean --exclude`, `[clean] exclude` and `ls --filter`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(pattern: str, name: str) -> bool:
    """Whether a whole name matches a pattern of ``*``, ``?`` and ``[…]``. Case matters.

    A name also matches itself, even if it contains such characters. Composed and decomposed characters are equal,
    because operating systems differ in the form that a keyboard or a file name has.
    """
    if name == pattern or fnmatchcase(name, pattern):
        return True
    if name.isascii():
        return False
    from unicodedata import normalize

    return fnmatchcase(normalize("NFC", name), normalize("NFC", pattern))


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether a name matches any of the patterns."""
    return any(matches(pattern, name) for pattern in patterns)


def note_matching(patterns: Iterable[str], name: str, matched: set[str]) -> None:
    """Add to `matched` the patterns that a name matches."""
    for pattern in patterns:
        if pattern not in matched and matches(pattern, name):
            matched.add(pattern)
