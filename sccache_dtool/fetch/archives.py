"""What unpacking an archive of any format is: a new directory, and errors of one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sccache_dtool.disk.extraction import Extraction, Refused
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import FULL, CacheError, FetchFailed
from sccache_dtool.fetch.reasons import plain, why


@contextlib.contextmanager
def unpacking(fs: FileSystem, directory: str, source: str) -> Iterator[Extraction]:
    """What unpacks into `directory`, which is made; `source` is shown in errors.

    Raises FetchFailed for what is refused, and for whatever the library that reads the format raises. Raises OSError if
    there is no space left. What was unpacked until then is left in `directory`.
    """
    fs.mkdir(directory, 0o755)  # so that nobody else can write in it, also where permissions cannot be changed
    try:
        with fs.extract(directory) as extraction:
            yield extraction
            extraction.check_links()
            extraction.set_times()
    except CacheError:
        raise
    except Refused as error:
        raise FetchFailed(f"cannot unpack {source}: refused member {plain(str(error))}") from error
    except Exception as error:  # damaged data raises anything: zlib.error, EOFError, KeyError, UnicodeError …
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise FetchFailed(f"cannot unpack {source}: {why(error).replace(f'{directory}/', '')}") from error


@contextlib.contextmanager
def member_named(name: str) -> Iterator[None]:
    """Say of which member a refusal is."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{plain(name)!r}: {error}") from error
