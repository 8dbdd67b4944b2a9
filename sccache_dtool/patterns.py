"""Patterns of names, as a shell has them: what `clean --exclude`, `[clean] exclude` and `ls --filter` take."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(pattern: str, name: str) -> bool:
    """Whether a whole name matches a pattern of ``*``, ``?`` and ``[…]``; case counts.

    A name also matches itself, whatever characters are in it. Composed and decomposed characters are the same here: a
    pattern that is typed on one system protects a name that was made on another.
    """
    if name == pattern or fnmatchcase(name, pattern):
        return True
    if name.isascii():
        return False
    from unicodedata import normalize

    return fnmatchcase(normalize("NFC", name), normalize("NFC", pattern))


def note_matching(patterns: Iterable[str], name: str, matched: set[str]) -> None:
    """Add to `matched` the patterns that a name matches."""
    for pattern in patterns:
        if pattern not in matched and matches(pattern, name):
            matched.add(pattern)
