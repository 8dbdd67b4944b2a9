"""Texts for people about what went wrong: one line, fit for a terminal, without credentials."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from sccache_dtool.credentials import hide, hide_those_of
from sccache_dtool.errors import explain

#: What may drive a terminal or break a line: C0, DEL, C1, and Unicode's line and paragraph separators.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def plain(text: str) -> str:
    """`text` in one line without control characters, and its URLs without credentials."""
    return hide(CONTROL.sub(" ", text)).strip()


def why(error: BaseException) -> str:
    """An exception as one plain line."""
    text = explain(error) if isinstance(error, OSError) else str(error)
    return plain(text) or type(error).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it, down to the first."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # what is raised from itself has no end
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def without_credentials(error: BaseException, url: str = "") -> BaseException:
    """An exception of a library's, with no credentials in its text and in those of what led to it.

    Libraries put whole URLs into them, and a traceback shows them all. `url`: what was to be fetched; its credentials
    are found outside of URLs, too.
    """
    seen: set[int] = set()
    pending: list[object] = list(causes(error))
    while pending:
        one = pending.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            pending.extend(one.args)
            with contextlib.suppress(Exception):  # some do not let them be changed
                one.args = tuple(hide_those_of(url, hide(part)) if isinstance(part, str) else part for part in one.args)
    return error
