"""A manifest: which items a set has, and at which path each of them appears.

It is TOML, or one line for each item, quoted as in a shell::

    https://example.org/ref.tar.gz sha256:… tar @ref     # the item appears at ref
    /data/sample.fastq

Without a path, an item appears at its name. Everything that is wrong in a manifest is reported at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any, NamedTuple

from sccache_dtool.errors import CacheError, FetchFailed, UsageError, did_you_mean
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import DatasetRequest, Request
from sccache_dtool.units import parse_size

#: Parses words and a name as `use` does. Raises UsageError or FetchFailed if they mean nothing.
Mean = Callable[[Sequence[str], str | None], Request | DatasetRequest]

#: Longest path of an item in bytes, and longest part of it: file systems refuse what is longer.
LONGEST_PATH, LONGEST_PART = 1024, 255

#: Largest size of an item in bytes.
_LARGEST = 10**18 - 1

#: Largest manifest in bytes: a million lines of usual length. A device or a pipe may not end at all.
_LARGEST_FILE = 1 << 27

#: Errors of a manifest that are listed.
_LISTED = 20

_FORM = "write one item on each line: SOURCE [STEP]... @PATH"
_KEYS = ("source", "steps", "name", "at", "size")
_BARE = r"[^\s'\"\\]+"
_WORD = rf"""(?:{_BARE}|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+"""
_HEADER = r"(?m)^[ \t]*\[\[[ \t]*item[ \t]*\]\]"


class Entry(NamedTuple):
    """An item of a set, or a whole dataset, and where it appears."""

    path: str  # relative to the view, in normal form
    request: Request | DatasetRequest
    size: int | None = None  # bytes that it needs, if that is known
    where: str = ""  # where it was named, for messages: FILE:LINE


class _Named(NamedTuple):
    """An item as a manifest names it."""

    words: Sequence[str]
    at: str | None
    name: str | None = None
    size: int | None = None


#: Where an item is named, and what reads it: None for an empty line. It raises UsageError.
_Part = tuple[str, Callable[[], _Named | None]]


def read(file: IO[bytes], name: str) -> str:
    """The text of a manifest, or of a script that contains one. Raises UsageError if it is too large, or OSError."""
    data = bytearray()
    while part := file.read(1 << 20):
        data += part  # memory is taken for what there is, no more
        if len(data) > _LARGEST_FILE:
            raise UsageError(f"{plain(name)} is larger than {_LARGEST_FILE >> 20} MiB", hint="give a smaller file")
    return data.decode("utf-8", "surrogateescape")


def parse(text: str, file: str, mean: Mean) -> list[Entry]:
    """The entries of a manifest. `file`: its name, for messages; TOML if it ends in .toml, or if the text begins so.

    Raises UsageError, which lists everything that is wrong.
    """
    text = text.removeprefix("\ufeff")  # editors of Windows begin files with it
    lines = text.split("\n")
    first = next((line.lstrip() for line in lines if line.strip() and line.lstrip()[0] != "#"), "")
    if file.endswith(".toml") or first.startswith("["):
        return _entries(_tables(text, file), file, mean)
    return parse_lines(enumerate(lines, 1), file, mean)


def parse_lines(lines: Iterable[tuple[int, str]], file: str, mean: Mean) -> list[Entry]:
    """The entries of a manifest of lines ``SOURCE [STEP]... [@PATH]``, given with their numbers. Raises UsageError."""
    return _entries(((f"{file}:{number}", partial(_from_line, line)) for number, line in lines), file, mean)


def parse_mapping(items: Mapping[str, Any], mean: Mean) -> list[Entry]:
    """The entries for sources by path; a source with steps is a sequence of words. Raises UsageError."""

    def named(path: str, words: Any) -> _Named:
        return _Named([os.fspath(word) for word in (words if isinstance(words, list | tuple) else (words,))], path)

    return _entries(((repr(path), partial(named, path, words)) for path, words in items.items()), "the set", mean)


def normal_path(path: str) -> str:
    """A path of a set in its one form: relative to the view, without empty and ``.`` parts.

    An absolute path is one from the top of the view. Raises UsageError for a path that leads out of it.
    """
    if re.search(r"[\x00-\x1f\x7f]", path):
        raise UsageError(f"the path {plain(path)!r} contains a control character")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"the path {plain(path)!r} leads upwards", hint="leave out '..'")
    if not parts:
        raise UsageError(f"the path {plain(path)!r} has no name in it")
    try:
        encoded = [part.encode("utf-8", "surrogateescape") for part in parts]
    except UnicodeError:
        raise UsageError(f"the path {plain(path)!a} is not a file name") from None
    if max(map(len, encoded)) > LONGEST_PART or sum(map(len, encoded)) + len(parts) > LONGEST_PATH:
        raise UsageError(f"the path {plain(path[:80])!r}… is too long")
    return "/".join(parts)


# -- the two forms -----------------------------------------------------------------------------------------------------


def _from_line(line: str) -> _Named | None:
    """What a line names; None if it is empty. Raises UsageError."""
    words = list(_shell_words(line)) if re.search(r"['\"\\#]", line) else line.split()
    if not words:
        return None
    *before, last = words
    at = last[1:] if last[0:1] == "@" else None
    if at is not None:
        words = before
    if at == "" or not words:
        raise UsageError("there is no source" if at else "there is no path after @", hint=_FORM)
    misplaced = next((word for word in words if word[0:1] == "@"), None)
    if misplaced is not None:
        raise UsageError(
            f"{plain(misplaced)} is not at the end of the line", hint=f"{_FORM}; to name a file @…, write ./@…"
        )
    return _Named(words, at)


def _shell_words(line: str) -> Iterator[str]:
    """The words of a line, quoted as in a shell, up to a comment. Raises UsageError."""
    rest = line.strip()
    while rest and rest[0] != "#":
        match = re.match(_WORD, rest)
        if match is None or (match.end() < len(rest) and not rest[match.end()].isspace()):
            raise UsageError("a quotation mark is not closed, or the line ends in a backslash")
        word = match[0]
        if not re.fullmatch(_BARE, word):
            import shlex

            (word,) = shlex.split(word)
        yield word
        rest = rest[match.end() :].lstrip()


def _tables(text: str, file: str) -> Iterator[_Part]:
    """The items of a manifest in TOML. Raises UsageError."""
    import tomllib

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not TOML: {error}") from None
    items = document.pop("item", [])
    if document or not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
        strange = f"{', '.join(map(plain, document))} has no meaning here" if document else "item is not a list"
        raise UsageError(f"{file}: {strange}", hint="begin each item with the line [[item]]")
    lines = [text.count("\n", 0, match.start()) + 1 for match in re.finditer(_HEADER, text)]
    for number, fields in enumerate(items):
        where = f"{file}:{lines[number]}" if len(lines) == len(items) else f"{file}: item {number + 1}"
        yield where, partial(_from_table, fields)


def _from_table(fields: Mapping[str, Any]) -> _Named:
    for key in fields:
        if key not in _KEYS:
            raise UsageError(f"{plain(key)} has no meaning here{did_you_mean(key, _KEYS)}")
    steps, size = fields.get("steps", []), fields.get("size")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise UsageError("steps is not a list of texts", hint='write steps = ["sha256:…", "tar"]')
    for key in ("source", "name", "at"):
        if not isinstance(fields.get(key, ""), str):
            raise UsageError(f"{key} is not a text")
    if isinstance(size, str):
        size = parse_size(size)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _LARGEST):
        raise UsageError("size is neither a number of bytes nor a text such as '10GB'")
    source = fields.get("source")
    if source is None and steps:
        raise UsageError("there are steps without a source")
    return _Named([*([] if source is None else [source]), *steps], fields.get("at"), fields.get("name"), size)


# -- entries -----------------------------------------------------------------------------------------------------------


def _entries(parts: Iterable[_Part], file: str, mean: Mean) -> list[Entry]:
    """What the parts of a manifest mean. Raises UsageError, or FetchFailed, which lists everything that is wrong."""
    entries: list[Entry] = []
    wrong: list[tuple[str, CacheError]] = []
    for where, read in parts:
        try:
            named = read()
            if named is not None:
                request = _meaning(named, mean)
                path = normal_path(_default_path(request, named) if named.at is None else named.at)
                entries.append(Entry(path, request, named.size, where))
        except (UsageError, FetchFailed) as error:
            wrong.append((where, error))
    wrong += _clashes(entries)
    if len(wrong) == 1:
        ((where, only),) = wrong
        only.message = f"{where}: {only.message}"
        raise only
    if wrong:
        kind = UsageError if any(isinstance(one, UsageError) for _, one in wrong) else FetchFailed
        lines = [f"{where}: {one.message}{f' ({one.hint})' if one.hint else ''}" for where, one in wrong]
        more = [f"and {len(lines) - _LISTED:,} more"] if len(lines) > _LISTED else []
        raise kind(f"{file}: {len(lines):,} of its items cannot be used", details=[*lines[:_LISTED], *more])
    return entries


def _meaning(named: _Named, mean: Mean) -> Request | DatasetRequest:
    """What an item means. Raises UsageError, whose hint says what to do if the words are a file name with spaces."""
    try:
        return mean(named.words, named.name)
    except UsageError as error:
        name = " ".join(named.words)
        if " " in name and os.path.lexists(name):
            import shlex

            error.hint = f"quote a name that contains spaces: {shlex.quote(plain(name))}"
        raise


def _default_path(request: Request | DatasetRequest, named: _Named) -> str:
    """Where an item appears that has no path: at its name."""
    if isinstance(request, Request) and request.name is None and request.dataset is None and request.complete is None:
        return request.stack.name
    if isinstance(request, Request) and request.name is not None:
        return request.name
    word = named.words[0].rstrip("/")  # of dtool, whose items and datasets have their names on a server
    return word.rpartition("/")[2].rpartition("#")[2] or word


def _clashes(entries: Sequence[Entry]) -> Iterator[tuple[str, UsageError]]:
    """The entries of which two would be at one path, or one below the other."""
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.path, entry)
        if other is not entry:
            yield (
                entry.where,
                UsageError(
                    f"{plain(entry.path)} is also the path of another item ({other.where})",
                    hint="give one of them another path: @PATH, or in TOML at",
                ),
            )
    for entry in entries:
        parts = entry.path.split("/")
        for end in range(1, len(parts)):
            above = first.get("/".join(parts[:end]))
            if above is not None:
                yield (
                    entry.where,
                    UsageError(
                        f"{plain(entry.path)} is below {plain(above.path)}, the path of another item ({above.where})",
                        hint="give one of them another path",
                    ),
                )
