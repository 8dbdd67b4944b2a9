"""Steps: what is done with a fetched file before it is published."""

from __future__ import annotations

from collections.abc import Callable

from sccache_dtool.errors import FetchFailed
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.stack import is_digest
from sccache_dtool.fsops import CHUNK, FileSystem

#: Makes its second path from the file at its first. The text names the source in errors.
Transform = Callable[[FileSystem, str, str, str, Progress], None]


def apply_step(fs: FileSystem, step: str, path: str, target: str, source: str, progress: Progress) -> str:
    """Do a canonical step with the file at `path`; the path of the outcome.

    A digest leaves it where it is; another step makes `target` from it and removes it. `source` is shown in errors.
    Raises FetchFailed, and OSError for what the file system refuses; an incomplete `target` may then be left.
    """
    name, _, argument = step.partition(":")
    if is_digest(step):
        progress.stage("verifying")
        compare(name, argument, file_digest(fs, path, name), source)
        return path
    TRANSFORMS[name](fs, path, target, source, progress)
    fs.unlink(path)
    return target


def compare(algorithm: str, expected: str, found: str, source: str) -> None:
    """Raise FetchFailed if two digests of `source`, in lower-case hexadecimal, differ."""
    if found != expected:
        raise FetchFailed(
            f"{algorithm} of {source} is {found}, not {expected}",
            hint="the source has changed, it was damaged on the way, or the digest asked for is another file's",
        )


def file_digest(fs: FileSystem, path: str, algorithm: str) -> str:
    """The digest of a file, in hexadecimal. Raises OSError."""
    import hashlib

    digest = hashlib.new(algorithm, usedforsecurity=False)
    fd = fs.open(path)
    try:
        while data := fs.read(fd, CHUNK):
            digest.update(data)
    finally:
        fs.close(fd)
    return digest.hexdigest()


def _tar(fs: FileSystem, path: str, target: str, source: str, progress: Progress) -> None:
    from sccache_dtool.fetch.untar import unpack

    progress.stage("unpacking")
    unpack(fs, path, target, source)


#: What carries out a step, by its name; digests are not among them.
TRANSFORMS: dict[str, Transform] = {"tar": _tar}
