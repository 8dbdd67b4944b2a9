"""Sources: what brings a file or a directory into a work area, in a stream and with its digests taken on the way."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import FULL, FetchFailed, explain
from sccache_dtool.fetch import fsspec_source, http, local, plugins, versions
from sccache_dtool.fetch.context import Job, Retrieved
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.reasons import plain, without_credentials
from sccache_dtool.fetch.retry import GaveUp
from sccache_dtool.fetch.stack import Chain
from sccache_dtool.fetch.steps import compare
from sccache_dtool.fetch.words import REMOTE, Source

#: Brings a source to the new path given: a file, or a directory. The names are of digests to take of a file on the way.
Retriever = Callable[[Job, Source, str, Sequence[str]], Retrieved]

#: What retrieves a source, by the scheme of its canonical form; those of fsspec and of plugins are not among them.
RETRIEVERS: dict[str, Retriever] = {"file": local.retrieve, "http": http.retrieve, "https": http.retrieve}


def retrieve(job: Job, chain: Chain, path: str, digests: Sequence[tuple[str, str]]) -> Retrieved:
    """Bring the source of `chain` to `path`, which must not exist, from the first of its mirrors that has it.

    `digests` are algorithms and what they must give. A mirror that does not answer is passed over at once while
    another one can be asked, and is asked again with more patience when none is left. Raises FetchFailed when no
    mirror brings what was promised, and OSError for what the file system refuses; an incomplete file may then be left.
    """
    failures: dict[Source, FetchFailed] = {}
    mirror = chain.mirrors[0]
    turns, later = list(chain.mirrors), []  # type: list[Source], list[Source]
    while turns:
        mirror = turns.pop(0)
        if failures:
            _make_room(job, path)
            job.attempt()
        others = bool(turns)
        try:
            retrieved = _from_one(job._replace(others=others), mirror, path, digests)
            return retrieved._replace(version={"source": mirror.canonical, **(retrieved.version or {})})
        except FetchFailed as error:
            without_credentials(error, mirror.location)
            failures[mirror] = error
            if others and isinstance(error, GaveUp):
                later.append(mirror)
        except OSError as error:
            if error.errno in FULL or _is_within(error, path):
                raise
            failures[mirror] = FetchFailed(f"cannot fetch {mirror.canonical}: {plain(explain(error))}")
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
    lacking = [_missing(mirror) for mirror in chain.mirrors]
    if all(lacking):
        raise FetchFailed(
            f"cannot fetch {chain.source}: a package that it needs is not installed",
            hint="; ".join(dict.fromkeys(f"install it: {words}" for words in lacking)),
        )


def announced(mirrors: Iterable[Source]) -> int | None:
    """Bytes that a source says it has, without being fetched; None if none of its mirrors says so."""
    for mirror in mirrors:
        if mirror.scheme == "file":
            size = local.announced(mirror)
        elif mirror.scheme in ("http", "https"):
            size = http.announced(mirror)
        elif mirror.scheme in REMOTE:
            size = fsspec_source.announced(mirror)
        else:
            size = None
        if size is not None:
            return size
    return None


def _missing(source: Source) -> str | None:
    """What to install for a source; None if nothing is known to be missing."""
    if source.scheme in RETRIEVERS:
        return None
    if source.scheme in REMOTE:
        packages = fsspec_source.missing(source.scheme)
        return packages and f"pip install {packages}"
    plugin = plugins.find_source(source.scheme)
    return plugin.missing() if plugin is not None else None


def is_unchanged(fs: FileSystem, clock: Clock, note: Callable[[str], None], chain: Chain, fact: object) -> bool:
    """Whether a source still has the version that `fact` from `item.json` describes; False if nobody can tell.

    Costs one request, and no download. Raises FetchFailed if the source cannot be asked.
    """
    source = _noted_source(chain, fact)
    if source is None or not isinstance(fact, Mapping):
        return False
    others = len(chain.mirrors) > 1
    job = Job(fs, clock, NoProgress(), note=note, others=others)
    try:
        if source.scheme == "file":
            return versions.look(source.location).text == versions.text_of(fact)
        if source.scheme in ("http", "https"):
            return http.is_unchanged(job, source, fact)
        return source.scheme in REMOTE and fsspec_source.is_unchanged(job, source, fact)
    except OSError as error:
        raise versions.unreadable(source, error) from error
    except FetchFailed as error:
        without_credentials(error, source.location)
        if others:
            return False  # another mirror may bring it
        hint = f"{error.hint}; {versions.KEEP_HINT}" if error.hint else versions.KEEP_HINT
        message = error.message.replace("cannot fetch", "cannot check for changes of", 1)
        raise FetchFailed(message, details=error.details, hint=hint) from error


def _noted_source(chain: Chain, fact: object) -> Source | None:
    """The mirror that a copy was fetched from."""
    noted = fact.get("source") if isinstance(fact, Mapping) else None
    return next((mirror for mirror in chain.mirrors if mirror.canonical == noted), None)


def _from_one(job: Job, source: Source, path: str, digests: Sequence[tuple[str, str]]) -> Retrieved:
    retriever = _retriever(source)
    algorithms = [algorithm for algorithm, _ in digests]
    retrieved = retriever(job, source, path, algorithms)
    try:
        _check(retrieved, digests, source)
    except FetchFailed:
        if not (retrieved.resumed or retrieved.decoded):
            raise
        # What was put together from parts, or decoded on the way, may be wrong where the source is right: once more,
        # from its first byte, as it is sent.
        _make_room(job, path)
        job.attempt()
        retrieved = retriever(job._replace(fresh=True, as_sent=retrieved.decoded), source, path, algorithms)
        _check(retrieved, digests, source)
    return retrieved


def _check(retrieved: Retrieved, digests: Sequence[tuple[str, str]], source: Source) -> None:
    for algorithm, expected in digests:
        if algorithm not in retrieved.digests:
            raise FetchFailed(f"cannot check {algorithm} of {source.canonical}: it is a directory", shared=True)
        compare(algorithm, expected, retrieved.digests[algorithm], source.canonical)


def _retriever(source: Source) -> Retriever:
    if source.scheme in RETRIEVERS:
        return RETRIEVERS[source.scheme]
    if source.scheme in REMOTE:
        return fsspec_source.retrieve
    plugin = plugins.find_source(source.scheme)
    if plugin is None:
        raise FetchFailed(f"cannot fetch {source.canonical}: no installed package supports it")
    return _guarded(plugin.retrieve)


def _guarded(retriever: Retriever) -> Retriever:
    def retrieve_with_plugin(job: Job, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
        with plugins.failing_in_words(f"cannot fetch {source.canonical}", source.scheme):
            return retriever(job, source, path, algorithms)

    return retrieve_with_plugin


def _is_within(error: OSError, path: str) -> bool:
    """Whether an error is about the work area that `path` is in, where the next mirror would fare no better."""
    area = f"{os.path.dirname(path)}/"
    return any(isinstance(name, str) and name.startswith(area) for name in (error.filename, error.filename2))


def _make_room(job: Job, path: str) -> None:
    """Remove what a failed attempt left: others must not continue it, and the next one makes the path again."""
    if job.track is not None:
        job.track.forget(job.number)
    with contextlib.suppress(FileNotFoundError):
        status = job.fs.lstat(path)
        if stat.S_ISREG(status.st_mode):
            job.progress.advance(-status.st_size)
    for left in (path, f"{path}.origin"):
        with contextlib.suppress(FileNotFoundError):
            job.fs.remove_tree(left)
