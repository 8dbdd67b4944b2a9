"""`transfers`, `loaders`, `locate`: show downloads, the supported sources and steps, and the path of an item."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sccache_dtool import as_rows
from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import (
    Invocation,
    ItemOptions,
    common_options,
    find_options,
    pass_invocation,
    size_ignored_option,
)
from sccache_dtool.cli.output import Column, Fields
from sccache_dtool.errors import CacheError, NoCache, UsageError
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.transfers import Transfer, TransferState, continuing
from sccache_dtool.find import Named, NotFound

if TYPE_CHECKING:
    from pathlib import Path

#: States that are shown only with --all.
_OVER = (TransferState.DONE, TransferState.FAILED, TransferState.ABANDONED)

#: Seconds between two looks with --watch.
_EVERY = 1.0

#: What each kind of source is, in the words of `loaders`.
_SOURCES = {
    "file": "a local file or directory",
    "local": "the same, as the Whole Tale data manager writes it",
    "globus": "a file in a Globus collection",
    "http": "a file on a web server",
    "https": "a file on a web server",
    "sha256": "a file of the archive, by the digest of its content",
    "sha256.gz": "the same, compressed by gzip",
    "sha256.zip": "the same, compressed into a zip archive",
    "sha256.zst": "the same, compressed by zstd",
    "abfs": "a file in Azure Data Lake Storage",
    "az": "a blob in Azure Blob Storage",
    "ftp": "a file on an FTP server",
    "gs": "an object in Google Cloud Storage",
    "hdfs": "a file in Hadoop's file system",
    "hf": "a file on Hugging Face",
    "oci": "an object in Oracle Cloud",
    "oss": "an object in Alibaba Cloud",
    "root": "a file on an XRootD server",
    "s3": "an object in Amazon S3 or a compatible store",
    "sftp": "a file over SSH",
    "smb": "a file on a Windows share",
    "webdav": "a file on a WebDAV server",
    "webdavs": "a file on a WebDAV server, over TLS",
    "webhdfs": "a file in Hadoop's file system, over HTTP",
}


@click.command("transfers")
@click.option("--item", metavar="ITEM", help="Show only downloads of this item: its name, key or source.")
@click.option(
    "--owner", metavar="WHO", help="Show only what is fetched for this user, USER@HOST, process, job or holder."
)
@click.option("--session", metavar="ID", help="Show only what is fetched for this session.")
@click.option(
    "--all", "everything", is_flag=True, help="Also show downloads that were interrupted, or ended within the last day."
)
@click.option("--watch", is_flag=True, help="Redraw the list every second until Ctrl-C. Needs a terminal.")
@common_options()
@pass_invocation
def transfers_command(
    call: Invocation, item: str | None, owner: str | None, session: str | None, everything: bool, watch: bool
) -> None:
    """Show the downloads in progress.

    A process that waits for a download has a line of its own. --owner and --session also select the download by those
    who wait for it.

    \b
    Examples:
      sc-dtool transfers --all --item hg38.tar.gz
      sc-dtool transfers --owner ada --watch
    """
    cache = call.cache()
    cache.check()

    def rows() -> list[dict[str, Any]]:
        return _rows(cache, item, owner, session, everything)

    columns = [
        Column("ITEM", "name"),
        Column("STATE", "state"),
        Column("DONE", _progress, right=True),
        Column("RATE", lambda row: f"{output.size(row['rate'])}/s" if row["rate"] else "", right=True),
        Column("ATTEMPTS", lambda row: str(row["attempts"] or ""), right=True),
        Column("WAITING", lambda row: str(row["waiting"] or ""), right=True),
        Column("BY", "by"),
        Column("BEGAN", lambda row: row["began"] or ""),
        Column("LAST MESSAGE", lambda row: row["message"] or row["_continuing"]),
    ]
    if watch:
        call.out.watch(rows, columns, "no downloads", _EVERY)
        return
    empty = "no downloads" if everything else "no downloads; to show those that ended or were interrupted: --all"
    call.out.table("transfer", rows(), columns, empty)


def _rows(
    cache: Cache, item: str | None, owner: str | None, session: str | None, everything: bool
) -> list[dict[str, Any]]:
    moment = time.time()
    found = cache.transfers()
    keys = {one.key[:32]: one.key for one in found if one.state != TransferState.WAITING}
    found = [one._replace(key=keys.get(one.key[:32], one.key)) for one in found]
    if item is not None:
        meant = cache.meant(item, {one.key for one in found})
        found = [one for one in found if one.key in meant]
    waiting = Counter(one.key for one in found if one.state == TransferState.WAITING)
    if owner is not None or session is not None:
        chosen = [one for one in found if owner in (None, *_owners(one)) and session in (None, one.session)]
        waited_for = {one.key for one in chosen if one.state == TransferState.WAITING}
        found = [one for one in found if one in chosen or (one.key in waited_for and _is_running(one))]
    return [transfer_fields(one, waiting[one.key], moment) for one in found if everything or one.state not in _OVER]


def _is_running(one: Transfer) -> bool:
    return one.state not in (TransferState.WAITING, *_OVER)


def _owners(one: Transfer) -> tuple[str, ...]:
    """The words by which --owner finds a transfer."""
    at, _, short = one.by.removesuffix("]").partition("[")
    return (one.by, at, at.partition("@")[0], short, one.holder, one.lock_owner or one.by)


def transfer_fields(one: Transfer, waiting: int, moment: float) -> dict[str, Any]:
    """The fields of a `transfer` record. `moment`: now, in seconds since 1970."""
    return {**as_rows.transfer(one, waiting, moment), "_continuing": continuing(one)}


def _progress(row: Fields) -> str:
    if row["state"] == TransferState.WAITING:
        return ""
    done = output.size(row["bytes"])
    if row["state"] == TransferState.DONE or row["percent"] is None:
        return done
    return f"{done} of {output.size(row['total'])}, {row['percent']:.0f} %"


@click.command("loaders")
@common_options()
@pass_invocation
def loaders_command(call: Invocation) -> None:
    """List the kinds of sources and steps, and what they need.

    A source is the first word of `use`, and steps are the words after it.

    \b
    Example:
      sc-dtool loaders -f json
    """
    columns = [Column("KIND", "kind"), Column("NAME", "name"), Column("READY", _ready), Column("WHAT IT IS", "summary")]
    call.out.table("loader", _loaders(), columns)


def _loaders() -> Iterator[dict[str, Any]]:
    from sccache_dtool.fetch import decompress, fsspec_source, globus, plugins
    from sccache_dtool.fetch.words import CHECKSUMS, REMOTE, SOURCES, STEPS

    for scheme in SOURCES:
        missing = globus.to_install(scheme) if scheme == "globus" else None
        missing = decompress.missing("zst") if scheme.endswith(".zst") else missing
        yield _loader("source", scheme, missing, _SOURCES[scheme])
    for scheme in REMOTE:
        missing = fsspec_source.to_install(scheme)
        yield _loader("source", scheme, missing, _SOURCES[scheme], scheme in fsspec_source.SHOWN)
    yield from _plugins("source", plugins.SOURCES)
    for name in STEPS:
        unpacks = name in ("tar", "zip")
        yield _loader(
            "step", name, None if unpacks else decompress.missing(name), "unpacks" if unpacks else "decompresses"
        )
    import hashlib

    for name in (*CHECKSUMS, *sorted(hashlib.algorithms_guaranteed)):
        if name in CHECKSUMS or hashlib.new(name, usedforsecurity=False).digest_size:
            yield _loader("step", name, None, "checks a digest")
    yield from _plugins("step", plugins.STEPS)


def _plugins(kind: str, group: str) -> Iterator[dict[str, Any]]:
    from sccache_dtool.fetch import plugins

    for one in plugins.listing(group):
        origin = f"from {one.package}"
        if isinstance(one.plugin, CacheError):
            yield _loader(kind, one.name, one.plugin.message, origin)
        else:
            yield _loader(kind, one.name, one.plugin.missing(), one.plugin.summary or origin, tested=False)


def _loader(kind: str, name: str, missing: str | None, summary: str, tested: bool = True) -> dict[str, Any]:
    found = {"kind": kind, "name": name, "ready": missing is None, "missing": missing}
    return {**found, "tested": tested, "summary": summary}


def _ready(row: Fields) -> str:
    if row["missing"]:
        return f"not installed: {row['missing']}"
    return "yes" if row["tested"] else "installed, but not tested"


def _paths(cache: Cache, named: Named, words: tuple[str, ...], name: str | None) -> Iterator[Path | None]:
    """The path of the copy that `use` would take, or of the copy that is named."""
    if named.generation is None:
        try:
            request = cache.item_request(words, name)
        except CacheError:
            request = None  # not the words of `use`
        if request is not None and request.key == named.key:
            yield cache.locate(request)
            return
    for copy in cache.item(named.key).copies:
        if not copy.closed and named.generation in (None, str(copy.generation)):
            path = cache.path(copy)
            yield path if path is not None and cache.is_whole(copy, path) else None


@click.command("locate")
@find_options
@size_ignored_option
@common_options()
@pass_invocation
def locate_command(call: Invocation, item: ItemOptions) -> None:
    """Print the path of an item without taking a lease.

    Without a lease, the item may be removed at any moment. Give the words that `use` was given, or the item's name or
    key. The upstream is not searched. The exit code is 1 if the item is in none of the caches. It is also 1 if `use`
    would fetch the item again because its source has changed.

    \b
    Example:
      sc-dtool locate https://example.org/hg38.tar.gz tar
    """
    words, name = item.words, item.name
    caches = item.caches(call)
    if not words and name is None:
        raise UsageError("no item is given", hint="give the words that `use` was given")
    changed = False
    for cache in caches:
        try:
            named = cache.find_used(words, name)
        except (NotFound, NoCache):
            continue
        for path in _paths(cache, named, words, name):
            if path is not None:
                call.out.path("locate", {"path": str(path), "item": named.key}, str(path))
                return
        changed = changed or cache.has(named.key)
    if changed:
        raise CacheError(
            f"{name or plain(' '.join(words))} has changed since it was fetched, or its copy is damaged",
            hint="`use` fetches it again",
        )
    raise CacheError(f"{name or plain(' '.join(words))} is not in {' or '.join(str(cache.root) for cache in caches)}")
