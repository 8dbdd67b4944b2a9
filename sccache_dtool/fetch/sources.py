"""Retrieval of sources of all kinds into a work area, with their digests taken while the bytes come."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from sccache_dtool.errors import FULL, FetchFailed, explain
from sccache_dtool.fetch import plugins, versions
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.reasons import plain, without_credentials
from sccache_dtool.fetch.request import OBJECT, Chain, Source
from sccache_dtool.fetch.retry import GaveUp
from sccache_dtool.fetch.steps import compare
from sccache_dtool.fetch.words import MANY, REMOTE
from sccache_dtool.protocol.store import Store


class SourceKind(NamedTuple):
    """What can be done with sources of one kind."""

    #: Brings it to a new path, as a file or a directory; the names are those of the digests to take of a file.
    retrieve: Callable[[Context, Source, str, Sequence[str]], Retrieved]
    #: Bytes that a source says it has, without being fetched; None if it does not say.
    announced: Callable[[Source], int | None] = lambda source: None
    #: Whether a source still has the version that facts of `item.json` describe; False if that is not known.
    is_unchanged: Callable[[Context, Source, Mapping[str, object]], bool] = lambda context, source, fact: False
    #: What has to be installed for a scheme, in words; None if nothing.
    missing: Callable[[str], str | None] = lambda scheme: None


#: What retrieves sources, by the scheme of their canonical form: modules of this package, which are imported only for
#: such a source. Those of plugins are not among them.
KINDS = {
    "file": "local",
    "http": "http",
    "https": "http",
    "globus": "globus",
    OBJECT: "objects",
    **dict.fromkeys(REMOTE, "fsspec_source"),
}


def _built_in(scheme: str) -> SourceKind | None:
    if scheme not in KINDS:
        return None
    module: Any = import_module(f"sccache_dtool.fetch.{KINDS[scheme]}")
    missing = getattr(module, "to_install", lambda scheme: None)
    return SourceKind(module.retrieve, module.announced, module.is_unchanged, missing)


def _kind(scheme: str) -> SourceKind | None:
    """What can be done with sources of a scheme; None if nothing that is installed knows it."""
    plugin = None if scheme in KINDS else plugins.find_source(scheme)
    if plugin is None:
        return _built_in(scheme)

    def retrieve_with_plugin(context: Context, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
        with plugins.failing_in_words(f"cannot fetch {source.canonical}", scheme):
            return plugin.retrieve(context, source, path, algorithms)

    return SourceKind(retrieve_with_plugin, missing=lambda scheme: plugin.missing())


def retrieve(context: Context, chain: Chain, path: str, digests: Sequence[tuple[str, str]]) -> Retrieved:
    """Bring the source of `chain` to `path`, which must not exist, from the first of its mirrors that has it.

    `digests`: pairs of algorithm and expected digest. A mirror that does not answer is skipped while there is another
    one, and is asked again, with more attempts, when none is left. Raises FetchFailed if no mirror has the expected
    file, and OSError for what the file system refuses; an incomplete file may then be left.
    """
    failures: dict[Source, FetchFailed] = {}
    mirror = chain.mirrors[0]
    turns, later = list(chain.mirrors), []  # type: list[Source], list[Source]
    while turns:
        mirror = turns.pop(0)
        if len(chain.mirrors) > 1:
            context.store.log.info(f"asking mirror {mirror.canonical}")
        if failures:
            _make_room(context, path)
            context.failed([*failures.values()][-1].message)
            context.attempt()
        others = bool(turns)
        try:
            retrieved = _from_one(context._replace(others=others), mirror, path, digests)
            return retrieved._replace(version={"source": mirror.canonical, **(retrieved.version or {})})
        except FetchFailed as error:
            without_credentials(error, mirror.location)
            failures[mirror] = error
            if others and isinstance(error, GaveUp):
                later.append(mirror)
        except OSError as error:
            if error.errno in FULL or _is_within(error, path):
                raise
            is_pattern = isinstance(error, FileNotFoundError) and any(mark in mirror.canonical for mark in "*?[")
            hint = MANY if is_pattern else None
            failures[mirror] = FetchFailed(
                f"cannot fetch {mirror.canonical}: {plain(explain(error, mirror.canonical))}", hint=hint
            )
        if not turns:
            turns, later = later, []
    if len(failures) == 1:
        raise failures.popitem()[1]
    last = failures[mirror]
    raise (GaveUp if isinstance(last, GaveUp) else FetchFailed)(
        f"cannot fetch {chain.mirrors[0].canonical} from any of {len(failures)} mirrors",
        details=[error.message for error in failures.values()],
        hint=last.hint,
        shared=all(error.shared for error in failures.values()),
    )


def require(chain: Chain) -> None:
    """Raise FetchFailed if no mirror of `chain` can be read on this host; called before anything is fetched."""
    kinds = [(mirror.scheme, _kind(mirror.scheme)) for mirror in chain.mirrors]
    lacking = [None if kind is None else kind.missing(scheme) for scheme, kind in kinds]
    if all(lacking):
        raise FetchFailed(
            f"cannot fetch {chain.source}: a package that it needs is not installed",
            hint="; ".join(dict.fromkeys(f"install it: {words}" for words in lacking)),
        )


def announced(mirrors: Iterable[Source]) -> int | None:
    """Bytes that a source says it has, without being fetched; None if none of its mirrors says so."""
    for mirror in mirrors:
        kind = _built_in(mirror.scheme)
        if kind is not None and (size := kind.announced(mirror)) is not None:
            return size
    return None


def is_unchanged(store: Store, chain: Chain, fact: object) -> bool:
    """Whether a source still has the version that `fact` from `item.json` describes; False if that cannot be told.

    Costs one request, and no download. Raises FetchFailed if the source cannot be asked.
    """
    if not isinstance(fact, Mapping):
        return False
    fetched_from = fact.get("source")
    source = next((mirror for mirror in chain.mirrors if mirror.canonical == fetched_from), None)
    kind = None if source is None else _built_in(source.scheme)
    if source is None or kind is None:
        return False
    others = len(chain.mirrors) > 1
    context = Context(store, NoProgress(), others=others)
    try:
        return kind.is_unchanged(context, source, fact)
    except OSError as error:
        raise versions.unreadable(source, error) from error
    except FetchFailed as error:
        without_credentials(error, source.location)
        if others:
            return False  # another mirror may have it
        hint = f"{error.hint}; {versions.KEEP_HINT}" if error.hint else versions.KEEP_HINT
        message = error.message.replace("cannot fetch", "cannot check for changes of", 1)
        raise FetchFailed(message, details=error.details, hint=hint) from error


def _from_one(context: Context, source: Source, path: str, digests: Sequence[tuple[str, str]]) -> Retrieved:
    kind = _kind(source.scheme)
    if kind is None:
        raise FetchFailed(f"cannot fetch {source.canonical}: no installed package supports it")
    algorithms = [algorithm for algorithm, _ in digests]
    retrieved = kind.retrieve(context, source, path, algorithms)
    try:
        _check(retrieved, digests, source)
    except FetchFailed as error:
        if not (retrieved.resumed or retrieved.decoded):
            raise
        # What was put together from parts, or decoded on the way, may be wrong where the source is right: once more,
        # from its first byte, as it is sent.
        _make_room(context, path)
        context.failed(error.message)
        context.attempt()
        retrieved = kind.retrieve(context._replace(fresh=True, as_sent=retrieved.decoded), source, path, algorithms)
        _check(retrieved, digests, source)
    return retrieved


def _check(retrieved: Retrieved, digests: Sequence[tuple[str, str]], source: Source) -> None:
    for algorithm, expected in digests:
        if algorithm not in retrieved.digests:
            raise FetchFailed(f"cannot check {algorithm} of {source.canonical}: it is a directory", shared=True)
        compare(algorithm, expected, retrieved.digests[algorithm], source.canonical)


def _is_within(error: OSError, path: str) -> bool:
    """Whether an error is about the work area that `path` is in: the next mirror would meet it, too."""
    area = f"{os.path.dirname(path)}/"
    return any(isinstance(name, str) and name.startswith(area) for name in (error.filename, error.filename2))


def _make_room(context: Context, path: str) -> None:
    """Remove what a failed attempt left: others must not continue it, and the next attempt makes the path again."""
    if context.track is not None:
        context.track.forget(context.number)
    with contextlib.suppress(FileNotFoundError):
        status = context.fs.lstat(path)
        if stat.S_ISREG(status.st_mode):
            context.progress.advance(-status.st_size)
    for left in (path, f"{path}.origin"):
        with contextlib.suppress(FileNotFoundError):
            context.fs.remove_tree(left)
