"""Texts for people about what went wrong: one line, fit for a terminal, without credentials."""

from __future__ import annotations

import re

from sccache_dtool.errors import explain
from sccache_dtool.records import without_users

#: What may drive a terminal or break a line: C0, DEL, C1, and Unicode's line and paragraph separators.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def plain(text: str) -> str:
    """`text` in one line without control characters, and its URLs without user names and passwords."""
    return without_users(CONTROL.sub(" ", text)).strip()


def why(error: BaseException) -> str:
    """An exception as one plain line."""
    text = explain(error) if isinstance(error, OSError) else str(error)
    return plain(text) or type(error).__name__
