"""A report on a cache for people: one page of HTML, with no script, that loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache


def render(cache: Cache) -> str:
    """The page as HTML. Raises UsageError if Jinja2 is not installed."""
    from sccache_dtool.report import gathering, page

    page.check()
    return page.render(gathering.look(cache))
