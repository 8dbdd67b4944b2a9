"""The words of a loader stack, one by one: sources and steps in the one form that all users' spellings come to.

To add a source or a step within this package, put its parser into SOURCES, REMOTE or STEPS here, and what does the
work into `sources.KINDS` or `steps.py`. From elsewhere they come as entry points: `plugins.py`.
Every use of the cache parses words, so that nothing heavy is imported here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from functools import lru_cache

from sccache_dtool import credentials
from sccache_dtool.errors import UsageError, did_you_mean
from sccache_dtool.fetch.reasons import CONTROL, plain
from sccache_dtool.fetch.request import OBJECT_SCHEMES, Location, Source, Step
from sccache_dtool.fetch.urls import host_of, path_of, query_of, readable

SOURCE_FORMS = "a path, file:PATH, http://…, https://…, sha256:HEX, or another that `sc-dtool loaders` lists"
STEP_FORMS = "tar, zip, gz, bz2, xz, zst, or ALGORITHM:HEX to check a digest, such as md5:… or sha256:…"

#: What to do instead of naming many items as the words of one.
MANY = "to use many items at once, list them: printf '%s\\n' FILE... | sc-dtool use --from -"

#: Schemes that fsspec serves, and what has to be installed for each; see `fsspec_source.py`.
REMOTE = {
    "abfs": "adlfs",
    "az": "adlfs",
    "ftp": "fsspec",
    "gs": "gcsfs",
    "hdfs": "pyarrow",
    "hf": "huggingface_hub",
    "oci": "ocifs",
    "oss": "ossfs",
    "root": "fsspec-xrootd",
    "s3": "s3fs",
    "sftp": "paramiko",
    "smb": "smbprotocol",
    "webdav": "webdav4",
    "webdavs": "webdav4",
    "webhdfs": "requests",
}
#: Two names of one thing.
_SAME = {
    "dav": "webdav",
    "davs": "webdavs",
    "gcs": "gs",
    "ssh": "sftp",
    "abfss": "abfs",
    "s3a": "s3",
    "s3n": "s3",
}
_WHOLE_AUTHORITY = frozenset({"abfs", "az", "hf"})  # what stands before the @ is part of the name, and no user

#: Those whose URLs name a host, and its default port if there is one. The others name a bucket or the like.
_OF_HOSTS = {
    "ftp": 21,
    "hdfs": None,
    "root": 1094,
    "sftp": 22,
    "smb": 445,
    "webdav": 80,
    "webdavs": 443,
    "webhdfs": None,
}

# Texts, not compiled patterns: one source needs few of them, and `re` keeps those.
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*):"
_URL = r"(?ai)([a-z]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?"
_HOST = r"(?a)(\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\]|[^\s:@\[\]\\%]+)(?::(\d{0,5}))?"
_REMOTE_URL = r"(?ais)[a-z0-9]+://([^/]*)(/.*)?"
_BAR = r"\|(?=file:|[A-Za-z][A-Za-z0-9+.-]*://)"
_DEFAULT_PORTS = {"http": 80, "https": 443}

#: The end of a name that says what is in the file. The URL of a program that sends files has none, or a query.
EXTENSION = r"(?a)[^.]\.[A-Za-z0-9]{1,10}\Z"


def is_digest(step: str) -> bool:
    """Whether a canonical step is a digest to check, ``algorithm:hex``."""
    name, _, argument = step.partition(":")
    return bool(argument) and name not in STEPS and _digest_size(name) is not None


# -- sources -----------------------------------------------------------------------------------------------------------


def is_source(word: str) -> bool:
    """Whether a word that is not the first is a source, and no step."""
    if word.startswith(("/", "./", "../")):
        return True
    scheme = re.match(_SCHEME, word)
    if scheme is None or (name := scheme[1].lower()) in STEPS or name in OBJECT_SCHEMES:
        return False
    if name in SOURCES or name in REMOTE or name in _SAME:
        return True
    return not _digest_size(name) and _plugin(name) is not None


def is_url(word: str) -> bool:
    """Whether a word is a URL whose scheme is built in."""
    name, slashes, _ = word.partition("://")
    return bool(slashes) and (name in SOURCES or name in REMOTE or name in _SAME)


def parse_sources(word: str, cwd: Callable[[], str], also: Collection[str] = ()) -> tuple[Source, ...]:
    """The mirrors that a word names. `also`: further names of credentials, see `credentials.without`."""
    return tuple(_parse_source(part, cwd, also) for part in (re.split(_BAR, word) if "|" in word else (word,)))


def _parse_source(word: str, cwd: Callable[[], str], also: Collection[str]) -> Source:
    scheme = re.match(_SCHEME, word)
    name = scheme[1].lower() if scheme else None
    known = name in SOURCES or name in REMOTE or name in _SAME
    if word in STEPS or (name is not None and not known and (name in STEPS or _digest_size(name))):
        raise UsageError(
            f"the first word must be a source, and {plain(word)} is a step",
            hint=f"give {SOURCE_FORMS}; to name a file {plain(word)}, write ./{plain(word)}",
        )
    if scheme is None or name is None:
        return _local(word, cwd)
    if name in SOURCES:
        return SOURCES[name](word, cwd, also)
    if known:
        return _remote(word, also)
    plugin = _plugin(name)
    if plugin is None:
        raise UsageError(
            f"cannot fetch {plain(word)}: unknown kind of source {scheme[1]!r}",
            hint=f"give {SOURCE_FORMS}; to name a file {plain(word)}, write ./{plain(word)}",
        )
    return plugin(word)


def _plugin(scheme: str) -> Callable[[str], Source] | None:
    from sccache_dtool.fetch.plugins import find_source

    found = find_source(scheme)
    return None if found is None else found.parse


def _remote(word: str, also: Collection[str]) -> Source:
    """A URL that fsspec understands; this program interprets only its scheme, its host and its credentials.

    The path is left as it is written: the key of an object has no second spelling, and fsspec decodes nothing.
    """
    scheme, _, _ = word.partition(":")
    scheme = _SAME.get(scheme.lower(), scheme.lower())
    match = re.fullmatch(_REMOTE_URL, word)
    if match is None or not (match[1] or match[2]):
        raise UsageError(f"cannot read {plain(word)} as a URL", hint=f"write {scheme}://…")
    authority, path = match[1], match[2] or ""
    shown = authority if scheme in _WHOLE_AUTHORITY else authority.rpartition("@")[2]
    if scheme in _OF_HOSTS:
        shown = shown.lower().removesuffix(f":{_OF_HOSTS[scheme]}").removesuffix(":")
    if not (shown or path.strip("/")):
        raise UsageError(f"cannot read the host or bucket in {plain(word)}", hint=f"write {scheme}://HOST/PATH")
    stored = credentials.without(path, also)
    return Source(
        f"{scheme}://{shown}{stored}", Location(f"{scheme}://{authority}{path}"), stored.rstrip("/").rpartition("/")[2]
    )


def _local(path: str, cwd: Callable[[], str]) -> Source:
    try:
        path = os.path.normpath(path if os.path.isabs(path) else os.path.join(cwd(), path))
    except OSError as error:
        raise UsageError(f"cannot resolve {path}: the working directory was removed") from error
    if path.startswith("//"):  # POSIX lets two slashes mean something else; here they are one path
        path = path[1:]
    return Source(f"file:{path}", Location(path), os.path.basename(path))


def _file(word: str, cwd: Callable[[], str], also: Collection[str]) -> Source:
    """``file:PATH`` names the path as it is written; ``file://…`` is a URI, in which %20 is a space (RFC 8089)."""
    path = word.partition(":")[2]
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise UsageError(f"{plain(word)} names another host", hint="write file:/PATH or file:///PATH")
        path = f"/{rest}"
        if "%" in path:
            from urllib.parse import unquote_to_bytes

            path = os.fsdecode(unquote_to_bytes(path))
            check_characters(path)
    if not path:
        raise UsageError(f"{word} does not name a file", hint="write file:PATH")
    return _local(path, cwd)


def _globus(word: str, cwd: Callable[[], str], also: Collection[str]) -> Source:
    """``globus://COLLECTION/path``: the path is kept as it is written, because Globus does not decode it."""
    from sccache_dtool.catalog.broker_names import is_uuid

    collection, slash, path = word.partition(":")[2].removeprefix("//").partition("/")
    name = path.rpartition("/")[2]
    if not is_uuid(collection.lower()) or name in ("", ".", ".."):
        raise UsageError(
            f"{plain(word)} does not name a file in a Globus collection",
            hint="write globus://UUID-OF-THE-COLLECTION/PATH/FILE",
        )
    canonical = f"globus://{collection.lower()}{slash}{path}"
    return Source(canonical, Location(canonical), name)


def _web(word: str, cwd: Callable[[], str], also: Collection[str]) -> Source:
    inner = word.partition(":")[2]
    if word[:5].lower() == "http:" and re.fullmatch(_URL, inner):
        word = inner  # as pigay's `sc` writes it: http:https://…
    match = re.fullmatch(_URL, word)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in _DEFAULT_PORTS:
        raise UsageError(f"cannot read {plain(word)} as a URL", hint="write http://HOST/PATH or https://HOST/PATH")
    userinfo, at, authority = match[2].rpartition("@")
    host = re.fullmatch(_HOST, authority)
    if host is None or int(host[2] or 0) > 65535:
        raise UsageError(
            f"cannot read the host and port in {plain(word)}",
            hint="write https://HOST/PATH; in a user name or password, write @ as %40, / as %2F, : as %3A, # as %23, "
            "? as %3F",
        )
    port = int(host[2]) if host[2] else _DEFAULT_PORTS[scheme]
    try:
        name_of_host = host_of(host[1])
    except ValueError as error:
        raise UsageError(f"cannot read the host in {plain(word)}: {plain(str(error))}") from error
    where = f"{scheme}://", name_of_host + ("" if port == _DEFAULT_PORTS[scheme] else f":{port}")
    path = path_of(match[3])
    rest = path + (f"?{query_of(match[4])}" if match[4] else "")
    stored = credentials.without(rest, also)
    name = readable(path.rstrip("/").rpartition("/")[2]) or name_of_host
    return Source(
        f"{where[0]}{where[1]}{stored}",
        Location(f"{where[0]}{userinfo}{at}{where[1]}{rest}"),
        name,
        provisional="?" in stored or re.search(EXTENSION, name) is None,
    )


def _object(word: str, cwd: Callable[[], str], also: Collection[str]) -> Source:
    """An object of the archive, by the digest of its content. Its name comes from that, so that it is one item."""
    scheme, _, digits = word.partition(":")
    step = _digest(scheme, digits)
    scheme, _, digits = step.canonical.partition(":")
    algorithm, dot, compression = scheme.partition(".")
    return Source(step.canonical, Location(step.canonical), f"{algorithm}-{digits[:8]}{dot}{compression}")


#: Schemes of sources, and what parses a word that begins with one, given a way to ask for the working directory and
#: further names of credentials.
SOURCES: dict[str, Callable[[str, Callable[[], str], Collection[str]], Source]] = {
    "file": _file,
    "local": _file,  # as the Whole Tale data manager writes it
    "http": _web,
    "https": _web,
    **dict.fromkeys(sorted(OBJECT_SCHEMES), _object),  # the same order in each run
    "globus": _globus,
}


# -- steps -------------------------------------------------------------------------------------------------------------


def parse_step(word: str) -> Step:
    """The step that a word means. Raises UsageError if it means none."""
    name, colon, argument = word.partition(":")
    if name in STEPS:
        return STEPS[name](argument if colon else None)
    if not (colon and _digest_size(name.lower())):
        from sccache_dtool.fetch.plugins import find_step

        plugin = find_step(name)
        if plugin is not None:
            return plugin.parse(argument if colon else None)
    if not colon or argument.startswith("//"):
        # Such as one of many that a shell has made of a pattern.
        is_file = ("/" in word and not colon) or os.path.lexists(word)
        raise UsageError(
            f"{plain(word)} is not a step{'' if is_file else did_you_mean(word.lower(), STEPS)}",
            hint=f"{MANY if is_file else f'the first word is the source, and steps follow: {STEP_FORMS}'}; "
            f"to name a further source of the same item, write ./{plain(word)}",
        )
    return _digest(name, argument)


def _bare(name: str, suffix: str, *, unpacks: bool = False) -> Callable[[str | None], Step]:
    """The parser of a step that takes no argument."""

    def parse(argument: str | None) -> Step:
        if argument is not None:
            hint = "; its compression is detected" if name == "tar" else ""
            raise UsageError(f"{name}:{plain(argument)} is not a step", hint=f"write {name}{hint}")
        return Step(name, unpacks, suffix)

    return parse


def _digest(name: str, argument: str) -> Step:
    size = _digest_size(name.lower())
    if size is None:
        import hashlib

        known = sorted(each for each in hashlib.algorithms_guaranteed if _digest_size(each))
        raise UsageError(
            f"unknown step or digest {plain(name)!r}{did_you_mean(name.lower(), (*STEPS, *CHECKSUMS, *known))}",
            hint=f"the steps and digests are {', '.join((*STEPS, *CHECKSUMS, *known))}",
        )
    if len(argument) != 2 * size or re.fullmatch("[0-9A-Fa-f]*", argument) is None:
        raise UsageError(
            f"{plain(argument)!r} is not a {name.lower()} digest: expected {2 * size} hexadecimal digits"
            + (f", not {len(argument)}" if len(argument) != 2 * size else "")
        )
    return Step(f"{name.lower()}:{argument.lower()}")


@lru_cache(64)
def _digest_size(name: str) -> int | None:
    """Bytes in a digest of that algorithm; None if there is none, or if its digests have no fixed size."""
    if name in CHECKSUMS:
        return CHECKSUMS[name]
    if name in OBJECT_SCHEMES:  # most are; `hashlib` loads OpenSSL
        return 32
    import hashlib

    try:
        return hashlib.new(name, usedforsecurity=False).digest_size or None
    except (ValueError, TypeError):  # unknown; or known and switched off in this host's OpenSSL
        return None


#: Names of steps, and what parses the text after the colon (None without one).
STEPS: dict[str, Callable[[str | None], Step]] = {
    "tar": _bare("tar", r"\.(tar(\.(gz|bz2|xz))?|tgz|tbz2?|txz)", unpacks=True),
    "zip": _bare("zip", r"\.zip", unpacks=True),
    **{kind: _bare(kind, rf"\.{kind}") for kind in ("gz", "bz2", "xz", "zst")},
}

#: Checksums that hashlib does not have, and their bytes.
CHECKSUMS = {"adler32": 4, "crc32": 4}


# -- characters and names ----------------------------------------------------------------------------------------------


def check_characters(word: str) -> None:
    """Raise UsageError for a word that no source and no step can be."""
    if not word:
        raise UsageError("a source or step is empty", hint="check that the variables of the script are set")
    if CONTROL.search(word):
        raise UsageError(
            f"{plain(word)!r} contains a control character", hint="remove it; it is a line break or a NUL, for example"
        )
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{plain(word)!a} is not valid UTF-8",
            hint="create a symbolic link to it with a UTF-8 name, and give that",
        ) from error
