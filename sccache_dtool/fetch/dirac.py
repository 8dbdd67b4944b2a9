"""dirac:LFN, files of the DIRAC grid middleware: a plugin like any other, of use where the DIRAC clients are installed.

The clients download into a directory of their choice, so nothing can be continued or shown on the way. They say OK
also for files that they could not get: those are in the answer's `Failed`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from sccache_dtool.errors import FetchFailed, UsageError
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.plugins import SourcePlugin
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import Location, Source
from sccache_dtool.fetch.steps import file_digest

_CLIENT = "DIRAC.Interfaces.API.Dirac"


def parse(word: str) -> Source:
    """``dirac:/vo/path/file``, also with LFN: before the path. Raises UsageError."""
    lfn = word.partition(":")[2]
    if lfn[:4].upper() == "LFN:":
        lfn = lfn[4:]
    lfn = "/" + lfn.lstrip("/")
    name = lfn.rpartition("/")[2]
    if not name or name in (".", ".."):
        raise UsageError(f"{plain(word)} does not name a file", hint="write dirac:/VO/PATH/FILE")
    return Source(f"dirac:{lfn}", Location(lfn), name)


def retrieve(context: Context, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Have the DIRAC clients download `source`, and put it at `path`. Raises FetchFailed."""
    try:
        client = import_module(_CLIENT).Dirac
    except ImportError as error:
        raise FetchFailed(
            f"cannot fetch {source.canonical}: the DIRAC clients are not installed", hint=f"install them: {missing()}"
        ) from error
    context.progress.start(source.name, None)
    lfn = str(source.location)
    directory = f"{path}.dirac"
    context.fs.mkdir(directory)
    try:
        answer = client().getFile(lfn, destDir=directory)
    except Exception as error:  # the clients raise whatever the grid does
        raise FetchFailed(f"cannot fetch {source.canonical}: {plain(f'{type(error).__name__}: {error}')}") from error
    _check(answer, lfn, source.canonical)
    found = context.fs.names(directory)
    if found != [source.name]:
        raise FetchFailed(
            f"cannot fetch {source.canonical}: the DIRAC clients reported success, but left {found or 'nothing'}"
        )
    context.fs.rename(f"{directory}/{source.name}", path)
    context.fs.rmdir(directory)
    context.progress.advance(context.fs.lstat(path).st_size)
    return Retrieved({name: file_digest(context.fs, path, name) for name in algorithms}, None)


def missing() -> str | None:
    """What to install; None if the clients are there."""
    from importlib.util import find_spec

    try:
        there = _CLIENT in sys.modules or find_spec(_CLIENT) is not None
    except ImportError:
        there = False
    return None if there else "pip install DIRAC, or set up the environment of your DIRAC clients"


def _check(answer: Any, lfn: str, shown: str) -> None:
    if not isinstance(answer, Mapping) or not answer.get("OK"):
        message = answer.get("Message", "no reason given") if isinstance(answer, Mapping) else "no answer"
        raise FetchFailed(f"cannot fetch {shown}: {plain(str(message))}")
    value = answer.get("Value") or {}
    failed = value.get("Failed") if isinstance(value, Mapping) else None
    if failed:
        reason = failed.get(lfn, failed) if isinstance(failed, Mapping) else failed
        raise FetchFailed(f"cannot fetch {shown}: {plain(str(reason))}")


plugin = SourcePlugin(parse, retrieve, missing, "a file of the DIRAC grid, by its logical name")
