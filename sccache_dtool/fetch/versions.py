"""Which version of a source a copy is of, and whether the source still has that version.

A local file is identified by its size and its time of modification in nanoseconds, as with make and rsync. The time of
change (ctime) is not used: backups, hard links, chmod and the migration of a file system change it without changing
the content, and the same file copied to the local disks of two hosts with its times would be two versions. A directory
is identified by the names, sizes and times of everything in it.

The name of a copy contains a digest of the versions it was made from (`layout.Generation.version`), so that a hit looks
at the source, and reads nothing more in the cache.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sccache_dtool.disk.names import digest_of
from sccache_dtool.errors import FetchFailed, explain
from sccache_dtool.fetch.patience import within
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.words import is_digest
from sccache_dtool.tuples import NamedTuple

if TYPE_CHECKING:
    from sccache_dtool.fetch.context import Context
    from sccache_dtool.fetch.request import Chain, Source, Stack

#: Without O_NONBLOCK, opening what has become a FIFO meanwhile would wait for a writer.
_LOOK = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

#: Seconds within which a file can be changed twice and keep its time: a tick of the kernel's clock, with a margin; and
#: on file systems that keep whole seconds only (FAT keeps even ones).
_TICK, _COARSE_TICK = 0.02, 2.0

#: Seconds to wait for a file system that does not answer, such as an NFS mount whose server is down. While a directory
#: is gone through, each entry is an answer.
PATIENCE = 30.0

#: Seconds after which a modification is old, even if the clock of this host is not quite that of the file server.
_OLD = 60.0

#: Stands for a source that is not identified by what a look at it shows.
_OTHER = "-"

Fact = Mapping[str, object]


class Version(NamedTuple):
    """A version of a local source."""

    text: str  # the same for the same version
    newest: int  # the latest modification in it, in nanoseconds since 1970
    fact: dict[str, object]  # for `item.json`


class CurrentVersion(NamedTuple):
    """The versions that the sources of a stack have now."""

    texts: tuple[str | None, ...]  # by source; None: it is local, and cannot be read
    unreadable: tuple[str, ...]  # why not, in words

    @property
    def tag(self) -> str | None:
        """What the name of a copy has; None if no source is local."""
        return tag(self.texts)


def look(path: str) -> Version:
    """The version of a local file or directory. Raises OSError; after PATIENCE without an answer, TimeoutError.

    A file is opened, if it may be: NFS may answer a stat with attributes that are a minute old.
    """
    answers: list[None] = []
    return within(
        PATIENCE, lambda: _look(path, answers), "how long a file system may take to answer is not limited", answers
    )


def _look(path: str, answers: list[None]) -> Version:
    """As `look`, without a bound; `answers` grows by one for each answer of the file system."""
    status = os.stat(path)
    answers.append(None)
    if stat.S_ISDIR(status.st_mode):
        return _look_at_tree(path, answers)
    if stat.S_ISREG(status.st_mode):
        status = _opened(path) or status
    mtime = _seconds(status.st_mtime_ns)
    return Version(f"{status.st_size} {mtime}", status.st_mtime_ns, {"size": status.st_size, "mtime": mtime})


def now(stack: Stack) -> CurrentVersion:
    """The versions that the sources of a stack have now. Asks no server."""
    texts: list[str | None] = []
    unreadable = []
    for chain in stack.chains:
        source = tracked(chain)
        if source is None:
            texts.append(_OTHER)
            continue
        try:
            texts.append(look(source.location).text)
        except OSError as error:
            texts.append(None)
            unreadable.append(f"{source.canonical}: {error.strerror or error}")
    return CurrentVersion(tuple(texts), tuple(unreadable))


def is_tracked(stack: Stack) -> bool:
    """Whether any source of a stack is looked at before a copy is used."""
    return any(tracked(chain) is not None for chain in stack.chains)


def tracked(chain: Chain) -> Source | None:
    """The local source whose version a look shows; None for others, and if a digest says what the result must be.

    Of mirrors it is the first, whichever was fetched: if that one changes, the others are not to be trusted to be
    what they were.
    """
    first = chain.mirrors[0]
    return None if first.scheme != "file" or is_pinned(chain) else first


def refuse_around(stack: Stack, root: str) -> None:
    """Raises FetchFailed if a source is, by its path, a directory that the cache in `root` is in.

    To read the tree of such a directory may take hours. The source is not touched: its file system may not answer.
    """
    roots = {os.path.abspath(root), os.path.realpath(root)}
    for chain in stack.chains:
        source = tracked(chain)
        if source is not None and any(os.path.commonpath((source.location, one)) == source.location for one in roots):
            raise contains_cache(source.location)


def contains_cache(path: str) -> FetchFailed:
    """The error for a directory that must not be fetched, because the cache is in it."""
    return FetchFailed(
        f"cannot fetch {plain(path)}: the cache is in it, so that the copy would contain itself",
        hint="give a directory that does not contain the cache",
    )


def is_pinned(chain: Chain) -> bool:
    """Whether a digest says what must come of a source, so that its version does not matter."""
    return any(is_digest(step) for step in chain.steps)


def tag(texts: Sequence[str | None]) -> str | None:
    """16 hexadecimal digits that stand for versions, by source; None if no source is local."""
    if all(text == _OTHER for text in texts):
        return None
    return digest_of(*(_OTHER if text is None else text for text in texts))[:16]


def tag_of(facts: Sequence[Fact | None], chains: Sequence[Chain]) -> str | None:
    """The same from what was noted when the sources were fetched."""
    pairs = zip(facts, chains, strict=True)
    return tag([_OTHER if tracked(chain) is None else text_of(fact) or _OTHER for fact, chain in pairs])


def text_of(fact: object) -> str | None:
    """`Version.text` of what `item.json` says of a source; None if it says nothing of a local one."""
    if not isinstance(fact, Mapping):
        return None
    if isinstance(fact.get("tree"), str):
        return f"tree {fact['tree']}"
    size, mtime = fact.get("size"), fact.get("mtime")
    return f"{size} {mtime}" if isinstance(size, int) and isinstance(mtime, str) else None


def is_as_noted(source: Source, fact: object) -> bool:
    """Whether a local source has the version that `item.json` describes. Raises OSError."""
    return look(source.location).text == text_of(fact)


def fits(current: CurrentVersion, version: str | None, noted: Callable[[], Sequence[Any]]) -> bool:
    """Whether a copy with this version in its name is of what the sources have now.

    A source that cannot be read is not compared. Only if there are others, `noted` is called: what `item.json` says
    of each source.
    """
    if not current.unreadable:
        return current.tag is None or version == current.tag
    if all(text in (None, _OTHER) for text in current.texts):
        return True
    facts = noted()
    pairs = zip(facts, current.texts, strict=False)
    return len(facts) == len(current.texts) and all(
        text in (None, _OTHER) or text_of(fact) == text for fact, text in pairs
    )


class Seen(NamedTuple):
    """A local source as it was before it was copied."""

    source: Source
    version: Version
    began: float  # when, on the monotonic clock


def see(context: Context, chain: Chain) -> Seen | None:
    """A look at a local source that is about to be copied; None for others, and if it cannot be read."""
    source, began = tracked(chain), context.clock.monotonic()
    version = None if source is None else _look_if_readable(source)
    return None if source is None or version is None else Seen(source, version, began)


def confirm(context: Context, seen: Seen) -> dict[str, object]:
    """The version of a source that was copied, for `item.json`. Raises FetchFailed if it changed meanwhile."""
    _settle(context, seen.version.newest, seen.began)
    after = _look_if_readable(seen.source)
    if after is None or after.text != seen.version.text:
        raise FetchFailed(
            f"cannot fetch {seen.source.canonical}: it changed while it was copied",
            hint="try again when no process writes to it",
        )
    return {"source": seen.source.canonical, **seen.version.fact}


def _seconds(nanoseconds: int) -> str:
    """Seconds with all nine digits, as `stat -c %.9Y` prints them; a text, as JSON's numbers are read as floats."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{seconds}.{rest:09d}"


def _settle(context: Context, newest: int, began: float) -> None:
    """Wait until a further modification would show in the time of the source, if it was modified just now."""
    if context.clock.wall() - newest / 1e9 > _OLD:
        return
    tick = _TICK if newest % 1_000_000_000 else _COARSE_TICK
    remaining = tick - (context.clock.monotonic() - began)
    if remaining > 0:
        context.clock.sleep(remaining)


def _look_if_readable(source: Source) -> Version | None:
    try:
        return look(source.location)
    except OSError:
        return None


def _opened(path: str) -> os.stat_result | None:
    try:
        fd = os.open(path, _LOOK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
            raise
        return None
    try:
        status = os.fstat(fd)
        return status if stat.S_ISREG(status.st_mode) else None
    finally:
        os.close(fd)


def _look_at_tree(path: str, answers: list[None]) -> Version:
    import hashlib

    digest = hashlib.sha256()
    newest = 0
    pending = [b""]
    root = os.fsencode(path)
    while pending:
        inner = pending.pop()
        try:
            with os.scandir(root + b"/" + inner if inner else root) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            if not inner:
                raise
            continue  # removed since its name was read
        for entry in entries:
            name = inner + b"/" + entry.name if inner else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
                what = describe(entry, status)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append(name)
            elif not stat.S_ISLNK(status.st_mode):
                newest = max(newest, status.st_mtime_ns)
            digest.update(b"%d %s %s\n" % (len(name), name, what))
            answers.append(None)
    text = digest.hexdigest()[:32]
    return Version(f"tree {text}", newest, {"tree": text})


def describe(entry: os.DirEntry[bytes], status: os.stat_result) -> bytes:
    """What the version of a tree contains of an entry."""
    if stat.S_ISDIR(status.st_mode):
        return b"directory"
    if stat.S_ISLNK(status.st_mode):
        return b"link " + os.readlink(entry.path)
    return b"%d %d" % (status.st_size, status.st_mtime_ns)


def unreadable(source: Source, error: OSError) -> FetchFailed:
    """What is raised if a local source that must be looked at cannot be."""
    return FetchFailed(f"cannot read {source.canonical}: {explain(error, source.canonical)}", hint=KEEP_HINT)


#: What to do if a source cannot be asked.
KEEP_HINT = "to use the copy in the cache, leave out --refresh and --max-age"
