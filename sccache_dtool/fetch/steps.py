"""Steps: what is done with a fetched file before it is published."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from sccache_dtool.disk.filesystem import CHUNK, FileSystem
from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch import decompress
from sccache_dtool.fetch.context import Context
from sccache_dtool.fetch.sink import new_digest
from sccache_dtool.fetch.words import STEPS, is_digest

if TYPE_CHECKING:
    from sccache_dtool.fetch.plugins import StepPlugin

#: Makes its second path from the file at its first. The text names the source in errors.
Transform = Callable[[Context, str, str, str], None]

#: Names that archives compressed with zstd have.
_ZSTD_NAMES = (".tar.zst", ".tzst", ".tar.zstd")


def apply_step(context: Context, step: str, path: str, target: str, source: str) -> str:
    """Do a canonical step with the file at `path`; the path of the outcome.

    A digest leaves it where it is; another step makes `target` from it and removes it. `source` is shown in errors.
    Raises FetchFailed, and OSError for what the file system refuses; an incomplete `target` may then be left.
    """
    name, _, argument = step.partition(":")
    if is_digest(step):
        context.progress.stage("verifying")
        compare(name, argument, file_digest(context.fs, path, name), source)
        return path
    context.progress.stage("unpacking" if name in ("tar", "zip") else name)
    try:
        _transform(name)(context, path, target, source)
    except FetchFailed as error:
        error.shared = error.shared or (name in STEPS and not _is_of_this_host(name, error))
        raise
    context.fs.unlink(path)
    return target


def require(step: str, name: str, source: str) -> None:
    """Raise FetchFailed if a canonical step cannot be done on this host; asked before anything is fetched.

    `name`: that of the file that the step is for.
    """
    if is_digest(step):
        return
    kind = step.partition(":")[0]
    if kind in decompress.MODULES:
        decompress.require(kind, source)
        return
    lacking: str | None = None
    if kind not in STEPS:
        lacking = _plugin(kind).missing()
    elif kind == "tar" and name.endswith(_ZSTD_NAMES):
        lacking = decompress.missing("zst")
    if lacking is not None:
        raise FetchFailed(
            f"cannot apply {kind} to {source}: a package that it needs is not installed", hint=f"install it: {lacking}"
        )


def _is_of_this_host(name: str, error: FetchFailed) -> bool:
    """Whether a step failed for want of something here, and not because of what the file is."""
    cause = error.__cause__
    if isinstance(cause, MemoryError | ImportError | RecursionError):
        return True
    if isinstance(cause, OSError) and cause.errno is not None:
        return True
    return name in decompress.MODULES and decompress.missing(name) is not None


def compare(algorithm: str, expected: str, found: str, source: str) -> None:
    """Raise FetchFailed if two digests of `source`, in lower-case hexadecimal, differ."""
    if found != expected:
        raise FetchFailed(
            f"{algorithm} of {source} is {found}, not {expected}",
            hint="the source has changed, the download is damaged, or the digest belongs to another file",
            shared=True,
        )


def file_digest(fs: FileSystem, path: str, algorithm: str) -> str:
    """The digest of a file, in hexadecimal. Raises OSError."""
    digest = new_digest(algorithm)
    fd = fs.open(path)
    try:
        while data := fs.read(fd, CHUNK):
            digest.update(data)
    finally:
        fs.close(fd)
    return digest.hexdigest()


def _transform(name: str) -> Transform:
    if name in decompress.MODULES:
        return lambda context, path, target, source: decompress.decompress(context.fs, name, path, target, source)
    if name in STEPS:
        unpack = import_module(f"sccache_dtool.fetch.un{name}").unpack
        return lambda context, path, target, source: unpack(context.fs, path, target, source)
    from sccache_dtool.fetch.plugins import failing_in_words

    apply = _plugin(name).apply

    def apply_plugin(context: Context, path: str, target: str, source: str) -> None:
        with failing_in_words(f"cannot apply {name} to {source}", name):
            apply(context, path, target, source)

    return apply_plugin


def _plugin(name: str) -> StepPlugin:
    from sccache_dtool.fetch.plugins import find_step

    plugin = find_step(name)
    if plugin is None:
        raise FetchFailed(f"cannot apply {name}: no installed package provides this step")
    return plugin
