"""Carrying out a loader stack in a work area, until what lies there is complete, verified and durable."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import PAYLOAD
from sccache_dtool.errors import FULL, FetchFailed, NoSpace, UsageError, explain
from sccache_dtool.fetch import partial, versions
from sccache_dtool.fetch.context import Job, Retrieved, silently
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.reasons import CONTROL, plain
from sccache_dtool.fetch.sink import Throttle
from sccache_dtool.fetch.sources import require as require_source
from sccache_dtool.fetch.sources import retrieve
from sccache_dtool.fetch.stack import Chain, Stack, label_for
from sccache_dtool.fetch.steps import apply_step
from sccache_dtool.fetch.steps import require as require_step
from sccache_dtool.fetch.track import Track
from sccache_dtool.fetch.words import is_digest

if TYPE_CHECKING:
    from sccache_dtool.fetch.request import Bring


class Fetched(NamedTuple):
    """What lies at ``payload/<name>`` of a work area, complete and read-only."""

    name: str
    bytes: int
    entries: int  # files and directories, the payload itself included
    digests: dict[str, str]  # those that were checked, in hexadecimal, by algorithm
    announced: int | None  # bytes of the source, if it said so
    versions: tuple[Mapping[str, object] | None, ...] = ()  # what tells the version of each source; see `versions.py`


#: What a download is done within: it may wait for a place among those of this host.
Queue = Callable[[Job], AbstractContextManager[object]]


def fetch(
    fs: FileSystem,
    stack: Stack,
    area: str,
    *,
    progress: Progress,
    label: str | None = None,
    shared: bool = False,
    clock: Clock | None = None,
    track: Track | None = None,
    rate: float | None = None,
    queue: Queue = nullcontext,
    bring: Bring | None = None,
    note: Callable[[str], None] = silently,
) -> Fetched:
    """Fetch `stack` into `area`, a private empty directory: ``area/payload/<label>`` is made, and nothing else.

    The default of `label` is the stack's. An empty stack makes an empty directory. `shared`: the directory's group may
    read the files, and remove them. `track`: what others see of it; it takes the place of `progress`. `rate`: bytes a
    second at most. `bring`: see Wanted. `note` is told what we wait for.

    Raises FetchFailed, NoSpace (a quota included), or UsageError for a label that
    is no file name; what was made until then is left in `area`, and the caller removes it.
    """
    clock = clock or Clock()
    throttle = None if rate is None else Throttle(rate, clock)
    job = Job(fs, clock, track or progress, track, throttle, note=note)
    name = label or stack.label
    what = stack.source or plain(name)
    if not is_payload_name(name):
        raise UsageError(f"{plain(name)!r} cannot be the name of a payload")
    try:
        return _Fetch(job, stack, area, shared, queue, bring).run(name)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(
                f"no space left in {area} while fetching {what}: {plain(explain(error))}",
                hint="free space with: sc-dtool clean",
            ) from error
        raise FetchFailed(f"cannot fetch {what}: {plain(explain(error))}") from error
    finally:
        job.progress.done()


def is_payload_name(name: str) -> bool:
    """Whether a payload can be called so: a file name that drives no terminal."""
    try:
        os.fsencode(name)
    except UnicodeError:
        return False
    return name not in ("", ".", "..") and "/" not in name and not CONTROL.search(name)


class _Fetch:
    def __init__(self, job: Job, stack: Stack, area: str, shared: bool, queue: Queue, bring: Bring | None) -> None:
        self._job = job
        self._fs = job.fs
        self._stack = stack
        self._work = f"{area}/work"
        self._payload = f"{area}/{PAYLOAD}"
        self._shared = shared
        self._queue = queue
        self._bring = bring
        self._digests: dict[str, str] = {}
        self._versions: list[Mapping[str, object] | None] = []

    def run(self, name: str) -> Fetched:
        self._require()
        announced = None
        self._fs.mkdir(self._payload, shared=self._shared)
        if self._stack:
            self._fs.mkdir(self._work, shared=self._shared)
            name, announced = self._fill(name)
            self._fs.rmdir(self._work)
        else:
            self._fs.mkdir(f"{self._payload}/{name}")
        target = f"{self._payload}/{name}"
        self._job.progress.stage("writing to disk")
        self._fs.seal(self._payload, shared=self._shared)
        usage = self._fs.usage(target)
        return Fetched(name, usage.bytes, usage.entries, self._digests, announced, tuple(self._versions))

    def _require(self) -> None:
        """Raise FetchFailed for what cannot be done on this host, before the first byte is fetched."""
        for chain in self._stack.chains:
            if self._bring is None:
                require_source(chain)
            for step in chain.steps:
                require_step(step, chain.mirrors[0].name, chain.source)

    def _fill(self, name: str) -> tuple[str, int | None]:
        """Make the payload; its name and the bytes announced. All is fetched before anything is unpacked, so that who
        goes on with an interrupted fetch finds every file that was complete.
        """
        chains = self._stack.chains
        came = []
        for index, chain in enumerate(chains):
            job = self._job._replace(number=index, step=chain.steps[0] if chain.steps else "")
            came.append(self._retrieve(job, chain, f"{self._work}/{index}"))
        if self._stack.provisional and came[0].name:
            given = label_for(came[0].name, chains[0].steps)  # by a server, or what others left of a download
            name = given if is_payload_name(given) else name
        target = f"{self._payload}/{name}"
        if len(chains) > 1:
            self._fs.mkdir(target, shared=self._shared)
        for index, chain in enumerate(chains):
            path = self._steps(chain, index)
            self._fs.rename(path, f"{target}/{chain.label}" if len(chains) > 1 else target)
        self._versions = [one.version for one in came]
        announced = [one.announced for one in came]
        return name, None if None in announced else sum(size for size in announced if size is not None)

    def _retrieve(self, job: Job, chain: Chain, path: str) -> Retrieved:
        digests = [_digest(step) for step in takewhile(is_digest, chain.steps)]
        with nullcontext() if chain.mirrors[0].scheme == "file" else self._queue(job):
            if self._bring is None:
                retrieved = versions.steadily(job, chain, lambda: retrieve(job, chain, path, digests))
            else:
                self._bring(self._fs, path, job.progress)
                retrieved = Retrieved({}, None)
        if chain.steps and stat.S_ISDIR(self._fs.lstat(path).st_mode):
            raise FetchFailed(
                f"cannot fetch {chain.source}: it is a directory, and {chain.steps[0]} needs a file", shared=True
            )
        return retrieved

    def _steps(self, chain: Chain, index: int) -> str:
        path = f"{self._work}/{index}"
        partial.tidy(self._job, path)
        at_once = len(list(takewhile(is_digest, chain.steps)))
        for number, step in enumerate(chain.steps[at_once:], 1):
            path = apply_step(self._job, step, path, f"{self._work}/{index}.{number}", chain.source)
        self._digests.update(_digest(step) for step in chain.steps if is_digest(step))
        return path


def _digest(step: str) -> tuple[str, str]:
    algorithm, _, expected = step.partition(":")
    return algorithm, expected
