"""Which item the words of a command mean: one rule for all commands.

A word means an item by its true name, by its key or at least four characters of the beginning of the key, by its
source, or by a path in it, and by nothing that only looks like one of these. If it could mean several items, nothing is
done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from sccache_dtool.catalog import items
from sccache_dtool.disk import names, records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import GONE, FetchFailed, UsageError
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DTOOL, Wanted
from sccache_dtool.fetch.words import is_source

Warn = Callable[[str], None]

#: What `use` means by words and a name. Raises UsageError or FetchFailed if they mean nothing.
Mean = Callable[[Sequence[str], str | None], Wanted]

#: Candidates that an error lists.
_LISTED = 10

#: Names like a mistyped one that an error suggests, and up to how many items they are looked for: it takes time.
_SUGGESTED = 3
_MOST_COMPARED = 10_000


class NotFound(UsageError):
    """A word means no item of the cache."""


class Named(NamedTuple):
    """What words mean: an item and, if they are a path in a copy of it, that copy alone."""

    key: str
    generation: str | None = None


def find(fs: FileSystem, place: Layout, word: str, mean: Mean, warn: Warn) -> str:
    """The key of the item that `word` means. Raises NotFound, or UsageError if it could be several."""
    within = place.within(word)
    if within is not None:
        return within[0]
    keys = list(items.keys(fs, place, warn))
    found = meant(word, keys, mean)
    if len(found) > 1:  # rather one that is there than what was evicted
        found = [key for key in found if items.generations(fs, place, key)] or found
    if not found:
        raise _not_found(f"there is no item {plain(word)!r} in {place.root}", word, keys, _how_to_list(place))
    return the_only(word, found, lambda key: _source(fs, place, key))


def find_used(fs: FileSystem, place: Layout, words: Sequence[str], name: str | None, mean: Mean, warn: Warn) -> Named:
    """What the words and the name mean that `use` was given, a path that it printed, or any word that `find` knows.

    What `use` would mean by the words comes first if the cache has it, or if it is a file here: others may have items
    of the same name. Sources, names, whole keys and paths need not be in the cache any more. Raises NotFound for
    another word that means no item, and UsageError or FetchFailed for words that mean nothing.
    """
    within = place.within(words[0]) if len(words) == 1 and name is None else None
    if within is not None:
        return Named(*within)
    key, refused = None, None
    try:
        key = _key_of_use(words, name, mean)
    except (UsageError, FetchFailed) as error:
        refused = error
    if key is not None and (name is not None or _is_there(fs, place, key)):
        return Named(key)
    if words and names.cache_of(words[0]) is not None:
        raise NotFound(
            f"{plain(words[0])} is not in the cache {place.root}",
            hint="name its cache with -C, or give the name of the item",
        )
    if key is not None and os.path.lexists(words[0]):
        return Named(key)
    if len(words) == 1 and name is None:
        try:
            return Named(find(fs, place, words[0], mean, warn))
        except NotFound as error:
            if names.is_key(words[0]):
                return Named(words[0])
            if key is not None and not _is_path_or_url(words[0]):
                raise
            refused = refused or error
    if key is None:
        assert refused is not None
        raise refused
    return Named(key)


def meant(word: str, keys: Collection[str], mean: Mean) -> list[str]:
    """Those of the keys that a word may mean; a whole key means nothing else."""
    if word in keys:
        return [word]
    label, source = names.label(word), _digits_of_source(word, mean)
    beginning = word if len(word) >= 4 else None
    return [
        key
        for key in keys
        if (word and key[33:] == label) or key[:32] == source or (beginning is not None and key.startswith(beginning))
    ]


def the_only(word: str, found: Sequence[str], source: Callable[[str], str]) -> str:
    """The one key that was found. Raises UsageError that lists all of them, with their sources, if there are more."""
    if len(found) == 1:
        return found[0]
    more = [f"and {len(found) - _LISTED:,} more"] if len(found) > _LISTED else []
    raise UsageError(
        f"{plain(word)!r} could be any of {len(found)} items",
        details=[*(f"{key}: {source(key)}" for key in found[:_LISTED]), *more],
        hint="give the first digits of a key that only one of them has, or a path; to name a file NAME, write ./NAME",
    )


def source_of(facts: dict[str, object]) -> str:
    """The loader stack in the facts of a copy, for people."""
    source = facts.get("source")
    words = " ".join(str(word) for word in source) if isinstance(source, list) else ""
    return records.printable(words) or "no source"


def _source(fs: FileSystem, place: Layout, key: str) -> str:
    for generation in items.generations(fs, place, key):
        return source_of(items.facts_if_readable(fs, place, key, str(generation), lambda text: None))
    return "not in the cache any more"


def _how_to_list(place: Layout) -> str:
    from shlex import quote

    return f"to list the items: sc-dtool -C {quote(place.root)} ls"


def _not_found(message: str, word: str, keys: Collection[str], hint: str) -> NotFound:
    """The error for a word that means nothing; it lists items whose names look the same, or nearly so."""
    wanted = _look(word)
    looks = {key: _look(names.key_label(key)) for key in keys}
    alike = [key for key, look in looks.items() if look == wanted]
    if not alike:
        from difflib import get_close_matches

        close = get_close_matches(wanted, set(looks.values()), _SUGGESTED) if len(looks) <= _MOST_COMPARED else []
        labels = dict.fromkeys(names.key_label(key) for key, look in looks.items() if look in close)
        return NotFound(message, details=[f"similar: {label}" for label in [*labels][:_SUGGESTED]], hint=hint)
    return NotFound(
        message,
        details=[f"similar: {key}" for key in alike[:_LISTED]],
        hint="names are compared character by character; give the beginning of the key",
    )


def _look(name: str) -> str:
    from unicodedata import normalize

    return normalize("NFKC", name).casefold()


def _key_of_use(words: Sequence[str], name: str | None, mean: Mean) -> str:
    if name is None and len(words) == 1 and words[0].startswith(DTOOL):
        from sccache_dtool.fetch import datasets

        reference = datasets.parse(words)
        if reference.identifier is None:
            return datasets.view_key(reference.uuid)
    return mean(words, name).key


def _digits_of_source(word: str, mean: Mean) -> str | None:
    try:
        return _key_of_use([word], None, mean)[:32]
    except (UsageError, FetchFailed):
        return None


def _is_there(fs: FileSystem, place: Layout, key: str) -> bool:
    """Whether the cache has, or had, the item.

    A miss is looked at again, because NFS may hide for a minute that another host has put it there.
    """
    for again in (True, False):
        try:
            return bool(fs.names(place.item(key)))
        except OSError as error:
            if error.errno not in GONE:
                return True
        if again:
            items.refresh(fs, place, key)
    return False


def _is_path_or_url(word: str) -> bool:
    return "/" in word or word.startswith(DTOOL) or is_source(word)
