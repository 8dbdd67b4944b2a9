"""Which item the words of a command mean: one rule for all commands.

A word means an item by its true name, by its key or at least four characters of the beginning of the key, by its
source, or by a path in it, and by nothing that only looks like one of these. If it could mean several items, nothing is
done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence

from sccache_dtool.catalog import items
from sccache_dtool.disk import names
from sccache_dtool.errors import GONE, FetchFailed, UsageError
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DTOOL, DatasetRequest, Request
from sccache_dtool.fetch.words import is_source
from sccache_dtool.log import Silent
from sccache_dtool.protocol.store import Store
from sccache_dtool.tuples import NamedTuple

#: Parses words and a name as `use` does. Raises UsageError or FetchFailed if they mean nothing.
Mean = Callable[[Sequence[str], str | None], Request | DatasetRequest]

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
    dataset: str | None = None  # the UUID of the whole dtool dataset that the words mean
    session: str | None = None  # the id of the set whose view the words are a path in; there is no key then


def find(store: Store, word: str, mean: Mean) -> str:
    """The key of the item that `word` means. Raises NotFound, or UsageError if it could be several."""
    within = store.layout.within(word)
    if within is not None:
        return within[0]
    keys = list(items.keys(store))
    found = meant(word, keys, mean)
    if len(found) > 1:  # rather one that is there than what was evicted
        found = [key for key in found if items.generations(store, key)] or found
    if not found:
        from sccache_dtool.fetch import transfers

        found = meant(word, transfers.in_progress(store), mean)  # for the first time, so that there is no item yet
    if not found:
        raise _not_found(store.layout.root, word, keys)
    return the_only(word, found, lambda key: _source(store, key))


def find_used(store: Store, words: Sequence[str], name: str | None, mean: Mean) -> Named:
    """What the words and the name mean that `use` was given, a path that it printed, or any word that `find` knows.

    What `use` would mean by the words comes first if the cache has it, or if it is a file here: others may have items
    of the same name. Sources, names, whole keys and paths need not be in the cache any more. Raises NotFound for
    another word that means no item, and UsageError or FetchFailed for words that mean nothing.
    """
    if len(words) == 1 and name is None:
        # A path in a view means the whole set, although it leads to an item.
        session = store.layout.session_at(words[0]) if "/sessions/" in words[0] else None
        within = store.layout.within(words[0]) if session is None else None
        if within is not None:
            return Named(*within)
        session = session or store.layout.session_at(words[0])
        if session is not None:
            return Named("", session=session)
    found, refused = None, None
    try:
        request = mean(words, name)
        found = Named(request.key, dataset=request.uuid if isinstance(request, DatasetRequest) else None)
    except (UsageError, FetchFailed) as error:
        refused = error
    if found is not None and (name is not None or _is_there(store, found.key)):
        return found
    if found is not None and os.path.lexists(words[0]):
        return found
    if len(words) == 1 and name is None:
        try:
            return Named(find(store, words[0], mean))
        except NotFound as error:
            if names.is_key(words[0]):
                return Named(words[0])
            is_path_or_url = "/" in words[0] or words[0].startswith(DTOOL) or is_source(words[0])
            if found is not None and not is_path_or_url:
                raise
            refused = refused or error
    if found is None:
        assert refused is not None
        raise refused
    return found


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


def _source(store: Store, key: str) -> str:
    for generation in items.generations(store, key):
        return items.facts_if_readable(store.logging_to(Silent()), key, str(generation)).shown_source
    return "not in the cache any more"


def _not_found(root: str, word: str, keys: Collection[str]) -> NotFound:
    """The error for a word that means nothing; it lists items whose names look the same, or nearly so."""
    from shlex import quote

    message = f"there is no item {plain(word)!r} in {root}"
    wanted = _look(word)
    looks = {key: _look(names.key_label(key)) for key in keys}
    alike = [key for key, look in looks.items() if look == wanted]
    if not alike:
        from difflib import get_close_matches

        close = get_close_matches(wanted, set(looks.values()), _SUGGESTED) if len(looks) <= _MOST_COMPARED else []
        labels = dict.fromkeys(names.key_label(key) for key, look in looks.items() if look in close)
        return NotFound(
            message,
            details=[f"similar: {label}" for label in [*labels][:_SUGGESTED]],
            hint=f"to list the items: sc-dtool -C {quote(root)} ls",
        )
    return NotFound(
        message,
        details=[f"similar: {key}" for key in alike[:_LISTED]],
        hint="names are compared character by character; give the beginning of the key",
    )


def _look(name: str) -> str:
    from unicodedata import normalize

    return normalize("NFKC", name).casefold()


def _digits_of_source(word: str, mean: Mean) -> str | None:
    try:
        return mean([word], None).key[:32]
    except (UsageError, FetchFailed):
        return None


def _is_there(store: Store, key: str) -> bool:
    """Whether the cache has, or had, the item.

    A miss is looked at again, because NFS may hide for a minute that another host has put it there.
    """
    for again in (True, False):
        try:
            return bool(store.fs.names(store.layout.item(key)))
        except OSError as error:
            if error.errno not in GONE:
                return True
        if again:
            items.refresh(store, key)
    return False
