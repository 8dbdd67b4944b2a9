"""A loader stack: where an item comes from, and what is done with it, as words that all users write alike.

The first word is a source, the others are steps: ``https://example.org/ref.tar sha256:… tar``. What is written in
different ways and means the same gets one canonical form, because that is what identifies an item in the cache.
To add a source or a step, put its parser into SOURCES or STEPS here, and what does the work into
`sources.RETRIEVERS` or `transforms.TRANSFORMS`.

Every use of the cache parses a stack, so that nothing heavy is imported here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.reasons import CONTROL, plain

#: A payload's name has at most so many bytes: file systems allow 255, and backup programs add to names.
LABEL_LIMIT = 100

SOURCE_FORMS = "a path, file:PATH, http://… or https://…"
STEP_FORMS = "tar, or ALGORITHM:HEX to check a digest, such as md5:… or sha256:…"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)
_URL = re.compile(r"([a-z]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.ASCII | re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:@\[\]\\%]+)(?::(\d{0,5}))?", re.ASCII)
_TAR_SUFFIX = re.compile(r"\.(tar(\.(gz|bz2|xz))?|tgz|tbz2?|txz)\Z", re.ASCII | re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Location(str):
    """Where a source really is; its `repr` shows no credentials, so that none end in a log or a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(plain(self))


class Stack(NamedTuple):
    """A loader stack, parsed. It is false when empty: an item without a source, a pure reference count."""

    #: The source, then the steps: what identifies the item. There are no credentials in it.
    canonical: tuple[str, ...] = ()
    #: What is fetched: an absolute path, or a URL with its credentials.
    location: Location = Location()
    #: A file name for the payload: the same for the same canonical stack, on every host.
    label: str = "data"

    @property
    def source(self) -> str:
        """The source in its canonical form, fit to be shown; empty for an empty stack."""
        return self.canonical[0] if self.canonical else ""

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done with the source, in order, in canonical form."""
        return self.canonical[1:]

    def __bool__(self) -> bool:
        return bool(self.canonical)


class Source(NamedTuple):
    """The first word, parsed: see Stack; `name` is the last part of its path, and may be empty."""

    canonical: str
    location: Location
    name: str


class Step(NamedTuple):
    """A further word, parsed. What `unpacks` turns a file into a directory, which no step can take."""

    canonical: str
    unpacks: bool = False


def parse_stack(words: Sequence[str], *, cwd: str | None = None) -> Stack:
    """The stack that `words` mean; paths in it are relative to `cwd` (default: the working directory).

    No words are an empty stack. Nothing is looked up: whether the source exists, fetching tells. Raises UsageError
    for words that mean nothing.
    """
    if not words:
        return Stack()
    for word in words:
        _check_characters(word)
    source = _parse_source(words[0], os.getcwd if cwd is None else lambda: cwd)
    steps: list[Step] = []
    for word in words[1:]:
        step = _parse_step(word)
        before = next((earlier.canonical for earlier in steps if earlier.unpacks), None)
        if before is not None:
            raise UsageError(
                f"{plain(word)} cannot come after {before}, which leaves a directory",
                hint=f"a digest checks a file: put it before {before}, which is given once",
            )
        steps.append(step)
    canonical = (source.canonical, *(step.canonical for step in steps))
    return Stack(canonical, source.location, _label(source.name, "tar" in canonical[1:]))


def is_digest(step: str) -> bool:
    """Whether a canonical step is a digest to check, ``algorithm:hex``."""
    name, _, argument = step.partition(":")
    return bool(argument) and name not in STEPS


# -- sources -----------------------------------------------------------------------------------------------------------


def _parse_source(word: str, cwd: Callable[[], str]) -> Source:
    scheme = _SCHEME.match(word)
    name = scheme[1].lower() if scheme else None
    if word in STEPS or (name is not None and name not in SOURCES and (name in STEPS or _digest_size(name))):
        raise UsageError(
            f"the first word must be a source, and {plain(word)} is a step",
            hint=f"give {SOURCE_FORMS}; for a file of that name write ./{plain(word)}",
        )
    if scheme is None or name is None:
        return _local(word, cwd)
    if name not in SOURCES:
        raise UsageError(
            f"cannot fetch {plain(word)}: unknown kind of source {scheme[1]!r}",
            hint=f"give {SOURCE_FORMS}; for a file of that name write ./{plain(word)}",
        )
    return SOURCES[name](word, cwd)


def _local(path: str, cwd: Callable[[], str]) -> Source:
    try:
        path = os.path.normpath(path if os.path.isabs(path) else os.path.join(cwd(), path))
    except OSError as error:
        raise UsageError(f"cannot tell where {path} is: the working directory is gone") from error
    if path.startswith("//"):  # POSIX lets two slashes mean something else; here they are one path
        path = path[1:]
    return Source(f"file:{path}", Location(path), os.path.basename(path))


def _file(word: str, cwd: Callable[[], str]) -> Source:
    path = word[len("file:") :]
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise UsageError(f"{plain(word)} names another host", hint="write file:/PATH or file:///PATH")
        path = f"/{rest}"
    if not path:
        raise UsageError(f"{word} names no file", hint="write file:PATH")
    return _local(path, cwd)


def _web(word: str, cwd: Callable[[], str]) -> Source:
    inner = word.partition(":")[2]
    if word[:5].lower() == "http:" and _URL.fullmatch(inner):
        word = inner  # as pigay's `sc` writes it: http:https://…
    match = _URL.fullmatch(word)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in _DEFAULT_PORTS:
        raise UsageError(f"cannot read {plain(word)} as a URL", hint="write http://HOST/PATH or https://HOST/PATH")
    userinfo, at, authority = match[2].rpartition("@")
    host = _HOST.fullmatch(authority)
    if host is None or int(host[2] or 0) > 65535:
        raise UsageError(
            f"cannot read the host and port in {plain(word)}",
            hint="in a user name or password write @ as %40, / as %2F, : as %3A, # as %23, ? as %3F",
        )
    port = int(host[2]) if host[2] else _DEFAULT_PORTS[scheme]
    where = host[1].lower() + ("" if port == _DEFAULT_PORTS[scheme] else f":{port}")
    rest = (match[3] or "/") + (f"?{match[4]}" if match[4] else "")
    name = match[3].rstrip("/").rpartition("/")[2] or host[1].lower()
    return Source(f"{scheme}://{where}{rest}", Location(f"{scheme}://{userinfo}{at}{where}{rest}"), name)


#: Schemes of sources, and what parses a word that begins with one, given a way to ask for the working directory.
SOURCES: dict[str, Callable[[str, Callable[[], str]], Source]] = {"file": _file, "http": _web, "https": _web}


# -- steps -------------------------------------------------------------------------------------------------------------


def _parse_step(word: str) -> Step:
    name, colon, argument = word.partition(":")
    if name in STEPS:
        return STEPS[name](argument if colon else None)
    if not colon or argument.startswith("//"):
        raise UsageError(
            f"{plain(word)} is no step", hint=f"the first word is the source, and steps follow: {STEP_FORMS}"
        )
    return _digest(name, argument)


def _tar(argument: str | None) -> Step:
    if argument is not None:
        raise UsageError(f"tar:{plain(argument)} is no step", hint="write tar; compression is found out by looking")
    return Step("tar", unpacks=True)


def _digest(name: str, argument: str) -> Step:
    size = _digest_size(name.lower())
    if size is None:
        import hashlib

        known = sorted(each for each in hashlib.algorithms_guaranteed if _digest_size(each))
        raise UsageError(f"unknown step or digest {plain(name)!r}", hint=f"known are tar and {', '.join(known)}")
    if len(argument) != 2 * size or re.fullmatch("[0-9A-Fa-f]*", argument) is None:
        raise UsageError(
            f"{plain(argument)!r} is no {name.lower()} digest: expected {2 * size} hexadecimal digits"
            + (f", not {len(argument)}" if len(argument) != 2 * size else "")
        )
    return Step(f"{name.lower()}:{argument.lower()}")


def _digest_size(name: str) -> int | None:
    """Bytes in a digest of that algorithm; None if there is none, or if its digests have no fixed size."""
    import hashlib

    try:
        return hashlib.new(name, usedforsecurity=False).digest_size or None
    except (ValueError, TypeError):  # unknown; or known and switched off in this host's OpenSSL
        return None


#: Names of steps, and what parses the text after the colon (None without one); all other steps are digests.
STEPS: dict[str, Callable[[str | None], Step]] = {"tar": _tar}


# -- characters and names ----------------------------------------------------------------------------------------------


def _check_characters(word: str) -> None:
    if not word:
        raise UsageError("an empty word is no source and no step")
    if CONTROL.search(word):
        raise UsageError(f"{plain(word)!r} has a control character in it", hint="a new line or a NUL, for example")
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{plain(word)!a} is not valid UTF-8",
            hint="make a symbolic link to it that has a name in UTF-8, and give that",
        ) from error


def _label(name: str, unpacked: bool) -> str:
    """A payload's name from the source's; fixed rules only, because all hosts must come to the same."""
    if unpacked:
        name = _TAR_SUFFIX.sub("", name) or name
    # The end is kept, because programs go by the extension.
    name = name.encode()[-LABEL_LIMIT:].decode(errors="ignore")
    return "data" if name in ("", ".", "..") else name
