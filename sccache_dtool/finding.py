"""Which item of a cache a word means that a person has typed."""

from __future__ import annotations

from collections.abc import Callable

from sccache_dtool import config, items, layout
from sccache_dtool.errors import FetchFailed, UsageError
from sccache_dtool.fetch.job import silently
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.wanted import wanted_from
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Layout


def find(fs: FileSystem, place: Layout, word: str, warn: Callable[[str], None]) -> str:
    """The key that `word` means: a key or its beginning, a label, a path in the cache, or a source.

    Raises UsageError if no item matches, or several do.
    """
    within = place.key_of(word)
    if within is not None:
        return within
    keys = list(items.keys(fs, place, warn))
    # `./ref.fa` means that very file, and no item of somebody else's that is called so.
    label = "" if word.startswith((".", "/")) or not word else layout.slug(word)
    of_source = _key_of_source(fs, place, word)
    for matches in (
        [key for key in keys if key == word],
        [key for key in keys if layout.key_label(key) == label],
        [key for key in keys if len(word) >= 4 and key.startswith(word)],
        [key for key in keys if key == of_source],
    ):
        if len(matches) > 1:  # rather one that is there than what was evicted
            matches = [key for key in matches if items.generations(fs, place, key)] or matches
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(
                f"{plain(word)!r} could be any of {len(matches)} items",
                details=matches[:10],
                hint="give more of the key",
            )
    raise UsageError(f"there is no item {plain(word)!r} in {place.root}", hint="list them with: sc-dtool ls")


def _key_of_source(fs: FileSystem, place: Layout, word: str) -> str | None:
    try:
        credentials = config.load(fs, place, silently).fetch_credentials if "=" in word else ()
        return wanted_from([word], None, place.root, credentials).key
    except (UsageError, FetchFailed):
        return None
